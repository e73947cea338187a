/**
 * @module What the simulation knows to be wrong and does not look at yet. Each entry is taken out with the change that mends it, and
 * then the rule, or the trouble, is switched on.
 */

export type Pending =
  /** Issue 15, point 1: a second replica of what never runs twice is placed where a node's Engine alone is dead. */
  | "never two where an Engine is dead"
  /** Issue 15, point 1: a process that starts stops first of all what is past its deadline. */
  | "never two after a process was dead"
  /** Issue 15, point 5: a machine that lost its data directory joins before its Engine answers, and leaves orphans. */
  | "a lost data directory while the Engine is down"
  /** Issue 15, points 3 and 10: a node obeys a master whose term is older than one that it has seen. */
  | "an old master at the new one's address"
  /** Issue 15, point 6: a master that stands still again and again notices dead nodes late. */
  | "dead nodes of a busy master";

export const PENDING: ReadonlySet<Pending> = new Set<Pending>([]);
