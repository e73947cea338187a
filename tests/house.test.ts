/** @module The rules of the house: floors, circles, one outside package a file, nothing impure on the pure floor. */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const SRC = join(import.meta.dir, "..", "src");

/** Floors from the ground up; a file belongs to the entry that its name equals, or begins with up to a "_". */
const FLOORS: readonly (readonly string[])[] = [
  ["model", "clock", "log", "metrics", "nearest", "subnet", "text", "address", "version", "engine_version"],
  [
    "job",
    "container_options",
    "placement",
    "cluster_state",
    "cluster_views",
    "service_views",
    "split_warnings",
    "discovery",
    "reconcile",
    "converge",
    "overlay_plan",
    "names",
    "entry_choice",
  ],
  [
    "store",
    "docker",
    "client",
    "transport",
    "data_dir",
    "cluster_key",
    "resources",
    "seal",
    "overlay_kernel",
    "dns_server",
    "entry_proxy",
  ],
  ["api", "scheduler", "directory", "overlay", "membership", "executor", "session"],
  ["node"],
  ["main", "cli", "build", "release", "reader"],
];
const PURE_FLOOR = 1;

/** Packages that may be imported in more than one file: valibot is the language of shapes, used at every door. */
const SHARED_PACKAGES = new Set(["valibot"]);
/** What node offers of computation; everything else of node and Bun reaches the outside. */
const PURE_BUILTINS = new Set(["node:crypto", "node:net", "node:path"]);

type Source = { name: string; text: string; imports: string[] };

const sources: Source[] = readdirSync(SRC)
  .filter((file) => file.endsWith(".ts"))
  .map((file) => {
    const text = readFileSync(join(SRC, file), "utf8");
    const imports = [...text.matchAll(/^(?:import|export)\s[^;]*?from\s+"([^"]+)"/gm)].map((match) => match[1] ?? "");
    return { name: file.replace(/\.ts$/, ""), text, imports };
  });

function floorOf(name: string): number {
  return FLOORS.findIndex((floor) => floor.some((entry) => name === entry || name.startsWith(`${entry}_`)));
}

function localImports({ imports }: Source): string[] {
  return imports.filter((path) => path.startsWith("./")).map((path) => path.slice(2).replace(/\.ts$/, ""));
}

/** What a clone has at its top; `node_modules` and `dist` are made. */
const TOP = [
  "package.json",
  "bunfig.toml",
  "tsconfig.json",
  "src",
  "tests",
  "examples",
  "README.md",
  "LICENSE",
  "CHANGELOG.md",
];

describe("the house", () => {
  test("has nothing else at its top, also after tests have run", () => {
    const known = new Set([...TOP, "package-lock.json", "node_modules", "dist"]);
    const found = readdirSync(join(SRC, "..")).filter((name) => !name.startsWith(".") && !known.has(name));
    expect(found).toEqual([]);
  });

  test("has a floor for every file", () => {
    expect(sources.filter(({ name }) => floorOf(name) < 0).map(({ name }) => name)).toEqual([]);
  });

  test("has no import that goes up", () => {
    const up = sources.flatMap((source) =>
      localImports(source)
        .filter((target) => floorOf(target) > floorOf(source.name))
        .map((target) => `${source.name} -> ${target}`),
    );
    expect(up).toEqual([]);
  });

  test("has no circle of imports", () => {
    const graph = new Map(sources.map((source) => [source.name, localImports(source)]));
    const done = new Set<string>();
    const visit = (name: string, path: readonly string[]): void => {
      if (path.includes(name)) throw new Error(`circle: ${[...path, name].join(" -> ")}`);
      if (done.has(name)) return;
      for (const next of graph.get(name) ?? []) visit(next, [...path, name]);
      done.add(name);
    };
    for (const name of graph.keys()) visit(name, []);
  });

  test("imports each outside package in one file (or one family of files) only", () => {
    const users = new Map<string, Set<string>>();
    for (const { name, imports } of sources) {
      for (const path of imports.filter((one) => !one.startsWith("."))) {
        const name_ = path.startsWith("@") ? path.split("/").slice(0, 2).join("/") : (path.split("/")[0] ?? path);
        if (path.startsWith("node:") || path.startsWith("bun") || SHARED_PACKAGES.has(name_)) continue;
        users.set(name_, (users.get(name_) ?? new Set()).add(name.split("_")[0] ?? name));
      }
    }
    expect(
      [...users].filter(([, files]) => files.size > 1).map(([name, files]) => `${name}: ${[...files].join(", ")}`),
    ).toEqual([]);
  });

  test("keeps clock, chance, environment, promises and the outside away from the pure floor", () => {
    const impure =
      /\b(Date\.now|new Date\(\)|Math\.random|performance\.now|process\.|await |async |setTimeout|console\.|Bun\.|crypto\.randomUUID)/;
    const found = sources
      .filter(({ name }) => floorOf(name) === PURE_FLOOR)
      .flatMap(({ name, text, imports }) => {
        const code = text.replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "");
        const match = impure.exec(code)?.[0];
        const outside = imports.filter(
          (path) => path.startsWith("bun:") || (path.startsWith("node:") && !PURE_BUILTINS.has(path)),
        );
        return [...(match ? [`${name}: ${match}`] : []), ...outside.map((path) => `${name}: ${path}`)];
      });
    expect(found).toEqual([]);
  });

  test("opens every file with what it owns", () => {
    expect(sources.filter(({ text }) => !/^(#!.*\n)?\/\*\*[\s*]*@module\b/.test(text)).map(({ name }) => name)).toEqual(
      [],
    );
  });

  test("keeps files under about 600 lines", () => {
    expect(sources.filter(({ text }) => text.split("\n").length > 640).map(({ name }) => name)).toEqual([]);
  });
});
