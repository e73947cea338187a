/** @module A container's published ports and bound paths, and the bridge of a network, read from what Docker says about them. */
import type { Bind } from "./converge.ts";
import type { PublishedPort } from "./model.ts";

/**
 * Published ports, each once: where Docker binds one port on all IPv4 and all IPv6 addresses, that is one published port
 * to its user.
 */
export function publishedPorts(bindings: readonly { key: string; ip?: string; port?: number }[]): PublishedPort[] {
  const ports: PublishedPort[] = [];
  for (const { key, ip, port } of bindings) {
    const [containerPort, protocol] = key.split("/");
    if (!port || (protocol !== "tcp" && protocol !== "udp" && protocol !== "sctp")) continue;
    const entry = { container_port: Number(containerPort), protocol, host_ip: ip ?? "", host_port: port } as const;
    const twin = ports.find((other) => isSamePort(other, entry) && isAnyAddress(other) && isAnyAddress(entry));
    if (!twin) ports.push(entry);
    else if (entry.host_ip === "0.0.0.0") twin.host_ip = entry.host_ip;
  }
  return ports.sort((a, b) => a.container_port - b.container_port || a.host_port - b.host_port);
}

/** The paths of its machine that a container mounts. */
export function bindsOf(
  mounts: readonly { Type?: string | undefined; Source: string; Destination: string }[] | null | undefined,
): Bind[] {
  const binds = (mounts ?? []).filter(({ Type }) => Type === "bind");
  return binds.map(({ Source, Destination }) => ({ source: Source, target: Destination }));
}

function isSamePort(a: PublishedPort, b: PublishedPort): boolean {
  return a.container_port === b.container_port && a.protocol === b.protocol && a.host_port === b.host_port;
}

function isAnyAddress({ host_ip }: PublishedPort): boolean {
  return host_ip === "" || host_ip === "0.0.0.0" || host_ip === "::";
}

type BridgeNetwork = {
  id: string;
  driver: string;
  internal: boolean;
  options: Record<string, string>;
  subnets: readonly string[];
};

/** A network's bridge device, its IPv4 subnet, and whether Docker keeps its containers to themselves. */
export type Bridge = { device: string; subnet: string; internal: boolean };

/** The bridge of a network that has one. */
export function bridgeOf(network: BridgeNetwork): { bridge?: Bridge } {
  const { id, driver, internal, options, subnets } = network;
  const subnet = subnets.find((text) => text.includes("."));
  if (driver !== "bridge" || subnet === undefined) return {};
  // Docker names the device after the network's id unless it is told otherwise.
  return { bridge: { device: options["com.docker.network.bridge.name"] ?? `br-${id.slice(0, 12)}`, subnet, internal } };
}
