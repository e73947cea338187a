/**
 * @module What a service's start waits for: `depends_on`, as seen from the reports of the services it names. Pure.
 *
 * As compose does, all replicas of a dependency count; those that placement has no room for do not, or a full cluster would
 * hold up everything. A dependency with scale 0 holds up nothing. Only replicas of its present definition, made since the last
 * restart, count.
 */
import type { ClusterState } from "./cluster_state.ts";
import { serviceKey } from "./cluster_state.ts";
import type { AllocationRecord } from "./model.ts";
import type { Dependency } from "./model_spec.ts";

/** A dependency, with what its service should be. */
export type Need = Dependency & { spec_hash: string; generation?: number; scale: number; released: boolean };

/** Slots of a service without an allocation, as of the last pass. */
type BlockedOf = (key: ReturnType<typeof serviceKey>) => readonly unknown[];

const AIMS = {
  service_started: "start",
  service_healthy: "be healthy",
  service_completed_successfully: "complete successfully",
} as const;

/** One sentence for each dependency whose condition does not hold now. */
export function waitingFor(
  { job_id, incarnation, needs }: { job_id: string; incarnation: string; needs: readonly Need[] },
  { state, blockedOf }: { state: ClusterState; blockedOf: BlockedOf },
): string[] {
  return needs.flatMap((need) => {
    const { service_name, scale, condition, required } = need;
    if (scale === 0) return [];
    const key = serviceKey({ job_id, service_name });
    const replicas = state
      .allocationsOf(key)
      .filter((one) => one.incarnation === incarnation && one.desired === "run" && one.spec_hash === need.spec_hash)
      .filter(({ generation = 0 }) => generation === (need.generation ?? 0))
      .filter(({ node_id, ended }) => ended !== undefined || !state.isLost(node_id))
      .toSorted((a, b) => a.slot - b.slot);
    const open = replicas.map((one) => ({ slot: one.slot, ...shortfall(one, { condition, state }) }));
    const first = open.find(({ why }) => why !== undefined);
    if (replicas.length > 0 && !first) return [];
    // What may be missing holds up nothing once it is known to have failed, or to find no place.
    const isHopeless = open.some(({ failed }) => failed) || (need.released && blockedOf(key).length > 0);
    if (!required && isHopeless) return [];
    const detail = first ? `slot ${first.slot} ${first.why}` : "it has no replica yet";
    return [`waiting for service ${service_name} to ${AIMS[condition]} (${detail})`];
  });
}

/** Why a replica does not meet the condition, and whether it has failed to; empty: it meets it. */
function shortfall(
  allocation: AllocationRecord,
  { condition, state }: { condition: Dependency["condition"]; state: ClusterState },
): { why?: string; failed?: boolean } {
  const { ended, node_id } = allocation;
  const status = state.views.get(node_id)?.reported ? state.status(allocation) : undefined;
  const now = ended ? `ended with exit code ${ended.exit_code}` : `is ${status?.state ?? "pending"}`;
  if (condition === "service_started") {
    return ended || status?.started_at !== undefined ? {} : { why: now, failed: status?.state === "failed" };
  }
  if (condition === "service_completed_successfully") {
    return ended?.exit_code === 0 ? {} : { why: now, failed: ended !== undefined || status?.state === "failed" };
  }
  if (status?.state !== "running" || ended)
    return { why: now, failed: ended !== undefined || status?.state === "failed" };
  if (status.health === undefined) return { why: "has no healthcheck", failed: true };
  return status.health === "healthy"
    ? {}
    : { why: `is ${writeHealth(status.health)}`, failed: status.health === "unhealthy" };
}

function writeHealth(health: "starting" | "unhealthy"): string {
  return health === "starting" ? "not healthy yet" : health;
}
