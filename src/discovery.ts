/**
 * @module Services in the words of tools that people run already: targets for Prometheus (http_sd_config) and a dynamic
 * configuration for Traefik (its HTTP provider). Pure.
 */
import type { ReplicaView, ServiceView } from "./service_views.ts";

// ---- Prometheus -------------------------------------------------------------------------------------------------------

export type TargetGroup = { targets: string[]; labels: Record<string, string> };

/**
 * One group for each port of each replica that runs: where the port is published on the node, there, else at the replica's own
 * address. Ready or not, so that what is unwell is seen to be. Source: Prometheus, "Writing HTTP service discovery".
 */
export function prometheusTargets(services: readonly ServiceView[]): TargetGroup[] {
  return services.flatMap((service) =>
    service.replicas
      .filter(({ state }) => state === "running")
      .flatMap((replica) =>
        portsOf(service, replica).flatMap(({ container_port, protocol }) => {
          if (protocol !== "tcp") return [];
          const target = targetOf(replica, container_port);
          if (!target) return [];
          const { host, port, network } = target;
          const labels = {
            __meta_cacophony_job: service.job_id,
            __meta_cacophony_service: service.service_name,
            __meta_cacophony_slot: String(replica.slot),
            __meta_cacophony_allocation_id: replica.allocation_id,
            __meta_cacophony_node_id: replica.node_id,
            __meta_cacophony_node: replica.node_name ?? "",
            __meta_cacophony_container_port: String(container_port),
            __meta_cacophony_network: network,
            __meta_cacophony_health: replica.health ?? "",
            __meta_cacophony_ready: String(replica.ready),
            ...Object.fromEntries(
              Object.entries(service.labels).map(([name, value]) => [
                `__meta_cacophony_label_${name.replace(/[^a-zA-Z0-9_]/g, "_")}`,
                value,
              ]),
            ),
          };
          return [{ targets: [`${bracketed(host)}:${port}`], labels }];
        }),
      ),
  );
}

/** The ports that the document tells of, and those that are published. */
function portsOf({ ports, entries }: ServiceView, replica: ReplicaView) {
  const all = [...ports, ...replica.ports, ...entries].map(({ container_port, protocol }) => ({
    container_port,
    protocol,
  }));
  return [...new Map(all.map((port) => [`${port.container_port}/${port.protocol}`, port])).values()];
}

/** Where a port of a replica is reached from outside of its networks, or on `network` where it has that. */
function targetOf(replica: ReplicaView, containerPort: number, network?: string) {
  const shared = replica.addresses.find((one) => one.network === network);
  if (shared) return { host: shared.address, port: containerPort, network: shared.network };
  const published = replica.ports.find(
    ({ container_port, protocol, host_ip }) =>
      container_port === containerPort && protocol === "tcp" && !isLoopback(host_ip),
  );
  if (published && replica.node_host !== null) {
    const { host_ip, host_port } = published;
    const isAny = host_ip === "" || host_ip === "0.0.0.0" || host_ip === "::";
    return { host: isAny ? replica.node_host : host_ip, port: host_port, network: "" };
  }
  const [first] = replica.addresses;
  return first && { host: first.address, port: containerPort, network: first.network };
}

/** What is published there is for the node itself. */
function isLoopback(hostIp: string): boolean {
  return hostIp === "::1" || hostIp.startsWith("127.");
}

function bracketed(host: string): string {
  return host.includes(":") ? `[${host}]` : host;
}

// ---- Traefik ----------------------------------------------------------------------------------------------------------

type Tree = { [key: string]: Tree | Tree[] | string[] | string | number | boolean };

/**
 * The configuration that `traefik.…` labels of containers ask for, each service of it with the ready replicas as its servers.
 * A service without such labels, or with `traefik.enable=false`, is left out. Source: Traefik, "Routing configuration with
 * labels" and "HTTP provider".
 */
export function traefikConfiguration(services: readonly ServiceView[]): Tree {
  const all: Tree = {};
  for (const service of services) {
    const labels = Object.entries(service.labels)
      .filter(([name]) => name.toLowerCase().startsWith("traefik."))
      .map(([name, value]): [string[], string] => [name.split(".").slice(1), value]);
    if (labels.length === 0 || labels.some(([path, value]) => path[0] === "enable" && value !== "true")) continue;
    merge(all, configurationOf(service, labels));
  }
  return all;
}

/** The three kinds of traffic. */
const KINDS = ["http", "tcp", "udp"] as const;

function configurationOf(service: ServiceView, labels: readonly [string[], string][]): Tree {
  const tree: Tree = {};
  for (const [path, value] of labels) {
    if (KINDS.some((kind) => kind === path[0]?.toLowerCase())) put(tree, { path, value });
  }
  const own = `${service.service_name}-${service.job_id}`.replace(/[^a-zA-Z0-9-]/g, "-");
  for (const kind of KINDS) {
    const section = tree[kind] as Tree | undefined;
    if (!section) continue;
    const network = labels.find(([path]) => path.join(".").toLowerCase() === "docker.network")?.[1];
    const routers = (section["routers"] ?? {}) as Tree;
    const named = (section["services"] ?? {}) as Tree;
    if (Object.keys(named).length === 0 && Object.keys(routers).length > 0) named[own] = {};
    // An empty section would make Traefik refuse all of the document.
    if (Object.keys(named).length > 0) section["services"] = named;
    const names = Object.keys(named);
    for (const [name, defined] of Object.entries(named)) {
      const balancer = ((defined as Tree)["loadBalancer"] ??= {}) as Tree;
      const server = (balancer["server"] ?? {}) as Tree;
      delete balancer["server"];
      balancer["servers"] = serversOf(service, { kind, server, network });
      named[name] = defined as Tree;
    }
    for (const router of Object.values(routers) as Tree[]) {
      // As the Docker provider does: a router that names no service leads to the only one.
      if (router["service"] === undefined && names[0] !== undefined && names.length === 1) router["service"] = names[0];
    }
  }
  return tree;
}

function serversOf(
  service: ServiceView,
  { kind, server, network }: { kind: (typeof KINDS)[number]; server: Tree; network: string | undefined },
): Tree[] {
  return service.replicas
    .filter(({ ready }) => ready)
    .flatMap((replica): Tree[] => {
      const asked = Number(server["port"]);
      const protocol = kind === "udp" ? "udp" : "tcp";
      const ports = portsOf(service, replica).filter((one) => one.protocol === protocol);
      // The lowest one, as the Docker provider chooses.
      const port = asked > 0 ? asked : Math.min(...ports.map(({ container_port }) => container_port));
      const target = Number.isFinite(port) ? targetOf(replica, port, network) : undefined;
      if (!target) return [];
      const address = `${bracketed(target.host)}:${target.port}`;
      const scheme = typeof server["scheme"] === "string" ? server["scheme"] : "http";
      return [kind === "http" ? { url: `${scheme}://${address}` } : { address }];
    });
}

/** Names of Traefik's fields in the spelling that its JSON has; labels may be written in any. */
const FIELDS = new Map(
  [
    "routers",
    "services",
    "middlewares",
    "loadBalancer",
    "server",
    "servers",
    "entryPoints",
    "tls",
    "service",
    "rule",
  ].map((name) => [name.toLowerCase(), name]),
);
/**
 * Fields that are lists of texts, which labels write with commas; Traefik refuses all of a document that has a text there.
 * Source: its `pkg/config/dynamic`, the fields of type `[]string` that labels can set.
 */
const LISTS = new Set(
  [
    "accessControlAllowHeaders",
    "accessControlAllowMethods",
    "accessControlAllowOriginList",
    "accessControlAllowOriginListRegex",
    "accessControlExposeHeaders",
    "addAuthCookiesToResponse",
    "allowedHosts",
    "allowOrigins",
    "authRequestHeaders",
    "authResponseHeaders",
    "encodings",
    "entryPoints",
    "excludedContentTypes",
    "excludedIPs",
    "hostsProxyHeaders",
    "includedContentTypes",
    "middlewares",
    "prefixes",
    "sans",
    "sourceRange",
    "status",
    "users",
  ].map((name) => name.toLowerCase()),
);

const NO_LISTS_BELOW = new Set([
  "customrequestheaders",
  "customresponseheaders",
  "healthcheck",
  "info",
  "plugin",
  "sslproxyheaders",
]);

/** Whether the field at `path`, below the name of a router, service or middleware, is a list of texts. */
function isList(path: readonly string[]): boolean {
  const [field = "", of = "", above = ""] = path.toReversed().map((segment) => segment.toLowerCase());
  if (path.length <= 3) return false;
  // Below these, names are the user's or mean a flag.
  if (NO_LISTS_BELOW.has(of) || above === "plugin" || above === "healthcheck") return false;
  return field === "regex" ? of === "stripprefixregex" : LISTS.has(field);
}

/** `http.routers.NAME.rule`: kind, section, name, field. */
const SHORTEST_PATH = 4;
/** Traefik's own go down nine levels; one of thousands could not be written as JSON, and nobody would get an answer. */
const LONGEST_PATH = 32;
/** A label makes its whole list as long as it says. */
const MAX_INDEX = 99;

function put(tree: Tree, { path, value }: { path: readonly string[]; value: string }): void {
  // Of what no field of Traefik's can be, nothing is made: it would be an error in all of the document, or reach beyond it.
  const isTooLong = path.length > LONGEST_PATH;
  if (path.length < SHORTEST_PATH || isTooLong || path.some((segment) => segment.startsWith("__proto__"))) return;
  let at = tree;
  for (const [index, segment] of path.entries()) {
    const [, name = segment, number] = /^(.*?)\[(\d+)\]$/.exec(segment) ?? [];
    // The third segment is a name of the user's.
    const key = index === 2 ? name : (FIELDS.get(name.toLowerCase()) ?? name);
    const isLast = index === path.length - 1;
    if (isLast && index === SHORTEST_PATH - 1 && key === "loadBalancer") return;
    if (number !== undefined) {
      if (Number(number) > MAX_INDEX) return;
      const list = (Array.isArray(at[key]) ? at[key] : (at[key] = [])) as Tree[];
      const before = list[Number(number)];
      const item = isTree(before) ? before : (list[Number(number)] = {});
      if (isLast) list[Number(number)] = value as unknown as Tree;
      at = item;
      continue;
    }
    if (!isLast) {
      const below = at[key];
      at = typeof below === "object" && !Array.isArray(below) ? below : ((at[key] = {}) as Tree);
      continue;
    }
    // `tls=true` beside `tls.certresolver=…` says no more than that.
    if (isTree(at[key]) && value === "true") continue;
    at[key] = isList(path) ? value.split(",").map((part) => part.trim()) : typed(key, value);
  }
}

/** Labels are texts; the JSON wants flags and numbers. A port or a rule stays what it is. */
function typed(key: string, value: string): string | number | boolean | Tree {
  if (key === "tls" && value === "true") return {};
  if (value === "true" || value === "false") return value === "true";
  return /^(0|[1-9]\d{0,8})$/.test(value) && key !== "port" ? Number(value) : value;
}

function merge(into: Tree, from: Tree): void {
  for (const [key, value] of Object.entries(from)) {
    const here = into[key];
    const areTrees = isTree(here) && isTree(value);
    if (areTrees) merge(here, value);
    else if (here === undefined) into[key] = value;
  }
}

function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
