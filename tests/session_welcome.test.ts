/**
 * @module Whom a node takes for its master (point 3): a network of addresses at which masters, relays and strangers answer as a
 * test has it, and one node among them.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { signTerm, signWelcome } from "../src/cluster_key.ts";
import { silentLog } from "../src/log.ts";
import type { Assignments, Hello, MasterMessage, NodeMessage, Peer, PeerInfo, Welcome } from "../src/model.ts";
import { RESTORE_STEP, type TermProof } from "../src/model_term.ts";
import { Session } from "../src/session.ts";
import { faultOf } from "../src/session_welcome.ts";
import { signer } from "./cluster_fixture.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

const KEY = signer(1);
const FOREIGN = signer(2);
const MASTER = { node_id: "m", address: "10.0.0.1:9000" };
const STRANGER = { node_id: "x", address: "10.0.0.66:9000" };
const SELF = { node_id: "n", underlay: "10.0.0.2", subnets: ["10.213.1.0/24"] };
const UNREADY = { state: "unready", reason: "" } as const;

/** What a machine at an address says: whom it takes for the master, and its answers to a hello. */
type Machine = {
  master?: Peer;
  onHello?: (hello: Hello) => unknown[];
  /** The node has not been told of it. */
  isUnknown?: boolean;
};

type NodeOptions = { pin?: string; isMember?: boolean; seenTerm?: number; master?: Peer };

/** A node, and all that it did because somebody said so. */
class Node {
  readonly clock = new VirtualClock();
  readonly machines = new Map<string, Machine>();
  /** Names of what it was made to do, with the newest welcome that it followed. */
  readonly done: string[] = [];
  readonly hellos: Hello[] = [];
  welcome: Welcome | undefined;
  clusterKey: string | undefined;
  readonly session: Session;

  constructor({ pin, isMember = true, seenTerm = 0, master }: NodeOptions = {}) {
    this.clusterKey = pin;
    const did = (what: string) => void this.done.push(what);
    this.session = new Session({
      transport: {
        askPeer: async (address) => this.#info(address),
        dial: async (address, handlers) => {
          const machine = this.machines.get(address);
          if (!machine?.onHello) throw new Error(`${address} refused the connection`);
          const close = () => void this.clock.after(0, handlers.onClose);
          const send = (text: string) => {
            const message = JSON.parse(text) as NodeMessage;
            if (message.type === "hello") this.hellos.push(message);
            for (const answer of answersTo(message, machine))
              this.clock.after(1, () => handlers.onMessage(JSON.stringify(answer)));
          };
          return { send, close };
        },
      },
      executor: {
        assign: () => (did("assignments"), "accepted"),
        snapshot: () => ({ allocations: [], removals_done: [] }),
        heartbeat: () => ({ engine: UNREADY, foreign: [] }),
      },
      clock: this.clock,
      random: seededRandom(1),
      log: silentLog,
      hello: () => ({
        ...hello({ nonce: `nonce ${this.hellos.length}` }),
        ...(isMember && { cluster_id: "c" }),
      }),
      trust: () => ({ clusterKey: this.clusterKey, seenTerm }),
      addresses: () => [...this.machines].flatMap(([address, { isUnknown }]) => (isUnknown ? [] : [address])),
      onWelcome: (welcome) => {
        did("welcome");
        this.welcome = welcome;
        this.clusterKey = welcome.cluster_key ?? this.clusterKey;
      },
      onLeft: () => did("left"),
      onPeers: () => did("peers"),
      onNetwork: ({ type }) => did(type),
      onLost: () => {},
      onRefused: () => did("refused"),
    });
    this.session.start(master);
  }

  #info(address: string): PeerInfo {
    const machine = this.machines.get(address);
    if (!machine) throw new Error(`${address} does not answer`);
    const about = { node_id: "?", protocol: 1, version: "0", peers: [], cluster_id: "c" };
    return machine.master ? { ...about, master: machine.master } : about;
  }
}

function answersTo(message: NodeMessage, { onHello }: Machine): unknown[] {
  if (message.type === "heartbeat") return [{ type: "ack", sequence: message.sequence }];
  return message.type === "hello" ? (onHello?.(message) ?? []) : [];
}

function hello(more: Partial<Hello> = {}): Hello {
  return {
    type: "hello",
    protocol: 1,
    node_id: "n",
    instance: "i",
    nonce: "a nonce that was never sent before",
    node_name: "n",
    address: "10.0.0.2:9000",
    labels: [],
    engine: UNREADY,
    version: "0",
    ...more,
  };
}

function unsigned(more: Partial<Welcome> = {}): Welcome {
  const times = { heartbeat_interval_ms: 1_000, node_timeout_ms: 4_000 };
  const who = { cluster_id: "c", node_id: "n", node_name: "n" };
  return { type: "welcome", ...who, term: 7, master: MASTER, peers: [], ...times, ...more };
}

/** What the real master answers. */
function welcomed(to: Hello, more: Partial<Welcome> = {}): Welcome {
  return signWelcome(unsigned(more), { hello: to, signer: KEY });
}

function assigned(term: number): Assignments {
  const order = { term, revision: 1 };
  return { type: "assignments", order, specs: [], allocations: [], removals: [] };
}

function proofOf(term: number, leadership = "l", by = KEY): TermProof {
  return signTerm({ term, leadership }, { cluster_id: "c", signer: by });
}

/** All that a master can ask for but a welcome. */
const ORDERS: MasterMessage[] = [
  assigned(7),
  { type: "peers", peers: [STRANGER] },
  { type: "network", mode: "none", cidr: "10.213.0.0/16", self: SELF, peers: [], networks: [] },
  { type: "directory", full: true, services: [], gone: [] },
  { type: "left" },
  { type: "refused", code: "protocol", message: "go away" },
];

const realMaster: Machine = { master: MASTER, onHello: (to) => [welcomed(to), assigned(7)] };

describe("a node's first welcome", () => {
  test("that is signed is followed, and its key is pinned", async () => {
    const node = new Node({ isMember: false });
    node.machines.set(MASTER.address, realMaster);
    await node.clock.advance(1_000);
    expect(node.done).toEqual(["welcome", "assignments"]);
    expect(node.clusterKey).toBe(KEY.publicKey);
    expect(node.session.master).toEqual(MASTER);
  });

  test("from a master of an earlier version is followed without a key", async () => {
    const node = new Node();
    node.machines.set(MASTER.address, { master: MASTER, onHello: () => [unsigned(), assigned(7)] });
    await node.clock.advance(1_000);
    expect(node.done).toEqual(["welcome", "assignments"]);
    expect(node.clusterKey).toBeUndefined();
  });

  test("may be of any term: the cluster may have been restored more often than a member could have missed", () => {
    const fresh = hello();
    const facts = { trust: { clusterKey: undefined, seenTerm: 0 }, dialled: MASTER.address };
    for (const term of [1, 257 * RESTORE_STEP, Number.MAX_SAFE_INTEGER]) {
      const welcome = welcomed(fresh, { term, term_proof: proofOf(term) });
      expect(faultOf(welcome, { hello: fresh, ...facts })).toBeUndefined();
    }
  });
});

describe("a node that has pinned its cluster's key follows no welcome", () => {
  const trust = { clusterKey: KEY.publicKey, seenTerm: 7, seenLeadership: "l" };
  const facts = { trust, dialled: MASTER.address };
  const mine = hello({ cluster_id: "c" });
  const cases: [string, Welcome, RegExp][] = [
    [
      "without a signature (the master is older)",
      unsigned(),
      /does not sign its welcome.*cluster_key from its node\.json/,
    ],
    ["with half a signature", { ...unsigned(), cluster_key: KEY.publicKey }, /signature is not right/],
    ["signed by another key", signWelcome(unsigned(), { hello: mine, signer: FOREIGN }), /another key/],
    [
      "signed by another key under the cluster's name",
      { ...signWelcome(unsigned(), { hello: mine, signer: FOREIGN }), cluster_key: KEY.publicKey },
      /signature is not right/,
    ],
    [
      "that was an answer to an earlier hello",
      welcomed(hello({ nonce: "an earlier nonce" })),
      /signature is not right/,
    ],
    ["that was signed for another process", welcomed(hello({ instance: "j" })), /signature is not right/],
    [
      "that was signed for another node",
      { ...welcomed(mine, { node_id: "o" }), node_id: "n" },
      /signature is not right/,
    ],
    ["of another node", welcomed(mine, { node_id: "o" }), /welcomes node o, this is n/],
    ["of another cluster", welcomed(mine, { cluster_id: "d" }), /is of cluster d/],
    [
      "of a master at another address",
      welcomed(mine, { master: STRANGER }),
      /passes on what the master at 10\.0\.0\.66/,
    ],
    [
      "whose address was changed on the way",
      { ...welcomed(mine, { master: STRANGER }), master: MASTER },
      /signature is not right/,
    ],
    ["whose term was raised on the way", { ...welcomed(mine), term: 999 }, /signature is not right/],
    ["whose term jumps by more than 2^40", welcomed(mine, { term: 8 + 2 ** 40 }), /too far/],
    [
      "of an older term than it has seen (point 10)",
      welcomed(mine, { term: 6 }),
      /is at term 6, older than term 7 that this node has seen.*cacophony --restored/,
    ],
    [
      "of another leadership of the term that it has seen (point 3)",
      welcomed(mine, { term_proof: proofOf(7, "other") }),
      /has begun term 7, which another master has begun, too.*cacophony --restored/,
    ],
    [
      "with a proof of another term",
      welcomed(mine, { term: 9, term_proof: proofOf(8) }),
      /proof of its term that is not/,
    ],
    [
      "with a proof that another key signed",
      welcomed(mine, { term: 9, term_proof: proofOf(9, "l", FOREIGN) }),
      /proof of its term that is not right/,
    ],
  ];
  test.each(cases)("%s", (_, welcome, reason) => {
    expect(faultOf(welcome, { hello: mine, ...facts })?.reason).toMatch(reason);
  });

  test("but a right one, also of a term that is 2^40 newer", () => {
    for (const term of [7, 8, 7 + 2 ** 40])
      for (const more of [{ term }, { term, term_proof: proofOf(term) }])
        expect(faultOf(welcomed(mine, more), { hello: mine, ...facts })).toBeUndefined();
  });

  test("of which any signed part was changed", () => {
    const text = fc.string({ unit: "binary" });
    const change = fc.oneof(
      fc.record({ term: fc.maxSafeNat() }),
      fc.record({ token: text }),
      fc.record({ master: fc.record({ node_id: text, address: fc.constant(MASTER.address) }) }),
      fc.record({ signature: text }),
      fc.record({ cluster_key: text }),
    );
    const right = welcomed(mine, { token: "t" });
    fc.assert(
      fc.property(change, (changed) => {
        const welcome = { ...right, ...changed };
        fc.pre(!Bun.deepEquals(welcome, right));
        return faultOf(welcome, { hello: mine, ...facts }) !== undefined;
      }),
    );
  });

  test.each([1.5, -1, 2 ** 53, 1e300, "7", null])("whose term is %p, and no order of one", async (term) => {
    const node = new Node({ pin: KEY.publicKey, seenTerm: Number.MAX_SAFE_INTEGER - 10 });
    const wrong = { ...unsigned(), term: term as number };
    node.machines.set(MASTER.address, {
      master: MASTER,
      onHello: (to) => [signWelcome(wrong, { hello: to, signer: KEY }), assigned(7)],
    });
    await node.clock.advance(10_000);
    expect(node.done).toEqual([]);
  });
});

describe("who has not proved to be the master", () => {
  test.each(ORDERS.map((order) => [order.type, order] as const))("is not obeyed: %s", async (_, order) => {
    for (const answers of [[order], [{ ...unsigned(), term: 999 }, order]]) {
      const node = new Node({ pin: KEY.publicKey });
      node.machines.set(STRANGER.address, { master: STRANGER, onHello: () => answers });
      await node.clock.advance(10_000);
      expect(node.hellos.length).toBeGreaterThan(2);
      expect(node.done).toEqual([]);
      expect(node.session.master).toBeUndefined();
      expect(node.session.lost).toBeUndefined();
    }
  });

  test("refuses a member in vain, with or without a pin, but a first join as ever", async () => {
    const refused = (options: NodeOptions) => {
      const node = new Node(options);
      node.machines.set(STRANGER.address, { master: STRANGER, onHello: () => ORDERS.slice(-1) });
      return node.clock.advance(1_000).then(() => [...new Set(node.done)]);
    };
    expect(await refused({ pin: KEY.publicKey })).toEqual([]);
    expect(await refused({})).toEqual([]);
    expect(await refused({ isMember: false })).toEqual(["refused"]);
  });

  test("does not keep a node from its master, also where it answers first, under many addresses and for the master's own", async () => {
    const node = new Node({ pin: KEY.publicKey, master: MASTER });
    const rogue = { onHello: () => [{ ...unsigned(), term: 999 }, assigned(999)] };
    for (let n = 60; n < 80; n++) {
      const address = `10.0.0.${n}:9000`;
      node.machines.set(address, { ...rogue, master: { node_id: "x", address } });
    }
    await node.clock.advance(10_000);
    expect(node.done).toEqual([]);
    // The master has another machine now; a stranger has its former address.
    const moved = { node_id: "m", address: "10.0.0.3:9000" };
    node.machines.set(MASTER.address, { ...rogue, master: MASTER });
    node.machines.set("10.0.0.2:9000", { master: moved });
    node.machines.set(moved.address, { onHello: (to) => [welcomed(to, { master: moved }), assigned(7)] });
    await node.clock.advance(120_000);
    expect(node.done.slice(0, 2)).toEqual(["welcome", "assignments"]);
    expect(node.session.master).toEqual(moved);
  });

  test("but passes on what the master says leads to the master itself", async () => {
    const node = new Node({ pin: KEY.publicKey });
    node.machines.set(STRANGER.address, { master: STRANGER, onHello: (to) => [welcomed(to), assigned(7)] });
    await node.clock.advance(2_000);
    expect(node.done).toEqual([]);
    node.machines.set(MASTER.address, { ...realMaster, isUnknown: true });
    await node.clock.advance(10_000);
    expect(node.done).toEqual(["welcome", "assignments"]);
    expect(node.session.master).toEqual(MASTER);
  });

  test.each(["", "10.0.0.1:9000/path", "user@10.0.0.1:9000#", "a b:9000", "10.0.0.1:99999"])(
    "is not dialled at what is not an address: '%s'",
    async (address) => {
      const node = new Node({ pin: KEY.publicKey });
      node.machines.set(STRANGER.address, { master: { node_id: "x", address } });
      node.machines.set(address, { isUnknown: true, onHello: () => [] });
      await node.clock.advance(5_000);
      expect(node.hellos).toEqual([]);
    },
  );

  test("replays a welcome that it recorded in vain: each hello has another nonce", async () => {
    const node = new Node({ pin: KEY.publicKey });
    let recorded: Welcome | undefined;
    node.machines.set(MASTER.address, {
      master: MASTER,
      onHello: (to) => {
        recorded ??= welcomed(to);
        return node.hellos.length === 1 ? [] : [recorded, assigned(7)];
      },
    });
    await node.clock.advance(30_000);
    expect(node.hellos.length).toBeGreaterThan(2);
    expect(new Set(node.hellos.map(({ nonce }) => nonce)).size).toBe(node.hellos.length);
    expect(node.done).toEqual([]);
  });
});

describe("a session", () => {
  test.each([
    ["assignments of another term than its welcome", (): unknown => assigned(8)],
    ["a second welcome", (to: Hello): unknown => welcomed(to)],
  ])("ends with %s", async (_, next) => {
    const node = new Node({ pin: KEY.publicKey });
    node.machines.set(MASTER.address, { master: MASTER, onHello: (to) => [welcomed(to), next(to)] });
    await node.clock.advance(1_500);
    expect(node.hellos.length).toBeGreaterThan(1);
    expect(new Set(node.done)).toEqual(new Set(["welcome"]));
  });

  test.each(ORDERS.map((order) => [order.type, order] as const))(
    "with a master of an older term than the node has seen is none, and its %s is not obeyed (point 10)",
    async (_, order) => {
      const node = new Node({ pin: KEY.publicKey, seenTerm: 5 });
      node.machines.set(MASTER.address, { master: MASTER, onHello: (to) => [welcomed(to, { term: 3 }), order] });
      await node.clock.advance(60_000);
      expect(node.hellos.length).toBeGreaterThan(2);
      expect(node.done).toEqual([]);
      expect(node.session.lost).toBeUndefined();
      expect(node.session.fault).toContain("is at term 3, older than term 5 that this node has seen");
    },
  );

  test.each(ORDERS.filter(({ type }) => type !== "assignments").map((order) => [order.type, order] as const))(
    "ends with what a fenced master says in it, which is not obeyed: %s (point 10)",
    async (_, order) => {
      const node = new Node({ pin: KEY.publicKey, seenTerm: 7 });
      const said = { ...order, term: 6 };
      node.machines.set(MASTER.address, { master: MASTER, onHello: (to) => [welcomed(to), said, ...ORDERS] });
      const ended = () => node.session.lost === undefined && node.done.length > 0;
      await node.clock.until(ended, { limitMs: 1_500 });
      expect(node.session.fault).toContain("is of term 6, older than term 7");
      await node.clock.advance(1_500);
      expect(node.hellos.length).toBeGreaterThan(1);
      expect(new Set(node.done)).toEqual(new Set(["welcome"]));
    },
  );

  test("that has been proved obeys all that the master says", async () => {
    const node = new Node({ pin: KEY.publicKey });
    node.machines.set(MASTER.address, { master: MASTER, onHello: (to) => [welcomed(to, { token: "t" }), ...ORDERS] });
    await node.clock.advance(500);
    expect(node.done).toEqual(["welcome", ...ORDERS.map(({ type }) => type)]);
    expect(node.session.token).toBe("t");
  });
});
