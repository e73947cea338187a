import { afterEach, describe, expect, test } from "bun:test";
import { isIP } from "node:net";
import { type Clock, systemClock } from "../src/clock.ts";
import { nodeAddresses } from "../src/entry_proxy_addresses.ts";
import { EntryProxy, type EntryProxyOptions } from "../src/entry_proxy.ts";
import { silentLog } from "../src/log.ts";
import type { Endpoint } from "../src/model_network.ts";
import { endpoint, entry, freePort, SELF, service } from "./entry_fixture.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).toReversed()) cleanup();
});

async function world(options: Partial<EntryProxyOptions> = {}) {
  const [port, containerPort] = [await freePort(), await freePort()];
  const proxy = new EntryProxy({
    clock: systemClock,
    log: silentLog,
    random: seededRandom(1),
    selfNodeId: SELF,
    ...options,
  });
  cleanups.push(() => proxy.stop());
  let addresses = 1;
  const address = () => `127.0.3.${addresses++}`;
  return {
    proxy,
    port,
    /** A server that answers each datagram with its name and what it got. */
    async start(id: string) {
      const at = address();
      const clients = new Set<number>();
      const socket = await Bun.udpSocket({
        hostname: at,
        port: containerPort,
        socket: {
          data(socket, data, from, host) {
            clients.add(from);
            socket.send(`${id} ${data}`, from, host);
          },
        },
      });
      const stop = () => void (socket.closed || socket.close());
      cleanups.push(stop);
      return { clients, stop, endpoint: endpoint(id, { address: at }) };
    },
    dead: (id: string) => endpoint(id, { address: address() }),
    async lead(...endpoints: Endpoint[]) {
      proxy.update([service([entry(port, containerPort, { protocol: "udp" })], endpoints)]);
      await waitUntil("the port", () => proxy.status()[0]?.listening, { intervalMs: 1 });
    },
  };
}

/** A client with a socket of its own, connected: it hears only what comes from the address and port that it asked. */
async function client(port: number, host = "127.0.0.1", from = host === "::1" ? "::" : "0.0.0.0") {
  const heard: string[] = [];
  const socket = await Bun.udpSocket({
    hostname: from,
    connect: { hostname: host, port },
    socket: { data: (_socket, data) => void heard.push(data.toString()), error: () => {} },
  });
  cleanups.push(() => socket.close());
  return {
    heard,
    send: (text: string) => void socket.send(text),
    async ask(text: string): Promise<string> {
      const count = heard.length;
      socket.send(text);
      await waitUntil(`an answer to ${text}`, () => heard.length > count, { intervalMs: 1, timeoutMs: 3_000 });
      return heard.at(-1) ?? "";
    },
  };
}

const unready = (one: Endpoint): Endpoint => ({ ...one, ready: false });
const nameIn = (answer: string) => answer.split(" ")[0] ?? "";

describe("a UDP entry", () => {
  test("answers from the port that was asked, by IPv4 and IPv6, datagrams of all sizes in order", async () => {
    const { start, lead, port } = await world();
    await lead((await start("a")).endpoint);
    for (const host of ["127.0.0.1", "::1"]) {
      const asking = await client(port, host);
      expect(await asking.ask("x".repeat(8_000))).toBe(`a ${"x".repeat(8_000)}`);
      for (let n = 0; n < 10; n++) asking.send(`q${n}`);
      await waitUntil("all answers", () => asking.heard.length === 11, { intervalMs: 1 });
      expect(asking.heard.slice(1)).toEqual(Array.from({ length: 10 }, (_, n) => `a q${n}`));
    }
  });

  test("keeps a client at its replica, and clients apart", async () => {
    const { start, lead, port, proxy } = await world();
    const [a, b] = [await start("a"), await start("b")];
    await lead(a.endpoint, b.endpoint);
    const clients = await Promise.all([1, 2, 3, 4].map(() => client(port)));
    const first: string[] = [];
    for (const one of clients) first.push(nameIn(await one.ask("hello")));
    expect(first.toSorted()).toEqual(["a", "a", "b", "b"]);
    for (const [n, one] of clients.entries()) {
      for (let again = 0; again < 3; again++) expect(await one.ask(`${n}`)).toBe(`${first[n]} ${n}`);
    }
    expect([a.clients.size, b.clients.size]).toEqual([2, 2]);
    expect(proxy.status()).toMatchObject([{ protocol: "udp", connections: 4, refused: 0 }]);
  });

  test("moves a client when its replica is not ready any more, and drops datagrams when there is none", async () => {
    const { start, lead, port, proxy } = await world();
    const [a, b] = [await start("a"), await start("b")];
    await lead(a.endpoint);
    const asking = await client(port);
    expect(await asking.ask("1")).toBe("a 1");
    await lead(unready(a.endpoint), b.endpoint);
    expect(await asking.ask("2")).toBe("b 2");
    await lead(a.endpoint, unready(b.endpoint));
    expect(await asking.ask("3")).toBe("a 3");
    await lead({ ...a.endpoint, addresses: b.endpoint.addresses });
    expect(await asking.ask("3 again")).toBe("b 3 again");
    await lead();
    expect(proxy.status()).toMatchObject([{ connections: 0 }]);
    asking.send("lost");
    await waitUntil("a refusal", () => proxy.status()[0]?.refused === 1, { intervalMs: 1 });
    await lead(b.endpoint);
    expect(await asking.ask("4")).toBe("b 4");
    expect(asking.heard).toEqual(["a 1", "b 2", "a 3", "b 3 again", "b 4"]);
  });

  test("gives a datagram that one replica refuses to another, and leaves the first alone for a while", async () => {
    const { start, dead, lead, port } = await world();
    const [x, y, a] = [dead("x"), dead("y"), await start("a")];
    await lead(x, y, a.endpoint);
    for (let n = 0; n < 6; n++) {
      const asking = await client(port);
      expect(await asking.ask("hello")).toBe("a hello");
    }
    // A replica that was there and is not any more.
    const b = await start("b");
    await lead(b.endpoint);
    const asking = await client(port);
    expect(await asking.ask("1")).toBe("b 1");
    b.stop();
    await lead(b.endpoint, a.endpoint);
    expect(await asking.ask("2")).toBe("a 2");
  });

  test("has no endless round among replicas that all refuse", async () => {
    const { dead, start, lead, port, proxy } = await world();
    const [x, y] = [dead("x"), dead("y")];
    await lead(x, y);
    const asking = await client(port);
    for (let n = 0; n < 5; n++) asking.send("hello");
    await Bun.sleep(30);
    expect(proxy.status()).toMatchObject([{ listening: true }]);
    await lead(x, y, (await start("a")).endpoint);
    expect(await asking.ask("again")).toBe("a again");
  });

  test("ends sessions that were quiet for a minute and a half, and no others", async () => {
    const clock = new VirtualClock();
    const { start, lead, port, proxy } = await world({ clock });
    const a = await start("a");
    await lead(a.endpoint);
    const [quiet, busy] = [await client(port), await client(port)];
    await quiet.ask("once");
    for (let seconds = 0; seconds < 120; seconds += 20) {
      await busy.ask("again");
      expect(proxy.status()).toMatchObject([{ connections: seconds < 90 ? 2 : 1 }]);
      await clock.advance(20_000);
    }
    expect(proxy.status()).toMatchObject([{ connections: 1 }]);
    expect(a.clients.size).toBe(2);
    expect(await quiet.ask("back")).toBe("a back");
    expect(a.clients.size).toBe(3);
  });

  test("lets go of the session that was quiet for the longest time when there are too many", async () => {
    const { start, lead, port, proxy } = await world({ maxSockets: 3 });
    const a = await start("a");
    await lead(a.endpoint);
    const clients = await Promise.all([0, 1, 2, 3].map(() => client(port)));
    for (const n of [0, 1, 2, 0]) await clients[n]?.ask("hello");
    await clients[3]?.ask("hello");
    expect(proxy.status()).toMatchObject([{ connections: 3, refused: 0 }]);
    await clients[0]?.ask("still the same session");
    expect(a.clients.size).toBe(4);
    await clients[1]?.ask("a new one");
    expect(a.clients.size).toBe(5);
    expect(proxy.status()).toMatchObject([{ connections: 3 }]);
  });

  const others = nodeAddresses().filter((address) => isIP(address) === 4 && !address.startsWith("127."));
  test.skipIf(others.length === 0)(
    "answers from the address that was asked, whatever the way back prefers",
    async () => {
      const { start, lead, port } = await world();
      await lead((await start("a")).endpoint);
      // From 127.0.0.1 to an address of an interface: of itself the kernel would answer from 127.0.0.1.
      for (const host of others) expect(await (await client(port, host, "127.0.0.1")).ask("hello")).toBe("a hello");
    },
  );

  test("opens its port on addresses that come, and closes it on those that go", async () => {
    const addresses = ["127.0.0.1"];
    const { start, lead, port } = await world({ clock: fasterClock(100), nodeAddresses: () => [...addresses] });
    await lead((await start("a")).endpoint);
    const stranger = await Bun.udpSocket({ hostname: "127.0.0.3", port });
    cleanups.push(() => stranger.close());
    addresses.push("127.0.0.3", "192.0.2.99", "127.0.0.2");
    const asking = await client(port, "127.0.0.2");
    // One that the node does not have, and one that is taken, don't keep it from the others.
    await waitUntil("an answer", () => (asking.send("hello"), asking.heard.length > 0), { intervalMs: 20 });
    addresses.pop();
    await waitUntil(
      "a free address",
      async () => (await Bun.udpSocket({ hostname: "127.0.0.2", port })).close() ?? true,
    );
    expect(await (await client(port)).ask("still here")).toBe("a still here");
  });

  test("closes its port and its sessions with the entry", async () => {
    const { start, lead, port, proxy } = await world();
    await lead((await start("a")).endpoint);
    await (await client(port)).ask("hello");
    proxy.update([]);
    expect(proxy.status()).toEqual([]);
    const holder = await Bun.udpSocket({ hostname: "::", port });
    holder.close();
  });
});

/** Time that passes `factor` times as fast. */
function fasterClock(factor: number): Clock {
  const began = systemClock.now();
  return {
    now: () => began + (systemClock.now() - began) * factor,
    after: (delayMs, fn) => systemClock.after(delayMs / factor, fn),
  };
}
