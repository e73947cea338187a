/**
 * @module The fault suite: a minute of everything that goes wrong at once, on real hosts and Docker Engines and with the times that
 * users have, while jobs are created, changed and deleted through any node. Then all is healed, and the cluster must settle by
 * itself to exactly what was acknowledged. What is chosen comes from a seed; when it meets what, from the machine.
 *
 *     SEED=7 LOGS=/tmp/logs bun test tests/lab_faults.test.ts
 *
 * runs another seed than the usual one, and keeps the logs of all processes when it fails.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { LabHost } from "./lab.ts";
import { type Allocation, type JobDoc, LabCluster } from "./lab_cluster.ts";
import { FaultClient, HOSTS, type Known, VARIANT } from "./lab_faults_client.ts";
import { tail } from "./lab_process.ts";
import { seededRandom } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(240_000);

const SEED = Number(process.env["SEED"] ?? 1);
if (!Number.isSafeInteger(SEED)) throw new Error(`SEED must be a whole number, not ${process.env["SEED"]}`);
const TROUBLE_MS = 60_000;
/** Troubles at once, each on something of its own. */
const TROUBLEMAKERS = 3;
const MOST_PAUSE_MS = 4_000;
const SETTLE_LIMIT_MS = 60_000;
const CALM_MS = 5_000;
/** Lines of the story, and of the last master's log, that a failure shows. */
const STORY_LINES = 60;
const LOG_LINES = 15;

type Part = "process" | "cable" | "engine" | "availability";
type Trouble = {
  /** What of the host it takes: nobody else may have trouble with that meanwhile. */
  takes: readonly Part[];
  mostMs: number;
  begin: (at: Where) => Promise<void> | void;
  end: (at: Where) => Promise<void> | void;
};
type Where = { host: LabHost; on: number; dice: number };
type Container = {
  id: string;
  state: string;
  startedAt: string;
  createdMs: number;
  host: number;
  labels: Record<string, string>;
};

let cluster: LabCluster;
const story: string[] = [];
let begin = performance.now();
const say = (line: string) => story.push(`${((performance.now() - begin) / 1000).toFixed(3)} ${line}`);

beforeAll(async () => {
  // A dead engine is given up sooner than by default, so that it happens within the minute.
  const times = ["--heartbeat-interval", "1s", "--node-timeout", "4s", "--engine-timeout", "6s"];
  cluster = await LabCluster.start({ hosts: HOSTS, bootstrap: times });
});

afterAll(async () => {
  await cluster?.lab.stop();
});

test("after a minute of faults of all kinds, exactly what was acknowledged runs, and stays as it is", async () => {
  console.log(`fault suite: seed ${SEED}`);
  try {
    await run();
  } catch (error) {
    const master = cluster.process(1).logs();
    keepLogs();
    const listening = await Promise.all(cluster.lab.hosts.map((host) => host.run(["ss", "-Hltnp"])));
    const there = await Promise.all(cluster.lab.hosts.map((host) => host.docker("ps", "-a")));
    const lines = [
      `seed ${SEED}: ${error instanceof Error ? error.message : error}`,
      `again with: SEED=${SEED} bun test tests/lab_faults.test.ts`,
      `what happened last:\n  ${story.slice(-STORY_LINES).join("\n  ")}`,
      ...listening.map(({ stdout }, at) => `host ${at + 1} listens on:\n${stdout}and has:\n${there[at]}`),
      `the master's last lines:\n${tail(master, LOG_LINES)}`,
    ];
    throw new Error(lines.join("\n"), { cause: error });
  }
});

async function run(): Promise<void> {
  begin = performance.now();
  const client = new FaultClient(cluster, { seed: SEED, say });
  const isOver = () => performance.now() - begin > TROUBLE_MS;
  const busy = new Set<string>();
  const makers = Array.from({ length: TROUBLEMAKERS }, (_, n) => makeTrouble({ n, busy, isOver }));
  await Promise.all([...makers, client.run(isOver)]);
  await heal();
  const healed = performance.now();
  let isFreed = false;
  const look = async () => {
    const found = [...client.violations, ...(await faults(client))];
    if (found.length > 0 && (await freeLostPorts())) isFreed = true;
    return found;
  };
  const settle = () =>
    waitUntil("the cluster to settle", look, {
      // What was acknowledged and is lost does not come back.
      until: (found) => found.length === 0 || client.violations.length > 0,
      timeoutMs: SETTLE_LIMIT_MS,
      intervalMs: 250,
    });
  // Where Docker was started anew, trouble ended then.
  await settle().catch((error: unknown) => (isFreed ? settle() : Promise.reject(error)));
  expect(client.violations).toEqual([]);
  const settledMs = performance.now() - healed;
  const before = await containers();
  await Bun.sleep(CALM_MS);
  expect(await containers()).toEqual(before);
  expect(await faults(client)).toEqual([]);
  for (const [jobId, { services }] of client.jobs) if (services) await expectNoPlan(client, jobId);
  const { acknowledged, refused, notMade, unknown } = client.counts;
  expect(acknowledged).toBeGreaterThan(20);
  console.log(
    `fault suite: ${story.filter((line) => line.includes("!")).length} faults; writes: ${acknowledged} acknowledged, ${refused} refused, ` +
      `${notMade} not made, ${unknown} without an answer; settled after ${(settledMs / 1000).toFixed(1)} s, ${before.length} containers`,
  );
}

// ---- Trouble ------------------------------------------------------------------------------------------------------------

const nothing = () => {};

const TROUBLES: Record<string, Trouble> = {
  "kill -9": { takes: ["process"], mostMs: 5_000, begin: kill, end: start },
  SIGTERM: {
    takes: ["process"],
    mostMs: 3_000,
    begin: async (at) => {
      expectRunning(at);
      await cluster.process(at.host.number).stop();
    },
    end: start,
  },
  freeze: {
    takes: ["process"],
    mostMs: 8_000,
    begin: ({ host }) => cluster.process(host.number).freeze(),
    end: ({ host }) => cluster.process(host.number).thaw(),
  },
  "cable cut": {
    takes: ["cable"],
    mostMs: 9_000,
    begin: ({ host }) => host.cutOff(),
    end: ({ host }) => host.reconnect(),
  },
  "kill -9 of dockerd": {
    takes: ["engine"],
    mostMs: 8_000,
    begin: ({ host }) => host.killDocker(),
    end: ({ host }) => host.restartDocker(),
  },
  "freeze of dockerd": {
    takes: ["engine"],
    mostMs: 9_000,
    begin: ({ host }) => host.dockerd.freeze(),
    end: ({ host }) => host.dockerd.thaw(),
  },
  "power cut": {
    takes: ["process", "engine"],
    mostMs: 5_000,
    begin: ({ host }) => host.powerOff(),
    end: async (at) => {
      await at.host.startDocker();
      start(at);
    },
  },
  drain: {
    takes: ["availability"],
    mostMs: 8_000,
    begin: async (at) => setAvailability(at, "drain"),
    end: async (at) => setAvailability(at, "active"),
  },
  pause: {
    takes: ["availability"],
    mostMs: 5_000,
    begin: async (at) => setAvailability(at, "pause"),
    end: async (at) => setAvailability(at, "active"),
  },
  rebalance: { takes: [], mostMs: 0, begin: async (at) => ask(at, "/cluster/rebalance"), end: nothing },
  reschedule: { takes: [], mostMs: 0, begin: async (at) => ask(at, "/cluster/reschedule"), end: nothing },
  "end of a container": { takes: [], mostMs: 0, begin: async (at) => endOne(at, { remove: false }), end: nothing },
  "removal of a container": { takes: [], mostMs: 0, begin: async (at) => endOne(at, { remove: true }), end: nothing },
};

/** One trouble after the other, each ended before the next begins. */
async function makeTrouble({
  n,
  busy,
  isOver,
}: {
  n: number;
  busy: Set<string>;
  isOver: () => boolean;
}): Promise<void> {
  const random = seededRandom(Number(Bun.hash(`${SEED} trouble ${n}`) & 0xffffffffn));
  const upTo = (most: number) => Math.floor(random() * most);
  const kinds = Object.keys(TROUBLES);
  while (!isOver()) {
    const kind = kinds[upTo(kinds.length)] ?? "";
    const number = 1 + upTo(HOSTS);
    const at: Where = { host: cluster.lab.host(number), on: 1 + upTo(HOSTS), dice: random() };
    const trouble = TROUBLES[kind];
    const holdMs = random() * (trouble?.mostMs ?? 0);
    const pauseMs = random() * MOST_PAUSE_MS;
    const parts = (trouble?.takes ?? []).map((part) => `${number} ${part}`);
    if (!trouble || parts.some((part) => busy.has(part))) continue;
    for (const part of parts) busy.add(part);
    say(`! host ${number}: ${kind}`);
    await trouble.begin(at);
    await Bun.sleep(Math.min(holdMs, Math.max(0, TROUBLE_MS - (performance.now() - begin))));
    await trouble.end(at);
    if (trouble.mostMs > 0) say(`  host ${number}: ${kind} is over`);
    for (const part of parts) busy.delete(part);
    await Bun.sleep(pauseMs);
  }
}

async function kill(at: Where): Promise<void> {
  expectRunning(at);
  await cluster.process(at.host.number).kill();
}

function start({ host }: Where): void {
  cluster.restart(host.number);
}

/** No process of ours ends by itself. */
function expectRunning({ host }: { host: LabHost }): void {
  const process = cluster.process(host.number);
  if (!process.running) throw new Error(`${process.name} ended by itself:\n${tail(process.logs(), LOG_LINES)}`);
}

/** What becomes of it shows in the end. */
async function ask({ on }: Where, path: string, init: RequestInit = {}): Promise<void> {
  await cluster.api(path, { method: "POST", on, timeoutMs: 3_000, ...init }).catch(nothing);
}

async function setAvailability(at: Where, availability: string): Promise<void> {
  await ask(at, `/cluster/node/host-${at.host.number}`, { method: "PUT", body: JSON.stringify({ availability }) });
}

/** By hand, past the cluster, if the engine answers at all. */
async function endOne({ host, dice }: Where, { remove }: { remove: boolean }): Promise<void> {
  const filters = encodeURIComponent(JSON.stringify({ label: ["cacophony.allocation"] }));
  const quickly = { timeoutMs: 1_000 };
  try {
    const list = (await (await host.engine(`/containers/json?filters=${filters}`, quickly)).json()) as { Id: string }[];
    const chosen = list[Math.floor(dice * list.length)];
    if (!chosen) return;
    const path = `/containers/${chosen.Id}`;
    if (remove) await host.engine(`${path}?force=1`, { method: "DELETE", ...quickly });
    else await host.engine(`${path}/kill`, { method: "POST", ...quickly });
  } catch {
    // It is in trouble already.
  }
}

/** Every trouble has ended itself; what was asked of nodes may not have come through. */
async function heal(): Promise<void> {
  say("all is healed");
  for (const host of cluster.lab.hosts) expectRunning({ host });
  for (const { number } of cluster.lab.hosts) {
    const init = { method: "PUT", body: JSON.stringify({ availability: "active" }), timeoutMs: 2_000 };
    await waitUntil(`host ${number} to be active`, () => cluster.api(`/cluster/node/host-${number}`, init), {
      until: ({ status }) => status === 200,
      timeoutMs: 20_000,
    });
  }
}

/**
 * Does what a node says: dockerd, killed while it started a container, may hold that container's port for nobody from
 * then on, which is Docker's own fault and ends with its next start. Only where it is true.
 */
async function freeLostPorts(): Promise<boolean> {
  let isFreed = false;
  for (const { node_name, reason } of await cluster.nodes()) {
    const lost = reason.startsWith("Docker holds") ? (reason.match(/(?:tcp|udp)\/\d+/g) ?? []) : [];
    if (lost.length === 0) continue;
    const host = cluster.lab.host(Number(node_name.replace("host-", "")));
    const published = await host.docker("ps", "-a", "--format", "{{.Ports}}");
    for (const port of lost) expect(published).not.toContain(`:${port.split("/")[1]}->`);
    say(`host ${host.number}: dockerd is started anew, which holds ${lost.join(" ")} for nobody`);
    await host.dockerd.stop({ timeoutMs: 30_000 });
    await host.restartDocker();
    isFreed = true;
  }
  return isFreed;
}

// ---- What must be so in the end -------------------------------------------------------------------------------------------

/** All that is not as it should be. */
async function faults(client: FaultClient): Promise<string[]> {
  const nodes = await cluster.nodes();
  const found = nodes.flatMap(({ node_name, state, reason }) =>
    state === "ready" ? [] : [`${node_name} is ${state}: ${reason}`],
  );
  await client.compare();
  const allocations = await cluster.allocations();
  const all = await containers();
  const known = new Map(allocations.map((one) => [one.allocation_id, one]));
  for (const one of all) found.push(...containerFaults(one, known.get(one.labels["cacophony.allocation"] ?? "")));
  for (const [jobId, job] of client.jobs) {
    const mine = all.filter(({ labels }) => labels["cacophony.job"] === jobId);
    found.push(...(await jobFaults(jobId, { job, mine })));
    if (job.services || mine.length > 0) continue;
    found.push(...(await leftovers(jobId, { volumes: job.volumesGo })));
  }
  const ids = new Set(all.map(({ labels }) => labels["cacophony.allocation"]));
  for (const { allocation_id, state, job_id } of allocations) {
    if (state !== "running") found.push(`allocation ${allocation_id} of ${job_id} is ${state}`);
    if (!ids.has(allocation_id)) found.push(`allocation ${allocation_id} of ${job_id} has no container`);
  }
  return found;
}

function containerFaults({ id, state, host, labels }: Container, allocation: Allocation | undefined): string[] {
  const name = `${labels["cacophony.job"]}/${labels["cacophony.service"]}/${labels["cacophony.slot"]} (${id.slice(0, 12)} on host ${host})`;
  if (!allocation) return [`${name} is an orphan`];
  const found = allocation.node_name === `host-${host}` ? [] : [`${name} belongs to ${allocation.node_name}`];
  if (allocation.container_id !== id) found.push(`${name}: its allocation knows ${allocation.container_id}`);
  if (state !== "running") found.push(`${name} is ${state}`);
  return found;
}

/** Each service has its scale in slots, each slot one container of the wanted definition, made since it had to be made anew. */
async function jobFaults(jobId: string, { job, mine }: { job: Known; mine: readonly Container[] }): Promise<string[]> {
  const found: string[] = [];
  const { services = new Map() } = job;
  for (const service of new Set(mine.map(({ labels }) => labels["cacophony.service"] ?? ""))) {
    if (!services.has(service)) found.push(`${jobId}/${service} runs, and nobody wants it`);
  }
  if (!job.services) return found;
  const shown = (await cluster.job(jobId)).services;
  for (const [name, { scale, variant, since }] of job.services) {
    const its = mine.filter(({ labels }) => labels["cacophony.service"] === name);
    // Which slots stay when a scale shrinks depends on what ran then; each has one container.
    const slots = its.map(({ labels }) => labels["cacophony.slot"]);
    const what = `${jobId}/${name}`;
    const { counts = {}, blocked = [] } = shown[name] ?? ({} as Partial<JobDoc["services"][string]>);
    const why = blocked.map(({ slot, reasons }) => `; slot ${slot}: ${reasons.join(", ")}`).join("");
    if (slots.length !== scale || new Set(slots).size !== scale)
      found.push(`${what} has slots ${slots} of ${scale}${why}`);
    if (blocked.length > 0) found.push(`${what} is blocked${why}`);
    if (!Bun.deepEquals(counts, scale > 0 ? { running: scale } : {}))
      found.push(`${what} counts ${JSON.stringify(counts)}`);
    for (const { labels, createdMs, id } of its) {
      if (labels[VARIANT] !== variant) found.push(`${what}: ${id} is ${labels[VARIANT]}, wanted is ${variant}`);
      if (createdMs < since) found.push(`${what}: ${id} is older than the restart ${since - createdMs} ms later`);
    }
  }
  return found;
}

/** Networks, and volumes that were to go, of a job that is no more. */
async function leftovers(jobId: string, { volumes }: { volumes: boolean }): Promise<string[]> {
  const found: string[] = [];
  for (const host of cluster.lab.hosts) {
    const networks = (await (await host.engine("/networks")).json()) as { Name: string }[];
    const kept = (await (await host.engine("/volumes")).json()) as { Volumes: { Name: string }[] | null };
    const names = [...networks, ...(volumes ? (kept.Volumes ?? []) : [])].map(({ Name }) => Name);
    found.push(
      ...names.filter((name) => name.startsWith(`${jobId}_`)).map((name) => `${name} is left on host ${host.number}`),
    );
  }
  return found;
}

/** All containers of ours. */
async function containers(): Promise<Container[]> {
  const lists = await Promise.all(
    cluster.lab.hosts.map(async (host) => {
      const here = await cluster.containers(host);
      return Promise.all(
        here.map(async ({ id, state, labels }) => {
          const seen = (await (await host.engine(`/containers/${id}/json`)).json()) as {
            Created: string;
            State: { StartedAt: string };
          };
          const createdMs = Date.parse(seen.Created);
          return { id, state, labels, host: host.number, startedAt: seen.State.StartedAt, createdMs };
        }),
      );
    }),
  );
  return lists.flat().toSorted((a, b) => (a.id < b.id ? -1 : 1));
}

/** The job as it is, put again, would change nothing and place nothing. */
async function expectNoPlan(client: FaultClient, jobId: string): Promise<void> {
  const { status, body } = await cluster.put(jobId, client.documentOf(jobId), { query: "?dry_run=true" });
  const plan = body as unknown as {
    version: number;
    changes: unknown[];
    blocked: unknown[];
    containers: { create: { Labels: Record<string, string> } }[];
  };
  expect({ jobId, status, version: plan.version, changes: plan.changes, blocked: plan.blocked }).toEqual({
    jobId,
    status: 200,
    version: client.jobs.get(jobId)?.version ?? 0,
    changes: [],
    blocked: [],
  });
  // A replica that would be placed has an allocation that is not there yet.
  const planned = plan.containers.map(({ create }) => create.Labels["cacophony.allocation"]);
  const there = (await cluster.allocations(`?job=${jobId}`)).map(({ allocation_id }) => allocation_id);
  expect(planned.toSorted()).toEqual(there.toSorted());
}

function keepLogs(): void {
  const to = process.env["LOGS"];
  if (to === undefined) return;
  mkdirSync(to, { recursive: true });
  writeFileSync(join(to, "story"), `${story.join("\n")}\n`);
  for (const { dir, number } of cluster.lab.hosts) {
    cpSync(dir, join(to, `h${number}`), {
      recursive: true,
      filter: (path) => path === dir || (path.endsWith(".log") && !path.slice(dir.length + 1).includes("/")),
    });
  }
}
