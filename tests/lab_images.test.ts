/** @module Images on real engines and a real registry that wants a login: digests, moved tags, logins, a registry that is gone. */
import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Lab, type LabHost, type LabRegistry } from "./lab.ts";
import { type Allocation, LabCluster, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

const LOGIN = { username: "someone", password: "open-sesame-7" };

type Replica = Allocation & { image_digest: string | null };

let lab: Lab;
let cluster: LabCluster;
let registry: LabRegistry;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 2, join: ["--image-gc", "3s"] });
  lab = cluster.lab;
  registry = await lab.addRegistry({ login: LOGIN });
});

afterEach(() => cluster.clear());
afterAll(() => lab?.stop());

/** Puts another version of an image into the registry; no engine of the lab keeps it. */
async function publish(repository: string, version: number): Promise<string> {
  const host: LabHost = lab.host(1);
  const local = `${repository}:v`;
  const container = (await host.docker("create", "busybox")).trim();
  await host.docker("commit", "--change", `LABEL version=${version}`, container, local);
  await host.docker("rm", container);
  const name = await registry.push(host, local);
  await host.docker("rmi", local);
  return name;
}

function login(body: unknown = LOGIN) {
  const init = { method: "PUT", body: JSON.stringify(body), on: 2 };
  return cluster.api(`/cluster/registry/${registry.address}`, init);
}

async function replicas(jobId: string): Promise<Replica[]> {
  return (await cluster.settled(jobId)).services["web"]?.allocations as Replica[];
}

test("an image that wants a login says so, and runs everywhere once the cluster has it", async () => {
  const image = await publish("private", 1);
  await cluster.put("private", { services: { web: sleeper({ image, scale: 2 }) } });
  const failed = await waitUntil("both to be denied", () => cluster.allocations("?job=private"), {
    until: (all) => all.length === 2 && all.every(({ state, error }) => state === "failed" && error !== null),
  });
  expect(failed.map(({ error }) => error)).toEqual([
    expect.stringContaining(`registry wants a login (PUT /cluster/registry/${registry.address})`),
    expect.stringContaining(`registry wants a login (PUT /cluster/registry/${registry.address})`),
  ]);
  const started = performance.now();
  expect((await login()).status).toBe(201);
  const running = await replicas("private");
  console.log(`images: both replicas run ${Math.round(performance.now() - started)} ms after the login`);
  expect(new Set(running.map(({ node_name }) => node_name)).size).toBe(2);
  expect(new Set(running.map(({ image_digest }) => image_digest)).size).toBe(1);
  expect(running[0]?.image_digest).toStartWith("sha256:");
  const names = await Promise.all(lab.hosts.map((host) => host.docker("ps", "--format", "{{.Image}}")));
  expect(names.map((name) => name.trim())).toEqual([image, image]);
  const listed = await cluster.api("/cluster/registry");
  expect(listed.body).toEqual({ registries: [registry.address] });
  for (const { logs } of [cluster.process(1), cluster.process(2)].map((one) => ({ logs: one.logs() })))
    expect(logs).not.toContain(LOGIN.password);
  for (const file of ["cluster.db", "cluster.db-wal"])
    expect(readFileSync(join(lab.host(1).dataDir, file), "latin1")).not.toContain(LOGIN.password);
});

test("a later replica runs the first one's digest though the tag has moved, and a restart with pull takes the new one", async () => {
  await login();
  const image = await publish("moving", 1);
  const { version } = (await cluster.put("moving", { services: { web: sleeper({ image, scale: 1 }) } })).body;
  const [first] = await replicas("moving");
  await publish("moving", 2);
  await cluster.scale("moving", { service: "web", scale: 2 });
  const pinned = await replicas("moving");
  expect(pinned.map(({ image_digest }) => image_digest)).toEqual([first!.image_digest, first!.image_digest]);

  const restart = await cluster.api<{ version: number }>("/cluster/job/moving/restart", {
    method: "POST",
    body: '{"pull": true}',
  });
  expect([restart.status, restart.body.version]).toEqual([202, version + 2]);
  const moved = await waitUntil("both replicas to be new", () => replicas("moving"), {
    until: (all) => all.every(({ image_digest }) => image_digest !== first!.image_digest),
    timeoutMs: 20_000,
  });
  expect(new Set(moved.map(({ image_digest }) => image_digest)).size).toBe(1);
  expect(moved.some(({ allocation_id }) => allocation_id === first!.allocation_id)).toBe(false);
});

test("with pull_policy always any restart takes what the tag stands for then", async () => {
  await login();
  const image = await publish("always", 1);
  await cluster.put("always", { services: { web: sleeper({ image, pull_policy: "always" }) } });
  const [first] = await replicas("always");
  await publish("always", 2);
  await cluster.api("/cluster/job/always/restart", { method: "POST" });
  await waitUntil("the replica to be new", () => replicas("always"), {
    until: ([one]) => one?.image_digest !== null && one?.image_digest !== first!.image_digest,
    timeoutMs: 20_000,
  });
});

test("different images under one name are used as they are, with a warning", async () => {
  for (const [index, host] of lab.hosts.entries()) {
    const container = (await host.docker("create", "busybox")).trim();
    await host.docker("commit", "--change", `LABEL here=${index}`, container, "local/app:1");
    await host.docker("rm", container);
  }
  await cluster.put("local", { services: { web: sleeper({ image: "local/app:1", scale: 2 }) } });
  const { services } = await cluster.settled("local");
  const { warnings } = services["web"] as unknown as { warnings: string[] };
  expect(warnings).toEqual([
    expect.stringMatching(/^the replicas run different images.*: .* on (host-1; .* on host-2|host-2; .* on host-1);/),
  ]);
});

test("a node's own docker login serves where the cluster has none", async () => {
  expect((await cluster.api(`/cluster/registry/${registry.address}`, { method: "DELETE" })).status).toBe(200);
  const auth = btoa(`${LOGIN.username}:${LOGIN.password}`);
  for (const host of lab.hosts) {
    mkdirSync(join(host.dir, ".docker"), { recursive: true });
    writeFileSync(join(host.dir, ".docker/config.json"), JSON.stringify({ auths: { [registry.address]: { auth } } }));
  }
  const image = await publish("own", 1);
  await cluster.put("own", { services: { web: sleeper({ image, scale: 2 }) } });
  expect((await replicas("own")).length).toBe(2);
});

test("a node that is told to removes what it pulled and nothing uses; what is in use, and what is not ours, stays", async () => {
  await login();
  const host = lab.host(2);
  const [unused, used, first] = [await publish("unused", 1), await publish("used", 1), await publish("first", 1)];
  const here = { deploy: { placement: { constraints: ["node.hostname == host-2"] } } };
  await host.docker("tag", "busybox", "theirs:1");
  await cluster.put("first", { services: { web: sleeper({ image: first, ...here }) } });
  await cluster.put("gc", {
    services: { web: sleeper({ image: unused, ...here }), too: sleeper({ image: used, ...here }) },
  });
  await cluster.settled("gc");
  const images = async () => {
    const all = (await host.docker("images", "--format", "{{.Repository}}:{{.Tag}}")).trim().split("\n");
    return all.filter((name) => [unused, used, first, "theirs:1", "busybox:latest"].includes(name)).toSorted();
  };
  const all = [unused, used, "theirs:1", "busybox:latest"].toSorted();
  const byHand = (await host.docker("create", used, "true")).trim();
  const without = (name: string) =>
    waitUntil(`${name} to go`, images, { until: (list) => !list.includes(name), timeoutMs: 20_000 });
  await cluster.settled("first");
  await cluster.api("/cluster/job/first", { method: "DELETE" });
  expect(await without(first)).toEqual(all);
  await cluster.clear();
  expect(await without(unused)).toEqual(all.filter((name) => name !== unused));
  await host.docker("rm", byHand);
  expect(await without(used)).toEqual(["busybox:latest", "theirs:1"]);
});

test("with the registry gone, what is present runs, and what is absent says that the registry can't be reached", async () => {
  await login();
  const image = await publish("kept", 1);
  const service = { web: sleeper({ image, scale: 2 }) };
  await cluster.put("kept", { services: service });
  await replicas("kept");
  registry.host.powerOff();
  await cluster.put("again", { services: service });
  expect((await replicas("again")).length).toBe(2);
  await cluster.put("absent", { services: { web: sleeper({ image: `${registry.address}/absent:1` }) } });
  const [failed] = await waitUntil("the absent one to fail", () => cluster.allocations("?job=absent"), {
    until: ([one]) => Boolean(one?.error),
  });
  expect(failed?.error).toStartWith(`registry ${registry.address} cannot be reached: `);
  await cluster.put("never", { services: { web: sleeper({ image: "no/such:1", pull_policy: "never" }) } });
  const [refused] = await waitUntil("the forbidden pull to be told", () => cluster.allocations("?job=never"), {
    until: ([one]) => Boolean(one?.error),
  });
  expect(refused?.error).toStartWith("image no/such:1 is not on this node, and pull_policy is never");
});
