/** @module The node's side of a session, with a master that says what the test tells it to. */
import { expect, test } from "bun:test";
import { silentLog } from "../src/log.ts";
import type { Heartbeat, MasterMessage, NodeMessage, StatusReport } from "../src/model.ts";
import type { DirectoryMessage, NetworkMessage, NodeNetwork } from "../src/model_network.ts";
import { Session } from "../src/session.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

const INTERVAL_MS = 2_000;

/** A node in session with a master; sessions are counted. */
class Node {
  readonly clock = new VirtualClock();
  readonly heard: NodeMessage[] = [];
  readonly learnt: (NetworkMessage | DirectoryMessage)[] = [];
  /** How often what the session calls throws yet. */
  defects = { heartbeat: 0, snapshot: 0, random: 0, welcome: 0, network: 0 };
  sessions = 0;
  lost = 0;
  /** How long its welcome is on its way. */
  welcomeMs = 0;
  /** Whether the master answers heartbeats. */
  answers = true;
  overlay: NodeNetwork = { mode: "vxlan", networks: [], blocks: 1, full: false };
  readonly #random = seededRandom(1);
  readonly session: Session;
  #say: (message: MasterMessage) => void = () => {};

  constructor() {
    const engine = { state: "unready", reason: "" } as const;
    const peer = { node_id: "m", address: "10.0.0.1:9000" };
    const about = { node_id: "n", protocol: 1, version: "0", peers: [] };
    this.session = new Session({
      transport: {
        askPeer: async () => ({ ...about, cluster_id: "c", master: peer }),
        dial: async (_address, { onMessage, onClose }) => {
          this.sessions++;
          this.#say = (message) => onMessage(JSON.stringify(message));
          return { send: (text) => this.#hear(JSON.parse(text)), close: () => this.clock.after(0, onClose) };
        },
      },
      executor: {
        assign: () => "accepted",
        snapshot: () => {
          if (this.defects.snapshot-- > 0) throw new Error("a defect");
          return { allocations: [], removals_done: [] };
        },
        heartbeat: (): Omit<Heartbeat, "type" | "sequence"> => {
          if (this.defects.heartbeat-- > 0) throw new Error("a defect");
          return { engine, foreign: [], overlay: this.overlay };
        },
      },
      clock: this.clock,
      random: () => {
        if (this.defects.random-- > 0) throw new Error("a defect");
        return this.#random();
      },
      log: silentLog,
      hello: () => ({
        type: "hello",
        protocol: 1,
        cluster_id: "c",
        node_id: "n",
        instance: "i",
        node_name: "n",
        address: "10.0.0.2:9000",
        labels: [],
        engine,
        version: "0",
      }),
      trust: () => ({ clusterKey: undefined, seenTerm: 0 }),
      addresses: () => [peer.address],
      onWelcome: () => {
        if (this.defects.welcome-- > 0) throw new Error("a defect");
      },
      onLeft: () => {},
      onPeers: () => {},
      onNetwork: (message) => {
        if (this.defects.network-- > 0) throw new Error("a defect");
        this.learnt.push(message);
      },
      onLost: () => this.lost++,
      onRefused: () => {},
    });
    this.session.start(peer);
  }

  get beats(): number {
    return this.heard.filter(({ type }) => type === "heartbeat").length;
  }

  /** Speaks on the present connection, also when there is another one. */
  get sayer(): (message: MasterMessage) => void {
    return this.#say;
  }

  say(message: MasterMessage): void {
    this.#say(message);
  }

  #hear(message: NodeMessage): void {
    this.heard.push(message);
    if (message.type === "heartbeat" && this.answers) {
      const { sequence } = message;
      this.clock.after(0, () => this.#say({ type: "ack", sequence }));
    }
    if (message.type !== "hello") return;
    const master = { node_id: "m", address: "10.0.0.1:9000" };
    const times = { heartbeat_interval_ms: INTERVAL_MS, node_timeout_ms: 15_000 };
    this.clock.after(this.welcomeMs, () =>
      this.#say({
        type: "welcome",
        cluster_id: "c",
        node_id: "n",
        node_name: "n",
        term: 1,
        master,
        peers: [],
        ...times,
      }),
    );
  }
}

test("Session tells the master at once that the node's networks changed, and only then", async () => {
  const node = new Node();
  await node.clock.advance(100);
  expect(node.beats).toBe(1);
  node.session.notify();
  await node.clock.advance(100);
  expect(node.beats).toBe(1);
  node.overlay = { ...node.overlay, networks: [{ network: "a", subnet: "10.213.0.64/26" }] };
  node.session.notify();
  await node.clock.advance(100);
  expect(node.heard.findLast(({ type }) => type === "heartbeat")).toMatchObject({ overlay: node.overlay });
  expect(node.beats).toBe(2);
  await node.clock.advance(INTERVAL_MS);
  expect(node.beats).toBe(3);
});

test("Session does not give a busy master up because the node had much to tell", async () => {
  const node = new Node();
  await node.clock.advance(INTERVAL_MS - 500);
  node.answers = false;
  for (let blocks = 2; blocks < 12; blocks++) {
    node.overlay = { ...node.overlay, blocks };
    node.session.notify();
    await node.clock.advance(40);
  }
  expect(node.beats).toBe(11);
  await node.clock.advance(200);
  node.answers = true;
  await node.clock.advance(3 * INTERVAL_MS);
  expect(node.sessions).toBe(1);
});

test("Session gives a master up that leaves the last two heartbeats unanswered that were due", async () => {
  const node = new Node();
  await node.clock.advance(100);
  node.answers = false;
  await node.clock.advance(2 * INTERVAL_MS);
  expect([node.sessions, node.beats]).toEqual([1, 3]);
  await node.clock.advance(INTERVAL_MS + 500);
  expect(node.sessions).toBe(2);
});

test("Session hands on what the master tells of the network, and reports in full in each session", async () => {
  const node = new Node();
  await node.clock.advance(100);
  const message: DirectoryMessage = { type: "directory", full: true, services: [], gone: [] };
  node.say(message);
  expect(node.learnt).toEqual([message]);
  node.answers = false;
  await node.clock.advance(4 * INTERVAL_MS);
  const reports = node.heard.filter((one): one is StatusReport => one.type === "status");
  expect(reports.map(({ full }) => full)).toEqual([true, true]);
});

test("Session takes nothing in that comes on the connection of a session which has ended", async () => {
  const node = new Node();
  await node.clock.advance(100);
  const late = node.sayer;
  node.answers = false;
  await node.clock.advance(4 * INTERVAL_MS);
  expect(node.sessions).toBeGreaterThan(1);
  late({ type: "directory", full: true, services: [], gone: [] });
  expect(node.learnt).toEqual([]);
  node.say({ type: "directory", full: true, services: [], gone: [] });
  expect(node.learnt).toHaveLength(1);
});

test("Session beats at intervals that differ by up to a tenth, and on the average as it was told", async () => {
  const node = new Node();
  const at: number[] = [];
  for (let seen = 0; at.length < 60; await node.clock.advance(10)) {
    if (node.beats > seen) at.push(node.clock.now());
    seen = node.beats;
  }
  const gaps = at.slice(1).map((time, index) => time - (at[index] ?? 0));
  expect(Math.min(...gaps)).toBeGreaterThanOrEqual(0.9 * INTERVAL_MS - 10);
  expect(Math.max(...gaps)).toBeLessThanOrEqual(1.1 * INTERVAL_MS + 10);
  expect(new Set(gaps).size).toBeGreaterThan(20);
  const mean = gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length;
  expect(Math.abs(mean - INTERVAL_MS)).toBeLessThan(0.03 * INTERVAL_MS);
  expect(node.sessions).toBe(1);
});

test("Session knows when the master last was there for it: at the sending of what it answered last", async () => {
  const node = new Node();
  const begin = node.clock.now();
  expect(node.session.lastHeard).toBe(begin);
  await node.clock.advance(100);
  const beat = node.session.lastHeard;
  expect(beat).toBeGreaterThanOrEqual(begin);
  await node.clock.advance(1.2 * INTERVAL_MS);
  const second = node.session.lastHeard;
  expect(second).toBeGreaterThanOrEqual(beat + 0.9 * INTERVAL_MS);
  node.answers = false;
  await node.clock.advance(INTERVAL_MS);
  // An answer that is long on its way says nothing about the time since.
  node.say({ type: "ack", sequence: 2 });
  expect(node.session.lastHeard).toBe(second);
  expect(node.lost).toBe(0);
  await node.clock.advance(3 * INTERVAL_MS);
  expect(node.lost).toBe(1);
});

test("Session takes a welcome that was long on its way for no newer sign of the master than its hello was", async () => {
  const node = new Node();
  const begin = node.clock.now();
  node.welcomeMs = 3_000;
  node.answers = false;
  await node.clock.advance(4_000);
  expect(node.session.lost).toBeDefined();
  expect(node.session.lastHeard).toBe(begin);
});

test("Session goes on with its heartbeats after one that threw (point 4 of section 1)", async () => {
  const node = new Node();
  await node.clock.advance(100);
  // One is sent, and the next one is not made ready.
  node.defects.random = 1;
  await node.clock.advance(4.5 * INTERVAL_MS);
  expect([node.sessions, node.beats]).toEqual([1, 5]);
});

test("Session says that the node is there also where what it has cannot be read (point 4 of section 1)", async () => {
  const node = new Node();
  await node.clock.advance(100);
  node.defects.heartbeat = 1_000;
  node.overlay = { ...node.overlay, full: true };
  await node.clock.advance(4.5 * INTERVAL_MS);
  expect([node.sessions, node.beats]).toEqual([1, 5]);
  expect(node.heard.findLast(({ type }) => type === "heartbeat")).toMatchObject({ overlay: { full: false } });
  node.defects.heartbeat = 0;
  await node.clock.advance(INTERVAL_MS * 1.2);
  expect(node.heard.findLast(({ type }) => type === "heartbeat")).toMatchObject({ overlay: { full: true } });
});

test("Session that can make no report ends, and the next one begins with all there is to say (point 4 of section 1)", async () => {
  const node = new Node();
  await node.clock.advance(100);
  node.defects.snapshot = 1;
  node.session.notify();
  await node.clock.advance(1_000);
  expect(node.sessions).toBe(2);
  expect(node.heard.findLast(({ type }) => type === "status")).toMatchObject({ full: true });
});

test("Session that throws at its welcome is none: the node knows that it has no master (point 4 of section 1)", async () => {
  const node = new Node();
  node.defects.welcome = 1;
  await node.clock.advance(50);
  expect([node.sessions, node.session.lost]).toEqual([1, undefined]);
  // What `/readyz` says meanwhile.
  expect(node.session.fault).toMatch(/^a message of 10.0.0.1:9000 could not be taken in: .*a defect/);
  await node.clock.advance(1_000);
  expect([node.sessions, node.session.lost?.aborted, node.session.fault]).toEqual([2, false, undefined]);
});

test("Session that a message of the master ends each time is tried again ever less often (point 4 of section 1)", async () => {
  const node = new Node();
  node.defects.network = 1_000;
  const message: DirectoryMessage = { type: "directory", full: true, services: [], gone: [] };
  for (let n = 0; n < 600; n++) {
    node.say(message);
    await node.clock.advance(100);
  }
  expect(node.sessions).toBeGreaterThan(15);
  expect(node.sessions).toBeLessThan(50);
  node.defects.network = 0;
  const before = node.sessions;
  await node.clock.advance(60_000);
  expect(node.sessions - before).toBeLessThan(3);
  // One that lasted is no longer one of those that end at once.
  node.defects.network = 1;
  node.say(message);
  await node.clock.advance(500);
  expect(node.session.lost?.aborted).toBe(false);
});
