/**
 * @module How full a node is, and how good a place for one more replica that makes it. Pure; `placement.ts` asks it about nodes
 * that are eligible, `reconcile_rebalance.ts` about those that replicas may leave. Formulas and reasons: `placement.ts`.
 */
import type { Resources } from "./model_reports.ts";

/** Sums over allocations, or what one asks for. CPUs and bytes. */
export type Load = { cpus: number; memory: number };

/** What counts of a node. */
export type Loaded = {
  resources: Resources | undefined;
  /** Real reservations of all allocations here. */
  reserved: Load;
  /** Demand (reservation or default) of all allocations here, and of those not running yet. */
  planned: Load;
  plannedStarting: Load;
};

/** How full a group of nodes is, taken together: the larger of its shares of CPUs and memory. */
export type Level = { inUse: number; reserved: number };

/**
 * Machines whose readings or rooms differ by this share count as equal: readings of busy machines are never exact, and what is
 * placed stays.
 */
export const NOISE = 0.15;

/** What a share of a node's CPUs counts against it that is left without memory to go with it, or the other way round. */
const SKEW = 0.7;

const NOTHING: Load = { cpus: 0, memory: 0 };

/**
 * The larger of the shares of CPUs and memory in use on a node, planned or measured, once it has `more`, too. `busy`: how much CPUs
 * that are measured to work count, from 0 to 1 (see `busyFor`).
 */
export function useOf(node: Loaded, { more = NOTHING, busy = 1 }: { more?: Load; busy?: number } = {}): number {
  const { resources, planned, plannedStarting } = node;
  if (!resources) return 1;
  const { total_memory, available_memory, cpus, used_cpus } = resources;
  const freeMemory = Math.min(total_memory - planned.memory, available_memory - plannedStarting.memory);
  const measured = 1 - (newcomersCpus(cpus, used_cpus) - plannedStarting.cpus - more.cpus) / cpus;
  return Math.max(1 - (freeMemory - more.memory) / total_memory, (planned.cpus + more.cpus) / cpus, measured * busy);
}

/**
 * How much busy CPUs count for a replica: fully where it asks for a larger share of all CPUs than of all memory, and the less the
 * smaller that share is beside the other. CPU time is divided, memory is not: what hardly computes runs well on a busy machine.
 */
export function busyFor(more: Load, nodes: readonly Pick<Loaded, "resources">[]): number {
  let [cpus, memory] = [0, 0];
  for (const { resources } of nodes) {
    cpus += resources?.cpus ?? 0;
    memory += resources?.total_memory ?? 0;
  }
  const asked = more.memory / memory;
  return asked > 0 ? Math.min(1, more.cpus / cpus / asked) : 1;
}

/** As `useOf`, with measured use only as far as it exceeds what is planned by more than readings are off. */
export function steadyUseOf(node: Loaded, more = NOTHING): number {
  const { resources, planned } = node;
  if (!resources) return 1;
  const cpus = (planned.cpus + more.cpus) / resources.cpus;
  const memory = (planned.memory + more.memory) / resources.total_memory;
  return Math.max(cpus, memory, useOf(node, { more }) - NOISE);
}

/** The CPUs that a newcomer gets of a machine that already works, as a fair scheduler divides them. */
export function newcomersCpus(cpus: number, used: number): number {
  return (cpus * cpus) / (cpus + used);
}

/** How full the nodes are, taken together; those that take nothing new are left out. */
export function levelOf(nodes: readonly (Loaded & { refusal: string | undefined })[], busy = 1): Level {
  let [cpus, memory, usedCpus, usedMemory, reservedCpus, reservedMemory] = [0, 0, 0, 0, 0, 0];
  for (const { refusal, resources, reserved, planned, plannedStarting } of nodes) {
    if (refusal !== undefined || !resources) continue;
    const { total_memory, available_memory, cpus: has, used_cpus } = resources;
    cpus += has;
    memory += total_memory;
    reservedCpus += reserved.cpus;
    reservedMemory += reserved.memory;
    usedCpus += Math.max(planned.cpus, (has - newcomersCpus(has, used_cpus) + plannedStarting.cpus) * busy);
    usedMemory += Math.max(planned.memory, total_memory - available_memory + plannedStarting.memory);
  }
  if (cpus === 0) return { inUse: 1, reserved: 1 };
  return {
    inUse: Math.max(usedCpus / cpus, usedMemory / memory),
    reserved: Math.max(reservedCpus / cpus, reservedMemory / memory),
  };
}

/** How much a node gains in evenness by one more replica: the more the better. `mean` is how full all are together. */
export function evenness(node: Loaded, { more, mean, busy }: { more: Load; mean: number; busy: number }): number {
  const after = useOf(node, { more, busy });
  if (after > mean) return mean - after;
  const before = useOf(node, { busy });
  // By how much its squared distance from the mean falls; above anything that exceeds the mean.
  return 1 + (after - before) * (2 * mean - after - before);
}

/** How well one more replica fills a node up: the more the better; nodes without room for it come last, the emptiest first. */
export function tightness(node: Loaded, more: Load): number {
  const after = useOf(node, { more });
  if (!node.resources || after > 1 + 1e-9) return -3 - after;
  const { planned, resources } = node;
  const cpus = more.cpus / resources.cpus;
  const memory = more.memory / resources.total_memory;
  const cpusAfter = planned.cpus / resources.cpus + cpus;
  const memoryAfter = planned.memory / resources.total_memory + memory;
  const skew = Math.abs(cpusAfter - memoryAfter);
  const skewed = skew - Math.abs(cpusAfter - cpus - memoryAfter + memory);
  const asked = Math.max(cpus, memory);
  return Math.max(cpusAfter, memoryAfter) - SKEW * skew - (asked > 0 ? skewed / asked : 0);
}
