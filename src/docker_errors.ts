/**
 * @module What goes wrong between us and a Docker Engine: the one error class, and how Docker's answers and the network's errors
 * are told apart. Owns the reading of error texts; makes no calls.
 */

export type EngineErrorCode =
  | "not_found"
  | "conflict"
  | "port_in_use"
  | "pool_overlap"
  | "image_not_found"
  | "denied"
  | "unreachable_registry"
  | "unavailable"
  | "timeout"
  | "aborted"
  | "lost_track"
  | "bad_request"
  | "other";

/** Docker said no, or nothing. The message is Docker's own. */
export class EngineError extends Error {
  readonly code: EngineErrorCode;
  /** The host port of a `port_in_use`, where Docker's message names it. */
  readonly port: number | undefined;
  constructor(code: EngineErrorCode, message: string, options: { port?: number; cause?: unknown } = {}) {
    super(message, "cause" in options ? { cause: options.cause } : undefined);
    this.name = "EngineError";
    this.code = code;
    this.port = options.port;
  }
}

/** No answer at all: `cause` is the error of the socket. */
export function unavailableError(host: string, cause: unknown): EngineError {
  const { code = "" } = cause as { code?: string };
  const why = UNAVAILABLE[code] ?? (cause instanceof Error ? cause.message : String(cause));
  return new EngineError("unavailable", `Docker does not answer on ${host}: ${why}; is dockerd running?`, { cause });
}

const UNAVAILABLE: Record<string, string> = {
  ENOENT: "no such file",
  ECONNREFUSED: "connection refused",
  ECONNRESET: "connection reset",
  EACCES: "permission denied (root and the group docker may use it)",
  ENOTFOUND: "no such host",
  ETIMEDOUT: "timed out",
};

/** Reads Docker's error answer. Docker has no error codes beyond the status, so some kinds are told by their text. */
export function apiError(statusCode: number, cause: Error): EngineError {
  // dockerode wraps the message: "(HTTP code 404) no such container - No such image: x ".
  const message = /^\(HTTP code \d+\) .*? - ([^]*)$/.exec(cause.message)?.[1]?.trim() || cause.message;
  if (
    /port is already allocated|address already in use|failed to bind (host )?port|all ports are allocated/.test(message)
  ) {
    const port = /(?:Bind for|listen \w+|bind (?:host )?port) \S*?:(\d+)\b/.exec(message)?.[1];
    return new EngineError("port_in_use", message, { cause, ...(port !== undefined && { port: Number(port) }) });
  }
  if (/^Pool overlaps|invalid pool request: Pool overlaps/.test(message)) {
    return new EngineError("pool_overlap", message, { cause });
  }
  const isShimThere = message.includes("failed to start shim: ") && message.includes("file exists");
  if (isShimThere || /already exists$|^id already in use/.test(message)) {
    return new EngineError("lost_track", message, { cause });
  }
  if (statusCode === 404 && /^no such image/i.test(message))
    return new EngineError("image_not_found", message, { cause });
  const code: EngineErrorCode =
    statusCode === 404
      ? "not_found"
      : statusCode === 409 || /has active endpoints/.test(message)
        ? "conflict"
        : statusCode === 401
          ? "denied"
          : statusCode === 400
            ? "bad_request"
            : "other";
  return new EngineError(code, message, { cause });
}

/** Tells the kinds of failed pulls apart; Docker passes on what the registry or the Go network library said. */
export function pullError(error: EngineError): EngineError {
  if (["timeout", "aborted", "unavailable"].includes(error.code)) return error;
  const { message } = error;
  const is = (code: EngineErrorCode) => new EngineError(code, message, { cause: error });
  // First what can only be the network's: a host's name may hold any of the words below.
  if (/\bdial (tcp|udp) |\blookup \S+ on |no such host/.test(message)) return is("unreachable_registry");
  if (/denied|forbidden|unauthorized|authentication required|no basic auth/i.test(message)) return is("denied");
  if (/not found|unknown: |no such image|does not exist/i.test(message)) return is("image_not_found");
  if (
    /dial |lookup |refused|timeout|deadline|canceled|unreachable|no route|EOF|x509|tls: |HTTP response to HTTPS|reset by peer|50[234]/i.test(
      message,
    )
  ) {
    return is("unreachable_registry");
  }
  return error;
}
