/** @module The cluster's key in its file: when it is made, and when a master without it does not start (point 3). */
import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { ClusterKey } from "../src/cluster_key.ts";
import { silentLog } from "../src/log.ts";
import { StartError } from "../src/model.ts";
import { Scheduler } from "../src/scheduler.ts";
import { openSqliteStore } from "../src/store.ts";
import { seeded, unusedSealer } from "./cluster_fixture.ts";
import { VirtualClock } from "./virtual_clock.ts";

const root = mkdtempSync(join(tmpdir(), "cacophony-key-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

function keyPath(): string {
  return join(mkdtempSync(join(root, "data-")), "cluster.key");
}

/** What a start is refused with; undefined: it is not. */
async function refusal(work: () => unknown): Promise<string | undefined> {
  try {
    await work();
    return undefined;
  } catch (error) {
    if (!(error instanceof StartError)) throw error;
    return error.message;
  }
}

test("ClusterKey makes a key that only its owner can read, and finds it again", () => {
  const path = keyPath();
  writeFileSync(`${path}.new`, "half a key of a process that was killed");
  const publicKey = new ClusterKey(path).open(undefined);
  expect(publicKey).toMatch(/^[\w-]{43}$/);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readdirSync(dirname(path))).toEqual(["cluster.key"]);
  const [again, recorded] = [new ClusterKey(path), new ClusterKey(path)];
  expect([again.open(undefined), recorded.open(publicKey)]).toEqual([publicKey, publicKey]);
  expect(again.sign("text")).toBe(recorded.sign("text"));
});

test("ClusterKey refuses to start without the key that nodes have pinned, and leaves what it finds as it is", async () => {
  const [path, other] = [keyPath(), keyPath()];
  const publicKey = new ClusterKey(path).open(undefined);
  new ClusterKey(other).open(undefined);
  const text = readFileSync(other, "utf8");
  expect(await refusal(() => new ClusterKey(other).open(publicKey))).toMatch(/another one.*restore it from a backup/);
  expect(readFileSync(other, "utf8")).toBe(text);
  rmSync(other);
  expect(await refusal(() => new ClusterKey(other).open(publicKey))).toMatch(/is missing: restore it from a backup/);
  expect(existsSync(other)).toBe(false);
  chmodSync(path, 0o640);
  expect(await refusal(() => new ClusterKey(path).open(publicKey))).toMatch(/read by others: chmod 600/);
  for (const damaged of ["", text.slice(0, 60), text.replaceAll("A", "B")]) {
    writeFileSync(other, damaged, { mode: 0o600 });
    for (const known of [publicKey, undefined])
      expect(await refusal(() => new ClusterKey(other).open(known))).toMatch(
        /cluster\.key (does not hold|is another)|does not hold an Ed25519 key/,
      );
    expect(readFileSync(other, "utf8")).toBe(damaged);
  }
});

test("a master of an existing cluster makes the key at its first start, records it, and then does not start without it", async () => {
  const path = keyPath();
  const state = join(dirname(path), "cluster.db");
  const fresh = { cluster_id: "c", created_at: 0, network_mode: "vxlan" as const, network_cidr: "10.213.0.0/16" };
  /** A master's process, up to where it has begun to lead; the term of its state and the recorded key. */
  const start = async (options: { key?: ClusterKey; written?: boolean }) => {
    const scheduler = new Scheduler({
      clock: new VirtualClock(),
      log: silentLog,
      store: openSqliteStore(state),
      random: seeded(1),
      sealer: unusedSealer,
      newId: () => "id",
      onFenced: () => {},
    });
    try {
      await scheduler.start(fresh, options);
      return { term: scheduler.term, key: scheduler.cluster.cluster_key };
    } finally {
      await scheduler.stop();
    }
  };
  // As 0.1.0 left it.
  expect(await start({})).toEqual({ term: 1, key: undefined });
  // By a process that was killed before it recorded the key.
  const made = new ClusterKey(path).open(undefined);
  const upgraded = await start({ written: true, key: new ClusterKey(path) });
  expect(upgraded).toEqual({ term: 2, key: made });
  expect((await start({ written: true, key: new ClusterKey(path) })).key).toBe(made);
  const pem = readFileSync(path, "utf8");
  rmSync(path);
  expect(await refusal(() => start({ written: true, key: new ClusterKey(path) }))).toMatch(/cluster\.key is missing/);
  expect(existsSync(path)).toBe(false);
  writeFileSync(path, pem, { mode: 0o600 });
  // Nothing was changed by the start that was refused: the term is the next one.
  expect(await start({ written: true, key: new ClusterKey(path) })).toEqual({ term: 4, key: upgraded.key });
  // What README tells to do where the key is lost for good.
  rmSync(path);
  const db = new Database(state);
  db.run("UPDATE record SET value = json_remove(value, '$.cluster_key') WHERE kind = 'cluster'");
  db.close();
  const renewed = await start({ written: true, key: new ClusterKey(path) });
  expect(renewed.key).toBe(new ClusterKey(path).open(undefined));
  expect(renewed.key).not.toBe(upgraded.key);
});
