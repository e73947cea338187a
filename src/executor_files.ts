/**
 * @module The sent files of jobs on one node: fetched piece by piece from the master, checked, and written into the job's
 * project directory before a container mounts them.
 *
 * A file is written when it is not there, or when another content was sent than was written last: what a container changed in
 * its own file is kept. Each file appears whole or not at all. Containers may change the directory at any time, so all of it is
 * done by `executor_tree.ts`, which follows no symbolic link.
 */
import { existsSync } from "node:fs";
import { basename, dirname } from "node:path";
import * as v from "valibot";
import { Directory } from "./executor_tree.ts";
import { Refusal } from "./executor_words.ts";
import { cleanPath, hash, OWN_DIRECTORY } from "./job_files.ts";
import type { FileSpec, ServiceSpec } from "./model_spec.ts";

/** Next to files of the job's own, which a container may see. */
const DURABLY = { suffix: `.${OWN_DIRECTORY.slice(1)}-new`, sync: true };

const RECORD = "written.json";
/** A container may have written the record anew: all that a form can send has shorter paths than this. */
const MAX_RECORD_BYTES = 16 * 1024 * 1024;
/** Stands in the record among the files once the directories of the job have the modes that they should have. */
const MODES: readonly [path: string, version: string] = [`${OWN_DIRECTORY}/modes`, "1"];

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
    const known = await readRecord(projectDir);
    if (known.size === 0 && !spec.files) return;
    using root = Directory.make(projectDir);
    const specs = [spec, ...this.#specsOf(jobId)];
    if (known.size > 0 && known.get(MODES[0]) !== MODES[1]) openUp(root, specs);
    using own = root.makeWay(OWN_DIRECTORY);
    const versions = new Map(known).set(...MODES);
    for (const [folder, files] of Map.groupBy(spec.files ?? [], ({ path }) => dirname(path))) {
      const isWritten = (file: FileSpec, directory: Directory | undefined) =>
        known.get(file.path) === versionOf(file) && directory?.hasFile(basename(file.path));
      using there = root.walk(folder);
      const missing = files.filter((file) => !isWritten(file, there));
      for (const file of missing) {
        // oxlint-disable-next-line no-await-in-loop -- a few files, one after the other, are soon done and hold little memory
        await this.#write(root, file);
        versions.set(file.path, versionOf(file));
      }
    }
    await removeUnneeded(root, { versions, specs });
    if (!Bun.deepEquals(known, versions))
      await own.writeFile(RECORD, { data: Buffer.from(JSON.stringify([...versions])), mode: 0o600, ...DURABLY });
  }

  async #write(root: Directory, file: FileSpec): Promise<void> {
    try {
      const data = await this.#contents(file);
      using folder = root.makeWay(dirname(file.path));
      const name = basename(file.path);
      // Docker makes a directory for a source that was not there; one that something was put into is left alone.
      if (folder.look(name)?.isDirectory()) folder.removeEmpty(name);
      await folder.writeFile(name, { ...file, data, ...DURABLY });
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

/** What was written before. Containers can write the record, too, so a path in it must be one that is below the project directory. */
async function readRecord(projectDir: string): Promise<Map<string, string>> {
  try {
    using root = Directory.open(projectDir);
    using own = root.walk(OWN_DIRECTORY);
    const text = await own?.readFile(RECORD, { maxBytes: MAX_RECORD_BYTES });
    const entries = text ? v.parse(written, JSON.parse(text.toString())) : [];
    return new Map(entries.filter(([path]) => cleanPath(path) === path && !/^(\/|\.\.?(\/|$))/.test(path)));
  } catch {
    return new Map();
  }
}

/** Lets all users into the directories of sent files that an earlier version made: the umask may have kept them out. */
function openUp(root: Directory, specs: readonly ServiceSpec[]): void {
  const folders = new Set(["."]);
  for (const { path } of specs.flatMap(({ files = [] }) => files)) {
    const parts = path.split("/");
    for (let count = 1; count < parts.length; count++) folders.add(parts.slice(0, count).join("/"));
  }
  for (const folder of folders) {
    using directory = root.walk(folder);
    directory?.unclose();
  }
}

/**
 * Takes out what the job's specs name no more: files of configs, and files below a directory that was sent without
 * them. All else stays: a relative path keeps what is there until the job is deleted with its volumes.
 */
async function removeUnneeded(
  root: Directory,
  { versions, specs }: { versions: Map<string, string>; specs: readonly ServiceSpec[] },
): Promise<void> {
  const needed = new Set(specs.flatMap(({ files = [] }) => files.map(({ path }) => path)));
  const sources = specs.flatMap(({ mounts }) =>
    mounts.flatMap((mount) => (mount.type === "bind" ? [mount.source] : [])),
  );
  const isBelow = (path: string, folder: string) => folder === "." || path.startsWith(`${folder}/`);
  const folders = [...new Set(sources)].filter((source) => [...needed].some((path) => isBelow(path, source)));
  for (const path of versions.keys()) {
    if (path === MODES[0] || needed.has(path) || ![OWN_DIRECTORY, ...folders].some((folder) => isBelow(path, folder)))
      continue;
    using folder = root.walk(dirname(path));
    // oxlint-disable-next-line no-await-in-loop -- rare and few
    await folder?.removeFile(basename(path));
    versions.delete(path);
  }
}

/** Removes all that is in the project directory of a deleted job. */
export async function removeProject(projectDir: string): Promise<void> {
  const parent = dirname(projectDir);
  if (!existsSync(parent)) return;
  using projects = Directory.open(parent);
  await projects.remove(basename(projectDir));
}
