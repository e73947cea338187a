/** @module The routes under /cluster/job: PUT a compose document, look at it, scale a service, delete it, or only try it. */
import type { Context } from "hono";
import { Hono } from "hono";
import * as v from "valibot";
import { JobReader } from "./api_reading.ts";
import {
  answer,
  answerJson,
  envOf,
  profilesOf,
  queryOf,
  readBody,
  readDocument,
  readFlag,
  readJson,
} from "./api_request.ts";
import { jobView, scalesView } from "./cluster_views.ts";
import { containerName, containerOptions } from "./container_options.ts";
import type { Preconditions } from "./job_changes.ts";
import { etagOf, findJob, MAX_SCALE } from "./job_changes.ts";
import type { Policy } from "./job_policy.ts";
import { forbiddenBy } from "./job_policy.ts";
import { composeMounts } from "./job_secrets.ts";
import type { ParsedJob, ParseResult } from "./job_spec.ts";
import { CacophonyError } from "./model.ts";
import { sharesOf } from "./model_spec.ts";
import type { Scheduler } from "./scheduler.ts";
import type { ServicePlan } from "./scheduler_dry_run.ts";

/** Containers that a dry run shows. */
const MAX_DRY_RUN_CONTAINERS = 1000;

const JOB_ID = /^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$/;
const JOB_ID_RULE = "1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or a digit";

export type JobRoutesOptions = {
  scheduler: () => Scheduler;
  dataDir: string;
  secretsDir: (nodeId: string) => string;
  /** What jobs may not ask for. */
  policy: () => Policy | undefined;
  /** Answers the other methods of a path with 405. */
  only: (app: Hono, paths: readonly string[], ...methods: string[]) => void;
};

export function jobRoutes({ scheduler, dataDir, secretsDir, policy, only }: JobRoutesOptions): Hono {
  const app = new Hono();
  const reader = new JobReader();
  // Written once for all who ask until a job changes: with many jobs, writing it is most of the work.
  app.get("/", (c) => answerJson(c, scheduler().state.jobDocuments()));
  app.put("/:job_id", async (c) => {
    const jobId = readJobId(c);
    const query = queryOf(c, ["dry_run", "profile", "env.NAME"]);
    const dryRun = readFlag(query, "dry_run");
    const { document, directory, files, variables } = await readDocument(c);
    // A variable in the address is meant for this one request, lines of a file are what one usually has.
    const sending = { jobId, directory, files, env: envOf(c), profiles: profilesOf(c) };
    const wanted = accepted(await reader.read({ document, variables, sending }));
    refuseForbidden(wanted, { jobId, policy: policy(), state: scheduler().state });
    if (dryRun)
      return answer(
        c,
        dryRunView(scheduler(), { jobId, wanted, dataDir, secretsDir, preconditions: preconditionsOf(c) }),
      );
    const { outcome, job } = await scheduler().putJob(jobId, { wanted, preconditions: preconditionsOf(c) });
    c.header("ETag", etagOf(job.version));
    const done = {
      job_id: jobId,
      version: job.version,
      services: scalesView(job, scheduler().state),
      warnings: wanted.warnings,
    };
    return answer(c, done, outcome === "created" ? 201 : 200);
  });
  app.get("/:job_id", (c) => {
    const { state, faults } = scheduler();
    const job = findJob(state, c.req.param("job_id"));
    c.header("ETag", etagOf(job.version));
    return answer(c, jobView(job, { state, blockedOf: (key) => scheduler().blockedOf(key), onFault: faults.leftOut }));
  });
  app.delete("/:job_id", async (c) => {
    const jobId = c.req.param("job_id");
    const volumes = readFlag(queryOf(c, ["volumes"]), "volumes");
    const version = await scheduler().deleteJob(jobId, { volumes, preconditions: preconditionsOf(c) });
    return answer(c, { job_id: jobId, version }, 202);
  });
  const restart = async (c: Context) => {
    queryOf(c, []);
    const body = await readBody(c);
    const wanted = body.length === 0 ? {} : readJson(body, { schema: restartBody, example: '{"pull": true}' });
    const pull = wanted.pull === true;
    const jobId = c.req.param("job_id") ?? "";
    const serviceName = c.req.param("service_name");
    const service = serviceName === undefined ? {} : { serviceName };
    const job = await scheduler().restartJob(jobId, { ...service, pull, preconditions: preconditionsOf(c) });
    c.header("ETag", etagOf(job.version));
    const done = { job_id: jobId, ...(serviceName !== undefined && { service_name: serviceName }) };
    return answer(c, { ...done, version: job.version, pull }, 202);
  };
  app.post("/:job_id/restart", restart);
  app.post("/:job_id/:service_name/restart", restart);
  app.put("/:job_id/:service_name", async (c) => {
    queryOf(c, []);
    const { scale } = readJson(await readBody(c), {
      schema: scaleBody,
      example: `{"scale": N} with a whole number from 0 to ${MAX_SCALE}`,
    });
    const { job_id, service_name } = c.req.param();
    const job = await scheduler().scaleService(job_id, {
      serviceName: service_name,
      scale,
      preconditions: preconditionsOf(c),
    });
    c.header("ETag", etagOf(job.version));
    return answer(c, { job_id, service_name, scale, version: job.version });
  });
  only(app, ["/"], "GET");
  only(app, ["/:job_id"], "GET", "PUT", "DELETE");
  // A service may be called "restart", so that path takes both.
  only(app, ["/:job_id/restart"], "PUT", "POST");
  only(app, ["/:job_id/:service_name"], "PUT");
  only(app, ["/:job_id/:service_name/restart"], "POST");
  return app;
}

function readJobId(c: Context): string {
  const jobId = c.req.param("job_id") ?? "";
  if (!JOB_ID.test(jobId)) {
    const message = `'${jobId}' is no job id: write ${JOB_ID_RULE}`;
    throw new CacophonyError("invalid_document", message, { details: [{ path: "job_id", message }] });
  }
  return jobId;
}

function accepted(result: ParseResult): ParsedJob {
  if (result.ok) return result.job;
  const { code, details } = result;
  const first = details[0]?.message ?? "";
  const message =
    code === "unparseable"
      ? `the document cannot be read: ${first}`
      : `the document has ${details.length === 1 ? "a fault" : `${details.length} faults`}; nothing of it was applied`;
  throw new CacophonyError(code, message, { details });
}

function refuseForbidden(
  wanted: ParsedJob,
  { jobId, policy, state }: { jobId: string; policy: Policy | undefined; state: Scheduler["state"] },
): void {
  if (!policy) return;
  const servicesOf = (id: string) =>
    (state.liveJob(id)?.services ?? []).flatMap(({ service_name, spec_hash }) => {
      const spec = state.specs.get(spec_hash);
      return spec ? [{ service_name, spec }] : [];
    });
  const details = forbiddenBy(policy, { ...wanted, jobId, servicesOf });
  if (details.length === 0) return;
  const message = "the document asks for what this cluster's policy forbids; nothing of it was applied";
  throw new CacophonyError("invalid_document", message, { details });
}

/** The body that scales a service. */
export const scaleBody = v.strictObject({
  scale: v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(MAX_SCALE)),
});

/** An empty body restarts with the images that the replicas have. */
export const restartBody = v.strictObject({ pull: v.exactOptional(v.boolean()) });

function preconditionsOf(c: Context) {
  return { ifMatch: c.req.header("if-match"), ifNoneMatch: c.req.header("if-none-match") };
}

// ---- Dry run ----------------------------------------------------------------------------------------------------------

function dryRunView(
  scheduler: Scheduler,
  {
    jobId,
    wanted,
    dataDir,
    secretsDir,
    preconditions,
  }: { jobId: string; wanted: ParsedJob; preconditions: Preconditions } & Pick<
    JobRoutesOptions,
    "dataDir" | "secretsDir"
  >,
) {
  const { outcome, services } = scheduler.dryRun(jobId, { wanted, preconditions });
  const slots: Slot[] = [];
  for (const service of services) {
    if (slots.length > MAX_DRY_RUN_CONTAINERS) break;
    slots.push(...slotsOf(service, scheduler));
  }
  return {
    job_id: jobId,
    version: outcome.job.version,
    services: scalesView(outcome.job, scheduler.state),
    changes: changesView(scheduler, { jobId, services }),
    blocked: services.flatMap(({ goal, plan }) =>
      plan.blocked.map((one) => ({ service_name: goal.service_name, ...one })),
    ),
    warnings: wanted.warnings,
    containers: slots.slice(0, MAX_DRY_RUN_CONTAINERS).map(({ goal, slot, nodeId, allocationId, joins }) => {
      const context = {
        clusterId: scheduler.cluster.cluster_id,
        nodeId,
        jobId,
        serviceName: goal.service_name,
        slot,
        allocationId,
        networkName: `${jobId}_default`,
        projectDir: `${dataDir}/projects/${jobId}`,
        secretsDir: secretsDir(nodeId),
        // A container is created with the ids of those that it joins; there are none yet, so their names stand for them.
        joined: new Map(
          sharesOf(goal.spec).map(({ service_name: serviceName }) => {
            const all = slots.filter((one) => one.goal.service_name === serviceName);
            const other = all.find((one) => joins.includes(one.allocationId)) ?? all[0];
            const { slot: its, allocationId: id } = other ?? { slot: 1, allocationId: NO_ALLOCATION };
            return [serviceName, containerName({ jobId, serviceName, slot: its, allocationId: id })];
          }),
        ),
      };
      const mounts = composeMounts(goal.spec.mounts, wanted.secrets);
      return {
        service_name: goal.service_name,
        slot,
        name: containerName(context),
        create: containerOptions({ ...goal.spec, mounts }, context),
      };
    }),
    truncated: slots.length > MAX_DRY_RUN_CONTAINERS,
  };
}

type Slot = {
  goal: ServicePlan["goal"];
  slot: number;
  nodeId: string;
  allocationId: string;
  /** Allocations of other services that it shares something with. */
  joins: readonly string[];
};
const NO_ALLOCATION = "00000000";

/** Every slot that the document asks for: those that stay, those that would be placed, and those that are blocked. */
function slotsOf({ goal, plan }: ServicePlan, { state }: Scheduler): Slot[] {
  const leaving = new Set(plan.stop.map(({ allocation_id }) => allocation_id));
  const key = `${goal.job_id}/${goal.service_name}` as const;
  const staying = state
    .allocationsOf(key)
    .filter((one) => one.desired === "run" && one.incarnation === goal.incarnation && !leaving.has(one.allocation_id));
  const slots = new Map<number, Slot>();
  for (const { slot, node_id, allocation_id, joins = [] } of [...staying, ...plan.place]) {
    const others = joins.map((join) => join.allocation_id);
    slots.set(slot, { goal, slot, nodeId: node_id, allocationId: allocation_id, joins: others });
  }
  for (let slot = 1; slots.size < Math.min(goal.scale, MAX_DRY_RUN_CONTAINERS + 1); slot++) {
    if (!slots.has(slot)) slots.set(slot, { goal, slot, nodeId: "", allocationId: NO_ALLOCATION, joins: [] });
  }
  return [...slots.values()].toSorted((a, b) => a.slot - b.slot);
}

/** What a PUT would do to each service, in words. */
function changesView(scheduler: Scheduler, { jobId, services }: { jobId: string; services: readonly ServicePlan[] }) {
  const before = new Map(scheduler.state.liveJob(jobId)?.services.map((service) => [service.service_name, service]));
  const changes = services.flatMap(({ goal, plan }) => {
    const old = before.get(goal.service_name);
    before.delete(goal.service_name);
    const { service_name, scale } = goal;
    const placed = plan.place.map(({ slot, node_id }) => ({ slot, node_id }));
    if (!old) return [{ service_name, action: "create", scale, place: placed }];
    if (old.spec_hash !== goal.spec_hash)
      return [{ service_name, action: "replace", scale, previous_scale: old.scale, place: placed }];
    if (old.scale !== scale)
      return [{ service_name, action: "scale", scale, previous_scale: old.scale, place: placed }];
    if (JSON.stringify(old.rules) !== JSON.stringify(goal.rules))
      return [{ service_name, action: "update_rules", scale, place: placed }];
    return [];
  });
  const removed = [...before.values()].map(({ service_name, scale }) => ({
    service_name,
    action: "remove",
    scale: 0,
    previous_scale: scale,
    place: [],
  }));
  return [...changes, ...removed];
}
