/** @module What the master says, read and bounded before anything is done by it; what is left out of it is told once each. */
import type { Log } from "./log.ts";
import { type MasterMessage, masterMessage } from "./model.ts";
import { readBounded } from "./model_bounds.ts";

/** Things that are told of what a master says: who reads the log needs the first ones. */
const MAX_FAULTS = 20;

export class MasterMessages {
  readonly #log: Log;
  readonly #told = new Set<string>();

  constructor(log: Log) {
    this.#log = log;
  }

  /** @throws Error in words if the message can't be read. */
  read(text: string): MasterMessage {
    const read = readBounded(masterMessage, JSON.parse(text));
    if (!read.ok) throw new Error(read.fault);
    for (const fault of read.leftOut) {
      if (this.#told.size >= MAX_FAULTS || this.#told.has(fault)) continue;
      this.#told.add(fault);
      this.#log.warn("left out a part of a message of the master", { fault });
    }
    return read.output;
  }
}
