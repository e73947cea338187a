/** @module What the tests of machines that are lost, emptied and come back have in common. */
import { type Allocation, type LabCluster, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

/** The times that users have unless they say otherwise: the lab's own are longer. */
export const DEFAULT_TIMES = ["--heartbeat-interval", "1s", "--node-timeout", "4s"];

/** Waits until `count` replicas of the job run on other hosts than `host`; returns how long that took from now on. */
export async function runElsewhere(
  cluster: LabCluster,
  job: string,
  { host, count }: { host: number; count: number },
): Promise<number> {
  const begin = performance.now();
  await waitUntil(
    `${count} replicas of ${job} to run on other hosts than ${host}`,
    async () => {
      const found = await cluster.allocations(`?job=${job}`);
      return found.filter(({ state, node_name }) => state === "running" && node_name !== `host-${host}`);
    },
    { until: (found: Allocation[]) => found.length >= count, timeoutMs: 30_000, intervalMs: 50 },
  );
  return performance.now() - begin;
}

/** Nothing runs twice: of each slot, one container in all engines together. */
export async function eachSlotOnce(cluster: LabCluster, job: string, slots: number): Promise<void> {
  await waitUntil(
    `each of ${slots} slots of ${job} to have one container`,
    async () => {
      const all = (await Promise.all(cluster.lab.hosts.map((host) => cluster.containers(host)))).flat();
      const here = all.filter(({ labels }) => labels["cacophony.job"] === job);
      return here.map(({ labels, state }) => `${labels["cacophony.service"]}/${labels["cacophony.slot"]} ${state}`);
    },
    { until: (found) => found.length === slots && new Set(found).size === slots, timeoutMs: 30_000 },
  );
}

/** Puts a job of `scale` sleepers and waits until they run. */
export async function run(
  cluster: LabCluster,
  job: string,
  scale: number,
  more: Record<string, unknown> = {},
): Promise<void> {
  await cluster.put(job, { services: { web: sleeper({ scale, ...more }) } });
  await cluster.settled(job);
}
