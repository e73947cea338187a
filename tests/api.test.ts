/** @module The HTTP API in process: routes, status codes, versions, conditions, limits, and what a worker forwards. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Hono } from "hono";
import { createApi } from "../src/api.ts";
import { systemClock } from "../src/clock.ts";
import { readPolicy } from "../src/job_policy.ts";
import { silentLog } from "../src/log.ts";
import { Scheduler } from "../src/scheduler.ts";
import { Sealer } from "../src/seal.ts";
import { openSqliteStore } from "../src/store.ts";
import { seeded } from "./cluster_fixture.ts";

const root = mkdtempSync(join(tmpdir(), "cacophony-api-"));
let scheduler: Scheduler;
let app: Hono;
let ids = 0;

const DOCUMENT = "services:\n  web:\n    image: busybox\n  db:\n    image: busybox\n    scale: 2\n";

beforeAll(async () => {
  scheduler = new Scheduler({
    store: openSqliteStore(join(root, "cluster.db")),
    clock: systemClock,
    random: seeded(1),
    newId: () => `id${++ids}`,
    sealer: new Sealer(join(root, "secret.key")),
    log: silentLog,
    onFenced: () => {},
  });
  await scheduler.start({ cluster_id: "c1", created_at: 0, network_mode: "vxlan", network_cidr: "10.213.0.0/16" });
  app = createApi({
    local: localNode("master"),
    scheduler: () => scheduler,
    dataDir: "/var/lib/cacophony",
    isNode: ({ authorization, remote }) => authorization === "Bearer of-a-node" || remote === "10.0.0.2",
    log: silentLog,
  });
});

afterAll(async () => {
  await scheduler.stop();
  rmSync(root, { recursive: true });
});

function localNode(nodeId: string, master?: { address: string | undefined; lost: AbortSignal | undefined }) {
  return {
    nodeId,
    version: "0.0.0",
    faults: () => (master ? ["no session with the master"] : []),
    peerInfo: () => ({
      node_id: nodeId,
      protocol: 1,
      version: "0.0.0",
      peers: [],
      master: { node_id: "master", address: "10.0.0.1:9000" },
    }),
    master: () => master ?? { address: undefined, lost: undefined },
  };
}

type ErrorDoc = {
  error: {
    code: string;
    message: string;
    details: { path: string; message: string; line?: number; column?: number }[];
  };
};

async function call<T>(
  method: string,
  path: string,
  { body, headers = {} }: { body?: string | Uint8Array<ArrayBuffer>; headers?: Record<string, string> } = {},
) {
  const response = await app.request(path, {
    method,
    headers: { host: "localhost", ...headers },
    ...(body === undefined ? {} : { body }),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, text, body: JSON.parse(text) as T };
}

describe("PUT /cluster/job/:job_id", () => {
  test("creates with 201, updates with 200, and leaves an equal job at its version", async () => {
    const first = await call<{ version: number }>("PUT", "/cluster/job/versions", { body: DOCUMENT });
    expect(first).toMatchObject({
      status: 201,
      body: { job_id: "versions", version: 1, services: { web: { scale: 1 }, db: { scale: 2 } }, warnings: [] },
    });
    expect(first.headers.get("etag")).toBe('"1"');
    expect(first.text.endsWith("\n")).toBe(true);
    expect(await call("PUT", "/cluster/job/versions", { body: `${DOCUMENT}# a comment\n` })).toMatchObject({
      status: 200,
      body: { version: 1 },
    });
    const changed = DOCUMENT.replace("busybox", "busybox:2");
    expect(await call("PUT", "/cluster/job/versions", { body: changed })).toMatchObject({
      status: 200,
      body: { version: 2 },
    });
  });

  test("keeps a scale over an update unless the document sets it", async () => {
    await call("PUT", "/cluster/job/scales", { body: DOCUMENT });
    expect(await call("PUT", "/cluster/job/scales/web", { body: '{"scale": 7}' })).toMatchObject({
      status: 200,
      body: { job_id: "scales", service_name: "web", scale: 7, version: 2 },
    });
    await call("PUT", "/cluster/job/scales/db", { body: '{"scale": 9}' });
    const { body } = await call<{ services: unknown }>("PUT", "/cluster/job/scales", {
      body: DOCUMENT.replaceAll("busybox", "other"),
    });
    expect(body.services).toEqual({ web: { scale: 7 }, db: { scale: 2 } });
  });

  test("reads the body whatever its Content-Type says", async () => {
    for (const type of ["application/json", "application/x-www-form-urlencoded", "text/plain", "nonsense"]) {
      expect(
        (await call("PUT", "/cluster/job/types", { body: DOCUMENT, headers: { "content-type": type } })).status,
      ).toBeLessThan(300);
    }
  });

  const form = (parts: [name: string, value: string, filename?: string][]) => {
    const data = new FormData();
    for (const [name, value, filename] of parts) {
      if (filename === undefined) data.append(name, value);
      else data.append(name, new Blob([value]), filename);
    }
    return data;
  };
  const send = async (path: string, body: FormData) => {
    const response = await app.request(path, { method: "PUT", headers: { host: "localhost" }, body });
    return { status: response.status, body: (await response.json()) as ErrorDoc & { version: number } };
  };
  const FORM = "services:\n  app: {image: 'busybox:${TAG}', env_file: a.env, volumes: ['./conf/app.conf:/app.conf']}\n";

  test("takes a form with files and variables, and keeps the contents by their hash", async () => {
    const parts = (content: string): [string, string, string?][] => [
      ["compose", FORM, "compose.yaml"],
      ["file", content, "./conf/app.conf"],
      ["file", "A=${TAG}", "a.env"],
      ["env", "# mine\nTAG=1\n"],
    ];
    expect(await send("/cluster/job/form", form(parts("one")))).toMatchObject({ status: 201, body: { version: 1 } });
    const spec = () => {
      const [service] = scheduler.state.liveJob("form")?.services ?? [];
      return scheduler.state.specs.get(service?.spec_hash ?? "");
    };
    expect(spec()).toMatchObject({ image: "busybox:1", environment: ["A=1"], files: [{ path: "conf/app.conf" }] });
    const chunk = spec()?.files?.[0]?.chunks[0] ?? "";
    const asNode = { headers: { authorization: "Bearer of-a-node" } };
    expect(await (await app.request(`/internal/chunk/${chunk}`, asNode)).text()).toBe("one");
    expect((await app.request("/internal/chunk/none", asNode)).status).toBe(404);
    // Point 14: only to nodes of this cluster.
    for (const authorization of ["", "Bearer of-nobody", "of-a-node"])
      expect((await app.request(`/internal/chunk/${chunk}`, { headers: { authorization } })).status).toBe(404);
    expect((await app.request(`/internal/chunk/${chunk}`)).status).toBe(404);
    expect((await app.request(`/internal/chunk/${chunk}`, {}, { remote: "10.0.0.2" })).status).toBe(200);
    expect(await send("/cluster/job/form", form(parts("one")))).toMatchObject({ status: 200, body: { version: 1 } });
    expect(await send("/cluster/job/form?env.TAG=2", form(parts("two")))).toMatchObject({ body: { version: 2 } });
    expect(spec()?.image).toBe("busybox:2");
  });

  test("takes a document by its path in the project, which the document's own paths start from", async () => {
    const above = "services:\n  app: {image: busybox, volumes: ['../files/x:/x', './y:/y']}\n";
    const parts: [string, string, string][] = [
      ["compose", above, "./deploy/docker/compose.yaml"],
      ["file", "x", "deploy/files/x"],
    ];
    expect(await send("/cluster/job/above", form(parts))).toMatchObject({ status: 201, body: { version: 1 } });
    const [service] = scheduler.state.liveJob("above")?.services ?? [];
    expect(scheduler.state.specs.get(service?.spec_hash ?? "")).toMatchObject({
      mounts: [{ source: "deploy/files/x" }, { source: "deploy/docker/y" }],
      files: [{ path: "deploy/files/x" }],
    });
    // What the cluster shows means the same wherever it lies.
    const shown = await (await app.request("/cluster/job/above")).json();
    const back = form([["compose", JSON.stringify((shown as { document: unknown }).document)], ...parts.slice(1)]);
    expect(await send("/cluster/job/above", back)).toMatchObject({ status: 200, body: { version: 1 } });
    // A document without directories lies at the root, whatever the one before it did.
    expect(await send("/cluster/job/above", form([["compose", above, "compose.yaml"]]))).toMatchObject({
      status: 422,
      body: { error: { details: [{ message: expect.stringContaining("filename=DIR/compose.yaml") }] } },
    });
  });

  test("changes nothing and keeps nothing for a dry run or a refused form", async () => {
    const before = scheduler.state.chunks.size;
    const parts: [string, string, string?][] = [
      ["compose", FORM],
      ["file", "never seen", "conf/app.conf"],
    ];
    expect(
      (await send("/cluster/job/refused?env.TAG=1", form(parts))).body.error.details.map(({ message }) => message),
    ).toEqual(["names the file \"a.env\", which was not sent: add -F 'file=@./a.env;filename=./a.env' to curl"]);
    const whole = form([...parts, ["file", "", "a.env"]]);
    expect(await send("/cluster/job/refused?dry_run=true&env.TAG=1", whole)).toMatchObject({ status: 200 });
    expect(scheduler.state.chunks.size).toBe(before);
    expect(scheduler.state.liveJob("refused")).toBeUndefined();
  });

  const faulty: [what: string, parts: [string, string, string?][], message: string][] = [
    ["no document", [["file", "a", "a"]], "is there 0 times"],
    ["a document above the project", [["compose", FORM, "../compose.yaml"]], "leaves the job's project directory"],
    ["a document below a colon", [["compose", FORM, "one:two/compose.yaml"]], "rename the directory"],
    ["a document of the sender's machine", [["compose", FORM, "/srv/compose.yaml"]], "lies outside of the job"],
    [
      "two documents",
      [
        ["compose", FORM],
        ["compose", FORM],
      ],
      "is there 2 times",
    ],
    [
      "an unknown part",
      [
        ["compose", FORM],
        ["files", "a", "a"],
      ],
      "is no part of this form",
    ],
    [
      "a file that leaves",
      [
        ["compose", FORM],
        ["file", "a", "../a"],
      ],
      "leaves the job's project directory",
    ],
    [
      "a file twice",
      [
        ["compose", FORM],
        ["file", "a", "a"],
        ["file", "b", "./a"],
      ],
      "brings ./a twice",
    ],
    [
      "a file without a name",
      [
        ["compose", FORM],
        ["file", "a"],
      ],
      "has no name",
    ],
    [
      "bad variables",
      [
        ["compose", FORM],
        ["env", "A=1\nB C"],
      ],
      "line 2",
    ],
  ];
  test.each(faulty)("refuses a form with %s", async (_, parts, message) => {
    const { status, body } = await send("/cluster/job/faulty", form(parts));
    expect(status).toBe(422);
    expect(body.error.details.map((detail) => detail.message).join("\n")).toContain(message);
  });

  const env = (text: string) =>
    form([
      ["compose", FORM],
      ["env", text],
    ]);

  test("point 6: a hostile env part is refused in a moment, and nobody waits for it", async () => {
    const sent = send("/cluster/job/hostile", env(`export${" ".repeat(300_000)}!`));
    let longest = 0;
    let done = false;
    void sent.finally(() => (done = true));
    for (let last = performance.now(); !done; last = performance.now()) {
      // oxlint-disable-next-line no-await-in-loop -- what is measured is how late it goes on
      await Bun.sleep(1);
      longest = Math.max(longest, performance.now() - last);
    }
    expect((await sent).body.error.details).toEqual([
      { path: "env", message: "line 1 is no NAME=value; a value of several lines stands in quotes" },
    ]);
    expect(longest).toBeLessThan(1_000);
  });

  test("point 6: all env parts together have at most 1 MiB, and a form at most 500 faults", async () => {
    const half = `A="${"b".repeat(2 ** 19)}"`;
    const parts: [string, string][] = [
      ["compose", "services: {a: {image: b}}"],
      ["env", half],
      ["env", half],
    ];
    const { status, body } = await send("/cluster/job/hostile", form(parts));
    expect([status, body.error.code, body.error.message]).toEqual([
      413,
      "too_large",
      "what the parts called env bring together is larger than 1048576 bytes (1 MiB)",
    ]);
    const many = form(Array.from({ length: 2_000 }, (_, n) => [`part${n}`, ""]));
    expect((await send("/cluster/job/hostile", many)).body.error.details.length).toBeLessThan(510);
  });

  test("point 6: a deadline of 160,000 digits is refused at once", async () => {
    const body = JSON.stringify({ availability: "drain", deadline: "1".repeat(160_000) });
    const begin = performance.now();
    const response = await app.request("/cluster/node/none", { method: "PUT", body });
    const { error } = (await response.json()) as ErrorDoc;
    expect(error.details).toEqual([
      { path: "deadline", message: "is over 100 characters long, which is no duration: write one, as 10m" },
    ]);
    expect(performance.now() - begin).toBeLessThan(1_000);
  });

  test("refuses a form that is broken or over 8 MiB, and runs what ?profile= chooses", async () => {
    const headers = { "content-type": "multipart/form-data; boundary=x" };
    expect((await call("PUT", "/cluster/job/broken", { body: "no form", headers })).status).toBe(400);
    const large: [string, string, string?][] = [
      ["compose", FORM],
      ["file", "x".repeat(8 * 2 ** 20), "a"],
    ];
    expect((await send("/cluster/job/large", form(large))).status).toBe(413);
    const body = "services: {a: {image: x}, b: {image: x, profiles: [p]}, c: {image: x, profiles: [q]}}";
    expect(await call("PUT", "/cluster/job/profiles?profile=p&profile=q", { body })).toMatchObject({
      body: { services: { a: {}, b: {}, c: {} } },
    });
  });

  test("lists every fault with its place", async () => {
    const body = "services:\n  a:\n    image: x\n    ports: ['99999']\n    enviroment: {}\n";
    const answer = await call<ErrorDoc>("PUT", "/cluster/job/faulty", { body });
    expect(answer.status).toBe(422);
    expect(answer.body.error.details.map(({ path, line, column }) => [path, line, column])).toEqual([
      ["services.a.ports[0]", 4, 13],
      ["services.a.enviroment", 5, 5],
    ]);
    expect((await call("GET", "/cluster/job/faulty")).status).toBe(404);
  });

  test.each([
    ["a body that is no YAML", "/cluster/job/x", "services: [", 400, "unparseable"],
    ["a body that is no UTF-8", "/cluster/job/x", new Uint8Array([0xff, 0xfe, 0x41]), 400, "unparseable"],
    ["a body over 1 MiB", "/cluster/job/x", "#".repeat(2 ** 20 + 1), 413, "too_large"],
    ["a job id with a space", "/cluster/job/a%20b", DOCUMENT, 422, "invalid_document"],
    ["a job id that starts with a dot", "/cluster/job/.a", DOCUMENT, 422, "invalid_document"],
    ["a job id of 64 letters", `/cluster/job/${"a".repeat(64)}`, DOCUMENT, 422, "invalid_document"],
    [
      "replicas beyond what a job may have",
      "/cluster/job/x",
      "services: {a: {image: b, scale: 60000}, c: {image: d, scale: 60000}}",
      422,
      "invalid_document",
    ],
    ["a misspelt parameter", "/cluster/job/x?dryrun=true", DOCUMENT, 400, "bad_request"],
  ])("refuses %s", async (_, path, body, status, code) => {
    expect(await call("PUT", path, { body })).toMatchObject({ status, body: { error: { code } } });
  });

  test("takes services called __proto__ and constructor for what they are", async () => {
    const body = "services:\n  __proto__:\n    image: a\n  constructor:\n    image: b\n";
    expect((await call("PUT", "/cluster/job/names", { body })).text).toContain(
      '"services":{"__proto__":{"scale":1},"constructor":{"scale":1}}',
    );
    expect((await call("GET", "/cluster/job/names")).text).toContain('"__proto__":{"scale":1');
    expect(await call("PUT", "/cluster/job/names/__proto__", { body: '{"scale": 3}' })).toMatchObject({
      status: 200,
      body: { service_name: "__proto__", scale: 3 },
    });
  });

  test("values come from ?env.NAME= and the document, never from the server's environment", async () => {
    const body = `services:\n  a:\n    image: "x:\${TAG:-none}"\n    environment: ["H=\${HOME}"]\n`;
    const { body: answer } = await call<{
      containers: { create: { Image: string; Env: string[] } }[];
      warnings: { message: string }[];
    }>("PUT", "/cluster/job/env?dry_run=true&env.TAG=7", { body });
    expect(answer.containers[0]?.create).toMatchObject({ Image: "x:7", Env: ["H="] });
    expect(answer.warnings.map(({ message }) => message).join()).toContain("HOME");
  });
});

describe("conditions", () => {
  test("If-None-Match: * creates once, If-Match holds for the named version only", async () => {
    const create = () =>
      call<ErrorDoc>("PUT", "/cluster/job/cond", { body: DOCUMENT, headers: { "if-none-match": "*" } });
    expect((await create()).status).toBe(201);
    expect(await create()).toMatchObject({
      status: 412,
      body: { error: { code: "precondition_failed", message: expect.stringContaining("version 1") } },
    });
    const update = (tag: string) =>
      call("PUT", "/cluster/job/cond", { body: DOCUMENT.replace("busybox", tag), headers: { "if-match": '"1"' } });
    expect((await update("one")).status).toBe(200);
    expect((await update("two")).status).toBe(412);
    const scale = (tag: string) =>
      call("PUT", "/cluster/job/cond/web", { body: '{"scale": 1}', headers: { "if-match": tag } });
    expect([(await scale('"1"')).status, (await scale('"2"')).status]).toEqual([412, 200]);
    expect((await call("DELETE", "/cluster/job/cond", { headers: { "if-match": '"1"' } })).status).toBe(412);
    expect((await call("DELETE", "/cluster/job/cond", { headers: { "if-match": '"2"' } })).status).toBe(202);
    expect((await call("PUT", "/cluster/job/cond", { body: DOCUMENT, headers: { "if-match": "*" } })).status).toBe(412);
  });
});

describe("a dry run", () => {
  test("changes nothing and shows every slot with the body of its create call", async () => {
    const { body } = await call<{
      containers: { service_name: string; slot: number; name: string; create: object }[];
      blocked: unknown[];
      changes: unknown[];
    }>("PUT", "/cluster/job/dry?dry_run=true", { body: DOCUMENT });
    expect(body.containers.map(({ service_name, slot }) => `${service_name}-${slot}`)).toEqual([
      "web-1",
      "db-1",
      "db-2",
    ]);
    expect(body.containers[0]?.create).toMatchObject({
      Image: "busybox",
      Labels: { "cacophony.job": "dry", "cacophony.slot": "1" },
    });
    expect(body.blocked).toContainEqual({ service_name: "web", slot: 1, reasons: ["the cluster has no nodes"] });
    expect(body.changes).toHaveLength(2);
    expect((await call("GET", "/cluster/job/dry")).status).toBe(404);
  });

  test("shows 1,000 containers at most and says that there are more", async () => {
    const { body } = await call<{ containers: unknown[]; truncated: boolean }>("PUT", "/cluster/job/dry?dry_run=true", {
      body: DOCUMENT.replace("scale: 2", "scale: 5000"),
    });
    expect([body.containers.length, body.truncated]).toEqual([1000, true]);
  });
});

describe("scaling and deleting", () => {
  test.each([
    ["a negative scale", '{"scale": -1}', 422],
    ["a broken scale", '{"scale": 1.5}', 422],
    ["a text", '{"scale": "5"}', 422],
    ["another key", '{"scale": 1, "color": "red"}', 422],
    ["no JSON", "scale=5", 400],
    ["nothing", "", 400],
  ])("refuses %s", async (_, body, status) => {
    await call("PUT", "/cluster/job/scaling", { body: DOCUMENT });
    expect((await call("PUT", "/cluster/job/scaling/web", { body })).status).toBe(status);
  });

  test("names close matches of an unknown job or service", async () => {
    await call("PUT", "/cluster/job/my-shop", { body: DOCUMENT });
    const job = await call<ErrorDoc>("DELETE", "/cluster/job/my-shpo");
    expect([job.status, job.body.error.message]).toEqual([404, "no job 'my-shpo'; did you mean 'my-shop'?"]);
    const service = await call<ErrorDoc>("PUT", "/cluster/job/my-shop/wbe", { body: '{"scale": 1}' });
    expect([service.status, service.body.error.message]).toEqual([404, expect.stringContaining("no service 'wbe'")]);
  });

  test("DELETE answers 202, and the next PUT has a higher version, of any job", async () => {
    const put = (id: string) => call<{ version: number }>("PUT", `/cluster/job/${id}`, { body: DOCUMENT });
    const first = (await put("gone")).body.version;
    const deleted = await call<{ version: number }>("DELETE", "/cluster/job/gone");
    expect([deleted.status, deleted.body.version]).toEqual([202, first + 1]);
    expect((await call("GET", "/cluster/job/gone")).status).toBe(404);
    // What somebody knows of the job that is gone holds for no other that takes its place.
    const headers = { "if-match": `"${first}"` };
    expect((await call("PUT", "/cluster/job/gone", { body: DOCUMENT, headers })).status).toBe(412);
    expect(await put("gone")).toMatchObject({ status: 201, body: { version: first + 2 } });
    expect((await call("PUT", "/cluster/job/gone", { body: DOCUMENT, headers })).status).toBe(412);
    expect(await put("new-after-gone")).toMatchObject({ status: 201, body: { version: first + 2 } });
  });
});

function withPolicy(text: string): Hono {
  const policy = readPolicy(text, { path: "/policy" });
  return createApi({
    local: localNode("master"),
    scheduler: () => scheduler,
    dataDir: "/var/lib/cacophony",
    policy: () => policy,
    log: silentLog,
  });
}

describe("a policy", () => {
  test("refuses what it forbids with the rule's name, dry or not, and changes nothing", async () => {
    const text = "rules: [{name: nothing privileged, effect: deny, keys: [privileged]}]";
    const strict = withPolicy(text);
    const body = "services: {a: {image: b, privileged: true}, c: {image: d}}";
    for (const query of ["", "?dry_run=true"]) {
      const answer = await strict.request(`/cluster/job/strict${query}`, { method: "PUT", body });
      expect(answer.status).toBe(422);
      expect(((await answer.json()) as ErrorDoc).error.details).toEqual([
        {
          path: "services.a.privileged",
          message: "privileged is forbidden by the rule 'nothing privileged' of this cluster's policy",
        },
      ]);
    }
    expect((await call("GET", "/cluster/job/strict")).status).toBe(404);
    const allowed = await strict.request("/cluster/job/strict", { method: "PUT", body: body.replace("true", "false") });
    expect(allowed.status).toBe(201);
  });
});

describe("point 2: the profile restricted", () => {
  test("refuses at each PUT what the document and the job's present version show, and leaves jobs that run alone", async () => {
    const strict = withPolicy("profile: restricted");
    const put = async (path: string, body: string) => {
      const answer = await strict.request(path, { method: "PUT", body });
      const { error } = (await answer.json()) as Partial<ErrorDoc>;
      return [answer.status, ...new Set((error?.details ?? []).map((one) => one.path))];
    };
    const bound = (volumes: string) => `services: {app: {image: busybox, volumes: ['${volumes}']}}`;
    const volume = "{driver_opts: {type: none, o: bind, device: etc}}";
    expect(await put("/cluster/job/kept", `${bound("vol:/x")}\nvolumes: {vol: ${volume}}`)).toEqual([
      422,
      "volumes.vol.driver_opts",
    ]);
    expect(await put("/cluster/job/kept", bound("./d:/d"))).toEqual([201]);
    expect(await put("/cluster/job/kept", bound("./d/x:/x"))).toEqual([422, "services.app.volumes"]);
    expect(await put("/cluster/job/kept?dry_run=true", bound("./d/x:/x"))).toEqual([422, "services.app.volumes"]);
    expect(await put("/cluster/job/kept", bound("./d:/e"))).toEqual([200]);

    // A job of before the policy: it may be scaled and restarted, and is refused when it is sent again.
    const body = "services: {app: {image: busybox, privileged: true}}";
    expect((await call("PUT", "/cluster/job/older", { body })).status).toBe(201);
    expect(await put("/cluster/job/older/app", '{"scale": 2}')).toEqual([200]);
    expect((await strict.request("/cluster/job/older/restart", { method: "POST" })).status).toBe(202);
    expect(await put("/cluster/job/older", body)).toEqual([422, "services.app.privileged"]);

    // Networks are known by name in the whole cluster.
    const network = (key: string) => `services: {app: {image: busybox, networks: [${key}]}}\nnetworks: {${key}: }`;
    expect(await put("/cluster/job/shop_prod", network("back"))).toEqual([201]);
    expect(await put("/cluster/job/shop", network("prod_back"))).toEqual([422, "networks.prod_back"]);
  });
});

describe("restarting", () => {
  test("answers 202 with a new version, and nothing but {pull} is taken", async () => {
    const { version } = (await call<{ version: number }>("PUT", "/cluster/job/again", { body: DOCUMENT })).body;
    const path = "/cluster/job/again/restart";
    expect(await call("POST", path)).toMatchObject({ status: 202, body: { version: version + 1, pull: false } });
    expect(await call("POST", path, { body: '{"pull": true}' })).toMatchObject({
      status: 202,
      body: { version: version + 2, pull: true },
    });
    expect((await call("POST", path, { body: '{"pul": true}' })).status).toBe(422);
    expect((await call("POST", path, { body: "pull" })).status).toBe(400);
    expect((await call("POST", path, { headers: { "if-match": `"${version}"` } })).status).toBe(412);
    expect((await call("POST", "/cluster/job/nothing/restart")).status).toBe(404);
    expect((await call("GET", path)).headers.get("allow")).toBe("PUT, POST");
    expect((await call<{ version: number }>("GET", "/cluster/job/again")).body.version).toBe(version + 2);
  });
});

describe("services with rules", () => {
  const put = (id: string, service: string) =>
    call<{ version: number; services: unknown }>("PUT", `/cluster/job/${id}`, {
      body: `services:\n  web:\n    image: busybox\n${service}  db: {image: busybox}\n`,
    });

  test("a change of rules alone is a change, and the same rules again are none", async () => {
    const versions: number[] = [];
    for (const service of [
      "",
      "    depends_on: [db]\n",
      "    depends_on: {db: {condition: service_started}}\n",
      "    deploy: {placement: {max_replicas_per_node: 2, constraints: [node.labels.a == b]}}\n",
      "    deploy: {placement: {constraints: [node.labels.a==b], max_replicas_per_node: 2}}\n",
    ]) {
      // oxlint-disable-next-line no-await-in-loop -- each is a version of the one before
      versions.push((await put("rules", service)).body.version);
    }
    expect(versions.map((version) => version - (versions[0] ?? 0))).toEqual([0, 1, 1, 2, 2]);
  });

  test("a service that runs once on each node has no scale", async () => {
    expect((await put("global", "    deploy: {mode: global}\n")).body.services).toMatchObject({ web: { scale: 0 } });
    const refused = await call<ErrorDoc>("PUT", "/cluster/job/global/web", { body: '{"scale": 2}' });
    expect([refused.status, refused.body.error.message]).toEqual([409, expect.stringContaining("once on each node")]);
  });

  test("a dry run shows where a service would go, not what it waits for first", async () => {
    const { body } = await call<{ blocked: { reasons: string[] }[] }>("PUT", "/cluster/job/order?dry_run=true", {
      body: "services:\n  web: {image: a, depends_on: [db]}\n  db: {image: b}\n",
    });
    expect(body.blocked.flatMap(({ reasons }) => reasons)).toEqual([
      "the cluster has no nodes",
      "the cluster has no nodes",
    ]);
  });
});

describe("PUT /cluster/node/:node_id", () => {
  const record = {
    node_id: "n-1",
    node_name: "alpha",
    address: "10.0.0.2:9000",
    role: "worker" as const,
    availability: "active" as const,
    joined_at: 1,
  };
  const labels = (body: unknown, id = "n-1") =>
    call<{ labels: Record<string, string> } & ErrorDoc>("PUT", `/cluster/node/${id}`, { body: JSON.stringify(body) });

  beforeAll(async () => {
    const node = { ...record, labels: [["zone", "a"] as [string, string]], set_labels: [] };
    await scheduler.change(() => [{ op: "put", kind: "node", record: node }]);
  });
  afterAll(() => scheduler.change(() => [{ op: "delete", kind: "node", key: "n-1" }]));

  test("puts labels over those of the start, by id or name, and takes them back", async () => {
    const both = await labels({ labels: { zone: "b", disk: "fast" } });
    expect([both.status, both.body.labels]).toEqual([200, { zone: "b", disk: "fast" }]);
    expect((await labels({ labels: { disk: "slow" } }, "alpha")).body.labels).toEqual({ zone: "a", disk: "slow" });
    expect((await labels({ labels: {} })).body.labels).toEqual({ zone: "a" });
  });

  test("keeps labels in the store", async () => {
    await labels({ labels: { kept: "yes" } });
    const store = openSqliteStore(join(root, "cluster.db"));
    const [stored] = (await store.load()).node;
    expect(stored).toMatchObject({ labels: [["zone", "a"]], set_labels: [["kept", "yes"]] });
    await store.close();
  });

  test("takes __proto__ for a name like any other", async () => {
    const body = '{"labels": {"__proto__": "x"}}';
    expect((await call("PUT", "/cluster/node/n-1", { body })).text).toContain('"__proto__":"x"');
  });

  test.each([
    ["nothing to set", {}, ": says nothing: a node's labels and its availability can be set"],
    ["an unknown availability", { availability: "off" }, "availability: is none of active"],
    ["a deadline of no drain", { availability: "pause", deadline: "1m" }, ": deadline goes with"],
    ["a deadline that is none", { availability: "drain", deadline: "soon" }, "deadline: "],
    ["a list", { labels: ["a=b"] }, "labels: must be an object from names to texts"],
    [
      "another key",
      { labels: {}, role: "master" },
      "role: is not known here; a node's labels and its availability can be set",
    ],
    ["a number", { labels: { a: 1 } }, "labels.a: must be a text in quotes"],
    ["nothing", { labels: { a: null } }, "labels.a: must be a text in quotes"],
    ["a name with a space", { labels: { "a b": "c" } }, "labels.a b: a label's name has 1 to 200 characters"],
    ["a list for a body", [], ": says nothing"],
    ["a text for a body", "drain", ": must be an object with labels or availability"],
  ])("refuses %s", async (_, body, message) => {
    const answer = await labels(body);
    const faults = answer.body.error.details.map((detail) => `${detail.path}: ${detail.message}`);
    expect([answer.status, faults]).toEqual([422, [expect.stringContaining(message)]]);
  });

  test("says which node it does not know, and what was meant", async () => {
    const unknown = await labels({ labels: {} }, "alphas");
    expect([unknown.status, unknown.body.error.message]).toEqual([404, "no node 'alphas'; did you mean 'alpha'?"]);
    expect((await call("PUT", "/cluster/node/n-1", { body: "zone=a" })).status).toBe(400);
    expect((await call("POST", "/cluster/node/n-1")).headers.get("allow")).toBe("GET, PUT, DELETE");
  });
});

describe("everything else", () => {
  test("a wrong method gets 405 with Allow, an unknown path 404", async () => {
    const answer = await call("POST", "/cluster/job/x");
    expect([answer.status, answer.headers.get("allow")]).toEqual([405, "GET, PUT, DELETE"]);
    expect((await call("DELETE", "/cluster/node")).status).toBe(405);
    expect((await call("GET", "/clutser")).status).toBe(404);
  });

  test("a write from a page of another host gets 403, from this one it passes", async () => {
    const put = (origin: string) => call("PUT", "/cluster/job/origin", { body: DOCUMENT, headers: { origin } });
    expect((await put("http://evil.example")).status).toBe(403);
    expect((await put("null")).status).toBe(403);
    expect((await put("http://localhost")).status).toBe(201);
    expect((await call("GET", "/cluster/job", { headers: { origin: "http://evil.example" } })).status).toBe(200);
  });

  test("listings are paged", async () => {
    const all = await call<{ nodes: unknown[]; next: null }>("GET", "/cluster/node");
    expect(all.body).toEqual({ nodes: [], next: null });
    expect((await call("GET", "/cluster/allocation?limit=0")).status).toBe(400);
    expect((await call("GET", "/cluster/allocation?job=x&state=running")).status).toBe(200);
    expect(await call("GET", "/cluster/status")).toMatchObject({
      body: { cluster_id: "c1", term: 1, master: { node_id: "master" } },
    });
    expect((await call("GET", "/cluster/resources")).body).toEqual({});
  });

  test("/healthz and /readyz speak of this node alone", async () => {
    expect((await call("GET", "/healthz")).status).toBe(200);
    expect((await call("GET", "/readyz")).body).toEqual({ ready: true, reasons: [] });
  });
});

describe("a node that is not the master", () => {
  test("passes a request on with its headers, and the answer back as it is", async () => {
    const seen: { method: string; path: string; body: string; tag: string | null }[] = [];
    const master = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      async fetch(request) {
        const url = new URL(request.url);
        if (url.pathname === "/healthz") return new Response("ok");
        seen.push({
          method: request.method,
          path: url.pathname + url.search,
          body: await request.text(),
          tag: request.headers.get("if-match"),
        });
        return new Response("teapot\n", { status: 418, headers: { etag: '"9"', "x-more": "yes" } });
      },
    });
    const local = localNode("worker", { address: `127.0.0.1:${master.port}`, lost: undefined });
    const worker = createApi({ local, scheduler: () => undefined, dataDir: "/", log: silentLog });
    const response = await worker.request("/cluster/job/a%2Eb?dry_run=true", {
      method: "PUT",
      body: DOCUMENT,
      headers: { "if-match": '"4"' },
    });
    expect([
      response.status,
      await response.text(),
      response.headers.get("etag"),
      response.headers.get("x-more"),
    ]).toEqual([418, "teapot\n", '"9"', "yes"]);
    expect(seen).toEqual([{ method: "PUT", path: "/cluster/job/a%2Eb?dry_run=true", body: DOCUMENT, tag: '"4"' }]);
    await master.stop(true);
  });

  test("does not send a write twice when the master ends the connection, and calls its outcome unknown", async () => {
    let writes = 0;
    const master = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch(request, server) {
        if (new URL(request.url).pathname === "/healthz") return new Response("ok");
        writes++;
        void server.stop(true);
        return new Promise<Response>(() => {});
      },
    });
    const local = localNode("worker", { address: `127.0.0.1:${master.port}`, lost: new AbortController().signal });
    const worker = createApi({ local, scheduler: () => undefined, dataDir: "/", log: silentLog });
    const response = await worker.request("/cluster/job/x", { method: "PUT", body: DOCUMENT });
    expect([response.status, ((await response.json()) as ErrorDoc).error.code, writes]).toEqual([
      503,
      "outcome_unknown",
      1,
    ]);
  });

  test("says which address it tried when there is no master, and does not pass on what was passed on to it", async () => {
    const closed = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
    const address = `127.0.0.1:${closed.port}`;
    await closed.stop(true);
    const worker = createApi({
      local: localNode("worker", { address, lost: undefined }),
      scheduler: () => undefined,
      dataDir: "/",
      log: silentLog,
    });
    for (const method of ["GET", "PUT"]) {
      const response = await worker.request("/cluster/job/x", {
        method,
        ...(method === "PUT" ? { body: DOCUMENT } : {}),
      });
      const { error } = (await response.json()) as ErrorDoc;
      expect([response.status, error.code, response.headers.has("retry-after")]).toEqual([503, "no_master", true]);
      expect(error.message).toContain(address);
    }
    const looped = await worker.request("/cluster/job", { headers: { "x-cacophony-forwarded-by": "other" } });
    expect(((await looped.json()) as ErrorDoc).error.code).toBe("not_master");
  });
});
