/** @module What goes wrong in the simulation, one thing at a time, and how it is repaired. */
import { existsSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { SimCluster } from "./simulation_cluster.ts";
import type { Machine } from "./simulation_machine.ts";
import type { VirtualClock } from "./virtual_clock.ts";

export type TroubleOptions = {
  cluster: SimCluster;
  clock: VirtualClock;
  random: () => number;
  say: (line: string) => void;
};

const HOUR_MS = 3_600_000;

export class SimTrouble {
  /** Machines whose Engine may still do what it was asked for before, such as making a volume of a job that is gone by then. */
  readonly late = new Set<string>();
  #busyShare = 0;
  readonly #cluster: SimCluster;
  readonly #clock: VirtualClock;
  readonly #random: () => number;
  readonly #say: (line: string) => void;

  constructor({ cluster, clock, random, say }: TroubleOptions) {
    this.#cluster = cluster;
    this.#clock = clock;
    this.#random = random;
    this.#say = say;
    cluster.rules.lateOn = (name) => this.late.has(name);
    cluster.cost = (machine) => this.#cost(machine);
  }

  /** One thing that goes wrong, or is repaired. */
  happen(): void {
    const does = this.#pick(TROUBLES);
    const { machines, network } = this.#cluster;
    const isOff = ({ process }: Machine) => does === "start" && !process;
    const isFrozen = ({ process }: Machine) => does === "thaw" && process?.life.isFrozen === true;
    const toRepair = machines.filter((one) => isOff(one) || isFrozen(one));
    // The master has twice its share: the most depends on it.
    const machine = this.#pick(toRepair) ?? this.#pick([this.#cluster.master, ...machines]);
    const { engine, name, process } = machine;
    if (NOT_OF_MACHINES.every((one) => one !== does)) this.#cluster.touch(machine);
    switch (does) {
      case "start":
        if (!process) this.#say(`${name}: starts`);
        return this.#cluster.start(machine);
      case "kill":
        this.#say(`${name}: kill -9`);
        return this.#cluster.kill(machine);
      case "power":
        this.#say(`${name}: power cut`);
        this.#cluster.kill(machine, { goodbye: false });
        machine.boot++;
        this.tearFiles(machine);
        return engine.goDown();
      case "terminate":
        this.#say(`${name}: SIGTERM`);
        return void this.#cluster.stop(machine);
      case "freeze":
        this.#say(`${name}: freezes`);
        return process?.life.freeze();
      case "thaw":
        return process?.life.thaw();
      case "isolate":
        this.#say(`${name}: cut off`);
        return network.isolate(machine.address);
      case "mute":
        this.#say(`${name}: nothing that it sends gets through`);
        return network.cutOneWay(machine.address, "from");
      case "deafen":
        this.#say(`${name}: nothing that is sent to it gets through`);
        return network.cutOneWay(machine.address, "to");
      case "join":
        if (network.isCutOff(machine.address)) this.#say(`${name}: joined with the others again`);
        return network.join(machine.address);
      case "break":
        this.#say(`${name}: connections break`);
        return network.breakConnections(machine.address);
      case "slow network":
        network.latency = this.#random() < 0.6 ? [1, 10] : [1, 1_500];
        return;
      case "stall":
        this.#say(`${name}: its connections stall`);
        return this.stallConnections(machine);
      case "full disk":
        this.#cluster.disk.faults = this.#random() < 0.6 ? 0 : 0.5;
        this.#cluster.disk.torn = 0.5;
        return;
      case "slow disk":
        return this.slowDisk(this.#random() < 0.6 ? 0 : 0.2);
      case "busy":
        return this.beBusy(this.#random() < 0.5 ? 0 : 0.01);
      default:
        return this.#engineTrouble(machine, does);
    }
  }

  #engineTrouble(machine: Machine, does: EngineTrouble): void {
    const { engine, name } = machine;
    this.#say(`${name}: engine: ${does}`);
    switch (does) {
      case "down":
        return engine.goDown({ containersSurvive: this.#random() < 0.3 });
      case "up":
        return engine.comeUp();
      case "restart":
        return this.#restart(machine);
      case "hang":
        return engine.freeze();
      case "faults":
        this.late.add(name);
        engine.faults = { loseRequest: 0.05, loseAnswer: 0.05, lateEffect: 0.05, loseEvent: 0.5 };
        return;
      case "well":
        return this.mend(engine);
      case "slow":
        engine.latency = [10, 400];
        return;
      case "container dies": {
        const container = this.#pick(engine.containers);
        if (!container) return;
        if (this.#random() < 0.7) engine.kill(container.id);
        else engine.removeByHand(container.id);
        return;
      }
      case "health": {
        const container = this.#pick(engine.containers.filter((one) => one.health !== undefined));
        if (container) engine.setHealth(container.id, this.#pick(["healthy", "unhealthy", "unhealthy"]));
        return;
      }
      case "clock":
        // What runs goes on by its own count; what starts from now on reads this clock.
        engine.clockAheadMs = machine.aheadMs = this.#pick([-HOUR_MS, 0, HOUR_MS]);
        this.#say(`${name}: its wall clock is ${engine.clockAheadMs / 1000} s ahead`);
        return;
      case "registry":
        engine.registry.set("pulled:1", this.#random() < 0.5 ? "found" : "unreachable");
    }
  }

  /** dockerd is started anew, by live-restore with its containers; some of them end while nobody looks. */
  #restart(machine: Machine): void {
    const { engine } = machine;
    engine.goDown({ containersSurvive: true });
    const backMs = 500 + this.#random() * 5_000;
    for (const { id } of engine.containers) {
      if (this.#random() < 0.3) this.#clock.after(this.#random() * backMs, () => engine.kill(id, 1));
    }
    this.#clock.after(backMs, () => {
      this.#cluster.touch(machine);
      engine.comeUp();
    });
  }

  // ---- What scenes use, too -------------------------------------------------------------------------------------------

  /** Nothing gets through in a machine's present connections for a while, and what was on its way arrives after what comes later. */
  stallConnections({ address }: Machine): void {
    this.#cluster.network.lingering = 0.7;
    this.#cluster.network.stallConnections(address, 500 + this.#random() * 15_000);
  }

  /** So many of the commits take seconds. */
  slowDisk(share: number): void {
    this.#cluster.disk.stalls = share;
    this.#cluster.disk.isBlocking = this.#random() < 0.5;
    if (share > 0)
      this.#say(`the disk is slow${this.#cluster.disk.isBlocking ? " and whoever waits for it stands still" : ""}`);
  }

  /** So often what comes in takes a process 10 ms to 2 s. */
  beBusy(share: number): void {
    this.#busyShare = share;
    if (share > 0) this.#say("processes are busy");
  }

  /** What was written and not synced when the power went is not there, in part or at all. */
  tearFiles(machine: Machine): void {
    for (const name of ["restarts.json", "restarts.json.new", "images.json", "images.json.new", "heard.json"]) {
      const path = join(machine.dataDir, name);
      const dice = this.#random();
      if (dice < 0.4) continue;
      if (name === "restarts.json") machine.hasLostData = true;
      if (dice < 0.5) writeFileSync(path, '[["id1",{"restarts":');
      else if (!existsSync(path)) continue;
      else if (dice < 0.6) rmSync(path);
      else truncateSync(path, dice < 0.8 ? 0 : Math.floor(this.#random() * statSync(path).size));
    }
  }

  /** Everything is as it should be, but for what runs and what does not. */
  healAll(): void {
    const { disk, network, machines } = this.#cluster;
    Object.assign(disk, { faults: 0, torn: 0, stalls: 0 });
    Object.assign(network, { latency: [1, 10], lingering: 0 });
    this.#busyShare = 0;
    this.#cluster.endGhosts();
    for (const machine of machines) {
      network.join(machine.address);
      machine.process?.life.thaw();
      machine.engine.comeUp();
      this.mend(machine.engine);
      machine.engine.registry.set("pulled:1", "found");
    }
  }

  #cost({ isMaster }: Machine): number {
    if (this.#busyShare === 0 || this.#random() >= this.#busyShare) return 0;
    // A node's margin is two seconds, and it has other things to do in that time.
    return 10 + this.#random() ** 2 * (isMaster ? 1_990 : 290);
  }

  mend(engine: Machine["engine"]): void {
    engine.faults = { loseRequest: 0, loseAnswer: 0, lateEffect: 0, loseEvent: 0 };
    engine.late.clear();
    engine.latency = [1, 5];
  }

  #pick<T>(list: readonly [T, ...T[]]): T;
  #pick<T>(list: readonly T[]): T | undefined;
  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.#random() * list.length)];
  }
}

/** Troubles that leave processes and Engines as they are. */
const NOT_OF_MACHINES: readonly (typeof TROUBLES)[number][] = [
  ...(["isolate", "mute", "deafen", "join", "break", "stall", "slow network"] as const),
  ...(["full disk", "slow disk", "busy"] as const),
  ...(["container dies", "health", "clock", "registry"] as const),
];
const ENGINE_TROUBLES = [
  ...(["down", "up", "restart", "hang", "faults", "well", "slow"] as const),
  ...(["container dies", "health", "clock", "registry"] as const),
] as const;
type EngineTrouble = (typeof ENGINE_TROUBLES)[number];
/** What is named more often is that much more likely: most of the time, most of the cluster should be able to work. */
const TROUBLES = [
  ...(["start", "start", "start", "start", "start", "start", "kill", "power", "terminate"] as const),
  ...(["freeze", "thaw", "thaw", "thaw", "isolate", "mute", "deafen"] as const),
  ...(["join", "join", "join", "join", "join"] as const),
  ...(["break", "break", "stall", "slow network", "full disk", "slow disk", "busy"] as const),
  ...ENGINE_TROUBLES,
  ...(["up", "up", "up", "well", "well", "well", "container dies", "container dies", "health"] as const),
] as const;
