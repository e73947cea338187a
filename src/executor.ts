/**
 * @module The executor: makes one node's Docker Engine run what the master assigned to the node, and says what runs.
 *
 * Owns the loop (look at Docker, converge, act, report), the fencing of assignments, and what is remembered of each
 * allocation. `converge.ts` decides, `executor_worker.ts` carries out, `executor_connection.ts` keeps in touch with the Engine. Level, not edge: Docker's events only
 * cause a closer look, and a full look every 30 s makes lost events harmless.
 *
 * What it knows comes from Docker's labels, so a new process takes over where the old one ended. What Docker can't keep is how
 * often an allocation was started again, and how it ended last; `executor_counts.ts` keeps that in a small file.
 */
import { join } from "node:path";
import { atMost, type Clock, sleep, type Timer } from "./clock.ts";
import {
  type Action,
  afterFailure,
  afterIsolation,
  afterStart,
  afterTail,
  type Container,
  converge,
  looksDifferent,
  type Memory,
  REVIVE_AFTER_MS,
} from "./converge.ts";
import type { Engine } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import type { RegistryLogin } from "./docker_images.ts";
import { Agreement } from "./executor_agreement.ts";
import { EngineConnection, heard } from "./executor_connection.ts";
import { RestartCounts } from "./executor_counts.ts";
import { removeProject } from "./executor_files.ts";
import { DiskLimit } from "./executor_disk.ts";
import { heartbeatOf } from "./executor_heartbeat.ts";
import { PulledImages } from "./executor_image_gc.ts";
import type { SecretSource } from "./executor_secrets.ts";
import { Inspections } from "./executor_inspections.ts";
import { Tails } from "./executor_tails.ts";
import { removeVolumes } from "./executor_volumes.ts";
import { heldBy, isolationsOf, joinsOf } from "./executor_wanted.ts";
import type { ExecutorOverlay } from "./executor_networks.ts";
import { drainFirst } from "./executor_stop.ts";
import { type Owner, type Wanted, Worker } from "./executor_worker.ts";
import { describeError, type Log } from "./log.ts";
import { Faults } from "./log_faults.ts";
import {
  type AllocationStatus,
  type ApiAccess,
  type Assignments,
  type EngineStatus,
  type Heartbeat,
  isOlder,
  LABELS,
  type Order,
} from "./model.ts";
import type { ServiceSpec } from "./model_spec.ts";
import type { Meter } from "./resources.ts";
import { isOlderApi } from "./engine_version.ts";

export type ExecutorOptions = {
  engine: Engine;
  meter: Meter;
  clock: Clock;
  random: () => number;
  log: Log;
  /** The node's data directory; projects and restart counts live there. */
  dataDir: string;
  /** A piece of a sent file by its hash, from the master; rejects in words. */
  fetchChunk: (chunkHash: string) => Promise<Uint8Array>;
  /** Where secrets are held, and come from; without it the node runs no services that have some. */
  secrets?: SecretSource;
  /** Called whenever `snapshot()` or `engineStatus()` may differ from before. */
  onChange: () => void;
  /** This node's part of the cluster's network. */
  overlay: ExecutorOverlay;
  /** The login of this machine's user for a registry, where there is one. */
  nodeLogin?: (host: string) => Promise<RegistryLogin | undefined>;
  /** The newest term this node ever saw: assignments of older ones are stale. */
  seenTerm: number;
  /** How long an image that was pulled here may be unused before it is removed; absent: for ever. */
  imageGcMs?: number;
  /** At which share in use, in percent, Docker's disk takes no new containers; absent: it always does. */
  diskLimit?: number;
  /** Since when the node has had no master; undefined while it has one. Absent: services are never stopped for that. `isTold`: whether this process has assignments. */
  isolatedSince?: (isTold: boolean) => number | undefined;
};

export type Snapshot = { applied?: Order; allocations: AllocationStatus[]; removals_done: string[] };

/** `start()` waits this long for the first answer: a process that starts has better to do than wait for Docker. */
const FIRST_PROBE_MS = 2_000;
/** `stop()` waits this long for calls that are under way. */
const STOP_MS = 800;
/** A job's volumes may be in use by a container that is not ours; nothing is urgent about them. */
const REMOVAL_RETRY_MS = 5_000;

const NO_SECRETS: SecretSource = { roots: [], fetch: () => Promise.reject(new Error("this node takes no secrets")) };

/** A decision that threw is made again after this time, if nothing happens before. */
const DECIDE_AGAIN_MS = 5_000;
const FAULT = "an error of Cacophony itself";

type Task = { controller: AbortController; wanted: boolean; done: Promise<void> };

export class Executor {
  readonly #options: ExecutorOptions;
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #faults: Faults;

  readonly #connection: EngineConnection;
  readonly #stopped = new AbortController();
  #loop: Promise<void> = Promise.resolve();
  readonly #firstDecision = Promise.withResolvers<void>();

  #owner: Owner | undefined;
  #worker: Worker | undefined;
  #counts: RestartCounts | undefined;
  #pulled: PulledImages | undefined;

  #assignments: Assignments | undefined;
  #wanted = new Map<string, Wanted>();
  #newest: Order;
  readonly #agreement: Agreement;

  /** Whether Docker was looked at completely once; before, nothing is reported and nothing done. */
  #looked = false;
  #reviveAt = 0;
  readonly #containers = new Map<string, Container>();
  #others: Container[] = [];
  /** Names of all volumes. */
  #volumes: string[] | undefined;
  readonly #inspections = new Inspections({
    look: async (id) => {
      const found = await this.#engine.inspect(id);
      if (found && this.#isOwn(found)) this.#containers.set(id, found);
      else this.#containers.delete(id);
    },
    onDone: (id) => {
      this.#unclear.delete(id);
      this.#wake();
    },
  });
  /** Containers whose last inspection failed. */
  readonly #unclear = new Set<string>();

  #memories = new Map<string, Memory>();
  readonly #jobOf = new Map<string, string>();
  readonly #tasks = new Map<string, Task>();
  readonly #removalsDone = new Set<string>();
  readonly #removalsUnderWay = new Set<string>();
  readonly #tails: Tails;
  readonly #disk: DiskLimit;
  #statuses: AllocationStatus[] | undefined;
  #published = "";
  #deciding = false;
  #alarm: Timer | undefined;

  constructor(options: ExecutorOptions) {
    this.#options = options;
    this.#engine = heard(options.engine, () => this.#connection.noticeAnswer());
    this.#clock = options.clock;
    this.#log = options.log;
    this.#faults = new Faults(options);
    this.#agreement = new Agreement(options);
    this.#tails = new Tails({ engine: this.#engine, clock: options.clock });
    this.#disk = new DiskLimit(options.diskLimit);
    this.#newest = { term: options.seenTerm, revision: 0 };
    this.#connection = new EngineConnection({
      ...options,
      engine: this.#engine,
      onStatus: () => {
        options.onChange();
        this.#wake();
      },
      look: () => this.#look(),
      onEvent: ({ containerId, action }) => {
        if (action === "die") this.#forgetAddresses(containerId);
        this.#inspectSoon(containerId);
      },
    });
  }

  /** Begins to probe the Engine; resolves after its first answer, or 2 s, and where the node is no member yet, with its id. */
  async start(): Promise<void> {
    const first = Promise.withResolvers<void>();
    this.#loop = this.#connection.run(this.#stopped.signal, first.resolve);
    await Promise.race([first.promise, sleep(this.#clock, FIRST_PROBE_MS, this.#stopped.signal)]);
    if (!this.#owner) await Promise.race([this.#connection.identified, this.#loop]);
  }

  /** From here on the containers of this cluster and node are looked after. Nothing of Docker's is touched before. */
  adopt({ clusterId, nodeId }: { clusterId: string; nodeId: string }): void {
    if (this.#owner) {
      if (this.#owner.clusterId === clusterId && this.#owner.nodeId === nodeId) return;
      throw new Error(`the executor belongs to node ${this.#owner.nodeId} and cannot become ${nodeId}`);
    }
    const owner = { clusterId, nodeId };
    const { random, meter, dataDir, imageGcMs } = this.#options;
    this.#owner = owner;
    const pulled = new PulledImages({
      ...this.#options,
      path: join(dataDir, "images.json"),
      engineId: () => this.#connection.status.engine_id,
    });
    this.#pulled = pulled;
    if (imageGcMs !== undefined) pulled.start({ afterMs: imageGcMs, needed: () => this.#neededImages() });
    this.#worker = new Worker({
      engine: this.#engine,
      clock: this.#clock,
      random,
      owner,
      routes: () => meter.routes(),
      projectsDir: join(dataDir, "projects"),
      nodeLogin: this.#options.nodeLogin ?? (async () => undefined),
      onNamed: (id, what) => pulled.note(id, what),
      specsOf: (jobId) => this.#specsOf(jobId),
      fetchChunk: this.#options.fetchChunk,
      overlay: this.#options.overlay,
      internalReaches: () => {
        const { status } = this.#connection;
        return status.state === "ready" && isOlderApi(status.api_version, "1.44");
      },
      secrets: this.#options.secrets ?? NO_SECRETS,
      isOwn: (container) => this.#isOwn(container),
      lookAgain: async (id) => {
        await this.#inspections.of(id);
        this.#guard();
      },
    });
    this.#counts = new RestartCounts({ path: join(dataDir, "restarts.json"), clock: this.#clock, log: this.#log });
    this.#memories = this.#counts.load();
    this.#connection.follow([`${LABELS.cluster}=${clusterId}`, `${LABELS.node}=${nodeId}`]);
  }

  /** Takes in all that the node must run; `stale` if newer assignments were seen before. */
  assign(assignments: Assignments): "accepted" | "stale" {
    if (isOlder(assignments.order, this.#newest)) return "stale";
    this.#newest = assignments.order;
    this.#assignments = assignments;
    const specs = new Map(assignments.specs.map(({ spec_hash, spec }) => [spec_hash, spec]));
    this.#wanted = new Map();
    for (const allocation of assignments.allocations) {
      const spec = specs.get(allocation.spec_hash);
      this.#jobOf.set(allocation.allocation_id, allocation.job_id);
      if (allocation.desired !== "run") continue;
      if (spec) this.#wanted.set(allocation.allocation_id, { allocation, spec });
      else this.#log.error("assignments lack a definition", { spec_hash: allocation.spec_hash });
    }
    this.#settleImages(assignments);
    this.#endIsolation();
    this.#worker?.images.keepOnly(new Set(assignments.specs.map(({ spec }) => spec.image)));
    const asked = new Set(assignments.removals.map(({ removal_id }) => removal_id));
    for (const id of this.#removalsDone) if (!asked.has(id)) this.#removalsDone.delete(id);
    // At once, so that the next snapshot speaks of these assignments.
    this.#decide();
    return "accepted";
  }

  /** What was stopped for want of a master goes by the assignments again: for the next process, too, should this one end now. */
  #endIsolation(): void {
    const isolated = [...this.#memories].filter(([, memory]) => memory.isolated !== undefined);
    for (const [id] of isolated) this.#change(id, afterIsolation);
    if (isolated.length > 0) this.#counts?.save(this.#memories);
  }

  /** Takes in what the replicas agreed on and the logins; what another login may help is tried again at once. */
  #settleImages({ images = [], logins = [] }: Assignments): void {
    this.#agreement.take(images);
    const isConcerned = this.#worker?.images.useLogins(
      new Map(logins.map(({ host, username, password }) => [host, { username, password }])),
    );
    for (const [id, { spec }] of this.#wanted) {
      if (isConcerned?.(spec.image)) this.#change(id, (memory) => ({ ...memory, startAt: this.#clock.now() }));
    }
  }

  /** The node lost its master, or has one again: some services are not to run for long without. */
  noticeMaster(): void {
    this.#wake();
  }

  engineStatus(): EngineStatus {
    return this.#connection.status;
  }

  /** What runs, as last seen; undefined until Docker was looked at completely once, and that was taken in. */
  snapshot(): Snapshot | undefined {
    if (!this.#statuses) return undefined;
    return {
      ...(this.#assignments && { applied: this.#assignments.order }),
      allocations: this.#statuses,
      removals_done: [...this.#removalsDone],
    };
  }

  heartbeat(): Omit<Heartbeat, "type" | "sequence"> {
    return heartbeatOf({
      meter: this.#options.meter,
      disk: this.#disk,
      engine: this.#connection.status,
      dataRoot: this.#connection.dataRoot,
      own: this.#containers.values(),
      others: this.#others,
      volumes: this.#volumes,
      networks: this.#looked ? this.#worker?.networks.names : undefined,
      noSecrets: this.#worker?.secrets.fault,
    });
  }

  /** What a request to this node's API from this address may do; undefined: it comes from no container of a job. */
  apiAccess(remote: string): ApiAccess | undefined {
    return this.#worker?.guard.access(remote);
  }

  /** Resolves when what the first look at Docker asked for is done: what is past its deadline is gone. At most 2 s to that look. */
  async overdueGone(): Promise<void> {
    if (this.#owner) await atMost(this.#clock, FIRST_PROBE_MS, this.#firstDecision.promise);
    await Promise.all([...this.#tasks.values()].map(({ done }) => done));
  }

  /** Ends within a second. Containers keep running, and calls that are under way end by themselves. */
  async stop(): Promise<void> {
    this.#stopped.abort();
    this.#alarm?.cancel();
    this.#counts?.save(this.#memories);
    this.#pulled?.stop();
    for (const task of this.#tasks.values()) task.controller.abort();
    const underWay = [this.#loop, ...[...this.#tasks.values()].map(({ done }) => done)];
    await atMost(this.#clock, STOP_MS, Promise.all(underWay));
  }

  // ---- What Docker has ----------------------------------------------------------------------------------------------

  /** Looks at all containers. Only those that are new or look different are inspected. */
  async #look(): Promise<void> {
    const unsure = [...this.#memories].filter(([, memory]) => memory.unsure).map(([id]) => id);
    const [all, volumes] = await Promise.all([
      this.#engine.list(),
      this.#engine.volumes([]),
      this.#worker?.networks.look(),
    ]);
    this.#volumes = volumes.map(({ name }) => name).sort();
    const own = new Map(
      all.filter((container) => this.#isOwn(container)).map((container) => [container.id, container]),
    );
    this.#others = all.filter(({ id }) => !own.has(id));
    for (const [id, listed] of own) {
      const known = this.#containers.get(id);
      if (!known) this.#containers.set(id, listed);
      if (!known || this.#unclear.has(id) || looksDifferent(known, listed)) this.#inspectSoon(id);
    }
    // A list may be older than what a call has told since: whether a container is gone, only a look at that one can tell.
    for (const id of this.#containers.keys()) if (!own.has(id)) this.#inspectSoon(id);
    for (const id of unsure) this.#change(id, (memory) => ({ ...memory, unsure: false }));
    if (!this.#looked) this.#reviveAt = this.#clock.now() + REVIVE_AFTER_MS;
    this.#looked = true;
    this.#wake();
  }

  /** Names are to lead nowhere at once: Docker answers what else there is to know only when it has cleaned up behind it. */
  #forgetAddresses(id: string): void {
    const known = this.#containers.get(id);
    if (!known?.addresses?.length) return;
    this.#containers.set(id, { ...known, addresses: [] });
    this.#wake();
  }

  #inspectSoon(id: string): void {
    this.#inspections.of(id).catch((error: unknown) => {
      this.#unclear.add(id);
      this.#log.debug("container could not be inspected", { container_id: id, error });
      this.#connection.noticeTrouble(error);
    });
  }

  #guard(): void {
    this.#worker?.guard.look({ own: [...this.#containers.values()], others: this.#others });
  }

  #isOwn({ labels }: Container): boolean {
    const owner = this.#owner;
    return (
      owner !== undefined &&
      labels.get(LABELS.cluster) === owner.clusterId &&
      labels.get(LABELS.node) === owner.nodeId &&
      Boolean(labels.get(LABELS.allocation))
    );
  }

  // ---- What to do ---------------------------------------------------------------------------------------------------

  /** Decides soon; many calls in a row make one decision. */
  #wake(): void {
    if (this.#deciding || this.#stopped.signal.aborted) return;
    this.#deciding = true;
    this.#clock.after(0, () => {
      this.#deciding = false;
      this.#decide();
    });
  }

  #decide(): void {
    try {
      this.#decideNow();
    } catch (error) {
      this.#faults.tell(`${FAULT}: what to do next could not be decided`, error);
      this.#alarm?.cancel();
      this.#alarm = this.#clock.after(DECIDE_AGAIN_MS, () => this.#wake());
    }
  }

  #decideNow(): void {
    if (!this.#looked || this.#stopped.signal.aborted) return;
    const assigned =
      this.#assignments &&
      new Map(this.#assignments.allocations.map(({ allocation_id, desired }) => [allocation_id, desired]));
    for (const container of this.#containers.values()) {
      this.#jobOf.set(container.labels.get(LABELS.allocation) ?? "", container.labels.get(LABELS.job) ?? "");
    }
    const { actions, statuses, memories, wakeAt, faults } = converge({
      assigned,
      held: heldBy(this.#assignments, { wanted: this.#wanted, removals: this.#pendingRemovals() }),
      joins: joinsOf(this.#wanted),
      isolatedSince: this.#options.isolatedSince?.(assigned !== undefined),
      isolations: isolationsOf(this.#wanted),
      reviveAt: this.#reviveAt,
      containers: this.#containers.values(),
      memories: this.#memories,
      now: this.#clock.now(),
      random: this.#options.random,
    });
    for (const { allocation_id, error } of faults)
      this.#faults.tell(`${FAULT}: an allocation could not be decided; the others go on`, error, { allocation_id });
    this.#memories = memories;
    this.#statuses = statuses;
    this.#guard();
    for (const id of this.#jobOf.keys()) if (!memories.has(id)) this.#jobOf.delete(id);
    for (const [id, task] of this.#tasks) {
      const isUnwanted = (assigned && !this.#wanted.has(id)) || memories.get(id)?.isolated !== undefined;
      if (task.wanted && isUnwanted) task.controller.abort();
    }
    this.#attempt("reading logs", () => this.#readTails());
    if (this.#connection.status.state === "ready") {
      for (const action of actions) this.#attempt(action.type, () => this.#begin(action), action.allocation_id);
      if (assigned) this.#attempt("tidying up", () => this.#tidy());
    }
    this.#alarm?.cancel();
    if (wakeAt !== undefined) {
      this.#alarm = this.#clock.after(Math.max(0, wakeAt - this.#clock.now()), () => this.#wake());
    }
    this.#publish();
    this.#firstDecision.resolve();
  }

  #attempt(what: string, work: () => void, allocation_id?: string): void {
    this.#faults.attempt(`${FAULT}: ${what}`, work, { allocation_id });
  }

  /** Reads the last lines of runs that were seen to end. */
  #readTails(): void {
    for (const [id, { end }] of this.#memories) {
      const container = end?.unread && this.#containers.get(end.run.split(" ", 1)[0] ?? "");
      if (!end?.unread) continue;
      const onRead = (lines: string[]) => {
        this.#change(id, (memory) => afterTail(memory, { run: end.run, lines }));
        this.#wake();
      };
      if (container) this.#tails.read(id, { end, container, onRead });
      else onRead([]);
    }
  }

  #publish(): void {
    this.#counts?.keep(this.#memories);
    const published = JSON.stringify([this.#newest, this.#statuses, [...this.#removalsDone]]);
    if (published === this.#published) return;
    this.#published = published;
    this.#options.onChange();
  }

  #begin(action: Action): void {
    const id = action.allocation_id;
    const controller = new AbortController();
    this.#change(id, (memory) => ({ ...memory, work: action.type === "start" ? "checking" : "stopping" }));
    // That it is no end must be known also to the process that finds the container ended.
    if (this.#memories.get(id)?.isolated !== undefined) this.#counts?.save(this.#memories);
    const done = this.#perform(action, controller.signal)
      .catch((error: unknown) => this.#fail(action, error))
      .catch((error: unknown) => {
        this.#faults.tell(`${FAULT}: ${action.type}`, error, { allocation_id: id });
        const retryAt = this.#clock.now() + REMOVAL_RETRY_MS;
        this.#change(id, (memory) => afterFailure(memory, { error: describeError(error), retryAt, unsure: true }));
      })
      .finally(() => {
        this.#tasks.delete(id);
        this.#change(id, ({ work: _work, pull: _pull, ...memory }) => memory);
        this.#wake();
      });
    this.#tasks.set(id, { controller, wanted: action.type === "start", done });
  }

  async #perform(action: Action, signal: AbortSignal): Promise<void> {
    const worker = this.#worker;
    if (!worker) return;
    const id = action.allocation_id;
    const at = (work: "pulling" | "starting") => {
      this.#change(id, (memory) => ({ ...memory, work }));
      this.#wake();
    };
    if (action.type === "remove") {
      const memory = this.#memories.get(id);
      const graceMs = await drainFirst(action.container, { ...this.#options, allocationId: id, signal, memory });
      await worker.remove(action.container, { graceMs, signal });
      this.#log.info("container removed", { allocation_id: id, container: action.container.name });
      await this.#inspections.of(action.container.id);
      return;
    }
    const wanted = this.#wanted.get(id);
    let containerId: string;
    if (action.container) {
      containerId = action.container.id;
      await this.#tails.settled(id);
      await worker.start(action.container, { wanted, signal, at });
    } else {
      if (!wanted) return;
      containerId = await worker.create(wanted, {
        signal,
        at,
        joined: action.joined,
        settled: () => this.#agreement.of(id),
        agree: (digest) => this.#agreement.reach(id, { digest, signal, tell: () => this.#propose(id, digest) }),
        onProgress: (pull) => {
          this.#change(id, (memory) => ({ ...memory, pull }));
          this.#wake();
        },
      });
    }
    this.#change(id, afterStart);
    this.#log.info("container started", { allocation_id: id, container_id: containerId.slice(0, 12) });
    await this.#inspections.of(containerId);
  }

  #propose(id: string, digest: string): void {
    this.#change(id, (memory) => ({ ...memory, resolved: digest }));
    this.#wake();
  }

  async #fail(action: Action, error: unknown): Promise<void> {
    const id = action.allocation_id;
    const memory = this.#memories.get(id);
    if (this.#stopped.signal.aborted || !memory || !this.#worker) return;
    if (error instanceof EngineError && error.code === "aborted") {
      // Between create and start Docker has a container that nobody has looked at yet.
      if (memory.work === "starting") this.#doubt(id);
      return;
    }
    const image = this.#wanted.get(id)?.spec.image ?? "";
    const failure = await this.#worker.explain(error, { image, failures: memory.failures });
    this.#log.warn(action.type === "start" ? "start failed" : "removal failed", {
      allocation_id: id,
      reason: failure.error,
      error: failure.cause,
    });
    this.#connection.noticeTrouble(failure.cause);
    if (failure.unsure) this.#doubt(id);
    // An Engine that is gone is the node's trouble, not the allocation's.
    if (failure.cause instanceof EngineError && failure.cause.code === "unavailable") return;
    const isRemoval = action.type === "remove";
    this.#change(id, (latest) => afterFailure(latest, { ...failure, unsure: latest.unsure, isRemoval }));
  }

  /** Nothing more is done for the allocation before Docker was looked at again. */
  #doubt(id: string): void {
    this.#change(id, (memory) => ({ ...memory, unsure: true }));
    this.#connection.requestLook();
  }

  #change(id: string, change: (memory: Memory) => Memory): void {
    const memory = this.#memories.get(id);
    if (memory) this.#memories.set(id, change(memory));
  }

  // ---- What jobs leave behind ---------------------------------------------------------------------------------------

  /** Removes the networks of jobs that have nothing on this node any more, and the volumes of deleted ones. */
  #tidy(): void {
    const present = new Set([...this.#containers.values()].map(({ labels }) => labels.get(LABELS.allocation)));
    const isOver = (id: string) => this.#wanted.get(id)?.allocation.ended !== undefined && !present.has(id);
    const inUse = new Set([...this.#memories.keys()].filter((id) => !isOver(id)).map((id) => this.#jobOf.get(id)));
    this.#worker?.networks
      .prune((jobId) => inUse.has(jobId))
      .catch((error: unknown) => this.#log.warn("job network could not be removed", { error }));
    const running = [...this.#wanted.values()].filter(({ allocation }) => allocation.ended === undefined);
    this.#worker?.secrets.keepOnly(running.map(({ spec }) => spec));
    for (const { removal_id, job_id } of this.#pendingRemovals()) {
      const allocations = [...this.#memories.keys()].filter((id) => this.#jobOf.get(id) === job_id);
      if (allocations.some((id) => this.#wanted.has(id) && present.has(id))) {
        // A container of the job's next life: it was held until the removal was done, so that was in an earlier process.
        this.#removalsDone.add(removal_id);
      } else if (allocations.every((id) => this.#wanted.has(id) && !this.#tasks.has(id))) {
        void this.#remove(removal_id, job_id);
      }
    }
  }

  async #remove(removalId: string, jobId: string): Promise<void> {
    if (this.#removalsUnderWay.has(removalId) || !this.#owner) return;
    this.#removalsUnderWay.add(removalId);
    try {
      await removeVolumes(this.#engine, { jobId, owner: this.#owner });
      await removeProject(join(this.#options.dataDir, "projects", jobId));
      this.#removalsDone.add(removalId);
      this.#log.info("volumes of a deleted job removed", { job_id: jobId });
    } catch (error) {
      this.#log.warn("volumes of a deleted job could not be removed", { job_id: jobId, error });
      this.#connection.noticeTrouble(error);
      await sleep(this.#clock, REMOVAL_RETRY_MS, this.#stopped.signal);
    } finally {
      this.#removalsUnderWay.delete(removalId);
      this.#wake();
    }
  }

  #pendingRemovals() {
    return (this.#assignments?.removals ?? []).filter(({ removal_id }) => !this.#removalsDone.has(removal_id));
  }

  /** What the job's containers on this node are to be. */
  #specsOf(jobId: string): ServiceSpec[] {
    return [...this.#wanted.values()].flatMap(({ allocation, spec }) => (allocation.job_id === jobId ? [spec] : []));
  }

  /** Names of the images of all that is assigned here, also as the digests that are settled; undefined without assignments. */
  #neededImages(): Set<string> | undefined {
    if (!this.#assignments) return undefined;
    return new Set([...this.#assignments.specs.map(({ spec }) => spec.image), ...this.#agreement.names(this.#wanted)]);
  }
}
