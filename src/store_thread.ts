/**
 * @module The SQLite store in a thread of its own, for a master: a disk that takes seconds keeps no heartbeat and no request waiting.
 * Owns the thread, which `store_worker.ts` is, and what becomes of a commit when the thread ends. What is read, is read in the
 * caller's own thread, at its start.
 */
import type { Change, StoredState } from "./model.ts";
import { isForWantOfRoom, openSqliteStore, openSqliteStoreToRead, type Store, StoreError } from "./store.ts";
import type { StoreErrorCode } from "./store.ts";

/** What the thread is asked for. It does one after the other, in this order. */
export type StoreRequest =
  | { op: "open"; path: string }
  | { op: "beginTerm"; seen: number | undefined }
  | { op: "commit"; term: number; changes: readonly Change[] }
  | { op: "scrub" }
  | { op: "close" };

/** Its answer to each. */
export type StoreAnswer = { term?: number } | { code: StoreErrorCode; message: string };

type Waiting = { resolve: (answer: { term?: number }) => void; reject: (error: StoreError) => void };

/**
 * Opens or creates the SQLite store at `path`; the thread begins with the first change.
 * @throws StartError as `openSqliteStore`. Where the disk has no room, what there is can be read, and each change tries again.
 */
export function openThreadStore(path: string): Store {
  return new ThreadStore(path);
}

class ThreadStore implements Store {
  readonly #path: string;
  /** What is read from before the thread has the file. */
  #reader: Store | undefined;
  #thread: StoreThread | undefined;
  #isClosed = false;

  constructor(path: string) {
    this.#path = path;
    this.#reader = openAnyhow(path);
  }

  async lastTerm(): Promise<number> {
    return this.#read(async (store) => (await store.lastTerm?.()) ?? 0);
  }

  async load(): Promise<StoredState> {
    return this.#read((store) => store.load());
  }

  async beginTerm(seen?: number): Promise<number> {
    const { term } = await this.#opened().ask({ op: "beginTerm", seen });
    if (term === undefined) throw new StoreError("unknown", "the store's thread did not say which term it began");
    return term;
  }

  async commit(term: number, changes: readonly Change[]): Promise<void> {
    await this.#opened().ask({ op: "commit", term, changes });
  }

  async scrub(): Promise<void> {
    await this.#opened().ask({ op: "scrub" });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#reader?.close();
    this.#reader = undefined;
    await this.#thread?.close();
  }

  async #read<T>(read: (store: Store) => Promise<T>): Promise<T> {
    if (this.#reader) return read(this.#reader);
    const store = openAnyhow(this.#path);
    try {
      return await read(store);
    } finally {
      await store.close();
    }
  }

  /** The thread, with the file open in it. One that failed to open it, or has ended, is followed by another. */
  #opened(): StoreThread {
    if (this.#isClosed) throw new StoreError("failed", `the cluster state in ${this.#path} was closed`);
    if (this.#thread?.isRunning) return this.#thread;
    // The file can't be opened to be written while it is open as one that has no room. SQLite closes at once.
    void this.#reader?.close();
    this.#reader = undefined;
    this.#thread = new StoreThread(this.#path);
    return this.#thread;
  }
}

function openAnyhow(path: string): Store {
  try {
    return openSqliteStore(path);
  } catch (error) {
    if (isForWantOfRoom(error)) return openSqliteStoreToRead(path);
    throw error;
  }
}

/** One thread from its begin to its end. Answers come in the order of the requests. */
class StoreThread {
  readonly #path: string;
  readonly #worker: Worker;
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
    this.ask({ op: "open", path }).then(
      () => (this.#isOpen = true),
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
    if ("code" in answer) waiting?.reject(new StoreError(answer.code, answer.message));
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
