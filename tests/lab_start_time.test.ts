/** @module What is promised by the clock, and short: `run.sh` runs this file with no other beside it. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import type { Lab } from "./lab.ts";
import { LabCluster } from "./lab_cluster.ts";

setDefaultTimeout(120_000);

let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 2 });
  lab = cluster.lab;
});

afterAll(async () => {
  await lab?.stop();
});

test("the API of a worker answers within 200 ms of its start", async () => {
  expect(await cluster.process(2).stop()).toBe(0);
  const times: number[] = [];
  for (let run = 0; run < 5; run++) {
    const started = performance.now();
    cluster.restart(2);
    while (
      !(await lab
        .host(2)
        .fetch("/healthz", { timeoutMs: 1000 })
        .then(
          (answer) => answer.ok,
          () => false,
        ))
    )
      await Bun.sleep(1);
    times.push(performance.now() - started);
    if (run < 4) await cluster.process(2).stop();
  }
  const median = times.toSorted((a, b) => a - b)[2] ?? Number.NaN;
  console.log(`the API answers ${times.map((ms) => ms.toFixed(0)).join(", ")} ms after the start`);
  expect(median).toBeLessThan(200);
  await cluster.ready(2);
});
