/**
 * @module The words of Cacophony for names and addresses over nodes: which addresses each node has, where a service's replicas
 * are, and the entries that lead to them. The rules of `model.ts` hold here, too. A network is known by the name that Docker
 * has for it, which is the same on every node.
 */
import * as v from "valibot";
import { count, entryPort, port, strings } from "./model_spec.ts";

/** Docker's option for the name of a network's bridge. */
export const BRIDGE_NAME_OPTION = "com.docker.network.bridge.name";
/** Linux takes 15 bytes. `all` and `default` stand for every device where settings are written by device. */
const DEVICE_NAME = /^(?!(?:all|default)$)[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$/;

/**
 * Whether a bridge has a name that firewall rules and paths can hold: iptables takes `br-+` for every bridge, and its input has
 * quotes and spaces of its own.
 */
export function isDeviceName(name: string): boolean {
  return DEVICE_NAME.test(name);
}

/** A node as the cluster's network reaches it. */
export const networkPeer = v.object({
  node_id: v.string(),
  /** IPv4 address of the machine, which packets between nodes travel by. */
  underlay: v.string(),
  /** Blocks of the cluster's range that are this node's (CIDR); the first address of the first one is the node's own. */
  subnets: strings,
  /** For WireGuard. */
  public_key: v.exactOptional(v.string()),
});
export type NetworkPeer = v.InferOutput<typeof networkPeer>;

/** One replica with an address. */
export const endpoint = v.object({
  allocation_id: v.string(),
  slot: count,
  node_id: v.string(),
  /** Running, healthy where there is a check, and not about to stop: names and entries lead to it. */
  ready: v.boolean(),
  /** This master has not heard of it from its node yet: what was known of it still holds. */
  unknown: v.exactOptional(v.literal(true)),
  /** Its IPv4 address on each of its networks. */
  addresses: v.array(v.object({ network: v.string(), address: v.string() })),
});
export type Endpoint = v.InferOutput<typeof endpoint>;

/** A service as names and entries know it. */
export const serviceEntry = v.object({
  job_id: v.string(),
  service_name: v.string(),
  /** Further names on each of its networks. */
  aliases: v.array(v.object({ network: v.string(), names: strings })),
  /** Ports of its containers that the document tells of, for SRV; `name` where it gives one. */
  ports: v.array(
    v.object({ container_port: port, protocol: v.picklist(["tcp", "udp", "sctp"]), name: v.exactOptional(v.string()) }),
  ),
  entries: v.array(entryPort),
  endpoints: v.array(endpoint),
});
export type ServiceEntry = v.InferOutput<typeof serviceEntry>;

// ---- Messages between a node and the master -------------------------------------------------------------------------

export const networkMode = v.picklist(["vxlan", "wireguard", "none"]);
export type NetworkMode = v.InferOutput<typeof networkMode>;

/** How a node takes part in the cluster's network; part of its heartbeats. */
export const nodeNetwork = v.object({
  /** `none`: its containers reach, and are reached from, this node only. */
  mode: networkMode,
  /** Why the node does not do what the cluster asks for. */
  reason: v.exactOptional(v.string()),
  /** The networks of jobs that it has, with their subnets out of its blocks. */
  networks: v.array(v.object({ network: v.string(), subnet: v.string() })),
  /** How many blocks it knows to be its own, and whether they have no room for a further network. */
  blocks: count,
  full: v.boolean(),
  /** For WireGuard. */
  public_key: v.exactOptional(v.string()),
  /** Entries that are not open here, and why. */
  entry_faults: v.exactOptional(v.array(v.object({ port, protocol: v.picklist(["tcp", "udp"]), reason: v.string() }))),
});
export type NodeNetwork = v.InferOutput<typeof nodeNetwork>;

/** All that a node must know to reach the others; the full picture each time. */
export const networkMessage = v.object({
  type: v.literal("network"),
  mode: networkMode,
  /** Why this node is left out of it. */
  reason: v.exactOptional(v.string()),
  /** The cluster's range, which all blocks are out of. */
  cidr: v.string(),
  self: networkPeer,
  peers: v.array(networkPeer),
  /** The networks that this node shares with others, with their subnets there. */
  networks: v.array(v.object({ network: v.string(), subnets: strings })),
  /** Nodes that this master has not heard of yet: what was known of their networks and keys still holds. */
  unknown: v.exactOptional(strings),
});
export type NetworkMessage = v.InferOutput<typeof networkMessage>;

/** Services that changed since the last message of this session; `full`: all there are. */
export const directoryMessage = v.object({
  type: v.literal("directory"),
  full: v.boolean(),
  services: v.array(serviceEntry),
  gone: v.array(v.object({ job_id: v.string(), service_name: v.string() })),
});
export type DirectoryMessage = v.InferOutput<typeof directoryMessage>;
