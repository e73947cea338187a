/**
 * @module Schemas for values of a compose service that have a form of their own: a command that is a text or a list, a size
 * with a least, a namespace, devices, hosts, dependencies. `job_keys.ts` says which key takes which.
 */
import * as v from "valibot";
import { isIp, readDevice, readWords, Refusal, show } from "./job_grammar.ts";
import type { Constraint, Dependency } from "./model_spec.ts";
import { nearest } from "./nearest.ts";
import { readPlatform } from "./placement_platform.ts";
import {
  anything,
  byForm,
  bytes,
  decimal,
  duration,
  fields,
  fileMode,
  flag,
  honoured,
  integer,
  listOf,
  mapOf,
  meaning,
  NOTHING,
  namesAndTexts,
  oneOf,
  oneOrMore,
  reads,
  readsText,
  text,
  textOrTexts,
  uniqueTexts,
  type Fields,
  type JsonSchema,
  type Schema,
  type Table,
} from "./job_schema.ts";

/** What a key that is not supported says of itself. */
export const NOT_YET = "is not supported yet";

/** Least memory that Docker gives a container (Engine API: HostConfig.Memory). */
const LEAST_MEMORY = 6 * 1024 * 1024;

export const memory: Schema<number> = v.pipe(
  bytes,
  v.check(
    (size) => size === 0 || size >= LEAST_MEMORY,
    (issue) => `is ${String(issue.input)} bytes; Docker gives a container no less than 6m`,
  ),
);

/** A size that compose takes as text only, under `deploy`. */
export function quoted(size: Schema<number>): Schema<number> {
  const other = reads<number>({}, () => new Refusal('must be a size in quotes, as "50M"'));
  return byForm({ size, other }, (value) => (typeof value === "string" ? "size" : "other"));
}

/** A namespace of the node or of the container's own. */
export function namespace<const T extends string>(names: readonly T[]): Schema<T> {
  return readsText((value) => {
    const found = names.find((name) => name === value);
    if (found !== undefined) return found;
    if (value.startsWith("container:")) return notOfTheJob(value);
    return new Refusal(`is ${show(value)}; allowed are ${names.filter(Boolean).join(", ")}`);
  });
}

/** A namespace as above, or that of another service's container. */
export function shareableNamespace<const T extends string>(names: readonly T[]): Schema<T | `service:${string}`> {
  return readsText((value) => {
    const found = names.find((name) => name === value);
    if (found !== undefined) return found;
    if (/^service:./.test(value)) return value as `service:${string}`;
    if (value.startsWith("container:")) return notOfTheJob(value);
    return new Refusal(`is ${show(value)}; allowed are ${names.filter(Boolean).join(", ")} and service:NAME`);
  });
}

/** `NAME`, `NAME:ro` or `NAME:rw`. */
export const volumesFrom: Schema<{ service_name: string; access?: "ro" | "rw" }> = readsText((value) => {
  if (value.startsWith("container:")) return notOfTheJob(value);
  const [, service_name = "", access] = /^([a-zA-Z0-9._-]+)(?::(ro|rw))?$/.exec(value) ?? [];
  if (service_name === "") return new Refusal(`is ${show(value)}; write a service, or SERVICE:ro`);
  return { service_name, ...(access === undefined ? {} : { access: access as "ro" | "rw" }) };
});

function notOfTheJob(value: string): Refusal {
  return new Refusal(
    `is ${show(value)}: a container that is not part of the job may be on another node; make it a service of this job`,
  );
}

/** The platform of an image; empty is compose's "not said". */
export const platform: Schema<string> = readsText((value) =>
  value === "" || readPlatform(value) ? value : new Refusal(`is ${show(value)}; write os/arch, as linux/arm64`),
);

export const address: Schema<string> = readsText((value) =>
  isIp(value) ? value : new Refusal(`is ${show(value)}, which is no IP address`),
);

/** As `address`; an empty text, which an unset variable leaves behind, is none. */
export const addressOrNone: Schema<string> = readsText((value) =>
  value === "" || isIp(value) ? value : new Refusal(`is ${show(value)}, which is no IP address`),
);

/** Of DNS servers alone compose drops the empty entries (compose-go, loader/omitEmpty.go). */
export const addresses: Schema<string[]> = v.pipe(
  oneOrMore(addressOrNone),
  v.transform((all) => all.filter((one) => one !== "")),
);

/** A list of words, or a text that is split into them; `null` is the image's own. */
const WORDS: JsonSchema = { anyOf: [{ type: "string" }, { type: "array", items: { type: "string" } }] };
export const command: Schema<{ words: string[]; operator?: string } | null> = reads(
  { anyOf: [WORDS, NOTHING] },
  (value) => {
    if (value === null) return null;
    if (typeof value === "string") return readWords(value);
    const words = v.safeParse(listOf(text), value);
    if (words.success) return { words: words.output };
    const [issue] = words.issues;
    if (!Array.isArray(value)) return new Refusal("must be a text or a list of texts");
    return new Refusal(
      issue.message,
      (issue.path ?? []).map((item) => item.key as number),
    );
  },
);

const RESTART: JsonSchema = {
  anyOf: [{ enum: ["", "no", "always", "on-failure", "unless-stopped"] }, { pattern: "^on-failure:[0-9]{1,9}$" }],
};
export const restart: Schema<{ name: "" | "no" | "always" | "on-failure" | "unless-stopped"; attempts: number }> =
  reads(RESTART, (value) => {
    // YAML 1.1 writers turn an unquoted `no` into false.
    const written = value === false ? "no" : value;
    if (typeof written !== "string") return new Refusal("must be a text: no, always, on-failure or unless-stopped");
    if (written === "") return { name: "", attempts: 0 };
    const [name, attempts, ...more] = written.split(":");
    if (name !== "no" && name !== "always" && name !== "on-failure" && name !== "unless-stopped") {
      return new Refusal(`is ${show(written)}; allowed are no, always, on-failure, on-failure:N and unless-stopped`);
    }
    if (attempts === undefined) return { name, attempts: 0 };
    if (name !== "on-failure" || more.length > 0 || !/^[0-9]{1,9}$/.test(attempts)) {
      return new Refusal(`is ${show(written)}; a number of attempts is written on-failure:3`);
    }
    return { name, attempts: Number(attempts) };
  });

/** A master that is only started anew is no reason to stop anything. */
const LEAST_ISOLATION_S = 5;
/** How long a node may be without a master before it stops the service: nanoseconds. */
export const isolation: Schema<number> = v.pipe(
  duration,
  v.check(
    (time) => time >= LEAST_ISOLATION_S * 1e9,
    `must be at least ${LEAST_ISOLATION_S}s: a node that looks for its master that long may just have lost it`,
  ),
);

const hostMap: Schema<string[]> = v.pipe(
  mapOf(textOrTexts),
  v.transform((hosts) => hosts.flatMap(([host, ips]) => ips.map((ip) => `${host}:${ip.replace(/^\[(.*)\]$/, "$1")}`))),
);
const hostList: Schema<string[]> = v.pipe(
  listOf(readsText(readExtraHost), { repeats: "refused" }),
  v.transform((hosts) => hosts.flat().toSorted()),
);
export const extraHosts: Schema<string[]> = byForm({ list: hostList, mapping: hostMap }, (value) =>
  Array.isArray(value) ? "list" : "mapping",
);

function readExtraHost(entry: string): string[] | Refusal {
  const separator = entry.indexOf(entry.includes("=") ? "=" : ":");
  const host = entry.slice(0, Math.max(0, separator));
  const ips = entry.slice(separator + 1).split(",");
  if (host === "" || host.includes(":") || ips.includes("")) {
    return new Refusal(`is ${show(entry)}; write name:address, as db.local:10.0.0.5`);
  }
  return ips.map((ip) => `${host}:${ip.replace(/^\[(.*)\]$/, "$1")}`);
}

export const healthTest: Schema<string[]> = reads(WORDS, (value) => {
  if (typeof value === "string") return ["CMD-SHELL", value];
  const words = v.safeParse(listOf(text), value);
  if (!words.success) return new Refusal("must be a text, or a list that starts with CMD, CMD-SHELL or NONE");
  const [first] = words.output;
  if (first === undefined || first === "CMD" || first === "CMD-SHELL" || first === "NONE") return words.output;
  return new Refusal(`is ${show(first)}; a list starts with CMD, CMD-SHELL or NONE`, [0]);
});

const count: Schema<number> = byForm({ all: meaning(-1, { enum: ["all"] }), some: integer({ least: -1 }) }, (value) =>
  value === "all" ? "all" : "some",
);
const DEVICE_REQUEST = {
  driver: honoured(text),
  count: honoured(count),
  device_ids: honoured(uniqueTexts),
  capabilities: honoured(uniqueTexts),
  options: honoured(namesAndTexts),
} satisfies Table;
export type DeviceRequestFields = Fields<typeof DEVICE_REQUEST>;

const deviceRequest: Schema<DeviceRequestFields> = v.pipe(
  fields(DEVICE_REQUEST),
  v.check(
    (request) => request.count === undefined || request.device_ids === undefined,
    "has both count and device_ids; keep one",
  ),
);
export const reservedDevice: Schema<DeviceRequestFields> = v.pipe(
  deviceRequest,
  v.check((request) => request.capabilities !== undefined, "has no capabilities, which are required here, as [gpu]"),
);
const GENERIC = { kind: honoured(text), value: honoured(integer({ least: 0 })) } satisfies Table;
/** So many of what the operators of nodes gave a name. */
export const genericResource: Schema<{ kind: string; count: number }> = v.pipe(
  fields({ discrete_resource_spec: honoured(fields(GENERIC)) }),
  v.check(
    ({ discrete_resource_spec: one }) => Boolean(one?.kind) && one?.value !== undefined,
    "needs discrete_resource_spec with kind and value",
  ),
  v.transform(({ discrete_resource_spec: { kind = "", value = 0 } = {} }) => ({ kind, count: value })),
);
export const gpus: Schema<DeviceRequestFields[]> = byForm(
  { all: meaning<DeviceRequestFields[]>([{}], { enum: ["all"] }), list: listOf(deviceRequest) },
  (value) => (value === "all" ? "all" : "list"),
);

const DEVICE = { source: honoured(text), target: honoured(text), permissions: honoured(text) } satisfies Table;
const longDevice: Schema<{ source: string; target: string; permissions: string }> = v.pipe(
  fields(DEVICE),
  v.check((entry) => Boolean(entry.source), "has no source: name the device's path on the node"),
  v.transform(({ source = "", target = source, permissions = "rwm" }) => ({ source, target, permissions })),
);
export const device: Schema<{ source: string; target: string; permissions: string }> = byForm(
  { short: readsText(readDevice), long: longDevice },
  (value) => (typeof value === "string" ? "short" : "long"),
);

const ULIMIT = { soft: honoured(integer({ least: -1 })), hard: honoured(integer({ least: -1 })) } satisfies Table;
const oneLimit: Schema<{ soft: number; hard: number }> = v.pipe(
  integer({ least: -1 }),
  v.transform((both) => ({ soft: both, hard: both })),
);
const twoLimits: Schema<{ soft: number; hard: number }> = v.pipe(
  fields(ULIMIT),
  v.check(({ soft, hard }) => soft !== undefined && hard !== undefined, "needs both soft and hard"),
  v.transform(({ soft = 0, hard = 0 }) => ({ soft, hard })),
  v.check(
    ({ soft, hard }) => hard === -1 || (soft !== -1 && soft <= hard),
    (issue) => `has a soft limit of ${issue.input.soft}, above its hard limit of ${issue.input.hard}`,
  ),
);
export const ulimit: Schema<{ soft: number; hard: number }> = byForm({ oneLimit, twoLimits }, (value) =>
  value instanceof Map ? "twoLimits" : "oneLimit",
);

const dependency = fields({
  condition: honoured(oneOf(["service_started", "service_healthy", "service_completed_successfully"])),
  restart: honoured(flag),
  required: honoured(flag),
});
type DependsOn = { service: string; condition: Dependency["condition"]; required: boolean; restart: boolean };
const shortDependencies: Schema<DependsOn[]> = v.pipe(
  uniqueTexts,
  v.transform((names) =>
    names.map((service): DependsOn => ({ service, condition: "service_started", required: true, restart: false })),
  ),
);
const longDependencies: Schema<DependsOn[]> = v.pipe(
  mapOf(
    v.pipe(
      dependency,
      v.check((entry) => entry.condition !== undefined, "has no condition, which is required here, as service_started"),
    ),
  ),
  v.transform((entries) =>
    entries.map(([service, { condition = "service_started", required = true, restart: again = false }]): DependsOn => ({
      service,
      condition,
      required,
      restart: again,
    })),
  ),
);
export const dependsOn: Schema<DependsOn[]> = byForm({ short: shortDependencies, long: longDependencies }, (value) =>
  Array.isArray(value) ? "short" : "long",
);

/** Attributes of a node that constraints speak of, by what documents call them. */
const NODE_KEYS: Readonly<Record<string, string>> = {
  "node.id": "node.id",
  "node.name": "node.name",
  "node.hostname": "node.name",
  "node.role": "node.role",
  "node.platform.arch": "node.platform.arch",
  "node.platform.os": "node.platform.os",
};
const NODE_LABEL = /^node\.labels\.(\S+)$/;
const ROLES = ["manager", "worker", "master", "standby"];

/** One of `deploy.placement.constraints`: `node.labels.zone == eu`. */
export const constraint: Schema<Constraint> = readsText((value) => {
  const { key, operator, wanted } = readComparison(value) ?? {};
  if (key === undefined || operator === undefined || wanted === undefined) {
    return new Refusal(`is ${show(value)}; write an attribute, == or !=, and a value, as node.labels.zone == eu`);
  }
  if (wanted === "")
    return new Refusal(`is ${show(value)}, which compares with nothing: write a value after ${operator}`);
  if (NODE_LABEL.test(key)) return { key, operator, value: wanted };
  const name = Object.hasOwn(NODE_KEYS, key) ? NODE_KEYS[key] : undefined;
  if (name === undefined) {
    const near = nearest(key, Object.keys(NODE_KEYS));
    const hint = key.startsWith("engine.labels.") ? key.replace("engine", "node") : near;
    return new Refusal(
      `compares ${show(key)}; allowed are ${Object.keys(NODE_KEYS).join(", ")} and node.labels.NAME${hint ? `: did you mean ${hint}?` : ""}`,
    );
  }
  if (name === "node.role" && !ROLES.includes(wanted.toLowerCase())) {
    return new Refusal(`compares node.role with ${show(wanted)}; allowed are ${ROLES.join(", ")}`);
  }
  return { key: name, operator, value: wanted };
});

/**
 * The parts of `KEY == VALUE`: a key without spaces up to the first operator, and a value of one line. Line breaks may stand on
 * both sides of the operator, as a text that was folded over lines has them.
 */
function readComparison(
  written: string,
): { key: string; operator: Constraint["operator"]; wanted: string } | undefined {
  const text = written.trim();
  const gap = text.search(/\s/);
  const end = gap < 0 ? text.length : gap;
  // Before the first space, the first operator takes all that follows for its value, and the last one what follows the space.
  const first = text.slice(1, end).search(/[=!]=/) + 1;
  const afterSpace = text.length - text.slice(end).trimStart().length;
  for (const at of [first, end - 2, afterSpace]) {
    const operator = text.slice(at, at + 2);
    const wanted = text.slice(at + 2).trimStart();
    if (at > 0 && (operator === "==" || operator === "!=") && !/[\n\r\u2028\u2029]/.test(wanted))
      return { key: text.slice(0, Math.min(at, end)), operator, wanted };
  }
  return undefined;
}

/** The label of `spread: node.labels.zone`. */
export const spreadLabel: Schema<string> = readsText((value) => {
  const label = NODE_LABEL.exec(value)?.[1];
  return label ?? new Refusal(`is ${show(value)}; replicas can be spread over labels of nodes, as node.labels.zone`);
});

export type EnvFile = { path: string; required: boolean; raw: boolean };
const longEnvFile: Schema<EnvFile> = v.pipe(
  fields({ path: honoured(text), format: honoured(oneOf(["raw", ""])), required: honoured(flag) }),
  v.check((entry) => Boolean(entry.path), "has no path: name the file"),
  v.transform(({ path = "", format, required = true }) => ({ path, required, raw: format === "raw" })),
);
export const envFile: Schema<EnvFile> = byForm(
  { short: readsText((path): EnvFile => ({ path, required: true, raw: false })), long: longEnvFile },
  (value) => (typeof value === "string" ? "short" : "long"),
);

/** Where a config or secret of the document is put into a container. */
export type FileMount = { source: string; target?: string; uid?: number; gid?: number; mode?: number };
const FILE_MOUNT = {
  source: honoured(text),
  target: honoured(text),
  uid: honoured(integer({ least: 0, most: 0xffff_fffe })),
  gid: honoured(integer({ least: 0, most: 0xffff_fffe })),
  mode: honoured(fileMode),
} satisfies Table;
const longFileMount: Schema<FileMount> = v.pipe(
  fields(FILE_MOUNT),
  v.check((entry) => Boolean(entry.source), "has no source: name one of the top level"),
  v.transform((entry) => ({ ...entry, source: entry.source ?? "" })),
);
export const fileMount: Schema<FileMount> = byForm(
  { short: readsText((source): FileMount => ({ source })), long: longFileMount },
  (value) => (typeof value === "string" ? "short" : "long"),
);

const CREDENTIAL_SPEC_KEYS = {
  config: honoured(text),
  file: honoured(text),
  registry: honoured(text),
} satisfies Table;
export const credentialSpec: Schema<Fields<typeof CREDENTIAL_SPEC_KEYS>> = v.pipe(
  fields(CREDENTIAL_SPEC_KEYS),
  v.check(
    (entry) => Object.values(entry).filter(Boolean).length === 1,
    "needs exactly one of config, file and registry",
  ),
);

export const securityOption: Schema<string> = readsText((value) => {
  if (value === "no-new-privileges" || /[=:]/.test(value)) return value;
  return new Refusal(`is ${show(value)}; write name=value, as no-new-privileges:true`);
});

const NUMBER_OR_TEXT: JsonSchema = { anyOf: [{ type: "integer" }, { type: "string" }] };
const exposedPort: Schema<string> = reads(NUMBER_OR_TEXT, (value) => {
  const written = typeof value === "bigint" ? String(value) : value;
  if (written === "") return "";
  if (typeof written === "string" && /^[0-9]{1,5}(-[0-9]{1,5})?(\/(tcp|udp|sctp))?$/i.test(written))
    return written.toLowerCase();
  return new Refusal("must be a port of the container, as 8080 or 53/udp");
});

/** Compose passes an empty entry on to Docker, which lists it and exposes nothing. */
export const exposedPorts: Schema<string[]> = v.pipe(
  listOf(exposedPort, { repeats: "dropped" }),
  v.transform((all) => all.filter((one) => one !== "")),
);

/** A group of the container, by name or number. */
export const group: Schema<string> = reads(NUMBER_OR_TEXT, (value) =>
  typeof value === "string" || typeof value === "bigint"
    ? String(value)
    : new Refusal("must be a group's name or number"),
);

/** `external: true`, or the older form with a name, which is then the name on the node. */
const externalName: Schema<boolean | { name: string }> = v.pipe(
  fields({ name: honoured(text) }),
  v.transform(({ name }) => (name === undefined ? true : { name })),
);
export const external: Schema<boolean | { name: string }> = byForm({ flag, externalName }, (value) =>
  value instanceof Map ? "externalName" : "flag",
);

const BUILD = {
  context: honoured(text),
  dockerfile: honoured(text),
  dockerfile_inline: honoured(text),
  entitlements: honoured(listOf(text)),
  args: honoured(namesAndTexts),
  ssh: honoured(namesAndTexts),
  labels: honoured(namesAndTexts),
  cache_from: honoured(listOf(text)),
  cache_to: honoured(listOf(text)),
  no_cache: honoured(flag),
  no_cache_filter: honoured(textOrTexts),
  additional_contexts: honoured(namesAndTexts),
  network: honoured(text),
  provenance: honoured(anything),
  sbom: honoured(anything),
  pull: honoured(flag),
  target: honoured(text),
  shm_size: honoured(bytes),
  extra_hosts: honoured(extraHosts),
  isolation: honoured(text),
  privileged: honoured(flag),
  secrets: honoured(listOf(anything)),
  tags: honoured(listOf(text)),
  ulimits: honoured(mapOf(ulimit)),
  platforms: honoured(listOf(text)),
} satisfies Table;

/** How compose would build the image; nothing is built here, so all that counts is that it is one. */
export const build: Schema<unknown> = byForm({ context: text, long: fields(BUILD) }, (value) =>
  typeof value === "string" ? "context" : "long",
);

/** How Swarm would replace containers; checked, and left out. */
export const updates: Schema<unknown> = fields({
  parallelism: honoured(integer({ least: 0 })),
  delay: honoured(duration),
  failure_action: honoured(text),
  monitor: honoured(duration),
  max_failure_ratio: honoured(decimal({ least: 0 })),
  order: honoured(oneOf(["start-first", "stop-first"])),
});

const IPAM_CONFIG = {
  subnet: honoured(text),
  ip_range: honoured(text),
  gateway: honoured(text),
  aux_addresses: honoured(mapOf(text)),
} satisfies Table;
const IPAM = {
  driver: honoured(text),
  config: honoured(listOf(fields(IPAM_CONFIG))),
  options: honoured(mapOf(text)),
} satisfies Table;

/** Addresses of a network. */
export const ipam: Schema<Fields<typeof IPAM>> = fields(IPAM);
