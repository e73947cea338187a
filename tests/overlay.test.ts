/** @module The node's side of the cluster's network, with a kernel that only takes notes. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LocalNetwork } from "../src/executor_networks.ts";
import { silentLog } from "../src/log.ts";
import type { AllocationStatus } from "../src/model.ts";
import type { DirectoryMessage, Endpoint, NetworkMessage, ServiceEntry } from "../src/model_network.ts";
import { Overlay, type OverlayOptions } from "../src/overlay.ts";
import type { OverlayState } from "../src/overlay_kernel.ts";
import { CommandError } from "../src/overlay_kernel_command.ts";
import type { Overlay as KernelOverlay } from "../src/overlay_plan.ts";
import type { Guard } from "../src/overlay_plan_guard.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";
import { writeNow } from "./write_now.ts";

const root = mkdtempSync(join(tmpdir(), "overlay-test-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const BRIDGE: LocalNetwork = { network: "shop_default", device: "br-1", subnet: "10.213.1.64/26", internal: false };
const DEFAULT = "shop_default";

/** A machine with one process after another on it. */
class Machine {
  readonly clock = new VirtualClock();
  readonly dataDir = mkdtempSync(join(root, "node-"));
  readonly applied: KernelOverlay[] = [];
  /** Whether each time the kernel was to be looked at. */
  readonly looks: boolean[] = [];
  /** What was guarded while the node did without the network, and what of it cannot be had. */
  readonly guarded: Guard[] = [];
  unguarded: string[] = [];
  /** Whether the executor says from the start whom to keep from the APIs. */
  readonly guards: boolean;
  readonly removed: string[] = [];
  /** Whose address was tried, in order. */
  readonly asked: string[] = [];
  served: readonly string[] = [];
  /** What the entries were told last. */
  led: readonly ServiceEntry[] = [];
  excluded: string[] = [];
  open = new Map<string, number>();
  reports = 0;
  unsupported: string | undefined;
  fault: Error | undefined;
  refused: string | undefined;
  overlay: Overlay;
  readonly #more: Partial<OverlayOptions>;
  #starts = 0;

  constructor(more: Partial<OverlayOptions> = {}, { guards = true } = {}) {
    this.guards = guards;
    this.#more = more;
    this.overlay = this.#start();
  }

  /** kill -9, and a new process. */
  restart(): void {
    this.served = [];
    this.led = [];
    this.applied.length = 0;
    this.overlay = this.#start();
  }

  address(name: string, from = "127.0.0.1"): string[] | string {
    const answer = this.overlay.lookup({ name, type: "A" }, from);
    if (answer.state !== "found") return answer.state;
    return answer.records.flatMap((record) => (record.type === "A" ? [record.address] : [])).toSorted();
  }

  get bridges(): { network: string; remote: readonly string[] }[] {
    return (this.applied.at(-1)?.bridges ?? []).map(({ network, remote }) => ({ network, remote }));
  }

  /** How the last messages of the master are written. */
  write = writeNow;

  #start(): Overlay {
    const own = ++this.#starts;
    const { clock } = this;
    const overlay = new Overlay({
      write: this.write,
      kernel: {
        supported: async (_mode, underlay) => {
          this.asked.push(underlay);
          return this.unsupported;
        },
        apply: async (overlay, { look = true } = {}): Promise<OverlayState> => {
          if (this.fault) throw this.fault;
          this.applied.push(overlay);
          this.looks.push(look);
          if (this.refused !== undefined)
            return { changed: [], problems: [this.refused], mtu: undefined, refused: this.refused };
          return { changed: [], problems: [], mtu: 1_450 };
        },
        guard: async (guard) => {
          this.guarded.push(guard);
          return this.unguarded;
        },
        remove: async (nodeId) => void this.removed.push(nodeId),
      },
      apiPort: 9000,
      serveNames: (addresses) => (this.served = addresses),
      newEntries: () => ({
        update: (services) => (this.led = services),
        exclude: (ids) => (this.excluded = [...ids]),
        status: () => [],
        draining: () => this.open,
        stop: () => {},
      }),
      // Nothing goes on in a process that was killed.
      clock: {
        now: () => clock.now(),
        after: (ms, fn) => clock.after(ms, () => void (own === this.#starts && fn())),
      },
      random: seededRandom(1),
      log: silentLog,
      dataDir: this.dataDir,
      onChange: () => void this.reports++,
      ...this.#more,
    });
    if (this.guards) overlay.setGuard({ bridges: [], shared: [], callers: [] });
    return overlay;
  }
}

const PEER = { node_id: "n2", underlay: "10.0.0.2", subnets: ["10.213.2.0/24"] };

function network(more: Partial<NetworkMessage> = {}): NetworkMessage {
  return {
    type: "network",
    mode: "vxlan",
    cidr: "10.213.0.0/16",
    self: { node_id: "n1", underlay: "10.0.0.1", subnets: ["10.213.1.0/24"] },
    peers: [PEER],
    networks: [{ network: DEFAULT, subnets: ["10.213.2.64/26"] }],
    ...more,
  };
}

function endpoint(id: string, address: string, more: Partial<Endpoint> = {}): Endpoint {
  const addresses = address === "" ? [] : [{ network: DEFAULT, address }];
  return { allocation_id: id, slot: 1, node_id: "n2", ready: true, addresses, ...more };
}

function service(endpoints: Endpoint[], service_name = "db"): ServiceEntry {
  return { job_id: "shop", service_name, aliases: [], ports: [], entries: [], endpoints };
}

function directory(services: ServiceEntry[], more: Partial<DirectoryMessage> = {}): DirectoryMessage {
  return { type: "directory", full: true, services, gone: [], ...more };
}

function status(allocation_id: string, more: Partial<AllocationStatus> = {}): AllocationStatus {
  return { allocation_id, state: "running", final: false, ports: [], restarts: 0, ...more };
}

/** A machine whose network is set up, with one job's bridge. */
async function connected(): Promise<Machine> {
  const machine = new Machine();
  machine.overlay.setBridges([BRIDGE]);
  machine.overlay.receive(network());
  await machine.clock.advance(10);
  return machine;
}

async function isPending(machine: Machine, promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  void promise.finally(() => (settled = true));
  await machine.clock.advance(0);
  return !settled;
}

describe("a node in the cluster's network", () => {
  test("gives containers addresses beside its own, its name server and the MTU, once the kernel is set up", async () => {
    const machine = new Machine();
    const addresses = machine.overlay.addresses();
    machine.overlay.receive(network());
    expect(await isPending(machine, addresses)).toBe(true);
    expect(machine.overlay.report()).toBeUndefined();
    machine.overlay.setBridges([]);
    await machine.clock.advance(10);
    expect(await addresses).toEqual({ pools: ["10.213.1.64/26", "10.213.1.128/25"], dns: "10.213.1.1", mtu: 1_450 });
    expect(machine.served).toEqual(["10.213.1.1"]);
    expect(machine.overlay.report()).toEqual({ mode: "vxlan", networks: [], blocks: 1, full: false });
  });

  test("tells of its bridges in one order, and of those alone that have a subnet of its blocks", async () => {
    const machine = await connected();
    const other = { network: "a_front", device: "br-2", subnet: "10.213.1.128/26", internal: false };
    const own = { network: "b_own", device: "br-3", subnet: "192.168.7.0/24", internal: false };
    machine.overlay.setBridges([own, BRIDGE, other]);
    await machine.clock.advance(10);
    const told = machine.reports;
    machine.overlay.setBridges([other, own, BRIDGE]);
    await machine.clock.advance(10);
    expect(machine.reports).toBe(told);
    expect(machine.overlay.report()?.networks).toEqual([
      { network: "a_front", subnet: "10.213.1.128/26" },
      { network: DEFAULT, subnet: BRIDGE.subnet },
    ]);
    expect(machine.bridges).toEqual([
      { network: "a_front", remote: [] },
      { network: DEFAULT, remote: ["10.213.2.64/26"] },
    ]);
  });

  test("says that its blocks are full until it has a further one", async () => {
    const machine = await connected();
    machine.overlay.noticeFull();
    expect(machine.overlay.report()).toMatchObject({ blocks: 1, full: true });
    const self = { ...network().self, subnets: ["10.213.1.0/24", "10.213.9.0/24"] };
    machine.overlay.receive(network({ self }));
    expect(machine.overlay.report()).toMatchObject({ blocks: 2, full: false });
    expect((await machine.overlay.addresses()).pools).toEqual(["10.213.1.64/26", "10.213.1.128/25", "10.213.9.0/24"]);
  });

  test("goes on after an error of its own, in names as in the kernel (point 4 of section 1)", async () => {
    let isBad = false;
    const machine = new Machine({
      onChange: () => {
        if (isBad) throw new Error("a defect");
      },
    });
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    await machine.clock.advance(10);
    const fail = () => {
      throw new Error("a defect");
    };
    const bad = Object.defineProperty(service([], "bad"), "endpoints", { get: fail });
    machine.overlay.receive(directory([service([endpoint("a", "10.213.2.70")], "one"), bad]));
    machine.overlay.receive(directory([service([endpoint("b", "10.213.2.71")], "two")], { full: false }));
    expect([machine.address("one.shop"), machine.address("two.shop")]).toEqual([["10.213.2.70"], ["10.213.2.71"]]);
    isBad = true;
    machine.unsupported = "the kernel has no VXLAN";
    machine.overlay.receive(network({ self: { ...network().self, underlay: "10.0.0.7" } }));
    await machine.clock.advance(60_000);
    isBad = false;
    machine.unsupported = undefined;
    machine.fault = undefined;
    const before = machine.applied.length;
    await machine.clock.advance(600_000);
    expect(machine.applied.length).toBeGreaterThan(before);
  });

  test("tells how many further networks its blocks have room for (point 9)", async () => {
    const machine = await connected();
    expect(machine.overlay.report()).not.toHaveProperty("free");
    machine.overlay.setTaken([BRIDGE.subnet, "172.17.0.0/16"]);
    expect(machine.overlay.report()).toMatchObject({ full: false, free: 2 });
    machine.overlay.noticeFull();
    expect(machine.overlay.report()).toMatchObject({ full: true, free: 0 });
    machine.overlay.setTaken(["172.17.0.0/16"]);
    expect(machine.overlay.report()).toMatchObject({ full: false, free: 3 });
  });

  test("puts back what somebody took away within 5 s", async () => {
    const machine = await connected();
    const before = machine.applied.length;
    await machine.clock.advance(5_100);
    expect(machine.applied.length).toBe(before + 1);
  });

  test("has it done so however often networks come and go meanwhile, for which no look is needed", async () => {
    const machine = await connected();
    const before = machine.looks.length;
    for (let count = 0; count < 11; count++) {
      machine.overlay.setBridges(count % 2 ? [BRIDGE] : []);
      await machine.clock.advance(1_000);
    }
    expect(machine.looks.slice(before).filter((look) => look)).toHaveLength(2);
    expect(machine.looks.length - before).toBe(13);
  });

  test("has it done so also where networks come while that is due, and 5 s after a look that took long", async () => {
    const looks: number[] = [];
    let takes = 30;
    const apply = async (_: unknown, { look = true } = {}): Promise<OverlayState> => {
      if (look) looks.push(machine.clock.now() - begun);
      await new Promise<void>((resolve) => void machine.clock.after(takes, resolve));
      return { changed: [], problems: [], mtu: 1_450 };
    };
    const machine = new Machine({
      kernel: { supported: async () => undefined, apply, guard: async () => [], remove: async () => {} },
    });
    const begun = machine.clock.now();
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    await machine.clock.advance(5_010);
    machine.overlay.setBridges([]);
    await machine.clock.advance(40);
    expect(looks).toEqual([0, 5_040]);
    takes = 4_000;
    await machine.clock.advance(20_000);
    expect(looks).toEqual([0, 5_040, 10_070, 19_070]);
  });

  test.each([0, 1, 2, 3, 4, 5, 6, 7, 8])("has no change lost that comes %i turns after a pass", async (turns) => {
    const seen: number[] = [];
    const apply = async ({ bridges }: KernelOverlay): Promise<OverlayState> => {
      seen.push(bridges.length);
      if (seen.length === 1) void later();
      return { changed: [], problems: [], mtu: 1_450 };
    };
    const later = async () => {
      for (let turn = 0; turn < turns; turn++) await Promise.resolve();
      machine.overlay.setBridges([]);
    };
    const machine = new Machine({
      kernel: { supported: async () => undefined, apply, guard: async () => [], remove: async () => {} },
    });
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    await machine.clock.advance(10);
    expect(seen).toEqual([1, 0]);
  });

  test("has containers wait for bridges and other nodes that are new, and not for a look that finds all as it should be", async () => {
    const gates = [Promise.withResolvers<void>()];
    const apply = async (): Promise<OverlayState> => {
      await gates.at(-1)?.promise;
      return { changed: [], problems: [], mtu: 1_450 };
    };
    const machine = new Machine({
      kernel: { supported: async () => undefined, apply, guard: async () => [], remove: async () => {} },
    });
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    const first = machine.overlay.connected();
    expect(await isPending(machine, first)).toBe(true);
    gates.at(-1)?.resolve();
    expect(await isPending(machine, first)).toBe(false);
    // The look that comes every 5 s, which takes its time here.
    gates.push(Promise.withResolvers<void>());
    await machine.clock.advance(5_100);
    expect(await isPending(machine, machine.overlay.connected())).toBe(false);
    machine.overlay.setBridges([]);
    const second = machine.overlay.connected();
    expect(await isPending(machine, second)).toBe(true);
    gates.at(-1)?.resolve();
    expect(await isPending(machine, second)).toBe(false);
    // What a container asks of another node in its first moment is to get there.
    gates.push(Promise.withResolvers<void>());
    machine.overlay.receive(network());
    const third = machine.overlay.connected();
    expect(await isPending(machine, third)).toBe(true);
    gates.at(-1)?.resolve();
    expect(await isPending(machine, third)).toBe(false);
  });

  test("takes its network away when it stops with nothing running, and only then", async () => {
    for (const [statuses, removed] of [
      [[], ["n1"]],
      [[status("a", { state: "exited" })], ["n1"]],
      [[status("a")], []],
      [undefined, []],
    ] as const) {
      const machine = await connected();
      if (statuses) machine.overlay.setLocal(statuses);
      await machine.overlay.stop();
      expect(machine.removed).toEqual([...removed]);
    }
  });
});

describe("a node outside of the cluster's network", () => {
  test("starts containers all the same, keeps to its own blocks first, and says why", async () => {
    const machine = new Machine();
    machine.overlay.receive(network({ mode: "none", reason: "there is no block left" }));
    await machine.clock.advance(10);
    expect(await machine.overlay.addresses()).toEqual({
      pools: ["10.213.1.64/26", "10.213.1.128/25", "10.213.0.0/16"],
    });
    machine.overlay.setBridges([BRIDGE]);
    expect(machine.overlay.report()).toMatchObject({ mode: "none", reason: "there is no block left", networks: [] });
    expect({ applied: machine.applied, served: machine.served }).toEqual({ applied: [], served: [] });
    const without = network({ mode: "none", self: { node_id: "n1", underlay: "", subnets: [] } });
    machine.overlay.receive(without);
    await machine.clock.advance(10);
    expect(await machine.overlay.addresses()).toEqual({ pools: ["10.213.0.0/16"] });
    expect(machine.overlay.report()?.reason).toBeUndefined();
  });

  test("tries again what its machine could not do, and leaves the kernel alone meanwhile", async () => {
    const machine = new Machine();
    machine.unsupported = "the node needs root";
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    await machine.clock.advance(9_000);
    expect(machine.overlay.report()).toMatchObject({ mode: "none", reason: "the node needs root" });
    expect([machine.asked.length, machine.applied, machine.removed]).toEqual([1, [], []]);
    machine.unsupported = undefined;
    await machine.clock.advance(6_000);
    expect(machine.overlay.report()).toMatchObject({ mode: "vxlan" });
    expect(machine.served).toEqual(["10.213.1.1"]);
  });

  test("is tried with another address as soon as the master tells of it", async () => {
    const machine = new Machine();
    machine.unsupported = "10.0.0.1 is none of this machine's addresses";
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    await machine.clock.advance(10);
    machine.unsupported = undefined;
    machine.overlay.receive(network({ self: { ...network().self, underlay: "10.0.0.7" } }));
    await machine.clock.advance(10);
    expect(machine.asked).toEqual(["10.0.0.1", "10.0.0.7"]);
    expect(machine.overlay.report()).toMatchObject({ mode: "vxlan" });
  });

  test("is never tried where its Docker Engine is on another machine", async () => {
    const machine = new Machine({ unfit: "the Engine is elsewhere" });
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    await machine.clock.advance(60_000);
    expect(machine.overlay.report()).toMatchObject({ mode: "none", reason: "the Engine is elsewhere" });
    expect([machine.asked, machine.applied]).toEqual([[], []]);
  });

  test("is the second one on a machine: the first one's device stays, and containers get no name server", async () => {
    const machine = new Machine();
    machine.refused = "the network device cvx is that of node n0";
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    await machine.clock.advance(10);
    expect(machine.overlay.report()).toMatchObject({ mode: "none", reason: machine.refused });
    expect(await machine.overlay.addresses()).not.toHaveProperty("dns");
    expect(machine.served).toEqual([]);
    machine.refused = undefined;
    await machine.clock.advance(5_100);
    expect(machine.overlay.report()).toMatchObject({ mode: "vxlan" });
  });

  test("lets containers wait a few seconds for a kernel that fails, not for ever", async () => {
    const machine = new Machine();
    machine.fault = new Error("Another app is currently holding the xtables lock");
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.receive(network());
    const addresses = machine.overlay.addresses();
    await machine.clock.advance(3_000);
    expect(await isPending(machine, addresses)).toBe(true);
    await machine.clock.advance(3_000);
    expect(await addresses).not.toHaveProperty("dns");
    expect(machine.overlay.report()?.reason).toContain("xtables lock");
    machine.fault = undefined;
    await machine.clock.advance(1_100);
    expect(machine.overlay.report()).toMatchObject({ mode: "vxlan" });
    // Containers have the name server now: it stays, whatever the kernel says later.
    machine.fault = new Error("again");
    await machine.clock.advance(60_000);
    expect(machine.served).toEqual(["10.213.1.1"]);
    expect(machine.overlay.report()).toMatchObject({ mode: "vxlan" });
  });
});

describe("names and entries", () => {
  test("lead to another node's replicas in its blocks alone", async () => {
    const machine = await connected();
    machine.overlay.receive(
      directory([
        service([
          endpoint("a", "10.213.2.66"),
          endpoint("b", "10.213.0.2"),
          endpoint("c", "192.168.7.2"),
          endpoint("d", "10.213.3.66", { node_id: "n3" }),
          endpoint("e", "192.168.9.2", { node_id: "n1" }),
        ]),
      ]),
    );
    expect(machine.address("db.shop")).toEqual(["10.213.2.66", "192.168.9.2"]);
    const [led] = machine.led;
    expect(led?.endpoints.map(({ addresses }) => addresses.length)).toEqual([1, 0, 0, 0, 1]);
    // The third node comes in, and its replicas with it.
    machine.overlay.receive(
      network({ peers: [PEER, { node_id: "n3", underlay: "10.0.0.3", subnets: ["10.213.3.0/24"] }] }),
    );
    expect(machine.address("db.shop")).toEqual(["10.213.2.66", "10.213.3.66", "192.168.9.2"]);
    expect(machine.led[0]?.endpoints[3]?.addresses).toHaveLength(1);
  });

  test("stay on the node where it does without the network", async () => {
    const machine = new Machine();
    machine.overlay.receive(
      directory([service([endpoint("a", "10.213.2.66"), endpoint("e", "10.213.1.70", { node_id: "n1" })])]),
    );
    machine.overlay.receive(network({ mode: "none" }));
    await machine.clock.advance(10);
    expect(machine.led[0]?.endpoints.map(({ addresses }) => addresses.length)).toEqual([0, 1]);
  });

  test("leave out what this node sees to be ended or unwell, before the master does", async () => {
    const machine = await connected();
    const mine = (id: string, address: string) => endpoint(id, address, { node_id: "n1" });
    const all = [
      mine("a", "10.213.1.66"),
      mine("b", "10.213.1.67"),
      mine("c", "10.213.1.68"),
      mine("d", "10.213.1.69"),
    ];
    machine.overlay.receive(directory([service([...all, endpoint("e", "10.213.2.70")])]));
    expect(machine.address("db.shop")).toHaveLength(5);
    machine.overlay.setLocal([
      status("a"),
      status("b", { health: "unhealthy" }),
      status("c", { state: "stopping" }),
      status("x"),
    ]);
    expect(machine.address("db.shop")).toEqual(["10.213.1.66", "10.213.2.70"]);
    expect(machine.excluded.toSorted()).toEqual(["b", "c", "d"]);
    machine.overlay.receive(directory([service([mine("f", "10.213.1.71")], "cache")], { full: false }));
    expect(machine.address("cache.shop")).toEqual([]);
  });

  test("follow changes, removals, and a full picture that lacks what was there", async () => {
    const machine = await connected();
    machine.overlay.receive(
      directory([service([endpoint("a", "10.213.2.66")]), service([endpoint("b", "10.213.2.67")], "web")]),
    );
    machine.overlay.receive(directory([service([endpoint("c", "10.213.2.68")])], { full: false }));
    expect([machine.address("db.shop"), machine.address("web.shop")]).toEqual([["10.213.2.68"], ["10.213.2.67"]]);
    machine.overlay.receive(directory([], { full: false, gone: [{ job_id: "shop", service_name: "db" }] }));
    expect([machine.address("db.shop"), machine.address("web.shop")]).toEqual(["not_ours", ["10.213.2.67"]]);
    machine.overlay.receive(directory([service([endpoint("a", "10.213.2.66")])]));
    expect([machine.address("db.shop"), machine.address("web.shop")]).toEqual([["10.213.2.66"], "not_ours"]);
    expect(machine.led).toHaveLength(1);
  });
});

describe("a master that has just started", () => {
  test("takes no names away of replicas that it has not heard of", async () => {
    const machine = await connected();
    machine.overlay.receive(
      directory([service([endpoint("a", "10.213.2.66"), endpoint("b", "10.213.2.67", { slot: 2 })])]),
    );
    const unknown = (id: string) => endpoint(id, "", { ready: false, unknown: true });
    machine.overlay.receive(directory([service([unknown("a"), unknown("b"), unknown("new")])]));
    expect(machine.address("db.shop")).toEqual(["10.213.2.66", "10.213.2.67"]);
    // Each becomes known on its own; that of the other holds on.
    machine.overlay.receive(directory([service([endpoint("a", "10.213.2.99"), unknown("b")])], { full: false }));
    expect(machine.address("db.shop")).toEqual(["10.213.2.67", "10.213.2.99"]);
    machine.overlay.receive(directory([service([endpoint("a", "10.213.2.99")])], { full: false }));
    expect(machine.address("db.shop")).toEqual(["10.213.2.99"]);
  });

  test("closes no way to networks of nodes that it has not heard of", async () => {
    const machine = await connected();
    const third = { node_id: "n3", underlay: "10.0.0.3", subnets: ["10.213.3.0/24"] };
    const networks = [{ network: DEFAULT, subnets: ["10.213.2.64/26", "10.213.3.64/26"] }];
    const keyed = [PEER, third].map((peer) => ({ ...peer, public_key: `key of ${peer.node_id}` }));
    machine.overlay.receive(network({ peers: keyed, networks }));
    const peers = [PEER, third];
    machine.overlay.receive(network({ peers, networks: [], unknown: ["n1", "n2", "n3"] }));
    await machine.clock.advance(10);
    expect(machine.bridges).toEqual([{ network: DEFAULT, remote: ["10.213.2.64/26", "10.213.3.64/26"] }]);
    expect(machine.applied.at(-1)?.peers).toEqual(keyed);
    // What is listed is what this node is known to have.
    machine.overlay.receive(network({ peers: keyed, networks: [], unknown: ["n1"] }));
    await machine.clock.advance(10);
    expect(machine.bridges).toEqual([{ network: DEFAULT, remote: ["10.213.2.64/26", "10.213.3.64/26"] }]);
    // The second node has told of its networks: this one is not among them any more.
    machine.overlay.receive(network({ peers, networks: [{ network: DEFAULT, subnets: [] }], unknown: ["n3"] }));
    await machine.clock.advance(10);
    expect(machine.bridges).toEqual([{ network: DEFAULT, remote: ["10.213.3.64/26"] }]);
    expect(machine.applied.at(-1)?.peers.map(({ public_key }) => public_key)).toEqual([undefined, "key of n3"]);
    machine.overlay.receive(network({ peers, networks: [] }));
    await machine.clock.advance(10);
    expect(machine.bridges).toEqual([{ network: DEFAULT, remote: [] }]);
    expect(machine.applied.at(-1)?.peers.at(-1)).toEqual(third);
  });
});

describe("a process that starts without a master", () => {
  test("answers as the last one did, and leaves the kernel alone until Docker was looked at", async () => {
    const machine = await connected();
    machine.overlay.receive(directory([service([endpoint("a", "10.213.2.66")])]));
    await machine.clock.advance(1_100);
    machine.restart();
    await machine.clock.advance(10);
    expect(machine.address("db.shop")).toEqual(["10.213.2.66"]);
    expect(machine.led).toHaveLength(1);
    expect(machine.served).toEqual(["10.213.1.1"]);
    await machine.clock.advance(20_000);
    expect(machine.applied).toEqual([]);
    machine.overlay.setBridges([BRIDGE]);
    await machine.clock.advance(10);
    expect(machine.bridges).toEqual([{ network: DEFAULT, remote: ["10.213.2.64/26"] }]);
    expect(await machine.overlay.addresses()).toMatchObject({ dns: "10.213.1.1" });
  });

  test("writes them one at a time without waiting for the disk, and ends when the newest are written (point 7)", async () => {
    const machine = await connected();
    await machine.clock.advance(1_100);
    const disk = Promise.withResolvers<void>();
    const begun: string[] = [];
    machine.write = async (path, text) => {
      begun.push(text);
      await disk.promise;
      await writeNow(path, text);
    };
    machine.restart();
    for (const name of ["first", "second", "third"]) {
      machine.overlay.receive(directory([service([endpoint("a", "10.213.2.70")], name)]));
      await machine.clock.advance(1_100);
      expect(machine.address(`${name}.shop`)).toEqual(["10.213.2.70"]);
    }
    expect(begun).toHaveLength(1);
    const ended = machine.overlay.stop();
    expect(await isPending(machine, ended)).toBe(true);
    disk.resolve();
    await ended;
    expect(begun).toHaveLength(2);
    expect(readFileSync(join(machine.dataDir, "network.json"), "utf8")).toContain("third");
  });

  test("begins anew where the file cannot be read", async () => {
    const machine = await connected();
    await machine.clock.advance(1_100);
    for (const text of ["", "{", '{"services": 3}', '{"services": [], "network": {"mode": "none"}}']) {
      writeFileSync(join(machine.dataDir, "network.json"), text);
      machine.restart();
      expect(machine.address("db.shop")).toBe("not_ours");
      machine.overlay.setBridges([]);
      machine.overlay.receive(network());
      await machine.clock.advance(10);
      expect(machine.overlay.report()).toMatchObject({ mode: "vxlan" });
    }
  });

  test("takes the id that the master gives it", async () => {
    const machine = await connected();
    machine.overlay.receive(directory([service([endpoint("a", "10.213.1.66", { node_id: "n0" })])]));
    expect(machine.address("db.shop")).toEqual([]);
    machine.overlay.receive(network({ self: { ...network().self, node_id: "n0" } }));
    await machine.clock.advance(10);
    expect(machine.address("db.shop")).toEqual(["10.213.1.66"]);
    expect(machine.led).toHaveLength(1);
  });
});

describe("drain()", () => {
  const stopping = endpoint("a", "10.213.1.66", { node_id: "n1", ready: false });
  const other = endpoint("b", "10.213.2.66", { slot: 2 });

  /** Milliseconds until the replica may be stopped. */
  async function waited(machine: Machine, graceMs = 10_000, signal = new AbortController().signal): Promise<number> {
    const begin = machine.clock.now();
    let end: number | undefined;
    void machine.overlay.drain("a", { graceMs, signal, pid: undefined }).then(() => (end = machine.clock.now()));
    await machine.clock.until(() => end !== undefined, { limitMs: 60_000 });
    return (end ?? 0) - begin;
  }

  test("waits until nobody has the name server's answer any more, where another replica can take over", async () => {
    const machine = await connected();
    machine.overlay.receive(directory([service([stopping, other])]));
    expect(await waited(machine)).toBe(1_000);
    expect(await waited(machine, 0)).toBe(1_000);
  });

  test("does not wait where no other can, nor for a service that is gone", async () => {
    const machine = await connected();
    machine.overlay.receive(directory([service([stopping, { ...other, ready: false }])]));
    expect(await waited(machine)).toBe(0);
    machine.overlay.receive(directory([]));
    expect(await waited(machine)).toBe(0);
  });

  test("waits for connections through the node's entries, no longer than the grace period", async () => {
    const machine = await connected();
    machine.overlay.receive(directory([service([stopping, other])]));
    machine.open.set("a", 2);
    expect(await waited(machine, 4_000)).toBe(4_000);
    machine.clock.after(2_000, () => machine.open.delete("a"));
    expect(await waited(machine)).toBe(2_000);
  });

  test("does not wait for names where Docker answers them", async () => {
    const machine = new Machine();
    machine.overlay.receive(network({ mode: "none" }));
    await machine.clock.advance(10);
    machine.overlay.receive(directory([service([stopping, other])]));
    expect(await waited(machine)).toBe(0);
    machine.open.set("a", 1);
    expect(await waited(machine, 500)).toBe(500);
  });

  test("ends when the executor stops", async () => {
    const machine = await connected();
    machine.overlay.receive(directory([service([stopping, other])]));
    const executor = new AbortController();
    machine.clock.after(200, () => executor.abort());
    expect(await waited(machine, 10_000, executor.signal)).toBe(200);
  });
});

describe("a node that is told lies (point 4)", () => {
  test("lets through the subnets and replicas of other nodes' own blocks, and says once what it left out", async () => {
    const told: unknown[] = [];
    const machine = new Machine({ log: { ...silentLog, warn: (_, fields) => void told.push(fields?.["faults"]) } });
    const other: LocalNetwork = { ...BRIDGE, network: "back", device: "br-2", subnet: "10.213.1.128/26" };
    machine.overlay.setBridges([BRIDGE, other]);
    const subnets = ["10.213.2.64/26", "10.213.9.0/26", "10.213.0.0/16"];
    for (let n = 0; n < 3; n++) machine.overlay.receive(network({ networks: [{ network: DEFAULT, subnets }] }));
    const addresses = (...texts: string[]) =>
      texts.map((address, n) => ({ network: [DEFAULT, "back"][n] ?? "x", address }));
    machine.overlay.receive(
      directory([
        service([
          { ...endpoint("a", ""), addresses: addresses("10.213.2.70", "10.213.2.130") },
          { ...endpoint("b", ""), addresses: addresses("10.213.2.71", "10.213.9.9") },
          { ...endpoint("c", "", { node_id: "nobody" }), addresses: addresses("10.213.2.72", "10.213.2.132") },
          { ...endpoint("d", "", { node_id: "n1" }), addresses: addresses("10.213.1.70", "10.213.2.133") },
        ]),
      ]),
    );
    await machine.clock.advance(10);
    const bridges = machine.applied.at(-1)?.bridges ?? [];
    expect(bridges.map(({ network: name, remote, guests, travellers }) => [name, remote, guests, travellers])).toEqual([
      ["back", [], ["10.213.2.70"], []],
      [DEFAULT, ["10.213.2.64/26"], ["10.213.2.130"], []],
    ]);
    expect(told).toEqual(["network shop_default has subnets in no other node's blocks: 10.213.9.0/26, 10.213.0.0/16"]);
  });

  test("does not believe its own file more than its master", async () => {
    const machine = await connected();
    const path = join(machine.dataDir, "network.json");
    const subnet = "10.213.2.64/26\n-A INPUT -j ACCEPT";
    writeFileSync(
      path,
      JSON.stringify({
        network: network({ networks: [{ network: DEFAULT, subnets: [subnet, "10.213.9.0/26"] }] }),
        services: [],
      }),
    );
    machine.restart();
    machine.overlay.setBridges([BRIDGE]);
    await machine.clock.advance(10);
    expect(machine.bridges).toEqual([{ network: DEFAULT, remote: [] }]);
  });
});

describe("containers are kept from the APIs of nodes", () => {
  const facts = { bridges: ["br-1"], shared: [], callers: [] };
  const nodes = [{ address: "10.0.0.2", port: 9000 }];

  test("beside the cluster's network, once the executor has said which, and before they start", async () => {
    const machine = new Machine({}, { guards: false });
    machine.overlay.receive(network());
    machine.overlay.setBridges([BRIDGE]);
    await machine.clock.advance(1_000);
    // What the last process left holds until then.
    expect(machine.applied).toEqual([]);
    machine.overlay.setApis(nodes);
    machine.overlay.setGuard(facts);
    await machine.overlay.connected();
    expect(machine.applied.at(-1)?.guard).toEqual({ port: 9000, ...facts, nodes });
  });

  test.each([["none"], ["vxlan"]] as const)("also where the mode is %s and this node does without", async (mode) => {
    const machine = new Machine();
    if (mode === "vxlan") machine.refused = "the network device cvx was not made by this node";
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.setGuard(facts);
    machine.overlay.setApis(nodes);
    machine.overlay.receive(network({ mode }));
    await machine.clock.advance(10);
    expect(machine.guarded.at(-1)).toEqual({ port: 9000, ...facts, nodes });
    machine.overlay.setGuard({ ...facts, bridges: ["br-1", "br-2"] });
    await machine.overlay.connected();
    expect(machine.guarded.at(-1)?.bridges).toEqual(["br-1", "br-2"]);
    machine.overlay.setLocal([]);
    await machine.overlay.stop();
    expect(machine.removed.at(-1)).toBe("n1");
  });

  test("where the network is not known, since nothing of it was kept and there is no master", async () => {
    const machine = new Machine({}, { guards: false });
    machine.overlay.setGuard(facts);
    await machine.overlay.connected();
    expect(machine.guarded.at(-1)?.bridges).toEqual(["br-1"]);
    machine.overlay.receive(network());
    machine.overlay.setBridges([BRIDGE]);
    await machine.overlay.connected();
    expect(machine.applied.at(-1)?.guard.bridges).toEqual(["br-1"]);
  });

  test("where the rest of the network cannot be set up", async () => {
    const machine = new Machine();
    machine.fault = new Error("ip failed");
    machine.overlay.receive(network());
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.setGuard(facts);
    await machine.overlay.connected();
    expect(machine.guarded.at(-1)?.bridges).toEqual(["br-1"]);
  });

  test("and containers wait while that fails, but not for ever, nor where there is no iptables", async () => {
    let tries = 0;
    let error: Error = new Error("somebody holds the lock");
    const guard = async () => {
      tries++;
      if (tries < 3 || error instanceof CommandError) throw error;
      return [];
    };
    const kernel = {
      supported: async () => undefined,
      apply: async () => ({ changed: [], problems: [], mtu: 1_450 }),
      guard,
      remove: async () => {},
    };
    const machine = new Machine({ kernel });
    machine.overlay.setBridges([BRIDGE]);
    machine.overlay.setGuard(facts);
    machine.overlay.receive(network({ mode: "none" }));
    await machine.clock.advance(10);
    expect(machine.overlay.guardFault()).toBe("somebody holds the lock");
    await machine.clock.advance(2_100);
    expect(machine.overlay.guardFault()).toBeUndefined();
    error = new CommandError("failed", "no such target");
    machine.overlay.setGuard({ ...facts, bridges: ["br-2"] });
    await machine.clock.advance(10);
    expect(machine.overlay.guardFault()).toBe("no such target");
    await machine.clock.advance(10_000);
    expect(machine.overlay.guardFault()).toBeUndefined();
    const bare = new Machine({ kernel });
    error = new CommandError("missing", "the command iptables-save is not installed");
    bare.overlay.setBridges([BRIDGE]);
    bare.overlay.setGuard(facts);
    bare.overlay.receive(network({ mode: "none" }));
    await bare.clock.advance(10);
    expect(bare.overlay.guardFault()).toBeUndefined();
  });

  test("and a node ends as asked also where the rules cannot be removed, or never could be made", async () => {
    const fails = async () => {
      throw new Error("iptables-save is not installed");
    };
    const kernel = (guard: () => Promise<string[]>) => ({
      supported: async () => undefined,
      apply: async () => ({ changed: [], problems: [], mtu: 1_450 }),
      guard,
      remove: fails,
    });
    for (const guard of [fails, async () => []]) {
      const machine = new Machine({ kernel: kernel(guard) });
      machine.overlay.setBridges([BRIDGE]);
      machine.overlay.setGuard(facts);
      machine.overlay.receive(network({ mode: "none" }));
      await machine.clock.advance(10);
      machine.overlay.setLocal([]);
      await machine.overlay.stop();
    }
  });

  test("as far as the machine can: containers start all the same, for the API itself refuses them", async () => {
    const warnings: string[] = [];
    const log = { ...silentLog, warn: (message: string) => void warnings.push(message) };
    const machine = new Machine({ log });
    machine.unguarded = ["ip6tables-save does not work here"];
    machine.overlay.setGuard(facts);
    machine.overlay.receive(network({ mode: "none" }));
    await machine.overlay.addresses();
    await machine.clock.advance(20_000);
    const said = warnings.filter((one) => one.startsWith("containers could not be kept from the APIs"));
    expect(said.length).toBe(1);
  });
});
