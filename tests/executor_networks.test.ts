/** @module What a node knows of its job networks while Docker answers late. */
import { expect, test } from "bun:test";
import type { Engine, EngineNetwork, NewNetwork } from "../src/docker.ts";
import { deviceOf } from "../src/docker_ports.ts";
import { JobNetworks } from "../src/executor_networks.ts";

const FROM = { pools: ["10.213.1.0/24"] };

/** An Engine with networks alone, whose next answers are held back where a test says so. */
class Networks {
  readonly all: EngineNetwork[] = [];
  /** Questions so far. */
  lists = 0;
  #gates: Partial<Record<"list" | "create", Promise<void>>> = {};

  hold(what: "list" | "create"): () => void {
    const gate = Promise.withResolvers<void>();
    this.#gates[what] = gate.promise;
    return gate.resolve;
  }

  /** What there is when it is asked, however late the answer is. */
  async networks(): Promise<EngineNetwork[]> {
    this.lists++;
    const answer = [...this.all];
    await this.#pass("list");
    return answer;
  }

  async createNetwork({ name, driver, internal, driverOpts: options, labels, ipam }: NewNetwork): Promise<string> {
    await this.#pass("create");
    const id = `${name}-0123456789abcdef`;
    const subnets = ipam.config.flatMap(({ subnet }) => subnet ?? []);
    const bridge = deviceOf({ id, driver, internal, options, subnets });
    this.all.push({ id, name, labels: new Map(Object.entries(labels)), subnets, ...bridge });
    return id;
  }

  async #pass(what: "list" | "create"): Promise<void> {
    const gate = this.#gates[what];
    delete this.#gates[what];
    await gate;
  }
}

function started() {
  const engine = new Networks();
  const networks = new JobNetworks({
    engine: engine as unknown as Engine,
    owner: { clusterId: "c", nodeId: "n" },
    routes: () => [],
    onChange: () => {},
    internalReaches: () => true,
  });
  return { engine, networks };
}

test("a network that was just made is known as Docker lists it, without another question", async () => {
  const { engine, networks } = started();
  await networks.ensure("a", FROM);
  expect(engine.lists).toBe(1);
  const [told, names] = [networks.bridges(), networks.names];
  await networks.look();
  expect([networks.bridges(), networks.names]).toEqual([told, names]);
  expect(networks.taken).toEqual(["10.213.1.0/26"]);
  expect(told).toEqual([{ network: "a_default", device: "br-a_default-01", subnet: "10.213.1.0/26", internal: false }]);
  await networks.ensure("a", FROM);
  expect(engine.all).toHaveLength(1);
});

test("a list that does not know of one made since is asked for again, and takes nobody's network for a stranger's", async () => {
  const { engine, networks } = started();
  await networks.ensure("b", FROM);
  const makeA = engine.hold("create");
  const first = networks.ensure("a", FROM);
  await Bun.sleep(0);
  networks.forget("b");
  const answer = engine.hold("list");
  const second = networks.ensure("b", FROM);
  await Bun.sleep(0);
  makeA();
  await first;
  answer();
  await second;
  expect(networks.bridges().map(({ network }) => network)).toEqual(["b_default", "a_default"]);
  expect(engine.all).toHaveLength(2);
});
