/**
 * @module What reconcile compares: the goal of a service, the world around it, and the plan that comes out; with the small
 * questions about one allocation that all its parts ask. Pure.
 */
import type { ClusterState, ServiceKey } from "./cluster_state.ts";
import type { AllocationRecord, AllocationStatus, HomeRecord, ReplaceCause } from "./model.ts";
import { isGlobal, isRunToEnd, type ServiceRules, type ServiceSpec } from "./model_spec.ts";
import type { Candidate, PlacementRequest, Strategy } from "./placement.ts";
import type { Draining, Mobility } from "./reconcile_drain.ts";
import type { Need } from "./reconcile_order.ts";
import { allFollowers, type Bond, type Seats } from "./reconcile_together.ts";

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
  /** Why those of `stop` go whose slots stay. */
  causes: Map<string, ReplaceCause>;
  /** Slots whose data live on a node from now on. */
  homes: HomeRecord[];
  blocked: Blocked[];
  /** What the service depends on holds for the first time: to be remembered. */
  released: boolean;
  /** Why its replicas on nodes that are to be emptied find no place elsewhere. */
  stuck: string[];
  /** Allocations that rebalancing can't move where it wanted to. */
  unmovable: string[];
  /** When to look again if nothing happens before: milliseconds since 1970. */
  wakeAt?: number;
};

/** A plan that changes nothing. */
export function emptyPlan(): Plan {
  return { place: [], stop: [], causes: new Map(), homes: [], blocked: [], released: false, stuck: [], unmovable: [] };
}

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
  /** Nodes that are being emptied. */
  draining?: ReadonlyMap<string, Draining>;
  /** How nodes are chosen for services that say nothing about it. Absent: `spread`. */
  strategy?: Strategy;
  /** Where rebalancing moves allocations to, as far as it is their turn. */
  moves?: ReadonlyMap<string, string>;
};

/** Blocked slots listed one by one; all slots of a service mostly wait for the same thing. */
export const MAX_BLOCKED = 100;

/** How much the clocks of master and node may be apart in when they last heard of each other, and how long Docker may take for a stop. */
const ISOLATION_MARGIN_MS = 2_000;

export type Missing = {
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

/**
 * Whether a service writes to its node's disk, so that its slots stay where their data are. Sockets are no data, and what was
 * sent along with the document is on every node.
 */
export function isStateful({ mounts, files = [] }: ServiceSpec): boolean {
  const isSent = (source: string) => files.some(({ path }) => path === source || path.startsWith(`${source}/`));
  return mounts.some(
    (mount) =>
      !mount.read_only &&
      ((mount.type === "bind" && !mount.source.endsWith(".sock") && !isSent(mount.source)) ||
        (mount.type === "volume" && mount.volume !== undefined)),
  );
}

/** The same for a service with all that follows it, which brings its data along: all of a unit stay where those are. */
export function hasData({ spec, bond }: Pick<Goal, "spec" | "bond">): boolean {
  return isStateful(spec) || allFollowers(bond?.followers ?? []).some((one) => isStateful(one.spec));
}

/** How replicas of a service can leave a node. */
export function mobilityOf(goal: Pick<Goal, "spec" | "rules" | "bond">): Mobility {
  const { spec, rules, bond } = goal;
  if (isGlobal(rules)) return "global";
  if (bond?.follows) return "follower";
  if (isRunToEnd(rules)) return "task";
  if (hasData(goal)) return "data";
  const isTied = (bond && bond.followers.length > 0) || spec.stop_when_isolated_ms !== undefined;
  return isTied ? "tied" : "free";
}

/** Whether an allocation came to its end and runs no more. */
export function hasEnded(allocation: AllocationRecord, state: ClusterState): boolean {
  return allocation.ended !== undefined || state.status(allocation)?.final === true;
}

export function isUp(status: AllocationStatus | undefined): boolean {
  return status?.state === "running" && (status.health === undefined || status.health === "healthy");
}

/** Whether an allocation was made for what the goal is now. */
export function isCurrent({ spec_hash, generation = 0 }: AllocationRecord, goal: Goal): boolean {
  return spec_hash === goal.spec_hash && generation === (goal.generation ?? 0);
}

/** Whether a fresh report says that the allocation does not run. No report: not known, so no. */
export function isKnownIdle(allocation: AllocationRecord, state: ClusterState): boolean {
  const view = state.views.get(allocation.node_id);
  if (!view?.reported || !view.connected) return false;
  const status = view.statuses.get(allocation.allocation_id);
  return status !== undefined && status.state !== "running" && status.state !== "stopping" && !status.final;
}

/**
 * When nothing of a replica can run any more on a node that was given up, because that one stops it by itself without a master
 * (`stop_when_isolated`): milliseconds since 1970. 0: it need not be waited for. Infinity: the node's Docker Engine did not answer
 * when the node last spoke, so the node may be unable to stop it, and only that Engine or an operator can tell.
 */
export function stoppedAloneAt(allocation: AllocationRecord, state: ClusterState): number {
  const { spec_hash, node_id } = allocation;
  const spec = state.specs.get(spec_hash);
  const view = state.views.get(node_id);
  if (spec?.stop_when_isolated_ms === undefined || !state.nodes.has(node_id) || hasEnded(allocation, state)) return 0;
  if (state.isEngineSilent(node_id)) return Infinity;
  if (view?.state !== "down") return 0;
  // A node goes by its session until it notices that the master is gone; Docker takes a grace period in whole seconds.
  const beginMs = Math.max(spec.stop_when_isolated_ms, state.noticeMs);
  const graceMs = Math.ceil(spec.stop_grace_period_ms / 1_000) * 1_000;
  return view.lastSeen + beginMs + graceMs + ISOLATION_MARGIN_MS;
}

/** Whether something of a replica may still run that is to run no more: its node was not given up, or has to stop it by itself first. */
export function mayRun(allocation: AllocationRecord, { state, now }: Pick<PlanContext, "state" | "now">): boolean {
  return !state.isLost(allocation.node_id) || now < stoppedAloneAt(allocation, state);
}

export function block(plan: Plan, slot: number, reasons: string[]): void {
  if (plan.blocked.length < MAX_BLOCKED) plan.blocked.push({ slot, reasons });
}

/** `at` may be Infinity: nothing but news is waited for. */
export function wakeBy(plan: Plan, at: number): void {
  if (at < Infinity) plan.wakeAt = Math.min(plan.wakeAt ?? Infinity, at);
}

export function without<T>(list: readonly T[], removed: readonly T[]): T[] {
  if (removed.length === 0) return [...list];
  const set = new Set(removed);
  return list.filter((item) => !set.has(item));
}
