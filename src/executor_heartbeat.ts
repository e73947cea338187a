/**
 * @module What a node tells of itself with each heartbeat, besides how its network fares: what its machine has, its Engine, and
 * what is on that. Puts together what others know.
 */
import type { Container } from "./converge.ts";
import type { DiskLimit } from "./executor_disk.ts";
import { type EngineStatus, type Heartbeat, LABELS } from "./model.ts";
import { MAX_NAMES } from "./model_bounds.ts";
import type { Meter } from "./resources.ts";

export type HeartbeatParts = {
  meter: Meter;
  disk: DiskLimit;
  engine: EngineStatus;
  dataRoot: string | undefined;
  own: Iterable<Container>;
  others: readonly Container[];
  /** Names of all there are; undefined: not known. */
  volumes: readonly string[] | undefined;
  networks: ReadonlySet<string> | undefined;
  noSecrets: string | undefined;
};

export function heartbeatOf(parts: HeartbeatParts): Omit<Heartbeat, "type" | "sequence"> {
  const { others, dataRoot, volumes, networks, noSecrets } = parts;
  const own = [...parts.own];
  const running = own.filter(({ state }) => state === "running");
  const resources = parts.meter.read({
    containers: running.map(({ id }) => id),
    ownPorts: published(own.filter(({ state }) => state === "running" || state === "paused")),
    otherPorts: published(others),
    dataRoot,
  });
  const fullDisk = parts.disk.fault(resources?.disk, dataRoot);
  const foreign = others.flatMap(({ id, name, labels }) => {
    const cluster = labels.get(LABELS.cluster);
    return cluster === undefined ? [] : [{ container_id: id, name, cluster_id: cluster }];
  });
  return {
    ...(resources && { resources }),
    engine: parts.engine,
    ...(volumes && volumes.length <= MAX_NAMES && { volumes: [...volumes] }),
    ...(networks && networks.size <= MAX_NAMES && { networks: [...networks].sort() }),
    ...(noSecrets !== undefined && { no_secrets: noSecrets }),
    ...(fullDisk !== undefined && { full_disk: fullDisk }),
    foreign,
  };
}

function published(containers: readonly Container[]): string[] {
  return containers.flatMap(({ ports }) => ports.map(({ protocol, host_port }) => `${protocol}/${host_port}`));
}
