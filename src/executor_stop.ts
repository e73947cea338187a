/**
 * @module How a container that runs comes to its end in good order: its connections end first, then it gets its stop signal, and both
 * have one grace period together. Owns how that is shared out; `executor_worker.ts` stops.
 */
import type { Clock } from "./clock.ts";
import type { Container, Memory } from "./converge.ts";
import type { ExecutorOverlay } from "./executor_networks.ts";
import { graceOf } from "./executor_worker.ts";

/** Docker takes a grace period in whole seconds, and rounds up. */
const SECOND_MS = 1_000;

export type StopOptions = {
  allocationId: string;
  overlay: ExecutorOverlay;
  clock: Clock;
  signal: AbortSignal;
  memory: Memory | undefined;
};

/**
 * Resolves when a container may be stopped, to what is left of its grace period for that, in milliseconds: half of it at least. What
 * is stopped for want of a master waits for nobody: the master counts with its grace period and no more.
 */
export async function drainFirst(
  container: Container,
  { allocationId, overlay, clock, signal, memory }: StopOptions,
): Promise<number> {
  const graceMs = graceOf(container);
  if (container.state !== "running" || memory?.isolated !== undefined) return graceMs;
  const leastMs = Math.min(graceMs, Math.ceil(graceMs / 2 / SECOND_MS) * SECOND_MS);
  const begin = clock.now();
  await overlay.drain(allocationId, { graceMs: graceMs - leastMs, signal, pid: container.pid });
  return Math.max(leastMs, graceMs - (clock.now() - begin));
}
