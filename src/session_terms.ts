/**
 * @module Which messages of a session are of its master's term. A node has taken in nothing older than what it has seen, so it
 * obeys nothing older either: not a welcome (`session_welcome.ts`), and no message that follows one. Pure.
 */
import type { MasterMessage } from "./model.ts";

export type Terms = {
  /** Of the welcome. */
  session: number;
  /** The newest one that the node has seen. */
  seen: number;
};

/** Why a message is not obeyed; undefined: it is. A message of an earlier master says no term: it is of its session's. */
export function termFault(message: MasterMessage, { session, seen }: Terms): string | undefined {
  const term = message.type === "assignments" ? message.order.term : (message.term ?? session);
  if (term < seen) return `'${message.type}' is of term ${term}, older than term ${seen} that this node has seen`;
  return term === session ? undefined : `'${message.type}' is of term ${term}, the welcome was of term ${session}`;
}
