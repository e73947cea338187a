/**
 * @module When this node last heard of its master, by a clock that goes on while no process of it runs: what must never run twice
 * (`stop_when_isolated`) is stopped on time also by a process that has just started, before it has reached anybody.
 *
 * Owns `heard.json` in the data directory, which is written with each answered heartbeat while something that is assigned asks for it,
 * and not synced: it has to outlive the process, not the machine, for nothing runs after a power cut. The first time is written before
 * anything is done about the assignments; later ones are written in the background, since an older time is safe: the next process stops
 * sooner then, never later. The time is the kernel's since it booted, which nobody sets; where there is none to read it is the wall
 * clock's.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import type { Clock } from "./clock.ts";
import { writePrivately } from "./data_dir.ts";
import { SoonFile, type WriteFile } from "./data_dir_soon.ts";
import type { Log } from "./log.ts";
import type { Assignments } from "./model.ts";

/** A moment: `ms` since the machine booted for the time that `boot` names; `boot` is empty where `ms` is since 1970. */
export type BootTime = { boot: string; ms: number };

export type LastHeardOptions = {
  /** The node's data directory. */
  dataDir: string;
  clock: Clock;
  log: Log;
  /** Absent: as the kernel has it. */
  bootTime?: () => BootTime;
  /** How the file is written once there is one. Absent: in the background. */
  write?: WriteFile;
};

const moment = v.object({ boot: v.string(), ms: v.pipe(v.number(), v.finite(), v.minValue(0)) });

export class LastHeard {
  readonly #path: string;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #bootTime: () => BootTime;
  /** When the last process heard of a master; undefined: not known, or the machine was started since. */
  readonly #before: BootTime | undefined;
  /** When this process did; before that, when it began. */
  #last: BootTime;
  #lastAt: number;
  /** How far the kernel's clock was ahead of this process's at the last look: it gains where the machine is suspended. */
  #aheadMs: number;
  /** Whether the file has a time of this boot. */
  #isKept: boolean;
  readonly #file: SoonFile;
  /** Whether something that is assigned is to be stopped without a master. */
  #isAsked = false;
  #isFailing = false;

  constructor({ dataDir, clock, log, bootTime = readBootTime, write }: LastHeardOptions) {
    this.#path = join(dataDir, "heard.json");
    this.#clock = clock;
    this.#log = log;
    this.#bootTime = bootTime;
    this.#before = this.#load();
    this.#isKept = this.#before !== undefined;
    this.#last = bootTime();
    this.#lastAt = clock.now();
    this.#aheadMs = this.#last.ms - this.#lastAt;
    this.#file = new SoonFile({ path: this.#path, onWritten: (error) => this.#written(error), write });
  }

  /** The master was there at that time of this process's clock. */
  note(at: number): void {
    const { boot, ms } = this.#bootTime();
    const aheadMs = ms - this.#clock.now();
    // Was the machine suspended since the last look, the answer may have waited here all the while: it counts as one from before.
    this.#last = { boot, ms: Math.max(0, at + Math.min(aheadMs, this.#aheadMs)) };
    this.#aheadMs = aheadMs;
    this.#lastAt = at;
    if (this.#isAsked) this.#save();
  }

  /** Takes in what the node runs from here on. */
  take({ specs }: Pick<Assignments, "specs">): void {
    const isAsked = specs.some(({ spec }) => spec.stop_when_isolated_ms !== undefined);
    if (isAsked && !this.#isAsked) this.#save();
    this.#isAsked = isAsked;
  }

  /**
   * Since when the node has had no master, in milliseconds of this process's clock; undefined: it has one. An open session is none
   * yet to a process that knows of an earlier time and was not told what to run: another node may run it by now.
   */
  since({ isOpen, isTold }: { isOpen: boolean; isTold: boolean }): number | undefined {
    const before = isTold ? undefined : this.#before;
    if (isOpen && !before) return undefined;
    const { boot, ms } = before ?? this.#last;
    // A machine that was suspended meanwhile has been away, too, which this process's clock does not count.
    if (!before && boot === "") return this.#lastAt;
    return this.#clock.now() - Math.max(0, this.#bootTime().ms - ms);
  }

  #load(): BootTime | undefined {
    try {
      const { boot, ms } = v.parse(moment, JSON.parse(readFileSync(this.#path, "utf8")));
      const now = this.#bootTime();
      return boot === now.boot && ms <= now.ms ? { boot, ms } : undefined;
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent)
        this.#log.warn("when the master was last heard of could not be read: it counts from now", {
          path: this.#path,
          error,
        });
      return undefined;
    }
  }

  #save(): void {
    const text = JSON.stringify(this.#last);
    if (this.#isKept) return this.#file.keep(text);
    try {
      writePrivately(this.#path, text);
      this.#isKept = true;
      this.#written();
    } catch (error) {
      this.#written(error);
    }
  }

  #written(error?: unknown): void {
    if (error !== undefined && !this.#isFailing)
      this.#log.warn("when the master was last heard of could not be written", { path: this.#path, error });
    this.#isFailing = error !== undefined;
  }
}

let knownBoot: string | undefined;

/** Which run of which kernel this process is on, as Linux makes it at each boot; empty where it can't be read. Source: proc(5). */
export function bootId(): string {
  try {
    return (knownBoot ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
  } catch {
    return (knownBoot = "");
  }
}

/** Source: proc(5), /proc/uptime (time in suspend included). */
function readBootTime(): BootTime {
  try {
    const boot = bootId();
    const seconds = Number.parseFloat(readFileSync("/proc/uptime", "utf8"));
    if (boot !== "" && seconds >= 0) return { boot, ms: Math.round(seconds * 1_000) };
  } catch {
    // Another system than Linux.
  }
  return { boot: "", ms: Date.now() };
}
