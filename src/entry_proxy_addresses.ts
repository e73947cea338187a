/**
 * @module UDP sockets for one port on every address of the node.
 *
 * An answer must leave from the address that was asked, or the client drops it. One socket for all addresses leaves that to the
 * routes, which choose another address for a container that asks the node by its address on the LAN; so each address has a
 * socket of its own. Addresses come and go, so they are looked at again from time to time. Link-local ones are left out: every
 * container's end of a bridge has one.
 */
import { networkInterfaces } from "node:os";
import type { Clock, Timer } from "./clock.ts";
import { repeat } from "./clock_loop.ts";
import { errorCode } from "./entry_proxy_listener.ts";
import { describeError, type Log } from "./log.ts";

export type NodeSocket = Bun.udp.Socket<"uint8array">;

/** Takes a datagram, who sent it, and the socket that an answer leaves through. */
export type Receive = (socket: NodeSocket, data: Uint8Array, port: number, address: string) => void;

export type NodeSocketsOptions = {
  clock: Clock;
  log: Log;
  port: number;
  nodeAddresses: () => string[];
  receive: Receive;
};

/** A new address, as a new bridge has one, is served after about this time at the latest. */
const SCAN_INTERVAL_MS = 5_000;

/** The node's own addresses, without link-local ones. */
export function nodeAddresses(): string[] {
  return Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .flatMap(({ address, family }) => (family === "IPv6" && address.startsWith("fe80:") ? [] : [address]));
}

export class NodeSockets {
  readonly #options: NodeSocketsOptions;
  readonly #sockets = new Map<string, NodeSocket>();
  #timer: Timer | undefined;
  /** What the last look brought, so that it is told once. */
  #trouble = "";
  #closed = false;

  constructor(options: NodeSocketsOptions) {
    this.#options = options;
  }

  /**
   * Opens the port on all addresses, and on further ones when they come. Resolves to what closes it.
   * @throws what the kernel says when one of the addresses is taken: all or none, so that no client meets a stranger.
   */
  async open(): Promise<() => void> {
    const [error] = await this.#scan();
    if (error !== undefined) {
      this.#close();
      throw error;
    }
    const { clock, log, port } = this.#options;
    this.#timer = repeat(clock, {
      firstMs: SCAN_INTERVAL_MS,
      retryMs: SCAN_INTERVAL_MS,
      work: () => this.#scanAgain(),
      onFault: (fault) => log.warn("entry can't tell the node's addresses", { port, error: fault }),
    });
    return () => this.#close();
  }

  async #scanAgain(): Promise<number | undefined> {
    const { log, port } = this.#options;
    const trouble = (await this.#scan()).map(describeError).join("; ");
    if (trouble !== this.#trouble && trouble !== "") log.warn("entry can't listen on a new address", { port, trouble });
    this.#trouble = trouble;
    return this.#closed ? undefined : SCAN_INTERVAL_MS;
  }

  /** Returns what the kernel refused. */
  async #scan(): Promise<unknown[]> {
    const addresses = new Set(this.#options.nodeAddresses());
    for (const [address, socket] of this.#sockets) {
      if (addresses.has(address)) continue;
      this.#sockets.delete(address);
      socket.close();
    }
    const errors: unknown[] = [];
    for (const address of addresses) {
      // It went, or is so new that the kernel still asks around whether it is free: the next look tells.
      const isRefused = (error: unknown) => errorCode(error) !== "EADDRNOTAVAIL" && errors.push(error);
      if (!this.#sockets.has(address)) await this.#add(address).catch(isRefused);
    }
    return errors;
  }

  async #add(address: string): Promise<void> {
    const { port, receive } = this.#options;
    const socket = await Bun.udpSocket({
      hostname: address,
      port,
      binaryType: "uint8array",
      // An ICMP error is about an answer: that client is gone, and its session will be quiet.
      socket: { data: receive, error: () => {} },
    });
    if (this.#closed) socket.close();
    else this.#sockets.set(address, socket);
  }

  #close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    for (const socket of this.#sockets.values()) socket.close();
    this.#sockets.clear();
  }
}
