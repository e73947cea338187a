/**
 * @module Since when nodes' Docker Engines do not answer, as the nodes tell: when what they run is given up for that, and what is
 * written down of it for a master that starts later. Membership tells it all that nodes say.
 */
import type { Clock } from "./clock.ts";
import type { ClusterState, NodeView } from "./cluster_state.ts";
import type { Change, EngineStatus } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";

const DEFAULT_ENGINE_TIMEOUT_MS = 60_000;

export type DeadEnginesOptions = {
  scheduler: Scheduler;
  clock: Clock;
  /** After how long a dead Docker Engine's containers are replaced elsewhere. Milliseconds; a minute unless said. */
  engineTimeoutMs?: number;
  writeFailed: (error: unknown) => void;
};

export class DeadEngines {
  readonly #options: DeadEnginesOptions;
  readonly #since = new Map<string, number>();

  constructor(options: DeadEnginesOptions) {
    this.#options = options;
  }

  /** Takes in what a node says of its Engine. */
  note(nodeId: string, { view, engine }: { view: NodeView; engine: EngineStatus }): void {
    const { scheduler, clock, writeFailed } = this.#options;
    view.engine = engine;
    if (engine.state === "ready") this.#since.delete(nodeId);
    else if (!this.#since.has(nodeId)) this.#since.set(nodeId, clock.now());
    const changes = () => engineChanges(scheduler.state, nodeId);
    // When this fails, the next heartbeat brings it again.
    if (changes().length > 0) scheduler.change(changes).catch(writeFailed);
  }

  /** Whether it has not answered for so long that what its node runs is given up. */
  isOver(nodeId: string): boolean {
    const { clock, engineTimeoutMs = DEFAULT_ENGINE_TIMEOUT_MS } = this.#options;
    const since = this.#since.get(nodeId);
    return since !== undefined && clock.now() - since > engineTimeoutMs;
  }

  /** The master heard nobody for a while, which is not the Engines' time. */
  postpone(later: (at: number) => number): void {
    for (const [id, at] of this.#since) this.#since.set(id, later(at));
  }

  /** The node is no member any more, or was never one. */
  delete(nodeId: string): void {
    this.#since.delete(nodeId);
  }
}

/** The change of a node's record after it has told of its Engine; mostly none: that it does not answer is noted while the node has
 * what must never run twice (`stop_when_isolated`). */
function engineChanges(state: ClusterState, nodeId: string): Change[] {
  const record = state.nodes.get(nodeId);
  const engine = state.views.get(nodeId)?.engine;
  if (!record || !engine || (engine.state === "ready" && !record.engine_silent)) return [];
  const { engine_silent = false, ...rest } = record;
  const isAlone = ({ spec_hash, ended }: { spec_hash: string; ended?: unknown }) =>
    ended === undefined && state.specs.get(spec_hash)?.stop_when_isolated_ms !== undefined;
  const isSilent = engine.state !== "ready" && state.allocationsOn(nodeId).some(isAlone);
  if (isSilent === engine_silent) return [];
  return [{ op: "put", kind: "node", record: { ...rest, ...(isSilent && { engine_silent: true }) } }];
}
