/**
 * @module The JSON schema of the Compose Specification against the reader: every key of the schema has a row, and over
 * documents made from the schema both accept or both refuse, but for the differences listed here, each with its reason.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { DEPLOY_KEYS, DOCUMENT_KEYS, SERVICE_KEYS } from "../src/job_keys.ts";
import { parseJob } from "../src/job_spec.ts";
import { definition, SCHEMA, schemaFaults, valuesOf } from "./compose_schema.ts";

/** Documents of each key; every eighth part of them is spoilt. */
const RUNS = 25;
const SPOIL = 8;
/** Always the same documents, so that a change is told from chance; another seed makes others. */
const SEED = Number(process.env["COMPOSE_SCHEMA_SEED"] ?? 1);

type Difference = { example: object; faults: RegExp; reason: string };

const app = (keys: object) => ({ services: { app: { image: "busybox", ...keys } } });
const beside = (keys: object) => ({ ...app({}), ...keys });

/** What the schema accepts and is refused here. `faults`: path and message of every such refusal. */
const REFUSED: readonly Difference[] = [
  {
    example: app({ privileged: "sometimes" }),
    faults: /must be (true or false|a (whole )?number|a file mode in octal, as 0440), not "|no number or range; write/,
    reason: "the schema takes any text where a variable could stand; compose casts it, and refuses what is none",
  },
  {
    example: app({ cpu_shares: 0.5 }),
    faults:
      /must be a (whole number, not [\d.]+|(size, as 64m or a number of bytes|file mode in octal, as 0440), not the number [\d.]+)$/,
    reason: "compose cuts a fraction off in silence; Docker has whole numbers only",
  },
  {
    example: app({ group_add: [1.5] }),
    faults: /\[\d+\]: must be (a group's name or number|a port( of the container)?, as .*)$/,
    reason: "the schema takes any number; a group and a port are whole ones",
  },
  {
    example: app({ ulimits: { nofile: { soft: 2, hard: 1 } } }),
    faults:
      /must be at (most|least) -?\d+$|which is below 0$|no less than 6m$|ports go from 1 to 65535$|above its hard limit|needs mem_limit beside it$/,
    reason: "bounds that Docker has and the schema has not",
  },
  {
    example: app({ depends_on: ["nobody"] }),
    faults: /which the document does not have|is not (under the top-level|beside it)|goes in a circle/,
    reason: "a schema cannot follow names; compose does",
  },
  {
    example: app({ env_file: "a.env" }),
    faults: /was not sent: add -F|names no file$|lies outside of the job/,
    reason: "files are sent along with the document",
  },
  {
    example: app({ volumes: [{ type: "tmpfs" }] }),
    faults:
      /needs (both soft and hard$|discrete_resource_spec)|names no container port$|has no (target|source|path)\b|is empty: write|without a source|must be the name of a service, or a mapping/,
    reason: "compose needs them, though its schema does not say so",
  },
  {
    example: app({ gpus: [{ count: 1, device_ids: ["a"] }] }),
    faults:
      /needs exactly one of|keep one$|(mounts to|publishes) .* already$|says again what|names one container,|below the (memory limit|\d+ that)|excludes deploy.mode|subpath of an anonymous|read-only, which Docker refuses|is empty: name an image,|variable name|not absolute|whole container/,
    reason: "rules between keys and inside of texts, which compose checks after the schema",
  },
  {
    example: app({ security_opt: ["odd"] }),
    faults:
      /write (name=value|os\/arch, as)|allowed are tcp, udp and sctp$|starts with CMD|no IP address$|is no (size|duration|name)|write a|is ".*"; (allowed|(a|an) \w+'s name)/,
    reason: "the small languages inside of texts; what Docker would refuse only when the container is made",
  },
  {
    example: app({ provider: { type: "x" } }),
    faults: /not supported|may be on another node|is for Windows|older engines|newer engines|unknown key unknown/,
    reason: "keys that are refused with their reason; an older form of external takes no key but name",
  },
];

/** What the schema refuses and is accepted here. `faults`: what the schema says then. */
const ACCEPTED: readonly Difference[] = [
  {
    example: beside({ version: 3 }),
    faults: /^\/version must be string$/,
    reason: "the version means nothing, so a number is no reason to refuse a document",
  },
  {
    example: app({ provider: null }),
    faults:
      /^\/(models|include|services\/app\/(extends|credential_spec|provider|external_links|models|post_start|pre_stop|use_api_socket|volumes_from))[ \/]/,
    reason: "a key that is refused may stand there empty or off, whatever its type: it asks for nothing",
  },
];

function ours(document: string): { ok: boolean; faults: string[] } {
  const result = parseJob(document, { jobId: "shop", env: new Map() });
  return {
    ok: result.ok,
    faults: result.ok ? [] : result.details.map(({ path, message }) => `${path}: ${message}`),
  };
}

/** Why the two differ about a document, where no listed difference explains it. */
function unexplained(document: unknown): string | undefined {
  const text = JSON.stringify(document);
  const theirs = schemaFaults(text);
  const { ok, faults } = ours(text);
  if (ok === (theirs.length === 0)) return undefined;
  if (ok) {
    const odd = theirs.filter((fault) => !ACCEPTED.some((difference) => difference.faults.test(fault)));
    return odd.length === 0 ? undefined : `only the schema refuses ${text}: ${odd.join("; ")}`;
  }
  const odd = faults.filter((fault) => !REFUSED.some((difference) => difference.faults.test(fault)));
  return odd.length === 0 ? undefined : `only we refuse ${text}: ${odd.join("; ")}`;
}

describe("every key of the Compose Specification's schema has a row", () => {
  const keysOf = (schema: { properties?: object }) => Object.keys(schema.properties ?? {});
  const own = (table: object, schema: { properties?: object }) =>
    Object.keys(table).filter((key) => !keysOf(schema).includes(key) && !key.startsWith("x-"));
  const missing = (table: object, schema: { properties?: object }) =>
    keysOf(schema).filter((key) => !Object.hasOwn(table, key));

  test("of a document, a service and its deploy; and there is none that it does not have", () => {
    const deploy = definition("deployment");
    expect([missing(DOCUMENT_KEYS, SCHEMA), own(DOCUMENT_KEYS, SCHEMA)]).toEqual([[], []]);
    // The first is newer than the schema kept here, the second older.
    expect([missing(SERVICE_KEYS, definition("service")), own(SERVICE_KEYS, definition("service"))]).toEqual([
      [],
      ["pre_start", "volume_driver"],
    ]);
    expect([missing(DEPLOY_KEYS, deploy), own(DEPLOY_KEYS, deploy)]).toEqual([[], []]);
  });
});

describe("the schema and the reader differ as listed", () => {
  test.each(REFUSED.map(({ reason, ...rest }) => [reason, rest] as const))("%s", (_, { example, faults }) => {
    const text = JSON.stringify(example);
    expect(schemaFaults(text)).toEqual([]);
    expect(ours(text).faults.join("\n")).toMatch(faults);
  });

  test.each(ACCEPTED.map(({ reason, ...rest }) => [reason, rest] as const))("%s", (_, { example, faults }) => {
    const text = JSON.stringify(example);
    expect(ours(text)).toEqual({ ok: true, faults: [] });
    expect(schemaFaults(text).join("\n")).toMatch(faults);
  });
});

describe(`over documents made from the schema both agree (COMPOSE_SCHEMA_SEED=${SEED})`, () => {
  const services = Object.entries(definition("service").properties ?? {});
  test.each(services.map(([key, schema]) => [key, schema] as const))("services.*.%s", (key, schema) => {
    const values = fc.sample(valuesOf(schema, { key, spoil: SPOIL }), { numRuns: RUNS, seed: SEED });
    expect(values.map((value) => unexplained(app({ [key]: value }))).filter(Boolean)).toEqual([]);
  });

  const sections = Object.entries(SCHEMA.properties ?? {}).filter(([key]) => key !== "services");
  test.each(sections.map(([key, schema]) => [key, schema] as const))("%s", (key, schema) => {
    const values = fc.sample(valuesOf(schema, { key, spoil: SPOIL }), { numRuns: 2 * RUNS, seed: SEED });
    expect(values.map((value) => unexplained(beside({ [key]: value }))).filter(Boolean)).toEqual([]);
  });

  test("and whole services, most of which both accept", () => {
    const values = fc.sample(valuesOf(definition("service"), { key: "app", spoil: 40 }), { numRuns: 400, seed: SEED });
    const documents = values.map((value) => ({ services: { app: { image: "busybox", ...(value as object) } } }));
    expect(documents.map(unexplained).filter(Boolean)).toEqual([]);
    expect(documents.filter((document) => ours(JSON.stringify(document)).ok).length).toBeGreaterThan(40);
  });
});
