/**
 * @module Point 1.2 of issue 15: connections end and a container stops within one grace period together, and what is stopped for want of
 * a master waits for no connections.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { sleep } from "../src/clock.ts";
import { cleanUp, ids, Node } from "./executor_fixture.ts";

const LIMIT_MS = 30_000;
const IMAGE = "busybox:latest";

afterAll(cleanUp);

type Begin = { graceMs: number; clientsMs?: number; spec?: object };

/** A node with one container that ignores its stop signal, and clients that stay for so long, if they may. */
async function started({ graceMs, clientsMs = Infinity, spec = {} }: Begin) {
  const drained: number[] = [];
  const signalled: number[] = [];
  const node = new Node(1, {
    drain: async (_, { graceMs: drainMs, signal }) => {
      drained.push(drainMs);
      await sleep(node.clock, Math.min(drainMs, clientsMs), signal);
    },
  });
  node.engine.behaviours.set(IMAGE, { stopMs: 1_000_000 });
  const stop = node.engine.stop.bind(node.engine);
  node.engine.stop = (id, options) => {
    signalled.push(options.graceMs);
    return stop(id, options);
  };
  await node.start();
  node.assign(ids(["a"], { spec: { ...spec, stop_grace_period_ms: graceMs } }));
  await node.until(() => node.isSettled(["a"]));
  return { node, drained, signalled };
}

/** Milliseconds until nothing runs any more. */
async function stopped(node: Node): Promise<number> {
  const begin = node.clock.now();
  await node.until(() => node.engine.running("a").length === 0);
  return node.clock.now() - begin;
}

describe("a stop takes one grace period for connections and signal together", () => {
  const cases = [
    [10_000, 5_000, 5_000],
    [7_000, 3_000, 4_000],
    [1_000, 0, 1_000],
    [0, 0, 0],
    [3_500, 1_500, 2_000],
  ] as const;
  test.each(cases)("of %p ms: clients have %p ms, the container %p ms", async (graceMs, drainMs, signalMs) => {
    const { node, drained, signalled } = await started({ graceMs });
    node.assign([]);
    const tookMs = await stopped(node);
    expect([drained, signalled.map((ms) => Math.round(ms / 100) * 100)]).toEqual([[drainMs], [signalMs]]);
    expect(tookMs).toBeLessThan(graceMs + 500);
  });

  test("what its clients do not need is the container's", async () => {
    const { node, drained, signalled } = await started({ graceMs: 20_000, clientsMs: 2_000 });
    node.assign([]);
    const tookMs = await stopped(node);
    expect([drained, signalled.map((ms) => Math.round(ms / 100) * 100)]).toEqual([[10_000], [18_000]]);
    expect(tookMs).toBeLessThan(20_500);
  });
});

describe("a stop for want of a master", () => {
  test("waits for no connections: it is over when the master counts on it", async () => {
    const graceMs = 10_000;
    const { node, drained, signalled } = await started({ graceMs, spec: { stop_when_isolated_ms: LIMIT_MS } });
    node.isolatedSince = node.clock.now();
    node.executor.noticeMaster();
    const tookMs = await stopped(node);
    expect([drained, signalled]).toEqual([[], [graceMs]]);
    // The master places another one 2 s later.
    expect(tookMs).toBeLessThan(LIMIT_MS + graceMs + 1_000);
  });
});

describe("a stop of what must never run twice", () => {
  test.each([true, false])(
    "waits for none of the other stops, however many there are; isolated: %p",
    async (isIsolated) => {
      const node = new Node(1);
      node.engine.behaviours.set(IMAGE, { stopMs: 10_000_000 });
      await node.start();
      const others = Array.from({ length: 120 }, (_, n) => `${n}-other`);
      const never = ids(["a"], { spec: { stop_grace_period_ms: 1_000, stop_when_isolated_ms: LIMIT_MS } });
      node.assign([...ids(others, { spec: { stop_grace_period_ms: 600_000 } }), ...never]);
      await node.until(() => node.isSettled(["a", ...others]));
      node.assign(isIsolated ? never : []);
      if (isIsolated) {
        await node.clock.advance(1_000);
        node.isolatedSince = node.clock.now();
        node.executor.noticeMaster();
      }
      expect(await stopped(node)).toBeLessThan((isIsolated ? LIMIT_MS : 0) + 2_000);
      expect(others.filter((id) => node.engine.running(id).length > 0)).toHaveLength(others.length);
    },
  );
});
