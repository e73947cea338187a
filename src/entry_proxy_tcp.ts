/**
 * @module One TCP port of the entry: takes connections, leads each to a replica and passes the bytes on, both ways.
 *
 * Sockets are Bun's own: `write` takes what the kernel takes, and the rest (one read at most) waits here while the other side is
 * not read, so that a slow reader fills the kernel's buffers and then stops the writer. A FIN is passed on when all before it
 * is, each way by itself; a reset is passed on as a reset.
 *
 * There is no idle timeout: a database connection may be quiet for days. Peers that are gone without a word are found by
 * keepalive.
 *
 * Limits that are the kernel's and Bun's: 512 connections wait to be taken, and a client beyond them asks again after a second.
 * A connection that its client ended first keeps one of about 28,000 ports towards its replica for a minute, which is 470 new
 * ones a second to one replica, unless net.ipv4.tcp_tw_reuse is 1.
 */
import type { Socket } from "bun";
import type { Clock, Timer } from "./clock.ts";
import type { Replica, Route } from "./entry_choice.ts";
import { EntryListener, errorCode } from "./entry_proxy_listener.ts";
import { EntryLoads } from "./entry_proxy_loads.ts";
import { proxyHeader } from "./entry_proxy_header.ts";
import { describeError, type Log } from "./log.ts";

/** Whether the directory names an allocation, and no other address for it. */
export type Known = (allocationId: string, address: string) => boolean;

/** What the entries of a node share: descriptors that they may still open. */
export type Budget = { free: number };

export type EntryPortOptions = {
  clock: Clock;
  random: () => number;
  log: Log;
  /** As in `tcp/80`. */
  name: string;
  port: number;
  budget: Budget;
};

/** A replica that does not answer a connect within this time is left for another one. A SYN is first repeated after 1 s. */
const CONNECT_TIMEOUT_MS = 1_000;
/**
 * A client waits this long for a replica to become ready, as between the last stop and the first start of an update; it is as
 * long as its own kernel would wait before it asked a host that lost its SYN again. Later it is better to know.
 */
const REPLICA_WAIT_MS = 1_000;
/** No further replica is tried for a connection that is this old: its client has given up, or will. */
const LEAD_LIMIT_MS = 10_000;
/** How long a connection is quiet before the kernel asks whether its peer is there; ten times unanswered, it is reset. */
const KEEPALIVE_MS = 60_000;
/** One port must not take all that the node has for entries. */
const MAX_PORT_CONNECTIONS = 10_000;
/** What another family can't help against. */
const TAKEN_OR_FORBIDDEN = new Set(["EADDRINUSE", "EACCES", "EPERM"]);
/** A connection has a socket to its client and one to its replica. */
const DESCRIPTORS = 2;

/** One end of a connection. */
type Side = {
  readonly link: Link;
  socket: Socket<Side> | undefined;
  /** Bytes for it that its kernel has no room for; at most one read of the other side. */
  pending: Uint8Array | undefined;
  /** It has sent its FIN: nothing more comes from it. */
  ended: boolean;
};

export class TcpPort {
  readonly #options: EntryPortOptions;
  readonly #loads: EntryLoads<Link>;
  readonly #links = new Set<Link>();
  readonly #waiting = new Set<Link>();
  #listener: EntryListener | undefined;
  /** Clients that were sent away since the start: no replica, or too many connections. */
  #refused = 0;

  constructor(options: EntryPortOptions) {
    this.#options = options;
    this.#loads = new EntryLoads(options);
  }

  /** Nothing is open and nobody wants it. */
  get isIdle(): boolean {
    return !this.#listener && this.#links.size === 0;
  }

  /**
   * Leads new connections by `route` from now on, and listens just while there is one. Connections to replicas that are not
   * `known` any more are reset; others are left alone.
   */
  lead(route: Route | undefined, { excluded, known }: { excluded: ReadonlySet<string>; known: Known }): void {
    this.#loads.lead(route, excluded);
    for (const [id, links] of this.#loads.open()) {
      for (const link of links) if (!known(id, link.address)) link.lost();
    }
    if (!route) {
      this.#listener?.stop();
      this.#listener = undefined;
    } else {
      const { clock, random, log, name } = this.#options;
      this.#listener ??= new EntryListener({ clock, random, log, port: name, open: async () => this.#listen() });
    }
    for (const link of this.#waiting) link.lead();
  }

  status(): { reason: string | undefined; connections: number; refused: number } {
    return { reason: this.#listener?.reason, connections: this.#links.size, refused: this.#refused };
  }

  /** Open connections to allocations that get no new ones. */
  *draining(): Iterable<[allocationId: string, connections: number]> {
    for (const [id, links] of this.#loads.open()) if (!this.#loads.accepting(id)) yield [id, links.size];
  }

  stop(): void {
    this.#listener?.stop();
    this.#listener = undefined;
    for (const link of this.#links) link.reset();
  }

  /** One socket takes both families. Bun sets no SO_REUSEPORT here: a port that somebody else has is refused. */
  #listen(): () => void {
    const listen = (hostname: string) =>
      Bun.listen<Side>({
        hostname,
        port: this.#options.port,
        allowHalfOpen: true,
        socket: { ...passOn, open: (socket) => this.#accept(socket) },
      });
    try {
      const listener = listen("::");
      return () => listener.stop();
    } catch (error) {
      if (TAKEN_OR_FORBIDDEN.has(errorCode(error))) throw error;
      // A kernel without IPv6 has no `::`.
      const listener = listen("0.0.0.0");
      return () => listener.stop();
    }
  }

  #accept(socket: Socket<Side>): void {
    const { budget, log, name } = this.#options;
    if (budget.free < DESCRIPTORS || this.#links.size >= MAX_PORT_CONNECTIONS) {
      this.#refused++;
      log.debug("entry refused a client: too many connections", { port: name, connections: this.#links.size });
      socket.terminate();
      return;
    }
    budget.free -= DESCRIPTORS;
    const link = new Link(socket, {
      ...this.#options,
      loads: this.#loads,
      onWait: () => this.#waiting.add(link),
      onLed: () => this.#waiting.delete(link),
      onRefused: () => this.#refused++,
      onEnd: () => {
        budget.free += DESCRIPTORS;
        this.#links.delete(link);
        this.#waiting.delete(link);
      },
    });
    this.#links.add(link);
    link.lead();
  }
}

type LinkOptions = EntryPortOptions & {
  loads: EntryLoads<Link>;
  onWait: () => void;
  onLed: () => void;
  onRefused: () => void;
  onEnd: () => void;
};

/** A client's connection and the one to its replica. */
class Link {
  readonly #options: LinkOptions;
  readonly #client: Side;
  readonly #began: number;
  readonly #tried = new Set<string>();
  #server: Side | undefined;
  #replica: Replica | undefined;
  /** The connect that is under way. */
  #attempt: Attempt | undefined;
  #giveUp: Timer | undefined;
  #over = false;

  constructor(socket: Socket<Side>, options: LinkOptions) {
    this.#options = options;
    this.#began = options.clock.now();
    this.#client = { link: this, socket, pending: undefined, ended: false };
    socket.data = this.#client;
    socket.setKeepAlive(true, KEEPALIVE_MS);
    // What the client says stays in the kernel until there is somebody to say it to.
    socket.pause();
  }

  /** Where its replica is; empty while it has none. */
  get address(): string {
    return this.#replica?.address ?? "";
  }

  /** Goes for a replica, unless it has one or is on its way. */
  lead(): void {
    if (this.#over || this.#server || this.#attempt) return;
    const { clock, loads, onWait, onLed } = this.#options;
    const ageMs = clock.now() - this.#began;
    const chosen = ageMs < LEAD_LIMIT_MS ? loads.choose(this.#tried) : undefined;
    const route = loads.route;
    if (chosen && route) {
      onLed();
      this.#giveUp?.cancel();
      this.#connect(chosen.replica, route);
    } else if (ageMs >= REPLICA_WAIT_MS) {
      this.#refuse();
    } else {
      onWait();
      this.#giveUp?.cancel();
      this.#giveUp = clock.after(REPLICA_WAIT_MS - ageMs, () => this.#refuse());
    }
  }

  /** Its replica is gone. A connection that is not connected yet goes on to another. */
  lost(): void {
    if (this.#attempt) this.#attempt.giveUp("it is gone");
    else this.reset();
  }

  /** Ends both sides at once, with a reset. */
  reset(): void {
    if (this.#over) return;
    this.#over = true;
    this.#giveUp?.cancel();
    this.#attempt?.abandon();
    if (this.#replica) this.#options.loads.remove(this.#replica.allocation_id, this);
    for (const side of [this.#client, this.#server]) {
      const socket = side?.socket;
      if (!side || !socket) continue;
      side.socket = undefined;
      side.pending = undefined;
      socket.terminate();
    }
    this.#options.onEnd();
  }

  /** The side that bytes of `side` go to. */
  other(side: Side): Side | undefined {
    return side === this.#client ? this.#server : this.#client;
  }

  /** The socket of `side` is closed: in order when its FIN came and ours went, else its end is the end of both. */
  closed(side: Side, error: Error | undefined): void {
    side.socket = undefined;
    if (this.#over) return;
    const other = this.other(side);
    if (error || !other?.ended) return this.reset();
    // Bun tells of a FIN that answers ours by the close alone.
    if (!side.ended) endOf(side);
    if (!other.socket) this.reset();
  }

  #connect(replica: Replica, route: Route): void {
    const { clock, loads, log, name } = this.#options;
    const id = replica.allocation_id;
    this.#tried.add(id);
    // It counts from now on, so that those who come in the meantime look elsewhere.
    loads.add(id, this);
    this.#replica = replica;
    this.#attempt = new Attempt({
      clock,
      side: { link: this, socket: undefined, pending: undefined, ended: false },
      hostname: replica.address,
      port: route.container_port,
      onOpen: (side) => {
        this.#attempt = undefined;
        loads.reached(id);
        this.#join(side, route);
      },
      onFailed: (error) => {
        this.#attempt = undefined;
        this.#replica = undefined;
        log.debug("entry could not reach a replica", { port: name, allocation: id, error: describeError(error) });
        loads.failed(id);
        loads.remove(id, this);
        this.lead();
      },
      onHang: (by) => loads.hangs(id, by),
    });
  }

  /** Both sides are there: the header first, then what the client has said meanwhile. */
  #join(server: Side, route: Route): void {
    const client = this.#client.socket;
    if (!client || !server.socket) return this.reset();
    this.#server = server;
    server.socket.setKeepAlive(true, KEEPALIVE_MS);
    if (route.proxy_protocol !== "none") {
      // Who is gone has no address, and its close is about to be told.
      if (!client.remoteAddress) return this.reset();
      const header = proxyHeader(route.proxy_protocol, {
        source: { address: client.remoteAddress, port: client.remotePort },
        destination: { address: client.localAddress, port: client.localPort },
      });
      give(server, header);
    }
    if (!server.pending) client.resume();
  }

  #refuse(): void {
    const { log, name, loads, onRefused } = this.#options;
    const { job_id: job, service_name: service } = loads.route ?? {};
    log.debug("entry refused a client: no replica", { port: name, job, service, tried: this.#tried.size });
    onRefused();
    this.reset();
  }
}

type AttemptOptions = {
  clock: Clock;
  side: Side;
  hostname: string;
  port: number;
  onOpen: (side: Side) => void;
  onFailed: (error: unknown) => void;
  /** Bun can't call off a connect: one that is abandoned goes on until the kernel gives it up. */
  onHang: (by: 1 | -1) => void;
};

/** One connect to one replica. */
class Attempt {
  readonly #options: AttemptOptions;
  readonly #timer: Timer;
  #state: "waiting" | "abandoned" | "done" = "waiting";

  constructor(options: AttemptOptions) {
    this.#options = options;
    const { clock, side, hostname, port } = options;
    this.#timer = clock.after(CONNECT_TIMEOUT_MS, () => this.giveUp(`no answer within ${CONNECT_TIMEOUT_MS} ms`));
    const socket = { ...passOn, open: (opened: Socket<Side>) => this.#opened(opened) };
    const dial = async () => Bun.connect<Side>({ hostname, port, allowHalfOpen: true, data: side, socket });
    dial().catch((error: unknown) => this.#failed(error));
  }

  giveUp(reason: string): void {
    this.abandon();
    this.#options.onFailed(new Error(reason));
  }

  /** Nobody wants to know how it ends. */
  abandon(): void {
    if (this.#state !== "waiting") return;
    this.#state = "abandoned";
    this.#timer.cancel();
    this.#options.onHang(1);
  }

  #opened(socket: Socket<Side>): void {
    if (!this.#finish()) return socket.terminate();
    const { side, onOpen } = this.#options;
    side.socket = socket;
    onOpen(side);
  }

  #failed(error: unknown): void {
    if (this.#finish()) this.#options.onFailed(error);
  }

  /** Whether somebody still waits for it. */
  #finish(): boolean {
    const before = this.#state;
    this.#state = "done";
    this.#timer.cancel();
    if (before === "abandoned") this.#options.onHang(-1);
    return before === "waiting";
  }
}

// ---- Bytes -----------------------------------------------------------------------------------------------------------------

/** The same for both sides; `data` of a socket is its Side. */
const passOn = {
  binaryType: "uint8array" as const,
  data(socket: Socket<Side>, chunk: Uint8Array): void {
    const side = socket.data;
    const other = side.link.other(side);
    // Nobody to say it to: it was paused, so this can't be, and bytes must not be lost without a word.
    if (!other) return side.link.reset();
    give(other, chunk);
    if (other.pending) socket.pause();
  },
  drain({ data: side }: Socket<Side>): void {
    const chunk = side?.pending;
    if (!chunk) return;
    give(side, chunk);
    if (side.pending) return;
    const other = side.link.other(side);
    if (other?.ended) side.socket?.shutdown();
    else other?.socket?.resume();
  },
  end({ data: side }: Socket<Side>): void {
    if (side) endOf(side);
  },
  close({ data: side }: Socket<Side>, error?: Error): void {
    side?.link.closed(side, error);
  },
  /** A handler threw. The connection can't be trusted any more. */
  error({ data: side }: Socket<Side>): void {
    side?.link.reset();
  },
};

/** Hands `chunk` to the side's kernel; what it has no room for waits. */
function give(side: Side, chunk: Uint8Array): void {
  const written = side.socket?.write(chunk) ?? -1;
  // A socket that takes nothing for good is about to be closed, and its close ends the link.
  side.pending = written >= 0 && written < chunk.length ? chunk.subarray(written) : undefined;
}

/**
 * Nothing more comes from `side`: the other one learns it once it has all that came before. Bun tells no end of a socket that
 * is paused, and one is paused while anything waits; but an end that came too early would cost bytes.
 */
function endOf(side: Side): void {
  side.ended = true;
  const other = side.link.other(side);
  if (other && !other.pending) other.socket?.shutdown();
}
