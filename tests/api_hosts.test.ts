/** @module Point 7: by which hosts a node may be asked, and what pages in browsers may ask. */
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createApi } from "../src/api.ts";
import { readHostName } from "../src/api_hosts.ts";
import { silentLog } from "../src/log.ts";
import { namesOfNode } from "../src/node_hosts.ts";
import { type NodeProcess, NodeProcesses } from "./node_process.ts";
import { rawRequest } from "./raw_http.ts";

const DOCUMENT = "services: {web: {image: busybox}}";
const nodes = new NodeProcesses();
afterAll(() => nodes.stop());

const app = createApi({
  local: {
    nodeId: "n1",
    version: "0.0.0",
    faults: () => [],
    peerInfo: () => ({ node_id: "n1", protocol: 1, version: "0.0.0", peers: [] }),
    master: () => ({ address: undefined, lost: undefined }),
  },
  scheduler: () => undefined,
  dataDir: "/",
  hostNames: () => new Set(["machine-1", "machine-1.lan", "*.cluster.example"]),
  log: silentLog,
});

/** The code of the refusal; undefined for what the checks let pass. */
async function refusal(
  headers: Record<string, string>,
  { method = "GET", path = "/cluster/job" }: { method?: string; path?: string } = {},
): Promise<string | undefined> {
  const answer = await app.request(path, { method, headers });
  const { error } = (await answer.json()) as { error?: { code: string } };
  const code = error?.code ?? "";
  expect(answer.status === 403).toBe(code.startsWith("forbidden"));
  return answer.status === 403 ? code : undefined;
}

describe("point 7: the Host of a request", () => {
  test.each([
    "127.0.0.1",
    "127.0.0.1:9000",
    "10.0.0.1:9000",
    "127.1:9000",
    "0:9000",
    "[::1]",
    "[::1]:9000",
    "[fd00::1]:9000",
    "localhost",
    "LocalHost:9000",
    "localhost.:9000",
    "machine-1",
    "Machine-1:9000",
    "machine-1.lan:80",
    "machine-1.lan.:9000",
    "a.cluster.example",
    "a.b.cluster.example:9000",
  ])("may be %s", async (host) => {
    expect(await refusal({ host })).toBeUndefined();
    expect(await refusal({ host }, { method: "PUT" })).toBeUndefined();
  });

  test.each([
    "evil.example",
    "evil.example:9000",
    "127.0.0.1.evil.example:9000",
    "localhost.evil.example",
    "evil.localhost",
    "machine-1.lan.evil.example",
    "machine-2",
    "cluster.example",
    "evilcluster.example",
    "machine-1@evil.example",
    "evil.example/machine-1",
    "evil.example#machine-1",
    "127.0.0.1, evil.example",
    "1.2.3.4.5",
    "[::1",
    "a b",
    "*.cluster.example@x",
    "%",
  ])("may not be %s", async (host) => {
    expect(await refusal({ host })).toBe("forbidden_host");
    expect(await refusal({ host }, { path: "/openapi.json" })).toBe("forbidden_host");
    expect(await refusal({ host, "x-cacophony-forwarded-by": "n2" }, { method: "PUT" })).toBe("forbidden_host");
    expect(await refusal({ host, "x-forwarded-host": "localhost" })).toBe("forbidden_host");
  });

  test("is not needed: HTTP/1.0 does without", async () => {
    expect(await refusal({})).toBeUndefined();
    expect(await refusal({ host: "" })).toBeUndefined();
  });

  test("does not matter to load balancers' checks", async () => {
    for (const path of ["/healthz", "/readyz"]) expect(await refusal({ host: "lb.example" }, { path })).toBeUndefined();
  });

  test("does not matter between nodes, which dial any name that leads there, but browsers have no part in that", async () => {
    const path = "/internal/peer";
    expect(await refusal({ host: "evil.example" }, { path })).toBeUndefined();
    expect(await refusal({ host: "evil.example", "accept-language": "en" }, { path })).toBe("forbidden_host");
    expect(await refusal({ host: "10.0.0.1", "accept-language": "en" }, { path })).toBeUndefined();
  });

  test("is named in the refusal, with what to do", async () => {
    const answer = await app.request("/cluster/job", { headers: { host: "node.example:9000" } });
    expect(await answer.json()).toEqual({
      error: {
        code: "forbidden_host",
        message:
          "this node was asked for as 'node.example:9000', which is not a name of this node: ask by its address, or start it with --allow-host node.example",
        details: [],
      },
    });
  });
});

describe("point 7: a page of another site", () => {
  const host = "127.0.0.1:9000";
  const link = { "sec-fetch-mode": "navigate", "sec-fetch-dest": "document" };

  test.each(["cross-site", "same-site", "something-new"])("(%s) is refused whatever it asks", async (site) => {
    for (const method of ["GET", "HEAD", "OPTIONS", "PUT", "POST", "DELETE"]) {
      const answer = await app.request("/cluster/job", { method, headers: { host, "sec-fetch-site": site } });
      expect([method, answer.status]).toEqual([method, 403]);
    }
    for (const more of [{ "x-cacophony-forwarded-by": "n2" }, { "sec-fetch-mode": "no-cors" }])
      expect(await refusal({ host, "sec-fetch-site": site, ...more })).toBe("forbidden_origin");
  });

  test("may have a link to here, but no frame, no form and no picture", async () => {
    const from = { host, "sec-fetch-site": "cross-site" };
    expect(await refusal({ ...from, ...link })).toBeUndefined();
    expect(await refusal({ ...from, ...link }, { method: "POST" })).toBe("forbidden_origin");
    expect(await refusal({ ...from, ...link }, { method: "DELETE" })).toBe("forbidden_origin");
    for (const dest of ["iframe", "frame", "embed", "object", "image", "script", "empty"])
      expect(await refusal({ ...from, ...link, "sec-fetch-dest": dest })).toBe("forbidden_origin");
  });

  test("is none where the reader typed the address, or the page is of here", async () => {
    for (const site of ["none", "same-origin"])
      expect(await refusal({ host, "sec-fetch-site": site }, { method: "PUT" })).toBeUndefined();
  });

  test.each(["http://evil.example", "http://127.0.0.1:9001", "http://127.0.0.1", "null", "file://", ""])(
    "with the Origin '%s' can't write",
    async (origin) => {
      for (const method of ["PUT", "POST", "DELETE", "PATCH"]) {
        expect(await refusal({ host, origin }, { method })).toBe("forbidden_origin");
        expect(await refusal({ host, origin, "x-cacophony-forwarded-by": "n2" }, { method })).toBe("forbidden_origin");
        expect(await refusal({ origin }, { method })).toBe("forbidden_origin");
      }
    },
  );

  test("of the same host and port is a page of here", async () => {
    expect(await refusal({ host, origin: `http://${host}` }, { method: "PUT" })).toBeUndefined();
    expect(
      await refusal({ host: "Machine-1:9000", origin: "http://machine-1:9000" }, { method: "PUT" }),
    ).toBeUndefined();
  });
});

describe("point 7: the names of a node", () => {
  const machine = { name: "m1", hosts: "", resolvConf: "" };
  const lan = { host: "0.0.0.0", port: 9000 };
  const named = (more: Partial<typeof machine>, bind = lan) =>
    [...namesOfNode({ settings: {}, bind, advertise: "10.0.0.1:9000", machine: { ...machine, ...more } })].toSorted();

  test("are the machine's, and what it was started with", () => {
    const settings = { node_name: "Node-A", allow_hosts: ["*.example.org"], advertise_addr: "m1.example.net:9000" };
    const names = namesOfNode({ settings, bind: { host: "bound", port: 1 }, advertise: "", machine });
    expect([...names].toSorted()).toEqual(["*.example.org", "bound", "m1", "m1.example.net", "node-a"]);
  });

  test("have the domain that hosts(5) or resolv.conf(5) gives the machine", () => {
    const own = ["0.0.0.0", "10.0.0.1", "m1"];
    expect(named({ hosts: "127.0.0.1 localhost\n127.0.1.1 m1.home.example m1 # own\n" })).toEqual([
      ...own,
      "m1.home.example",
    ]);
    expect(named({ hosts: "# 127.0.1.1 evil m1\n127.0.0.1 localhost\n" })).toEqual(own);
    expect(named({ resolvConf: "domain old\nsearch lan other\nnameserver 10.0.0.1\n" })).toEqual([...own, "m1.lan"]);
    expect(named({ resolvConf: "search .\n" })).toEqual(own);
    expect(named({ name: "m1.lan", resolvConf: "search other" })).toEqual([...own, "m1.lan"]);
  });

  test("have no domain from the network where the node listens on loopback alone", () => {
    const loopback = { host: "127.0.0.1", port: 9000 };
    expect(named({ resolvConf: "search evil.example" }, loopback)).toEqual(["10.0.0.1", "127.0.0.1", "m1"]);
  });

  test.each([
    ["api.example.org", "api.example.org"],
    ["API.Example.org.", "api.example.org"],
    ["*.example.org", "*.example.org"],
    ["machine_1", "machine_1"],
    ["*", undefined],
    ["*.*.org", undefined],
    ["a.*.org", undefined],
    ["api.example.org:9000", undefined],
    ["http://api.example.org", undefined],
    ["10.0.0.1", undefined],
    ["[::1]", undefined],
    ["", undefined],
    [".example.org", undefined],
    ["a".repeat(64), undefined],
  ])("--allow-host %s is read as %s", (text, name) => {
    expect(readHostName(text)).toBe(name);
  });
});

describe("point 7: processes", () => {
  const asked = async ({ port }: NodeProcess, host: string) =>
    (await rawRequest(port, `GET /cluster/job HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)).status;

  test("a page whose name was led to a node can neither read nor write there, also through another node", async () => {
    const master = await nodes.start(["bootstrap"]);
    const worker = await nodes.start(["join", master.address]);
    await nodes.untilMember(worker);
    const put = async ({ port }: NodeProcess, more: string) => {
      const head = `PUT /cluster/job/page HTTP/1.1\r\n${more}Content-Length: ${DOCUMENT.length}\r\nConnection: close\r\n`;
      return (await rawRequest(port, `${head}\r\n${DOCUMENT}`)).status;
    };
    for (const node of [master, worker]) {
      const rebound = `evil.example:${node.port}`;
      expect(await asked(node, rebound)).toBe(403);
      expect(await put(node, `Host: ${rebound}\r\nOrigin: http://${rebound}\r\n`)).toBe(403);
      const forged = `Host: ${node.address}\r\nOrigin: http://evil.example\r\nX-Cacophony-Forwarded-By: n1\r\n`;
      expect(await put(node, forged)).toBe(403);
    }
    // A page of the worker itself: the worker has checked that, and the master has another Host.
    const own = `Host: ${worker.address}\r\nOrigin: http://${worker.address}\r\nSec-Fetch-Site: same-origin\r\n`;
    expect(await put(worker, own)).toBe(201);
    const link = `Host: ${worker.address}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n`;
    expect(
      (await rawRequest(worker.port, `GET /cluster/job HTTP/1.1\r\n${link}Connection: close\r\n\r\n`)).status,
    ).toBe(200);
    expect((await rawRequest(worker.port, "GET /cluster/job HTTP/1.0\r\n\r\n")).status).toBe(200);
    // As a node dials that was told to join by a name which this machine does not know to be its own.
    const dial = "Host: any.name.example:9000\r\n";
    const peer = `GET /internal/peer HTTP/1.1\r\n${dial}Connection: close\r\n\r\n`;
    expect((await rawRequest(master.port, peer)).status).toBe(200);
    const key = Buffer.alloc(16).toString("base64");
    const upgrade = `Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n`;
    // A frame that is too large: the master answers and ends the connection.
    const session = `GET /internal/session HTTP/1.1\r\n${dial}${upgrade}\r\n\xff\xff`;
    expect((await rawRequest(master.port, Buffer.from(session, "latin1"))).status).toBe(101);
  }, 60_000);

  test("--allow-host is repeatable, comes from the environment, too, is kept, and ends with none", async () => {
    const settings = ({ dataDir }: NodeProcess): unknown =>
      JSON.parse(readFileSync(join(dataDir, "node.json"), "utf8")).settings.allow_hosts;
    const first = await nodes.start(["bootstrap", "--allow-host", "A.example", "--allow-host", "*.b.example"]);
    expect(settings(first)).toEqual(["a.example", "*.b.example"]);
    expect([
      await asked(first, "a.example:1"),
      await asked(first, "x.b.example"),
      await asked(first, "c.example"),
    ]).toEqual([200, 200, 403]);
    await first.process.kill();
    const again = await nodes.start([], { dataDir: first.dataDir });
    expect([await asked(again, "a.example"), await asked(again, "c.example")]).toEqual([200, 403]);
    await again.process.kill();
    const env = { CACOPHONY_ALLOW_HOST: "c.example,d.example" };
    const other = await nodes.start([], { dataDir: first.dataDir, env });
    expect([await asked(other, "a.example"), await asked(other, "d.example")]).toEqual([403, 200]);
    await other.process.kill();
    const none = await nodes.start(["--allow-host", "none"], { dataDir: first.dataDir });
    expect([settings(none), await asked(none, "d.example")]).toEqual([[], 403]);
    const wrong = nodes.run(["bootstrap", "--allow-host", "10.0.0.1"]);
    expect([await wrong.exited, wrong.logs()]).toEqual([2, expect.stringContaining("--allow-host '10.0.0.1'")]);
  }, 60_000);
});
