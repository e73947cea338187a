/**
 * @module The job networks of one node: one bridge per job, a /26 out of the cluster's pool, made on first use and removed with
 * the job's last container.
 *
 * Owns the choice of subnets: none that another Docker network or a route of the host uses. Docker's own choice ends after
 * about 30 networks.
 */
import type { Engine, EngineNetwork } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import { Refusal } from "./executor_words.ts";
import { LABELS } from "./model.ts";

/** 62 addresses: more containers of one job than a node usually holds. A /16 pool has room for 1,024 such networks. */
const SUBNET_BITS = 26;
/** How often a subnet that Docker calls taken is replaced by the next one before the start counts as failed. */
const MAX_TRIES = 20;

type Range = { first: number; size: number };
type Owner = { clusterId: string; nodeId: string };

export class JobNetworks {
  readonly #engine: Engine;
  readonly #owner: Owner;
  readonly #routes: () => string[];
  /** Jobs that have a network of ours, as last seen. */
  readonly #known = new Map<string, { id: string; name: string }>();
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

  /** Looks which job networks there are. */
  async look(): Promise<void> {
    this.#learn(await this.#engine.networks());
  }

  /**
   * Makes sure that the job's network exists.
   * @throws {Refusal} if the pool has no room, or a network of that name is not ours.
   */
  ensure(jobId: string, pool: string): Promise<void> {
    return this.#inTurn(jobId, async () => {
      if (!this.#known.has(jobId)) await this.#make(jobId, pool);
    });
  }

  /** Takes note that Docker does not know the job's network (any more). */
  forget(jobId: string): void {
    this.#known.delete(jobId);
  }

  /** Removes the networks of all jobs that are not in `inUse`; one that still has endpoints is left for the next time. */
  async prune(inUse: (jobId: string) => boolean): Promise<void> {
    const idle = [...this.#known.keys()].filter((jobId) => !inUse(jobId) && !this.#work.has(jobId));
    await Promise.all(
      idle.map((jobId) =>
        this.#inTurn(jobId, async () => {
          const network = this.#known.get(jobId);
          if (!network) return;
          this.#known.delete(jobId);
          await this.#engine.removeNetwork(network.id);
        }),
      ),
    );
  }

  async #make(jobId: string, pool: string): Promise<void> {
    const name = JobNetworks.nameOf(jobId);
    const refused = new Set<string>();
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      const networks = await this.#engine.networks();
      this.#learn(networks);
      if (this.#known.has(jobId)) return;
      if (networks.some((network) => network.name === name)) {
        throw new Refusal(
          `a Docker network ${name} exists on this node and was not made by this cluster; remove it: docker network rm ${name}`,
        );
      }
      const taken = networks.flatMap(({ subnets }) => subnets);
      const subnet = freeSubnet(pool, [...taken, ...this.#routes(), ...this.#reserved, ...refused]);
      if (subnet === undefined) {
        throw new Refusal(
          `no /${SUBNET_BITS} subnet is free on this node in the network pool ${pool}: Docker networks and routes use them all`,
        );
      }
      this.#reserved.add(subnet);
      try {
        const id = await this.#engine.createNetwork({ name, subnet, labels: this.#labels(jobId) });
        this.#known.set(jobId, { id, name });
        return;
      } catch (error) {
        if (!(error instanceof EngineError)) throw error;
        // A conflict: it appeared in between, the next look shows whose it is.
        if (error.code === "pool_overlap") refused.add(subnet);
        else if (error.code !== "conflict") throw error;
      } finally {
        this.#reserved.delete(subnet);
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
      if (isOurs && jobId !== undefined && name === JobNetworks.nameOf(jobId)) this.#known.set(jobId, { id, name });
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

/** The first /26 of `pool` that overlaps none of `taken` (CIDR texts; IPv6 ones don't matter here); undefined if none is left. */
export function freeSubnet(pool: string, taken: readonly string[]): string | undefined {
  const range = parseRange(pool);
  if (!range) return undefined;
  const size = 2 ** (32 - SUBNET_BITS);
  const used = taken.flatMap((text) => parseRange(text) ?? []).sort((a, b) => a.first - b.first);
  let first = Math.ceil(range.first / size) * size;
  for (const { first: start, size: length } of used) {
    if (start + length <= first) continue;
    if (start >= first + size) break;
    first = Math.ceil((start + length) / size) * size;
  }
  return first + size <= range.first + range.size ? `${formatAddress(first)}/${SUBNET_BITS}` : undefined;
}

function parseRange(text: string): Range | undefined {
  const [, a, b, c, d, bits] = /^(\d+)\.(\d+)\.(\d+)\.(\d+)\/(\d+)$/.exec(text) ?? [];
  if (bits === undefined) return undefined;
  const size = 2 ** (32 - Number(bits));
  const address = ((Number(a) * 256 + Number(b)) * 256 + Number(c)) * 256 + Number(d);
  return { first: Math.floor(address / size) * size, size };
}

function formatAddress(address: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");
}
