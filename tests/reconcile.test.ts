/** @module Reconcile as a table of situations, and as properties of whole services that go on until they settle. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { AllocationStatus } from "../src/model.ts";
import { reconcileRemoved } from "../src/reconcile.ts";
import { emptyPlan, type Goal } from "../src/reconcile_goal.ts";
import { rules } from "./cluster_fixture.ts";
import { Bench } from "./reconcile_bench.ts";

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
    expect(bench.plan(goal)).toEqual(emptyPlan());
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
    expect(bench.plan(goal)).toEqual(emptyPlan());
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
    expect(bench.plan(bench.goal(4))).toEqual(emptyPlan());
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
    expect(bench.plan(bench.goal(3, { service, spec_hash: "h2" }))).toEqual(emptyPlan());
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
    for (const one of bench.running()) bench.report(one, "exited", { final: true });
    expect(bench.plan(goal)).toEqual(emptyPlan());
  });

  test("removes replicas that do not run before those that do", () => {
    const bench = new Bench(["a", "b"]);
    bench.settle(bench.goal(4));
    const victim = bench.running()[1];
    if (victim) bench.report(victim, "failed");
    expect(bench.plan(bench.goal(3)).stop).toEqual(victim ? [victim] : []);
  });
});

describe("a service with rules", () => {
  const agent = (bench: Bench, more: Partial<Goal> = {}) => {
    const one = { rules: rules({ mode: "global", ...more.rules }), ...more };
    return bench.goal(bench.state.scaleOf({ scale: 1, rules: one.rules }), one);
  };
  const where = (bench: Bench) =>
    bench
      .running()
      .map(({ node_id, slot }) => `${node_id}${slot}`)
      .toSorted();

  test("that is global runs once on each node, also on one that joins later", () => {
    const bench = new Bench(["a", "b"]);
    bench.settle(agent(bench));
    expect(where(bench)).toEqual(["a1", "b2"]);
    bench.add("c");
    bench.settle(agent(bench));
    expect(where(bench)).toEqual(["a1", "b2", "c3"]);
    expect(bench.plan(agent(bench))).toMatchObject({ place: [], stop: [], blocked: [] });
  });

  test("that is global leaves a node that matches no more, and stays with one that is down", () => {
    const bench = new Bench(["a", "b", "c"]);
    const constraints = [{ key: "node.labels.gpu", operator: "!=" as const, value: "yes" }];
    const goal = () => agent(bench, { rules: rules({ mode: "global", constraints }) });
    bench.settle(goal());
    bench.set("a", "down");
    expect(bench.plan(goal())).toMatchObject({ place: [], stop: [] });
    bench.set("a", "ready");
    bench.label("b", [["gpu", "yes"]]);
    bench.settle(goal());
    expect(where(bench)).toEqual(["a1", "c3"]);
  });

  test("that is global says for which node it has no place", () => {
    const bench = new Bench(["a", "b"]);
    bench.set("b", "down");
    expect(bench.plan(agent(bench)).blocked).toEqual([{ slot: 2, reasons: ["this slot is for node b; 1 node: down"] }]);
  });

  test("that is global is replaced node by node, on the same slots", () => {
    const bench = new Bench(["a", "b", "c"]);
    bench.settle(agent(bench));
    const before = where(bench);
    const goal = agent(bench, { spec_hash: "h2", service: { image: "new" } } as Partial<Goal>);
    for (let round = 0; round < 20; round++) {
      bench.commit(bench.plan(goal));
      expect(bench.running().length).toBeGreaterThanOrEqual(2);
      bench.obey();
    }
    expect(where(bench)).toEqual(before);
    expect(bench.running().every(({ spec_hash }) => spec_hash === "h2")).toBe(true);
  });

  test("that ran to its end is left so when its node goes down, and runs again when its definition changes", () => {
    const bench = new Bench(["a", "b"]);
    const job = { rules: rules({ mode: "replicated-job" }) };
    bench.commit(bench.plan(bench.goal(2, job)));
    for (const one of bench.running()) bench.end(one);
    expect(bench.plan(bench.goal(2, job))).toMatchObject({ place: [], stop: [] });
    bench.set("a", "down");
    expect(bench.plan(bench.goal(2, job))).toMatchObject({ place: [], stop: [] });
    bench.set("a", "ready");
    expect(bench.plan(bench.goal(2, { ...job, spec_hash: "h2" })).stop).toHaveLength(2);
  });

  test("what ended for good holds no resources", () => {
    const bench = new Bench(["a"]);
    const job = { rules: rules({ mode: "replicated-job" }), service: { reservations: { cpus: 2 } } };
    bench.commit(bench.plan(bench.goal(2, job)));
    expect(bench.plan(bench.goal(2, job)).blocked).toHaveLength(1);
    for (const one of bench.running()) bench.end(one);
    expect(bench.plan(bench.goal(2, job)).place).toHaveLength(1);
  });

  test("keeps its replicas when a node's label changes, and moves them when its constraints do", () => {
    const bench = new Bench(["a", "b"]);
    const to = (value: string) => rules({ constraints: [{ key: "node.labels.zone", operator: "==", value }] });
    bench.label("a", [["zone", "1"]]);
    bench.label("b", [["zone", "2"]]);
    bench.settle(bench.goal(2, { rules: to("1") }));
    bench.label("a", []);
    expect(bench.plan(bench.goal(2, { rules: to("1") }))).toMatchObject({ place: [], stop: [], blocked: [] });
    expect(bench.plan(bench.goal(3, { rules: to("1") })).blocked).toEqual([
      { slot: 3, reasons: ["2 nodes: does not match node.labels.zone == 1"] },
    ]);
    bench.settle(bench.goal(2, { rules: to("2"), rules_since: 2, job_version: 2 }));
    expect(bench.running().map(({ node_id }) => node_id)).toEqual(["b", "b"]);
    const nowhere = bench.goal(2, { rules: to("3"), rules_since: 3, job_version: 3 });
    expect(bench.plan(nowhere)).toMatchObject({ place: [], stop: [] });
  });

  test("waits on an update for a replica to be healthy, and replaces sick ones first", () => {
    const bench = new Bench(["a", "b"]);
    bench.settle(bench.goal(3));
    const sick = bench.running().find(({ slot }) => slot === 3);
    if (sick) bench.report(sick, "running", { health: "unhealthy" });
    const goal = bench.goal(3, { spec_hash: "h2" });
    const first = bench.plan(goal);
    expect(first.stop.map(({ slot }) => slot)).toEqual([3]);
    bench.commit(first);
    bench.obey();
    bench.commit(bench.plan(goal));
    const fresh = bench.running().find(({ spec_hash }) => spec_hash === "h2");
    for (const health of ["starting", "unhealthy"] as const) {
      if (fresh) bench.report(fresh, "running", { health });
      expect(bench.plan(goal).stop).toEqual([]);
    }
    if (fresh) bench.report(fresh, "running", { health: "healthy" });
    expect(bench.plan(goal).stop).toHaveLength(1);
  });

  const conditions = ["service_started", "service_healthy", "service_completed_successfully"] as const;
  type Seen = { state: AllocationStatus["state"]; health?: "starting" | "healthy" | "unhealthy"; exit?: number };
  const seen: [seen: Seen | undefined, holds: readonly boolean[], without: readonly boolean[]][] = [
    [undefined, [false, false, false], [false, false, false]],
    [{ state: "pulling" }, [false, false, false], [false, false, false]],
    [{ state: "failed" }, [false, false, false], [true, true, true]],
    [{ state: "running" }, [true, false, false], [true, true, false]],
    [{ state: "running", health: "starting" }, [true, false, false], [true, false, false]],
    [{ state: "running", health: "healthy" }, [true, true, false], [true, true, false]],
    [{ state: "running", health: "unhealthy" }, [true, false, false], [true, true, false]],
    [{ state: "exited", exit: 0 }, [true, false, true], [true, true, true]],
    [{ state: "exited", exit: 3 }, [true, false, false], [true, true, true]],
  ];
  const rows = seen.flatMap(([one, holds, without]) =>
    conditions.flatMap((condition, i) => [
      [one, condition, true, holds[i] ?? false] as const,
      [one, condition, false, without[i] ?? false] as const,
    ]),
  );
  test.each(rows)("a dependency seen as %p, %s, required %p: starts %p", (one, condition, required, starts) => {
    const bench = new Bench(["a"]);
    const db = bench.goal(1, { service_name: "db" });
    bench.commit(bench.plan(db));
    const [replica] = bench.running();
    if (replica && one) {
      bench.report(replica, one.state, {
        ...(one.health ? { health: one.health } : {}),
        ...(one.state === "running" ? { started_at: 1 } : {}),
      });
      if (one.exit !== undefined) bench.end(replica, one.exit);
    }
    const need = { service_name: "db", condition, required, spec_hash: "h1", scale: 1, released: true };
    const plan = bench.plan(bench.goal(2, { service_name: "web", released: false, needs: [need] }));
    expect(plan.released).toBe(starts);
    expect(plan.place).toHaveLength(starts ? 2 : 0);
    expect(plan.blocked).toHaveLength(starts ? 0 : 2);
    if (!starts) expect(plan.blocked[0]?.reasons[0]).toStartWith("waiting for service db to ");
  });

  test("says what it waits for, and stops nothing of its older definition meanwhile", () => {
    const bench = new Bench(["a"]);
    bench.settle(bench.goal(1, { service_name: "web" }));
    const need = {
      service_name: "db",
      condition: "service_healthy",
      required: true,
      spec_hash: "h1",
      scale: 1,
      released: true,
    } as const;
    const goal = bench.goal(2, { service_name: "web", spec_hash: "h2", released: false, needs: [need] });
    expect(bench.plan(goal)).toMatchObject({
      stop: [],
      place: [],
      blocked: [{ slot: 2, reasons: ["waiting for service db to be healthy (it has no replica yet)"] }],
    });
    expect(bench.plan({ ...goal, needs: [{ ...need, scale: 0 }] }).released).toBe(true);
    expect(bench.plan({ ...goal, released: true }).place).toHaveLength(1);
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

  test("that is global settles on one replica for each node that matches, whatever happened before", () => {
    const names = ["a", "b", "c", "d"];
    const trouble = fc.record({
      node: fc.constantFrom(...names),
      to: fc.constantFrom("ready" as const, "unready" as const, "down" as const),
      zone: fc.constantFrom("1", "2"),
      version: fc.integer({ min: 1, max: 2 }),
    });
    fc.assert(
      fc.property(fc.array(trouble, { maxLength: 12 }), (list) => {
        const bench = new Bench(["a", "b"]);
        const wanted = rules({
          mode: "global",
          constraints: [{ key: "node.labels.zone", operator: "!=", value: "2" }],
        });
        let version = 1;
        const goal = () =>
          bench.goal(bench.state.scaleOf({ scale: 1, rules: wanted }), { rules: wanted, spec_hash: `h${version}` });
        for (const step of list) {
          if (bench.state.nodes.has(step.node)) bench.set(step.node, step.to);
          else bench.add(step.node);
          bench.label(step.node, [["zone", step.zone]]);
          ({ version } = step);
          bench.commit(bench.plan(goal()));
          bench.obey();
        }
        for (const node of names) bench.set(node, "ready");
        bench.settle(goal());
        const nodes = bench.state.nodesFor(wanted).map(({ node_id }) => node_id);
        expect(
          bench
            .running()
            .map(({ node_id }) => node_id)
            .toSorted(),
        ).toEqual(nodes);
        expect(new Set(bench.running().map(({ slot }) => slot)).size).toBe(nodes.length);
        expect(bench.state.allocations.size).toBe(nodes.length);
        expect(bench.running().every(({ spec_hash }) => spec_hash === `h${version}`)).toBe(true);
      }),
    );
  });

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
