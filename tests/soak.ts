/**
 * @module The long run (`npm run soak`): the simulation of `simulation.ts` on all cores, seed after seed, as many or for as long
 * as it is told to, or with `--lab` real hosts under load (`soak_lab.ts`). Ends with code 1 and the seed at the first failure. A
 * tool: nothing imports it.
 */
import { parseArgs } from "node:util";
import { LargeCluster } from "./simulation_large.ts";
import { LONG_EVERY } from "./simulation.ts";
import { SeedError, simulateAll } from "./simulation_pool.ts";
import { soakLab } from "./soak_lab.ts";

const USAGE =
  "usage: npm run soak -- [--seeds N] [--minutes N] [--seed N] [--long]   " +
  "(10 minutes unless it is told how many seeds; they count up from --seed, or from the time; --long: only those with long runs)\n" +
  "       npm run soak -- --nodes N [--seed N]   (so many nodes that are well for an hour of virtual time)\n" +
  "       npm run soak -- --lab [--minutes N]    (as root: real hosts under load, where nothing goes wrong)";
const DEFAULT_MINUTES = 10;
const PROGRESS_MS = 10_000;

type Totals = Record<"seeds" | "acknowledged" | "unanswered" | "commits" | "virtualMs" | "slowestMs", number>;

process.exitCode = await soak();

async function soak(): Promise<number> {
  const given = readArguments();
  if (!given) {
    console.error(USAGE);
    return 2;
  }
  const { minutes, seeds, nodes } = given;
  const step = given.long ? LONG_EVERY : 1;
  const first = Math.ceil(given.seed / step) * step;
  if (given.lab) return soakLab({ minutes });
  if (nodes !== undefined) return await quietHour(nodes, first);
  const begin = performance.now();
  console.log(`soak: ${seeds === Infinity ? `${minutes} minutes` : `${seeds} seeds`} from seed ${first} on`);
  const total: Totals = { seeds: 0, acknowledged: 0, unanswered: 0, commits: 0, virtualMs: 0, slowestMs: 0 };
  const timer = setInterval(() => console.log(progress(total, performance.now() - begin)), PROGRESS_MS);
  try {
    await simulateAll({
      first,
      step,
      wants: (seed) => seed < first + seeds * step && performance.now() - begin < minutes * 60_000,
      onReport: ({ requests, commits, virtualMs, settledMs }) => {
        total.seeds++;
        total.acknowledged += requests.acknowledged;
        total.unanswered += requests.unanswered;
        total.commits += commits;
        total.virtualMs += virtualMs;
        total.slowestMs = Math.max(total.slowestMs, settledMs);
      },
    });
  } catch (error) {
    if (!(error instanceof SeedError)) throw error;
    console.error(error.message);
    console.error(`soak: failed with seed ${error.seed}, after ${total.seeds} that did not`);
    return 1;
  } finally {
    clearInterval(timer);
  }
  console.log(`${progress(total, performance.now() - begin)}: no failure`);
  return 0;
}

/** An hour in which no node fails, on a network that takes up to half a second: none may be called anything but ready. */
async function quietHour(nodes: number, seed: number): Promise<number> {
  const cluster = new LargeCluster({ nodes, seed, heartbeatIntervalMs: 1_000, nodeTimeoutMs: 4_000 });
  await cluster.start();
  const minutes: number[] = [];
  while (minutes.length < 60 && cluster.alarms.length === 0) {
    // oxlint-disable-next-line no-await-in-loop -- time passes
    minutes.push((await cluster.pass(60_000, [1, 500])).cpuMs);
    if (minutes.length % 10 > 0) continue;
    const cpuMs = minutes.reduce((a, b) => a + b, 0) / minutes.length;
    console.log(
      `soak: ${nodes} nodes, ${minutes.length} virtual minutes, ${cpuMs.toFixed(0)} ms of CPU a virtual second`,
    );
  }
  for (const alarm of cluster.alarms) console.error(`soak: not ready though it is well: ${JSON.stringify(alarm)}`);
  return cluster.alarms.length > 0 ? 1 : 0;
}

function progress(total: Totals, elapsedMs: number): string {
  const { seeds, acknowledged, unanswered, commits, virtualMs, slowestMs } = total;
  return (
    `soak: ${(elapsedMs / 1000).toFixed(1)} s, ${seeds} clusters, ${(virtualMs / 3_600_000).toFixed(1)} virtual hours, ` +
    `${acknowledged} requests acknowledged, ${unanswered} left unanswered, ${commits} commits; ` +
    `settled at the latest after ${slowestMs / 1000} s`
  );
}

type Given = { lab: boolean; long: boolean; minutes: number; seeds: number; seed: number; nodes?: number };

function readArguments(): Given | undefined {
  try {
    const text = { type: "string" } as const;
    const flag = { type: "boolean", default: false } as const;
    const options = { lab: flag, long: flag, minutes: text, seeds: text, seed: text, nodes: text } as const;
    const { values } = parseArgs({ args: process.argv.slice(2), options, strict: true });
    const seeds = values.seeds === undefined ? Infinity : Number(values.seeds);
    const minutes = Number(values.minutes ?? (values.seeds === undefined ? DEFAULT_MINUTES : Infinity));
    // Another run shall see other seeds.
    const seed = Number(values.seed ?? Math.floor(Date.now() / 1000));
    const isWhole = Number.isSafeInteger(seed) && (seeds === Infinity || Number.isSafeInteger(seeds));
    const { lab, long } = values;
    const nodes = values.nodes === undefined ? undefined : Number(values.nodes);
    const isRight =
      minutes > 0 && seeds > 0 && isWhole && (nodes === undefined || (Number.isSafeInteger(nodes) && nodes > 0));
    return isRight ? { lab, long, minutes, seeds, seed, ...(nodes !== undefined && { nodes }) } : undefined;
  } catch {
    return undefined;
  }
}
