/** @module Which images a node removes when it is told to remove unused ones, on an engine in memory. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Executor } from "../src/executor.ts";
import { silentLog } from "../src/log.ts";
import type { AssignedImage, Assignments } from "../src/model.ts";
import { noOverlay, spec } from "./cluster_fixture.ts";
import { FakeEngine } from "./fake_engine.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

// Days pass here, with a look at the engine every 30 s.
setDefaultTimeout(30_000);

const HOUR_MS = 3_600_000;
const OWNER = { clusterId: "cluster", nodeId: "node" };
const dirs: string[] = [];
afterAll(() => {
  for (const dir of dirs) rmSync(dir, { recursive: true, force: true });
});

class Node {
  readonly clock = new VirtualClock();
  readonly engine = new FakeEngine({ clock: this.clock, random: seededRandom(1) });
  readonly dataDir = mkdtempSync(join(tmpdir(), "image-gc-test-"));
  executor: Executor;
  #revision = 0;

  constructor({ gc = true }: { gc?: boolean } = {}) {
    dirs.push(this.dataDir);
    for (const name of ["app:1", "app:2"]) this.engine.registry.set(name, "found");
    this.executor = this.#make(gc);
  }

  #make(gc: boolean): Executor {
    const executor = new Executor({
      engine: this.engine,
      meter: { read: () => undefined, routes: () => [] },
      clock: this.clock,
      random: seededRandom(2),
      log: silentLog,
      dataDir: this.dataDir,
      overlay: noOverlay(),
      fetchChunk: () => Promise.reject(new Error("no files here")),
      onChange: () => {},
      seenTerm: 1,
      ...(gc && { imageGcMs: 24 * HOUR_MS }),
    });
    void executor.start();
    executor.adopt(OWNER);
    return executor;
  }

  async restart({ gc }: { gc: boolean }): Promise<void> {
    void this.executor.stop();
    this.executor = this.#make(gc);
    await this.clock.advance(100);
  }

  /** Has the node run one allocation of each image, by the allocation's id; waits until all run. */
  async run(images: Record<string, string>, settled: AssignedImage[] = []): Promise<void> {
    const common = { job_id: "job", incarnation: "1", service_name: "web", slot: 1, node_id: OWNER.nodeId };
    const assignments: Assignments = {
      type: "assignments",
      order: { term: 1, revision: ++this.#revision },
      specs: Object.values(images).map((image) => ({ spec_hash: image, spec: spec({ image }) })),
      allocations: Object.entries(images).map(([allocation_id, image]) => ({
        ...common,
        allocation_id,
        spec_hash: image,
        job_version: 1,
        desired: "run",
        created_at: 0,
      })),
      removals: [],
      images: settled,
    };
    this.executor.assign(assignments);
    const ids = Object.keys(images);
    await this.clock.until(() => Bun.deepEquals(this.running(), ids.toSorted()), {
      limitMs: HOUR_MS,
      describe: () => this.executor.snapshot() ?? "no snapshot",
    });
  }

  running(): string[] {
    const all = this.executor.snapshot()?.allocations ?? [];
    return all.map(({ allocation_id, state }) => (state === "running" ? allocation_id : state)).toSorted();
  }

  hours(count: number): Promise<void> {
    return this.clock.advance(count * HOUR_MS);
  }

  get images(): string[] {
    return [...this.engine.images].toSorted();
  }
}

const APP = ["app:1", "app@sha256:app-1"];

test("an image that was pulled here goes with its names when nothing used it for the time that was told", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  expect(node.images).toEqual([...APP, "busybox:latest"]);
  await node.hours(30);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
  await node.run({});
  await node.hours(23);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
  await node.hours(2);
  expect(node.images).toEqual(["busybox:latest"]);
});

test("without the option none goes, and with it later the time counts from then on", async () => {
  const node = new Node({ gc: false });
  await node.run({ a: "app:1" });
  await node.run({});
  await node.hours(30);
  await node.restart({ gc: true });
  await node.run({});
  await node.hours(23);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
  await node.hours(2);
  expect(node.images).toEqual(["busybox:latest"]);
});

test("an image that was here before, or that has got another name since, is not ours to remove", async () => {
  const node = new Node();
  node.engine.images.add("app:2");
  await node.run({ a: "app:1", b: "app:2", c: "busybox:latest" });
  node.engine.images.add("mine:1");
  node.engine.digests.set("mine:1", "sha256:app-1");
  await node.run({});
  await node.hours(30);
  expect(node.images).toEqual(["app:1", "app:2", "app@sha256:app-1", "busybox:latest", "mine:1"]);
});

test("an image that somebody else's container is made of stays until that is gone", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  const id = node.engine.runByHand({ name: "theirs", image: "app:1" });
  await node.run({});
  await node.hours(30);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
  node.engine.removeByHand(id);
  await node.hours(26);
  expect(node.images).toEqual(["busybox:latest"]);
});

test("an image that is assigned stays though nothing of it ran for long", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  const held: Assignments = {
    type: "assignments",
    order: { term: 1, revision: 100 },
    specs: [{ spec_hash: "x", spec: spec({ image: "app:1" }) }],
    allocations: [],
    removals: [],
  };
  node.executor.assign(held);
  await node.hours(30);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
});

test("a version that its tag has left stays while it is settled, and goes without the one that has the tag", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  node.engine.registryDigests.set("app:1", "sha256:new");
  const settled = [{ allocation_id: "b", digest: "sha256:new", refresh: true }];
  await node.run({ b: "app:1" }, settled);
  const both = ["app:1", "app@sha256:app-1", "app@sha256:new", "busybox:latest"];
  expect(node.images).toEqual(both);
  await node.run({ c: "app:1" }, [{ allocation_id: "c", digest: "sha256:app-1", refresh: false }]);
  await node.hours(30);
  expect(node.images).toEqual(both);
  await node.run({ d: "app:1" });
  await node.hours(26);
  expect(node.images).toEqual(["app:1", "app@sha256:new", "busybox:latest"]);
});

test("nothing goes while the node has no assignments", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  await node.run({});
  await node.restart({ gc: true });
  await node.hours(30);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
  await node.run({});
  await node.hours(26);
  expect(node.images).toEqual(["busybox:latest"]);
});

test("a process that is killed remembers what it pulled, and a damaged list means that images are kept", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  const path = join(node.dataDir, "images.json");
  const list = readFileSync(path, "utf8");
  expect(JSON.parse(list)).toEqual({ engine_id: "ENGINE", images: [{ id: "id of sha256:app-1", names: APP }] });
  writeFileSync(path, list.slice(0, -3));
  await node.restart({ gc: true });
  await node.run({});
  await node.hours(30);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
});

test("what was pulled into another engine is not looked for in this one", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  await node.run({});
  const path = join(node.dataDir, "images.json");
  writeFileSync(path, readFileSync(path, "utf8").replace("ENGINE", "ANOTHER"));
  await node.restart({ gc: true });
  await node.run({});
  await node.hours(30);
  expect(node.images).toEqual([...APP, "busybox:latest"]);
  await node.run({ b: "app:2" });
  expect(JSON.parse(readFileSync(path, "utf8"))).toEqual({
    engine_id: "ENGINE",
    images: [{ id: "id of sha256:app-2", names: ["app:2", "app@sha256:app-2"] }],
  });
});

test("an engine that does not answer for a while keeps nothing from going later", async () => {
  const node = new Node();
  await node.run({ a: "app:1" });
  await node.run({});
  node.engine.goDown();
  await node.hours(30);
  node.engine.comeUp();
  await node.hours(26);
  expect(node.images).toEqual(["busybox:latest"]);
});
