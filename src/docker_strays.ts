/**
 * @module Processes of a container that its Engine has lost sight of.
 *
 * A dockerd that is killed while it starts a container leaves that container's shim behind, sometimes with the program running
 * in it. The next dockerd takes the container for one that never started: it can neither start nor stop it, and removing it
 * leaves the processes (seen with 20.10: "task …: already exists", "id already in use"). Docker's API has no call for that, so
 * the processes are ended here, found by the container's id in their shim's command line. Elsewhere than on the Engine's own
 * machine, and without the right to see or end them, this finds nothing.
 */
import { readdirSync, readFileSync } from "node:fs";
import { basename } from "node:path";

/** Ends what runs of a container that does not run, as Docker says; returns the number of shims that were found. */
export function endStrays(containerId: string): number {
  // A full id only: part of one could be another container's, too.
  if (!/^[0-9a-f]{64}$/.test(containerId)) return 0;
  const shims = numbers("/proc").filter((pid) => isShimOf(pid, containerId));
  for (const shim of shims) {
    // The first process of a PID namespace takes all others in it along.
    for (const child of childrenOf(shim)) end(child);
    end(shim);
  }
  return shims.length;
}

/** containerd starts it as `containerd-shim-runc-v2 -namespace moby -id ID -address SOCKET`. */
function isShimOf(pid: number, containerId: string): boolean {
  const [program = "", ...args] = text(`/proc/${pid}/cmdline`).split("\0");
  return basename(program).startsWith("containerd-shim") && args[args.indexOf("-id") + 1] === containerId;
}

function childrenOf(pid: number): number[] {
  return numbers(`/proc/${pid}/task`).flatMap((thread) =>
    text(`/proc/${pid}/task/${thread}/children`).split(" ").filter(Boolean).map(Number),
  );
}

function end(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It ended by itself, or is not ours to end.
  }
}

/** The entries of a directory that are numbers, as processes are under /proc; none where it cannot be read. */
export function numbers(dir: string): number[] {
  try {
    return readdirSync(dir).map(Number).filter(Number.isInteger);
  } catch {
    return [];
  }
}

/** The content of a file; empty where the process has ended meanwhile. */
export function text(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
