/**
 * @module Further rules of the simulation: what is promised of services. Where their replicas may be placed, what they wait for, what
 * they find when they start, how often they are started, in which order they are replaced, where their data are, and what of theirs
 * goes. Each rule keeps its own account of what happened, and asks the code under test as little as it can.
 */
import { readFileSync } from "node:fs";
import { type ClusterState, serviceKey } from "../src/cluster_state.ts";
import type { Container } from "../src/converge.ts";
import { type AllocationRecord, type Change, LABELS, RECORD_KINDS } from "../src/model.ts";
import { isGlobal, isRunToEnd, type ServiceSpec, sharesOf } from "../src/model_spec.ts";
import { isStateful } from "../src/reconcile_goal.ts";
import { UNHEALTHY_MS } from "../src/reconcile_replace.ts";
import type { Scheduler } from "../src/scheduler.ts";
import { idleMachine } from "./cluster_fixture.ts";
import { DEVICES } from "./simulation_engine.ts";
import { contentOf } from "./simulation_files.ts";
import type { Machine, Process } from "./simulation_machine.ts";
import type { SimRules } from "./simulation_rules.ts";
import { isAllowed, VARIANT } from "./simulation_services.ts";
import type { VirtualClock } from "./virtual_clock.ts";

/** How often what is due is looked for. */
const LOOK_INTERVAL_MS = 250;
/** A master that is well has done by then what is due: at once, or after the Store was tried again. */
const AT_ONCE_MS = 700;
const SOON_MS = 3_000;
/** After its disk failed, a master tries again within this time. */
const STORE_RETRY_MS = 1_200;
/** A container that ends at once is not started more often than this in so long. */
const STARTS = { most: 16, withinMs: 10_000 };
/** A process that has not heard from a master yet starts nothing before: what ended may have been stopped on purpose. */
const REVIVE_MS = 4_900;
/** Restarts that a process which is killed may have had no time to write down. */
const UNWRITTEN_RESTARTS = 3;

export type PromisesOptions = {
  clock: VirtualClock;
  machines: readonly Machine[];
  scheduler: () => Scheduler | undefined;
  rules: SimRules;
  /** Whether nothing is under way to a machine. */
  isQuiet: (machine: Machine) => boolean;
  isDiskWell: () => boolean;
  diskFailures: () => number;
};

export class SimPromises {
  /** Whether somebody ever asked to delete a job with its volumes. */
  mayLoseVolumes: (jobId: string) => boolean = () => true;
  readonly #options: PromisesOptions;
  /** Services, by their jobs' incarnations, of which some replica was healthy, or came to its end with exit code 0. */
  readonly #healthy = new Set<string>();
  readonly #completed = new Set<string>();
  /** Where the data of slots are, as far as replicas with data were placed. */
  readonly #homes = new Map<string, string>();
  /** Allocations whose placing was written. */
  readonly #placed = new Set<string>();
  readonly #specs = new Map<string, ServiceSpec>();
  /** When containers were started, for those that were a short while ago. */
  readonly #starts = new Map<string, number[]>();
  readonly #restarts = new Map<string, { count: number; ids: number }>();
  /** Since when something is due that a master should do. */
  readonly #dueSince = new Map<string, number>();
  /** Until when slots wait that have to wait for a time. */
  #waits = new Map<string, { text: string; at: number }>();
  #diskFailedAt = -Infinity;
  /** How many commits the disk had refused at the last look. */
  #diskFailures = 0;
  #lookedAt = 0;
  #changes = -1;
  /** When processes began. */
  readonly #begun = new WeakMap<Process, number>();

  constructor(options: PromisesOptions) {
    this.#options = options;
    options.rules.also = {
      deciding: (change, changes) => this.#deciding(change, changes),
      written: (change) => this.#written(change),
    };
  }

  /** After each instant. */
  check(): void {
    const { clock, machines } = this.#options;
    for (const { process } of machines) if (process && !this.#begun.has(process)) this.#begun.set(process, clock.now());
    const changes = machines.reduce((sum, { engine }) => sum + engine.changes, 0);
    if (changes !== this.#changes) this.#note();
    this.#changes = changes;
    const now = clock.now();
    if (now - this.#lookedAt < LOOK_INTERVAL_MS) return;
    this.#lookedAt = now;
    this.#checkDue(now);
  }

  // ---- What happens on nodes ------------------------------------------------------------------------------------------

  /** Which services have been healthy, or completed. */
  #note(): void {
    for (const { engine } of this.#options.machines) {
      for (const { labels, health, state, exitCode } of engine.containers) {
        const isEnd = state === "exited" && exitCode === 0;
        if (health !== "healthy" && !isEnd) continue;
        const record = this.#recordOf(labels);
        if (!record) continue;
        if (isEnd) this.#completed.add(lifeOf(record));
        else this.#healthy.add(lifeOf(record));
      }
    }
  }

  /** A container has started on a machine. */
  checkRun(name: string, container: Container): void {
    const { labels, id, binds = [] } = container;
    const [service, variant] = [labels.get(LABELS.service), labels.get(VARIANT) ?? ""];
    if (service === "filed") {
      const found = binds.map(({ source }) => read(source));
      if (found.length !== 1 || found[0] !== contentOf(variant))
        this.#violate(`a container of ${variant} started on ${name} with the file ${JSON.stringify(found)}`);
    }
    const now = this.#options.clock.now();
    const { process, engine } = this.#options.machines.find((one) => one.name === name) ?? {};
    const isByIt = process && engine?.starters.get(id) === process.life;
    const ageMs = process ? now - (this.#begun.get(process) ?? now) : Infinity;
    if (
      isByIt &&
      ageMs < REVIVE_MS &&
      process.executor.snapshot()?.applied === undefined &&
      !this.#options.rules.lateOn(name)
    )
      this.#violate(`${name} started ${container.name} ${Math.round(ageMs)} ms after it began, and had no assignments`);
    const starts = (this.#starts.get(id) ?? []).filter((at) => now - at < STARTS.withinMs);
    this.#starts.set(id, [...starts, now]);
    if (starts.length >= STARTS.most)
      this.#violate(
        `container ${container.name} was started ${starts.length + 1} times within ${STARTS.withinMs / 1000} s`,
      );
  }

  /** A container is sent its stop signal: where the master has it stopped, no node in touch leads to it by its name any more. */
  checkNames(name: string, allocationId: string): void {
    const { machines, isQuiet, rules, scheduler } = this.#options;
    const views = scheduler()?.state.views;
    const record = rules.allocations.get(allocationId);
    const container = machines.find((one) => one.name === name)?.engine.running(allocationId)[0];
    const [at] = container?.addresses ?? [];
    if (record?.desired !== "stop" || !at) return;
    // An address that one replica had may be another's before the master has heard of either: the name means the first one.
    const isOther = (other: AllocationRecord) =>
      other.allocation_id !== allocationId &&
      scheduler()
        ?.state.status(other)
        ?.addresses?.some(({ address }) => address === at.address);
    if ([...rules.allocations.values()].some(isOther)) return;
    for (const machine of machines) {
      const { process } = machine;
      const isHere = process?.session.lost && views?.get(machine.identity.node_id)?.connected === true;
      if (machine.name === name || !isHere || process.life.isBehind || !isQuiet(machine)) continue;
      if (process.overlay.namesOf(record.job_id, record.service_name).includes(at.address))
        this.#violate(`${allocationId} was told to stop on ${name} while its name led there on ${machine.name}`);
    }
  }

  /** A node removes a volume: somebody asked for that, and nothing runs that has it. */
  checkVolume(name: string, jobId: string): void {
    if (!this.mayLoseVolumes(jobId)) this.#violate(`${name} removed a volume of job ${jobId}, and nobody said so`);
    const engine = this.#options.machines.find((one) => one.name === name)?.engine;
    const users = (engine?.containers ?? []).filter(
      ({ labels, state }) =>
        state === "running" && labels.get(LABELS.job) === jobId && labels.get(LABELS.service) === "db",
    );
    if (users.length > 0) this.#violate(`${name} removed a volume of job ${jobId} while ${users[0]?.name} had it`);
  }

  // ---- What the master decides ----------------------------------------------------------------------------------------

  #deciding(change: Change, changes: readonly Change[]): void {
    const { scheduler, rules } = this.#options;
    const { state } = scheduler() ?? {};
    if (!state || change.op !== "put" || change.kind !== "allocation") return;
    const { record } = change;
    const before = rules.allocations.get(record.allocation_id);
    if (!before) {
      this.#checkConstraints(record, state);
      this.#checkDependencies(record, state);
      this.#checkHome(record, state);
    } else if (before.desired === "run" && record.desired === "stop") {
      this.#checkTurn(before, { state, changes });
      this.#checkSuccessor(before, state);
      this.#checkSlot(before, state);
    }
  }

  /** Of replicas with data, those above the scale go. */
  #checkSlot(record: AllocationRecord, state: ClusterState): void {
    const service = serviceOf(record, state);
    const spec = state.specs.get(record.spec_hash);
    if (!service || !spec || !isStateful(spec) || !isLatest(record, service) || state.isLost(record.node_id)) return;
    if (record.slot <= service.scale && !state.nodes.get(record.node_id)?.drain)
      this.#violate(`${record.allocation_id} was stopped, of slot ${record.slot} of ${service.scale}, and has data`);
  }

  /** What another one is to replace goes on until that is up, but for reasons of its own. */
  #checkSuccessor(record: AllocationRecord, state: ClusterState): void {
    const service = serviceOf(record, state);
    const all = state.allocationsOf(serviceKey(record)).filter((one) => one.desired === "run");
    const successor = all.find((one) => one.replaces?.allocation_id === record.allocation_id);
    if (!service || !successor || isUp(successor, state)) return;
    // Each successor of one that stays has its slot as well.
    const slots = new Set(all.map(({ slot }) => slot));
    const { drain } = state.nodes.get(record.node_id) ?? {};
    const { process } = this.#options.machines[0] ?? {};
    const isOver = drain !== undefined && (process?.life.clock.now() ?? 0) >= drain.deadline_at;
    if (isLatest(record, service) && slots.size <= service.scale && !isOver && !state.isLost(record.node_id))
      this.#violate(
        `${record.allocation_id} was stopped before ${successor.allocation_id} was up, which is to replace it`,
      );
  }

  #checkConstraints(record: AllocationRecord, state: ClusterState): void {
    const { rules } = serviceOf(record, state) ?? {};
    if (rules && !isAllowed(rules, state.nodes.get(record.node_id)))
      this.#violate(`${record.allocation_id} was placed on ${record.node_id}, which its constraints exclude`);
  }

  /** Nothing starts before what it waits for has come true at some time in its job's life. */
  #checkDependencies(record: AllocationRecord, state: ClusterState): void {
    for (const { service_name, condition } of serviceOf(record, state)?.rules.depends_on ?? []) {
      const other = serviceOf({ ...record, service_name }, state);
      if (!other || other.scale === 0 || serviceOf(record, state)?.released) continue;
      const held = condition === "service_healthy" ? this.#healthy : this.#completed;
      if (!held.has(lifeOf({ ...record, service_name })))
        this.#violate(
          `${record.allocation_id} of ${serviceKey(record)} was placed before ${service_name} was ${condition}`,
        );
    }
  }

  /** What has its data on a node goes nowhere else, but where the operator, or who deletes them, said so. */
  #checkHome(record: AllocationRecord, state: ClusterState): void {
    const spec = state.specs.get(record.spec_hash);
    if (!spec || !isStateful(spec)) return;
    const home = this.#homes.get(RECORD_KINDS.home.key(record));
    if (home === undefined || home === record.node_id || state.nodes.get(home)?.drain?.force) return;
    this.#violate(`${record.allocation_id} was placed on ${record.node_id}, and its slot has had its data on ${home}`);
  }

  /** A roll-out goes on only when what it has replaced is up. */
  #checkTurn(record: AllocationRecord, { state, changes }: { state: ClusterState; changes: readonly Change[] }): void {
    const service = serviceOf(record, state);
    const spec = service && state.specs.get(service.spec_hash);
    if (!spec || isGlobal(service.rules) || isRunToEnd(service.rules) || record.joins) return;
    const isNew = (one: AllocationRecord) => isLatest(one, service);
    if (isNew(record) || !isUp(record, state) || sharesOf(spec).length > 0) return;
    const all = state.allocationsOf(serviceKey(record)).filter((one) => one.desired === "run" && !one.ended);
    if (all.some((one) => one.replaces && all.some(({ allocation_id: id }) => id === one.replaces?.allocation_id)))
      return;
    // Those above the scale go at once, and so does what must leave its node; what shares something goes together.
    const isTied = state
      .liveJob(record.job_id)
      ?.services.some((one) =>
        sharesOf(state.specs.get(one.spec_hash) ?? spec).some((share) => share.service_name === record.service_name),
      );
    if (all.length > service.scale || isTied || state.nodes.get(record.node_id)?.drain) return;
    const isAmongStopped = (id: string) =>
      changes.some(
        (one) =>
          one.op === "put" &&
          one.kind === "allocation" &&
          one.record.desired === "stop" &&
          one.record.allocation_id === id,
      );
    const open = all.filter(
      (one) => isNew(one) && !isUp(one, state) && !state.isLost(one.node_id) && !isAmongStopped(one.allocation_id),
    );
    if (open.length > 0 && state.views.get(record.node_id)?.state === "ready")
      this.#violate(
        `${record.allocation_id} was replaced, and its service waited for ${open[0]?.allocation_id} to come up`,
      );
  }

  #written(change: Change): void {
    if (change.op === "put" && change.kind === "spec") this.#specs.set(change.record.spec_hash, change.record.spec);
    if (
      change.op === "put" &&
      change.kind === "allocation" &&
      change.record.desired === "run" &&
      !change.record.ended
    ) {
      const { record } = change;
      this.#checkRoom(record);
      const spec = this.#specs.get(record.spec_hash);
      // What a commit of unknown outcome changed is written again as it was: that places nothing.
      const isPlaced = !this.#placed.has(record.allocation_id);
      this.#placed.add(record.allocation_id);
      if (isPlaced && spec && isStateful(spec)) this.#homes.set(RECORD_KINDS.home.key(record), record.node_id);
    }
    if (change.op === "delete" && change.kind === "home") this.#homes.delete(change.key);
  }

  /** A node gives nothing away twice. */
  #checkRoom({ node_id, allocation_id }: AllocationRecord): void {
    let [memory, devices] = [0, 0];
    for (const one of this.#options.rules.allocations.values()) {
      if ((one.node_id !== node_id && one.allocation_id !== allocation_id) || one.ended) continue;
      const { memory_bytes = 0, generic = [] } = this.#specs.get(one.spec_hash)?.reservations ?? {};
      memory += memory_bytes;
      for (const { count } of generic) devices += count;
    }
    if (memory > idleMachine().total_memory)
      this.#violate(`${allocation_id} was given memory of ${node_id} that others have`);
    if (devices > DEVICES.count) this.#violate(`${allocation_id} was given a device of ${node_id} that others have`);
  }

  // ---- What is due ----------------------------------------------------------------------------------------------------

  /** What a master that has been well for a while has not done. */
  #checkDue(now: number): void {
    const { scheduler, machines, isDiskWell, diskFailures } = this.#options;
    const { process } = machines[0] ?? {};
    const state = scheduler()?.state;
    const hasFailed = diskFailures() > this.#diskFailures;
    this.#diskFailures = diskFailures();
    if (!isDiskWell() || hasFailed) this.#diskFailedAt = now;
    if (!state || !process || process.life.isBehind || now - this.#diskFailedAt < STORE_RETRY_MS) {
      this.#dueSince.clear();
      return;
    }
    const soon = [
      ...this.#overdue(state, process.life.clock.now()),
      ...this.#tooLate(scheduler(), now),
      ...unhelped(state, process.life.clock.now()),
      ...unrecorded(state),
      ...unplaced(scheduler()),
    ];
    const due = new Map([...soon.map((what) => [what, SOON_MS] as const), ...orphans(state)]);
    for (const what of this.#dueSince.keys()) if (!due.has(what)) this.#dueSince.delete(what);
    for (const [what, limitMs] of due) {
      const since = this.#dueSince.get(what) ?? now;
      this.#dueSince.set(what, since);
      if (now - since > limitMs) this.#violate(`${what}, for ${Math.round(now - since)} ms`);
    }
    this.#checkRestarts(state);
  }

  /** What is on a node that was to be empty by now, and could have left it. */
  #overdue(state: ClusterState, now: number): string[] {
    return [...state.nodes.values()].flatMap(({ node_id, drain }) => {
      if (!drain || now < drain.deadline_at) return [];
      return state.allocationsOn(node_id).flatMap((one) => {
        const service = serviceOf(one, state);
        const spec = service && state.specs.get(service.spec_hash);
        if (!spec || one.desired !== "run" || one.ended || one.joins || state.status(one)?.final) return [];
        const isFixed =
          isGlobal(service.rules) || isStateful(spec) || sharesOf(spec).length > 0 || one.service_name === "db";
        if (isFixed || state.isLost(node_id)) return [];
        return [`${one.allocation_id} is still to run on ${node_id}, which was to be empty`];
      });
    });
  }

  /** Slots that wait for a time which has passed. */
  #tooLate(scheduler: Scheduler | undefined, now: number): string[] {
    const waits = new Map<string, { text: string; at: number }>();
    for (const { job_id, services } of scheduler?.state.liveJobs() ?? []) {
      for (const { service_name } of services) {
        const key = serviceKey({ job_id, service_name });
        for (const { slot, reasons } of scheduler?.blockedOf(key) ?? []) {
          const [text = "", seconds] = /waiting (\d+) s more.*/.exec(reasons[0] ?? "") ?? [];
          const what = `slot ${slot} of ${key}`;
          const known = this.#waits.get(what);
          if (seconds !== undefined)
            waits.set(what, known?.text === text ? known : { text, at: now + Number(seconds) * 1_000 });
        }
      }
    }
    this.#waits = waits;
    return [...waits].flatMap(([what, { at }]) => (now > at ? [`${what} still waits for a time that has passed`] : []));
  }

  /** Restarts are counted on by the next process. */
  #checkRestarts(state: ClusterState): void {
    for (const [nodeId, { statuses, reported }] of state.views) {
      const machine = this.#options.machines.find(({ identity }) => identity.node_id === nodeId);
      if (!reported || !machine) continue;
      for (const { allocation_id: id, restarts } of statuses.values()) {
        // What is to stop may be told of once more after it was gone, where a list of containers was on its way.
        if (this.#options.rules.allocations.get(id)?.desired !== "run") continue;
        const before = this.#restarts.get(id);
        this.#restarts.set(id, { count: restarts, ids: machine.ids.size });
        if (
          before &&
          before.ids === machine.ids.size &&
          before.count - restarts > UNWRITTEN_RESTARTS &&
          !machine.hasLostData
        )
          this.#violate(`${nodeId} told of ${restarts} restarts of ${id} after ${before.count}`);
      }
    }
  }

  #recordOf(labels: ReadonlyMap<string, string>): AllocationRecord | undefined {
    return this.#options.rules.allocations.get(labels.get(LABELS.allocation) ?? "");
  }

  #violate(what: string): void {
    this.#options.rules.violations.push(what);
  }
}

/** Replicas that are to run for a service that is gone. */
function orphans(state: ClusterState): [string, number][] {
  return [...state.allocations.values()].flatMap((one): [string, number][] =>
    one.desired === "run" && !serviceOf(one, state)
      ? [[`${one.allocation_id} of ${serviceKey(one)} is still to run, and nobody wants it`, AT_ONCE_MS]]
      : [],
  );
}

/** Replicas that are placed nowhere, and nothing says why. */
function unplaced(scheduler: Scheduler | undefined): string[] {
  if (!scheduler) return [];
  const { state } = scheduler;
  return state.liveJobs().flatMap(({ job_id, incarnation, services }) =>
    services.flatMap(({ service_name, scale, rules }) => {
      const key = serviceKey({ job_id, service_name });
      const wanted = isGlobal(rules) ? state.nodesFor(rules).length : scale;
      const own = state.allocationsOf(key).filter((one) => one.incarnation === incarnation);
      const slots = new Set([...own, ...scheduler.blockedOf(key)].map(({ slot }) => slot));
      // What follows another one is as many as that lets it be.
      return slots.size < wanted && service_name !== "side"
        ? [`only ${slots.size} of ${wanted} of ${key} are placed`]
        : [];
    }),
  );
}

/** Replicas that are unhealthy for longer than is waited for, while all others of their service are as they should be. */
function unhelped(state: ClusterState, now: number): string[] {
  return [...state.views].flatMap(([nodeId, { unhealthySince = new Map<string, number>(), state: is }]) =>
    [...unhealthySince].flatMap(([id, since]) => {
      const record = state.allocations.get(id);
      const service = record && serviceOf(record, state);
      if (!service || is !== "ready" || now - since < UNHEALTHY_MS || state.nodes.get(nodeId)?.drain) return [];
      const key = serviceKey(record);
      const all = state.allocationsOf(key);
      const isCalm = all.every(
        (one) =>
          one.desired === "run" && !one.replaces && isLatest(one, service) && (one === record || isUp(one, state)),
      );
      const isTried = state.histories(key).some(({ past }) => past.some(({ cause }) => cause === "unhealthy"));
      const isOther = isGlobal(service.rules) || isRunToEnd(service.rules) || all.length !== service.scale;
      return isCalm && !isTried && !isOther ? [`${id} on ${nodeId} is unhealthy, and nobody replaces it`] : [];
    }),
  );
}

function isLatest(record: AllocationRecord, service: { spec_hash: string; generation?: number }): boolean {
  return record.spec_hash === service.spec_hash && (record.generation ?? 0) === (service.generation ?? 0);
}

/** Ends that a node tells of and that are written down nowhere. */
function unrecorded(state: ClusterState): string[] {
  return [...state.allocations.values()].flatMap((one) => {
    const view = state.views.get(one.node_id);
    const isEnd = one.desired === "run" && !one.ended && view?.connected && state.status(one)?.final === true;
    return isEnd ? [`the end of ${one.allocation_id} is written down nowhere`] : [];
  });
}

function serviceOf({ job_id, incarnation, service_name }: AllocationRecord, state: ClusterState) {
  const job = state.liveJob(job_id);
  return job?.incarnation === incarnation ? job.services.find((one) => one.service_name === service_name) : undefined;
}

/** A service in one life of its job. */
function lifeOf({ incarnation, service_name }: AllocationRecord): string {
  return `${incarnation}/${service_name}`;
}

function isUp(record: AllocationRecord, state: ClusterState): boolean {
  const { state: is, health = "healthy" } = state.status(record) ?? {};
  return is === "running" && health === "healthy" && state.views.get(record.node_id)?.state === "ready";
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    return String(error);
  }
}
