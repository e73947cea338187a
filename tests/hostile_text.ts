/**
 * @module Text that makes a backtracking regular expression slow: a piece that is repeated, after a beginning that starts a
 * match and before an end that no match has.
 */

/** What is repeated, whatever a parser is for. */
const PIECES = [
  " ",
  "\t",
  "\n",
  "\r",
  "0",
  "1",
  "7",
  "a",
  "A",
  "é",
  '"',
  "'",
  "`",
  "\\",
  "$",
  "${",
  "}",
  "{",
  "[",
  "]",
  "(",
  ")",
];
const MORE = [".", "/", ":", "-", "_", "=", "#", "!", "&", "*", ",", ";", "%", "@", "\0", "\u001b[", "\ufeff", "💥"];
const PAIRS = [
  "a.",
  "a-",
  "a/",
  "a:",
  "1.",
  "1m",
  "0 ",
  "\r\n",
  " \n",
  "\\\\",
  '\\"',
  "$$",
  "$A",
  "${A:-",
  "a ",
  "a=",
  "../",
  "\u001b]",
];

/** What a match can begin with. */
const STARTS = ["", "a", "1", " ", '"', "'", ".", "${", "a=", 'a="', "export ", "a: "];
const ENDS = ["", "!", "\u0001", "a", "\n"];

export type HostileShape = { start: string; piece: string; end: string };

/** Shapes for a text of any kind; `more`: further pieces, as the words that a regular expression has. */
export function hostileShapes(more: readonly string[] = []): HostileShape[] {
  return [...PIECES, ...MORE, ...PAIRS, ...more].flatMap((piece) =>
    [...STARTS, ...more].flatMap((start) => ENDS.map((end) => ({ start, piece, end }))),
  );
}

/** A text of about `length` characters. */
export function hostileText({ start, piece, end }: HostileShape, length: number): string {
  return start + piece.repeat(Math.ceil(length / piece.length)) + end;
}
