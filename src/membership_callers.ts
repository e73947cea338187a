/**
 * @module Who may make internal calls to this master over HTTP: nodes in session. A node proves that by the token of its
 * welcome, which lasts as long as its connection and is in the memory of both sides only. Tokens are looked up by their hash,
 * so the time that an answer takes tells nothing about them.
 *
 * Nodes of earlier versions (their hello has no nonce) have no token. While such a node is in session, calls without a token are
 * served if they come from the IP address of its session: for the upgrade of a cluster, node by node. Remove this, and `isOlder`,
 * once no node of version 0.1.0 has to be upgraded any more.
 */
import { createHash } from "node:crypto";
import type { Hello } from "./model.ts";
import type { Caller } from "./transport.ts";

type Entry = { nodeId: string; digest: string | undefined; remote: string | undefined };

export class Callers {
  readonly #newToken: () => string;
  /** By the connection of each session. */
  readonly #entries = new Map<object, Entry>();
  readonly #byDigest = new Map<string, Entry>();

  constructor(options: { newToken: () => string }) {
    this.#newToken = options.newToken;
  }

  /** A node is in session from now on; returns its token, undefined for a node that does not know about tokens. */
  admit(link: { remote: string | undefined }, { nodeId, hello }: { nodeId: string; hello: Hello }): string | undefined {
    const token = hello.nonce === undefined ? undefined : this.#newToken();
    const entry = { nodeId, digest: token && digestOf(token), remote: link.remote };
    this.#entries.set(link, entry);
    if (entry.digest !== undefined) this.#byDigest.set(entry.digest, entry);
    return token;
  }

  /** The connection has ended. */
  forget(link: object): void {
    const entry = this.#entries.get(link);
    this.#entries.delete(link);
    if (entry?.digest !== undefined) this.#byDigest.delete(entry.digest);
  }

  /** Whether this is the connection of a node of an earlier version, which has no token. */
  isOlder(link: object): boolean {
    const entry = this.#entries.get(link);
    return entry !== undefined && entry.digest === undefined;
  }

  /** Whether the call is of a node in session; with `nodeId` of that one. */
  isNode({ authorization, remote }: Caller, nodeId?: string): boolean {
    const fits = (entry: Entry | undefined) => entry !== undefined && (nodeId ?? entry.nodeId) === entry.nodeId;
    if (authorization !== undefined) return fits(this.#byDigest.get(digestOf(tokenIn(authorization))));
    if (remote === undefined) return false;
    return [...this.#entries.values()].some(
      (entry) => entry.digest === undefined && entry.remote === remote && fits(entry),
    );
  }
}

/** The token of an Authorization header (RFC 6750); an empty text where it has none, which is the token of nobody. */
function tokenIn(authorization: string): string {
  return /^Bearer +(\S+)$/i.exec(authorization)?.[1] ?? "";
}

function digestOf(token: string): string {
  return createHash("sha256").update(token).digest("base64");
}
