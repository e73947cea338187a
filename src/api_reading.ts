/**
 * @module Where compose documents are read, with all that was sent along: small ones on the spot, all others in a process of their
 * own, so that one that takes a second keeps no heartbeat and no other request waiting. The process is made for one document and
 * gone after it: what takes too long or too much memory is killed, which a thread that is busy can't be. A node that gets no such
 * document never has one.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { deserialize, serialize } from "node:v8";
import { readSentJob, readVariables, type SentJob } from "./job_sent.ts";
import type { ParseResult } from "./job_spec.ts";
import { lengthOf, readYaml } from "./job_yaml.ts";
import { CacophonyError } from "./model.ts";
import { IS_EXECUTABLE } from "./version.ts";

/** Argument of the executable that makes it such a process; see `main.ts`. Nothing that people call. */
export const READER_COMMAND = "read-document";

/** Bytes of all that was sent where it is read on the spot, in some milliseconds; a process takes some tens of them. */
const SMALL_BYTES = 16 * 1024;
/** What makes much of little: services that extend others, other files. So does a word of these that is written with escapes. */
const MULTIPLIES = /extends|include|\\[xuU\r\n]/;
/** What has sent files read as text, each as often as it is named. */
const READS_FILES = /env_file|label_file|seccomp|credential_spec/;
/** Files that come with a small document: each bind of a directory looks at all of them. */
const SMALL_FILES = 10;
/** What a small document with aliases may stand for: as many values as one without them can have. */
const SMALL_NODES = 4_000;
/** Characters that a small document may come to with what its aliases and variables stand for. */
const SMALL_LENGTH = 64 * 1024;

/** Such processes at once: one that gets nowhere leaves another for those who wait. */
const MAX_AT_ONCE = 2;
/** Documents that are read or wait for it: each holds up to 8 MiB of files. */
const MAX_READING = 8;

/** What the reading of one document may take. */
export type ReadLimits = {
  /** Processor time. The worst document that is known takes 3 s of a slow core. */
  cpuMs: number;
  /** Time in all, where other work leaves little of the processor. */
  timeoutMs: number;
  /** Memory of the process. The worst document that is known takes 300 MiB. */
  memoryBytes: number;
  /** What the document may come to: its own text, its services' specs, and up to 8 MiB of files. */
  answerBytes: number;
};

const LIMITS: ReadLimits = {
  cpuMs: 10_000,
  timeoutMs: 30_000,
  memoryBytes: 768 * 2 ** 20,
  answerBytes: 64 * 2 ** 20,
};
/** How often a process is looked at: what it may take in the meantime is a fraction of its memory. */
const WATCH_MS = 50;
/** Linux tells processes' times in hundredths of a second, on every machine (proc(5), sysconf(_SC_CLK_TCK)). */
const MS_PER_TICK = 10;

/** Reads what was sent for jobs. */
export class JobReader {
  readonly #limits: ReadLimits;
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(limits: Partial<ReadLimits> = {}) {
    this.#limits = { ...LIMITS, ...limits };
  }

  /**
   * As `readSentJob`; a document whose reading was stopped has that for its fault.
   * @throws CacophonyError `busy` when too many documents wait or no process can be had, `internal` when it fails by itself.
   */
  async read(sent: SentJob): Promise<ParseResult> {
    if (isSmall(sent)) return readSentJob(sent);
    if (this.#running + this.#waiting.length === MAX_READING)
      throw new CacophonyError("busy", `${MAX_READING} large documents are being read; nothing was changed, try again`);
    if (this.#running < MAX_AT_ONCE) this.#running++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await readApart(sent, this.#limits);
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }
}

function isSmall({ document, variables, sending }: SentJob): boolean {
  const { env, files = new Map<string, Uint8Array>() } = sending;
  let size = 0;
  for (const { byteLength } of [document, ...variables, ...files.values()]) size += byteLength;
  for (const [name, value] of env) size += name.length + value.length;
  if (size > SMALL_BYTES || files.size > SMALL_FILES) return false;
  const text = new TextDecoder().decode(document);
  if (MULTIPLIES.test(text) || (files.size > 0 && READS_FILES.test(text))) return false;
  if (!text.includes("$") && !text.includes("*")) return true;
  const known = readVariables({ variables, sending });
  if (!(known instanceof Map)) return true;
  const longest = Math.max(0, ...Array.from(known.values(), ({ length }) => length));
  const measured = (part: string) => part.length + (part.split("$").length - 1) * longest;
  if (!text.includes("*")) return measured(text) <= SMALL_LENGTH;
  const yaml = readYaml(text, SMALL_NODES);
  return yaml.state === "parsed" ? lengthOf(yaml.root, measured) <= SMALL_LENGTH : yaml.state === "unparseable";
}

// ---- The process ------------------------------------------------------------------------------------------------------

async function readApart(sent: SentJob, limits: ReadLimits): Promise<ParseResult> {
  const { cpuMs, timeoutMs, memoryBytes, answerBytes } = limits;
  const child = start(serialize(sent));
  let stopped: string | undefined;
  const stop = (why: string) => {
    stopped ??= why;
    child.kill("SIGKILL");
  };
  const deadline = performance.now() + timeoutMs;
  const watch = setInterval(() => {
    const used = usageOf(child.pid);
    if (used.cpuMs >= cpuMs) stop(`takes over ${cpuMs / 1000} s to read`);
    else if (performance.now() >= deadline) stop(`takes over ${timeoutMs / 1000} s to read on this busy machine`);
    else if (used.memoryBytes > memoryBytes) stop(`takes over ${memoryBytes / 2 ** 20} MiB of memory to read`);
  }, WATCH_MS);
  try {
    const chunks: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of child.stdout) {
      size += chunk.byteLength;
      if (size > answerBytes) stop(`comes to over ${answerBytes / 2 ** 20} MiB with all that it stands for`);
      else chunks.push(chunk);
    }
    const code = await child.exited;
    if (code === 0 && stopped === undefined) return deserialize(Buffer.concat(chunks)) as ParseResult;
    if (stopped === undefined && child.signalCode === null)
      throw new CacophonyError("internal", `the process that reads the document ended with code ${code}`);
    // By a signal the kernel ends it where the machine has no more memory, and so it ends itself where it gets none.
    return tooMuch(stopped ?? "takes more memory than this node has to read");
  } finally {
    clearInterval(watch);
    child.kill("SIGKILL");
    await child.exited;
  }
}

function start(input: Uint8Array) {
  const [program, ...rest] = readerProgram();
  try {
    return Bun.spawn([program, ...rest], {
      argv0: "cacophony",
      cwd: "/",
      // Nothing of this process's own, which may hold secrets. By the first the kernel ends it with the process that started it,
      // however busy it is (prctl(2), PR_SET_PDEATHSIG).
      env: { BUN_FEATURE_FLAG_NO_ORPHANS: "1", DO_NOT_TRACK: "1" },
      stdin: input,
      stdout: "pipe",
      stderr: "ignore",
    });
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new CacophonyError(
      "busy",
      `this node can't start a process that reads the document: ${why}; nothing was changed, try again`,
      { cause: error },
    );
  }
}

/** This very program, also where its file has been replaced by another version since it started. */
function readerProgram(): [program: string, ...rest: string[]] {
  if (!IS_EXECUTABLE) return [process.execPath, join(import.meta.dir, "reader.ts")];
  return [existsSync("/proc/self/exe") ? "/proc/self/exe" : process.execPath, READER_COMMAND];
}

/** What a process has used; nothing where that can't be told. Source: proc(5), /proc/PID/status and /proc/PID/stat. */
function usageOf(pid: number): { cpuMs: number; memoryBytes: number } {
  try {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // After the program's name in brackets: state, ten other fields, and the ticks in user mode and in the kernel.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const ticks = Number(fields[11]) + Number(fields[12]);
    return { cpuMs: ticks * MS_PER_TICK, memoryBytes: Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024 };
  } catch {
    return { cpuMs: 0, memoryBytes: 0 };
  }
}

function tooMuch(why: string): ParseResult {
  const message = `${why}, so that was stopped: split it into several jobs, or send fewer and shorter values and files`;
  return { ok: false, code: "invalid_document", details: [{ path: "", message: `the document ${message}` }] };
}
