/**
 * @module The SQLite store in a thread of its own, for a master: a disk that takes seconds keeps no heartbeat and no request waiting.
 * Owns the thread, which `store_worker.ts` is, and what becomes of a commit when the thread ends. What is read, is read in the
 * caller's own thread, as all of a start is.
 */
import type { Change, StoredState } from "./model.ts";
import type { Begun } from "./model_term.ts";
import { isForWantOfRoom, openSqliteStore, openSqliteStoreToRead, type Store, StoreError } from "./store.ts";
import type { NewTerm, StoreErrorCode } from "./store.ts";

/** What the thread is asked for. It does one after the other, in this order. */
export type StoreRequest =
  | { op: "open"; path: string }
  | { op: "beginTerm"; wanted: NewTerm | undefined }
  | { op: "commit"; term: number; changes: readonly Change[] }
  | { op: "scrub" }
  | { op: "close" };

/** Its answer to each. */
export type StoreAnswer = { term?: number } | { code: StoreErrorCode; message: string; last?: Begun | undefined };

type Waiting = { resolve: (answer: { term?: number }) => void; reject: (error: StoreError) => void };

/**
 * Opens or creates the SQLite store at `path`. All is done in the caller's thread until `background()` is called: a start has nobody
 * waiting.
 * @throws StartError as `openSqliteStore`. Where the disk has no room, what there is can be read, and each change tries again.
 */
export function openThreadStore(path: string): Store {
  return new ThreadStore(path);
}

class ThreadStore implements Store {
  readonly #path: string;
  /** What the start goes by. */
  #first: Opened | undefined;
  #thread: StoreThread | undefined;
  #isClosed = false;

  constructor(path: string) {
    this.#path = path;
    this.#first = openAnyhow(path);
  }

  background(): void {
    if (this.#first) this.#begin();
  }

  async last(): Promise<Begun> {
    return this.#read(async (store) => (await store.last?.()) ?? { term: 0 });
  }

  async load(): Promise<StoredState> {
    return this.#read((store) => store.load());
  }

  async beginTerm(wanted?: NewTerm): Promise<number> {
    if (this.#first) return this.#first.store.beginTerm(wanted);
    const { term } = await this.#running().ask({ op: "beginTerm", wanted });
    if (term === undefined) throw new StoreError("unknown", "the store's thread did not say which term it began");
    return term;
  }

  async commit(term: number, changes: readonly Change[]): Promise<void> {
    if (this.#first) return this.#first.store.commit(term, changes);
    await this.#running().ask({ op: "commit", term, changes });
  }

  async scrub(): Promise<void> {
    if (this.#first) return this.#first.store.scrub?.();
    await this.#running().ask({ op: "scrub" });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#first?.store.close();
    this.#first = undefined;
    await this.#thread?.close();
  }

  async #read<T>(read: (store: Store) => Promise<T>): Promise<T> {
    if (this.#first) return read(this.#first.store);
    const { store } = openAnyhow(this.#path);
    try {
      return await read(store);
    } finally {
      await store.close();
    }
  }

  /** One that failed to open the file, or has ended, is followed by another. */
  #running(): StoreThread {
    if (this.#isClosed) throw new StoreError("failed", `the cluster state in ${this.#path} was closed`);
    return this.#thread?.isRunning ? this.#thread : this.#begin();
  }

  #begin(): StoreThread {
    const first = this.#first;
    this.#first = undefined;
    // What is open only to be read is open to nobody else. SQLite closes at once.
    if (first?.isFull) void first.store.close();
    const thread = new StoreThread(this.#path);
    this.#thread = thread;
    // Else it is closed when the thread has the file open, too: whoever closes it last writes the log back first.
    if (first && !first.isFull) void thread.opened.then(() => first.store.close());
    return thread;
  }
}

type Opened = { store: Store; isFull: boolean };

function openAnyhow(path: string): Opened {
  try {
    return { store: openSqliteStore(path), isFull: false };
  } catch (error) {
    if (isForWantOfRoom(error)) return { store: openSqliteStoreToRead(path), isFull: true };
    throw error;
  }
}

/** One thread from its begin to its end. Answers come in the order of the requests. */
class StoreThread {
  readonly #path: string;
  readonly #worker: Worker;
  /** Resolves when the file is open, or can't be opened. */
  readonly opened: Promise<void>;
  readonly #waiting: Waiting[] = [];
  #isOpen = false;
  #end: string | undefined;

  constructor(path: string) {
    this.#path = path;
    this.#worker = new Worker(new URL("./store_worker.ts", import.meta.url), { smol: true });
    this.#worker.onmessage = ({ data }: MessageEvent<StoreAnswer>) => this.#answered(data);
    this.#worker.onerror = ({ message }) => this.#ended(message);
    this.#worker.addEventListener("close", () => this.#ended("it ended"));
    // Sent first: what it is asked for afterwards finds the file open, or is answered that it is not.
    this.opened = this.ask({ op: "open", path }).then(
      () => void (this.#isOpen = true),
      (error: unknown) => {
        this.#ended(error instanceof Error ? error.message : String(error));
        this.#worker.terminate();
      },
    );
  }

  get isRunning(): boolean {
    return this.#end === undefined;
  }

  /** @throws StoreError */
  ask(request: StoreRequest): Promise<{ term?: number }> {
    if (this.#end !== undefined) return Promise.reject(this.#fault("failed"));
    const { promise, resolve, reject } = Promise.withResolvers<{ term?: number }>();
    this.#waiting.push({ resolve, reject });
    this.#worker.postMessage(request);
    return promise;
  }

  async close(): Promise<void> {
    if (this.isRunning) await this.ask({ op: "close" }).catch(() => {});
    this.#end ??= "it was closed";
    this.#worker.terminate();
  }

  #answered(answer: StoreAnswer): void {
    const waiting = this.#waiting.shift();
    if ("code" in answer) waiting?.reject(new StoreError(answer.code, answer.message, { last: answer.last }));
    else waiting?.resolve(answer);
  }

  #ended(why: string): void {
    this.#end ??= why;
    // What it was asked for may have been done.
    const fault = this.#fault(this.#isOpen ? "unknown" : "failed");
    for (const { reject } of this.#waiting.splice(0)) reject(fault);
  }

  #fault(code: StoreErrorCode): StoreError {
    const what = this.#isOpen ? `the thread that writes ${this.#path} is gone: ` : "";
    return new StoreError(code, `${what}${this.#end}`);
  }
}
