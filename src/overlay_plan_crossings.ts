/**
 * @module Containers on several networks: which of their addresses count on which network's bridge, by the directory. Each becomes
 * a rule, so it has to be in the blocks of its own node. Pure.
 */
import type { Endpoint, NetworkMessage, ServiceEntry } from "./model_network.ts";
import { contains } from "./subnet.ts";

/** Addresses of containers on several networks, by the network on whose bridge they count; see `FirewallBridge`. */
export type Crossings = { guests: string[]; travellers: { address: string; network: string }[] };

export function crossingsOf(services: Iterable<ServiceEntry>, { self, peers }: NetworkMessage): Map<string, Crossings> {
  const blocks = new Map([self, ...peers].map(({ node_id, subnets }) => [node_id, subnets]));
  const blocksOf = (nodeId: string) => blocks.get(nodeId) ?? [];
  const all = new Map<string, Crossings>();
  const at = (network: string) => {
    const found = all.get(network) ?? { guests: [], travellers: [] };
    all.set(network, found);
    return found;
  };
  for (const { endpoints } of services) {
    for (const { node_id, addresses } of endpoints) {
      // Most are on one network, and this is looked at with each change of the directory.
      if (addresses.length < 2) continue;
      const own = addressesInBlocks({ node_id, addresses }, blocksOf);
      if (own.length < 2) continue;
      for (const { network } of own) {
        const others = own.filter((one) => one.network !== network);
        if (node_id !== self.node_id) {
          at(network).guests.push(...others.map(({ address }) => address));
          continue;
        }
        // It may leave by this bridge for all of its networks, with its address here or, in answers, there.
        const here = own.filter((one) => one.network === network);
        for (const other of others)
          for (const { address } of [...here, other]) at(network).travellers.push({ address, network: other.network });
      }
    }
  }
  return all;
}

/** A replica's addresses that are in its own node's blocks: no others are let through for it. */
export function addressesInBlocks(
  { node_id, addresses }: Pick<Endpoint, "node_id" | "addresses">,
  blocksOf: (nodeId: string) => readonly string[],
): Endpoint["addresses"] {
  const blocks = blocksOf(node_id);
  return addresses.filter(({ address }) => blocks.some((block) => contains(block, address)));
}
