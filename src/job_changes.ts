/**
 * @module What a user's request changes in the stored state: PUT, scale and DELETE of a job as lists of records. Pure; the
 * Scheduler commits them. Owns versions: each accepted change raises a job's version, and no version repeats for a job id,
 * not even after DELETE: what all deleted jobs leave is one number, the highest version of them, and new jobs begin above it.
 */
import { createHash } from "node:crypto";
import * as v from "valibot";
import type { ClusterState } from "./cluster_state.ts";
import { doubleEntries } from "./job_entries.ts";
import type { Change, JobRecord, JobSecret, JobServiceRecord, LiveJob } from "./model.ts";
import { type Detail, isGlobal, serviceRules, type ServiceRules, type ServiceSpec, serviceSpec } from "./model_spec.ts";
import { CacophonyError } from "./model.ts";
import { suggest } from "./nearest.ts";

/** Upper bound of a service's scale, and of all services of a job together: far above what 100 machines run, low enough that a slip of the finger is caught. */
export const MAX_SCALE = 100_000;

/** Conditions of a request on the job's version, as HTTP states them (RFC 9110 section 13). */
export type Preconditions = { ifMatch?: string | undefined; ifNoneMatch?: string | undefined };

/** What of a parsed document matters here. */
export type WantedJob = {
  document: string;
  services: readonly { service_name: string; spec: ServiceSpec; rules: ServiceRules; scale?: number }[];
  /** Contents that the specs' files are made of, by hash. */
  chunks?: ReadonlyMap<string, Uint8Array>;
  /** Secrets that have a value, sent or to be kept. */
  secrets?: readonly { name: string; data?: Uint8Array; place: Detail }[];
  /** Which values those are: settled by the Scheduler. */
  secret_ids?: readonly JobSecret[];
};

export type PutOutcome = { outcome: "created" | "updated" | "unchanged"; job: LiveJob; changes: Change[] };

/** Content hash of a container spec: 16 hex digits of SHA-256 over its canonical JSON. */
export function specHash(spec: ServiceSpec): string {
  const canonical = JSON.stringify(v.parse(serviceSpec, spec));
  return createHash("sha256").update(canonical).digest("hex").slice(0, 16);
}

/** Changes that make `wanted` the job `jobId`; none when the desired state is the same already. */
export function changesForPut(
  state: ClusterState,
  { jobId, wanted, now, newId }: { jobId: string; wanted: WantedJob; now: number; newId: () => string },
): PutOutcome {
  const before = state.jobs.get(jobId);
  const live = before?.state === "live" ? before : undefined;
  const olds = new Map(live?.services.map((service) => [service.service_name, service]));
  const version = (live?.version ?? Math.max(before?.version ?? 0, state.cluster?.version_floor ?? 0)) + 1;
  const specs = new Map(wanted.services.map(({ spec }) => [specHash(spec), spec]));
  const services = wanted.services.map(({ service_name, spec, rules, scale }): JobServiceRecord => {
    const old = olds.get(service_name);
    const spec_hash = specHash(spec);
    const samePlaces = old !== undefined && isSame(old.rules.constraints, rules.constraints);
    const sameStart = old?.spec_hash === spec_hash && isSame(old.rules.depends_on, rules.depends_on);
    // A service whose definition stays keeps its image and generation, so that its replicas stay.
    const kept = old?.spec_hash === spec_hash ? old : {};
    return {
      ...kept,
      service_name,
      spec_hash,
      scale: scale ?? old?.scale ?? 1,
      // In the order of the Store's, so that the same rules are the same text.
      rules: v.parse(serviceRules, rules),
      rules_since: samePlaces ? old.rules_since : version,
      released: rules.depends_on.length === 0 || (sameStart && old.released),
    };
  });
  refuseLargeScale(services);
  refuseDoubleEntries(state, { jobId, services });
  const secrets = [...(wanted.secret_ids ?? [])];
  if (live && sameServices(live.services, services) && isSame(live.secrets ?? [], secrets))
    return { outcome: "unchanged", job: live, changes: [] };
  const job: LiveJob = {
    state: "live",
    job_id: jobId,
    version,
    incarnation: live?.incarnation ?? newId(),
    document: wanted.document,
    services,
    ...(secrets.length > 0 ? { secrets } : {}),
    created_at: live?.created_at ?? now,
    updated_at: now,
  };
  const newSpecs = [...specs].filter(([spec_hash]) => !state.specs.has(spec_hash));
  const changes: Change[] = newSpecs.map(([spec_hash, spec]) => ({
    op: "put",
    kind: "spec",
    record: { spec_hash, spec },
  }));
  changes.push({ op: "put", kind: "job", record: job });
  return { outcome: live ? "updated" : "created", job, changes };
}

function refuseDoubleEntries(
  state: ClusterState,
  { jobId, services }: { jobId: string; services: readonly JobServiceRecord[] },
): void {
  const claims = (job_id: string, all: readonly JobServiceRecord[]) => all.map((one) => ({ job_id, ...one }));
  const others = state.liveJobs().flatMap((job) => (job.job_id === jobId ? [] : claims(job.job_id, job.services)));
  const details = doubleEntries(claims(jobId, services), others);
  if (details.length === 0) return;
  const message = "the document opens ports that lead to other services; nothing of it was applied";
  throw new CacophonyError("invalid_document", message, { details });
}

/** Changes that give a service another scale; none when it has that scale. */
export function changesForScale(
  state: ClusterState,
  { jobId, serviceName, scale, now }: { jobId: string; serviceName: string; scale: number; now: number },
): { job: LiveJob; changes: Change[] } {
  const job = findJob(state, jobId);
  const service = findService(job, serviceName);
  if (isGlobal(service.rules)) {
    throw new CacophonyError(
      "conflict",
      `service '${serviceName}' runs once on each node (deploy.mode: ${service.rules.mode}) and has no scale; choose its nodes with deploy.placement.constraints`,
    );
  }
  if (service.scale === scale) return { job, changes: [] };
  const services = job.services.map((one) => (one === service ? { ...one, scale } : one));
  refuseLargeScale(services);
  const next: LiveJob = { ...job, services, version: job.version + 1, updated_at: now };
  return { job: next, changes: [{ op: "put", kind: "job", record: next }] };
}

/** Changes that delete a job; with `volumes` every node that is known, or left, gets the duty to remove the job's volumes. */
export function changesForDelete(
  state: ClusterState,
  { jobId, volumes, newId }: { jobId: string; volumes: boolean; newId: () => string },
): { version: number; changes: Change[] } {
  const job = findJob(state, jobId);
  // One more than the last: DELETE is a change too, and a reader of the version sees that something happened.
  const version = job.version + 1;
  const changes: Change[] = [{ op: "delete", kind: "job", key: jobId }, ...raisedFloor(state, version)];
  if (volumes) {
    // One that left still has what it had on its disk, and removes it when it comes again.
    for (const node_id of new Set([...state.nodes.keys(), ...state.departures.keys()])) {
      changes.push({ op: "put", kind: "removal", record: { removal_id: newId(), job_id: jobId, node_id } });
    }
    for (const [key, home] of state.homes) if (home.job_id === jobId) changes.push({ op: "delete", kind: "home", key });
  }
  return { version, changes };
}

/** Changes after which no version up to this one is given out again. */
function raisedFloor({ cluster }: ClusterState, version: number): Change[] {
  if (!cluster || (cluster.version_floor ?? 0) >= version) return [];
  return [{ op: "put", kind: "cluster", record: { ...cluster, version_floor: version } }];
}

/** Changes that put what each deleted job left, in an earlier version of Cacophony, into the one number that all leave now. */
export function changesForTombstones(state: ClusterState): Change[] {
  const deleted = [...state.jobs.values()].filter(({ state: what }) => what === "deleted");
  const gone = deleted.map(({ job_id }): Change => ({ op: "delete", kind: "job", key: job_id }));
  const highest = deleted.reduce((most, { version }) => Math.max(most, version), 0);
  return [...gone, ...raisedFloor(state, highest)];
}

/**
 * The live job of that id.
 * @throws CacophonyError `not_found`, naming close matches.
 */
export function findJob(state: ClusterState, jobId: string): LiveJob {
  const job = state.liveJob(jobId);
  if (job) return job;
  const ids = state.liveJobs().map(({ job_id }) => job_id);
  throw new CacophonyError("not_found", `no job '${jobId}'${suggest(jobId, ids)}`);
}

/**
 * The service of that name.
 * @throws CacophonyError `not_found`, naming close matches.
 */
export function findService({ job_id, services }: LiveJob, serviceName: string): JobServiceRecord {
  const service = services.find((one) => one.service_name === serviceName);
  if (service) return service;
  const names = services.map((one) => one.service_name);
  throw new CacophonyError(
    "not_found",
    `job '${job_id}' has no service '${serviceName}'${suggest(serviceName, names)}`,
  );
}

/** @throws CacophonyError `precondition_failed` when a condition does not hold for the job as it is. */
export function checkPreconditions(job: JobRecord | undefined, { ifMatch, ifNoneMatch }: Preconditions): void {
  const version = job?.state === "live" ? job.version : undefined;
  const is = version === undefined ? "there is no such job" : `the job is at version ${version}`;
  if (ifMatch !== undefined && !matches(ifMatch, version)) {
    throw new CacophonyError("precondition_failed", `If-Match: ${ifMatch} does not hold: ${is}`);
  }
  if (ifNoneMatch !== undefined && matches(ifNoneMatch, version)) {
    throw new CacophonyError("precondition_failed", `If-None-Match: ${ifNoneMatch} does not hold: ${is}`);
  }
}

/** The ETag of a job version. */
export function etagOf(version: number): string {
  return `"${version}"`;
}

/** A job of many services each at its limit would be more than any cluster runs, or any answer should list. */
function refuseLargeScale(services: LiveJob["services"]): void {
  const sum = services.reduce((total, { scale }) => total + scale, 0);
  if (sum <= MAX_SCALE) return;
  const message = `the services of a job have ${MAX_SCALE} replicas at most, these have ${sum} together`;
  throw new CacophonyError("invalid_document", message, { details: [{ path: "services", message }] });
}

function matches(header: string, version: number | undefined): boolean {
  if (version === undefined) return false;
  return header.split(",").some((part) => {
    const tag = part.trim().replace(/^W\//, "");
    return tag === "*" || tag === etagOf(version);
  });
}

/** Whether two pieces of records, made alike, are the same. */
function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function sameServices(a: LiveJob["services"], b: LiveJob["services"]): boolean {
  const known = new Map(a.map((service) => [service.service_name, service]));
  return (
    a.length === b.length &&
    b.every(({ service_name, spec_hash, scale, rules }) => {
      const other = known.get(service_name);
      return other?.spec_hash === spec_hash && other.scale === scale && isSame(other.rules, rules);
    })
  );
}
