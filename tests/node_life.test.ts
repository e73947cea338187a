/** @module Nodes that fall silent, are emptied, leave and come back, as their master sees and records it. */
import { describe, expect, test } from "bun:test";
import { nodeView } from "../src/cluster_views.ts";
import type { AllocationRecord } from "../src/model.ts";
import { ENGINE_TIMEOUT_MS, HEARTBEAT_MS, HOLD_MS, Master, NODE_TIMEOUT_MS, Peer } from "./master_fixture.ts";

const WEB = { image: "busybox" };
const DATA = { image: "busybox", volumes: ["data:/data"] };

/** Lets time pass while these nodes go on reporting what they are assigned; `dead`: one that can't, since its Engine is dead. */
async function pass(
  master: Master,
  { ms, peers, dead }: { ms: number; peers: readonly Peer[]; dead?: Peer },
): Promise<void> {
  for (let passed = 0; passed < ms; passed += HEARTBEAT_MS) {
    await master.clock.advance(HEARTBEAT_MS);
    for (const peer of peers) await peer.report();
    await dead?.beat();
  }
}

async function cluster(nodes: number): Promise<{ master: Master; peers: Peer[] }> {
  const master = await Master.start();
  const peers: Peer[] = [];
  for (let n = 1; n <= nodes; n++) peers.push(await Peer.join(master, n));
  return { master, peers };
}

function allocations(master: Master): AllocationRecord[] {
  return [...master.scheduler.state.allocations.values()];
}

function nodesOf(master: Master): string[] {
  return allocations(master)
    .filter(({ desired }) => desired === "run")
    .map(({ node_id }) => node_id)
    .toSorted();
}

function stateOf(master: Master, nodeId: string): string | undefined {
  return master.scheduler.state.views.get(nodeId)?.state;
}

describe("a silent node", () => {
  test("is suspect at once when its connection closes, and down after the timeout, with a history for its slots", async () => {
    const { master, peers } = await cluster(3);
    const [one, two, three] = peers as [Peer, Peer, Peer];
    await master.put("shop", { web: { ...WEB, scale: 3 } });
    for (const peer of peers) await peer.report();
    await three.hangUp();
    expect(stateOf(master, "n3")).toBe("unready");
    await pass(master, { ms: NODE_TIMEOUT_MS - 2 * HEARTBEAT_MS, peers: [one, two] });
    expect(nodesOf(master)).toEqual(["n1", "n2", "n3"]);
    await pass(master, { ms: 4 * HEARTBEAT_MS, peers: [one, two] });
    expect(stateOf(master, "n3")).toBe("down");
    expect(nodesOf(master)).not.toContain("n3");
    await master.restart();
    const [history] = master.scheduler.state.histories("shop/web");
    expect(history?.past).toEqual([expect.objectContaining({ node_id: "n3", node_name: "n3", cause: "lost" })]);
  });

  test("that is back within the timeout keeps all that it runs", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    const before = allocations(master);
    await peers[1]?.hangUp();
    await pass(master, { ms: NODE_TIMEOUT_MS / 2, peers: peers.slice(0, 1) });
    await peers[1]?.dial();
    await pass(master, { ms: NODE_TIMEOUT_MS, peers });
    expect(allocations(master)).toEqual(before);
  });

  test("is held with most others, until the longer time has passed", async () => {
    const { master, peers } = await cluster(4);
    await master.put("shop", { web: { ...WEB, scale: 4 } });
    for (const peer of peers) await peer.report();
    const before = nodesOf(master);
    const [one] = peers as [Peer];
    await pass(master, { ms: NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS, peers: [one] });
    expect(["n2", "n3", "n4"].map((id) => stateOf(master, id))).toEqual(["down", "down", "down"]);
    expect(nodesOf(master)).toEqual(before);
    expect(master.membership.hold?.nodes).toEqual(["n2", "n3", "n4"]);
    await pass(master, { ms: HOLD_MS + HEARTBEAT_MS, peers: [one] });
    expect(master.membership.hold).toBeUndefined();
    expect(nodesOf(master)).toEqual(["n1", "n1", "n1", "n1"]);
  });

  test("is held with most others also where the timeout is the shortest that may be set", async () => {
    const master = await Master.start("10.213.0.0/16", { nodeTimeoutMs: 3 * HEARTBEAT_MS });
    const peers: Peer[] = [];
    for (let n = 1; n <= 3; n++) peers.push(await Peer.join(master, n));
    const [one, two, three] = peers as [Peer, Peer, Peer];
    await master.put("shop", { web: { ...WEB, scale: 3 } });
    for (const peer of peers) await peer.report();
    // Cut at one moment, when the one's next heartbeat was about to come, and the other's had just come.
    await two.beat();
    await master.clock.advance(HEARTBEAT_MS - 100);
    await three.beat();
    await pass(master, { ms: 5 * HEARTBEAT_MS, peers: [one] });
    expect(master.membership.hold?.nodes).toEqual(["n2", "n3"]);
    expect(nodesOf(master)).toEqual(["n1", "n2", "n3"]);
  });

  test("is not held any longer once somebody says so", async () => {
    const { master, peers } = await cluster(4);
    await master.put("shop", { web: { ...WEB, scale: 4 } });
    for (const peer of peers) await peer.report();
    const [one] = peers as [Peer];
    await pass(master, { ms: NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS, peers: [one] });
    expect(master.membership.reschedule()).toEqual(["n2", "n3", "n4"]);
    await pass(master, { ms: HEARTBEAT_MS, peers: [one] });
    expect(nodesOf(master)).toEqual(["n1", "n1", "n1", "n1"]);
  });
});

describe("a node whose Docker Engine is dead", () => {
  test("is waited for by what runs once on each node as soon as it has joined", async () => {
    const { master, peers } = await cluster(1);
    await master.put("shop", { agent: { ...WEB, deploy: { mode: "global" } } });
    for (const peer of peers) await peer.report();
    expect(master.scheduler.blockedOf("shop/agent")).toEqual([]);
    await Peer.join(master, 2, { engineFault: "Docker does not answer" });
    expect(master.scheduler.blockedOf("shop/agent")).toEqual([
      { slot: 2, reasons: ["this slot is for node n2; 1 node: unready (Docker does not answer)"] },
    ]);
  });

  test("keeps its replicas until the engine timeout, and stops what was replaced when it is back", async () => {
    const { master, peers } = await cluster(2);
    const [one, two] = peers as [Peer, Peer];
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    two.engineFault = "Docker does not answer";
    await pass(master, { ms: HEARTBEAT_MS, peers });
    expect([stateOf(master, "n2"), nodesOf(master)]).toEqual(["unready", ["n1", "n2"]]);
    await pass(master, { ms: ENGINE_TIMEOUT_MS - 2 * HEARTBEAT_MS, peers: [one], dead: two });
    expect([stateOf(master, "n2"), nodesOf(master)]).toEqual(["unready", ["n1", "n2"]]);
    await pass(master, { ms: 4 * HEARTBEAT_MS, peers: [one], dead: two });
    expect([stateOf(master, "n2"), nodesOf(master)]).toEqual(["unready", ["n1", "n1"]]);
    two.engineFault = undefined;
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers });
    expect(two.assigned).toEqual([]);
    expect(allocations(master)).toHaveLength(2);
  });
});

describe("a master that stood still", () => {
  test("takes that time neither for a dead Engine's nor for a failing check's", async () => {
    const { master, peers } = await cluster(2);
    const [, two] = peers as [Peer, Peer];
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    const before = nodesOf(master);
    two.engineFault = "Docker does not answer";
    await two.beat();
    await peers[0]?.report({ 1: { health: "unhealthy" }, 2: { health: "unhealthy" } });
    master.clock.stall(2 * ENGINE_TIMEOUT_MS);
    await master.clock.advance(20);
    two.engineFault = undefined;
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual(before);
    expect(allocations(master)).toHaveLength(2);
    expect(master.scheduler.state.histories("shop/web")).toEqual([]);
  });
});

describe("a node that leaves", () => {
  test("is emptied, told, and listed as left; on the same engine it is whom it was when it joins again", async () => {
    const { master, peers } = await cluster(2);
    const [, two] = peers as [Peer, Peer];
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    const { isGone } = await master.scheduler.removeNode("n2", {});
    expect(isGone).toBe(false);
    await pass(master, { ms: 4 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual(["n1", "n1"]);
    expect(two.heard.at(-1)).toEqual({ type: "left", term: 1 });
    expect([...master.scheduler.state.nodes.keys()]).toEqual(["n1"]);
    expect(master.scheduler.state.departures.get("n2")).toMatchObject({ node_name: "n2" });
    const again = await Peer.join(master, 2);
    expect(again.assigned).toEqual([]);
    expect(master.scheduler.state.nodes.get("n2")).toMatchObject({ availability: "active" });
    expect(master.scheduler.state.departures.size).toBe(0);
  });

  test("while it was down has to leave what it runs when it is back, and does not know", async () => {
    const { master, peers } = await cluster(2);
    const [one, two] = peers as [Peer, Peer];
    two.clusterId = "c";
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    await pass(master, { ms: 2 * NODE_TIMEOUT_MS, peers: [one] });
    expect((await master.scheduler.removeNode("n2", {})).isGone).toBe(true);
    await pass(master, { ms: HEARTBEAT_MS, peers: [one] });
    expect(allocations(master).every(({ node_id }) => node_id === "n1")).toBe(true);
    await two.dial();
    expect(master.scheduler.state.nodes.get("n2")?.drain?.leave).toBe(true);
    await two.report();
    await two.report();
    expect(two.heard.at(-1)).toEqual({ type: "left", term: 1 });
    expect(master.scheduler.state.nodes.has("n2")).toBe(false);
  });

  test("and goes down before it is empty is out at once; the data that it had are waited for, or given up by force", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { db: DATA }, { volumes: { data: {} } });
    for (const peer of peers) await peer.report();
    const home = nodesOf(master)[0] ?? "";
    const others = peers.filter(({ id }) => id !== home);
    await master.scheduler.removeNode(home, {});
    await pass(master, { ms: HEARTBEAT_MS, peers: others });
    expect(nodesOf(master)).toEqual([home]);
    await pass(master, { ms: NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS, peers: others });
    expect(master.scheduler.state.nodes.has(home)).toBe(false);
    expect(master.scheduler.blockedOf("shop/db")[0]?.reasons[0]).toContain("which left the cluster");
    const back = await Peer.join(master, Number(home.slice(1)));
    await pass(master, { ms: HEARTBEAT_MS, peers: [...others, back] });
    expect(nodesOf(master)).toEqual([home]);
  });

  test("and has a dead Docker Engine is out when that is given up; when it is back, the node leaves what it runs", async () => {
    const { master, peers } = await cluster(2);
    const [one, two] = peers as [Peer, Peer];
    two.clusterId = "c";
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    two.engineFault = "Docker does not answer";
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers: [one], dead: two });
    expect((await master.scheduler.removeNode("n2", {})).isGone).toBe(false);
    await pass(master, { ms: ENGINE_TIMEOUT_MS - 4 * HEARTBEAT_MS, peers: [one], dead: two });
    expect([master.scheduler.state.nodes.has("n2"), two.isConnected]).toEqual([true, true]);
    await pass(master, { ms: 6 * HEARTBEAT_MS, peers: [one], dead: two });
    expect([master.scheduler.state.nodes.has("n2"), two.isConnected]).toEqual([false, false]);
    expect(nodesOf(master)).toEqual(["n1", "n1"]);
    await two.dial();
    expect(two.heard.at(-1)).toMatchObject({ type: "refused", code: "node_removed" });
    two.engineFault = undefined;
    await two.dial();
    await two.report();
    await two.report();
    expect(two.heard.at(-1)).toEqual({ type: "left", term: 1 });
    expect(master.scheduler.state.nodes.has("n2")).toBe(false);
  });

  test("by force leaves its data behind", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { db: DATA }, { volumes: { data: {} } });
    for (const peer of peers) await peer.report();
    const home = nodesOf(master)[0] ?? "";
    await master.scheduler.removeNode(home, { force: true });
    await pass(master, { ms: 5 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual([home === "n1" ? "n2" : "n1"]);
    expect(master.scheduler.state.nodes.has(home)).toBe(false);
  });

  test("may be kept after all", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { db: DATA }, { volumes: { data: {} } });
    for (const peer of peers) await peer.report();
    const home = nodesOf(master)[0] ?? "";
    const { node } = await master.scheduler.removeNode(home, {});
    const view = nodeView(node, { state: master.scheduler.state, waits: master.scheduler.drainWaits(node) });
    expect(view.drain?.waiting).toEqual([
      expect.objectContaining({ reason: "its data are on this node: with ?force=true it moves without them" }),
    ]);
    const kept = await master.scheduler.putNode(home, { availability: "active" });
    expect(kept).not.toHaveProperty("drain");
    await pass(master, { ms: 3 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual([home]);
  });

  test("gives up the data that it had when somebody says so later", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { db: DATA }, { volumes: { data: {} } });
    for (const peer of peers) await peer.report();
    const home = nodesOf(master)[0] ?? "";
    const others = peers.filter(({ id }) => id !== home);
    await pass(master, { ms: NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS, peers: others });
    await master.scheduler.removeNode(home, {});
    await pass(master, { ms: HEARTBEAT_MS, peers: others });
    expect(master.scheduler.blockedOf("shop/db")[0]?.reasons[0]).toContain("DELETE it with ?force=true");
    expect(await master.scheduler.forgetData(home)).toMatchObject({ node_id: home });
    await pass(master, { ms: HEARTBEAT_MS, peers: others });
    expect(nodesOf(master)).toEqual(others.map(({ id }) => id));
  });

  test("takes no end with it: what ended there runs anew when its definition changes, and is gone with its job", async () => {
    const { master, peers } = await cluster(2);
    const once = { ...WEB, deploy: { mode: "replicated-job" } };
    await master.put("shop", { once });
    for (const peer of peers) await peer.report();
    const home = nodesOf(master)[0] ?? "";
    const others = peers.filter(({ id }) => id !== home);
    await peers.find(({ id }) => id === home)?.report({ 1: { state: "exited", final: true, exit_code: 0 } });
    await pass(master, { ms: NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS, peers: others });
    await master.scheduler.removeNode(home, {});
    await pass(master, { ms: HEARTBEAT_MS, peers: others });
    expect(nodesOf(master)).toEqual([home]);
    await master.put("shop", { once: { ...once, command: ["true"] } });
    await pass(master, { ms: HEARTBEAT_MS, peers: others });
    expect(nodesOf(master)).toEqual(others.map(({ id }) => id));
    expect(allocations(master)).toHaveLength(1);
  });

  test("and goes down is out only when it has stopped by itself what must never run twice", async () => {
    const { master, peers } = await cluster(3);
    await master.put("shop", { one: { ...WEB, "x-cacophony": { stop_when_isolated: "60s" } } });
    for (const peer of peers) await peer.report();
    const home = nodesOf(master)[0] ?? "";
    const others = peers.filter(({ id }) => id !== home);
    await master.scheduler.putNode(home, { availability: "pause" });
    for (const { id } of others) await master.scheduler.putNode(id, { availability: "pause" });
    await master.scheduler.removeNode(home, {});
    await pass(master, { ms: NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS, peers: others });
    expect(stateOf(master, home)).toBe("down");
    for (const { id } of others) await master.scheduler.putNode(id, { availability: "active" });
    await pass(master, { ms: 40_000, peers: others });
    expect(nodesOf(master)).toEqual([home]);
    await pass(master, { ms: 30_000, peers: others });
    expect(nodesOf(master)).not.toContain(home);
    expect(nodesOf(master)).toHaveLength(1);
    expect(master.scheduler.state.nodes.has(home)).toBe(false);
  });

  test("first removes the volumes of deleted jobs, and where it was lost before, does so when it is back", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { db: DATA }, { volumes: { data: {} } });
    for (const peer of peers) await peer.report();
    const home = nodesOf(master)[0] ?? "";
    const others = peers.filter(({ id }) => id !== home);
    const node = peers.find(({ id }) => id === home);
    if (!node) throw new Error("nothing runs");
    await master.delete("shop", { volumes: true });
    await master.scheduler.removeNode(home, {});
    for (let n = 0; n < 3; n++) await node.report();
    expect(allocations(master)).toEqual([]);
    expect(master.scheduler.state.nodes.has(home)).toBe(true);
    await pass(master, { ms: NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS, peers: others });
    expect(master.scheduler.state.nodes.has(home)).toBe(false);
    node.clusterId = "c";
    await node.dial();
    expect(node.removals).toHaveLength(1);
    await node.report();
    expect(master.scheduler.state.nodes.has(home)).toBe(true);
    node.removalsDone = node.removals;
    await node.report();
    expect(node.heard.at(-1)).toEqual({ type: "left", term: 1 });
    expect([...master.scheduler.state.removals.values()].filter(({ node_id }) => node_id === home)).toEqual([]);
  });
});

describe("a node that is emptied", () => {
  test("loses one service after the other, in the order of their names, and goes on where a master left it", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { api: { ...WEB, scale: 2 }, web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    await master.scheduler.putNode("n2", { availability: "drain" });
    await master.clock.advance(100);
    const begun = () => allocations(master).flatMap(({ replaces, service_name }) => (replaces ? [service_name] : []));
    expect(begun()).toEqual(["api"]);
    await master.restart();
    for (const peer of peers) await peer.dial();
    await pass(master, { ms: 6 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual(["n1", "n1", "n1", "n1"]);
    expect(begun().toSorted()).toEqual(["api", "web"]);
  });

  test("lets the next service go first where one finds no place, and stops that one at the deadline", async () => {
    const { master, peers } = await cluster(2);
    const large = { ...WEB, scale: 2, deploy: { resources: { reservations: { memory: "5g" } } } };
    await master.put("shop", { api: large, web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    const deadlineMs = 10 * HEARTBEAT_MS;
    await master.scheduler.putNode("n2", { availability: "drain", deadlineMs });
    await pass(master, { ms: 5 * HEARTBEAT_MS, peers });
    const here = () => allocations(master).filter(({ node_id }) => node_id === "n2");
    expect(here().map(({ service_name }) => service_name)).toEqual(["api"]);
    const node = master.scheduler.state.nodes.get("n2");
    expect(node && master.scheduler.drainWaits(node)[0]?.reason).toContain("reservation of 5 GiB memory does not fit");
    await pass(master, { ms: 7 * HEARTBEAT_MS, peers });
    expect(here()).toEqual([]);
  });

  test("lets what finds a place go though several others find none", async () => {
    const { master, peers } = await cluster(2);
    const asks = (reservations: object) => ({ ...WEB, scale: 2, deploy: { resources: { reservations } } });
    await master.put("shop", { api: asks({ memory: "5g" }), docs: asks({ cpus: "1.5" }), web: { ...WEB, scale: 12 } });
    for (const peer of peers) await peer.report();
    await master.scheduler.putNode("n2", { availability: "drain" });
    await pass(master, { ms: 8 * HEARTBEAT_MS, peers });
    const here = allocations(master).filter(({ node_id }) => node_id === "n2");
    expect(here.map(({ service_name }) => service_name).toSorted()).toEqual(["api", "docs"]);
    const node = master.scheduler.state.nodes.get("n2");
    const reasons = (node ? master.scheduler.drainWaits(node) : []).map(({ reason }) => reason);
    expect(reasons).toEqual([
      expect.stringContaining("reservation of 5 GiB memory does not fit"),
      expect.stringContaining("reservation of 1.5 CPU does not fit"),
    ]);
  });

  test("loses at once what nothing but a fixed host port keeps from other nodes, and its slot says so", async () => {
    const { master, peers } = await cluster(2);
    const fixed = (port: number) => ({ ...WEB, scale: 2, ports: [`${port}:80`] });
    await master.put("shop", { api: fixed(8080), docs: fixed(8081) });
    for (const peer of peers) await peer.report();
    await master.scheduler.putNode("n2", { availability: "drain" });
    await pass(master, { ms: 8 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual(["n1", "n1"]);
    for (const [key, port] of [
      ["shop/api", 8080],
      ["shop/docs", 8081],
    ] as const)
      expect(master.scheduler.blockedOf(key)[0]?.reasons).toContain(`1 node: host port ${port} taken`);
    await master.scheduler.putNode("n2", { availability: "active" });
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual(["n1", "n1", "n2", "n2"]);
  });

  test("waits with what has a fixed host port for a node that may be ready again in a moment", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { api: { ...WEB, scale: 2, ports: ["8080:80"] } });
    for (const peer of peers) await peer.report();
    const three = await Peer.join(master, 3);
    await three.hangUp();
    await master.scheduler.putNode("n2", { availability: "drain" });
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers });
    expect([stateOf(master, "n3"), nodesOf(master)]).toEqual(["unready", ["n1", "n2"]]);
    await three.dial();
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers: [...peers, three] });
    expect(nodesOf(master)).toEqual(["n1", "n3"]);
  });

  test("loses what has a fixed host port only when another is up, where some node has that port free", async () => {
    const { master, peers } = await cluster(3);
    await master.put("shop", { api: { ...WEB, scale: 2, ports: ["8080:80"] } });
    for (const peer of peers) await peer.report();
    const [first = ""] = nodesOf(master);
    await master.scheduler.putNode(first, { availability: "drain" });
    await master.clock.advance(20);
    expect(allocations(master).map(({ desired }) => desired)).toEqual(["run", "run", "run"]);
    await pass(master, { ms: 4 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual(["n1", "n2", "n3"].filter((id) => id !== first));
  });

  test("loses what runs on each node as soon as all else has left", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { agent: { ...WEB, deploy: { mode: "global" } }, web: { ...WEB, scale: 2 } });
    for (const peer of peers) await peer.report();
    const [one, two] = peers as [Peer, Peer];
    await master.scheduler.putNode("n2", { availability: "drain" });
    await master.clock.advance(20);
    await one.report();
    for (let round = 0; round < 3; round++) await two.obey();
    expect(allocations(master).filter(({ node_id }) => node_id === "n2")).toEqual([]);
  });

  test("has its time anew when it is asked for again after its deadline", async () => {
    const { master, peers } = await cluster(2);
    await master.put("shop", { db: { ...DATA, scale: 4 } }, { volumes: { data: {} } });
    for (const peer of peers) await peer.report();
    await master.scheduler.putNode("n2", { availability: "drain", deadlineMs: HEARTBEAT_MS });
    await pass(master, { ms: 3 * HEARTBEAT_MS, peers });
    expect(nodesOf(master)).toEqual(["n1", "n1", "n2", "n2"]);
    await master.scheduler.putNode("n2", { availability: "drain", force: true });
    await master.clock.advance(20);
    // One after the other, and not both at once because the time for those without data is over.
    expect(allocations(master).filter(({ desired }) => desired === "stop")).toHaveLength(1);
  });
});

describe("a node that joins", () => {
  const asks = { deploy: { replicas: 6, resources: { reservations: { cpus: "0.2", memory: "512M" } } } };

  /** Two nodes with six replicas of each of two services, and a third that has just come. */
  async function uneven(options: { rebalance?: "off" | "auto" } = {}): Promise<{ master: Master; peers: Peer[] }> {
    const master = await Master.start("10.213.0.0/16", options);
    const peers = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put(
      "shop",
      { api: { ...WEB, ...asks }, web: { ...WEB, ...asks }, db: DATA },
      { volumes: { data: {} } },
    );
    await pass(master, { ms: 3 * HEARTBEAT_MS, peers });
    peers.push(await Peer.join(master, 3));
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers });
    return { master, peers };
  }

  function onThird(master: Master): number {
    return allocations(master).filter(({ node_id, desired }) => node_id === "n3" && desired === "run").length;
  }

  test("gets its share when somebody asks for that, a few at a time, and only what has no data elsewhere", async () => {
    const { master, peers } = await uneven();
    const told = master.scheduler.rebalance({ dryRun: true });
    expect(told.moves.length).toBeGreaterThan(1);
    expect(told.after).toBeLessThan(told.before);
    await pass(master, { ms: 2 * HEARTBEAT_MS, peers });
    expect(onThird(master)).toBe(0);
    expect(master.scheduler.rebalance({ dryRun: false })).toEqual(told);
    await master.clock.advance(100);
    const inFlight = allocations(master).filter(({ replaces }) => replaces);
    expect(inFlight.map(({ service_name }) => service_name).toSorted()).toEqual(["api", "web"]);
    await pass(master, { ms: 12 * HEARTBEAT_MS, peers });
    expect(onThird(master)).toBe(told.moves.length);
    expect(allocations(master)).toHaveLength(13);
    expect(allocations(master).filter(({ service_name }) => service_name === "db")).not.toEqual([
      expect.objectContaining({ node_id: "n3" }),
    ]);
    expect(master.scheduler.rebalance({ dryRun: true }).moves).toEqual([]);
  });

  test("gets nothing later that it could not take when its turn came", async () => {
    const { master, peers } = await uneven();
    expect(master.scheduler.rebalance({ dryRun: false }).moves.length).toBeGreaterThan(1);
    await master.scheduler.putNode("n3", { availability: "pause" });
    await pass(master, { ms: 6 * HEARTBEAT_MS, peers });
    await master.scheduler.putNode("n3", { availability: "active" });
    await pass(master, { ms: 6 * HEARTBEAT_MS, peers });
    expect(onThird(master)).toBe(0);
  });

  test("gets it by itself where the cluster was told so, and then all stays", async () => {
    const { master, peers } = await uneven({ rebalance: "auto" });
    await pass(master, { ms: 120_000, peers });
    expect(onThird(master)).toBeGreaterThan(2);
    const settled = allocations(master).map(({ allocation_id }) => allocation_id);
    await pass(master, { ms: 240_000, peers });
    expect(allocations(master).map(({ allocation_id }) => allocation_id)).toEqual(settled);
  });
});
