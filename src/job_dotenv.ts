/**
 * @module Files of `NAME=VALUE` lines as compose reads them (compose-go, package dotenv): `env_file`, `label_file`, `include`'s
 * and the request's own variables. Takes a text, gives its entries in order, or a Refusal that names the line. What a
 * variable inside of a value stands for is asked of the caller first, then of the lines above.
 */
import { Refusal } from "./job_grammar.ts";
import { replaceVariables } from "./job_interpolate.ts";

export type Lookup = (name: string) => string | undefined;

/** Entries of one file: more are no configuration. */
const MAX_ENTRIES = 10_000;
/** Characters that all values come to: a few lines that name each other twice double with each line. */
const MAX_TOTAL_LENGTH = 1024 * 1024;

/** The entries; a name alone has no value. Quotes are taken off, `#` after a space ends an unquoted value, `${X}` is replaced. */
export function readDotenv(source: string, lookup: Lookup): Map<string, string | undefined> | Refusal {
  const entries = new Map<string, string | undefined>();
  const text = source.replace(/^\uFEFF/, "").replaceAll("\r\n", "\n");
  const known: Lookup = (name) => lookup(name) ?? entries.get(name);
  let at = 0;
  let total = 0;
  const fault = (message: string) => new Refusal(`line ${text.slice(0, at).split("\n").length} ${message}`);
  for (;;) {
    at += /^(?:\s|#[^\n]*)*/.exec(text.slice(at))?.[0].length ?? 0;
    if (at >= text.length) return entries;
    if (entries.size === MAX_ENTRIES) return fault(`is one more than the ${MAX_ENTRIES} entries that are taken`);
    const head = /^(?:export[^\S\n]+)?([\p{L}\p{N}_.[\]-]*)[^\S\n]*(?:([=:])[^\S\n]*|(?=\n|$))/u.exec(text.slice(at));
    const name = head?.[1] ?? "";
    if (!head || name === "") return fault("is no NAME=value; a value of several lines stands in quotes");
    if (head[2] === undefined) entries.set(name, lookup(name));
    else {
      const value = readValue(text.slice(at + head[0].length), known);
      if (value instanceof Refusal) return fault(value.message);
      entries.set(name, value.value);
      total += value.value.length;
      if (total > MAX_TOTAL_LENGTH) return fault(`brings the values to over ${MAX_TOTAL_LENGTH} characters`);
      at += value.length;
    }
    at += head[0].length;
  }
}

/** As `format: raw` has it: each line as it stands, no quotes, no comments after a value, nothing replaced. */
export function readRawLines(source: string): Map<string, string | undefined> {
  const lines = source.replace(/^\uFEFF/, "").split(/\r?\n/);
  return new Map(
    lines
      .filter((line) => line.trim() !== "" && !line.startsWith("#"))
      .map((line) => {
        const equals = line.indexOf("=");
        return equals < 0 ? [line, undefined] : [line.slice(0, equals), line.slice(equals + 1)];
      }),
  );
}

type Read = { value: string; length: number };

function readValue(rest: string, lookup: Lookup): Read | Refusal {
  const quote = rest[0];
  if (quote !== '"' && quote !== "'") {
    const line = rest.split("\n", 1)[0] ?? "";
    const value = replaceVariables((line.startsWith("#") ? "" : (line.split(" #", 1)[0] ?? "")).trimEnd(), lookup);
    return value instanceof Refusal ? withoutValue(value) : { value, length: line.length };
  }
  const match = (quote === '"' ? /^"((?:\\[\s\S]|[^"\\])*)"/ : /^'((?:\\[\s\S]|[^'\\])*)'/).exec(rest);
  if (!match) return new Refusal(`has a ${quote} that is not closed`);
  const [whole, inside = ""] = match;
  const plain = inside.replaceAll(`\\${quote}`, quote);
  if (quote === "'") return { value: plain, length: whole.length };
  const value = replaceVariables(unescape(plain), lookup);
  return value instanceof Refusal ? withoutValue(value) : { value, length: whole.length };
}

const ESCAPES: Readonly<Record<string, string>> = {
  a: "\x07",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
  "\\": "\\",
  // What follows is interpolated, where a doubled dollar is one that stands for itself.
  $: "$$",
};

function unescape(text: string): string {
  return text.replaceAll(/\\([abfnrtv\\$])/g, (whole, letter: string) => ESCAPES[letter] ?? whole);
}

/** What is sent as a variable may be a secret, and faults are answered: they quote none of it. */
function withoutValue(refusal: Refusal): Refusal {
  if (!refusal.message.startsWith("has ${")) return refusal;
  return new Refusal("has a ${ that begins no variable; in single quotes it stands for itself");
}
