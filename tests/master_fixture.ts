/**
 * @module A whole master in virtual time, one process after another, with nodes that say what a test tells them to.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Clock } from "../src/clock.ts";
import { parseJob } from "../src/job_spec.ts";
import { silentLog } from "../src/log.ts";
import { Membership } from "../src/membership.ts";
import {
  type AllocationStatus,
  type Assignments,
  type EngineStatus,
  type MasterMessage,
  PROTOCOL_VERSION,
} from "../src/model.ts";
import type { DirectoryMessage, NetworkMessage, NodeNetwork, ServiceEntry } from "../src/model_network.ts";
import { Scheduler, type SchedulerOptions } from "../src/scheduler.ts";
import { openSqliteStore, type Store } from "../src/store.ts";
import { idleMachine, seeded, unusedSealer, welcoming } from "./cluster_fixture.ts";
import { VirtualClock } from "./virtual_clock.ts";

const root = mkdtempSync(join(tmpdir(), "cacophony-master-"));
// Not with the tests of one file: those of others in the same process use it, too.
process.on("exit", () => rmSync(root, { recursive: true, force: true }));

export const HEARTBEAT_MS = 2_000;
export const NODE_TIMEOUT_MS = 15_000;
export const ENGINE_TIMEOUT_MS = 60_000;
export const HOLD_MS = 60_000;

type MasterOptions = Pick<SchedulerOptions, "rebalance" | "strategy"> &
  Partial<Pick<SchedulerOptions, "log" | "newId">> & {
    nodeTimeoutMs?: number;
    heartbeatIntervalMs?: number;
    /** What is between the scheduler and its disk. */
    disk?: (store: Store) => Store;
  };

/** A master, one process after another, with a disk of its own. */
export class Master {
  readonly clock = new VirtualClock();
  /** How far the next process's clock is ahead of time. */
  skewMs = 0;
  readonly #path = join(mkdtempSync(join(root, "master-")), "cluster.db");
  readonly #cidr: string;
  readonly #options: MasterOptions;
  scheduler: Scheduler;
  membership: Membership;
  /** What nodes heard, in order. */
  readonly log: string[] = [];
  #ids = 0;

  private constructor(cidr: string, options: MasterOptions) {
    this.#cidr = cidr;
    this.#options = options;
    this.scheduler = this.#newScheduler();
    this.membership = this.#newMembership();
  }

  static async start(cidr = "10.213.0.0/16", options: MasterOptions = {}): Promise<Master> {
    const master = new Master(cidr, options);
    await master.#begin();
    return master;
  }

  async restart(): Promise<void> {
    this.membership.stop();
    await this.scheduler.stop();
    this.scheduler = this.#newScheduler();
    this.membership = this.#newMembership();
    await this.#begin();
  }

  async put(jobId: string, services: Record<string, object>, more: object = {}) {
    const document = JSON.stringify({ services, ...more });
    const result = parseJob(document, { jobId, env: new Map() });
    if (!result.ok) throw new Error(JSON.stringify(result.details));
    const wanted = { document, services: result.job.services };
    const outcome = await this.scheduler.putJob(jobId, { wanted, preconditions: {} });
    await this.clock.advance(20);
    return outcome;
  }

  async delete(jobId: string, { volumes = false } = {}): Promise<void> {
    await this.scheduler.deleteJob(jobId, { volumes, preconditions: {} });
    await this.clock.advance(20);
  }

  async #begin(): Promise<void> {
    const cluster = { cluster_id: "c", created_at: 0, network_mode: "vxlan" as const, network_cidr: this.#cidr };
    await this.scheduler.start(cluster);
    this.membership.start();
  }

  /** The clock of a process: it begins as far off as the machine's is then, and goes on as time does. */
  #skewed(): Clock {
    const { clock, skewMs } = this;
    return { now: () => clock.now() + skewMs, after: (ms, fn) => clock.after(ms, fn) };
  }

  #newScheduler(): Scheduler {
    return new Scheduler({
      log: silentLog,
      newId: () => `id${++this.#ids}`,
      ...this.#options,
      clock: this.#skewed(),
      store: (this.#options.disk ?? ((store) => store))(openSqliteStore(this.#path)),
      random: seeded(1),
      sealer: unusedSealer,
      onFenced: () => {},
    });
  }

  #newMembership(): Membership {
    return new Membership({
      clock: this.#skewed(),
      log: this.#options.log ?? silentLog,
      scheduler: this.scheduler,
      self: { node_id: "master", address: "10.0.0.1:9000" },
      heartbeatIntervalMs: this.#options.heartbeatIntervalMs ?? HEARTBEAT_MS,
      nodeTimeoutMs: this.#options.nodeTimeoutMs ?? NODE_TIMEOUT_MS,
      engineTimeoutMs: ENGINE_TIMEOUT_MS,
      massFailureHoldMs: HOLD_MS,
      ...welcoming(),
    });
  }
}

/** A node in one session after another. Its containers have the addresses `10.0.9.SLOT` on their job's network. */
export class Peer {
  readonly id: string;
  readonly #master: Master;
  #handlers: ReturnType<Membership["accept"]> | undefined;
  heard: MasterMessage[] = [];
  /** The services that it knows. */
  readonly services = new Map<string, ServiceEntry>();
  overlay: NodeNetwork | undefined = { mode: "vxlan", networks: [], blocks: 1, full: false };
  /** Names of its Docker networks; undefined: it does not tell. */
  networks: string[] | undefined;
  underlay: string | undefined;
  address: string;
  /** Why its Docker Engine does not answer; undefined: it does. */
  engineFault: string | undefined;
  /** What it removed of the volumes of deleted jobs. */
  removalsDone: string[] = [];
  /** Whether the master has not closed its connection. */
  isConnected = false;
  /** The cluster that it believes to belong to. */
  clusterId: string | undefined;

  private constructor(master: Master, n: number) {
    this.#master = master;
    this.id = `n${n}`;
    this.underlay = `10.0.0.${n}`;
    this.address = `10.0.0.${n}:9000`;
  }

  static async join(
    master: Master,
    n: number,
    more: Partial<Pick<Peer, "underlay" | "overlay" | "engineFault">> = {},
  ): Promise<Peer> {
    const peer = Object.assign(new Peer(master, n), more);
    await peer.dial();
    await peer.report();
    return peer;
  }

  get network(): NetworkMessage | undefined {
    return this.heard.findLast((message) => message.type === "network");
  }

  get assigned(): Assignments["allocations"] {
    return this.heard.findLast((message) => message.type === "assignments")?.allocations ?? [];
  }

  /** The volumes that it is to remove. */
  get removals(): string[] {
    const assignments = this.heard.findLast((message) => message.type === "assignments");
    return (assignments?.removals ?? []).map(({ removal_id }) => removal_id);
  }

  endpoints(key: string): [slot: number, ready: boolean, node: string][] | undefined {
    return this.services.get(key)?.endpoints.map(({ slot, ready, node_id }) => [slot, ready, node_id]);
  }

  async dial(): Promise<void> {
    const { membership, clock } = this.#master;
    this.heard = [];
    const close = () => {
      this.isConnected = false;
      queueMicrotask(() => handlers.onClose());
    };
    const handlers = membership.accept({ send: (text) => this.#hear(JSON.parse(text)), close });
    this.#handlers = handlers;
    this.isConnected = true;
    this.#say({
      type: "hello",
      protocol: PROTOCOL_VERSION,
      ...(this.clusterId !== undefined && { cluster_id: this.clusterId }),
      node_id: this.id,
      instance: this.id,
      node_name: this.id,
      address: this.address,
      ...(this.underlay !== undefined && { underlay: this.underlay }),
      labels: [],
      engine: this.#engine,
      version: "0",
    });
    await clock.advance(20);
  }

  async hangUp(): Promise<void> {
    this.#handlers?.onClose();
    await this.#master.clock.advance(20);
  }

  async beat(): Promise<void> {
    const overlay = this.overlay && { overlay: this.overlay };
    this.#say({
      type: "heartbeat",
      sequence: 1,
      engine: this.#engine,
      resources: idleMachine(),
      foreign: [],
      ...(this.networks && { networks: this.networks }),
      ...overlay,
    });
    await this.#master.clock.advance(20);
  }

  /** A heartbeat, and a full report: all that is assigned runs, but for what `states` says by slot. */
  async report(states: Record<number, Partial<AllocationStatus> | undefined> = {}): Promise<void> {
    await this.beat();
    const allocations = this.assigned.flatMap(({ allocation_id, job_id, slot }): AllocationStatus[] => {
      if (slot in states && !states[slot]) return [];
      const addresses = [{ network: `${job_id}_default`, address: `10.0.9.${slot}` }];
      return [{ allocation_id, state: "running", final: false, ports: [], restarts: 0, addresses, ...states[slot] }];
    });
    const applied = this.heard.findLast((message) => message.type === "assignments")?.order;
    this.#say({
      type: "status",
      full: true,
      ...(applied && { applied }),
      allocations,
      gone: [],
      removals_done: this.removalsDone,
    });
    await this.#master.clock.advance(20);
  }

  /** Says these statuses, whoever runs them. */
  async tell(allocations: readonly AllocationStatus[]): Promise<void> {
    this.#say({ type: "status", full: false, allocations, gone: [], removals_done: [] });
    await this.#master.clock.advance(20);
  }

  /** What a node says by itself: that it has taken in its assignments, and which of the others' containers are gone by that. */
  async obey(): Promise<void> {
    const known = this.heard.filter((message) => message.type === "assignments");
    const assigned = new Set(this.assigned.map(({ allocation_id }) => allocation_id));
    const gone = known.flatMap(({ allocations }) => allocations.map(({ allocation_id }) => allocation_id));
    this.#say({
      type: "status",
      full: false,
      ...(known.length > 0 && { applied: known.at(-1)?.order }),
      allocations: [],
      gone: [...new Set(gone)].filter((id) => !assigned.has(id)),
      removals_done: [],
    });
    await this.#master.clock.advance(20);
  }

  get #engine(): EngineStatus {
    const platform = { os: "linux", arch: "amd64" };
    if (this.engineFault !== undefined) return { state: "unready", reason: this.engineFault, engine_id: this.id };
    return { state: "ready", engine_id: this.id, docker_version: "20", api_version: "1.41", platform };
  }

  #say(message: object): void {
    this.#handlers?.onMessage(JSON.stringify(message));
  }

  #hear(message: MasterMessage): void {
    this.heard.push(message);
    this.#master.log.push(`${this.id} ${message.type}`);
    if (message.type === "directory") this.#learn(message);
  }

  #learn({ full, services, gone }: DirectoryMessage): void {
    if (full) this.services.clear();
    for (const entry of services) this.services.set(`${entry.job_id}/${entry.service_name}`, entry);
    for (const { job_id, service_name } of gone) this.services.delete(`${job_id}/${service_name}`);
  }
}
