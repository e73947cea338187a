/**
 * @module Upgrades node by node, on real engines, from two commits of the history: the last one before the cluster had a key, in both
 * orders, and the first one whose sessions have a range of protocol versions and whose files have format numbers. No container is
 * replaced or restarted, also not when a document is sent again after it; sent files and secrets reach nodes of both versions; each
 * node pins the cluster's key once it and the master are new; an earlier executable refuses what a later one wrote.
 */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { identityIn } from "../src/data_dir.ts";
import { Lab } from "./lab.ts";
import { LabCluster } from "./lab_cluster.ts";
import { command, mustRun } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(300_000);

const REPOSITORY = resolve(import.meta.dir, "..");
const BEFORE = "4f7a930";
/** What it writes and says goes on being understood. */
const FIRST_WITH_FORMATS = "d9c59b3";
const NODES = 3;

const COMPOSE = `
services:
  app:
    image: busybox
    command: sleep 86400
    stop_signal: SIGKILL
    deploy: {mode: global}
    secrets: [password]
    volumes: ["./conf.d:/etc/conf.d"]
secrets:
  password: {environment: PASSWORD}
`;

let dir: string;
let old: string;
let first: string;
let lab: Lab;
let cluster: LabCluster;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "cacophony-upgrade-"));
  old = await buildOf(BEFORE, join(dir, "before"));
  first = await buildOf(FIRST_WITH_FORMATS, join(dir, "first"));
  lab = await Lab.start({ hosts: NODES });
  await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
  await lab.host(1).measurePace("busybox");
});

afterEach(async () => {
  await cluster?.clear();
  // A network goes after its last container, and the next cluster must not find those of this one.
  const networks = () =>
    Promise.all(lab.hosts.map((host) => host.docker("network", "ls", "-q", "--filter", "label=cacophony.cluster")));
  await waitUntil("the networks to be gone", networks, { until: (ids) => ids.join("") === "", timeoutMs: 60_000 });
  for (const started of cluster.processes) await started?.kill();
  for (const host of lab.hosts) rmSync(host.dataDir, { recursive: true, force: true });
});

afterAll(async () => {
  await lab?.stop();
  rmSync(dir, { recursive: true, force: true });
});

/** Builds the executable of a commit from the repository's history; returns its path. */
async function buildOf(commit: string, into: string): Promise<string> {
  const { exitCode } = await command(["git", "-C", REPOSITORY, "cat-file", "-e", `${commit}^{commit}`]);
  if (exitCode !== 0)
    throw new Error(
      `the history has no commit ${commit}, which this test upgrades from: git fetch --unshallow gets it`,
    );
  mkdirSync(into);
  symlinkSync(join(REPOSITORY, "node_modules"), join(into, "node_modules"));
  const script = 'git -C "$1" archive "$2" | tar -x -C "$3" && cd "$3" && "$4" src/build.ts';
  await mustRun(["sh", "-ec", script, "sh", REPOSITORY, commit, into, process.execPath]);
  return join(into, "dist/cacophony");
}

/** Sends a job with a file and a secret by the real curl; each node runs one container of it. `isNew`: it was not sent before. */
async function send(job: string, { on, isNew = true }: { on: number; isNew?: boolean }): Promise<void> {
  const project = join(dir, job);
  mkdirSync(join(project, "conf.d"), { recursive: true });
  await Bun.write(join(project, "compose.yaml"), COMPOSE);
  await Bun.write(join(project, ".env"), `PASSWORD=secret of ${job}\n`);
  await Bun.write(join(project, "conf.d/a.conf"), `${job}\n`.repeat(60_000));
  const host = lab.host(on);
  const { stdout } = await host.curl(
    ...["-X", "PUT", `${host.address}:9000/cluster/job/${job}`, "-w", "\n%{http_code}"],
    ...["-F", `compose=@${project}/compose.yaml`, "-F", `env=@${project}/.env`],
    ...["-F", `file=@${project}/conf.d/a.conf;filename=./conf.d/a.conf`],
  );
  expect(stdout.trim()).toEndWith(isNew ? "201" : "200");
}

/** Waits until each node has one container of the job that shows what was sent. */
async function shows(job: string): Promise<void> {
  const script = "cat /run/secrets/password; sort -u /etc/conf.d/a.conf; wc -l < /etc/conf.d/a.conf";
  const expected = `secret of ${job}${job}\n60000`;
  await cluster.settled(job);
  const ids = new Set((await cluster.allocations(`?job=${job}`)).map(({ container_id }) => container_id));
  const seen = (await cluster.ask("app", script)).filter(({ id }) => ids.has(id));
  expect(seen.map(({ host, text }) => [host.number, text])).toEqual(lab.hosts.map(({ number }) => [number, expected]));
}

/** All containers with when they were started, which a restart in place changes. */
async function runs(): Promise<string[]> {
  const all = lab.hosts.map(async (host) => {
    const ids = (await cluster.containers(host)).map(({ id }) => id);
    return (await host.docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Running}}", ...ids)).split("\n");
  });
  return (await Promise.all(all)).flat().toSorted();
}

function pins(): (string | undefined)[] {
  return lab.hosts.map((host) => identityIn(host.dataDir)?.cluster_key);
}

/** Ends the node as an operator would, and starts it again with another executable: by default the one under test. */
async function change(number: number, binary?: string): Promise<void> {
  await cluster.process(number).stop();
  cluster.binary = binary;
  cluster.restart(number);
}

/** An earlier executable does not start with what a later one wrote; the later one goes on from there. */
async function refusesToGoBack(number: number, { binary, words }: { binary: string; words: RegExp }): Promise<void> {
  const before = await runs();
  await cluster.process(number).stop();
  cluster.binary = binary;
  const refused = cluster.restart(number);
  expect(await refused.exited).toBe(2);
  expect(refused.logs()).toMatch(words);
  cluster.binary = undefined;
  cluster.restart(number);
  await cluster.ready(NODES);
  expect(await runs()).toEqual(before);
}

/** Documents that are sent again as they were change nothing. */
async function sentAgainReplacesNothing(jobs: readonly string[]): Promise<void> {
  const before = await runs();
  for (const job of jobs) await send(job, { on: 2, isNew: false });
  for (const job of jobs) await shows(job);
  expect(await runs()).toEqual(before);
}

/** Whether anybody but a node gets a chunk of a sent file. */
async function strangerGetsChunk(): Promise<boolean> {
  const state = join(lab.host(1).dataDir, "cluster.db");
  const { stdout } = await command([
    ...[process.execPath, "-e"],
    `const {Database}=require("bun:sqlite");console.log(new Database(process.argv[1]).query("SELECT key FROM record WHERE kind='chunk'").get().key)`,
    state,
  ]);
  expect(stdout.trim()).toMatch(/^[0-9a-f]{32,}$/);
  return (await lab.host(1).fetch(`/internal/chunk/${stdout.trim()}`)).ok;
}

describe("an upgrade node by node", () => {
  test.each([
    ["the workers first", [2, 3, 1]],
    ["the master first", [1, 2, 3]],
  ])("replaces and restarts nothing, and serves nodes of both versions: %s", async (_, order) => {
    cluster = new LabCluster(lab);
    cluster.binary = old;
    await cluster.form(NODES);
    await send("first", { on: 2 });
    await shows("first");
    expect(await strangerGetsChunk()).toBe(true);
    expect(pins()).toEqual([undefined, undefined, undefined]);
    let before = await runs();

    const upgraded = new Set<number>();
    for (const number of order) {
      await change(number);
      upgraded.add(number);
      await cluster.ready(NODES);
      expect(await runs()).toEqual(before);
      // Sent through the node that was just changed, and run by nodes of both versions.
      await send(`after-${number}`, { on: number });
      await shows(`after-${number}`);
      const isPinned = lab.hosts.map((host) => upgraded.has(1) && upgraded.has(host.number));
      expect(pins().map((pin) => pin !== undefined)).toEqual(isPinned);
      if (upgraded.has(1)) expect(await strangerGetsChunk()).toBe(false);
      before = await runs();
    }
    expect(new Set(pins()).size).toBe(1);

    // Point 10: a worker that was not told listens where its master is reached from, and on loopback.
    const listening = async (number: number) =>
      (await lab.host(number).run(["ss", "-Hltn", "sport = :9000"])).stdout
        .split("\n")
        .map((line) => line.trim().split(/\s+/)[3])
        .toSorted();
    expect(await listening(2)).toEqual([`${lab.host(2).address}:9000`, "127.0.0.1:9000"].toSorted());

    await sentAgainReplacesNothing(["first", `after-${order[0]}`]);
    await refusesToGoBack(1, { binary: old, words: /node\.json is damaged or of a newer cacophony; it was left unt/ });
  });

  test("from the first commit with formats and a range of protocol versions replaces nothing (point 10)", async () => {
    cluster = new LabCluster(lab);
    cluster.binary = first;
    await cluster.form(NODES);
    await send("first", { on: 2 });
    await shows("first");
    let before = await runs();
    // A worker and then the master, so that there are both old nodes of a new master and a new node of an old one.
    for (const number of [2, 1, 3]) {
      await change(number);
      await cluster.ready(NODES);
      expect(await runs()).toEqual(before);
      await send(`after-${number}`, { on: number });
      await shows(`after-${number}`);
      before = await runs();
    }
    await sentAgainReplacesNothing(["first", "after-2", "after-1", "after-3"]);
    const proofs = lab.hosts.map((host) => identityIn(host.dataDir)?.last_term);
    expect(proofs[0]?.term).toBe(2);
    expect(proofs).toEqual(lab.hosts.map(() => proofs[0]));
    const words = /node\.json has format \d+, this cacophony knows up to 1; it was left untouched: run the newer/;
    for (const number of [1, 3]) await refusesToGoBack(number, { binary: first, words });
  });
});
