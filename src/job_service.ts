/**
 * @module One service of a compose document, its keys checked one by one, -> the spec of its container. Owns the rules that
 * tie keys to each other and to the rest of the document (limits against reservations, ports against network mode, names of
 * volumes and networks), and where compose and Cacophony differ in effect.
 */
import { cleanPath, sendFromAbove } from "./job_files.ts";
import { endpointsOf, REACHES_APIS, withNetworkMode } from "./job_networks.ts";
import { show } from "./job_grammar.ts";
import type { DeviceRequestFields } from "./job_forms.ts";
import type { NetworkFields, ServiceFields, VolumeFields } from "./job_keys.ts";
import {
  environmentOf,
  fileMounts,
  type FilesAround,
  labelsOf,
  lastOfEach,
  type Report,
  securityOptions,
  sentBelow,
} from "./job_service_files.ts";
import { hostPorts } from "./job_entries.ts";
import { portSpecs, type ParsedMount } from "./job_lists.ts";
import type { Path } from "./job_yaml.ts";
import {
  type DeviceRequestSpec,
  type FileSpec,
  type HealthcheckSpec,
  isRunToEnd,
  type MountSpec,
  type PortSpec,
  type RestartSpec,
  type ServiceSpec,
  sharedService,
  type VolumeSpec,
} from "./model_spec.ts";
import { nearest } from "./nearest.ts";

/** What a service needs to know of the document around it. */
export type Surroundings = FilesAround & {
  jobId: string;
  volumes: ReadonlyMap<string, VolumeFields>;
  networks: ReadonlyMap<string, NetworkFields>;
  /** Names that other services' `links` give this one. */
  linkedAs: readonly string[];
};

/** Compose's default time between the stop signal and SIGKILL. */
const STOP_GRACE_PERIOD_MS = 10_000;

/** Names among which the nearest to an unknown one is looked for: the search costs, and a document has few. */
export const MAX_CANDIDATES = 100;

/** What becomes of a volume without a name. Compose gives it to the container that replaces the present one on the same machine. */
const ANONYMOUS =
  "is an anonymous volume, which goes with its container: a replica that replaces this one starts with an empty one; name it to keep its data";

/** Containers of a service that its document asks for; undefined where it says nothing. */
export function scaleOf(service: ServiceFields): number | undefined {
  return service.scale ?? service.deploy?.replicas;
}

/** The spec of a service's containers. Where faults are reported, it stands for nothing. */
export function buildService(written: ServiceFields, around: Surroundings): ServiceSpec {
  const { report } = around;
  const service = withNetworkMode(written, around);
  checkImage(service, report);
  checkScale(service, report);
  if (service.pull_policy === "build") {
    report.warn(
      ["pull_policy"],
      "is taken for missing: nothing is built here, and an image is pulled where it is absent",
    );
  }
  if (service.healthcheck?.start_interval !== undefined) {
    report.warn(["healthcheck", "start_interval"], "is dropped by engines before Docker 25, which keep to interval");
  }
  if (service.pull_refresh_after !== undefined && service.pull_policy !== "refresh") {
    report.warn(["pull_refresh_after"], "is without effect: it counts for pull_policy: refresh");
  }
  const words = (key: "command" | "entrypoint") => {
    const command = service[key];
    if (!command) return {};
    if (command.operator) {
      report.warn(
        [key],
        `has an unquoted ${command.operator}, which is passed on as a word: no shell runs this; for one write sh -c "…"`,
      );
    }
    return { [key]: command.words };
  };
  return {
    image: service.image ?? "",
    ...words("entrypoint"),
    ...words("command"),
    environment: environmentOf(service, around),
    labels: labelsOf(service, around),
    stop_grace_period_ms: Math.ceil((service.stop_grace_period ?? STOP_GRACE_PERIOD_MS * 1e6) / 1e6),
    ...(service.stop_grace_period === undefined ? {} : { stop_timeout_s: Math.trunc(service.stop_grace_period / 1e9) }),
    ports: ports(service, report),
    ...mounts(service, around),
    ...present({ stop_when_isolated_ms: milliseconds(service["x-cacophony"]?.stop_when_isolated) }),
    ...apiAccess(service, report),
    restart: restart(service),
    ...resources(service, report),
    ...network(service, around),
    ...passedOn(service, around),
  };
}

/** Who calls an API is told by its address, so it needs one of its own. */
function apiAccess(
  { "x-cacophony": own, network_mode: mode }: ServiceFields,
  report: Report,
): Pick<ServiceSpec, "api"> {
  const access = own?.api;
  if (access === undefined) return {};
  const path = ["x-cacophony", "api"];
  const shared = mode === undefined ? undefined : sharedService(mode);
  if (shared !== undefined) report.fault(path, `is for the service whose network it is: write it at ${shared}`);
  else if (mode === "none") report.fault(path, "needs a network, and network_mode: none leaves the service without");
  else if (mode === "host") {
    report.warn(path, "is without effect: with network_mode: host the service reaches the API of every node anyway");
    return {};
  }
  return { api: access };
}

function checkImage(service: ServiceFields, report: Report): void {
  if (service.build === undefined || service.build === null) return;
  if (service.image !== undefined)
    report.warn(["build"], `is left out: ${service.image} is run as the registry or the node has it`);
}

function checkScale(service: ServiceFields, report: Report): void {
  const replicas = service.deploy?.replicas;
  if (service.scale !== undefined && replicas !== undefined && service.scale !== replicas) {
    report.fault(["scale"], `is ${service.scale}, but deploy.replicas is ${replicas}; keep one`);
  }
  if (service.container_name !== undefined && (scaleOf(service) ?? 1) > 1) {
    report.fault(["container_name"], `names one container, but the service has ${scaleOf(service)}; leave it out`);
  }
}

function ports(service: ServiceFields, report: Report): PortSpec[] {
  const { ports: entries = [], network_mode: mode } = service;
  if (mode === "host" || mode === "none") {
    if (entries.length > 0) report.warn(["ports"], `is left out, as Docker does with network_mode ${mode}`);
    return [];
  }
  const taken = new Map<string, number>();
  const known = new Set<string>();
  return hostPorts(service).flatMap(({ port: entry, index }) => {
    // Said again is said once, as in compose.
    const specs = portSpecs(entry).filter((spec) => {
      const text = JSON.stringify(spec);
      return !known.has(text) && known.add(text);
    });
    for (const { host_port: host, host_ip, protocol } of specs) {
      if (!host || host.first !== host.last) continue;
      const key = `${host_ip} ${host.first}/${protocol}`;
      const other = taken.get(key);
      if (other !== undefined) {
        report.fault(
          ["ports", index],
          `publishes host port ${host.first}/${protocol}, which entry ${other} publishes already`,
        );
        break;
      }
      taken.set(key, index);
    }
    return specs;
  });
}

function mounts(service: ServiceFields, around: Surroundings): Pick<ServiceSpec, "mounts" | "files"> {
  const { volumes = [], tmpfs = [] } = service;
  const { volumes: defined, report } = around;
  const targets = new Map<string, string>();
  const claim = (target: string, path: Path): string | undefined => {
    const clean = cleanPath(target);
    const other = targets.get(clean);
    if (other?.startsWith("volumes") && path[0] !== "volumes") {
      report.warn(path, `is left out: ${other} mounts to ${show(clean)}, and compose takes that one`);
      return undefined;
    }
    if (!clean.startsWith("/"))
      report.fault(path, `has the container path ${show(target)}, which is not absolute: start it with /`);
    else if (clean === "/") report.fault(path, "would cover the whole container: mount to a path below /");
    else if (other !== undefined) report.fault(path, `mounts to ${show(clean)}, as ${other} does already`);
    targets.set(clean, `${path[0]} entry ${path[1]}`);
    return clean;
  };
  for (const [index, entry] of tmpfs.entries()) claim(entry.split(":", 1)[0] ?? "", ["tmpfs", index]);
  const sent: FileSpec[] = [];
  const targetOf = (mount: ParsedMount) => cleanPath(mount.target);
  const own = lastOfEach(volumes, { section: "volumes", targetOf, report }).map(([index, mount]): MountSpec => {
    const path = ["volumes", index];
    for (const option of mount.ignored)
      report.warn(path, `has the option ${show(option)}, which is left out, as compose does`);
    const { read_only } = mount;
    const target = claim(mount.target, path) ?? targetOf(mount);
    if (mount.type === "volume") {
      if (mount.source === "") report.warn(path, ANONYMOUS);
      const volume = mount.source === "" ? undefined : namedVolume(mount.source, { known: defined, report, path });
      return {
        type: "volume",
        ...(volume ? { volume } : {}),
        target,
        read_only,
        ...present({ subpath: mount.subpath, labels: mount.labels }),
        nocopy: mount.nocopy,
        long: mount.long,
      };
    }
    if (mount.type === "tmpfs") {
      const { size_bytes, mode } = mount;
      return { type: "tmpfs", target, read_only, ...present({ size_bytes, mode }) };
    }
    const { create_host_path, propagation, selinux, non_recursive, recursive } = mount;
    const source = hostPath(mount, { report, path });
    const bind = {
      type: "bind" as const,
      source,
      target,
      read_only,
      create_host_path,
      ...present({ propagation, selinux, non_recursive, recursive }),
    };
    sent.push(...sentBelow(bind, { index, ...around }));
    return bind;
  });
  const made = fileMounts(service, { ...around, claim });
  const files = new Map([...sent, ...made.files].map((file) => [file.path, file]));
  return { mounts: [...own, ...made.mounts], ...(files.size > 0 ? { files: [...files.values()] } : {}) };
}

function namedVolume(
  key: string,
  { known, report, path }: { known: ReadonlyMap<string, VolumeFields>; report: Report; path: Path },
): VolumeSpec | undefined {
  const definition = known.get(key);
  if (!definition) {
    const near = nearest(key, [...known.keys()].slice(0, MAX_CANDIDATES));
    report.fault(
      path,
      `names the volume ${show(key)}, which is not under the top-level volumes${near ? `: did you mean ${near}?` : "; add it there, or start a path with / or ./"}`,
    );
    return undefined;
  }
  const { driver, driver_opts = [], labels: own = [], external: outside = false } = definition;
  const external = outside !== false;
  const name = definition.name ?? (typeof outside === "object" ? outside.name : undefined);
  return { key, ...present({ name, driver }), external, driver_opts, labels: own };
}

/** An absolute path as it is; a relative one without its `./`, inside of the job's project directory. */
function hostPath({ source }: ParsedMount, { report, path }: { report: Report; path: Path }): string {
  if (source.startsWith("~")) {
    report.fault(path, `has the source ${show(source)}: whose home is meant differs by node; write the path out`);
    return source;
  }
  if (/^\\\\|^[a-zA-Z]:/.test(source)) {
    report.fault(path, `has the source ${show(source)}, a path of Windows; nodes run Linux`);
    return source;
  }
  if (source.startsWith("/")) return source;
  const clean = cleanPath(source);
  if (clean === ".." || clean.startsWith("../")) {
    report.fault(
      path,
      `has the source ${show(source)}, which leaves the job's project directory: write an absolute path, or ${sendFromAbove(clean)}`,
    );
  }
  return clean;
}

/** Conditions of `deploy.restart_policy` by Docker's names for them. */
const DEPLOYED_RESTARTS = {
  none: "no",
  no: "no",
  any: "always",
  always: "always",
  "on-failure": "on-failure",
  "unless-stopped": "unless-stopped",
} as const;

/**
 * `deploy.restart_policy` replaces `restart`, as in compose. A service that says nothing is kept running, unless it is one that
 * runs to its end: that is started again only when it fails.
 */
function restart({ restart: simple, deploy }: ServiceFields): RestartSpec {
  const policy = deploy?.restart_policy;
  const named = policy?.condition === undefined ? "" : DEPLOYED_RESTARTS[policy.condition];
  const compose = policy ? named : (simple?.name ?? "");
  const condition = conditionOf(compose);
  const runsToEnd = deploy?.mode !== undefined && isRunToEnd({ mode: deploy.mode });
  return {
    condition: runsToEnd && condition === "always" ? "on-failure" : condition,
    max_attempts: (policy ? policy.max_attempts : simple?.attempts) ?? 0,
    ...present({ delay_ms: milliseconds(policy?.delay), window_ms: milliseconds(policy?.window) }),
    compose,
  };
}

/** Whole ones of a duration, which is in nanoseconds; 0 says nothing. */
function milliseconds(duration: number | undefined): number | undefined {
  return duration ? Math.ceil(duration / 1e6) : undefined;
}

function conditionOf(name: string): RestartSpec["condition"] {
  return name === "no" || name === "on-failure" ? name : "always";
}

type Resources = Pick<ServiceSpec, "limits" | "reservations" | "memswap_limit_bytes">;

function resources(service: ServiceFields, report: Report): Resources {
  const { limits = {}, reservations = {} } = service.deploy?.resources ?? {};
  const one = (
    key: keyof ServiceFields & string,
    own: number | undefined,
    deployed: number | undefined,
    where: string,
  ) => {
    if (own !== undefined && deployed !== undefined && own !== deployed) {
      report.fault([key], `is ${own}, but deploy.resources.${where} is ${deployed}; keep one`);
    }
    // Docker and compose read 0 as "says nothing".
    return deployed || own || undefined;
  };
  const memory = one("mem_limit", service.mem_limit, limits.memory, "limits.memory");
  const reserved = one("mem_reservation", service.mem_reservation, reservations.memory, "reservations.memory");
  const cpus = one("cpus", service.cpus, limits.cpus, "limits.cpus");
  const pids = one("pids_limit", service.pids_limit, limits.pids, "limits.pids");
  const reservedCpus = reservations.cpus || undefined;
  const generic = (reservations.generic_resources ?? []).filter(({ count }) => count > 0);
  const below = (path: Path, limit: number | undefined, reservation: number | undefined) => {
    if (limit === undefined || reservation === undefined || reservation <= limit) return;
    report.fault(
      path,
      `is ${limit}, below the ${reservation} that is reserved; raise the limit or lower the reservation`,
    );
  };
  below(limits.memory === undefined ? ["mem_limit"] : ["deploy", "resources", "limits", "memory"], memory, reserved);
  below(limits.cpus === undefined ? ["cpus"] : ["deploy", "resources", "limits", "cpus"], cpus, reservedCpus);
  if (cpus !== undefined && (service.cpu_quota || service.cpu_period)) {
    report.fault(
      [service.cpu_quota ? "cpu_quota" : "cpu_period"],
      "says again what cpus says; Docker takes one of them",
    );
  }
  const swap = service.memswap_limit || undefined;
  if (swap !== undefined && swap > 0 && memory === undefined) {
    report.fault(["memswap_limit"], "is memory and swap together, and needs mem_limit beside it");
  } else if (swap !== undefined && memory !== undefined && swap > 0 && swap < memory) {
    report.fault(["memswap_limit"], `is ${swap}, below the memory limit of ${memory}; it is memory and swap together`);
  }
  return {
    limits: present({ memory_bytes: memory, cpus, pids }),
    reservations: present({
      memory_bytes: reserved,
      cpus: reservedCpus,
      generic: generic.length > 0 ? generic : undefined,
    }),
    ...present({ memswap_limit_bytes: swap }),
  };
}

function network(
  service: ServiceFields,
  around: Surroundings,
): Pick<ServiceSpec, "network_mode" | "network_aliases" | "networks"> {
  const { network_mode: mode, networks = [], container_name: name } = service;
  const { report } = around;
  if (mode && networks.length > 0) report.fault(["network_mode"], "excludes networks; keep one");
  for (const [key] of networks) {
    if (key === "default" || around.networks.has(key)) continue;
    const near = nearest(key, [...around.networks.keys()].slice(0, MAX_CANDIDATES));
    report.fault(
      report.member("networks", key),
      `is not under the top-level networks${near ? `: did you mean ${near}?` : "; add it there"}`,
    );
  }
  if (mode === "host") report.warn(["network_mode"], REACHES_APIS);
  if (mode) {
    const shared = sharedService(mode);
    if (shared !== undefined) checkSharedNetwork(service, { shared, report });
    return { network_mode: mode };
  }
  const names = [...new Set([...around.linkedAs, ...(name === undefined ? [] : [name])])].toSorted();
  const places = networks.length > 0 ? networks : [["default", {}] as const];
  const isPlain = places.length === 1 && places[0]?.[0] === "default" && !around.networks.get("default");
  return {
    ...(names.length > 0 ? { network_aliases: names } : {}),
    ...(isPlain && Object.keys(places[0]?.[1] ?? {}).length === 0
      ? {}
      : { networks: endpointsOf(places, { service, ...around }) }),
  };
}

/** What belongs to a network, and so to the service that it is shared from (moby/moby, runconfig: validateNetContainerMode). */
function checkSharedNetwork(service: ServiceFields, { shared, report }: { shared: string; report: Report }): void {
  for (const key of ["ports", "expose", "hostname", "dns", "extra_hosts", "mac_address"] as const) {
    const value = service[key];
    if (!value || value.length === 0) continue;
    report.fault([key], `belongs to the network of the service ${show(shared)}, which this one shares: write it there`);
  }
}

/** Keys whose checked value is the spec's, unless it is off or empty. */
const AS_THEY_ARE = [
  "user",
  "working_dir",
  "hostname",
  "domainname",
  "stop_signal",
  "mac_address",
  "platform",
  "tty",
  "stdin_open",
  "privileged",
  "read_only",
  "expose",
  "annotations",
  "dns",
  "dns_opt",
  "dns_search",
  "extra_hosts",
  "cap_add",
  "cap_drop",
  "group_add",
  "sysctls",
  "storage_opt",
  "devices",
  "device_cgroup_rules",
  "cgroup",
  "cgroup_parent",
  "volumes_from",
  "ipc",
  "pid",
  "uts",
  "userns_mode",
  "isolation",
  "volume_driver",
  "runtime",
  "oom_kill_disable",
  "oom_score_adj",
  "cpu_count",
  "cpu_percent",
  "cpu_period",
  "cpu_quota",
  "cpu_rt_period",
  "cpu_rt_runtime",
  "cpu_shares",
  "cpuset",
  "mem_swappiness",
] as const satisfies (keyof ServiceFields & keyof ServiceSpec)[];

function passedOn(written: ServiceFields, around: Surroundings): Partial<ServiceSpec> {
  const { devices = [] } = written;
  const counting = lastOfEach(devices, { section: "devices", targetOf: ({ target }) => target, ...around });
  const service = { ...written, devices: counting.map(([, device]) => device) };
  const same = AS_THEY_ARE.map((key) => [key, service[key]] as const).filter(
    ([, value]) => value && !(Array.isArray(value) && value.length === 0),
  );
  const { init, logging, tmpfs = [], ulimits = [], shm_size, blkio_config, healthcheck } = service;
  const security = securityOptions(service, around);
  const pullPolicy = pullPolicyOf(service);
  const requests = [
    ...(service.gpus ?? []).map((request) => deviceRequest(request, ["gpu"])),
    ...(service.deploy?.resources?.reservations?.devices ?? []).map((request) => deviceRequest(request, [])),
  ];
  return {
    ...(Object.fromEntries(same) as Pick<ServiceSpec, (typeof AS_THEY_ARE)[number]>),
    ...present({ init, blkio_config: blkio_config as ServiceSpec["blkio_config"] }),
    ...(security.length > 0 ? { security_opt: security } : {}),
    ...(pullPolicy ? { pull_policy: pullPolicy } : {}),
    ...(logging ? { logging: { driver: logging.driver ?? "", options: logging.options ?? [] } } : {}),
    ...(tmpfs.length > 0 ? { tmpfs: tmpfs.map(splitTmpfs) } : {}),
    ...(ulimits.length > 0 ? { ulimits: ulimits.map(([name, limit]) => ({ name, ...limit })) } : {}),
    ...(shm_size ? { shm_size_bytes: shm_size } : {}),
    ...(healthcheck ? { healthcheck: health(healthcheck) } : {}),
    ...(requests.length > 0 ? { device_requests: requests } : {}),
  };
}

/** `refresh` with a time is the policy that asks again after that time. */
function pullPolicyOf({ pull_policy: policy, pull_refresh_after: after }: ServiceFields): string | undefined {
  return policy === "refresh" && after !== undefined ? `every_${after}` : policy;
}

function splitTmpfs(entry: string): [string, string] {
  const colon = entry.indexOf(":");
  return colon < 0 ? [entry, ""] : [entry.slice(0, colon), entry.slice(colon + 1)];
}

function deviceRequest(request: DeviceRequestFields, more: string[]): DeviceRequestSpec {
  const { driver, device_ids, capabilities = [], options = [] } = request;
  // Compose: without a number or names, all devices are meant.
  const count = request.count ?? (device_ids === undefined ? -1 : undefined);
  return { ...present({ driver, count, device_ids }), capabilities: [...new Set([...capabilities, ...more])], options };
}

function health(check: NonNullable<ServiceFields["healthcheck"]>): HealthcheckSpec {
  if (check.disable) return { test: ["NONE"] };
  const { test, interval, timeout, start_period, start_interval, retries } = check;
  return present({
    test,
    interval_ns: interval,
    timeout_ns: timeout,
    start_period_ns: start_period,
    start_interval_ns: start_interval,
    retries,
  });
}

/** The members that are there: the spec has no `undefined`. */
function present<T extends object>(members: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}
