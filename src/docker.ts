/**
 * @module One Docker Engine as the executor needs it: the `Engine` interface and its implementation with dockerode.
 *
 * Owns the words of the Docker API: paths, options, how answers are read. Every call settles: it answers or
 * throws an `EngineError` within its time limit. A call that timed out may still take effect in Docker; whoever made it looks
 * again before it acts. What is gone already counts as removed. Works with API 1.41 (Docker 20.10) and later: requests name
 * no version, so the Engine uses its newest.
 */
import type { Readable } from "node:stream";
import Docker from "dockerode";
import type { CreateBody, Endpoint } from "./container_options.ts";
import type { Container } from "./converge.ts";
import { apiError, EngineError, pullError, unavailableError } from "./docker_errors.ts";
import { readLines } from "./docker_lines.ts";
import { type LogLine, logLines } from "./docker_logs.ts";
import { asPath, authOf, type RegistryLogin, splitImage } from "./docker_images.ts";
import { type DevicesInfo, type EngineDevices, engineDevices } from "./docker_devices.ts";
import { addressesOf, bindsOf, deviceOf, endpointsOf, type NetworkDevice, publishedPorts } from "./docker_ports.ts";
import { type Read, read } from "./docker_read.ts";
import { endStrays } from "./docker_strays.ts";
import { StartError } from "./model.ts";
import { type Platform, platformOf } from "./placement_platform.ts";

export type EngineInfo = {
  engineId: string;
  dockerVersion: string;
  apiVersion: string;
  os: string;
  arch: string;
  cpus: number;
  memoryBytes: number;
  /** Where it keeps its data, as a path of its own machine. */
  dataRoot?: string;
} & EngineDevices;

export type EngineNetwork = {
  id: string;
  name: string;
  labels: ReadonlyMap<string, string>;
  subnets: string[];
} & NetworkDevice;
/** An image that is here: its id, its names, its digests in registries (`name@sha256:…`), when its tag was set here last, what runs it. */
export type EngineImage = { id: string; tags: string[]; digests: string[]; taggedAt?: number; platform?: Platform };
export type EngineVolume = { name: string; labels: ReadonlyMap<string, string> };
/** What a container uses: bytes without reclaimable page cache, and CPU nanoseconds since its start. */
export type ContainerUsage = { memoryBytes: number; cpuNs: number };
/** `tty`: whether the container has a terminal, whose log is written another way. */
export type LogsOptions = { tail: number; tty: boolean };
export type EngineEvent = { containerId: string; action: string };

export interface Engine {
  /** As it was given: `unix:///var/run/docker.sock`. */
  readonly host: string;
  /** Whether the Engine is on another machine, so that this machine's /proc says nothing about it. */
  readonly remote: boolean;
  info(): Promise<EngineInfo>;
  /** Resolves if the Engine answers at all. */
  ping(): Promise<void>;
  /** All containers, ended ones too; without exit codes and times. */
  list(): Promise<Container[]>;
  /** One container by id or name, in full; undefined if there is none. */
  inspect(idOrName: string): Promise<Container | undefined>;
  /** Creates a container and returns its id. A name that is taken is a `conflict`. `platform`: what its image must be of. */
  create(name: string, body: CreateBody, options?: { platform?: string | undefined }): Promise<string>;
  /** Starts a container; one that runs already is left as it is. */
  start(id: string): Promise<void>;
  /** Sends the container's stop signal, then SIGKILL after `graceMs` (rounded up to seconds); returns once it has ended. */
  stop(id: string, options: { graceMs: number; signal?: AbortSignal }): Promise<void>;
  /** Removes a container, running or not, with its anonymous volumes; one that is being removed already is left to that. */
  remove(id: string): Promise<void>;
  /** Ends processes of a container that does not run, as Docker says: a killed dockerd can lose sight of some. */
  endStrays(id: string): void;
  /** The last lines of what a container wrote in any of its runs, the newest last; empty where its log can't be read. */
  logs(id: string, options: LogsOptions): Promise<LogLine[]>;
  /** One sample, undefined if the container does not run. */
  usage(id: string): Promise<ContainerUsage | undefined>;
  /** The image of that name, tag, digest or id if it is here; asks no registry. */
  image(name: string): Promise<EngineImage | undefined>;
  /** Asks the registry which digest an image's tag stands for. */
  resolve(image: string, options: RegistryOptions): Promise<string>;
  pull(image: string, options: PullRequest): Promise<void>;
  /** Gives an image that is here a further name. */
  tag(image: string, name: string): Promise<void>;
  /** Takes a name from an image, and with its last name removes it; a `conflict` if a container is made of it then. */
  untag(name: string): Promise<void>;
  networks(): Promise<EngineNetwork[]>;
  /** Creates a network and returns its id. */
  createNetwork(network: NewNetwork): Promise<string>;
  /** Puts a container on a further network, if it is not there yet. */
  connect(containerId: string, network: string, endpoint: Endpoint): Promise<void>;
  removeNetwork(id: string): Promise<void>;
  /** The volumes that carry all of `labels` (`key=value`). */
  volumes(labels: string[]): Promise<EngineVolume[]>;
  volume(name: string): Promise<EngineVolume | undefined>;
  createVolume(volume: NewVolume): Promise<void>;
  removeVolume(name: string): Promise<void>;
  /**
   * Calls `onEvent` for each change of a container that carries all of `labels` (`key=value`), and `onOpen` once the stream
   * stands. Resolves when the stream ends or `signal` aborts.
   */
  watch(options: WatchOptions): Promise<void>;
}

export type RegistryOptions = { signal?: AbortSignal | undefined; login?: RegistryLogin | undefined };
/** `platform` absent: the Engine's own. */
export type PullRequest = RegistryOptions & {
  onProgress?: (line: PullProgress) => void;
  platform?: string | undefined;
};
export type PullProgress = { layer?: string; status: string; currentBytes?: number; totalBytes?: number };
export type NewNetwork = {
  name: string;
  driver: string;
  labels: Record<string, string>;
  driverOpts: Record<string, string>;
  internal: boolean;
  attachable: boolean;
  /** Absent: true; engines before 28 know no other. */
  enableIpv4?: boolean;
  enableIpv6: boolean;
  ipam: {
    driver: string;
    options: Record<string, string>;
    config: { subnet?: string; gateway?: string; ipRange?: string; auxAddresses?: Record<string, string> }[];
  };
};
export type NewVolume = {
  name: string;
  driver?: string;
  driverOpts: Record<string, string>;
  labels: Record<string, string>;
};
export type WatchOptions = {
  labels: string[];
  onOpen: () => void;
  onEvent: (event: EngineEvent) => void;
  signal: AbortSignal;
};

/** Time limits in milliseconds. A probe must be quick: it decides whether the node counts as ready. */
const PROBE_TIMEOUT_MS = 5_000;
/** A ping takes no work, so even a machine with too much to do answers within this. What hangs is noticed sooner (`executor_connection.ts`). */
const PING_TIMEOUT_MS = 10_000;
/** Nobody waits for last lines for long. */
const LOGS_TIMEOUT_MS = 1_000;
/** Reads answer in milliseconds; more than this means that Docker hangs. */
const READ_TIMEOUT_MS = 15_000;
/** Creates and starts wait for disks, volume plugins and NFS servers. */
const WRITE_TIMEOUT_MS = 120_000;
/** On top of the grace period: Docker waits up to 10 s more for a killed container, and is busy when many end. */
const STOP_MARGIN_MS = 30_000;
/** A pull may take hours, but not silently: Docker reports progress several times a second. */
const PULL_IDLE_MS = 120_000;
/** A registry answers a question about one tag quickly, or is in trouble; Docker itself may wait longer for it. */
const RESOLVE_TIMEOUT_MS = 60_000;

/** The events after which a container may look different. Others (exec, attach, health probes) are many and change nothing. "health_status" stands for
 * "health_status: healthy" and the like, which come when the health changes. */
const EVENTS = ["create", "start", "die", "destroy", "pause", "unpause", "health_status"];

/**
 * Opens an Engine at `unix:///path` or `tcp://host:port`; nothing is dialled yet.
 * @throws {StartError} if `dockerHost` is neither.
 */
export function openEngine(dockerHost: string): Engine {
  return new DockerodeEngine(dockerHost, parseHost(dockerHost));
}

type Address = { socketPath: string } | { host: string; port: number };

function parseHost(dockerHost: string): Address {
  const socket = /^unix:\/\/(\/.+)$/.exec(dockerHost)?.[1];
  if (socket !== undefined) return { socketPath: socket };
  const tcp = /^tcp:\/\/(\[[0-9a-fA-F:.]+\]|[^/:@]+):(\d{1,5})\/?$/.exec(dockerHost);
  const [, host, port] = tcp ?? [];
  if (host !== undefined && Number(port) >= 1 && Number(port) <= 65535) return { host, port: Number(port) };
  throw new StartError(`bad Docker host "${dockerHost}": write unix:///path/to/docker.sock or tcp://host:port`);
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

class DockerodeEngine implements Engine {
  readonly host: string;
  readonly remote: boolean;
  readonly #docker: Docker;
  readonly #socketPath: string | undefined;

  constructor(host: string, address: Address) {
    this.host = host;
    this.#socketPath = "socketPath" in address ? address.socketPath : undefined;
    this.remote = "host" in address && !isLoopback(address.host);
    // dockerode fills what is absent from DOCKER_HOST in the environment, so all is said here.
    const none = { host: undefined, port: undefined, socketPath: undefined, protocol: "http" };
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- its types know no explicit undefined
    this.#docker = new Docker({ ...none, ...address } as unknown as Docker.DockerOptions);
  }

  async info(): Promise<EngineInfo> {
    // The types leave out that both calls take a signal.
    const system = this.#docker as unknown as SystemCalls;
    const [info, version] = await Promise.all([
      this.#call(PROBE_TIMEOUT_MS, (abortSignal) => system.info({ abortSignal })),
      this.#call(PROBE_TIMEOUT_MS, (abortSignal) => system.version({ abortSignal })),
    ]);
    if (typeof info?.ID !== "string" || typeof version?.Version !== "string")
      throw new EngineError("unavailable", `what answers on ${this.host} is no Docker Engine`);
    return {
      engineId: info.ID,
      dockerVersion: version.Version,
      apiVersion: version.ApiVersion,
      os: version.Os,
      arch: version.Arch,
      cpus: info.NCPU,
      memoryBytes: info.MemTotal,
      ...(info.DockerRootDir !== undefined && { dataRoot: info.DockerRootDir }),
      ...engineDevices(info),
    };
  }

  async ping(): Promise<void> {
    // The types leave out that this call takes a signal.
    const otherwise = (abortSignal: AbortSignal) => (this.#docker as unknown as SystemCalls).ping({ abortSignal });
    await this.#call(PING_TIMEOUT_MS, (signal) => this.#read("/_ping", { signal, otherwise }));
  }

  async list(): Promise<Container[]> {
    const all = await this.#call(READ_TIMEOUT_MS, (signal) =>
      this.#read("/containers/json?all=true", {
        signal,
        otherwise: (abortSignal) => this.#docker.listContainers({ all: true, abortSignal }),
      }),
    );
    return all.map((entry) => ({
      id: entry.Id,
      name: containerName(entry.Names[0] ?? entry.Id),
      labels: asMap(entry.Labels),
      imageId: entry.ImageID,
      state: containerState(entry.State),
      ports: publishedPorts(
        (entry.Ports ?? []).map((port) => ({
          key: `${port.PrivatePort}/${port.Type}`,
          ip: port.IP,
          port: port.PublicPort,
        })),
      ),
      createdAt: entry.Created * 1000,
      ...endpointsOf(entry.NetworkSettings?.Networks),
      // "Up 2 minutes (healthy)", "(unhealthy)", "(health: starting)": a list has it nowhere else.
      ...healthOf(/\((?:health: )?([a-z]+)\)$/.exec(entry.Status)?.[1]),
    }));
  }

  async inspect(idOrName: string): Promise<Container | undefined> {
    const container = encodeURIComponent(idOrName);
    const found = await this.#find((signal) =>
      this.#read(`/containers/${container}/json`, {
        signal,
        otherwise: (abortSignal) => this.#docker.getContainer(container).inspect({ abortSignal }),
      }),
    );
    if (!found) return undefined;
    const { State: state } = found;
    const ports = Object.entries(found.NetworkSettings.Ports ?? {}).flatMap(([key, bindings]) =>
      (bindings ?? []).map((binding) => ({ key, ip: binding.HostIp, port: Number(binding.HostPort) })),
    );
    const { endpoints } = endpointsOf(found.NetworkSettings.Networks);
    const seen: Container = {
      id: found.Id,
      name: containerName(found.Name),
      labels: asMap(found.Config.Labels),
      imageId: found.Image,
      state: containerState(state.Status),
      ports: publishedPorts(ports),
      addresses: addressesOf(endpoints),
      endpoints,
      ...(state.Pid > 0 && !this.remote && { pid: state.Pid }),
      binds: bindsOf(found.Mounts),
      createdAt: time(found.Created) ?? 0,
      exitCode: state.ExitCode,
      ...healthOf(state.Health?.Status),
    };
    const startedAt = time(state.StartedAt);
    const finishedAt = time(state.FinishedAt);
    if (startedAt !== undefined) seen.startedAt = startedAt;
    if (finishedAt !== undefined) seen.finishedAt = finishedAt;
    if (state.Error) seen.error = state.Error;
    if (state.OOMKilled) Object.assign(seen, { oomKilled: true, memoryLimit: found.HostConfig.Memory ?? 0 });
    if (found.Config.Tty) seen.tty = true;
    return seen;
  }

  async create(name: string, body: CreateBody, { platform }: { platform?: string | undefined } = {}): Promise<string> {
    // Said apart, so that dockerode does not repeat the whole body in the query string.
    const options = { _query: { name, ...(platform !== undefined && { platform }) }, _body: body };
    const created = await this.#call(WRITE_TIMEOUT_MS, (abortSignal) =>
      this.#docker.createContainer({ ...options, abortSignal }),
    );
    return created.id;
  }

  async start(id: string): Promise<void> {
    await this.#call(WRITE_TIMEOUT_MS, (abortSignal) => this.#docker.getContainer(id).start({ abortSignal })).catch(
      unlessStatus(304),
    );
  }

  async stop(id: string, { graceMs, signal }: { graceMs: number; signal?: AbortSignal }): Promise<void> {
    const t = Math.ceil(graceMs / 1000);
    await this.#call(
      t * 1000 + STOP_MARGIN_MS,
      (abortSignal) => this.#docker.getContainer(id).stop({ t, abortSignal }),
      signal,
    ).catch(unlessStatus(304, 404));
  }

  async remove(id: string): Promise<void> {
    try {
      await this.#call(WRITE_TIMEOUT_MS, (abortSignal) =>
        this.#docker.getContainer(id).remove({ v: true, force: true, abortSignal }),
      ).catch(unlessStatus(404));
    } catch (error) {
      if (!(error instanceof EngineError) || !/removal of container \S+ is already in progress/.test(error.message))
        throw error;
    }
  }

  endStrays(id: string): void {
    if (!this.remote) endStrays(id);
  }

  async logs(id: string, { tail, tty }: LogsOptions): Promise<LogLine[]> {
    try {
      // With times a log is never JSON, which the client would take apart.
      const options = { follow: false, stdout: true, stderr: true, timestamps: true, tail } as const;
      const log = await this.#call(LOGS_TIMEOUT_MS, (abortSignal) =>
        this.#docker.getContainer(id).logs({ ...options, abortSignal }),
      );
      return Buffer.isBuffer(log) ? logLines(log, { tty }) : [];
    } catch (error) {
      // Gone, or of a log driver that can't be read.
      if (error instanceof EngineError && statusOf(error) !== undefined) return [];
      throw error;
    }
  }

  async usage(id: string): Promise<ContainerUsage | undefined> {
    const stats = await this.#find((abortSignal) => {
      const options = { stream: false, "one-shot": true, abortSignal } as const;
      return this.#docker.getContainer(id).stats(options);
    });
    const memory = stats?.memory_stats;
    if (!stats || memory?.usage === undefined) return undefined;
    // What `docker stats` subtracts: page cache that the kernel takes back first (cgroup v1, then v2).
    const cache = memory.stats?.total_inactive_file ?? memory.stats?.inactive_file ?? 0;
    return { memoryBytes: Math.max(0, memory.usage - cache), cpuNs: stats.cpu_stats.cpu_usage.total_usage };
  }

  async image(name: string): Promise<EngineImage | undefined> {
    const path = asPath(name);
    const found = await this.#find((signal) =>
      this.#read(`/images/${path}/json`, { signal, otherwise: () => this.#docker.getImage(path).inspect() }),
    );
    if (!found) return undefined;
    // The types leave it out (Engine API: ImageInspect.Metadata.LastTagTime).
    const { Metadata: metadata } = found as { Metadata?: { LastTagTime?: string } };
    const taggedAt = time(metadata?.LastTagTime ?? "");
    const { Os: os = "", Architecture: arch = "", Variant: variant = "" } = found as Partial<ImagePlatform>;
    const { Id: id, RepoTags: tags, RepoDigests: digests } = found;
    const known = { id, tags: tags ?? [], digests: digests ?? [], platform: platformOf(os, arch, variant) };
    return { ...known, ...(taggedAt !== undefined && { taggedAt }) };
  }

  async resolve(image: string, { signal, login }: RegistryOptions): Promise<string> {
    try {
      const { Descriptor: descriptor } = await this.#call(
        RESOLVE_TIMEOUT_MS,
        () => this.#docker.getImage(asPath(image)).distribution({ authconfig: authOf(login) }),
        signal,
      );
      return descriptor.digest;
    } catch (cause) {
      throw pullError(this.#translate(cause));
    }
  }

  async tag(image: string, name: string): Promise<void> {
    const { fromImage, tag } = splitImage(name);
    await this.#call(READ_TIMEOUT_MS, (abortSignal) =>
      this.#docker.getImage(asPath(image)).tag({ repo: fromImage, tag, abortSignal }),
    );
  }

  async untag(name: string): Promise<void> {
    // Images below it that have no name are not ours to remove.
    await this.#call(WRITE_TIMEOUT_MS, (abortSignal) =>
      this.#docker.getImage(asPath(name)).remove({ noprune: true, abortSignal }),
    ).catch(unlessStatus(404));
  }

  async pull(image: string, { signal, onProgress, login, platform }: PullRequest): Promise<void> {
    try {
      const stream = await this.#call(
        PULL_IDLE_MS,
        (abortSignal) =>
          this.#docker.createImage(authOf(login), {
            ...splitImage(image),
            ...(platform !== undefined && { platform }),
            abortSignal,
          }),
        signal,
      );
      await readLines(asReadable(stream), { idleMs: PULL_IDLE_MS, ...(signal && { signal }) }, (line) => {
        const { id, status, error, progressDetail: detail } = line as PullLine;
        if (error !== undefined) throw new EngineError("other", error);
        onProgress?.({
          status: status ?? "",
          ...(id !== undefined && { layer: id }),
          ...(detail?.current !== undefined && { currentBytes: detail.current }),
          ...(detail?.total !== undefined && { totalBytes: detail.total }),
        });
      });
    } catch (cause) {
      throw pullError(this.#translate(cause));
    }
  }

  async networks(): Promise<EngineNetwork[]> {
    const all = await this.#call(READ_TIMEOUT_MS, (signal) =>
      this.#read("/networks", { signal, otherwise: (abortSignal) => this.#docker.listNetworks({ abortSignal }) }),
    );
    return all.map(
      ({ Id: id, Name: name, Driver: driver, Internal: internal, Options: options = {}, Labels, IPAM }) => {
        const subnets = (IPAM?.Config ?? []).flatMap(({ Subnet }) => (Subnet ? [Subnet] : []));
        return { id, name, labels: asMap(Labels), subnets, ...deviceOf({ id, driver, internal, options, subnets }) };
      },
    );
  }

  async createNetwork(network: NewNetwork): Promise<string> {
    const { ipam } = network;
    const created = await this.#call(WRITE_TIMEOUT_MS, (abortSignal) =>
      this.#docker.createNetwork({
        Name: network.name,
        // Engines before 25 allow two networks of one name unless told so; later ones never do.
        CheckDuplicate: true,
        Driver: network.driver,
        Internal: network.internal,
        Attachable: network.attachable,
        ...(network.enableIpv4 !== undefined && { EnableIPv4: network.enableIpv4 }),
        EnableIPv6: network.enableIpv6,
        Options: network.driverOpts,
        IPAM: {
          Driver: ipam.driver,
          Options: ipam.options,
          Config: ipam.config.map(({ subnet, gateway, ipRange, auxAddresses }) => ({
            ...(subnet !== undefined && { Subnet: subnet }),
            ...(gateway !== undefined && { Gateway: gateway }),
            ...(ipRange !== undefined && { IPRange: ipRange }),
            ...(auxAddresses && { AuxiliaryAddresses: auxAddresses }),
          })),
        },
        Labels: network.labels,
        abortSignal,
      }),
    );
    return created.id;
  }

  async connect(containerId: string, network: string, endpoint: Endpoint): Promise<void> {
    try {
      const options = { Container: containerId, EndpointConfig: endpoint };
      await this.#call(WRITE_TIMEOUT_MS, () => this.#docker.getNetwork(encodeURIComponent(network)).connect(options));
    } catch (error) {
      // An earlier process came as far as this, or an earlier answer was lost.
      if (
        !(error instanceof EngineError) ||
        !/already exists in network|is already attached to network/.test(error.message)
      )
        throw error;
    }
  }

  async removeNetwork(id: string): Promise<void> {
    await this.#call(WRITE_TIMEOUT_MS, (abortSignal) =>
      this.#docker.getNetwork(encodeURIComponent(id)).remove({ abortSignal }),
    ).catch(unlessStatus(404));
  }

  async volumes(labels: string[]): Promise<EngineVolume[]> {
    const answer = await this.#call(READ_TIMEOUT_MS, (abortSignal) =>
      this.#docker.listVolumes({ filters: { label: labels }, abortSignal }),
    );
    return (answer.Volumes ?? []).map((volume) => ({ name: volume.Name, labels: asMap(volume.Labels) }));
  }

  async volume(name: string): Promise<EngineVolume | undefined> {
    const found = await this.#find((abortSignal) =>
      this.#docker.getVolume(encodeURIComponent(name)).inspect({ abortSignal }),
    );
    return found && { name: found.Name, labels: asMap(found.Labels) };
  }

  async createVolume(volume: NewVolume): Promise<void> {
    await this.#call(WRITE_TIMEOUT_MS, (abortSignal) =>
      this.#docker.createVolume({
        Name: volume.name,
        ...(volume.driver !== undefined && { Driver: volume.driver }),
        DriverOpts: volume.driverOpts,
        Labels: volume.labels,
        abortSignal,
      }),
    );
  }

  async removeVolume(name: string): Promise<void> {
    await this.#call(WRITE_TIMEOUT_MS, (abortSignal) =>
      this.#docker.getVolume(encodeURIComponent(name)).remove({ abortSignal }),
    ).catch(unlessStatus(404));
  }

  async watch({ labels, onOpen, onEvent, signal }: WatchOptions): Promise<void> {
    const filters = { type: ["container" as const], label: labels, event: EVENTS };
    try {
      const stream = await this.#call(
        READ_TIMEOUT_MS,
        (abortSignal) => this.#docker.getEvents({ filters, abortSignal }),
        signal,
      );
      onOpen();
      await readLines(asReadable(stream), { signal }, (line) => {
        const event = line as { Action?: string; Actor?: { ID?: string } };
        if (event.Actor?.ID) onEvent({ containerId: event.Actor.ID, action: event.Action ?? "" });
      });
    } catch (cause) {
      if (!signal.aborted) throw this.#translate(cause);
    }
  }

  /** As `#call` for a read; what is not there is undefined. */
  #find<T>(run: (signal: AbortSignal) => Promise<T>): Promise<T | undefined> {
    return this.#call(READ_TIMEOUT_MS, run).catch((error: unknown) => {
      if (error instanceof EngineError && statusOf(error) === 404) return undefined;
      throw error;
    });
  }

  /** What is asked often: by dockerode it takes several times the work. Which also has the words for what fails. */
  #read<T>(path: string, more: Omit<Read<T>, "path">): Promise<T> {
    return read(this.#socketPath, { path, ...more });
  }

  /** Makes one request; settles within `timeoutMs` or when `signal` aborts, whatever Docker and dockerode do. */
  async #call<T>(timeoutMs: number, run: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const controller = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let onAbort: (() => void) | undefined;
    const stopped = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(new EngineError("timeout", `Docker did not answer on ${this.host} within ${timeoutMs / 1000} s`));
      }, timeoutMs);
      onAbort = () =>
        reject(new EngineError("aborted", "given up: the process stops or the work is not wanted any more"));
      if (signal?.aborted) onAbort();
      else signal?.addEventListener("abort", onAbort, { once: true });
    });
    try {
      return await Promise.race([run(controller.signal), stopped]);
    } catch (cause) {
      controller.abort();
      throw this.#translate(cause);
    } finally {
      clearTimeout(timer);
      if (onAbort) signal?.removeEventListener("abort", onAbort);
    }
  }

  #translate(cause: unknown): EngineError {
    if (cause instanceof EngineError) return cause;
    const { statusCode } = cause as { statusCode?: number };
    return statusCode === undefined ? unavailableError(this.host, cause) : apiError(statusCode, cause as Error);
  }
}

type SystemInfo = { ID: string; NCPU: number; MemTotal: number; DockerRootDir?: string };
type SystemCalls = {
  ping(options: { abortSignal: AbortSignal }): Promise<unknown>;
  info(options: { abortSignal: AbortSignal }): Promise<SystemInfo & DevicesInfo>;
  version(options: {
    abortSignal: AbortSignal;
  }): Promise<{ Version: string; ApiVersion: string; Os: string; Arch: string }>;
};
type ImagePlatform = { Os: string; Architecture: string; Variant: string };
type PullLine = { id?: string; status?: string; error?: string; progressDetail?: { current?: number; total?: number } };

function statusOf(error: EngineError): number | undefined {
  return (error.cause as { statusCode?: number } | undefined)?.statusCode;
}

function unlessStatus(...statuses: number[]): (error: unknown) => void {
  return (error) => {
    const status = error instanceof EngineError ? statusOf(error) : undefined;
    if (status === undefined || !statuses.includes(status)) throw error;
  };
}

function containerName(name: string): string {
  return name.replace(/^\//, "");
}

const STATES: readonly string[] = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];

function containerState(state: string): Container["state"] {
  // A state that Docker may invent later is not one to act on.
  return STATES.includes(state) ? (state as Container["state"]) : "removing";
}

/** Docker says "none" where there is no health check. */
function healthOf(text: string | undefined): Pick<Container, "health"> {
  return text === "starting" || text === "healthy" || text === "unhealthy" ? { health: text } : {};
}

function asMap(labels: Record<string, string> | null | undefined): ReadonlyMap<string, string> {
  return new Map(Object.entries(labels ?? {}));
}

/** Milliseconds since 1970; undefined for Go's zero time, year 1, which stands for "never". */
function time(text: string): number | undefined {
  const ms = Date.parse(text);
  return ms > 0 ? ms : undefined;
}

function asReadable(stream: NodeJS.ReadableStream): Readable {
  // dockerode hands out the HTTP response, typed by the smaller interface.
  return stream as Readable;
}
