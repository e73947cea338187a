/**
 * @module What the master says of the cluster's network, checked once more where it is used: each text becomes part of a command
 * or of a rule on this machine. The message's shapes are `model_network.ts`'s; here is what they must be to each other. Pure.
 */
import type { NetworkMessage, NetworkPeer } from "./model_network.ts";
import { contains, formatAddress, parseRange } from "./subnet.ts";

/** Most blocks are of this size, so that whose a subnet is can be told without a look at all blocks. */
const BLOCK_SIZE = 256;

/**
 * The message without what leads to no node: blocks of other nodes that are outside of the cluster's range or among this node's
 * own, and subnets that are in no other node's blocks. With a sentence for each.
 * @throws Error if this node's own blocks are outside of the range.
 */
export function checkedNetwork(message: NetworkMessage): { network: NetworkMessage; faults: string[] } {
  const { cidr, self } = message;
  const outside = self.subnets.find((block) => !contains(cidr, block));
  if (outside !== undefined)
    throw new Error(`the master gives this node the block ${outside}, which is outside of the cluster's range ${cidr}`);
  const faults: string[] = [];
  const peers = message.peers.filter((peer) => {
    const fault = faultOfPeer(peer, message);
    if (fault !== undefined) faults.push(fault);
    return fault === undefined;
  });
  const isOnPeer = inBlocks(peers);
  const networks = message.networks.map(({ network, subnets }) => {
    const kept = subnets.filter(isOnPeer);
    if (kept.length < subnets.length) {
      const lost = subnets.filter((subnet) => !kept.includes(subnet));
      faults.push(`network ${network} has subnets in no other node's blocks: ${lost.join(", ")}`);
    }
    return { network, subnets: kept };
  });
  return { network: { ...message, peers, networks: networks.filter(({ subnets }) => subnets.length > 0) }, faults };
}

function faultOfPeer({ node_id, subnets }: NetworkPeer, { cidr, self }: NetworkMessage): string | undefined {
  if (node_id === self.node_id) return `node ${node_id} is this node itself`;
  const isWrong = (block: string) => !contains(cidr, block) || self.subnets.some((own) => overlap(own, block));
  const wrong = subnets.find(isWrong);
  return wrong === undefined
    ? undefined
    : `node ${node_id} has the block ${wrong}, which is this node's own or outside of the range ${cidr}`;
}

function overlap(one: string, other: string): boolean {
  return contains(one, other) || contains(other, one);
}

/** Whether a subnet is in a block of one of the nodes. */
function inBlocks(nodes: readonly NetworkPeer[]): (subnet: string) => boolean {
  const all = nodes.flatMap(({ subnets }) => subnets);
  const known = new Set(all);
  return (subnet) => {
    const { first = 0 } = parseRange(subnet) ?? {};
    const usual = `${formatAddress(Math.floor(first / BLOCK_SIZE) * BLOCK_SIZE)}/24`;
    return (known.has(usual) && contains(usual, subnet)) || all.some((block) => contains(block, subnet));
  };
}

/** The message with what was known before of nodes that the master has not heard of yet. */
export function completed(message: NetworkMessage, before: NetworkMessage | undefined): NetworkMessage {
  const { unknown = [], ...rest } = message;
  if (unknown.length === 0 || !before) return rest;
  const isSelfUnknown = unknown.includes(message.self.node_id);
  const blocks = message.peers.filter(({ node_id }) => unknown.includes(node_id)).flatMap(({ subnets }) => subnets);
  const networks = new Map(rest.networks.map(({ network, subnets }) => [network, new Set(subnets)]));
  for (const { network, subnets } of before.networks) {
    const kept = subnets.filter((subnet) => isSelfUnknown || blocks.some((block) => contains(block, subnet)));
    if (kept.length > 0) networks.set(network, new Set([...(networks.get(network) ?? []), ...kept]));
  }
  const keys = new Map(before.peers.map(({ node_id, public_key }) => [node_id, public_key]));
  const peers = rest.peers.map((peer) => {
    const key = peer.public_key ?? (unknown.includes(peer.node_id) ? keys.get(peer.node_id) : undefined);
    return { ...peer, ...(key !== undefined && { public_key: key }) };
  });
  return { ...rest, peers, networks: [...networks].map(([network, subnets]) => ({ network, subnets: [...subnets] })) };
}
