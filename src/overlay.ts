/**
 * @module The node's side of names and addresses over nodes: keeps the kernel, the name server and the entries as the master's
 * last `network` and `directory` messages say, corrected by what this node sees of its own containers. Both are kept in a file,
 * so that a process that starts without a master goes on where the last one ended. The master's side is `directory.ts`; what is
 * to be in the kernel is decided in `overlay_plan.ts`.
 */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import * as v from "valibot";
import type { Clock, Timer } from "./clock.ts";
import type { ExecutorOverlay } from "./executor.ts";
import { type LocalNetwork, SUBNET_BITS } from "./executor_networks.ts";
import type { LocalAddresses } from "./executor_worker.ts";
import type { Log } from "./log.ts";
import { describeError } from "./log.ts";
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
import { contains, firstAddress, withoutFirst } from "./subnet.ts";

/** A bridge of this node with the subnets that the same network has on other nodes. */
export type SharedBridge = LocalNetwork & { remote: readonly string[] };

/** What the kernel is to have. */
export type KernelState = { message: NetworkMessage; bridges: readonly SharedBridge[] };

export interface Kernel {
  /** Why this machine cannot have such a network, in one sentence; undefined: it can. */
  refusal(mode: Exclude<NetworkMode, "none">): Promise<string | undefined>;
  /** Brings the kernel to this state, whatever it has. */
  apply(state: KernelState): Promise<void>;
  /** Takes away all that `apply` made. */
  remove(): Promise<void>;
  /** For WireGuard. */
  publicKey(): Promise<string | undefined>;
}

/** What follows the directory: the name server and the entries. */
export interface Follower {
  put(entry: ServiceEntry): void;
  remove(of: { job_id: string; service_name: string }): void;
  /** Allocations that this node knows not to answer, whatever the directory says. */
  exclude(allocationIds: ReadonlySet<string>): void;
}

export interface NameServer extends Follower {
  /** Answers at these addresses and no others; `subnets` by network: who asks from there is on that network. */
  serve(where: { addresses: readonly string[]; subnets: ReadonlyMap<string, string> }): void;
}

export type OverlayOptions = {
  kernel: Kernel;
  names: NameServer;
  entries: Follower;
  clock: Clock;
  log: Log;
  /** Where the last messages are kept. */
  path: string;
  /** Called when `report()` may differ from before. */
  onChange: () => void;
};

/** What somebody took away by hand is back by then. */
const REPAIR_MS = 5_000;
/** After the kernel refused something. */
const RETRY_MS = 1_000;
/** The directory is written so much later than it changed: it is for a process that starts without a master. */
const SAVE_DELAY_MS = 1_000;

const kept = v.object({ network: v.exactOptional(networkMessage), services: v.array(serviceEntry) });

export class Overlay implements ExecutorOverlay {
  readonly #options: OverlayOptions;
  readonly #known = Promise.withResolvers<void>();
  readonly #services = new Map<string, ServiceEntry>();
  #network: NetworkMessage | undefined;
  #bridges: readonly LocalNetwork[] = [];
  /** What runs here; undefined before Docker was looked at. */
  #local: readonly AllocationStatus[] | undefined;
  /** What this node does; undefined before it was tried. */
  #state: { mode: NetworkMode; reason?: string; publicKey?: string } | undefined;
  #fullAt = 0;
  #applying = false;
  #again = false;
  #timer: Timer | undefined;
  #saveTimer: Timer | undefined;
  #stopped = false;
  #work: Promise<void> = Promise.resolve();

  constructor(options: OverlayOptions) {
    this.#options = options;
    this.#load();
  }

  /** Containers keep their network: only the process's own part ends. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    if (this.#saveTimer) this.#save();
    await this.#work;
  }

  /** This node leaves the cluster: nothing of the network stays. */
  async leave(): Promise<void> {
    await this.stop();
    await this.#options.kernel.remove();
  }

  receive(message: NetworkMessage | DirectoryMessage): void {
    if (message.type === "network") {
      if (message.self.subnets.length > (this.#network?.self.subnets.length ?? 0)) this.#fullAt = 0;
      this.#network = message;
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
    if (this.#state?.mode === "none") return { pools: [network.cidr] };
    const [first = "", ...others] = network.self.subnets;
    const dns = ownAddress(network);
    // The node's own address lies in the first subnet of its first block.
    return { pools: [...withoutFirst(first, SUBNET_BITS), ...others], ...(dns !== undefined && { dns }) };
  }

  setBridges(bridges: readonly LocalNetwork[]): void {
    if (Bun.deepEquals(bridges, this.#bridges)) return;
    this.#bridges = bridges;
    this.#apply();
    this.#options.onChange();
  }

  noticeFull(): void {
    this.#fullAt = this.#network?.self.subnets.length ?? 0;
    this.#options.onChange();
  }

  /** What runs here, as the executor sees it: that is newer than what the directory says of this node. */
  setLocal(statuses: readonly AllocationStatus[]): void {
    this.#local = statuses;
    this.#exclude();
  }

  /** For heartbeats; undefined before it is known. */
  report(): NodeNetwork | undefined {
    const network = this.#network;
    if (!network || !this.#state) return undefined;
    const { mode, reason, publicKey } = this.#state;
    const blocks = network.self.subnets.length;
    return {
      mode,
      ...(reason !== undefined && { reason }),
      networks: mode === "none" ? [] : this.#shared().map(({ network: name, subnet }) => ({ network: name, subnet })),
      blocks,
      full: mode !== "none" && this.#fullAt === blocks,
      ...(publicKey !== undefined && { public_key: publicKey }),
    };
  }

  // ---- The kernel -----------------------------------------------------------------------------------------------------

  /** The bridges of networks that reach over nodes. */
  #shared(): SharedBridge[] {
    const network = this.#network;
    if (!network) return [];
    const remote = new Map(network.networks.map(({ network: name, subnets }) => [name, subnets]));
    return this.#bridges
      .filter(({ subnet }) => network.self.subnets.some((block) => contains(block, subnet)))
      .map((bridge) => ({ ...bridge, remote: remote.get(bridge.network) ?? [] }));
  }

  /** Brings the kernel up to date soon; one attempt at a time. */
  #apply(): void {
    this.#again = true;
    if (this.#applying || this.#stopped || !this.#network) return;
    this.#applying = true;
    this.#timer?.cancel();
    this.#work = this.#run().finally(() => {
      this.#applying = false;
    });
  }

  async #run(): Promise<void> {
    const { clock, log } = this.#options;
    let delayMs = REPAIR_MS;
    while (this.#again && !this.#stopped) {
      this.#again = false;
      try {
        // oxlint-disable-next-line no-await-in-loop -- the kernel is brought to the newest state, one after the other
        await this.#applyOnce();
      } catch (error) {
        log.warn("the cluster's network could not be set up here, trying again", { error });
        delayMs = RETRY_MS;
      }
    }
    if (this.#stopped) return;
    this.#timer = clock.after(delayMs, () => this.#apply());
  }

  async #applyOnce(): Promise<void> {
    const { kernel, names } = this.#options;
    const network = this.#network;
    if (!network) return;
    if (this.#state?.mode !== network.mode) await this.#choose(network.mode);
    if (this.#state?.mode !== "none") {
      const bridges = this.#shared();
      await kernel.apply({ message: network, bridges });
      const own = ownAddress(network);
      const subnets = new Map(bridges.map(({ network: name, subnet }) => [name, subnet]));
      names.serve({ addresses: own === undefined ? [] : [own], subnets });
    }
    this.#known.resolve();
  }

  /** Finds out whether this machine can do what the cluster asks for. */
  async #choose(mode: NetworkMode): Promise<void> {
    const { kernel, log, onChange } = this.#options;
    const wanted = this.#network?.reason;
    const reason = mode === "none" ? wanted : await kernel.refusal(mode).catch(describeError);
    const before = this.#state;
    if (mode === "none" || reason !== undefined)
      this.#state = { mode: "none", ...(reason !== undefined && { reason }) };
    else {
      const publicKey = mode === "wireguard" ? await kernel.publicKey() : undefined;
      this.#state = { mode, ...(publicKey !== undefined && { publicKey }) };
    }
    if (Bun.deepEquals(before, this.#state)) return;
    if (before && before.mode !== "none") await kernel.remove();
    if (reason !== undefined)
      log.warn("containers of this node and of others cannot reach each other", { network: mode, reason });
    onChange();
  }

  // ---- The directory --------------------------------------------------------------------------------------------------

  #direct({ full, services, gone }: DirectoryMessage): void {
    if (full) {
      const named = new Set(services.map(keyOf));
      for (const entry of this.#services.values()) if (!named.has(keyOf(entry))) this.#remove(entry);
    }
    for (const entry of services) this.#put(this.#completed(entry));
    for (const of of gone) this.#remove(of);
    this.#exclude();
  }

  /** The entry with what was known before of replicas that the master has not heard of yet. */
  #completed(entry: ServiceEntry): ServiceEntry {
    if (!entry.endpoints.some(({ unknown }) => unknown)) return entry;
    const before = new Map(this.#services.get(keyOf(entry))?.endpoints.map((one) => [one.allocation_id, one]));
    const endpoints = entry.endpoints.map((one): Endpoint => (one.unknown && before.get(one.allocation_id)) || one);
    return { ...entry, endpoints };
  }

  #put(entry: ServiceEntry): void {
    this.#services.set(keyOf(entry), entry);
    const network = this.#network;
    // Networks with addresses of their own are the same on each node: such an address means nothing on another one.
    const isReachable = (endpoint: Endpoint) => (one: Endpoint["addresses"][number]) =>
      endpoint.node_id === network?.self.node_id || (network !== undefined && contains(network.cidr, one.address));
    const endpoints = entry.endpoints.map((endpoint) => ({
      ...endpoint,
      addresses: endpoint.addresses.filter(isReachable(endpoint)),
    }));
    const reachable = { ...entry, endpoints };
    this.#options.names.put(reachable);
    this.#options.entries.put(reachable);
  }

  #remove(of: { job_id: string; service_name: string }): void {
    this.#services.delete(keyOf(of));
    this.#options.names.remove(of);
    this.#options.entries.remove(of);
  }

  #exclude(): void {
    if (!this.#local) return;
    const up = new Set(
      this.#local
        .filter(({ state, health = "healthy" }) => state === "running" && health === "healthy")
        .map(({ allocation_id }) => allocation_id),
    );
    const nodeId = this.#network?.self.node_id;
    const dead = new Set<string>();
    for (const { endpoints } of this.#services.values()) {
      for (const { node_id, allocation_id } of endpoints)
        if (node_id === nodeId && !up.has(allocation_id)) dead.add(allocation_id);
    }
    this.#options.names.exclude(dead);
    this.#options.entries.exclude(dead);
  }

  // ---- What is kept ---------------------------------------------------------------------------------------------------

  #load(): void {
    const { path, log } = this.#options;
    try {
      const { network, services } = v.parse(kept, JSON.parse(readFileSync(path, "utf8")));
      this.#network = network;
      for (const entry of services) this.#put(entry);
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent) log.warn("the last known addresses could not be read; the master will tell them", { path, error });
    }
  }

  #save(): void {
    const { path, log } = this.#options;
    this.#saveTimer?.cancel();
    this.#saveTimer = undefined;
    const text = JSON.stringify({
      ...(this.#network && { network: this.#network }),
      services: [...this.#services.values()],
    });
    try {
      writeFileSync(`${path}.new`, text, { mode: 0o600 });
      renameSync(`${path}.new`, path);
    } catch (error) {
      log.warn("the known addresses could not be written", { path, error });
    }
  }
}

function keyOf({ job_id, service_name }: { job_id: string; service_name: string }): string {
  return `${job_id}/${service_name}`;
}

/** The node's own address in the cluster's network. */
function ownAddress({ self }: NetworkMessage): string | undefined {
  const [first] = self.subnets;
  return first === undefined ? undefined : firstAddress(first);
}
