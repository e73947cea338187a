/**
 * @module `npm run survey DIR`: reads every compose file below a directory as a PUT with its files and `?dry_run=true` does,
 * and tells which are refused and why, and what of those that are accepted would be dropped in silence. The files that a
 * document needs are those beside it; one that is missing is stood in for. A document that names files above itself is sent by
 * its path from there. Variables come from a `.env` beside it.
 */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { readDotenv } from "../src/job_dotenv.ts";
import { parseJob, type ParseResult } from "../src/job_spec.ts";
import { findSilent } from "./survey_leaves.ts";

const COMPOSE_FILE = /compose[^/]*\.ya?ml$/i;
/** Bytes of files that are sent along with one document, as the API has it. */
const MAX_FILES_BYTES = 8 * 1024 * 1024;
/** Directories that a document's root is looked for in, upwards. */
const MAX_LEVELS = 8;
/** Leaves of one place and value that are looked at: more of a kind tell nothing new. */
const LEAVES_PER_KIND = 25;

/** Files beside the document and below, as a `curl` with each of them would send; not of directories that no document needs. */
function filesBeside(document: string, root: string): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  let left = MAX_FILES_BYTES;
  const walk = (dir: string): void => {
    for (const entry of readdirSync(dir, { withFileTypes: true })) {
      const path = join(dir, entry.name);
      if (entry.isDirectory() && entry.name !== ".git" && entry.name !== "node_modules") walk(path);
      if (!entry.isFile() || path === document) continue;
      const { size } = statSync(path);
      if (size > left) continue;
      left -= size;
      files.set(relative(root, path), readFileSync(path));
    }
  };
  walk(dirname(document));
  return files;
}

function variablesBeside(document: string): Map<string, string> {
  const file = join(dirname(document), ".env");
  const read = existsSync(file) ? readDotenv(readFileSync(file, "utf8"), () => undefined) : new Map<string, string>();
  if (!(read instanceof Map)) return new Map();
  return new Map([...read].map(([name, value]) => [name, value ?? ""]));
}

/** Reads a document from the nearest directory that holds all that it names. */
function readWithFiles(path: string) {
  let root = dirname(path);
  for (let levels = 0; ; levels++) {
    const read = readFrom(root, path);
    const isAbove = !read.result.ok && read.result.details.some(({ message }) => message.includes("filename=DIR/"));
    if (!isAbove || levels === MAX_LEVELS || root === dirname(root)) return read;
    root = dirname(root);
  }
}

/** Reads a document of the project at `root`, with stand-ins for the files that it names and nobody has. */
function readFrom(root: string, path: string) {
  const text = readFileSync(path);
  const files = filesBeside(path, root);
  const sending = { jobId: "survey", env: variablesBeside(path), files, profiles: ["*"] };
  for (;;) {
    const result = parseJob(text, { ...sending, directory: relative(root, dirname(path)) || "." });
    const missing = result.ok ? [] : result.details.flatMap(({ message }) => missingFile(message) ?? []);
    const added = missing.filter((file) => !files.has(file));
    // The document that is accepted has its paths from the root.
    if (added.length === 0) return { result, sending };
    for (const file of added) files.set(file, contentsOf(join(root, file)));
  }
}

function contentsOf(file: string): Uint8Array {
  if (existsSync(file) && statSync(file).isFile()) return readFileSync(file);
  return new TextEncoder().encode(/\.ya?ml$/.test(file) ? "services: {}" : "STOOD_IN=1");
}

function missingFile(message: string): string | undefined {
  return /names the file "([^"]+)", which was not sent/.exec(message)?.[1];
}

function composeFiles(dir: string): string[] {
  return readdirSync(dir, { recursive: true, encoding: "utf8" })
    .filter((file) => COMPOSE_FILE.test(basename(file)))
    .map((file) => join(dir, file))
    .filter((file) => statSync(file).isFile())
    .toSorted();
}

function reasons(result: Exclude<ParseResult, { ok: true }>): string[] {
  return result.details.map(
    ({ path, message, line }) => `  ${line === undefined ? "" : `line ${line}: `}${path}: ${message}`,
  );
}

function main(dir: string): void {
  const kinds = new Map<string, number>();
  const skip = (place: string, value: string): boolean => {
    const isText = value.startsWith('"');
    const kind = `${place.replace(/^(\w+)\.[^.]+/, "$1.*").replaceAll(/\.\d+(?=\.|$)/g, "[]")} ${isText ? "text" : value}`;
    const seen = kinds.get(kind) ?? 0;
    kinds.set(kind, seen + 1);
    return seen >= LEAVES_PER_KIND;
  };
  const files = composeFiles(dir);
  let accepted = 0;
  let leaves = 0;
  let dropped = 0;
  for (const file of files) {
    const { result, sending } = readWithFiles(file);
    if (!result.ok) {
      console.log(`${relative(dir, file)} is refused\n${reasons(result).join("\n")}`);
      continue;
    }
    accepted += 1;
    const { count, silent } = findSilent(result.job.document, { ...sending, skip });
    leaves += count;
    dropped += silent.length;
    if (silent.length > 0)
      console.log(`${relative(dir, file)} has what is dropped in silence\n  ${silent.join("\n  ")}`);
  }
  console.log(`${files.length} documents, ${accepted} accepted; of ${leaves} leaves, ${dropped} dropped in silence`);
}

const [dir] = process.argv.slice(2);
if (dir === undefined || !existsSync(dir)) {
  console.error("survey: name a directory with compose files: npm run survey DIR");
  process.exit(2);
}
main(dir);
