/** @module The routes under /cluster/node: all nodes, and the labels of one. */
import { Hono } from "hono";
import { answer, queryOf, readBody, readPage } from "./api_request.ts";
import { nodesView, nodeView } from "./cluster_views.ts";
import type { Detail } from "./model_spec.ts";
import { CacophonyError } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";

/** Labels of a node: more than anybody gives, few enough to look at for each placement. */
const MAX_LABELS = 100;
/** Characters of a label's value. */
const MAX_VALUE = 1000;
const LABEL = /^[^\s=]{1,200}$/;

export type NodeRoutesOptions = {
  scheduler: () => Scheduler;
  /** Answers the other methods of a path with 405. */
  only: (app: Hono, paths: readonly string[], ...methods: string[]) => void;
};

export function nodeRoutes({ scheduler, only }: NodeRoutesOptions): Hono {
  const app = new Hono();
  app.get("/", (c) => answer(c, nodesView(scheduler().state, readPage(queryOf(c, ["limit", "next"])))));
  app.put("/:node_id", async (c) => {
    queryOf(c, []);
    const labels = readLabels(await readBody(c));
    const node = await scheduler().setLabels(c.req.param("node_id"), labels);
    return answer(c, nodeView(node, scheduler().state.views.get(node.node_id)));
  });
  only(app, ["/"], "GET");
  only(app, ["/:node_id"], "PUT");
  return app;
}

function readLabels(body: Uint8Array): [string, string][] {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch (error) {
    throw new CacophonyError("unparseable", 'the body is no JSON: send {"labels": {"zone": "a"}}', { cause: error });
  }
  const details: Detail[] = [];
  const labels = isObject(json) ? json["labels"] : undefined;
  if (isObject(json)) {
    for (const key of Object.keys(json)) {
      if (key !== "labels") details.push({ path: key, message: "is not known here; a node's labels can be set" });
    }
  }
  if (!isObject(labels)) details.push({ path: "labels", message: "must be an object from names to texts" });
  const entries = isObject(labels) ? Object.entries(labels) : [];
  if (entries.length > MAX_LABELS) details.push({ path: "labels", message: `has over ${MAX_LABELS} entries` });
  for (const [name, value] of entries) {
    const path = `labels.${name}`;
    if (!LABEL.test(name))
      details.push({ path, message: "a label's name has 1 to 200 characters, no spaces and no '='" });
    if (typeof value !== "string") details.push({ path, message: "must be a text in quotes" });
    else if (value.length > MAX_VALUE) details.push({ path, message: `is over ${MAX_VALUE} characters long` });
  }
  if (details.length === 0) return entries as [string, string][];
  throw new CacophonyError("invalid_document", 'send {"labels": {"zone": "a"}}: names and texts, {} for none', {
    details,
  });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
