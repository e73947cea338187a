/**
 * @module The master's picture of the cluster, in memory: the stored records with their indexes, and beside them what nodes
 * reported (never stored). Pure data and derivations; the Scheduler writes changes to the Store first and applies them here after.
 */
import type {
  AllocationRecord,
  AllocationStatus,
  Change,
  ClusterRecord,
  DepartureRecord,
  EngineStatus,
  HistoryRecord,
  HomeRecord,
  JobRecord,
  JobServiceRecord,
  LiveJob,
  NodeRecord,
  Order,
  PastAllocation,
  RecordKind,
  RegistryRecord,
  RemovalRecord,
} from "./model.ts";
import { describeError } from "./log.ts";
import type { ForeignContainer, Resources } from "./model_reports.ts";
import { isGlobal, type ServiceSpec } from "./model_spec.ts";
import { RECORD_KINDS } from "./model.ts";
import type { NetworkMode, NodeNetwork } from "./model_network.ts";
import { Blocks } from "./cluster_state_blocks.ts";
import type { Candidate, Load, PortClaim } from "./placement.ts";
import { claimsOf, demandOf, reservationOf } from "./placement.ts";
import { copyOf, devicesOf, reserve, type Reserved } from "./placement_devices.ts";
import { type FreeBlocks, poolNetworks, roomOf } from "./placement_networks.ts";
import { matches, type NodeFacts } from "./placement_rules.ts";

/** What is known of a node beyond its record. Times are milliseconds since 1970. */
export type NodeView = {
  state: "ready" | "unready" | "down";
  /** Why the node is not ready; empty when it is. */
  reason: string;
  /** When the node last spoke, or when this master began to listen for it. */
  lastSeen: number;
  /**
   * Whether what is assigned to it is given up, and runs elsewhere. Absent: while it is down. Not so when it may be this master
   * that is cut off; and so for a node whose Engine has been dead for too long.
   */
  lost?: boolean;
  connected: boolean;
  /** Whether it has spoken to this master at all. */
  isHeard?: boolean;
  version: string;
  /** Which run of which kernel it is on, as its hello said. */
  bootId?: string | undefined;
  engine: EngineStatus | undefined;
  resources: Resources | undefined;
  foreign: ForeignContainer[];
  /** Names of the volumes that the node has; undefined: not known, or too many. */
  volumes: ReadonlySet<string> | undefined;
  /** How the node takes part in the cluster's network, as it told last. */
  overlay?: NodeNetwork | undefined;
  /** Names of its Docker networks; undefined as `volumes`. */
  networks: ReadonlySet<string> | undefined;
  /** Why the node can't hold secrets; undefined: it can. */
  noSecrets?: string | undefined;
  /** Why the node's disk takes no new containers; undefined: it does. */
  fullDisk?: string | undefined;
  /** Since when this master has heard of allocations that their checks call unhealthy. */
  unhealthySince?: Map<string, number>;
  applied: Order | undefined;
  /** Whether `statuses` holds a full report of the current or the last session. */
  reported: boolean;
  statuses: Map<string, AllocationStatus>;
};

/** A node that a master which starts now has not heard of. */
export function newView(now: number): NodeView {
  return {
    state: "unready",
    reason: "not heard from since this master started",
    lastSeen: now,
    connected: false,
    version: "",
    engine: undefined,
    resources: undefined,
    foreign: [],
    volumes: undefined,
    networks: undefined,
    applied: undefined,
    reported: false,
    statuses: new Map(),
  };
}

/** A service of a job, by one string: job ids have no slash. */
export type ServiceKey = `${string}/${string}`;

export function serviceKey(of: { job_id: string; service_name: string }): ServiceKey {
  return `${of.job_id}/${of.service_name}`;
}

/** The names that a key is made of. */
export function parseServiceKey(key: ServiceKey): { job_id: string; service_name: string } {
  const slash = key.indexOf("/");
  return { job_id: key.slice(0, slash), service_name: key.slice(slash + 1) };
}

/** The order in which people are shown a service's allocations. */
export function bySlot(a: AllocationRecord, b: AllocationRecord): number {
  return a.slot - b.slot || (a.allocation_id < b.allocation_id ? -1 : 1);
}

/** The labels that count: those set through the API over those that the node was started with. */
export function labelsOf(node: NodeRecord): Map<string, string> {
  return new Map([...node.labels, ...node.set_labels]);
}

/** Allocations that a slot's history tells of: enough to see a pattern, with up to 2 KB of logs each. */
const MAX_PAST = 5;
/** A node that left stays listed for a day, and for as long as a slot's data are on it. */
const DEPARTURE_KEPT_MS = 86_400_000;
/** A master forgets none of them before it has run for so long: it may be its clock alone by which a day has passed. */
const DEPARTURE_KEPT_AGAIN_MS = 3_600_000;

/** A node whose load cannot be worked out takes nothing, and keeps no other node from taking something. */
function unreadable({ node_id, node_name, role }: NodeRecord, error: unknown): Candidate {
  const zero = () => ({ cpus: 0, memory: 0 });
  return {
    node_id,
    node_name,
    role,
    labels: new Map(),
    volumes: undefined,
    networks: undefined,
    apiVersion: undefined,
    refusal: `an internal error of Cacophony: ${describeError(error)}`,
    resources: undefined,
    reserved: zero(),
    reservedStarting: zero(),
    planned: zero(),
    plannedStarting: zero(),
    claims: [],
    devices: new Map(),
    reservedDevices: new Map(),
    allocations: 0,
    perJob: new Map(),
  };
}

/** Sums over a node's allocations, kept until one of them changes. */
type NodeLoad = {
  /** Names of networks that take a subnet for what is here. */
  poolNetworks: ReadonlySet<string>;
} & Pick<
  Candidate,
  | "reserved"
  | "reservedStarting"
  | "planned"
  | "plannedStarting"
  | "claims"
  | "reservedDevices"
  | "allocations"
  | "perJob"
>;

export class ClusterState {
  /** The record of the cluster itself; undefined before one was loaded. */
  cluster: ClusterRecord | undefined;
  /** When this master began: its clock says little about times that are older. */
  since = -Infinity;
  readonly jobs = new Map<string, JobRecord>();
  readonly specs = new Map<string, ServiceSpec>();
  readonly nodes = new Map<string, NodeRecord>();
  /** The blocks of addresses that those have. */
  readonly blocks = new Blocks();
  readonly allocations = new Map<string, AllocationRecord>();
  readonly homes = new Map<string, HomeRecord>();
  /** Nodes that are members no more. */
  readonly departures = new Map<string, DepartureRecord>();
  readonly removals = new Map<string, RemovalRecord>();
  readonly registries = new Map<string, RegistryRecord>();
  /** Sealed values of secrets by their ids. */
  readonly secrets = new Map<string, string>();
  /** Pieces of sent files by their hash, in base64. */
  readonly chunks = new Map<string, string>();
  readonly views = new Map<string, NodeView>();
  /** How long a node may take to notice that its master is gone, by how often it sends heartbeats. Milliseconds. */
  noticeMs = 0;
  readonly #byService = new Map<ServiceKey, Map<string, AllocationRecord>>();
  readonly #byNode = new Map<string, Map<string, AllocationRecord>>();
  readonly #loads = new Map<string, NodeLoad>();
  /** All live jobs as JSON text, kept until one of them changes. */
  #documents: Uint8Array | undefined;
  readonly #histories = new Map<ServiceKey, Map<string, HistoryRecord>>();

  /** The cluster's network, which limits how many networks nodes can have; undefined: nothing does. */
  get network(): { mode: NetworkMode; cidr: string } | undefined {
    return this.cluster && { mode: this.cluster.network_mode, cidr: this.cluster.network_cidr };
  }

  /** Takes in changes that the Store has made durable. */
  apply(changes: readonly Change[]): void {
    for (const change of changes) {
      if (change.op === "delete") this.#delete(change.kind, change.key);
      else if (change.kind === "cluster") this.cluster = change.record;
      else if (change.kind === "job") this.#putJob(change.record);
      else if (change.kind === "spec") this.specs.set(change.record.spec_hash, change.record.spec);
      else if (change.kind === "node") this.#putNode(change.record);
      else if (change.kind === "allocation") this.#putAllocation(change.record);
      else if (change.kind === "home") this.homes.set(RECORD_KINDS.home.key(change.record), change.record);
      else if (change.kind === "departure") this.departures.set(change.record.node_id, change.record);
      else if (change.kind === "history")
        entry(this.#histories, serviceKey(change.record)).set(String(change.record.slot), change.record);
      else if (change.kind === "registry") this.registries.set(change.record.host, change.record);
      else if (change.kind === "secret") this.secrets.set(change.record.secret_id, change.record.sealed);
      else if (change.kind === "chunk") this.chunks.set(change.record.chunk_hash, change.record.data);
      else if (change.kind === "removal") this.removals.set(change.record.removal_id, change.record);
    }
  }

  /** The change that makes a record in the Store what it is here. */
  asIs(kind: RecordKind, key: string): Change {
    const found = this.#record(kind, key);
    // The kind and its record go together; TypeScript can't follow that.
    return found === undefined ? { op: "delete", kind, key } : ({ op: "put", kind, record: found } as Change);
  }

  #record(kind: RecordKind, key: string): object | undefined {
    const [spec, sealed, data] = [this.specs.get(key), this.secrets.get(key), this.chunks.get(key)];
    if (kind === "spec") return spec && { spec_hash: key, spec };
    if (kind === "secret") return sealed === undefined ? undefined : { secret_id: key, sealed };
    if (kind === "chunk") return data === undefined ? undefined : { chunk_hash: key, data };
    if (kind === "history") {
      const all = [...this.#histories.values()].flatMap((slots) => [...slots.values()]);
      return all.find((record) => RECORD_KINDS.history.key(record) === key);
    }
    if (kind === "cluster") return this.cluster;
    const lists = {
      job: this.jobs,
      node: this.nodes,
      allocation: this.allocations,
      home: this.homes,
      departure: this.departures,
      removal: this.removals,
      registry: this.registries,
    };
    return lists[kind].get(key);
  }

  liveJob(jobId: string): LiveJob | undefined {
    const job = this.jobs.get(jobId);
    return job?.state === "live" ? job : undefined;
  }

  liveJobs(): LiveJob[] {
    return [...this.jobs.values()].filter((job) => job.state === "live");
  }

  /** All live jobs as one JSON document: job id to the job's document, ordered by id, with a newline at the end. */
  jobDocuments(): Uint8Array {
    if (this.#documents) return this.#documents;
    const jobs = this.liveJobs().toSorted((a, b) => (a.job_id < b.job_id ? -1 : 1));
    const entries = jobs.map(({ job_id, document }) => `${JSON.stringify(job_id)}:${document}`);
    this.#documents = new TextEncoder().encode(`{${entries.join(",")}}\n`);
    return this.#documents;
  }

  allocationsOf(key: ServiceKey): AllocationRecord[] {
    return [...(this.#byService.get(key)?.values() ?? [])];
  }

  allocationsOn(nodeId: string): AllocationRecord[] {
    return [...(this.#byNode.get(nodeId)?.values() ?? [])];
  }

  /** Names of the services of a job that still have allocations, whether the document has them or not. */
  allocatedServices(jobId: string): string[] {
    const prefix = `${jobId}/`;
    return [...this.#byService.keys()].filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length));
  }

  status(allocation: AllocationRecord): AllocationStatus | undefined {
    return this.views.get(allocation.node_id)?.statuses.get(allocation.allocation_id);
  }

  isDown(nodeId: string): boolean {
    return this.views.get(nodeId)?.state === "down" || !this.nodes.has(nodeId);
  }

  /** Whether what is assigned to the node is given up: nothing waits for what it says any more. */
  isLost(nodeId: string): boolean {
    return this.views.get(nodeId)?.lost ?? this.isDown(nodeId);
  }

  /** Whether the node's Docker Engine did not answer when the node last spoke: a node can't stop anything then. */
  isEngineSilent(nodeId: string): boolean {
    const engine = this.views.get(nodeId)?.engine;
    return engine ? engine.state !== "ready" : this.nodes.get(nodeId)?.engine_silent === true;
  }

  /** The last allocations that a slot of the service had, by slot. */
  histories(key: ServiceKey): HistoryRecord[] {
    return [...(this.#histories.get(key)?.values() ?? [])].toSorted((a, b) => a.slot - b.slot);
  }

  /** The history of a slot with some more allocations, without the oldest where those are too many. */
  historyWith(of: { job_id: string; service_name: string; slot: number }, past: PastAllocation[]): HistoryRecord {
    const { job_id, service_name, slot } = of;
    const before = this.#histories.get(serviceKey(of))?.get(String(slot))?.past ?? [];
    return { job_id, service_name, slot, past: [...before, ...past].slice(-MAX_PAST) };
  }

  /** How many of a service are wanted: its scale, or one for each node that its constraints allow. */
  scaleOf({ scale, rules }: Pick<JobServiceRecord, "scale" | "rules">): number {
    return isGlobal(rules) ? this.nodesFor(rules).length : scale;
  }

  /** Members of the cluster, up or down, that are not to be emptied and match a service's constraints; ordered by node id. */
  nodesFor({ constraints }: Pick<JobServiceRecord["rules"], "constraints">): NodeRecord[] {
    return [...this.nodes.values()]
      .filter((node) => node.availability !== "drain" && !this.isGoneStranger(node))
      .filter((node) => matches(constraints, this.#facts(node)))
      .toSorted((a, b) => (a.node_id < b.node_id ? -1 : 1));
  }

  homeOf(of: { job_id: string; service_name: string; slot: number }): HomeRecord | undefined {
    return this.homes.get(JSON.stringify([of.job_id, of.service_name, of.slot]));
  }

  /** Nodes as placement sees them, ordered by node id; a copy that placement may count into. */
  candidates(): Candidate[] {
    const { cidr: range = "" } = this.network ?? {};
    const free: FreeBlocks = { range, left: this.blocks.left(range) };
    return [...this.nodes.values()]
      .filter((node) => !this.isGoneStranger(node))
      .toSorted((a, b) => (a.node_id < b.node_id ? -1 : 1))
      .map((node) => {
        try {
          return this.#candidate(node, free);
        } catch (error) {
          return unreadable(node, error);
        }
      });
  }

  /** Whether the node never was ready and is not connected: anybody may have invented it, so nothing is planned with it. */
  isGoneStranger({ node_id, never_ready }: NodeRecord): boolean {
    return never_ready === true && this.views.get(node_id)?.connected !== true;
  }

  /** Sums of what is set aside on a node, for reports. */
  reservedOn(nodeId: string): Load {
    return this.#load(nodeId).reserved;
  }

  /**
   * Removes what nothing refers to: specs of no job or allocation, contents and secrets that no other spec or job names, the
   * history of slots that there are no more, nodes that left long ago, and what those were to remove.
   */
  unused(now: number): Change[] {
    const used = new Set([...this.allocations.values()].map(({ spec_hash }) => spec_hash));
    const named = {
      chunk: new Set<string>(),
      secret: new Set<string>(),
      departure: new Set<string>(),
      removal: new Set<string>(),
    };
    for (const { services, secrets = [] } of this.liveJobs()) {
      for (const { spec_hash } of services) used.add(spec_hash);
      for (const { secret_id } of secrets) named.secret.add(secret_id);
    }
    for (const hash of used) {
      const { files = [], mounts = [] } = this.specs.get(hash) ?? {};
      for (const { chunks } of files) for (const chunk of chunks) named.chunk.add(chunk);
      for (const mount of mounts) if (mount.type === "secret") named.secret.add(mount.secret_id);
    }
    for (const { removal_id, node_id } of this.removals.values())
      if (this.nodes.has(node_id) || this.departures.has(node_id)) named.removal.add(removal_id);
    for (const home of this.homes.values()) named.departure.add(home.node_id);
    for (const { node_id, left_at } of this.departures.values())
      if (now - left_at < DEPARTURE_KEPT_MS || now - this.since < DEPARTURE_KEPT_AGAIN_MS) named.departure.add(node_id);
    const unnamed = (kind: RecordKind, keys: Iterable<string>, kept: ReadonlySet<string>) =>
      [...keys].filter((key) => !kept.has(key)).map((key): Change => ({ op: "delete", kind, key }));
    return [
      ...unnamed("spec", this.specs.keys(), used),
      ...unnamed("chunk", this.chunks.keys(), named.chunk),
      ...unnamed("secret", this.secrets.keys(), named.secret),
      ...unnamed("departure", this.departures.keys(), named.departure),
      ...unnamed("removal", this.removals.keys(), named.removal),
      ...this.#unusedHistories(),
    ];
  }

  #unusedHistories(): Change[] {
    return [...this.#histories].flatMap(([key, slots]) => {
      const { job_id, service_name } = parseServiceKey(key);
      const service = this.liveJob(job_id)?.services.find((one) => one.service_name === service_name);
      const most = !service ? 0 : isGlobal(service.rules) ? Infinity : service.scale;
      const gone = [...slots.values()].filter(({ slot }) => slot > most);
      return gone.map((record): Change => ({ op: "delete", kind: "history", key: RECORD_KINDS.history.key(record) }));
    });
  }

  /** GPUs and generic resources of a node: how many there are, and are set aside. */
  devicesOn(nodeId: string): { kind: string; total: number | undefined; reserved: number }[] {
    const view = this.views.get(nodeId);
    const { reservedDevices } = this.#load(nodeId);
    const devices = [...devicesOf(view?.engine, view?.resources)].sort(([a], [b]) => (a < b ? -1 : 1));
    return devices.map(([kind, { count }]) => ({
      kind,
      total: Number.isFinite(count) ? count : undefined,
      reserved: reservedDevices.get(kind)?.count ?? 0,
    }));
  }

  /** Tells that the status of one of the node's allocations changed. */
  touch(nodeId: string): void {
    this.#loads.delete(nodeId);
  }

  #candidate(node: NodeRecord, free: FreeBlocks): Candidate {
    const view = this.views.get(node.node_id);
    const load = this.#load(node.node_id);
    const { subnets = [] } = node;
    const facts = { subnets, told: view?.overlay, networks: view?.networks, promised: load.poolNetworks };
    return {
      ...this.#facts(node),
      refusal: refusalOf(node, view),
      resources: view?.resources,
      reserved: { ...load.reserved },
      reservedStarting: { ...load.reservedStarting },
      planned: { ...load.planned },
      plannedStarting: { ...load.plannedStarting },
      claims: [...load.claims],
      devices: devicesOf(view?.engine, view?.resources),
      reservedDevices: copyOf(load.reservedDevices),
      allocations: load.allocations,
      perJob: new Map(load.perJob),
      networkRoom: this.network && roomOf(facts, { mode: this.network.mode, free }),
    };
  }

  #facts(node: NodeRecord): NodeFacts {
    const { node_id, node_name, role, platform } = node;
    const view = this.views.get(node_id);
    return {
      node_id,
      node_name,
      role,
      ...(platform ? { platform } : {}),
      labels: labelsOf(node),
      volumes: view?.volumes,
      networks: view?.networks,
      noSecrets: view?.noSecrets,
      apiVersion: view?.engine?.state === "ready" ? view.engine.api_version : undefined,
    };
  }

  #load(nodeId: string): NodeLoad {
    const known = this.#loads.get(nodeId);
    if (known) return known;
    // What ended for good holds nothing any more.
    const here = this.allocationsOn(nodeId).filter(({ ended }) => !ended);
    const starting = here.filter((allocation) => this.status(allocation)?.state !== "running");
    const perJob = new Map<string, number>();
    for (const { job_id } of here) perJob.set(job_id, (perJob.get(job_id) ?? 0) + 1);
    const reservedDevices: Reserved = new Map();
    const networks = new Set<string>();
    for (const { spec_hash, job_id } of here) {
      const spec = this.specs.get(spec_hash);
      if (!spec) continue;
      reserve(reservedDevices, spec);
      for (const name of poolNetworks(spec, job_id)) networks.add(name);
    }
    const load: NodeLoad = {
      reserved: this.#sum(here, reservationOf),
      reservedStarting: this.#sum(starting, reservationOf),
      planned: this.#sum(here, demandOf),
      plannedStarting: this.#sum(starting, demandOf),
      claims: here.flatMap((allocation) => this.#claims(allocation)),
      reservedDevices,
      allocations: here.length,
      perJob,
      poolNetworks: networks,
    };
    this.#loads.set(nodeId, load);
    return load;
  }

  /** What runs holds the ports that Docker gave it; what does not run yet, what it asked for. */
  #claims(allocation: AllocationRecord): PortClaim[] {
    const status = this.status(allocation);
    if (status?.state === "running" && status.ports.length > 0) {
      return status.ports.map(({ protocol, host_ip, host_port }) => ({
        protocol,
        host_ip,
        first: host_port,
        last: host_port,
      }));
    }
    const spec = this.specs.get(allocation.spec_hash);
    return spec ? claimsOf(spec) : [];
  }

  #sum(allocations: readonly AllocationRecord[], part: (spec: ServiceSpec) => Load): Load {
    const sum: Load = { cpus: 0, memory: 0 };
    for (const { spec_hash } of allocations) {
      const spec = this.specs.get(spec_hash);
      if (!spec) continue;
      const { cpus, memory } = part(spec);
      sum.cpus += cpus;
      sum.memory += memory;
    }
    return sum;
  }

  #putJob(record: JobRecord): void {
    this.#documents = undefined;
    this.jobs.set(record.job_id, record);
  }

  #deleteJob(jobId: string): void {
    this.#documents = undefined;
    this.jobs.delete(jobId);
  }

  #putNode(record: NodeRecord): void {
    this.blocks.change(this.nodes.get(record.node_id)?.subnets ?? [], record.subnets ?? []);
    this.nodes.set(record.node_id, record);
  }

  #deleteNode(nodeId: string): void {
    this.blocks.change(this.nodes.get(nodeId)?.subnets ?? [], []);
    this.nodes.delete(nodeId);
  }

  #putAllocation(record: AllocationRecord): void {
    this.touch(record.node_id);
    this.allocations.set(record.allocation_id, record);
    entry(this.#byService, serviceKey(record)).set(record.allocation_id, record);
    entry(this.#byNode, record.node_id).set(record.allocation_id, record);
  }

  #delete(kind: string, key: string): void {
    if (kind === "job") this.#deleteJob(key);
    else if (kind === "spec") this.specs.delete(key);
    else if (kind === "node") this.#deleteNode(key);
    else if (kind === "home") this.homes.delete(key);
    else if (kind === "departure") this.departures.delete(key);
    else if (kind === "history") this.#deleteHistory(key);
    else if (kind === "registry") this.registries.delete(key);
    else if (kind === "secret") this.secrets.delete(key);
    else if (kind === "chunk") this.chunks.delete(key);
    else if (kind === "removal") this.removals.delete(key);
    else if (kind === "allocation") this.#deleteAllocation(key);
  }

  #deleteHistory(key: string): void {
    const [job_id = "", service_name = "", slot] = JSON.parse(key) as [string, string, number];
    drop(this.#histories, serviceKey({ job_id, service_name }), String(slot));
  }

  #deleteAllocation(id: string): void {
    const record = this.allocations.get(id);
    if (!record) return;
    this.touch(record.node_id);
    this.allocations.delete(id);
    drop(this.#byService, serviceKey(record), id);
    drop(this.#byNode, record.node_id, id);
  }
}

function refusalOf(node: NodeRecord, view: NodeView | undefined): string | undefined {
  if (node.availability === "drain") return "draining";
  if (node.availability === "pause") return "paused";
  if (!view || view.state === "down") return "down";
  if (view.state === "unready") return `unready (${view.reason})`;
  if (view.fullDisk !== undefined) return view.fullDisk;
  return undefined;
}

function entry<K, V>(index: Map<K, Map<string, V>>, key: K): Map<string, V> {
  let inner = index.get(key);
  if (!inner) index.set(key, (inner = new Map()));
  return inner;
}

function drop<K, V>(index: Map<K, Map<string, V>>, key: K, id: string): void {
  const inner = index.get(key);
  inner?.delete(id);
  if (inner?.size === 0) index.delete(key);
}
