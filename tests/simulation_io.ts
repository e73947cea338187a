/**
 * @module What the processes of a simulation write into their project directories: real files, whose writing takes real time. Here it
 * takes none of the virtual time, and one thing is done after the other in the order in which it was asked for, so that one seed
 * makes one run.
 */
import { Directory } from "../src/executor_tree.ts";

const KINDS = ["readFile", "writeFile", "removeFile", "remove"] as const;
type Call = (this: Directory, ...args: unknown[]) => Promise<unknown>;

export class SimIo implements Disposable {
  readonly #originals = new Map<string, Call>();
  #last: Promise<unknown> = Promise.resolve();
  #pending = 0;
  #busy: Directory | undefined;

  constructor() {
    const calls = Directory.prototype as unknown as Record<string, Call>;
    for (const kind of KINDS) {
      const original = calls[kind];
      if (!original) throw new Error(`a directory has no ${kind}`);
      this.#originals.set(kind, original);
      const inTurn = (directory: Directory, work: () => Promise<unknown>) => this.#inTurn(directory, work);
      calls[kind] = function call(...args) {
        return inTurn(this, () => original.apply(this, args));
      };
    }
  }

  [Symbol.dispose](): void {
    const calls = Directory.prototype as unknown as Record<string, Call>;
    for (const [kind, original] of this.#originals) calls[kind] = original;
  }

  /** Resolves when one more thing is done; undefined: nothing is to be done. */
  get next(): Promise<unknown> | undefined {
    return this.#pending > 0 ? this.#last : undefined;
  }

  #inTurn(directory: Directory, work: () => Promise<unknown>): Promise<unknown> {
    // A part of what is just being done.
    if (this.#busy === directory) return work();
    this.#pending++;
    const begin = () => {
      this.#busy = directory;
      return work();
    };
    const done = this.#last.then(begin).finally(() => {
      this.#busy = undefined;
      this.#pending--;
    });
    this.#last = done.catch(() => {});
    return done;
  }
}
