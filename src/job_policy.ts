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
  isBelow,
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
import { refusedKeys, refusedPath, refusedValue } from "./job_policy_restricted.ts";
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
const policy = v.pipe(
  v.strictObject({
    profile: v.exactOptional(v.picklist(["restricted"], "the only profile is restricted")),
    rules: v.exactOptional(v.array(rule)),
  }),
  v.check(({ profile, rules }) => (profile ?? rules) !== undefined, "it has neither profile nor rules"),
);
type Rule = v.InferOutput<typeof rule>;
export type Policy = v.InferOutput<typeof policy>;

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
  const result = v.safeParse(policy, found);
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
export function forbiddenBy({ profile, rules = [] }: Policy, asking: Asking): Detail[] {
  const document: unknown = JSON.parse(asking.document);
  const asks = asksOf(asking, document);
  const byRules = asks.flatMap((ask): Detail[] => {
    const decisive = rules.find((one) => ask.matched(one) !== undefined);
    if (decisive?.effect === "allow") return [];
    if (decisive) {
      const what = ask.matched(decisive) ?? ask.what;
      return [
        { path: ask.path, message: `${what} is forbidden by the rule '${decisive.name}' of this cluster's policy` },
      ];
    }
    const reason = profile && ask.refusal();
    return reason === undefined ? [] : [{ path: ask.path, message: byProfile(ask.what, reason) }];
  });
  const byProfileAlone = profile ? [...refusedKeys(document), ...refusedNames(asking)] : [];
  const all = [
    ...byProfileAlone.map(({ path, what, reason }) => ({ path, message: byProfile(what, reason) })),
    ...byRules,
  ];
  const once = [...new Map(all.map((detail) => [`${detail.path} ${detail.message}`, detail])).values()];
  if (once.length <= MAX_REFUSALS) return once;
  return [...once.slice(0, MAX_REFUSALS), { path: "", message: `more is forbidden than these ${MAX_REFUSALS} things` }];
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
  matched: (rule: Rule) => string | undefined;
  /** Why the profile refuses it. */
  refusal: () => string | undefined;
};

function asksOf(asking: Asking, document: unknown): Ask[] {
  const { services, servicesOf, jobId } = asking;
  const inside = bindsInsideOthers(services, servicesOf?.(jobId) ?? []);
  const files = placesOfFiles(document);
  return services.flatMap(({ service_name, spec, rules = {} }) => {
    const place = `services.${service_name}`;
    const leaves = [...leavesOf(spec), ...leavesOf(rules, { path: "rules" })];
    return [
      imageAsk(spec, place),
      ...spec.mounts.flatMap((mount) => bindAsks(mount, { spec, place, inside: inside.get(mount), files })),
      ...leaves.map((leaf) => valueAsk(leaf, { place, jobId })),
    ];
  });
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
    return {
      path: path(source),
      what,
      matched: ({ effect, binds }) =>
        binds.some((one) => isBelow(source, one) || (effect === "deny" && isBelow(one, source))) ? what : undefined,
      refusal: () => refusedPath(source, { mount, spec }),
    };
  });
  if (!inside) return asks;
  const what = `the path ${shownPath(inside.path)}`;
  const isNamed = ({ effect, binds }: Rule) =>
    effect === "allow" && binds.some((one) => folderOf(one) === folderOf(inside.path));
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

function valueAsk(leaf: Leaf, { place, jobId }: { place: string; jobId: string }): Ask {
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
    refusal: () => refusedValue(leaf, { jobId }),
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
