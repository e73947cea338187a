/**
 * @module Small questions to texts from outside that a regular expression answers in quadratic time: `/0+$/` begins anew at each
 * zero of a long run that is not the end. These look at each character once.
 */

/** The text without the run of `char`, one character, that it ends with. */
export function withoutTrailing(text: string, char: string): string {
  let end = text.length;
  while (end > 0 && text[end - 1] === char) end--;
  return text.slice(0, end);
}

/** What stands after the first `start`, and before the first `end` after that; undefined where one is missing. */
export function between(text: string, start: string, end: string): string | undefined {
  const at = text.indexOf(start);
  const to = at < 0 ? -1 : text.indexOf(end, at + start.length);
  return to < 0 ? undefined : text.slice(at + start.length, to);
}
