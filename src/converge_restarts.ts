/**
 * @module When an ended container is started again, and when it stays ended: the restart policy, its text in a container's
 * label, and the waits. Pure.
 *
 * As in Swarm and compose, `max_attempts` counts ends in a row, and a run of at least `window` is a success, after which they
 * are counted anew. Under `on-failure` exit code 0 is a success that ends it all; under `always` it is an end like others.
 */
import { type Backoff, backoffMs } from "./clock.ts";
import type { RestartSpec } from "./model_spec.ts";

/** A container that ran this long counts as sound, unless its policy says another time (Docker resets after 10 s, too). */
export const STABLE_MS = 10_000;
/** From "a crash is not noticed" to "a crash loop costs little"; comes on top of the delay that the policy states. */
const RESTART_BACKOFF: Backoff = { firstMs: 100, capMs: 30_000 };

export type RestartPolicy = {
  condition: RestartSpec["condition"];
  /** 0: without limit. */
  maxAttempts: number;
  delayMs: number;
  windowMs: number;
};

/** The policy as a container's label: `CONDITION[:ATTEMPTS[:DELAY_MS[:WINDOW_MS]]]`, where 0 says nothing. */
export function restartLabel({ condition, max_attempts, delay_ms = 0, window_ms = 0 }: RestartSpec): string {
  if (condition === "no") return condition;
  const numbers = [max_attempts, delay_ms, window_ms];
  while (numbers.at(-1) === 0) numbers.pop();
  return [condition, ...numbers].join(":");
}

/** Reads the label; one that is missing, or that nobody knows any more, keeps the container running. */
export function restartPolicyOf(label: string | undefined): RestartPolicy {
  const [condition, ...rest] = (label ?? "").split(":");
  const [maxAttempts = 0, delayMs = 0, windowMs = 0] = rest.map((text) => Math.max(0, Number(text)) || 0);
  return {
    condition: condition === "no" || condition === "on-failure" ? condition : "always",
    maxAttempts,
    delayMs,
    windowMs: windowMs || STABLE_MS,
  };
}

/** Whether the container did what it was to do, and that is the end of it. */
export function isSuccess({ condition }: RestartPolicy, exitCode: number): boolean {
  return exitCode === 0 && condition !== "always";
}

/** Whether a container stays as it ended; `ends`: how many ends in a row that were, this one included. */
export function isOver(policy: RestartPolicy, { exitCode, ends }: { exitCode: number; ends: number }): boolean {
  if (policy.condition === "no" || isSuccess(policy, exitCode)) return true;
  return policy.maxAttempts > 0 && ends > policy.maxAttempts;
}

/** Time between an end and the next start: the stated delay, and a backoff that grows with each end in a row. */
export function restartWaitMs({ delayMs }: RestartPolicy, options: { ends: number; random: () => number }): number {
  return delayMs + backoffMs(options.ends, { ...RESTART_BACKOFF, random: options.random });
}
