/** @module The API's description: it is a sound OpenAPI document, it names the routes that there are, and its schema fits documents. */
import { Validator } from "@seriousme/openapi-schema-validator";
import Ajv from "ajv/dist/2020";
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { createApi } from "../src/api.ts";
import { openApi } from "../src/api_openapi.ts";
import { DOCUMENT_KEYS, SERVICE_KEYS } from "../src/job_keys.ts";
import { jsonSchemaOf, jsonSchemaOfTable, type Table } from "../src/job_schema.ts";
import { silentLog } from "../src/log.ts";

const local = {
  nodeId: "n",
  version: "0",
  faults: () => [],
  peerInfo: () => {
    throw new Error("not asked here");
  },
  master: () => ({ address: undefined, lost: new AbortController().signal }),
};

test("the description is a valid OpenAPI document", async () => {
  const result = await new Validator().validate(openApi("1.2.3"));
  expect(result.errors).toBeUndefined();
  expect(result.valid).toBe(true);
});

test("the description has each route of the API, and no other", () => {
  const app = createApi({ local, scheduler: () => undefined, dataDir: "/", log: silentLog });
  const routes = app.routes
    .filter(({ method, path }) => method !== "ALL" && !path.startsWith("/internal/"))
    .map(({ method, path }) => `${method} ${path.replace(/\/$/, "").replace(/:(\w+)/g, "{$1}")}`);
  const { paths } = openApi("0") as { paths: Record<string, object> };
  const described = Object.entries(paths).flatMap(([path, item]) =>
    Object.keys(item)
      .filter((key) => key !== "parameters")
      .map((method) => `${method.toUpperCase()} ${path}`),
  );
  expect(described.toSorted()).toEqual([...new Set(routes)].toSorted());
});

test("each key of the table that takes a value says of what kind it is", () => {
  const silent = (table: Table, prefix: string): string[] =>
    Object.entries(table).flatMap(([key, row]) => {
      if (row.fate === "refused") return [];
      const below = row.table ? silent(row.table, `${prefix}${key}.`) : [];
      return Object.keys(jsonSchemaOf(row.schema)).length === 0 ? [`${prefix}${key}`, ...below] : below;
    });
  // These two take whole forms that their own readers check.
  expect([...silent(DOCUMENT_KEYS, ""), ...silent(SERVICE_KEYS, "services.*.")]).toEqual([
    "include",
    "services.*.extends",
  ]);
});

const validate = new Ajv({ strict: false }).compile(jsonSchemaOfTable(DOCUMENT_KEYS));

test.each(["web-app.yml", "example-job.yml"])("the schema of documents takes examples/%s", (name) => {
  const document: unknown = parse(readFileSync(join(import.meta.dir, "../examples", name), "utf8"), { merge: true });
  validate(document);
  expect(validate.errors).toBeNull();
});

test.each([
  [{ services: { web: { image: 1 } } }],
  [{ services: { web: { image: "a", enviroment: {} } } }],
  [{ services: { web: { image: "a", ports: [{ target: 70_000 }] } } }],
  [{ services: [] }],
])("the schema of documents refuses %j", (document) => {
  expect(validate(document)).toBe(false);
});
