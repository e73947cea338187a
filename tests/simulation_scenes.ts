/**
 * @module Trouble that takes several steps, by theme: each seed of the simulation has one, so that a few hundred seeds are enough for
 * every theme.
 */
import type { SimClient } from "./simulation_client.ts";
import type { SimCluster } from "./simulation_cluster.ts";
import type { Machine } from "./simulation_machine.ts";
import type { Life } from "./simulation_process.ts";
import type { SimTrouble } from "./simulation_trouble.ts";
import type { VirtualClock } from "./virtual_clock.ts";

export const THEMES = [
  "old master",
  "late messages",
  "isolation",
  "mass failure",
  "pause",
  "disk",
  "crash of the master",
  "engine",
  "lost data",
] as const;
export type Theme = (typeof THEMES)[number];

export type ScenesOptions = {
  cluster: SimCluster;
  clock: VirtualClock;
  random: () => number;
  say: (line: string) => void;
  trouble: SimTrouble;
  client: SimClient;
  fail: (what: string) => never;
};

/** A repaired cluster is calm after this: the longest backoff of a session, and time for what was pending. */
const CALM_MS = 8_000;
/** What a master can do when its disk works again is done by then, long before it looks at everything. */
const PROMPT_MS = 6_000;
/** Silent nodes are held for a minute: a cut that ends before must cost nothing. */
const MOST_CUT_MS = 50_000;

export class SimScenes {
  readonly #options: ScenesOptions;

  constructor(options: ScenesOptions) {
    this.#options = options;
  }

  play(theme: Theme): Promise<void> {
    switch (theme) {
      case "old master":
        return this.#oldMaster();
      case "late messages":
        return this.#lateMessages();
      case "isolation":
        return this.#isolation();
      case "mass failure":
        return this.#massFailure();
      case "pause":
        return this.#pause();
      case "disk":
        return this.#disk();
      case "crash of the master":
        return this.#crash();
      case "engine":
        return this.#engine();
      case "lost data":
        return this.#lostData();
    }
  }

  // ---- Fencing --------------------------------------------------------------------------------------------------------

  /** A master stands still, another takes over with its data directory, and the first goes on where it was. */
  async #oldMaster(): Promise<void> {
    const { cluster, client, say, trouble } = this.#options;
    client.act();
    await this.#pass(this.#upTo(20));
    cluster.network.lingering = 0.7;
    if (this.#happens(0.5)) for (const machine of this.#workers()) trouble.stallConnections(machine);
    say("the master stands still, and another one takes over with its data directory");
    cluster.replaceMaster();
    await this.#requests(3, 2_000);
    await this.#pass(this.#upTo(6_000));
    if (cluster.thawGhost()) say("the old master goes on");
    if (cluster.giveAddressToGhost()) {
      say("the old master has the address of the new one");
      for (const { address } of this.#workers()) if (this.#happens(0.5)) cluster.network.breakConnections(address);
      await this.#pass(this.#upTo(8_000));
      cluster.giveAddressBack();
    }
    await this.#requests(2, 1_500);
  }

  /** What was said on a connection arrives when another one has taken its place. */
  async #lateMessages(): Promise<void> {
    const { cluster, client, say, trouble } = this.#options;
    if (this.#happens(0.4)) cluster.network.latency = [1, 1_500];
    const machine = this.#pick(this.#happens(0.3) ? [cluster.master] : this.#workers());
    if (!machine) return;
    client.act();
    await this.#pass(this.#upTo(30));
    say(`${machine.name}: its connections stall`);
    trouble.stallConnections(machine);
    if (this.#happens(0.4)) {
      say(`${machine.name}: is killed and starts at once`);
      cluster.kill(machine, { goodbye: this.#happens(0.5) });
      cluster.start(machine);
    } else this.#changeContainers(machine);
    await this.#requests(4, 2_500);
  }

  // ---- Silence --------------------------------------------------------------------------------------------------------

  /** A node that runs what is never to run twice has no master for long. */
  async #isolation(): Promise<void> {
    const { cluster, client, say } = this.#options;
    const { network } = cluster;
    for (let n = 0; n < 3 && this.#alone().length === 0; n++) {
      client.act("put");
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await this.#pass(2_000);
    }
    const machine = this.#pick(this.#alone()) ?? this.#pick(this.#workers());
    if (!machine) return;
    const how = this.#pick(["cut off", "deaf", "mute"] as const);
    say(`${machine.name}: ${how}, for long`);
    if (how === "cut off") network.isolate(machine.address);
    else network.cutOneWay(machine.address, how === "deaf" ? "to" : "from");
    // Half of the time long enough for others to take over all that it runs.
    await this.#pass(this.#happens(0.5) ? 4_000 + this.#upTo(14_000) : 18_000 + this.#upTo(6_000));
    if (this.#happens(0.3)) client.act();
    if (this.#happens(0.7)) {
      say(`${machine.name}: joined with the others again`);
      network.join(machine.address);
    }
  }

  /** Most nodes are cut off at once, and come back before the master may conclude anything. */
  async #massFailure(): Promise<void> {
    const { cluster, say } = this.#options;
    if (!(await this.#repair())) return;
    const workers = this.#workers();
    const most = this.#happens(0.5) ? workers : workers.slice(0, Math.floor(workers.length / 2) + 1);
    if (most.length < 2) return;
    const ms = 2_000 + this.#upTo(MOST_CUT_MS - 2_000);
    cluster.rules.expectHold(most, ms);
    const isMasterCut = most.length === workers.length && this.#happens(0.5);
    say(isMasterCut ? "the master is cut off from all" : `${most.map(({ name }) => name).join()}: cut off together`);
    for (const { address } of isMasterCut ? [cluster.master] : most) cluster.network.isolate(address);
    await this.#pass(ms);
    say("joined with the others again");
    for (const { address } of cluster.machines) cluster.network.join(address);
    await this.#pass(this.#upTo(6_000));
  }

  /** The master stands still for a while, and its nodes are well. */
  async #pause(): Promise<void> {
    const { cluster, client, say } = this.#options;
    if (this.#happens(0.5)) await this.#repair();
    const life = cluster.master.process?.life;
    if (!life || life.isFrozen) return;
    if (this.#happens(0.3)) return this.#stallAgainAndAgain(life);
    const ms = 1_000 + this.#upTo(1) ** 2 * 59_000;
    say(`the master stands still for ${Math.round(ms)} ms`);
    life.freeze();
    await this.#pass(ms);
    life.thaw();
    if (this.#happens(0.5)) client.act();
    await this.#pass(this.#upTo(6_000));
  }

  /** The master is busy for seconds, again and again, while a node is dead. */
  async #stallAgainAndAgain(life: Life): Promise<void> {
    const { cluster, say } = this.#options;
    const dead = this.#pick(this.#workers());
    if (!dead) return;
    say(`${dead.name}: cut off, while the master stands still again and again`);
    cluster.network.isolate(dead.address);
    for (let n = 0; n < 12; n++) {
      const ms = 200 + this.#upTo(1_800);
      life.block(ms);
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await this.#pass(ms + this.#upTo(500));
    }
    cluster.network.join(dead.address);
  }

  // ---- The master's disk and its end ----------------------------------------------------------------------------------

  /** The disk refuses for a while; what could not be written then is written soon after. */
  async #disk(): Promise<void> {
    const { cluster, trouble, say } = this.#options;
    const { disk } = cluster;
    if (!(await this.#repair())) return;
    say("the disk refuses");
    await this.#requests(2, 300);
    disk.faults = this.#pick([0.5, 0.9, 1]) ?? 1;
    disk.torn = 0.5;
    if (this.#happens(0.3)) trouble.slowDisk(0.3);
    await this.#requests(3, 1_200);
    for (const machine of this.#workers()) if (this.#happens(0.3)) this.#changeContainers(machine);
    await this.#pass(this.#upTo(1_500));
    say("the disk is well");
    Object.assign(disk, { faults: 0, torn: 0, stalls: 0 });
    if (this.#happens(0.3)) return;
    await this.#expectPrompt("after the disk was well again");
  }

  /** What a master can do at once is done soon, and not only when it looks at everything. */
  async #expectPrompt(since: string): Promise<void> {
    const { rules } = this.#options.cluster;
    await this.#pass(PROMPT_MS / 2);
    const before = rules.undone();
    await this.#pass(PROMPT_MS);
    const after = new Set(rules.undone());
    const left = before.filter((one) => after.has(one));
    if (left.length > 0) this.#options.fail(`${PROMPT_MS} ms ${since}: ${left.join("; ")}`);
  }

  /** The master ends in the middle of what a request causes, and another process goes on. */
  async #crash(): Promise<void> {
    const { cluster, client } = this.#options;
    if (this.#happens(0.4)) return this.#crashOfDelete();
    if (this.#happens(0.7)) cluster.network.latency = [1, 1_500];
    for (let n = 0; n < 3; n++) {
      client.act(this.#happens(0.3) ? "delete" : "put");
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await this.#pass(this.#upTo(25));
      this.#restartMaster();
      // What was just placed is to stop when its node has hardly heard of it.
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      for (let ms = 0; ms < 5_000 && !this.#isAnyConnected(); ms += 20) await this.#pass(20);
      for (let m = 0; m < 3; m++) {
        client.act("delete");
        // oxlint-disable-next-line no-await-in-loop -- one after the other
        await this.#pass(this.#upTo(200));
      }
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await this.#requests(2, 1_500);
    }
    cluster.network.latency = [1, 10];
  }

  /** A job is deleted while a node has no Engine, and the master ends before it has decided what to stop. */
  async #crashOfDelete(): Promise<void> {
    const { cluster, client, say, trouble } = this.#options;
    if (!(await this.#repair())) return;
    for (let n = 0; n < 2; n++) client.act("put");
    await this.#pass(3_000);
    const machine = this.#pick(this.#workers().filter(({ engine }) => engine.containers.length > 0));
    if (!machine) return;
    say(`${machine.name}: engine: down, and the process starts again`);
    machine.engine.goDown({ containersSurvive: true });
    // One that has never seen its containers reports none, so nothing reminds the master of them.
    cluster.kill(machine);
    cluster.start(machine);
    await this.#pass(3_000);
    for (let n = 0; n < 3; n++) client.act("delete");
    await this.#pass(this.#upTo(15));
    this.#restartMaster();
    await this.#expectPrompt("after the master had started");
    machine.engine.comeUp();
    trouble.mend(machine.engine);
  }

  #restartMaster(): void {
    const { cluster, say } = this.#options;
    say("the master is killed and starts at once");
    cluster.kill(cluster.master);
    cluster.start(cluster.master);
  }

  #isAnyConnected(): boolean {
    const { scheduler, master } = this.#options.cluster;
    const own = master.identity.node_id;
    return [...(scheduler?.state.views ?? [])].some(([nodeId, { connected }]) => connected && nodeId !== own);
  }

  // ---- Engines --------------------------------------------------------------------------------------------------------

  /** An Engine loses answers, or acts late, while what it is asked for changes. */
  async #engine(): Promise<void> {
    const { cluster, client, say, trouble } = this.#options;
    const machine = this.#pick(cluster.machines);
    if (!machine) return;
    trouble.late.add(machine.name);
    if (this.#happens(0.5)) {
      say(`${machine.name}: engine: makes containers late`);
      machine.engine.late.set("create", 0.7);
    } else {
      say(`${machine.name}: engine: loses answers and events`);
      machine.engine.faults = { loseRequest: 0.02, loseAnswer: 0.25, lateEffect: 0.2, loseEvent: 0.9 };
    }
    for (let n = 0; n < 3; n++) {
      client.act("put");
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await this.#pass(this.#upTo(20_000));
      // Nobody may be told of it.
      const gone = this.#happens(0.5) ? this.#pick(machine.engine.containers) : undefined;
      if (gone) machine.engine.removeByHand(gone.id);
      if (this.#happens(0.6)) client.act("delete");
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await this.#pass(this.#upTo(5_000));
    }
    if (this.#happens(0.5)) trouble.mend(machine.engine);
  }

  /** A machine loses its data directory, and its process starts before its Engine answers. */
  async #lostData(): Promise<void> {
    const { cluster, say } = this.#options;
    const machine = this.#pick(this.#workers());
    if (!machine) return;
    say(`${machine.name}: engine: down; it loses its data directory and starts`);
    machine.engine.goDown({ containersSurvive: this.#happens(0.7) });
    cluster.loseData(machine);
    cluster.start(machine);
    await this.#pass(this.#upTo(15_000));
    machine.engine.comeUp();
    await this.#pass(this.#upTo(5_000));
  }

  // ---- Steps ----------------------------------------------------------------------------------------------------------

  /** All trouble ends for now; whether the cluster is well soon. */
  async #repair(): Promise<boolean> {
    const { cluster, trouble, say } = this.#options;
    say("all is repaired for now");
    trouble.healAll();
    for (const machine of cluster.machines) cluster.start(machine);
    await this.#pass(CALM_MS);
    const { scheduler } = cluster;
    const views = [...(scheduler?.state.views.values() ?? [])];
    return views.length >= 3 && views.every(({ state }) => state === "ready") && scheduler !== undefined;
  }

  async #requests(most: number, withinMs: number): Promise<void> {
    const { client } = this.#options;
    const count = 1 + Math.floor(this.#upTo(most));
    for (let n = 0; n < count; n++) {
      client.act(this.#pick([undefined, undefined, "put", "delete"] as const));
      // oxlint-disable-next-line no-await-in-loop -- one after the other
      await this.#pass(this.#upTo(withinMs));
    }
  }

  /** Something of a machine's containers is news to the master. */
  #changeContainers({ engine }: Machine): void {
    const container = this.#pick(engine.containers);
    if (container) engine.kill(container.id, 1);
  }

  /** Machines other than the master that run what is never to run twice. */
  #alone(): Machine[] {
    const { cluster } = this.#options;
    const state = cluster.scheduler?.state;
    const ids = [...(state?.allocations.values() ?? [])].flatMap(({ spec_hash, node_id, desired }) =>
      desired === "run" && state?.specs.get(spec_hash)?.stop_when_isolated_ms !== undefined ? [node_id] : [],
    );
    return this.#workers().filter(({ identity }) => ids.includes(identity.node_id));
  }

  #workers(): Machine[] {
    return this.#options.cluster.machines.filter(({ isMaster, process }) => !isMaster && process);
  }

  #pass(ms: number): Promise<void> {
    return this.#options.clock.advance(ms);
  }

  #happens(chance: number): boolean {
    return this.#options.random() < chance;
  }

  #upTo(most: number): number {
    return this.#options.random() * most;
  }

  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.#options.random() * list.length)];
  }
}
