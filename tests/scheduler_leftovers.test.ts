/** @module What is left of deleted jobs and of nodes that left: nothing that grows (point 10 of section 1). */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLog } from "../src/log.ts";
import type { Change, JobRecord } from "../src/model.ts";
import { Scheduler } from "../src/scheduler.ts";
import { openSqliteStore } from "../src/store.ts";
import { seeded, unusedSealer } from "./cluster_fixture.ts";
import { Master, Peer } from "./master_fixture.ts";
import { VirtualClock } from "./virtual_clock.ts";

const SERVICE = { web: { image: "busybox", scale: 2 } };
const root = mkdtempSync(join(tmpdir(), "cacophony-leftovers-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("deleted jobs", () => {
  test("leave one version floor of the cluster, above which new jobs begin, also at the next master", async () => {
    const master = await Master.start();
    const version = async (jobId: string) => (await master.put(jobId, SERVICE)).job.version;
    expect([await version("a"), await version("b")]).toEqual([1, 1]);
    for (let n = 0; n < 20; n++) {
      await master.put(`short-${n}`, SERVICE);
      await master.delete(`short-${n}`);
    }
    // Each began above the one that was deleted before.
    expect(master.scheduler.cluster.version_floor).toBe(40);
    expect([...master.scheduler.state.jobs.keys()]).toEqual(["a", "b"]);
    expect(await version("c")).toBe(41);
    await master.restart();
    expect([...master.scheduler.state.jobs.keys()]).toEqual(["a", "b", "c"]);
    expect(await version("short-3")).toBe(41);
    // Those that live go on with versions of their own, and lower nothing when they go.
    const { job } = await master.put("a", { web: { image: "redis" } });
    expect(job.version).toBe(2);
    await master.delete("a");
    expect(await version("a")).toBe(41);
  });

  test("still keep a new job of their id waiting for their containers and volumes", async () => {
    const master = await Master.start();
    const node = await Peer.join(master, 1);
    await master.put("a", SERVICE);
    await node.report();
    await master.delete("a", { volumes: true });
    await master.put("a", SERVICE);
    const blocked = () => master.scheduler.blockedOf("a/web").flatMap(({ reasons }) => reasons);
    expect(blocked()[0]).toContain("the containers of the deleted job with this id");
    await master.restart();
    await node.dial();
    await node.report({ 1: undefined, 2: undefined });
    await master.clock.advance(100);
    expect(blocked()[0]).toContain("to remove the volumes of the deleted job with this id");
    node.removalsDone = node.removals;
    await node.report();
    await master.clock.advance(100);
    expect([blocked(), master.scheduler.state.allocationsOf("a/web").length]).toEqual([[], 2]);
  });

  test("of an earlier version of Cacophony are put into the floor at the next start, in the Store, too", async () => {
    const path = join(root, "cluster.db");
    const store = openSqliteStore(path);
    const deleted = (job_id: string, version: number): Change => {
      const record: JobRecord = { state: "deleted", job_id, version };
      return { op: "put", kind: "job", record };
    };
    const cluster = { cluster_id: "c", created_at: 0, network_mode: "vxlan" as const, network_cidr: "10.213.0.0/16" };
    await store.commit(await store.beginTerm(), [
      { op: "put", kind: "cluster", record: cluster },
      deleted("a", 7),
      deleted("b", 30),
      deleted("c", 2),
    ]);
    await store.close();
    const common = { clock: new VirtualClock(), random: seeded(1), log: silentLog, sealer: unusedSealer };
    const scheduler = new Scheduler({ ...common, store: openSqliteStore(path), newId: () => "i", onFenced: () => {} });
    await scheduler.start(cluster);
    expect([scheduler.state.jobs.size, scheduler.cluster.version_floor]).toEqual([0, 30]);
    const wanted = { document: "{}", services: [] };
    expect((await scheduler.putJob("a", { wanted, preconditions: {} })).job.version).toBe(31);
    await scheduler.stop();
    const { job, cluster: clusters } = await openSqliteStore(path).load();
    expect([job.map(({ job_id }) => job_id), clusters[0]?.version_floor]).toEqual([["a"], 30]);
  });
});

describe("allocations that stopped", () => {
  test.each([
    ["as their node proves", async (_: Master, node: Peer) => node.report({ 1: undefined, 2: undefined })],
    [
      "with their node, which is down and is removed",
      async (master: Master, node: Peer) => {
        await node.hangUp();
        await master.clock.advance(40_000);
        await master.scheduler.removeNode("n1", {});
      },
    ],
  ])("are remembered by nobody when their records go %s", async (_, go) => {
    // A map that nobody else can look into: it is found among the fields by what it holds.
    const made: Map<unknown, unknown>[] = [];
    const master = await Master.start();
    const node = await Peer.join(master, 1);
    await master.put("a", SERVICE);
    await node.report();
    const ids = node.assigned.map(({ allocation_id }) => allocation_id);
    expect(ids.length).toBe(2);
    const set = Map.prototype.set;
    const spy = function (this: Map<unknown, unknown>, key: unknown, value: unknown) {
      if (typeof key === "string" && ids.includes(key) && typeof value === "number") made.push(this);
      return set.call(this, key, value);
    };
    Object.defineProperty(Map.prototype, "set", { value: spy, configurable: true, writable: true });
    try {
      await master.delete("a");
    } finally {
      Object.defineProperty(Map.prototype, "set", { value: set, configurable: true, writable: true });
    }
    expect(new Set(made).size).toBe(1);
    expect(made[0]?.size).toBe(2);
    await go(master, node);
    await master.clock.advance(100);
    expect([made[0]?.size, master.scheduler.state.allocations.size]).toEqual([0, 0]);
  });
});
