/**
 * @module What the master concludes from a node's silence: that the node is down, or, where most nodes fall silent together, that
 * it may be the master itself that is cut off. Owns the rules and what follows from earlier conclusions; knows no connections.
 *
 * **The guard.** When at least two nodes, and more than half of those that could work, fall silent within one node timeout, they
 * count as down, but nothing of theirs is given up: it is held until a longer time has passed, somebody says so, or enough of
 * them are heard of again to show that the master is not cut off. The others then have one more timeout, for they find the
 * master one after the other.
 */

import type { Log } from "./log.ts";

/** A node as the master last heard of it. Times are milliseconds since 1970. */
export type Heard = {
  node_id: string;
  lastSeen: number;
  /** Whether it has spoken to this master at all; else `lastSeen` is when the master began to listen. */
  isHeard: boolean;
  /** Whether it could work when it was last heard of. */
  wasReady: boolean;
  /** It was never ready: one that anybody may have invented says nothing about the network. */
  isNew?: boolean;
  /** The master's own node, which says nothing about the network. */
  isSelf: boolean;
  /** The master stood still, and the node has not had the time to be heard since: nothing is concluded of it yet. */
  isSpared?: boolean;
};

export type SilenceOptions = {
  nodeTimeoutMs: number;
  /** A node that has said nothing for so long may be gone. */
  suspectMs: number;
  /** How long what a mass of silent nodes runs is held. */
  holdMs: number;
};

/** Nodes whose silence may be the master's own trouble. Times are milliseconds since 1970. */
export type Hold = { since: number; until: number; nodes: string[] };

export class Silence {
  readonly #options: SilenceOptions;
  readonly #lost = new Set<string>();
  readonly #held = new Set<string>();
  #since = 0;
  /** Since when enough of them are back. */
  #provenAt: number | undefined;

  constructor(options: SilenceOptions) {
    this.#options = options;
  }

  /** What is concluded of a node: undefined: it is there; `held`: it is down, and nothing of it is given up. */
  of(nodeId: string): "lost" | "held" | undefined {
    if (this.#held.has(nodeId)) return "held";
    return this.#lost.has(nodeId) ? "lost" : undefined;
  }

  get hold(): Hold | undefined {
    if (this.#held.size === 0) return undefined;
    return { since: this.#since, until: this.#since + this.#options.holdMs, nodes: [...this.#held].toSorted() };
  }

  /** The node has spoken, or is no member any more. */
  forget(nodeId: string): void {
    this.#lost.delete(nodeId);
    this.#held.delete(nodeId);
  }

  /** What is held is given up. */
  release(): void {
    for (const nodeId of this.#held) this.#lost.add(nodeId);
    this.#held.clear();
  }

  /** Concludes anew; `nodes` are all members. */
  judge(nodes: readonly Heard[], now: number): void {
    const { nodeTimeoutMs, suspectMs } = this.#options;
    const members = new Set(nodes.map(({ node_id }) => node_id));
    for (const nodeId of [...this.#lost, ...this.#held]) if (!members.has(nodeId)) this.forget(nodeId);
    const others = nodes.filter(({ isSelf }) => !isSelf);
    // A master that has just started knows little: it waits once for most nodes, and twice where even those are missing.
    const proven = nodes.filter(({ isNew }) => !isNew);
    const haveReported = proven.filter(({ isHeard }) => isHeard).length * 2 > proven.length;
    const limitMs = (isHeard: boolean) => (isHeard || haveReported ? nodeTimeoutMs : 2 * nodeTimeoutMs);
    const isSilent = ({ lastSeen }: Heard) => now - lastSeen > suspectMs;
    for (const node of nodes) {
      const { node_id, lastSeen, isHeard, isSpared = false } = node;
      if (now - lastSeen <= limitMs(isHeard)) this.forget(node_id);
      else if (!isSpared && this.of(node_id) === undefined) this.#conclude(node, { others, isSilent, now });
    }
    if (this.#held.size === 0) return;
    const silent = others.filter((one) => isSilent(one) && one.wasReady && !this.#lost.has(one.node_id));
    const isProven = !isMost(silent.length, this.#working(others).length);
    this.#provenAt = isProven ? (this.#provenAt ?? now) : undefined;
    const isSettled = this.#provenAt !== undefined && now - this.#provenAt >= nodeTimeoutMs;
    if (isSettled || now >= this.#since + this.#options.holdMs) this.release();
  }

  #conclude(
    node: Heard,
    { others, isSilent, now }: { others: readonly Heard[]; isSilent: (one: Heard) => boolean; now: number },
  ): void {
    if (node.isSelf) return void this.#lost.add(node.node_id);
    if (this.#held.size > 0) return void this.#held.add(node.node_id);
    const { nodeTimeoutMs } = this.#options;
    const together = others.filter(
      (one) => one.wasReady && isSilent(one) && Math.abs(one.lastSeen - node.lastSeen) <= nodeTimeoutMs,
    );
    const working = new Set([...this.#working(others), ...together]);
    if (!node.wasReady || !isMost(together.length, working.size)) return void this.#lost.add(node.node_id);
    this.#since = now;
    this.#provenAt = undefined;
    this.#held.add(node.node_id);
  }

  /** Those that could work, apart from the ones that are given up already. */
  #working(others: readonly Heard[]): Heard[] {
    return others.filter(({ node_id, wasReady }) => wasReady && !this.#lost.has(node_id));
  }
}

function isMost(silent: number, all: number): boolean {
  return silent >= 2 && silent * 2 > all;
}

/** Tells operators that what most nodes run is held, or is not held any longer. */
export function tellHold(log: Log, { hold, wasHeld }: { hold: Hold | undefined; wasHeld: boolean }): void {
  if (hold && !wasHeld) {
    log.error("most nodes fell silent together: this master may be cut off, so nothing is rescheduled for now", {
      nodes: hold.nodes,
      until: new Date(hold.until).toISOString(),
      hint: "POST /cluster/reschedule goes ahead at once",
    });
  } else if (!hold && wasHeld) log.warn("silent nodes are no longer held: what they ran is rescheduled");
}
