/** @module Reading requests (bodies within limits whatever their Content-Type says, forms with files, query parameters, pages) and answering in JSON. */
import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import * as v from "valibot";
import { tooLarge } from "./api_bodies.ts";
import type { Page } from "./cluster_views.ts";
import { PAGE_SIZE } from "./cluster_views.ts";
import { readDotenv } from "./job_dotenv.ts";
import { cleanPath, projectPath } from "./job_files.ts";
import type { Detail } from "./model_spec.ts";
import { CacophonyError } from "./model.ts";
import { nearest } from "./nearest.ts";

/** Largest body of a request, in bytes: compose files are a few kilobytes. */
export const MAX_BODY_BYTES = 2 ** 20;

/** Largest body of a form with files, in bytes, and how many files it may have. */
export const MAX_FORM_BYTES = 8 * 2 ** 20;
const MAX_FORM_FILES = 2_000;

/**
 * The whole body. Its Content-Type is not looked at (people send YAML as JSON or as a form), but for multipart/form-data.
 * @throws CacophonyError `too_large`, `unsupported_media_type`
 */
export async function readBody(c: Context): Promise<Uint8Array> {
  if (isForm(c)) {
    throw new CacophonyError(
      "unsupported_media_type",
      "multipart/form-data is not taken here: send the document as the body (curl --data-binary @FILE)",
    );
  }
  return c.get("bodyUpTo")(MAX_BODY_BYTES);
}

/** A document with what belongs to it; `directory`: where it lies, from where the files' paths start. */
export type Sent = {
  document: Uint8Array;
  directory: string;
  files: Map<string, Uint8Array>;
  env: Map<string, string>;
};

/**
 * The document of a PUT: the body itself, or a form (multipart/form-data) with the parts `compose`, `file` (both
 * named by their paths in the project; a document without a name lies at its root) and `env` (lines of NAME=value).
 * @throws CacophonyError `too_large`, `bad_request`, and `invalid_document` with every part that is not in order.
 */
export async function readDocument(c: Context): Promise<Sent> {
  if (!isForm(c)) return { document: await readBody(c), directory: ".", files: new Map(), env: new Map() };
  const body = await c.get("bodyUpTo")(MAX_FORM_BYTES);
  const form = await new Response(body, { headers: { "content-type": c.req.header("content-type") ?? "" } })
    .formData()
    .catch((cause: unknown) => {
      throw new CacophonyError("bad_request", "the body is no whole multipart/form-data: send it with curl -F", {
        cause,
      });
    });
  const files = new Map<string, Uint8Array>();
  const env = new Map<string, string>();
  const documents: Uint8Array[] = [];
  let directory = ".";
  const details: Detail[] = [];
  for (const [name, part] of form) {
    const data = typeof part === "string" ? new TextEncoder().encode(part) : await part.bytes();
    const fault = (message: string) => details.push({ path: name, message });
    if (name === "compose") {
      documents.push(data);
      directory = readDirectory(typeof part === "string" ? undefined : part.name, fault);
    } else if (name === "env") readVariables(data, { env, fault });
    else if (name === "file") readFile(typeof part === "string" ? undefined : part.name, { data, files, fault });
    else fault("is no part of this form: there are compose, file and env");
  }
  if (documents.length !== 1)
    details.push({
      path: "compose",
      message: `is there ${documents.length} times: send one, as -F compose=@compose.yaml`,
    });
  if (files.size > MAX_FORM_FILES)
    details.push({ path: "file", message: `is there ${files.size} times: at most ${MAX_FORM_FILES} files are taken` });
  const [document] = documents;
  if (details.length > 0 || !document)
    throw new CacophonyError("invalid_document", "the form is not in order; nothing of it was applied", { details });
  if (document.byteLength > MAX_BODY_BYTES) throw tooLarge(MAX_BODY_BYTES);
  return { document, directory, files, env };
}

/** The directory of the document, whose name curl gives without any. */
function readDirectory(name: string | undefined, fault: (message: string) => void): string {
  if (!name) return ".";
  const path = projectPath(name);
  const directory = typeof path === "string" ? cleanPath(`${path}/..`) : ".";
  if (typeof path !== "string") fault(path.message);
  if (directory.includes(":"))
    fault(`lies in ${directory}: a mount's short form cannot say a colon; rename the directory`);
  return directory;
}

function readFile(
  name: string | undefined,
  { data, files, fault }: { data: Uint8Array; files: Map<string, Uint8Array>; fault: (message: string) => void },
): void {
  const path = name ? projectPath(name) : undefined;
  if (path === undefined) fault("has no name: send -F 'file=@./PATH;filename=./PATH'");
  else if (typeof path !== "string") fault(path.message);
  else if (files.has(path)) fault(`brings ./${path} twice: keep one`);
  else files.set(path, data);
}

function readVariables(
  data: Uint8Array,
  { env, fault }: { env: Map<string, string>; fault: (message: string) => void },
): void {
  const entries = readDotenv(new TextDecoder().decode(data), (name) => env.get(name));
  if (!(entries instanceof Map)) fault(entries.message);
  else for (const [name, value] of entries) env.set(name, value);
}

function isForm(c: Context): boolean {
  return c.req.header("content-type")?.toLowerCase().startsWith("multipart/form-data") ?? false;
}

/**
 * A body that is a small JSON document.
 * @throws CacophonyError `unparseable`, `invalid_document`
 */
export function readJson<T>(
  body: Uint8Array,
  { schema, example }: { schema: v.GenericSchema<unknown, T>; example: string },
): T {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch (error) {
    throw new CacophonyError("unparseable", `the body is no JSON: send ${example}`, { cause: error });
  }
  const parsed = v.safeParse(schema, json);
  if (parsed.success) return parsed.output;
  const details = parsed.issues.map((issue) => ({ path: v.getDotPath(issue) ?? "", message: issue.message }));
  throw new CacophonyError("invalid_document", `send ${example}`, { details });
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
    // What may be repeated has a reader of its own.
    result[name] = value;
  }
  return result;
}

/** Values of `?env.NAME=value`, for interpolation. */
export function envOf(c: Context): Map<string, string> {
  const entries = [...new URL(c.req.url).searchParams].filter(([name]) => name.startsWith("env."));
  return new Map(entries.map(([name, value]) => [name.slice("env.".length), value]));
}

/** Values of `?profile=NAME`, which may be repeated. */
export function profilesOf(c: Context): string[] {
  return new URL(c.req.url).searchParams.getAll("profile").filter((name) => name !== "");
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

/** The same for what is JSON already, in bytes. */
export function answerJson(c: Context, json: Uint8Array): Response {
  return c.body(json as Uint8Array<ArrayBuffer>, 200, { "Content-Type": "application/json" });
}
