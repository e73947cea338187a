/**
 * @module What people run already, in the lab: Debian's Prometheus, HAProxy and Caddy as the examples set them up, in front of
 * services over three nodes.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Lab } from "./lab.ts";
import { type Allocation, LabCluster } from "./lab_cluster.ts";
import { importProgram } from "./lab_programs.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

const EXAMPLES = join(import.meta.dir, "../examples");
const HAPROXY = ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"];
const CADDY = ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"];
const PROMETHEUS = ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"];

type Example = { services: Record<string, { image: string; deploy?: Record<string, unknown> }> };

/** An example as it stands, but that some services run where the lab has their image. */
function example(name: string, hostsByService: Record<string, number>): Example {
  const document = Bun.YAML.parse(readFileSync(join(EXAMPLES, `${name}.yml`), "utf8")) as Example;
  for (const [service, host] of Object.entries(hostsByService)) {
    const definition = document.services[service];
    if (!definition) throw new Error(`the example ${name} has no service ${service}`);
    definition.deploy = { ...definition.deploy, ...on(host) };
  }
  return document;
}

function on(host: number) {
  return { placement: { constraints: [`node.hostname == host-${host}`] } };
}

function imageOf(name: string, service: string): string {
  return example(name, {}).services[service]?.image ?? "";
}

let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  lab = await Lab.start({ hosts: 3 });
  const [one, two] = [lab.host(1), lab.host(2)];
  await Promise.all([
    ...lab.hosts.map((host) => host.importImage("busybox")),
    importProgram(one, { image: imageOf("haproxy", "haproxy"), program: "haproxy", argv: HAPROXY }),
    importProgram(two, { image: imageOf("caddy", "caddy"), program: "caddy", argv: CADDY }),
    importProgram(one, { image: imageOf("prometheus", "prometheus"), program: "prometheus", argv: PROMETHEUS }),
  ]);
  cluster = new LabCluster(lab);
  const first = `${one.address}:9000`;
  await cluster.node(1, ["--bind-addr", first, "bootstrap"]).waitFor(/this node is up/);
  cluster.node(2, ["join", first]);
  cluster.node(3, ["join", first]);
  await cluster.ready(3);
});

afterAll(() => lab?.stop());

async function put(jobId: string, document: unknown, query = ""): Promise<void> {
  const { status, body } = await cluster.put(jobId, document, { query });
  expect({ status, error: body.error }).toEqual({ status: 201, error: undefined });
  await cluster.settled(jobId);
}

async function running(jobId: string, service: string): Promise<Allocation[]> {
  return cluster.allocations(`?job=${jobId}&service=${service}&state=running`);
}

/** Who answers, as containers are called inside, by the web service of the examples; the address that it was told of. */
async function ask(host: number, port: number): Promise<{ who: string; client: string }> {
  const response = await lab.host(host).fetch("/cgi-bin/who", { port, timeoutMs: 5_000 });
  const text = await response.text();
  const [, who = "", client = ""] = /^(\S+) answers (\S*)/m.exec(text) ?? [];
  if (response.status !== 200 || who === "") throw new Error(`status ${response.status}: ${text.trim()}`);
  return { who, client };
}

function hostnames(allocations: readonly Allocation[]): string[] {
  return allocations.map(({ container_id }) => (container_id ?? "").slice(0, 12)).toSorted();
}

/** Asks until just the replicas that run now answer, each of them: so the proxy has found them all, and no other. */
async function balancedOver(jobId: string, { host, port }: { host: number; port: number }): Promise<string[]> {
  return waitUntil(
    `requests to port ${port} of host ${host} to reach every replica of ${jobId}, and nobody else`,
    async () => {
      const answers: string[] = [];
      for (let n = 0; n < 12; n++) answers.push((await ask(host, port)).who);
      return { answered: [...new Set(answers)].toSorted(), wanted: hostnames(await running(jobId, "web")) };
    },
    { until: ({ answered, wanted }) => Bun.deepEquals(answered, wanted), timeoutMs: 20_000, intervalMs: 200 },
  ).then(({ answered }) => answered);
}

/** Asks all the time until `stop`, and tells of every failure. */
function askAllTheTime(host: number, port: number): { stop: () => Promise<{ asked: number; failures: string[] }> } {
  let stopped = false;
  let asked = 0;
  const failures: string[] = [];
  const work = (async () => {
    while (!stopped) {
      asked++;
      await ask(host, port).catch((error: unknown) => failures.push(String(error)));
    }
  })();
  return {
    stop: async () => {
      stopped = true;
      await work;
      return { asked, failures };
    },
  };
}

describe.each([
  { program: "haproxy", proxyHost: 1, port: 80, askHost: 3 },
  { program: "caddy", proxyHost: 2, port: 8080, askHost: 1 },
])("the example $program", ({ program, proxyHost, port, askHost }) => {
  const job = `behind-${program}`;
  const at = { host: askHost, port };

  test("its requests, at any node, are spread over replicas on all nodes, which it finds by name", async () => {
    await put(job, example(program, { [program]: proxyHost }));
    const nodes = new Set((await running(job, "web")).map(({ node_name }) => node_name));
    expect([...nodes].toSorted()).toEqual(["host-1", "host-2", "host-3"]);
    expect(await balancedOver(job, at)).toHaveLength(3);
  });

  test("it follows more replicas, fewer, and others in their place, and no request fails meanwhile", async () => {
    const before = hostnames(await running(job, "web"));
    const client = askAllTheTime(at.host, at.port);
    await cluster.scale(job, { service: "web", scale: 5 });
    await cluster.settled(job);
    expect(await balancedOver(job, at)).toHaveLength(5);
    await cluster.scale(job, { service: "web", scale: 2 });
    await cluster.settled(job);
    expect(await balancedOver(job, at)).toHaveLength(2);
    const changed = example(program, { [program]: proxyHost });
    Object.assign(changed.services["web"] ?? {}, { environment: { CHANGED: "yes" } });
    await cluster.put(job, changed);
    await waitUntil("both replicas to be replaced", async () => hostnames(await running(job, "web")), {
      until: (now) => now.length === 2 && !now.some((name) => before.includes(name)),
      timeoutMs: 30_000,
    });
    expect(await balancedOver(job, at)).toHaveLength(2);
    const { asked, failures } = await client.stop();
    expect(asked).toBeGreaterThan(20);
    expect(failures).toEqual([]);
  });
});

describe("the client's address", () => {
  /** The test process stands on the lab's own bridge. */
  const self = () => lab.host(3).address.replace(/\d+$/, "254");

  /** The example's HAProxy, which wants the header of either version, behind entries that send it as told. */
  async function putWith(proxy_protocol: string): Promise<void> {
    const document = example("haproxy", { haproxy: 1 });
    Object.assign(document.services["haproxy"] ?? {}, { "x-cacophony": { publish: "mesh", proxy_protocol } });
    expect((await cluster.put("behind-haproxy", document)).status).toBe(200);
    await cluster.settled("behind-haproxy");
  }

  test.each(["v1", "v2"])(
    "reaches HAProxy through the entry of another node by the PROXY protocol %s",
    async (version) => {
      await putWith("none");
      await waitUntil("HAProxy to get no header and refuse", () => ask(3, 80).then(String, () => "refused"), {
        until: (seen) => seen === "refused",
      });
      await putWith(version);
      await waitUntil(`the replicas to be told of ${self()}`, async () => (await ask(3, 80)).client, {
        until: (client) => client === self(),
      });
    },
  );
});

type Target = { health: string; scrapeUrl: string; labels: Record<string, string> };

describe("the example prometheus", () => {
  const METRICS = {
    services: {
      app: {
        image: "busybox",
        command: "httpd -f -h /www",
        stop_signal: "SIGKILL",
        expose: ["80"],
        labels: { "prometheus.scrape": "true" },
        configs: [{ source: "metrics", target: "/www/metrics" }],
        deploy: { replicas: 3 },
      },
      other: { image: "busybox", command: "sleep 86400", stop_signal: "SIGKILL", expose: ["80"] },
    },
    configs: { metrics: { content: "lab_answer 42\n" } },
  };

  async function prometheus<T>(path: string): Promise<T> {
    const response = await lab.host(1).fetch(`/api/v1/${path}`, { port: 9090 });
    return ((await response.json()) as { data: T }).data;
  }

  /** Waits until its targets are just the replicas of `app` that run now, all up. */
  async function followed(count: number): Promise<Target[]> {
    return waitUntil(
      `Prometheus to read ${count} replicas`,
      async () => {
        const { activeTargets } = await prometheus<{ activeTargets: Target[] }>("targets?state=active");
        const slots = (await running("watched", "app")).map(({ slot, node_name }) => `${slot} ${node_name}`);
        return { activeTargets, slots };
      },
      {
        until: ({ activeTargets, slots }) =>
          slots.length === count &&
          activeTargets.every(({ health }) => health === "up") &&
          Bun.deepEquals(
            activeTargets.map(({ labels }) => `${labels["slot"]} ${labels["node"]}`).toSorted(),
            slots.toSorted(),
          ),
        timeoutMs: 30_000,
        intervalMs: 250,
      },
    ).then(({ activeTargets }) => activeTargets);
  }

  test("it reads every replica with the label, on whichever node, and follows more and fewer of them", async () => {
    await put("watched", METRICS);
    const document = example("prometheus", { prometheus: 1 });
    await put("prometheus", document, `?env.API=${lab.host(1).address}:9000&env.INTERVAL=1s`);
    const targets = await followed(3);
    expect(targets.map(({ labels }) => labels["job"])).toEqual(["watched/app", "watched/app", "watched/app"]);
    expect(new Set(targets.map(({ labels }) => labels["node"])).size).toBe(3);
    const { result } = await prometheus<{ result: { value: [number, string] }[] }>("query?query=lab_answer");
    expect(result.map(({ value }) => value[1])).toEqual(["42", "42", "42"]);
    await cluster.scale("watched", { service: "app", scale: 5 });
    await followed(5);
    await cluster.scale("watched", { service: "app", scale: 1 });
    await followed(1);
  });
});
