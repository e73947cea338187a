/**
 * @module A service's places on networks, as its document writes them, -> what its spec says of them: networks with their
 * definitions, and the node's own networks (`host`, `none`, `bridge`), which are network modes under another name.
 */
import { byPriority, networkName } from "./container_options.ts";
import { show } from "./job_grammar.ts";
import type { NetworkFields, ServiceFields } from "./job_keys.ts";
import type { Report } from "./job_service_files.ts";
import { BRIDGE_NAME_OPTION, isDeviceName } from "./model_network.ts";
import { type EndpointSpec, IFNAME, type NetworkSpec } from "./model_spec.ts";

type Place = NonNullable<ServiceFields["networks"]>[number][1];
type Definitions = ReadonlyMap<string, NetworkFields>;

/** Networks that Docker itself makes. They know no aliases and fixed addresses, and all but `bridge` exclude others. */
const OWN_NETWORKS: readonly string[] = ["host", "none", "bridge"];
/** Drivers of which a node has one network, that of `OWN_NETWORKS`, and can have no other. */
const OWN_DRIVERS: Readonly<Record<string, string>> = { host: "host", none: "none", null: "none" };

/**
 * The service with a network mode where its one network is an external one called `host`, `none` or `bridge`: that is how
 * documents had to write it before they had `network_mode`.
 */
export function withNetworkMode(
  service: ServiceFields,
  { networks, jobId, report }: { networks: Definitions; jobId: string; report: Report },
): ServiceFields {
  const { network_mode: mode, networks: own = [] } = service;
  const places: readonly (readonly [string, Place])[] = own.length > 0 ? own : [["default", {}]];
  if (mode) return service;
  for (const [key, { priority: _, gw_priority: __, ...place }] of places) {
    const name = networkName(networkOf(key, networks.get(key)), jobId);
    if (!networks.get(key)?.external || !OWN_NETWORKS.includes(name)) continue;
    const path = own.length > 0 ? report.member("networks", key) : ["networks"];
    const [extra] = Object.keys(place);
    if (extra !== undefined)
      report.fault([...path, extra], `is not possible on the network ${name} of the node: leave it out`);
    if (places.length > 1 && name !== "bridge")
      report.fault(path, `is the network ${name} of the node, which excludes all others; keep one`);
    if (places.length > 1) continue;
    const { networks: ___, ...rest } = service;
    return { ...rest, network_mode: name as "host" | "none" | "bridge" };
  }
  return service;
}

/** The service's networks with their definitions. The first one's MAC address is the container's, too. */
export function endpointsOf(
  places: readonly (readonly [string, Place])[],
  { service, networks, report }: { service: ServiceFields; networks: Definitions; report: Report },
): EndpointSpec[] {
  const all = places.map(([key, place]) =>
    endpoint(place, { key, network: networkOf(key, networks.get(key)), report }),
  );
  const first = byPriority(all)[0];
  const [own, its] = [service.mac_address, first?.mac_address];
  if (first && own && its && own !== its) {
    report.fault(
      ["mac_address"],
      `is ${own}, but that of the first network, ${first.network.key}, is ${its}; keep one`,
    );
  }
  return all;
}

function endpoint(
  place: Place,
  { key, network, report }: { key: string; network: NetworkSpec; report: Report },
): EndpointSpec {
  const { aliases = [], ipv4_address, ipv6_address, link_local_ips, mac_address, priority, gw_priority } = place;
  const options = new Map(place.driver_opts);
  if (place.interface_name) {
    const other = options.get(IFNAME);
    if (other !== undefined && other !== place.interface_name) {
      report.fault(
        [...report.member("networks", key), "interface_name"],
        `is ${show(place.interface_name)}, but driver_opts says ${show(other)}; keep one`,
      );
    }
    options.set(IFNAME, place.interface_name);
  }
  return {
    network,
    aliases,
    ...(ipv4_address ? { ipv4_address } : {}),
    ...(ipv6_address ? { ipv6_address } : {}),
    ...(link_local_ips === undefined ? {} : { link_local_ips }),
    ...(mac_address ? { mac_address } : {}),
    ...(options.size > 0 ? { driver_opts: [...options] } : {}),
    ...(priority === undefined ? {} : { priority }),
    ...(gw_priority ? { gw_priority } : {}),
  };
}

/** A network as it is made on a node, or found there. */
export function networkOf(key: string, fields: NetworkFields = {}): NetworkSpec {
  const { external: outside = false, internal, attachable, enable_ipv4, enable_ipv6 } = fields;
  const name = fields.name ?? (typeof outside === "object" ? outside.name : undefined);
  // An overlay is of many machines; what is made is a bridge of one.
  const driver = ["", "default", "bridge", "overlay"].includes(fields.driver ?? "") ? undefined : fields.driver;
  const ipam = fields.ipam && {
    ...(fields.ipam.driver === undefined ? {} : { driver: fields.ipam.driver }),
    config: (fields.ipam.config ?? []).map(({ subnet, ip_range, gateway, aux_addresses = [] }) => ({
      ...(subnet === undefined ? {} : { subnet }),
      ...(ip_range === undefined ? {} : { ip_range }),
      ...(gateway === undefined ? {} : { gateway }),
      aux_addresses,
    })),
    options: fields.ipam.options ?? [],
  };
  return {
    key,
    ...(name === undefined ? {} : { name }),
    ...(driver === undefined ? {} : { driver }),
    ...(internal === undefined ? {} : { internal }),
    ...(attachable === undefined ? {} : { attachable }),
    ...(enable_ipv4 === false ? { enable_ipv4 } : {}),
    ...(enable_ipv6 === undefined ? {} : { enable_ipv6 }),
    ...(ipam ? { ipam } : {}),
    external: outside !== false,
    driver_opts: fields.driver_opts ?? [],
    labels: fields.labels ?? [],
  };
}

/** What is said of networks on which no firewall of the node stands between containers and the APIs of nodes. */
export const REACHES_APIS =
  "lets its containers reach the API of every node, and so Docker on every node: nothing can keep them from it there";
/** Drivers of such networks. */
const OPEN_DRIVERS: readonly string[] = ["macvlan", "ipvlan"];
/** Bridges that have a use already, by names that Docker would take. */
const TAKEN_BRIDGES: readonly string[] = ["lo", "docker0", "docker_gwbridge", "cvx", "cwg"];

/** What of a network's definition can't be had on nodes, or is without effect; paths are below the network. */
export function checkNetwork(
  definition: NetworkFields | undefined,
  report: { fault(key: string, message: string): void; warn(key: string, message: string): void },
): void {
  const { external = false, name: _, ...own } = definition ?? {};
  if (external !== false) {
    for (const key of Object.keys(own)) report.warn(key, "is left out, as compose does: the network is external");
    return;
  }
  const { driver = "", enable_ipv4, enable_ipv6 } = own;
  const existing = Object.hasOwn(OWN_DRIVERS, driver) ? OWN_DRIVERS[driver] : undefined;
  if (existing !== undefined) {
    report.fault(
      "driver",
      `is ${driver}, of which a node has one network and makes no other: write external: true and name: ${existing}`,
    );
  }
  if (driver === "overlay") {
    report.warn("driver", "is left out: a bridge is made, and names reach the job's containers on the same node");
  }
  if (OPEN_DRIVERS.includes(driver)) report.warn("driver", `is ${driver}, which ${REACHES_APIS}`);
  const bridge = new Map(own.driver_opts).get(BRIDGE_NAME_OPTION);
  if (bridge !== undefined && (!isDeviceName(bridge) || TAKEN_BRIDGES.includes(bridge))) {
    report.fault(
      "driver_opts",
      `names the bridge ${JSON.stringify(bridge)}: write up to 15 letters, digits, '.', '_' and '-', the first a letter or digit, and no name that is taken (${TAKEN_BRIDGES.join(", ")})`,
    );
  }
  if (enable_ipv4 === false && !enable_ipv6)
    report.fault("enable_ipv4", "leaves the network without addresses: write enable_ipv6: true beside it");
}
