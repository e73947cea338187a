/** @module New nodes: how many come in, when they get addresses, and what becomes of those that never were ready. */
import { describe, expect, test } from "bun:test";
import { FORGET_AFTER_MS } from "../src/membership_admission.ts";
import { MAX_HELLO_CHARS } from "../src/model_bounds.ts";
import type { MasterMessage } from "../src/model.ts";
import { HEARTBEAT_MS, Master, NODE_TIMEOUT_MS, Peer } from "./master_fixture.ts";
import { helloOf } from "./rogue_words.ts";

/** A connection that says what it is told to say. */
function connection({ membership, clock }: Master) {
  const heard: MasterMessage[] = [];
  const state = { isClosed: false };
  const handlers = membership.accept({
    send: (text) => heard.push(JSON.parse(text)),
    close: () => (state.isClosed = true),
  });
  const say = async (message: object | string) => {
    handlers.onMessage(typeof message === "string" ? message : JSON.stringify(message));
    await clock.advance(20);
  };
  return { heard, say, state, hangUp: () => handlers.onClose() };
}

/** Says hello as so many nodes that nobody has heard of; returns those that were taken in. */
async function invent(master: Master, count: number, prefix = "invented"): Promise<string[]> {
  const taken: string[] = [];
  for (let n = 0; n < count; n++) {
    const id = `${prefix}-${n}`;
    const { say, heard, state, hangUp } = connection(master);
    await say(helloOf(id));
    if (heard.some(({ type }) => type === "welcome")) taken.push(id);
    // Without a refusal: an older node would take that for final, and end.
    else expect([heard, state.isClosed]).toEqual([[], true]);
    hangUp();
  }
  return taken;
}

function ids({ scheduler }: Master): string[] {
  return [...scheduler.state.nodes.keys()];
}

describe("invented nodes (point 5)", () => {
  test("are a hundred at once and then some a second, get no addresses, and keep no real node out", async () => {
    const master = await Master.start();
    const honest = await Peer.join(master, 1);
    const taken = await invent(master, 300);
    // 300 hellos take 6 s.
    expect(taken.length).toBeGreaterThanOrEqual(100);
    expect(taken.length).toBeLessThanOrEqual(100 + 6 * 10 + 1);
    const { nodes } = master.scheduler.state;
    expect([...nodes.values()].flatMap(({ subnets = [] }) => subnets)).toEqual(["10.213.0.0/24"]);
    expect(honest.network?.peers).toEqual([]);
    await master.clock.advance(1_000);
    const second = await Peer.join(master, 2);
    expect(second.network?.self.subnets).toEqual(["10.213.1.0/24"]);
    // Strangers that are gone say nothing of where a master is.
    expect(second.heard.findLast(({ type }) => type === "peers" || type === "welcome")).toMatchObject({
      peers: [{ node_id: "n1" }, { node_id: "n2" }],
    });
  });

  test("are forgotten after an hour without a connection, also over a restart, and a node that was ready is not", async () => {
    const master = await Master.start();
    const [one] = [await Peer.join(master, 1)];
    await invent(master, 5);
    const stays = connection(master);
    await stays.say(helloOf("connected"));
    expect(ids(master)).toHaveLength(7);
    const hour = async () => {
      for (let passed = 0; passed < FORGET_AFTER_MS + 60_000; passed += 60_000) await master.clock.advance(60_000);
    };
    await master.clock.advance(FORGET_AFTER_MS / 2);
    expect(ids(master)).toHaveLength(7);
    await master.restart();
    await one.hangUp();
    await master.clock.advance(FORGET_AFTER_MS / 2);
    expect(ids(master)).toHaveLength(7);
    await hour();
    expect(ids(master)).toEqual(["n1"]);
    expect([...master.scheduler.state.views.keys()]).toEqual(["n1"]);
    await master.restart();
    expect(ids(master)).toEqual(["n1"]);
  });

  test("that are connected stay", async () => {
    const master = await Master.start();
    const { say, state } = connection(master);
    await say(helloOf("slow"));
    const beat = { type: "heartbeat", sequence: 1, engine: { state: "unready", reason: "no Docker" }, foreign: [] };
    for (let passed = 0; passed < FORGET_AFTER_MS * 1.1; passed += HEARTBEAT_MS) {
      await master.clock.advance(HEARTBEAT_MS - 20);
      await say(beat);
    }
    expect([ids(master), state.isClosed]).toEqual([["slow"], false]);
  });

  test("that an operator has touched stay", async () => {
    const master = await Master.start();
    await invent(master, 3);
    await master.scheduler.putNode("invented-0", { labels: [["zone", "a"]] });
    await master.scheduler.putNode("invented-1", { availability: "pause" });
    await master.clock.advance(FORGET_AFTER_MS + 2 * NODE_TIMEOUT_MS);
    expect(ids(master)).toEqual(["invented-0", "invented-1"]);
  });

  test("that come back in time are the same node, and then ready for good", async () => {
    const master = await Master.start();
    const peer = await Peer.join(master, 1, { overlay: undefined });
    expect(master.scheduler.state.nodes.get("n1")).not.toHaveProperty("never_ready");
    await invent(master, 1, "n");
    expect(master.scheduler.state.nodes.get("n-0")).toMatchObject({ never_ready: true });
    await peer.hangUp();
    await master.clock.advance(2 * FORGET_AFTER_MS);
    expect(ids(master)).toEqual(["n1"]);
  });

  test("are at most a thousand: the one that was away longest gives way", async () => {
    const master = await Master.start();
    for (let burst = 0; burst < 12; burst++) {
      await invent(master, 100, `burst${burst}`);
      await master.clock.advance(10_000);
    }
    expect(ids(master).length).toBeLessThanOrEqual(1_000);
    expect(ids(master)).toContain("burst11-99");
    expect(ids(master)).not.toContain("burst0-0");
  });

  test("count for nothing when services are placed", async () => {
    const master = await Master.start();
    const one = await Peer.join(master, 1);
    await invent(master, 20);
    await master.put("shop", {
      web: { image: "busybox", deploy: { mode: "global" } },
      gpu: { image: "busybox", ports: ["80:80"], scale: 2 },
    });
    await one.report();
    const { scheduler } = master;
    const web = scheduler.state.liveJob("shop")?.services.find(({ service_name }) => service_name === "web");
    expect(web && scheduler.state.scaleOf(web)).toBe(1);
    expect(scheduler.blockedOf("shop/gpu")).toEqual([{ slot: 2, reasons: [expect.stringMatching(/^1 node: /)] }]);
  });

  test("that fall silent together are no sign that the master is cut off", async () => {
    const master = await Master.start();
    const peers = [await Peer.join(master, 1), await Peer.join(master, 2), await Peer.join(master, 3)];
    await master.put("shop", { web: { image: "busybox", scale: 3 } });
    for (const peer of peers) await peer.report();
    await invent(master, 50);
    for (let passed = 0; passed < 2 * NODE_TIMEOUT_MS; passed += HEARTBEAT_MS) {
      await master.clock.advance(HEARTBEAT_MS);
      for (const peer of peers.slice(0, 2)) await peer.report();
    }
    expect(master.membership.hold).toBeUndefined();
    expect(master.scheduler.state.views.get("n3")?.lost).toBe(true);
  });
});

describe("a new node's block of addresses (point 5)", () => {
  test("comes when it is ready, before anything is to run there", async () => {
    const master = await Master.start();
    const peer = await Peer.join(master, 1);
    await master.put("shop", { web: { image: "busybox" } });
    const types = peer.heard.flatMap((message) => {
      if (message.type === "assignments") return message.allocations.length > 0 ? ["work"] : [];
      return message.type === "network" ? ["network"] : [];
    });
    expect(types).toEqual(["network", "work"]);
    expect(master.scheduler.state.nodes.get("n1")?.subnets).toEqual(["10.213.0.0/24"]);
  });

  test("stays its own over restarts and absences", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.restart();
    await two.dial();
    expect(two.network?.self.subnets).toEqual(["10.213.1.0/24"]);
    await one.dial();
    expect(one.network?.self.subnets).toEqual(["10.213.0.0/24"]);
  });
});

describe("a hello that is too large (point 5)", () => {
  test("is refused with the reason, and nothing is stored", async () => {
    const master = await Master.start();
    const { say, heard, state } = connection(master);
    await say(helloOf("big", { labels: [["l", "x".repeat(20 * 2 ** 20)]] }));
    expect(heard).toEqual([
      {
        type: "refused",
        code: "bad_hello",
        message: expect.stringMatching(new RegExp(`has 20\\d{6} characters, of ${MAX_HELLO_CHARS} at most`)),
        term: 1,
      },
    ]);
    expect([state.isClosed, ids(master)]).toEqual([true, []]);
  });
});
