/**
 * @module Small benchmarks (`npm run bench`): what a user waits for, and what the master does all day. Prints one table of
 * medians; runs before the first that counts warm up. `npm run bench -- network` is `bench_network.ts`, `-- faults`
 * `bench_faults.ts`, `-- api` `bench_api.ts`, `-- placement` `bench_placement.ts`, `-- start` `bench_start.ts` and `-- footprint`
 * `bench_footprint.ts`. A tool: nothing imports it.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { type Clock, systemClock } from "../src/clock.ts";
import { parseJob } from "../src/job_spec.ts";
import { silentLog } from "../src/log.ts";
import type { AllocationStatus, Change, NodeRecord } from "../src/model.ts";
import { Scheduler } from "../src/scheduler.ts";
import { openSqliteStore, type Store } from "../src/store.ts";
import { benchApi } from "./bench_api.ts";
import { benchFaults } from "./bench_faults.ts";
import { benchFootprint } from "./bench_footprint.ts";
import { benchNetwork } from "./bench_network.ts";
import { benchPlacement } from "./bench_placement.ts";
import { EXECUTABLE, startProcess } from "./bench_process.ts";
import { benchStart } from "./bench_start.ts";
import { GIB, idleMachine, rules, seeded, spec, unusedSealer } from "./cluster_fixture.ts";

const ROOT = join(import.meta.dir, "..");
const NODES = 100;
const REPLICAS = 10;

type Row = { what: string; times: number[] };

const dir = mkdtempSync(join(tmpdir(), "cacophony-bench-"));

async function bench(): Promise<void> {
  const rows = [...parsing(), ...(await passes(1_000)), ...(await passes(10_000)), ...(await commits())];
  if (existsSync(EXECUTABLE)) rows.push(...(await puts()), ...(await starts()));
  else {
    console.error(`bench: left out what needs ${EXECUTABLE}: make it with npm run build`);
    process.exitCode = 1;
  }
  print(rows);
}

// ---- What is measured -------------------------------------------------------------------------------------------------

function parsing(): Row[] {
  const typical = readFileSync(join(ROOT, "examples/web-app.yml"), "utf8");
  const services = Array.from({ length: 300 }, (_, n) => largeService(n));
  const large = `services:\n${services.join("")}volumes:\n  data: {}\n`;
  const parse = (text: string) => () => {
    const result = parseJob(text, { jobId: "job", env: new Map() });
    if (!result.ok) throw new Error(`the document is not valid: ${JSON.stringify(result.details[0])}`);
  };
  return [
    { what: `parse examples/web-app.yml (${kilobytes(typical)})`, times: repeat(200, parse(typical)) },
    { what: `parse a document of 300 services (${kilobytes(large)})`, times: repeat(15, parse(large)) },
  ];
}

function largeService(n: number): string {
  return `  service-${n}:
    image: registry.example.com/team/service-${n}:1.${n}
    command: ["serve", "--port", "80", "--name", "service-${n}"]
    environment:
      LOG_LEVEL: \${LOG_LEVEL:-info}
      DATABASE_URL: postgres://database:5432/service_${n}
    ports: ["80"]
    volumes: ["data:/data"]
    restart: unless-stopped
    deploy:
      replicas: 3
      resources:
        limits: { cpus: "0.5", memory: 256M }
        reservations: { memory: 64M }
`;
}

/** The Scheduler's own work, with a Store that does nothing: jobs of one service with 10 replicas each, on 100 nodes. */
async function passes(allocations: number): Promise<Row[]> {
  const count = allocations.toLocaleString("en");
  const full: number[] = [];
  const settled: number[] = [];
  const one: number[] = [];
  const runs = allocations > 1_000 ? 4 : 8;
  for (let run = 0; run < runs; run++) {
    const bench = await SchedulerBench.start(allocations / REPLICAS);
    const placed = await bench.timed(() => bench.clock.fire());
    const again = await bench.timed(() => {
      bench.clock.fire({ slow: true });
      bench.clock.fire();
    });
    const changes: number[] = [];
    for (let n = 0; n < 20; n++) {
      changes.push(
        await bench.timed(async () => {
          await bench.scheduler.scaleService(`job-${n}`, { serviceName: "web", scale: REPLICAS + 1 });
          bench.clock.fire();
        }),
      );
    }
    const expected = allocations + changes.length;
    if (bench.scheduler.state.allocations.size !== expected) throw new Error("the passes did not place every replica");
    await bench.scheduler.stop();
    if (run === 0) continue;
    full.push(placed);
    settled.push(again);
    one.push(...changes);
  }
  return [
    { what: `place ${count} replicas on ${NODES} nodes in one pass`, times: full },
    { what: `full pass over ${count} settled allocations`, times: settled },
    { what: `scale one service beside ${count} allocations`, times: one },
  ];
}

async function commits(): Promise<Row[]> {
  const store = openSqliteStore(join(dir, "commits.db"));
  const term = await store.beginTerm();
  let commit = 0;
  const times = async (records: number, runs: number) =>
    repeatAsync(runs, () => {
      // SQLite writes nothing where nothing differs.
      const joined_at = ++commit;
      const list = Array.from({ length: records }, (_, n): NodeRecord => ({ ...node(n), joined_at }));
      return store.commit(
        term,
        list.map((record): Change => ({ op: "put", kind: "node", record })),
      );
    });
  const rows = [
    { what: `SQLite commit of 1 record (${tmpdir()})`, times: await times(1, 200) },
    { what: `SQLite commit of 100 records (${tmpdir()})`, times: await times(100, 50) },
  ];
  await store.close();
  return rows;
}

/** A real process without a Docker Engine: parse, plan, commit to its disk, answer. */
async function puts(): Promise<Row[]> {
  const running = await startProcess(dir, ["bootstrap"]);
  try {
    let n = 0;
    const send = async (path: string, body: string) => {
      const response = await fetch(`http://${running.address}/cluster/job/${path}`, { method: "PUT", body });
      if (!response.ok) throw new Error(`PUT ${path} was answered with ${response.status}: ${await response.text()}`);
      await response.arrayBuffer();
    };
    const document = (image: string) => JSON.stringify({ services: { web: { image } } });
    return [
      {
        what: "PUT of a changed job over HTTP",
        times: await repeatAsync(100, () => send("job", document(`web:${++n}`))),
      },
      { what: "PUT of an equal job over HTTP", times: await repeatAsync(100, () => send("job", document(`web:${n}`))) },
    ];
  } finally {
    await running.stop();
  }
}

async function starts(): Promise<Row[]> {
  const times: number[] = [];
  for (let run = 0; run < 9; run++) {
    const running = await startProcess(dir, ["bootstrap"]);
    await running.stop();
    if (run > 0) times.push(running.startedMs);
  }
  return [{ what: "start of dist/cacophony to its first /healthz", times }];
}

// ---- A Scheduler by itself --------------------------------------------------------------------------------------------

/** Runs timers when it is told to, so that a pass is timed without the pause before it. */
class ManualClock implements Clock {
  readonly #timers = new Set<{ delayMs: number; fn: () => void }>();
  readonly now = systemClock.now;

  after(delayMs: number, fn: () => void) {
    const timer = { delayMs, fn };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }

  /** Runs what waits for less than a second; with `slow` what waits for longer. */
  fire({ slow = false } = {}): void {
    for (const timer of [...this.#timers].filter(({ delayMs }) => delayMs > 1_000 === slow)) {
      this.#timers.delete(timer);
      timer.fn();
    }
  }
}

class SchedulerBench {
  readonly clock = new ManualClock();
  readonly scheduler: Scheduler;
  /** Bytes that would have gone to nodes: the work of writing them is part of a pass. */
  sent = 0;
  #ids = 0;

  private constructor() {
    this.scheduler = new Scheduler({
      store: idleStore,
      clock: this.clock,
      random: seeded(1),
      sealer: unusedSealer,
      newId: () => `id${++this.#ids}`,
      log: silentLog,
      onFenced: () => {},
    });
  }

  static async start(jobs: number): Promise<SchedulerBench> {
    const bench = new SchedulerBench();
    const { scheduler } = bench;
    await scheduler.start({ cluster_id: "c", created_at: 0, network_mode: "vxlan", network_cidr: "10.208.0.0/12" });
    const records = Array.from({ length: NODES }, (_, n) => node(n));
    await scheduler.change(() => records.map((record) => ({ op: "put", kind: "node", record })));
    for (const { node_id } of records) {
      scheduler.state.views.set(node_id, readyView());
      scheduler.attach(node_id, (assignments) => {
        bench.sent += JSON.stringify(assignments).length;
      });
    }
    const services = [{ service_name: "web", spec: spec(), rules: rules(), scale: REPLICAS }];
    for (let n = 0; n < jobs; n++) {
      await scheduler.putJob(`job-${n}`, { wanted: { document: "{}", services }, preconditions: {} });
    }
    return bench;
  }

  /** Milliseconds from `begin` until the Scheduler has nothing more to do; its nodes then run what they were told. */
  async timed(begin: () => void | Promise<void>): Promise<number> {
    const started = performance.now();
    await begin();
    await this.scheduler.change(() => []);
    const tookMs = performance.now() - started;
    this.#obey();
    return tookMs;
  }

  #obey(): void {
    const { state } = this.scheduler;
    for (const { allocation_id, node_id } of state.allocations.values()) {
      state.views.get(node_id)?.statuses.set(allocation_id, runningStatus(allocation_id));
      state.touch(node_id);
    }
  }
}

const idleStore: Store = {
  beginTerm: async () => 1,
  load: async () => ({
    cluster: [],
    job: [],
    spec: [],
    node: [],
    allocation: [],
    home: [],
    departure: [],
    history: [],
    removal: [],
    registry: [],
    secret: [],
    chunk: [],
  }),
  commit: async () => {},
  close: async () => {},
};

function node(n: number): NodeRecord {
  return {
    node_id: `node-${n}`,
    node_name: `node-${n}`,
    address: `10.0.0.${n}:9000`,
    role: "worker",
    availability: "active",
    labels: [],
    set_labels: [],
    joined_at: 0,
  };
}

function readyView() {
  return {
    state: "ready" as const,
    reason: "",
    lastSeen: 0,
    connected: true,
    version: "0",
    engine: undefined,
    resources: idleMachine({ cpus: 64, total_memory: 256 * GIB, available_memory: 256 * GIB }),
    foreign: [],
    volumes: undefined,
    networks: undefined,
    applied: undefined,
    reported: true,
    statuses: new Map<string, AllocationStatus>(),
  };
}

function runningStatus(allocation_id: string): AllocationStatus {
  return { allocation_id, state: "running", final: false, ports: [], restarts: 0 };
}

// ---- Figures ----------------------------------------------------------------------------------------------------------

function repeat(runs: number, work: () => void): number[] {
  const times: number[] = [];
  for (let run = -Math.ceil(runs / 10); run < runs; run++) {
    const started = performance.now();
    work();
    if (run >= 0) times.push(performance.now() - started);
  }
  return times;
}

async function repeatAsync(runs: number, work: () => Promise<void>): Promise<number[]> {
  const times: number[] = [];
  for (let run = -Math.ceil(runs / 10); run < runs; run++) {
    const started = performance.now();
    await work();
    if (run >= 0) times.push(performance.now() - started);
  }
  return times;
}

function print(rows: readonly Row[]): void {
  const lines = [
    ["", "median", "fastest", "slowest", "runs"],
    ...rows.map(({ what, times }) => {
      const sorted = times.toSorted((a, b) => a - b);
      const figures = [sorted[Math.floor(sorted.length / 2)], sorted[0], sorted.at(-1)];
      return [what, ...figures.map((ms) => milliseconds(ms ?? 0)), String(times.length)];
    }),
  ];
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  console.log(`${cpus().length} × ${cpus()[0]?.model ?? "unknown CPU"}, Bun ${Bun.version}\n`);
  for (const line of lines) {
    const cells = line.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    console.log(cells.join("  "));
  }
}

function milliseconds(ms: number): string {
  return `${ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
}

function kilobytes(text: string): string {
  return `${(text.length / 1000).toFixed(1)} kB`;
}

try {
  if (process.argv[2] === "network") await benchNetwork();
  else if (process.argv[2] === "api") await benchApi(dir);
  else if (process.argv[2] === "placement") benchPlacement();
  else if (process.argv[2] === "faults") await benchFaults(process.argv.slice(3));
  else if (process.argv[2] === "start") await benchStart(process.argv.slice(3));
  else if (process.argv[2] === "footprint") await benchFootprint(dir);
  else await bench();
} finally {
  rmSync(dir, { recursive: true });
}
