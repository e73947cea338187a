/** @module Commands that the kernel's network is seen and changed by: run with a timeout, and errors that name them. */

/** What a command may take, in milliseconds: most take some ten, and `iptables-restore` waits 5 s for its lock. */
const TIMEOUT_MS = 15_000;
/** Where Debian and others have these commands, which the PATH of a service may leave out. */
const SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin";
/** Errors may quote a batch line by line; a person needs the first ones. */
const MAX_SAID = 1_000;

/** A command is missing, failed, did not end, or wrote what nobody understands. */
export class CommandError extends Error {
  readonly code: "missing" | "failed" | "timeout" | "garbled";
  /** What the command wrote about it, where it ran. */
  readonly stderr: string;
  constructor(code: CommandError["code"], message: string, stderr = "") {
    super(message);
    this.name = "CommandError";
    this.code = code;
    this.stderr = stderr;
  }
}

export interface CommandRunner {
  /**
   * Runs `argv` to its end, gives it `input`, and returns what it wrote to standard output; with `until` as soon as that has
   * this text, and however the command ends then.
   * @throws {CommandError}
   */
  run(argv: readonly string[], options?: { input?: string; until?: string }): Promise<string>;
}

/** Runs commands found in `searchPath` (as in PATH) or in the system's own places; `enter` is put in front of each. */
export function commandRunner({
  searchPath,
  enter = [],
  timeoutMs = TIMEOUT_MS,
}: {
  searchPath: string;
  enter?: readonly string[];
  timeoutMs?: number;
}): CommandRunner {
  const path = [searchPath, SYSTEM_PATH].filter((part) => part !== "").join(":");
  return { run: (argv, { input = "", until } = {}) => run(argv, { input, until, path, enter, timeoutMs }) };
}

type Run = { input: string; until: string | undefined; path: string; enter: readonly string[]; timeoutMs: number };

async function run(argv: readonly string[], { input, until, path, enter, timeoutMs }: Run): Promise<string> {
  const [name = "", ...args] = argv;
  const program = Bun.which(name, { PATH: path });
  if (program === null) throw new CommandError("missing", `the command ${name} is not installed on this machine`);
  const child = Bun.spawn([...enter, program, ...args], {
    // Messages are read by us and by people: in English, without colours.
    env: { PATH: path, LC_ALL: "C", NO_COLOR: "1" },
    stdin: new Blob([input]),
    stdout: "pipe",
    stderr: "pipe",
    timeout: timeoutMs,
    killSignal: "SIGKILL",
  });
  const seen = Promise.withResolvers<string>();
  const output = Promise.all([
    until === undefined ? child.stdout.text() : textOf(child.stdout, { until, onSeen: seen.resolve }),
    child.stderr.text(),
  ]);
  output.catch(() => {});
  const early = await Promise.race([seen.promise, child.exited.then(() => undefined)]);
  if (early !== undefined) return early;
  const { exitCode } = child;
  const command = `"${argv.join(" ")}"`;
  // What it wrote is not waited for: a child of its own may live on and keep its output open.
  if (child.signalCode === "SIGKILL") throw new CommandError("timeout", `${command} did not end in ${timeoutMs} ms`);
  const [stdout, stderr] = await output;
  if (exitCode !== 0) {
    const said = (stderr.trim() || stdout.trim()).slice(0, MAX_SAID);
    throw new CommandError("failed", `${command} failed (exit code ${exitCode}): ${said}`, stderr);
  }
  return stdout;
}

async function textOf(
  stream: ReadableStream<Uint8Array>,
  { until, onSeen }: { until: string; onSeen: (text: string) => void },
): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of stream) {
    text += decoder.decode(bytes, { stream: true });
    if (text.includes(until)) onSeen(text);
  }
  return text;
}
