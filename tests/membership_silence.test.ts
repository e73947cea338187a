/** @module What the master concludes from silence: tables, and that it never gives up most of a cluster at once by itself. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Heard, Silence } from "../src/membership_silence.ts";

const TIMEOUT_MS = 4_000;
const HOLD_MS = 60_000;
const SUSPECT_MS = 2_500;

function silence(): Silence {
  return new Silence({ nodeTimeoutMs: TIMEOUT_MS, suspectMs: SUSPECT_MS, holdMs: HOLD_MS });
}

/** Nodes by name, with when each was last heard of; `m` is the master's own. */
function nodes(lastSeen: Record<string, number>, more: Record<string, Partial<Heard>> = {}): Heard[] {
  return Object.entries(lastSeen).map(([node_id, at]) => ({
    node_id,
    lastSeen: at,
    isHeard: true,
    wasReady: true,
    isSelf: node_id === "m",
    ...more[node_id],
  }));
}

function conclusions(judge: Silence, names: string): (string | undefined)[] {
  return [...names].map((name) => judge.of(name));
}

describe("Silence", () => {
  test("calls a node lost after the timeout, and not before", () => {
    const judge = silence();
    const at = { m: 4_000, a: 0, b: 4_000, c: 4_000 };
    judge.judge(nodes(at), 4_000);
    expect(judge.of("a")).toBeUndefined();
    judge.judge(nodes(at), 4_001);
    expect(conclusions(judge, "mabc")).toEqual([undefined, "lost", undefined, undefined]);
    judge.forget("a");
    expect(judge.of("a")).toBeUndefined();
  });

  test("holds what most nodes run when they fall silent together, and gives it up after the longer time", () => {
    const judge = silence();
    const at = { m: 4_100, a: 0, b: 900, c: 500, d: 4_100 };
    judge.judge(nodes(at), 4_100);
    // The others of the group are silent, though their time is not up yet.
    expect(conclusions(judge, "abcd")).toEqual(["held", undefined, undefined, undefined]);
    const later = { ...at, m: 5_000, d: 5_000 };
    judge.judge(nodes(later), 5_000);
    expect(conclusions(judge, "abcd")).toEqual(["held", "held", "held", undefined]);
    expect(judge.hold).toEqual({ since: 4_100, until: 64_100, nodes: ["a", "b", "c"] });
    judge.judge(nodes({ ...later, m: 64_100, d: 64_100 }), 64_100);
    expect(conclusions(judge, "abcd")).toEqual(["lost", "lost", "lost", undefined]);
    expect(judge.hold).toBeUndefined();
  });

  test("gives up the rest a timeout after enough are back to show that the master is not cut off", () => {
    const judge = silence();
    judge.judge(nodes({ m: 5_000, a: 0, b: 0 }), 5_000);
    expect(conclusions(judge, "ab")).toEqual(["held", "held"]);
    judge.judge(nodes({ m: 6_000, a: 0, b: 6_000 }), 6_000);
    expect(conclusions(judge, "ab")).toEqual(["held", undefined]);
    const later = 6_000 + TIMEOUT_MS;
    judge.judge(nodes({ m: later, a: 0, b: later }), later);
    expect(conclusions(judge, "ab")).toEqual(["lost", undefined]);
  });

  test("gives up none of those that come back one after the other when the master's cable is in again", () => {
    const judge = silence();
    const all = [..."abcd"];
    for (let now = 5_000; now <= 26_000; now += 250) {
      // The cable is in again at 20 s; nodes find the master a second apart.
      const seen = all.map((name, n) => [name, now >= 20_000 + n * 1_000 ? now : 0]);
      judge.judge(nodes({ m: now, ...Object.fromEntries(seen) }), now);
      expect(all.filter((name) => judge.of(name) === "lost")).toEqual([]);
    }
    expect(judge.hold).toBeUndefined();
  });

  test("goes ahead when it is told to", () => {
    const judge = silence();
    judge.judge(nodes({ m: 5_000, a: 0, b: 0 }), 5_000);
    judge.release();
    judge.judge(nodes({ m: 5_100, a: 0, b: 0 }), 5_100);
    expect(conclusions(judge, "ab")).toEqual(["lost", "lost"]);
  });

  test.each([
    ["one node of two", { m: 5_000, a: 0, b: 5_000 }, ["lost", undefined]],
    ["the only other node", { m: 5_000, a: 0 }, ["lost", undefined]],
    ["half of four", { m: 5_000, a: 0, b: 0, c: 5_000, d: 5_000 }, ["lost", "lost"]],
  ])("does not hold %s", (_, at, expected) => {
    const judge = silence();
    judge.judge(nodes(at), 5_000);
    expect(conclusions(judge, "ab")).toEqual(expected);
  });

  test("does not hold nodes that fell silent one after the other", () => {
    const judge = silence();
    judge.judge(nodes({ m: 4_500, a: 0, b: 4_500 }), 4_500);
    judge.judge(nodes({ m: 9_000, a: 0, b: 4_500 }), 9_000);
    expect(conclusions(judge, "ab")).toEqual(["lost", "lost"]);
  });

  test("counts nodes that could not work for nothing", () => {
    const judge = silence();
    const broken = { b: { wasReady: false }, c: { wasReady: false } };
    judge.judge(nodes({ m: 5_000, a: 5_000, b: 0, c: 0 }, broken), 5_000);
    expect(conclusions(judge, "abc")).toEqual([undefined, "lost", "lost"]);
  });

  test.each([
    ["one timeout where most have reported", { m: true, a: true }, 4_001],
    ["two where they have not", { m: true, a: false }, 8_001],
  ])("gives nodes that a new master has not heard of %s", (_, heard, at) => {
    const judge = silence();
    const unheard = { b: { isHeard: false }, a: { isHeard: heard.a } };
    const seen = { m: at, a: heard.a ? at : 0, b: 0 };
    judge.judge(nodes(seen, unheard), at - 1);
    expect(judge.of("b")).toBeUndefined();
    judge.judge(nodes(seen, unheard), at);
    expect(judge.of("b")).toBeDefined();
  });

  test("never gives up more than half of the others within one timeout by itself", () => {
    const cut = fc.record({
      nodes: fc.subarray([..."abcdefg"], { minLength: 2 }),
      spread: fc.integer({ max: 900, min: 0 }),
    });
    fc.assert(
      fc.property(cut, fc.integer({ min: 0, max: 249 }), ({ nodes: gone, spread }, phase) => {
        const judge = silence();
        const all = [..."abcdefg"];
        const isMost = gone.length * 2 > all.length;
        for (let now = phase; now < 20_000; now += 250) {
          const seen = Object.fromEntries(all.map((name, n) => [name, gone.includes(name) ? (n * spread) / 7 : now]));
          judge.judge(nodes({ m: now, ...seen }), now);
          const lost = all.filter((name) => judge.of(name) === "lost");
          if (isMost) expect(lost).toEqual([]);
        }
        expect(all.filter((name) => judge.of(name) !== undefined)).toEqual(gone.toSorted());
      }),
    );
  });
});
