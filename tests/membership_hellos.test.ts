/** @module Hellos and reports that are overtaken by what others write meanwhile, and whom a hello makes of a node without a past. */
import { describe, expect, test } from "bun:test";
import type { MasterMessage } from "../src/model.ts";
import { changesForLeave } from "../src/scheduler_nodes.ts";
import { HEARTBEAT_MS, Master, NODE_TIMEOUT_MS, Peer } from "./master_fixture.ts";
import { heartbeatOf, helloOf } from "./rogue_words.ts";

/** A connection of a node that says what it is told to say. */
function connection({ membership }: Master) {
  const heard: MasterMessage[] = [];
  const state = { isClosed: false };
  const handlers = membership.accept({
    send: (text) => heard.push(JSON.parse(text)),
    close: () => (state.isClosed = true),
  });
  const say = (message: object) => handlers.onMessage(JSON.stringify(message));
  return { heard, state, say, hangUp: () => handlers.onClose() };
}

function engineOf(engine_id: string, more: object = {}) {
  const platform = { os: "linux", arch: "amd64" };
  return { state: "ready", engine_id, docker_version: "28.0.0", api_version: "1.48", platform, remote: false, ...more };
}

const NO_ENGINE = { state: "unready", reason: "Docker does not answer on unix:///var/run/docker.sock" };

describe("a hello that is refused (point 10)", () => {
  test("writes nothing: of two processes that claim one node at once, the first one's name and labels stay", async () => {
    const master = await Master.start();
    const [first, second] = [connection(master), connection(master)];
    const claim = (name: string) => ({
      instance: name,
      node_name: name,
      address: "10.0.0.7:9000",
      labels: [["is", name]],
    });
    first.say(helloOf("n7", claim("first")));
    second.say(helloOf("n7", claim("second")));
    await master.clock.advance(20);
    expect(first.heard[0]).toMatchObject({ type: "welcome", node_name: "first" });
    expect(second.heard).toMatchObject([{ type: "refused", code: "node_in_use" }]);
    expect(master.scheduler.state.nodes.get("n7")).toMatchObject({ node_name: "first", labels: [["is", "first"]] });
  });

  test("writes nothing: of two new nodes on one Engine that come at once, one is a member", async () => {
    const master = await Master.start();
    const [first, second] = [connection(master), connection(master)];
    for (const [peer, id] of [
      [first, "n1"],
      [second, "n2"],
    ] as const)
      peer.say(helloOf(id, { instance: id, engine: engineOf("same") }));
    await master.clock.advance(20);
    expect(first.heard[0]).toMatchObject({ type: "welcome", node_id: "n1" });
    // The same Engine, so the same node: its id is taken by a process that is there.
    expect(second.heard).toMatchObject([{ type: "refused", code: "engine_in_use" }]);
    expect([...master.scheduler.state.nodes.keys()]).toEqual(["n1"]);
  });

  test("keeps nobody out once the first one is gone", async () => {
    const master = await Master.start();
    const [first, second] = [connection(master), connection(master)];
    first.say(helloOf("n7", { instance: "first" }));
    first.hangUp();
    await master.clock.advance(20);
    second.say(helloOf("n7", { instance: "second" }));
    await master.clock.advance(20);
    expect(second.heard[0]).toMatchObject({ type: "welcome" });
  });
});

describe("a node that has just left (point 10)", () => {
  test("is not a member again by a heartbeat that was on its way", async () => {
    const master = await Master.start();
    const node = connection(master);
    node.say(helloOf("n1", { cluster_id: "c", engine: NO_ENGINE }));
    await master.clock.advance(20);
    expect(master.scheduler.state.nodes.has("n1")).toBe(true);
    void master.scheduler.change(() => [{ op: "delete", kind: "node", key: "n1" }]);
    node.say({ ...heartbeatOf("n1", {}), engine: engineOf("e1") });
    await master.clock.advance(20);
    expect(master.scheduler.state.nodes.has("n1")).toBe(false);
  });

  test("and is wanted again by then is not removed for having been lost", async () => {
    const master = await Master.start();
    const peer = await Peer.join(master, 1);
    const { scheduler, clock } = master;
    const { state } = scheduler;
    const leave = async () => {
      await scheduler.removeNode("n1", {});
      await peer.hangUp();
    };
    await leave();
    // The operator's word comes before the removal that the look at all nodes has asked for.
    await clock.advance(NODE_TIMEOUT_MS - HEARTBEAT_MS);
    await scheduler.putNode("n1", { availability: "active" });
    const node = state.nodes.get("n1");
    expect(changesForLeave(state, { nodeId: "n1", wish: {}, now: clock.now(), ifLost: true }).changes).toEqual([]);
    expect(await scheduler.removeNode("n1", {}, true)).toEqual({ node: node!, isGone: false });
    expect(state.nodes.get("n1")).toEqual(node!);
  });
});

test("two members that learn of one Engine at once are not both on it (point 10)", async () => {
  const master = await Master.start();
  const peers = ["n1", "n2"].map((id) => ({ id, ...connection(master) }));
  for (const { id, say } of peers) say(helloOf(id, { instance: id, cluster_id: "c", engine: NO_ENGINE }));
  await master.clock.advance(20);
  for (const { id, say } of peers) say({ ...heartbeatOf(id, {}), engine: engineOf("same") });
  await master.clock.advance(20);
  const engines = () => [...master.scheduler.state.nodes.values()].map(({ engine_id }) => engine_id);
  expect(engines()).toEqual(["same", undefined]);
  for (const { id, say } of peers) say({ ...heartbeatOf(id, {}), engine: engineOf("same") });
  await master.clock.advance(20);
  expect(peers[1]?.heard.at(-1)).toMatchObject({ type: "refused", code: "engine_in_use" });
  expect(engines()).toEqual(["same", undefined]);
});

describe("a machine that lost its data directory (point 5)", () => {
  test("is not taken in before its Engine has told who it was, and is the node that it was then", async () => {
    const master = await Master.start();
    const before = connection(master);
    before.say(helloOf("old", { engine: engineOf("e1") }));
    await master.clock.advance(20);
    before.hangUp();
    const without = connection(master);
    without.say(helloOf("new", { instance: "new", engine: NO_ENGINE }));
    await master.clock.advance(20);
    // Without a refusal: a node of an earlier version takes one for final, and would not come again.
    expect([without.heard, without.state.isClosed]).toEqual([[], true]);
    expect([...master.scheduler.state.nodes.keys()]).toEqual(["old"]);
    const known = connection(master);
    known.say(helloOf("new", { instance: "new", engine: { ...NO_ENGINE, engine_id: "e1" } }));
    await master.clock.advance(20);
    expect(known.heard[0]).toMatchObject({ type: "welcome", node_id: "old" });
  });

  test("is told in time that its Engine belongs to another machine that is there: a clone (point 5)", async () => {
    const master = await Master.start();
    const [one, clone] = [connection(master), connection(master)];
    one.say(helloOf("one", { address: "10.0.0.2:9000", engine: engineOf("e1"), boot_id: "a" }));
    await master.clock.advance(20);
    clone.say(helloOf("clone", { instance: "clone", address: "10.0.0.3:9000", engine: engineOf("e1"), boot_id: "b" }));
    await master.clock.advance(20);
    expect(clone.heard).toMatchObject([
      { type: "refused", message: expect.stringContaining("is a clone of the other") },
    ]);
  });
});
