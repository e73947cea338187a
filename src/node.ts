/**
 * @module One process of Cacophony: builds the parts, wires them, starts and stops them. Owns the decision of what this process
 * is (the master of a new cluster, a node that joins one, or what its data directory says) and nothing of what the parts do.
 */
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import type { Address } from "./address.ts";
import { DEFAULT_PORT, formatAddress, isLoopback, isWildcard } from "./address.ts";
import type { LocalNode } from "./api.ts";
import { createApi } from "./api.ts";
import type { HostNames } from "./api_hosts.ts";
import { systemClock } from "./clock.ts";
import { ClusterKey } from "./cluster_key.ts";
import type { Identity } from "./data_dir.ts";
import { DataDir, newerSeen, newestSeen, newIdentity } from "./data_dir.ts";
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
import { PROTOCOLS } from "./model_protocol.ts";
import { apisOf, mappedPort, ownApiAddresses } from "./node_addresses.ts";
import { namesOfNode } from "./node_hosts.ts";
import { decideIdentity, type IdentityOptions, newId, sealerOf } from "./node_identity.ts";
import {
  advertisedAddress,
  apiPortOf,
  bindAddress,
  bindTowards,
  listenAddresses,
  peersOf,
  underlayOf,
} from "./node_listen.ts";
import { HostMeter } from "./resources.ts";
import { Overlay } from "./overlay.ts";
import { OverlayKernel } from "./overlay_kernel.ts";
import { NAMES_PORT } from "./overlay_plan_firewall.ts";
import { Scheduler } from "./scheduler.ts";
import { Session } from "./session.ts";
import { bootId, LastHeard } from "./session_heard.ts";
import { openThreadStore } from "./store_thread.ts";
import type { CalledMaster, Caller, Listener, Transport } from "./transport.ts";
import { dialSelf, fetchChunk, fetchSecret, listen, networkTransport } from "./transport.ts";

export type StartOptions = IdentityOptions & {
  dataDir: string;
  /** Where Docker is when nothing was ever said. */
  defaultDockerHost: string;
  /** Where the docker command line keeps its registry logins, and where its credential helpers are. */
  dockerLogins: { configDir: string; searchPath: string };
  /** Directories that may be a tmpfs, for the secrets of containers, the best first. */
  secretRoots: readonly string[];
  version: string;
  log: Log;
};

/** A node that does not know yet where to listen does so here. */
const LOOPBACK: Address = { host: "127.0.0.1", port: DEFAULT_PORT };
const DEFAULT_HEARTBEAT_MS = 1_000;
const DEFAULT_NODE_TIMEOUT_MS = 4_000;
/** Percent of Docker's disk in use from which it takes no new containers. */
const DEFAULT_DISK_LIMIT = 90;
/** One lost heartbeat is no reason to move a machine's containers. */
const MIN_TIMEOUT_HEARTBEATS = 3;
/** A machine that boots may start its Docker Engine later than this node; who waits longer for it is told. */
const ENGINE_NOTICE_MS = 2_500;
/** SIGTERM has to end the process within 2 s, whatever a part is waiting for. */
const STOP_TIMEOUT_MS = 1_500;
/** Of a nonce and of a token: nobody guesses one. */
const RANDOM_BYTES = 16;

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
  readonly #instance = crypto.randomUUID();
  /** Where it listens; undefined: only on loopback, until a peer can be reached. */
  #bind: Address | undefined;
  #advertise: string;
  #dockerHost = "";
  #hostNames: HostNames;
  #identity: Identity;
  /** IPv4 address of this machine that containers of other nodes are reached by. */
  #underlay: string | undefined;
  #overlay: Overlay | undefined;
  #dns: DnsServer | undefined;
  #executor: Executor | undefined;
  #session: Session | undefined;
  readonly #heard: LastHeard;
  #scheduler: Scheduler | undefined;
  #policy: Policy | undefined;
  #membership: Membership | undefined;
  #listener: Listener | undefined;
  #apis: Promise<void> = Promise.resolve();

  private constructor(data: DataDir, { identity, options }: { identity: Identity; options: StartOptions }) {
    const failed = Promise.withResolvers<StartError>();
    this.failed = failed.promise;
    this.#fail = failed.resolve;
    const left = Promise.withResolvers<void>();
    this.left = left.promise;
    this.#leave = left.resolve;
    this.version = options.version;
    this.#log = options.log;
    this.#data = data;
    data.onWriteFailed = (error) => this.#writeFailed(error);
    this.#identity = identity;
    this.#heard = new LastHeard({ dataDir: data.path, clock: systemClock, log: options.log });
    this.#advertise = "";
    this.#hostNames = this.#findHostNames();
  }

  /**
   * Starts a node; resolves once it listens. Everything else (Docker, the master) may come later.
   * @throws StartError for all that makes this start impossible; what is past its deadline is stopped, and nothing else changed, then.
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
      const node = new Node(data, { identity, options });
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
    const waiting = this.#waitsForEngine();
    if (waiting !== undefined) faults.push(waiting);
    else if (engine?.state === "unready") faults.push(engine.reason);
    const { leadership, writes } = this.#scheduler ?? {};
    if (leadership?.fault !== undefined) faults.push(`this master does not lead: ${leadership.fault}`);
    if (writes?.fault !== undefined) faults.push(`the cluster state cannot be changed: ${writes.fault}`);
    const { lost, fault } = this.#session ?? {};
    if (!lost && leadership?.fault === undefined)
      faults.push(`no session with the master${fault === undefined ? "" : `: ${fault}`}`);
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
      protocols: PROTOCOLS,
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
    const api = createApi({
      local: this,
      scheduler: () => this.#scheduler,
      dataDir: this.#data.path,
      secretsDir: (nodeId) => secretsDir(options.secretRoots, nodeId),
      isNode: (caller) => this.#membership?.isNode(caller) ?? false,
      secret: (request, caller) => this.#secretFor(request, caller),
      policy: () => this.#policy,
      hostNames: () => this.#hostNames,
      hold: () => this.#membership?.hold,
      reschedule: () => this.#membership?.reschedule() ?? [],
      access: (remote) => this.#executor?.apiAccess(remote),
      log,
    });
    const engine = openEngine(this.#identity.settings.docker_host ?? options.defaultDockerHost);
    this.#dockerHost = engine.host;
    this.#startOverlay(options, engine);
    // First of all: what must never run twice may run elsewhere by now, and goes before anybody was reached.
    const begun = this.#startExecutor(options, engine).start();
    let addresses: Address[];
    try {
      this.#bind = await bindAddress(this.#identity);
      addresses = listenAddresses(this.#bind, this.#identity);
      this.#listener = await listen(addresses, {
        fetch: (request, origin) => api.fetch(request, origin),
        isOpenTo: (remote) => this.#executor?.apiAccess(remote) === undefined,
        session: () => this.#membership && ((channel) => this.#membership!.accept(channel)),
      });
      this.#advertise = await advertisedAddress(this.#bind, this.#identity);
      this.#hostNames = this.#findHostNames();
      this.#warnOfExposure();
      this.#identity = { ...this.#identity, ...this.#lastBind() };
      // A node that was one before starts by what it knows, also on a full disk; a new one must not be forgotten.
      if (this.#data.identity) this.#update({});
      else this.#data.begin(this.#identity);
      if (this.#identity.role === "master") await this.#startMaster(options);
      this.#underlay = await underlayOf(this.#advertise);
      this.#startSession(begun);
    } catch (error) {
      // The machine may have lost the address that it listens on, and another node may run by now what is past its deadline here.
      await this.#executor?.overdueGone();
      await Promise.all([this.#executor?.stop(), this.#listener?.stop(), this.#overlay?.stop(), this.#dns?.stop()]);
      throw error;
    }
    log.info("this node is up", {
      role: this.#identity.role,
      listens: addresses.map(formatAddress).join(", "),
      address: this.#advertise,
      data: this.#data.path,
    });
  }

  async #startMaster({ restored = false }: StartOptions): Promise<void> {
    const { cluster_id, node_id, has_state, settings } = this.#identity;
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
      store: openThreadStore(statePath),
      sealer: sealerOf(settings, this.#data),
      random: Math.random,
      ...(settings.rebalance && { rebalance: settings.rebalance }),
      ...(settings.strategy && { strategy: settings.strategy }),
    });
    const fresh = {
      cluster_id,
      created_at: systemClock.now(),
      network_mode: settings.network ?? "vxlan",
      network_cidr: settings.network_cidr ?? DEFAULT_NETWORK_CIDR,
    };
    const { clusterKeyPath } = this.#data;
    const key = new ClusterKey(clusterKeyPath);
    const isNew = !existsSync(clusterKeyPath);
    await scheduler.start(fresh, { ...newestSeen(this.#identity), written: has_state, restored, key });
    if (isNew)
      this.#log.info("this master has made the cluster's key, which its nodes will know it by: keep a backup of it", {
        file: clusterKeyPath,
      });
    this.#update({ has_state: true });
    this.#scheduler = scheduler;
    this.#membership = new Membership({
      ...common,
      scheduler,
      self: { node_id, address: this.#advertise },
      signer: key,
      newToken: randomText,
      onNewerTerm: (proof) => this.#update(newerSeen(this.#identity, proof)),
      askPeer: (address) => networkTransport.askPeer(address),
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
      apiPort: apiPortOf(this.#identity),
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
    this.#guardApis();
  }

  /** Containers of this node are kept from the APIs of all nodes, wherever those are. */
  #guardApis(): void {
    const before = this.#apis;
    this.#apis = apisOf(this.#identity.peers).then(async (apis) => {
      await before.catch(() => {});
      this.#overlay?.setApis(apis);
    });
    this.#apis.catch((error: unknown) => this.#log.warn("an address of a node cannot be read", { error }));
  }

  #startExecutor({ dockerLogins, secretRoots }: StartOptions, engine: Engine): Executor {
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
      isolatedSince: (isTold) => this.#heard.since({ isOpen: this.#session?.lost !== undefined, isTold }),
      nodeLogin: nodeLogins({ ...dockerLogins, log: this.#log }),
      fetchChunk: async (chunkHash) => fetchChunk(this.#calledMaster(), chunkHash),
      secrets: { roots: secretRoots, fetch: (secretId) => this.#fetchSecret(secretId) },
      overlay,
      onChange: () => {
        const snapshot = executor.snapshot();
        try {
          if (snapshot) overlay.setLocal(snapshot.allocations);
        } finally {
          this.#session?.notify();
        }
      },
    });
    this.#executor = executor;
    if (cluster_id !== undefined && node_id !== undefined)
      this.#executor.adopt({ clusterId: cluster_id, nodeId: node_id });
    return executor;
  }

  /** `begun`: the Docker Engine has answered for the first time, or does not soon. */
  #startSession(begun: Promise<void>): void {
    const executor = this.#executor;
    if (!executor) throw new Error("the executor comes first");
    this.#session = new Session({
      transport: this.#identity.role === "master" ? this.#selfTransport() : this.#networkTransport(),
      executor: {
        assign: (assignments) => {
          const outcome = executor.assign(assignments);
          if (outcome === "accepted") this.#heard.take(assignments);
          return outcome;
        },
        snapshot: () => executor.snapshot(),
        heartbeat: () => ({ ...executor.heartbeat(), ...this.#overlayReport() }),
      },
      clock: systemClock,
      random: Math.random,
      log: this.#log,
      hello: () => this.#hello(executor),
      trust: () => ({ clusterKey: this.#identity.cluster_key, ...newestSeen(this.#identity) }),
      addresses: () => this.#knownAddresses(),
      onWelcome: (welcome) => this.#welcomed(welcome, executor),
      onPeers: (peers) => this.#update({ peers }),
      onNetwork: (message) => this.#overlay?.receive(message),
      onLeft: () => this.#forgetCluster(),
      onHeard: (at) => this.#heard.note(at),
      onLost: () => executor.noticeMaster(),
      onRefused: ({ code, message }) => {
        // A machine that was reset comes back before the master has noticed that it was gone: it waits.
        if (isPassing(code)) this.#log.warn("the master refused this node for now", { reason: message });
        else this.#fail(new StartError(`the master refused this node: ${message}`));
      },
    });
    const session = this.#session;
    // The hello carries the Engine's id: a second node on one Engine is noticed before it becomes a member, and a machine that lost
    // its data directory gets its node id again, and with that its containers.
    const notice = systemClock.after(ENGINE_NOTICE_MS, () => {
      const waiting = this.#waitsForEngine();
      if (waiting !== undefined) this.#log.warn("this node has not joined yet", { reason: waiting });
    });
    void begun.finally(() => {
      notice.cancel();
      session.start(this.#masterPeer());
    });
  }

  /** Why a node that is no member yet does not say hello; undefined: it is one, or may. */
  #waitsForEngine(): string | undefined {
    const engine = this.#executor?.engineStatus();
    if (!engine || engine.engine_id !== undefined || this.#identity.cluster_id !== undefined) return undefined;
    const reason = engine.state === "unready" ? engine.reason : "";
    return `waits for the Docker Engine at ${this.#dockerHost} before it joins: ${reason}`;
  }

  async #fetchSecret(secret_id: string): Promise<Uint8Array> {
    return fetchSecret(this.#calledMaster(), { node_id: this.nodeId, instance: this.#instance, secret_id });
  }

  /** What this master hands out: only to the process that has the session of a node which is to run what mounts the secret. */
  #secretFor(request: SecretRequest, caller: Caller): Uint8Array | undefined {
    return this.#membership?.isConnected(request, caller) ? this.#scheduler?.secrets.valueFor(request) : undefined;
  }

  #calledMaster(): CalledMaster {
    const address = this.#identity.role === "master" ? this.#selfAddress() : this.#masterPeer()?.address;
    if (address === undefined) throw new Error("this node has not heard of a master yet");
    return { address, token: this.#session?.token };
  }

  #overlayReport() {
    const overlay = this.#overlay?.report();
    return overlay ? { overlay } : {};
  }

  #selfAddress(): string {
    if (!this.#bind) throw new Error("a master knows where it listens");
    const { host, port } = this.#bind;
    return formatAddress({ host: isWildcard(host) ? (host === "::" ? "::1" : "127.0.0.1") : host, port });
  }

  #networkTransport(): Transport {
    return {
      ...networkTransport,
      dial: async (address, handlers) => {
        await this.#listenTowards(address);
        return networkTransport.dial(address, handlers);
      },
    };
  }

  /** A node that did not know where to listen knows it once it reaches the master: its hello says it. */
  async #listenTowards(master: string): Promise<void> {
    if (this.#bind) return;
    const bind = await bindTowards([...peersOf(this.#identity), master]);
    if (!bind) throw new Error(`cannot tell from which address of this machine ${master} is reached`);
    if (!isLoopback(bind.host)) this.#listener?.add(bind);
    this.#bind = bind;
    this.#advertise = await advertisedAddress(bind, this.#identity);
    this.#underlay = await underlayOf(this.#advertise);
    this.#hostNames = this.#findHostNames();
    this.#warnOfExposure();
    this.#update(this.#lastBind());
    this.#log.info("this node listens", { listens: formatAddress(bind), address: this.#advertise });
  }

  /** What to keep of where a worker listens that was not told where. */
  #lastBind(): Partial<Identity> {
    const { role, settings } = this.#identity;
    const isChosen = role === "worker" && settings.bind_addr === undefined;
    return isChosen && this.#bind ? { last_bind_addr: formatAddress(this.#bind) } : {};
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
    const { cluster_id, node_id, settings, last_term } = this.#identity;
    return {
      type: "hello",
      protocol: PROTOCOL_VERSION,
      protocols: PROTOCOLS,
      ...(cluster_id === undefined ? {} : { cluster_id }),
      node_id,
      instance: this.#instance,
      nonce: randomText(),
      node_name: settings.node_name ?? hostname(),
      address: this.#advertise,
      ...(this.#underlay === undefined ? {} : { underlay: this.#underlay }),
      api_addresses: ownApiAddresses(this.#bind ? [this.#bind.host] : [], this.#underlay),
      ...mappedPort(this.#bind, this.#advertise),
      labels: settings.labels ?? [],
      engine: executor.engineStatus(),
      ...(bootId() !== "" && { boot_id: bootId() }),
      version: this.version,
      ...(last_term && { last_term }),
    };
  }

  #welcomed(welcome: Welcome, executor: Executor): void {
    const { cluster_id, node_id, cluster_key, term, master, peers, term_proof: last_term } = welcome;
    // A master of an earlier version proves nothing: only on a first join, where everything is believed, its term is kept.
    const isProved = cluster_key !== undefined || this.#identity.cluster_id === undefined;
    const seen_term = isProved ? Math.max(term, this.#identity.seen_term) : this.#identity.seen_term;
    if (cluster_key !== undefined && this.#identity.cluster_key === undefined)
      this.#log.info("this node keeps the cluster's key, and follows nobody without it", { cluster_key });
    const proven = { ...(cluster_key !== undefined && { cluster_key }), ...(last_term && { last_term }) };
    this.#update({ cluster_id, node_id, ...proven, seen_term, master, peers });
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

  #findHostNames(): HostNames {
    return namesOfNode({ settings: this.#identity.settings, bind: this.#bind ?? LOOPBACK, advertise: this.#advertise });
  }

  #masterPeer(): Peer | undefined {
    const { role, node_id, master } = this.#identity;
    if (role === "master") return { node_id, address: this.#advertise };
    return this.#session?.master ?? master;
  }

  #update(changes: Partial<Identity>): void {
    this.#identity = { ...this.#identity, ...changes };
    if (changes.peers) this.#guardApis();
    try {
      this.#data.save(this.#identity);
    } catch (error) {
      this.#writeFailed(error);
    }
  }

  /** The node works on without it; at the next change or start the same is learnt again. */
  #writeFailed(error: unknown): void {
    this.#log.error("could not write node.json", { error });
  }

  #warnOfExposure(): void {
    if (!this.#bind) return;
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

function randomText(): string {
  return randomBytes(RANDOM_BYTES).toString("base64url");
}
