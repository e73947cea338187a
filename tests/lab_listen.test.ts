/** @module Where nodes listen that were not told (point 10), on hosts of the lab without Docker, which that has nothing to do with. */
import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync } from "node:fs";
import { identityIn } from "../src/data_dir.ts";
import { serveBareEngine } from "./bare_engine.ts";
import { Lab, type LabHost } from "./lab.ts";
import { LabCluster } from "./lab_cluster.ts";
import { mustRun } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

let lab: Lab;
let one: LabHost;
let two: LabHost;
let cluster: LabCluster;
let engine: { stop(): void };

beforeAll(async () => {
  lab = await Lab.start({ hosts: 2, docker: false });
  [one, two] = [lab.host(1), lab.host(2)];
  cluster = new LabCluster(lab);
  // A node joins once its Engine has told its id.
  engine = serveBareEngine(two.dockerSocket);
});

afterEach(async () => {
  for (const started of cluster.processes.splice(0)) await started?.kill();
  for (const host of lab.hosts) rmSync(host.dataDir, { recursive: true, force: true });
});

afterAll(async () => {
  engine?.stop();
  await lab?.stop();
});

/** Addresses that something listens on at the API's port on host 2. */
async function listening(): Promise<string[]> {
  const { stdout } = await two.run(["ss", "-Hltn", "sport = :9000"]);
  const lines = stdout.split("\n").filter(Boolean);
  return lines.map((line) => line.trim().split(/\s+/)[3] ?? "").toSorted();
}

async function master(): Promise<string> {
  const address = `${one.address}:9000`;
  await cluster.node(1, ["bootstrap", "--bind-addr", address]).waitFor(/this node is up/);
  return address;
}

/** Waits until the master knows host 2 at this address, and has a session with it. */
async function joined(address: string): Promise<void> {
  await waitUntil("host 2 to be in session", () => cluster.nodes(), {
    until: (nodes) => nodes.some((node) => node.address === address && !node.reason.includes("session")),
    timeoutMs: 20_000,
  });
}

function both(host: string): string[] {
  return [`${host}:9000`, "127.0.0.1:9000"].toSorted();
}

test("a worker listens on the address that its peer is reached from and on loopback, also when it starts again without that peer", async () => {
  // Another network of the machine, which the cluster has nothing to do with.
  await mustRun(["ip", "-n", two.name, "addr", "add", "10.99.99.2/24", "dev", "lo"]);
  const address = await master();
  cluster.node(2, ["join", address]);
  await joined(`${two.address}:9000`);
  expect(await listening()).toEqual(both(two.address));
  expect((await two.curl("-f", "127.0.0.1:9000/healthz")).exitCode).toBe(0);
  expect((await two.curl("-m", "2", "10.99.99.2:9000/healthz")).exitCode).not.toBe(0);

  await cluster.process(1).kill();
  await cluster.process(2).kill();
  await cluster.node(2, []).waitFor(/no session with the master/);
  expect(await listening()).toEqual(both(two.address));
  expect(identityIn(two.dataDir)?.last_bind_addr).toBe(`${two.address}:9000`);
});

test("a worker whose peer is away, and that has no address any more, waits on loopback and listens when the peer is back", async () => {
  const address = await master();
  cluster.node(2, ["join", address]);
  await joined(`${two.address}:9000`);
  await cluster.process(1).kill();
  await cluster.process(2).kill();
  const moved = two.address.replace(/\d+$/, "202");
  const swap = async (from: string, to: string) => {
    await mustRun(["ip", "-n", two.name, "addr", "del", `${from}/24`, "dev", "eth0"]);
    await mustRun(["ip", "-n", two.name, "addr", "add", `${to}/24`, "dev", "eth0"]);
  };
  await swap(two.address, moved);
  try {
    const worker = cluster.node(2, []);
    await worker.waitFor((logs) => (logs.match(/no session with the master, trying again/g) ?? []).length >= 2);
    expect(await listening()).toEqual(["127.0.0.1:9000"]);
    cluster.restart(1);
    await joined(`${moved}:9000`);
    expect(await listening()).toEqual(both(moved));
  } finally {
    await swap(moved, two.address);
  }
});

test("an explicit --bind-addr stays as it is", async () => {
  const address = await master();
  cluster.node(2, ["join", address, "--bind-addr", "0.0.0.0:9000"]);
  await joined(`${two.address}:9000`);
  expect(await listening()).toEqual(["0.0.0.0:9000"]);
});
