/**
 * @module The cluster of the simulation: machines with a Docker Engine, an identity on disk and a process that comes and goes,
 * built of the real parts as `node.ts` builds them.
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { sleep } from "../src/clock.ts";
import { Executor } from "../src/executor.ts";
import type { Log } from "../src/log.ts";
import { Membership } from "../src/membership.ts";
import { isPassing, type PeerInfo, PROTOCOL_VERSION, type Welcome } from "../src/model.ts";
import { Scheduler } from "../src/scheduler.ts";
import { Session } from "../src/session.ts";
import { LastHeard } from "../src/session_heard.ts";
import { openSqliteStore } from "../src/store.ts";
import { idleMachine, unusedSealer, welcoming } from "./cluster_fixture.ts";
import { scoped, SimEngine } from "./simulation_engine.ts";
import { fetchFrom } from "./simulation_files.ts";
import { SimLinks } from "./simulation_links.ts";
import type { Machine, Process } from "./simulation_machine.ts";
import { simOverlay } from "./simulation_overlay.ts";
import { type Host, Life, SimNetwork } from "./simulation_process.ts";
import { SimPromises } from "./simulation_promises.ts";
import { NODE_TIMEOUT_MS, SimRules } from "./simulation_rules.ts";
import { SimDisk } from "./simulation_store.ts";
import type { VirtualClock } from "./virtual_clock.ts";
import { writeNow } from "./write_now.ts";

const CLUSTER_ID = "cluster";
/** What a master is told of times. */
const TIMINGS = { heartbeatIntervalMs: 1_000, nodeTimeoutMs: NODE_TIMEOUT_MS };
/** SIGTERM: what `node.ts` allows its parts. */
const STOP_TIMEOUT_MS = 1_500;
/** Who runs the process starts it again this long after it gave up. */
const RESTART_DELAY_MS = 3_000;
/** How often the master looks at all services though nothing happened, in which share of runs; in the others as it does by itself. */
const FULL_PASSES = [
  { upTo: 0.5, ms: 1e9 },
  { upTo: 0.75, ms: 2_000 },
] as const;

export type ClusterOptions = {
  clock: VirtualClock;
  /** A source of chance of its own for each part. */
  random: (part: string) => () => number;
  machines: number;
  dir: string;
  log: Log;
};

export class SimCluster {
  readonly machines: Machine[] = [];
  readonly network: SimNetwork;
  /** How many processes were started. */
  starts = 0;
  readonly rules: SimRules;
  readonly promises: SimPromises;
  readonly disk: SimDisk;
  /** Called when the master's process is gone. */
  onMasterGone: () => void = () => {};
  /** How long a machine's process computes at what has just come in, in milliseconds. */
  cost: (machine: Machine) => number = () => 0;
  readonly #options: ClusterOptions;
  readonly #chunkRandom: () => number;
  readonly #fullPassMs: number | undefined;
  #ids = 0;
  #nonces = 0;

  constructor(options: ClusterOptions) {
    this.#options = options;
    const { clock, random } = options;
    this.network = new SimNetwork({ clock, random: random("network") });
    this.#chunkRandom = random("chunks");
    // Mostly nothing helps but what wakes a service; where the safety net is, what is needed no more is collected as well.
    const share = random("passes")();
    this.#fullPassMs = FULL_PASSES.find(({ upTo }) => share < upTo)?.ms;
    const scheduler = () => this.master.process?.scheduler;
    this.rules = new SimRules({ clock, machines: this.machines, scheduler });
    this.promises = new SimPromises({
      clock,
      machines: this.machines,
      scheduler,
      rules: this.rules,
      isQuiet: (machine) => this.network.isQuiet(machine.address),
      isDiskWell: () => this.disk.isWell,
      diskFailures: () => this.disk.failures,
    });
    this.disk = new SimDisk({ random: random("store"), rules: this.rules });
    for (let n = 1; n <= options.machines; n++) this.machines.push(this.#machine(n));
  }

  get master(): Machine {
    const [first] = this.machines;
    if (!first) throw new Error("a cluster has a machine");
    return first;
  }

  /** The master's scheduler while its process answers. */
  get scheduler(): Scheduler | undefined {
    const process = this.master.process;
    return process?.life.isFrozen ? undefined : process?.scheduler;
  }

  /** Grows with every change of what there is and runs on the machines. */
  get changes(): number {
    let sum = 0;
    for (const { engine } of this.machines) sum += engine.changes;
    return sum;
  }

  // ---- Processes ------------------------------------------------------------------------------------------------------

  start(machine: Machine): void {
    if (machine.process) return;
    this.touch(machine);
    const { random, log } = this.#options;
    const { name, address, identity } = machine;
    const life = new Life(this.#options.clock, { aheadMs: machine.aheadMs });
    life.cost = () => this.cost(machine);
    life.onStall = () => this.touch(machine);
    const { clock } = life;
    const instance = `${name}-${++this.starts}`;
    const common = { clock, random: random(name), log: log.with({ node: name }) };
    const host: Host = {
      life,
      peerInfo: () => peerInfo(machine),
      session: () => {
        const { membership, links } = process;
        return membership && links && ((channel) => links.accept(membership, channel));
      },
    };
    const seen = simOverlay({ ...common, dataDir: machine.dataDir, onChange: () => process.session.notify() });
    const { overlay } = seen;
    const { boot, dataDir } = machine;
    const bootTime = () => ({ boot: `boot ${boot}`, ms: Math.floor(this.#options.clock.now()) });
    const heard = new LastHeard({ dataDir, clock, log: common.log, bootTime, write: writeNow });
    const executor = new Executor({
      ...common,
      engine: scoped(machine.engine, life, () => machine.ghost === process),
      meter: { read: () => idleMachine(), routes: () => [] },
      dataDir: machine.dataDir,
      seenTerm: identity.seen_term,
      fetchChunk: (chunkHash) => life.of(this.#fetchChunk(machine, chunkHash)),
      overlay,
      isolatedSince: (isTold) => heard.since({ isOpen: process.session.lost !== undefined, isTold }),
      onChange: () => {
        const snapshot = executor.snapshot();
        if (snapshot) overlay.setLocal(snapshot.allocations);
        process.session.notify();
      },
    });
    if (identity.cluster_id !== undefined) {
      executor.adopt({ clusterId: identity.cluster_id, nodeId: identity.node_id });
    }
    const session = new Session({
      ...common,
      transport: this.network.transport(address, host),
      executor: {
        assign: (assignments) => {
          const outcome = executor.assign(assignments);
          if (outcome === "accepted") heard.take(assignments);
          this.rules.assigned(machine, { order: assignments.order, outcome, process });
          return outcome;
        },
        snapshot: () => {
          const snapshot = executor.snapshot();
          if (machine.engine.conflicts.size > 0) this.rules.checkStatuses(name, snapshot?.allocations ?? []);
          return snapshot;
        },
        heartbeat: () => {
          const report = overlay.report();
          return { ...executor.heartbeat(), ...(report && { overlay: report }) };
        },
      },
      onNetwork: (message) => overlay.receive(message),
      hello: () => ({
        type: "hello",
        protocol: PROTOCOL_VERSION,
        ...(identity.cluster_id === undefined ? {} : { cluster_id: identity.cluster_id }),
        node_id: identity.node_id,
        instance,
        nonce: `${instance} ${++this.#nonces}`,
        node_name: name,
        address,
        underlay: hostOf(address),
        labels: [],
        engine: executor.engineStatus(),
        version: "0.0.0",
      }),
      trust: () => ({ clusterKey: identity.cluster_key, seenTerm: identity.seen_term }),
      addresses: () => [this.master.address, ...identity.peers.map((peer) => peer.address)],
      onWelcome: (welcome) => {
        process.welcomedAt = clock.now();
        if (machine.process === process) this.rules.welcomed(machine, welcome.term);
        welcomed(machine, { welcome, executor });
      },
      onLeft: () => this.#forgetCluster(machine),
      onLost: () => executor.noticeMaster(),
      onHeard: (at) => heard.note(at),
      onPeers: (peers) => void (identity.peers = peers),
      onRefused: ({ code, message }) => {
        if (!isPassing(code)) this.#fail(machine, message);
      },
    });
    const process: Process = { life, host, executor, session, heard, overlay: seen };
    machine.process = process;
    this.network.listen(address, host);
    // First of all, as in `node.ts`: what is past its deadline goes before anybody was reached.
    const begun = executor.start();
    const led = machine.isMaster ? this.#startMaster(machine, process) : Promise.resolve();
    void led.then(() => begun).then(() => session.start(identity.master));
  }

  /** A piece of a file, as the master's API gives it to its nodes. */
  async #fetchChunk(machine: Machine, chunkHash: string): Promise<Uint8Array> {
    const { clock } = this.#options;
    return fetchFrom(this.master, { to: machine, chunkHash, network: this.network, clock, random: this.#chunkRandom });
  }

  async #startMaster(machine: Machine, process: Process): Promise<void> {
    const { random, log } = this.#options;
    const { life } = process;
    const common = { clock: life.clock, log: log.with({ node: machine.name }) };
    process.store = openSqliteStore(join(machine.dataDir, "cluster.db"));
    const scheduler = new Scheduler({
      ...common,
      store: this.disk.store(process.store, { life, isOld: () => machine.process !== process }),
      random: random("scheduler"),
      sealer: unusedSealer,
      newId: () => `id${++this.#ids}`,
      onFenced: () => this.#fenced(machine, process),
      ...(this.#fullPassMs !== undefined && { fullPassMs: this.#fullPassMs }),
    });
    try {
      const fresh = {
        cluster_id: CLUSTER_ID,
        created_at: 1,
        network_mode: "vxlan" as const,
        network_cidr: "10.213.0.0/16",
      };
      await scheduler.start(fresh, { seenTerm: machine.identity.seen_term });
    } catch (error) {
      return this.#fail(machine, error);
    }
    process.scheduler = scheduler;
    process.membership = new Membership({
      ...common,
      scheduler,
      self: { node_id: machine.identity.node_id, address: machine.address },
      ...TIMINGS,
      ...welcoming(),
    });
    const { allocations, violations } = this.rules;
    process.links = new SimLinks({
      state: scheduler.state,
      allocations,
      violate: (what) => void (machine.process === process && violations.push(what)),
      onHeard: (nodeId) => void (machine.process === process && this.rules.heard(nodeId)),
    });
    process.membership.start();
    this.rules.listens(life);
  }

  /** The process gives up and is started again, as its service manager would. */
  #fail(machine: Machine, error: unknown): void {
    this.#options.log.warn("a process gave up", { node: machine.name, error });
    this.kill(machine);
    this.#options.clock.after(RESTART_DELAY_MS, () => this.start(machine));
  }

  /** Another master has taken over: this process must end, and it must have been an old one. */
  #fenced(machine: Machine, process: Process): void {
    if (machine.ghost === process) this.#endGhost(machine);
    else if (machine.process === process) this.rules.violations.push("the only master was fenced");
  }

  /**
   * The master's process stands still, as in a virtual machine that is paused, while a copy of its machine that has the same disk and
   * the same Engine takes over. It knows nothing of that when it goes on, and its Engine is out of its reach.
   */
  replaceMaster(): void {
    const machine = this.master;
    const { process } = machine;
    if (!process || process.life.isFrozen) return;
    this.#endGhost(machine);
    this.touch(machine);
    process.life.freeze();
    this.disk.forgetTorn();
    machine.ghost = process;
    machine.process = undefined;
    this.onMasterGone();
    this.start(machine);
  }

  /** The old master goes on, if there is one. */
  thawGhost(): boolean {
    const { ghost } = this.master;
    if (!ghost?.life.isFrozen) return false;
    ghost.life.thaw();
    return true;
  }

  /** Who dials the master's address reaches the old one from now on, as where two machines have one address. */
  giveAddressToGhost(): boolean {
    const { ghost, address } = this.master;
    if (!ghost || ghost.life.ended.aborted) return false;
    this.network.listen(address, ghost.host);
    return true;
  }

  giveAddressBack(): void {
    const { process, address } = this.master;
    if (process) this.network.listen(address, process.host);
  }

  #endGhost(machine: Machine): void {
    const { ghost } = machine;
    if (!ghost) return;
    machine.ghost = undefined;
    if (this.network.hostAt(machine.address) === ghost.host) this.giveAddressBack();
    ghost.life.kill();
    void ghost.store?.close();
    this.network.ended(machine.address, { life: ghost.life, goodbye: true });
  }

  /** No process is left of those that another one has taken over from. */
  endGhosts(): void {
    for (const machine of this.machines) this.#endGhost(machine);
  }

  /** kill -9, or with `goodbye` false the whole machine's network at once: nobody hears of the end. */
  kill(machine: Machine, { goodbye = true } = {}): void {
    const { process } = machine;
    if (!process) return;
    this.touch(machine);
    process.life.kill();
    machine.process = undefined;
    this.network.ended(machine.address, { life: process.life, goodbye });
    if (process.store) this.disk.close(process.store);
    if (machine.isMaster) this.onMasterGone();
  }

  /** SIGTERM. */
  async stop(machine: Machine): Promise<void> {
    const { process } = machine;
    if (!process || process.life.isFrozen) return;
    const parts = async () => {
      await process.session.stop();
      process.membership?.stop();
      await process.executor.stop();
      await process.overlay.overlay.stop();
      await process.scheduler?.stop();
    };
    await Promise.race([parts(), sleep(this.#options.clock, STOP_TIMEOUT_MS)]);
    if (machine.process === process) this.kill(machine);
  }

  /** Its process or its Engine is not as it was. */
  touch(machine: Machine): void {
    machine.touchedAt = this.#options.clock.now();
  }

  /** The node has left: its process ends, and the next one joins anew. */
  #forgetCluster(machine: Machine): void {
    machine.identity = { node_id: machine.identity.node_id, seen_term: 0, peers: [] };
    void this.stop(machine);
  }

  /** The machine's disk was replaced; its Docker Engine is as it was. */
  loseData(machine: Machine): void {
    this.kill(machine);
    machine.hasLostData = true;
    rmSync(machine.dataDir, { recursive: true });
    mkdirSync(machine.dataDir);
    machine.identity = { node_id: `id${++this.#ids}`, seen_term: 0, peers: [] };
  }

  #machine(n: number): Machine {
    const { clock, random, dir } = this.#options;
    const name = `node${n}`;
    const dataDir = join(dir, name);
    mkdirSync(dataDir);
    const isMaster = n === 1;
    return {
      name,
      address: `10.0.0.${n}:9000`,
      isMaster,
      dataDir,
      engine: new SimEngine({
        // Docker's times come in whole milliseconds.
        clock: { now: () => Math.floor(clock.now()), after: (ms, fn) => clock.after(ms, fn) },
        random: random(`engine ${name}`),
        engineId: `engine${n}`,
        onEnd: (allocationId, how, stranded) => {
          this.rules.checkEnd(name, { allocationId, how, stranded });
          if (how === "stop") this.promises.checkNames(name, allocationId);
        },
        onVolumeRemoval: (jobId) => {
          this.rules.checkVolumeRemoval(name, jobId);
          this.promises.checkVolume(name, jobId);
        },
        onRun: (container) => this.promises.checkRun(name, container),
      }),
      identity: { ...(isMaster ? { cluster_id: CLUSTER_ID } : {}), node_id: name, seen_term: 0, peers: [] },
      ids: new Set(isMaster ? [name] : []),
      process: undefined,
      ghost: undefined,
      hasLostData: false,
      aheadMs: 0,
      boot: 1,
      touchedAt: 0,
    };
  }
}

function hostOf(address: string): string {
  return address.slice(0, address.lastIndexOf(":"));
}

function peerInfo({ identity, address, isMaster, process }: Machine): PeerInfo {
  const { cluster_id, node_id, peers } = identity;
  const master = isMaster ? { node_id, address } : (process?.session.master ?? identity.master);
  return {
    ...(cluster_id === undefined ? {} : { cluster_id }),
    node_id,
    protocol: PROTOCOL_VERSION,
    version: "0.0.0",
    ...(master ? { master } : {}),
    peers,
  };
}

function welcomed({ identity, ids }: Machine, { welcome, executor }: { welcome: Welcome; executor: Executor }): void {
  const { cluster_id, node_id, cluster_key, term, master, peers } = welcome;
  const seen_term = Math.max(term, identity.seen_term);
  Object.assign(identity, { cluster_id, node_id, cluster_key, master, peers, seen_term });
  ids.add(node_id);
  executor.adopt({ clusterId: cluster_id, nodeId: node_id });
  executor.noticeMaster();
}
