/**
 * @module How soon what a machine ran that fell silent runs elsewhere, with the times that users have unless they say otherwise:
 * `run.sh` runs this file with no other beside it.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { LabCluster } from "./lab_cluster.ts";
import { DEFAULT_TIMES, eachSlotOnce, run, runElsewhere } from "./lab_node_life.ts";
import { mustRun } from "./lab_process.ts";

setDefaultTimeout(120_000);

/** From the cut until all that was lost runs elsewhere. */
const REPLACED_MS = 6_000;

let cluster: LabCluster;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 3, bootstrap: DEFAULT_TIMES });
});

afterAll(async () => {
  await cluster?.lab.stop();
});

beforeEach(async () => {
  await cluster.clear();
  await cluster.ready(3);
});

describe("a machine that falls silent", () => {
  test("is replaced within 6 s of the cut, and stops what was replaced when it is back", async () => {
    await run(cluster, "cut", 6);
    await cluster.lab.host(3).cutOff();
    try {
      expect(await runElsewhere(cluster, "cut", { host: 3, count: 6 })).toBeLessThan(REPLACED_MS);
      expect((await cluster.nodes()).find(({ node_name }) => node_name === "host-3")?.state).toBe("down");
    } finally {
      await cluster.lab.host(3).reconnect();
    }
    await cluster.ready(3);
    await eachSlotOnce(cluster, "cut", 6);
    const { services } = await cluster.job("cut");
    const history = (
      services["web"] as unknown as { history: { allocations: { cause: string; node_name: string }[] }[] }
    ).history;
    expect(history.flatMap(({ allocations }) => allocations)).toEqual(
      Array.from({ length: 2 }, () => expect.objectContaining({ cause: "lost", node_name: "host-3" })),
    );
  });

  test("whose process freezes is replaced, too, and hears of it when it goes on", async () => {
    await run(cluster, "frozen", 6);
    cluster.process(2).freeze();
    try {
      expect(await runElsewhere(cluster, "frozen", { host: 2, count: 6 })).toBeLessThan(REPLACED_MS);
    } finally {
      cluster.process(2).thaw();
    }
    await cluster.ready(3);
    await eachSlotOnce(cluster, "frozen", 6);
  });

  test.each(["OUTPUT", "INPUT"])("whose packets get lost in one direction only (%s) is replaced", async (chain) => {
    await run(cluster, "oneway", 6);
    const { name } = cluster.lab.host(3);
    const rule = [chain, "-p", "tcp", "-j", "DROP"];
    const iptables = (act: string) => mustRun(["ip", "netns", "exec", name, "iptables", "-w", act, ...rule]);
    await iptables("-I");
    try {
      // What is not acknowledged is seen from the other side only after the connection has been given up.
      const limit = chain === "OUTPUT" ? REPLACED_MS : REPLACED_MS + 4_000;
      expect(await runElsewhere(cluster, "oneway", { host: 3, count: 6 })).toBeLessThan(limit);
    } finally {
      await iptables("-D");
    }
    await cluster.ready(3);
    await eachSlotOnce(cluster, "oneway", 6);
  });
});
