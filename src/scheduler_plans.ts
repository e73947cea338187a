/** @module What is written down of a plan. The Scheduler commits it. */
import type { ClusterState } from "./cluster_state.ts";
import type { AllocationRecord, Change } from "./model.ts";
import type { Plan } from "./reconcile_goal.ts";
import { notesOf } from "./scheduler_nodes.ts";

export function changesOfPlan(state: ClusterState, { plan, now }: { plan: Plan; now: number }): Change[] {
  const put = (record: AllocationRecord): Change => ({ op: "put", kind: "allocation", record });
  // What ended on a node that left is known until it is wanted no more; nobody will tell that it is gone.
  const stop = (one: AllocationRecord): Change =>
    state.nodes.has(one.node_id)
      ? put({ ...one, desired: "stop" })
      : { op: "delete", kind: "allocation", key: one.allocation_id };
  const ended = plan.stop.flatMap((allocation) => {
    const cause = plan.causes.get(allocation.allocation_id);
    return cause === undefined ? [] : [{ allocation, cause }];
  });
  return [
    ...plan.place.map(put),
    ...plan.stop.map(stop),
    ...notesOf(state, { ended, now }),
    ...plan.homes.map((record): Change => ({ op: "put", kind: "home", record })),
  ];
}
