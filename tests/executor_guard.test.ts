/** @module The time around a container's start on networks that others share, and whom requests come from. */
import { afterAll, describe, expect, test } from "bun:test";
import type { Container } from "../src/converge.ts";
import type { Engine, EngineNetwork } from "../src/docker.ts";
import { ContainerGuard } from "../src/executor_guard.ts";
import { JobNetworks, type LocalGuard } from "../src/executor_networks.ts";
import { LABELS } from "../src/model.ts";
import { cleanUp, Node } from "./executor_fixture.ts";

const OWN = new Map([
  [LABELS.cluster, "c"],
  [LABELS.node, "n"],
  [LABELS.job, "shop"],
]);
const NETWORKS: EngineNetwork[] = [
  {
    id: "shop-id",
    name: "shop_default",
    labels: OWN,
    subnets: ["10.213.1.64/26"],
    device: "br-shop",
    bridge: { device: "br-shop", subnet: "10.213.1.64/26", internal: false },
  },
  { id: "bridge-id", name: "bridge", labels: new Map(), subnets: ["172.17.0.0/16"], device: "docker0" },
  { id: "odd-id", name: "odd", labels: new Map(), subnets: [], oddDevice: "br-+" },
  { id: "six-id", name: "six", labels: OWN, subnets: ["fd00::/64"], device: "br-six" },
];

function container(id: string, more: Partial<Container> & { address?: string; network?: string } = {}): Container {
  const { address = "", network = "bridge", ...rest } = more;
  const endpoints = [
    { network, networkId: `${network.split("_")[0]}-id`, address, address6: "", mac: address && "02:42:AC:11:00:02" },
  ];
  return { id, name: id, labels: OWN, state: "running", ports: [], createdAt: 0, endpoints, ...rest };
}

async function started() {
  /** What the overlay was told, and what else happened, in order. */
  const events: (LocalGuard | string)[] = [];
  const faults: string[] = [];
  const all = [
    container("stranger", { labels: new Map(), address: "172.17.0.2" }),
    container("new", { state: "created" }),
  ];
  const engine = {
    networks: async () => NETWORKS,
    list: async () => all,
  };
  const networks = new JobNetworks({
    engine: engine as unknown as Engine,
    owner: { clusterId: "c", nodeId: "n" },
    routes: () => [],
    onChange: () => {},
    internalReaches: () => true,
  });
  await networks.look();
  const guard = new ContainerGuard({
    engine,
    networks,
    overlay: {
      setGuard: (facts) => void events.push(facts),
      connected: async () => void events.push("in force"),
      guardFault: () => faults[0],
    },
    isOwn: ({ labels }) => labels.get(LABELS.cluster) === "c",
    lookAgain: async (id) => guard.look({ own: [container(id, { address: "172.17.0.3" })], others: [] }),
  });
  guard.update();
  // Before the first look nothing is told: what runs is as the last process left it.
  expect(events).toEqual([]);
  guard.look({ own: [], others: [] });
  events.length = 0;
  return { guard, faults, events };
}

describe("ContainerGuard", () => {
  test("closes a shared bridge before a container starts on it, and keeps that one out by its address afterwards", async () => {
    const { guard, events } = await started();
    await guard.during("new", { networks: ["bridge"], start: async () => void events.push("start") });
    const facts = { bridges: ["br-shop", "br-six"], callers: [] };
    const mac = "02:42:ac:11:00:02";
    const shared = (own: unknown, others: unknown) => ({ ...facts, shared: [{ device: "docker0", own, others }] });
    expect(events).toEqual([
      shared([], [{ address: "172.17.0.2", mac }]) as never,
      "in force",
      "start",
      shared([{ address: "172.17.0.3", mac }], [{ address: "172.17.0.2", mac }]) as never,
      shared([{ address: "172.17.0.3", mac }], undefined) as never,
    ]);
  });

  test("opens the bridge again when the start fails, and closes nothing for a network of jobs alone", async () => {
    const { guard, events } = await started();
    const failing = guard.during("new", { networks: ["bridge"], start: () => Promise.reject(new Error("no")) });
    await expect(failing).rejects.toThrow("no");
    expect(events.at(-1)).toEqual({ bridges: ["br-shop", "br-six"], callers: [], shared: [] });
    events.length = 0;
    await guard.during("new", { networks: ["shop_default"], start: async () => void events.push("start") });
    expect(events).toEqual(["in force", "start"]);
  });

  test("starts nothing while the rules cannot be set", async () => {
    const { guard, events, faults } = await started();
    faults.push("iptables-restore is locked");
    for (const network of ["bridge", "shop_default"]) {
      const starting = guard.during("new", { networks: [network], start: async () => void events.push("start") });
      await expect(starting).rejects.toThrow("cannot be set now: iptables-restore is locked");
    }
    expect(events).not.toContain("start");
    faults.pop();
    await guard.during("new", { networks: ["shop_default"], start: async () => void events.push("start") });
    expect(events.at(-1)).toBe("start");
  });

  test("starts nothing on a network whose bridge no firewall rule can name", async () => {
    const { guard, events } = await started();
    const start = async () => void events.push("start");
    await expect(guard.during("new", { networks: ["odd"], start })).rejects.toThrow(
      'network odd has the bridge "br-+", a name that firewall rules cannot hold',
    );
    expect(events).toEqual([]);
  });

  test("knows who calls by the address: containers of jobs with their levels, and nobody else", async () => {
    const { guard, events } = await started();
    const reader = container("reader", {
      labels: new Map([...OWN, [LABELS.api, "read"]]),
      network: "shop_default",
      address: "10.213.1.70",
    });
    guard.look({ own: [reader, container("plain", { address: "172.17.0.3" })], others: [] });
    expect(guard.access("10.213.1.70")).toBe("read");
    expect(guard.access("10.213.1.71")).toBe("none");
    expect(guard.access("172.17.0.3")).toBe("none");
    expect(guard.access("172.17.0.2")).toBeUndefined();
    expect(guard.access("127.0.0.1")).toBeUndefined();
    expect(guard.access("fd00::1")).toBeUndefined();
    expect(events.at(-1)).toMatchObject({ callers: [{ device: "br-shop", address: "10.213.1.70" }] });
  });
});

describe("Executor", () => {
  afterAll(cleanUp);

  test("gives each container a label for the API, since Docker would give it the one of its image", async () => {
    const node = await new Node().start();
    node.assign([{ id: "a" }, { id: "b", spec: { api: "read" } }]);
    await node.until(() => node.isSettled(["a", "b"]));
    const labels = ["a", "b"].map((id) => node.engine.running(id)[0]?.labels.get(LABELS.api));
    expect(labels).toEqual(["none", "read"]);
  });

  test("goes on keeping out a container on a shared network, whatever it decides before it has heard of the start", async () => {
    const told: LocalGuard[] = [];
    const node = new Node(1, { setGuard: (facts) => void told.push(facts) });
    const { engine } = node;
    const networks = engine.networks.bind(engine);
    const inspect = engine.inspect.bind(engine);
    engine.networks = async () => [...(await networks()), ...NETWORKS.filter(({ name }) => name === "bridge")];
    engine.watch = () => new Promise(() => {});
    const isKeptOut = (facts: LocalGuard | undefined) => facts?.shared.some(({ own }) => own.length > 0) ?? false;
    engine.inspect = async (id) => {
      // The start is over: nothing more is heard of the container.
      if (told.some(isKeptOut) && told.at(-1)?.shared[0]?.others === undefined) return new Promise(() => {});
      const found = await inspect(id);
      const { endpoints = [] } = container(id, { address: found?.state === "running" ? "172.17.0.3" : "" });
      return found && { ...found, endpoints };
    };
    await node.start();
    node.assign([{ id: "a", spec: { network_mode: "bridge" } }]);
    await node.clock.advance(5_000);
    expect(told.some(isKeptOut)).toBe(true);
    node.executor.noticeMaster();
    await node.clock.advance(1_000);
    expect(isKeptOut(told.at(-1))).toBe(true);
  });
});
