/**
 * @module Work in directories that containers change at the same time: the files of jobs on one node.
 *
 * A path says nothing there: between two calls a container may put a symbolic link in the place of a directory. So each
 * directory is opened without following a link, and everything is done by its open descriptor: `/proc/self/fd/N/name` is openat(2)
 * for a runtime that does not have that call. Owns how that is done; knows nothing of jobs.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  read,
  readlinkSync,
  renameSync,
  rmdirSync,
  statSync,
  type BigIntStats,
} from "node:fs";
import { type FileHandle, open, readdir, rename, rmdir, unlink } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { Refusal } from "./executor_words.ts";

/** Mode of the directories that containers get to see: whatever user they run as reads what is in them. */
const DIRECTORY_MODE = 0o755;
const AS_DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
/** A FIFO or a device in the place of a file must not make the node wait. */
const AS_FILE = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
/** What unlink(2) says of a directory: Linux, POSIX. */
const IS_DIRECTORY: readonly string[] = ["EISDIR", "EPERM"];
/** Directories open at once while a tree is removed: what lies deeper is moved up first. */
const MAX_DEPTH = 32;
/** Times that one directory is listed while a tree is removed; each time takes `MAX_DEPTH` levels off a deep one. */
const MAX_PASSES = 1_000;

/** A name in a directory, as bytes where it may not be UTF-8. */
type Name = string | Buffer;
/** The path that leads to an open directory, wherever it is moved meanwhile. */
type Address = (open: { fd: number; path: string }) => string;

/** Of Linux, and of macOS (volfs, which finds a directory by its number while it is there; it is while it is open). */
const BY_DESCRIPTOR: Address = ({ fd }) => `/proc/self/fd/${fd}`;
const BY_NUMBER: Address = ({ fd }) => {
  const { dev, ino } = fstatSync(fd, { bigint: true });
  return `/.vol/${dev}/${ino}`;
};
/** Safe against links that are there, and not against those that come in between: for reading only. */
export const BY_PATH: Address = ({ path }) => path;
export const SAFE: readonly Address[] = [BY_DESCRIPTOR, BY_NUMBER];

const readFrom = promisify(read);

export type WriteOptions = {
  data: Uint8Array;
  mode: number;
  /** Default: the user and the group of this process. */
  uid?: number;
  gid?: number;
  /** Ends the name of the file beside, which nothing else in the directory may have. */
  suffix: string;
  /** Whether it is to outlive a power cut. */
  sync: boolean;
};

/** An open directory. Who opens one closes it (`using`). */
export class Directory implements Disposable {
  /** As it was reached: for messages. */
  readonly path: string;
  readonly #fd: number;
  readonly #addressOf: Address;
  readonly #address: string;

  private constructor({ path, fd, addressOf }: { path: string; fd: number; addressOf: Address }) {
    this.path = path;
    this.#fd = fd;
    this.#addressOf = addressOf;
    this.#address = addressOf({ fd, path });
  }

  /**
   * Opens a directory by a path that no container can change, so that links in it are followed.
   * @throws {Error} if it can't be opened, or no address leads to it.
   */
  static open(path: string, { addresses = SAFE }: { addresses?: readonly Address[] } = {}): Directory {
    const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
    const addressOf = addresses.find((address) => leadsTo(address({ fd, path }), fd));
    if (addressOf) return new Directory({ path, fd, addressOf });
    closeSync(fd);
    throw new Error(
      `${path} cannot be worked in without following links that containers may put there: mount /proc on this machine`,
    );
  }

  /** As `open`, of one that is made with its parents where it is missing. */
  static make(path: string): Directory {
    makeDirectory(path, { recursive: true });
    return Directory.open(path);
  }

  /** Tells this directory from all others, whatever their paths are. */
  get identity(): string {
    return identityOf(fstatSync(this.#fd, { bigint: true }));
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  /** What is at a name, links not followed; undefined: nothing. */
  look(name: string): BigIntStats | undefined {
    return this.#call(() => lstatSync(this.#at(name), { bigint: true }), ["ENOENT"]);
  }

  /** Where a symbolic link leads; undefined: there is none. */
  link(name: string): string | undefined {
    return this.#call(() => readlinkSync(this.#at(name)), ["ENOENT", "EINVAL"]);
  }

  /** The directory at `path`; undefined: on the way something is missing, or is not a directory. */
  walk(path: string): Directory | undefined {
    return this.#descend(path, (at, name) => at.#child(name));
  }

  /**
   * As `walk`, of one that is made where it is missing.
   * @throws {Refusal} if something else is in the way.
   */
  makeWay(path: string): Directory {
    const way = this.#descend(path, (at, name) => {
      const found = at.#child(name);
      if (found) return found;
      at.#call(() => makeDirectory(at.#at(name)), ["EEXIST"]);
      const made = at.#child(name);
      if (!made) throw new Refusal(`${join(at.path, name)} is in the way of a file of the job: remove it`);
      return made;
    });
    if (!way) throw new Error(`${join(this.path, path)} cannot be made`);
    return way;
  }

  /**
   * Opens this directory to all users where nobody but its owner, this user, may look into it: earlier versions made directories
   * like that under a umask of 077.
   */
  unclose(): void {
    const { uid, mode } = fstatSync(this.#fd);
    if (uid === process.getuid?.() && (mode & 0o077) === 0) fchmodSync(this.#fd, DIRECTORY_MODE);
  }

  /** Whether there is a plain file of that name. */
  hasFile(name: string): boolean {
    return this.look(name)?.isFile() ?? false;
  }

  /** A plain file's content; undefined: there is none, or it has more than `maxBytes`. */
  async readFile(name: string, { maxBytes }: { maxBytes: number }): Promise<Buffer | undefined> {
    // ENXIO: a socket; ELOOP: a link.
    const fd = this.#call(() => openSync(this.#at(name), AS_FILE), ["ENOENT", "ELOOP", "ENXIO"]);
    if (fd === undefined) return undefined;
    try {
      const found = fstatSync(fd);
      if (!found.isFile() || found.size > maxBytes) return undefined;
      const buffer = Buffer.alloc(found.size);
      const { bytesRead } = await readFrom(fd, { buffer, position: 0 });
      return buffer.subarray(0, bytesRead);
    } finally {
      closeSync(fd);
    }
  }

  /** Writes beside and renames: who reads sees the old file or the new one, also after a crash. */
  async writeFile(name: string, { data, mode, uid, gid, suffix, sync }: WriteOptions): Promise<void> {
    const beside = `${name}${suffix}`;
    await this.remove(beside);
    let file: FileHandle | undefined;
    try {
      file = await open(this.#at(beside), "wx", 0o600);
      await file.writeFile(data);
      if (uid !== undefined || gid !== undefined)
        await file.chown(uid ?? process.getuid?.() ?? 0, gid ?? process.getgid?.() ?? 0);
      await file.chmod(mode);
      if (sync) await file.sync();
      await rename(this.#at(beside), this.#at(name));
    } catch (error) {
      await this.removeFile(beside);
      throw this.#inWords(error);
    } finally {
      await file?.close();
    }
  }

  /** Removes what is not a directory; what is one, or is not there, is left as it is. */
  async removeFile(name: string): Promise<void> {
    await this.#refusal(unlink(this.#at(name)), IS_DIRECTORY);
  }

  /** Removes an empty directory. */
  removeEmpty(name: string): void {
    this.#call(() => rmdirSync(this.#at(name)));
  }

  /** Removes whatever is there, a directory with all that is in it. */
  async remove(name: string): Promise<void> {
    await this.#remove(name, { depth: 0 });
  }

  /** `top`: the directory that is removed, which takes in what lies deep in it. */
  async #remove(name: Name, { depth, top }: { depth: number; top?: Directory }): Promise<void> {
    let last: unknown;
    for (let pass = 0; pass < MAX_PASSES; pass++) {
      // oxlint-disable-next-line no-await-in-loop -- each try depends on how the one before ended
      last = await this.#refusal(unlink(this.#at(name)), IS_DIRECTORY);
      if (!last) return;
      using child = this.#child(name);
      if (!child) continue;
      if (depth >= MAX_DEPTH && top) {
        this.#call(() => renameSync(this.#at(name), top.#at(crypto.randomUUID())), ["ENOENT"]);
        return;
      }
      // oxlint-disable-next-line no-await-in-loop -- as above
      for (const inside of await child.#names())
        // oxlint-disable-next-line no-await-in-loop -- one after the other: a tree that is removed is not in a hurry
        await child.#remove(inside, { depth: depth + 1, top: top ?? child });
      // oxlint-disable-next-line no-await-in-loop -- as above
      last = await this.#refusal(rmdir(this.#at(name)), ["ENOTEMPTY", "EEXIST", "ENOTDIR"]);
      if (!last) return;
    }
    throw this.#inWords(last);
  }

  /** Names in this directory, as bytes. */
  async #names(): Promise<Buffer[]> {
    return readdir(this.#address, { encoding: "buffer" });
  }

  #child(name: Name): Directory | undefined {
    const fd = this.#call(() => openSync(this.#at(name), AS_DIRECTORY), ["ENOENT", "ENOTDIR", "ELOOP"]);
    if (fd === undefined) return undefined;
    return new Directory({ path: join(this.path, name.toString()), fd, addressOf: this.#addressOf });
  }

  /** Goes down step by step, and holds one directory at a time open; "." is this one, opened once more. */
  #descend(path: string, step: (at: Directory, name: string) => Directory | undefined): Directory | undefined {
    let at = this.#child(".");
    for (const name of path.split("/").filter((part) => part !== "" && part !== ".")) {
      using above = at;
      at = above && step(above, name);
    }
    return at;
  }

  /** The path of a name in here; it leads nowhere else, whatever became of this directory's own path. */
  #at<T extends Name>(name: T): T;
  #at(name: Name): Name {
    if (typeof name !== "string") return Buffer.concat([Buffer.from(`${this.#address}/`), name]);
    if (name === "" || name === ".." || /[/\0]/.test(name))
      throw new Error(`${JSON.stringify(name)} is not the name of a file in ${this.path}`);
    return `${this.#address}/${name}`;
  }

  /** What `work` returns; undefined if it fails with one of `codes`. */
  #call<T>(work: () => T, codes: readonly string[] = []): T | undefined {
    try {
      return work();
    } catch (error) {
      if (codes.includes(codeOf(error))) return undefined;
      throw this.#inWords(error);
    }
  }

  /** Undefined once it is done, or nothing was there; else the error, which has one of `codes`. */
  async #refusal(work: Promise<void>, codes: readonly string[]): Promise<unknown> {
    try {
      return await work;
    } catch (error) {
      if (codeOf(error) === "ENOENT") return undefined;
      if (codes.includes(codeOf(error))) return error;
      throw this.#inWords(error);
    }
  }

  /** The error with paths that people know. */
  #inWords(error: unknown): unknown {
    if (!(error instanceof Error) || !error.message.includes(`${this.#address}/`)) return error;
    const message = error.message.replaceAll(`${this.#address}/`, `${this.path}/`);
    return Object.assign(new Error(message, { cause: error }), { code: codeOf(error) });
  }
}

/**
 * Makes a directory that containers get to see. It has its mode from the first moment, whatever the umask is: a process that
 * is killed leaves none that they can't read.
 */
function makeDirectory(path: string, { recursive = false }: { recursive?: boolean } = {}): void {
  const umask = process.umask(0);
  try {
    mkdirSync(path, { mode: DIRECTORY_MODE, recursive });
  } finally {
    process.umask(umask);
  }
}

/** The same for what is the same file or directory, and no other is there. */
export function identityOf({ dev, ino }: BigIntStats): string {
  return `${dev}:${ino}`;
}

function leadsTo(address: string, fd: number): boolean {
  try {
    return identityOf(statSync(address, { bigint: true })) === identityOf(fstatSync(fd, { bigint: true }));
  } catch {
    return false;
  }
}

function codeOf(error: unknown): string {
  return (error as { code?: string }).code ?? "";
}
