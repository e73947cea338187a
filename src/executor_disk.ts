/**
 * @module Whether the disk that Docker keeps its data on takes further containers: the limit, and the sentence where it is reached.
 */
import type { Resources } from "./model_reports.ts";

/** What is at the limit must fall by so many percent of the disk before it counts as below, so that it does not flap. */
const MARGIN_PERCENT = 2;

export class DiskLimit {
  readonly #limitPercent: number | undefined;
  #isFull = false;

  /** `limitPercent` undefined: a disk is never too full. */
  constructor(limitPercent: number | undefined) {
    this.#limitPercent = limitPercent;
  }

  /** Why the disk takes no new containers; undefined if it does, or is not known. */
  fault(disk: Resources["disk"], dataRoot: string | undefined): string | undefined {
    const limit = this.#limitPercent;
    if (limit === undefined || !disk || disk.total === 0) return undefined;
    const used = 100 * (1 - disk.available / disk.total);
    this.#isFull = used >= (this.#isFull ? limit - MARGIN_PERCENT : limit);
    if (!this.#isFull) return undefined;
    return `Docker's disk ${dataRoot ?? ""} is ${Math.floor(used)} % full (--disk-limit ${limit})`;
  }
}
