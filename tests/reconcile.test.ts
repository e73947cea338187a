/** @module Reconcile as a table of situations, and as properties of whole services that go on until they settle. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { ClusterState } from "../src/cluster_state.ts";
import type { AllocationRecord, AllocationStatus, ServiceSpec } from "../src/model.ts";
import type { Goal, Plan } from "../src/reconcile.ts";
import { reconcileRemoved, reconcileService } from "../src/reconcile.ts";
import { idleMachine, seeded, spec } from "./cluster_fixture.ts";

/** A cluster whose nodes do at once what they are told. */
class Bench {
  readonly state = new ClusterState();
  readonly random = seeded(3);
  #ids = 0;
  #now = 1000;

  constructor(nodes: readonly string[]) {
    for (const node_id of nodes) {
      const record = {
        node_id,
        node_name: node_id,
        address: "",
        role: "worker",
        availability: "active",
        labels: [],
        joined_at: 0,
      } as const;
      this.state.apply([{ op: "put", kind: "node", record: { ...record, labels: [] } }]);
      this.state.views.set(node_id, {
        state: "ready",
        reason: "",
        lastSeen: 0,
        connected: true,
        version: "",
        engine: undefined,
        resources: idleMachine(),
        foreign: [],
        applied: undefined,
        reported: true,
        statuses: new Map(),
      });
    }
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
      ...rest,
    };
    this.state.apply([{ op: "put", kind: "spec", record: { spec_hash: goal.spec_hash, spec: goal.spec } }]);
    return goal;
  }

  plan(goal: Goal): Plan {
    const newId = () => `a${String(++this.#ids).padStart(4, "0")}`;
    return reconcileService(goal, {
      state: this.state,
      candidates: this.state.candidates(),
      now: this.#now++,
      random: this.random,
      newId,
    });
  }

  /** Writes the plan down as the Scheduler would. */
  commit(plan: Plan): void {
    this.state.apply([
      ...plan.place.map((record) => ({ op: "put", kind: "allocation", record }) as const),
      ...plan.stop.map(
        (record) => ({ op: "put", kind: "allocation", record: { ...record, desired: "stop" } }) as const,
      ),
      ...plan.homes.map((record) => ({ op: "put", kind: "home", record }) as const),
    ]);
  }

  report(allocation: AllocationRecord, state: AllocationStatus["state"], final = false): void {
    const { allocation_id, node_id } = allocation;
    this.state.views.get(node_id)?.statuses.set(allocation_id, { allocation_id, state, final, ports: [], restarts: 0 });
    this.state.touch(node_id);
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

  running(): AllocationRecord[] {
    return [...this.state.allocations.values()].filter(
      ({ desired, node_id }) => desired === "run" && !this.state.isDown(node_id),
    );
  }
}

describe("reconcile()", () => {
  test("places what is missing and then has nothing more to do", () => {
    const bench = new Bench(["a", "b", "c"]);
    const goal = bench.goal(6);
    bench.settle(goal);
    expect(
      bench
        .running()
        .map(({ slot }) => slot)
        .toSorted(),
    ).toEqual([1, 2, 3, 4, 5, 6]);
    expect(bench.plan(goal)).toEqual({ place: [], stop: [], homes: [], blocked: [] });
  });

  test("replaces an allocation whose node is down, and lets the old one go when the node returns", () => {
    const bench = new Bench(["a", "b"]);
    const goal = bench.goal(2);
    bench.settle(goal);
    bench.set("a", "down");
    bench.settle(goal);
    expect(bench.running().map(({ node_id }) => node_id)).toEqual(["b", "b"]);
    bench.set("a", "ready");
    bench.settle(goal);
    expect(bench.running()).toHaveLength(2);
    expect([...bench.state.allocations.values()].every(({ desired }) => desired === "run")).toBe(true);
  });

  test("leaves allocations alone whose node is only unready", () => {
    const bench = new Bench(["a", "b"]);
    const goal = bench.goal(4);
    bench.settle(goal);
    bench.set("a", "unready");
    expect(bench.plan(goal)).toEqual({ place: [], stop: [], homes: [], blocked: [] });
  });

  test("replaces a changed service replica by replica", () => {
    const bench = new Bench(["a", "b", "c"]);
    bench.settle(bench.goal(5));
    const goal = bench.goal(5, { spec_hash: "h2", service: { image: "other" } });
    for (let round = 0; round < 50; round++) {
      const plan = bench.plan(goal);
      if (plan.stop.length === 0 && plan.place.length === 0) break;
      bench.commit(plan);
      expect(plan.stop.length).toBeLessThanOrEqual(1);
      expect(bench.running().length).toBeGreaterThanOrEqual(4);
      bench.obey();
    }
    expect(bench.running().every(({ spec_hash }) => spec_hash === "h2")).toBe(true);
  });

  test("does not go on with an update whose first replica does not run", () => {
    const bench = new Bench(["a", "b"]);
    bench.settle(bench.goal(4));
    const goal = bench.goal(4, { spec_hash: "h2", service: { image: "broken" } });
    bench.commit(bench.plan(goal));
    for (const one of [...bench.state.allocations.values()].filter(({ desired }) => desired === "stop")) {
      bench.state.views.get(one.node_id)?.statuses.delete(one.allocation_id);
      bench.state.apply([{ op: "delete", kind: "allocation", key: one.allocation_id }]);
    }
    const second = bench.plan(goal);
    bench.commit(second);
    for (const one of second.place) bench.report(one, "failed");
    expect(bench.plan(goal)).toMatchObject({ stop: [], place: [] });
    const fixed = bench.goal(4, { spec_hash: "h3", service: { image: "fixed" } });
    expect(bench.plan(fixed).stop.map(({ spec_hash }) => spec_hash)).toEqual(["h2"]);
  });

  test("does not take a missing report for a stopped container", () => {
    const bench = new Bench(["a", "b"]);
    bench.settle(bench.goal(4));
    const view = bench.state.views.get("a");
    view?.statuses.clear();
    if (view) Object.assign(view, { state: "unready", reported: false });
    expect(bench.plan(bench.goal(4))).toEqual({ place: [], stop: [], homes: [], blocked: [] });
    expect(bench.plan(bench.goal(4, { spec_hash: "h2" })).stop.map(({ node_id }) => node_id)).toEqual(["b"]);
  });

  test("keeps slots with data on their node over updates, scale-downs and while the node is down", () => {
    const bench = new Bench(["a", "b", "c"]);
    const mount = {
      type: "volume",
      volume: { key: "data", external: false, driver_opts: [], labels: [] },
      target: "/data",
      read_only: false,
      nocopy: false,
      long: false,
    } as const;
    const service = { mounts: [{ ...mount, volume: { ...mount.volume, driver_opts: [], labels: [] } }] };
    bench.settle(bench.goal(3, { service }));
    const where = () => Object.fromEntries(bench.running().map(({ slot, node_id }) => [slot, node_id]));
    const before = where();
    bench.settle(bench.goal(1, { service }));
    bench.settle(bench.goal(3, { service, spec_hash: "h2" }));
    expect(where()).toEqual(before);
    bench.set("a", "down");
    expect(bench.plan(bench.goal(3, { service, spec_hash: "h2" }))).toEqual({
      place: [],
      stop: [],
      homes: [],
      blocked: [],
    });
  });

  test("a new job of a deleted one's id waits for the old containers", () => {
    const bench = new Bench(["a"]);
    bench.settle(bench.goal(1));
    bench.commit(reconcileRemoved([...bench.state.allocations.values()]));
    const goal = bench.goal(1, { incarnation: "i2" });
    expect(bench.plan(goal).blocked).toEqual([
      { slot: 1, reasons: ["waiting for the containers of the deleted job with this id to stop"] },
    ]);
    bench.obey();
    expect(bench.plan(goal).place).toHaveLength(1);
  });

  test("a container that ended for good is neither replaced nor started anew", () => {
    const bench = new Bench(["a"]);
    const goal = bench.goal(1, { service: { restart: { condition: "no", max_attempts: 0, compose: "no" } } });
    bench.commit(bench.plan(goal));
    for (const one of bench.running()) bench.report(one, "exited", true);
    expect(bench.plan(goal)).toEqual({ place: [], stop: [], homes: [], blocked: [] });
  });

  test("removes replicas that do not run before those that do", () => {
    const bench = new Bench(["a", "b"]);
    bench.settle(bench.goal(4));
    const victim = bench.running()[1];
    if (victim) bench.report(victim, "failed");
    expect(bench.plan(bench.goal(3)).stop).toEqual(victim ? [victim] : []);
  });
});

describe("every service", () => {
  const steps = fc.array(
    fc.oneof(
      fc.record({ scale: fc.integer({ min: 0, max: 12 }), version: fc.integer({ min: 1, max: 3 }) }),
      fc.record({
        node: fc.constantFrom("a", "b", "c"),
        to: fc.constantFrom("ready" as const, "unready" as const, "down" as const),
      }),
    ),
    { maxLength: 12 },
  );

  test("settles on exactly its scale once all nodes are back, each slot once, whatever happened before", () => {
    fc.assert(
      fc.property(steps, (list) => {
        const bench = new Bench(["a", "b", "c"]);
        let goal = bench.goal(3);
        for (const step of list) {
          if ("node" in step) bench.set(step.node, step.to);
          else goal = bench.goal(step.scale, { spec_hash: `h${step.version}` });
          bench.commit(bench.plan(goal));
          bench.obey();
        }
        for (const node of ["a", "b", "c"]) bench.set(node, "ready");
        bench.settle(goal);
        expect(bench.running()).toHaveLength(goal.scale);
        expect(new Set(bench.running().map(({ slot }) => slot)).size).toBe(goal.scale);
        expect(bench.running().every(({ spec_hash }) => spec_hash === goal.spec_hash)).toBe(true);
        expect(bench.state.allocations.size).toBe(goal.scale);
      }),
    );
  });
});
