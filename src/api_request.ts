/** @module Reading requests (bodies within limits whatever their Content-Type says, query parameters, pages) and answering in JSON. */
import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import type { Page } from "./cluster_views.ts";
import { PAGE_SIZE } from "./cluster_views.ts";
import { CacophonyError } from "./model.ts";
import { nearest } from "./nearest.ts";

/** Largest body of a request, in bytes: compose files are a few kilobytes. */
export const MAX_BODY_BYTES = 2 ** 20;

/**
 * The whole body. Its Content-Type is not looked at (people send YAML as JSON or as a form), but for multipart/form-data.
 * @throws CacophonyError `too_large`, `unsupported_media_type`
 */
export async function readBody(c: Context): Promise<Uint8Array> {
  if (c.req.header("content-type")?.toLowerCase().startsWith("multipart/form-data")) {
    throw new CacophonyError(
      "unsupported_media_type",
      "multipart/form-data is not taken here: send the document as the body (curl --data-binary @FILE)",
    );
  }
  const tooLarge = () => new CacophonyError("too_large", `the body is larger than ${MAX_BODY_BYTES} bytes (1 MiB)`);
  if (Number(c.req.header("content-length") ?? 0) > MAX_BODY_BYTES) throw tooLarge();
  const chunks: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const chunk of c.req.raw.body ?? []) {
      size += chunk.byteLength;
      if (size > MAX_BODY_BYTES) throw tooLarge();
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof CacophonyError) throw error;
    throw new CacophonyError("bad_request", "the body ended early; nothing was changed", { cause: error });
  }
  return Buffer.concat(chunks);
}

/**
 * Query parameters by name, each of which must be known: a misspelt `dry_run` must not become a real change. Names with
 * the prefix `env.` are left to `envOf`.
 * @throws CacophonyError `bad_request` naming the nearest known parameter.
 */
export function queryOf(c: Context, known: readonly string[]): Record<string, string | undefined> {
  const result: Record<string, string | undefined> = {};
  for (const [name, value] of new URL(c.req.url).searchParams) {
    if (name.startsWith("env.") && known.includes("env.NAME")) continue;
    if (!known.includes(name)) {
      const near = nearest(name, known);
      const hint = near
        ? `did you mean '${near}'?`
        : known.length > 0
          ? `known: ${known.join(", ")}`
          : "none is known here";
      throw new CacophonyError("bad_request", `unknown query parameter '${name}'; ${hint}`);
    }
    result[name] = value;
  }
  return result;
}

/** Values of `?env.NAME=value`, for interpolation. */
export function envOf(c: Context): Map<string, string> {
  const entries = [...new URL(c.req.url).searchParams].filter(([name]) => name.startsWith("env."));
  return new Map(entries.map(([name, value]) => [name.slice("env.".length), value]));
}

/** @throws CacophonyError `bad_request` when the parameter is neither true nor false. */
export function readFlag(query: Record<string, string | undefined>, name: string): boolean {
  const value = query[name];
  if (value === undefined || value === "false" || value === "0") return false;
  if (value === "true" || value === "1" || value === "") return true;
  throw new CacophonyError("bad_request", `${name}=${value}: write true or false`);
}

export function readPage(query: Record<string, string | undefined>): Page {
  const limit = query["limit"] === undefined ? PAGE_SIZE : Number(query["limit"]);
  if (!Number.isInteger(limit) || limit < 1 || limit > PAGE_SIZE) {
    throw new CacophonyError("bad_request", `limit=${query["limit"]}: write a whole number from 1 to ${PAGE_SIZE}`);
  }
  return { limit, after: query["next"] };
}

/** A JSON answer; it ends with a line feed, so that a terminal's next prompt stands on a line of its own. */
export function answer(c: Context, body: unknown, status: ContentfulStatusCode = 200): Response {
  return c.body(`${JSON.stringify(body)}\n`, status, { "Content-Type": "application/json" });
}
