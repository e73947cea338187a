/**
 * @module The last lines of containers that ended, read once after each end. They are worth a moment and no more: who starts the
 * container anew waits until they are read, and for a second at the longest; what can't be read by then is an empty tail.
 */
import { type Clock, sleep } from "./clock.ts";
import type { Container } from "./converge.ts";
import { type KnownEnd, TAIL_LINES, tidyTail } from "./converge_ends.ts";
import type { Engine } from "./docker.ts";
import { Slots } from "./executor_slots.ts";

/** Longest time that a restart waits for the lines of the run before. */
const TAIL_MS = 1_000;
/** A machine where many containers end at once has other things to do. */
const TAILS_AT_ONCE = 8;

export class Tails {
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #slots = new Slots(TAILS_AT_ONCE);
  /** What is being read, by allocation. */
  readonly #reading = new Map<string, { run: string; done: Promise<void> }>();

  constructor(options: { engine: Engine; clock: Clock }) {
    this.#engine = options.engine;
    this.#clock = options.clock;
  }

  /** Reads the last lines of the run that ended, unless that is being done; `onRead` gets them, or none, within a second. */
  read(id: string, { end, container, onRead }: TailRequest): void {
    if (this.#reading.get(id)?.run === end.run) return;
    const done = Promise.race([this.#lines(end, container), sleep(this.#clock, TAIL_MS).then((): string[] => [])])
      .catch((): string[] => []) // Docker's silence is noticed elsewhere.
      .then((lines) => {
        if (this.#reading.get(id)?.run === end.run) this.#reading.delete(id);
        onRead(lines);
      });
    this.#reading.set(id, { run: end.run, done });
  }

  /** Resolves once nothing is being read for an allocation. */
  async settled(id: string): Promise<void> {
    await this.#reading.get(id)?.done;
  }

  async #lines({ since = -Infinity }: KnownEnd, { id, tty = false }: Container): Promise<string[]> {
    const begin = this.#clock.now();
    return this.#slots.run(async () => {
      // Its container runs again by now, and writes anew.
      if (this.#clock.now() - begin >= TAIL_MS) return [];
      const lines = await this.#engine.logs(id, { tail: TAIL_LINES, tty });
      return tidyTail(lines.filter(({ at = Infinity }) => at >= since).map(({ text }) => text));
    });
  }
}

type TailRequest = { end: KnownEnd; container: Container; onRead: (lines: string[]) => void };
