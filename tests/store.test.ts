/** @module One contract suite that every Store runs, and what only the SQLite file has to stand. */
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Change } from "../src/model.ts";
import type { Store } from "../src/store.ts";
import { openSqliteStore, openSqliteStoreToRead } from "../src/store.ts";
import { openThreadStore } from "../src/store_thread.ts";
import { rules } from "./cluster_fixture.ts";

const root = mkdtempSync(join(tmpdir(), "cacophony-store-"));
afterAll(() => rmSync(root, { recursive: true }));
let files = 0;
const freshPath = () => join(root, `${++files}.db`);

const node = (id: string): Change => ({
  op: "put",
  kind: "node",
  record: {
    node_id: id,
    node_name: id,
    address: "10.0.0.1:9000",
    role: "worker",
    availability: "active",
    labels: [["__proto__", "x"]],
    set_labels: [["zone", "a"]],
    platform: { os: "linux", arch: "amd64" },
    joined_at: 1,
  },
});

/** Waits for the answer of a thread, which `expect().rejects` keeps from coming. */
function faultOf(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => undefined,
    (error: unknown) => error,
  );
}

function contract(name: string, open: () => { store: Store; reopen: () => Store }): void {
  describe(`the Store contract, kept by ${name}`, () => {
    test("a fresh store is empty and its first term is 1", async () => {
      const { store } = open();
      expect(await store.beginTerm()).toBe(1);
      expect(Object.values(await store.load()).flat()).toEqual([]);
    });

    test("what was committed is there after opening again, and terms go on rising", async () => {
      const { store, reopen } = open();
      const term = await store.beginTerm();
      await store.commit(term, [node("a"), node("b")]);
      await store.commit(term, [{ op: "delete", kind: "node", key: "a" }]);
      await store.close();
      const again = reopen();
      expect((await again.load()).node).toEqual([(node("b") as { record: unknown }).record as never]);
      expect(await again.beginTerm()).toBe(term + 1);
    });

    test("a commit of an older term is refused and changes nothing", async () => {
      const { store } = open();
      const old = await store.beginTerm();
      await store.beginTerm();
      expect(await faultOf(store.commit(old, [node("a")]))).toMatchObject({ code: "fenced" });
      expect((await store.load()).node).toEqual([]);
    });

    test("a put of the same key replaces the record; a delete of an unknown key is no error", async () => {
      const { store } = open();
      const term = await store.beginTerm();
      await store.commit(term, [node("a")]);
      await store.commit(term, [node("a"), { op: "delete", kind: "home", key: "nothing" }]);
      expect((await store.load()).node).toHaveLength(1);
    });

    test("service names and labels called __proto__ and constructor survive", async () => {
      const { store } = open();
      const term = await store.beginTerm();
      const services = ["__proto__", "constructor"].map((service_name) => ({
        service_name,
        spec_hash: "h",
        scale: 1,
        rules: rules({ depends_on: [{ service_name: "db", condition: "service_healthy", required: true }] }),
        rules_since: 1,
        released: false,
      }));
      const record = {
        state: "live" as const,
        job_id: "j",
        version: 1,
        incarnation: "i",
        document: '{"__proto__":1}',
        services,
        created_at: 1,
        updated_at: 1,
      };
      await store.commit(term, [{ op: "put", kind: "job", record }]);
      expect((await store.load()).job).toEqual([record]);
    });
  });
}

contract("SQLite", () => {
  const path = freshPath();
  return { store: openSqliteStore(path), reopen: () => openSqliteStore(path) };
});

function inThread(path: string): Store {
  const store = openThreadStore(path);
  store.background?.();
  return store;
}

contract("SQLite in a thread of its own", () => {
  const path = freshPath();
  return { store: inThread(path), reopen: () => inThread(path) };
});

describe("openThreadStore()", () => {
  test("keeps the order of what it is asked for at once, and answers each by itself", async () => {
    const store = inThread(freshPath());
    const first = store.beginTerm();
    const outcomes = await Promise.allSettled([
      first,
      store.commit(1, [node("a")]),
      store.commit(2, [node("b")]),
      store.commit(1, [{ op: "delete", kind: "node", key: "a" }, node("c")]),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "rejected", "fulfilled"]);
    expect((await store.load()).node.map(({ node_id }) => node_id)).toEqual(["c"]);
    expect((await store.last?.())?.term).toBe(1);
    await store.close();
    expect(await faultOf(store.commit(1, [node("d")]))).toMatchObject({ code: "failed" });
  });

  test("says that a commit did not happen while another process has the file locked", async () => {
    const path = freshPath();
    const store = inThread(path);
    const term = await store.beginTerm();
    const other = new Database(path);
    other.run("BEGIN IMMEDIATE");
    // SQLite says at once that it is locked: the commit did not happen.
    expect(await faultOf(store.commit(term, [node("a")]))).toMatchObject({ code: "failed" });
    other.run("ROLLBACK");
    other.close();
    await store.commit(term, [node("b")]);
    expect((await store.load()).node.map(({ node_id }) => node_id)).toEqual(["b"]);
    await store.close();
  });

  test("refuses what openSqliteStore() refuses, when it is opened", () => {
    const path = freshPath();
    writeFileSync(path, "these are not the bytes of a database ".repeat(200));
    expect(() => openThreadStore(path)).toThrow(/damaged .*left untouched/);
  });
});

describe("openSqliteStore()", () => {
  test("refuses a file that is no database, and leaves every byte of it", () => {
    const path = freshPath();
    writeFileSync(path, "these are not the bytes of a database ".repeat(200));
    const before = readFileSync(path);
    expect(() => openSqliteStore(path)).toThrow(/damaged .*left untouched/);
    expect(readFileSync(path)).toEqual(before);
  });

  test("refuses a database with damaged pages", async () => {
    const path = freshPath();
    const store = openSqliteStore(path);
    const term = await store.beginTerm();
    await store.commit(
      term,
      Array.from({ length: 500 }, (_, i) => node(`node-${i}`)),
    );
    await store.close();
    const bytes = readFileSync(path);
    bytes.fill(0x5a, 4096, 4096 * 4);
    writeFileSync(path, bytes);
    expect(() => openSqliteStore(path)).toThrow(/damaged/);
    expect(readFileSync(path)).toEqual(bytes);
  });

  test("refuses a newer schema version, saying both", () => {
    const path = freshPath();
    openSqliteStore(path).close();
    const db = new Database(path);
    db.run("PRAGMA user_version = 99");
    db.close();
    expect(() => openSqliteStore(path)).toThrow(/schema version 99, this cacophony knows up to \d+/);
  });

  test("refuses another program's database", () => {
    const path = freshPath();
    const db = new Database(path);
    db.run("CREATE TABLE bookmarks (url TEXT)");
    db.close();
    expect(() => openSqliteStore(path)).toThrow(/another program/);
  });

  test("names the record that it cannot read", async () => {
    const path = freshPath();
    await openSqliteStore(path).close();
    const db = new Database(path);
    db.run("INSERT INTO record VALUES ('node', 'n1', '{\"node_id\": 5}')");
    db.close();
    expect(openSqliteStore(path).load()).rejects.toThrow(/record node n1 .* cannot be read/);
  });

  test("opens to read what a process left that was killed, with its log", async () => {
    const path = freshPath();
    const store = openSqliteStore(path);
    await store.commit(await store.beginTerm(), [node("a")]);
    const copy = freshPath();
    for (const suffix of ["", "-wal"]) writeFileSync(`${copy}${suffix}`, readFileSync(`${path}${suffix}`));
    await store.close();
    const read = openSqliteStoreToRead(copy);
    expect((await read.load()).node).toHaveLength(1);
    expect((await read.last?.())?.term).toBe(1);
    await read.close();
  });

  test("leaves nothing on the disk of what was removed or replaced, once scrubbed", async () => {
    const path = freshPath();
    const store = openSqliteStore(path);
    const term = await store.beginTerm();
    const chunk = (data: string) => ({ op: "put", kind: "chunk", record: { chunk_hash: "h", data } }) as const;
    await store.commit(term, [chunk(`first-${"x".repeat(20_000)}`), node("short-lived")]);
    await store.commit(term, [chunk("second"), { op: "delete", kind: "node", key: "short-lived" }]);
    await store.scrub?.();
    const bytes = [path, `${path}-wal`].map((file) => readFileSync(file, "latin1")).join("");
    expect(bytes).toContain("second");
    expect(bytes).not.toContain("first-");
    expect(bytes).not.toContain("xxxxxxxxxxxxxxxx");
    expect(bytes).not.toContain("short-lived");
    await store.close();
  });
});
