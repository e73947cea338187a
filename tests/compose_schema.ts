/**
 * @module The JSON schema of the Compose Specification as an oracle: what it says of a JSON document, and documents made from it.
 * Values come from the schema's types, with texts that are likely for the key; a part is spoilt on purpose.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import Ajv from "ajv";
import fc from "fast-check";

type Schema = {
  $ref?: string;
  type?: string | string[];
  enum?: unknown[];
  oneOf?: Schema[];
  properties?: Record<string, Schema>;
  patternProperties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  minimum?: number;
  maximum?: number;
  uniqueItems?: boolean;
  definitions?: Record<string, Schema>;
};

const FILE = join(import.meta.dir, "fixtures/compose-spec/compose-spec.json");
export const SCHEMA = JSON.parse(readFileSync(FILE, "utf8")) as Schema;

const check = new Ajv({ strict: false, allErrors: true }).compile(withoutId(SCHEMA));

function withoutId({ $id: _, $schema: __, ...schema }: Schema & { $id?: string; $schema?: string }) {
  return schema;
}

/** What the schema has against a JSON document; empty: nothing. */
export function schemaFaults(text: string): string[] {
  check(JSON.parse(text));
  return (check.errors ?? []).map(({ instancePath, message }) => `${instancePath} ${message}`);
}

/** The schema that a name under `definitions` has. */
export function definition(name: string): Schema {
  const found = SCHEMA.definitions?.[name];
  if (!found) throw new Error(`the schema has no definition ${name}`);
  return found;
}

function resolved(schema: Schema): Schema {
  return schema.$ref ? definition(schema.$ref.replace("#/definitions/", "")) : schema;
}

/** Texts that a key may well have; a key without any gets those of "". */
const TEXTS: Readonly<Record<string, readonly string[]>> = {
  "": ["a", "b", "x y", "5", "true", ""],
  image: ["busybox", "registry.example:5000/a/b:1.0"],
  ports: ["80", "8080:80", "127.0.0.1:81:81/udp"],
  published: ["8080", "90-95"],
  expose: ["80", "53/udp"],
  volumes: ["/a:/b", "/c", "./d:/e:ro"],
  host_ip: ["127.0.0.1", "::1"],
  dns: ["1.1.1.1", "::1"],
  extra_hosts: ["a=1.2.3.4", "b:::1"],
  cpus: ["0.5", "2"],
  devices: ["/dev/null", "/dev/a:/dev/b:r"],
  security_opt: ["no-new-privileges", "label:disable"],
  restart: ["no", "always", "on-failure:3"],
  condition: ["on-failure", "none", "any"],
  constraints: ["node.role == worker", "node.labels.a != b"],
  spread: ["node.labels.zone"],
  mode: ["0440", "global", "host"],
  type: ["bind", "tmpfs"],
  permissions: ["r", "rwm"],
  tmpfs: ["/run", "/tmp:size=1m"],
  target: ["/t", "/u"],
  source: ["/s", "./r"],
  uid: ["0", "1000"],
  gid: ["0", "1000"],
  mac_address: ["02:42:ac:11:00:02"],
  stop_signal: ["SIGTERM", "9"],
  pull_policy: ["always", "never", "daily"],
  container_name: ["one", "two-2"],
  network_mode: ["host", "none", "bridge"],
  ...Object.fromEntries(
    ["ipv4_address", "ipv6_address", "link_local_ips"].map((key) => [key, ["10.0.0.5", "fd00::5"]]),
  ),
  ...Object.fromEntries(["pid", "userns_mode", "uts"].map((key) => [key, ["host"]])),
  platform: ["linux/amd64", "linux/arm64/v8"],
  interface_name: ["eth1", "a"],
  ipc: ["host", "private", "shareable"],
  ...Object.fromEntries(
    ["interval", "timeout", "start_period", "start_interval", "delay", "window", "monitor", "stop_grace_period"].map(
      (key) => [key, ["5s", "1m30s", "500ms"]],
    ),
  ),
  ...Object.fromEntries(
    ["mem_limit", "memory", "mem_reservation", "memswap_limit", "shm_size", "size", "rate"].map((key) => [
      key,
      ["64m", "1.5gb", "67108864"],
    ]),
  ),
};

const spoilt = fc.oneof(
  fc.constantFrom<unknown>(null, true, 5, -1, 1.5, "", "text", [], {}),
  fc.constant([["a"]]),
  fc.constant({ unknown: 1 }),
);

/** Values of a schema. `spoil`: one of so many parts is of any kind instead. */
export function valuesOf(
  schema: Schema,
  { key, spoil, deep = 0 }: { key: string; spoil: number; deep?: number },
): fc.Arbitrary<unknown> {
  const sound = soundValues(resolved(schema), { key, spoil, deep: deep + 1 });
  return spoil === 0 ? sound : fc.oneof({ arbitrary: sound, weight: spoil }, { arbitrary: spoilt, weight: 1 });
}

function soundValues(schema: Schema, at: { key: string; spoil: number; deep: number }): fc.Arbitrary<unknown> {
  if (schema.enum) return fc.constantFrom(...schema.enum);
  if (schema.oneOf) return fc.oneof(...schema.oneOf.map((one) => valuesOf(one, { ...at, spoil: 0 })));
  const types = typeof schema.type === "string" ? [schema.type] : (schema.type ?? ["object"]);
  return fc.oneof(...types.map((type) => valuesOfType(type, schema, at)));
}

function valuesOfType(
  type: string,
  schema: Schema,
  at: { key: string; spoil: number; deep: number },
): fc.Arbitrary<unknown> {
  const { minimum: min = 0, maximum: max = 2000 } = schema;
  switch (type) {
    case "string":
      return fc.constantFrom(...(TEXTS[at.key] ?? TEXTS[""] ?? []));
    case "integer":
      return fc.integer({ min, max });
    case "number":
      return fc.oneof(fc.integer({ min, max }), fc.constantFrom(0.5, 1.25));
    case "boolean":
      return fc.boolean();
    case "null":
      return fc.constant(null);
    case "array": {
      const items = at.deep > 6 ? fc.constant("a") : valuesOf(schema.items ?? { type: "string" }, at);
      return fc.uniqueArray(items, { maxLength: 3, selector: (item) => JSON.stringify(item) });
    }
    default:
      return at.deep > 6 ? fc.constant({}) : mappings(schema, at);
  }
}

function mappings(schema: Schema, at: { spoil: number; deep: number; key: string }): fc.Arbitrary<unknown> {
  const known = Object.entries(schema.properties ?? {});
  const own = Object.entries(schema.patternProperties ?? {}).find(([pattern]) => !pattern.startsWith("^x-"))?.[1];
  if (known.length === 0) {
    const value = own ? valuesOf(own, at) : fc.constantFrom<unknown>("a", "1.2.3.4");
    return fc.dictionary(fc.constantFrom("a", "b", "c"), value, { maxKeys: 2 });
  }
  const required = schema.required ?? [];
  const members = Object.fromEntries(known.map(([key, next]) => [key, valuesOf(next, { ...at, key })]));
  // A few members of many: most documents would be at fault somewhere else.
  return fc
    .subarray(
      known.map(([key]) => key),
      { maxLength: Math.min(3, known.length) },
    )
    .chain((chosen) =>
      fc.record(Object.fromEntries([...required, ...chosen].map((key) => [key, members[key] ?? fc.constant(null)]))),
    );
}
