/**
 * @module Text of a compose document -> a tree that knows where each part stands. The only importer of `yaml`, which lexes,
 * parses and composes; this file owns anchors, merge keys, duplicate keys, tags (as compose's own reader, go-yaml, has them; what
 * a scalar means is in `job_scalars.ts`) and the limits that keep hostile input cheap. It knows nothing of compose's keys.
 *
 * The package's own schemas are not used: they read `0440` as decimal, lose digits of large numbers, compare every key with
 * every other (quadratic) and look each alias up by walking the document.
 */
import { resolvePlain, resolveTagged, type Scalar, SCALAR_TAGS } from "./job_scalars.ts";
import {
  Composer,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  Parser,
  type Document,
  type Scalar as ScalarNode,
} from "yaml";

/** Keys and indexes from the root of the document. */
export type Path = readonly (string | number)[];

/** `at`: offset into the text, where it differs from the place that `path` names or the path does not exist. */
export type Fault = { path: Path; message: string; at?: number };

type Base = {
  /** Offset into the text. */
  at: number;
  /** Nodes in this tree, each alias counted as often as it is used. */
  size: number;
  depth: number;
};
export type ScalarTree = Base & { kind: "scalar"; value: Scalar };
export type ListTree = Base & { kind: "list"; items: readonly Tree[] };
export type MapTree = Base & { kind: "map"; entries: ReadonlyMap<string, MapEntry> };
export type MapEntry = { keyAt: number; value: Tree };
export type Tree = ScalarTree | ListTree | MapTree;

/**
 * `unparseable`: no YAML at all; `refused`: beyond a limit, so nothing of it is known. Else `root` is as whole as the faults
 * leave it, so that later checks can add theirs.
 */
export type YamlResult =
  { state: "unparseable" | "refused"; faults: Fault[] } | { state: "parsed"; root: Tree; faults: Fault[] };

/** Levels of lists and mappings. Compose itself needs nine; each level costs stack in every reader that comes after. */
export const MAX_DEPTH = 64;
/** UTF-16 units of one value: Linux takes no longer argument or variable (MAX_ARG_STRLEN, 128 KiB). */
export const MAX_TEXT_LENGTH = 128 * 1024;
/** Uses of anchors. A surveyed file has 142; an alias is cheap here, what it stands for is counted by MAX_NODES. */
export const MAX_ALIASES = 10_000;
/** Values in the document once aliases stand for their contents: what a full 1 MiB of short values comes to. */
export const MAX_NODES = 300_000;
/** Lexemes. Real documents have one for each four characters, so 1 MiB of them stays well below; garbage would take seconds. */
const MAX_TOKENS = 700_000;
/** UTF-16 units of one value as it is written, with its escapes and indentation: a value that long is refused unread. */
const MAX_LEXEME_LENGTH = 2 * MAX_TEXT_LENGTH;
/** YAML 1.2 section 5.1: printable characters, tab and line breaks. */
const NOT_YAML = /[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/u;
/** Faults of what is no YAML: those after the first few follow from them. */
const MAX_ERRORS = 20;
/** Lines such as `%YAML 1.2` before a document. */
const MAX_DIRECTIVES = 16;
const YAML_TAG = "tag:yaml.org,2002:";
const TOO_DEEP = `is nested more than ${MAX_DEPTH} levels deep`;

/** Reads one YAML (or JSON) document of at most `maxNodes` values; see YamlResult. Never throws. */
export function readYaml(text: string, maxNodes = MAX_NODES): YamlResult {
  const control = NOT_YAML.exec(text);
  if (control) {
    const code = (control[0].codePointAt(0) ?? 0).toString(16).padStart(4, "0").toUpperCase();
    const message = `has the character U+${code}, which YAML does not allow`;
    return { state: "unparseable", faults: [{ path: [], message, at: control.index }] };
  }
  const documents = compose(text);
  if ("state" in documents) return documents;
  const [first, second] = documents;
  const errors = documents.flatMap((document) => document.errors);
  if (errors.length > 0) {
    const faults = errors.slice(0, MAX_ERRORS).map((e) => ({ path: [], message: plainMessage(e), at: e.pos[0] }));
    return { state: "unparseable", faults };
  }
  const reader = new TreeReader(maxNodes);
  const root = first ? reader.read(first.contents) : scalar(null, 0);
  if (!root) return { state: "refused", faults: reader.faults };
  if (second) {
    reader.faults.push({
      path: [],
      message: "is more than one YAML document: send one job at a time, without a further `---`",
      at: second.range[0],
    });
  }
  return { state: "parsed", root, faults: reader.faults };
}

/** What all keys and texts in `tree` come to, as often as aliases repeat them; a text as `measured`, a key by its length. */
export function lengthOf(tree: Tree, measured: (text: string) => number, known = new Map<Tree, number>()): number {
  let length = known.get(tree);
  if (length === undefined) {
    const sum = (total: number, value: Tree) => total + lengthOf(value, measured, known);
    if (tree.kind === "scalar") length = measured(String(tree.value));
    else if (tree.kind === "list") length = tree.items.reduce(sum, 0);
    else length = [...tree.entries].reduce((total, [key, { value }]) => sum(total + key.length, value), 0);
    known.set(tree, length);
  }
  return length;
}

/** The part of `root` that `path` names, where there is one. */
export function treeAt(root: Tree, path: Path): Tree | undefined {
  let tree: Tree | undefined = root;
  for (const step of path) tree = tree && child(tree, step)?.value;
  return tree;
}

/** Offset of the place that `path` names in `root`, or of the deepest part of it that exists. */
export function locate(root: Tree, path: Path, { key = false }: { key?: boolean } = {}): number {
  let tree = root;
  let at = root.at;
  for (const [index, step] of path.entries()) {
    const next = child(tree, step);
    if (!next) break;
    tree = next.value;
    at = key && index === path.length - 1 ? next.keyAt : tree.at;
  }
  return at;
}

function child(tree: Tree, step: string | number): MapEntry | undefined {
  if (tree.kind === "map") return tree.entries.get(String(step));
  const item = tree.kind === "list" && typeof step === "number" ? tree.items[step] : undefined;
  return item && { keyAt: item.at, value: item };
}

export function scalar(value: Scalar, at: number): ScalarTree {
  return { kind: "scalar", value, at, size: 1, depth: 0 };
}

export function list(items: readonly Tree[], at: number): ListTree {
  return { kind: "list", items, at, ...measure(items) };
}

export function map(entries: ReadonlyMap<string, MapEntry>, at: number): MapTree {
  return { kind: "map", entries, at, ...measure(Array.from(entries.values(), (entry) => entry.value)) };
}

function measure(children: readonly Tree[]): { size: number; depth: number } {
  let size = 1;
  let depth = 0;
  for (const child of children) {
    size += child.size;
    depth = Math.max(depth, child.depth);
  }
  return { size, depth: depth + 1 };
}

/** The package's messages go on over several lines with a picture; the first line says it. */
function plainMessage(error: { message: string }): string {
  return `is not valid YAML: ${(error.message.split("\n")[0] ?? "").replace(/ at line \d+, column \d+:?$/, "")}`;
}

/** Drives the package token by token, so that depth and length are refused before anything is built of them. */
function compose(text: string): Document.Parsed[] | Exclude<YamlResult, { state: "parsed" }> {
  const lines = new LineCounter();
  const parser = new Parser(lines.addNewLine);
  const composer = new Composer({
    schema: "failsafe",
    merge: false,
    uniqueKeys: false,
    // Tags are ours to resolve: the package would make dates and bytes of them.
    resolveKnownTags: false,
    prettyErrors: false,
    logLevel: "silent",
    lineCounter: lines,
  });
  const documents: Document.Parsed[] = [];
  let tokens = 0;
  let directives = 0;
  let aliases = 0;
  let offset = 0;
  try {
    for (const lexeme of new Lexer().lex(text)) {
      if (lexeme.length > MAX_LEXEME_LENGTH) {
        return refused(`has a text of ${lexeme.length} characters; at most ${MAX_TEXT_LENGTH} are taken`, offset);
      }
      for (const token of parser.next(lexeme)) {
        // The rest of what is no YAML could hold another fault in each character.
        if (token.type === "error")
          return { state: "unparseable", faults: [{ path: [], message: plainMessage(token), at: token.offset }] };
        if (token.type === "directive" && ++directives > MAX_DIRECTIVES)
          return refused("has too many % lines", token.offset);
        documents.push(...composer.next(token));
      }
      offset = parser.offset;
      // A level takes up to two places on the parser's stack: a collection and the item that is being read.
      if (parser.stack.length > 2 * MAX_DEPTH) return refused(TOO_DEEP, offset);
      if (lexeme.startsWith("*") && ++aliases > MAX_ALIASES) return refused(`has over ${MAX_ALIASES} aliases`, offset);
      if (++tokens > MAX_TOKENS) return refused(`has over ${MAX_TOKENS} parts`, offset);
      if (documents.length > 2) break;
    }
    for (const token of parser.end()) documents.push(...composer.next(token));
    documents.push(...composer.end());
    return documents;
  } catch (error) {
    if (error instanceof RangeError) return refused(TOO_DEEP, offset);
    const message = `is not valid YAML: ${error instanceof Error ? error.message : error}`;
    return { state: "unparseable", faults: [{ path: [], message, at: offset }] };
  }
}

function refused(message: string, at: number): { state: "refused"; faults: Fault[] } {
  return { state: "refused", faults: [{ path: [], message, at }] };
}

/** Thrown to leave a document whose limits are passed; caught in `read`. */
class LimitReached extends Error {}

class TreeReader {
  readonly faults: Fault[] = [];
  readonly #anchors = new Map<string, Tree>();
  /** Anchors whose contents are being read: an alias to one of them would contain itself. */
  readonly #open = new Set<string>();
  /** Entries that merge keys have brought: each is a copy. */
  #merged = 0;
  readonly #maxNodes: number;

  constructor(maxNodes: number) {
    this.#maxNodes = maxNodes;
  }

  /** Undefined when a limit is passed; the last fault says which. */
  read(node: unknown): Tree | undefined {
    try {
      return this.#node(node, 0, []);
    } catch (error) {
      if (error instanceof LimitReached) return undefined;
      throw error;
    }
  }

  #node(node: unknown, at: number, path: Path): Tree {
    if (isAlias(node)) return this.#alias(node.source, node.range?.[0] ?? at, path);
    const anchor = isMap(node) || isSeq(node) || isScalar(node) ? node.anchor : undefined;
    if (anchor !== undefined) this.#open.add(anchor);
    const tree = this.#contents(node, at, path);
    if (tree.size > this.#maxNodes) this.#limit(`stands for over ${this.#maxNodes} values`, tree.at, path);
    if (tree.depth > MAX_DEPTH) this.#limit(TOO_DEEP, tree.at, path);
    if (anchor !== undefined) {
      this.#open.delete(anchor);
      this.#anchors.set(anchor, tree);
    }
    return tree;
  }

  #contents(node: unknown, at: number, path: Path): Tree {
    if (isMap(node)) {
      const start = node.range?.[0] ?? at;
      this.#tag(node.tag, { expected: "map", at: start, path });
      return this.#map(node.items, start, path);
    }
    if (isSeq(node)) {
      const start = node.range?.[0] ?? at;
      this.#tag(node.tag, { expected: "seq", at: start, path });
      const items = node.items.map((item, index) => this.#node(item, start, [...path, index]));
      return list(items, start);
    }
    if (!isScalar(node)) return scalar(null, at);
    const start = node.range?.[0] ?? at;
    const text = typeof node.value === "string" ? node.value : "";
    if (text.length > MAX_TEXT_LENGTH) {
      this.#limit(`is a text of ${text.length} characters; at most ${MAX_TEXT_LENGTH} are taken`, start, path);
    }
    return scalar(this.#scalarValue(text, { tag: node.tag, plain: node.type === "PLAIN", at: start, path }), start);
  }

  #scalarValue(
    text: string,
    { tag, plain, at, path }: { tag: string | undefined; plain: boolean; at: number; path: Path },
  ): Scalar {
    // go-yaml takes the tag `!` for none.
    if (tag === undefined || tag === "!") return plain ? resolvePlain(text) : text;
    const name = this.#tag(tag, { expected: "scalar", at, path });
    if (name === undefined) return text;
    const value = resolveTagged(text, name);
    if (value !== undefined) return value;
    this.faults.push({ path, message: `is tagged !!${name} but ${JSON.stringify(text)} is none`, at });
    return text;
  }

  /** The short name of a tag that means something here; others are a fault, and nothing is ever made of them. */
  #tag(
    tag: string | undefined,
    { expected, at, path }: { expected: "map" | "seq" | "scalar"; at: number; path: Path },
  ) {
    const name = tag?.startsWith(YAML_TAG) ? tag.slice(YAML_TAG.length) : undefined;
    if (tag === undefined || tag === "!" || name === expected) return undefined;
    const known = expected === "scalar" ? SCALAR_TAGS.find((candidate) => candidate === name) : undefined;
    if (known) return known;
    const message =
      tag === "!reset" || tag === "!override"
        ? `has the tag ${tag}, which changes an earlier file; a job is one document: leave the tag out`
        : `has the tag ${name === undefined ? tag : `!!${name}`}, which has no meaning in a compose document: leave it out`;
    this.faults.push({ path, message, at });
    return undefined;
  }

  #alias(name: string, at: number, path: Path): Tree {
    if (this.#open.has(name))
      this.faults.push({ path, message: `is the alias *${name} inside of what &${name} names`, at });
    else {
      const target = this.#anchors.get(name);
      if (target) return target;
      this.faults.push({ path, message: `is the alias *${name}, but nothing before it has the anchor &${name}`, at });
    }
    return scalar(null, at);
  }

  #map(pairs: readonly { key: unknown; value: unknown }[], at: number, path: Path): MapTree {
    const entries = new Map<string, MapEntry>();
    const merged: { tree: Tree; path: Path }[] = [];
    for (const pair of pairs) {
      const mergeKey = isMergeKey(pair.key) ? pair.key : undefined;
      const keyTree = mergeKey ? scalar("<<", mergeKey.range?.[0] ?? at) : this.#node(pair.key, at, path);
      if (keyTree.kind !== "scalar") {
        this.faults.push({ path, message: "has a key that is a list or a mapping; keys are text", at: keyTree.at });
        continue;
      }
      const key = isScalar(pair.key) ? String(pair.key.value ?? "") : String(keyTree.value ?? "");
      const here = [...path, key];
      const value = this.#node(pair.value, keyTree.at, here);
      if (entries.has(key)) {
        this.faults.push({ path: here, message: "is given twice: keep one", at: keyTree.at });
      }
      entries.set(key, { keyAt: keyTree.at, value });
      if (mergeKey) merged.push({ tree: value, path: here });
    }
    if (merged.length > 0) entries.delete("<<");
    for (const source of merged) this.#merge(entries, source);
    return map(entries, at);
  }

  /** YAML 1.1 merge key: own keys win over merged ones, an earlier source over a later one, nothing is merged deeper. */
  #merge(entries: Map<string, MapEntry>, { tree, path }: { tree: Tree; path: Path }): void {
    for (const source of tree.kind === "list" ? tree.items : [tree]) {
      if (source.kind !== "map") {
        this.faults.push({
          path,
          message: "merges something that is no mapping: name an anchor of a mapping, or a list of them",
          at: source.at,
        });
        continue;
      }
      this.#merged += source.entries.size;
      if (this.#merged > this.#maxNodes)
        this.#limit(`brings the document's merged keys to over ${this.#maxNodes}`, source.at, path);
      for (const [key, entry] of source.entries) if (!entries.has(key)) entries.set(key, entry);
    }
  }

  #limit(message: string, at: number, path: Path): never {
    this.faults.push({ path, message, at });
    throw new LimitReached();
  }
}

/** `<<`, plain or with the tag that says so (go-yaml, isMerge). */
function isMergeKey(key: unknown): key is ScalarNode {
  if (!isScalar(key) || key.value !== "<<") return false;
  return key.tag === `${YAML_TAG}merge` || ((key.tag === undefined || key.tag === "!") && key.type === "PLAIN");
}
