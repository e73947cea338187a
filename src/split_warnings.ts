/**
 * @module Whether services that share a network can reach each other: they can't where their replicas are on different nodes and
 * the network is of one node each. Pure; from what nodes report.
 */
import type { ClusterState } from "./cluster_state.ts";
import { serviceKey } from "./cluster_state.ts";
import { networksOf } from "./container_options.ts";
import type { LiveJob } from "./model.ts";

/** By service, one sentence for each other service of the job that some of its replicas cannot reach. */
export function splitWarnings(job: LiveJob, state: ClusterState): Map<string, string[]> {
  const places = job.services.map(({ service_name, spec_hash }) => {
    const spec = state.specs.get(spec_hash);
    const allocations = state.allocationsOf(serviceKey({ job_id: job.job_id, service_name }));
    const running = allocations.filter((one) => one.desired === "run" && state.status(one)?.state === "running");
    const nodes = new Set(running.map(({ node_id }) => node_id));
    const networks = spec ? networksOf(spec, job.job_id) : [];
    const reaching = new Set(networks.filter((network) => [...nodes].every((id) => has(network, id, state))));
    return { service_name, networks, nodes, reaching };
  });
  const warnings = new Map<string, string[]>();
  for (const [index, one] of places.entries()) {
    for (const other of places.slice(index + 1)) {
      const gap = gapBetween(one, { other, state });
      if (gap !== undefined) warnings.set(one.service_name, [...(warnings.get(one.service_name) ?? []), gap]);
    }
  }
  return warnings;
}

type Place = {
  service_name: string;
  networks: readonly string[];
  nodes: ReadonlySet<string>;
  /** Those that reach over nodes from all of its nodes. */
  reaching: ReadonlySet<string>;
};

function gapBetween(one: Place, { other, state }: { other: Place; state: ClusterState }): string | undefined {
  const shared = one.networks.filter((network) => other.networks.includes(network));
  if (shared.length === 0 || shared.some((network) => one.reaching.has(network) && other.reaching.has(network)))
    return undefined;
  for (const from of one.nodes) {
    for (const to of other.nodes) {
      if (from === to || shared.some((network) => has(network, from, state) && has(network, to, state))) continue;
      const [a, b] = [from, to].map((id) => state.nodes.get(id)?.node_name ?? id);
      return `${one.service_name} on ${a} and ${other.service_name} on ${b} cannot reach each other by name: ${whyNot(shared, { from, to, state })}`;
    }
  }
  return undefined;
}

/** Whether a network reaches over nodes from this one. What a node has not told of yet is not held against it. */
function has(network: string, nodeId: string, state: ClusterState): boolean {
  const overlay = state.views.get(nodeId)?.overlay;
  return !overlay || overlay.networks.some((known) => known.network === network);
}

function whyNot(
  networks: readonly string[],
  { from, to, state }: { from: string; to: string; state: ClusterState },
): string {
  for (const id of [from, to]) {
    const overlay = state.views.get(id)?.overlay;
    if (overlay?.mode === "none")
      return `the network of ${state.nodes.get(id)?.node_name ?? id} is its own${overlay.reason === undefined ? " (--network none)" : ` (${overlay.reason})`}`;
  }
  return `${networks.join(", ")} is of one node each; bridges without a subnet of their own reach over nodes`;
}
