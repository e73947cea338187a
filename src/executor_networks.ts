/**
 * @module The job networks of one node: one for each network of a job, made on first use and removed with the job's last
 * container. One that asks for no subnet gets a /26 out of the cluster's pool, unless its addresses are not for us to choose.
 *
 * A network whose definition has changed is made anew when no container is on it; until then it serves as it is.
 *
 * Owns whose network is whose, and the choice of subnets: none that another Docker network or a route of the host uses. Docker's own choice ends after
 * about 30 networks.
 */
import { parseSubnet, writeAddress } from "./address_subnet.ts";
import { networkName } from "./container_options.ts";
import type { Engine, EngineNetwork, NewNetwork } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import { Refusal } from "./executor_words.ts";
import { LABELS, type NetworkSpec } from "./model.ts";

/** 62 addresses: more containers of one job than a node usually holds. A /16 pool has room for 1,024 such networks. */
const SUBNET_BITS = 26;
/** How often a subnet that Docker calls taken is replaced by the next one before the start counts as failed. */
const MAX_TRIES = 20;

type Owner = { clusterId: string; nodeId: string };
/** `definition` absent: made by an earlier version, which did not note it. */
type Known = { id: string; jobId: string; definition: string | undefined };

export class JobNetworks {
  readonly #engine: Engine;
  readonly #owner: Owner;
  readonly #routes: () => string[];
  /** The networks that were made for jobs of ours, by name, as last seen. */
  readonly #known = new Map<string, Known>();
  /** One piece of work per job at a time; a removal and a start must not overtake each other. */
  readonly #work = new Map<string, Promise<unknown>>();
  /** Subnets of networks that are just being made. */
  readonly #reserved = new Set<string>();

  constructor(options: { engine: Engine; owner: Owner; routes: () => string[] }) {
    this.#engine = options.engine;
    this.#owner = options.owner;
    this.#routes = options.routes;
  }

  static nameOf(jobId: string): string {
    return `${jobId}_default`;
  }

  /** Looks which networks there are; returns the names of all. */
  async look(): Promise<string[]> {
    const networks = await this.#engine.networks();
    this.#learn(networks);
    return networks.map(({ name }) => name);
  }

  /**
   * Makes sure that a network of the job exists; without `network` its `default`.
   * @throws {Refusal} if the pool has no room, a network of that name is not the job's, or an external one is missing.
   */
  ensure(jobId: string, { pool, network }: { pool: string; network?: NetworkSpec }): Promise<void> {
    const name = network ? networkName(network, jobId) : JobNetworks.nameOf(jobId);
    return this.#inTurn(jobId, async () => {
      if (network?.external) return this.#mustExist(name);
      const known = this.#known.get(name);
      if (known?.jobId === jobId && !(await this.#isOutdated(name, { known, network }))) return;
      await this.#make(jobId, { name, pool, network });
    });
  }

  /** Whether a network of another definition was here; it is gone then. One that containers are on stays, and will do. */
  async #isOutdated(
    name: string,
    { known, network }: { known: Known; network: NetworkSpec | undefined },
  ): Promise<boolean> {
    if (known.definition === undefined || known.definition === hashOf(network)) return false;
    try {
      await this.#engine.removeNetwork(known.id);
    } catch (error) {
      if (error instanceof EngineError && error.code === "conflict") return false;
      throw error;
    }
    this.#known.delete(name);
    return true;
  }

  /** Takes note that Docker does not know a network of the job (any more). */
  forget(jobId: string): void {
    for (const [name, known] of this.#known) if (known.jobId === jobId) this.#known.delete(name);
  }

  /** Removes the networks of all jobs that are not in `inUse`; one that still has endpoints is left for the next time. */
  async prune(inUse: (jobId: string) => boolean): Promise<void> {
    const jobs = new Set([...this.#known.values()].map(({ jobId }) => jobId));
    const idle = [...jobs].filter((jobId) => !inUse(jobId) && !this.#work.has(jobId));
    await Promise.all(
      idle.map((jobId) =>
        this.#inTurn(jobId, async () => {
          const own = [...this.#known].filter(([, known]) => known.jobId === jobId);
          this.forget(jobId);
          await Promise.all(own.map(([, { id }]) => this.#engine.removeNetwork(id)));
        }),
      ),
    );
  }

  async #mustExist(name: string): Promise<void> {
    const networks = await this.#engine.networks();
    if (networks.some((one) => one.name === name || one.id === name)) return;
    throw new Refusal(`external network ${name} does not exist on this node; make it: docker network create ${name}`);
  }

  async #make(
    jobId: string,
    { name, pool, network }: { name: string; pool: string; network: NetworkSpec | undefined },
  ): Promise<void> {
    const refused = new Set<string>();
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const networks = await this.#engine.networks();
      this.#learn(networks);
      const known = this.#known.get(name);
      if (known?.jobId === jobId) return;
      if (networks.some((one) => one.name === name)) throw nameTaken(name, known?.jobId);
      const taken = networks.flatMap(({ subnets }) => subnets);
      const asked = network?.ipam?.config.find(({ subnet }) => subnet !== undefined && !subnet.includes(":"))?.subnet;
      const isOurs = asked === undefined && isFromPool(network);
      const free = isOurs && freeSubnet(pool, [...taken, ...this.#routes(), ...this.#reserved, ...refused]);
      if (isOurs && free === undefined) {
        throw new Refusal(
          `no /${SUBNET_BITS} subnet is free on this node in the network pool ${pool}: Docker networks and routes use them all`,
        );
      }
      const subnet = asked ?? (free || undefined);
      if (subnet !== undefined) this.#reserved.add(subnet);
      try {
        const definition = hashOf(network);
        const labels = { ...this.#labels(jobId), [LABELS.definition]: definition };
        const id = await this.#engine.createNetwork(newNetwork(network, { name, subnet, labels }));
        this.#known.set(name, { id, jobId, definition });
        return;
      } catch (error) {
        if (!(error instanceof EngineError)) throw error;
        // A conflict: it appeared in between, the next look shows whose it is.
        if (error.code === "pool_overlap" && free) refused.add(free);
        else if (error.code === "pool_overlap")
          throw new Refusal(
            `the subnet ${subnet ?? "that Docker chose"} of network ${name} is taken on this node by another network`,
            { cause: error },
          );
        else if (error.code !== "conflict") throw error;
      } finally {
        if (subnet !== undefined) this.#reserved.delete(subnet);
      }
    }
    throw new Refusal(`Docker refused ${MAX_TRIES} subnets of the network pool ${pool} as taken`);
  }

  #labels(jobId: string): Record<string, string> {
    const { clusterId, nodeId } = this.#owner;
    return { [LABELS.cluster]: clusterId, [LABELS.node]: nodeId, [LABELS.job]: jobId };
  }

  #learn(networks: readonly EngineNetwork[]): void {
    this.#known.clear();
    for (const { id, name, labels } of networks) {
      const jobId = labels.get(LABELS.job);
      const isOurs =
        labels.get(LABELS.cluster) === this.#owner.clusterId && labels.get(LABELS.node) === this.#owner.nodeId;
      if (isOurs && jobId !== undefined)
        this.#known.set(name, { id, jobId, definition: labels.get(LABELS.definition) });
    }
  }

  async #inTurn(jobId: string, work: () => Promise<void>): Promise<void> {
    const before = this.#work.get(jobId);
    const turn = (async () => {
      await before?.catch(() => {});
      await work();
    })();
    this.#work.set(jobId, turn);
    try {
      await turn;
    } finally {
      if (this.#work.get(jobId) === turn) this.#work.delete(jobId);
    }
  }
}

function nameTaken(name: string, owner: string | undefined): Refusal {
  if (owner !== undefined)
    return new Refusal(`network ${name} belongs to job ${owner}; declare it as external to share it`);
  return new Refusal(
    `a Docker network ${name} exists on this node and was not made by this cluster; remove it: docker network rm ${name}`,
  );
}

/** Tells definitions apart; without one, that of a job's plain network `default`. */
function hashOf(network: NetworkSpec | undefined): string {
  return new Bun.CryptoHasher("sha256")
    .update(JSON.stringify(network ?? null))
    .digest("hex")
    .slice(0, 16);
}

/** Whether a network without a subnet of its own gets one of ours: not where a plugin hands out addresses, nor without IPv4. */
function isFromPool(network: NetworkSpec | undefined): boolean {
  return network?.enable_ipv4 !== false && ["", "default"].includes(network?.ipam?.driver ?? "");
}

/** What Docker is told; `subnet`: the IPv4 one, which the document may not have named. */
function newNetwork(
  network: NetworkSpec | undefined,
  { name, subnet, labels }: { name: string; subnet: string | undefined; labels: Record<string, string> },
): NewNetwork {
  const { ipam, driver_opts = [], labels: own = [] } = network ?? {};
  const config = (ipam?.config ?? []).map((entry) => ({
    ...(entry.subnet !== undefined && { subnet: entry.subnet }),
    ...(entry.gateway !== undefined && { gateway: entry.gateway }),
    ...(entry.ip_range !== undefined && { ipRange: entry.ip_range }),
    ...(entry.aux_addresses.length > 0 && { auxAddresses: Object.fromEntries(entry.aux_addresses) }),
  }));
  if (subnet !== undefined && !config.some((entry) => entry.subnet === subnet)) config.unshift({ subnet });
  return {
    name,
    driver: network?.driver ?? "bridge",
    labels: { ...Object.fromEntries(own), ...labels },
    driverOpts: Object.fromEntries(driver_opts),
    internal: network?.internal ?? false,
    attachable: network?.attachable ?? false,
    ...(network?.enable_ipv4 !== undefined && { enableIpv4: network.enable_ipv4 }),
    enableIpv6: network?.enable_ipv6 ?? false,
    ipam: { driver: ipam?.driver || "default", options: Object.fromEntries(ipam?.options ?? []), config },
  };
}

/** The first /26 of `pool` that overlaps none of `taken` (CIDR texts; IPv6 ones don't matter here); undefined if none is left. */
export function freeSubnet(pool: string, taken: readonly string[]): string | undefined {
  const range = parseSubnet(pool);
  if (!range) return undefined;
  const size = 2 ** (32 - SUBNET_BITS);
  const used = taken.flatMap((text) => parseSubnet(text) ?? []).sort((a, b) => a.first - b.first);
  let first = Math.ceil(range.first / size) * size;
  for (const { first: start, size: length } of used) {
    if (start + length <= first) continue;
    if (start >= first + size) break;
    first = Math.ceil((start + length) / size) * size;
  }
  return first + size <= range.first + range.size ? `${writeAddress(first)}/${SUBNET_BITS}` : undefined;
}
