/**
 * @module What somebody says who means harm: messages of a node, or of a master, that are too large, of wrong types, about what is
 * others', or no messages at all. Made from seeds, for the rogue node and the rogue master of the tests.
 */
import { PROTOCOL_VERSION } from "../src/model.ts";
import { PROTOCOLS } from "../src/model_protocol.ts";

export type Random = () => number;

/** Texts that would be more than a text somewhere: in a rule, a command, a path, an address, a table of names. */
export const HOSTILE_TEXTS = [
  "",
  "a\nCOMMIT\n*filter\n-I INPUT -j ACCEPT\nCOMMIT\n",
  "10.213.0.0/24\n-A INPUT -j ACCEPT",
  "10.0.0.2\nroute add default via 10.0.0.66",
  "0.0.0.0/0",
  "10.213.0.9/24",
  "010.213.000.000/24",
  "::/0",
  "__proto__",
  "constructor",
  "../../../../etc/passwd",
  "..",
  "a/b",
  "x y; reboot #",
  "$(reboot)",
  "a@evil:1/?#",
  "\u0000",
  "\ud800",
  "\u2028",
  "💣".repeat(50),
  `${"B".repeat(42)}A=\nEndpoint = 10.6.6.6:1`,
] as const;

export const HOSTILE_NUMBERS = [-1, -0, 0.5, 2 ** 53, 1e308, -1e308, Number.MAX_SAFE_INTEGER, 65_536, 2 ** 31] as const;

/** What is nobody's: values of every type, and some that JSON alone can say. */
const RAW = [
  "null",
  "true",
  "{}",
  "[]",
  "1e999",
  "-1e999",
  '"\\ud800"',
  "[[]]",
  '{"__proto__":{"a":1}}',
  '"x"',
] as const;

export function pick<T>(random: Random, from: readonly T[]): T {
  const found = from[Math.floor(random() * from.length)];
  if (found === undefined) throw new Error("there is nothing to pick from");
  return found;
}

/** JSON text of a message with some of its values replaced by hostile ones. */
export function mutated(message: unknown, { random, share = 0.15 }: { random: Random; share?: number }): string {
  const write = (value: unknown, depth: number): string => {
    if (depth > 0 && random() < share) return hostileJson(random);
    if (Array.isArray(value)) {
      const parts = value.map((one) => write(one, depth + 1));
      // Twice, or not at all.
      return `[${(random() < 0.1 ? [...parts, ...parts] : random() < 0.05 ? [] : parts).join(",")}]`;
    }
    if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
    const members = Object.entries(value).filter(() => random() > 0.02);
    const written = members.map(([key, one]) => `${JSON.stringify(key)}:${write(one, depth + 1)}`);
    if (random() < 0.1) written.push(`"__proto__":{"type":"hello","admin":true}`);
    return `{${written.join(",")}}`;
  };
  return write(message, 0);
}

function hostileJson(random: Random): string {
  const kind = random();
  if (kind < 0.55) return JSON.stringify(pick(random, HOSTILE_TEXTS));
  if (kind < 0.75) return JSON.stringify(pick(random, HOSTILE_NUMBERS));
  if (kind < 0.8) return JSON.stringify("L".repeat(20_000));
  return pick(random, RAW);
}

/** What is no message: half of one, an unknown one, deep ones, other encodings. */
export function noMessage(random: Random): string | Uint8Array {
  const deep = "[".repeat(100_000);
  return pick<string | Uint8Array>(random, [
    "",
    "{",
    '{"type":"heartbeat"',
    '{"type":"hello","type":"status"}',
    '{"type":["hello"]}',
    "null",
    "[]",
    "7",
    deep,
    `${deep}${"]".repeat(100_000)}`,
    `{"type":"status","full":true,"allocations":${"[".repeat(50_000)}${"]".repeat(50_000)},"gone":[],"removals_done":[]}`,
    '{"type":"assignments","order":{"term":1,"revision":1},"specs":[],"allocations":[],"removals":[]}',
    '{"type":"left"}',
    new Uint8Array([0xff, 0xfe, 0x00, 0x7b]),
    new TextEncoder().encode('{"type":"heartbeat","sequence":1}'),
  ]);
}

/** What a rogue node knows of others, to speak of it as its own. */
export type Victims = { subnets: readonly string[]; ids: readonly string[]; networks: readonly string[] };

export function helloOf(nodeId: string, more: object = {}): object {
  return {
    type: "hello",
    protocol: PROTOCOL_VERSION,
    protocols: PROTOCOLS,
    node_id: nodeId,
    instance: `i-${nodeId}`,
    node_name: nodeId,
    address: "127.0.0.1:9",
    underlay: "127.0.0.1",
    labels: [["rogue", "yes"]],
    engine: {
      state: "ready",
      engine_id: `engine-${nodeId}`,
      docker_version: "20.10.24",
      api_version: "1.41",
      platform: { os: "linux", arch: "amd64" },
    },
    version: "0.0.0",
    last_term: { term: 2 ** 50, leadership: "rogue", signature: "c2lnbmF0dXJl" },
    ...more,
  };
}

export function heartbeatOf(
  nodeId: string,
  { overlay, sequence = 1 }: { overlay?: object; sequence?: number } = {},
): object {
  const { engine } = helloOf(nodeId) as { engine: object };
  return {
    type: "heartbeat",
    sequence,
    engine,
    resources: {
      total_memory: 2 ** 33,
      used_memory: 2 ** 30,
      available_memory: 2 ** 33 - 2 ** 30,
      cpus: 4,
      used_cpus: 0.1,
      taken_ports: ["tcp/22"],
    },
    volumes: ["v"],
    networks: ["bridge"],
    foreign: [],
    ...(overlay && { overlay }),
  };
}

export function statusOf(allocations: readonly object[] = [], more: object = {}): object {
  return { type: "status", full: true, allocations, gone: [], removals_done: [], ...more };
}

/** A report that is well formed and about what is others'. */
function stolen(nodeId: string, { random, victims }: { random: Random; victims: Victims }): object {
  const { subnets, ids, networks } = victims;
  const overlay = {
    mode: "vxlan",
    blocks: 1,
    full: random() < 0.2,
    public_key: pick(random, [...HOSTILE_TEXTS, `${"C".repeat(43)}=`]),
    networks: Array.from({ length: 5 }, () => ({
      network: pick(random, networks),
      subnet: pick(random, [...subnets, ...HOSTILE_TEXTS, "0.0.0.0/0", "10.213.0.0/16"]),
    })),
  };
  if (random() < 0.6) return heartbeatOf(nodeId, { overlay });
  const allocation = {
    allocation_id: pick(random, ids),
    state: "running",
    final: random() < 0.5,
    ports: [],
    restarts: 0,
    error: "E".repeat(100_000),
    resolved_digest: pick(random, [...HOSTILE_TEXTS, `sha256:${"0".repeat(64)}`]),
    addresses: Array.from({ length: 3 }, () => ({
      network: pick(random, networks),
      address: pick(random, ["10.213.0.5", "10.213.1.5", ...HOSTILE_TEXTS]),
    })),
  };
  return statusOf([allocation], {
    full: random() < 0.5,
    gone: [pick(random, ids)],
    removals_done: [pick(random, ids)],
  });
}

/** One message of a rogue node that has said hello. */
export function rogueReport(nodeId: string, options: { random: Random; victims: Victims }): string | Uint8Array {
  const { random } = options;
  const kind = random();
  if (kind < 0.4) return JSON.stringify(stolen(nodeId, options));
  if (kind < 0.6)
    return mutated(heartbeatOf(nodeId, { overlay: { mode: "vxlan", blocks: 1, full: false, networks: [] } }), options);
  if (kind < 0.75) return mutated(stolen(nodeId, options), options);
  if (kind < 0.85) return JSON.stringify(helloOf(nodeId));
  if (kind < 0.9)
    return JSON.stringify(statusOf(Array.from({ length: 2_000 }, (_, n) => ({ allocation_id: `x${n}` }))));
  return noMessage(random);
}
