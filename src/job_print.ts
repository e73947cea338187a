/**
 * @module A document's tree as JSON text, which read again means the same: `$` is doubled, numbers keep their kind. Made by hand:
 * an object would lose `__proto__`, the order of numeric keys, and digits.
 */
import { escapeVariables } from "./job_interpolate.ts";
import { Timestamp } from "./job_scalars.ts";
import type { Tree } from "./job_yaml.ts";

export function print(tree: Tree): string {
  if (tree.kind === "list") return `[${tree.items.map(print).join(",")}]`;
  if (tree.kind === "map") {
    return `{${Array.from(tree.entries, ([key, { value }]) => `${quote(key)}:${print(value)}`).join(",")}}`;
  }
  const { value } = tree;
  if (typeof value === "string" || value instanceof Timestamp) return quote(escapeVariables(String(value)));
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return quote(Number.isNaN(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf");
  // A fraction that happens to be whole stays a fraction when it is read again.
  return Number.isInteger(value) ? value.toExponential() : String(value);
}

/** JSON's text, with what YAML does not allow as it is escaped as well. */
function quote(text: string): string {
  const escape = (char: string) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(text).replaceAll(/[\x7f-\x84\x86-\x9f\ufffe\uffff]/g, escape);
}
