/** @module The executor and its Engine adapter on a real dockerd, on a lab host of their own. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "../src/clock.ts";
import { type Engine, openEngine } from "../src/docker.ts";
import { EngineError } from "../src/docker_errors.ts";
import { Executor } from "../src/executor.ts";
import { silentLog } from "../src/log.ts";
import { LABELS, type RemovalRecord } from "../src/model.ts";
import { type NetworkSpec, type ServiceSpec } from "../src/model_spec.ts";
import { HostMeter } from "../src/resources.ts";
import { noOverlay, spec as plainSpec } from "./cluster_fixture.ts";
import { Lab, type LabHost } from "./lab.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(90_000);

const OWNER = { clusterId: "cluster-1", nodeId: "node-1" };
/** Ends at once on SIGTERM, which busybox as process 1 would ignore. */
const POLITE = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"];

let lab: Lab;
let host: LabHost;
let engine: Engine;
let executor: Executor;
let dataDir: string;
let revision = 0;

beforeAll(async () => {
  lab = await Lab.start({ hosts: 1 });
  host = lab.host(1);
  await host.importImage("busybox:latest");
  engine = openEngine(`unix://${host.dockerSocket}`);
  dataDir = mkdtempSync(join(tmpdir(), "docker-test-"));
  executor = await begin();
});

afterEach(async () => {
  assign([]);
  await settled([]);
});

afterAll(async () => {
  await executor?.stop();
  await lab?.stop();
  if (dataDir) rmSync(dataDir, { recursive: true, force: true });
});

/** A new executor, as a new process would have it. */
async function begin(): Promise<Executor> {
  const made = new Executor({
    fetchChunk: () => Promise.reject(new Error("no files here")),
    overlay: noOverlay(),
    engine,
    meter: new HostMeter({ engine, clock: systemClock, caps: { memoryBytes: undefined, cpus: undefined } }),
    clock: systemClock,
    random: Math.random,
    log: silentLog,
    dataDir,
    onChange: () => {},
    seenTerm: 0,
  });
  await made.start();
  made.adopt(OWNER);
  return made;
}

type Item = { id: string; job?: string; spec?: Partial<ServiceSpec> };

function assign(items: readonly Item[], removals: RemovalRecord[] = []): void {
  const accepted = executor.assign({
    type: "assignments",
    order: { term: 1, revision: ++revision },
    specs: items.map(({ id, spec }) => ({
      spec_hash: id,
      spec: plainSpec({ image: "busybox:latest", command: POLITE, ...spec }),
    })),
    allocations: items.map(({ id, job = "job" }, index) => ({
      allocation_id: id,
      job_id: job,
      incarnation: "1",
      service_name: "web",
      slot: index + 1,
      node_id: OWNER.nodeId,
      spec_hash: id,
      job_version: 1,
      desired: "run",
      created_at: 0,
    })),
    removals,
  });
  expect(accepted).toBe("accepted");
}

function names(prefix: string, count: number): Item[] {
  return Array.from({ length: count }, (_, n) => ({ id: `${prefix}${n}` }));
}

function statusOf(id: string) {
  return executor.snapshot()?.allocations.find(({ allocation_id }) => allocation_id === id);
}

function errorOf(id: string): Promise<string> {
  return waitUntil(
    `${id} to fail`,
    () => (statusOf(id)?.state === "failed" ? (statusOf(id)?.error ?? "") : undefined!),
    {
      timeoutMs: 30_000,
    },
  );
}

/** Waits until exactly `items` run: as the executor says, and as Docker says. Returns the milliseconds that took. */
async function settled(items: readonly Item[], timeoutMs = 60_000): Promise<number> {
  const start = performance.now();
  const wanted = items.map(({ id }) => `${id} running`).sort();
  const look = async () => {
    const statuses = executor.snapshot()?.allocations ?? [];
    const said = statuses.map(({ allocation_id, state, error }) => `${allocation_id} ${state} ${error ?? ""}`.trim());
    if (!Bun.deepEquals(said.sort(), wanted)) return { said };
    const own = (await engine.list()).filter(({ labels }) => labels.get(LABELS.cluster) === OWNER.clusterId);
    return { said, docker: own.map(({ labels, state }) => `${labels.get(LABELS.allocation)} ${state}`).sort() };
  };
  await waitUntil(`exactly ${wanted.length} allocations to run`, look, {
    until: ({ docker }) => Bun.deepEquals(docker, wanted),
    timeoutMs,
    intervalMs: 10,
  });
  return performance.now() - start;
}

/**
 * A dockerd 20.10 that began after a kill can hang in the removal of one container for good ("removing", seen once in many runs);
 * only another start of it helps. Where that is all that is left to do, that is done, and where it hung is printed.
 */
async function restartUnlessOurs(error: unknown): Promise<void> {
  const left = (await engine.list()).filter(({ labels }) => labels.get(LABELS.cluster) === OWNER.clusterId);
  if (left.length === 0 || left.some(({ state }) => state !== "removing")) throw error;
  host.dockerd.signal("SIGUSR1");
  await Bun.sleep(1_000);
  const stacks = [...new Bun.Glob("**/goroutine-stacks*").scanSync({ cwd: host.dir, absolute: true })];
  for (const file of stacks) {
    const texts = readFileSync(file, "utf8").split("\n\n");
    console.log(texts.filter((text) => /containerRm|cleanupContainer/.test(text)).join("\n\n"));
  }
  await host.restartDocker();
}

function port(first: number): Partial<ServiceSpec> {
  return { ports: [{ container_port: 80, protocol: "tcp", host_ip: "", host_port: { first, last: first } }] };
}

describe("openEngine()", () => {
  test("takes unix and tcp addresses and refuses others", () => {
    expect(openEngine("unix:///run/x.sock")).toMatchObject({ host: "unix:///run/x.sock", remote: false });
    expect(openEngine("tcp://127.0.0.1:2375").remote).toBe(false);
    expect(openEngine("tcp://10.0.0.7:2375").remote).toBe(true);
    for (const bad of [
      "",
      "ssh://me@there",
      "/var/run/docker.sock",
      "unix://",
      "tcp://there",
      "tcp://there:0",
      "http://a:1",
    ]) {
      expect(() => openEngine(bad)).toThrow(`bad Docker host "${bad}"`);
    }
  });

  test("says in plain words that nothing answers", async () => {
    const nowhere = openEngine("unix:///nowhere/docker.sock").info();
    await expect(nowhere).rejects.toThrow(
      "Docker does not answer on unix:///nowhere/docker.sock: no such file; is dockerd running?",
    );
    await expect(openEngine("tcp://127.0.0.1:1").info()).rejects.toThrow("connection refused");
  });
});

describe("Engine", () => {
  test("reads what the Engine is", async () => {
    const info = await engine.info();
    expect(info.engineId).not.toBe("");
    expect(info.dockerVersion).toMatch(/^\d+\./);
    expect(info.cpus).toBeGreaterThan(0);
    expect(info.memoryBytes).toBeGreaterThan(2 ** 20);
  });

  test("tells of changes by label, and of what a container uses", async () => {
    const events: string[] = [];
    const watch = new AbortController();
    const { promise: open, resolve: onOpen } = Promise.withResolvers<void>();
    const watching = engine.watch({
      labels: ["tell=yes"],
      onOpen,
      onEvent: ({ containerId, action }) => events.push(`${action} ${containerId}`),
      signal: watch.signal,
    });
    await open;
    const id = await host.docker("run", "-d", "--name", "told", "--label", "tell=yes", "busybox", "sleep", "1000");
    await host.docker("run", "-d", "--name", "untold", "busybox", "sleep", "1000");
    const usage = await engine.usage(id);
    expect(usage?.memoryBytes).toBeGreaterThan(10_000);
    expect(usage?.cpuNs).toBeGreaterThan(0);
    await host.docker("rm", "-f", "told", "untold");
    await waitUntil("the events to arrive", () => events.length >= 4);
    expect(events).toEqual(["create", "start", "die", "destroy"].map((action) => `${action} ${id}`));
    watch.abort();
    await watching;
    expect(await engine.inspect(id)).toBeUndefined();
    await engine.remove(id);
    await expect(engine.start(id)).rejects.toThrow(EngineError);
  });

  test("gives up a stop when it is told to", async () => {
    const id = await host.docker("run", "-d", "busybox", "sleep", "1000");
    const controller = new AbortController();
    const stopping = engine.stop(id, { graceMs: 3_000, signal: controller.signal });
    setTimeout(() => controller.abort(), 100);
    await expect(stopping).rejects.toMatchObject({ code: "aborted" });
    await host.docker("rm", "-f", id);
  });
});

describe("Executor on a real Engine", () => {
  test("starts 30 containers, hands them to a new executor, and brings back what is killed or removed", async () => {
    const items = names("many", 30);
    assign(items);
    console.log(`docker: 30 starts took ${Math.round(await settled(items))} ms`);
    expect(statusOf("many0")).toMatchObject({ restarts: 0, ports: [] });

    await executor.stop();
    const start = performance.now();
    executor = await begin();
    await settled(items);
    console.log(`docker: a new executor knew all of them after ${Math.round(performance.now() - start)} ms`);
    assign(items);
    await settled(items);
    const [first = "", second = ""] = ["many0", "many1"].map((id) => statusOf(id)?.container_id);
    await Promise.all([host.docker("kill", first), host.docker("rm", "-f", second)]);
    await waitUntil("both to be back", () => statusOf("many0")?.restarts === 1 && statusOf("many1")?.restarts === 1);
    await settled(items);
    expect(statusOf("many0")?.container_id).toBe(first);
    expect(statusOf("many1")?.container_id).not.toBe(second);
    const policy = await host.docker("inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", first);
    expect(policy).toBe("no");
  });

  test("reports the host ports that Docker chose, each once", async () => {
    assign([{ id: "chosen", spec: { ports: [{ container_port: 80, protocol: "tcp", host_ip: "" }] } }]);
    await settled([{ id: "chosen" }]);
    const ports = statusOf("chosen")?.ports ?? [];
    expect(ports).toHaveLength(1);
    const shown = await host.docker("port", statusOf("chosen")?.container_id ?? "", "80/tcp");
    expect(shown.split("\n")[0]).toBe(`0.0.0.0:${ports[0]?.host_port}`);
  });

  test("says who uses a port, and starts once it is free", async () => {
    await host.docker("run", "-d", "--name", "someones-web", "-p", "8080:80", "busybox", "sleep", "1000");
    const listener = host.spawn("listener", ["busybox", "httpd", "-f", "-p", "9090"]);
    assign([
      { id: "byother", spec: port(8080) },
      { id: "byprocess", spec: port(9090) },
    ]);
    expect(await errorOf("byother")).toBe(
      "port 8080 is in use on this node by container someones-web: free it, or publish another",
    );
    expect(await errorOf("byprocess")).toBe(
      "port 9090 is in use on this node by another process: free it, or publish another",
    );
    await host.docker("rm", "-f", "someones-web");
    await listener.kill();
    await settled([{ id: "byother" }, { id: "byprocess" }]);
  });

  test("says what stands in the way of a start", async () => {
    const bind = {
      type: "bind",
      source: "/no/such/path",
      target: "/x",
      read_only: false,
      create_host_path: false,
    } as const;
    assign([
      { id: "nopath", spec: { mounts: [bind] } },
      { id: "noprogram", spec: { command: ["no-such-program"] } },
      { id: "lowmemory", spec: { limits: { memory_bytes: 1000 } } },
    ]);
    expect(await errorOf("nopath")).toBe("path /no/such/path does not exist on this node");
    expect(await errorOf("noprogram")).toBe(
      'program "no-such-program" not found in image busybox:latest: put the service\'s command or entrypoint right',
    );
    expect(await errorOf("lowmemory")).toStartWith("Minimum memory limit");
  });

  test("pulls from a registry, and says which image is missing or which registry cannot be reached", async () => {
    const registry = await lab.addRegistry();
    const image = await registry.push(host, "busybox:latest");
    const missing = `${registry.address}/no/such:1`;
    const nobody = `${host.address}:5999/x:1`;
    assign([
      ...names("pulled", 3).map((item) => ({ ...item, spec: { image } })),
      { id: "missing", spec: { image: missing } },
      { id: "nobody", spec: { image: nobody } },
    ]);
    expect(await errorOf("missing")).toBe(`image ${missing} not found: put its name right, or push it to its registry`);
    expect(await errorOf("nobody")).toStartWith(`registry ${host.address}:5999 cannot be reached: `);
    await waitUntil("the pulled ones to run", () =>
      names("pulled", 3).every(({ id }) => statusOf(id)?.state === "running"),
    );
  });

  test("a stop that takes its grace period holds up nothing else", async () => {
    const stubborn = names("stubborn", 8).map((item) => ({
      ...item,
      spec: {
        command: ["sh", "-c", "trap '' TERM; sleep 100000 & while :; do wait; done"],
        stop_grace_period_ms: 6_000,
      },
    }));
    assign(stubborn);
    await settled(stubborn);
    const start = performance.now();
    assign(names("prompt", 4));
    await waitUntil("the others to run", () => names("prompt", 4).every(({ id }) => statusOf(id)?.state === "running"));
    const took = Math.round(performance.now() - start);
    expect(stubborn.map(({ id }) => statusOf(id)?.state)).toEqual(stubborn.map(() => "stopping"));
    expect(took).toBeLessThan(5_000);
    console.log(`docker: 4 starts took ${took} ms beside 8 stops that waited 6 s`);
    await settled(names("prompt", 4), 15_000);
  });

  test("tells how containers ended and what they wrote last, and keeps to the wait that was asked for", async () => {
    const sh = (script: string): Partial<ServiceSpec> => ({
      command: ["sh", "-c", script],
      restart: { condition: "always", max_attempts: 0, delay_ms: 60_000, compose: "" },
    });
    assign([
      {
        id: "plain",
        spec: sh("for n in $(seq 30); do echo line $n; done; printf '\\033[31mlast\\033[0m' >&2; sleep 0.1; exit 3"),
      },
      { id: "terminal", spec: { ...sh("echo '{\"a\": 1}'; exit 4"), tty: true } },
      {
        id: "memory",
        spec: {
          ...sh("echo eating; exec tail /dev/zero"),
          limits: { memory_bytes: 16 * 2 ** 20 },
          memswap_limit_bytes: 16 * 2 ** 20,
        },
      },
      { id: "killed", spec: sh("sh -c 'kill -SEGV $$'; exit $?") },
      { id: "mute", spec: { ...sh("echo nobody hears; exit 5"), logging: { driver: "none", options: [] } } },
      { id: "missing", spec: sh("no-such-program") },
    ]);
    const ended = (id: string) =>
      waitUntil(`${id} to end`, () => {
        const status = statusOf(id);
        return status?.state === "exited" && status.next_start_at !== undefined ? status : undefined!;
      });
    const plain = await waitUntil("the last lines", () => statusOf("plain"), {
      until: (status) => status?.last_end?.log_tail.length === 10,
    });
    const lines = Array.from({ length: 9 }, (_, n) => `line ${n + 22}`);
    expect(plain).toMatchObject({
      exit_code: 3,
      failures: 1,
      last_end: { oom_killed: false, log_tail: [...lines, "last"] },
    });
    expect((plain?.next_start_at ?? 0) - (plain?.finished_at ?? 0)).toBeGreaterThan(59_000);
    await ended("terminal");
    await waitUntil("the line", () => statusOf("terminal")?.last_end?.log_tail[0] === '{"a": 1}');
    const memory = await ended("memory");
    expect(memory).toMatchObject({ exit_code: 137, last_end: { oom_killed: true, signal: "SIGKILL" } });
    expect(memory.error).toStartWith("ran out of memory (limit 16 MiB)");
    expect(await ended("killed")).toMatchObject({
      error: expect.stringContaining("SIGSEGV"),
      last_end: { signal: "SIGSEGV" },
    });
    expect(await ended("mute")).toMatchObject({ exit_code: 5, last_end: { log_tail: [] } });
    expect((await ended("missing")).error).toContain("was not found");
    await executor.stop();
    executor = await begin();
    await waitUntil("the new process to know of it", () => statusOf("plain")?.last_end?.log_tail.length === 10);
    expect(statusOf("plain")?.next_start_at).toBe(plain?.next_start_at);
  });

  test("is unready soon after its Engine began to hang, and ready again soon after it went on", async () => {
    assign([{ id: "calm" }]);
    await settled([{ id: "calm" }]);
    const timed = async (what: string, state: "ready" | "unready") => {
      const start = performance.now();
      await waitUntil(what, () => executor.engineStatus().state === state, { timeoutMs: 30_000, intervalMs: 20 });
      return Math.round(performance.now() - start);
    };
    host.dockerd.freeze();
    const noticed = await timed("the node to be unready", "unready");
    expect(executor.engineStatus()).toHaveProperty("reason", expect.stringContaining("hangs"));
    host.dockerd.thaw();
    const recovered = await timed("the node to be ready", "ready");
    console.log(`docker: a hanging dockerd was noticed after ${noticed} ms, and its return after ${recovered} ms`);
    await settled([{ id: "calm" }]);
    expect(statusOf("calm")?.restarts).toBe(0);
  });

  test("reads the disk that Docker keeps its data on", () => {
    const disk = executor.heartbeat().resources?.disk;
    expect(disk?.total).toBeGreaterThan(2 ** 20);
    expect(disk?.available).toBeLessThanOrEqual(disk?.total ?? 0);
  });

  test("settles without a double after dockerd was killed in the middle of a rollout", async () => {
    const items = Array.from({ length: 20 }, (_, n) => ({ id: `survivor${n}`, job: `job${n % 4}` }));
    assign(items);
    const halfRuns = () => {
      const running = executor.snapshot()?.allocations.filter(({ state }) => state === "running");
      return (running?.length ?? 0) >= 10;
    };
    await waitUntil("half of them to run", halfRuns, { timeoutMs: 60_000 });
    await host.killDocker();
    const reason = await waitUntil("the executor to notice", () => {
      const status = executor.engineStatus();
      return status.state === "unready" ? status.reason : undefined!;
    });
    expect(reason).toContain("Docker does not answer on");
    expect(executor.snapshot()?.allocations).toHaveLength(20);
    const start = performance.now();
    await host.restartDocker();
    await settled(items);
    console.log(`docker: 20 containers ran ${Math.round(performance.now() - start)} ms after dockerd began again`);
    expect(executor.engineStatus().state).toBe("ready");
    // Nor is there a container that Docker does not know: every shim belongs to one that runs.
    const running = new Set((await engine.list()).map(({ id }) => id));
    const { stdout } = await host.run(["pgrep", "-fa", `containerd-shim.*${host.dir}/`]);
    const shims = [...stdout.matchAll(/-id ([0-9a-f]{64})/g)].map(([, id]) => id ?? "");
    expect(shims.filter((id) => !running.has(id))).toEqual([]);
    expect(shims).toHaveLength(20);
    assign([]);
    await settled([], 30_000).catch(restartUnlessOurs);
  });

  test("runs 40 jobs, each on a network of its own, and leaves none behind", async () => {
    const items = Array.from({ length: 40 }, (_, n) => ({ id: `wide${n}`, job: `job${n}` }));
    assign(items);
    console.log(`docker: 40 jobs with their networks took ${Math.round(await settled(items))} ms`);
    const subnets = (await engine.networks())
      .filter(({ name }) => /^job\d+_default$/.test(name))
      .flatMap((n) => n.subnets);
    expect(new Set(subnets).size).toBe(40);
    assign([]);
    await settled([]);
    await waitUntil("the networks to be gone", async () => (await engine.networks()).map(({ name }) => name).sort(), {
      until: (seen) => Bun.deepEquals(seen, ["bridge", "host", "none"]),
    });
  });

  test("containers of one job reach each other by the service's name", async () => {
    const serve = [
      "sh",
      "-c",
      "trap 'exit 0' TERM; mkdir /www; echo hello >/www/index.html; httpd -f -p 80 -h /www & wait",
    ];
    assign([{ id: "server", spec: { command: serve } }]);
    await settled([{ id: "server" }]);
    const got = await waitUntil("the page", () =>
      host.docker("exec", statusOf("server")?.container_id ?? "", "wget", "-q", "-O", "-", "http://web/"),
    );
    expect(got).toBe("hello");
  });

  test("puts containers on several networks with names and addresses, and removes the job's own with its last one", async () => {
    await host.docker("network", "create", "outside");
    const network = (key: string, more: Partial<NetworkSpec> = {}): NetworkSpec => ({
      key,
      external: false,
      driver_opts: [],
      labels: [],
      ...more,
    });
    const front = network("front", {
      internal: true,
      labels: [["team", "a"]],
      ipam: { config: [{ subnet: "10.99.7.0/24", gateway: "10.99.7.9", aux_addresses: [] }], options: [] },
    });
    const back = network("back", { name: "own-name", attachable: true });
    const outside = network("outside", { external: true });
    const web = [
      { network: front, aliases: ["www"], ipv4_address: "10.99.7.50" },
      { network: back, aliases: [], priority: 10 },
      { network: outside, aliases: ["seen-outside"] },
    ];
    const items = [
      { id: "several", spec: { networks: web } },
      { id: "single", spec: { networks: [{ network: back, aliases: ["db"] }] } },
    ];
    assign(items);
    await settled(items);
    const id = statusOf("several")?.container_id ?? "";
    const [seen] = JSON.parse(await host.docker("inspect", id)) as {
      HostConfig: { NetworkMode: string };
      NetworkSettings: { Networks: Record<string, { IPAddress: string; Gateway: string; Aliases: string[] }> };
    }[];
    const { Networks: networks } = seen!.NetworkSettings;
    expect(seen!.HostConfig.NetworkMode).toBe("own-name");
    expect(Object.keys(networks).toSorted()).toEqual(["job_front", "outside", "own-name"]);
    expect(networks["job_front"]?.IPAddress).toBe("10.99.7.50");
    expect(networks["job_front"]?.Aliases).toEqual(expect.arrayContaining(["web", "www"]));
    expect(networks["outside"]?.Aliases).toContain("seen-outside");
    const [made] = JSON.parse(await host.docker("network", "inspect", "job_front")) as Record<string, unknown>[];
    expect(made).toMatchObject({ Internal: true, Driver: "bridge", Labels: { team: "a", [LABELS.job]: "job" } });
    // By name, over the second network only.
    await host.docker("exec", id, "nslookup", "db");
    assign([]);
    await settled([]);
    await waitUntil(
      "the job's networks to be gone",
      async () => (await engine.networks()).map(({ name }) => name).sort(),
      {
        until: (left) => Bun.deepEquals(left, ["bridge", "host", "none", "outside"]),
      },
    );
    await host.docker("network", "rm", "outside");
    assign([{ id: "lost", spec: { networks: [{ network: outside, aliases: [] }] } }]);
    expect(await errorOf("lost")).toBe(
      "external network outside does not exist on this node; make it: docker network create outside",
    );
  });

  test("a container whose network was removed by hand is made anew", async () => {
    assign([{ id: "netless" }]);
    await settled([{ id: "netless" }]);
    const before = statusOf("netless")?.container_id ?? "";
    await executor.stop();
    await host.docker("kill", before);
    await host.docker("network", "rm", "job_default");
    executor = await begin();
    assign([{ id: "netless" }]);
    await settled([{ id: "netless" }]);
    expect(statusOf("netless")?.container_id).not.toBe(before);
  });

  test("volumes outlive their job unless the job's data is removed", async () => {
    const volume = { key: "data", external: false, driver_opts: [], labels: [] };
    const mounts: ServiceSpec["mounts"] = [
      { type: "volume", volume, target: "/data", read_only: false, nocopy: false, long: false },
      { type: "volume", target: "/scratch", read_only: false, nocopy: false, long: false },
      { type: "bind", source: "./files", target: "/files", read_only: false, create_host_path: true },
    ];
    const item = { id: "keeper", spec: { mounts } };
    assign([item]);
    await settled([item]);
    const project = join(dataDir, "projects", "job");
    expect(existsSync(join(project, "files"))).toBe(true);
    writeFileSync(join(project, "files", "x"), "x");
    assign([]);
    await settled([]);
    // The anonymous one went with its container.
    expect(await host.docker("volume", "ls", "-q")).toBe("job_data");
    const removals = [{ removal_id: "r1", job_id: "job", node_id: OWNER.nodeId }];
    assign([], removals);
    await waitUntil("the removal to be done", () => executor.snapshot()?.removals_done.includes("r1"));
    expect(await host.docker("volume", "ls", "-q")).toBe("");
    expect(existsSync(project)).toBe(false);
  });

  test("makes a container for a platform only of an image that is of it", async () => {
    const own = executor.engineStatus();
    if (own.state !== "ready") throw new Error(own.reason);
    const { os, arch } = own.platform;
    assign([{ id: "here", spec: { platform: `${os}/${arch}` } }]);
    await settled([{ id: "here" }]);
    const other = arch === "arm64" ? "linux/amd64" : "linux/arm64";
    assign([{ id: "elsewhere", spec: { platform: other, pull_policy: "never" } }]);
    const refused = await waitUntil("the start to be refused", () => executor.snapshot()?.allocations, {
      until: (all) => all?.some(({ state }) => state === "failed") === true,
    });
    expect(refused?.[0]?.error).toContain(`image busybox:latest is not on this node for ${other}`);
    const body = {
      Image: "busybox:latest",
      Labels: {},
      Env: [],
      StopTimeout: 1,
      HostConfig: { NetworkMode: "none", RestartPolicy: { Name: "no", MaximumRetryCount: 0 } },
    };
    const error = await engine.create("foreign", body, { platform: other }).catch((one: unknown) => one);
    expect(String(error)).toContain("does not match the specified platform");
  });

  test("never touches a container of another cluster, and lists it", async () => {
    const labels = Object.entries({ [LABELS.cluster]: "other", [LABELS.node]: OWNER.nodeId, [LABELS.allocation]: "x" });
    const flags = labels.flatMap(([key, value]) => ["--label", `${key}=${value}`]);
    const id = await host.docker("run", "-d", "--name", "stranger", ...flags, "busybox", "sleep", "1000");
    await executor.stop();
    executor = await begin();
    assign(names("near", 2));
    await settled(names("near", 2));
    expect(executor.heartbeat().foreign).toEqual([{ container_id: id, name: "stranger", cluster_id: "other" }]);
    assign([]);
    await settled([]);
    expect(await host.docker("inspect", "--format", "{{.State.Running}}", id)).toBe("true");
    await host.docker("rm", "-f", id);
  });
});
