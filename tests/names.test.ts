/** @module Names: tables of questions and answers, who sees what, and that taking services in and out leaves no trace. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { Endpoint, ServiceEntry } from "../src/model_network.ts";
import { type NameAnswer, Names } from "../src/names.ts";
import { seededRandom } from "./virtual_clock.ts";

const NODE = "10.213.0.1";
const STRANGER = "192.0.2.7";

type Replica = { slot?: number; ready?: boolean; on: Record<string, string>; id?: string };
type Given = Partial<Pick<ServiceEntry, "aliases" | "ports">> & { replicas?: Replica[] };

/** `name` is `job/service`. */
function service(name: string, { replicas = [], aliases = [], ports = [] }: Given = {}): ServiceEntry {
  const [job_id = "", service_name = ""] = name.split("/");
  const endpoints = replicas.map(({ slot, ready = true, on, id }, index): Endpoint => ({
    allocation_id: id ?? `${name}/${index}`,
    slot: slot ?? index + 1,
    node_id: "n1",
    ready,
    addresses: Object.entries(on).map(([network, address]) => ({ network, address })),
  }));
  return { job_id, service_name, aliases, ports, entries: [], endpoints };
}

function directory(entries: readonly ServiceEntry[], seed = 1): Names {
  const names = new Names({ random: seededRandom(seed), range: "10.213.0.0/16" });
  names.setLocal({
    addresses: [NODE],
    subnets: new Map([
      ["shop_default", ["10.213.0.64/26"]],
      ["blog_default", ["10.213.0.128/26"]],
      ["custom", ["192.168.50.0/24", "fd00::/64"]],
    ]),
  });
  for (const entry of entries) names.put(entry);
  return names;
}

/** An answer in short: addresses in order, SRV and PTR as text, `-` for a name without records, else the state. */
function brief(answer: NameAnswer): string {
  if (answer.state !== "found") return answer.state;
  const texts = answer.records.map((record) => {
    if (record.type === "A") return record.address;
    return record.type === "PTR" ? record.target : `${record.target}:${record.port}`;
  });
  return texts.sort().join(" ") || "-";
}

const HTTP = { container_port: 80, protocol: "tcp", name: "http" } as const;
const DNS = { container_port: 53, protocol: "udp" } as const;

const SHOP = [
  service("shop/web", {
    ports: [HTTP, { container_port: 443, protocol: "tcp" }, DNS],
    replicas: [{ on: { shop_default: "10.213.0.70" } }, { on: { shop_default: "10.213.1.71" } }],
  }),
  service("shop/db", {
    aliases: [{ network: "shop_default", names: ["postgres", "api.example.com", "db"] }],
    replicas: [{ on: { shop_default: "10.213.0.72", shared: "10.213.2.72" } }],
  }),
  service("shop/sick", { replicas: [{ on: { shop_default: "10.213.0.73" }, ready: false }] }),
  service("shop/none", { aliases: [{ network: "shop_default", names: [] }] }),
  service("shop/never"),
];
const BLOG = [
  service("blog/db", { replicas: [{ on: { blog_default: "10.213.0.130", shared: "10.213.2.130" } }] }),
  service("blog/cache", {
    aliases: [{ network: "shared", names: ["fast"] }],
    replicas: [{ on: { blog_default: "10.213.0.131", shared: "10.213.2.131" } }],
  }),
];
const WEB = "10.213.0.70";
const SHOP_DB = "10.213.0.72";
const BLOG_DB = "10.213.0.130";
/** Has just started: no endpoint yet, but an address of the network. */
const NEW_IN_SHOP = "10.213.0.99";
const IN_RANGE = "10.213.77.7";

describe("lookup()", () => {
  const names = directory([...SHOP, ...BLOG]);
  const both = "10.213.0.70 10.213.1.71";

  test.each([
    // The three forms, in any case, with and without the last dot.
    ["web", both],
    ["WEB", both],
    ["web.", both],
    ["web.shop", both],
    ["wEb.ShOp.CACOphony.", both],
    ["web.shop.cacophony", both],
    // Aliases have the same forms, also when they look like somebody else's.
    ["postgres", SHOP_DB],
    ["postgres.shop", SHOP_DB],
    ["postgres.shop.cacophony", SHOP_DB],
    ["api.example.com", SHOP_DB],
    ["api-example-com", SHOP_DB],
    ["api.example.com.shop.cacophony", SHOP_DB],
    // One that repeats the service's own name changes nothing.
    ["db", SHOP_DB],
    // Slots.
    ["1.web.shop", "10.213.0.70"],
    ["2.web.shop.cacophony", "10.213.1.71"],
    ["1.postgres.shop", SHOP_DB],
    ["3.web.shop", "no_such_name"],
    ["01.web.shop", "not_ours"],
    ["0.web.shop", "not_ours"],
    ["0.web.shop.cacophony", "no_such_name"],
    ["1.web", "not_ours"],
    // Nobody is ready: the name is there all the same.
    ["sick", "-"],
    ["1.sick.shop", "-"],
    ["none", "-"],
    ["none.shop.cacophony", "-"],
    ["never", "-"],
    // Below the cluster's domain nothing is anybody else's.
    ["cacophony", "-"],
    ["shop.cacophony", "-"],
    ["web.cacophony", "no_such_name"],
    ["blog.cacophony", "no_such_name"],
    ["web.nope.cacophony", "no_such_name"],
    ["nope.shop.cacophony", "no_such_name"],
    ["a.b.c.d.cacophony", "no_such_name"],
    [".cacophony", "no_such_name"],
    ["web.shop.cacophony.cacophony", "no_such_name"],
    // Of other jobs there is nothing to see.
    ["cache", "not_ours"],
    ["cache.blog", "not_ours"],
    ["db.blog", "not_ours"],
    ["db.blog.cacophony", "no_such_name"],
    ["1.db.blog", "not_ours"],
    ["fast", "not_ours"],
    // The rest.
    ["nope", "not_ours"],
    ["example.com", "not_ours"],
    ["www.api.example.com", "not_ours"],
    ["xcacophony", "not_ours"],
    ["", "not_ours"],
    [".", "not_ours"],
    ["..", "not_ours"],
    ["__proto__", "not_ours"],
    ["constructor.shop", "not_ours"],
  ])("answers a replica of shop that asks for %p with %s", (name, expected) => {
    expect(brief(names.lookup({ name, type: "A" }, WEB))).toBe(expected);
  });

  test.each([
    ["web.shop", "AAAA", "-"],
    ["web", "AAAA", "-"],
    ["web", "MX", "-"],
    ["web", "UNKNOWN_65", "-"],
    ["web", "SRV", "-"],
    ["web", "ANY", "10.213.0.70 10.213.1.71"],
    ["nope.shop.cacophony", "AAAA", "no_such_name"],
    ["example.com", "AAAA", "not_ours"],
    ["2.web.shop", "TXT", "-"],
    ["cacophony", "SOA", "-"],
  ])("answers a question for %s %s with %s", (name, type, expected) => {
    expect(brief(names.lookup({ name, type }, WEB))).toBe(expected);
  });

  const web = (port: number): string => `1.web.shop.cacophony:${port} 2.web.shop.cacophony:${port}`;
  test.each([
    ["_http._tcp.web", web(80)],
    ["_HTTP._TCP.Web.Shop", web(80)],
    ["_80._tcp.web.shop.cacophony", web(80)],
    ["_443._tcp.web", web(443)],
    ["_53._udp.web", web(53)],
    ["_80._tcp.2.web.shop.cacophony", "no_such_name"],
    ["_80._udp.web", "no_such_name"],
    ["_81._tcp.web", "no_such_name"],
    ["_https._tcp.web.shop.cacophony", "no_such_name"],
    ["_80._sctp.web", "no_such_name"],
    ["_tcp.web", "-"],
    ["_sctp.web", "no_such_name"],
    ["_80._tcp.db", "no_such_name"],
    ["_80._tcp.db.blog", "not_ours"],
    ["_http._tcp.example.com", "not_ours"],
    ["_80._tcp.cacophony", "no_such_name"],
    ["_http.web", "not_ours"],
  ])("answers a question for SRV of %s with %s", (name, expected) => {
    expect(brief(names.lookup({ name, type: "SRV" }, WEB))).toBe(expected);
  });

  test("gives addresses with SRV records, each replica's once", () => {
    const answer = names.lookup({ name: "_http._tcp.web", type: "SRV" }, WEB);
    if (answer.state !== "found") throw new Error(`state ${answer.state}`);
    expect(answer.additional.toSorted((a, b) => JSON.stringify(a).localeCompare(JSON.stringify(b)))).toEqual([
      { type: "A", name: "1.web.shop.cacophony", address: "10.213.0.70" },
      { type: "A", name: "2.web.shop.cacophony", address: "10.213.1.71" },
    ]);
  });

  test("has a name for a port, but nothing but SRV there", () => {
    expect(brief(names.lookup({ name: "_http._tcp.web", type: "A" }, WEB))).toBe("-");
  });

  test.each([
    ["70.0.213.10.in-addr.arpa", "1.web.shop.cacophony"],
    ["70.0.213.10.IN-ADDR.ARPA.", "1.web.shop.cacophony"],
    ["73.0.213.10.in-addr.arpa", "1.sick.shop.cacophony"],
    ["72.2.213.10.in-addr.arpa", "no_such_name"],
    ["130.0.213.10.in-addr.arpa", "no_such_name"],
    ["9.9.213.10.in-addr.arpa", "no_such_name"],
    ["1.0.213.10.in-addr.arpa", "no_such_name"],
    ["213.10.in-addr.arpa", "-"],
    ["0.213.10.in-addr.arpa", "-"],
    ["10.in-addr.arpa", "not_ours"],
    ["1.0.214.10.in-addr.arpa", "not_ours"],
    ["8.8.8.8.in-addr.arpa", "not_ours"],
    ["1.70.0.213.10.in-addr.arpa", "no_such_name"],
    ["lb._dns-sd._udp.0.213.10.in-addr.arpa", "no_such_name"],
    ["lb._dns-sd._udp.0.0.10.in-addr.arpa", "not_ours"],
    ["070.0.213.10.in-addr.arpa", "no_such_name"],
    ["256.0.213.10.in-addr.arpa", "no_such_name"],
    ["in-addr.arpa", "not_ours"],
    [".in-addr.arpa", "not_ours"],
    ["7.0.0.0.ip6.arpa", "not_ours"],
  ])("answers a question for PTR of %s with %s", (name, expected) => {
    expect(brief(names.lookup({ name, type: "PTR" }, WEB))).toBe(expected);
  });

  test("has names for addresses on all networks of the asker", () => {
    const ask = (name: string): string => brief(names.lookup({ name, type: "PTR" }, SHOP_DB));
    expect(ask("72.2.213.10.in-addr.arpa")).toBe("1.db.shop.cacophony");
    expect(ask("130.2.213.10.in-addr.arpa")).toBe("1.db.blog.cacophony");
    expect(ask("130.0.213.10.in-addr.arpa")).toBe("no_such_name");
  });

  test("has nothing but PTR for an address", () => {
    expect(brief(names.lookup({ name: "70.0.213.10.in-addr.arpa", type: "A" }, WEB))).toBe("-");
  });

  test.each<[why: string, asker: string, name: string, expected: string]>([
    ["its own job's service before that of a shared network", SHOP_DB, "db", "10.213.0.72"],
    ["its own job's service, the other way round", BLOG_DB, "db", "10.213.0.130"],
    ["another job's service with the job in the name", SHOP_DB, "db.blog", "10.213.2.130"],
    ["another job's service, on the shared network only", SHOP_DB, "cache", "10.213.2.131"],
    ["another job's alias on the shared network", SHOP_DB, "fast", "10.213.2.131"],
    ["an alias only on its network", BLOG_DB, "postgres", "not_ours"],
    ["an alias only on its network, with the job", BLOG_DB, "postgres.shop", "not_ours"],
    ["nothing by networks that it lacks", BLOG_DB, "web.shop", "not_ours"],
    ["its network when it has just started", NEW_IN_SHOP, "web", both],
    ["its network when it has just started, with the job", NEW_IN_SHOP, "db.shop", "10.213.0.72"],
    ["no other network when it has just started", NEW_IN_SHOP, "cache", "not_ours"],
    ["nothing from an address of the cluster that nobody has", IN_RANGE, "web.shop.cacophony", "no_such_name"],
    ["what is not the cluster's from such an address", IN_RANGE, "example.com", "not_ours"],
    ["nothing as a stranger", STRANGER, "web", "refused"],
    ["nothing as a stranger, whatever the name", STRANGER, "example.com", "refused"],
    ["nothing from what is no IPv4 address", "fe80::1", "example.com", "refused"],
    ["everything as the node", NODE, "web", both],
    ["everything as the node over loopback", "127.0.0.1", "cache.blog", "10.213.0.131"],
    ["all services of a name as the node", NODE, "db", "10.213.0.130 10.213.0.72"],
    ["aliases of all networks as the node", NODE, "fast", "10.213.2.131"],
    ["jobs as the node", NODE, "blog.cacophony", "-"],
    ["somebody else's names as the node", NODE, "example.com", "not_ours"],
  ])("shows %s", (_, asker, name, expected) => {
    expect(brief(names.lookup({ name, type: "A" }, asker))).toBe(expected);
  });
});

describe("names that DNS has trouble with", () => {
  const on = (address: string): Given => ({ replicas: [{ on: { n: address } }] });
  const long = "x".repeat(70);
  const names = directory([
    service("Shop.eu/my.db_1", on("10.213.3.1")),
    service("Shop.eu/my-db-1", on("10.213.3.2")),
    service("Shop.eu/a.b", on("10.213.3.3")),
    service("Shop.eu/A.B", on("10.213.3.4")),
    service("Shop.eu/-odd_", on("10.213.3.5")),
    service("Shop.eu/...", on("10.213.3.6")),
    service(`Shop.eu/${long}`, on("10.213.3.7")),
    service("Shop.eu/me", { ...on("10.213.3.9"), ports: [{ ...HTTP, name: "Web_UI" }] }),
    service("com/github", on("10.213.3.8")),
  ]);
  const ask = (name: string, type = "A"): string => brief(names.lookup({ name, type }, "10.213.3.9"));

  test.each([
    ["my.db_1", "10.213.3.1"],
    ["my.db_1.shop.eu", "10.213.3.1"],
    ["my.db_1.shop-eu", "10.213.3.1"],
    ["my.db_1.shop.eu.cacophony", "10.213.3.1"],
    // What is written so comes before what only reads so.
    ["my-db-1", "10.213.3.2"],
    ["my-db-1.shop-eu.cacophony", "10.213.3.1 10.213.3.2"],
    ["my-db-1.shop.eu.cacophony", "10.213.3.2"],
    // Two that are the same in DNS share the name.
    ["a.b", "10.213.3.3 10.213.3.4"],
    ["a-b", "10.213.3.3 10.213.3.4"],
    ["odd", "10.213.3.5"],
    ["-odd_", "10.213.3.5"],
    [`${"x".repeat(54)}-c71bd109`, "10.213.3.7"],
    ["shop-eu.cacophony", "-"],
    ["shop.eu.cacophony", "-"],
    // The asker shares a network with job com, so its service is this name.
    ["github.com", "10.213.3.8"],
    ["1.github.com", "10.213.3.8"],
    ["www.github.com", "not_ours"],
  ])("answers %s with %s", (name, expected) => {
    expect(ask(name)).toBe(expected);
  });

  test("has the second form for a port's name, too", () => {
    expect(ask("_web-ui._tcp.me", "SRV")).toBe("1.me.shop-eu.cacophony:80");
    expect(ask("_web_ui._tcp.me", "SRV")).toBe("1.me.shop-eu.cacophony:80");
  });

  test.each([
    ["10.213.3.1", "1.my-db-1.shop-eu.cacophony"],
    ["10.213.3.6", "1.ab5df625.shop-eu.cacophony"],
    ["10.213.3.7", `1.${"x".repeat(54)}-c71bd109.shop-eu.cacophony`],
    ["10.213.3.8", "1.github.com.cacophony"],
  ])("calls %s by a name that leads back there", (address, expected) => {
    const reverse = `${address.split(".").reverse().join(".")}.in-addr.arpa`;
    expect(ask(reverse, "PTR")).toBe(expected);
    expect(ask(expected).split(" ")).toContain(address);
  });

  test("gives every service a name that DNS can carry", () => {
    const text = fc.stringMatching(/^[a-zA-Z0-9._-]{1,300}$/);
    fc.assert(
      fc.property(text, fc.stringMatching(/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$/), (name, job) => {
        const own = directory([
          service(`${job}/${name}`, { replicas: [{ slot: 1_000_000, on: { n: "10.213.3.1" } }] }),
        ]);
        const domain = brief(own.lookup({ name: "1.3.213.10.in-addr.arpa", type: "PTR" }, NODE));
        expect(domain.length).toBeLessThanOrEqual(253);
        for (const label of domain.split(".")) expect(label).toMatch(/^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/);
        expect(brief(own.lookup({ name: domain, type: "A" }, NODE))).toBe("10.213.3.1");
      }),
    );
  });
});

describe("the directory", () => {
  test("shows a service as it was last put", () => {
    const names = directory(SHOP);
    names.put(service("shop/web", { replicas: [{ on: { shop_default: "10.213.0.90" } }] }));
    expect(brief(names.lookup({ name: "web", type: "A" }, NEW_IN_SHOP))).toBe("10.213.0.90");
    expect(brief(names.lookup({ name: "70.0.213.10.in-addr.arpa", type: "PTR" }, NODE))).toBe("no_such_name");
  });

  test("forgets a service and nothing else", () => {
    const names = directory([...SHOP, ...BLOG]);
    names.remove({ job_id: "shop", service_name: "db" });
    names.remove({ job_id: "shop", service_name: "db" });
    expect(brief(names.lookup({ name: "db", type: "A" }, NODE))).toBe("10.213.0.130");
    expect(brief(names.lookup({ name: "postgres", type: "A" }, NODE))).toBe("not_ours");
    expect(brief(names.lookup({ name: "web.shop", type: "A" }, NODE))).toBe("10.213.0.70 10.213.1.71");
  });

  test("leaves out allocations that are excluded, at once, until they are not", () => {
    const names = directory(SHOP);
    const ask = (): string => brief(names.lookup({ name: "web", type: "A" }, NEW_IN_SHOP));
    names.exclude(["shop/web/0", "unknown"]);
    expect(ask()).toBe("10.213.1.71");
    expect(brief(names.lookup({ name: "1.web.shop", type: "A" }, NEW_IN_SHOP))).toBe("-");
    expect(brief(names.lookup({ name: "_80._tcp.web", type: "SRV" }, NEW_IN_SHOP))).toBe("2.web.shop.cacophony:80");
    expect(brief(names.lookup({ name: "70.0.213.10.in-addr.arpa", type: "PTR" }, NODE))).toBe("no_such_name");
    names.exclude(["shop/web/0", "shop/web/1"]);
    expect(ask()).toBe("-");
    names.exclude([]);
    expect(ask()).toBe("10.213.0.70 10.213.1.71");
  });

  test("gives a new container at a dead one's address only its own network", () => {
    const names = directory([...SHOP, ...BLOG]);
    expect(brief(names.lookup({ name: "cache", type: "A" }, SHOP_DB))).toBe("10.213.2.131");
    names.exclude(["shop/db/0"]);
    expect(brief(names.lookup({ name: "cache", type: "A" }, SHOP_DB))).toBe("not_ours");
    expect(brief(names.lookup({ name: "web", type: "A" }, SHOP_DB))).toBe("10.213.0.70 10.213.1.71");
  });

  test("knows a replica that is not healthy yet, so that it finds names of all its networks", () => {
    const names = directory([...SHOP, ...BLOG]);
    names.exclude(["shop/db/0"], { gone: [] });
    expect(brief(names.lookup({ name: "cache", type: "A" }, SHOP_DB))).toBe("10.213.2.131");
  });

  test("takes the network of its own subnet where another node has the same private addresses", () => {
    const names = directory([
      service("a/web", { replicas: [{ on: { custom: "192.168.50.5" } }] }),
      service("b/web", { replicas: [{ on: { b_default: "192.168.50.5" } }] }),
    ]);
    expect(brief(names.lookup({ name: "web.a", type: "A" }, "192.168.50.5"))).toBe("192.168.50.5");
    expect(brief(names.lookup({ name: "web.b", type: "A" }, "192.168.50.5"))).toBe("not_ours");
  });

  test("knows an address outside of the cluster's range by its endpoint alone", () => {
    const names = directory([service("a/web", { replicas: [{ on: { far: "172.31.0.5" } }] })]);
    expect(brief(names.lookup({ name: "web", type: "A" }, "172.31.0.5"))).toBe("172.31.0.5");
    expect(brief(names.lookup({ name: "web", type: "A" }, "172.31.0.6"))).toBe("refused");
    expect(brief(names.lookup({ name: "5.0.31.172.in-addr.arpa", type: "PTR" }, "172.31.0.5"))).toBe(
      "1.web.a.cacophony",
    );
  });

  test("follows the node's own addresses and networks", () => {
    const names = directory(SHOP);
    names.setLocal({ addresses: ["10.213.9.1"], subnets: new Map([["shop_default", ["10.213.9.0/26"]]]) });
    expect(brief(names.lookup({ name: "web", type: "A" }, NODE))).toBe("not_ours");
    expect(brief(names.lookup({ name: "web", type: "A" }, "10.213.9.1"))).toBe("10.213.0.70 10.213.1.71");
    expect(brief(names.lookup({ name: "web", type: "A" }, "10.213.9.40"))).toBe("10.213.0.70 10.213.1.71");
  });

  test("counts a service without endpoints as on its job's default network, unless its aliases say where it is", () => {
    const names = directory([service("shop/a"), service("shop/b", { aliases: [{ network: "custom", names: [] }] })]);
    expect(brief(names.lookup({ name: "a", type: "A" }, NEW_IN_SHOP))).toBe("-");
    expect(brief(names.lookup({ name: "a", type: "A" }, "192.168.50.9"))).toBe("not_ours");
    expect(brief(names.lookup({ name: "b", type: "A" }, NEW_IN_SHOP))).toBe("not_ours");
    expect(brief(names.lookup({ name: "b", type: "A" }, "192.168.50.9"))).toBe("-");
  });

  test("lets both replicas of a slot have its name while one takes over from the other", () => {
    const on = (address: string): Replica => ({ slot: 1, on: { shop_default: address } });
    const names = directory([service("shop/web", { replicas: [on("10.213.0.70"), on("10.213.0.71")] })]);
    expect(brief(names.lookup({ name: "1.web.shop", type: "A" }, NODE))).toBe("10.213.0.70 10.213.0.71");
  });

  test("gives a replica once though it shares two networks with the asker", () => {
    const on = (a: string, b: string): Replica => ({ on: { n: a, m: b } });
    const names = directory([
      service("shop/web", { replicas: [on("10.213.3.1", "10.213.4.1"), on("10.213.3.2", "10.213.4.2")] }),
    ]);
    expect(brief(names.lookup({ name: "web", type: "A" }, "10.213.3.1"))).toBe("10.213.3.1 10.213.3.2");
  });

  test("shuffles: every replica comes first about as often", () => {
    const replicas = [1, 2, 3, 4].map((n) => ({ on: { n: `10.213.3.${n}` } }));
    const names = directory([service("shop/web", { replicas })], 7);
    const first = new Map<string, number>();
    for (let time = 0; time < 4_000; time++) {
      const answer = names.lookup({ name: "web", type: "A" }, "10.213.3.1");
      const record = answer.state === "found" ? answer.records[0] : undefined;
      if (record?.type !== "A") throw new Error("no address");
      first.set(record.address, (first.get(record.address) ?? 0) + 1);
    }
    expect(first.size).toBe(4);
    for (const count of first.values()) expect(Math.abs(count - 1_000)).toBeLessThan(150);
  });

  test("answers the same after any row of changes as when it is made anew", () => {
    const job = fc.constantFrom("a", "b", "a.b");
    const name = fc.constantFrom("web", "b", "a.b", "x_y", "x-y");
    const replica = fc.record({
      slot: fc.integer({ min: 1, max: 2 }),
      ready: fc.boolean(),
      on: fc.dictionary(fc.constantFrom("n", "m"), fc.constantFrom("10.213.3.1", "10.213.3.2", "10.213.3.3")),
    });
    const change = fc.record({
      id: fc.tuple(job, name),
      replicas: fc.option(fc.array(replica, { maxLength: 3 })),
      alias: fc.constantFrom("web", "al", "b.a"),
    });
    const questions = [
      "web",
      "b",
      "a.b",
      "web.a",
      "web.a.b",
      "x-y",
      "x_y.b.cacophony",
      "al.a",
      "b.a",
      "1.web.a",
      "a.cacophony",
    ];
    fc.assert(
      fc.property(fc.array(change, { maxLength: 12 }), (changes) => {
        const grown = directory([]);
        const now = new Map<string, ServiceEntry>();
        for (const { id, replicas, alias } of changes) {
          const entry = service(id.join("/"), {
            replicas: replicas ?? [],
            aliases: [{ network: "n", names: [alias] }],
          });
          if (replicas) grown.put(entry);
          else grown.remove(entry);
          now.delete(id.join("/"));
          if (replicas) now.set(id.join("/"), entry);
        }
        const fresh = directory([...now.values()]);
        for (const asker of [NODE, "10.213.3.1", "10.213.3.2"]) {
          for (const question of questions) {
            for (const type of ["A", "PTR"]) {
              const name = type === "A" ? question : "1.3.213.10.in-addr.arpa";
              expect(brief(grown.lookup({ name, type }, asker))).toBe(brief(fresh.lookup({ name, type }, asker)));
            }
          }
        }
        for (const entry of now.values()) grown.remove(entry);
        expect(brief(grown.lookup({ name: "web.a", type: "A" }, NODE))).toBe("not_ours");
      }),
    );
  });

  test("refuses a range that is no CIDR", () => {
    for (const range of ["", "10.213.0.0", "10.213.0.0/33", "10.213.0/16", "999.1.1.1/8", "fd00::/8"]) {
      expect(() => new Names({ random: () => 0, range })).toThrow(TypeError);
    }
  });
});
