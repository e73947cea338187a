/**
 * @module The first and, if nothing comes of it, the last of a new node: taken in where there are not too many, given its block of
 * addresses when it is ready, and forgotten where it never is. Owns what is under way of that; Membership owns the rest.
 */
import type { Clock } from "./clock.ts";
import type { Log } from "./log.ts";
import { Admission, strangers } from "./membership_admission.ts";
import { isSettled, knownAs, recordFor, sameRecord, settledRecord } from "./membership_records.ts";
import { CacophonyError, type Change, type Hello, type NodeRecord } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";

export type NewcomersOptions = {
  scheduler: Scheduler;
  clock: Clock;
  log: Log;
  selfId: string;
  /** A node has its block, or there is none left. */
  onSettled: (nodeId: string) => void;
  /** A node's record is gone. */
  onForgotten: (nodeId: string) => void;
  writeFailed: (error: unknown) => void;
};

export class Newcomers {
  readonly #options: NewcomersOptions;
  readonly #admission: Admission;
  /** Nodes that are ready for the first time, and nodes that are being forgotten, while that is written down. */
  readonly #settling = new Set<string>();
  readonly #forgetting = new Set<string>();
  /** Nodes that the cluster's range had no block left for: they work without, and get one when one is free. */
  readonly #blockless = new Set<string>();

  constructor(options: NewcomersOptions) {
    this.#options = options;
    this.#admission = new Admission(options.clock.now());
  }

  /**
   * Writes down who said hello, if `admits` the record that it is to have; undefined where not, and where the node has to try again:
   * it is one new node too many for now, its Engine has not told its id, or it left meanwhile. A member stays one, as it was known,
   * where what is new of it can't be written.
   */
  async record(hello: Hello, admits: (record: NodeRecord) => boolean): Promise<NodeRecord | undefined> {
    try {
      return await this.#written(hello, admits);
    } catch (error) {
      const { former } = knownAs(hello, this.#options.scheduler.state);
      const isUnwritten = error instanceof CacophonyError && error.code === "store_failed";
      if (!isUnwritten || !former || !admits(former)) throw error;
      this.#options.writeFailed(error);
      return former;
    }
  }

  async #written(hello: Hello, admits: (record: NodeRecord) => boolean): Promise<NodeRecord | undefined> {
    const { scheduler, clock, log, selfId } = this.#options;
    const from = { name: hello.node_name, address: hello.address };
    // Containers on it may be of a node that the cluster has. Nodes wait for that by themselves; those of earlier versions do not.
    if (hello.cluster_id === undefined && hello.engine.engine_id === undefined && hello.node_id !== selfId) {
      log.warn("a new node has to try again once its Docker Engine answers", from);
      return undefined;
    }
    const { state } = scheduler;
    let record: NodeRecord | undefined;
    let forgotten: string[] = [];
    await scheduler.change(() => {
      const now = clock.now();
      const known = knownAs(hello, state);
      const next = recordFor(hello, { known, state, selfId, now });
      const isNew = next.never_ready === true && !known.former;
      const { leaving, isFull } = strangers(state, { now, isOneMore: isNew });
      if (!admits(next)) return [];
      if (isNew && next.role !== "master" && (isFull || !this.#admission.takes(now))) {
        log.warn("too many new nodes at once: this one has to try again", from);
        return [];
      }
      record = next;
      forgotten = isNew ? leaving : [];
      const changes: Change[] = forgotten.map((key) => ({ op: "delete", kind: "node", key }));
      if (!sameRecord(next, state.nodes.get(next.node_id))) changes.push({ op: "put", kind: "node", record: next });
      const isBack = state.departures.has(next.node_id) && !next.drain?.leave;
      return isBack ? [...changes, { op: "delete", kind: "departure", key: next.node_id }] : changes;
    });
    for (const nodeId of forgotten) this.#drop(nodeId);
    if (record && record.node_id !== hello.node_id)
      log.info("a machine without its data directory is known by its Docker Engine's id", {
        ...from,
        node: record.node_id,
      });
    return record && state.nodes.get(record.node_id);
  }

  /** The node begins a session. */
  begin(nodeId: string): void {
    this.#blockless.delete(nodeId);
  }

  /**
   * Whether a node that could work has what it needs for that: a block of addresses, if there is one left. A new node gets it now,
   * and is told of it before it is ready, so that it knows where its containers' networks go before it has any.
   */
  isSettled(nodeId: string): boolean {
    const { state, cluster } = this.#options.scheduler;
    const record = state.nodes.get(nodeId);
    if (!record || isSettled(record)) return true;
    const isWaiting = this.#blockless.has(nodeId);
    const isDue = !isWaiting || state.blocks.free(cluster.network_cidr) !== undefined;
    if (isDue && !this.#settling.has(nodeId)) void this.#settle(nodeId);
    return isWaiting;
  }

  async #settle(nodeId: string): Promise<void> {
    const { scheduler, onSettled, writeFailed } = this.#options;
    const { state } = scheduler;
    this.#settling.add(nodeId);
    try {
      await scheduler.change(() => {
        const record = state.nodes.get(nodeId);
        const next = record && settledRecord(record, { state, range: scheduler.cluster.network_cidr });
        if (next?.subnets) this.#blockless.delete(nodeId);
        else if (next) this.#blockless.add(nodeId);
        return next && !sameRecord(next, record) ? [{ op: "put", kind: "node", record: next }] : [];
      });
    } catch (error) {
      return writeFailed(error);
    } finally {
      this.#settling.delete(nodeId);
    }
    scheduler.directory.introduce(nodeId);
    onSettled(nodeId);
  }

  /** Forgets the nodes whose time has come. */
  forgetStrangers(): void {
    const { scheduler, clock, writeFailed } = this.#options;
    const due = () => strangers(scheduler.state, { now: clock.now() }).leaving;
    for (const nodeId of due()) {
      if (this.#forgetting.has(nodeId)) continue;
      this.#forgetting.add(nodeId);
      // Asked again when it is written: it may be back by then.
      const forgotten = scheduler.change(() =>
        due().includes(nodeId) ? [{ op: "delete", kind: "node", key: nodeId }] : [],
      );
      void forgotten
        .then(() => this.#drop(nodeId))
        .catch(writeFailed)
        .finally(() => this.#forgetting.delete(nodeId));
    }
  }

  #drop(nodeId: string): void {
    const { scheduler, onForgotten } = this.#options;
    if (scheduler.state.nodes.has(nodeId)) return;
    scheduler.state.views.delete(nodeId);
    this.#blockless.delete(nodeId);
    onForgotten(nodeId);
    scheduler.directory.touchNetworks();
    scheduler.wakeForNode(nodeId);
  }
}
