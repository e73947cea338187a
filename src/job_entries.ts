/**
 * @module Which ports of a service Docker publishes on the replica's node, and which are entries: open on every node, leading to
 * a healthy replica wherever it runs. A port is an entry by `mode: ingress` in its long form, or by `x-cacophony.publish: mesh`
 * for all of a service.
 */
import type { ServiceFields } from "./job_keys.ts";
import { portSpecs } from "./job_lists.ts";
import type { Report } from "./job_service_files.ts";
import type { Detail, EntryPort, ServiceRules } from "./model_spec.ts";

export type Ports = NonNullable<ServiceFields["ports"]>;

/** The ports that Docker is told of, each with its place in the document. */
export function hostPorts(service: ServiceFields): { port: Ports[number]; index: number }[] {
  return (service.ports ?? []).flatMap((port, index) => (isEntry(port, service) ? [] : [{ port, index }]));
}

/** The entries of a service, by port. */
export function entriesOf(service: ServiceFields, report: Report): EntryPort[] {
  const { balance = "local_first", proxy_protocol = "none" } = service["x-cacophony"] ?? {};
  const entries = new Map<string, EntryPort>();
  for (const [index, port] of (service.ports ?? []).entries()) {
    if (!isEntry(port, service)) continue;
    const fault = unfit(port, service);
    if (fault !== undefined) {
      report.fault(["ports", index], fault);
      continue;
    }
    for (const { container_port, protocol, host_port } of portSpecs(port)) {
      if (!host_port || protocol === "sctp") continue;
      const entry: EntryPort = { port: host_port.first, protocol, container_port, balance, proxy_protocol };
      const key = `${entry.port}/${protocol}`;
      const other = entries.get(key);
      if (other && other.container_port !== container_port)
        report.fault(
          ["ports", index],
          `opens port ${key} on every node, which leads to ${other.container_port} already`,
        );
      entries.set(key, entry);
    }
  }
  if (proxy_protocol !== "none" && [...entries.values()].some(({ protocol }) => protocol === "udp"))
    report.warn(["x-cacophony", "proxy_protocol"], "is for tcp; the service's udp entries go without it");
  return [...entries.values()];
}

function isEntry({ mode }: Ports[number], service: ServiceFields): boolean {
  return mode === "ingress" || (mode === undefined && service["x-cacophony"]?.publish === "mesh");
}

function unfit(
  { host, host_ip, protocol, container }: Ports[number],
  { network_mode }: ServiceFields,
): string | undefined {
  if (protocol === "sctp") return "is to be open on every node, which works for tcp and udp only";
  if (network_mode)
    return `is to be open on every node, but replicas have no address of their own with network_mode: ${network_mode}`;
  if (host_ip !== "")
    return `has the address ${host_ip}, but is to be open on every address of every node; leave it out`;
  if (!host) return "names no port to open on every node: write published, or 8080:80 in the short form";
  const isPaired = host.last - host.first === container.last - container.first;
  return isPaired
    ? undefined
    : "names a range to choose from, but the port has to be the same on every node: write one";
}

type Claimant = { job_id: string; service_name: string; rules: Pick<ServiceRules, "entries"> };

/** Faults of services whose entries another one has already: each port of the nodes leads to one service. */
export function doubleEntries(services: readonly Claimant[], others: Iterable<Claimant>): Detail[] {
  const holders = new Map<string, Claimant>();
  for (const other of others)
    for (const { port, protocol } of other.rules.entries ?? []) holders.set(`${port}/${protocol}`, other);
  return services.flatMap((service) =>
    (service.rules.entries ?? []).flatMap(({ port, protocol }): Detail[] => {
      const key = `${port}/${protocol}`;
      const holder = holders.get(key);
      holders.set(key, service);
      if (!holder) return [];
      const where = holder.job_id === service.job_id ? "" : ` of job ${holder.job_id}`;
      const message = `opens port ${key} on every node, which leads to service ${holder.service_name}${where} already: choose another`;
      return [{ path: `services.${service.service_name}.ports`, message }];
    }),
  );
}
