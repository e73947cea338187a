/**
 * @module Valibot schemas for the kinds of values that compose has: each takes a value of the document after interpolation
 * (mappings are `Map`s, integers `bigint`s) and gives what it means, cast as compose casts (`"5"` for a number, `yes` for a
 * flag) and refused where compose refuses. Also `fields`, the schema of a mapping whose keys are rows of a table.
 */
import * as v from "valibot";
import { readBytes, readDuration, Refusal, show } from "./job_grammar.ts";
import { type Scalar, Timestamp } from "./job_scalars.ts";
import type { Tree } from "./job_yaml.ts";
import { nearest } from "./nearest.ts";

export type Value = Scalar | readonly Value[] | ReadonlyMap<string, Value>;
export type Schema<T> = v.GenericSchema<unknown, T>;

/** A JSON Schema (draft 2020-12), as far as the description of the document says something. */
export type JsonSchema = {
  type?: string;
  description?: string;
  enum?: readonly string[];
  pattern?: string;
  minimum?: number;
  maximum?: number;
  uniqueItems?: boolean;
  items?: JsonSchema;
  properties?: Record<string, JsonSchema>;
  patternProperties?: Record<string, JsonSchema>;
  additionalProperties?: boolean | JsonSchema;
  anyOf?: readonly JsonSchema[];
};

/** What becomes of a key of a compose document. */
export type Row<T> =
  /** As compose has it. */
  | { fate: "honoured"; schema: Schema<T>; table?: Table }
  /** As compose has it, but for what `limit` says. */
  | { fate: "limited"; schema: Schema<T>; limit: string; table?: Table }
  /** Checked, then left out, which `effect` tells the sender. */
  | { fate: "warned"; schema: Schema<T>; effect: string; table?: Table }
  /** Refused unless it is empty or off, since leaving it out would change what runs; `reason` ends with what to do. */
  | { fate: "refused"; reason: string };

/** Rows by key; `table` of a row is that of the mapping below it, or of each mapping in the list or mapping below it. */
export type Table = Readonly<Record<string, Row<unknown>>>;

/** What `fields(table)` gives. */
export type Fields<T extends Table> = {
  [K in keyof T as T[K] extends { fate: "refused" } ? never : K]?: T[K] extends { schema: Schema<infer O> } ? O : never;
};

export function honoured<T>(schema: Schema<T>): { fate: "honoured"; schema: Schema<T> } {
  return { fate: "honoured", schema };
}

export function limited<T>(schema: Schema<T>, limit: string): { fate: "limited"; schema: Schema<T>; limit: string } {
  return { fate: "limited", schema, limit };
}

export function warned<T>(schema: Schema<T>, effect: string): { fate: "warned"; schema: Schema<T>; effect: string } {
  return { fate: "warned", schema, effect };
}

export function refused(reason: string): { fate: "refused"; reason: string } {
  return { fate: "refused", reason };
}

/** A mapping below a key, with a table of its own. */
export function section<T extends Table>(table: T): { fate: "honoured"; schema: Schema<Fields<T>>; table: T } {
  return { fate: "honoured", schema: fields(table), table };
}

/** What a row says beside its schema: the limit, the effect or the reason. */
export function remarkOf(row: Row<unknown>): string {
  if (row.fate === "limited") return row.limit;
  if (row.fate === "warned") return row.effect;
  return row.fate === "refused" ? row.reason : "";
}

/** The JSON Schema of what a schema takes; what is known of a value only by reading it (a duration, an image) is a text there. */
export function jsonSchemaOf(schema: Schema<unknown>): JsonSchema {
  const json = v.getMetadata(schema)[SHAPE];
  return typeof json === "function" ? (json() as JsonSchema) : {};
}

/** The metadata under which a schema keeps its JSON Schema. */
const SHAPE = "shape";

/** The last step of a schema's pipe: what JSON Schema says of the value. A function, since most processes never ask. */
export function shape<T>(json: () => JsonSchema): v.MetadataAction<T, { shape: () => JsonSchema }> {
  return v.metadata({ [SHAPE]: json });
}

/** The JSON Schema of a mapping with the keys of `table`; each says what becomes of it. */
export function jsonSchemaOfTable(table: Table): JsonSchema {
  const properties = Object.entries(table).map(([key, row]): [string, JsonSchema] => {
    const remark = remarkOf(row);
    const description = remark === "" ? row.fate : `${row.fate}: ${remark}`;
    return [key, { ...(row.fate === "refused" ? {} : jsonSchemaOf(row.schema)), description }];
  });
  return {
    type: "object",
    properties: Object.fromEntries(properties),
    patternProperties: { "^x-": {} },
    additionalProperties: false,
  };
}

/** The value of a tree, as the schemas take it. */
export function valueOf(tree: Tree): Value {
  if (tree.kind === "scalar") return tree.value;
  if (tree.kind === "list") return tree.items.map(valueOf);
  return new Map(Array.from(tree.entries, ([key, entry]) => [key, valueOf(entry.value)]));
}

/** A mapping with the keys of `table` and `x-…`; every fault of every key is reported. */
export function fields<T extends Table>(table: T): Schema<Fields<T>> {
  return v.pipe(
    mapping,
    v.rawTransform(({ dataset, addIssue, NEVER }) => {
      const { output, issues } = readFields(table, dataset.value);
      for (const issue of issues) addIssue(issue);
      return issues.length === 0 ? output : NEVER;
    }),
    shape(() => jsonSchemaOfTable(table)),
  );
}

type Issue = { message: string; path: [Step, ...Step[]] };

/** As `fields`, but gives what is sound beside the issues, for checks that go on. */
export function readFields<T extends Table>(
  table: T,
  input: ReadonlyMap<string, Value>,
): { output: Fields<T>; issues: Issue[] } {
  const output: Record<string, unknown> = {};
  const issues: Issue[] = [];
  for (const [key, value] of input) {
    if (key.startsWith("x-") && !Object.hasOwn(table, key)) continue;
    const row = Object.hasOwn(table, key) ? table[key] : undefined;
    if (!row) issues.push({ message: unknownKey(key, table, issues.length), path: [step(key, "key")] });
    else if (row.fate === "refused") {
      if (!isEmpty(value)) issues.push({ message: row.reason, path: [step(key, "key")] });
    } else {
      const result = v.safeParse(row.schema, value);
      if (result.success) output[key] = result.output;
      else for (const { message, path } of result.issues) issues.push({ message, path: [step(key), ...stepsOf(path)] });
    }
  }
  return { output: output as Fields<T>, issues };
}

/** Keys for which the nearest known one is looked up: it costs, and further ones are no slips of a finger. */
const MAX_SUGGESTIONS = 50;

function unknownKey(key: string, table: Table, found: number): string {
  const near = found < MAX_SUGGESTIONS ? nearest(key.toLowerCase(), Object.keys(table)) : undefined;
  return `unknown key ${show(key).slice(1, -1)}${near === undefined ? "; keys of your own start with x-" : `: did you mean ${near}?`}`;
}

/** Whether a value asks for nothing. */
function isEmpty(value: Value): boolean {
  if (Array.isArray(value)) return value.length === 0;
  if (value instanceof Map) return value.size === 0;
  return value === null || value === false || value === "";
}

type Step = v.UnknownPathItem;

/** One step of an issue's path. `origin` "key": the key itself is at fault, not its value. */
function step(key: string | number, origin: "key" | "value" = "value"): Step {
  // Valibot's type of a hand-made step knows only "value"; issues carry what they are given.
  return { type: "unknown", origin: origin as "value", input: undefined, key, value: undefined };
}

function stepsOf(path: readonly v.IssuePathItem[] | undefined): Step[] {
  return (path ?? []).map(({ key, origin }) => step(key as string | number, origin));
}

/** Keys and indexes of an issue's path, and whether its last key itself is at fault. */
export function placeOf(path: readonly v.IssuePathItem[]): { path: (string | number)[]; key: boolean } {
  const steps = stepsOf(path);
  return { path: steps.map(({ key }) => key as string | number), key: (steps.at(-1)?.origin as string) === "key" };
}

/** What a value is, for messages. */
export function kindOf(value: unknown): string {
  if (value === null || value === undefined) return "nothing: give it a value or leave the key out";
  if (Array.isArray(value)) return "a list";
  if (value instanceof Map) return "a mapping";
  if (typeof value === "string") return show(value);
  if (value instanceof Timestamp) return `the date ${String(value)}`;
  return `the ${typeof value === "boolean" ? "boolean" : "number"} ${String(value)}`;
}

/** A schema made of one function: its answer, or its Refusal as an issue. `json` is what it takes. */
export function reads<T>(json: JsonSchema, read: (value: unknown) => T | Refusal): Schema<T> {
  return v.pipe(
    v.unknown(),
    v.rawTransform(({ dataset, addIssue, NEVER }) => {
      const result = read(dataset.value);
      if (!(result instanceof Refusal)) return result;
      const [first, ...rest] = result.at.map((key) => step(key));
      addIssue({ message: result.message, ...(first ? { path: [first, ...rest] as [Step, ...Step[]] } : {}) });
      return NEVER;
    }),
    shape(() => json),
  );
}

/** A text that `read` understands. */
export function readsText<T>(read: (text: string) => T | Refusal, json: JsonSchema = {}): Schema<T> {
  return reads({ type: "string", ...json }, (value) =>
    typeof value === "string" ? read(value) : new Refusal(notText(value)),
  );
}

function notText(value: unknown): string {
  const quotable = ["bigint", "number", "boolean"].includes(typeof value) || value instanceof Timestamp;
  return `must be text, not ${kindOf(value)}${quotable ? ": put it in quotes" : ""}`;
}

const mapping = v.custom<ReadonlyMap<string, Value>>(
  (value) => value instanceof Map,
  (issue) => `must be a mapping (key: value), not ${kindOf(issue.input)}`,
);

export const text: Schema<string> = v.pipe(
  v.string((issue) => notText(issue.input)),
  shape(() => ({ type: "string" })),
);
export const anything: Schema<unknown> = v.unknown();

export function textMatching(pattern: RegExp, expected: string): Schema<string> {
  return readsText((value) => (pattern.test(value) ? value : new Refusal(`is ${show(value)}; ${expected}`)), {
    pattern: pattern.source,
  });
}

export function oneOf<const T extends string>(names: readonly T[]): Schema<T> {
  return readsText(
    (value) => {
      const found = names.find((name) => name === value);
      if (found !== undefined) return found;
      const near = nearest(value, names);
      return new Refusal(`is ${show(value)}; allowed are ${names.join(", ")}${near ? `: did you mean ${near}?` : ""}`);
    },
    { enum: names },
  );
}

type Bounds = { least?: number; most?: number };

/** A whole number, or text that is one. */
export function integer(bounds: Bounds = {}): Schema<number> {
  return number("a whole number", /^[-+]?[0-9]+$/, { ...bounds, whole: true });
}

/** A number, or text that is one. */
export function decimal(bounds: Bounds = {}): Schema<number> {
  return number("a number", /^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$/, { ...bounds, whole: false });
}

function number(kind: string, pattern: RegExp, { least, most, whole }: Bounds & { whole: boolean }): Schema<number> {
  const bounds = {
    ...(least === undefined ? {} : { minimum: least }),
    ...(most === undefined ? {} : { maximum: most }),
  };
  const json = {
    anyOf: [
      { type: whole ? "integer" : "number", ...bounds },
      { type: "string", pattern: pattern.source },
    ],
  };
  return reads(json, (value) => {
    const isNumber = typeof value === "bigint" || typeof value === "number";
    if (!isNumber && !(typeof value === "string" && pattern.test(value))) {
      return new Refusal(`must be ${kind}, not ${kindOf(value)}`);
    }
    const result = Number(value);
    if (whole ? !Number.isSafeInteger(result) : !Number.isFinite(result)) {
      return new Refusal(`must be ${kind}, not ${String(value)}`);
    }
    if (least !== undefined && result < least) return new Refusal(`is ${result}; it must be at least ${least}`);
    if (most !== undefined && result > most) return new Refusal(`is ${result}; it must be at most ${most}`);
    return result;
  });
}

/** A boolean, or one of the words that YAML 1.1 took for one (compose still takes them). */
const ON = ["true", "yes", "y", "on"];
const OFF = ["false", "no", "n", "off"];
export const flag: Schema<boolean> = reads({ anyOf: [{ type: "boolean" }, { enum: [...ON, ...OFF] }] }, (value) => {
  if (typeof value === "boolean") return value;
  const word = typeof value === "string" ? value.toLowerCase() : "";
  if (ON.includes(word)) return true;
  if (OFF.includes(word)) return false;
  return new Refusal(`must be true or false, not ${kindOf(value)}`);
});

/** Nanoseconds. Compose refuses a plain number here, since it would have no unit. */
export const duration: Schema<number> = reads({ type: "string" }, (value) => {
  if (typeof value === "string") return readDuration(value);
  return new Refusal(`must be a duration with its unit, as 90s or 1m30s, not ${kindOf(value)}`);
});

const NUMBER_OR_TEXT: JsonSchema = { anyOf: [{ type: "number" }, { type: "string" }] };

/** Bytes: a whole number of them, or a size such as `64m`. */
export const bytes: Schema<number> = reads(NUMBER_OR_TEXT, (value) => {
  if (typeof value === "string") return readBytes(value);
  const isNumber = typeof value === "bigint" || typeof value === "number";
  if (!isNumber || !Number.isSafeInteger(Number(value))) {
    return new Refusal(`must be a size, as 64m or a number of bytes, not ${kindOf(value)}`);
  }
  return value < 0 ? new Refusal(`is the size ${value}, which is below 0`) : Number(value);
});

/** A file mode. YAML has read `0440` as octal already; a text is octal as it stands. */
export const fileMode: Schema<number> = reads(NUMBER_OR_TEXT, (value) => {
  if (typeof value === "string" && /^(0o)?[0-7]{1,5}$/.test(value)) return Number.parseInt(value.replace("0o", ""), 8);
  if (typeof value === "bigint" && value >= 0n && value <= 0o7777n) return Number(value);
  return new Refusal(`must be a file mode in octal, as 0440, not ${kindOf(value)}`);
});

/**
 * What becomes of an entry that a list has already. Compose's JSON schema says uniqueItems of many lists, but of most of them
 * compose drops repeats before it looks there (compose-go, override/uncity.go).
 */
type Repeats = "kept" | "refused" | "dropped";

export function listOf<T>(item: Schema<T>, { repeats = "kept" }: { repeats?: Repeats } = {}): Schema<T[]> {
  const unique = repeats === "refused" ? { uniqueItems: true } : {};
  const json = () => ({ type: "array", items: jsonSchemaOf(item), ...unique });
  const items = v.pipe(
    v.array(item, (issue) => `must be a list, not ${kindOf(issue.input)}`),
    shape(json),
  );
  if (repeats === "kept") return items;
  return v.pipe(
    v.unknown(),
    v.rawTransform(({ dataset, addIssue, NEVER }) => {
      const result = v.safeParse(items, dataset.value);
      const found = Array.isArray(dataset.value) ? findRepeats(dataset.value) : [];
      for (const { message, path } of result.issues ?? []) {
        const [first, ...rest] = stepsOf(path);
        addIssue({ message, ...(first ? { path: [first, ...rest] as [Step, ...Step[]] } : {}) });
      }
      if (repeats === "refused") for (const { index, message } of found) addIssue({ message, path: [step(index)] });
      if (!result.success || (repeats === "refused" && found.length > 0)) return NEVER;
      const repeated = new Set(found.map(({ index }) => index));
      return result.output.filter((_, index) => !repeated.has(index));
    }),
    shape(json),
  );
}

function findRepeats(items: readonly unknown[]): { index: number; message: string }[] {
  const seen = new Map<unknown, number>();
  const repeats: { index: number; message: string }[] = [];
  for (const [index, item] of items.entries()) {
    if (typeof item === "object") continue;
    const first = seen.get(item);
    if (first === undefined) seen.set(item, index);
    else repeats.push({ index, message: `is ${kindOf(item)} once more: entry ${first} says so already` });
  }
  return repeats;
}

export const uniqueTexts: Schema<string[]> = listOf(text, { repeats: "refused" });
/** Texts, each once however often it is written. */
export const distinctTexts: Schema<string[]> = listOf(text, { repeats: "dropped" });

/** One of several forms of a value: the one that `pick` names. */
export function byForm<F extends Readonly<Record<string, Schema<unknown>>>>(
  forms: F,
  pick: (value: unknown) => keyof F & string,
): Schema<v.InferOutput<F[keyof F & string]>> {
  const schemas: Readonly<Record<string, Schema<unknown>>> = forms;
  return v.pipe(
    v.lazy((value) => schemas[pick(value)] ?? v.never()) as Schema<v.InferOutput<F[keyof F & string]>>,
    shape(() => ({ anyOf: Object.values(schemas).map(jsonSchemaOf) })),
  );
}

/** Takes any value and means `result`; for the form of `byForm` that is one word or nothing. */
export function meaning<T>(result: T, json: JsonSchema): Schema<T> {
  return v.pipe(
    v.unknown(),
    v.transform(() => result),
    shape(() => json),
  );
}

/** A key that is named and nothing more. */
export const NOTHING: JsonSchema = { type: "null" };

/** One item, or a list of them. */
export function oneOrMore<T>(item: Schema<T>): Schema<T[]> {
  const one: Schema<T[]> = v.pipe(
    item,
    v.transform((value) => [value]),
  );
  const more = listOf(item, { repeats: "dropped" });
  return byForm({ one, more }, (value) => (Array.isArray(value) ? "more" : "one"));
}

export const textOrTexts: Schema<string[]> = oneOrMore(text);

/** A mapping from names of the user's to values of one kind; sorted by name, because its order means nothing. */
export function mapOf<T>(value: Schema<T>): Schema<[string, T][]> {
  return v.pipe(
    v.map(v.string(), value, (issue) => `must be a mapping (key: value), not ${kindOf(issue.input)}`),
    v.transform((entries) => sorted([...entries])),
    shape(() => ({ type: "object", additionalProperties: jsonSchemaOf(value) })),
  );
}

function sorted<T>(pairs: [string, T][]): [string, T][] {
  return pairs.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

/** A text, number, boolean or nothing, as the text that compose makes of it. */
const SCALAR: JsonSchema = { anyOf: ["string", "number", "boolean", "null"].map((type) => ({ type })) };
const scalarText: Schema<string | undefined> = reads(SCALAR, (value) => {
  if (value instanceof Map || Array.isArray(value))
    return new Refusal(`must be a text, number or boolean, not ${kindOf(value)}`);
  return value === null ? undefined : writeScalar(value as Scalar);
});

/** As Go's fmt prints it, which compose uses: fractions and what is written as one (`1000000.0`) take exponent form from 1e+06
 * and below 0.0001; whole numbers never. */
function writeScalar(value: Scalar): string {
  if (typeof value !== "number") return String(value);
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+Inf" : "-Inf";
  const [digits = "", exponent = ""] = value.toExponential().split("e");
  const power = Number(exponent);
  if (power >= -4 && power < 6) return String(value);
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

const assignmentList: Schema<[string, string | undefined][]> = v.pipe(
  listOf(
    readsText((item): [string, string | undefined] => {
      const equals = item.indexOf("=");
      return equals < 0 ? [item, undefined] : [item.slice(0, equals), item.slice(equals + 1)];
    }),
    { repeats: "dropped" },
  ),
  v.transform((entries) => sorted([...new Map(entries)])),
);

/** Names with texts, as a mapping or a list of `NAME=text`; a name alone has none. Sorted by name; the last one of a name wins. */
export const namesWithTexts: Schema<[string, string | undefined][]> = byForm(
  { list: assignmentList, mapping: mapOf(scalarText) },
  (value) => (Array.isArray(value) ? "list" : "mapping"),
);

/** As `namesWithTexts`, where nothing and an empty text are the same. */
export const namesAndTexts: Schema<[string, string][]> = v.pipe(
  namesWithTexts,
  v.transform((entries) => entries.map(([name, value]): [string, string] => [name, value ?? ""])),
);

/** A mapping from names to texts or numbers, as drivers take for options. */
export const options: Schema<[string, string][]> = mapOf(reads(NUMBER_OR_TEXT, readOption));

/** As `options`, where an option may stand without a value. */
export const bareOptions: Schema<[string, string][]> = mapOf(
  reads({ anyOf: [NUMBER_OR_TEXT, NOTHING] }, (value) => (value === null ? "" : readOption(value))),
);

function readOption(value: unknown): string | Refusal {
  const isText = typeof value === "string" || value instanceof Timestamp;
  if (isText || typeof value === "bigint" || typeof value === "number") return writeScalar(value);
  return new Refusal(`must be a text or a number, not ${kindOf(value)}`);
}
