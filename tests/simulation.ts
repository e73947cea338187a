/**
 * @module A whole cluster in one process and in virtual time: the real Scheduler, Membership, Sessions, Executors and SQLite
 * store on machines with fake Docker Engines, while a seeded generator sends requests and breaks everything that can break.
 *
 * Then all is healed and the cluster must settle by itself: exactly what the acknowledged requests ask for runs, and nothing
 * else. While it runs, the rules of `simulation_rules.ts` must hold. The same seed makes the same run.
 */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ClusterState } from "../src/cluster_state.ts";
import { type Log, silentLog } from "../src/log.ts";
import { LABELS } from "../src/model.ts";
import { type Requests, SimClient } from "./simulation_client.ts";
import { SimCluster } from "./simulation_cluster.ts";
import { SimIo } from "./simulation_io.ts";
import { SimOperator } from "./simulation_operator.ts";
import { calm, prepare } from "./simulation_services.ts";
import { isHeld, nameFaults, serviceFaults, zonesOf } from "./simulation_settled.ts";
import { SimScenes, THEMES } from "./simulation_scenes.ts";
import { SimTrouble } from "./simulation_trouble.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

export type Report = {
  seed: number;
  /** Changes with each step of the run: two runs of one seed must have the same. */
  trace: string;
  requests: Requests;
  commits: number;
  containers: number;
  virtualMs: number;
  /** From the end of all trouble until the last time that something was not as it should be. */
  settledMs: number;
};

/** A broken rule or a cluster that did not settle; the message has the seed and the end of the story. */
export class SimulationError extends Error {
  readonly seed: number;
  constructor(seed: number, message: string) {
    super(message);
    this.name = "SimulationError";
    this.seed = seed;
  }
}

/** Where files are memory, so that the machine's disk does not set the pace: the store is written and read as ever. */
const DISK = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();
const BEGIN = 1_700_000_000_000;
/** How often a cluster that is to settle is looked at. */
const LOOK_INTERVAL_MS = 1_000;
/** Most runs are short, and so are many, each with another beginning; every fiftieth seed goes on until much has happened. */
const ROUNDS = { short: [1, 3], long: [30, 60] } as const;
export const LONG_EVERY = 50;
/** So many requests at most before the first trouble, so that there is something to lose. */
const FIRST_REQUESTS = 3;
/** How often the operator does something in a round. */
const OPERATOR_SHARE = 0.3;
/** How much of what goes wrong in a run is of its theme. */
const THEME_SHARE = 0.6;
/** Lines of the story that a failure shows. */
const STORY_LINES = 60;
/** All is well for so long before it counts as settled, and what was started to end by itself has done so. */
const LEAST_SETTLE_MS = 6_000;
/** Backoffs end at a minute, and some trouble takes two of them. */
const SETTLE_LIMIT_MS = 300_000;
/** A settled cluster changes nothing for this long: in some runs a full look and a full pass, after another of each while it settled. */
const CALM_MS = { short: 8_000, long: 35_000 } as const;
const LONG_CALM_EVERY = 4;

/**
 * Runs the simulation of one seed.
 * @throws SimulationError
 */
export async function simulate(seed: number, options: { log?: Log } = {}): Promise<Report> {
  const dir = mkdtempSync(join(DISK, "cacophony-simulation-"));
  const simulation = new Simulation(seed, { dir, log: options.log ?? silentLog });
  try {
    return await simulation.run();
  } finally {
    simulation.end();
    rmSync(dir, { recursive: true });
  }
}

class Simulation {
  readonly #seed: number;
  readonly #io = new SimIo();
  readonly #clock = new VirtualClock(BEGIN, {
    promisesOnly: true,
    outside: () => this.#io.next,
    onInstant: () => this.#check(),
  });
  readonly #begin = this.#clock.now();
  readonly #random: () => number;
  readonly #cluster: SimCluster;
  readonly #client: SimClient;
  readonly #operator: SimOperator;
  readonly #story: string[] = [];
  #storyHash = "";
  readonly #trouble: SimTrouble;
  readonly #scenes: SimScenes;
  #seen = "";
  #onNodes: string[] = [];

  constructor(seed: number, { dir, log }: { dir: string; log: Log }) {
    this.#seed = seed;
    const random = (part: string) => seededRandom(Number(Bun.hash(`${seed} ${part}`) & 0xffffffffn));
    this.#random = random("trouble");
    const machines = 3 + Math.floor(this.#random() ** 2 * 3);
    this.#cluster = new SimCluster({ clock: this.#clock, random, machines, dir, log });
    this.#client = new SimClient(this.#cluster, { random: random("client"), say: (line) => this.#say(line) });
    this.#operator = new SimOperator(this.#cluster, { random: random("operator"), say: (line) => this.#say(line) });
    const common = { cluster: this.#cluster, clock: this.#clock, say: (line: string) => this.#say(line) };
    this.#trouble = new SimTrouble({ ...common, random: this.#random });
    this.#scenes = new SimScenes({
      ...common,
      random: random("scenes"),
      trouble: this.#trouble,
      client: this.#client,
      fail: (what) => this.#fail(what),
    });
    this.#cluster.onMasterGone = () => {
      this.#client.masterGone();
      this.#operator.masterGone();
    };
    this.#cluster.disk.onLoad = ({ job, node, cluster }) => {
      this.#client.compare(job, cluster[0]?.version_floor);
      this.#operator.compare(node);
    };
    for (const { engine } of this.#cluster.machines) prepare(engine);
  }

  async run(): Promise<Report> {
    for (const machine of this.#cluster.machines) this.#cluster.start(machine);
    await this.#pass(2_000);
    const requests = 1 + Math.floor(this.#random() * FIRST_REQUESTS);
    for (let n = 0; n < requests; n++) this.#client.act();
    await this.#pass(this.#pause());
    const [least, most] = this.#seed % LONG_EVERY === 0 ? ROUNDS.long : ROUNDS.short;
    const rounds = least + Math.floor(this.#random() * (most - least + 1));
    const theme = THEMES[this.#seed % THEMES.length];
    this.#say(`theme: ${theme}`);
    for (let round = 0; round < rounds; round++) {
      // oxlint-disable-next-line no-await-in-loop -- one after the other is the story
      if (theme !== undefined && this.#random() < THEME_SHARE) await this.#scenes.play(theme);
      else this.#trouble.happen();
      const requests = Math.floor(this.#random() * 3);
      for (let n = 0; n < requests; n++) this.#client.act();
      if (this.#random() < OPERATOR_SHARE) this.#operator.act();
      await this.#pass(this.#pause());
    }
    await this.#heal();
    const settledMs = await this.#settle();
    const before = this.#running();
    await this.#pass(this.#seed % LONG_CALM_EVERY === 0 ? CALM_MS.long : CALM_MS.short);
    this.#expectSettled();
    const after = this.#running();
    if (!Bun.deepEquals(before, after)) {
      this.#fail(`a settled cluster did not stay as it was: ${JSON.stringify({ before, after })}`);
    }
    return {
      seed: this.#seed,
      trace: this.#storyHash,
      requests: this.#client.requests,
      commits: this.#cluster.disk.commits,
      containers: after.length,
      virtualMs: this.#clock.now() - this.#begin,
      settledMs,
    };
  }

  end(): void {
    this.#cluster.endGhosts();
    for (const machine of this.#cluster.machines) this.#cluster.kill(machine);
    this.#io[Symbol.dispose]();
  }

  /** The next thing mostly happens in the middle of what the last one caused; sometimes there is time to give a node up. */
  #pause(): number {
    const dice = this.#random();
    if (dice < 0.3) return this.#random() * 10;
    return dice < 0.85 ? this.#random() ** 2 * 4_000 : this.#random() * 30_000;
  }

  // ---- The end of trouble ---------------------------------------------------------------------------------------------

  async #heal(): Promise<void> {
    this.#say("all is healed");
    this.#trouble.healAll();
    for (const { engine } of this.#cluster.machines) {
      calm(engine);
    }
    // What is just stopping is started once it has ended.
    await this.#pass(2_000);
    const lost = this.#pick(this.#cluster.machines.filter(({ process, isMaster }) => !process && !isMaster));
    if (lost) {
      this.#say(`${lost.name}: has lost its data directory and joins anew`);
      this.#cluster.loseData(lost);
    }
    for (const machine of this.#cluster.machines) this.#cluster.start(machine);
  }

  // ---- Settled --------------------------------------------------------------------------------------------------------

  /** Waits until nothing is wrong, nor can become so by what an Engine still does late; returns how long that took. */
  async #settle(): Promise<number> {
    const begin = this.#clock.now();
    const late = Math.max(
      begin + LEAST_SETTLE_MS,
      ...this.#cluster.machines.flatMap(({ engine }) => [engine.lateUntil, engine.endsUntil]),
    );
    let lastFault = begin;
    for (let now = begin; now < late || lastFault === now; now = this.#clock.now()) {
      if (now > begin + SETTLE_LIMIT_MS) this.#expectSettled();
      await this.#pass(LOOK_INTERVAL_MS);
      this.#readmit();
      if (this.#faults().length > 0) lastFault = this.#clock.now();
    }
    return lastFault - begin;
  }

  /** Nodes take work again, and what has left joins anew. */
  #readmit(): void {
    this.#operator.heal();
    for (const machine of this.#cluster.machines) {
      if (machine.process) continue;
      this.#say(`${machine.name}: starts`);
      this.#cluster.start(machine);
    }
  }

  #expectSettled(): void {
    const faults = this.#faults();
    if (faults.length > 0) this.#fail(`did not settle:\n  ${faults.slice(0, 20).join("\n  ")}`);
  }

  /** All that is not as it should be in the end. */
  #faults(): string[] {
    const scheduler = this.#cluster.scheduler;
    if (!scheduler) return ["there is no master"];
    if (!this.#client.isAnswered) return ["requests have no answer"];
    const { state } = scheduler;
    this.#client.compare([...state.jobs.values()], state.cluster?.version_floor);
    this.#operator.compare([...state.nodes.values()]);
    const faults = [...state.views].flatMap(([id, view]) =>
      view.state === "ready" ? [] : [`${id} is ${view.state}: ${view.reason}`],
    );
    faults.push(...nodeFaults(state, this.#cluster.machines.length));
    for (const { allocation_id, desired, node_id } of state.allocations.values()) {
      if (desired === "stop") faults.push(`allocation ${allocation_id} on ${node_id} is still to stop`);
    }
    faults.push(...outdated(state));
    for (const { job_id, node_id } of state.removals.values()) {
      faults.push(`volumes of job ${job_id} are still to be removed on ${node_id}`);
    }
    // What containers there are is looked at anew where it, or what the master wrote down, is not as at the last look.
    const seen = `${this.#cluster.changes} ${this.#cluster.disk.commits} ${this.#cluster.starts}`;
    if (seen !== this.#seen) this.#onNodes = [...this.#containerFaults(), ...this.#leftovers(state)];
    this.#seen = seen;
    if (faults.length + this.#onNodes.length > 0) return [...faults, ...this.#onNodes];
    // Names follow what runs, so there is no use in looking at them before.
    return nameFaults([...this.#client.wanted(zonesOf(state)), ...this.#client.unwanted()], this.#cluster);
  }

  #containerFaults(): string[] {
    const { state } = this.#cluster.scheduler ?? {};
    if (!state) return ["there is no master"];
    const found = Map.groupBy(
      this.#cluster.machines.flatMap(({ engine }) => engine.containers),
      ({ labels }) => `${labels.get(LABELS.job)}/${labels.get(LABELS.service)}`,
    );
    const faults: string[] = [];
    for (const wanted of this.#client.wanted(zonesOf(state))) {
      const key = `${wanted.job}/${wanted.service}`;
      const containers = found.get(key) ?? [];
      found.delete(key);
      faults.push(...serviceFaults(wanted, { containers, cluster: this.#cluster }));
    }
    for (const [key, containers] of found)
      faults.push(`${key}: nobody wants ${containers.map(({ name }) => name).join()}`);
    return faults;
  }

  /** Networks of jobs that have nothing on their node, volumes of jobs that were deleted with them. */
  #leftovers(state: ClusterState): string[] {
    return this.#cluster.machines.flatMap(({ name, engine, identity }) => {
      const gone = this.#trouble.late.has(name) ? [] : this.#client.withoutVolumes();
      const volumes = gone.flatMap((job) => engine.volumeNames.filter((one) => one.startsWith(`${job}_`)));
      const here = [
        ...engine.containers.map(({ labels }) => labels.get(LABELS.job)),
        ...state.allocationsOn(identity.node_id).map(({ job_id }) => job_id),
      ];
      const jobs = new Set(here.map((job) => `${job}_default`));
      const networks = engine.networkNames.filter((network) => !jobs.has(network));
      return [...volumes, ...networks].map((what) => `${what} is left on ${name}`);
    });
  }

  #running(): string[] {
    return this.#cluster.machines
      .flatMap(({ engine }) => engine.containers)
      .map(({ id, startedAt }) => `${id} since ${startedAt}`)
      .toSorted();
  }

  // ---- The run --------------------------------------------------------------------------------------------------------

  #pass(ms: number): Promise<void> {
    return this.#clock.advance(ms);
  }

  /** After every instant: the rules hold. */
  #check(): void {
    this.#cluster.rules.check();
    this.#cluster.promises.check();
    const broken = this.#cluster.rules.violations[0] ?? this.#client.violations[0] ?? this.#operator.violations[0];
    if (broken !== undefined) this.#fail(broken);
  }

  #fail(what: string): never {
    const story = this.#story.slice(-STORY_LINES).join("\n  ");
    const hint = `again with: SEED=${this.#seed} bun test tests/simulation.test.ts`;
    throw new SimulationError(this.#seed, `seed ${this.#seed}: ${what}\n${hint}\nwhat happened last:\n  ${story}`);
  }

  #say(line: string): void {
    const at = ((this.#clock.now() - this.#begin) / 1000).toFixed(3);
    this.#story.push(`${at} ${line}`);
    this.#storyHash = Bun.hash(`${this.#storyHash} ${at} ${line} ${this.#running().join()}`).toString(16);
  }

  #pick<T>(list: readonly [T, ...T[]]): T;
  #pick<T>(list: readonly T[]): T | undefined;
  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.#random() * list.length)];
  }
}

/** What of the nodes is not as it should be in the end. */
function nodeFaults(state: ClusterState, count: number): string[] {
  const faults = [...state.nodes.values()].flatMap(({ node_id, availability, drain }) =>
    availability === "active" && !drain ? [] : [`${node_id} is to ${availability}`],
  );
  if (state.nodes.size !== count) faults.push(`there are nodes ${[...state.nodes.keys()].join()}`);
  for (const { job_id, service_name, slot, node_id } of state.homes.values()) {
    if (!state.nodes.has(node_id))
      faults.push(`the data of ${job_id}/${service_name}/${slot} are on ${node_id}, which is no node`);
  }
  return faults;
}

/** What was restarted is of its service's last generation. */
function outdated(state: ClusterState): string[] {
  return [...state.allocations.values()].flatMap(({ allocation_id, job_id, service_name, generation = 0, ended }) => {
    const service = state.liveJob(job_id)?.services.find((one) => one.service_name === service_name);
    const isWaiting = isHeld(state, { job: job_id, service: service_name });
    const isLate = !ended && !isWaiting && service !== undefined && generation !== (service.generation ?? 0);
    return isLate
      ? [`allocation ${allocation_id} of ${job_id}/${service_name} is still of generation ${generation}`]
      : [];
  });
}
