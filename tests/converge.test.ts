import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type Action,
  afterFailure,
  afterStart,
  type Container,
  converge,
  type Memory,
  type View,
} from "../src/converge.ts";
import { STABLE_MS } from "../src/converge_restarts.ts";
import { LABELS } from "../src/model.ts";

const NOW = 1_000_000;

function container(
  state: Container["state"],
  change: Partial<Container> & { allocation?: string; restart?: string } = {},
) {
  const { allocation = "a", restart = "always", ...rest } = change;
  const labels = new Map([
    [LABELS.allocation, allocation],
    [LABELS.restart, restart],
  ] as [string, string][]);
  const ended = state === "exited" ? { exitCode: 1, startedAt: NOW - 2_000, finishedAt: NOW - 1_000 } : {};
  const ran = state === "running" ? { startedAt: NOW - 2_000, exitCode: 0 } : {};
  return { id: "c1", name: "c", labels, state, ports: [], createdAt: 0, ...ended, ...ran, ...rest } satisfies Container;
}

function memory(change: Partial<Memory> = {}): Memory {
  return { restarts: 0, ran: true, ends: 0, failures: 0, startAt: 0, removeAt: 0, unsure: false, ...change };
}

function view(change: Partial<View> & { remembered?: Memory } = {}): View {
  const { remembered, ...rest } = change;
  return {
    assigned: new Map([["a", "run"]]),
    held: new Set(),
    reviveAt: 0,
    containers: [],
    memories: new Map(remembered ? [["a", remembered]] : []),
    now: NOW,
    random: () => 1,
    ...rest,
  };
}

/** The actions in short: `start new`, `start c1`, `remove c1`. */
function short(actions: readonly Action[]): string[] {
  return actions.map(({ type, container: target }) => `${type} ${target?.id ?? "new"}`);
}

describe("converge()", () => {
  test("does not run again what ended for good, also when somebody removed its container", () => {
    const ended = converge(view({ containers: [container("exited", { restart: "no", exitCode: 3 })] }));
    const after = converge(view({ memories: ended.memories }));
    expect(after.actions).toEqual([]);
    expect(after.statuses[0]).toMatchObject({ state: "exited", final: true, exit_code: 3 });
  });

  test("forgets nothing before its first assignments, and what is not assigned with those", () => {
    const ended = converge(view({ containers: [container("exited", { restart: "no", exitCode: 3 })] }));
    const before = converge(view({ assigned: undefined, memories: ended.memories }));
    expect([before.actions, before.statuses]).toEqual([[], []]);
    const after = converge(view({ memories: before.memories }));
    expect(after.actions).toEqual([]);
    expect(after.statuses[0]).toMatchObject({ state: "exited", final: true, exit_code: 3 });
    expect([...converge(view({ assigned: new Map(), memories: before.memories })).memories]).toEqual([]);
  });

  const run = new Map([["a", "run"]] as const);
  const stop = new Map([["a", "stop"]] as const);
  const counted = `c1 ${NOW - 2_000}`;
  const due = memory({ counted, startAt: NOW });
  const cases: [string, Partial<View> & { remembered?: Memory }, string[], string | undefined][] = [
    ["creates what is assigned and missing", {}, ["start new"], "pending"],
    ["leaves a running container alone", { containers: [container("running")] }, [], "running"],
    ["leaves a paused container alone", { containers: [container("paused")] }, [], "running"],
    [
      "starts a container that was created and never started",
      { containers: [container("created")] },
      ["start c1"],
      "pending",
    ],
    ["waits out the backoff of an ended container", { containers: [container("exited")] }, [], "exited"],
    [
      "starts an ended container when its backoff is over",
      { containers: [container("exited")], remembered: due },
      ["start c1"],
      "exited",
    ],
    [
      "leaves a listed end alone until it was inspected",
      { containers: [{ ...container("created"), state: "exited" }] },
      [],
      "exited",
    ],
    ["replaces a dead container", { containers: [container("dead")] }, ["remove c1"], "pending"],
    ["waits for a container that is being removed", { containers: [container("removing")] }, [], "pending"],
    [
      "removes what is not assigned",
      { assigned: new Map(), containers: [container("running")] },
      ["remove c1"],
      "stopping",
    ],
    ["removes what is to stop", { assigned: stop, containers: [container("exited")] }, ["remove c1"], "stopping"],
    ["forgets what is stopped and gone", { assigned: stop, remembered: memory() }, [], undefined],
    [
      "reports what is unassigned while a call for it is under way",
      { assigned: new Map(), remembered: memory({ work: "starting" }) },
      [],
      "stopping",
    ],
    [
      "reports what is unassigned while a call's outcome is unknown",
      { assigned: new Map(), remembered: memory({ unsure: true }) },
      [],
      "stopping",
    ],
    ["does nothing twice at once", { remembered: memory({ work: "pulling" }) }, [], "pulling"],
    ["does nothing while a call's outcome is unknown", { remembered: memory({ unsure: true }) }, [], "pending"],
    ["holds what must wait for a removal", { held: new Set(["a"]) }, [], "pending"],
    [
      "waits after a start that failed",
      { remembered: memory({ failures: 1, error: "no", startAt: NOW + 5 }) },
      [],
      "failed",
    ],
    [
      "waits after a removal that failed",
      { assigned: stop, containers: [container("running")], remembered: memory({ removeAt: NOW + 5 }) },
      [],
      "stopping",
    ],
    ["without assignments keeps what runs", { assigned: undefined, containers: [container("running")] }, [], "running"],
    [
      "without assignments restarts what ended",
      { assigned: undefined, containers: [container("exited")], remembered: due },
      ["start c1"],
      "exited",
    ],
    [
      "without assignments revives nothing at first",
      { assigned: undefined, containers: [container("exited")], remembered: due, reviveAt: NOW + 1 },
      [],
      "exited",
    ],
    [
      "without assignments removes no double",
      { assigned: undefined, containers: [container("running"), container("exited", { id: "c2" })] },
      [],
      "running",
    ],
    [
      "removes the one of two that does not run",
      { containers: [container("exited"), container("running", { id: "c2" })] },
      ["remove c1"],
      "running",
    ],
    [
      "removes the younger of two that run",
      { containers: [container("running", { createdAt: 5 }), container("running", { id: "c2" })] },
      ["remove c1"],
      "running",
    ],
    [
      "ignores containers without an allocation",
      { assigned: run, containers: [container("running", { allocation: "" })] },
      ["start new"],
      "pending",
    ],
  ];
  for (const [name, change, actions, state] of cases) {
    test(name, () => {
      const decision = converge(view(change));
      expect(short(decision.actions)).toEqual(actions);
      expect(decision.statuses[0]?.state).toBe(state as never);
    });
  }

  const ends: [string, string, number, number, boolean][] = [
    ["always starts again after success", "always", 0, 0, false],
    ["always starts again after failure", "always", 1, 99, false],
    ["no leaves success ended", "no", 0, 0, true],
    ["no leaves failure ended", "no", 1, 0, true],
    ["on-failure leaves success ended", "on-failure", 0, 0, true],
    ["on-failure starts again after failure", "on-failure", 1, 99, false],
    ["on-failure:3 starts again for the third time", "on-failure:3", 1, 2, false],
    ["on-failure:3 gives up after the third", "on-failure:3", 1, 3, true],
  ];
  for (const [name, restart, exitCode, before, final] of ends) {
    test(`the policy ${name}`, () => {
      const ended = container("exited", { restart, exitCode });
      const first = converge(view({ containers: [ended], remembered: memory({ ends: before }) }));
      const later = converge(view({ containers: [ended], memories: first.memories, now: NOW + 60_000 }));
      expect(later.statuses[0]).toMatchObject({ state: "exited", final, exit_code: exitCode });
      expect(short(later.actions)).toEqual(final ? [] : ["start c1"]);
    });
  }

  test("backs off from 100 ms to 30 s while runs are short, and starts over after a sound one", () => {
    let known = memory();
    const delays: number[] = [];
    for (let n = 0; n < 12; n++) {
      const ended = container("exited", { startedAt: NOW + n, finishedAt: NOW + n + 50 });
      const decision = converge(view({ containers: [ended], remembered: known }));
      known = decision.memories.get("a") as Memory;
      delays.push((decision.wakeAt ?? NOW) - NOW);
    }
    expect(delays.slice(0, 4)).toEqual([100, 200, 400, 800]);
    expect(delays.at(-1)).toBe(30_000);
    const sound = container("exited", { startedAt: NOW - STABLE_MS, finishedAt: NOW });
    expect(converge(view({ containers: [sound], remembered: known })).wakeAt).toBe(NOW + 100);
  });

  test("counts each end once", () => {
    const once = converge(view({ containers: [container("exited")] }));
    const twice = converge(view({ containers: [container("exited")], memories: once.memories }));
    expect(twice.memories.get("a")).toEqual(once.memories.get("a") as Memory);
    expect(once.memories.get("a")?.ends).toBe(1);
  });

  test("reports ports, times, restarts and errors", () => {
    const ports = [{ container_port: 80, protocol: "tcp", host_ip: "0.0.0.0", host_port: 8080 } as const];
    const { statuses } = converge(
      view({ containers: [container("running", { ports })], remembered: memory({ restarts: 2 }) }),
    );
    expect(statuses).toEqual([
      {
        allocation_id: "a",
        state: "running",
        final: false,
        container_id: "c1",
        ports,
        restarts: 2,
        started_at: NOW - 2_000,
      },
    ]);
    const failing = afterFailure(memory(), { error: "port 80 is in use", retryAt: NOW + 1, unsure: false });
    expect(converge(view({ remembered: failing })).statuses[0]?.error).toBe("port 80 is in use");
    expect(converge(view({ remembered: afterStart(failing) })).statuses[0]?.error).toBeUndefined();
  });
});

describe("properties of converge()", () => {
  const states = ["created", "running", "paused", "restarting", "removing", "exited", "dead"] as const;
  const ids = fc.constantFrom("a", "b", "c", "d");
  const containers = fc.uniqueArray(
    fc.record({
      id: fc.stringMatching(/^c[0-9]$/),
      allocation: ids,
      state: fc.constantFrom(...states),
      restart: fc.constantFrom("always", "no", "on-failure", "on-failure:2"),
      exitCode: fc.constantFrom(0, 1),
      createdAt: fc.nat(5),
    }),
    { selector: ({ id }) => id },
  );
  const memories = fc.dictionary(
    ids,
    fc.record({
      restarts: fc.nat(3),
      ran: fc.boolean(),
      ends: fc.nat(4),
      failures: fc.nat(2),
      startAt: fc.constantFrom(0, NOW + 10),
      removeAt: fc.constantFrom(0, NOW + 10),
      unsure: fc.boolean(),
    }),
  );
  const assigned = fc.dictionary(ids, fc.constantFrom("run" as const, "stop" as const));
  const world = fc.record({ containers, memories, assigned });
  type World = typeof world extends fc.Arbitrary<infer T> ? T : never;

  const viewOf = ({ containers: list, memories: known, assigned: wanted }: World, change: Partial<View> = {}): View =>
    view({
      assigned: new Map(Object.entries(wanted)),
      containers: list.map(({ state, ...rest }) => container(state, rest)),
      memories: new Map(Object.entries(known)),
      ...change,
    });

  test("one thing at a time for each allocation, and nothing for one in doubt", () => {
    fc.assert(
      fc.property(world, (w) => {
        const { actions } = converge(viewOf(w));
        const of = actions.map((action) => action.allocation_id);
        expect(new Set(of).size).toBe(of.length);
        for (const id of of) expect(w.memories[id]?.unsure ?? false).toBe(false);
      }),
    );
  });

  test("without assignments nothing is created, stopped or removed", () => {
    fc.assert(
      fc.property(world, (w) => {
        const { actions, statuses } = converge(viewOf(w, { assigned: undefined, now: NOW + 1e6 }));
        for (const action of actions) {
          expect(action.type).toBe("start");
          expect(["created", "exited"]).toContain(action.container?.state ?? "");
        }
        const seen = new Set(w.containers.map((c) => c.allocation));
        for (const id of seen) expect(statuses.map((s) => s.allocation_id)).toContain(id);
      }),
    );
  });

  test("a running container of an assigned allocation is only ever removed for a better one", () => {
    fc.assert(
      fc.property(world, (w) => {
        for (const { type, allocation_id, container: target } of converge(viewOf(w)).actions) {
          if (type !== "remove" || target.state !== "running" || w.assigned[allocation_id] !== "run") continue;
          const others = w.containers.filter((c) => c.allocation === allocation_id && c.id !== target.id);
          expect(others.some(({ state }) => state === "running")).toBe(true);
        }
      }),
    );
  });

  test("the order in which containers are listed changes nothing", () => {
    fc.assert(
      fc.property(world, fc.nat(), (w, turn) => {
        const turned = [...w.containers.slice(turn % 10), ...w.containers.slice(0, turn % 10)];
        const a = converge(viewOf(w));
        const b = converge(viewOf({ ...w, containers: turned }));
        expect([b.actions, b.statuses, b.wakeAt]).toEqual([a.actions, a.statuses, a.wakeAt] as never);
      }),
    );
  });

  test("carried out, decisions settle: exactly what is assigned is there, once, and nothing is left to do", () => {
    fc.assert(
      fc.property(world, (w) => {
        let list: Container[] = w.containers.map(({ state, ...rest }) => container(state, rest));
        let known: ReadonlyMap<string, Memory> = new Map();
        let now = NOW;
        const wanted = new Map(Object.entries(w.assigned));
        for (let round = 0; round < 40; round++) {
          list = list.filter(({ state }) => state !== "removing");
          const { actions, memories: next } = converge(
            view({ assigned: wanted, containers: list, memories: known, now }),
          );
          const changed = new Map(next);
          for (const { type, allocation_id: id, container: target } of actions) {
            list = list.filter((c) => c.id !== target?.id);
            if (type === "remove") continue;
            const restart = target?.labels.get(LABELS.restart) ?? "always";
            list.push(container("running", { id: target?.id ?? `new-${id}`, allocation: id, restart, startedAt: now }));
            changed.set(id, afterStart(changed.get(id) as Memory));
          }
          known = changed;
          now += 60_000;
        }
        const last = converge(view({ assigned: wanted, containers: list, memories: known, now }));
        expect(last.actions).toEqual([]);
        const wantedIds = [...wanted].filter(([, desired]) => desired === "run").map(([id]) => id);
        expect(last.statuses.map((s) => s.allocation_id).sort()).toEqual(wantedIds.sort());
        expect(list.map((c) => c.labels.get(LABELS.allocation)).sort()).toEqual(wantedIds as never);
        for (const status of last.statuses) expect(status.state === "running" || status.final).toBe(true);
      }),
    );
  });
});
