/**
 * @module Waiting in tests: for a condition, with a deadline, never for luck.
 */

/** A container's start on a quick machine, in milliseconds, by `docker run`: waits are written down for such a one. */
const QUICK_START_MS = 600;
/** A machine slower than this by more is not waited for. */
const MAX_PACE = 6;
let pace = 1;

/** Says how long a container took to start here, so that waits for many of them give a slow machine its time. */
export function setPace(startMs: number): void {
  pace = Math.min(MAX_PACE, Math.max(1, startMs / QUICK_START_MS));
}

/** `ms` of a quick machine on this one. For a test's own beginnings, where the product promises no time. */
export function paced(ms: number): number {
  return ms * pace;
}

export interface WaitOptions<T> {
  /** When the probe's value counts as reached; default: when it is truthy. */
  until?: (seen: T) => boolean;
  /** Milliseconds until giving up; default 10 000. */
  timeoutMs?: number;
  /** Milliseconds between two probes; default 50. */
  intervalMs?: number;
}

/**
 * Calls `probe` again and again until its value counts as reached, and returns that value. A probe that throws counts as
 * not yet reached, so it may hold `expect` calls or requests to a process that is still starting.
 * @throws Error that says what was waited for and what the last probe saw.
 */
export async function waitUntil<T>(
  what: string,
  probe: () => T | Promise<T>,
  { until = Boolean, timeoutMs = 10_000, intervalMs = 50 }: WaitOptions<T> = {},
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    let last: string;
    try {
      const seen = await probe();
      if (until(seen)) return seen;
      last = describe(seen);
    } catch (error) {
      last = error instanceof Error ? `${error.name}: ${error.message}` : describe(error);
    }
    if (performance.now() >= deadline) throw new Error(`${what}: not within ${timeoutMs} ms; last seen: ${last}`);
    await Bun.sleep(intervalMs);
  }
}

function describe(value: unknown): string {
  const text = typeof value === "string" ? value : Bun.inspect(value, { depth: 6 });
  return text.length > 4_000 ? `${text.slice(0, 4_000)} …` : text;
}
