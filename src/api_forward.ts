/**
 * @module Forwarding: a node that is not the master passes a request under /cluster on and the answer back, which is streamed, both
 * unchanged. A request's body is read before it is sent: this node bounds what it holds of them, and a slow sender keeps only
 * this node waiting. A write is sent once at most; what happened to it is never guessed.
 */
import { PAGE_HEADERS } from "./api_hosts.ts";
import { CacophonyError } from "./model.ts";
import { DIRECT } from "./transport.ts";

/** Marks a request that another node passed on: it is not passed on again. It proves nothing, and exempts from nothing. */
export const FORWARDED_HEADER = "x-cacophony-forwarded-by";

/** Clients get an answer within 2 s when no master can be reached; this leaves room for the answer's own way. */
const REACH_TIMEOUT_MS = 1_600;
/** A write without an answer after this time makes the node ask whether the master is alive at all. */
const DOUBT_AFTER_MS = 700;
/** A master that reads a large document answers nobody meanwhile: a mebibyte of YAML takes it a second, on a busy machine several. */
const DOUBT_PER_KIB_MS = 6;
/** A master that just ended refuses connections: a write that was not sent yet is to hear of that before it is given up. */
const LOST_GRACE_MS = 100;
const PROBE_TIMEOUT_MS = 800;

/** Headers that belong to one connection (RFC 9110 section 7.6.1), and what the next connection states anew. */
const CONNECTION_HEADERS = [
  "connection",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "expect",
  "host",
];

/** What some send along with these means nothing (RFC 9110 section 9.3.1), and fetch refuses to send it. */
const METHODS_WITHOUT_BODY: ReadonlySet<string> = new Set(["GET", "HEAD", "OPTIONS"]);

export type Master = {
  /** Where this node knows the master to be. */
  address: string | undefined;
  /** Set while this node is in session with the master; aborts when that is lost. */
  lost: AbortSignal | undefined;
};

/** `body` reads the request's, which takes its time: who is the master is asked before it and after it. */
export type ForwardOptions = { master: () => Master; selfId: string; body: () => Promise<Uint8Array<ArrayBuffer>> };

/**
 * Sends `request` to the master.
 * @throws CacophonyError `no_master` when the master was not reached (nothing was sent), `outcome_unknown` when a write was
 * sent and the answer will not come.
 */
export async function forward(
  request: Request,
  { master: masterNow, selfId, body }: ForwardOptions,
): Promise<Response> {
  addressOf(masterNow());
  const isWrite = request.method !== "GET" && request.method !== "HEAD";
  const sent = METHODS_WITHOUT_BODY.has(request.method) ? undefined : await body();
  const master = masterNow();
  const address = addressOf(master);
  // Once a write is sent its fate may stay unknown, so a master that is in doubt is asked for a sign of life before.
  if (isWrite && !master.lost && !(await answers(address))) throw noMaster(`tried ${address}, which does not answer`);
  const { pathname, search } = new URL(request.url);
  const headers = new Headers(request.headers);
  for (const name of [...CONNECTION_HEADERS, ...PAGE_HEADERS]) headers.delete(name);
  headers.set(FORWARDED_HEADER, selfId);
  headers.delete("content-length");
  const sizeKib = (sent?.byteLength ?? 0) / 1024;
  const abort = new AbortController();
  const watch = isWrite ? watchWrite(address, { abort, lost: master.lost, sizeKib }) : watchRead(abort);
  try {
    const response = await fetch(`http://${address}${pathname}${search}`, {
      ...DIRECT,
      method: request.method,
      headers,
      body: sent ?? null,
      redirect: "manual",
      signal: abort.signal,
      // The body passes unchanged, so it must stay encoded as it is; a reused connection could make Bun send a write twice.
      decompress: false,
      keepalive: !isWrite,
    });
    return passOn(response);
  } catch (error) {
    if (!isWrite || wasNeverSent(error)) throw noMaster(`tried ${address}, which does not answer`, error);
    throw new CacophonyError(
      "outcome_unknown",
      `the master at ${address} was lost before it answered: the change may or may not have been made; look before you repeat it`,
      { cause: error },
    );
  } finally {
    watch.stop();
  }
}

function addressOf({ address }: Master): string {
  if (address === undefined) throw noMaster("this node has not heard of a master yet");
  return address;
}

/** An answer that says nothing of its connection passes as it is, which is quicker for its body. */
function passOn(response: Response): Response {
  if (CONNECTION_HEADERS.every((name) => !response.headers.has(name))) return response;
  const headers = new Headers(response.headers);
  for (const name of CONNECTION_HEADERS) headers.delete(name);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

function watchRead(abort: AbortController): { stop: () => void } {
  const timer = setTimeout(() => abort.abort(), REACH_TIMEOUT_MS);
  return { stop: () => clearTimeout(timer) };
}

/** Gives a write up when the session with the master is lost, or when the master shows no sign of life any more. */
function watchWrite(
  address: string,
  { abort, lost, sizeKib }: { abort: AbortController; lost: AbortSignal | undefined; sizeKib: number },
): { stop: () => void } {
  let timer: Timer | undefined;
  const giveUp = () => abort.abort();
  const doubt = async () => {
    if (!(await answers(address))) return giveUp();
    if (timer !== undefined) timer = setTimeout(doubt, DOUBT_AFTER_MS);
  };
  timer = setTimeout(doubt, DOUBT_AFTER_MS + sizeKib * DOUBT_PER_KIB_MS);
  let ending: Timer | undefined;
  const onLost = () => {
    ending = setTimeout(giveUp, LOST_GRACE_MS);
  };
  lost?.addEventListener("abort", onLost, { once: true });
  return {
    stop: () => {
      clearTimeout(timer);
      clearTimeout(ending);
      timer = undefined;
      lost?.removeEventListener("abort", onLost);
    },
  };
}

async function answers(address: string): Promise<boolean> {
  try {
    const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
    return (await fetch(`http://${address}/healthz`, { ...DIRECT, signal, keepalive: false })).ok;
  } catch {
    return false;
  }
}

function wasNeverSent(error: unknown): boolean {
  const code = (error as { code?: string }).code ?? "";
  return ["ConnectionRefused", "ECONNREFUSED", "FailedToOpenSocket", "EHOSTUNREACH", "ENETUNREACH"].includes(code);
}

function noMaster(what: string, cause?: unknown): CacophonyError {
  return new CacophonyError("no_master", `no master can be reached: ${what}; nothing was changed, try again`, {
    cause,
  });
}
