/** @module Placement as a table of cases and as properties that hold for every cluster. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { IFNAME, type ServiceSpec } from "../src/model_spec.ts";
import type { Candidate, PlacementRequest } from "../src/placement.ts";
import { chooseRemovals, MAX_JOB_CONTAINERS, place } from "../src/placement.ts";
import { matches, type NodeFacts, unmetRule } from "../src/placement_rules.ts";
import { candidate, GIB, rules, seeded, spec } from "./cluster_fixture.ts";

function request(service: ServiceSpec = spec(), more: Partial<PlacementRequest> = {}): PlacementRequest {
  return { job_id: "job", spec: service, rules: rules(), own: new Map(), ...more };
}

function spread(
  service: PlacementRequest,
  { nodes, count }: { nodes: Candidate[]; count: number },
): Record<string, number> {
  const random = seeded(1);
  for (let i = 0; i < count; i++) place(service, nodes, random);
  return Object.fromEntries(service.own);
}

describe("place()", () => {
  test("spreads 30 replicas 10/10/10 on equal nodes, also when their readings differ a little", () => {
    const nodes = [
      candidate("a"),
      candidate("b", { used_cpus: 0.03 }),
      candidate("c", { available_memory: 7.9 * GIB }),
    ];
    expect(spread(request(), { nodes, count: 30 })).toEqual({ a: 10, b: 10, c: 10 });
  });

  test("spreads evenly on equal machines that are busy and do not read quite the same", () => {
    const nodes = [
      candidate("a", { used_cpus: 1.4 }),
      candidate("b", { used_cpus: 1.9 }),
      candidate("c", { used_cpus: 1.6 }),
    ];
    expect(spread(request(), { nodes, count: 30 })).toEqual({ a: 10, b: 10, c: 10 });
  });

  test("spreads in proportion to what is available, the tighter of memory and CPU", () => {
    const nodes = [
      candidate("big", { cpus: 8, total_memory: 16 * GIB, available_memory: 16 * GIB }),
      candidate("half", { cpus: 4, total_memory: 16 * GIB, available_memory: 16 * GIB }),
      candidate("small", { cpus: 8, total_memory: 1 * GIB, available_memory: 1 * GIB }),
    ];
    expect(spread(request(), { nodes, count: 34 })).toEqual({ big: 20, half: 10, small: 4 });
  });

  test("gives every eligible node a first replica before any gets a second", () => {
    const nodes = [
      candidate("huge", { cpus: 64 }),
      candidate("tiny", { cpus: 0.2 }),
      candidate("full", { used_cpus: 2 }),
    ];
    expect(spread(request(), { nodes, count: 3 })).toEqual({ huge: 1, tiny: 1, full: 1 });
  });

  test("gives a node that is busy with other work less", () => {
    const nodes = [candidate("busy", { available_memory: 3 * GIB }), candidate("a"), candidate("b")];
    const service = request(spec({ reservations: { memory_bytes: GIB / 2 } }));
    const { busy = 0, a = 0, b = 0 } = spread(service, { nodes, count: 18 });
    expect([busy, Math.abs(a - b)]).toEqual([1, 1]);
  });

  test("closes the largest gap: a replica goes to a large machine that is behind rather than onto a small one", () => {
    const nodes = [candidate("small", { cpus: 4 }), candidate("large", { cpus: 32 }), candidate("full", { cpus: 32 })];
    for (const [i, used] of [1, 10, 20].entries()) Object.assign(nodes[i]!.planned, { cpus: used });
    // 25 %, 31 % and 63 % are in use: one more CPU would make 50 % of the small one, 34 % of the large one.
    const service = spec({ reservations: { cpus: 1 } });
    expect(place(request(service), nodes, seeded(1))).toEqual({ node_id: "large" });
    const little = spec({ reservations: { cpus: 0.25 } });
    expect(place(request(little), nodes, seeded(1))).toEqual({ node_id: "small" });
  });

  const reserve = (node: Candidate, cpus: number) => {
    for (const sum of [node.reserved, node.planned]) sum.cpus += cpus;
  };

  test("keeps room for a large replica once the nodes are mostly reserved", () => {
    const nodes = ["a", "b", "c", "d"].map((name) => candidate(name, { cpus: 16 }));
    const random = seeded(1);
    const small = () => request(spec({ reservations: { cpus: 1 } }));
    // 64 CPUs: 58 replicas of 1 CPU, each of its own service, leave 6, of which one node must have 4.
    for (let i = 0; i < 58; i++) place(small(), nodes, random);
    expect("node_id" in place(request(spec({ reservations: { cpus: 4 } })), nodes, random)).toBe(true);
    for (const node of nodes) expect(node.reserved.cpus).toBeGreaterThan(0.6 * 16);
  });

  test("spreads replicas that reserve nothing however full the nodes are", () => {
    const nodes = ["a", "b"].map((name) => candidate(name, { cpus: 16 }));
    reserve(nodes[0]!, 15);
    reserve(nodes[1]!, 14);
    expect(place(request(), nodes, seeded(1))).toEqual({ node_id: "b" });
    expect(place(request(spec({ reservations: { cpus: 1 } })), nodes, seeded(1))).toEqual({ node_id: "a" });
  });

  test("with binpack fills a node up before it begins another, but keeps a service's replicas apart", () => {
    const nodes = ["a", "b", "c"].map((name) => candidate(name, { cpus: 4 }));
    const random = seeded(1);
    const packed = () => request(spec({ reservations: { cpus: 1, memory_bytes: GIB } }), { strategy: "binpack" });
    const places = Array.from({ length: 4 }, () => place(packed(), nodes, random));
    expect(new Set(places.map((one) => JSON.stringify(one))).size).toBe(1);
    expect(spread(packed(), { nodes, count: 2 })).not.toContainValue(2);
  });

  test("with binpack keeps the replicas apart until 70 % of the nodes that may run it is reserved, then fills gaps", () => {
    const nodes = ["a", "b", "c", "other"].map((name) => candidate(name, { cpus: 10 }));
    const constraint = { key: "node.name", operator: "!=", value: "other" } as const;
    const asked = { strategy: "binpack", rules: rules({ constraints: [constraint] }) } as const;
    const three = () => spread(request(spec({ reservations: { cpus: 0.5 } }), asked), { nodes, count: 3 });
    reserve(nodes[0]!, 7);
    reserve(nodes[1]!, 7);
    reserve(nodes[2]!, 5);
    expect(three()).toEqual({ a: 1, b: 1, c: 1 });
    reserve(nodes[2]!, 1);
    const packed = Object.entries(three());
    expect(packed).toHaveLength(1);
    expect(packed[0]).toEqual([expect.stringMatching(/^[ab]$/), 3]);
  });

  test("with binpack is not drawn to other work, and puts nothing where it would not fit beside it", () => {
    const nodes = [candidate("busy", { available_memory: 32 * 2 ** 20 }), candidate("idle"), candidate("begun")];
    reserve(nodes[2]!, 0.5);
    const packed = () => request(spec(), { strategy: "binpack" });
    expect(place(packed(), nodes, seeded(1))).toEqual({ node_id: "begun" });
    expect(spread(packed(), { nodes, count: 3 })["busy"]).toBe(1);
  });

  test("takes a node to avoid only when no other takes the replica", () => {
    const nodes = [candidate("a", { cpus: 1 }), candidate("b")];
    const service = () =>
      request(spec({ reservations: { cpus: 1 } }), { avoid: new Set(["b"]), own: new Map([["a", 1]]) });
    expect(place(service(), nodes, seeded(1))).toEqual({ node_id: "a" });
    expect(place(service(), nodes, seeded(1))).toEqual({ node_id: "b" });
  });

  test("counts what is placed but does not run yet against the measured reading", () => {
    const busy = candidate("busy");
    busy.plannedStarting.memory = 7 * GIB;
    busy.planned.memory = 7 * GIB;
    expect(spread(request(), { nodes: [busy, candidate("idle")], count: 1 })).toEqual({ idle: 1 });
  });

  test("refuses a memory reservation that other processes leave no room for", () => {
    const nodes = [
      candidate("a", { available_memory: GIB }),
      candidate("b", { total_memory: GIB, available_memory: GIB }),
    ];
    const service = spec({ reservations: { memory_bytes: 2 * GIB } });
    expect(place(request(service), nodes, seeded(1))).toEqual({
      reasons: ["2 nodes: reservation of 2 GiB memory does not fit"],
    });
  });

  test("fills CPU reservations to the brim and not beyond", () => {
    const nodes = [candidate("a", { cpus: 0.3 })];
    const service = request(spec({ reservations: { cpus: 0.1 } }));
    const answers = [1, 2, 3, 4].map(() => place(service, nodes, seeded(1)));
    expect(answers.slice(0, 3).every((answer) => "node_id" in answer)).toBe(true);
    expect(answers[3]).toEqual({ reasons: ["1 node: reservation of 0.1 CPU does not fit"] });
  });

  test("a fixed host port is given once a node, and says so when all are taken", () => {
    const nodes = [candidate("a"), candidate("b"), candidate("c")];
    const service = request(
      spec({ ports: [{ container_port: 80, protocol: "tcp", host_ip: "", host_port: { first: 8080, last: 8080 } }] }),
    );
    expect(spread(service, { nodes, count: 3 })).toEqual({ a: 1, b: 1, c: 1 });
    expect(place(service, nodes, seeded(1))).toEqual({ reasons: ["3 nodes: host port 8080 taken"] });
  });

  test.each([
    ["the same port of another protocol", "", "udp", true],
    ["the same port on all addresses", "", "tcp", false],
    ["the same port on the same address", "10.0.0.1", "tcp", false],
    ["the same port on another address", "10.0.0.2", "tcp", true],
  ] as const)("%s beside 10.0.0.1:8080/tcp: %s %s", (_, host_ip, protocol, fits) => {
    const node = candidate("a");
    node.claims.push({ protocol: "tcp", host_ip: "10.0.0.1", first: 8080, last: 8080 });
    const service = spec({
      ports: [{ container_port: 80, protocol, host_ip, host_port: { first: 8080, last: 8080 } }],
    });
    expect("node_id" in place(request(service), [node], seeded(1))).toBe(fits);
  });

  test("a port that a foreign process holds is taken; a range needs one free port", () => {
    const node = candidate("a", { taken_ports: ["tcp/8000"] });
    const range = (last: number) =>
      spec({ ports: [{ container_port: 80, protocol: "tcp", host_ip: "", host_port: { first: 8000, last } }] });
    expect(place(request(range(8000)), [node], seeded(1))).toEqual({ reasons: ["1 node: host port 8000 taken"] });
    expect("node_id" in place(request(range(8001)), [node], seeded(1))).toBe(true);
  });

  test("a port that Docker holds for a container that is gone is taken, with what helps", () => {
    const nodes = [
      candidate("a", { taken_ports: ["udp/53"], lost_ports: ["udp/53"] }),
      candidate("b", { taken_ports: ["udp/53"] }),
    ];
    const dns = spec({
      ports: [{ container_port: 53, protocol: "udp", host_ip: "", host_port: { first: 53, last: 53 } }],
    });
    expect(place(request(dns), nodes, seeded(1))).toEqual({
      reasons: [
        "1 node: host port 53/udp taken",
        "1 node: host port 53/udp taken by Docker for a container that is gone: start dockerd anew there",
      ],
    });
  });

  test("a range is used up by replicas that take one port of it each, running or not yet", () => {
    const ports = [
      { container_port: 80, protocol: "tcp" as const, host_ip: "", host_port: { first: 8000, last: 8002 } },
    ];
    const node = candidate("a");
    node.claims.push({ protocol: "tcp", host_ip: "0.0.0.0", first: 8001, last: 8001 });
    const service = request(spec({ ports }));
    expect(spread(service, { nodes: [node], count: 2 })).toEqual({ a: 2 });
    expect(place(service, [node], seeded(1))).toEqual({ reasons: ["1 node: host ports 8000-8002 all taken"] });
  });

  test("names each kind of refusal with the number of its nodes, the commonest first", () => {
    const nodes = [candidate("a", {}, "down"), candidate("b", {}, "down"), candidate("c", {}, "draining")];
    expect(place(request(), nodes, seeded(1))).toEqual({ reasons: ["2 nodes: down", "1 node: draining"] });
  });

  test("a pinned slot waits for its node and says why", () => {
    const nodes = [candidate("a"), candidate("b", {}, "down")];
    const pinned = { node_id: "b", reason: "the data of slot 1 are on node b" };
    expect(place(request(spec(), { pinned }), nodes, seeded(1))).toEqual({
      reasons: ["the data of slot 1 are on node b; 1 node: down"],
    });
  });

  test("keeps a job's containers on a node within the job's network", () => {
    const nodes = [candidate("a", { cpus: 100 })];
    expect(spread(request(), { nodes, count: MAX_JOB_CONTAINERS + 5 })).toEqual({ a: MAX_JOB_CONTAINERS });
  });

  test("says that a cluster without nodes has none", () => {
    expect(place(request(), [], seeded(1))).toEqual({ reasons: ["the cluster has no nodes"] });
  });
});

describe("rules about nodes", () => {
  const node: NodeFacts = {
    node_id: "id-1",
    node_name: "Alpha",
    role: "standby",
    platform: { os: "linux", arch: "amd64" },
    labels: new Map([
      ["zone", "EU"],
      ["__proto__", "x"],
    ]),
    volumes: new Set(["have", "job_data"]),
    networks: new Set(["bridge", "have"]),
    apiVersion: "1.41",
  };
  const cases: [key: string, operator: "==" | "!=", value: string, holds: boolean][] = [
    ["node.id", "==", "id-1", true],
    ["node.id", "!=", "id-1", false],
    ["node.name", "==", "alpha", true],
    ["node.name", "==", "beta", false],
    ["node.role", "==", "manager", true],
    ["node.role", "==", "standby", true],
    ["node.role", "==", "worker", false],
    ["node.role", "!=", "worker", true],
    ["node.platform.os", "==", "linux", true],
    ["node.platform.arch", "==", "x86_64", true],
    ["node.platform.arch", "==", "aarch64", false],
    ["node.labels.zone", "==", "eu", true],
    ["node.labels.zone", "!=", "us", true],
    ["node.labels.none", "==", "a", false],
    ["node.labels.none", "!=", "a", true],
    ["node.labels.__proto__", "==", "x", true],
  ];
  test.each(cases)("%s %s %s: %s", (key, operator, value, holds) => {
    expect(matches([{ key, operator, value }], node)).toBe(holds);
    const unmet = unmetRule({ job_id: "job", spec: spec(), constraints: [{ key, operator, value }] }, node);
    expect(unmet).toBe(holds ? undefined : `does not match ${key} ${operator} ${value}`);
  });

  test.each<[string | undefined, string | undefined]>([
    [undefined, undefined],
    ["linux/amd64", undefined],
    ["linux/386", undefined],
    ["linux", undefined],
    ["linux/arm64", "runs linux/amd64, not linux/arm64"],
    ["windows", "runs linux/amd64, not windows"],
  ])("platform %s on linux/amd64: %s", (platform, unmet) => {
    const asked = spec(platform === undefined ? {} : { platform });
    expect(unmetRule({ job_id: "job", spec: asked, constraints: [] }, node)).toBe(unmet);
    const { platform: _, ...unknown } = node;
    expect(unmetRule({ job_id: "job", spec: asked, constraints: [] }, unknown)).toBeUndefined();
  });

  const external = (name: string) =>
    spec({
      mounts: [
        {
          type: "volume",
          volume: { key: name, name, external: true, driver_opts: [], labels: [] },
          target: "/d",
          read_only: false,
          nocopy: false,
          long: false,
        },
      ],
    });
  test.each([
    ["have", node.volumes, undefined],
    ["lack", node.volumes, "no external volume lack (docker volume create lack)"],
    ["lack", undefined, undefined],
  ])("external volume %s", (name, volumes, expected) => {
    expect(unmetRule({ job_id: "job", spec: external(name), constraints: [] }, { ...node, volumes })).toBe(expected);
  });

  test.each([
    ["have", node.networks, undefined],
    ["lack", node.networks, "no external network lack (docker network create lack)"],
    ["lack", undefined, undefined],
    ["0123456789abcdef".repeat(4), node.networks, undefined],
  ])("external network %s", (name, networks, expected) => {
    const network = { key: "n", name, external: true, driver_opts: [], labels: [] };
    const asked = { job_id: "job", spec: spec({ networks: [{ network, aliases: [] }] }), constraints: [] };
    expect(unmetRule(asked, { ...node, networks })).toBe(expected);
    const own = spec({ networks: [{ network: { ...network, external: false }, aliases: [] }] });
    expect(unmetRule({ ...asked, spec: own }, { ...node, networks })).toBeUndefined();
  });

  const place1 = { network: { key: "a", external: false, driver_opts: [], labels: [] }, aliases: [] };
  const place2 = { network: { key: "b", external: false, driver_opts: [], labels: [] }, aliases: [] };
  const mounted = { target: "/d", read_only: true, nocopy: false, long: true };
  const NEEDS: [key: string, since: string, spec: Partial<ServiceSpec>, without: Partial<ServiceSpec>][] = [
    ["gw_priority", "1.48", { networks: [{ ...place1, gw_priority: 1 }] }, { networks: [place1] }],
    [
      "interface_name",
      "1.48",
      { networks: [{ ...place1, driver_opts: [[IFNAME, "lan0"]] }] },
      { networks: [{ ...place1, driver_opts: [["com.example.x", "lan0"]] }] },
    ],
    [
      "enable_ipv4: false",
      "1.48",
      { networks: [{ ...place1, network: { ...place1.network, enable_ipv4: false } }] },
      { networks: [place1] },
    ],
    [
      "mac_address on a further network",
      "1.54",
      { networks: [place1, { ...place2, mac_address: "02:42:ac:11:00:02" }] },
      { networks: [place1, { ...place2, mac_address: "02:42:ac:11:00:02", priority: 1 }] },
    ],
    [
      "volume.subpath",
      "1.45",
      { mounts: [{ type: "volume", ...mounted, subpath: "a" }] },
      { mounts: [{ type: "volume", ...mounted }] },
    ],
    [
      "bind.recursive",
      "1.44",
      {
        mounts: [
          {
            type: "bind",
            source: "/a",
            target: "/b",
            read_only: true,
            create_host_path: true,
            recursive: "writable",
          },
        ],
      },
      { mounts: [{ type: "bind", source: "/a", target: "/b", read_only: true, create_host_path: true }] },
    ],
  ];
  test.each(NEEDS)("%s needs an Engine with API %s", (key, since, asked, without) => {
    const [major, minor] = since.split(".").map(Number);
    const verdict = (apiVersion: string, more: Partial<ServiceSpec>) =>
      unmetRule({ job_id: "job", spec: spec(more), constraints: [] }, { ...node, apiVersion });
    const before = `${major}.${minor! - 1}`;
    expect(verdict(before, asked)).toBe(`Docker is too old for ${key} (API ${since}, the node's is ${before})`);
    expect(verdict(since, asked)).toBeUndefined();
    expect(verdict("1.41", without)).toBeUndefined();
  });

  test("credential_spec is for Windows", () => {
    const asked = {
      job_id: "job",
      spec: spec({ security_opt: ["credentialspec=file://a.json"] }),
      constraints: [],
    };
    expect(unmetRule(asked, node)).toBe("runs linux, and credential_spec is for Windows");
    expect(unmetRule(asked, { ...node, platform: { os: "windows", arch: "amd64" } })).toBeUndefined();
  });

  test.each([
    ["1.41", "Docker is too old for annotations (API 1.43, the node's is 1.41)"],
    ["1.9", "Docker is too old for annotations (API 1.43, the node's is 1.9)"],
    ["1.43", undefined],
    ["1.51", undefined],
    ["2.0", undefined],
    [undefined, undefined],
  ])("annotations on an Engine with API %s", (apiVersion, expected) => {
    const asked = { job_id: "job", spec: spec({ annotations: [["a", "b"]] }), constraints: [] };
    expect(unmetRule(asked, { ...node, apiVersion })).toBe(expected);
    expect(unmetRule({ ...asked, spec: spec() }, { ...node, apiVersion })).toBeUndefined();
  });

  test.each([
    ["no tmpfs at /run", "has no place for secrets (no tmpfs at /run)"],
    [undefined, undefined],
  ])("a service with secrets on a node where %s", (noSecrets, expected) => {
    const secret = { type: "secret", name: "pw", secret_id: "i", target: "/pw", read_only: true, mode: 0o444 } as const;
    const asked = { job_id: "job", spec: spec({ mounts: [secret] }), constraints: [] };
    expect(unmetRule(asked, { ...node, noSecrets })).toBe(expected);
    expect(unmetRule({ ...asked, spec: spec() }, { ...node, noSecrets })).toBeUndefined();
  });

  test("keep a replica away, and say so once for all nodes that they exclude", () => {
    const constraints = [{ key: "node.name", operator: "!=" as const, value: "a" }];
    const asked = request(spec(), { rules: rules({ constraints }) });
    expect(spread(asked, { nodes: [candidate("a"), candidate("b")], count: 3 })).toEqual({ b: 3 });
    const never = request(spec(), { rules: rules({ constraints: [{ key: "node.id", operator: "==", value: "z" }] }) });
    expect(place(never, [candidate("a"), candidate("b")], seeded(1))).toEqual({
      reasons: ["2 nodes: does not match node.id == z"],
    });
  });

  test("max_replicas_per_node", () => {
    const asked = request(spec(), { rules: rules({ max_per_node: 2 }) });
    const nodes = [candidate("a"), candidate("b", { cpus: 64 })];
    expect(spread(asked, { nodes, count: 5 })).toEqual({ a: 2, b: 2 });
    expect(place(asked, nodes, seeded(1))).toEqual({ reasons: ["2 nodes: has max_replicas_per_node (2)"] });
  });

  test("spread goes evenly over zones whatever they have free, then over racks, then by what is free", () => {
    const at = (name: string, labels: Record<string, string>, cpus = 2) => ({
      ...candidate(name, { cpus }),
      labels: new Map(Object.entries(labels)),
    });
    const nodes = [
      at("a", { zone: "1", rack: "1" }, 64),
      at("b", { zone: "1", rack: "1" }, 64),
      at("c", { zone: "1", rack: "2" }),
      at("d", { zone: "2", rack: "1" }),
      at("e", {}),
    ];
    const one = request(spec(), { rules: rules({ spread: ["zone"] }) });
    const zones = spread(one, { nodes, count: 12 });
    expect([(zones["a"] ?? 0) + (zones["b"] ?? 0) + (zones["c"] ?? 0), zones["d"], zones["e"]]).toEqual([4, 4, 4]);
    const two = request(spec(), { rules: rules({ spread: ["zone", "rack"] }) });
    const racks = spread(two, { nodes, count: 12 });
    expect(racks).toMatchObject({ a: 1, b: 1, c: 2, d: 4, e: 4 });
  });
});

describe("chooseRemovals()", () => {
  test("takes from the group with the most first, where replicas are spread", () => {
    const zone = (name: string, value: string) => ({ ...candidate(name), labels: new Map([["zone", value]]) });
    const candidates = [zone("a", "1"), zone("b", "1"), zone("c", "2")];
    const replicas = ["a", "b", "a", "c", "c"].map((node_id, i) => ({ slot: i + 1, node_id, created_at: i }));
    const own = new Map([
      ["a", 2],
      ["b", 1],
      ["c", 2],
    ]);
    const asked = request(spec(), { own, rules: rules({ spread: ["zone"] }) });
    const removed = chooseRemovals(replicas, { count: 3, request: asked, candidates });
    // Zone 1 has one more; from then on the zones are even, and the fullest node goes first.
    expect(removed[0]?.node_id).toBe("a");
    expect(removed.map(({ node_id }) => node_id).toSorted()).toEqual(["a", "b", "c"]);
  });

  test("takes from the emptiest node first with binpack, from one with several before that", () => {
    const candidates = [candidate("a"), candidate("b"), candidate("c")];
    for (const [i, cpus] of [1.5, 0.5, 1].entries()) candidates[i]!.planned.cpus = cpus;
    const replicas = ["a", "b", "c", "c"].map((node_id, i) => ({ slot: i + 1, node_id, created_at: i }));
    const own = new Map([
      ["a", 1],
      ["b", 1],
      ["c", 2],
    ]);
    const asked = request(spec(), { own, strategy: "binpack" });
    const removed = chooseRemovals(replicas, { count: 3, request: asked, candidates });
    expect(removed.map(({ node_id }) => node_id)).toEqual(["c", "b", "c"]);
  });

  test("takes from the fullest node first, and there the newest", () => {
    const candidates = [candidate("a"), candidate("b")];
    const replica = (slot: number, node_id: string) => ({ slot, node_id, created_at: slot });
    const replicas = [replica(1, "a"), replica(2, "b"), replica(3, "a"), replica(4, "a")];
    const own = new Map([
      ["a", 3],
      ["b", 1],
    ]);
    const removed = chooseRemovals(replicas, { count: 3, request: request(spec(), { own }), candidates });
    expect(removed.map(({ slot }) => slot)).toEqual([4, 3, 2]);
  });
});

// ---- Properties -------------------------------------------------------------------------------------------------------

const nodeShape = fc.record({
  cpus: fc.integer({ min: 1, max: 64 }),
  usedShare: fc.double({ min: 0, max: 1, noNaN: true }),
  gibibytes: fc.integer({ min: 1, max: 256 }),
  availableShare: fc.double({ min: 0, max: 1, noNaN: true }),
  ready: fc.boolean(),
  zone: fc.constantFrom("a", "b"),
});
const serviceShape = fc.record({
  cpus: fc.option(
    fc.integer({ min: 1, max: 8 }).map((n) => n / 4),
    { nil: undefined },
  ),
  memory: fc.option(
    fc.integer({ min: 1, max: 4096 }).map((n) => n * 2 ** 20),
    { nil: undefined },
  ),
  maxPerNode: fc.option(fc.integer({ min: 1, max: 3 }), { nil: undefined }),
  zone: fc.option(fc.constantFrom("a", "b", "c"), { nil: undefined }),
  port: fc.option(fc.integer({ min: 8000, max: 8002 }), { nil: undefined }),
  strategy: fc.constantFrom("spread" as const, "binpack" as const),
  avoid: fc.constantFrom(undefined, "n0"),
  replicas: fc.integer({ min: 0, max: 20 }),
});

function build(shapes: readonly (typeof nodeShape extends fc.Arbitrary<infer T> ? T : never)[]): Candidate[] {
  return shapes.map(({ cpus, usedShare, gibibytes, availableShare, ready, zone }, i) => {
    const total_memory = gibibytes * GIB;
    const available_memory = Math.floor(total_memory * availableShare);
    const readings = { cpus, used_cpus: cpus * usedShare, total_memory, available_memory };
    const node = candidate(`n${i}`, readings, ready ? undefined : "down");
    return { ...node, labels: new Map([["zone", zone]]) };
  });
}

function run(
  shapes: Parameters<typeof build>[0],
  services: readonly (typeof serviceShape extends fc.Arbitrary<infer T> ? T : never)[],
) {
  const nodes = build(shapes);
  const random = seeded(7);
  const placed = services.flatMap(({ cpus, memory, port, replicas, maxPerNode, zone, strategy, avoid }, i) => {
    const ports =
      port === undefined
        ? []
        : [{ container_port: 80, protocol: "tcp" as const, host_ip: "", host_port: { first: port, last: port } }];
    const reservations = {
      ...(cpus === undefined ? {} : { cpus }),
      ...(memory === undefined ? {} : { memory_bytes: memory }),
    };
    const constraints = zone === undefined ? [] : [{ key: "node.labels.zone", operator: "==" as const, value: zone }];
    const asked = request(spec({ ports, reservations }), {
      job_id: `job${i}`,
      strategy,
      ...(avoid === undefined ? {} : { avoid: new Set([avoid]) }),
      rules: rules({
        constraints,
        spread: ["zone"],
        ...(maxPerNode === undefined ? {} : { max_per_node: maxPerNode }),
      }),
    });
    return Array.from({ length: replicas }, () => ({
      port,
      zone,
      maxPerNode,
      asked,
      answer: place(asked, nodes, random),
    }));
  });
  return { nodes, placed };
}

describe("every placement", () => {
  test("stays within capacity, gives a host port once, and puts nothing on a node that is not ready", () => {
    fc.assert(
      fc.property(
        fc.array(nodeShape, { maxLength: 6 }),
        fc.array(serviceShape, { maxLength: 6 }),
        (shapes, services) => {
          const { nodes, placed } = run(shapes, services);
          const ports = placed.flatMap(({ port, answer }) =>
            port !== undefined && "node_id" in answer ? [`${answer.node_id}:${port}`] : [],
          );
          expect(new Set(ports).size).toBe(ports.length);
          for (const { zone, maxPerNode, asked, answer } of placed) {
            if (!("node_id" in answer)) continue;
            const at = nodes.find(({ node_id }) => node_id === answer.node_id)?.labels.get("zone");
            if (zone !== undefined) expect(at).toBe(zone);
            if (maxPerNode !== undefined) expect(Math.max(...asked.own.values())).toBeLessThanOrEqual(maxPerNode);
          }
          for (const node of nodes) {
            expect(node.reserved.cpus).toBeLessThanOrEqual((node.resources?.cpus ?? 0) + 1e-9);
            expect(node.reserved.memory).toBeLessThanOrEqual(node.resources?.available_memory ?? 0);
            if (node.refusal !== undefined) expect(node.allocations).toBe(0);
          }
          for (const { answer } of placed) if ("reasons" in answer) expect(answer.reasons.length).toBeGreaterThan(0);
        },
      ),
    );
  });

  test("is the same for the same seed, byte for byte", () => {
    fc.assert(
      fc.property(
        fc.array(nodeShape, { maxLength: 6 }),
        fc.array(serviceShape, { maxLength: 6 }),
        (shapes, services) => {
          expect(JSON.stringify(run(shapes, services).placed)).toBe(JSON.stringify(run(shapes, services).placed));
        },
      ),
    );
  });

  test("never leaves an eligible node without a replica while another has two", () => {
    fc.assert(
      fc.property(
        fc.array(nodeShape, { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 40 }),
        (shapes, count) => {
          const nodes = build(shapes);
          const own = spread(request(), { nodes, count });
          const eligible = nodes.filter((node) => node.refusal === undefined).map((node) => own[node.node_id] ?? 0);
          if (eligible.length > 0 && Math.max(...eligible) > 1) expect(Math.min(...eligible)).toBeGreaterThan(0);
        },
      ),
    );
  });
});
