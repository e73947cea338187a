/** @module The assignments of one node as a message: the full set of what it must run, with all that it needs for that. */
import type { ClusterState } from "./cluster_state.ts";
import { assignedImageOf } from "./job_images.ts";
import type { AllocationRecord, Assignments, Order } from "./model.ts";
import type { Registries } from "./scheduler_registries.ts";

export function assignmentsFor(
  nodeId: string,
  {
    state,
    registries,
    allocations,
    order,
  }: { state: ClusterState; registries: Registries; allocations: AllocationRecord[]; order: Order },
): Assignments {
  const specs = [...new Set(allocations.map(({ spec_hash }) => spec_hash))].flatMap((spec_hash) => {
    const spec = state.specs.get(spec_hash);
    return spec ? [{ spec_hash, spec }] : [];
  });
  return {
    type: "assignments",
    order,
    specs,
    allocations,
    // A node takes containers of the job for its next life, whose volumes are to stay: those of this life go first.
    removals: [...state.removals.values()].filter(
      (removal) => removal.node_id === nodeId && !allocations.some(({ job_id }) => job_id === removal.job_id),
    ),
    logins: registries.loginsFor(specs.map(({ spec }) => spec.image)),
    images: allocations.flatMap((allocation) => assignedImageOf(state, allocation)),
  };
}
