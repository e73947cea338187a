/** @module Where a node listens, as its identity and its peers have it; and a listener on several addresses (point 10). */
import { networkInterfaces } from "node:os";
import { afterAll, describe, expect, test } from "bun:test";
import { type Identity, newIdentity, type Settings } from "../src/data_dir.ts";
import { StartError } from "../src/model.ts";
import { advertisedAddress, bindAddress, listenAddresses } from "../src/node_listen.ts";
import { listen } from "../src/transport.ts";

/** A peer that answers on loopback, and an address at which nobody does. */
const peer = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
const PEER = `127.0.0.1:${peer.port}`;
const NOBODY = "127.0.0.1:1";
afterAll(() => peer.stop(true));

function identity(more: Partial<Identity> = {}, settings: Settings = {}): Identity {
  return { ...newIdentity({ role: "worker", node_id: "n" }), settings, ...more };
}

async function places(of: Identity): Promise<{ listens: string[]; advertises: string }> {
  const bind = await bindAddress(of);
  const listens = listenAddresses(bind, of).map(({ host, port }) => `${host}:${port}`);
  return { listens, advertises: await advertisedAddress(bind, of) };
}

describe("a node", () => {
  const LOOPBACK = "127.0.0.1:9000";
  const cases: [string, Identity, { listens: string[]; advertises: string }][] = [
    [
      "whose peer is on loopback listens there once",
      identity({ join_address: PEER }),
      { listens: [LOOPBACK], advertises: LOOPBACK },
    ],
    [
      "goes by its master before the address that it joined at",
      identity({ master: { node_id: "m", address: PEER }, join_address: NOBODY }),
      { listens: [LOOPBACK], advertises: LOOPBACK },
    ],
    [
      "that knows nothing waits on loopback",
      identity({ join_address: NOBODY }),
      { listens: [LOOPBACK], advertises: "" },
    ],
    [
      "does not end because of a peer's address that is none",
      identity({ master: { node_id: "m", address: "no address:x" } }),
      { listens: [LOOPBACK], advertises: "" },
    ],
    [
      "takes its last address while it reaches nobody",
      identity({ join_address: NOBODY, last_bind_addr: "127.0.0.1:9005" }),
      { listens: ["127.0.0.1:9005"], advertises: "127.0.0.1:9005" },
    ],
    [
      "does not take a last address that the machine has no more",
      identity({ join_address: NOBODY, last_bind_addr: "192.0.2.7:9000" }),
      { listens: [LOOPBACK], advertises: "" },
    ],
    [
      "that was told where to listen does so",
      identity({ join_address: PEER }, { bind_addr: "127.0.0.2:9001" }),
      { listens: ["127.0.0.2:9001"], advertises: "127.0.0.2:9001" },
    ],
    [
      "that was told to listen everywhere is reached where its peer reaches it",
      identity({ join_address: PEER }, { bind_addr: "0.0.0.0:9001" }),
      { listens: ["0.0.0.0:9001"], advertises: "127.0.0.1:9001" },
    ],
    [
      "is reached where it was told to be",
      identity({ join_address: PEER }, { advertise_addr: "worker.example:9100" }),
      { listens: [LOOPBACK], advertises: "worker.example:9100" },
    ],
    ["that is the master is on loopback", identity({ role: "master" }), { listens: [LOOPBACK], advertises: LOOPBACK }],
  ];
  test.each(cases)("%s", async (_, of, expected) => {
    expect(await places(of)).toEqual(expected);
  });

  test("that is reached from elsewhere listens on loopback, too", () => {
    const bind = { host: "10.0.0.2", port: 9000 };
    expect(listenAddresses(bind, identity())).toEqual([bind, { host: "127.0.0.1", port: 9000 }]);
    expect(listenAddresses(bind, identity({}, { bind_addr: "10.0.0.2:9000" }))).toEqual([bind]);
  });
});

describe("listen()", () => {
  const handlers = {
    fetch: (_: Request, { remote }: { remote?: string }) => new Response(remote ?? ""),
    session: () => undefined,
  };
  /** A port that is free on all of loopback. */
  function freePort(): number {
    const probe = Bun.serve({ hostname: "0.0.0.0", port: 0, fetch: () => new Response() });
    const port = Number(probe.port);
    void probe.stop(true);
    return port;
  }
  const ask = async (host: string, port: number) =>
    (await fetch(`http://${host}:${port}/`, { keepalive: false })).text();

  test("serves several addresses alike, and one that is added", async () => {
    const port = freePort();
    const on = (host: string) => ({ host, port });
    const listener = await listen([on("127.0.0.1"), on("127.0.0.2")], handlers);
    try {
      expect([await ask("127.0.0.1", port), await ask("127.0.0.2", port)]).toEqual(["127.0.0.1", "127.0.0.1"]);
      await expect(ask("127.0.0.3", port)).rejects.toThrow();
      listener.add(on("127.0.0.3"));
      expect(await ask("127.0.0.3", port)).toBe("127.0.0.1");
      expect(() => listener.add(on("127.0.0.3"))).toThrow(StartError);
    } finally {
      await listener.stop();
    }
    await expect(ask("127.0.0.1", port)).rejects.toThrow();
  });

  test("listens nowhere when one address is taken", async () => {
    const holder = Bun.serve({ hostname: "127.0.0.2", port: 0, fetch: () => new Response() });
    const port = Number(holder.port);
    const on = (host: string) => ({ host, port });
    await expect(listen([on("127.0.0.1"), on("127.0.0.2")], handlers)).rejects.toThrow(/127\.0\.0\.2:\d+ is taken/);
    await listen([on("127.0.0.1")], handlers).then((listener) => listener.stop());
    await holder.stop(true);
  });
});

test("a master that listens everywhere now is not advertised at the loopback address that it had before", async () => {
  const before = identity({ role: "master", master: { node_id: "n", address: PEER } }, { bind_addr: "0.0.0.0:9000" });
  const own = Object.values(networkInterfaces())
    .flat()
    .find((one) => one && !one.internal && one.family === "IPv4");
  expect((await places(before)).advertises).toBe(`${own?.address ?? "127.0.0.1"}:9000`);
});
