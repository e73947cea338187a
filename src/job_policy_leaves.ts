/**
 * @module What a service's spec asks for, one thing at a time, under the names that rules of a policy have for it; and the paths
 * of the node that its mounts show, however they are written. Says nothing of what is allowed. Pure.
 */
import { posix } from "node:path";
import type * as v from "valibot";
import { networkName, volumeName } from "./container_options.ts";
import type { MountSpec, ServiceRules, ServiceSpec, VolumeSpec } from "./model_spec.ts";

/** A service of a job, in a document or in the cluster. */
export type JudgedService = { service_name: string; spec: ServiceSpec; rules?: ServiceRules };

/**
 * One value of a spec. `path`: its members' names, without places in lists, as `networks.network.driver`. `text` is empty for
 * `true`; `name` is set for one of several named values (`sysctls`), of which `text` is `NAME=VALUE`. `parents`: the objects
 * around it, from the outermost.
 */
export type Leaf = { path: string; text: string; name?: string; parents: readonly object[] };

type Around = Pick<Leaf, "path" | "parents"> & { isWanted: (path: string) => boolean };

/** The leaves of a spec at wanted paths; what is off or empty asks for nothing and has none. */
export function* leavesOf(
  value: unknown,
  { path = "", parents = [], isWanted = () => true }: Partial<Around> = {},
): Generator<Leaf> {
  if (value === undefined || value === null || value === false) return;
  if (Array.isArray(value)) {
    const isPlain = typeof value[0] !== "object" || isPair(value[0]);
    if (isPlain && !isWanted(path)) return;
    for (const item of value as unknown[]) {
      if (isPair(item)) yield { path, text: `${item[0]}=${item[1]}`, name: item[0], parents };
      else yield* leavesOf(item, { path, parents, isWanted });
    }
  } else if (typeof value === "object") {
    for (const [key, member] of Object.entries(value))
      yield* leavesOf(member, { path: path === "" ? key : `${path}.${key}`, parents: [...parents, value], isWanted });
  } else if (isWanted(path)) yield { path, text: value === true ? "" : String(value), parents };
}

function isPair(item: unknown): item is [string, string] {
  return Array.isArray(item) && item.length === 2 && item.every((one) => typeof one === "string");
}

/** The parts of a valibot schema that hold other schemas. */
type Shape = {
  wrapped?: v.GenericSchema;
  entries?: Readonly<Record<string, v.GenericSchema>>;
  item?: v.GenericSchema;
  options?: readonly unknown[];
};

/** The paths that leaves of a schema's values can have. */
export function leafPathsOf(schema: v.GenericSchema, path = ""): string[] {
  const { wrapped, entries, item, options = [] } = schema as Shape;
  if (wrapped) return leafPathsOf(wrapped, path);
  if (item) return leafPathsOf(item, path);
  const members = entries && Object.entries(entries);
  const inner = members
    ? members.flatMap(([key, member]) => leafPathsOf(member, path === "" ? key : `${path}.${key}`))
    : options.flatMap((option) => (isSchema(option) ? leafPathsOf(option, path) : []));
  return inner.length === 0 ? [path] : [...new Set(inner)];
}

function isSchema(option: unknown): option is v.GenericSchema {
  return typeof option === "object" && option !== null && "kind" in option;
}

/** What documents call parts of a spec; the first one that fits counts. */
const WRITTEN: readonly (readonly [path: string, written: string])[] = [
  ["mounts.volume", "volumes"],
  ["mounts", "volumes"],
  ["networks.network", "networks"],
  ["device_requests", "gpus"],
];

/** A leaf's name in messages and rules: `volumes.driver`, `cap_add`. */
export function writtenName(path: string): string {
  const [own, written] = WRITTEN.find(([start]) => path === start || path.startsWith(`${start}.`)) ?? ["", ""];
  return own === "" ? path : `${written}${path.slice(own.length)}`;
}

/** Every name that a rule may have for the leaves at `path`: of itself, and of what it is a part of. */
export function namesOf(path: string): string[] {
  const known = NAMES.get(path);
  if (known) return known;
  const names = [path, writtenName(path)].flatMap((full) => {
    const parts = full.split(".");
    return parts.map((_, index) => parts.slice(0, index + 1).join("."));
  });
  const all = [...new Set(names)];
  NAMES.set(path, all);
  return all;
}
/** Asked for each leaf, and there are far more leaves than paths. */
const NAMES = new Map<string, string[]>();

/** What a rule may write after `=` for a leaf. What is not of the job is known by its name on the node. */
export function textOf({ path, text, parents }: Leaf, jobId: string): string {
  const owner = parents.at(-1);
  if (path === "mounts.volume.external") return volumeName(owner as VolumeSpec, jobId);
  if (path === "networks.network.external") return networkName(owner as Parameters<typeof networkName>[0], jobId);
  return text;
}

// ---- Paths --------------------------------------------------------------------------------------------------------------

/**
 * The paths that a mount shows: those of the node begin with `/`, others lie in the job's project directory. Of a volume they are
 * what its options mount, as the kernel reads them; `/` stands for all that can't be told.
 */
export function pathsOf(mount: MountSpec): string[] {
  if (mount.type === "bind") return [mount.source];
  return mount.type === "volume" && mount.volume ? pathsOfVolume(mount.volume) : [];
}

/** File systems that show no path of the node: of memory, or of another machine. */
const PATHLESS = ["tmpfs", "nfs", "nfs4", "cifs", "smb3"];
/** File systems on a device; all others (`proc`, `sysfs`, …) may show anything of the node. */
const ON_DEVICES = ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "exfat", "ntfs3", "f2fs", "iso9660", "squashfs"];

/** Docker's driver `local` hands its options to mount(2) (moby/moby, volume/local); other drivers are known by what they are given. */
function pathsOfVolume({ driver = "", driver_opts }: VolumeSpec): string[] {
  const options = new Map(driver_opts);
  const [device = "", type = "", o = ""] = ["device", "type", "o"].map((name) => options.get(name));
  const written = driver_opts.flatMap(([, value]) => (/^\/(?!\/)/.test(value) ? [value] : []));
  if (driver !== "" && driver !== "local") return [...new Set([...written, ...absolute(device)])];
  if (device === "" && type === "" && o === "") return [];
  const words = o.split(",");
  // The kernel looks neither at the type nor at further options of a bind mount; dockerd's directory is /.
  if (words.includes("bind") || words.includes("rbind")) return [posix.resolve("/", device)];
  if (type === "overlay") return pathsOfOverlay(o);
  if (PATHLESS.includes(type)) return absolute(device);
  if (!ON_DEVICES.includes(type)) return ["/", ...absolute(device)];
  // A second device, as `logdev=/dev/sdb`.
  const more = words.flatMap((word) => (word.includes("=") ? absolute(word.slice(word.indexOf("=") + 1)) : []));
  return [posix.resolve("/", device), ...more];
}

function absolute(path: string): string[] {
  return path.startsWith("/") ? [path] : [];
}

/** `lowerdir=/a:/b,upperdir=/c,workdir=/d`; with escapes it is not told which paths those are. */
function pathsOfOverlay(o: string): string[] {
  if (o.includes("\\")) return ["/"];
  const paths = o.split(",").flatMap((word) => {
    const [name = "", value = ""] = [word.slice(0, word.indexOf("=")), word.slice(word.indexOf("=") + 1)];
    return /dir\+?$/.test(name) ? value.split(":").filter((part) => part !== "") : [];
  });
  return paths.length === 0 ? ["/"] : paths.map((path) => posix.resolve("/", path));
}

/** Stands before paths of the project directory, which no rule for paths of the node speaks of. */
const PROJECT = "\0";

/** A path with a `/` at its end, so that what lies below begins with it. */
export function folderOf(path: string): string {
  const clean = posix.normalize(path.startsWith("/") ? path : `${PROJECT}/${path}`);
  return clean.endsWith("/") ? clean : `${clean}/`;
}

/** A path as messages show it. */
export function shownPath(path: string): string {
  if (path.startsWith("/")) return cut(path);
  return path === "." ? "./" : cut(`./${path}`);
}

/** Characters of a value in a message. */
const MAX_SHOWN = 120;
export function cut(text: string): string {
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
}
