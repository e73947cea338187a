/**
 * @module What the assignments ask of the node's containers beyond themselves: what they share with each other, and when they are
 * to be stopped without a master. Reads the definitions; decides nothing.
 */
import type { Join } from "./converge.ts";
import type { Wanted } from "./executor_worker.ts";
import type { Assignments } from "./model.ts";
import { sharesOf } from "./model_spec.ts";

/** What the node's containers share with each other, by allocation. */
export function joinsOf(wanted: ReadonlyMap<string, Wanted>): Map<string, Join[]> {
  const joins = new Map<string, Join[]>();
  for (const [id, { allocation, spec }] of wanted) {
    if (!allocation.joins) continue;
    const running = new Map(sharesOf(spec).map((share) => [share.service_name, share.running]));
    joins.set(
      id,
      allocation.joins.map((join) => ({ ...join, running: running.get(join.service_name) ?? false })),
    );
  }
  return joins;
}

/** After how many milliseconds without a master an allocation is to be stopped, for those that are. */
export function isolationsOf(wanted: ReadonlyMap<string, Wanted>): Map<string, number> {
  const limits = new Map<string, number>();
  for (const [id, { spec }] of wanted)
    if (spec.stop_when_isolated_ms !== undefined) limits.set(id, spec.stop_when_isolated_ms);
  return limits;
}

/**
 * What may not start yet, or not again. A job that was deleted with its volumes and came back starts with new ones, so it
 * waits until the old ones are gone. What ended for good stays ended, even when its container is gone.
 */
export function heldBy(
  assignments: Assignments | undefined,
  { wanted, removals }: { wanted: ReadonlyMap<string, Wanted>; removals: readonly { job_id: string }[] },
): Set<string> {
  const jobs = new Set(removals.map(({ job_id }) => job_id));
  const held = (assignments?.allocations ?? []).filter(
    ({ allocation_id, job_id, ended }) => jobs.has(job_id) || ended || !wanted.has(allocation_id),
  );
  return new Set(held.map(({ allocation_id }) => allocation_id));
}
