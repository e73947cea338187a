/**
 * @module Which packets may pass between a node's job networks and the cluster's network, as iptables chains; and the
 * `iptables-restore` input that leads from the rules there are to the rules there should be. Pure: texts in, texts out.
 *
 * All rules are in chains of our own; a chain of the machine gets one jump, in its first place. What the rules say:
 * - A job network and its other parts on other nodes reach each other, and the nodes themselves reach every job network.
 *   Nothing else passes between the device and a bridge, so jobs are as far from each other over nodes as on one node.
 * - What comes out of the device comes from the cluster's range, and never from this node's own blocks; what a bridge sends
 *   comes from the bridge's subnet. Tunnel packets come from known nodes.
 * - Inside the range nothing is masqueraded: replicas see the address that called them.
 *
 * The accepts must count against Docker's own drops. DOCKER-USER is the first chain that Docker has FORWARD go through, and
 * dockerd leaves what is in it alone; an accept there is final, also before the drops for `internal` networks
 * (DOCKER-ISOLATION-STAGE-1 up to Engine 27, DOCKER-INTERNAL since 28). Since 28 the Engine also drops, in the raw table,
 * packets that come to a container's address from elsewhere than its bridge; it appends those rules, so ours is first there.
 * Its masquerading is put first in POSTROUTING with each new network: then our jump has to be moved, see `changedRules`.
 * Sources: moby, `libnetwork/drivers/bridge/setup_ip_tables_linux.go` (20.10), `bridge/internal/iptabler` (28, 29).
 */

import { type Guard, guardChains, guardJumps, isGuardChain } from "./overlay_plan_guard.ts";
import { contains } from "./subnet.ts";

/** What a firewall is made of: a network's bridge and where else the network is. */
export type FirewallBridge = {
  device: string;
  subnet: string;
  /** Subnets of the same network on other nodes. */
  remote: readonly string[];
  /**
   * A container on several networks leaves by one of them, with the address that it has there, wherever it goes. `guests`:
   * such addresses of containers of other nodes that are on this network, too. `travellers`: addresses that containers on this
   * bridge send with, here or (in answers) on their other networks, each with the subnets on other nodes that it may reach.
   */
  guests: readonly string[];
  travellers: readonly { address: string; remote: readonly string[] }[];
};

export type FirewallFacts = {
  /** The device that leads to the other nodes. */
  device: string;
  cidr: string;
  /** This node's own address in the cluster's network. */
  own: string;
  ownBlocks: readonly string[];
  /** UDP port that packets between nodes come to, and from whom; without `sources` from anyone, for they are signed. */
  tunnel: { port: number; sources: readonly string[] | undefined };
  /** The other nodes' own addresses. */
  nodes: readonly string[];
  bridges: readonly FirewallBridge[];
  /** Bridges that nothing may enter or leave but what the rules for the device accept. */
  closed: readonly string[];
  guard: Guard;
};

/** Rules by table and chain, in the form that `iptables-save` prints: so they can be compared as texts. */
export type Tables = ReadonlyMap<string, ReadonlyMap<string, readonly string[]>>;

/** Every chain of ours begins with this; with a bridge's name (15 characters) it stays below iptables' 28. */
const PREFIX = "CACOPHONY-";
const CHAINS = {
  /** Forwarded packets. */
  forward: `${PREFIX}FORWARD`,
  /** ... that come out of the device, or go into it. */
  in: `${PREFIX}IN`,
  out: `${PREFIX}OUT`,
  /** Packets from and to the other nodes themselves. */
  nodes: `${PREFIX}NODES`,
  /** Packets to this machine. */
  input: `${PREFIX}INPUT`,
  tunnel: `${PREFIX}TUNNEL`,
  dns: `${PREFIX}DNS`,
  nat: `${PREFIX}NAT`,
  /** Questions to the name server, before Docker's chain takes them for a published port 53. */
  names: `${PREFIX}NAMES`,
  raw: `${PREFIX}RAW`,
};
const DOCKER_USER = "DOCKER-USER";
/** Where questions about names come to, and where the name server is: services may publish port 53 of the machine. */
const DNS_PORT = 53;
export const NAMES_PORT = 9053;

/** `match`: which packets jump; absent: all. */
type Jump = { chain: string; match?: string; to: string };

/** Rules that should be there, with the jumps that lead to them from the machine's chains. */
export type WantedRules = {
  tables: Tables;
  guard: Guard;
  /** Only the guard's chains and jumps are ours to change now: the others stay as they are. */
  guardOnly?: boolean;
};

/** The rules of a node that does without the cluster's network: they keep containers from the APIs, and that is all. */
export function guardRules(guard: Guard): WantedRules {
  return { tables: new Map([["filter", new Map(guardChains(guard, 4))]]), guard, guardOnly: true };
}

/** The same for `ip6tables`, in every network mode. */
export function guardRules6(guard: Guard): WantedRules {
  return { tables: new Map([["filter", new Map(guardChains(guard, 6))]]), guard, guardOnly: true };
}

/** The chains that should be there, by table. */
export function wantedRules(facts: FirewallFacts): WantedRules {
  const { device, cidr, own, ownBlocks, bridges, nodes, closed, guard } = facts;
  const filter = new Map([
    ...guardChains(guard, 4),
    [
      CHAINS.forward,
      [`-i ${device} -j ${CHAINS.in}`, `-o ${device} -j ${CHAINS.out}`, ...closed.flatMap(closedBridge)],
    ],
    [
      CHAINS.in,
      [...bridges.map(({ device: bridge, subnet }) => `-d ${subnet} -o ${bridge} -j ${PREFIX}I-${bridge}`), `-j DROP`],
    ],
    [
      CHAINS.out,
      [
        ...bridges.flatMap(({ device: bridge, subnet, travellers }) =>
          [subnet, ...foreign(travellers, subnet)].map((from) => `-s ${from} -i ${bridge} -j ${PREFIX}O-${bridge}`),
        ),
        `-j DROP`,
      ],
    ],
    [CHAINS.nodes, nodes.flatMap((address) => [`-s ${address}/32 -j ACCEPT`, `-d ${address}/32 -j ACCEPT`])],
    [
      CHAINS.input,
      [
        `-d ${own}/32 -i ${device} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
        `-d ${own}/32 -i ${device} -j ${CHAINS.nodes}`,
        // A container of another node that tries this node's API is to hear at once that it may not.
        `-i ${device} -p tcp -m tcp --dport ${guard.port} -j REJECT --reject-with tcp-reset`,
        `-i ${device} -j DROP`,
        `-p udp -m udp --dport ${facts.tunnel.port} -j ${CHAINS.tunnel}`,
        ...["udp", "tcp"].map(
          (protocol) => `-d ${own}/32 -p ${protocol} -m ${protocol} --dport ${NAMES_PORT} -j ${CHAINS.dns}`,
        ),
      ],
    ],
    [CHAINS.tunnel, tunnelRules(facts.tunnel)],
    [CHAINS.dns, bridges.map(({ device: bridge, subnet }) => `-s ${subnet} -i ${bridge} -j ACCEPT`)],
    ...bridges.flatMap(bridgeChains),
  ]);
  const raw = [
    ...ownBlocks.map((block) => `-s ${block} -i ${device} -j DROP`),
    `! -s ${cidr} -i ${device} -j DROP`,
    `-i ${device} -j ACCEPT`,
  ];
  const tables = new Map([
    ["filter", filter],
    [
      "nat",
      new Map([
        [CHAINS.nat, [`-o ${device} -j ACCEPT`]],
        [
          CHAINS.names,
          ["udp", "tcp"].map(
            (protocol) =>
              `-d ${own}/32 -p ${protocol} -m ${protocol} --dport ${DNS_PORT} -j DNAT --to-destination ${own}:${NAMES_PORT}`,
          ),
        ],
      ]),
    ],
    ["raw", new Map([[CHAINS.raw, raw]])],
  ]);
  return { tables, guard };
}

/** Addresses of travellers that are of other bridges. */
function foreign(travellers: FirewallBridge["travellers"], subnet: string): string[] {
  return [...new Set(travellers.map(({ address }) => address))]
    .filter((address) => !contains(subnet, address))
    .map((address) => `${address}/32`);
}

function bridgeChains({ device, remote, guests, travellers }: FirewallBridge): [string, string[]][] {
  const ways = travellers.flatMap(({ address, remote: subnets }) => subnets.map((subnet) => ({ address, subnet })));
  return [
    [
      `${PREFIX}I-${device}`,
      [
        ...remote.map((subnet) => `-s ${subnet} -j ACCEPT`),
        ...guests.map((address) => `-s ${address}/32 -j ACCEPT`),
        ...ways.map(({ address, subnet }) => `-s ${subnet} -d ${address}/32 -j ACCEPT`),
        `-j ${CHAINS.nodes}`,
      ],
    ],
    [
      `${PREFIX}O-${device}`,
      [
        ...remote.map((subnet) => `-d ${subnet} -j ACCEPT`),
        ...guests.map((address) => `-d ${address}/32 -j ACCEPT`),
        ...ways.map(({ address, subnet }) => `-s ${address}/32 -d ${subnet} -j ACCEPT`),
        // Containers answer the nodes, but have no business with them of their own.
        `-m conntrack --ctstate RELATED,ESTABLISHED -j ${CHAINS.nodes}`,
      ],
    ],
  ];
}

/** Packets from container to container of one bridge pass through FORWARD, too, where the kernel has br_netfilter. */
function closedBridge(bridge: string): string[] {
  return [`-i ${bridge} ! -o ${bridge} -j DROP`, `! -i ${bridge} -o ${bridge} -j DROP`];
}

function tunnelRules({ sources }: FirewallFacts["tunnel"]): string[] {
  return sources === undefined ? [`-j ACCEPT`] : [...sources.map((address) => `-s ${address}/32 -j ACCEPT`), `-j DROP`];
}

/** The machine's chains that lead to ours. Without Docker's chain (`"iptables": false`, or flushed away) FORWARD itself. */
function wantedJumps(table: string, { guard, guardOnly = false }: WantedRules, observed: Tables): Jump[] {
  const isUsed = observed.get(table)?.get("FORWARD")?.includes(`-j ${DOCKER_USER}`) ?? false;
  const forward = isUsed ? DOCKER_USER : "FORWARD";
  const guarding = table === "filter" ? guardJumps(guard, forward) : [];
  if (guardOnly) return [...guarding, ...jumpsIn(observed.get(table)).filter(({ to }) => !isGuardChain(to))];
  if (table === "nat") {
    return [
      { chain: "POSTROUTING", to: CHAINS.nat },
      { chain: "PREROUTING", to: CHAINS.names },
      { chain: "OUTPUT", to: CHAINS.names },
    ];
  }
  if (table === "raw") return [{ chain: "PREROUTING", to: CHAINS.raw }];
  return [...guarding, { chain: forward, to: CHAINS.forward }, { chain: "INPUT", to: CHAINS.input }];
}

/** The jumps from the machine's chains to ours that are there. */
function jumpsIn(there: ReadonlyMap<string, readonly string[]> = new Map()): Jump[] {
  return [...there].flatMap(([chain, rules]) =>
    chain.startsWith(PREFIX)
      ? []
      : rules.filter(isOurs).map((rule): Jump => {
          const at = rule.indexOf(`-j ${PREFIX}`);
          const match = rule.slice(0, at).trimEnd();
          return { chain, ...(match !== "" && { match }), to: rule.slice(at + "-j ".length) };
        }),
  );
}

/** Chains of ours that should be there: also those of others that are not ours to change now. */
function wantedChains(
  table: string,
  { tables, guardOnly = false }: WantedRules,
  observed: Tables,
): ReadonlyMap<string, readonly string[]> {
  const chains = tables.get(table) ?? new Map<string, readonly string[]>();
  if (!guardOnly) return chains;
  const kept = [...(observed.get(table) ?? [])].filter(([chain]) => chain.startsWith(PREFIX) && !isGuardChain(chain));
  return new Map([...kept, ...chains]);
}

/**
 * Input for `iptables-restore --noflush` that makes the rules of ours what they should be; empty if they are. Each chain that
 * differs is written anew as a whole, in one transaction a table, so that no packet meets half of it.
 */
export function changedRules(wanted: WantedRules, observed: Tables): string {
  return [...wanted.tables.keys()]
    .map((table) =>
      changedTable(table, {
        chains: wantedChains(table, wanted, observed),
        observed,
        jumps: wantedJumps(table, wanted, observed),
      }),
    )
    .join("");
}

/** What `observed` becomes by the input that `changedRules` gives for it. */
export function rulesAfter(wanted: WantedRules, observed: Tables): Tables {
  const changed = [...wanted.tables.keys()].map((table): [string, ReadonlyMap<string, readonly string[]>] => {
    const others = withJumps(observed.get(table) ?? new Map(), wantedJumps(table, wanted, observed));
    return [table, new Map([...others, ...wantedChains(table, wanted, observed)])];
  });
  return new Map([...observed, ...changed]);
}

/** Whether there are chains for the bridge. */
export function hasBridge(observed: Tables, device: string): boolean {
  return observed.get("filter")?.has(`${PREFIX}I-${device}`) ?? false;
}

/** What `observed` becomes when Docker makes the networks that it has no rules for: their masquerading comes before our jump. */
export function rulesBesideDocker({ tables }: WantedRules, observed: Tables): Tables {
  const there = observed.get("filter")?.get(CHAINS.dns) ?? [];
  // Where it has a rule for each network.
  const isNew = tables
    .get("filter")
    ?.get(CHAINS.dns)
    ?.some((rule) => !there.includes(rule));
  const nat = observed.get("nat");
  if (!isNew || !nat) return observed;
  const rules = ["-j MASQUERADE", ...(nat.get("POSTROUTING") ?? [])];
  return new Map([...observed, ["nat", new Map([...nat, ["POSTROUTING", rules]])]]);
}

/** Input for `iptables-restore --noflush` that removes all rules of ours, but the guard's if they are kept; empty if there are none. */
export function removedRules(observed: Tables, { keepGuard }: { keepGuard: boolean }): string {
  return [...observed]
    .map(([table, there]) => {
      const kept = keepGuard ? [...there].filter(([chain]) => isGuardChain(chain)) : [];
      const jumps = keepGuard ? jumpsIn(there).filter(({ to }) => isGuardChain(to)) : [];
      return changedTable(table, { chains: new Map(kept), observed, jumps });
    })
    .join("");
}

function changedTable(
  table: string,
  { chains, observed, jumps }: { chains: ReadonlyMap<string, readonly string[]>; observed: Tables; jumps: Jump[] },
): string {
  const there = observed.get(table) ?? new Map<string, readonly string[]>();
  const changed = [...chains].filter(([chain, rules]) => !isSame(there.get(chain), rules));
  const stale = [...there.keys()].filter((chain) => chain.startsWith(PREFIX) && !chains.has(chain));
  const lines = [
    // Declaring a chain makes it, or empties it.
    ...[...changed.map(([chain]) => chain), ...stale].map((chain) => `:${chain} - [0:0]`),
    ...movedJumps(there, jumps),
    ...changed.flatMap(([chain, rules]) => rules.map((rule) => `-A ${chain} ${rule}`)),
    ...stale.map((chain) => `-X ${chain}`),
  ];
  return lines.length === 0 ? "" : `*${table}\n${lines.join("\n")}\nCOMMIT\n`;
}

/** Puts each jump in the first place of its chain, once, and takes away all others to chains of ours. */
function movedJumps(there: ReadonlyMap<string, readonly string[]>, jumps: readonly Jump[]): string[] {
  return [...withJumps(there, jumps)].flatMap(([chain, wanted]) => {
    const rules = there.get(chain) ?? [];
    if (isSame(rules, wanted)) return [];
    return [
      ...rules.filter(isOurs).map((rule) => `-D ${chain} ${rule}`),
      // The last one that is put in the first place is the first.
      ...wanted
        .filter(isOurs)
        .toReversed()
        .map((rule) => `-I ${chain} 1 ${rule}`),
    ];
  });
}

/** The machine's own chains with the jumps in their first places, and nowhere else. */
function withJumps(there: ReadonlyMap<string, readonly string[]>, jumps: readonly Jump[]): Map<string, string[]> {
  const chains = new Set([...there.keys(), ...jumps.map(({ chain }) => chain)]);
  const own = (chain: string) =>
    jumps
      .filter((jump) => jump.chain === chain)
      .map(({ match, to }) => (match === undefined ? `-j ${to}` : `${match} -j ${to}`));
  const others = (chain: string) => (there.get(chain) ?? []).filter((rule) => !isOurs(rule));
  return new Map(
    [...chains].filter((chain) => !chain.startsWith(PREFIX)).map((chain) => [chain, [...own(chain), ...others(chain)]]),
  );
}

function isOurs(rule: string): boolean {
  return rule.includes(` -j ${PREFIX}`) || rule.startsWith(`-j ${PREFIX}`);
}

function isSame(one: readonly string[] | undefined, other: readonly string[]): boolean {
  return one !== undefined && one.length === other.length && one.every((rule, index) => rule === other[index]);
}

/** Reads what `iptables-save` prints. */
export function parseTables(text: string): Tables {
  const tables = new Map<string, Map<string, string[]>>();
  let chains = new Map<string, string[]>();
  for (const line of text.split("\n")) {
    if (line.startsWith("*")) tables.set(line.slice(1), (chains = new Map()));
    else if (line.startsWith(":")) chains.set(line.slice(1, line.indexOf(" ")), []);
    else if (line.startsWith("-A ")) {
      const end = line.indexOf(" ", 3);
      chains.get(line.slice(3, end))?.push(inOneCase(line.slice(end + 1)));
    }
  }
  return tables;
}

/** Some versions print a MAC in capitals. */
function inOneCase(rule: string): string {
  return rule.replace(/(?<=--mac-source )[0-9A-F:]{17}/, (mac) => mac.toLowerCase());
}
