/**
 * @module DNS messages (RFC 1035, EDNS(0): RFC 6891) as the server needs them: reads a query that may be anything, and writes
 * replies. Records are the codec's (dns-packet); what stands before them is written here: a reply repeats the question byte for
 * byte, in the asker's own upper and lower case. Knows nothing of names, sockets or other servers.
 */
import { type Answer, decode, encode } from "dns-packet";
import type { NameRecord } from "./names.ts";

export const RCODE = {
  ok: 0,
  format: 1,
  failure: 2,
  noSuchName: 3,
  notImplemented: 4,
  refused: 5,
  badVersion: 16,
} as const;
export type Rcode = (typeof RCODE)[keyof typeof RCODE];

export type Query = {
  packet: Buffer;
  name: string;
  /** As in `A`; `UNKNOWN_65` for what the codec doesn't know. */
  type: string;
  /** Where the question ends in the packet. */
  end: number;
  /** What the asker says of EDNS(0); undefined if nothing. */
  edns: { isDnssecAsked: boolean } | undefined;
  /** Bytes that a reply over UDP may have. */
  maxUdpBytes: number;
};

export type ReplyBody = {
  rcode: Rcode;
  records?: readonly NameRecord[];
  additional?: readonly NameRecord[];
  /** Zone of a reply without records: says for how long "there is none" holds. */
  zone?: string;
};

/** Names are right for this long; longer would keep replicas in caches that are gone. */
const TTL_SECONDS = 1;
const HEADER_BYTES = 12;
/** RFC 1035, 4.1.4: the name that stands behind the header. */
const QUESTION_POINTER = Buffer.from([0xc0, HEADER_BYTES]);
/** RFC 1035, 4.2.1: what everybody takes. */
const MIN_UDP_BYTES = 512;
/** Larger ones would be sent in fragments on some paths (dnsflagday.net, 2020). */
const MAX_UDP_BYTES = 1232;
/** The longest name with its type and class is 267 bytes; cookies, padding and signatures get the rest. */
const MAX_QUERY_BYTES = 4096;
/** OPT, and a signature; more is no query, but work. */
const MAX_QUERY_ADDITIONALS = 4;
export const MAX_MESSAGE_BYTES = 65_535;

const FLAGS = {
  response: 0x8000,
  opcode: 0x7800,
  authoritative: 0x0400,
  truncated: 0x0200,
  available: 0x0080,
} as const;
/** "Recursion desired" and "checking disabled" are repeated. */
const REPEATED_FLAGS = 0x0110;
const DNSSEC_OK = 0x8000;
/** Zone transfers: their replies are many messages. */
const TRANSFERS: ReadonlySet<string> = new Set(["AXFR", "IXFR"]);

/** A query to answer, the reply to what is none, or undefined for what deserves none: such as replies, lest two servers talk for ever. */
export function readQuery(packet: Buffer): Query | { reply: Buffer } | undefined {
  if (packet.length < HEADER_BYTES) return undefined;
  const flags = packet.readUInt16BE(2);
  if ((flags & FLAGS.response) !== 0) return undefined;
  if ((flags & FLAGS.opcode) !== 0) return { reply: bareReply(packet, RCODE.notImplemented) };
  const end = questionEnd(packet);
  const [questions, answers, authorities, additionals] = [4, 6, 8, 10].map((at) => packet.readUInt16BE(at));
  const isQuery = questions === 1 && answers === 0 && authorities === 0 && (additionals ?? 0) <= MAX_QUERY_ADDITIONALS;
  if (!isQuery || end === undefined || packet.length > MAX_QUERY_BYTES)
    return { reply: bareReply(packet, RCODE.format) };
  let message;
  try {
    message = decode(packet);
  } catch {
    return { reply: bareReply(packet, RCODE.format) };
  }
  const [question] = message.questions ?? [];
  const opts = (message.additionals ?? []).filter((record) => record.type === "OPT");
  const [opt] = opts;
  if (!question || opts.length > 1) return { reply: bareReply(packet, RCODE.format) };
  const query: Query = {
    packet,
    name: question.name,
    type: question.type,
    end,
    edns: opt && { isDnssecAsked: (opt.flags & DNSSEC_OK) !== 0 },
    maxUdpBytes: opt ? Math.min(Math.max(opt.udpPayloadSize, MIN_UDP_BYTES), MAX_UDP_BYTES) : MIN_UDP_BYTES,
  };
  if (opt && opt.ednsVersion !== 0) return { reply: writeReply(query, { rcode: RCODE.badVersion }) };
  if (question.class !== "IN" || TRANSFERS.has(query.type))
    return { reply: writeReply(query, { rcode: RCODE.refused }) };
  return query;
}

/** A reply of at most `maxBytes`; what is left out of its answer is told of by the flag TC, additional records go first. */
export function writeReply(query: Query, body: ReplyBody, maxBytes = query.maxUdpBytes): Buffer {
  const { packet, end, edns } = query;
  const authorities = body.zone === undefined ? [] : [encodeOne(startOfAuthority(body.zone))];
  const opt = edns ? [encodeOne(optRecord(body.rcode, edns))] : [];
  const room = maxBytes - end - sizeOf(authorities) - sizeOf(opt);
  const { records = [], additional = [] } = body;
  const answers = firstThatFit(records, room);
  const isWhole = answers.length === records.length;
  const additionals = isWhole ? firstThatFit(additional, room - sizeOf(answers)) : [];

  const sections = [answers, authorities, [...additionals, ...opt]];
  const reply = Buffer.concat([packet.subarray(0, end), ...sections.flat()]);
  // A zone that is named, or records: it is our name.
  const isAuthoritative = records.length > 0 || body.zone !== undefined;
  reply.writeUInt16BE(
    FLAGS.response |
      (isAuthoritative ? FLAGS.authoritative : 0) |
      (isWhole ? 0 : FLAGS.truncated) |
      FLAGS.available |
      (packet.readUInt16BE(2) & REPEATED_FLAGS) |
      (body.rcode & 0xf),
    2,
  );
  for (const [index, { length }] of sections.entries()) reply.writeUInt16BE(length, 6 + 2 * index);
  return reply;
}

/** The query as it goes to another server: its own id, so that nobody can guess what a forged reply needs. */
export function withId(packet: Buffer, id: number): Buffer {
  const copy = Buffer.from(packet);
  copy.writeUInt16BE(id, 0);
  return copy;
}

/** What another server says to `query`, as sent: undefined if the packet is no reply to it. */
export function readReply(packet: Buffer, query: Pick<Query, "packet" | "end">): { rcode: number } | undefined {
  if (packet.length < query.end || packet.readUInt16BE(0) !== query.packet.readUInt16BE(0)) return undefined;
  if ((packet.readUInt16BE(2) & FLAGS.response) === 0 || packet.readUInt16BE(4) !== 1) return undefined;
  const asText = (buffer: Buffer): string => buffer.toString("latin1", HEADER_BYTES, query.end).toLowerCase();
  return asText(packet) === asText(query.packet) ? { rcode: packet.readUInt16BE(2) & 0xf } : undefined;
}

/** Only a header: the question can't be repeated where it can't be read. */
function bareReply(packet: Buffer, rcode: Rcode): Buffer {
  const reply = Buffer.alloc(HEADER_BYTES);
  const flags = packet.readUInt16BE(2);
  reply.writeUInt16BE(packet.readUInt16BE(0), 0);
  reply.writeUInt16BE(FLAGS.response | (flags & (FLAGS.opcode | REPEATED_FLAGS)) | FLAGS.available | rcode, 2);
  return reply;
}

/** Where the one question ends; undefined if it can't be read. Its name stands first in the packet, so no pointer may be in it. */
function questionEnd(packet: Buffer): number | undefined {
  let at = HEADER_BYTES;
  for (;;) {
    const length = packet[at];
    if (length === undefined || length > 63) return undefined;
    at += length + 1;
    if (length === 0) break;
  }
  return at + 4 <= packet.length ? at + 4 : undefined;
}

function encodeRecord(record: NameRecord): Buffer {
  const name = "name" in record ? record.name : undefined;
  if (name !== undefined) return encodeOne({ ...dataOf(record), name });
  // The codec writes names out; a pointer to the question's, in place of the root's one byte, lets twice as many addresses in.
  return Buffer.concat([QUESTION_POINTER, encodeOne({ ...dataOf(record), name: "." }).subarray(1)]);
}

function dataOf(record: NameRecord): Answer {
  const common = { name: ".", ttl: TTL_SECONDS };
  if (record.type === "A") return { ...common, type: "A", data: record.address };
  if (record.type === "PTR") return { ...common, type: "PTR", data: record.target };
  // Equal weights above 0 make all equally likely (RFC 2782).
  return { ...common, type: "SRV", data: { priority: 0, weight: 1, port: record.port, target: record.target } };
}

function encodeOne(record: Answer): Buffer {
  return encode({ answers: [record] }).subarray(HEADER_BYTES);
}

/** RFC 2308: its minimum says how long a "there is none" may be kept. */
function startOfAuthority(zone: string): Answer {
  const times = { refresh: TTL_SECONDS, retry: TTL_SECONDS, expire: TTL_SECONDS, minimum: TTL_SECONDS };
  const data = { mname: "ns.cacophony", rname: "hostmaster.cacophony", serial: 1, ...times };
  return { type: "SOA", name: zone, ttl: TTL_SECONDS, data };
}

function optRecord(rcode: Rcode, { isDnssecAsked }: { isDnssecAsked: boolean }): Answer {
  return {
    type: "OPT",
    name: ".",
    udpPayloadSize: MAX_UDP_BYTES,
    extendedRcode: rcode >> 4,
    ednsVersion: 0,
    flags: isDnssecAsked ? DNSSEC_OK : 0,
    flag_do: isDnssecAsked,
    options: [],
  };
}

/** The first ones of the records, as many as there is room for. */
function firstThatFit(records: readonly NameRecord[], room: number): Buffer[] {
  const encoded: Buffer[] = [];
  let left = room;
  for (const record of records) {
    const bytes = encodeRecord(record);
    left -= bytes.length;
    if (left < 0) break;
    encoded.push(bytes);
  }
  return encoded;
}

function sizeOf(records: readonly Buffer[]): number {
  return records.reduce((sum, { length }) => sum + length, 0);
}
