/**
 * @module What makes a part of the simulation a process: it can be killed or frozen at any moment, and nothing that it began
 * goes on in it afterwards; and the network between processes, which delays, breaks and partitions.
 */
import { type Clock, sleep } from "../src/clock.ts";
import type { PeerInfo } from "../src/model.ts";
import type { Channel, SessionHandler, Transport } from "../src/transport.ts";
import type { VirtualClock } from "./virtual_clock.ts";

/** As `transport.ts` has it. */
const REACH_TIMEOUT_MS = 1_500;

/** What a process has done so far: how long it stood still, and whether it stands still now. */
type Stalls = { sinceMs: number; totalMs: number };

/** A process: everything that reaches it from outside (time, answers, messages) comes in through `enter`. */
export class Life {
  /** Timers of the process: late while it stands still, never after its end. Its wall clock is as far ahead as it was at its start. */
  readonly clock: Clock;
  /** How far its wall clock is ahead of the true time, in milliseconds. */
  readonly aheadMs: number;
  /** How long it computes at what has just come in, in milliseconds; mostly 0. */
  cost: () => number = () => 0;
  /** Called when it begins to stand still. */
  onStall: () => void = () => {};
  readonly #end = new AbortController();
  readonly #outside: VirtualClock;
  /** What came in while the process stood still, and behind it what came since. */
  readonly #backlog: (() => void)[] = [];
  readonly #stalls: Stalls = { sinceMs: 0, totalMs: 0 };
  #longestMs = 0;
  #frozen = false;
  #busy = false;

  constructor(clock: VirtualClock, { aheadMs = 0 }: { aheadMs?: number } = {}) {
    this.#outside = clock;
    this.aheadMs = aheadMs;
    this.clock = {
      now: () => Math.floor(clock.now() + aheadMs),
      after: (delayMs, fn) => {
        let cancelled = false;
        const run = () => {
          if (!cancelled) fn();
        };
        const timer = clock.after(delayMs, () => this.enter(run));
        return {
          cancel: () => {
            cancelled = true;
            timer.cancel();
          },
        };
      },
    };
  }

  get ended(): AbortSignal {
    return this.#end.signal;
  }

  get isFrozen(): boolean {
    return this.#frozen;
  }

  /** Whether it takes in nothing at the moment: it is stopped, or computes. */
  get isStill(): boolean {
    return this.#frozen || this.#busy;
  }

  /** Whether it has not taken in yet all that has come. */
  get isBehind(): boolean {
    return this.isStill || this.#backlog.length > 0;
  }

  /** For how many milliseconds it has stood still so far. */
  get stilledMs(): number {
    const { sinceMs, totalMs } = this.#stalls;
    return this.isStill ? totalMs + this.#outside.now() - sinceMs : totalMs;
  }

  /** The longest time for which it stood still without a break, of those that ended since this was asked last. */
  takeLongestStall(): number {
    const longestMs = this.#longestMs;
    this.#longestMs = 0;
    return longestMs;
  }

  /** Runs `fn` in the process: now, or when it goes on, or never. */
  enter(fn: () => void): void {
    if (this.ended.aborted) return;
    if (this.isStill || this.#backlog.length > 0) this.#backlog.push(fn);
    else this.#run(fn);
  }

  /** `work` of the outside as the process sees it: settles in it, or never. */
  of<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      work.then(
        (value) => this.enter(() => resolve(value)),
        (error: unknown) => this.enter(() => reject(error)),
      );
    });
  }

  /** SIGSTOP. */
  freeze(): void {
    this.#stall(() => (this.#frozen = true));
  }

  /** SIGCONT. */
  thaw(): void {
    if (!this.#frozen) return;
    this.#goOn(() => (this.#frozen = false));
  }

  /** SIGKILL. */
  kill(): void {
    this.#end.abort();
  }

  /** Its only thread is taken for so long: by what it computes, or by a disk that it waits for. */
  block(ms: number): void {
    if (this.#busy) return;
    this.#stall(() => (this.#busy = true));
    this.#outside.after(ms, () => this.#goOn(() => (this.#busy = false)));
  }

  #run(fn: () => void): void {
    fn();
    const ms = this.cost();
    if (ms > 0) this.block(ms);
  }

  #stall(begin: () => void): void {
    if (!this.isStill) {
      this.#stalls.sinceMs = this.#outside.now();
      this.onStall();
    }
    begin();
  }

  #goOn(end: () => void): void {
    const ms = this.#outside.now() - this.#stalls.sinceMs;
    end();
    if (this.isStill) return;
    this.#stalls.totalMs += ms;
    this.#longestMs = Math.max(this.#longestMs, ms);
    this.#catchUp();
  }

  /** One thing after the other, and what each one causes before the next, as an event loop does. */
  #catchUp(): void {
    const next = this.isStill || this.ended.aborted ? undefined : this.#backlog.shift();
    if (!next) return;
    // What comes meanwhile waits behind the others.
    this.#backlog.unshift(() => {});
    this.#run(next);
    this.#backlog.shift();
    if (this.#backlog.length > 0 && !this.isStill) this.#outside.after(0.001, () => this.#catchUp());
  }
}

/** TCP gives a connection up this long after nothing was acknowledged any more, at the least and at the most. */
const GIVES_UP_MS = [10_000, 60_000] as const;

/** What listens at an address. */
export type Host = { life: Life; peerInfo: () => PeerInfo; session: () => SessionHandler | undefined };

/** What an end needs of the network between it and the other. */
type Wire = { carry: (from: End) => void; lingers: () => boolean };
/** Who reaches for another. */
type Origin = { address: string; self: Host };
type Handlers = { onMessage: (text: string) => void; onClose: () => void };

/** One end of a connection. What it sends arrives in order; `undefined` in the queue is the end of the connection. */
class End implements Channel {
  readonly address: string;
  readonly life: Life;
  readonly queue: (string | undefined)[] = [];
  handlers: Handlers = { onMessage: () => {}, onClose: () => {} };
  other!: End;
  open = true;
  /** Closed on this side, and what is still under way to it arrives all the same. */
  lingers = false;
  /** Broken, and nobody has noticed yet. */
  broken = false;
  /** Nothing gets through before this time, as where a line loses packets until TCP sends them again. */
  stalledUntil = 0;
  readonly #wire: Wire;

  constructor(address: string, { life, wire }: { life: Life; wire: Wire }) {
    this.address = address;
    this.life = life;
    this.#wire = wire;
  }

  send(text: string): void {
    if (this.open) this.#put(text);
  }

  close(): void {
    if (!this.open) return;
    this.#put(undefined);
    this.lingers = this.#wire.lingers();
    this.drop();
  }

  /** The end is told that the connection is over; the other one is not. */
  drop(): void {
    if (!this.open) return;
    this.open = false;
    this.life.clock.after(0, () => this.handlers.onClose());
  }

  /** The process is gone: nobody is left to tell on this side, and on the other one only if the machine says goodbye. */
  die(goodbye: boolean): void {
    if (!this.open) return;
    if (goodbye) this.#put(undefined);
    this.open = false;
  }

  #put(item: string | undefined): void {
    this.queue.push(item);
    this.#wire.carry(this);
  }
}

export class SimNetwork {
  /** Least and most milliseconds that a message takes. */
  latency: readonly [number, number] = [1, 10];
  /** Chance that what is under way to an end that was just closed is delivered all the same. */
  lingering = 0;
  readonly #clock: VirtualClock;
  readonly #random: () => number;
  readonly #hosts = new Map<string, Host>();
  /** Addresses that nothing gets out of, and such that nothing gets through to. */
  readonly #mute = new Set<string>();
  readonly #deaf = new Set<string>();
  #ends: End[] = [];

  constructor(options: { clock: VirtualClock; random: () => number }) {
    this.#clock = options.clock;
    this.#random = options.random;
  }

  listen(address: string, host: Host): void {
    this.#hosts.set(address, host);
  }

  /** What listens at an address now: a process that others take for it may be another one. */
  hostAt(address: string): Host | undefined {
    return this.#hosts.get(address);
  }

  /** Cuts `address` off from all others. What is sent waits, as TCP keeps trying. */
  isolate(address: string): void {
    this.#mute.add(address);
    this.#deaf.add(address);
  }

  /** What is sent one way is lost, from `address` or to it; the other way all arrives, until TCP misses its acknowledgements. */
  cutOneWay(address: string, way: "from" | "to"): void {
    const cut = way === "from" ? this.#mute : this.#deaf;
    if (this.#mute.has(address) || this.#deaf.has(address)) return;
    cut.add(address);
    const [least, most] = GIVES_UP_MS;
    for (const end of this.#endsOf(address)) {
      this.#clock.after(least + this.#random() * (most - least), () => {
        if (cut.has(address)) this.#break(end);
      });
    }
  }

  /** Whether anything is cut between `address` and the others. */
  isCutOff(address: string): boolean {
    return this.#mute.has(address) || this.#deaf.has(address);
  }

  /** Whether nothing is under way to `address`, and nothing was lost on its way there. */
  isQuiet(address: string): boolean {
    return this.#ends.every(
      ({ other, queue, broken, open }) =>
        other.address !== address || (queue.length === 0 && !(broken && (open || other.open))),
    );
  }

  join(address: string): void {
    this.#mute.delete(address);
    this.#deaf.delete(address);
    for (const end of this.#ends) if (!this.#isCut(end.address, end.other.address)) this.#carryAll(end);
  }

  /** All connections of `address` break; what is under way in them is lost. */
  breakConnections(address: string): void {
    for (const end of this.#endsOf(address)) this.#break(end);
  }

  /** Nothing gets through in the present connections of `address` for so long, while new ones are as ever. */
  stallConnections(address: string, ms: number): void {
    const until = this.#clock.now() + ms;
    for (const end of this.#endsOf(address)) {
      end.stalledUntil = Math.max(until, end.stalledUntil);
      end.other.stalledUntil = Math.max(until, end.other.stalledUntil);
    }
  }

  #break(end: End): void {
    for (const one of [end, end.other]) {
      one.broken = true;
      one.queue.length = 0;
      this.#clock.after(this.#random() * 2_000, () => one.drop());
    }
  }

  /** The process at `address` ended; with `goodbye` its kernel closes its connections. */
  ended(address: string, { life, goodbye }: { life: Life; goodbye: boolean }): void {
    if (this.#hosts.get(address)?.life === life) this.#hosts.delete(address);
    for (const end of this.#endsOf(address)) if (end.life === life) end.die(goodbye);
    this.#ends = this.#ends.filter(({ open, other }) => open || other.open);
  }

  /** How the process at `address` reaches others. */
  transport(address: string, self: Host): Transport {
    const { life } = self;
    return {
      askPeer: (to) => life.of(this.#askPeer({ address, self }, to)),
      dial: (to, handlers) => life.of(this.#dial(to, { address, self, handlers })),
    };
  }

  async #askPeer(from: Origin, to: string): Promise<PeerInfo> {
    const host = await this.#reach(from, to);
    const info = host.peerInfo();
    await this.#travel();
    return info;
  }

  async #dial(to: string, from: Origin & { handlers: Handlers }): Promise<End> {
    const host = await this.#reach(from, to);
    const session = host.session();
    if (!session) throw new Error(`cannot open a session with ${to}`);
    const { life } = from.self;
    const wire: Wire = {
      carry: (end) => this.#carry(end),
      lingers: () => this.lingering > 0 && this.#random() < this.lingering,
    };
    const near = new End(from.address, { life, wire });
    const far = new End(to, { life: host.life, wire });
    [near.other, far.other] = [far, near];
    this.#ends.push(near, far);
    far.handlers = session(far);
    await this.#travel();
    if (life.ended.aborted) near.die(true);
    if (!near.open) throw new Error(`cannot open a session with ${to}`);
    near.handlers = from.handlers;
    return near;
  }

  /** A frozen process accepts connections, but answers nothing. */
  async #reach({ address: from, self }: Origin, to: string): Promise<Host> {
    await this.#travel();
    // A process reaches itself without the network.
    const host = from === to ? self : this.#hosts.get(to);
    // A connection needs both ways.
    if (this.#isCut(from, to) || this.#isCut(to, from) || host?.life.isFrozen) {
      await sleep(this.#clock, REACH_TIMEOUT_MS);
      throw new Error(`${to} does not answer`);
    }
    if (!host) throw new Error(`${to} refused the connection`);
    return host;
  }

  #travel(): Promise<void> {
    return sleep(this.#clock, this.#delay());
  }

  #delay(): number {
    const [least, most] = this.latency;
    return least + this.#random() * (most - least);
  }

  /** Each item takes its own time, and the first in line arrives: never out of order. */
  #carry(from: End): void {
    if (!this.#isCut(from.address, from.other.address)) this.#clock.after(this.#delay(), () => this.#arrive(from));
  }

  #carryAll(from: End): void {
    for (const _ of from.queue) this.#carry(from);
  }

  #arrive(from: End): void {
    const to = from.other;
    if (from.queue.length === 0 || this.#isCut(from.address, to.address)) return;
    const stalledMs = from.stalledUntil - this.#clock.now();
    if (stalledMs > 0) return void this.#clock.after(stalledMs + this.#delay(), () => this.#arrive(from));
    const item = from.queue.shift();
    if (to.lingers && item !== undefined) this.#deliver(from, item);
    else if (!to.open) {
      // The kernel of a process that is gone answers what still comes with a reset.
      if (!to.life.ended.aborted || this.#hosts.has(to.address)) from.drop();
    } else if (item === undefined) to.drop();
    else this.#deliver(from, item);
  }

  #deliver(from: End, item: string): void {
    const to = from.other;
    to.life.enter(() => {
      if (to.open || to.lingers) to.handlers.onMessage(item);
    });
  }

  #isCut(from: string, to: string): boolean {
    return from !== to && (this.#mute.has(from) || this.#deaf.has(to));
  }

  #endsOf(address: string): End[] {
    return this.#ends.filter((end) => end.open && end.address === address);
  }
}
