/** @module The routes under /cluster/node: all nodes, one of them, its labels and availability, and its leaving of the cluster. */
import { Hono } from "hono";
import * as v from "valibot";
import { answer, queryOf, readBody, readFlag, readJson, readPage } from "./api_request.ts";
import { departureView, nodesView, nodeView } from "./cluster_views.ts";
import { readDuration, Refusal } from "./job_grammar.ts";
import type { NodeRecord } from "./model.ts";
import { CacophonyError } from "./model.ts";
import { MAX_LABEL_VALUE, MAX_LABELS } from "./model_bounds.ts";
import type { Scheduler } from "./scheduler.ts";
import { findDeparture, findNode, type NodeWish } from "./scheduler_nodes.ts";

const LABEL = /^[^\s=]{1,200}$/;
/** Characters of a duration: far above any that people write. */
const MAX_DEADLINE = 100;
const NANOSECONDS_PER_MS = 1e6;
const EXAMPLE = '{"labels": {"zone": "a"}} or {"availability": "drain", "deadline": "10m"}';

/** Looked at by hand: a schema of records drops a label that is called `__proto__`. */
const labels = v.pipe(
  v.custom<Record<string, string>>(isObject, "must be an object from names to texts"),
  v.rawCheck(({ dataset, addIssue }) => {
    if (!dataset.typed) return;
    const input = dataset.value;
    const entries: [string, unknown][] = Object.entries(input);
    if (entries.length > MAX_LABELS) addIssue({ message: `has over ${MAX_LABELS} entries` });
    for (const [key, value] of entries) {
      const fault = faultOf(key, value);
      if (fault === undefined) continue;
      addIssue({ message: fault, path: [{ type: "object", origin: "value", input, key, value }] });
    }
  }),
);

/** The body of a PUT; what is absent stays as it is. */
export const nodeBody = v.pipe(
  v.strictObject(
    {
      labels: v.exactOptional(labels),
      availability: v.exactOptional(
        v.picklist(
          ["active", "pause", "drain"],
          "is none of active (takes work), pause (nothing new) and drain (empty it)",
        ),
      ),
      /** How long a drain may take, as compose writes durations: `90s`, `10m`. */
      deadline: v.exactOptional(v.string("must be a duration in quotes, as 10m")),
    },
    ({ expected }) =>
      expected === "never"
        ? "is not known here; a node's labels and its availability can be set"
        : "must be an object with labels or availability",
  ),
  v.check(
    ({ labels: set, availability }) => set !== undefined || availability !== undefined,
    "says nothing: a node's labels and its availability can be set",
  ),
  v.check(
    ({ availability, deadline }) => deadline === undefined || availability === "drain",
    'deadline goes with {"availability": "drain"}',
  ),
);

export type NodeRoutesOptions = {
  scheduler: () => Scheduler;
  /** Answers the other methods of a path with 405. */
  only: (app: Hono, paths: readonly string[], ...methods: string[]) => void;
};

export function nodeRoutes({ scheduler, only }: NodeRoutesOptions): Hono {
  const app = new Hono();
  const view = (node: NodeRecord) => {
    const { state } = scheduler();
    return nodeView(node, { state, waits: scheduler().drainWaits(node) });
  };
  app.get("/", (c) => {
    const page = readPage(queryOf(c, ["limit", "next"]));
    const { state, faults } = scheduler();
    return answer(
      c,
      nodesView(state, { page, waitsOf: (node) => scheduler().drainWaits(node), onFault: faults.leftOut }),
    );
  });
  app.get("/:node_id", (c) => {
    queryOf(c, []);
    const nodeId = c.req.param("node_id");
    const { state } = scheduler();
    const left = findDeparture(state, nodeId);
    return answer(c, left ? departureView(left) : view(findNode(state, nodeId)));
  });
  app.put("/:node_id", async (c) => {
    const force = forceOf(queryOf(c, ["force"]));
    const wanted = readJson(await readBody(c), { schema: nodeBody, example: EXAMPLE });
    const { availability, deadline } = wanted;
    if (force.force !== undefined && availability !== "drain")
      throw new CacophonyError("bad_request", '?force goes with {"availability": "drain"}; nothing was changed');
    const wish: NodeWish = {
      ...(wanted.labels && { labels: Object.entries(wanted.labels) }),
      ...(availability && { availability }),
      ...(deadline !== undefined && { deadlineMs: readDeadline(deadline) }),
      ...force,
    };
    return answer(c, view(await scheduler().putNode(c.req.param("node_id"), wish)));
  });
  app.delete("/:node_id", async (c) => {
    const query = queryOf(c, ["force", "deadline"]);
    const { deadline } = query;
    const wish: NodeWish = {
      ...forceOf(query),
      ...(deadline !== undefined && { deadlineMs: readDeadline(deadline) }),
    };
    const nodeId = c.req.param("node_id");
    const former = wish.force ? await scheduler().forgetData(nodeId) : undefined;
    if (former) return answer(c, departureView(former));
    const { node, isGone } = await scheduler().removeNode(nodeId, wish);
    const left = isGone ? scheduler().state.departures.get(node.node_id) : undefined;
    return left ? answer(c, departureView(left)) : answer(c, view(node), 202);
  });
  only(app, ["/"], "GET");
  only(app, ["/:node_id"], "GET", "PUT", "DELETE");
  return app;
}

function faultOf(name: string, value: unknown): string | undefined {
  if (!LABEL.test(name)) return "a label's name has 1 to 200 characters, no spaces and no '='";
  if (typeof value !== "string") return "must be a text in quotes";
  return value.length > MAX_LABEL_VALUE ? `is over ${MAX_LABEL_VALUE} characters long` : undefined;
}

function isObject(value: unknown): boolean {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function forceOf(query: Record<string, string | undefined>): Pick<NodeWish, "force"> {
  return query["force"] === undefined ? {} : { force: readFlag(query, "force") };
}

function readDeadline(text: string): number {
  const duration =
    text.length > MAX_DEADLINE
      ? new Refusal(`is over ${MAX_DEADLINE} characters long, which is no duration: write one, as 10m`)
      : readDuration(text);
  if (!(duration instanceof Refusal)) return Math.ceil(duration / NANOSECONDS_PER_MS);
  throw new CacophonyError("invalid_document", `deadline ${duration.message}`, {
    details: [{ path: "deadline", message: duration.message }],
  });
}
