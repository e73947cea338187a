/** @module Real nodes whose data directories are on a disk without room: a tmpfs that is filled up (point 8). */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "./entry_fixture.ts";
import { mustRun } from "./lab_process.ts";
import { type NodeProcess, NodeProcesses } from "./node_process.ts";
import { waitUntil } from "./wait.ts";

const processes = new NodeProcesses();
const disk = mkdtempSync(join(tmpdir(), "cacophony-full-"));
const ballast = join(disk, "ballast");

beforeAll(async () => {
  await mustRun(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]);
});

afterAll(async () => {
  await processes.stop();
  await mustRun(["umount", disk]);
  rmSync(disk, { recursive: true });
});

/** Takes all the room that there is. */
function fill(): void {
  const file = openSync(ballast, "a");
  const block = Buffer.alloc(4_096, 1);
  try {
    for (;;) writeSync(file, block);
  } catch (error) {
    expect((error as { code?: string }).code).toBe("ENOSPC");
  } finally {
    closeSync(file);
  }
}

function dirFor(name: string): string {
  const dir = join(disk, name);
  mkdirSync(dir);
  return dir;
}

async function ask({ address }: NodeProcess, path: string, init: RequestInit = {}) {
  const response = await fetch(`http://${address}${path}`, { ...init, proxy: false });
  const text = await response.text();
  return { status: response.status, body: JSON.parse(text) };
}

function put(node: NodeProcess, image: string) {
  return ask(node, "/cluster/job/job", { method: "PUT", body: JSON.stringify({ services: { web: { image } } }) });
}

async function storeReasons(node: NodeProcess): Promise<string[]> {
  const { reasons } = (await ask(node, "/readyz")).body as { reasons: string[] };
  return reasons.filter((reason) => /cluster state/.test(reason));
}

test("point 8: nodes start on a full disk, the master answers reads and keeps its members, and goes on when there is room", async () => {
  const [dataDir, other] = [dirFor("master"), dirFor("worker")];
  let master = await processes.start(["bootstrap"], { dataDir });
  let worker = await processes.start(["join", master.address], { dataDir: other });
  await processes.untilMember(worker);
  expect((await put(master, "image:1")).status).toBe(201);
  const { term } = (await ask(master, "/cluster/status")).body;

  // While it runs: what is to be changed is refused with the reason, and taken when there is room.
  fill();
  // What is there of the log may have room for one more change.
  const refused = await waitUntil("a change to be refused", () => put(master, `image:${Math.random()}`), {
    until: ({ status }) => status !== 200,
    timeoutMs: 20_000,
  });
  expect(refused).toMatchObject({ status: 503, body: { error: { code: "store_failed" } } });
  expect(refused.body.error.message).toMatch(/full|room/);
  expect(await storeReasons(master)).toHaveLength(1);
  rmSync(ballast);
  expect((await put(master, "image:2")).status).toBe(200);
  expect(await storeReasons(master)).toEqual([]);

  // Both start where nothing can be written at all, once and again.
  for (let start = 0; start < 2; start++) {
    // One that ends well leaves no log, in which there might be room.
    await (start === 0 ? master.process.stop() : master.process.kill());
    await worker.process.kill();
    fill();
    master = await processes.start([], { dataDir, port: master.port });
    worker = await processes.start([], { dataDir: other, port: worker.port });
    await processes.untilMember(worker);
    expect((await ask(worker, "/cluster/job/job")).body.document).toMatchObject({
      services: { web: { image: "image:2" } },
    });
    expect(await put(worker, "image:3")).toMatchObject({ status: 503, body: { error: { code: "store_failed" } } });
    const status = (await ask(worker, "/cluster/status")).body;
    // A term that is not on the disk is not told to anybody: the next start may begin it, too.
    expect(status).toMatchObject({ term, nodes: { unready: 2, down: 0 } });
    expect(status.store_fault).toMatch(/could not begin its term: .*(full|make room)/);
    expect(await storeReasons(master)).toHaveLength(1);
  }

  rmSync(ballast);
  const now = await waitUntil("the master to go on", () => ask(master, "/cluster/status"), {
    until: ({ body }) => body.store_fault === null,
    timeoutMs: 20_000,
  });
  expect(now.body.term).toBe(term + 1);
  await processes.untilMember(worker);
  expect((await put(worker, "image:4")).status).toBe(200);
  expect(worker.process.running && master.process.running).toBe(true);
}, 120_000);

test("point 8: a new node, and a new cluster, say that there is no room for them", async () => {
  const dirs = [dirFor("new-master"), dirFor("new-worker")];
  fill();
  try {
    const commands = [["bootstrap"], ["join", "127.0.0.1:1"]];
    for (const [n, args] of commands.entries()) {
      const address = `127.0.0.1:${await freePort()}`;
      const failed = processes.run([...args, "--bind-addr", address, "--data-dir", dirs[n] ?? ""]);
      expect([args[0], await failed.exited]).not.toEqual([args[0], 0]);
      expect(failed.logs()).toMatch(/ENOSPC|no space|full/i);
    }
  } finally {
    rmSync(ballast);
  }
}, 60_000);
