/**
 * @module How a run of a container ended, as its node tells it: exit code, signal, want of memory, last lines, and one sentence
 * where something is wrong that can be said in one. Pure.
 */
import type { ContainerEnd } from "./model.ts";
import { withoutTrailing } from "./text.ts";

/** The last lines that are kept of a run, and of each so many characters: a crash loop must not become a flood. */
export const TAIL_LINES = 10;
const TAIL_CHARS = 200;
/** What is looked at of a line: as much as Docker keeps in one piece. */
const LINE_CHARS = 16 * 1024;
const MESSAGE_CHARS = 500;

/** Linux's numbers of signals, from 1 (signal(7)). */
const SIGNALS =
  "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS".split(
    " ",
  );
/** Signals by which the kernel ends a program that did what it must not. */
const CRASHES = ["SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS"];

/** What an end is told from. Times are milliseconds since 1970. */
export type EndedContainer = {
  id: string;
  exitCode?: number;
  /** Docker's message. */
  error?: string;
  /** Whether the kernel ended a process of it for want of memory, and how much it may use (bytes), where that is limited. */
  oomKilled?: boolean;
  memoryLimit?: number;
  startedAt?: number;
  finishedAt?: number;
};

/** The last end of an allocation's containers. */
export type KnownEnd = {
  /** Which run that was: see `runOf`. */
  run: string;
  end: ContainerEnd;
  /** What is wrong, where that can be said in one sentence. */
  words?: string;
  /** The last lines are still to be read. */
  unread?: true;
  /** What the container wrote before this time was of its run before, as far as one is known. Milliseconds since 1970. */
  since?: number;
};

/** Names one run of a container: a restart in place is another one. */
export function runOf({ id, startedAt }: Pick<EndedContainer, "id" | "startedAt">): string {
  return `${id} ${startedAt}`;
}

/** The end of a container that was looked at closely; `before`: the end before that. */
export function knownEnd(container: EndedContainer, before: KnownEnd | undefined): KnownEnd {
  const { id, startedAt, finishedAt, exitCode, oomKilled = false, error } = container;
  const signal = exitCode === undefined ? undefined : signalOf(exitCode);
  const words = inWords(container);
  const earlier = before?.run.startsWith(`${id} `) ? before.end.finished_at : undefined;
  return {
    run: runOf(container),
    end: {
      ...(exitCode !== undefined && { exit_code: exitCode }),
      ...(signal !== undefined && { signal }),
      oom_killed: oomKilled,
      ...(error !== undefined && { error: error.slice(0, MESSAGE_CHARS) }),
      ...(startedAt !== undefined && { started_at: Math.round(startedAt) }),
      ...(finishedAt !== undefined && { finished_at: Math.round(finishedAt) }),
      log_tail: [],
    },
    ...(words !== undefined && { words }),
    unread: true,
    // Docker's times of lines and of starts are taken by different parts of it; between two runs there is a pause.
    ...(earlier !== undefined && startedAt !== undefined && { since: (earlier + startedAt) / 2 }),
  };
}

/** Name of the signal that an exit code of Docker stands for. */
function signalOf(exitCode: number): string | undefined {
  const name = SIGNALS[exitCode - 129];
  return name === undefined ? undefined : `SIG${name}`;
}

function inWords({ exitCode = 0, oomKilled, memoryLimit, error }: EndedContainer): string | undefined {
  if (oomKilled) {
    return memoryLimit
      ? `ran out of memory (limit ${size(memoryLimit)}): raise its memory limit, or let it use less`
      : "ran out of memory, of which the node had no more: let it use less, or reserve what it needs";
  }
  if (error) return error.slice(0, MESSAGE_CHARS);
  const signal = signalOf(exitCode);
  if (exitCode === 126) return "exit code 126: what its command names may not be executed; look at its last lines";
  if (exitCode === 127) return "exit code 127: a program that its command names was not found; look at its last lines";
  if (signal === "SIGKILL") return "killed by SIGKILL: by somebody on the node, or because the node had no more memory";
  if (signal !== undefined && CRASHES.includes(signal)) return `crashed with ${signal}: a fault in the program`;
  return undefined;
}

/** `64 MiB`, with at most one digit after the point. */
function size(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (power < units.length - 1 && bytes >= 1024 ** (power + 1)) power++;
  return `${Math.round((bytes / 1024 ** power) * 10) / 10} ${units[power]}`;
}

/** The last lines as they are told: short, without colours, cursor movements and what else no terminal should be sent. */
export function tidyTail(lines: readonly string[]): string[] {
  return lines.slice(-TAIL_LINES).map((line) => {
    // What a terminal overwrote is not there to be read: a progress bar is its last state.
    const whole = withoutTrailing(line, "\r");
    const start = whole.lastIndexOf("\r") + 1;
    const shown = whole
      .slice(start, start + LINE_CHARS)
      // Escape sequences first, so that nothing is left of them (ECMA-48: CSI; OSC to its end; two-character ones).
      .replaceAll(/\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[ -/]*[0-~])/g, "")
      .replaceAll("\t", " ")
      // oxlint-disable-next-line no-control-regex -- they are what is looked for
      .replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, "");
    return [...shown.slice(0, 2 * TAIL_CHARS)].slice(0, TAIL_CHARS).join("");
  });
}
