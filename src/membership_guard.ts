/**
 * @module What happens to a node whose message the master fails to take in: its session ends, and nothing else. It comes again, later
 * each time, and reports in full. What it runs stays as it is, and so does the rest of the cluster.
 */
import type { Faults } from "./log_faults.ts";
import type { NodeMessage } from "./model.ts";
import type { Channel, SessionHandler } from "./transport.ts";

type Handlers = ReturnType<SessionHandler>;
const KINDS: readonly string[] = ["hello", "heartbeat", "status"] satisfies NodeMessage["type"][];

/** `handlers` that never throw. `node`: whose session it is, as far as is known. */
export function guarded(
  handlers: Handlers,
  { channel, faults, node }: { channel: Channel; faults: Faults; node: () => string | undefined },
): Handlers {
  const failed = (what: string, error: unknown) => {
    faults.tell("an error of Cacophony itself ends a node's session", error, { node: node(), at: what });
    channel.close();
  };
  return {
    onMessage: (text) => {
      try {
        handlers.onMessage(text);
      } catch (error) {
        failed(kindOf(text), error);
      }
    },
    onClose: () => {
      try {
        handlers.onClose();
      } catch (error) {
        failed("its end", error);
      }
    },
  };
}

/** The log names no kinds that a node has invented. */
function kindOf(text: string): string {
  const kind = /^\s*\{\s*"type"\s*:\s*"([a-z]+)"/.exec(text)?.[1] ?? "";
  return KINDS.includes(kind) ? kind : "a message";
}
