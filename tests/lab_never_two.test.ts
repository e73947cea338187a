/**
 * @module Points 1.1 and 1.2 of issue 15 on real Docker Engines: of what must never run twice (`stop_when_isolated`) there is one container
 * at most, whether its node's Engine hangs, its process was dead, or its clients do not leave.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { DEFAULT_TIMES, runElsewhere } from "./lab_node_life.ts";
import { Member, membersOf } from "./lab_names.ts";
import { isRunning } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(120_000);

const ENGINE_TIMEOUT_MS = 6_000;
const LIMIT_MS = 5_000;
const GRACE_MS = 8_000;
/** On top of the limit and the grace period, the master waits for so long. */
const MARGIN_MS = 2_000;
const ALONE = { stop_when_isolated: `${LIMIT_MS / 1_000}s` };
/** Not the master's, which the test asks. */
const ON_WORKERS = { placement: { constraints: ["node.role == worker"] } };

type NodeAnswer = { state: string; drain: { waiting: { reason: string }[] } | null };

let cluster: LabCluster;

beforeAll(async () => {
  const times = [...DEFAULT_TIMES, "--engine-timeout", `${ENGINE_TIMEOUT_MS / 1_000}s`];
  cluster = await LabCluster.start({ hosts: 3, bootstrap: times });
});

afterAll(async () => {
  await cluster?.lab.stop();
});

beforeEach(async () => {
  await cluster.clear();
  await cluster.ready(3);
});

/** Runs one replica; returns it and the number of the other worker. */
async function begin(job: string, service: Record<string, unknown>): Promise<{ one: Member; other: number }> {
  await cluster.put(job, { services: { web: { ...service, deploy: ON_WORKERS, "x-cacophony": ALONE } } });
  const [one] = await membersOf(cluster, job, "web");
  if (!one) throw new Error("nothing runs");
  return { one, other: 5 - one.host.number };
}

async function reasonOf(job: string): Promise<string> {
  const { services } = await cluster.job(job);
  return services["web"]?.blocked[0]?.reasons[0] ?? "";
}

/** How many containers of ours another host has. */
async function countOn(number: number): Promise<number> {
  return (await cluster.containers(cluster.lab.host(number))).length;
}

/** Waits until the slot says that it waits for a host's Engine, and for twice as long as others would be waited for. */
async function waitsFor(job: string, { one, other }: { one: Member; other: number }): Promise<void> {
  const says = `web.1 may still run on node host-${one.host.number}, whose Docker Engine does not answer`;
  const reason = await waitUntil("the slot to say what it waits for", () => reasonOf(job), {
    until: (text) => text.startsWith(says),
    timeoutMs: 30_000,
  });
  expect(reason).toContain(`POST /cluster/reschedule?node=host-${one.host.number}`);
  const until = performance.now() + 2 * ENGINE_TIMEOUT_MS;
  await waitUntil("time to pass", () => countOn(other), {
    until: (count) => count > 0 || performance.now() > until,
    timeoutMs: 60_000,
  });
  expect([await countOn(other), isRunning(Number(one.pid))]).toEqual([0, true]);
}

describe("never two (points 1.1 and 1.2)", () => {
  test("an Engine that hangs keeps its container the only one, through DELETE and the master's restart, until somebody knows", async () => {
    const story = await begin("hung", sleeper());
    const { one, other } = story;
    const name = `host-${one.host.number}`;
    one.host.dockerd.freeze();
    try {
      await waitsFor("hung", story);
      const removal = await cluster.api<NodeAnswer>(`/cluster/node/${name}`, { method: "DELETE" });
      expect([removal.status, removal.body.state]).toEqual([202, "unready"]);
      expect(removal.body.drain?.waiting[0]?.reason).toContain("web.1 may still run on node");
      await cluster.process(1).kill();
      await cluster.restart(1).waitFor(/this node is up/);
      await waitsFor("hung", story);
      // The operator looks, ends what there is, and says so.
      one.kill();
      const said = await cluster.api<{ nodes: string[] }>(`/cluster/reschedule?node=${name}`, { method: "POST" });
      expect([said.status, said.body.nodes.length]).toEqual([202, 1]);
      await runElsewhere(cluster, "hung", { host: one.host.number, count: 1 });
      expect(await countOn(other)).toBe(1);
    } finally {
      one.host.dockerd.thaw();
    }
    expect(await cluster.process(one.host.number).exited).toBe(0);
    cluster.restart(one.host.number);
    await cluster.ready(3);
  });

  test("an Engine that answers again has its container where it was", async () => {
    const story = await begin("back", sleeper());
    const { one } = story;
    one.host.dockerd.freeze();
    try {
      await waitsFor("back", story);
    } finally {
      one.host.dockerd.thaw();
    }
    await cluster.ready(3);
    const [still] = await membersOf(cluster, "back", "web");
    expect([still?.pid, await reasonOf("back")]).toEqual([one.pid, ""]);
  });

  test("a process that was dead stops what is past its deadline before it has reached anybody", async () => {
    const { one, other } = await begin("dead", sleeper({ stop_grace_period: "1s" }));
    const { number } = one.host;
    await cluster.process(number).kill();
    await one.host.cutOff();
    try {
      // Nobody could stop it: README says so.
      await runElsewhere(cluster, "dead", { host: number, count: 1 });
      expect(isRunning(Number(one.pid))).toBe(true);
      const begun = performance.now();
      const process = cluster.restart(number);
      await waitUntil("the container to be gone", () => cluster.containers(one.host), {
        until: (found) => found.length === 0,
        timeoutMs: LIMIT_MS - 1_000,
        intervalMs: 50,
      });
      console.log(`a process that began stopped what was past its deadline after ${since(begun)} ms`);
      expect(process.logs()).not.toContain("in session with the master");
    } finally {
      await one.host.reconnect();
    }
    await cluster.ready(3);
    expect([await countOn(number), await countOn(other)]).toEqual([0, 1]);
  });

  test("a stop for want of a master is over before another one starts, also where clients stay and signals are of no use", async () => {
    const server = {
      image: "busybox",
      command: ["nc", "-ll", "-p", "80", "-e", "cat"],
      stop_grace_period: `${GRACE_MS / 1_000}s`,
      ports: ["8090:80"],
    };
    const mesh = { ...ALONE, publish: "mesh", balance: "local_first" };
    await cluster.put("busy", {
      services: { web: { ...server, scale: 2, deploy: ON_WORKERS, "x-cacophony": mesh } },
    });
    const members = await membersOf(cluster, "busy", "web");
    const one = members.find(({ host }) => host.number === 3);
    if (!one) throw new Error("nothing runs on host 3");
    const client = one.host.spawn("client", ["sh", "-c", `sleep 600 | busybox nc ${one.host.address} 8090`]);
    await waitUntil("the client to be served", () => one.host.run(["ss", "-Htn", "dport", "=", ":8090"]), {
      until: ({ stdout }) => stdout.includes("ESTAB"),
    });
    const begun = performance.now();
    await one.host.cutOff();
    let goneMs = Infinity;
    try {
      await waitUntil("the container to be gone", () => isRunning(Number(one.pid)), {
        until: (isThere) => !isThere,
        timeoutMs: 60_000,
        intervalMs: 50,
      });
      goneMs = since(begun);
      const runs = () => cluster.allocations("?job=busy&state=running&node=host-2");
      await waitUntil("both to run on the other host", runs, {
        until: (found) => found.length === 2,
        timeoutMs: 60_000,
      });
    } finally {
      await one.host.reconnect();
      await client.kill();
    }
    const late = (await membersOf(cluster, "busy", "web")).find(
      ({ allocation: { slot } }) => slot === one.allocation.slot,
    );
    const startedMs = (late?.startedAt ?? 0) - (performance.timeOrigin + begun);
    console.log(
      `cut off, with a client that stays: ended after ${goneMs} ms, another one started after ${Math.round(startedMs)} ms`,
    );
    expect(goneMs).toBeLessThan(LIMIT_MS + GRACE_MS + MARGIN_MS);
    expect(startedMs).toBeGreaterThan(goneMs);
    await cluster.ready(3);
  });

  test("an ordinary stop takes its grace period once, also where clients stay and signals are of no use", async () => {
    const server = {
      image: "busybox",
      command: ["nc", "-ll", "-p", "80", "-e", "cat"],
      stop_grace_period: `${GRACE_MS / 1_000}s`,
      ports: ["8091:80"],
      "x-cacophony": { publish: "mesh", balance: "local_first" },
    };
    await cluster.put("calm", { services: { web: { ...server, scale: 2, deploy: ON_WORKERS } } });
    const members = await membersOf(cluster, "calm", "web");
    const clients = members.map(({ host }) =>
      host.spawn("client", ["sh", "-c", `sleep 600 | busybox nc ${host.address} 8091`]),
    );
    await waitUntil(
      "the clients to be served",
      () => Promise.all(members.map(({ host }) => host.run(["ss", "-Htn", "dport", "=", ":8091"]))),
      { until: (found) => found.every(({ stdout }) => stdout.includes("ESTAB")) },
    );
    const begun = performance.now();
    await cluster.scale("calm", { service: "web", scale: 1 });
    await waitUntil("one container to be gone", () => members.map(({ pid }) => isRunning(Number(pid))), {
      until: (running) => running.filter(Boolean).length === 1,
      timeoutMs: 60_000,
      intervalMs: 50,
    });
    const tookMs = since(begun);
    console.log(`an ordinary stop of ${GRACE_MS} ms with a client that stays took ${tookMs} ms`);
    for (const client of clients) await client.kill();
    expect(tookMs).toBeGreaterThan(GRACE_MS - 1_000);
    expect(tookMs).toBeLessThan(GRACE_MS + MARGIN_MS);
  });
});

function since(begun: number): number {
  return Math.round(performance.now() - begun);
}
