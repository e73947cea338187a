/** @module A node that joins before its Docker Engine answers says what it waits for, and is a member once the Engine has told its id (point 5). */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { serveBareEngine } from "./bare_engine.ts";
import { NodeProcesses } from "./node_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

const nodes = new NodeProcesses();

afterAll(async () => {
  await nodes.stop();
});

async function ask<T>(port: number, path: string): Promise<T> {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, { proxy: false, keepalive: false });
  return (await response.json()) as T;
}

test("a new node waits for its Docker Engine before it joins, and says so; the master's own node does not (point 5)", async () => {
  const master = await nodes.start(["bootstrap"]);
  const worker = await nodes.start(["join", master.address], { hasEngine: false });
  const members = async () => (await ask<{ nodes: { node_id: string }[] }>(master.port, "/cluster/node")).nodes;
  const socket = `unix://${worker.dataDir}/none.sock`;
  const ready = () => ask<{ ready: boolean; reasons: string[] }>(worker.port, "/readyz");
  const said = await waitUntil("the worker to say what it waits for", ready, {
    until: ({ reasons }) => reasons[0]?.includes("no such file") === true,
  });
  const waits = `waits for the Docker Engine at ${socket} before it joins: Docker does not answer on ${socket}: no such file; is dockerd running?`;
  expect(said).toEqual({ ready: false, reasons: [waits, "no session with the master"] });
  await worker.process.waitFor(/this node has not joined yet/);
  expect(worker.process.logs()).toContain(waits);
  // The master's Engine does not answer either.
  expect(await members()).toHaveLength(1);
  const engine = serveBareEngine(`${worker.dataDir}/none.sock`);
  try {
    await nodes.untilMember(worker);
    expect(await members()).toHaveLength(2);
    expect((await ready()).reasons.join()).not.toContain("waits for");
  } finally {
    engine.stop();
  }
});
