/**
 * @module What a text, a number or a list of a message may be: shapes with bounds, for all that comes from another node. Records
 * of the Store have their own, wider shapes, since a bound that comes later must not make an old record unreadable.
 *
 * Three rules. A name that goes into a command, a rule, a path or an address is parsed, and whatever else it could be is refused.
 * A text for people is cut, never refused: a long error message must not lock a node out. A list leaves out the entries that are
 * not as they should be, and says so (`readBounded`); only where leaving one out could stop a container the list is refused.
 */
import { isIP } from "node:net";
import * as v from "valibot";
import { isAddress, isSubnet } from "./subnet.ts";

// ---- Numbers of things, and lengths in characters -------------------------------------------------------------------

/** A hello: its labels are 16 Ki characters at most, all else is far less; older nodes did not bound their labels. */
export const MAX_HELLO_CHARS = 256 * 1024;
/** Any other message of a node: a full report of 10,000 containers that all have ended and left their last lines is 30 MB. */
export const MAX_REPORT_CHARS = 32 * 2 ** 20;

/** Labels of a node, from its command line or through the API: more than anybody gives, few enough to look at for each placement. */
export const MAX_LABELS = 100;
const MAX_LABEL_NAME = 200;
export const MAX_LABEL_VALUE = 1_000;
/** All labels of a command line together: they are kept for each node, also for one that never comes again. */
export const MAX_LABELS_CHARS = 16 * 1024;
/** A host name has 253 characters at most (RFC 1035, 2.3.4). */
export const MAX_NODE_NAME = 253;

/** Ids have 12 or 36 characters, job ids up to 63. */
const MAX_ID = 128;
/** Names in Docker: of volumes they are names of directories (255 bytes), of networks any text. */
export const MAX_NAME = 512;
/** `HOST:PORT` with the longest host name, or an IPv6 address in brackets. */
const MAX_HOST_PORT = 260;
/** An error, a reason: a few sentences; Docker may quote a whole command line. */
export const MAX_ERROR_CHARS = 2_000;
/** A version, a platform, the name of a signal, an Engine's id. */
export const MAX_WORD = 128;
/** A node tells the last 10 lines of a container, with 200 characters of each. */
export const MAX_TAIL_LINES = 20;
export const MAX_LINE = 400;
/** Containers on one node: a bridge of Linux has 1,023 ports, and the largest known nodes run some thousands. */
export const MAX_CONTAINERS = 10_000;
/** Volumes, or networks, that a heartbeat names: about 100 KB of text. A node with more is taken to have what it is asked for. */
export const MAX_NAMES = 2_000;
/** Ports that a machine can have taken: 65,535 of tcp, udp and sctp each. */
export const MAX_TAKEN_PORTS = 3 * 65_535;
/** Nodes of one cluster: ten times those that Cacophony is built for. */
export const MAX_NODES = 100_000;
/** Blocks of 256 addresses that one node can have, as many as a /16 holds. */
export const MAX_BLOCKS = 256;
/** Services of one cluster, for names. */
export const MAX_SERVICES = 100_000;
/** Replicas of one service: one on each node, and some more. */
export const MAX_ENDPOINTS = 100_000;
/** Of anything else that a machine or a container has several of: devices, networks, published ports, aliases. */
export const MAX_SEVERAL = 10_000;
/** Milliseconds of an interval: a timer of more than 24 days would ring at once. */
const MAX_INTERVAL_MS = 86_400_000;

// ---- Texts ----------------------------------------------------------------------------------------------------------

const plainId = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/;
/** Id of a node, a job, an allocation, a process …: also safe as a part of a path, since it is never `..` and has no `/`. */
export const id = v.pipe(
  v.string(),
  v.maxLength(MAX_ID),
  v.regex(plainId, "is not an id: letters, digits, '.', '_', '-'"),
);

// oxlint-disable-next-line no-control-regex -- they are what is looked for
const controls = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/;
// oxlint-disable-next-line no-control-regex -- the same, each of them
const eachControl = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g;
/** A name as Docker or a document has it: any text of one line. */
export const name = v.pipe(
  v.string(),
  v.minLength(1),
  v.maxLength(MAX_NAME),
  v.check((text) => !controls.test(text), "is not a name: it has a line feed or another control character"),
);

/** An IPv4 address as it is written: `10.213.4.9`. */
export const ipv4 = v.pipe(v.string(), v.check(isAddress, "is not an IPv4 address, as 10.213.4.9"));
/** An IPv4 subnet by its first address: `10.213.4.0/26`. */
export const cidr = v.pipe(v.string(), v.check(isSubnet, "is not an IPv4 subnet, as 10.213.4.0/26"));
/** The range that a cluster's addresses are out of, as `--network-cidr` takes it: never so large that it is everybody's. */
export const range = v.pipe(
  cidr,
  v.check((subnet) => Number(subnet.split("/")[1]) >= 8, "is larger than a /8: no range of a cluster"),
);
/** An address of a machine that a port is published on; empty: all of them. */
export const hostIp = v.pipe(
  v.string(),
  v.check((text) => text === "" || isIP(text) !== 0, "is not an IP address"),
);

/** 32 bytes in base64, as `wg` writes them: the last digit stands for four bits, and two that are 0. */
const WIREGUARD_KEY = /^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/;
export const wireguardKey = v.pipe(v.string(), v.regex(WIREGUARD_KEY, "is not a WireGuard key: 32 bytes in base64"));

/** `HOST:PORT`, `[IPV6]:PORT`: nothing that an URL could take for a path, a user or a query. */
export const hostPort = v.pipe(
  v.string(),
  v.maxLength(MAX_HOST_PORT),
  v.check(isHostPort, "is not an address, as 10.0.0.1:9000 or [fd00::1]:9000"),
);

function isHostPort(text: string): boolean {
  const [, ipv6, host, port] =
    /^(?:\[([0-9a-fA-F:.]+(?:%[0-9a-zA-Z]+)?)\]|([\p{L}\p{N}._-]+)):([0-9]{1,5})$/u.exec(text) ?? [];
  return (host !== undefined || isIP(ipv6 ?? "") === 6) && Number(port) >= 1 && Number(port) <= 65_535;
}

/** A digest as registries give it: `sha256:…`. Source: OCI image specification, descriptor.md, "Digests". */
export const digest = v.pipe(
  v.string(),
  v.regex(/^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]{1,256}$/, "is not a digest, as sha256:…"),
  v.maxLength(MAX_NAME),
);

/** A SHA-256 in hex. */
export const sha256 = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, "is not a SHA-256 in hex"));

/** Path of a file below a directory: it leads nowhere else. */
export function isPlainPath(path: string): boolean {
  return !path.includes("\0") && path.split("/").every((part) => part !== "" && part !== "." && part !== "..");
}

/** A port that is taken: `tcp/80`. */
export const takenPort = v.pipe(v.string(), v.regex(/^(?:tcp|udp|sctp)\/[0-9]{1,5}$/, "is not a port, as tcp/80"));

/** A text for people; a longer one is cut. */
export function text(max: number) {
  return v.pipe(
    v.string(),
    v.transform((whole) => cut(whole, max)),
  );
}

/** A text for people of one line; a longer one is cut, and control characters become spaces. */
export function line(max: number) {
  return v.pipe(
    v.string(),
    v.transform((whole) => cut(whole, max).replaceAll(eachControl, " ")),
  );
}

/** The text, or its beginning and `…`: `max` characters at most. */
export function cut(whole: string, max: number): string {
  return whole.length <= max ? whole : `${whole.slice(0, max - 1).toWellFormed()}…`;
}

// ---- Numbers --------------------------------------------------------------------------------------------------------

/** A count that arithmetic is exact with. */
export const safeCount = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
export const safeNumber = v.pipe(v.number(), v.safeInteger());
export const interval = v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(MAX_INTERVAL_MS));
/** CPUs: no machine has a million. */
export const cpus = v.pipe(v.number(), v.finite(), v.minValue(0), v.maxValue(1e6));

// ---- Lists ----------------------------------------------------------------------------------------------------------

/** A list of up to `max` entries. Those that are not as they should be, and those above `max`, are left out and noted. */
export function list<T extends v.GenericSchema>(item: T, { max, what }: { max: number; what: string }) {
  // All at once where all are well, which is nearly always: one by one takes several times as long.
  const all = v.array(item);
  return v.pipe(
    v.array(v.unknown()),
    v.transform((entries): v.InferOutput<T>[] => {
      const noted = notes.length;
      const parsed = entries.length > max ? undefined : v.safeParse(all, entries, { abortEarly: true });
      if (parsed?.success) return parsed.output;
      notes.length = noted;
      return eachOf(item, { entries, max, what });
    }),
  );
}

function eachOf<T extends v.GenericSchema>(
  item: T,
  { entries, max, what }: { entries: readonly unknown[]; max: number; what: string },
): v.InferOutput<T>[] {
  if (entries.length > max) note(`${what}: ${entries.length} entries, of which the first ${max} are taken`);
  const kept: v.InferOutput<T>[] = [];
  for (const entry of entries.slice(0, max)) {
    const parsed = v.safeParse(item, entry);
    if (parsed.success) kept.push(parsed.output);
    else note(issueText(what, parsed.issues[0]));
  }
  return kept;
}

/** A list that is refused as a whole where one of its entries is not as it should be. */
export function wholeList<T extends v.GenericSchema>(item: T, max: number) {
  return v.pipe(v.array(v.unknown()), v.maxLength(max), v.array(item));
}

/** What counts as absent, and is noted, where it is not as it should be. */
export function lenient<T extends v.GenericSchema>(schema: T, what: string) {
  return v.pipe(
    v.unknown(),
    v.transform((value): v.InferOutput<T> | undefined => {
      const parsed = v.safeParse(schema, value);
      if (parsed.success) return parsed.output;
      note(issueText(what, parsed.issues[0]));
      return undefined;
    }),
  );
}

/** Notes of one message: a person needs the first ones. */
const MAX_NOTES = 5;
/** What a note shows of a value. */
const MAX_SHOWN = 80;

/** What the parse under way has left out. A parse is one synchronous call, so there is never a second one at a time. */
let notes: string[] = [];

function note(fault: string): void {
  if (notes.length < MAX_NOTES) notes.push(fault);
}

/** What is wrong with what, with the value as JSON has it, in one line. */
function issueText(what: string, issue: v.BaseIssue<unknown>): string {
  const path = v.getDotPath(issue);
  const value = typeof issue.input === "object" ? issue.received : (JSON.stringify(issue.input) ?? issue.received);
  return `${what}${path === null ? "" : `.${path}`}: ${cut(value, MAX_SHOWN)}: ${issue.message}`;
}

/** What is wrong with a node's label; undefined: nothing. */
export function labelFault(key: string, value: string): string | undefined {
  if (key.length < 1 || key.length > MAX_LABEL_NAME) return `a label's name has 1 to ${MAX_LABEL_NAME} characters`;
  return value.length > MAX_LABEL_VALUE ? `a label's value has at most ${MAX_LABEL_VALUE} characters` : undefined;
}

const label = v.pipe(
  v.tuple([v.string(), v.string()]),
  v.check(([key, value]) => labelFault(key, value) === undefined, "is not a label: its name or value is too long"),
);

/** The labels that a node was started with. */
export const nodeLabels = v.pipe(
  list(label, { max: MAX_LABELS, what: "labels" }),
  v.transform((labels) => {
    let left = MAX_LABELS_CHARS;
    const kept = labels.filter(([key, value]) => (left -= key.length + value.length) >= 0);
    if (kept.length < labels.length) note(`labels: over ${MAX_LABELS_CHARS} characters in all`);
    return kept;
  }),
);

export type Bounded<T> = { ok: true; output: T; leftOut: string[] } | { ok: false; fault: string };

/** Reads `input`; with the first sentences of what was left out of it, or why it can't be read at all. */
export function readBounded<T extends v.GenericSchema>(schema: T, input: unknown): Bounded<v.InferOutput<T>> {
  notes = [];
  const parsed = v.safeParse(schema, input);
  if (!parsed.success) return { ok: false, fault: issueText("message", parsed.issues[0]) };
  return { ok: true, output: parsed.output, leftOut: notes };
}
