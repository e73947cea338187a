/**
 * @module What a node itself takes (`npm run bench -- footprint`): time from its start to the first answer, memory and processor time
 * of a master and of a worker, idle and with containers, and the size of the executable, which is `dist/cacophony`. Options
 * are the defaults. Needs root and the packages of `setup.sh`. Prints two tables.
 *
 * Processor time counts what a node's commands take, too: it looks after the kernel's network by them.
 */
import { readFileSync, statSync } from "node:fs";
import { EXECUTABLE, median, startProcess } from "./bench_process.ts";
import { Lab } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import type { LabProcess } from "./lab_process.ts";

const STARTS = 9;
const CONTAINERS = 100;
/** Of a job on each node: its network there has room for 62. */
const CONTAINERS_OF_JOB = 50;
/** What began with the start, or with the last container, is over by then. */
const CALM_MS = 15_000;
/** And then, too, what the runtime does at first: it compiles what is used often, and looks at its heap each second. */
const WARM_MS = 40_000;
const SPAN_MS = 20_000;
/** Ticks of a second in /proc, for programs always 100 (proc(5)). */
const TICKS = 100;
const MIB = 2 ** 20;

type Use = { anonymous: number; resident: number; own: number; commands: number };

export async function benchFootprint(dir: string): Promise<void> {
  const times: number[] = [];
  for (let run = 0; run <= STARTS; run++) {
    const running = await startProcess(dir, ["bootstrap"]);
    await running.stop();
    // The first reads the executable from the disk.
    if (run > 0) times.push(running.startedMs);
  }
  const range = `${Math.min(...times).toFixed(0)} to ${Math.max(...times).toFixed(0)}`;
  console.log(`size of the executable: ${(statSync(EXECUTABLE).size / 1e6).toFixed(1)} MB`);
  console.log(
    `start to the first answer, without an engine: ${median(times).toFixed(0)} ms (${range}, ${STARTS} runs)\n`,
  );
  await nodes();
}

async function nodes(): Promise<void> {
  const lab = await Lab.start({ hosts: 2 });
  try {
    await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
    const cluster = new LabCluster(lab);
    const address = `${lab.host(1).address}:9000`;
    const master = lab.host(1).cacophony(["bootstrap", "--bind-addr", address]);
    await master.waitFor(/this node is up/);
    const worker = lab.host(2).cacophony(["join", address]);
    await cluster.ready(2);
    const young = await uses([master, worker], CALM_MS);
    const idle = await uses([master, worker], WARM_MS);
    for (let job = 0; job < CONTAINERS / CONTAINERS_OF_JOB; job++) {
      const scale = CONTAINERS_OF_JOB * lab.hosts.length;
      await cluster.put(`job-${job}`, { services: { app: sleeper({ scale }) } });
      await cluster.settled(`job-${job}`, { timeoutMs: 300_000 });
    }
    const full = await uses([master, worker], CALM_MS);
    print([
      ["master, idle, first minute", young[0]],
      ["master, idle", idle[0]],
      [`master, ${CONTAINERS} containers`, full[0]],
      ["worker, idle, first minute", young[1]],
      ["worker, idle", idle[1]],
      [`worker, ${CONTAINERS} containers`, full[1]],
    ]);
  } finally {
    await lab.stop();
  }
}

/** What each takes when nothing is asked of it; at the same time for all. */
async function uses(processes: readonly LabProcess[], calmMs: number): Promise<Use[]> {
  console.error(`bench: nothing happens for ${(calmMs + SPAN_MS) / 1000} s`);
  await Bun.sleep(calmMs);
  const before = processes.map(({ pid }) => ({ ...ticks(pid), at: performance.now() }));
  await Bun.sleep(SPAN_MS);
  return processes.map((one, n) => {
    const { own, commands } = ticks(one.pid);
    const then = before[n] ?? { own: Number.NaN, commands: Number.NaN, at: Number.NaN };
    const span = ((performance.now() - then.at) / 1000) * TICKS;
    const shares = { own: (own - then.own) / span, commands: (commands - then.commands) / span };
    return { anonymous: one.anonymousMemory(), resident: resident(one.pid), ...shares };
  });
}

/** Processor time of a process, and of the commands that it ran to their end (proc(5), /proc/pid/stat). */
function ticks(pid: number): { own: number; commands: number } {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The second field may hold spaces; what follows it begins with the third.
  const fields = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  const [user = 0, system = 0, ofChildren = 0, inChildren = 0] = fields.slice(11, 15);
  return { own: user + system, commands: ofChildren + inChildren };
}

function resident(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024;
}

function print(rows: readonly (readonly [string, Use | undefined])[]): void {
  const lines = [
    ["", "anonymous", "resident", "processor", "of which commands"],
    ...rows.flatMap(([what, use]) =>
      use
        ? [
            [
              what,
              `${(use.anonymous / MIB).toFixed(1)} MiB`,
              `${(use.resident / MIB).toFixed(1)} MiB`,
              percent(use.own + use.commands),
              percent(use.commands),
            ],
          ]
        : [],
    ),
  ];
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  console.log(`processor: share of one core over ${SPAN_MS / 1000} s\n`);
  for (const line of lines) {
    const cells = line.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    console.log(cells.join("  "));
  }
}

function percent(share: number): string {
  return `${(share * 100).toFixed(2)} %`;
}
