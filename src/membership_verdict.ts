/** @module Whether a node is ready, unready or down, and why, from what its master knows of it. Pure. */
import type { NodeView } from "./cluster_state.ts";

/** Heartbeats after which a connected node that says nothing is not ready. */
export const SILENT_HEARTBEATS = 2.5;

/** A node notices within so many that its master is gone: it ends its session when the last two that were due had no answer. */
export const NOTICE_HEARTBEATS = 3.3;

export type VerdictFacts = {
  silentMs: number;
  heartbeatIntervalMs: number;
  /** What the silence of all nodes together says of this one's (`membership_silence.ts`). */
  concluded: "held" | "lost" | undefined;
};

export function verdictOf(
  { connected, engine, resources, reported }: NodeView,
  { silentMs, heartbeatIntervalMs, concluded }: VerdictFacts,
): { state: NodeView["state"]; reason: string } {
  const silent = `not heard from for ${Math.round(silentMs / 1000)} s`;
  if (concluded === "held")
    return { state: "down", reason: `${silent}, like most nodes: this master may be the one that is cut off` };
  if (concluded === "lost") return { state: "down", reason: silent };
  if (!connected) return { state: "unready", reason: "no session with the master" };
  if (silentMs > heartbeatIntervalMs * SILENT_HEARTBEATS) return { state: "unready", reason: silent };
  if (engine?.state === "unready") return { state: "unready", reason: engine.reason };
  if (!resources) return { state: "unready", reason: "no reading of its resources yet" };
  if (!reported) return { state: "unready", reason: "has not reported its containers yet" };
  return { state: "ready", reason: "" };
}
