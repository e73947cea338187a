/** @module The real clock's timers. */
import { expect, test } from "bun:test";
import { sleep, systemClock } from "../src/clock.ts";

test("systemClock keeps a timer waiting that is further off than the runtime counts", async () => {
  let rang = false;
  const month = systemClock.after(30 * 86_400_000, () => (rang = true));
  // Too long a delay goes off after 1 ms; this one is due after that.
  await sleep(systemClock, 50);
  month.cancel();
  expect(rang).toBe(false);
});
