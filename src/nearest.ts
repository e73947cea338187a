/** @module The nearest known name to one that is not known, for messages that help ("did you mean …?"). */
import { closest, distance } from "fastest-levenshtein";

/** Characters of a name that may be a slip of a finger; comparing costs the product of both lengths. */
const MAX_LENGTH = 64;

/** The known name nearest to `name`, or undefined when none is near enough to be what was meant. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  if (known.length === 0 || name.length > MAX_LENGTH) return undefined;
  const near = closest(name, [...known]);
  return distance(name, near) <= Math.max(1, Math.floor(name.length / 3)) ? near : undefined;
}

/** `; did you mean 'x'?` for the nearest known name, or the list of names when it is short. */
export function suggest(name: string, known: readonly string[]): string {
  const near = nearest(name, known);
  if (near !== undefined) return `; did you mean '${near}'?`;
  return known.length > 0 && known.length <= 5 ? `; there is ${known.map((one) => `'${one}'`).join(", ")}` : "";
}
