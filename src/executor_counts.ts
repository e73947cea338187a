/**
 * @module How often each allocation was started again, kept over restarts of the process in one small file.
 *
 * Docker keeps everything else in labels, but labels can't change. The file is a convenience: written at most once a second,
 * not synced, ignored if damaged. Losing it loses counts (and the attempts of `on-failure:N`), nothing else.
 */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import * as v from "valibot";
import type { Clock, Timer } from "./clock.ts";
import type { Memory } from "./converge.ts";
import type { Log } from "./log.ts";

/** A crash loop must not become a write loop. */
const SAVE_DELAY_MS = 1_000;

const entry = v.object({
  restarts: v.number(),
  ends: v.number(),
  counted: v.exactOptional(v.string()),
  final: v.exactOptional(v.number()),
});
const file = v.array(v.tuple([v.string(), entry]));

export class RestartCounts {
  readonly #path: string;
  readonly #clock: Clock;
  readonly #log: Log;
  #text = "[]";
  #saved = "[]";
  #timer: Timer | undefined;

  constructor(options: { path: string; clock: Clock; log: Log }) {
    this.#path = options.path;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  /** What an earlier process knew of its allocations. */
  load(): Map<string, Memory> {
    const now = this.#clock.now();
    const fresh = { ran: true, failures: 0, startAt: now, removeAt: now, unsure: false };
    try {
      this.#saved = readFileSync(this.#path, "utf8");
      const entries = v.parse(file, JSON.parse(this.#saved));
      return new Map(entries.map(([id, counts]) => [id, { ...fresh, ...counts }]));
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent) this.#log.warn("restart counts could not be read and begin at 0", { path: this.#path, error });
      return new Map();
    }
  }

  /** Takes the present counts; they are written soon. */
  keep(memories: ReadonlyMap<string, Memory>): void {
    const entries: v.InferOutput<typeof file> = [];
    for (const [id, { restarts, ends, counted, final }] of memories) {
      if (restarts === 0 && ends === 0 && final === undefined) continue;
      entries.push([
        id,
        { restarts, ends, ...(counted !== undefined && { counted }), ...(final !== undefined && { final }) },
      ]);
    }
    this.#text = JSON.stringify(entries);
    if (this.#text !== this.#saved) this.#timer ??= this.#clock.after(SAVE_DELAY_MS, () => this.save());
  }

  /** Writes now what was not written yet. */
  save(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    if (this.#text === this.#saved) return;
    try {
      writeFileSync(`${this.#path}.new`, this.#text, { mode: 0o600 });
      renameSync(`${this.#path}.new`, this.#path);
      this.#saved = this.#text;
    } catch (error) {
      this.#log.warn("restart counts could not be written", { path: this.#path, error });
    }
  }
}
