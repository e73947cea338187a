/**
 * @module Compose text -> validated job: the front door of the compose reading. Reads the text (`job_yaml.ts`), puts in the
 * variables (`job_interpolate.ts`), checks every key by the table (`job_keys.ts`), builds each service's spec
 * (`job_service.ts`), and owns what concerns the document as a whole: its limits, names, references between services,
 * networks, and the list of all faults with their places. Knows nothing of Docker's API (`container_options.ts`) or nodes.
 */
import type { IssuePathItem } from "valibot";
import { withRanges } from "./job_addresses.ts";
import { JobFiles, type SentFiles } from "./job_files.ts";
import { show } from "./job_grammar.ts";
import { interpolate } from "./job_interpolate.ts";
import {
  DOCUMENT_KEYS,
  type FileObjectFields,
  SERVICE_KEYS,
  type NetworkFields,
  type ServiceFields,
  type VolumeFields,
} from "./job_keys.ts";
import { portCount } from "./job_lists.ts";
import { mergeFiles } from "./job_merge.ts";
import { checkNetwork } from "./job_networks.ts";
import { print } from "./job_print.ts";
import { placeOf, readFields, valueOf, type Table, type Value } from "./job_schema.ts";
import { buildRules } from "./job_rules.ts";
import { MARK_KEY, readSecrets, secretFiles, type SentSecret, withMarks } from "./job_secrets.ts";
import { buildService, MAX_CANDIDATES, scaleOf } from "./job_service.ts";
import { locate, readYaml, treeAt, type Fault, type MapTree, type Path, type Tree } from "./job_yaml.ts";
import { type Detail, isGlobal, type ServiceRules, type ServiceSpec, sharedService } from "./model_spec.ts";
import { nearest } from "./nearest.ts";

export type ParsedService = {
  service_name: string;
  spec: ServiceSpec;
  rules: ServiceRules;
  /** Set only when the document says `deploy.replicas` or `scale`. */
  scale?: number;
};

export type ParsedJob = {
  /**
   * The document after interpolation as JSON text, in the user's own form, anchors and merge keys written out. A `$` is
   * doubled, secrets that have a value are marked, and paths start from the project directory, so that the text, sent again,
   * means the same.
   */
  document: string;
  /** In document order. */
  services: ParsedService[];
  /** Contents of the files that the services' specs name, cut up, by hash. */
  chunks: ReadonlyMap<string, Uint8Array>;
  /** Secrets that have a value, sent or to be kept, each with its place in the document. */
  secrets: (SentSecret & { place: Detail })[];
  warnings: Detail[];
};

export type ParseResult =
  { ok: true; job: ParsedJob } | { ok: false; code: "unparseable" | "invalid_document"; details: Detail[] };

/** Bytes of a document: far above any real one, low enough to be read within a second. */
export const MAX_DOCUMENT_BYTES = 1024 * 1024;
/** Ports of a job: each is a rule or process on a node, and a range writes thousands of them in a few letters. */
const MAX_PORTS = 20_000;
/** Services that share something and so are placed together: far above what people write. */
const MAX_TOGETHER = 50;
/** Faults in one answer: enough for all of a real document; garbage could have one on each line. */
const MAX_FAULTS = 500;

export type Sending = {
  jobId: string;
  /** Variables that the sender gave. */
  env: ReadonlyMap<string, string>;
  /** Files sent along. */
  files?: SentFiles;
  /** The directory that the document lies in, below the one that the files' paths start from; absent: that one. */
  directory?: string;
  /** Profiles to run besides the services that have none; `*` is all. */
  profiles?: readonly string[];
};

/** Reads a compose document, YAML or JSON. Never throws; lists every fault. */
export function parseJob(body: Uint8Array | string, sending: Sending): ParseResult {
  const { jobId, env, files, directory = ".", profiles = [] } = sending;
  const text = decode(body);
  if (typeof text !== "string")
    return { ok: false, code: text.code, details: [{ path: "", message: `the document ${text.message}` }] };
  const yaml = readYaml(text);
  if (yaml.state !== "parsed") {
    const code = yaml.state === "unparseable" ? "unparseable" : "invalid_document";
    return { ok: false, code, details: toDetails(yaml.faults, { text, root: undefined }) };
  }
  const variables = new Map([["COMPOSE_PROJECT_NAME", jobId], ...env]);
  const { root: written, faults, warnings } = interpolate(yaml.root, variables);
  const sent = new JobFiles(files ?? new Map());
  const { root, ...merging } = mergeFiles(written, { files: sent, env: variables, directory });
  faults.push(...yaml.faults, ...merging.faults);
  warnings.push(...merging.warnings);
  // Merging takes out what led to a fault: places are those of the document as it was sent.
  for (const found of [...faults, ...warnings]) found.at ??= locate(written, found.path);
  const reading = new Reading(root, { faults, warnings, files: sent, env: variables, profiles });
  const services = reading.services(jobId);
  const place = { text, root };
  if (reading.faults.length > 0) {
    return { ok: false, code: "invalid_document", details: toDetails(reading.faults, place) };
  }
  const document = print(
    withMarks(
      root,
      reading.secrets.map(({ name }) => name),
    ),
  );
  const secrets = placed(reading.secrets, place);
  return {
    ok: true,
    job: { document, services, chunks: sent.chunks, secrets, warnings: toDetails(reading.warnings, place) },
  };
}

function decode(body: Uint8Array | string): string | { code: "unparseable" | "invalid_document"; message: string } {
  if (body.length > MAX_DOCUMENT_BYTES) {
    return { code: "invalid_document", message: `is over ${MAX_DOCUMENT_BYTES} bytes long` };
  }
  if (typeof body === "string") return body.replace(/^\uFEFF/, "");
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(body);
  } catch {
    return { code: "unparseable", message: "is not UTF-8: save it in that encoding" };
  }
}

function placed(secrets: readonly SentSecret[], document: { text: string; root: Tree }): ParsedJob["secrets"] {
  const pathOf = ({ name, data }: SentSecret) => (data ? ["secrets", name] : ["secrets", name, MARK_KEY]);
  const faults = secrets.map((secret) => ({ path: pathOf(secret), message: "" }));
  const places = new Map(toDetails(faults, document).map((place) => [place.path, place]));
  return secrets.map((secret) => {
    const path = writePath(pathOf(secret));
    return { ...secret, place: places.get(path) ?? { path, message: "" } };
  });
}

type Definitions = {
  jobId: string;
  volumes: ReadonlyMap<string, VolumeFields>;
  networks: ReadonlyMap<string, NetworkFields>;
  configs: ReadonlyMap<string, FileObjectFields>;
  secrets: ReadonlyMap<string, FileObjectFields>;
};

/** Thrown to leave a document of which nothing is left to say that helps; caught in `services`. */
class EnoughFaults extends Error {}

/** One document on its way from tree to specs; collects faults and warnings. */
class Reading {
  readonly faults: Fault[];
  readonly warnings: Fault[];
  secrets: SentSecret[] = [];
  readonly #root: Tree;
  /** Places that are at fault already: what follows from that is not worth telling. */
  readonly #broken: ReadonlySet<string>;
  readonly #sent: { files: JobFiles; env: ReadonlyMap<string, string> };
  readonly #profiles: ReadonlySet<string>;
  /** Where each text stands in the lists that were asked for one. */
  readonly #indexes = new Map<Tree, ReadonlyMap<unknown, number>>();

  constructor(
    root: Tree,
    found: {
      faults: Fault[];
      warnings: Fault[];
      files: JobFiles;
      env: ReadonlyMap<string, string>;
      profiles: readonly string[];
    },
  ) {
    this.#root = root;
    this.#sent = found;
    this.#profiles = new Set(found.profiles);
    this.#broken = new Set(found.faults.map(({ path }) => writePath(path)));
    this.faults = found.faults;
    this.warnings = found.warnings;
  }

  /** The services; none where the document is so faulty that looking on is no use. */
  services(jobId: string): ParsedService[] {
    try {
      return this.#document(jobId);
    } catch (error) {
      if (error instanceof EnoughFaults) return [];
      throw error;
    }
  }

  #document(jobId: string): ParsedService[] {
    if (this.#root.kind !== "map") {
      const empty = this.#root.kind === "scalar" && this.#root.value === null;
      this.#fault([], empty ? "is empty: a job has at least services" : "must be a mapping with the key services");
      return [];
    }
    const top = this.#checked(DOCUMENT_KEYS, this.#root, []);
    if (top.name !== undefined && top.name !== jobId) {
      this.#warn(["name"], `is left out: the job is called ${jobId}, as in the address that it was sent to`);
    }
    const services = this.#root.entries.get("services")?.value;
    if (!services) this.#fault([], "has no services, so there is nothing to run");
    if (services?.kind !== "map") return [];
    if (services.entries.size === 0) this.#fault(["services"], "is empty, so there is nothing to run");
    const checked = this.#services(services);
    this.#references(checked);
    const definitions = {
      jobId,
      volumes: new Map(top.volumes),
      networks: withRanges(new Map(top.networks), checked),
      configs: new Map(top.configs),
      secrets: new Map(top.secrets),
    };
    this.#networks(checked, definitions.networks);
    const fault = (path: Path, message: string) => this.#fault(path, message);
    this.secrets = readSecrets(definitions.secrets, { root: this.#root, ...this.#sent, fault });
    return this.#built(checked, definitions);
  }

  #services(services: MapTree): Map<string, ServiceFields> {
    const checked = new Map<string, ServiceFields>();
    for (const [name, { value }] of services.entries) {
      const path = ["services", name];
      if (!/^[a-zA-Z0-9._-]+$/.test(name)) {
        this.#fault(path, "is no name for a service: use letters, digits, '.', '_' and '-'", { key: true });
      }
      if (value.kind !== "map") this.#fault(path, "must be a mapping with at least image");
      else {
        checked.set(name, this.#checked(SERVICE_KEYS, value, path));
        if (!value.entries.has("image")) this.#noImage(path, value);
      }
    }
    return checked;
  }

  #noImage(path: Path, service: MapTree): void {
    if (service.entries.has("extends") || service.entries.has("provider")) return;
    if (service.entries.has("build")) {
      this.#fault(
        [...path, "build"],
        "needs image beside it: nodes build nothing; push the image, or load it on the nodes, and name it",
        { key: true },
      );
    } else this.#fault(path, "has no image: name one, as busybox:1.36", { key: true });
  }

  /** What is sound of a mapping; its faults and its rows' warnings are reported. */
  #checked<T extends Table>(table: T, tree: MapTree, path: Path): ReturnType<typeof readFields<T>>["output"] {
    const { output, issues } = readFields(table, valueOf(tree) as ReadonlyMap<string, Value>);
    for (const issue of issues) {
      const place = placeOf(issue.path as IssuePathItem[]);
      this.#fault([...path, ...place.path], issue.message, { key: place.key });
    }
    this.#rowWarnings(table, tree, path);
    return output;
  }

  #rowWarnings(table: Table, tree: MapTree, path: Path): void {
    for (const [key, { value }] of tree.entries) {
      const row = Object.hasOwn(table, key) ? table[key] : undefined;
      if (!row || row.fate === "refused") continue;
      if (row.fate === "warned" && !isNothing(value)) this.#warn([...path, key], row.effect);
      if (row.table && value.kind === "map") this.#rowWarnings(row.table, value, [...path, key]);
    }
  }

  /** Services that name each other: `depends_on`, `links`, and what they share. */
  #references(services: ReadonlyMap<string, ServiceFields>): void {
    const needs = new Map<string, string[]>();
    for (const [name, service] of services) {
      const path = ["services", name];
      const known = (other: string, at: Path, required = true): boolean => {
        if (services.has(other)) {
          if (required && this.#runs(service) && !this.#runs(services.get(other))) {
            this.#fault(
              at,
              `names the service ${show(other)}, which has profiles, none of which is chosen: send ?profile=${services.get(other)?.profiles?.[0]}`,
            );
          }
          return true;
        }
        if (!required) return false;
        const near = nearest(other, [...services.keys()].slice(0, MAX_CANDIDATES));
        this.#fault(
          at,
          `names the service ${show(other)}, which the document does not have${near ? `: did you mean ${near}?` : ""}`,
        );
        return false;
      };
      const ordered = (service.depends_on ?? []).filter(({ service: other, required }) =>
        known(other, this.#member([...path, "depends_on"], other), required),
      );
      const linked = (service.links ?? []).map((link, index) => {
        const other = link.split(":", 1)[0] ?? "";
        return known(other, [...path, "links", index]) ? [other] : [];
      });
      const shared = sharedBy(service).flatMap(({ service_name: other, at }) => {
        if (!known(other, [...path, ...at])) return [];
        this.#sharing({ name, service, other: services.get(other) }, { at: [...path, ...at], named: other });
        return [other];
      });
      needs.set(name, [...ordered.map(({ service: other }) => other), ...linked.flat(), ...shared]);
    }
    const cycle = findCycle(needs);
    if (!cycle) return this.#crowds(services);
    const [first = "", second = ""] = cycle;
    const service = services.get(first);
    const share = service && sharedBy(service).find(({ service_name }) => service_name === second);
    const isLinked = service?.links?.some((link) => link.split(":", 1)[0] === second);
    const isOrdered = service?.depends_on?.some(({ service: other }) => other === second);
    const place = isOrdered || !(share || isLinked) ? ["depends_on"] : share ? share.at.slice(0, 1) : ["links"];
    this.#fault(["services", first, ...place], `goes in a circle: ${cycle.join(" needs ")}`, { key: true });
  }

  /** Services that share something, directly or through others, are all on one node. */
  #crowds(services: ReadonlyMap<string, ServiceFields>): void {
    const crowds = new Map<string, Set<string>>();
    for (const [name, service] of services) {
      for (const { service_name: other, at } of sharedBy(service)) {
        const [one, more] = [crowds.get(name) ?? new Set([name]), crowds.get(other) ?? new Set([other])];
        if (one === more) continue;
        for (const member of more) crowds.set(member, one.add(member));
        crowds.set(name, one);
        if (one.size <= MAX_TOGETHER) continue;
        return this.#fault(
          ["services", name, ...at],
          `brings the services that share something with each other to over ${MAX_TOGETHER}, which is too many for one node`,
        );
      }
    }
  }

  /** Services that share something run side by side, so they must be of one kind. */
  #sharing(
    { name, service, other }: { name: string; service: ServiceFields; other: ServiceFields | undefined },
    { at, named }: { at: Path; named: string },
  ): void {
    // Docker's own default since API 1.40 (docker run, "IPC settings"); engines may be told another.
    if (at.at(-1) === "ipc" && !["shareable", "host"].includes(other?.ipc ?? "")) {
      this.#warn(at, `needs ipc: shareable on the service ${show(named)}: engines refuse to share what is private`);
    }
    const isEverywhere = (one: ServiceFields | undefined) => isGlobal({ mode: one?.deploy?.mode ?? "replicated" });
    if (isEverywhere(service) === isEverywhere(other)) return;
    const [everywhere, counted] = isEverywhere(service) ? [name, named] : [named, name];
    this.#fault(
      at,
      `shares with the service ${show(named)}, but ${everywhere} runs once on each node and ${counted} has a scale: give both the same deploy.mode`,
    );
  }

  /** The path of `name` in the collection at `path`: a key of a mapping, or a text in a list. */
  #member(path: Path, name: string): Path {
    const collection = treeAt(this.#root, path);
    if (collection?.kind !== "list") return [...path, name];
    let indexes = this.#indexes.get(collection);
    if (!indexes) {
      indexes = new Map(collection.items.map((item, index) => [item.kind === "scalar" ? item.value : item, index]));
      this.#indexes.set(collection, indexes);
    }
    return [...path, indexes.get(name) ?? 0];
  }

  /** What of the networks that services use can't be had on nodes. */
  #networks(services: ReadonlyMap<string, ServiceFields>, networks: ReadonlyMap<string, NetworkFields>): void {
    const used = new Set<string>();
    for (const { networks: own = [], network_mode: mode } of services.values()) {
      if (mode) continue;
      for (const name of own.length > 0 ? own.map(([key]) => key) : ["default"]) used.add(name);
    }
    for (const name of used) {
      checkNetwork(networks.get(name), {
        fault: (key, message) => this.#fault(["networks", name, key], message),
        warn: (key, message) => this.#warn(["networks", name, key], message),
      });
    }
  }

  #built(services: ReadonlyMap<string, ServiceFields>, definitions: Definitions): ParsedService[] {
    const names = linkedNames(services, (path, message) => this.#fault(path, message));
    const running = new Set([...services].filter(([, service]) => this.#runs(service)).map(([name]) => name));
    const built: ParsedService[] = [];
    const values = new Set(this.secrets.map(({ name }) => name));
    const secretPaths = secretFiles(definitions.secrets);
    let ports = 0;
    for (const [service_name, service] of services) {
      const path = ["services", service_name];
      const report = {
        fault: (at: Path, message: string) => this.#fault([...path, ...at], message),
        warn: (at: Path, message: string) => this.#warn([...path, ...at], message),
        member: (section: string, name: string) => this.#member([...path, section], name).slice(path.length),
      };
      for (const entry of service.ports ?? []) ports += portCount(entry);
      if (ports > MAX_PORTS) {
        report.fault(["ports"], `brings the job to over ${MAX_PORTS} ports; use network_mode: host for so many`);
        break;
      }
      const rules = buildRules(service, { services: running, report });
      if (!this.#runs(service)) {
        this.#warn(
          [...path, "profiles"],
          `keeps the service from running, as none is chosen: send ?profile=${service.profiles?.[0]} to run it`,
        );
        continue;
      }
      const spec = buildService(service, {
        ...definitions,
        ...this.#sent,
        values,
        secretPaths,
        linkedAs: names.get(service_name) ?? [],
        report,
      });
      const scale = scaleOf(service);
      built.push({ service_name, spec, rules, ...(scale === undefined ? {} : { scale }) });
    }
    return built;
  }

  /** A service with profiles runs where one of them is chosen. */
  #runs(service: ServiceFields | undefined): boolean {
    const own = service?.profiles ?? [];
    return own.length === 0 || this.#profiles.has("*") || own.some((profile) => this.#profiles.has(profile));
  }

  #fault(path: Path, message: string, { key = false }: { key?: boolean } = {}): void {
    if (this.#broken.has(writePath(path))) return;
    this.faults.push({ path, message, at: locate(this.#root, path, { key }) });
    if (this.faults.length > MAX_FAULTS) throw new EnoughFaults();
  }

  #warn(path: Path, message: string): void {
    this.warnings.push({ path, message, at: locate(this.#root, path, { key: true }) });
  }
}

/** Whether a value asks for nothing, so that leaving it out loses nothing. */
function isNothing(tree: Tree): boolean {
  if (tree.kind === "scalar") return tree.value === null || tree.value === false || tree.value === "";
  return tree.kind === "list" ? tree.items.length === 0 : tree.entries.size === 0;
}

/** Names that `links` give to services (`db:database`): a further name on the job's network, so one name has one meaning. */
function linkedNames(
  services: ReadonlyMap<string, ServiceFields>,
  fault: (path: Path, message: string) => void,
): Map<string, string[]> {
  const meanings = new Map<string, string>();
  const names = new Map<string, string[]>();
  for (const [name, { links = [] }] of services) {
    for (const [index, link] of links.entries()) {
      const [target = "", alias = target] = link.split(":");
      if (alias === target) continue;
      const other = meanings.get(alias) ?? (services.has(alias) ? alias : target);
      if (other !== target) {
        fault(
          ["services", name, "links", index],
          `calls ${target} ${alias}, which means ${other} elsewhere in the job; choose another name`,
        );
      } else if (!meanings.has(alias)) {
        const known = names.get(target);
        if (known) known.push(alias);
        else names.set(target, [alias]);
      }
      meanings.set(alias, other);
    }
  }
  return names;
}

/** The services whose containers those of `service` share something with, each with the place that says so. */
function sharedBy({ network_mode, ipc, pid, volumes_from = [] }: ServiceFields): { service_name: string; at: Path }[] {
  const modes = Object.entries({ network_mode, ipc, pid }).flatMap(([key, mode]) => {
    const service_name = mode && sharedService(mode);
    return service_name === undefined || service_name === "" ? [] : [{ service_name, at: [key] }];
  });
  return [...modes, ...volumes_from.map(({ service_name }, index) => ({ service_name, at: ["volumes_from", index] }))];
}

/** A circle among services that need each other, as the names along it, or undefined. */
function findCycle(needs: ReadonlyMap<string, readonly string[]>): string[] | undefined {
  const done = new Set<string>();
  for (const start of needs.keys()) {
    // An own stack: a chain of a thousand services must not exhaust the engine's.
    const trail: { name: string; next: number }[] = [{ name: start, next: 0 }];
    const onTrail = new Set([start]);
    while (trail.length > 0) {
      const top = trail.at(-1);
      if (!top) break;
      const other = done.has(top.name) ? undefined : needs.get(top.name)?.[top.next++];
      if (other === undefined) {
        done.add(top.name);
        onTrail.delete(top.name);
        trail.pop();
      } else if (onTrail.has(other)) {
        const names = trail.map(({ name }) => name);
        return [...names.slice(names.indexOf(other)), other];
      } else if (!done.has(other)) {
        trail.push({ name: other, next: 0 });
        onTrail.add(other);
      }
    }
  }
  return undefined;
}

/** Faults in the order of the text, each with the path as people write it. */
function toDetails(faults: readonly Fault[], { text, root }: { text: string; root: Tree | undefined }): Detail[] {
  const starts = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
  const placed = faults.map((fault) => ({ fault, at: fault.at ?? (root ? locate(root, fault.path) : 0) }));
  placed.sort((a, b) => a.at - b.at);
  const seen = new Set<string>();
  const details: Detail[] = [];
  for (const { fault, at } of placed) {
    const path = writePath(fault.path);
    const key = `${path} ${fault.message}`;
    if (seen.has(key)) continue;
    seen.add(key);
    const line = lineOf(starts, at);
    const message = path === "" ? `the document ${fault.message}` : fault.message;
    details.push({ path, message, line, column: at - (starts[line - 1] ?? 0) + 1 });
    if (details.length === MAX_FAULTS) {
      if (placed.length > details.length)
        details.push({ path: "", message: `the document has more faults than these ${MAX_FAULTS}` });
      break;
    }
  }
  return details;
}

/** The line, from 1, that an offset is on; `starts` are the offsets of all lines. */
function lineOf(starts: readonly number[], at: number): number {
  let low = 0;
  let high = starts.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((starts[middle] ?? 0) <= at) low = middle;
    else high = middle;
  }
  return low + 1;
}

/** `services.app.ports[0]`; a key with other characters in it stands in brackets and quotes. */
function writePath(path: Path): string {
  return path
    .map((key, index) => {
      if (typeof key === "number") return `[${key}]`;
      if (!/^[a-zA-Z0-9_-]+$/.test(key)) return `[${JSON.stringify(key)}]`;
      return index === 0 ? key : `.${key}`;
    })
    .join("");
}
