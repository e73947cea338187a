/**
 * @module The versions of the node-to-master protocol that this binary understands, and which of them a session speaks: the newest
 * one that both sides understand. Later versions of Cacophony widen the range, and so go on talking to this one. Pure.
 */
import * as v from "valibot";
import * as b from "./model_bounds.ts";

/** The oldest and the newest version that is understood, and all between them. */
export const protocolRange = v.pipe(
  v.object({ oldest: b.safeCount, newest: b.safeCount }),
  v.check(({ oldest, newest }) => oldest <= newest, "is not a range: its oldest version is above its newest"),
);
export type ProtocolRange = v.InferOutput<typeof protocolRange>;

/** What this binary understands. */
export const PROTOCOLS: ProtocolRange = { oldest: 3, newest: 3 };

/** What a hello, or who answers for a node, says of its protocol. Without a range it is the one version. */
export type ProtocolWords = { protocol: number; protocols?: ProtocolRange };

export function protocolsOf({ protocol, protocols }: ProtocolWords): ProtocolRange {
  return protocols ?? { oldest: protocol, newest: protocol };
}

/** The newest version that both understand; undefined: there is none. */
export function commonProtocol(one: ProtocolRange, other: ProtocolRange): number | undefined {
  const newest = Math.min(one.newest, other.newest);
  return newest >= Math.max(one.oldest, other.oldest) ? newest : undefined;
}

/** What a welcome says: the version of a session with a node that has a range. Who has none speaks its only one. */
export function chosenProtocol({ protocols }: ProtocolWords): { protocol?: number } {
  const chosen = protocols && commonProtocol(protocols, PROTOCOLS);
  return chosen === undefined ? {} : { protocol: chosen };
}

/** Why a master that understands `ours` takes no node that understands `theirs`; undefined: it does. */
export function protocolFault(theirs: ProtocolRange, ours: ProtocolRange = PROTOCOLS): string | undefined {
  if (commonProtocol(theirs, ours) !== undefined) return undefined;
  const older = theirs.newest < ours.oldest ? "this node" : "the master";
  return `the master speaks ${rangeText(ours)} of the protocol, this node ${rangeText(theirs)}: upgrade cacophony on ${older}`;
}

/** As a message has it: `version 3`, `versions 3 to 5`. */
export function rangeText({ oldest, newest }: ProtocolRange): string {
  return oldest === newest ? `version ${oldest}` : `versions ${oldest} to ${newest}`;
}
