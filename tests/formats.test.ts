/**
 * @module The format numbers of what is stored (point 10). An earlier binary drops fields that it does not know when it writes a
 * record, so it must refuse what has them: each change of a stored shape raises a number that earlier binaries check.
 *
 * A change of a record fails the test until `src/store.ts` has one more migration (an empty one will do) and the table below one more
 * entry with the fingerprints of all kinds that changed. The same holds for `node.json` and `IDENTITY_FORMAT` (`src/data_dir.ts`).
 * Entries of numbers that a commit on the main line has had are never edited. Other files of the data directory (`restarts.json`,
 * `images.json`, `network.json`) have no number: what is in them is learnt again, so losing a field of them loses nothing for long.
 */
import { Database } from "bun:sqlite";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type * as v from "valibot";
import { IDENTITY_FORMAT, identityIn, identityShape } from "../src/data_dir.ts";
import { RECORD_KINDS } from "../src/model.ts";
import { openSqliteStore, STORE_FORMAT } from "../src/store.ts";

/** By format: the fingerprints of the kinds whose shape it changed. */
const STORE_FORMATS: Record<number, Record<string, string>> = {
  1: {
    allocation: "f5051a508e49d280",
    chunk: "a1dd927596e73874",
    cluster: "0edd6b8b6e33fb0f",
    departure: "89e86d2a4b6df95f",
    history: "2855c0200097c154",
    home: "1e10062ad414db7c",
    job: "9411e36dcab59e30",
    node: "0d00e079f15fbecf",
    registry: "baa30b7022b01938",
    removal: "c35c7ddcb3ae2904",
    secret: "809247279946c49c",
    spec: "7e7ec8bd0d6374af",
  },
  // `version_floor`: what deleted jobs leave. `engine_silent`: a node's Docker Engine did not answer.
  2: { cluster: "b2226f5b40f823a7", node: "92b437d843f2a785" },
  // The leadership got an id; the records stayed.
  3: {},
};
/** By format: the fingerprint of `node.json`. */
const IDENTITY_FORMATS: Record<number, string> = {
  1: "13a4173553c8c334",
  2: "44b3996374e86270",
};

type Shape = v.GenericSchema & {
  entries?: Record<string, Shape>;
  item?: Shape;
  items?: readonly Shape[];
  wrapped?: Shape;
  options?: readonly (Shape | string)[];
  literal?: unknown;
  pipe?: readonly Shape[];
};

/** One line for each field, however deep, with its type. Bounds are left out: they lose no field. */
function fieldsOf(shape: Shape, path = ""): string[] {
  const { entries, item, items, wrapped, options, literal, pipe } = shape;
  const own = literal === undefined ? shape.type : `${shape.type} ${JSON.stringify(literal)}`;
  const lines = [`${path}: ${own}`];
  for (const [name, field] of Object.entries(entries ?? {})) lines.push(...fieldsOf(field, `${path}.${name}`));
  if (item) lines.push(...fieldsOf(item, `${path}[]`));
  items?.forEach((one, at) => lines.push(...fieldsOf(one, `${path}[${at}]`)));
  if (wrapped) lines.push(...fieldsOf(wrapped, path));
  options?.forEach((one, at) =>
    lines.push(...(typeof one === "object" ? fieldsOf(one, `${path}|${at}`) : [`${path}| ${one}`])),
  );
  for (const part of pipe?.slice(1) ?? []) if (part.kind === "schema") lines.push(...fieldsOf(part, path));
  return lines;
}

function fingerprint(shape: v.GenericSchema): string {
  // A pipe has the members of its first part.
  const lines = fieldsOf(shape as Shape).toSorted();
  return createHash("sha256").update(lines.join("\n")).digest("hex").slice(0, 16);
}

describe("point 10: a stored shape that changes raises the number of its format", () => {
  test("of the records in the Store", () => {
    const known: Record<string, string> = Object.assign({}, ...Object.values(STORE_FORMATS));
    const found = Object.entries(RECORD_KINDS).map(([kind, { schema }]) => [kind, fingerprint(schema)]);
    expect(Object.fromEntries(found)).toEqual(known);
    expect(Math.max(...Object.keys(STORE_FORMATS).map(Number))).toBe(STORE_FORMAT);
  });

  test("of node.json", () => {
    expect(fingerprint(identityShape)).toBe(IDENTITY_FORMATS[IDENTITY_FORMAT] ?? "none");
    expect(Math.max(...Object.keys(IDENTITY_FORMATS).map(Number))).toBe(IDENTITY_FORMAT);
  });

  test("and the fingerprint sees a field however deep it is", () => {
    const spec = RECORD_KINDS.spec.schema.entries.spec;
    const lines = fieldsOf(spec as Shape);
    expect(lines.some((line) => /^\.mounts\[\]\|\d\.propagation: exact_optional$/.test(line))).toBe(true);
    expect(lines).toContain(".networks[].network.ipam.config[].aux_addresses[][0]: string");
  });
});

describe("point 10: what a later binary wrote", () => {
  let dir: string;
  beforeEach(() => void (dir = mkdtempSync(join(tmpdir(), "cacophony-formats-"))));
  afterEach(() => rmSync(dir, { recursive: true }));

  const node = { version: IDENTITY_FORMAT, role: "worker", node_id: "n", has_state: false, seen_term: 1 };
  const write = (more: object) =>
    writeFileSync(join(dir, "node.json"), JSON.stringify({ ...node, peers: [], settings: {}, ...more }));

  test("a node.json of a later format is refused with both numbers and left as it was", () => {
    write({ version: IDENTITY_FORMAT + 1, of_later: "kept" });
    const before = readFileSync(join(dir, "node.json"), "utf8");
    expect(() => identityIn(dir)).toThrow(
      `has format ${IDENTITY_FORMAT + 1}, this cacophony knows up to ${IDENTITY_FORMAT}; it was left untouched: run the newer`,
    );
    expect(readFileSync(join(dir, "node.json"), "utf8")).toBe(before);
  });

  test.each([{ version: 0 }, { version: 1.5 }, { version: "1" }, { version: undefined }, { peers: "none" }])(
    "a node.json with %j is damaged",
    (more) => {
      write(more);
      expect(() => identityIn(dir)).toThrow(/node\.json is damaged; it was left untouched/);
    },
  );

  test("a node.json of each earlier format is read, and is of this binary's one from then on", () => {
    for (let version = 1; version <= IDENTITY_FORMAT; version++) {
      write({ version });
      expect(identityIn(dir)).toMatchObject({ version: IDENTITY_FORMAT, node_id: "n", seen_term: 1 });
    }
  });

  test("a store of the first format is opened, with what is in it, and is of this binary's one from then on", async () => {
    const path = join(dir, "cluster.db");
    const db = new Database(path);
    db.run(
      "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID",
    );
    db.run("CREATE TABLE leadership (id INTEGER PRIMARY KEY CHECK (id = 1), term INTEGER NOT NULL)");
    db.run("INSERT INTO leadership VALUES (1, 7)");
    db.run(`INSERT INTO record VALUES ('registry', 'r', '{"host": "r", "sealed": "x"}')`);
    db.run(`PRAGMA application_id = ${0x4361636f}`);
    db.run("PRAGMA user_version = 1");
    db.close();
    const store = openSqliteStore(path);
    expect((await store.load()).registry).toEqual([{ host: "r", sealed: "x" }]);
    expect(await store.beginTerm({ leadership: "l", seen: { term: 7, leadership: "of-its-node" } })).toBe(8);
    await store.close();
    const again = new Database(path);
    expect(again.query("PRAGMA user_version").get()).toEqual({ user_version: STORE_FORMAT });
    again.close();
  });
});
