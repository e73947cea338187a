/** @module The DNS server over real sockets: answers, other servers, hostile packets, addresses that come and go. */
import { afterEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Answer, type DecodedPacket, encode } from "dns-packet";
import { DnsServer, type DnsServerOptions } from "../src/dns_server.ts";
import { type Log, silentLog } from "../src/log.ts";
import {
  answerOf,
  askTcp,
  askUdp,
  edns,
  framed,
  namesOf,
  question,
  type Resolver,
  shopService,
  startResolver,
} from "./dns_fixture.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

const cleanups: (() => void | Promise<void>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

type Started = { server: DnsServer; port: number; logged: { message: string; fields: unknown }[]; resolvConf: string };

/** A server on a loopback address, by default with no resolver that answers. */
async function start(options: Partial<DnsServerOptions> = {}, resolvers = ["127.0.0.1"]): Promise<Started> {
  const dir = mkdtempSync(join(tmpdir(), "cacophony-dns-"));
  const resolvConf = join(dir, "resolv.conf");
  writeFileSync(resolvConf, resolvers.map((host) => `nameserver ${host}\n`).join(""));
  const logged: Started["logged"] = [];
  const add = (message: string, fields?: unknown): void => void logged.push({ message, fields });
  const log: Log = { ...silentLog, info: add, warn: add, error: add };
  const names = namesOf(shopService("web", 3), shopService("many", 40), shopService("huge", 1_000));
  const server = new DnsServer({ names, log, port: 0, resolvConf, resolverPort: 9, ...options });
  cleanups.push(
    () => rmSync(dir, { recursive: true }),
    () => server.stop(),
  );
  await server.listen(["127.0.0.1"]);
  if (server.listening.length === 0) throw new Error(`does not listen: ${JSON.stringify(logged)}`);
  return { server, port: server.listening[0]?.port ?? 0, logged, resolvConf };
}

async function resolver(...args: Parameters<typeof startResolver>): Promise<Resolver> {
  const started = await startResolver(...args);
  cleanups.push(() => started.stop());
  return started;
}

function texts(records: readonly Answer[] | undefined): string[] {
  return (records ?? [])
    .flatMap((record) => {
      if (record.type === "OPT" || !("data" in record)) return [];
      const data = record.type === "SRV" ? `${record.data.target}:${record.data.port}` : record.data;
      const value = record.type === "SOA" ? record.data.minimum : data;
      return [`${record.name} ${record.ttl} ${record.type} ${String(value)}`];
    })
    .sort();
}

const ask = async (port: number, name: string, type = "A"): Promise<DecodedPacket & { rcode: string }> =>
  askUdp(port, question(name, type));

describe("the DNS server", () => {
  test("answers with the addresses of a service, for a second, in the asker's upper and lower case", async () => {
    const { port } = await start();
    const reply = await ask(port, "wEb.Shop.cacophony");
    expect(reply).toMatchObject({
      id: 4711,
      flag_qr: true,
      flag_aa: true,
      flag_ra: true,
      flag_rd: true,
      flag_tc: false,
    });
    expect(reply).toMatchObject({ rcode: "NOERROR", questions: [{ name: "wEb.Shop.cacophony" }], authorities: [] });
    expect(texts(reply.answers)).toEqual(
      ["10.213.8.0", "10.213.8.1", "10.213.8.2"].map((ip) => `wEb.Shop.cacophony 1 A ${ip}`),
    );
  });

  test("answers SRV with the replicas' names and their addresses", async () => {
    const { port } = await start();
    const reply = await askUdp(port, question("_http._tcp.web", "SRV", edns(1232)));
    const hosts = [1, 2, 3].map((slot) => `${slot}.web.shop.cacophony`);
    expect(texts(reply.answers)).toEqual(hosts.map((host) => `_http._tcp.web 1 SRV ${host}:80`));
    expect(texts(reply.additionals)).toEqual(hosts.map((host, index) => `${host} 1 A 10.213.8.${index}`));
  });

  test("answers PTR with the replica's name", async () => {
    const { port } = await start();
    const reply = await ask(port, "9.8.213.10.in-addr.arpa", "PTR");
    expect(texts(reply.answers)).toContain("9.8.213.10.in-addr.arpa 1 PTR 10.many.shop.cacophony");
  });

  test.each([
    ["web.shop", "AAAA", "NOERROR", "web.shop 1 SOA 1"],
    ["nope.cacophony", "A", "NXDOMAIN", "cacophony 1 SOA 1"],
    ["9.99.213.10.in-addr.arpa", "PTR", "NXDOMAIN", "in-addr.arpa 1 SOA 1"],
    ["_81._tcp.web", "SRV", "NXDOMAIN", "_tcp.web 1 SOA 1"],
  ])("says of %s %s that there is none, which holds for a second", async (name, type, rcode, soa) => {
    const { port } = await start();
    const reply = await ask(port, name, type);
    expect(reply).toMatchObject({ rcode, flag_aa: true, answers: [] });
    expect(texts(reply.authorities)).toEqual([soa]);
  });

  test("sends over UDP what fits, says that there is more, and sends all over TCP", async () => {
    const { port } = await start();
    const small = await ask(port, "many.shop");
    expect(small.flag_tc).toBe(true);
    // 512 bytes less header and question, 16 bytes an address.
    expect(small.answers?.length).toBe(30);
    const larger = await askUdp(port, question("many.shop", "A", edns(1024)));
    expect(larger.flag_tc).toBe(false);
    expect(larger.answers?.length).toBe(40);
    const capped = await askUdp(port, question("huge.shop", "A", edns(65_535)));
    expect(capped.flag_tc).toBe(true);
    expect(capped.answers?.length).toBe(74);
    const [whole] = await askTcp(port, framed(question("huge.shop", "A")));
    expect(whole?.flag_tc).toBe(false);
    expect(new Set(texts(whole?.answers)).size).toBe(1_000);
  });

  test("leaves out additional records before it says that there is more", async () => {
    const { port } = await start();
    const reply = await askUdp(port, question("_http._tcp.many", "SRV", edns(1232)));
    expect(reply.flag_tc).toBe(true);
    const few = await askUdp(port, question("_http._tcp.web", "SRV", edns(512)));
    expect(few).toMatchObject({ flag_tc: false });
    expect(few.answers?.length).toBe(3);
  });

  test("cuts what is too long even for TCP", async () => {
    const { port } = await start({ names: namesOf(shopService("huge", 5_000)) });
    const [reply] = await askTcp(port, framed(question("huge.shop", "A")));
    expect(reply?.flag_tc).toBe(true);
    expect(reply?.answers?.length).toBe(Math.floor((65_535 - 12 - 15) / 16));
  });

  test("answers several questions of one TCP connection, however they are cut into pieces", async () => {
    const { port } = await start();
    const three = Buffer.concat(["web", "many.shop", "nope.cacophony"].map((name) => framed(question(name, "A"))));
    expect((await askTcp(port, three, 3)).map(({ rcode }) => rcode)).toEqual(["NOERROR", "NOERROR", "NXDOMAIN"]);
    const { promise, resolve } = Promise.withResolvers<Buffer>();
    const socket = connect({ host: "127.0.0.1", port });
    cleanups.push(() => void socket.destroy());
    socket.on("data", resolve);
    for (const byte of framed(question("web", "A"))) {
      socket.write(Buffer.from([byte]));
      await Bun.sleep(1);
    }
    expect((await promise).length).toBeGreaterThan(12);
  });
});

describe("EDNS(0)", () => {
  test("is answered where it is asked for, and only there", async () => {
    const { port } = await start();
    expect((await ask(port, "web")).additionals).toEqual([]);
    const reply = await askUdp(port, question("web", "A", edns(4096)));
    expect(reply.additionals).toMatchObject([{ type: "OPT", udpPayloadSize: 1232, ednsVersion: 0 }]);
  });

  test("of a version that nobody knows is refused as such", async () => {
    const { port } = await start();
    const reply = await askUdp(port, question("web", "A", edns(4096, 1)));
    expect(reply).toMatchObject({ answers: [], additionals: [{ type: "OPT", extendedRcode: 1, ednsVersion: 0 }] });
  });
});

describe("all other names", () => {
  test("go to the host's resolver and come back as they are, with ids and ports that can't be guessed", async () => {
    const host = await resolver((query) => answerOf(query, { addresses: ["192.0.2.1"] }));
    const { port } = await start({ resolverPort: host.port });
    for (let n = 0; n < 20; n++) {
      const reply = await ask(port, "example.com");
      expect(reply).toMatchObject({ id: 4711, rcode: "NOERROR", flag_aa: false });
      expect(texts(reply.answers)).toEqual(["example.com 300 A 192.0.2.1"]);
    }
    expect(new Set(host.asked.map((one) => one.port)).size).toBeGreaterThan(10);
    expect(new Set(host.asked.map(({ packet }) => packet.readUInt16BE(0))).size).toBeGreaterThan(10);
  });

  test("go by TCP where they come by TCP, and a cut reply comes back as cut", async () => {
    const many = Array.from({ length: 100 }, (_, n) => `192.0.2.${n}`);
    const host = await resolver((query, transport) =>
      answerOf(query, transport === "udp" ? { truncated: true } : { addresses: many }),
    );
    const { port } = await start({ resolverPort: host.port });
    expect((await ask(port, "example.com")).flag_tc).toBe(true);
    const [reply] = await askTcp(port, framed(question("example.com", "A")));
    expect(reply?.answers?.length).toBe(100);
  });

  test("of one label go there, too, but a `no such name` from there holds for a second only", async () => {
    const host = await resolver((query) =>
      answerOf(query, query.includes("nas") ? { addresses: ["192.0.2.9"] } : { rcode: 3 }),
    );
    const { port } = await start({ resolverPort: host.port });
    expect(texts((await ask(port, "nas")).answers)).toEqual(["nas 300 A 192.0.2.9"]);
    const reply = await ask(port, "nope");
    expect(reply).toMatchObject({ rcode: "NXDOMAIN", answers: [] });
    expect(texts(reply.authorities)).toEqual([". 1 SOA 1"]);
    expect(texts((await ask(port, "nope.example")).authorities)).toEqual([]);
  });

  test("that are the cluster's never do", async () => {
    const host = await resolver((query) => answerOf(query, { addresses: ["192.0.2.1"] }));
    const { port } = await start({ resolverPort: host.port });
    for (const name of ["web", "nope.cacophony", "x.web.shop.cacophony", "9.9.213.10.in-addr.arpa", "7.web.shop"]) {
      for (const type of ["A", "AAAA", "PTR", "MX"]) await ask(port, name, type);
    }
    expect(host.asked).toEqual([]);
  });

  test("go to the next resolver where one fails, refuses or is not there", async () => {
    let rcode = 2;
    const first = await resolver((query) => answerOf(query, { rcode }));
    const second = await resolver((query) => answerOf(query, { addresses: ["192.0.2.2"] }), {
      host: "127.0.0.3",
      port: first.port,
    });
    const { port } = await start({ resolverPort: first.port }, ["127.0.0.2", "127.0.0.1", "127.0.0.3"]);
    for (rcode of [2, 4, 5]) {
      expect(texts((await ask(port, "example.com")).answers)).toEqual(["example.com 300 A 192.0.2.2"]);
    }
    expect(second.asked.length).toBe(3);
    rcode = 3;
    expect((await ask(port, "example.com")).rcode).toBe("NXDOMAIN");
    const [reply] = await askTcp(port, framed(question("example.com", "A")));
    expect(reply?.rcode).toBe("NXDOMAIN");
  });

  test("come back with the last resolver's failure where all fail", async () => {
    const host = await resolver((query) => answerOf(query, { rcode: 5 }));
    const { port } = await start({ resolverPort: host.port });
    expect((await ask(port, "example.com")).rcode).toBe("REFUSED");
  });

  test("go to the next resolver after two seconds of silence, and for a while to the silent one last", async () => {
    const clock = new VirtualClock();
    const silent = await resolver(() => undefined);
    const second = await resolver((query) => answerOf(query, { addresses: ["192.0.2.2"] }), {
      host: "127.0.0.2",
      port: silent.port,
    });
    const { port } = await start({ clock, resolverPort: silent.port }, ["127.0.0.1", "127.0.0.2"]);
    const reply = ask(port, "example.com");
    await waitUntil("the first resolver is asked", () => silent.asked.length === 1);
    await clock.advance(1_999);
    expect(second.asked.length).toBe(0);
    await clock.advance(1);
    expect(texts((await reply).answers)).toEqual(["example.com 300 A 192.0.2.2"]);
    expect((await ask(port, "example.org")).rcode).toBe("NOERROR");
    expect(silent.asked.length).toBe(1);
    await clock.advance(10_000);
    const late = ask(port, "example.net");
    await waitUntil("the first resolver is asked again", () => silent.asked.length === 2);
    await clock.advance(2_000);
    expect((await late).rcode).toBe("NOERROR");
  });

  test("fail where no resolver answers", async () => {
    const clock = new VirtualClock();
    const silent = await resolver(() => undefined);
    const { port, logged } = await start({ clock, resolverPort: silent.port });
    for (const name of ["example.com", "one-label"]) {
      const before = silent.asked.length;
      const reply = ask(port, name);
      await waitUntil("the resolver is asked", () => silent.asked.length > before);
      await clock.advance(2_000);
      expect((await reply).rcode).toBe("SERVFAIL");
    }
    const [stuck] = [askTcp(port, framed(question("example.com", "A")))];
    await waitUntil("the resolver is asked", () => silent.asked.length === 3);
    await clock.advance(2_000);
    expect((await stuck)?.[0]?.rcode).toBe("SERVFAIL");
    expect(logged.map(({ message }) => message)).toEqual(["no resolver of the host answers"]);
  });

  test("take no reply that is not one to the question asked", async () => {
    const host = await resolver((query) => {
      const good = answerOf(query, { addresses: ["192.0.2.1"] });
      const otherId = Buffer.from(good);
      otherId.writeUInt16BE(query.readUInt16BE(0) ^ 1, 0);
      const otherName = Buffer.from(good);
      otherName[13] = "x".charCodeAt(0);
      const echo = Buffer.from(query);
      const lies = [otherId, otherName, echo, Buffer.alloc(0), good.subarray(0, 11), good.subarray(0, 20)];
      for (const lie of [otherId, otherName]) lie[lie.length - 1] = 66;
      return [...lies, good];
    });
    const { port } = await start({ resolverPort: host.port });
    expect(texts((await ask(port, "example.com")).answers)).toEqual(["example.com 300 A 192.0.2.1"]);
  });

  test("follow the host's resolv.conf when it changes", async () => {
    const clock = new VirtualClock();
    const first = await resolver((query) => answerOf(query, { addresses: ["192.0.2.1"] }));
    await resolver((query) => answerOf(query, { addresses: ["192.0.2.2"] }), { host: "127.0.0.2", port: first.port });
    const { port, resolvConf } = await start({ clock, resolverPort: first.port });
    expect(texts((await ask(port, "example.com")).answers)).toEqual(["example.com 300 A 192.0.2.1"]);
    writeFileSync(resolvConf, "# new\nsearch lan\nnameserver 127.0.0.2 \nnameserver nonsense\noptions ndots:2\n");
    await clock.advance(1_000);
    expect(texts((await ask(port, "example.com")).answers)).toEqual(["example.com 300 A 192.0.2.2"]);
    rmSync(resolvConf);
    await clock.advance(1_000);
    expect(texts((await ask(port, "example.com")).answers)).toEqual(["example.com 300 A 192.0.2.2"]);
    writeFileSync(resolvConf, "search lan\n");
    await clock.advance(1_000);
    expect(texts((await ask(port, "example.com")).answers)).toEqual(["example.com 300 A 192.0.2.1"]);
  });

  test("never go to the server itself", async () => {
    const free = await startResolver(() => undefined);
    await free.stop();
    const { port } = await start({ port: free.port, resolverPort: free.port });
    expect(port).toBe(free.port);
    expect((await ask(port, "example.com")).rcode).toBe("SERVFAIL");
    expect((await ask(port, "one-label")).rcode).toBe("NXDOMAIN");
  });

  test("fail at once where one asker has too many under way, and nobody else waits for that", async () => {
    const silent = await resolver(() => undefined);
    const { port } = await start({ clock: new VirtualClock(), resolverPort: silent.port });
    let failed = 0;
    const flood = await Bun.udpSocket({
      connect: { hostname: "127.0.0.1", port },
      socket: { data: () => void failed++ },
    });
    cleanups.push(() => flood.close());
    for (let n = 0; n < 200; n++) {
      flood.send(question(`n${n}.example.com`, "A"));
      if (n % 20 === 0) await Bun.sleep(1);
    }
    await waitUntil("the rest has failed", () => failed, { until: (count) => count === 200 - 128 });
    expect((await ask(port, "web")).rcode).toBe("NOERROR");
  });

  test("are nobody's business who is not of the cluster", async () => {
    const host = await resolver((query) => answerOf(query, { addresses: ["192.0.2.1"] }));
    const { port } = await start({ names: { lookup: () => ({ state: "refused" }) }, resolverPort: host.port });
    expect((await ask(port, "example.com")).rcode).toBe("REFUSED");
    expect(host.asked).toEqual([]);
  });
});

describe("hostile packets", () => {
  const bits = (packet: Buffer, at: number, value: number): Buffer => {
    const copy = Buffer.from(packet);
    copy.writeUInt16BE(value, at);
    return copy;
  };
  const plain = question("web", "A");
  const after = (head: Buffer, ...bytes: number[]): Buffer => Buffer.concat([head.subarray(0, 12), Buffer.from(bytes)]);

  test.each<[what: string, packet: Buffer, rcode: string]>([
    ["another opcode", bits(plain, 2, 0x2000), "NOTIMP"],
    ["an update", bits(plain, 2, 0x2800), "NOTIMP"],
    ["no question", bits(plain, 4, 0), "FORMERR"],
    ["two questions", bits(plain, 4, 2), "FORMERR"],
    ["65,535 questions", bits(plain, 4, 0xffff), "FORMERR"],
    ["answers in a query", bits(plain, 6, 1), "FORMERR"],
    ["65,535 additional records", bits(plain, 10, 0xffff), "FORMERR"],
    ["an additional record that is not there", bits(plain, 10, 1), "FORMERR"],
    ["a name that ends with the packet", plain.subarray(0, 14), "FORMERR"],
    ["no type", plain.subarray(0, plain.length - 3), "FORMERR"],
    ["only a header", bits(plain, 4, 1).subarray(0, 12), "FORMERR"],
    ["a name that points to itself", after(plain, 0xc0, 0x0c, 0, 1, 0, 1), "FORMERR"],
    ["a name that points ahead", after(plain, 0xc0, 0xff, 0, 1, 0, 1), "FORMERR"],
    ["a label of a kind that does not exist", after(plain, 0x80, 0x01, 0, 1, 0, 1), "FORMERR"],
    [
      "a name of more than 255 bytes",
      after(plain, ...Array.from({ length: 200 }, () => [1, 97]).flat(), 0, 0, 1, 0, 1),
      "FORMERR",
    ],
    [
      "two OPT records",
      question("web", "A", { additionals: [...(edns(512).additionals ?? []), ...(edns(512).additionals ?? [])] }),
      "FORMERR",
    ],
    ["more than any query is", Buffer.concat([plain, Buffer.alloc(5_000)]), "FORMERR"],
    ["class CH", encode({ type: "query", questions: [{ name: "version.bind", type: "TXT", class: "CH" }] }), "REFUSED"],
    ["class ANY", encode({ type: "query", questions: [{ name: "web", type: "A", class: "ANY" }] }), "REFUSED"],
    ["a zone transfer", question("shop.cacophony", "AXFR"), "REFUSED"],
  ])("with %s get their answer", async (_, packet, rcode) => {
    const { port } = await start();
    const reply = await askUdp(port, packet);
    expect(reply).toMatchObject({ rcode, flag_qr: true, answers: [] });
    const [overTcp] = await askTcp(port, framed(packet));
    expect(overTcp?.rcode).toBe(rcode);
  });

  test("that are replies, or no packets at all, get none", async () => {
    const { port } = await start();
    const got: Buffer[] = [];
    const socket = await Bun.udpSocket({
      connect: { hostname: "127.0.0.1", port },
      socket: { data: (_, packet) => void got.push(packet) },
    });
    cleanups.push(() => socket.close());
    for (const packet of [bits(plain, 2, 0x8180), Buffer.alloc(0), Buffer.alloc(5), Buffer.alloc(11, 255)])
      socket.send(packet);
    socket.send(plain);
    await waitUntil("the question is answered", () => got.length > 0);
    await ask(port, "web");
    expect(got.length).toBe(1);
  });

  test("of any bytes never end the server, nor make it answer with more than it may", async () => {
    const seed = Math.floor(Math.random() * 2 ** 31);
    const random = seededRandom(seed);
    const { port, logged } = await start();
    const sizes: number[] = [];
    const socket = await Bun.udpSocket({
      connect: { hostname: "127.0.0.1", port },
      socket: { data: (_, packet) => void sizes.push(packet.length) },
    });
    cleanups.push(() => socket.close());
    const models = [
      question("web", "A", edns(512)),
      question("_http._tcp.web.shop", "SRV", edns(512)),
      question("1.8.213.10.in-addr.arpa", "PTR"),
      question("many.cacophony", "ANY"),
    ];
    for (let n = 0; n < 5_000; n++) {
      const model = models[n % models.length] as Buffer;
      const packet = Buffer.from(n % 3 === 0 ? model.subarray(0, Math.floor(random() * model.length)) : model);
      for (let change = Math.floor(random() * 6); change > 0 && packet.length > 0; change--) {
        packet[Math.floor(random() * packet.length)] = Math.floor(random() * 256);
      }
      socket.send(packet);
      if (n % 50 === 0) await Bun.sleep(1);
    }
    const reply = await ask(port, "web");
    expect({ seed, answers: reply.answers?.length }).toEqual({ seed, answers: 3 });
    expect({ seed, larger: sizes.filter((size) => size > 1232) }).toEqual({ seed, larger: [] });
    expect(sizes.length).toBeGreaterThan(500);
    // Only what the host's resolvers were to answer may have failed.
    const complaints = logged.map(({ message }) => message).filter((message) => !message.includes("resolver"));
    expect({ seed, complaints }).toEqual({ seed, complaints: [] });
  });

  test("of any bytes over TCP end at most their own connection", async () => {
    const { port } = await start();
    const random = seededRandom(5);
    for (let n = 0; n < 30; n++) {
      const junk = Buffer.from(Array.from({ length: 2_000 }, () => Math.floor(random() * 256)));
      const socket = connect({ host: "127.0.0.1", port }, () => socket.end(junk));
      socket.on("error", () => {});
      await new Promise((resolve) => socket.on("close", resolve).resume());
    }
    expect((await askTcp(port, framed(question("web", "A"))))[0]?.rcode).toBe("NOERROR");
  });

  test("of 64 KiB over TCP are read to their end", async () => {
    const { port } = await start();
    const large = Buffer.concat([plain, Buffer.alloc(65_535 - plain.length, 1)]);
    const replies = await askTcp(port, Buffer.concat([framed(large), framed(plain)]), 2);
    expect(replies.map(({ rcode }) => rcode)).toEqual(["FORMERR", "NOERROR"]);
  });
});

describe("TCP connections", () => {
  /** Resolves when the server has closed it. */
  function opened(port: number): {
    closed: Promise<number>;
    socket: ReturnType<typeof connect>;
    connected: Promise<void>;
  } {
    const socket = connect({ host: "127.0.0.1", port });
    socket.on("error", () => {});
    socket.resume();
    cleanups.push(() => void socket.destroy());
    return {
      socket,
      connected: new Promise((resolve) => socket.on("connect", resolve)),
      closed: new Promise((resolve) => socket.on("close", () => resolve(1))),
    };
  }

  test("are closed 10 s after their last whole question", async () => {
    const clock = new VirtualClock();
    const { port } = await start({ clock });
    const { socket, connected, closed } = opened(port);
    await connected;
    const answered = new Promise((resolve) => socket.once("data", resolve));
    socket.write(framed(question("web", "A")));
    await answered;
    await clock.advance(9_000);
    // Half a question does not count.
    socket.write(framed(question("web", "A")).subarray(0, 10));
    await Bun.sleep(20);
    expect(socket.destroyed).toBe(false);
    await clock.advance(1_000);
    expect(await closed).toBe(1);
  });

  test("of one asker are 32 at most; what is above is closed at once", async () => {
    const { port } = await start();
    const all = Array.from({ length: 40 }, () => opened(port));
    await Promise.all(all.map(({ connected }) => connected));
    let closed = 0;
    for (const one of all) one.closed.then(() => closed++);
    await waitUntil("the surplus is closed", () => closed, { until: (count) => count === 8 });
    all.find(({ socket }) => !socket.destroyed)?.socket.destroy();
    await waitUntil("there is room again", async () => (await askTcp(port, framed(question("web", "A")))).length === 1);
  });

  test("whose client does not read are closed", async () => {
    const { port } = await start();
    const socket = connect({ host: "127.0.0.1", port });
    socket.on("error", () => {});
    socket.pause();
    cleanups.push(() => void socket.destroy());
    let isClosed = false;
    socket.on("close", () => (isClosed = true));
    const batch = Buffer.concat(Array.from({ length: 200 }, () => framed(question("huge.shop", "A"))));
    await waitUntil(
      "the server gives up",
      () => {
        if (!isClosed) socket.write(batch);
        return isClosed;
      },
      { intervalMs: 20 },
    );
    expect((await ask(port, "web")).rcode).toBe("NOERROR");
  });
});

describe("listen()", () => {
  test("takes addresses in and out, and leaves those that stay undisturbed", async () => {
    const { server, port } = await start();
    await server.listen(["127.0.0.1", "127.0.0.2"]);
    expect(server.listening.map(({ address }) => address)).toEqual(["127.0.0.1", "127.0.0.2"]);
    expect(server.listening[0]?.port).toBe(port);
    expect((await ask(port, "web")).rcode).toBe("NOERROR");
    await server.listen(["127.0.0.2", "127.0.0.2"]);
    expect(server.listening.map(({ address }) => address)).toEqual(["127.0.0.2"]);
    await expect(ask(port, "web")).rejects.toThrow("nobody listens there");
    await expect(askTcp(port, framed(question("web", "A")))).rejects.toThrow();
  });

  test("reports an address that can't be bound once, and binds it when it can", async () => {
    const clock = new VirtualClock();
    const taken = await resolver(() => undefined, { host: "127.0.0.2" });
    const { server, logged } = await start({ clock, port: taken.port });
    await server.listen(["127.0.0.1", "127.0.0.2"]);
    expect(server.listening.map(({ address }) => address)).toEqual(["127.0.0.1"]);
    expect(logged).toMatchObject([{ fields: { address: "127.0.0.2", port: taken.port } }]);
    await clock.advance(1_000);
    await server.listen(["127.0.0.1", "127.0.0.2"]);
    await taken.stop();
    await waitUntil("the address is bound", async () => {
      await clock.advance(1_000);
      return server.listening.length === 2;
    });
    expect(logged.length).toBe(2);
    expect((await ask(server.listening[0]?.port ?? 0, "web")).rcode).toBe("NOERROR");
  });

  test("gives an address up that is left out before it could be bound", async () => {
    const clock = new VirtualClock();
    const taken = await resolver(() => undefined, { host: "127.0.0.2" });
    const { server } = await start({ clock, port: taken.port });
    await server.listen(["127.0.0.2"]);
    await server.listen([]);
    await taken.stop();
    await clock.advance(5_000);
    expect(server.listening).toEqual([]);
  });

  test("ends with the last of several calls at once", async () => {
    const { server } = await start();
    const sets = [["127.0.0.2"], ["127.0.0.1", "127.0.0.3"], [], ["127.0.0.4", "127.0.0.2"], ["127.0.0.3"]];
    await Promise.all(sets.map((set) => server.listen(set)));
    expect(server.listening.map(({ address }) => address)).toEqual(["127.0.0.3"]);
    const [{ port } = { port: 0 }] = server.listening;
    await server.stop();
    expect(server.listening).toEqual([]);
    const again = await startResolver(() => undefined, { host: "127.0.0.3", port });
    await again.stop();
  });

  test("may be called with what is no address of this host", async () => {
    const { server, logged } = await start();
    await server.listen(["10.255.255.254", "999.0.0.1"]);
    expect(server.listening).toEqual([]);
    expect(logged.length).toBe(2);
  });
});
