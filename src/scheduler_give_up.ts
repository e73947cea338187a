/**
 * @module The word of an operator that nothing runs on a node any more of what must never run twice (`stop_when_isolated`): it is
 * given up at once, where the cluster would wait for ever for a Docker Engine that does not answer.
 */
import { serviceKey } from "./cluster_state.ts";
import { CacophonyError, type Change, type NodeRecord } from "./model.ts";
import { hasEnded } from "./reconcile_goal.ts";
import type { Scheduler } from "./scheduler.ts";
import { findNode, notesOf } from "./scheduler_nodes.ts";

/**
 * Gives up what must never run twice on a node; resolves to that node once it is written down. What is still there is stopped when
 * the node is back, as it is not assigned any more.
 * @throws CacophonyError `not_found`; `conflict` where the node and its Docker Engine answer, and so tell what runs.
 */
export async function giveUp(
  scheduler: Pick<Scheduler, "state" | "change" | "wake" | "wakeBlocked">,
  { nodeId, now }: { nodeId: string; now: number },
): Promise<NodeRecord> {
  const { state } = scheduler;
  const node = findNode(state, nodeId);
  const here = state.allocationsOn(node.node_id).map(serviceKey);
  await scheduler.change((): Change[] => {
    const { node_id, node_name } = node;
    if (!state.nodes.has(node_id)) return [];
    if (!state.isDown(node_id) && !state.isEngineSilent(node_id)) {
      throw new CacophonyError(
        "conflict",
        `node ${node_name} is not down, and its Docker Engine answered when it last spoke: what runs there is known, and nothing was changed`,
      );
    }
    const given = state
      .allocationsOn(node_id)
      .filter((one) => state.specs.get(one.spec_hash)?.stop_when_isolated_ms !== undefined && !hasEnded(one, state));
    const ended = given.filter(({ desired }) => desired === "run");
    return [
      ...given.map(({ allocation_id: key }): Change => ({ op: "delete", kind: "allocation", key })),
      ...notesOf(state, { ended: ended.map((allocation) => ({ allocation, cause: "lost" })), now }),
    ];
  });
  scheduler.wake(here);
  scheduler.wakeBlocked();
  return node;
}
