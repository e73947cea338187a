/**
 * @module What the kernel of a node must have for the cluster's network, worked out from what the node knows, and the
 * commands that lead there from what it has. Pure: `planOverlay`, then `overlayChanges` with what `overlay_kernel.ts` saw, or
 * `expectedChanges` with what its last call left, by `overlayAfter`;
 * the packets' rules are in `overlay_plan_firewall.ts`.
 *
 * One device leads to all other nodes: a VXLAN device with fixed entries in place of learning and flooding, or a WireGuard
 * device. Each node has an address of its own on it, and a route for each block of each other node. A VXLAN device's MAC
 * follows from that address, so that nobody has to tell it.
 *
 * The device's name and the chains' names are fixed and the device carries its node's id: a network namespace takes part in
 * one cluster's network at most, and a second node there (of this or another cluster) is refused, see `refusal`.
 */
import { isIPv4 } from "node:net";
import type { NetworkPeer } from "./model_network.ts";
import {
  changedRules,
  guardRules,
  guardRules6,
  hasBridge,
  removedRules,
  rulesAfter,
  rulesBesideDocker,
  wantedRules,
  type FirewallBridge,
  type Tables,
  type WantedRules,
} from "./overlay_plan_firewall.ts";
import { type Guard, isGuarding } from "./overlay_plan_guard.ts";
import { contains, firstAddress } from "./subnet.ts";

export type OverlayMode = "vxlan" | "wireguard";

/** The Docker bridge of one network on this node. */
export type OverlayBridge = FirewallBridge & {
  /** Its name in Docker, for messages. */
  network: string;
  /** Whether nothing but the network itself and the nodes may reach it or be reached from it. */
  internal: boolean;
};

/** What a node knows of the cluster's network. */
export type Overlay = {
  link:
    | { mode: "vxlan" }
    /** Keys as `wg` writes them; public ones by node id. */
    | { mode: "wireguard"; privateKey: string; publicKeys: ReadonlyMap<string, string> };
  /** The cluster's range. */
  cidr: string;
  self: NetworkPeer;
  /** The other nodes. */
  peers: readonly NetworkPeer[];
  bridges: readonly OverlayBridge[];
  guard: Guard;
};

/** A command; `input` goes to its standard input. */
export type OverlayStep = { argv: readonly string[]; input?: string };

/**
 * Commands in their order; what can't be had, as sentences for people; MTU of packets that fit between nodes. `refused`: the
 * problem that keeps the node out of the network.
 */
export type OverlayChanges = { steps: OverlayStep[]; problems: string[]; mtu: number | undefined; refused?: string };

/**
 * UDP port that packets between nodes come to, in both modes: the one after the API's 9000, so that a firewall has one range
 * to open. Not VXLAN's own 4789, which Docker Swarm has, nor Flannel's 8472, nor WireGuard's 51820: it works beside them.
 */
export const OVERLAY_PORT = 9001;
/** Tells VXLAN devices on one port apart; as the port is our own, any number does. */
const VXLAN_ID = 0xcac0;

export const OVERLAY_DEVICES: Record<OverlayMode, string> = { vxlan: "cvx", wireguard: "cwg" };

/** Bytes of a packet between nodes that are not the packet itself. VXLAN: 20 IPv4, 8 UDP, 8 VXLAN, 14 Ethernet. */
const OVERHEAD: Record<OverlayMode, number> = { vxlan: 50, wireguard: 60 };
/** An address on the loopback device, as routers have it, says nothing of the way that packets take. */
const LOOPBACK = "lo";
const DEFAULT_MTU = 1500;
/** Marks routes as ours (`proto`); numbers above 4 are free for anyone, and nobody in iproute2's list has this one. */
const ROUTE_PROTOCOL = "213";
/** First bytes of the MACs, a locally administered unicast address; the other four are the node's own address. */
const MAC_PREFIX = "0e:cf";
const OWNER_PREFIX = "cacophony:";

type Route = { type: "unicast" | "unreachable"; gateway: string | undefined };
type WireguardPeer = { endpoint: string; allowed: readonly string[] };
export type WireguardConfig = { port: number; privateKey: string; peers: ReadonlyMap<string, WireguardPeer> };

/** What the kernel should have. */
export type OverlayPlan = {
  mode: OverlayMode;
  device: string;
  /** Alias of the device. */
  owner: string;
  underlay: string;
  address: string;
  routes: ReadonlyMap<string, Route>;
  /** MAC by address of the other nodes, and machine by MAC: VXLAN only. */
  neighbours: ReadonlyMap<string, string>;
  machines: ReadonlyMap<string, string>;
  wireguard: WireguardConfig | undefined;
  bridges: readonly string[];
  /** Bridges by which containers send with addresses that they have on other bridges. */
  crossed: readonly string[];
  rules: WantedRules;
  rules6: WantedRules;
  problems: readonly string[];
};

export type ObservedLink = {
  kind: OverlayMode;
  up: boolean;
  mtu: number;
  mac: string | undefined;
  alias: string | undefined;
  vxlan: { id: number; port: number; local: string | undefined; learning: boolean } | undefined;
};

/** What the kernel has. Neighbours, machines and `wireguard` are those of our devices. */
export type ObservedOverlay = {
  links: ReadonlyMap<string, ObservedLink>;
  addresses: readonly { device: string; address: string; bits: number; mtu: number }[];
  routes: readonly {
    type: string;
    subnet: string;
    device: string | undefined;
    gateway: string | undefined;
    source: string | undefined;
    protocol: string;
  }[];
  neighbours: ReadonlyMap<string, string>;
  machines: ReadonlyMap<string, readonly string[]>;
  wireguard: WireguardConfig | undefined;
  /** Whether packets that come in by a device are forwarded, for each device of the machine. */
  forwarding: ReadonlyMap<string, boolean>;
  /** Reverse path filtering of each device, as `off`, `strict` or `loose`. */
  pathFilters: ReadonlyMap<string, string>;
  tables: Tables;
  /** Rules for IPv6; undefined: the machine has no `ip6tables` that works. */
  tables6: Tables | undefined;
};

// ---- What should be --------------------------------------------------------------------------------------------------

/** Works out what the kernel should have. A node that can't be reached is left out, with a sentence in `problems`. */
export function planOverlay({ link, cidr, self, peers, bridges, guard }: Overlay): OverlayPlan {
  const { mode } = link;
  const device = OVERLAY_DEVICES[mode];
  const address = ownAddress(self);
  const { known, problems } = reachable(peers, {
    self,
    publicKeys: link.mode === "wireguard" ? link.publicKeys : undefined,
  });
  const inside = bridges
    .filter(({ subnet }) => self.subnets.some((block) => contains(block, subnet)))
    .map((bridge) => ({
      ...bridge,
      remote: bridge.remote.toSorted(),
      guests: bridge.guests.toSorted(),
      travellers: bridge.travellers.toSorted((one, other) => (JSON.stringify(one) < JSON.stringify(other) ? -1 : 1)),
    }))
    .toSorted((one, other) => (one.device < other.device ? -1 : 1));
  const routes = known.flatMap(({ address: gateway, subnets }) =>
    subnets.map((subnet): [string, Route] => [
      subnet,
      { type: "unicast", gateway: mode === "vxlan" ? gateway : undefined },
    ]),
  );
  return {
    mode,
    device,
    owner: OWNER_PREFIX + self.node_id,
    underlay: self.underlay,
    address,
    // What has no node must not leave by the default route, where the range may be somebody else's.
    routes: new Map([[cidr, { type: "unreachable", gateway: undefined }], ...routes]),
    neighbours: new Map(mode === "vxlan" ? known.map((peer) => [peer.address, macOf(peer.address)]) : []),
    machines: new Map(mode === "vxlan" ? known.map((peer) => [macOf(peer.address), peer.underlay]) : []),
    wireguard: link.mode === "wireguard" ? wireguardConfig(link, known) : undefined,
    bridges: inside.map((bridge) => bridge.device),
    crossed: inside.flatMap(({ device: bridge, subnet, travellers }) =>
      travellers.some(({ address: from }) => !contains(subnet, from)) ? [bridge] : [],
    ),
    rules: wantedRules({
      device,
      cidr,
      own: address,
      ownBlocks: self.subnets,
      tunnel: { port: OVERLAY_PORT, sources: mode === "vxlan" ? known.map(({ underlay }) => underlay) : undefined },
      nodes: known.map((peer) => peer.address),
      bridges: inside,
      closed: bridges
        .filter(({ internal }) => internal)
        .map((bridge) => bridge.device)
        .toSorted(),
      guard: { ...guard, nodes: [...guard.nodes, ...overlayApis(known, guard)] },
    }),
    rules6: guardRules6(guard),
    problems: [...problems, ...bridges.flatMap((bridge) => bridgeProblem(bridge, self, address))],
  };
}

/** Where the APIs of other nodes are in the cluster's network, at whatever port they have elsewhere. */
function overlayApis(known: readonly KnownPeer[], { nodes, port }: Guard): Guard["nodes"] {
  const ports = new Set([port, ...nodes.map((node) => node.port)]);
  return known.flatMap(({ address }) => [...ports].map((one) => ({ address, port: one })));
}

/**
 * The node's own address in the cluster's network: the first one of its first block.
 * @throws Error if the node has no block.
 */
function ownAddress({ node_id, subnets }: NetworkPeer): string {
  const address = subnets[0] === undefined ? undefined : firstAddress(subnets[0]);
  if (address === undefined) throw new Error(`node ${node_id} has no IPv4 block of the cluster's range: [${subnets}]`);
  return address;
}

type KnownPeer = NetworkPeer & { address: string };

function reachable(
  peers: readonly NetworkPeer[],
  { self, publicKeys }: { self: NetworkPeer; publicKeys: ReadonlyMap<string, string> | undefined },
): { known: KnownPeer[]; problems: string[] } {
  const known: KnownPeer[] = [];
  const problems: string[] = [];
  for (const peer of peers.toSorted((one, other) => (one.node_id < other.node_id ? -1 : 1))) {
    const { node_id, underlay, subnets } = peer;
    if (node_id === self.node_id || subnets.length === 0) continue;
    if (!isIPv4(underlay))
      problems.push(`node ${node_id} has no IPv4 address (it gives '${underlay}'): it is not reached`);
    else if (publicKeys && !publicKeys.has(node_id))
      problems.push(`node ${node_id} has given no WireGuard key: it is not reached`);
    else known.push({ ...peer, address: ownAddress(peer) });
  }
  return { known, problems };
}

function bridgeProblem({ network, subnet }: OverlayBridge, self: NetworkPeer, address: string): string[] {
  if (contains(subnet, address))
    return [`network ${network} has the subnet ${subnet}, in which the node's own address ${address} lies`];
  if (self.subnets.some((block) => contains(block, subnet))) return [];
  return [`network ${network} has the subnet ${subnet} outside of this node's blocks: it ends at this node`];
}

function macOf(address: string): string {
  return [MAC_PREFIX, ...address.split(".").map((byte) => Number(byte).toString(16).padStart(2, "0"))].join(":");
}

function wireguardConfig(
  { privateKey, publicKeys }: Extract<Overlay["link"], { mode: "wireguard" }>,
  known: readonly KnownPeer[],
): WireguardConfig {
  const peers = known.map(({ node_id, underlay, subnets }): [string, WireguardPeer] => [
    publicKeys.get(node_id) ?? "",
    { endpoint: `${underlay}:${OVERLAY_PORT}`, allowed: subnets.toSorted() },
  ]);
  return { port: OVERLAY_PORT, privateKey, peers: new Map(peers) };
}

// ---- What must change ------------------------------------------------------------------------------------------------

/**
 * The commands that lead from what the kernel has to what it should have; none if that is the same. The firewall comes first,
 * so that nothing passes unchecked. If the device is another node's, there is only the problem.
 */
export function overlayChanges(plan: OverlayPlan, observed: ObservedOverlay): OverlayChanges {
  const refused = refusal(plan.owner, observed);
  if (refused !== undefined) return { steps: [], problems: [refused], mtu: undefined, refused };
  const under = observed.addresses.find(({ address, device }) => address === plan.underlay && device !== plan.device);
  const mtu = under && (under.device === LOOPBACK ? DEFAULT_MTU : under.mtu) - OVERHEAD[plan.mode];
  const conflicts = routeConflicts(plan, observed);
  const link = linkLines(plan, { observed, mtu });
  // A new device has nothing yet; the kernel removes with a device all that leads to it.
  const now = link.isNew ? withoutDevice(plan.device, observed) : observed;
  const ip = [
    ...link.lines,
    ...addressLines(plan, now),
    ...(link.isNew || !now.links.get(plan.device)?.up ? [`link set dev ${plan.device} up`] : []),
    ...neighbourLines(plan, now),
    ...routeLines(plan, { observed: now, skip: conflicts }),
  ];
  const steps = [
    { argv: RESTORE, input: changedRules(plan.rules, observed.tables) },
    ...rules6Steps(plan.rules6, observed),
    { argv: [...IP_BATCH], input: asBatch(ip) },
    { argv: [...BRIDGE_BATCH], input: asBatch(machineLines(plan, now)) },
    { argv: WIREGUARD_SYNC(plan.device), input: wireguardInput(plan.wireguard, now.wireguard) },
  ].filter(({ input }) => input !== "");
  const absent =
    under === undefined
      ? [
          `this node's address ${plan.underlay} is on no network interface of the machine: the other nodes can't be reached by it`,
        ]
      : [];
  return {
    steps: [...steps, ...forwardingSteps(plan, now), ...pathFilterSteps(plan, now)],
    problems: [...plan.problems, ...absent, ...conflicts.values(), ...guardProblems(plan.rules6.guard, observed)],
    mtu,
  };
}

/** What leads to the rules of a node that does without the cluster's network. */
export function guardChanges(guard: Guard, observed: Pick<ObservedOverlay, "tables" | "tables6">): OverlayChanges {
  const steps = [
    { argv: RESTORE, input: changedRules(guardRules(guard), observed.tables) },
    ...rules6Steps(guardRules6(guard), observed),
  ].filter(({ input }) => input !== "");
  return { steps, problems: guardProblems(guard, observed), mtu: undefined };
}

/** What the rules are after those steps. */
export function guardAfter<T extends Pick<ObservedOverlay, "tables" | "tables6">>(guard: Guard, observed: T): T {
  const { tables, tables6 } = observed;
  return {
    ...observed,
    tables: rulesAfter(guardRules(guard), tables),
    tables6: tables6 && rulesAfter(guardRules6(guard), tables6),
  };
}

function rules6Steps(rules: WantedRules, { tables6 }: Pick<ObservedOverlay, "tables6">): OverlayStep[] {
  return tables6 ? [{ argv: RESTORE6, input: changedRules(rules, tables6) }] : [];
}

function guardProblems(guard: Guard, { tables6 }: Pick<ObservedOverlay, "tables6">): string[] {
  if (tables6 || !isGuarding(guard)) return [];
  return [
    "ip6tables-save does not work here: containers with IPv6 are kept from this node's API by the API alone, and from others' not",
  ];
}

/**
 * The same without a look at the kernel, from what it had last and what Docker does for new networks; undefined where more than
 * the firewall may have to change.
 */
export function expectedChanges(plan: OverlayPlan, last: ObservedOverlay): OverlayChanges | undefined {
  // One that was made without a look, or went and came again, may forward and filter as nobody has seen.
  const isNew = (bridge: string) => !last.forwarding.has(bridge) || !hasBridge(last.tables, bridge);
  const isForwarding = last.forwarding.get("default") ?? true;
  if (plan.crossed.some(isNew) || (!isForwarding && plan.bridges.some(isNew))) return undefined;
  if (!last.addresses.some(({ address }) => address === plan.underlay)) return undefined;
  const changes = overlayChanges(plan, { ...last, tables: rulesBesideDocker(plan.rules, last.tables) });
  return changes.refused === undefined && changes.steps.every(isFirewall) ? changes : undefined;
}

/** What the kernel has after those steps; undefined where that takes a look. */
export function overlayAfter(
  plan: OverlayPlan,
  { steps, observed }: { steps: readonly OverlayStep[]; observed: ObservedOverlay },
): ObservedOverlay | undefined {
  if (!steps.every(isFirewall)) return undefined;
  const { tables, tables6 } = observed;
  return {
    ...observed,
    tables: rulesAfter(plan.rules, tables),
    tables6: tables6 && rulesAfter(plan.rules6, tables6),
  };
}

/** The commands that remove all that `overlayChanges` made for the node; none if the device is another node's. */
export function overlayRemoval(
  nodeId: string,
  observed: ObservedOverlay,
  { keepGuard = false }: { keepGuard?: boolean } = {},
): OverlayStep[] {
  if (refusal(OWNER_PREFIX + nodeId, observed) !== undefined) return [];
  const devices = Object.values(OVERLAY_DEVICES);
  const ip = [
    ...devices.filter((device) => observed.links.has(device)).map((device) => `link delete ${device}`),
    ...observed.routes
      .filter(({ protocol, device }) => protocol === ROUTE_PROTOCOL && !(device && devices.includes(device)))
      .map(({ type, subnet, device }) => `route del ${type} ${subnet}${device ? ` dev ${device}` : ""}`),
  ];
  return [
    { argv: [...IP_BATCH], input: asBatch(ip) },
    { argv: RESTORE, input: removedRules(observed.tables, { keepGuard }) },
    { argv: RESTORE6, input: observed.tables6 ? removedRules(observed.tables6, { keepGuard }) : "" },
  ].filter(({ input }) => input !== "");
}

/** Seconds that `iptables-restore` waits for others to be done with the tables. */
const RESTORE = ["iptables-restore", "--noflush", "-w", "5"];
const RESTORE6 = ["ip6tables-restore", "--noflush", "-w", "5"];
/** One command that fails does not keep the others from being done. */
const IP_BATCH = ["ip", "-force", "-batch", "-"];
const BRIDGE_BATCH = ["bridge", "-force", "-batch", "-"];
/** `wg` opens its file by name, which a socket as standard input refuses; a pipe does not. */
const WIREGUARD_SYNC = (device: string) => ["sh", "-c", `cat | wg syncconf ${device} /dev/stdin`];

/** Whether the step changes rules; nothing else may be done without it. */
export function isFirewall({ argv }: OverlayStep): boolean {
  return argv === RESTORE || argv === RESTORE6;
}

function asBatch(lines: readonly string[]): string {
  return lines.map((line) => `${line}\n`).join("");
}

/** Why the device, which has a name of ours, must be left alone; undefined if it is the node's or not there. */
function refusal(owner: string, { links, forwarding }: ObservedOverlay): string | undefined {
  for (const [mode, device] of Object.entries(OVERLAY_DEVICES)) {
    const link = links.get(device);
    if (!link && !forwarding.has(device)) continue;
    // One without an alias was made by a process that was killed before it could put it on.
    if (link?.alias === owner || (link && link.alias === undefined && link.kind === mode && isOurVxlan(link))) continue;
    const whose = link?.alias?.startsWith(OWNER_PREFIX)
      ? `is that of node ${link.alias.slice(OWNER_PREFIX.length)}: a machine takes part in one cluster's network only, by one node`
      : "was not made by this node";
    return `the network device ${device} ${whose}; if it is a leftover, remove it: ip link delete ${device}`;
  }
  return undefined;
}

function isOurVxlan({ vxlan }: ObservedLink): boolean {
  return vxlan === undefined || (vxlan.id === VXLAN_ID && vxlan.port === OVERLAY_PORT);
}

/** By subnet: others' routes that ours would take the place of, which would cut off somebody. */
function routeConflicts({ routes, device }: OverlayPlan, observed: ObservedOverlay): Map<string, string> {
  const foreign = observed.routes.filter((route) => route.protocol !== ROUTE_PROTOCOL && route.device !== device);
  const conflicts = new Map<string, string>();
  for (const [wanted, { type }] of routes) {
    const isRange = type === "unreachable";
    // Of the range, parts may well lead elsewhere: this node's own networks do.
    const found = foreign.find(({ subnet }) => (isRange ? subnet === wanted : contains(wanted, subnet)));
    if (!found) continue;
    const where = `${found.subnet} ${found.device === undefined ? `(${found.type})` : `dev ${found.device}`}`;
    const problem = isRange
      ? `this machine has a route ${where} for the cluster's own range: packets for nodes that have gone may take it`
      : `this machine has a route ${where} inside of another node's block ${wanted}: that node is not reached`;
    conflicts.set(wanted, problem);
  }
  return conflicts;
}

function linkLines(
  plan: OverlayPlan,
  { observed, mtu }: { observed: ObservedOverlay; mtu: number | undefined },
): { lines: string[]; isNew: boolean } {
  const { device, mode, owner, underlay, address } = plan;
  const other = Object.values(OVERLAY_DEVICES).filter((name) => name !== device && observed.links.has(name));
  const lines = other.map((name) => `link delete ${name}`);
  const link = observed.links.get(device);
  const alias = `link set dev ${device} alias ${owner}`;
  const mac = mode === "vxlan" ? macOf(address) : undefined;
  const isRight =
    mode === "wireguard" || (link?.vxlan && isOurVxlan(link) && link.vxlan.local === underlay && !link.vxlan.learning);
  if (!link || !isRight) {
    if (link) lines.push(`link delete ${device}`);
    // Neither flooding nor learning: the node knows who is where, and nobody else shall say it.
    const kind = mode === "vxlan" ? `vxlan id ${VXLAN_ID} dstport ${OVERLAY_PORT} local ${underlay} nolearning` : mode;
    lines.push(`link add ${device}${mac ? ` address ${mac}` : ""}${mtu ? ` mtu ${mtu}` : ""} type ${kind}`);
    lines.push(`${alias} addrgenmode none`);
    return { lines, isNew: true };
  }
  if (link.alias !== owner) lines.push(`${alias} addrgenmode none`);
  if (mac && link.mac !== mac) lines.push(`link set dev ${device} address ${mac}`);
  if (mtu && link.mtu !== mtu) lines.push(`link set dev ${device} mtu ${mtu}`);
  return { lines, isNew: false };
}

function withoutDevice(device: string, observed: ObservedOverlay): ObservedOverlay {
  return {
    ...observed,
    addresses: observed.addresses.filter((one) => one.device !== device),
    routes: observed.routes.filter((one) => one.device !== device),
    neighbours: new Map(),
    machines: new Map(),
    wireguard: undefined,
    forwarding: new Map([...observed.forwarding].filter(([name]) => name !== device)),
  };
}

function addressLines({ device, address }: OverlayPlan, { addresses }: ObservedOverlay): string[] {
  const there = addresses.filter((one) => one.device === device);
  const isOwn = (one: { address: string; bits: number }) => one.address === address && one.bits === 32;
  return [
    ...(there.some(isOwn) ? [] : [`addr add ${address}/32 dev ${device}`]),
    ...there.filter((one) => !isOwn(one)).map((one) => `addr del ${one.address}/${one.bits} dev ${device}`),
  ];
}

function neighbourLines({ device, neighbours }: OverlayPlan, observed: ObservedOverlay): string[] {
  return [
    ...[...neighbours]
      .filter(([address, mac]) => observed.neighbours.get(address) !== mac)
      .map(([address, mac]) => `neigh replace ${address} lladdr ${mac} dev ${device} nud permanent`),
    ...[...observed.neighbours.keys()]
      .filter((address) => !neighbours.has(address))
      .map((address) => `neigh del ${address} dev ${device}`),
  ];
}

function routeLines(
  { device, address, routes }: OverlayPlan,
  { observed, skip }: { observed: ObservedOverlay; skip: ReadonlyMap<string, unknown> },
): string[] {
  const ours = observed.routes.filter((route) => route.protocol === ROUTE_PROTOCOL || route.device === device);
  const there = new Map(ours.map((route) => [route.subnet, route]));
  const wanted = [...routes].filter(([subnet]) => !skip.has(subnet));
  const isThere = (subnet: string, { type, gateway }: Route) => {
    const route = there.get(subnet);
    if (route?.type !== type || route.protocol !== ROUTE_PROTOCOL) return false;
    return type === "unreachable" || (route.device === device && route.gateway === gateway && route.source === address);
  };
  return [
    ...wanted
      .filter(([subnet, route]) => !isThere(subnet, route))
      .map(([subnet, { type, gateway }]) => {
        if (type === "unreachable") return `route replace unreachable ${subnet} proto ${ROUTE_PROTOCOL}`;
        const via = gateway === undefined ? "" : `via ${gateway} `;
        const onlink = gateway === undefined ? "" : " onlink";
        return `route replace ${subnet} ${via}dev ${device} src ${address}${onlink} proto ${ROUTE_PROTOCOL}`;
      }),
    ...ours
      .filter(({ subnet }) => !routes.has(subnet) || skip.has(subnet))
      .map(({ type, subnet, device: by }) => `route del ${type} ${subnet}${by === undefined ? "" : ` dev ${by}`}`),
  ];
}

function machineLines({ device, machines }: OverlayPlan, observed: ObservedOverlay): string[] {
  const wrong = [...observed.machines].filter(([mac, there]) => !machines.has(mac) || there.length > 1);
  const kept = (mac: string, machine: string) => {
    const there = observed.machines.get(mac) ?? [];
    return there.length === 1 && there[0] === machine;
  };
  return [
    ...wrong.map(([mac]) => `fdb del ${mac} dev ${device} self`),
    ...[...machines]
      .filter(([mac, machine]) => !kept(mac, machine))
      .map(([mac, machine]) => `fdb replace ${mac} dev ${device} dst ${machine} self permanent`),
  ];
}

/** A configuration for `wg syncconf`; empty if it is in force. */
function wireguardInput(wanted: WireguardConfig | undefined, observed: WireguardConfig | undefined): string {
  if (wanted === undefined) return "";
  const text = wireguardText(wanted);
  return observed && wireguardText(observed) === text ? "" : text;
}

function wireguardText({ port, privateKey, peers }: WireguardConfig): string {
  const sections = [...peers]
    .toSorted(([one], [other]) => (one < other ? -1 : 1))
    .map(
      ([key, { endpoint, allowed }]) =>
        `[Peer]\nPublicKey = ${key}\nEndpoint = ${endpoint}\nAllowedIPs = ${allowed.toSorted().join(", ")}\n`,
    );
  return [`[Interface]\nPrivateKey = ${privateKey}\nListenPort = ${port}\n`, ...sections].join("\n");
}

/**
 * Docker lets the machine forward at its start, and whoever loads the machine's sysctl settings anew may end that. Only where
 * our packets come in: the rest is not ours to open.
 */
function forwardingSteps({ device, bridges }: OverlayPlan, { forwarding }: ObservedOverlay): OverlayStep[] {
  const byDefault = forwarding.get("default") ?? true;
  return [device, ...bridges]
    .filter((name) => !(forwarding.get(name) ?? (name !== device || byDefault)))
    .map((name) => ({ argv: ["tee", `/proc/sys/net/ipv4/conf/${name}/forwarding`], input: "1\n" }));
}

/**
 * Reverse path filtering may be on, as each node is where its route leads; but where a container sends by one bridge with its
 * address on another, a strict one would drop that. The larger value of the device's and `all`'s counts, and loose is the largest.
 * Source: Linux, Documentation/networking/ip-sysctl.rst, `rp_filter`.
 */
function pathFilterSteps({ crossed }: OverlayPlan, { pathFilters }: ObservedOverlay): OverlayStep[] {
  const isStrict = (name: string) => pathFilters.get(name) === "strict";
  return crossed
    .filter((name) => pathFilters.get(name) !== "loose" && (isStrict(name) || isStrict("all")))
    .map((name) => ({ argv: ["tee", `/proc/sys/net/ipv4/conf/${name}/rp_filter`], input: "2\n" }));
}
