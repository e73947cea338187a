/**
 * @module The plans of one scheduling pass, service by service. A service whose planning throws is an error of Cacophony itself: it
 * is blocked and says so, nothing of it is changed, and it is tried again ever less often; the plans of all others are carried out.
 * `reconcile.ts` plans; the Scheduler commits.
 */
import { backoffMs, type Clock } from "./clock.ts";
import { type ClusterState, parseServiceKey, type ServiceKey, serviceKey } from "./cluster_state.ts";
import { describeError, type Log } from "./log.ts";
import { stackOf } from "./log_faults.ts";
import { cut, MAX_ERROR_CHARS } from "./model_bounds.ts";
import type { AllocationRecord, Change } from "./model.ts";
import { type Candidate, occupy } from "./placement.ts";
import { emptyPlan, type Plan, type PlanContext } from "./reconcile_goal.ts";
import { reconcileRemoved, reconcileService } from "./reconcile.ts";
import type { Goals } from "./scheduler_goals.ts";
import { changesOfPlan } from "./scheduler_plans.ts";

/** A service that could not be planned is tried again after a second, and then ever less often; a full pass comes as often at least. */
const RETRY = { firstMs: 1_000, capMs: 30_000, random: () => 1 };

export type PlannerOptions = { state: ClusterState; goals: Goals; clock: Clock; log: Log };

/** What one pass is to write down, and whom it concerns. */
export type Planned = { plans: Map<ServiceKey, Plan>; changes: Change[]; nodes: Set<string> };

/** A service whose planning threw. */
type Fault = { text: string; failures: number; retryAt: number; version: number | undefined };

export class Planner {
  readonly #options: PlannerOptions;
  readonly #faults = new Map<ServiceKey, Fault>();

  constructor(options: PlannerOptions) {
    this.#options = options;
  }

  /** Plans these services one after the other. */
  plan(keys: readonly ServiceKey[], context: PlanContext): Planned {
    const plans = new Map<ServiceKey, Plan>();
    const changes: Change[] = [];
    const nodes = new Set<string>();
    const turn = { ...context, planned: plans, before: tally(context.candidates) };
    for (const key of keys) {
      const { plan, own } = this.#planOne(key, turn);
      plans.set(key, plan);
      for (const change of own) changes.push(change);
      for (const { node_id } of [...plan.place, ...plan.stop]) nodes.add(node_id);
    }
    return { plans, changes, nodes };
  }

  #planOne(key: ServiceKey, context: Turn): { plan: Plan; own: readonly Change[] } {
    const { state, goals } = this.#options;
    const { now } = context;
    const fault = this.#faults.get(key);
    const version = state.liveJob(parseServiceKey(key).job_id)?.version;
    if (fault && now < fault.retryAt && fault.version === version)
      return { plan: failedPlan(key, fault, context), own: [] };
    const outcome = attemptPlan(context, () => {
      const goal = goals.find(key);
      const plan = goal ? reconcileService(goal, context) : reconcileRemoved(state.allocationsOf(key));
      return { plan, own: changesOfPlan(state, { plan, now }) };
    });
    if ("plan" in outcome) {
      this.#faults.delete(key);
      return outcome;
    }
    return { plan: failedPlan(key, this.#note(key, outcome, { now, version }), context), own: [] };
  }

  #note(
    key: ServiceKey,
    { error }: { error: unknown },
    { now, version }: Pick<Fault, "version"> & { now: number },
  ): Fault {
    const before = this.#faults.get(key);
    const text = describeError(error);
    const failures = (before?.failures ?? 0) + 1;
    const fault = { text, failures, retryAt: now + backoffMs(failures, RETRY), version };
    this.#faults.set(key, fault);
    if (before?.text !== text)
      this.#options.log.error("an error of Cacophony itself: a service could not be planned; the others go on", {
        service: key,
        error,
        ...stackOf(error),
      });
    return fault;
  }
}

/** A pass under way: its plans so far, and how many allocations its candidates had before the first one. */
export type Turn = PlanContext & { planned: ReadonlyMap<ServiceKey, Plan>; before: number };

/** Makes a plan; what one that throws has counted into the candidates of the pass is taken back. */
export function attemptPlan<T>(turn: Turn, make: () => T): T | { error: unknown } {
  try {
    return make();
  } catch (error) {
    let placed = 0;
    for (const { place } of turn.planned.values()) placed += place.length;
    if (tally(turn.candidates) !== turn.before + placed) turn.candidates = counted(turn);
    return { error };
  }
}

/** The plan of a service that cannot be planned: it changes nothing, and says why. */
export function failedPlan(
  key: ServiceKey,
  { text, retryAt }: { text: string; retryAt?: number },
  { state, now, moves = new Map() }: Pick<PlanContext, "state" | "now" | "moves">,
): Plan {
  const again = retryAt === undefined ? "" : `; it is tried again in ${Math.ceil((retryAt - now) / 1_000)} s`;
  const reason = `an internal error of Cacophony, which its log has more of: ${cut(text, MAX_ERROR_CHARS)}${again}`;
  const isOwn = (allocation: AllocationRecord | undefined) => allocation && serviceKey(allocation) === key;
  return {
    ...emptyPlan(),
    blocked: [{ slot: 1, reasons: [reason] }],
    // Others have their turn to leave a node, and to move.
    stuck: [reason],
    unmovable: [...moves.keys()].filter((id) => isOwn(state.allocations.get(id))),
    ...(retryAt !== undefined && { wakeAt: retryAt }),
  };
}

/** How many allocations the candidates have; every replica that a plan places is counted into its node's. */
export function tally(candidates: readonly Candidate[]): number {
  let all = 0;
  for (const { allocations } of candidates) all += allocations;
  return all;
}

/** The candidates with what the plans of this pass place so far. */
function counted({ state, planned }: Turn): Candidate[] {
  const candidates = state.candidates();
  const byId = new Map(candidates.map((one) => [one.node_id, one]));
  for (const { place } of planned.values()) {
    for (const { job_id, spec_hash, node_id } of place) {
      const [node, spec] = [byId.get(node_id), state.specs.get(spec_hash)];
      if (node && spec) occupy({ job_id, spec, own: new Map() }, node);
    }
  }
  return candidates;
}
