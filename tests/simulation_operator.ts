/**
 * @module The operator of the simulation: drains, pauses and removes nodes, and has replicas spread anew; keeps its own account of
 * what the nodes must be after each answer.
 */
import { CacophonyError, type NodeRecord } from "../src/model.ts";
import type { Scheduler } from "../src/scheduler.ts";
import type { NodeWish } from "../src/scheduler_nodes.ts";
import { ZONES } from "./simulation_services.ts";
import type { SimCluster } from "./simulation_cluster.ts";

/** What a node must be by the last answer; undefined: not known, or it is to leave. */
type Known = NonNullable<NodeWish["availability"]> | undefined;

/** Refusals that say only that a node left meanwhile, that it is the master, or that the disk is full. */
const REFUSALS = ["not_found", "conflict", "store_failed"];

export class SimOperator {
  readonly violations: string[] = [];
  readonly #cluster: SimCluster;
  readonly #random: () => number;
  readonly #say: (line: string) => void;
  readonly #known = new Map<string, Known>();
  /** Requests without an answer yet, by node. */
  readonly #underWay = new Map<string, Set<"put" | "remove">>();

  constructor(cluster: SimCluster, options: { random: () => number; say: (line: string) => void }) {
    this.#cluster = cluster;
    this.#random = options.random;
    this.#say = options.say;
    cluster.rules.isRemoving = (nodeId) => this.#underWay.get(nodeId)?.has("remove") === true;
  }

  /** Sends one request, if a master is there to take it. */
  act(): void {
    const scheduler = this.#cluster.scheduler;
    if (!scheduler) return;
    const node = this.#pick([...scheduler.state.nodes.values()]);
    const dice = this.#random();
    if (dice < 0.1 || !node) {
      const { moves } = scheduler.rebalance({ dryRun: false });
      this.#say(`POST rebalance: ${moves.length} moves`);
    } else if (dice < 0.3) {
      const zone = this.#pick([undefined, ...ZONES]);
      this.#put(scheduler, { node, wish: { labels: zone === undefined ? [] : [["zone", zone]] } });
    } else if (dice < 0.55) this.#put(scheduler, { node, wish: { availability: "drain", ...this.#haste() } });
    else if (dice < 0.63) this.#put(scheduler, { node, wish: { availability: "pause" } });
    else if (dice < 0.8) this.#put(scheduler, { node, wish: { availability: "active" } });
    else this.#remove(scheduler, { node, wish: this.#haste() });
  }

  /** Sets every node active again that is not. */
  heal(): void {
    const scheduler = this.#cluster.scheduler;
    for (const node of scheduler?.state.nodes.values() ?? []) {
      const isBusy = (this.#underWay.get(node.node_id)?.size ?? 0) > 0;
      if (scheduler && node.availability !== "active" && !isBusy)
        this.#put(scheduler, { node, wish: { availability: "active" } });
    }
  }

  /** The nodes must be what this operator was told. */
  compare(nodes: readonly NodeRecord[]): void {
    const stored = new Map(nodes.map((node) => [node.node_id, node]));
    for (const [nodeId, known] of this.#known) {
      const { availability } = stored.get(nodeId) ?? {};
      if (known !== undefined && known !== availability)
        this.violations.push(
          `node ${nodeId} is ${availability ?? "no member"}, but by the answers it must be ${known}`,
        );
    }
  }

  /** What was sent and not answered has happened or has not. */
  masterGone(): void {
    for (const nodeId of this.#underWay.keys()) this.#known.delete(nodeId);
    this.#underWay.clear();
  }

  #put(scheduler: Scheduler, { node: { node_id }, wish }: { node: NodeRecord; wish: NodeWish }): void {
    const { availability, labels, force, deadlineMs } = wish;
    const how = `${force ? " by force" : ""}${deadlineMs === undefined ? "" : ` within ${deadlineMs} ms`}`;
    this.#send(node_id, {
      text: `PUT ${node_id}: ${availability ?? JSON.stringify(labels)}${how}`,
      kind: "put",
      call: () => scheduler.putNode(node_id, wish),
      then: () => availability,
    });
  }

  #remove(scheduler: Scheduler, { node: { node_id }, wish }: { node: NodeRecord; wish: NodeWish }): void {
    this.#send(node_id, {
      text: `DELETE ${node_id}${wish.force ? " by force" : ""}`,
      kind: "remove",
      call: () => scheduler.removeNode(node_id, wish),
      then: () => undefined,
    });
  }

  #send(
    nodeId: string,
    request: { text: string; kind: "put" | "remove"; call: () => Promise<unknown>; then: () => Known },
  ): void {
    const { text, kind, call, then } = request;
    const underWay = this.#underWay.get(nodeId) ?? new Set();
    // One at a time: what the node must be is then what the last answer says.
    if (underWay.size > 0) return;
    this.#underWay.set(nodeId, underWay.add(kind));
    this.#known.delete(nodeId);
    this.#say(text);
    const isHeard = () => this.#underWay.get(nodeId) === underWay && underWay.delete(kind);
    call().then(
      () => {
        if (!isHeard()) return;
        this.#known.set(nodeId, then());
        this.#say(`  done: ${text}`);
      },
      (error: unknown) => {
        if (!isHeard()) return;
        const code = error instanceof CacophonyError ? error.code : String(error);
        this.#say(`  refused: ${text}: ${code}`);
        if (!REFUSALS.includes(code)) this.violations.push(`${text} failed: ${code}`);
      },
    );
  }

  #haste(): Pick<NodeWish, "force" | "deadlineMs"> {
    const deadlineMs = this.#pick([undefined, undefined, 0, 5_000, 30_000]);
    return { force: this.#random() < 0.3, ...(deadlineMs !== undefined && { deadlineMs }) };
  }

  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.#random() * list.length)];
  }
}
