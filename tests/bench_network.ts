/**
 * @module Figures of names and addresses over nodes (`npm run bench -- network`): the ways from a client to a container, with
 * Docker's published ports and Swarm's routing mesh on the same engines in the same run; the name server; and how soon names
 * follow replicas. Needs root and the packages of `setup.sh`; the executable is `dist/cacophony`. Prints tables of medians.
 *
 * Each way is measured in turn, round after round, so that what else the machine does hits all alike; ratios are to the first way.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Load, Sight } from "./bench_network_load.ts";
import { loadDns, startDnsProcess } from "./dns_load.ts";
import { Lab, type LabHost } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { mustRun } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

const LOAD = join(import.meta.dir, "bench_network_load.ts");
const ROUNDS = 3;
/** Of each of the three measurements of a way in a round. */
const DURATION_MS = 1_000;
const REPLICA_RUNS = 7;
const CONTAINER_PORT = 7000;
const PORTS = { entryNear: 7001, entryFar: 7002, published: 7003, swarm: 7004 };

/** Where a client stands (the test process's own machine if nowhere else), and where it connects to. */
type Way = { what: string; from?: string[]; address: string; port: number };

export async function benchNetwork(): Promise<void> {
  const lab = await Lab.start({ hosts: 2 });
  const servers: Bun.Subprocess[] = [];
  try {
    const cluster = await startCluster(lab);
    const ways = await buildWays(lab, { cluster, servers });
    const loads = await measure(ways);
    printWays(ways, loads);
    for (const server of servers.splice(0)) server.kill();
    await leaveSwarm(lab);
    print(await names());
    print(await following(lab, cluster));
  } finally {
    for (const server of servers) server.kill();
    await lab.stop();
  }
}

async function startCluster(lab: Lab): Promise<LabCluster> {
  await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
  const cluster = new LabCluster(lab);
  const first = `${lab.host(1).address}:9000`;
  await lab
    .host(1)
    .cacophony(["--bind-addr", first, "bootstrap"])
    .waitFor(/this node is up/);
  lab.host(2).cacophony(["join", first]);
  await cluster.ready(2);
  return cluster;
}

// ---- The ways ---------------------------------------------------------------------------------------------------------

/** Containers of one job that only sleep; this module's own server and client run in their network namespaces. */
async function buildWays(
  lab: Lab,
  { cluster, servers }: { cluster: LabCluster; servers: Bun.Subprocess[] },
): Promise<Way[]> {
  const on = (host: number) => ({ deploy: { placement: { constraints: [`node.hostname == host-${host}`] } } });
  const port = (published: number, mode: string) => ({ target: CONTAINER_PORT, published, mode });
  await cluster.put("bench", {
    services: {
      client: sleeper(on(1)),
      near: sleeper({ ...on(1), ports: [port(PORTS.entryNear, "ingress")] }),
      far: sleeper({ ...on(2), ports: [port(PORTS.entryFar, "ingress"), port(PORTS.published, "host")] }),
    },
  });
  const { services } = await cluster.settled("bench");
  const [one, two] = [lab.host(1), lab.host(2)];
  const idOf = (service: string) => services[service]?.allocations[0]?.container_id ?? "";
  const client = await containerOf(idOf("client"), one);
  const near = await containerOf(idOf("near"), one);
  const far = await containerOf(idOf("far"), two);
  for (const { inside } of [near, far]) servers.push(tool(inside, "serve", CONTAINER_PORT));
  const swarm = await startSwarm(lab, servers);
  return [
    { what: "container to container, one host", from: client.inside, address: near.address, port: CONTAINER_PORT },
    { what: "container to container, two hosts", from: client.inside, address: far.address, port: CONTAINER_PORT },
    { what: "port that Docker publishes, on the replica's host", address: two.address, port: PORTS.published },
    { what: "the same by its loopback: docker-proxy", from: onHost(two), address: "127.0.0.1", port: PORTS.published },
    { what: "mesh entry, replica on the same host", address: one.address, port: PORTS.entryNear },
    { what: "mesh entry, replica on another host", address: one.address, port: PORTS.entryFar },
    ...swarm,
  ];
}

async function containerOf(id: string, host: LabHost): Promise<{ inside: string[]; address: string }> {
  const format = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
  const [pid = "", address = ""] = (await host.docker("inspect", "--format", format, id)).split(" ");
  return { inside: inNamespace(`/proc/${pid}/ns/net`), address };
}

function inNamespace(path: string): string[] {
  return ["nsenter", `--net=${path}`, "--"];
}

function onHost({ name }: LabHost): string[] {
  return inNamespace(`/run/netns/${name}`);
}

function tool(inside: readonly string[], ...args: (string | number)[]): Bun.Subprocess {
  const argv = [...inside, process.execPath, LOAD, ...args.map(String)];
  return Bun.spawn(argv, { stdio: ["ignore", "pipe", "inherit"] });
}

/** Swarm's own network between two containers, and one task on the second host behind a port of both. */
async function startSwarm(lab: Lab, servers: Bun.Subprocess[]): Promise<Way[]> {
  const [one, two] = [lab.host(1), lab.host(2)];
  await one.docker("swarm", "init", "--advertise-addr", one.address);
  const token = await one.docker("swarm", "join-token", "--quiet", "worker");
  await two.docker("swarm", "join", "--token", token, "--advertise-addr", two.address, `${one.address}:2377`);
  await one.docker("network", "create", "--driver", "overlay", "--attachable", "swarmnet");
  const place = async (host: LabHost) => {
    const id = await host.docker("run", "--detach", "--network", "swarmnet", "busybox", "sleep", "86400");
    return containerOf(id, host);
  };
  const near = await place(one);
  const far = await place(two);
  servers.push(tool(far.inside, "serve", CONTAINER_PORT));
  const ways: Way[] = [
    {
      what: "Swarm's network, container to container, two hosts",
      from: near.inside,
      address: far.address,
      port: CONTAINER_PORT,
    },
  ];
  // Every network namespace has the file once the kernel, which Docker has just asked for it, has IPVS.
  if (!existsSync("/proc/net/ip_vs")) {
    console.error("bench: left out Swarm's routing mesh, which needs IPVS: this kernel has none");
    return ways;
  }
  const node = await two.docker("info", "--format", "{{.Swarm.NodeID}}");
  const options = ["--detach", "--no-resolve-image", "--constraint", `node.id==${node}`];
  const publish = ["--publish", `${PORTS.swarm}:${CONTAINER_PORT}`];
  await one.docker("service", "create", ...options, ...publish, "--name", "bench", "busybox", "sleep", "86400");
  const task = await waitUntil(
    "Swarm to run its task",
    () => two.docker("ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=bench"),
    { timeoutMs: 30_000 },
  );
  servers.push(tool((await containerOf(task, two)).inside, "serve", CONTAINER_PORT));
  return [
    ...ways,
    { what: "Swarm's routing mesh, task on the same host", address: two.address, port: PORTS.swarm },
    { what: "Swarm's routing mesh, task on another host", address: one.address, port: PORTS.swarm },
  ];
}

async function leaveSwarm(lab: Lab): Promise<void> {
  for (const host of lab.hosts.toReversed()) {
    const state = await host.docker("info", "--format", "{{.Swarm.LocalNodeState}}");
    if (state !== "inactive") await host.docker("swarm", "leave", "--force");
  }
}

async function answers(way: Way): Promise<boolean> {
  const { connections } = await clientOf(way, 20);
  return connections > 0;
}

async function clientOf({ from = [], address, port }: Way, durationMs: number): Promise<Load> {
  const timeoutMs = durationMs * 3 + 5_000;
  return JSON.parse(
    await mustRun([...from, process.execPath, LOAD, "load", address, String(port), String(durationMs)], { timeoutMs }),
  ) as Load;
}

async function measure(ways: readonly Way[]): Promise<Load[][]> {
  const loads: Load[][] = ways.map(() => []);
  for (const way of ways) await waitUntil(`an answer by ${way.what}`, () => answers(way));
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, way] of ways.entries()) loads[index]?.push(await clientOf(way, DURATION_MS));
  }
  return loads;
}

function printWays(ways: readonly Way[], loads: readonly Load[][]): void {
  const columns: { head: string; of: (load: Load) => number; text: (value: number) => string }[] = [
    { head: "MB/s", of: ({ throughput }) => throughput / 1e6, text: (value) => value.toFixed(0) },
    { head: "connections/s", of: ({ connections }) => connections, text: (value) => value.toFixed(0) },
    { head: "request, median", of: ({ medianMs }) => medianMs, text: (value) => `${value.toFixed(3)} ms` },
    { head: "p99", of: ({ p99Ms }) => p99Ms, text: (value) => `${value.toFixed(3)} ms` },
  ];
  const rows = ways.map(({ what }, index) => [
    what,
    ...columns.flatMap(({ of, text }) => {
      const value = median((loads[index] ?? []).map(of));
      return [text(value), `${(value / median((loads[0] ?? []).map(of))).toFixed(2)} x`];
    }),
    String((loads[index] ?? []).reduce((sum, { failed }) => sum + failed, 0)),
  ]);
  print([["", ...columns.flatMap(({ head }) => [head, ""]), "failed"], ...rows]);
}

// ---- Names ------------------------------------------------------------------------------------------------------------

/** The name server alone, with 2,000 services, in a process of its own. */
async function names(): Promise<string[][]> {
  const server = await startDnsProcess();
  try {
    const rows = [["", "answers/s", "median", "p99", "lost"]];
    for (const [name, type] of [
      ["web.shop", "A"],
      ["many.shop", "A"],
      ["_http._tcp.web.shop", "SRV"],
      ["nope.cacophony", "A"],
    ] as const) {
      const load = await loadDns(server.port, { name, type, durationMs: 2_000 });
      const [rate, middle, p99] = [load.perSecond, load.medianUs, load.p99Us].map((value) => value.toFixed(0));
      rows.push([`DNS ${type} ${name}, 32 at a time`, `${rate}`, `${middle} us`, `${p99} us`, String(load.lost)]);
    }
    return rows;
  } finally {
    await server.stop();
  }
}

/** How soon the name server of the first host follows a replica on the second. */
async function following(lab: Lab, cluster: LabCluster): Promise<string[][]> {
  const [one, two] = [lab.host(1), lab.host(2)];
  const server = /inet (\S+?)\//.exec((await one.run(["ip", "-4", "addr", "show", "dev", "cvx"])).stdout)?.[1] ?? "";
  const constraints = ["node.hostname == host-2"];
  await cluster.put("seen", { services: { app: sleeper({ deploy: { replicas: 0, placement: { constraints } } }) } });
  const watcher = tool(onHost(one), "watch", server, "app.seen.cacophony");
  const sights: Sight[] = [];
  const reading = (async () => {
    let rest = "";
    for await (const chunk of watcher.stdout as ReadableStream<Uint8Array>) {
      const lines = (rest + new TextDecoder().decode(chunk)).split("\n");
      rest = lines.pop() ?? "";
      sights.push(...lines.map((line) => JSON.parse(line) as Sight));
    }
  })();
  const isSeen = (isThere: boolean) =>
    waitUntil("the name to follow", () => sights.at(-1), {
      until: (sight) => (sight?.addresses.length ?? 0) > 0 === isThere,
      intervalMs: 5,
    });
  const [starts, ends]: [number[], number[]] = [[], []];
  try {
    for (let run = 0; run < REPLICA_RUNS; run++) {
      await cluster.scale("seen", { service: "app", scale: 1 });
      const first = await isSeen(true);
      const { services } = await cluster.settled("seen");
      const id = services["app"]?.allocations[0]?.container_id ?? "";
      const time = async (field: "StartedAt" | "FinishedAt") => {
        const seen = (await (await two.engine(`/containers/${id}/json`)).json()) as { State: Record<string, string> };
        return Date.parse(seen.State[field] ?? "");
      };
      starts.push((first?.at ?? 0) - (await time("StartedAt")));
      const before = sights.length;
      await two.engine(`/containers/${id}/kill`, { method: "POST" });
      await waitUntil("the name to lose the replica", () => sights.length > before, { intervalMs: 5 });
      ends.push((sights[before]?.at ?? 0) - (await time("FinishedAt")));
      await cluster.scale("seen", { service: "app", scale: 0 });
      await isSeen(false);
      await cluster.settled("seen");
    }
  } finally {
    watcher.kill();
    await reading;
  }
  const row = (what: string, times: number[]) => [
    what,
    ...[median(times), Math.min(...times), Math.max(...times)].map((ms) => `${ms.toFixed(0)} ms`),
    String(times.length),
  ];
  return [
    ["", "median", "fastest", "slowest", "runs"],
    row("start of a container to the first answer by name on another host", starts),
    row("end of a container to the last answer by name on another host", ends),
  ];
}

// ---- Figures ----------------------------------------------------------------------------------------------------------

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

function print(lines: readonly string[][]): void {
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  for (const line of lines) {
    const cells = line.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    console.log(cells.join("  "));
  }
  console.log();
}
