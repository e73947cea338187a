/**
 * @module What a slot waits for whose service must never run twice (`stop_when_isolated`) and whose former replica may still run
 * on a node that was given up, in words. Pure; when that is so is in `reconcile_goal.ts`.
 */
import type { AllocationRecord } from "./model.ts";
import { mayRun, type PlanContext, stoppedAloneAt } from "./reconcile_goal.ts";

/** Why nothing takes the replica's place yet; undefined: its node was not given up, or nothing of it can run there any more. */
export function isolationWait(
  allocation: AllocationRecord,
  { state, now }: Pick<PlanContext, "state" | "now">,
): string | undefined {
  const { service_name, slot, node_id } = allocation;
  if (!state.isLost(node_id) || !mayRun(allocation, { state, now })) return undefined;
  const at = stoppedAloneAt(allocation, state);
  const name = state.nodes.get(node_id)?.node_name ?? node_id;
  if (at < Infinity)
    return `waiting ${Math.ceil((at - now) / 1000)} s more for node ${name}, which is down, to have stopped it by itself (stop_when_isolated)`;
  const where = state.isDown(node_id)
    ? "which is down, and whose Docker Engine did not answer before that"
    : "whose Docker Engine does not answer";
  return (
    `${service_name}.${slot} may still run on node ${name}, ${where}: it is placed again when that Engine answers, or when you ` +
    `say that it does not run there any more: POST /cluster/reschedule?node=${encodeURIComponent(name)}`
  );
}
