/**
 * @module Texts that make a backtracking regular expression or a careless loop slow: a piece that is repeated, after a beginning
 * that starts a match, before an end that no match has. And the measure of whether a reader's time grows with the square of them.
 */

export type HostileShape = { start: string; piece: string; end: string };

/** One or two of each kind of character, and the pairs that small languages have a meaning for. */
const PIECES = [
  " ",
  "\t",
  "\n",
  "\r",
  "0",
  "7",
  "a",
  "A",
  "é",
  '"',
  "'",
  "`",
  "\\",
  "$",
  "{",
  "}",
  "[",
  "(",
  ")",
  ".",
  "/",
  ":",
  "-",
]
  .concat([
    "_",
    "=",
    "#",
    "*",
    ",",
    "@",
    "\0",
    "\u001b[",
    "${",
    "${A:-",
    "$A",
    "a.",
    "a-",
    "a/",
    "a:",
    "1.",
    "1m",
    "\r\n",
    "a ",
    "a=",
  ])
  .concat(['\\"', "\\\\", "../", "\u001b]", "💥"]);
const STARTS = ["", "a", "1", " ", '"', "'", "."];
const ENDS = ["", "!", "\na"];

/** Shapes for a text of any kind, and for one that is read for some `words`. */
export function hostileShapes(words: readonly string[] = []): HostileShape[] {
  const pieces = [...new Set([...PIECES, ...words, words.join("a"), words.join(" ")])].filter((piece) => piece !== "");
  const starts = new Set([
    ...STARTS,
    ...words.flatMap((word) => [word, `a${word}`, `${word}a`, `a${word}a`]),
    words.join("a"),
  ]);
  return pieces.flatMap((piece) => [...starts].flatMap((start) => ENDS.map((end) => ({ start, piece, end }))));
}

/** A text of about `length` characters. */
export function hostileText({ start, piece, end }: HostileShape, length: number): string {
  return start + piece.repeat(Math.ceil(length / piece.length)) + end;
}

/** What a regular expression looks for word by word: its source without all that repeats, groups or stands for many. */
export function wordsOf(source: string): string[] {
  const literal = source
    .replaceAll(/\\[pPu]\{[^}]*\}|\\u[0-9a-f]{4}|\\[dDwWsSbBtrnfv0]/gi, "\n")
    .replaceAll(/\\(.)/g, (_, char: string) => (/[\w\s]/.test(char) ? "\n" : char))
    .replaceAll(/\[[^\]]*\]|\(\?(?:[:=!]|<[=!])|\{[\d,]*\}|[()|?*+^$.]/g, "\n");
  return [...new Set(literal.split("\n"))].filter((word) => word !== "");
}

/** Characters that are tried first, where even a quadratic reader is quick, and those that a slow one is tried with then. */
const FIRST_LENGTH = 4 * 1024;
const LENGTHS = [16, 64, 128].map((kib) => kib * 1024);
/** A linear reader takes a few microseconds for the first length. */
const SUSPICIOUS_MS = 0.3;
/** Milliseconds of the last length: a linear reader takes some, one of the square of it takes seconds. */
const TOO_SLOW_MS = 300;

/** The first shape that `read` takes too long for, with its time; undefined: its time grows about linearly with any. */
export function slowShape(read: (text: string) => unknown, shapes: readonly HostileShape[]): string | undefined {
  for (const shape of shapes) {
    if (timeOf(() => read(hostileText(shape, FIRST_LENGTH))) < SUSPICIOUS_MS) continue;
    for (const length of LENGTHS) {
      const text = hostileText(shape, length);
      // Once more where it was slow: others may have had the processor.
      const ms = timeOf(() => read(text)) < TOO_SLOW_MS ? 0 : timeOf(() => read(text));
      if (ms >= TOO_SLOW_MS) return `${length} characters of ${JSON.stringify(shape)}: ${Math.round(ms)} ms`;
    }
  }
  return undefined;
}

/** Milliseconds that `work` takes. */
export function timeOf(work: () => unknown): number {
  const start = performance.now();
  work();
  return performance.now() - start;
}
