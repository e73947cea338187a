/** @module Generic resources, as the operators of two Docker Engines name them, in placement. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { Lab } from "./lab.ts";
import { LabCluster, perNode, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(90_000);

let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  lab = await Lab.start({ hosts: 2, docker: false });
  await lab.host(1).startDocker();
  await lab
    .host(2)
    .startDocker({ config: { "node-generic-resources": ["dongle=2", "NVIDIA-GPU=GPU-aa", "NVIDIA-GPU=GPU-bb"] } });
  await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
  cluster = new LabCluster(lab);
  const first = `${lab.host(1).address}:9000`;
  await cluster.node(1, ["--bind-addr", first, "bootstrap"]).waitFor(/this node is up/);
  cluster.node(2, ["join", first]);
  await cluster.ready(2);
});

afterAll(async () => {
  await lab?.stop();
});

test("replicas that ask for a generic resource run where it is, and never more of them than there are", async () => {
  const reservations = { generic_resources: [{ discrete_resource_spec: { kind: "dongle", value: 1 } }] };
  await cluster.put("keys", { services: { key: sleeper({ deploy: { replicas: 3, resources: { reservations } } }) } });
  const holds = async () => cluster.job("keys");
  const full = await waitUntil("two replicas to run and the third to say what is lacking", holds, {
    until: ({ services: { key } }) => key?.counts["running"] === 2 && key.blocked.length === 1,
    timeoutMs: 30_000,
  });
  const { key } = full.services;
  expect(perNode(key?.allocations ?? [])).toEqual({ "host-2": 2 });
  expect(key?.blocked[0]?.reasons).toEqual(["1 node: has 0 of 1 dongle (of 2)", "1 node: has no dongle"]);
  const [node] = key?.allocations ?? [];
  const { body } = await cluster.api<Record<string, { devices: object[] }>>("/cluster/resources");
  expect(body[node?.node_id ?? ""]?.devices).toEqual([
    { kind: "dongle", total: 2, reserved: 2 },
    { kind: "gpu", total: 2, reserved: 0 },
  ]);
  // What is given back is there for the next one.
  await cluster.scale("keys", { service: "key", scale: 1 });
  await cluster.settled("keys");
  await cluster.put("more", { services: { more: sleeper({ deploy: { resources: { reservations } } }) } });
  expect(perNode((await cluster.settled("more")).services["more"]?.allocations ?? [])).toEqual({ "host-2": 1 });
  await cluster.clear();
});

test("a service that asks for GPUs goes where they are, which Docker without their driver refuses", async () => {
  const devices = [{ driver: "nvidia", device_ids: ["GPU-bb"], capabilities: ["gpu"] }];
  const gpu = sleeper({ deploy: { replicas: 2, resources: { reservations: { devices } } } });
  await cluster.put("gpu", { services: { gpu } });
  const { services } = await waitUntil("the start to be refused", () => cluster.job("gpu"), {
    until: ({ services: { gpu: one } }) => one?.allocations[0]?.state === "failed",
    timeoutMs: 30_000,
  });
  expect(perNode(services["gpu"]?.allocations ?? [])).toEqual({ "host-2": 1 });
  expect(services["gpu"]?.allocations[0]?.error).toContain("could not select device driver");
  expect(services["gpu"]?.blocked[0]?.reasons).toEqual(["1 node: gpu GPU-bb is taken", "1 node: has no gpu"]);
  await cluster.clear();
});
