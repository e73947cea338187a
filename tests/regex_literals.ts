/**
 * @module Finds the regular expressions in a TypeScript source: the literals, and what `new RegExp(` is given. It reads just as
 * much of the language as that takes: comments, strings and templates are skipped.
 */

export type FoundRegex = { line: number; source: string; flags: string };

/** After one of these a slash begins a regular expression; after all else it divides. */
const BEFORE_REGEX = "(,=:[!&|?{};+-*%<>~^";
const WORDS_BEFORE_REGEX = ["return", "case", "typeof", "of", "in", "await"];

/** The literals in `text`, in order. */
export function regexLiterals(text: string): FoundRegex[] {
  const found: FoundRegex[] = [];
  /** For each template that is open: how many braces are open in the `${` that is being read. */
  const templates: number[] = [];
  let last = "";
  let word = "";
  for (let at = 0; at < text.length;) {
    const char = text[at] ?? "";
    if (text.startsWith("//", at)) at = endOf(text, "\n", at);
    else if (text.startsWith("/*", at)) at = endOf(text, "*/", at + 2);
    else if (char === '"' || char === "'") {
      at = endOfQuoted(text, at);
      [last, word] = [char, ""];
    } else if (char === "`" || (char === "}" && templates.at(-1) === 0)) {
      if (char === "}") templates.pop();
      const end = endOfTemplatePart(text, at + 1);
      if (text.startsWith("${", end)) templates.push(0);
      at = text.startsWith("${", end) ? end + 2 : end + 1;
      [last, word] = [text.startsWith("${", end) ? "{" : "`", ""];
    } else if (char === "/" && (last === "" || BEFORE_REGEX.includes(last) || WORDS_BEFORE_REGEX.includes(word))) {
      const end = endOfRegex(text, at);
      const flags = /[a-z]*/y;
      flags.lastIndex = end + 1;
      const read = flags.exec(text)?.[0] ?? "";
      found.push({ line: text.slice(0, at).split("\n").length, source: text.slice(at + 1, end), flags: read });
      at = end + 1 + read.length;
      [last, word] = ["/", ""];
    } else {
      if (templates.length > 0 && (char === "{" || char === "}"))
        templates.push((templates.pop() ?? 0) + (char === "{" ? 1 : -1));
      if (/\S/.test(char)) {
        const before = text[at - 1] ?? "";
        word = /\w/.test(char) ? (/\w/.test(before) ? word + char : char) : "";
        last = char;
      }
      at++;
    }
  }
  return found;
}

function endOf(text: string, end: string, from: number): number {
  const at = text.indexOf(end, from);
  return at < 0 ? text.length : at + end.length;
}

function endOfQuoted(text: string, start: number): number {
  for (let at = start + 1; at < text.length; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === text[start]) return at + 1;
  }
  return text.length;
}

/** Where the text of a template goes over into `${`, or ends. */
function endOfTemplatePart(text: string, start: number): number {
  for (let at = start; at < text.length; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "`" || text.startsWith("${", at)) return at;
  }
  return text.length;
}

function endOfRegex(text: string, start: number): number {
  let inClass = false;
  for (let at = start + 1; at < text.length; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "[") inClass = true;
    else if (text[at] === "]") inClass = false;
    else if (text[at] === "/" && !inClass) return at;
  }
  throw new Error(`a regular expression does not end: ${text.slice(start, start + 80)}`);
}
