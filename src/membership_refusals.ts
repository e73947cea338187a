/** @module Why a node that says hello is not taken, or not yet (`PASSING_REFUSALS`). Pure. */
import type { ClusterState } from "./cluster_state.ts";
import { engineInUse, type EngineUser } from "./membership_engines.ts";
import type { Hello, PassingRefusal } from "./model.ts";
import { protocolFault, protocolsOf } from "./model_protocol.ts";

export type Refusal = { code: string; message: string };

/** `isHeld`: another process that speaks regularly is this node; `holder`: the connected node on the same Docker Engine. */
export type RefusalFacts = {
  clusterId: string;
  state: ClusterState;
  isHeld: boolean;
  holder: EngineUser | undefined;
};

export function refusalOf(hello: Hello, { clusterId, state, isHeld, holder }: RefusalFacts): Refusal | undefined {
  const { node_id, cluster_id, engine } = hello;
  const node = state.nodes.get(node_id);
  const unknownProtocol = protocolFault(protocolsOf(hello));
  if (unknownProtocol !== undefined) return { code: "protocol", message: unknownProtocol };
  if (cluster_id !== undefined && cluster_id !== clusterId)
    return { code: "other_cluster", message: `this node belongs to cluster ${cluster_id}, not to ${clusterId}` };
  if (isHeld)
    return {
      code: "node_in_use" satisfies PassingRefusal,
      message: `another process at ${node?.address} is node ${node?.node_name} (${node_id}) already: two processes share a data directory or its copy, or a clone of this machine joined while this one was away; stop one of them`,
    };
  // A member no more that does not know: taken in again only to leave what it runs, which takes its Engine.
  if (cluster_id !== undefined && !node && state.departures.has(node_id) && engine.state !== "ready")
    return {
      code: "node_removed" satisfies PassingRefusal,
      message:
        "this node was removed from the cluster; it stops what it runs, and ends, when its Docker Engine answers",
    };
  return holder && holder.node_id !== node_id ? engineInUse({ boot_id: undefined, ...hello }, holder) : undefined;
}
