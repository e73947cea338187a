/** @module Rules of placement, modes, order and health on three hosts with their own Docker Engines. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import type { Lab } from "./lab.ts";
import type { JobDoc, NodeDoc, ServiceDoc } from "./lab_cluster.ts";
import { LabCluster, perNode, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  cluster = await LabCluster.start({
    hosts: 3,
    nodes: 2,
    bootstrap: ["--label", "zone=a"],
    join: ["--label", "zone=b"],
  });
  lab = cluster.lab;
  await lab.host(2).docker("volume", "create", "precious");
});

afterAll(async () => {
  await lab?.stop();
});

async function until(jobId: string, { what, holds }: { what: string; holds: (job: JobDoc) => boolean }) {
  return waitUntil(what, () => cluster.job(jobId), { until: holds, timeoutMs: 30_000 });
}

function setLabels(name: string, labels: Record<string, string>) {
  return cluster.api<NodeDoc & { labels: Record<string, string> }>(`/cluster/node/${name}`, {
    method: "PUT",
    body: JSON.stringify({ labels }),
    on: 2,
  });
}

function nodesOf(service: ServiceDoc | undefined): string[] {
  return Object.keys(perNode(service?.allocations ?? [])).toSorted();
}

test("a global service runs once on each node, also on one that joins later; it has no scale", async () => {
  await cluster.put("agents", { services: { agent: sleeper({ deploy: { mode: "global" } }) } });
  const before = await cluster.settled("agents");
  expect(perNode(before.services["agent"]?.allocations ?? [])).toEqual({ "host-1": 1, "host-2": 1 });
  cluster.node(3, ["join", `${lab.host(2).address}:9000`]);
  await cluster.ready(3);
  const after = await until("agents", {
    what: "the agent to run on the third node",
    holds: ({ services }) => services["agent"]?.counts["running"] === 3,
  });
  expect(perNode(after.services["agent"]?.allocations ?? [])).toEqual({ "host-1": 1, "host-2": 1, "host-3": 1 });
  expect(await cluster.scale("agents", { service: "agent", scale: 2 })).toMatchObject({
    status: 409,
    body: { error: { message: expect.stringContaining("runs once on each node") } },
  });
  await cluster.exactSet();
  await cluster.clear();
});

test("constraints and spread follow labels, which PUT /cluster/node sets; running replicas stay", async () => {
  const { status, body } = await setLabels("host-3", { zone: "b", disk: "fast" });
  expect({ status, labels: body.labels }).toEqual({ status: 200, labels: { zone: "b", disk: "fast" } });
  expect((await setLabels("host-33", {})).status).toBe(404);
  const on = (constraint: string) => ({ placement: { constraints: [constraint] } });
  await cluster.put("rules", {
    services: {
      fast: sleeper({ deploy: { replicas: 2, ...on("node.labels.disk == fast") } }),
      spread: sleeper({ deploy: { replicas: 4, placement: { preferences: [{ spread: "node.labels.zone" }] } } }),
      manager: sleeper({ deploy: on("node.role == manager") }),
      none: sleeper({ deploy: on("node.platform.arch == s390x") }),
    },
  });
  const { services } = await until("rules", {
    what: "all that can to run",
    holds: ({ services: { fast, spread, manager, none } }) =>
      fast?.counts["running"] === 2 &&
      spread?.counts["running"] === 4 &&
      manager?.counts["running"] === 1 &&
      none?.blocked.length === 1,
  });
  expect(nodesOf(services["fast"])).toEqual(["host-3"]);
  expect(nodesOf(services["manager"])).toEqual(["host-1"]);
  expect(perNode(services["spread"]?.allocations ?? [])).toEqual({ "host-1": 2, "host-2": 1, "host-3": 1 });
  expect(services["none"]?.blocked).toEqual([
    { slot: 1, reasons: ["3 nodes: does not match node.platform.arch == s390x"] },
  ]);

  await setLabels("host-3", {});
  await setLabels("host-2", { disk: "fast" });
  await cluster.scale("rules", { service: "fast", scale: 3 });
  const later = await until("rules", {
    what: "the third replica to run",
    holds: ({ services: { fast } }) => fast?.counts["running"] === 3,
  });
  expect(perNode(later.services["fast"]?.allocations ?? [])).toEqual({ "host-2": 1, "host-3": 2 });
  await cluster.clear();
});

test("an external volume is looked for on the nodes", async () => {
  await cluster.put("external", {
    services: { db: sleeper({ volumes: ["precious:/data"] }) },
    volumes: { precious: { external: true } },
  });
  const { services } = await cluster.settled("external");
  expect(nodesOf(services["db"])).toEqual(["host-2"]);
  await cluster.clear();
});

test("a job runs to its end once: not when its container is removed, but when its definition changes", async () => {
  const job = (text: string) => ({
    services: {
      migrate: { image: "busybox", command: ["echo", text], deploy: { mode: "replicated-job", replicas: 2 } },
    },
  });
  await cluster.put("batch", job("one"));
  const holds = ({ services: { migrate } }: JobDoc) => Bun.deepEquals(migrate?.counts, { completed: 2 });
  const done = await until("batch", { what: "both replicas to be completed", holds });
  const [replica] = done.services["migrate"]?.allocations ?? [];
  expect(replica).toMatchObject({ state: "completed", exit_code: 0 });
  const host = lab.hosts.find((_, i) => `host-${i + 1}` === replica?.node_name) ?? lab.host(1);
  const gone = replica?.container_id ?? "";
  await host.docker("rm", gone);
  await cluster.process(1).kill();
  cluster.restart(1);
  await cluster.ready(3);
  expect(holds(await cluster.job("batch"))).toBe(true);
  expect((await cluster.containers(host)).map(({ id }) => id)).not.toContain(gone);
  expect((await Promise.all(lab.hosts.map((one) => cluster.containers(one)))).flat()).toHaveLength(1);

  await cluster.put("batch", job("two"));
  await until("batch", {
    what: "the new definition to be completed",
    holds: (doc) =>
      holds(doc) && doc.services["migrate"]?.allocations.every((one) => one.container_id !== null) === true,
  });
  await cluster.clear();
});

test("depends_on orders starts over nodes: first the healthy database, then the migration, then the web", async () => {
  const at = (host: string) => ({ placement: { constraints: [`node.name == ${host}`] } });
  const document = {
    services: {
      web: sleeper({
        depends_on: { migrate: { condition: "service_completed_successfully" }, db: { condition: "service_started" } },
        deploy: at("host-3"),
      }),
      migrate: {
        image: "busybox",
        command: ["sleep", "1"],
        restart: "no",
        depends_on: { db: { condition: "service_healthy" } },
        deploy: at("host-2"),
      },
      db: sleeper({
        command: ["sh", "-c", "sleep 2; touch /ready; sleep 86400"],
        healthcheck: { test: "test -f /ready", interval: "500ms", timeout: "5s", retries: 100 },
        deploy: at("host-1"),
      }),
    },
  };
  await cluster.put("stack", document);
  const waiting = await until("stack", {
    what: "the database to run and not to be healthy yet, and what depends on it to say so",
    holds: ({ services: { db, migrate } }) =>
      db?.allocations[0]?.health === "starting" &&
      migrate?.blocked[0]?.reasons[0]?.includes("not healthy yet") === true,
  });
  expect(waiting.services["migrate"]?.blocked[0]?.reasons[0]).toBe(
    "waiting for service db to be healthy (slot 1 is not healthy yet)",
  );
  expect(waiting.services["web"]?.blocked[0]?.reasons[0]).toStartWith(
    "waiting for service migrate to complete successfully",
  );
  const { services } = await until("stack", {
    what: "the web to run",
    holds: ({ services: { web } }) => web?.counts["running"] === 1,
  });
  expect(services["db"]).toMatchObject({ counts: { running: 1 }, health: { healthy: 1 } });
  expect(services["migrate"]?.counts).toEqual({ exited: 1 });
  const checkOrder = async (of: JobDoc["services"]) => {
    const [db, migrate, web] = await Promise.all(
      ["db", "migrate", "web"].map(async (name) => {
        const allocation = of[name]?.allocations[0];
        const number = Number(allocation?.node_name.replace("host-", ""));
        const text = await lab.host(number).docker("inspect", allocation?.container_id ?? "");
        const [{ State: state }] = JSON.parse(text) as [{ State: { StartedAt: string; FinishedAt: string } }];
        return { started: Date.parse(state.StartedAt), finished: Date.parse(state.FinishedAt) };
      }),
    );
    expect((migrate?.started ?? 0) - (db?.started ?? 0)).toBeGreaterThan(1900);
    expect(web?.started).toBeGreaterThan(migrate?.finished ?? Infinity);
  };
  await checkOrder(services);

  // A restart keeps to the order, too, and what ran to its end runs again; meanwhile the old web runs on.
  expect((await cluster.api("/cluster/job/stack/restart", { method: "POST" })).status).toBe(202);
  const idOf = ({ services: { web } }: JobDoc) =>
    web?.allocations.find(({ state }) => state === "running")?.allocation_id;
  const first = idOf({ services } as JobDoc);
  const between = await until("stack", {
    what: "the migration to run again",
    holds: ({ services: { migrate } }) => migrate?.counts["running"] === 1,
  });
  expect(idOf(between)).toBe(first);
  const again = await until("stack", {
    what: "the new web to run",
    holds: (doc) =>
      ![undefined, first].includes(idOf(doc)) && Bun.deepEquals(doc.services["migrate"]?.counts, { exited: 1 }),
  });
  await checkOrder(again.services);

  // Only the start is ordered: what fails later stops nothing, and holds up no further replica.
  await lab.host(1).docker("exec", again.services["db"]?.allocations[0]?.container_id ?? "", "rm", "/ready");
  await cluster.scale("stack", { service: "db", scale: 0 });
  await cluster.scale("stack", { service: "web", scale: 2 });
  await until("stack", {
    what: "a second web to run without the database",
    holds: ({ services: { db: gone, web: both } }) => both?.counts["running"] === 2 && gone?.allocations.length === 0,
  });
  await cluster.clear();
});
