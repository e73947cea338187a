/**
 * @module Rebalancing, the master's side: which replicas are to move to another node, and which of them may do so now. Owns the
 * budget; `reconcile_rebalance.ts` chooses, and reconcile carries the moves out as it does every replacement. What is not begun
 * yet is forgotten with the process: it is worked out anew when somebody asks.
 */
import { type ClusterState, type ServiceKey, serviceKey } from "./cluster_state.ts";
import type { AllocationRecord } from "./model.ts";
import type { Strategy } from "./placement.ts";
import { isCurrent, isUp, mobilityOf } from "./reconcile_goal.ts";
import { type Movable, planMoves, type Rebalance } from "./reconcile_rebalance.ts";
import type { Goals } from "./scheduler_goals.ts";

/** Replicas that move at a time, in the whole cluster: a rebalancing is in no hurry, and starts load nodes. */
const MOVES_AT_ONCE = 4;
/** Moves of one rebalancing; what is left is found by the next one. */
const MOST_MOVES = 100;
/** What one rebalancing has moved the next one leaves alone for so long: readings and what else moved may not undo it at once. */
const REST_MS = 600_000;
/** By itself only so long after nodes came or went, and when nothing else is under way. */
const SETTLE_MS = 30_000;

export class Moves {
  readonly #state: ClusterState;
  readonly #goals: Goals;
  /** Where allocations are to move that have not begun to. */
  readonly #waiting = new Map<string, string>();

  constructor(options: { state: ClusterState; goals: Goals }) {
    this.#state = options.state;
    this.#goals = options.goals;
  }

  /** Works out what is worth moving, now. `strategy`: of services that say nothing. What was moved a short while ago stays. */
  plan({ strategy, now }: { strategy: Strategy; now: number }): Rebalance {
    const movable: Movable[] = [];
    const others: AllocationRecord[] = [];
    for (const [key, allocations] of Map.groupBy(this.#state.allocations.values(), serviceKey)) {
      const goal = this.#goals.known(key);
      const isFree = goal && mobilityOf(goal) === "free" && (goal.rules.strategy ?? strategy) === "spread";
      for (const allocation of allocations) {
        const isFresh = allocation.replaces?.cause === "rebalance" && now - allocation.created_at < REST_MS;
        if (isFree && !isFresh && this.#isMovable(allocation) && isCurrent(allocation, goal))
          movable.push({ allocation, spec: goal.spec, rules: goal.rules });
        else others.push(allocation);
      }
    }
    return planMoves({ candidates: this.#state.candidates(), movable, others, most: MOST_MOVES });
  }

  /** Has these moves carried out, as their turn comes; returns the services to look at. */
  begin(moves: Rebalance["moves"]): ServiceKey[] {
    this.#waiting.clear();
    for (const { allocation_id, to } of moves) this.#waiting.set(allocation_id, to);
    return this.waiting();
  }

  /** Those whose turn it is; what is under way or can't move any more is forgotten. */
  current(): Map<string, string> {
    // Most passes: nothing is to move, and there are many allocations.
    if (this.#waiting.size === 0) return new Map();
    const successors = [...this.#state.allocations.values()].filter((one) => one.replaces && one.desired === "run");
    const begun = new Set(successors.map(({ replaces }) => replaces?.allocation_id ?? ""));
    const inFlight = successors.filter(
      ({ replaces }) => replaces?.cause === "rebalance" && this.#state.allocations.has(replaces.allocation_id),
    );
    const free = Math.max(0, MOVES_AT_ONCE - inFlight.length);
    for (const id of this.#waiting.keys()) {
      const allocation = this.#state.allocations.get(id);
      if (begun.has(id) || !allocation || !this.#isMovable(allocation)) this.#waiting.delete(id);
    }
    return new Map([...this.#waiting].slice(0, free));
  }

  /** These had their turn, and their new node did not take them: they are to let the others go. */
  forget(ids: readonly string[]): void {
    for (const id of ids) this.#waiting.delete(id);
  }

  /** Services with moves that have not begun. */
  waiting(): ServiceKey[] {
    return [...this.#waiting.keys()].flatMap((id) => {
      const allocation = this.#state.allocations.get(id);
      return allocation ? [serviceKey(allocation)] : [];
    });
  }

  /** Whether this is a time to rebalance without being asked: all is at rest, and has been for a while. */
  isCalm({ now, changedAt }: { now: number; changedAt: number }): boolean {
    if (now - changedAt < SETTLE_MS || this.#waiting.size > 0) return false;
    const isPaired = ({ replaces }: AllocationRecord) => this.#state.allocations.has(replaces?.allocation_id ?? "");
    return [...this.#state.allocations.values()].every(
      (one) => one.ended !== undefined || (this.#isMovable(one) && !isPaired(one)),
    );
  }

  #isMovable(allocation: AllocationRecord): boolean {
    return (
      isUp(this.#state.status(allocation)) &&
      allocation.desired === "run" &&
      this.#state.views.get(allocation.node_id)?.state === "ready"
    );
  }
}
