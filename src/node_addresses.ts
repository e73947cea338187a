/** @module Where the APIs of nodes can be reached: this node's own addresses, for the others to know, and those of all nodes. */
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { networkInterfaces } from "node:os";
import { type Address, isLoopback, isWildcard, parseAddress } from "./address.ts";
import type { Peer } from "./model.ts";

/** More addresses of one machine are not told to others. */
const MAX_ADDRESSES = 64;
/**
 * Docker's bridges and the ends of its containers' cables, and our own devices: other machines do not reach them. `br-lan` is none
 * of Docker's, but what some machines have their address on.
 */
const LOCAL_DEVICES = /^(?:docker\d|docker_gwbridge$|br-[0-9a-f]{12}$|veth|cvx|cwg)/;

/** The IP addresses that other machines may reach this node's API by, of those it listens on. */
export function ownApiAddresses(listens: readonly string[], underlay: string | undefined): string[] {
  const isEverywhere = listens.some(isWildcard);
  const known = listens.filter((host) => isIP(host) !== 0 && !isWildcard(host) && !isLoopback(host));
  const ofMachine = Object.entries(networkInterfaces()).flatMap(([device, all = []]) =>
    isLocalDevice(device)
      ? []
      : all.filter(({ internal, address }) => !internal && !address.startsWith("fe80:")).map(({ address }) => address),
  );
  const addresses = [...known, ...(underlay === undefined ? [] : [underlay]), ...(isEverywhere ? ofMachine : [])];
  return [...new Set(addresses)].toSorted().slice(0, MAX_ADDRESSES);
}

/** The port that this node listens on, where others reach it by another one. */
export function mappedPort(bind: Address | undefined, advertised: string): { api_port?: number } {
  if (!bind || advertised === "") return {};
  const { port } = parseAddress(advertised, "the advertised address");
  return port === bind.port ? {} : { api_port: bind.port };
}

/** Whether no other machine reaches addresses of this device. */
export function isLocalDevice(name: string): boolean {
  return LOCAL_DEVICES.test(name);
}

type Api = { address: string; port: number };

/**
 * Where the APIs of nodes are; of this one, too, which may be reached by an address that a router translates to its own. What one
 * of them says amiss costs the others nothing.
 */
export async function apisOf(peers: readonly Peer[]): Promise<Api[]> {
  const found = await Promise.allSettled(peers.map(apisOfNode));
  return found.flatMap((result) => (result.status === "fulfilled" ? result.value : []));
}

/** The addresses that the master holds for proven; a master of an earlier version tells none, and the node's own word counts. */
async function apisOfNode({ address, api_addresses: proven, api_port }: Peer): Promise<Api[]> {
  const { host, port } = parseAddress(address, "the address of a node");
  const found = proven ?? (isIP(host) === 0 ? (await lookup(host, { all: true })).map((one) => one.address) : [host]);
  const ports = new Set([port, api_port ?? port]);
  return found.flatMap((one) => [...ports].map((each) => ({ address: one, port: each })));
}
