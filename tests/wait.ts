/**
 * @module Waiting in tests: for a condition, with a deadline, never for luck.
 */

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
