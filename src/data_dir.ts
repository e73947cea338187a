/**
 * @module The data directory: one live process at a time, and the node's identity in it. Owns `lock` and `node.json`; the
 * cluster's state (`cluster.db`, masters only) is the Store's, and `cluster.key` is `cluster_key.ts`'s. Identity is replaced
 * atomically: a crash leaves the old or the new.
 */
import { Database } from "bun:sqlite";
import {
  accessSync,
  chmodSync,
  closeSync,
  constants,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import * as v from "valibot";
import { peer, StartError } from "./model.ts";
import { lenient, list, MAX_NODES } from "./model_bounds.ts";
import { networkMode } from "./model_network.ts";
import { type TermProof, termProof } from "./model_term.ts";

/** What a node was last started with; an option that is not given again stays as it was. */
export const settings = v.object({
  bind_addr: v.exactOptional(v.string()),
  advertise_addr: v.exactOptional(v.string()),
  docker_host: v.exactOptional(v.string()),
  node_name: v.exactOptional(v.string()),
  labels: v.exactOptional(v.array(v.tuple([v.string(), v.string()]))),
  /** Further names that requests may ask for this node by. */
  allow_hosts: v.exactOptional(v.array(v.string())),
  memory_bytes: v.exactOptional(v.number()),
  cpus: v.exactOptional(v.number()),
  network: v.exactOptional(networkMode),
  network_cidr: v.exactOptional(v.string()),
  /** Absolute path; empty: no policy. */
  policy_file: v.exactOptional(v.string()),
  /** Absolute path of the key that secrets are sealed with; empty: `secret.key` in the data directory. */
  secret_key_file: v.exactOptional(v.string()),
  /** How long an image that this node pulled may be unused; 0: images are never removed. */
  image_gc_ms: v.exactOptional(v.number()),
  /** From which share in use, in percent, Docker's disk takes no new containers; 0: it always does. */
  disk_limit: v.exactOptional(v.number()),
  heartbeat_interval_ms: v.exactOptional(v.number()),
  node_timeout_ms: v.exactOptional(v.number()),
  engine_timeout_ms: v.exactOptional(v.number()),
  mass_failure_hold_ms: v.exactOptional(v.number()),
  rebalance: v.exactOptional(v.picklist(["off", "auto"])),
  strategy: v.exactOptional(v.picklist(["spread", "binpack"])),
});
export type Settings = v.InferOutput<typeof settings>;

/**
 * Number of the format of `node.json`. It is raised whenever the shapes below or `settings` get a field: an earlier binary drops
 * what it does not know when it writes the file, so it has to refuse one of a later format. Earlier formats go on being read.
 */
export const IDENTITY_FORMAT = 2;

const identity = v.object({
  /** Of the format; what is read is written again in this binary's one. */
  version: v.pipe(
    v.number(),
    v.integer(),
    v.minValue(1),
    v.maxValue(IDENTITY_FORMAT),
    v.transform(() => IDENTITY_FORMAT),
  ),
  role: v.picklist(["master", "worker"]),
  /** Absent while a join has not succeeded yet. */
  cluster_id: v.exactOptional(v.string()),
  /** Public part of the cluster's key, pinned at the first welcome that was signed: this node takes orders from its holder only. */
  cluster_key: v.exactOptional(v.string()),
  node_id: v.string(),
  /** The address given to `join`. */
  join_address: v.exactOptional(v.string()),
  /** Where a worker listened last whose command line does not say where. */
  last_bind_addr: v.exactOptional(v.string()),
  /** Set once this master's cluster state was written: from then on it must not be missing. */
  has_state: v.boolean(),
  /** Newest term of a master that proved to be this cluster's, or that took this node in when it joined. */
  seen_term: v.number(),
  /** Proof of a term, shown to who says that he is the master. Absent: all masters so far were of earlier versions. */
  last_term: v.exactOptional(lenient(termProof, "last_term")),
  // Learnt again at the next welcome: what an earlier version took for an address is no reason not to start.
  master: v.exactOptional(lenient(peer, "master")),
  peers: list(peer, { max: MAX_NODES, what: "peers" }),
  settings,
});
export type Identity = v.InferOutput<typeof identity>;
/** The shape of `node.json`, which a test holds against its number. */
export const identityShape = identity;

/** The newest leadership that a node has seen; which one that is where it has proof. */
export function newestSeen({ seen_term: seenTerm, last_term: proof }: Pick<Identity, "seen_term" | "last_term">) {
  return { seenTerm, seenLeadership: proof?.term === seenTerm ? proof.leadership : undefined };
}

/** What of an identity changes when a node is shown proof of a term. */
export function newerSeen({ seen_term }: Pick<Identity, "seen_term">, proof: TermProof): Partial<Identity> {
  return proof.term < seen_term ? {} : { seen_term: proof.term, last_term: proof };
}

/** A node before its first start: it knows only what it was told. */
export function newIdentity({ role, node_id }: Pick<Identity, "role" | "node_id">): Identity {
  return { version: IDENTITY_FORMAT, role, node_id, has_state: false, seen_term: 0, peers: [], settings: {} };
}

/**
 * The files of the data directory that only its owner may read, with what SQLite and an unfinished write put beside them. Keys
 * that are checked where they are read are left out: one that was open to others is to be replaced, and not to be hidden.
 */
const PRIVATE =
  /^(lock|node\.json|cluster\.db|images\.json|restarts\.json|network\.json|heard\.json|wireguard\.key)(\.next)?(-journal|-wal|-shm|\.new)?$/;

export class DataDir {
  readonly path: string;
  /** Files that others can read, since the file system or their owner does not let this process change that. */
  readonly exposed: readonly string[];
  /** Called where what is written in the background could not be. */
  onWriteFailed: (error: unknown) => void = () => {};
  readonly #lock: Database;
  #identity: Identity | undefined;
  /** Grows with each identity that is to be written, and with the end. */
  #change = 0;
  /** The last change that is on the disk, or is not to be. */
  #written = 0;
  #isWriting = false;
  /**
   * Whether what was written in the background is taking its place. That may take as long as a write: the blocks of the file before
   * it are discarded then, where the file system is mounted so.
   */
  #isRenaming = false;
  #isClosed = false;

  private constructor(path: string, lock: Database) {
    this.path = path;
    this.#lock = lock;
    this.exposed = readdirSync(path).filter((name) => PRIVATE.test(name) && !isClosed(join(path, name)));
    this.#identity = identityIn(path);
  }

  /**
   * Makes the directory if need be and locks it for this process; the kernel frees the lock when the process ends, however. What is
   * secret in it is closed to others, as earlier versions left the cluster's state open. The mode of the directory itself stays as its
   * owner has set it: an Engine with user namespaces has to pass through to the project directories.
   * @throws StartError when it can't be written, is in use by a live process, or holds an identity that can't be read.
   */
  static open(path: string): DataDir {
    try {
      mkdirSync(path, { recursive: true, mode: 0o700 });
      accessSync(path, constants.W_OK | constants.X_OK);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new StartError(`the data directory ${path} cannot be written (${why}): choose another with --data-dir`, {
        cause: error,
      });
    }
    return new DataDir(path, takeLock(path));
  }

  get identity(): Identity | undefined {
    return this.#identity;
  }

  /** The key that this master's welcomes are signed with. */
  get clusterKeyPath(): string {
    return join(this.path, "cluster.key");
  }

  /** The key that secrets in the cluster's state are sealed with. */
  get keyPath(): string {
    return join(this.path, "secret.key");
  }

  get statePath(): string {
    return join(this.path, "cluster.db");
  }

  /**
   * Writes the identity durably before it returns; but where nothing is new but where others are, soon, without having anything wait
   * for the disk: that is learnt again at the next welcome.
   */
  save(next: Identity): void {
    const before = this.#identity;
    if (before && Bun.deepEquals(before, next)) return;
    if (before && Bun.deepEquals(withoutPeers(before), withoutPeers(next))) {
      this.#identity = next;
      this.#change++;
      if (!this.#isWriting) void this.#writeSoon();
      return;
    }
    this.#write(textOf(next));
    this.#identity = next;
    this.#written = ++this.#change;
  }

  /**
   * Writes the identity of a node that has none yet.
   * @throws StartError when it can't be written.
   */
  begin(first: Identity): void {
    try {
      this.save(first);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new StartError(`a new node cannot be written to ${this.#file} (${why}): make room on its disk`, {
        cause: error,
      });
    }
  }

  close(): void {
    const isUnwritten = this.#written !== this.#change;
    this.#written = ++this.#change;
    try {
      if (isUnwritten && this.#identity) this.#write(textOf(this.#identity));
    } catch (error) {
      this.onWriteFailed(error);
    } finally {
      this.#isClosed = true;
      // What takes its place late must not do so when another process has the directory.
      if (!this.#isRenaming) this.#lock.close();
    }
  }

  get #file(): string {
    return join(this.path, "node.json");
  }

  #renamed(): void {
    this.#isRenaming = false;
    if (this.#isClosed) this.#lock.close();
  }

  #write(text: string): void {
    // Should the file take its place only after this one did, it must not be an older one: the disk may take seconds for that.
    if (this.#isRenaming) writeDurably(`${this.#file}.next`, text);
    writeDurably(this.#file, text);
  }

  async #writeSoon(): Promise<void> {
    this.#isWriting = true;
    try {
      while (this.#identity && this.#written !== this.#change) {
        const change = this.#change;
        // oxlint-disable-next-line no-await-in-loop -- one file, written again where it changed meanwhile
        await writeFor(this.#file, textOf(this.#identity), { sync: true });
        // Whoever wrote in between wrote more than this.
        if (this.#written >= change) continue;
        this.#isRenaming = true;
        // oxlint-disable-next-line no-await-in-loop -- as above
        await rename(`${this.#file}.next`, this.#file).finally(() => this.#renamed());
        this.#written = Math.max(this.#written, change);
        // oxlint-disable-next-line no-await-in-loop -- as above
        await syncDirectorySoon(this.path);
      }
    } catch (error) {
      this.onWriteFailed(error);
    } finally {
      this.#isWriting = false;
    }
  }
}

function textOf(identity: Identity): string {
  return `${JSON.stringify(identity, undefined, 2)}\n`;
}

/** What of an identity is not learnt again. */
function withoutPeers({ master: _, peers: __, ...rest }: Identity): Omit<Identity, "master" | "peers"> {
  return rest;
}

/** An SQLite file under an exclusive lock: locks of the kernel that end with the process, without native code of ours. */
function takeLock(path: string): Database {
  const file = join(path, "lock");
  let db: Database | undefined;
  try {
    makePrivate(file);
    db = new Database(file, { create: true, readwrite: true });
    // Held for as long as the process lives. Nothing is ever written, nor a journal made, so that it can be taken on a full disk.
    db.run("PRAGMA journal_mode = MEMORY");
    db.run("BEGIN EXCLUSIVE");
    return db;
  } catch (error) {
    db?.close();
    if ((error as { code?: string }).code === "SQLITE_NOTADB") {
      // Nothing is in a lock file but the lock: one that something else wrote over is made anew.
      rmSync(file);
      return takeLock(path);
    }
    if ((error as { code?: string }).code?.startsWith("SQLITE_BUSY")) {
      throw new StartError(
        `the data directory ${path} is in use by a running cacophony: stop that one, or choose another --data-dir`,
      );
    }
    throw new StartError(`cannot lock ${file}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

/**
 * What node a data directory is of; undefined: of none yet.
 * @throws StartError when that can't be read.
 */
export function identityIn(dir: string): Identity | undefined {
  const path = join(dir, "node.json");
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return undefined;
    throw new StartError(`cannot read ${path}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
  let found: unknown;
  try {
    found = JSON.parse(text);
    return v.parse(identity, found);
  } catch (error) {
    const format = formatOf(found);
    if (format > IDENTITY_FORMAT)
      throw new StartError(
        `${path} has format ${format}, this cacophony knows up to ${IDENTITY_FORMAT}; it was left untouched: run the newer cacophony`,
      );
    throw new StartError(`${path} is damaged; it was left untouched: restore it, or move the directory away`, {
      cause: error,
    });
  }
}

/** 0: what was found says none. */
function formatOf(found: unknown): number {
  const read = v.safeParse(v.object({ version: v.pipe(v.number(), v.integer()) }), found);
  return read.success ? read.output.version : 0;
}

/** Writes a file that only its owner can read, whole or not at all: a crash or a power cut leaves the old one or the new one. */
export function writeDurably(path: string, text: string): void {
  replace(path, text, { sync: true });
  syncDirectory(dirname(path));
}

/** As `writeDurably`, of what may be lost with the power. */
export function writePrivately(path: string, text: string): void {
  replace(path, text, { sync: false });
}

/** As `writePrivately`, without having this thread wait for the disk. Only one at a time for each file. */
export async function writePrivatelySoon(path: string, text: string): Promise<void> {
  await writeFor(path, text, { sync: false });
  await rename(`${path}.next`, path);
}

/**
 * Writes what is to replace a file, without having this thread wait for the disk. Not where `replace` writes, which may come in
 * between, and fail.
 */
async function writeFor(path: string, text: string, { sync }: { sync: boolean }): Promise<void> {
  await rm(`${path}.next`, { force: true });
  const file = await open(`${path}.next`, "wx", 0o600);
  try {
    await file.writeFile(text);
    if (sync) await file.sync();
  } finally {
    await file.close();
  }
}

async function syncDirectorySoon(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

function replace(path: string, text: string, { sync }: { sync: boolean }): void {
  const beside = `${path}.new`;
  // One that was left behind may be open to others.
  rmSync(beside, { force: true });
  const file = openSync(beside, "wx", 0o600);
  try {
    writeFileSync(file, text);
    if (sync) fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(beside, path);
}

/** Makes an empty file that only its owner can read, where there is none: SQLite gives the files beside a database its mode. */
export function makePrivate(path: string): void {
  closeSync(openSync(path, "a", 0o600));
}

/** Closes a file to others; whether it is. */
function isClosed(path: string): boolean {
  const open = () => {
    const found = lstatSync(path, { throwIfNoEntry: false });
    return found?.isFile() === true && (found.mode & 0o077) !== 0;
  };
  try {
    if (open()) chmodSync(path, 0o600);
    return !open();
  } catch {
    return false;
  }
}

/** Makes what was made, renamed or removed in a directory outlive a power cut. */
function syncDirectory(path: string): void {
  const directory = openSync(path, "r");
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}
