/** @module A stranger on the cluster's network that says it is the master, on real engines (point 3). */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { identityIn } from "../src/data_dir.ts";
import type { Lab, LabHost } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import type { LabProcess } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(120_000);

/** Hellos that the rogue gets before the test believes that none of its answers is obeyed: it has four kinds. */
const HELLOS = 5;

let lab: Lab;
let cluster: LabCluster;
let worker: LabHost;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 3, nodes: 2 });
  lab = cluster.lab;
  worker = lab.host(2);
});

afterAll(async () => {
  await lab?.stop();
});

/** A rogue at the address of `host`. */
async function rogue(host: LabHost, clusterId: string, ...more: string[]): Promise<LabProcess> {
  const program = join(import.meta.dir, "rogue_master.ts");
  const started = host.spawn("rogue", [process.execPath, program, `${host.address}:9000`, clusterId, ...more]);
  await started.waitFor(/the rogue listens/);
  return started;
}

async function wasTried(by: LabProcess, nodeId: string | undefined): Promise<void> {
  const hellos = () => by.logs().match(new RegExp(`hello \\d+ of ${nodeId} `, "g"))?.length ?? 0;
  await waitUntil("the rogue to answer the worker's hellos", hellos, {
    until: (count) => count >= HELLOS,
    timeoutMs: 60_000,
  });
}

async function runs(): Promise<{ id: string; state: string }[]> {
  return (await cluster.containers(worker)).map(({ id, state }) => ({ id, state }));
}

test("a stranger does not become the master while the real one is away, neither beside it nor at its address, and the worker goes back", async () => {
  await cluster.put("kept", { services: { a: sleeper({ deploy: { mode: "global" } }) } });
  await cluster.settled("kept");
  const [key, before, containers] = [
    join(lab.host(1).dataDir, "cluster.key"),
    identityIn(worker.dataDir),
    await runs(),
  ];
  expect(statSync(key).mode & 0o777).toBe(0o600);
  expect(readFileSync(key, "utf8")).toStartWith("-----BEGIN PRIVATE KEY-----");
  expect(before?.cluster_key).toMatch(/^[\w-]{43}$/);
  expect(identityIn(lab.host(1).dataDir)?.cluster_key).toBe(before?.cluster_key);
  expect(containers).toHaveLength(1);

  const [one, three] = [lab.host(1), lab.host(3)];
  const beside = await rogue(three, before?.cluster_id ?? "", `${one.address}:9000`);
  await waitUntil("the worker to be told of the rogue", () =>
    identityIn(worker.dataDir)?.peers.some(({ address }) => address === `${three.address}:9000`),
  );
  await cluster.process(1).kill();
  await wasTried(beside, before?.node_id);
  const atAddress = await rogue(one, before?.cluster_id ?? "");
  await wasTried(atAddress, before?.node_id);

  expect([beside, atAddress].map((each) => each.logs().includes("obeyed"))).toEqual([false, false]);
  expect(cluster.process(2).running).toBe(true);
  expect(await runs()).toEqual(containers);
  const { seen_term, master, cluster_key } = identityIn(worker.dataDir) ?? {};
  expect({ seen_term, master, cluster_key }).toEqual({
    seen_term: before?.seen_term,
    master: before?.master,
    cluster_key: before?.cluster_key,
  });

  await atAddress.kill();
  cluster.restart(1);
  await cluster.ready(2);
  expect(await runs()).toEqual(containers);
  expect(identityIn(worker.dataDir)?.seen_term).toBe((before?.seen_term ?? 0) + 1);
  await cluster.put("next", { services: { a: sleeper({ deploy: { mode: "global" } }) } });
  await waitUntil("the worker to obey its master", runs, { until: (found) => found.length === 2, timeoutMs: 30_000 });
});
