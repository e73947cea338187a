/**
 * @module Which replica gets a new connection: the ports that services claim on every node, where each leads, and the choice
 * between replicas. Pure; `entry_proxy.ts` does what is chosen here.
 */
import type { Endpoint, ServiceEntry } from "./model_network.ts";
import type { EntryPort } from "./model_spec.ts";

/** A replica as an entry sees it from this node. */
export type Replica = { allocation_id: string; address: string; local: boolean; ready: boolean };

/** Where an entry leads. */
export type Route = EntryPort & { job_id: string; service_name: string; replicas: readonly Replica[] };

/** A replica that may get a connection, with what this node's entry knows of it. */
export type Candidate = {
  replica: Replica;
  /** Connections to it that are open through this entry. */
  open: number;
  /** When it was last chosen, as a number that grows with each choice; 0: never. */
  turn: number;
  /** A connect to it failed a moment ago. */
  failing: boolean;
};

/** A port that a service claims although another service has it. */
export type Conflict = { port: string; holder: string; refused: string };

/**
 * The ports that the services claim, by `tcp/80`. Two services with one port are refused when a job is put; should it happen
 * all the same, the first by the names of job and service has it, on every node the same.
 * `addressOf` gives the address that a replica is reached at, or undefined where it can't be reached from this node.
 */
export function routesOf(
  services: Iterable<ServiceEntry>,
  { selfNodeId, addressOf }: { selfNodeId: string; addressOf: (endpoint: Endpoint) => string | undefined },
): { routes: Map<string, Route>; conflicts: Conflict[] } {
  const routes = new Map<string, Route>();
  const conflicts: Conflict[] = [];
  const claimants = [...services].filter(({ entries }) => entries.length > 0).sort(byName);
  for (const { job_id, service_name, entries, endpoints } of claimants) {
    const replicas = endpoints.flatMap((endpoint): Replica[] => {
      const { allocation_id, node_id, ready } = endpoint;
      const address = addressOf(endpoint);
      return !address ? [] : [{ allocation_id, address, ready, local: node_id === selfNodeId }];
    });
    for (const entry of entries) {
      const port = `${entry.protocol}/${entry.port}`;
      const holder = routes.get(port);
      if (!holder) routes.set(port, { ...entry, job_id, service_name, replicas });
      else conflicts.push({ port, holder: nameOf(holder), refused: nameOf({ job_id, service_name }) });
    }
  }
  return { routes, conflicts };
}

/**
 * The candidate for a new connection; undefined if there is none. Replicas that just failed come last. Then `local_first` takes
 * those of this node before others, and of those the one whose last turn is the longest ago; `least_connections` takes the one
 * with the fewest open connections. Chance decides between equals, so that the entries of many nodes do not all begin with the
 * same replica.
 */
export function chooseReplica(
  candidates: readonly Candidate[],
  { balance, random }: { balance: EntryPort["balance"]; random: () => number },
): Candidate | undefined {
  const rank = balance === "local_first" ? localFirst : leastConnections;
  let best: Candidate | undefined;
  let equals = 0;
  for (const candidate of candidates) {
    const order = best ? rank(candidate, best) : -1;
    if (order > 0) continue;
    equals = order < 0 ? 1 : equals + 1;
    // Each of n equals is taken with a chance of 1/n: the n-th takes the place with just that chance.
    if (equals === 1 || random() * equals < 1) best = candidate;
  }
  return best;
}

function localFirst(a: Candidate, b: Candidate): number {
  return +a.failing - +b.failing || +b.replica.local - +a.replica.local || a.turn - b.turn;
}

function leastConnections(a: Candidate, b: Candidate): number {
  return +a.failing - +b.failing || a.open - b.open;
}

type Named = { job_id: string; service_name: string };

function byName(a: Named, b: Named): number {
  return compare(a.job_id, b.job_id) || compare(a.service_name, b.service_name);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : +(a > b);
}

function nameOf({ job_id, service_name }: Named): string {
  return `${job_id}/${service_name}`;
}
