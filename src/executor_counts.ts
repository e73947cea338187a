/**
 * @module How often each allocation was started again and how it ended last, kept over restarts of the process in one small file.
 *
 * Docker keeps everything else in labels, but labels can't change. The file is a convenience: written at most once a second,
 * not synced, ignored if damaged. Losing it loses counts (and the attempts of `on-failure:N`) and stories, nothing else. It has an
 * entry of some 3 KB at most for each allocation that the node has or should have.
 */
import { readFileSync } from "node:fs";
import * as v from "valibot";
import type { Clock, Timer } from "./clock.ts";
import type { Memory } from "./converge.ts";
import { writePrivately } from "./data_dir.ts";
import type { Log } from "./log.ts";
import { containerEnd } from "./model.ts";

/** A crash loop must not become a write loop. */
const SAVE_DELAY_MS = 1_000;

const end = v.object({
  run: v.string(),
  end: containerEnd,
  words: v.exactOptional(v.string()),
  unread: v.exactOptional(v.literal(true)),
  since: v.exactOptional(v.number()),
});
const entry = v.object({
  restarts: v.number(),
  ends: v.number(),
  misses: v.exactOptional(v.number()),
  counted: v.exactOptional(v.string()),
  final: v.exactOptional(v.number()),
  end: v.exactOptional(end),
  spared: v.exactOptional(v.string()),
  isolated: v.exactOptional(v.number()),
  /** When the next start after an end is due, and how long after that end: whatever became of the clock, no later than so long from now. */
  startAt: v.exactOptional(v.number()),
  waitMs: v.exactOptional(v.number()),
});
type Entry = v.InferOutput<typeof entry>;
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
    const fresh = { ran: true, failures: 0, removeAt: now, unsure: false };
    try {
      this.#saved = readFileSync(this.#path, "utf8");
      const entries = v.parse(file, JSON.parse(this.#saved));
      return new Map(
        entries.map(([id, { startAt = now, waitMs = 0, ...counts }]) => [
          id,
          { ...fresh, ...counts, startAt: Math.min(startAt, now + waitMs), waitMs },
        ]),
      );
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent) this.#log.warn("restart counts could not be read and begin at 0", { path: this.#path, error });
      return new Map();
    }
  }

  /** Takes the present counts; they are written soon. */
  keep(memories: ReadonlyMap<string, Memory>): void {
    this.#take(memories);
    if (this.#text !== this.#saved) this.#timer ??= this.#clock.after(SAVE_DELAY_MS, () => this.#write());
  }

  /** Takes the present counts and writes them at once. */
  save(memories: ReadonlyMap<string, Memory>): void {
    this.#take(memories);
    this.#write();
  }

  #take(memories: ReadonlyMap<string, Memory>): void {
    const entries: v.InferOutput<typeof file> = [];
    for (const [id, memory] of memories) {
      const isPlain = memory.restarts === 0 && memory.ends === 0 && !memory.misses && !memory.end;
      if (isPlain && memory.final === undefined && memory.isolated === undefined) continue;
      entries.push([id, entryOf(memory)]);
    }
    this.#text = JSON.stringify(entries);
  }

  /** Writes what was not written yet. */
  #write(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    if (this.#text === this.#saved) return;
    try {
      writePrivately(this.#path, this.#text);
      this.#saved = this.#text;
    } catch (error) {
      this.#log.warn("restart counts could not be written", { path: this.#path, error });
    }
  }
}

function entryOf({
  restarts,
  ends,
  misses,
  counted,
  final,
  end: last,
  spared,
  isolated,
  startAt,
  waitMs,
}: Memory): Entry {
  return {
    restarts,
    ends,
    ...(misses !== undefined && { misses }),
    ...(counted !== undefined && { counted }),
    ...(final !== undefined && { final }),
    ...(last && { end: last }),
    ...(spared !== undefined && { spared }),
    ...(isolated !== undefined && { isolated }),
    ...(waitMs !== undefined && { startAt, waitMs }),
  };
}
