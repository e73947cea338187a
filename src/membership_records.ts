/**
 * @module What a member's record becomes by what its node says: by a hello, and when it is ready for the first time. Pure;
 * Membership commits.
 */
import type { ClusterState } from "./cluster_state.ts";
import type { DepartureRecord, EngineStatus, Hello, NodeRecord } from "./model.ts";

/** Who says hello: a member, one that left, or (neither) somebody new. */
export type Known = { former: NodeRecord | undefined; departed: DepartureRecord | undefined };

export function knownAs(hello: Hello, { nodes, departures }: Pick<ClusterState, "nodes" | "departures">): Known {
  const engineId = hello.engine.engine_id;
  // A node that lost its data directory joins anew; its Docker Engine tells who it was, and with its id it gets its containers back.
  const isOnEngine = (node: { engine_id?: string }) => engineId !== undefined && node.engine_id === engineId;
  const isNew = hello.cluster_id === undefined;
  const former = isNew ? [...nodes.values()].find(isOnEngine) : nodes.get(hello.node_id);
  // A machine that comes again is whom it was, so that data on it are found; one that was removed while it was away, and does
  // not know, has to leave what it runs.
  const gone = departures.get(hello.node_id);
  const departed = former ? undefined : isNew ? ([...departures.values()].find(isOnEngine) ?? gone) : gone;
  return { former, departed };
}

export type RecordOptions = { known: Known; state: ClusterState; selfId: string; now: number };

/** The record of the node that says hello. */
export function recordFor(hello: Hello, { known, state, selfId, now }: RecordOptions): NodeRecord {
  const { former, departed } = known;
  const isDue = hello.cluster_id !== undefined && departed !== undefined;
  const node_id = former?.node_id ?? departed?.node_id ?? hello.node_id;
  const engine_id = hello.engine.engine_id ?? former?.engine_id ?? departed?.engine_id;
  const leave: NodeRecord["drain"] = { started_at: now, deadline_at: now, force: false, leave: true };
  const drain = isDue ? leave : former?.drain;
  // A name that could not be looked up this time leads where it led before.
  const underlay = hello.underlay ?? (hello.address === former?.address ? former.underlay : undefined);
  const neverReady = former ? former.never_ready : !departed;
  return {
    node_id,
    node_name: freeName(hello.node_name, { nodeId: node_id, state }),
    address: hello.address,
    role: node_id === selfId ? "master" : "worker",
    availability: isDue ? "drain" : (former?.availability ?? "active"),
    ...(drain && { drain }),
    ...(underlay !== undefined && { underlay }),
    ...(hello.api_addresses && { api_addresses: hello.api_addresses }),
    ...(hello.api_port !== undefined && { api_port: hello.api_port }),
    ...(former?.subnets && { subnets: former.subnets }),
    labels: hello.labels,
    set_labels: former?.set_labels ?? [],
    ...platformOf(hello.engine, former),
    ...(engine_id !== undefined && { engine_id }),
    ...(neverReady && { never_ready: true }),
    joined_at: former?.joined_at ?? now,
  };
}

/** Names need not be unique: a second equal one gets a suffix, and keeps it while the first is there. */
function freeName(wanted: string, { nodeId, state }: { nodeId: string; state: ClusterState }): string {
  const others = [...state.nodes.values()].filter((node) => node.node_id !== nodeId);
  const taken = new Set(others.map((node) => node.node_name));
  let name = wanted;
  for (let n = 2; taken.has(name); n++) name = `${wanted}-${n}`;
  return name;
}

/** Whether the member has been ready once, and has a block of addresses. */
export function isSettled({ never_ready, subnets }: NodeRecord): boolean {
  return never_ready === undefined && subnets !== undefined;
}

/** The record of a member that is ready for the first time, with its first block where the range has one left. */
export function settledRecord(
  record: NodeRecord,
  { state, range }: { state: ClusterState; range: string },
): NodeRecord {
  const { never_ready: _, ...rest } = record;
  const block = rest.subnets ? undefined : state.blocks.free(range);
  return { ...rest, ...(block !== undefined && { subnets: [block] }) };
}

/** The platform as the Engine tells it, or as it was known before. */
export function platformOf(
  engine: EngineStatus | undefined,
  former: NodeRecord | undefined,
): Pick<NodeRecord, "platform"> {
  const platform = engine?.state === "ready" ? engine.platform : former?.platform;
  return platform ? { platform } : {};
}

export function sameRecord(a: NodeRecord, b: NodeRecord | undefined): boolean {
  return b !== undefined && Bun.deepEquals(a, b);
}
