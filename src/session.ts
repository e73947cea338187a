/**
 * @module The node's side of its session with the master: finds the master through any node it knows, dials it, says hello,
 * sends heartbeats and status changes up and hands assignments down. Reconnects for ever with backoff. Whoever it dialled is
 * obeyed only after a welcome that holds (`session_welcome.ts`); where others say that the master is, is a hint. The transport
 * is handed in; the master's side is `membership.ts`.
 */
import { parseAddress } from "./address.ts";
import type { Clock, Timer } from "./clock.ts";
import { backoffMs, sleep } from "./clock.ts";
import { repeat } from "./clock_loop.ts";
import type { Log } from "./log.ts";
import { describeError } from "./log.ts";
import { Faults, stackOf } from "./log_faults.ts";
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
import { termFault } from "./session_terms.ts";
import { faultOf, type Trust } from "./session_welcome.ts";
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
  /** The hello to send now: identity and engine may have become known since the last. Each has a nonce of its own. */
  hello: () => Hello;
  /** Whom this node takes for its master. */
  trust: () => Trust;
  /** Addresses to look for the master at, the likeliest first. */
  addresses: () => string[];
  /**
   * Called with each welcome that holds, before any assignments: the place to keep the identity that it hands out, and its
   * `cluster_key` if it has one, since it is signed with that.
   */
  onWelcome: (welcome: Welcome) => void;
  onPeers: (peers: Peer[]) => void;
  /** What the master tells of the cluster's network and of where services are. */
  onNetwork: (message: NetworkMessage | DirectoryMessage) => void;
  /** This node is a member no more. */
  onLeft: () => void;
  /** The master is known to have been there at that time: `lastHeard`. */
  onHeard?: (at: number) => void;
  /** An open session was lost. */
  onLost?: () => void;
  /** The master will not have this node: for good, as things are. A member hears that only from who has proved to be its master. */
  onRefused: (refusal: { code: string; message: string }) => void;
};

const RETRY = { firstMs: 200, capMs: 3_000 };
/** A session that ended sooner than this counts as one more try that failed: what ends it may well be there again. */
const SOUND_MS = 5_000;
/** The master answers a hello after one commit; a slow disk gets this long. */
const WELCOME_TIMEOUT_MS = 5_000;
/** Status changes of this span are one message. */
const STATUS_DELAY_MS = 20;
/** Nodes that came back together are not to report in step for ever. */
const HEARTBEAT_JITTER = 0.1;

type Reading = Omit<Heartbeat, "type" | "sequence">;

/** What of a heartbeat cannot wait for the next one. */
function urgentPart({ engine, overlay }: Reading): string {
  return JSON.stringify([engine, overlay]);
}

/** A connection to what may be the master. */
type Attempt = {
  address: string;
  channel: Channel;
  hello: Hello;
  greetedAt: number;
  live: Live | undefined;
  /** Why it is not followed. */
  fault: string | undefined;
};

/** Where the master is, and which node says so. */
type Hint = { address: string; from: string };

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
  readonly #faults: Faults;
  #master: Peer | undefined;
  /** Nodes whose hint led to no session: they are not asked before all others were. */
  readonly #doubted = new Set<string>();
  #live: Live | undefined;
  #lastHeard: number;
  #fault: string | undefined;
  #lastReading: Reading | undefined;
  #loop: Promise<void> = Promise.resolve();

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#messages = new MasterMessages(options.log);
    this.#faults = new Faults(options);
    this.#lastHeard = options.clock.now();
  }

  /** The master as this node last knew it. */
  get master(): Peer | undefined {
    return this.#master;
  }

  /** What proves to the master that a call is of this session's node; undefined: there is none, or the master is older. */
  get token(): string | undefined {
    return this.#live?.welcome.token;
  }

  /** Set while a session is open; aborts when it is lost. */
  get lost(): AbortSignal | undefined {
    return this.#live?.lost.signal;
  }

  /** Why there is no session, as of the last attempt at one; undefined: there is one, or nothing is known of why not. */
  get fault(): string | undefined {
    return this.#live ? undefined : this.#fault;
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
      try {
        this.#report(live);
      } catch (error) {
        // What is left unsaid is said in the next session, which begins with all of it.
        this.#faults.tell("an error of Cacophony itself: no report could be made, ending the session", error);
        live.channel.close();
      }
    });
  }

  #report(live: Live): void {
    // The engine's state and the node's networks travel with heartbeats; when they changed, the master hears of it now.
    if (urgentPart(this.#reading()) !== live.sentUrgent) this.#sendHeartbeat(live);
    this.#sendStatus(live);
  }

  async #run(): Promise<void> {
    const { clock, random, log } = this.#options;
    for (let attempt = 1; !this.#abort.signal.aborted; attempt++) {
      try {
        const hint = await this.#findMaster();
        if (this.#abort.signal.aborted) return;
        this.#doubted.add(hint.from);
        const openMs = await this.#converse(hint.address);
        if (openMs >= SOUND_MS) attempt = 0;
        // A session that ends at once must not turn into a busy loop.
        await sleep(clock, backoffMs(attempt, { ...RETRY, random }), this.#abort.signal);
      } catch (error) {
        this.#fault = describeError(error);
        const delayMs = backoffMs(attempt, { ...RETRY, random });
        log.warn("no session with the master, trying again", { error: describeError(error), attempt, in_ms: delayMs });
        await sleep(clock, delayMs, this.#abort.signal);
      }
    }
  }

  async #findMaster(): Promise<Hint> {
    try {
      return await this.#ask();
    } catch (error) {
      if (this.#doubted.size === 0) throw error;
      this.#doubted.clear();
      return this.#ask();
    }
  }

  /** Asks the last known master first, then all other known nodes at once, for where the master is. */
  async #ask(): Promise<Hint> {
    const { transport, addresses } = this.#options;
    const known = addresses();
    const first = this.#master?.address ?? known[0];
    if (first === undefined) throw new Error("no address of any node of the cluster is known");
    const tried: string[] = [];
    const ask = async (from: string): Promise<Hint> => {
      try {
        if (this.#doubted.has(from)) throw new Error("led to no session");
        return { address: this.#masterOf(await transport.askPeer(from)), from };
      } catch (error) {
        tried.push(`${from}: ${describeError(error)}`);
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
    parseAddress(info.master.address, "the master's address");
    return info.master.address;
  }

  /** One session from dial to end; resolves to how long it was open. */
  async #converse(address: string): Promise<number> {
    const { transport, clock, log, hello } = this.#options;
    let attempt: Attempt | undefined;
    const ended = Promise.withResolvers<void>();
    const channel = await transport.dial(address, {
      onMessage: (text) => {
        // Who speaks before the hello, or goes on after it was found out, is not listened to.
        if (!attempt || attempt.fault !== undefined) return;
        try {
          this.#receive(this.#messages.read(text), attempt);
        } catch (error) {
          this.#fault = attempt.fault = `a message of ${address} could not be taken in: ${describeError(error)}`;
          log.error("a message of the master could not be taken in, ending the session", { error, ...stackOf(error) });
          channel.close();
        }
      },
      onClose: () => ended.resolve(),
    });
    const timeout = clock.after(WELCOME_TIMEOUT_MS, () => {
      if (!attempt?.live) channel.close();
    });
    const close = () => channel.close();
    this.#abort.signal.addEventListener("abort", close, { once: true });
    try {
      attempt = { address, channel, hello: hello(), greetedAt: clock.now(), live: undefined, fault: undefined };
      channel.send(JSON.stringify(attempt.hello));
      await ended.promise;
    } finally {
      this.#abort.signal.removeEventListener("abort", close);
      timeout.cancel();
      channel.close();
      if (attempt?.live) this.#end(attempt.live);
    }
    if (!attempt.live) throw new Error(attempt.fault ?? `${address} ended the connection without a welcome`);
    return clock.now() - attempt.greetedAt;
  }

  #receive(message: MasterMessage, attempt: Attempt): void {
    const { executor, log, onRefused, onPeers, onNetwork } = this.#options;
    const { live } = attempt;
    if (!live) return this.#beforeWelcome(message, attempt);
    // What was on its way when the session ended: another one may have told what is newer by now. Assignments say how new they are.
    const isOver = this.#live !== live;
    if (isOver && message.type !== "assignments") return;
    const fault = termFault(message, { session: live.welcome.term, seen: this.#options.trust().seenTerm });
    if (isOver && fault !== undefined) return;
    if (fault !== undefined) {
      log.error("a message of the master is of another term, ending the session", { fault });
      this.#fault = attempt.fault = fault;
    }
    if (message.type === "welcome" || fault !== undefined) live.channel.close();
    else if (message.type === "refused") onRefused(message);
    else if (message.type === "left") this.#options.onLeft();
    else if (message.type === "peers") onPeers(message.peers);
    else if (message.type === "network" || message.type === "directory") onNetwork(message);
    else if (message.type === "ack") this.#acknowledge(live, message.sequence);
    else {
      if (executor.assign(message) === "stale")
        log.warn("refused assignments older than those known", { order: message.order });
      this.notify();
    }
  }

  /** Nobody has proved yet to be the master. */
  #beforeWelcome(message: MasterMessage, attempt: Attempt): void {
    const { address, hello } = attempt;
    if (message.type === "welcome") {
      const fault = faultOf(message, { hello, trust: this.#options.trust(), dialled: address });
      if (!fault) this.#begin(message, attempt);
      else {
        if (fault.master) this.#master = fault.master;
        attempt.fault = fault.reason;
      }
    } else if (message.type !== "refused") attempt.fault = `${address} sent '${message.type}' before a welcome`;
    else if (hello.cluster_id === undefined) this.#options.onRefused(message);
    else attempt.fault = `${address} refused this node: ${message.message}`;
    if (attempt.fault !== undefined) attempt.channel.close();
  }

  #acknowledge(live: Live, sequence: number): void {
    live.acknowledged = sequence;
    const sentAt = live.sentAt.get(sequence);
    if (sentAt !== undefined) this.#lastHeard = Math.max(this.#lastHeard, sentAt);
    this.#options.onHeard?.(this.#lastHeard);
    for (const earlier of live.sentAt.keys()) if (earlier <= sequence) live.sentAt.delete(earlier);
  }

  #begin(welcome: Welcome, attempt: Attempt): void {
    const { channel, greetedAt } = attempt;
    this.#doubted.clear();
    this.#lastHeard = Math.max(this.#lastHeard, greetedAt);
    this.#options.onHeard?.(this.#lastHeard);
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
    // Before anything else can throw: whatever ends it, the node knows that it has no master then.
    attempt.live = live;
    this.#live = live;
    this.#fault = undefined;
    this.#options.onWelcome(welcome);
    this.#options.log.info("in session with the master", { master: welcome.master.address, term: welcome.term });
    live.heartbeatTimer = this.#keepBeating(live);
    this.notify();
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
  #beat(live: Live): number | undefined {
    if (this.#live !== live) return undefined;
    const [older, last] = live.due;
    if (live.acknowledged < older) {
      live.channel.close();
      return undefined;
    }
    this.#sendHeartbeat(live);
    live.due = [last, live.sequence];
    const share = 1 + HEARTBEAT_JITTER * (2 * this.#options.random() - 1);
    return live.welcome.heartbeat_interval_ms * share;
  }

  #keepBeating(live: Live): Timer {
    return repeat(this.#options.clock, {
      firstMs: 0,
      retryMs: live.welcome.heartbeat_interval_ms,
      work: () => this.#beat(live),
      onFault: (error) => this.#faults.tell("an error of Cacophony itself: no heartbeat could be sent", error),
    });
  }

  /** What a heartbeat says. Where that throws, the node is there all the same, and is as it was when it last could tell. */
  #reading(): Reading {
    const { executor, hello } = this.#options;
    const what = "an error of Cacophony itself: the node could not be read";
    const reading = this.#faults.attempt(what, () => executor.heartbeat()) ?? this.#lastReading;
    this.#lastReading = reading ?? { engine: hello().engine, foreign: [] };
    return this.#lastReading;
  }

  #sendHeartbeat(live: Live): void {
    const reading = this.#reading();
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
