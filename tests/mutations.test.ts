/** @module The list of deliberate errors: each still applies to the source. `npm run mutate` shows that each is caught. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { misfits, MUTATIONS, mutated } from "./mutations.ts";

const ROOT = join(import.meta.dir, "..");
const read = (file: string) => readFileSync(join(ROOT, file), "utf8");

describe("the deliberate errors of `npm run mutate`", () => {
  test("each have a text that is in its file exactly once", () => {
    expect(misfits(read)).toEqual([]);
    expect(MUTATIONS.length).toBeGreaterThanOrEqual(13 + 28);
  });

  test("are told apart from those that do not apply any more", () => {
    const one = { name: "one", breaks: "", file: "a.ts", find: "b();", replace: "" };
    expect(misfits(() => "a(); b(); c();", [one])).toEqual([]);
    expect(mutated("a(); b(); c();", one)).toBe("a();  c();");
    for (const text of ["a();", "b(); b();"]) expect(misfits(() => text, [one])[0]).toContain("one does not apply");
    expect(misfits(() => "b();", [one, one])).toContain("there are two errors named one");
    expect(misfits(() => "b();", [{ ...one, replace: one.find }])).toEqual(["one changes nothing"]);
  });
});
