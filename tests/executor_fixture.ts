/** @module One node of a test: an executor beside a FakeEngine, in virtual time, with a data directory of its own. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Executor } from "../src/executor.ts";
import type { ExecutorOverlay } from "../src/executor_networks.ts";
import { type Log, silentLog } from "../src/log.ts";
import { type AllocationRecord, type Assignments, LABELS } from "../src/model.ts";
import type { Resources } from "../src/model_reports.ts";
import { type ServiceSpec } from "../src/model_spec.ts";
import type { Meter } from "../src/resources.ts";
import { idleMachine, noOverlay, spec as plainSpec } from "./cluster_fixture.ts";
import { FakeEngine } from "./fake_engine.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

export const OWNER = { clusterId: "cluster", nodeId: "node" };
const dirs: string[] = [];

/** Removes the data directories of all nodes: for `afterAll`. */
export function cleanUp(): void {
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true, force: true });
}

export type Change = Partial<ServiceSpec>;

function spec(change: Change = {}): ServiceSpec {
  return plainSpec({ image: "busybox:latest", ...change });
}

export type Item = Pick<AllocationRecord, "joins"> & {
  id: string;
  job?: string;
  spec?: Change;
  desired?: "run" | "stop";
};

/** One node: its Engine, and one executor after another. */
export class Node {
  readonly clock = new VirtualClock();
  readonly random: () => number;
  readonly engine: FakeEngine;
  readonly dataDir = mkdtempSync(join(tmpdir(), "executor-test-"));
  readonly meter: Meter = {
    read: () => this.disk && idleMachine({ disk: this.disk }),
    routes: () => ["10.0.0.0/24"],
  };
  /** Pieces of files that the master has. */
  chunks: ReadonlyMap<string, Uint8Array> = new Map();
  /** Docker's disk, as the node reads it. */
  disk: Resources["disk"];
  executor: Executor;
  changes = 0;
  /** Where job networks take their subnets from. */
  pool = "10.210.0.0/16";
  /** Since when there is no master. */
  isolatedSince: number | undefined;
  diskLimit: number | undefined;
  readonly #overlay: ExecutorOverlay;
  readonly #log: Log;
  /** Hears of what the executor has to tell. */
  onChange: () => void = () => {};
  #revision = 0;

  constructor(seed = 1, overlay: Partial<ExecutorOverlay> = {}, log: Log = silentLog) {
    this.#log = log;
    this.#overlay = { ...noOverlay(() => this.pool), ...overlay };
    dirs.push(this.dataDir);
    this.random = seededRandom(seed);
    this.engine = new FakeEngine({ clock: this.clock, random: this.random });
    this.executor = this.#make();
  }

  #make(): Executor {
    return new Executor({
      fetchChunk: async (chunkHash) => {
        const chunk = this.chunks.get(chunkHash);
        if (!chunk) throw new Error("no files here");
        return chunk;
      },
      overlay: this.#overlay,
      engine: this.engine,
      meter: this.meter,
      clock: this.clock,
      random: this.random,
      log: this.#log,
      dataDir: this.dataDir,
      onChange: () => {
        this.changes++;
        this.onChange();
      },
      seenTerm: 1,
      isolatedSince: () => this.isolatedSince,
      ...(this.diskLimit !== undefined && { diskLimit: this.diskLimit }),
    });
  }

  async start(): Promise<this> {
    void this.executor.start();
    this.executor.adopt(OWNER);
    await this.clock.advance(100);
    return this;
  }

  /** The process ends and another begins, which knows only what is on disk and in Docker. */
  async restart(): Promise<void> {
    void this.executor.stop();
    await this.begin();
  }

  /** A process begins; the one before was stopped, or killed (`abandon`). */
  async begin(): Promise<void> {
    this.executor = this.#make();
    await this.start();
  }

  /** The process is killed: it does nothing any more, and writes nothing. */
  abandon(): void {
    const path = join(this.dataDir, "restarts.json");
    const written = existsSync(path) ? readFileSync(path) : undefined;
    void this.executor.stop();
    if (written) writeFileSync(path, written);
  }

  assign(items: Item[], change: Partial<Assignments> = {}): "accepted" | "stale" {
    const allocations = items.map(({ id, job = "job", desired = "run", spec: changed, joins }): AllocationRecord => ({
      allocation_id: id,
      job_id: job,
      incarnation: "1",
      service_name: "web",
      slot: 1,
      node_id: OWNER.nodeId,
      spec_hash: JSON.stringify(changed ?? {}),
      job_version: 1,
      desired,
      created_at: 0,
      ...(joins && { joins }),
    }));
    const specs = new Map(items.map((item) => [JSON.stringify(item.spec ?? {}), spec(item.spec)]));
    return this.executor.assign({
      type: "assignments",
      order: { term: 1, revision: ++this.#revision },
      specs: [...specs].map(([spec_hash, value]) => ({ spec_hash, spec: value })),
      allocations,
      removals: [],
      ...change,
    });
  }

  status(id: string) {
    return this.executor.snapshot()?.allocations.find(({ allocation_id }) => allocation_id === id);
  }

  states(): Record<string, string> {
    const all = this.executor.snapshot()?.allocations ?? [];
    return Object.fromEntries(all.map(({ allocation_id, state }) => [allocation_id, state]));
  }

  until(condition: () => boolean, limitMs = 120_000): Promise<void> {
    return this.clock.until(condition, { limitMs, describe: () => this.executor.snapshot() ?? "no snapshot" });
  }

  isSettled(ids: readonly string[]): boolean {
    const statuses = this.executor.snapshot()?.allocations ?? [];
    const own = this.engine.containers.filter(({ labels }) => labels.get(LABELS.cluster) === OWNER.clusterId);
    return (
      statuses.length === ids.length &&
      own.length === ids.length &&
      ids.every((id) => this.engine.running(id).length === 1 && this.status(id)?.state === "running")
    );
  }
}

export function names(count: number): string[] {
  return Array.from({ length: count }, (_, n) => `a${n}`);
}

export const ids = (list: readonly string[], change: Omit<Item, "id"> = {}): Item[] =>
  list.map((id) => ({ id, ...change }));

/** What `promise` resolves to, while virtual time passes. */
export async function promised<T>(node: Node, promise: Promise<T>, limitMs = 10_000): Promise<T> {
  let done = false;
  void promise.finally(() => (done = true));
  await node.until(() => done, limitMs);
  return promise;
}
