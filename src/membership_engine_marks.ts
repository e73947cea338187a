/**
 * @module What is written down of a node's Docker Engine for a master that starts later: that it does not answer, while the node has
 * what must never run twice (`stop_when_isolated`). Pure; Membership commits.
 */
import type { ClusterState } from "./cluster_state.ts";
import type { Change } from "./model.ts";

/** The change of a node's record after it has told of its Engine; mostly none. */
export function engineChanges(state: ClusterState, nodeId: string): Change[] {
  const record = state.nodes.get(nodeId);
  const engine = state.views.get(nodeId)?.engine;
  if (!record || !engine || (engine.state === "ready" && !record.engine_silent)) return [];
  const { engine_silent = false, ...rest } = record;
  const isAlone = ({ spec_hash, ended }: { spec_hash: string; ended?: unknown }) =>
    ended === undefined && state.specs.get(spec_hash)?.stop_when_isolated_ms !== undefined;
  const isSilent = engine.state !== "ready" && state.allocationsOn(nodeId).some(isAlone);
  if (isSilent === engine_silent) return [];
  return [{ op: "put", kind: "node", record: { ...rest, ...(isSilent && { engine_silent: true }) } }];
}
