/** @module Services that share something, on two hosts with their own Docker Engines. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { type Lab, type LabHost } from "./lab.ts";
import { LabCluster, type JobDoc, perNode, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(90_000);

let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 2 });
  lab = cluster.lab;
});

afterAll(async () => {
  await lab?.stop();
});

function hostOf(nodeName: string): LabHost {
  return lab.host(Number(nodeName.replace("host-", "")));
}

/** Waits until the job runs as it should and each `app` reaches the `web` beside it through its own loopback address. */
async function reached(jobId: string, { gone = [] }: { gone?: readonly string[] } = {}): Promise<JobDoc> {
  return waitUntil(
    "each app to reach the web beside it at 127.0.0.1",
    async () => {
      const job = await cluster.settled(jobId);
      const { web, app } = job.services;
      const heard = await Promise.all(
        (app?.allocations ?? []).map(async ({ node_name, container_id }) =>
          hostOf(node_name)
            .docker("exec", container_id ?? "", "sh", "-c", "nc -w 2 127.0.0.1 7000 </dev/null")
            .catch((error: unknown) => String(error)),
        ),
      );
      return { job, heard, webs: web?.allocations.map(({ container_id }) => container_id) ?? [] };
    },
    {
      until: ({ heard, webs }) =>
        heard.every((line) => line.trim() === "hello") && webs.every((id) => id !== null && !gone.includes(id)),
      timeoutMs: 60_000,
    },
  ).then(({ job }) => job);
}

test("a service that shares another's network reaches it at 127.0.0.1, also after that one's container was killed or removed", async () => {
  const serve = "while true; do echo hello | nc -l -p 7000; done";
  const document = {
    services: {
      app: sleeper({ network_mode: "service:web", deploy: { replicas: 2 } }),
      web: { image: "busybox", command: ["sh", "-c", serve], stop_signal: "SIGKILL", deploy: { replicas: 2 } },
    },
  };
  const { body } = await cluster.api<{
    blocked: unknown[];
    containers: { service_name: string; name: string; create: { HostConfig: { NetworkMode: string } } }[];
  }>("/cluster/job/pair?dry_run=true", { method: "PUT", body: JSON.stringify(document) });
  const named = (name: string) => body.containers.filter(({ service_name }) => service_name === name);
  expect(body.blocked).toEqual([]);
  expect(named("app").map(({ create }) => create.HostConfig.NetworkMode)).toEqual(
    named("web").map(({ name }) => `container:${name}`),
  );
  expect((await cluster.put("pair", document)).status).toBe(201);
  const before = await reached("pair");
  expect(perNode(before.services["app"]?.allocations ?? [])).toEqual({ "host-1": 1, "host-2": 1 });
  const [web] = before.services["web"]?.allocations ?? [];
  const host = hostOf(web?.node_name ?? "");

  const [app] = (before.services["app"]?.allocations ?? []).filter(({ slot }) => slot === web?.slot);
  await host.docker("kill", web?.container_id ?? "");
  await waitUntil("the app's container to be made anew", () => cluster.job("pair"), {
    until: ({ services }) =>
      services["app"]?.allocations.every(({ container_id }) => container_id !== app?.container_id) === true,
    timeoutMs: 30_000,
  });
  const revived = await reached("pair");

  const [again] = revived.services["web"]?.allocations.filter(({ slot }) => slot === web?.slot) ?? [];
  await host.docker("rm", "-f", again?.container_id ?? "");
  const replaced = await reached("pair", { gone: [again?.container_id ?? ""] });
  // Nothing moved, and the other pair was left alone.
  const ids = (job: JobDoc, name: string) =>
    (job.services[name]?.allocations ?? []).map(({ allocation_id, node_name }) => `${allocation_id} ${node_name}`);
  expect(ids(replaced, "app")).toEqual(ids(before, "app"));
  const others = (job: JobDoc) =>
    Object.values(job.services).flatMap(({ allocations }) =>
      allocations.filter(({ slot }) => slot !== web?.slot).map(({ container_id }) => container_id),
    );
  expect(others(replaced)).toEqual(others(before));
  await cluster.exactSet();
  await cluster.clear();
});

test("volumes_from shows the other's anonymous and named volumes, read-only if asked, in every replica beside it", async () => {
  await cluster.put("shared", {
    services: {
      reader: sleeper({ volumes_from: ["data:ro"], deploy: { replicas: 3 } }),
      data: sleeper({
        command: ["sh", "-c", "echo one > /anonymous/file; echo two > /named/file; sleep 86400"],
        volumes: ["/anonymous", "named:/named"],
      }),
    },
    volumes: { named: {} },
  });
  const { services } = await cluster.settled("shared");
  const readers = services["reader"]?.allocations ?? [];
  const node = services["data"]?.allocations[0]?.node_name ?? "";
  expect(perNode(readers)).toEqual({ [node]: 3 });
  for (const { container_id } of readers) {
    const inside = (command: string) => hostOf(node).docker("exec", container_id ?? "", "sh", "-c", command);
    expect((await inside("cat /anonymous/file /named/file")).trim()).toBe("one\ntwo");
    expect(await inside("touch /named/other 2>&1 || true")).toContain("Read-only file system");
  }
  await cluster.clear();
});

test("what joined a replica moves with it when its node dies", async () => {
  await cluster.put("moved", {
    services: { app: sleeper({ network_mode: "service:web", deploy: { replicas: 2 } }), web: sleeper() },
  });
  const before = await cluster.settled("moved");
  // The master stays; what runs beside it is put on the other host by taking that one away and back.
  const node = before.services["web"]?.allocations[0]?.node_name ?? "";
  expect(perNode(before.services["app"]?.allocations ?? [])).toEqual({ [node]: 2 });
  if (node === "host-1") {
    await cluster.put("moved", {
      services: {
        app: sleeper({ network_mode: "service:web", deploy: { replicas: 2 } }),
        web: sleeper({ deploy: { placement: { constraints: ["node.name == host-2"] } } }),
      },
    });
    await waitUntil("the job to be on host-2", () => cluster.settled("moved"), {
      until: ({ services }) => perNode(services["app"]?.allocations ?? [])["host-2"] === 2,
      timeoutMs: 30_000,
    });
    await cluster.put("moved", {
      services: { app: sleeper({ network_mode: "service:web", deploy: { replicas: 2 } }), web: sleeper() },
    });
  }
  await cluster.process(2).kill();
  const after = await waitUntil("all to run on host-1", () => cluster.job("moved"), {
    until: ({ services }) =>
      services["web"]?.counts["running"] === 1 &&
      services["app"]?.counts["running"] === 2 &&
      perNode(services["app"].allocations.filter(({ state }) => state === "running"))["host-1"] === 2,
    timeoutMs: 60_000,
  });
  expect(after.services["web"]?.allocations.filter(({ state }) => state === "running")[0]?.node_name).toBe("host-1");
  cluster.restart(2);
  await cluster.ready(2);
  await cluster.settled("moved");
  await cluster.exactSet();
  await cluster.clear();
});
