/** @module Rebalancing as a table of cases and as properties that hold for every cluster. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { AllocationRecord } from "../src/model.ts";
import type { ServiceRules, ServiceSpec } from "../src/model_spec.ts";
import { type Candidate, isEligible, occupy, type PlacementRequest } from "../src/placement.ts";
import { type Movable, planMoves } from "../src/reconcile_rebalance.ts";
import { NOISE } from "../src/placement_share.ts";
import { candidate, GIB, rules, seeded, spec } from "./cluster_fixture.ts";

type Machine = { id: string; cpus: number; gibibytes: number; zone?: string; refusal?: string; hogShare?: number };

function replica(
  name: string,
  { service, at, ...more }: { service: ServiceSpec; at: string; rules?: ServiceRules },
): Movable {
  const allocation: AllocationRecord = {
    allocation_id: name,
    job_id: "job",
    incarnation: "i",
    service_name: name.replace(/-.*/, ""),
    slot: 1,
    node_id: at,
    spec_hash: "h",
    job_version: 1,
    desired: "run",
    created_at: 0,
  };
  return { allocation, spec: service, rules: more.rules ?? rules() };
}

/** Nodes with all replicas counted in, which run and use what they are planned with; `offBy` is a share of a node that readings add. */
function cluster(
  machines: readonly Machine[],
  replicas: readonly Movable[],
  offBy: () => number = () => 0,
): Candidate[] {
  return machines.map(({ id, cpus, gibibytes, zone, refusal, hogShare = 0 }) => {
    const node = { ...candidate(id, { cpus }, refusal), labels: new Map(zone === undefined ? [] : [["zone", zone]]) };
    for (const { allocation, spec: service, rules: its } of replicas.filter((one) => one.allocation.node_id === id)) {
      occupy({ job_id: allocation.job_id, spec: service, rules: its, own: new Map() }, node);
    }
    const total_memory = gibibytes * GIB;
    const used_memory = Math.max(node.planned.memory, hogShare * total_memory);
    // The share that a newcomer does not get is used / (cpus + used): see `newcomersCpus`.
    const share = Math.min(0.9, node.planned.cpus / cpus + offBy());
    const used_cpus = (cpus * share) / (1 - share);
    node.resources = {
      total_memory,
      used_memory,
      available_memory: total_memory - used_memory,
      cpus,
      used_cpus,
      taken_ports: [],
    };
    for (const sum of [node.reservedStarting, node.plannedStarting]) Object.assign(sum, { cpus: 0, memory: 0 });
    return node;
  });
}

function moved(replicas: readonly Movable[], moves: readonly { allocation_id: string; to: string }[]): Movable[] {
  const targets = new Map(moves.map(({ allocation_id, to }) => [allocation_id, to]));
  return replicas.map((one) => {
    const node_id = targets.get(one.allocation.allocation_id) ?? one.allocation.node_id;
    return { ...one, allocation: { ...one.allocation, node_id } };
  });
}

const three: Machine[] = ["a", "b", "c"].map((id) => ({ id, cpus: 4, gibibytes: 16 }));
const half = spec({ reservations: { cpus: 0.5 } });
const plan = (machines: readonly Machine[], replicas: readonly Movable[], most = 100) =>
  planMoves({ candidates: cluster(machines, replicas), movable: replicas, most });

describe("planMoves()", () => {
  test("brings a node that joined empty near the others, and says what that gains", () => {
    const replicas = three.flatMap(({ id }) =>
      Array.from({ length: 6 }, (_, n) => replica(`s${id}${n}`, { service: half, at: id })),
    );
    const { moves, before, after } = plan([...three, { id: "d", cpus: 4, gibibytes: 16 }], replicas);
    // 18 replicas on 4 nodes.
    expect(moves.filter(({ to }) => to === "d")).toHaveLength(4);
    expect(moves).toHaveLength(4);
    expect(after).toBeLessThan(before / 3);
    expect(moves.reduce((sum, { gain }) => sum + gain, 0)).toBeCloseTo(before - after, 9);
  });

  test("leaves a difference alone that is not worth a restart", () => {
    const replicas = [replica("s1", { service: half, at: "a" }), replica("s2", { service: half, at: "b" })];
    expect(plan(three, replicas)).toMatchObject({ moves: [] });
  });

  test("gives replicas of a service that share a node one each, and makes at most as many moves as it may", () => {
    const replicas = [1, 2, 3].map((n) => replica(`web-${n}`, { service: spec(), at: "a" }));
    const { moves, before, after } = plan(three, replicas);
    expect(moves.map(({ to }) => to).toSorted()).toEqual(["b", "c"]);
    expect(before - after).toBeCloseTo(
      moves.reduce((sum, { gain }) => sum + gain, 0),
      9,
    );
    expect(before).toBeGreaterThan(2);
    const one = plan(three, replicas, 1);
    expect(one.moves).toHaveLength(1);
    expect(one.before).toBe(before);
    expect(one.after).toBeGreaterThan(1);
  });

  test("fills a zone that joined, and never makes zones less even", () => {
    const zones = three.map((machine, n) => ({ ...machine, zone: n < 2 ? "1" : "2" }));
    const spread = rules({ spread: ["zone"] });
    const replicas = ["a", "a", "b", "b"].map((at, n) => replica(`web-${n}`, { service: spec(), at, rules: spread }));
    expect(plan(zones, replicas).moves.map(({ from, to }) => [from, to])).toEqual([
      ["a", "c"],
      ["b", "c"],
    ]);
    // A heavy pair, one in each zone, stays so although node b is empty.
    const pair = ["a", "c"].map((at, n) =>
      replica(`db-${n}`, { service: spec({ reservations: { cpus: 3 } }), at, rules: spread }),
    );
    const more = replica("x", { service: spec({ reservations: { cpus: 1 } }), at: "c" });
    for (const { allocation_id } of plan(zones, [...pair, more]).moves) expect(allocation_id).not.toBe("db-1");
  });

  test("counts other work on a node, beyond what readings may be off", () => {
    const replicas = ["a", "a", "b", "c"].map((at, n) =>
      replica(`s${n}`, { service: spec({ reservations: { memory_bytes: 2 * GIB } }), at }),
    );
    expect(plan(three, replicas).moves).toEqual([]);
    const [first, ...rest] = three;
    const hogged = plan([{ ...first!, hogShare: 0.7 }, ...rest], replicas).moves;
    expect(hogged.map(({ from }) => from)).toEqual(["a", "a"]);
  });

  const heavy = Array.from({ length: 6 }, (_, n) => ({ name: `s${n}`, at: "a" }));
  const port = { container_port: 80, protocol: "tcp" as const, host_ip: "", host_port: { first: 80, last: 80 } };
  const table: [what: string, service: ServiceSpec, rules: ServiceRules][] = [
    ["a constraint", half, rules({ constraints: [{ key: "node.id", operator: "==", value: "a" }] })],
    ["a host port", spec({ reservations: { cpus: 0.5 }, ports: [port] }), rules()],
    ["a device", spec({ reservations: { cpus: 0.5, generic: [{ kind: "fpga", count: 1 }] } }), rules()],
    ["memory", spec({ reservations: { cpus: 0.5, memory_bytes: 20 * GIB } }), rules()],
    ["tight packing", half, rules({ strategy: "binpack" })],
  ];
  test.each(table)("moves nothing that %s keeps where it is", (_, service, its) => {
    const big: Machine = { id: "a", cpus: 4, gibibytes: 256 };
    const replicas = heavy.map(({ name, at }) => replica(name, { service, at, rules: its }));
    const candidates = cluster([big, ...three.slice(1)], replicas);
    for (const node of candidates.slice(1)) node.claims.push({ protocol: "tcp", host_ip: "", first: 80, last: 80 });
    expect(planMoves({ candidates, movable: replicas, most: 100 }).moves).toEqual([]);
  });

  test("moves nothing to a node that takes nothing new, nor to one with max_replicas_per_node, others counted", () => {
    const replicas = Array.from({ length: 6 }, (_, n) =>
      replica(`web-${n}`, { service: half, at: "a", rules: rules({ max_per_node: 1 }) }),
    );
    const machines = three.map((machine) => (machine.id === "c" ? { ...machine, refusal: "draining" } : machine));
    const candidates = cluster(machines, replicas);
    const others = [{ job_id: "job", service_name: "web", node_id: "b" }];
    expect(planMoves({ candidates, movable: replicas, others, most: 100 }).moves).toEqual([]);
    expect(planMoves({ candidates, movable: replicas, most: 100 }).moves.map(({ to }) => to)).toEqual(["b"]);
  });

  test("leaves the candidates as they are", () => {
    const replicas = heavy.map(({ name, at }) => replica(name, { service: half, at }));
    const candidates = cluster(three, replicas);
    const copy = structuredClone(candidates);
    expect(planMoves({ candidates, movable: replicas, most: 100 }).moves.length).toBeGreaterThan(0);
    expect(candidates).toEqual(copy);
  });
});

// ---- Properties -------------------------------------------------------------------------------------------------------

const world = fc.record({
  machines: fc.array(
    fc.record({
      cpus: fc.constantFrom(2, 4, 8, 16),
      gibibytes: fc.constantFrom(4, 16, 64),
      zone: fc.constantFrom("1", "2"),
      refusal: fc.constantFrom(undefined, undefined, undefined, "draining"),
    }),
    { minLength: 1, maxLength: 8 },
  ),
  services: fc.array(
    fc.record({
      cpus: fc.constantFrom(undefined, 0.1, 0.5, 1, 2),
      gibibytes: fc.constantFrom(undefined, 0.25, 1, 4),
      replicas: fc.integer({ min: 1, max: 10 }),
      maxPerNode: fc.constantFrom(undefined, undefined, 1, 2),
      isSpread: fc.boolean(),
      hasPort: fc.boolean(),
    }),
    { maxLength: 10 },
  ),
  seed: fc.nat(),
});
type World = typeof world extends fc.Arbitrary<infer T> ? T : never;

/** Replicas wherever they may be, without any sense for balance. */
function scattered({ machines, services, seed }: World): { machines: Machine[]; replicas: Movable[] } {
  const named = machines.map(({ refusal, ...machine }, n): Machine => ({
    id: `n${n}`,
    ...machine,
    ...(refusal === undefined ? {} : { refusal }),
  }));
  const random = seeded(seed);
  const nodes = cluster(
    named.map(({ refusal: _, ...machine }) => machine),
    [],
  );
  const replicas = services.flatMap(({ cpus, gibibytes, replicas: number, maxPerNode, isSpread, hasPort }, n) => {
    const service = spec({
      reservations: {
        ...(cpus === undefined ? {} : { cpus }),
        ...(gibibytes === undefined ? {} : { memory_bytes: gibibytes * GIB }),
      },
      ports: hasPort
        ? [{ container_port: 80, protocol: "tcp", host_ip: "", host_port: { first: 80 + n, last: 80 + n } }]
        : [],
    });
    const its = rules({
      spread: isSpread ? ["zone"] : [],
      ...(maxPerNode === undefined ? {} : { max_per_node: maxPerNode }),
    });
    const request: PlacementRequest = { job_id: "job", spec: service, rules: its, own: new Map() };
    return Array.from({ length: number }, (_, slot) => {
      const open = nodes.filter((node) => isEligible(request, node));
      // The first nodes get the most.
      const node = open[Math.floor(random() ** 2 * open.length)];
      if (!node) return [];
      occupy(request, node);
      return [replica(`s${n}-${slot}`, { service, at: node.node_id, rules: its })];
    }).flat();
  });
  return { machines: named, replicas };
}

/** What falls with each move: replicas that share a zone where they are to be spread, then a node; then how uneven nodes are. */
function measures(machines: readonly Machine[], replicas: readonly Movable[]): [number, number, number] {
  const open = machines.filter(({ refusal }) => refusal === undefined);
  const pairs = (count: number) => (count * (count - 1)) / 2;
  let [zones, nodes] = [0, 0];
  for (const [, own] of Map.groupBy(replicas, (one) => one.allocation.service_name)) {
    const zoneOf = (one: Movable) => machines.find(({ id }) => id === one.allocation.node_id)?.zone;
    if (own[0]?.rules.spread.length) for (const [, group] of Map.groupBy(own, zoneOf)) zones += pairs(group.length);
    for (const [, group] of Map.groupBy(own, (one) => one.allocation.node_id)) nodes += group.length - 1;
  }
  const shares = cluster(open, replicas).map(({ planned, resources }) =>
    Math.max(planned.cpus / (resources?.cpus ?? 1), planned.memory / (resources?.total_memory ?? 1)),
  );
  const mean = shares.reduce((sum, share) => sum + share, 0) / Math.max(1, shares.length);
  const variance = shares.reduce((sum, share) => sum + (share - mean) ** 2, 0) / Math.max(1, shares.length);
  return [zones, nodes, Math.sqrt(variance)];
}

describe("every rebalance", () => {
  test("keeps to capacity, ports and limits, and improves with each move", () => {
    fc.assert(
      fc.property(world, (shape) => {
        const { machines, replicas } = scattered(shape);
        const { moves, before, after } = plan(machines, replicas);
        let current = replicas;
        for (const move of moves) {
          expect(move.gain).toBeGreaterThan(0);
          expect(machines.find(({ id }) => id === move.to)?.refusal).toBeUndefined();
          const one = current.find(({ allocation }) => allocation.allocation_id === move.allocation_id);
          expect(one?.allocation.node_id).toBe(move.from);
          const next = moved(current, [move]);
          const [was, is] = [measures(machines, current), measures(machines, next)];
          const first = is.findIndex((value, i) => Math.abs(value - was[i]!) > 1e-9);
          expect(first).toBeGreaterThanOrEqual(0);
          expect(is[first]!).toBeLessThan(was[first]!);
          current = next;
        }
        expect(after).toBeLessThanOrEqual(before);
        if (moves.length > 0) expect(after).toBeLessThan(before);
        for (const node of cluster(machines, current)) {
          expect(node.reserved.cpus).toBeLessThanOrEqual((node.resources?.cpus ?? 0) + 1e-9);
          expect(node.reserved.memory).toBeLessThanOrEqual(node.resources?.total_memory ?? 0);
          expect(new Set(node.claims.map(({ first }) => first)).size).toBe(node.claims.length);
        }
        for (const [, own] of Map.groupBy(current, ({ allocation: a }) => `${a.service_name} ${a.node_id}`))
          expect(own.length).toBeLessThanOrEqual(own[0]?.rules.max_per_node ?? own.length);
      }),
      { numRuns: 300 },
    );
  });

  test("comes to an end, where what was moved rests for a while, and takes nothing back meanwhile", () => {
    fc.assert(
      fc.property(world, fc.constantFrom(1, 3, 100), (shape, most) => {
        const { machines, replicas } = scattered(shape);
        let current = replicas;
        // As the Scheduler has it: the next plan leaves alone what one has moved.
        let rested = new Map<string, string>();
        for (let [round, quiet] = [0, 0]; quiet < 2; round++) {
          expect(round).toBeLessThan(2 * (20 + replicas.length));
          const movable = current.filter(({ allocation }) => !rested.has(allocation.allocation_id));
          const others = current.flatMap(({ allocation }) => (rested.has(allocation.allocation_id) ? allocation : []));
          const { moves, before, after } = planMoves({ candidates: cluster(machines, current), movable, others, most });
          for (const { allocation_id, to } of moves) expect(rested.get(allocation_id)).not.toBe(to);
          if (moves.length > 0) expect(after).toBeLessThan(before);
          rested = new Map(moves.map(({ allocation_id, from }) => [allocation_id, from]));
          // Twice nothing: once while the last ones rested, and once with all.
          quiet = moves.length === 0 ? quiet + 1 : 0;
          current = moved(current, moves);
        }
      }),
      { numRuns: 300 },
    );
  });

  test("is the same in any order, and whatever readings say within what they may be off", () => {
    fc.assert(
      fc.property(world, fc.nat(), (shape, seed) => {
        const { machines, replicas } = scattered(shape);
        const random = seeded(seed);
        const shuffled = <T>(list: readonly T[]) =>
          list
            .map((one) => ({ one, at: random() }))
            .toSorted((a, b) => a.at - b.at)
            .map(({ one }) => one);
        const expected = plan(machines, replicas);
        const noisy = cluster(shuffled(machines), replicas, () => (NOISE - 0.001) * random());
        expect(planMoves({ candidates: noisy, movable: shuffled(replicas), most: 100 })).toEqual(expected);
      }),
      { numRuns: 200 },
    );
  });
});
