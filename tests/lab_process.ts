/**
 * @module Processes of the lab: a command that runs to its end, and a process that stays. Both get a small environment of
 * their own, so that nothing of the caller's (proxies, DOCKER_*, CACOPHONY_*) leaks into a lab. Knows nothing of hosts.
 */
import { closeSync, openSync, readFileSync } from "node:fs";
import { waitUntil } from "./wait.ts";

/** Variables for a process; `undefined` takes one out that the lab would set. */
export type Env = Record<string, string | undefined>;

export interface CommandResult {
  exitCode: number;
  stdout: string;
  stderr: string;
}

/** Longest that a command may take, in milliseconds, before it is killed. */
const COMMAND_TIMEOUT_MS = 60_000;

/** Runs `argv` to its end; a non-zero exit is a result, not an error. `input` is a text, or a file by its path. */
export async function command(
  argv: readonly string[],
  {
    env = {},
    input,
    timeoutMs = COMMAND_TIMEOUT_MS,
  }: { env?: Env; input?: string | { file: string }; timeoutMs?: number } = {},
): Promise<CommandResult> {
  const stdin = input === undefined ? null : typeof input === "string" ? Buffer.from(input) : Bun.file(input.file);
  const child = Bun.spawn([...argv], {
    env: environment(env),
    stdin,
    stdout: "pipe",
    stderr: "pipe",
    timeout: timeoutMs,
    killSignal: "SIGKILL",
  });
  const [stdout, stderr, exitCode] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { exitCode, stdout, stderr };
}

/** Like `command`, for commands that must succeed: returns their output without the last newline. */
export async function mustRun(argv: readonly string[], options: Parameters<typeof command>[1] = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await command(argv, options);
  if (exitCode !== 0) throw new Error(`"${argv.join(" ")}" exited with ${exitCode}: ${stderr.trim() || stdout.trim()}`);
  return stdout.trimEnd();
}

/** A process that runs until it is told to stop; its output goes to a file, so a frozen test never blocks it. */
export class LabProcess {
  readonly name: string;
  readonly pid: number;
  /** The exit code; 128 + number of the signal when one ended it. */
  readonly exited: Promise<number>;
  readonly #logFile: string;
  /** How it ended, in words. */
  #end: string | undefined;

  /** Starts `argv`; output of both kinds is appended to `logFile`. */
  constructor(name: string, argv: readonly string[], { env = {}, logFile }: { env?: Env; logFile: string }) {
    this.name = name;
    this.#logFile = logFile;
    const log = openSync(logFile, "a");
    const child = Bun.spawn([...argv], {
      env: environment(env),
      stdin: null,
      stdout: log,
      stderr: log,
    });
    closeSync(log);
    child.unref();
    this.pid = child.pid;
    this.exited = child.exited.then((exitCode) => {
      this.#end = child.signalCode === null ? `exit code ${exitCode}` : `signal ${child.signalCode}`;
      return exitCode;
    });
  }

  get running(): boolean {
    return this.#end === undefined;
  }

  /** All it has written so far. */
  logs(): string {
    return readFileSync(this.#logFile, "utf8");
  }

  /** Waits until its output matches; fails at once, with the end of the output, when the process ends before. */
  async waitFor(
    pattern: RegExp | ((logs: string) => boolean),
    { timeoutMs = 10_000 }: { timeoutMs?: number } = {},
  ): Promise<void> {
    const matches = (logs: string) => (pattern instanceof RegExp ? pattern.test(logs) : pattern(logs));
    const seen = await waitUntil(
      `${this.name} to write ${pattern}`,
      () => {
        const running = this.running;
        const logs = this.logs();
        return { running, reached: matches(logs), tail: tail(logs) };
      },
      { until: ({ running, reached }) => reached || !running, timeoutMs },
    );
    if (!seen.reached) {
      throw new Error(`${this.name} ended (${this.#end}) without writing ${pattern}; its last lines:\n${seen.tail}`);
    }
  }

  /** Sends a signal; to a process that has ended, nothing. */
  signal(signal: NodeJS.Signals): void {
    if (this.running) process.kill(this.pid, signal);
  }

  freeze(): void {
    this.signal("SIGSTOP");
  }

  thaw(): void {
    this.signal("SIGCONT");
  }

  /** Ends it as an operator would (SIGTERM) and returns the exit code. */
  async stop({ timeoutMs = 10_000 }: { timeoutMs?: number } = {}): Promise<number> {
    this.signal("SIGTERM");
    await waitUntil(`${this.name} to end after SIGTERM`, () => !this.running, { timeoutMs, intervalMs: 10 });
    return this.exited;
  }

  /** SIGKILL, as a crash or the kernel's out-of-memory killer would. Returns when the process is gone. */
  async kill(): Promise<void> {
    this.signal("SIGKILL");
    await this.exited;
  }

  /** Resident anonymous memory in bytes: what this process alone takes, without the pages of its executable. */
  anonymousMemory(): number {
    const kib = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, "utf8"))?.[1];
    if (kib === undefined)
      throw new Error(`${this.name} (${this.pid}) has no RssAnon in its /proc status: has it ended?`);
    return Number(kib) * 1024;
  }
}

/** Whether a process runs. One that has ended but was not reaped by its parent yet does not: it has no command line. */
export function isRunning(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8") !== "";
  } catch {
    return false;
  }
}

/** The last lines of a log, for messages. */
export function tail(text: string, lines = 20): string {
  return text.trimEnd().split("\n").slice(-lines).join("\n");
}

function environment(env: Env): Record<string, string> {
  const base = { PATH: process.env["PATH"] ?? "/usr/sbin:/usr/bin:/sbin:/bin", LANG: "C.UTF-8", ...env };
  return Object.fromEntries(Object.entries(base).filter((entry): entry is [string, string] => entry[1] !== undefined));
}
