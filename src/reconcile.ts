/**
 * @module Reconcile: what has to change so that one service becomes what is wanted. Pure and level-triggered: it compares the
 * goal with the allocations there are, and a settled service gives an empty plan. Replica by replica, never by guess: nothing
 * is stopped because a report is missing.
 *
 * A service that runs once on each node has its slots bound to nodes; what is wanted of it follows from the nodes there are. A
 * service whose `depends_on` does not hold yet starts nothing and stops nothing of an older definition either. Services that
 * share something are planned one after the other, those that follow last; what is not beside its partner is replaced.
 */
import type { ClusterState } from "./cluster_state.ts";
import { serviceKey } from "./cluster_state.ts";
import type { AllocationRecord } from "./model.ts";
import { isGlobal } from "./model_spec.ts";
import type { PlacementRequest } from "./placement.ts";
import { chooseRemovals, hasRoom, place } from "./placement.ts";
import {
  block,
  emptyPlan,
  type Goal,
  hasData,
  hasEnded,
  isCurrent,
  isKnownIdle,
  isStateful,
  isUp,
  MAX_BLOCKED,
  mayRun,
  type Missing,
  mobilityOf,
  type Plan,
  type PlanContext,
  stoppedAloneAt,
  wakeBy,
  without,
} from "./reconcile_goal.ts";
import { isolationWait } from "./reconcile_isolation.ts";
import { waitingFor } from "./reconcile_order.ts";
import { chooseReplacements, nodesToAvoid, type Replica } from "./reconcile_replace.ts";
import { reunite, type Seat, Seats, unitOf } from "./reconcile_together.ts";
import { wantsOf } from "./reconcile_wants.ts";

/** Plan for a service that is wanted. */
export function reconcileService(goal: Goal, context: PlanContext): Plan {
  const { state } = context;
  const waiting = goal.released ? [] : waitingFor(goal, context);
  const released = !goal.released && waiting.length === 0;
  const plan: Plan = { ...emptyPlan(), released };
  const all = state.allocationsOf(serviceKey(goal));
  const mine = all.filter((allocation) => allocation.incarnation === goal.incarnation);
  const { job_id, spec, rules, bond } = goal;
  const stateful = hasData(goal);
  const seats = bond?.follows && new Seats(goal, { bond, state, planned: context.planned });

  let live = mine.filter((allocation) => allocation.desired === "run");
  const lost = chooseLost(plan, { live, goal, context, stateful, seats });
  live = without(live, lost);
  const ids = new Set(live.map(({ allocation_id }) => allocation_id));
  // Beside those that have a slot, one may be about to take it.
  const successors = live.filter(({ replaces }) => replaces && ids.has(replaces.allocation_id));
  live = without(live, successors);

  const past = state.histories(serviceKey(goal)).flatMap((one) => one.past);
  const avoid = nodesToAvoid(past, context.now);
  const request: PlacementRequest = {
    job_id,
    spec,
    rules,
    own: countByNode([...live, ...successors]),
    strategy: rules.strategy ?? context.strategy ?? "spread",
    ...(avoid.size > 0 && { avoid }),
  };
  const excess = isGlobal(rules)
    ? chooseMisplaced(plan, { live, goal, context })
    : chooseExcess(live, { goal, context, request, stateful });
  live = without(live, excess);
  const kept = new Set(live.map(({ allocation_id }) => allocation_id));
  const orphans = successors.filter(({ replaces }) => !kept.has(replaces?.allocation_id ?? ""));

  plan.stop.push(
    ...all.filter((allocation) => allocation.desired === "run" && allocation.incarnation !== goal.incarnation),
  );
  plan.stop.push(...lost, ...excess, ...orphans);

  const isRejoining = seats !== undefined && lost.length > 0;
  const missing = { goal, context, request, stateful, live, mine, waiting, isRejoining, ...(seats && { seats }) };
  if (isGlobal(rules)) placeOnEach(plan, missing);
  else placeMissing(plan, missing);
  replace(plan, { ...missing, past, successors: without(successors, orphans) });
  return plan;
}

/** Plan for a service that is wanted no more: its document or its whole job is gone. */
export function reconcileRemoved(allocations: readonly AllocationRecord[]): Plan {
  const stop = allocations.filter(({ desired }) => desired === "run");
  return { ...emptyPlan(), stop };
}

/** Replicas that are given up with their node, or with what they share something with. */
function chooseLost(
  plan: Plan,
  {
    live,
    goal,
    context,
    stateful,
    seats,
  }: {
    live: readonly AllocationRecord[];
    goal: Goal;
    context: PlanContext;
    stateful: boolean;
    seats: Seats | undefined;
  },
): AllocationRecord[] {
  const { state } = context;
  const { bond } = goal;
  const isStranded = (one: AllocationRecord) => {
    if (!state.isLost(one.node_id) || staysWithNode(one, { goal, state, stateful })) return false;
    plan.causes.set(one.allocation_id, "lost");
    return true;
  };
  return live.filter((one) => {
    if (state.isLost(one.node_id) && mayRun(one, context)) {
      waitForNode(plan, { allocation: one, context, staysAnyway: staysWithNode(one, { goal, state, stateful }) });
      return false;
    }
    if (!seats && !one.joins) return isStranded(one) || isOverdue(plan, { allocation: one, goal, context });
    if (seats && one.ended !== undefined) return false;
    const isApart =
      seats && bond?.leaders.length
        ? seats.isApart(one)
        : (!stateful && seats?.isApart(one)) || hasLostPartner(one, context);
    if (isApart) plan.causes.set(one.allocation_id, "partner");
    if (seats && bond?.leaders.length) return isApart;
    return isApart || isStranded(one);
  });
}

/**
 * A replica on a lost node may still run, and the document asks that there are never two: it stays until its node must have stopped
 * it by itself, or somebody knows. `staysAnyway`: it would wait for its node all the same, so there is nothing to say.
 */
function waitForNode(
  plan: Plan,
  { allocation, context, staysAnyway }: { allocation: AllocationRecord; context: PlanContext; staysAnyway: boolean },
): void {
  wakeBy(plan, stoppedAloneAt(allocation, context.state));
  const reason = isolationWait(allocation, context);
  if (reason !== undefined && !staysAnyway) block(plan, allocation.slot, [reason]);
}

/** Whether a node was to be empty by now, and the replica can leave it. */
function isOverdue(
  plan: Plan,
  { allocation, goal, context }: { allocation: AllocationRecord; goal: Goal; context: PlanContext },
): boolean {
  const draining = context.draining?.get(allocation.node_id);
  const mobility = mobilityOf(goal);
  const isFixed = mobility === "follower" || mobility === "global" || (hasData(goal) && !draining?.force);
  if (!draining?.isOver || isFixed || hasEnded(allocation, context.state)) return false;
  plan.causes.set(allocation.allocation_id, "drain");
  return true;
}

/**
 * A slot with data waits for its node, and so does one that is there for its node; one that ended for good has nothing left to
 * run elsewhere.
 */
function staysWithNode(
  allocation: AllocationRecord,
  { goal, state, stateful }: { goal: Goal; state: ClusterState; stateful: boolean },
): boolean {
  const waits = stateful && goal.rules.volumes !== "recreate";
  return waits || isGlobal(goal.rules) || hasEnded(allocation, state);
}

/** Whether what an allocation of an older definition joined is to run no more. */
function hasLostPartner({ joins = [] }: AllocationRecord, { state, planned }: PlanContext): boolean {
  return joins.some(({ allocation_id: id }) => {
    const other = state.allocations.get(id);
    const plan = other && planned?.get(serviceKey(other));
    return other?.desired !== "run" || plan?.stop.some(({ allocation_id }) => allocation_id === id) === true;
  });
}

/** Of a service that runs once on each node: replicas whose node has left or matches no more, and second ones on one node. */
function chooseMisplaced(
  plan: Plan,
  { live, goal: { rules }, context }: { live: readonly AllocationRecord[]; goal: Goal; context: PlanContext },
): AllocationRecord[] {
  const free = new Set(context.state.nodesFor(rules).map(({ node_id }) => node_id));
  for (const [node_id, { isLast, isOver }] of context.draining ?? []) if (!isLast && !isOver) free.add(node_id);
  const misplaced = live.filter(({ node_id }) => !free.delete(node_id));
  for (const { allocation_id, node_id } of misplaced)
    plan.causes.set(allocation_id, context.draining?.has(node_id) ? "drain" : "misplaced");
  return misplaced;
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
  // The slots of what belongs together must match: what goes beside a low one waits for that one, and for no other.
  if (goal.bond) return live.filter(({ slot }) => slot > goal.scale);
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

/** Has replicas make way that are not to stay as they are. */
function replace(
  plan: Plan,
  situation: Missing & { past: Parameters<typeof nodesToAvoid>[0]; successors: readonly AllocationRecord[] },
): void {
  const { goal, context, request, live, mine, successors, past } = situation;
  const { state, now } = context;
  const wants = wantsOf(plan, situation);
  if (wants.length === 0 && successors.length === 0) return;
  const isMoving =
    plan.place.length > 0 || mine.some(({ node_id, desired }) => desired === "stop" && !state.isLost(node_id));
  const replicaOf = (allocation: AllocationRecord): Replica => {
    const status = state.status(allocation);
    const isReady = state.views.get(allocation.node_id)?.state === "ready";
    return {
      allocation,
      // What a node told before it fell silent is no proof that it runs.
      isUp: isReady && isUp(status),
      isIdle: isKnownIdle(allocation, state) || allocation.ended !== undefined,
      // What came to its end needs to be told nothing.
      isReachable: allocation.ended !== undefined || isReady,
      isAwaited: isCurrent(allocation, goal) && !hasEnded(allocation, state) && !state.isLost(allocation.node_id),
      isPulling: status?.state === "pulling",
    };
  };
  const choice = chooseReplacements({
    replicas: live.map(replicaOf),
    successors: successors.map(replicaOf),
    wants,
    isMoving,
    past,
    now,
    since: state.since,
  });
  for (const { allocation, cause } of choice.stop) {
    plan.stop.push(allocation);
    plan.causes.set(allocation.allocation_id, cause);
    // No report follows, after which the slot would be looked at again.
    if (state.isLost(allocation.node_id)) wakeBy(plan, now);
  }
  const leavers = [...mine.filter(({ desired }) => desired === "stop"), ...plan.stop];
  const stopping = leavers.filter((one) => mayRun(one, context));
  const hold = choice.start.length > 0 ? waitsForPredecessor(plan, { goal, context }) : undefined;
  if (hold !== undefined) plan.stuck.push(hold);
  for (const { allocation, cause } of hold === undefined ? choice.start : []) {
    // Beside the one that it replaced, which is on its way out, there is to be no third.
    if (stopping.some(({ slot }) => slot === allocation.slot)) continue;
    const to = cause === "rebalance" ? context.moves?.get(allocation.allocation_id) : undefined;
    const pinned = to === undefined ? {} : { pinned: { node_id: to, reason: "it was to move to another node" } };
    const others = context.candidates.filter(({ node_id }) => node_id !== allocation.node_id);
    const placement = place({ ...request, ...pinned }, others, context.random);
    const replaces = { allocation_id: allocation.allocation_id, cause };
    if ("node_id" in placement) {
      const { slot } = allocation;
      accept(plan, { goal, slot, node_id: placement.node_id, stateful: false, context, replaces });
    } else if (cause === "drain" && !isMoving && isKeptByPorts(request, { candidates: others, state })) {
      // Waiting would be of no use: who empties a node wants it empty, and the slot says what keeps it from running.
      plan.stop.push(allocation);
      plan.causes.set(allocation.allocation_id, cause);
    } else if (cause === "drain") plan.stuck.push(...placement.reasons);
    else plan.unmovable.push(allocation.allocation_id);
  }
  if (choice.wakeAt !== undefined) wakeBy(plan, choice.wakeAt);
}

/**
 * Whether some node would take the replica if its fixed host ports were free there, and none is about to: by being ready again, or
 * when what stops there is gone.
 */
function isKeptByPorts(
  request: PlacementRequest,
  { candidates, state }: { candidates: PlanContext["candidates"]; state: ClusterState },
): boolean {
  const { spec } = request;
  if (spec.ports.length === 0 || !hasRoom({ ...request, spec: { ...spec, ports: [] } }, candidates)) return false;
  return !candidates.some(({ node_id }) => {
    const isUnready = state.views.get(node_id)?.state !== "ready" && !state.isLost(node_id);
    const isActive = state.nodes.get(node_id)?.availability === "active";
    return isActive && (isUnready || state.allocationsOn(node_id).some(({ desired }) => desired === "stop"));
  });
}

function placeMissing(plan: Plan, { goal, context, request, stateful, live, mine, waiting, seats }: Missing): void {
  if (goal.scale <= live.length) return;
  const taken = new Set(live.map(({ slot }) => slot));
  const stopping = [...mine.filter(({ desired }) => desired === "stop"), ...plan.stop];
  const there = stillThere(plan, { stopping, context });
  const stoppingSlots = new Map(there.map((one) => [one.slot, isolationWait(one, context) ?? PREVIOUS_STOPS]));
  const hold = reasonsToHold(plan, { goal, context, waiting });
  let refusedAll: { reasons: string[]; size: number } | undefined;
  for (let slot = 1, missing = goal.scale - live.length; missing > 0; slot++) {
    if (taken.has(slot)) continue;
    missing--;
    const previous = stoppingSlots.get(slot);
    if (hold) {
      if (plan.blocked.length === MAX_BLOCKED) break;
      block(plan, slot, hold);
    } else if (previous !== undefined) block(plan, slot, [previous]);
    else {
      const seat = seats?.of({ slot });
      const unit = seat ? [] : unitOf(goal.bond?.followers ?? [], { slot, scale: goal.scale });
      if (refusedAll?.size === unit.length) {
        if (plan.blocked.length === MAX_BLOCKED) break;
        block(plan, slot, refusedAll.reasons);
        continue;
      }
      const spot = spotOf(slot, { goal, stateful, seat, unit, context });
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
    context,
  }: { goal: Goal; stateful: boolean; seat: Seat | undefined; unit: ReturnType<typeof unitOf>; context: PlanContext },
): Pick<PlacementRequest, "pinned" | "beside"> | { why: string } {
  if (seat && "why" in seat) return seat;
  const { job_id } = goal;
  const pins = [
    ...(stateful ? [pinOf(goal, { slot, context })] : []),
    ...unit.map(({ follower: { service_name, spec, rules }, slot: its }) =>
      isStateful(spec)
        ? pinOf({ job_id, service_name, rules }, { slot: its, context, whose: `of service ${service_name} ` })
        : undefined,
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
  const uncovered = state.nodesFor(goal.rules).filter(({ node_id }) => !covered.has(node_id));
  if (uncovered.length === 0) return;
  const stopping = new Map(
    [...mine.filter(({ desired }) => desired === "stop"), ...plan.stop]
      .filter((one) => mayRun(one, context))
      .map((one) => [one.node_id, one]),
  );
  const taken = new Set([...live, ...stopping.values()].map(({ slot }) => slot));
  const hold = reasonsToHold(plan, { goal, context, waiting });
  for (const { node_id, node_name } of uncovered) {
    const previous = stopping.get(node_id);
    if (previous !== undefined) {
      block(plan, previous.slot, [isolationWait(previous, context) ?? PREVIOUS_STOPS]);
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

/** Those of which something may still run; what a node that is down has to stop by itself is looked at again then. */
function stillThere(
  plan: Plan,
  { stopping, context }: { stopping: readonly AllocationRecord[]; context: PlanContext },
): AllocationRecord[] {
  const there = stopping.filter((one) => mayRun(one, context));
  for (const one of there) if (context.state.isLost(one.node_id)) wakeBy(plan, stoppedAloneAt(one, context.state));
  return there;
}

const PREVIOUS_STOPS = "waiting for this slot's previous container to stop";

/** Why no slot of the service may be placed at all; undefined: nothing stands in the way. */
function reasonsToHold(
  plan: Plan,
  { goal, context, waiting }: { goal: Goal; context: PlanContext; waiting: string[] },
): string[] | undefined {
  const predecessor = waitsForPredecessor(plan, { goal, context });
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
    replaces,
  }: Pick<AllocationRecord, "slot" | "node_id" | "joins" | "replaces"> & {
    goal: Goal;
    stateful: boolean;
    context: PlanContext;
  },
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
    ...(replaces && { replaces }),
  });
  if (stateful && context.state.homeOf({ job_id, service_name, slot })?.node_id !== node_id) {
    plan.homes.push({ job_id, service_name, slot, node_id });
  }
}

function pinOf(
  { job_id, service_name, rules }: Pick<Goal, "job_id" | "service_name" | "rules">,
  { slot, context, whose = "" }: { slot: number; context: PlanContext; whose?: string },
): PlacementRequest["pinned"] {
  const { state, draining } = context;
  const home = state.homeOf({ job_id, service_name, slot });
  if (!home) return undefined;
  const { node_id } = home;
  if (draining?.get(node_id)?.force || (rules.volumes === "recreate" && state.isLost(node_id))) return undefined;
  const data = `the data of slot ${slot} ${whose}are on node`;
  const node = state.nodes.get(node_id);
  if (node) return { node_id, reason: `${data} ${node.node_name}` };
  const left = state.departures.get(node_id);
  const again = "let it join again, or DELETE it with ?force=true to go on without them";
  return left && { node_id, reason: `${data} ${left.node_name}, which left the cluster: ${again}` };
}

/** What of a deleted job with the same id is still being removed on a node that can do it. */
function waitsForPredecessor(
  plan: Plan,
  { goal: { job_id, incarnation }, context }: { goal: Goal; context: PlanContext },
): string | undefined {
  const { state } = context;
  for (const service_name of state.allocatedServices(job_id)) {
    const old = state
      .allocationsOf(serviceKey({ job_id, service_name }))
      .filter((allocation) => allocation.incarnation !== incarnation);
    const there = stillThere(plan, { stopping: old, context });
    const waits = there.flatMap((one) => isolationWait(one, context) ?? []);
    if (there.length > 0) return waits[0] ?? "waiting for the containers of the deleted job with this id to stop";
  }
  const removal = [...state.removals.values()].find((one) => one.job_id === job_id && !state.isLost(one.node_id));
  if (!removal) return undefined;
  const name = state.nodes.get(removal.node_id)?.node_name ?? removal.node_id;
  return `waiting for node ${name} to remove the volumes of the deleted job with this id`;
}

function countByNode(allocations: readonly AllocationRecord[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { node_id } of allocations) counts.set(node_id, (counts.get(node_id) ?? 0) + 1);
  return counts;
}
