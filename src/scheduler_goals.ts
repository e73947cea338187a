/**
 * @module What the services of the cluster should be, for one scheduling pass: their goals, made of the state, and which services
 * a pass looks at beside those that something happened to. Changes nothing.
 */
import type { ClusterState, ServiceKey } from "./cluster_state.ts";
import { parseServiceKey, serviceKey } from "./cluster_state.ts";
import type { Change, JobServiceRecord, LiveJob } from "./model.ts";
import type { ServiceSpec } from "./model_spec.ts";
import type { Mobility } from "./reconcile_drain.ts";
import { type Goal, mobilityOf } from "./reconcile_goal.ts";
import { Bonds } from "./reconcile_together.ts";

export class Goals {
  /** What belongs together in a job, kept with its record. */
  readonly bonds = new Bonds();
  readonly #state: ClusterState;

  constructor(state: ClusterState) {
    this.#state = state;
  }

  /** The goal of a service; undefined: it is wanted no more. */
  find(key: ServiceKey): Goal | undefined {
    const { job, service } = this.#find(key);
    const spec = service && this.#state.specs.get(service.spec_hash);
    return job && service && spec && this.of(job, { service, spec });
  }

  /** The goal of a service, where it is wanted and its goal can be worked out. */
  known(key: ServiceKey): Goal | undefined {
    try {
      return this.find(key);
    } catch {
      return undefined;
    }
  }

  of(job: LiveJob, { service, spec }: { service: JobServiceRecord; spec: ServiceSpec }): Goal {
    const { job_id, incarnation } = job;
    const state = this.#state;
    const bond = this.bonds.of(job, state).get(service.service_name);
    const needs = service.rules.depends_on.flatMap((dependency) => {
      const other = job.services.find(({ service_name }) => service_name === dependency.service_name);
      if (!other) return [];
      const { spec_hash, generation = 0, released } = other;
      return [{ ...dependency, spec_hash, generation, released, scale: state.scaleOf(other) }];
    });
    return {
      job_id,
      incarnation,
      job_version: job.version,
      ...service,
      spec,
      scale: state.scaleOf(service),
      needs,
      ...(bond && { bond }),
    };
  }

  /**
   * How replicas of a service can leave a node; those that are wanted no more go anyway. One whose goal cannot be worked out has its
   * turn, in which it is told why it stays, and lets the others go first.
   */
  mobilityOf(key: ServiceKey): Mobility {
    try {
      const goal = this.find(key);
      return goal ? mobilityOf(goal) : "global";
    } catch {
      return "free";
    }
  }

  /** The services, those whose start waits for one of them, and those that belong with one, in the order to plan them in. */
  withDependents(keys: ReadonlySet<ServiceKey>): ServiceKey[] {
    const all = new Set(keys);
    for (const jobId of new Set(Array.from(keys, (key) => parseServiceKey(key).job_id))) {
      for (const { service_name, released, rules } of this.#state.liveJob(jobId)?.services ?? []) {
        const isAffected = rules.depends_on.some((one) =>
          keys.has(serviceKey({ job_id: jobId, service_name: one.service_name })),
        );
        if (!released && isAffected) all.add(serviceKey({ job_id: jobId, service_name }));
      }
    }
    try {
      return this.bonds.inOrder(all, this.#state);
    } catch {
      // A job whose order cannot be told is planned without one; its services say what is wrong with it.
      return [...Map.groupBy(all, (key) => parseServiceKey(key).job_id).values()].flatMap((own) => this.#inOrder(own));
    }
  }

  #inOrder(keys: readonly ServiceKey[]): readonly ServiceKey[] {
    try {
      return this.bonds.inOrder(keys, this.#state);
    } catch {
      return keys;
    }
  }

  /** Job records in which these services wait for nothing any more. The version stays: nothing that a user asked for changed. */
  releases(keys: ReadonlySet<ServiceKey>): Change[] {
    const jobs = new Set(Array.from(keys, (key) => this.#find(key).job));
    return [...jobs].flatMap((job) => {
      if (!job) return [];
      const services = job.services.map((service) => {
        const isReleased = keys.has(serviceKey({ job_id: job.job_id, service_name: service.service_name }));
        return isReleased ? { ...service, released: true } : service;
      });
      return [{ op: "put", kind: "job", record: { ...job, services } }];
    });
  }

  #find(key: ServiceKey): { job: LiveJob | undefined; service: JobServiceRecord | undefined } {
    const { job_id, service_name } = parseServiceKey(key);
    const job = this.#state.liveJob(job_id);
    return { job, service: job?.services.find((one) => one.service_name === service_name) };
  }
}
