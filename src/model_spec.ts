/**
 * @module The words of Cacophony for what a job is made of: a service's spec and its rules, with all their parts. The rules of
 * `model.ts` hold here, too.
 */
import * as v from "valibot";

export const count = v.pipe(v.number(), v.integer(), v.minValue(0));
export const port = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65535));
export const pairs = v.array(v.tuple([v.string(), v.string()]));
export const strings = v.array(v.string());

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
  /** Absent: `bridge`. */
  driver: v.exactOptional(v.string()),
  internal: v.exactOptional(v.boolean()),
  attachable: v.exactOptional(v.boolean()),
  /** Absent: true. */
  enable_ipv4: v.exactOptional(v.boolean()),
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
  mac_address: v.exactOptional(v.string()),
  /** For the network's driver; `interface_name` of the document is one of them (`IFNAME`). */
  driver_opts: v.exactOptional(pairs),
  /** The highest one is the container's first network. Absent: 0. */
  priority: v.exactOptional(v.number()),
  /** The highest one is the container's way out. Absent: 0. */
  gw_priority: v.exactOptional(v.number()),
});
export type EndpointSpec = v.InferOutput<typeof endpointSpec>;

/** How a security option begins that names a credential spec (Docker on Windows: `--security-opt`). */
export const CREDENTIAL_SPEC = "credentialspec=";

/** The driver option that names a container's interface (Docker: "network connect", driver options). */
export const IFNAME = "com.docker.network.endpoint.ifname";

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
    /** Of a read-only bind, what becomes of mounts below the source; absent: read-only where the kernel can do it. */
    recursive: v.exactOptional(v.picklist(["writable", "readonly"])),
  }),
  v.object({
    type: v.literal("volume"),
    /** Absent: an anonymous volume that goes with its container. */
    volume: v.exactOptional(volumeSpec),
    target: v.string(),
    read_only: v.boolean(),
    nocopy: v.boolean(),
    /** The directory in the volume that is mounted; absent: all of it. */
    subpath: v.exactOptional(v.string()),
    /** Of an anonymous volume. */
    labels: v.exactOptional(pairs),
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
  v.object({
    type: v.literal("secret"),
    /** In the document. */
    name: v.string(),
    /** Stands for one value and tells nothing of it; empty until the Scheduler has settled which one (`scheduler_secrets.ts`). */
    secret_id: v.string(),
    target: v.string(),
    read_only: v.literal(true),
    mode: count,
    /** Absent: whoever the node runs as. */
    uid: v.exactOptional(count),
    gid: v.exactOptional(count),
  }),
]);
export type SecretMount = Extract<MountSpec, { type: "secret" }>;
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

/** The namespace of another service's container, as compose writes it. */
const serviceNamespace = v.custom<`service:${string}`>(
  (value) => typeof value === "string" && value.startsWith("service:"),
);

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
  network_mode: v.exactOptional(v.union([v.picklist(["host", "none", "bridge", "default"]), serviceNamespace])),
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
  /** Services whose mounts the container has as well; absent access: as they have them. */
  volumes_from: v.exactOptional(
    v.array(v.object({ service_name: v.string(), access: v.exactOptional(v.picklist(["ro", "rw"])) })),
  ),
  /** Like `pid` and `network_mode`, it may be `service:NAME`. */
  ipc: v.exactOptional(v.string()),
  pid: v.exactOptional(v.string()),
  uts: v.exactOptional(v.string()),
  userns_mode: v.exactOptional(v.string()),
  isolation: v.exactOptional(v.string()),
  /** Of volumes that come to be with the container: anonymous ones. */
  volume_driver: v.exactOptional(v.string()),
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
  /** Least time between an end and the next start; absent: none is asked for. */
  delay_ms: v.exactOptional(count),
  /** How long a run must last to count as a success, which `max_attempts` begins anew after; absent: `STABLE_MS`. */
  window_ms: v.exactOptional(count),
  /** What compose would have put in Docker's RestartPolicy.Name for this service ("" where the document says nothing). */
  compose: v.picklist(["", "no", "always", "on-failure", "unless-stopped"]),
});
export type RestartSpec = v.InferOutput<typeof restartSpec>;

/** Stands for a value in what a container with `x-cacophony: {api: read}` is answered. */
export const HIDDEN_VALUE = "(hidden)";

/** What a service's containers may do with the API of the node that they run on (`x-cacophony.api`). */
export const apiAccess = v.picklist(["read", "deploy"]);

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
  /** The same in whole seconds, where the document says it: for Docker's own stops, whose default is compose's. */
  stop_timeout_s: v.exactOptional(count),
  /** The node stops it by itself after so long without a master (`x-cacophony.stop_when_isolated`); absent: never. */
  stop_when_isolated_ms: v.exactOptional(count),
  /** Absent: its containers are kept from the API. */
  api: v.exactOptional(apiAccess),
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
  reservations: v.object({
    memory_bytes: v.exactOptional(count),
    cpus: v.exactOptional(v.number()),
    /** Generic resources by their kinds. */
    generic: v.exactOptional(v.array(v.object({ kind: v.string(), count }))),
  }),
  ...engineOptions,
});
export type ServiceSpec = v.InferOutput<typeof serviceSpec>;

/**
 * A service of the job that another's containers share something with. `running`: its container must run for that, and what is
 * shared ends with the run; else it must only have been started.
 */
export type Share = { service_name: string; running: boolean };

/** What a service shares with others of its job, one entry for each of those; ordered by their names. */
export function sharesOf({
  network_mode,
  ipc,
  pid,
  volumes_from = [],
}: Pick<ServiceSpec, "network_mode" | "ipc" | "pid" | "volumes_from">): Share[] {
  const shares = new Map(volumes_from.map(({ service_name }) => [service_name, false]));
  for (const mode of [network_mode, ipc, pid]) {
    const service = mode === undefined ? undefined : sharedService(mode);
    if (service !== undefined) shares.set(service, true);
  }
  return [...shares]
    .map(([service_name, running]) => ({ service_name, running }))
    .toSorted((a, b) => (a.service_name < b.service_name ? -1 : 1));
}

/** The service that `service:NAME` names. */
export function sharedService(mode: string): string | undefined {
  return mode.startsWith("service:") ? mode.slice("service:".length) : undefined;
}

/** `key` is `node.id`, `node.name`, `node.role`, `node.platform.arch`, `node.platform.os` or `node.labels.` and a label. */
/** Whether an entry prefers replicas of its own node, or looks at all of them for the one with the fewest connections. */
export const balance = v.picklist(["local_first", "least_connections"]);

/** A port that is open on every node and leads to a service's replicas. */
export const entryPort = v.object({
  port,
  protocol: v.picklist(["tcp", "udp"]),
  container_port: port,
  balance,
  /** How the client's address is told to the replica (tcp only). */
  proxy_protocol: v.picklist(["none", "v1", "v2"]),
});
export type EntryPort = v.InferOutput<typeof entryPort>;

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
  /** What becomes of slots whose data are on a node that is down; absent: they wait for it. */
  volumes: v.exactOptional(v.literal("recreate")),
  /** How nodes are chosen. Absent: as the cluster does. */
  strategy: v.exactOptional(v.picklist(["spread", "binpack"])),
  /** Ports that are open on every node and lead to this service. */
  entries: v.exactOptional(v.array(entryPort)),
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
