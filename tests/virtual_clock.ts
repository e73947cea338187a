/**
 * @module A clock that stands still until it is told to go on, so that hours pass in milliseconds and every run is the same.
 *
 * Everything that waits must wait on this clock, on promises or on `setImmediate`; real timers and sockets don't fit in.
 */
import { drainMicrotasks } from "bun:jsc";
import type { Clock, Timer } from "../src/clock.ts";

type Entry = { at: number; order: number; fn: (() => void) | undefined };

export type VirtualClockOptions = {
  /**
   * Nothing under test waits for anything but this clock and promises, not for files either: what an instant causes is then run
   * without a turn of the event loop, which is most of the price of an instant in which little happens.
   */
  promisesOnly?: boolean;
  /** Resolves when one more thing is done that takes real time, and none of this one; undefined: nothing is under way. */
  outside?: () => Promise<unknown> | undefined;
  /** Called after each instant, when all that it caused is done; what it throws ends `advance`. */
  onInstant?: () => void;
};

export class VirtualClock implements Clock {
  #now: number;
  #order = 0;
  /** Binary heap, the earliest first; entries of one instant in the order of their making. */
  readonly #heap: Entry[] = [];
  readonly #options: VirtualClockOptions;

  constructor(startMs = 1_700_000_000_000, options: VirtualClockOptions = {}) {
    this.#now = startMs;
    this.#options = options;
  }

  now(): number {
    return this.#now;
  }

  after(delayMs: number, fn: () => void): Timer {
    const entry: Entry = { at: this.#now + Math.max(0, delayMs), order: this.#order++, fn };
    this.#push(entry);
    return { cancel: () => void (entry.fn = undefined) };
  }

  /** Lets `ms` pass: all timers in between go off, each instant's together, and what they cause is done before the next. */
  async advance(ms: number): Promise<void> {
    const end = this.#now + ms;
    await settle();
    if (this.#options.promisesOnly) {
      while (this.#instant(end)) {
        drainMicrotasks();
        // oxlint-disable-next-line no-await-in-loop -- one after the other
        if (this.#options.outside?.()) await this.#finish();
        this.#options.onInstant?.();
      }
    } else while (await this.#step(end));
    this.#now = end;
  }

  /** Time passes while nobody runs, as for a process that is suspended: what was due goes off late, at the next `advance`. */
  stall(ms: number): void {
    this.#now += ms;
  }

  /**
   * Lets time pass until `condition` holds.
   * @throws if it does not within `limitMs`; the error says what `describe` sees then.
   */
  async until(condition: () => boolean, options: { limitMs: number; describe?: () => unknown }): Promise<void> {
    const end = this.#now + options.limitMs;
    await settle();
    while (!condition()) {
      if (await this.#step(end)) continue;
      const seen = options.describe ? `; now: ${JSON.stringify(options.describe(), undefined, 1)}` : "";
      throw new Error(`did not come true within ${options.limitMs} ms: ${condition.toString()}${seen}`);
    }
  }

  /** Lets the next instant happen that is not after `end`, with all that it causes; false if there is none. */
  async #step(end: number): Promise<boolean> {
    if (!this.#instant(end)) return false;
    await settle();
    this.#options.onInstant?.();
    return true;
  }

  /** Waits until nothing is under way outside. */
  async #finish(): Promise<void> {
    for (let next = this.#options.outside?.(); next; next = this.#options.outside?.()) {
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await next;
      drainMicrotasks();
    }
  }

  /** Runs the timers of the next instant that is not after `end`; false if there is none. */
  #instant(end: number): boolean {
    while (this.#heap[0] && !this.#heap[0].fn) this.#pop();
    const next = this.#heap[0]?.at;
    if (next === undefined || next > end) return false;
    this.#now = Math.max(this.#now, next);
    while (this.#heap[0] && this.#heap[0].at <= this.#now) this.#pop()?.fn?.();
    return true;
  }

  #push(entry: Entry): void {
    const heap = this.#heap;
    let at = heap.push(entry) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(entry, heap[parent])) break;
      heap[at] = heap[parent] as Entry;
      at = parent;
    }
    heap[at] = entry;
  }

  #pop(): Entry | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (!last || heap.length === 0) return top;
    let at = 0;
    for (;;) {
      const left = 2 * at + 1;
      const child = isBefore(heap[left + 1], heap[left]) ? left + 1 : left;
      if (!isBefore(heap[child], last)) break;
      heap[at] = heap[child] as Entry;
      at = child;
    }
    heap[at] = last;
    return top;
  }
}

function isBefore(a: Entry | undefined, b: Entry | undefined): boolean {
  if (!a || !b) return a !== undefined;
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}

/** Resolves once every promise that can resolve without time passing has done so. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** A seeded source of numbers in [0, 1): the same seed, the same numbers (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
