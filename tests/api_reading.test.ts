/** @module Reading documents: small ones on the spot, all others in a process that keeps nobody waiting. */
import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JobReader } from "../src/api_reading.ts";
import type { SentJob } from "../src/job_sent.ts";
import { parseJob, type Sending } from "../src/job_spec.ts";
import { LabProcess } from "./lab_process.ts";

const EXECUTABLE = join(import.meta.dir, "../dist/cacophony");

const services = (count: number) =>
  `services:\n${Array.from({ length: count }, (_, index) => ` s${index}: {image: busybox, tty: true}\n`).join("")}`;
const bytes = (text: string) => new TextEncoder().encode(text);

const sending: Sending = { jobId: "shop", env: new Map([["TAG", "1"]]), profiles: ["p"] };
const sent = (document: Uint8Array, more: Partial<Sending> = {}, variables: Uint8Array[] = []): SentJob => ({
  document,
  variables,
  sending: { ...sending, ...more },
});

describe("JobReader", () => {
  const files = new Map([["a.env", bytes("A=$TAG")]]);
  const documents: [name: string, body: string | Uint8Array, more: Partial<Sending>][] = [
    ["a small one", "services: {a: {image: 'a:$TAG', profiles: [p]}}", {}],
    ["one with aliases", "x-a: &a {image: b}\nservices: {constructor: *a, __proto__: *a}", {}],
    ["one with files", "services: {a: {image: b, env_file: a.env, volumes: ['./a.env:/a']}}", { files }],
    ["a large one", services(1000), {}],
    ["a faulty large one", services(1000).replaceAll("tty", "tyt"), {}],
    ["a large one that is no text", new Uint8Array(100_000).fill(0xff), {}],
    ["none at all", "", {}],
  ];
  test.each(documents)("answers what parseJob() says of %s", async (_, body, more) => {
    const document = typeof body === "string" ? bytes(body) : body;
    const all = { ...sending, ...more };
    expect(await new JobReader().read(sent(document, all))).toEqual(parseJob(document, all));
  });

  test("lets others run while it reads a large document", async () => {
    const document = bytes(services(4000));
    const reading = new JobReader().read(sent(document));
    let done = false;
    void reading.then(() => (done = true));
    let turns = 0;
    for (; !done; turns++) await Bun.sleep(1);
    expect((await reading).ok).toBe(true);
    expect(turns).toBeGreaterThan(20);
  });

  const aliases = (of: string, count: number) => Array.from({ length: count }, () => `*${of}`).join();
  const nested = Array.from({ length: 5 }, (_, n) => `x-${n + 1}: &a${n + 1} [${aliases(`a${n}`, 8)}]\n`).join("");
  test.each([
    ["on the spot", "one with aliases", "x-a: &a {image: b}\nservices: {a: {<<: *a}, b: {<<: *a, tty: true}}"],
    [
      "in a process",
      "one with a long text that aliases repeat",
      `x-a: &a ${"text ".repeat(2_000)}\nx-b: [${aliases("a", 900)}]\n${services(1)}`,
    ],
    ["in a process", "one with aliases of aliases", `x-0: &a0 [b]\n${nested}${services(1)}`],
    ["in a process", "one of services that extend another", `${services(200)} t: {extends: {service: s0}}\n`],
  ])("reads %s %s", async (where, _, text) => {
    const reading = new JobReader().read(sent(bytes(text)));
    let done = false;
    void reading.then(() => (done = true));
    for (let turns = 0; turns < 20; turns++) await Promise.resolve();
    expect(done).toBe(where === "on the spot");
    expect((await reading).ok).toBe(true);
  });

  test("reads a few large documents after each other, refuses more, and small ones pass by", async () => {
    const reader = new JobReader();
    const document = bytes(services(600));
    const large = Array.from({ length: 8 }, () => reader.read(sent(document)));
    await expect(reader.read(sent(document))).rejects.toMatchObject({ code: "busy" });
    expect((await reader.read(sent(bytes(services(1))))).ok).toBe(true);
    expect((await Promise.all(large)).map(({ ok }) => ok)).toEqual(large.map(() => true));
    expect((await reader.read(sent(document))).ok).toBe(true);
  });
});

test("the one executable reads large documents in a process, too, whatever directory it is started in", async () => {
  expect(existsSync(EXECUTABLE), "dist/cacophony is there (npm run build)").toBe(true);
  const root = mkdtempSync(join(tmpdir(), "cacophony-reading-"));
  const logFile = join(root, "log");
  const free = Bun.serve({ port: 0, fetch: () => new Response() });
  const address = `127.0.0.1:${free.port}`;
  await free.stop(true);
  const argv = [EXECUTABLE, "bootstrap", "--bind-addr", address, "--data-dir", join(root, "data")];
  const engine = `unix://${join(root, "none.sock")}`;
  const node = new LabProcess("cacophony", [...argv, "--docker-host", engine, "--log-format", "json"], { logFile });
  try {
    await node.waitFor(/this node is up/);
    const url = `http://${address}/cluster/job/shop?dry_run=true`;
    const answer = await fetch(url, { method: "PUT", body: services(1000) });
    expect([answer.status, Object.keys(((await answer.json()) as { services: object }).services).length]).toEqual([
      200, 1000,
    ]);
    const faulty = await fetch(url, { method: "PUT", body: services(1000).replaceAll("tty", "tyt") });
    expect([faulty.status, ((await faulty.json()) as { error: { details: unknown[] } }).error.details.length]).toEqual([
      422, 501,
    ]);
  } finally {
    await node.kill();
    rmSync(root, { recursive: true });
  }
}, 30_000);
