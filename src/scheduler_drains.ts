/**
 * @module Draining, the master's side: which nodes are being emptied, whose turn it is there, why services find no place
 * elsewhere, and when nodes are to be empty. Owns what is remembered of that from pass to pass; `reconcile_drain.ts` has the rules.
 */
import { Alarms, type Clock } from "./clock.ts";
import type { ClusterState, ServiceKey } from "./cluster_state.ts";
import type { NodeRecord } from "./model.ts";
import { type DrainFacts, drainings, type Draining, type DrainWait, drainWaits } from "./reconcile_drain.ts";
import type { Plan } from "./reconcile_goal.ts";
import { isolationWait } from "./reconcile_isolation.ts";
import type { Goals } from "./scheduler_goals.ts";

export type DrainsOptions = {
  state: ClusterState;
  goals: Goals;
  clock: Clock;
  wake: (keys: ServiceKey[]) => void;
  /** Called at a node's deadline. */
  wakeForNode: (nodeId: string) => void;
};

export class Drains {
  readonly #options: DrainsOptions;
  /** Why services find no place outside of nodes that are to be emptied, as of their last turn. */
  readonly #stuck = new Map<ServiceKey, readonly string[]>();
  /** Those of them that had their turn since room last appeared. */
  readonly #passedOver = new Set<ServiceKey>();
  /** When nodes that are being emptied are to be empty. */
  readonly #deadlines = new Alarms<string>();

  constructor(options: DrainsOptions) {
    this.#options = options;
  }

  stop(): void {
    this.#deadlines.stop();
  }

  /** The nodes that are being emptied, as they are now. */
  current(): Map<string, Draining> {
    return drainings(this.#facts());
  }

  /** What keeps a node from being empty. */
  waits(node: NodeRecord): DrainWait[] {
    return drainWaits(node, this.#facts());
  }

  /** Room may have appeared: those that found no place get their turn again. */
  retry(): ServiceKey[] {
    this.#passedOver.clear();
    return [...this.#stuck.keys()];
  }

  /** Keeps what a service's plan says of its leaving; `draining` is what it was made with. */
  remember(key: ServiceKey, { plan, draining }: { plan: Plan; draining: ReadonlyMap<string, Draining> }): void {
    if (plan.stuck.length > 0) {
      this.#stuck.set(key, [...new Set(plan.stuck)]);
      this.#passedOver.add(key);
      return;
    }
    const allocations = this.#options.state.allocationsOf(key);
    // A plan says nothing about that while others have their turn.
    const waits = this.#stuck.has(key) && allocations.some(({ node_id }) => draining.has(node_id));
    if (waits && ![...draining.values()].some(({ turn }) => turn === key)) return;
    this.#stuck.delete(key);
    this.#passedOver.delete(key);
  }

  /** After a pass that looked at `done`: the next services get their turn; what is left at a deadline goes then. */
  follow(done: ReadonlySet<ServiceKey>): void {
    const { state, clock, wake, wakeForNode } = this.#options;
    for (const [nodeId, { due, isOver }] of this.current()) {
      wake(due.filter((key) => !done.has(key)));
      const at = isOver ? undefined : state.nodes.get(nodeId)?.drain?.deadline_at;
      this.#deadlines.set(nodeId, { at, clock, ring: () => wakeForNode(nodeId) });
    }
  }

  #facts(): DrainFacts {
    const { state, goals, clock } = this.#options;
    return {
      state,
      now: clock.now(),
      mobilityOf: (key) => goals.mobilityOf(key),
      stuckOf: (key) => this.#stuck.get(key) ?? [],
      isolationOf: (allocation) => isolationWait(allocation, { state, now: clock.now() }),
      isPassedOver: (key) => this.#passedOver.has(key),
    };
  }
}
