/**
 * @module The two lists of a compose service with a short and a long form: `ports` and `volumes`. Gives what each entry means,
 * still without the document's top level (which volume a name stands for) and without the node (where a relative path lies).
 */
import * as v from "valibot";
import {
  isIp,
  PROPAGATIONS,
  readPort,
  readPortRange,
  readProtocol,
  readVolume,
  Refusal,
  show,
  type PortText,
} from "./job_grammar.ts";
import {
  byForm,
  bytes,
  fields,
  fileMode,
  flag,
  honoured,
  integer,
  kindOf,
  limited,
  listOf,
  namesAndTexts,
  oneOf,
  reads,
  readsText,
  refused,
  text,
  type Schema,
  type Table,
} from "./job_schema.ts";
import type { PortSpec } from "./model_spec.ts";

const PORT = {
  target: honoured(integer({ least: 1, most: 65_535 })),
  published: honoured(
    reads({ anyOf: [{ type: "integer" }, { type: "string" }] }, (value) =>
      typeof value === "bigint"
        ? String(value)
        : typeof value === "string"
          ? value
          : new Refusal(`must be a port or a range, not ${kindOf(value)}`),
    ),
  ),
  protocol: honoured(readsText(readProtocol)),
  host_ip: honoured(
    readsText((ip) => (ip === "" || isIp(ip) ? ip : new Refusal(`is ${show(ip)}, which is no IP address`))),
  ),
  mode: honoured(oneOf(["host", "ingress"])),
  name: honoured(text),
  app_protocol: honoured(text),
} satisfies Table;

const longPort: Schema<PortText> = v.pipe(
  fields(PORT),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    const { target, published = "", protocol = "tcp", host_ip = "", mode } = dataset.value;
    const range = published === "" ? { first: 0, last: 0 } : readPortRange(published, { least: 0 });
    if (target === undefined || range instanceof Refusal) {
      addIssue({ message: range instanceof Refusal ? range.message : "has no target: name the container's port" });
      return NEVER;
    }
    const container = { first: target, last: target };
    const port = { container, protocol, host_ip, ...(mode && { mode }) };
    return range.last === 0 ? port : { ...port, host: range };
  }),
);

const shortPort: Schema<PortText> = reads({ anyOf: [{ type: "integer" }, { type: "string" }] }, (value) => {
  if (typeof value === "string" || typeof value === "bigint") return readPort(String(value));
  return new Refusal(`must be a port, as "8080:80", or a mapping with target and published, not ${kindOf(value)}`);
});

/** The entries of `ports`, ranges still ranges: a few letters can stand for 65,535 of them. */
export const portsSchema: Schema<PortText[]> = listOf(
  byForm({ longPort, shortPort }, (value) => (value instanceof Map ? "longPort" : "shortPort")),
);

/** How many ports an entry stands for. */
export function portCount({ container }: PortText): number {
  return container.last - container.first + 1;
}

/** A range of container ports is paired with the host's one by one; one container port takes any free one of a host range. */
export function portSpecs({ container, protocol, host_ip, host }: PortText): PortSpec[] {
  return Array.from({ length: container.last - container.first + 1 }, (_, index) => {
    const pair = host && container.first !== container.last ? host.first + index : undefined;
    const host_port = pair === undefined ? host : { first: pair, last: pair };
    return { container_port: container.first + index, protocol, host_ip, ...(host_port ? { host_port } : {}) };
  });
}

export type ParsedMount = {
  type: "bind" | "volume" | "tmpfs";
  /** Empty for tmpfs and anonymous volumes. */
  source: string;
  target: string;
  read_only: boolean;
  long: boolean;
  create_host_path: boolean;
  propagation?: string;
  selinux?: "z" | "Z";
  non_recursive?: boolean;
  recursive?: "writable" | "readonly";
  nocopy: boolean;
  subpath?: string;
  labels?: [string, string][];
  size_bytes?: number;
  mode?: number;
  ignored: string[];
};

const BIND = {
  propagation: honoured(oneOf([...PROPAGATIONS, ""])),
  create_host_path: honoured(flag),
  selinux: honoured(oneOf(["z", "Z"])),
  recursive: limited(
    oneOf(["enabled", "disabled", "writable", "readonly"]),
    "writable and readonly: not placed on nodes whose engine is older than Docker 25",
  ),
} satisfies Table;
const VOLUME = {
  nocopy: honoured(flag),
  subpath: limited(readsText(readSubpath), "not placed on nodes whose engine is older than Docker 26"),
  labels: honoured(namesAndTexts),
} satisfies Table;
const TMPFS = { size: honoured(bytes), mode: honoured(fileMode) } satisfies Table;
const MOUNT = {
  type: honoured(
    readsText((value): ParsedMount["type"] | Refusal => {
      if (value === "bind" || value === "volume" || value === "tmpfs") return value;
      const known = value === "cluster" || value === "npipe" || value === "image";
      return new Refusal(
        `is ${show(value)}${known ? ", which is not supported" : ""}; allowed are bind, volume and tmpfs`,
      );
    }),
  ),
  source: honoured(text),
  target: honoured(text),
  read_only: honoured(flag),
  consistency: honoured(text),
  bind: honoured(fields(BIND)),
  volume: honoured(fields(VOLUME)),
  tmpfs: honoured(fields(TMPFS)),
  image: refused("is not supported: images cannot be mounted; leave it out"),
} satisfies Table;

const longMount: Schema<ParsedMount> = v.pipe(
  fields(MOUNT),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    const { type, source = "", target, read_only = false, consistency } = dataset.value;
    const { bind = {}, volume = {}, tmpfs = {} } = dataset.value;
    const fault = (message: string) => {
      addIssue({ message });
      return NEVER;
    };
    if (type === undefined) return fault("has no type: bind, volume or tmpfs");
    if (target === undefined) return fault("has no target: name the path in the container");
    if (type === "bind" && source === "") return fault("is a bind mount without a source: name a path of the node");
    const { recursive } = bind;
    const isForced = recursive === "writable" || recursive === "readonly";
    if (isForced && !read_only) return fault(`has bind.recursive ${recursive}, which needs read_only: true beside it`);
    if (type === "volume" && source === "" && read_only)
      return fault("is an anonymous volume and read-only, which Docker refuses: nothing could ever be in it");
    if (volume.subpath !== undefined && source === "")
      return fault("has a subpath of an anonymous volume, which is empty: name the volume under source");
    const foreign = (["bind", "volume", "tmpfs"] as const).filter(
      (key) => key !== type && dataset.value[key] !== undefined,
    );
    // A named volume has the labels that the top level gives it.
    const isOwn = type === "volume" && source === "";
    return {
      type,
      source: type === "tmpfs" ? "" : source,
      target,
      read_only,
      long: true,
      create_host_path: bind.create_host_path ?? true,
      ...(bind.propagation ? { propagation: bind.propagation } : {}),
      ...(bind.selinux ? { selinux: bind.selinux } : {}),
      ...(recursive === "disabled" ? { non_recursive: true } : {}),
      ...(isForced ? { recursive } : {}),
      nocopy: volume.nocopy ?? false,
      ...(volume.subpath === undefined ? {} : { subpath: volume.subpath }),
      ...(isOwn && volume.labels ? { labels: volume.labels } : {}),
      ...(tmpfs.size ? { size_bytes: tmpfs.size } : {}),
      ...(tmpfs.mode ? { mode: tmpfs.mode } : {}),
      ignored: [
        ...foreign,
        ...(volume.labels && !isOwn ? ["volume.labels"] : []),
        ...(consistency ? ["consistency"] : []),
        // Only the short form of the Engine's API knows labels of SELinux, and it cannot say these.
        ...(bind.selinux && (bind.create_host_path === false || recursive === "disabled" || isForced)
          ? ["bind.selinux"]
          : []),
      ],
    };
  }),
);

const shortMount: Schema<ParsedMount> = readsText((written) => {
  const read = readVolume(written);
  if (read instanceof Refusal) return read;
  const isPath = /^[./~]|^\\\\|^[a-zA-Z]:/.test(read.source);
  return { ...read, type: isPath ? "bind" : "volume", long: false, create_host_path: true };
});

/** A directory inside of a volume, as the Engine takes it: relative, and never out of it. */
function readSubpath(path: string): string | Refusal {
  if (path !== "" && !path.startsWith("/") && !path.split("/").includes("..")) return path;
  return new Refusal(`is ${show(path)}; write a path inside of the volume, as data/web`);
}

/** The mounts of a service, in order. */
export const mountsSchema: Schema<ParsedMount[]> = listOf(
  byForm({ longMount, shortMount }, (value) => (value instanceof Map ? "longMount" : "shortMount")),
);
