/**
 * @module One process of Cacophony: builds the parts, wires them, starts and stops them. Owns the decision of what this process
 * is (the master of a new cluster, a node that joins one, or what its data directory says) and nothing of what the parts do.
 */
import { lookup } from "node:dns/promises";
import { existsSync, readFileSync } from "node:fs";
import { hostname, networkInterfaces } from "node:os";
import type { Address } from "./address.ts";
import { DEFAULT_PORT, formatAddress, isLoopback, isWildcard, parseAddress } from "./address.ts";
import type { LocalNode } from "./api.ts";
import { createApi } from "./api.ts";
import { systemClock } from "./clock.ts";
import type { Identity, Settings } from "./data_dir.ts";
import { DataDir, newIdentity } from "./data_dir.ts";
import { type Engine, openEngine } from "./docker.ts";
import { nodeLogins } from "./docker_login.ts";
import { DnsServer } from "./dns_server.ts";
import { EntryProxy } from "./entry_proxy.ts";
import { Executor } from "./executor.ts";
import { findPlace } from "./executor_secrets.ts";
import type { Policy } from "./job_policy.ts";
import { readPolicy } from "./job_policy.ts";
import type { Log } from "./log.ts";
import { Membership } from "./membership.ts";
import type { Hello, Peer, PeerInfo, SecretRequest, Welcome } from "./model.ts";
import { DEFAULT_NETWORK_CIDR, isPassing, PROTOCOL_VERSION, StartError } from "./model.ts";
import { HostMeter } from "./resources.ts";
import { Overlay } from "./overlay.ts";
import { OverlayKernel } from "./overlay_kernel.ts";
import { NAMES_PORT } from "./overlay_plan_firewall.ts";
import { Scheduler } from "./scheduler.ts";
import { Sealer, SealError } from "./seal.ts";
import { Session } from "./session.ts";
import { openSqliteStore } from "./store.ts";
import type { Listener, Transport } from "./transport.ts";
import { dialSelf, fetchChunk, fetchSecret, listen, localAddressTowards, networkTransport } from "./transport.ts";

export type StartOptions = {
  /** `resume`: whatever the data directory says. */
  command: "bootstrap" | "join" | "resume";
  /** For `join`: the address of any node of the cluster. */
  peer?: string;
  dataDir: string;
  /** What the command line said; what it left out stays as the node was last started. */
  settings: Settings;
  /** Where Docker is when nothing was ever said. */
  defaultDockerHost: string;
  /** Where the docker command line keeps its registry logins, and where its credential helpers are. */
  dockerLogins: { configDir: string; searchPath: string };
  /** Directories that may be a tmpfs, for the secrets of containers, the best first. */
  secretRoots: readonly string[];
  version: string;
  log: Log;
};

const DEFAULT_HEARTBEAT_MS = 1_000;
const DEFAULT_NODE_TIMEOUT_MS = 4_000;
/** Percent of Docker's disk in use from which it takes no new containers. */
const DEFAULT_DISK_LIMIT = 90;
/** One lost heartbeat is no reason to move a machine's containers. */
const MIN_TIMEOUT_HEARTBEATS = 3;
/** SIGTERM has to end the process within 2 s, whatever a part is waiting for. */
const STOP_TIMEOUT_MS = 1_500;

/** A running node. */
export class Node implements LocalNode {
  /** Resolves with the reason when the node can't go on. */
  readonly failed: Promise<StartError>;
  /** Resolves when the node has left its cluster. */
  readonly left: Promise<void>;
  readonly version: string;
  readonly #fail: (error: StartError) => void;
  readonly #leave: () => void;
  readonly #log: Log;
  readonly #data: DataDir;
  readonly #bind: Address;
  readonly #instance = crypto.randomUUID();
  #advertise: string;
  #identity: Identity;
  /** IPv4 address of this machine that containers of other nodes are reached by. */
  #underlay: string | undefined;
  #overlay: Overlay | undefined;
  #dns: DnsServer | undefined;
  #executor: Executor | undefined;
  #session: Session | undefined;
  #scheduler: Scheduler | undefined;
  #policy: Policy | undefined;
  #membership: Membership | undefined;
  #listener: Listener | undefined;

  private constructor(
    data: DataDir,
    { identity, bind, options }: { identity: Identity; bind: Address; options: StartOptions },
  ) {
    const failed = Promise.withResolvers<StartError>();
    this.failed = failed.promise;
    this.#fail = failed.resolve;
    const left = Promise.withResolvers<void>();
    this.left = left.promise;
    this.#leave = left.resolve;
    this.version = options.version;
    this.#log = options.log;
    this.#data = data;
    this.#identity = identity;
    this.#bind = bind;
    this.#advertise = "";
  }

  /**
   * Starts a node; resolves once it listens. Everything else (Docker, the master) may come later.
   * @throws StartError for all that makes this start impossible; nothing was changed then.
   */
  static async start(options: StartOptions): Promise<Node> {
    const data = DataDir.open(options.dataDir);
    if (data.exposed.length > 0)
      options.log.warn(
        "others can read files of the data directory, and their modes cannot be changed: chmod 600 them",
        {
          data: data.path,
          files: data.exposed,
        },
      );
    try {
      const identity = await decideIdentity(data, options);
      const bind = bindAddress(identity);
      const node = new Node(data, { identity, bind, options });
      await node.#start(options);
      return node;
    } catch (error) {
      data.close();
      throw error;
    }
  }

  get nodeId(): string {
    return this.#identity.node_id;
  }

  /** The address at which others reach this node. */
  get address(): string {
    return this.#advertise;
  }

  faults(): string[] {
    const faults: string[] = [];
    const engine = this.#executor?.engineStatus();
    if (engine?.state === "unready") faults.push(engine.reason);
    if (!this.#session?.lost) faults.push("no session with the master");
    return faults;
  }

  master() {
    return { address: this.#masterPeer()?.address, lost: this.#session?.lost };
  }

  peerInfo(): PeerInfo {
    const { cluster_id, node_id, peers } = this.#identity;
    const master = this.#masterPeer();
    return {
      ...(cluster_id === undefined ? {} : { cluster_id }),
      node_id,
      protocol: PROTOCOL_VERSION,
      version: this.version,
      ...(master ? { master } : {}),
      peers,
    };
  }

  /** Stops within 2 s; containers keep running. */
  async stop(): Promise<void> {
    const parts = async () => {
      // First, so that the end of the master's own session is no news to it.
      this.#membership?.stop();
      await this.#session?.stop();
      await Promise.all([this.#executor?.stop(), this.#listener?.stop(), this.#overlay?.stop(), this.#dns?.stop()]);
      await this.#scheduler?.stop();
    };
    await Promise.race([parts(), Bun.sleep(STOP_TIMEOUT_MS)]);
    this.#data.close();
  }

  async #start(options: StartOptions): Promise<void> {
    const { log } = options;
    this.#listener = listen(this.#bind, {
      fetch: createApi({
        local: this,
        scheduler: () => this.#scheduler,
        dataDir: this.#data.path,
        secretsDir: (nodeId) => secretsDir(options.secretRoots, nodeId),
        secret: (request) => this.#secretFor(request),
        policy: () => this.#policy,
        hold: () => this.#membership?.hold,
        reschedule: () => this.#membership?.reschedule() ?? [],
        log,
      }).fetch,
      session: () => this.#membership && ((channel) => this.#membership!.accept(channel)),
    });
    try {
      this.#advertise = await advertisedAddress(this.#bind, this.#identity);
      this.#warnOfExposure();
      this.#data.save(this.#identity);
      if (this.#identity.role === "master") await this.#startMaster();
      this.#underlay = await underlayOf(this.#advertise);
      const engine = openEngine(this.#identity.settings.docker_host ?? options.defaultDockerHost);
      this.#startOverlay(options, engine);
      this.#startExecutor(options, engine);
      this.#startSession();
    } catch (error) {
      await this.#listener.stop();
      throw error;
    }
    log.info("this node is up", {
      role: this.#identity.role,
      listens: formatAddress(this.#bind),
      address: this.#advertise,
      data: this.#data.path,
    });
  }

  async #startMaster(): Promise<void> {
    const { cluster_id, node_id, has_state, seen_term, settings } = this.#identity;
    if (cluster_id === undefined) throw new Error("a master has an identity before it starts");
    const { statePath } = this.#data;
    if (has_state && !existsSync(statePath)) {
      throw new StartError(
        `the cluster state ${statePath} is missing: restore it from a backup; an empty one would make the nodes remove all containers`,
      );
    }
    this.#policy = policyOf(settings.policy_file);
    const heartbeatIntervalMs = settings.heartbeat_interval_ms ?? DEFAULT_HEARTBEAT_MS;
    const nodeTimeoutMs = settings.node_timeout_ms ?? DEFAULT_NODE_TIMEOUT_MS;
    if (nodeTimeoutMs < heartbeatIntervalMs * MIN_TIMEOUT_HEARTBEATS) {
      throw new StartError(
        `--node-timeout (${nodeTimeoutMs} ms) must be at least ${MIN_TIMEOUT_HEARTBEATS} times --heartbeat-interval (${heartbeatIntervalMs} ms)`,
      );
    }
    const common = { clock: systemClock, log: this.#log };
    const scheduler = new Scheduler({
      ...common,
      newId,
      store: openSqliteStore(statePath),
      sealer: sealerOf(settings, this.#data),
      random: Math.random,
      ...(settings.rebalance && { rebalance: settings.rebalance }),
      ...(settings.strategy && { strategy: settings.strategy }),
      onFenced: () => this.#fail(new StartError("another master has taken over this cluster's state; this one ends")),
    });
    const fresh = {
      cluster_id,
      created_at: systemClock.now(),
      network_mode: settings.network ?? "vxlan",
      network_cidr: settings.network_cidr ?? DEFAULT_NETWORK_CIDR,
    };
    await scheduler.start(fresh, { seen: seen_term, written: has_state });
    this.#update({ has_state: true });
    this.#scheduler = scheduler;
    this.#membership = new Membership({
      ...common,
      scheduler,
      self: { node_id, address: this.#advertise },
      heartbeatIntervalMs,
      nodeTimeoutMs,
      ...(settings.engine_timeout_ms !== undefined && { engineTimeoutMs: settings.engine_timeout_ms }),
      ...(settings.mass_failure_hold_ms !== undefined && { massFailureHoldMs: settings.mass_failure_hold_ms }),
    });
    this.#membership.start();
  }

  #startOverlay({ dockerLogins: { searchPath } }: StartOptions, { remote, host }: Engine): void {
    const log = this.#log;
    const common = { clock: systemClock, random: Math.random, log };
    const dns = new DnsServer({
      ...common,
      port: NAMES_PORT,
      names: { lookup: (question, from) => overlay.lookup(question, from) },
    });
    const overlay = new Overlay({
      ...common,
      kernel: new OverlayKernel({ log, searchPath }),
      ...(remote && {
        unfit: `the cluster's network needs the Docker Engine on the node's own machine; this node's is at ${host}`,
      }),
      serveNames: (addresses) => void dns.listen(addresses),
      newEntries: (selfNodeId) => new EntryProxy({ ...common, selfNodeId }),
      dataDir: this.#data.path,
      onChange: () => this.#session?.notify(),
    });
    this.#dns = dns;
    this.#overlay = overlay;
  }

  #startExecutor({ dockerLogins, secretRoots }: StartOptions, engine: Engine): void {
    const { settings, seen_term, cluster_id, node_id } = this.#identity;
    const { disk_limit: diskLimit = DEFAULT_DISK_LIMIT } = settings;
    const overlay = this.#overlay;
    if (!overlay) throw new Error("the network comes first");
    const executor = new Executor({
      engine,
      meter: new HostMeter({
        engine,
        clock: systemClock,
        caps: { memoryBytes: settings.memory_bytes, cpus: settings.cpus },
      }),
      clock: systemClock,
      random: Math.random,
      log: this.#log,
      dataDir: this.#data.path,
      seenTerm: seen_term,
      ...(settings.image_gc_ms !== undefined && settings.image_gc_ms > 0 && { imageGcMs: settings.image_gc_ms }),
      ...(diskLimit > 0 && { diskLimit }),
      isolatedSince: () => (this.#session?.lost ? undefined : this.#session?.lastHeard),
      nodeLogin: nodeLogins({ ...dockerLogins, log: this.#log }),
      fetchChunk: (chunkHash) => fetchChunk(this.#masterAddress(), chunkHash),
      secrets: { roots: secretRoots, fetch: (secretId) => this.#fetchSecret(secretId) },
      overlay,
      onChange: () => {
        const snapshot = executor.snapshot();
        if (snapshot) overlay.setLocal(snapshot.allocations);
        this.#session?.notify();
      },
    });
    this.#executor = executor;
    if (cluster_id !== undefined && node_id !== undefined)
      this.#executor.adopt({ clusterId: cluster_id, nodeId: node_id });
  }

  #startSession(): void {
    const executor = this.#executor;
    if (!executor) throw new Error("the executor comes first");
    this.#session = new Session({
      transport: this.#identity.role === "master" ? this.#selfTransport() : networkTransport,
      executor: {
        assign: (assignments) => executor.assign(assignments),
        snapshot: () => executor.snapshot(),
        heartbeat: () => ({ ...executor.heartbeat(), ...this.#overlayReport() }),
      },
      clock: systemClock,
      random: Math.random,
      log: this.#log,
      hello: () => this.#hello(executor),
      addresses: () => this.#knownAddresses(),
      onWelcome: (welcome) => this.#welcomed(welcome, executor),
      onPeers: (peers) => this.#update({ peers }),
      onNetwork: (message) => this.#overlay?.receive(message),
      onLeft: () => this.#forgetCluster(),
      onLost: () => executor.noticeMaster(),
      onRefused: ({ code, message }) => {
        // A machine that was reset comes back before the master has noticed that it was gone: it waits.
        if (isPassing(code)) this.#log.warn("the master refused this node for now", { reason: message });
        else this.#fail(new StartError(`the master refused this node: ${message}`));
      },
    });
    const session = this.#session;
    // The hello carries the engine's id, so that a second node on one engine is noticed before it becomes a member.
    void executor.start().then(() => session.start(this.#masterPeer()));
  }

  async #fetchSecret(secret_id: string): Promise<Uint8Array> {
    return fetchSecret(this.#masterAddress(), { node_id: this.nodeId, instance: this.#instance, secret_id });
  }

  /** What this master hands out: only to the process that has the session of a node which is to run what mounts the secret. */
  #secretFor(request: SecretRequest): Uint8Array | undefined {
    return this.#membership?.isConnected(request) ? this.#scheduler?.secrets.valueFor(request) : undefined;
  }

  #masterAddress(): string {
    const address = this.#identity.role === "master" ? this.#selfAddress() : this.#masterPeer()?.address;
    if (address === undefined) throw new Error("this node has not heard of a master yet");
    return address;
  }

  #overlayReport() {
    const overlay = this.#overlay?.report();
    return overlay ? { overlay } : {};
  }

  #selfAddress(): string {
    const host = isWildcard(this.#bind.host) ? (this.#bind.host === "::" ? "::1" : "127.0.0.1") : this.#bind.host;
    return formatAddress({ host, port: this.#bind.port });
  }

  /** The master is a node like any other; it reaches itself within its process, whatever address others see. */
  #selfTransport(): Transport {
    return {
      askPeer: async () => this.peerInfo(),
      dial: async (_, handlers) => {
        if (!this.#membership) throw new Error("this node's master has not started");
        return dialSelf((channel) => this.#membership!.accept(channel), handlers);
      },
    };
  }

  #hello(executor: Executor): Hello {
    const { cluster_id, node_id, settings } = this.#identity;
    return {
      type: "hello",
      protocol: PROTOCOL_VERSION,
      ...(cluster_id === undefined ? {} : { cluster_id }),
      node_id,
      instance: this.#instance,
      node_name: settings.node_name ?? hostname(),
      address: this.#advertise,
      ...(this.#underlay === undefined ? {} : { underlay: this.#underlay }),
      labels: settings.labels ?? [],
      engine: executor.engineStatus(),
      version: this.version,
    };
  }

  #welcomed({ cluster_id, node_id, term, master, peers }: Welcome, executor: Executor): void {
    const seen_term = Math.max(term, this.#identity.seen_term);
    this.#update({ cluster_id, node_id, seen_term, master, peers });
    executor.adopt({ clusterId: cluster_id, nodeId: node_id });
    executor.noticeMaster();
  }

  /** What the data directory says is of no cluster any more; the machine may join again, this or another one. */
  #forgetCluster(): void {
    const { settings, node_id } = this.#identity;
    // It is whom it was when it joins again, also where its Docker Engine does not answer then: data on it are found.
    this.#identity = { ...newIdentity({ role: "worker", node_id }), settings };
    this.#update({});
    this.#log.info("this node has left its cluster; 'cacophony join ADDRESS' adds it to one again");
    this.#leave();
  }

  #knownAddresses(): string[] {
    const { peers, join_address } = this.#identity;
    return [...(join_address === undefined ? [] : [join_address]), ...peers.map(({ address }) => address)].filter(
      (address) => address !== this.#advertise || this.#identity.role === "master",
    );
  }

  #masterPeer(): Peer | undefined {
    const { role, node_id, master } = this.#identity;
    if (role === "master") return { node_id, address: this.#advertise };
    return this.#session?.master ?? master;
  }

  #update(changes: Partial<Identity>): void {
    this.#identity = { ...this.#identity, ...changes };
    try {
      this.#data.save(this.#identity);
    } catch (error) {
      // The node works on without it; at the next change or start the same is learnt again.
      this.#log.error("could not write node.json", { error });
    }
  }

  #warnOfExposure(): void {
    if (isLoopback(this.#bind.host)) {
      if (this.#identity.role === "master") {
        this.#log.warn(
          "listening on loopback only: other machines cannot join here; use --bind-addr with an address of this machine for that",
          {
            address: formatAddress(this.#bind),
          },
        );
      }
      return;
    }
    this.#log.warn(
      "ANYONE WHO REACHES THIS ADDRESS CONTROLS THIS MACHINE'S DOCKER: there are no passwords yet; keep it on a trusted network",
      {
        address: formatAddress(this.#bind),
      },
    );
  }
}

/** Reads what the data directory is and checks that the command fits; the result is not yet saved. */
async function decideIdentity(data: DataDir, { command, peer, settings }: StartOptions): Promise<Identity> {
  const known = data.identity;
  const cluster = known?.cluster_id;
  if (command === "resume" && !known) {
    throw new StartError(
      `there is no node in ${data.path} yet: begin with 'cacophony bootstrap' or 'cacophony join ADDRESS' (see --help)`,
    );
  }
  if (command === "bootstrap" && known?.role === "worker" && cluster !== undefined) {
    throw new StartError(
      `${data.path} belongs to a node of cluster ${cluster}: resume it with 'cacophony', or choose another --data-dir`,
    );
  }
  if (command === "join" && known?.role === "master") {
    throw new StartError(
      `${data.path} belongs to the master of cluster ${cluster}, which cannot join another: choose another --data-dir`,
    );
  }
  if (command === "resume" && known && cluster === undefined && known.join_address === undefined) {
    throw new StartError(`the node in ${data.path} has left its cluster: add it to one with 'cacophony join ADDRESS'`);
  }
  const role = command === "join" ? "worker" : command === "bootstrap" ? "master" : (known?.role ?? "worker");
  if (role === "worker" && settings.policy_file) {
    throw new StartError("--policy is for the master, which reads it for all nodes: start that one with it");
  }
  const identity: Identity = { ...(known ?? newIdentity({ role, node_id: newId() })), role };
  if (role === "worker" && settings.secret_key_file) {
    throw new StartError("--secret-key-file is for the master, which keeps all secrets: start that one with it");
  }
  identity.settings = { ...identity.settings, ...settings };
  if (role === "master") refuseBadKey(identity.settings, data);
  if (command === "bootstrap") identity.cluster_id ??= crypto.randomUUID();
  if (command === "join" && peer !== undefined) {
    identity.join_address = formatAddress(parseAddress(peer, "the address to join"));
    if (cluster !== undefined) await refuseOtherCluster(identity.join_address, { cluster, path: data.path });
  }
  return identity;
}

/** A peer that does not answer proves nothing: the node resumes what it was. */
async function refuseOtherCluster(
  address: string,
  { cluster, path }: { cluster: string; path: string },
): Promise<void> {
  const info = await networkTransport.askPeer(address).catch(() => undefined);
  if (info?.cluster_id === undefined || info.cluster_id === cluster) return;
  throw new StartError(
    `${address} is of cluster ${info.cluster_id}, but ${path} belongs to cluster ${cluster}: choose another --data-dir`,
  );
}

function sealerOf({ secret_key_file: path }: Settings, data: DataDir): Sealer {
  return path ? new Sealer(path, { isGiven: true }) : new Sealer(data.keyPath);
}

/** A key that the operator keeps must be there and in order; a missing one of our own stops only what needs it. */
function refuseBadKey(settings: Settings, data: DataDir): void {
  if (!settings.secret_key_file) return;
  try {
    sealerOf(settings, data).check({ isFirst: false });
  } catch (error) {
    if (!(error instanceof SealError)) throw error;
    throw new StartError(`${error.message}; --secret-key-file none goes back to the key in the data directory`, {
      cause: error,
    });
  }
}

function secretsDir(roots: readonly string[], nodeId: string): string {
  const place = findPlace(roots, nodeId);
  return "fault" in place ? "" : place.dir;
}

function policyOf(path: string | undefined): Policy | undefined {
  if (path === undefined || path === "") return undefined;
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new StartError(
      `the policy ${path} cannot be read: bring it back, or start with --policy none to do without one`,
      { cause: error },
    );
  }
  return readPolicy(text, { path });
}

function bindAddress({ role, settings }: Identity): Address {
  if (settings.bind_addr !== undefined) return parseAddress(settings.bind_addr, "--bind-addr");
  return { host: role === "master" ? "127.0.0.1" : "0.0.0.0", port: DEFAULT_PORT };
}

/** The IPv4 address behind the one that others reach this node at. */
async function underlayOf(advertised: string): Promise<string | undefined> {
  const { host } = parseAddress(advertised, "the advertised address");
  const found = await lookup(host, { family: 4 }).catch(() => undefined);
  return found?.address;
}

async function advertisedAddress(bind: Address, { settings, join_address, master }: Identity): Promise<string> {
  if (settings.advertise_addr !== undefined)
    return formatAddress(parseAddress(settings.advertise_addr, "--advertise-addr"));
  if (!isWildcard(bind.host)) return formatAddress(bind);
  for (const towards of [master?.address, join_address]) {
    if (towards === undefined) continue;
    const host = await localAddressTowards(parseAddress(towards, "the address of a peer"));
    if (host !== undefined) return formatAddress({ host, port: bind.port });
  }
  const own = Object.values(networkInterfaces())
    .flat()
    .find((one) => one && !one.internal && one.family === "IPv4");
  return formatAddress({ host: own?.address ?? "127.0.0.1", port: bind.port });
}

/** 12 hex digits, as short ids of containers have them: readable, and unique enough for what one cluster ever holds. */
function newId(): string {
  return crypto.randomUUID().replaceAll("-", "").slice(0, 12);
}
