/**
 * @module A port of this node that should be open: opened on all addresses, tried again while it can't be, closed for good.
 * Owns the tries and the reason that people read; knows nothing of what comes in.
 */
import { backoffMs, type Clock, type Timer } from "./clock.ts";
import type { Log } from "./log.ts";

export type ListenerOptions = {
  clock: Clock;
  random: () => number;
  log: Log;
  /** As in `tcp/80`. */
  port: string;
  /** Opens the port on all addresses of the node; what it resolves to closes it. */
  open(): Promise<() => void>;
};

/** A port that another program holds is tried again after about this time, and ever less often up to the cap. */
const RETRY = { firstMs: 1_000, capMs: 15_000 };
export class EntryListener {
  readonly #options: ListenerOptions;
  #close: (() => void) | undefined;
  #reason = "not tried yet";
  #retry: Timer | undefined;
  #failures = 0;
  #stopped = false;

  constructor(options: ListenerOptions) {
    this.#options = options;
    void this.#try();
  }

  /** Why it does not listen; undefined while it does. */
  get reason(): string | undefined {
    return this.#close ? undefined : this.#reason;
  }

  stop(): void {
    this.#stopped = true;
    this.#retry?.cancel();
    this.#close?.();
    this.#close = undefined;
  }

  async #try(): Promise<void> {
    const { clock, random, log, port } = this.#options;
    try {
      const close = await this.#options.open();
      if (this.#stopped) return close();
      this.#close = close;
      if (this.#failures > 0) log.info("entry listens at last", { port, tries: this.#failures + 1 });
      this.#failures = 0;
    } catch (error) {
      if (this.#stopped) return;
      this.#reason = reasonOf(error, port);
      if (++this.#failures === 1) log.warn("entry can't listen", { port, reason: this.#reason });
      this.#retry = clock.after(backoffMs(this.#failures, { ...RETRY, random }), () => void this.#try());
    }
  }
}

function reasonOf(error: unknown, port: string): string {
  const code = errorCode(error);
  if (code === "EADDRINUSE") {
    return `${port} is taken by another program or published port on this node: stop that one, or choose another port`;
  }
  if (code === "EACCES" || code === "EPERM") {
    return `${port} may not be opened by this process: ports below 1024 need root or CAP_NET_BIND_SERVICE`;
  }
  return `${port} can't be opened: ${error instanceof Error ? error.message : String(error)}`;
}

/** As in `EADDRINUSE`; empty where the error has none. */
export function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}
