/** @module Point 12: a proxy in the environment is for other programs; nodes reach each other directly. */
import { afterAll, afterEach, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { type AddressInfo, createServer, type Server } from "node:net";
import { join } from "node:path";
import { NodeProcesses } from "./node_process.ts";

const SRC = join(import.meta.dir, "..", "src");
const nodes = new NodeProcesses();
const proxies: Server[] = [];

afterEach(() => void proxies.splice(0).map((proxy) => proxy.close()));
afterAll(() => nodes.stop());

/** A proxy that serves nobody, and every variable that names it. */
async function startProxy() {
  const asked: string[] = [];
  const proxy = createServer((socket) => {
    socket.on("error", () => {});
    socket.on("data", (data) => {
      asked.push(String(data).split("\r\n")[0] ?? "");
      socket.end("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    });
  });
  proxies.push(proxy);
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].flatMap((name) => [name, name.toLowerCase()]);
  return { asked, env: Object.fromEntries(names.map((name) => [name, url])) };
}

test("point 12: processes with HTTP_PROXY, HTTPS_PROXY and ALL_PROXY join, forward and leave without the proxy", async () => {
  const { asked, env } = await startProxy();
  const master = await nodes.start(["bootstrap"], { env });
  const worker = await nodes.start(["join", master.address], { env });
  await nodes.untilMember(worker);
  const url = `http://${worker.address}/cluster/job/shop`;
  const put = await fetch(url, { method: "PUT", body: "services: {web: {image: busybox}}", proxy: false });
  expect(put.status).toBe(201);
  expect((await fetch(url, { proxy: false })).status).toBe(200);
  const leave = nodes.run(["leave", "--force", "--data-dir", worker.dataDir], env);
  // It ends with the node's membership, for which there has to be a Docker Engine; here its question has to be answered.
  await leave.waitFor(/waiting for the node to be taken out/);
  expect(asked).toEqual([]);
}, 60_000);

test("point 12: every call to another node goes past the proxy: peers, sessions, chunks and secrets", async () => {
  const { asked, env } = await startProxy();
  const paths: string[] = [];
  const peer = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request, server) {
      paths.push(new URL(request.url).pathname);
      if (server.upgrade(request)) return undefined;
      return Response.json({ node_id: "n1", protocol: 1, version: "1", peers: [] });
    },
    websocket: { message: () => {} },
  });
  const calls = `
    import { fetchChunk, fetchSecret, networkTransport } from "${SRC}/transport.ts";
    const address = "127.0.0.1:${peer.port}";
    await networkTransport.askPeer(address);
    (await networkTransport.dial(address, { onMessage() {}, onClose() {} })).close();
    await fetchChunk({ address }, "abc");
    await fetchSecret({ address }, { node_id: "n1", instance: "i", secret_id: "s" });
    process.exit(0);
  `;
  const child = Bun.spawn([process.execPath, "-e", calls], { env: { PATH: process.env["PATH"], ...env } });
  try {
    expect(await child.exited).toBe(0);
    expect(paths).toEqual(["/internal/peer", "/internal/session", "/internal/chunk/abc", "/internal/secret"]);
    expect(asked).toEqual([]);
  } finally {
    await peer.stop(true);
  }
}, 30_000);

test("point 12: no call of fetch in the sources leaves its way to the environment", () => {
  const calls = readdirSync(SRC).flatMap((file) => {
    const text = readFileSync(join(SRC, file), "utf8");
    return [...text.matchAll(/await fetch\(([^;]{0,200})/g)].map(([, call = ""]) => `${file}: ${call}`);
  });
  expect(calls.length).toBeGreaterThan(5);
  expect(calls.filter((call) => !/\.\.\.DIRECT|\bunix\b/.test(call))).toEqual([]);
});
