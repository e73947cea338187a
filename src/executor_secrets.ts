/**
 * @module The secrets of containers on one node: files in memory alone (a tmpfs), fetched from the master before a container
 * that mounts them starts, again after a reboot, and gone when nothing here is to run with them.
 *
 * Each value, owner and mode is a file of its own, so no file ever changes, and what is there need not be looked into. The
 * directory is named after the node: two nodes of one machine have two.
 */
import { chmodSync, lstatSync, mkdirSync, readdirSync, rmSync, statfsSync } from "node:fs";
import { lstat } from "node:fs/promises";
import { basename, join } from "node:path";
import { secretPath } from "./container_options.ts";
import { Directory } from "./executor_tree.ts";
import { Refusal } from "./executor_words.ts";
import type { SecretMount, ServiceSpec } from "./model_spec.ts";

export type SecretSource = {
  /** Directories for files that end with the machine, the best first: the first that is a tmpfs is taken. */
  roots: readonly string[];
  /** A value by its id, from the master; rejects in words. */
  fetch: (secretId: string) => Promise<Uint8Array>;
};

/** What statfs(2) calls a tmpfs. */
const TMPFS_MAGIC = 0x01021994;

/** Where a node's secrets are: in the first of `roots` that is a tmpfs; or why nowhere. */
export function findPlace(
  roots: readonly string[],
  nodeId: string,
): { parent: string; dir: string } | { fault: string } {
  const root = roots.find((path) => isTmpfs(path));
  if (root === undefined)
    return { fault: roots.length === 0 ? "no directory is named" : `no tmpfs at ${roots.join(" or ")}` };
  const parent = join(root, `cacophony-${process.getuid?.() ?? 0}`);
  return { parent, dir: join(parent, nodeId) };
}

export class SecretFiles {
  /** Where the files are; empty: nowhere, and no container with secrets can run. */
  readonly dir: string;
  /** Why there is no such place. */
  readonly fault: string | undefined;
  readonly #parent: string;
  readonly #fetch: SecretSource["fetch"];
  /** Names of the files that are there. */
  readonly #present = new Set<string>();
  readonly #writing = new Map<string, Promise<void>>();

  constructor({ roots, fetch, nodeId }: SecretSource & { nodeId: string }) {
    const place = findPlace(roots, nodeId);
    this.fault = "fault" in place ? place.fault : undefined;
    this.#parent = "fault" in place ? "" : place.parent;
    this.dir = "fault" in place ? "" : place.dir;
    this.#fetch = fetch;
    for (const name of this.dir === "" ? [] : namesIn(this.dir)) this.#present.add(name);
  }

  /**
   * Makes sure that the secrets which the spec mounts are there.
   * @throws {Refusal} with the secret and the reason.
   */
  async ensure(spec: ServiceSpec): Promise<void> {
    const mounts = spec.mounts.filter((mount) => mount.type === "secret");
    await Promise.all(mounts.map((mount) => this.#ensure(mount)));
  }

  /** Takes out what none of these specs mounts. A container that is on its way out keeps what it has open. */
  keepOnly(specs: Iterable<ServiceSpec>): void {
    if (this.#present.size === 0) return;
    const needed = new Set<string>();
    for (const { mounts } of specs)
      for (const mount of mounts) if (mount.type === "secret") needed.add(basename(secretPath(mount, this.dir)));
    for (const name of this.#present) {
      if (needed.has(name) || this.#writing.has(name)) continue;
      rmSync(join(this.dir, name), { force: true });
      this.#present.delete(name);
    }
  }

  async #ensure(mount: SecretMount): Promise<void> {
    const name = basename(secretPath(mount, this.dir));
    const running = this.#writing.get(name);
    if (running) return running;
    const work = this.#write(mount, name).finally(() => this.#writing.delete(name));
    this.#writing.set(name, work);
    await work;
  }

  async #write(mount: SecretMount, name: string): Promise<void> {
    try {
      if (this.fault !== undefined) throw new Error(`the node has no place for secrets (${this.fault})`);
      const path = join(this.dir, name);
      if ((await lstat(path).catch(() => undefined))?.isFile()) return;
      const data = await this.#fetch(mount.secret_id);
      for (const directory of [this.#parent, this.dir]) makePrivate(directory);
      if (!isTmpfs(this.dir)) throw new Error(`${this.dir} is no tmpfs, and secrets do not go to a disk`);
      this.#present.add(name);
      using directory = Directory.open(this.dir);
      await directory.writeFile(name, { ...mount, data, suffix: ".new", sync: false });
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      throw new Refusal(`the secret ${mount.name} cannot be put on this node: ${why}`, { cause: error });
    }
  }
}

/** Makes a directory that nobody else can look into; one of another user, or a link, is not taken. */
function makePrivate(path: string): void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const found = lstatSync(path);
  if (!found.isDirectory() || found.uid !== process.getuid?.())
    throw new Error(`${path} is no directory of this user: remove it`);
  if ((found.mode & 0o077) !== 0) chmodSync(path, 0o700);
}

function isTmpfs(path: string): boolean {
  try {
    return statfsSync(path).type === TMPFS_MAGIC;
  } catch {
    return false;
  }
}

function namesIn(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
