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

/** The entries. Quotes are taken off, ` #` ends an unquoted value, `${X}` is replaced; a name alone takes the caller's value. */
export function readDotenv(source: string, lookup: Lookup): Map<string, string> | Refusal {
  const entries = new Map<string, string>();
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
    if (head[2] === undefined) {
      const given = lookup(name);
      if (given !== undefined) entries.set(name, given);
    } else {
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

/** As `format: raw` has it (docker/cli, package kvfile): each line from its first letter on as it stands, nothing replaced. */
export function readRawLines(source: string, lookup: Lookup): Map<string, string> | Refusal {
  const entries = new Map<string, string>();
  for (const [index, written] of source
    .replace(/^\uFEFF/, "")
    .split(/\r?\n/)
    .entries()) {
    const line = written.trimStart();
    if (line === "" || line.startsWith("#")) continue;
    const [name = ""] = line.split("=", 1);
    if (name === "" || /\s/.test(name)) return new Refusal(`line ${index + 1} is no NAME=value: a name has no spaces`);
    const value = name === line ? lookup(name) : line.slice(name.length + 1);
    if (value !== undefined) entries.set(name, value);
  }
  return entries;
}

type Read = { value: string; length: number };

function readValue(rest: string, lookup: Lookup): Read | Refusal {
  const quote = rest[0];
  if (quote !== '"' && quote !== "'") {
    const line = rest.split("\n", 1)[0] ?? "";
    const value = replaceVariables((line.split(" #", 1)[0] ?? "").trimEnd(), lookup);
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

/** Octal is `\0` and three digits; of what begins so and is none, compose takes the 0 away. */
function unescape(text: string): string {
  return text.replaceAll(/\\(?:([abfnrtv\\$])|0([0-9]{0,3}))/g, (whole, letter?: string, digits = "") => {
    if (letter !== undefined) return ESCAPES[letter] ?? whole;
    return /^[0-3][0-7]{2}$/.test(digits) ? String.fromCharCode(Number.parseInt(digits, 8)) : `\\${digits}`;
  });
}

/** What is sent as a variable may be a secret, and faults are answered: they quote none of it. */
function withoutValue(refusal: Refusal): Refusal {
  if (!refusal.message.startsWith("has ${")) return refusal;
  return new Refusal("has a ${ that begins no variable; in single quotes it stands for itself");
}
