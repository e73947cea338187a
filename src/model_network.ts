/**
 * @module The words of Cacophony for names and addresses over nodes: which addresses each node has, where a service's replicas
 * are, and the entries that lead to them. The rules of `model.ts` hold here, too. A network is known by the name that Docker
 * has for it, which is the same on every node.
 */
import * as v from "valibot";
import * as b from "./model_bounds.ts";
import { entryPort, port } from "./model_spec.ts";

/** A container's address on one of its networks. */
export const networkAddress = v.object({ network: b.name, address: b.ipv4 });

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

/** A network of a job has 64 addresses on each node, 62 for containers and its gateway: more than a node usually holds of one job. */
export const SUBNET_BITS = 26;

/** A node as the cluster's network reaches it. */
export const networkPeer = v.object({
  node_id: b.id,
  /** IPv4 address of the machine, which packets between nodes travel by; empty: it has none. */
  underlay: v.union([v.literal(""), b.ipv4]),
  /** Blocks of the cluster's range that are this node's (CIDR); the first address of the first one is the node's own. */
  subnets: b.wholeList(b.cidr, b.MAX_BLOCKS),
  /** For WireGuard. */
  public_key: v.exactOptional(b.lenient(b.wireguardKey, "public_key")),
});
export type NetworkPeer = v.InferOutput<typeof networkPeer>;

/** One replica with an address. */
export const endpoint = v.object({
  allocation_id: b.id,
  slot: b.safeCount,
  node_id: b.id,
  /** Running, healthy where there is a check, and not about to stop: names and entries lead to it. */
  ready: v.boolean(),
  /** This master has not heard of it from its node yet: what was known of it still holds. */
  unknown: v.exactOptional(v.literal(true)),
  /** Its IPv4 address on each of its networks. */
  addresses: b.list(networkAddress, { max: b.MAX_SEVERAL, what: "addresses" }),
});
export type Endpoint = v.InferOutput<typeof endpoint>;

/** A service as names and entries know it. */
export const serviceEntry = v.object({
  job_id: b.id,
  service_name: b.name,
  /** Further names on each of its networks. */
  aliases: b.list(v.object({ network: b.name, names: b.list(b.name, { max: b.MAX_SEVERAL, what: "names" }) }), {
    max: b.MAX_SEVERAL,
    what: "aliases",
  }),
  /** Ports of its containers that the document tells of, for SRV; `name` where it gives one. */
  ports: b.list(
    v.object({ container_port: port, protocol: v.picklist(["tcp", "udp", "sctp"]), name: v.exactOptional(b.name) }),
    { max: b.MAX_SEVERAL, what: "ports" },
  ),
  entries: b.list(entryPort, { max: b.MAX_TAKEN_PORTS, what: "entries" }),
  endpoints: b.list(endpoint, { max: b.MAX_ENDPOINTS, what: "endpoints" }),
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
  reason: v.exactOptional(b.text(b.MAX_ERROR_CHARS)),
  /** The networks of jobs that it has, with their subnets out of its blocks. */
  networks: b.list(v.object({ network: b.name, subnet: b.cidr }), { max: b.MAX_SEVERAL, what: "overlay.networks" }),
  /** How many blocks it knows to be its own, and whether they have no room for a further network. */
  blocks: b.safeCount,
  full: v.boolean(),
  /** Further networks that they have room for. Absent: not known yet, or the node is older. */
  free: v.exactOptional(b.safeCount),
  /** For WireGuard. */
  public_key: v.exactOptional(b.lenient(b.wireguardKey, "overlay.public_key")),
  /** Entries that are not open here, and why. */
  entry_faults: v.exactOptional(
    b.list(v.object({ port, protocol: v.picklist(["tcp", "udp"]), reason: b.text(b.MAX_ERROR_CHARS) }), {
      max: b.MAX_SEVERAL,
      what: "overlay.entry_faults",
    }),
  ),
});
export type NodeNetwork = v.InferOutput<typeof nodeNetwork>;

/** All that a node must know to reach the others; the full picture each time. */
export const networkMessage = v.object({
  type: v.literal("network"),
  mode: networkMode,
  /** Why this node is left out of it. */
  reason: v.exactOptional(b.text(b.MAX_ERROR_CHARS)),
  /** The cluster's range, which all blocks are out of. */
  cidr: b.range,
  self: networkPeer,
  peers: b.list(networkPeer, { max: b.MAX_NODES, what: "peers" }),
  /** The networks that this node shares with others, with their subnets there. */
  networks: b.list(
    v.object({ network: b.name, subnets: b.list(b.cidr, { max: b.MAX_NODES, what: "networks.subnets" }) }),
    { max: b.MAX_SEVERAL, what: "networks" },
  ),
  /** Nodes that this master has not heard of yet: what was known of their networks and keys still holds. */
  unknown: v.exactOptional(b.list(b.id, { max: b.MAX_NODES, what: "unknown" })),
});
export type NetworkMessage = v.InferOutput<typeof networkMessage>;

/** Services that changed since the last message of this session; `full`: all there are. */
export const directoryMessage = v.object({
  type: v.literal("directory"),
  full: v.boolean(),
  services: b.list(serviceEntry, { max: b.MAX_SERVICES, what: "services" }),
  gone: b.list(v.object({ job_id: b.id, service_name: b.name }), { max: b.MAX_SERVICES, what: "gone" }),
});
export type DirectoryMessage = v.InferOutput<typeof directoryMessage>;
