/** @module A cluster whose range of addresses is used up (point 9): who works without a block, what is placed where, what it costs. */
import { describe, expect, spyOn, test } from "bun:test";
import type { NodeNetwork } from "../src/model_network.ts";
import { Master, Peer } from "./master_fixture.ts";

const WEB = { image: "busybox" };
/** Two blocks. */
const RANGE = "10.213.0.0/23";
const WITHOUT: NodeNetwork = { mode: "none", reason: "no block", networks: [], blocks: 0, full: false };
const FULL: NodeNetwork = { mode: "vxlan", networks: [], blocks: 1, full: true, free: 0 };

/** A cluster whose third node has no block. */
async function cluster() {
  const master = await Master.start(RANGE);
  const one = await Peer.join(master, 1);
  const two = await Peer.join(master, 2);
  const three = await Peer.join(master, 3, { overlay: undefined });
  three.overlay = WITHOUT;
  await three.report();
  return { master, one, two, three };
}

function view({ scheduler }: Master, nodeId: string) {
  const { state, reason } = scheduler.state.views.get(nodeId) ?? {};
  return [state, reason];
}

describe("a node that the range has no block for (point 9)", () => {
  test("is ready, hears why it is left out, and gets what needs no network between nodes", async () => {
    const { master, three } = await cluster();
    expect(view(master, "n3")).toEqual(["ready", ""]);
    expect(three.network).toMatchObject({
      mode: "none",
      reason: "the cluster's range 10.213.0.0/23 has no block left for it",
      self: { subnets: [] },
    });
    const where = { deploy: { placement: { constraints: ["node.hostname == n3"] } } };
    await master.put("host", {
      web: { ...WEB, ...where, network_mode: "host" },
      none: { ...WEB, ...where, network_mode: "none" },
    });
    await master.put("shop", { web: { ...WEB, ...where } });
    expect(three.assigned.map(({ job_id, service_name }) => `${job_id}/${service_name}`).toSorted()).toEqual([
      "host/none",
      "host/web",
    ]);
    expect(master.scheduler.blockedOf("shop/web")[0]?.reasons).toContain(
      "1 node: no addresses for network shop_default: all blocks of the cluster's range 10.213.0.0/23 are taken; " +
        "have fewer networks, or nodes, or begin a cluster with a larger --network-cidr",
    );
  });

  test("gets one in the same session when another node leaves, and stays ready; what was blocked is placed", async () => {
    const { master, two, three } = await cluster();
    const where = { deploy: { placement: { constraints: ["node.hostname == n3"] } } };
    await master.put("shop", { web: { ...WEB, ...where } });
    expect(three.assigned).toEqual([]);
    await two.report();
    await master.scheduler.removeNode("n2", {});
    await two.obey();
    expect(master.scheduler.state.nodes.has("n2")).toBe(false);
    await three.beat();
    expect(view(master, "n3")).toEqual(["ready", ""]);
    expect(three.network).toMatchObject({ mode: "vxlan", self: { subnets: ["10.213.1.0/24"] } });
    await master.clock.advance(5_000);
    await three.report();
    expect(three.assigned.map(({ job_id }) => job_id)).toEqual(["shop"]);
  });

  test("keeps what it runs on networks that it has", async () => {
    const { master, three } = await cluster();
    three.networks = ["shop_default"];
    await three.beat();
    await master.put("shop", { web: { ...WEB, deploy: { placement: { constraints: ["node.hostname == n3"] } } } });
    expect(three.assigned.map(({ job_id }) => job_id)).toEqual(["shop"]);
  });
});

describe("a node whose blocks are full (point 9)", () => {
  test("costs no change of state and no turn of the writer with each heartbeat when the range is used up", async () => {
    const { master, one, two } = await cluster();
    const change = spyOn(master.scheduler, "change");
    one.overlay = two.overlay = FULL;
    for (let n = 0; n < 10; n++) for (const peer of [one, two]) await peer.beat();
    expect(change).not.toHaveBeenCalled();
    change.mockRestore();
  });

  test("gets what another one leaves, once", async () => {
    const { master, one, two, three } = await cluster();
    await three.hangUp();
    await master.scheduler.removeNode("n3", {});
    one.overlay = FULL;
    await one.beat();
    expect(one.network?.self.subnets).toEqual(["10.213.0.0/24"]);
    await two.report();
    await master.scheduler.removeNode("n2", {});
    await two.obey();
    for (let n = 0; n < 5; n++) await one.beat();
    expect(one.network?.self.subnets).toEqual(["10.213.0.0/24", "10.213.1.0/24"]);
  });

  test("takes no further job, and its own as before", async () => {
    const { master, one, two } = await cluster();
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of [one, two]) {
      peer.networks = ["shop_default"];
      peer.overlay = FULL;
      await peer.report();
    }
    await master.put("more", { web: WEB });
    await master.put("shop", { web: { ...WEB, scale: 6 } });
    expect(master.scheduler.blockedOf("more/web")[0]?.reasons).toEqual([
      expect.stringMatching(/^3 nodes: no addresses for network more_default: /),
    ]);
    expect([...one.assigned, ...two.assigned].map(({ job_id }) => job_id)).toEqual(Array(6).fill("shop"));
  });
});
