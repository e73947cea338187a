/**
 * @module The words of Cacophony: the records that the Store keeps, the messages that nodes and master exchange, and the few
 * errors that every part shares. What a job is made of is in `model_spec.ts`, names and addresses in `model_network.ts`.
 *
 * Everything here is data. Each shape is a valibot schema; its TypeScript type is inferred from it, so there is one source.
 * Records and messages are JSON and use snake_case; units stand in a name where there is a doubt (`_ms`, `_bytes`).
 * Maps whose keys come from users (environment, labels, service names) are lists of pairs: `__proto__` is a legal name, and
 * a JavaScript object is no safe place for it.
 */
import * as v from "valibot";
import * as b from "./model_bounds.ts";
import { directoryMessage, networkAddress, networkMessage, networkMode, nodeNetwork } from "./model_network.ts";
import { protocolRange } from "./model_protocol.ts";
import { foreignContainer, publishedPort, pullProgress, resources } from "./model_reports.ts";
import { type apiAccess, count, type Detail, pairs, port, serviceRules, serviceSpec, strings } from "./model_spec.ts";
import { termProof } from "./model_term.ts";

/** What a hello says for masters that know no range of versions (`model_protocol.ts`): they take a node of this one only. */
export const PROTOCOL_VERSION = 3;

// ---- Records: what the Store keeps ----------------------------------------------------------------------------------

/** A block of 256 addresses for each of 256 nodes. */
export const DEFAULT_NETWORK_CIDR = "10.213.0.0/16";

export const clusterRecord = v.object({
  cluster_id: v.string(),
  created_at: count,
  /** How containers of different nodes reach each other, and the IPv4 range (CIDR) that all their addresses are out of. */
  network_mode: v.optional(networkMode, "vxlan"),
  network_cidr: v.optional(v.string(), DEFAULT_NETWORK_CIDR),
  /** Public part of the cluster's key (`cluster_key.ts`). Absent: no master that signs its welcomes has run yet. */
  cluster_key: v.exactOptional(v.string()),
  /** What all deleted jobs leave together: no version up to this one is given out again, for no job. Absent: 0. */
  version_floor: v.exactOptional(count),
});
export type ClusterRecord = v.InferOutput<typeof clusterRecord>;

export const jobServiceRecord = v.object({
  service_name: v.string(),
  spec_hash: v.string(),
  /** Means nothing for a service that runs once on each node. */
  scale: count,
  /** Counts restarts of the service's replicas: one of an older generation is outdated. Absent: 0. */
  generation: v.exactOptional(count),
  /** What the image's tag stands for, as the first node found that had to pull it. */
  digest: v.exactOptional(v.string()),
  /** Whether an image that is present on a node must be that digest to be used. */
  refresh: v.exactOptional(v.boolean()),
  rules: serviceRules,
  /** The job version whose constraints these are: replicas of older ones move when their node does not match. */
  rules_since: count,
  /** What `depends_on` asks for held once since the definition last changed, so it orders starts no more. */
  released: v.boolean(),
});
export type JobServiceRecord = v.InferOutput<typeof jobServiceRecord>;

/** Which value a secret of a job has: by an id that is given out at random, since a hash of a short value is soon guessed. */
export const jobSecret = v.object({ name: v.string(), secret_id: v.string() });
export type JobSecret = v.InferOutput<typeof jobSecret>;

/** Deleted jobs have no records but in a Store of an earlier version, whose master kept the last version of each of them. */
export const jobRecord = v.variant("state", [
  v.object({
    state: v.literal("live"),
    job_id: v.string(),
    version: count,
    /** Differs for each creation of the same id: a new job waits for the containers of its predecessor. */
    incarnation: v.string(),
    /** The document after interpolation, as JSON text. */
    document: v.string(),
    services: v.array(jobServiceRecord),
    /** The secrets that have a value. Absent: there are none, or the record is older than sealed secrets. */
    secrets: v.exactOptional(v.array(jobSecret)),
    created_at: count,
    updated_at: count,
  }),
  v.object({ state: v.literal("deleted"), job_id: v.string(), version: count }),
]);
export type JobRecord = v.InferOutput<typeof jobRecord>;
export type LiveJob = Extract<JobRecord, { state: "live" }>;

/**
 * Why an allocation is to run no more and another takes its slot: `lost` with its node, `drain` and `rebalance` as asked for,
 * `unhealthy` for good, `failing` again and again on its node, `stuck` when it took another's place and did not come up,
 * `changed` by a newer definition or a restart, `misplaced` where its node suits it no more, `partner` with what it shares
 * something with.
 */
export const replaceCause = v.picklist([
  "lost",
  "drain",
  "rebalance",
  "unhealthy",
  "failing",
  "stuck",
  "changed",
  "misplaced",
  "partner",
]);
export type ReplaceCause = v.InferOutput<typeof replaceCause>;

/** How a run of a container ended. Times are milliseconds since 1970. */
export const containerEnd = v.object({
  exit_code: v.exactOptional(v.number()),
  /** Name of the signal that ended it, as its exit code tells: `SIGKILL`. */
  signal: v.exactOptional(v.string()),
  /** Whether the kernel ended a process of it for want of memory. */
  oom_killed: v.boolean(),
  /** Docker's message, where it has one. */
  error: v.exactOptional(v.string()),
  started_at: v.exactOptional(count),
  finished_at: v.exactOptional(count),
  /** The last lines of what it wrote, the newest last. */
  log_tail: strings,
});
export type ContainerEnd = v.InferOutput<typeof containerEnd>;

export const allocationRecord = v.object({
  allocation_id: v.string(),
  job_id: v.string(),
  incarnation: v.string(),
  service_name: v.string(),
  slot: v.pipe(count, v.minValue(1)),
  node_id: v.string(),
  spec_hash: v.string(),
  job_version: count,
  /** The service's generation that it was made for. Absent: 0. */
  generation: v.exactOptional(count),
  desired: v.picklist(["run", "stop"]),
  created_at: count,
  /** The allocations of other services that its container shares something with (`sharesOf`): on its node, and for good. */
  joins: v.exactOptional(v.array(v.object({ service_name: v.string(), allocation_id: v.string() }))),
  /** The allocation of the same slot that runs until this one does, and why that one is replaced. */
  replaces: v.exactOptional(v.object({ allocation_id: v.string(), cause: replaceCause })),
  /** Set when the container ended for good: kept, so that it is not run again whatever becomes of the node. */
  ended: v.exactOptional(v.object({ exit_code: v.number() })),
});
export type AllocationRecord = v.InferOutput<typeof allocationRecord>;

/** What images the node runs, in Go's words: `linux`, `amd64`. */
export const platform = v.object({ os: v.string(), arch: v.string() });

/** How a node is emptied. Times are milliseconds since 1970. */
export const drain = v.object({
  started_at: count,
  /** What could not be moved by then is stopped; what has its data there stays all the same. */
  deadline_at: count,
  /** Whether what has its data there is moved, too, and leaves them behind. */
  force: v.boolean(),
  /** Whether the node leaves the cluster once it is empty. */
  leave: v.boolean(),
});
export type Drain = v.InferOutput<typeof drain>;

/** A machine has few; a list that is longer or holds anything else is not taken. */
const MAX_API_ADDRESSES = 64;
const apiAddresses = v.fallback(v.pipe(v.array(v.pipe(v.string(), v.ip())), v.maxLength(MAX_API_ADDRESSES)), []);

export const nodeRecord = v.object({
  node_id: v.string(),
  node_name: v.string(),
  address: v.string(),
  role: v.picklist(["master", "standby", "worker"]),
  /** `pause`: gets nothing new; `drain`: what runs there moves away. */
  availability: v.picklist(["active", "pause", "drain"]),
  drain: v.exactOptional(drain),
  /** As the node was started with. */
  labels: pairs,
  /** Set through the API; they win. */
  set_labels: pairs,
  platform: v.exactOptional(platform),
  engine_id: v.exactOptional(v.string()),
  /** IPv4 address that packets between containers of different nodes travel to. */
  underlay: v.exactOptional(v.string()),
  /** Further IP addresses that its API may be reached by, at the port of `address`; absent: none are known. */
  api_addresses: v.exactOptional(apiAddresses),
  /** Where it listens on another port than that of `address`, which something maps to it: reached by that one, too. */
  api_port: v.exactOptional(port),
  /** Blocks of the cluster's range (CIDR) that are this node's for as long as it is a member. Absent: it gets one when it is ready. */
  subnets: v.exactOptional(strings),
  /** It has said hello and was never ready. Absent: it was, or its record is older than this mark. */
  never_ready: v.exactOptional(v.literal(true)),
  /** Its Docker Engine did not answer when it last spoke, and it has what must never run twice. Absent: one of the two is not so. */
  engine_silent: v.exactOptional(v.literal(true)),
  joined_at: count,
});
export type NodeRecord = v.InferOutput<typeof nodeRecord>;

/** A node that left, or was removed while it was down: known for as long as data on it are, and a day at least. */
export const departureRecord = v.object({
  node_id: v.string(),
  node_name: v.string(),
  address: v.string(),
  engine_id: v.exactOptional(v.string()),
  left_at: count,
});
export type DepartureRecord = v.InferOutput<typeof departureRecord>;

/** One allocation that a slot had: why it ended, and what was known of it then. */
export const pastAllocation = v.object({
  allocation_id: v.string(),
  node_id: v.string(),
  node_name: v.string(),
  cause: replaceCause,
  created_at: count,
  replaced_at: count,
  restarts: count,
  error: v.exactOptional(v.string()),
  last_end: v.exactOptional(containerEnd),
});
export type PastAllocation = v.InferOutput<typeof pastAllocation>;

/** The last allocations that a slot had, the newest last. */
export const historyRecord = v.object({
  job_id: v.string(),
  service_name: v.string(),
  slot: count,
  past: v.array(pastAllocation),
});
export type HistoryRecord = v.InferOutput<typeof historyRecord>;

/** Container spec by content hash; kept while a job or an allocation refers to it. */
export const specRecord = v.object({ spec_hash: v.string(), spec: serviceSpec });
export type SpecRecord = v.InferOutput<typeof specRecord>;

/** Where a slot's node-local data lives: the slot goes back there. Outlives the job; ends with `DELETE …?volumes=true`. */
export const homeRecord = v.object({
  job_id: v.string(),
  service_name: v.string(),
  slot: count,
  node_id: v.string(),
});
export type HomeRecord = v.InferOutput<typeof homeRecord>;

/** One node's duty to remove a deleted job's volumes, kept until that node reports it done. */
export const removalRecord = v.object({ removal_id: v.string(), job_id: v.string(), node_id: v.string() });
export type RemovalRecord = v.InferOutput<typeof removalRecord>;

/** The cluster's login for an image registry; name and password are sealed (`seal.ts`). */
export const registryRecord = v.object({ host: v.string(), sealed: v.string() });
export type RegistryRecord = v.InferOutput<typeof registryRecord>;

/** A value of a secret, in base64 and sealed (`seal.ts`). Written with the job that has it; removed when no job or spec names it. */
export const secretRecord = v.object({ secret_id: v.string(), sealed: v.string() });
export type SecretRecord = v.InferOutput<typeof secretRecord>;

/** A piece of a file that specs name; `data` is base64. Written before the spec, and removed when no spec names it. */
export const chunkRecord = v.object({ chunk_hash: v.string(), data: v.string() });
export type ChunkRecord = v.InferOutput<typeof chunkRecord>;

/** Every kind of record by its name in the Store, with the function that gives its key. */
export const RECORD_KINDS = {
  cluster: { schema: clusterRecord, key: () => "cluster" },
  job: { schema: jobRecord, key: (r: JobRecord) => r.job_id },
  spec: { schema: specRecord, key: (r: SpecRecord) => r.spec_hash },
  node: { schema: nodeRecord, key: (r: NodeRecord) => r.node_id },
  allocation: { schema: allocationRecord, key: (r: AllocationRecord) => r.allocation_id },
  home: { schema: homeRecord, key: (r: HomeRecord) => JSON.stringify([r.job_id, r.service_name, r.slot]) },
  departure: { schema: departureRecord, key: (r: DepartureRecord) => r.node_id },
  history: { schema: historyRecord, key: (r: HistoryRecord) => JSON.stringify([r.job_id, r.service_name, r.slot]) },
  removal: { schema: removalRecord, key: (r: RemovalRecord) => r.removal_id },
  registry: { schema: registryRecord, key: (r: RegistryRecord) => r.host },
  secret: { schema: secretRecord, key: (r: SecretRecord) => r.secret_id },
  chunk: { schema: chunkRecord, key: (r: ChunkRecord) => r.chunk_hash },
} as const;
export type RecordKind = keyof typeof RECORD_KINDS;
export type RecordOf<K extends RecordKind> = v.InferOutput<(typeof RECORD_KINDS)[K]["schema"]>;

/** One record written or removed; a list of them is committed whole or not at all. */
export type Change =
  | { [K in RecordKind]: { op: "put"; kind: K; record: RecordOf<K> } }[RecordKind]
  | { op: "delete"; kind: RecordKind; key: string };

/** Every record there is, by kind. */
export type StoredState = { [K in RecordKind]: RecordOf<K>[] };

/** The key of a change's record within its kind. */
export function keyOf(change: Change): string {
  if (change.op === "delete") return change.key;
  // The table pairs each kind with the key function of its own record type; TypeScript can't follow that pairing.
  return (RECORD_KINDS[change.kind].key as (record: RecordOf<RecordKind>) => string)(change.record);
}

// ---- What nodes report ----------------------------------------------------------------------------------------------

/** A `containerEnd` as a node tells it, which histories keep. */
const reportedEnd = v.object({
  exit_code: v.exactOptional(b.safeNumber),
  signal: v.exactOptional(b.line(b.MAX_WORD)),
  oom_killed: v.boolean(),
  error: v.exactOptional(b.text(b.MAX_ERROR_CHARS)),
  started_at: v.exactOptional(b.safeCount),
  finished_at: v.exactOptional(b.safeCount),
  log_tail: b.list(b.line(b.MAX_LINE), { max: b.MAX_TAIL_LINES, what: "log_tail" }),
});

/**
 * An allocation as its node sees it. `exited`: the container ended and either starts again after a backoff (`final` false)
 * or stays ended by its restart policy (`final` true). `failed`: it could not be started; tried again after a backoff.
 * Times are milliseconds since 1970.
 */
export const allocationStatus = v.object({
  allocation_id: b.id,
  state: v.picklist(["pending", "pulling", "starting", "running", "exited", "failed", "stopping"]),
  final: v.boolean(),
  container_id: v.exactOptional(b.name),
  /** What Docker's health check says of a running container; absent: it has none. */
  health: v.exactOptional(v.picklist(["starting", "healthy", "unhealthy"])),
  ports: b.list(publishedPort, { max: b.MAX_TAKEN_PORTS, what: "ports" }),
  /** IPv4 addresses on the networks of its job, while it runs. */
  addresses: v.exactOptional(b.list(networkAddress, { max: b.MAX_SEVERAL, what: "addresses" })),
  restarts: b.safeCount,
  exit_code: v.exactOptional(b.safeNumber),
  error: v.exactOptional(b.text(b.MAX_ERROR_CHARS)),
  /** Ends and refused starts in a row, since it last ran soundly. Absent: 0. */
  failures: v.exactOptional(b.safeCount),
  /** When it is started next, while it waits for that. */
  next_start_at: v.exactOptional(b.safeCount),
  /** How its last run ended, whether it runs again or not. */
  last_end: v.exactOptional(reportedEnd),
  /** While its image is pulled. */
  pull: v.exactOptional(pullProgress),
  /** Id of the image that its container was made of, and the digest it has in its registry, where one is known. */
  image_id: v.exactOptional(b.name),
  image_digest: v.exactOptional(b.name),
  /** The digest that this node found its image's tag to stand for: a proposal, for all replicas are to run the same. */
  resolved_digest: v.exactOptional(b.lenient(b.digest, "resolved_digest")),
  started_at: v.exactOptional(b.safeCount),
  finished_at: v.exactOptional(b.safeCount),
});
export type AllocationStatus = v.InferOutput<typeof allocationStatus>;

/** What a container may do with its node's API. */
export type ApiAccess = "none" | v.InferOutput<typeof apiAccess>;

const genericResource = v.object({
  kind: b.name,
  count: b.safeCount,
  ids: v.exactOptional(b.list(b.name, { max: b.MAX_SEVERAL, what: "ids" })),
});

/** The Docker Engine beside a node, as the node last saw it. */
export const engineStatus = v.variant("state", [
  v.object({
    state: v.literal("ready"),
    engine_id: b.line(b.MAX_WORD),
    docker_version: b.line(b.MAX_WORD),
    api_version: b.line(b.MAX_WORD),
    platform: v.object({ os: b.line(b.MAX_WORD), arch: b.line(b.MAX_WORD) }),
    /** What the operator named (dockerd's `node-generic-resources`); `ids` where each has a name of its own. */
    generic_resources: v.exactOptional(b.list(genericResource, { max: b.MAX_SEVERAL, what: "generic_resources" })),
    /** Whether it can hand out NVIDIA GPUs, if there are any. */
    has_gpus: v.exactOptional(v.boolean()),
    /** Whether it is on another machine than the node. Absent: the node is older and does not tell. */
    remote: v.exactOptional(v.boolean()),
  }),
  v.object({
    state: v.literal("unready"),
    reason: b.text(b.MAX_ERROR_CHARS),
    engine_id: v.exactOptional(b.line(b.MAX_WORD)),
    remote: v.exactOptional(v.boolean()),
  }),
]);
export type EngineStatus = v.InferOutput<typeof engineStatus>;

/** Position in the order of assignments: a higher term wins, then a higher revision. */
export const order = v.object({ term: b.safeCount, revision: b.safeCount });
export type Order = v.InferOutput<typeof order>;

/** Whether `a` comes before `b`. */
export function isOlder(a: Order, b: Order): boolean {
  return a.term < b.term || (a.term === b.term && a.revision < b.revision);
}

// ---- Messages between a node and the master -------------------------------------------------------------------------

/** `digest`: what is pulled where the image is absent. `refresh`: what is on the node must be that digest, too. */
export const assignedImage = v.object({
  allocation_id: b.id,
  digest: v.exactOptional(b.digest),
  refresh: v.boolean(),
});
export type AssignedImage = v.InferOutput<typeof assignedImage>;

export const clusterLogin = v.object({ host: v.string(), username: v.string(), password: v.string() });
export type ClusterLogin = v.InferOutput<typeof clusterLogin>;

const ids = { allocation_id: b.id, job_id: b.id, node_id: b.id };

/** A definition that a node may go by: what it names on the node's disk and at the master are names, and lead nowhere else. */
const assignedSpec = v.pipe(
  specRecord,
  v.check(({ spec }) => {
    const files = spec.files ?? [];
    const secrets = spec.mounts.flatMap((mount) => (mount.type === "secret" ? [mount.secret_id] : []));
    const isHash = (text: string) => v.is(b.sha256, text);
    return (
      files.every(({ path, chunks }) => b.isPlainPath(path) && chunks.every(isHash)) &&
      secrets.every((secret) => v.is(b.id, secret))
    );
  }, "names a file, a part of one, or a secret by what is not a name"),
);

/**
 * All that one node must run: the full set, never a difference. What is not in it is stopped and removed, so it is taken in
 * whole or not at all.
 */
export const assignments = v.object({
  type: v.literal("assignments"),
  order,
  specs: b.wholeList(assignedSpec, b.MAX_CONTAINERS),
  allocations: b.wholeList(v.object({ ...allocationRecord.entries, ...ids }), b.MAX_CONTAINERS),
  removals: b.wholeList(v.object({ ...removalRecord.entries, removal_id: b.id, job_id: b.id }), b.MAX_SERVICES),
  /** What is settled about the images of allocations; an allocation without an entry may run what is on the node. */
  images: v.exactOptional(b.wholeList(assignedImage, b.MAX_CONTAINERS)),
  /** For the registries of the images above only. */
  logins: v.exactOptional(b.wholeList(clusterLogin, b.MAX_SEVERAL)),
});
export type Assignments = v.InferOutput<typeof assignments>;

/**
 * Codes of the refusals that pass by themselves: another process is that node, as far as the master knows; the node was removed
 * while its Docker Engine was dead, and can leave what it runs when that is back; the master must not lead until an operator says so.
 */
export const PASSING_REFUSALS = ["node_in_use", "node_removed", "not_leading"] as const;
export type PassingRefusal = (typeof PASSING_REFUSALS)[number];

export function isPassing(code: string): code is PassingRefusal {
  return (PASSING_REFUSALS as readonly string[]).includes(code);
}

/** Nodes send 16 random bytes as text; this leaves room for more. */
const MAX_NONCE_LENGTH = 128;

export const hello = v.object({
  type: v.literal("hello"),
  protocol: b.safeNumber,
  /** Absent: the node understands `protocol` only. */
  protocols: v.exactOptional(protocolRange),
  /** Absent on a first join: the master hands it out, and with it maybe another node id. */
  cluster_id: v.exactOptional(b.id),
  node_id: b.id,
  /** Differs for each process: two that claim one node id (a copied data directory) must not both be it. */
  instance: b.id,
  /** What the welcome has to sign, so that no older welcome is taken for an answer. Absent: the node is older and looks for no signature. */
  nonce: v.exactOptional(v.pipe(v.string(), v.maxLength(MAX_NONCE_LENGTH))),
  node_name: v.pipe(b.line(b.MAX_NODE_NAME), v.minLength(1)),
  address: b.hostPort,
  /** IPv4 address that packets between containers of different nodes travel to; absent: it has none. */
  underlay: v.exactOptional(b.ipv4),
  api_addresses: v.exactOptional(apiAddresses),
  api_port: v.exactOptional(port),
  labels: b.nodeLabels,
  engine: engineStatus,
  /** Which run of which kernel the node is on: clones of a machine differ in it. Absent: not known, or the node is older. */
  boot_id: v.exactOptional(b.line(b.MAX_WORD)),
  version: b.line(b.MAX_WORD),
  /** Proof of the newest term that the node has seen. Absent: it knows none, or is older. */
  last_term: v.exactOptional(termProof),
});
export type Hello = v.InferOutput<typeof hello>;

export const heartbeat = v.object({
  type: v.literal("heartbeat"),
  sequence: b.safeCount,
  resources: v.exactOptional(b.lenient(resources, "resources")),
  engine: engineStatus,
  /** Names of all volumes on the node; absent while they are not known, or when they are too many to tell. */
  volumes: v.exactOptional(b.list(b.name, { max: b.MAX_NAMES, what: "volumes" })),
  /** How the node takes part in the cluster's network. */
  overlay: v.exactOptional(b.lenient(nodeNetwork, "overlay")),
  /** Names of all Docker networks on the node; absent as `volumes`. */
  networks: v.exactOptional(b.list(b.name, { max: b.MAX_NAMES, what: "networks" })),
  /** Why the node can't hold secrets; absent: it can. */
  no_secrets: v.exactOptional(b.text(b.MAX_ERROR_CHARS)),
  /** Why the node's disk takes no new containers; absent: it does. */
  full_disk: v.exactOptional(b.text(b.MAX_ERROR_CHARS)),
  foreign: b.list(foreignContainer, { max: b.MAX_CONTAINERS, what: "foreign" }),
});
export type Heartbeat = v.InferOutput<typeof heartbeat>;

/** Statuses that changed since the last report of this session; `full`: all there are. */
export const statusReport = v.object({
  type: v.literal("status"),
  full: v.boolean(),
  /** The newest assignments taken in; absent before the first. A stopped allocation is gone when it is not reported and
   * the report's order is not older than the assignments that stopped it. */
  applied: v.exactOptional(order),
  allocations: b.list(allocationStatus, { max: b.MAX_CONTAINERS, what: "allocations" }),
  gone: b.list(b.id, { max: b.MAX_SERVICES, what: "gone" }),
  removals_done: b.list(b.id, { max: b.MAX_SERVICES, what: "removals_done" }),
});
export type StatusReport = v.InferOutput<typeof statusReport>;

/** The most frequent first: they are tried in turn. */
export const nodeMessage = v.variant("type", [heartbeat, statusReport, hello]);
export type NodeMessage = v.InferOutput<typeof nodeMessage>;

/** A node's question for a secret's value. `instance` is known to the node's process and the master alone. */
export const secretRequest = v.object({ node_id: b.id, instance: b.id, secret_id: b.id });
export type SecretRequest = v.InferOutput<typeof secretRequest>;

/** A node and where it is reached. */
export const peer = v.object({
  node_id: b.id,
  address: b.hostPort,
  api_addresses: v.exactOptional(apiAddresses),
  api_port: v.exactOptional(port),
});
export type Peer = v.InferOutput<typeof peer>;
const peers = b.list(peer, { max: b.MAX_NODES, what: "peers" });

export const welcome = v.object({
  type: v.literal("welcome"),
  cluster_id: b.id,
  node_id: b.id,
  node_name: b.line(b.MAX_NAME),
  term: b.safeCount,
  /** The version that this session speaks. Absent: the only one that the node understands. */
  protocol: v.exactOptional(b.safeCount),
  master: peer,
  peers,
  heartbeat_interval_ms: b.interval,
  node_timeout_ms: b.interval,
  /** Public part of the cluster's key and its signature of this welcome (`cluster_key.ts`). Absent: the master is older. */
  cluster_key: v.exactOptional(b.name),
  signature: v.exactOptional(b.name),
  /** What the node shows in internal calls to the master while this session lasts. Absent: the master is older. */
  token: v.exactOptional(b.name),
  /** Proof of this term, which the node keeps. Absent: the master is older. */
  term_proof: v.exactOptional(termProof),
});
export type Welcome = v.InferOutput<typeof welcome>;

/** Whose message it is. Absent: the master is older, and the message of its welcome's term. */
const term = v.exactOptional(b.safeCount);
/** The most frequent first: they are tried in turn. */
export const masterMessage = v.variant("type", [
  v.object({ type: v.literal("ack"), sequence: b.safeCount, term }),
  assignments,
  v.object({ ...directoryMessage.entries, term }),
  v.object({ ...networkMessage.entries, term }),
  v.object({ type: v.literal("peers"), peers, term }),
  welcome,
  v.object({ type: v.literal("refused"), code: b.line(b.MAX_WORD), message: b.text(b.MAX_ERROR_CHARS), term }),
  /** The node is a member no more, and nothing of the cluster's runs on it. */
  v.object({ type: v.literal("left"), term }),
]);
export type MasterMessage = v.InferOutput<typeof masterMessage>;

/** What `GET /internal/peer` answers on every node: whom it belongs to and where it knows the master. */
export const peerInfo = v.object({
  cluster_id: v.exactOptional(b.id),
  node_id: b.id,
  protocol: b.safeNumber,
  protocols: v.exactOptional(protocolRange),
  version: b.line(b.MAX_WORD),
  master: v.exactOptional(peer),
  peers,
});
export type PeerInfo = v.InferOutput<typeof peerInfo>;

// ---- Labels ---------------------------------------------------------------------------------------------------------

/** Labels on every container, network and volume that Cacophony makes. Containers without ours are never touched. */
export const LABELS = {
  cluster: "cacophony.cluster",
  node: "cacophony.node",
  job: "cacophony.job",
  service: "cacophony.service",
  slot: "cacophony.slot",
  allocation: "cacophony.allocation",
  /** How an executor without a master restarts what it adopted (`converge_restarts.ts`): `always`, `no`, `on-failure:N`, … */
  restart: "cacophony.restart",
  /** Milliseconds without a master after which the node stops it; absent: never. */
  isolated: "cacophony.stop-when-isolated-ms",
  /** Milliseconds of grace, for an executor that stops a container which it has no spec for. */
  grace: "cacophony.stop-grace-ms",
  /** What it may do with its node's API: `read`, `deploy` or `none`; absent: nothing. */
  api: "cacophony.api",
  /** Id of the container's image, and its digest in the registry where it has one: whether replicas run the same. */
  image: "cacophony.image",
  imageDigest: "cacophony.image-digest",
  /** The containers that it shares something with, and which run of theirs: another one means that it is to be made anew. */
  joined: "cacophony.joined",
  /** Where its secrets are on the node; absent: it has none. */
  secrets: "cacophony.secrets",
  /** Hash of a network's definition as it was when it was made. */
  definition: "cacophony.definition",
} as const;

// ---- Errors ---------------------------------------------------------------------------------------------------------

/** What went wrong, as API clients see it; `api.ts` maps each to one HTTP status. */
export type ErrorCode =
  | "bad_request"
  | "unparseable"
  | "invalid_document"
  | "not_found"
  | "method_not_allowed"
  | "conflict"
  | "precondition_failed"
  | "too_large"
  | "request_timeout"
  | "unsupported_media_type"
  | "forbidden"
  | "forbidden_origin"
  | "forbidden_host"
  | "no_master"
  | "busy"
  | "outcome_unknown"
  | "not_master"
  | "not_leading"
  | "store_failed"
  | "internal";

/** A refusal that reaches an API client: says what was wrong, with the value, and what to do. */
export class CacophonyError extends Error {
  readonly code: ErrorCode;
  readonly details: readonly Detail[];
  constructor(code: ErrorCode, message: string, options?: { details?: readonly Detail[]; cause?: unknown }) {
    super(message, options && "cause" in options ? { cause: options.cause } : undefined);
    this.name = "CacophonyError";
    this.code = code;
    this.details = options?.details ?? [];
  }
}

/** The process cannot run as it was started; the command line prints the message as one line and exits with code 2. */
export class StartError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "StartError";
  }
}
