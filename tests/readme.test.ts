/** @module The README stays true: its table of keys is the one in the code, and what it names is there. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DOCUMENT_KEYS, SERVICE_KEYS } from "../src/job_keys.ts";
import { remarkOf, type Table } from "../src/job_schema.ts";

const ROOT = join(import.meta.dir, "..");
const README = join(ROOT, "README.md");
const BEGIN = /(<!-- format table: [^\n]*-->\n)([\s\S]*?)(<!-- end of format table -->)/;

function rows(table: Table, prefix: string): string[] {
  return Object.entries(table).flatMap(([key, row]) => {
    const below = row.fate !== "refused" ? row.table : undefined;
    if (below && row.fate === "honoured") return rows(below, `${prefix}${key}.`);
    return [`| \`${prefix}${key}\` | ${row.fate} | ${remarkOf(row).replaceAll("|", "\\|")} |`];
  });
}

function formatTable(): string {
  const lines = [...rows(DOCUMENT_KEYS, ""), ...rows(SERVICE_KEYS, "services.*.")];
  return [
    "",
    "| key | fate | |",
    "| --- | --- | --- |",
    ...lines,
    "| `x-*` | honoured | anywhere, without effect |",
    "",
    "",
  ].join("\n");
}

test("the README's table of keys is the one in the code", () => {
  const text = readFileSync(README, "utf8");
  if (process.env["UPDATE_README"])
    writeFileSync(
      README,
      text.replace(BEGIN, (_, begin: string, __, end: string) => begin + formatTable() + end),
    );
  expect(BEGIN.exec(readFileSync(README, "utf8"))?.[2]).toBe(formatTable());
});

test("every file of the sources that the README's floors name is there", () => {
  const floors = /\| floor \| files \|[\s\S]*?\n\n/.exec(readFileSync(README, "utf8"))?.[0] ?? "";
  const names = [...floors.matchAll(/`([a-z_]+)`/g)].map((match) => match[1] ?? "");
  expect(names.length).toBeGreaterThan(15);
  expect(names.filter((name) => !existsSync(join(ROOT, "src", `${name}.ts`)))).toEqual([]);
});
