/** @module Point 13: what requests' bodies may take of memory and of time. */
import { afterAll, describe, expect, test } from "bun:test";
import { connect, type Socket } from "node:net";
import { Hono } from "hono";
import { createApi } from "../src/api.ts";
import { Bodies } from "../src/api_bodies.ts";
import { silentLog } from "../src/log.ts";
import { CacophonyError } from "../src/model.ts";
import { type NodeProcess, NodeProcesses } from "./node_process.ts";
import { rawRequest } from "./raw_http.ts";
import { VirtualClock } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

const KIB = 1024;
const MIB = 2 ** 20;

/** An application with room for 1 MiB of bodies, 128 KiB of it for small ones; its answers wait for `release`. */
function start({ isHeld = false } = {}) {
  const clock = new VirtualClock();
  const bodies = new Bodies({ clock, maxBytes: MIB, reservedBytes: 128 * KIB });
  const app = new Hono();
  const held = Promise.withResolvers<void>();
  app.onError((error, c) => c.text(error instanceof CacophonyError ? error.code : String(error), 500));
  app.use(bodies.hold);
  app.put("/", async (c) => {
    const body = await c.get("bodyUpTo")(MIB);
    if (isHeld) await held.promise;
    return c.text(String(body.byteLength));
  });
  return { app, bodies, clock, release: () => held.resolve() };
}

/** A body that is sent piece by piece; `answer` is undefined until there is one. */
function send(app: Hono) {
  const sending: { answer: string | undefined; send(bytes: number): Promise<void>; end(): Promise<string> } = {
    answer: undefined,
    async send(bytes) {
      controller?.enqueue(new Uint8Array(bytes));
      await settled();
    },
    async end() {
      controller?.close();
      return answering;
    },
  };
  let controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  const body = new ReadableStream<Uint8Array>({
    start: (its) => void (controller = its),
    cancel: () => void (controller = undefined),
  });
  const answering = Promise.resolve(app.request("/", { method: "PUT", body })).then(
    async (answer) => (sending.answer = await answer.text()),
  );
  return sending;
}

/** Lets what was sent be read. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => void setImmediate(resolve));
}

describe("point 13: bytes of bodies in flight", () => {
  test("count from the first one until the request is answered", async () => {
    const { app, bodies, release } = start({ isHeld: true });
    const one = send(app);
    await one.send(100 * KIB);
    expect(bodies.bytes).toBe(100 * KIB);
    const answer = one.end();
    await settled();
    expect([bodies.bytes, one.answer]).toEqual([100 * KIB, undefined]);
    release();
    expect([await answer, bodies.bytes]).toEqual([String(100 * KIB), 0]);
  });

  test("are given up by the largest body where another needs room", async () => {
    const { app, bodies } = start();
    const large = send(app);
    await large.send(600 * KIB);
    const other = send(app);
    await other.send(250 * KIB);
    expect([large.answer, other.answer]).toEqual([undefined, undefined]);
    await other.send(100 * KIB);
    expect([large.answer, other.answer, bodies.bytes]).toEqual(["busy", undefined, 350 * KIB]);
    expect(await other.end()).toBe(String(350 * KIB));
  });

  test("are refused to the body that would be the largest itself", async () => {
    const { app } = start();
    const [one, other] = [send(app), send(app)];
    await one.send(400 * KIB);
    await other.send(400 * KIB);
    await one.send(200 * KIB);
    expect([one.answer, other.answer]).toEqual(["busy", undefined]);
    expect(await other.end()).toBe(String(400 * KIB));
  });

  test("are given up first by a body that has stopped to come, even by a smaller one", async () => {
    const { app, clock } = start();
    const stalled = send(app);
    await stalled.send(100 * KIB);
    await clock.advance(1_000);
    const [one, other] = [send(app), send(app)];
    await one.send(500 * KIB);
    await other.send(200 * KIB);
    await one.send(100 * KIB);
    expect([stalled.answer, one.answer, other.answer]).toEqual(["busy", undefined, undefined]);
  });

  test("are there for small bodies where whole ones have all that large ones get", async () => {
    const { app, release } = start({ isHeld: true });
    const whole = send(app);
    await whole.send(890 * KIB);
    void whole.end();
    await settled();
    const large = send(app);
    await large.send(65 * KIB);
    expect(large.answer).toBe("busy");
    const small = [send(app), send(app)];
    for (const one of small) await one.send(60 * KIB);
    const answers = small.map((one) => one.end());
    release();
    expect(await Promise.all(answers)).toEqual([String(60 * KIB), String(60 * KIB)]);
  });

  test("are free again after a body that is too large, that ends early, or that was refused", async () => {
    const { app, bodies } = start();
    for (let round = 0; round < 3; round++) {
      const tooLarge = send(app);
      await tooLarge.send(800 * KIB);
      await tooLarge.send(400 * KIB);
      expect(tooLarge.answer).toBe("busy");
      const broken = new ReadableStream<Uint8Array>({
        start(controller) {
          controller.enqueue(new Uint8Array(1_000));
          controller.error(new Error("the connection is gone"));
        },
      });
      expect(await (await app.request("/", { method: "PUT", body: broken })).text()).toBe("bad_request");
      const declared = { method: "PUT", headers: { "content-length": String(MIB + 1) }, body: "x" };
      expect(await (await app.request("/", declared)).text()).toBe("too_large");
      expect(bodies.bytes).toBe(0);
    }
  });
});

describe("point 13: the time of a body", () => {
  test("ends after 10 s without a byte", async () => {
    const { app, bodies, clock } = start();
    const slow = send(app);
    await slow.send(100);
    await clock.advance(9_900);
    await slow.send(100);
    await clock.advance(9_900);
    expect([slow.answer, bodies.bytes]).toEqual([undefined, 200]);
    await clock.advance(100);
    await settled();
    expect([slow.answer, bodies.bytes]).toEqual(["request_timeout", 0]);
  });

  test("ends after 120 s, however the bytes come", async () => {
    const { app, clock } = start();
    const slow = send(app);
    for (let seconds = 0; seconds < 119; seconds++) {
      await slow.send(1);
      await clock.advance(1_000);
    }
    expect(slow.answer).toBeUndefined();
    await clock.advance(1_000);
    await settled();
    expect(slow.answer).toBe("request_timeout");
  });
});

test("point 13: a node that forwards sends a body once it is whole, to the node that is the master then", async () => {
  const heard: string[] = [];
  const master = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      if (new URL(request.url).pathname === "/healthz") return new Response("ok");
      heard.push(`${request.headers.get("content-length")} ${await request.text()}`);
      return new Response("done");
    },
  });
  // Nobody listens there: it was the master when the request came.
  let address = "127.0.0.1:1";
  const local = {
    nodeId: "worker",
    version: "0.0.0",
    faults: () => [],
    peerInfo: () => ({ node_id: "worker", protocol: 1, version: "0.0.0", peers: [] }),
    master: () => ({ address, lost: undefined }),
  };
  const worker = createApi({ local, scheduler: () => undefined, dataDir: "/", log: silentLog });
  let controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  const body = new ReadableStream<Uint8Array>({ start: (its) => void (controller = its) });
  const answering = worker.request("/cluster/job/shop", { method: "PUT", body });
  controller?.enqueue(Buffer.from("half, "));
  await settled();
  address = `127.0.0.1:${master.port}`;
  controller?.enqueue(Buffer.from("whole"));
  controller?.close();
  const answer = await answering;
  expect([answer.status, await answer.text(), heard]).toEqual([200, "done", ["11 half, whole"]]);
  await master.stop(true);
});

describe("point 13: 64 half-sent forms of 8 MiB", () => {
  const nodes = new NodeProcesses();
  afterAll(() => nodes.stop());
  /** Without a bound all 64 were in memory: 520 MiB. */
  const MOST_BYTES = 300 * MIB;

  /** Sends all of a form but its last bytes. */
  function halfSend(port: number, index: number): { socket: Socket; answer: () => string } {
    const type = "multipart/form-data; boundary=x";
    const bytes = 8 * MIB - 1_000;
    let heard = "";
    const socket = connect({ host: "127.0.0.1", port });
    socket.on("error", () => {});
    socket.on("data", (data) => (heard += String(data)));
    socket.write(
      `PUT /cluster/job/j${index} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: ${type}\r\nContent-Length: ${bytes}\r\n\r\n`,
    );
    socket.write(`--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n`);
    socket.write(Buffer.alloc(bytes - 1_000, "x"));
    return { socket, answer: () => heard };
  }

  async function attack(target: NodeProcess, { untilLate = false } = {}): Promise<void> {
    let peak = 0;
    const watch = setInterval(() => (peak = Math.max(peak, target.process.anonymousMemory())), 20);
    const forms = Array.from({ length: 64 }, (_, index) => halfSend(target.port, index));
    try {
      const refused = () => forms.filter(({ answer }) => answer().includes('"busy"')).length;
      await waitUntil("all but four forms are refused", refused, { until: (count) => count >= 60, timeoutMs: 40_000 });
      const busy = forms.map(({ answer }) => answer()).find((answer) => answer.includes('"busy"'));
      expect(busy).toStartWith("HTTP/1.1 503 ");
      expect(busy?.toLowerCase()).toContain("\r\nretry-after: ");
      // Nobody else is kept out: neither who sends little nor who sends a form.
      const document = "services: {web: {image: busybox}}";
      const head = `PUT /cluster/job/small HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: ${document.length}\r\n\r\n`;
      expect((await rawRequest(target.port, head + document)).status).toBeOneOf([200, 201]);
      const form = new FormData();
      form.append("compose", document);
      form.append("file", new Blob([new Uint8Array(4 * MIB)]), "./f");
      const sent = await fetch(`http://${target.address}/cluster/job/form`, { method: "PUT", body: form });
      expect([sent.ok, await sent.text()]).toEqual([true, expect.any(String)]);
      expect(Math.round(peak / MIB)).toBeLessThan(MOST_BYTES / MIB);
      if (!untilLate) return;
      const late = () => forms.filter(({ answer }) => !answer().includes("busy")).map(({ answer }) => answer());
      const isOver = (answers: string[]) => answers.every((answer) => answer.includes("request_timeout"));
      await waitUntil("the others have had their time", late, { until: isOver, timeoutMs: 30_000 });
    } finally {
      clearInterval(watch);
      for (const { socket } of forms) socket.destroy();
    }
  }

  test("take no more than the bodies' share of memory, on the master and on a node that forwards", async () => {
    const master = await nodes.start(["bootstrap"]);
    const worker = await nodes.start(["join", master.address]);
    await nodes.untilMember(worker);
    await attack(master, { untilLate: true });
    await attack(worker);
  }, 120_000);
});
