/**
 * @module Bodies of requests on their way into memory. Owns how many bytes of them this process holds at once and how long one may
 * take to arrive. Before a body is read, Bun keeps about a mebibyte of it and lets the sender wait; so bodies are read at once.
 *
 * **Whose body ends when there is no room.** First one that has not grown for a second, then the largest: so whoever sends is
 * never kept out by those who only began to, nor a small body by large ones. It is answered 503 and may be sent again.
 */
import type { MiddlewareHandler } from "hono";
import { type Clock, systemClock, type Timer } from "./clock.ts";
import { CacophonyError } from "./model.ts";

/** Bytes of bodies at once, from the first byte until the request is answered: four forms of the largest size, and small ones. */
const MAX_BODIES_BYTES = 40 * 2 ** 20;
/** Of these, bytes that only small bodies get: whole ones stay until they are answered, and reading a document can take long. */
const RESERVED_BYTES = 8 * 2 ** 20;
/** Up to here a body is small: most documents, and all other requests. */
const SMALL_BODY_BYTES = 64 * 2 ** 10;
/** A body that has not grown for so long ends first where room is needed. */
const STALLED_MS = 1_000;
/** A body of which nothing came for so long ends; a lost packet is sent again within a second or two. */
const SILENT_MS = 10_000;
/** A body ends after this time however much of it comes: the largest form at 0.6 Mbit a second. */
const ARRIVAL_MS = 120_000;

declare module "hono" {
  interface ContextVariableMap {
    /**
     * The request's body, of at most so many bytes.
     * @throws CacophonyError `too_large`, `busy`, `request_timeout`, and `bad_request` where it ends early.
     */
    bodyUpTo: (most: number) => Promise<Uint8Array<ArrayBuffer>>;
  }
}

export type BodiesOptions = { clock?: Clock; maxBytes?: number; reservedBytes?: number };

type Body = {
  bytes: number;
  grewAt: number;
  /** Why it is not read on. */
  refusal: CacophonyError | undefined;
  /** Wakes its reader. */
  cancel: () => void;
};

export class Bodies {
  readonly #clock: Clock;
  readonly #maxBytes: number;
  readonly #reservedBytes: number;
  /** Of all bodies, also of those that are whole and not answered yet. */
  #bytes = 0;
  readonly #arriving = new Set<Body>();

  constructor({
    clock = systemClock,
    maxBytes = MAX_BODIES_BYTES,
    reservedBytes = RESERVED_BYTES,
  }: BodiesOptions = {}) {
    this.#clock = clock;
    this.#maxBytes = maxBytes;
    this.#reservedBytes = reservedBytes;
  }

  /** Bytes held now. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Lets the routes below it read bodies by `bodyUpTo`; what they read counts until they have answered. */
  readonly hold: MiddlewareHandler = async (c, next) => {
    const body: Body = { bytes: 0, grewAt: 0, refusal: undefined, cancel: () => {} };
    c.set("bodyUpTo", (most) => this.#read(c.req.raw, { most, body }));
    try {
      await next();
    } finally {
      this.#release(body);
    }
  };

  async #read(request: Request, { most, body }: { most: number; body: Body }): Promise<Uint8Array<ArrayBuffer>> {
    if (Number(request.headers.get("content-length") ?? 0) > most) throw tooLarge(most);
    const reader = request.body?.getReader();
    if (!reader) return new Uint8Array();
    body.cancel = () => void reader.cancel().catch(() => {});
    const chunks: Uint8Array[] = [];
    const latest = this.#clock.now() + ARRIVAL_MS;
    let timer = this.#expire(body, latest);
    this.#arriving.add(body);
    try {
      for (;;) {
        // oxlint-disable-next-line no-await-in-loop -- as it comes
        const { done, value } = await reader.read();
        if (body.refusal) throw body.refusal;
        if (done) return Buffer.concat(chunks);
        this.#take(body, value.byteLength);
        if (body.bytes > most) throw tooLarge(most);
        chunks.push(value);
        timer.cancel();
        timer = this.#expire(body, latest);
      }
    } catch (error) {
      this.#release(body);
      body.cancel();
      if (error instanceof CacophonyError) throw error;
      throw new CacophonyError("bad_request", "the body ended early; nothing was changed", { cause: error });
    } finally {
      timer.cancel();
      this.#arriving.delete(body);
    }
  }

  /** Ends a body of which nothing comes any more, or that takes too long. */
  #expire(body: Body, latest: number): Timer {
    const leftMs = latest - this.#clock.now();
    const message =
      leftMs < SILENT_MS
        ? `the body did not arrive within ${ARRIVAL_MS / 1000} s`
        : `nothing came of the body for ${SILENT_MS / 1000} s`;
    return this.#clock.after(Math.min(leftMs, SILENT_MS), () =>
      this.#refuse(body, new CacophonyError("request_timeout", `${message}; nothing was changed, send it again`)),
    );
  }

  /** @throws CacophonyError `busy` where no other body has to make room. */
  #take(body: Body, bytes: number): void {
    body.bytes += bytes;
    body.grewAt = this.#clock.now();
    this.#bytes += bytes;
    const most = body.bytes <= SMALL_BODY_BYTES ? this.#maxBytes : this.#maxBytes - this.#reservedBytes;
    while (this.#bytes > most && !body.refusal) this.#refuse(this.#leastWorthy(body), busy());
    if (body.refusal) throw body.refusal;
  }

  /** The body that has to make room for `asking`, which may be that itself. */
  #leastWorthy(asking: Body): Body {
    let least = asking;
    const stalledSince = this.#clock.now() - STALLED_MS;
    const isStalled = (body: Body) => body.grewAt <= stalledSince;
    for (const body of this.#arriving) {
      if (body.bytes === 0 || (isStalled(least) && !isStalled(body))) continue;
      if (body.bytes > least.bytes || (isStalled(body) && !isStalled(least))) least = body;
    }
    return least;
  }

  #refuse(body: Body, refusal: CacophonyError): void {
    body.refusal = refusal;
    this.#release(body);
    this.#arriving.delete(body);
    body.cancel();
  }

  #release(body: Body): void {
    this.#bytes -= body.bytes;
    body.bytes = 0;
  }
}

export function tooLarge(most: number): CacophonyError {
  return new CacophonyError("too_large", `the body is larger than ${most} bytes (${most / 2 ** 20} MiB)`);
}

function busy(): CacophonyError {
  return new CacophonyError(
    "busy",
    "this node is receiving too many large requests at once; nothing was changed, send it again",
  );
}
