/**
 * @module Times that an earlier master wrote down, brought to what they can be when another one begins, whatever its clock says: the
 * machine may be another one, its clock may have been set, or may be right only now. While a process runs its clock only goes on
 * (`clock.ts`). Pure.
 *
 * The rule: nothing has happened in the future, and a deadline leaves at least half of its time again, at most ten minutes of it, for
 * the time in which no master was there was of no use to anybody. What is changed here is changed in memory; the Store has what was
 * written, until the record is written again.
 */
import type { Drain, NodeRecord, PastAllocation, StoredState } from "./model.ts";

/** Who empties a node waits no longer than this because a master was started anew. */
const MOST_AGAIN_MS = 600_000;

/** The state with times that a master which begins `now` may go by. */
export function boundedTimes<T extends Pick<StoredState, "node" | "allocation" | "departure" | "history">>(
  stored: T,
  now: number,
): T {
  const past = (at: number) => Math.min(at, now);
  const ended = (one: PastAllocation) => ({
    ...one,
    created_at: past(one.created_at),
    replaced_at: past(one.replaced_at),
  });
  return {
    ...stored,
    node: stored.node.map((node): NodeRecord => ({
      ...node,
      ...(node.drain && { drain: boundedDrain(node.drain, now) }),
    })),
    allocation: stored.allocation.map((one) => ({ ...one, created_at: past(one.created_at) })),
    departure: stored.departure.map((one) => ({ ...one, left_at: past(one.left_at) })),
    history: stored.history.map((one) => ({ ...one, past: one.past.map(ended) })),
  };
}

/** A drain as it goes on under a master that begins `now`: as if it had begun so much later or earlier. */
export function boundedDrain(drain: Drain, now: number): Drain {
  const lastsMs = Math.max(0, drain.deadline_at - drain.started_at);
  const earliest = now + Math.min(lastsMs / 2, MOST_AGAIN_MS);
  const deadline_at = Math.round(Math.min(now + lastsMs, Math.max(earliest, drain.deadline_at)));
  return { ...drain, started_at: deadline_at - lastsMs, deadline_at };
}
