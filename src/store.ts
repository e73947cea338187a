/**
 * @module Durable cluster state: the `Store` interface that every backend implements, and the SQLite backend, which blocks whoever
 * calls it for as long as the disk takes; a master calls it by way of `store_thread.ts`.
 *
 * A Store keeps typed records (see `RECORD_KINDS`) and one number, the term. It knows nothing of what records mean. Only the
 * master writes; each commit carries the term it was elected in, and a commit of an older term is refused (fencing).
 */
import { Database } from "bun:sqlite";
import { existsSync } from "node:fs";
import * as v from "valibot";
import { makePrivate } from "./data_dir.ts";
import type { Change, RecordKind, RecordOf, StoredState } from "./model.ts";
import { keyOf, RECORD_KINDS, StartError } from "./model.ts";
import { type Begun, isBehind, RESTORE_STEP } from "./model_term.ts";

export type StoreErrorCode = "fenced" | "failed" | "unknown";

export class StoreError extends Error {
  /**
   * `fenced`: another master has begun a newer term; this one must stop deciding. `failed`: nothing was written. `unknown`: it may
   * have been written, or may turn out to have been when the store is opened next.
   */
  readonly code: StoreErrorCode;
  /** Where a term could not be begun because the store was set back: the last one that it knows. */
  readonly last: Begun | undefined;
  constructor(code: StoreErrorCode, message: string, options?: ErrorOptions & { last?: Begun | undefined }) {
    super(message, options);
    this.name = "StoreError";
    this.code = code;
    this.last = options?.last;
  }
}

export type NewTerm = {
  /** An id for this leadership. */
  leadership?: string;
  /** The newest leadership that the master's own node knows of. */
  seen?: Begun;
  /** The state was restored: the term becomes newer than all that was begun after the backup was made. */
  restored?: boolean;
};

/** Where a master keeps the cluster's state. All methods reject with `StoreError`. */
export interface Store {
  /**
   * Begins a new leadership: raises the term durably by one, and returns it. Commits of earlier terms are refused from here on.
   * Refused as `fenced`, with `last`, where the store is behind `seen`: it was set back. After a restore it begins all the same.
   */
  beginTerm(wanted?: NewTerm): Promise<number>;
  /** The last leadership that was begun; term 0: none was. Absent: a master that can't begin a new one does not start. */
  last?(): Promise<Begun>;
  load(): Promise<StoredState>;
  /** Writes all changes or none; durable when the promise resolves. */
  commit(term: number, changes: readonly Change[]): Promise<void>;
  /** The start is over: from here on, no call has the thread of its caller wait for the disk. */
  background?(): void;
  /** Leaves nothing on the disk of what was removed or replaced. */
  scrub?(): Promise<void>;
  close(): Promise<void>;
}

/** Marks the file as ours ("Caco"), so that another program's database is never taken for one. */
const APPLICATION_ID = 0x4361636f;

/**
 * One entry per schema version, applied in order; `PRAGMA user_version` counts those that were. Never edit an entry.
 *
 * The schema's version is the format of the records, too: whenever a record gets a field (`RECORD_KINDS`), an entry is added, which
 * is empty where the tables stay as they are. An earlier binary drops what it does not know when it writes a record, so it has to
 * refuse a store of a later version.
 */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
   CREATE TABLE leadership (id INTEGER PRIMARY KEY CHECK (id = 1), term INTEGER NOT NULL);
   INSERT INTO leadership VALUES (1, 0);`,
  // The cluster's record has `version_floor`, a node's `engine_silent`.
  "",
  // Which of those that began this term it was; NULL: one of an earlier version.
  "ALTER TABLE leadership ADD COLUMN leadership TEXT;",
];

/** The schema's version, which a test holds against the shapes of the records. */
export const STORE_FORMAT = MIGRATIONS.length;

/** SQLite's name for a database without a file. */
const IN_MEMORY = ":memory:";

/** SQLite's codes for a disk without room, where files or their parts can't be made. */
const NO_ROOM = /^SQLITE_(FULL|IOERR_SHMSIZE|IOERR_SHMOPEN|IOERR_WRITE|CANTOPEN)$/;

/**
 * Opens or creates the SQLite store at `path`.
 * @throws StartError when the file is damaged, not ours, or written by a newer Cacophony. It is left as it was.
 */
export function openSqliteStore(path: string): Store {
  const isInMemory = path === IN_MEMORY;
  const existed = !isInMemory && existsSync(path);
  let db: Database | undefined;
  try {
    if (!isInMemory) makePrivate(path);
    db = new Database(path, { create: true, readwrite: true });
    if (existed) refuseUnusable(db, path);
    // FULL: a commit is on the disk before it is acknowledged, also when the machine loses power.
    db.run("PRAGMA journal_mode = WAL");
    db.run("PRAGMA synchronous = FULL");
    // What is removed is overwritten: a secret of an earlier version must not stay readable in free pages.
    db.run("PRAGMA secure_delete = ON");
    migrate(db);
    return new SqliteStore(db, path);
  } catch (error) {
    db?.close();
    if (error instanceof StartError) throw error;
    const room = NO_ROOM.test((error as { code?: string }).code ?? "") ? "; make room on its disk" : "";
    throw new StartError(`cannot open the cluster state in ${path} (nothing was changed): ${message(error)}${room}`, {
      cause: error,
    });
  }
}

/** Whether `openSqliteStore` failed since it could write nothing: what is there may be read all the same. */
export function isForWantOfRoom(error: unknown): error is StartError {
  return error instanceof StartError && NO_ROOM.test((error.cause as { code?: string } | undefined)?.code ?? "");
}

/**
 * Opens the store that is at `path` where nothing can be written: as it is, of whatever earlier schema. Nobody else can open it until
 * this one is closed.
 * @throws StartError as `openSqliteStore`.
 */
export function openSqliteStoreToRead(path: string): Store {
  const db = new Database(path, { readwrite: true });
  try {
    // The index of the log is kept in memory then, and needs no file (https://sqlite.org/wal.html#noshm).
    db.run("PRAGMA locking_mode = EXCLUSIVE");
    refuseUnusable(db, path);
    return new SqliteStore(db, path);
  } catch (error) {
    db.close();
    throw error;
  }
}

function refuseUnusable(db: Database, path: string): void {
  let faults: string[];
  try {
    faults = db
      .query<{ quick_check: string }, []>("PRAGMA quick_check(3)")
      .all()
      .map((row) => row.quick_check);
  } catch (error) {
    if (NO_ROOM.test((error as { code?: string }).code ?? "")) throw error;
    faults = [message(error)];
  }
  if (faults.join() !== "ok") {
    throw new StartError(
      `the cluster state in ${path} is damaged (${faults.join("; ")}); it was left untouched: restore it from a backup, or move it away to begin anew`,
    );
  }
  const tables = db.query<{ n: number }, []>("SELECT count(*) AS n FROM sqlite_schema").get()?.n ?? 0;
  if (tables > 0 && pragma(db, "application_id") !== APPLICATION_ID) {
    throw new StartError(`${path} is a database of another program; it was left untouched: choose another --data-dir`);
  }
  const version = pragma(db, "user_version");
  if (version > STORE_FORMAT) {
    throw new StartError(
      `the cluster state in ${path} has schema version ${version}, this cacophony knows up to ${STORE_FORMAT}; it was left untouched: run the newer cacophony`,
    );
  }
}

function migrate(db: Database): void {
  for (let version = pragma(db, "user_version"); version < MIGRATIONS.length; version++) {
    db.transaction(() => {
      const migration = MIGRATIONS[version] ?? "";
      if (migration !== "") db.run(migration);
      db.run(`PRAGMA user_version = ${version + 1}`);
      db.run(`PRAGMA application_id = ${APPLICATION_ID}`);
    }).immediate();
  }
}

function pragma(db: Database, name: "user_version" | "application_id"): number {
  return Object.values(db.query<Record<string, number>, []>(`PRAGMA ${name}`).get() ?? {})[0] ?? 0;
}

/**
 * SQLite's codes for a commit of which no part that counts was written. After any other error, that of an fsync above all, the pages
 * may be complete in the log: the next commit writes over them, but who opens the file before that finds them.
 */
const UNTOUCHED = /^SQLITE_(FULL|BUSY|BUSY_\w+|READONLY|READONLY_\w+|CANTOPEN|IOERR_SHMSIZE)$/;

class SqliteStore implements Store {
  readonly #db: Database;
  readonly #path: string;

  constructor(db: Database, path: string) {
    this.#db = db;
    this.#path = path;
  }

  async beginTerm({ leadership, seen = { term: 0 }, restored = false }: NewTerm = {}): Promise<number> {
    return this.#attempt(() => {
      const last = this.#last();
      if (!restored && isBehind(last, seen))
        throw new StoreError("fenced", `the store is at term ${last.term}, term ${seen.term} was seen`, { last });
      const term = restored ? Math.max(last.term, seen.term) + RESTORE_STEP : last.term + 1;
      if (!Number.isSafeInteger(term)) throw new StoreError("failed", `no term is left after ${last.term}`);
      this.#db.run("UPDATE leadership SET term = ?1, leadership = ?2", [term, leadership ?? null]);
      return term;
    });
  }

  async last(): Promise<Begun> {
    return this.#last();
  }

  async load(): Promise<StoredState> {
    const kinds = Object.keys(RECORD_KINDS).map((kind) => [kind, []]);
    const state = Object.fromEntries(kinds) as StoredState;
    const rows = this.#db.query<{ kind: string; key: string; value: string }, []>(
      "SELECT kind, key, value FROM record",
    );
    for (const row of rows.iterate()) {
      try {
        parseInto(state, row.kind, JSON.parse(row.value));
      } catch (error) {
        throw new StartError(`the record ${row.kind} ${row.key} in ${this.#path} cannot be read: ${message(error)}`, {
          cause: error,
        });
      }
    }
    return state;
  }

  async commit(term: number, changes: readonly Change[]): Promise<void> {
    this.#attempt(() => {
      const newest = this.#last().term;
      if (newest !== term) throw new StoreError("fenced", `term ${term} is over, the store is at term ${newest}`);
      const put = this.#db.query(
        "INSERT INTO record (kind, key, value) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = ?3",
      );
      const remove = this.#db.query("DELETE FROM record WHERE kind = ?1 AND key = ?2");
      for (const change of changes) {
        if (change.op === "put") put.run(change.kind, keyOf(change), JSON.stringify(change.record));
        else remove.run(change.kind, change.key);
      }
    });
  }

  async scrub(): Promise<void> {
    this.#db.run("PRAGMA wal_checkpoint(TRUNCATE)");
  }

  async close(): Promise<void> {
    this.#db.close();
  }

  #last(): Begun {
    // Whatever columns there are: a store that can't be written is read in its earlier schema.
    const query = this.#db.query<{ term: number; leadership?: string | null }, []>("SELECT * FROM leadership");
    const { term = 0, leadership = null } = query.get() ?? {};
    return { term, ...(leadership !== null && { leadership }) };
  }

  #attempt<T>(work: () => T): T {
    try {
      return this.#db.transaction(work).immediate();
    } catch (error) {
      if (error instanceof StoreError) throw error;
      const code = UNTOUCHED.test((error as { code?: string }).code ?? "") ? "failed" : "unknown";
      throw new StoreError(code, `cannot write the cluster state to ${this.#path}: ${message(error)}`, {
        cause: error,
      });
    }
  }
}

function parseInto(state: StoredState, kind: string, value: unknown): void {
  if (!(kind in RECORD_KINDS)) throw new Error(`unknown kind of record '${kind}'`);
  const known = kind as RecordKind;
  const list = state[known] as RecordOf<RecordKind>[];
  list.push(v.parse(RECORD_KINDS[known].schema, value));
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
