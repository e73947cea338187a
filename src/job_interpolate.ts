/**
 * @module Variables in a compose document: `$NAME`, `${NAME}` and their forms with defaults, alternatives and demands, as the
 * Compose Specification ("Interpolation") has them. Works on the tree before anything is cast to a type, in values only, never
 * in keys. Values come from the caller alone: the environment of this process is nobody's business here.
 */
import { Refusal } from "./job_grammar.ts";
import { list, map, MAX_TEXT_LENGTH, scalar, type Fault, type Path, type Tree } from "./job_yaml.ts";

export type Interpolated = { root: Tree; faults: Fault[]; warnings: Fault[] };

type Environment = ReadonlyMap<string, string>;

/** Defaults inside of defaults: no document needs more, and each level is a call deeper. */
const MAX_NESTING = 16;
/** Text that all variables of a document together may come to: a few values named often must not fill the memory. */
const MAX_TOTAL_LENGTH = 4 * 1024 * 1024;

/** Replaces the variables in all values; `environment` entries without a value take the variable's, where there is one. */
export function interpolate(root: Tree, env: Environment): Interpolated {
  const faults: Fault[] = [];
  const warnings: Fault[] = [];
  const warned = new Set<string>();
  let total = 0;

  return { root: visit(root, []), faults, warnings };

  function visit(tree: Tree, path: Path): Tree {
    if (tree.kind === "list")
      return list(
        tree.items.map((item, index) => visit(item, [...path, index])),
        tree.at,
      );
    if (tree.kind === "map") {
      const entries = Array.from(tree.entries, ([key, entry]) => {
        const here = [...path, key];
        const value = takeFromEnvironment(entry.value, here, env) ?? visit(entry.value, here);
        return [key, { ...entry, value }] as const;
      });
      return map(new Map(entries), tree.at);
    }
    if (typeof tree.value !== "string") return tree;
    const listed = takeFromEnvironment(tree, path, env);
    if (listed) return listed;
    return tree.value.includes("$") ? scalar(text(tree.value, path), tree.at) : tree;
  }

  function text(template: string, path: Path): string {
    try {
      const value = substitute(template, {
        look: (name) => env.get(name),
        onUnset: (name) => warn(name, path),
        nesting: 0,
      });
      total += value.length;
      if (total > MAX_TOTAL_LENGTH)
        throw new BadTemplate(`brings the document's variables to over ${MAX_TOTAL_LENGTH} characters`);
      return value;
    } catch (error) {
      if (!(error instanceof BadTemplate)) throw error;
      faults.push({ path, message: error.message });
      return template;
    }
  }

  function warn(name: string, path: Path): void {
    if (warned.has(name)) return;
    warned.add(name);
    warnings.push({
      path,
      message: `variable ${name} is not set, so it is empty here; send ?env.${name}=… or write a default: \${${name}:-…}`,
    });
  }
}

/** One text with its variables replaced, as `look` knows them; unset ones are empty. */
export function replaceVariables(template: string, look: (name: string) => string | undefined): string | Refusal {
  if (!template.includes("$")) return template;
  try {
    return substitute(template, { look, onUnset: () => {}, nesting: 0 });
  } catch (error) {
    if (error instanceof BadTemplate) return new Refusal(error.message);
    throw error;
  }
}

/** Doubles every `$`, so that the text means itself when it is interpolated again. */
export function escapeVariables(text: string): string {
  return text.replaceAll("$", "$$$$");
}

/** Compose: an environment variable without a value (`NAME:` or `- NAME`) takes the one of whoever sends the document. */
function takeFromEnvironment(tree: Tree, path: Path, env: Environment): Tree | undefined {
  const [top, , section, name] = path;
  if (path.length !== 4 || top !== "services" || section !== "environment" || tree.kind !== "scalar") return undefined;
  if (typeof name === "string" && tree.value === null) {
    const value = env.get(name);
    return value === undefined ? undefined : scalar(value, tree.at);
  }
  if (typeof name === "number" && typeof tree.value === "string") {
    const value = env.get(tree.value);
    return value === undefined ? undefined : scalar(`${tree.value}=${value}`, tree.at);
  }
  return undefined;
}

class BadTemplate extends Error {}

type Substitution = { look: (name: string) => string | undefined; onUnset: (name: string) => void; nesting: number };

const NAME = /[A-Za-z_][A-Za-z0-9_]*/y;

function substitute(template: string, options: Substitution): string {
  if (options.nesting > MAX_NESTING) throw new BadTemplate(`has defaults nested more than ${MAX_NESTING} deep`);
  let out = "";
  let rest = 0;
  for (;;) {
    const dollar = template.indexOf("$", rest);
    if (dollar < 0) return limited(out + template.slice(rest));
    out += template.slice(rest, dollar);
    const next = template[dollar + 1];
    if (next === "$") {
      out += "$";
      rest = dollar + 2;
    } else if (next === "{") {
      const end = closingBrace(template, dollar + 1);
      out += braced(template.slice(dollar + 2, end), options);
      rest = end + 1;
    } else {
      const name = nameAt(template, dollar + 1);
      // Compose leaves a dollar that starts no name as it is: `$5`, `$(date)`, a regular expression's end.
      out += name === undefined ? "$" : lookUp(name, options);
      rest = dollar + 1 + (name?.length ?? 0);
    }
    limited(out);
  }
}

function limited(text: string): string {
  if (text.length <= MAX_TEXT_LENGTH) return text;
  throw new BadTemplate(`comes to over ${MAX_TEXT_LENGTH} characters with its variables`);
}

function lookUp(name: string, { look, onUnset }: Substitution): string {
  const value = look(name);
  if (value === undefined) onUnset(name);
  return value ?? "";
}

/** What stands between the braces: a name, then perhaps one of `:- - :+ + :? ?` and a text that may hold variables itself. */
function braced(inside: string, options: Substitution): string {
  const name = nameAt(inside, 0);
  const operator = name === undefined ? undefined : /^(:?[-+?])?/.exec(inside.slice(name.length))?.[0];
  if (name === undefined || operator === undefined || (operator === "" && inside.length > name.length)) {
    throw new BadTemplate(
      `has \${${clip(inside)}}, which is no variable: a name is letters, digits and _, not starting with a digit; write $$ for a plain $`,
    );
  }
  if (operator === "") return lookUp(name, options);
  const argument = inside.slice(name.length + operator.length);
  const value = options.look(name);
  const present = value !== undefined && (value !== "" || !operator.startsWith(":"));
  const nested = () => substitute(argument, { ...options, nesting: options.nesting + 1 });
  if (operator.endsWith("-")) return present ? value : nested();
  if (operator.endsWith("+")) return present ? nested() : "";
  if (present) return value;
  const reason = nested();
  throw new BadTemplate(`needs variable ${name}${reason === "" ? "" : ` (${clip(reason)})`}: send ?env.${name}=…`);
}

function nameAt(text: string, index: number): string | undefined {
  NAME.lastIndex = index;
  return NAME.exec(text)?.[0];
}

/** Braces are counted, so that a default may hold `${…}` and JSON. */
function closingBrace(template: string, open: number): number {
  let depth = 0;
  for (let index = open; index < template.length; index++) {
    if (template[index] === "{") depth++;
    if (template[index] === "}" && --depth === 0) return index;
  }
  throw new BadTemplate(`has \${ without its closing }: ${clip(template.slice(open - 1))}; write $$ for a plain $`);
}

function clip(text: string): string {
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}
