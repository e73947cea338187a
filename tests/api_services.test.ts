/** @module Where services are, over HTTP: documents, streams of changes, and their limits. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { Hono } from "hono";
import { createApi } from "../src/api.ts";
import { systemClock } from "../src/clock.ts";
import { silentLog } from "../src/log.ts";
import { Scheduler } from "../src/scheduler.ts";
import { openSqliteStore } from "../src/store.ts";
import { seeded, unusedSealer } from "./cluster_fixture.ts";
import { waitUntil } from "./wait.ts";

let scheduler: Scheduler;
let api: Hono;
let master: ReturnType<typeof Bun.serve>;
let worker: ReturnType<typeof Bun.serve>;
let ids = 0;

beforeAll(async () => {
  const common = { clock: systemClock, random: seeded(1), log: silentLog, sealer: unusedSealer };
  const newId = () => `id${++ids}`;
  scheduler = new Scheduler({ ...common, store: openSqliteStore(":memory:"), newId, onFenced: () => {} });
  await scheduler.start({ cluster_id: "c", created_at: 0, network_mode: "vxlan", network_cidr: "10.213.0.0/16" });
  api = node("master", undefined);
  master = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: api.fetch });
  const { fetch } = node("worker", `127.0.0.1:${master.port}`);
  worker = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch });
});

afterAll(async () => {
  await Promise.all([master.stop(true), worker.stop(true)]);
  await scheduler.stop();
});

/** The API of a node; without an address it is the master. */
function node(nodeId: string, address: string | undefined): Hono {
  return createApi({
    local: {
      nodeId,
      version: "0",
      faults: () => [],
      peerInfo: () => ({ node_id: nodeId, protocol: 1, version: "0", peers: [] }),
      master: () => ({ address, lost: address === undefined ? undefined : new AbortController().signal }),
    },
    scheduler: () => (address === undefined ? scheduler : undefined),
    dataDir: "/var/lib/cacophony",
    log: silentLog,
  });
}

async function put(jobId: string, services: object): Promise<Response> {
  return api.request(`/cluster/job/${jobId}`, {
    method: "PUT",
    headers: { host: "localhost" },
    body: JSON.stringify({ services }),
  });
}

async function get<T>(path: string): Promise<{ status: number; body: T }> {
  const response = await api.request(path, { headers: { host: "localhost" } });
  return { status: response.status, body: (await response.json()) as T };
}

type Event = { event: string; data: { job_id: string; service_name: string; labels?: object } };

/** A client that reads a stream; comments are events without a name. */
class Reader {
  readonly events: Event[] = [];
  readonly #abort = new AbortController();
  isEnded = false;

  static async open(path: string, server = master): Promise<Reader> {
    const reader = new Reader();
    const response = await fetch(`http://127.0.0.1:${server.port}${path}`, { signal: reader.#abort.signal });
    expect(response.headers.get("content-type")).toStartWith("text/event-stream");
    void reader.#read(response);
    return reader;
  }

  get told(): string[] {
    return this.events.map(({ event, data }) => `${event} ${data.job_id}/${data.service_name}`);
  }

  async hears(until: (told: string[]) => boolean): Promise<void> {
    await waitUntil("the reader hears of it", () => this.told, { until, intervalMs: 5 });
  }

  close(): void {
    this.#abort.abort();
  }

  async #read(response: Response): Promise<void> {
    let text = "";
    const decoder = new TextDecoder();
    try {
      for await (const chunk of response.body ?? []) {
        text += decoder.decode(chunk, { stream: true });
        const messages = text.split("\n\n");
        text = messages.pop() ?? "";
        for (const message of messages) this.#take(message);
      }
    } catch {
      // Ended by the test.
    }
    this.isEnded = true;
  }

  #take(message: string): void {
    const [, event, data] = /^event: (.*)\ndata: (.*)$/.exec(message) ?? [];
    if (event !== undefined && data !== undefined) this.events.push({ event, data: JSON.parse(data) });
  }
}

describe("GET /cluster/service", () => {
  test("lists services and shows one, right after it was put", async () => {
    await put("list", {
      web: { image: "busybox", expose: ["80"], labels: { tier: "front" } },
      db: { image: "busybox" },
    });
    type All = { services: { job_id: string; service_name: string }[] };
    const all = (await get<All>("/cluster/service")).body.services.filter(({ job_id }) => job_id === "list");
    expect(all.map(({ service_name }) => service_name)).toEqual(["db", "web"]);
    expect(await get("/cluster/service/list/web")).toMatchObject({
      status: 200,
      body: {
        job_id: "list",
        service_name: "web",
        names: ["web", "web.list", "web.list.cacophony"],
        ports: [{ container_port: 80, protocol: "tcp" }],
        entries: [],
        labels: { tier: "front" },
        replicas: [],
      },
    });
  });

  test("says of what there is not that there is none, also to one who would watch it", async () => {
    for (const path of ["/cluster/service/list/nope", "/cluster/service/nope/web?watch=true"])
      expect(await get(path)).toMatchObject({ status: 404, body: { error: { code: "not_found" } } });
    expect(await get("/cluster/service?watch=perhaps")).toMatchObject({ status: 400 });
    expect(await get("/cluster/service?wotch=true")).toMatchObject({ status: 400 });
  });

  test("refuses a port of all nodes that another service has, with its place, and applies nothing", async () => {
    const front = (published: string) => ({ image: "busybox", ports: [{ target: 80, published, mode: "ingress" }] });
    expect((await put("first", { web: front("8080") })).status).toBe(201);
    const refused = await put("second", { web: front("8080"), api: front("8081") });
    expect(refused.status).toBe(422);
    expect(await refused.json()).toMatchObject({
      error: {
        details: [{ path: "services.web.ports", message: expect.stringContaining("service web of job first") }],
      },
    });
    expect((await get("/cluster/job/second")).status).toBe(404);
    // The job itself may keep it, and move it to another of its services.
    expect((await put("first", { api: front("8080") })).status).toBe(200);
    expect((await put("second", { web: front("8081") })).status).toBe(201);
  });
});

describe("?watch=true", () => {
  test.each([
    ["the master", () => master],
    ["a node that passes it on", () => worker],
  ])("tells of all services and then of what changes, once each, by %s", async (_, server) => {
    await put("watched", { web: { image: "busybox" } });
    const reader = await Reader.open("/cluster/service?watch=true", server());
    await reader.hears((told) => told.includes("service watched/web"));
    reader.events.length = 0;
    await put("watched", { web: { image: "busybox", labels: { a: "b" } }, db: { image: "busybox" } });
    await reader.hears((told) => told.length >= 2);
    expect(reader.told.toSorted()).toEqual(["service watched/db", "service watched/web"]);
    expect(reader.events.find(({ data }) => data.service_name === "web")?.data.labels).toEqual({ a: "b" });
    // Nothing that a client sees of them has changed.
    scheduler.wake(["watched/web", "watched/db"]);
    await put("watched", { web: { image: "busybox", labels: { a: "b" } } });
    await reader.hears((told) => told.length >= 3);
    expect(reader.told[2]).toBe("gone watched/db");
    reader.close();
  });

  test("of one service tells of that alone, until it is gone and when it is back", async () => {
    await put("one", { web: { image: "busybox" }, db: { image: "busybox" } });
    const reader = await Reader.open("/cluster/service/one/web?watch=true");
    await reader.hears((told) => told.length > 0);
    await put("one", { db: { image: "busybox:2" } });
    await reader.hears((told) => told.length > 1);
    await put("one", { web: { image: "busybox" }, db: { image: "busybox" } });
    await reader.hears((told) => told.length > 2);
    expect(reader.told).toEqual(["service one/web", "gone one/web", "service one/web"]);
    reader.close();
  });

  test("is for 100 clients at once, and whoever leaves makes room, by whatever node", async () => {
    await put("one", { web: { image: "busybox" } });
    const path = "/cluster/service/one/web?watch=true";
    const isFull = async () =>
      (await fetch(`http://127.0.0.1:${master.port}${path}`, { method: "HEAD" })).status !== 200;
    const readers: Reader[] = [];
    const hasRoom = () => waitUntil("a place is free", async () => !(await isFull()));
    const hear = (all: Reader[]) => Promise.all(all.map((reader) => reader.hears((told) => told.length === 1)));
    await hasRoom();
    for (let n = 0; n < 100; n++) readers.push(await Reader.open(path, n % 2 ? worker : master));
    await hear(readers);
    const response = await fetch(`http://127.0.0.1:${master.port}${path}`);
    expect(response.status).toBe(409);
    expect(await response.json()).toMatchObject({ error: { message: expect.stringContaining("100 clients") } });
    for (const reader of readers) reader.close();
    await hasRoom();
    // Asking for nothing but the head takes no place.
    for (let n = 0; n < 110; n++) expect(await isFull()).toBe(false);
    const again = await Promise.all(Array.from({ length: 100 }, () => Reader.open(path)));
    await hear(again);
    for (const reader of again) reader.close();
    await hasRoom();
  });

  test("tells a slow reader of what is, not of all that was", async () => {
    const label = (n: number) => ({ web: { image: "busybox", labels: { n: String(n) } } });
    await put("slow", label(0));
    const response = await api.request("/cluster/service/slow/web?watch=true", { headers: { host: "localhost" } });
    for (let n = 1; n <= 12; n++) await put("slow", label(n));
    const body = response.body?.getReader();
    const decoder = new TextDecoder();
    let text = "";
    while (!text.includes('"n":"12"')) {
      const { done, value } = (await body?.read()) ?? {};
      if (done !== false) throw new Error(`the stream ended: ${text}`);
      text += decoder.decode(value, { stream: true });
    }
    expect(text.split("event: service").length - 1).toBeLessThanOrEqual(4);
    await body?.cancel();
  });
});
