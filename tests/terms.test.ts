/**
 * @module Terms (points 3 and 10): a store that was set back under its nodes, a restored one, two masters of one cluster, and words of
 * a master that is no longer the newest. The parts are real: the store, the master's side in virtual time, the node's session.
 */
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createApi } from "../src/api.ts";
import { isProofOf, signTerm } from "../src/cluster_key.ts";
import { identityIn } from "../src/data_dir.ts";
import { silentLog } from "../src/log.ts";
import { Membership } from "../src/membership.ts";
import { type Hello, type MasterMessage, PROTOCOL_VERSION, type Welcome } from "../src/model.ts";
import { behindText, isBehind, MAX_TERM_STEP, RESTORE_STEP, type TermProof } from "../src/model_term.ts";
import { Scheduler } from "../src/scheduler.ts";
import type { StartFacts } from "../src/scheduler_cluster.ts";
import { PROTOCOLS } from "../src/model_protocol.ts";
import { termFault } from "../src/session_terms.ts";

import { openSqliteStore, type Store } from "../src/store.ts";
import { seeded, signer, unusedSealer, welcoming } from "./cluster_fixture.ts";
import { NodeProcesses } from "./node_process.ts";
import { VirtualClock } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

const root = mkdtempSync(join(tmpdir(), "cacophony-terms-"));
afterAll(() => rmSync(root, { recursive: true }));
const newPath = () => join(mkdtempSync(join(root, "store-")), "cluster.db");

/** After this a connection that says nothing is closed; the timers of those that were closed before go off in vain. */
const HELLO_TIMEOUT_MS = 5_000;
const CLUSTER = { cluster_id: "c", created_at: 0, network_mode: "none", network_cidr: "10.213.0.0/16" } as const;
const proofOf = (term: number, leadership: string, { cluster_id = "c", key = 1 } = {}): TermProof =>
  signTerm({ term, leadership }, { cluster_id, signer: signer(key) });

/** The master's side of a process: it may be started on a copy of another's store. */
class Master {
  /** Moments at which it did something of its own accord. */
  instants = 0;
  readonly clock = new VirtualClock(undefined, { onInstant: () => void this.instants++ });
  readonly scheduler: Scheduler;
  readonly membership: Membership;
  /** What it was shown that is newer. */
  readonly shown: TermProof[] = [];
  static #processes = 0;

  constructor(path: string, disk: (store: Store) => Store) {
    const process = ++Master.#processes;
    let ids = 0;
    const common = { clock: this.clock, log: silentLog };
    this.scheduler = new Scheduler({
      ...common,
      store: disk(openSqliteStore(path)),
      random: seeded(1),
      sealer: unusedSealer,
      newId: () => `id-${process}-${++ids}`,
    });
    this.membership = new Membership({
      ...common,
      scheduler: this.scheduler,
      self: { node_id: "master", address: "10.0.0.1:9000" },
      heartbeatIntervalMs: 1_000,
      nodeTimeoutMs: 4_000,
      onNewerTerm: (proof) => this.shown.push(proof),
      ...welcoming(),
    });
  }
  static async start(
    path = newPath(),
    { disk = (store) => store, ...facts }: StartFacts & { disk?: (store: Store) => Store } = {},
  ): Promise<Master> {
    const master = new Master(path, disk);
    await master.scheduler.start(CLUSTER, facts);
    master.membership.start();
    return master;
  }

  get term(): number {
    return this.scheduler.term;
  }

  get fault(): string | undefined {
    return this.scheduler.leadership.fault;
  }

  /** A member's hello; what it heard until now. */
  async hello(
    nodeId: string,
    more: Partial<Hello> = {},
    { isEarlier = false } = {},
  ): Promise<{ heard: MasterMessage[]; isClosed: boolean }> {
    const end = { heard: [] as MasterMessage[], isClosed: false };
    const handlers = this.membership.accept({
      send: (text) => void end.heard.push(JSON.parse(text)),
      close: () => void (end.isClosed = true),
    });
    const said: Hello = {
      type: "hello",
      protocol: PROTOCOL_VERSION,
      ...(!isEarlier && { protocols: PROTOCOLS }),
      cluster_id: "c",
      node_id: nodeId,
      instance: nodeId,
      nonce: "nonce",
      node_name: nodeId,
      address: "10.0.0.2:9000",
      labels: [],
      engine: { state: "unready", reason: "", engine_id: nodeId },
      version: "0",
      ...more,
    };
    handlers.onMessage(JSON.stringify(said));
    await this.clock.advance(100);
    return end;
  }

  /** What a node keeps of this master. */
  async proof(): Promise<TermProof> {
    const { heard } = await this.hello("keeper");
    const { term_proof: proof } = heard[0] as Welcome;
    if (!proof) throw new Error("the welcome proves no term");
    return proof;
  }

  async stop(): Promise<void> {
    this.membership.stop();
    await this.scheduler.stop();
  }
}

describe("point 3: which leadership is newer", () => {
  test("is decided by the term, and in one term no two can be told in order", () => {
    expect(isBehind({ term: 3 }, { term: 4 })).toBe(true);
    expect(isBehind({ term: 5, leadership: "a" }, { term: 4, leadership: "b" })).toBe(false);
    expect(isBehind({ term: 4, leadership: "a" }, { term: 4, leadership: "a" })).toBe(false);
    expect(isBehind({ term: 4, leadership: "a" }, { term: 4, leadership: "b" })).toBe(true);
    // One of an earlier version says no id.
    expect(isBehind({ term: 4 }, { term: 4, leadership: "b" })).toBe(false);
  });

  test("and a message about it says both terms and what to type", () => {
    const text = behindText({ term: 3 }, { seen: { term: 9 }, witness: "node a" });
    expect(text).toStartWith("node a has proof of term 9, but this master's state is at term 3");
    expect(text).toContain("start it once with 'cacophony --restored'");
  });

  test("a proof holds for its cluster, its key and its term only", () => {
    const proof = proofOf(7, "a");
    const holds = (one: TermProof, cluster_id = "c") => isProofOf(signer(1).publicKey, { cluster_id, proof: one });
    expect(holds(proof)).toBe(true);
    expect(holds(proof, "d")).toBe(false);
    expect(holds({ ...proof, term: 8 })).toBe(false);
    expect(holds({ ...proof, leadership: "b" })).toBe(false);
    expect(holds(proofOf(7, "a", { key: 2 }))).toBe(false);
    expect(holds({ ...proof, signature: "" })).toBe(false);
  });
});

describe("point 3: a store", () => {
  test("adds 1 for a start, and 2^32 above all that is known for a restore", async () => {
    const store = openSqliteStore(newPath());
    expect(await store.beginTerm({ leadership: "a" })).toBe(1);
    expect(await store.beginTerm({ leadership: "b", seen: { term: 1, leadership: "a" } })).toBe(2);
    expect(await store.beginTerm({ leadership: "c", seen: { term: 50 }, restored: true })).toBe(50 + RESTORE_STEP);
    expect(await store.beginTerm({ leadership: "d" })).toBe(51 + RESTORE_STEP);
    expect(await store.beginTerm({ leadership: "e", restored: true })).toBe(51 + 2 * RESTORE_STEP);
    await store.close();
  });

  test("begins nothing where a newer leadership was seen, and its term stays, however often it is tried", async () => {
    const store = openSqliteStore(newPath());
    await store.beginTerm({ leadership: "a" });
    for (const seen of [{ term: 2 }, { term: 2, leadership: "b" }, { term: 1, leadership: "b" }])
      for (let attempt = 0; attempt < 3; attempt++)
        expect(store.beginTerm({ leadership: "c", seen })).rejects.toMatchObject({
          code: "fenced",
          last: { term: 1, leadership: "a" },
        });
    expect(await store.beginTerm({ leadership: "c", seen: { term: 1, leadership: "a" } })).toBe(2);
    await store.close();
  });

  test("has room for a million restores, and none for a term that JSON can't hold", async () => {
    const path = newPath();
    await openSqliteStore(path).close();
    const at = (term: number) => {
      const db = new Database(path);
      db.run("UPDATE leadership SET term = ?1", [term]);
      db.close();
    };
    at(1_000_000 * RESTORE_STEP);
    const store = openSqliteStore(path);
    expect(await store.beginTerm({ restored: true })).toBe(1_000_001 * RESTORE_STEP);
    at(Number.MAX_SAFE_INTEGER);
    expect(store.beginTerm()).rejects.toMatchObject({ code: "failed" });
    await store.close();
  });

  test("takes one of 256 restores in a row for near enough where a node was away meanwhile", () => {
    expect(MAX_TERM_STEP / RESTORE_STEP).toBe(256);
  });
});

describe("point 3: a master whose store was set back under its nodes", () => {
  test("stops leading when a node proves a newer term: sessions end, nothing is written or planned, reads go on", async () => {
    const path = newPath();
    const master = await Master.start(path);
    const member = await master.hello("member");
    expect(member.heard[0]?.type).toBe("welcome");
    const witness = await master.hello("witness", { last_term: proofOf(9, "x") });
    expect(witness.heard).toEqual([
      { type: "refused", code: "not_leading", term: 1, message: expect.stringContaining("has proof of term 9, but") },
    ]);
    expect([witness.isClosed, member.isClosed]).toEqual([true, true]);
    expect(master.fault).toStartWith("node witness (witness) at 10.0.0.2:9000 has proof of term 9");
    expect(master.fault).toContain("cacophony --restored");
    // What it was shown is for its node to keep.
    expect(master.shown).toEqual([proofOf(9, "x")]);
    // Also who proves nothing is not taken in any more.
    const late = await master.hello("late");
    expect(late.heard).toMatchObject([{ type: "refused", code: "not_leading" }]);
    const heard = member.heard.length;
    expect(master.scheduler.change(() => [{ op: "delete", kind: "home", key: "none" }])).rejects.toMatchObject({
      code: "not_leading",
    });
    await master.clock.advance(HELLO_TIMEOUT_MS);
    const { instants } = master;
    await master.clock.advance(120_000);
    expect([member.heard.length, master.instants]).toEqual([heard, instants]);
    expect([...master.scheduler.state.nodes.keys()]).toEqual(["member"]);
    expect(master.scheduler.state.views.get("member")).toMatchObject({ connected: false, state: "unready" });
    await master.stop();
  });

  test("answers reads and refuses writes with 503 `not_leading` and what to type, as its status does", async () => {
    const master = await Master.start();
    const app = createApi({
      local: {
        ...{ nodeId: "m", version: "0", faults: () => [], master: () => ({ address: undefined, lost: undefined }) },
        peerInfo: () => ({ node_id: "m", protocol: 3, version: "0", peers: [] }),
      },
      ...{ scheduler: () => master.scheduler, dataDir: "/", log: silentLog },
    });
    const call = async (method: string, path: string) => {
      const body = method === "PUT" ? { body: "services: {web: {image: busybox}}" } : {};
      const answer = await app.request(path, { method, headers: { host: "localhost" }, ...body });
      return { status: answer.status, body: (await answer.json()) as { error?: { code: string; message: string } } };
    };
    expect(await call("PUT", "/cluster/job/before")).toMatchObject({ status: 201 });
    expect((await call("GET", "/cluster/status")).body).toMatchObject({ term: 1, not_leading: null });
    master.scheduler.leadership.end("node n has proof of term 9; type 'cacophony --restored'");
    for (const [method, path] of [
      ["PUT", "/cluster/job/after"],
      ["PUT", "/cluster/job/before?dry_run=true"],
      ["DELETE", "/cluster/job/before"],
      ["POST", "/cluster/rebalance"],
      ["POST", "/cluster/reschedule"],
    ] as const) {
      const { status, body } = await call(method, path);
      expect([path, status, body.error?.code]).toEqual([path, 503, "not_leading"]);
      expect(body.error?.message).toContain("has proof of term 9; type 'cacophony --restored'");
    }
    expect((await call("GET", "/cluster/job/before")).status).toBe(200);
    expect((await call("GET", "/cluster/node")).status).toBe(200);
    expect((await call("GET", "/cluster/status")).body).toMatchObject({
      not_leading: expect.stringContaining("term 9"),
    });
    await master.stop();
  });

  /** A master whose disk writes nothing from `hold` until `release`. */
  async function slowMaster() {
    let gate = Promise.withResolvers<void>();
    gate.resolve();
    const disk = (store: Store): Store => ({
      beginTerm: (wanted) => store.beginTerm(wanted),
      load: () => store.load(),
      close: () => store.close(),
      commit: async (term, changes) => {
        await gate.promise;
        return store.commit(term, changes);
      },
    });
    const master = await Master.start(newPath(), { disk });
    return { master, hold: () => void (gate = Promise.withResolvers()), release: () => gate.resolve() };
  }

  test("takes in nobody whose record was being written when it ended", async () => {
    const { master, hold, release } = await slowMaster();
    hold();
    const member = await master.hello("member");
    master.scheduler.leadership.end("node n has proof of term 9");
    release();
    await master.clock.advance(100);
    expect(member).toEqual({ heard: [], isClosed: true });
    expect(master.scheduler.state.views.get("member")?.connected).not.toBe(true);
    await master.stop();
  });

  test("writes nothing more of a change of several commits that was under way when it ended", async () => {
    const { master, hold, release } = await slowMaster();
    hold();
    const wanted = { document: "{}", services: [], chunks: new Map([["a".repeat(64), new Uint8Array(1)]]) };
    const put = master.scheduler.putJob("job", { wanted, preconditions: {} }).then(
      () => "stored",
      ({ code }) => code as string,
    );
    await master.clock.advance(20);
    master.scheduler.leadership.end("node n has proof of term 9");
    release();
    expect([await put, master.scheduler.state.liveJob("job")]).toEqual(["not_leading", undefined]);
    await master.stop();
  });

  test("ends no process of an earlier version, which takes a refusal that it does not know for final", async () => {
    const master = await Master.start();
    master.scheduler.leadership.end("node n has proof of term 9");
    const old = await master.hello("old", {}, { isEarlier: true });
    expect(old).toEqual({ heard: [], isClosed: true });
    expect((await master.hello("new")).heard).toMatchObject([{ type: "refused", code: "not_leading" }]);
    await master.stop();
  });

  test("is not stopped by what proves nothing: a forged proof, one of another cluster, its own, an older one", async () => {
    const path = newPath();
    const first = await Master.start(path);
    const older = await first.proof();
    await first.stop();
    const master = await Master.start(path, { seenTerm: 1, seenLeadership: older.leadership });
    const own = await master.proof();
    expect([older.term, own.term]).toEqual([1, 2]);
    const proofs = [
      older,
      own,
      proofOf(9, "x", { key: 2 }),
      proofOf(9, "x", { cluster_id: "d" }),
      { ...proofOf(3, "x"), term: 9 },
    ];
    for (const [n, last_term] of proofs.entries())
      expect((await master.hello(`n${n}`, { last_term })).heard[0]?.type).toBe("welcome");
    // One that has joined nothing yet is of no cluster, whatever it shows.
    const { cluster_id: _, ...rest } = { cluster_id: undefined, last_term: proofOf(9, "x") };
    expect((await master.hello("new", { ...rest, cluster_id: "d" })).heard[0]).toMatchObject({ code: "other_cluster" });
    expect(master.fault).toBeUndefined();
    await master.stop();
  });

  test("does not begin where its own node.json has seen a newer term, however often it starts, until --restored", async () => {
    const path = newPath();
    const first = await Master.start(path);
    await first.scheduler.putJob("job", {
      wanted: { document: "{}", services: [] },
      preconditions: {},
    });
    await first.stop();
    for (let start = 0; start < 10; start++) {
      const behind = await Master.start(path, { seenTerm: 5, written: true });
      expect(behind.fault).toStartWith(
        "this machine's node.json has proof of term 5, but this master's state is at term 1",
      );
      expect(behind.term).toBe(1);
      expect(behind.scheduler.state.liveJob("job")?.version).toBe(1);
      expect((await behind.hello("n")).heard).toMatchObject([{ type: "refused", code: "not_leading" }]);
      await behind.clock.advance(60_000);
      await behind.stop();
    }
    const restored = await Master.start(path, { seenTerm: 5, written: true, restored: true });
    expect([restored.term, restored.fault]).toEqual([5 + RESTORE_STEP, undefined]);
    expect((await restored.hello("n", { last_term: proofOf(5, "x") })).heard[0]?.type).toBe("welcome");
    await restored.stop();
  });

  test("stops the same way when the store itself refuses a commit, and its process goes on", async () => {
    const path = newPath();
    const old = await Master.start(path);
    const newer = await Master.start(path);
    const ended = old.hello("n");
    await ended;
    await old.scheduler.change(() => [{ op: "delete", kind: "home", key: "none" }]).catch(() => {});
    expect(old.fault).toContain("another master has taken over this cluster's state");
    expect((await old.hello("late")).heard).toMatchObject([{ type: "refused", code: "not_leading" }]);
    expect(newer.fault).toBeUndefined();
    await old.stop();
    await newer.stop();
  });
});

describe("point 3: two masters of one cluster", () => {
  /** Two of a machine that was cloned, each with a node of its own. */
  async function clones() {
    const path = newPath();
    await (await Master.start(path)).stop();
    const copy = newPath();
    copyFileSync(path, copy);
    return { paths: [path, copy], both: [await Master.start(path), await Master.start(copy)] as const };
  }

  test("never outbid each other: a node's word adds nothing to a term", async () => {
    const { paths, both } = await clones();
    const [one, other] = both;
    const [proof, itsProof] = [await one.proof(), await other.proof()];
    expect([proof.term, itsProof.term]).toEqual([2, 2]);
    expect(proof.leadership).not.toBe(itsProof.leadership);
    // Nodes of each come to the other: neither is newer, so neither goes on as if it were alone.
    await other.hello("n", { last_term: proof });
    expect(other.fault).toContain("that term 2 was begun by another master, too");
    expect(one.fault).toBeUndefined();
    await one.stop();
    await other.stop();
    // What its node kept holds over a start: it does not go one higher by being started again.
    const again = await Master.start(paths[1], { seenTerm: proof.term, seenLeadership: proof.leadership });
    expect([again.term, again.fault === undefined]).toEqual([2, false]);
    await again.stop();
    const goesOn = await Master.start(paths[0], { seenTerm: proof.term, seenLeadership: proof.leadership });
    expect([goesOn.term, goesOn.fault]).toEqual([3, undefined]);
    await goesOn.stop();
  });

  test("of which one was restored on purpose: the other stops as soon as a node has seen that", async () => {
    const { paths, both } = await clones();
    const [one, other] = both;
    await one.stop();
    const restored = await Master.start(paths[0], { seenTerm: 2, restored: true });
    await other.hello("n", { last_term: await restored.proof() });
    expect(other.fault).toContain(`has proof of term ${2 + RESTORE_STEP}`);
    await other.stop();
    await restored.stop();
  });
});

describe("point 10: a message of an older term", () => {
  const self = { node_id: "n", underlay: "10.0.0.2", subnets: ["10.213.1.0/24"] };
  const messages: Exclude<MasterMessage, { type: "assignments" }>[] = [
    { type: "ack", sequence: 1 },
    { type: "directory", full: true, services: [], gone: [] },
    { type: "network", mode: "none", cidr: "10.213.0.0/16", self, peers: [], networks: [] },
    { type: "peers", peers: [] },
    { type: "left" },
    { type: "refused", code: "protocol", message: "" },
  ];

  test.each(messages.map((message) => [message.type, message] as const))("is refused: %s", (type, message) => {
    const terms = { session: 5, seen: 5 };
    expect(termFault({ ...message, term: 3 }, terms)).toBe(
      `'${type}' is of term 3, older than term 5 that this node has seen`,
    );
    expect(termFault({ ...message, term: 6 }, terms)).toBe(`'${type}' is of term 6, the welcome was of term 5`);
    expect(termFault({ ...message, term: 5 }, terms)).toBeUndefined();
    // A master of an earlier version says no term: its welcome's counts.
    expect(termFault(message, terms)).toBeUndefined();
    expect(termFault(message, { session: 3, seen: 5 })).toContain("older than term 5");
  });

  test("is told from a present one in all that a master says: every message carries its term", async () => {
    const path = newPath();
    const first = await Master.start(path);
    await first.stop();
    const master = await Master.start(path);
    const { heard } = await master.hello("n");
    await master.hello("m");
    await master.clock.advance(1_000);
    expect(new Set(heard.map(({ type }) => type)).size).toBeGreaterThanOrEqual(4);
    const termOf = (message: MasterMessage) => (message.type === "assignments" ? message.order.term : message.term);
    expect(heard.map((message) => [message.type, termOf(message)])).toEqual(heard.map(({ type }) => [type, 2]));
    await master.stop();
  });
});

describe("point 3: a process", () => {
  const processes = new NodeProcesses();
  afterAll(() => processes.stop());

  test("whose store is put back to an older copy lives, says what to type in its log, /readyz and status, and leads when that is typed", async () => {
    const dataDir = processes.newDir();
    const options = ["bootstrap", "--network", "none"];
    const ask = async (port: number, path: string, init: RequestInit = {}) => {
      const answer = await fetch(`http://127.0.0.1:${port}${path}`, { ...init, proxy: false, keepalive: false });
      return { status: answer.status, text: await answer.text() };
    };
    const put = { method: "PUT", body: "services: {web: {image: busybox}}" };
    const session = (port: number) =>
      waitUntil("node.json to know the term", async () => ask(port, "/readyz"), {
        until: ({ text }) => !text.includes("no session"),
        timeoutMs: 30_000,
      });

    let node = await processes.start(options, { dataDir });
    expect((await ask(node.port, "/cluster/job/kept", put)).status).toBe(201);
    await session(node.port);
    await node.process.stop();
    for (const name of ["cluster.db", "cluster.db-wal"])
      if (existsSync(join(dataDir, name))) copyFileSync(join(dataDir, name), join(root, name));
    node = await processes.start(options, { dataDir });
    await session(node.port);
    expect((await ask(node.port, "/cluster/job/lost", put)).status).toBe(201);
    await node.process.stop();
    expect(identityIn(dataDir)).toMatchObject({ seen_term: 2, last_term: { term: 2 } });

    for (const name of ["cluster.db", "cluster.db-wal", "cluster.db-shm"]) rmSync(join(dataDir, name), { force: true });
    for (const name of ["cluster.db", "cluster.db-wal"])
      if (existsSync(join(root, name))) copyFileSync(join(root, name), join(dataDir, name));
    for (let start = 0; start < 2; start++) {
      node = await processes.start(options, { dataDir });
      const told = "has proof of term 2, but this master's state is at term 1";
      const readyz = await ask(node.port, "/readyz");
      expect([readyz.status, JSON.parse(readyz.text).reasons]).toEqual([
        503,
        expect.arrayContaining([expect.stringMatching(/^this master does not lead: this machine's node.json/)]),
      ]);
      // Once: that it has no session with itself says nothing more.
      expect(readyz.text.split(told)).toHaveLength(2);
      for (const text of [readyz.text, (await ask(node.port, "/cluster/status")).text, node.process.logs()]) {
        expect(text).toContain(told);
        expect(text).toContain("start it once with 'cacophony --restored'");
      }
      expect((await ask(node.port, "/cluster/job/kept")).status).toBe(200);
      const refused = await ask(node.port, "/cluster/job/new", put);
      expect([refused.status, JSON.parse(refused.text).error.code]).toEqual([503, "not_leading"]);
      expect(node.process.running).toBe(true);
      await node.process.stop();
    }

    node = await processes.start(["--restored"], { dataDir });
    await session(node.port);
    expect(JSON.parse((await ask(node.port, "/cluster/status")).text)).toMatchObject({
      term: 2 + RESTORE_STEP,
      not_leading: null,
    });
    expect((await ask(node.port, "/cluster/job/new", put)).status).toBe(201);
    await node.process.stop();
    expect(JSON.parse(readFileSync(join(dataDir, "node.json"), "utf8"))).toMatchObject({
      seen_term: 2 + RESTORE_STEP,
    });
    // From now on it starts as ever.
    node = await processes.start([], { dataDir });
    await session(node.port);
    expect(JSON.parse((await ask(node.port, "/cluster/status")).text)).toMatchObject({ term: 3 + RESTORE_STEP });
    await node.process.stop();
  }, 120_000);

  test.each([
    [["join", "127.0.0.1:1", "--restored"], /--restored goes with the start of a master, not with join/],
    [["leave", "--restored"], /--restored goes with the start of a master, not with leave/],
    [
      ["bootstrap", "--restored"],
      /there is no master in \S+ yet: put node.json, cluster.db and cluster.key of one backup there/,
    ],
  ])("is not started with %j", async (args, fault) => {
    const dataDir = processes.newDir();
    const process = processes.run([...args, "--data-dir", dataDir]);
    expect(await process.exited).toBe(2);
    expect(process.logs()).toMatch(fault);
    // Else the backup that is put there later would be of another cluster than the node.
    expect(identityIn(dataDir)).toBeUndefined();
  });
});
