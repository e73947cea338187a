/**
 * @module A piece of work that is done again and again for as long as its part lives. It goes on whatever one turn throws: a loop
 * that ended in silence would be noticed only by what is no longer done.
 */
import type { Clock, Timer } from "./clock.ts";

export type LoopOptions = {
  /** Milliseconds until the first turn; 0: it is done before `repeat` returns. */
  firstMs: number;
  /** One turn; returns after how many milliseconds the next one is due, undefined: there is none. */
  work: () => number | undefined | Promise<number | undefined>;
  /** A turn threw: the next one comes after this time all the same. */
  retryMs: number;
  onFault: (error: unknown) => void;
};

/** Does `work` again and again, one turn at a time, until the returned timer is cancelled. */
export function repeat(clock: Clock, { firstMs, work, retryMs, onFault }: LoopOptions): Timer {
  let timer: Timer | undefined;
  let isOver = false;
  const next = (delayMs: number | undefined) => {
    if (!isOver && delayMs !== undefined) timer = clock.after(delayMs, turn);
  };
  const failed = (error: unknown) => {
    next(retryMs);
    onFault(error);
  };
  function turn(): void {
    let delay: ReturnType<typeof work>;
    try {
      delay = work();
    } catch (error) {
      return failed(error);
    }
    if (delay instanceof Promise) void delay.then(next, failed);
    else next(delay);
  }
  if (firstMs > 0) next(firstMs);
  else turn();
  return {
    cancel: () => {
      isOver = true;
      timer?.cancel();
    },
  };
}
