/**
 * @module The PROXY protocol's header, which tells a replica the address of the client behind an entry.
 * Source: "The PROXY protocol, versions 1 & 2" (haproxy, doc/proxy-protocol.txt), sections 2.1 and 2.2.
 */
import { isIP } from "node:net";

export type Peers = { source: { address: string; port: number }; destination: { address: string; port: number } };

const V2_SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
/** Version 2, command PROXY. */
const V2_PROXY = 0x21;
const V2_TCP4 = 0x11;
const V2_TCP6 = 0x21;
const V2_UNSPEC = 0x00;
const IPV4_IN_IPV6 = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i;

/**
 * The bytes that go before the client's own. An IPv4 client of a socket for both families (`::ffff:192.0.2.1`) is an IPv4
 * client. Addresses that are not known, or not of one family, make the header that says so: UNKNOWN, or UNSPEC.
 */
export function proxyHeader(version: "v1" | "v2", { source, destination }: Peers): Uint8Array {
  const addresses = [source.address, destination.address].map(plainAddress);
  const [from = "", to = ""] = addresses;
  const family = isIP(from) === isIP(to) ? isIP(from) : 0;
  if (version === "v1") {
    const line = family === 0 ? "PROXY UNKNOWN" : `PROXY TCP${family} ${from} ${to} ${source.port} ${destination.port}`;
    return new TextEncoder().encode(`${line}\r\n`);
  }
  const toBytes = family === 4 ? ipv4Bytes : ipv6Bytes;
  const ports = [source.port, destination.port].flatMap((port) => [port >> 8, port & 0xff]);
  const block = family === 0 ? [] : [...addresses.flatMap(toBytes), ...ports];
  const kind = family === 4 ? V2_TCP4 : family === 6 ? V2_TCP6 : V2_UNSPEC;
  return Uint8Array.from([...V2_SIGNATURE, V2_PROXY, kind, 0, block.length, ...block]);
}

/** Without a zone (`fe80::1%eth0`), and as IPv4 where it is that. */
function plainAddress(address: string): string {
  const bare = address.split("%")[0] ?? "";
  return IPV4_IN_IPV6.exec(bare)?.[1] ?? bare;
}

function ipv4Bytes(address: string): number[] {
  return address.split(".").map(Number);
}

function ipv6Bytes(address: string): number[] {
  // The last 32 bits may be written as IPv4.
  const end = address.lastIndexOf(":") + 1;
  const [a = 0, b = 0, c = 0, d = 0] = ipv4Bytes(address.slice(end));
  const words = `${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  const text = address.includes(".") ? `${address.slice(0, end)}${words}` : address;
  const [head = "", tail] = text.split("::");
  const groups = (part: string) => (part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16)));
  const [before, after] = [groups(head), groups(tail ?? "")];
  const zeros = Array.from({ length: 8 - before.length - after.length }, () => 0);
  return [...before, ...zeros, ...after].flatMap((group) => [group >> 8, group & 0xff]);
}
