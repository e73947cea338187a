/**
 * @module What the assignments ask of the node's containers beyond themselves: what they share with each other, and when they are
 * to be stopped without a master. Reads the definitions; decides nothing.
 */
import type { Join } from "./converge.ts";
import type { Wanted } from "./executor_worker.ts";
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
