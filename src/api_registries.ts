/** @module The routes under /cluster/registry: logins for image registries, which can be written and never read. */
import { Hono } from "hono";
import * as v from "valibot";
import { answer, queryOf, readBody, readJson } from "./api_request.ts";
import { registryHost } from "./job_images.ts";
import { CacophonyError } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";

// With messages of their own, for valibot's would quote what was sent.
export const loginBody = v.strictObject({
  username: v.pipe(v.string("must be a text"), v.minLength(1, "is empty"), v.maxLength(1024, "is too long")),
  /** Registries of clouds hand out tokens of some kilobytes. */
  password: v.pipe(v.string("must be a text"), v.minLength(1, "is empty"), v.maxLength(16_384, "is too long")),
});
const EXAMPLE = '{"username": "…", "password": "…"}';

export type RegistryRoutesOptions = {
  scheduler: () => Scheduler;
  /** Answers the other methods of a path with 405. */
  only: (app: Hono, paths: readonly string[], ...methods: string[]) => void;
};

export function registryRoutes({ scheduler, only }: RegistryRoutesOptions): Hono {
  const app = new Hono();
  app.get("/", (c) => answer(c, { registries: [...scheduler().state.registries.keys()].toSorted() }));
  app.put("/:host", async (c) => {
    queryOf(c, []);
    const host = readHost(c.req.param("host"));
    const wanted = readJson(await readBody(c), { schema: loginBody, example: EXAMPLE });
    const outcome = await scheduler().putRegistry(host, wanted);
    return answer(c, { registry: host }, outcome === "created" ? 201 : 200);
  });
  app.delete("/:host", async (c) => {
    const host = readHost(c.req.param("host"));
    await scheduler().deleteRegistry(host);
    return answer(c, { registry: host });
  });
  only(app, ["/"], "GET");
  only(app, ["/:host"], "PUT", "DELETE");
  return app;
}

function readHost(text: string): string {
  const host = registryHost(text);
  if (host !== undefined) return host;
  const message = `'${text}' is no registry: write its host as in the names of its images, as registry.example:5000 or docker.io`;
  throw new CacophonyError("invalid_document", message, { details: [{ path: "host", message }] });
}
