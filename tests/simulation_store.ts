/** @module The master's disk in the simulation: a real store that takes its time and may refuse, as one process reaches it. */
import { sleep } from "../src/clock.ts";
import type { StoredState } from "../src/model.ts";
import { type Store, StoreError } from "../src/store.ts";
import type { SimRules } from "./simulation_rules.ts";
import type { Life } from "./simulation_process.ts";

export class SimDisk {
  /** Chance that the disk refuses a commit. */
  faults = 0;
  commits = 0;
  /** Called with what a master that starts has read from its disk. */
  onLoad: (state: StoredState) => void = () => {};
  readonly #random: () => number;
  readonly #rules: SimRules;

  constructor({ random, rules }: { random: () => number; rules: SimRules }) {
    this.#random = random;
    this.#rules = rules;
  }

  /** What it has written is there, whether its process lives to hear of it or not. */
  store(store: Store, life: Life): Store {
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
        for (const change of changes) this.#rules.checkCommit(change, changes);
        await wait(4);
        if (random() < this.faults) throw new StoreError("failed", "the disk is full");
        await store.commit(term, changes);
        for (const change of changes) this.#rules.written(change);
        this.commits++;
        await wait(4);
      },
      close: () => store.close(),
    };
  }
}
