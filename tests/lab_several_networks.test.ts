/** @module Services on several networks, and on internal ones, spread over two hosts with their own Docker Engines. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import type { Lab } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 2 });
  lab = cluster.lab;
});

afterAll(async () => {
  await lab?.stop();
});

test("a service on several networks reaches what is on each of them on another node, and is reached from there", async () => {
  const on = (host: number) => ({ placement: { constraints: [`node.hostname == host-${host}`] } });
  const says = (text: string) => ({
    image: "busybox",
    command: ["sh", "-c", `while true; do echo ${text} | nc -l -p 7000; done`],
    stop_signal: "SIGKILL",
  });
  await cluster.put("shop", {
    services: {
      outside: sleeper({ deploy: on(1), networks: ["front"] }),
      // Docker has the containers of several networks leave by the first in the order of their names: front, here.
      both: { ...says("both"), deploy: on(1), networks: ["back", "front"] },
      inside: sleeper({ deploy: on(1), networks: ["back"] }),
      db: { ...says("db"), deploy: on(2), networks: ["back"] },
    },
    networks: { back: { internal: true }, front: {} },
  });
  const { services } = await cluster.settled("shop");
  const ask = async (from: string, to: string) => {
    const [allocation] = services[from]?.allocations ?? [];
    const host = lab.host(allocation?.node_name === "host-1" ? 1 : 2);
    const command = `echo | nc -w 2 ${to} 7000 2>&1; true`;
    return (await host.docker("exec", allocation?.container_id ?? "", "sh", "-c", command)).trim();
  };
  const hears = (from: string, to: string) =>
    waitUntil(`${from} to reach ${to}`, () => ask(from, to), { until: (said) => said === to, timeoutMs: 10_000 });
  await hears("inside", "db");
  await hears("both", "db");
  await hears("db", "both");
  await hears("outside", "both");
  expect(await ask("outside", "db")).toContain("bad address");
  const [db] = (
    await lab
      .host(2)
      .docker(
        "inspect",
        "-f",
        "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
        services["db"]?.allocations[0]?.container_id ?? "",
      )
  ).split("\n");
  expect(await ask("outside", db ?? "")).toContain("timed out");
  expect(await ask("inside", lab.host(2).address)).toContain("timed out");
  await cluster.clear();
});

test("a replica that is to stop first ends what came to it by another node's entry", async () => {
  const slow = (scale: number) => ({
    services: {
      slow: {
        image: "busybox",
        command: ["sh", "-c", "while true; do (sleep 4; echo done) | nc -l -p 80; done"],
        stop_signal: "SIGKILL",
        ports: [{ target: 80, published: 8093, mode: "ingress" }],
        deploy: { replicas: scale, placement: { constraints: ["node.hostname == host-2"] } },
      },
    },
  });
  await cluster.put("drained", slow(2));
  await cluster.settled("drained");
  // Busybox ends a connection when its input ends.
  const client = "sleep 8 | timeout 15 busybox nc 127.0.0.1 8093";
  const ask = async () => (await lab.host(1).run(["sh", "-c", client])).stdout.trim();
  const sockets = async (state: string) =>
    (await lab.host(1).run(["ss", "-Hnt", "state", state, "sport = :8093"])).stdout.split("\n").filter(Boolean).length;
  await waitUntil("the entry to be open", () => sockets("listening"), { until: (count) => count > 0 });
  const answers = [ask(), ask()];
  await waitUntil("both to be connected", () => sockets("established"), { until: (count) => count === 2 });
  await cluster.scale("drained", { service: "slow", scale: 1 });
  expect(await Promise.all(answers)).toEqual(["done", "done"]);
  await cluster.settled("drained");
  await cluster.clear();
});
