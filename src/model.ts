/**
 * @module The words of Cacophony: the records that the Store keeps, the messages that nodes and master exchange, the shapes
 * that a job is made of, and the few errors that every part shares.
 *
 * Everything here is data. Each shape is a valibot schema; its TypeScript type is inferred from it, so there is one source.
 * Records and messages are JSON and use snake_case; units stand in a name where there is a doubt (`_ms`, `_bytes`).
 * Maps whose keys come from users (environment, labels, service names) are lists of pairs: `__proto__` is a legal name, and
 * a JavaScript object is no safe place for it.
 */
import * as v from "valibot";

/** Version of the node-to-master protocol; a node with another one is refused with both numbers. */
export const PROTOCOL_VERSION = 1;

const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const port = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65535));
const pairs = v.array(v.tuple([v.string(), v.string()]));
const strings = v.array(v.string());

// ---- What a job is made of ------------------------------------------------------------------------------------------

/** `host_port` absent: Docker picks a free one. A range: one free port out of it (Compose `published: "8000-8010"`). */
export const portSpec = v.object({
  container_port: port,
  protocol: v.picklist(["tcp", "udp", "sctp"]),
  /** Empty: all addresses. */
  host_ip: v.string(),
  host_port: v.exactOptional(v.object({ first: port, last: port })),
});
export type PortSpec = v.InferOutput<typeof portSpec>;

/** A named volume as the document's top-level `volumes` defines it. `name` set: used as it is, else `<job>_<key>`. */
export const volumeSpec = v.object({
  key: v.string(),
  name: v.exactOptional(v.string()),
  external: v.boolean(),
  driver: v.exactOptional(v.string()),
  driver_opts: pairs,
  labels: pairs,
});
export type VolumeSpec = v.InferOutput<typeof volumeSpec>;

/** A network as the document's top-level `networks` defines it. `name` set: used as it is, else `<job>_<key>`. */
export const networkSpec = v.object({
  key: v.string(),
  name: v.exactOptional(v.string()),
  external: v.boolean(),
  internal: v.exactOptional(v.boolean()),
  attachable: v.exactOptional(v.boolean()),
  enable_ipv6: v.exactOptional(v.boolean()),
  driver_opts: pairs,
  labels: pairs,
  /** Absent, or without a subnet: the node chooses one out of the cluster's pool. */
  ipam: v.exactOptional(
    v.object({
      driver: v.exactOptional(v.string()),
      config: v.array(
        v.object({
          subnet: v.exactOptional(v.string()),
          ip_range: v.exactOptional(v.string()),
          gateway: v.exactOptional(v.string()),
          aux_addresses: pairs,
        }),
      ),
      options: pairs,
    }),
  ),
});
export type NetworkSpec = v.InferOutput<typeof networkSpec>;

/** A service's place on a network. */
export const endpointSpec = v.object({
  network: networkSpec,
  aliases: strings,
  ipv4_address: v.exactOptional(v.string()),
  ipv6_address: v.exactOptional(v.string()),
  link_local_ips: v.exactOptional(strings),
  /** The highest one is the container's first network. Absent: 0. */
  priority: v.exactOptional(v.number()),
});
export type EndpointSpec = v.InferOutput<typeof endpointSpec>;

export const mountSpec = v.variant("type", [
  v.object({
    type: v.literal("bind"),
    source: v.string(),
    target: v.string(),
    read_only: v.boolean(),
    /** Whether Docker makes a missing source directory (true for compose's short form). */
    create_host_path: v.boolean(),
    propagation: v.exactOptional(v.string()),
    selinux: v.exactOptional(v.picklist(["z", "Z"])),
    /** Mounts below the source are left out (Compose `recursive: disabled`). */
    non_recursive: v.exactOptional(v.boolean()),
  }),
  v.object({
    type: v.literal("volume"),
    /** Absent: an anonymous volume that goes with its container. */
    volume: v.exactOptional(volumeSpec),
    target: v.string(),
    read_only: v.boolean(),
    nocopy: v.boolean(),
    /** Whether the document used the long form (sent to Docker as a Mount, the short form as a Bind, as compose does). */
    long: v.boolean(),
  }),
  v.object({
    type: v.literal("tmpfs"),
    target: v.string(),
    size_bytes: v.exactOptional(count),
    mode: v.exactOptional(count),
    read_only: v.boolean(),
  }),
]);
export type MountSpec = v.InferOutput<typeof mountSpec>;

/**
 * A file that the node writes into the job's project directory before it creates the container. `chunks`: SHA-256 of the
 * content's pieces, in order. `uid` and `gid` absent: whoever the node runs as.
 */
export const fileSpec = v.object({
  path: v.string(),
  size: count,
  chunks: strings,
  mode: count,
  uid: v.exactOptional(count),
  gid: v.exactOptional(count),
});
export type FileSpec = v.InferOutput<typeof fileSpec>;

/** Run by Docker; absent members are the image's own. Nanoseconds, as Docker counts (Engine API: HealthConfig). */
export const healthcheckSpec = v.object({
  test: v.exactOptional(strings),
  interval_ns: v.exactOptional(count),
  timeout_ns: v.exactOptional(count),
  start_period_ns: v.exactOptional(count),
  start_interval_ns: v.exactOptional(count),
  retries: v.exactOptional(count),
});
export type HealthcheckSpec = v.InferOutput<typeof healthcheckSpec>;

/** A request for GPUs or other devices that a driver hands out. `count` -1: all there are. */
export const deviceRequestSpec = v.object({
  driver: v.exactOptional(v.string()),
  count: v.exactOptional(v.pipe(v.number(), v.integer())),
  device_ids: v.exactOptional(strings),
  capabilities: strings,
  options: pairs,
});
export type DeviceRequestSpec = v.InferOutput<typeof deviceRequestSpec>;

const deviceRates = v.exactOptional(v.array(v.object({ path: v.string(), rate: count })));

/**
 * What only Docker's create call cares about: each member is the compose key of that name, absent where the document says
 * nothing. `init: false` differs from saying nothing (the Engine may have a default), so flags may be false where they are.
 */
const engineOptions = {
  domainname: v.exactOptional(v.string()),
  mac_address: v.exactOptional(v.string()),
  /** Image variant to pull, as `linux/arm64`; the `platform` query parameter of pull and create, not part of the body. */
  platform: v.exactOptional(v.string()),
  /** When to pull, as compose has it; absent: only where the image is absent. */
  pull_policy: v.exactOptional(v.string()),
  tty: v.exactOptional(v.boolean()),
  stdin_open: v.exactOptional(v.boolean()),
  privileged: v.exactOptional(v.boolean()),
  read_only: v.exactOptional(v.boolean()),
  init: v.exactOptional(v.boolean()),
  /** Ports that the container listens on besides the published ones: `8080/tcp`. */
  expose: v.exactOptional(strings),
  healthcheck: v.exactOptional(healthcheckSpec),
  annotations: v.exactOptional(pairs),
  logging: v.exactOptional(v.object({ driver: v.string(), options: pairs })),
  /** Absent: the job's networks. */
  network_mode: v.exactOptional(v.picklist(["host", "none", "bridge"])),
  /** Absent: the job's network `default`, as it is where the document does not define it. */
  networks: v.exactOptional(v.array(endpointSpec)),
  /** Further names of the service on all its networks. */
  network_aliases: v.exactOptional(strings),
  dns: v.exactOptional(strings),
  dns_opt: v.exactOptional(strings),
  dns_search: v.exactOptional(strings),
  /** `name:address`, as Docker takes it. */
  extra_hosts: v.exactOptional(strings),
  cap_add: v.exactOptional(strings),
  cap_drop: v.exactOptional(strings),
  security_opt: v.exactOptional(strings),
  group_add: v.exactOptional(strings),
  /** Path in the container -> options of the mount (`size=64m,mode=1777`). */
  tmpfs: v.exactOptional(pairs),
  sysctls: v.exactOptional(pairs),
  storage_opt: v.exactOptional(pairs),
  /** -1: no limit. */
  ulimits: v.exactOptional(v.array(v.object({ name: v.string(), soft: v.number(), hard: v.number() }))),
  devices: v.exactOptional(v.array(v.object({ source: v.string(), target: v.string(), permissions: v.string() }))),
  device_cgroup_rules: v.exactOptional(strings),
  device_requests: v.exactOptional(v.array(deviceRequestSpec)),
  cgroup: v.exactOptional(v.string()),
  cgroup_parent: v.exactOptional(v.string()),
  ipc: v.exactOptional(v.string()),
  pid: v.exactOptional(v.string()),
  uts: v.exactOptional(v.string()),
  userns_mode: v.exactOptional(v.string()),
  isolation: v.exactOptional(v.string()),
  runtime: v.exactOptional(v.string()),
  shm_size_bytes: v.exactOptional(count),
  /** Memory plus swap; -1: no limit on swap. */
  memswap_limit_bytes: v.exactOptional(v.number()),
  mem_swappiness: v.exactOptional(count),
  oom_kill_disable: v.exactOptional(v.boolean()),
  oom_score_adj: v.exactOptional(v.number()),
  cpu_count: v.exactOptional(v.number()),
  cpu_percent: v.exactOptional(v.number()),
  cpu_period: v.exactOptional(v.number()),
  cpu_quota: v.exactOptional(v.number()),
  cpu_rt_period: v.exactOptional(v.number()),
  cpu_rt_runtime: v.exactOptional(v.number()),
  cpu_shares: v.exactOptional(v.number()),
  cpuset: v.exactOptional(v.string()),
  blkio_config: v.exactOptional(
    v.object({
      weight: v.exactOptional(count),
      weight_device: v.exactOptional(v.array(v.object({ path: v.string(), weight: count }))),
      device_read_bps: deviceRates,
      device_read_iops: deviceRates,
      device_write_bps: deviceRates,
      device_write_iops: deviceRates,
    }),
  ),
};

/** When an ended container is started again. `max_attempts` 0: without limit. `compose` is the text for dry runs. */
export const restartSpec = v.object({
  condition: v.picklist(["always", "on-failure", "no"]),
  max_attempts: count,
  /** What compose would have put in Docker's RestartPolicy.Name for this service ("" where the document says nothing). */
  compose: v.picklist(["", "no", "always", "on-failure", "unless-stopped"]),
});
export type RestartSpec = v.InferOutput<typeof restartSpec>;

/** Definition of one service's container; its hash decides whether a running container is up to date. */
export const serviceSpec = v.object({
  image: v.pipe(v.string(), v.minLength(1)),
  entrypoint: v.exactOptional(strings),
  command: v.exactOptional(strings),
  /** `NAME=value`, as Docker takes it; a `NAME` alone removes one of the image's variables. */
  environment: strings,
  labels: pairs,
  user: v.exactOptional(v.string()),
  working_dir: v.exactOptional(v.string()),
  hostname: v.exactOptional(v.string()),
  stop_signal: v.exactOptional(v.string()),
  /** Milliseconds between the stop signal and SIGKILL; compose's default is 10 s. */
  stop_grace_period_ms: count,
  ports: v.array(portSpec),
  mounts: v.array(mountSpec),
  /** What of the project directory was sent with the document, as far as the service mounts it. */
  files: v.exactOptional(v.array(fileSpec)),
  restart: restartSpec,
  /** Upper bounds for the container: bytes, CPUs (1.5 = one and a half), processes. */
  limits: v.object({
    memory_bytes: v.exactOptional(count),
    cpus: v.exactOptional(v.number()),
    pids: v.exactOptional(v.number()),
  }),
  /** What placement sets aside on the node: bytes and CPUs. */
  reservations: v.object({ memory_bytes: v.exactOptional(count), cpus: v.exactOptional(v.number()) }),
  ...engineOptions,
});
export type ServiceSpec = v.InferOutput<typeof serviceSpec>;

/** `key` is `node.id`, `node.name`, `node.role`, `node.platform.arch`, `node.platform.os` or `node.labels.` and a label. */
export const constraint = v.object({ key: v.string(), operator: v.picklist(["==", "!="]), value: v.string() });
export type Constraint = v.InferOutput<typeof constraint>;

export const dependency = v.object({
  service_name: v.string(),
  condition: v.picklist(["service_started", "service_healthy", "service_completed_successfully"]),
  /** Whether the dependent stays unstarted when the dependency fails. */
  required: v.boolean(),
});
export type Dependency = v.InferOutput<typeof dependency>;

/** How many of a service run, where, and after what. No part of the container's definition: a change of it restarts nothing. */
export const serviceRules = v.object({
  mode: v.picklist(["replicated", "global", "replicated-job", "global-job"]),
  constraints: v.array(constraint),
  /** Node labels over whose values replicas are spread evenly, the weightiest first. */
  spread: strings,
  max_per_node: v.exactOptional(count),
  depends_on: v.array(dependency),
});
export type ServiceRules = v.InferOutput<typeof serviceRules>;

/** Whether there is one of the service on each node. */
export function isGlobal({ mode }: Pick<ServiceRules, "mode">): boolean {
  return mode === "global" || mode === "global-job";
}

/** Whether the service's containers run to an end. */
export function isRunToEnd({ mode }: Pick<ServiceRules, "mode">): boolean {
  return mode === "replicated-job" || mode === "global-job";
}

/** A fault or remark about one place of a document. `line` and `column` count from 1. */
export type Detail = { path: string; message: string; line?: number; column?: number };

// ---- Records: what the Store keeps ----------------------------------------------------------------------------------

export const clusterRecord = v.object({
  cluster_id: v.string(),
  created_at: count,
  /** IPv4 range (CIDR) that job networks take their /26 subnets from. */
  network_pool: v.string(),
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

/** A deleted job leaves its last version behind, so that a version never repeats for a job id. */
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
    created_at: count,
    updated_at: count,
  }),
  v.object({ state: v.literal("deleted"), job_id: v.string(), version: count }),
]);
export type JobRecord = v.InferOutput<typeof jobRecord>;
export type LiveJob = Extract<JobRecord, { state: "live" }>;

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
  /** Set when the container ended for good: kept, so that it is not run again whatever becomes of the node. */
  ended: v.exactOptional(v.object({ exit_code: v.number() })),
});
export type AllocationRecord = v.InferOutput<typeof allocationRecord>;

/** What images the node runs, in Go's words: `linux`, `amd64`. */
export const platform = v.object({ os: v.string(), arch: v.string() });

export const nodeRecord = v.object({
  node_id: v.string(),
  node_name: v.string(),
  address: v.string(),
  role: v.picklist(["master", "standby", "worker"]),
  availability: v.picklist(["active", "drain"]),
  /** As the node was started with. */
  labels: pairs,
  /** Set through the API; they win. */
  set_labels: pairs,
  platform: v.exactOptional(platform),
  engine_id: v.exactOptional(v.string()),
  joined_at: count,
});
export type NodeRecord = v.InferOutput<typeof nodeRecord>;

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
  removal: { schema: removalRecord, key: (r: RemovalRecord) => r.removal_id },
  registry: { schema: registryRecord, key: (r: RegistryRecord) => r.host },
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

/** What a machine has, as the cluster may use it. Bytes and CPUs. */
export const resources = v.object({
  total_memory: count,
  used_memory: count,
  available_memory: count,
  cpus: v.number(),
  used_cpus: v.number(),
  /** Host ports that something other than this cluster holds: `tcp/80`. */
  taken_ports: strings,
});
export type Resources = v.InferOutput<typeof resources>;

export const publishedPort = v.object({
  container_port: port,
  protocol: v.picklist(["tcp", "udp", "sctp"]),
  host_ip: v.string(),
  host_port: port,
});
export type PublishedPort = v.InferOutput<typeof publishedPort>;

/** How far a pull is, as far as Docker tells: the sizes of layers become known one after the other. */
export const pullProgress = v.object({
  layers_done: count,
  layers_total: count,
  bytes_done: count,
  bytes_total: count,
});
export type PullProgress = v.InferOutput<typeof pullProgress>;

/**
 * An allocation as its node sees it. `exited`: the container ended and either starts again after a backoff (`final` false)
 * or stays ended by its restart policy (`final` true). `failed`: it could not be started; tried again after a backoff.
 * Times are milliseconds since 1970.
 */
export const allocationStatus = v.object({
  allocation_id: v.string(),
  state: v.picklist(["pending", "pulling", "starting", "running", "exited", "failed", "stopping"]),
  final: v.boolean(),
  container_id: v.exactOptional(v.string()),
  /** What Docker's health check says of a running container; absent: it has none. */
  health: v.exactOptional(v.picklist(["starting", "healthy", "unhealthy"])),
  ports: v.array(publishedPort),
  restarts: count,
  exit_code: v.exactOptional(v.number()),
  error: v.exactOptional(v.string()),
  /** While its image is pulled. */
  pull: v.exactOptional(pullProgress),
  /** Id of the image that its container was made of, and the digest it has in its registry, where one is known. */
  image_id: v.exactOptional(v.string()),
  image_digest: v.exactOptional(v.string()),
  /** The digest that this node found its image's tag to stand for: a proposal, for all replicas are to run the same. */
  resolved_digest: v.exactOptional(v.string()),
  started_at: v.exactOptional(count),
  finished_at: v.exactOptional(count),
});
export type AllocationStatus = v.InferOutput<typeof allocationStatus>;

/** The Docker Engine beside a node, as the node last saw it. */
export const engineStatus = v.variant("state", [
  v.object({
    state: v.literal("ready"),
    engine_id: v.string(),
    docker_version: v.string(),
    api_version: v.string(),
    platform,
  }),
  v.object({ state: v.literal("unready"), reason: v.string(), engine_id: v.exactOptional(v.string()) }),
]);
export type EngineStatus = v.InferOutput<typeof engineStatus>;

/** A container that carries the label of a cluster which this node does not belong to. Listed, never touched. */
export const foreignContainer = v.object({ container_id: v.string(), name: v.string(), cluster_id: v.string() });
export type ForeignContainer = v.InferOutput<typeof foreignContainer>;

/** Position in the order of assignments: a higher term wins, then a higher revision. */
export const order = v.object({ term: count, revision: count });
export type Order = v.InferOutput<typeof order>;

/** Whether `a` comes before `b`. */
export function isOlder(a: Order, b: Order): boolean {
  return a.term < b.term || (a.term === b.term && a.revision < b.revision);
}

// ---- Messages between a node and the master -------------------------------------------------------------------------

/** `digest`: what is pulled where the image is absent. `refresh`: what is on the node must be that digest, too. */
export const assignedImage = v.object({
  allocation_id: v.string(),
  digest: v.exactOptional(v.string()),
  refresh: v.boolean(),
});
export type AssignedImage = v.InferOutput<typeof assignedImage>;

export const clusterLogin = v.object({ host: v.string(), username: v.string(), password: v.string() });
export type ClusterLogin = v.InferOutput<typeof clusterLogin>;

/** All that one node must run: the full set, never a difference. What is not in it is stopped and removed. */
export const assignments = v.object({
  type: v.literal("assignments"),
  order,
  network_pool: v.string(),
  specs: v.array(specRecord),
  allocations: v.array(allocationRecord),
  removals: v.array(removalRecord),
  /** What is settled about the images of allocations; an allocation without an entry may run what is on the node. */
  images: v.exactOptional(v.array(assignedImage)),
  /** For the registries of the images above only. */
  logins: v.exactOptional(v.array(clusterLogin)),
});
export type Assignments = v.InferOutput<typeof assignments>;

/** Code of the one refusal that passes by itself: another process is that node, as far as the master knows. */
export const NODE_IN_USE = "node_in_use";

export const hello = v.object({
  type: v.literal("hello"),
  protocol: v.number(),
  /** Absent on a first join: the master hands it out, and with it maybe another node id. */
  cluster_id: v.exactOptional(v.string()),
  node_id: v.string(),
  /** Differs for each process: two that claim one node id (a copied data directory) must not both be it. */
  instance: v.string(),
  node_name: v.string(),
  address: v.string(),
  labels: pairs,
  engine: engineStatus,
  version: v.string(),
});
export type Hello = v.InferOutput<typeof hello>;

export const heartbeat = v.object({
  type: v.literal("heartbeat"),
  sequence: count,
  resources: v.exactOptional(resources),
  engine: engineStatus,
  /** Names of all volumes on the node; absent while they are not known, or when they are too many to tell. */
  volumes: v.exactOptional(strings),
  foreign: v.array(foreignContainer),
});
export type Heartbeat = v.InferOutput<typeof heartbeat>;

/** Statuses that changed since the last report of this session; `full`: all there are. */
export const statusReport = v.object({
  type: v.literal("status"),
  full: v.boolean(),
  /** The newest assignments taken in; absent before the first. A stopped allocation is gone when it is not reported and
   * the report's order is not older than the assignments that stopped it. */
  applied: v.exactOptional(order),
  allocations: v.array(allocationStatus),
  gone: strings,
  removals_done: strings,
});
export type StatusReport = v.InferOutput<typeof statusReport>;

export const nodeMessage = v.variant("type", [hello, heartbeat, statusReport]);
export type NodeMessage = v.InferOutput<typeof nodeMessage>;

export const peer = v.object({ node_id: v.string(), address: v.string() });
export type Peer = v.InferOutput<typeof peer>;

export const welcome = v.object({
  type: v.literal("welcome"),
  cluster_id: v.string(),
  node_id: v.string(),
  node_name: v.string(),
  term: count,
  master: peer,
  peers: v.array(peer),
  heartbeat_interval_ms: count,
  node_timeout_ms: count,
});
export type Welcome = v.InferOutput<typeof welcome>;

export const masterMessage = v.variant("type", [
  welcome,
  v.object({ type: v.literal("refused"), code: v.string(), message: v.string() }),
  v.object({ type: v.literal("peers"), peers: v.array(peer) }),
  v.object({ type: v.literal("ack"), sequence: count }),
  assignments,
]);
export type MasterMessage = v.InferOutput<typeof masterMessage>;

/** What `GET /internal/peer` answers on every node: whom it belongs to and where it knows the master. */
export const peerInfo = v.object({
  cluster_id: v.exactOptional(v.string()),
  node_id: v.string(),
  protocol: v.number(),
  version: v.string(),
  master: v.exactOptional(peer),
  peers: v.array(peer),
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
  /** How an executor without a master restarts what it adopted: `always`, `no`, `on-failure` or `on-failure:N`. */
  restart: "cacophony.restart",
  /** Milliseconds of grace, for an executor that stops a container which it has no spec for. */
  grace: "cacophony.stop-grace-ms",
  /** Id of the container's image, and its digest in the registry where it has one: whether replicas run the same. */
  image: "cacophony.image",
  imageDigest: "cacophony.image-digest",
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
  | "unsupported_media_type"
  | "forbidden_origin"
  | "no_master"
  | "outcome_unknown"
  | "not_master"
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
