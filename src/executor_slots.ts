/**
 * @module At most N pieces of work at once; the others wait in line. Owns nothing else.
 */

export class Slots {
  readonly #limit: number;
  readonly #waiting: (() => void)[] = [];
  #taken = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Runs `work` when a slot is free, in the order of the calls. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#taken < this.#limit) this.#taken++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      // The slot is handed on, so that no newcomer gets in between.
      const next = this.#waiting.shift();
      if (next) next();
      else this.#taken--;
    }
  }
}
