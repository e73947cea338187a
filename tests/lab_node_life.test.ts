/**
 * @module What becomes of replicas when machines are cut off, freeze, hang, are emptied, leave and come back, on real hosts and
 * Docker Engines and with the times that users have unless they say otherwise.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync } from "node:fs";
import type { Allocation } from "./lab_cluster.ts";
import { LabCluster, perNode, sleeper } from "./lab_cluster.ts";
import { DEFAULT_TIMES, eachSlotOnce, run, runElsewhere } from "./lab_node_life.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(120_000);

type Waiting = { job_id: string; service_name: string; slot: number; reason: string };
type Node = {
  node_id: string;
  node_name: string;
  state: string;
  reason: string;
  availability: string;
  drained: boolean;
  drain: { waiting: Waiting[]; leave: boolean } | null;
};

let cluster: LabCluster;

beforeAll(async () => {
  // A dead engine is given up sooner than by default, so that a test can wait for it.
  const times = [...DEFAULT_TIMES, "--engine-timeout", "6s"];
  cluster = await LabCluster.start({ hosts: 3, bootstrap: times });
});

afterAll(async () => {
  await cluster?.lab.stop();
});

beforeEach(async () => {
  await cluster.clear();
  await cluster.ready(3);
});

async function node(name: string, on = 1): Promise<Node> {
  return (await cluster.api<Node>(`/cluster/node/${name}`, { on })).body;
}

async function setNode(name: string, body: unknown, query = ""): Promise<{ status: number; body: Node }> {
  return cluster.api<Node>(`/cluster/node/${name}${query}`, { method: "PUT", body: JSON.stringify(body) });
}

describe("a machine that falls silent", () => {
  test("whose process only starts again keeps all it runs", async () => {
    await run(cluster, "restart", 6);
    const before = await cluster.allocations("?job=restart");
    await cluster.process(3).kill();
    await waitUntil("the master to have noticed", () => node("host-3"), { until: ({ state }) => state !== "ready" });
    cluster.restart(3);
    await cluster.ready(3);
    const kept = (list: Allocation[]) => list.map(({ allocation_id, container_id }) => [allocation_id, container_id]);
    expect(kept(await cluster.allocations("?job=restart"))).toEqual(kept(before));
  });

  test("with most others may mean that the master is cut off: nothing is given up until somebody says so", async () => {
    await run(cluster, "mass", 6);
    const before = (await cluster.allocations("?job=mass")).map(({ allocation_id }) => allocation_id).toSorted();
    const status = async () =>
      (await cluster.api<{ mass_failure: { nodes: string[] } | null }>("/cluster/status")).body;
    const workers = [cluster.lab.host(2), cluster.lab.host(3)];
    for (const host of workers) await host.cutOff();
    try {
      await waitUntil("the master to suspect itself", status, { until: (seen) => seen.mass_failure !== null });
      await waitUntil("both to count as down", async () => [await node("host-2"), await node("host-3")], {
        until: (nodes) => nodes.every(({ state }) => state === "down"),
      });
      const held = await cluster.allocations("?job=mass");
      expect(held.map(({ allocation_id }) => allocation_id).toSorted()).toEqual(before);
      const answer = await cluster.api<{ nodes: string[] }>("/cluster/reschedule", { method: "POST" });
      expect([answer.status, answer.body.nodes.length]).toEqual([202, 2]);
      await waitUntil("all to run on the master's machine", () => cluster.allocations("?job=mass&state=running"), {
        until: (found) => found.length === 6 && found.every(({ node_name }) => node_name === "host-1"),
      });
      expect((await status()).mass_failure).toBeNull();
    } finally {
      for (const host of workers) await host.reconnect();
    }
    await cluster.ready(3);
    await eachSlotOnce(cluster, "mass", 6);
  });
});

describe("a Docker Engine that is no use", () => {
  test("makes its node unready with a reason, and is given up after the engine timeout", async () => {
    await run(cluster, "hung", 6);
    cluster.lab.host(3).dockerd.freeze();
    try {
      const seen = await waitUntil("the node to be unready", () => node("host-3"), {
        until: ({ state }) => state === "unready",
        timeoutMs: 15_000,
      });
      expect(seen.reason).not.toBe("");
      await runElsewhere(cluster, "hung", { host: 3, count: 6 });
    } finally {
      cluster.lab.host(3).dockerd.thaw();
    }
    await cluster.ready(3);
    await eachSlotOnce(cluster, "hung", 6);
  });
});

describe("a replica that does not get well", () => {
  type End = { exit_code: number; log_tail: string[] };
  type Past = { cause: string; node_name: string; last_end: End };
  type Story = { history: { slot: number; allocations: Past[] }[]; problems: string[] };

  test("is tried on another node, and its slot tells how it ended there, also after the master's restart", async () => {
    const broken = { image: "busybox", command: ["sh", "-c", "echo broken; exit 3"] };
    await cluster.put("broken", { services: { web: broken } });
    const story = async () => (await cluster.job("broken")).services["web"] as unknown as Story;
    const first = await waitUntil("the slot to have moved", story, {
      until: ({ history }) => (history[0]?.allocations.length ?? 0) > 0,
      timeoutMs: 60_000,
    });
    expect(first.history[0]?.allocations[0]).toMatchObject({
      cause: "failing",
      last_end: { exit_code: 3, log_tail: ["broken"] },
    });
    const [now] = await waitUntil("it to have ended on another node, too", () => cluster.allocations("?job=broken"), {
      until: ([one]) =>
        one !== undefined && one.node_name !== first.history[0]?.allocations[0]?.node_name && one.restarts > 0,
      timeoutMs: 30_000,
    });
    expect((now as unknown as { last_end: End }).last_end).toMatchObject({ exit_code: 3 });
    await cluster.process(1).kill();
    cluster.restart(1);
    await cluster.ready(3);
    expect((await story()).history[0]?.allocations[0]).toEqual(first.history[0]?.allocations[0] as Past);
  });

  test.each([
    ["an image that is not there", { image: "10.77.0.1:1/none" }, "registry 10.77.0.1:1 cannot be reached"],
    ["a command that is none", { image: "busybox", command: ["nonsense"] }, "nonsense"],
  ])("says so in one sentence: %s", async (_, service, named) => {
    await cluster.put("faulty", { services: { web: service } });
    const story = async () => (await cluster.job("faulty")).services["web"] as unknown as Story;
    const { problems } = await waitUntil("the job to say what is wrong", story, {
      until: ({ problems: all }) => all.length > 0,
      timeoutMs: 30_000,
    });
    expect(problems[0]).toMatch(/^slot 1 on node host-\d: /);
    expect(problems[0]).toContain(named);
  });
});

describe("a node whose disk is nearly full", () => {
  test("gets nothing new, says why, and keeps what it has", async () => {
    await run(cluster, "disk", 3);
    const join = ["join", `${cluster.lab.host(1).address}:9000`];
    await cluster.process(3).stop();
    cluster.node(3, [...join, "--disk-limit", "1"]);
    await cluster.ready(3);
    const full = await waitUntil("the node to say that it is full", () => node("host-3"), {
      until: ({ reason }) => reason !== "",
    });
    expect(full.reason).toMatch(/^Docker's disk .* is \d+ % full \(--disk-limit 1\)$/);
    await cluster.scale("disk", { service: "web", scale: 9 });
    await cluster.settled("disk");
    expect(perNode(await cluster.allocations("?job=disk"))).toMatchObject({ "host-3": 1 });
    await cluster.process(3).stop();
    cluster.node(3, [...join, "--disk-limit", "90"]);
    await cluster.ready(3);
  });
});

describe("a node that is to be emptied", () => {
  const data = { volumes: ["data:/data"] };

  test("starts each replica elsewhere before the old one stops, and keeps what has its data there", async () => {
    await cluster.put("shop", {
      services: {
        web: sleeper({ scale: 6 }),
        agent: sleeper({ deploy: { mode: "global" } }),
        db: sleeper({ ...data, deploy: { placement: { constraints: ["node.hostname == host-2"] } } }),
      },
      volumes: { data: {} },
    });
    await cluster.settled("shop");
    let fewest = 6;
    const watch = setInterval(() => {
      void cluster.allocations("?job=shop&service=web&state=running").then((found) => {
        fewest = Math.min(fewest, found.length);
      });
    }, 50);
    expect((await setNode("host-2", { availability: "drain" })).body.availability).toBe("drain");
    const emptied = await waitUntil("all but the data to have left", () => node("host-2"), {
      until: ({ drain }) => drain?.waiting.length === 2,
      timeoutMs: 30_000,
    });
    clearInterval(watch);
    expect(fewest).toBe(6);
    expect(emptied.drained).toBe(false);
    expect(emptied.drain?.waiting.map(({ service_name, reason }) => `${service_name}: ${reason}`)).toEqual([
      "agent: it runs on each node, and leaves last",
      "db: its data are on this node: with ?force=true it moves without them",
    ]);
    await setNode("host-2", { availability: "active" });
    await cluster.settled("shop");
  });

  test("gives up data when it is forced to, and is drained then", async () => {
    await cluster.put("forced", { services: { db: sleeper(data) }, volumes: { data: {} } });
    await cluster.settled("forced");
    const home = (await cluster.allocations("?job=forced"))[0]?.node_name ?? "";
    await setNode(home, { availability: "drain" }, "?force=true");
    await waitUntil("the node to be empty", () => node(home), { until: ({ drained }) => drained });
    const moved = await cluster.settled("forced");
    expect(moved.services["db"]?.allocations[0]?.node_name).not.toBe(home);
    await setNode(home, { availability: "active" });
  });

  test("may be the master, and takes nothing new while it is paused", async () => {
    await run(cluster, "master", 3);
    await setNode("host-1", { availability: "drain" });
    await waitUntil("the master to be empty", () => node("host-1"), { until: ({ drained }) => drained });
    expect(perNode(await cluster.allocations("?job=master"))).not.toHaveProperty("host-1");
    await setNode("host-1", { availability: "pause" });
    await cluster.scale("master", { service: "web", scale: 6 });
    await cluster.settled("master");
    expect(perNode(await cluster.allocations("?job=master"))).not.toHaveProperty("host-1");
    await setNode("host-1", { availability: "active" });
  });

  test("stops what found no place elsewhere when its deadline has passed", async () => {
    await run(cluster, "late", 3, { deploy: { placement: { max_replicas_per_node: 1 } } });
    await setNode("host-3", { availability: "drain", deadline: "2s" });
    await waitUntil("the node to be empty", () => node("host-3"), { until: ({ drained }) => drained });
    const { services } = await cluster.job("late");
    expect(services["web"]?.blocked[0]?.reasons.join()).toContain("has max_replicas_per_node (1)");
    await setNode("host-3", { availability: "active" });
    await cluster.settled("late");
  });

  test("stops first what nothing but its host port keeps from other nodes, and says so", async () => {
    await run(cluster, "port", 3, { ports: ["8080:80"] });
    await setNode("host-3", { availability: "drain" });
    await waitUntil("the node to be empty", () => node("host-3"), { until: ({ drained }) => drained });
    const { services } = await cluster.job("port");
    expect(services["web"]?.blocked[0]?.reasons.join()).toContain("2 nodes: host port 8080 taken");
    await setNode("host-3", { availability: "active" });
    await cluster.settled("port");
  });
});

describe("a node that leaves", () => {
  test("by its own command is empty before it goes, takes the kernel's part along, and may join again", async () => {
    await run(cluster, "leaving", 6);
    const host = cluster.lab.host(3);
    const { network } = (await cluster.api<{ network: { subnets: string[] } }>("/cluster/node/host-3")).body;
    const routes = async () => (await cluster.lab.host(2).run(["ip", "route", "show", "dev", "cvx"])).stdout;
    expect(await routes()).toContain(network.subnets[0] ?? "none");
    const left = await host.runCacophony(["leave"]);
    expect([left.exitCode, left.stderr]).toEqual([0, ""]);
    expect(left.stdout).toContain("this node has left its cluster");
    await waitUntil("the other nodes' routes to it to be gone", routes, {
      until: (found) => !found.includes(network.subnets[0] ?? "none"),
      timeoutMs: 2_000,
    });
    expect(await cluster.process(3).exited).toBe(0);
    expect((await cluster.containers(host)).length).toBe(0);
    expect((await host.run(["ip", "link", "show", "cvx"])).exitCode).not.toBe(0);
    expect((await host.run(["iptables-save"])).stdout).not.toContain("CACOPHONY");
    expect(perNode(await cluster.allocations("?job=leaving&state=running"))).not.toHaveProperty("host-3");
    const resumed = await host.runCacophony([]);
    expect([resumed.exitCode, resumed.stderr]).toEqual([2, expect.stringContaining("has left its cluster")]);
    cluster.restart(3);
    await cluster.ready(3);
  });

  test("while it is down goes at once, and leaves what it runs when it is back", async () => {
    await run(cluster, "removed", 6);
    const host = cluster.lab.host(3);
    await host.cutOff();
    await waitUntil("the node to be down", () => node("host-3"), { until: ({ state }) => state === "down" });
    const answer = await cluster.api<Node>("/cluster/node/host-3", { method: "DELETE" });
    expect([answer.status, answer.body.state]).toEqual([200, "left"]);
    await runElsewhere(cluster, "removed", { host: 3, count: 6 });
    await host.reconnect();
    expect(await cluster.process(3).exited).toBe(0);
    await eachSlotOnce(cluster, "removed", 6);
    cluster.restart(3);
    await cluster.ready(3);
  });

  test("while its Docker Engine hangs is out when that is given up, and leaves what it runs when it is back", async () => {
    await run(cluster, "hanging", 6);
    const host = cluster.lab.host(3);
    host.dockerd.freeze();
    try {
      const answer = await cluster.api<Node>("/cluster/node/host-3", { method: "DELETE" });
      expect([answer.status, answer.body.state]).toEqual([202, "ready"]);
      await waitUntil("the node to be gone", () => cluster.nodes(), {
        until: (nodes) => nodes.some(({ node_name, state }) => node_name === "host-3" && state === "left"),
        timeoutMs: 30_000,
      });
      await runElsewhere(cluster, "hanging", { host: 3, count: 6 });
      expect(cluster.process(3).running).toBe(true);
    } finally {
      host.dockerd.thaw();
    }
    expect(await cluster.process(3).exited).toBe(0);
    await eachSlotOnce(cluster, "hanging", 6);
    cluster.restart(3);
    await cluster.ready(3);
  });

  test("is never the master", async () => {
    const answer = await cluster.api<{ error: { code: string } }>("/cluster/node/host-1", { method: "DELETE" });
    expect([answer.status, answer.body.error.code]).toEqual([409, "conflict"]);
  });
});

describe("a machine that lost its data directory", () => {
  test("and starts before its Docker Engine waits for that, and is the node that it was, with its containers (point 5)", async () => {
    await run(cluster, "orphans", 6);
    const host = cluster.lab.host(3);
    const members = async () => {
      const found = (await cluster.nodes()).filter(({ state }) => state !== "left");
      return found.map(({ node_id, node_name, state }) => `${node_name} ${node_id} ${state}`);
    };
    const before = await members();
    await cluster.process(3).kill();
    await host.killDocker();
    rmSync(host.dataDir, { recursive: true });
    cluster.restart(3);
    // It does not know yet where to listen but on loopback.
    const said = async () => (await host.curl("http://127.0.0.1:9000/readyz")).stdout;
    await waitUntil("the node to say what it waits for", said, {
      until: (text) => text.includes(`waits for the Docker Engine at unix://${host.dockerSocket} before it joins: `),
    });
    await runElsewhere(cluster, "orphans", { host: 3, count: 6 });
    expect(await members()).toEqual(
      before.map((one) => (one.startsWith("host-3 ") ? one.replace("ready", "down") : one)),
    );
    await host.restartDocker();
    // The same nodes, and nothing is left of what was started elsewhere meanwhile.
    await waitUntil("the node to be back as itself", members, { until: (found) => Bun.deepEquals(found, before) });
    await cluster.settled("orphans");
    await eachSlotOnce(cluster, "orphans", 6);
  });
});
