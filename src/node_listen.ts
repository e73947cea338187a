/**
 * @module Where a node listens, and where others reach it. A worker that was not told listens on the address from which it
 * reaches its peers, and on loopback for local tools; while it reaches none it takes the address that it had last, if the
 * machine still has it, and else waits.
 */
import { lookup } from "node:dns/promises";
import { networkInterfaces } from "node:os";
import { type Address, DEFAULT_PORT, formatAddress, isLoopback, isWildcard, parseAddress } from "./address.ts";
import type { Identity } from "./data_dir.ts";
import { StartError } from "./model.ts";
import { localAddressTowards } from "./transport.ts";

const LOOPBACK = "127.0.0.1";

/** The address to listen on; undefined: it is not known before a peer can be reached. */
export async function bindAddress(identity: Identity): Promise<Address | undefined> {
  const { role, settings, last_bind_addr: last } = identity;
  if (settings.bind_addr !== undefined) return parseAddress(settings.bind_addr, "--bind-addr");
  if (role === "master") return { host: LOOPBACK, port: DEFAULT_PORT };
  const towards = await bindTowards(peersOf(identity));
  if (towards || last === undefined) return towards;
  const address = parseAddress(last, "last_bind_addr in node.json");
  return ownHosts().includes(address.host) ? address : undefined;
}

/** The port that it listens on, wherever that is. */
export function apiPortOf({ settings: { bind_addr: bind } }: Identity): number {
  return bind === undefined ? DEFAULT_PORT : parseAddress(bind, "--bind-addr").port;
}

/** This machine's address from which it reaches the first of these peers that answers. */
export async function bindTowards(peers: readonly string[]): Promise<Address | undefined> {
  for (const peer of peers) {
    // oxlint-disable-next-line no-await-in-loop -- the first that answers decides
    const host = await localHostTowards(peer);
    if (host !== undefined) return { host, port: DEFAULT_PORT };
  }
  return undefined;
}

/** All addresses to listen on. `bind` is undefined while it is not known. */
export function listenAddresses(bind: Address | undefined, { role, settings }: Identity): Address[] {
  const loopback = { host: LOOPBACK, port: bind?.port ?? DEFAULT_PORT };
  if (!bind) return [loopback];
  const isChosen = settings.bind_addr === undefined && role === "worker";
  return isChosen && !isLoopback(bind.host) ? [bind, loopback] : [bind];
}

/** The address at which others reach the node; empty while the node does not know where it listens. */
export async function advertisedAddress(bind: Address | undefined, identity: Identity): Promise<string> {
  const { settings } = identity;
  if (settings.advertise_addr !== undefined)
    return formatAddress(parseAddress(settings.advertise_addr, "--advertise-addr"));
  if (!bind) return "";
  if (!isWildcard(bind.host)) return formatAddress(bind);
  // A master is its own first peer: the address that it had before says nothing of where others reach it now.
  const towards = identity.role === "master" ? undefined : await bindTowards(peersOf(identity));
  const own = Object.values(networkInterfaces())
    .flat()
    .find((one) => one && !one.internal && one.family === "IPv4");
  return formatAddress({ host: towards?.host ?? own?.address ?? LOOPBACK, port: bind.port });
}

/** The IPv4 address behind the one that others reach this node at. */
export async function underlayOf(advertised: string): Promise<string | undefined> {
  if (advertised === "") return undefined;
  const { host } = parseAddress(advertised, "the advertised address");
  const found = await lookup(host, { family: 4 }).catch(() => undefined);
  return found?.address;
}

/** Peers that the node was told of by its master and its operator, not by others. */
export function peersOf({ master, join_address }: Identity): string[] {
  return [master?.address, join_address].flatMap((address) => address ?? []);
}

async function localHostTowards(peer: string): Promise<string | undefined> {
  try {
    return await localAddressTowards(parseAddress(peer, "the address of a peer"));
  } catch (error) {
    // What another node told is no reason to end.
    if (error instanceof StartError) return undefined;
    throw error;
  }
}

function ownHosts(): string[] {
  return Object.values(networkInterfaces()).flatMap((all) => (all ?? []).map(({ address }) => address));
}
