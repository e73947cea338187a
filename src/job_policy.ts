/**
 * @module What the operator forbids jobs to ask for: the master's policy file (YAML or JSON) and its check of parsed services.
 * Rules are looked at in order and the first that matches decides; what none matches is allowed. Pure.
 */
import { posix } from "node:path";
import * as v from "valibot";
import { parse } from "yaml";
import { fullName } from "./job_images.ts";
import { type Detail, type MountSpec, type ServiceSpec, serviceSpec } from "./model_spec.ts";
import { StartError } from "./model.ts";
import { nearest } from "./nearest.ts";

/** Keys of compose that have another name in a spec. */
const SPEC_NAMES: Readonly<Record<string, keyof ServiceSpec>> = { gpus: "device_requests" };
const KEYS = [...Object.keys(serviceSpec.entries), ...Object.keys(SPEC_NAMES)];

const rule = v.pipe(
  v.strictObject({
    name: v.pipe(v.string(), v.minLength(1)),
    effect: v.picklist(["allow", "deny"]),
    /** Keys of a service, as `privileged`, or with a value that they have, as `network_mode=host`. */
    keys: v.optional(v.array(v.pipe(v.string(), v.check(isKnownKey, unknownKey))), []),
    /** Paths on the node: what lies at or below them; a denied one also hides from binds of the directories above it. */
    binds: v.optional(v.array(v.pipe(v.string(), v.startsWith("/", "start a path with /"))), []),
    /** Beginnings of image names, as `registry.example/team/`; the empty one is that of all. */
    images: v.optional(v.array(v.string()), []),
  }),
  v.check(
    ({ keys, binds, images }) => keys.length + binds.length + images.length > 0,
    "a rule names keys, binds or images",
  ),
);
const policy = v.strictObject({ rules: v.array(rule) });
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

/** What the policy forbids of these services, each with the name of the rule. */
export function forbiddenBy(
  { rules }: Policy,
  services: readonly { service_name: string; spec: ServiceSpec }[],
): Detail[] {
  return services.flatMap(({ service_name, spec }) =>
    asksOf(spec).flatMap(({ key, what, matches }) => {
      const decisive = rules.find(matches);
      if (decisive?.effect !== "deny") return [];
      const message = `${what} is forbidden by the rule '${decisive.name}' of this cluster's policy`;
      return [{ path: `services.${service_name}.${key}`, message }];
    }),
  );
}

type Ask = { key: string; what: string; matches: (rule: Rule) => boolean };

/** Everything of a service that a rule can speak of. */
function asksOf(spec: ServiceSpec): Ask[] {
  const names = [spec.image, fullName(spec.image)];
  const image: Ask = {
    key: "image",
    what: spec.image,
    matches: ({ images }) => images.some((start) => names.some((name) => name.startsWith(start))),
  };
  const binds = spec.mounts.flatMap((mount): Ask[] => {
    const source = pathOf(mount);
    if (source === undefined) return [];
    const matches = ({ effect, binds: paths }: Rule) =>
      paths.some((path) => isBelow(source, path) || (effect === "deny" && isBelow(path, source)));
    return [{ key: "volumes", what: `the path ${source}`, matches }];
  });
  const keys = KEYS.flatMap((key): Ask[] =>
    valuesOf(spec[SPEC_NAMES[key] ?? (key as keyof ServiceSpec)]).map((value) => ({
      key,
      what: value === "" ? key : `${key} ${value}`,
      matches: (one) => one.keys.some((wanted) => wanted === key || wanted === `${key}=${value}`),
    })),
  );
  return [image, ...binds, ...keys];
}

/** The texts that a member of a spec has; an empty text for one that is on and is no text; nothing for one that is off. */
function valuesOf(member: unknown): string[] {
  if (member === undefined || member === false) return [];
  if (Array.isArray(member)) {
    if (member.length === 0) return [];
    return member.every((item) => typeof item === "string") ? member : [""];
  }
  return typeof member === "string" ? [member] : [""];
}

/** The node's path that a mount shows, also where a local volume is one (`o: bind`). */
function pathOf(mount: MountSpec): string | undefined {
  if (mount.type === "bind") return mount.source.startsWith("/") ? mount.source : undefined;
  if (mount.type === "tmpfs" || mount.type === "secret") return undefined;
  const device = new Map(mount.volume?.driver_opts).get("device");
  return device?.startsWith("/") ? device : undefined;
}

function isBelow(path: string, above: string): boolean {
  const [inner, outer] = [path, above].map((one) => `${posix.normalize(one).replace(/\/$/, "")}/`);
  return inner !== undefined && outer !== undefined && inner.startsWith(outer);
}

function isKnownKey(text: string): boolean {
  return KEYS.includes(text.split("=", 1)[0] ?? "");
}

function unknownKey({ input }: { input: string }): string {
  const near = nearest(input.split("=", 1)[0] ?? "", KEYS);
  return `'${input}' is no key of a service that a rule can speak of${near === undefined ? "" : `: did you mean ${near}?`}`;
}
