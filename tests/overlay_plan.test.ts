/** @module What the kernel should have for the cluster's network, and how it gets there: tables, and properties on a model of the kernel. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { NetworkPeer } from "../src/model_network.ts";
import {
  expectedChanges,
  OVERLAY_PORT,
  overlayAfter,
  overlayChanges,
  overlayRemoval,
  planOverlay,
} from "../src/overlay_plan.ts";
import type { ObservedOverlay, Overlay, OverlayStep } from "../src/overlay_plan.ts";
import { NAMES_PORT, parseTables } from "../src/overlay_plan_firewall.ts";
import { bareKernel, ModelKernel, NO_GUARD, verdict, type Packet } from "./overlay_model.ts";

const CIDR = "10.213.0.0/16";
const UNDERLAY = "10.77.0";

function peer(number: number, more: Partial<NetworkPeer> = {}): NetworkPeer {
  return { node_id: `n${number}`, underlay: `${UNDERLAY}.${number}`, subnets: [`10.213.${number}.0/24`], ...more };
}

function overlay(more: Partial<Overlay> = {}): Overlay {
  return {
    link: { mode: "vxlan" },
    cidr: CIDR,
    self: peer(1),
    peers: [peer(2)],
    bridges: [],
    guard: NO_GUARD,
    ...more,
  };
}

function bridge(
  network: string,
  { remote = [], slot = 1, node = 1 }: { remote?: string[]; slot?: number; node?: number } = {},
) {
  return {
    network,
    device: `br-${network}`,
    subnet: `10.213.${node}.${slot * 64}/26`,
    remote,
    guests: [],
    travellers: [],
    internal: false,
  };
}

function changes(wanted: Overlay, observed: ObservedOverlay) {
  return overlayChanges(planOverlay(wanted), observed);
}

/** The kernel once it has what `wanted` says. */
function settled(wanted: Overlay, kernel = new ModelKernel(bareKernel(`${UNDERLAY}.1`))): ModelKernel {
  kernel.run(changes(wanted, kernel.state).steps);
  return kernel;
}

/** Batches and commands as single lines; what goes to iptables-restore as its lines. */
function lines(steps: readonly OverlayStep[]): string[] {
  return steps.flatMap(({ argv, input }) => (input === undefined ? [argv.join(" ")] : input.trimEnd().split("\n")));
}

describe("planOverlay() and overlayChanges()", () => {
  test("give a bare machine the device, then its neighbour, its route and the way to its machine", () => {
    const { steps, problems, mtu } = changes(overlay(), bareKernel(`${UNDERLAY}.1`));
    expect(problems).toEqual([]);
    expect(mtu).toBe(1450);
    expect(steps.map(({ argv }) => argv[0])).toEqual(["iptables-restore", "ip", "bridge"]);
    expect(lines(steps.slice(1))).toEqual([
      `link add cvx address 0e:cf:0a:d5:01:01 mtu 1450 type vxlan id 51904 dstport ${OVERLAY_PORT} local 10.77.0.1 nolearning`,
      "link set dev cvx alias cacophony:n1 addrgenmode none",
      "addr add 10.213.1.1/32 dev cvx",
      "link set dev cvx up",
      "neigh replace 10.213.2.1 lladdr 0e:cf:0a:d5:02:01 dev cvx nud permanent",
      "route replace unreachable 10.213.0.0/16 proto 213",
      "route replace 10.213.2.0/24 via 10.213.2.1 dev cvx src 10.213.1.1 onlink proto 213",
      "fdb replace 0e:cf:0a:d5:02:01 dev cvx dst 10.77.0.2 self permanent",
    ]);
  });

  test("run nothing when all is as it should be", () => {
    const wanted = overlay({ peers: [peer(2), peer(3)], bridges: [bridge("a", { remote: ["10.213.2.64/26"] })] });
    expect(changes(wanted, settled(wanted).state).steps).toEqual([]);
  });

  test("give a node with two blocks two routes by its one address", () => {
    const kernel = settled(overlay({ peers: [peer(2, { subnets: ["10.213.2.0/24", "10.213.9.0/24"] })] }));
    expect(kernel.routesBy("10.213.2.1")).toEqual(["10.213.2.0/24", "10.213.9.0/24"]);
  });

  const settledOn = overlay({ peers: [peer(2), peer(3)], bridges: [bridge("a", { remote: ["10.213.2.64/26"] })] });
  test.each<[string, Partial<Overlay>, string[]]>([
    [
      "a node that has gone takes its route, neighbour, machine and rules with it",
      { peers: [peer(2)] },
      [
        "*filter",
        ":CACOPHONY-NODES - [0:0]",
        ":CACOPHONY-TUNNEL - [0:0]",
        "-A CACOPHONY-NODES -s 10.213.2.1/32 -j ACCEPT",
        "-A CACOPHONY-NODES -d 10.213.2.1/32 -j ACCEPT",
        "-A CACOPHONY-TUNNEL -s 10.77.0.2/32 -j ACCEPT",
        "-A CACOPHONY-TUNNEL -j DROP",
        "COMMIT",
        "neigh del 10.213.3.1 dev cvx",
        "route del unicast 10.213.3.0/24 dev cvx",
        "fdb del 0e:cf:0a:d5:03:01 dev cvx self",
      ],
    ],
    [
      "a node that comes back with another address changes its machine and the rule for it",
      { peers: [peer(2, { underlay: "10.77.0.99" }), peer(3)] },
      [
        "*filter",
        ":CACOPHONY-TUNNEL - [0:0]",
        "-A CACOPHONY-TUNNEL -s 10.77.0.99/32 -j ACCEPT",
        "-A CACOPHONY-TUNNEL -s 10.77.0.3/32 -j ACCEPT",
        "-A CACOPHONY-TUNNEL -j DROP",
        "COMMIT",
        "fdb replace 0e:cf:0a:d5:02:01 dev cvx dst 10.77.0.99 self permanent",
      ],
    ],
    [
      "one more part of a network elsewhere is one more rule in each direction",
      { bridges: [bridge("a", { remote: ["10.213.2.64/26", "10.213.3.64/26"] })] },
      [
        "*filter",
        ":CACOPHONY-I-br-a - [0:0]",
        ":CACOPHONY-O-br-a - [0:0]",
        "-A CACOPHONY-I-br-a -s 10.213.2.64/26 -j ACCEPT",
        "-A CACOPHONY-I-br-a -s 10.213.3.64/26 -j ACCEPT",
        "-A CACOPHONY-I-br-a -j CACOPHONY-NODES",
        "-A CACOPHONY-O-br-a -d 10.213.2.64/26 -j ACCEPT",
        "-A CACOPHONY-O-br-a -d 10.213.3.64/26 -j ACCEPT",
        "-A CACOPHONY-O-br-a -m conntrack --ctstate RELATED,ESTABLISHED -j CACOPHONY-NODES",
        "COMMIT",
      ],
    ],
    [
      "a network that has gone takes its chains with it",
      { bridges: [] },
      [
        "*filter",
        ":CACOPHONY-IN - [0:0]",
        ":CACOPHONY-OUT - [0:0]",
        ":CACOPHONY-DNS - [0:0]",
        ":CACOPHONY-I-br-a - [0:0]",
        ":CACOPHONY-O-br-a - [0:0]",
        "-A CACOPHONY-IN -j DROP",
        "-A CACOPHONY-OUT -j DROP",
        "-X CACOPHONY-I-br-a",
        "-X CACOPHONY-O-br-a",
        "COMMIT",
      ],
    ],
  ])("%s", (_, more, expected) => {
    const observed = settled(settledOn).state;
    expect(lines(changes({ ...settledOn, ...more }, observed).steps)).toEqual(expected);
  });

  test("make the device anew when the machine's own address changed, with all that the kernel drops with it", () => {
    const before = settled(overlay()).state;
    const observed = {
      ...before,
      addresses: [...before.addresses, { device: "eth1", address: "10.77.0.9", bits: 24, mtu: 9000 }],
    };
    const moved = changes(overlay({ self: peer(1, { underlay: "10.77.0.9" }) }), observed);
    expect(lines(moved.steps)).toContain("link delete cvx");
    expect(lines(moved.steps)).toContain(
      "route replace 10.213.2.0/24 via 10.213.2.1 dev cvx src 10.213.1.1 onlink proto 213",
    );
    expect(moved.mtu).toBe(8950);
  });

  test("follow the MTU of the network between the nodes", () => {
    const before = settled(overlay()).state;
    const observed = {
      ...before,
      addresses: before.addresses.map((one) => ({ ...one, mtu: one.device === "eth0" ? 1400 : one.mtu })),
    };
    expect(lines(changes(overlay(), observed).steps)).toEqual(["link set dev cvx mtu 1350"]);
  });

  test("take the usual MTU where the node's address is on the loopback device", () => {
    const bare = bareKernel("10.77.0.1");
    const addresses = [{ device: "lo", address: "10.77.0.1", bits: 32, mtu: 65_536 }];
    expect(changes(overlay(), { ...bare, addresses }).mtu).toBe(1450);
  });

  test("say so when the node's address is on no interface", () => {
    const { problems, mtu } = changes(overlay({ self: peer(1, { underlay: "192.0.2.7" }) }), bareKernel("10.77.0.1"));
    expect(mtu).toBeUndefined();
    expect(problems).toEqual([
      "this node's address 192.0.2.7 is on no network interface of the machine: the other nodes can't be reached by it",
    ]);
  });

  test("leave out a node without an IPv4 address, and say which", () => {
    const { steps, problems } = changes(
      overlay({ peers: [peer(2, { underlay: "fd00::2" }), peer(3)] }),
      bareKernel("10.77.0.1"),
    );
    expect(problems).toEqual(["node n2 has no IPv4 address (it gives 'fd00::2'): it is not reached"]);
    expect(lines(steps).filter((line) => line.includes("10.213.2."))).toEqual([]);
    expect(lines(steps)).toContain("-A CACOPHONY-TUNNEL -s 10.77.0.3/32 -j ACCEPT");
  });

  test("take no part of a network whose subnet is not of the node's blocks, nor its own address", () => {
    const outside = { ...bridge("lan"), subnet: "172.20.0.0/16" };
    const { steps, problems } = changes(
      overlay({ bridges: [outside, bridge("low", { slot: 0 })] }),
      bareKernel("10.77.0.1"),
    );
    expect(problems).toEqual([
      "network lan has the subnet 172.20.0.0/16 outside of this node's blocks: it ends at this node",
      "network low has the subnet 10.213.1.0/26, in which the node's own address 10.213.1.1 lies",
    ]);
    expect(lines(steps).filter((line) => line.includes("br-lan"))).toEqual([]);
  });

  test("leave a route of the machine's own in its place, and say whom it cuts off", () => {
    const bare = bareKernel("10.77.0.1");
    const lan = {
      type: "unicast",
      subnet: "10.213.2.0/25",
      device: "eth1",
      gateway: undefined,
      source: undefined,
      protocol: "static",
    };
    const wide = { ...lan, subnet: "10.0.0.0/8" };
    const { steps, problems } = changes(overlay({ peers: [peer(2), peer(3)] }), { ...bare, routes: [lan, wide] });
    expect(problems).toEqual([
      "this machine has a route 10.213.2.0/25 dev eth1 inside of another node's block 10.213.2.0/24: that node is not reached",
    ]);
    const routes = lines(steps).filter((line) => line.startsWith("route"));
    expect(routes.map((line) => /10\.213\.\d\.0\/24/.exec(line)?.[0])).toEqual([undefined, "10.213.3.0/24"]);
    const { state } = settled(overlay());
    const later = changes(overlay(), { ...state, routes: [...state.routes, lan] });
    expect(lines(later.steps)).toEqual(["route del unicast 10.213.2.0/24 dev cvx"]);
  });

  test("leave a route of the machine's own for the whole range in its place", () => {
    const bare = bareKernel("10.77.0.1");
    const vpn = {
      type: "unicast",
      subnet: CIDR,
      device: "tun0",
      gateway: undefined,
      source: undefined,
      protocol: "static",
    };
    const { steps, problems } = changes(overlay(), { ...bare, routes: [vpn] });
    expect(problems).toEqual([
      "this machine has a route 10.213.0.0/16 dev tun0 for the cluster's own range: packets for nodes that have gone may take it",
    ]);
    expect(lines(steps).filter((line) => line.startsWith("route"))).toEqual([
      "route replace 10.213.2.0/24 via 10.213.2.1 dev cvx src 10.213.1.1 onlink proto 213",
    ]);
  });

  test.each([
    [
      "cacophony:other",
      "the network device cvx is that of node other: a machine takes part in one cluster's network only, by one node; if it is a leftover, remove it: ip link delete cvx",
    ],
    ["mine", "the network device cvx was not made by this node; if it is a leftover, remove it: ip link delete cvx"],
  ])("touch nothing when the device carries the name %s", (alias, problem) => {
    const before = settled(overlay()).state;
    const links = new Map([...before.links].map(([name, link]) => [name, { ...link, alias }]));
    expect(changes(overlay({ peers: [] }), { ...before, links })).toEqual({
      steps: [],
      problems: [problem],
      refused: problem,
      mtu: undefined,
    });
    expect(overlayRemoval("n1", { ...before, links })).toEqual([]);
  });

  test("adopt a device that a killed process had no time to name", () => {
    const before = settled(overlay()).state;
    const links = new Map([...before.links].map(([name, link]) => [name, { ...link, alias: undefined }]));
    expect(lines(changes(overlay(), { ...before, links }).steps)).toEqual([
      "link set dev cvx alias cacophony:n1 addrgenmode none",
    ]);
  });

  test("let packets of the network be forwarded where the machine does not, and nothing else", () => {
    const wanted = overlay({ bridges: [bridge("a")] });
    const before = settled(wanted).state;
    const forwarding = new Map([
      ["all", false],
      ["default", false],
      ["eth0", false],
      ["br-a", false],
      ["cvx", true],
    ]);
    const repair = changes(wanted, { ...before, forwarding });
    const path = (device: string) => `/proc/sys/net/ipv4/conf/${device}/forwarding`;
    expect(repair.steps).toEqual([{ argv: ["tee", path("br-a")], input: "1\n" }]);
    const fresh = changes(wanted, { ...bareKernel("10.77.0.1"), forwarding: new Map([["default", false]]) });
    expect(fresh.steps).toContainEqual({ argv: ["tee", path("cvx")], input: "1\n" });
  });

  test("loosen a strict path filter where containers of several networks send, and nowhere else", () => {
    const travellers = [{ address: "10.213.1.130", remote: ["10.213.2.128/26"] }];
    const wanted = overlay({ bridges: [{ ...bridge("a"), travellers }, bridge("b", { slot: 2 })] });
    const before = settled(wanted).state;
    const steps = (filters: [string, string][]) => changes(wanted, { ...before, pathFilters: new Map(filters) }).steps;
    const loosened = [{ argv: ["tee", "/proc/sys/net/ipv4/conf/br-a/rp_filter"], input: "2\n" }];
    expect(steps([["all", "off"]])).toEqual([]);
    expect(steps([["all", "strict"]])).toEqual(loosened);
    expect(
      steps([
        ["br-a", "strict"],
        ["br-b", "strict"],
      ]),
    ).toEqual(loosened);
    expect(
      steps([
        ["all", "strict"],
        ["br-a", "loose"],
      ]),
    ).toEqual([]);
  });

  test("make a WireGuard device in place of the VXLAN one, with blocks as allowed addresses", () => {
    const publicKeys = new Map([
      ["n2", "two="],
      ["n3", "three="],
    ]);
    const link = { mode: "wireguard" as const, privateKey: "secret=", publicKeys };
    const wanted = overlay({
      link,
      peers: [peer(3), peer(2, { subnets: ["10.213.2.0/24", "10.213.20.0/24"] }), peer(4)],
    });
    const kernel = settled(overlay());
    const { steps, problems, mtu } = changes(wanted, kernel.state);
    expect(problems).toEqual(["node n4 has given no WireGuard key: it is not reached"]);
    expect(mtu).toBe(1440);
    expect(lines(steps.slice(1, 2))).toEqual([
      "link delete cvx",
      "link add cwg mtu 1440 type wireguard",
      "link set dev cwg alias cacophony:n1 addrgenmode none",
      "addr add 10.213.1.1/32 dev cwg",
      "link set dev cwg up",
      "route replace 10.213.2.0/24 dev cwg src 10.213.1.1 proto 213",
      "route replace 10.213.20.0/24 dev cwg src 10.213.1.1 proto 213",
      "route replace 10.213.3.0/24 dev cwg src 10.213.1.1 proto 213",
    ]);
    expect(steps[2]?.argv).toEqual(["sh", "-c", "cat | wg syncconf cwg /dev/stdin"]);
    expect(steps[2]?.input).toBe(
      `[Interface]\nPrivateKey = secret=\nListenPort = ${OVERLAY_PORT}\n\n` +
        `[Peer]\nPublicKey = three=\nEndpoint = 10.77.0.3:${OVERLAY_PORT}\nAllowedIPs = 10.213.3.0/24\n\n` +
        `[Peer]\nPublicKey = two=\nEndpoint = 10.77.0.2:${OVERLAY_PORT}\nAllowedIPs = 10.213.2.0/24, 10.213.20.0/24\n`,
    );
    expect(lines(steps)).toContain("-A CACOPHONY-TUNNEL -j ACCEPT");
  });
});

describe("the jumps to our chains", () => {
  const DOCKER = [
    "*filter",
    ":INPUT ACCEPT [0:0]",
    ":FORWARD DROP [0:0]",
    ":DOCKER-USER - [0:0]",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -j DOCKER-FORWARD",
    "-A DOCKER-USER -j RETURN",
    "COMMIT",
  ];
  const jumps = (text: string[]) =>
    lines(changes(overlay(), { ...bareKernel("10.77.0.1"), tables: parseTables(text.join("\n")) }).steps).filter(
      (line) => /^-[ID]/.test(line),
    );

  test("go into Docker's chain for users, which comes before all of Docker's own", () => {
    expect(jumps(DOCKER)).toEqual([
      "-I INPUT 1 -j CACOPHONY-INPUT",
      "-I DOCKER-USER 1 -j CACOPHONY-FORWARD",
      "-I POSTROUTING 1 -j CACOPHONY-NAT",
      "-I PREROUTING 1 -j CACOPHONY-NAMES",
      "-I OUTPUT 1 -j CACOPHONY-NAMES",
      "-I PREROUTING 1 -j CACOPHONY-RAW",
    ]);
  });

  test("go into FORWARD itself where nothing leads to Docker's chain", () => {
    expect(jumps(DOCKER.filter((line) => line !== "-A FORWARD -j DOCKER-USER"))).toContain(
      "-I FORWARD 1 -j CACOPHONY-FORWARD",
    );
  });

  test("leave FORWARD again when Docker's chain is back", () => {
    const both = DOCKER.with(4, "-A FORWARD -j DOCKER-USER\n-A FORWARD -j CACOPHONY-FORWARD");
    expect(jumps(both)).toContain("-D FORWARD -j CACOPHONY-FORWARD");
    expect(jumps(both)).toContain("-I DOCKER-USER 1 -j CACOPHONY-FORWARD");
  });

  test("come first again after Docker put the masquerading of a new network in front", () => {
    const wanted = overlay();
    const { state } = settled(wanted);
    const masquerade = "-s 10.213.1.64/26 ! -o br-a -j MASQUERADE";
    const tables = new Map(state.tables).set(
      "nat",
      new Map(state.tables.get("nat")).set("POSTROUTING", [masquerade, "-j CACOPHONY-NAT"]),
    );
    expect(lines(changes(wanted, { ...state, tables }).steps)).toEqual([
      "*nat",
      "-D POSTROUTING -j CACOPHONY-NAT",
      "-I POSTROUTING 1 -j CACOPHONY-NAT",
      "COMMIT",
    ]);
  });

  test("lead questions to the name server past whoever has port 53 of the machine", () => {
    expect(settled(overlay()).state.tables.get("nat")?.get("CACOPHONY-NAMES")).toEqual([
      "-d 10.213.1.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.213.1.1:9053",
      "-d 10.213.1.1/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 10.213.1.1:9053",
    ]);
  });

  test("are there once, whoever doubled them", () => {
    const { state } = settled(overlay());
    const tables = new Map(state.tables).set(
      "raw",
      new Map(state.tables.get("raw")).set("PREROUTING", ["-j CACOPHONY-RAW", "-j CACOPHONY-RAW"]),
    );
    const kernel = settled(overlay(), new ModelKernel({ ...state, tables }));
    expect(kernel.state.tables.get("raw")?.get("PREROUTING")).toEqual(["-j CACOPHONY-RAW"]);
  });
});

// ---- Properties ------------------------------------------------------------------------------------------------------

const NETWORKS = ["a", "b", "c"] as const;
/** Where in a node's block a network's subnet is, in 64ths. */
const SLOTS = { a: 1, b: 2, c: 3 } as const;

/** A cluster of up to four nodes: which networks are on which node, and what of it node 1 sees. */
const clusters = fc
  .record({
    nodes: fc.subarray([2, 3, 4]),
    isPlaced: fc.array(fc.boolean(), { minLength: 12, maxLength: 12 }),
    internal: fc.subarray([...NETWORKS]),
    moved: fc.boolean(),
  })
  .map(({ nodes, isPlaced, internal, moved }) => {
    const on = (node: number) => NETWORKS.filter((_, index) => isPlaced[(node - 1) * NETWORKS.length + index]);
    return overlay({
      peers: nodes.map((number) => peer(number, moved ? { underlay: `${UNDERLAY}.${number + 100}` } : {})),
      bridges: on(1).map((network) => ({
        ...bridge(network, {
          slot: SLOTS[network],
          remote: nodes
            .filter((node) => on(node).includes(network))
            .map((node) => `10.213.${node}.${SLOTS[network] * 64}/26`),
        }),
        guests: [],
        travellers: [],
        internal: internal.includes(network),
      })),
    });
  });

/** Somebody's hand in the kernel: takes away, or adds, some piece. */
const damages = fc.array(
  fc.constantFrom(
    "link delete cvx",
    "addr del 10.213.1.1/32 dev cvx",
    "addr add 10.213.1.77/32 dev cvx",
    "addr add 10.213.1.1/24 dev cvx",
    "route del unreachable 10.213.0.0/16",
    "route del unicast 10.213.2.0/24 dev cvx",
    "route replace 10.213.77.0/24 via 10.213.77.1 dev cvx src 10.213.1.1 onlink proto 213",
    "neigh del 10.213.2.1 dev cvx",
    "neigh replace 10.213.2.1 lladdr 0e:cf:00:00:00:00 dev cvx nud permanent",
    "fdb del 0e:cf:0a:d5:02:01 dev cvx self",
    "fdb replace 0e:cf:0a:d5:02:01 dev cvx dst 192.0.2.1 self permanent",
    "fdb append 0e:cf:0a:d5:02:01 dev cvx dst 192.0.2.2 self permanent",
    "fdb append 00:00:00:00:00:00 dev cvx dst 192.0.2.2 self permanent",
    "*filter\n:CACOPHONY-OUT - [0:0]\nCOMMIT",
    "*filter\n:CACOPHONY-NODES - [0:0]\n-A CACOPHONY-NODES -j ACCEPT\nCOMMIT",
    "*filter\n-D INPUT -j CACOPHONY-INPUT\nCOMMIT",
    "*filter\n-I INPUT 1 -j ACCEPT\nCOMMIT",
    "*raw\n-D PREROUTING -j CACOPHONY-RAW\nCOMMIT",
    "*nat\n-I POSTROUTING 1 -s 10.213.1.64/26 -j MASQUERADE\nCOMMIT",
  ),
  { maxLength: 5 },
);

describe("the model of a kernel", () => {
  test("reaches what is wanted in one go, from whatever was there before and whoever did damage in between", () => {
    fc.assert(
      fc.property(clusters, clusters, damages, (before, wanted, damage) => {
        const kernel = settled(before);
        for (const one of damage) kernel.damage(one);
        kernel.run(changes(wanted, kernel.state).steps);
        expect(changes(wanted, kernel.state).steps).toEqual([]);
        // What one step left over would show in the next cluster: all must be as on a machine that was bare.
        expect(kernel.ours()).toEqual(settled(wanted).ours());
      }),
    );
  });

  test("reaches the same without a look, as networks come and go, wherever that is tried", () => {
    const changed = fc.record({ cluster: clusters, isMoved: seldom(fc.constant(true)) });
    let tried = 0;
    fc.assert(
      fc.property(clusters, fc.array(changed, { minLength: 1, maxLength: 4 }), (first, others) => {
        const kernel = settled(first);
        let last: ObservedOverlay | undefined = kernel.state;
        let before = first;
        for (const { cluster, isMoved } of others) {
          const wanted = isMoved ? cluster : { ...cluster, peers: before.peers };
          const devices = new Set(before.bridges.map(({ device }) => device));
          for (const { device, subnet, internal } of wanted.bridges)
            if (!devices.has(device) && !internal)
              kernel.damage(`*nat\n-I POSTROUTING 1 -s ${subnet} ! -o ${device} -j MASQUERADE\nCOMMIT`);
          const plan = planOverlay(wanted);
          const expected: ReturnType<typeof overlayChanges> | undefined = last && expectedChanges(plan, last);
          if (expected) tried++;
          const observed: ObservedOverlay = expected && last ? last : kernel.state;
          const { steps } = expected ?? overlayChanges(plan, observed);
          kernel.run(steps);
          expect(changes(wanted, kernel.state).steps).toEqual([]);
          last = overlayAfter(plan, { steps, observed });
          before = wanted;
        }
      }),
    );
    expect(tried).toBeGreaterThan(20);
  });

  test("is looked at where a new bridge may need more than rules", () => {
    const { state } = settled(overlay());
    const travellers = [{ address: "10.213.1.130", remote: ["10.213.2.64/26"] }];
    const plain = planOverlay(overlay({ bridges: [bridge("a")] }));
    const crossed = planOverlay(overlay({ bridges: [{ ...bridge("a"), travellers }] }));
    const closed = { ...state, forwarding: new Map([...state.forwarding, ["default", false]]) };
    const moved = planOverlay(overlay({ peers: [peer(2), peer(3)], bridges: [bridge("a")] }));
    // It was there under that name, has gone, and is back.
    const before = {
      ...state,
      forwarding: new Map([...state.forwarding, ["br-a", true]]),
      pathFilters: new Map([["br-a", "loose"]]),
    };
    const elsewhere = planOverlay(overlay({ self: { ...peer(1), underlay: "10.77.0.99" } }));
    expect(expectedChanges(plain, state)?.steps.map(({ argv }) => argv[0])).toEqual(["iptables-restore"]);
    for (const [plan, last] of [
      [crossed, state],
      [crossed, before],
      [elsewhere, state],
      [plain, closed],
      [moved, state],
    ] as const)
      expect(expectedChanges(plan, last)).toBeUndefined();
  });

  test("has the jump moved for a network that took the place of one with the same bridge", () => {
    const { state } = settled(overlay({ bridges: [bridge("a")] }));
    const plan = planOverlay(overlay({ bridges: [bridge("a", { slot: 2 })] }));
    expect(lines(expectedChanges(plan, state)?.steps ?? [])).toContain("-I POSTROUTING 1 -j CACOPHONY-NAT");
  });

  test("has nothing of ours left after the removal", () => {
    fc.assert(
      fc.property(clusters, damages, (wanted, damage) => {
        const kernel = settled(wanted);
        for (const one of damage) kernel.damage(one);
        kernel.run(overlayRemoval("n1", kernel.state));
        expect(kernel.ours()).toEqual([]);
        expect(overlayRemoval("n1", kernel.state)).toEqual([]);
      }),
    );
  });

  test("comes to the same whatever order the nodes are told in", () => {
    fc.assert(
      fc.property(clusters, fc.infiniteStream(fc.nat()), (wanted, order) => {
        const shuffled = { ...wanted, peers: wanted.peers.toSorted(() => ((order.next().value ?? 0) % 2 ? 1 : -1)) };
        expect(changes(shuffled, settled(wanted).state).steps).toEqual([]);
      }),
    );
  });
});

function seldom<T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.oneof({ weight: 3, arbitrary: fc.constant(undefined) }, arbitrary);
}

/** A packet between a bridge and the device; most often its ends are in that network, on this node and another. */
const crossings = fc
  .record({
    network: fc.constantFrom(...NETWORKS),
    isIn: fc.boolean(),
    isReply: fc.boolean(),
    near: seldom(fc.nat({ max: 3 })),
    far: seldom(fc.nat({ max: 3 })),
    nodes: fc.constantFrom([1, 2], [1, 3], [1, 4], [1, 4], [1, 1], [2, 3]),
    stranger: seldom(fc.constantFrom("192.0.2.1", "10.77.0.3", "10.213.200.5")),
  })
  .map(({ network, isIn, isReply, nodes, stranger, ...slots }) => {
    const address = (node = 0, slot: number) => `10.213.${node}.${slot === 0 ? 1 : slot * 64 + 5}`;
    const near = address(nodes[0], slots.near ?? SLOTS[network]);
    const far = stranger ?? address(nodes[1], slots.far ?? SLOTS[network]);
    const way = isIn
      ? { source: far, target: near, in: "cvx", out: `br-${network}` }
      : { source: near, target: far, in: `br-${network}`, out: "cvx" };
    const packet: Packet = { ...way, state: isReply ? "ESTABLISHED" : "NEW" };
    return { network, isIn, isReply, near, far, packet };
  });

describe("the rules", () => {
  test("let a packet pass between the device and a bridge exactly if both ends are of one network, or one is a node", () => {
    const seen = { ACCEPT: 0, DROP: 0 };
    fc.assert(
      fc.property(clusters, crossings, (wanted, { network, isIn, isReply, near, far, packet }) => {
        const here = wanted.bridges.find((one) => one.network === network);
        const isHere = here !== undefined && inSubnet(here.subnet, near);
        const isThere = here?.remote.some((subnet) => inSubnet(subnet, far)) ?? false;
        const isNode = wanted.peers.some(({ subnets }) => far === subnets[0]?.replace(/0\/24$/, "1"));
        const expected = isHere && (isThere || (isNode && (isIn || isReply))) ? "ACCEPT" : "DROP";
        seen[expected]++;
        expect(through(wanted, packet)).toBe(expected);
      }),
      { numRuns: 2_000 },
    );
    // The property says little unless both answers came up often.
    expect(Math.min(seen.ACCEPT, seen.DROP)).toBeGreaterThan(50);
  });

  const wanted = overlay({
    peers: [peer(2), peer(3)],
    bridges: [
      // The container .70 is on c, too, and 10.213.2.130 of another network is on a, too.
      {
        ...bridge("a", { remote: ["10.213.2.64/26"] }),
        guests: ["10.213.2.130"],
        travellers: [
          { address: "10.213.1.70", remote: ["10.213.2.192/26"] },
          { address: "10.213.1.194", remote: ["10.213.2.192/26"] },
        ],
      },
      { ...bridge("c", { slot: 3, remote: ["10.213.2.192/26"] }), internal: true },
    ],
  });
  test.each<[string, Packet, string]>([
    [
      "a container's packet with a false source",
      { source: "10.213.1.200", target: "10.213.2.66", in: "br-a", out: "cvx" },
      "DROP",
    ],
    [
      "a container's packet to another node",
      { source: "10.213.1.66", target: "10.213.2.1", in: "br-a", out: "cvx" },
      "DROP",
    ],
    [
      "a packet from a container on two networks to one of its other network",
      { source: "10.213.1.70", target: "10.213.2.194", in: "br-a", out: "cvx" },
      "ACCEPT",
    ],
    ["its answer", { source: "10.213.2.194", target: "10.213.1.70", in: "cvx", out: "br-a" }, "ACCEPT"],
    [
      "its answer to who asked it by its address on the other network",
      { source: "10.213.1.194", target: "10.213.2.194", in: "br-a", out: "cvx" },
      "ACCEPT",
    ],
    [
      "what it sends with that address to the network that it leaves by",
      { source: "10.213.1.194", target: "10.213.2.66", in: "br-a", out: "cvx" },
      "ACCEPT",
    ],
    [
      "the same of its neighbour, which is on one network only",
      { source: "10.213.1.71", target: "10.213.2.194", in: "br-a", out: "cvx" },
      "DROP",
    ],
    [
      "a packet from another node's container that is on this network, too, with its address elsewhere",
      { source: "10.213.2.130", target: "10.213.1.66", in: "cvx", out: "br-a" },
      "ACCEPT",
    ],
    [
      "the same of its neighbour there",
      { source: "10.213.2.131", target: "10.213.1.66", in: "cvx", out: "br-a" },
      "DROP",
    ],
    [
      "a packet for a network that is not here",
      { source: "10.213.2.66", target: "10.213.1.130", in: "cvx", out: "eth0" },
      "DROP",
    ],
    [
      "a node's packet through this machine to elsewhere",
      { source: "10.213.2.1", target: "192.0.2.1", in: "cvx", out: "eth0" },
      "DROP",
    ],
    [
      "a packet that has nothing to do with the network",
      { source: "172.17.0.2", target: "192.0.2.1", in: "docker0", out: "eth0" },
      "none",
    ],
    [
      "a network's packet to the world",
      { source: "10.213.1.66", target: "192.0.2.1", in: "br-a", out: "eth0" },
      "none",
    ],
    [
      "an internal network's packet to the world",
      { source: "10.213.1.200", target: "192.0.2.1", in: "br-c", out: "eth0" },
      "DROP",
    ],
    [
      "the world's packet to an internal network",
      { source: "192.0.2.1", target: "10.213.1.200", in: "eth0", out: "br-c" },
      "DROP",
    ],
    [
      "a packet inside an internal network",
      { source: "10.213.1.200", target: "10.213.1.201", in: "br-c", out: "br-c" },
      "none",
    ],
    [
      "an internal network's packet to its other part",
      { source: "10.213.1.200", target: "10.213.2.200", in: "br-c", out: "cvx" },
      "ACCEPT",
    ],
  ])("decide on %s when it is forwarded", (_, packet, expected) => {
    expect(through(wanted, packet)).toBe(expected);
  });

  const tunnel = { protocol: "udp", port: OVERLAY_PORT };
  test.each<[string, Packet, string]>([
    ["a tunnel packet of a known node", { source: "10.77.0.2", target: "10.77.0.1", in: "eth0", ...tunnel }, "ACCEPT"],
    ["a tunnel packet of a stranger", { source: "10.77.0.66", target: "10.77.0.1", in: "eth0", ...tunnel }, "DROP"],
    [
      "a node's packet to this one",
      { source: "10.213.2.1", target: "10.213.1.1", in: "cvx", protocol: "tcp", port: 7000 },
      "ACCEPT",
    ],
    [
      "a far container's packet to this node",
      { source: "10.213.2.66", target: "10.213.1.1", in: "cvx", protocol: "tcp", port: 7000 },
      "DROP",
    ],
    [
      "a far container's answer to this node",
      { source: "10.213.2.66", target: "10.213.1.1", in: "cvx", state: "ESTABLISHED" },
      "ACCEPT",
    ],
    [
      "a node's packet to another address of the machine",
      { source: "10.213.2.1", target: "10.77.0.1", in: "cvx", protocol: "tcp", port: 22 },
      "DROP",
    ],
    [
      "a container's question for a name",
      { source: "10.213.1.66", target: "10.213.1.1", in: "br-a", protocol: "udp", port: NAMES_PORT },
      "ACCEPT",
    ],
    [
      "a stranger's question for a name",
      { source: "192.0.2.1", target: "10.213.1.1", in: "eth0", protocol: "udp", port: NAMES_PORT },
      "none",
    ],
    [
      "anything else to the machine",
      { source: "192.0.2.1", target: "10.77.0.1", in: "eth0", protocol: "tcp", port: 22 },
      "none",
    ],
  ])("decide on %s when it is for the machine", (_, packet, expected) => {
    expect(verdict(settled(wanted).state.tables, { table: "filter", chain: "INPUT", packet })).toBe(expected);
  });

  test.each<[string, Packet, string]>([
    ["from this node's own block", { source: "10.213.1.66", target: "10.213.1.67", in: "cvx" }, "DROP"],
    ["from outside of the range", { source: "192.0.2.1", target: "10.213.1.67", in: "cvx" }, "DROP"],
    ["from another node's block", { source: "10.213.2.66", target: "10.213.1.67", in: "cvx" }, "ACCEPT"],
    ["that did not come by the device", { source: "192.0.2.1", target: "10.213.1.67", in: "eth0" }, "none"],
  ])("decide before all else on a packet %s", (_, packet, expected) => {
    expect(verdict(settled(wanted).state.tables, { table: "raw", chain: "PREROUTING", packet })).toBe(expected);
  });
});

/** What becomes of a packet that is to be forwarded. */
function through(wanted: Overlay, packet: Packet): string {
  return verdict(settled(wanted).state.tables, { table: "filter", chain: "FORWARD", packet });
}

function inSubnet(subnet: string, address: string): boolean {
  const [base = "", start = ""] = subnet.split(/\.(?=\d+\/26$)/);
  const offset = Number(address.slice(base.length + 1)) - Number.parseInt(start, 10);
  return address.startsWith(`${base}.`) && offset >= 0 && offset < 64;
}
