/** @module The routes under /cluster/service and /cluster/discovery: where services are, once or as they change, and in the words of other tools. */
import type { Context } from "hono";
import { Hono } from "hono";
import { type SSEStreamingApi, streamSSE } from "hono/streaming";
import { answer, queryOf, readFlag } from "./api_request.ts";
import { type ServiceKey, parseServiceKey, serviceKey } from "./cluster_state.ts";
import { prometheusTargets, traefikConfiguration } from "./discovery.ts";
import { CacophonyError } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";
import { servicesView, type ServiceView, serviceView } from "./service_views.ts";

/** Streams of changes at once: each costs memory for a slow reader. */
const MAX_WATCHERS = 100;
/** Proxies cut what is silent for a minute. */
const KEEP_ALIVE_MS = 15_000;
/** A reader that takes nothing for that long has its stream ended: it holds a place that another one could have. */
const STUCK_MS = 60_000;

export type ServiceRoutesOptions = {
  scheduler: () => Scheduler;
  /** Answers the other methods of a path with 405. */
  only: (app: Hono, paths: readonly string[], ...methods: string[]) => void;
};

export function serviceRoutes({ scheduler, only }: ServiceRoutesOptions): Hono {
  const app = new Hono();
  const watchers: Watchers = { count: 0 };
  app.get("/", (c) => {
    const isWatch = readFlag(queryOf(c, ["watch"]), "watch");
    if (isWatch) return watch(c, { scheduler: scheduler(), watchers, wanted: undefined });
    return answer(c, { services: servicesOf(scheduler()) });
  });
  app.get("/:job_id/:service_name", (c) => {
    const isWatch = readFlag(queryOf(c, ["watch"]), "watch");
    const { job_id, service_name } = c.req.param();
    const { state, directory } = scheduler();
    const key = serviceKey({ job_id, service_name });
    const entry = directory.entry(key);
    if (!entry) throw new CacophonyError("not_found", `there is no service '${service_name}' in a job '${job_id}'`);
    return isWatch ? watch(c, { scheduler: scheduler(), watchers, wanted: key }) : answer(c, serviceView(state, entry));
  });
  only(app, ["/", "/:job_id/:service_name"], "GET");
  return app;
}

export function discoveryRoutes({ scheduler, only }: ServiceRoutesOptions): Hono {
  const app = new Hono();
  const services = () => servicesOf(scheduler());
  app.get("/prometheus", (c) => {
    queryOf(c, []);
    return answer(c, prometheusTargets(services()));
  });
  app.get("/traefik", (c) => {
    queryOf(c, []);
    return answer(c, traefikConfiguration(services()));
  });
  only(app, ["/prometheus", "/traefik"], "GET");
  return app;
}

function servicesOf({ state, directory, faults }: Scheduler): ServiceView[] {
  return servicesView(state, { entries: directory.entries(), onFault: faults.leftOut });
}

type Watchers = { count: number };

/**
 * Server-sent events: `service` with a service's document, first for all of them and then when it has changed, and `gone`. What
 * changes while a slow reader reads is told once, as it is then.
 */
function watch(
  c: Context,
  { scheduler, watchers, wanted }: { scheduler: Scheduler; watchers: Watchers; wanted: ServiceKey | undefined },
): Response {
  if (watchers.count >= MAX_WATCHERS)
    throw new CacophonyError(
      "conflict",
      `${MAX_WATCHERS} clients watch services already: end one, or ask now and then`,
    );
  // Nobody would ever read what is written.
  if (c.req.method === "HEAD") return c.body(null, 200, { "content-type": "text/event-stream" });
  watchers.count++;
  return streamSSE(c, async (stream) => {
    const { directory } = scheduler;
    const pending = new Set(wanted === undefined ? directory.entries().map(serviceKey) : [wanted]);
    /** What the reader has, by its hash. */
    const told = new Map<ServiceKey, unknown>();
    let wake = () => {};
    const unsubscribe = directory.subscribe((keys) => {
      for (const key of keys) if (wanted === undefined || key === wanted) pending.add(key);
      if (pending.size > 0) wake();
    });
    stream.onAbort(() => wake());
    try {
      while (!stream.aborted) {
        const [key] = pending;
        if (key !== undefined) {
          pending.delete(key);
          const event = newsOf(key, { scheduler, told });
          // oxlint-disable-next-line no-await-in-loop -- one after the other, at the reader's pace
          if (event) await taken(stream, stream.writeSSE(event));
          continue;
        }
        const woken = new Promise<void>((resolve) => {
          wake = resolve;
        });
        // oxlint-disable-next-line no-await-in-loop -- until something changes
        const isNews = await within(KEEP_ALIVE_MS, woken);
        // oxlint-disable-next-line no-await-in-loop -- a comment, by which a lost reader is noticed
        if (!isNews) await taken(stream, stream.write(": still here\n\n"));
      }
    } finally {
      unsubscribe();
      watchers.count--;
    }
  });
}

/** What a reader is to hear of a service; undefined if that is what it has been `told`. */
function newsOf(
  key: ServiceKey,
  { scheduler: { state, directory }, told }: { scheduler: Scheduler; told: Map<ServiceKey, unknown> },
): { event: string; data: string } | undefined {
  const entry = directory.entry(key);
  if (!entry) {
    return told.delete(key) ? { event: "gone", data: JSON.stringify(parseServiceKey(key)) } : undefined;
  }
  const data = JSON.stringify(serviceView(state, entry));
  const hash = Bun.hash(data);
  if (told.get(key) === hash) return undefined;
  told.set(key, hash);
  return { event: "service", data };
}

/** Ends the stream of a reader that does not take what is written. */
async function taken(stream: SSEStreamingApi, writing: Promise<unknown>): Promise<void> {
  if (!(await within(STUCK_MS, writing))) stream.abort();
}

/** Whether it came in time. */
async function within(ms: number, what: Promise<unknown>): Promise<boolean> {
  const late = Promise.withResolvers<boolean>();
  const timer = setTimeout(() => late.resolve(false), ms);
  try {
    return await Promise.race([what.then(() => true), late.promise]);
  } finally {
    clearTimeout(timer);
  }
}
