/**
 * @module The entry on every node: the ports that services open on all nodes, each leading to a ready replica wherever it runs.
 *
 * Owns which ports are open, by the newest directory; a port is `entry_proxy_tcp.ts` or `entry_proxy_udp.ts`, and the choice of
 * a replica is `entry_choice.ts`. The bytes pass through this process: connections through it end with it, and the next process
 * opens the same ports as soon as it has the directory.
 */
import { readFileSync } from "node:fs";
import type { Clock } from "./clock.ts";
import { type Conflict, type Route, routesOf } from "./entry_choice.ts";
import { nodeAddresses } from "./entry_proxy_addresses.ts";
import { type Budget, type Known, TcpPort } from "./entry_proxy_tcp.ts";
import { UdpPort } from "./entry_proxy_udp.ts";
import type { Log } from "./log.ts";
import { Faults } from "./log_faults.ts";
import type { Endpoint, ServiceEntry } from "./model_network.ts";

/** A port of the entry, as people see it. */
export type EntryStatus = {
  port: number;
  protocol: "tcp" | "udp";
  job_id: string;
  service_name: string;
  listening: boolean;
  /** Why it does not listen, and what to do. */
  reason?: string;
  /** TCP connections, or UDP sessions, that are open through this node. */
  connections: number;
  /** Clients (or datagrams) that found no replica or too many others, since this port was opened. */
  refused: number;
};

export type EntryProxyOptions = {
  clock: Clock;
  log: Log;
  random: () => number;
  selfNodeId: string;
  /** The address that a replica is reached at from this node; undefined: it can't be. Default: its first one. */
  addressOf?: (endpoint: Endpoint) => string | undefined;
  /** This node's own addresses, which UDP ports are opened on; default: those of its network interfaces. */
  nodeAddresses?: () => string[];
  /** Sockets that connections may take, listeners aside; default: a share of what the process may have open. */
  maxSockets?: number;
};

/** Sockets of all connections of a node. 16,000 connections are what one thread can serve with dignity. */
const MAX_SOCKETS = 32_000;
/** The rest of the descriptors is for the node's other work: an entry under attack must not keep it from Docker. */
const DESCRIPTOR_SHARE = 0.7;

export class EntryProxy {
  readonly #options: EntryProxyOptions;
  readonly #faults: Faults;
  readonly #budget: Budget;
  /** By `tcp/80`; ports that nobody wants any more stay while connections through them do. */
  readonly #ports = new Map<string, TcpPort | UdpPort>();
  #services: readonly ServiceEntry[] = [];
  #excluded: ReadonlySet<string> = new Set();
  #routes: ReadonlyMap<string, Route> = new Map();
  #conflicts = "";
  #stopped = false;

  constructor(options: EntryProxyOptions) {
    this.#options = options;
    this.#faults = new Faults(options);
    this.#budget = { free: options.maxSockets ?? Math.min(MAX_SOCKETS, openFilesLimit() * DESCRIPTOR_SHARE) };
  }

  /**
   * Takes the whole directory: opens and closes ports by the services' entries. Replicas that are not ready get nothing new and
   * keep what they have; connections to replicas that it does not name any more, or at another address, are reset.
   */
  update(services: readonly ServiceEntry[]): void {
    this.#services = services;
    this.#apply();
  }

  /** Names the allocations that get nothing new, whatever the directory says, instead of those named before. */
  exclude(allocationIds: Iterable<string>): void {
    this.#excluded = new Set(allocationIds);
    this.#apply();
  }

  /** Every port that is wanted, in order. */
  status(): EntryStatus[] {
    return [...this.#routes]
      .map(([name, { port, protocol, job_id, service_name }]) => {
        const { reason, connections = 0, refused = 0 } = this.#ports.get(name)?.status() ?? {};
        const listening = reason === undefined;
        return { port, protocol, job_id, service_name, listening, ...(reason && { reason }), connections, refused };
      })
      .sort((a, b) => a.port - b.port || (a.protocol < b.protocol ? -1 : 1));
  }

  /**
   * TCP connections through this node, by allocation, to replicas that get no new ones: whoever stops one may wait until it is
   * not named here any more.
   */
  draining(): Map<string, number> {
    const open = new Map<string, number>();
    for (const port of this.#ports.values()) {
      for (const [id, connections] of port.draining()) open.set(id, (open.get(id) ?? 0) + connections);
    }
    return open;
  }

  /** Closes all ports and resets all connections. */
  stop(): void {
    this.#stopped = true;
    for (const port of this.#ports.values()) port.stop();
    this.#ports.clear();
    this.#routes = new Map();
  }

  #apply(): void {
    if (this.#stopped) return;
    const { selfNodeId, addressOf = firstAddress } = this.#options;
    const { routes, conflicts } = routesOf(this.#services, { selfNodeId, addressOf });
    this.#routes = routes;
    this.#tellConflicts(conflicts);
    for (const [name, route] of routes) if (!this.#ports.has(name)) this.#ports.set(name, this.#newPort(name, route));
    const known = knownReplicas(this.#services, addressOf);
    for (const [name, port] of this.#ports) {
      // What fails at one port is not to keep the others from leading where they should.
      const what = "an error of Cacophony itself at an entry";
      this.#faults.attempt(what, () => port.lead(routes.get(name), { excluded: this.#excluded, known }), {
        port: name,
      });
      if (port.isIdle) this.#ports.delete(name);
    }
  }

  #newPort(name: string, { port, protocol }: Route): TcpPort | UdpPort {
    const { clock, random, log } = this.#options;
    const options = { clock, random, log, name, port, budget: this.#budget };
    if (protocol === "tcp") return new TcpPort(options);
    return new UdpPort({ ...options, nodeAddresses: this.#options.nodeAddresses ?? nodeAddresses });
  }

  #tellConflicts(conflicts: readonly Conflict[]): void {
    const text = JSON.stringify(conflicts);
    if (text === this.#conflicts) return;
    this.#conflicts = text;
    for (const conflict of conflicts) this.#options.log.warn("an entry is claimed by two services", { ...conflict });
  }
}

/** A replica's networks lead to the same container, and the node reaches them all. */
function firstAddress({ addresses }: Endpoint): string | undefined {
  return addresses[0]?.address;
}

/**
 * A replica without an address may still be starting, or its node could not tell; one that does not have the address of before
 * has been started anew, and its connections are gone. Read through only when there is a connection to ask about.
 */
function knownReplicas(
  services: readonly ServiceEntry[],
  addressOf: (endpoint: Endpoint) => string | undefined,
): Known {
  let endpoints: Map<string, Endpoint> | undefined;
  return (allocationId, address) => {
    endpoints ??= new Map(services.flatMap((service) => service.endpoints.map((one) => [one.allocation_id, one])));
    const one = endpoints.get(allocationId);
    if (!one) return false;
    return (addressOf(one) ?? address) === address || one.addresses.some((other) => other.address === address);
  };
}

/** How many descriptors the kernel lets this process have. Source: proc(5), /proc/PID/limits. */
function openFilesLimit(): number {
  try {
    const soft = /^Max open files\s+(\d+|unlimited)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
    return soft === "unlimited" ? MAX_SOCKETS : Number(soft ?? LEAST_OPEN_FILES);
  } catch {
    return LEAST_OPEN_FILES;
  }
}

/** What a process may have open where nobody raised it. */
const LEAST_OPEN_FILES = 1_024;
