/**
 * @module What containers of jobs may do with the API: nothing, unless their service says `x-cacophony: {api: …}`. The firewall
 * keeps them away already; this holds where there is none, and tells the levels apart. Containers are told by their addresses.
 */
import type { Context, MiddlewareHandler } from "hono";
import { withoutIpv6Prefix } from "./address.ts";
import { type ApiAccess, CacophonyError } from "./model.ts";
import { HIDDEN_VALUE } from "./model_spec.ts";

/** Where a request comes from; `remote` is the IP address of the other end, absent where nobody knows. */
export type RequestOrigin = { remote?: string };

/** What `read` may get, besides what is below these paths. */
const READABLE = ["/healthz", "/readyz", "/openapi.json", "/cluster/job", "/cluster/service", "/cluster/discovery"];
/** What `deploy` may get, too: where it runs, and how. */
const INSPECTABLE = ["/cluster/allocation", "/cluster/node", "/cluster/resources", "/cluster/status"];
/** What `deploy` may change. */
const DEPLOYABLE = "/cluster/job";

/** Refuses what a container may not ask for, and hides the values that it may not see. */
export function limitContainers(accessOf: (remote: string) => ApiAccess | undefined): MiddlewareHandler {
  return async (c, next) => {
    const { remote }: RequestOrigin = c.env ?? {};
    const access = remote === undefined ? undefined : accessOf(withoutIpv6Prefix(remote));
    if (access === undefined) return next();
    refuse(c, access);
    await next();
    // Another node answers HEAD with the headers alone.
    if (access !== "read" || c.req.method !== "GET" || !isBelow(c.req.path, "/cluster/job")) return;
    const response = await withoutValues(c.res);
    // Hono gives an answer the headers of the one before it, and this one has another length.
    c.res = undefined;
    c.res = response;
  };
}

/** @throws CacophonyError `forbidden` */
export function refuse(c: Context, access: ApiAccess): void {
  const { method, path } = c.req;
  if (access === "none") {
    throw new CacophonyError(
      "forbidden",
      "containers of jobs may not call this API; a service that is meant to says so in its document: x-cacophony: {api: read}",
    );
  }
  const isRead = method === "GET" || method === "HEAD";
  const readable = access === "deploy" ? [...READABLE, ...INSPECTABLE] : READABLE;
  if (isRead ? readable.some((place) => isBelow(path, place)) : access === "deploy" && isBelow(path, DEPLOYABLE))
    return;
  throw new CacophonyError(
    "forbidden",
    `${method} ${path} is more than a container may do whose service has x-cacophony: {api: ${access}}`,
  );
}

function isBelow(path: string, place: string): boolean {
  return path === place || path.startsWith(`${place}/`);
}

/** The answer without the values of environment, configs and secrets. */
async function withoutValues(response: Response): Promise<Response> {
  if (!response.headers.get("content-type")?.startsWith("application/json")) return response;
  const text = `${JSON.stringify(hideIn(await response.json()))}\n`;
  const headers = new Headers(response.headers);
  headers.delete("content-length");
  return new Response(text, { status: response.status, headers });
}

/**
 * Compose has values of environment variables under `environment` and `args`, wherever they stand, and those of configs and secrets
 * under `content`. Extensions (`x-…`) of a document may hold anything, so they go.
 */
function hideIn(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(hideIn);
  if (typeof value !== "object" || value === null) return value;
  const members = Object.entries(value).filter(([key]) => !key.startsWith("x-") || key === "x-cacophony");
  return Object.fromEntries(
    members.map(([key, member]) => {
      if (key === "environment" || key === "args") return [key, hidden(member)];
      return [key, key === "content" ? HIDDEN_VALUE : hideIn(member)];
    }),
  );
}

/** The names without their values. */
function hidden(values: unknown): unknown {
  if (Array.isArray(values))
    return values.map((entry) => (typeof entry === "string" ? (entry.split("=", 1)[0] ?? "") : HIDDEN_VALUE));
  if (typeof values !== "object" || values === null) return HIDDEN_VALUE;
  return Object.fromEntries(Object.keys(values).map((name) => [name, HIDDEN_VALUE]));
}
