import { afterAll, describe, expect, test } from "bun:test";
import { LABELS } from "../src/model.ts";
import { type ServiceSpec } from "../src/model_spec.ts";
import { firstAddress } from "../src/subnet.ts";
import { type Change, cleanUp, ids, type Item, names, Node, promised } from "./executor_fixture.ts";

afterAll(cleanUp);

describe("Executor", () => {
  test("starts what is assigned, four at once, and says so", async () => {
    const node = await new Node().start();
    node.assign(ids(names(30), { spec: { ports: [{ container_port: 80, protocol: "tcp", host_ip: "" }] } }));
    await node.until(() => node.isSettled(names(30)));
    expect(node.engine.mostAtOnce.get("start")).toBeLessThanOrEqual(4);
    expect(node.engine.calls.get("create")).toBe(30);
    expect(node.status("a0")).toMatchObject({ state: "running", restarts: 0, ports: [{ container_port: 80 }] });
    expect(node.executor.snapshot()?.applied).toEqual({ term: 1, revision: 1 });
    expect(node.changes).toBeGreaterThan(0);
  });

  test("touches nothing before it belongs to a cluster", async () => {
    const node = new Node();
    void node.executor.start();
    await node.clock.advance(60_000);
    expect([...node.engine.calls.keys()]).toEqual(["info", "ping"]);
    expect(node.executor.engineStatus()).toMatchObject({ state: "ready", engine_id: "ENGINE" });
    expect(node.executor.snapshot()).toBeUndefined();
  });

  test("takes over the containers of an earlier process by their labels, with their restart counts", async () => {
    const node = await new Node().start();
    node.assign(ids(names(5)));
    await node.until(() => node.isSettled(names(5)));
    node.engine.kill(node.engine.running("a0")[0]?.id ?? "");
    await node.until(() => node.status("a0")?.restarts === 1 && node.isSettled(names(5)));
    const creates = node.engine.calls.get("create");
    await node.restart();
    await node.until(() => node.isSettled(names(5)));
    node.assign(ids(names(5)));
    await node.clock.advance(60_000);
    expect(node.isSettled(names(5))).toBe(true);
    expect(node.engine.calls.get("create")).toBe(creates as number);
    expect(node.status("a0")?.restarts).toBe(1);
    expect(node.status("a1")?.restarts).toBe(0);
  });

  test.each([0, 0.1])(
    "keeps what shares a network beside the other's present run, with %f of calls lost",
    async (lose) => {
      const node = await new Node(11).start();
      const both: Item[] = [
        { id: "app", spec: { network_mode: "service:web" }, joins: [{ service_name: "web", allocation_id: "x" }] },
        { id: "x" },
      ];
      node.assign(both);
      const isTogether = () => {
        const [x, app] = ["x", "app"].map((id) => node.engine.running(id)[0]);
        return node.isSettled(["x", "app"]) && node.engine.joined.get(app?.id ?? "") === `${x?.id} ${x?.startedAt}`;
      };
      await node.until(isTogether);
      const trouble: (() => unknown)[] = [
        () => node.engine.kill(node.engine.running("x")[0]?.id ?? ""),
        () => node.engine.removeByHand(node.engine.running("x")[0]?.id ?? ""),
        () => node.engine.removeByHand(node.engine.running("app")[0]?.id ?? ""),
        () => node.engine.kill(node.engine.running("app")[0]?.id ?? ""),
        async () => {
          node.engine.kill(node.engine.running("x")[0]?.id ?? "");
          await node.restart();
          node.assign(both);
        },
      ];
      for (const act of trouble) {
        node.engine.faults = { loseRequest: lose, loseAnswer: lose, lateEffect: 0, loseEvent: lose };
        await act();
        await node.clock.advance(20_000);
        node.engine.faults = { loseRequest: 0, loseAnswer: 0, lateEffect: 0, loseEvent: 0 };
        await node.until(isTogether);
      }
      // And it stays so: nothing is made anew for no reason.
      const creates = node.engine.calls.get("create");
      await node.clock.advance(120_000);
      expect(node.engine.calls.get("create")).toBe(creates as number);
    },
  );

  test("restarts a container that ended and makes a new one for one that was removed", async () => {
    const node = await new Node().start();
    node.assign(ids(["a"]));
    await node.until(() => node.isSettled(["a"]));
    const id = node.status("a")?.container_id as string;
    node.engine.kill(id, 3);
    await node.until(() => node.status("a")?.state === "exited");
    expect(node.status("a")).toMatchObject({ exit_code: 3, final: false });
    await node.until(() => node.status("a")?.restarts === 1, 1_000);
    expect(node.status("a")?.container_id).toBe(id);
    await node.until(() => node.isSettled(["a"]));
    node.engine.removeByHand(id);
    await node.until(() => node.status("a")?.restarts === 2 && node.isSettled(["a"]), 1_000);
    expect(node.status("a")?.container_id).not.toBe(id);
  });

  test("notices within half a minute what no event told", async () => {
    const node = await new Node().start();
    node.assign(ids(["a", "b"]));
    await node.until(() => node.isSettled(["a", "b"]));
    node.engine.faults.loseEvent = 1;
    node.engine.kill(node.status("a")?.container_id as string);
    node.engine.removeByHand(node.status("b")?.container_id as string);
    await node.until(() => node.isSettled(["a", "b"]), 31_000);
    expect(node.status("a")?.restarts).toBe(1);
  });

  test("takes back the addresses of a container that ended before Docker answers what else became of it", async () => {
    const node = await new Node().start();
    node.assign([{ id: "a" }]);
    await node.until(() => node.status("a")?.state === "running");
    const addresses = [{ network: "job_default", address: "10.213.0.66" }];
    node.engine.giveAddresses(node.status("a")?.container_id ?? "", addresses);
    await node.until(() => node.status("a")?.addresses !== undefined, 60_000);
    node.engine.kill(node.status("a")?.container_id ?? "");
    node.engine.freeze();
    await node.until(() => node.status("a")?.addresses === undefined, 1_000);
    expect(node.status("a")?.state).toBe("running");
  });

  test("leaves a container ended whose policy says so, until it is not assigned any more", async () => {
    const node = await new Node().start();
    node.engine.behaviours.set("busybox:latest", { exitAfterMs: 1_000, exitCode: 0 });
    const restart = { condition: "no", max_attempts: 0, compose: "no" } as const;
    node.assign(ids(["a"], { spec: { restart } }));
    await node.until(() => node.status("a")?.final === true);
    await node.clock.advance(120_000);
    expect(node.status("a")).toMatchObject({ state: "exited", final: true, exit_code: 0, restarts: 0 });
    node.assign([]);
    await node.until(() => node.executor.snapshot()?.allocations.length === 0);
    expect(node.engine.containers).toEqual([]);
  });

  test("tries a failing container as often as on-failure allows", async () => {
    const node = await new Node().start();
    node.engine.behaviours.set("busybox:latest", { exitAfterMs: 100, exitCode: 1 });
    node.assign(ids(["a"], { spec: { restart: { condition: "on-failure", max_attempts: 3, compose: "on-failure" } } }));
    await node.until(() => node.status("a")?.final === true);
    expect(node.status("a")).toMatchObject({ state: "exited", restarts: 3, exit_code: 1 });
    expect(node.engine.calls.get("start")).toBe(4);
  });

  test("stops with the grace period while others start", async () => {
    const node = await new Node().start();
    node.engine.images.add("slow");
    node.engine.behaviours.set("slow", { stopMs: 60_000 });
    const slow = names(20);
    node.assign(ids(slow, { spec: { image: "slow", stop_grace_period_ms: 120_000 } }));
    await node.until(() => node.isSettled(slow));
    node.assign(ids(["b", "c", "d", "e", "f"]));
    await node.until(() => ["b", "c", "d", "e", "f"].every((id) => node.status(id)?.state === "running"), 1_000);
    expect(node.status("a0")?.state).toBe("stopping");
    await node.until(() => node.executor.snapshot()?.allocations.length === 5, 61_000);
  });

  test("goes on with a stop that an earlier process began", async () => {
    const node = await new Node().start();
    node.engine.behaviours.set("busybox:latest", { stopMs: 5_000 });
    node.assign(ids(["a"]));
    await node.until(() => node.isSettled(["a"]));
    node.assign([]);
    await node.clock.advance(1_000);
    await node.restart();
    node.assign([]);
    await node.until(() => node.executor.snapshot()?.allocations.length === 0, 11_000);
    expect(node.engine.containers).toEqual([]);
  });

  test("pulls an absent image once for all who need it, and two images at once", async () => {
    const node = await new Node().start();
    for (const image of ["x:1", "y:1", "z:1"]) node.engine.registry.set(image, "found");
    const items = ["x:1", "y:1", "z:1"].flatMap((image) =>
      names(10).map((id) => ({ id: image + id, spec: { image } })),
    );
    node.assign(items);
    await node.until(() => node.status("x:1a0")?.state === "pulling");
    await node.until(() => node.isSettled(items.map(({ id }) => id)));
    expect(node.engine.calls.get("pull")).toBe(3);
    expect(node.engine.mostAtOnce.get("pull")).toBe(2);
  });

  test("reports how far a pull is while it lasts, and the image of what runs", async () => {
    const node = await new Node().start();
    node.engine.pullMs = 10_000;
    node.engine.registry.set("x:1", "found");
    node.assign(ids(["a"], { spec: { image: "x:1" } }));
    await node.until(() => (node.status("a")?.pull?.bytes_done ?? 0) >= 500);
    expect(node.status("a")).toMatchObject({ state: "pulling", pull: { layers_total: 1, bytes_total: 1000 } });
    await node.until(() => node.isSettled(["a"]));
    expect(node.status("a")).toMatchObject({ image_id: "id of sha256:x-1", image_digest: "sha256:x-1" });
    expect(node.status("a")?.pull).toBeUndefined();
  });

  test("waits for the digest that all replicas run, and pulls that one", async () => {
    const node = await new Node().start();
    node.engine.registry.set("x:1", "found");
    const item = ids(["a"], { spec: { image: "x:1" } });
    node.assign(item);
    await node.until(() => node.status("a")?.resolved_digest === "sha256:x-1");
    await node.clock.advance(1_000);
    expect(node.engine.calls.get("pull")).toBeUndefined();
    node.assign(item, { images: [{ allocation_id: "a", digest: "sha256:other", refresh: false }] });
    await node.until(() => node.isSettled(["a"]));
    expect(node.engine.pulled).toEqual(["x@sha256:other"]);
  });

  test("tries a denied image again as soon as there is a login for its registry", async () => {
    const node = await new Node().start();
    node.engine.registry.set("r.example/x:1", "denied");
    const item = ids(["a"], { spec: { image: "r.example/x:1" } });
    node.assign(item);
    await node.until(() => node.status("a")?.state === "failed");
    await node.clock.advance(600_000);
    node.assign(item, { logins: [{ host: "r.example", username: "u", password: "p" }] });
    await node.until(() => node.isSettled(["a"]), 8_000);
  });

  test("says which image is missing, asks for it seldom, and starts it once it is there", async () => {
    const node = await new Node().start();
    node.assign(ids(names(10), { spec: { image: "nowhere:1" } }));
    await node.until(() => names(10).every((id) => node.status(id)?.state === "failed"));
    expect(node.status("a3")?.error).toBe("image nowhere:1 not found: put its name right, or push it to its registry");
    await node.clock.advance(600_000);
    expect(node.engine.calls.get("resolve")).toBeLessThan(10);
    node.engine.registry.set("nowhere:1", "found");
    await node.until(() => node.isSettled(names(10)), 301_000);
  });

  test("says which registry cannot be reached", async () => {
    const node = await new Node().start();
    node.engine.registry.set("10.0.0.9:5000/x:1", "unreachable");
    node.assign(ids(["a"], { spec: { image: "10.0.0.9:5000/x:1" } }));
    await node.until(() => node.status("a")?.state === "failed");
    expect(node.status("a")?.error).toStartWith("registry 10.0.0.9:5000 cannot be reached");
  });

  test("says who uses a port, and starts once it is free", async () => {
    const node = await new Node().start();
    const port = (first: number) => ({
      ports: [
        { container_port: 80, protocol: "tcp", host_ip: "", host_port: { first, last: first } },
      ] as ServiceSpec["ports"],
    });
    const other = node.engine.runByHand({ name: "someones-nginx", hostPort: 8080 });
    node.engine.hostPorts.add(9090);
    node.assign([
      { id: "a", spec: port(8080) },
      { id: "b", spec: port(9090) },
    ]);
    await node.until(() => node.status("a")?.state === "failed" && node.status("b")?.state === "failed");
    expect(node.status("a")?.error).toBe(
      "port 8080 is in use on this node by container someones-nginx: free it, or publish another",
    );
    expect(node.status("b")?.error).toBe(
      "port 9090 is in use on this node by another process: free it, or publish another",
    );
    node.engine.removeByHand(other);
    node.engine.hostPorts.delete(9090);
    await node.until(() => node.isSettled(["a", "b"]), 61_000);
    expect(node.status("a")).toMatchObject({ restarts: 0 });
    expect(node.status("a")?.error).toBeUndefined();
  });

  test("without a master keeps what runs, restarts what ends and removes nothing", async () => {
    const node = await new Node().start();
    node.assign(ids(["a", "b"]));
    await node.until(() => node.isSettled(["a", "b"]));
    void node.executor.stop();
    node.engine.kill(node.engine.running("a")[0]?.id ?? "");
    await node.restart();
    await node.clock.advance(1_000);
    expect(node.states()).toEqual({ a: "exited", b: "running" });
    await node.until(() => node.isSettled(["a", "b"]), 10_000);
    expect(node.executor.snapshot()?.applied).toBeUndefined();
    node.engine.kill(node.engine.running("b")[0]?.id ?? "");
    await node.until(() => node.isSettled(["a", "b"]), 1_000);
    expect(node.engine.calls.get("remove")).toBeUndefined();
  });

  test("refuses assignments that are older than what it has seen", async () => {
    const node = await new Node().start();
    expect(node.assign([], { order: { term: 0, revision: 99 } })).toBe("stale");
    expect(node.assign(ids(["a"]), { order: { term: 2, revision: 5 } })).toBe("accepted");
    expect(node.assign([], { order: { term: 2, revision: 4 } })).toBe("stale");
    expect(node.assign([], { order: { term: 1, revision: 100 } })).toBe("stale");
    expect(node.assign(ids(["a"]), { order: { term: 2, revision: 5 } })).toBe("accepted");
    await node.until(() => node.isSettled(["a"]));
  });

  test("reports an assigned allocation from the moment that it takes the assignments in", async () => {
    const node = await new Node().start();
    node.assign(ids(["a"]));
    expect(node.states()).toEqual({ a: "pending" });
    expect(node.executor.snapshot()?.applied?.revision).toBe(1);
  });

  test("says that Docker does not answer, keeps the last statuses and recovers", async () => {
    const node = await new Node().start();
    node.assign(ids(names(3)));
    await node.until(() => node.isSettled(names(3)));
    node.engine.goDown();
    await node.until(() => node.executor.engineStatus().state === "unready", 1_000);
    expect(node.executor.engineStatus()).toMatchObject({ engine_id: "ENGINE" });
    expect(node.executor.engineStatus()).toHaveProperty("reason", expect.stringContaining("connection refused"));
    await node.clock.advance(60_000);
    expect(Object.keys(node.states())).toEqual(names(3));
    const creates = node.engine.calls.get("create");
    node.engine.comeUp();
    await node.until(() => node.isSettled(names(3)), 10_000);
    expect(node.engine.calls.get("create")).toBe(creates as number);
  });

  test("notices an Engine that hangs, and that it goes on", async () => {
    const node = await new Node().start();
    node.assign(ids(["a"]));
    await node.until(() => node.isSettled(["a"]));
    node.engine.freeze();
    await node.until(() => node.executor.engineStatus().state === "unready", 21_000);
    expect(node.executor.engineStatus()).toHaveProperty("reason", expect.stringContaining("did not answer"));
    expect(node.states()).toEqual({ a: "running" });
    node.engine.faults.loseRequest = 0;
    await node.until(() => node.executor.engineStatus().state === "ready", 20_000);
  });

  test("takes no work from another Engine that answers in the place of the old one", async () => {
    const node = await new Node().start();
    node.engine.goDown();
    node.engine.engineId = "OTHER";
    node.engine.comeUp();
    await node.clock.advance(5_000);
    expect(node.executor.engineStatus()).toMatchObject({ state: "unready", engine_id: "ENGINE" });
    node.assign(ids(["a"]));
    await node.clock.advance(10_000);
    expect(node.engine.calls.get("create")).toBeUndefined();
  });

  test("adopts a container whose creation it never heard of", async () => {
    const node = await new Node().start();
    node.engine.faults.loseAnswer = 1;
    node.assign(ids(["a"]));
    await node.clock.advance(300_000);
    node.engine.faults.loseAnswer = 0;
    await node.until(() => node.isSettled(["a"]));
    expect(node.engine.containers).toHaveLength(1);
  });

  test("leaves another's container of the same name alone and says what stands in the way", async () => {
    const node = await new Node().start();
    node.assign(ids(["a"]));
    await node.until(() => node.isSettled(["a"]));
    const [{ name, id } = { name: "", id: "" }] = node.engine.running("a");
    node.engine.removeByHand(id);
    const other = node.engine.runByHand({ name, labels: { [LABELS.cluster]: "elsewhere" } });
    await node.until(() => node.status("a")?.state === "failed");
    expect(node.status("a")?.error).toContain(`a container named ${name} exists`);
    await node.clock.advance(30_000);
    expect(node.executor.heartbeat().foreign).toEqual([{ container_id: other, name, cluster_id: "elsewhere" }]);
    node.assign([]);
    await node.clock.advance(60_000);
    expect(node.engine.containers.map((c) => c.id)).toEqual([other]);
  });

  test("gives up a pull that nobody waits for any more", async () => {
    const node = await new Node().start();
    node.engine.pullMs = 3_600_000;
    node.assign(ids(["a"], { spec: { image: "big:1" } }));
    await node.until(() => node.status("a")?.state === "pulling");
    node.assign([]);
    await node.until(() => node.executor.snapshot()?.allocations.length === 0, 1_000);
    await node.clock.advance(4_000_000);
    expect([...node.engine.images]).toEqual(["busybox:latest"]);
  });

  test("goes on with a pull that another job still waits for", async () => {
    const node = await new Node().start();
    node.engine.pullMs = 60_000;
    node.engine.registry.set("big:1", "found");
    const [mine, other] = ["a", "b"].map((id) => ({ id, job: id, spec: { image: "big:1" } }));
    node.assign([mine!, other!]);
    await node.until(() => (node.status("b")?.pull?.bytes_done ?? 0) >= 300);
    node.assign([other!]);
    await node.until(() => node.isSettled(["b"]));
    expect(node.engine.calls.get("pull")).toBe(1);
  });

  test("never calls an allocation gone while its container is being created", async () => {
    const node = await new Node().start();
    node.engine.latency = [200, 200];
    node.assign(ids(["a"]));
    await node.until(() => (node.engine.calls.get("create") ?? 0) === 1);
    node.assign([]);
    let containers = 0;
    for (let waited = 0; waited < 300 || node.engine.containers.length > 0; waited += 10) {
      expect(node.states()).toEqual({ a: "stopping" });
      await node.clock.advance(10);
      containers = Math.max(containers, node.engine.containers.length);
    }
    expect(containers).toBe(1);
    await node.until(() => node.executor.snapshot()?.allocations.length === 0);
  });

  test("makes one network for each job, none on another's subnet, and removes it with the job's last container", async () => {
    const node = await new Node().start();
    node.engine.addNetwork({ name: "someones", subnet: "10.210.0.64/26" });
    const items = names(40).map((id) => ({ id, job: `job-${id}` }));
    node.assign(items);
    await node.until(() => node.isSettled(names(40)));
    const networks = await promised(node, node.engine.networks());
    const subnets = networks.flatMap((network) => network.subnets);
    expect(new Set(subnets).size).toBe(41);
    expect(networks.find(({ name }) => name === "job-a0_default")?.labels.get(LABELS.job)).toBe("job-a0");
    node.assign(items.slice(0, 1));
    await node.until(() => node.engine.networkNames.length === 2);
    expect(node.engine.networkNames.sort()).toEqual(["job-a0_default", "someones"]);
  });

  test("chooses the subnet of a network, but where a plugin gives the addresses or there is no IPv4", async () => {
    const node = await new Node().start();
    const network = (key: string, more: object) => ({ key, external: false, driver_opts: [], labels: [], ...more });
    const ipam = { driver: "dhcp", config: [], options: [["a", "b"] as [string, string]] };
    const networks = [
      network("plain", { driver: "macvlan" }),
      network("bridged", {}),
      network("plugin", { ipam }),
      network("six", { enable_ipv4: false, enable_ipv6: true }),
      network("both", { ipam: { config: [{ subnet: "fd00::/64", aux_addresses: [] }], options: [] } }),
    ].map((one) => ({ network: one, aliases: [] }));
    node.assign([{ id: "a", spec: { networks } }]);
    await node.until(() => node.isSettled(["a"]));
    const asked = new Map(node.engine.networksAsked.map((one) => [one.name, one]));
    expect(asked.get("job_plain")).toMatchObject({ driver: "macvlan", ipam: { driver: "default" } });
    expect(asked.get("job_plain")?.ipam.config).toEqual([{ subnet: expect.stringMatching(/^10\.210\..*\/26$/) }]);
    // Named, as Docker's Engine would not survive being killed while it removes a bridge network without one.
    const [bridged] = asked.get("job_bridged")?.ipam.config ?? [];
    expect(bridged?.gateway).toBe(firstAddress(bridged?.subnet ?? "") ?? "none");
    expect(asked.get("job_plugin")?.ipam).toEqual({ driver: "dhcp", config: [], options: { a: "b" } });
    expect(asked.get("job_six")).toMatchObject({ enableIpv4: false, enableIpv6: true, ipam: { config: [] } });
    expect(asked.get("job_both")?.ipam.config).toEqual([
      { subnet: expect.stringMatching(/^10\.210\./), gateway: expect.stringMatching(/^10\.210\./) },
      { subnet: "fd00::/64" },
    ]);
  });

  test("makes a network of another definition anew once no container is on it, and never one that is used", async () => {
    const node = await new Node().start();
    const item = (id: string, internal: boolean): Item => {
      const network = { key: "n", external: false, internal, driver_opts: [], labels: [] };
      return { id, spec: { networks: [{ network, aliases: [] }] } };
    };
    const made = () => node.engine.networksAsked.map(({ internal }) => internal);
    node.assign([item("a", false)]);
    await node.until(() => node.isSettled(["a"]));
    node.assign([item("a", false), item("b", true)]);
    await node.until(() => node.isSettled(["a", "b"]));
    expect(made()).toEqual([false]);
    for (const { id } of node.engine.containers) node.engine.kill(id);
    await node.restart();
    node.assign([item("c", true)]);
    await node.until(() => node.isSettled(["c"]));
    expect(made()).toEqual([false, true]);
    node.assign([item("c", true), item("d", true)]);
    await node.until(() => node.isSettled(["c", "d"]));
    expect(made()).toEqual([false, true]);
  });

  test("says when a network of the job's name is another's, or the pool is full", async () => {
    const node = await new Node().start();
    node.engine.addNetwork({ name: "job_default", subnet: "10.99.0.0/24" });
    node.assign(ids(["a"]));
    await node.until(() => node.status("a")?.state === "failed");
    expect(node.status("a")?.error).toContain("job_default exists on this node and was not made by this cluster");
    node.pool = "10.0.0.0/25";
    node.assign([{ id: "b", job: "other" }]);
    await node.until(() => node.status("b")?.state === "failed");
    expect(node.status("b")?.error).toContain("no /26 subnet is free on this node in 10.0.0.0/25");
  });

  test("makes volumes, respects those of others, and removes them only when told", async () => {
    const node = await new Node().start();
    const mount = (key: string, external = false): Change => ({
      mounts: [
        {
          type: "volume",
          volume: { key, external, driver_opts: [], labels: [], ...(external && { name: key }) },
          target: "/data",
          read_only: false,
          nocopy: false,
          long: false,
        },
      ],
    });
    node.engine.addVolume("job_theirs", { [LABELS.cluster]: "cluster", [LABELS.job]: "other" });
    node.engine.addVolume("job_plain");
    node.assign([
      { id: "a", spec: mount("mine") },
      { id: "b", spec: mount("theirs") },
      { id: "c", spec: mount("plain") },
      { id: "d", spec: mount("outside", true) },
    ]);
    await node.until(() => node.status("a")?.state === "running" && node.status("c")?.state === "running");
    await node.until(() => node.status("b")?.state === "failed" && node.status("d")?.state === "failed");
    expect(node.status("b")?.error).toContain("volume job_theirs belongs to job other");
    expect(node.status("d")?.error).toContain("external volume outside does not exist on this node");
    node.assign([]);
    await node.until(() => node.engine.containers.length === 0);
    expect(node.engine.volumeNames).toContain("job_mine");
    // The job comes back in the same breath: it waits for the removal, and gets a new volume.
    const removals = [{ removal_id: "r1", job_id: "job", node_id: "node" }];
    node.assign([{ id: "e", spec: mount("mine") }], { removals });
    await node.until(() => node.executor.snapshot()?.removals_done[0] === "r1");
    expect(node.engine.volumeNames.sort()).toEqual(["job_plain", "job_theirs"]);
    await node.until(() => node.isSettled(["e"]));
    // A process that does not know of it any more must not remove the volume of the job's new life.
    await node.restart();
    node.assign([{ id: "e", spec: mount("mine") }], { removals });
    await node.until(() => node.executor.snapshot()?.removals_done[0] === "r1");
    expect(node.engine.volumeNames).toContain("job_mine");
  });

  test("ends within a second, whatever is under way", async () => {
    const node = await new Node().start();
    node.engine.behaviours.set("busybox:latest", { stopMs: 600_000 });
    node.assign(ids(["a"], { spec: { stop_grace_period_ms: 700_000 } }));
    await node.until(() => node.isSettled(["a"]));
    node.assign([]);
    await node.clock.advance(1_000);
    await promised(node, node.executor.stop(), 1_000);
    const calls = JSON.stringify([...node.engine.calls]);
    await node.clock.advance(120_000);
    expect(JSON.stringify([...node.engine.calls])).toBe(calls);
  });
});

describe("Executor in a storm", () => {
  const SEEDS = Array.from({ length: 40 }, (_, n) => n + 1);
  for (const seed of SEEDS) {
    test(`settles on exactly what is assigned, seed ${seed}`, async () => {
      const node = await new Node(seed).start();
      const { random, engine } = node;
      const pick = <T>(list: readonly T[]) => list[Math.floor(random() * list.length)];
      engine.behaviours.set("busybox:latest", { stopMs: 2_000 });
      const stranger = engine.runByHand({ name: "stranger", labels: { [LABELS.cluster]: "elsewhere" } });
      engine.faults = { loseRequest: 0.03, loseAnswer: 0.05, lateEffect: 0.03, loseEvent: 0.3 };
      let wanted: Item[] = [];
      let made = 0;
      for (let step = 0; step < 40; step++) {
        const chance = random();
        if (chance < 0.35) {
          const kept = wanted.filter(() => random() < 0.8);
          const added = Array.from({ length: Math.floor(random() * 5) }, () => ({
            id: `s${made++}`,
            job: `j${made % 3}`,
          }));
          wanted = [...kept, ...added];
          node.assign(wanted);
        } else if (chance < 0.55) engine.kill(pick(engine.containers)?.id ?? "");
        else if (chance < 0.65) {
          const victim = pick(engine.containers);
          if (victim && victim.id !== stranger) engine.removeByHand(victim.id);
        } else if (chance < 0.75) {
          await node.restart();
          if (random() < 0.7) node.assign(wanted);
        } else if (chance < 0.85) {
          engine.goDown({ containersSurvive: random() < 0.3 });
          await node.clock.advance(random() * 20_000);
          engine.comeUp();
        }
        await node.clock.advance(random() * 20_000);
      }
      engine.faults = { loseRequest: 0, loseAnswer: 0, lateEffect: 0, loseEvent: 0 };
      node.assign(wanted);
      await node.until(() => node.isSettled(wanted.map(({ id }) => id)), 300_000);
      // What late requests still do must be undone, too.
      await node.clock.advance(180_000);
      expect(node.isSettled(wanted.map(({ id }) => id))).toBe(true);
      expect([...engine.doubled]).toEqual([]);
      expect(engine.containers.some(({ id }) => id === stranger)).toBe(true);
      expect(engine.networkNames.sort()).toEqual([...new Set(wanted.map(({ job }) => `${job}_default`))].sort());
    });
  }
});
