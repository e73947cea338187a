/** @module One service whose planning throws (point 4 of section 1): the others are planned, and it is tried again. */
import { describe, expect, test } from "bun:test";
import { createApi } from "../src/api.ts";
import type { Log } from "../src/log.ts";
import { silentLog } from "../src/log.ts";
import type { ServiceSpec } from "../src/model_spec.ts";
import { Master, Peer } from "./master_fixture.ts";
import { seededRandom } from "./virtual_clock.ts";

const TEXT = "a defect in planning";

/** A definition that throws whatever is asked of it. */
function poisoned(): ServiceSpec {
  const fail = () => {
    throw new Error(TEXT);
  };
  return new Proxy({}, { get: fail, ownKeys: fail, has: fail }) as ServiceSpec;
}

/** Makes a service's definition throw; returns what makes it whole again. */
function poison(master: Master, jobId: string, serviceName = "web"): () => void {
  const { state } = master.scheduler;
  const service = state.liveJob(jobId)?.services.find(({ service_name }) => service_name === serviceName);
  const hash = service?.spec_hash ?? "";
  const spec = state.specs.get(hash);
  if (!spec) throw new Error(`there is no service ${serviceName} in job ${jobId}`);
  state.specs.set(hash, poisoned());
  return () => void state.specs.set(hash, spec);
}

type Line = { message: string; fields: Record<string, unknown> };

function listening(): { log: Log; errors: Line[] } {
  const errors: Line[] = [];
  return { errors, log: { ...silentLog, error: (message, fields = {}) => void errors.push({ message, fields }) } };
}

const service = (scale: number, more: object = {}) => ({ web: { image: "busybox", scale, ...more } });
const running = (master: Master, jobId: string) =>
  master.scheduler.state.allocationsOf(`${jobId}/web`).filter(({ desired }) => desired === "run").length;
const reasons = (master: Master, jobId: string) =>
  master.scheduler.blockedOf(`${jobId}/web`).flatMap(({ reasons: why }) => why);

describe("a service whose planning throws", () => {
  test("stops none of the other services of its pass, says so, and is planned again", async () => {
    const { log, errors } = listening();
    const master = await Master.start(undefined, { log });
    const node = await Peer.join(master, 1);
    const pass = async (ms: number) => {
      for (let past = 0; past < ms; past += 2_000) {
        await node.beat();
        await master.clock.advance(2_000);
      }
    };
    for (const id of ["a", "b", "c"]) await master.put(id, service(0, { environment: { ID: id } }));
    const mend = poison(master, "b");
    // All three in one pass, the bad one in the middle.
    const scaled = ["a", "b", "c"].map((id) => master.scheduler.scaleService(id, { serviceName: "web", scale: 2 }));
    await Promise.all(scaled);
    await master.clock.advance(100);
    expect(["a", "b", "c"].map((id) => running(master, id))).toEqual([2, 0, 2]);
    expect(reasons(master, "b").join()).toContain(`internal error of Cacophony, which its log has more of: ${TEXT}`);
    expect(reasons(master, "b").join()).toContain("it is tried again in 1 s");
    await pass(120_000);
    const told = errors.filter(({ fields }) => fields["service"] === "b/web" && fields["stack"] !== undefined);
    expect(told.map(({ message }) => message).toSorted()).toEqual([
      "an error of Cacophony itself in the directory of services",
      "an error of Cacophony itself: a service could not be planned; the others go on",
    ]);
    mend();
    await pass(32_000);
    expect(running(master, "b")).toBe(2);
    expect(reasons(master, "b")).toEqual([]);
  });

  test("is tried ever less often, but at once when its job is another", async () => {
    const master = await Master.start();
    const node = await Peer.join(master, 1);
    await master.put("a", service(1));
    let tries = 0;
    const find = master.scheduler.state.specs.get.bind(master.scheduler.state.specs);
    const mend = poison(master, "a");
    master.scheduler.state.specs.get = (hash) => {
      const spec = find(hash);
      const isPlanning = (new Error().stack ?? "").includes("#planOne");
      if (isPlanning) tries++;
      return spec;
    };
    await master.put("a", service(2));
    for (let second = 0; second < 60; second++) {
      // Something always happens that has it looked at again.
      master.scheduler.wakeBlocked();
      await node.beat();
      await master.clock.advance(1_000);
    }
    expect(tries).toBeGreaterThan(4);
    expect(tries).toBeLessThan(20);
    mend();
    await master.put("a", service(3));
    expect(running(master, "a")).toBe(3);
  });

  test("leaves nothing of its half a plan in the counts that the services after it go by", async () => {
    let isFailing = false;
    let ids = 0;
    const newId = () => {
      // After the replica was counted into its node, before it is written down.
      if (isFailing) throw new Error(TEXT);
      return `id${++ids}`;
    };
    const master = await Master.start(undefined, { newId });
    await Peer.join(master, 1);
    // The node has 2 CPUs: there is room for the second service only where the first one holds nothing.
    const big = { deploy: { resources: { reservations: { cpus: "1.5" } } } };
    await master.put("a", service(0, big));
    await master.put("b", service(0, { ...big, environment: { ID: "b" } }));
    const { scheduler } = master;
    const plan = scheduler.state.histories.bind(scheduler.state);
    scheduler.state.histories = (key) => {
      isFailing = key === "a/web";
      return plan(key);
    };
    const scaled = ["a", "b"].map((id) => scheduler.scaleService(id, { serviceName: "web", scale: 1 }));
    await Promise.all(scaled);
    await master.clock.advance(100);
    expect([running(master, "a"), running(master, "b")]).toEqual([0, 1]);
  });

  test("holds up no drain and no rebalancing, and says in a drain why it stays", async () => {
    const master = await Master.start();
    const nodes = [await Peer.join(master, 1), await Peer.join(master, 2)];
    for (const id of ["a", "b", "c"]) await master.put(id, service(2, { environment: { ID: id } }));
    for (const node of nodes) await node.report();
    const settle = async () => {
      for (let round = 0; round < 20; round++) {
        for (const node of nodes) await node.report();
        await master.clock.advance(500);
      }
    };
    await settle();
    // Between two turns, so that its replicas on the node can still be counted.
    const find = master.scheduler.state.histories.bind(master.scheduler.state);
    master.scheduler.state.histories = (key) => {
      if (key === "a/web") throw new Error(TEXT);
      return find(key);
    };
    await master.scheduler.putNode("n1", { availability: "drain", deadlineMs: 3_600_000 });
    await settle();
    const left = master.scheduler.state.allocationsOn("n1").map(({ job_id }) => job_id);
    expect(left).toEqual(["a"]);
    const node = master.scheduler.state.nodes.get("n1");
    expect(
      node &&
        master.scheduler
          .drainWaits(node)
          .map(({ reason }) => reason)
          .join(),
    ).toContain(TEXT);
    expect(master.scheduler.rebalance({ dryRun: true }).moves).toEqual([]);
  });

  test("is shown as blocked by a dry run, beside the others of its job", async () => {
    const master = await Master.start();
    await Peer.join(master, 1);
    const outcome = await master.put("a", { ...service(1), other: { image: "redis" } });
    const find = master.scheduler.state.histories.bind(master.scheduler.state);
    master.scheduler.state.histories = (key) => {
      if (key === "a/web") throw new Error(TEXT);
      return find(key);
    };
    const services = outcome.job.services.map(({ service_name, spec_hash, rules }) => {
      const spec = master.scheduler.state.specs.get(spec_hash);
      if (!spec) throw new Error("a definition is missing");
      return { service_name, spec: { ...spec, environment: ["A=1"] }, rules, scale: 2 };
    });
    const planned = master.scheduler.dryRun("a", { wanted: { document: "{}", services }, preconditions: {} }).services;
    const blocked = planned.map(({ goal, plan }) => [goal.service_name, plan.blocked[0]?.reasons.join() ?? "-"]);
    expect(blocked).toEqual([
      ["web", expect.stringContaining(TEXT)],
      ["other", "-"],
    ]);
  });

  test("keeps no node from hearing of the others, and no job from being changed, scaled and deleted", async () => {
    const master = await Master.start();
    const nodes = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put("a", service(1));
    await master.put("b", service(1, { environment: { ID: "b" } }));
    for (const node of nodes) await node.report();
    const bad = master.scheduler.state.allocationsOf("a/web")[0]?.node_id;
    poison(master, "a");
    master.scheduler.state.touch(bad ?? "");
    await master.put("c", service(4, { environment: { ID: "c" } }));
    const well = nodes.find(({ id }) => id !== bad);
    // Nothing is placed beside what cannot be counted.
    expect(well?.assigned.filter(({ job_id }) => job_id === "c").length).toBe(4);
    expect(well?.services.has("c/web")).toBe(true);
    await well?.report();
    expect(well?.endpoints("c/web")?.length).toBe(4);
    await master.put("a", service(1, { image: "redis" }));
    await master.delete("b");
    await master.delete("a");
    expect([running(master, "a"), running(master, "b"), running(master, "c")]).toEqual([0, 0, 4]);
  });

  test("is shown with its error, and left out where the rest of a listing can be shown", async () => {
    const { log, errors } = listening();
    const master = await Master.start(undefined, { log });
    const nodes = [await Peer.join(master, 1), await Peer.join(master, 2)];
    for (const id of ["a", "b"]) await master.put(id, service(2, { environment: { ID: id } }));
    await master.put("c", { web: { image: "busybox", labels: { a: "b" } }, other: { image: "redis" } });
    for (const node of nodes) await node.report();
    const app = createApi({
      local: {
        nodeId: "master",
        version: "0",
        faults: () => [],
        peerInfo: () => ({ node_id: "master", protocol: 1, version: "0", peers: [] }),
        master: () => ({ address: undefined, lost: undefined }),
      },
      scheduler: () => master.scheduler,
      dataDir: "/",
      log: silentLog,
    });
    const get = async (path: string) => {
      const response = await app.request(path, { headers: { host: "localhost" } });
      expect([path, response.status]).toEqual([path, 200]);
      return response.json() as Promise<never>;
    };
    const { state } = master.scheduler;
    poison(master, "c");
    // A record that passes every check, and that this code cannot show.
    const bad = state.allocationsOf("a/web")[0];
    if (!bad) throw new Error("nothing was placed");
    const fail = () => {
      throw new Error(TEXT);
    };
    Object.defineProperty(bad, "created_at", { get: fail });
    for (const path of ["/cluster/job", "/cluster/node", "/cluster/resources", "/cluster/status"]) await get(path);
    const services: { services: { job_id: string; service_name: string }[] } = await get("/cluster/service");
    expect(services.services.map(({ job_id, service_name }) => `${job_id}/${service_name}`)).toEqual([
      "a/web",
      "b/web",
      "c/other",
    ]);
    const { allocations }: { allocations: object[] } = await get("/cluster/allocation");
    expect(allocations.length).toBe(state.allocations.size - 1);
    await get("/cluster/discovery/prometheus");
    await get("/cluster/discovery/traefik");
    const job: { services: Record<string, { blocked: { reasons: string[] }[] }> } = await get("/cluster/job/a");
    expect(job.services["web"]?.blocked[0]?.reasons.join()).toContain("internal error of Cacophony");
    const other: { services: Record<string, { allocations: object[] }> } = await get("/cluster/job/b");
    expect(other.services["web"]?.allocations.length).toBe(2);
    expect(errors.map(({ message }) => message)).toContain("an error of Cacophony itself: left out of a listing");
  });

  test.each(Array.from({ length: 20 }, (_, n) => n + 1))(
    "never has a node take more than it has, and is planned in the end, whatever throws when (seed %d)",
    async (seed) => {
      const random = seededRandom(seed);
      let ids = 0;
      let share = 0;
      const newId = () => {
        if (random() < share) throw new Error(TEXT);
        return `id${++ids}`;
      };
      const master = await Master.start(undefined, { newId });
      const nodes = [await Peer.join(master, 1), await Peer.join(master, 2), await Peer.join(master, 3)];
      const jobs = ["a", "b", "c", "d", "e", "f"];
      // Two CPUs each: twelve of these fit into the cluster.
      const half = { deploy: { resources: { reservations: { cpus: "0.5" } } } };
      for (const id of jobs) await master.put(id, service(0, { ...half, environment: { ID: id } }));
      const { scheduler, clock } = master;
      const report = async () => {
        for (const node of nodes) await node.report();
        for (const { id } of nodes) expect(scheduler.state.reservedOn(id).cpus).toBeLessThanOrEqual(2);
      };
      const scale = (id: string, to: number) => scheduler.scaleService(id, { serviceName: "web", scale: to });
      for (let round = 0; round < 10; round++) {
        share = random() < 0.8 ? 0.3 : 0;
        await Promise.all(jobs.map((id) => scale(id, Math.floor(random() * 4))));
        await clock.advance(random() * 3_000);
        await report();
      }
      share = 0;
      await Promise.all(jobs.map((id) => scale(id, 2)));
      for (let past = 0; past < 40_000; past += 2_000) {
        await clock.advance(2_000);
        await report();
      }
      expect(jobs.map((id) => [running(master, id), reasons(master, id)])).toEqual(jobs.map(() => [2, []]));
    },
  );
});
