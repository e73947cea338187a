/**
 * @module The ports that a container has published, the paths that it binds, the networks it is on, and the bridge of a network, read
 * from what Docker says about them.
 */
import type { Bind, ContainerEndpoint } from "./converge.ts";
import type { PublishedPort } from "./model_reports.ts";
import { BRIDGE_NAME_OPTION, isDeviceName } from "./model_network.ts";

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

/**
 * The device of a network with the driver `bridge`, and its bridge where that has an IPv4 subnet. `oddDevice`: the device has a
 * name that firewall rules can't hold, see `isDeviceName`.
 */
export type NetworkDevice = { device?: string; bridge?: Bridge; oddDevice?: string };

export function deviceOf(network: BridgeNetwork): NetworkDevice {
  const { id, driver, internal, options, subnets } = network;
  if (driver !== "bridge") return {};
  // Docker names the device after the network's id unless it is told otherwise.
  const device = options[BRIDGE_NAME_OPTION] || `br-${id.slice(0, 12)}`;
  if (!isDeviceName(device)) return { oddDevice: device };
  const subnet = subnets.find((text) => text.includes("."));
  return { device, ...(subnet !== undefined && { bridge: { device, subnet, internal } }) };
}

type NetworkSettings = Record<
  string,
  { NetworkID?: string; IPAddress?: string; GlobalIPv6Address?: string; MacAddress?: string }
>;

/** The networks of a container, as lists and inspections have them. */
export function endpointsOf(networks: NetworkSettings | null | undefined): { endpoints: ContainerEndpoint[] } {
  const endpoints = Object.entries(networks ?? {}).map(([network, endpoint]) => ({
    network,
    networkId: endpoint.NetworkID ?? "",
    address: endpoint.IPAddress ?? "",
    address6: endpoint.GlobalIPv6Address ?? "",
    mac: endpoint.MacAddress ?? "",
  }));
  return { endpoints };
}

/** The IPv4 addresses among them. */
export function addressesOf(endpoints: readonly ContainerEndpoint[]): { network: string; address: string }[] {
  return endpoints.flatMap(({ network, address }) => (address ? [{ network, address }] : []));
}
