import { afterEach, describe, expect, test } from "bun:test";
import { systemClock } from "../src/clock.ts";
import { EntryProxy, type EntryProxyOptions } from "../src/entry_proxy.ts";
import { silentLog } from "../src/log.ts";
import type { Endpoint } from "../src/model_network.ts";
import type { EntryPort } from "../src/model_spec.ts";
import {
  client,
  endpoint,
  entry,
  freePort,
  type Handlers,
  type Peer,
  replica,
  SELF,
  service,
} from "./entry_fixture.ts";
import { seededRandom } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

const MIB = 2 ** 20;
const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).toReversed()) cleanup();
});

/** An entry with one port, and replicas behind it that can be changed one by one. */
async function world(fields: Partial<EntryPort> = {}, options: Partial<EntryProxyOptions> = {}) {
  const [port, containerPort] = [await freePort(), await freePort()];
  const unreachable: unknown[] = [];
  const log = {
    ...silentLog,
    debug: (message: string, { allocation }: Record<string, unknown> = {}) => {
      if (message === "entry could not reach a replica") unreachable.push(allocation);
    },
  };
  const random = seededRandom(1);
  const proxy = new EntryProxy({ clock: systemClock, log, random, selfNodeId: SELF, ...options });
  cleanups.push(() => proxy.stop());
  const web = service([entry(port, containerPort, fields)], []);
  let addresses = 1;
  return {
    proxy,
    port,
    containerPort,
    /** Ids of replicas that a connect failed to. */
    unreachable,
    web,
    /** Starts a server and returns the endpoint that leads to it. */
    start(id: string, handlers: Handlers & { node?: string } = {}) {
      const { node, ...own } = handlers;
      const address = `127.0.1.${addresses++}`;
      const server = replica(id, { address, port: containerPort, ...own });
      cleanups.push(server.stop);
      return { ...server, endpoint: endpoint(id, { address, ...(node && { node }) }) };
    },
    /** An endpoint that nobody serves. */
    dead(id: string): Endpoint {
      return endpoint(id, { address: `127.0.1.${addresses++}` });
    },
    lead(...endpoints: Endpoint[]) {
      proxy.update([{ ...web, endpoints }]);
    },
  };
}

/** Connects and waits for the name of the replica that answers. */
async function greeted(port: number, options: { host?: string } = {}): Promise<{ name: string; socket: Peer }> {
  const socket = await client(port, options);
  cleanups.push(() => socket.terminate());
  await settled("a greeting", () => socket.data.text.includes("\n") || socket.data.closed);
  return { name: socket.data.text.split("\n")[0] ?? "", socket };
}

function settled(what: string, probe: () => unknown): Promise<unknown> {
  return waitUntil(what, probe, { intervalMs: 2, timeoutMs: 5_000 });
}

async function names(port: number, count: number): Promise<string[]> {
  const seen: string[] = [];
  for (let n = 0; n < count; n++) {
    const { name, socket } = await greeted(port);
    seen.push(name);
    socket.end();
    await settled("the end of a connection", () => socket.data.closed);
  }
  return seen;
}

function counts(list: readonly string[]): Record<string, number> {
  const counted: Record<string, number> = {};
  for (const one of list.toSorted()) counted[one] = (counted[one] ?? 0) + 1;
  return counted;
}

const unready = (one: Endpoint): Endpoint => ({ ...one, ready: false });

describe("a new connection", () => {
  test("goes to the ready replicas of this node in turn, and to others only when there is none", async () => {
    const { start, lead, port } = await world();
    const [a, b, far] = [start("a"), start("b"), start("far", { node: "node-b" })];
    lead(a.endpoint, b.endpoint, far.endpoint);
    expect(counts(await names(port, 6))).toEqual({ a: 3, b: 3 });
    lead(a.endpoint, unready(b.endpoint), far.endpoint);
    expect(counts(await names(port, 3))).toEqual({ a: 3 });
    lead(unready(a.endpoint), unready(b.endpoint), far.endpoint);
    expect(counts(await names(port, 3))).toEqual({ far: 3 });
  });

  test("goes to the replica with the fewest connections through this node with least_connections", async () => {
    const { start, lead, port } = await world({ balance: "least_connections" });
    const [a, b] = [start("a"), start("b", { node: "node-b" })];
    lead(a.endpoint, b.endpoint);
    const open = [];
    for (let n = 0; n < 6; n++) open.push(await greeted(port));
    expect(counts(open.map(({ name }) => name))).toEqual({ a: 3, b: 3 });
    const ofA = open.filter(({ name }) => name === "a");
    for (const { socket } of ofA) socket.end();
    await settled("the end of all connections to a", () => a.peers.every(({ data }) => data.closed));
    expect(
      counts(await Promise.all([1, 2, 3].map(() => greeted(port))).then((all) => all.map(({ name }) => name))),
    ).toEqual({ a: 3 });
  });

  test("is retried on another replica when one refuses it, and that one is left alone for a while", async () => {
    const { start, dead, lead, port, unreachable } = await world();
    const [x, y, a] = [dead("x"), dead("y"), start("a")];
    lead(x, y, a.endpoint);
    expect(counts(await names(port, 10))).toEqual({ a: 10 });
    expect(unreachable.length).toBeLessThanOrEqual(2);
    // Once each, and then no more.
    const both = await world();
    both.lead(both.dead("x"), both.dead("y"));
    const socket = await client(both.port);
    await settled("the end of the connection", () => socket.data.closed);
    expect(socket.data.code).toBe("ECONNRESET");
    expect(both.unreachable.toSorted()).toEqual(["x", "y"]);
    expect(both.proxy.status()).toMatchObject([{ connections: 0, refused: 1 }]);
  });

  test("is retried on another replica when one does not answer within a second", async () => {
    const { start, lead, port, containerPort, unreachable } = await world();
    const stuck = await stuckReplica("127.0.2.1", containerPort);
    lead(stuck);
    const socket = await client(port);
    const began = performance.now();
    lead(stuck, start("a").endpoint);
    await settled("a greeting", () => socket.data.text === "a\n");
    const tookMs = performance.now() - began;
    expect(tookMs).toBeGreaterThan(900);
    expect(tookMs).toBeLessThan(2_000);
    expect(unreachable).toEqual(["stuck"]);
    socket.terminate();
  });

  test("waits a moment for a replica to become ready, and is reset when none does", async () => {
    const { start, lead, port, proxy } = await world();
    const a = start("a");
    lead(unready(a.endpoint));
    const early = await client(port);
    early.write("early ");
    await settled("the client", () => proxy.status()[0]?.connections === 1);
    lead(a.endpoint);
    await settled("the answer", () => early.data.text === "a\nearly ");
    lead(unready(a.endpoint));
    const late = await client(port);
    const began = performance.now();
    await settled("the end", () => late.data.closed);
    expect(late.data.code).toBe("ECONNRESET");
    expect(performance.now() - began).toBeGreaterThan(900);
    expect(early.data.closed).toBe(false);
    expect(proxy.status()).toMatchObject([{ connections: 1, refused: 1 }]);
    early.terminate();
  });

  test("is forgotten when its client leaves before there is a replica", async () => {
    const { start, lead, port, proxy } = await world();
    const a = start("a");
    lead(unready(a.endpoint));
    const socket = await client(port);
    await settled("the client", () => proxy.status()[0]?.connections === 1);
    socket.terminate();
    await settled("its end", () => proxy.status()[0]?.connections === 0);
    lead(a.endpoint);
    expect((await greeted(port)).name).toBe("a");
    expect(a.peers.length).toBe(1);
  });

  test("is refused above the limit, and taken again below it", async () => {
    const { start, lead, port, proxy } = await world({}, { maxSockets: 5 });
    lead(start("a").endpoint);
    const [one] = [await greeted(port), await greeted(port)];
    const third = await client(port);
    await settled("the refusal", () => third.data.closed);
    expect(third.data.code).toBe("ECONNRESET");
    expect(proxy.status()).toMatchObject([{ connections: 2, refused: 1 }]);
    one?.socket.end();
    await settled("room", () => proxy.status()[0]?.connections === 1);
    expect((await greeted(port)).name).toBe("a");
  });

  test("finds its replica by IPv6, too", async () => {
    const { start, lead, port } = await world();
    lead(start("a").endpoint);
    expect((await greeted(port, { host: "::1" })).name).toBe("a");
  });
});

describe("a connection", () => {
  test("passes on a FIN one way and bytes the other way", async () => {
    const { start, lead, port } = await world();
    let answer: Peer | undefined;
    const a = start("a", { end: (socket) => void (answer = socket) });
    lead(a.endpoint);
    const socket = await client(port);
    socket.write("question");
    socket.shutdown();
    await settled("the question and its end", () => a.peers[0]?.data.text === "question" && answer);
    expect(socket.data).toMatchObject({ ended: false, closed: false });
    answer?.write("answer");
    await settled("the answer", () => socket.data.text === "answer");
    answer?.end();
    await settled("the end", () => socket.data.closed);
    expect([socket.data.code, a.peers[0]?.data.code]).toEqual([undefined, undefined]);

    // The other way round: the replica has said all, the client has not.
    const b = start("b", { open: (socket) => socket.shutdown() });
    lead(b.endpoint);
    const second = await client(port);
    await settled("the replica's end", () => second.data.ended);
    second.write("still here");
    await settled("the client's bytes", () => b.peers[0]?.data.text === "still here");
    second.end();
    await settled("the end", () => b.peers[0]?.data.closed);
    expect(b.peers[0]?.data.code).toBeUndefined();
  });

  test("passes on a reset as a reset, both ways", async () => {
    const { start, lead, port, proxy } = await world();
    const a = start("a");
    lead(a.endpoint);
    const { socket } = await greeted(port);
    socket.terminate();
    await settled("the reset", () => a.peers[0]?.data.closed);
    expect(a.peers[0]?.data.code).toBe("ECONNRESET");
    const other = await greeted(port);
    a.peers[1]?.terminate();
    await settled("the reset", () => other.socket.data.closed);
    expect(other.socket.data.code).toBe("ECONNRESET");
    expect(proxy.status()).toMatchObject([{ connections: 0, refused: 0 }]);
  });

  test("carries large transfers both ways at once without losing or changing a byte", async () => {
    const { start, lead, port } = await world();
    const [up, down] = [new Stream(24 * MIB, 1), new Stream(24 * MIB, 2)];
    const [gotUp, gotDown] = [new Bun.CryptoHasher("sha1"), new Bun.CryptoHasher("sha1")];
    const a = start("a", {
      open: (socket) => down.push(socket),
      drain: (socket) => down.push(socket),
      data: (_socket, data) => void gotUp.update(data),
    });
    lead(a.endpoint);
    const socket = await client(port, {
      drain: (socket) => up.push(socket),
      data: (_socket, data) => void gotDown.update(data),
    });
    up.push(socket);
    await settled("both ends", () => socket.data.closed && a.peers[0]?.data.closed);
    expect([a.peers[0]?.data.bytes, socket.data.bytes]).toEqual([24 * MIB, 24 * MIB]);
    expect(gotUp.digest("hex")).toBe(up.digest());
    expect(gotDown.digest("hex")).toBe(down.digest());
  });

  test("holds back a replica whose client does not read, and loses nothing when it reads again", async () => {
    const { start, lead, port } = await world();
    const SIZE = 160 * MIB;
    const down = new Stream(SIZE, 3);
    const got = new Bun.CryptoHasher("sha1");
    lead(start("a", { open: (socket) => down.push(socket), drain: (socket) => down.push(socket) }).endpoint);
    const before = process.memoryUsage.rss();
    const socket = await client(port, {
      open: (socket) => void socket.pause(),
      data: (_socket, data) => void got.update(data),
    });
    let seen = 0;
    const isHeldBack = () => {
      const isStill = down.sent > 0 && down.sent === seen;
      seen = down.sent;
      return isStill;
    };
    await waitUntil("a replica that is held back", isHeldBack, { intervalMs: 200 });
    // What the kernel's buffers of four sockets take, and one read; far from all.
    expect(down.sent).toBeLessThan(SIZE / 2);
    expect(process.memoryUsage.rss() - before).toBeLessThan(SIZE / 2);
    socket.resume();
    await settled("the end", () => socket.data.ended);
    expect(socket.data.bytes).toBe(SIZE);
    expect(got.digest("hex")).toBe(down.digest());
    socket.end();
  });

  test("keeps what a client has not read yet when both sides have said all and the replica is gone", async () => {
    const { start, lead, port, proxy } = await world();
    // More than one connection holds in its buffers and less than two: some of it waits before the entry, some in it.
    const SIZE = 6 * MIB;
    const down = new Stream(SIZE, 4);
    const a = start("a", { end: (socket) => down.push(socket), drain: (socket) => down.push(socket) });
    lead(a.endpoint);
    const socket = await client(port);
    socket.pause();
    socket.shutdown();
    await settled("the replica's end", () => down.sent === SIZE && a.peers[0]?.data.closed);
    expect(a.peers[0]?.data.code).toBeUndefined();
    expect(proxy.status()).toMatchObject([{ connections: 1 }]);
    socket.resume();
    await settled("the end", () => socket.data.closed);
    expect(socket.data).toMatchObject({ bytes: SIZE, code: undefined });
    await settled("the end of the connection", () => proxy.status()[0]?.connections === 0);
  });

  test("tells the replica the client's address with the PROXY protocol, before anything else", async () => {
    for (const [version, host] of [
      ["v1", "127.0.0.1"],
      ["v1", "::1"],
      ["v2", "127.0.0.1"],
      ["v2", "::1"],
    ] as const) {
      const { start, lead, port } = await world({ proxy_protocol: version });
      const a = start("a", { open: () => {} });
      lead(a.endpoint);
      const socket = await client(port, { host });
      socket.write("hello");
      await settled("the bytes", () => a.peers[0]?.data.text.endsWith("hello"));
      const from = socket.localPort;
      const ports = Buffer.from([from >> 8, from & 0xff, port >> 8, port & 0xff]).toString("latin1");
      const ip = host === "::1" ? `${"\0".repeat(15)}\x01` : "\x7f\0\0\x01";
      const kind = host === "::1" ? "\x21\0\x24" : "\x11\0\x0c";
      expect(a.peers[0]?.data.text).toBe(
        version === "v1"
          ? `PROXY TCP${host === "::1" ? 6 : 4} ${host} ${host} ${from} ${port}\r\nhello`
          : `\r\n\r\n\0\r\nQUIT\n\x21${kind}${ip}${ip}${ports}hello`,
      );
      socket.terminate();
    }
  });

  test("goes on while its replica is about to stop, is counted, and is reset when the directory forgets the replica", async () => {
    const { start, lead, port, proxy } = await world();
    const [a, b] = [start("a"), start("b")];
    lead(a.endpoint);
    const open = [await greeted(port), await greeted(port)];
    expect(proxy.draining()).toEqual(new Map());
    lead(unready(a.endpoint), b.endpoint);
    expect(proxy.draining()).toEqual(new Map([["a", 2]]));
    expect((await greeted(port)).name).toBe("b");
    open[0]?.socket.write("still served");
    await settled("the echo", () => open[0]?.socket.data.text === "a\nstill served");
    open[0]?.socket.end();
    await settled("one less", () => proxy.draining().get("a") === 1);
    lead(b.endpoint);
    await settled("the reset", () => open[1]?.socket.data.closed);
    expect(open[1]?.socket.data.code).toBe("ECONNRESET");
    expect(proxy.draining()).toEqual(new Map());
    expect(proxy.status()).toMatchObject([{ connections: 1 }]);
  });

  test("is reset when its replica has another address, as after a restart, and not when the address is not known", async () => {
    const { start, lead, port } = await world();
    const [before, after] = [start("before"), start("after")];
    lead(before.endpoint);
    const { socket } = await greeted(port);
    lead({ ...before.endpoint, addresses: [] });
    // It is the same on another of its networks, too, whichever is named first.
    lead({ ...before.endpoint, addresses: [...after.endpoint.addresses, ...before.endpoint.addresses] });
    socket.write("!");
    await settled("the echo", () => socket.data.text === "before\n!");
    lead({ ...before.endpoint, addresses: after.endpoint.addresses });
    await settled("the reset", () => socket.data.closed);
    expect((await greeted(port)).name).toBe("after");
  });

  test("is not led to an allocation that is excluded", async () => {
    const { start, lead, port, proxy } = await world();
    const [a, b] = [start("a"), start("b")];
    lead(a.endpoint, b.endpoint);
    proxy.exclude(["a"]);
    expect(counts(await names(port, 4))).toEqual({ b: 4 });
    proxy.exclude([]);
    expect(counts(await names(port, 4))).toEqual({ a: 2, b: 2 });
  });

  test("is one of a thousand at once", async () => {
    const { start, lead, port, proxy } = await world();
    const replicas = ["a", "b", "c", "d"].map((id) => start(id));
    lead(...replicas.map(({ endpoint }) => endpoint));
    const sockets = await Promise.all(Array.from({ length: 1_000 }, () => client(port)));
    for (const [n, socket] of sockets.entries()) socket.write(`request ${n}`);
    await settled("all answers", () => sockets.every(({ data }, n) => data.text.endsWith(`\nrequest ${n}`)));
    expect(proxy.status()).toMatchObject([{ connections: 1_000 }]);
    expect(replicas.map(({ peers }) => peers.length)).toEqual([250, 250, 250, 250]);
    for (const socket of sockets) socket.end();
    await settled("their end", () => proxy.status()[0]?.connections === 0);
  });
});

describe("ports", () => {
  test("come and go with the entries, and leave alone what is open through others", async () => {
    const { start, lead, port, proxy, web, containerPort } = await world();
    const a = start("a");
    lead(a.endpoint);
    const { socket } = await greeted(port);
    const second = await freePort();
    const both = { ...web, entries: [...web.entries, entry(second, containerPort)], endpoints: [a.endpoint] };
    proxy.update([both]);
    const through = await greeted(second);
    expect(proxy.status().map((one) => [one.port, one.listening, one.connections])).toEqual(
      [
        [port, true, 1],
        [second, true, 1],
      ].toSorted((x, y) => Number(x[0]) - Number(y[0])),
    );
    // The entry is gone; the service and its replica are not.
    proxy.update([{ ...both, entries: both.entries.slice(1) }]);
    expect(proxy.status().map((one) => one.port)).toEqual([second]);
    await expect(client(port)).rejects.toThrow("Failed to connect");
    socket.write("!");
    await settled("the echo", () => socket.data.text === "a\n!");
    // It comes back while an old connection is open.
    proxy.update([both]);
    expect((await greeted(port)).name).toBe("a");
    proxy.update([]);
    await settled("all resets", () => socket.data.closed && through.socket.data.closed);
    await expect(client(second)).rejects.toThrow("Failed to connect");
    expect(proxy.status()).toEqual([]);
  });

  test("keep listening when they change hands", async () => {
    const { start, lead, port, proxy, web } = await world();
    const [a, b] = [start("a"), start("b")];
    lead(a.endpoint);
    const old = await greeted(port);
    const others = { ...web, service_name: "other", endpoints: [b.endpoint] };
    proxy.update([{ ...web, entries: [], endpoints: [a.endpoint] }, others]);
    expect((await greeted(port)).name).toBe("b");
    old.socket.write("!");
    await settled("the echo", () => old.socket.data.text === "a\n!");
    expect(proxy.status()).toMatchObject([{ service_name: "other", listening: true, connections: 2 }]);
  });

  test("that another program has are named with what to do, never shared, and opened once they are free", async () => {
    for (const protocol of ["tcp", "udp"] as const) {
      const { start, lead, port, proxy } = await world({ protocol });
      // SO_REUSEPORT: it would share, if the entry did, too.
      const holder =
        protocol === "tcp"
          ? Bun.serve({ port, hostname: "0.0.0.0", reusePort: true, fetch: () => new Response("holder") })
          : await Bun.udpSocket({ port, hostname: "0.0.0.0" });
      lead(start("a").endpoint);
      const told = await waitUntil("a reason", () => proxy.status()[0], {
        until: (status) => status?.reason?.includes("taken") === true,
        intervalMs: 2,
      });
      expect(told).toMatchObject({ port, protocol, listening: false });
      expect(told?.reason).toBe(
        `${protocol}/${port} is taken by another program or published port on this node: stop that one, or choose another port`,
      );
      if ("stop" in holder) await holder.stop(true);
      else holder.close();
      await settled("the port", () => proxy.status()[0]?.listening);
    }
  });

  test("are never shared by two entries of one process", async () => {
    const first = await world();
    const a = first.start("a");
    first.lead(a.endpoint);
    await settled("the port", () => first.proxy.status()[0]?.listening);
    const second = await world();
    second.proxy.update([{ ...first.web, endpoints: [a.endpoint] }]);
    await settled("a refusal", () => second.proxy.status()[0]?.reason?.includes("taken"));
    second.proxy.stop();
    expect((await greeted(first.port)).name).toBe("a");
  });

  test("serve a client that asks all the time without one failure while all replicas are replaced", async () => {
    const { start, lead, port, proxy } = await world();
    const first = ["a1", "a2", "a3"].map((id) => start(id));
    let running = first;
    lead(...running.map(({ endpoint }) => endpoint));
    let over = false;
    const seen: string[] = [];
    const ask = async () => {
      while (!over) {
        const { name, socket } = await greeted(port);
        seen.push(name === "" ? `failed: ${socket.data.code}` : name);
        socket.end();
        await settled("the end of a connection", () => socket.data.closed);
      }
    };
    const asking = [ask(), ask(), ask(), ask()];
    for (const old of first) {
      const enough = seen.length + 20;
      await settled("requests before the change", () => seen.length >= enough);
      // As a drained stop does it: not ready any more, then quiet, then gone.
      const id = old.endpoint.allocation_id;
      lead(...running.map(({ endpoint }) => (endpoint === old.endpoint ? unready(endpoint) : endpoint)));
      await settled("the end of its connections", () => !proxy.draining().has(id));
      old.stop();
      running = [...running.filter((one) => one !== old), start(id.replace("a", "b"))];
      lead(...running.map(({ endpoint }) => endpoint));
    }
    const enough = seen.length + 20;
    await settled("requests after the change", () => seen.length >= enough);
    over = true;
    await Promise.all(asking);
    expect(Object.keys(counts(seen))).toEqual(["a1", "a2", "a3", "b1", "b2", "b3"]);
  });

  test("close when the entry stops, and so do connections", async () => {
    const { start, lead, port, proxy } = await world();
    lead(start("a").endpoint);
    const { socket } = await greeted(port);
    proxy.stop();
    await settled("the reset", () => socket.data.closed);
    await expect(client(port)).rejects.toThrow("Failed to connect");
    // Another one may follow at once.
    const next = await world();
    next.proxy.update([
      { ...next.web, entries: [entry(port, next.containerPort)], endpoints: [next.start("b").endpoint] },
    ]);
    expect((await greeted(port)).name).toBe("b");
  });
});

/** Bytes that can be told from others, made as the socket takes them; ends with a FIN. */
class Stream {
  readonly #size: number;
  readonly #block: Uint8Array;
  sent = 0;

  constructor(size: number, seed: number) {
    this.#size = size;
    const random = seededRandom(seed);
    this.#block = Uint8Array.from({ length: 65_537 }, () => random() * 256);
  }

  push(socket: Peer): void {
    while (this.sent < this.#size) {
      const at = this.sent % this.#block.length;
      const length = Math.min(this.#block.length - at, this.#size - this.sent);
      const written = socket.write(this.#block, at, length);
      if (written <= 0) return;
      this.sent += written;
    }
    socket.shutdown();
  }

  /** The SHA-1 of all of it. */
  digest(): string {
    const hash = new Bun.CryptoHasher("sha1");
    for (let at = 0; at < this.#size; at += this.#block.length) {
      hash.update(this.#block.subarray(0, Math.min(this.#block.length, this.#size - at)));
    }
    return hash.digest("hex");
  }
}

/** A replica whose machine hangs: its queue of new connections is full, and a further SYN gets no answer. */
async function stuckReplica(address: string, port: number): Promise<Endpoint> {
  const program = `
    Bun.listen({ hostname: "${address}", port: ${port}, socket: { data() {} } });
    process.stdout.write("ready");
    setTimeout(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0), 1);
  `;
  const child = Bun.spawn([process.execPath, "-e", program], { stdout: "pipe", env: { BUN_BE_BUN: "1" } });
  cleanups.push(() => child.kill("SIGKILL"));
  await child.stdout.getReader().read();
  await Bun.sleep(20);
  const fillers: Peer[] = [];
  cleanups.push(() => fillers.forEach((socket) => socket.terminate()));
  const fill = () =>
    client(port, { host: address }).then(
      (socket) => fillers.push(socket),
      () => {},
    );
  await waitUntil(
    "a connect without an answer",
    async () => {
      const before = fillers.length;
      await Promise.race([Promise.all(Array.from({ length: 64 }, fill)), Bun.sleep(100)]);
      return fillers.length - before < 64;
    },
    { intervalMs: 1 },
  );
  return endpoint("stuck", { address });
}
