/**
 * @module What a time in which the master itself stood still (suspended, or busy) is to the silence of its nodes. Pure: times come in.
 *
 * A node that lives is heard right after a pause: what it sent meanwhile waits in its connection. So a pause is counted for a node
 * like any other time, but in two cases, in which the node may have had nobody to talk to:
 * - **Its connection is gone.** It calls again and again, and each call waits `PATIENCE_MS` for an answer: of a pause, the master
 *   lost only what is longer. With the first pause of its silence it gets the time that a call takes, `REDIAL_MS`.
 * - **The pause was as long as the node timeout.** No node keeps a session for that long, and a machine that slept did not hear how
 *   connections were closed. With the first such pause of its silence it gets the whole node timeout again, or `RECONNECT_MS`.
 *
 * Nothing is concluded right after a pause, since what waits is to be read first; and where pauses follow each other so closely that
 * they leave no time for it, only what was known before the last one.
 */

/** A call waits so long for the master's answer: `REACH_TIMEOUT_MS` of `transport.ts`. */
export const PATIENCE_MS = 1_500;
/**
 * A node that lost its session calls within so long after a short pause: 200 ms, then 400, 800 and so on lie between its calls, and
 * the next pause may spoil one of them.
 */
export const REDIAL_MS = 5_000;
/** And after a long pause: up to 3 s lie between its calls. */
export const RECONNECT_MS = 10_000;
/** After this, what waited in connections has been read: timers and sockets take turns. */
const READ_MS = 20;

/** A node as it is when a pause is over. */
type Paused = { lastSeen: number; connected: boolean };

/** What a look at everybody's silence goes by. */
export type Look = {
  /** How long the master stood still just before it; 0: it did not. */
  pauseMs: number;
  /** The time as of which silence is judged; undefined: the next look, `nextMs` later, does that. */
  asOf: number | undefined;
  nextMs: number | undefined;
};

export class Pauses {
  readonly #nodeTimeoutMs: number;
  /** Nodes that are not given up before a time, and whether that is for a long pause. Until they are heard. */
  readonly #spared = new Map<string, { until: number; isLong: boolean }>();
  #lookedAt = 0;
  #dueAt = 0;
  /** The last pause, where what came in while it lasted was not read yet at the last look. */
  #unread: { endedAt: number; pauseMs: number } | undefined;

  constructor(options: { nodeTimeoutMs: number }) {
    this.#nodeTimeoutMs = options.nodeTimeoutMs;
  }

  /** Says that the next look is due after `nextMs`, and returns that. */
  expect(now: number, nextMs: number): number {
    this.#lookedAt = now;
    this.#dueAt = now + nextMs;
    return nextMs;
  }

  /** Begins a look; one that is late by more than `stepMs` comes after a pause. */
  look(now: number, { stepMs, nodes }: { stepMs: number; nodes: Iterable<readonly [string, Paused]> }): Look {
    const isLate = now - this.#dueAt > stepMs;
    // It may have begun right after the last look.
    const pauseMs = isLate ? now - this.#lookedAt - Math.min(stepMs, this.#dueAt - this.#lookedAt) : 0;
    const before = this.#unread;
    this.#unread = isLate ? { endedAt: now, pauseMs } : undefined;
    if (before) this.#note(before, nodes);
    if (!isLate) return { pauseMs, asOf: now, nextMs: undefined };
    return { pauseMs, asOf: before && now - pauseMs, nextMs: READ_MS };
  }

  /** Whether the node's silence is not concluded from yet. */
  isSpared(nodeId: string, now: number): boolean {
    const spared = this.#spared.get(nodeId);
    return spared !== undefined && now <= spared.until;
  }

  /** The node has spoken, or is no member any more. */
  forget(nodeId: string): void {
    this.#spared.delete(nodeId);
  }

  #note({ endedAt, pauseMs }: { endedAt: number; pauseMs: number }, nodes: Iterable<readonly [string, Paused]>): void {
    const isLong = pauseMs >= this.#nodeTimeoutMs;
    const graceMs = isLong ? Math.max(RECONNECT_MS, this.#nodeTimeoutMs) : REDIAL_MS;
    for (const [nodeId, { lastSeen, connected }] of nodes) {
      if (lastSeen >= endedAt || (connected && !isLong)) continue;
      const known = this.#spared.get(nodeId);
      const shifted = (known?.until ?? 0) + lostMs(pauseMs);
      const isFirst = !known || (isLong && !known.isLong);
      const until = isFirst ? Math.max(shifted, endedAt + graceMs) : shifted;
      this.#spared.set(nodeId, { until, isLong: isLong || known?.isLong === true });
    }
  }
}

/** What the master lost of a pause: nobody's call lasted through the rest. */
export function lostMs(pauseMs: number): number {
  return Math.max(0, pauseMs - PATIENCE_MS);
}
