/** @module Many clusters in virtual time, each with another seed: through all that can go wrong, and back to what is wanted. */
import { describe, expect, test } from "bun:test";
import { type Report, simulate } from "./simulation.ts";
import { simulateAll } from "./simulation_pool.ts";

/** `SEED=n bun test tests/simulation.test.ts` runs one seed again. `npm run soak` runs as many as it is told to. */
const SEED = process.env["SEED"];
const FIRST = Number(SEED ?? 1);
/** As many seeds as fit in this time, but so many at least. */
const SPAN_MS = 20_000;
const LEAST_SEEDS = 20;

describe("a simulated cluster", () => {
  const reports = new Map<number, Report>();

  test("keeps its rules through kills, partitions and faults, and settles after them, whatever the seed", async () => {
    const end = performance.now() + SPAN_MS;
    const wants = (seed: number) => seed < FIRST + LEAST_SEEDS || performance.now() < end;
    if (SEED !== undefined) reports.set(FIRST, await simulate(FIRST));
    else await simulateAll({ first: FIRST, wants, onReport: (report) => void reports.set(report.seed, report) });
    const all = [...reports.values()];
    const sum = (of: (report: Report) => number) => all.reduce((total, report) => total + of(report), 0);
    expect(sum(({ requests }) => requests.acknowledged)).toBeGreaterThan(0);
    console.log(
      `simulation: ${all.length} clusters, ${Math.round(sum(({ virtualMs }) => virtualMs) / 60_000)} virtual minutes, ` +
        `${sum(({ requests }) => requests.acknowledged)} acknowledged requests; settled at the latest ` +
        `${Math.max(...all.map(({ settledMs }) => settledMs)) / 1000} s after the end of all trouble`,
    );
  }, 120_000);

  test("runs the same way twice with the same seed, in this process and in another", async () => {
    const report = await simulate(FIRST);
    expect(await simulate(FIRST)).toEqual(report);
    expect(reports.get(FIRST)).toEqual(report);
  });
});
