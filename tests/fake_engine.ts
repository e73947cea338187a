/**
 * @module A Docker Engine in memory, for simulations: it answers late, loses requests, answers and events, goes down and comes
 * back, all by a seed and on a virtual clock. It behaves as Docker does where an executor could tell the difference.
 */
import { type Clock, sleep } from "../src/clock.ts";
import type { CreateBody } from "../src/container_options.ts";
import type { Container } from "../src/converge.ts";
import type {
  ContainerUsage,
  Engine,
  EngineImage,
  EngineInfo,
  EngineNetwork,
  EngineVolume,
  LogsOptions,
  NewNetwork,
  NewVolume,
  PullRequest,
  RegistryOptions,
  WatchOptions,
} from "../src/docker.ts";
import { EngineError } from "../src/docker_errors.ts";
import type { LogLine } from "../src/docker_logs.ts";
import type { RegistryLogin } from "../src/docker_images.ts";
import { LABELS } from "../src/model.ts";
import type { PublishedPort } from "../src/model_reports.ts";
import { platformOf, readPlatform } from "../src/placement_platform.ts";

/** How the Engine misbehaves: chances from 0 to 1 for each call or event. */
export type Faults = {
  /** The request never arrives; the caller hears of a timeout. */
  loseRequest: number;
  /** The request takes effect, its answer never arrives. */
  loseAnswer: number;
  /** The caller hears of a timeout, and the request takes effect a while later. */
  lateEffect: number;
  loseEvent: number;
};

/** How the containers of an image behave. */
export type Behaviour = {
  /** Ends by itself after this long. */
  exitAfterMs?: number;
  exitCode?: number;
  /** What each run writes at its end. */
  lines?: readonly string[];
  /** Takes this long to end after its stop signal (10 ms); more than the grace period means SIGKILL. */
  stopMs?: number;
  /** Has a health check, which passes this long after each start. */
  healthyAfterMs?: number;
};

type Bindings = Record<string, { HostIp?: string; HostPort?: string }[] | undefined>;
type FakeContainer = Container & {
  image: string;
  imageId: string;
  network: string;
  bindings: Bindings;
  run: number;
  written: LogLine[];
};

const NO_FAULTS: Faults = { loseRequest: 0, loseAnswer: 0, lateEffect: 0, loseEvent: 0 };
const TIMEOUT_MS = 15_000;
const FIRST_FREE_PORT = 32_768;

export class FakeEngine implements Engine {
  readonly host = "unix:///fake/docker.sock";
  readonly remote = false;
  engineId: string;
  faults: Faults = { ...NO_FAULTS };
  /** Least and most milliseconds that a call takes each way. */
  latency: readonly [number, number] = [1, 5];
  /** Images that are here, and how pulls of others end. */
  readonly images = new Set<string>(["busybox:latest"]);
  readonly registry = new Map<string, "found" | "missing" | "unreachable" | "denied">();
  /** Digests of tags, in the registry (`sha256:NAME` unless said) and here, and when those here were set. */
  readonly registryDigests = new Map<string, string>();
  readonly digests = new Map<string, string>();
  readonly taggedAt = new Map<string, number>();
  /** Networks that were asked for, in order. */
  readonly networksAsked: NewNetwork[] = [];
  /** Whose network a container runs in, and since when that one ran: `CONTAINER STARTED_AT`. */
  readonly joined = new Map<string, string>();
  /** What images that are here are of, by their names; the others are of linux/amd64. */
  readonly platforms = new Map<string, string>();
  /** What the registry has an image for, whatever is asked of it; absent: everything. */
  readonly onlyPlatform = new Map<string, string>();
  /** Containers that were put on a further network: `CONTAINER NETWORK`. */
  readonly connected: string[] = [];
  /** What was pulled, and the login of each question to a registry, in order. */
  readonly pulled: string[] = [];
  readonly logins: (RegistryLogin | undefined)[] = [];
  pullMs = 500;
  readonly behaviours = new Map<string, Behaviour>();
  /** Ports that something outside Docker listens on. */
  readonly hostPorts = new Set<number>();
  /** Calls that are never answered in time, and calls that are refused, by their names. */
  readonly hung = new Set<string>();
  readonly refused = new Set<string>();
  /** Calls of which so many, from 0 to 1, take effect only after the caller was told of a timeout, by their names. */
  readonly late = new Map<string, number>();
  /** How often each call was made. */
  readonly calls = new Map<string, number>();
  /** The most calls of each kind that were under way at once. */
  readonly mostAtOnce = new Map<string, number>();
  /** Names for which a container was refused because another one has it. */
  readonly conflicts = new Set<string>();
  /** Allocations of which two containers ran at the same time: must stay empty. */
  readonly doubled = new Set<string>();
  /** Grows whenever a container begins or ends to run, and with every container, network and volume that comes or goes. */
  changes = 0;
  /** How far the machine's wall clock, by which Docker tells times, is ahead of the true time. */
  clockAheadMs = 0;
  /** When the last run is due to end that ends by itself. */
  endsUntil = 0;
  /** When the last effect is due that comes late. */
  lateUntil = 0;

  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #containers = new Map<string, FakeContainer>();
  readonly #networks = new Map<string, EngineNetwork>();
  readonly #volumes = new Map<string, EngineVolume>();
  readonly #watchers = new Set<{ options: WatchOptions; end: () => void }>();
  readonly #underWay = new Map<string, number>();
  #up = true;
  #ids = 0;

  constructor(options: { clock: Clock; random: () => number; engineId?: string }) {
    this.#clock = options.clock;
    this.#random = options.random;
    this.engineId = options.engineId ?? "ENGINE";
  }

  // ---- What a test sees and does ------------------------------------------------------------------------------------

  get containers(): readonly Container[] {
    return [...this.#containers.values()];
  }

  get networkNames(): string[] {
    return [...this.#networks.values()].map(({ name }) => name);
  }

  get volumeNames(): string[] {
    return [...this.#volumes.keys()];
  }

  /** Whether it is up, answers at once, and loses nothing. */
  get isWell(): boolean {
    return this.#up && this.latency[1] <= 5 && Object.values(this.faults).every((chance) => chance === 0);
  }

  /** The running containers of an allocation. */
  running(allocationId: string): Container[] {
    const found: Container[] = [];
    for (const container of this.#containers.values()) {
      const { labels, state } = container;
      if (state === "running" && labels.get(LABELS.allocation) === allocationId) found.push(container);
    }
    return found;
  }

  /** Whether a container runs in the network of one that is gone, or that ran anew since. */
  isStranded(id: string): boolean {
    const joined = this.joined.get(id);
    if (joined === undefined || this.#containers.get(id)?.state !== "running") return false;
    const other = this.#containers.get(joined.split(" ")[0] ?? "");
    return other?.state !== "running" || joined !== `${other.id} ${other.startedAt}`;
  }

  /** Nothing is answered any more; whoever asks hears of a timeout. */
  freeze(): void {
    this.faults.loseRequest = 1;
  }

  /** dockerd dies, by default with its containers; nothing answers until `comeUp`. */
  goDown({ containersSurvive = false } = {}): void {
    this.#up = false;
    if (!containersSurvive) for (const { id } of this.containers) this.kill(id, 255);
    for (const { end } of this.#watchers) end();
  }

  comeUp(): void {
    this.#up = true;
  }

  /** A container's process ends. */
  kill(id: string, exitCode = 137, how: Pick<Container, "oomKilled" | "memoryLimit" | "error"> = {}): void {
    const container = this.#containers.get(id);
    if (container?.state !== "running") return;
    for (const text of this.behaviours.get(container.image)?.lines ?? [])
      container.written.push({ at: this.#clock.now(), text });
    Object.assign(container, how);
    Object.assign(container, { state: "exited", exitCode, finishedAt: this.#wallClock(), ports: [] });
    delete container.health;
    container.run++;
    this.changes++;
    this.#emit(container, "die");
  }

  /** A running container's health check comes to another result. */
  setHealth(id: string, health: NonNullable<Container["health"]>): void {
    const container = this.#containers.get(id);
    if (container?.state !== "running" || container.health === health) return;
    container.health = health;
    this.changes++;
    this.#emit(container, "health_status");
  }

  /** From now on a container has them, as an event of its tells. */
  giveAddresses(id: string, addresses: NonNullable<Container["addresses"]>): void {
    const container = this.#containers.get(id);
    if (!container) throw new Error(`no container ${id}`);
    Object.assign(container, { addresses });
    this.#emit(container, "unpause");
  }

  /** Someone removes a container behind the executor's back. */
  removeByHand(id: string): void {
    const container = this.#containers.get(id);
    this.kill(id);
    if (!container || !this.#containers.delete(id)) return;
    this.changes++;
    this.#emit(container, "destroy");
  }

  /** Someone else's container, running; returns its id. */
  runByHand(options: { name: string; image?: string; labels?: Record<string, string>; hostPort?: number }): string {
    const { name, image = "busybox:latest", labels = {}, hostPort } = options;
    const bindings: Bindings = hostPort === undefined ? {} : { "80/tcp": [{ HostPort: String(hostPort) }] };
    const container = this.#add(name, { image, network: "bridge", bindings, labels });
    this.#run(container);
    return container.id;
  }

  addNetwork(network: { name: string; subnet: string; labels?: Record<string, string> }): void {
    const { name, subnet, labels = {} } = network;
    const id = this.#newNetworkId();
    this.#networks.set(id, { id, name, subnets: [subnet], labels: new Map(Object.entries(labels)) });
    this.changes++;
  }

  addVolume(name: string, labels: Record<string, string> = {}): void {
    this.#volumes.set(name, { name, labels: new Map(Object.entries(labels)) });
    this.changes++;
  }

  // ---- Engine -------------------------------------------------------------------------------------------------------

  info(): Promise<EngineInfo> {
    return this.#call("info", () => ({
      engineId: this.engineId,
      dockerVersion: "20.10.24",
      apiVersion: "1.41",
      os: "linux",
      arch: "amd64",
      cpus: 2,
      memoryBytes: 8 * 2 ** 30,
      dataRoot: "/var/lib/docker",
      genericResources: [],
      hasGpus: false,
    }));
  }

  ping(): Promise<void> {
    return this.#call("ping", () => {});
  }

  list(): Promise<Container[]> {
    return this.#call("list", () =>
      [...this.#containers.values()].map(({ id, name, labels, imageId, state, ports, createdAt, health }) => ({
        id,
        name,
        labels,
        imageId,
        state,
        ports: [...ports],
        createdAt,
        ...(health && { health }),
      })),
    );
  }

  inspect(idOrName: string): Promise<Container | undefined> {
    return this.#call("inspect", () => {
      const found = this.#containers.get(idOrName) ?? this.#byName(idOrName);
      if (!found) return undefined;
      const { image: _image, network: _network, bindings: _bindings, run: _run, written: _, ...container } = found;
      return { ...container, ports: [...container.ports] };
    });
  }

  create(name: string, body: CreateBody): Promise<string> {
    return this.#call("create", () => {
      const image = body.Image ?? "";
      if (!this.images.has(image)) throw new EngineError("image_not_found", `No such image: ${image}`);
      const taken = this.#byName(name);
      if (taken) {
        this.conflicts.add(name);
        throw new EngineError(
          "conflict",
          `Conflict. The container name "/${name}" is already in use by container "${taken.id}".`,
        );
      }
      const { HostConfig: host, Labels: labels } = body;
      const bindings = (host?.PortBindings ?? {}) as Bindings;
      const added = this.#add(name, { image, network: host?.NetworkMode ?? "bridge", bindings, labels: labels ?? {} });
      added.binds = (host?.Binds ?? []).map((bind) => {
        const [source = "", target = ""] = bind.split(":");
        return { source, target };
      });
      return added.id;
    });
  }

  start(id: string): Promise<void> {
    return this.#call("start", () => {
      const container = this.#get(id);
      if (container.state === "running") return;
      if (container.state !== "created" && container.state !== "exited") {
        throw new EngineError("conflict", `cannot start a container that is ${container.state}`);
      }
      const { network } = container;
      const joined = /^container:(.+)$/.exec(network)?.[1];
      if (joined !== undefined) {
        if (this.#containers.get(joined)?.state !== "running") {
          throw new EngineError("conflict", `cannot join network of a non running container: ${joined}`);
        }
        this.joined.set(id, `${joined} ${this.#get(joined).startedAt}`);
      } else if (network !== "bridge" && !this.networkNames.includes(network)) {
        throw new EngineError("not_found", `network ${network} not found`);
      }
      this.#run(container);
    });
  }

  async stop(id: string, { graceMs, signal }: { graceMs: number; signal?: AbortSignal }): Promise<void> {
    const container = await this.#call("stop", () => this.#containers.get(id));
    if (container?.state !== "running") return;
    const { stopMs = 10 } = this.behaviours.get(container.image) ?? {};
    const { run } = container;
    const ended = sleep(this.#clock, Math.min(stopMs, graceMs)).then(() => {
      if (container.run === run) this.kill(id, stopMs > graceMs ? 137 : 0);
    });
    await Promise.race([ended, aborted(signal)]);
    if (signal?.aborted) throw new EngineError("aborted", "given up");
    this.#mustBeUp();
  }

  remove(id: string): Promise<void> {
    return this.#call("remove", () => {
      const container = this.#containers.get(id);
      if (!container) return;
      this.kill(id);
      this.#containers.delete(id);
      this.changes++;
      this.#emit(container, "destroy");
    });
  }

  endStrays(): void {}

  logs(id: string, { tail }: LogsOptions): Promise<LogLine[]> {
    return this.#call("logs", () => this.#containers.get(id)?.written.slice(-tail) ?? []);
  }

  usage(id: string): Promise<ContainerUsage | undefined> {
    return this.#call("usage", () =>
      this.#containers.get(id)?.state === "running" ? { memoryBytes: 1_000_000, cpuNs: 0 } : undefined,
    );
  }

  image(name: string): Promise<EngineImage | undefined> {
    return this.#call("image", () => {
      if (!this.images.has(name)) return this.#imageById(name);
      const digest = this.digests.get(name);
      return {
        id: this.#imageId(name),
        tags: this.#tagsOf(this.#imageId(name)),
        digests: digest === undefined ? [] : [`${repositoryOf(name)}@${digest}`],
        taggedAt: this.taggedAt.get(name) ?? 0,
        platform: readPlatform(this.platforms.get(name) ?? "linux/amd64") ?? platformOf("", ""),
      };
    });
  }

  resolve(image: string, { login }: RegistryOptions): Promise<string> {
    return this.#call("resolve", () => this.#ask(image, login));
  }

  async pull(image: string, { signal, login, onProgress, platform }: PullRequest): Promise<void> {
    await this.#call("pull", async () => {
      const layer = "0123456789ab";
      for (let step = 1; step <= 10; step++) {
        await sleep(this.#clock, this.pullMs / 10, signal);
        if (signal?.aborted) throw new EngineError("aborted", "given up");
        onProgress?.({ layer, status: "Downloading", currentBytes: step * 100, totalBytes: 1000 });
      }
      const [repository = "", digest] = image.split("@");
      const name = [...this.registry.keys()].find((one) => repositoryOf(one) === repository) ?? image;
      this.pulled.push(image);
      this.digests.set(image, digest ?? this.#ask(name, login));
      this.platforms.set(image, this.onlyPlatform.get(name) ?? platform ?? "linux/amd64");
      this.images.add(image);
    });
  }

  untag(name: string): Promise<void> {
    return this.#call("untag", () => {
      const id = this.#imageId(name);
      const isLast = [...this.images].filter((one) => this.#imageId(one) === id).length === 1;
      if (isLast && this.containers.some(({ imageId }) => imageId === id))
        throw new EngineError("conflict", `unable to remove ${name}: a container is using its referenced image`);
      this.images.delete(name);
    });
  }

  #imageId(name: string): string {
    return `id of ${this.digests.get(name) ?? name}`;
  }

  #tagsOf(id: string): string[] {
    return [...this.images].filter((name) => !name.includes("@") && this.#imageId(name) === id);
  }

  #imageById(id: string): EngineImage | undefined {
    const names = [...this.images].filter((name) => this.#imageId(name) === id);
    return names.length === 0 ? undefined : { id, tags: this.#tagsOf(id), digests: [] };
  }

  tag(image: string, name: string): Promise<void> {
    return this.#call("tag", () => {
      this.images.add(name);
      this.digests.set(name, this.digests.get(image) ?? "");
      this.platforms.set(name, this.platforms.get(image) ?? "linux/amd64");
      this.taggedAt.set(name, this.#wallClock());
    });
  }

  /** What the registry says: the digest that a name has there now. */
  #ask(image: string, login: RegistryLogin | undefined): string {
    this.logins.push(login);
    switch (this.registry.get(image)) {
      case "found":
        return this.registryDigests.get(image) ?? digestOf(image);
      case "denied":
        if (login) return digestOf(image);
        throw new EngineError("denied", "no basic auth credentials");
      case "unreachable":
        throw new EngineError("unreachable_registry", "dial tcp 10.0.0.9:5000: connect: connection refused");
      default:
        throw new EngineError("image_not_found", `manifest for ${image} not found: manifest unknown`);
    }
  }

  networks(): Promise<EngineNetwork[]> {
    return this.#call("networks", () => [...this.#networks.values()]);
  }

  createNetwork(network: NewNetwork) {
    const { name, ipam, labels } = network;
    const subnet = ipam.config[0]?.subnet ?? "";
    return this.#call("createNetwork", () => {
      this.networksAsked.push(network);
      const all = [...this.#networks.values()];
      if (all.some((other) => other.name === name)) {
        throw new EngineError("conflict", `network with name ${name} already exists`);
      }
      if (all.some((other) => subnet !== "" && other.subnets.includes(subnet))) {
        throw new EngineError("pool_overlap", "Pool overlaps with other one on this address space");
      }
      const id = this.#newNetworkId();
      this.#networks.set(id, { id, name, subnets: [subnet], labels: new Map(Object.entries(labels)) });
      this.changes++;
      return id;
    });
  }

  connect(containerId: string, network: string): Promise<void> {
    return this.#call("connect", () => {
      if (!this.networkNames.includes(network)) throw new EngineError("not_found", `network ${network} not found`);
      this.connected.push(`${this.#get(containerId).name} ${network}`);
    });
  }

  removeNetwork(id: string): Promise<void> {
    return this.#call("removeNetwork", () => {
      const network = this.#networks.get(id);
      const isInUse = this.containers.some((c) => c.state === "running" && this.#get(c.id).network === network?.name);
      if (isInUse) throw new EngineError("conflict", `network ${network?.name} has active endpoints`);
      this.#networks.delete(id);
      this.changes++;
    });
  }

  volumes(labels: string[]): Promise<EngineVolume[]> {
    return this.#call("volumes", () =>
      [...this.#volumes.values()].filter((volume) => hasLabels(volume.labels, labels)),
    );
  }

  volume(name: string): Promise<EngineVolume | undefined> {
    return this.#call("volume", () => this.#volumes.get(name));
  }

  createVolume({ name, labels }: NewVolume): Promise<void> {
    return this.#call("createVolume", () => {
      if (!this.#volumes.has(name)) this.addVolume(name, labels);
    });
  }

  removeVolume(name: string): Promise<void> {
    return this.#call("removeVolume", () => {
      this.#volumes.delete(name);
      this.changes++;
    });
  }

  async watch(options: WatchOptions): Promise<void> {
    await this.#call("watch", () => {});
    const { promise, resolve } = Promise.withResolvers<void>();
    const watcher = { options, end: resolve };
    this.#watchers.add(watcher);
    options.onOpen();
    await Promise.race([promise, aborted(options.signal)]);
    this.#watchers.delete(watcher);
  }

  // ---- Inside -------------------------------------------------------------------------------------------------------

  async #call<T>(name: string, effect: () => T | Promise<T>): Promise<T> {
    this.calls.set(name, (this.calls.get(name) ?? 0) + 1);
    const underWay = (this.#underWay.get(name) ?? 0) + 1;
    this.#underWay.set(name, underWay);
    this.mostAtOnce.set(name, Math.max(underWay, this.mostAtOnce.get(name) ?? 0));
    try {
      await this.#delay();
      this.#mustBeUp();
      if (this.hung.has(name) || this.#happens("loseRequest")) await this.#timeOut();
      if (this.refused.has(name)) throw new EngineError("other", `${name} is refused`);
      if (this.#happens("lateEffect") || this.#isLate(name)) {
        // Many come when they were just asked for again.
        const delayMs = TIMEOUT_MS + this.#random() * (this.#random() < 0.5 ? 3_000 : 60_000);
        this.lateUntil = Math.max(this.lateUntil, this.#clock.now() + delayMs);
        this.#clock.after(delayMs, () => {
          // Nobody hears what became of it.
          if (this.#up) void (async () => effect())().catch(() => {});
        });
        await this.#timeOut();
      }
      const result = await effect();
      await this.#delay();
      this.#mustBeUp();
      if (this.#happens("loseAnswer")) await this.#timeOut();
      return result;
    } finally {
      this.#underWay.set(name, (this.#underWay.get(name) ?? 1) - 1);
    }
  }

  #isLate(name: string): boolean {
    return this.late.size > 0 && this.#random() < (this.late.get(name) ?? 0);
  }

  #happens(fault: keyof Faults): boolean {
    return this.faults[fault] > 0 && this.#random() < this.faults[fault];
  }

  async #timeOut(): Promise<never> {
    await sleep(this.#clock, TIMEOUT_MS);
    throw new EngineError("timeout", `Docker did not answer on ${this.host} within ${TIMEOUT_MS / 1000} s`);
  }

  #wallClock(): number {
    return this.#clock.now() + this.clockAheadMs;
  }

  #delay(): Promise<void> {
    const [least, most] = this.latency;
    return sleep(this.#clock, least + this.#random() * (most - least));
  }

  #mustBeUp(): void {
    if (!this.#up) throw new EngineError("unavailable", `Docker does not answer on ${this.host}: connection refused`);
  }

  #emit({ id, labels }: Container, action: string): void {
    for (const { options } of this.#watchers) {
      if (!hasLabels(labels, options.labels) || this.#happens("loseEvent")) continue;
      this.#clock.after(this.#random() * this.latency[1], () => {
        if (!options.signal.aborted) options.onEvent({ containerId: id, action });
      });
    }
  }

  #add(name: string, options: { image: string; network: string; bindings: Bindings; labels: Record<string, string> }) {
    const { labels, ...rest } = options;
    const container: FakeContainer = {
      ...rest,
      id: this.#newId("container"),
      name,
      labels: new Map(Object.entries(labels)),
      imageId: this.#imageId(options.image),
      state: "created",
      ports: [],
      createdAt: this.#wallClock(),
      exitCode: 0,
      run: 0,
      written: [],
    };
    this.#containers.set(container.id, container);
    this.changes++;
    this.#emit(container, "create");
    return container;
  }

  /** The addresses that a container has from its start, if it has some. */
  protected addressesOf(_network: EngineNetwork | undefined): Container["addresses"] {
    return undefined;
  }

  /** A container has just started. */
  protected ran(_container: Container): void {}

  #run(container: FakeContainer): void {
    const ports = this.#publish(container);
    const addresses = this.addressesOf([...this.#networks.values()].find(({ name }) => name === container.network));
    Object.assign(container, { state: "running", ports, startedAt: this.#wallClock(), exitCode: 0 });
    if (addresses) container.addresses = addresses;
    const run = ++container.run;
    this.changes++;
    const allocation = container.labels.get(LABELS.allocation);
    if (allocation !== undefined && this.running(allocation).length > 1) this.doubled.add(allocation);
    const { exitAfterMs, exitCode = 0, healthyAfterMs } = this.behaviours.get(container.image) ?? {};
    if (healthyAfterMs !== undefined) {
      container.health = "starting";
      this.#clock.after(healthyAfterMs, () => {
        if (container.run === run) this.setHealth(container.id, "healthy");
      });
    }
    if (exitAfterMs !== undefined) {
      this.endsUntil = Math.max(this.endsUntil, this.#clock.now() + exitAfterMs);
      this.#clock.after(exitAfterMs, () => {
        if (container.run === run) this.kill(container.id, exitCode);
      });
    }
    this.#emit(container, "start");
    this.ran(container);
  }

  #publish({ bindings }: FakeContainer): PublishedPort[] {
    const used = new Set([...this.hostPorts, ...this.containers.flatMap(({ ports }) => ports.map((p) => p.host_port))]);
    return Object.entries(bindings).flatMap(([key, list]) =>
      (list ?? []).map(({ HostIp = "", HostPort = "" }) => {
        const [first = FIRST_FREE_PORT, last = first] = HostPort === "" ? [] : HostPort.split("-").map(Number);
        let port = first;
        while (used.has(port) && (port < last || HostPort === "")) port++;
        if (used.has(port)) {
          const message = `Bind for 0.0.0.0:${port} failed: port is already allocated`;
          throw new EngineError("port_in_use", message, { port });
        }
        used.add(port);
        const [containerPort, protocol] = key.split("/");
        return {
          container_port: Number(containerPort),
          protocol: protocol as PublishedPort["protocol"],
          host_ip: HostIp === "" ? "0.0.0.0" : HostIp,
          host_port: port,
        };
      }),
    );
  }

  #get(id: string): FakeContainer {
    const container = this.#containers.get(id);
    if (!container) throw new EngineError("not_found", `No such container: ${id}`);
    return container;
  }

  #byName(name: string): FakeContainer | undefined {
    for (const container of this.#containers.values()) if (container.name === name) return container;
    return undefined;
  }

  /** Docker names the bridge after the first 12 characters. */
  #newNetworkId(): string {
    return `net${++this.#ids}-${this.engineId.toLowerCase()}`;
  }

  #newId(kind: string): string {
    return `${this.engineId.toLowerCase()}-${kind}-${++this.#ids}`;
  }
}

/** What the registry has for a tag that no test says more of. */
function digestOf(image: string): string {
  return `sha256:${image.replaceAll(/[^a-zA-Z0-9]/g, "-")}`;
}

function repositoryOf(image: string): string {
  return image.replace(/@.*$/, "").replace(/:[^/:]*$/, "");
}

function hasLabels(labels: ReadonlyMap<string, string>, wanted: readonly string[]): boolean {
  return wanted.every((text) => {
    const at = text.indexOf("=");
    return labels.get(text.slice(0, at)) === text.slice(at + 1);
  });
}

function aborted(signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) resolve();
    else signal?.addEventListener("abort", () => resolve(), { once: true });
  });
}
