/**
 * @module Point 1.1 of issue 15, the node's side: a process that begins stops first of all what is past its deadline, by when the process
 * before it had heard of a master, and starts nothing by itself that another node may run by now.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLog } from "../src/log.ts";
import type { Assignments } from "../src/model.ts";
import { type BootTime, LastHeard } from "../src/session_heard.ts";
import { spec } from "./cluster_fixture.ts";
import { cleanUp, ids, Node } from "./executor_fixture.ts";
import { VirtualClock } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";
import { writeNow } from "./write_now.ts";

const LIMIT_MS = 30_000;
const root = mkdtempSync(join(tmpdir(), "heard-test-"));

afterAll(() => {
  cleanUp();
  rmSync(root, { recursive: true });
});

const assigned = (...limits: (number | undefined)[]): Pick<Assignments, "specs"> => ({
  specs: limits.map((limit, n) => ({
    spec_hash: String(n),
    spec: spec(limit === undefined ? {} : { stop_when_isolated_ms: limit }),
  })),
});

/** What a process knows: nothing yet; the master; what to run; and all that when it lost its master. */
const SEARCHING = { isOpen: false, isTold: false };
const GREETED = { isOpen: true, isTold: false };
const TOLD = { isOpen: true, isTold: true };
const CUT_OFF = { isOpen: false, isTold: true };

/** A machine: its kernel's clock, and one process after another. */
class Machine {
  readonly dataDir = mkdtempSync(join(root, "machine-"));
  readonly clock = new VirtualClock();
  /** What the kernel's clock says, unless it goes with the process's. */
  boot = "first";
  aheadMs = 5_000_000;
  heard = this.begin();

  get bootTime(): BootTime {
    return { boot: this.boot, ms: this.clock.now() + this.aheadMs };
  }

  begin(): LastHeard {
    const { dataDir, clock } = this;
    this.heard = new LastHeard({ dataDir, clock, log: silentLog, bootTime: () => this.bootTime, write: writeNow });
    return this.heard;
  }

  get path(): string {
    return join(this.dataDir, "heard.json");
  }
}

describe("when the master was last heard of", () => {
  test("is known to the next process, whatever it is told before it has assignments", async () => {
    const machine = new Machine();
    machine.heard.take(assigned(undefined, LIMIT_MS));
    const at = machine.clock.now() - 40;
    machine.heard.note(at);
    await machine.clock.advance(12_345);
    const next = machine.begin();
    expect([next.since(SEARCHING), next.since(GREETED)]).toEqual([at, at]);
    next.note(machine.clock.now());
    expect(next.since(GREETED)).toBe(at);
    next.take(assigned(LIMIT_MS));
    expect(next.since(TOLD)).toBeUndefined();
    expect(next.since(CUT_OFF)).toBe(machine.clock.now());
  });

  test("is written while something assigned asks for it, and from the moment on that it does", async () => {
    const machine = new Machine();
    machine.heard.take(assigned(undefined));
    machine.heard.note(machine.clock.now());
    expect(existsSync(machine.path)).toBe(false);
    const begin = machine.clock.now();
    await machine.clock.advance(1_000);
    machine.heard.take(assigned(LIMIT_MS));
    expect(JSON.parse(readFileSync(machine.path, "utf8"))).toEqual({ boot: "first", ms: begin + machine.aheadMs });
    machine.heard.take(assigned());
    machine.heard.note(machine.clock.now());
    expect(JSON.parse(readFileSync(machine.path, "utf8"))).toEqual({ boot: "first", ms: begin + machine.aheadMs });
  });

  test("is not known after a start of the machine, of what cannot be, and of a file that is damaged", () => {
    const machine = new Machine();
    machine.heard.take(assigned(LIMIT_MS));
    const isUnknown = () =>
      machine.begin().since(GREETED) === undefined && machine.heard.since(SEARCHING) === machine.clock.now();
    expect(isUnknown()).toBe(false);
    const good = readFileSync(machine.path, "utf8");
    for (const text of [
      "",
      "{",
      "[]",
      '{"boot":1,"ms":2}',
      '{"boot":"first","ms":-1}',
      '{"boot":"first","ms":1e300}',
      "null",
    ]) {
      writeFileSync(machine.path, text);
      expect([text, isUnknown()]).toEqual([text, true]);
    }
    writeFileSync(machine.path, good);
    expect(isUnknown()).toBe(false);
    machine.boot = "second";
    machine.aheadMs = 0;
    expect(isUnknown()).toBe(true);
  });

  test("is the longer ago for a machine that was suspended", async () => {
    const machine = new Machine();
    machine.heard.take(assigned(LIMIT_MS));
    machine.heard.note(machine.clock.now());
    await machine.clock.advance(1_000);
    machine.aheadMs += 60_000;
    expect(machine.heard.since(CUT_OFF)).toBe(machine.clock.now() - 61_000);
  });

  test("is before a suspension where the answer may have waited through that", async () => {
    const machine = new Machine();
    machine.heard.take(assigned(LIMIT_MS));
    machine.heard.note(machine.clock.now());
    // The heartbeat is sent, the master answers, and the machine sleeps for a minute before the process reads that.
    await machine.clock.advance(1_000);
    const sentAt = machine.clock.now();
    machine.aheadMs += 60_000;
    await machine.clock.advance(20);
    machine.heard.note(sentAt);
    expect(machine.heard.since(CUT_OFF)).toBe(sentAt - 60_000);
    expect(machine.begin().since(SEARCHING)).toBe(sentAt - 60_000);
    // The next heartbeat was sent since.
    const next = machine.begin();
    next.take(assigned(LIMIT_MS));
    await machine.clock.advance(1_000);
    next.note(machine.clock.now());
    expect(next.since(CUT_OFF)).toBe(machine.clock.now());
  });

  test("point 7: is written without anybody waiting for the disk, once the first time is on it", async () => {
    const machine = new Machine();
    const { dataDir, clock, path } = machine;
    const heard = new LastHeard({ dataDir, clock, log: silentLog, bootTime: () => machine.bootTime });
    const kept = () => (JSON.parse(readFileSync(path, "utf8")) as BootTime).ms - machine.aheadMs;
    heard.take(assigned(LIMIT_MS));
    const first = clock.now();
    expect(kept()).toBe(first);
    for (let n = 0; n < 5; n++) {
      await clock.advance(1_000);
      heard.note(clock.now());
      if (n === 0) expect(kept()).toBe(first);
    }
    await waitUntil("the newest time to be written", async () => kept(), { until: (ms) => ms === clock.now() });
    // What a process of an earlier boot left says nothing: the first time of this one does not wait.
    machine.boot = "second";
    const second = new LastHeard({ dataDir, clock, log: silentLog, bootTime: () => machine.bootTime });
    await clock.advance(1_000);
    second.note(clock.now());
    second.take(assigned(LIMIT_MS));
    expect(JSON.parse(readFileSync(path, "utf8"))).toEqual({ boot: "second", ms: clock.now() + machine.aheadMs });
  });

  test("goes by this process's own clock where the kernel has none to read", async () => {
    const machine = new Machine();
    machine.boot = "";
    machine.begin().take(assigned(LIMIT_MS));
    const at = machine.clock.now();
    machine.heard.note(at);
    await machine.clock.advance(1_000);
    machine.aheadMs += 3_600_000;
    expect(machine.heard.since(CUT_OFF)).toBe(at);
    machine.aheadMs -= 3_600_000;
    expect(machine.begin().since(SEARCHING)).toBe(at);
  });

  test("is read from this machine's kernel", () => {
    const dataDir = mkdtempSync(join(root, "real-"));
    const clock = new VirtualClock();
    const begin = () => new LastHeard({ dataDir, clock, log: silentLog });
    const heard = begin();
    heard.take(assigned(LIMIT_MS));
    const { boot, ms } = JSON.parse(readFileSync(join(dataDir, "heard.json"), "utf8")) as BootTime;
    expect(boot).toMatch(/^[0-9a-f-]{36}$/);
    expect(Math.abs(Number.parseFloat(readFileSync("/proc/uptime", "utf8")) * 1_000 - ms)).toBeLessThan(10_000);
    expect(clock.now() - (begin().since(GREETED) ?? 0)).toBeLessThan(10_000);
  });
});

/** A node whose process goes by `LastHeard`, as `node.ts` has it. */
class HeardNode extends Node {
  heard = this.#begin();
  isOpen = false;

  #begin(): LastHeard {
    Object.defineProperty(this, "isolatedSince", {
      get: () => this.heard.since({ isOpen: this.isOpen, isTold: this.executor.snapshot()?.applied !== undefined }),
    });
    const { clock, dataDir } = this;
    return new LastHeard({
      clock,
      dataDir,
      log: silentLog,
      bootTime: () => ({ boot: "b", ms: clock.now() }),
      write: writeNow,
    });
  }

  /** The master tells what to run, as it does when a session begins. */
  told(list: readonly string[]): void {
    const items = ids(list, { spec: { stop_when_isolated_ms: LIMIT_MS } });
    this.isOpen = true;
    this.heard.note(this.clock.now());
    this.assign(items);
    this.heard.take(assigned(...list.map(() => LIMIT_MS)));
  }

  /** The process is killed, and after so long another one begins, which reaches nobody yet. */
  async dead(ms: number, { isOpen = false } = {}): Promise<void> {
    this.abandon();
    await this.clock.advance(ms);
    this.isOpen = isOpen;
    this.heard = this.#begin();
    await this.begin();
  }
}

describe("a process that begins", () => {
  async function running(): Promise<HeardNode> {
    const node = new HeardNode();
    await node.start();
    node.told(["a"]);
    await node.until(() => node.isSettled(["a"]));
    return node;
  }

  test.each([false, true])("stops at once what is past its deadline; in a session: %p", async (isOpen) => {
    const node = await running();
    await node.dead(LIMIT_MS + 1_000, { isOpen });
    await node.until(() => node.engine.containers.length === 0, 500);
    expect(node.status("a")?.error).toContain("stop_when_isolated");
    // Its master has it run there still.
    node.told(["a"]);
    await node.until(() => node.isSettled(["a"]), 1_000);
    expect(node.status("a")?.failures).toBeUndefined();
  });

  test("goes on counting where the last one ended", async () => {
    const node = await running();
    const began = node.clock.now();
    for (let n = 0; n < 4; n++) await node.dead(5_000);
    expect(node.engine.running("a")).toHaveLength(1);
    await node.until(() => node.engine.containers.length === 0, LIMIT_MS);
    expect(node.clock.now() - began).toBeLessThan(LIMIT_MS + 500);
  });

  test("does not start what has ended meanwhile: another node may run it", async () => {
    const node = await running();
    node.engine.kill(node.engine.running("a")[0]?.id ?? "", 1);
    await node.dead(1_000);
    await node.clock.advance(LIMIT_MS - 5_000);
    expect(node.engine.running("a")).toEqual([]);
    const later = await running();
    later.engine.kill(later.engine.running("a")[0]?.id ?? "", 1);
    // The machine was started since: nothing is known of before.
    rmSync(join(later.dataDir, "heard.json"));
    await later.dead(600_000);
    await later.clock.advance(20_000);
    expect(later.engine.running("a")).toEqual([]);
    later.told(["a"]);
    await later.until(() => later.isSettled(["a"]), 1_000);
  });
});
