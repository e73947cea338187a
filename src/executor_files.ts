/**
 * @module The sent files of jobs on one node: fetched piece by piece from the master, checked, and written into the job's
 * project directory before a container mounts them.
 *
 * A file is written when it is not there, or when another content was sent than was written last: what a container changed in
 * its own file is kept. Each file appears whole or not at all. Containers may have changed the directory in the meantime, so no
 * symbolic link is followed.
 */
import { lstat, mkdir, readFile, rm, rmdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import * as v from "valibot";
import { Refusal } from "./executor_words.ts";
import { writeWhole } from "./executor_write.ts";
import { hash, OWN_DIRECTORY } from "./job_files.ts";
import type { FileSpec, ServiceSpec } from "./model_spec.ts";

/** Next to files of the job's own, which a container may see. */
const DURABLY = { suffix: `.${OWN_DIRECTORY.slice(1)}-new`, sync: true };

/** Path of each file that was written, and the version of it: lost, all files count as not written yet. */
const written = v.array(v.tuple([v.string(), v.string()]));

export class ProjectFiles {
  readonly #projectDirOf: (jobId: string) => string;
  readonly #specsOf: (jobId: string) => ServiceSpec[];
  readonly #fetchChunk: (chunkHash: string) => Promise<Uint8Array>;
  /** One writer for each job's directory. */
  readonly #queues = new Map<string, Promise<void>>();

  constructor(options: {
    projectDirOf: (jobId: string) => string;
    /** What the job's containers on this node are. */
    specsOf: (jobId: string) => ServiceSpec[];
    fetchChunk: (chunkHash: string) => Promise<Uint8Array>;
  }) {
    this.#projectDirOf = options.projectDirOf;
    this.#specsOf = options.specsOf;
    this.#fetchChunk = options.fetchChunk;
  }

  /**
   * Makes sure that the spec's files are in the job's project directory, and takes out what only older versions of the job needed.
   * @throws {Refusal} with the file and the reason.
   */
  async ensure(jobId: string, spec: ServiceSpec): Promise<void> {
    const before = this.#queues.get(jobId) ?? Promise.resolve();
    const done = before.catch(() => {}).then(() => this.#ensure(jobId, spec));
    this.#queues.set(jobId, done);
    try {
      await done;
    } finally {
      if (this.#queues.get(jobId) === done) this.#queues.delete(jobId);
    }
  }

  async #ensure(jobId: string, spec: ServiceSpec): Promise<void> {
    const projectDir = this.#projectDirOf(jobId);
    const record = join(projectDir, OWN_DIRECTORY, "written.json");
    const known = await readRecord(record);
    if (known.size === 0 && !spec.files) return;
    await makeDirectory(projectDir, OWN_DIRECTORY);
    const versions = new Map(known);
    for (const file of spec.files ?? []) {
      const version = versionOf(file);
      // oxlint-disable-next-line no-await-in-loop -- a few files, one after the other, are soon done and hold little memory
      if (known.get(file.path) === version && (await isFile(join(projectDir, file.path)))) continue;
      // oxlint-disable-next-line no-await-in-loop -- as above
      await this.#write(projectDir, file);
      versions.set(file.path, version);
    }
    await removeUnneeded(projectDir, { versions, specs: [spec, ...this.#specsOf(jobId)] });
    if (!Bun.deepEquals(known, versions))
      await writeWhole(record, { data: Buffer.from(JSON.stringify([...versions])), mode: 0o600, ...DURABLY });
  }

  async #write(projectDir: string, file: FileSpec): Promise<void> {
    try {
      const data = await this.#contents(file);
      await makeDirectory(projectDir, dirname(file.path));
      const path = join(projectDir, file.path);
      const there = await lstat(path).catch(ifAbsent);
      // Docker makes a directory for a source that was not there; one that something was put into is left alone.
      if (there?.isDirectory()) await rmdir(path);
      await writeWhole(path, { ...file, data, ...DURABLY });
    } catch (error) {
      if (error instanceof Refusal) throw error;
      const why = error instanceof Error ? error.message : String(error);
      throw new Refusal(`the file ./${file.path} of the job cannot be put on this node: ${why}`, { cause: error });
    }
  }

  async #contents({ chunks, size }: FileSpec): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (const chunkHash of chunks) {
      // oxlint-disable-next-line no-await-in-loop -- one at a time bounds what is held and asked of the master
      const part = await this.#fetchChunk(chunkHash);
      if (hash(part) !== chunkHash) throw new Error("a part of it arrived damaged");
      parts.push(part);
    }
    const data = Buffer.concat(parts);
    if (data.byteLength !== size) throw new Error(`it has ${data.byteLength} bytes and should have ${size}`);
    return data;
  }
}

function versionOf({ path: _, ...rest }: FileSpec): string {
  return hash(JSON.stringify(rest));
}

async function readRecord(path: string): Promise<Map<string, string>> {
  try {
    return new Map(v.parse(written, JSON.parse(await readFile(path, "utf8"))));
  } catch {
    return new Map();
  }
}

/**
 * Takes out what the job's specs name no more: files of configs, and files below a directory that was sent without
 * them. All else stays: a relative path keeps what is there until the job is deleted with its volumes.
 */
async function removeUnneeded(
  projectDir: string,
  { versions, specs }: { versions: Map<string, string>; specs: readonly ServiceSpec[] },
): Promise<void> {
  const needed = new Set(specs.flatMap(({ files = [] }) => files.map(({ path }) => path)));
  const sources = specs.flatMap(({ mounts }) =>
    mounts.flatMap((mount) => (mount.type === "bind" ? [mount.source] : [])),
  );
  const isBelow = (path: string, folder: string) => folder === "." || path.startsWith(`${folder}/`);
  const folders = [...new Set(sources)].filter((source) => [...needed].some((path) => isBelow(path, source)));
  for (const path of versions.keys()) {
    if (needed.has(path) || ![OWN_DIRECTORY, ...folders].some((folder) => isBelow(path, folder))) continue;
    // oxlint-disable-next-line no-await-in-loop -- rare and few
    if (await isPlain(projectDir, dirname(path))) await rm(join(projectDir, path), { force: true });
    versions.delete(path);
  }
}

/** Whether `path` below `root` is reached through directories alone, and no link. */
async function isPlain(root: string, path: string): Promise<boolean> {
  let at = root;
  for (const part of path.split("/")) {
    at = join(at, part);
    // oxlint-disable-next-line no-await-in-loop -- each step depends on the one before
    if (!(await lstat(at).catch(ifAbsent))?.isDirectory()) return false;
  }
  return true;
}

/** Makes `path` below `root`, step by step, so that a link on the way is seen. */
async function makeDirectory(root: string, path: string): Promise<void> {
  await mkdir(root, { recursive: true });
  let at = root;
  for (const part of path.split("/").filter((one) => one !== "" && one !== ".")) {
    at = join(at, part);
    // oxlint-disable-next-line no-await-in-loop -- each step depends on the one before
    const there = await lstat(at).catch(ifAbsent);
    // oxlint-disable-next-line no-await-in-loop -- as above
    if (!there) await mkdir(at);
    else if (!there.isDirectory()) throw new Refusal(`${at} is in the way of a file of the job: remove it`);
  }
}

async function isFile(path: string): Promise<boolean> {
  return (await lstat(path).catch(ifAbsent))?.isFile() ?? false;
}

function ifAbsent(error: unknown): undefined {
  const code = (error as { code?: string }).code;
  if (code !== "ENOENT" && code !== "ENOTDIR") throw error;
}
