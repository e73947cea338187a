/** @module Files that are sent with a job, on real engines: what the containers see, over updates, restarts and kill -9. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Lab } from "./lab.ts";
import { type Asked, LabCluster, perNode, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(120_000);

const COMPOSE = `
services:
  app:
    image: busybox
    command: sleep 86400
    stop_signal: SIGKILL
    scale: 2
    env_file: ./app.env
    configs: [{source: settings, target: /etc/settings.conf}]
    secrets: [{source: password, mode: 0400, uid: "7"}]
    volumes: ["./conf.d:/etc/conf.d", "./start.sh:/start.sh:ro"]
  other: {image: busybox, command: sleep 86400, stop_signal: SIGKILL}
configs:
  settings: {file: ./settings.conf}
secrets:
  password: {environment: PASSWORD}
`;

let lab: Lab;
let cluster: LabCluster;
let dir: string;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 2 });
  lab = cluster.lab;
  dir = join(lab.host(1).dir, "project");
  mkdirSync(join(dir, "conf.d"), { recursive: true });
  const files = {
    "compose.yaml": COMPOSE,
    "app.env": 'GREETING="hello ${WHO}"\n',
    "settings.conf": "color=blue\n",
    "conf.d/a.conf": "x".repeat(600_000),
    "start.sh": "#!/bin/sh\necho started\n",
    ".env": "WHO=world\nPASSWORD=hunter2\n",
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, name), text);
});

afterAll(async () => {
  await lab?.stop();
});

/** The real curl, as the README has it, sent through the worker. */
async function send(): Promise<{ status: string; body: string }> {
  const files = ["app.env", "settings.conf", "conf.d/a.conf", "start.sh"];
  const { stdout } = await lab
    .host(2)
    .curl(
      ...["-X", "PUT", `${lab.host(2).address}:9000/cluster/job/files`, "-w", "\n%{http_code}"],
      ...["-F", `compose=@${dir}/compose.yaml`, "-F", `env=@${dir}/.env`],
      ...files.flatMap((file) => ["-F", `file=@${dir}/${file};filename=./${file}`]),
    );
  const [body = "", status = ""] = stdout.trim().split(/\n(?=\d+$)/);
  return { status, body };
}

/** What each container of `app` has, asked from inside. */
async function look(): Promise<Asked[]> {
  const script =
    'echo "$GREETING"; cat /etc/settings.conf /run/secrets/password; echo; stat -c "%a %u" /run/secrets/password; wc -c < /etc/conf.d/a.conf; /start.sh; touch /run/secrets/password 2>&1 | grep -o "Read-only.*"';
  return cluster.ask("app", script);
}

/** Waits until two containers show the files; what is on its way down or up counts as not there yet. */
async function shown(color: string): Promise<Asked[]> {
  return waitUntil(`both containers to show ${color}`, () => look().catch((): Asked[] => []), {
    until: (seen) => seen.length === 2 && seen.every(({ text }) => text.trim() === expected(color)),
    timeoutMs: 60_000,
  });
}

function expected(color: string): string {
  return `hello world\ncolor=${color}\nhunter2\n400 7\n600000\nstarted\nRead-only file system`;
}

test("containers on every node see the sent files, and keep them over restarts of node and engine", async () => {
  expect(await send()).toMatchObject({ status: "201" });
  const { services } = await cluster.settled("files");
  expect(perNode(services["app"]?.allocations ?? [])).toEqual({ "host-1": 1, "host-2": 1 });
  const first = await look();
  expect(first.map(({ text }) => text.trim())).toEqual([expected("blue"), expected("blue")]);
  for (const path of ["/cluster/job", "/cluster/job/files", "/cluster/allocation"]) {
    expect(JSON.stringify((await cluster.api(path)).body)).not.toContain("hunter2");
  }
  for (const { host, id } of first) expect(await host.docker("inspect", id)).not.toContain("hunter2");

  // Equal files change nothing, and a killed node takes its container up again as it is.
  expect(await send()).toMatchObject({ status: "200" });
  await cluster.process(2).kill();
  cluster.restart(2);
  await cluster.ready(2);
  await cluster.settled("files");
  expect((await look()).map(({ id }) => id).toSorted()).toEqual(first.map(({ id }) => id).toSorted());
  await lab.host(2).restartDocker();
  await shown("blue");
});

test("a changed file replaces the containers that mount it and no others, also when the master is killed in between", async () => {
  const others = async () =>
    (await cluster.allocations("?job=files&service=other")).map(({ allocation_id }) => allocation_id);
  const before = await look();
  const other = await others();
  writeFileSync(join(dir, "settings.conf"), "color=red\n");
  expect(await send()).toMatchObject({ status: "200" });
  await cluster.process(1).kill();
  cluster.restart(1);
  await cluster.ready(2);
  const after = await shown("red");
  for (const { id } of before) expect(after.map((one) => one.id)).not.toContain(id);
  expect(await others()).toEqual(other);
});

test("a node that lost its files gets them again, and the project directory goes with the job's volumes", async () => {
  const [one] = (await look()).filter(({ host }) => host === lab.host(2));
  if (!one) throw new Error("no container on host 2");
  const projectDir = join(lab.host(2).dataDir, "projects", "files");
  await cluster.process(2).kill();
  rmSync(projectDir, { recursive: true });
  await lab.host(2).docker("rm", "-f", one.id);
  cluster.restart(2);
  await cluster.ready(2);
  await shown("red");
  await cluster.clear();
  await waitUntil("the project directory to be gone", () => existsSync(projectDir), { until: (there) => !there });
});

test("a document that lies in a directory of the project shows its containers what lies beside that directory", async () => {
  for (const name of ["docker", "files"]) mkdirSync(join(dir, name));
  writeFileSync(join(dir, "files/seen.conf"), "from above\n");
  const volumes = ["../files/seen.conf:/etc/seen.conf", "./data:/data"];
  const services = {
    app: { ...sleeper({ volumes }), deploy: { placement: { constraints: ["node.name == host-1"] } } },
  };
  writeFileSync(join(dir, "docker/compose.yaml"), JSON.stringify({ services }));
  const put = async (compose: string) => {
    const url = `${lab.host(2).address}:9000/cluster/job/above`;
    const seen = `file=@${dir}/files/seen.conf;filename=files/seen.conf`;
    const { stdout } = await lab.host(2).curl("-X", "PUT", url, "-F", compose, "-F", seen);
    return stdout;
  };
  expect(await put(`compose=@${dir}/docker/compose.yaml`)).toContain("filename=DIR/compose.yaml");
  const made = await put(`compose=@${dir}/docker/compose.yaml;filename=docker/compose.yaml`);
  const version = /"version":\d+/.exec(made)?.[0] ?? "a version";
  expect(made).toContain(version);
  const { services: settled } = await cluster.settled("above");
  const id = settled["app"]?.allocations[0]?.container_id ?? "";
  expect(await lab.host(1).docker("exec", id, "cat", "/etc/seen.conf")).toContain("from above");
  expect(existsSync(join(lab.host(1).dataDir, "projects/above/docker/data"))).toBe(true);
  // What the cluster shows is sent back as it is: the same job, and so the same version.
  const { body } = await cluster.api<{ document: unknown }>("/cluster/job/above");
  writeFileSync(join(dir, "shown.json"), JSON.stringify(body.document));
  expect(await put(`compose=@${dir}/shown.json`)).toContain(version);
});
