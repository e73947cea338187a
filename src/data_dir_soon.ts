/**
 * @module A file that is written again and again while its process works. It is written in the background: a disk may take seconds to
 * put one file in another's place, and heartbeats must not wait for that. One write at a time; of several texts that come meanwhile
 * only the newest is written.
 */
import { writePrivatelySoon } from "./data_dir.ts";

/** Replaces a file whose text may be lost with the power. */
export type WriteFile = (path: string, text: string) => Promise<void>;

export type SoonFileOptions = {
  path: string;
  /** Called after each write, with the error if it failed. */
  onWritten: (error?: unknown) => void;
  /** Absent: `writePrivatelySoon`. */
  write?: WriteFile | undefined;
};

export class SoonFile {
  readonly #options: SoonFileOptions;
  #next: string | undefined;
  #work: Promise<void> | undefined;

  constructor(options: SoonFileOptions) {
    this.#options = options;
  }

  /** The file is to have this text soon. */
  keep(text: string): void {
    this.#next = text;
    this.#work ??= this.#write();
  }

  /** Resolves when what was to be written was, or could not be. */
  async settled(): Promise<void> {
    await this.#work;
  }

  async #write(): Promise<void> {
    const { path, onWritten, write = writePrivatelySoon } = this.#options;
    while (this.#next !== undefined) {
      const text = this.#next;
      this.#next = undefined;
      try {
        // oxlint-disable-next-line no-await-in-loop -- one file, written again where it changed meanwhile
        await write(path, text);
        onWritten();
      } catch (error) {
        onWritten(error);
      }
    }
    this.#work = undefined;
  }
}
