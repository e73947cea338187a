/**
 * @module Where compose documents are read: small plain ones on the spot, all others in a thread of their own, so that one that
 * takes a second keeps no heartbeat and no other request waiting. The thread is made for one document and ended after it:
 * its memory is given back, and a node that gets no such document never has one.
 */
import type { ParseResult, Sending } from "./job_spec.ts";
import { parseJob } from "./job_spec.ts";
import { lengthOf, readYaml } from "./job_yaml.ts";
import { CacophonyError } from "./model.ts";

/** Bytes of a document that is read on the spot, in a few milliseconds; a thread takes some tens of them to start. */
const SMALL_BYTES = 16 * 1024;
/** What makes much of little: services that extend others, other files. Aliases do so, too, but are soon counted. */
const MULTIPLIES = /extends|include/;
/** What a document with aliases may stand for: as many values, and as much text, as a small one without them can have. */
const SMALL_NODES = 4_000;
/** Documents that may wait for the thread: each holds up to 8 MiB of files. */
const MAX_WAITING = 8;
/** The worst document that is known takes 3 s of a slow core. */
const READ_TIMEOUT_MS = 30_000;

/** Reads documents, large ones one after the other. */
export class JobReader {
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  /**
   * As `parseJob`.
   * @throws CacophonyError `busy` when too many documents wait, `internal` when the thread ends without an answer.
   */
  async read(document: Uint8Array, sending: Sending): Promise<ParseResult> {
    if (isSmall(document, sending)) return parseJob(document, sending);
    if (this.#waiting === MAX_WAITING)
      throw new CacophonyError("busy", `${MAX_WAITING} large documents are being read; nothing was changed, try again`);
    this.#waiting++;
    const turn = this.#last.then(() => readApart({ document, sending }));
    this.#last = turn.catch(() => {});
    return turn.finally(() => this.#waiting--);
  }
}

function isSmall(document: Uint8Array, { files }: Sending): boolean {
  if (document.byteLength > SMALL_BYTES || (files && files.size > 0)) return false;
  const text = new TextDecoder().decode(document);
  if (MULTIPLIES.test(text)) return false;
  if (!text.includes("*")) return true;
  const yaml = readYaml(text, SMALL_NODES);
  return yaml.state === "parsed" ? lengthOf(yaml.root) <= SMALL_BYTES : yaml.state === "unparseable";
}

async function readApart(message: { document: Uint8Array; sending: Sending }): Promise<ParseResult> {
  const thread = new Worker(new URL("./reader.ts", import.meta.url));
  const { promise, resolve, reject } = Promise.withResolvers<ParseResult>();
  const fail = (reason: string) =>
    reject(new CacophonyError("internal", `the document could not be read: ${reason}; nothing was changed`));
  const timeout = setTimeout(() => fail(`it takes over ${READ_TIMEOUT_MS / 1000} s`), READ_TIMEOUT_MS);
  thread.onmessage = ({ data }: MessageEvent<ParseResult>) => resolve(data);
  thread.onerror = ({ message: reason }) => fail(reason);
  thread.postMessage(message);
  try {
    return await promise;
  } finally {
    clearTimeout(timeout);
    thread.terminate();
  }
}
