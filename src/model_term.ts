/**
 * @module The number of one leadership, its term, and which of two is newer. A start or an election adds 1 to the store's last term,
 * a restored store `RESTORE_STEP`; what a node says adds nothing, so that two masters of one cluster never outbid each other. A node
 * keeps a proof of the newest term that it has seen, signed with the cluster's key (`cluster_key.ts`), and shows it to whoever says
 * that he is the master: one whose state was set back learns by it that he must not lead. Pure.
 */
import * as v from "valibot";
import * as b from "./model_bounds.ts";

/**
 * What a restore adds to the term: more starts than a master has in any life, so that what it begins is above all that was begun
 * after the backup was made. The whole part of a term over it is the number of restores, and 2 million of them fit.
 */
export const RESTORE_STEP = 2 ** 32;

/**
 * How much newer a term may be than the newest one that a node has seen: 256 restores between two sessions. A forged term must not
 * use up all numbers that there are.
 */
export const MAX_TERM_STEP = 2 ** 40;

/** A leadership: its term, and an id of its own, as two may have begun one term. Without an id: it is of an earlier version. */
export type Begun = { term: number; leadership?: string | undefined };

/** A leadership, signed with the cluster's key. */
export const termProof = v.object({ term: b.safeCount, leadership: b.id, signature: b.name });
export type TermProof = v.InferOutput<typeof termProof>;

/** How often the state was restored, as far as its term tells. */
export function restoresOf(term: number): number {
  return Math.floor(term / RESTORE_STEP);
}

/** Whether `last` is not the newest leadership that there was, where somebody has seen `seen`. */
export function isBehind(last: Begun, seen: Begun): boolean {
  if (last.term !== seen.term) return last.term < seen.term;
  return last.leadership !== undefined && seen.leadership !== undefined && last.leadership !== seen.leadership;
}

/** What to do about a master that must not lead, as a part of a sentence. */
export const SET_BACK_HINT =
  "if another master leads, leave this one stopped; if this one's state was restored from a backup, stop it and start it once " +
  "with 'cacophony --restored'";

/** Why a master must not lead: `last` is what it has begun itself, or would go on from. */
export function behindText(last: Begun, { seen, witness }: { seen: Begun; witness: string }): string {
  const where =
    last.term === seen.term
      ? `that term ${seen.term} was begun by another master, too`
      : `of term ${seen.term}, but this master's state is at term ${last.term}`;
  return `${witness} has proof ${where}: that state was set back, or another master leads; ${SET_BACK_HINT}`;
}
