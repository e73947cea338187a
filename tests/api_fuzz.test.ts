/** @module Fuzz of the HTTP API: 2,000 requests of 16 kinds, as bytes, to a master and to a node that forwards to it. */
import { afterAll, expect, test } from "bun:test";
import { connect } from "node:net";
import { startFuzz } from "./fuzz.ts";
import { DOCUMENT, FUZZ_KINDS, type FuzzRequest, fuzzRequest, KEPT, SCALED } from "./fuzz_http.ts";
import { NodeProcesses } from "./node_process.ts";

const REQUESTS = 2_000;
const AT_ONCE = 16;
/** An answer to a whole request may take so long on a busy machine. */
const ANSWER_MS = 20_000;
/** For so long nothing more comes of an answer that is over. */
const QUIET_MS = 40;
/** For so long a request that is not whole may go without an answer before its sender goes away. */
const UNFINISHED_MS = 400;
const PAUSE_MS = 5;

const nodes = new NodeProcesses();
afterAll(() => nodes.stop());

type Outcome = { text: string; isClosed: boolean };

/** Sends it and takes what comes, until the connection ends or nothing more comes. */
function send(port: number, { parts, isWhole, isEnded }: FuzzRequest): Promise<Outcome> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    const socket = connect({ host: "127.0.0.1", port, allowHalfOpen: true });
    const finish = (isClosed: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ text: Buffer.concat(chunks).toString("latin1"), isClosed });
    };
    let timer = setTimeout(() => finish(false), isWhole ? ANSWER_MS : UNFINISHED_MS);
    socket.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      clearTimeout(timer);
      timer = setTimeout(() => finish(false), QUIET_MS);
    });
    socket.on("error", () => {});
    socket.on("end", () => finish(true));
    socket.on("close", () => finish(true));
    const sendAll = async () => {
      for (const part of parts) {
        if (part.length > 0 && !socket.destroyed) socket.write(part);
        if (parts.length > 1) await Bun.sleep(PAUSE_MS);
      }
      if (isEnded && !socket.destroyed) socket.end();
    };
    void sendAll();
  });
}

test("fuzz of HTTP: each of 2,000 requests of 16 kinds is answered or its connection closed, and only valid ones change anything", async () => {
  const fuzz = startFuzz("HTTP");
  const { seed } = fuzz;
  expect(FUZZ_KINDS.length).toBe(16);
  const master = await nodes.start(["bootstrap"]);
  const worker = await nodes.start(["join", master.address]);
  await nodes.untilMember(worker);
  const get = async (path: string, { address } = master) => (await fetch(`http://${address}${path}`)).json();
  for (const id of [KEPT, SCALED]) {
    const put = await fetch(`http://${master.address}/cluster/job/${id}`, { method: "PUT", body: DOCUMENT });
    expect(put.status).toBe(201);
  }
  const before = { job: await keptJob(get), nodes: await nodeStates(get) };

  const requests = Array.from({ length: REQUESTS }, (_, index) => fuzzRequest(fuzz, { index, id: `f${index}` }));
  const faults: string[] = [];
  /** Jobs that valid requests may have made: those that an answer names, and those whose answer was not awaited. */
  const made = new Set<string>([KEPT, SCALED]);
  const registries = new Set<string>();
  let next = 0;
  let answered = 0;
  const work = async () => {
    for (let index = next++; index < REQUESTS; index = next++) {
      const request = requests[index];
      if (!request) break;
      const outcome = await send((index % 32 < 16 ? master : worker).port, request);
      const statuses = [...outcome.text.matchAll(/^HTTP\/1\.1 (\d{3})/gm)].map(([, status]) => Number(status));
      const isFault = statuses.some((status) => status === 500) || outcome.text.includes('"code":"internal"');
      if (statuses.length > 0) answered++;
      const isUnanswered = statuses.length === 0 && !outcome.isClosed;
      if (isFault || (isUnanswered && request.isWhole)) {
        const sent = Buffer.concat(request.parts).toString("latin1").slice(0, 600);
        faults.push(`${index}, ${request.kind}: ${JSON.stringify(sent)} -> ${outcome.text.slice(0, 400) || "nothing"}`);
      }
      for (const [, id = ""] of outcome.text.matchAll(/"job_id":"([^"]+)","version"/g)) made.add(id);
      if (statuses.some((status) => status === 200 || status === 201)) registries.add(`f${index}.example`);
      // It may have been carried out, though nobody heard the answer.
      if (isUnanswered || request.isFollowed) {
        made.add(`f${index}`);
        registries.add(`f${index}.example`);
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));

  for (const node of [master, worker]) {
    const began = performance.now();
    expect((await fetch(`http://${node.address}/healthz`)).status).toBe(200);
    expect({ seed, healthzMs: performance.now() - began }).toEqual({ seed, healthzMs: expect.any(Number) });
    expect(performance.now() - began).toBeLessThan(2_000);
    expect(node.process.running).toBe(true);
    expect({ seed, log: node.process.logs().match(/.*(?:an error of Cacophony|"code":"internal").*/)?.[0] }).toEqual({
      seed,
      log: undefined,
    });
  }
  expect({ seed, faults }).toEqual({ seed, faults: [] });
  expect({ seed, after: { job: await keptJob(get), nodes: await nodeStates(get) } }).toEqual({
    seed,
    after: before,
  });
  const jobs = Object.keys((await get("/cluster/job")) as object);
  expect({ seed, jobs: jobs.filter((id) => !made.has(id)) }).toEqual({ seed, jobs: [] });
  const hosts = ((await get("/cluster/registry")) as { registries: string[] }).registries;
  expect({ seed, hosts: hosts.filter((host) => !registries.has(host)) }).toEqual({ seed, hosts: [] });
  // The kinds still reach what they are meant for.
  expect(answered).toBeGreaterThan(REQUESTS / 2);
  expect(jobs.length).toBeGreaterThan(50);
}, 180_000);

/** The job that nobody changes. Why it waits is left out: what the nodes' stand-ins of an Engine say changes by itself. */
async function keptJob(get: (path: string) => Promise<unknown>): Promise<unknown> {
  return JSON.parse(
    JSON.stringify(await get(`/cluster/job/${KEPT}`), (key, value) => (key === "reasons" ? [] : value)),
  );
}

/** What an operator may have said of the nodes. */
async function nodeStates(get: (path: string) => Promise<unknown>): Promise<unknown> {
  const { nodes: all } = (await get("/cluster/node")) as {
    nodes: { node_id: string; labels: unknown; availability: unknown }[];
  };
  return all.map(({ node_id, labels, availability }) => ({ node_id, labels, availability }));
}
