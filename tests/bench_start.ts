/**
 * @module How soon replicas run (`npm run bench -- start [--runs N]`): Cacophony, Docker Swarm and the floor on the same three engines
 * in the same run, each alone while it is measured, turn by turn. The floor is the same networks and containers by plain requests
 * to the engines, as many at a time as proved best. Needs root and the packages of `setup.sh`; the executable is
 * `dist/cacophony`. Prints one table of medians.
 *
 * The clock starts before the request, and stops with the last container's own StartedAt, or the engine's note of its removal.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { median } from "./bench_process.ts";
import {
  CacophonyStart,
  containerIds,
  RawStart,
  read,
  type Recording,
  record,
  type StartSide,
  SwarmStart,
} from "./bench_start_sides.ts";
import { Lab, type LabHost } from "./lab.ts";
import { tail } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

const HOSTS = 3;
const DEFAULT_RUNS = 3;
/** Starts of the floor on one engine at once, of which the best counts. */
const RAW_AT_ONCE = [2, 4, 8, 16];
/** One replica takes so little that a run does it more often. */
const SINGLES = 9;
/**
 * Looks at the engines take some of their time, which the floor, not looked at before it is done, would be spared; the first is as late
 * as the others are apart.
 */
const PACE = { timeoutMs: 180_000, intervalMs: 1_000 };

/** Of each host, when a wait was in vain: dockerd's and the node's. */
const LOGS = 2;
const LOG_LINES = 30;

const ROWS = {
  one: "1 replica",
  some: "30 replicas",
  more: "one more beside 30",
  gone: "delete 30, grace period of 1 s",
  many: "90 replicas",
} as const;
type Row = keyof typeof ROWS;

/** Milliseconds by what was measured. */
type Times = Record<Row, number[]>;

export async function benchStart(args: readonly string[]): Promise<void> {
  const runs = readRuns(args);
  const lab = await Lab.start({ hosts: HOSTS });
  try {
    const image = await bringImage(lab);
    const ours = new CacophonyStart(lab, image);
    const recordings = await recorded(lab, ours);
    const best = await bestAtOnce(lab, recordings);
    const raw = new RawStart(recordings, { atOnce: best });
    const swarms = [false, true].map((network) => new SwarmStart(lab, { image, network }));
    const sides: StartSide[] = [raw, ours, ...swarms];
    const found = new Map(sides.map((side): [StartSide, Times] => [side, noTimes()]));
    for (let run = 0; run < runs; run++) {
      // Each takes each place, for what comes later finds engines that have done more.
      for (const at of sides.keys()) {
        const side = sides[(run + at) % sides.length];
        const times = side && found.get(side);
        if (!times) continue;
        console.error(`bench: ${side.name}, ${run + 1} of ${runs}`);
        await new Bench(lab, side).run(times).catch(async (error: unknown) => {
          for (const host of lab.hosts) console.error(await remains(host));
          throw error;
        });
      }
    }
    print(sides, { found, runs, best });
  } finally {
    await lab.stop();
  }
}

/** What a host's engine has, and the ends of its logs: where something was waited for in vain, for the lab takes them along. */
async function remains(host: LabHost): Promise<string> {
  const containers = await host.docker("ps", "-a", "--format", "{{.Names}}: {{.Status}}").catch(String);
  const names = readdirSync(host.dir).filter((name) => name.endsWith(".log"));
  const logs = names.map((name) => ({ name, path: join(host.dir, name) }));
  const ends = logs
    .toSorted((one, other) => statSync(one.path).mtimeMs - statSync(other.path).mtimeMs)
    .slice(-LOGS)
    .map(({ name, path }) => `${name}:\n${tail(readFileSync(path, "utf8"), LOG_LINES)}`);
  return [`bench: host ${host.number} has`, containers, ...ends].join("\n");
}

function readRuns(args: readonly string[]): number {
  const options = { runs: { type: "string", default: String(DEFAULT_RUNS) } } as const;
  const runs = Number(parseArgs({ args: [...args], options, strict: true }).values.runs);
  if (!Number.isSafeInteger(runs) || runs < 1) throw new Error("usage: npm run bench -- start [--runs N]");
  return runs;
}

/** Swarm looks in the registry for each task, also where the image is on the node, as it is here. */
async function bringImage(lab: Lab): Promise<string> {
  const registry = await lab.addRegistry();
  await lab.host(1).importImage("busybox");
  const image = await registry.push(lab.host(1), "busybox:latest");
  for (const host of lab.hosts) await host.docker("pull", image);
  return image;
}

/** What Cacophony asks the engines for; warms them up, too. */
async function recorded(lab: Lab, ours: CacophonyStart): Promise<Map<LabHost, Recording>> {
  console.error("bench: warming up");
  const bench = new Bench(lab, ours);
  await ours.start();
  await bench.started(() => ours.deploy(96), 96);
  const recordings = await Promise.all(
    lab.hosts.map(async (host): Promise<[LabHost, Recording]> => [host, await record(host, ours)]),
  );
  await bench.removed();
  await ours.stop();
  return new Map(recordings);
}

async function bestAtOnce(lab: Lab, recordings: ReadonlyMap<LabHost, Recording>): Promise<number> {
  let best = { atOnce: 0, tookMs: Infinity };
  for (const atOnce of RAW_AT_ONCE) {
    const side = new RawStart(recordings, { atOnce });
    const bench = new Bench(lab, side);
    const tookMs = await bench.started(() => side.deploy(30), 30);
    await bench.removed();
    console.error(`bench: raw with ${atOnce} at once on each engine, 30 replicas: ${tookMs.toFixed(0)} ms`);
    if (tookMs < best.tookMs) best = { atOnce, tookMs };
  }
  return best.atOnce;
}

class Bench {
  readonly #lab: Lab;
  readonly #side: StartSide;

  constructor(lab: Lab, side: StartSide) {
    this.#lab = lab;
    this.#side = side;
  }

  async run(times: Times): Promise<void> {
    const side = this.#side;
    await side.start();
    // The first of all pays for what comes once, such as Swarm's networks.
    await this.started(() => side.deploy(HOSTS), HOSTS);
    await this.removed();
    for (let n = 0; n < SINGLES; n++) {
      times.one.push(await this.started(() => side.deploy(1), 1));
      await this.removed();
    }
    times.some.push(await this.started(() => side.deploy(30), 30));
    times.gone.push(await this.removed());
    await this.started(() => side.deploy(30), 30);
    times.more.push(await this.started(() => side.scale(31), 31));
    await this.removed();
    times.many.push(await this.started(() => side.deploy(90), 90));
    await this.removed();
    await side.stop();
  }

  /** Milliseconds until the last of `replicas` containers was started. */
  async started(order: () => Promise<void>, replicas: number): Promise<number> {
    const begin = Date.now();
    await order();
    await Bun.sleep(PACE.intervalMs);
    const running = await waitUntil(`${replicas} replicas to run`, () => this.#running(), {
      until: (seen) => seen.length === replicas,
      ...PACE,
    });
    const starts = running.map(async ({ host, id }) => {
      const { State } = await read<{ State: { StartedAt: string } }>(host, `/containers/${id}/json`);
      return Date.parse(State.StartedAt);
    });
    return Math.max(...(await Promise.all(starts))) - begin;
  }

  /** Milliseconds until the last container was gone. */
  async removed(): Promise<number> {
    const begin = Date.now();
    await this.#side.remove();
    await waitUntil("the containers to be gone", () => this.#all(), { until: (left) => left.length === 0, ...PACE });
    const last = await Promise.all(this.#lab.hosts.map((host) => this.#lastRemoval(host, begin)));
    await this.#side.tidy();
    return Math.max(...last) - begin;
  }

  #running(): Promise<{ host: LabHost; id: string }[]> {
    return this.#all({ isRunning: true });
  }

  async #all({ isRunning = false } = {}): Promise<{ host: LabHost; id: string }[]> {
    const lists = this.#lab.hosts.map(async (host) =>
      (await containerIds(host, { label: this.#side.label, isRunning })).map((id) => ({ host, id })),
    );
    return (await Promise.all(lists)).flat();
  }

  async #lastRemoval(host: LabHost, begin: number): Promise<number> {
    const filters = JSON.stringify({ type: ["container"], event: ["destroy"], label: [this.#side.label] });
    const span = `since=${begin / 1000}&until=${Date.now() / 1000}`;
    const response = await host.engine(`/events?${span}&filters=${encodeURIComponent(filters)}`);
    const lines = (await response.text()).split("\n").filter((line) => line !== "");
    const times = lines.map((line) => (JSON.parse(line) as { timeNano: number }).timeNano / 1e6);
    return Math.max(0, ...times);
  }
}

// ---- Figures ----------------------------------------------------------------------------------------------------------

function noTimes(): Times {
  return { one: [], some: [], more: [], gone: [], many: [] };
}

function print(
  [raw, ours, ...swarms]: readonly StartSide[],
  { found, runs, best }: { found: ReadonlyMap<StartSide, Times>; runs: number; best: number },
): void {
  const rows = (Object.keys(ROWS) as Row[]).map((row) => {
    const of = (side: StartSide | undefined) => median((side && found.get(side)?.[row]) ?? []);
    const [floor, own, theirs] = [of(raw), of(ours), swarms.map(of)];
    return [
      ROWS[row],
      ...[floor, own, ...theirs].map((ms) => `${ms.toFixed(0)} ms`),
      `${(own / floor).toFixed(2)} x, ${own < floor ? "" : "+"}${(own - floor).toFixed(0)} ms`,
      ...theirs.map((ms) => `${(own / ms).toFixed(2)} x`),
    ];
  });
  const names = [raw, ours, ...swarms].map((side) => side?.name ?? "");
  const lines = [["", ...names, "to raw", ...swarms.map(({ name }) => `to ${name}`)], ...rows];
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  console.log(
    `Medians of ${runs} (${runs * SINGLES} for one replica), ${HOSTS} hosts on ${cpus().length} cores; raw: ${best} at once on each engine\n`,
  );
  for (const line of lines) {
    const cells = line.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    console.log(cells.join("  "));
  }
}
