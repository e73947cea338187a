/**
 * @module Which packets of containers may go to the API of a node, as chains of iptables and ip6tables. Pure: facts in, rules
 * out; `overlay_plan_firewall.ts` puts them beside the rules of the cluster's network. They are there in every network mode.
 *
 * Whoever reaches an API controls Docker on its node, so a container must not:
 * - A bridge that only containers of this cluster's jobs are on is closed as a whole, whatever addresses its containers use.
 * - On a bridge that others share (`docker0`, external networks) the containers of jobs are known by their addresses, and over IPv6
 *   by their MACs, since a container chooses its link-local address by itself. While one of them starts, its address is not
 *   known yet: the bridge is closed then but for the containers that are known to be somebody else's.
 * - `x-cacophony.api` opens the API of the container's own node to the container's address.
 *
 * Connections are refused and not dropped, so that a mistake shows at once. Open ones end, too, when a rule comes to be.
 */
import { isIP } from "node:net";

/** A container on a bridge: its IPv4 address, and its MAC where Docker tells it. */
export type GuardedEndpoint = { address: string; mac: string | undefined };

/** What the rules are made of. */
export type Guard = {
  /** TCP port of this node's API. */
  port: number;
  /** Bridges of the networks of jobs. */
  bridges: readonly string[];
  /** Other bridges that containers of jobs are on. `others`: containers that are not of jobs, while a container of a job starts. */
  shared: readonly {
    device: string;
    own: readonly GuardedEndpoint[];
    others: readonly GuardedEndpoint[] | undefined;
  }[];
  /** Containers that may call this node's API. */
  callers: readonly { device: string; address: string }[];
  /** The APIs of nodes as packets that are passed on meet them: IPv4 and IPv6 addresses with their ports. */
  nodes: readonly { address: string; port: number }[];
};

type IpVersion = 4 | 6;

const CHAINS = {
  /** Packets to this node's API. */
  own: "CACOPHONY-API",
  /** Forwarded packets to a port that an API of a node has. */
  others: "CACOPHONY-APIS",
  /** Refuses what comes from containers of jobs. */
  guard: "CACOPHONY-GUARD",
};
const REFUSE = "-j REJECT --reject-with tcp-reset";

/** Whether there is anything to keep away from an API. */
export function isGuarding({ bridges, shared }: Guard): boolean {
  return bridges.length > 0 || shared.length > 0;
}

/** Whether a chain is of this module. */
export function isGuardChain(chain: string): boolean {
  return Object.values(CHAINS).includes(chain);
}

/** The chains of the table `filter`, in the form that `iptables-save` prints; none where there is nothing to guard. */
export function guardChains(guard: Guard, version: IpVersion): [string, string[]][] {
  if (!isGuarding(guard)) return [];
  const hostBits = version === 4 ? 32 : 128;
  const isOfVersion = ({ address }: { address: string }) => isIP(address) === version;
  const sources = (endpoints: readonly GuardedEndpoint[]) => sourcesOf(endpoints, version);
  const callers = guard.callers.filter(isOfVersion).map(({ device, address }) => {
    return `-s ${address}/${hostBits} -i ${device} -j RETURN`;
  });
  const shared = guard.shared.flatMap(({ device, own, others }) => [
    ...sources(own).map(({ from, also }) => `${from}-i ${device} -p tcp ${also}${REFUSE}`),
    ...(others
      ? [
          ...sources(others).map(({ from, also }) => `${from}-i ${device} ${also}-j RETURN`),
          `-i ${device} -p tcp ${REFUSE}`,
        ]
      : []),
  ]);
  const nodes = new Set(guard.nodes.filter(isOfVersion).map(({ address, port }) => `${address}/${hostBits} ${port}`));
  return [
    [CHAINS.own, [...callers.toSorted(), `-j ${CHAINS.guard}`]],
    [
      CHAINS.others,
      [...nodes].toSorted().map((node) => {
        const [address, port] = node.split(" ");
        return `-d ${address} -p tcp -m tcp --dport ${port} -j ${CHAINS.guard}`;
      }),
    ],
    [CHAINS.guard, [...guard.bridges.toSorted().map((device) => `-i ${device} -p tcp ${REFUSE}`), ...shared]],
  ];
}

/** The jumps that lead there from the machine's chains; `forward`: the chain that forwarded packets meet first. */
export function guardJumps(guard: Guard, forward: string): { chain: string; match: string; to: string }[] {
  if (!isGuarding(guard)) return [];
  const toPort = (port: number) => `-p tcp -m tcp --dport ${port}`;
  const ports = [...new Set(guard.nodes.map(({ port }) => port))].toSorted((a, b) => a - b);
  return [
    { chain: "INPUT", match: toPort(guard.port), to: CHAINS.own },
    ...ports.map((port) => ({ chain: forward, match: toPort(port), to: CHAINS.others })),
  ];
}

/** How rules know a container: `from` stands before the device and `also` behind it, as `iptables-save` orders them. */
function sourcesOf(endpoints: readonly GuardedEndpoint[], version: IpVersion): { from: string; also: string }[] {
  return endpoints.flatMap(({ address, mac }) => {
    if (version === 4) return isIP(address) === 4 ? [{ from: `-s ${address}/32 `, also: "" }] : [];
    return mac === undefined ? [] : [{ from: "", also: `-m mac --mac-source ${mac} ` }];
  });
}
