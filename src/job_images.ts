/**
 * @module Which image the replicas of a service run: the digest that the first node found its tag to stand for, kept with the
 * service until its definition changes or a restart asks for the tag anew; and restarts, which are the other way to replace
 * replicas without a new definition. Pure; the Scheduler commits.
 */
import type { ClusterState } from "./cluster_state.ts";
import { findJob, findService } from "./job_changes.ts";
import type { AllocationRecord, AssignedImage, Change, JobServiceRecord, LiveJob } from "./model.ts";

/** Pull policies of compose by which a registry is asked only for what is absent. */
const USES_WHAT_IS_THERE: ReadonlySet<string> = new Set(["missing", "if_not_present", "never", "build"]);

/** Changes that settle the digests which nodes have found; the first one counts. A settled digest is no new version. */
export function changesForDigests(
  state: ClusterState,
  found: readonly { allocation_id: string; digest: string }[],
): { changes: Change[]; nodes: Set<string> } {
  const jobs = new Map<string, LiveJob>();
  const nodes = new Set<string>();
  for (const { allocation_id, digest } of found) {
    const allocation = state.allocations.get(allocation_id);
    const job = allocation && (jobs.get(allocation.job_id) ?? state.liveJob(allocation.job_id));
    const service = job && serviceOf(job, allocation);
    if (!service || service.digest !== undefined) continue;
    jobs.set(job.job_id, replaceService(job, { ...service, digest }));
    for (const { node_id } of state.allocationsOf(`${job.job_id}/${service.service_name}`)) nodes.add(node_id);
  }
  return { changes: [...jobs.values()].map((record) => ({ op: "put", kind: "job", record })), nodes };
}

/**
 * Changes that have every replica of a job, or of one of its services, replaced, one by one and in the order of `depends_on`; with `pull` by what its
 * image's tag stands for then. A service whose pull policy has the registry asked has it asked anew without that, too. What ran
 * to its end runs again.
 */
export function changesForRestart(
  state: ClusterState,
  { jobId, serviceName, pull, now }: { jobId: string; serviceName?: string | undefined; pull: boolean; now: number },
): { job: LiveJob; changes: Change[] } {
  const before = findJob(state, jobId);
  if (serviceName !== undefined) findService(before, serviceName);
  const services = before.services.map((service): JobServiceRecord => {
    if (serviceName !== undefined && service.service_name !== serviceName) return service;
    const released = service.rules.depends_on.length === 0;
    const next = { ...service, generation: (service.generation ?? 0) + 1, released };
    const asksAnew = !USES_WHAT_IS_THERE.has(state.specs.get(service.spec_hash)?.pull_policy ?? "missing");
    if (!pull && !asksAnew) return next;
    const { digest: _digest, ...rest } = next;
    return pull ? { ...rest, refresh: true } : rest;
  });
  const job: LiveJob = { ...before, services, version: before.version + 1, updated_at: now };
  return { job, changes: [{ op: "put", kind: "job", record: job }] };
}

/** What its node must know about the image of an allocation, if anything is settled. */
export function assignedImageOf(state: ClusterState, allocation: AllocationRecord): AssignedImage[] {
  const job = state.liveJob(allocation.job_id);
  const { digest, refresh = false } = (job && serviceOf(job, allocation)) ?? {};
  if (digest === undefined && !refresh) return [];
  return [{ allocation_id: allocation.allocation_id, ...(digest !== undefined && { digest }), refresh }];
}

/** A sentence for each image that replicas of one service do not have alike, as an image that was present may be older. */
export function imageWarnings(
  replicas: readonly { node_name: string | null; image_id: string | null; image_digest: string | null }[],
): string[] {
  const nodesOf = new Map<string, Set<string>>();
  const digests = new Set<string | null>();
  for (const { node_name, image_id, image_digest } of replicas) {
    if (image_id === null) continue;
    nodesOf.set(image_id, (nodesOf.get(image_id) ?? new Set()).add(node_name ?? "?"));
    digests.add(image_digest);
  }
  // One digest may stand for several images: one for each architecture.
  if (nodesOf.size < 2 || (digests.size === 1 && !digests.has(null))) return [];
  const list = [...nodesOf].map(
    ([id, nodes]) => `${id.replace("sha256:", "").slice(0, 12)} on ${[...nodes].toSorted().join(", ")}`,
  );
  return [
    `the replicas run different images, as present on their nodes: ${list.join("; ")}; POST …/restart with {"pull": true} makes them alike`,
  ];
}

const DOCKER_HUB = "docker.io";
const HUB_NAMES = new Set(["index.docker.io", "registry-1.docker.io"]);

/** The host that an image comes from: its first part if that looks like a host (Docker's own rule), else Docker Hub. */
export function registryOf(image: string): string {
  const [first = "", ...rest] = image.split("/");
  const host = rest.length > 0 && (/[.:]/.test(first) || first === "localhost") ? first : DOCKER_HUB;
  return HUB_NAMES.has(host) ? DOCKER_HUB : host;
}

/** `docker.io/library/redis` for `redis`: Docker writes either. */
export function fullName(image: string): string {
  if (registryOf(image) !== DOCKER_HUB) return image;
  const path = image.replace(/^[^/]*docker\.io\//, "");
  return `${DOCKER_HUB}/${path.includes("/") ? path : `library/${path}`}`;
}

/** A registry's host as logins go by; undefined if the text is none. */
export function registryHost(text: string): string | undefined {
  if (!/^[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:[0-9]{1,5})?$/.test(text)) return undefined;
  return registryOf(`${text}/image`) === text || HUB_NAMES.has(text) ? registryOf(`${text}/image`) : undefined;
}

/** The service as it is now, if that is what the allocation was made for. */
function serviceOf(job: LiveJob, allocation: AllocationRecord): JobServiceRecord | undefined {
  if (job.incarnation !== allocation.incarnation) return undefined;
  return job.services.find(
    (service) =>
      service.service_name === allocation.service_name &&
      service.spec_hash === allocation.spec_hash &&
      (service.generation ?? 0) === (allocation.generation ?? 0),
  );
}

function replaceService(job: LiveJob, next: JobServiceRecord): LiveJob {
  return { ...job, services: job.services.map((one) => (one.service_name === next.service_name ? next : one)) };
}
