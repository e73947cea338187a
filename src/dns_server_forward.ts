/**
 * @module Questions about names that are not the cluster's: they go to the host's resolvers as they came, and the first useful
 * reply comes back. Owns the list of resolvers, in the order of the host's resolv.conf(5), and the limits on questions under way.
 *
 * Each question has a socket of its own, and so a port of the kernel's choice, and a random id; only what comes from the resolver
 * that was asked, with that id and the same question, is a reply.
 */
import { randomInt } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { connect, isIP } from "node:net";
import type { Clock } from "./clock.ts";
import { MAX_MESSAGE_BYTES, type Query, RCODE, readReply, withId } from "./dns_server_packet.ts";
import { describeError } from "./log.ts";

export type Transport = "udp" | "tcp";

export type ForwarderOptions = {
  clock: Clock;
  /** Logs; what is said again and again, too seldom to matter. */
  complain: (message: string, fields: Record<string, unknown>) => void;
  /** The host's resolv.conf. */
  resolvConf: string;
  /** Port of the resolvers. */
  port: number;
  /** Whether a resolver is this very server. */
  isSelf: (host: string) => boolean;
};

/** A reply as it is, `no_resolver` if there is nobody to ask, `failed` if nobody answers or too much is under way. */
export type Forwarded = Buffer | "no_resolver" | "failed";

/** As in glibc (MAXNS). */
const MAX_RESOLVERS = 3;
/** Three resolvers in turn have answered or failed before a client's second try (5 s in glibc and musl) has done so. */
const REPLY_TIMEOUT_MS = 2_000;
/** A resolver that gave no reply is asked after the others for this long. */
const SILENT_MS = 10_000;
/** How often a look is taken at resolv.conf. */
const LOOK_INTERVAL_MS = 1_000;
/** Each question under way has a socket: below the usual limit of 1,024 open files together with all else. */
const MAX_UNDER_WAY = 512;
/** One asker's share of them, so that none can keep the others from asking. */
const MAX_UNDER_WAY_OF_ONE = 128;
/** What makes the next resolver worth a try: as in glibc. */
const USELESS: ReadonlySet<number> = new Set([RCODE.failure, RCODE.notImplemented, RCODE.refused]);

export class Forwarder {
  readonly #options: ForwarderOptions;
  readonly #silentUntil = new Map<string, number>();
  readonly #underWay = new Map<string, number>();
  #total = 0;
  #resolvers: { hosts: string[]; version: string; lookedAt: number } = { hosts: [], version: "", lookedAt: -Infinity };
  /** Ends what is under way. */
  readonly #stops = new Set<() => void>();
  #isStopped = false;

  constructor(options: ForwarderOptions) {
    this.#options = options;
  }

  /** Asks the resolvers one after the other. `from`: the asker's address. Never rejects. */
  async forward(query: Query, { from, transport }: { from: string; transport: Transport }): Promise<Forwarded> {
    const hosts = this.#order();
    if (hosts.length === 0) return "no_resolver";
    const own = this.#underWay.get(from) ?? 0;
    if (this.#total >= MAX_UNDER_WAY || own >= MAX_UNDER_WAY_OF_ONE) {
      this.#options.complain("too many DNS questions are under way to the host's resolvers", { from });
      return "failed";
    }
    this.#total++;
    this.#underWay.set(from, own + 1);
    try {
      return await this.#ask(query, { hosts, transport });
    } finally {
      this.#total--;
      const left = (this.#underWay.get(from) ?? 1) - 1;
      if (left > 0) this.#underWay.set(from, left);
      else this.#underWay.delete(from);
    }
  }

  stop(): void {
    this.#isStopped = true;
    for (const stop of this.#stops) stop();
  }

  async #ask(query: Query, { hosts, transport }: { hosts: string[]; transport: Transport }): Promise<Forwarded> {
    let useless: Buffer | undefined;
    for (const host of hosts) {
      if (this.#isStopped) break;
      const sent = { packet: withId(query.packet, randomInt(0x10000)), end: query.end };
      const reply = await (transport === "udp" ? this.#overUdp(sent, host) : this.#overTcp(sent, host));
      if (reply === undefined) {
        if (!this.#isStopped) this.#silentUntil.set(host, this.#options.clock.now() + SILENT_MS);
        continue;
      }
      this.#silentUntil.delete(host);
      const answer = withId(reply.packet, query.packet.readUInt16BE(0));
      if (!USELESS.has(reply.rcode)) return answer;
      useless = answer;
    }
    if (useless === undefined && !this.#isStopped) this.#options.complain("no resolver of the host answers", { hosts });
    return useless ?? "failed";
  }

  #overUdp(sent: Pick<Query, "packet" | "end">, host: string): Promise<Reply | undefined> {
    return this.#exchange((finish) => {
      let socket: Bun.udp.ConnectedSocket<"buffer"> | undefined;
      let isOver = false;
      const open = async (): Promise<void> => {
        const opened = await Bun.udpSocket({
          connect: { hostname: host, port: this.#options.port },
          socket: {
            data(_, packet) {
              const read = readReply(packet, sent);
              if (read) finish({ packet, rcode: read.rcode });
            },
            // The host says that nobody listens there.
            error: () => finish(undefined),
          },
        });
        if (isOver) return opened.close();
        socket = opened;
        if (!socket.send(sent.packet)) finish(undefined);
      };
      open().catch(() => finish(undefined));
      return () => {
        isOver = true;
        socket?.close();
      };
    });
  }

  #overTcp(sent: Pick<Query, "packet" | "end">, host: string): Promise<Reply | undefined> {
    return this.#exchange((finish) => {
      const socket = connect({ host, port: this.#options.port });
      const reader = new MessageReader();
      socket.on("connect", () => socket.write(framed(sent.packet)));
      socket.on("data", (chunk: Buffer) => {
        for (const packet of reader.read(chunk)) {
          const read = readReply(packet, sent);
          if (read) finish({ packet, rcode: read.rcode });
        }
      });
      socket.on("error", () => finish(undefined));
      socket.on("close", () => finish(undefined));
      return () => socket.destroy();
    });
  }

  /** Resolves with the first thing that `begin` finishes with, or undefined in the end; what `begin` returns cleans up. */
  #exchange(begin: (finish: (reply: Reply | undefined) => void) => () => void): Promise<Reply | undefined> {
    return new Promise((resolve) => {
      const finish = (reply: Reply | undefined): void => {
        if (!this.#stops.delete(stop)) return;
        timer.cancel();
        close();
        resolve(reply);
      };
      const stop = (): void => finish(undefined);
      const timer = this.#options.clock.after(REPLY_TIMEOUT_MS, stop);
      this.#stops.add(stop);
      let close = (): void => {};
      try {
        close = begin(finish);
      } catch {
        stop();
      }
    });
  }

  /** The resolvers to ask, those that were silent a moment ago last. */
  #order(): string[] {
    const now = this.#options.clock.now();
    this.#look(now);
    const hosts = this.#resolvers.hosts.filter((host) => !this.#options.isSelf(host)).slice(0, MAX_RESOLVERS);
    const isSilent = (host: string): boolean => (this.#silentUntil.get(host) ?? 0) > now;
    return [...hosts.filter((host) => !isSilent(host)), ...hosts.filter(isSilent)];
  }

  /** Reads resolv.conf again where it changed. While it can't be read, what was last read holds. */
  #look(now: number): void {
    if (now - this.#resolvers.lookedAt < LOOK_INTERVAL_MS) return;
    this.#resolvers.lookedAt = now;
    const { resolvConf } = this.#options;
    try {
      const { mtimeMs, size, ino } = statSync(resolvConf);
      const version = `${mtimeMs}/${size}/${ino}`;
      if (version === this.#resolvers.version) return;
      this.#resolvers = { hosts: parseResolvers(readFileSync(resolvConf, "utf8")), version, lookedAt: now };
      this.#silentUntil.clear();
    } catch (error) {
      this.#options.complain("can't read the host's resolvers", { file: resolvConf, reason: describeError(error) });
    }
  }
}

type Reply = { packet: Buffer; rcode: number };

/** Puts a stream of DNS over TCP back into messages (RFC 1035, 4.2.2: two bytes of length before each). */
export class MessageReader {
  #chunks: Buffer[] = [];
  #bytes = 0;
  /** Bytes of the next message with its length, or of the length alone; until then chunks are only kept. */
  #needed = 2;

  read(chunk: Buffer): Buffer[] {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    if (this.#bytes < this.#needed) return [];
    let data = Buffer.concat(this.#chunks);
    const messages: Buffer[] = [];
    for (;;) {
      this.#needed = data.length < 2 ? 2 : 2 + data.readUInt16BE(0);
      if (data.length < this.#needed) break;
      messages.push(data.subarray(2, this.#needed));
      data = data.subarray(this.#needed);
    }
    this.#chunks = [data];
    this.#bytes = data.length;
    return messages;
  }
}

/** @throws RangeError if the message is longer than DNS over TCP can say. */
export function framed(message: Buffer): Buffer {
  if (message.length > MAX_MESSAGE_BYTES) throw new RangeError(`a DNS message has ${message.length} bytes`);
  const length = Buffer.alloc(2);
  length.writeUInt16BE(message.length);
  return Buffer.concat([length, message]);
}

/** Addresses in the lines `nameserver`; a file without any means this host (resolv.conf(5)). */
function parseResolvers(text: string): string[] {
  const hosts = [...text.matchAll(/^[ \t]*nameserver[ \t]+(\S+)/gm)].flatMap(([, host = ""]) =>
    isIP(host) ? [host] : [],
  );
  return hosts.length > 0 ? [...new Set(hosts)] : ["127.0.0.1"];
}
