/**
 * @module What throws where nothing should (point 4 of section 1) ends its own piece of work and nothing else: loops go on, a node whose
 * report triggers a defect loses its session and comes again, later each time.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { repeat } from "../src/clock_loop.ts";
import { type Log, silentLog } from "../src/log.ts";
import { Faults } from "../src/log_faults.ts";
import type { NodeView } from "../src/cluster_state.ts";
import { HEARTBEAT_MS, Master, NODE_TIMEOUT_MS, Peer } from "./master_fixture.ts";
import { VirtualClock } from "./virtual_clock.ts";

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
