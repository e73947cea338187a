/** @module Restart policies: their labels, what they count, how long is waited, and what a status tells of all that. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { afterFailure, afterStart, type Container, converge, type Memory, type View } from "../src/converge.ts";
import { restartLabel, restartPolicyOf, restartWaitMs, STABLE_MS } from "../src/converge_restarts.ts";
import { LABELS } from "../src/model.ts";
import type { RestartSpec } from "../src/model_spec.ts";

const BEGIN = 1_000_000;
const CAP_MS = 30_000;

/** One container that is started and ends, time and again, as its policy has it; `random` is 1, so waits are the longest. */
class Life {
  now = BEGIN;
  memory: Memory | undefined;
  readonly #labels: Map<string, string>;
  #container: Container | undefined;

  constructor(label: string) {
    this.#labels = new Map([
      [LABELS.allocation, "a"],
      [LABELS.restart, label],
    ]);
  }

  look() {
    const view: View = {
      assigned: new Map([["a", "run"]]),
      held: new Set(),
      reviveAt: 0,
      containers: this.#container ? [this.#container] : [],
      memories: new Map(this.memory ? [["a", this.memory]] : []),
      now: this.now,
      random: () => 1,
    };
    const decision = converge(view);
    this.memory = decision.memories.get("a");
    const [status] = decision.statuses;
    if (!status) throw new Error("the allocation is gone");
    return { ...decision, status };
  }

  /** Starts it, and sees that it runs. */
  start(): void {
    this.look();
    this.memory = afterStart(this.memory as Memory);
    const base = { id: "c", name: "c", labels: this.#labels, ports: [], createdAt: BEGIN, exitCode: 0 };
    this.#container = { ...base, state: "running", startedAt: this.now };
    this.look();
  }

  /** It ends after so long; gives how long is waited, undefined if it stays so. */
  end(afterMs: number, change: Partial<Container> = {}): number | undefined {
    this.now += afterMs;
    this.#container = {
      ...(this.#container as Container),
      state: "exited",
      exitCode: 1,
      finishedAt: this.now,
      ...change,
    };
    const { status, wakeAt } = this.look();
    expect(wakeAt).toBe(status.next_start_at);
    return status.next_start_at === undefined ? undefined : status.next_start_at - this.now;
  }

  /** So many runs of that length; gives the waits after them. */
  runs(count: number, { ms, exitCode = 1 }: { ms: number; exitCode?: number }): (number | undefined)[] {
    return Array.from({ length: count }, () => {
      this.now = Math.max(this.now, this.memory?.startAt ?? 0);
      this.start();
      return this.end(ms, { exitCode });
    });
  }
}

describe("the label of a restart policy", () => {
  const base = { compose: "" } as const;
  const cases: [RestartSpec, string][] = [
    [{ ...base, condition: "always", max_attempts: 0 }, "always"],
    [{ ...base, condition: "no", max_attempts: 3, delay_ms: 5 }, "no"],
    [{ ...base, condition: "on-failure", max_attempts: 0 }, "on-failure"],
    [{ ...base, condition: "on-failure", max_attempts: 3 }, "on-failure:3"],
    [{ ...base, condition: "always", max_attempts: 2 }, "always:2"],
    [{ ...base, condition: "always", max_attempts: 0, delay_ms: 5000 }, "always:0:5000"],
    [{ ...base, condition: "on-failure", max_attempts: 1, window_ms: 120_000 }, "on-failure:1:0:120000"],
  ];
  test.each(cases)("%j is %s", (spec, label) => {
    expect(restartLabel(spec)).toBe(label);
  });

  test("tells an executor without a master all that it needs", () => {
    const number = fc.nat(1e9);
    const specs = fc.record({
      condition: fc.constantFrom("always" as const, "on-failure" as const, "no" as const),
      max_attempts: number,
      delay_ms: number,
      window_ms: number,
      compose: fc.constant("" as const),
    });
    fc.assert(
      fc.property(specs, (spec) => {
        const { condition, max_attempts: maxAttempts, delay_ms: delayMs, window_ms: windowMs } = spec;
        const expected = { condition, maxAttempts, delayMs, windowMs: windowMs || STABLE_MS };
        const read = restartPolicyOf(restartLabel(spec));
        // Nothing else matters to what is never started again.
        if (condition === "no") expect(read.condition).toBe("no");
        else expect(read).toEqual(expected);
      }),
    );
  });

  test.each([undefined, "", "unless-stopped", "later:x:y:-5"])("%p keeps a container running", (label) => {
    expect(restartPolicyOf(label)).toEqual({ condition: "always", maxAttempts: 0, delayMs: 0, windowMs: STABLE_MS });
  });
});

describe("a container that ends", () => {
  const short = { ms: 50 };
  const cases: [name: string, label: string, run: (life: Life) => unknown, waits: unknown][] = [
    ["waits longer each time", "always", (life) => life.runs(4, short), [100, 200, 400, 800]],
    ["waits for the delay first", "always:0:5000", (life) => life.runs(3, short), [5_100, 5_200, 5_400]],
    ["is tried as often as max_attempts says", "on-failure:2", (life) => life.runs(3, short), [100, 200, undefined]],
    [
      "is tried so often under always, too",
      "always:2",
      (life) => life.runs(3, { ms: 50, exitCode: 0 }),
      [100, 200, undefined],
    ],
    [
      "is tried anew after a sound run",
      "on-failure:1",
      (life) => [life.runs(1, short), life.runs(1, { ms: STABLE_MS }), life.runs(1, short)],
      [[100], [100], [undefined]],
    ],
    [
      "was no success before its window is over",
      "on-failure:2:0:60000",
      (life) => life.runs(3, { ms: 59_999 }),
      [100, 200, undefined],
    ],
    [
      "was a success once its window is over",
      "on-failure:1:0:2000",
      (life) => life.runs(5, { ms: 2_000 }),
      [100, 100, 100, 100, 100],
    ],
    ["stays ended after success", "on-failure:0:5000", (life) => life.runs(1, { ms: 50, exitCode: 0 }), [undefined]],
    ["stays ended whatever it was", "no", (life) => life.runs(1, short), [undefined]],
  ];
  test.each(cases)("%s: %s", (_, label, run, waits) => {
    expect(run(new Life(label))).toEqual(waits as never);
  });

  test("waits at least for its delay, and for the cap more at most, with chance in between", () => {
    fc.assert(
      fc.property(
        fc.nat(1e6),
        fc.integer({ min: 1, max: 1e6 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (delayMs, ends, chance) => {
          const policy = { ...restartPolicyOf("always"), delayMs };
          const [least = 0, wait = 0, most = 0] = [0, chance, 1].map((random) =>
            restartWaitMs(policy, { ends, random: () => random }),
          );
          expect(least).toBeGreaterThan(delayMs);
          expect(wait).toBeGreaterThanOrEqual(least);
          expect(wait).toBeLessThanOrEqual(most);
          expect(most).toBeLessThanOrEqual(delayMs + CAP_MS);
          expect(most - delayMs).toBe(2 * (least - delayMs));
        },
      ),
    );
  });

  test("is never started before its time", () => {
    const runs = fc.array(fc.record({ ms: fc.nat(20_000), exitCode: fc.constantFrom(0, 1, 137) }), { maxLength: 12 });
    const label = fc.constantFrom("always:0:700", "on-failure:3:700:5000", "always:4:700:15000");
    fc.assert(
      fc.property(label, runs, fc.double({ min: 0, max: 0.999, noNaN: true }), (policy, list, share) => {
        const life = new Life(policy);
        for (const { ms, exitCode } of list) {
          const [wait] = life.runs(1, { ms, exitCode });
          if (wait === undefined) return expect(life.look().actions).toEqual([]);
          expect(wait).toBeGreaterThan(700);
          life.now += Math.floor(wait * share);
          expect(life.look().actions).toEqual([]);
          life.now = life.memory?.startAt ?? 0;
          expect(life.look().actions.map(({ type }) => type)).toEqual(["start"]);
        }
      }),
    );
  });
});

describe("failures in a row", () => {
  test("are ends and refused starts together, until it has run for its window", () => {
    const life = new Life("always:0:0:3000");
    life.runs(2, { ms: 50 });
    expect(life.look().status).toMatchObject({ state: "exited", failures: 2 });
    life.memory = afterFailure(life.memory as Memory, { error: "no", retryAt: life.now + 5, unsure: false });
    expect(life.look().status).toMatchObject({ state: "failed", failures: 3, next_start_at: life.now + 5 });
    life.now += 5;
    life.start();
    const { status, wakeAt } = life.look();
    expect(status).toMatchObject({ state: "running", failures: 3 });
    expect(status.next_start_at).toBeUndefined();
    expect(wakeAt).toBe(life.now + 3_000);
    life.now += 3_000;
    expect(life.look().status.failures).toBeUndefined();
    life.end(10);
    expect(life.look().status.failures).toBe(1);
  });

  test("are no successes, and no removals that failed", () => {
    const life = new Life("on-failure");
    life.runs(1, { ms: 50, exitCode: 0 });
    expect(life.look().status.failures).toBeUndefined();
    const tried = { error: "busy", retryAt: life.now, unsure: false, isRemoval: true };
    expect(afterFailure(life.memory as Memory, tried)).toMatchObject({ misses: 0, failures: 1 });
  });

  test("end when this machine's clock says so, whatever somebody sets Docker's to", () => {
    const life = new Life("always");
    life.runs(1, { ms: 50 });
    life.now = life.memory?.startAt ?? 0;
    const truth = life.now;
    life.now += 3_600_000;
    life.start();
    life.now = truth;
    life.look();
    life.now = truth + STABLE_MS - 1;
    expect(life.look().status.failures).toBe(1);
    life.now = truth + STABLE_MS + 3_600_000;
    expect(life.look().status.failures).toBeUndefined();
  });
});
