/** @module Services that a node stops by itself once it has had no master for long: when, what is left, and how they come back. */
import { describe, expect, test } from "bun:test";
import {
  type Action,
  afterFailure,
  afterIsolation,
  afterStart,
  type Container,
  converge,
  type Memory,
  type View,
} from "../src/converge.ts";
import { LABELS } from "../src/model.ts";

const LOST = 1_000_000;
const LIMIT_MS = 30_000;
const STOPPED = "stopped: this node has had no master for 30 s (stop_when_isolated)";

function container(state: Container["state"], change: Partial<Container> & { restart?: string; limit?: string } = {}) {
  const { restart = "always", limit = String(LIMIT_MS), ...rest } = change;
  const labels = new Map([
    [LABELS.allocation, "a"],
    [LABELS.restart, restart],
    [LABELS.isolated, limit],
  ]);
  const ended = state === "exited" ? { finishedAt: LOST, exitCode: 137 } : { exitCode: 0 };
  const base = { id: "c", name: "c", labels, ports: [], createdAt: 0, startedAt: LOST - 60_000 };
  return { ...base, state, ...ended, ...rest } satisfies Container;
}

function view(change: Partial<View> & { known?: Memory | undefined } = {}): View {
  const { known, ...rest } = change;
  return {
    assigned: new Map([["a", "run"]]),
    held: new Set(),
    isolatedSince: LOST,
    reviveAt: 0,
    containers: [container("running")],
    memories: new Map(known ? [["a", known]] : []),
    now: LOST + LIMIT_MS,
    random: () => 1,
    ...rest,
  };
}

const look = (change: Partial<View> & { known?: Memory | undefined } = {}) => {
  const decision = converge(view(change));
  return { ...decision, status: decision.statuses[0], memory: decision.memories.get("a") as Memory };
};
const short = (actions: readonly Action[]) =>
  actions.map(({ type, container: target }) => `${type} ${target?.id ?? "new"}`);

describe("without a master", () => {
  test("a container runs until its limit, and the node looks again then", () => {
    const { actions, wakeAt, status } = look({ now: LOST + LIMIT_MS - 1 });
    expect(actions).toEqual([]);
    expect(status).toMatchObject({ state: "running" });
    expect(wakeAt).toBe(LOST + LIMIT_MS);
  });

  const cases: [name: string, change: Partial<View>, actions: string[]][] = [
    ["is removed at its limit", {}, ["remove c"]],
    ["is removed also by a process without assignments", { assigned: undefined }, ["remove c"]],
    ["runs on while there is a master", { isolatedSince: undefined }, []],
    ["runs on where it says nothing", { containers: [container("running", { limit: "" })] }, []],
    ["is removed where it waits for its next start", { containers: [container("exited")] }, ["remove c"]],
    ["is removed where it never ran", { containers: [container("created")] }, ["remove c"]],
    ["stays where it ended for good", { containers: [container("exited", { restart: "no" })] }, []],
    ["is not made where there is none", { containers: [], isolations: new Map([["a", LIMIT_MS]]) }, []],
    ["is made where it says nothing", { containers: [] }, ["start new"]],
    ["goes where it is not wanted anyway", { assigned: new Map(), now: LOST }, ["remove c"]],
  ];
  test.each(cases)("a container %s", (_, change, actions) => {
    expect(short(look(change).actions)).toEqual(actions);
  });

  test("a container that a failed start left is removed at its limit, however long the next start was to wait", () => {
    const { memory } = look({ now: LOST });
    const failure = { error: "Docker did not answer in time", retryAt: LOST + 10 * LIMIT_MS, unsure: false };
    const running = look({ known: afterFailure(memory, failure) });
    expect(short(running.actions)).toEqual(["remove c"]);
    // The start was under way at the limit, and what it left is seen later.
    const starting = look({
      containers: [],
      isolations: new Map([["a", LIMIT_MS]]),
      known: { ...memory, work: "starting" },
    });
    expect(starting.actions).toEqual([]);
    const { work: _work, ...failed } = afterFailure(starting.memory, failure);
    expect(short(look({ known: failed, now: LOST + LIMIT_MS + 50 }).actions)).toEqual(["remove c"]);
    // A removal that fails is tried again as ever.
    const kept = afterFailure(starting.memory, { ...failure, isRemoval: true });
    expect(kept.removeAt).toBe(failure.retryAt);
  });

  test("what was stopped stays so, also after the process began anew, and says why", () => {
    for (const assigned of [undefined, new Map([["a", "run"]] as const)]) {
      const { memory, status } = look({ assigned });
      expect(status).toMatchObject({ state: "stopping", error: STOPPED });
      const gone = look({ assigned, containers: [], known: memory, now: LOST + 10 * LIMIT_MS });
      expect(gone.actions).toEqual([]);
      expect(gone.status).toMatchObject({ state: "pending", final: false, error: STOPPED });
      // The next process counts from its own start, and finds what the first has not removed any more.
      const next = { known: gone.memory, isolatedSince: LOST + 20 * LIMIT_MS, now: LOST + 20 * LIMIT_MS };
      expect(look({ assigned, containers: [], ...next }).actions).toEqual([]);
      expect(short(look({ assigned, containers: [container("exited")], ...next }).actions)).toEqual(["remove c"]);
    }
  });

  test("what the process before had begun to stop is no end either, though it is only listed at first", () => {
    const { memory } = look();
    const { startedAt: _startedAt, exitCode: _exitCode, finishedAt: _finishedAt, ...listed } = container("exited");
    const found = look({ assigned: undefined, containers: [listed], known: memory });
    expect(short(found.actions)).toEqual(["remove c"]);
    const inspected = look({ assigned: undefined, containers: [container("exited")], known: found.memory });
    expect(inspected.status?.failures ?? inspected.status?.last_end).toBeUndefined();
  });

  test("what was stopped waits for assignments, not for a session alone", () => {
    const { memory } = look();
    const open = { containers: [], isolatedSince: undefined };
    expect(look({ ...open, known: memory }).actions).toEqual([]);
    expect(short(look({ ...open, known: afterIsolation(memory) }).actions)).toEqual(["start new"]);
    const elsewhere = look({ ...open, assigned: new Map(), known: afterIsolation(memory) });
    expect([elsewhere.actions, elsewhere.statuses]).toEqual([[], []]);
  });

  test.each(["always", "on-failure", "on-failure:1", "no"])("the stop is no end, under %s", (restart) => {
    const running = look({ containers: [container("running", { restart })] });
    for (const exitCode of [0, 137, 143]) {
      const ended = container("exited", { restart, exitCode });
      const stopping = look({ containers: [ended], known: { ...running.memory, work: "stopping" } });
      expect(stopping.status).toMatchObject({ final: false, restarts: 0 });
      expect(stopping.status?.failures ?? stopping.status?.last_end).toBeUndefined();
      expect(stopping.memory).toMatchObject({ ends: 0 });
      // The master is back before it is removed: it goes on as if nothing had been.
      const { work: _work, ...known } = afterIsolation(stopping.memory);
      const back = look({ containers: [ended], isolatedSince: undefined, known });
      expect(short(back.actions)).toEqual(["start c"]);
      // A later end counts again.
      const startedAt = LOST + 2 * LIMIT_MS;
      const anew = { ...ended, exitCode: 1, startedAt, finishedAt: startedAt + 10 };
      const after = look({
        containers: [anew],
        isolatedSince: undefined,
        known: afterStart(back.memory),
        now: startedAt + 10,
      });
      expect(after.status).toMatchObject({ failures: 1, last_end: { exit_code: 1 } });
    }
  });
});
