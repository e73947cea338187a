/**
 * @module Rebalancing: which replicas are worth moving to another node, and what that gains. Pure, and the same for the same
 * cluster in any order. It decides nothing else: what must not move (data on the node, bound to another service, global, run to
 * end, not running, in flight) is left out by the caller, and so are services that are placed tightly: `binpack` fills nodes on
 * purpose, so they are never moved here.
 *
 * **The measure** is an imbalance: the standard deviation over the nodes that take new work of the share that is in use (the larger of CPUs
 * and memory), plus 1 for each replica that would find better company elsewhere: a node without one of its service, or a
 * group with fewer of them where `preferences` spread them. Measured use counts only as far as it exceeds the planned by
 * more than readings are off, so a quiet cluster is judged by what is placed alone.
 *
 * **A move** keeps all hard limits at its destination, where what leaves the source is still counted there until it is gone; it never
 * makes company worse; and it must lower the measure. For evenness alone it must also leave the destination less full than the
 * source was by `NOISE` (a sixth of a machine is what a restart is worth); a node that is moved to or from at all is then brought
 * within `FINE` of the others, so that one that joined empty gets its share. The move back would have to cross the same
 * margin the other way, so nothing goes back and forth: company first, then evenness falls with each move, and moves end.
 */
import { type ServiceKey, serviceKey } from "./cluster_state.ts";
import type { AllocationRecord } from "./model.ts";
import type { ServiceRules, ServiceSpec } from "./model_spec.ts";
import { type Candidate, demandOf, groupsOf, isEligible, occupy, type PlacementRequest } from "./placement.ts";
import { copyOf } from "./placement_devices.ts";
import { type Load, NOISE, steadyUseOf } from "./placement_share.ts";

/** A replica that may move. */
export type Movable = { allocation: AllocationRecord; spec: ServiceSpec; rules: ServiceRules };
/** `from` and `to` are node ids; `gain` is by how much the imbalance falls. */
export type Move = { allocation_id: string; from: string; to: string; gain: number };
export type Rebalance = { moves: Move[]; before: number; after: number };

/** How much fuller than another a node stays that is moved from or to anyway. */
const FINE = 0.05;
/** Smaller gains are rounding. */
const LEAST_GAIN = 1e-9;

/** A node with what may leave it, by service and definition. */
type Spot = {
  candidate: Candidate;
  use: number;
  groups: Map<string, Movable[]>;
  gave: boolean;
  took: boolean;
  isDone: boolean;
};
/**
 * A service: its replicas by node (`request.own`), and by group of nodes where they are spread; `extra` are those that are on a
 * node beside the first, `groups` those of each node.
 */
type Crew = {
  request: PlacementRequest;
  counts: Map<string, number>;
  extra: number;
  groups: ReadonlyMap<string, readonly string[]>;
};
type Board = { spots: Spot[]; byId: Map<string, Spot>; crews: Map<ServiceKey, Crew> };

const NO_GROUPS: readonly string[] = [];

/**
 * The moves worth doing, at most `most`, in the order to do them in. `candidates` are counted with all allocations, and stay as
 * they are; `others` are the allocations of the same services that may not move.
 */
export function planMoves({
  candidates,
  movable,
  others = [],
  most,
}: {
  candidates: readonly Candidate[];
  movable: readonly Movable[];
  others?: readonly Pick<AllocationRecord, "job_id" | "service_name" | "node_id">[];
  most: number;
}): Rebalance {
  const board = boardOf({ candidates, movable, others });
  const before = deviation(board);
  const moves: Move[] = [];
  let [lonely, after] = [0, before];
  for (const gained of improveCompany(board)) {
    lonely++;
    if (moves.length >= most) continue;
    moves.push({ ...gained, gain: 1 + gained.gain });
    after = deviation(board);
  }
  const better = moves.length;
  if (moves.length < most) {
    for (const gained of evenOut(board)) {
      moves.push(gained);
      if (moves.length >= most) break;
    }
    after = deviation(board);
  }
  return { moves, before: before + lonely, after: after + lonely - better };
}

function boardOf({
  candidates,
  movable,
  others,
}: {
  candidates: readonly Candidate[];
  movable: readonly Movable[];
  others: readonly Pick<AllocationRecord, "job_id" | "service_name" | "node_id">[];
}): Board {
  const spots = candidates
    .filter(({ refusal, resources }) => refusal === undefined && resources !== undefined)
    .toSorted((a, b) => (a.node_id < b.node_id ? -1 : 1))
    .map((candidate): Spot => {
      const own = copyOfCandidate(candidate);
      return { candidate: own, use: steadyUseOf(own), groups: new Map(), gave: false, took: false, isDone: false };
    });
  const board: Board = {
    spots,
    byId: new Map(spots.map((spot) => [spot.candidate.node_id, spot])),
    crews: new Map(),
  };
  const groupings = new Map<string, Crew["groups"]>();
  const sorted = movable.toSorted((a, b) => (a.allocation.allocation_id < b.allocation.allocation_id ? -1 : 1));
  for (const one of sorted) {
    const { allocation, spec, rules } = one;
    const key = serviceKey(allocation);
    if (!board.crews.has(key)) {
      const { job_id } = allocation;
      const grouping = JSON.stringify(rules.spread);
      const groups =
        groupings.get(grouping) ?? new Map(candidates.map((node) => [node.node_id, groupsOf(node, rules.spread)]));
      groupings.set(grouping, groups);
      board.crews.set(key, { request: { job_id, spec, rules, own: new Map() }, counts: new Map(), extra: 0, groups });
    }
    const spot = board.byId.get(allocation.node_id);
    if (spot && rules.strategy !== "binpack") {
      const group = `${key} ${allocation.spec_hash}`;
      spot.groups.set(group, [...(spot.groups.get(group) ?? []), one]);
    }
  }
  for (const allocation of [...sorted.map((one) => one.allocation), ...others]) {
    const crew = board.crews.get(serviceKey(allocation));
    if (crew) count(crew, { node_id: allocation.node_id, by: 1 });
  }
  return board;
}

/** Replicas that share a node or a group go where there are fewer of their service. Each move is made when it is taken. */
function* improveCompany(board: Board): Generator<Move> {
  const byCrew = new Map<Crew, Movable[]>();
  for (const one of board.spots.flatMap(({ groups }) => [...groups.values()].flat())) {
    const crew = board.crews.get(serviceKey(one.allocation));
    if (crew) byCrew.set(crew, [...(byCrew.get(crew) ?? []), one]);
  }
  for (const [crew, replicas] of byCrew) {
    const isSpread = crew.request.rules.spread.length > 0;
    if (!isSpread && !replicas.some((one) => ownOf(crew, one.allocation.node_id) > 1)) continue;
    let left = replicas;
    while (left.length > 0) {
      const next = left.reduce((a, b) => (isMoreCrowded(board, crew, { a: b, b: a }) ? b : a));
      left = left.filter((one) => one !== next);
      const target = betterCompany(board, crew, next);
      if (target) yield move(board, next, target);
      // Without groups, what one of the service does not find no other does.
      else if (!isSpread) break;
    }
  }
}

function isMoreCrowded(board: Board, crew: Crew, { a, b }: { a: Movable; b: Movable }): boolean {
  const [one, other] = [a, b].map(({ allocation: { node_id } }) => {
    return [...crowdOf(crew, node_id), ownOf(crew, node_id), board.byId.get(node_id)?.use ?? 0];
  });
  const difference = compareLists(one ?? [], other ?? []);
  return difference > 0 || (difference === 0 && a.allocation.allocation_id < b.allocation.allocation_id);
}

/** The node where a replica is in better company than on its own. */
function betterCompany(board: Board, crew: Crew, { allocation, spec, rules }: Movable): Spot | undefined {
  // As if it were nowhere.
  count(crew, { node_id: allocation.node_id, by: -1 });
  const here = companyAt(crew, allocation.node_id);
  let best: { spot: Spot; company: number[]; use: number } | undefined;
  for (const spot of board.spots) {
    const { node_id } = spot.candidate;
    if (node_id === allocation.node_id || !isBetterCompany(crew, node_id, here)) continue;
    const company = companyAt(crew, node_id);
    const use = steadyUseOf(spot.candidate, demandOf(spec));
    const difference = best ? compareLists(company, best.company) || use - best.use : -1;
    if (difference < 0 && use <= 1 && isEligible({ ...crew.request, spec, rules }, spot.candidate))
      best = { spot, company, use };
  }
  count(crew, { node_id: allocation.node_id, by: 1 });
  return best?.spot;
}

/** How many of the service are in a node's groups, and whether it has one: the less the better. */
function companyAt(crew: Crew, nodeId: string): number[] {
  return [...crowdOf(crew, nodeId), ownOf(crew, nodeId) > 0 ? 1 : 0];
}

function isBetterCompany(crew: Crew, nodeId: string, here: readonly number[]): boolean {
  const groups = groupsAt(crew, nodeId);
  for (const [i, group] of groups.entries()) {
    const difference = (crew.counts.get(group) ?? 0) - (here[i] ?? 0);
    if (difference !== 0) return difference < 0;
  }
  return ownOf(crew, nodeId) === 0 && here[groups.length] === 1;
}

/** Replicas go from the fullest nodes to the emptiest. Each move is made when it is taken. */
function* evenOut(board: Board): Generator<Move> {
  for (;;) {
    const ascending = board.spots.toSorted(
      (a, b) => a.use - b.use || (a.candidate.node_id < b.candidate.node_id ? -1 : 1),
    );
    const found = fullestFirst(board, ascending);
    if (!found) return;
    found.from.gave = true;
    found.to.took = true;
    yield move(board, found.one, found.to);
  }
}

function fullestFirst(board: Board, ascending: readonly Spot[]): { one: Movable; from: Spot; to: Spot } | undefined {
  const sums = sumsOf(board);
  for (const from of ascending.toReversed()) {
    if (from.isDone) continue;
    let best: { one: Movable; to: Spot; gain: number } | undefined;
    for (const [one] of from.groups.values()) {
      const target = one && roomierThan(board, { one, from, ascending, sums });
      if (target && target.gain > (best?.gain ?? 0)) best = { one, ...target };
    }
    if (best) return { from, ...best };
    // What is offered to it gets no emptier, so it stays as it is.
    from.isDone = true;
  }
  return undefined;
}

/** The emptiest node that a replica may go to, if that is worth it. */
function roomierThan(
  board: Board,
  { one, from, ascending, sums }: { one: Movable; from: Spot; ascending: readonly Spot[]; sums: Sums },
): { to: Spot; gain: number } | undefined {
  const { allocation, spec, rules } = one;
  const crew = board.crews.get(serviceKey(allocation));
  if (!crew) return undefined;
  const demand = demandOf(spec);
  const left = steadyUseOf(from.candidate, negative(demand));
  for (const to of ascending) {
    if (from.use - to.use < FINE) return undefined;
    const filled = steadyUseOf(to.candidate, demand);
    const margin = from.gave || to.took ? FINE : NOISE;
    // What gives takes nothing, and what takes gives nothing: one of the two moves would be for nothing.
    if (
      from.took ||
      to.gave ||
      from.use - filled < margin ||
      filled > 1 ||
      isWorseCompany(crew, { from: allocation.node_id, to: to.candidate.node_id })
    )
      continue;
    const gain = spreadOf(sums) - spreadOf(changed(sums, [from.use, left], [to.use, filled]));
    if (gain > LEAST_GAIN && isEligible({ ...crew.request, spec, rules }, to.candidate)) return { to, gain };
  }
  return undefined;
}

/** Whether the service would be less evenly spread by one going from one node to the other. */
function isWorseCompany(crew: Crew, { from, to }: { from: string; to: string }): boolean {
  // A node that has its only one gives it to a node without one, if no node has several: one of those would be due to come back.
  if (ownOf(crew, from) < 2 && (ownOf(crew, to) > 0 || crew.extra > 0)) return true;
  const [here, there] = [groupsAt(crew, from), groupsAt(crew, to)];
  const sizeOf = (group: string | undefined) => (group === undefined ? 0 : (crew.counts.get(group) ?? 0));
  return there.some((group, i) => group !== here[i] && sizeOf(group) + 1 > sizeOf(here[i]));
}

// ---- Counting ---------------------------------------------------------------------------------------------------------

/** Makes a move. What the replica reserves stays counted at its source, too: only its share in use leaves. */
function move(board: Board, one: Movable, to: Spot): Move {
  const { allocation, spec, rules } = one;
  const key = serviceKey(allocation);
  const from = board.byId.get(allocation.node_id);
  const crew = board.crews.get(key);
  if (!from || !crew) throw new Error(`a replica moves from node ${allocation.node_id}, which is not there`);
  const before = deviation(board);
  const { cpus, memory } = negative(demandOf(spec));
  for (const sum of [from.candidate.planned, from.candidate.plannedStarting]) {
    sum.cpus += cpus;
    sum.memory += memory;
  }
  count(crew, { node_id: allocation.node_id, by: -1 });
  count(crew, { node_id: to.candidate.node_id, by: 1 });
  // It counts the replica of its own.
  occupy({ ...crew.request, spec, rules, own: new Map() }, to.candidate);
  for (const spot of [from, to]) spot.use = steadyUseOf(spot.candidate);
  const group = `${key} ${allocation.spec_hash}`;
  from.groups.set(
    group,
    (from.groups.get(group) ?? []).filter((other) => other !== one),
  );
  return {
    allocation_id: allocation.allocation_id,
    from: allocation.node_id,
    to: to.candidate.node_id,
    gain: before - deviation(board),
  };
}

function count(crew: Crew, { node_id, by }: { node_id: string; by: 1 | -1 }): void {
  const own = ownOf(crew, node_id) + by;
  crew.request.own.set(node_id, own);
  if (Math.max(own, own - by) > 1) crew.extra += by;
  for (const group of groupsAt(crew, node_id)) crew.counts.set(group, (crew.counts.get(group) ?? 0) + by);
}

function ownOf({ request }: Crew, nodeId: string): number {
  return request.own.get(nodeId) ?? 0;
}

function groupsAt({ groups }: Crew, nodeId: string): readonly string[] {
  return groups.get(nodeId) ?? NO_GROUPS;
}

function crowdOf(crew: Crew, nodeId: string): number[] {
  return groupsAt(crew, nodeId).map((group) => crew.counts.get(group) ?? 0);
}

function copyOfCandidate(candidate: Candidate): Candidate {
  return {
    ...candidate,
    reserved: { ...candidate.reserved },
    reservedStarting: { ...candidate.reservedStarting },
    planned: { ...candidate.planned },
    plannedStarting: { ...candidate.plannedStarting },
    claims: [...candidate.claims],
    reservedDevices: copyOf(candidate.reservedDevices),
    perJob: new Map(candidate.perJob),
    ...(candidate.networkRoom && { networkRoom: { ...candidate.networkRoom } }),
  };
}

/** Of shares in use: how many, their sum and the sum of their squares. */
type Sums = { n: number; sum: number; squares: number };

function sumsOf({ spots }: Board): Sums {
  const sums = { n: spots.length, sum: 0, squares: 0 };
  for (const { use } of spots) {
    sums.sum += use;
    sums.squares += use * use;
  }
  return sums;
}

function changed({ n, sum, squares }: Sums, ...changes: readonly [old: number, now: number][]): Sums {
  const next = { n, sum, squares };
  for (const [old, now] of changes) {
    next.sum += now - old;
    next.squares += now * now - old * old;
  }
  return next;
}

/** Standard deviation. */
function spreadOf({ n, sum, squares }: Sums): number {
  return n === 0 ? 0 : Math.sqrt(Math.max(0, squares / n - (sum / n) ** 2));
}

function deviation(board: Board): number {
  return spreadOf(sumsOf(board));
}

function negative({ cpus, memory }: Load): Load {
  return { cpus: -cpus, memory: -memory };
}

function compareLists(a: readonly number[], b: readonly number[]): number {
  for (const [i, value] of a.entries()) {
    const difference = value - (b[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
