/** @module Reading documents: small ones on the spot, all others in a process that keeps nobody waiting. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JobReader } from "../src/api_reading.ts";
import { readSentJob, type SentJob } from "../src/job_sent.ts";
import { parseJob, type ParseResult, type Sending } from "../src/job_spec.ts";
import { cpuTimer } from "./cpu_time.ts";
import { isRunning, LabProcess } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

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

describe("point 6: a process that reads a document", () => {
  const large = bytes(services(20_000));
  const reasonOf = (result: ParseResult) => (result.ok ? undefined : [result.code, result.details[0]?.message]);

  test("is killed when it takes too long, and so are those that nothing can move; the core is free again", async () => {
    const reading = new JobReader({ cpuMs: 100 }).read(sent(large));
    const pid = await childOf(process.pid);
    expect(reasonOf(await reading)).toEqual([
      "invalid_document",
      "the document takes over 0.1 s to read, so that was stopped: split it into several jobs, or send fewer and shorter values and files",
    ]);
    expect(isRunning(pid)).toBe(false);
    const stuck = new JobReader({ timeoutMs: 1_000 }).read(sent(large));
    const stopped = await childOf(process.pid);
    process.kill(stopped, "SIGSTOP");
    expect(reasonOf(await stuck)).toEqual(["invalid_document", expect.stringContaining("takes over 1 s to read on")]);
    expect(isRunning(stopped)).toBe(false);
  });

  test("is killed when it takes too much memory, when its answer is too long, and may be killed by others", async () => {
    const greedy = new JobReader({ memoryBytes: 64 * 2 ** 20 }).read(sent(large));
    expect(reasonOf(await greedy)?.[1]).toContain("takes over 64 MiB of memory to read");
    const repeated = `x-a: &a ${"text ".repeat(2_000)}\nx-b: [${Array.from({ length: 900 }, () => "*a").join()}]\n`;
    const long = new JobReader({ answerBytes: 2 ** 20 }).read(sent(bytes(repeated + services(1))));
    expect(reasonOf(await long)?.[1]).toContain("comes to over 1 MiB with all that it stands for");
    const killed = new JobReader().read(sent(large));
    process.kill(await childOf(process.pid), "SIGKILL");
    expect(reasonOf(await killed)?.[1]).toContain("takes more memory than this node has");
  });

  test("is one of two at most, and none when nothing is being read", async () => {
    const reader = new JobReader();
    const document = bytes(services(2_000));
    const all = Promise.all(Array.from({ length: 6 }, () => reader.read(sent(document))));
    let done = false;
    void all.then(() => (done = true));
    let most = 0;
    for (; !done; await Bun.sleep(5)) most = Math.max(most, childrenOf(process.pid).length);
    expect((await all).every(({ ok }) => ok)).toBe(true);
    expect(most).toBe(2);
    expect(childrenOf(process.pid)).toEqual([]);
  });

  test("has nothing of the process that started it: no variable, no socket that listens, no file", async () => {
    process.env["CACOPHONY_TEST_SECRET"] = "hidden";
    const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
    const file = openSync(import.meta.path, "r");
    try {
      const reading = new JobReader().read(sent(large));
      const pid = await childOf(process.pid);
      // The kernel is to end it before any other.
      const score = () => readFileSync(`/proc/${pid}/oom_score_adj`, "utf8");
      await waitUntil("it has begun", score, { until: (text) => text === "1000\n", intervalMs: 1 });
      process.kill(pid, "SIGSTOP");
      expect(readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").filter(Boolean).toSorted()).toEqual([
        "BUN_FEATURE_FLAG_NO_ORPHANS=1",
        "DO_NOT_TRACK=1",
      ]);
      const open = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
      expect(open).not.toContain(import.meta.path);
      const mine = readlinkSync(`/proc/self/fd/${file}`);
      expect(mine).toBe(import.meta.path);
      expect(open.filter((path) => listening().has(path))).toEqual([]);
      process.kill(pid, "SIGKILL");
      await reading;
    } finally {
      closeSync(file);
      await server.stop(true);
      delete process.env["CACOPHONY_TEST_SECRET"];
    }
  });

  const variables = (text: string) => [bytes(text)];
  const filesOf = (size: number) => new Map([["a.env", bytes(`A=${"b".repeat(size)}`)]]);
  const one = services(1);
  const naming = "services: {a: {image: b, env_file: a.env}}";
  const dollars = `services: {a: {image: b, x-a: [${Array.from({ length: 100 }, () => "'$A'").join()}]}}`;
  test.each<[string, string, SentJob]>([
    ["on the spot", "a small document with a small file that is mounted", sent(bytes(one), { files: filesOf(10) })],
    ["on the spot", "a small document with a few variables", sent(bytes(one), {}, variables("A=b"))],
    ["on the spot", "variables that are named often and short", sent(bytes(dollars), {}, variables("A=b"))],
    ["in a process", "variables above 16 KiB", sent(bytes(one), {}, variables(`A=${"b".repeat(17_000)}`))],
    ["in a process", "files above 16 KiB", sent(bytes(one), { files: filesOf(17_000) })],
    [
      "in a process",
      "many small files",
      sent(bytes(one), { files: new Map(Array.from({ length: 11 }, (_, n) => [`f${n}`, bytes("a")])) }),
    ],
    ["in a process", "all above 16 KiB", sent(bytes(one), { files: filesOf(9_000) }, variables("A".repeat(9_000)))],
    [
      "in a process",
      "a value of the address above 16 KiB",
      sent(bytes(one), { env: new Map([["A", "b".repeat(17_000)]]) }),
    ],
    ["in a process", "a file that is read as text", sent(bytes(naming), { files: filesOf(10) })],
    [
      "in a process",
      "long variables that are named often",
      sent(bytes(dollars), {}, variables(`A=${"b".repeat(9_000)}`)),
    ],
    ["in a process", "a key that escapes hide", sent(bytes('services: {a: {image: b}, c: {"ext\\x65nds": a}}'))],
  ])("reads %s %s", async (where, _, job) => {
    let done = false;
    const reading = new JobReader().read(job).finally(() => (done = true));
    for (let turns = 0; turns < 20; turns++) await Promise.resolve();
    expect(done).toBe(where === "on the spot");
    expect(await reading).toEqual(readSentJob(job));
  });
});

describe("point 6: documents that the YAML package could take long for", () => {
  const fill = (piece: string, size: number) => piece.repeat(Math.ceil(size / piece.length));
  const levels = (size: number, of: (n: number) => string) => Array.from({ length: size }, (_, n) => of(n)).join("");
  const documents: [name: string, of: (size: number) => string][] = [
    [
      "aliases of nine aliases",
      (size) =>
        `x0: &a0 [b]\n${levels(size / 70, (n) => `x${n + 1}: &a${n + 1} [${fill(`*a${n},`, 9 * `*a${n},`.length)}]\n`)}`,
    ],
    [
      "aliases of two aliases",
      (size) => `x0: &a0 [b]\n${levels(size / 24, (n) => `x${n + 1}: &a${n + 1} [*a${n},*a${n}]\n`)}`,
    ],
    [
      "merge keys of merge keys",
      (size) =>
        `x0: &a0 {b: c}\n${levels(size / 40, (n) => `x${n + 1}: &a${n + 1} {<<: [*a${n},*a${n}], k${n}: v}\n`)}`,
    ],
    ["many aliases", (size) => `- &a b\n${fill("- *a\n", size)}`],
    ["many anchors", (size) => levels(size / 14, (n) => `- &a${n} b\n`)],
    ["anchors on one value", (size) => fill("&a ", size)],
    ["lists that are never closed", (size) => fill("[", size)],
    ["mappings that are never closed", (size) => fill("{a: ", size)],
    ["indentation that goes deeper", (size) => levels(Math.sqrt(size), (n) => `${" ".repeat(n)}a:\n`)],
    ["a list of many", (size) => `[${fill("a,", size)}]`],
    ["a mapping of many", (size) => `{${levels(size / 10, (n) => `a${n}: b,`)}}`],
    ["empty lists", (size) => `[${fill("[],", size)}]`],
    ["commas", (size) => `[${fill(",", size)}]`],
    ["a long plain scalar", (size) => `a: ${fill("b ", size)}`],
    ["a plain scalar of many lines", (size) => `a:\n${fill(" b\n", size)}`],
    ["a plain scalar with empty lines", (size) => `a: b\n${fill("\n", size)}c`],
    ["a quoted scalar that is never closed", (size) => `a: "${fill("b ", size)}`],
    ["a quoted scalar of many lines", (size) => `a: "${fill("b  \n  ", size)}"`],
    ["escapes", (size) => `a: "${fill("\\u0041", size)}"`],
    ["a folded text", (size) => `a: >\n${fill(" b\n  c\n", size)}`],
    ["comments", (size) => `a: b${fill(" #c\n", size)}`],
    ["spaces", (size) => `a:${fill(" ", size)}b`],
    ["line feeds", (size) => fill("\n", size)],
    ["carriage returns", (size) => fill("\r", size)],
    ["question marks", (size) => fill("?\n", size)],
    ["dashes", (size) => fill("- ", size)],
    ["colons", (size) => fill(": ", size)],
    ["tags", (size) => fill("- !a b\n", size)],
    ["directives", (size) => fill("%A b\n", size)],
    ["documents", (size) => fill("---\n", size)],
    ["keys that are lists", (size) => fill("? [a]\n: b\n", size)],
    ["the same key", (size) => fill("a: b\n", size)],
    ["one long key", (size) => `${fill("a", size)}: b`],
  ];

  test("16 kB of binds of a directory with sent files keep nobody waiting", async () => {
    const files = new Map(Array.from({ length: 10 }, (_, n) => [`f${n}`, bytes("b".repeat(800))]));
    const binds = Array.from({ length: 600 }, (_, n) => `./:/${n}`).join();
    const job = sent(bytes(`services: {a: {image: b, volumes: [${binds}]}}`), { files });
    const spent = cpuTimer();
    const reading = new JobReader().read(job);
    expect(spent()).toBeLessThan(200);
    expect((await reading).ok).toBe(true);
  });

  test.each(documents)("16 kB of %s keep nobody waiting", async (_, of) => {
    const job = sent(bytes(of(16_000).slice(0, 16_000)));
    // On the spot, or until a process has them.
    const times: number[] = [];
    // The first time is the compiler's.
    for (let run = 0; run < 4; run++) {
      const spent = cpuTimer();
      const reading = new JobReader().read(job);
      times.push(spent());
      // oxlint-disable-next-line no-await-in-loop -- one after the other: they are timed
      await reading;
    }
    expect(Math.min(...times), "milliseconds of processor time").toBeLessThan(100);
  });

  test("1 MiB of each is read in a process in less than half of the time that it may take", async () => {
    for (const [name, of] of documents) {
      const document = bytes(of(2 ** 20).slice(0, 2 ** 20));
      // oxlint-disable-next-line no-await-in-loop -- one after the other: they are timed
      const result = await new JobReader({ cpuMs: 5_000 }).read(sent(document));
      expect(result.ok ? "" : result.details[0]?.message, name).not.toContain("so that was stopped");
    }
  }, 120_000);
});

describe("the one executable", () => {
  const root = mkdtempSync(join(tmpdir(), "cacophony-reading-"));
  const executable = join(root, "cacophony");
  let node: LabProcess;
  let url: string;
  const put = (body: string) => fetch(url, { method: "PUT", body });
  type Answer = { services: object; error: { code: string; message: string; details: { message: string }[] } };
  const jsonOf = async (answer: Response) => (await answer.json()) as Answer;

  beforeAll(async () => {
    expect(existsSync(EXECUTABLE), "dist/cacophony is there (npm run build)").toBe(true);
    copyFileSync(EXECUTABLE, executable);
    const free = Bun.serve({ port: 0, fetch: () => new Response() });
    const address = `127.0.0.1:${free.port}`;
    await free.stop(true);
    url = `http://${address}/cluster/job/shop?dry_run=true`;
    const argv = [executable, "bootstrap", "--bind-addr", address, "--data-dir", join(root, "data")];
    const options = ["--docker-host", `unix://${join(root, "none.sock")}`, "--log-format", "json"];
    node = new LabProcess("cacophony", [...argv, ...options], { logFile: join(root, "log") });
    await node.waitFor(/this node is up/, { timeoutMs: 30_000 });
  }, 60_000);

  afterAll(async () => {
    await node.kill();
    rmSync(root, { recursive: true });
  });

  test("reads large documents in a process, too, whatever directory it is started in", async () => {
    const answer = await put(services(1000));
    expect([answer.status, Object.keys((await jsonOf(answer)).services).length]).toEqual([200, 1000]);
    const faulty = await put(services(1000).replaceAll("tty", "tyt"));
    expect([faulty.status, (await jsonOf(faulty)).error.details.length]).toEqual([422, 501]);
    expect(childrenOf(node.pid)).toEqual([]);
  }, 30_000);

  test("point 6: answers 422 when the reading is stopped, and goes on", async () => {
    const answer = put(services(20_000));
    process.kill(await childOf(node.pid), "SIGKILL");
    expect((await answer).status).toBe(422);
    const { error } = await jsonOf(await answer);
    expect([error.code, error.details[0]?.message]).toEqual(["invalid_document", expect.stringContaining("split it")]);
    expect((await put(services(1000))).status).toBe(200);
  }, 30_000);

  test("point 6: reads with its own version once its file has been replaced", async () => {
    rmSync(executable);
    writeFileSync(executable, "#!/bin/sh\nexit 1\n", { mode: 0o755 });
    expect((await put(services(1000))).status).toBe(200);
  }, 30_000);

  test("point 6: leaves no busy process behind when it is killed itself", async () => {
    const answer = put(services(20_000)).catch(() => undefined);
    const pid = await childOf(node.pid);
    await waitUntil("it reads", () => readFileSync(`/proc/${pid}/oom_score_adj`, "utf8") === "1000\n", {
      intervalMs: 1,
    });
    // So it neither ends by itself nor notices anything.
    process.kill(pid, "SIGSTOP");
    await node.kill();
    await waitUntil("its process is gone", () => !isRunning(pid), { timeoutMs: 2_000, intervalMs: 10 });
    await answer;
  }, 30_000);
});

/** Processes that were started by `parent` to read a document and have not ended. */
function childrenOf(parent: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
        const isChild = stat.slice(stat.lastIndexOf(")")).split(" ")[2] === String(parent);
        return isChild && /reader\.ts|read-document/.test(readFileSync(`/proc/${pid}/cmdline`, "utf8"));
      } catch {
        return false;
      }
    });
}

async function childOf(parent: number): Promise<number> {
  const found = await waitUntil("a process that reads", () => childrenOf(parent)[0], { intervalMs: 1 });
  return found ?? 0;
}

/** Sockets of this machine that listen, as /proc/PID/fd shows them. */
function listening(): Set<string> {
  const lines = ["tcp", "tcp6"].flatMap((table) =>
    readFileSync(`/proc/net/${table}`, "utf8").trim().split("\n").slice(1),
  );
  const fields = lines.map((line) => line.trim().split(/\s+/));
  return new Set(fields.filter(([, , , state]) => state === "0A").map((all) => `socket:[${all[9]}]`));
}
