/**
 * @module Figures of placement's quality (`npm run bench -- placement`): clusters of several kinds and sizes are filled with
 * services until the first replica finds no node, by `place()` and by the rules of the peers, with the same services in the same
 * order. Prints one table per kind and size. The peers' rules are written down here as their sources and manuals have them; each
 * sees all nodes and only what has room. The constants in `placement.ts` and `placement_share.ts` were chosen by these clusters and
 * asks, so try others before saying that a rule is the best. A tool: nothing imports it but `bench.ts`.
 *
 * `spread` is the standard deviation of the nodes' dominant share, the larger of their shares of CPUs and memory reserved, when half
 * of the cluster is; `over 90 %` how many nodes are fuller than that at that moment; `together` how much of a service of several
 * replicas goes with the node that has most of it, at the end; `fill` the cluster's dominant share at the first refusal.
 */
import type { Candidate } from "../src/placement.ts";
import { place } from "../src/placement.ts";
import { candidate, GIB, rules, seeded, spec } from "./cluster_fixture.ts";

const KINDS = ["homogeneous", "mixed sizes", "half-loaded"] as const;
/** Nodes, and how many clusters of that size: the seeds are 1, 2, … */
const SIZES = [
  { nodes: 10, seeds: 100 },
  { nodes: 100, seeds: 10 },
  { nodes: 1_000, seeds: 2 },
];
/** CPUs and GiB. */
const MACHINES = [
  [4, 8],
  [8, 32],
  [16, 64],
  [32, 128],
] as const;
const USUAL = MACHINES[2];
/** What one replica asks for: any CPUs with any memory. */
const CPUS = [0.1, 0.25, 0.5, 1, 2];
const GIBIBYTES = [0.125, 0.25, 0.5, 1, 2, 4];
const MAX_REPLICAS = 10;

type Kind = (typeof KINDS)[number];
type Ask = { cpus: number; memory: number };
/** What the peers know of a node. */
type Machine = Ask & { usedCpus: number; usedMemory: number; tasks: number; own: number };
/** What is asked for, and all nodes; answers the index of one, or -1. `service` counts the services. */
type Chooser = (ask: Ask, at: { machines: readonly Machine[]; service: number }) => number;
type Strategy = { name: string; start: (machines: readonly Machine[], random: () => number) => Chooser };
type Figures = { spread: number; hot: number; together: number; fill: number };

export function benchPlacement(): void {
  for (const { nodes, seeds } of SIZES) {
    for (const kind of KINDS) {
      console.log(`\n${nodes.toLocaleString("en")} nodes, ${kind} (${seeds} seeds)`);
      const rows = STRATEGIES.map((strategy) => {
        const runs = Array.from({ length: seeds }, (_, n) => fill(strategy, { kind, nodes, seed: n + 1 }));
        return { name: strategy.name, runs };
      });
      print(rows);
    }
  }
}

/** Fills one cluster up to the first refusal. */
function fill(strategy: Strategy, { kind, nodes, seed }: { kind: Kind; nodes: number; seed: number }): Figures {
  const machines = cluster(kind, { nodes, random: seeded(seed) });
  const work = seeded(seed + 1_000);
  const choose = strategy.start(machines, seeded(seed + 2_000));
  const has = total(machines, ({ cpus, memory }) => ({ cpus, memory }));
  const used = total(machines, ({ usedCpus, usedMemory }) => ({ cpus: usedCpus, memory: usedMemory }));
  const filled = () => Math.max(used.cpus / has.cpus, used.memory / has.memory);
  let half: { spread: number; hot: number } | undefined;
  const together: number[] = [];
  for (let service = 0; ; service++) {
    const ask = { cpus: pick(CPUS, work), memory: pick(GIBIBYTES, work) * GIB };
    const replicas = 1 + Math.floor(work() * MAX_REPLICAS);
    for (const machine of machines) machine.own = 0;
    for (let replica = 0; replica < replicas; replica++) {
      const chosen = machines[choose(ask, { machines, service })];
      if (!chosen)
        return { ...(half ?? { spread: Number.NaN, hot: Number.NaN }), together: mean(together), fill: filled() };
      if (!hasRoom(chosen, ask)) throw new Error(`${strategy.name} placed a replica where it has no room`);
      chosen.usedCpus += ask.cpus;
      chosen.usedMemory += ask.memory;
      chosen.tasks++;
      chosen.own++;
      used.cpus += ask.cpus;
      used.memory += ask.memory;
      if (filled() >= 0.5) half ??= measure(machines);
    }
    if (replicas > 1) together.push(Math.max(...machines.map(({ own }) => own)) / replicas);
  }
}

function cluster(kind: Kind, { nodes, random }: { nodes: number; random: () => number }): Machine[] {
  return Array.from({ length: nodes }, (_, n) => {
    const [cpus, gibibytes] = kind === "mixed sizes" ? pick(MACHINES, random) : USUAL;
    // Of a half-loaded cluster, every other node has half of it reserved already.
    const share = kind === "half-loaded" && n % 2 === 0 ? 0.5 : 0;
    const memory = gibibytes * GIB;
    const tasks = Math.round((share * cpus) / mean(CPUS));
    return { cpus, memory, usedCpus: share * cpus, usedMemory: share * memory, tasks, own: 0 };
  });
}

function measure(machines: readonly Machine[]): { spread: number; hot: number } {
  const shares = machines.map((machine) => dominant(machine));
  return { spread: deviation(shares), hot: shares.filter((share) => share > 0.9).length };
}

// ---- Strategies -------------------------------------------------------------------------------------------------------

/** The node whose ranks are the highest, one after the other; of equals any. */
function highest(ranksOf: (machine: Machine, ask: Ask, all: All) => readonly number[]): Strategy["start"] {
  return (_, random) =>
    (ask, { machines }) => {
      const open = machines.filter((machine) => hasRoom(machine, ask));
      const all: All = {
        nodes: open.length,
        most: open.reduce((most, { own }) => Math.max(most, own), 0),
        fewest: open.reduce((fewest, { own }) => Math.min(fewest, own), Number.POSITIVE_INFINITY),
        random,
      };
      let best: Machine | undefined;
      let bestRanks: readonly number[] = [];
      let ties = 0;
      for (const machine of open) {
        const ranks = ranksOf(machine, ask, all);
        const differs = best ? ranks.findIndex((rank, i) => Math.abs(rank - (bestRanks[i] ?? 0)) > 1e-12) : 0;
        const isHigher = !best || (differs >= 0 && (ranks[differs] ?? 0) > (bestRanks[differs] ?? 0));
        if (isHigher) [best, bestRanks, ties] = [machine, ranks, 1];
        else if (differs < 0 && random() * ++ties < 1) best = machine;
      }
      return best ? machines.indexOf(best) : -1;
    };
}

/** Nodes with room, and the most and the fewest of the service that one of them has. */
type All = { nodes: number; most: number; fewest: number; random: () => number };

const STRATEGIES: readonly Strategy[] = [
  { name: "round robin", start: roundRobin },
  { name: "Swarm", start: highest(({ own, tasks }) => [-own, -tasks]) },
  {
    name: "Nomad spread",
    start: highest((machine, ask) => {
      const { cpus, memory } = freeAfter(machine, ask);
      return [10 ** cpus + 10 ** memory - 2];
    }),
  },
  { name: "Kubernetes", start: highest(kubernetes) },
  {
    // Drawing by weight: the highest of random()^(1 / weight), here as its logarithm.
    name: "random by free share",
    start: highest((machine, _, { random }) => [Math.log(random()) / Math.max(1e-9, 1 - dominant(machine))]),
  },
  { name: "cacophony spread", start: ours("spread") },
  {
    name: "Nomad binpack",
    start: highest((machine, ask) => {
      const { cpus, memory } = freeAfter(machine, ask);
      return [20 - (10 ** cpus + 10 ** memory)];
    }),
  },
  { name: "cacophony binpack", start: ours("binpack") },
];

function roundRobin(): Chooser {
  let next = 0;
  return (ask, { machines }) => {
    for (let step = 0; step < machines.length; step++) {
      const index = (next + step) % machines.length;
      const machine = machines[index];
      if (!machine || !hasRoom(machine, ask)) continue;
      next = index + 1;
      return index;
    }
    return -1;
  };
}

/**
 * The default profile's scores, whole numbers of 0 to 100: least allocated, balanced allocation, and twice the spread over
 * hostnames (maxSkew 3) that the scheduler gives every service.
 */
function kubernetes(machine: Machine, ask: Ask, { nodes, most, fewest }: All): readonly number[] {
  const free = freeAfter(machine, ask);
  const least = Math.floor((whole(free.cpus) + whole(free.memory)) / 2);
  const balanced = whole(1 - Math.abs(free.cpus - free.memory) / 2);
  const crowd = (own: number) => Math.round(own * Math.log(nodes + 2) + 2);
  const spread = Math.floor((100 * (crowd(most) + crowd(fewest) - crowd(machine.own))) / crowd(most));
  return [least + balanced + 2 * spread];
}

function ours(strategy: "spread" | "binpack"): Strategy["start"] {
  return (machines, random) => {
    const candidates = machines.map((machine, n) => asCandidate(machine, n));
    const indexes = new Map(candidates.map(({ node_id }, n) => [node_id, n]));
    let current: { service: number; request: Parameters<typeof place>[0] } | undefined;
    return ({ cpus, memory }, { service }) => {
      if (current?.service !== service) {
        const wanted = spec({ reservations: { cpus, memory_bytes: memory } });
        const request = { job_id: `job-${service}`, spec: wanted, rules: rules(), own: new Map(), strategy };
        current = { service, request };
      }
      const answer = place(current.request, candidates, random);
      return "node_id" in answer ? (indexes.get(answer.node_id) ?? -1) : -1;
    };
  };
}

function asCandidate({ cpus, memory, usedCpus, usedMemory, tasks }: Machine, n: number): Candidate {
  const used = { cpus: usedCpus, memory: usedMemory };
  return {
    ...candidate(`node-${n}`, {
      cpus,
      used_cpus: usedCpus,
      total_memory: memory,
      available_memory: memory - usedMemory,
    }),
    reserved: { ...used },
    planned: { ...used },
    allocations: tasks,
  };
}

// ---- Figures ----------------------------------------------------------------------------------------------------------

function hasRoom({ cpus, memory, usedCpus, usedMemory }: Machine, ask: Ask): boolean {
  return usedCpus + ask.cpus <= cpus + 1e-9 && usedMemory + ask.memory <= memory;
}

function freeAfter({ cpus, memory, usedCpus, usedMemory }: Machine, ask: Ask): Ask {
  return { cpus: 1 - (usedCpus + ask.cpus) / cpus, memory: 1 - (usedMemory + ask.memory) / memory };
}

function dominant({ cpus, memory, usedCpus, usedMemory }: Machine): number {
  return Math.max(usedCpus / cpus, usedMemory / memory);
}

/** A share as a score: the peer divides whole numbers. */
function whole(share: number): number {
  return Math.floor(share * 100 + 1e-9);
}

function total(machines: readonly Machine[], part: (machine: Machine) => Ask): Ask {
  const sum = { cpus: 0, memory: 0 };
  for (const machine of machines) {
    const { cpus, memory } = part(machine);
    sum.cpus += cpus;
    sum.memory += memory;
  }
  return sum;
}

function pick<T>(list: readonly T[], random: () => number): T {
  const chosen = list[Math.floor(random() * list.length)];
  if (chosen === undefined) throw new Error("nothing to pick from");
  return chosen;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function deviation(values: readonly number[]): number {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2)));
}

function print(rows: readonly { name: string; runs: readonly Figures[] }[]): void {
  const lines = [
    ["", "spread", "over 90 %", "together", "fill", "± fill"],
    ...rows.map(({ name, runs }) => {
      const of = (key: keyof Figures) => runs.map((run) => run[key]);
      const fills = of("fill");
      return [
        name,
        mean(of("spread")).toFixed(4),
        mean(of("hot")).toFixed(1),
        mean(of("together")).toFixed(2),
        mean(fills).toFixed(4),
        deviation(fills).toFixed(4),
      ];
    }),
  ];
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  for (const line of lines) {
    const cells = line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)));
    console.log(cells.join("  "));
  }
}
