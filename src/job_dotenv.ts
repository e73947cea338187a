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
    at = afterComments(text, at);
    if (at >= text.length) return entries;
    if (entries.size === MAX_ENTRIES) return fault(`is one more than the ${MAX_ENTRIES} entries that are taken`);
    const start = afterExport(text, at);
    const nameEnd = after(text, NAME, start);
    const name = text.slice(start, nameEnd);
    const separator = after(text, BLANKS, nameEnd);
    const isAlone = separator === text.length || text[separator] === "\n";
    if (name === "" || !(isAlone || text[separator] === "=" || text[separator] === ":"))
      return fault("is no NAME=value; a value of several lines stands in quotes");
    if (isAlone) {
      const given = lookup(name);
      if (given !== undefined) entries.set(name, given);
      at = separator;
    } else {
      const value = readValue(text, { at: after(text, BLANKS, separator + 1), lookup: known });
      if (value instanceof Refusal) return fault(value.message);
      entries.set(name, value.value);
      total += value.value.length;
      if (total > MAX_TOTAL_LENGTH) return fault(`brings the values to over ${MAX_TOTAL_LENGTH} characters`);
      at = value.end;
    }
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

// Sticky runs of one class each: they take as long as they find, wherever in the text they are asked.
const BLANKS = /[^\S\n]*/y;
const SPACES = /\s*/y;
const NAME = /[\p{L}\p{N}_.[\]-]*/uy;

/** Where the run of such characters that begins at `at` ends. */
function after(text: string, run: RegExp, at: number): number {
  run.lastIndex = at;
  return at + (run.exec(text)?.[0].length ?? 0);
}

/** Past empty lines and those that begin with `#`. */
function afterComments(text: string, start: number): number {
  let at = after(text, SPACES, start);
  while (text[at] === "#") at = after(text, SPACES, lineEnd(text, at));
  return at;
}

/** Past the word that a shell's file has before a name. A variable may be called so itself. */
function afterExport(text: string, at: number): number {
  if (!text.startsWith("export", at)) return at;
  const end = at + "export".length;
  const next = after(text, BLANKS, end);
  return next > end ? next : at;
}

function lineEnd(text: string, at: number): number {
  const end = text.indexOf("\n", at);
  return end < 0 ? text.length : end;
}

type Read = { value: string; /** Where the text goes on. */ end: number };

function readValue(text: string, { at, lookup }: { at: number; lookup: Lookup }): Read | Refusal {
  const quote = text[at];
  if (quote !== '"' && quote !== "'") {
    const end = lineEnd(text, at);
    const [written = ""] = text.slice(at, end).split(" #", 1);
    const value = replaceVariables(written.trimEnd(), lookup);
    return value instanceof Refusal ? withoutValue(value) : { value, end };
  }
  let close = at + 1;
  while (close < text.length && text[close] !== quote) close += text[close] === "\\" ? 2 : 1;
  if (close >= text.length) return new Refusal(`has a ${quote} that is not closed`);
  const plain = text.slice(at + 1, close).replaceAll(`\\${quote}`, quote);
  const end = close + 1;
  if (quote === "'") return { value: plain, end };
  const value = replaceVariables(unescape(plain), lookup);
  return value instanceof Refusal ? withoutValue(value) : { value, end };
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
