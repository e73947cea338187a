/** @module What a master that stands still again and again concludes from its nodes' silence: tables, a model of nodes, and a master. */
import { describe, expect, test } from "bun:test";
import { backoffMs } from "../src/clock.ts";
import { lostMs, PATIENCE_MS, Pauses, RECONNECT_MS, REDIAL_MS } from "../src/membership_pauses.ts";
import { Silence } from "../src/membership_silence.ts";
import { seeded } from "./cluster_fixture.ts";
import { Master, Peer } from "./master_fixture.ts";

const STEP_MS = 250;
const NODE_TIMEOUT_MS = 4_000;

describe("Pauses", () => {
  test.each([
    [0, 0],
    [PATIENCE_MS, 0],
    [2_000, 500],
    [60_000, 58_500],
  ])("of %s ms the master lost %s, since calls wait for the rest", (pauseMs, lost) => {
    expect(lostMs(pauseMs)).toBe(lost);
  });

  /** After a pause that ends at 10,000, and the reading of what waited: until when is a node spared? */
  test.each([
    ["a short one, in session", { pauseMs: 2_000, isConnected: true, lastSeen: 7_000 }, undefined],
    ["a short one, out of session", { pauseMs: 2_000, isConnected: false, lastSeen: 7_000 }, 10_000 + REDIAL_MS],
    ["a long one, in session", { pauseMs: 4_000, isConnected: true, lastSeen: 5_000 }, 10_000 + RECONNECT_MS],
    ["a long one, out of session", { pauseMs: 8_000, isConnected: false, lastSeen: 1_000 }, 10_000 + RECONNECT_MS],
    ["a long one, heard since", { pauseMs: 8_000, isConnected: true, lastSeen: 10_010 }, undefined],
  ])("%s", (_, { pauseMs, isConnected, lastSeen }, until) => {
    const pauses = new Pauses({ nodeTimeoutMs: NODE_TIMEOUT_MS });
    const nodes = new Map([["a", { lastSeen, connected: isConnected }]]);
    pauses.expect(10_000 - pauseMs - STEP_MS, STEP_MS);
    const first = pauses.look(10_000, { stepMs: STEP_MS, nodes });
    expect(first).toMatchObject({ pauseMs, asOf: undefined });
    pauses.expect(10_000, first.nextMs ?? 0);
    expect(pauses.look(10_020, { stepMs: STEP_MS, nodes })).toEqual({ pauseMs: 0, asOf: 10_020, nextMs: undefined });
    expect(pauses.isSpared("a", 10_020)).toBe(until !== undefined);
    if (until === undefined) return;
    expect([pauses.isSpared("a", until), pauses.isSpared("a", until + 1)]).toEqual([true, false]);
    pauses.forget("a");
    expect(pauses.isSpared("a", until)).toBe(false);
  });

  test("judges by what was known before the second of two pauses that leave no time to read", () => {
    const pauses = new Pauses({ nodeTimeoutMs: NODE_TIMEOUT_MS });
    const look = (now: number) => pauses.look(now, { stepMs: STEP_MS, nodes: [] });
    pauses.expect(0, STEP_MS);
    expect(look(2_250).asOf).toBeUndefined();
    pauses.expect(2_250, 20);
    expect(look(4_270)).toMatchObject({ pauseMs: 2_000, asOf: 2_270 });
  });

  test("gives the time after a long pause once, and later only what calls could not wait for", () => {
    const pauses = new Pauses({ nodeTimeoutMs: NODE_TIMEOUT_MS });
    const nodes = new Map([["a", { lastSeen: 0, connected: false }]]);
    let now = 0;
    const spared: boolean[] = [];
    pauses.expect(now, STEP_MS);
    for (let pause = 0; pause < 12; pause++) {
      pauses.look((now += STEP_MS + 5_000), { stepMs: STEP_MS, nodes });
      pauses.expect(now, 20);
      pauses.look((now += 20), { stepMs: STEP_MS, nodes });
      pauses.expect(now, STEP_MS);
      spared.push(pauses.isSpared("a", now));
    }
    expect(spared.lastIndexOf(true)).toBe(5);
    expect(spared.slice(6)).not.toContain(true);
  });
});

/** A node as the master's process finds it; times are of the model. Hangs up and calls again as `session.ts` does. */
class ModelNode {
  lastSeen = 0;
  connected = true;
  readonly #isAlive: () => boolean;
  readonly #random: () => number;
  readonly #phase: number;
  #answeredAt = 0;
  #attempt = 0;
  #callAt = Infinity;
  /** The master has told where it is, and the call that opens the session waits. */
  #isDialling = false;

  constructor({ isAlive, random }: { isAlive: () => boolean; random: () => number }) {
    this.#isAlive = isAlive;
    this.#random = random;
    this.#phase = Math.floor(random() * 1_000);
  }

  /** Each millisecond in which the node runs, whether the master does or not. */
  tick(now: number): void {
    if (!this.#isAlive()) return;
    if (this.connected && now - this.#answeredAt > 2_000 + this.#phase) {
      this.connected = false;
      this.#attempt = 1;
      this.#again(now);
    }
    if (!this.connected && now > this.#callAt + PATIENCE_MS) {
      this.#attempt++;
      this.#again(now);
    }
  }

  #again(now: number): void {
    this.#isDialling = false;
    this.#callAt = now + backoffMs(this.#attempt, { firstMs: 200, capMs: 3_000, random: this.#random });
  }

  /** Each turn of the master's event loop: what waits is read. */
  read(now: number): boolean {
    if (!this.#isAlive()) return false;
    if (this.connected) {
      if (now - this.#answeredAt < 1_000) return false;
    } else if (now < this.#callAt) return false;
    else if (!this.#isDialling) {
      this.#isDialling = true;
      this.#callAt = now + 2;
      return false;
    }
    this.connected = true;
    this.lastSeen = now;
    this.#answeredAt = now;
    return true;
  }
}

/** Runs a master that stands still for `pauseMs` after each `gapMs`; returns when which nodes were found down. */
function model(options: {
  seed: number;
  pauseMs: () => number;
  gapMs: () => number;
  forMs: number;
  diesAt?: number;
  isLinkOpen?: boolean;
}) {
  const { seed, pauseMs, gapMs, forMs, diesAt = Infinity, isLinkOpen = true } = options;
  const random = seeded(seed);
  let now = 0;
  const nodes = new Map(
    ["a", "b", "c", "dead"].map((id) => {
      const isAlive = () => id !== "dead" || now < diesAt;
      return [id, new ModelNode({ isAlive, random })];
    }),
  );
  const pauses = new Pauses({ nodeTimeoutMs: NODE_TIMEOUT_MS });
  const silence = new Silence({ nodeTimeoutMs: NODE_TIMEOUT_MS, suspectMs: 2_500, holdMs: 1 });
  const downAt = new Map<string, number>();
  pauses.expect(0, 0);
  let sweepAt = 0;
  let pauseAt = gapMs();
  while (now < forMs) {
    if (now >= pauseAt) {
      const end = now + pauseMs();
      for (; now < end; now++) for (const node of nodes.values()) node.tick(now);
      pauseAt = now + gapMs();
    }
    if (now >= sweepAt) {
      const { asOf, nextMs } = pauses.look(now, { stepMs: STEP_MS, nodes });
      if (asOf !== undefined) {
        const heard = Array.from(nodes, ([node_id, { lastSeen }]) => {
          const isSpared = pauses.isSpared(node_id, asOf);
          return { node_id, lastSeen, isHeard: true, wasReady: true, isSelf: false, isSpared };
        });
        silence.judge(heard, asOf);
        for (const id of nodes.keys()) if (silence.of(id) && !downAt.has(id)) downAt.set(id, now);
      }
      pauses.expect(now, nextMs ?? STEP_MS);
      sweepAt = now + (nextMs ?? STEP_MS);
    }
    for (const [id, node] of nodes) {
      node.tick(now);
      if (!isLinkOpen && id === "dead" && now >= diesAt) node.connected = false;
      if (!node.read(now)) continue;
      silence.forget(id);
      pauses.forget(id);
    }
    now++;
  }
  return downAt;
}

describe("point 6: a master that stands still again and again", () => {
  test.each([
    ["whose connection stays open", true, 5_000],
    ["whose connection was closed", false, 8_000],
  ])("with pauses of 2 s finds a dead node down soon, %s", (_, isLinkOpen, boundMs) => {
    let longest = 0;
    for (let seed = 1; seed <= 20; seed++) {
      const diesAt = 5_000 + seed * 113;
      const downAt = model({ seed, pauseMs: () => 2_000, gapMs: () => 250, forMs: 20_000, diesAt, isLinkOpen });
      expect([...downAt.keys()]).toEqual(["dead"]);
      longest = Math.max(longest, (downAt.get("dead") ?? Infinity) - diesAt);
    }
    // It may die just after it was heard for the last time, and the last pause has to end first.
    expect(longest).toBeLessThanOrEqual(boundMs + 2_250);
  });

  test("never finds a node down that lives, however long and dense the pauses are", () => {
    for (let seed = 1; seed <= 60; seed++) {
      const random = seeded(seed);
      const pauseMs = () => 300 + Math.floor(random() ** 3 * 30_000);
      const gapMs = () => 200 + Math.floor(random() * 3_000);
      expect([seed, ...model({ seed, pauseMs, gapMs, forMs: 60_000 })]).toEqual([seed]);
    }
  });

  test("finds the dead node down and no other, as a whole master", async () => {
    const master = await Master.start("10.213.0.0/16", { heartbeatIntervalMs: 1_000, nodeTimeoutMs: NODE_TIMEOUT_MS });
    const living = [await Peer.join(master, 1), await Peer.join(master, 2), await Peer.join(master, 3)];
    const dead = await Peer.join(master, 4);
    const { clock } = master;
    const { views } = master.scheduler.state;
    const began = clock.now();
    while (views.get(dead.id)?.state !== "down" && clock.now() - began < 30_000) {
      clock.stall(2_000);
      // What is due goes first: it can't know yet what waits in the sockets.
      await clock.advance(0);
      for (const peer of living) {
        expect([peer.id, views.get(peer.id)?.state]).toEqual([peer.id, "ready"]);
        await peer.beat();
      }
      await clock.advance(190);
    }
    expect(clock.now() - began).toBeLessThanOrEqual(7_000);
    master.membership.stop();
    await master.scheduler.stop();
  });

  test("gives every node the time to call again after a minute, and a node that died meanwhile no more than that", async () => {
    const master = await Master.start("10.213.0.0/16", { heartbeatIntervalMs: 1_000, nodeTimeoutMs: NODE_TIMEOUT_MS });
    const [living, other, dead] = [await Peer.join(master, 1), await Peer.join(master, 2), await Peer.join(master, 3)];
    const { clock } = master;
    const state = (peer: Peer) => master.scheduler.state.views.get(peer.id)?.state;
    clock.stall(60_000);
    for (const peer of [living, other]) await peer.hangUp();
    await clock.advance(3_000);
    expect([living, other, dead].map(state)).toEqual(["unready", "unready", "unready"]);
    for (const peer of [living, other]) {
      await peer.dial();
      await peer.report();
    }
    for (let second = 0; second < 7; second++) {
      for (const peer of [living, other]) await peer.beat();
      await clock.advance(980);
    }
    expect([living, other, dead].map(state)).toEqual(["ready", "ready", "down"]);
    master.membership.stop();
    await master.scheduler.stop();
  });

  test("takes nothing that a node told before a pause for lasting through it", async () => {
    const master = await Master.start("10.213.0.0/16", { heartbeatIntervalMs: 1_000, nodeTimeoutMs: NODE_TIMEOUT_MS });
    const node = await Peer.join(master, 1);
    node.engineFault = "no answer";
    await node.beat();
    node.engineFault = undefined;
    master.clock.stall(120_000);
    await master.clock.advance(0);
    expect(master.scheduler.state.isLost(node.id)).toBe(false);
    await node.beat();
    await master.clock.advance(1_000);
    expect([master.scheduler.state.isLost(node.id), master.scheduler.state.views.get(node.id)?.state]).toEqual([
      false,
      "ready",
    ]);
    master.membership.stop();
    await master.scheduler.stop();
  });
});
