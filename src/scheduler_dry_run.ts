/** @module What a PUT would do, planned beforehand: the first plan of each service of a job that is not stored. Changes nothing. */
import { type ServiceKey, serviceKey } from "./cluster_state.ts";
import { describeError } from "./log.ts";
import type { Faults } from "./log_faults.ts";
import type { LiveJob } from "./model.ts";
import type { ServiceSpec } from "./model_spec.ts";
import type { Goal, Plan, PlanContext } from "./reconcile_goal.ts";
import { reconcileService } from "./reconcile.ts";
import type { Goals } from "./scheduler_goals.ts";
import { attemptPlan, failedPlan, tally } from "./scheduler_planner.ts";

/** What a dry run would do to one service. */
export type ServicePlan = { goal: Goal; plan: Plan };

/** `specs` are those of the job's services, in their order. */
export function planBeforehand(
  job: LiveJob,
  {
    specs,
    goals,
    context,
    faults,
  }: { specs: readonly ServiceSpec[]; goals: Goals; context: PlanContext; faults: Faults },
): ServicePlan[] {
  const known = new Map(job.services.map((service, i) => [service.service_name, { service, spec: specs[i] }]));
  const byHash = new Map([...known.values()].map(({ service, spec }) => [service.spec_hash, spec]));
  const bonds = goals.bonds.of(job, { specs: byHash });
  const planned = new Map<ServiceKey, Plan>();
  const turn = { ...context, planned, before: tally(context.candidates) };
  const names = new Set([...known.keys()].flatMap((name) => bonds.get(name)?.group ?? name));
  return [...names].flatMap((name) => {
    const { service, spec } = known.get(name) ?? {};
    if (!service || !spec) return [];
    // Where everything would go, not what starts first.
    const goal = { ...goals.of(job, { service, spec }), released: true };
    const outcome = attemptPlan(turn, () => reconcileService(goal, turn));
    if ("error" in outcome)
      faults.tell("an error of Cacophony itself: a service could not be planned beforehand", outcome.error, {
        service: serviceKey(goal),
      });
    const plan =
      "error" in outcome ? failedPlan(serviceKey(goal), { text: describeError(outcome.error) }, context) : outcome;
    planned.set(serviceKey(goal), plan);
    return [{ goal, plan }];
  });
}
