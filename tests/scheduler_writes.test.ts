/** @module What the Scheduler makes of a disk that fails: outcomes that are not known, a term that can't be begun, no answer. */
import { expect, test } from "bun:test";
import { ClusterState } from "../src/cluster_state.ts";
import { type Log, silentLog } from "../src/log.ts";
import type { Change } from "../src/model.ts";
import { Writes } from "../src/scheduler_writes.ts";
import { openSqliteStore, type Store, StoreError } from "../src/store.ts";
import { seeded, spec } from "./cluster_fixture.ts";
import { Master, Peer } from "./master_fixture.ts";
import { VirtualClock } from "./virtual_clock.ts";

const fenced = () => {};

/** One change of a record of any kind that is loaded into the state; `n` makes its contents differ. */
function change(random: () => number, n: number): Change {
  const key = `k${Math.floor(random() * 3)}`;
  const slot = { job_id: key, service_name: "s", slot: 1 };
  const puts: Change[] = [
    { op: "put", kind: "spec", record: { spec_hash: key, spec: spec({ image: `image:${n}` }) } },
    { op: "put", kind: "secret", record: { secret_id: key, sealed: `sealed ${n}` } },
    { op: "put", kind: "chunk", record: { chunk_hash: key, data: `data ${n}` } },
    { op: "put", kind: "home", record: { ...slot, node_id: `n${n}` } },
    { op: "put", kind: "history", record: { ...slot, past: [] } },
    { op: "put", kind: "removal", record: { removal_id: key, node_id: `n${n}`, job_id: "j" } },
    { op: "put", kind: "job", record: { state: "deleted", job_id: key, version: n } },
  ];
  const put = puts[Math.floor(random() * puts.length)];
  if (!put || put.op !== "put") throw new Error("there is a change of each number");
  if (random() < 0.7) return put;
  const ofSlot = put.kind === "home" || put.kind === "history";
  return { op: "delete", kind: put.kind, key: ofSlot ? JSON.stringify([key, "s", 1]) : key };
}

function contents(state: ClusterState) {
  const { specs, secrets, chunks, homes, removals, jobs } = state;
  const all = { specs, secrets, chunks, homes, removals, jobs };
  const histories = ["k0", "k1", "k2"].flatMap((job_id) => state.histories(`${job_id}/s`));
  return structuredClone({ ...all, histories });
}

async function loaded(store: Store): Promise<ClusterState> {
  const state = new ClusterState();
  const stored = await store.load();
  for (const [kind, records] of Object.entries(stored))
    state.apply((records as object[]).map((record) => ({ op: "put", kind, record }) as Change));
  return state;
}

test("point 7: memory agrees with the disk after each commit that succeeds, whatever became of those that may have been written", async () => {
  for (let seed = 1; seed <= 30; seed++) {
    const random = seeded(seed);
    const disk = openSqliteStore(":memory:");
    const term = await disk.beginTerm();
    const state = new ClusterState();
    const store: Store = {
      ...disk,
      commit: async (of, changes) => {
        const isUnknown = random() < 0.4;
        if (!isUnknown || random() < 0.5) await disk.commit(of, changes);
        if (isUnknown) throw new StoreError("unknown", "the disk did not say");
      },
    };
    const writes = new Writes({ store, state, clock: new VirtualClock(), log: silentLog });
    for (let n = 1; n <= 60; n++) {
      const changes = Array.from({ length: 1 + Math.floor(random() * 3) }, () => change(random, n));
      const failed = await writes.commit(term, changes, { fenced }).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (failed) expect(failed).toMatchObject({ code: "store_failed" });
      else {
        state.apply(changes);
        expect([seed, n, contents(await loaded(disk))]).toEqual([seed, n, contents(state)]);
      }
      expect(writes.isUnsure).toBe(failed !== undefined);
    }
    await disk.close();
  }
});

test("point 7: a change that may have been written is taken back soon, also where nothing else is to be changed", async () => {
  let inner: Store | undefined;
  let isBroken = false;
  const disk = (store: Store): Store => {
    inner = store;
    return {
      beginTerm: (seen) => store.beginTerm(seen),
      load: () => store.load(),
      close: () => store.close(),
      commit: async (term, changes) => {
        await store.commit(term, changes);
        if (isBroken) throw new StoreError("unknown", "fsync failed");
      },
    };
  };
  const master = await Master.start("10.213.0.0/16", { disk });
  await master.put("first", { web: { image: "a:1" } });
  isBroken = true;
  const put = master.put("second", { web: { image: "a:1" } });
  expect(put).rejects.toMatchObject({ code: "store_failed", message: expect.stringContaining("fsync failed") });
  await put.catch(() => {});
  expect(master.scheduler.writes.fault).toContain("fsync failed");
  expect(master.scheduler.state.liveJob("second")).toBeUndefined();
  expect((await inner?.load())?.job.map(({ job_id }) => job_id)).toEqual(["first", "second"]);
  isBroken = false;
  await master.clock.advance(2_000);
  expect((await inner?.load())?.job.map(({ job_id }) => job_id)).toEqual(["first"]);
  expect(master.scheduler.writes.fault).toBeUndefined();
  master.membership.stop();
  await master.scheduler.stop();
});

test("point 8: a term that can't be begun is begun later; until then nodes stay members and are told nothing to do", async () => {
  let isFull = false;
  const disk = (store: Store): Store => {
    const unlessFull = async <T>(work: () => Promise<T>) => {
      if (isFull) throw new StoreError("failed", "the disk is full");
      return work();
    };
    return {
      last: async () => (await store.last?.()) ?? { term: 0 },
      load: () => store.load(),
      close: () => store.close(),
      beginTerm: (seen) => unlessFull(() => store.beginTerm(seen)),
      commit: (term, changes) => unlessFull(() => store.commit(term, changes)),
    };
  };
  const master = await Master.start("10.213.0.0/16", { disk });
  const peer = await Peer.join(master, 1);
  await master.put("job", { web: { image: "a:1" } });
  expect(peer.assigned).toHaveLength(1);

  isFull = true;
  // Twice: what one start did with a term that it could not write must not be in the way of the next.
  for (let start = 0; start < 2; start++) {
    await master.restart();
    const { scheduler } = master;
    expect(scheduler.term).toBe(1);
    expect(scheduler.writes.fault).toContain("the disk is full");
    peer.clusterId = "c";
    // Its name is new, which can't be written: it is a member all the same.
    peer.address = "10.0.0.77:9000";
    await peer.dial();
    expect(peer.heard.map(({ type }) => type)).toContain("welcome");
    expect(peer.heard.map(({ type }) => type)).not.toContain("assignments");
    expect(peer.heard.find(({ type }) => type === "welcome")).toMatchObject({ term: 1 });
    expect(() => scheduler.writes.check()).toThrow(/the disk is full/);
    expect(master.put("other", { web: { image: "a:1" } })).rejects.toMatchObject({ code: "store_failed" });
    await master.clock.advance(5_000);
    await peer.report();
    expect(scheduler.state.views.get("n1")?.state).not.toBe("down");
    expect(peer.isConnected).toBe(true);
  }

  isFull = false;
  await master.clock.advance(3_000);
  expect([master.scheduler.term, master.scheduler.writes.fault]).toEqual([2, undefined]);
  // It was welcomed in the earlier term, and comes again.
  expect(peer.isConnected).toBe(false);
  await peer.dial();
  expect(peer.heard.find(({ type }) => type === "welcome")).toMatchObject({ term: 2 });
  expect(peer.heard.find(({ type }) => type === "assignments")).toMatchObject({ order: { term: 2 } });
  expect(peer.assigned).toHaveLength(1);
  expect(master.scheduler.state.nodes.get("n1")?.address).toBe("10.0.0.77:9000");
  await master.put("other", { web: { image: "a:1" } });
  master.membership.stop();
  await master.scheduler.stop();
});

test("point 8: what a master does when its term begins late is done alone: a DELETE meanwhile lowers no version", async () => {
  let isFull = false;
  let gate = Promise.resolve();
  const disk = (store: Store): Store => ({
    last: async () => (await store.last?.()) ?? { term: 0 },
    load: () => store.load(),
    close: () => store.close(),
    beginTerm: async (seen) => {
      if (isFull) throw new StoreError("failed", "the disk is full");
      return store.beginTerm(seen);
    },
    commit: async (term, changes) => {
      await gate;
      return store.commit(term, changes);
    },
  });
  const master = await Master.start("10.213.0.0/16", { disk });
  await master.put("job", { web: { image: "a:1" } });
  // What an earlier version left of a job that was deleted.
  await master.scheduler.change(() => [
    { op: "put", kind: "job", record: { state: "deleted", job_id: "old", version: 50 } },
  ]);
  isFull = true;
  await master.restart();
  isFull = false;
  const { promise, resolve } = Promise.withResolvers<void>();
  gate = promise;
  await master.clock.advance(3_000);
  expect(master.scheduler.writes.isHeld).toBe(false);
  const deleted = master.delete("job");
  await master.clock.advance(20);
  resolve();
  await deleted;
  expect([...master.scheduler.state.jobs.keys()]).toEqual([]);
  expect(master.scheduler.cluster.version_floor).toBe(50);
  expect((await master.put("new", { web: { image: "a:1" } })).job.version).toBe(51);
  master.membership.stop();
  await master.scheduler.stop();
});

test("point 8: what cannot be written is not told so often that the log fills the disk, too", async () => {
  let [isFull, placesFit] = [false, true];
  const disk = (store: Store): Store => ({
    beginTerm: (seen) => store.beginTerm(seen),
    load: () => store.load(),
    close: () => store.close(),
    commit: async (term, changes) => {
      const isPlacing = changes.some(({ kind, op }) => kind === "allocation" && op === "put");
      if (isFull || (isPlacing && !placesFit)) throw new StoreError("failed", "the disk is full");
      return store.commit(term, changes);
    },
  });
  const told: string[] = [];
  const log: Log = { ...silentLog, error: (message) => void told.push(message) };
  const master = await Master.start("10.213.0.0/16", { disk, log });
  const peers = [await Peer.join(master, 1), await Peer.join(master, 2)];
  await master.put("job", { web: { image: "a:1", scale: 2 } });
  for (const peer of peers) await peer.report();
  await master.delete("job");
  placesFit = false;
  await master.put("next", { web: { image: "a:1", scale: 1 } });
  isFull = true;
  for (const peer of peers) await peer.obey();
  await master.clock.advance(60_000);
  const ofPasses = told.filter((message) => message.includes("a scheduling pass failed"));
  expect(ofPasses.length).toBeGreaterThan(0);
  expect(ofPasses.length).toBeLessThan(3);
  const ofReports = told.filter((message) => message.includes("what a node reported could not be stored"));
  expect(ofReports.length).toBeGreaterThan(0);
  expect(ofReports.length).toBeLessThan(20);
  [isFull, placesFit] = [false, true];
  await master.clock.advance(2_000);
  expect(master.scheduler.state.allocations.size).toBe(0);
  master.membership.stop();
  await master.scheduler.stop();
});

test("point 8: a new cluster does not start on a disk that takes no term", async () => {
  const disk = (store: Store): Store => ({
    last: async () => ({ term: 0 }),
    load: () => store.load(),
    close: () => store.close(),
    beginTerm: () => Promise.reject(new StoreError("failed", "the disk is full")),
    commit: () => Promise.reject(new StoreError("failed", "the disk is full")),
  });
  expect(Master.start("10.213.0.0/16", { disk })).rejects.toThrow(/a new cluster's state cannot be written.*full/);
});

test("point 7: who wants to change something is told that the disk does not answer, once it has not for long", async () => {
  const clock = new VirtualClock();
  const disk = openSqliteStore(":memory:");
  const term = await disk.beginTerm();
  const answer = Promise.withResolvers<void>();
  const store: Store = {
    beginTerm: () => disk.beginTerm(),
    load: () => disk.load(),
    close: () => disk.close(),
    commit: () => answer.promise,
  };
  const writes = new Writes({ store, state: new ClusterState(), clock, log: silentLog });
  const commit = writes.commit(term, [change(seeded(1), 1)], { fenced });
  await clock.advance(9_000);
  writes.check();
  expect(writes.fault).toBeUndefined();
  await clock.advance(2_000);
  expect(() => writes.check()).toThrow(/the disk has not answered for 11 s/);
  answer.resolve();
  await commit;
  writes.check();
  expect(writes.fault).toBeUndefined();
});
