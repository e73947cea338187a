/**
 * @module One UDP port of the entry: a session for each client's address and port, with a replica of its own.
 *
 * A session has its own socket to its replica, so that answers find their way back; they leave from the entry's port. It stays
 * with its replica while that one is ready, moves to another with the next datagram when it is not, and ends when nothing was
 * said for a while. Datagrams may be lost, as they may be anywhere.
 */
import type { Timer } from "./clock.ts";
import { repeat } from "./clock_loop.ts";
import type { Replica, Route } from "./entry_choice.ts";
import { NodeSockets, type NodeSocket, type Receive } from "./entry_proxy_addresses.ts";
import { EntryListener } from "./entry_proxy_listener.ts";
import { EntryLoads } from "./entry_proxy_loads.ts";
import type { EntryPortOptions } from "./entry_proxy_tcp.ts";

/** A session that was quiet for this long is over, as with Docker's own proxy. */
const IDLE_MS = 90_000;
const SWEEP_INTERVAL_MS = IDLE_MS / 4;
/** Each session has a descriptor. The one that was quiet for the longest time makes room. */
const MAX_PORT_SESSIONS = 2_000;
/** Datagrams of a client that wait for the socket of its session to open, which takes a moment only. */
const MAX_WAITING = 16;

/** Who asks, and what answers leave through. */
type Client = { address: string; port: number; socket: NodeSocket };

export type UdpPortOptions = EntryPortOptions & { nodeAddresses: () => string[] };

export class UdpPort {
  readonly #options: UdpPortOptions;
  readonly #loads: EntryLoads<Session>;
  /** By client; the one that was quiet for the longest time comes first. */
  readonly #sessions = new Map<string, Session>();
  #listener: EntryListener | undefined;
  #sweep: Timer | undefined;
  #refused = 0;

  constructor(options: UdpPortOptions) {
    this.#options = options;
    this.#loads = new EntryLoads(options);
  }

  get isIdle(): boolean {
    return !this.#listener;
  }

  /** Leads datagrams by `route` from now on, and listens just while there is one. */
  lead(route: Route | undefined, { excluded }: { excluded: ReadonlySet<string> }): void {
    this.#loads.lead(route, excluded);
    if (!route) return this.stop();
    const { clock, random, log, name } = this.#options;
    this.#listener ??= new EntryListener({ clock, random, log, port: name, open: () => this.#listen() });
    const ids = new Set(route.replicas.map(({ allocation_id }) => allocation_id));
    for (const session of this.#sessions.values()) if (!ids.has(session.allocationId ?? "")) session.end();
  }

  status(): { reason: string | undefined; connections: number; refused: number } {
    return { reason: this.#listener?.reason, connections: this.#sessions.size, refused: this.#refused };
  }

  /** Nothing: a session moves on as soon as its replica is about to stop. */
  draining(): Iterable<[allocationId: string, connections: number]> {
    return [];
  }

  stop(): void {
    this.#listener?.stop();
    this.#listener = undefined;
    this.#sweep?.cancel();
    this.#sweep = undefined;
    for (const session of this.#sessions.values()) session.end();
  }

  #listen(): Promise<() => void> {
    const { clock, log, port, nodeAddresses } = this.#options;
    const receive: Receive = (socket, data, fromPort, address) =>
      this.#receive(data, { address, port: fromPort, socket });
    return new NodeSockets({ clock, log, port, nodeAddresses, receive }).open();
  }

  #receive(data: Uint8Array, client: Client): void {
    const key = `${client.address} ${client.port} ${client.socket.hostname}`;
    const session = this.#sessions.get(key) ?? this.#begin(key, client);
    if (!session?.send(data)) {
      this.#refused++;
      session?.end();
      return;
    }
    // Taken out and put in again: the last one is the one that was heard last.
    this.#sessions.delete(key);
    this.#sessions.set(key, session);
  }

  #begin(key: string, client: Client): Session | undefined {
    const { budget, clock, log, name } = this.#options;
    if (budget.free < 1 || this.#sessions.size >= MAX_PORT_SESSIONS) this.#sessions.values().next().value?.end();
    if (budget.free < 1) return undefined;
    budget.free--;
    this.#sweep ??= repeat(clock, {
      firstMs: SWEEP_INTERVAL_MS,
      retryMs: SWEEP_INTERVAL_MS,
      work: () => this.#endIdle(),
      onFault: (error) =>
        log.error("an error of Cacophony itself: quiet sessions were not ended", { port: name, error }),
    });
    return new Session({
      loads: this.#loads,
      now: () => clock.now(),
      answer: (data) => answer(client, data),
      onEnd: () => {
        budget.free++;
        this.#sessions.delete(key);
      },
    });
  }

  #endIdle(): number | undefined {
    const before = this.#options.clock.now() - IDLE_MS;
    for (const session of this.#sessions.values()) if (session.lastAt <= before) session.end();
    if (this.#sessions.size > 0) return SWEEP_INTERVAL_MS;
    this.#sweep = undefined;
    return undefined;
  }
}

function answer({ address, port, socket }: Client, data: Uint8Array): void {
  try {
    socket.send(data, port, address);
  } catch {
    // There is no way to that client any more, and no one to tell.
  }
}

type SessionOptions = {
  loads: EntryLoads<Session>;
  now: () => number;
  answer: (data: Uint8Array) => void;
  onEnd: () => void;
};

/** One client's way to a replica. */
class Session {
  readonly #options: SessionOptions;
  lastAt: number;
  #replica: Replica | undefined;
  #socket: Bun.udp.ConnectedSocket<"uint8array"> | undefined;
  /** What waits for the socket. */
  #waiting: Uint8Array[] = [];
  /** The last datagram, while nothing came back: it goes to another replica when this one refuses it. */
  #unanswered: Uint8Array | undefined;
  #over = false;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.lastAt = options.now();
  }

  get allocationId(): string | undefined {
    return this.#replica?.allocation_id;
  }

  /** False when there is no replica to send it to. */
  send(data: Uint8Array): boolean {
    const { loads, now } = this.#options;
    this.lastAt = now();
    const { allocation_id = "", address } = this.#replica ?? {};
    const accepting = loads.accepting(allocation_id);
    // Started anew, it may have another address.
    if (!accepting || accepting.address !== address) this.#move({ evenFailing: true });
    return this.#deliver(data);
  }

  end(): void {
    if (this.#over) return;
    this.#over = true;
    this.#leave();
    this.#options.onEnd();
  }

  #deliver(data: Uint8Array): boolean {
    if (!this.#replica) return false;
    this.#unanswered = data;
    if (this.#socket) this.#put(data);
    else if (this.#waiting.length < MAX_WAITING) this.#waiting.push(data);
    return true;
  }

  #leave(): void {
    if (this.#replica) this.#options.loads.remove(this.#replica.allocation_id, this);
    this.#replica = undefined;
    this.#socket?.close();
    this.#socket = undefined;
    this.#waiting = [];
  }

  /** Goes to another replica, if there is one; those that just failed count with `evenFailing` only. */
  #move({ evenFailing }: { evenFailing: boolean }): void {
    const { loads } = this.#options;
    this.#leave();
    const chosen = loads.choose(NONE_TRIED);
    const port = loads.route?.container_port;
    if (!chosen || port === undefined || (chosen.failing && !evenFailing)) return;
    const { replica } = chosen;
    this.#replica = replica;
    loads.add(replica.allocation_id, this);
    openSocket({ address: replica.address, port }, this.#handlers(replica)).then(
      (socket) => {
        if (this.#replica !== replica) return socket.close();
        this.#socket = socket;
        const waiting = this.#waiting;
        this.#waiting = [];
        for (const data of waiting) this.#put(data);
      },
      () => this.#refusedBy(replica),
    );
  }

  #handlers(replica: Replica): Bun.udp.ConnectedSocketHandler<"uint8array"> {
    return {
      data: (_socket, data) => {
        this.lastAt = this.#options.now();
        this.#unanswered = undefined;
        this.#options.answer(data);
      },
      // An ICMP error: nobody listens there, or there is no way.
      error: () => this.#refusedBy(replica),
    };
  }

  #put(data: Uint8Array): void {
    try {
      this.#socket?.send(data);
    } catch {
      // The error of an earlier datagram is told here, too.
      if (this.#replica) this.#refusedBy(this.#replica);
    }
  }

  #refusedBy(replica: Replica): void {
    if (this.#over || this.#replica !== replica) return;
    const { loads } = this.#options;
    loads.failed(replica.allocation_id);
    const data = this.#unanswered;
    // Where all just failed, only the client's next datagram tries them again: no round without an end.
    this.#move({ evenFailing: false });
    if (data) this.#deliver(data);
  }
}

const NONE_TRIED: ReadonlySet<string> = new Set();

function openSocket(
  connect: { address: string; port: number },
  socket: Bun.udp.ConnectedSocketHandler<"uint8array">,
): Promise<Bun.udp.ConnectedSocket<"uint8array">> {
  const { address, port } = connect;
  // Its own end must be of the family of the other one.
  const hostname = address.includes(":") ? "::" : "0.0.0.0";
  return Bun.udpSocket({ hostname, connect: { hostname: address, port }, binaryType: "uint8array", socket });
}
