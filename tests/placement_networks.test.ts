/** @module Room for networks of jobs: which take a subnet, what a node has left, and what placement makes of that (point 9). */
import { describe, expect, test } from "bun:test";
import { MAX_BLOCKS } from "../src/model_bounds.ts";
import type { NodeNetwork } from "../src/model_network.ts";
import type { NetworkSpec, ServiceSpec } from "../src/model_spec.ts";
import { place } from "../src/placement.ts";
import { lackOfNetworks, poolNetworks, roomOf, takeNetworks } from "../src/placement_networks.ts";
import { candidate, rules, seeded, spec } from "./cluster_fixture.ts";

function network(key: string, more: Partial<NetworkSpec> = {}): NetworkSpec {
  return { key, external: false, driver_opts: [], labels: [], ...more };
}

/** A service on these networks. */
function on(...networks: NetworkSpec[]): ServiceSpec {
  return spec({ networks: networks.map((one) => ({ network: one, aliases: [] })) });
}

const config = (subnet?: string) => ({ config: [{ ...(subnet && { subnet }), aux_addresses: [] }], options: [] });

test.each<[string, ServiceSpec, string[]]>([
  ["one that names none", spec(), ["shop_default"]],
  ["one on the machine's network", spec({ network_mode: "host" }), []],
  ["one without", spec({ network_mode: "none" }), []],
  ["two, of which one has a name", on(network("a"), network("b", { name: "bee" })), ["shop_a", "bee"]],
  ["an external one", on(network("a", { external: true, name: "a" })), []],
  ["one with a subnet of its own", on(network("a", { ipam: config("10.1.0.0/24") })), []],
  ["one with an IPv6 subnet", on(network("a", { ipam: config("fd00::/64") })), ["shop_a"]],
  ["one without IPv4", on(network("a", { enable_ipv4: false })), []],
  ["one of an address plugin", on(network("a", { ipam: { driver: "dhcp", ...config() } })), []],
])("poolNetworks() of a service with %s", (_, service, names) => {
  expect(poolNetworks(service, "shop")).toEqual(names);
});

const RANGE = "10.213.0.0/22";
const TOLD: NodeNetwork = { mode: "vxlan", networks: [], blocks: 1, full: false };

type Node = { subnets?: string[]; told?: NodeNetwork | undefined; networks?: string[]; promised?: string[] };

function roomWith({ subnets = ["10.213.0.0/24"], told = TOLD, networks = [], promised = [] }: Node, left = 0) {
  const free = { range: RANGE, left };
  const facts = { subnets, told, networks: new Set(networks), promised: new Set(promised) };
  return roomOf(facts, { mode: "vxlan", free });
}

/** How many jobs with a network of their own go there. */
function jobsOn(node: Node, left = 0): number {
  const room = roomWith(node, left);
  if (!room) return Infinity;
  let jobs = 0;
  while (jobs < 2_000 && lackOfNetworks([spec()], `job-${jobs}`, room) === undefined)
    takeNetworks(spec(), `job-${jobs++}`, room);
  return jobs;
}

describe("a node has room for", () => {
  const all = (count: number) =>
    Array.from({ length: count }, (_, n) => ({ network: `n${n}`, subnet: "10.213.0.64/26" }));

  test.each<[string, Node, number, number]>([
    ["three networks in its first block", {}, 0, 3],
    ["four more in each further one", { subnets: ["a", "b"], told: { ...TOLD, blocks: 2 } }, 0, 7],
    ["four more in each that it may get", {}, 2, 11],
    ["what it says", { told: { ...TOLD, free: 1 } }, 0, 1],
    ["what it says and a block that it has not heard of", { subnets: ["a", "b"], told: { ...TOLD, free: 1 } }, 0, 5],
    ["what an earlier version has not used yet", { told: { ...TOLD, networks: all(2) } }, 0, 1],
    ["none, where it says so", { told: { ...TOLD, full: true, free: 0 } }, 0, 0],
    ["what is promised and one less", { told: { ...TOLD, free: 2 }, promised: ["x"] }, 0, 1],
    ["what is promised and there already", { told: { ...TOLD, free: 2 }, promised: ["x"], networks: ["x"] }, 0, 2],
    ["none, where more is promised than there is", { told: { ...TOLD, free: 0 }, promised: ["x", "y"] }, 0, 0],
    ["what a block leaves of what is promised", { told: { ...TOLD, free: 0 }, promised: ["x", "y"] }, 1, 2],
    ["none without a block", { subnets: [], told: { ...TOLD, mode: "none", blocks: 0 } }, 0, 0],
    ["three without a block where there is one", { subnets: [], told: undefined }, 1, 3],
    ["any number, where it does without the cluster's network", { told: { ...TOLD, mode: "none" } }, 0, Infinity],
  ])("%s", (_, node, left, jobs) => expect(jobsOn(node, left)).toBe(jobs));

  test("no more than a node's blocks, whatever the range has", () => {
    const subnets = Array.from({ length: MAX_BLOCKS }, () => "10.213.0.0/24");
    const room = roomWith({ subnets, told: { ...TOLD, blocks: MAX_BLOCKS, full: true, free: 0 } }, 1_000);
    expect(room && lackOfNetworks([spec()], "shop", room)).toBe(
      "no addresses for network shop_default: the node has 256 blocks, and gets no more; have fewer networks on each node",
    );
  });

  test("a service whose networks are there, however full it is", () => {
    const room = roomWith({ told: { ...TOLD, full: true, free: 0 }, networks: ["shop_default"] });
    expect(room && lackOfNetworks([spec(), spec()], "shop", room)).toBeUndefined();
    expect(room && lackOfNetworks([spec({ network_mode: "host" })], "other", room)).toBeUndefined();
  });
});

describe("place()", () => {
  const request = (job_id: string, service = spec()) => ({ job_id, spec: service, rules: rules(), own: new Map() });
  const nodes = (left: number, ...all: Node[]) => {
    const free = { range: RANGE, left };
    return all.map(({ subnets = ["10.213.0.0/24"], told = TOLD, networks = [], promised = [] }, n) => {
      const facts = { subnets, told, networks: new Set(networks), promised: new Set(promised) };
      return { ...candidate(`n${n + 1}`), networkRoom: roomOf(facts, { mode: "vxlan", free }) };
    });
  };

  test("takes a node that has the job's network where the others have no room for it, and says why else (point 9)", () => {
    const full = { told: { ...TOLD, full: true, free: 0 } };
    const candidates = nodes(
      0,
      full,
      { ...full, networks: ["shop_default"] },
      { subnets: [], told: { ...TOLD, blocks: 0 } },
    );
    const random = seeded(1);
    for (let n = 0; n < 5; n++) expect(place(request("shop"), candidates, random)).toEqual({ node_id: "n2" });
    expect(place(request("other"), candidates, random)).toEqual({
      reasons: [
        `3 nodes: no addresses for network other_default: all blocks of the cluster's range ${RANGE} are taken; ` +
          "have fewer networks, or nodes, or begin a cluster with a larger --network-cidr",
      ],
    });
    const host = place(request("other", spec({ network_mode: "host" })), candidates, random);
    expect(host).toEqual({ node_id: expect.stringMatching(/^n[13]$/) });
  });

  test("gives the last blocks of the range to one node each: what all nodes could have is there once (point 9)", () => {
    const full = { told: { ...TOLD, full: true, free: 0 } };
    const candidates = nodes(2, full, full, full);
    const placed = Array.from({ length: 12 }, (_, n) => place(request(`job-${n}`), candidates, seeded(n)));
    expect(placed.filter((one) => "node_id" in one)).toHaveLength(8);
  });

  test("wants room for the networks of all that runs beside a service (point 9)", () => {
    const beside = [{ service_name: "b", spec: on(network("b")), rules: rules() }];
    const whole = { ...request("shop", on(network("a"))), beside };
    expect(place(whole, nodes(0, { told: { ...TOLD, free: 1 } }), seeded(1))).toEqual({
      reasons: [expect.stringContaining("no addresses for network shop_a and shop_b")],
    });
    expect(place(whole, nodes(0, { told: { ...TOLD, free: 2 } }), seeded(1))).toEqual({ node_id: "n1" });
  });
});
