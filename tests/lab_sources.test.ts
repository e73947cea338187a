/** @module Project directories on a real engine: read by users of containers whatever the node's umask is, and never a way out by a link. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { lstatSync, mkdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Lab, LabHost } from "./lab.ts";
import { type Allocation, LabCluster, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(180_000);

let lab: Lab;
let cluster: LabCluster;
let host: LabHost;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 1, within: (argv) => ["sh", "-c", 'umask 077; exec "$@"', "sh", ...argv] });
  lab = cluster.lab;
  host = lab.host(1);
});

afterAll(async () => {
  await lab?.stop();
});

function project(job: string): string {
  return join(host.dataDir, "projects", job);
}

/** What each running container of a service says to a script; one that has just ended says nothing. */
async function says(service: string, script: string): Promise<string[]> {
  const all = await cluster.containers(host);
  const own = all.filter(({ labels, state }) => labels["cacophony.service"] === service && state === "running");
  const texts = await Promise.all(
    own.map(({ id }) => host.docker("exec", id, "sh", "-c", script).catch(() => undefined)),
  );
  return texts.flatMap((text) => text?.trim() ?? []);
}

test("point 11: a container's user reads a sent directory, file and config of a node under a umask of 077", async () => {
  const dir = join(host.dir, "sent");
  mkdirSync(join(dir, "conf.d", "sub"), { recursive: true });
  const files = { "conf.d/a.conf": "a=1\n", "conf.d/sub/b.conf": "b=2\n", "run.sh": "#!/bin/sh\necho ran\n" };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, name), text);
  const s = sleeper({
    user: "1000:1000",
    volumes: ["./conf.d:/conf:ro", "./run.sh:/run.sh:ro", "./made:/made"],
    configs: ["inline"],
  });
  writeFileSync(
    join(dir, "compose.yaml"),
    JSON.stringify({ services: { s }, configs: { inline: { content: "c=3" } } }),
  );
  const { stdout } = await host.curl(
    ...["-X", "PUT", `${host.address}:9000/cluster/job/umask`, "-F", `compose=@${dir}/compose.yaml`],
    ...Object.keys(files).flatMap((name) => ["-F", `file=@${dir}/${name};filename=./${name}`]),
  );
  expect(stdout).toContain('"version":1');
  await cluster.settled("umask");
  expect(await says("s", "cat /conf/a.conf /conf/sub/b.conf /inline; echo; /run.sh; ls /made")).toEqual([
    "a=1\nb=2\nc=3\nran",
  ]);
  expect((statSync(join(host.dataDir, "cluster.db-wal")).mode & 0o777).toString(8)).toBe("600");
});

test("point 2: a link to / that a container planted is not mounted by the next version, and the allocation says why", async () => {
  const place = { constraints: ["node.name == host-1"] };
  const v1 = sleeper({
    volumes: ["./:/p"],
    command: ["sh", "-c", "ln -s / /p/x; mkdir /p/real; ln -s real /p/inside; echo here > /p/real/f; sleep 86400"],
  });
  const services = (app: Record<string, unknown>) => ({ services: { app: { ...app, deploy: { placement: place } } } });
  expect((await cluster.put("planted", services(v1))).status).toBe(201);
  await waitUntil(
    "the link to be planted",
    () => lstatSync(join(project("planted"), "real", "f"), { throwIfNoEntry: false }),
    {
      until: (found) => found !== undefined,
    },
  );
  for (const source of ["./x", "./x/etc", "./inside/../x"]) {
    expect((await cluster.put("planted", services(sleeper({ volumes: [`${source}:/m`] })))).status).toBe(200);
    const failed = await waitUntil("the allocation to fail", () => cluster.allocations("?job=planted&state=failed"), {
      until: (list: Allocation[]) => list.some(({ error }) => error?.includes("a symbolic link to /")),
      timeoutMs: 60_000,
    });
    expect(failed[0]?.error).toContain("a relative bind stays in the job's project directory");
    for (const text of await says("app", "ls /m 2>/dev/null")) expect(text).not.toContain("etc");
  }
  // A link that stays in the project is followed, as compose does.
  await cluster.put("planted", services(sleeper({ volumes: ["./inside:/m"] })));
  await cluster.settled("planted");
  expect(await says("app", "cat /m/f")).toEqual(["here"]);
});

test("point 2: no container keeps what it got by a link that came while it started", async () => {
  const dir = project("swapped");
  mkdirSync(join(dir, "x"), { recursive: true });
  writeFileSync(join(dir, "x", "inside"), "");
  symlinkSync("/", join(dir, "y"));
  const swapper = Bun.spawn([process.execPath, join(import.meta.dir, "swap.ts"), join(dir, "x"), join(dir, "y")], {
    stdout: "pipe",
  });
  let failed = 0;
  try {
    await swapper.stdout.getReader().read();
    const app = sleeper({ volumes: ["./x:/m:ro"], scale: 16 });
    expect((await cluster.put("swapped", { services: { swapped: app } })).status).toBe(201);
    await waitUntil(
      "some containers to run",
      async () => {
        const all = await cluster.allocations("?job=swapped");
        failed += all.filter(({ error }) => error?.includes("the bind source")).length;
        return all.filter(({ state }) => state === "running").length;
      },
      { until: (running) => running >= 5, timeoutMs: 120_000 },
    );
  } finally {
    swapper.kill("SIGKILL");
    await swapper.exited;
  }
  // Those that were just started are looked at once more.
  await waitUntil("no container to see the machine's root", () => says("swapped", "ls /m"), {
    until: (seen) => seen.length > 0 && seen.every((text) => text === "inside"),
    timeoutMs: 10_000,
  });
  expect(failed).toBeGreaterThan(0);
});
