/**
 * @module The steps that bring one allocation's container up or down: image, network, volumes, create, start; stop, remove.
 *
 * Owns the order of the steps, how many run at once on one Engine, and what the outcome means in words. Knows neither when nor
 * why: `converge.ts` decides, `executor.ts` remembers. Every step is safe to repeat. A container's name is unique in Docker and
 * holds the allocation's id, so however answers get lost there is never a second container for one allocation.
 */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { type Backoff, backoffMs, type Clock } from "./clock.ts";
import {
  bindSource,
  containerName,
  type ContainerContext,
  containerOptions,
  endpoints,
  networksOf,
} from "./container_options.ts";
import type { Bind, Container, Joined } from "./converge.ts";
import type { Engine, EngineImage } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import type { RegistryLogin } from "./docker_images.ts";
import { ProjectFiles } from "./executor_files.ts";
import { ContainerGuard } from "./executor_guard.ts";
import { digestOf, type ImageNeed, type ImageOptions, Images, PullError, type PullOptions } from "./executor_images.ts";
import { type ExecutorOverlay, JobNetworks, type LocalAddresses, NoSubnet } from "./executor_networks.ts";
import { SecretFiles, type SecretSource } from "./executor_secrets.ts";
import { Slots } from "./executor_slots.ts";
import { type SeenSources, seeSources } from "./executor_sources.ts";
import { ensureVolumes } from "./executor_volumes.ts";
import { inWords, portInUse, Refusal } from "./executor_words.ts";
import { type AllocationRecord, LABELS } from "./model.ts";
import { cut, MAX_ERROR_CHARS } from "./model_bounds.ts";
import { type ServiceSpec } from "./model_spec.ts";

/**
 * As many as there are processors, for a start keeps one busy from end to end: on 2, an engine starts 30 containers in the same time by
 * 2, 4 or 8 at once, and in half as much again by 1. Three engines on 2 take the longer the more there are. Above 16 nothing
 * was measured.
 */
const STARTS_AT_ONCE = Math.min(16, Math.max(2, availableParallelism()));
/**
 * Stops mostly wait for grace periods, so they don't share slots with starts, and there are many. The limit, for urgent ones and others
 * each, keeps the process below Bun's 256 requests at a time, with room for everything else.
 */
const STOPS_AT_ONCE = 100;
/** A start that Docker refused (port in use, path missing): soon again at first, since most such causes go away by themselves. */
const FAILURE_BACKOFF: Backoff = { firstMs: 1_000, capMs: 60_000 };
/** Compose's default grace period, for a container whose label does not say. */
const DEFAULT_GRACE_MS = 10_000;

export type Owner = { clusterId: string; nodeId: string };

/** What to run: the allocation with its definition. */
export type Wanted = { allocation: AllocationRecord; spec: ServiceSpec };

export type CreateOptions = PullOptions & {
  settled: () => Pick<ImageNeed, "digest" | "refresh">;
  at: (step: "pulling" | "starting") => void;
  /** The containers that the new one shares something with. */
  joined: Joined | undefined;
};

/** How a container is started: `wanted` is known unless the node has no assignments; `networks` are those that it is on. */
type StartDetails = {
  wanted: Wanted | undefined;
  binds: readonly Bind[];
  neverRan: boolean;
  networks: readonly string[];
  signal: AbortSignal;
};

/** A step failed: in words, when to try again, and whether Docker may have done it nevertheless. */
export type Failure = { error: string; retryAt: number; unsure: boolean; cause: unknown };

export class Worker {
  readonly images: Images;
  readonly networks: JobNetworks;
  readonly secrets: SecretFiles;
  readonly guard: ContainerGuard;
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #owner: Owner;
  readonly #projectsDir: string;
  readonly #projectDirOf: (jobId: string) => string;
  readonly #files: ProjectFiles;
  readonly #overlay: ExecutorOverlay;
  readonly #starts = new Slots(STARTS_AT_ONCE);
  readonly #stops = new Slots(STOPS_AT_ONCE);
  /** Of what must never run twice: the master counts with its grace period, so it does not wait for longer ones of others. */
  readonly #urgentStops = new Slots(STOPS_AT_ONCE);

  constructor(options: {
    engine: Engine;
    clock: Clock;
    random: () => number;
    owner: Owner;
    routes: () => string[];
    /** Where each job has its project directory. */
    projectsDir: string;
    nodeLogin: (host: string) => Promise<RegistryLogin | undefined>;
    onNamed: NonNullable<ImageOptions["onNamed"]>;
    specsOf: (jobId: string) => ServiceSpec[];
    fetchChunk: (chunkHash: string) => Promise<Uint8Array>;
    overlay: ExecutorOverlay;
    internalReaches: () => boolean;
    secrets: SecretSource;
    isOwn: (container: Container) => boolean;
    lookAgain: (id: string) => Promise<void>;
  }) {
    this.#engine = options.engine;
    this.#clock = options.clock;
    this.#random = options.random;
    this.#owner = options.owner;
    this.#projectsDir = options.projectsDir;
    this.#projectDirOf = (jobId) => join(options.projectsDir, jobId);
    this.images = new Images(options);
    this.#overlay = options.overlay;
    const onChange = () => {
      options.overlay.setBridges(this.networks.bridges());
      options.overlay.setTaken(this.networks.taken);
      this.guard.update();
    };
    this.networks = new JobNetworks({ ...options, onChange });
    this.guard = new ContainerGuard({ ...options, networks: this.networks });
    this.#files = new ProjectFiles({ ...options, projectDirOf: this.#projectDirOf });
    this.secrets = new SecretFiles({ ...options.secrets, nodeId: options.owner.nodeId });
  }

  /**
   * Creates and starts the container of `wanted`, pulling its image if need be; returns the container's id. `settled` gives
   * what is known now about the image; the other callbacks tell how far the work is.
   */
  async create(wanted: Wanted, { settled, signal, at, joined, ...pulling }: CreateOptions): Promise<string> {
    const { image, pull_policy: policy, platform } = wanted.spec;
    for (let pulled = false; ; pulled = true) {
      const need = () => ({ image, policy, platform, ...settled() });
      const id = await this.#starts.run(async () => {
        throwIfAborted(signal);
        const [found] = await Promise.all([this.images.usable(need(), { pulled }), this.#ensureNetworks(wanted)]);
        if (!found) return undefined;
        at("starting");
        return this.#createAndStart(wanted, { signal, image: found, joined });
      });
      if (id !== undefined) return id;
      at("pulling");
      await this.images.pull(need(), { signal, ...pulling });
    }
  }

  /** Starts a container that exists. `wanted` is known unless the node has no assignments. */
  async start(
    container: Container,
    options: { wanted: Wanted | undefined; signal: AbortSignal; at: (step: "starting") => void },
  ) {
    const { wanted, signal, at } = options;
    await this.#starts.run(async () => {
      throwIfAborted(signal);
      at("starting");
      // Files of the job go with the data directory, and containers stay.
      if (wanted?.spec.files) await this.#files.ensure(wanted.allocation.job_id, wanted.spec);
      if (wanted && hasSecrets(wanted.spec)) await this.#findSecrets(container, wanted.spec);
      const networks = container.endpoints?.map(({ networkId, network }) => networkId || network) ?? [];
      const binds = container.binds ?? (await this.#engine.inspect(container.id))?.binds ?? [];
      await this.#start(container.id, { wanted, binds, neverRan: container.state === "created", networks, signal });
    });
  }

  /** Stops a container within that grace period, and removes it. */
  async remove(container: Container, { graceMs, signal }: { graceMs: number; signal: AbortSignal }): Promise<void> {
    const isUrgent = Number(container.labels.get(LABELS.isolated) ?? 0) > 0;
    await (isUrgent ? this.#urgentStops : this.#stops).run(async () => {
      throwIfAborted(signal);
      const isUp = ["running", "paused", "restarting"].includes(container.state);
      if (isUp) await this.#engine.stop(container.id, { graceMs, signal });
      else this.#engine.endStrays(container.id);
      throwIfAborted(signal);
      await this.#engine.remove(container.id);
    });
  }

  /** Says what an error of the steps above means; `failures` counts those in a row before it. */
  async explain(error: unknown, { image, failures }: { image: string; failures: number }): Promise<Failure> {
    const pull = error instanceof PullError ? error : undefined;
    const cause = pull?.error ?? error;
    const backoff = backoffMs(failures + 1, { ...FAILURE_BACKOFF, random: this.#random });
    const retryAt = pull?.retryAt ?? this.#clock.now() + backoff;
    const unsure = cause instanceof EngineError && (cause.code === "timeout" || cause.code === "unavailable");
    if (cause instanceof EngineError && cause.code === "port_in_use") {
      return { error: portInUse(cause.port, await this.#holderOf(cause.port)), retryAt, unsure, cause };
    }
    // Docker may quote all that it was sent.
    return { error: cut(inWords(cause, { image }), MAX_ERROR_CHARS), retryAt, unsure, cause };
  }

  async #createAndStart(
    wanted: Wanted,
    { signal, image, joined }: { signal: AbortSignal; image: EngineImage; joined: Joined | undefined },
  ): Promise<string> {
    const { allocation, spec } = wanted;
    const { job_id: jobId } = allocation;
    const addresses = await this.#overlay.addresses();
    // An earlier version of Cacophony wrote secrets there, too: those are taken out.
    if (spec.files || hasSecrets(spec)) await this.#files.ensure(jobId, spec);
    if (hasSecrets(spec)) await this.secrets.ensure(spec);
    await ensureVolumes(this.#engine, { spec, jobId, owner: this.#owner });
    const context = {
      ...this.#contextOf(allocation, addresses),
      ...(joined && { joined: joined.containers }),
    };
    const options = containerOptions(spec, context);
    const [first] = Object.entries(options.NetworkingConfig?.EndpointsConfig ?? {});
    const body = {
      ...options,
      Labels: {
        // A container has its image's labels, too, but for those that are set here: no image opens the API for itself.
        [LABELS.api]: "none",
        ...options.Labels,
        ...imageLabels(spec.image, image),
        ...(joined && { [LABELS.joined]: joined.label }),
        ...(hasSecrets(spec) && { [LABELS.secrets]: this.secrets.dir }),
      },
      // Engines before 25 take one network here; the container is put on the others before it starts.
      ...(first && { NetworkingConfig: { EndpointsConfig: Object.fromEntries([first]) } }),
      HostConfig: { ...options.HostConfig, RestartPolicy: { Name: "no", MaximumRetryCount: 0 } },
    };
    const binds = bindsOf(spec, context.projectDir);
    this.#see(binds);
    throwIfAborted(signal);
    const id = await this.#createOrAdopt(containerName(context), { body, wanted });
    await this.#start(id, { wanted, binds, neverRan: true, networks: placesOf(wanted), signal });
    return id;
  }

  /** They are in memory alone, and the machine may have been off since the container was made. */
  async #findSecrets(container: Container, spec: ServiceSpec): Promise<void> {
    await this.secrets.ensure(spec);
    const before = container.labels.get(LABELS.secrets);
    if (before === this.secrets.dir) return;
    await this.#engine.remove(container.id);
    throw new Refusal(
      `the container had its secrets at ${before ?? "another place"}, and this node has them at ${this.secrets.dir} now: it is made anew`,
    );
  }

  async #ensureNetworks({ allocation: { job_id: jobId }, spec }: Wanted): Promise<void> {
    if (spec.network_mode) return;
    const { pools, mtu } = await this.#overlay.addresses();
    const from = { pools, ...(mtu !== undefined && { mtu }) };
    try {
      if (!spec.networks) await this.networks.ensure(jobId, from);
      else await Promise.all(spec.networks.map(({ network }) => this.networks.ensure(jobId, { ...from, network })));
    } catch (error) {
      if (error instanceof NoSubnet) this.#overlay.noticeFull();
      throw error;
    }
  }

  /** Puts a container that never ran on its networks but the first. */
  async #connect(id: string, { allocation, spec }: Wanted): Promise<void> {
    const [, ...others] = endpoints(spec, this.#contextOf(allocation, await this.#overlay.addresses()));
    for (const [network, endpoint] of others) await this.#engine.connect(id, network, endpoint);
  }

  #contextOf(allocation: AllocationRecord, { pools, dns }: LocalAddresses): ContainerContext {
    const { job_id: jobId, service_name: serviceName, slot, allocation_id: allocationId } = allocation;
    const networkName = JobNetworks.nameOf(jobId);
    const projectDir = this.#projectDirOf(jobId);
    const { dir: secretsDir } = this.secrets;
    const context = { ...this.#owner, jobId, serviceName, slot, allocationId, networkName, projectDir, secretsDir };
    if (dns === undefined) return context;
    const networks = new Set(this.networks.bridges(pools).map(({ network }) => network));
    return { ...context, overlay: { dns, networks } };
  }

  /** A name that is taken by this very allocation's container means that an earlier answer was lost. */
  async #createOrAdopt(
    name: string,
    { body, wanted: { allocation, spec } }: { body: ReturnType<typeof containerOptions>; wanted: Wanted },
  ): Promise<string> {
    try {
      return await this.#engine.create(name, body, { platform: spec.platform });
    } catch (error) {
      if (!(error instanceof EngineError) || error.code !== "conflict") throw error;
      const found = await this.#engine.inspect(name);
      if (!found) throw error;
      const isOurs =
        found.labels.get(LABELS.allocation) === allocation.allocation_id &&
        found.labels.get(LABELS.cluster) === this.#owner.clusterId &&
        found.labels.get(LABELS.node) === this.#owner.nodeId;
      if (isOurs) return found.id;
      throw new Refusal(
        `a container named ${name} exists on this node and is not this allocation's; rename or remove it`,
        {
          cause: error,
        },
      );
    }
  }

  async #start(id: string, { wanted, binds, neverRan, networks, signal }: StartDetails): Promise<void> {
    let seen: SeenSources | undefined;
    try {
      if (wanted && neverRan) await this.#connect(id, wanted);
      // What a container asks of another node in its first moment is to get there, and what it may not ask is not.
      const start = () => {
        throwIfAborted(signal);
        seen = this.#see(binds);
        return this.#engine.start(id);
      };
      await this.guard.during(id, { networks, start });
    } catch (error) {
      if (neverRan && error instanceof Refusal) await this.#engine.remove(id);
      if (!wanted || !(error instanceof EngineError)) throw error;
      // A container is bound to its network for good: when that was removed by hand, only a new one can start.
      const lostNetwork = error.code === "not_found" && /network/.test(error.message);
      if (lostNetwork) this.networks.forget(wanted.allocation.job_id);
      // An Engine that was killed in the middle of a start can't start that container any more, and what it began may run.
      const lostTrack = error.code === "lost_track";
      if (lostTrack) this.#engine.endStrays(id);
      // Nothing is in a container that never ran: where Docker fails on it, a new one is the better try.
      if (lostNetwork || lostTrack || (neverRan && error.code === "other")) await this.#engine.remove(id);
      throw error;
    }
    if (seen) await this.#checkSources(id, { seen, neverRan });
  }

  /** Paths of another machine say nothing here. */
  #see(binds: readonly Bind[]): SeenSources | undefined {
    return this.#engine.remote ? undefined : seeSources(binds, this.#projectsDir);
  }

  /** Ends a container at once that may have got what is not its job's. */
  async #checkSources(id: string, { seen, neverRan }: { seen: SeenSources; neverRan: boolean }): Promise<void> {
    const found = await this.#engine.inspect(id).catch(() => undefined);
    try {
      seen.check(found);
    } catch (error) {
      await (neverRan ? this.#engine.remove(id) : this.#engine.stop(id, { graceMs: 0 }));
      throw error;
    }
  }

  async #holderOf(port: number | undefined): Promise<string | undefined> {
    const all = await this.#engine.list().catch(() => []);
    return all.find(({ ports }) => ports.some(({ host_port }) => host_port === port))?.name;
  }
}

/** The networks that a container will be on, by their names on the node. */
function placesOf({ allocation: { job_id: jobId }, spec }: Wanted): string[] {
  return spec.network_mode === "bridge" || spec.network_mode === "default" ? ["bridge"] : networksOf(spec, jobId);
}

/** How long a container gets between its stop signal and its end, in milliseconds. */
export function graceOf({ labels }: Container): number {
  const label = Number(labels.get(LABELS.grace));
  return label >= 0 ? label : DEFAULT_GRACE_MS;
}

/** Which image the container is made of, so that replicas can be compared. */
function imageLabels(name: string, { id, digests }: EngineImage): Record<string, string> {
  const digest = digestOf(name, digests);
  return { [LABELS.image]: id, ...(digest !== undefined && { [LABELS.imageDigest]: digest }) };
}

function bindsOf({ mounts }: ServiceSpec, projectDir: string): Bind[] {
  return mounts.flatMap((mount) =>
    mount.type === "bind" ? [{ source: bindSource(mount.source, projectDir), target: mount.target }] : [],
  );
}

function hasSecrets({ mounts }: ServiceSpec): boolean {
  return mounts.some(({ type }) => type === "secret");
}

function throwIfAborted(signal: AbortSignal): void {
  if (signal.aborted) throw new EngineError("aborted", "the work is not wanted any more");
}
