/** @module How ends are told: signals, want of memory, sentences, last lines. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { afterTail, type Container, converge, type Memory, type View } from "../src/converge.ts";
import { type EndedContainer, knownEnd, tidyTail } from "../src/converge_ends.ts";
import { LABELS } from "../src/model.ts";

const NOW = 1_000_000;
const ended: EndedContainer = { id: "c", exitCode: 1, startedAt: NOW - 300, finishedAt: NOW };
const MIB = 2 ** 20;

describe("the end of a run", () => {
  const signals: [exitCode: number, signal: string | undefined][] = [
    [0, undefined],
    [1, undefined],
    [128, undefined],
    [129, "SIGHUP"],
    [134, "SIGABRT"],
    [137, "SIGKILL"],
    [139, "SIGSEGV"],
    [143, "SIGTERM"],
    [159, "SIGSYS"],
    [160, undefined],
    [255, undefined],
  ];
  test.each(signals)("exit code %d is %p", (exitCode, signal) => {
    expect(knownEnd({ ...ended, exitCode }, undefined).end.signal).toBe(signal as string);
  });

  const words: [name: string, change: Partial<EndedContainer>, words: string | undefined][] = [
    ["a limit", { exitCode: 137, oomKilled: true, memoryLimit: 64 * MIB }, "ran out of memory (limit 64 MiB)"],
    ["an odd limit", { exitCode: 137, oomKilled: true, memoryLimit: 1.25 * 1024 * MIB }, "(limit 1.3 GiB)"],
    ["no limit", { exitCode: 137, oomKilled: true, memoryLimit: 0 }, "of which the node had no more"],
    ["a kill", { exitCode: 137 }, "killed by SIGKILL"],
    ["a crash", { exitCode: 139 }, "crashed with SIGSEGV"],
    ["no program", { exitCode: 127 }, "was not found"],
    ["no right", { exitCode: 126 }, "may not be executed"],
    ["Docker's word", { exitCode: 128, error: "disk gone" }, "disk gone"],
    ["a plain failure", {}, undefined],
    ["an end that was asked for", { exitCode: 143 }, undefined],
  ];
  test.each(words)("%s is said in one sentence", (_, change, said) => {
    const found = knownEnd({ ...ended, ...change }, undefined).words;
    if (said === undefined) expect(found).toBeUndefined();
    else expect(found).toContain(said);
  });

  test("tells code, memory, Docker's message and times, and asks for the last lines", () => {
    expect(knownEnd({ ...ended, exitCode: 137, oomKilled: true, error: "x".repeat(9_000) }, undefined)).toMatchObject({
      run: `c ${NOW - 300}`,
      end: {
        exit_code: 137,
        signal: "SIGKILL",
        oom_killed: true,
        error: "x".repeat(500),
        started_at: NOW - 300,
        finished_at: NOW,
        log_tail: [],
      },
      unread: true,
    });
  });

  test("is apart from the run before it, of the same container only", () => {
    const first = knownEnd(ended, undefined);
    const second = { ...ended, startedAt: NOW + 100, finishedAt: NOW + 150 };
    expect(first.since).toBeUndefined();
    expect(knownEnd(second, first).since).toBe(NOW + 50);
    expect(knownEnd({ ...second, id: "other" }, first).since).toBeUndefined();
  });
});

describe("the last lines", () => {
  test("come without colours, overwritten text and control characters, and not too many of them", () => {
    expect(
      tidyTail(["\u001b[1;31mred\u001b[0m", "10 %\r50 %\rdone\r", "a\tb\u0007\u0000c", "\u001b]0;title\u0007x"]),
    ).toEqual(["red", "done", "a bc", "x"]);
    const many = Array.from({ length: 30 }, (_, n) => `${n}`);
    expect(tidyTail(many)).toEqual(many.slice(-10));
    expect(tidyTail(["😀".repeat(300)])).toEqual(["😀".repeat(200)]);
  });

  test("are safe to show, whatever was written", () => {
    const units = fc.array(fc.constantFrom("\u001b", "[", "]", "\r", "\n", "\u009b", "m", "0", "\u202e", "é", " "));
    fc.assert(
      fc.property(fc.array(units), (lines) => {
        for (const line of tidyTail(lines.map((list) => list.join("")))) {
          expect(line).not.toMatch(/[\p{Cc}\u202a-\u202e]/u);
          expect([...line].length).toBeLessThanOrEqual(200);
        }
      }),
    );
  });
});

describe("a status", () => {
  const labels = new Map([[LABELS.allocation, "a"]]);
  const base = { id: "c", name: "c", labels, ports: [], createdAt: 0 };
  const look = (container: Container | undefined, known?: Memory, change: Partial<View> = {}) => {
    const decision = converge({
      assigned: new Map([["a", "run"]]),
      held: new Set(),
      reviveAt: 0,
      containers: container ? [container] : [],
      memories: new Map(known ? [["a", known]] : []),
      now: NOW,
      random: () => 1,
      ...change,
    });
    return { status: decision.statuses[0], memory: decision.memories.get("a") as Memory };
  };

  test("keeps the last end while the container runs again, and when it is gone", () => {
    const exited: Container = { ...base, ...ended, state: "exited", exitCode: 137, oomKilled: true, memoryLimit: MIB };
    const first = look(exited);
    expect(first.status).toMatchObject({ state: "exited", error: expect.stringContaining("limit 1 MiB") });
    const read = afterTail(first.memory, { run: `c ${NOW - 300}`, lines: ["the end"] });
    expect(afterTail(read, { run: "another run", lines: ["no"] })).toBe(read);
    const again = look({ ...base, state: "running", startedAt: NOW, exitCode: 0 }, read);
    expect(again.status).toMatchObject({ state: "running", last_end: { oom_killed: true, log_tail: ["the end"] } });
    expect(again.status?.error).toBeUndefined();
    expect(look(undefined, again.memory).status?.last_end?.log_tail).toEqual(["the end"]);
  });

  test("says what was wrong of what stays ended, also when its container was removed", () => {
    const exited: Container = {
      ...base,
      ...ended,
      labels: new Map([...labels, [LABELS.restart, "no"]]),
      state: "exited",
      exitCode: 139,
    };
    const { memory } = look(exited);
    const { status } = look(undefined, memory);
    expect(status).toMatchObject({ state: "exited", final: true, exit_code: 139, failures: 1 });
    expect(status?.error).toContain("SIGSEGV");
  });

  test("tells of the end of a container that an earlier process has counted and told nothing of", () => {
    const exited: Container = { ...base, ...ended, state: "exited" };
    const counted = { ...look(exited).memory, end: undefined };
    const { end: _end, ...known } = counted;
    const { status, memory } = look(exited, known);
    expect(status?.last_end).toMatchObject({ exit_code: 1 });
    expect(memory.ends).toBe(1);
  });
});
