/**
 * @module What tests and measurements of DNS share: a small directory, a client, and a resolver that plays the host's.
 */
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { decode, type DecodedPacket, encode, type Packet } from "dns-packet";
import type { ServiceEntry } from "../src/model_network.ts";
import { Names } from "../src/names.ts";

/** A service of job `shop` whose replicas have the addresses from 10.213.8.0 on, or the `first`-th after it. */
export function shopService(service_name: string, replicas: number, first = 0): ServiceEntry {
  return {
    job_id: "shop",
    service_name,
    aliases: [],
    ports: [{ container_port: 80, protocol: "tcp", name: "http" }],
    entries: [],
    endpoints: Array.from({ length: replicas }, (_, index) => ({
      allocation_id: `${service_name}-${index}`,
      slot: index + 1,
      node_id: "n1",
      ready: true,
      addresses: [
        { network: "shop_default", address: `10.213.${8 + ((first + index) >> 8)}.${(first + index) & 255}` },
      ],
    })),
  };
}

/** Names for an asker on loopback, which is the node itself and sees all. */
export function namesOf(...services: ServiceEntry[]): Names {
  const names = new Names({ random: Math.random, range: "10.213.0.0/16" });
  for (const service of services) names.put(service);
  return names;
}

export function question(name: string, type: string, rest: Partial<Packet> = {}): Buffer {
  const asked = { name, type: type as "A" };
  return encode({ type: "query", id: 4711, flags: 0x0100, questions: [asked], ...rest });
}

export function edns(udpPayloadSize: number, ednsVersion = 0): Partial<Packet> {
  const common = { name: ".", extendedRcode: 0, flags: 0, flag_do: false, options: [] };
  return { additionals: [{ type: "OPT", udpPayloadSize, ednsVersion, ...common }] };
}

/** One packet, one reply. @throws if none comes in time. */
export async function askUdp(
  port: number,
  packet: Buffer,
  timeoutMs = 5_000,
): Promise<DecodedPacket & { rcode: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const socket = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    socket: { data: (_, data) => resolve(data), error: () => reject(new Error("nobody listens there")) },
  });
  const timer = setTimeout(() => reject(new Error(`no reply within ${timeoutMs} ms`)), timeoutMs);
  try {
    socket.send(packet);
    return decoded(await promise);
  } finally {
    clearTimeout(timer);
    socket.close();
  }
}

/** Sends the bytes as they are and reads `count` replies, or fewer where the connection ends. */
export function askTcp(port: number, bytes: Buffer, count = 1): Promise<(DecodedPacket & { rcode: string })[]> {
  return new Promise((resolve, reject) => {
    const replies: (DecodedPacket & { rcode: string })[] = [];
    let data = Buffer.alloc(0);
    const socket = connect({ host: "127.0.0.1", port }, () => socket.write(bytes));
    socket.on("data", (chunk: Buffer) => {
      data = Buffer.concat([data, chunk]);
      while (data.length >= 2 && data.length >= 2 + data.readUInt16BE(0)) {
        replies.push(decoded(data.subarray(2, 2 + data.readUInt16BE(0))));
        data = data.subarray(2 + data.readUInt16BE(0));
      }
      if (replies.length >= count) socket.destroy();
    });
    socket.on("error", reject);
    socket.on("close", () => resolve(replies));
  });
}

export function framed(packet: Buffer): Buffer {
  return Buffer.concat([Buffer.from([packet.length >> 8, packet.length & 255]), packet]);
}

export function decoded(packet: Buffer): DecodedPacket & { rcode: string } {
  return decode(packet) as DecodedPacket & { rcode: string };
}

export type Resolver = { port: number; asked: { packet: Buffer; port: number }[]; stop(): Promise<void> };

/** A resolver at `host` that sends what `reply` makes of each query, over UDP and TCP; nothing for undefined. */
export async function startResolver(
  reply: (query: Buffer, transport: "udp" | "tcp") => Buffer | Buffer[] | undefined,
  { host = "127.0.0.1", port = 0 }: { host?: string; port?: number } = {},
): Promise<Resolver> {
  const asked: Resolver["asked"] = [];
  const tcp: Server = createServer((socket) => {
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => {
      const packet = chunk.subarray(2);
      asked.push({ packet, port: socket.remotePort ?? 0 });
      for (const one of [reply(packet, "tcp") ?? []].flat()) socket.write(framed(one));
    });
  });
  await new Promise<void>((resolve, reject) => void tcp.on("error", reject).listen(port, host, resolve));
  const udp = await Bun.udpSocket({
    hostname: host,
    port: (tcp.address() as AddressInfo).port,
    socket: {
      data(socket, packet, from, address) {
        asked.push({ packet, port: from });
        for (const one of [reply(packet, "udp") ?? []].flat()) socket.send(one, from, address);
      },
    },
  });
  const stop = async (): Promise<void> => {
    udp.close();
    await new Promise((resolve) => tcp.close(resolve));
  };
  return { port: udp.port, asked, stop };
}

/** A reply to the query with these addresses, or with this RCODE. */
export function answerOf(query: Buffer, what: { addresses?: string[]; rcode?: number; truncated?: boolean }): Buffer {
  const { id, questions = [] } = decode(query);
  const name = questions[0]?.name ?? ".";
  const answers = (what.addresses ?? []).map((data) => ({ type: "A" as const, name, ttl: 300, data }));
  const flags = 0x0180 | (what.truncated ? 0x0200 : 0) | (what.rcode ?? 0);
  return encode({ type: "response", id: id ?? 0, flags, questions, answers });
}
