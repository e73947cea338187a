/**
 * @module The API's description as an OpenAPI 3.1 document, for `GET /openapi.json`. What a job document may hold comes from
 * the table in `job_keys.ts`, what small bodies hold from the schemas that read them; a test holds the list of operations to
 * the routes.
 */
import { toJsonSchema } from "@valibot/to-json-schema";
import { restartBody, scaleBody } from "./api_jobs.ts";
import { loginBody } from "./api_registries.ts";
import { MAX_BODY_BYTES, MAX_FORM_BYTES } from "./api_request.ts";
import { DOCUMENT_KEYS } from "./job_keys.ts";
import { jsonSchemaOfTable } from "./job_schema.ts";
import { MARK, MARK_KEY } from "./job_secrets.ts";

/** What the description says of one method of a path. */
type Operation = {
  summary: string;
  /** Query parameters with what they mean; `repeated` ones may stand several times. */
  query?: Record<string, string>;
  /** Media types with a schema, or the name of one under components. */
  body?: Record<string, unknown>;
  /** Whether `If-Match` and `If-None-Match` hold. */
  conditional?: boolean;
  /** What a success means, by status. */
  answers: Record<number, string>;
};

const FLAG = "true or false; false when absent";
const PAGE = { limit: "entries of a page, up to 1000", next: "where the page begins: `next` of the page before" };
const REPEATED = ["profile"];

const PUT_JOB: Operation = {
  summary: "Create or update a job from a compose document",
  query: {
    dry_run: `${FLAG}: validate and plan, change nothing, and show the body of every create call`,
    profile: "services with this profile run, too; * for all",
    "env.NAME": "the value of ${NAME} in the document",
  },
  body: {
    "application/yaml": { $ref: "#/components/schemas/Document" },
    "application/json": { $ref: "#/components/schemas/Document" },
    "multipart/form-data": { $ref: "#/components/schemas/DocumentWithFiles" },
  },
  conditional: true,
  answers: { 200: "updated, or what a dry run found", 201: "created" },
};

const NODE_BODY = {
  type: "object",
  properties: {
    labels: { type: "object", additionalProperties: { type: "string" } },
    availability: { enum: ["active", "pause", "drain"] },
    deadline: { type: "string", description: "how long a drain may take, as 10m" },
  },
  additionalProperties: false,
};

/** Methods by path. A function, because most processes are never asked for it. */
const operations = (): Record<string, Record<string, Operation>> => ({
  "/healthz": { get: { summary: "Whether this process answers", answers: { 200: "it does" } } },
  "/readyz": {
    get: { summary: "Whether this node can do its work", answers: { 200: "it can", 503: "`reasons` why not" } },
  },
  "/openapi.json": { get: { summary: "This description", answers: { 200: "an OpenAPI 3.1 document" } } },
  "/cluster/job": { get: { summary: "All jobs", answers: { 200: "job id to document" } } },
  "/cluster/job/{job_id}": {
    get: { summary: "A job, its services and how they fare", answers: { 200: "with its version as ETag" } },
    put: PUT_JOB,
    delete: {
      summary: "Remove a job and its containers",
      query: { volumes: `${FLAG}: its named volumes and its project directory, too` },
      conditional: true,
      answers: { 202: "accepted" },
    },
  },
  "/cluster/job/{job_id}/restart": {
    post: {
      summary: "Replace every replica of a job, one by one",
      body: { "application/json": toJsonSchema(restartBody) },
      conditional: true,
      answers: { 202: "accepted" },
    },
  },
  "/cluster/job/{job_id}/{service_name}/restart": {
    post: {
      summary: "Replace every replica of a service, one by one",
      body: { "application/json": toJsonSchema(restartBody) },
      conditional: true,
      answers: { 202: "accepted" },
    },
  },
  "/cluster/job/{job_id}/{service_name}": {
    put: {
      summary: "Scale a service",
      body: { "application/json": toJsonSchema(scaleBody) },
      conditional: true,
      answers: { 200: "scaled" },
    },
  },
  "/cluster/registry": { get: { summary: "Registries that have a login", answers: { 200: "their hosts" } } },
  "/cluster/registry/{host}": {
    put: {
      summary: "Set the login of an image registry",
      body: { "application/json": toJsonSchema(loginBody) },
      answers: { 200: "replaced", 201: "created" },
    },
    delete: { summary: "Remove the login of an image registry", answers: { 200: "removed" } },
  },
  "/cluster/resources": {
    get: { summary: "Memory and CPUs of each node", answers: { 200: "total, used, available, reserved; devices" } },
  },
  "/cluster/node": { get: { summary: "All nodes", query: PAGE, answers: { 200: "a page of them" } } },
  "/cluster/node/{node_id}": {
    get: { summary: "A node, by id or name", answers: { 200: "the node" } },
    put: {
      summary: "Set a node's labels and its availability, by id or name",
      query: { force: `${FLAG}: what has its data there moves, too, and leaves them behind` },
      body: { "application/json": NODE_BODY },
      answers: { 200: "the node" },
    },
    delete: {
      summary:
        "Empty a node and take it out of the cluster; at once where it is down, unless something may still run there that must " +
        "never run twice",
      query: {
        force: `${FLAG}: what has its data there moves, too, and leaves them behind`,
        deadline: "how long that may take, as 10m",
      },
      answers: { 200: "it has left", 202: "it leaves when it is empty" },
    },
  },
  "/cluster/rebalance": {
    post: {
      summary: "Move replicas where that evens out the load",
      query: { dry_run: `${FLAG}: only tell which, and the gain` },
      answers: { 200: "what it would move", 202: "what it moves" },
    },
  },
  "/cluster/reschedule": {
    post: {
      summary:
        "Give up nodes that are held because most fell silent together, or what must never run twice on a node that cannot tell " +
        "whether it runs there",
      query: {
        node:
          "a node, by id or name, that is down or whose Docker Engine does not answer: you say that none of its containers with " +
          "stop_when_isolated runs any more, and they are placed elsewhere",
      },
      answers: { 202: "the nodes" },
    },
  },
  "/cluster/allocation": {
    get: {
      summary: "Allocations: which slot runs where, and how it fares",
      query: {
        job: "of this job",
        service: "of this service",
        node: "on this node, by id or name",
        state: "in this state",
        ...PAGE,
      },
      answers: { 200: "a page of them" },
    },
  },
  "/cluster/service": {
    get: {
      summary: "Services: their names, ports and replicas",
      query: { watch: `${FLAG}: as server-sent events, now and at each change` },
      answers: { 200: "all services" },
    },
  },
  "/cluster/service/{job_id}/{service_name}": {
    get: {
      summary: "A service: its names, ports and replicas",
      query: { watch: `${FLAG}: as server-sent events, now and at each change` },
      answers: { 200: "the service" },
    },
  },
  "/cluster/discovery/prometheus": {
    get: { summary: "Targets for Prometheus' http_sd_config", answers: { 200: "target groups" } },
  },
  "/cluster/discovery/traefik": {
    get: { summary: "Configuration for Traefik's HTTP provider", answers: { 200: "a dynamic configuration" } },
  },
  "/cluster/status": { get: { summary: "The cluster: its id, its master, counts", answers: { 200: "as of now" } } },
});

/** The description; `version` is that of this program. */
export function openApi(version: string): Record<string, unknown> {
  return {
    openapi: "3.1.0",
    info: {
      title: "Cacophony",
      version,
      description:
        "The same on every node: others forward to the master. Bodies are read whatever their Content-Type says.",
    },
    paths: Object.fromEntries(Object.entries(operations()).map(([path, methods]) => [path, pathItem(path, methods)])),
    components: { schemas: { Document: document(), DocumentWithFiles: DOCUMENT_WITH_FILES, Error: ERROR } },
  };
}

function pathItem(path: string, methods: Record<string, Operation>) {
  const parameters = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
    name,
    in: "path",
    required: true,
    schema: { type: "string" },
  }));
  const operations = Object.entries(methods).map(([method, operation]) => [method, operationItem(operation)]);
  return { ...(parameters.length > 0 ? { parameters } : {}), ...Object.fromEntries(operations) };
}

function operationItem({ summary, query = {}, body, conditional, answers }: Operation) {
  const parameters = [
    ...Object.entries(query).map(([name, description]) => ({
      name,
      in: "query",
      description,
      schema: querySchema(name),
    })),
    ...(conditional ? ["If-Match", "If-None-Match"] : []).map((name) => ({
      name,
      in: "header",
      description: "the job's version as its ETag has it, or *; 412 when it does not hold",
      schema: { type: "string" },
    })),
  ];
  const content = Object.entries(body ?? {}).map(([type, schema]) => [type, { schema }]);
  const successes = Object.entries(answers).map(([status, description]) => [
    status,
    { description, content: { "application/json": { schema: { type: "object" } } } },
  ]);
  return {
    summary,
    ...(parameters.length > 0 ? { parameters } : {}),
    ...(body ? { requestBody: { content: Object.fromEntries(content) } } : {}),
    responses: {
      ...Object.fromEntries(successes),
      default: {
        description: "an error",
        content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } },
      },
    },
  };
}

function querySchema(name: string) {
  return REPEATED.includes(name) ? { type: "array", items: { type: "string" } } : { type: "string" };
}

function document() {
  return {
    ...jsonSchemaOfTable(DOCUMENT_KEYS),
    description: `A compose document after interpolation, up to ${MAX_BODY_BYTES} bytes; each key says what becomes of it. Where a secret has a value, "${MARK_KEY}": "${MARK}" stands for it: sent back, it keeps that value`,
  };
}

const DOCUMENT_WITH_FILES = {
  type: "object",
  description: `A document with the files that it refers to, up to ${MAX_FORM_BYTES} bytes together`,
  properties: {
    compose: {
      type: "string",
      description: "the document; its filename may have directories, from where the files' paths start",
    },
    env: { type: "string", description: "lines of NAME=value, as in a .env file" },
    file: {
      type: "array",
      items: { type: "string", format: "binary" },
      description: "each named by its path relative to the document",
    },
  },
  required: ["compose"],
};

const ERROR = {
  type: "object",
  properties: {
    error: {
      type: "object",
      properties: {
        code: { type: "string" },
        message: { type: "string" },
        details: {
          type: "array",
          items: {
            type: "object",
            properties: {
              path: { type: "string" },
              message: { type: "string" },
              line: { type: "integer" },
              column: { type: "integer" },
            },
            required: ["path", "message"],
          },
        },
      },
      required: ["code", "message"],
    },
  },
  required: ["error"],
};
