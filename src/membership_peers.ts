/**
 * @module What the master's nodes hear of each other, for when their master is gone: a list of all of them, told again where it
 * changed. With many nodes that is much text, so nodes that come at once are one message, and each message is written once.
 */
import type { Clock, Timer } from "./clock.ts";
import type { ClusterState } from "./cluster_state.ts";
import type { MasterMessage, Peer } from "./model.ts";

/** Least time between two messages. The first one goes at once: nodes keep their containers from the API of a new node, too. */
const DELAY_MS = 100;

type Options = { clock: Clock; peers: () => Peer[]; tell: (message: MasterMessage) => void };

export class PeerNews {
  readonly #options: Options;
  /** The list that all nodes know, by the last message or by their welcome. */
  #told = "";
  #timer: Timer | undefined;
  #toldAt = -Infinity;

  constructor(options: Options) {
    this.#options = options;
  }

  /** Begins with the list as it is: each node's welcome has it. */
  start(): void {
    this.#told = JSON.stringify(this.#options.peers());
  }

  stop(): void {
    this.#timer?.cancel();
  }

  /** The list may have changed. */
  notice(): void {
    const { clock } = this.#options;
    this.#timer ??= clock.after(Math.max(0, this.#toldAt + DELAY_MS - clock.now()), () => {
      this.#timer = undefined;
      const peers = this.#options.peers();
      const text = JSON.stringify(peers);
      if (text === this.#told) return;
      this.#told = text;
      this.#toldAt = clock.now();
      this.#options.tell({ type: "peers", peers });
    });
  }
}

/** The members as nodes hear of them. Strangers that are gone say nothing of where a master, or an API, is. */
export function peersOf(state: ClusterState): Peer[] {
  const members = [...state.nodes.values()].filter((node) => node.role === "master" || !state.isGoneStranger(node));
  return members.map(({ node_id, address, api_addresses, api_port }) => {
    const more = { ...(api_addresses && { api_addresses }), ...(api_port !== undefined && { api_port }) };
    return { node_id, address, ...more };
  });
}

/** Writes messages as text with this master's term, one that goes to many nodes in a row once for all of them. */
export function messageWriter(term: () => number): (message: MasterMessage) => string {
  let last: MasterMessage | undefined;
  let text = "";
  return (message) => {
    // Assignments say it in their order.
    if (message !== last)
      text = JSON.stringify(message.type === "assignments" ? message : { ...message, term: term() });
    last = message;
    return text;
  };
}
