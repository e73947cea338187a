/**
 * @module How the Scheduler's changes reach the Store where that fails: what is made of a commit that may have been written, of a disk
 * that does not answer, and of one that takes no new term. Owns what is told of that; the changes are the Scheduler's, what the disk
 * does the Store's.
 *
 * **A commit that may have been written** counts as not made. The next commit takes it back in the same transaction: it writes the
 * records that the other one touched as they are in memory. So memory and disk agree after each commit that succeeds, and what is
 * decided in between is decided from memory. Only a process that ends in between leaves the question open: the next one goes by
 * what it finds, and nobody acted on the other.
 *
 * **A term that can't be begun** since the disk is full is begun later. Until then nodes are welcomed in the last term that was begun,
 * so that they stay members, and are told nothing that they must do: a term that is not on the disk could be begun a second time, with
 * other orders of the same number. What runs goes on by the orders that nodes have.
 */
import type { Clock, Timer } from "./clock.ts";
import type { ClusterState } from "./cluster_state.ts";
import type { Log } from "./log.ts";
import { CacophonyError, type Change, keyOf, type RecordKind } from "./model.ts";
import { type Store, StoreError } from "./store.ts";

/** After this, a term that could not be begun is tried again. */
const BEGIN_RETRY_MS = 2_000;
/** Beyond this, whoever wants to change something is told that the disk does not answer, instead of waiting, too. */
const STUCK_MS = 10_000;
/** A change that failed is told of for so long, where none was made since. */
const FAULT_TOLD_MS = 60_000;

export type WritesOptions = { store: Store; state: ClusterState; clock: Clock; log: Log };

export class Writes {
  readonly #options: WritesOptions;
  /** Records that a commit may have changed which does not count, by kind and key. */
  readonly #unsure = new Map<string, { kind: RecordKind; key: string }>();
  readonly #listeners: (() => void)[] = [];
  /** Why no term could be begun yet. */
  #heldBy: string | undefined;
  #failed: { at: number; reason: string } | undefined;
  /** Since when the Store has been at work. */
  #busySince: number | undefined;
  #timer: Timer | undefined;
  #isStopped = false;

  constructor(options: WritesOptions) {
    this.#options = options;
  }

  /** Why changes fail at present, for people; undefined: nothing is known to be wrong. */
  get fault(): string | undefined {
    if (this.#heldBy !== undefined) return this.#heldBy;
    const now = this.#options.clock.now();
    if (this.#isStuck(now))
      return `the disk has not answered for ${Math.round((now - (this.#busySince ?? now)) / 1000)} s`;
    return this.#failed && now - this.#failed.at < FAULT_TOLD_MS ? this.#failed.reason : undefined;
  }

  /** Whether this master has not begun a term yet: it tells no node what to do. */
  get isHeld(): boolean {
    return this.#heldBy !== undefined;
  }

  /** Whether a commit that does not count may have been written, and is to be taken back. */
  get isUnsure(): boolean {
    return this.#unsure.size > 0;
  }

  /** Calls `listener` when a term was begun that could not be begun at first. */
  onBegun(listener: () => void): void {
    this.#listeners.push(listener);
  }

  /**
   * Has `begin` begin a term; resolves to whether it did. Where the Store can't be written, that is tried again until it can, and
   * then `then` is called.
   * @throws what `begin` throws else, and where the Store does not say its last term.
   */
  async begin(begin: () => Promise<void>, then: () => Promise<void>): Promise<boolean> {
    try {
      await this.#timed(begin);
      this.#heldBy = undefined;
      return true;
    } catch (error) {
      const isPassing = error instanceof StoreError && error.code !== "fenced";
      if (!isPassing || !this.#options.store.last) throw error;
      this.#hold(error);
      this.#timer = this.#options.clock.after(BEGIN_RETRY_MS, () => void this.#beginLate(begin, then));
      return false;
    }
  }

  /**
   * Writes all changes or none.
   * @throws CacophonyError `store_failed` where they do not count; `fenced` where another master has taken over.
   */
  async commit(
    term: number,
    changes: readonly Change[],
    { fenced }: { fenced: (error: StoreError) => void },
  ): Promise<void> {
    if (this.#heldBy !== undefined) throw failure(this.#heldBy);
    const all = this.#withUndone(changes);
    try {
      await this.#timed(() => this.#options.store.commit(term, all));
      this.#unsure.clear();
      this.#failed = undefined;
    } catch (error) {
      const code = error instanceof StoreError ? error.code : "unknown";
      if (code === "unknown") this.#doubt(changes);
      if (error instanceof StoreError && code === "fenced") fenced(error);
      const reason = messageOf(error);
      this.#failed = { at: this.#options.clock.now(), reason };
      throw failure(reason, error);
    }
  }

  /** @throws CacophonyError where no change can be made, or the disk has not answered for so long that nothing more is to wait for it. */
  check(): void {
    const { fault } = this;
    if (fault !== undefined && (this.isHeld || this.#isStuck(this.#options.clock.now()))) throw failure(fault);
  }

  stop(): void {
    this.#isStopped = true;
    this.#timer?.cancel();
  }

  async #beginLate(begin: () => Promise<void>, then: () => Promise<void>): Promise<void> {
    if (this.#isStopped) return;
    const { log, clock } = this.#options;
    try {
      if (!(await this.begin(begin, then)) || this.#isStopped) return;
      log.info("the cluster state can be written again: this master begins its term");
      await then();
    } catch (error) {
      log.error("this master's term did not begin as it should", { error });
      if (this.isHeld) this.#timer = clock.after(BEGIN_RETRY_MS, () => void this.#beginLate(begin, then));
    }
    if (!this.isHeld) for (const listener of this.#listeners) listener();
  }

  #hold(error: StoreError): void {
    const reason = `this master could not begin its term: ${messageOf(error)}`;
    if (this.#heldBy === undefined)
      this.#options.log.error("nothing can be changed until the cluster state can be written: make room on its disk", {
        reason,
        hint: "reads are answered, nodes stay members, and what runs goes on",
      });
    this.#heldBy = reason;
  }

  async #timed<T>(work: () => Promise<T>): Promise<T> {
    this.#busySince = this.#options.clock.now();
    try {
      return await work();
    } finally {
      this.#busySince = undefined;
    }
  }

  #isStuck(now: number): boolean {
    return this.#busySince !== undefined && now - this.#busySince >= STUCK_MS;
  }

  #doubt(changes: readonly Change[]): void {
    for (const change of changes) {
      const key = keyOf(change);
      this.#unsure.set(JSON.stringify([change.kind, key]), { kind: change.kind, key });
    }
    this.#options.log.warn("it is not known whether a change was stored; it counts as not made and is taken back", {
      records: changes.length,
    });
  }

  #withUndone(changes: readonly Change[]): readonly Change[] {
    if (this.#unsure.size === 0) return changes;
    const undone = new Map(this.#unsure);
    for (const change of changes) undone.delete(JSON.stringify([change.kind, keyOf(change)]));
    return [...Array.from(undone.values(), ({ kind, key }) => this.#options.state.asIs(kind, key)), ...changes];
  }
}

function failure(reason: string, cause?: unknown): CacophonyError {
  return new CacophonyError("store_failed", `the change could not be stored, so nothing was changed: ${reason}`, {
    cause,
  });
}

/** A StoreError's message holds what caused it. */
function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
