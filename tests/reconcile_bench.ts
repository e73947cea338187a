/** @module One service of a cluster whose nodes do at once what they are told: for tests of reconcile. */
import { ClusterState, newView, type ServiceKey } from "../src/cluster_state.ts";
import type { AllocationRecord, AllocationStatus, Drain } from "../src/model.ts";
import type { ServiceSpec } from "../src/model_spec.ts";
import { reconcileService } from "../src/reconcile.ts";
import { drainings, type Mobility } from "../src/reconcile_drain.ts";
import { type Goal, mobilityOf, type Plan } from "../src/reconcile_goal.ts";
import { changesOfPlan } from "../src/scheduler_plans.ts";
import { idleMachine, rules, seeded, spec } from "./cluster_fixture.ts";

/** A cluster whose nodes do at once what they are told. */
export class Bench {
  readonly state = new ClusterState();
  readonly random = seeded(3);
  now = 1000;
  /** How replicas of other services can leave a node, by `job/service`. */
  readonly others = new Map<ServiceKey, Mobility>();
  /** As the Scheduler keeps it: why services find no place outside of nodes that are to be emptied. */
  #stuck: string[] = [];
  #ids = 0;

  constructor(nodes: readonly string[]) {
    for (const node_id of nodes) this.add(node_id);
  }

  add(node_id: string): void {
    const record = {
      node_id,
      node_name: node_id,
      address: "",
      role: "worker",
      availability: "active",
      joined_at: 0,
    } as const;
    this.state.apply([{ op: "put", kind: "node", record: { ...record, labels: [], set_labels: [] } }]);
    this.state.views.set(node_id, {
      ...newView(0),
      state: "ready",
      reason: "",
      connected: true,
      resources: idleMachine(),
      reported: true,
    });
  }

  goal(scale: number, more: Partial<Goal> & { service?: Partial<ServiceSpec> } = {}): Goal {
    const { service, ...rest } = more;
    const goal = {
      job_id: "j",
      service_name: "s",
      incarnation: "i",
      job_version: 1,
      spec_hash: "h1",
      spec: spec(service),
      scale,
      rules: rules(),
      rules_since: 1,
      released: true,
      needs: [],
      ...rest,
    };
    this.state.apply([{ op: "put", kind: "spec", record: { spec_hash: goal.spec_hash, spec: goal.spec } }]);
    return goal;
  }

  plan(goal: Goal): Plan {
    const newId = () => `a${String(++this.#ids).padStart(4, "0")}`;
    const now = this.now++;
    const isPassedOver = () => this.#stuck.length > 0;
    const facts = { state: this.state, now, mobilityOf: this.#mobilityOf(goal), isPassedOver };
    const plan = reconcileService(goal, {
      state: this.state,
      candidates: this.state.candidates(),
      draining: drainings(facts),
      now,
      random: this.random,
      newId,
      blockedOf: () => [],
    });
    this.#stuck = plan.stuck;
    return plan;
  }

  #mobilityOf(goal: Goal): (key: ServiceKey) => Mobility {
    return (key) => this.others.get(key) ?? mobilityOf(goal);
  }

  /** Writes the plan down as the Scheduler would. */
  commit(plan: Plan): void {
    this.state.apply(changesOfPlan(this.state, { plan, now: this.now }));
  }

  report(allocation: AllocationRecord, state: AllocationStatus["state"], more: Partial<AllocationStatus> = {}): void {
    const { allocation_id, node_id } = allocation;
    const status = { allocation_id, state, final: false, ports: [], restarts: 0, ...more };
    this.state.views.get(node_id)?.statuses.set(allocation_id, status);
    this.state.touch(node_id);
  }

  /** The allocation's container ended for good, and the Scheduler wrote that down. */
  end(allocation: AllocationRecord, exit_code = 0): void {
    this.report(allocation, "exited", { final: true, exit_code });
    this.state.apply([{ op: "put", kind: "allocation", record: { ...allocation, ended: { exit_code } } }]);
  }

  /** Has a node emptied, or takes that back. */
  drain(nodeId: string, drain: Partial<Drain> | undefined = {}): void {
    const record = this.state.nodes.get(nodeId);
    if (!record) return;
    const { drain: _drain, ...rest } = record;
    const given = { started_at: 0, deadline_at: Infinity, force: false, leave: false, ...drain };
    this.state.apply([{ op: "put", kind: "node", record: { ...rest, availability: "drain", drain: given } }]);
  }

  label(nodeId: string, set_labels: [string, string][]): void {
    const record = this.state.nodes.get(nodeId);
    if (record) this.state.apply([{ op: "put", kind: "node", record: { ...record, set_labels } }]);
  }

  /** Every node that is up runs what it should and forgets what it stopped. */
  obey(): void {
    for (const allocation of [...this.state.allocations.values()]) {
      if (this.state.views.get(allocation.node_id)?.state !== "ready") continue;
      if (allocation.desired === "run") this.report(allocation, "running");
      else {
        this.state.views.get(allocation.node_id)?.statuses.delete(allocation.allocation_id);
        this.state.apply([{ op: "delete", kind: "allocation", key: allocation.allocation_id }]);
      }
    }
  }

  /** Plans and obeys until nothing changes any more; returns the number of rounds. */
  settle(goal: Goal): number {
    for (let round = 0; round < 500; round++) {
      const plan = this.plan(goal);
      const waiting = [...this.state.allocations.values()].some(
        ({ desired, node_id }) => desired === "stop" && !this.state.isDown(node_id),
      );
      if (plan.place.length === 0 && plan.stop.length === 0 && !waiting) return round;
      this.commit(plan);
      this.obey();
    }
    throw new Error("did not settle");
  }

  set(nodeId: string, state: "ready" | "unready" | "down"): void {
    const view = this.state.views.get(nodeId);
    if (view) Object.assign(view, { state, connected: state === "ready" });
  }

  /** What the node runs is given up, since its Docker Engine does not answer. */
  lose(nodeId: string): void {
    const engine = { state: "unready", reason: "dockerd hangs" } as const;
    Object.assign(this.state.views.get(nodeId) ?? {}, { state: "unready", lost: true, engine });
  }

  running(): AllocationRecord[] {
    return [...this.state.allocations.values()].filter(
      ({ desired, node_id }) => desired === "run" && !this.state.isDown(node_id),
    );
  }
}
