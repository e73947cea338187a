/** @module How replicas make way for others: situations by table, and what must hold at every step until all has settled. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { AllocationRecord } from "../src/model.ts";
import type { ServiceSpec } from "../src/model_spec.ts";
import { isEmpty } from "../src/reconcile_drain.ts";
import { emptyPlan, type Goal } from "../src/reconcile_goal.ts";
import { FAILURES, GATE_MS, UNHEALTHY_MS } from "../src/reconcile_replace.ts";
import { rules } from "./cluster_fixture.ts";
import { Bench } from "./reconcile_bench.ts";

const VOLUME: ServiceSpec["mounts"] = [
  {
    type: "volume",
    volume: { key: "data", external: false, driver_opts: [], labels: [] },
    target: "/data",
    read_only: false,
    nocopy: false,
    long: false,
  },
];

function settled(
  scale: number,
  { nodes = ["a", "b", "c"], ...more }: Parameters<Bench["goal"]>[1] & { nodes?: string[] } = {},
) {
  const bench = new Bench(nodes);
  const goal = bench.goal(scale, more);
  bench.settle(goal);
  return { bench, goal };
}

function nodesOf(bench: Bench): string[] {
  return bench
    .running()
    .map(({ node_id }) => node_id)
    .toSorted();
}

/** How many of the service run right now, as their nodes report. */
function up(bench: Bench): number {
  return [...bench.state.allocations.values()].filter((one) => bench.state.status(one)?.state === "running").length;
}

describe("a node that is to be emptied", () => {
  test("has each replica started elsewhere before the old one stops", () => {
    const { bench, goal } = settled(6);
    bench.drain("a");
    const plan = bench.plan(goal);
    expect(plan.stop).toEqual([]);
    expect(plan.place.map(({ replaces }) => replaces?.cause)).toEqual(["drain", "drain"]);
    bench.commit(plan);
    for (const one of plan.place) bench.report(one, "starting");
    expect(bench.plan(goal)).toEqual({ ...emptyPlan(), wakeAt: expect.any(Number) });
    for (const one of plan.place) bench.report(one, "running");
    const next = bench.plan(goal);
    expect([next.place.length, next.stop.map(({ node_id }) => node_id)]).toEqual([0, ["a", "a"]]);
    bench.commit(next);
    bench.obey();
    bench.settle(goal);
    expect(isEmpty(bench.state, "a")).toBe(true);
    expect(nodesOf(bench)).toHaveLength(6);
  });

  test("has no third started beside one that has just taken a slot, before the former one is gone", () => {
    const { bench, goal } = settled(1);
    bench.drain(nodesOf(bench)[0] ?? "");
    const first = bench.plan(goal);
    bench.commit(first);
    for (const one of first.place) bench.report(one, "running");
    bench.commit(bench.plan(goal));
    bench.drain(first.place[0]?.node_id ?? "");
    expect(bench.plan(goal).place).toEqual([]);
    bench.obey();
    expect(bench.plan(goal).place).toHaveLength(1);
  });

  test("starts nothing elsewhere before the containers of a deleted job with the same id have stopped", () => {
    const { bench, goal } = settled(1);
    const [one] = bench.running();
    if (!one) throw new Error("nothing runs");
    const former: AllocationRecord = { ...one, allocation_id: "former", incarnation: "before", service_name: "other" };
    bench.state.apply([{ op: "put", kind: "allocation", record: { ...former, desired: "stop" } }]);
    bench.drain(one.node_id);
    const plan = bench.plan(goal);
    expect([plan.place, plan.stop]).toEqual([[], []]);
    expect(plan.stuck[0]).toContain("deleted job");
    bench.state.apply([{ op: "delete", kind: "allocation", key: "former" }]);
    expect(bench.plan(goal).place).toHaveLength(1);
  });

  test("starts no third replica of a slot while the second stops, whose node is to be empty, too", () => {
    const { bench, goal } = settled(1);
    const [one] = bench.running();
    bench.drain(one?.node_id ?? "");
    const first = bench.plan(goal);
    bench.commit(first);
    bench.drain(first.place[0]?.node_id ?? "", { deadline_at: 0 });
    const plan = bench.plan(goal);
    expect([plan.place, plan.stop.map(({ allocation_id }) => allocation_id)]).toEqual([
      [],
      [first.place[0]?.allocation_id ?? ""],
    ]);
  });

  test("waits for a check to say healthy", () => {
    const { bench, goal } = settled(1);
    const [old] = bench.running();
    bench.drain(old?.node_id ?? "");
    const plan = bench.plan(goal);
    bench.commit(plan);
    const [successor] = plan.place;
    if (!successor) throw new Error("nothing was placed");
    bench.report(successor, "running", { health: "starting" });
    expect(bench.plan(goal).stop).toEqual([]);
    bench.report(successor, "running", { health: "healthy" });
    expect(bench.plan(goal).stop).toEqual([expect.objectContaining({ allocation_id: old?.allocation_id })]);
  });

  test("gives up a successor that does not come up, and tries another node", () => {
    const { bench, goal } = settled(1);
    const [old] = bench.running();
    bench.drain(old?.node_id ?? "");
    const first = bench.plan(goal);
    bench.commit(first);
    const [successor] = first.place;
    if (!successor) throw new Error("nothing was placed");
    bench.report(successor, "failed");
    bench.now += GATE_MS;
    const second = bench.plan(goal);
    expect([second.stop.map(({ allocation_id }) => allocation_id), [...second.causes.values()]]).toEqual([
      [successor.allocation_id],
      ["stuck"],
    ]);
    bench.commit(second);
    bench.obey();
    expect(bench.running()).toEqual([expect.objectContaining({ allocation_id: old?.allocation_id })]);
  });

  test("keeps what has its data there, unless it is forced to give them up", () => {
    const { bench, goal } = settled(1, { nodes: ["a", "b"], service: { mounts: VOLUME } });
    const home = nodesOf(bench)[0] ?? "";
    bench.drain(home);
    expect(bench.plan(goal)).toEqual(emptyPlan());
    bench.drain(home, { force: true });
    // Two must never write at the same time, wherever.
    const plan = bench.plan(goal);
    expect([plan.place, plan.stop.length]).toEqual([[], 1]);
    bench.settle(goal);
    expect(nodesOf(bench)).toEqual([home === "a" ? "b" : "a"]);
  });

  test("lets what runs to its end do so, until the deadline", () => {
    const { bench, goal } = settled(1, { rules: rules({ mode: "replicated-job" }) });
    const home = nodesOf(bench)[0] ?? "";
    bench.drain(home, { deadline_at: bench.now + 1_000 });
    expect(bench.plan(goal)).toEqual(emptyPlan());
    bench.now += 1_000;
    bench.settle(goal);
    expect(nodesOf(bench)).not.toContain(home);
  });

  test("keeps what runs on each node until the others have left", () => {
    const wanted = rules({ mode: "global" });
    const bench = new Bench(["a", "b"]);
    const goal = () => bench.goal(bench.state.scaleOf({ scale: 1, rules: wanted }), { rules: wanted });
    bench.settle(goal());
    const [agent] = bench.running();
    if (!agent) throw new Error("nothing runs");
    const other: AllocationRecord = { ...agent, allocation_id: "o", service_name: "other", node_id: "a" };
    bench.others.set("j/other", "free");
    bench.state.apply([{ op: "put", kind: "allocation", record: other }]);
    bench.drain("a");
    expect(bench.plan(goal())).toEqual(emptyPlan());
    bench.state.apply([{ op: "delete", kind: "allocation", key: "o" }]);
    bench.settle(goal());
    expect(nodesOf(bench)).toEqual(["b"]);
  });

  test("keeps what runs to its end and has its data there also after the deadline, unless it is forced", () => {
    const task = { rules: rules({ mode: "replicated-job" }), service: { mounts: VOLUME } };
    const { bench, goal } = settled(1, { nodes: ["a", "b"], ...task });
    const home = nodesOf(bench)[0] ?? "";
    bench.drain(home, { deadline_at: bench.now });
    expect(bench.plan(goal)).toEqual(emptyPlan());
    bench.drain(home, { deadline_at: bench.now, force: true });
    bench.settle(goal);
    expect(nodesOf(bench)).toEqual([home === "a" ? "b" : "a"]);
  });

  test("starts nothing of a definition that waits for what it depends on", () => {
    const { bench, goal } = settled(1, { nodes: ["a", "b"] });
    bench.drain(nodesOf(bench)[0] ?? "");
    const need = { service_name: "db", condition: "service_healthy", required: true, restart: false } as const;
    const db = { ...need, spec_hash: "db", scale: 1, released: true };
    const waiting = bench.goal(1, { ...goal, spec_hash: "h2", released: false, needs: [db] });
    const plan = bench.plan(waiting);
    expect([plan.place, plan.stop]).toEqual([[], []]);
    expect(plan.stuck[0]).toContain("waiting for service db");
  });

  test("puts no more of a service on another node than that may have", () => {
    const { bench, goal } = settled(2, { nodes: ["a"], rules: rules() });
    bench.add("b");
    bench.drain("a");
    const limited = { ...goal, rules: rules({ max_per_node: 1 }) };
    for (let round = 0; round < 3; round++) bench.commit(bench.plan(limited));
    expect(bench.running().filter(({ node_id }) => node_id === "b")).toHaveLength(1);
  });
});

describe("a replica that does not get well", () => {
  function sicken(bench: Bench, list: readonly AllocationRecord[]): void {
    for (const one of list) {
      bench.report(one, "running", { health: "unhealthy" });
      const view = bench.state.views.get(one.node_id);
      if (view) view.unhealthySince = new Map([...(view.unhealthySince ?? []), [one.allocation_id, bench.now]]);
    }
  }

  test("is replaced when its check has failed for long enough, never all of a service at once", () => {
    const { bench, goal } = settled(3);
    sicken(bench, bench.running());
    const early = bench.plan(goal);
    expect([early.stop, early.wakeAt]).toEqual([[], expect.any(Number)]);
    bench.now += UNHEALTHY_MS;
    const plan = bench.plan(goal);
    expect([plan.stop.length, [...plan.causes.values()]]).toEqual([1, ["unhealthy"]]);
    bench.commit(plan);
    // While one is on its way, the others stay.
    expect(bench.plan(goal).stop).toEqual([]);
  });

  test("is helped less and less often where that is of no use", () => {
    const { bench, goal } = settled(1);
    const times: number[] = [];
    for (let begin = bench.now; bench.now < begin + 3_600_000; bench.now += 1_000) {
      for (const one of bench.running()) if (!bench.state.status(one)?.health) sicken(bench, [one]);
      const plan = bench.plan(goal);
      if (plan.stop.length > 0) times.push(bench.now);
      bench.commit(plan);
      for (const one of plan.place) bench.report(one, "running");
      for (const one of plan.stop) bench.state.apply([{ op: "delete", kind: "allocation", key: one.allocation_id }]);
    }
    expect(times.length).toBeLessThan(10);
    const gaps = times.slice(1).map((at, n) => at - (times[n] ?? 0));
    expect(gaps).toEqual(gaps.toSorted((a, b) => a - b));
  });

  test("moves to another node after failing again and again, and its node is avoided for a while", () => {
    const { bench, goal } = settled(1, { nodes: ["a", "b"] });
    const [one] = bench.running();
    if (!one) throw new Error("nothing runs");
    bench.report(one, "exited", { failures: FAILURES - 1 });
    expect(bench.plan(goal).stop).toEqual([]);
    bench.report(one, "exited", { failures: FAILURES });
    const plan = bench.plan(goal);
    expect([...plan.causes.values()]).toEqual(["failing"]);
    bench.commit(plan);
    bench.obey();
    bench.settle(goal);
    expect(nodesOf(bench)).toEqual([one.node_id === "a" ? "b" : "a"]);
  });

  test("stays where no other node could take it, and where its data are", () => {
    const { bench, goal } = settled(1, { nodes: ["a"] });
    const fail = ({ bench: on }: { bench: Bench }) => {
      for (const one of on.running()) on.report(one, "exited", { failures: FAILURES + 5 });
    };
    fail({ bench });
    expect(bench.plan(goal).stop).toEqual([]);
    const withData = settled(1, { service: { mounts: VOLUME } });
    fail(withData);
    expect(withData.bench.plan(withData.goal).stop).toEqual([]);
  });

  test("is not taken for one that runs while its node says nothing", () => {
    const { bench, goal } = settled(3);
    const changed = bench.goal(3, { ...goal, spec_hash: "h2" });
    for (let round = 0; round < 2; round++) {
      bench.commit(bench.plan(changed));
      bench.obey();
    }
    const fresh = bench.running().find(({ spec_hash }) => spec_hash === "h2");
    bench.set(fresh?.node_id ?? "", "unready");
    expect(bench.plan(changed).stop).toEqual([]);
    bench.set(fresh?.node_id ?? "", "ready");
    expect(bench.plan(changed).stop).toHaveLength(1);
  });
});

describe("data on a lost node", () => {
  test("are waited for, or made anew where the service says so", () => {
    const { bench, goal } = settled(1, { nodes: ["a", "b"], service: { mounts: VOLUME } });
    const home = nodesOf(bench)[0] ?? "";
    bench.set(home, "down");
    expect(bench.plan(goal)).toEqual(emptyPlan());
    bench.settle({ ...goal, rules: rules({ volumes: "recreate" }) });
    expect(nodesOf(bench)).toEqual([home === "a" ? "b" : "a"]);
  });

  test("whose service must never run twice wait until its node has stopped it by itself", () => {
    const limit = { stop_when_isolated_ms: 30_000, stop_grace_period_ms: 10_000 };
    const { bench, goal } = settled(1, { nodes: ["a", "b"], service: limit });
    const home = nodesOf(bench)[0] ?? "";
    bench.set(home, "down");
    const view = bench.state.views.get(home);
    if (view) view.lastSeen = bench.now;
    const plan = bench.plan(goal);
    expect([plan.stop, plan.place]).toEqual([[], []]);
    expect(plan.blocked[0]?.reasons[0]).toContain("stop_when_isolated");
    bench.now = plan.wakeAt ?? 0;
    bench.settle(goal);
    expect(nodesOf(bench)).toEqual([home === "a" ? "b" : "a"]);
  });
});

describe("a service that must never run twice", () => {
  const singleton = { service: { stop_when_isolated_ms: 30_000 } };

  test("leaves a node by stopping first, and only where another one takes it", () => {
    const { bench, goal } = settled(1, singleton);
    const [old] = bench.running();
    const others = ["a", "b", "c"].filter((one) => one !== old?.node_id);
    for (const one of others) bench.set(one, "unready");
    bench.drain(old?.node_id ?? "");
    const stuck = bench.plan(goal);
    expect([stuck.stop, stuck.place]).toEqual([[], []]);
    expect(stuck.stuck.length).toBeGreaterThan(0);
    for (const one of others) bench.set(one, "ready");
    const plan = bench.plan(goal);
    expect([plan.stop.map(({ allocation_id }) => allocation_id), plan.place]).toEqual([[old?.allocation_id ?? ""], []]);
    bench.settle(goal);
    expect(others).toContain(nodesOf(bench)[0] ?? "");
  });

  test("is not started elsewhere at a drain's deadline, nor anew, while its node that is down may still run it", () => {
    for (const begin of ["deadline", "scale", "job"] as const) {
      const { bench, goal } = settled(1, singleton);
      const [old] = bench.running();
      if (!old) throw new Error("nothing runs");
      const next = begin === "job" ? { ...goal, incarnation: "next" } : goal;
      if (begin === "scale") bench.commit(bench.plan({ ...goal, scale: 0 }));
      if (begin === "deadline") bench.drain(old.node_id, { deadline_at: bench.now });
      bench.set(old.node_id, "down");
      Object.assign(bench.state.views.get(old.node_id) ?? {}, { lastSeen: bench.now });
      const at = bench.now + 30_000 + goal.spec.stop_grace_period_ms + 2_000;
      const plan = bench.plan(next);
      expect([plan.place, plan.wakeAt]).toEqual([[], at]);
      bench.commit(plan);
      bench.now = at;
      expect([bench.plan(next).place.length, begin]).toEqual([1, begin]);
    }
  });
});

describe("whatever happens", () => {
  const step = fc.oneof(
    fc.record({ drain: fc.constantFrom("a", "b", "c", "d"), force: fc.boolean() }),
    fc.record({ activate: fc.constantFrom("a", "b", "c", "d") }),
    fc.record({ scale: fc.integer({ min: 0, max: 6 }) }),
    fc.record({ version: fc.integer({ min: 1, max: 3 }) }),
    fc.record({ node: fc.constantFrom("a", "b", "c"), to: fc.constantFrom("ready" as const, "down" as const) }),
    fc.record({ wait: fc.integer({ min: 0, max: 200_000 }) }),
  );

  function activate(bench: Bench, node: string): void {
    const record = bench.state.nodes.get(node);
    if (!record) return;
    const { drain: _drain, ...rest } = record;
    bench.state.apply([{ op: "put", kind: "node", record: { ...rest, availability: "active" } }]);
  }

  function apply(bench: Bench, { one, goal }: { one: Record<string, unknown>; goal: Goal }): Goal {
    if ("drain" in one) bench.drain(String(one["drain"]), { force: one["force"] === true });
    else if ("activate" in one) activate(bench, String(one["activate"]));
    else if ("scale" in one) return bench.goal(Number(one["scale"]), { ...goal, scale: Number(one["scale"]) });
    else if ("version" in one) return bench.goal(goal.scale, { ...goal, spec_hash: `h${String(one["version"])}` });
    else if ("node" in one) bench.set(String(one["node"]), one["to"] as "ready" | "down");
    else bench.now += Number(one["wait"]);
    return goal;
  }

  test("a drain lowers what runs by nothing, and nothing new goes to a node that is to be emptied", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), fc.constantFrom("a", "b", "c"), (scale, node) => {
        const { bench, goal } = settled(scale);
        bench.drain(node);
        for (let round = 0; round < 100 && !isEmpty(bench.state, node); round++) {
          const plan = bench.plan(goal);
          expect(plan.place.every(({ node_id }) => node_id !== node)).toBe(true);
          bench.commit(plan);
          bench.obey();
          expect(up(bench)).toBeGreaterThanOrEqual(scale);
        }
        expect(isEmpty(bench.state, node)).toBe(true);
        expect(bench.plan(goal)).toEqual(emptyPlan());
      }),
    );
  });

  test("all settles on the scale, each slot once, when every node is back and active", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 14 }), fc.boolean(), (list, hasData) => {
        const bench = new Bench(["a", "b", "c", "d"]);
        let goal = bench.goal(3, hasData ? { service: { mounts: VOLUME } } : {});
        for (const one of list) {
          goal = apply(bench, { one, goal });
          bench.commit(bench.plan(goal));
          bench.obey();
        }
        for (const node of ["a", "b", "c", "d"]) {
          bench.set(node, "ready");
          activate(bench, node);
        }
        bench.now += GATE_MS;
        bench.settle(goal);
        expect(bench.running()).toHaveLength(goal.scale);
        expect(new Set(bench.running().map(({ slot }) => slot)).size).toBe(goal.scale);
        expect(bench.running().every(({ spec_hash }) => spec_hash === goal.spec_hash)).toBe(true);
        expect(bench.state.allocations.size).toBe(goal.scale);
        expect(bench.plan(goal)).toEqual(emptyPlan());
      }),
    );
  });
});
