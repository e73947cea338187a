/** Contents of sent files in the Store: durable before the job that names them, and gone when nothing names them. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Clock } from "../src/clock.ts";
import { parseJob } from "../src/job_spec.ts";
import { silentLog } from "../src/log.ts";
import { Scheduler } from "../src/scheduler.ts";
import { openSqliteStore, type Store, StoreError } from "../src/store.ts";
import { seeded, unusedSealer } from "./cluster_fixture.ts";
import { waitUntil } from "./wait.ts";

const DOCUMENT = "services: {app: {image: busybox, volumes: ['./a:/a', './b:/b']}}";

let root: string;
let ids = 0;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cacophony-chunks-"));
});
afterEach(() => rmSync(root, { recursive: true }));

/** Time stands still but for `pass`, which runs what is due: each full pass plans the next. */
function stillClock(): { clock: Clock; pass: () => void } {
  let due: (() => void)[] = [];
  const clock: Clock = {
    now: () => 1,
    after: (_, work) => {
      due.push(work);
      return { cancel: () => void (due = due.filter((one) => one !== work)) };
    },
  };
  return {
    clock,
    pass: () => {
      const now = due;
      due = [];
      for (const work of now) work();
    },
  };
}

/** A master on the same file; `commits`: so many work, and the next ends it as kill -9 would. */
async function master({ commits = Number.POSITIVE_INFINITY }: { commits?: number } = {}) {
  const store = openSqliteStore(join(root, "cluster.db"));
  let left = Number.POSITIVE_INFINITY;
  const failing: Store = {
    beginTerm: () => store.beginTerm(),
    load: () => store.load(),
    close: () => store.close(),
    commit: async (term, changes) => {
      if (left-- <= 0) throw new StoreError("failed", "killed");
      return store.commit(term, changes);
    },
  };
  const { clock, pass } = stillClock();
  const scheduler = new Scheduler({
    store: failing,
    clock,
    random: seeded(1),
    newId: () => `id${++ids}`,
    sealer: unusedSealer,
    log: silentLog,
    onFenced: () => {},
  });
  await scheduler.start({ cluster_id: "c", created_at: 0, network_mode: "vxlan", network_cidr: "10.213.0.0/16" });
  await scheduler.change(() => []);
  left = commits;
  return { scheduler, pass, stop: () => scheduler.stop() };
}

function wanted(a: string, b: string) {
  const files = new Map([
    ["a", Buffer.from(a)],
    ["b", Buffer.from(b)],
  ]);
  const result = parseJob(DOCUMENT, { jobId: "j", env: new Map(), files });
  if (!result.ok) throw new Error("refused");
  return result.job;
}

function stored({ state }: Scheduler): string[] {
  return [...state.chunks.values()].map((data) => Buffer.from(data, "base64").toString()).toSorted();
}

test("a master that is killed at any commit of a PUT has the whole job or none, and no content without one", async () => {
  for (const commits of [0, 1, 2, 3]) {
    const first = await master({ commits });
    const put = first.scheduler.putJob("j", { wanted: wanted("one", "two"), preconditions: {} });
    const acknowledged = await put.then(
      () => true,
      () => false,
    );
    expect(acknowledged).toBe(commits === 3);
    await first.stop();
    const second = await master();
    expect(second.scheduler.state.liveJob("j") !== undefined).toBe(acknowledged);
    expect(stored(second.scheduler)).toEqual(acknowledged ? ["one", "two"] : []);
    await second.stop();
  }
});

test("a full pass collects what no spec names any more, and keeps what one does", async () => {
  const { scheduler, pass, stop } = await master();
  await scheduler.putJob("j", { wanted: wanted("one", "two"), preconditions: {} });
  await scheduler.putJob("k", { wanted: wanted("one", "three"), preconditions: {} });
  await scheduler.putJob("j", { wanted: wanted("one", "four"), preconditions: {} });
  const collected = async (expected: string[]) =>
    waitUntil(
      "the contents to be collected",
      async () => {
        pass();
        await scheduler.change(() => []);
        return stored(scheduler);
      },
      { until: (seen) => Bun.deepEquals(seen, expected) },
    );
  await collected(["four", "one", "three"]);
  await scheduler.deleteJob("k", { volumes: false, preconditions: {} });
  await collected(["four", "one"]);
  await scheduler.deleteJob("j", { volumes: false, preconditions: {} });
  await collected([]);
  await stop();
});
