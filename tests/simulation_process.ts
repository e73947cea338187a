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

/** A process: everything that reaches it from outside (time, answers, messages) comes in through `enter`. */
export class Life {
  /** Timers of the process: late while it is frozen, never after its end. */
  readonly clock: Clock;
  readonly #end = new AbortController();
  readonly #outside: Clock;
  /** What came in while the process was frozen, and behind it what came since. */
  readonly #backlog: (() => void)[] = [];
  #frozen = false;

  constructor(clock: VirtualClock) {
    this.#outside = clock;
    this.clock = {
      now: () => Math.floor(clock.now()),
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

  /** Runs `fn` in the process: now, or when it is thawed, or never. */
  enter(fn: () => void): void {
    if (this.ended.aborted) return;
    if (this.#frozen || this.#backlog.length > 0) this.#backlog.push(fn);
    else fn();
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
    this.#frozen = true;
  }

  /** SIGCONT. */
  thaw(): void {
    if (!this.#frozen) return;
    this.#frozen = false;
    this.#catchUp();
  }

  /** SIGKILL. */
  kill(): void {
    this.#end.abort();
  }

  /** One thing after the other, and what each one causes before the next, as an event loop does. */
  #catchUp(): void {
    const next = this.#frozen || this.ended.aborted ? undefined : this.#backlog[0];
    if (!next) return;
    next();
    this.#backlog.shift();
    this.#outside.after(0.001, () => this.#catchUp());
  }
}

/** TCP gives a connection up this long after nothing was acknowledged any more, at the least and at the most. */
const GIVES_UP_MS = [10_000, 60_000] as const;

/** What listens at an address. */
export type Host = { life: Life; peerInfo: () => PeerInfo; session: () => SessionHandler | undefined };

type Handlers = { onMessage: (text: string) => void; onClose: () => void };

/** One end of a connection. What it sends arrives in order; `undefined` in the queue is the end of the connection. */
class End implements Channel {
  readonly address: string;
  readonly life: Life;
  readonly queue: (string | undefined)[] = [];
  handlers: Handlers = { onMessage: () => {}, onClose: () => {} };
  other!: End;
  open = true;
  readonly #carry: (from: End) => void;

  constructor(address: string, { life, carry }: { life: Life; carry: (from: End) => void }) {
    this.address = address;
    this.life = life;
    this.#carry = carry;
  }

  send(text: string): void {
    if (this.open) this.#put(text);
  }

  close(): void {
    if (!this.open) return;
    this.#put(undefined);
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
    this.#carry(this);
  }
}

export class SimNetwork {
  /** Least and most milliseconds that a message takes. */
  latency: readonly [number, number] = [1, 10];
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

  join(address: string): void {
    this.#mute.delete(address);
    this.#deaf.delete(address);
    for (const end of this.#ends) if (!this.#isCut(end.address, end.other.address)) this.#carryAll(end);
  }

  /** All connections of `address` break; what is under way in them is lost. */
  breakConnections(address: string): void {
    for (const end of this.#endsOf(address)) this.#break(end);
  }

  #break(end: End): void {
    for (const one of [end, end.other]) {
      one.queue.length = 0;
      this.#clock.after(this.#random() * 2_000, () => one.drop());
    }
  }

  /** The process at `address` ended; with `goodbye` its kernel closes its connections. */
  ended(address: string, { goodbye }: { goodbye: boolean }): void {
    this.#hosts.delete(address);
    for (const end of this.#endsOf(address)) end.die(goodbye);
    this.#ends = this.#ends.filter(({ open, other }) => open || other.open);
  }

  /** How the process at `address` reaches others. */
  transport(address: string, life: Life): Transport {
    return {
      askPeer: (to) => life.of(this.#askPeer(address, to)),
      dial: (to, handlers) => life.of(this.#dial(to, { address, life, handlers })),
    };
  }

  async #askPeer(from: string, to: string): Promise<PeerInfo> {
    const host = await this.#reach(from, to);
    const info = host.peerInfo();
    await this.#travel();
    return info;
  }

  async #dial(to: string, from: { address: string; life: Life; handlers: Handlers }): Promise<End> {
    const host = await this.#reach(from.address, to);
    const session = host.session();
    if (!session) throw new Error(`cannot open a session with ${to}`);
    const carry = (end: End) => this.#carry(end);
    const near = new End(from.address, { life: from.life, carry });
    const far = new End(to, { life: host.life, carry });
    [near.other, far.other] = [far, near];
    this.#ends.push(near, far);
    far.handlers = session(far);
    await this.#travel();
    if (from.life.ended.aborted) near.die(true);
    if (!near.open) throw new Error(`cannot open a session with ${to}`);
    near.handlers = from.handlers;
    return near;
  }

  /** A frozen process accepts connections, but answers nothing. */
  async #reach(from: string, to: string): Promise<Host> {
    await this.#travel();
    const host = this.#hosts.get(to);
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
    if (from.queue.length === 0 || this.#isCut(from.address, from.other.address)) return;
    const to = from.other;
    const item = from.queue.shift();
    if (!to.open) {
      // The kernel of a process that is gone answers what still comes with a reset.
      if (!to.life.ended.aborted || this.#hosts.has(to.address)) from.drop();
    } else if (item === undefined) to.drop();
    else to.life.enter(() => to.open && to.handlers.onMessage(item));
  }

  #isCut(from: string, to: string): boolean {
    return from !== to && (this.#mute.has(from) || this.#deaf.has(to));
  }

  #endsOf(address: string): End[] {
    return this.#ends.filter((end) => end.open && end.address === address);
  }
}
