/**
 * @module The long run (`npm run soak`): the simulation of `simulation.ts`, seed after seed, for as long as it is told to.
 * Ends with code 1 and the seed at the first failure. A tool: nothing imports it.
 */
import { parseArgs } from "node:util";
import { simulate, SimulationError } from "./simulation.ts";

const USAGE = "usage: npm run soak -- [--minutes N] [--seed N]   (10 minutes; seeds count up from N, or from the time)";
const DEFAULT_MINUTES = 10;
const PROGRESS_MS = 10_000;

process.exitCode = await soak();

async function soak(): Promise<number> {
  const given = readArguments();
  if (!given) {
    console.error(USAGE);
    return 2;
  }
  const { minutes, seed: first } = given;
  const begin = Date.now();
  const end = begin + minutes * 60_000;
  console.log(`soak: ${minutes} minutes from seed ${first} on`);
  const total = { seeds: 0, acknowledged: 0, unanswered: 0, commits: 0, virtualMs: 0, slowestMs: 0 };
  let nextProgress = begin + PROGRESS_MS;
  for (let seed = first; Date.now() < end; seed++) {
    try {
      const { requests, commits, virtualMs, settledMs } = await simulate(seed);
      total.seeds++;
      total.acknowledged += requests.acknowledged;
      total.unanswered += requests.unanswered;
      total.commits += commits;
      total.virtualMs += virtualMs;
      total.slowestMs = Math.max(total.slowestMs, settledMs);
    } catch (error) {
      console.error(error instanceof SimulationError ? error.message : error);
      console.error(`soak: failed with seed ${seed}, after ${total.seeds} that did not`);
      return 1;
    }
    if (Date.now() < nextProgress) continue;
    nextProgress += PROGRESS_MS;
    console.log(progress(total, { elapsedMs: Date.now() - begin, seed }));
  }
  console.log(`${progress(total, { elapsedMs: Date.now() - begin, seed: first + total.seeds - 1 })}: no failure`);
  return 0;
}

function progress(
  total: {
    seeds: number;
    acknowledged: number;
    unanswered: number;
    commits: number;
    virtualMs: number;
    slowestMs: number;
  },
  { elapsedMs, seed }: { elapsedMs: number; seed: number },
): string {
  const { seeds, acknowledged, unanswered, commits, virtualMs, slowestMs } = total;
  return (
    `soak: ${Math.round(elapsedMs / 1000)} s, ${seeds} clusters up to seed ${seed}, ${(virtualMs / 3_600_000).toFixed(1)} virtual hours, ` +
    `${acknowledged} requests acknowledged, ${unanswered} left unanswered, ${commits} commits; ` +
    `settled at the latest after ${slowestMs / 1000} s`
  );
}

function readArguments(): { minutes: number; seed: number } | undefined {
  try {
    const options = { minutes: { type: "string" }, seed: { type: "string" } } as const;
    const { values } = parseArgs({ args: process.argv.slice(2), options, strict: true });
    const minutes = Number(values.minutes ?? DEFAULT_MINUTES);
    // Another run shall see other seeds.
    const seed = Number(values.seed ?? Math.floor(Date.now() / 1000));
    return minutes > 0 && Number.isSafeInteger(seed) ? { minutes, seed } : undefined;
  } catch {
    return undefined;
  }
}
