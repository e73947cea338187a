/** @module At which addresses other nodes keep their containers from a node's API: none that a node only claims. */
import { describe, expect, test } from "bun:test";
import { ProvenApis } from "../src/membership_apis.ts";
import { type Hello, PROTOCOL_VERSION } from "../src/model.ts";
import { Master } from "./master_fixture.ts";

function helloOf(more: Partial<Hello> = {}): Hello {
  return {
    type: "hello",
    protocol: PROTOCOL_VERSION,
    node_id: "n2",
    instance: "i2",
    node_name: "two",
    address: "10.0.0.2:9000",
    underlay: "10.0.0.2",
    labels: [],
    engine: { state: "unready", reason: "asleep" },
    version: "0",
    ...more,
  };
}

/** A master that node n2 joins; `answers` is who answers at an address. */
async function joined(hello: Hello, answers: Record<string, string> = {}) {
  const master = await Master.start();
  const asked: string[] = [];
  const apis = new ProvenApis({
    scheduler: master.scheduler,
    clock: master.clock,
    selfId: "master",
    askPeer: async (address) => {
      asked.push(address);
      const node_id = answers[address];
      if (node_id === undefined) throw new Error("no answer");
      return { node_id };
    },
    onProven: () => {},
    writeFailed: (error) => {
      throw error;
    },
  });
  const record = {
    node_id: "n2",
    node_name: "two",
    address: hello.address,
    role: "worker" as const,
    availability: "active" as const,
    labels: [],
    set_labels: [],
    joined_at: 0,
  };
  const put = async (api_addresses: string[]) =>
    master.scheduler.change(() => [{ op: "put", kind: "node", record: { ...record, api_addresses } }]);
  await put([]);
  const known = () => master.scheduler.state.nodes.get("n2")?.api_addresses;
  /** Until the first answers are written down. */
  const check = async (...claim: Parameters<ProvenApis["check"]>) => {
    void apis.check(...claim);
    await master.clock.advance(100);
  };
  return { master, apis, asked, put, known, check };
}

describe("ProvenApis", () => {
  test("takes the address that a session comes from, and nobody else's that a node claims (point 4)", async () => {
    const hello = helloOf({ api_addresses: ["10.0.0.2", "10.0.0.50"], address: "10.0.0.50:5432" });
    const { apis, known, check } = await joined(hello);
    expect(apis.proven({ hello, remote: "10.0.0.2" }).api_addresses).toEqual(["10.0.0.2"]);
    expect(apis.proven({ hello, remote: "::ffff:10.0.0.2" }).api_addresses).toEqual(["10.0.0.2"]);
    await check("n2", { hello, remote: "10.0.0.2" });
    expect(known()).toEqual(["10.0.0.2"]);
  });

  test("asks at other addresses, and takes those at which the node itself answers", async () => {
    const claims = ["10.0.0.2", "10.1.0.2", "10.2.0.2", "fd00::2"];
    const hello = helloOf({ api_addresses: claims });
    const answers = { "10.1.0.2:9000": "n2", "10.2.0.2:9000": "n3", "[fd00::2]:9000": "n2" };
    const { asked, known, check } = await joined(hello, answers);
    await check("n2", { hello, remote: "10.0.0.2" });
    expect(asked.toSorted()).toEqual(["10.1.0.2:9000", "10.2.0.2:9000", "[fd00::2]:9000"]);
    expect(known()).toEqual(["10.0.0.2", "10.1.0.2", "fd00::2"]);
  });

  test("asks at the port that a node listens on, too, where it is advertised with another one", async () => {
    const hello = helloOf({ address: "203.0.113.2:19000", api_addresses: ["10.1.0.2"], api_port: 9000 });
    const { asked, known, check } = await joined(hello, { "10.1.0.2:9000": "n2", "203.0.113.2:19000": "n2" });
    await check("n2", { hello, remote: "10.0.0.2" });
    expect(asked).toContain("10.1.0.2:19000");
    expect(known()).toEqual(["10.0.0.2", "10.1.0.2", "203.0.113.2"]);
  });

  test("keeps what was proven while nobody answers there, and drops it when somebody else does or it is claimed no more", async () => {
    const hello = helloOf({ api_addresses: ["10.1.0.2", "10.2.0.2"] });
    const { apis, put, known, check } = await joined(hello, { "10.2.0.2:9000": "n3" });
    await put(["10.1.0.2", "10.2.0.2", "10.3.0.2"]);
    expect(apis.proven({ hello, remote: "10.0.0.2" }).api_addresses).toEqual(["10.0.0.2", "10.1.0.2", "10.2.0.2"]);
    await check("n2", { hello, remote: "10.0.0.2" });
    expect(known()).toEqual(["10.0.0.2", "10.1.0.2"]);
  });

  test("asks at a bounded number of addresses", async () => {
    const many = Array.from({ length: 60 }, (_, n) => `10.9.0.${n + 1}`);
    const hello = helloOf({ api_addresses: many });
    const { asked, check } = await joined(hello);
    await check("n2", { hello, remote: "10.0.0.2" });
    expect(asked.length).toBe(16);
  });

  test("asks again where nobody answered, until the node says something else", async () => {
    const hello = helloOf({ api_addresses: ["10.1.0.2"] });
    const answers: Record<string, string> = {};
    const { master, asked, known, check } = await joined(hello, answers);
    await check("n2", { hello, remote: "10.0.0.2" });
    expect(known()).toEqual(["10.0.0.2"]);
    answers["10.1.0.2:9000"] = "n2";
    await master.clock.advance(6_000);
    expect(known()).toEqual(["10.0.0.2", "10.1.0.2"]);
    delete answers["10.1.0.2:9000"];
    await check("n2", { hello, remote: "10.0.0.2" });
    await check("n2", { hello: helloOf(), remote: "10.0.0.2" });
    await master.clock.advance(3_600_000);
    expect(asked.length).toBe(3);
  });

  test("believes the master of itself", async () => {
    const hello = helloOf({ node_id: "master", api_addresses: ["10.0.0.1", "10.1.0.1"], address: "10.0.0.1:9000" });
    const { apis } = await joined(hello);
    const own = { ...hello, underlay: "10.0.0.1" };
    expect(apis.proven({ hello: own, remote: undefined }).api_addresses).toEqual(["10.0.0.1", "10.1.0.1"]);
    expect(apis.proven({ hello: helloOf(), remote: undefined }).api_addresses).toEqual([]);
  });
});
