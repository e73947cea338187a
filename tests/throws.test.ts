/**
 * @module What throws where nothing should (point 4 of section 1) ends its own piece of work and nothing else: loops go on, a node whose
 * report triggers a defect loses its session and comes again, later each time.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { repeat } from "../src/clock_loop.ts";
import { type Container, converge } from "../src/converge.ts";
import { type Log, silentLog } from "../src/log.ts";
import { Faults } from "../src/log_faults.ts";
import type { NodeView } from "../src/cluster_state.ts";
import { LABELS } from "../src/model.ts";
import { cleanUp, Node as MachineNode } from "./executor_fixture.ts";
import { HEARTBEAT_MS, Master, NODE_TIMEOUT_MS, Peer } from "./master_fixture.ts";
import { NodeProcesses } from "./node_process.ts";
import { VirtualClock } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

type Line = { message: string; fields: Record<string, unknown> };

function listening(): { log: Log; errors: Line[] } {
  const errors: Line[] = [];
  return { errors, log: { ...silentLog, error: (message, fields = {}) => void errors.push({ message, fields }) } };
}

/** Has `name` of an object throw for so many calls. */
function failing<T extends object, K extends keyof T>(of: T, name: K, times = Infinity): { calls: number } {
  const seen = { calls: 0 };
  const real = of[name];
  if (typeof real !== "function") throw new Error(`${String(name)} is no function`);
  const bound = real.bind(of) as (...args: unknown[]) => unknown;
  const stub = (...args: unknown[]) => {
    if (seen.calls++ < times) throw new Error("a defect");
    return bound(...args);
  };
  Object.defineProperty(of, name, { value: stub, configurable: true, writable: true });
  return seen;
}

describe("repeat()", () => {
  test.each([
    [
      "throws",
      () => {
        throw new Error("a defect");
      },
    ],
    ["rejects", () => Promise.reject(new Error("a defect"))],
  ])("goes on after a turn that %s, and after a listener that does", async (_, fail) => {
    const clock = new VirtualClock();
    let turns = 0;
    const faults: unknown[] = [];
    const timer = repeat(clock, {
      firstMs: 10,
      retryMs: 100,
      work: () => (++turns === 2 ? fail() : 10),
      onFault: (error) => void faults.push(error),
    });
    await clock.advance(125);
    expect([turns, faults.length]).toEqual([3, 1]);
    timer.cancel();
    await clock.advance(1_000);
    expect(turns).toBe(3);
  });

  test("ends when a turn says so", async () => {
    const clock = new VirtualClock();
    let turns = 0;
    repeat(clock, { firstMs: 0, retryMs: 10, work: () => (++turns < 3 ? 10 : undefined), onFault: () => {} });
    await clock.advance(1_000);
    expect(turns).toBe(3);
  });
});

describe("Faults", () => {
  test("tells an error with its stack, the same one again after an hour, and another one after a minute", async () => {
    const clock = new VirtualClock();
    const { log, errors } = listening();
    const faults = new Faults({ log, clock });
    const tell = (text: string) => faults.tell("it failed", new Error(text), { node: "n" });
    for (let second = 0; second < 3_700; second++) {
      tell("one");
      await clock.advance(1_000);
    }
    expect(errors.map(({ fields }) => [fields["node"], typeof fields["stack"], fields["times_not_told"]])).toEqual([
      ["n", "string", undefined],
      ["n", "string", 3_599],
    ]);
    tell("other");
    expect(errors.length).toBe(3);
    for (let n = 0; n < 100; n++) tell(`one more ${n}`);
    expect(errors.length).toBe(3);
  });
});

/** All views of a master's nodes but one are as they are; of that one, what a heartbeat sets throws. */
function poisonView(master: Master, nodeId: string): () => void {
  const { views } = master.scheduler.state;
  const view = views.get(nodeId);
  if (!view) throw new Error(`no view of ${nodeId}`);
  let isBad = true;
  const set = (target: NodeView, name: string | symbol, value: unknown) => {
    if (isBad && name === "foreign") throw new Error("a defect");
    return Reflect.set(target, name, value);
  };
  views.set(nodeId, new Proxy(view, { set }));
  return () => {
    isBad = false;
  };
}

describe("a master", () => {
  test("whose handler throws for a report ends that node's session alone, and tells which message of which node", async () => {
    const { log, errors } = listening();
    const master = await Master.start(undefined, { log });
    const [bad, good] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put("a", { web: { image: "busybox", deploy: { mode: "global" } } });
    await good.report();
    await bad.report();
    const mend = poisonView(master, "n1");
    await bad.beat();
    expect([bad.isConnected, good.isConnected]).toEqual([false, true]);
    expect(errors.map(({ message, fields }) => [message, fields["node"], fields["at"]])).toEqual([
      ["an error of Cacophony itself ends a node's session", "n1", "heartbeat"],
    ]);
    expect(typeof errors[0]?.fields["stack"]).toBe("string");
    // It comes again and again; what it runs is not given up, and the log is not filled with it.
    for (let past = 0; past < 2 * NODE_TIMEOUT_MS; past += HEARTBEAT_MS) {
      await bad.dial();
      await bad.beat();
      await good.beat();
      await master.clock.advance(HEARTBEAT_MS);
    }
    const { state } = master.scheduler;
    expect(state.isLost("n1")).toBe(false);
    expect(errors.length).toBe(1);
    expect(state.views.get("n2")?.state).toBe("ready");
    mend();
    await bad.dial();
    await bad.report();
    expect([bad.isConnected, state.views.get("n1")?.state]).toEqual([true, "ready"]);
  });

  test("whose handler throws for a hello does not hold that node for connected", async () => {
    const master = await Master.start();
    await Peer.join(master, 1);
    const seen = failing(master.scheduler, "attach", 1);
    const late = await Peer.join(master, 2);
    expect([seen.calls, late.isConnected]).toEqual([1, false]);
    expect(master.scheduler.state.views.get("n2")?.connected).toBe(false);
    await late.dial();
    await late.report();
    expect([late.isConnected, master.scheduler.state.views.get("n2")?.state]).toEqual([true, "ready"]);
  });

  test("goes on to notice silent nodes after a sweep that threw", async () => {
    const master = await Master.start();
    const [gone, good] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    const { state } = master.scheduler;
    // A sweep asks for the views first, outside of what it does for each of them.
    const seen = failing(state.views, "values", 3);
    await gone.hangUp();
    for (let past = 0; past < 3 * NODE_TIMEOUT_MS; past += HEARTBEAT_MS) {
      await good.beat();
      await master.clock.advance(HEARTBEAT_MS);
    }
    expect(seen.calls).toBeGreaterThan(3);
    expect([state.views.get("n1")?.state, state.views.get("n2")?.state]).toEqual(["down", "ready"]);
  });

  test("goes on with its full passes after one that threw", async () => {
    const master = await Master.start();
    const node = await Peer.join(master, 1);
    const seen = failing(master.scheduler.state, "liveJobs", 1);
    const pass = async (ms: number) => {
      for (let past = 0; past < ms; past += HEARTBEAT_MS) {
        await node.beat();
        await master.clock.advance(HEARTBEAT_MS);
      }
    };
    await pass(31_000);
    expect(seen.calls).toBeGreaterThan(0);
    const before = node.heard.filter(({ type }) => type === "assignments").length;
    await pass(62_000);
    expect(node.heard.filter(({ type }) => type === "assignments").length).toBe(before + 2);
  });
});

/** A container of which one thing throws when it is asked for. */
function withDefect(container: Container, name: keyof Container): Container {
  return Object.defineProperty({ ...container }, name, {
    enumerable: true,
    get: () => {
      throw new Error("a defect");
    },
  });
}

describe("a node", () => {
  afterAll(cleanUp);

  test("whose decision about one allocation throws decides about all others, and says nothing of that one that it cannot know", () => {
    const labelled = (id: string, state: "running" | "exited") => ({
      id: `container-${id}`,
      name: id,
      labels: new Map([[LABELS.allocation, id]]),
      state,
      ports: [],
      createdAt: 0,
    });
    const memory = { restarts: 7, ran: true, ends: 0, failures: 0, startAt: 0, removeAt: 0, unsure: false };
    const decision = converge({
      assigned: new Map([
        ["a", "run"],
        ["b", "run"],
        ["c", "stop"],
        ["d", "run"],
      ]),
      held: new Set(),
      reviveAt: 0,
      containers: [
        withDefect(labelled("a", "running"), "startedAt"),
        withDefect(labelled("b", "exited"), "exitCode"),
        labelled("c", "running"),
      ],
      memories: new Map([["a", memory]]),
      now: 1_000,
      random: () => 0,
    });
    expect(decision.faults.map(({ allocation_id }) => allocation_id)).toEqual(["a", "b"]);
    expect(decision.actions.map(({ type, allocation_id }) => `${type} ${allocation_id}`)).toEqual([
      "remove c",
      "start d",
    ]);
    // What is not told counts as gone, and what was known of it stays known.
    expect(decision.statuses.map(({ allocation_id, state, final }) => [allocation_id, state, final])).toEqual([
      ["a", "running", false],
      ["b", "exited", false],
      ["c", "stopping", false],
      ["d", "pending", false],
    ]);
    expect(decision.statuses[0]?.error).toContain("internal error of Cacophony on this node");
    expect(decision.memories.get("a")).toEqual(memory);
    expect(decision.wakeAt).toBe(31_000);
  });

  test("whose whole decision throws makes it again soon, and takes its assignments all the same", async () => {
    const { log, errors } = listening();
    let isBad = true;
    const setGuard = () => {
      if (isBad) throw new Error("a defect");
    };
    const node = await new MachineNode(1, { setGuard }, log).start();
    expect(node.assign([{ id: "a" }])).toBe("accepted");
    await node.clock.advance(20_000);
    expect(node.engine.running("a").length).toBe(0);
    expect(errors.map(({ message }) => message)).toEqual([
      "an error of Cacophony itself: what to do next could not be decided",
    ]);
    isBad = false;
    await node.until(() => node.engine.running("a").length === 1, 6_000);
  });

  test("goes on to look after Docker when who hears of its state throws", async () => {
    const node = await new MachineNode().start();
    node.assign([{ id: "a" }]);
    await node.until(() => node.isSettled(["a"]));
    node.onChange = () => {
      throw new Error("a defect");
    };
    node.engine.goDown();
    await node.clock.advance(10_000);
    node.engine.comeUp();
    await node.clock.advance(10_000);
    expect(node.executor.engineStatus().state).toBe("ready");
    node.onChange = () => {};
    await node.until(() => node.isSettled(["a"]), 60_000);
  });
});

describe("a process", () => {
  const processes = new NodeProcesses();
  afterAll(() => processes.stop());

  test("goes on after errors in timers, promises and callbacks, and tells them with their stack, each once", async () => {
    const preload = join(processes.newDir(), "defects.ts");
    writeFileSync(
      preload,
      `setInterval(() => { throw new Error("a defect in a timer"); }, 100);
       setInterval(() => void Promise.reject(new Error("a defect in a promise")), 100);`,
    );
    const node = await processes.start(["bootstrap"], { env: { BUN_OPTIONS: `--preload=${preload}` } });
    const told = () =>
      node.process
        .logs()
        .split("\n")
        .filter((line) => line.includes("an error of Cacophony itself"));
    await waitUntil("both errors to be told", async () => told().length > 1, { timeoutMs: 10_000 });
    const answer = await fetch(`http://${node.address}/cluster/status`, { proxy: false, keepalive: false });
    expect([node.process.running, answer.status]).toEqual([true, 200]);
    const lines = told().map((line) => JSON.parse(line) as { error: string; stack: string });
    expect(lines.map(({ error }) => error).toSorted()).toEqual(["a defect in a promise", "a defect in a timer"]);
    for (const { stack } of lines) expect(stack).toContain("defects.ts");
  });
});

describe("the sources", () => {
  const SRC = join(import.meta.dir, "..", "src");
  /** Methods and functions, by their indentation: from the line that opens one to the line that closes it. */
  const BODY = /^( *)(?:async |export |function |static )*([#a-zA-Z]\w*)\([^\n]*\{\n([\s\S]*?)\n\1\}/gm;

  test("hold no loop that arms itself where it may not come to, but in repeat() and after what was caught", () => {
    const found = readdirSync(SRC).flatMap((file) => {
      const text = readFileSync(join(SRC, file), "utf8");
      const bodies = new Map([...text.matchAll(BODY)].map(([, , name = "", body = ""]) => [name, body]));
      const isCaught = (body: string, at: number) => /\} (?:catch|finally)\b/.test(body.slice(0, at));
      return [...bodies].flatMap(([name, body]) =>
        // `name` has `next` called later, which is itself, or calls `name` at once.
        [...body.matchAll(/(?:\.after|setTimeout)\([^\n]*?=> (?:void )?(?:this\.)?(#?\w+)\(/g)].flatMap((match) => {
          const next = match[1] ?? "";
          const other = bodies.get(next) ?? "";
          const at = next === name ? 0 : other.search(new RegExp(`(?<![\\w#])${name}\\(`));
          const isSafe = isCaught(body, match.index) || (at > 0 && isCaught(other, at));
          return at < 0 || isSafe || file === "clock_loop.ts" ? [] : [`${file}: ${name} -> ${next}`];
        }),
      );
    });
    expect(found).toEqual([]);
  });
});
