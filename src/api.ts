/**
 * @module The HTTP API, the same on every node. What is under /cluster is the master's to answer: other nodes forward it.
 * Owns routes, limits, status codes and the one shape of errors; the Scheduler owns what happens.
 */
import type { Context } from "hono";
import { Hono } from "hono";
import { HTTPException } from "hono/http-exception";
import { limitContainers, type RequestOrigin } from "./api_access.ts";
import type { Master } from "./api_forward.ts";
import { Bodies } from "./api_bodies.ts";
import { forward, FORWARDED_HEADER } from "./api_forward.ts";
import { type HostNames, refuseForeignPages } from "./api_hosts.ts";
import { jobRoutes } from "./api_jobs.ts";
import { nodeRoutes } from "./api_nodes.ts";
import { openApi } from "./api_openapi.ts";
import { registryRoutes } from "./api_registries.ts";
import { answer, MAX_FORM_BYTES, queryOf, readBody, readFlag, readJson, readPage } from "./api_request.ts";
import { discoveryRoutes, serviceRoutes } from "./api_services.ts";
import { systemClock } from "./clock.ts";
import { allocationsView, countsView, rebalanceView, resourcesView } from "./cluster_views.ts";
import type { Policy } from "./job_policy.ts";
import type { Log } from "./log.ts";
import { stackOf } from "./log_faults.ts";
import type { ApiAccess, ErrorCode, PeerInfo, SecretRequest } from "./model.ts";
import { CacophonyError, secretRequest } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";
import { giveUp } from "./scheduler_give_up.ts";
import type { Hold } from "./membership_silence.ts";
import { type Caller, CHUNK_PATH, PEER_PATH, SECRET_PATH } from "./transport.ts";

/** HTTP status of each error code: the one place where they meet. */
const STATUS: Record<ErrorCode, 400 | 403 | 404 | 405 | 408 | 409 | 412 | 413 | 415 | 422 | 500 | 503> = {
  bad_request: 400,
  unparseable: 400,
  forbidden: 403,
  forbidden_origin: 403,
  forbidden_host: 403,
  not_found: 404,
  method_not_allowed: 405,
  request_timeout: 408,
  conflict: 409,
  precondition_failed: 412,
  too_large: 413,
  unsupported_media_type: 415,
  invalid_document: 422,
  internal: 500,
  store_failed: 503,
  not_master: 503,
  not_leading: 503,
  no_master: 503,
  busy: 503,
  outcome_unknown: 503,
};

/** Seconds after which a client that got 503 may try again: about what a reconnect takes. */
const RETRY_AFTER_S = 2;

/** Methods that change nothing: also a master that does not lead, or can't write its state, answers them. */
const READS: ReadonlySet<string> = new Set(["GET", "HEAD", "OPTIONS"]);

const NO_NAMES: HostNames = new Set();

/** What the API knows of the node that it runs on. */
export interface LocalNode {
  readonly nodeId: string;
  readonly version: string;
  /** Why this node can't do its work now; empty: it can. */
  faults(): string[];
  peerInfo(): PeerInfo;
  master(): Master;
}

export type ApiOptions = {
  local: LocalNode;
  /** The Scheduler while this node is the master. */
  scheduler: () => Scheduler | undefined;
  /** Where this node keeps job directories; shown in dry runs. */
  dataDir: string;
  /** Where a node of this machine holds secrets; shown in dry runs. */
  secretsDir?: (nodeId: string) => string;
  /** Whether a node in session with this master makes a call; absent: there is no master here. */
  isNode?: (caller: Caller) => boolean;
  /** A secret's value for the process of a node that is to run what mounts it, while this node is the master; for no others. */
  secret?: (request: SecretRequest, caller: Caller) => Uint8Array | undefined;
  /** Nodes that are silent together, while this node is the master and gives nothing of theirs up; and what ends that. */
  hold?: () => Hold | undefined;
  reschedule?: () => string[];
  /** What jobs may not ask for, while this node is the master. */
  policy?: () => Policy | undefined;
  /** What a request from this address may do; undefined: it comes from no container of a job. Absent: nobody is limited. */
  access?: (remote: string) => ApiAccess | undefined;
  /** Names that requests may ask for this node by, besides localhost and all addresses. */
  hostNames?: () => HostNames;
  /** What is in memory of requests. */
  bodies?: Bodies;
  log: Log;
};

/** The application; `fetch` answers one request, and is told by its second argument where that comes from. */
export function createApi(options: ApiOptions): Hono {
  const { local, log, access = () => undefined, hostNames = () => NO_NAMES, bodies = new Bodies() } = options;
  const app = new Hono();
  app.onError((error, c) => respondError(c, error, log));
  app.notFound((c) => {
    throw new CacophonyError("not_found", `there is no ${c.req.path} here; the API is under /cluster`);
  });
  app.use(limitContainers(access));
  app.use(refuseForeignPages(hostNames));
  app.use(bodies.hold);

  app.get("/healthz", (c) => answer(c, { status: "ok", node_id: local.nodeId, version: local.version }));
  app.get("/readyz", (c) => {
    const reasons = local.faults();
    return answer(c, { ready: reasons.length === 0, reasons }, reasons.length === 0 ? 200 : 503);
  });
  app.get(PEER_PATH, (c) => answer(c, local.peerInfo()));
  app.get("/openapi.json", (c) => answer(c, openApi(local.version)));
  only(app, ["/healthz", "/readyz", "/openapi.json", PEER_PATH], "GET");
  app.get(`${CHUNK_PATH}/:chunk_hash`, (c) => {
    const isNode = options.isNode?.(callerOf(c)) ?? false;
    const data = isNode ? options.scheduler()?.state.chunks.get(c.req.param("chunk_hash")) : undefined;
    if (data === undefined)
      throw new CacophonyError("not_found", "the master has no such chunk of a file, or no session with who asks");
    return c.body(new Uint8Array(Buffer.from(data, "base64")), 200, { "Content-Type": "application/octet-stream" });
  });

  app.post(SECRET_PATH, async (c) => {
    const request = readJson(await readBody(c), { schema: secretRequest, example: "what a node sends" });
    const data = options.secret?.(request, callerOf(c));
    if (!data)
      throw new CacophonyError("not_found", "the master has no such secret for this node, or no session with it");
    return c.body(new Uint8Array(data), 200, { "Content-Type": "application/octet-stream" });
  });

  app.use("/cluster/*", async (c, next) => {
    const own = options.scheduler();
    if (own && !READS.has(c.req.method)) {
      own.leadership.check();
      own.writes.check();
    }
    if (own) return next();
    if (c.req.header(FORWARDED_HEADER))
      throw new CacophonyError("not_master", "this node was taken for the master, but is not");
    const body = () => c.get("bodyUpTo")(MAX_FORM_BYTES);
    return forward(c.req.raw, { master: () => local.master(), selfId: local.nodeId, body });
  });
  const scheduler = () => {
    const found = options.scheduler();
    if (!found) throw new CacophonyError("not_master", "this node is no longer the master");
    return found;
  };
  const { dataDir, secretsDir = () => "" } = options;
  app.route("/cluster/job", jobRoutes({ scheduler, dataDir, secretsDir, policy: () => options.policy?.(), only }));
  app.route("/cluster/node", nodeRoutes({ scheduler, only }));
  app.route("/cluster/registry", registryRoutes({ scheduler, only }));
  app.route("/cluster/service", serviceRoutes({ scheduler, only }));
  app.route("/cluster/discovery", discoveryRoutes({ scheduler, only }));
  app.route("/cluster", clusterRoutes({ ...options, scheduler }));
  return app;
}

function clusterRoutes({
  scheduler,
  local,
  hold = () => undefined,
  reschedule = () => [],
}: Pick<ApiOptions, "local" | "hold" | "reschedule"> & { scheduler: () => Scheduler }): Hono {
  const app = new Hono();
  app.get("/resources", (c) => {
    queryOf(c, []);
    return answer(c, resourcesView(scheduler().state, scheduler().faults.leftOut));
  });
  app.get("/allocation", (c) => {
    const query = queryOf(c, ["job", "service", "node", "state", "limit", "next"]);
    const filter = { job: query["job"], service: query["service"], node: query["node"], state: query["state"] };
    const { state, faults } = scheduler();
    return answer(c, allocationsView(state, { filter, page: readPage(query), onFault: faults.leftOut }));
  });
  app.get("/status", (c) => {
    queryOf(c, []);
    const { state, cluster, term, leadership, writes } = scheduler();
    const { master } = local.peerInfo();
    return answer(c, {
      cluster_id: cluster.cluster_id,
      master: master ?? null,
      term,
      not_leading: leadership.fault ?? null,
      version: local.version,
      store_fault: writes.fault ?? null,
      mass_failure: holdView(hold()),
      ...countsView(state),
    });
  });
  app.post("/rebalance", (c) => {
    const dryRun = readFlag(queryOf(c, ["dry_run"]), "dry_run");
    const found = scheduler().rebalance({ dryRun });
    return answer(c, rebalanceView(found, { state: scheduler().state, dryRun }), dryRun ? 200 : 202);
  });
  app.post("/reschedule", async (c) => {
    const { node: nodeId } = queryOf(c, ["node"]);
    if (nodeId === undefined) return answer(c, { nodes: reschedule() }, 202);
    const { node_id } = await giveUp(scheduler(), { nodeId, now: systemClock.now() });
    return answer(c, { nodes: [node_id] }, 202);
  });
  only(app, ["/resources", "/allocation", "/status"], "GET");
  only(app, ["/rebalance", "/reschedule"], "POST");
  return app;
}

/** Most nodes fell silent together: until when nothing of theirs runs elsewhere. */
function holdView(hold: Hold | undefined) {
  if (!hold) return null;
  const { since, until, nodes } = hold;
  const message =
    "most nodes fell silent together, so this master may be the one that is cut off: nothing is rescheduled before " +
    "`until`; POST /cluster/reschedule goes ahead at once";
  return { nodes, since: new Date(since).toISOString(), until: new Date(until).toISOString(), message };
}

/** Who makes the request; `listen` hands the address in. */
function callerOf(c: Context): Caller {
  const { remote }: RequestOrigin = c.env ?? {};
  return { authorization: c.req.header("authorization"), remote };
}

/** Answers every other method on these paths with 405 and the ones that are allowed. */
function only(app: Hono, paths: readonly string[], ...methods: string[]): void {
  for (const path of paths) {
    app.all(path, (c) => {
      c.header("Allow", methods.join(", "));
      throw new CacophonyError(
        "method_not_allowed",
        `${c.req.method} is not possible on ${c.req.path}; it takes ${methods.join(", ")}`,
      );
    });
  }
}

function respondError(c: Context, error: unknown, log: Log): Response {
  const known = toCacophonyError(error);
  const status = STATUS[known.code];
  if (status >= 500) {
    const where = known.code === "internal" ? stackOf(error) : {};
    log.warn("a request failed", { method: c.req.method, path: c.req.path, code: known.code, error, ...where });
  }
  if (status === 503) c.header("Retry-After", String(RETRY_AFTER_S));
  return answer(c, { error: { code: known.code, message: known.message, details: known.details } }, status);
}

function toCacophonyError(error: unknown): CacophonyError {
  if (error instanceof CacophonyError) return error;
  if (error instanceof HTTPException && error.status < 500)
    return new CacophonyError("bad_request", error.message, { cause: error });
  return new CacophonyError("internal", "an error of Cacophony itself; its log has more", { cause: error });
}
