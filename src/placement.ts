/**
 * @module Placement: which node gets a replica. Pure: the same input gives the same answer, and randomness comes in.
 *
 * **Hard limits.** A node is eligible when it is ready and active, when the rules about nodes hold for it (constraints,
 * external volumes, a recent enough Engine: `placement_rules.ts`), when it runs fewer replicas of the service than
 * `max_replicas_per_node`, when the service's reservations fit, of devices too, when its fixed host ports are free there, when there is
 * room for its networks (`placement_networks.ts`), and when the job's network there has an address left.
 * Where services share something, the room on the node must do for all of them. Each refusal is one sentence.
 * - CPU reserved: `reserved_cpus + asked <= cpus`.
 * - GPUs and generic resources are counted in `placement_devices.ts`.
 * - Memory reserved: `reserved_memory + asked <= total_memory`, and also `asked <= available_memory - reserved by what is
 *   placed but not running yet`, because memory that other processes hold can't be given twice (CPU time can be shared).
 *
 * **In use.** With `d` the demand of one replica (its reservation, or 0.1 CPU and 64 MiB where it has none):
 *
 *     free_r(n) = min(capacity_r - planned_r, available_r - starting_r)      r = memory, CPU; whichever is tighter
 *     use(n)    = max over r of 1 - free_r(n) / capacity_r                   the dominant share
 *     after(n)  = max over r of 1 - (free_r(n) - d_r) / capacity_r           the same with one more replica
 *     mean      = max over r of the cluster's use of r / its capacity        over the nodes that take new work
 *
 * `available` memory is what the kernel could give to a new process (MemAvailable), not merely what is free. Available CPU is
 * the share that a newcomer gets of a machine whose `cpus` are used by `used`: `cpus^2 / (cpus + used)`, as a fair scheduler
 * divides them. A machine that is busy throughout gives half: CPU time is shared where memory is not, and a reading that
 * comes and goes must not outweigh what is placed. `planned` sums the demand of everything placed on the node, `starting` of what is placed but not running yet (what runs is
 * in the measured `available` already).
 *
 * **Order.** A replica goes to a node that is not to be avoided; with `preferences: spread`, to the group (nodes with one value of the
 * label; none is a value, too; for several labels group within group) with the fewest of the service; to a node without one of the service;
 * and then, `strategy: spread`, to the node that becomes the most even with the others:
 *
 *     evenness(n) = mean - after(n)                                          where that is negative: the lowest use
 *                 = 1 + (use(n) - mean)^2 - (after(n) - mean)^2              else: what closes the largest gap
 *
 * The least squares matter where machines differ: the lowest use alone would leave large machines behind whenever a replica
 * is a large part of a small one. Once all have one, nodes that are equal as far as readings can tell (machines that hold as many, and have
 * room for as many, within 15 %) take turns, so that equal nodes get equal numbers; others get theirs in proportion to what they have free.
 *
 * **Tightness** decides with `strategy: binpack`, and also once 70 % of the nodes that may run it is reserved: from there on even nodes would
 * have no room for a large replica anywhere, although a third of the cluster is free. `asked` is the replica's dominant share, and
 * skew the difference between the node's planned shares of CPU and memory, of which the larger can't be filled with what is left:
 *
 *     tightness(n) = planned share after - 0.7 * skew after - (skew after - skew before) / asked
 *
 * A node that would be in use beyond its capacity comes last. Up to those 70 % a node without one of the
 * service comes first with `binpack`, too: the replicas of a service should not fail together, and a mix of services leaves less of
 * either resource over. From there on room is what `binpack` was asked for. A replica that reserves nothing is never refused, so no room is
 * kept by it: it is spread. Ties go to the node with fewer allocations, then by chance.
 * How this compares with other schedulers' rules: `npm run bench -- placement`.
 *
 * Scaling down undoes it, but for where `binpack` filled gaps: from the group with the most, from a node that has several, from the
 * fullest (with `binpack` the emptiest), nodes that count as equal in turns.
 */
import type { Resources } from "./model_reports.ts";
import type { PortSpec, ServiceRules, ServiceSpec } from "./model_spec.ts";
import { asksForDevices, type Devices, lackOf, reserve, type Reserved } from "./placement_devices.ts";
import { lackOfNetworks, type NetworkRoom, takeNetworks } from "./placement_networks.ts";
import { type NodeFacts, unmetRule } from "./placement_rules.ts";
import { busyFor, evenness, levelOf, type Load, newcomersCpus, NOISE, tightness, useOf } from "./placement_share.ts";

export type { Load } from "./placement_share.ts";

/** Demand of a replica without reservations: used for weighing, never for refusing. */
export const DEFAULT_CPUS = 0.1;
export const DEFAULT_MEMORY = 64 * 2 ** 20;

/** Containers of one job on one node: a /26 network has 64 addresses less network, gateway and broadcast. */
export const MAX_JOB_CONTAINERS = 61;

/** Share of the permitted nodes that is reserved from which on room is worth more than evenness, or with `binpack` than company. */
const SCARCE = 0.7;

const NO_GROUPS: readonly number[] = [];

/** Smallest weight: full nodes count as equal when they share what no node has room for. */
const MIN_WEIGHT = 0.01;

/** A host port that an allocation holds, or one of a range, which is not known before it runs. */
export type PortClaim = { protocol: string; host_ip: string; first: number; last: number };

/** A node as placement sees it; `place` counts what it places into it. */
export type Candidate = NodeFacts & {
  /** Why nothing new goes there (not ready, draining, …); undefined: eligible. */
  refusal: string | undefined;
  resources: Resources | undefined;
  /** Real reservations of all allocations here, and of those not running yet. */
  reserved: Load;
  reservedStarting: Load;
  /** Demand (reservation or default) of all allocations here, and of those not running yet. */
  planned: Load;
  plannedStarting: Load;
  claims: PortClaim[];
  /** GPUs and generic resources: what the node has, and what is set aside. */
  devices: Devices;
  reservedDevices: Reserved;
  allocations: number;
  /** Allocations per job id, for the size of the job's network. */
  perJob: Map<string, number>;
  /** Room for networks; absent: nothing limits it. */
  networkRoom?: NetworkRoom | undefined;
};

export type PlacementRequest = {
  job_id: string;
  spec: ServiceSpec;
  rules: ServiceRules;
  /** Replicas of this service per node id, those that were just placed included; `place` adds to it. */
  own: Map<string, number>;
  /** What will run beside the slot on its node (`reconcile_together.ts`), for which there must be room, too. */
  beside?: readonly Companion[];
  /** The only node that may take the slot, and why. */
  pinned?: { node_id: string; reason: string };
  /** Absent: `spread`. */
  strategy?: Strategy;
  /** Ids of nodes that take it only if no other node does. */
  avoid?: ReadonlySet<string>;
};

/** `spread` keeps nodes evenly full, `binpack` fills one after the other. */
export type Strategy = NonNullable<ServiceRules["strategy"]>;

export type Companion = { service_name: string; spec: ServiceSpec; rules: ServiceRules };

export type Placement = { node_id: string } | { reasons: string[] };

/** Demand of one replica for weighing. */
export function demandOf(spec: ServiceSpec): Load {
  return {
    cpus: spec.reservations.cpus ?? DEFAULT_CPUS,
    memory: spec.reservations.memory_bytes ?? DEFAULT_MEMORY,
  };
}

/** What a replica sets aside for certain. */
export function reservationOf(spec: ServiceSpec): Load {
  return { cpus: spec.reservations.cpus ?? 0, memory: spec.reservations.memory_bytes ?? 0 };
}

/** The host ports that a spec asks for. */
export function claimsOf(spec: ServiceSpec): PortClaim[] {
  return spec.ports.flatMap(({ protocol, host_ip, host_port }) =>
    host_port ? [{ protocol, host_ip, ...host_port }] : [],
  );
}

/** Places one replica and counts it into its candidate, or says why no node takes it: "3 nodes: host port 8080 taken". */
export function place(request: PlacementRequest, candidates: readonly Candidate[], random: () => number): Placement {
  const options = optionsOf(request, candidates);
  let top = options[0];
  for (const option of options) if (top && standing(option, top) > 0) top = option;
  if (!top) return { reasons: reasons(request, candidates) };
  const turns = top.own > 0 && !top.packed ? peersOf(top, { request, options }) : undefined;
  let best: Option | undefined;
  let ties = 0;
  for (const option of turns ?? options) {
    const ahead = best ? (turns ? turn(option, best) : standing(option, best)) : 1;
    const difference = best && ahead === 0 ? best.candidate.allocations - option.candidate.allocations : ahead;
    if (difference > 0) [best, ties] = [option, 1];
    else if (difference === 0 && random() * ++ties < 1) best = option;
  }
  const { candidate } = best ?? top;
  occupy(request, candidate);
  return { node_id: candidate.node_id };
}

/** An eligible node, and what speaks for it. */
type Option = {
  candidate: Candidate;
  isAvoided: boolean;
  crowd: readonly number[];
  /** Replicas of the service there; 0 where that does not matter. */
  own: number;
  score: number;
  /** Whether the score is one of tightness. */
  packed: boolean;
};

/** How many replicas a node would hold if it were empty, and how many it has and holds still. */
type Peer = { size: number; weight: number };

/** The eligible nodes with what speaks for each. */
function optionsOf(request: PlacementRequest, candidates: readonly Candidate[]): Option[] {
  const { spec, own, avoid, strategy } = request;
  const eligible: Candidate[] = [];
  const permitted: Candidate[] = [];
  for (const candidate of candidates) {
    if (isEligible(request, candidate)) eligible.push(candidate);
    else if (!isPermitted(request, candidate)) continue;
    permitted.push(candidate);
  }
  const more = demandOf(spec);
  const { cpus, memory } = reservationOf(spec);
  const isScarce = (cpus > 0 || memory > 0) && levelOf(permitted).reserved >= SCARCE;
  const packed = strategy === "binpack" || isScarce;
  const isApart = strategy !== "binpack" || !isScarce;
  const busy = busyFor(more, candidates);
  const mean = packed ? 0 : levelOf(candidates, busy).inUse;
  const crowd = crowding(request, { candidates, own });
  return eligible.map((candidate) => ({
    candidate,
    isAvoided: avoid?.has(candidate.node_id) === true,
    crowd: crowd(candidate),
    own: isApart ? (own.get(candidate.node_id) ?? 0) : 0,
    score: packed ? tightness(candidate, more) : evenness(candidate, { more, mean, busy }),
    packed,
  }));
}

/** Whether the node may run the service, whatever it has free. */
function isPermitted({ job_id, spec, rules }: PlacementRequest, node: Candidate): boolean {
  return unmetRule({ job_id, spec, constraints: rules.constraints }, node) === undefined;
}

/** What comes before the score. */
function rank(a: Option, b: Option): number {
  return (
    Number(b.isAvoided) - Number(a.isAvoided) || compare(b.crowd, a.crowd) || Number(a.own === 0) - Number(b.own === 0)
  );
}

function standing(a: Option, b: Option): number {
  return rank(a, b) || a.score - b.score;
}

/** Where all have one already, nodes that are the same as far as readings can tell take turns. */
function turn(a: Option, b: Option): number {
  return b.own - a.own || a.score - b.score;
}

function peersOf(
  top: Option,
  { request, options }: { request: PlacementRequest; options: readonly Option[] },
): readonly Option[] {
  const peer = peerOf(request, top.candidate);
  return options.filter((one) => rank(one, top) === 0 && isPeer(peerOf(request, one.candidate), peer));
}

function isPeer(a: Peer | undefined, b: Peer | undefined): boolean {
  return a !== undefined && b !== undefined && isNear(a.size, b.size) && isNear(a.weight, b.weight);
}

function isNear(a: number, b: number): boolean {
  return Math.abs(a - b) <= NOISE * Math.max(a, b);
}

/** Whether some node would take one more replica now. */
export function hasRoom(request: PlacementRequest, candidates: readonly Candidate[]): boolean {
  return candidates.some((candidate) => isEligible(request, candidate));
}

/**
 * Order in which replicas of one service leave on scale-down, which is placing undone: from the group with the most (where they
 * are to be spread), from nodes with several, then the fullest node first (with `binpack` the emptiest), and on it the newest.
 * Returns the `count` that go.
 */
export function chooseRemovals<T extends { node_id: string; created_at: number; slot: number }>(
  replicas: readonly T[],
  { count, request, candidates }: { count: number; request: PlacementRequest; candidates: readonly Candidate[] },
): T[] {
  const known = new Map(candidates.map((candidate) => [candidate.node_id, candidate]));
  const here = Map.groupBy(replicas, ({ node_id }) => node_id);
  const nodes = Array.from(here, ([nodeId, list]) => {
    const candidate = known.get(nodeId);
    const sorted = list.toSorted((a, b) => a.created_at - b.created_at || a.slot - b.slot);
    return { nodeId, candidate, list: sorted, all: list.length, peer: candidate && peerOf(request, candidate) };
  }).toSorted((a, b) => (a.nodeId < b.nodeId ? -1 : 1));
  type Node = (typeof nodes)[number];
  const { cpus, memory } = demandOf(request.spec);
  const busy = busyFor({ cpus, memory }, candidates);
  const removed: T[] = [];
  while (removed.length < count) {
    const own = new Map(nodes.map(({ nodeId, list }) => [nodeId, list.length]));
    const crowd = crowding(request, { candidates, own });
    const ranks = nodes
      .filter(({ list }) => list.length > 0)
      .map((node) => ({
        node,
        first: [...(node.candidate ? crowd(node.candidate) : []), node.list.length > 1 ? 1 : 0],
        fullness: fullness(node),
      }));
    const [top] = ranks.toSorted((a, b) => compare(b.first, a.first) || b.fullness - a.fullness);
    const peer = top?.node.peer;
    const equals = ranks.filter(
      (one) => one === top || (top && peer && compare(one.first, top.first) === 0 && isPeer(one.node.peer, peer)),
    );
    const [next] = equals.toSorted((a, b) => b.node.list.length - a.node.list.length || b.fullness - a.fullness);
    const last = next?.node.list.pop();
    if (!last) break;
    removed.push(last);
  }
  return removed;

  /** How much speaks for taking one from the node; one of a node that is gone goes first. */
  function fullness({ candidate, list, all }: Node): number {
    if (!candidate) return Number.POSITIVE_INFINITY;
    const gone = all - list.length;
    const use = useOf(candidate, { more: { cpus: -gone * cpus, memory: -gone * memory }, busy });
    return request.strategy === "binpack" ? -use : use;
  }
}

/**
 * How many replicas of the service are in a node's group, for each label that they are spread over; a group of the second label
 * is one within the group of the first.
 */
function crowding(
  { rules }: PlacementRequest,
  { candidates, own }: { candidates: readonly Candidate[]; own: ReadonlyMap<string, number> },
): (node: Candidate) => readonly number[] {
  const { spread } = rules;
  if (spread.length === 0) return () => NO_GROUPS;
  const groups = (node: Candidate) => groupsOf(node, spread);
  const counts = new Map<string, number>();
  for (const node of candidates) {
    for (const group of groups(node)) counts.set(group, (counts.get(group) ?? 0) + (own.get(node.node_id) ?? 0));
  }
  return (node) => groups(node).map((group) => counts.get(group) ?? 0);
}

/** The groups that a node is in, one for each label that replicas are spread over. */
export function groupsOf({ labels }: Pick<Candidate, "labels">, spread: readonly string[]): string[] {
  return spread.map((_, depth) => JSON.stringify(spread.slice(0, depth + 1).map((label) => labels.get(label) ?? null)));
}

/** Whether the node takes one more; most that don't have no room, which is told without making a sentence of it. */
export function isEligible(request: PlacementRequest, node: Candidate): boolean {
  return hasFree(reservationOf(request.spec), node) && refusalOf(request, node) === undefined;
}

/** Why the node does not take one more, in one sentence; undefined: it does. */
function refusalOf(request: PlacementRequest, node: Candidate): string | undefined {
  const { job_id, spec, rules, own, beside, pinned } = request;
  if (pinned && pinned.node_id !== node.node_id) return pinned.reason;
  if (node.refusal !== undefined) return node.refusal;
  const unmet = unmetRule({ job_id, spec, constraints: rules.constraints }, node);
  if (unmet !== undefined) return unmet;
  const most = rules.max_per_node;
  if (most !== undefined && (own.get(node.node_id) ?? 0) >= most) return `has max_replicas_per_node (${most})`;
  const noRoom = beside ? noRoomBeside(request, { node, beside }) : noRoomFor(spec, node);
  if (noRoom !== undefined) return noRoom;
  const specs = beside ? [spec, ...beside.map((one) => one.spec)] : [spec];
  const lack = node.networkRoom && lackOfNetworks(specs, job_id, node.networkRoom);
  if (lack !== undefined) return lack;
  if ((node.perJob.get(job_id) ?? 0) >= MAX_JOB_CONTAINERS)
    return `network of job ${job_id} is full (${MAX_JOB_CONTAINERS} containers)`;
  return undefined;
}

/** What stands in the way of a replica together with all that runs beside it. */
function noRoomBeside(
  { job_id, spec }: PlacementRequest,
  { node, beside }: { node: Candidate; beside: readonly Companion[] },
): string | undefined {
  const claims = [...node.claims];
  const sum: Load = { cpus: 0, memory: 0 };
  let taken: string | undefined;
  for (const { service_name, spec: one, rules } of [{ service_name: "", spec, rules: undefined }, ...beside]) {
    const unmet = rules && unmetRule({ job_id, spec: one, constraints: rules.constraints }, node);
    if (unmet !== undefined) return `${unmet}, as service ${service_name} asks, which runs beside`;
    const { cpus, memory } = reservationOf(one);
    sum.cpus += cpus;
    sum.memory += memory;
    taken ??= takenPort(one, { node, claims });
    claims.push(...claimsOf(one));
  }
  const { devices, reservedDevices: reserved } = node;
  const lack = lackOf([spec, ...beside.map((one) => one.spec)], { devices, reserved });
  const noRoom = unfitReservation(sum, node) ?? taken ?? lack;
  const names = [...new Set(beside.map(({ service_name }) => service_name))];
  return noRoom === undefined ? undefined : `${noRoom} (together with ${names.join(", ")})`;
}

/** Which reservation, host port or device of a replica the node can't give. */
function noRoomFor(spec: ServiceSpec, node: Candidate): string | undefined {
  const unfit = unfitReservation(reservationOf(spec), node);
  if (unfit !== undefined) return unfit;
  const taken = spec.ports.length > 0 ? takenPort(spec, { node, claims: node.claims }) : undefined;
  if (taken !== undefined || !asksForDevices(spec)) return taken;
  return lackOf([spec], { devices: node.devices, reserved: node.reservedDevices });
}

function unfitReservation(asked: Load, node: Candidate): string | undefined {
  if (!node.resources) return "no resource reading yet";
  if (!hasFreeCpus(asked, node)) return `reservation of ${asked.cpus} CPU does not fit`;
  return hasFree(asked, node) ? undefined : `reservation of ${mebibytes(asked.memory)} memory does not fit`;
}

function hasFree(asked: Load, node: Candidate): boolean {
  const { resources, reserved, reservedStarting } = node;
  if (!resources || !hasFreeCpus(asked, node)) return false;
  if (asked.memory <= 0) return true;
  const { total_memory, available_memory } = resources;
  return asked.memory <= Math.min(total_memory - reserved.memory, available_memory - reservedStarting.memory);
}

function hasFreeCpus({ cpus }: Load, { resources, reserved }: Candidate): boolean {
  // Sums of decimal CPU shares carry rounding errors: 0.1 + 0.2 must still fit into 0.3.
  return cpus <= 0 || (resources !== undefined && reserved.cpus + cpus <= resources.cpus + 1e-9);
}

function takenPort(
  { ports }: ServiceSpec,
  { node, claims }: { node: Candidate; claims: readonly PortClaim[] },
): string | undefined {
  for (const port of ports) {
    if (port.host_port && isTaken(port, port.host_port, { node, claims })) {
      const { first, last } = port.host_port;
      const suffix = port.protocol === "tcp" ? "" : `/${port.protocol}`;
      if (first !== last) return `host ports ${first}-${last}${suffix} all taken`;
      const isLost = node.resources?.lost_ports?.includes(`${port.protocol}/${first}`);
      const until = isLost ? " by Docker for a container that is gone: start dockerd anew there" : "";
      return `host port ${first}${suffix} taken${until}`;
    }
  }
  return undefined;
}

/** Whether no port of the range is left: each is held, or will be by a replica that takes one of an overlapping range. */
function isTaken(
  port: PortSpec,
  range: { first: number; last: number },
  { node, claims }: { node: Candidate; claims: readonly PortClaim[] },
): boolean {
  const near = claims.filter(
    (claim) =>
      claim.protocol === port.protocol &&
      claim.first <= range.last &&
      range.first <= claim.last &&
      overlaps(claim.host_ip, port.host_ip),
  );
  const held = new Set(near.flatMap(({ first, last }) => (first === last ? [first] : [])));
  const undecided = near.filter(({ first, last }) => first !== last).length;
  let free = 0;
  for (let number = range.first; number <= range.last; number++) {
    if (!held.has(number) && !node.resources?.taken_ports.includes(`${port.protocol}/${number}`)) free++;
  }
  return free <= undecided;
}

/** Two bindings of one port collide when either listens on all addresses or both on the same one. */
function overlaps(a: string, b: string): boolean {
  const all = (ip: string) => ip === "" || ip === "0.0.0.0" || ip === "::";
  return all(a) || all(b) || a === b;
}

function peerOf({ spec, own }: PlacementRequest, node: Candidate): Peer | undefined {
  if (!node.resources) return undefined;
  const demand = demandOf(spec);
  const { total_memory, available_memory, cpus, used_cpus } = node.resources;
  const freeMemory = Math.min(total_memory - node.planned.memory, available_memory - node.plannedStarting.memory);
  const freeCpus = Math.min(cpus - node.planned.cpus, newcomersCpus(cpus, used_cpus) - node.plannedStarting.cpus);
  const weight = holds({ cpus: freeCpus, memory: freeMemory }, demand) + (own.get(node.node_id) ?? 0);
  return { size: holds({ cpus, memory: total_memory }, demand), weight: Math.max(MIN_WEIGHT, weight) };
}

/** How many of `demand` go into `room`. */
function holds(room: Load, { cpus, memory }: Load): number {
  const number = Math.min(
    memory > 0 ? room.memory / memory : Number.POSITIVE_INFINITY,
    cpus > 0 ? room.cpus / cpus : Number.POSITIVE_INFINITY,
  );
  return Number.isFinite(number) ? number : room.cpus;
}

/** What is counted of a replica. */
type Counted = Pick<PlacementRequest, "job_id" | "spec" | "own"> & Partial<PlacementRequest>;

/** Counts one more replica into its node. */
export function occupy({ job_id, spec, own }: Counted, node: Candidate): void {
  const demand = demandOf(spec);
  const reservation = reservationOf(spec);
  for (const [sum, part] of [
    [node.reserved, reservation],
    [node.reservedStarting, reservation],
    [node.planned, demand],
    [node.plannedStarting, demand],
  ] as const) {
    sum.cpus += part.cpus;
    sum.memory += part.memory;
  }
  node.claims.push(...claimsOf(spec));
  reserve(node.reservedDevices, spec);
  node.allocations++;
  if (node.networkRoom) takeNetworks(spec, job_id, node.networkRoom);
  node.perJob.set(job_id, (node.perJob.get(job_id) ?? 0) + 1);
  own.set(node.node_id, (own.get(node.node_id) ?? 0) + 1);
}

function reasons(request: PlacementRequest, candidates: readonly Candidate[]): string[] {
  const { pinned } = request;
  const refused = new Map<string, number>();
  for (const candidate of candidates) {
    const refusal = refusalOf(request, candidate);
    if (refusal !== undefined) refused.set(refusal, (refused.get(refusal) ?? 0) + 1);
  }
  if (refused.size === 0) return ["the cluster has no nodes"];
  // A pinned slot has one node to go to: the others' refusals say nothing.
  const shown = [...refused].filter(([reason]) => !pinned || refused.size === 1 || reason !== pinned.reason);
  return shown
    .toSorted((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
    .map(([reason, count]) => {
      const why = `${count === 1 ? "1 node" : `${count} nodes`}: ${reason}`;
      return pinned && reason !== pinned.reason ? `${pinned.reason}; ${why}` : why;
    });
}

function compare(a: readonly number[], b: readonly number[]): number {
  for (const [i, value] of a.entries()) {
    const difference = value - (b[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

function mebibytes(bytes: number): string {
  return bytes >= 2 ** 30 ? `${+(bytes / 2 ** 30).toFixed(2)} GiB` : `${+(bytes / 2 ** 20).toFixed(2)} MiB`;
}
