/**
 * @module Errors of Cacophony itself, told so that they can be mended: with their stack, and not again and again. What throws where
 * nothing should ends nothing but its own piece of work; a piece that is done over and over must not fill the disk with its error.
 */
import type { Clock } from "./clock.ts";
import { describeError, type Log } from "./log.ts";

/** One place whose error changes is told again after this time at the earliest. */
const OTHER_AFTER_MS = 60_000;
/** One place with the same error is told again after this time. */
const SAME_AFTER_MS = 3_600_000;
/** Places that are remembered; the one that was told longest ago makes room. */
const MAX_PLACES = 1_000;

type Told = { at: number; text: string; missed: number };

export class Faults {
  readonly #log: Log;
  readonly #clock: Clock;
  readonly #told = new Map<string, Told>();

  constructor({ log, clock }: { log: Log; clock: Clock }) {
    this.#log = log;
    this.#clock = clock;
  }

  /** Logs an error: `what` failed, and which one of its kind (`fields`). Never throws. */
  tell(what: string, error: unknown, fields: Readonly<Record<string, string | undefined>> = {}): void {
    const text = describeError(error);
    const place = JSON.stringify([what, fields]);
    const now = this.#clock.now();
    const before = this.#told.get(place);
    if (before && now - before.at < (before.text === text ? SAME_AFTER_MS : OTHER_AFTER_MS)) {
      before.missed++;
      return;
    }
    this.#told.delete(place);
    const [oldest] = this.#told.keys();
    if (this.#told.size >= MAX_PLACES && oldest !== undefined) this.#told.delete(oldest);
    this.#told.set(place, { at: now, text, missed: 0 });
    const more = before && before.missed > 0 && { times_not_told: before.missed };
    this.#log.error(what, { ...fields, error, ...stackOf(error), ...more });
  }

  /** Hears of what a listing leaves out. */
  readonly leftOut = (what: Readonly<Record<string, string>>, error: unknown): void =>
    this.tell("an error of Cacophony itself: left out of a listing", error, what);

  /** Does `work`; an error of it is told, ends nothing else, and makes the answer undefined. */
  attempt<T>(what: string, work: () => T, fields: Readonly<Record<string, string | undefined>> = {}): T | undefined {
    try {
      return work();
    } catch (error) {
      this.tell(what, error, fields);
      return undefined;
    }
  }
}

/** The line of the program that threw an error; undefined where that is not known. */
export function placeOf(error: unknown): string | undefined {
  const lines = error instanceof Error ? (error.stack ?? "").split("\n").map((line) => line.trim()) : [];
  return lines.find((line) => line.startsWith("at "));
}

/** Where an error was thrown, as a field of a log line. */
export function stackOf(error: unknown): { stack?: string } {
  return error instanceof Error && error.stack !== undefined ? { stack: error.stack } : {};
}
