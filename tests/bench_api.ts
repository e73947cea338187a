/**
 * @module The API under load (`npm run bench -- api`): a listing of 100 jobs through the master and through another node, beside
 * the least that a server and a forwarder do with the same body; and writes, which are durable before they are answered. The
 * load comes from wrk (`apt-get install wrk`) on 32 connections. A tool: nothing imports it but `bench.ts`.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { freePort } from "./entry_fixture.ts";
import { type BenchProcess, median, percentile, startProcess, untilAnswers } from "./bench_process.ts";

const JOBS = 100;
const CONNECTIONS = 32;
const SECONDS = 4;
const ROUNDS = 3;
const WRITES = 400;
const ROOT = join(import.meta.dir, "..");

type Run = { perSecond: number; p99Ms: number };
type Target = { what: string; url: string; beside: string | undefined; runs: Run[] };

export async function benchApi(dir: string): Promise<void> {
  if (!Bun.which("wrk")) {
    console.error("bench: the load comes from wrk: apt-get install wrk");
    process.exitCode = 1;
    return;
  }
  const master = await startProcess(dir, ["bootstrap"]);
  const worker = await startProcess(dir, ["join", master.address]);
  const bare: BenchProcess[] = [];
  try {
    const document = readFileSync(join(ROOT, "examples/web-app.yml"), "utf8");
    for (let n = 0; n < JOBS; n++) await put(master.address, { job: `job-${n}`, document });
    await untilAnswers(`http://${worker.address}/cluster/job`);
    const body = join(dir, "jobs.json");
    writeFileSync(body, await (await fetch(`http://${master.address}/cluster/job`)).text());
    bare.push(await startBare(["hono", body]));
    bare.push(await startBare(["forward", bare[0]?.address ?? ""]));
    const target = (what: string, address: string, beside?: string): Target => {
      return { what, url: `http://${address}/cluster/job`, beside, runs: [] };
    };
    const targets = [
      target("bare Hono handler", bare[0]?.address ?? ""),
      target("through the master", master.address, "bare Hono handler"),
      target("bare fetch forwarder", bare[1]?.address ?? ""),
      target("through another node", worker.address, "bare fetch forwarder"),
    ];
    for (let round = 0; round < ROUNDS; round++) for (const one of targets) one.runs.push(await load(one.url));
    print(targets, readFileSync(body).length);
    await printWrites(master.address, document);
  } finally {
    for (const one of bare) await one.stop();
    await worker.stop();
    await master.stop();
  }
}

async function startBare([kind = "", what = ""]: string[]): Promise<BenchProcess> {
  const address = `127.0.0.1:${await freePort()}`;
  const port = address.split(":")[1] ?? "";
  const argv = [process.execPath, join(import.meta.dir, "bench_api_bare.ts"), kind, port, what];
  const child = Bun.spawn(argv, { stdout: "ignore", stderr: "inherit" });
  await untilAnswers(`http://${address}/cluster/job`);
  const stop = async () => {
    child.kill();
    await child.exited;
  };
  return { address, startedMs: 0, pid: child.pid, stop };
}

async function put(address: string, { job, document }: { job: string; document: string }): Promise<void> {
  const response = await fetch(`http://${address}/cluster/job/${job}`, { method: "PUT", body: document });
  if (!response.ok) throw new Error(`PUT ${job} was answered with ${response.status}: ${await response.text()}`);
}

async function load(url: string): Promise<Run> {
  const argv = ["wrk", "-t1", `-c${CONNECTIONS}`, `-d${SECONDS}s`, "--latency", url];
  const child = Bun.spawn(argv, { stdout: "pipe", stderr: "inherit" });
  const text = await child.stdout.text();
  const perSecond = Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]);
  const p99 = /99%\s+([\d.]+)(us|ms|s)/.exec(text);
  if (!perSecond || !p99 || /Non-2xx/.test(text)) throw new Error(`wrk on ${url} did not end well:\n${text}`);
  const unit = { us: 0.001, ms: 1, s: 1_000 }[p99[2] as "us" | "ms" | "s"];
  return { perSecond, p99Ms: Number(p99[1]) * unit };
}

function print(targets: readonly Target[], bytes: number): void {
  console.log(`GET /cluster/job, ${JOBS} jobs (${(bytes / 1024).toFixed(0)} KB), ${CONNECTIONS} connections:`);
  const rate = ({ runs }: Target) => median(runs.map(({ perSecond }) => perSecond));
  for (const target of targets) {
    const beside = targets.find(({ what }) => what === target.beside);
    const ratio = beside ? `${(rate(beside) / rate(target)).toFixed(2)} times ${beside.what}` : "";
    const p99 = median(target.runs.map(({ p99Ms }) => p99Ms)).toFixed(1);
    console.log(
      `  ${target.what.padEnd(24)} ${rate(target).toFixed(0).padStart(7)}/s   p99 ${p99.padStart(6)} ms   ${ratio}`,
    );
  }
}

async function printWrites(address: string, document: string): Promise<void> {
  const times: number[] = [];
  for (let n = 0; n < WRITES; n++) {
    const begin = performance.now();
    await put(address, { job: "written", document: document.replace(/\n*$/, `\n# ${n}\nx-n: ${n}\n`) });
    times.push(performance.now() - begin);
  }
  const shown = [median(times), percentile(times, 0.99)].map((ms) => `${ms.toFixed(1)} ms`);
  console.log(
    `PUT of a changed document, durable when answered: median ${shown[0]}, p99 ${shown[1]} (${WRITES} writes)`,
  );
}
