/** @module What containers of jobs may do with the API of their node, by the level that their service asks for. */
import { describe, expect, test } from "bun:test";
import { Hono } from "hono";
import { limitContainers } from "../src/api_access.ts";
import { type ApiAccess, CacophonyError } from "../src/model.ts";

const LEVELS: Record<string, ApiAccess> = { "10.0.0.1": "none", "10.0.0.2": "read", "10.0.0.3": "deploy" };

const app = new Hono();
app.onError((error, c) =>
  c.text(error.message, error instanceof CacophonyError && error.code === "forbidden" ? 403 : 500),
);
app.use(limitContainers((remote) => LEVELS[remote]));
app.get("/cluster/job/shop", (c) =>
  c.json({
    document: {
      "x-common": { environment: { TOKEN: "t0ken" } },
      services: {
        web: {
          image: "web",
          environment: { PASSWORD: "hunter2", __proto__: "p" },
          build: { args: ["KEY=k3y"] },
          post_start: [{ command: ["a"], environment: ["A=v4lue", "B"] }],
          labels: { "traefik.enable": "true" },
          "x-cacophony": { api: "read" },
        },
      },
      configs: { app: { content: "c0ntent" }, file: { file: "./app.conf" } },
    },
  }),
);
// As another node answers what is passed on to it.
app.all("/cluster/job/far", () => new Response(null, { headers: { "Content-Type": "application/json" } }));
app.get("/cluster/job/long", () => {
  const text = JSON.stringify({ document: { services: { web: { environment: { A: "a".repeat(99) } } } } });
  return new Response(text, { headers: { "Content-Type": "application/json", "Content-Length": `${text.length}` } });
});
app.all("*", (c) => c.text("done"));

async function ask(method: string, path: string, remote?: string): Promise<number> {
  const response = await app.request(path, { method }, remote === undefined ? {} : { remote });
  return response.status;
}

describe("limitContainers()", () => {
  test.each<[method: string, path: string, none: number, read: number, deploy: number]>([
    ["GET", "/healthz", 403, 200, 200],
    ["GET", "/openapi.json", 403, 200, 200],
    ["GET", "/cluster/job", 403, 200, 200],
    ["GET", "/cluster/job/a/b", 403, 200, 200],
    ["HEAD", "/cluster/job/shop", 403, 200, 200],
    ["HEAD", "/cluster/job/far", 403, 200, 200],
    ["GET", "/cluster/jobs", 403, 403, 403],
    ["GET", "/cluster/service/a/b", 403, 200, 200],
    ["HEAD", "/cluster/service", 403, 200, 200],
    ["GET", "/cluster/discovery/prometheus", 403, 200, 200],
    ["GET", "/cluster/node", 403, 403, 200],
    ["GET", "/cluster/allocation", 403, 403, 200],
    ["GET", "/cluster/registry", 403, 403, 403],
    ["PUT", "/cluster/job/a", 403, 403, 200],
    ["POST", "/cluster/job/a/restart", 403, 403, 200],
    ["DELETE", "/cluster/job/a", 403, 403, 200],
    ["PUT", "/cluster/node/a", 403, 403, 403],
    ["DELETE", "/cluster/node/a", 403, 403, 403],
    ["PUT", "/cluster/registry/a", 403, 403, 403],
    ["POST", "/cluster/rebalance", 403, 403, 403],
    ["GET", "/internal/peer", 403, 403, 403],
    ["POST", "/internal/secret", 403, 403, 403],
  ])("answers %s %s with %i, %i and %i", async (method, path, none, read, deploy) => {
    expect(await ask(method, path, "10.0.0.1")).toBe(none);
    expect(await ask(method, path, "10.0.0.2")).toBe(read);
    expect(await ask(method, path, "10.0.0.3")).toBe(deploy);
    expect(await ask(method, path, "10.0.0.9")).toBe(200);
    expect(await ask(method, path)).toBe(200);
  });

  test("knows an IPv4 address also as a socket for both versions shows it", async () => {
    expect(await ask("GET", "/cluster/job", "::ffff:10.0.0.1")).toBe(403);
  });

  test("hides the values of environment, configs and secrets from those that may only read", async () => {
    const answer = async (remote: string) => (await app.request("/cluster/job/shop", {}, { remote })).json();
    expect(await answer("10.0.0.2")).toEqual({
      document: {
        services: {
          web: {
            image: "web",
            environment: { PASSWORD: "(hidden)" },
            build: { args: ["KEY"] },
            post_start: [{ command: ["a"], environment: ["A", "B"] }],
            labels: { "traefik.enable": "true" },
            "x-cacophony": { api: "read" },
          },
        },
        configs: { app: { content: "(hidden)" }, file: { file: "./app.conf" } },
      },
    });
    expect(JSON.stringify(await answer("10.0.0.3"))).toContain("hunter2");
    expect(JSON.stringify(await answer("10.0.0.9"))).toContain("c0ntent");
  });

  test("gives an answer without values no length of the one with them", async () => {
    const { headers } = await app.request("/cluster/job/long", {}, { remote: "10.0.0.2" });
    expect([headers.get("content-type"), headers.get("content-length")]).toEqual(["application/json", null]);
  });
});
