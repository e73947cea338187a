/** @module The routes under /cluster/service and /cluster/discovery: where services are, once or as they change, and in the words of other tools. */
import type { Context } from "hono";
import { Hono } from "hono";
import { streamSSE } from "hono/streaming";
import { answer, queryOf, readFlag } from "./api_request.ts";
import { serviceKey } from "./cluster_state.ts";
import { prometheusTargets, traefikConfiguration } from "./discovery.ts";
import { CacophonyError } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";
import { servicesView, serviceView } from "./service_views.ts";

/** Streams of changes at once: each costs memory for a slow reader. */
const MAX_WATCHERS = 100;
/** Proxies cut what is silent for a minute. */
const KEEP_ALIVE_MS = 15_000;

export type ServiceRoutesOptions = {
  scheduler: () => Scheduler;
  /** Answers the other methods of a path with 405. */
  only: (app: Hono, paths: readonly string[], ...methods: string[]) => void;
};

export function serviceRoutes({ scheduler, only }: ServiceRoutesOptions): Hono {
  const app = new Hono();
  app.get("/", (c) => {
    if (readFlag(queryOf(c, ["watch"]), "watch")) return watch(c, { scheduler: scheduler(), wanted: undefined });
    const { state, directory } = scheduler();
    return answer(c, { services: servicesView(state, directory.entries()) });
  });
  app.get("/:job_id/:service_name", (c) => {
    const isWatch = readFlag(queryOf(c, ["watch"]), "watch");
    const { job_id, service_name } = c.req.param();
    const { state, directory } = scheduler();
    const key = serviceKey({ job_id, service_name });
    const entry = directory.entry(key);
    if (!entry) throw new CacophonyError("not_found", `there is no service '${service_name}' in a job '${job_id}'`);
    return isWatch ? watch(c, { scheduler: scheduler(), wanted: key }) : answer(c, serviceView(state, entry));
  });
  only(app, ["/", "/:job_id/:service_name"], "GET");
  return app;
}

export function discoveryRoutes({ scheduler, only }: ServiceRoutesOptions): Hono {
  const app = new Hono();
  const services = () => servicesView(scheduler().state, scheduler().directory.entries());
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

let watchers = 0;

/** Server-sent events: `service` with a service's document, first for all of them and then at each change, and `gone`. */
function watch(c: Context, { scheduler, wanted }: { scheduler: Scheduler; wanted: string | undefined }): Response {
  if (watchers >= MAX_WATCHERS)
    throw new CacophonyError(
      "conflict",
      `${MAX_WATCHERS} clients watch services already: end one, or ask now and then`,
    );
  watchers++;
  return streamSSE(c, async (stream) => {
    const { state, directory } = scheduler;
    const pending = new Set<string>(directory.entries().map(serviceKey));
    let wake = () => {};
    const unsubscribe = directory.subscribe((keys) => {
      for (const key of keys) pending.add(key);
      wake();
    });
    try {
      while (!stream.aborted && !stream.closed) {
        // What changes while a slow reader reads is told once, as it is then.
        const keys = [...pending].filter((key) => wanted === undefined || key === wanted);
        pending.clear();
        for (const key of keys) {
          const [job_id = "", service_name = ""] = split(key);
          const entry = directory.entry(serviceKey({ job_id, service_name }));
          const [event, data] = entry ? ["service", serviceView(state, entry)] : ["gone", { job_id, service_name }];
          // oxlint-disable-next-line no-await-in-loop -- one after the other, at the reader's pace
          await stream.writeSSE({ event: event as string, data: JSON.stringify(data) });
        }
        if (pending.size > 0) continue;
        const woken = new Promise<void>((resolve) => {
          wake = resolve;
        });
        // oxlint-disable-next-line no-await-in-loop -- until something changes
        const isNews = await Promise.race([woken.then(() => true), stream.sleep(KEEP_ALIVE_MS).then(() => false)]);
        // oxlint-disable-next-line no-await-in-loop -- a comment, by which a lost reader is noticed
        if (!isNews) await stream.write(": still here\n\n");
      }
    } finally {
      unsubscribe();
      watchers--;
    }
  });
}

function split(key: string): [string, string] {
  const slash = key.indexOf("/");
  return [key.slice(0, slash), key.slice(slash + 1)];
}
