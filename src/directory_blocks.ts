/**
 * @module Blocks of addresses: what of the cluster's range a node gets for its containers' networks. A node gets its first one
 * when it is ready, so that a node which only says hello uses up none, and keeps it for as long as it is a member. Pure.
 */
import type { ClusterState } from "./cluster_state.ts";
import { freeSubnet } from "./subnet.ts";

/** A node's block of the cluster's range: 256 addresses. */
const BLOCK_BITS = 24;

/** A block that no node has; undefined when the cluster's range has none left. */
export function freeBlock({ nodes }: Pick<ClusterState, "nodes">, range: string): string | undefined {
  const taken = [...nodes.values()].flatMap(({ subnets = [] }) => subnets);
  return freeSubnet(range, { taken, bits: BLOCK_BITS });
}
