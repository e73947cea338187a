/**
 * @module The node's DNS server, over UDP and TCP: answers about the cluster's names out of `Names`, and hands all other
 * questions to the host's resolvers. Owns its sockets, what an answer looks like, and what is done with hostile packets. Knows
 * nothing of how names are found. It should be told to listen once the directory is there: what it does not know does not exist.
 *
 * **Names of one label** that no service has go to the host's resolvers, too, as with Docker: machines of the local network are
 * known to them so, and containers with musl never try the search domains (Docker's `ndots:0`). But a "no such name" from there
 * is replaced by our own, which holds for a second: the real one, from the root of the DNS, would be kept for a day, and hide a
 * service that is made a moment later.
 *
 * **Nobody else.** Who is neither on one of the cluster's networks nor on this node is refused: an open resolver is a weapon.
 */
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { type Clock, systemClock, type Timer } from "./clock.ts";
import { Forwarder, framed, MessageReader, type Transport } from "./dns_server_forward.ts";
import {
  MAX_MESSAGE_BYTES,
  type Query,
  RCODE,
  readQuery,
  readReply,
  type ReplyBody,
  writeReply,
} from "./dns_server_packet.ts";
import { describeError, type Log } from "./log.ts";
import { DOMAIN, type NameAnswer, type NameQuestion } from "./names.ts";

export type DnsServerOptions = {
  /** Answers for the asker with this address: `Names`. */
  names: { lookup(question: NameQuestion, from: string): NameAnswer };
  log: Log;
  clock?: Clock;
  /** 53; 0: one of the system's choice for each address. */
  port?: number;
  /** Names the host's resolvers; default /etc/resolv.conf. */
  resolvConf?: string;
  /** Port of the host's resolvers; 53. */
  resolverPort?: number;
};

/** Where the server is reached. */
export type DnsAddress = { address: string; port: number };

const DNS_PORT = 53;
/** An address appears when its bridge is made; nobody should wait long for names then. */
const RETRY_MS = 1_000;
/** From a connection's last whole question on: a slow or silent client does not keep it. */
const TCP_IDLE_MS = 10_000;
/** As many open files at most. */
const MAX_CONNECTIONS = 256;
const MAX_CONNECTIONS_OF_ONE = 32;
/** Replies that a client has not taken yet; above this it is not served any more. */
const MAX_UNSENT_BYTES = 1024 * 1024;
/** The same complaint is logged once in this time. */
const COMPLAINT_INTERVAL_MS = 60_000;
const REVERSE_DOMAIN = "in-addr.arpa";

type Asker = { from: string; transport: Transport };

type Listener = {
  state: "opening" | "open" | "failed" | "closed";
  port: number;
  udp: Bun.udp.Socket<"buffer"> | undefined;
  tcp: Server | undefined;
  retry: Timer | undefined;
};

export class DnsServer {
  readonly #names: DnsServerOptions["names"];
  readonly #log: Log;
  readonly #clock: Clock;
  readonly #port: number;
  readonly #resolverPort: number;
  readonly #forwarder: Forwarder;
  readonly #listeners = new Map<string, Listener>();
  /** The askers' addresses. */
  readonly #connections = new Map<Socket, string>();
  readonly #complainedAt = new Map<string, number>();

  constructor(options: DnsServerOptions) {
    this.#names = options.names;
    this.#log = options.log;
    this.#clock = options.clock ?? systemClock;
    this.#port = options.port ?? DNS_PORT;
    this.#resolverPort = options.resolverPort ?? DNS_PORT;
    this.#forwarder = new Forwarder({
      clock: this.#clock,
      complain: (message, fields) => this.#complain(message, fields),
      resolvConf: options.resolvConf ?? "/etc/resolv.conf",
      port: this.#resolverPort,
      isSelf: (host) => this.#listeners.get(host)?.port === this.#resolverPort,
    });
  }

  /** Where it listens now. */
  get listening(): DnsAddress[] {
    return [...this.#listeners].flatMap(([address, { state, port }]) => (state === "open" ? [{ address, port }] : []));
  }

  /**
   * Listens on these addresses and no others; those that stay are not disturbed. Resolves when each was tried once. One that
   * can't be bound (yet) is reported in the log and tried again until it can, or is left out of a later call.
   */
  async listen(addresses: readonly string[]): Promise<void> {
    const wanted = new Set(addresses);
    for (const [address, listener] of this.#listeners) {
      if (wanted.has(address)) continue;
      this.#listeners.delete(address);
      close(listener);
    }
    const added = [...wanted].filter((address) => !this.#listeners.has(address));
    await Promise.all(
      added.map((address) => {
        const listener: Listener = { state: "opening", port: 0, udp: undefined, tcp: undefined, retry: undefined };
        this.#listeners.set(address, listener);
        return this.#open(address, listener);
      }),
    );
  }

  /** Closes everything; questions under way stay without a reply. */
  async stop(): Promise<void> {
    await this.listen([]);
    this.#forwarder.stop();
    for (const socket of this.#connections.keys()) socket.destroy();
  }

  async #open(address: string, listener: Listener): Promise<void> {
    const hadFailed = listener.state === "failed";
    try {
      listener.tcp = await this.#openTcp(address);
      const { port } = listener.tcp.address() as AddressInfo;
      listener.udp = await this.#openUdp(address, port);
      listener.port = port;
    } catch (error) {
      closeSockets(listener);
      if (isClosed(listener)) return;
      listener.state = "failed";
      if (!hadFailed) {
        const fields = { address, port: this.#port, reason: describeError(error), retry_ms: RETRY_MS };
        this.#log.warn("can't answer DNS on an address; will try again", fields);
      }
      listener.retry = this.#clock.after(RETRY_MS, () => void this.#open(address, listener));
      return;
    }
    // It was left out while its sockets were made.
    if (isClosed(listener)) return closeSockets(listener);
    listener.state = "open";
    if (hadFailed) this.#log.info("answers DNS on an address", { address, port: listener.port });
  }

  #openTcp(host: string): Promise<Server> {
    const server = createServer((socket) => this.#serve(socket));
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host, port: this.#port }, () => {
        server.off("error", reject);
        server.on("error", (error) =>
          this.#complain("the DNS server's TCP socket fails", { address: host, reason: describeError(error) }),
        );
        resolve(server);
      });
    });
  }

  #openUdp(hostname: string, port: number): Promise<Bun.udp.Socket<"buffer">> {
    return Bun.udpSocket({
      hostname,
      port,
      socket: {
        data: (socket, packet, fromPort, from) => {
          this.#answer(packet, { from, transport: "udp" }, (reply) => {
            // Full buffers drop it, as the network may at any time.
            if (!socket.closed) socket.send(reply, fromPort, from);
          });
        },
        // What the network says of replies that could not be delivered.
        error() {},
      },
    });
  }

  #serve(socket: Socket): void {
    const from = socket.remoteAddress;
    socket.on("error", () => socket.destroy());
    if (from === undefined || !this.#hasRoomFor(from)) return void socket.destroy();
    this.#connections.set(socket, from);
    const reader = new MessageReader();
    const expire = (): Timer => this.#clock.after(TCP_IDLE_MS, () => socket.destroy());
    let idle = expire();
    socket.on("close", () => {
      idle.cancel();
      this.#connections.delete(socket);
    });
    socket.on("data", (chunk: Buffer) => {
      const messages = reader.read(chunk);
      if (messages.length > 0) {
        idle.cancel();
        idle = expire();
      }
      for (const message of messages) {
        if (socket.destroyed) return;
        this.#answer(message, { from, transport: "tcp" }, (reply) => {
          if (socket.destroyed) return;
          if (socket.writableLength > MAX_UNSENT_BYTES) return void socket.destroy();
          socket.write(framed(reply));
        });
      }
    });
  }

  #hasRoomFor(from: string): boolean {
    if (this.#connections.size >= MAX_CONNECTIONS) return false;
    let own = 0;
    for (const other of this.#connections.values()) if (other === from) own++;
    return own < MAX_CONNECTIONS_OF_ONE;
  }

  /** Calls `send` at most once, now or later. Nothing that a packet holds makes it throw. */
  #answer(packet: Buffer, asker: Asker, send: (reply: Buffer) => void): void {
    const failed = (error: unknown): void =>
      this.#complain("a DNS question could not be answered", { from: asker.from, reason: describeError(error) });
    try {
      const query = readQuery(packet);
      if (!query) return;
      if ("reply" in query) return send(query.reply);
      const answer = this.#names.lookup(query, asker.from);
      if (answer.state !== "not_ours") return send(written(query, asker, bodyOf(answer, query.name)));
      // The packet's memory is the socket's, and may be used again for the next one.
      this.#forward({ ...query, packet: Buffer.from(packet) }, asker)
        .then(send)
        .catch(failed);
    } catch (error) {
      failed(error);
    }
  }

  async #forward(query: Query, asker: Asker): Promise<Buffer> {
    const reply = await this.#forwarder.forward(query, asker);
    const isReply = Buffer.isBuffer(reply);
    const isNoSuchName = isReply ? readReply(reply, query)?.rcode === RCODE.noSuchName : reply === "no_resolver";
    const hasOneLabel = !query.name.includes(".");
    if (hasOneLabel && isNoSuchName) return written(query, asker, bodyOf({ state: "no_such_name" }, query.name));
    return isReply ? reply : written(query, asker, { rcode: RCODE.failure });
  }

  #complain(message: string, fields: Record<string, unknown>): void {
    const now = this.#clock.now();
    if (now - (this.#complainedAt.get(message) ?? -Infinity) < COMPLAINT_INTERVAL_MS) return;
    this.#complainedAt.set(message, now);
    this.#log.warn(message, fields);
  }
}

function written(query: Query, { transport }: Asker, body: ReplyBody): Buffer {
  return writeReply(query, body, transport === "tcp" ? MAX_MESSAGE_BYTES : query.maxUdpBytes);
}

function bodyOf(answer: Exclude<NameAnswer, { state: "not_ours" }>, name: string): ReplyBody {
  if (answer.state === "refused") return { rcode: RCODE.refused };
  if (answer.state === "no_such_name") return { rcode: RCODE.noSuchName, zone: zoneAbove(name) };
  const { records, additional } = answer;
  return { rcode: RCODE.ok, records, additional, ...(records.length === 0 && { zone: name }) };
}

/** The zone that says of a name that it does not exist. */
function zoneAbove(name: string): string {
  const above = [DOMAIN, REVERSE_DOMAIN].find((zone) => name.toLowerCase().endsWith(`.${zone}`));
  if (above !== undefined) return above;
  return name.includes(".") ? name.slice(name.indexOf(".") + 1) : ".";
}

/** A function of its own: the state may have become another while something was waited for. */
function isClosed(listener: Listener): boolean {
  return listener.state === "closed";
}

function close(listener: Listener): void {
  listener.state = "closed";
  listener.retry?.cancel();
  closeSockets(listener);
}

function closeSockets(listener: Listener): void {
  listener.udp?.close();
  listener.tcp?.close();
  listener.udp = undefined;
  listener.tcp = undefined;
}
