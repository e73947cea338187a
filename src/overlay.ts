/**
 * @module The node's side of names and addresses over nodes: keeps the kernel, the name server and the entries as the master's
 * last `network` and `directory` messages say, corrected by what this node sees of its own containers. Both are kept in a file,
 * so that a process that starts without a master goes on where the last one ended. The master's side is `directory.ts`; what is
 * to be in the kernel is decided in `overlay_plan.ts`.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { type Clock, sleep, type Timer } from "./clock.ts";
import { serviceKey } from "./cluster_state.ts";
import { SoonFile, type WriteFile } from "./data_dir_soon.ts";
import type { EntryProxy, EntryStatus } from "./entry_proxy.ts";
import {
  type DrainOptions,
  type ExecutorOverlay,
  type LocalAddresses,
  type LocalGuard,
  type LocalNetwork,
} from "./executor_networks.ts";
import { describeError, type Log } from "./log.ts";
import { Faults } from "./log_faults.ts";
import type { AllocationStatus } from "./model.ts";
import {
  type DirectoryMessage,
  type Endpoint,
  type NetworkMessage,
  networkMessage,
  type NetworkMode,
  type NodeNetwork,
  type ServiceEntry,
  serviceEntry,
} from "./model_network.ts";
import { type NameAnswer, type NameQuestion, Names } from "./names.ts";
import type { OverlayKernel } from "./overlay_kernel.ts";
import { CommandError } from "./overlay_kernel_command.ts";
import type { Overlay as KernelOverlay } from "./overlay_plan.ts";
import { checkedNetwork, completed } from "./overlay_plan_checks.ts";
import { type Crossings, crossingsOf } from "./overlay_plan_crossings.ts";
import { type Guard, isGuarding } from "./overlay_plan_guard.ts";
import { poolsOf, SubnetRoom } from "./overlay_room.ts";
import { connectionsWith } from "./overlay_sockets.ts";
import { wireguardKeys } from "./overlay_wireguard.ts";
import { contains, firstAddress } from "./subnet.ts";

export type OverlayOptions = {
  kernel: Pick<OverlayKernel, "supported" | "apply" | "guard" | "remove">;
  /** TCP port of this node's API, which containers are kept from. */
  apiPort: number;
  /** Why this machine can't take part, whatever its kernel can do; absent: it is tried. */
  unfit?: string;
  /** Answers at these addresses of this machine and no others. */
  serveNames: (addresses: readonly string[]) => void;
  newEntries: (selfNodeId: string) => Pick<EntryProxy, "update" | "exclude" | "status" | "draining" | "stop">;
  clock: Clock;
  random: () => number;
  log: Log;
  /** The node's data directory: the last messages and the WireGuard key are kept there. */
  dataDir: string;
  /** How they are written. Absent: in the background. */
  write?: WriteFile;
  /** Called when `report()` may differ from before. */
  onChange: () => void;
};

/** What somebody took away by hand is back by then. */
const REPAIR_MS = 5_000;
/** How long clients may use an address that the name server gave them. */
const NAME_TTL_MS = 1_000;
const DRAIN_LOOK_MS = 50;
/** After the kernel refused something. */
const RETRY_MS = 1_000;
/** Containers wait for the network that long, and are started without it then. */
const MAX_FAILURES = 5;
/** What keeps this machine out of the network may pass: an address that comes late, a lock that somebody held. */
const CHOOSE_AGAIN_MS = 10_000;
/** Sentences about one message of the master that the log has. */
const MAX_FAULTS = 5;
/** The directory is written so much later than it changed: it is for a process that starts without a master. */
const SAVE_DELAY_MS = 1_000;

const kept = v.object({ network: v.exactOptional(networkMessage), services: v.array(serviceEntry) });

/** How a node takes part. `reason`: why not as the cluster asks. */
type State = { mode: NetworkMode; reason?: string; publicKey?: string };

export class Overlay implements ExecutorOverlay {
  readonly #options: OverlayOptions;
  readonly #known = Promise.withResolvers<void>();
  readonly #services = new Map<string, ServiceEntry>();
  /** The same with the addresses that lead there from here. */
  readonly #reached = new Map<string, ServiceEntry>();
  readonly #path: string;
  readonly #file: SoonFile;
  readonly #defects: Faults;
  #names: Names | undefined;
  #entries: ReturnType<OverlayOptions["newEntries"]> | undefined;
  #network: NetworkMessage | undefined;
  /** Undefined before Docker was looked at: the kernel is left as the last process left it until then. */
  #bridges: readonly LocalNetwork[] | undefined;
  #crossings: ReadonlyMap<string, Crossings> = new Map();
  /** What the executor says of containers that are to be kept from APIs; undefined before Docker was looked at. */
  #guarded: LocalGuard | undefined;
  /** Where the APIs of nodes are. */
  #apis: Guard["nodes"] = [];
  #guardProblems = "";
  /** Whether there are rules for that. */
  #isGuarded = false;
  /** Why they could not be set the last time, and how often in a row. */
  #guardFault = "";
  #guardMisses = 0;
  /** What runs here; undefined before Docker was looked at. */
  #local: readonly AllocationStatus[] | undefined;
  /** What this node does; undefined before it is done. */
  #state: State | undefined;
  /** What it is to do, what the cluster asked for when that was found out, and when to look again. */
  #wanted: State | undefined;
  #asked = "";
  #chooseAt = Infinity;
  /** Attempts that the kernel refused, in a row. */
  #failures = 0;
  /** When the next pass has to look at the kernel. */
  #lookAt = 0;
  #problems = "";
  /** What the master's last message was not believed in. */
  #faults = "";
  /** What `#reachable` depends on, as it was last. */
  #reach = "";
  #mtu: number | undefined;
  readonly #room = new SubnetRoom();
  #applying = false;
  #again = false;
  /** How often bridges or other nodes have changed, and after which of these changes the kernel was last set up in full. */
  #told = 0;
  #connected = 0;
  #pass: Promise<void> = Promise.resolve();
  #timer: Timer | undefined;
  #saveTimer: Timer | undefined;
  #stopped = false;
  #work: Promise<void> = Promise.resolve();

  constructor(options: OverlayOptions) {
    this.#options = options;
    this.#defects = new Faults(options);
    const { write, log } = options;
    const path = join(options.dataDir, "network.json");
    this.#path = path;
    const onWritten = (error?: unknown) =>
      error && log.warn("the known addresses could not be written", { path, error });
    this.#file = new SoonFile({ path, write, onWritten });
    this.#load();
  }

  /** Where a name leads, for one who asks from the address `from`. */
  lookup(question: NameQuestion, from: string): NameAnswer {
    return this.#names?.lookup(question, from) ?? { state: "not_ours" };
  }

  /** The ports that are open here for services. */
  entries(): EntryStatus[] {
    return this.#entries?.status() ?? [];
  }

  /** Ends what the process itself does. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    this.#entries?.stop();
    if (this.#saveTimer) this.#save();
    await this.#work;
    const network = this.#network;
    // Containers go on talking while no process looks after them; a node without any leaves the machine as it was.
    const isIdle = this.#local?.every(({ state }) => state !== "running") === true;
    const { kernel, log } = this.#options;
    if (network && this.#state && isIdle && (this.#state.mode !== "none" || this.#isGuarded)) {
      await kernel.remove(network.self.node_id).catch((error: unknown) => {
        log.warn("rules and devices of the cluster's network are left behind, as they could not be removed", { error });
      });
    }
    await this.#file.settled();
  }

  receive(message: NetworkMessage | DirectoryMessage): void {
    if (message.type === "network") {
      this.#settle(completed(this.#checked(message), this.#network));
      this.#told++;
      this.#apply();
    } else {
      this.#direct(message);
    }
    this.#saveTimer ??= this.#options.clock.after(SAVE_DELAY_MS, () => this.#save());
  }

  async addresses(): Promise<LocalAddresses> {
    await this.#known.promise;
    const network = this.#network;
    if (!network) throw new Error("the network is known by now");
    const dns = ownAddress(network);
    const pools = poolsOf(network.self.subnets);
    // Its own blocks first: those networks will do when the node takes part one day.
    if (this.#state?.mode === "none") return { pools: [...pools, network.cidr] };
    return { pools, ...(dns !== undefined && { dns }), ...(this.#mtu !== undefined && { mtu: this.#mtu }) };
  }

  setBridges(bridges: readonly LocalNetwork[]): void {
    // Docker lists them in any order.
    const sorted = bridges.toSorted((one, other) => (one.network < other.network ? -1 : 1));
    if (Bun.deepEquals(sorted, this.#bridges)) return;
    this.#bridges = sorted;
    this.#told++;
    this.#apply();
    this.#options.onChange();
  }

  setTaken(subnets: readonly string[]): void {
    if (this.#room.setTaken(subnets)) this.#options.onChange();
  }

  setGuard(guarded: LocalGuard): void {
    if (Bun.deepEquals(guarded, this.#guarded)) return;
    this.#guarded = guarded;
    this.#told++;
    this.#apply();
  }

  /** Where the APIs of nodes are, which containers here are kept from. */
  setApis(nodes: Guard["nodes"]): void {
    if (Bun.deepEquals(nodes, this.#apis)) return;
    this.#apis = nodes;
    this.#told++;
    this.#apply();
  }

  guardFault(): string | undefined {
    const isPassing = this.#guardMisses > 0 && this.#guardMisses < MAX_FAILURES;
    return isPassing ? this.#guardFault : undefined;
  }

  async connected(): Promise<void> {
    const told = this.#told;
    // What is looked at or done for other reasons is no reason to wait.
    // oxlint-disable-next-line no-await-in-loop -- one pass after the other is made, until one began late enough
    while (this.#applying && this.#connected < told) await this.#pass;
  }

  noticeFull(): void {
    this.#room.noticeFull(this.#network?.self.subnets.length ?? 0);
    this.#options.onChange();
  }

  /** What runs here, as the executor sees it: that is newer than what the directory says of this node. */
  setLocal(statuses: readonly AllocationStatus[]): void {
    this.#local = statuses;
    this.#exclude();
  }

  /**
   * Resolves when a replica that is out of names may be stopped: nobody has its address from the name server any more, and
   * connections through entries, of this node and of others, have ended, within `graceMs`. At once where no other replica could
   * take over. `pid`: a process of its container.
   */
  async drain(allocationId: string, { graceMs, signal, pid }: DrainOptions): Promise<void> {
    const { clock } = this.#options;
    const isIn = ({ endpoints }: ServiceEntry) => endpoints.some((one) => one.allocation_id === allocationId);
    const entry = [...this.#services.values()].find(isIn);
    const others = entry?.endpoints.some((one) => one.ready && one.allocation_id !== allocationId);
    if (!others) return;
    // A node that does without the network leaves names to Docker, which forgets them with the container.
    const ttlMs = this.#state?.mode === "none" ? 0 : NAME_TTL_MS;
    const end = clock.now() + Math.max(graceMs, ttlMs);
    if (ttlMs > 0) await sleep(clock, ttlMs, signal);
    const isOpen = () =>
      (this.#entries?.draining().get(allocationId) ?? 0) > 0 || (pid !== undefined && this.#isServing(pid));
    while (!signal.aborted && clock.now() < end && isOpen())
      // oxlint-disable-next-line no-await-in-loop -- looks again until the last connection has ended
      await sleep(clock, DRAIN_LOOK_MS, signal);
  }

  /** Whether other nodes are connected to a container, which their entries do, each with the node's own address. */
  #isServing(pid: number): boolean {
    const nodes = (this.#network?.peers ?? []).flatMap(({ subnets: [first] }) => (first && firstAddress(first)) ?? []);
    return connectionsWith(nodes, { pid }) > 0;
  }

  /** For heartbeats; undefined before it is known, which includes the bridges: having none would cut them off. */
  report(): NodeNetwork | undefined {
    const network = this.#network;
    if (!network || !this.#state) return undefined;
    const { mode, reason, publicKey } = this.#state;
    const faults = this.entries().flatMap(({ port, protocol, reason: why }) =>
      why === undefined ? [] : [{ port, protocol, reason: why }],
    );
    const { blocks, full, free } = this.#room.report(network.self.subnets);
    return {
      mode,
      ...(reason !== undefined && { reason }),
      networks: mode === "none" ? [] : this.#shared().map(({ network: name, subnet }) => ({ network: name, subnet })),
      blocks,
      full: mode !== "none" && full,
      ...(mode !== "none" && free !== undefined && { free }),
      ...(publicKey !== undefined && { public_key: publicKey }),
      ...(faults.length > 0 && { entry_faults: faults }),
    };
  }

  /** The message as far as it can be true. */
  #checked(message: NetworkMessage): NetworkMessage {
    const { network, faults } = checkedNetwork(message);
    const text = faults.slice(0, MAX_FAULTS).join("; ");
    if (text !== this.#faults && text !== "")
      this.#options.log.warn("left out a part of what the master says of the cluster's network", { faults: text });
    this.#faults = text;
    return network;
  }

  /** Takes in where this node is in the cluster's network. */
  #settle(network: NetworkMessage): void {
    const before = this.#network;
    this.#network = network;
    if (before?.cidr !== network.cidr || before.self.node_id !== network.self.node_id) {
      const { random, newEntries } = this.#options;
      this.#entries?.stop();
      this.#names = new Names({ random, range: network.cidr });
      this.#entries = newEntries(network.self.node_id);
    }
    this.#follow();
  }

  /** Names and entries lead where this node reaches; looked at again when that has changed. */
  #follow(): void {
    const { cidr, self, peers } = this.#network ?? {};
    const reach = JSON.stringify([cidr, self, peers, this.#state?.mode === "none"]);
    if (reach === this.#reach) return;
    this.#reach = reach;
    for (const entry of this.#services.values()) this.#lone(() => this.#put(entry), entry);
    this.#lone(() => this.#lead());
  }

  // ---- The kernel -----------------------------------------------------------------------------------------------------

  /** The bridges of networks that reach over nodes. */
  #shared(): KernelOverlay["bridges"] {
    const network = this.#network;
    if (!network) return [];
    const remote = new Map(network.networks.map(({ network: name, subnets }) => [name, subnets]));
    return (this.#bridges ?? [])
      .filter(({ subnet }) => network.self.subnets.some((block) => contains(block, subnet)))
      .map((bridge) => {
        const { guests = [], travellers = [] } = this.#crossings.get(bridge.network) ?? {};
        const others = travellers.map(({ address, network: name }) => ({ address, remote: remote.get(name) ?? [] }));
        return { ...bridge, remote: remote.get(bridge.network) ?? [], guests, travellers: others };
      });
  }

  /** Brings the kernel up to date soon; one attempt at a time. */
  #apply(): void {
    this.#again = true;
    // Containers are started again also where the network is not known yet: they are to be kept from the APIs all the same.
    const isNeeded = this.#network !== undefined || this.#isGuarded || isGuarding(this.#guard());
    if (this.#applying || this.#stopped || !isNeeded) return;
    this.#applying = true;
    this.#timer?.cancel();
    this.#work = this.#run();
  }

  async #run(): Promise<void> {
    const { clock } = this.#options;
    try {
      while (this.#again && !this.#stopped) {
        this.#again = false;
        this.#pass = this.#applyOrNote();
        // oxlint-disable-next-line no-await-in-loop -- the kernel is brought to the newest state, one after the other
        await this.#pass;
      }
    } catch (error) {
      // Whatever it is, the next try comes.
      this.#failures++;
      this.#defects.tell("an error of Cacophony itself in the cluster's network here", error);
    } finally {
      this.#applying = false;
    }
    if (this.#stopped) return;
    const isFailing = this.#failures > 0 || this.guardFault() !== undefined;
    const waitMs = isFailing ? RETRY_MS : Math.max(0, this.#lookAt - clock.now());
    this.#timer = clock.after(waitMs, () => this.#apply());
  }

  async #applyOrNote(): Promise<void> {
    const { clock } = this.#options;
    const told = this.#told;
    const look = clock.now() >= this.#lookAt;
    try {
      await this.#applyOnce(look);
      this.#connected = told;
    } catch (error) {
      this.#options.log.warn("the cluster's network could not be set up here, trying again", { error });
      this.#failures++;
      await this.#guardAlone(true);
      // Containers are not to wait for ever for what may never be.
      if (!this.#state && this.#failures >= MAX_FAILURES)
        this.#enter({ mode: "none", reason: `the cluster's network could not be set up: ${describeError(error)}` });
    }
    if (look) this.#lookAt = clock.now() + REPAIR_MS;
  }

  async #applyOnce(look: boolean): Promise<void> {
    const { kernel, serveNames, log } = this.#options;
    const network = this.#network;
    if (!network) return this.#guardAlone(look);
    const wanted = await this.#choose(network);
    const bridges = this.#shared();
    const own = ownAddress(network);
    if (wanted.mode === "none" || own === undefined) {
      await this.#guardAlone(look);
      return this.#enter(wanted);
    }
    const subnets = new Map(bridges.map(({ network: name, subnet }) => [name, [subnet]]));
    this.#names?.setLocal({ addresses: [own], subnets });
    // The kernel is as the last process left it, and so are the containers that ask for names.
    if (!this.#bridges || !this.#guarded) return serveNames([own]);
    const { cidr, self, peers } = network;
    const guard = this.#guard();
    const done = await kernel.apply({ link: this.#link(network, wanted), cidr, self, peers, bridges, guard }, { look });
    this.#failures = 0;
    if (this.#stopped) return;
    if (done.refused !== undefined) {
      await this.#guardAlone(look);
      return this.#enter({ mode: "none", reason: done.refused });
    }
    this.#isGuarded = isGuarding(guard);
    this.#guardMisses = 0;
    this.#mtu = done.mtu;
    const problems = done.problems.join("; ");
    if (problems !== this.#problems && problems !== "") log.warn("the cluster's network has gaps here", { problems });
    this.#problems = problems;
    serveNames([own]);
    this.#enter(wanted);
  }

  #guard(): Guard {
    const { bridges = [], shared = [], callers = [] } = this.#guarded ?? {};
    return { port: this.#options.apiPort, bridges, shared, callers, nodes: this.#apis };
  }

  /**
   * Keeps containers from the APIs of nodes while this node does without the cluster's network. Where that fails again and again,
   * or iptables is not there, the API refuses them by itself, and they are started all the same.
   */
  async #guardAlone(look: boolean): Promise<void> {
    const { kernel, unfit, log } = this.#options;
    const guard = this.#guard();
    // Containers on another machine are not this one's to keep away. Before Docker was looked at, rules stay as they are.
    if (unfit !== undefined || !this.#guarded) return;
    if (!isGuarding(guard) && !this.#isGuarded) return;
    let problem: string;
    try {
      problem = (await kernel.guard(guard, { look })).join("; ");
      this.#isGuarded = isGuarding(guard);
      this.#guardMisses = 0;
    } catch (error) {
      const isMissing = error instanceof CommandError && error.code === "missing";
      this.#guardMisses = isMissing ? MAX_FAILURES : this.#guardMisses + 1;
      this.#guardFault = describeError(error);
      problem = `${describeError(error)}; this node's API refuses containers by itself, but they reach the APIs of other nodes`;
    }
    if (problem !== this.#guardProblems && problem !== "")
      log.warn("containers could not be kept from the APIs of nodes by the firewall", { problems: problem });
    this.#guardProblems = problem;
  }

  #link({ self, peers }: NetworkMessage, { mode }: State): KernelOverlay["link"] {
    if (mode !== "wireguard") return { mode: "vxlan" };
    const publicKeys = [self, ...peers].flatMap(({ node_id, public_key: key }) =>
      key === undefined ? [] : [[node_id, key] as const],
    );
    const { privateKey } = wireguardKeys(this.#options.dataDir);
    return { mode: "wireguard", privateKey, publicKeys: new Map(publicKeys) };
  }

  /** Finds out whether this machine can do what the cluster asks for; anew when it asks for something else. */
  async #choose({ mode, reason: given, self }: NetworkMessage): Promise<State> {
    const { kernel, unfit, clock, dataDir, log } = this.#options;
    const asked = JSON.stringify([mode, given, self.underlay]);
    if (this.#wanted && this.#asked === asked && clock.now() < this.#chooseAt) return this.#wanted;
    const reason = mode === "none" ? given : (unfit ?? (await kernel.supported(mode, self.underlay)));
    const isUnfit = mode !== "none" && reason !== undefined;
    // What an earlier process made goes only where the cluster says so, not because a try failed.
    if (mode === "none" && this.#wanted?.mode !== "none") {
      await kernel.remove(self.node_id, { keepGuard: true }).catch((error: unknown) => {
        log.debug("what may be left of the cluster's network could not be removed", { error });
      });
    }
    if (reason !== undefined) this.#wanted = { mode: "none", reason };
    else if (mode === "wireguard") this.#wanted = { mode, publicKey: wireguardKeys(dataDir).publicKey };
    else this.#wanted = { mode };
    this.#asked = asked;
    this.#chooseAt = isUnfit ? clock.now() + CHOOSE_AGAIN_MS : Infinity;
    return this.#wanted;
  }

  /** From here on this is what the node does; containers may start. */
  #enter(state: State): void {
    const { log, onChange, serveNames } = this.#options;
    const isNews = !Bun.deepEquals(this.#state, state);
    this.#state = state;
    if (state.mode === "none") serveNames([]);
    this.#known.resolve();
    if (!isNews) return;
    const { mode, reason } = state;
    if (reason !== undefined)
      log.warn("containers of this node and of others cannot reach each other", { network: mode, reason });
    this.#follow();
    onChange();
  }

  // ---- The directory --------------------------------------------------------------------------------------------------

  #direct({ full, services, gone }: DirectoryMessage): void {
    if (full) {
      const named = new Set(services.map(serviceKey));
      for (const entry of this.#services.values()) if (!named.has(serviceKey(entry))) this.#remove(entry);
    }
    for (const entry of services) this.#lone(() => this.#put(this.#completed(entry)), entry);
    for (const of of gone) this.#lone(() => this.#remove(of), of);
    this.#lone(() => this.#lead());
  }

  /** Does what is about one service; an error of Cacophony itself there keeps no other name from leading where it should. */
  #lone(work: () => void, of?: { job_id: string; service_name: string }): void {
    this.#defects.attempt("an error of Cacophony itself in names and entries", work, of && { service: serviceKey(of) });
  }

  /** Entries and the kernel follow the directory, and what this node sees itself. */
  #lead(): void {
    const crossings = this.#network ? crossingsOf(this.#services.values(), this.#network) : new Map();
    if (!Bun.deepEquals(crossings, this.#crossings)) {
      this.#crossings = crossings;
      this.#apply();
    }
    this.#lone(() => this.#entries?.update([...this.#reached.values()]));
    this.#exclude();
  }

  /** The entry with what was known before of replicas that the master has not heard of yet. */
  #completed(entry: ServiceEntry): ServiceEntry {
    if (!entry.endpoints.some(({ unknown }) => unknown)) return entry;
    const before = new Map(this.#services.get(serviceKey(entry))?.endpoints.map((one) => [one.allocation_id, one]));
    const endpoints = entry.endpoints.map((one): Endpoint => (one.unknown && before.get(one.allocation_id)) || one);
    return { ...entry, endpoints };
  }

  #put(entry: ServiceEntry): void {
    const reached = this.#reachable(entry);
    this.#services.set(serviceKey(entry), entry);
    this.#reached.set(serviceKey(entry), reached);
    this.#names?.put(reached);
  }

  #remove(of: { job_id: string; service_name: string }): void {
    this.#services.delete(serviceKey(of));
    this.#reached.delete(serviceKey(of));
    this.#names?.remove(of);
  }

  /**
   * The entry with the addresses that lead to its replicas from here: of another node those in its blocks, for the others are of
   * networks that end there, and mean nothing or something else on this node.
   */
  #reachable(entry: ServiceEntry): ServiceEntry {
    const network = this.#network;
    const peers = this.#state?.mode === "none" ? [] : (network?.peers ?? []);
    const endpoints = entry.endpoints.map((endpoint) => {
      if (endpoint.node_id === network?.self.node_id) return endpoint;
      const blocks = peers.find(({ node_id }) => node_id === endpoint.node_id)?.subnets ?? [];
      const isReached = ({ address }: { address: string }) => blocks.some((block) => contains(block, address));
      return { ...endpoint, addresses: endpoint.addresses.filter(isReached) };
    });
    return { ...entry, endpoints };
  }

  #exclude(): void {
    if (!this.#local) return;
    const local = new Map(this.#local.map((status) => [status.allocation_id, status]));
    const nodeId = this.#network?.self.node_id;
    const dead = new Set<string>();
    const gone = new Set<string>();
    for (const { endpoints } of this.#services.values()) {
      for (const { node_id, allocation_id } of endpoints) {
        if (node_id !== nodeId) continue;
        const { state, health = "healthy" } = local.get(allocation_id) ?? {};
        if (state !== "running" || health !== "healthy") dead.add(allocation_id);
        // What is not healthy yet, or about to stop, has an address of its own still, and asks for names.
        if (state !== "running" && state !== "starting" && state !== "stopping") gone.add(allocation_id);
      }
    }
    this.#names?.exclude(dead, { gone });
    this.#entries?.exclude(dead);
  }

  // ---- What is kept ---------------------------------------------------------------------------------------------------

  #load(): void {
    const { log } = this.#options;
    const path = this.#path;
    try {
      const { network, services } = v.parse(kept, JSON.parse(readFileSync(path, "utf8")));
      for (const entry of services) this.#put(entry);
      if (network) this.#settle(this.#checked(network));
      this.#apply();
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent) log.warn("the last known addresses could not be read; the master will tell them", { path, error });
    }
  }

  #save(): void {
    this.#saveTimer?.cancel();
    this.#saveTimer = undefined;
    const network = this.#network && { network: this.#network };
    this.#file.keep(JSON.stringify({ ...network, services: [...this.#services.values()] }));
  }
}

/** The node's own address in the cluster's network. */
function ownAddress({ self }: NetworkMessage): string | undefined {
  const [first] = self.subnets;
  return first === undefined ? undefined : firstAddress(first);
}
