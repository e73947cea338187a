/**
 * @module Close looks at single containers: one at a time for each, and not too many at once. Owns which are under way; the executor
 * takes in what is seen.
 */
import { Slots } from "./executor_slots.ts";

/** Containers looked at closely at once: reads are quick, but one that hangs must not hold up the others. */
const AT_ONCE = 16;

type Inspection = { again: boolean; done: Promise<void> };

export class Inspections {
  readonly #look: (id: string) => Promise<void>;
  readonly #onDone: (id: string) => void;
  readonly #underWay = new Map<string, Inspection>();
  readonly #slots = new Slots(AT_ONCE);

  /** `look` looks at a container and takes in what it sees; `onDone` is called when that has been done. */
  constructor({ look, onDone }: { look: (id: string) => Promise<void>; onDone: (id: string) => void }) {
    this.#look = look;
    this.#onDone = onDone;
  }

  /** Resolves once a look that began after this call has been taken in. */
  of(id: string): Promise<void> {
    const current = this.#underWay.get(id);
    if (current) {
      current.again = true;
      return current.done;
    }
    const inspection: Inspection = { again: false, done: Promise.resolve() };
    const run = async () => {
      try {
        do {
          inspection.again = false;
          // oxlint-disable-next-line no-await-in-loop -- one after the other is the point: the last answer is the newest
          await this.#slots.run(() => this.#look(id));
        } while (inspection.again);
      } finally {
        this.#underWay.delete(id);
      }
      this.#onDone(id);
    };
    this.#underWay.set(id, inspection);
    inspection.done = run();
    return inspection.done;
  }
}
