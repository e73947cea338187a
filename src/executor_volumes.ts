/**
 * @module The named volumes of one node: made before the first container that mounts them, and removed only when a deleted
 * job's owner said so.
 *
 * Owns whose volume is whose: one made for another job is never mounted nor removed; one without our labels (made by hand, or
 * by compose) is used as it is.
 */
import type { Engine } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import { volumeName } from "./container_options.ts";
import { isRefusal, Refusal } from "./executor_words.ts";
import { LABELS } from "./model.ts";
import { type ServiceSpec, type VolumeSpec } from "./model_spec.ts";

type Owner = { clusterId: string; nodeId: string };

/**
 * Makes sure that every named volume of `spec` exists.
 * @throws {Refusal} if an external one is missing, or one belongs to another job.
 */
export async function ensureVolumes(engine: Engine, options: { spec: ServiceSpec; jobId: string; owner: Owner }) {
  for (const mount of options.spec.mounts) {
    if (mount.type === "volume" && mount.volume) await ensureVolume(engine, { ...options, volume: mount.volume });
  }
}

/** Removes the volumes that were made for a job. Resolves only if none is left. */
export async function removeVolumes(engine: Engine, { jobId, owner }: { jobId: string; owner: Owner }): Promise<void> {
  const volumes = await engine.volumes([`${LABELS.cluster}=${owner.clusterId}`, `${LABELS.job}=${jobId}`]);
  for (const { name } of volumes) await engine.removeVolume(name);
}

async function ensureVolume(
  engine: Engine,
  options: { volume: VolumeSpec; jobId: string; owner: Owner },
): Promise<void> {
  const { volume, jobId, owner } = options;
  const name = volumeName(volume, jobId);
  const found = await engine.volume(name);
  if (volume.external) {
    if (!found)
      throw new Refusal(`external volume ${name} does not exist on this node; make it: docker volume create ${name}`);
    return;
  }
  if (!found) return createVolume(engine, { ...options, name });
  const theirs = found.labels.get(LABELS.job);
  const cluster = found.labels.get(LABELS.cluster);
  if (theirs === undefined && cluster === undefined) return;
  if (cluster !== owner.clusterId) {
    throw new Refusal(`volume ${name} belongs to job ${theirs} of another cluster (${cluster}); remove or rename it`);
  }
  if (theirs !== jobId) {
    throw new Refusal(`volume ${name} belongs to job ${theirs}; declare it as external to share it`);
  }
}

async function createVolume(
  engine: Engine,
  { name, volume, jobId, owner }: { name: string; volume: VolumeSpec; jobId: string; owner: Owner },
): Promise<void> {
  const ours: [string, string][] = [
    [LABELS.cluster, owner.clusterId],
    [LABELS.node, owner.nodeId],
    [LABELS.job, jobId],
  ];
  try {
    await engine.createVolume({
      name,
      ...(volume.driver !== undefined && { driver: volume.driver }),
      driverOpts: Object.fromEntries(volume.driver_opts),
      labels: Object.fromEntries([...volume.labels, ...ours]),
    });
  } catch (error) {
    if (!(error instanceof EngineError) || !isRefusal(error)) throw error;
    throw new Refusal(`volume ${name} cannot be created: ${error.message}`, { cause: error });
  }
}
