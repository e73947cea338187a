/**
 * @module The least that a server and a forwarder do, for `bench_api.ts` to measure against: `hono PORT FILE` answers every
 * request with the file's text by a bare Hono handler, `forward PORT ADDRESS` passes every request on by a bare `fetch`. A tool.
 */
import { readFileSync } from "node:fs";
import { Hono } from "hono";

const [kind, port, what = ""] = process.argv.slice(2);
const serve = { hostname: "127.0.0.1", port: Number(port) };

if (kind === "hono") {
  const text = readFileSync(what, "utf8");
  const app = new Hono();
  app.get("/cluster/job", (c) => c.body(text, 200, { "Content-Type": "application/json" }));
  Bun.serve({ ...serve, fetch: app.fetch });
} else {
  Bun.serve({ ...serve, fetch: (request) => fetch(`http://${what}${new URL(request.url).pathname}`) });
}
