/**
 * @module Room for networks: which networks of a job take a subnet out of a node's blocks of addresses, and whether a node has one
 * left for them, or a further block may bring it. Pure; `cluster_state.ts` says what each node has, `placement.ts` asks.
 *
 * A block has room for four networks, and the first one for three, as the node's own address is in it. The cluster's range has so
 * many blocks and no more, and all nodes get theirs out of it.
 */
import { BLOCK_BITS } from "./cluster_state_blocks.ts";
import { networkName } from "./container_options.ts";
import { MAX_BLOCKS } from "./model_bounds.ts";
import { type NodeNetwork, SUBNET_BITS } from "./model_network.ts";
import type { NetworkSpec, ServiceSpec } from "./model_spec.ts";

/** Networks that a block has room for. */
export const NETWORKS_PER_BLOCK = 2 ** (SUBNET_BITS - BLOCK_BITS);

/** Blocks of the cluster's range that nobody has yet; counted into as networks are placed. One for all candidates of a pass. */
export type FreeBlocks = { range: string; left: number };

/** Room of one node, counted into as `occupy` places. */
export type NetworkRoom = {
  /** Names of the networks that are there, that are to come with what is placed there, and that were counted in since. */
  known: ReadonlySet<string>;
  promised: ReadonlySet<string>;
  added?: Set<string>;
  /** Further networks that its blocks have room for. A node without a block lacks the place of its own address, so it has -1. */
  own: number;
  /** How many blocks it has. */
  blocks: number;
  free: FreeBlocks;
};

/** What is known of a node's networks. `told` and `networks` undefined: it has not said. */
export type RoomFacts = {
  subnets: readonly string[];
  told: NodeNetwork | undefined;
  networks: ReadonlySet<string> | undefined;
  /** Names of those that take a subnet here for what is placed on it. */
  promised: ReadonlySet<string>;
};

const NONE: ReadonlySet<string> = new Set();

/** The room of a node; undefined where nothing limits it: a node that does without the cluster's network takes any address. */
export function roomOf(
  { subnets, told, networks, promised }: RoomFacts,
  { mode, free }: { mode: NodeNetwork["mode"]; free: FreeBlocks },
): NetworkRoom | undefined {
  const blocks = subnets.length;
  if (mode === "none" || (told?.mode === "none" && blocks > 0)) return undefined;
  const known = networks ?? (told ? new Set(told.networks.map(({ network }) => network)) : NONE);
  const room: NetworkRoom = { known, promised, own: leftIn(blocks, told), blocks, free };
  let lacking = 0;
  for (const name of promised) if (!known.has(name)) lacking++;
  use(room, lacking);
  return room;
}

/** Further networks that so many blocks have room for, by what the node says. Nodes of earlier versions name only what they have. */
function leftIn(blocks: number, told: NodeNetwork | undefined): number {
  if (blocks === 0) return -1;
  if (told?.free !== undefined) return told.free + (blocks - told.blocks) * NETWORKS_PER_BLOCK;
  return blocks * NETWORKS_PER_BLOCK - 1 - (told?.networks.length ?? 0);
}

/** Why the node has no room for the networks of these services of a job, in one sentence; undefined: it has. */
export function lackOfNetworks(specs: readonly ServiceSpec[], jobId: string, room: NetworkRoom): string | undefined {
  const { own, blocks, free } = room;
  const most = own + Math.min(free.left, MAX_BLOCKS - blocks) * NETWORKS_PER_BLOCK;
  const asked = specs.reduce((sum, { networks }) => sum + (networks?.length ?? 1), 0);
  if (asked <= most) return undefined;
  const missing = missingIn(specs, { jobId, room });
  if (missing.length <= Math.max(0, most)) return undefined;
  const why =
    blocks < MAX_BLOCKS
      ? `all blocks of the cluster's range ${free.range} are taken; have fewer networks, or nodes, or begin a cluster with a larger --network-cidr`
      : `the node has ${MAX_BLOCKS} blocks, and gets no more; have fewer networks on each node`;
  return `no addresses for network ${missing.join(" and ")}: ${why}`;
}

/** Counts the networks of a service in that is placed there. */
export function takeNetworks(spec: ServiceSpec, jobId: string, room: NetworkRoom): void {
  const missing = missingIn([spec], { jobId, room });
  if (missing.length === 0) return;
  room.added = new Set([...(room.added ?? []), ...missing]);
  use(room, missing.length);
}

function use(room: NetworkRoom, networks: number): void {
  room.own -= networks;
  while (networks > 0 && room.own < 0 && room.free.left > 0 && room.blocks < MAX_BLOCKS) {
    room.own += NETWORKS_PER_BLOCK;
    room.blocks++;
    room.free.left--;
  }
}

function missingIn(specs: readonly ServiceSpec[], { jobId, room }: { jobId: string; room: NetworkRoom }): string[] {
  const { known, promised, added } = room;
  const names = new Set(specs.flatMap((spec) => poolNetworks(spec, jobId)));
  return [...names].filter((name) => !known.has(name) && !promised.has(name) && !added?.has(name));
}

/** Names of a service's networks that take a subnet out of its node's blocks. */
export function poolNetworks({ network_mode, networks }: ServiceSpec, jobId: string): string[] {
  if (network_mode) return [];
  if (!networks) return [`${jobId}_default`];
  const own = networks.filter(({ network }) => !network.external && isFromPool(network));
  return own.map(({ network }) => networkName(network, jobId));
}

/** The IPv4 subnet that a network's definition names. */
export function askedSubnet(network: NetworkSpec | undefined): string | undefined {
  return network?.ipam?.config.find(({ subnet }) => subnet !== undefined && !subnet.includes(":"))?.subnet;
}

/** Whether a network gets a subnet of ours: not where it names its own, where a plugin hands out addresses, nor without IPv4. */
export function isFromPool(network: NetworkSpec | undefined): boolean {
  if (askedSubnet(network) !== undefined || network?.enable_ipv4 === false) return false;
  return ["", "default"].includes(network?.ipam?.driver ?? "");
}
