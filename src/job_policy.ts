/**
 * @module What the operator forbids jobs to ask for: the master's policy file (YAML or JSON) and its check of parsed services.
 * Pure.
 *
 * `rules` are looked at in order, and the first that matches a thing decides about it: `deny` refuses it, `allow` lets it through.
 * What none matches is left to the `profile`: without one it is allowed; `restricted` refuses all that reaches the node, other jobs
 * or the cluster (`job_policy_restricted.ts`). So an allow rule opens what the profile refuses, and a deny rule refuses more. Some
 * things no broad rule opens: a bind inside of another writable bind needs an allow rule that names that very path, and no rule
 * opens keys that lead to no value of a spec, nor names that another job has.
 */
import * as v from "valibot";
import { parse } from "yaml";
import { cleanPath } from "./job_files.ts";
import { fullName } from "./job_images.ts";
import { bindsInsideOthers } from "./job_policy_binds.ts";
import {
  cut,
  folderOf,
  type JudgedService,
  type Leaf,
  leafPathsOf,
  leavesOf,
  namesOf,
  pathsOf,
  shownPath,
  textOf,
  writtenName,
} from "./job_policy_leaves.ts";
import { namesOfOthers } from "./job_policy_names.ts";
import { isJudged, refusedKeys, refusedPath, refusedValue } from "./job_policy_restricted.ts";
import { CREDENTIAL_SPEC, type Detail, type ServiceSpec, serviceSpec } from "./model_spec.ts";
import { StartError } from "./model.ts";
import { nearest } from "./nearest.ts";

/** What rules can speak of: the members of a spec, also by the names that documents have for them. */
const KEYS: readonly string[] = [...new Set(leafPathsOf(serviceSpec).flatMap(namesOf))];
/** Refusals in one answer: enough for all of a real document. */
const MAX_REFUSALS = 500;

const rule = v.pipe(
  v.strictObject({
    name: v.pipe(v.string(), v.minLength(1)),
    effect: v.picklist(["allow", "deny"]),
    /** Keys of a service, as `privileged`, or with a value that they have, as `network_mode=host` or `sysctls=NAME`. */
    keys: v.optional(v.array(v.pipe(v.string(), v.check(isKnownKey, unknownKey))), []),
    /**
     * Paths on the node, or with `./` in the project directory: what lies at or below them; a denied one also hides from binds of
     * the directories above it.
     */
    binds: v.optional(v.array(v.pipe(v.string(), v.regex(/^\.?\//, "start a path with / or ./"))), []),
    /** Beginnings of image names, as `registry.example/team/`; the empty one is that of all. */
    images: v.optional(v.array(v.string()), []),
  }),
  v.check(
    ({ keys, binds, images }) => keys.length + binds.length + images.length > 0,
    "a rule names keys, binds or images",
  ),
);
const policySchema = v.pipe(
  v.strictObject({
    profile: v.exactOptional(v.picklist(["restricted"], "the only profile is restricted")),
    rules: v.exactOptional(v.array(rule)),
  }),
  v.check(({ profile, rules }) => (profile ?? rules) !== undefined, "it has neither profile nor rules"),
);
/** `folders`: its `binds`, as `folderOf` writes them. */
type ReadyRule = v.InferOutput<typeof rule> & { folders: string[] };
export type Policy = v.InferOutput<typeof policySchema>;

/** @throws StartError naming the place of the first fault. */
export function readPolicy(text: string, { path }: { path: string }): Policy {
  let found: unknown;
  try {
    found = parse(text);
  } catch (error) {
    throw new StartError(
      `the policy ${path} cannot be read: ${error instanceof Error ? error.message.split("\n")[0] : ""}`,
      {
        cause: error,
      },
    );
  }
  const result = v.safeParse(policySchema, found);
  if (result.success) return result.output;
  const [issue] = result.issues;
  throw new StartError(`the policy ${path} is not usable: ${v.getDotPath(issue) ?? "the file"}: ${issue.message}`);
}

/** A document that was read: its JSON text and what runs of it. */
export type Asking = {
  jobId: string;
  document: string;
  services: readonly JudgedService[];
  /** What a job of the cluster runs now; empty where there is none of that id. */
  servicesOf?: (jobId: string) => readonly JudgedService[];
};

/** What the policy forbids of a document, each with the name of the rule or profile. */
export function forbiddenBy(policy: Policy, asking: Asking): Detail[] {
  const { profile, rules = [] } = policy;
  const document: unknown = JSON.parse(asking.document);
  const found = new Map<string, Detail>();
  const add = (path: string, message: string) => found.set(`${path} ${message}`, { path, message });
  for (const { path, what, reason } of profile ? [...refusedKeys(document), ...refusedNames(asking)] : [])
    add(path, byProfile(what, reason));
  const ready = rules.map((one) => ({ ...one, folders: one.binds.map(folderOf) }));
  for (const ask of asksOf(policy, { ...asking, parsed: document })) {
    if (found.size > MAX_REFUSALS) break;
    const decisive = ready.find((one) => ask.matched(one) !== undefined);
    const reason = profile && !decisive ? ask.refusal() : undefined;
    if (decisive?.effect === "deny") {
      const what = ask.matched(decisive) ?? ask.what;
      add(ask.path, `${what} is forbidden by the rule '${decisive.name}' of this cluster's policy`);
    } else if (reason !== undefined) add(ask.path, byProfile(ask.what, reason));
  }
  if (found.size <= MAX_REFUSALS) return [...found.values()];
  const more = { path: "", message: `more is forbidden than these ${MAX_REFUSALS} things` };
  return [...[...found.values()].slice(0, MAX_REFUSALS), more];
}

/** Tells the paths of leaves that some rule speaks of. */
function spokenOf(rules: Policy["rules"] = []): (path: string) => boolean {
  const spoken = new Set(rules.flatMap(({ keys }) => keys.map((key) => key.split("=", 1)[0] ?? "")));
  return (path) => spoken.size > 0 && namesOf(path).some((name) => spoken.has(name));
}

function byProfile(what: string, reason: string): string {
  return `${what} is forbidden by the profile 'restricted' of this cluster's policy: ${reason}`;
}

function refusedNames({ jobId, services, servicesOf = () => [] }: Asking): ReturnType<typeof refusedKeys> {
  return namesOfOthers({ jobId, services, servicesOf }).map(({ kind, name, path, owner }) => ({
    path,
    what: `${kind} ${name}`,
    reason: `the job ${owner} has a ${kind} of that name; choose another key, or another id for the job`,
  }));
}

/** One thing that a document asks for. */
type Ask = {
  /** Where the document says it. */
  path: string;
  what: string;
  /** What a rule that speaks of it calls it. */
  matched: (rule: ReadyRule) => string | undefined;
  /** Why the profile refuses it. */
  refusal: () => string | undefined;
};

/** What a rule may decide about or the profile refuses: there is far more in a document than that. */
function* asksOf(
  { profile, rules }: Policy,
  { services, servicesOf, jobId, parsed }: Asking & { parsed: unknown },
): Generator<Ask> {
  const inside = bindsInsideOthers(services, servicesOf?.(jobId) ?? []);
  const files = placesOfFiles(parsed);
  const isSpoken = spokenOf(rules);
  const isWanted = (path: string) => isSpoken(path) || (profile !== undefined && isJudged(path));
  for (const { service_name, spec, rules: ownRules = {} } of services) {
    const place = `services.${service_name}`;
    yield imageAsk(spec, place);
    for (const mount of spec.mounts) yield* bindAsks(mount, { spec, place, inside: inside.get(mount), files });
    for (const [value, path] of [[spec, ""] as const, [ownRules, "rules"] as const]) {
      for (const leaf of leavesOf(value, { path, isWanted })) {
        const refusal = profile && refusedValue(leaf, { jobId });
        if (refusal !== undefined || isSpoken(leaf.path)) yield valueAsk(leaf, { place, jobId, refusal });
      }
    }
  }
}

function imageAsk({ image }: ServiceSpec, place: string): Ask {
  const names = [image, fullName(image)];
  return {
    path: `${place}.image`,
    what: image,
    matched: ({ images }) => (images.some((start) => names.some((name) => name.startsWith(start))) ? image : undefined),
    refusal: () => undefined,
  };
}

type Mount = ServiceSpec["mounts"][number];
type Inside = { path: string; reason: string };

function bindAsks(
  mount: Mount,
  {
    spec,
    place,
    inside,
    files,
  }: { spec: ServiceSpec; place: string; inside: Inside | undefined; files: ReadonlyMap<string, string> },
): Ask[] {
  const isFile = mount.type === "bind" && mount.read_only && !mount.create_host_path;
  const path = (source: string) =>
    mount.type === "volume"
      ? `volumes.${mount.volume?.key}.driver_opts`
      : ((isFile ? files.get(source) : undefined) ?? `${place}.volumes`);
  const asks = pathsOf(mount).map((source): Ask => {
    const what = `the path ${shownPath(source)}`;
    const folder = folderOf(source);
    return {
      path: path(source),
      what,
      matched: ({ effect, folders }) =>
        folders.some((one) => folder.startsWith(one) || (effect === "deny" && one.startsWith(folder)))
          ? what
          : undefined,
      refusal: () => refusedPath(source, { mount, spec }),
    };
  });
  if (!inside) return asks;
  const what = `the path ${shownPath(inside.path)}`;
  const folder = folderOf(inside.path);
  const isNamed = ({ effect, folders }: ReadyRule) => effect === "allow" && folders.includes(folder);
  asks.push({
    path: path(inside.path),
    what,
    matched: (one) => (isNamed(one) ? what : undefined),
    refusal: () => inside.reason,
  });
  return asks;
}

/** Where a document defines configs and secrets out of files, by the files' paths. */
function placesOfFiles(document: unknown): Map<string, string> {
  const sections = ["configs", "secrets"].flatMap((section) =>
    membersOf(memberOf(document, section)).map(([name, definition]) => ({
      section,
      name,
      file: memberOf(definition, "file"),
    })),
  );
  return new Map(
    sections.flatMap(({ section, name, file }): [string, string][] =>
      // The document's text has each $ twice.
      typeof file === "string" ? [[cleanPath(file.replaceAll("$$", "$")), `${section}.${name}.file`]] : [],
    ),
  );
}

function membersOf(value: unknown): [string, unknown][] {
  return typeof value === "object" && value !== null ? Object.entries(value) : [];
}

function memberOf(value: unknown, key: string): unknown {
  return membersOf(value).find(([name]) => name === key)?.[1];
}

function valueAsk(
  leaf: Leaf,
  { place, jobId, refusal }: { place: string; jobId: string; refusal: string | undefined },
): Ask {
  const names = namesOf(leaf.path);
  const written = writtenName(leaf.path);
  const text = textOf(leaf, jobId);
  // A request for devices is one thing, whatever its members say.
  const isRequest = leaf.path.startsWith("device_requests.");
  const what = isRequest ? "gpus" : text === "" ? written : `${written} ${cut(text)}`;
  const values = leaf.name === undefined ? [text] : [text, leaf.name];
  const exact = [leaf.path, written].flatMap((name) => values.map((value) => `${name}=${value}`));
  return {
    path: placeOf(leaf, place),
    what,
    matched: ({ keys }) => {
      const found = keys.find((key) => names.includes(key) || exact.includes(key));
      if (found === undefined) return undefined;
      return found === leaf.path || found === written || found.includes("=") ? what : found;
    },
    refusal: () => refusal,
  };
}

/** Where a document says what a leaf does. */
function placeOf({ path, text, parents }: Leaf, place: string): string {
  const [spec, , part] = parents;
  const [first = "", second = "", ...rest] = path.split(".");
  const key = (part as { key?: string } | undefined)?.key;
  if ((path.startsWith("mounts.volume.") || path.startsWith("networks.network.")) && key !== undefined)
    return [second === "volume" ? "volumes" : "networks", key, ...rest].join(".");
  if (path === "security_opt" && text.startsWith(CREDENTIAL_SPEC)) return `${place}.credential_spec`;
  const isList = Array.isArray((spec as Record<string, unknown> | undefined)?.[first]);
  return `${place}.${isList ? writtenName(first) : writtenName(path)}`;
}

function isKnownKey(text: string): boolean {
  return KEYS.includes(text.split("=", 1)[0] ?? "");
}

function unknownKey({ input }: { input: string }): string {
  const near = nearest(input.split("=", 1)[0] ?? "", KEYS);
  return `'${input}' is no key of a service that a rule can speak of${near === undefined ? "" : `: did you mean ${near}?`}`;
}
