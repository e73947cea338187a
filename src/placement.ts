/**
 * @module Placement: which node gets a replica. Pure: the same input gives the same answer, and randomness comes in.
 *
 * **Hard limits.** A node is eligible when it is ready and active, when the rules about nodes hold for it (constraints,
 * external volumes, a recent enough Engine: `placement_rules.ts`), when it runs fewer replicas of the service than
 * `max_replicas_per_node`, when the service's reservations fit, of devices too, when its fixed host ports are free there, and when the job's
 * network there has an address left.
 * Where services share something, the room on the node must do for all of them. Each refusal is one sentence.
 * - CPU reserved: `reserved_cpus + asked <= cpus`.
 * - GPUs and generic resources are counted in `placement_devices.ts`.
 * - Memory reserved: `reserved_memory + asked <= total_memory`, and also `asked <= available_memory - reserved by what is
 *   placed but not running yet`, because memory that other processes hold can't be given twice (CPU time can be shared).
 *
 * **Weight.** With `d` the demand of one replica (its reservation, or 0.1 CPU and 64 MiB where it has none):
 *
 *     free_r(n) = min(capacity_r - planned_r, available_r - starting_r)      r = memory, CPU; whichever is tighter
 *     fit(n)    = min over r of free_r(n) / d_r                              replicas that still fit
 *     weight(n) = fit(n) + own(n)                                            own: replicas of this service on n already
 *     score(n)  = weight(n) / (own(n) + 1)
 *
 * `available` memory is what the kernel could give to a new process (MemAvailable), not merely what is free. Available CPU is
 * the share that a newcomer gets of a machine whose `cpus` are used by `used`: `cpus^2 / (cpus + used)`, as a fair scheduler
 * divides them. A machine that is busy throughout gives half: CPU time is shared where memory is not, and a reading that
 * comes and goes must not outweigh what is placed. `planned` sums the demand of everything placed on the node, `starting` of what is placed but not running yet (what runs is
 * in the measured `available` already). A replica goes to the eligible node without one first, then to the highest score.
 * With `preferences: spread`, the nodes are grouped by the label's value (none is a value, too), for several labels group within
 * group, and a replica first of all goes to the eligible group with the fewest of the service.
 * This is the highest-averages method of apportionment (Jefferson, D'Hondt): replicas end up in proportion to the weights, one
 * at a time and without ever moving an earlier one; placing one leaves the node's weight as it was (fit - 1, own + 1).
 * Nodes whose weights differ by at most 15 % count as equal, because readings are never exact: of those, the one with the fewest
 * replicas takes the next. Ties go to the node with fewer allocations, then by chance. Scaling down undoes it: from the group with the most, the lowest
 * `weight / own` goes first.
 */
import type { Resources } from "./model.ts";
import type { PortSpec, ServiceRules, ServiceSpec } from "./model_spec.ts";
import { asksForDevices, type Devices, lackOf, reserve, type Reserved } from "./placement_devices.ts";
import { type NodeFacts, unmetRule } from "./placement_rules.ts";

/** Demand of a replica without reservations: used for weighing, never for refusing. */
export const DEFAULT_CPUS = 0.1;
export const DEFAULT_MEMORY = 64 * 2 ** 20;

/** Containers of one job on one node: a /26 network has 64 addresses less network, gateway and broadcast. */
export const MAX_JOB_CONTAINERS = 61;

/** Weights this close count as equal, as a share of the larger: readings of busy machines are never exact, and replicas stay. */
const NOISE = 0.15;

/** Smallest weight: a full node still takes its share of what no node has room for. */
const MIN_WEIGHT = 0.01;

/** Sums over allocations. CPUs and bytes. */
export type Load = { cpus: number; memory: number };

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
};

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
  const refused = new Map<string, number>();
  const crowd = crowding(request, { candidates, own: request.own });
  const options: Option[] = [];
  for (const candidate of candidates) {
    const refusal = refusalOf(request, candidate);
    if (refusal !== undefined) {
      refused.set(refusal, (refused.get(refusal) ?? 0) + 1);
      continue;
    }
    const own = request.own.get(candidate.node_id) ?? 0;
    const first = [...crowd(candidate).map((n) => -n), own === 0 ? 1 : 0];
    options.push({ candidate, own, first, weight: weight(request, candidate), chance: random() });
  }
  const top = highest(options, ({ first, weight: share, own }) => [...first, share / (own + 1)])[0];
  // Its equals: nodes of the same standing whose weight is the same as far as readings can tell.
  const equals = options.filter((one) => top && compare(one.first, top.first) === 0 && isNear(one.weight, top.weight));
  const [best] = highest(equals, ({ own, weight: share, candidate, chance }) => [
    -own,
    share,
    -candidate.allocations,
    chance,
  ]);
  if (!best) return { reasons: reasons(refused, request.pinned) };
  occupy(request, best.candidate);
  return { node_id: best.candidate.node_id };
}

/** An eligible node, and what speaks for it. */
type Option = { candidate: Candidate; own: number; first: number[]; weight: number; chance: number };

function isNear(a: number, b: number): boolean {
  return Math.abs(a - b) <= NOISE * Math.max(a, b);
}

/** Those of `options` whose rank no other exceeds. */
function highest(options: readonly Option[], rankOf: (option: Option) => number[]): Option[] {
  let best: Option[] = [];
  let bestRank: number[] = [];
  for (const option of options) {
    const rank = rankOf(option);
    const difference = best.length === 0 ? 1 : compare(rank, bestRank);
    if (difference > 0) [best, bestRank] = [[option], rank];
    else if (difference === 0) best.push(option);
  }
  return best;
}

/** Whether some node would take one more replica now. */
export function hasRoom(request: PlacementRequest, candidates: readonly Candidate[]): boolean {
  return candidates.some((candidate) => refusalOf(request, candidate) === undefined);
}

/**
 * Order in which replicas of one service leave on scale-down: from the group with the most (where they are to be spread), the
 * fullest node first (lowest `weight / own`), and on it the newest first. Returns the `count` that go; `own` is counted down on a copy.
 */
export function chooseRemovals<T extends { node_id: string; created_at: number; slot: number }>(
  replicas: readonly T[],
  { count, request, candidates }: { count: number; request: PlacementRequest; candidates: readonly Candidate[] },
): T[] {
  const weights = new Map(candidates.map((candidate) => [candidate.node_id, weight(request, candidate)]));
  const byNode = new Map<string, T[]>();
  for (const replica of replicas) byNode.set(replica.node_id, [...(byNode.get(replica.node_id) ?? []), replica]);
  for (const list of byNode.values()) list.sort((a, b) => a.created_at - b.created_at || a.slot - b.slot);
  const removed: T[] = [];
  while (removed.length < count) {
    const own = new Map(Array.from(byNode, ([nodeId, list]) => [nodeId, list.length]));
    const crowd = crowding(request, { candidates, own });
    const crowds = new Map(candidates.map((candidate) => [candidate.node_id, crowd(candidate)]));
    const fullest = [...byNode.entries()]
      .filter(([, list]) => list.length > 0)
      .toSorted(
        (a, b) =>
          compare(crowds.get(b[0]) ?? [], crowds.get(a[0]) ?? []) ||
          share(a) - share(b) ||
          b[1].length - a[1].length ||
          (a[0] < b[0] ? -1 : 1),
      )[0];
    const last = fullest?.[1].pop();
    if (!last) break;
    removed.push(last);
  }
  return removed;

  function share([nodeId, list]: [string, T[]]): number {
    return (weights.get(nodeId) ?? MIN_WEIGHT) / list.length;
  }
}

/**
 * How many replicas of the service are in a node's group, for each label that they are spread over; a group of the second label
 * is one within the group of the first.
 */
function crowding(
  { rules }: PlacementRequest,
  { candidates, own }: { candidates: readonly Candidate[]; own: ReadonlyMap<string, number> },
): (node: Candidate) => number[] {
  const { spread } = rules;
  if (spread.length === 0) return () => [];
  const groups = (node: Candidate) =>
    spread.map((_, depth) => JSON.stringify(spread.slice(0, depth + 1).map((label) => node.labels.get(label) ?? null)));
  const counts = new Map<string, number>();
  for (const node of candidates) {
    for (const group of groups(node)) counts.set(group, (counts.get(group) ?? 0) + (own.get(node.node_id) ?? 0));
  }
  return (node) => groups(node).map((group) => counts.get(group) ?? 0);
}

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

function unfitReservation(asked: Load, { resources, reserved, reservedStarting }: Candidate): string | undefined {
  if (!resources) return "no resource reading yet";
  const { total_memory, available_memory, cpus } = resources;
  // Sums of decimal CPU shares carry rounding errors: 0.1 + 0.2 must still fit into 0.3.
  if (asked.cpus > 0 && reserved.cpus + asked.cpus > cpus + 1e-9)
    return `reservation of ${asked.cpus} CPU does not fit`;
  if (asked.memory > 0) {
    const free = Math.min(total_memory - reserved.memory, available_memory - reservedStarting.memory);
    if (asked.memory > free) return `reservation of ${mebibytes(asked.memory)} memory does not fit`;
  }
  return undefined;
}

function takenPort(
  { ports }: ServiceSpec,
  { node, claims }: { node: Candidate; claims: readonly PortClaim[] },
): string | undefined {
  for (const port of ports) {
    if (port.host_port && isTaken(port, port.host_port, { node, claims })) {
      const { first, last } = port.host_port;
      const suffix = port.protocol === "tcp" ? "" : `/${port.protocol}`;
      return first === last ? `host port ${first}${suffix} taken` : `host ports ${first}-${last}${suffix} all taken`;
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

function weight({ spec, own }: PlacementRequest, node: Candidate): number {
  if (!node.resources) return MIN_WEIGHT;
  const demand = demandOf(spec);
  const { total_memory, available_memory, cpus, used_cpus } = node.resources;
  const freeMemory = Math.min(total_memory - node.planned.memory, available_memory - node.plannedStarting.memory);
  const freeCpus = Math.min(cpus - node.planned.cpus, (cpus * cpus) / (cpus + used_cpus) - node.plannedStarting.cpus);
  const fit = Math.min(
    demand.memory > 0 ? freeMemory / demand.memory : Number.POSITIVE_INFINITY,
    demand.cpus > 0 ? freeCpus / demand.cpus : Number.POSITIVE_INFINITY,
  );
  return Math.max(MIN_WEIGHT, (Number.isFinite(fit) ? fit : cpus) + (own.get(node.node_id) ?? 0));
}

function occupy({ job_id, spec, own }: PlacementRequest, node: Candidate): void {
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
  node.perJob.set(job_id, (node.perJob.get(job_id) ?? 0) + 1);
  own.set(node.node_id, (own.get(node.node_id) ?? 0) + 1);
}

function reasons(refused: Map<string, number>, pinned: PlacementRequest["pinned"]): string[] {
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
