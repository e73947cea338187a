/** @module A cluster of three hosts with their own Docker Engines: what the README promises, shown on the real thing. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Lab } from "./lab.ts";
import type { JobDoc } from "./lab_cluster.ts";
import { LabCluster, perNode, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(120_000);

const EXAMPLE = join(import.meta.dir, "..", "examples", "example-job.yml");

let lab: Lab;
let cluster: LabCluster;
let addresses: string[];

beforeAll(async () => {
  lab = await Lab.start({ hosts: 3 });
  await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
  cluster = new LabCluster(lab);
  addresses = lab.hosts.map(({ address }) => `${address}:9000`);
  await cluster.node(1, ["--bind-addr", addresses[0] ?? "", "bootstrap"]).waitFor(/this node is up/);
  cluster.node(2, ["join", addresses[0] ?? ""]);
  await cluster.ready(2);
  // Through a worker, which is not the master.
  cluster.node(3, ["join", addresses[1] ?? ""]);
  await cluster.ready(3);
});

afterAll(async () => {
  await lab?.stop();
});

describe("the command lines of the README", () => {
  test("PUT, scale and DELETE with curl, as people know them, through each node", async () => {
    for (const host of lab.hosts) {
      const at = `${host.address}:9000/cluster/job/my-job-id`;
      const put = await host.curl(
        "-v",
        "-X",
        "PUT",
        "-H",
        "Content-Type: application/json",
        at,
        "--data-binary",
        `@${EXAMPLE}`,
      );
      expect(put.stderr).toContain("HTTP/1.1 201 Created");
      expect(JSON.parse(put.stdout)).toMatchObject({
        job_id: "my-job-id",
        services: { "example-service": { scale: 1 } },
        warnings: [],
      });
      const scaled = await host.curl(
        "-v",
        "-X",
        "PUT",
        "-H",
        "Content-Type: application/json",
        `${at}/example-service`,
        "--data",
        '{"scale": 5}',
      );
      expect(JSON.parse(scaled.stdout)).toMatchObject({
        job_id: "my-job-id",
        service_name: "example-service",
        scale: 5,
      });
      const { services } = await cluster.settled("my-job-id");
      expect(perNode(services["example-service"]?.allocations ?? [])).toEqual({
        "host-1": expect.any(Number),
        "host-2": expect.any(Number),
        "host-3": expect.any(Number),
      });
      const deleted = await host.curl("-v", "-X", "DELETE", at);
      expect(deleted.stderr).toContain("HTTP/1.1 202 Accepted");
      await waitUntil(
        "the job's containers to be gone",
        async () => (await Promise.all(lab.hosts.map((one) => cluster.containers(one)))).flat(),
        {
          until: (list) => list.length === 0,
        },
      );
    }
  });

  test("every node answers the same, and the version never repeats after DELETE", async () => {
    const first = await cluster.put("again", { services: { a: sleeper() } }, { on: 2 });
    await cluster.api("/cluster/job/again", { method: "DELETE", on: 3 });
    const second = await cluster.put("again", { services: { a: sleeper() } }, { on: 3 });
    expect(second.status).toBe(201);
    expect(second.body.version).toBeGreaterThan(first.body.version);
    await cluster.settled("again");
    const answers = await Promise.all([1, 2, 3].map((on) => cluster.api("/cluster/job/again", { on })));
    expect(answers[1]).toMatchObject({ status: 200, body: answers[0]?.body ?? {} });
    expect(answers[2]).toMatchObject({ status: 200, body: answers[0]?.body ?? {} });
    expect(new Set(answers.map(({ headers }) => headers.get("etag"))).size).toBe(1);
    await cluster.clear();
  });
});

describe("placement", () => {
  test("spreads 30 replicas 10/10/10 on equal nodes", async () => {
    const started = performance.now();
    await cluster.put("spread", { services: { a: sleeper({ scale: 30 }) } });
    const { services } = await cluster.settled("spread");
    console.log(`30 replicas on 3 engines run ${Math.round(performance.now() - started)} ms after the PUT`);
    expect(perNode(services["a"]?.allocations ?? [])).toEqual({ "host-1": 10, "host-2": 10, "host-3": 10 });
    await cluster.exactSet();
    await cluster.clear();
  });

  test("a fixed host port with scale 4 on 3 nodes leaves one pending with the reason", async () => {
    await cluster.put("port", {
      services: { web: sleeper({ scale: 4, ports: ["8080:80"] }), other: sleeper({ scale: 2 }) },
    });
    const job = await waitUntil("three of four to run", () => cluster.job("port"), {
      until: ({ services }: JobDoc) =>
        services["web"]?.counts["running"] === 3 && services["other"]?.counts["running"] === 2,
    });
    const { counts, blocked, allocations } = job.services["web"] ?? { counts: {}, blocked: [], allocations: [] };
    expect(counts).toEqual({ running: 3, pending: 1 });
    expect(blocked).toEqual([{ slot: 4, reasons: ["3 nodes: host port 8080 taken"] }]);
    expect(allocations.flatMap(({ ports }) => ports.map(({ host_port }) => host_port))).toEqual([8080, 8080, 8080]);
    await cluster.clear();
  });

  test("a host port that a foreign process holds is not tried on that node", async () => {
    const holder = lab.host(2).spawn("httpd", ["busybox", "httpd", "-f", "-p", "8090"]);
    await waitUntil(
      "the reading of host 2 to show the port",
      async () => {
        const { body } = await cluster.put(
          "foreign-port",
          { services: { a: sleeper({ scale: 3, ports: ["8090:80"] }) } },
          { query: "?dry_run=true" },
        );
        return (body as unknown as { blocked: unknown[] }).blocked.length === 1;
      },
      { timeoutMs: 15_000 },
    );
    await holder.kill();
  });
});

describe("updates", () => {
  test("change only the services whose definition changed", async () => {
    const services = { a: sleeper({ scale: 3 }), b: sleeper({ scale: 3 }) };
    await cluster.put("update", { services });
    const ids = (job: JobDoc, name: string) =>
      job.services[name]?.allocations.map(({ container_id }) => container_id).toSorted() ?? [];
    const before = await cluster.settled("update");
    const same = await cluster.put("update", { services });
    expect(same.body.version).toBe(before.version);
    const changed = await cluster.put("update", {
      services: { ...services, b: sleeper({ scale: 3, environment: { NEW: "1" } }) },
    });
    expect(changed.body.version).toBe(before.version + 1);
    const after = await waitUntil("every replica of b to be new", () => cluster.job("update"), {
      until: (job) =>
        job.services["b"]?.counts["running"] === 3 &&
        ids(job, "b").every((id) => id !== null && !ids(before, "b").includes(id)),
      timeoutMs: 30_000,
    });
    expect(ids(after, "a")).toEqual(ids(before, "a"));
    await cluster.exactSet();
    await cluster.clear();
  });

  test("keep a named volume's slot and its data on its node", async () => {
    const service = (tag: string) =>
      sleeper({
        command: ["sh", "-c", "echo x >>/data/starts; exec sleep 86400"],
        environment: { TAG: tag },
        volumes: ["data:/data"],
      });
    await cluster.put("stateful", { services: { db: service("one") }, volumes: { data: {} } });
    const before = (await cluster.settled("stateful")).services["db"]?.allocations[0];
    await cluster.put("stateful", { services: { db: service("two") }, volumes: { data: {} } });
    const after = await waitUntil(
      "the new container to run",
      async () => (await cluster.job("stateful")).services["db"]?.allocations[0],
      {
        until: (one) => one?.state === "running" && one.container_id !== before?.container_id,
      },
    );
    expect(after?.node_id).toBe(before?.node_id ?? "");
    const host = lab.hosts.find(({ number }) => `host-${number}` === after?.node_name);
    expect(await host?.docker("exec", after?.container_id ?? "", "cat", "/data/starts")).toBe("x\nx");
    await cluster.api("/cluster/job/stateful", { method: "DELETE" });
    await waitUntil("the container to go", async () => (host ? await cluster.containers(host) : []), {
      until: (list) => list.length === 0,
    });
    expect(await host?.docker("volume", "ls", "-q")).toBe("stateful_data");
    await cluster.put("stateful", { services: { db: service("two") }, volumes: { data: {} } });
    await cluster.settled("stateful");
    await cluster.clear();
    await waitUntil("the volume to be removed", () => host?.docker("volume", "ls", "-q"), {
      until: (list) => list === "",
    });
  });
});

describe("services of a job on one node", () => {
  test("reach each other by name", async () => {
    const server = sleeper({ command: ["sh", "-c", "echo hello >/index.html; exec httpd -f -h /"], scale: 3 });
    const client = sleeper({ scale: 3 });
    await cluster.put("names", { services: { web: server, client } });
    const { services } = await cluster.settled("names");
    for (const { node_name, container_id } of services["client"]?.allocations ?? []) {
      const host = lab.host(Number(node_name.slice("host-".length)));
      const said = await host.docker(
        "exec",
        container_id ?? "",
        "sh",
        "-c",
        'printf "GET /index.html HTTP/1.0\\r\\n\\r\\n" | nc web 80',
      );
      expect(said).toContain("hello");
    }
    await cluster.clear();
  });
});

describe("images", () => {
  test("are pulled from a private registry, and a missing one is reported as such", async () => {
    const registry = await lab.addRegistry();
    const image = await registry.push(lab.host(1), "busybox:latest");
    const missing = `${registry.address}/no-such-image:1`;
    await cluster.put("pull", { services: { good: sleeper({ image, scale: 3 }), bad: sleeper({ image: missing }) } });
    const job = await waitUntil("one to run and one to fail", () => cluster.job("pull"), {
      until: ({ services }) => services["good"]?.counts["running"] === 3 && services["bad"]?.counts["failed"] === 1,
      timeoutMs: 30_000,
    });
    expect(job.services["bad"]?.allocations[0]?.error).toContain(`image ${missing} not found`);
    await cluster.clear();
  });
});

describe("containers that are not ours", () => {
  test("are never touched, whatever their name and labels", async () => {
    const host = lab.host(2);
    const plain = await host.docker(
      "run",
      "-d",
      "--name",
      "foreign",
      "--stop-signal",
      "KILL",
      "busybox",
      "sleep",
      "86400",
    );
    const other = await host.docker(
      "run",
      "-d",
      "--stop-signal",
      "KILL",
      "--label",
      "cacophony.cluster=another",
      "--label",
      "cacophony.allocation=abc",
      "--label",
      "cacophony.job=x",
      "busybox",
      "sleep",
      "86400",
    );
    await cluster.put("mine", { services: { a: sleeper({ scale: 6 }) } });
    await cluster.settled("mine");
    await cluster.api("/cluster/job/mine", { method: "DELETE" });
    const listed = await waitUntil(
      "the other cluster's container to be listed",
      async () =>
        (
          await cluster.api<{ nodes: { node_name: string; foreign_containers: { container_id: string }[] }[] }>(
            "/cluster/node",
          )
        ).body.nodes,
      {
        until: (nodes) => nodes.some(({ foreign_containers }) => foreign_containers.length > 0),
        timeoutMs: 40_000,
      },
    );
    expect(
      listed
        .find(({ node_name }) => node_name === "host-2")
        ?.foreign_containers.map(({ container_id }) => container_id),
    ).toEqual([other]);
    const running = (await host.docker("ps", "-q", "--no-trunc")).split("\n");
    expect(running).toContain(plain);
    expect(running).toContain(other);
    await host.docker("rm", "-f", plain, other);
  });
});

test("an idle worker stays under 40 MB of anonymous memory", async () => {
  await waitUntil("the worker to have become idle", () => cluster.process(2).anonymousMemory(), {
    until: (bytes) => bytes < 40e6,
    timeoutMs: 30_000,
  });
  const megabytes = cluster.process(2).anonymousMemory() / 1e6;
  console.log(`idle worker: ${megabytes.toFixed(1)} MB anonymous memory`);
  expect(megabytes).toBeLessThan(40);
});

test("the example is the document that the README shows", () => {
  expect(readFileSync(EXAMPLE, "utf8")).toContain("example-service:");
});
