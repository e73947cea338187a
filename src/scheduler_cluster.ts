/** @module The record of the cluster itself: whether the state that a master found is of its cluster, and the key that belongs to it. */
import type { ClusterKey } from "./cluster_key.ts";
import { type ClusterRecord, StartError } from "./model.ts";

/** What a start of the scheduler goes by, beside the state. */
export type StartFacts = {
  /** The newest term that this node knows of, 0 if its state was never written, and which leadership began it. */
  seenTerm?: number;
  seenLeadership?: string | undefined;
  /** Whether this node wrote the state before. */
  written?: boolean;
  /** The operator says that the state was restored, so that it may be older than what nodes have seen. */
  restored?: boolean;
  /** The cluster's, which goes with its record. */
  key?: ClusterKey;
};

/** Every kind of record that is loaded into the state, in this order. */
export const STATE_KINDS = [
  "spec",
  "node",
  "job",
  "allocation",
  "home",
  "departure",
  "history",
  "removal",
  "registry",
  "secret",
  "chunk",
] as const;

export type ClusterFacts = {
  /** The record of a state that is still empty. */
  fresh: ClusterRecord;
  /** Whether this node wrote the state before. */
  written?: boolean;
  /** Absent: welcomes are not signed. */
  key?: Pick<ClusterKey, "open"> | undefined;
};

/**
 * The cluster's record as it is to be, from the one in the state.
 * @throws StartError when the state is of another cluster, is empty though it was written before, or is without its key.
 */
export function openCluster(
  known: ClusterRecord | undefined,
  { fresh, written = false, key }: ClusterFacts,
): ClusterRecord {
  if (known && known.cluster_id !== fresh.cluster_id)
    throw new StartError(`the cluster state belongs to cluster ${known.cluster_id}, this node to ${fresh.cluster_id}`);
  if (!known && written)
    throw new StartError(
      "the cluster state is empty, though it was written before: restore it, or the nodes would remove all containers",
    );
  const record = known ?? fresh;
  return key ? { ...record, cluster_key: key.open(record.cluster_key) } : record;
}
