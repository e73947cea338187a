/**
 * @module Real processes of the program on loopback, from the sources, without Docker: for tests of what only a whole process has,
 * such as its memory, its environment and its sockets. Owns their directories and ends them.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveBareEngine } from "./bare_engine.ts";
import { freePort } from "./entry_fixture.ts";
import { type Env, LabProcess } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

const MAIN = join(import.meta.dir, "..", "src", "main.ts");
/** A start from the sources takes a second on a quiet machine; tests share theirs. */
const START_TIMEOUT_MS = 30_000;

export type NodeProcess = { address: string; port: number; dataDir: string; process: LabProcess };

/** `hasEngine`: whether an Engine tells its id, which a node that joins waits for; absent: only such a node has one. */
type StartOptions = { port?: number; env?: Env; dataDir?: string; hasEngine?: boolean };

export class NodeProcesses {
  readonly #root = mkdtempSync(join(tmpdir(), "cacophony-process-"));
  readonly #processes: LabProcess[] = [];
  readonly #engines: { stop(): void }[] = [];

  newDir(): string {
    return mkdtempSync(join(this.#root, "data-"));
  }

  /** Starts `cacophony ARGS` and resolves once it answers. */
  async start(
    args: readonly string[],
    { env = {}, dataDir = this.newDir(), hasEngine = args[0] === "join", port: wanted }: StartOptions = {},
  ): Promise<NodeProcess> {
    const port = wanted ?? (await freePort());
    const address = `127.0.0.1:${port}`;
    const options = ["--bind-addr", address, "--data-dir", dataDir, "--docker-host", `unix://${dataDir}/none.sock`];
    if (hasEngine) this.#engines.push(serveBareEngine(`${dataDir}/none.sock`));
    const process = this.run([...args, ...options, "--log-format", "json", "--log-level", "warn"], env);
    await waitUntil(
      `${args[0]} to answer at ${address}`,
      async () => {
        if (!process.running) return "ended";
        const answer = await fetch(`http://127.0.0.1:${port}/healthz`, { proxy: false, keepalive: false });
        return answer.ok && "up";
      },
      { timeoutMs: START_TIMEOUT_MS },
    );
    if (!process.running) throw new Error(`the process has ended: ${process.logs()}`);
    return { address, port, dataDir, process };
  }

  /** Starts the program with these arguments alone. */
  run(args: readonly string[], env: Env = {}): LabProcess {
    const logFile = join(this.#root, `log-${this.#processes.length}`);
    const started = new LabProcess("cacophony", [process.execPath, MAIN, ...args], { logFile, env });
    this.#processes.push(started);
    return started;
  }

  /** Waits until a node that joined forwards what it is asked. */
  async untilMember({ port }: NodeProcess): Promise<void> {
    await waitUntil(
      "the node to be in session with the master",
      async () => (await fetch(`http://127.0.0.1:${port}/cluster/status`, { proxy: false, keepalive: false })).ok,
      { timeoutMs: START_TIMEOUT_MS },
    );
  }

  /** Ends all of them and removes what they wrote. */
  async stop(): Promise<void> {
    await Promise.all(this.#processes.map((one) => one.kill()));
    for (const engine of this.#engines) engine.stop();
    rmSync(this.#root, { recursive: true, force: true });
  }
}
