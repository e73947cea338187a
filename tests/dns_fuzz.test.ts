/** @module Fuzz of the DNS server: hostile questions over UDP and TCP, and hostile replies of the host's resolvers. */
import { afterEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DnsServer } from "../src/dns_server.ts";
import { type Log, silentLog } from "../src/log.ts";
import {
  answerOf,
  askTcp,
  askUdp,
  edns,
  framed,
  namesOf,
  question,
  shopService,
  startResolver,
} from "./dns_fixture.ts";
import { type Fuzz, startFuzz } from "./fuzz.ts";

const UDP_PACKETS = 6_000;
const TCP_CONNECTIONS = 400;
const RESOLVED = 600;
/** What the server may send over UDP at most: `MAX_UDP_BYTES` of the server. */
const MAX_REPLY_BYTES = 1232;
/** A valid question among all others is answered within this time, on a busy machine. */
const ANSWER_MS = 5_000;

const cleanups: (() => void | Promise<void>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

type Started = { port: number; complaints: () => string[] };

/** A server that asks a resolver at `resolverPort`; nobody is there by default. */
async function start(resolverPort = 9): Promise<Started> {
  const dir = mkdtempSync(join(tmpdir(), "cacophony-dns-fuzz-"));
  const resolvConf = join(dir, "resolv.conf");
  writeFileSync(resolvConf, "nameserver 127.0.0.1\n");
  const logged: string[] = [];
  const add = (message: string, fields?: unknown): void => void logged.push(`${message} ${JSON.stringify(fields)}`);
  const log: Log = { ...silentLog, warn: add, error: add };
  const names = namesOf(shopService("web", 3), shopService("many", 40), shopService("huge", 1_000));
  const server = new DnsServer({ names, log, port: 0, resolvConf, resolverPort });
  cleanups.push(
    () => rmSync(dir, { recursive: true }),
    () => server.stop(),
  );
  await server.listen(["127.0.0.1"]);
  // That resolvers don't answer is no fault of the server's.
  return {
    port: server.listening[0]?.port ?? 0,
    complaints: () => logged.filter((line) => !line.includes("resolver")),
  };
}

const NAMES = [
  "web",
  "wEb.sHop",
  "many.shop.cacophony",
  "huge.shop",
  "1.web.shop.cacophony",
  "_http._tcp.web.shop",
  "nope.cacophony",
  "1.8.213.10.in-addr.arpa",
  "example.com",
  ".",
  `${"a".repeat(63)}.`.repeat(3).slice(0, -1),
  "\\000.web",
  "xn--a.web",
  "*.shop",
];
const TYPES = ["A", "AAAA", "SRV", "PTR", "ANY", "TXT", "SOA", "NS", "AXFR", "DNSKEY", "UNKNOWN_65", "OPT"];

/** A question, as it should be or nearly so. */
function packetOf(fuzz: Fuzz): Buffer {
  const { pick, upTo, chance, bytes, mutate } = fuzz;
  const good = () => {
    const more = chance(0.5) ? edns(upTo(65_535), chance(0.1) ? upTo(255) : 0) : {};
    try {
      return question(pick(NAMES), pick(TYPES), { id: upTo(65_535), ...more });
    } catch {
      return question("web", "A", { id: upTo(65_535) }); // The codec can't write that.
    }
  };
  return pick([
    good,
    () => mutate(good()),
    () => mutate(good(), 20),
    () => good().subarray(0, upTo(40)),
    () => bytes(upTo(600)),
    () => Buffer.concat([good(), bytes(upTo(2_000))]),
    // Counts that are not so, flags of all kinds.
    () => {
      const packet = good();
      packet.writeUInt16BE(upTo(65_535), pick([2, 4, 6, 8, 10]));
      return packet;
    },
    // Names of labels and pointers at random: loops, ends beyond the packet, kinds of labels that do not exist.
    () => {
      const labels = Array.from({ length: upTo(130) }, () =>
        pick([Buffer.from([1, 97]), Buffer.from([0xc0, upTo(255)]), Buffer.from([upTo(255)]), Buffer.from([0x41, 1])]),
      );
      return Buffer.concat([good().subarray(0, 12), ...labels, Buffer.from([0, 0, upTo(255), 0, 1])]);
    },
    // Additional records that are cut, nested or many.
    () => {
      const packet = Buffer.concat([good(), bytes(upTo(11)), mutate(good().subarray(12))]);
      packet.writeUInt16BE(upTo(6), 10);
      return packet;
    },
  ])();
}

/** How many addresses a valid question gets. The kernel may drop it among so many others, so it is sent again, as resolvers do. */
async function answersOf(port: number, tries = 3): Promise<number | undefined> {
  const ask = () => askUdp(port, question("web", "A"), ANSWER_MS);
  const reply = tries > 1 ? await ask().catch(() => undefined) : await ask();
  return reply ? reply.answers?.length : answersOf(port, tries - 1);
}

test("fuzz of DNS over UDP: no packet gets more than one bounded reply, and valid questions stay answered", async () => {
  const fuzz = startFuzz("DNS over UDP");
  const { seed } = fuzz;
  const { port, complaints } = await start();
  const replies: Buffer[] = [];
  const socket = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    socket: { data: (_, packet) => void replies.push(Buffer.from(packet)) },
  });
  cleanups.push(() => socket.close());
  for (let n = 0; n < UDP_PACKETS; n++) {
    socket.send(packetOf(fuzz));
    if (n % 50 === 0) await Bun.sleep(1);
    if (n % 500 === 0) {
      expect({ seed, n, answers: await answersOf(port) }).toEqual({ seed, n, answers: 3 });
    }
  }
  expect({ seed, answers: await answersOf(port) }).toEqual({ seed, answers: 3 });
  expect(replies.length).toBeLessThanOrEqual(UDP_PACKETS);
  expect(replies.length).toBeGreaterThan(UDP_PACKETS / 4);
  const wrong = replies.filter((reply) => reply.length > MAX_REPLY_BYTES || (reply[2] ?? 0) < 0x80);
  expect({ seed, wrong: wrong.map((reply) => reply.toString("hex")) }).toEqual({ seed, wrong: [] });
  expect({ seed, complaints: complaints() }).toEqual({ seed, complaints: [] });
}, 60_000);

test("fuzz of DNS over TCP: a connection is answered or closed, and valid questions stay answered", async () => {
  const fuzz = startFuzz("DNS over TCP");
  const { seed, upTo, pick, chance, bytes } = fuzz;
  const { port, complaints } = await start();
  const one = async (): Promise<void> => {
    const frames = Array.from({ length: upTo(5) }, () => {
      const packet = packetOf(fuzz);
      return pick([
        framed(packet),
        framed(packet),
        packet,
        framed(packet).subarray(0, upTo(packet.length)),
        bytes(upTo(300)),
      ]);
    });
    const data = Buffer.concat(frames);
    const cut = upTo(data.length);
    const socket = connect({ host: "127.0.0.1", port });
    socket.on("error", () => {});
    socket.resume();
    const closed = new Promise((resolve) => socket.on("close", resolve));
    socket.write(data.subarray(0, cut));
    if (chance(0.3)) await Bun.sleep(1);
    socket.end(data.subarray(cut));
    // Its end is the connection's end, whatever was left unfinished.
    await Promise.race([
      closed,
      Bun.sleep(ANSWER_MS).then(() => Promise.reject(new Error(`seed ${seed}: not closed`))),
    ]);
  };
  for (let n = 0; n < TCP_CONNECTIONS; n += 8) {
    await Promise.all(Array.from({ length: 8 }, one));
    const [reply] = await askTcp(port, framed(question("web", "A")));
    expect({ seed, n, answers: reply?.answers?.length }).toEqual({ seed, n, answers: 3 });
  }
  expect({ seed, complaints: complaints() }).toEqual({ seed, complaints: [] });
}, 60_000);

test("fuzz of DNS: whatever the host's resolvers reply, the asker gets one answer to its question, or a failure", async () => {
  const fuzz = startFuzz("DNS with hostile resolvers");
  const { seed, upTo, pick, bytes, mutate } = fuzz;
  const hostile = await startResolver((query) => {
    const good = answerOf(query, { addresses: ["192.0.2.1"] });
    return pick([
      () => good,
      () => mutate(good),
      () => good.subarray(0, upTo(good.length)),
      () => [bytes(upTo(100)), mutate(good, 10), good],
      () => [good, good, good],
      () => answerOf(query, { rcode: upTo(15) }),
      () => [query, good],
      () => Buffer.concat([good, bytes(upTo(3_000))]),
    ])();
  });
  cleanups.push(() => hostile.stop());
  const { port, complaints } = await start(hostile.port);
  const replies = new Map<number, number>();
  const socket = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    socket: {
      data: (_, packet) => void replies.set(packet.readUInt16BE(0), (replies.get(packet.readUInt16BE(0)) ?? 0) + 1),
    },
  });
  cleanups.push(() => socket.close());
  for (let id = 1; id <= RESOLVED; id++) {
    const packet = question(`n${id}.example.com`, "A", { id });
    if (id % 10 > 0) {
      socket.send(packet);
      await Bun.sleep(0);
    } else {
      // The resolver is asked over TCP, too. One that sends what is no reply keeps the asker waiting for 2 s, others not.
      const tcp = connect({ host: "127.0.0.1", port }, () => void tcp.write(framed(packet)));
      tcp.on("error", () => {});
      await Promise.race([new Promise((resolve) => tcp.once("data", resolve)), Bun.sleep(20)]);
      tcp.destroy();
    }
    if (id % 100 === 0) expect({ seed, id, answers: await answersOf(port) }).toEqual({ seed, id, answers: 3 });
  }
  expect({ seed, twice: [...replies].filter(([, count]) => count > 1) }).toEqual({ seed, twice: [] });
  expect(replies.size).toBeGreaterThan(RESOLVED / 4);
  expect({ seed, complaints: complaints() }).toEqual({ seed, complaints: [] });
}, 60_000);
