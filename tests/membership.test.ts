/** @module Membership with a node at the other end of a channel: what the simulation found, as situations of their own. */
import { expect, test } from "bun:test";
import { silentLog } from "../src/log.ts";
import { Membership } from "../src/membership.ts";
import type { AllocationStatus, Assignments, Hello, MasterMessage, NodeMessage, StatusReport } from "../src/model.ts";
import { PROTOCOL_VERSION } from "../src/model.ts";
import { Scheduler } from "../src/scheduler.ts";
import { openSqliteStore, type Store, StoreError } from "../src/store.ts";
import { idleMachine, rules, seeded, spec, unusedSealer, welcoming } from "./cluster_fixture.ts";
import { VirtualClock } from "./virtual_clock.ts";

const PLATFORM = { os: "linux", arch: "amd64" };
const SELF = { node_id: "master", address: "10.0.0.1:9000" };

/** A master without a node of its own, and a disk that may be full. */
class Master {
  readonly clock = new VirtualClock();
  readonly scheduler: Scheduler;
  readonly membership: Membership;
  isDiskFull = false;
  #ids = 0;

  constructor() {
    const common = { clock: this.clock, log: silentLog };
    this.scheduler = new Scheduler({
      ...common,
      store: this.#disk(openSqliteStore(":memory:")),
      random: seeded(1),
      sealer: unusedSealer,
      newId: () => `id${++this.#ids}`,
      onFenced: () => {},
    });
    this.membership = new Membership({
      ...common,
      scheduler: this.scheduler,
      self: SELF,
      heartbeatIntervalMs: 2_000,
      nodeTimeoutMs: 15_000,
      ...welcoming(),
    });
  }

  async start(): Promise<this> {
    await this.scheduler.start({
      cluster_id: "c",
      created_at: 0,
      network_mode: "vxlan",
      network_cidr: "10.213.0.0/16",
    });
    this.membership.start();
    return this;
  }

  #disk(store: Store): Store {
    return {
      beginTerm: (seen) => store.beginTerm(seen),
      load: () => store.load(),
      commit: async (term, changes) => {
        if (this.isDiskFull) throw new StoreError("failed", "the disk is full");
        await store.commit(term, changes);
      },
      close: () => store.close(),
    };
  }
}

/** A node that says what the test tells it to. */
class Peer {
  readonly heard: MasterMessage[] = [];
  isClosed = false;
  readonly #handlers: ReturnType<Membership["accept"]>;

  constructor({ membership }: Master, remote?: string) {
    const close = () => void (this.isClosed = true);
    this.#handlers = membership.accept({ remote, send: (text) => this.heard.push(JSON.parse(text)), close });
  }

  hangUp(): void {
    this.#handlers.onClose();
  }

  say(message: NodeMessage): void {
    this.#handlers.onMessage(JSON.stringify(message));
  }

  hello(nodeId: string, { instance = "one", nonce }: { instance?: string; nonce?: string } = {}): void {
    const engine = {
      state: "ready",
      engine_id: nodeId,
      docker_version: "20",
      api_version: "1.41",
      platform: PLATFORM,
    } as const;
    const hello: Hello = {
      type: "hello",
      protocol: PROTOCOL_VERSION,
      node_id: nodeId,
      instance,
      ...(nonce !== undefined && { nonce }),
      node_name: nodeId,
      address: "10.0.0.2:9000",
      labels: [],
      engine,
      version: "0",
    };
    this.say(hello);
  }

  /** A heartbeat, and all there is to report: `running` allocations and `removals_done`. */
  report({
    running = [],
    no_secrets,
    ...more
  }: { running?: string[]; no_secrets?: string } & Partial<StatusReport> = {}): void {
    const engine = {
      state: "ready",
      engine_id: "worker",
      docker_version: "20",
      api_version: "1.41",
      platform: PLATFORM,
    } as const;
    const reading = { engine, resources: idleMachine(), foreign: [], ...(no_secrets && { no_secrets }) };
    this.say({ type: "heartbeat", sequence: 1, ...reading });
    const { order } = this.assignments;
    const allocations: AllocationStatus[] = running.map((allocation_id) => ({
      allocation_id,
      state: "running",
      final: false,
      ports: [],
      restarts: 0,
    }));
    this.say({ type: "status", full: true, applied: order, allocations, gone: [], removals_done: [], ...more });
  }

  /** What its welcome gives it for internal calls. */
  get token(): string | undefined {
    return this.heard.find((message) => message.type === "welcome")?.token;
  }

  /** The newest ones. */
  get assignments(): Assignments {
    const found = this.heard.findLast((message) => message.type === "assignments");
    if (!found) throw new Error("the node got no assignments");
    return found;
  }
}

test("Membership tells a node that comes before the master's own where the master is", async () => {
  const master = await new Master().start();
  const worker = new Peer(master);
  worker.hello("worker");
  await master.clock.advance(10);
  expect(worker.heard.find(({ type }) => type === "welcome")).toMatchObject({ master: SELF });
});

/** A worker that has reported, and what the master takes it for. */
async function withWorker() {
  const master = await new Master().start();
  const worker = new Peer(master);
  worker.hello("worker");
  await master.clock.advance(10);
  worker.report();
  return { master, worker, state: () => master.scheduler.state.views.get("worker")?.state };
}

test("Membership takes a time in which the master itself stood still for nobody's silence", async () => {
  const { master, state } = await withWorker();
  expect(state()).toBe("ready");
  master.clock.stall(60_000);
  await master.clock.advance(1_000);
  expect(state()).not.toBe("down");
  await master.clock.advance(20_000);
  expect(state()).toBe("down");
});

/** For each of several moments between two looks of the master: a worker that has reported just then, after it had done so regularly. */
test.each(Array.from({ length: 12 }, (_, n) => n * 170))(
  "Membership counts its own pause for nothing and silence from the last word on, heard %s ms after a look",
  async (offset) => {
    for (const what of ["paused", "silent"] as const) {
      const { master, worker, state } = await withWorker();
      await master.clock.advance(offset);
      for (let beat = 0; beat < 5; beat++) {
        await master.clock.advance(2_000);
        worker.report();
      }
      if (what === "paused") {
        // None of a pause of the master's is silence of the worker.
        master.clock.stall(60_000);
        await master.clock.advance(15_000 - 510);
        expect(state()).toBe("unready");
        await master.clock.advance(1_100);
      } else {
        // Silence is noticed a quarter of a heartbeat late at the most.
        await master.clock.advance(5_000);
        expect(state()).toBe("ready");
        await master.clock.advance(501);
        expect(state()).toBe("unready");
        await master.clock.advance(15_000 - 5_501);
        expect(state()).toBe("unready");
        await master.clock.advance(501);
      }
      expect(state()).toBe("down");
      master.membership.stop();
      await master.scheduler.stop();
    }
  },
);

test("Membership refuses a second process that claims to be a node, until the first one is silent", async () => {
  const master = await new Master().start();
  const first = new Peer(master);
  first.hello("worker");
  await master.clock.advance(10);
  const second = new Peer(master);
  second.hello("worker", { instance: "two" });
  await master.clock.advance(10);
  expect(second.heard).toMatchObject([{ type: "refused", code: "node_in_use" }]);
  await master.clock.advance(6_000);
  const third = new Peer(master);
  third.hello("worker", { instance: "two" });
  await master.clock.advance(10);
  expect(third.heard[0]?.type).toBe("welcome");
});

test("Membership closes a connection that never says who it is", async () => {
  const master = await new Master().start();
  const silent = new Peer(master);
  await master.clock.advance(6_000);
  expect(silent.isClosed).toBe(true);
});

test("Membership writes down later what a node reported while the store failed", async () => {
  const master = await new Master().start();
  const { scheduler, clock } = master;
  const worker = new Peer(master);
  worker.hello("worker");
  await clock.advance(10);
  worker.report();
  const wanted = { document: "{}", services: [{ service_name: "s", spec: spec(), rules: rules() }] };
  await scheduler.putJob("job", { wanted, preconditions: {} });
  await clock.advance(10);
  const running = worker.assignments.allocations.map(({ allocation_id }) => allocation_id);
  expect(running).toHaveLength(1);
  worker.report({ running });
  await scheduler.deleteJob("job", { volumes: true, preconditions: {} });
  await clock.advance(10);
  expect(worker.assignments.allocations).toEqual([]);
  const [removal] = worker.assignments.removals;

  master.isDiskFull = true;
  worker.report({ removals_done: [removal?.removal_id ?? ""] });
  await clock.advance(1_000);
  expect([scheduler.state.allocations.size, scheduler.state.removals.size]).toEqual([1, 1]);
  master.isDiskFull = false;
  await clock.advance(2_000);
  expect([scheduler.state.allocations.size, scheduler.state.removals.size]).toEqual([0, 0]);
});

test("Membership has it remembered that a container ended for good, and what waited for that starts", async () => {
  const master = await new Master().start();
  const { scheduler, clock } = master;
  const worker = new Peer(master);
  worker.hello("worker");
  await clock.advance(10);
  worker.report();
  const depends_on = [
    { service_name: "migrate", condition: "service_completed_successfully" as const, required: true },
  ];
  const services = [
    { service_name: "web", spec: spec(), rules: rules({ depends_on }) },
    { service_name: "migrate", spec: spec({ tty: true }), rules: rules({ mode: "replicated-job" }) },
  ];
  await scheduler.putJob("job", { wanted: { document: "{}", services }, preconditions: {} });
  await clock.advance(10);
  const [migrate, ...others] = worker.assignments.allocations;
  expect([migrate?.service_name, others]).toEqual(["migrate", []]);

  const status = { allocation_id: migrate?.allocation_id ?? "", final: true, exit_code: 0, ports: [], restarts: 0 };
  worker.report({ allocations: [{ ...status, state: "exited" }] });
  await clock.advance(10);
  const now = new Map(worker.assignments.allocations.map((one) => [one.service_name, one.ended]));
  expect(now).toEqual(
    new Map([
      ["migrate", { exit_code: 0 }],
      ["web", undefined],
    ]),
  );
  expect(scheduler.state.liveJob("job")).toMatchObject({ version: 1, services: [{ released: true }, {}] });
  expect(scheduler.state.nodes.get("worker")?.platform).toEqual(PLATFORM);
});

test("Membership keeps services with secrets from a node that has no place for them, and lets them start once it has", async () => {
  const master = await new Master().start();
  const { scheduler, clock } = master;
  const worker = new Peer(master);
  worker.hello("worker");
  await clock.advance(10);
  worker.report({ no_secrets: "no tmpfs at /run" });
  const secret = { type: "secret", name: "pw", secret_id: "i", target: "/pw", read_only: true, mode: 0o444 } as const;
  const services = [{ service_name: "s", spec: spec({ mounts: [secret] }), rules: rules() }];
  await scheduler.putJob("job", { wanted: { document: "{}", services }, preconditions: {} });
  await clock.advance(10);
  expect(worker.assignments.allocations).toEqual([]);
  expect(scheduler.blockedOf("job/s")).toEqual([
    { slot: 1, reasons: ["1 node: has no place for secrets (no tmpfs at /run)"] },
  ]);
  worker.report();
  await clock.advance(2_000);
  expect(worker.assignments.allocations).toHaveLength(1);
});

test("Membership knows the process that has a node's session from all others", async () => {
  const master = await new Master().start();
  const worker = new Peer(master);
  worker.hello("worker", { nonce: "nonce of the worker" });
  await master.clock.advance(10);
  const caller = { authorization: `Bearer ${worker.token}`, remote: "10.0.0.2" };
  const is = (node_id: string, instance: string) => master.membership.isConnected({ node_id, instance }, caller);
  expect([is("worker", "one"), is("worker", "two"), is("worker", ""), is("other", "one")]).toEqual([
    true,
    false,
    false,
    false,
  ]);
  master.membership.stop();
  expect(is("worker", "one")).toBe(false);
});

test("Membership takes internal calls from nodes in session only, by the token of their welcome (point 14)", async () => {
  const master = await new Master().start();
  const [worker, other] = [new Peer(master, "10.0.0.2"), new Peer(master, "10.0.0.3")];
  worker.hello("worker", { nonce: "nonce of the worker" });
  other.hello("other", { nonce: "nonce of the other" });
  await master.clock.advance(10);
  const is = (authorization: string | undefined, remote = "10.0.0.2") =>
    master.membership.isNode({ authorization, remote });
  const asWorker = { node_id: "worker", instance: "one" };
  const mayAsk = (token: string | undefined) =>
    master.membership.isConnected(asWorker, { authorization: `Bearer ${token}`, remote: "10.0.0.2" });
  expect(worker.token).not.toEqual(other.token);
  expect([is(`Bearer ${worker.token}`), is(`bearer  ${worker.token}`, "10.0.0.9")]).toEqual([true, true]);
  // The address of a node that has a token proves nothing.
  for (const wrong of [undefined, "", "Bearer", "Bearer ", "Bearer x", `${worker.token}`, `Basic ${worker.token}`])
    expect([wrong, is(wrong)]).toEqual([wrong, false]);
  expect([mayAsk(worker.token), mayAsk(other.token)]).toEqual([true, false]);
  const { token } = worker;
  worker.hangUp();
  expect([is(`Bearer ${token}`), is(`Bearer ${other.token}`)]).toEqual([false, true]);
});

test("Membership knows calls of a node of an earlier version by the address of its session (point 14)", async () => {
  const master = await new Master().start();
  const older = new Peer(master, "10.0.0.2");
  const is = (remote: string | undefined) => master.membership.isNode({ authorization: undefined, remote });
  expect(is("10.0.0.2")).toBe(false);
  older.hello("older");
  await master.clock.advance(10);
  expect(older.heard.find(({ type }) => type === "welcome")).not.toContainAnyKeys(["token", "signature"]);
  expect([is("10.0.0.2"), is("10.0.0.3"), is(undefined)]).toEqual([true, false, false]);
  const asOlder = { node_id: "older", instance: "one" };
  const caller = { authorization: undefined, remote: "10.0.0.2" };
  expect(master.membership.isConnected(asOlder, caller)).toBe(true);
  expect(master.membership.isConnected({ ...asOlder, instance: "two" }, caller)).toBe(false);
  // Its process alone knows its instance: a secret is not refused because the node has several addresses.
  expect(master.membership.isConnected(asOlder, { ...caller, remote: "10.0.0.3" })).toBe(true);
  older.hangUp();
  expect(is("10.0.0.2")).toBe(false);
});
