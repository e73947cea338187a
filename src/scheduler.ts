/**
 * @module The Scheduler: the master's one writer. It owns the cluster's state in memory, writes every change through to the
 * Store before it is acknowledged or acted on, runs scheduling passes over the services that something happened to, and sends
 * each node its assignments. It decides nothing itself: `reconcile.ts` and `placement.ts` do. Membership of nodes is in
 * `membership.ts`, the rules of a job's records in `job_changes.ts`.
 */
import { Alarms, type Clock, type Timer } from "./clock.ts";
import { repeat } from "./clock_loop.ts";
import { ClusterState, type ServiceKey, serviceKey } from "./cluster_state.ts";
import type { Preconditions, PutOutcome, WantedJob } from "./job_changes.ts";
import { changesForDelete, changesForPut, changesForScale, changesForTombstones } from "./job_changes.ts";
import { checkPreconditions } from "./job_changes.ts";
import { Directory } from "./directory.ts";
import { changesForDigests, changesForRestart } from "./job_images.ts";
import type { Log } from "./log.ts";
import { Faults } from "./log_faults.ts";
import type { Change, ClusterRecord, DepartureRecord, LiveJob, MasterMessage, NodeRecord } from "./model.ts";
import { isGlobal } from "./model_spec.ts";
import type { DrainWait } from "./reconcile_drain.ts";
import type { Blocked, Plan, PlanContext } from "./reconcile_goal.ts";
import type { Strategy } from "./placement.ts";
import type { Rebalance } from "./reconcile_rebalance.ts";
import { assignmentsFor } from "./scheduler_assignments.ts";
import { openCluster, type StartFacts, STATE_KINDS } from "./scheduler_cluster.ts";
import { Drains } from "./scheduler_drains.ts";
import { planBeforehand, type ServicePlan } from "./scheduler_dry_run.ts";
import { Goals } from "./scheduler_goals.ts";
import { Leadership } from "./scheduler_leadership.ts";
import { Moves } from "./scheduler_moves.ts";
import { changesForEnds, changesForLeave, changesForNode, departure } from "./scheduler_nodes.ts";
import { findDeparture, hasLeft } from "./scheduler_nodes.ts";
import { type NodeWish, withoutData } from "./scheduler_nodes.ts";
import { Planner } from "./scheduler_planner.ts";
import { Registries } from "./scheduler_registries.ts";
import { Secrets } from "./scheduler_secrets.ts";
import { boundedTimes } from "./scheduler_times.ts";
import { changesForUpgrade } from "./scheduler_upgrade.ts";
import { Writes } from "./scheduler_writes.ts";
import type { Sealer } from "./seal.ts";
import type { Store } from "./store.ts";

/** A full look at every service: a slow safety net, and when unused specs are collected. */
const FULL_PASS_MS = 30_000;
/** Passes are this far apart at least, so that a burst of reports is two passes. */
const PASS_DELAY_MS = 5;
/** After the Store failed, a pass is tried again so much later. */
const STORE_RETRY_MS = 1_000;

export type SchedulerOptions = {
  store: Store;
  clock: Clock;
  random: () => number;
  newId: () => string;
  /** Keeps secrets and registry logins unreadable in the Store. */
  sealer: Sealer;
  log: Log;
  /** How nodes are chosen for services that say nothing about it; `spread` unless said. */
  strategy?: Strategy;
  /** `auto`: replicas are moved without being asked when nodes came or went; `off` unless said. */
  rebalance?: "off" | "auto";
  /** How often every service is looked at though nothing happened, in milliseconds; half a minute unless said. */
  fullPassMs?: number;
  /** Called when another leadership is found to be newer (`Leadership`): this process decides nothing any more. */
  onFenced?: () => void;
};

export class Scheduler {
  readonly state = new ClusterState();
  /** Where names and addresses lead; nodes hear of it in their session. */
  readonly directory: Directory;
  readonly secrets: Secrets;
  /** Whether this process leads its cluster. */
  readonly leadership: Leadership;
  /** How changes reach the Store. */
  readonly writes: Writes;
  readonly #registries: Registries;
  readonly #options: SchedulerOptions;
  readonly #dirty = new Set<ServiceKey>();
  readonly #blocked = new Map<ServiceKey, Blocked[]>();
  readonly #senders = new Map<string, (message: MasterMessage) => void>();
  /** Nodes that the next pass sends their assignments to, also when it changes nothing there. */
  readonly #untold = new Set<string>();
  /** Revision of the first assignments without an allocation that is to stop: reports from there on can confirm it gone. */
  readonly #stopToldAt = new Map<string, number>();
  /** Errors of Cacophony itself, told where they do no harm. */
  readonly faults: Faults;
  readonly #goals: Goals;
  readonly #planner: Planner;
  readonly #moves: Moves;
  readonly #drains: Drains;
  /** When a node last came, went or changed. */
  #nodesChangedAt = 0;
  /** When services are looked at again though nothing happened. */
  readonly #alarms = new Alarms<ServiceKey>();
  #queue: Promise<unknown> = Promise.resolve();
  #revision = 0;
  #passTimer: Timer | undefined;
  #passedAt = -Infinity;
  #fullPassTimer: Timer | undefined;
  #stopped = false;

  constructor(options: SchedulerOptions) {
    this.#options = options;
    this.leadership = new Leadership(options);
    this.leadership.onEnd(() => this.#halt());
    this.faults = new Faults(options);
    this.writes = new Writes({ ...options, state: this.state });
    this.#goals = new Goals(this.state);
    this.#planner = new Planner({ ...options, state: this.state, goals: this.#goals });
    this.#moves = new Moves({ state: this.state, goals: this.#goals });
    this.#drains = new Drains({
      state: this.state,
      goals: this.#goals,
      clock: options.clock,
      wake: (keys) => this.wake(keys),
      wakeForNode: (nodeId) => this.wakeForNode(nodeId),
    });
    const network = () => ({ mode: this.cluster.network_mode, cidr: this.cluster.network_cidr });
    this.directory = new Directory({ ...options, state: this.state, faults: this.faults, network });
    this.secrets = new Secrets({ ...options, state: this.state });
    this.#registries = new Registries({ ...options, state: this.state });
  }

  get term(): number {
    return this.leadership.begun.term;
  }

  get cluster(): ClusterRecord {
    if (!this.state.cluster) throw new Error("the scheduler has not started");
    return this.state.cluster;
  }

  /**
   * Begins a new term, where nothing is newer, and loads the state. `fresh` is the cluster record of a store that is still empty.
   * @throws StartError when the state is of another cluster, empty though it was written before, or without its key.
   */
  async start(fresh: ClusterRecord, facts: StartFacts = {}): Promise<void> {
    const { store, clock, newId } = this.#options;
    const stored = boundedTimes(await store.load(), clock.now());
    this.state.since = clock.now();
    const known = stored.cluster[0];
    const record = openCluster(known, { fresh, ...facts });
    for (const kind of STATE_KINDS)
      this.state.apply(stored[kind].map((record) => ({ op: "put", kind, record }) as Change));
    this.state.apply([{ op: "put", kind: "cluster", record }]);
    const claim = { ...facts, leadership: newId() };
    const hasBegun = await this.writes.begin(
      () => this.leadership.begin(store, claim),
      // Others change the state, too, by then.
      () => this.#exclusive(() => this.#lead(known)),
    );
    if (hasBegun) await this.#lead(known);
    else await this.leadership.wait(store, { claim, isNew: !known, fault: this.writes.fault });
    if (this.leadership.fault !== undefined) return;
    store.background?.();
    this.#fullPassTimer = repeat(clock, {
      firstMs: 0,
      retryMs: FULL_PASS_MS,
      work: () => this.#fullPass(),
      onFault: (error) => this.faults.tell("an error of Cacophony itself: a full pass failed", error),
    });
  }

  /** The term has begun; `known`: the cluster's record in the Store. */
  async #lead(known: ClusterRecord | undefined): Promise<void> {
    if (this.leadership.fault !== undefined) return;
    const { log } = this.#options;
    const record = this.cluster;
    try {
      if (!Bun.deepEquals(record, known)) await this.#commit([{ op: "put", kind: "cluster", record }]);
    } catch (error) {
      if (!known) throw error;
      log.error("what is new of the cluster itself could not be stored; the next start tries it again", { error });
    }
    const { cluster_id: cluster } = record;
    log.info("this node is the master", { cluster, term: this.term, jobs: this.state.liveJobs().length });
    await this.#upgrade();
    const fault = this.faults.attempt("an error of Cacophony itself in a look at secrets", () => this.secrets.fault());
    if (fault !== undefined) log.error("the jobs' secrets cannot be opened; what runs goes on", { reason: fault });
  }

  /** Where that fails, everything goes on as it was, and the next start tries it again. */
  async #upgrade(): Promise<void> {
    const { store, log } = this.#options;
    try {
      await this.#commit(changesForTombstones(this.state));
      const changes = changesForUpgrade(this.state, this.secrets);
      if (changes.length === 0) return;
      await this.#commit(changes);
      await this.#commit(this.state.unused(this.#options.clock.now()));
      await store.scrub?.();
      log.info("sealed the secrets that an earlier version kept in plain", { changes: changes.length });
    } catch (error) {
      log.error("records of an earlier version could not be brought to what they are now", { error });
    }
  }

  /** Nothing is decided any more, and nobody is told anything. */
  #halt(): void {
    this.#stopped = true;
    this.writes.stop();
    this.#passTimer?.cancel();
    this.#fullPassTimer?.cancel();
    this.#alarms.stop();
    this.#drains.stop();
    this.directory.stop();
    for (const nodeId of this.#senders.keys()) this.detach(nodeId);
  }

  async stop(): Promise<void> {
    this.#halt();
    await this.#queue.catch(() => {});
    await this.#options.store.close();
  }

  // ---- Jobs -----------------------------------------------------------------------------------------------------------

  async putJob(
    jobId: string,
    { wanted, preconditions }: { wanted: WantedJob; preconditions: Preconditions },
  ): Promise<PutOutcome> {
    const { clock, newId } = this.#options;
    return this.#exclusive(async () => {
      checkPreconditions(this.state.jobs.get(jobId), preconditions);
      const before = this.state.liveJob(jobId);
      const { wanted: settled, fresh } = this.secrets.settle(wanted, before);
      const outcome = changesForPut(this.state, { jobId, wanted: settled, now: clock.now(), newId });
      const sealed = this.secrets.sealed(fresh);
      if (outcome.changes.length > 0) await this.#commitChunks(wanted.chunks ?? new Map());
      await this.#commit([...sealed, ...outcome.changes]);
      this.#wakeJob(before);
      this.#wakeJob(outcome.job);
      return outcome;
    });
  }

  async scaleService(
    jobId: string,
    { serviceName, scale, preconditions = {} }: { serviceName: string; scale: number; preconditions?: Preconditions },
  ): Promise<LiveJob> {
    return this.#exclusive(async () => {
      checkPreconditions(this.state.jobs.get(jobId), preconditions);
      const { job, changes } = changesForScale(this.state, {
        jobId,
        serviceName,
        scale,
        now: this.#options.clock.now(),
      });
      await this.#commit(changes);
      this.wake([serviceKey({ job_id: jobId, service_name: serviceName })]);
      return job;
    });
  }

  /** Has every replica of a job, or of one service, replaced one by one; with `pull` by what its image's tag stands for then. */
  async restartJob(
    jobId: string,
    { serviceName, pull, preconditions }: { serviceName?: string; pull: boolean; preconditions: Preconditions },
  ): Promise<LiveJob> {
    return this.#exclusive(async () => {
      checkPreconditions(this.state.jobs.get(jobId), preconditions);
      const { job, changes } = changesForRestart(this.state, {
        jobId,
        serviceName,
        pull,
        now: this.#options.clock.now(),
      });
      await this.#commit(changes);
      this.#wakeJob(job);
      return job;
    });
  }

  async deleteJob(
    jobId: string,
    { volumes, preconditions }: { volumes: boolean; preconditions: Preconditions },
  ): Promise<number> {
    return this.#exclusive(async () => {
      checkPreconditions(this.state.jobs.get(jobId), preconditions);
      const before = this.state.liveJob(jobId);
      const { version, changes } = changesForDelete(this.state, { jobId, volumes, newId: this.#options.newId });
      await this.#commit(changes);
      this.#wakeJob(before);
      this.wake(this.state.allocatedServices(jobId).map((service_name) => serviceKey({ job_id: jobId, service_name })));
      // Every node has volumes to remove, but only once the pass has stopped the job's allocations.
      for (const nodeId of this.#senders.keys()) this.#untold.add(nodeId);
      this.#schedulePass();
      return version;
    });
  }

  /** What a PUT would do, with nothing changed: the outcome, and the first plan of each service. */
  dryRun(
    jobId: string,
    { wanted, preconditions }: { wanted: WantedJob; preconditions: Preconditions },
  ): { outcome: PutOutcome; services: ServicePlan[] } {
    const { clock, newId } = this.#options;
    checkPreconditions(this.state.jobs.get(jobId), preconditions);
    const settled = this.secrets.settle(wanted, this.state.liveJob(jobId)).wanted;
    const outcome = changesForPut(this.state, { jobId, wanted: settled, now: clock.now(), newId });
    const specs = settled.services.map(({ spec }) => spec);
    const services = planBeforehand(outcome.job, {
      specs,
      goals: this.#goals,
      context: this.#planContext(),
      faults: this.faults,
    });
    return { outcome, services };
  }

  // ---- Nodes ----------------------------------------------------------------------------------------------------------

  /** Sets a node's labels and its availability. */
  async putNode(nodeId: string, wish: NodeWish): Promise<NodeRecord> {
    return this.#exclusive(async () => {
      const { node, changes } = changesForNode(this.state, { nodeId, wish, now: this.#options.clock.now() });
      await this.#commit(changes);
      this.wakeForNode(node.node_id);
      return node;
    });
  }

  /** Has a node leave the cluster: at once where it is down, else when it is empty. Resolves to whether it is gone. */
  async removeNode(nodeId: string, wish: NodeWish, ifLost = false): Promise<{ node: NodeRecord; isGone: boolean }> {
    return this.#exclusive(async () => {
      const now = this.#options.clock.now();
      const { node, changes, isGone } = changesForLeave(this.state, { nodeId, wish, now, ifLost });
      if (isGone) await this.#depart(node, changes);
      else {
        await this.#commit(changes);
        this.sendAssignments(node.node_id);
        this.wakeForNode(node.node_id);
      }
      return { node, isGone };
    });
  }

  /** Has slots wait no more for their data on a node that left before; resolves to it, if there is such a one. */
  async forgetData(nodeId: string): Promise<DepartureRecord | undefined> {
    return this.#exclusive(async () => {
      const left = findDeparture(this.state, nodeId);
      if (!left) return undefined;
      await this.#commit(withoutData(this.state, left.node_id));
      this.wakeBlocked();
      return left;
    });
  }

  /** Ends the membership of a node that is to leave, and has; resolves to whether it did. */
  async finishLeaving(nodeId: string): Promise<boolean> {
    if (!hasLeft(this.state, { nodeId, term: this.term })) return false;
    return this.#exclusive(async () => {
      const node = this.state.nodes.get(nodeId);
      if (!node || !hasLeft(this.state, { nodeId, term: this.term })) return false;
      await this.#depart(node, departure(this.state, { node, now: this.#options.clock.now() }));
      return true;
    });
  }

  async #depart(node: NodeRecord, changes: readonly Change[]): Promise<void> {
    const here = this.state.allocationsOn(node.node_id).map(serviceKey);
    await this.#commit(changes);
    this.state.views.delete(node.node_id);
    this.#options.log.info("a node left the cluster", { node: node.node_id, node_name: node.node_name });
    this.directory.touchNetworks();
    this.wake(here);
    this.wakeForNode(node.node_id);
  }

  /** Which replicas are worth moving; they are moved, unless it is only to be told. */
  rebalance({ dryRun }: { dryRun: boolean }): Rebalance {
    const found = this.#moves.plan({ strategy: this.#options.strategy ?? "spread", now: this.#options.clock.now() });
    if (!dryRun) this.wake(this.#moves.begin(found.moves));
    return found;
  }

  /** What keeps a node from being empty. */
  drainWaits(node: NodeRecord): DrainWait[] {
    return this.#drains.waits(node);
  }

  /** Slots of a service that have no allocation, as of the last pass. */
  blockedOf(key: ServiceKey): readonly Blocked[] {
    return this.#blocked.get(key) ?? [];
  }

  // ---- Registries -----------------------------------------------------------------------------------------------------

  /** Keeps the login for a registry, and sends it to the nodes that pull from there. */
  async putRegistry(host: string, login: { username: string; password: string }): Promise<"created" | "updated"> {
    return this.#exclusive(async () => {
      const outcome = this.state.registries.has(host) ? "updated" : "created";
      await this.#commit([this.#registries.sealed(host, { ...login, isFirst: this.secrets.isFirst })]);
      this.#tellAll();
      return outcome;
    });
  }

  async deleteRegistry(host: string): Promise<void> {
    await this.#exclusive(async () => {
      await this.#commit([this.#registries.removal(host)]);
      this.#tellAll();
    });
  }

  #tellAll(): void {
    for (const nodeId of this.#senders.keys()) this.sendAssignments(nodeId);
  }

  // ---- What membership calls ------------------------------------------------------------------------------------------

  /** Runs `change` alone and commits what it returns; the caller sees the state after it. */
  async change(change: () => Change[]): Promise<void> {
    await this.#exclusive(() => this.#commit(change()));
  }

  /** Settles which digests services run, by what nodes found; nodes hear of it only once it is stored. */
  async settleDigests(found: readonly { allocation_id: string; digest: string }[]): Promise<void> {
    if (found.length === 0) return;
    await this.#exclusive(async () => {
      const { changes, nodes } = changesForDigests(this.state, found);
      await this.#commit(changes);
      for (const nodeId of nodes) this.sendAssignments(nodeId);
    });
  }

  /** From here on the node gets its assignments through `send`; the present ones go out at once. */
  attach(nodeId: string, send: (message: MasterMessage) => void): void {
    this.#senders.set(nodeId, send);
    this.directory.attach(nodeId, send);
    this.sendAssignments(nodeId);
  }

  detach(nodeId: string): void {
    this.#senders.delete(nodeId);
    this.directory.detach(nodeId);
  }

  /** Marks services for the next pass. */
  wake(keys: Iterable<ServiceKey>): void {
    const all = [...keys];
    for (const key of all) this.#dirty.add(key);
    this.directory.touch(all);
    if (this.#dirty.size > 0) this.#schedulePass();
  }

  /** Room may have appeared: services with blocked slots are looked at again. Returns whether there are any. */
  wakeBlocked(): boolean {
    const blocked = [...this.#blocked.keys(), ...this.#drains.retry()];
    this.wake(blocked);
    return blocked.length > 0;
  }

  /** A node came, went or changed: looks again at what it has, at what is to be on each node, and at what found no place. */
  wakeForNode(nodeId: string): void {
    this.#nodesChangedAt = this.#options.clock.now();
    this.wakeBlocked();
    this.wake(this.state.allocationsOn(nodeId).map(serviceKey));
    for (const { job_id, services } of this.state.liveJobs()) {
      const keys = services
        .filter(({ rules }) => isGlobal(rules))
        .map(({ service_name }) => ({ job_id, service_name }));
      this.wake(keys.map(serviceKey));
    }
  }

  /** Remembers which of the node's allocations ended for good, as it reported; the node is told to leave them so. */
  async recordEnds(nodeId: string): Promise<void> {
    if (changesForEnds(this.state, nodeId).length === 0) return;
    await this.change(() => changesForEnds(this.state, nodeId));
    this.sendAssignments(nodeId);
    this.wake(this.state.allocationsOn(nodeId).map(serviceKey));
    this.wakeBlocked();
  }

  /**
   * Removes the records of stopped allocations that the node's last report proves gone: it has taken in assignments without
   * them, and does not have them.
   */
  async confirmStopped(nodeId: string): Promise<void> {
    const view = this.state.views.get(nodeId);
    if (!view?.applied || !view.reported || view.applied.term !== this.term) return;
    const applied = view.applied.revision;
    const gone = this.state.allocationsOn(nodeId).filter(({ allocation_id, desired }) => {
      const toldAt = this.#stopToldAt.get(allocation_id);
      return desired === "stop" && toldAt !== undefined && toldAt <= applied && !view.statuses.has(allocation_id);
    });
    if (gone.length === 0) return;
    await this.change(() => gone.map((one) => ({ op: "delete", kind: "allocation", key: one.allocation_id })));
    this.wake(gone.map(serviceKey));
    this.wakeBlocked();
  }

  /** Sends the node the full set of what it must run. One that cannot be told goes by what it knows until the next full pass. */
  sendAssignments(nodeId: string): void {
    const send = this.#senders.get(nodeId);
    const what = "an error of Cacophony itself: a node could not be sent its assignments";
    if (send && !this.writes.isHeld) this.faults.attempt(what, () => this.#assign(nodeId, send), { node: nodeId });
  }

  #assign(nodeId: string, send: (message: MasterMessage) => void): void {
    const revision = ++this.#revision;
    const all = this.state.allocationsOn(nodeId);
    // What came to its end has to be gone, too, from a node that leaves.
    const isLeaving = this.state.nodes.get(nodeId)?.drain?.leave === true;
    const allocations = all.filter(({ desired, ended }) => desired === "run" && !(isLeaving && ended));
    for (const { allocation_id, desired } of all) {
      if (desired === "stop" && !this.#stopToldAt.has(allocation_id)) this.#stopToldAt.set(allocation_id, revision);
    }
    const order = { term: this.term, revision };
    send(assignmentsFor(nodeId, { state: this.state, registries: this.#registries, allocations, order }));
  }

  // ---- Passes ---------------------------------------------------------------------------------------------------------

  #fullPass(): number {
    for (const job of this.state.liveJobs()) this.#wakeJob(job);
    this.wake([...this.state.allocations.values()].map(serviceKey));
    // Whatever a node missed reaches it now: assignments are the full set, and taking them in again changes nothing.
    for (const nodeId of this.#senders.keys()) this.sendAssignments(nodeId);
    const { rebalance, clock, fullPassMs = FULL_PASS_MS } = this.#options;
    const since = { now: clock.now(), changedAt: this.#nodesChangedAt };
    void this.change(() => this.state.unused(clock.now())).catch((error: unknown) => this.#storeFailed(error));
    if (rebalance === "auto" && this.#moves.isCalm(since)) this.rebalance({ dryRun: false });
    return fullPassMs;
  }

  #schedulePass(delayMs = this.#passedAt + PASS_DELAY_MS - this.#options.clock.now()): void {
    if (this.#passTimer || this.#stopped) return;
    const { clock } = this.#options;
    this.#passTimer = clock.after(Math.max(0, delayMs), () => {
      this.#passTimer = undefined;
      this.#passedAt = clock.now();
      void this.#exclusive(() => this.#pass()).catch((error: unknown) => {
        this.#storeFailed(error);
        this.#schedulePass(STORE_RETRY_MS);
      });
    });
  }

  async #pass(): Promise<void> {
    const draining = this.#drains.current();
    const due = new Set(Array.from(draining.values(), (one) => one.due).flat());
    for (const key of due) this.#dirty.add(key);
    for (const key of this.#moves.waiting()) this.#dirty.add(key);
    const keys = this.#goals.withDependents(this.#dirty);
    this.#dirty.clear();
    try {
      const { plans, changes, nodes } = this.#planner.plan(keys, this.#planContext(draining));
      changes.push(...this.#goals.releases(new Set(keys.filter((key) => plans.get(key)?.released))));
      await this.#commit(changes);
      if (changes.length > 0)
        this.#options.log.debug("scheduling pass", { services: keys.length, changes: changes.length });
      for (const nodeId of nodes) this.#untold.add(nodeId);
      for (const [key, plan] of plans) {
        this.#remember(key, plan);
        this.#drains.remember(key, { plan, draining });
        this.#moves.forget(plan.unmovable);
      }
    } catch (error) {
      for (const key of keys) this.#dirty.add(key);
      throw error;
    }
    // A replica that is to stop is out of names before its node hears of it.
    this.directory.touch(keys);
    this.directory.flush();
    for (const nodeId of this.#untold) {
      this.#untold.delete(nodeId);
      this.sendAssignments(nodeId);
    }
    this.#drains.follow(due);
  }

  /** Keeps what a plan says beside its changes. */
  #remember(key: ServiceKey, { blocked, wakeAt }: Plan): void {
    if (blocked.length > 0) this.#blocked.set(key, blocked);
    else this.#blocked.delete(key);
    this.#alarms.set(key, { at: wakeAt, clock: this.#options.clock, ring: () => this.wake([key]) });
  }

  #planContext(draining = this.#drains.current()): PlanContext {
    const { clock, random, newId, strategy } = this.#options;
    return {
      draining,
      moves: this.#moves.current(),
      ...(strategy && { strategy }),
      state: this.state,
      candidates: this.state.candidates(),
      now: clock.now(),
      random,
      newId,
      blockedOf: (key) => this.blockedOf(key),
    };
  }

  #wakeJob(job: LiveJob | undefined): void {
    if (job) this.wake(job.services.map(({ service_name }) => serviceKey({ job_id: job.job_id, service_name })));
  }

  // ---- Writing --------------------------------------------------------------------------------------------------------

  /** One change of state at a time: what a change is computed from is what it is applied to. */
  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(() => this.leadership.check()).then(work);
    this.#queue = result.catch(() => {});
    return result;
  }

  async #commit(changes: readonly Change[]): Promise<void> {
    this.leadership.check();
    if (changes.length === 0 && !this.writes.isUnsure) return;
    try {
      await this.writes.commit(this.term, changes, { fenced: (error) => this.leadership.fence(error) });
    } finally {
      if (this.writes.isUnsure) this.#schedulePass(STORE_RETRY_MS);
    }
    this.state.apply(changes);
    // However the record went, nobody asks for it again.
    for (const change of changes)
      if (change.op === "delete" && change.kind === "allocation") this.#stopToldAt.delete(change.key);
  }

  /**
   * Makes the contents durable that the next commit refers to, each in a commit of its own: a Store may limit the size of one.
   * What a crash leaves unreferenced is collected by the next full pass, which waits its turn behind this change.
   */
  async #commitChunks(chunks: ReadonlyMap<string, Uint8Array>): Promise<void> {
    for (const [chunk_hash, data] of chunks) {
      if (this.state.chunks.has(chunk_hash)) continue;
      const record = { chunk_hash, data: Buffer.from(data).toString("base64") };
      // oxlint-disable-next-line no-await-in-loop -- one writer: a Store takes one commit at a time anyway
      await this.#commit([{ op: "put", kind: "chunk", record }]);
    }
  }

  #storeFailed(error: unknown): void {
    if (!this.#stopped) this.faults.tell("a scheduling pass failed and is tried again", error);
  }
}
