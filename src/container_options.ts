/**
 * @module A service's spec -> the body of the Engine's `POST /containers/create`, as compose sends it (docker/compose,
 * pkg/compose/create.go; field names of the Engine API). Also the names of containers and volumes. Pure; sends nothing. The
 * executor changes one field of the body before it sends it: RestartPolicy, since it owns restarts.
 */
import { restartLabel } from "./converge_restarts.ts";
import { LABELS } from "./model.ts";
import {
  type EndpointSpec,
  type MountSpec,
  type NetworkSpec,
  type SecretMount,
  type ServiceSpec,
  sharedService,
  type VolumeSpec,
} from "./model_spec.ts";
import { withoutTrailing } from "./text.ts";

export type ContainerContext = {
  clusterId: string;
  nodeId: string;
  jobId: string;
  serviceName: string;
  slot: number;
  allocationId: string;
  /** The job's network `default` on the node. */
  networkName: string;
  /** Absolute; relative sources of bind mounts are resolved against it. */
  projectDir: string;
  /** The networks that reach over nodes, and the name server that knows who is on them; absent: there are none. */
  overlay?: { networks: ReadonlySet<string>; dns: string };
  /** Absolute; where the node holds secrets. */
  secretsDir: string;
  /** Ids or names of the containers that this one shares something with, by service. */
  joined?: ReadonlyMap<string, string>;
};

export type PortBinding = { HostIp: string; HostPort: string };

export type Mount = {
  Type: "bind" | "volume" | "tmpfs";
  Source?: string;
  Target: string;
  ReadOnly?: boolean;
  BindOptions?: {
    Propagation?: string;
    NonRecursive?: boolean;
    ReadOnlyNonRecursive?: boolean;
    ReadOnlyForceRecursive?: boolean;
    CreateMountpoint?: boolean;
  };
  VolumeOptions?: { NoCopy?: boolean; Subpath?: string; Labels?: Record<string, string> };
  TmpfsOptions?: { SizeBytes?: number; Mode?: number };
};

export type DeviceRequest = {
  Driver?: string;
  Count?: number;
  DeviceIDs?: string[];
  Capabilities: string[][];
  Options?: Record<string, string>;
};

type Rate = { Path: string; Rate: number };

/** Engine API 1.41 (Docker 20.10): HostConfig, the members that compose sets. */
export type HostConfig = {
  NetworkMode: string;
  RestartPolicy: { Name: string; MaximumRetryCount: number };
  Binds?: string[];
  Mounts?: Mount[];
  VolumesFrom?: string[];
  Tmpfs?: Record<string, string>;
  PortBindings?: Record<string, PortBinding[]>;
  Memory?: number;
  MemoryReservation?: number;
  MemorySwap?: number;
  MemorySwappiness?: number;
  NanoCpus?: number;
  PidsLimit?: number;
  CpuCount?: number;
  CpuPercent?: number;
  CpuPeriod?: number;
  CpuQuota?: number;
  CpuRealtimePeriod?: number;
  CpuRealtimeRuntime?: number;
  CpuShares?: number;
  CpusetCpus?: string;
  OomKillDisable?: boolean;
  OomScoreAdj?: number;
  Privileged?: boolean;
  ReadonlyRootfs?: boolean;
  Init?: boolean;
  CapAdd?: string[];
  CapDrop?: string[];
  CgroupnsMode?: string;
  CgroupParent?: string;
  Dns?: string[];
  DnsOptions?: string[];
  DnsSearch?: string[];
  ExtraHosts?: string[];
  GroupAdd?: string[];
  IpcMode?: string;
  PidMode?: string;
  UTSMode?: string;
  UsernsMode?: string;
  Isolation?: string;
  VolumeDriver?: string;
  Runtime?: string;
  SecurityOpt?: string[];
  MaskedPaths?: string[];
  ReadonlyPaths?: string[];
  ShmSize?: number;
  StorageOpt?: Record<string, string>;
  Sysctls?: Record<string, string>;
  Annotations?: Record<string, string>;
  LogConfig?: { Type: string; Config: Record<string, string> };
  Ulimits?: { Name: string; Soft: number; Hard: number }[];
  Devices?: { PathOnHost: string; PathInContainer: string; CgroupPermissions: string }[];
  DeviceCgroupRules?: string[];
  DeviceRequests?: DeviceRequest[];
  BlkioWeight?: number;
  BlkioWeightDevice?: { Path: string; Weight: number }[];
  BlkioDeviceReadBps?: Rate[];
  BlkioDeviceReadIOps?: Rate[];
  BlkioDeviceWriteBps?: Rate[];
  BlkioDeviceWriteIOps?: Rate[];
};

/** Engine API: EndpointSettings. */
export type Endpoint = {
  Aliases: string[];
  IPAMConfig?: { IPv4Address?: string; IPv6Address?: string; LinkLocalIPs?: string[] };
  MacAddress?: string;
  DriverOpts?: Record<string, string>;
  GwPriority?: number;
};

export type CreateBody = {
  Image: string;
  Labels: Record<string, string>;
  Env: string[];
  StopTimeout?: number;
  Cmd?: string[];
  Entrypoint?: string[];
  User?: string;
  WorkingDir?: string;
  Hostname?: string;
  Domainname?: string;
  MacAddress?: string;
  StopSignal?: string;
  Tty?: boolean;
  OpenStdin?: boolean;
  ExposedPorts?: Record<string, Record<string, never>>;
  Healthcheck?: {
    Test?: string[];
    Interval?: number;
    Timeout?: number;
    StartPeriod?: number;
    StartInterval?: number;
    Retries?: number;
  };
  HostConfig: HostConfig;
  NetworkingConfig?: { EndpointsConfig: Record<string, Endpoint> };
};

/** The body for one container of a service; RestartPolicy is compose's. */
export function containerOptions(spec: ServiceSpec, context: ContainerContext): CreateBody {
  const networks = endpoints(spec, context);
  return {
    Image: spec.image,
    Labels: labels(spec, context),
    Env: [...spec.environment],
    ...present({
      StopTimeout: spec.stop_timeout_s,
      Cmd: spec.command,
      Entrypoint: spec.entrypoint,
      User: spec.user,
      WorkingDir: spec.working_dir,
      Hostname: spec.hostname,
      Domainname: spec.domainname,
      // Engines before 25 know no MAC address of one network; later ones want the two to be the same, or look there only.
      MacAddress: spec.mac_address ?? byPriority(spec.networks ?? [])[0]?.mac_address,
      StopSignal: spec.stop_signal,
      Tty: spec.tty,
      OpenStdin: spec.stdin_open,
      ExposedPorts: exposed(spec),
      Healthcheck: spec.healthcheck && healthcheck(spec.healthcheck),
    }),
    HostConfig: hostConfig(spec, context),
    ...(networks.length > 0 ? { NetworkingConfig: { EndpointsConfig: record(networks) } } : {}),
  };
}

/** Places on networks, the container's first one first: by priority, then by key, as compose. */
export function byPriority(places: readonly EndpointSpec[]): EndpointSpec[] {
  return places.toSorted((a, b) => (b.priority ?? 0) - (a.priority ?? 0) || (a.network.key < b.network.key ? -1 : 1));
}

/** The networks that a service's containers are on, by their names on the node. */
export function networksOf(spec: ServiceSpec, jobId: string): string[] {
  if (spec.network_mode) return [];
  return spec.networks?.map(({ network }) => networkName(network, jobId)) ?? [`${jobId}_default`];
}

/** The container's networks whose names Cacophony answers; none where the document names servers of its own. */
function namesOf(spec: ServiceSpec, { overlay, jobId }: ContainerContext): Set<string> | undefined {
  if (!overlay || spec.dns) return undefined;
  const ours = new Set(networksOf(spec, jobId).filter((name) => overlay.networks.has(name)));
  return ours.size > 0 ? ours : undefined;
}

/** The networks of a container by their names on the node, its first one first. */
export function endpoints(spec: ServiceSpec, context: ContainerContext): [string, Endpoint][] {
  if (spec.network_mode) return [];
  const aliases = (own: readonly string[] = []) => [
    ...new Set([context.serviceName, ...own, ...(spec.network_aliases ?? [])]),
  ];
  // What Docker knows by name it answers itself, and it knows the containers of one node only.
  const isOurs = (name: string) => namesOf(spec, context)?.has(name) === true;
  if (!spec.networks) {
    const Aliases = isOurs(context.networkName) ? [] : aliases();
    return [[context.networkName, { Aliases, ...present({ MacAddress: spec.mac_address }) }]];
  }
  return byPriority(spec.networks).map((place, index): [string, Endpoint] => {
    const { ipv4_address, ipv6_address, link_local_ips, driver_opts, gw_priority } = place;
    const mac_address = place.mac_address ?? (index === 0 ? spec.mac_address : undefined);
    const name = networkName(place.network, context.jobId);
    const fixed = present({ IPv4Address: ipv4_address, IPv6Address: ipv6_address, LinkLocalIPs: link_local_ips });
    const endpoint = {
      // Docker's own bridge knows no names, and refuses them.
      Aliases: isOurs(name) || (place.network.external && name === "bridge") ? [] : aliases(place.aliases),
      ...(Object.keys(fixed).length > 0 ? { IPAMConfig: fixed } : {}),
      ...present({
        MacAddress: mac_address,
        DriverOpts: driver_opts && record(driver_opts),
        GwPriority: gw_priority,
      }),
    };
    return [name, endpoint];
  });
}

/** What a network is called on the node: its own name where it has one, else `<job>_<key>`. */
export function networkName(network: Pick<NetworkSpec, "key" | "name" | "external">, jobId: string): string {
  return network.name ?? (network.external ? network.key : `${jobId}_${network.key}`);
}

/** `job-service-slot-1a2b3c4d`: readable, and no two allocations share it. Only characters that Docker allows. */
export function containerName({
  jobId,
  serviceName,
  slot,
  allocationId,
}: Pick<ContainerContext, "jobId" | "serviceName" | "slot" | "allocationId">): string {
  const name = `${jobId}-${serviceName}-${slot}-${allocationId.slice(0, 8)}`;
  return name.replaceAll(/[^a-zA-Z0-9_.-]/g, "_").replace(/^[^a-zA-Z0-9]/, "c");
}

/** What a named volume is called on the node: its own name where it has one, else `<job>_<key>`. */
export function volumeName(volume: VolumeSpec, jobId: string): string {
  return volume.name ?? (volume.external ? volume.key : `${jobId}_${volume.key}`);
}

/** The file that a secret is on the node: one for each value, owner and mode, so that it never changes in place. */
export function secretPath(
  { secret_id, mode, uid, gid }: Omit<SecretMount, "target" | "name">,
  secretsDir: string,
): string {
  return `${secretsDir}/${secret_id}-${mode.toString(8)}-${uid ?? ""}-${gid ?? ""}`;
}

function labels(spec: ServiceSpec, context: ContainerContext): Record<string, string> {
  const { stop_when_isolated_ms: isolatedMs } = spec;
  return record([
    ...spec.labels,
    [LABELS.cluster, context.clusterId],
    [LABELS.node, context.nodeId],
    [LABELS.job, context.jobId],
    [LABELS.service, context.serviceName],
    [LABELS.slot, String(context.slot)],
    [LABELS.allocation, context.allocationId],
    [LABELS.restart, restartLabel(spec.restart)],
    [LABELS.grace, String(spec.stop_grace_period_ms)],
    ...(isolatedMs === undefined ? [] : [[LABELS.isolated, String(isolatedMs)] as [string, string]]),
    ...(spec.api === undefined ? [] : [[LABELS.api, spec.api] as [string, string]]),
  ]);
}

function exposed(spec: ServiceSpec): Record<string, Record<string, never>> | undefined {
  const names = exposedPorts(spec).map(({ container_port, protocol }) => `${container_port}/${protocol}`);
  return names.length === 0 ? undefined : record(names.map((name) => [name, {}]));
}

type ExposedPort = Pick<ServiceSpec["ports"][number], "container_port" | "protocol">;

/** The ports of the container that its document tells of, published or not. */
export function exposedPorts({ ports, expose = [] }: ServiceSpec): ExposedPort[] {
  return [
    ...ports.map(({ container_port, protocol }) => ({ container_port, protocol })),
    ...expose.flatMap((entry): ExposedPort[] => {
      const [range = "", written] = entry.split("/");
      const [first = 0, last = first] = range.split("-").map(Number);
      const protocol = written === "udp" || written === "sctp" ? written : "tcp";
      return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => ({
        container_port: first + index,
        protocol,
      }));
    }),
  ];
}

function healthcheck(check: NonNullable<ServiceSpec["healthcheck"]>): NonNullable<CreateBody["Healthcheck"]> {
  return present({
    Test: check.test,
    Interval: check.interval_ns,
    Timeout: check.timeout_ns,
    StartPeriod: check.start_period_ns,
    StartInterval: check.start_interval_ns,
    Retries: check.retries,
  });
}

function hostConfig(spec: ServiceSpec, context: ContainerContext): HostConfig {
  const { blkio_config: blkio } = spec;
  return {
    NetworkMode: sharedMode(spec.network_mode, context) ?? endpoints(spec, context)[0]?.[0] ?? context.networkName,
    RestartPolicy: restartPolicy(spec),
    ...mounts(spec, context),
    ...present({
      PortBindings: portBindings(spec),
      Tmpfs: spec.tmpfs && record(spec.tmpfs),
      Memory: spec.limits.memory_bytes,
      MemoryReservation: spec.reservations.memory_bytes,
      MemorySwap: spec.memswap_limit_bytes,
      MemorySwappiness: spec.mem_swappiness,
      NanoCpus: spec.limits.cpus === undefined ? undefined : Math.round(spec.limits.cpus * 1e9),
      PidsLimit: spec.limits.pids,
      CpuCount: spec.cpu_count,
      CpuPercent: spec.cpu_percent === undefined ? undefined : Math.trunc(spec.cpu_percent * 100),
      CpuPeriod: spec.cpu_period,
      CpuQuota: spec.cpu_quota,
      CpuRealtimePeriod: spec.cpu_rt_period,
      CpuRealtimeRuntime: spec.cpu_rt_runtime,
      CpuShares: spec.cpu_shares,
      CpusetCpus: spec.cpuset,
      OomKillDisable: spec.oom_kill_disable,
      OomScoreAdj: spec.oom_score_adj,
      Privileged: spec.privileged,
      ReadonlyRootfs: spec.read_only,
      Init: spec.init,
      CapAdd: spec.cap_add,
      CapDrop: spec.cap_drop,
      CgroupnsMode: spec.cgroup,
      CgroupParent: spec.cgroup_parent,
      Dns: spec.dns ?? (namesOf(spec, context) && context.overlay ? [context.overlay.dns] : undefined),
      DnsOptions: spec.dns_opt,
      DnsSearch: spec.dns_search,
      ExtraHosts: spec.extra_hosts,
      GroupAdd: spec.group_add,
      IpcMode: sharedMode(spec.ipc, context),
      PidMode: sharedMode(spec.pid, context),
      VolumesFrom: spec.volumes_from?.map(({ service_name, access }) =>
        [joinedContainer(service_name, context), ...(access === undefined ? [] : [access])].join(":"),
      ),
      UTSMode: spec.uts,
      UsernsMode: spec.userns_mode,
      Isolation: spec.isolation,
      VolumeDriver: spec.volume_driver,
      Runtime: spec.runtime,
      ShmSize: spec.shm_size_bytes,
      StorageOpt: spec.storage_opt && record(spec.storage_opt),
      Sysctls: spec.sysctls && record(spec.sysctls),
      Annotations: spec.annotations && record(spec.annotations),
      LogConfig: spec.logging && { Type: spec.logging.driver, Config: record(spec.logging.options) },
      Ulimits: spec.ulimits?.map(({ name, soft, hard }) => ({ Name: name, Soft: soft, Hard: hard })),
      DeviceCgroupRules: spec.device_cgroup_rules,
      BlkioWeight: blkio?.weight,
      BlkioWeightDevice: blkio?.weight_device?.map(({ path, weight }) => ({ Path: path, Weight: weight })),
      BlkioDeviceReadBps: blkio?.device_read_bps?.map(rate),
      BlkioDeviceReadIOps: blkio?.device_read_iops?.map(rate),
      BlkioDeviceWriteBps: blkio?.device_write_bps?.map(rate),
      BlkioDeviceWriteIOps: blkio?.device_write_iops?.map(rate),
    }),
    ...securityOptions(spec),
    ...devices(spec),
  };
}

/** Docker knows no services: it shares the namespace of a container. */
function sharedMode(mode: string | undefined, context: ContainerContext): string | undefined {
  const service = mode === undefined ? undefined : sharedService(mode);
  return service === undefined ? mode : `container:${joinedContainer(service, context)}`;
}

function joinedContainer(service: string, { joined }: ContainerContext): string {
  const container = joined?.get(service);
  if (container === undefined) throw new Error(`no container of the service ${service} to share with`);
  return container;
}

function rate({ path, rate: value }: { path: string; rate: number }): Rate {
  return { Path: path, Rate: value };
}

function restartPolicy({ restart }: ServiceSpec): HostConfig["RestartPolicy"] {
  return { Name: restart.compose, MaximumRetryCount: restart.max_attempts };
}

function portBindings({ ports }: ServiceSpec): Record<string, PortBinding[]> | undefined {
  if (ports.length === 0) return undefined;
  const bindings = new Map<string, PortBinding[]>();
  for (const { container_port, protocol, host_ip, host_port: host } of ports) {
    const key = `${container_port}/${protocol}`;
    const HostPort = host ? (host.first === host.last ? String(host.first) : `${host.first}-${host.last}`) : "";
    bindings.set(key, [...(bindings.get(key) ?? []), { HostIp: host_ip, HostPort }]);
  }
  return record([...bindings]);
}

/** `systempaths=unconfined` is a word of the docker command line, which stands for two fields of the API. */
function securityOptions({
  security_opt: all,
}: ServiceSpec): Pick<HostConfig, "SecurityOpt" | "MaskedPaths" | "ReadonlyPaths"> {
  if (!all) return {};
  const rest = all.filter((option) => option !== "systempaths=unconfined");
  return {
    ...(rest.length > 0 ? { SecurityOpt: rest } : {}),
    ...(rest.length < all.length ? { MaskedPaths: [], ReadonlyPaths: [] } : {}),
  };
}

/** `vendor.com/class=name`: a device by its CDI name, which is asked for and not mapped. */
const CDI_NAME = /^[a-zA-Z][a-zA-Z0-9_.-]*\/[a-zA-Z][a-zA-Z0-9_-]*=[a-zA-Z0-9][a-zA-Z0-9_.:-]*$/;

function devices(spec: ServiceSpec): Pick<HostConfig, "Devices" | "DeviceRequests"> {
  const all = spec.devices ?? [];
  const isCdi = ({ source, target }: { source: string; target: string }) => source === target && CDI_NAME.test(source);
  const cdi = all.filter(isCdi).map(({ source }) => source);
  const mapped = all
    .filter((device) => !isCdi(device))
    .map(({ source, target, permissions }) => ({
      PathOnHost: source,
      PathInContainer: target,
      CgroupPermissions: permissions,
    }));
  const requests: DeviceRequest[] = (spec.device_requests ?? []).map((request) => ({
    ...present({ Driver: request.driver, Count: request.count, DeviceIDs: request.device_ids }),
    Capabilities: [request.capabilities],
    ...(request.options.length > 0 ? { Options: record(request.options) } : {}),
  }));
  if (cdi.length > 0) requests.unshift({ Driver: "cdi", DeviceIDs: cdi, Capabilities: [] });
  return {
    ...(mapped.length > 0 ? { Devices: mapped } : {}),
    ...(requests.length > 0 ? { DeviceRequests: requests } : {}),
  };
}

/** As compose: the older `Binds` where they can say it, since only they make a missing source directory on every Engine. */
function mounts(spec: ServiceSpec, context: ContainerContext): Pick<HostConfig, "Binds" | "Mounts"> {
  const binds: string[] = [];
  const mounts: Mount[] = [];
  for (const mount of spec.mounts) {
    const bind = bindText(mount, context);
    if (bind === undefined) mounts.push(mountOf(mount, context));
    else binds.push(bind);
  }
  return { ...(binds.length > 0 ? { Binds: binds } : {}), ...(mounts.length > 0 ? { Mounts: mounts } : {}) };
}

function bindText(mount: MountSpec, context: ContainerContext): string | undefined {
  if (mount.type === "tmpfs" || mount.type === "secret") return undefined;
  if (mount.type === "volume" && !mount.volume) return undefined;
  if (mount.type === "bind" && (!mount.create_host_path || mount.non_recursive || mount.recursive)) return undefined;
  if (mount.type === "volume" && mount.subpath !== undefined) return undefined;
  const source = sourceOf(mount, context);
  if (source.includes(":") || mount.target.includes(":")) return undefined;
  const options = mount.type === "bind" ? [mount.selinux, mount.propagation] : [mount.nocopy ? "nocopy" : undefined];
  return `${source}:${mount.target}:${[mount.read_only ? "ro" : "rw", ...options.filter(Boolean)].join(",")}`;
}

function mountOf(mount: MountSpec, context: ContainerContext): Mount {
  if (mount.type === "secret") {
    const Source = secretPath(mount, context.secretsDir);
    return { Type: "bind", Source, Target: mount.target, ReadOnly: true };
  }
  const base = { Type: mount.type, Target: mount.target, ...(mount.read_only ? { ReadOnly: true } : {}) };
  if (mount.type === "tmpfs") {
    const options = present({ SizeBytes: mount.size_bytes, Mode: mount.mode });
    return { ...base, ...(Object.keys(options).length > 0 ? { TmpfsOptions: options } : {}) };
  }
  const source = sourceOf(mount, context);
  const sourced = { ...base, ...(source === "" ? {} : { Source: source }) };
  if (mount.type === "volume") {
    const { nocopy, subpath, labels: own } = mount;
    const options = present({ NoCopy: nocopy || undefined, Subpath: subpath, Labels: own && record(own) });
    return { ...sourced, ...(Object.keys(options).length > 0 ? { VolumeOptions: options } : {}) };
  }
  const { propagation, non_recursive, recursive, create_host_path } = mount;
  const options = present({
    Propagation: propagation,
    NonRecursive: non_recursive,
    ReadOnlyNonRecursive: recursive === "writable" || undefined,
    ReadOnlyForceRecursive: recursive === "readonly" || undefined,
    CreateMountpoint: create_host_path || undefined,
  });
  return { ...sourced, ...(Object.keys(options).length > 0 ? { BindOptions: options } : {}) };
}

/** On the node: a path, a volume's name, or empty for an anonymous volume. */
function sourceOf(
  mount: Exclude<MountSpec, { type: "tmpfs" | "secret" }>,
  { jobId, projectDir }: ContainerContext,
): string {
  if (mount.type === "volume") return mount.volume ? volumeName(mount.volume, jobId) : "";
  return bindSource(mount.source, projectDir);
}

/** The path on the node that a bind mount's source means. */
export function bindSource(source: string, projectDir: string): string {
  if (source.startsWith("/")) return source;
  const base = withoutTrailing(projectDir, "/");
  return source === "." ? base : `${base}/${source}`;
}

/** An object for JSON with keys that users chose: `__proto__` is one of them, and must be a key like any other. */
function record<T>(pairs: readonly (readonly [string, T])[]): Record<string, T> {
  const object: Record<string, T> = {};
  for (const [key, value] of pairs) {
    Object.defineProperty(object, key, { value, enumerable: true, writable: true, configurable: true });
  }
  return object;
}

/** The members that are there. */
function present<T extends object>(members: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}
