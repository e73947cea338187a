import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Candidate, chooseReplica, routesOf } from "../src/entry_choice.ts";
import { proxyHeader } from "../src/entry_proxy_header.ts";
import { endpoint, entry, SELF, service } from "./entry_fixture.ts";
import { seededRandom } from "./virtual_clock.ts";

const candidates = fc.uniqueArray(
  fc.record({
    id: fc.integer({ min: 1, max: 30 }),
    local: fc.boolean(),
    failing: fc.boolean(),
    open: fc.nat(5),
    turn: fc.nat(5),
  }),
  { selector: ({ id }) => id, minLength: 1, maxLength: 12 },
);
const balance = fc.constantFrom("local_first", "least_connections");

type Fields = { id: number; local: boolean; failing: boolean; open: number; turn: number };

function candidate({ id, local, ...rest }: Fields): Candidate {
  return { replica: { allocation_id: `a${id}`, address: `10.0.0.${id}`, ready: true, local }, ...rest };
}

describe("chooseReplica()", () => {
  test("takes one of the candidates, and a failing one only when all are", () => {
    fc.assert(
      fc.property(candidates, balance, fc.integer(), (fields, balance, seed) => {
        const all = fields.map(candidate);
        const chosen = chooseReplica(all, { balance, random: seededRandom(seed) });
        expect(all).toContain(chosen as Candidate);
        expect(chosen?.failing).toBe(all.every(({ failing }) => failing));
      }),
    );
  });

  test("local_first takes a replica of this node whenever one works, and the one whose turn is the longest ago", () => {
    fc.assert(
      fc.property(candidates, fc.integer(), (fields, seed) => {
        const all = fields.map(candidate);
        const working = all.some(({ failing }) => !failing) ? all.filter(({ failing }) => !failing) : all;
        const chosen = chooseReplica(all, { balance: "local_first", random: seededRandom(seed) });
        expect(chosen?.replica.local).toBe(working.some(({ replica }) => replica.local));
        const equals = working.filter(({ replica }) => replica.local === chosen?.replica.local);
        expect(chosen?.turn).toBe(Math.min(...equals.map(({ turn }) => turn)));
      }),
    );
  });

  test("least_connections takes the one with the fewest open, wherever it runs", () => {
    fc.assert(
      fc.property(candidates, fc.integer(), (fields, seed) => {
        const working = fields.map((one) => candidate({ ...one, failing: false }));
        const chosen = chooseReplica(working, { balance: "least_connections", random: seededRandom(seed) });
        expect(chosen?.open).toBe(Math.min(...working.map(({ open }) => open)));
      }),
    );
  });

  test("gives every replica its turn: n times as many choices as replicas, n for each", () => {
    fc.assert(
      fc.property(candidates, fc.integer({ min: 1, max: 5 }), fc.integer(), (fields, rounds, seed) => {
        const all = fields.map((one) => candidate({ ...one, failing: false, local: true, turn: 0 }));
        const random = seededRandom(seed);
        const counts = new Map<Candidate, number>();
        for (let turn = 1; turn <= rounds * all.length; turn++) {
          const chosen = chooseReplica(all, { balance: "local_first", random });
          if (!chosen) throw new Error("nothing was chosen");
          chosen.turn = turn;
          counts.set(chosen, (counts.get(chosen) ?? 0) + 1);
        }
        expect([...counts.values()]).toEqual(all.map(() => rounds));
      }),
    );
  });

  test("decides between equals by chance, with an equal share for each", () => {
    const all = [1, 2, 3, 4].map((id) => candidate({ id, local: true, failing: false, open: 0, turn: 0 }));
    const random = seededRandom(7);
    const counts = new Map(all.map((one) => [one, 0]));
    for (let n = 0; n < 4_000; n++) {
      const chosen = chooseReplica(all, { balance: "least_connections", random });
      if (chosen) counts.set(chosen, (counts.get(chosen) ?? 0) + 1);
    }
    for (const count of counts.values()) expect(Math.abs(count - 1_000)).toBeLessThan(120);
  });

  test("chooses nothing from nothing", () => {
    expect(chooseReplica([], { balance: "local_first", random: Math.random })).toBeUndefined();
  });
});

describe("routesOf()", () => {
  const addressOf = ({ addresses }: { addresses: { address: string }[] }) => addresses[0]?.address;

  test("gives each port the service's replicas that have an address, and says which are of this node", () => {
    const endpoints = [
      endpoint("here", { address: "10.213.0.2" }),
      endpoint("there", { address: "10.213.1.2", node: "node-b", ready: false }),
      { ...endpoint("starting", { address: "" }), addresses: [] },
    ];
    const web = service([entry(80, 8080), entry(53, 5353, { protocol: "udp" })], endpoints);
    const { routes, conflicts } = routesOf([web, service([], endpoints, "db")], { selfNodeId: SELF, addressOf });
    const replicas = [
      { allocation_id: "here", address: "10.213.0.2", local: true, ready: true },
      { allocation_id: "there", address: "10.213.1.2", local: false, ready: false },
    ];
    const names = { job_id: "job", service_name: "web" };
    expect(routes).toEqual(
      new Map([
        ["tcp/80", { ...entry(80, 8080), ...names, replicas }],
        ["udp/53", { ...entry(53, 5353, { protocol: "udp" }), ...names, replicas }],
      ]),
    );
    expect(conflicts).toEqual([]);
  });

  test("leaves a port that two services claim to the same one on every node, whatever the order", () => {
    const claims = ["b", "a", "c"].map((name) => service([entry(80, 80)], [], name));
    for (const services of [claims, claims.toReversed()]) {
      const { routes, conflicts } = routesOf(services, { selfNodeId: SELF, addressOf });
      expect(routes.get("tcp/80")?.service_name).toBe("a");
      expect(conflicts).toEqual([
        { port: "tcp/80", holder: "job/a", refused: "job/b" },
        { port: "tcp/80", holder: "job/a", refused: "job/c" },
      ]);
    }
  });
});

describe("proxyHeader()", () => {
  const ipv4 = { source: { address: "192.168.0.1", port: 56324 }, destination: { address: "192.168.0.11", port: 443 } };
  const mapped = {
    source: { address: "::ffff:192.168.0.1", port: 56324 },
    destination: { address: "::FFFF:192.168.0.11", port: 443 },
  };
  const ipv6 = {
    source: { address: "fe80::1%eth0", port: 1 },
    destination: { address: "2001:db8::ff00:42:8329", port: 65535 },
  };
  const text = (header: Uint8Array) => new TextDecoder().decode(header);
  const hex = (header: Uint8Array) => header.toHex();
  const SIGNATURE = "0d0a0d0a000d0a515549540a";

  test("v1 is one line of text", () => {
    expect(text(proxyHeader("v1", ipv4))).toBe("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
    expect(text(proxyHeader("v1", ipv6))).toBe("PROXY TCP6 fe80::1 2001:db8::ff00:42:8329 1 65535\r\n");
  });

  test("v2 is the signature, the kind, the length and the addresses in network byte order", () => {
    expect(hex(proxyHeader("v2", ipv4))).toBe(`${SIGNATURE}2111000cc0a80001c0a8000bdc0401bb`);
    expect(hex(proxyHeader("v2", ipv6))).toBe(
      `${SIGNATURE}21210024fe800000000000000000000000000001${"20010db8000000000000ff0000428329"}0001ffff`,
    );
    const wildcards = { source: { address: "::", port: 1 }, destination: { address: "::1.2.3.4", port: 2 } };
    expect(hex(proxyHeader("v2", wildcards))).toBe(
      `${SIGNATURE}21210024${"00".repeat(16)}${"00".repeat(12)}0102030400010002`,
    );
  });

  test("a client that came by IPv4 to a socket for both is an IPv4 client", () => {
    expect(proxyHeader("v1", mapped)).toEqual(proxyHeader("v1", ipv4));
    expect(proxyHeader("v2", mapped)).toEqual(proxyHeader("v2", ipv4));
  });

  test("says that it does not know addresses of two families, or none", () => {
    for (const peers of [
      { ...ipv4, source: ipv6.source },
      { ...ipv4, source: { address: "", port: 0 } },
    ]) {
      expect(text(proxyHeader("v1", peers))).toBe("PROXY UNKNOWN\r\n");
      expect(hex(proxyHeader("v2", peers))).toBe(`${SIGNATURE}21000000`);
    }
  });
});
