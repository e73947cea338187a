/** @module The real clock's timers. */
import { expect, setSystemTime, test } from "bun:test";
import { atMost, sleep, systemClock } from "../src/clock.ts";
import { VirtualClock } from "./virtual_clock.ts";

test("systemClock keeps a timer waiting that is further off than the runtime counts", async () => {
  let rang = false;
  const month = systemClock.after(30 * 86_400_000, () => (rang = true));
  // Too long a delay goes off after 1 ms; this one is due after that.
  await sleep(systemClock, 50);
  month.cancel();
  expect(rang).toBe(false);
});

test("systemClock goes on when somebody sets the machine's clock", () => {
  const before = systemClock.now();
  try {
    for (const jumpMs of [3_600_000, -3_600_000]) {
      setSystemTime(new Date(before + jumpMs));
      expect(Math.abs(Date.now() - before - jumpMs)).toBeLessThan(1_000);
      expect(Math.abs(systemClock.now() - before)).toBeLessThan(1_000);
    }
  } finally {
    setSystemTime();
  }
});

test.each([
  ["resolved", 40, 40],
  ["failed", 40, 40],
  ["resolved", 200, 100],
])("atMost() waits for a promise that is %s after %d ms, and ends after %d ms", async (how, afterMs, endsMs) => {
  const clock = new VirtualClock(0);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  clock.after(afterMs, () => (how === "resolved" ? resolve() : reject(new Error("failed"))));
  let ended: number | undefined;
  void atMost(clock, 100, promise).then(() => (ended = clock.now()));
  await clock.advance(1_000);
  expect(ended).toBe(endsMs);
});
