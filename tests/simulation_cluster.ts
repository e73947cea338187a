/**
 * @module The cluster of the simulation: machines with a Docker Engine, an identity on disk and a process that comes and goes,
 * built of the real parts as `node.ts` builds them; and the rules that must hold at every moment.
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { sleep } from "../src/clock.ts";
import { Executor } from "../src/executor.ts";
import type { Log } from "../src/log.ts";
import { Membership } from "../src/membership.ts";
import {
  type AllocationRecord,
  type Change,
  type HomeRecord,
  isPassing,
  LABELS,
  type Peer,
  type PeerInfo,
  PROTOCOL_VERSION,
  type RemovalRecord,
  type StoredState,
  type Welcome,
} from "../src/model.ts";
import type { ClusterState } from "../src/cluster_state.ts";
import { sharesOf } from "../src/model_spec.ts";
import { claimsOf } from "../src/placement.ts";
import { isStateful, stoppedAloneAt } from "../src/reconcile_goal.ts";
import { FAILURES } from "../src/reconcile_replace.ts";
import { Scheduler } from "../src/scheduler.ts";
import { Session } from "../src/session.ts";
import { openSqliteStore, type Store, StoreError } from "../src/store.ts";
import { idleMachine, noOverlay, unusedSealer, welcoming } from "./cluster_fixture.ts";
import { scoped, SimEngine } from "./simulation_engine.ts";
import { Life, SimNetwork } from "./simulation_process.ts";
import type { VirtualClock } from "./virtual_clock.ts";

const CLUSTER_ID = "cluster";
/** What a master is told of times. */
const TIMINGS = { heartbeatIntervalMs: 1_000, nodeTimeoutMs: 4_000 };
/** SIGTERM: what `node.ts` allows its parts. */
const STOP_TIMEOUT_MS = 1_500;
/** Who runs the process starts it again this long after it gave up. */
const RESTART_DELAY_MS = 3_000;

/** The first assignments of a session are there after this, however slow the network is. */
const ASSIGNMENTS_MS = 3_000;
/** A stop that was begun is done by then: grace periods are 10 s. */
const HALF_DONE_MS = 15_000;

/** A running `cacophony` with all that it has in memory. */
type Process = {
  life: Life;
  executor: Executor;
  session: Session;
  /** When its last session began. */
  welcomedAt?: number;
  scheduler?: Scheduler;
  membership?: Membership;
  store?: Store;
};

/** What a process keeps in its data directory. */
type Identity = {
  cluster_id?: string;
  cluster_key?: string;
  node_id: string;
  seen_term: number;
  master?: Peer;
  peers: Peer[];
};

export type Machine = {
  name: string;
  address: string;
  isMaster: boolean;
  dataDir: string;
  engine: SimEngine;
  identity: Identity;
  /** All ids that it ever had as a member. */
  ids: Set<string>;
  process: Process | undefined;
  /** When its process or its Engine last failed, or was repaired. */
  touchedAt: number;
};

export type ClusterOptions = {
  clock: VirtualClock;
  /** A source of chance of its own for each part. */
  random: (part: string) => () => number;
  machines: number;
  dir: string;
  log: Log;
};

export class SimCluster {
  readonly machines: Machine[] = [];
  readonly network: SimNetwork;
  /** Chance that the disk refuses a commit. */
  storeFaults = 0;
  commits = 0;
  /** How many processes were started. */
  starts = 0;
  /** Broken rules, in the words of a person who looks for the cause. */
  readonly violations: string[] = [];
  /** Allocation records as they are on the master's disk. */
  readonly allocations = new Map<string, AllocationRecord>();
  /** What is to be stopped after how many milliseconds without a master, by definition. */
  readonly #isolations = new Map<string, number>();
  /** When a node first stopped an allocation because it had been without a master for so long. */
  readonly #isolatedAt = new Map<string, number>();
  readonly #removals = new Map<string, RemovalRecord>();
  /** Called with what a master that starts has read from its disk. */
  onLoad: (state: StoredState) => void = () => {};
  /** Whether somebody has just asked for a node's removal, and has no answer yet. */
  isRemoving: (nodeId: string) => boolean = () => false;
  /** Called when the master's process is gone. */
  onMasterGone: () => void = () => {};
  readonly #options: ClusterOptions;
  readonly #storeRandom: () => number;
  /** Allocations that were given up while their node was down: theirs may run beside their replacement's. */
  readonly #givenUp = new Set<string>();
  #checkedAt = 0;
  #ids = 0;
  #nonces = 0;

  constructor(options: ClusterOptions) {
    this.#options = options;
    const { clock, random } = options;
    this.network = new SimNetwork({ clock, random: random("network") });
    this.#storeRandom = random("store");
    for (let n = 1; n <= options.machines; n++) this.machines.push(this.#machine(n));
  }

  get master(): Machine {
    const [first] = this.machines;
    if (!first) throw new Error("a cluster has a machine");
    return first;
  }

  /** The master's scheduler while its process answers. */
  get scheduler(): Scheduler | undefined {
    const process = this.master.process;
    return process?.life.isFrozen ? undefined : process?.scheduler;
  }

  /** Grows with every change of what there is and runs on the machines. */
  get changes(): number {
    let sum = 0;
    for (const { engine } of this.machines) sum += engine.changes;
    return sum;
  }

  // ---- Processes ------------------------------------------------------------------------------------------------------

  start(machine: Machine): void {
    if (machine.process) return;
    this.touch(machine);
    const { random, log } = this.#options;
    const life = new Life(this.#options.clock);
    const { clock } = life;
    const { name, address, identity } = machine;
    const instance = `${name}-${++this.starts}`;
    const common = { clock, random: random(name), log: log.with({ node: name }) };
    const executor = new Executor({
      ...common,
      engine: scoped(machine.engine, life),
      meter: { read: () => idleMachine(), routes: () => [] },
      dataDir: machine.dataDir,
      seenTerm: identity.seen_term,
      fetchChunk: () => Promise.reject(new Error("no files in the simulation")),
      overlay: noOverlay(),
      isolatedSince: () => (process.session.lost ? undefined : process.session.lastHeard),
      onChange: () => process.session.notify(),
    });
    if (identity.cluster_id !== undefined) {
      executor.adopt({ clusterId: identity.cluster_id, nodeId: identity.node_id });
    }
    const session = new Session({
      ...common,
      transport: this.network.transport(address, life),
      executor,
      onNetwork: () => {},
      hello: () => ({
        type: "hello",
        protocol: PROTOCOL_VERSION,
        ...(identity.cluster_id === undefined ? {} : { cluster_id: identity.cluster_id }),
        node_id: identity.node_id,
        instance,
        nonce: `${instance} ${++this.#nonces}`,
        node_name: name,
        address,
        labels: [],
        engine: executor.engineStatus(),
        version: "0.0.0",
      }),
      trust: () => ({ clusterKey: identity.cluster_key, seenTerm: identity.seen_term }),
      addresses: () => [this.master.address, ...identity.peers.map((peer) => peer.address)],
      onWelcome: (welcome) => {
        process.welcomedAt = this.#options.clock.now();
        welcomed(machine, { welcome, executor });
      },
      onLeft: () => this.#forgetCluster(machine),
      onLost: () => executor.noticeMaster(),
      onPeers: (peers) => void (identity.peers = peers),
      onRefused: ({ code, message }) => {
        if (!isPassing(code)) this.#fail(machine, message);
      },
    });
    const process: Process = { life, executor, session };
    machine.process = process;
    this.network.listen(address, {
      life,
      peerInfo: () => peerInfo(machine),
      session: () => {
        const { membership } = process;
        return membership && ((channel) => membership.accept(channel));
      },
    });
    const begun = machine.isMaster ? this.#startMaster(machine, process) : Promise.resolve();
    void begun.then(() => executor.start()).then(() => session.start(identity.master));
  }

  async #startMaster(machine: Machine, process: Process): Promise<void> {
    const { random, log } = this.#options;
    const { life } = process;
    const common = { clock: life.clock, log: log.with({ node: machine.name }) };
    process.store = openSqliteStore(join(machine.dataDir, "cluster.db"));
    const scheduler = new Scheduler({
      ...common,
      store: this.#store(process.store, life),
      random: random("scheduler"),
      sealer: unusedSealer,
      newId: () => `id${++this.#ids}`,
      onFenced: () => this.violations.push("the only master was fenced"),
    });
    try {
      const fresh = {
        cluster_id: CLUSTER_ID,
        created_at: 1,
        network_mode: "vxlan" as const,
        network_cidr: "10.213.0.0/16",
      };
      await scheduler.start(fresh, { seenTerm: machine.identity.seen_term });
    } catch (error) {
      return this.#fail(machine, error);
    }
    process.scheduler = scheduler;
    process.membership = new Membership({
      ...common,
      scheduler,
      self: { node_id: machine.identity.node_id, address: machine.address },
      ...TIMINGS,
      ...welcoming(),
    });
    process.membership.start();
  }

  /** The process gives up and is started again, as its service manager would. */
  #fail(machine: Machine, error: unknown): void {
    this.#options.log.warn("a process gave up", { node: machine.name, error });
    this.kill(machine);
    this.#options.clock.after(RESTART_DELAY_MS, () => this.start(machine));
  }

  /** kill -9, or with `goodbye` false the whole machine's network at once: nobody hears of the end. */
  kill(machine: Machine, { goodbye = true } = {}): void {
    const { process } = machine;
    if (!process) return;
    this.touch(machine);
    process.life.kill();
    void process.store?.close();
    machine.process = undefined;
    this.network.ended(machine.address, { goodbye });
    if (machine.isMaster) this.onMasterGone();
  }

  /** SIGTERM. */
  async stop(machine: Machine): Promise<void> {
    const { process } = machine;
    if (!process || process.life.isFrozen) return;
    const parts = async () => {
      await process.session.stop();
      process.membership?.stop();
      await process.executor.stop();
      await process.scheduler?.stop();
    };
    await Promise.race([parts(), sleep(this.#options.clock, STOP_TIMEOUT_MS)]);
    if (machine.process === process) this.kill(machine);
  }

  /** Its process or its Engine is not as it was. */
  touch(machine: Machine): void {
    machine.touchedAt = this.#options.clock.now();
  }

  /** The node has left: its process ends, and the next one joins anew. */
  #forgetCluster(machine: Machine): void {
    machine.identity = { node_id: machine.identity.node_id, seen_term: 0, peers: [] };
    void this.stop(machine);
  }

  /** The machine's disk was replaced; its Docker Engine is as it was. */
  loseData(machine: Machine): void {
    this.kill(machine);
    rmSync(machine.dataDir, { recursive: true });
    mkdirSync(machine.dataDir);
    machine.identity = { node_id: `id${++this.#ids}`, seen_term: 0, peers: [] };
  }

  #machine(n: number): Machine {
    const { clock, random, dir } = this.#options;
    const name = `node${n}`;
    const dataDir = join(dir, name);
    mkdirSync(dataDir);
    const isMaster = n === 1;
    return {
      name,
      address: `10.0.0.${n}:9000`,
      isMaster,
      dataDir,
      engine: new SimEngine({
        // Docker's times come in whole milliseconds.
        clock: { now: () => Math.floor(clock.now()), after: (ms, fn) => clock.after(ms, fn) },
        random: random(`engine ${name}`),
        engineId: `engine${n}`,
        onEnd: (allocationId, how, stranded) => this.#checkEnd(name, { allocationId, how, stranded }),
        onVolumeRemoval: (jobId) => this.#checkVolumeRemoval(name, jobId),
      }),
      identity: { ...(isMaster ? { cluster_id: CLUSTER_ID } : {}), node_id: name, seen_term: 0, peers: [] },
      ids: new Set(isMaster ? [name] : []),
      process: undefined,
      touchedAt: 0,
    };
  }

  /** A disk that takes its time and may refuse; what it has written is there, whether its process lives to hear of it or not. */
  #store(store: Store, life: Life): Store {
    const random = this.#storeRandom;
    const wait = (mostMs: number) => sleep(life.clock, random() * mostMs);
    return {
      beginTerm: (seen) => life.of(store.beginTerm(seen)),
      load: async () => {
        const state = await life.of(store.load());
        this.#loaded(state);
        return state;
      },
      commit: async (term, changes) => {
        // What is decided must be right by what is known now; what the disk holds changes later.
        for (const change of changes) this.#checkCommit(change, changes);
        await wait(4);
        if (random() < this.storeFaults) throw new StoreError("failed", "the disk is full");
        await store.commit(term, changes);
        for (const change of changes) this.#written(change);
        this.commits++;
        await wait(4);
      },
      close: () => store.close(),
    };
  }

  #loaded(state: StoredState): void {
    const stored = new Map(state.allocation.map((record) => [record.allocation_id, record]));
    if (!Bun.deepEquals(stored, this.allocations))
      this.violations.push("the allocations on disk are not those written");
    this.onLoad(state);
  }

  // ---- Rules ----------------------------------------------------------------------------------------------------------

  /** Looks at what runs right now, if that is not what was looked at last. */
  check(): void {
    const changes = this.changes;
    if (changes === this.#checkedAt) return;
    this.#checkedAt = changes;
    const slots = new Map<string, string[]>();
    for (const { name, engine } of this.machines) {
      const ports = new Set<number>();
      for (const id of engine.doubled) this.violations.push(`two containers of allocation ${id} ran on ${name}`);
      for (const { labels, state, ports: published } of engine.containers) {
        if (state !== "running") continue;
        for (const { host_port } of published) {
          if (ports.has(host_port)) this.violations.push(`host port ${host_port} is held twice on ${name}`);
          ports.add(host_port);
        }
        const slot = [LABELS.job, LABELS.service, LABELS.slot].map((label) => labels.get(label)).join("/");
        const id = labels.get(LABELS.allocation) ?? "";
        slots.set(slot, [...(slots.get(slot) ?? []), id]);
      }
    }
    for (const [slot, ids] of slots) {
      if (ids.length < 2) continue;
      // What is not to run twice has nothing started beside it.
      const isAlone = ids.some((id) => this.#isolations.has(this.allocations.get(id)?.spec_hash ?? ""));
      const replaced = isAlone ? [] : ids.map((id) => this.allocations.get(id)?.replaces?.allocation_id);
      const live = ids.filter((id) => !this.#givenUp.has(id) && !replaced.includes(id));
      if (live.length > 1) this.violations.push(`slot ${slot} runs in allocations ${live.join(" and ")}`);
    }
  }

  /** A container that runs is ended only where the master's disk says that its allocation has to stop. */
  #checkEnd(
    node: string,
    { allocationId, how, stranded }: { allocationId: string; how: string; stranded: boolean },
  ): void {
    // What joined a run of another container that is over is made anew.
    const record = this.allocations.get(allocationId);
    if (!stranded && record?.desired === "run" && !this.#isIsolated(node, record)) {
      this.violations.push(`${node} was told to ${how} a container of allocation ${allocationId}, which is to run`);
    }
  }

  /** Whether a node has been without a master for so long that it has to stop what asks for that. */
  #isIsolated(node: string, { allocation_id, spec_hash }: AllocationRecord): boolean {
    const limitMs = this.#isolations.get(spec_hash);
    const { session, welcomedAt = 0 } = this.machines.find(({ name }) => name === node)?.process ?? {};
    if (limitMs === undefined || !session) return false;
    const now = this.#options.clock.now();
    const key = `${node} ${allocation_id}`;
    // What it was to stop it stops until its new assignments are there, also in a new process that finds it half done.
    const isDue = session.lost ? now - welcomedAt < ASSIGNMENTS_MS : now - session.lastHeard >= limitMs;
    if (isDue && !this.#isolatedAt.has(key)) this.#isolatedAt.set(key, now);
    return isDue || now - (this.#isolatedAt.get(key) ?? -Infinity) < HALF_DONE_MS;
  }

  /** Volumes go only where somebody deleted the job with them. */
  #checkVolumeRemoval(node: string, jobId: string): void {
    const { ids } = this.machines.find(({ name }) => name === node) ?? { ids: new Set<string>() };
    const isAsked = [...this.#removals.values()].some((one) => one.job_id === jobId && ids.has(one.node_id));
    if (!isAsked) this.violations.push(`${node} removed a volume of job ${jobId}, which nobody asked for`);
  }

  #checkCommit(change: Change, changes: readonly Change[]): void {
    if (change.op === "delete") {
      if (change.kind === "allocation") this.#checkGone(change.key, changes);
    } else if (change.kind === "allocation") {
      const before = this.allocations.get(change.record.allocation_id);
      const partner = this.#partnerOf(change.record, changes);
      if (!before) {
        this.#checkPlacement(change.record);
        if (partner && (partner.desired !== "run" || partner.node_id !== change.record.node_id))
          this.violations.push(
            `allocation ${change.record.allocation_id} was placed apart from ${partner.allocation_id}`,
          );
      } else if (before.desired === "run" && change.record.desired === "stop" && partner?.desired !== "stop") {
        this.#checkStop(before);
      }
    }
  }

  /** The allocation whose network a record joins, as it is once `changes` are written. */
  #partnerOf({ joins: [join] = [] }: AllocationRecord, changes: readonly Change[]): AllocationRecord | undefined {
    if (!join) return undefined;
    const changed = changes.findLast(
      (one) => one.op === "put" && one.kind === "allocation" && one.record.allocation_id === join.allocation_id,
    );
    if (changed?.op === "put" && changed.kind === "allocation") return changed.record;
    return this.allocations.get(join.allocation_id);
  }

  #written(change: Change): void {
    if (change.op === "put" && change.kind === "spec") {
      const { spec_hash, spec } = change.record;
      if (spec.stop_when_isolated_ms !== undefined) this.#isolations.set(spec_hash, spec.stop_when_isolated_ms);
    } else if (change.op === "put" && change.kind === "allocation") {
      this.allocations.set(change.record.allocation_id, change.record);
    } else if (change.op === "put" && change.kind === "removal") {
      this.#removals.set(change.record.removal_id, change.record);
    } else if (change.op === "delete" && change.kind === "allocation") this.allocations.delete(change.key);
    else if (change.op === "delete" && change.kind === "removal") this.#removals.delete(change.key);
  }

  #checkGone(id: string, changes: readonly Change[]): void {
    const record = this.allocations.get(id);
    const machine = this.machines.find(({ ids }) => ids.has(record?.node_id ?? ""));
    const hasLeft = changes.some(
      ({ op, kind, ...one }) => op === "delete" && kind === "node" && "key" in one && one.key === record?.node_id,
    );
    if (record && hasLeft && this.#running().state.isDown(record.node_id)) {
      this.#givenUp.add(id);
      // Who removes a node by hand knows that it is off.
      if (!this.isRemoving(record.node_id)) this.#checkAlone(record);
      return;
    }
    if (machine && machine.engine.running(id).length > 0) {
      this.violations.push(`allocation ${id} was taken for gone while it ran on ${machine.name}`);
    }
  }

  #checkPlacement(record: AllocationRecord): void {
    const { state } = this.#running();
    const spec = (hash: string) => state.specs.get(hash);
    const claims = (one: AllocationRecord) => (spec(one.spec_hash) ? claimsOf(spec(one.spec_hash)!) : []);
    const { allocation_id: id, node_id } = record;
    const ready = state.views.get(node_id)?.state;
    if (ready !== "ready") this.violations.push(`allocation ${id} was placed on ${node_id}, which is ${ready}`);
    const availability = state.nodes.get(node_id)?.availability;
    if (availability !== "active")
      this.violations.push(`allocation ${id} was placed on ${node_id}, where availability is ${availability}`);
    this.#checkHome(record);
    for (const other of this.allocations.values()) {
      const sameSlot =
        other.job_id === record.job_id && other.service_name === record.service_name && other.slot === record.slot;
      const formerJob = other.job_id === record.job_id && other.incarnation !== record.incarnation;
      if (sameSlot || formerJob) {
        if (record.replaces?.allocation_id === other.allocation_id) continue;
        if (state.isLost(other.node_id)) {
          this.#givenUp.add(other.allocation_id);
          if (sameSlot && !other.ended) this.#checkAlone(other);
        } else
          this.violations.push(`allocation ${id} was placed before ${other.allocation_id} of its slot or job was gone`);
      }
      const sharesPort = claims(other).some((a) => claims(record).some((b) => a.first === b.first));
      if (other.node_id === node_id && sharesPort) {
        this.violations.push(`allocations ${id} and ${other.allocation_id} have one host port of ${node_id}`);
      }
    }
  }

  /** What has its data on a node goes nowhere else, but where the operator said so. */
  #checkHome(record: AllocationRecord): void {
    const { state } = this.#running();
    const home: HomeRecord | undefined = state.homeOf(record);
    const spec = state.specs.get(record.spec_hash);
    if (!home || home.node_id === record.node_id || !spec || !isStateful(spec)) return;
    if (state.nodes.get(home.node_id)?.drain?.force !== true)
      this.violations.push(
        `allocation ${record.allocation_id} was placed on ${record.node_id}, its data are on ${home.node_id}`,
      );
  }

  /** What a node has to stop by itself does not run there any more when it is given up, if the machine was able to do so. */
  #checkAlone(record: AllocationRecord): void {
    const { state } = this.#running();
    const { allocation_id: id, node_id } = record;
    const spec = state.specs.get(record.spec_hash);
    const machine = this.machines.find(({ ids }) => ids.has(node_id));
    if (spec?.stop_when_isolated_ms === undefined || !machine) return;
    const now = this.#options.clock.now();
    const lastSeen = state.views.get(node_id)?.lastSeen ?? now;
    if (now < Math.floor(stoppedAloneAt(record, state)))
      this.violations.push(`allocation ${id} was given up before ${node_id} had to have stopped it`);
    const { process, engine, touchedAt } = machine;
    const isWell = process && !process.life.isFrozen && engine.isWell && touchedAt < lastSeen;
    if (isWell && engine.running(id).length > 0)
      this.violations.push(`allocation ${id} was given up while it ran on ${node_id}, which should have stopped it`);
  }

  /** An allocation is stopped for one of seven reasons: scale, its own or its partner's, definition, a restart, removal, bad health, or its node is down. */
  #checkStop(record: AllocationRecord): void {
    const { state } = this.#running();
    const job = state.liveJob(record.job_id);
    const service = job?.services.find(({ service_name }) => service_name === record.service_name);
    if (!service || job?.incarnation !== record.incarnation || service.spec_hash !== record.spec_hash) return;
    if ((service.generation ?? 0) !== (record.generation ?? 0)) return;
    if (state.isLost(record.node_id)) return void this.#givenUp.add(record.allocation_id);
    if (this.#makesWay(record, state)) return;
    const isPaired = ({ replaces }: AllocationRecord) =>
      this.allocations.get(replaces?.allocation_id ?? "")?.desired === "run";
    const running = [...this.allocations.values()].filter(
      (one) =>
        one.job_id === record.job_id &&
        one.service_name === record.service_name &&
        one.incarnation === record.incarnation &&
        one.desired === "run" &&
        !isPaired(one),
    );
    const [join] = record.joins ?? [];
    const scale = job.services.find(({ service_name }) => service_name === join?.service_name)?.scale ?? 0;
    const partner = join && this.allocations.get(join.allocation_id);
    if (join && (scale === 0 || partner?.slot !== ((record.slot - 1) % scale) + 1)) return;
    // Where others go beside a service's slots, none above the scale stays in the place of a lower one.
    const belongs = join !== undefined || job.services.some((one) => this.#goesBeside(one, record, state));
    const isBeside = record.slot > service.scale && belongs;
    if (!isBeside && running.length <= service.scale) {
      this.violations.push(`allocation ${record.allocation_id} was stopped on ${record.node_id} for no reason`);
    }
  }

  #goesBeside({ spec_hash }: { spec_hash: string }, { service_name }: AllocationRecord, state: ClusterState): boolean {
    const spec = state.specs.get(spec_hash);
    return spec !== undefined && sharesOf(spec).some((share) => share.service_name === service_name);
  }

  /** Whether another has taken its slot, it was about to take one, it has to leave its node, or it does not get well there. */
  #makesWay(record: AllocationRecord, state: ClusterState): boolean {
    const { allocation_id: id, replaces, node_id } = record;
    const successor = [...this.allocations.values()].find((one) => one.replaces?.allocation_id === id);
    const { failures = 0, health } = state.status(record) ?? {};
    const { availability, drain } = state.nodes.get(node_id) ?? {};
    const spec = state.specs.get(record.spec_hash);
    if (spec && isStateful(spec)) return availability === "drain" && drain?.force === true;
    return (
      this.allocations.get(replaces?.allocation_id ?? "")?.desired === "run" ||
      (successor !== undefined && state.status(successor)?.state === "running") ||
      availability === "drain" ||
      failures >= FAILURES ||
      health === "unhealthy"
    );
  }

  #running(): Scheduler {
    const scheduler = this.master.process?.scheduler;
    if (!scheduler) throw new Error("only a master that runs places and stops");
    return scheduler;
  }
}

function peerInfo({ identity, address, isMaster, process }: Machine): PeerInfo {
  const { cluster_id, node_id, peers } = identity;
  const master = isMaster ? { node_id, address } : (process?.session.master ?? identity.master);
  return {
    ...(cluster_id === undefined ? {} : { cluster_id }),
    node_id,
    protocol: PROTOCOL_VERSION,
    version: "0.0.0",
    ...(master ? { master } : {}),
    peers,
  };
}

function welcomed({ identity, ids }: Machine, { welcome, executor }: { welcome: Welcome; executor: Executor }): void {
  const { cluster_id, node_id, cluster_key, term, master, peers } = welcome;
  const seen_term = Math.max(term, identity.seen_term);
  Object.assign(identity, { cluster_id, node_id, cluster_key, master, peers, seen_term });
  ids.add(node_id);
  executor.adopt({ clusterId: cluster_id, nodeId: node_id });
  executor.noticeMaster();
}
