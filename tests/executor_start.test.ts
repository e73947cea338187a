/** @module When a node that starts may say hello: its Engine's id tells the master whose containers are on the machine (point 5). */
import { afterAll, describe, expect, test } from "bun:test";
import { cleanUp, Node, OWNER } from "./executor_fixture.ts";

afterAll(cleanUp);

/** A node whose Engine does not answer, and whether its executor has started. */
function down() {
  const node = new Node();
  node.engine.goDown();
  const state = { hasStarted: false };
  const start = () => void node.executor.start().then(() => (state.hasStarted = true));
  return { node, state, start };
}

describe("a node that starts while its Engine does not answer (point 5)", () => {
  test("waits for its Engine's id where it is no member yet, however long that takes", async () => {
    const { node, state, start } = down();
    start();
    await node.clock.advance(3_600_000);
    expect(state.hasStarted).toBe(false);
    node.engine.comeUp();
    await node.clock.advance(3_000);
    expect([state.hasStarted, node.executor.engineStatus().engine_id]).toEqual([true, expect.any(String)]);
  });

  test("knows the id also where the Engine is gone again by then", async () => {
    const { node, state, start } = down();
    start();
    node.engine.comeUp();
    await node.clock.advance(3_000);
    node.engine.goDown();
    await node.clock.advance(60_000);
    expect([state.hasStarted, node.executor.engineStatus()]).toEqual([
      true,
      expect.objectContaining({ state: "unready", engine_id: expect.any(String) }),
    ]);
  });

  test("waits for 2 s where it is a member", async () => {
    const { node, state, start } = down();
    node.executor.adopt(OWNER);
    start();
    await node.clock.advance(2_001);
    expect(state.hasStarted).toBe(true);
  });

  test("ends when it is told to", async () => {
    const { node, state, start } = down();
    start();
    await node.clock.advance(10_000);
    const stopped = node.executor.stop();
    await node.clock.advance(1_000);
    await stopped;
    expect(state.hasStarted).toBe(true);
  });
});

test("a process that has just looked at Docker tells of no containers before it has taken in what it found (section 2)", async () => {
  const node = await new Node().start();
  node.assign([{ id: "a" }]);
  await node.until(() => node.status("a")?.state === "running");
  node.abandon();
  const seen: string[][] = [];
  const look = () => {
    const snapshot = node.executor.snapshot();
    if (snapshot) seen.push(snapshot.allocations.map(({ allocation_id }) => allocation_id));
  };
  // Right after each answer that a look is made of, before anything else has its turn.
  const { engine } = node;
  const [list, volumes, networks] = [
    engine.list.bind(engine),
    engine.volumes.bind(engine),
    engine.networks.bind(engine),
  ];
  const then = <T>(answer: T) => {
    node.clock.after(0, look);
    return answer;
  };
  Object.assign(engine, {
    list: () => list().then(then),
    volumes: () => volumes([]).then(then),
    networks: () => networks().then(then),
  });
  await node.begin();
  node.assign([{ id: "a" }]);
  await node.clock.advance(1_000);
  expect(seen.length).toBeGreaterThan(1);
  expect(seen.filter((ids) => !ids.includes("a"))).toEqual([]);
});
