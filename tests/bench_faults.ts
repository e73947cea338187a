/**
 * @module Figures of faults (`npm run bench -- faults [--runs N]`): how soon replicas run again when a cable, a process, an engine or
 * the one that decides is lost, and how a node is emptied; with Docker Swarm on the same three engines in the same run, both with
 * their defaults. Needs root and the packages of `setup.sh`; the executable is `dist/cacophony`. Prints one table of medians.
 *
 * Times end with the last replica's own StartedAt, or with the first look at the engines that finds things as they should be.
 */
import { parseArgs } from "node:util";
import { CacophonySide, IMAGE, type Side, SwarmSide } from "./bench_faults_sides.ts";
import { Lab, type LabHost } from "./lab.ts";
import { waitUntil } from "./wait.ts";

const HOSTS = 3;
const REPLICAS = 12;
/** Of which about a third are on the node that is drained. */
const DRAIN_REPLICAS = 90;
const DEFAULT_RUNS = 2;
/** Swarm takes 40 s for some of it. */
const PACE = { timeoutMs: 180_000, intervalMs: 50 };
const WRITE_PACE = { ...PACE, intervalMs: 10 };
const LOOK_TIMEOUT_MS = 5_000;

/** What one run found, by the row that it belongs to: milliseconds or a number, as the row says. */
type Finding = { row: Row; value: number };
type Fault = (before: ReadonlyMap<string, number>) => Promise<void>;
type Row = { what: string; unit: "time" | "count" };

const time = (what: string): Row => ({ what, unit: "time" });
const count = (what: string): Row => ({ what, unit: "count" });

const ROWS = {
  cut: time("a worker's cable is cut: its replicas run elsewhere"),
  returned: time("the cable is back: the node is ready"),
  single: time("the cable is back: no slot runs twice"),
  process: time("its process on a worker is killed and started: ready again"),
  processTouched: count("  replicas that were started anew for that"),
  engine: time("dockerd of a worker is killed and started: all replicas run"),
  drained: time(`a node with ${DRAIN_REPLICAS / HOSTS} replicas is drained: it is empty, all run`),
  drainedOn: count("  replicas that were on it"),
  drainedFewest: count(`  fewest replicas of ${DRAIN_REPLICAS} that ran meanwhile`),
  decider: time("who decides is killed and started: a write is answered"),
  deciderTouched: count("  replicas that were started anew for that"),
  deciderCut: time("the host of who decides is cut off: a write is answered"),
  deciderMoved: time("the host of who decides is cut off: its replicas run elsewhere"),
} as const satisfies Record<string, Row>;

export async function benchFaults(args: readonly string[]): Promise<void> {
  const runs = readRuns(args);
  const lab = await Lab.start({ hosts: HOSTS });
  try {
    await Promise.all(lab.hosts.map((host) => host.importImage(IMAGE)));
    const sides = [new CacophonySide(lab), new SwarmSide(lab)];
    const findings: Finding[][] = [];
    for (const side of sides) findings.push(await new Bench(lab, side).run(runs));
    print(sides, { findings, runs });
  } finally {
    await lab.stop();
  }
}

function readRuns(args: readonly string[]): number {
  const options = { runs: { type: "string", default: String(DEFAULT_RUNS) } } as const;
  const runs = Number(parseArgs({ args: [...args], options, strict: true }).values.runs);
  if (!Number.isSafeInteger(runs) || runs < 1) throw new Error("usage: npm run bench -- faults [--runs N]");
  return runs;
}

class Bench {
  readonly #lab: Lab;
  readonly #side: Side;
  readonly #findings: Finding[] = [];

  constructor(lab: Lab, side: Side) {
    this.#lab = lab;
    this.#side = side;
  }

  async run(runs: number): Promise<Finding[]> {
    const side = this.#side;
    await side.start();
    const worker = this.#lab.host(2);
    const repeat = async (what: string, { replicas = REPLICAS, fault }: { replicas?: number; fault: Fault }) => {
      for (let run = 1; run <= runs; run++) {
        console.error(`bench: ${side.name}, ${what}, ${run} of ${runs}`);
        await this.#withReplicas(replicas, fault);
      }
    };
    await repeat("cable", { fault: () => this.#cut(worker) });
    await repeat("process", { fault: (before) => this.#killProcess(worker, before) });
    await repeat("engine", { fault: () => this.#killEngine(worker) });
    await repeat("drain", { replicas: DRAIN_REPLICAS, fault: () => this.#drain(worker) });
    const isSafe = await side.addDeciders();
    await repeat("who decides", { fault: (before) => this.#killDecider(before) });
    if (isSafe) await repeat("host of who decides", { fault: () => this.#cutDecider() });
    await side.stop();
    return this.#findings;
  }

  // ---- What is done to them -------------------------------------------------------------------------------------------

  async #withReplicas(replicas: number, fault: Fault): Promise<void> {
    await this.#side.deploy(replicas);
    await this.#untilRunning(this.#lab.hosts, replicas);
    await fault(await starts(await this.#look(this.#lab.hosts)));
    await this.#untilReady();
    await this.#side.remove();
    await this.#untilRunning(this.#lab.hosts, 0);
  }

  async #cut(host: LabHost): Promise<void> {
    const cutAt = Date.now();
    await host.cutOff();
    this.#found(ROWS.cut, (await lastStart(await this.#untilRunning(this.#without(host), REPLICAS))) - cutAt);
    const backAt = Date.now();
    await host.reconnect();
    await Promise.all([
      this.#untilReady().then(() => this.#found(ROWS.returned, Date.now() - backAt)),
      this.#untilRunning(this.#lab.hosts, REPLICAS).then(() => this.#found(ROWS.single, Date.now() - backAt)),
    ]);
  }

  async #killProcess(host: LabHost, before: ReadonlyMap<string, number>): Promise<void> {
    const killedAt = Date.now();
    await this.#side.killProcess(host);
    await this.#side.startProcess(host);
    await this.#untilReady();
    this.#found(ROWS.process, Date.now() - killedAt);
    this.#found(ROWS.processTouched, await this.#startedAnew(before));
  }

  async #killEngine(host: LabHost): Promise<void> {
    const killedAt = Date.now();
    await host.restartDocker();
    this.#found(ROWS.engine, (await lastStart(await this.#untilRunning(this.#lab.hosts, REPLICAS))) - killedAt);
  }

  async #drain(host: LabHost): Promise<void> {
    const on = (await this.#look([host])).length;
    const beganAt = Date.now();
    if (!(await this.#side.setAvailability(host, "drain"))) return;
    let fewest = DRAIN_REPLICAS;
    await waitUntil(
      "the node to be empty",
      async () => {
        // In this order, a replica that is started elsewhere before it is stopped here is seen at least once.
        const left = (await this.#look([host])).length;
        const elsewhere = (await this.#look(this.#without(host))).length;
        fewest = Math.min(fewest, left + elsewhere);
        return { left, elsewhere };
      },
      { until: (seen) => seen.left === 0 && seen.elsewhere === DRAIN_REPLICAS, ...PACE },
    );
    this.#found(ROWS.drained, Date.now() - beganAt);
    this.#found(ROWS.drainedOn, on);
    this.#found(ROWS.drainedFewest, fewest);
    await this.#side.setAvailability(host, "active");
  }

  async #killDecider(before: ReadonlyMap<string, number>): Promise<void> {
    const host = await this.#side.decider();
    if (!(await this.#side.write(host))) throw new Error(`${this.#side.name} takes no write before the fault`);
    const killedAt = Date.now();
    await this.#side.killProcess(host);
    await Promise.all([
      this.#side.startProcess(host),
      this.#untilWritten(host).then(() => this.#found(ROWS.decider, Date.now() - killedAt)),
    ]);
    await this.#untilReady();
    this.#found(ROWS.deciderTouched, await this.#startedAnew(before));
  }

  async #cutDecider(): Promise<void> {
    const host = await this.#side.decider();
    if (!(await this.#side.write(host))) throw new Error(`${this.#side.name} takes no write before the fault`);
    const cutAt = Date.now();
    await host.cutOff();
    await Promise.all([
      this.#untilWritten(host).then(() => this.#found(ROWS.deciderCut, Date.now() - cutAt)),
      this.#untilRunning(this.#without(host), REPLICAS).then(async (list) =>
        this.#found(ROWS.deciderMoved, (await lastStart(list)) - cutAt),
      ),
    ]);
    await host.reconnect();
    await this.#untilReady();
    await this.#untilRunning(this.#lab.hosts, REPLICAS);
  }

  // ---- What is seen of them -------------------------------------------------------------------------------------------

  #found(row: Row, value: number): void {
    this.#findings.push({ row, value });
  }

  #without(host: LabHost): LabHost[] {
    return this.#lab.hosts.filter((one) => one !== host);
  }

  async #untilReady(): Promise<void> {
    await waitUntil(
      "all nodes to be ready",
      async () => Promise.all(this.#lab.hosts.map((host) => this.#side.isReady(host))),
      { until: (seen) => seen.every(Boolean), ...PACE },
    );
  }

  async #untilWritten(lost: LabHost): Promise<void> {
    const [on] = this.#without(lost);
    if (!on) throw new Error("no other host");
    await waitUntil("a write to be acknowledged", () => this.#side.write(on), WRITE_PACE);
  }

  /** Waits until the engines of these hosts together run so many, and returns them. */
  async #untilRunning(hosts: readonly LabHost[], replicas: number): Promise<Container[]> {
    return waitUntil(`${replicas} replicas to run`, () => this.#look(hosts), {
      until: (seen) => seen.length === replicas,
      ...PACE,
    });
  }

  /** How many of the replicas, once all run, are others than before or were started again. */
  async #startedAnew(before: ReadonlyMap<string, number>): Promise<number> {
    const now = await starts(await this.#untilRunning(this.#lab.hosts, REPLICAS));
    return [...now].filter(([id, startedAt]) => before.get(id) !== startedAt).length;
  }

  /** Containers that run. @throws when one of the engines does not answer. */
  async #look(hosts: readonly LabHost[]): Promise<Container[]> {
    const filters = encodeURIComponent(JSON.stringify({ label: [this.#side.label] }));
    const lists = await Promise.all(
      hosts.map(async (host) => {
        const response = await host.engine(`/containers/json?filters=${filters}`, { timeoutMs: LOOK_TIMEOUT_MS });
        return ((await response.json()) as { Id: string }[]).map(({ Id }) => ({ host, id: Id }));
      }),
    );
    return lists.flat();
  }
}

type Container = { host: LabHost; id: string };

/** When each was started last, in milliseconds since the epoch, by its id. */
async function starts(containers: readonly Container[]): Promise<Map<string, number>> {
  const entries = containers.map(async ({ host, id }): Promise<[string, number]> => {
    const { State } = (await (await host.engine(`/containers/${id}/json`)).json()) as { State: { StartedAt: string } };
    return [id, Date.parse(State.StartedAt)];
  });
  return new Map(await Promise.all(entries));
}

async function lastStart(containers: readonly Container[]): Promise<number> {
  return Math.max(...(await starts(containers)).values());
}

// ---- Figures ----------------------------------------------------------------------------------------------------------

function print(sides: readonly Side[], { findings, runs }: { findings: readonly Finding[][]; runs: number }): void {
  const rows = Object.values(ROWS).map((row) => {
    const medians = findings.map((list) => median(list.flatMap((one) => (one.row === row ? [one.value] : []))));
    const [ours, theirs] = medians;
    const ratio = row.unit === "time" && ours !== undefined && theirs !== undefined ? theirs / ours : undefined;
    return [
      row.what,
      ...medians.map((value) => figure(value, row)),
      ratio === undefined ? "" : `${ratio.toFixed(1)} x`,
    ];
  });
  const lines = [["", ...sides.map(({ name }) => name), "ratio"], ...rows];
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  console.log(
    `Medians of ${runs}, ${HOSTS} hosts, ${REPLICAS} replicas where nothing else is said; ratio: Swarm's time to ours\n`,
  );
  for (const line of lines) {
    const cells = line.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    console.log(cells.join("  "));
  }
}

function figure(value: number | undefined, { unit }: Row): string {
  if (value === undefined) return "not available";
  return unit === "count" ? String(value) : `${(value / 1000).toFixed(2)} s`;
}

function median(values: readonly number[]): number | undefined {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}
