/** @module Who is connected to a container, as the kernel has it: by the container's own /proc/PID/net/tcp (proc(5)). */
import { readFileSync } from "node:fs";
import { endianness } from "node:os";
import { parseAddress } from "./subnet.ts";

/** State of an open connection in /proc/net/tcp (Linux, include/net/tcp_states.h: TCP_ESTABLISHED). */
const ESTABLISHED = "01";

/** How many TCP connections the network of process `pid` has with these IPv4 addresses; 0 where that cannot be read. */
export function connectionsWith(
  addresses: readonly string[],
  { pid, procDir = "/proc" }: { pid: number; procDir?: string },
): number {
  const wanted = new Set(addresses.flatMap((address) => inHex(address) ?? []));
  if (wanted.size === 0) return 0;
  return ["tcp", "tcp6"]
    .flatMap((name) => remotesIn(`${procDir}/${pid}/net/${name}`))
    .filter((remote) => wanted.has(remote)).length;
}

/** The other ends of open connections; of IPv6 ones the last word, which is the address of an IPv4 client. */
function remotesIn(path: string): string[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return [];
  }
  const line = new RegExp(`^ *\\d+: \\S+ ([0-9A-F]{8,32}):[0-9A-F]{4} ${ESTABLISHED} `, "gm");
  return Array.from(text.matchAll(line), ([, address = ""]) => address.slice(-8));
}

/** An address as /proc writes it: a 32-bit word in the machine's byte order. */
function inHex(address: string): string | undefined {
  const number = parseAddress(address);
  if (number === undefined) return undefined;
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(number);
  return (endianness() === "LE" ? bytes.reverse() : bytes).toString("hex").toUpperCase();
}
