/**
 * @module Time as a value that is handed in: every component takes a `Clock`, so that a whole cluster can run in virtual
 * time. Owns the interface, the real clock and the one backoff formula; knows nothing of what is waited for.
 */

export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Milliseconds since 1970. */
  now(): number;
  /** Calls `fn` once, after `delayMs` milliseconds, unless cancelled. */
  after(delayMs: number, fn: () => void): Timer;
}

/** What `setTimeout` counts up to, almost 25 days: anything above goes off at once. */
const MAX_DELAY_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  // Begins at the wall clock's time and then only goes on: when somebody sets the clock, nothing becomes late or early by it.
  now: () => Math.round(performance.timeOrigin + performance.now()),
  after(delayMs, fn) {
    let timer: ReturnType<typeof setTimeout>;
    const wait = (restMs: number) => {
      timer = setTimeout(
        () => (restMs > MAX_DELAY_MS ? wait(restMs - MAX_DELAY_MS) : fn()),
        Math.min(restMs, MAX_DELAY_MS),
      );
    };
    wait(delayMs);
    return { cancel: () => clearTimeout(timer) };
  },
};

/** Resolves after `delayMs`, or at once when `signal` aborts. Never rejects. */
export function sleep(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const timer = clock.after(delayMs, done);
    signal?.addEventListener("abort", done, { once: true });
    function done(): void {
      timer.cancel();
      signal?.removeEventListener("abort", done);
      resolve();
    }
  });
}

/** Resolves when `promise` has settled, or after `limitMs`. Never rejects. */
export function atMost(clock: Clock, limitMs: number, promise: Promise<unknown>): Promise<void> {
  return new Promise((resolve) => {
    const timer = clock.after(limitMs, resolve);
    const done = () => {
      timer.cancel();
      resolve();
    };
    promise.then(done, done);
  });
}

/** Bounds of an exponential backoff, in milliseconds. */
export type Backoff = { firstMs: number; capMs: number };

/**
 * Delay before try number `attempt` (1 = the first repeat): doubles from `firstMs` up to `capMs`, then takes a random
 * share of 50 to 100 % of it, so that many nodes do not come back at the same instant ("equal jitter", Brooker, AWS 2015).
 */
export function backoffMs(attempt: number, { firstMs, capMs, random }: Backoff & { random: () => number }): number {
  const full = Math.min(capMs, firstMs * 2 ** Math.min(30, Math.max(0, attempt - 1)));
  return Math.round(full * (0.5 + random() / 2));
}

/** One timer for each key; setting it again replaces the one before. */
export class Alarms<K> {
  readonly #timers = new Map<K, Timer>();

  /** `at`: milliseconds since 1970; undefined: none any more. */
  set(key: K, { at, clock, ring }: { at: number | undefined; clock: Clock; ring: () => void }): void {
    this.#timers.get(key)?.cancel();
    this.#timers.delete(key);
    if (at === undefined) return;
    const timer = clock.after(Math.max(0, at - clock.now()), () => {
      this.#timers.delete(key);
      ring();
    });
    this.#timers.set(key, timer);
  }

  stop(): void {
    for (const timer of this.#timers.values()) timer.cancel();
    this.#timers.clear();
  }
}
