/**
 * @module The documents of tests/fixtures/compose, written anew and broken: what a job answers as its document means the same
 * when it is sent again, in any style of YAML, and no mutation makes the reader throw, hang or answer without a place.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { parse, stringify } from "yaml";
import { parseJob } from "../src/job_spec.ts";
import { cpuTimer } from "./cpu_time.ts";

const ROOT = join(import.meta.dir, "fixtures/compose");
const documents = ["valid", "invalid", "awesome"].flatMap((folder) =>
  readdirSync(join(ROOT, folder))
    .filter((file) => file.endsWith(".yaml"))
    .map((file) => readFileSync(join(ROOT, folder, file), "utf8")),
);

function read(body: string | Uint8Array) {
  return parseJob(body, { jobId: "t", env: new Map() });
}

const readable = documents.flatMap((body) => {
  const result = read(body);
  return result.ok ? [{ body, job: result.job }] : [];
});

/** Ways of writing YAML that mean the same. */
const styles = [
  { defaultStringType: "QUOTE_SINGLE" },
  { defaultStringType: "QUOTE_DOUBLE", defaultKeyType: "PLAIN" },
  { defaultStringType: "BLOCK_LITERAL", defaultKeyType: "PLAIN" },
  { collectionStyle: "flow", indent: 4 },
  { lineWidth: 20, indentSeq: false },
] as const;

describe("the document that a job answers", () => {
  test("means the same when it is sent again, and is answered as it is", () => {
    expect(readable.length).toBeGreaterThan(60);
    for (const { body, job } of readable) {
      const again = read(job.document);
      expect([body, again.ok && again.job.document, again.ok && again.job.services]).toEqual([
        body,
        job.document,
        job.services,
      ]);
    }
  });

  test.each(styles.map((style) => [JSON.stringify(style), style] as const))(
    "means the same as YAML with %s",
    (_, style) => {
      for (const { job } of readable) {
        const tree: unknown = parse(job.document, { intAsBigInt: true });
        // What stands there twice becomes an anchor and an alias.
        const written = stringify({ "x-first": tree, ...(tree as object) }, { ...style, aliasDuplicateObjects: true });
        const again = read(written);
        expect(again.ok ? again.job.services : again.details).toEqual(job.services);
      }
    },
  );
});

const TOKENS = [
  "\n",
  "  ",
  "&a ",
  "*a",
  "<<: ",
  "[",
  "]",
  "{",
  "}",
  "!x ",
  "| ",
  "> ",
  "$",
  "${A:-",
  "\t",
  "\0",
  "- ",
  ": ",
  "? ",
  "null",
  "-1",
  "%",
  "#",
  '"',
  "'",
  "\ufeff",
  "---\n",
  "0x",
  "~",
  "99999999999999999999",
  "extends: ",
  "include: ",
];
const edit = fc.record({
  at: fc.nat(0xffff),
  remove: fc.oneof(fc.constant(0), fc.nat(4), fc.nat(200)),
  insert: fc.oneof(fc.constantFrom("", ...TOKENS), fc.string({ maxLength: 3 })),
  /** Copies what is removed to another place, too. */
  moveTo: fc.option(fc.nat(0xffff), { freq: 4 }),
});

function mutated(
  body: string,
  edits: readonly { at: number; remove: number; insert: string; moveTo: number | null }[],
) {
  let text = body;
  for (const { at, remove, insert, moveTo } of edits) {
    const start = at % (text.length + 1);
    const cut = text.slice(start, start + remove);
    text = text.slice(0, start) + insert + text.slice(start + remove);
    if (moveTo !== null) {
      const place = moveTo % (text.length + 1);
      text = text.slice(0, place) + cut + text.slice(place);
    }
  }
  return text;
}

function isAnswered(body: string | Uint8Array): void {
  const elapsed = cpuTimer();
  const result = read(body);
  // The documents are a few kilobytes long: they take a millisecond or two.
  expect(elapsed()).toBeLessThan(500);
  if (result.ok) return;
  expect(result.details.length).toBeGreaterThan(0);
  for (const { message, line = 1, column = 1 } of result.details) {
    expect(message).not.toBeEmpty();
    expect(Math.min(line, column)).toBeGreaterThan(0);
  }
}

describe("a broken document is answered in time, with what is wrong and where", () => {
  test("when its text is changed, cut, or put elsewhere", () => {
    fc.assert(
      fc.property(fc.constantFrom(...documents), fc.array(edit, { minLength: 1, maxLength: 6 }), (body, edits) =>
        isAnswered(mutated(body, edits)),
      ),
      { numRuns: 3000 },
    );
  });

  test("when its bytes are changed", () => {
    const change = fc.tuple(fc.nat(0xffff), fc.nat(0xff));
    fc.assert(
      fc.property(fc.constantFrom(...documents), fc.array(change, { minLength: 1, maxLength: 4 }), (body, changes) => {
        const bytes = new TextEncoder().encode(body);
        for (const [at, byte] of changes) bytes[at % bytes.length] = byte;
        isAnswered(bytes);
      }),
      { numRuns: 1000 },
    );
  });
});
