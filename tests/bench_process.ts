/** @module Processes and figures for the benchmarks: `dist/cacophony` on loopback with a fresh data directory and no Docker. A tool. */
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { serveBareEngine } from "./bare_engine.ts";
import { freePort } from "./entry_fixture.ts";

export const EXECUTABLE = join(import.meta.dir, "..", "dist/cacophony");
/** A start or an answer that takes longer has failed. */
const ANSWER_TIMEOUT_MS = 10_000;

export type BenchProcess = { address: string; startedMs: number; pid: number; stop: () => Promise<void> };

/** Starts `cacophony ARGS` and resolves with its first answer; `dir` is a directory for what it keeps. */
export async function startProcess(dir: string, args: readonly string[]): Promise<BenchProcess> {
  const address = `127.0.0.1:${await freePort()}`;
  const dataDir = mkdtempSync(join(dir, "node-"));
  const engine = args[0] === "join" ? serveBareEngine(`${dataDir}/none.sock`) : undefined;
  const options = {
    "bind-addr": address,
    "data-dir": dataDir,
    "docker-host": `unix://${dataDir}/none.sock`,
    "log-level": "error",
  };
  const given = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]);
  const started = performance.now();
  const child = Bun.spawn([EXECUTABLE, ...args, ...given], { env: {}, stdout: "ignore", stderr: "inherit" });
  const stop = async () => {
    child.kill("SIGTERM");
    await child.exited;
    engine?.stop();
  };
  try {
    await untilAnswers(`http://${address}/healthz`, () => child.exitCode === null);
  } catch (error) {
    await stop();
    throw error;
  }
  return { address, startedMs: performance.now() - started, pid: child.pid, stop };
}

/** Resolves with the first good answer. */
export async function untilAnswers(url: string, isAlive: () => boolean = () => true): Promise<void> {
  const end = performance.now() + ANSWER_TIMEOUT_MS;
  const asked = () =>
    fetch(url).then(
      async (response) => (await response.arrayBuffer(), response.ok),
      () => false,
    );
  while (!(await asked())) {
    if (!isAlive()) throw new Error(`what was to answer at ${url} has ended`);
    if (performance.now() > end) throw new Error(`${url} did not answer within ${ANSWER_TIMEOUT_MS} ms`);
    await Bun.sleep(1);
  }
}

export function median(times: readonly number[]): number {
  return percentile(times, 0.5);
}

/** The value that `share` of all (0 to 1) do not exceed. */
export function percentile(times: readonly number[], share: number): number {
  const sorted = times.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
