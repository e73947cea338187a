/**
 * @module Whether this process leads its cluster. It does from the term that it began until something shows that another leadership
 * is newer: the store refuses its commits, or a node has proof of a newer term. From then on it changes nothing and tells nodes
 * nothing; it still answers who reads. What ended it does not pass by itself, so it never leads again before it is started again.
 */
import type { Log } from "./log.ts";
import { CacophonyError, StartError } from "./model.ts";
import { behindText, type Begun, isBehind, restoresOf, SET_BACK_HINT } from "./model_term.ts";
import type { StartFacts } from "./scheduler_cluster.ts";
import { type Store, StoreError } from "./store.ts";

export type LeadershipOptions = {
  log: Log;
  /** Called when it ends. */
  onFenced?: () => void;
};

/** `leadership`: an id for it. */
export type Claim = Pick<StartFacts, "seenTerm" | "seenLeadership" | "restored"> & { leadership: string };

export class Leadership {
  readonly #log: Log;
  readonly #listeners: (() => void)[] = [];
  #begun: Begun = { term: 0 };
  #fault: string | undefined;

  constructor({ log, onFenced }: LeadershipOptions) {
    this.#log = log;
    if (onFenced) this.onEnd(onFenced);
  }

  /** What was begun; where this process never led, what the store was at. */
  get begun(): Begun {
    return this.#begun;
  }

  /** Why this process leads no more, and what to do; undefined: it leads. */
  get fault(): string | undefined {
    return this.#fault;
  }

  /** Begins a leadership, unless the store is older than what this machine has seen. */
  async begin(store: Store, { leadership, seenTerm = 0, seenLeadership, restored = false }: Claim): Promise<void> {
    const seen = { term: seenTerm, leadership: seenLeadership };
    try {
      this.#begun = { term: await store.beginTerm({ leadership, seen, restored }), leadership };
      const { term } = this.#begun;
      if (restored)
        this.#log.warn("this master goes on from a restored state; start it without --restored from now on", {
          term,
          restores: restoresOf(term),
        });
    } catch (error) {
      if (!(error instanceof StoreError) || !error.last) throw error;
      this.#begun = error.last;
      this.end(behindText(error.last, { seen, witness: "this machine's node.json" }));
    }
  }

  /**
   * No term can be begun yet, because of `fault`: nodes are welcomed in the last one, unless that is older than what this machine
   * has seen.
   * @throws StartError for a cluster that is new or restored: no node may follow the term that is there.
   */
  async wait(
    store: Store,
    { claim, isNew, fault }: { claim: Claim; isNew: boolean; fault: string | undefined },
  ): Promise<void> {
    const which = isNew ? "new" : "restored";
    if (isNew || claim.restored)
      throw new StartError(
        `a ${which} cluster's state cannot be written (${fault}): make room on its disk, and start it again as now`,
      );
    const seen = { term: claim.seenTerm ?? 0, leadership: claim.seenLeadership };
    this.#begun = (await store.last?.()) ?? { term: 0 };
    if (isBehind(this.#begun, seen)) this.end(behindText(this.#begun, { seen, witness: "this machine's node.json" }));
  }

  /**
   * The store has refused a commit.
   * @throws CacophonyError always
   */
  fence(error: StoreError): never {
    this.end(`another master has taken over this cluster's state (${error.message}); ${SET_BACK_HINT}`);
    throw this.#refusal();
  }

  end(reason: string): void {
    if (this.#fault !== undefined) return;
    this.#fault = reason;
    this.#log.error("this master does not lead: it changes nothing and answers reads only", { reason });
    for (const listener of this.#listeners) listener();
  }

  /** Calls `listener` when the leadership ends. */
  onEnd(listener: () => void): void {
    this.#listeners.push(listener);
  }

  /** @throws CacophonyError when it has ended. */
  check(): void {
    if (this.#fault !== undefined) throw this.#refusal();
  }

  #refusal(): CacophonyError {
    return new CacophonyError("not_leading", `this master does not lead, so nothing was changed: ${this.#fault}`);
  }
}
