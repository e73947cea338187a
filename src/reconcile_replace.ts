/**
 * @module The one way to replace a replica by another. Pure. Whoever wants a replica gone while its slot stays (a drain, a newer
 * definition, a check that failed for good, …) says so as a `Want`; here it is decided which of them go now, in which order, how
 * many at a time, what the new one must reach before the old one goes, and when it is given up.
 *
 * `start_first`: the new allocation is placed beside the old one (`replaces`), and the old one stops when the new one is up:
 * running, and healthy where there is a check. `stop_first`: the old one stops, and the slot is placed anew when it is gone. So
 * a service is never without more than one of its replicas, but for those that were lost or did not run anyway.
 */
import type { AllocationRecord, PastAllocation, ReplaceCause } from "./model.ts";

/** A replica that is to make way. `order` where it must be another than its cause has. */
export type Want = { allocation: AllocationRecord; cause: ReplaceCause; order?: Order };

type Order = "start_first" | "stop_first";

type Rule = {
  order: Order;
  /** Most replicas of a service at a time, where the new one starts first. */
  atOnce: number;
  /** Whether those that are known not to run go at once, all of them. */
  idleAtOnce: boolean;
  /** Whether it waits for replicas that are up neither: a definition that does not come up is not to reach the next one. */
  careful: boolean;
  /** Whether it goes slower the more often it happened: it may be of no help. */
  backsOff: boolean;
};

const BASE: Rule = { order: "stop_first", atOnce: 1, idleAtOnce: false, careful: false, backsOff: false };

/** What update policies will set for `changed` is a line of this table. */
const RULES: Record<ReplaceCause, Rule> = {
  changed: { ...BASE, idleAtOnce: true, careful: true },
  misplaced: { ...BASE, idleAtOnce: true, careful: true },
  drain: { ...BASE, order: "start_first", atOnce: 10, idleAtOnce: true },
  rebalance: { ...BASE, order: "start_first" },
  unhealthy: { ...BASE, backsOff: true },
  failing: { ...BASE, backsOff: true },
  // These never come as wants: there is nothing to wait for.
  lost: BASE,
  partner: BASE,
  stuck: BASE,
};

/** How long one that takes another's place may take to come up, pulls apart, before it is given up. */
export const GATE_MS = 120_000;
/** How long a check must have failed without a break before the replica is replaced: Docker's retries are over by then. */
export const UNHEALTHY_MS = 15_000;
/** Ends and refused starts in a row after which a replica is tried on another node. */
export const FAILURES = 5;
/** For so long placement prefers other nodes to one on which a replica of the service had to be given up. */
const AVOID_MS = 600_000;
/** Between two replacements of a service that may be of no help. */
const BACKOFF = { firstMs: 60_000, capMs: 1_800_000, forgetMs: 3_600_000 };

/** One replica of the service, as it is now. */
export type Replica = {
  allocation: AllocationRecord;
  /** Running, and healthy where there is a check. */
  isUp: boolean;
  /** Known not to run. */
  isIdle: boolean;
  /** Its node can be told. */
  isReachable: boolean;
  /** Of the definition that is wanted, not ended for good, and not lost with its node: it should be up. */
  isAwaited: boolean;
  isPulling: boolean;
};

export type Situation = {
  /** Those that have their slots, and apart from them those that are to take a slot from one of them. */
  replicas: readonly Replica[];
  successors: readonly Replica[];
  /** In the order of precedence: the first of an allocation counts. */
  wants: readonly Want[];
  /** Whether something of the service is on its way out, or was just placed. */
  isMoving: boolean;
  past: readonly PastAllocation[];
  now: number;
  /** When this master began; absent: before all of it. */
  since?: number;
};

export type Choice = {
  stop: Want[];
  /** For these another one is placed now, which takes their place when it is up. */
  start: Want[];
  /** When to look again if nothing happens before. */
  wakeAt?: number;
};

/**
 * Since when something counts that lasts for `lastsMs`: from `at` on, but half of it is left at least where a master begins, which
 * heard nothing before, and whose clock may be another one.
 */
export function countedFrom(
  at: number,
  { lastsMs, since = -Infinity }: { lastsMs: number; since?: number | undefined },
) {
  return Math.max(at, since - lastsMs / 2);
}

export function chooseReplacements(situation: Situation): Choice {
  const { replicas, successors, now, since } = situation;
  const choice: Choice = { stop: [], start: [] };
  const byId = new Map(replicas.map((one) => [one.allocation.allocation_id, one]));
  let inFlight = 0;
  const paired = new Set<string>();
  for (const successor of successors) {
    const { replaces, created_at } = successor.allocation;
    const old = replaces && byId.get(replaces.allocation_id);
    if (!old) continue;
    paired.add(old.allocation.allocation_id);
    const from = countedFrom(created_at, { lastsMs: GATE_MS, since });
    if (successor.isUp) choice.stop.push({ allocation: old.allocation, cause: replaces.cause });
    else if (now - from >= GATE_MS && !successor.isPulling && successor.isReachable)
      choice.stop.push({ allocation: successor.allocation, cause: "stuck" });
    else {
      inFlight++;
      wakeBy(choice, Math.max(now + 1_000, from + GATE_MS));
    }
  }
  const wanted = new Map<string, Want>();
  for (const want of situation.wants) {
    const id = want.allocation.allocation_id;
    if (!paired.has(id) && !wanted.has(id)) wanted.set(id, want);
  }
  chooseAmong([...wanted.values()], { situation, choice, byId, inFlight });
  return choice;
}

function chooseAmong(
  wants: readonly Want[],
  {
    situation,
    choice,
    byId,
    inFlight,
  }: { situation: Situation; choice: Choice; byId: ReadonlyMap<string, Replica>; inFlight: number },
): void {
  const { replicas, now } = situation;
  const sick = new Set(wants.map(({ allocation }) => allocation.allocation_id));
  const idle: Want[] = [];
  const first: Want[] = [];
  let starting = inFlight;
  for (const want of wants) {
    const replica = byId.get(want.allocation.allocation_id);
    const rule = RULES[want.cause];
    if (!replica?.isReachable) continue;
    if (rule.backsOff) {
      const from = nextAllowed(want.cause, situation);
      if (now < from) {
        wakeBy(choice, from);
        continue;
      }
    }
    if (rule.idleAtOnce && replica.isIdle) idle.push(want);
    else if ((want.order ?? rule.order) === "stop_first") first.push(want);
    else if (starting < rule.atOnce) {
      choice.start.push(want);
      starting++;
    }
  }
  choice.stop.push(...idle);
  const [next] = first;
  if (!next || idle.length > 0 || starting > 0 || choice.stop.length > 0 || situation.isMoving) return;
  const { careful } = RULES[next.cause];
  const isUnsettled = replicas.some(
    ({ allocation, isAwaited, isUp }) => isAwaited && !isUp && (careful || !sick.has(allocation.allocation_id)),
  );
  if (!isUnsettled) choice.stop.push(next);
}

/** When the service may be helped in this way again; doubles with each time in the last hour. */
function nextAllowed(cause: ReplaceCause, { past, since }: Pick<Situation, "past" | "since">): number {
  const times = past.filter((one) => one.cause === cause).map(({ replaced_at }) => replaced_at);
  const last = Math.max(...times);
  const recent = times.filter((at) => last - at < BACKOFF.forgetMs).length;
  if (recent === 0) return 0;
  const lastsMs = Math.min(BACKOFF.capMs, BACKOFF.firstMs * 2 ** (recent - 1));
  return countedFrom(last, { lastsMs, since }) + lastsMs;
}

/** Nodes on which a replica of the service had to be given up a short while ago. */
export function nodesToAvoid(past: readonly PastAllocation[], now: number): Set<string> {
  const isBad = ({ cause }: PastAllocation) => cause === "failing" || cause === "unhealthy" || cause === "stuck";
  return new Set(past.filter((one) => isBad(one) && now - one.replaced_at < AVOID_MS).map(({ node_id }) => node_id));
}

function wakeBy(choice: Choice, at: number): void {
  choice.wakeAt = Math.min(choice.wakeAt ?? Infinity, at);
}
