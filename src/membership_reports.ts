/**
 * @module What nodes say, read and checked before the master believes it: the bounds of a message, and what a node may say of
 * its own addresses. What is left out of a report is told in the log, each thing once; the session goes on.
 */
import type { Log } from "./log.ts";
import { type Bounded, cut, MAX_HELLO_CHARS, MAX_REPORT_CHARS, readBounded } from "./model_bounds.ts";
import { type NodeMessage, nodeMessage, type NodeRecord } from "./model.ts";
import type { NodeNetwork } from "./model_network.ts";
import { contains } from "./subnet.ts";

/** A message of a node. `isHello`: nobody has said yet who this is. */
export function readNodeMessage(text: string, { isHello }: { isHello: boolean }): Bounded<NodeMessage> {
  const max = isHello ? MAX_HELLO_CHARS : MAX_REPORT_CHARS;
  if (text.length > max) return { ok: false, fault: `message: has ${text.length} characters, of ${max} at most` };
  try {
    return readBounded(nodeMessage, JSON.parse(text));
  } catch {
    return { ok: false, fault: "message: is not JSON" };
  }
}

/** What a node says of its networks, without those that are not in its own blocks: they become rules on other nodes. */
export function ownNetworks(
  overlay: NodeNetwork,
  { subnets = [] }: Pick<NodeRecord, "subnets">,
): { overlay: NodeNetwork; faults: string[] } {
  const isOwn = ({ subnet }: { subnet: string }) => subnets.some((block) => contains(block, subnet));
  const foreign = overlay.networks.filter((one) => !isOwn(one));
  if (foreign.length === 0) return { overlay, faults: [] };
  const faults = foreign.map(
    ({ network, subnet }) =>
      `overlay.networks: ${cut(network, 80)} has ${subnet}, which is in none of the node's blocks [${subnets.join(", ")}]`,
  );
  return { overlay: { ...overlay, networks: overlay.networks.filter(isOwn) }, faults };
}

/** Things that are told of one node: who reads the log needs the first ones, and a hostile node has no end of them. */
const MAX_FAULTS = 10;

/** What was left out of nodes' reports, told once each. */
export class ReportFaults {
  readonly #log: Log;
  readonly #told = new Map<string, Set<string>>();

  constructor(log: Log) {
    this.#log = log;
  }

  tell(nodeId: string, faults: readonly string[]): void {
    if (faults.length === 0) return;
    const told = this.#told.get(nodeId) ?? new Set();
    this.#told.set(nodeId, told);
    for (const fault of faults) {
      if (told.size >= MAX_FAULTS || told.has(fault)) continue;
      told.add(fault);
      const last = told.size === MAX_FAULTS && { hint: "what else is left out of this node's reports is not told" };
      this.#log.warn("left out a part of a node's report", { node: nodeId, fault, ...last });
    }
  }

  forget(nodeId: string): void {
    this.#told.delete(nodeId);
  }
}
