/**
 * @module Reconcile: what has to change so that one service becomes what is wanted. Pure and level-triggered: it compares the
 * goal with the allocations there are, and a settled service gives an empty plan. Replica by replica, never by guess: nothing
 * is stopped because a report is missing.
 */
import type { ClusterState } from "./cluster_state.ts";
import { serviceKey } from "./cluster_state.ts";
import type { AllocationRecord, HomeRecord, ServiceSpec } from "./model.ts";
import type { Candidate, PlacementRequest } from "./placement.ts";
import { chooseRemovals, place } from "./placement.ts";

/** What a service should be. */
export type Goal = {
  job_id: string;
  service_name: string;
  incarnation: string;
  job_version: number;
  spec_hash: string;
  spec: ServiceSpec;
  scale: number;
};

/** A slot that has no allocation, and why: one sentence per reason. */
export type Blocked = { slot: number; reasons: string[] };

export type Plan = {
  place: AllocationRecord[];
  stop: AllocationRecord[];
  /** Slots whose data live on a node from now on. */
  homes: HomeRecord[];
  blocked: Blocked[];
};

/** Everything from outside that a plan depends on. `candidates` are counted into: one list serves a whole pass. */
export type PlanContext = {
  state: ClusterState;
  candidates: Candidate[];
  now: number;
  random: () => number;
  newId: () => string;
};

/** Blocked slots listed one by one; all slots of a service mostly wait for the same thing. */
export const MAX_BLOCKED = 100;

/** Plan for a service that is wanted. */
export function reconcileService(goal: Goal, context: PlanContext): Plan {
  const { state } = context;
  const plan: Plan = { place: [], stop: [], homes: [], blocked: [] };
  const all = state.allocationsOf(serviceKey(goal));
  const mine = all.filter((allocation) => allocation.incarnation === goal.incarnation);
  const stateful = isStateful(goal.spec);

  let live = mine.filter((allocation) => allocation.desired === "run");
  const lost = live.filter(
    (allocation) => state.isDown(allocation.node_id) && !staysWithNode(allocation, { state, stateful }),
  );
  live = without(live, lost);

  const request: PlacementRequest = { job_id: goal.job_id, spec: goal.spec, own: countByNode(live) };
  const excess = chooseExcess(live, { goal, context, request, stateful });
  live = without(live, excess);

  const outdated = chooseOutdated(live, { goal, state, mine });
  plan.stop.push(
    ...all.filter((allocation) => allocation.desired === "run" && allocation.incarnation !== goal.incarnation),
  );
  plan.stop.push(...lost, ...excess, ...outdated);

  placeMissing(plan, { goal, context, request, stateful, live, mine });
  return plan;
}

/** Plan for a service that is wanted no more: its document or its whole job is gone. */
export function reconcileRemoved(allocations: readonly AllocationRecord[]): Plan {
  return { place: [], stop: allocations.filter(({ desired }) => desired === "run"), homes: [], blocked: [] };
}

/** Whether a service writes to its node's disk, so that its slots stay where their data are. */
export function isStateful(spec: ServiceSpec): boolean {
  return spec.mounts.some(
    (mount) => !mount.read_only && (mount.type === "bind" || (mount.type === "volume" && mount.volume !== undefined)),
  );
}

/** A slot with data waits for its node; one that ended for good has nothing left to run elsewhere. */
function staysWithNode(
  allocation: AllocationRecord,
  { state, stateful }: { state: ClusterState; stateful: boolean },
): boolean {
  return stateful || state.status(allocation)?.final === true;
}

/** Replicas above the scale: those that do not run first, then by placement's order; of slots with data, the highest. */
function chooseExcess(
  live: readonly AllocationRecord[],
  {
    goal,
    context,
    request,
    stateful,
  }: { goal: Goal; context: PlanContext; request: PlacementRequest; stateful: boolean },
): AllocationRecord[] {
  const count = live.length - goal.scale;
  if (count <= 0) return [];
  if (stateful) return live.toSorted((a, b) => b.slot - a.slot).slice(0, count);
  const idle = live.filter((allocation) => isKnownIdle(allocation, context.state)).slice(0, count);
  const rest = chooseRemovals(without(live, idle), {
    count: count - idle.length,
    request,
    candidates: context.candidates,
  });
  return [...idle, ...rest];
}

/**
 * Which replicas of an older definition stop now: all that do not run anyway, and one of those that do once nothing of the
 * service is on its way up or down. A node that can't be told to stop anything is left out, so it can't hold up the others.
 */
function chooseOutdated(
  live: readonly AllocationRecord[],
  { goal, state, mine }: { goal: Goal; state: ClusterState; mine: readonly AllocationRecord[] },
): AllocationRecord[] {
  const reachable = live.filter(
    ({ node_id, spec_hash }) => spec_hash !== goal.spec_hash && state.views.get(node_id)?.state === "ready",
  );
  const idle = reachable.filter((allocation) => isKnownIdle(allocation, state));
  const onTheWay = mine.some((allocation) => {
    if (state.isDown(allocation.node_id)) return false;
    if (allocation.desired === "stop") return true;
    const status = state.status(allocation);
    return allocation.spec_hash === goal.spec_hash && status?.state !== "running" && status?.final !== true;
  });
  const running = without(reachable, idle).toSorted((a, b) => a.slot - b.slot);
  return onTheWay || idle.length > 0 ? idle : running.slice(0, 1);
}

/** Whether a fresh report says that the allocation does not run. No report: not known, so no. */
function isKnownIdle(allocation: AllocationRecord, state: ClusterState): boolean {
  const view = state.views.get(allocation.node_id);
  if (!view?.reported || !view.connected) return false;
  const status = view.statuses.get(allocation.allocation_id);
  return status !== undefined && status.state !== "running" && status.state !== "stopping" && !status.final;
}

type Missing = {
  goal: Goal;
  context: PlanContext;
  request: PlacementRequest;
  stateful: boolean;
  live: readonly AllocationRecord[];
  mine: readonly AllocationRecord[];
};

function placeMissing(plan: Plan, { goal, context, request, stateful, live, mine }: Missing): void {
  const { state } = context;
  const taken = new Set(live.map(({ slot }) => slot));
  const stoppingSlots = new Set(
    [...mine.filter(({ desired }) => desired === "stop"), ...plan.stop]
      .filter(({ node_id }) => !state.isDown(node_id))
      .map(({ slot }) => slot),
  );
  const predecessor = waitsForPredecessor(goal, state);
  let refusedAll: string[] | undefined;
  for (let slot = 1, missing = goal.scale - live.length; missing > 0; slot++) {
    if (taken.has(slot)) continue;
    missing--;
    if (predecessor !== undefined) {
      if (plan.blocked.length === MAX_BLOCKED) break;
      block(plan, slot, [predecessor]);
    } else if (stoppingSlots.has(slot)) block(plan, slot, ["waiting for this slot's previous container to stop"]);
    else if (refusedAll) {
      if (plan.blocked.length === MAX_BLOCKED) break;
      block(plan, slot, refusedAll);
    } else {
      const pinned = stateful ? pinOf(goal, slot, state) : undefined;
      const placement = place(pinned ? { ...request, pinned } : request, context.candidates, context.random);
      if ("node_id" in placement) accept(plan, { goal, slot, node_id: placement.node_id, stateful, context });
      else {
        block(plan, slot, placement.reasons);
        // What refused an unpinned slot refuses every later one of the same service: nothing was placed in between.
        if (!stateful) refusedAll = placement.reasons;
      }
    }
  }
}

function accept(
  plan: Plan,
  {
    goal,
    slot,
    node_id,
    stateful,
    context,
  }: { goal: Goal; slot: number; node_id: string; stateful: boolean; context: PlanContext },
): void {
  const { job_id, service_name, incarnation, spec_hash, job_version } = goal;
  plan.place.push({
    allocation_id: context.newId(),
    job_id,
    incarnation,
    service_name,
    slot,
    node_id,
    spec_hash,
    job_version,
    desired: "run",
    created_at: context.now,
  });
  if (stateful && context.state.homeOf({ job_id, service_name, slot })?.node_id !== node_id) {
    plan.homes.push({ job_id, service_name, slot, node_id });
  }
}

function pinOf({ job_id, service_name }: Goal, slot: number, state: ClusterState): PlacementRequest["pinned"] {
  const home = state.homeOf({ job_id, service_name, slot });
  const node = home && state.nodes.get(home.node_id);
  return node && { node_id: node.node_id, reason: `the data of slot ${slot} are on node ${node.node_name}` };
}

/** What of a deleted job with the same id is still being removed on a node that can do it. */
function waitsForPredecessor({ job_id, incarnation }: Goal, state: ClusterState): string | undefined {
  for (const service_name of state.allocatedServices(job_id)) {
    const old = state
      .allocationsOf(serviceKey({ job_id, service_name }))
      .filter((allocation) => allocation.incarnation !== incarnation);
    if (old.some(({ node_id }) => !state.isDown(node_id)))
      return "waiting for the containers of the deleted job with this id to stop";
  }
  const removal = [...state.removals.values()].find((one) => one.job_id === job_id && !state.isDown(one.node_id));
  if (!removal) return undefined;
  const name = state.nodes.get(removal.node_id)?.node_name ?? removal.node_id;
  return `waiting for node ${name} to remove the volumes of the deleted job with this id`;
}

function block(plan: Plan, slot: number, reasons: string[]): void {
  if (plan.blocked.length < MAX_BLOCKED) plan.blocked.push({ slot, reasons });
}

function countByNode(allocations: readonly AllocationRecord[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { node_id } of allocations) counts.set(node_id, (counts.get(node_id) ?? 0) + 1);
  return counts;
}

function without<T>(list: readonly T[], removed: readonly T[]): T[] {
  if (removed.length === 0) return [...list];
  const set = new Set(removed);
  return list.filter((item) => !set.has(item));
}
