/**
 * @module Points 1.1 of issue 15, "never two", the master's side: what must never run twice (`stop_when_isolated`) while its node's Docker
 * Engine does not answer, which keeps that node from stopping anything.
 */
import { describe, expect, test } from "bun:test";
import { createApi } from "../src/api.ts";
import { silentLog } from "../src/log.ts";
import { recordFor } from "../src/membership_records.ts";
import { type AllocationRecord, type Hello, PROTOCOL_VERSION } from "../src/model.ts";
import { stoppedAloneAt } from "../src/reconcile_goal.ts";
import { giveUp } from "../src/scheduler_give_up.ts";
import { rules } from "./cluster_fixture.ts";
import { ENGINE_TIMEOUT_MS, HEARTBEAT_MS, Master, NODE_TIMEOUT_MS, Peer } from "./master_fixture.ts";
import { Bench } from "./reconcile_bench.ts";

const LIMIT_MS = 30_000;
const ONE = { image: "busybox", "x-cacophony": { stop_when_isolated: `${LIMIT_MS / 1_000}s` } };
/** A day: nothing is placed by the passing of time alone. */
const LONG_MS = 86_400_000;

/** Two nodes, of which one runs the only replica of a service that must never run twice. */
class Story {
  readonly master: Master;
  readonly home: Peer;
  readonly other: Peer;

  private constructor(master: Master, [home, other]: readonly [Peer, Peer]) {
    this.master = master;
    this.home = home;
    this.other = other;
  }

  static async begin(): Promise<Story> {
    const master = await Master.start();
    const peers = [await Peer.join(master, 1), await Peer.join(master, 2)] as const;
    for (const peer of peers) peer.clusterId = "c";
    await master.put("shop", { web: ONE });
    for (const peer of peers) await peer.report();
    const [one, two] = peers;
    return new Story(master, one.assigned.length > 0 ? [one, two] : [two, one]);
  }

  /** The nodes that the replica is placed on. */
  get places(): string[] {
    return this.#allocations.filter(({ desired }) => desired === "run").map(({ node_id }) => node_id);
  }

  get #allocations(): AllocationRecord[] {
    return [...this.master.scheduler.state.allocations.values()];
  }

  /** Why the slot is where it is. */
  get reason(): string | undefined {
    return this.master.scheduler.blockedOf("shop/web")[0]?.reasons[0];
  }

  get leaves(): string[] {
    const node = this.master.scheduler.state.nodes.get(this.home.id);
    return node ? this.master.scheduler.drainWaits(node).map(({ reason }) => reason) : [];
  }

  /** Time in which the other node is well, and this one says what it can: nothing, or that its Engine does not answer. */
  async pass(ms: number, { isHomeUp = false }: { isHomeUp?: boolean } = {}): Promise<void> {
    const step = Math.max(HEARTBEAT_MS, ms / 100);
    for (let passed = 0; passed < ms; passed += step) {
      for (let beat = 0; beat < step; beat += HEARTBEAT_MS) {
        // oxlint-disable-next-line no-await-in-loop -- time passes in heartbeats
        await this.master.clock.advance(Math.min(HEARTBEAT_MS, step - beat));
        // oxlint-disable-next-line no-await-in-loop -- time passes in heartbeats
        await this.other.beat();
        // oxlint-disable-next-line no-await-in-loop -- time passes in heartbeats
        if (isHomeUp) await this.home.beat();
      }
    }
    await this.other.report();
  }

  /** The node's Engine hangs for longer than the master waits for the containers of others. */
  async hang(): Promise<void> {
    this.home.engineFault = "dockerd hangs";
    await this.pass(2 * ENGINE_TIMEOUT_MS, { isHomeUp: true });
    expect(this.master.scheduler.state.isLost(this.home.id)).toBe(true);
  }
}

/** What the slot says, by how the node is. */
const mayRun = ({ home }: Story, where: string) =>
  `web.1 may still run on node ${home.id}, ${where}: it is placed again when that Engine answers, or when you say that it does not ` +
  `run there any more: POST /cluster/reschedule?node=${home.id}`;
const HANGS = "whose Docker Engine does not answer";
const HUNG = "which is down, and whose Docker Engine did not answer before that";

describe("never two: while a node's Docker Engine does not answer", () => {
  test("no second one is placed, the slot says why, and all goes on as it was when the Engine answers", async () => {
    const story = await Story.begin();
    await story.hang();
    expect([story.places, story.reason]).toEqual([[story.home.id], mayRun(story, HANGS)]);
    await story.pass(3_600_000, { isHomeUp: true });
    expect(story.places).toEqual([story.home.id]);
    story.home.engineFault = undefined;
    await story.home.report();
    await story.pass(HEARTBEAT_MS, { isHomeUp: true });
    expect([story.places, story.reason]).toEqual([[story.home.id], undefined]);
    expect(story.home.assigned).toHaveLength(1);
  });

  test("what need not be alone is replaced all the same", async () => {
    const story = await Story.begin();
    await story.master.put("shop", { web: { image: "busybox" } });
    for (let n = 0; n < 4; n++) {
      // oxlint-disable-next-line no-await-in-loop -- the old one stops before the new one starts
      for (const peer of [story.home, story.other]) await peer.report();
    }
    const [place = ""] = story.places;
    const [home, other] = place === story.home.id ? [story.home, story.other] : [story.other, story.home];
    home.engineFault = "dockerd hangs";
    for (let ms = 0; ms < 2 * ENGINE_TIMEOUT_MS; ms += HEARTBEAT_MS) {
      await story.master.clock.advance(HEARTBEAT_MS);
      for (const peer of [home, other]) await peer.beat();
    }
    expect(story.places).toEqual([other.id]);
  });

  test("none is placed either when the node goes down, for as long as nobody knows, and also by a master that starts then", async () => {
    const story = await Story.begin();
    await story.hang();
    await story.pass(NODE_TIMEOUT_MS + LIMIT_MS + 60_000);
    expect([story.places, story.reason]).toEqual([[story.home.id], mayRun(story, HUNG)]);
    await story.master.restart();
    await story.other.dial();
    await story.other.report();
    await story.pass(2 * NODE_TIMEOUT_MS + LIMIT_MS + 60_000);
    expect(story.master.scheduler.state.views.get(story.home.id)).toMatchObject({ state: "down", engine: undefined });
    expect([story.places, story.reason]).toEqual([[story.home.id], mayRun(story, HUNG)]);
    // It is back, and its Engine answers: this is where it runs.
    story.home.engineFault = undefined;
    await story.home.dial();
    await story.home.report();
    await story.pass(HEARTBEAT_MS, { isHomeUp: true });
    expect([story.places, story.reason]).toEqual([[story.home.id], undefined]);
    expect(story.master.scheduler.state.nodes.get(story.home.id)?.engine_silent).toBeUndefined();
  });

  test("a master that starts then, and hears of the node, does not place one either", async () => {
    const story = await Story.begin();
    await story.hang();
    await story.master.restart();
    for (const peer of [story.home, story.other]) {
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await peer.dial();
    }
    await story.other.report();
    await story.pass(2 * ENGINE_TIMEOUT_MS, { isHomeUp: true });
    expect([story.places, story.reason]).toEqual([[story.home.id], mayRun(story, HANGS)]);
  });

  test("a node that goes down while its Engine answers is given up when it has stopped the replica, as before", async () => {
    const story = await Story.begin();
    await story.master.restart();
    await story.other.dial();
    await story.other.report();
    await story.pass(2 * NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS);
    expect(story.reason).toContain("to have stopped it by itself (stop_when_isolated)");
    await story.pass(LIMIT_MS + 12_000);
    expect(story.places).toEqual([story.other.id]);
  });

  test("none is placed by a DELETE of the node, which stays a member that leaves, and says what for", async () => {
    for (const isDown of [false, true]) {
      const story = await Story.begin();
      await story.hang();
      if (isDown) await story.pass(NODE_TIMEOUT_MS + LIMIT_MS + 60_000);
      const { isGone } = await story.master.scheduler.removeNode(story.home.id, {});
      expect(isGone).toBe(false);
      await story.pass(LONG_MS / 24, { isHomeUp: !isDown });
      const reason = mayRun(story, isDown ? HUNG : HANGS);
      expect([story.places, story.reason, story.leaves]).toEqual([[story.home.id], reason, [reason]]);
      // When the Engine answers, the node is emptied as any other.
      story.home.engineFault = undefined;
      if (isDown) await story.home.dial();
      for (let n = 0; n < 3; n++) await story.home.report();
      await story.pass(HEARTBEAT_MS);
      expect([story.places, story.home.heard.at(-1)?.type]).toEqual([[story.other.id], "left"]);
    }
  });

  test("nor by a DELETE of one that has just gone down, before it must have stopped the replica", async () => {
    const story = await Story.begin();
    await story.pass(NODE_TIMEOUT_MS + 2 * HEARTBEAT_MS);
    const { isGone } = await story.master.scheduler.removeNode(story.home.id, {});
    expect([isGone, story.places]).toEqual([false, [story.home.id]]);
    expect(story.leaves[0]).toContain("to have stopped it by itself (stop_when_isolated)");
    await story.pass(LIMIT_MS + 12_000);
    expect(story.places).toEqual([story.other.id]);
    expect(story.master.scheduler.state.nodes.has(story.home.id)).toBe(false);
  });

  test("one is placed when an operator says that nothing runs there, and the node stops what it finds when it is back", async () => {
    for (const isLeaving of [false, true]) {
      const story = await Story.begin();
      await story.hang();
      if (isLeaving) await story.master.scheduler.removeNode(story.home.id, {});
      const { scheduler, clock } = story.master;
      await giveUp(scheduler, { nodeId: story.home.id, now: clock.now() });
      await story.pass(HEARTBEAT_MS, { isHomeUp: true });
      expect([story.places, story.reason]).toEqual([[story.other.id], undefined]);
      expect(scheduler.state.nodes.has(story.home.id)).toBe(!isLeaving);
      const [history] = scheduler.state.histories("shop/web");
      expect(history?.past).toEqual([expect.objectContaining({ node_id: story.home.id, cause: "lost" })]);
      await story.master.restart();
      expect(story.places).toEqual([story.other.id]);
      if (isLeaving) continue;
      story.home.engineFault = undefined;
      await story.home.dial();
      expect(story.home.assigned).toEqual([]);
    }
  });

  test("an operator's word about a node that can tell by itself is refused, and so is one about no node", async () => {
    const { master, home } = await Story.begin();
    const { scheduler, clock } = master;
    const say = (nodeId: string) => giveUp(scheduler, { nodeId, now: clock.now() });
    await expect(say(home.id)).rejects.toThrow("what runs there is known, and nothing was changed");
    await expect(say("n7")).rejects.toThrow("no node 'n7'");
    const local = {
      nodeId: "master",
      version: "0",
      faults: () => [],
      peerInfo: () => ({ node_id: "master", protocol: 1, version: "0", peers: [] }),
      master: () => ({ address: undefined, lost: undefined }),
    };
    const app = createApi({ local, scheduler: () => scheduler, dataDir: "", isNode: () => false, log: silentLog });
    const post = (path: string) => app.request(path, { method: "POST", headers: { host: "localhost" } });
    expect((await post(`/cluster/reschedule?node=${home.id}`)).status).toBe(409);
    expect((await post("/cluster/reschedule?node=n7")).status).toBe(404);
    const all = await post("/cluster/reschedule");
    expect([all.status, await all.json()]).toEqual([202, { nodes: [] }]);
    home.engineFault = "dockerd hangs";
    await home.beat();
    const one = await post(`/cluster/reschedule?node=${home.id}`);
    expect([one.status, await one.json()]).toEqual([202, { nodes: [home.id] }]);
  });
});

describe("never two: a slot whose former replica may still run", () => {
  const singleton = { service: { stop_when_isolated_ms: LIMIT_MS } };

  function hung(begin: Partial<Parameters<Bench["goal"]>[1]> = singleton, scale = 1) {
    const bench = new Bench(["a", "b", "c"]);
    const goal = bench.goal(scale, begin);
    bench.settle(goal);
    const [old] = bench.running();
    if (!old) throw new Error("nothing runs");
    return { bench, goal, old, lose: () => bench.lose(old.node_id) };
  }

  test("stays empty after a change of scale, and for the next job of that id, and says why", () => {
    for (const begin of ["scale", "job", "document"] as const) {
      const { bench, goal, lose } = hung();
      lose();
      if (begin === "scale") bench.commit(bench.plan({ ...goal, scale: 0 }));
      const next =
        begin === "job"
          ? { ...goal, incarnation: "next" }
          : begin === "document"
            ? bench.goal(1, { ...singleton, spec_hash: "h2" })
            : goal;
      for (let n = 0; n < 3; n++) {
        const plan = bench.plan(next);
        expect([begin, plan.place, plan.wakeAt]).toEqual([begin, [], undefined]);
        expect(plan.blocked[0]?.reasons[0]).toContain("s.1 may still run on node");
        bench.commit(plan);
        bench.now += LONG_MS;
      }
    }
  });

  test("is no such slot where its replica ended for good", () => {
    const { bench, goal, old, lose } = hung();
    bench.end(old);
    lose();
    const ended = bench.state.allocations.get(old.allocation_id);
    expect(ended && stoppedAloneAt(ended, bench.state)).toBe(0);
    expect(bench.plan(goal).blocked).toEqual([]);
  });

  test("of a service that runs once on each node is not taken by another node's replica", () => {
    const bench = new Bench(["c"]);
    const goal = bench.goal(1, { ...singleton, rules: rules({ mode: "global" }) });
    bench.settle(goal);
    // The others come later, and have later slots.
    for (const id of ["a", "b"]) bench.add(id);
    bench.settle({ ...goal, scale: 3 });
    const [old] = bench.running().filter(({ node_id }) => node_id === "c");
    if (!old) throw new Error("nothing runs");
    bench.lose(old.node_id);
    const others = [...bench.state.nodes.keys()].filter((id) => id !== old.node_id);
    const nowhere = [{ key: "node.id", operator: "==" as const, value: "none" }];
    const none = { ...goal, scale: 0, rules: { ...goal.rules, constraints: nowhere } };
    bench.commit(bench.plan(none));
    bench.obey();
    const plan = bench.plan(goal);
    expect(plan.place.map(({ node_id }) => node_id).toSorted()).toEqual(others.toSorted());
    expect(plan.place.map(({ slot }) => slot)).not.toContain(old.slot);
    expect(plan.blocked).toEqual([
      { slot: old.slot, reasons: [expect.stringContaining(`s.${old.slot} may still run on node`)] },
    ]);
  });

  test("is waited for as long as Docker and a slow heartbeat need: whole seconds, and what a node takes to notice", () => {
    const { bench, goal, old } = hung({ service: { stop_when_isolated_ms: 5_000, stop_grace_period_ms: 1_500 } });
    bench.set(old.node_id, "down");
    Object.assign(bench.state.views.get(old.node_id) ?? {}, { lastSeen: 1_000_000 });
    expect(stoppedAloneAt(old, bench.state)).toBe(1_000_000 + 5_000 + 2_000 + 2_000);
    bench.state.noticeMs = 3.3 * 3_000;
    expect(stoppedAloneAt(old, bench.state)).toBe(1_000_000 + 9_900 + 2_000 + 2_000);
    expect(goal.spec.stop_grace_period_ms).toBe(1_500);
  });

  test("is waited for by what a master knows of heartbeats, and of an Engine also while a hello is taken in", async () => {
    const { master, home } = await Story.begin();
    const { state } = master.scheduler;
    expect(state.noticeMs).toBe(3.3 * HEARTBEAT_MS);
    home.engineFault = "dockerd hangs";
    await home.beat();
    const former = state.nodes.get(home.id);
    expect(former?.engine_silent).toBe(true);
    const hello: Hello = {
      type: "hello",
      protocol: PROTOCOL_VERSION,
      cluster_id: "c",
      node_id: home.id,
      instance: "next",
      node_name: home.id,
      address: home.address,
      labels: [],
      engine: { state: "unready", reason: "Docker has not been asked yet" },
      version: "0",
    };
    const known = { former, departed: undefined };
    expect(recordFor(hello, { known, state, selfId: "master", now: 0 }).engine_silent).toBe(true);
  });
});
