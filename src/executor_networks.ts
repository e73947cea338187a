/**
 * @module The job networks of one node: one for each network of a job, made on first use and removed with the job's last
 * container. One that asks for no subnet gets a /26 out of the node's pools, unless its addresses are not for us to choose.
 *
 * A network whose definition has changed is made anew when no container is on it; until then it serves as it is.
 *
 * Owns whose network is whose, and the choice of subnets: none that another Docker network or a route of the host uses. Docker's own choice ends after
 * about 30 networks.
 */
import { networkName } from "./container_options.ts";
import type { Engine, EngineNetwork, NewNetwork } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import { type Bridge, deviceOf, type NetworkDevice } from "./docker_ports.ts";
import { Refusal } from "./executor_words.ts";
import { LABELS } from "./model.ts";
import { BRIDGE_NAME_OPTION, SUBNET_BITS } from "./model_network.ts";
import { type NetworkSpec } from "./model_spec.ts";
import type { Guard } from "./overlay_plan_guard.ts";
import { askedSubnet, isFromPool } from "./placement_networks.ts";
import { contains, firstAddress, freeSubnet } from "./subnet.ts";

/** Docker's name for the MTU of a bridge. */
const MTU_OPTION = "com.docker.network.driver.mtu";
/** How often a subnet that Docker calls taken is replaced by the next one before the start counts as failed. */
const MAX_TRIES = 20;

type Owner = { clusterId: string; nodeId: string };
/** `definition` absent: made by an earlier version, which did not note it. */
type Known = {
  id: string;
  jobId: string;
  definition: string | undefined;
  device?: string;
  bridge?: Bridge;
  /** Its job is gone, but something is on it still: tried again after the next look. */
  isLeft?: boolean;
};

/** A bridge on this node for a network of a job. */
export type LocalNetwork = Bridge & { network: string };

/** What the cluster's network gives to the containers of this node. */
export type LocalAddresses = {
  /** Ranges (CIDR) that job networks take their subnets from. */
  pools: readonly string[];
  /** Largest packet that passes between nodes whole, in bytes; absent: as Docker has it. */
  mtu?: number;
  /** The name server that knows all nodes' containers; absent: names are of one node. */
  dns?: string;
};

/** How long a replica may take to end; `pid`: a process of its container, where one is known. */
export type DrainOptions = { graceMs: number; signal: AbortSignal; pid: number | undefined };

/** The containers that are to be kept from the APIs of nodes, and those that may call this node's. */
export type LocalGuard = Pick<Guard, "bridges" | "shared" | "callers">;

/** What the executor needs of the cluster's network, and tells it. */
export interface ExecutorOverlay {
  /** Resolves once it is known. */
  addresses(): Promise<LocalAddresses>;
  /** The bridges of all jobs on this node. */
  setBridges(bridges: readonly LocalNetwork[]): void;
  /** Subnets that no network of a job can have: those of all Docker networks, and routes. */
  setTaken(subnets: readonly string[]): void;
  /** Who is to be kept from the APIs; `connected` resolves once that is so, too. */
  setGuard(guard: LocalGuard): void;
  /** Why the rules that keep containers from the APIs are not in force yet, though they may be soon; undefined: nothing to wait for. */
  guardFault(): string | undefined;
  /** Resolves when a running replica that is out of names may be stopped. */
  drain(allocationId: string, options: DrainOptions): Promise<void>;
  /** Resolves once the bridges that were told of last are connected to what is known of other nodes, or that has failed. */
  connected(): Promise<void>;
  /** The pools have no room for a further network. */
  noticeFull(): void;
}

/** Where subnets come from, and the largest packet that passes between nodes, in bytes. */
type Source = { pools: readonly string[]; mtu?: number };

export class JobNetworks {
  readonly #engine: Engine;
  readonly #owner: Owner;
  readonly #routes: () => string[];
  /** The networks that were made for jobs of ours, by name, as last seen. */
  readonly #known = new Map<string, Known>();
  /** The bridges of all networks on the node, by name and by id, as last seen. */
  readonly #devices = new Map<string, NetworkDevice>();
  /** The subnets of all networks on the node, by name, as last seen. */
  readonly #subnets = new Map<string, readonly string[]>();
  /** The names of all networks on the node, as last seen. */
  #names: ReadonlySet<string> = new Set();
  /** One piece of work per job at a time; a removal and a start must not overtake each other. */
  readonly #work = new Map<string, Promise<unknown>>();
  /** Subnets of networks that are just being made. */
  readonly #reserved = new Set<string>();
  /** Numbers of the last question what networks there are, of the last one whose answer was learnt from, and of a making. */
  #asked = 0;
  #learnt = 0;
  #madeAt = 0;
  readonly #onChange: () => void;
  readonly #internalReaches: () => boolean;

  /**
   * `onChange` is called when networks came or went. `internalReaches`: whether containers of an internal network have a way to
   * other nodes and to a name server; engines from 25 on give them neither.
   */
  constructor(options: {
    engine: Engine;
    owner: Owner;
    routes: () => string[];
    onChange: () => void;
    internalReaches: () => boolean;
  }) {
    this.#onChange = options.onChange;
    this.#internalReaches = options.internalReaches;
    this.#engine = options.engine;
    this.#owner = options.owner;
    this.#routes = options.routes;
  }

  static nameOf(jobId: string): string {
    return `${jobId}_default`;
  }

  /** The names of all networks on the node, also those of others. */
  get names(): ReadonlySet<string> {
    return this.#names;
  }

  /** Subnets that no further network can have. */
  get taken(): string[] {
    return [...new Set([...[...this.#subnets.values()].flat(), ...this.#routes()])].toSorted();
  }

  /** Looks which networks there are. */
  async look(): Promise<void> {
    await this.#list();
  }

  /**
   * Makes sure that a network of the job exists; without `network` its `default`.
   * @throws {Refusal} if the pools have no room, a network of that name is not the job's, or an external one is missing.
   */
  ensure(jobId: string, { network, ...from }: Source & { network?: NetworkSpec }): Promise<void> {
    const name = network ? networkName(network, jobId) : JobNetworks.nameOf(jobId);
    return this.#inTurn(jobId, async () => {
      if (network?.external) await this.#mustExist(name);
      else {
        const known = this.#known.get(name);
        if (known?.jobId !== jobId || (await this.#isOutdated(name, { known, network })))
          await this.#make(jobId, { name, network, ...from });
      }
      this.refuseOdd(name);
    });
  }

  /** @throws {Refusal} if the network's bridge has a name that no firewall rule can hold, so that nothing would guard it. */
  refuseOdd(network: string): void {
    const { oddDevice } = this.#devices.get(network) ?? {};
    if (oddDevice === undefined) return;
    throw new Refusal(
      `network ${network} has the bridge ${JSON.stringify(oddDevice)}, a name that firewall rules cannot hold: make the network again with another ${BRIDGE_NAME_OPTION}`,
    );
  }

  /** The bridges that only containers of this cluster's jobs are on. */
  get devices(): string[] {
    return [...this.#known.values()].flatMap(({ device }) => device ?? []);
  }

  /** The bridge of a network that is not of a job, by its name or id; undefined for those of jobs and for other kinds of networks. */
  sharedDevice(network: string): string | undefined {
    const { device } = this.#devices.get(network) ?? {};
    // Asked for each container with each decision, so no list is made for it.
    for (const known of this.#known.values()) if (known.device === device) return undefined;
    return device;
  }

  /** The bridge of a network, by its name or id. */
  deviceOf(network: string): string | undefined {
    return this.#devices.get(network)?.device;
  }

  /** The bridges by which containers can reach other nodes; with `pools` those with a subnet out of them. */
  bridges(pools?: readonly string[]): LocalNetwork[] {
    return [...this.#known].flatMap(([network, { bridge }]) => {
      if (!bridge || (bridge.internal && !this.#internalReaches())) return [];
      const isFrom = !pools || pools.some((pool) => contains(pool, bridge.subnet));
      return isFrom ? [{ network, ...bridge }] : [];
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
    this.#subnets.delete(name);
    return true;
  }

  /** Takes note that Docker does not know a network of the job (any more). */
  forget(jobId: string): void {
    for (const [name, known] of this.#known) if (known.jobId === jobId) this.#known.delete(name);
  }

  /** Removes the networks of all jobs that are not in `inUse`; one that still has endpoints is left for the next time. */
  async prune(inUse: (jobId: string) => boolean): Promise<void> {
    const jobs = new Set([...this.#known.values()].flatMap(({ jobId, isLeft }) => (isLeft ? [] : [jobId])));
    const idle = [...jobs].filter((jobId) => !inUse(jobId) && !this.#work.has(jobId));
    await Promise.all(
      idle.map((jobId) =>
        this.#inTurn(jobId, async () => {
          const own = [...this.#known].filter(([, known]) => known.jobId === jobId);
          for (const [, known] of own) known.isLeft = true;
          const removals = own.map(async ([name, known]) => {
            await this.#engine.removeNetwork(known.id);
            if (this.#known.get(name)?.id === known.id) this.#known.delete(name);
            this.#subnets.delete(name);
            this.#names = new Set([...this.#names].filter((one) => one !== name));
          });
          // Another job's container may be on one of them: that one goes on.
          const done = await Promise.allSettled(removals);
          this.#onChange();
          for (const result of done) if (result.status === "rejected") throw result.reason;
        }),
      ),
    );
  }

  async #mustExist(name: string): Promise<void> {
    const networks = await this.#list();
    if (networks.some((one) => one.name === name || one.id === name)) return;
    throw new Refusal(`external network ${name} does not exist on this node; make it: docker network create ${name}`);
  }

  async #make(
    jobId: string,
    { name, pools, mtu, network }: Source & { name: string; network: NetworkSpec | undefined },
  ): Promise<void> {
    const refused = new Set<string>();
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const networks = await this.#list();
      const known = this.#known.get(name);
      if (known?.jobId === jobId) return;
      if (networks.some((one) => one.name === name)) throw nameTaken(name, known?.jobId);
      const taken = networks.flatMap(({ subnets }) => subnets);
      const asked = askedSubnet(network);
      const isOurs = isFromPool(network);
      const free = isOurs && firstFree(pools, [...taken, ...this.#routes(), ...this.#reserved, ...refused]);
      if (isOurs && free === undefined) {
        throw new NoSubnet(
          `no /${SUBNET_BITS} subnet is free on this node in ${pools.join(", ")}: Docker networks and routes use them all`,
        );
      }
      const subnet = asked ?? (free || undefined);
      if (subnet !== undefined) this.#reserved.add(subnet);
      try {
        const labels = { ...this.#labels(jobId), [LABELS.definition]: hashOf(network) };
        const made = newNetwork(network, { name, subnet, labels });
        if (free && made.driver === "bridge") {
          // Larger packets would be lost between nodes; a document that says another MTU knows better.
          if (mtu !== undefined) made.driverOpts[MTU_OPTION] ??= String(mtu);
          nameGateway(made, free);
        }
        const id = await this.#engine.createNetwork(made);
        // Where Docker chose the subnet, or a plugin did, only Docker can tell.
        if (subnet === undefined) await this.#list();
        else this.#learnMade(made, { id, jobId, subnet });
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
    throw new Refusal(`Docker refused ${MAX_TRIES} subnets of ${pools.join(", ")} as taken`);
  }

  #labels(jobId: string): Record<string, string> {
    const { clusterId, nodeId } = this.#owner;
    return { [LABELS.cluster]: clusterId, [LABELS.node]: nodeId, [LABELS.job]: jobId };
  }

  /** What there is. An answer that a later question has overtaken is not learnt from: it may lack what was made since. */
  async #list(): Promise<EngineNetwork[]> {
    const asked = ++this.#asked;
    const networks = await this.#engine.networks();
    // Unlike a question, a making brings no answer that has all the others.
    if (asked < this.#madeAt) return this.#list();
    if (asked > this.#learnt) {
      this.#learnt = asked;
      this.#learn(networks);
    }
    return networks;
  }

  /** What was just made needs no second look, which would make the first container wait. */
  #learnMade(made: NewNetwork, { id, jobId, subnet }: { id: string; jobId: string; subnet: string }): void {
    // What was asked before may not know of it.
    this.#madeAt = ++this.#asked;
    const { name, driver, internal, driverOpts: options, labels } = made;
    const device = deviceOf({ id, driver: driver || "bridge", internal, options, subnets: [subnet] });
    this.#names = new Set([...this.#names, name]);
    this.#subnets.set(name, [subnet]);
    this.#known.set(name, { id, jobId, definition: labels[LABELS.definition], ...device });
    this.#noteDevice({ id, name, ...device });
    this.#onChange();
  }

  #learn(networks: readonly EngineNetwork[]): void {
    this.#names = new Set(networks.map(({ name }) => name));
    this.#known.clear();
    this.#devices.clear();
    this.#subnets.clear();
    for (const network of networks) {
      const { id, name, labels, device, bridge, subnets } = network;
      // Names need not be unique.
      this.#subnets.set(name, [...(this.#subnets.get(name) ?? []), ...subnets]);
      this.#noteDevice(network);
      const jobId = labels.get(LABELS.job);
      const isOurs =
        labels.get(LABELS.cluster) === this.#owner.clusterId && labels.get(LABELS.node) === this.#owner.nodeId;
      const definition = labels.get(LABELS.definition);
      if (isOurs && jobId !== undefined) {
        this.#known.set(name, { id, jobId, definition, ...(device && { device }), ...(bridge && { bridge }) });
      }
    }
    this.#onChange();
  }

  #noteDevice({ id, name, device, oddDevice }: { id: string; name: string } & NetworkDevice): void {
    const found = { ...(device && { device }), ...(oddDevice && { oddDevice }) };
    this.#devices.set(name, found);
    this.#devices.set(id, found);
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

/** The node's pools have no room for a further network. */
export class NoSubnet extends Refusal {}

function firstFree(pools: readonly string[], taken: readonly string[]): string | undefined {
  for (const pool of pools) {
    const found = freeSubnet(pool, { taken, bits: SUBNET_BITS });
    if (found !== undefined) return found;
  }
  return undefined;
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

/**
 * Names the gateway that Docker would choose. An Engine that is killed while it removes a network which was made with a subnet and
 * without a gateway panics at each start from then on (libnetwork, `reservePools`, 20.10 and later), until its database of
 * networks is removed by hand.
 */
function nameGateway({ ipam }: NewNetwork, subnet: string): void {
  const gateway = firstAddress(subnet);
  const entry = ipam.config.find((one) => one.subnet === subnet);
  if (entry && gateway !== undefined) entry.gateway ??= gateway;
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
