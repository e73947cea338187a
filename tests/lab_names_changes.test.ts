/** @module Names and addresses in the lab while nodes come, go, move and crash, and while somebody takes the kernel's part away. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { firstAddress } from "../src/subnet.ts";
import { Lab } from "./lab.ts";
import { LabCluster, type NodeDoc, sleeper } from "./lab_cluster.ts";
import { askNode, type Member, membersOf, on, server } from "./lab_names.ts";
import type { Seen } from "./names_client.ts";
import { mustRun } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

/** A node is wired in or out by then, in milliseconds. */
const WIRED_MS = 2_000;
/** What was taken away by hand is back by then, in milliseconds: README, and as much again for a busy machine. */
const REPAIRED_MS = 10_000;

let lab: Lab;
let cluster: LabCluster;
let first: string;
let client: Member;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 3, nodes: 2, bootstrap: ["--node-timeout", "4s"] });
  lab = cluster.lab;
  first = `${lab.host(1).address}:9000`;
  await cluster.put("near", {
    services: { client: sleeper({ deploy: on(1) }), web: server({ deploy: on(2) }), far: server({ deploy: on(3) }) },
  });
});

afterAll(() => lab?.stop());

type NetworkDoc = NodeDoc & { network: { mode: string; reason: string | null; subnets: string[] } };

async function nodeDoc(number: number): Promise<NetworkDoc> {
  const { nodes } = (await cluster.api<{ nodes: NetworkDoc[] }>("/cluster/node")).body;
  const found = nodes.find(({ node_name }) => node_name === `host-${number}`);
  if (!found) throw new Error(`no node on host ${number} yet`);
  return found;
}

async function untilState(number: number, state: string, address?: string): Promise<NetworkDoc> {
  return waitUntil(`the node on host ${number} to be ${state}`, () => nodeDoc(number), {
    until: (node) => node.state === state && (address === undefined || node.address === address),
    timeoutMs: 20_000,
  });
}

/** Whether the nodes on hosts 1 and 2 and the one on host 3 reach each other by their own addresses in the cluster's network. */
async function areWired(): Promise<boolean> {
  const docs = await Promise.all([1, 2, 3].map(nodeDoc));
  const pairs = [1, 2].flatMap((number) => [
    { from: number, to: 3 },
    { from: 3, to: number },
  ]);
  const reached = await Promise.all(
    pairs.map(async ({ from, to }) => {
      const address = firstAddress(docs[to - 1]?.network.subnets[0] ?? "") ?? "";
      return (await lab.host(from).run(["busybox", "ping", "-c", "1", "-W", "1", address])).exitCode === 0;
    }),
  );
  return reached.every(Boolean);
}

async function memberOf(service: string): Promise<Member> {
  const [found] = await membersOf(cluster, "near", service);
  if (!found) throw new Error(`${service} has no replica`);
  return found;
}

test("a node that joins is wired in within 2 s", async () => {
  cluster.node(3, ["join", first]);
  await untilState(3, "ready");
  await waitUntil("the nodes to reach each other", areWired, { timeoutMs: WIRED_MS });
  client = await memberOf("client");
  expect(await client.get("far")).toBeString();
});

test("the name of a node's replica ends within 2 s after the node is down, and leads there again when it is back", async () => {
  const far = await memberOf("far");
  const traffic = client.follow(far.address);
  await cluster.process(3).stop();
  await untilState(3, "unready");
  expect(await client.get("far")).toBeString();
  await untilState(3, "down");
  await waitUntil("the name to lead nowhere", () => client.ask("far"), {
    until: ([answer]) => answer === "none",
    timeoutMs: WIRED_MS,
  });
  // Nobody has ended it: who knows its address reaches it.
  expect(failed(await traffic.stop())).toEqual([]);
  cluster.restart(3);
  await untilState(3, "ready");
  const { address } = await memberOf("far");
  await waitUntil("the name to lead there again", () => client.ask("far"), {
    until: ([answer]) => answer === address,
    timeoutMs: WIRED_MS,
  });
});

test("a node that comes back with another address is wired in within 2 s", async () => {
  const { name, address: former } = lab.host(3);
  const other = former.replace(/\d+$/, "203");
  const move = async (from: string, to: string) => {
    await cluster.process(3).stop();
    await mustRun(["ip", "-n", name, "addr", "del", `${from}/24`, "dev", "eth0"]);
    await mustRun(["ip", "-n", name, "addr", "add", `${to}/24`, "dev", "eth0"]);
    const address = `${to}:9000`;
    cluster.node(3, ["join", first, "--bind-addr", address, "--advertise-addr", address]);
    await untilState(3, "ready", address);
    await waitUntil("the nodes to reach each other", areWired, { timeoutMs: WIRED_MS });
    expect(await client.get("far")).toBeString();
  };
  await move(former, other);
  await move(other, former);
});

test("kill -9 of nodes and of the master leaves traffic and the other nodes' names as they were", async () => {
  const twice = { replicas: 2, placement: { constraints: ["node.hostname != host-1"], max_replicas_per_node: 1 } };
  const once = server({ deploy: { ...twice, restart_policy: { condition: "none" } } });
  await cluster.put("pair", { services: { pair: once } });
  const pair = await membersOf(cluster, "pair", "pair");
  const [near, far] = [2, 3].map((number) => pair.find(({ host }) => host.number === number)!) as [Member, Member];
  const web = await memberOf("web");
  const followers = [client.follow(web.address), (await memberOf("far")).follow("web")];
  await waitUntil("the clients to begin", () => followers.every((one) => one.seen().length > 0));
  await waitUntil("the node to have written down what it knows", () =>
    readFileSync(join(lab.host(2).dataDir, "network.json"), "utf8").includes(far.allocation.allocation_id),
  );

  await cluster.process(1).kill();
  near.kill();
  await waitUntil("the dead replica to have no name on its node", () => askNode(lab.host(2), "pair.pair"), {
    until: (answer) => Bun.deepEquals(answer, [far.address]),
    timeoutMs: WIRED_MS,
  });
  expect(await askNode(lab.host(2), "far.near")).toHaveLength(1);
  await cluster.process(2).kill();
  expect(await askNode(lab.host(2), "far.near")).toEqual(["timed out"]);
  await cluster.restart(2).waitFor(/this node is up/);
  await waitUntil("names to be back without the master", () => askNode(lab.host(2), "far.near"), {
    until: ([answer]) => answer?.startsWith("10.") === true,
    timeoutMs: WIRED_MS,
  });
  await waitUntil("the dead replica to have no name", () => askNode(lab.host(2), "pair.pair"), {
    until: (answer) => Bun.deepEquals(answer, [far.address]),
    timeoutMs: WIRED_MS,
  });
  expect(await askNode(lab.host(3), "web.near")).toEqual([web.address]);
  await cluster.restart(1).waitFor(/this node is up/);
  await cluster.ready(3);
  await waitUntil("the dead replica to have no name anywhere", () => askNode(lab.host(3), "pair.pair"), {
    until: (answer) => Bun.deepEquals(answer, [far.address]),
  });
  const rounds = await Promise.all(followers.map((one) => one.stop()));
  expect(rounds.map(failed)).toEqual([[], []]);
  expect(rounds[1]?.filter(({ addresses }) => addresses[0] !== web.address)).toEqual([]);
});

test("what somebody takes away from the kernel's part is put back", async () => {
  const host = lab.host(1);
  const look = async () => {
    const commands = [
      "ip -4 route",
      "ip -4 neigh show dev cvx",
      "ip -4 -br addr show dev cvx",
      "bridge fdb show dev cvx",
    ];
    const texts = await Promise.all(commands.map(async (line) => (await host.run(line.split(" "))).stdout));
    const rules = (await host.run(["iptables-save"])).stdout.split("\n").filter((line) => line.includes("CACOPHONY"));
    // Without the counters; the order of rules matters, that of the rest does not.
    return [...rules.map((line) => line.replace(/ \[.*/, "")), ...texts.flatMap((text) => text.split("\n").toSorted())];
  };
  const before = await look();
  for (const line of [
    "ip link del cvx",
    "iptables -F CACOPHONY-IN",
    "iptables -F CACOPHONY-INPUT",
    "iptables -D DOCKER-USER -j CACOPHONY-FORWARD",
    "iptables -t nat -F CACOPHONY-NAT",
    "iptables -t raw -F CACOPHONY-RAW",
  ])
    expect([line, (await host.run(line.split(" "))).exitCode]).toEqual([line, 0]);
  await waitUntil("all of it to be back", look, {
    until: (now) => Bun.deepEquals(now, before),
    timeoutMs: REPAIRED_MS,
  });
  expect(await client.get("far")).toBeString();
});

test("without a network names are of one node, and the job and its nodes say so", async () => {
  const alone = await Lab.start({ hosts: 2 });
  try {
    await Promise.all(alone.hosts.map((host) => host.importImage("busybox")));
    const small = new LabCluster(alone);
    const address = `${alone.host(1).address}:9000`;
    await small.node(1, ["bootstrap", "--bind-addr", address, "--network", "none"]).waitFor(/this node is up/);
    small.node(2, ["join", address]);
    await small.ready(2);
    await small.put("split", {
      services: { client: sleeper({ deploy: on(1) }), web: server({ deploy: on(1) }), far: server({ deploy: on(2) }) },
    });
    const [asker] = await membersOf(small, "split", "client");
    expect(await asker?.get("web")).toBeString();
    expect(await asker?.get("far")).toBeUndefined();
    const { nodes } = (await small.api<{ nodes: NetworkDoc[] }>("/cluster/node")).body;
    expect(nodes.map(({ network }) => network.mode)).toEqual(["none", "none"]);
    const text = JSON.stringify(await small.job("split"));
    expect(text).toContain("client on host-1 and far on host-2 cannot reach each other by name");
    expect(text).not.toContain("client on host-1 and web");
    expect((await alone.host(1).run(["ip", "link", "show", "cvx"])).exitCode).not.toBe(0);
  } finally {
    await alone.stop();
  }
});

function failed(rounds: readonly Seen[]): Seen[] {
  return rounds.filter(({ error }) => error !== undefined);
}
