/**
 * @module The words of Cacophony for names and addresses over nodes: which addresses each node has, where a service's replicas
 * are, and the entries that lead to them. The rules of `model.ts` hold here, too. A network is known by the name that Docker
 * has for it, which is the same on every node.
 */
import * as v from "valibot";
import { count, port, strings } from "./model_spec.ts";

/** A node as the cluster's network reaches it. */
export const networkPeer = v.object({
  node_id: v.string(),
  /** IPv4 address of the machine, which packets between nodes travel by. */
  underlay: v.string(),
  /** Blocks of the cluster's range that are this node's (CIDR); the first address of the first one is the node's own. */
  subnets: strings,
});
export type NetworkPeer = v.InferOutput<typeof networkPeer>;

/** Whether an entry prefers replicas of its own node, or looks at all of them for the one with the fewest connections. */
export const balance = v.picklist(["local_first", "least_connections"]);

/** A port that is open on every node and leads to a service's replicas. */
export const entryPort = v.object({
  port,
  protocol: v.picklist(["tcp", "udp"]),
  container_port: port,
  balance,
  /** How the client's address is told to the replica (tcp only). */
  proxy_protocol: v.picklist(["none", "v1", "v2"]),
});
export type EntryPort = v.InferOutput<typeof entryPort>;

/** One replica with an address. */
export const endpoint = v.object({
  allocation_id: v.string(),
  slot: count,
  node_id: v.string(),
  /** Running, healthy where there is a check, and not about to stop: names and entries lead to it. */
  ready: v.boolean(),
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
