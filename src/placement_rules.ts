/**
 * @module Rules of placement about the nodes themselves, whatever they have free: `deploy.placement.constraints`, external
 * volumes and networks, the platform, and Engines that are too old for what a service asks. Pure; `placement.ts` asks it about
 * each node.
 *
 * Constraints are Swarm's (docker service create, "Specify service constraints"): `==` and `!=`, without regard to case, and a
 * label that a node does not have equals nothing. `node.hostname` is the node's name; a manager is a node that is or may
 * become the master.
 */
import { byPriority, networkName, volumeName } from "./container_options.ts";
import { type NodeRecord } from "./model.ts";
import { type Constraint, CREDENTIAL_SPEC, IFNAME, type ServiceSpec } from "./model_spec.ts";
import { canRun, platformOf, readPlatform, writePlatform } from "./placement_platform.ts";
import { isOlderApi } from "./engine_version.ts";

/** What rules look at. `volumes` or `networks` undefined: the node has not told them, or has too many to tell. */
export type NodeFacts = Pick<NodeRecord, "node_id" | "node_name" | "role" | "platform"> & {
  labels: ReadonlyMap<string, string>;
  volumes: ReadonlySet<string> | undefined;
  networks: ReadonlySet<string> | undefined;
  /** Newest version of the Engine's API, as `1.43`. */
  apiVersion: string | undefined;
  /** Why the node can't hold secrets; undefined: it can. */
  noSecrets?: string | undefined;
};

/** What an Engine drops in silence when its API is older than `since` (moby, docs/api/version-history.md). */
const ENGINE_NEEDS: readonly { key: string; since: string; asks: (spec: ServiceSpec) => boolean }[] = [
  { key: "annotations", since: "1.43", asks: ({ annotations = [] }) => annotations.length > 0 },
  { key: "gw_priority", since: "1.48", asks: ({ networks = [] }) => networks.some((one) => one.gw_priority) },
  {
    key: "interface_name",
    since: "1.48",
    asks: ({ networks = [] }) => networks.some(({ driver_opts = [] }) => driver_opts.some(([key]) => key === IFNAME)),
  },
  {
    key: "enable_ipv4: false",
    since: "1.48",
    asks: ({ networks = [] }) => networks.some(({ network }) => network.enable_ipv4 === false),
  },
  {
    key: "volume.subpath",
    since: "1.45",
    asks: ({ mounts }) => mounts.some((mount) => mount.type === "volume" && mount.subpath !== undefined),
  },
  {
    key: "bind.recursive",
    since: "1.44",
    asks: ({ mounts }) => mounts.some((mount) => mount.type === "bind" && mount.recursive !== undefined),
  },
  {
    // A container is put on its further networks by calls of their own, which know it since then only.
    key: "mac_address on a further network",
    since: "1.54",
    asks: ({ networks = [] }) =>
      byPriority(networks)
        .slice(1)
        .some((one) => one.mac_address),
  },
];

/** A network may be named by its id, which nodes don't tell. */
const NETWORK_ID = /^[0-9a-f]{64}$/;

/** Why the node may not run the service, in one sentence; undefined: it may. */
export function unmetRule(
  { job_id, spec, constraints }: { job_id: string; spec: ServiceSpec; constraints: readonly Constraint[] },
  node: NodeFacts,
): string | undefined {
  const unmet = constraints.find((constraint) => !holds(constraint, node));
  if (unmet) return `does not match ${writeConstraint(unmet)}`;
  if (node.noSecrets !== undefined && spec.mounts.some(({ type }) => type === "secret"))
    return `has no place for secrets (${node.noSecrets})`;
  const foreign = foreignPlatform(spec, node);
  if (foreign !== undefined) return foreign;
  for (const mount of spec.mounts) {
    if (mount.type !== "volume" || !mount.volume?.external) continue;
    const name = volumeName(mount.volume, job_id);
    if (node.volumes && !node.volumes.has(name)) return `no external volume ${name} (docker volume create ${name})`;
  }
  for (const { network } of spec.networks ?? []) {
    const name = networkName(network, job_id);
    if (network.external && node.networks && !node.networks.has(name) && !NETWORK_ID.test(name))
      return `no external network ${name} (docker network create ${name})`;
  }
  if (node.platform && node.platform.os !== "windows" && asksCredentialSpec(spec))
    return `runs ${node.platform.os}, and credential_spec is for Windows`;
  const { apiVersion } = node;
  const missing =
    apiVersion !== undefined && ENGINE_NEEDS.find(({ since, asks }) => asks(spec) && isOlderApi(apiVersion, since));
  return missing
    ? `Docker is too old for ${missing.key} (API ${missing.since}, the node's is ${apiVersion})`
    : undefined;
}

function asksCredentialSpec({ security_opt = [] }: ServiceSpec): boolean {
  return security_opt.some((option) => option.startsWith(CREDENTIAL_SPEC));
}

/** Which platform the service's images are of that the node does not run. */
function foreignPlatform({ platform: text }: ServiceSpec, { platform: node }: NodeFacts): string | undefined {
  if (text === undefined || !node) return undefined;
  const own = platformOf(node.os, node.arch);
  const wanted = readPlatform(text);
  return wanted && canRun(own, wanted) ? undefined : `runs ${writePlatform(own)}, not ${text}`;
}

/** Whether all `constraints` hold for the node. */
export function matches(constraints: readonly Constraint[], node: NodeFacts): boolean {
  return constraints.every((constraint) => holds(constraint, node));
}

function holds({ key, operator, value }: Constraint, node: NodeFacts): boolean {
  const equal = actual(key, node).includes(normal(key, value));
  return operator === "==" ? equal : !equal;
}

/** The values that the node answers to, in normal form. */
function actual(key: string, node: NodeFacts): string[] {
  if (key.startsWith("node.labels.")) {
    const label = node.labels.get(key.slice("node.labels.".length));
    return label === undefined ? [] : [normal(key, label)];
  }
  const values: Readonly<Record<string, readonly (string | undefined)[]>> = {
    "node.id": [node.node_id],
    "node.name": [node.node_name],
    "node.role": [node.role, ...(node.role === "worker" ? [] : ["manager"])],
    "node.platform.arch": [node.platform?.arch],
    "node.platform.os": [node.platform?.os],
  };
  return (values[key] ?? []).flatMap((one) => (one === undefined ? [] : normal(key, one)));
}

function normal(key: string, value: string): string {
  const lower = value.toLowerCase();
  return key === "node.platform.arch" ? platformOf("", lower).arch : lower;
}

function writeConstraint({ key, operator, value }: Constraint): string {
  return `${key} ${operator} ${value}`;
}
