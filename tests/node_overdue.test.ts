/**
 * @module Point 1 of issue 15: a process that was dead stops what is past its deadline also where it cannot start, since its machine has
 * lost the address that it is to listen on: that is when its master starts another one elsewhere.
 */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { newIdentity } from "../src/data_dir.ts";
import { LABELS } from "../src/model.ts";
import { NodeProcesses } from "./node_process.ts";

setDefaultTimeout(60_000);

const STOP_MS = 1_500;
/** An address that no machine has (RFC 5737). */
const LOST = "192.0.2.1:9000";

const nodes = new NodeProcesses();
const engines: { stop(force: boolean): Promise<void> }[] = [];

afterAll(async () => {
  await nodes.stop();
  await Promise.all(engines.map((engine) => engine.stop(true)));
});

/** An Engine with one container, which takes its time to stop; returns what was done to that. */
function serveEngine(socket: string, labels: Record<string, string>): string[] {
  const done: string[] = [];
  const container = { Id: "c1", Names: ["/c1"], Labels: labels, ImageID: "i", State: "running", Ports: [], Created: 1 };
  const at = new Date(0).toISOString();
  const inspected = {
    Id: "c1",
    Name: "/c1",
    Image: "i",
    Created: at,
    State: { Status: "running", Pid: 0, ExitCode: 0, StartedAt: at },
    Config: { Labels: labels },
    HostConfig: {},
    NetworkSettings: { Ports: {}, Networks: {} },
    Mounts: [],
  };
  const answers: Record<string, object> = {
    "/c1/json": inspected,
    "/info": { ID: "engine", NCPU: 1, MemTotal: 2 ** 30 },
    "/version": { Version: "28.0.0", ApiVersion: "1.48", Os: "linux", Arch: "amd64" },
    "/containers/json": [container],
    "/volumes": { Volumes: [] },
    "/networks": [],
  };
  const server = Bun.serve({
    unix: socket,
    fetch: async ({ url, method }) => {
      const { pathname } = new URL(url);
      if (method === "POST" && pathname.endsWith("/c1/stop")) {
        done.push("stop");
        await Bun.sleep(STOP_MS);
        return new Response(null, { status: 204 });
      }
      if (method === "DELETE") {
        done.push("remove");
        answers["/containers/json"] = [];
        delete answers["/c1/json"];
        return new Response(null, { status: 204 });
      }
      // Nothing happens there.
      if (pathname.endsWith("/events"))
        return new Response(new ReadableStream({ start: (stream) => stream.enqueue("\n") }));
      if (pathname.endsWith("/_ping")) return new Response("OK");
      const known = Object.entries(answers).find(([path]) => pathname.endsWith(path))?.[1];
      return known ? Response.json(known) : Response.json({ message: "nothing here" }, { status: 404 });
    },
  });
  engines.push(server);
  return done;
}

/** The data directory of a node that was a member, and heard of its master a minute ago. */
function deadNode(): { dataDir: string; done: string[]; args: string[] } {
  const dataDir = nodes.newDir();
  const identity = { ...newIdentity({ role: "worker", node_id: "n1" }), cluster_id: "c", join_address: LOST };
  writeFileSync(join(dataDir, "node.json"), JSON.stringify(identity));
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const uptimeMs = Number.parseFloat(readFileSync("/proc/uptime", "utf8")) * 1_000;
  writeFileSync(join(dataDir, "heard.json"), JSON.stringify({ boot, ms: Math.max(0, uptimeMs - 60_000) }));
  const socket = join(dataDir, "docker.sock");
  const done = serveEngine(socket, {
    [LABELS.cluster]: "c",
    [LABELS.node]: "n1",
    [LABELS.job]: "job",
    [LABELS.service]: "web",
    [LABELS.slot]: "1",
    [LABELS.allocation]: "a1",
    [LABELS.restart]: "always",
    [LABELS.isolated]: "5000",
    [LABELS.grace]: "2000",
  });
  return { dataDir, done, args: ["--data-dir", dataDir, "--docker-host", `unix://${socket}`] };
}

test("a process that was dead stops what is past its deadline also where it cannot listen, and ends then", async () => {
  const { done, args } = deadNode();
  const process = nodes.run([...args, "--bind-addr", LOST]);
  expect([await process.exited, process.logs()]).toEqual([
    2,
    expect.stringContaining(`the address ${LOST} is not one of this machine`),
  ]);
  expect(done).toEqual(["stop", "remove"]);
});
