/** @module The rules of the simulation: what must hold at every moment, whatever goes wrong. */
import { type ClusterState, serviceKey } from "../src/cluster_state.ts";
import {
  type AllocationRecord,
  type AllocationStatus,
  type Change,
  type HomeRecord,
  LABELS,
  type Order,
  type RemovalRecord,
  type StoredState,
} from "../src/model.ts";
import { isGlobal, sharesOf } from "../src/model_spec.ts";
import { REDIAL_MS } from "../src/membership_pauses.ts";
import { claimsOf } from "../src/placement.ts";
import { isStateful, stoppedAloneAt } from "../src/reconcile_goal.ts";
import { FAILURES } from "../src/reconcile_replace.ts";
import type { Scheduler } from "../src/scheduler.ts";
import type { Machine, Process } from "./simulation_machine.ts";
import type { Life } from "./simulation_process.ts";
import { isAllowed } from "./simulation_services.ts";
import type { VirtualClock } from "./virtual_clock.ts";

/** After how long a silent node is down, as the master is told. */
export const NODE_TIMEOUT_MS = 4_000;
/** What the master thinks of its nodes is looked at so often, and it notices a silence that much late at most. */
const VIEW_INTERVAL_MS = 100;
const NOTICE_MS = 1_500;
/** How many of the longest stalls of a master may come on top of that. */
const STALLS = 3;
/** The first assignments of a session are there after this, however slow the network is. */
const ASSIGNMENTS_MS = 3_000;
/** An Engine's death is told, waited for, and made good again within this time. */
const UNWELL_MS = 120_000;
/** A stop that was begun is done by then: grace periods are 10 s. */
const HALF_DONE_MS = 15_000;

export type RulesOptions = {
  clock: VirtualClock;
  machines: readonly Machine[];
  /** The scheduler of the master's process, also of one that is frozen. */
  scheduler: () => Scheduler | undefined;
};

export class SimRules {
  /** Broken rules, in the words of a person who looks for the cause. */
  readonly violations: string[] = [];
  /** Allocation records as they are on the master's disk. */
  readonly allocations = new Map<string, AllocationRecord>();
  /** Whether somebody has just asked for a node's removal, and has no answer yet. */
  isRemoving: (nodeId: string) => boolean = () => false;
  /** Further rules that hear of what is decided and of what is written. */
  also:
    { deciding: (change: Change, changes: readonly Change[]) => void; written: (change: Change) => void } | undefined;
  /** Whether the Engine of a machine may still do what it was asked for before. */
  lateOn: (name: string) => boolean = () => false;
  /** What is to be stopped after how many milliseconds without a master, by definition. */
  readonly #isolations = new Map<string, number>();
  /** The definitions of all allocations that ever were. */
  readonly #specs = new Map<string, string>();
  /** When a node first stopped an allocation because it had been without a master for so long. */
  readonly #isolatedAt = new Map<string, number>();
  readonly #removals = new Map<string, RemovalRecord>();
  readonly #options: RulesOptions;
  /** Allocations that were given up while their node was down: theirs may run beside their replacement's. */
  readonly #givenUp = new Set<string>();
  /** Allocations whose node could not stop them in time, for what happened to its process or its Engine, and until when that counts. */
  readonly #excusedUntil = new Map<string, number>();
  /** When each machine's Engine was last seen to be dead, slow, or to lose something. */
  readonly #unwellAt = new Map<string, number>();
  /** What the master heard of each node last: the true time, and how long it has stood still at a time since. */
  readonly #heard = new Map<string, { at: number; fromMs: number; stallMs: number; isSpoken: boolean }>();
  /** The same of all masters so far. */
  readonly #heardAt = new Map<string, number>();
  readonly #states = new Map<string, string>();
  /** The newest assignments that each process took in. */
  readonly #newest = new WeakMap<Process, Order>();
  /** Runs of containers that were looked at. */
  readonly #runs = new Set<string>();
  #listensTo: Life | undefined;
  #listensSince = 0;
  #stilledMs = 0;
  #mass: { names: ReadonlySet<string>; untilMs: number } | undefined;
  #checkedAt = 0;
  #viewedAt = 0;

  constructor(options: RulesOptions) {
    this.#options = options;
  }

  /** A master that starts reads what was written. */
  loaded(state: StoredState): void {
    const stored = new Map(state.allocation.map((record) => [record.allocation_id, record]));
    if (!Bun.deepEquals(stored, this.allocations))
      this.violations.push("the allocations on disk are not those written");
  }

  /** Looks at what runs right now, if that is not what was looked at last, and now and then at what the master thinks of its nodes. */
  check(): void {
    const now = this.#options.clock.now();
    if (now - this.#viewedAt >= VIEW_INTERVAL_MS) {
      this.#viewedAt = now;
      for (const { name, engine } of this.#options.machines) if (!engine.isWell) this.#unwellAt.set(name, now);
      this.#checkViews(now);
    }
    const changes = this.#options.machines.reduce((sum, { engine }) => sum + engine.changes, 0);
    if (changes === this.#checkedAt) return;
    this.#checkedAt = changes;
    const slots = new Map<string, string[]>();
    for (const { name, engine } of this.#options.machines) {
      const ports = new Set<number>();
      for (const id of engine.doubled) this.violations.push(`two containers of allocation ${id} ran on ${name}`);
      for (const container of engine.containers) {
        const { labels, state, ports: published } = container;
        if (state !== "running") continue;
        for (const { host_port } of published) {
          if (ports.has(host_port)) this.violations.push(`host port ${host_port} is held twice on ${name}`);
          ports.add(host_port);
        }
        const slot = [LABELS.job, LABELS.service, LABELS.slot].map((label) => labels.get(label)).join("/");
        const id = labels.get(LABELS.allocation) ?? "";
        slots.set(slot, [...(slots.get(slot) ?? []), id]);
        this.#checkRun(name, { id, run: `${container.id} ${container.startedAt}` });
      }
    }
    for (const [slot, ids] of slots) if (ids.length > 1) this.#checkSlot(slot, ids);
  }

  #checkSlot(slot: string, ids: readonly string[]): void {
    if (ids.some((id) => this.#isolations.has(this.#specs.get(id) ?? ""))) {
      const [newest = "", ...older] = ids.toSorted((one, other) => numberOf(other) - numberOf(one));
      const live = older.filter((id) => !this.#isExcused(id));
      if (live.length > 0)
        this.violations.push(`slot ${slot}, which never runs twice, runs in ${newest} beside ${live.join(" and ")}`);
      return;
    }
    const replaced = ids.map((id) => this.allocations.get(id)?.replaces?.allocation_id);
    const live = ids.filter((id) => !this.#givenUp.has(id) && !replaced.includes(id));
    if (live.length > 1) this.violations.push(`slot ${slot} runs in allocations ${live.join(" and ")}`);
  }

  /** Whether the machine that an allocation runs on was not able to stop it in time without a master. */
  #isExcused(id: string): boolean {
    const until = this.#excusedUntil.get(id);
    const now = this.#options.clock.now();
    if (until !== undefined && now < until) return true;
    const machine = this.#options.machines.find(({ engine }) => engine.running(id).length > 0);
    if (!machine) return true;
    const { name, process, touchedAt } = machine;
    const { node_id = "" } = this.allocations.get(id) ?? {};
    const heardAt = Math.max(...[...machine.ids].map((nodeId) => this.#heardAt.get(nodeId) ?? 0));
    const wasUnwell = now - (this.#unwellAt.get(name) ?? -Infinity) < UNWELL_MS;
    const isKnown = this.#options.scheduler()?.state.views.get(node_id)?.engine?.state === "unready";
    const isUnwell = wasUnwell && !isKnown;
    const isAble = process && !process.life.isStill && !isUnwell && touchedAt < heardAt;
    if (!isAble) this.#excusedUntil.set(id, now + HALF_DONE_MS);
    return !isAble;
  }

  /** What runs has a record, so that somebody knows of it. */
  #checkRun(name: string, { id, run }: { id: string; run: string }): void {
    if (this.#runs.has(run)) return;
    this.#runs.add(run);
    const isKnown = this.allocations.has(id) || this.#givenUp.has(id) || this.lateOn(name);
    if (!isKnown && this.#specs.has(id))
      this.violations.push(`a container of allocation ${id} started on ${name}, and its record was gone`);
  }

  // ---- What the master thinks of its nodes ----------------------------------------------------------------------------

  /** A master begins to listen. */
  listens(life: Life): void {
    this.#heard.clear();
    this.#states.clear();
    this.#listensTo = life;
    this.#stilledMs = life.stilledMs;
    this.#listensSince = this.#options.clock.now();
  }

  /** The master was given a message of this node that counts. */
  heard(nodeId: string): void {
    const at = this.#options.clock.now();
    this.#heard.set(nodeId, { at, fromMs: this.#listensTo?.stilledMs ?? 0, stallMs: 0, isSpoken: true });
    this.#heardAt.set(nodeId, at);
  }

  /** From now on, and for so long, these machines are cut off together, and nothing else goes wrong: nothing of theirs is given up. */
  expectHold(machines: readonly Machine[], forMs: number): void {
    this.#mass = {
      names: new Set(machines.map(({ identity }) => identity.node_id)),
      untilMs: this.#options.clock.now() + forMs,
    };
  }

  #checkViews(now: number): void {
    const life = this.#listensTo;
    const { process } = this.#options.machines[0] ?? {};
    if (!process?.scheduler || !life || process.life !== life || life.isStill || life.ended.aborted) return;
    const before = this.#stilledMs;
    this.#stilledMs = life.stilledMs;
    const longestMs = life.takeLongestStall();
    for (const [nodeId, { state, connected, lost = false }] of process.scheduler.state.views) {
      const former = this.#states.get(nodeId);
      this.#states.set(nodeId, state);
      const heard = this.#heard.get(nodeId) ?? { at: this.#listensSince, fromMs: 0, stallMs: 0, isSpoken: false };
      this.#heard.set(nodeId, heard);
      const stilledMs = life.stilledMs - Math.max(before, heard.fromMs);
      heard.stallMs = Math.max(heard.stallMs, Math.min(longestMs, stilledMs));
      const { at, isSpoken, stallMs } = heard;
      const silentMs = now - at;
      // A pause in which no session would have lasted is credited but for a part of a sweep; a shorter one is time like any other.
      const isLong = stallMs >= NODE_TIMEOUT_MS;
      const leastMs = isLong ? stallMs + NODE_TIMEOUT_MS / 2 : NODE_TIMEOUT_MS - VIEW_INTERVAL_MS;
      const isNews = state === "down" && former !== undefined && former !== "down";
      if (isNews && silentMs < leastMs)
        this.violations.push(
          `${nodeId} was taken for down after ${Math.round(silentMs)} ms, and the master stood still for ${Math.round(stallMs)} ms of it`,
        );
      const limitMs = (isSpoken ? NODE_TIMEOUT_MS : 2 * NODE_TIMEOUT_MS) + NOTICE_MS;
      // A master that stood still has read since what waited for it: silence is silence then, but for a stall or two. Who lost his
      // connection has time to call again.
      const creditMs = STALLS * stallMs + (stallMs > 0 && !connected ? REDIAL_MS : 0);
      if (state !== "down" && silentMs > limitMs + creditMs)
        this.violations.push(
          `${nodeId} is not taken for down, and has been silent for ${Math.round(silentMs)} ms, while the master stood still for ${Math.round(stallMs)} ms at a time`,
        );
      if (lost && this.#mass && now < this.#mass.untilMs && this.#mass.names.has(nodeId))
        this.violations.push(`${nodeId} was given up, and most nodes fell silent together with it`);
    }
  }

  // ---- What a node takes in -------------------------------------------------------------------------------------------

  /** A node goes into session with a master of this term. */
  welcomed({ name, identity }: Machine, term: number): void {
    if (term < identity.seen_term)
      this.violations.push(`${name} follows a master of term ${term}, and has seen term ${identity.seen_term}`);
  }

  /** A node was sent assignments. */
  assigned(
    machine: Machine,
    { order, outcome, process }: { order: Order; outcome: "accepted" | "stale"; process: Process },
  ): void {
    if (outcome === "stale" || machine.process !== process) return;
    const newest = this.#newest.get(process);
    const isLate = newest !== undefined && isEarlier(order, newest);
    if (isLate || order.term < machine.identity.seen_term)
      this.violations.push(
        `${machine.name} took in assignments ${order.term}/${order.revision} after ${newest?.term}/${newest?.revision} ` +
          `and a master of term ${machine.identity.seen_term}`,
      );
    this.#newest.set(process, order);
  }

  /** A node tells of its allocations; a name that one of its own containers has is no reason to fail. */
  checkStatuses(name: string, statuses: readonly AllocationStatus[]): void {
    for (const { allocation_id, error = "" } of statuses)
      if (/already in use by container|is not this allocation's/.test(error))
        this.violations.push(`${name} could not make allocation ${allocation_id}: ${error}`);
  }

  // ---- What should have been done by now ------------------------------------------------------------------------------

  /**
   * What is left undone of what the master could do, while it and its disk are well: services whose replicas nobody placed, replicas
   * of deleted jobs that nobody stops, records of what is gone.
   */
  undone(): string[] {
    const scheduler = this.#options.scheduler();
    if (!scheduler) return [];
    const { state } = scheduler;
    const undone: string[] = [];
    const waiting = new Set<string>();
    for (const { job_id, incarnation, services } of state.liveJobs()) {
      for (const { service_name, scale, rules } of services) {
        const key = serviceKey({ job_id, service_name });
        waiting.add(key);
        if (rules.mode !== "replicated" || rules.depends_on.length > 0 || service_name === "side") continue;
        const slots = new Set(state.allocationsOf(key).map((one) => (one.incarnation === incarnation ? one.slot : 0)));
        const blocked = new Set(scheduler.blockedOf(key).map(({ slot }) => slot));
        // Of replicas without data those stay that run, whatever their slots are.
        const known = [...slots].filter((slot) => slot > 0 && !blocked.has(slot)).length + blocked.size;
        if (known < scale) undone.push(`${scale - known} replicas of ${key} were placed nowhere`);
      }
    }
    for (const record of state.allocations.values()) {
      const { allocation_id: id, desired, node_id } = record;
      if (desired === "run" && !waiting.has(serviceKey(record))) undone.push(`${id} runs for a service that is gone`);
      const view = state.views.get(node_id);
      const machine = this.#options.machines.find(({ identity }) => identity.node_id === node_id);
      const isGone = machine?.engine.containers.every(({ labels }) => labels.get(LABELS.allocation) !== id);
      if (desired === "stop" && isGone && view?.state === "ready" && !view.statuses.has(id))
        undone.push(`the record of ${id} is still there, and its container is gone`);
    }
    return undone;
  }

  // ---- What a node and the disk do ------------------------------------------------------------------------------------

  /** A container that runs is ended only where the master's disk says that its allocation has to stop. */
  checkEnd(
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
    const {
      session,
      heard,
      life,
      welcomedAt = 0,
    } = this.#options.machines.find(({ name }) => name === node)?.process ?? {};
    if (limitMs === undefined || !session || !life || !heard) return false;
    const now = life.clock.now();
    const key = `${node} ${allocation_id}`;
    // What it was to stop it stops until its new assignments are there, also in a new process that finds it half done.
    const isDue = session.lost
      ? now - welcomedAt < ASSIGNMENTS_MS
      : now - (heard.since({ isOpen: false, isTold: false }) ?? now) >= limitMs;
    if (isDue && !this.#isolatedAt.has(key)) this.#isolatedAt.set(key, now);
    return isDue || now - (this.#isolatedAt.get(key) ?? -Infinity) < HALF_DONE_MS;
  }

  /** Volumes go only where somebody deleted the job with them. */
  checkVolumeRemoval(node: string, jobId: string): void {
    const { ids } = this.#options.machines.find(({ name }) => name === node) ?? { ids: new Set<string>() };
    const isAsked = [...this.#removals.values()].some((one) => one.job_id === jobId && ids.has(one.node_id));
    if (!isAsked) this.violations.push(`${node} removed a volume of job ${jobId}, which nobody asked for`);
  }

  checkCommit(change: Change, changes: readonly Change[]): void {
    this.also?.deciding(change, changes);
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

  written(change: Change): void {
    this.also?.written(change);
    if (change.op === "put" && change.kind === "spec") {
      const { spec_hash, spec } = change.record;
      if (spec.stop_when_isolated_ms !== undefined) this.#isolations.set(spec_hash, spec.stop_when_isolated_ms);
    } else if (change.op === "put" && change.kind === "allocation") {
      this.allocations.set(change.record.allocation_id, change.record);
      this.#specs.set(change.record.allocation_id, change.record.spec_hash);
    } else if (change.op === "put" && change.kind === "removal") {
      this.#removals.set(change.record.removal_id, change.record);
    } else if (change.op === "delete" && change.kind === "allocation") this.allocations.delete(change.key);
    else if (change.op === "delete" && change.kind === "removal") this.#removals.delete(change.key);
  }

  #checkGone(id: string, changes: readonly Change[]): void {
    const record = this.allocations.get(id);
    const machine = this.#options.machines.find(({ ids }) => ids.has(record?.node_id ?? ""));
    const hasLeft = changes.some(
      ({ op, kind, ...one }) => op === "delete" && kind === "node" && "key" in one && one.key === record?.node_id,
    );
    const { state } = this.#running();
    if (record && hasLeft && (state.isDown(record.node_id) || state.isLost(record.node_id))) {
      this.#givenUp.add(id);
      if (this.isRemoving(record.node_id)) this.#excusedUntil.set(id, Infinity);
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
    const machine = this.#options.machines.find(({ ids }) => ids.has(node_id));
    if (spec?.stop_when_isolated_ms === undefined || !machine) return;
    // The master tells times by its own clock.
    const { aheadMs = 0 } = this.#options.machines[0]?.process?.life ?? {};
    const now = this.#options.clock.now() + aheadMs;
    const lastSeen = state.views.get(node_id)?.lastSeen ?? now;
    if (now < Math.floor(stoppedAloneAt(record, state)))
      this.violations.push(`allocation ${id} was given up before ${node_id} had to have stopped it`);
    const { process, engine, touchedAt, identity } = machine;
    // Who lost the data directory and is no member again yet does not know what to stop; what it sent before may still come.
    const isMember = identity.cluster_id !== undefined;
    const isWell = process && isMember && !process.life.isStill && engine.isWell && touchedAt < lastSeen - aheadMs;
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
    if (this.#makesWay(record, state) || !isAllowed(service.rules, state.nodes.get(record.node_id))) return;
    if (isGlobal(service.rules)) {
      const isOther = (one: AllocationRecord) =>
        one.node_id === record.node_id && one !== record && one.desired === "run";
      if (!state.allocationsOf(serviceKey(record)).some(isOther))
        this.violations.push(
          `allocation ${record.allocation_id} was stopped, and is the only one of its service there`,
        );
      return;
    }
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
    const scheduler = this.#options.scheduler();
    if (!scheduler) throw new Error("only a master that runs places and stops");
    return scheduler;
  }
}

/** Ids are numbered in the order of their making. */
function numberOf(id: string): number {
  return Number(id.slice(2));
}

function isEarlier(one: Order, other: Order): boolean {
  return one.term < other.term || (one.term === other.term && one.revision < other.revision);
}
