/**
 * @module How many strangers a cluster takes in: nodes that say hello and that nobody has heard of. A machine that joins is ready
 * within seconds; one that never is may have been invented, and is forgotten after a while. Membership asks and commits.
 */
import type { ClusterState, NodeView } from "./cluster_state.ts";
import type { NodeRecord } from "./model.ts";

/** New nodes that may come at once: more machines than anybody starts by hand. */
const NEW_NODES_AT_ONCE = 100;
/** And then so many a second: a thousand machines that start together are in after a minute and a half. */
const NEW_NODES_PER_SECOND = 10;
/** Members that were never ready: each is kept for an hour, with labels of up to 16 Ki characters. */
const MAX_NEVER_READY = 1_000;
/** A node that was never ready, and is not connected for so long, is forgotten. */
export const FORGET_AFTER_MS = 3_600_000;

/** A token bucket. Times are milliseconds. */
export class Admission {
  #tokens = NEW_NODES_AT_ONCE;
  #filledAt: number;

  constructor(now: number) {
    this.#filledAt = now;
  }

  /** Whether one more new node may come in now; if so, it is counted. */
  takes(now: number): boolean {
    const fresh = (Math.max(0, now - this.#filledAt) / 1_000) * NEW_NODES_PER_SECOND;
    this.#tokens = Math.min(NEW_NODES_AT_ONCE, this.#tokens + fresh);
    this.#filledAt = now;
    if (this.#tokens < 1) return false;
    this.#tokens--;
    return true;
  }
}

/**
 * Members that were never ready and give way now: those that have been away for an hour, and with `isOneMore` where there are too
 * many of them the one that has been away for longest. `isFull`: there are too many, and none of them is away.
 */
export function strangers(
  state: ClusterState,
  { now, isOneMore = false }: { now: number; isOneMore?: boolean },
): { leaving: string[]; isFull: boolean } {
  const never = [...state.nodes.values()].filter(({ never_ready }) => never_ready === true);
  const away = never.flatMap((node) => {
    const view = state.views.get(node.node_id);
    return isUntouched(node) && isIdle(state, node) && isAway(view) ? [{ id: node.node_id, at: view.lastSeen }] : [];
  });
  const leaving = away.filter(({ at }) => now - at >= FORGET_AFTER_MS).map(({ id }) => id);
  if (!isOneMore || never.length - leaving.length < MAX_NEVER_READY) return { leaving, isFull: false };
  const oldest = away.filter(({ id }) => !leaving.includes(id)).toSorted((one, other) => one.at - other.at)[0];
  return { leaving: oldest ? [...leaving, oldest.id] : leaving, isFull: oldest === undefined };
}

function isAway(view: NodeView | undefined): view is NodeView {
  return view !== undefined && !view.connected;
}

/** Whether no operator has set anything about it. */
function isUntouched({ set_labels, availability, drain, role }: NodeRecord): boolean {
  return set_labels.length === 0 && availability === "active" && drain === undefined && role !== "master";
}

/** Whether nothing was ever placed there. */
function isIdle(state: ClusterState, { node_id }: NodeRecord): boolean {
  return state.allocationsOn(node_id).length === 0;
}
