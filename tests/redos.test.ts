/**
 * @module No text from outside makes a reader slow: every regular expression of `src`, and every exported parser, takes time that
 * grows about linearly with its input. What a hostile document costs as a whole is in `api_reading.test.ts`.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { hostileShapes, slowShapes, wordsOf } from "./hostile_text.ts";
import { regexLiterals } from "./regex_literals.ts";

const SRC = join(import.meta.dir, "..", "src");
const sources = readdirSync(SRC)
  .filter((file) => file.endsWith(".ts"))
  .map((file) => ({ file, text: readFileSync(join(SRC, file), "utf8") }));

describe("point 6: regular expressions", () => {
  test.each(sources.filter(({ text }) => regexLiterals(text).length > 0).map(({ file, text }) => [file, text]))(
    "of %s take linear time",
    (file, text) => {
      for (const { line, source, flags } of regexLiterals(text)) {
        const regex = new RegExp(source, flags.includes("g") ? flags : `${flags}g`);
        const slow = slowShapes((input) => input.replace(regex, ""), hostileShapes(wordsOf(source)));
        expect(slow, `src/${file}:${line} /${source}/${flags}`).toEqual([]);
      }
    },
  );
});
