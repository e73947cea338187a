/**
 * @module A real master whose disk takes seconds for a commit: it answers meanwhile, and no node hangs up (point 7). The disk is slowed
 * for the one process by the block layer (blkio of cgroup v1), so the file systems of the data directory and of the rest are the same.
 */
import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, rmdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type NodeProcess, NodeProcesses } from "./node_process.ts";
import { waitUntil } from "./wait.ts";

const BLKIO = "/sys/fs/cgroup/blkio";
/** A commit writes 8 KiB or more, so it takes over 3 s: long enough for two heartbeats to go unanswered. */
const BYTES_PER_SECOND = 2_048;
const PROBE_MS = 20;
/** Of an answer of a process that shares two cores with other tests; what it took before was the whole commit. */
const ANSWER_MS = 1_000;

const processes = new NodeProcesses();
afterAll(() => processes.stop());

async function put({ address }: NodeProcess, image: string): Promise<{ status: number; ms: number }> {
  const began = performance.now();
  const body = JSON.stringify({ services: { web: { image } } });
  const response = await fetch(`http://${address}/cluster/job/job`, { method: "PUT", body, proxy: false });
  await response.text();
  return { status: response.status, ms: performance.now() - began };
}

/** Slows what a process writes to the disk that holds a directory; returns what ends that. */
function slow({ process, dataDir }: NodeProcess): () => Promise<void> {
  const group = join(BLKIO, `cacophony-test-${process.pid}`);
  const { dev } = statSync(dataDir);
  const limit = (bytes: number) =>
    writeFileSync(join(group, "blkio.throttle.write_bps_device"), `${(dev >> 8) & 0xfff}:${dev & 0xff} ${bytes}`);
  mkdirSync(group);
  limit(BYTES_PER_SECOND);
  writeFileSync(join(group, "cgroup.procs"), String(process.pid));
  return async () => {
    limit(0);
    writeFileSync(join(BLKIO, "cgroup.procs"), String(process.pid));
    await waitUntil("the group to be empty", () => (rmdirSync(group), true), { timeoutMs: 5_000 });
  };
}

test.skipIf(!existsSync(BLKIO))(
  "point 7: a disk that takes seconds for a commit keeps no answer and no session waiting",
  async () => {
    const master = await processes.start(["bootstrap"]);
    const workers = [await processes.start(["join", master.address]), await processes.start(["join", master.address])];
    for (const worker of workers) await processes.untilMember(worker);
    expect(await put(master, "image:1")).toMatchObject({ status: 201 });

    const restore = slow(master);
    let longest = 0;
    let isOver = false;
    const probe = async () => {
      while (!isOver) {
        const began = performance.now();
        await (await fetch(`http://${master.address}/cluster/status`, { proxy: false })).text();
        longest = Math.max(longest, performance.now() - began);
        await Bun.sleep(PROBE_MS);
      }
    };
    const probed = probe();
    try {
      const { status, ms } = await put(master, "image:2");
      expect(status).toBe(200);
      // Else the disk was not slow, and nothing is shown.
      expect(ms).toBeGreaterThan(3_000);
    } finally {
      isOver = true;
      await probed;
      await restore();
    }
    expect(longest).toBeLessThan(ANSWER_MS);
    for (const { process } of [...workers, master]) expect(process.logs()).not.toContain("ended");
  },
  60_000,
);
