/** @module What an executor remembers of ends, how it comes to the last lines, and what it does when it is isolated. */
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { RestartSpec } from "../src/model_spec.ts";
import { cleanUp, ids, names, Node } from "./executor_fixture.ts";

afterAll(cleanUp);

const ALWAYS: RestartSpec = { condition: "always", max_attempts: 0, compose: "" };

async function nodeWith(spec: Parameters<typeof ids>[1] = {}): Promise<Node> {
  const node = await new Node().start();
  node.assign(ids(["a"], spec));
  await node.until(() => node.isSettled(["a"]));
  return node;
}

function containerOf(node: Node): string {
  return node.engine.running("a")[0]?.id ?? "";
}

describe("the last end", () => {
  test("is told with its last lines, those of that run alone, while it waits and when it runs again", async () => {
    const node = await nodeWith();
    node.engine.behaviours.set("busybox:latest", { lines: ["starting", "\u001b[31mfailed\u001b[0m"] });
    node.engine.kill(containerOf(node), 137, { oomKilled: true, memoryLimit: 64 * 2 ** 20 });
    await node.until(() => node.status("a")?.state === "exited");
    expect(node.status("a")).toMatchObject({
      error: expect.stringContaining("limit 64 MiB"),
      failures: 1,
      last_end: { exit_code: 137, signal: "SIGKILL", oom_killed: true },
      next_start_at: expect.any(Number),
    });
    await node.until(() => node.isSettled(["a"]), 1_000);
    expect(node.status("a")?.last_end?.log_tail).toEqual(["starting", "failed"]);
    expect(node.status("a")?.error).toBeUndefined();
    expect(node.status("a")?.next_start_at).toBeUndefined();
    node.engine.behaviours.set("busybox:latest", { lines: ["only this"] });
    node.engine.kill(containerOf(node), 1, { oomKilled: false });
    await node.until(() => node.status("a")?.failures === 2);
    await node.until(() => node.isSettled(["a"]), 2_000);
    expect(node.status("a")?.last_end).toMatchObject({ exit_code: 1, oom_killed: false, log_tail: ["only this"] });
    await node.until(() => node.status("a")?.failures === undefined, 10_100);
    expect(node.status("a")?.last_end?.exit_code).toBe(1);
  });

  test("is still known to the next process, with what it must wait for", async () => {
    const node = await nodeWith({ spec: { restart: { ...ALWAYS, delay_ms: 60_000 } } });
    node.engine.behaviours.set("busybox:latest", { lines: ["bye"] });
    node.engine.kill(containerOf(node), 3);
    await node.until(() => node.status("a")?.last_end?.log_tail.length === 1);
    const due = node.status("a")?.next_start_at;
    await node.clock.advance(10_000);
    await node.restart();
    await node.until(() => node.status("a")?.state === "exited");
    expect(node.status("a")).toMatchObject({ failures: 1, last_end: { exit_code: 3, log_tail: ["bye"] } });
    await node.clock.advance(10_000);
    expect(node.status("a")).toMatchObject({ state: "exited", next_start_at: due });
    await node.until(() => node.isSettled(["a"]), 41_000);
    expect(node.engine.calls.get("logs")).toBe(1);
  });

  test("does not keep a container waiting for years because a clock was set", async () => {
    const node = await nodeWith({ spec: { restart: { ...ALWAYS, delay_ms: 5_000 } } });
    node.engine.kill(containerOf(node), 3);
    await node.until(() => node.status("a")?.state === "exited");
    await node.executor.stop();
    const path = join(node.dataDir, "restarts.json");
    const text = readFileSync(path, "utf8");
    writeFileSync(path, text.replace(/"startAt":\d+/, `"startAt":${node.clock.now() + 1e10}`));
    expect(readFileSync(path, "utf8")).not.toBe(text);
    await node.restart();
    await node.until(() => node.isSettled(["a"]), 5_000 + 100 + 6_000);
  });

  test("of many at once is small on disk, and gone with its allocation", async () => {
    const node = await new Node().start();
    node.engine.behaviours.set("busybox:latest", {
      exitAfterMs: 500,
      exitCode: 1,
      lines: Array.from({ length: 50 }, () => "x".repeat(5_000)),
    });
    node.assign(ids(names(40)));
    await node.clock.advance(60_000);
    await node.executor.stop();
    const path = join(node.dataDir, "restarts.json");
    const { length } = readFileSync(path, "utf8");
    expect(length).toBeGreaterThan(40 * 2_000);
    expect(length).toBeLessThan(40 * 3_000);
    await node.restart();
    node.assign([]);
    await node.until(() => node.engine.containers.length === 0);
    await node.clock.advance(2_000);
    expect(readFileSync(path, "utf8")).toBe("[]");
  });

  test("never holds a restart up for longer than a second, and never fails one", async () => {
    const node = await nodeWith();
    node.engine.hung.add("logs");
    node.engine.kill(containerOf(node), 1);
    await node.until(() => node.status("a")?.state === "exited");
    await node.until(() => node.isSettled(["a"]), 1_200);
    expect(node.status("a")).toMatchObject({ restarts: 1, last_end: { exit_code: 1, log_tail: [] } });
    node.engine.hung.clear();
    node.engine.refused.add("logs");
    node.engine.kill(containerOf(node), 2);
    await node.until(() => node.status("a")?.last_end?.exit_code === 2);
    await node.until(() => node.isSettled(["a"]), 1_200);
    expect(node.status("a")?.last_end?.log_tail).toEqual([]);
  });
});

describe("an isolated node", () => {
  const LIMIT_MS = 30_000;
  const singleton = { spec: { stop_when_isolated_ms: LIMIT_MS } };

  async function isolated(): Promise<Node> {
    const node = await new Node().start();
    node.assign([...ids(["a"], singleton), ...ids(["b"])]);
    await node.until(() => node.isSettled(["a", "b"]));
    node.isolatedSince = node.clock.now();
    node.executor.noticeMaster();
    return node;
  }

  test("stops what says so on time, keeps the rest, and makes it anew when it is still assigned", async () => {
    const node = await isolated();
    await node.clock.advance(LIMIT_MS - 1);
    expect(node.engine.running("a")).toHaveLength(1);
    await node.until(() => node.engine.running("a").length === 0, 100);
    await node.until(() => node.engine.containers.length === 1, 1_000);
    await node.clock.advance(600_000);
    expect(node.engine.containers).toHaveLength(1);
    expect(node.engine.running("b")).toHaveLength(1);
    expect(node.status("a")).toMatchObject({
      state: "pending",
      final: false,
      error: "stopped: this node has had no master for 30 s (stop_when_isolated)",
    });
    node.isolatedSince = undefined;
    node.executor.noticeMaster();
    await node.clock.advance(5_000);
    expect(node.engine.running("a")).toEqual([]);
    node.assign([...ids(["a"], singleton), ...ids(["b"])]);
    await node.until(() => node.isSettled(["a", "b"]), 1_000);
    expect(node.status("a")?.failures ?? node.status("a")?.last_end ?? node.status("a")?.error).toBeUndefined();
  });

  test("makes nothing anew that is assigned elsewhere by then", async () => {
    const node = await isolated();
    await node.clock.advance(LIMIT_MS + 2_000);
    node.isolatedSince = undefined;
    node.executor.noticeMaster();
    node.assign(ids(["b"]));
    await node.clock.advance(10_000);
    expect(node.states()).toEqual({ b: "running" });
    expect(node.engine.calls.get("create")).toBe(2);
  });

  test("knows by the label alone what to stop, counting from the start of its process", async () => {
    const node = await isolated();
    await node.clock.advance(10_000);
    node.isolatedSince = node.clock.now();
    await node.restart();
    await node.clock.advance(LIMIT_MS - 1_000);
    expect(node.engine.running("a")).toHaveLength(1);
    await node.until(() => node.engine.containers.length === 1, 3_000);
    expect(node.status("a")?.error).toContain("stop_when_isolated");
    expect(node.engine.running("b")).toHaveLength(1);
  });

  test("whose process is killed in the middle of the stop finishes that, and counts no end", async () => {
    const node = await isolated();
    node.engine.behaviours.set("busybox:latest", { stopMs: 5_000 });
    await node.clock.advance(LIMIT_MS + 4_000);
    node.isolatedSince = node.clock.now();
    // Killed, not stopped: nothing more is written.
    node.abandon();
    await node.clock.advance(2_000);
    await node.begin();
    await node.until(() => node.engine.containers.length === 1, 3_000);
    await node.clock.advance(10_000);
    expect(node.engine.running("a")).toEqual([]);
    expect(node.status("a")?.failures ?? node.status("a")?.last_end).toBeUndefined();
    node.isolatedSince = undefined;
    node.assign([...ids(["a"], singleton), ...ids(["b"])]);
    await node.until(() => node.isSettled(["a", "b"]), 1_000);
  });

  test("gives up a pull for what it may not run", async () => {
    const node = await new Node().start();
    node.engine.pullMs = 60_000;
    node.engine.registry.set("x:1", "found");
    node.assign(ids(["a"], { spec: { ...singleton.spec, image: "x:1" } }), {
      images: [{ allocation_id: "a", digest: "sha256:x", refresh: false }],
    });
    await node.until(() => node.status("a")?.state === "pulling");
    node.isolatedSince = node.clock.now();
    node.executor.noticeMaster();
    await node.clock.advance(120_000);
    expect(node.engine.containers).toEqual([]);
    expect(node.status("a")).toMatchObject({ state: "pending", error: expect.stringContaining("no master") });
  });
});

describe("Docker's disk", () => {
  test("is told to be full by the heartbeat until it is two points below the limit", async () => {
    const node = new Node();
    node.diskLimit = 90;
    await node.restart();
    const reading = (used: number) => {
      node.disk = { total: 1_000, available: 1_000 - 10 * used };
      return node.executor.heartbeat().full_disk;
    };
    const told = [50, 89.9, 90, 93.7, 89, 88.1, 87.9, 89.9, 100].map(reading);
    const full = (percent: number) => `Docker's disk /var/lib/docker is ${percent} % full (--disk-limit 90)`;
    expect(told).toEqual([
      undefined,
      undefined,
      full(90),
      full(93),
      full(89),
      full(88),
      undefined,
      undefined,
      full(100),
    ]);
    node.disk = undefined;
    expect(node.executor.heartbeat().full_disk).toBeUndefined();
  });

  test("is never full where there is no limit", async () => {
    const node = await new Node().start();
    node.disk = { total: 1_000, available: 0 };
    expect(node.executor.heartbeat()).toMatchObject({ resources: { disk: node.disk } });
    expect(node.executor.heartbeat().full_disk).toBeUndefined();
  });
});

describe("an Engine that hangs", () => {
  test("makes the node unready within four seconds, and ready again soon after", async () => {
    for (let seed = 1; seed <= 20; seed++) {
      const node = await new Node(seed).start();
      node.assign(ids(["a"]));
      await node.until(() => node.isSettled(["a"]));
      await node.clock.advance(node.random() * 40_000);
      node.engine.freeze();
      await node.until(() => node.executor.engineStatus().state === "unready", 4_000);
      expect(node.executor.engineStatus()).toMatchObject({
        reason: "Docker did not answer on unix:///fake/docker.sock within 2 s: dockerd hangs",
      });
      await node.clock.advance(node.random() * 120_000);
      node.engine.faults.loseRequest = 0;
      await node.until(() => node.executor.engineStatus().state === "ready", 18_000);
      await node.until(() => node.isSettled(["a"]), 1_000);
    }
  });

  test("is not taken for one that is slow: while anything is answered, a ping may take its time", async () => {
    const node = await new Node().start();
    node.engine.hung.add("ping");
    let unready = 0;
    // Something ends every other second, and is looked at: those answers count.
    node.engine.behaviours.set("busybox:latest", { exitAfterMs: 1_900, exitCode: 1 });
    node.assign(ids(["a"], { spec: { restart: { ...ALWAYS, window_ms: 500 } } }));
    for (let second = 0; second < 300; second++) {
      await node.clock.advance(1_000);
      if (node.executor.engineStatus().state === "unready") unready++;
    }
    expect(node.engine.calls.get("ping")).toBeGreaterThan(0);
    expect(unready).toBe(0);
    node.assign([]);
    await node.until(() => node.executor.engineStatus().state === "unready", 20_000);
  });

  test("is judged by a process that runs: what came while it was stopped is read first", async () => {
    const node = await new Node().start();
    for (let step = 0; step < 100; step++) {
      await node.clock.advance(node.random() * 2_000);
      node.clock.stall(10_000);
      await node.clock.advance(400);
      expect(node.executor.engineStatus().state).toBe("ready");
    }
  });

  test("is asked every 1.5 s where nothing else goes on, and not at all where something does", async () => {
    const node = await new Node().start();
    await node.clock.advance(5_000);
    const before = node.engine.calls.get("ping") ?? 0;
    await node.clock.advance(60_000);
    expect((node.engine.calls.get("ping") ?? 0) - before).toBeLessThanOrEqual(40);
    expect((node.engine.calls.get("ping") ?? 0) - before).toBeGreaterThan(35);
    const asked = node.engine.calls.get("ping") ?? 0;
    node.engine.behaviours.set("busybox:latest", { exitAfterMs: 300, exitCode: 1 });
    node.assign(ids(names(20), { spec: { restart: { ...ALWAYS, window_ms: 100 } } }));
    await node.clock.advance(10_000);
    expect((node.engine.calls.get("ping") ?? 0) - asked).toBeLessThanOrEqual(1);
  });
});
