/** @module Network addresses as people write them: `10.0.0.1:9000`, `[::1]:9000`, `node-a:9000`, `node-a`. */
import { isIP } from "node:net";
import { StartError } from "./model.ts";

export const DEFAULT_PORT = 9000;

export type Address = { host: string; port: number };

/**
 * Reads an address; without a port it gets port 9000.
 * @throws StartError naming `what` (the option) and the text when it is none.
 */
export function parseAddress(text: string, what: string): Address {
  const match = /^(?:\[([0-9a-fA-F:.%]+)\]|([\p{L}\p{N}._-]+))(?::(\d{1,5}))?$/u.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? DEFAULT_PORT : Number(match[3]);
  const badNumbers = host !== undefined && /^[\d.]+$/.test(host) && isIP(host) === 0;
  const badIpv6 = match?.[1] !== undefined && isIP(match[1]) !== 6;
  if (host === undefined || badNumbers || badIpv6 || port < 1 || port > 65535) {
    throw new StartError(`${what} '${text}' is no address: write HOST:PORT, such as 10.0.0.1:9000 or [fd00::1]:9000`);
  }
  return { host, port };
}

export function formatAddress({ host, port }: Address): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Whether the host stands for all addresses of the machine. */
export function isWildcard(host: string): boolean {
  return host === "0.0.0.0" || host === "::";
}

/** An IPv4 address as a socket for both versions shows it, without what that puts in front of it. */
export function withoutIpv6Prefix(address: string): string {
  return address.startsWith("::ffff:") ? address.slice("::ffff:".length) : address;
}

/** Whether only this machine reaches the host. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}
