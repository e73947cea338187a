/** @module What a PUT would do, planned beforehand: the first plan of each service of a job that is not stored. Changes nothing. */
import { type ServiceKey, serviceKey } from "./cluster_state.ts";
import type { LiveJob } from "./model.ts";
import type { ServiceSpec } from "./model_spec.ts";
import type { Goal, Plan, PlanContext } from "./reconcile_goal.ts";
import { reconcileService } from "./reconcile.ts";
import type { Goals } from "./scheduler_goals.ts";

/** What a dry run would do to one service. */
export type ServicePlan = { goal: Goal; plan: Plan };

/** `specs` are those of the job's services, in their order. */
export function planBeforehand(
  job: LiveJob,
  { specs, goals, context }: { specs: readonly ServiceSpec[]; goals: Goals; context: PlanContext },
): ServicePlan[] {
  const known = new Map(job.services.map((service, i) => [service.service_name, { service, spec: specs[i] }]));
  const byHash = new Map([...known.values()].map(({ service, spec }) => [service.spec_hash, spec]));
  const bonds = goals.bonds.of(job, { specs: byHash });
  const planned = new Map<ServiceKey, Plan>();
  const names = new Set([...known.keys()].flatMap((name) => bonds.get(name)?.group ?? name));
  return [...names].flatMap((name) => {
    const { service, spec } = known.get(name) ?? {};
    if (!service || !spec) return [];
    // Where everything would go, not what starts first.
    const goal = { ...goals.of(job, { service, spec }), released: true };
    const plan = reconcileService(goal, { ...context, planned });
    planned.set(serviceKey(goal), plan);
    return [{ goal, plan }];
  });
}
