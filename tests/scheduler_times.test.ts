/** @module Stored times under a master whose clock is ahead or behind of the last one's (point 10 of section 1). */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { AllocationRecord, Drain, StoredState } from "../src/model.ts";
import { countedFrom, GATE_MS } from "../src/reconcile_replace.ts";
import { boundedDrain, boundedTimes } from "../src/scheduler_times.ts";
import { HEARTBEAT_MS, Master, Peer } from "./master_fixture.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const NOW = 1_700_000_000_000;

describe("boundedDrain()", () => {
  /** When it was begun and was to be over, and what that is for a master that begins now; minutes from now. */
  const cases: [string, [number, number], [number, number]][] = [
    ["leaves a deadline that is far enough off", [-1, 9], [-1, 9]],
    ["leaves half of its time to one that would be over soon", [-9, 1], [-5, 5]],
    [
      "leaves half of its time to one that passed while no master was there, or by a clock that is ahead",
      [-70, -60],
      [-5, 5],
    ],
    ["leaves no more than ten minutes of it", [-300, 1], [-291, 10]],
    ["brings one of a clock that was ahead to the time that it was to take", [60, 70], [0, 10]],
    ["does so for one of a clock that was ahead by years", [5_000_000, 5_000_060], [0, 60]],
    ["leaves one that was over from the start over", [-60, -60], [0, 0]],
    ["ends one whose deadline is before its start", [-60, -90], [0, 0]],
  ];
  test.each(cases)("%s", (_, [started, deadline], [wantedStart, wantedDeadline]) => {
    const at = (minutes: number) => NOW + minutes * MINUTE;
    const drain: Drain = { started_at: at(started), deadline_at: at(deadline), force: true, leave: false };
    expect(boundedDrain(drain, NOW)).toEqual({
      ...drain,
      started_at: at(wantedStart),
      deadline_at: at(wantedDeadline),
    });
  });

  test("never begins in the future, never ends before it is begun, and lasts from now on for its own time at most", () => {
    const time = fc.integer({ min: 0, max: 4 * NOW });
    fc.assert(
      fc.property(time, time, time, (started_at, deadline_at, now) => {
        const one = boundedDrain({ started_at, deadline_at, force: false, leave: false }, now);
        const lastsMs = Math.max(0, deadline_at - started_at);
        expect(one.started_at).toBeLessThanOrEqual(now);
        expect(one.deadline_at - one.started_at).toBe(lastsMs);
        expect(one.deadline_at - now).toBeLessThanOrEqual(lastsMs);
        expect(one.deadline_at - now).toBeGreaterThanOrEqual(Math.min(lastsMs / 2, 10 * MINUTE) - 1);
        // Also where the next master begins at once.
        expect(boundedDrain(one, now)).toEqual(one);
      }),
    );
  });
});

test("boundedTimes() lets nothing have happened in the future, and leaves the rest as it is", () => {
  const allocation = (created_at: number) => ({ allocation_id: "a", created_at }) as AllocationRecord;
  const past = { allocation_id: "a", node_id: "n", node_name: "n", cause: "lost" as const, restarts: 0 };
  const state = {
    node: [],
    allocation: [allocation(NOW + 1), allocation(NOW - HOUR)],
    departure: [{ node_id: "n", node_name: "n", address: "", left_at: NOW + DAY }],
    history: [
      {
        job_id: "j",
        service_name: "s",
        slot: 1,
        past: [
          { ...past, created_at: NOW - 2, replaced_at: NOW - 1 },
          { ...past, created_at: NOW - 1, replaced_at: NOW + HOUR },
        ],
      },
    ],
  } satisfies Partial<StoredState>;
  const found = boundedTimes(state, NOW);
  expect(found.allocation.map(({ created_at }) => created_at)).toEqual([NOW, NOW - HOUR]);
  expect(found.departure[0]?.left_at).toBe(NOW);
  expect(found.history[0]?.past.map(({ replaced_at }) => replaced_at)).toEqual([NOW - 1, NOW]);
  expect(boundedTimes(found, NOW)).toEqual(found);
});

test.each([
  ["from when it began", -10, undefined, -10],
  ["from when it began, under the same master", 10, 0, 10],
  ["from when it began, where more than half is left for the next one", -40, 0, -40],
  ["with half of it left, where the next one's clock is ahead", -3_600, 0, -50],
])("countedFrom() counts %s", (_, at, since, from) => {
  expect(countedFrom(at, { lastsMs: 100, since })).toBe(from);
});

type Pass = { ms: number; peers: readonly Peer[]; states?: Parameters<Peer["report"]>[0] };

async function pass(master: Master, { ms, peers, states = {} }: Pass): Promise<void> {
  for (let passed = 0; passed < ms; passed += HEARTBEAT_MS) {
    await master.clock.advance(HEARTBEAT_MS);
    for (const peer of peers) await peer.report(states);
  }
}

async function restart(master: Master, peers: readonly Peer[], skewMs: number): Promise<void> {
  master.skewMs = skewMs;
  await master.restart();
  for (const peer of peers) await peer.dial();
}

const here = (master: Master, nodeId: string) =>
  master.scheduler.state.allocationsOn(nodeId).filter(({ desired }) => desired === "run").length;

describe.each([
  ["an hour ahead", HOUR],
  ["an hour behind", -HOUR],
  ["right", 0],
])("a master that starts again with a clock that is %s", (_, skewMs) => {
  test("lets a drain have its time, and ends it", async () => {
    const master = await Master.start();
    const peers = [await Peer.join(master, 1), await Peer.join(master, 2)];
    const large = { image: "busybox", scale: 2, deploy: { resources: { reservations: { memory: "5g" } } } };
    await master.put("shop", { web: large });
    for (const peer of peers) await peer.report();
    await master.scheduler.putNode("n2", { availability: "drain", deadlineMs: 20 * MINUTE });
    await pass(master, { ms: MINUTE, peers });
    await restart(master, peers, skewMs);
    await pass(master, { ms: 9 * MINUTE, peers });
    expect(here(master, "n2")).toBe(1);
    await pass(master, { ms: 12 * MINUTE, peers });
    expect(here(master, "n2")).toBe(0);
  });

  test("lets one that takes another's place come up, and gives it up in the end", async () => {
    const master = await Master.start();
    const peers = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put("shop", { web: { image: "busybox", scale: 1 } });
    for (const peer of peers) await peer.report();
    const [old] = [...master.scheduler.state.allocations.values()];
    if (!old) throw new Error("nothing was placed");
    await master.scheduler.putNode(old.node_id, { availability: "drain", deadlineMs: HOUR });
    await pass(master, { ms: 10_000, peers: peers.filter(({ id }) => id === old.node_id) });
    const successor = () =>
      [...master.scheduler.state.allocations.values()].find(({ replaces }) => replaces !== undefined);
    const first = successor()?.allocation_id;
    expect(first).toBeString();
    await restart(master, peers, skewMs);
    // It is on its way, and not up.
    const report = async (ms: number) => {
      for (let passed = 0; passed < ms; passed += HEARTBEAT_MS) {
        await master.clock.advance(HEARTBEAT_MS);
        for (const peer of peers) await peer.report(peer.id === old.node_id ? {} : { 1: { state: "starting" } });
      }
    };
    await report(GATE_MS / 2 - 10_000);
    expect(master.scheduler.state.allocations.get(first ?? "")?.desired).toBe("run");
    await report(GATE_MS / 2 + 20_000);
    expect(master.scheduler.state.allocations.get(first ?? "")?.desired).not.toBe("run");
    expect(here(master, old.node_id)).toBe(1);
  });

  test("keeps a node that left listed for an hour at least, and not for ever", async () => {
    const master = await Master.start();
    const peers = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await peers[1]?.hangUp();
    await master.clock.advance(20_000);
    await master.scheduler.removeNode("n2", {});
    await restart(master, peers.slice(0, 1), skewMs * 25);
    await master.clock.advance(30 * MINUTE);
    expect(master.scheduler.state.departures.has("n2")).toBe(true);
    await master.clock.advance(DAY + HOUR);
    expect(master.scheduler.state.departures.has("n2")).toBe(false);
  });
});
