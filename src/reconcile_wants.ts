/**
 * @module Which replicas of a service are not to stay as they are, and why: those of an older definition, those on a node that
 * is being emptied, those that do not get well, and those that rebalancing moves. Pure; `reconcile_replace.ts` decides what
 * becomes of them.
 */
import { serviceKey } from "./cluster_state.ts";
import type { AllocationRecord } from "./model.ts";
import { isGlobal } from "./model_spec.ts";
import { hasRoom, place, type PlacementRequest } from "./placement.ts";
import { matches } from "./placement_rules.ts";
import { FAILURES, UNHEALTHY_MS, type Want } from "./reconcile_replace.ts";
import {
  type Goal,
  hasEnded,
  isCurrent,
  isUp,
  type Missing,
  mobilityOf,
  type Plan,
  type PlanContext,
  wakeBy,
} from "./reconcile_goal.ts";
import { unitOf } from "./reconcile_together.ts";

/** In the order of precedence. */
export function wantsOf(plan: Plan, situation: Missing): Want[] {
  if (situation.waiting.length > 0) {
    // What would take their place may not start yet.
    if (leaving(plan, situation).length > 0) plan.stuck.push(...situation.waiting);
    return [];
  }
  return [...outdated(situation), ...leaving(plan, situation), ...ailing(plan, situation), ...moving(situation)];
}

/** Replicas of an older definition, and those on nodes that a newer document excludes; the sick ones first. */
function outdated({ goal, context, request, live, stateful, isRejoining }: Missing): Want[] {
  if (isRejoining) return [];
  const { state } = context;
  const excluded = stateful || goal.bond?.follows ? new Set<string>() : excludedNodes(goal, { context, request });
  const isSick = (one: AllocationRecord) => state.status(one)?.health === "unhealthy";
  return live
    .flatMap((allocation): Want[] => {
      if (!isCurrent(allocation, goal)) return [{ allocation, cause: "changed" }];
      const isMisplaced = allocation.job_version < goal.rules_since && excluded.has(allocation.node_id);
      return isMisplaced ? [{ allocation, cause: "misplaced" }] : [];
    })
    .toSorted(
      (a, b) => Number(isSick(b.allocation)) - Number(isSick(a.allocation)) || a.allocation.slot - b.allocation.slot,
    );
}

/** Replicas whose turn it is to leave a node that is being emptied. */
function leaving(plan: Plan, { goal, context, request, live }: Missing): Want[] {
  const mobility = mobilityOf(goal);
  const key = serviceKey(goal);
  return live.flatMap((allocation): Want[] => {
    const { node_id, slot } = allocation;
    if (context.draining?.get(node_id)?.turn !== key || hasEnded(allocation, context.state)) return [];
    if (mobility === "free") return [{ allocation, cause: "drain" }];
    if (mobility !== "tied" && mobility !== "data") return [];
    // What has its data here, or another container to go with, is not to run twice: it stops first, where there is room elsewhere.
    const beside = unitOf(goal.bond?.followers ?? [], { slot, scale: goal.scale }).map(({ follower }) => follower);
    const whole = { ...request, ...(beside.length > 0 && { beside }) };
    const others = context.candidates.filter((one) => one.node_id !== node_id);
    if (hasRoom(whole, others)) return [{ allocation, cause: "drain", order: "stop_first" }];
    const placement = place(whole, others, context.random);
    if ("reasons" in placement) plan.stuck.push(...placement.reasons);
    return [];
  });
}

/** Replicas that do not get well where they are. */
function ailing(plan: Plan, { goal, context, request, live, stateful }: Missing): Want[] {
  const { state, now } = context;
  if (goal.bond) return [];
  return live.flatMap((allocation): Want[] => {
    const { allocation_id, node_id } = allocation;
    const view = state.views.get(node_id);
    const status = state.status(allocation);
    if (view?.state !== "ready" || !status || status.final || allocation.ended) return [];
    const since = view.unhealthySince?.get(allocation_id);
    if (status.health === "unhealthy" && since !== undefined) {
      if (now - since >= UNHEALTHY_MS) return [{ allocation, cause: "unhealthy" }];
      wakeBy(plan, since + UNHEALTHY_MS);
      return [];
    }
    if ((status.failures ?? 0) < FAILURES || status.state === "running" || stateful || isGlobal(goal.rules)) return [];
    const others = context.candidates.filter((one) => one.node_id !== node_id);
    return hasRoom(request, others) ? [{ allocation, cause: "failing" }] : [];
  });
}

/** Replicas that rebalancing moves now. */
function moving({ goal, context, live }: Missing): Want[] {
  if (mobilityOf(goal) !== "free") return [];
  return live.flatMap((allocation): Want[] =>
    context.moves?.has(allocation.allocation_id) && isUp(context.state.status(allocation))
      ? [{ allocation, cause: "rebalance" }]
      : [],
  );
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
