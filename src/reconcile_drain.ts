/**
 * @module How a node is emptied: whose turn it is there, and what it still waits for. Pure.
 *
 * Services that can run elsewhere leave one after the other, in the order of their keys; one that finds no place elsewhere lets
 * the next one go first. What runs to its end may do so until the deadline. Then come services that run once on each node,
 * which the others may need. What has its data on the node stays, unless the drain is forced.
 */
import type { ClusterState, ServiceKey } from "./cluster_state.ts";
import { serviceKey } from "./cluster_state.ts";
import type { AllocationRecord, NodeRecord } from "./model.ts";

/**
 * How the replicas of a service can leave a node: `free`: another is started elsewhere; `tied`: with all that shares something
 * with them, or because they must never run twice, one stops before the other starts; `data`: without the data that they have there; `task`: by coming to their end; `global`: never to another node;
 * `follower`: with the service that they follow.
 */
export type Mobility = "free" | "tied" | "data" | "task" | "global" | "follower";

/** A node that is being emptied, as one pass sees it. */
export type Draining = {
  /** The service that may leave now. */
  turn: ServiceKey | undefined;
  /** The services to look at for this node now: the one whose turn it is, or at last all that run once on each node. */
  due: readonly ServiceKey[];
  force: boolean;
  /** Whether the deadline has passed: what can leave is stopped, wherever it goes. */
  isOver: boolean;
  /** Whether nothing is left but services that run once on each node. */
  isLast: boolean;
};

export type DrainFacts = {
  state: ClusterState;
  now: number;
  mobilityOf: (key: ServiceKey) => Mobility;
  /** Why a service found no place elsewhere when it last had its turn. */
  stuckOf: (key: ServiceKey) => readonly string[];
  /** Why nothing of an allocation counts as gone though its node was given up (`reconcile_isolation.ts`). */
  isolationOf: (allocation: AllocationRecord) => string | undefined;
  /** Whether it had its turn, and found no place, since room last appeared: the others come first. */
  isPassedOver: (key: ServiceKey) => boolean;
};

export function drainings({
  state,
  now,
  mobilityOf,
  isPassedOver,
}: Omit<DrainFacts, "stuckOf" | "isolationOf">): Map<string, Draining> {
  const found = new Map<string, Draining>();
  for (const { node_id, drain } of state.nodes.values()) {
    if (!drain) continue;
    const here = [...new Set(running(state, node_id).map(serviceKey))].toSorted();
    const kinds = new Map(here.map((key) => [key, mobilityOf(key)]));
    const movable = here.filter((key) => canMove(kinds.get(key), drain.force));
    const turn = movable.find((key) => !isPassedOver(key)) ?? movable[0];
    const isLast = here.every((key) => kinds.get(key) === "global");
    const due = turn === undefined ? (isLast ? here : []) : [turn];
    found.set(node_id, { turn, due, force: drain.force, isOver: now >= drain.deadline_at, isLast });
  }
  return found;
}

function canMove(mobility: Mobility | undefined, force: boolean): boolean {
  return mobility === "free" || mobility === "tied" || (mobility === "data" && force);
}

/** What is to run on a node, apart from what ended for good. */
function running(state: ClusterState, nodeId: string): AllocationRecord[] {
  return state.allocationsOn(nodeId).filter(({ desired, ended }) => desired === "run" && !ended);
}

/** Whether nothing of the cluster's runs on a node, or is on its way out. */
export function isEmpty(state: ClusterState, nodeId: string): boolean {
  return state.allocationsOn(nodeId).every(({ ended }) => ended !== undefined);
}

export type DrainWait = { job_id: string; service_name: string; slot: number; reason: string };

const HAS_DATA = "its data are on this node: with ?force=true it moves without them";

/** What keeps a node from being empty, allocation by allocation. */
export function drainWaits({ node_id, drain }: NodeRecord, facts: Omit<DrainFacts, "isPassedOver">): DrainWait[] {
  if (!drain) return [];
  const { state, now, mobilityOf, stuckOf, isolationOf } = facts;
  const isOver = now >= drain.deadline_at;
  const replaced = new Set([...state.allocations.values()].flatMap(({ replaces }) => replaces?.allocation_id ?? []));
  return state
    .allocationsOn(node_id)
    .filter(({ ended }) => !ended)
    .map((allocation) => {
      const { job_id, service_name, slot } = allocation;
      const key = serviceKey(allocation);
      const stuck = stuckOf(key);
      const reason = () => {
        const isolation = isolationOf(allocation);
        if (isolation !== undefined) return isolation;
        if (allocation.desired === "stop") return "it is being stopped";
        if (replaced.has(allocation.allocation_id)) return "another is being started elsewhere";
        switch (mobilityOf(key)) {
          case "data":
            return drain.force ? "its turn comes; its data stay behind" : HAS_DATA;
          case "task":
            return isOver && !drain.force ? HAS_DATA : "it may come to its end until the deadline";
          case "global":
            return "it runs on each node, and leaves last";
          case "follower":
            return "it leaves with the service beside which it runs";
          default:
            return stuck.length === 0 ? "its turn comes" : `no other node takes it: ${stuck.join("; ")}`;
        }
      };
      return { job_id, service_name, slot, reason: reason() };
    })
    .toSorted((a, b) => {
      const [one, other] = [`${serviceKey(a)}/${a.slot}`, `${serviceKey(b)}/${b.slot}`];
      return one < other ? -1 : one > other ? 1 : 0;
    });
}
