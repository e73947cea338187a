/** @module Starting, refusing to start, and starting again, on hosts of the lab; and one node under many jobs and bad documents. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { seeded } from "./cluster_fixture.ts";
import type { LabHost } from "./lab.ts";
import { Lab } from "./lab.ts";
import { LabCluster, perNode, sleeper } from "./lab_cluster.ts";
import type { LabProcess } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(120_000);

let lab: Lab;
let one: LabHost;
let two: LabHost;
let cluster: LabCluster;

beforeAll(async () => {
  lab = await Lab.start({ hosts: 3 });
  await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
  [one, two] = [lab.host(1), lab.host(2)];
});

afterEach(async () => {
  for (const started of running.splice(0)) await started.kill();
  for (const host of lab.hosts) {
    const ids = (await host.docker("ps", "-aq")).split("\n").filter(Boolean);
    if (ids.length > 0) await host.docker("rm", "-f", ...ids);
    rmSync(host.dataDir, { recursive: true, force: true });
    rmSync(`${host.dataDir}-2`, { recursive: true, force: true });
  }
});

afterAll(async () => {
  await lab?.stop();
});

const running: LabProcess[] = [];

/** Starts a process that the test's end kills. */
function start(host: LabHost, args: readonly string[], env: Record<string, string> = {}): LabProcess {
  const started = host.cacophony(args, { env: { CACOPHONY_HEARTBEAT_INTERVAL: "500ms", ...env } });
  running.push(started);
  return started;
}

async function bootstrap(host: LabHost = one): Promise<string> {
  const address = `${host.address}:9000`;
  await start(host, ["bootstrap", "--bind-addr", address]).waitFor(/this node is up/);
  cluster = new LabCluster(lab);
  return address;
}

/** A start that must fail: exit code 2 and one line that says why. */
async function refused(host: LabHost, args: readonly string[], env: Record<string, string> = {}): Promise<string> {
  const { exitCode, stderr } = await host.runCacophony(args, { env });
  const lines = stderr.split("\n").filter((line) => line.startsWith("cacophony: "));
  expect([exitCode, lines.length]).toEqual([2, 1]);
  return lines[0] ?? "";
}

describe("a start that cannot work is refused with exit code 2 and one line", () => {
  test.each([
    ["a bad address", ["bootstrap", "--bind-addr", "300.1.2.3:9000"], /300\.1\.2\.3:9000.*HOST:PORT/],
    ["a bad port", ["bootstrap", "--bind-addr", "10.0.0.1:99999"], /10\.0\.0\.1:99999/],
    [
      "an address of another machine",
      ["bootstrap", "--bind-addr", "192.0.2.7:9000"],
      /192\.0\.2\.7:9000 is not one of this machine/,
    ],
    ["an unknown option", ["bootstrap", "--bind-adr", "x"], /--bind-adr.*did you mean '--bind-addr'/],
    ["an unknown command", ["bootstarp"], /bootstarp.*did you mean 'bootstrap'/],
    ["a join to nowhere", ["join"], /join needs the address/],
    ["a bad size", ["bootstrap", "--memory", "8 elephants"], /--memory.*8 elephants/],
    ["a time without its unit", ["bootstrap", "--image-gc", "24"], /--image-gc .*24/],
    ["a time of nothing", ["bootstrap", "--image-gc", "0s"], /--image-gc must be above 0/],
    ["a share of more than all", ["bootstrap", "--disk-limit", "101"], /--disk-limit '101'.*1 to 100/],
    ["a bad label", ["bootstrap", "--label", "zone"], /--label 'zone'.*KEY=VALUE/],
    [
      "a data directory that cannot be made",
      ["bootstrap", "--data-dir", "/proc/nowhere"],
      /\/proc\/nowhere.*--data-dir/,
    ],
    ["no identity to resume", [], /no node in .* yet.*bootstrap/],
  ])("%s", async (_, args, message) => {
    expect(await refused(one, args)).toMatch(message);
  });

  test("a taken port, and a data directory in use", async () => {
    const address = await bootstrap();
    expect(
      await refused(one, ["bootstrap", "--bind-addr", address], { CACOPHONY_DATA_DIR: `${one.dataDir}-2` }),
    ).toMatch(/taken by another process/);
    expect(await refused(one, ["bootstrap", "--bind-addr", `${one.address}:9001`])).toMatch(
      /in use by a running cacophony/,
    );
  });

  test("a second live node on one Docker Engine, with the reason", async () => {
    const address = await bootstrap();
    const env = { CACOPHONY_DATA_DIR: `${one.dataDir}-2` };
    expect(await refused(one, ["join", address, "--bind-addr", `${one.address}:9001`], env)).toMatch(
      /Docker Engine is in use by node host-1/,
    );
  });

  test("bootstrap over a joined node, join to another cluster, join of a master", async () => {
    const address = await bootstrap();
    const worker = start(two, ["join", address]);
    await worker.waitFor(/in session with the master/);
    await worker.kill();
    expect(await refused(two, ["bootstrap"])).toMatch(/belongs to a node of cluster/);
    const third = lab.host(3);
    await start(third, ["bootstrap", "--bind-addr", `${third.address}:9000`]).waitFor(/this node is up/);
    expect(await refused(two, ["join", `${third.address}:9000`])).toMatch(/choose another --data-dir/);
    await running[0]?.kill();
    expect(await refused(one, ["join", `${third.address}:9000`])).toMatch(/belongs to the master of cluster/);
  });

  test("a damaged, newer or missing cluster state, which stays as it was", async () => {
    await bootstrap();
    await running[0]?.kill();
    const state = join(one.dataDir, "cluster.db");
    for (const suffix of ["-wal", "-shm"]) rmSync(state + suffix, { force: true });
    writeFileSync(state, "not a database, but a file of some length ".repeat(100));
    const before = readFileSync(state);
    expect(await refused(one, ["bootstrap"])).toMatch(/damaged/);
    expect(readFileSync(state)).toEqual(before);
    rmSync(state);
    expect(await refused(one, [])).toMatch(/cluster\.db is missing/);
    writeFileSync(state, "");
    expect(await refused(one, [])).toMatch(/cluster state is empty/);
  });
});

describe("a start that works", () => {
  test("--version and --help print and exit 0", async () => {
    const version = await one.runCacophony(["--version"]);
    expect(version).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/^cacophony \d+\.\d+\.\d+ \(commit \S+, Bun 1\.4\.4\)\n$/),
    });
    for (const args of [["--help"], ["bootstrap", "--help"], ["join", "--help"]]) {
      const { exitCode, stdout } = await one.runCacophony(args);
      expect(exitCode).toBe(0);
      expect(stdout).toContain("--data-dir");
      expect(stdout).toContain("EXAMPLES");
    }
  });

  test("bootstrap without --bind-addr listens on loopback and says that others cannot join there", async () => {
    const node = start(one, ["bootstrap"]);
    await node.waitFor(/this node is up/);
    expect(node.logs()).toMatch(/loopback only: other machines cannot join/);
    expect((await one.curl("127.0.0.1:9000/healthz")).exitCode).toBe(0);
    expect((await two.curl("-m", "2", `${one.address}:9000/healthz`)).exitCode).not.toBe(0);
  });

  test("cacophony alone resumes the same identity, also when the peer that was given to join is gone", async () => {
    const address = await bootstrap();
    const worker = start(two, ["join", address, "--label", "zone=a", "--label", "disk=ssd"]);
    await worker.waitFor(/in session with the master/);
    const before = await cluster.nodes();
    expect(before.find(({ node_name }) => node_name === "host-2")).toMatchObject({
      labels: { zone: "a", disk: "ssd" },
    });
    await Promise.all(running.map((node) => node.kill()));
    await start(two, []).waitFor(/no session with the master/);
    await start(one, []).waitFor(/this node is up/);
    const after = await cluster.ready(2);
    expect(after.map(({ node_id, address: at }) => [node_id, at])).toEqual(
      before.map(({ node_id, address: at }) => [node_id, at]),
    );
  });

  test("a peer that cannot be reached is tried again, each try in the log, until it is there", async () => {
    const worker = start(two, ["join", `${one.address}:9000`]);
    await worker.waitFor((logs) => (logs.match(/no session with the master, trying again/g) ?? []).length >= 2);
    // It does not know yet from which of its addresses the cluster is reached.
    const local = async (path: string) =>
      (await two.curl("-o", "/dev/null", "-w", "%{http_code}", `127.0.0.1:9000${path}`)).stdout;
    expect([await local("/healthz"), await local("/readyz")]).toEqual(["200", "503"]);
    await bootstrap();
    await cluster.ready(2);
    expect((await two.fetch("/readyz")).status).toBe(200);
  });

  test("SIGTERM ends a node that is still starting, with exit code 0", async () => {
    const node = start(two, ["join", `${lab.host(3).address}:9000`, "--bind-addr", "0.0.0.0:9405"]);
    await waitUntil("the port to be open", async () => (await two.fetch("/healthz", { port: 9405 })).ok, {
      intervalMs: 2,
    });
    expect(await node.stop({ timeoutMs: 2_000 })).toBe(0);
  });

  test("a request without a usable Host gets an answer in JSON, and a web page cannot open a session", async () => {
    const address = await bootstrap();
    const old = await one.run([
      "sh",
      "-c",
      `printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' | busybox nc ${one.address} 9000`,
    ]);
    expect(old.stdout).toContain('"status":"ok"');
    const odd = await one.curl("-H", "Host: a b", `${address}/healthz`);
    expect(odd.stdout).not.toContain("<html");
    const page = await one.curl(
      "-i",
      "-m",
      "2",
      "-H",
      "Origin: http://evil.example",
      "-H",
      "Upgrade: websocket",
      "-H",
      "Connection: Upgrade",
      "-H",
      "Sec-WebSocket-Version: 13",
      "-H",
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
      `${address}/internal/session`,
    );
    expect(page.stdout).toContain("403");
  });

  test("a second node of the same name gets a suffix", async () => {
    const address = await bootstrap();
    start(two, ["join", address, "--node-name", "host-1"]);
    expect((await cluster.ready(2)).map(({ node_name }) => node_name)).toEqual(["host-1", "host-1-2"]);
  });

  test("a node that lost its data directory gets its identity back by its engine, and its containers with it", async () => {
    const address = await bootstrap();
    const worker = start(two, ["join", address]);
    const before = await cluster.ready(2);
    await cluster.put("kept", { services: { a: sleeper({ scale: 2 }) } });
    await cluster.settled("kept");
    const container = await cluster.containers(two);
    await worker.kill();
    rmSync(two.dataDir, { recursive: true });
    start(two, ["join", address]);
    expect((await cluster.ready(2)).map(({ node_id }) => node_id)).toEqual(before.map(({ node_id }) => node_id));
    await cluster.settled("kept");
    expect(await cluster.containers(two)).toEqual(container);
  });

  test("without Docker a member is unready and says why, takes no work, and recovers by itself", async () => {
    const address = await bootstrap();
    // A node that is no member yet waits for its Engine before it joins (lab_node_life.test.ts).
    const joined = start(two, ["join", address]);
    await cluster.ready(2);
    await joined.kill();
    await two.killDocker();
    start(two, []);
    await waitUntil("host 2 to say that it has no Docker", () => cluster.nodes(), {
      until: ([, second]) => second?.state === "unready" && second.reason.includes("Docker does not answer"),
    });
    await cluster.put("work", { services: { a: sleeper({ scale: 4 }) } });
    expect(perNode((await cluster.settled("work")).services["a"]?.allocations ?? [])).toEqual({ "host-1": 4 });
    await two.restartDocker();
    await cluster.ready(2);
  });
});

describe("unequal nodes", () => {
  test("get replicas in proportion to what --memory and --cpus leave to the cluster", async () => {
    const address = `${one.address}:9000`;
    await start(one, ["--memory", "1g", "bootstrap", "--bind-addr", address]).waitFor(/this node is up/);
    cluster = new LabCluster(lab);
    start(two, ["join", address, "--memory=2g"]);
    start(lab.host(3), ["join", address], { CACOPHONY_MEMORY: "4g" });
    await cluster.ready(3);
    const reservations = { memory: "32m", cpus: "0.001" };
    await cluster.put("weighed", {
      services: { a: sleeper({ deploy: { replicas: 28, resources: { reservations } } }) },
    });
    const { services } = await cluster.settled("weighed");
    const counts = perNode(services["a"]?.allocations ?? []);
    console.log(`28 replicas on nodes of 1, 2 and 4 GiB: ${JSON.stringify(counts)}`);
    expect(counts).toEqual({ "host-1": 4, "host-2": 8, "host-3": 16 });
  });

  test("get fewer replicas where something takes more memory than it asked for", async () => {
    const address = `${one.address}:9000`;
    await start(one, ["--memory", "4g", "bootstrap", "--bind-addr", address]).waitFor(/this node is up/);
    cluster = new LabCluster(lab);
    for (const host of [two, lab.host(3)]) start(host, ["join", address, "--memory=4g"]);
    await cluster.ready(3);
    const fill = "dd if=/dev/zero of=/dev/shm/hog bs=1M count=2048; sleep 100000";
    const placement = { constraints: ["node.hostname == host-1"] };
    await cluster.put("hog", {
      services: { a: sleeper({ command: ["sh", "-c", fill], shm_size: "3g", deploy: { placement } }) },
    });
    const resources = async () =>
      Object.values((await cluster.api<Record<string, { available_memory: number }>>("/cluster/resources")).body);
    await waitUntil("the hog to be seen", resources, {
      until: (all) => all.some((node) => node.available_memory < 2.1 * 2 ** 30),
      timeoutMs: 60_000,
    });
    const reservations = { memory: "256m", cpus: "0.001" };
    await cluster.put("modest", {
      services: { a: sleeper({ deploy: { replicas: 20, resources: { reservations } } }) },
    });
    const { services } = await cluster.settled("modest");
    const counts = perNode(services["a"]?.allocations ?? []);
    console.log(`20 replicas of 256 MiB beside a hog of 2 GiB on host 1, 4 GiB each: ${JSON.stringify(counts)}`);
    // 7 GiB on three nodes: a third of that is 2.33 GiB, and the hog has 2 of it.
    expect(counts["host-1"] ?? 0).toBeWithin(1, 3);
    expect(Math.abs((counts["host-2"] ?? 0) - (counts["host-3"] ?? 0))).toBeLessThanOrEqual(1);
  });
});

describe("one node", () => {
  test("runs 40 jobs, each with a network of its own, and gives everything back", async () => {
    await bootstrap();
    await cluster.ready(1);
    const started = performance.now();
    for (let i = 1; i <= 40; i++) await cluster.put(`job-${i}`, { services: { a: sleeper() } });
    await waitUntil("40 jobs to run", async () => (await cluster.allocations("?state=running")).length, {
      until: (n) => n === 40,
      timeoutMs: 90_000,
    });
    console.log(`40 jobs run on one node ${Math.round(performance.now() - started)} ms after the first PUT`);
    const { cluster_id } = (await cluster.api<{ cluster_id: string }>("/cluster/status")).body;
    const networks = async () =>
      (await one.docker("network", "ls", "-q", "--filter", `label=cacophony.cluster=${cluster_id}`))
        .split("\n")
        .filter(Boolean).length;
    expect(await networks()).toBe(40);
    await cluster.clear();
    await waitUntil("the networks to be gone", networks, { until: (n) => n === 0 });
  });

  test("takes none of 200 malformed documents and lives", async () => {
    await bootstrap();
    await cluster.ready(1);
    const random = seeded(20);
    const good = readFileSync(join(import.meta.dir, "..", "examples", "example-job.yml"), "utf8");
    const statuses: Record<string, number> = {};
    for (let i = 0; i < 200; i++) {
      const { status, body } = await cluster.api<{ error?: { code: string; message: string } }>(
        `/cluster/job/bad-${i}`,
        { method: "PUT", body: malformed(good, { i, random }) },
      );
      statuses[status] = (statuses[status] ?? 0) + 1;
      expect([400, 413, 422]).toContain(status);
      expect(body.error?.message).toBeString();
    }
    console.log(`200 malformed documents: ${JSON.stringify(statuses)}`);
    expect((await cluster.api("/cluster/job")).body).toEqual({});
    expect(running[0]?.running).toBe(true);
    expect((await cluster.put("good", good)).status).toBe(201);
  });
});

/** A document that no reader of compose may accept, of one of many kinds. */
function malformed(good: string, { i, random }: { i: number; random: () => number }): string | Uint8Array<ArrayBuffer> {
  const kinds: (() => string | Uint8Array<ArrayBuffer>)[] = [
    () => "",
    () => "null",
    () => `[${i}]`,
    () => `just text ${i}`,
    () => "services: {}",
    () => `services:\n  a:\n    image: busybox\n    nonsense_${i}: 1\n`,
    () => `services:\n  a:\n    ports: [${70000 + i}]\n`,
    () => `services:\n\ta:\n\t\timage: x\n`,
    () => `services: {a: {image: busybox, scale: -${i + 1}}}`,
    () => `services: {a: {image: busybox, mem_limit: ${i} parsecs}}`,
    () => `services: {a: {image: busybox}, a: {image: busybox}}`,
    () => `services: {"bad name ${i}": {image: busybox}}`,
    () => new Uint8Array([0xff, 0xfe, 0xc0, i % 256]),
    () => `services: {a: {image: "bus\u0000ybox"}}`,
    () =>
      `a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d]\nservices: {a: {image: busybox, command: *e}}`,
    () => "[".repeat(1000 + i),
    () => `{"services": {"a": {"image": "busybox",}`,
    () => `services: {a: {image: "\${MISSING_${i}:?must be given}"}}`,
    () => `services: {a: {image: busybox, restart: sometimes-${i}}}`,
    () => `${good}\n  - stray ${Math.floor(random() * 1e6)}: [`,
  ];
  return kinds[i % kinds.length]?.() ?? "";
}
