/** @module Services that share something: what a document may say, which slots belong together, and that they are never apart. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { ClusterState } from "../src/cluster_state.ts";
import { containerOptions } from "../src/container_options.ts";
import { type Container, converge, type Join, type Memory, type View } from "../src/converge.ts";
import { parseJob, type ParsedService } from "../src/job_spec.ts";
import type { AllocationRecord, JobServiceRecord, NodeRecord } from "../src/model.ts";
import type { ServiceRules, ServiceSpec } from "../src/model_spec.ts";
import { LABELS } from "../src/model.ts";
import { reconcileService } from "../src/reconcile.ts";
import type { Plan } from "../src/reconcile_goal.ts";
import { bondsOf } from "../src/reconcile_together.ts";
import { GIB, idleMachine, rules, seeded, spec } from "./cluster_fixture.ts";

// ---- Documents ----------------------------------------------------------------------------------------------------------

function parse(services: Record<string, object>): { services: ParsedService[]; faults: string[] } {
  const all = Object.fromEntries(Object.entries(services).map(([name, more]) => [name, { image: "busybox", ...more }]));
  const result = parseJob(JSON.stringify({ services: all }), { jobId: "j", env: new Map() });
  if (result.ok) return { services: result.job.services, faults: [] };
  return { services: [], faults: result.details.map(({ path, message }) => `${path}: ${message}`) };
}

describe("parseJob() on services that share something", () => {
  test("leads to the containers of the other services in the create call", () => {
    const { services, faults } = parse({
      x: {},
      data: { volumes: ["/d"] },
      app: { network_mode: "service:x", pid: "service:x", ipc: "service:x", volumes_from: ["data:ro", "x"] },
    });
    expect(faults).toEqual([]);
    const app = services.find(({ service_name }) => service_name === "app");
    if (!app) throw new Error("no app");
    const names = { clusterId: "c", nodeId: "n", jobId: "j", serviceName: "app", slot: 1, allocationId: "a" };
    const joined = new Map([
      ["x", "id-of-x"],
      ["data", "id-of-data"],
    ]);
    const body = containerOptions(app.spec, {
      ...names,
      networkName: "j_default",
      projectDir: "/p",
      secretsDir: "/s",
      joined,
    });
    expect(body.HostConfig).toMatchObject({
      NetworkMode: "container:id-of-x",
      PidMode: "container:id-of-x",
      IpcMode: "container:id-of-x",
      VolumesFrom: ["id-of-data:ro", "id-of-x"],
    });
    expect(body.NetworkingConfig).toBeUndefined();
  });

  test("warns that an ipc namespace must be shareable to be shared", () => {
    const warnings = (ipc?: string) => {
      const services = { x: { image: "busybox", ipc }, app: { image: "busybox", ipc: "service:x" } };
      const result = parseJob(JSON.stringify({ services }), { jobId: "j", env: new Map() });
      return result.ok ? result.job.warnings.map(({ path, message }) => `${path} ${message}`) : ["refused"];
    };
    expect(warnings()).toEqual([expect.stringContaining('services.app.ipc needs ipc: shareable on the service "x"')]);
    expect(warnings("shareable")).toEqual([]);
  });

  const x = { x: {} };
  test.each<[string, Record<string, object>, string]>([
    [
      "an unknown service",
      { ...x, app: { network_mode: "service:y" } },
      "services.app.network_mode: names the service",
    ],
    ["no service", { app: { network_mode: "service:" } }, "services.app.network_mode: is"],
    [
      "an unknown service of volumes",
      { ...x, app: { volumes_from: ["x", "y:ro"] } },
      "services.app.volumes_from[1]: names",
    ],
    ["a container", { app: { network_mode: "container:web" } }, "make it a service of this job"],
    ["a container of volumes", { app: { volumes_from: ["container:web:ro"] } }, "make it a service of this job"],
    ["another access", { ...x, app: { volumes_from: ["x:rx"] } }, "write a service, or SERVICE:ro"],
    ["itself", { app: { network_mode: "service:app" } }, "goes in a circle: app needs app"],
    [
      "a circle",
      { a: { network_mode: "service:b" }, b: { volumes_from: ["a"] } },
      "services.a.network_mode: goes in a circle: a needs b needs a",
    ],
    [
      "a circle with an order of starts",
      { a: { network_mode: "service:b" }, b: { depends_on: ["a"] } },
      "goes in a circle: a needs b needs a",
    ],
    [
      "a service with profiles",
      { x: { profiles: ["p"] }, app: { pid: "service:x" } },
      'services.app.pid: names the service "x", which has profiles',
    ],
    [
      "another mode",
      { x: { deploy: { mode: "global" } }, app: { network_mode: "service:x" } },
      "but x runs once on each node and app has a scale: give both the same deploy.mode",
    ],
    ["networks beside it", { ...x, app: { network_mode: "service:x", networks: ["default"] } }, "excludes networks"],
    [
      "ports of its own",
      { ...x, app: { network_mode: "service:x", ports: ["80:80"] } },
      "services.app.ports: belongs to",
    ],
    ["exposed ports", { ...x, app: { network_mode: "service:x", expose: ["80"] } }, "services.app.expose: belongs to"],
    [
      "a name of its own",
      { ...x, app: { network_mode: "service:x", hostname: "h" } },
      "services.app.hostname: belongs to",
    ],
    ["name servers", { ...x, app: { network_mode: "service:x", dns: "10.0.0.1" } }, "services.app.dns: belongs to"],
    [
      "too many on one node",
      Object.fromEntries(
        Array.from({ length: 60 }, (_, i) => [`s${i}`, i === 0 ? {} : { volumes_from: [`s${i - 1}`] }]),
      ),
      "to over 50",
    ],
  ])("refuses %s", (_, services, message) => {
    expect(parse(services).faults.join("\n")).toContain(message);
  });
});

// ---- Placement ----------------------------------------------------------------------------------------------------------

type Wanted = { scale?: number; spec?: Partial<ServiceSpec>; rules?: Partial<ServiceRules> };

/** A cluster of ready nodes that does at once what it is told, for one job. */
class Bench {
  readonly state = new ClusterState();
  readonly #random = seeded(5);
  #services: JobServiceRecord[] = [];
  #ids = 0;
  blocked = new Map<string, Plan["blocked"]>();

  constructor(nodes: readonly string[]) {
    for (const name of nodes) this.node(name);
  }

  node(
    node_id: string,
    { availability = "active", memory = 8 * GIB }: { availability?: NodeRecord["availability"]; memory?: number } = {},
  ) {
    const record: NodeRecord = {
      node_id,
      node_name: node_id,
      address: "",
      role: "worker",
      availability,
      labels: [],
      set_labels: [],
      joined_at: 0,
    };
    this.state.apply([{ op: "put", kind: "node", record }]);
    this.state.views.set(node_id, {
      state: "ready",
      reason: "",
      lastSeen: 0,
      connected: true,
      version: "",
      engine: undefined,
      resources: idleMachine({ total_memory: memory, available_memory: memory }),
      foreign: [],
      volumes: undefined,
      networks: undefined,
      applied: undefined,
      reported: true,
      statuses: new Map(),
    });
  }

  set(nodeId: string, state: "ready" | "down"): void {
    const view = this.state.views.get(nodeId);
    if (view) this.state.views.set(nodeId, { ...view, state, connected: state === "ready" });
  }

  want(services: Record<string, Wanted>): this {
    this.#services = Object.entries(services).map(([service_name, { scale = 1, ...wanted }]) => {
      const own = spec(wanted.spec);
      const spec_hash = JSON.stringify(own);
      this.state.apply([{ op: "put", kind: "spec", record: { spec_hash, spec: own } }]);
      return { service_name, spec_hash, scale, rules: rules(wanted.rules), rules_since: 1, released: true };
    });
    return this;
  }

  /** One pass as the Scheduler makes it, written down; returns what it changed. */
  pass(): Plan[] {
    const bonds = bondsOf(this.#services, ({ spec_hash }) => this.state.specs.get(spec_hash));
    const names = new Set(this.#services.flatMap(({ service_name }) => bonds.get(service_name)?.group ?? service_name));
    const planned = new Map<string, Plan>();
    const context = {
      state: this.state,
      candidates: this.state.candidates(),
      now: this.#ids,
      random: this.#random,
      newId: () => `a${++this.#ids}`,
      blockedOf: () => [],
      planned,
    };
    for (const name of names) {
      const service = this.#services.find(({ service_name }) => service_name === name);
      if (!service) continue;
      const bond = bonds.get(name);
      const plan = reconcileService(
        {
          job_id: "j",
          incarnation: "i",
          job_version: 1,
          ...service,
          spec: this.state.specs.get(service.spec_hash) ?? spec(),
          scale: this.state.scaleOf(service),
          needs: [],
          ...(bond && { bond }),
        },
        context,
      );
      planned.set(`j/${name}`, plan);
      this.blocked.set(name, plan.blocked);
    }
    for (const { place, stop, homes } of planned.values()) {
      this.state.apply([
        ...place.map((record) => ({ op: "put", kind: "allocation", record }) as const),
        ...stop.map((record) => ({ op: "put", kind: "allocation", record: { ...record, desired: "stop" } }) as const),
        ...homes.map((record) => ({ op: "put", kind: "home", record }) as const),
      ]);
    }
    return [...planned.values()];
  }

  /** Nodes that are up run what they should and forget what they stopped. */
  obey(): void {
    for (const one of [...this.state.allocations.values()]) {
      const view = this.state.views.get(one.node_id);
      if (view?.state !== "ready") continue;
      const { allocation_id } = one;
      if (one.desired === "run") {
        view.statuses.set(allocation_id, { allocation_id, state: "running", final: false, ports: [], restarts: 0 });
      } else {
        view.statuses.delete(allocation_id);
        this.state.apply([{ op: "delete", kind: "allocation", key: allocation_id }]);
      }
      this.state.touch(one.node_id);
    }
  }

  settle(): this {
    for (let round = 0; round < 200; round++) {
      const plans = this.pass();
      this.neverApart();
      if (plans.every(({ place, stop }) => place.length + stop.length === 0)) return this;
      this.obey();
    }
    throw new Error("does not settle");
  }

  live(service?: string): AllocationRecord[] {
    return [...this.state.allocations.values()]
      .filter((one) => one.desired === "run" && (service === undefined || one.service_name === service))
      .toSorted((a, b) => a.slot - b.slot);
  }

  /** `slot@node`, by slot. */
  spots(service: string): string[] {
    return this.live(service).map(({ slot, node_id }) => `${slot}@${node_id}`);
  }

  reasons(service: string): string[] {
    return (this.blocked.get(service) ?? []).flatMap(({ slot, reasons }) => reasons.map((why) => `${slot}: ${why}`));
  }

  /** Whatever is to run by a present definition runs where what it joined is to run. */
  neverApart(): void {
    const present = new Map(this.#services.map((one) => [one.service_name, one.spec_hash]));
    for (const { joins = [], node_id, service_name, slot, spec_hash } of this.live()) {
      if (present.get(service_name) !== spec_hash) continue;
      for (const { allocation_id } of joins) {
        const other = this.state.allocations.get(allocation_id);
        if (other?.desired !== "run" || other.node_id !== node_id)
          throw new Error(`slot ${slot} of ${service_name} on ${node_id} joined ${JSON.stringify(other)}`);
      }
    }
  }
}

const on = (service: string): Partial<ServiceSpec> => ({ network_mode: `service:${service}` });
const volumes: ServiceSpec["mounts"] = [
  {
    type: "volume",
    target: "/data",
    read_only: false,
    nocopy: false,
    long: false,
    volume: { key: "data", external: false, driver_opts: [], labels: [] },
  },
];

describe("reconcile() of services that share something", () => {
  test("puts slot i beside slot i, and counts round where the other service has fewer", () => {
    const bench = new Bench(["a", "b", "c"]).want({ app: { scale: 5, spec: on("x") }, x: { scale: 3 } }).settle();
    const nodes = bench.live("x").map(({ node_id }) => node_id);
    expect(new Set(nodes).size).toBe(3);
    expect(bench.spots("app")).toEqual([0, 1, 2, 0, 1].map((of, i) => `${i + 1}@${nodes[of]}`));
    expect(bench.live("app").map(({ joins }) => joins?.[0]?.allocation_id)).toEqual(
      [0, 1, 2, 0, 1].map((of) => bench.live("x")[of]?.allocation_id),
    );
  });

  test("moves what is beside a slot whose node goes down along with it", () => {
    const bench = new Bench(["a", "b"]).want({ x: {}, app: { scale: 2, spec: on("x") } }).settle();
    const [before] = bench.live("x");
    bench.set(before?.node_id ?? "", "down");
    bench.settle();
    const [after] = bench.live("x");
    expect(after?.node_id).not.toBe(before?.node_id);
    expect(bench.live("app").map(({ node_id }) => node_id)).toEqual([after?.node_id ?? "", after?.node_id ?? ""]);
  });

  test("replaces what joined a replica when that is replaced, chains and several partners included", () => {
    const services = (image: string) => ({
      vpn: { spec: { image } },
      app: { spec: on("vpn") },
      side: { spec: { network_mode: "service:app" as const } },
      data: {},
      backup: { spec: { ...on("app"), volumes_from: [{ service_name: "data" }] } },
    });
    const bench = new Bench(["a", "b", "c", "d", "e"]).want(services("one")).settle();
    const before = new Map(bench.live().map((one) => [one.service_name, one.allocation_id]));
    expect(new Set(bench.live().map(({ node_id }) => node_id)).size).toBe(1);
    bench.want(services("two")).settle();
    const after = new Map(bench.live().map((one) => [one.service_name, one.allocation_id]));
    for (const name of ["vpn", "app", "side", "backup"]) expect(after.get(name)).not.toBe(before.get(name) ?? "");
    expect(new Set(bench.live().map(({ node_id }) => node_id)).size).toBe(1);
  });

  test("places a slot only where all that runs beside it has room, too", () => {
    const memory = (bytes: number) => ({ reservations: { memory_bytes: bytes } });
    const bench = new Bench([]);
    bench.node("small", { memory: 3 * GIB });
    bench.node("large", { memory: 6 * GIB });
    const both = { x: { spec: memory(GIB) }, app: { scale: 2, spec: { ...on("x"), ...memory(2 * GIB) } } };
    bench.want(both).settle();
    expect([...bench.spots("x"), ...bench.spots("app")]).toEqual(["1@large", "1@large", "2@large"]);
    bench.want({ ...both, app: { ...both.app, scale: 3 } }).settle();
    expect(bench.reasons("app")).toEqual([
      "3: it goes beside slot 1 of service x on node large; 1 node: reservation of 2 GiB memory does not fit",
    ]);
    const none = new Bench(["a"]).want({ x: {}, app: { spec: { ...on("x"), ...memory(9 * GIB) } } });
    none.settle();
    expect(none.reasons("x")).toEqual(["1: 1 node: reservation of 9 GiB memory does not fit (together with app)"]);
    expect(none.reasons("app")).toEqual(["1: waiting for a node for slot 1 of service x, which it runs beside"]);
  });

  test("heeds the constraints and host ports of what runs beside a slot", () => {
    const port = (first: number) =>
      [{ container_port: 80, protocol: "tcp", host_ip: "", host_port: { first, last: first } }] as const;
    const bench = new Bench(["a", "b", "c"]);
    const constraints = [{ key: "node.name", operator: "!=", value: "a" }] as const;
    bench.want({
      web: {
        spec: { ports: [...port(80)] },
        rules: { constraints: [{ key: "node.name", operator: "==", value: "b" }] },
      },
    });
    bench.settle();
    bench.want({
      web: {
        spec: { ports: [...port(80)] },
        rules: { constraints: [{ key: "node.name", operator: "==", value: "b" }] },
      },
      x: {},
      app: { spec: { ipc: "service:x", ports: [...port(80)] }, rules: { constraints: [...constraints] } },
    });
    bench.settle();
    expect([...bench.spots("x"), ...bench.spots("app")]).toEqual(["1@c", "1@c"]);
  });

  test("keeps all that runs beside data with them, also while their node is down", () => {
    const bench = new Bench(["a", "b"]).want({ db: { spec: { ...on("x"), mounts: volumes } }, x: {} }).settle();
    const home = bench.live("db")[0]?.node_id ?? "";
    bench.set(home, "down");
    bench.settle();
    expect([...bench.spots("x"), ...bench.spots("db")]).toEqual([`1@${home}`, `1@${home}`]);
    bench.set(home, "ready");
    bench.settle().want({ db: { scale: 0, spec: { ...on("x"), mounts: volumes } }, x: { scale: 0 } });
    bench.settle().want({ db: { spec: { ...on("x"), mounts: volumes } }, x: {} });
    expect(bench.settle().spots("x")).toEqual([`1@${home}`]);
  });

  test("keeps no slot above the scale in the place of one that waits for its data: others go beside that one", () => {
    const wanted = (scale: number) => ({ db: { scale, spec: { mounts: volumes } }, app: { scale: 4, spec: on("db") } });
    const bench = new Bench(["a", "b", "c"]).want(wanted(3)).settle();
    const home = bench.live("db")[0]?.node_id ?? "";
    bench.want(wanted(0)).settle();
    bench.set(home, "down");
    bench.want(wanted(3)).settle();
    expect(bench.live("db").map(({ slot }) => slot)).toEqual([2, 3]);
    bench.want(wanted(2)).settle();
    expect(bench.live("db").map(({ slot }) => slot)).toEqual([2]);
    bench.set(home, "ready");
    bench.settle();
    expect(bench.live("db").map(({ slot }) => slot)).toEqual([1, 2]);
    expect(bench.live("app").map(({ slot }) => slot)).toEqual([1, 2, 3, 4]);
  });

  test("goes where the data are when services come to share something, or says that they are apart", () => {
    const bench = new Bench(["a", "b"]);
    const pinned = (name: string) => ({ constraints: [{ key: "node.name", operator: "==" as const, value: name }] });
    bench.want({ db: { spec: { mounts: volumes }, rules: pinned("b") } }).settle();
    bench.want({ db: { spec: { mounts: volumes, ...on("x") } }, x: {} }).settle();
    expect([...bench.spots("x"), ...bench.spots("db")]).toEqual(["1@b", "1@b"]);

    const apart = new Bench(["a", "b"]);
    apart.want({ db: { spec: { mounts: volumes }, rules: pinned("b") }, x: { rules: pinned("a") } }).settle();
    apart.want({ db: { spec: { mounts: volumes, ...on("x") } }, x: {} }).settle();
    expect(apart.reasons("db")).toEqual([
      "1: the data of slot 1 are on node b, but it goes beside slot 1 of service x on node a: POST /cluster/job/j/restart places them anew",
    ]);
  });

  test("says what it waits for when the other service has no replica", () => {
    const bench = new Bench(["a"]).want({ x: { scale: 0 }, app: { spec: on("x") } }).settle();
    expect(bench.reasons("app")).toEqual(["1: service x, which it runs beside, has scale 0"]);
  });

  test("of global services joins those on one node", () => {
    const global = { mode: "global" as const };
    const bench = new Bench(["a", "b"]).want({ x: { rules: global }, app: { rules: global, spec: on("x") } }).settle();
    bench.node("c");
    bench.settle();
    const slots = new Map(bench.live("x").map((one) => [one.node_id, one.allocation_id]));
    expect(bench.live("app").map(({ node_id, joins }) => [node_id, joins?.[0]?.allocation_id])).toEqual(
      bench.live("app").map(({ node_id }) => [node_id, slots.get(node_id)]),
    );
    expect(bench.live("app")).toHaveLength(3);
  });

  test("never places them apart, and settles on all of them once the nodes are back, whatever happened", () => {
    const scale = fc.integer({ min: 0, max: 4 });
    const service = fc.record({ scale, image: fc.constantFrom("one", "two"), data: fc.boolean() });
    const event = fc.oneof(
      fc.record({ kind: fc.constant("node" as const), node: fc.integer({ min: 0, max: 3 }), up: fc.boolean() }),
      fc.record({
        kind: fc.constant("want" as const),
        x: service,
        y: service,
        app: service,
        side: service,
        shape: fc.integer({ min: 0, max: 3 }),
      }),
      fc.record({ kind: fc.constant("pass" as const), obey: fc.boolean() }),
    );
    fc.assert(
      fc.property(fc.array(event, { maxLength: 12 }), (events) => {
        const nodes = ["a", "b", "c", "d"];
        const bench = new Bench(nodes);
        const last = events.findLast((one) => one.kind === "want");
        for (const one of events) {
          if (one.kind === "node") bench.set(nodes[one.node] ?? "", one.up ? "ready" : "down");
          if (one.kind === "want") bench.want(wantedOf(one));
          bench.pass();
          bench.neverApart();
          if (one.kind === "pass" && one.obey) bench.obey();
        }
        for (const node of nodes) bench.set(node, "ready");
        bench.settle();
        if (!last) return;
        for (const name of ["x", "y", "app", "side"] as const) {
          const slots = new Set(bench.live(name).map(({ slot }) => slot));
          expect(slots.size).toBe(bench.live(name).length);
          // What is not placed has a reason; what is, has the slots that it should.
          expect(slots.size + (bench.blocked.get(name)?.length ?? 0)).toBe(last[name].scale);
        }
      }),
      { numRuns: 400 },
    );

    function wantedOf(one: Extract<typeof event extends fc.Arbitrary<infer T> ? T : never, { kind: "want" }>) {
      const make = ({ scale: count, image, data }: typeof one.x, share: Partial<ServiceSpec>): Wanted => ({
        scale: count,
        spec: { image, ...(data && { mounts: volumes }), ...share },
      });
      const from = (...names: string[]) => ({ volumes_from: names.map((service_name) => ({ service_name })) });
      // A chain, a star, one with two partners, and one that shares nothing.
      const shapes: [Partial<ServiceSpec>, Partial<ServiceSpec>][] = [
        [on("x"), on("app")],
        [on("x"), on("x")],
        [from("x", "y"), {}],
        [{}, {}],
      ];
      const [app = {}, side = {}] = shapes[one.shape] ?? [];
      return { x: make(one.x, {}), y: make(one.y, {}), app: make(one.app, app), side: make(one.side, side) };
    }
  });
});

// ---- On the node --------------------------------------------------------------------------------------------------------

describe("converge() of containers that share something", () => {
  const NOW = 1_000_000;
  function container(
    allocation: string,
    state: Container["state"],
    more: Partial<Container> & { joined?: string; restart?: string } = {},
  ) {
    const { joined, restart = "always", ...rest } = more;
    const labels = new Map<string, string>([
      [LABELS.allocation, allocation],
      [LABELS.restart, restart],
      ...(joined === undefined ? [] : ([[LABELS.joined, joined]] as const)),
    ]);
    const ran = state === "running" ? { startedAt: 5, exitCode: 0 } : {};
    const ended = state === "exited" ? { startedAt: 5, finishedAt: NOW - 60_000, exitCode: 1 } : {};
    return {
      id: `c-${allocation}`,
      name: allocation,
      labels,
      state,
      ports: [],
      createdAt: 0,
      ...ran,
      ...ended,
      ...rest,
    };
  }
  const memory: Memory = { restarts: 0, ran: true, ends: 0, failures: 0, startAt: 0, removeAt: 0, unsure: false };
  function decide(containers: Container[], { running = true, ...more }: Partial<View> & { running?: boolean } = {}) {
    const join: Join = { service_name: "x", allocation_id: "x", running };
    const { actions, statuses } = converge({
      assigned: new Map([
        ["x", "run"],
        ["app", "run"],
      ]),
      held: new Set(["x"]),
      joins: new Map([["app", [join]]]),
      reviveAt: 0,
      containers,
      memories: new Map([["app", { ...memory, counted: "c-app 5" }]]),
      now: NOW,
      random: () => 1,
      ...more,
    });
    const app = statuses.find(({ allocation_id }) => allocation_id === "app");
    return { actions: actions.map((one) => `${one.type} ${one.container?.id ?? "new"}`), app, all: actions };
  }

  const x = container("x", "running");
  test.each<[string, Container[], { running?: boolean }, string[]]>([
    ["waits for the other's container", [], {}, []],
    ["waits while the other does not run", [container("x", "exited")], {}, []],
    [
      "waits until the other's run was looked at",
      [container("x", "running", { startedAt: undefined } as object)],
      {},
      [],
    ],
    ["is made beside one that runs", [x], {}, ["start new"]],
    ["is made beside one that ran, for its volumes", [container("x", "exited")], { running: false }, ["start new"]],
    ["is not made beside one that never ran", [container("x", "created")], { running: false }, []],
    ["is left alone as it is", [x, container("app", "running", { joined: "c-x@5" })], {}, []],
    [
      "is made anew beside another container",
      [x, container("app", "running", { joined: "old@5" })],
      {},
      ["remove c-app"],
    ],
    [
      "is made anew when the other runs anew",
      [x, container("app", "running", { joined: "c-x@4" })],
      {},
      ["remove c-app"],
    ],
    [
      "is not made anew before it was looked at itself",
      [x, container("app", "exited", { joined: "old@5", startedAt: undefined, exitCode: undefined } as object)],
      {},
      [],
    ],
    [
      "stays, for volumes, when the other runs anew",
      [x, container("app", "running", { joined: "c-x" })],
      { running: false },
      [],
    ],
    ["is left alone while the other is away", [container("app", "running", { joined: "c-x@5" })], {}, []],
    ["is not started while the other is away", [container("app", "exited", { joined: "c-x@5" })], {}, []],
    ["is started again beside the same run", [x, container("app", "exited", { joined: "c-x@5" })], {}, ["start c-app"]],
    [
      "is made anew, not started, beside another run",
      [x, container("app", "created", { joined: "c-x@4" })],
      {},
      ["remove c-app"],
    ],
  ])("%s", (_, containers, more, actions) => {
    expect(decide(containers, more).actions).toEqual(actions);
  });

  test("what ended for good is not made anew", () => {
    const ended = container("app", "exited", { joined: "old@1", restart: "no" });
    expect(decide([x, ended]).actions).toEqual([]);
  });

  test("says whom it waits for, and remembers whom it joined", () => {
    expect(decide([]).app).toMatchObject({
      state: "pending",
      error: "waiting for the container of service x beside it",
    });
    expect(decide([x]).all).toEqual([
      {
        type: "start",
        allocation_id: "app",
        joined: { containers: new Map([["x", "c-x"]]), label: "c-x@5" },
      },
    ]);
  });
});
