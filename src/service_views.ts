/**
 * @module Services as clients find them: names, ports and where each replica is reached. Pure; from the master's state and the
 * directory that nodes are told.
 */
import { allocationState, type OnFault, shown } from "./cluster_views.ts";
import type { ClusterState } from "./cluster_state.ts";
import { bySlot, serviceKey } from "./cluster_state.ts";
import type { PublishedPort } from "./model_reports.ts";
import type { EntryPort } from "./model_spec.ts";
import type { ServiceEntry } from "./model_network.ts";

export type ReplicaView = {
  slot: number;
  allocation_id: string;
  node_id: string;
  node_name: string | null;
  /** Host of the node's own address. */
  node_host: string | null;
  state: string;
  health: string | null;
  /** Names and entries lead to it. */
  ready: boolean;
  addresses: { network: string; address: string }[];
  /** What Docker publishes on its node. */
  ports: PublishedPort[];
};

export type ServiceView = {
  job_id: string;
  service_name: string;
  /** Names that lead to the ready replicas, for containers that share a network with them. */
  names: string[];
  aliases: ServiceEntry["aliases"];
  /** Ports that its containers listen on, as far as the document tells. */
  ports: ServiceEntry["ports"];
  /** Ports that are open on every node. */
  entries: EntryPort[];
  labels: Record<string, string>;
  replicas: ReplicaView[];
};

export function servicesView(
  state: ClusterState,
  { entries, onFault }: { entries: readonly ServiceEntry[]; onFault: OnFault },
): ServiceView[] {
  const sorted = entries.toSorted((a, b) => (serviceKey(a) < serviceKey(b) ? -1 : 1));
  const name = (entry: ServiceEntry) => ({ service: serviceKey(entry) });
  return shown(sorted, { view: (entry) => serviceView(state, entry), name, onFault });
}

export function serviceView(state: ClusterState, entry: ServiceEntry): ServiceView {
  const { job_id, service_name, aliases, ports, entries } = entry;
  const service = state.liveJob(job_id)?.services.find((one) => one.service_name === service_name);
  const labels = service && state.specs.get(service.spec_hash)?.labels;
  const endpoints = new Map(entry.endpoints.map((one) => [one.allocation_id, one]));
  const replicas = state
    .allocationsOf(serviceKey(entry))
    .toSorted(bySlot)
    .map((allocation): ReplicaView => {
      const { slot, allocation_id, node_id } = allocation;
      const node = state.nodes.get(node_id);
      const status = state.status(allocation);
      const endpoint = endpoints.get(allocation_id);
      return {
        slot,
        allocation_id,
        node_id,
        node_name: node?.node_name ?? null,
        node_host: node ? hostOf(node.address) : null,
        state: allocationState(allocation, state),
        health: status?.health ?? null,
        ready: endpoint?.ready ?? false,
        addresses: endpoint?.addresses ?? [],
        ports: status?.ports ?? [],
      };
    });
  const names = [service_name, `${service_name}.${job_id}`, `${service_name}.${job_id}.cacophony`];
  return { job_id, service_name, names, aliases, ports, entries, labels: Object.fromEntries(labels ?? []), replicas };
}

function hostOf(address: string): string {
  return address.slice(0, address.lastIndexOf(":")).replace(/^\[(.*)\]$/, "$1");
}
