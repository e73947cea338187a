/**
 * @module The master's disk in the simulation: a real store that takes its time, stalls, and refuses, before it has written or after,
 * as one process reaches it.
 */
import { sleep } from "../src/clock.ts";
import type { Change, StoredState } from "../src/model.ts";
import { type Store, StoreError } from "../src/store.ts";
import type { SimRules } from "./simulation_rules.ts";
import type { Life } from "./simulation_process.ts";

/** A commit that a process was told had failed, and whose pages are on the disk for all that. */
type Torn = { store: Store; term: number; changes: readonly Change[] };

export class SimDisk {
  /** Chance that the disk refuses a commit. */
  faults = 0;
  /** Of the commits that it refuses, the share that it had written by then. */
  torn = 0;
  /** Chance that a commit takes long, and how long at most in milliseconds. */
  stalls = 0;
  stallMs = 3_000;
  /** Whether the process that waits for a slow disk does nothing else meanwhile. */
  isBlocking = false;
  commits = 0;
  /** Called with what a master that starts has read from its disk. */
  onLoad: (state: StoredState) => void = () => {};
  readonly #random: () => number;
  readonly #rules: SimRules;
  /** How many commits it has refused. */
  failures = 0;
  #torn: Torn | undefined;
  /** Processes whose commit the disk has not answered yet. */
  readonly #stallingLives = new Set<Life>();

  constructor({ random, rules }: { random: () => number; rules: SimRules }) {
    this.#random = random;
    this.#rules = rules;
  }

  /** What it has written is there, whether its process lives to hear of it or not. `isOld`: another process has taken over. */
  store(store: Store, { life, isOld }: { life: Life; isOld: () => boolean }): Store {
    const random = this.#random;
    const wait = (mostMs: number) => sleep(life.clock, random() * mostMs);
    return {
      beginTerm: (seen) => life.of(store.beginTerm(seen)),
      load: async () => {
        const state = await life.of(store.load());
        this.#rules.loaded(state);
        this.onLoad(state);
        return state;
      },
      commit: async (term, changes) => {
        // What is decided must be right by what is known now; what the disk holds changes later.
        if (!isOld()) for (const change of changes) this.#rules.checkCommit(change, changes);
        await wait(4);
        if (this.stalls > 0 && random() < this.stalls) await this.#stall(life);
        if (this.faults > 0 && random() < this.faults) {
          this.failures++;
          const isTorn = !isOld() && random() < this.torn;
          if (isTorn) this.#torn = { store, term, changes };
          throw isTorn
            ? new StoreError("unknown", "the disk has an error")
            : new StoreError("failed", "the disk is full");
        }
        await store.commit(term, changes);
        if (isOld()) this.#rules.violations.push(`a master of term ${term} wrote after another had taken over`);
        this.#wrote(changes);
        await wait(4);
      },
      close: () => {
        // Who closes the file in good order leaves nothing in it that was not finished.
        if (this.#torn?.store === store) this.#torn = undefined;
        return store.close();
      },
    };
  }

  /**
   * The process that has this store is gone. SQLite writes over what it could not finish with the next commit; where there was
   * none, whoever opens the file finds it complete.
   */
  close(store: Store): void {
    const torn = this.#torn?.store === store ? this.#torn : undefined;
    this.#torn = undefined;
    if (torn) {
      this.#wrote(torn.changes);
      void store.commit(torn.term, torn.changes);
    }
    void store.close();
  }

  /** Whether commits succeed at once, also the one that is under way. */
  get isWell(): boolean {
    const isStalling = [...this.#stallingLives].some(({ ended }) => !ended.aborted);
    return this.faults === 0 && this.stalls === 0 && !isStalling;
  }

  /** Whether a commit that failed may turn out to be there. */
  get isTorn(): boolean {
    return this.#torn !== undefined;
  }

  /** Another process that has the file open sees only what was finished. */
  forgetTorn(): void {
    this.#torn = undefined;
  }

  async #stall(life: Life): Promise<void> {
    const ms = this.#random() * this.stallMs;
    if (this.isBlocking) life.block(ms);
    this.#stallingLives.add(life);
    await sleep(life.clock, ms);
    this.#stallingLives.delete(life);
  }

  #wrote(changes: readonly Change[]): void {
    this.#torn = undefined;
    for (const change of changes) this.#rules.written(change);
    this.commits++;
  }
}
