/** @module Names and addresses over three hosts with real Docker Engines: who finds and reaches whom, and while replicas come and go. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Lab } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { askNode, type Follower, followEntry, type Member, membersOf, on, server } from "./lab_names.ts";
import type { Seen } from "./names_client.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(90_000);

/** What a name server's answer may outlive the news of a replica's end by. */
const GONE_MS = 2_000;

let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 3, bootstrap: ["--node-timeout", "4s"] });
  lab = cluster.lab;
});

afterAll(() => lab?.stop());

type ServiceDoc = {
  replicas: { slot: number; allocation_id: string; ready: boolean; addresses: { address: string }[] }[];
};

async function serviceDoc(path: string, host = 1): Promise<ServiceDoc> {
  return (await cluster.api<ServiceDoc>(`/cluster/service/${path}`, { on: host })).body;
}

test("each service of a job over three hosts calls the next one by name", async () => {
  const { body } = await cluster.put("shop", {
    services: {
      web: server({
        name: "web",
        next: "api",
        deploy: on(1),
        ports: [{ target: 80, published: 8088, mode: "ingress" }],
      }),
      api: server({
        name: "api",
        next: "store",
        deploy: { ...on(2), replicas: 2 },
        networks: { default: { aliases: ["backend"] } },
        expose: ["80"],
        labels: { team: "a" },
      }),
      database: server({
        name: "database",
        next: "1.cache.shop",
        deploy: on(3),
        networks: { default: { aliases: ["store"] } },
      }),
      cache: server({ name: "cache", deploy: on(1) }),
    },
  });
  expect(body).toMatchObject({ version: expect.any(Number), warnings: [] });
  const [web] = await membersOf(cluster, "shop", "web");
  const apis = await membersOf(cluster, "shop", "api");
  const addresses = apis.map(({ address }) => address).toSorted();
  for (const number of [1, 2, 3]) {
    // Every node's entry leads to it, too.
    const entry = await lab.host(number).fetch("/cgi-bin/call", { port: 8088 });
    expect((await entry.text()).trim().split("\n")).toEqual(["web", "api", "database", "cache"]);
    expect(await askNode(lab.host(number), "database.shop")).toHaveLength(1);
  }
  for (const name of ["api", "api.shop", "API.shop.cacophony", "backend", "backend.shop"]) {
    expect([name, await web!.ask(name)]).toEqual([name, addresses]);
  }
  expect(await web!.ask("2.api.shop")).toEqual([apis[1]!.address]);
  expect(await web!.ask("3.api.shop.cacophony")).toEqual(["NXDOMAIN"]);
  expect(await web!.ask("_80._tcp.api", "srv")).toEqual(["0 1 80 1.api.shop.cacophony", "0 1 80 2.api.shop.cacophony"]);
  expect(await web!.ask("_80._tcp.web.shop.cacophony", "srv")).toEqual(["0 1 80 1.web.shop.cacophony"]);
  expect(await web!.ask(apis[1]!.address, "ptr")).toEqual(["2.api.shop.cacophony"]);
});

test("the API of every node tells where services are, once and as it changes", async () => {
  const abort = new AbortController();
  const response = await lab.host(3).fetch("/cluster/service/shop/api?watch=true", { signal: abort.signal });
  expect(response.headers.get("content-type")).toStartWith("text/event-stream");
  const events: { event: string; data: ServiceDoc }[] = [];
  const reading = (async () => {
    let text = "";
    for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
      const parts = (text + chunk).split("\n\n");
      text = parts.pop() ?? "";
      for (const part of parts) {
        const [, event = "", data = ""] = /^event: (.*)\ndata: (.*)$/.exec(part) ?? [];
        if (event !== "") events.push({ event, data: JSON.parse(data) as ServiceDoc });
      }
    }
  })().catch(() => {});
  const readyAtLast = () => events.at(-1)?.data.replicas.filter(({ ready }) => ready).length;
  await waitUntil("the first event", () => readyAtLast(), { until: (count) => count === 2 });
  await cluster.scale("shop", { service: "api", scale: 1, on: 3 });
  await waitUntil("the scale's event", () => readyAtLast(), { until: (count) => count === 1 });
  await cluster.settled("shop");
  const [api] = await membersOf(cluster, "shop", "api");
  const { body: groups } = await cluster.api("/cluster/discovery/prometheus", { on: 2 });
  expect(groups).toContainEqual({
    targets: [`${api!.address}:80`],
    labels: expect.objectContaining({
      __meta_cacophony_job: "shop",
      __meta_cacophony_service: "api",
      __meta_cacophony_node: "host-2",
      __meta_cacophony_label_team: "a",
    }),
  });
  await cluster.api("/cluster/job/shop", { method: "DELETE" });
  await waitUntil("the job's end", () => events.at(-1)?.event, { until: (event) => event === "gone" });
  abort.abort();
  await reading;
  await cluster.clear();
});

test("jobs do not reach each other, on one node and over nodes, but by a network that they share", async () => {
  const lan = { services: {}, networks: { lan: { name: "common" } } };
  const both = { networks: ["default", "lan"] };
  await cluster.put("red", {
    ...lan,
    services: {
      near: server({ deploy: on(1) }),
      far: server({ deploy: on(2) }),
      open: server({ ...both, deploy: on(2) }),
      opener: server({ ...both, deploy: on(1) }),
    },
  });
  await cluster.settled("red");
  await cluster.put("blue", {
    services: {
      client: server({ deploy: on(1) }),
      mate: server({ deploy: on(2) }),
      guest: server({ deploy: on(1), networks: ["lan"] }),
    },
    networks: { lan: { name: "common", external: true } },
  });
  const [client] = await membersOf(cluster, "blue", "client");
  expect(await client!.get("mate")).toBeString();
  const reached = ["near", "far", "open"].map(async (name) => {
    const [{ address }] = (await membersOf(cluster, "red", name)) as [Member];
    const page = await client!.get(address, { isDropped: true });
    return { name, page, names: await client!.ask(`${name}.red.cacophony`) };
  });
  for (const { name, page, names } of await Promise.all(reached))
    expect([name, page, names]).toEqual([name, undefined, ["NXDOMAIN"]]);
  const [guest] = await membersOf(cluster, "blue", "guest");
  expect(await guest!.get("open")).toBeString();
  expect(await guest!.get("opener.red.cacophony")).toBeString();
  expect(await guest!.ask("far.red.cacophony")).toEqual(["NXDOMAIN"]);
  expect(await guest!.ask("mate.blue.cacophony")).toEqual(["NXDOMAIN"]);
  await cluster.clear();
});

test("fifty jobs at once have names and more than one block of addresses, and leave nothing behind", async () => {
  const jobs = Array.from({ length: 50 }, (_, index) => `many-${index}`);
  const services = (index: number) =>
    index % 10 === 0 ? { a: server({ deploy: on(2) }), b: server({ deploy: on(3) }) } : { a: sleeper() };
  await Promise.all(jobs.map((job, index) => cluster.put(job, { services: services(index), name: job })));
  await waitUntil("all jobs to run", () => cluster.allocations("?state=running"), {
    until: (list) => list.length === 55,
    timeoutMs: 60_000,
    intervalMs: 250,
  });
  const answers = await Promise.all(
    jobs.map(async (job, index) => askNode(lab.host((index % 3) + 1), `a.${job}.cacophony`)),
  );
  expect(answers.filter(([address]) => !address?.startsWith("10.213."))).toEqual([]);
  expect(new Set(answers.flat()).size).toBe(50);
  const called = await Promise.all(
    jobs.filter((_, index) => index % 10 === 0).map(async (job) => (await membersOf(cluster, job, "b"))[0]!.get("a")),
  );
  expect(called).not.toContain(undefined);
  const { network } = (await cluster.api<{ nodes: { network: { subnets: string[] } }[] }>("/cluster/node")).body
    .nodes[0]!;
  expect(network.subnets.length).toBeGreaterThan(1);
  await cluster.clear();
  await waitUntil(
    "networks and their rules to be gone",
    async () =>
      Promise.all(
        lab.hosts.map(async (host) => {
          const networks = await host.docker("network", "ls", "--quiet", "--filter", "label=cacophony.job");
          const rules = (await host.run(["iptables-save"])).stdout.split("\n").filter((line) => / br-|-br-/.test(line));
          return { networks, rules };
        }),
      ),
    // What Docker refused to remove is tried again at the next look, which may be 30 s away.
    { until: (left) => left.every(({ networks, rules }) => networks === "" && rules.length === 0), timeoutMs: 40_000 },
  );
});

/** When replicas of a service were first seen not to be ready any more, by the master's word, and when another had the address. */
class Ends {
  readonly seen: { allocation: string; address: string; from: number; until: number }[] = [];
  /** Addresses by allocation. */
  #ready = new Map<string, string>();
  /** When the last look that was answered began: what came after it is not known yet. */
  #knownUntil = 0;
  readonly #watching: Promise<void>;
  #isStopping = false;

  constructor(path: string) {
    this.#watching = this.#watch(path);
  }

  /** How many are ready now. */
  get ready(): number {
    return this.#ready.size;
  }

  async stop(): Promise<void> {
    this.#isStopping = true;
    await this.#watching;
  }

  /** Rounds that named a replica more than `GONE_MS` after its end was known; a round has its answer at some time between `at` and `done`. */
  stale(rounds: readonly Seen[]): Seen[] {
    return this.seen.flatMap(({ address, from, until }) =>
      rounds.filter(
        (one) =>
          one.addresses.includes(address) && one.at > from + GONE_MS && one.done < Math.min(until, this.#knownUntil),
      ),
    );
  }

  async #watch(path: string): Promise<void> {
    // An address that is ready now may have been so since just after the look before, however long ago that was.
    let [lookedBefore, looked] = [Date.now() - LOOK_MS, Date.now() - LOOK_MS];
    while (!this.#isStopping) {
      [lookedBefore, looked] = [looked, Date.now()];
      const { replicas } = await serviceDoc(path);
      const ready = new Map(
        replicas.filter((one) => one.ready).map((one) => [one.allocation_id, one.addresses[0]?.address ?? ""]),
      );
      for (const [allocation, address] of this.#ready) {
        if (!ready.has(allocation)) this.seen.push({ allocation, address, from: Date.now(), until: Infinity });
      }
      const addresses = new Set(ready.values());
      for (const one of this.seen) if (addresses.has(one.address)) one.until = Math.min(one.until, lookedBefore);
      this.#ready = ready;
      this.#knownUntil = looked;
      await Bun.sleep(LOOK_MS);
    }
  }
}

const LOOK_MS = 100;
const failed = (rounds: readonly Seen[]) => rounds.filter(({ error }) => error !== undefined);

describe("while a client resolves and connects all the time", () => {
  const document = (environment: Record<string, string> = {}) => ({
    services: {
      web: server({
        revivesAfterS: 3,
        environment,
        healthcheck: { test: ["CMD-SHELL", "nc -w 1 127.0.0.1 80 </dev/null"], interval: "300ms", retries: 10 },
        ports: [{ target: 80, published: 8090, mode: "ingress" }],
        scale: 3,
      }),
      client: sleeper({ deploy: on(1) }),
    },
  });
  let ends: Ends;
  let names: Follower;
  const named = (count: number) =>
    waitUntil(
      `${count} replicas to be ready and to have the name`,
      () => [ends.ready, names.seen().at(-1)?.addresses.length],
      { until: (counts) => counts.every((seen) => seen === count), timeoutMs: 30_000 },
    );

  beforeAll(async () => {
    await cluster.put("churn", document());
    const [client] = await membersOf(cluster, "churn", "client");
    ends = new Ends("churn/web");
    names = client!.follow("web");
    await named(3);
  });

  afterAll(async () => {
    await ends?.stop();
    await names?.stop();
    await cluster?.clear();
  });

  test("no request fails in a scaling or an update: neither by name nor through an entry", async () => {
    const entries = [1, 2].map((number) => followEntry(lab.host(number), 8090));
    await cluster.scale("churn", { service: "web", scale: 5 });
    await named(5);
    await cluster.scale("churn", { service: "web", scale: 3 });
    await cluster.settled("churn");
    const { version } = (await cluster.put("churn", document({ UPDATED: "1" }))).body;
    await waitUntil("the update", () => cluster.allocations("?job=churn"), {
      until: (list) =>
        list.filter((one) => (one as { job_version?: number }).job_version === version && one.health === "healthy")
          .length === 3,
      timeoutMs: 60_000,
    });
    await waitUntil("the ends of two scaled down and three replaced", () => ends.seen.length >= 5);
    await cluster.settled("churn");
    for (const follower of entries) expect(failed(await follower.stop())).toEqual([]);
    expect(failed(names.seen())).toEqual([]);
    expect(ends.stale(names.seen())).toEqual([]);
  });

  test("no answer names a replica that was killed, nor those of a node that is down, 2 s after it is known", async () => {
    await cluster.scale("churn", { service: "web", scale: 6 });
    await named(6);
    const killed = (await membersOf(cluster, "churn", "web")).find(({ host }) => host.number === 2)!;
    const since = Date.now();
    killed.kill();
    await named(5);
    await named(6);
    const all = names.seen().filter(({ at }) => at > since);
    expect(all.filter((one) => !one.addresses.includes(killed.address)).length).toBeGreaterThan(10);

    const cutOff = (await membersOf(cluster, "churn", "web")).filter(({ host }) => host.number === 3);
    expect(cutOff.length).toBeGreaterThan(0);
    await lab.host(3).cutOff();
    await waitUntil("the cut-off node to be down", () => cluster.nodes(), {
      until: (nodes) => nodes.some(({ state }) => state === "down"),
      timeoutMs: 20_000,
    });
    const downAt = Date.now();
    await named(6);
    await waitUntil("some rounds", () => names.seen().at(-1)?.at, { until: (at = 0) => at > downAt + GONE_MS });
    expect(failed(names.seen().filter(({ at }) => at > downAt + GONE_MS))).toEqual([]);
    await lab.host(3).reconnect();
    await cluster.ready(3);
    await cluster.settled("churn");
    expect(ends.stale(names.seen())).toEqual([]);
    for (const { allocation } of [killed, ...cutOff])
      expect(ends.seen.map((one) => one.allocation)).toContain(allocation.allocation_id);
  });
});

test("a replica has its name on another node a moment after its start, and loses it a moment after its end", async () => {
  const once = { ...on(2), restart_policy: { condition: "none" } };
  await cluster.put("times", {
    services: { web: server({ deploy: once, scale: 0 }), client: sleeper({ deploy: on(1) }) },
  });
  const [client] = await membersOf(cluster, "times", "client");
  const names = client!.follow("web");
  const spans: { start: number; end: number }[] = [];
  for (let round = 0; round < 3; round++) {
    await cluster.scale("times", { service: "web", scale: 1 });
    const [web] = await membersOf(cluster, "times", "web");
    const rounds = () => names.seen().filter(({ at }) => at > web!.startedAt);
    const isNamed = (one: Seen | undefined) => one?.addresses.includes(web!.address) === true;
    await waitUntil("the name", () => rounds().some(isNamed));
    const killedAt = Date.now();
    web!.kill();
    await waitUntil("the name's end", () => !isNamed(rounds().at(-1)));
    const named = rounds().filter(isNamed);
    spans.push({ start: (named[0]?.at ?? NaN) - web!.startedAt, end: (named.at(-1)?.at ?? NaN) - killedAt });
    await cluster.scale("times", { service: "web", scale: 0 });
    await cluster.settled("times");
  }
  await names.stop();
  console.log("ms from a replica's start to its first answer on another node, and from its end to its last:", spans);
  await cluster.clear();
});
