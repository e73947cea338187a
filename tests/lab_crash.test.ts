/** @module Processes that die at any moment, on real engines: nothing acknowledged is lost, nothing runs twice, all settles. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Lab } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(150_000);

let lab: Lab;
let cluster: LabCluster;
let master: string;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 3 });
  lab = cluster.lab;
  master = `${lab.host(1).address}:9000`;
});

afterAll(async () => {
  await lab?.stop();
});

async function untilRunning(jobId: string, least: number): Promise<void> {
  await waitUntil(
    `${least} replicas of ${jobId} to run`,
    async () => (await cluster.allocations(`?job=${jobId}&state=running`)).length,
    {
      until: (count) => count >= least,
      timeoutMs: 30_000,
      intervalMs: 10,
    },
  );
}

describe("kill -9 in the middle of a rollout of 30 replicas", () => {
  test("of the master: once it is back, exactly the wanted set runs", async () => {
    await cluster.put("rollout", { services: { a: sleeper({ scale: 30 }) } });
    await untilRunning("rollout", 8);
    await cluster.process(1).kill();
    await cluster.restart(1).waitFor(/this node is up/);
    await cluster.settled("rollout");
    await cluster.exactSet();
  });

  test("of a worker, during an update of all replicas", async () => {
    const { version } = (
      await cluster.put("rollout", { services: { a: sleeper({ scale: 30, environment: { UPDATED: "1" } }) } })
    ).body;
    await waitUntil(
      "some replicas to be new",
      async () => (await cluster.allocations("?job=rollout&state=running")) as unknown as { job_version: number }[],
      {
        until: (list) => list.filter((one) => one.job_version === version).length >= 6,
        timeoutMs: 30_000,
      },
    );
    await cluster.process(2).kill();
    cluster.restart(2);
    await waitUntil(
      "all replicas to be new",
      async () => (await cluster.allocations("?job=rollout&state=running")) as unknown as { job_version: number }[],
      {
        until: (list) => list.length === 30 && list.every((one) => one.job_version === version),
        timeoutMs: 90_000,
      },
    );
    await cluster.exactSet();
    await cluster.clear();
  });

  test("of a Docker Engine", async () => {
    await cluster.put("engine", { services: { a: sleeper({ scale: 30 }) } });
    await untilRunning("engine", 8);
    await lab.host(3).killDocker();
    const [seen] = await waitUntil(
      "host 3 to be unready",
      async () => (await cluster.nodes()).filter(({ node_name }) => node_name === "host-3"),
      {
        until: ([node]) => node?.state === "unready",
      },
    );
    expect(seen?.reason).toContain("Docker does not answer");
    await lab.host(3).restartDocker();
    await cluster.ready(3);
    await cluster.settled("engine");
    await cluster.exactSet();
    await cluster.clear();
  });
});

describe("kill -9 of cacophony", () => {
  test("loses no acknowledged write, and no version comes twice", async () => {
    let last = 0;
    for (let round = 1; round <= 5; round++) {
      const { status, body } = await cluster.put("ack", {
        services: { a: sleeper({ scale: 0, environment: { ROUND: String(round) } }) },
      });
      await cluster.process(1).kill();
      // A new job begins above what deleted ones had.
      const next = round === 1 ? body.version : last + 1;
      expect([status, body.version]).toEqual([round === 1 ? 201 : 200, next]);
      last = body.version;
      await cluster.restart(1).waitFor(/this node is up/);
      expect((await cluster.job("ack")).version).toBe(last);
    }
    await cluster.ready(3);
    await cluster.clear();
  });

  test("of all nodes at once leaves every container as it was", async () => {
    await cluster.put("steady", { services: { a: sleeper({ scale: 9 }) } });
    await cluster.settled("steady");
    const look = async () =>
      (
        await Promise.all(
          lab.hosts.map(async (host) => {
            const ids = (await cluster.containers(host)).map(({ id }) => id);
            return ids.length === 0
              ? ""
              : host.docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", ...ids.toSorted());
          }),
        )
      ).join("\n");
    const before = await look();
    await Promise.all([1, 2, 3].map((number) => cluster.process(number).kill()));
    for (const number of [3, 2, 1]) cluster.restart(number);
    await cluster.process(1).waitFor(/this node is up/);
    await cluster.ready(3);
    await cluster.settled("steady");
    expect(await look()).toBe(before);
    await cluster.clear();
  });

  test("of a worker whose container ends meanwhile: it is started again, by the same allocation", async () => {
    await cluster.put("revive", { services: { a: sleeper({ scale: 3 }) } });
    const before = (await cluster.settled("revive")).services["a"]?.allocations.find(
      ({ node_name }) => node_name === "host-2",
    );
    await cluster.process(2).kill();
    await lab.host(2).docker("kill", before?.container_id ?? "");
    cluster.restart(2);
    const after = await waitUntil(
      "the container to run again",
      async () =>
        (await cluster.job("revive")).services["a"]?.allocations.find(({ node_name }) => node_name === "host-2"),
      {
        until: (one) => one?.state === "running" && one.restarts > 0,
        timeoutMs: 20_000,
      },
    );
    expect(after?.allocation_id).toBe(before?.allocation_id ?? "");
    await cluster.clear();
  });
});

describe("a machine that dies", () => {
  test("its replicas run elsewhere after the node timeout, and are not doubled when it returns", async () => {
    await cluster.put("move", { services: { a: sleeper({ scale: 6 }) } });
    await cluster.settled("move");
    const before = await cluster.containers(lab.host(2));
    expect(before.length).toBeGreaterThan(0);
    await lab.host(2).cutOff();
    try {
      await waitUntil(
        "host 2 to be down and its replicas to run elsewhere",
        async () => (await cluster.allocations("?job=move&state=running")).map(({ node_name }) => node_name),
        {
          until: (names) => names.length === 6 && !names.includes("host-2"),
          timeoutMs: 40_000,
        },
      );
      // What it ran goes on running there: nobody told it to stop.
      expect(await cluster.containers(lab.host(2))).toEqual(before);
    } finally {
      await lab.host(2).reconnect();
    }
    await cluster.ready(3);
    await cluster.settled("move");
    await cluster.exactSet();
    await cluster.clear();
  });
});

describe("a cluster whose master does not answer", () => {
  function freezeMaster(): number {
    cluster.process(1).freeze();
    return performance.now();
  }
  const thawMaster = () => cluster.process(1).thaw();

  test("a worker answers a read within 2 s with 503 and the address that it tried", async () => {
    const started = freezeMaster();
    const { status, headers, body } = await cluster.api<{ error: { code: string; message: string } }>("/cluster/job", {
      on: 2,
    });
    cluster.process(1).thaw();
    expect(performance.now() - started).toBeLessThan(2000);
    expect([status, body.error.code]).toEqual([503, "no_master"]);
    expect(body.error.message).toContain(master);
    expect(Number(headers.get("retry-after"))).toBeGreaterThan(0);
    await cluster.ready(3);
  });

  test("a write that the master never answers is reported as outcome_unknown, at once, and is made once at most", async () => {
    // Every new job begins at the same version, until one is deleted.
    const { version: first } = (await cluster.put("beside", { services: { a: sleeper({ scale: 0 }) } })).body;
    const started = freezeMaster();
    const { status, body } = await cluster
      .put("unknown", { services: { a: sleeper() } }, { on: 3 })
      .finally(thawMaster);
    const elapsed = performance.now() - started;
    expect([status, body.error?.code]).toEqual([503, "outcome_unknown"]);
    expect(elapsed).toBeLessThan(2000);
    await cluster.ready(3);
    const { status: found, body: job } = await cluster.api<{ version?: number }>("/cluster/job/unknown");
    expect(["404 undefined", `200 ${first}`]).toContain(`${found} ${job.version}`);
    await cluster.clear();
  });

  test("with the master's process gone, writes are refused as not made and nodes keep their containers", async () => {
    await cluster.put("keep", { services: { a: sleeper({ scale: 3 }) } });
    await cluster.settled("keep");
    await cluster.process(1).kill();
    const started = performance.now();
    const { status, body } = await cluster.put("lost", { services: { a: sleeper() } }, { on: 2 });
    expect(performance.now() - started).toBeLessThan(2000);
    expect([status, body.error?.code]).toEqual([503, "no_master"]);
    const [victim] = await cluster.containers(lab.host(2));
    await lab.host(2).docker("kill", victim?.id ?? "");
    await waitUntil("the node to restart its container without a master", () => cluster.containers(lab.host(2)), {
      until: ([one]) => one?.state === "running",
      timeoutMs: 20_000,
    });
    await cluster.restart(1).waitFor(/this node is up/);
    await cluster.settled("keep");
    expect((await cluster.api("/cluster/job/lost")).status).toBe(404);
    await cluster.exactSet();
    await cluster.clear();
  });
});

describe("a stop", () => {
  test("by SIGTERM takes under 2 s, exits 0, and containers keep running", async () => {
    await cluster.put("stay", { services: { a: sleeper({ scale: 3 }) } });
    await cluster.settled("stay");
    for (const number of [2, 1]) {
      const started = performance.now();
      expect(await cluster.process(number).stop()).toBe(0);
      expect(performance.now() - started).toBeLessThan(2000);
      expect((await cluster.containers(lab.host(number))).map(({ state }) => state)).toEqual(["running"]);
    }
    await cluster.restart(1).waitFor(/this node is up/);
    cluster.restart(2);
    await cluster.ready(3);
    await cluster.exactSet();
    await cluster.clear();
  });
});
