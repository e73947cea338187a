/**
 * @module What `extends` and `include` make of a compose document: one tree without either. Owns compose's rules of merging
 * (compose-go, package override): mappings key by key, lists one after the other, `environment` and the like by name, mounts by
 * target, commands as a whole. What a merged key means is not looked at here.
 */
import { readDotenv } from "./job_dotenv.ts";
import { cleanPath, type JobFiles, projectPath } from "./job_files.ts";
import { readPort, readVolume, Refusal, show } from "./job_grammar.ts";
import { interpolate } from "./job_interpolate.ts";
import { rebase, rebaseProfiles, textOf } from "./job_paths.ts";
import {
  type Fault,
  list,
  map,
  type MapEntry,
  type MapTree,
  MAX_NODES,
  type Path,
  readYaml,
  scalar,
  type Tree,
  type YamlResult,
} from "./job_yaml.ts";

type Environment = ReadonlyMap<string, string>;
type Report = { fault(path: Path, message: string): void; warn(path: Path, message: string): void };

/** Files and services that lead from one to the next: real documents have two or three. */
const MAX_CHAIN = 32;
/** Characters of all other compose files together: as much as a document may have. */
const MAX_YAML_LENGTH = 1024 * 1024;
const SECTIONS = ["services", "volumes", "networks", "configs", "secrets"] as const;

/**
 * The document with all that it extends and includes. What comes of another file stands, for messages, where that file is
 * named. `env`: the sender's variables; `directory`: where the document lies below the project directory.
 */
export function mergeFiles(
  root: Tree,
  { files, env, directory }: { files: JobFiles; env: Environment; directory: string },
): { root: Tree; faults: Fault[]; warnings: Fault[] } {
  const faults: Fault[] = [];
  const warnings: Fault[] = [];
  const report: Report = {
    fault: (path, message) => faults.push({ path, message }),
    warn: (path, message) => warnings.push({ path, message }),
  };
  const merger = new Merger({ files, env, report, budget: { left: MAX_NODES, length: 0, yaml: new Map() } });
  if (root.kind !== "map") return { root, faults, warnings };
  return { root: rebaseProfiles(merger.document(rebase(root, directory), []), directory), faults, warnings };
}

type Options = {
  files: JobFiles;
  env: Environment;
  report: Report;
  /** Of all files together. `left`: values that merging may still make, each `extends` and `include` being a copy. */
  budget: { left: number; length: number; yaml: Map<string, Yaml> };
};
type Yaml = { text: string; result: YamlResult };

class Merger {
  readonly #options: Options;
  readonly #files: JobFiles;
  readonly #report: Report;

  constructor(options: Options) {
    this.#options = options;
    this.#files = options.files;
    this.#report = options.report;
  }

  /** `trail`: the files that led here; each names the next. */
  document(root: MapTree, trail: readonly string[]): MapTree {
    return this.#extended(this.#included(root, trail), { trail, path: [] });
  }

  // ---- extends --------------------------------------------------------------------------------------------------------

  #extended(root: MapTree, { trail, path }: { trail: readonly string[]; path: Path }): MapTree {
    const services = root.entries.get("services");
    if (services?.value.kind !== "map") return root;
    const all = services.value;
    if (!Array.from(all.entries.values()).some(({ value }) => value.kind === "map" && value.entries.has("extends")))
      return root;
    const done = new Map<string, Tree>();
    for (const name of all.entries.keys()) this.#service(name, { services: all, done, chain: [], trail, path });
    const entries = Array.from(all.entries, ([name, entry]): [string, MapEntry] => [
      name,
      { ...entry, value: done.get(name) ?? entry.value },
    ]);
    return withEntry(root, "services", { ...services, value: map(new Map(entries), all.at) });
  }

  #service(
    name: string,
    at: { services: MapTree; done: Map<string, Tree>; chain: readonly string[]; trail: readonly string[]; path: Path },
  ): Tree | undefined {
    const { services, done } = at;
    const own = services.entries.get(name)?.value;
    const named = own?.kind === "map" ? own.entries.get("extends") : undefined;
    if (done.has(name) || own?.kind !== "map" || !named) return done.get(name) ?? own;
    const path = [...at.path, "services", name, "extends"];
    const rest = withoutEntry(own, "extends");
    const base = this.#base(named.value, { ...at, name, path });
    const isSound = base?.kind === "map" && this.#room(base.size + rest.size, path);
    const merged = isSound ? mergeMaps(withoutEntry(base, "extends"), rest, "") : own;
    done.set(name, merged);
    return merged;
  }

  /** The service that `extends` names, itself extended. */
  #base(
    named: Tree,
    at: {
      name: string;
      path: Path;
      services: MapTree;
      done: Map<string, Tree>;
      chain: readonly string[];
      trail: readonly string[];
    },
  ): Tree | undefined {
    const { service, file } = readExtends(named);
    const { path, trail } = at;
    const fault = (message: string) => {
      this.#report.fault(path, message);
      return undefined;
    };
    if (named.kind === "scalar" && named.value === null) return undefined;
    if (service === undefined)
      return fault("must be the name of a service, or a mapping with service and perhaps file");
    const chain = [...at.chain, at.name];
    if (chain.length + trail.length > MAX_CHAIN) return fault(`extends over ${MAX_CHAIN} services in a row`);
    if (file !== undefined) return this.#serviceOf(file, { service, trail, path, at: named.at });
    if (chain.includes(service)) {
      return fault(`goes in a circle: ${[...chain.slice(chain.indexOf(service)), service].join(" extends ")}`);
    }
    const outer = path.slice(0, -3);
    const found = this.#service(service, { ...at, chain, path: outer });
    return found ?? fault(`names the service ${show(service)}, which is not beside it`);
  }

  #serviceOf(
    file: string,
    { service, trail, path, at }: { service: string; trail: readonly string[]; path: Path; at: number },
  ): Tree | undefined {
    const clean = this.#path(file, [...path, "file"]);
    if (clean === undefined) return undefined;
    const step = `${clean} ${service}`;
    if (trail.includes(step) || trail.length >= MAX_CHAIN) {
      this.#report.fault(
        path,
        trail.includes(step) ? `goes in a circle through ${clean}` : `leads through over ${MAX_CHAIN} files`,
      );
      return undefined;
    }
    const root = this.#read(clean, { path: [...path, "file"], at, env: this.#options.env });
    const services = root?.entries.get("services")?.value;
    if (!root) return undefined;
    if (services?.kind !== "map" || !services.entries.has(service)) {
      this.#report.fault(path, `names the service ${show(service)}, which ./${clean} does not have`);
      return undefined;
    }
    // Only the named service counts: what else the file holds may need files that nobody sent.
    const found = this.#service(service, {
      services,
      done: new Map(),
      chain: [],
      trail: [...trail, step],
      // Faults of the other file's services are told where the file is named.
      path: [...path, "file", `./${clean}`],
    });
    return found && placed(found, at);
  }

  // ---- include --------------------------------------------------------------------------------------------------------

  #included(root: MapTree, trail: readonly string[]): MapTree {
    const include = root.entries.get("include");
    if (!include) return root;
    let merged = withoutEntry(root, "include");
    const items = include.value.kind === "list" ? include.value.items : [];
    if (include.value.kind !== "list" && !(include.value.kind === "scalar" && include.value.value === null))
      this.#report.fault(["include"], "must be a list of files, as [./other.yaml]");
    for (const [index, item] of items.entries()) {
      const path = ["include", index];
      const other = this.#includedOne(item, { path, trail });
      if (other) merged = this.#join(merged, other, path);
    }
    return merged;
  }

  #includedOne(item: Tree, { path, trail }: { path: Path; trail: readonly string[] }): MapTree | undefined {
    const entry = readInclude(item);
    if (entry instanceof Refusal) {
      this.#report.fault([...path, ...entry.at], entry.message);
      return undefined;
    }
    const files = entry.paths.map((file) => this.#path(file, path));
    const first = files[0];
    if (first === undefined || files.includes(undefined)) return undefined;
    if (trail.includes(first) || trail.length >= MAX_CHAIN) {
      this.#report.fault(path, `goes in a circle: ${[...trail, first].map((file) => `./${file}`).join(" includes ")}`);
      return undefined;
    }
    const directory = entry.directory === undefined ? directoryOf(first) : cleanPath(entry.directory);
    const env = this.#includedEnvironment(entry.envFiles, { directory, path });
    let whole: MapTree | undefined;
    for (const file of files as string[]) {
      const root = this.#read(file, { path, at: item.at, env, directory });
      if (!root) return undefined;
      const report: Report = {
        fault: (at, message) => this.#report.fault([...path, `./${file}`, ...at], message),
        warn: (at, message) => this.#report.warn([...path, `./${file}`, ...at], message),
      };
      const other = new Merger({ ...this.#options, env, report }).document(root, [...trail, file]);
      whole = whole ? mergeDocuments(whole, other) : other;
    }
    return whole;
  }

  /** Variables of an included file: the sender's, and where those say nothing, its own `env_file` (/dev/null: none) or `.env`. */
  #includedEnvironment(
    named: readonly string[] | undefined,
    { directory, path }: { directory: string; path: Path },
  ): Environment {
    const usual = cleanPath(`${directory}/.env`);
    const paths = named?.filter((file) => file !== "/dev/null") ?? (this.#files.has(usual) ? [usual] : []);
    const env = new Map<string, string>();
    for (const file of paths) {
      const clean = this.#path(file, path);
      const text = clean === undefined ? undefined : this.#text(clean, path);
      if (text === undefined) continue;
      const entries = readDotenv(text, (name) => this.#options.env.get(name) ?? env.get(name));
      if (entries instanceof Refusal) this.#report.fault(path, `./${clean} ${entries.message}`);
      else for (const [name, value] of entries) env.set(name, value);
    }
    return new Map([...env, ...this.#options.env]);
  }

  /** What is included may not define anew what the document has. */
  #join(root: MapTree, other: MapTree, path: Path): MapTree {
    let joined = root;
    for (const section of SECTIONS) {
      const theirs = other.entries.get(section);
      if (theirs?.value.kind !== "map") continue;
      const ours = joined.entries.get(section);
      if (ours && ours.value.kind !== "map" && !(ours.value.kind === "scalar" && ours.value.value === null)) continue;
      const entries = new Map(ours?.value.kind === "map" ? ours.value.entries : []);
      for (const [name, entry] of theirs.value.entries) {
        const mine = entries.get(name);
        if (!mine) entries.set(name, entry);
        else if (!same(mine.value, entry.value))
          this.#report.fault(path, `brings ${section}.${name}, which is defined here already: rename one of them`);
      }
      if (!this.#room(theirs.value.size, path)) return joined;
      joined = withEntry(joined, section, { keyAt: ours?.keyAt ?? theirs.keyAt, value: map(entries, theirs.value.at) });
    }
    return joined;
  }

  // ---- Other files ----------------------------------------------------------------------------------------------------

  #path(file: string, path: Path): string | undefined {
    const clean = projectPath(file);
    if (!(clean instanceof Refusal)) return clean;
    this.#report.fault(path, clean.message);
    return undefined;
  }

  #text(file: string, path: Path): string | undefined {
    const text = this.#files.text(file);
    if (!(text instanceof Refusal)) return text;
    this.#report.fault(path, text.message);
    return undefined;
  }

  /** Another compose file as it stands; read once, however many services extend one of it. */
  #yaml(file: string, path: Path): Yaml | undefined {
    const { budget } = this.#options;
    const known = budget.yaml.get(file);
    if (known) return known;
    const text = this.#text(file, path);
    if (text === undefined) return undefined;
    budget.length += text.length;
    if (budget.length > MAX_YAML_LENGTH) {
      this.#report.fault(path, `brings the document's other files to over ${MAX_YAML_LENGTH} characters`);
      return undefined;
    }
    const yaml = { text, result: readYaml(text.replace(/^\uFEFF/, "")) };
    budget.yaml.set(file, yaml);
    return yaml;
  }

  /** Another compose file, interpolated, with its paths made those of the project. */
  #read(file: string, options: { path: Path; at: number; env: Environment; directory?: string }): MapTree | undefined {
    const { path, at, env, directory = directoryOf(file) } = options;
    const known = this.#yaml(file, path);
    if (!known) return undefined;
    const { text, result: yaml } = known;
    const lineOf = (offset: number | undefined) => text.slice(0, offset ?? 0).split("\n").length;
    const found = yaml.state === "parsed" ? interpolate(yaml.root, env) : { root: undefined, faults: [], warnings: [] };
    for (const fault of [...yaml.faults, ...found.faults])
      this.#report.fault(path, `leads to ./${file}, which at line ${lineOf(fault.at)} ${fault.message}`);
    for (const warning of found.warnings) this.#report.warn(path, `leads to ./${file}: ${warning.message}`);
    if (!found.root || yaml.faults.length + found.faults.length > 0) return undefined;
    if (found.root.kind !== "map") {
      this.#report.fault(path, `leads to ./${file}, which is no mapping with services`);
      return undefined;
    }
    return this.#room(found.root.size, path) ? rebase(placed(found.root, at) as MapTree, directory) : undefined;
  }

  #room(more: number, path: Path): boolean {
    const { budget } = this.#options;
    if (budget.left >= 0 && budget.left < more)
      this.#report.fault(path, `brings the document to over ${MAX_NODES} values`);
    budget.left = budget.left < more ? -1 : budget.left - more;
    return budget.left >= 0;
  }
}

function readExtends(tree: Tree): { service?: string; file?: string } {
  if (tree.kind === "scalar") return typeof tree.value === "string" && tree.value !== "" ? { service: tree.value } : {};
  if (tree.kind !== "map") return {};
  const service = textOf(tree, "service");
  const file = textOf(tree, "file");
  const known = [...tree.entries.keys()].every((key) => key === "service" || key === "file" || key.startsWith("x-"));
  if (!known || (tree.entries.has("file") && file === undefined)) return {};
  return { ...(service ? { service } : {}), ...(file ? { file } : {}) };
}

function readInclude(tree: Tree): { paths: string[]; directory?: string; envFiles?: string[] } | Refusal {
  if (tree.kind === "scalar" && typeof tree.value === "string") return { paths: [tree.value] };
  if (tree.kind !== "map") return new Refusal("must be a path, or a mapping with path");
  for (const key of tree.entries.keys()) {
    if (!["path", "project_directory", "env_file"].includes(key) && !key.startsWith("x-"))
      return new Refusal("is no key of include: there are path, project_directory and env_file", [key]);
  }
  const paths = textsOf(tree.entries.get("path")?.value);
  if (!paths || paths.length === 0) return new Refusal("has no path: name the file");
  const directory = textOf(tree, "project_directory");
  const envFile = tree.entries.get("env_file");
  const envFiles = envFile && textsOf(envFile.value);
  if (envFile && !envFiles) return new Refusal("must be a path or a list of paths", ["env_file"]);
  return { paths, ...(directory === undefined ? {} : { directory }), ...(envFiles ? { envFiles } : {}) };
}

function textsOf(tree: Tree | undefined): string[] | undefined {
  const items = tree?.kind === "list" ? tree.items : tree ? [tree] : [];
  const texts = items.flatMap((item) => (item.kind === "scalar" && typeof item.value === "string" ? [item.value] : []));
  return texts.length === items.length ? texts : undefined;
}

function directoryOf(file: string): string {
  return cleanPath(file.split("/").slice(0, -1).join("/"));
}

// ---- Trees ------------------------------------------------------------------------------------------------------------

/** The same values, all at one place of the main document's text. */
function placed(tree: Tree, at: number): Tree {
  if (tree.kind === "scalar") return scalar(tree.value, at);
  if (tree.kind === "list")
    return list(
      tree.items.map((item) => placed(item, at)),
      at,
    );
  return map(
    new Map(Array.from(tree.entries, ([key, { value }]) => [key, { keyAt: at, value: placed(value, at) }])),
    at,
  );
}

function withEntry(tree: MapTree, key: string, entry: MapEntry): MapTree {
  return map(new Map(tree.entries).set(key, entry), tree.at);
}

function withoutEntry(tree: MapTree, key: string): MapTree {
  return map(new Map([...tree.entries].filter(([name]) => name !== key)), tree.at);
}

function same(a: Tree, b: Tree): boolean {
  const plain = (tree: Tree): unknown => {
    if (tree.kind === "scalar") return [typeof tree.value, String(tree.value)];
    if (tree.kind === "list") return ["list", tree.items.map(plain)];
    return ["map", Array.from(tree.entries, ([key, { value }]) => [key, plain(value)])];
  };
  return JSON.stringify(plain(a)) === JSON.stringify(plain(b));
}

// ---- Merging ----------------------------------------------------------------------------------------------------------

type Rule = "replace" | "names" | "hosts" | "mounts" | "texts" | "keys" | "logging";

/** Where a service's keys are not merged as mappings and lists in general are. */
const RULES: Readonly<Record<string, Rule>> = {
  command: "replace",
  entrypoint: "replace",
  "healthcheck.test": "replace",
  annotations: "names",
  "build.args": "names",
  "build.labels": "names",
  "deploy.labels": "names",
  environment: "names",
  extra_hosts: "hosts",
  labels: "names",
  sysctls: "names",
  storage_opt: "names",
  configs: "mounts",
  devices: "mounts",
  ports: "mounts",
  secrets: "mounts",
  volumes: "mounts",
  depends_on: "keys",
  networks: "keys",
  logging: "logging",
};

function mergeDocuments(base: MapTree, own: MapTree): MapTree {
  const entries = new Map(base.entries);
  for (const [key, entry] of own.entries) {
    const before = entries.get(key);
    if (before?.value.kind !== "map" || entry.value.kind !== "map") {
      entries.set(key, entry);
      continue;
    }
    const inner = new Map(before.value.entries);
    for (const [name, { keyAt, value }] of entry.value.entries) {
      const old = inner.get(name)?.value;
      const both = old?.kind === "map" && value.kind === "map";
      inner.set(name, { keyAt, value: both ? mergeMaps(old, value, key === "services" ? "" : `${key}.`) : value });
    }
    entries.set(key, { keyAt: entry.keyAt, value: map(inner, entry.value.at) });
  }
  return map(entries, own.at);
}

/** `own` over `base`; `prefix` is "" for a service, whose keys have rules. */
function mergeMaps(base: MapTree, own: MapTree, prefix: string): MapTree {
  const entries = new Map(base.entries);
  for (const [key, entry] of own.entries) {
    const before = entries.get(key);
    const place = `${prefix}${key}`;
    entries.set(key, before ? { keyAt: entry.keyAt, value: mergeValues(before.value, entry.value, place) } : entry);
  }
  return map(entries, own.at);
}

function mergeValues(base: Tree, own: Tree, place: string): Tree {
  const rule = Object.hasOwn(RULES, place) ? RULES[place] : undefined;
  if (rule === "replace") return own;
  if (own.kind === "scalar" && own.value === null) return base;
  if (rule === "hosts") return mergeLists(named(base), named(own), textOfItem);
  if (rule === "names" && (base.kind !== "map" || own.kind !== "map"))
    return mergeLists(named(base), named(own), nameOf);
  if (rule === "keys") {
    const [a, b] = [keyed(base, place), keyed(own, place)];
    return a.kind === "map" && b.kind === "map" ? mergeMaps(a, b, `${place}.*.`) : own;
  }
  if (rule === "logging" && base.kind === "map" && own.kind === "map") {
    const driver = textOf(own, "driver");
    const before = textOf(base, "driver");
    if (driver !== undefined && before !== undefined && driver !== before) return own;
  }
  if (base.kind === "map" && own.kind === "map") return mergeMaps(base, own, `${place}.`);
  if (base.kind === "map" || own.kind === "map") return own;
  if (base.kind === "scalar" && own.kind === "scalar" && !LISTED.has(place)) return own;
  return mergeLists(asList(base), asList(own), rule === "mounts" ? (item) => targetOf(item, place) : textOfItem);
}

/** Keys that are a text or a list of them: two texts are two entries. */
const LISTED = new Set(["dns", "dns_search", "env_file", "label_file", "tmpfs"]);

/** Entries of both; one of `own` with the key of an earlier one takes its place. */
function mergeLists(base: Tree, own: Tree, keyOf: (item: Tree) => string | undefined): Tree {
  if (base.kind !== "list" || own.kind !== "list") return own;
  const items: Tree[] = [];
  const places = new Map<string, number>();
  for (const item of [...base.items, ...own.items]) {
    const key = keyOf(item);
    const place = key === undefined ? undefined : places.get(key);
    if (place !== undefined) items[place] = item;
    else {
      if (key !== undefined) places.set(key, items.length);
      items.push(item);
    }
  }
  return list(items, own.at);
}

function asList(tree: Tree): Tree {
  return tree.kind === "scalar" && tree.value !== null ? list([tree], tree.at) : tree;
}

/** `NAME: value` entries as the `NAME=value` texts that they stand for. */
function named(tree: Tree): Tree {
  if (tree.kind !== "map") return tree;
  const items = Array.from(tree.entries, ([name, { keyAt, value }]) =>
    (value.kind === "list" ? value.items : [value]).map((one) =>
      one.kind !== "scalar" ? one : scalar(one.value === null ? name : `${name}=${String(one.value)}`, keyAt),
    ),
  );
  return list(items.flat(), tree.at);
}

function nameOf(item: Tree): string | undefined {
  return textOfItem(item)?.split("=", 1)[0];
}

/** A list of names as the mapping that it stands for. */
function keyed(tree: Tree, place: string): Tree {
  if (tree.kind !== "list") return tree;
  const entries = tree.items.flatMap((item): [string, MapEntry][] => {
    const name = textOfItem(item);
    const condition: [string, MapEntry] = ["condition", { keyAt: item.at, value: scalar("service_started", item.at) }];
    const value = place === "depends_on" ? map(new Map([condition]), item.at) : scalar(null, item.at);
    return name === undefined ? [] : [[name, { keyAt: item.at, value }]];
  });
  return map(new Map(entries), tree.at);
}

function textOfItem(item: Tree): string | undefined {
  return item.kind === "scalar" ? String(item.value) : undefined;
}

/** What a mount, device, config, secret or port is on the container's side; a service has each once. */
function targetOf(item: Tree, place: string): string | undefined {
  if (place === "ports") return publishedAs(item);
  const folder = place === "secrets" ? "/run/secrets/" : place === "configs" ? "/" : "";
  if (item.kind === "map") {
    const source = textOf(item, "source");
    return textOf(item, "target") ?? (source === undefined ? undefined : `${folder}${source}`);
  }
  const text = textOfItem(item) ?? "";
  if (place === "devices") return text.split(":")[1] ?? text;
  if (place !== "volumes") return `${folder}${text}`;
  const volume = readVolume(text);
  return volume instanceof Refusal ? undefined : volume.target;
}

/** The address, ports and protocol that an entry of `ports` stands for, in either form. */
function publishedAs(item: Tree): string | undefined {
  if (item.kind !== "map") {
    const port = readPort(textOfItem(item) ?? "");
    if (port instanceof Refusal) return undefined;
    const { container, host, protocol, host_ip } = port;
    return JSON.stringify([container, host, protocol, host_ip]);
  }
  const part = (key: string) => {
    const value = item.entries.get(key)?.value;
    return value === undefined ? "" : (textOfItem(value) ?? "");
  };
  const [ip, published, protocol] = [part("host_ip"), part("published"), part("protocol") || "tcp"];
  return publishedAs(
    scalar(`${ip.includes(":") ? `[${ip}]` : ip}${ip && ":"}${published}:${part("target")}/${protocol}`, item.at),
  );
}
