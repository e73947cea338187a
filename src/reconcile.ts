/**
 * @module Reconcile: what has to change so that one service becomes what is wanted. Pure and level-triggered: it compares the
 * goal with the allocations there are, and a settled service gives an empty plan. Replica by replica, never by guess: nothing
 * is stopped because a report is missing.
 *
 * A service that runs once on each node has its slots bound to nodes; what is wanted of it follows from the nodes there are. A
 * service whose `depends_on` does not hold yet starts nothing and stops nothing of an older definition either. Services that
 * share something are planned one after the other, those that follow last; what is not beside its partner is replaced.
 */
import type { ClusterState, ServiceKey } from "./cluster_state.ts";
import { serviceKey } from "./cluster_state.ts";
import type { AllocationRecord, AllocationStatus, HomeRecord } from "./model.ts";
import { isGlobal, type ServiceRules, type ServiceSpec } from "./model_spec.ts";
import type { Candidate, PlacementRequest } from "./placement.ts";
import { chooseRemovals, hasRoom, place } from "./placement.ts";
import { matches } from "./placement_rules.ts";
import { type Need, waitingFor } from "./reconcile_order.ts";
import { allFollowers, type Bond, reunite, type Seat, Seats, unitOf } from "./reconcile_together.ts";

/** What a service should be. */
export type Goal = {
  job_id: string;
  service_name: string;
  incarnation: string;
  job_version: number;
  spec_hash: string;
  spec: ServiceSpec;
  /** How many are wanted; of a service that runs once on each node, as many as there are nodes for it. */
  scale: number;
  /** Absent: 0. */
  generation?: number;
  rules: ServiceRules;
  rules_since: number;
  released: boolean;
  /** `rules.depends_on`, with what those services should be. */
  needs: readonly Need[];
  /** Absent: it shares nothing with other services. */
  bond?: Bond;
};

/** A slot that has no allocation, and why: one sentence per reason. */
export type Blocked = { slot: number; reasons: string[] };

export type Plan = {
  place: AllocationRecord[];
  stop: AllocationRecord[];
  /** Slots whose data live on a node from now on. */
  homes: HomeRecord[];
  blocked: Blocked[];
  /** What the service depends on holds for the first time: to be remembered. */
  released: boolean;
};

/** Everything from outside that a plan depends on. `candidates` are counted into: one list serves a whole pass. */
export type PlanContext = {
  state: ClusterState;
  candidates: Candidate[];
  now: number;
  random: () => number;
  newId: () => string;
  /** Slots of a service without an allocation, as of the last pass. */
  blockedOf: (key: ServiceKey) => readonly Blocked[];
  /** Plans of this pass so far: a service that follows another is planned after it. */
  planned?: ReadonlyMap<string, Plan>;
};

/** Blocked slots listed one by one; all slots of a service mostly wait for the same thing. */
export const MAX_BLOCKED = 100;

/** Plan for a service that is wanted. */
export function reconcileService(goal: Goal, context: PlanContext): Plan {
  const { state } = context;
  const waiting = goal.released ? [] : waitingFor(goal, context);
  const released = !goal.released && waiting.length === 0;
  const plan: Plan = { place: [], stop: [], homes: [], blocked: [], released };
  const all = state.allocationsOf(serviceKey(goal));
  const mine = all.filter((allocation) => allocation.incarnation === goal.incarnation);
  const { job_id, spec, rules, bond } = goal;
  // What follows brings its data along: all of a unit stay where those are.
  const stateful = isStateful(spec) || allFollowers(bond?.followers ?? []).some((one) => isStateful(one.spec));
  const seats = bond?.follows && new Seats(goal, { bond, state, planned: context.planned });

  let live = mine.filter((allocation) => allocation.desired === "run");
  const isStranded = (one: AllocationRecord) =>
    state.isDown(one.node_id) && !staysWithNode(one, { goal, state, stateful });
  const lost = live.filter((one) => {
    if (!seats && !one.joins) return isStranded(one);
    if (seats && one.ended !== undefined) return false;
    if (seats && bond?.leaders.length) return seats.isApart(one);
    return (!stateful && seats?.isApart(one)) || hasLostPartner(one, context) || isStranded(one);
  });
  live = without(live, lost);

  const request: PlacementRequest = { job_id, spec, rules, own: countByNode(live) };
  const excess = isGlobal(rules)
    ? chooseMisplaced(live, goal, state)
    : chooseExcess(live, { goal, context, request, stateful });
  live = without(live, excess);

  plan.stop.push(
    ...all.filter((allocation) => allocation.desired === "run" && allocation.incarnation !== goal.incarnation),
  );
  plan.stop.push(...lost, ...excess);

  const isRejoining = seats !== undefined && lost.length > 0;
  const missing = { goal, context, request, stateful, live, mine, waiting, isRejoining, ...(seats && { seats }) };
  if (isGlobal(rules)) placeOnEach(plan, missing);
  else placeMissing(plan, missing);
  plan.stop.push(...chooseOutdated(plan, missing));
  return plan;
}

/** Plan for a service that is wanted no more: its document or its whole job is gone. */
export function reconcileRemoved(allocations: readonly AllocationRecord[]): Plan {
  const stop = allocations.filter(({ desired }) => desired === "run");
  return { place: [], stop, homes: [], blocked: [], released: false };
}

/** Whether a service writes to its node's disk, so that its slots stay where their data are. */
export function isStateful(spec: ServiceSpec): boolean {
  return spec.mounts.some(
    (mount) => !mount.read_only && (mount.type === "bind" || (mount.type === "volume" && mount.volume !== undefined)),
  );
}

/**
 * A slot with data waits for its node, and so does one that is there for its node; one that ended for good has nothing left to
 * run elsewhere.
 */
function staysWithNode(
  allocation: AllocationRecord,
  { goal, state, stateful }: { goal: Goal; state: ClusterState; stateful: boolean },
): boolean {
  return stateful || isGlobal(goal.rules) || hasEnded(allocation, state);
}

/** Whether what an allocation of an older definition joined is to run no more. */
function hasLostPartner({ joins = [] }: AllocationRecord, { state, planned }: PlanContext): boolean {
  return joins.some(({ allocation_id: id }) => {
    const other = state.allocations.get(id);
    const plan = other && planned?.get(serviceKey(other));
    return other?.desired !== "run" || plan?.stop.some(({ allocation_id }) => allocation_id === id) === true;
  });
}

function hasEnded(allocation: AllocationRecord, state: ClusterState): boolean {
  return allocation.ended !== undefined || state.status(allocation)?.final === true;
}

/** Of a service that runs once on each node: replicas whose node has left or matches no more, and second ones on one node. */
function chooseMisplaced(live: readonly AllocationRecord[], { rules }: Goal, state: ClusterState): AllocationRecord[] {
  const free = new Set(state.nodesFor(rules).map(({ node_id }) => node_id));
  return live.filter(({ node_id }) => !free.delete(node_id));
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
  // The slots of what belongs together must match.
  if (stateful || goal.bond) return live.toSorted((a, b) => b.slot - a.slot).slice(0, count);
  const idle = live.filter((allocation) => isKnownIdle(allocation, context.state)).slice(0, count);
  const rest = chooseRemovals(without(live, idle), {
    count: count - idle.length,
    request,
    candidates: context.candidates,
  });
  return [...idle, ...rest];
}

/**
 * Which replicas of an older definition, or on a node that a newer document excludes, stop now: all that do not run anyway, and
 * one of those that do once nothing of the service is on its way up or down (a replica with a health check is up when it is
 * healthy). A node that can't be told to stop anything is left out, so it can't hold up the others.
 */
function chooseOutdated(
  plan: Plan,
  { goal, context, live, mine, request, stateful, waiting, isRejoining }: Missing,
): AllocationRecord[] {
  if (waiting.length > 0 || isRejoining) return [];
  const { state } = context;
  const excluded = stateful || goal.bond?.follows ? new Set<string>() : excludedNodes(goal, { context, request });
  const isOutdated = (one: AllocationRecord) =>
    !isCurrent(one, goal) || (one.job_version < goal.rules_since && excluded.has(one.node_id));
  const reachable = live.filter((one) => isOutdated(one) && state.views.get(one.node_id)?.state === "ready");
  const idle = reachable.filter((one) => isKnownIdle(one, state) || one.ended !== undefined);
  const onTheWay = mine.some((allocation) => {
    if (state.isDown(allocation.node_id)) return false;
    if (allocation.desired === "stop") return true;
    if (!isCurrent(allocation, goal) || hasEnded(allocation, state)) return false;
    return !isUp(state.status(allocation));
  });
  const isSick = (one: AllocationRecord) => state.status(one)?.health === "unhealthy";
  const running = without(reachable, idle).toSorted((a, b) => Number(isSick(b)) - Number(isSick(a)) || a.slot - b.slot);
  return onTheWay || plan.place.length > 0 || idle.length > 0 ? idle : running.slice(0, 1);
}

/** Nodes that do not match the service's constraints; none while there is no other node to move to. */
function excludedNodes(
  { rules }: Goal,
  { context, request }: { context: PlanContext; request: PlacementRequest },
): Set<string> {
  if (rules.constraints.length === 0) return new Set();
  const excluded = context.candidates.filter((candidate) => !matches(rules.constraints, candidate));
  if (excluded.length === 0 || !hasRoom(request, context.candidates)) return new Set();
  return new Set(excluded.map(({ node_id }) => node_id));
}

function isUp(status: AllocationStatus | undefined): boolean {
  return status?.state === "running" && (status.health === undefined || status.health === "healthy");
}

/** Whether an allocation was made for what the goal is now. */
function isCurrent({ spec_hash, generation = 0 }: AllocationRecord, goal: Goal): boolean {
  return spec_hash === goal.spec_hash && generation === (goal.generation ?? 0);
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
  /** Why nothing of the service may start yet. */
  waiting: string[];
  /** Where its slots go, if it follows another service. */
  seats?: Seats;
  /** Whether replicas go with the partners that they joined: those of an older definition mostly go that way, too. */
  isRejoining: boolean;
};

function placeMissing(plan: Plan, { goal, context, request, stateful, live, mine, waiting, seats }: Missing): void {
  const { state } = context;
  const taken = new Set(live.map(({ slot }) => slot));
  const stoppingSlots = new Set(
    [...mine.filter(({ desired }) => desired === "stop"), ...plan.stop]
      .filter(({ node_id }) => !state.isDown(node_id))
      .map(({ slot }) => slot),
  );
  const hold = reasonsToHold(goal, { state, waiting });
  let refusedAll: { reasons: string[]; size: number } | undefined;
  for (let slot = 1, missing = goal.scale - live.length; missing > 0; slot++) {
    if (taken.has(slot)) continue;
    missing--;
    if (hold) {
      if (plan.blocked.length === MAX_BLOCKED) break;
      block(plan, slot, hold);
    } else if (stoppingSlots.has(slot)) block(plan, slot, [PREVIOUS_STOPS]);
    else {
      const seat = seats?.of({ slot });
      const unit = seat ? [] : unitOf(goal.bond?.followers ?? [], { slot, scale: goal.scale });
      if (refusedAll?.size === unit.length) {
        if (plan.blocked.length === MAX_BLOCKED) break;
        block(plan, slot, refusedAll.reasons);
        continue;
      }
      const spot = spotOf(slot, { goal, stateful, seat, unit, state });
      if ("why" in spot) {
        block(plan, slot, [spot.why]);
        continue;
      }
      const placement = place({ ...request, ...spot }, context.candidates, context.random);
      if ("node_id" in placement)
        accept(plan, { goal, slot, node_id: placement.node_id, stateful, context, ...joinsOf(seat) });
      else {
        block(plan, slot, placement.reasons);
        // What refused an unpinned slot refuses every later one of the same service: nothing was placed in between.
        if (!stateful && !seat) refusedAll = { reasons: placement.reasons, size: unit.length };
      }
    }
  }
}

/** What is settled about where a slot goes: beside its partner, with all that follows it, and where their data are. */
function spotOf(
  slot: number,
  {
    goal,
    stateful,
    seat,
    unit,
    state,
  }: { goal: Goal; stateful: boolean; seat: Seat | undefined; unit: ReturnType<typeof unitOf>; state: ClusterState },
): Pick<PlacementRequest, "pinned" | "beside"> | { why: string } {
  if (seat && "why" in seat) return seat;
  const { job_id } = goal;
  const pins = [
    ...(stateful ? [pinOf(goal, slot, state)] : []),
    ...unit.map(({ follower: { service_name, spec }, slot: its }) =>
      isStateful(spec) ? pinOf({ job_id, service_name }, its, state, `of service ${service_name} `) : undefined,
    ),
  ].filter((pin) => pin !== undefined);
  if (seat) pins.push({ node_id: seat.node_id, reason: `it goes beside ${seat.beside}` });
  const [pinned, ...others] = pins;
  const other = others.find(({ node_id }) => node_id !== pinned?.node_id);
  if (pinned && other) {
    return { why: `${pinned.reason}, but ${other.reason}${seat ? `: ${reunite(job_id)}` : ""}` };
  }
  const beside = unit.map(({ follower: { service_name, spec, rules } }) => ({ service_name, spec, rules }));
  return { ...(pinned && { pinned }), ...(beside.length > 0 && { beside }) };
}

function joinsOf(seat: Seat | undefined): Pick<AllocationRecord, "joins"> {
  return seat && "joins" in seat && seat.joins.length > 0 ? { joins: seat.joins } : {};
}

/** One replica on each node that has none; the slot is the one that the node had, or the lowest free one. */
function placeOnEach(plan: Plan, { goal, context, request, live, mine, waiting, seats }: Missing): void {
  const { state } = context;
  const covered = new Set(live.map(({ node_id }) => node_id));
  const stopping = new Map(
    [...mine.filter(({ desired }) => desired === "stop"), ...plan.stop]
      .filter(({ node_id }) => !state.isDown(node_id))
      .map(({ node_id, slot }) => [node_id, slot]),
  );
  const taken = new Set([...live.map(({ slot }) => slot), ...stopping.values()]);
  const hold = reasonsToHold(goal, { state, waiting });
  for (const { node_id, node_name } of state.nodesFor(goal.rules)) {
    if (covered.has(node_id)) continue;
    const previous = stopping.get(node_id);
    if (previous !== undefined) {
      block(plan, previous, [PREVIOUS_STOPS]);
      continue;
    }
    let slot = 1;
    while (taken.has(slot)) slot++;
    taken.add(slot);
    if (hold) {
      block(plan, slot, hold);
      continue;
    }
    const pinned = { node_id, reason: `this slot is for node ${node_name}` };
    const seat = seats?.of({ slot, node_id });
    if (seat && "why" in seat) {
      block(plan, slot, [`${pinned.reason}; ${seat.why}`]);
      continue;
    }
    const beside = unitOf(seat ? [] : (goal.bond?.followers ?? []), { slot, scale: 1 }).map(({ follower }) => follower);
    const spot = { pinned, ...(beside.length > 0 && { beside }) };
    const placement = place({ ...request, ...spot }, context.candidates, context.random);
    if ("reasons" in placement) block(plan, slot, placement.reasons);
    // Its data need no note of where they are: each node has its own.
    else accept(plan, { goal, slot, node_id, stateful: false, context, ...joinsOf(seat) });
  }
}

const PREVIOUS_STOPS = "waiting for this slot's previous container to stop";

/** Why no slot of the service may be placed at all; undefined: nothing stands in the way. */
function reasonsToHold(
  goal: Goal,
  { state, waiting }: { state: ClusterState; waiting: string[] },
): string[] | undefined {
  const predecessor = waitsForPredecessor(goal, state);
  if (predecessor !== undefined) return [predecessor];
  return waiting.length > 0 ? waiting : undefined;
}

function accept(
  plan: Plan,
  {
    goal,
    slot,
    node_id,
    stateful,
    context,
    joins,
  }: Pick<AllocationRecord, "slot" | "node_id" | "joins"> & { goal: Goal; stateful: boolean; context: PlanContext },
): void {
  const { job_id, service_name, incarnation, spec_hash, job_version, generation } = goal;
  plan.place.push({
    allocation_id: context.newId(),
    job_id,
    incarnation,
    service_name,
    slot,
    node_id,
    spec_hash,
    job_version,
    ...(generation !== undefined && { generation }),
    desired: "run",
    created_at: context.now,
    ...(joins && { joins }),
  });
  if (stateful && context.state.homeOf({ job_id, service_name, slot })?.node_id !== node_id) {
    plan.homes.push({ job_id, service_name, slot, node_id });
  }
}

function pinOf(
  { job_id, service_name }: Pick<Goal, "job_id" | "service_name">,
  slot: number,
  state: ClusterState,
  whose = "",
): PlacementRequest["pinned"] {
  const home = state.homeOf({ job_id, service_name, slot });
  const node = home && state.nodes.get(home.node_id);
  return node && { node_id: node.node_id, reason: `the data of slot ${slot} ${whose}are on node ${node.node_name}` };
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
