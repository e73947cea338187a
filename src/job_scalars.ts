/**
 * @module What a scalar of YAML means, as go-yaml v3 reads it, which compose uses (its resolve.go). Pure, and knows nothing of
 * documents.
 */
import { withoutTrailing } from "./text.ts";

/** Integers are `bigint` and other numbers `number`, so that each can be written back as it was meant. */
export type Scalar = string | bigint | number | boolean | Timestamp | null;

/** A date without quotes. Compose takes one only where it makes a text of any value, which is then as Go prints it. */
export class Timestamp {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  toString(): string {
    return this.#text;
  }
}

/** Short names of the tags that a scalar may have. */
export const SCALAR_TAGS = ["str", "int", "float", "bool", "null", "timestamp", "binary"] as const;

const INTEGER = /^([-+]?)(0[bB][01]+|0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0|[1-9][0-9]*)$/;
const FLOAT = /^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$/;
const MAX_UINT64 = 2n ** 64n - 1n;
const WORDS = new Map<string, Scalar>([
  ...["", "~", "null", "Null", "NULL"].map((word) => [word, null] as const),
  ...["true", "True", "TRUE"].map((word) => [word, true] as const),
  ...["false", "False", "FALSE"].map((word) => [word, false] as const),
  ...[".nan", ".NaN", ".NAN"].map((word) => [word, Number.NaN] as const),
  ...[".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"].map((word) => [word, Number.POSITIVE_INFINITY] as const),
  ...["-.inf", "-.Inf", "-.INF"].map((word) => [word, Number.NEGATIVE_INFINITY] as const),
]);

/** A plain scalar: YAML 1.2's core schema, but `0440` is octal and `1_000` a number. `yes`, `on` and `2222:22` stay text. */
export function resolvePlain(text: string): Scalar {
  const word = WORDS.get(text);
  if (word !== undefined) return word;
  if (!/^[-+.0-9]/.test(text)) return text;
  const digits = text.replaceAll("_", "");
  const integer = INTEGER.exec(digits);
  if (integer) {
    const [, sign, body = ""] = integer;
    const value = BigInt(/^0[0-7]/.test(body) ? `0o${body.slice(1)}` : body.toLowerCase());
    if (value <= MAX_UINT64) return sign === "-" ? -value : value;
  }
  return FLOAT.test(digits) ? Number(digits) : (readTimestamp(text) ?? text);
}

/** A scalar with a tag, in quotes or not; undefined if the text is none of that kind. */
export function resolveTagged(text: string, tag: (typeof SCALAR_TAGS)[number]): Scalar | undefined {
  if (tag === "str") return text;
  if (tag === "binary") return readBase64(text);
  if (tag === "timestamp") return readTimestamp(text);
  const value = resolvePlain(text);
  if (tag === "float") return typeof value === "bigint" || typeof value === "number" ? Number(value) : undefined;
  const kind = { int: typeof value === "bigint", bool: typeof value === "boolean", null: value === null }[tag];
  return kind ? value : undefined;
}

/** Bytes that are a text, since compose has no others. */
function readBase64(text: string): string | undefined {
  const digits = text.replaceAll(/[\r\n]/g, "");
  if (digits.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(digits)) return undefined;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Buffer.from(digits, "base64"));
  } catch {
    return undefined;
  }
}

/** A date, perhaps with a time: after `T` with a zone, after a space without one. */
const TIMESTAMP =
  /^(\d{4})-(\d{1,2})-(\d{1,2})(?:(?:[Tt](\d{1,2}):(\d{1,2}):(\d{1,2})([.,]\d+)?(Z|[-+]\d\d:\d\d))| (\d{1,2}):(\d{1,2}):(\d{1,2})([.,]\d+)?)?$/;

/** Go's `Time.String()` of what its `time.Parse` reads: `2024-01-02 03:04:05.6 +0200 +0200`. */
function readTimestamp(text: string): Timestamp | undefined {
  const match = TIMESTAMP.exec(text);
  if (!match) return undefined;
  const [year = 0, month = 0, day = 0] = match.slice(1, 4).map(Number);
  const [hours = "0", minutes = "0", seconds = "0", fraction = ""] = match[4] ? match.slice(4, 8) : match.slice(9, 13);
  const isLeap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0);
  const days = month === 2 ? (isLeap ? 29 : 28) : [4, 6, 9, 11].includes(month) ? 30 : 31;
  if (month < 1 || month > 12 || day < 1 || day > days) return undefined;
  if (Number(hours) > 23 || Number(minutes) > 59 || Number(seconds) > 59) return undefined;
  const zone = zoneOf(match[8] ?? "Z");
  const two = (part: string | number) => String(part).padStart(2, "0");
  const nanoseconds = withoutTrailing(fraction.slice(1, 10), "0");
  const date = `${match[1]}-${two(month)}-${two(day)}`;
  const time = `${two(hours)}:${two(minutes)}:${two(seconds)}${nanoseconds && "."}${nanoseconds}`;
  return zone === undefined ? undefined : new Timestamp(`${date} ${time} ${zone}`);
}

function zoneOf(written: string): string | undefined {
  const [hours, minutes] = [Number(written.slice(1, 3)), Number(written.slice(4))];
  if (hours > 24 || minutes > 60) return undefined;
  if (hours === 0 && minutes === 0) return "+0000 UTC";
  const offset = 60 * hours + minutes;
  const [h, m] = [Math.floor(offset / 60), offset % 60].map((part) => String(part).padStart(2, "0"));
  return `${written[0]}${h}${m} ${written[0]}${h}${m}`;
}
