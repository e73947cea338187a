/**
 * @module The cluster as API clients see it: JSON documents made of the master's state. Pure. Absent values are `null`, so that
 * every document has every field; times are ISO 8601 in UTC.
 */
import type { ClusterState, NodeView } from "./cluster_state.ts";
import { bySlot, labelsOf, serviceKey } from "./cluster_state.ts";
import { imageWarnings } from "./job_images.ts";
import type { AllocationRecord, ContainerEnd, DepartureRecord, HistoryRecord, JobServiceRecord } from "./model.ts";
import type { LiveJob, NodeRecord } from "./model.ts";
import type { Resources } from "./model_reports.ts";
import { isRunToEnd } from "./model_spec.ts";
import { type DrainWait, isEmpty } from "./reconcile_drain.ts";
import type { Blocked } from "./reconcile_goal.ts";
import type { Rebalance } from "./reconcile_rebalance.ts";
import { splitWarnings } from "./split_warnings.ts";

/** Entries of one page of a listing, unless `limit` says less. */
export const PAGE_SIZE = 1000;

export type Page = { limit: number; after: string | undefined };
export type AllocationFilter = Partial<Record<"job" | "service" | "node" | "state", string | undefined>>;
type BlockedOf = (key: ReturnType<typeof serviceKey>) => readonly Blocked[];

/** Hears of what a listing leaves out, because of an error of Cacophony itself: the rest of it is shown. */
export type OnFault = (what: Record<string, string>, error: unknown) => void;

/** The views of all items that can be shown. */
export function shown<T, V>(
  items: readonly T[],
  { view, name, onFault }: { view: (item: T) => V; name: (item: T) => Record<string, string>; onFault: OnFault },
): V[] {
  return items.flatMap((item) => {
    try {
      return [view(item)];
    } catch (error) {
      onFault(name(item), error);
      return [];
    }
  });
}

/** State of an allocation for a reader: what its node reports, unless the master knows better. */
export function allocationState(allocation: AllocationRecord, state: ClusterState): string {
  const { ended, desired, node_id, job_id, service_name } = allocation;
  if (ended && desired === "run") {
    const service = state.liveJob(job_id)?.services.find((one) => one.service_name === service_name);
    return service && isRunToEnd(service.rules) && ended.exit_code === 0 ? "completed" : "exited";
  }
  if (state.isDown(node_id)) return "lost";
  if (desired === "stop") return "stopping";
  return state.status(allocation)?.state ?? "pending";
}

export function allocationView(allocation: AllocationRecord, state: ClusterState) {
  const node = state.nodes.get(allocation.node_id);
  const status = state.status(allocation);
  return {
    allocation_id: allocation.allocation_id,
    job_id: allocation.job_id,
    service_name: allocation.service_name,
    slot: allocation.slot,
    job_version: allocation.job_version,
    node_id: allocation.node_id,
    node_name: node?.node_name ?? null,
    node_address: node?.address ?? null,
    state: allocationState(allocation, state),
    health: status?.health ?? null,
    container_id: status?.container_id ?? null,
    ports: status?.ports ?? [],
    restarts: status?.restarts ?? 0,
    /** The allocation of the slot that runs until this one is up, and why it is replaced. */
    replaces: allocation.replaces ?? null,
    failures: status?.failures ?? 0,
    next_start_at: time(status?.next_start_at),
    last_end: endView(status?.last_end),
    exit_code: status?.exit_code ?? allocation.ended?.exit_code ?? null,
    error: status?.error ?? null,
    pull: status?.pull ?? null,
    image_id: status?.image_id ?? null,
    image_digest: status?.image_digest ?? null,
    created_at: time(allocation.created_at),
    started_at: time(status?.started_at),
    finished_at: time(status?.finished_at),
  };
}

/** One page of allocations in the order of job, service and slot. */
export function allocationsView(
  state: ClusterState,
  { filter, page, onFault }: { filter: AllocationFilter; page: Page; onFault: OnFault },
) {
  const wanted = [...state.allocations.values()].filter(
    (one) =>
      (filter.job === undefined || one.job_id === filter.job) &&
      (filter.service === undefined || one.service_name === filter.service) &&
      (filter.node === undefined ||
        one.node_id === filter.node ||
        state.nodes.get(one.node_id)?.node_name === filter.node) &&
      (filter.state === undefined || allocationState(one, state) === filter.state),
  );
  const { items, next } = pageOf(wanted, { key: sortKey, page });
  const view = (allocation: AllocationRecord) => allocationView(allocation, state);
  const name = ({ allocation_id }: AllocationRecord) => ({ allocation_id });
  return { allocations: shown(items, { view, name, onFault }), next };
}

/** One page of nodes, those that left not long ago included. */
export function nodesView(
  state: ClusterState,
  { page, waitsOf, onFault }: { page: Page; waitsOf: (node: NodeRecord) => DrainWait[]; onFault: OnFault },
) {
  const left = [...state.departures.values()].filter(({ node_id }) => !state.nodes.has(node_id));
  const { items, next } = pageOf([...state.nodes.values(), ...left], { key: ({ node_id }) => node_id, page });
  const view = (node: NodeRecord | DepartureRecord) =>
    "left_at" in node ? departureView(node) : nodeView(node, { state, waits: waitsOf(node) });
  return { nodes: shown(items, { view, name: ({ node_id }) => ({ node: node_id }), onFault }), next };
}

export function resourcesView(state: ClusterState, onFault: OnFault) {
  const nodes = [...state.nodes.keys()];
  const view = (nodeId: string) => {
    const resources = state.views.get(nodeId)?.resources;
    if (!resources) return [];
    const reserved = state.reservedOn(nodeId);
    const { total_memory, used_memory, available_memory, cpus, used_cpus } = resources;
    const readings = {
      total_memory,
      used_memory,
      available_memory,
      reserved_memory: reserved.memory,
      disk: resources.disk ?? null,
      cpus,
      used_cpus: round(used_cpus),
      reserved_cpus: round(reserved.cpus),
      devices: state.devicesOn(nodeId).map((one) => ({ ...one, total: one.total ?? null })),
      allocations: state.allocationsOn(nodeId).length,
    };
    return [[nodeId, readings] as const];
  };
  return Object.fromEntries(shown(nodes, { view, name: (node) => ({ node }), onFault }).flat());
}

export function jobView(
  job: LiveJob,
  { state, blockedOf, onFault }: { state: ClusterState; blockedOf: BlockedOf; onFault: OnFault },
) {
  const splits = shown([job], { view: (one) => splitWarnings(one, state), name: nameOfJob, onFault })[0];
  const view = (service: JobServiceRecord) => {
    const { service_name, rules, digest } = service;
    const scale = state.scaleOf(service);
    const key = serviceKey({ job_id: job.job_id, service_name });
    const records = state
      .allocationsOf(key)
      .filter(({ incarnation }) => incarnation === job.incarnation)
      .toSorted(bySlot);
    const allocations = records.map((allocation) => allocationView(allocation, state));
    const placed = records.filter(({ desired }) => desired === "run").length;
    const counts = countStates(allocations, scale - placed);
    const health = countHealth(allocations);
    const blocked = blockedOf(key);
    const warnings = [...imageWarnings(allocations), ...(splits?.get(service_name) ?? [])];
    const image_digest = digest ?? null;
    const problems = problemsOf(allocations);
    const history = state.histories(key).map(historyView);
    const fares = { counts, health, allocations, blocked, problems, history, image_digest, warnings };
    return { scale, mode: rules.mode, ...fares };
  };
  const services = job.services.map((service) => {
    const name = () => ({ job_id: job.job_id, service: service.service_name });
    return [service.service_name, shown([service], { view, name, onFault })[0] ?? unshown(service)] as const;
  });
  return {
    job_id: job.job_id,
    version: job.version,
    document: JSON.parse(job.document) as unknown,
    services: Object.fromEntries(services),
    created_at: time(job.created_at),
    updated_at: time(job.updated_at),
  };
}

const nameOfJob = ({ job_id }: LiveJob) => ({ job_id });

/** A service of which an error of Cacophony itself lets nothing else be told. */
function unshown({ scale, rules, digest }: JobServiceRecord) {
  const reasons = ["an internal error of Cacophony, which its log has more of: how the service fares cannot be shown"];
  const none = { counts: {}, health: {}, allocations: [], problems: [], history: [], warnings: [] };
  return { scale, mode: rules.mode, ...none, blocked: [{ slot: 1, reasons }], image_digest: digest ?? null };
}

/** The last allocations that a slot had, the newest last: why each was replaced, and how its last run had ended. */
function historyView({ slot, past }: HistoryRecord) {
  const allocations = past.map(({ created_at, replaced_at, error, last_end, ...one }) => ({
    ...one,
    created_at: time(created_at),
    replaced_at: time(replaced_at),
    error: error ?? null,
    last_end: endView(last_end),
  }));
  return { slot, allocations };
}

function endView(end: ContainerEnd | undefined) {
  if (!end) return null;
  return {
    exit_code: end.exit_code ?? null,
    signal: end.signal ?? null,
    oom_killed: end.oom_killed,
    error: end.error ?? null,
    started_at: time(end.started_at),
    finished_at: time(end.finished_at),
    log_tail: end.log_tail,
  };
}

/** What is wrong with replicas, one sentence for each kind of trouble. */
function problemsOf(
  allocations: readonly { slot: number; node_name: string | null; error: string | null }[],
): string[] {
  const slots = Map.groupBy(
    allocations.filter(({ error }) => error !== null),
    ({ error }) => error ?? "",
  );
  return [...slots].map(([error, all]) => {
    const [first] = all;
    const where = `slot ${first?.slot} on node ${first?.node_name ?? "?"}`;
    return `${all.length === 1 ? where : `${where} and ${all.length - 1} more`}: ${error}`;
  });
}

/** What PUT answers of a job's services. */
export function scalesView(job: LiveJob, state: ClusterState) {
  return Object.fromEntries(job.services.map((service) => [service.service_name, { scale: state.scaleOf(service) }]));
}

export function countsView(state: ClusterState) {
  const nodes: Record<string, number> = { ready: 0, unready: 0, down: 0, left: state.departures.size };
  for (const nodeId of state.nodes.keys()) {
    const key = state.views.get(nodeId)?.state ?? "unready";
    nodes[key] = (nodes[key] ?? 0) + 1;
  }
  const allocations: Record<string, number> = {};
  const health: Record<string, number> = {};
  for (const allocation of state.allocations.values()) {
    const key = allocationState(allocation, state);
    allocations[key] = (allocations[key] ?? 0) + 1;
    const check = state.status(allocation)?.health;
    if (check !== undefined) health[check] = (health[check] ?? 0) + 1;
  }
  return { jobs: state.liveJobs().length, nodes, allocations, health };
}

/** What rebalancing moves, in its order, and what the imbalance is before and after it. */
export function rebalanceView(
  { moves, before, after }: Rebalance,
  { state, dryRun }: { state: ClusterState; dryRun: boolean },
) {
  const nameOf = (id: string) => state.nodes.get(id)?.node_name ?? id;
  return {
    dry_run: dryRun,
    imbalance: { before: round(before), after: round(after) },
    moves: moves.map(({ allocation_id, from, to, gain }) => {
      const { job_id, service_name, slot } = state.allocations.get(allocation_id) ?? {};
      const nodes = { from: nameOf(from), from_node_id: from, to: nameOf(to), to_node_id: to };
      return { job_id, service_name, slot, allocation_id, ...nodes, gain: round(gain) };
    }),
  };
}

function lostPortsOf(resources: Resources | undefined): string {
  const lost = resources?.lost_ports ?? [];
  return lost.length > 0 ? `Docker holds ${lost.join(", ")} for containers that are gone: start dockerd anew` : "";
}

/** One node as a reader sees it; `waits`: what keeps it from being empty. */
export function nodeView(node: NodeRecord, { state, waits }: { state: ClusterState; waits: readonly DrainWait[] }) {
  const view = state.views.get(node.node_id);
  const engine = view?.engine;
  const { drain } = node;
  return {
    node_id: node.node_id,
    node_name: node.node_name,
    address: node.address,
    role: node.role,
    state: view?.state ?? "unready",
    reason: view?.reason || view?.fullDisk || lostPortsOf(view?.resources),
    availability: node.availability,
    /** Whether a node that is to be emptied is empty. */
    drained: drain !== undefined && isEmpty(state, node.node_id),
    drain: drain
      ? {
          started_at: time(drain.started_at),
          deadline_at: time(drain.deadline_at),
          force: drain.force,
          leave: drain.leave,
          waiting: waits.slice(0, PAGE_SIZE),
        }
      : null,
    labels: Object.fromEntries(labelsOf(node)),
    platform: node.platform ?? null,
    cacophony_version: view?.version || null,
    docker_version: engine?.state === "ready" ? engine.docker_version : null,
    docker_api_version: engine?.state === "ready" ? engine.api_version : null,
    engine_id: node.engine_id ?? null,
    network: networkView(node, view),
    foreign_containers: view?.foreign ?? [],
    joined_at: time(node.joined_at),
    last_seen_at: time(view?.lastSeen),
  };
}

/** A node that is a member no more. */
export function departureView({ node_id, node_name, address, left_at }: DepartureRecord) {
  return { node_id, node_name, address, state: "left", reason: "", left_at: time(left_at) };
}

/** How the node takes part in the cluster's network; `none`: its containers reach only each other. */
function networkView({ subnets }: NodeRecord, view: NodeView | undefined) {
  const overlay = view?.overlay;
  return {
    mode: overlay?.mode ?? null,
    reason: overlay?.reason ?? null,
    subnets: subnets ?? [],
    networks: overlay?.networks ?? [],
    entry_faults: overlay?.entry_faults ?? [],
  };
}

/** Allocations by state; slots without one are pending. */
function countStates(allocations: readonly { state: string }[], unplaced: number): Record<string, number> {
  const counts: Record<string, number> = unplaced > 0 ? { pending: unplaced } : {};
  for (const { state } of allocations) counts[state] = (counts[state] ?? 0) + 1;
  return counts;
}

/** Allocations with a health check by what it says; empty where none has one. */
function countHealth(allocations: readonly { health: string | null }[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { health } of allocations) if (health !== null) counts[health] = (counts[health] ?? 0) + 1;
  return counts;
}

function sortKey({ job_id, service_name, slot, allocation_id }: AllocationRecord): string {
  return [job_id, service_name, String(slot).padStart(6, "0"), allocation_id].join("/");
}

/** Items after the cursor, in key order, and the cursor of the next page (null: this is the last). */
function pageOf<T>(
  items: readonly T[],
  { key, page }: { key: (item: T) => string; page: Page },
): { items: T[]; next: string | null } {
  const sorted = items.map((item) => ({ item, key: key(item) })).toSorted((a, b) => (a.key < b.key ? -1 : 1));
  const { after } = page;
  const rest = after === undefined ? sorted : sorted.filter((one) => one.key > after);
  const shown = rest.slice(0, page.limit);
  return {
    items: shown.map(({ item }) => item),
    next: rest.length > shown.length ? (shown.at(-1)?.key ?? null) : null,
  };
}

function time(ms: number | undefined): string | null {
  return ms === undefined ? null : new Date(ms).toISOString();
}

/** Sums without the noise of binary fractions. */
function round(sum: number): number {
  return Math.round(sum * 1000) / 1000;
}
