/** @module What a request changes in the cluster's state, where no other test sees it. */
import { expect, test } from "bun:test";
import { ClusterState } from "../src/cluster_state.ts";
import { changesForDelete } from "../src/job_changes.ts";

test("deleting a job with its volumes gives the duty to remove them also to nodes that left, for when they come again", () => {
  const state = new ClusterState();
  const node = { node_name: "", address: "", labels: [], set_labels: [], joined_at: 0 };
  const member = { ...node, node_id: "here", role: "worker", availability: "active" } as const;
  state.apply([
    { op: "put", kind: "node", record: member },
    { op: "put", kind: "departure", record: { node_id: "gone", node_name: "", address: "", left_at: 0 } },
    {
      op: "put",
      kind: "job",
      record: {
        state: "live",
        job_id: "j",
        version: 1,
        incarnation: "i",
        document: "{}",
        services: [],
        created_at: 0,
        updated_at: 0,
      },
    },
  ]);
  let ids = 0;
  const { changes } = changesForDelete(state, { jobId: "j", volumes: true, newId: () => `r${++ids}` });
  const on = changes.flatMap((one) => (one.op === "put" && one.kind === "removal" ? [one.record.node_id] : []));
  expect(on).toEqual(["here", "gone"]);
});
