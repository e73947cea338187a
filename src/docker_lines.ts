/** @module Streams of JSON lines, as Docker sends progress and events. */
import type { Readable } from "node:stream";
import { EngineError } from "./docker_errors.ts";

/** One line of a progress or event stream; Docker's are under 4 KiB. */
const MAX_LINE_CHARS = 1_048_576;

/** Parses a stream of JSON lines; `onLine` may throw to end it. Ends quietly when `signal` aborts. */
export function readLines(
  stream: Readable,
  { idleMs, signal }: { idleMs?: number; signal?: AbortSignal },
  onLine: (line: unknown) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const decoder = new TextDecoder();
    let rest = "";
    let timer: ReturnType<typeof setTimeout> | undefined;
    const finish = (error?: unknown) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      stream.removeAllListeners("data");
      stream.destroy();
      if (error === undefined) resolve();
      else reject(error);
    };
    const onAbort = () =>
      finish(new EngineError("aborted", "given up: the process stops or the work is not wanted any more"));
    const watchIdle = () => {
      clearTimeout(timer);
      if (idleMs === undefined) return;
      timer = setTimeout(() => finish(new EngineError("timeout", `no progress in ${idleMs / 1000} s`)), idleMs);
    };
    stream.on("data", (chunk: Uint8Array) => {
      watchIdle();
      rest += decoder.decode(chunk, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop() ?? "";
      try {
        for (const line of lines) if (line.trim() !== "") onLine(JSON.parse(line));
        if (rest.length > MAX_LINE_CHARS) throw new EngineError("other", "Docker sent a line without an end");
      } catch (error) {
        finish(error);
      }
    });
    stream.on("error", finish);
    stream.on("end", () => finish());
    stream.on("close", () => finish());
    watchIdle();
    if (signal?.aborted) onAbort();
    else signal?.addEventListener("abort", onAbort, { once: true });
  });
}
