/**
 * @module Entry of the thread that `store_thread.ts` has write the cluster's state: does what it is asked for, one after the other,
 * for as long as the disk takes, and answers. Decides nothing.
 */
import { openSqliteStore, type Store, StoreError } from "./store.ts";
import type { StoreAnswer, StoreRequest } from "./store_thread.ts";

declare const self: { onmessage: ((event: MessageEvent<StoreRequest>) => void) | null };

let store: Store | undefined;
let fault: StoreAnswer = { code: "failed", message: "the cluster state is not open" };
/** Each waits for the one before it. */
let last: Promise<void> = Promise.resolve();

self.onmessage = ({ data }) => {
  last = last.then(async () => postMessage(await answerTo(data)));
};

async function answerTo(request: StoreRequest): Promise<StoreAnswer> {
  try {
    if (request.op === "open") {
      store = openSqliteStore(request.path);
      return {};
    }
    if (!store) return fault;
    if (request.op === "beginTerm") return { term: await store.beginTerm(request.wanted) };
    if (request.op === "commit") await store.commit(request.term, request.changes);
    else if (request.op === "scrub") await store.scrub?.();
    else await store.close();
    return {};
  } catch (error) {
    const isKnown = error instanceof StoreError;
    const message = error instanceof Error ? error.message : String(error);
    const code = isKnown ? error.code : request.op === "open" ? "failed" : "unknown";
    const answer: StoreAnswer = { code, message, last: isKnown ? error.last : undefined };
    if (request.op === "open") fault = answer;
    return answer;
  }
}
