/**
 * @module The node's side of its session with the master: finds the master through any node it knows, dials it, says hello,
 * sends heartbeats and status changes up and hands assignments down. Reconnects for ever with backoff. The transport is handed
 * in; the master's side is `membership.ts`.
 */
import type { Clock, Timer } from "./clock.ts";
import { backoffMs, sleep } from "./clock.ts";
import type { Log } from "./log.ts";
import { describeError } from "./log.ts";
import type {
  AllocationStatus,
  Assignments,
  Heartbeat,
  Hello,
  MasterMessage,
  NodeMessage,
  Order,
  Peer,
  PeerInfo,
  Welcome,
} from "./model.ts";
import type { DirectoryMessage, NetworkMessage } from "./model_network.ts";
import { MasterMessages } from "./session_messages.ts";
import type { Channel, Transport } from "./transport.ts";

/** What the session needs of the executor beside it. */
export interface SessionExecutor {
  assign(assignments: Assignments): "accepted" | "stale";
  snapshot(): { applied?: Order; allocations: AllocationStatus[]; removals_done: string[] } | undefined;
  heartbeat(): Omit<Heartbeat, "type" | "sequence">;
}

export type SessionOptions = {
  transport: Transport;
  executor: SessionExecutor;
  clock: Clock;
  random: () => number;
  log: Log;
  /** The hello to send now: identity and engine may have become known since the last. */
  hello: () => Hello;
  /** Addresses to look for the master at, the likeliest first. */
  addresses: () => string[];
  /** Called with each welcome, before any assignments: the place to keep the identity that it hands out. */
  onWelcome: (welcome: Welcome) => void;
  onPeers: (peers: Peer[]) => void;
  /** What the master tells of the cluster's network and of where services are. */
  onNetwork: (message: NetworkMessage | DirectoryMessage) => void;
  /** This node is a member no more. */
  onLeft: () => void;
  /** An open session was lost. */
  onLost?: () => void;
  /** The master will not have this node: for good, as things are. */
  onRefused: (refusal: { code: string; message: string }) => void;
};

const RETRY = { firstMs: 200, capMs: 3_000 };
/** The master answers a hello after one commit; a slow disk gets this long. */
const WELCOME_TIMEOUT_MS = 5_000;
/** Status changes of this span are one message. */
const STATUS_DELAY_MS = 20;
/** Nodes that came back together are not to report in step for ever. */
const HEARTBEAT_JITTER = 0.1;

/** What of a heartbeat cannot wait for the next one. */
function urgentPart({ engine, overlay }: Omit<Heartbeat, "type" | "sequence">): string {
  return JSON.stringify([engine, overlay]);
}

/** An open session: between a welcome and the end of its channel. */
type Live = {
  channel: Channel;
  welcome: Welcome;
  /** The last heartbeat that was sent, the last that was answered, and the last two that were due. */
  sequence: number;
  acknowledged: number;
  due: [number, number];
  /** When the heartbeats that are not answered yet were sent. */
  sentAt: Map<number, number>;
  sent: Map<string, string> | undefined;
  sentRest: string;
  sentUrgent: string;
  heartbeatTimer: Timer | undefined;
  statusTimer: Timer | undefined;
  lost: AbortController;
};

export class Session {
  readonly #options: SessionOptions;
  readonly #abort = new AbortController();
  readonly #messages: MasterMessages;
  #master: Peer | undefined;
  #live: Live | undefined;
  #lastHeard: number;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#messages = new MasterMessages(options.log);
    this.#lastHeard = options.clock.now();
  }

  /** The master as this node last knew it. */
  get master(): Peer | undefined {
    return this.#master;
  }

  /** Set while a session is open; aborts when it is lost. */
  get lost(): AbortSignal | undefined {
    return this.#live?.lost.signal;
  }

  /**
   * The last time at which the master is known to have been there for this node: when the last answered hello or heartbeat was
   * sent, since an answer may be long on its way and the master counts a node's silence from what it got. Before all that, when
   * this process began.
   */
  get lastHeard(): number {
    return this.#lastHeard;
  }

  /** `master`: where this node last knew the master to be. */
  start(master: Peer | undefined): void {
    this.#master = master;
    this.#loop = this.#run();
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    this.#live?.channel.close();
    await this.#loop;
  }

  /** Something in the executor's snapshot or engine changed: the master hears of it soon. */
  notify(): void {
    const live = this.#live;
    if (!live || live.statusTimer) return;
    live.statusTimer = this.#options.clock.after(STATUS_DELAY_MS, () => {
      live.statusTimer = undefined;
      if (this.#live !== live) return;
      // The engine's state and the node's networks travel with heartbeats; when they changed, the master hears of it now.
      if (urgentPart(this.#options.executor.heartbeat()) !== live.sentUrgent) this.#sendHeartbeat(live);
      this.#sendStatus(live);
    });
  }

  async #run(): Promise<void> {
    const { clock, random, log } = this.#options;
    for (let attempt = 1; !this.#abort.signal.aborted; attempt++) {
      try {
        const master = await this.#findMaster();
        if (this.#abort.signal.aborted) return;
        if (await this.#converse(master)) attempt = 0;
      } catch (error) {
        const delayMs = backoffMs(attempt, { ...RETRY, random });
        log.warn("no session with the master, trying again", { error: describeError(error), attempt, in_ms: delayMs });
        await sleep(clock, delayMs, this.#abort.signal);
      }
      // A session that ends at once must not turn into a busy loop.
      if (attempt === 0) await sleep(clock, backoffMs(1, { ...RETRY, random }), this.#abort.signal);
    }
  }

  /** Asks the last known master first, then all other known nodes at once, for where the master is. */
  async #findMaster(): Promise<string> {
    const { transport, addresses } = this.#options;
    const known = addresses();
    const first = this.#master?.address ?? known[0];
    if (first === undefined) throw new Error("no address of any node of the cluster is known");
    const tried: string[] = [];
    const ask = async (address: string): Promise<string> => {
      try {
        return this.#masterOf(await transport.askPeer(address));
      } catch (error) {
        tried.push(`${address}: ${describeError(error)}`);
        throw error;
      }
    };
    try {
      return await ask(first);
    } catch {
      const others = [...new Set(known)].filter((address) => address !== first);
      return await Promise.any(others.map(ask)).catch(() => {
        throw new Error(`tried ${tried.join("; ")}`);
      });
    }
  }

  #masterOf(info: PeerInfo): string {
    const mine = this.#options.hello().cluster_id;
    if (info.cluster_id === undefined) throw new Error("this node has not joined a cluster yet");
    if (mine !== undefined && info.cluster_id !== mine)
      throw new Error(`belongs to another cluster (${info.cluster_id})`);
    if (!info.master) throw new Error("knows no master");
    return info.master.address;
  }

  /** One session from dial to end; resolves to whether it was welcomed. */
  async #converse(address: string): Promise<boolean> {
    const { transport, clock, log, hello } = this.#options;
    let live: Live | undefined;
    let greetedAt = clock.now();
    const ended = Promise.withResolvers<void>();
    const channel = await transport.dial(address, {
      onMessage: (text) => {
        try {
          live = this.#receive(this.#messages.read(text), { channel, live, greetedAt });
        } catch (error) {
          log.error("a message of the master could not be read, ending the session", { error });
          channel.close();
        }
      },
      onClose: () => ended.resolve(),
    });
    const timeout = clock.after(WELCOME_TIMEOUT_MS, () => {
      if (!live) channel.close();
    });
    const close = () => channel.close();
    this.#abort.signal.addEventListener("abort", close, { once: true });
    greetedAt = clock.now();
    channel.send(JSON.stringify(hello()));
    await ended.promise;
    this.#abort.signal.removeEventListener("abort", close);
    timeout.cancel();
    if (!live) throw new Error(`${address} ended the connection without a welcome`);
    this.#end(live);
    return true;
  }

  #receive(
    message: MasterMessage,
    { channel, live, greetedAt }: { channel: Channel; live: Live | undefined; greetedAt: number },
  ): Live | undefined {
    const { executor, log, onRefused, onPeers, onNetwork } = this.#options;
    if (message.type === "welcome") return this.#begin(message, { channel, greetedAt });
    if (message.type === "refused") onRefused(message);
    else if (message.type === "left") this.#options.onLeft();
    else if (message.type === "peers") onPeers(message.peers);
    else if (message.type === "network" || message.type === "directory") onNetwork(message);
    else if (message.type === "ack" && live) this.#acknowledge(live, message.sequence);
    else if (message.type === "assignments") {
      if (executor.assign(message) === "stale")
        log.warn("refused assignments older than those known", { order: message.order });
      this.notify();
    }
    return live;
  }

  #acknowledge(live: Live, sequence: number): void {
    live.acknowledged = sequence;
    const sentAt = live.sentAt.get(sequence);
    if (sentAt !== undefined) this.#lastHeard = Math.max(this.#lastHeard, sentAt);
    for (const earlier of live.sentAt.keys()) if (earlier <= sequence) live.sentAt.delete(earlier);
  }

  #begin(welcome: Welcome, { channel, greetedAt }: { channel: Channel; greetedAt: number }): Live {
    this.#lastHeard = Math.max(this.#lastHeard, greetedAt);
    const live: Live = {
      channel,
      welcome,
      sequence: 0,
      acknowledged: 0,
      due: [0, 0],
      sentAt: new Map(),
      sent: undefined,
      sentRest: "",
      sentUrgent: "",
      heartbeatTimer: undefined,
      statusTimer: undefined,
      lost: new AbortController(),
    };
    this.#master = welcome.master;
    this.#live = live;
    this.#options.onWelcome(welcome);
    this.#options.log.info("in session with the master", { master: welcome.master.address, term: welcome.term });
    this.#beat(live);
    this.notify();
    return live;
  }

  #end(live: Live): void {
    live.heartbeatTimer?.cancel();
    live.statusTimer?.cancel();
    if (this.#live === live) this.#live = undefined;
    live.lost.abort();
    this.#options.onLost?.();
    if (!this.#abort.signal.aborted)
      this.#options.log.warn("the session with the master ended", { master: live.welcome.master.address });
  }

  /**
   * Sends a heartbeat; a master that left the last two that were due unanswered is lost, whatever TCP still believes. Urgent ones
   * in between may be many, and say nothing about that.
   */
  #beat(live: Live): void {
    if (this.#live !== live) return;
    const [older, last] = live.due;
    if (live.acknowledged < older) return live.channel.close();
    this.#sendHeartbeat(live);
    live.due = [last, live.sequence];
    const { clock, random } = this.#options;
    const share = 1 + HEARTBEAT_JITTER * (2 * random() - 1);
    live.heartbeatTimer = clock.after(live.welcome.heartbeat_interval_ms * share, () => this.#beat(live));
  }

  #sendHeartbeat(live: Live): void {
    const reading = this.#options.executor.heartbeat();
    live.sequence++;
    live.sentUrgent = urgentPart(reading);
    live.sentAt.set(live.sequence, this.#options.clock.now());
    this.#send(live, { type: "heartbeat", sequence: live.sequence, ...reading });
  }

  /** Sends what changed since the last report of this session; the first one is full. Nothing before the executor's first look. */
  #sendStatus(live: Live): void {
    const snapshot = this.#options.executor.snapshot();
    if (!snapshot) return;
    const now = new Map(snapshot.allocations.map((status) => [status.allocation_id, JSON.stringify(status)]));
    const rest = JSON.stringify([snapshot.applied, snapshot.removals_done]);
    const before = live.sent;
    const allocations = snapshot.allocations.filter(
      ({ allocation_id }) => before?.get(allocation_id) !== now.get(allocation_id),
    );
    const gone = [...(before?.keys() ?? [])].filter((id) => !now.has(id));
    if (before && allocations.length === 0 && gone.length === 0 && rest === live.sentRest) return;
    live.sent = now;
    live.sentRest = rest;
    this.#send(live, {
      type: "status",
      full: before === undefined,
      ...(snapshot.applied ? { applied: snapshot.applied } : {}),
      allocations,
      gone,
      removals_done: snapshot.removals_done,
    });
  }

  #send(live: Live, message: NodeMessage): void {
    live.channel.send(JSON.stringify(message));
  }
}
