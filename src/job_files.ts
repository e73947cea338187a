/**
 * @module The files that were sent along with a compose document: their paths inside of the job's project directory, their
 * contents as texts for the reading (`env_file`, `extends`, …), and as content-addressed chunks for what containers mount.
 * Pure; `executor_files.ts` writes them on a node.
 */
import { createHash } from "node:crypto";
import { Refusal, show } from "./job_grammar.ts";
import type { FileSpec } from "./model_spec.ts";

/** What an archive of one file is cut into: small enough for one record of any Store, large enough that most are one. */
const CHUNK_BYTES = 256 * 1024;
/** Below the project directory: the files of configs, and what the node keeps of its own about the directory. */
export const OWN_DIRECTORY = ".cacophony";
/** Octal; a script is executable, since a form does not say what its file was. */
const FILE_MODE = 0o644;
const SCRIPT_MODE = 0o755;
/** Compose's mode for configs and secrets. */
export const MOUNTED_MODE = 0o444;

/** Bytes of one file that is read as a text (as much as a document may have), and of all such readings together. */
const MAX_TEXT_BYTES = 1024 * 1024;
const MAX_READ_BYTES = 4 * MAX_TEXT_BYTES;

/** Directories that a hint names: a path may be all `..`. */
const MAX_LEVELS = 16;

/** Contents by path, as `cleanPath` writes it. */
export type SentFiles = ReadonlyMap<string, Uint8Array>;

export class JobFiles {
  readonly #sent: SentFiles;
  #readBytes = 0;
  /** Contents by their hash: those that some manifest of `below`, `copy` and `inline` names. */
  readonly chunks = new Map<string, Uint8Array>();

  constructor(sent: SentFiles) {
    this.#sent = sent;
  }

  has(path: string): boolean {
    return this.#sent.has(path);
  }

  /** The contents of a sent file. */
  bytes(path: string): Uint8Array | undefined {
    return this.#sent.get(path);
  }

  /** The text of a sent file; what to send where there is none. */
  text(path: string): string | Refusal {
    const data = this.#sent.get(path);
    if (!data) return new Refusal(`names the file ${show(path)}, which was not sent: ${sendIt(path)}`);
    if (data.byteLength > MAX_TEXT_BYTES)
      return new Refusal(`names the file ${show(path)}, which is over ${MAX_TEXT_BYTES} bytes long`);
    this.#readBytes += data.byteLength;
    if (this.#readBytes > MAX_READ_BYTES)
      return new Refusal(
        `names the file ${show(path)}, which brings what is read of files to over ${MAX_READ_BYTES} bytes`,
      );
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(data);
    } catch {
      return new Refusal(`names the file ${show(path)}, which is not UTF-8: save it in that encoding`);
    }
  }

  /** Paths of the file at `path`, or of all files of the directory there; empty: nothing was sent. */
  namesBelow(path: string): string[] {
    const prefix = path === "." ? "" : `${path}/`;
    return [...this.#sent.keys()].filter((name) => name === path || name.startsWith(prefix));
  }

  /** The manifest of what `namesBelow` gives, without some. */
  below(path: string, isLeftOut: (path: string) => boolean = () => false): FileSpec[] {
    const names = new Set(this.namesBelow(path));
    return [...this.#sent]
      .filter(([name]) => names.has(name) && !isLeftOut(name))
      .map(([name, data]) => this.#keep(name, { data, mode: isScript(data) ? SCRIPT_MODE : FILE_MODE }))
      .toSorted((a, b) => (a.path < b.path ? -1 : 1));
  }

  /** A file made for one config; its path differs with its content and owner, so that it never changes in place. */
  mounted(name: string, data: Uint8Array, owner: { mode?: number; uid?: number; gid?: number }): FileSpec {
    const { mode = MOUNTED_MODE, ...ids } = owner;
    const file = this.#keep("", { data, mode, ...ids });
    const version = hash(JSON.stringify(file)).slice(0, 12);
    return { ...file, path: `${OWN_DIRECTORY}/mounts/${name}-${version}` };
  }

  /** As `mounted`, of a sent file; undefined if there is none. */
  copy(path: string, name: string, owner: { mode?: number; uid?: number; gid?: number }): FileSpec | undefined {
    const data = this.#sent.get(path);
    return (
      data && this.mounted(name, data, { ...owner, mode: owner.mode ?? (isScript(data) ? SCRIPT_MODE : FILE_MODE) })
    );
  }

  #keep(path: string, { data, ...rest }: { data: Uint8Array; mode: number; uid?: number; gid?: number }): FileSpec {
    const chunks: string[] = [];
    for (let start = 0; start < data.byteLength; start += CHUNK_BYTES) {
      const chunk = data.subarray(start, start + CHUNK_BYTES);
      const name = hash(chunk);
      this.chunks.set(name, chunk);
      chunks.push(name);
    }
    return { path, size: data.byteLength, chunks, ...rest };
  }
}

/** The option of curl that sends a file under the name that the document has for it. */
export function sendIt(path: string): string {
  return `add -F 'file=@./${path};filename=./${path}' to curl`;
}

/** What to do about a clean path that begins with `..`: the project directory is what the names in the form start from. */
export function sendFromAbove(path: string): string {
  const levels = path.split("/").filter((part) => part === "..").length;
  const document = `${"DIR/".repeat(Math.min(levels, MAX_LEVELS))}compose.yaml`;
  return `send the document by its path from the directory that holds both: -F 'compose=@${document};filename=${document}'`;
}

/** Name of a chunk: SHA-256 of its content, in hex. */
export function hash(data: Uint8Array | string): string {
  return createHash("sha256").update(data).digest("hex");
}

/** The path without `.`, `//` and, as far as it goes, `..`; "." where nothing is left. */
export function cleanPath(path: string): string {
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "" || part === ".") continue;
    if (part === ".." && parts.length > 0 && parts.at(-1) !== "..") parts.pop();
    else if (part !== ".." || !path.startsWith("/")) parts.push(part);
  }
  return path.startsWith("/") ? `/${parts.join("/")}` : parts.join("/") || ".";
}

/** A path of a file below the project directory, clean; or why it is none. */
export function projectPath(path: string): string | Refusal {
  const clean = cleanPath(path);
  if (clean === "." || path.includes("\0") || path.length > 1024)
    return new Refusal(`is ${show(path)}, which names no file`);
  if (clean.startsWith("/") || path.startsWith("~") || /^[a-zA-Z]:|\\/.test(path))
    return new Refusal(
      `is ${show(path)}, which lies outside of the job: send the file, under a path that begins with ./`,
    );
  if (clean === ".." || clean.startsWith("../"))
    return new Refusal(`is ${show(path)}, which leaves the job's project directory: ${sendFromAbove(clean)}`);
  if (clean.split("/")[0] === OWN_DIRECTORY)
    return new Refusal(`is ${show(path)}, in a directory that is Cacophony's own: choose another name`);
  return clean;
}

function isScript(data: Uint8Array): boolean {
  return data[0] === 0x23 && data[1] === 0x21;
}
