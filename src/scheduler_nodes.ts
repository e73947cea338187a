/**
 * @module Changes of a node's record: its labels, its availability, and its leaving of the cluster. Works out what is to be
 * written; the Scheduler commits.
 */
import { type ClusterState, serviceKey } from "./cluster_state.ts";
import type { AllocationRecord, Change, DepartureRecord, NodeRecord, PastAllocation, ReplaceCause } from "./model.ts";
import { CacophonyError } from "./model.ts";
import { suggest } from "./nearest.ts";
import { isEmpty } from "./reconcile_drain.ts";
import { stoppedAloneAt } from "./reconcile_goal.ts";

/** What `PUT /cluster/node/:node_id` may ask for; what is absent stays. */
export type NodeWish = {
  labels?: readonly [string, string][];
  availability?: NodeRecord["availability"];
  /** For a drain: how long it may take, and whether what has its data on the node moves without them. */
  deadlineMs?: number;
  force?: boolean;
};

/** A node that is to be emptied has this long for it unless it is said. */
export const DEFAULT_DRAIN_MS = 600_000;

/**
 * The node of that id or name.
 * @throws CacophonyError `not_found`, naming close matches.
 */
export function findNode(state: ClusterState, nodeId: string): NodeRecord {
  const found = memberOf(state, nodeId);
  if (found) return found;
  const names = [...state.nodes.values()].flatMap(({ node_id, node_name }) => [node_name, node_id]);
  const left = findDeparture(state, nodeId);
  const why = left ? `; it left the cluster at ${new Date(left.left_at).toISOString()}` : suggest(nodeId, names);
  throw new CacophonyError("not_found", `no node '${nodeId}'${why}`);
}

/** What is known of a node of that id or name that left; undefined: there is none, or it is a member. */
export function findDeparture(state: ClusterState, nodeId: string): DepartureRecord | undefined {
  if (memberOf(state, nodeId)) return undefined;
  const left = [...state.departures.values()].filter(({ node_id }) => !state.nodes.has(node_id));
  return left.find(({ node_id }) => node_id === nodeId) ?? left.findLast(({ node_name }) => node_name === nodeId);
}

function memberOf(state: ClusterState, nodeId: string): NodeRecord | undefined {
  return state.nodes.get(nodeId) ?? [...state.nodes.values()].find(({ node_name }) => node_name === nodeId);
}

/** Changes that give a node what is wished for; labels are those over the ones that it was started with, and replace the ones set before. */
export function changesForNode(
  state: ClusterState,
  { nodeId, wish, now }: { nodeId: string; wish: NodeWish; now: number },
): { node: NodeRecord; changes: Change[] } {
  const found = findNode(state, nodeId);
  const { labels, availability } = wish;
  const set_labels = labels?.toSorted((a, b) => (a[0] < b[0] ? -1 : 1)) ?? found.set_labels;
  let node: NodeRecord = { ...found, set_labels };
  if (availability !== undefined) {
    const { drain: _drain, ...rest } = node;
    node = { ...rest, availability };
    if (availability === "drain") node.drain = drainOf(found, { wish, now, leave: false });
  }
  return { node, changes: Bun.deepEquals(node, found) ? [] : [{ op: "put", kind: "node", record: node }] };
}

/**
 * Changes that have a node leave: one that is lost does so at once, another is emptied before. `ifLost`: only if it is to leave and is
 * lost; else there are none, for it may be back by now, or an operator wants it again.
 * @throws CacophonyError `conflict` for the master.
 */
export function changesForLeave(
  state: ClusterState,
  { nodeId, wish, now, ifLost = false }: { nodeId: string; wish: NodeWish; now: number; ifLost?: boolean },
): { node: NodeRecord; changes: Change[]; isGone: boolean } {
  const found = findNode(state, nodeId);
  if (ifLost && !isLostLeaver(state, { node: found, now })) return { node: found, changes: [], isGone: false };
  if (found.role === "master") {
    throw new CacophonyError(
      "conflict",
      `node ${found.node_name} is the master, and a cluster without a master can be told nothing; it can be drained: PUT {"availability": "drain"}`,
    );
  }
  const node: NodeRecord = {
    ...found,
    availability: "drain",
    drain: drainOf(found, { wish, now, leave: true }),
  };
  const put: Change = { op: "put", kind: "node", record: node };
  const isGone = state.isDown(found.node_id) || isLostLeaver(state, { node: found, now });
  if (!isGone) return { node, changes: [put], isGone };
  return { node, changes: departure(state, { node, now }), isGone };
}

function drainOf(
  { drain }: NodeRecord,
  { wish, now, leave }: { wish: NodeWish; now: number; leave: boolean },
): NonNullable<NodeRecord["drain"]> {
  const { deadlineMs, force = drain?.force ?? false } = wish;
  const started_at = drain?.started_at ?? now;
  // One that has passed was for what is gone by now: what is asked for anew (`force`) is to have its time, too.
  const isKept = deadlineMs === undefined && drain !== undefined && drain.deadline_at > now;
  const deadline_at = isKept ? drain.deadline_at : now + (deadlineMs ?? DEFAULT_DRAIN_MS);
  return { started_at, deadline_at, force, leave };
}

/** An allocation that is to run no more, and why. */
type Ended = { allocation: AllocationRecord; cause: ReplaceCause };

/** Changes that end a node's membership; what was still to run there is lost with it. Volumes that it is to remove, it removes when it is back. */
export function departure(state: ClusterState, { node, now }: { node: NodeRecord; now: number }): Change[] {
  const { node_id, node_name, address, engine_id, drain } = node;
  const changes: Change[] = [
    { op: "delete", kind: "node", key: node_id },
    {
      op: "put",
      kind: "departure",
      record: { node_id, node_name, address, left_at: now, ...(engine_id !== undefined && { engine_id }) },
    },
  ];
  // What came to its end is not to run again anywhere.
  const lost = state.allocationsOn(node_id).filter((one) => !one.ended);
  for (const { allocation_id } of lost) changes.push({ op: "delete", kind: "allocation", key: allocation_id });
  const ended = lost.flatMap((one): Ended[] => (one.desired === "run" ? [{ allocation: one, cause: "lost" }] : []));
  changes.push(...notesOf(state, { ended, now }));
  return drain?.force ? [...changes, ...withoutData(state, node_id)] : changes;
}

/** Changes after which nothing waits for what a node has on its disk. */
export function withoutData(state: ClusterState, nodeId: string): Change[] {
  const homes = [...state.homes].filter(([, { node_id }]) => node_id === nodeId);
  return homes.map(([key]) => ({ op: "delete", kind: "home", key }));
}

/** Nodes that were to leave and are lost; of one that is down, not while something may still run there that must never run twice. */
export function lostLeavers(state: ClusterState, now: number): NodeRecord[] {
  return [...state.nodes.values()].filter((node) => isLostLeaver(state, { node, now }));
}

function isLostLeaver(
  state: ClusterState,
  { node: { node_id, drain }, now }: { node: NodeRecord; now: number },
): boolean {
  if (!drain?.leave || !state.views.get(node_id)?.lost) return false;
  return state.allocationsOn(node_id).every((one) => one.ended !== undefined || stoppedAloneAt(one, state) <= now);
}

/** Changes by which it is remembered which of the node's allocations ended for good, as far as it told and is not remembered yet. */
export function changesForEnds(state: ClusterState, nodeId: string): Change[] {
  const statuses = state.views.get(nodeId)?.statuses;
  return state.allocationsOn(nodeId).flatMap((record): Change[] => {
    const status = statuses?.get(record.allocation_id);
    if (record.desired !== "run" || record.ended !== undefined || status?.final !== true) return [];
    return [{ op: "put", kind: "allocation", record: { ...record, ended: { exit_code: status.exit_code ?? 0 } } }];
  });
}

/** Whether nothing of the cluster's is on a node that is to leave, as it has told since it knows that. */
export function hasLeft(state: ClusterState, { nodeId, term }: { nodeId: string; term: number }): boolean {
  const view = state.views.get(nodeId);
  if (state.nodes.get(nodeId)?.drain?.leave !== true || !view?.connected || !view.reported) return false;
  const isClean = ![...state.removals.values()].some(({ node_id }) => node_id === nodeId);
  return isEmpty(state, nodeId) && isClean && view.applied?.term === term && view.statuses.size === 0;
}

/** What the histories of slots keep of allocations that are to run no more, in this order. */
export function notesOf(state: ClusterState, { ended, now }: { ended: readonly Ended[]; now: number }): Change[] {
  const slots = Map.groupBy(ended, ({ allocation }) => `${serviceKey(allocation)}/${allocation.slot}`);
  return Array.from(slots.values()).flatMap((ones): Change[] => {
    const past = ones.map((one) => pastOf(state, one, now));
    return ones[0] ? [{ op: "put", kind: "history", record: state.historyWith(ones[0].allocation, past) }] : [];
  });
}

function pastOf(state: ClusterState, { allocation, cause }: Ended, now: number): PastAllocation {
  const { allocation_id, node_id, created_at } = allocation;
  const status = state.status(allocation);
  return {
    allocation_id,
    node_id,
    node_name: state.nodes.get(node_id)?.node_name ?? node_id,
    cause,
    created_at,
    replaced_at: now,
    restarts: status?.restarts ?? 0,
    ...(status?.error !== undefined && { error: status.error }),
    ...(status?.last_end && { last_end: status.last_end }),
  };
}
