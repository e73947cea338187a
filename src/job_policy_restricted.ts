/**
 * @module The profile `restricted` of a policy: what a job may ask for that has nothing of the nodes, of other jobs and of the
 * cluster but what its operator's rules open. It is a list of what is allowed: each key of a document (`KEYS`) and each value of
 * a spec (`ALLOWED`, `JUDGED`) has a decision here, and one without is refused. A new key is one more word; a new member of a
 * spec is one word in `ALLOWED`, or one line in `JUDGED`. How rules and the profile go together: `job_policy.ts`. Pure.
 *
 * Decided for these reasons, where it may surprise: GPUs are refused, since their memory and the driver in the kernel are shared
 * by all who have one. `extra_hosts` is allowed, also `host-gateway`: a container knows its gateway anyway. `network_mode: bridge`,
 * names of networks and volumes, and external ones are refused, since these are shared with whoever else is on the node. Subnets
 * are refused: an own one can be a part of the nodes' network, whose packets would then end in a container. IPv6 is refused,
 * since engines before Docker 27 do not keep the networks of jobs apart in it.
 */
import { networkName, volumeName } from "./container_options.ts";
import { OWN_DIRECTORY } from "./job_files.ts";
import { folderOf, type Leaf } from "./job_policy_leaves.ts";
import { MARK_KEY } from "./job_secrets.ts";
import {
  IFNAME,
  type MountSpec,
  type NetworkSpec,
  type ServiceSpec,
  sharedService,
  type VolumeSpec,
} from "./model_spec.ts";

function words(text: string): ReadonlySet<string> {
  return new Set(text.split(/\s+/).filter((word) => word !== ""));
}

// ---- Keys of the document -----------------------------------------------------------------------------------------------

/**
 * The keys that the profile knows at each place: `*` stands for any name, `[]` for any item of a list. What they ask for is judged
 * by the spec that they lead to. A mapping that is not listed here has names of the user's own, or nothing comes of it (`build`).
 */
export const KEYS: ReadonlyMap<string, ReadonlySet<string>> = new Map(
  Object.entries({
    "": "services volumes networks configs secrets name version include",
    "services.*": `x-cacophony image command entrypoint environment ports volumes restart labels user working_dir hostname
      domainname stop_grace_period stop_signal scale deploy mem_limit mem_reservation memswap_limit mem_swappiness cpus cpu_count
      cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpuset pids_limit annotations blkio_config cap_add
      cap_drop cgroup cgroup_parent credential_spec device_cgroup_rules devices dns dns_opt dns_search expose extra_hosts gpus
      group_add healthcheck init ipc isolation links logging mac_address network_mode networks oom_kill_disable oom_score_adj pid
      platform privileged profiles pull_policy read_only runtime security_opt shm_size stdin_open storage_opt sysctls tmpfs tty
      ulimits userns_mode uts attach build container_name depends_on develop env_file pull_refresh_after configs secrets extends
      label_file post_start pre_start pre_stop volume_driver volumes_from`,
    "services.*.x-cacophony": "publish balance proxy_protocol volumes stop_when_isolated api strategy",
    "services.*.ports[]": "target published protocol host_ip mode name app_protocol",
    "services.*.volumes[]": "type source target read_only consistency bind volume tmpfs",
    "services.*.volumes[].bind": "propagation create_host_path selinux recursive",
    "services.*.volumes[].volume": "nocopy subpath labels",
    "services.*.volumes[].tmpfs": "size mode",
    "services.*.deploy":
      "replicas mode resources restart_policy placement labels endpoint_mode update_config rollback_config",
    "services.*.deploy.resources": "limits reservations",
    "services.*.deploy.resources.limits": "cpus memory pids",
    "services.*.deploy.resources.reservations": "cpus memory devices generic_resources",
    "services.*.deploy.resources.reservations.devices[]": "driver count device_ids capabilities options",
    "services.*.deploy.resources.reservations.generic_resources[]": "discrete_resource_spec",
    "services.*.deploy.resources.reservations.generic_resources[].discrete_resource_spec": "kind value",
    "services.*.deploy.restart_policy": "condition max_attempts delay window",
    "services.*.deploy.placement": "constraints preferences max_replicas_per_node",
    "services.*.deploy.placement.preferences[]": "spread",
    "services.*.blkio_config":
      "weight weight_device device_read_bps device_read_iops device_write_bps device_write_iops",
    "services.*.blkio_config.weight_device[]": "path weight",
    "services.*.blkio_config.device_read_bps[]": "path rate",
    "services.*.blkio_config.device_read_iops[]": "path rate",
    "services.*.blkio_config.device_write_bps[]": "path rate",
    "services.*.blkio_config.device_write_iops[]": "path rate",
    "services.*.credential_spec": "config file registry",
    "services.*.devices[]": "source target permissions",
    "services.*.gpus[]": "driver count device_ids capabilities options",
    "services.*.healthcheck": "test interval timeout start_period start_interval retries disable",
    "services.*.logging": "driver options",
    "services.*.networks.*":
      "aliases ipv4_address ipv6_address link_local_ips mac_address driver_opts interface_name priority gw_priority",
    "services.*.ulimits.*": "soft hard",
    "services.*.depends_on.*": "condition restart required",
    "services.*.env_file": "path format required",
    "services.*.env_file[]": "path format required",
    "services.*.configs[]": "source target uid gid mode",
    "services.*.secrets[]": "source target uid gid mode",
    "services.*.post_start[]": "command user working_dir environment",
    "services.*.pre_start[]": "command user working_dir environment",
    "services.*.pre_stop[]": "command user working_dir environment",
    "volumes.*": "name driver driver_opts external labels",
    "volumes.*.external": "name",
    "networks.*": "name driver driver_opts ipam external internal attachable enable_ipv4 enable_ipv6 labels",
    "networks.*.ipam": "driver config options",
    "networks.*.ipam.config[]": "subnet ip_range gateway aux_addresses",
    "networks.*.external": "name",
    "configs.*": "name content environment file external labels driver driver_opts template_driver",
    "configs.*.external": "name",
    "secrets.*": `name environment file external labels driver driver_opts template_driver ${MARK_KEY}`,
    "secrets.*.external": "name",
  }).map(([place, keys]) => [place, words(keys)]),
);

const HOOK = "a privileged command is root on the node; leave it out";
/** Keys that are refused as such, also where Cacophony comes to know them. */
export const REFUSED_KEYS: ReadonlyMap<string, string> = new Map([
  ["models", "models are run by the node, outside of the job's containers; run the model as a service"],
  ["services.*.models", "models are run by the node, outside of the job's containers; run the model as a service"],
  ["services.*.provider", "a provider is a program that is run on the node; run it in a container"],
  ["services.*.external_links", "a container outside of the job is not the job's; make it a service of this job"],
  ["services.*.use_api_socket", "whoever has the Engine's socket is root on the node; leave it out"],
  ["services.*.post_start[].privileged", HOOK],
  ["services.*.pre_start[].privileged", HOOK],
  ["services.*.pre_stop[].privileged", HOOK],
  ["services.*.volumes[].image", "mounts of images are not decided about; leave it out"],
]);

const NO_DECISION = "the profile has no decision about it, and allows nothing that it does not know; leave it out";

/** What of a document's keys is refused; `document` is the JSON text of `ParsedJob`. */
export function refusedKeys(document: unknown): { path: string; what: string; reason: string }[] {
  return keysBelow(document, { place: "", path: "" });
}

type At = { place: string; path: string };

function keysBelow(value: unknown, { place, path }: At): ReturnType<typeof refusedKeys> {
  if (Array.isArray(value)) {
    return value.flatMap((item, index) => keysBelow(item, { place: `${place}[]`, path: `${path}[${index}]` }));
  }
  if (typeof value !== "object" || value === null) return [];
  const known = KEYS.get(place);
  return Object.entries(value).flatMap(([key, member]) => {
    const at = path === "" ? key : `${path}.${key}`;
    if (!known) return NAMED.has(`${place}.*`) ? keysBelow(member, { place: `${place}.*`, path: at }) : [];
    const inner = place === "" ? key : `${place}.${key}`;
    const refused = REFUSED_KEYS.get(inner);
    if (refused === undefined && known.has(key)) return keysBelow(member, { place: inner, path: at });
    const isForeign = key.startsWith("x-") && !key.startsWith("x-cacophony");
    if ((refused === undefined && isForeign) || isNothing(member)) return [];
    return [{ path: at, what: key, reason: refused ?? NO_DECISION }];
  });
}

/** Places of mappings with names of the user's own, which have keys below them. */
const NAMED: ReadonlySet<string> = new Set(KEYS.keys().filter((place) => place.endsWith(".*")));

function isNothing(value: unknown): boolean {
  if (typeof value === "object" && value !== null) return Object.keys(value).length === 0;
  return value === null || value === false || value === "";
}

// ---- Values of the spec ---------------------------------------------------------------------------------------------------

/** Members of a spec that say nothing of the node, or that are judged with another of their object. */
export const ALLOWED: ReadonlySet<string> = words(`
  image entrypoint command environment user hostname domainname stop_signal stop_grace_period_ms stop_timeout_s
  stop_when_isolated_ms platform pull_policy tty stdin_open read_only init expose mac_address network_aliases dns dns_opt dns_search
  extra_hosts cap_drop group_add shm_size_bytes memswap_limit_bytes mem_swappiness cpu_count cpu_percent cpu_period cpu_quota
  cpu_shares cpuset ulimits.soft ulimits.hard volumes_from.service_name volumes_from.access
  ports.container_port ports.protocol ports.host_ip ports.host_port.first ports.host_port.last
  mounts.source mounts.read_only mounts.create_host_path mounts.selinux mounts.non_recursive mounts.recursive mounts.nocopy
  mounts.subpath mounts.long mounts.size_bytes mounts.name mounts.secret_id mounts.uid mounts.gid mounts.volume.key
  files.path files.size files.chunks files.uid files.gid
  restart.condition restart.max_attempts restart.delay_ms restart.window_ms restart.compose
  limits.memory_bytes limits.cpus limits.pids
  reservations.memory_bytes reservations.cpus reservations.generic.kind reservations.generic.count
  healthcheck.test healthcheck.interval_ns healthcheck.timeout_ns healthcheck.start_period_ns healthcheck.start_interval_ns
  healthcheck.retries
  networks.aliases networks.ipv4_address networks.ipv6_address networks.mac_address networks.priority networks.gw_priority
  networks.network.key networks.network.internal networks.network.attachable networks.network.enable_ipv4
  devices.target devices.permissions
  blkio_config.weight blkio_config.weight_device.weight blkio_config.device_read_bps.rate blkio_config.device_read_iops.rate
  blkio_config.device_write_bps.rate blkio_config.device_write_iops.rate
  rules.mode rules.constraints.key rules.constraints.operator rules.constraints.value rules.spread rules.max_per_node rules.volumes
  rules.strategy rules.entries.port rules.entries.protocol rules.entries.container_port rules.entries.balance
  rules.entries.proxy_protocol rules.depends_on.service_name rules.depends_on.condition rules.depends_on.required
`);

/** Why a value is refused and what to do, or undefined where it is allowed. */
type Judge = (leaf: Leaf, about: { jobId: string }) => string | undefined;

/** Docker's own set (moby/moby, oci/caps/defaults.go). */
const DEFAULT_CAPABILITIES = words(
  "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT",
);
/** Those that only make a container's rights less. */
const HARDENING = words("no-new-privileges no-new-privileges=true apparmor=docker-default");
/** Of the container's own namespaces (Kubernetes, Pod Security Standards: "safe sysctls"; Docker: those of an own IPC namespace). */
const SYSCTLS = words(`
  kernel.shm_rmid_forced kernel.shmall kernel.shmmax kernel.shmmni kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem
  net.core.somaxconn net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports net.ipv4.ip_unprivileged_port_start
  net.ipv4.ping_group_range net.ipv4.tcp_syncookies net.ipv4.tcp_keepalive_time net.ipv4.tcp_keepalive_intvl
  net.ipv4.tcp_keepalive_probes net.ipv4.tcp_fin_timeout net.ipv4.tcp_max_syn_backlog net.ipv4.tcp_rmem net.ipv4.tcp_wmem
`);
/** What they keep stays on the node, in files that Docker owns. */
const LOG_DRIVERS = ["", "json-file", "local", "none"];
const LOG_OPTIONS = words(
  "max-size max-file compress mode max-buffer-size labels labels-regex env env-regex tag cache-disabled cache-max-file cache-max-size cache-compress",
);
const ULIMITS = words("as core cpu data fsize locks memlock msgqueue nofile nproc rss rttime sigpending stack");
const TMPFS_OPTIONS = words(
  "size mode uid gid nr_inodes nr_blocks mpol rw ro exec noexec suid nosuid dev nodev atime noatime relatime diratime nodiratime",
);
const NETWORK_OPTIONS = words("com.docker.network.driver.mtu com.docker.network.bridge.enable_icc");
/** Of Docker's (docs.docker.com, "Docker object labels": reserved) and of ours. */
const RESERVED_LABELS = ["cacophony.", "com.docker.", "io.docker.", "org.dockerproject."];
const MOUNT_TYPES = ["bind", "volume", "tmpfs", "secret"];
/** Setuid and setgid: files lie on the node, too. */
const SPECIAL_BITS = 0o6000;

const HOST = "it takes part in the node's own; leave it out";
const OPTIONS = "a volume's options can mount anything of the node; leave them out";
const ADDRESSES = "an own choice of addresses can take those of the nodes; leave it out";
const DEVICE = "devices are the node's; leave it out";

/** Members of a spec whose values are looked at. */
export const JUDGED: ReadonlyMap<string, Judge> = new Map<string, Judge>([
  ["privileged", refused("a privileged container is root on the node; leave it out")],
  ["cap_add", capability],
  ["security_opt", securityOption],
  ["devices.source", refused(DEVICE)],
  ["device_cgroup_rules", refused(DEVICE)],
  ["device_requests.driver", refused(DEVICE)],
  ["device_requests.count", refused(DEVICE)],
  ["device_requests.device_ids", refused(DEVICE)],
  ["device_requests.capabilities", refused(DEVICE)],
  ["device_requests.options", refused(DEVICE)],
  ["blkio_config.weight_device.path", refused(DEVICE)],
  ["blkio_config.device_read_bps.path", refused(DEVICE)],
  ["blkio_config.device_read_iops.path", refused(DEVICE)],
  ["blkio_config.device_write_bps.path", refused(DEVICE)],
  ["blkio_config.device_write_iops.path", refused(DEVICE)],
  [
    "network_mode",
    namespace(["none"], "it shares networks outside of the job; use a network of the job, or service:NAME"),
  ],
  ["ipc", namespace(["private", "shareable", "none"], HOST)],
  ["pid", namespace([], HOST)],
  ["api", only(["read"], "a container that may deploy can ask for everything; write read")],
  ["uts", only([], HOST)],
  ["userns_mode", only([], HOST)],
  ["cgroup", only(["private"], HOST)],
  ["cgroup_parent", refused("it moves the container out of what is set for containers on the node; leave it out")],
  ["runtime", refused("another runtime keeps containers apart in its own way; leave it out")],
  ["isolation", only(["default"], "another isolation keeps containers apart in its own way; leave it out")],
  ["annotations", refused("runtimes take orders by annotations; write it as a label")],
  ["storage_opt", refused("it changes what the node sets aside for containers; leave it out")],
  ["oom_kill_disable", refused("the node would have to end processes of others; leave it out")],
  ["oom_score_adj", oomScore],
  ["cpu_rt_period", refused("real-time processes can stop all others on the node; use cpus or cpu_shares")],
  ["cpu_rt_runtime", refused("real-time processes can stop all others on the node; use cpus or cpu_shares")],
  ["ulimits.name", named(ULIMITS, "it lets processes take the processors from all others on the node; leave it out")],
  ["sysctls", named(SYSCTLS, "it is not known to change the container's own namespaces alone; leave it out")],
  ["logging.driver", only(LOG_DRIVERS, "it sends from the node, with the node's rights; use json-file or local")],
  ["logging.options", named(LOG_OPTIONS, "it is not known to keep to files of Docker's own; leave it out")],
  ["labels", label],
  ["mounts.labels", label],
  ["mounts.volume.labels", label],
  ["networks.network.labels", label],
  ["working_dir", ({ text }) => systemPath(text)],
  ["tmpfs", tmpfs],
  ["mounts.type", only(MOUNT_TYPES, NO_DECISION)],
  ["mounts.target", ({ text }) => systemPath(text)],
  [
    "mounts.propagation",
    only(["private", "rprivate"], "mounts would pass between the node and the container; leave it out"),
  ],
  ["mounts.mode", ({ text, parents }) => ((parents.at(-1) as MountSpec).type === "tmpfs" ? undefined : fileMode(text))],
  ["files.mode", ({ text }) => fileMode(text)],
  ["volume_driver", only(["local"], OPTIONS)],
  ["mounts.volume.driver", only(["", "local"], "a driver's volumes are kept outside of Docker; leave it out")],
  ["mounts.volume.driver_opts", refused(OPTIONS)],
  ["mounts.volume.external", refused("it is not of the job; leave external out, and the job has its own")],
  ["mounts.volume.name", ownVolume],
  ["networks.network.driver", refused("it puts containers on networks of the node; leave it out")],
  [
    "networks.network.driver_opts",
    named(NETWORK_OPTIONS, "it may join a bridge of the node or open ports; leave it out"),
  ],
  ["networks.network.external", refused("it is not of the job; leave external out, and the job has its own")],
  ["networks.network.name", ownNetwork],
  ["networks.network.enable_ipv6", refused("networks of jobs are not kept apart by all engines in IPv6; leave it out")],
  ["networks.network.ipam.driver", only(["", "default"], ADDRESSES)],
  ["networks.network.ipam.config.subnet", refused(ADDRESSES)],
  ["networks.network.ipam.config.ip_range", refused(ADDRESSES)],
  ["networks.network.ipam.config.gateway", refused(ADDRESSES)],
  ["networks.network.ipam.config.aux_addresses", refused(ADDRESSES)],
  ["networks.network.ipam.options", refused(ADDRESSES)],
  ["networks.link_local_ips", refused("the cluster does not know these addresses; leave it out")],
  ["networks.driver_opts", named(new Set([IFNAME]), "it may change settings of the node's network; leave it out")],
]);

/** Whether the profile may refuse values at this path. */
export function isJudged(path: string): boolean {
  return JUDGED.has(path) || !ALLOWED.has(path);
}

/** Why the profile refuses a value of a spec. */
export function refusedValue(leaf: Leaf, about: { jobId: string }): string | undefined {
  const judge = JUDGED.get(leaf.path);
  if (judge) return judge(leaf, about);
  return ALLOWED.has(leaf.path) ? undefined : NO_DECISION;
}

const OWN_FOLDER = folderOf(OWN_DIRECTORY);

/** Why the profile refuses a path that a mount shows. */
export function refusedPath(
  path: string,
  { mount, spec }: { mount: MountSpec; spec: ServiceSpec },
): string | undefined {
  if (path.startsWith("/")) {
    const isOwn = mount.type === "bind";
    return isOwn ? "it is the node's; use a named volume, or a path that begins with ./" : OPTIONS;
  }
  const { read_only: isRead } = mount as Extract<MountSpec, { type: "bind" }>;
  const folder = folderOf(path);
  if (OWN_FOLDER.startsWith(folder) && !isRead)
    return `it shows ${OWN_DIRECTORY}, where the node keeps files of its own; bind a directory in it, or make it read_only`;
  const isMade = isRead && (spec.files ?? []).some((file) => file.path === path);
  if (folder.startsWith(OWN_FOLDER) && !isMade)
    return `it shows ${OWN_DIRECTORY}, where the node keeps files of its own; choose another directory`;
  return undefined;
}

function refused(reason: string): Judge {
  return () => reason;
}

function only(allowed: readonly string[], reason: string): Judge {
  return ({ text }) => (allowed.includes(text) ? undefined : reason);
}

/** As `only`, or shared with another service of the job. */
function namespace(allowed: readonly string[], reason: string): Judge {
  return ({ text }) => (allowed.includes(text) || sharedService(text) !== undefined ? undefined : reason);
}

function named(allowed: ReadonlySet<string>, reason: string): Judge {
  return ({ name, text }) => (allowed.has(name ?? text) ? undefined : reason);
}

function capability({ text }: Leaf): string | undefined {
  const isDefault = DEFAULT_CAPABILITIES.has(text.toUpperCase().replace(/^CAP_/, ""));
  return isDefault ? undefined : "Docker gives containers no such capability by itself; leave it out";
}

function securityOption({ text }: Leaf): string | undefined {
  if (HARDENING.has(text.replace(":", "="))) return undefined;
  return "it can take away what keeps the container in; use no-new-privileges, or leave it out";
}

function oomScore({ text }: Leaf): string | undefined {
  return text.startsWith("-") ? "others on the node would be ended first; leave it out" : undefined;
}

function label({ name = "" }: Leaf): string | undefined {
  const start = RESERVED_LABELS.find((one) => name.startsWith(one));
  return start && `labels that begin with ${start} are read by the tools that own them; choose another name`;
}

function tmpfs({ name = "", text }: Leaf): string | undefined {
  const options = text.slice(name.length + 1).split(",");
  const isKnown = options.every((one) => TMPFS_OPTIONS.has(one.split("=", 1)[0] ?? "") || one === "");
  return isKnown ? systemPath(name) : "it has an option that is not of a tmpfs alone; leave that out";
}

/**
 * The kernel's own trees: what hides parts of them hides what protects the node, and a directory there may be one that a runtime
 * left open (CVE-2024-21626).
 */
function systemPath(target: string): string | undefined {
  const folder = folderOf(target);
  const isSystem = folder.startsWith("/proc/") || folder.startsWith("/sys/");
  return isSystem ? "it lies in the kernel's own trees, /proc and /sys; choose another path" : undefined;
}

function fileMode(text: string): string | undefined {
  return (Number(text) & SPECIAL_BITS) === 0 ? undefined : "setuid and setgid count on the node, too; leave them out";
}

function ownVolume({ text, parents }: Leaf, { jobId }: { jobId: string }): string | undefined {
  const { name: _, ...volume } = parents.at(-1) as VolumeSpec;
  if (volume.external || text === volumeName(volume, jobId)) return undefined;
  return "a volume of that name may be another's; leave name out";
}

function ownNetwork({ text, parents }: Leaf, { jobId }: { jobId: string }): string | undefined {
  const { name: _, ...network } = parents.at(-1) as NetworkSpec;
  if (network.external || text === networkName(network, jobId)) return undefined;
  return "a network of that name may be another's; leave name out";
}
