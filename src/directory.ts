/**
 * @module The master's side of names and addresses: from the cluster's state it makes what each node must know of the others'
 * addresses (`network` messages) and of where services are (`directory` messages), and sends what changed. Decides nothing;
 * the node's side is `overlay.ts`.
 */
import type { Clock, Timer } from "./clock.ts";
import { bySlot, type ClusterState, type ServiceKey, parseServiceKey, serviceKey } from "./cluster_state.ts";
import { exposedPorts, networkName } from "./container_options.ts";
import type { Faults } from "./log_faults.ts";
import type { AllocationRecord } from "./model.ts";
import type { ServiceSpec } from "./model_spec.ts";
import type {
  DirectoryMessage,
  Endpoint,
  NetworkMessage,
  NetworkMode,
  NetworkPeer,
  ServiceEntry,
} from "./model_network.ts";
import { contains } from "./subnet.ts";

/** Changes of this span are one message: a name is to be known within milliseconds of its replica's start. */
const FLUSH_DELAY_MS = 5;
/** Ports of a service that names lead to; `expose: 1-65535` would be megabytes for every node. */
const MAX_PORTS = 256;

export type DirectoryOptions = {
  state: ClusterState;
  clock: Clock;
  /** Hears of a service or a node that nothing can be told of: the others are told all the same. */
  faults: Faults;
  network: () => { mode: NetworkMode; cidr: string };
};

type Send = (message: NetworkMessage | DirectoryMessage) => void;
/** Subnets of each network, by the node that has them. */
type Places = ReadonlyMap<string, readonly { node_id: string; subnet: string }[]>;
/** What goes into the messages of all nodes, worked out once for them; nodes in their order. */
type Overview = { places: Places; peers: readonly NetworkPeer[]; unknown: readonly string[]; hasRoom: boolean };
type Link = { send: Send; sentNetwork: string };

export class Directory {
  readonly #options: DirectoryOptions;
  readonly #links = new Map<string, Link>();
  /** What was sent last, by service; every link has had all of it. */
  readonly #entries = new Map<ServiceKey, { entry: ServiceEntry; text: string }>();
  readonly #dirty = new Set<ServiceKey>();
  readonly #listeners = new Set<(keys: readonly ServiceKey[]) => void>();
  #networksDirty = false;
  #timer: Timer | undefined;

  constructor(options: DirectoryOptions) {
    this.#options = options;
  }

  stop(): void {
    this.#timer?.cancel();
    this.#links.clear();
  }

  /** From here on the node is told, beginning with all there is; so it must be before any assignments. */
  attach(nodeId: string, send: Send): void {
    // What changed of networks alone goes to the others soon: when all nodes come at once, not to all of them for each one.
    if (this.#dirty.size > 0) this.flush();
    const link = { send, sentNetwork: "" };
    this.#links.set(nodeId, link);
    this.#sendNetwork(nodeId, { link, overview: this.#overview() });
    send({
      type: "directory",
      full: true,
      services: Array.from(this.#entries.values(), ({ entry }) => entry),
      gone: [],
    });
    this.touchNetworks();
  }

  /** The node has got its first block, or there is none left: it hears of that at once, and the others soon. */
  introduce(nodeId: string): void {
    const link = this.#links.get(nodeId);
    if (link) this.#sendNetwork(nodeId, { link, overview: this.#overview() });
    this.touchNetworks();
  }

  detach(nodeId: string): void {
    this.#links.delete(nodeId);
  }

  /** Something about these services, or their replicas, may have changed. */
  touch(keys: Iterable<ServiceKey>): void {
    for (const key of keys) this.#dirty.add(key);
    if (this.#dirty.size > 0) this.#schedule();
  }

  /** A node's addresses or networks changed. */
  touchNetworks(): void {
    this.#networksDirty = true;
    this.#schedule();
  }

  /** Sends what changed now: whoever is told to stop a replica must hear after all others that its name is gone. */
  flush(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    if (this.#networksDirty) {
      const overview = this.#overview();
      for (const [nodeId, link] of this.#links) this.#sendNetwork(nodeId, { link, overview });
    }
    this.#networksDirty = false;
    const services: ServiceEntry[] = [];
    const gone: DirectoryMessage["gone"] = [];
    for (const key of this.#dirty) {
      const before = this.#entries.get(key);
      // What cannot be told anew stays as it was told.
      const { entry, text } =
        this.#worked("services", () => written(this.#entryOf(key)), { service: key }) ?? before ?? {};
      if (before?.text === text) continue;
      if (entry && text !== undefined) {
        this.#entries.set(key, { entry, text });
        services.push(entry);
      } else if (before) {
        this.#entries.delete(key);
        gone.push({ job_id: before.entry.job_id, service_name: before.entry.service_name });
      }
    }
    const looked = [...this.#dirty];
    this.#dirty.clear();
    // Also where nodes hear of nothing new: a replica's state is more than whether it is ready.
    if (looked.length > 0) for (const listener of this.#listeners) this.#worked("listeners", () => listener(looked));
    if (services.length === 0 && gone.length === 0) return;
    const message: DirectoryMessage = { type: "directory", full: false, services, gone };
    for (const [node, { send }] of this.#links) this.#worked("nodes", () => send(message), { node });
  }

  #worked<T>(whose: string, work: () => T, fields: Record<string, string> = {}): T | undefined {
    return this.#options.faults.attempt(`an error of Cacophony itself in the directory of ${whose}`, work, fields);
  }

  /** Calls `listener` with the services that changed, until what it returns is called. */
  subscribe(listener: (keys: readonly ServiceKey[]) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** A service as nodes know it. */
  entry(key: ServiceKey): ServiceEntry | undefined {
    // Who asks for what he has just put is to find it.
    if (this.#dirty.has(key)) this.flush();
    return this.#entries.get(key)?.entry;
  }

  /** All services, as nodes know them. */
  entries(): ServiceEntry[] {
    if (this.#dirty.size > 0) this.flush();
    return Array.from(this.#entries.values(), ({ entry }) => entry);
  }

  #schedule(): void {
    this.#timer ??= this.#options.clock.after(FLUSH_DELAY_MS, () => this.flush());
  }

  #overview(): Overview {
    const { state, network } = this.#options;
    // Who has no block yet has no networks either, and nothing to do with those of others.
    const all = [...state.nodes.values()].filter(({ subnets }) => subnets !== undefined);
    const ids = all.map(({ node_id }) => node_id).toSorted();
    return {
      places: this.#places(ids),
      peers: ids.flatMap((node) => this.#worked("nodes", () => this.#peer(node), { node }) ?? []),
      unknown: ids.filter((id) => !state.views.get(id)?.overlay && !state.isDown(id)),
      hasRoom: all.length < state.nodes.size && state.blocks.free(network().cidr) !== undefined,
    };
  }

  /** Where each network is, in the order of nodes. */
  #places(ids: readonly string[]): Places {
    const { state } = this.#options;
    const places = new Map<string, { node_id: string; subnet: string }[]>();
    const add = (node_id: string) => {
      const { subnets = [] } = state.nodes.get(node_id) ?? {};
      for (const { network, subnet } of state.views.get(node_id)?.overlay?.networks ?? []) {
        // What a node says becomes rules on others, so it is about its own addresses and no others.
        if (!subnets.some((block) => contains(block, subnet))) continue;
        const known = places.get(network);
        if (known) known.push({ node_id, subnet });
        else places.set(network, [{ node_id, subnet }]);
      }
    };
    for (const node of ids) this.#worked("nodes", () => add(node), { node });
    return places;
  }

  #sendNetwork(nodeId: string, { link, overview }: { link: Link; overview: Overview }): void {
    const message = this.#worked("nodes", () => this.#networkOf(nodeId, overview), { node: nodeId });
    if (!message) return;
    const text = JSON.stringify(message);
    if (text === link.sentNetwork) return;
    link.sentNetwork = text;
    link.send(message);
  }

  #networkOf(nodeId: string, { places, peers, unknown: all, hasRoom }: Overview): NetworkMessage | undefined {
    const { state, network } = this.#options;
    const node = state.nodes.get(nodeId);
    if (!node) return undefined;
    // It gets a block when it is ready; without a message it starts nothing until then.
    if (!node.subnets && hasRoom) return undefined;
    const { underlay = "", subnets = [] } = node;
    const key = state.views.get(nodeId)?.overlay?.public_key;
    const self = { node_id: nodeId, underlay, subnets, ...(key !== undefined && { public_key: key }) };
    const wanted = network();
    const reason =
      subnets.length > 0
        ? "it has no IPv4 address that other nodes reach: give it one with --advertise-addr"
        : `the cluster's range ${wanted.cidr} has no block left for it`;
    const isIn = wanted.mode === "none" || (subnets.length > 0 && underlay !== "");
    const elsewhere = (name: string) =>
      (places.get(name) ?? []).flatMap(({ node_id, subnet }) => (node_id === nodeId ? [] : [subnet]));
    const own = state.views.get(nodeId)?.overlay?.networks ?? [];
    // Itself first, as ever.
    const unknown = all.includes(nodeId) ? [nodeId, ...all.filter((id) => id !== nodeId)] : all;
    return {
      type: "network",
      ...(isIn ? wanted : { ...wanted, mode: "none", reason }),
      self,
      peers: peers.filter(({ node_id }) => node_id !== nodeId),
      // Those that are on other nodes, too: the others are no news to the node.
      networks: own.flatMap(({ network: name }) => {
        const subnets = elsewhere(name);
        return subnets.length > 0 ? [{ network: name, subnets }] : [];
      }),
      ...(unknown.length > 0 && { unknown: [...unknown] }),
    };
  }

  /** A node as others reach it; undefined where it takes no part in the network. */
  #peer(nodeId: string): NetworkPeer | undefined {
    const { state } = this.#options;
    const node = state.nodes.get(nodeId);
    const overlay = state.views.get(nodeId)?.overlay;
    if (node?.underlay === undefined || node.subnets === undefined || overlay?.mode === "none") return undefined;
    const key = overlay?.public_key;
    return {
      node_id: nodeId,
      underlay: node.underlay,
      subnets: node.subnets,
      ...(key === undefined ? {} : { public_key: key }),
    };
  }

  #entryOf(key: ServiceKey): ServiceEntry | undefined {
    const { state } = this.#options;
    const { job_id, service_name } = parseServiceKey(key);
    const service = state.liveJob(job_id)?.services.find((one) => one.service_name === service_name);
    const spec = service && state.specs.get(service.spec_hash);
    if (!service || !spec) return undefined;
    const entries = service.rules.entries ?? [];
    return {
      job_id,
      service_name,
      aliases: aliasesOf(spec, job_id),
      ports: portsOf(spec, entries),
      entries,
      endpoints: state
        .allocationsOf(serviceKey({ job_id, service_name }))
        .toSorted(bySlot)
        .flatMap((allocation) => this.#endpointOf(allocation) ?? []),
    };
  }

  #endpointOf(allocation: AllocationRecord): Endpoint | undefined {
    const { state } = this.#options;
    const { allocation_id, slot, node_id, desired } = allocation;
    const status = state.status(allocation);
    if (!status && !state.views.get(node_id)?.reported && !state.isDown(node_id) && desired === "run")
      return { allocation_id, slot, node_id, ready: false, unknown: true, addresses: [] };
    if (!status?.addresses || status.addresses.length === 0) return undefined;
    const isUp = status.state === "running" && (status.health ?? "healthy") === "healthy";
    const ready = isUp && desired === "run" && !state.isDown(node_id);
    return { allocation_id, slot, node_id, ready, addresses: this.#own(node_id, status.addresses) };
  }

  /**
   * A replica's addresses, of the cluster's range those in its node's blocks: where it has several, each lets the others through on
   * other nodes. A node without the network takes addresses from anywhere in the range; of those one is told, which does nothing.
   */
  #own(nodeId: string, addresses: Endpoint["addresses"]): Endpoint["addresses"] {
    const { state, network } = this.#options;
    if (addresses.length < 2) return addresses;
    const range = network().cidr;
    const { subnets = [] } = state.nodes.get(nodeId) ?? {};
    const isForeign = (address: string) =>
      contains(range, address) && !subnets.some((block) => contains(block, address));
    const kept = addresses.filter(({ address }) => !isForeign(address));
    const isNone = !kept.some(({ address }) => contains(range, address));
    const first = isNone && addresses.find(({ address }) => isForeign(address));
    return first ? addresses.filter((one) => one === first || kept.includes(one)) : kept;
  }
}

/** An entry with its text, by which it is told from others. */
function written(entry: ServiceEntry | undefined): { entry?: ServiceEntry; text?: string } {
  return entry ? { entry, text: JSON.stringify(entry) } : {};
}

function aliasesOf(spec: ServiceSpec, jobId: string): ServiceEntry["aliases"] {
  const everywhere = spec.network_aliases ?? [];
  if (spec.network_mode) return [];
  if (!spec.networks) return [{ network: `${jobId}_default`, names: everywhere }];
  // Those without a name count, too: the service is on them, whether a replica runs or not.
  return spec.networks.map(({ network, aliases }) => ({
    network: networkName(network, jobId),
    names: [...new Set([...aliases, ...everywhere])],
  }));
}

/** What containers listen on, as far as the document tells. */
function portsOf(spec: ServiceSpec, entries: ServiceEntry["entries"]): ServiceEntry["ports"] {
  const ports = new Map(
    [...exposedPorts(spec), ...entries].map(({ container_port, protocol }) => [
      `${container_port}/${protocol}`,
      { container_port, protocol },
    ]),
  );
  return [...ports.values()].slice(0, MAX_PORTS);
}
