/**
 * @module Further blocks of addresses for nodes whose own have no room for another network. Asked with each heartbeat, so that
 * nothing is left to do is told without a look at other nodes. First blocks are the business of `membership_newcomers.ts`.
 */
import type { Log } from "./log.ts";
import { MAX_BLOCKS } from "./model_bounds.ts";
import type { NodeNetwork } from "./model_network.ts";
import type { NodeRecord } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";

export type GrowthOptions = { scheduler: Scheduler; log: Log; writeFailed: (error: unknown) => void };

export class Growth {
  readonly #options: GrowthOptions;
  /** Nodes whose next block is being written down. */
  readonly #growing = new Set<string>();

  constructor(options: GrowthOptions) {
    this.#options = options;
  }

  /** Gives the node a further block, if it says that it is full and there is one left. */
  notice(nodeId: string, told: NodeNetwork): void {
    if (!told.full || this.#growing.has(nodeId) || this.#next(nodeId, told) === undefined) return;
    const { scheduler, log, writeFailed } = this.#options;
    this.#growing.add(nodeId);
    let record: NodeRecord | undefined;
    const grow = () => {
      record = this.#next(nodeId, told);
      return record ? [{ op: "put", kind: "node", record } as const] : [];
    };
    const grown = () => {
      if (record) log.info("a node got a further block of addresses", { node: nodeId, subnets: record.subnets });
      scheduler.directory.touchNetworks();
    };
    void scheduler
      .change(grow)
      .then(grown, writeFailed)
      .finally(() => this.#growing.delete(nodeId));
  }

  /** The record with one block more; undefined: the node gets none. */
  #next(nodeId: string, { blocks }: NodeNetwork): NodeRecord | undefined {
    const { state, cluster } = this.#options.scheduler;
    const record = state.nodes.get(nodeId);
    const { subnets = [] } = record ?? {};
    // A node that has not heard of its latest block yet may have room in that.
    if (!record || subnets.length !== blocks || subnets.length >= MAX_BLOCKS) return undefined;
    const block = state.blocks.free(cluster.network_cidr);
    return block === undefined ? undefined : { ...record, subnets: [...subnets, block] };
  }
}
