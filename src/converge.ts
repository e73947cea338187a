/**
 * @module What one node does next: assignments x observed containers x memory x now -> actions, statuses, new memory. Pure.
 *
 * Owns the rules of one allocation's life on its node: which container is its own, when it is started again, when an end is
 * final, when a container goes, and how all that is reported. Knows no Docker calls: `executor.ts` carries the actions out
 * and tells the outcomes back with `afterStart` and `afterFailure`.
 *
 * A container that shares something with another (`joins`) is made when that one is there, and anew whenever that one is another
 * or, where the sharing ends with its run, runs anew: its label says whom it joined. While the other is away it is left alone.
 *
 * The rules lean one way: without assignments nothing is removed, and what is running is never touched for lack of knowledge. The
 * one exception is a service that says so: when the node has had no master for as long as the container's label tells, the
 * container is removed, and made again only by assignments that come after. That is no end: it counts for nothing. A process without
 * assignments starts no such container either: the machine may have been away for long, and another node run it by now.
 */
import { type EndedContainer, knownEnd, type KnownEnd, runOf } from "./converge_ends.ts";
import { isOver, isSuccess, restartPolicyOf, restartWaitMs } from "./converge_restarts.ts";
import { describeError } from "./log.ts";
import { type AllocationStatus, LABELS } from "./model.ts";
import { cut, MAX_ERROR_CHARS } from "./model_bounds.ts";
import type { PublishedPort, PullProgress } from "./model_reports.ts";

/** Where a container is on a network. Texts are empty where Docker says nothing, as for one that does not run. */
export type ContainerEndpoint = { network: string; networkId: string; address: string; address6: string; mac: string };

/**
 * A container as Docker describes it. Times are milliseconds since 1970. Lists have no exit codes, so an ended container without
 * one is one not looked at closely yet.
 */
export type Container = EndedContainer & {
  name: string;
  labels: ReadonlyMap<string, string>;
  /** Id of the image that it was made of. */
  imageId?: string;
  state: "created" | "running" | "paused" | "restarting" | "removing" | "exited" | "dead";
  ports: readonly PublishedPort[];
  /** Its first process, as this machine numbers it; absent in lists, and when it does not run. */
  pid?: number;
  /** IPv4 addresses by network; absent in lists. */
  addresses?: readonly { network: string; address: string }[];
  /** Paths of its machine that it mounts; absent in lists. */
  binds?: readonly Bind[];
  /** The networks that it is on, with all that Docker says of it there. */
  endpoints?: readonly ContainerEndpoint[];
  createdAt: number;
  /** What its health check says while it runs; absent: it has none. */
  health?: "starting" | "healthy" | "unhealthy";
  /** Whether it has a terminal, so that what it writes comes as it is. */
  tty?: boolean;
};

/** A path of this machine, and where a container has it. */
export type Bind = { source: string; target: string };

/** What the executor knows of an allocation beyond what Docker tells. */
export type Memory = {
  /** Starts after the first one. */
  restarts: number;
  /** Whether a container of this allocation ever ran: the next start is then a restart. */
  ran: boolean;
  /** Ends in a row, each after less than the policy's window: the exponent of the backoff, and what its attempts count. */
  ends: number;
  /** Ends and refused starts in a row since it last ran for its policy's window, whatever came first. Absent: 0. */
  misses?: number;
  /** The ended run (container and start time) that `ends` counts already. */
  counted?: string;
  /** Exit code with which it ended for good: it stays ended also when somebody removes its container. */
  final?: number;
  /** How it ended last; absent: it did not, as far as is known. */
  end?: KnownEnd;
  /** The run that was noticed last, and when it was: how long it lasts is told by this machine's own clock. */
  seen?: { run: string; at: number };
  /** The run that this node ends by itself, to make the container anew or for want of a master: no end that counts. */
  spared?: string;
  /** Stopped for want of a master, after so many milliseconds: nothing runs before new assignments come. */
  isolated?: number;
  /** Tries in a row that Docker refused, and the last refusal in plain words. */
  failures: number;
  error?: string;
  /** Not started before this time. */
  startAt: number;
  /** How long that was from the end before it: after a restart of the process it is not waited for longer. */
  waitMs?: number;
  /** Not stopped or removed before this time, after a try that failed. */
  removeAt: number;
  /** What the executor is doing for it right now; it gets one thing to do at a time. */
  work?: "checking" | "pulling" | "starting" | "stopping";
  /** How far the pull of its image is. */
  pull?: PullProgress;
  /** The digest that this node found its image's tag to stand for. */
  resolved?: string;
  /** A call's outcome is unknown (a timeout): nothing is done before the next full look at Docker. */
  unsure: boolean;
};

/** What an allocation's container shares with another allocation's on the node; `running`: only while that one runs. */
export type Join = { service_name: string; allocation_id: string; running: boolean };

export type View = {
  /** What the master wants, by allocation id; undefined while this process has not heard from one. */
  assigned: ReadonlyMap<string, "run" | "stop"> | undefined;
  /** Allocations that must wait for something else on the node (the removal of their job's old volumes). */
  held: ReadonlySet<string>;
  /** By allocation, for those that share something. */
  joins?: ReadonlyMap<string, readonly Join[]>;
  /** Since when the node has had no master; undefined while a session is open. */
  isolatedSince?: number | undefined;
  /** By allocation, after how many milliseconds without a master it is to be stopped; containers have it as a label. */
  isolations?: ReadonlyMap<string, number>;
  /** Without assignments, nothing that ended is started before this time: see `REVIVE_AFTER_MS`. */
  reviveAt: number;
  /** Every container of this cluster and node. */
  containers: Iterable<Container>;
  memories: ReadonlyMap<string, Memory>;
  now: number;
  random: () => number;
};

export type Action =
  /** Starts `container`; with none, creates it first, to share with the `joined` ones if there are any. */
  | { type: "start"; allocation_id: string; container?: Container; joined?: Joined }
  /** Stops `container` within its grace period if it runs, then removes it with its anonymous volumes. */
  | { type: "remove"; allocation_id: string; container: Container };

/** Ids of the containers to share with, by service, and the label that remembers them. */
export type Joined = { containers: ReadonlyMap<string, string>; label: string };

export type Decision = {
  actions: Action[];
  /** All allocations that this node has or should have, those on their way out included. */
  statuses: AllocationStatus[];
  memories: Map<string, Memory>;
  /** When to decide again if nothing happens before: milliseconds since 1970. */
  wakeAt?: number;
  /** Allocations that an error of Cacophony itself leaves undecided: they stay as they are, and the others are decided. */
  faults: { allocation_id: string; error: unknown }[];
};

/** What could not be decided is tried again after this time, if nothing happens before. */
const FAULT_RETRY_MS = 30_000;

/**
 * A node without assignments cannot tell what crashed from what was stopped on purpose just before the process ended. A
 * master answers within a second or two; where none does, what ended is revived after this.
 */
export const REVIVE_AFTER_MS = 5_000;

/** Decides what to do for every allocation on the node. Same input, same decision. */
export function converge(view: View): Decision {
  const containersOf = group(view.containers);
  const ids = new Set([...(view.assigned?.keys() ?? []), ...[...containersOf.keys()].sort()]);
  // What is being worked on stays reported even where Docker shows no container yet: one may be about to appear. So does what was
  // stopped for want of a master, until assignments tell what becomes of it.
  for (const [id, { work, unsure, isolated }] of view.memories) {
    if (work !== undefined || unsure || isolated !== undefined) ids.add(id);
  }

  const decision: Decision = { actions: [], statuses: [], memories: new Map(), faults: [] };
  const wakeAt = (at: number) => (decision.wakeAt = Math.min(decision.wakeAt ?? Infinity, at));
  const decideOne = (id: string) => {
    const containers = containersOf.get(id) ?? [];
    const wanted = view.assigned === undefined ? "unknown" : (view.assigned.get(id) ?? "stop");
    const known = view.memories.get(id) ?? firstMemory(containers[0], view);
    let memory = wanted === "stop" ? known : takeNote(known, containers[0], view);
    if (wanted === "stop" && containers.length === 0 && memory.work === undefined && !memory.unsure) return; // gone
    if (wanted !== "stop") {
      const isolation = isolationOf({ id, container: containers[0], memory }, view);
      if (isolation && isolation.at > view.now) wakeAt(isolation.at);
      // The master counts with this moment, whatever an earlier start was to wait for.
      else if (isolation) memory = { ...memory, isolated: isolation.limitMs, removeAt: view.now };
      const soundAt = soundAtOf(memory, containers[0]);
      if (soundAt !== undefined) wakeAt(soundAt);
    }
    const partners = joinNow(view.joins?.get(id) ?? [], containersOf);
    const next = decide({ id, wanted, containers, memory, partners }, view);
    const isDue = next !== undefined && next.at <= view.now;
    // One that was only listed has no run to name: what an earlier process spared stays spared.
    const target = isDue && next.action.type === "remove" && wanted !== "stop" ? next.action.container : undefined;
    if (target?.startedAt !== undefined && target === containers[0]) memory = { ...memory, spared: runOf(target) };
    decision.memories.set(id, memory);
    const status = statusOf({ id, wanted, container: containers[0], memory, partners });
    if (next?.action.type === "start" && !isDue) status.next_start_at = Math.ceil(next.at);
    decision.statuses.push(status);
    if (isDue) decision.actions.push(next.action);
    else if (next) wakeAt(next.at);
  };
  for (const id of ids) {
    try {
      decideOne(id);
    } catch (error) {
      decision.faults.push({ allocation_id: id, error });
      decision.memories.set(id, view.memories.get(id) ?? firstMemory(undefined, view));
      decision.statuses.push(undecided(id, error, containersOf.get(id) ?? []));
      wakeAt(view.now + FAULT_RETRY_MS);
    }
  }
  // Before its first assignments a process can't tell what is over, so it forgets nothing of what an earlier one counted.
  if (view.assigned === undefined)
    for (const [id, memory] of view.memories) if (!decision.memories.has(id)) decision.memories.set(id, memory);
  return decision;
}

/** What is told of an allocation that could not be decided: what is not told counts as gone. */
function undecided(id: string, error: unknown, containers: readonly Container[]): AllocationStatus {
  const isRunning = containers.some(({ state }) => state === "running" || state === "paused");
  const why = `an internal error of Cacophony on this node, which its log has more of: ${describeError(error)}`;
  const state = isRunning ? "running" : containers.length > 0 ? "exited" : "pending";
  return { allocation_id: id, state, final: false, ports: [], restarts: 0, error: cut(why, MAX_ERROR_CHARS) };
}

/** Memory of an allocation whose container was just started. */
export function afterStart(memory: Memory): Memory {
  const { error: _error, ...rest } = memory;
  return { ...rest, restarts: memory.restarts + (memory.ran ? 1 : 0), ran: true, failures: 0 };
}

/** Memory of an allocation whose start failed, or `isRemoval`; it is tried again at `retryAt`. */
export function afterFailure(
  memory: Memory,
  failure: { error: string; retryAt: number; unsure: boolean; isRemoval?: boolean },
): Memory {
  const { error, retryAt, unsure, isRemoval = false } = failure;
  const misses = (memory.misses ?? 0) + (isRemoval ? 0 : 1);
  // A start that fails while the node has lost its master may have left what is to be stopped by now.
  const removeAt = isRemoval || memory.isolated === undefined ? retryAt : memory.removeAt;
  return { ...memory, error, failures: memory.failures + 1, misses, startAt: retryAt, removeAt, unsure };
}

/** Memory of an allocation whose node has heard from a master again, and goes by what that says. */
export function afterIsolation({ isolated: _isolated, ...memory }: Memory): Memory {
  return memory;
}

/** Memory of an allocation whose container's last lines were read, or could not be. */
export function afterTail(memory: Memory, { run, lines }: { run: string; lines: string[] }): Memory {
  if (memory.end?.run !== run) return memory;
  const { unread: _unread, ...end } = memory.end;
  return { ...memory, end: { ...end, end: { ...end.end, log_tail: lines } } };
}

type Subject = {
  id: string;
  wanted: "run" | "stop" | "unknown";
  /** The one to keep first; there is more than one only if someone copied a container. */
  containers: readonly Container[];
  memory: Memory;
  partners: Partners;
};

/** Whom its container shares with now, or the service it waits for; undefined: it shares nothing. */
type Partners = Joined | { missing: string } | undefined;

function joinNow(joins: readonly Join[], containersOf: ReadonlyMap<string, readonly Container[]>): Partners {
  if (joins.length === 0) return undefined;
  const containers = new Map<string, string>();
  const marks: string[] = [];
  for (const { service_name, allocation_id, running } of joins) {
    const partner = containersOf.get(allocation_id)?.[0];
    const isThere = partner?.startedAt !== undefined && partner.state !== "removing" && partner.state !== "dead";
    if (!isThere || (running && partner.state !== "running" && partner.state !== "paused"))
      return { missing: service_name };
    containers.set(service_name, partner.id);
    marks.push(running ? `${partner.id}@${partner.startedAt}` : partner.id);
  }
  return { containers, label: marks.join(",") };
}

function decide(subject: Subject, view: View): { action: Action; at: number } | undefined {
  const { id, wanted, containers, memory, partners } = subject;
  if (memory.work !== undefined || memory.unsure) return undefined;
  const container = containers[0];
  const remove = (target: Container) => ({
    action: { type: "remove", allocation_id: id, container: target } as const,
    at: memory.removeAt,
  });
  const start = (at: number) => ({
    action: {
      type: "start",
      allocation_id: id,
      ...(container && { container }),
      ...(partners && "label" in partners && { joined: partners }),
    } as const,
    at,
  });

  if (wanted === "stop" || memory.isolated !== undefined)
    return container && container.state !== "removing" ? remove(container) : undefined;
  if (wanted === "unknown") {
    if (!container || !isEnded(container, memory) || limitOf(container) > 0) return undefined;
    return start(Math.max(memory.startAt, view.reviveAt));
  }
  const double = containers.at(-1);
  if (double && containers.length > 1 && double.state !== "removing") return remove(double);
  if (container?.state === "dead") return remove(container);
  if (view.held.has(id) || (!container && memory.final !== undefined)) return undefined;
  if (partners) {
    if ("missing" in partners) return undefined;
    const isOutdated = container && container.labels.get(LABELS.joined) !== partners.label;
    if (isOutdated && !isFinal(container, memory)) {
      // Of one that was only listed nobody knows yet how its run ended, or which run it is that ends here.
      const isKnown = container.startedAt !== undefined || container.state === "created";
      return container.state === "removing" || !isKnown ? undefined : remove(container);
    }
  }
  return !container || isEnded(container, memory) ? start(memory.startAt) : undefined;
}

/** Whether `container` is one to start: it never ran, or it ended and its policy lets it run again. */
function isEnded(container: Container, memory: Memory): boolean {
  if (container.state === "created") return true;
  return container.state === "exited" && container.exitCode !== undefined && !isFinal(container, memory);
}

/** Whether the restart policy in the container's label leaves an ended container as it is. */
function isFinal(container: Container, memory: Memory): boolean {
  const { state, exitCode } = container;
  if (state !== "exited" || exitCode === undefined || memory.spared === runOf(container)) return false;
  return isOver(policyOf(container), { exitCode, ends: memory.ends });
}

function policyOf({ labels }: Container) {
  return restartPolicyOf(labels.get(LABELS.restart));
}

/** When an allocation is to be stopped for want of a master; undefined while there is one, and where nothing is to be stopped. */
function isolationOf(
  { id, container, memory }: { id: string; container: Container | undefined; memory: Memory },
  { isolatedSince, isolations }: View,
): { at: number; limitMs: number } | undefined {
  if (isolatedSince === undefined || memory.isolated !== undefined) return undefined;
  // What ended for good runs nowhere twice.
  if (container ? isFinal(container, memory) : memory.final !== undefined) return undefined;
  const limitMs = container?.labels.has(LABELS.isolated) ? limitOf(container) : (isolations?.get(id) ?? 0);
  return limitMs > 0 ? { at: isolatedSince + limitMs, limitMs } : undefined;
}

/** After how many milliseconds without a master a container is to be stopped; 0: never. */
function limitOf({ labels }: Container): number {
  const limitMs = Number(labels.get(LABELS.isolated) ?? 0);
  return limitMs > 0 ? limitMs : 0;
}

function firstMemory(container: Container | undefined, { now }: View): Memory {
  return {
    restarts: 0,
    ran: container?.startedAt !== undefined || container?.state === "running",
    ends: 0,
    failures: 0,
    startAt: now,
    removeAt: now,
    unsure: false,
  };
}

/** Takes note that a container runs, or of an end that was not counted yet, which sets the time of the next start. */
function takeNote(memory: Memory, container: Container | undefined, view: View): Memory {
  if (container?.state === "running") return takeNoteOfRun(memory, container, view);
  if (container?.state !== "exited" || container.exitCode === undefined || container.startedAt === undefined)
    return memory;
  const run = runOf(container);
  if (memory.spared === run) return memory;
  const end = memory.end?.run === run ? memory.end : knownEnd(container, memory.end);
  if (memory.counted === run) return memory.end === end ? memory : { ...memory, end };
  return { ...takeNoteOfEnd(memory, { ...container, exitCode: container.exitCode }, view), end, counted: run };
}

function takeNoteOfRun(memory: Memory, container: Container, { now }: View): Memory {
  let next = memory;
  if (!memory.ran || memory.failures > 0) {
    const { error: _error, ...rest } = memory;
    next = { ...rest, ran: true, failures: 0 };
  }
  if (container.startedAt === undefined) return next;
  const run = runOf(container);
  if (next.seen?.run !== run) {
    // Docker's clock is asked about what ran before this process; later ones are timed here, whoever sets a clock.
    next = { ...next, seen: { run, at: next.seen ? now : Math.min(now, container.startedAt) } };
  }
  const soundAt = soundAtOf(next, container);
  return soundAt !== undefined && soundAt <= now ? { ...next, misses: 0, ends: 0 } : next;
}

/** When what runs after ends or refused starts has run for long enough to be sound. */
function soundAtOf({ seen, misses = 0, ends }: Memory, container: Container | undefined): number | undefined {
  if (container?.state !== "running" || !seen || (misses === 0 && ends === 0)) return undefined;
  return seen.run === runOf(container) ? seen.at + policyOf(container).windowMs : undefined;
}

function takeNoteOfEnd(
  memory: Memory,
  container: Container & { exitCode: number },
  { now, random }: Pick<View, "now" | "random">,
): Memory {
  const { exitCode, startedAt = now, finishedAt = now } = container;
  const policy = policyOf(container);
  if (isSuccess(policy, exitCode)) return { ...memory, ran: true, ends: 0, misses: 0, final: exitCode };
  const isSound = finishedAt - startedAt >= policy.windowMs;
  const ends = isSound ? 1 : memory.ends + 1;
  const misses = isSound ? 1 : (memory.misses ?? 0) + 1;
  const waitMs = restartWaitMs(policy, { ends, random });
  const next: Memory = { ...memory, ran: true, ends, misses, startAt: now + waitMs, waitMs };
  return isOver(policy, { exitCode, ends }) ? { ...next, final: exitCode } : next;
}

function statusOf({
  id,
  wanted,
  container,
  memory,
  partners,
}: Omit<Subject, "containers"> & { container: Container | undefined }) {
  const final = container ? isFinal(container, memory) : memory.final !== undefined;
  const status: AllocationStatus = {
    allocation_id: id,
    state: stateOf({ wanted, container, memory }),
    final: final && wanted !== "stop",
    ports: container?.state === "running" ? [...container.ports] : [],
    restarts: memory.restarts,
  };
  if (container) status.container_id = container.id;
  if (container?.state === "running" && container.addresses?.length) status.addresses = [...container.addresses];
  if (memory.work === "pulling" && memory.pull) status.pull = memory.pull;
  if (memory.resolved !== undefined) status.resolved_digest = memory.resolved;
  const [imageId, imageDigest] = [LABELS.image, LABELS.imageDigest].map((name) => container?.labels.get(name));
  if (imageId !== undefined) status.image_id = imageId;
  if (imageDigest !== undefined) status.image_digest = imageDigest;
  if (container?.startedAt !== undefined) status.started_at = container.startedAt;
  if (container?.state === "running" && container.health !== undefined) status.health = container.health;
  if (container?.state === "exited") {
    if (container.exitCode !== undefined) status.exit_code = container.exitCode;
    if (container.finishedAt !== undefined) status.finished_at = container.finishedAt;
  }
  if (!container && memory.final !== undefined) status.exit_code = memory.final;
  if (memory.misses) status.failures = memory.misses;
  if (memory.end) status.last_end = memory.end.end;
  const error = errorOf({ container, memory, final });
  if (error !== undefined && error !== "") status.error = error;
  else if (partners && "missing" in partners && status.state === "pending")
    status.error = `waiting for the container of service ${partners.missing} beside it`;
  return status;
}

function errorOf({
  container,
  memory,
  final,
}: {
  container: Container | undefined;
  memory: Memory;
  final: boolean;
}): string | undefined {
  if (memory.isolated !== undefined)
    return `stopped: this node has had no master for ${memory.isolated / 1000} s (stop_when_isolated)`;
  if (memory.failures > 0) return memory.error;
  if (container?.state === "exited") return memory.end?.run === runOf(container) ? memory.end.words : container.error;
  return !container && final ? memory.end?.words : undefined;
}

function stateOf(subject: {
  wanted: string;
  container: Container | undefined;
  memory: Memory;
}): AllocationStatus["state"] {
  const { wanted, container, memory } = subject;
  if (wanted === "stop" || memory.work === "stopping" || (memory.isolated !== undefined && container))
    return "stopping";
  if (memory.work === "pulling" || memory.work === "starting") return memory.work;
  switch (container?.state) {
    case "running":
    case "paused":
    case "restarting":
      return "running";
    case "exited":
      return memory.failures > 0 ? "failed" : "exited";
    default:
      return memory.failures > 0 ? "failed" : memory.final !== undefined ? "exited" : "pending";
  }
}

/** Containers by allocation, the one to keep first: a running one, else the oldest. */
function group(containers: Iterable<Container>): Map<string, Container[]> {
  const groups = new Map<string, Container[]>();
  for (const container of containers) {
    const id = container.labels.get(LABELS.allocation);
    if (id === undefined || id === "") continue;
    const group = groups.get(id);
    if (group) group.push(container);
    else groups.set(id, [container]);
  }
  const rank = (container: Container) => (container.state === "running" ? 0 : container.state === "removing" ? 2 : 1);
  for (const list of groups.values()) {
    list.sort((a, b) => rank(a) - rank(b) || a.createdAt - b.createdAt || (a.id < b.id ? -1 : 1));
  }
  return groups;
}

/** Whether a listed container differs from what is known of it, as far as a list tells. */
export function looksDifferent(known: Container, listed: Container): boolean {
  return (
    known.state !== listed.state ||
    known.health !== listed.health ||
    (listed.state === "running" && JSON.stringify(known.ports) !== JSON.stringify(listed.ports))
  );
}
