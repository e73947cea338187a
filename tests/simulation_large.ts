/**
 * @module A large cluster in virtual time: the real Scheduler and Membership with a SQLite store in memory, and any number of
 * nodes that only speak as nodes do: hello, heartbeats, statuses; what they are assigned is reported as running a while later.
 * For questions of time and number, of which `simulation.ts` asks none: how soon the replicas of a lost node run elsewhere, and
 * whether nodes that are well are ever taken for lost.
 */
import { type Log, silentLog } from "../src/log.ts";
import { Membership } from "../src/membership.ts";
import type { AllocationStatus, Assignments, EngineStatus, MasterMessage, NodeMessage } from "../src/model.ts";
import { PROTOCOL_VERSION } from "../src/model.ts";
import { Scheduler } from "../src/scheduler.ts";
import { openSqliteStore } from "../src/store.ts";
import { idleMachine, rules, spec, unusedSealer, welcoming } from "./cluster_fixture.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

/** Milliseconds from the least to the most that something takes. */
type Span = readonly [number, number];

export type LargeOptions = {
  nodes: number;
  seed: number;
  heartbeatIntervalMs: number;
  nodeTimeoutMs: number;
  /** What a message takes each way; none overtakes another on its way. */
  networkMs?: Span;
};

/** From a node's first word of an allocation until its container runs. */
const START_MS: Span = [200, 800];
/** Heartbeats come this much earlier or later than is due. */
const JITTER = 0.1;
const NETWORK_MS: Span = [1, 50];
/** How exactly times are taken. */
const LOOK_MS = 20;
/** 10 s. */
const JOIN_LOOKS = 500;
/** Nodes join so many milliseconds apart. */
const JOIN_MS = 5;
const BEGIN = 1_700_000_000_000;
/** Blocks for 4096 nodes. */
const NETWORK_CIDR = "10.208.0.0/12";

export class LargeCluster {
  readonly clock = new VirtualClock(BEGIN, { promisesOnly: true });
  readonly nodes: LightNode[] = [];
  readonly scheduler: Scheduler;
  /** What the log told of nodes that are not ready. */
  readonly alarms: { at: number; node: unknown; state: unknown; reason: unknown }[] = [];
  readonly #membership: Membership;
  readonly #network: { spanMs: Span };
  #ids = 0;

  constructor(options: LargeOptions) {
    const { seed, nodes, networkMs = NETWORK_MS, heartbeatIntervalMs, nodeTimeoutMs } = options;
    this.#network = { spanMs: networkMs };
    const log = this.#log();
    this.scheduler = new Scheduler({
      clock: this.clock,
      log,
      store: openSqliteStore(":memory:"),
      random: seededRandom(seed),
      sealer: unusedSealer,
      newId: () => `id${++this.#ids}`,
      onFenced: () => {},
    });
    this.#membership = new Membership({
      clock: this.clock,
      log,
      scheduler: this.scheduler,
      self: { node_id: nodeName(1), address: "10.0.0.1:9000" },
      heartbeatIntervalMs,
      nodeTimeoutMs,
      ...welcoming(),
    });
    for (let n = 1; n <= nodes; n++) {
      this.nodes.push(
        new LightNode({
          name: nodeName(n),
          clock: this.clock,
          random: seededRandom(seed * 10_007 + n),
          network: this.#network,
          membership: this.#membership,
        }),
      );
    }
  }

  /** Starts the master and all nodes; resolves when they are ready. */
  async start(): Promise<void> {
    await this.scheduler.start({
      cluster_id: "cluster",
      created_at: 1,
      network_mode: "vxlan",
      network_cidr: NETWORK_CIDR,
    });
    this.#membership.start();
    for (const node of this.nodes) {
      node.connect();
      // oxlint-disable-next-line no-await-in-loop -- they come one after the other
      await this.clock.advance(JOIN_MS);
    }
    const { views } = this.scheduler.state;
    const isReady = () => this.nodes.every(({ name }) => views.get(name)?.state === "ready");
    // oxlint-disable-next-line no-await-in-loop -- a condition is waited for
    for (let looks = 0; !isReady() && looks < JOIN_LOOKS; looks++) await this.clock.advance(LOOK_MS);
    if (!isReady()) throw new Error("the nodes did not become ready");
    this.alarms.length = 0;
  }

  /** Nothing happens for so long but heartbeats, which take their time; returns what the process spent for each second of that. */
  async pass(ms: number, networkMs: Span): Promise<{ cpuMs: number }> {
    const before = this.#network.spanMs;
    this.#network.spanMs = networkMs;
    const used = process.cpuUsage();
    await this.clock.advance(ms);
    const { user, system } = process.cpuUsage(used);
    this.#network.spanMs = before;
    return { cpuMs: (user + system) / ms };
  }

  /** Has `jobs` jobs with `scale` replicas each run; resolves when they do. */
  async run({ jobs, scale }: { jobs: number; scale: number }): Promise<void> {
    const answers: Promise<unknown>[] = [];
    for (let n = 1; n <= jobs; n++) {
      const one = spec({ reservations: { cpus: 0.001 } });
      const wanted = { document: "{}", services: [{ service_name: "web", spec: one, rules: rules(), scale }] };
      answers.push(this.scheduler.putJob(`job${n}`, { wanted, preconditions: {} }));
    }
    await Promise.all([...answers, this.#runs(jobs * scale, 60_000)]);
  }

  /**
   * The node falls silent, its connections stay: a cut link. Returns how many milliseconds pass until replacements of all that
   * it ran are known to run elsewhere.
   */
  async timeToReplace(node: LightNode, limitMs: number): Promise<number> {
    const wanted = this.#running().length;
    const begin = this.clock.now();
    node.cut();
    await this.#runs(wanted, limitMs, node.name);
    return this.clock.now() - begin;
  }

  /** Ids of the replicas that are to run, and are known to, apart from those on node `without`. */
  #running(without?: string): string[] {
    const { allocations, views } = this.scheduler.state;
    const running: string[] = [];
    for (const { allocation_id: id, desired, node_id } of allocations.values()) {
      const isUp = views.get(node_id)?.statuses.get(id)?.state === "running";
      if (desired === "run" && isUp && node_id !== without) running.push(id);
    }
    return running;
  }

  async #runs(count: number, limitMs: number, without?: string): Promise<void> {
    const end = this.clock.now() + limitMs;
    for (let now = 0; this.#running(without).length < count; now = this.clock.now()) {
      if (now > end) throw new Error(`${this.#running(without).length} of ${count} replicas run after ${limitMs} ms`);
      // oxlint-disable-next-line no-await-in-loop -- a condition is waited for
      await this.clock.advance(LOOK_MS);
    }
  }

  #log(): Log {
    const warn: Log["warn"] = (message, fields = {}) => {
      if (message !== "a node is not ready") return;
      const { node, state, reason } = fields;
      this.alarms.push({ at: this.clock.now() - BEGIN, node, state, reason });
    };
    return { ...silentLog, warn, with: () => this.#log() };
  }
}

type NodeOptions = { clock: VirtualClock; random: () => number; network: { spanMs: Span }; membership: Membership };

/** A node that has no containers, and no doubts. */
export class LightNode {
  readonly name: string;
  readonly #options: NodeOptions;
  readonly #engine: EngineStatus;
  #up: { onMessage: (text: string) => void } | undefined;
  /** When the last message of each way arrives. */
  #arrivals = { up: 0, down: 0 };
  #isCut = false;
  #sequence = 0;
  #intervalMs = 0;
  readonly #reported = new Set<string>();
  #known: Pick<Assignments, "order" | "allocations"> | undefined;
  /** All of a heartbeat but its number: written once, for what it costs a node is not the question here. */
  readonly #heartbeat: string;

  constructor({ name, ...options }: { name: string } & NodeOptions) {
    this.name = name;
    this.#options = options;
    this.#engine = {
      state: "ready",
      engine_id: `engine ${name}`,
      docker_version: "20.10.24",
      api_version: "1.41",
      platform: { os: "linux", arch: "amd64" },
    };
    const overlay = { mode: "none", networks: [], blocks: 1, full: false };
    const about = { engine: this.#engine, resources: idleMachine(), volumes: [], networks: [], overlay, foreign: [] };
    this.#heartbeat = JSON.stringify(about).slice(1);
  }

  /** Dials the master and says hello. */
  connect(): void {
    const { name } = this;
    this.#up = this.#options.membership.accept({
      send: (text) => this.#travel("down", () => this.#hear(text)),
      close: () => (this.#up = undefined),
    });
    this.#say({
      type: "hello",
      protocol: PROTOCOL_VERSION,
      node_id: name,
      instance: name,
      node_name: name,
      address: `${name}:9000`,
      labels: [],
      engine: this.#engine,
      version: "0.0.0",
    });
  }

  /** From here on nothing gets out, and nothing in; nobody is told. */
  cut(): void {
    this.#isCut = true;
  }

  #hear(text: string): void {
    // What a node makes of all else is not the question here.
    if (!/^{"type":"(welcome|assignments)"/.test(text)) return;
    const message = JSON.parse(text) as MasterMessage;
    if (message.type === "welcome") {
      this.#intervalMs = message.heartbeat_interval_ms;
      this.#report({ full: true, ids: [] });
      this.#beat();
    } else if (message.type === "assignments") this.#assigned(message);
  }

  #beat(): void {
    if (this.#isCut) return;
    this.#send(`{"type":"heartbeat","sequence":${++this.#sequence},${this.#heartbeat}`);
    const { clock, random } = this.#options;
    clock.after(this.#intervalMs * (1 + JITTER * (2 * random() - 1)), () => this.#beat());
  }

  #assigned({ order, allocations }: Assignments): void {
    this.#known = { order, allocations };
    const now = new Set(allocations.map(({ allocation_id }) => allocation_id));
    const gone = [...this.#reported].filter((id) => !now.has(id));
    for (const id of gone) this.#reported.delete(id);
    this.#report({ full: false, ids: [], gone });
    for (const id of now) {
      if (this.#reported.has(id)) continue;
      this.#reported.add(id);
      this.#options.clock.after(this.#within(START_MS), () => {
        if (this.#reported.has(id)) this.#report({ full: false, ids: [id] });
      });
    }
  }

  #report({ full, ids, gone = [] }: { full: boolean; ids: string[]; gone?: string[] }): void {
    const started_at = Math.floor(this.#options.clock.now());
    const statuses = ids.map((allocation_id): AllocationStatus => {
      return { allocation_id, state: "running", final: false, ports: [], restarts: 0, started_at };
    });
    const applied = this.#known && { applied: this.#known.order };
    this.#say({ type: "status", full, ...applied, allocations: statuses, gone, removals_done: [] });
  }

  #say(message: NodeMessage): void {
    this.#send(JSON.stringify(message));
  }

  #send(text: string): void {
    this.#travel("up", () => this.#up?.onMessage(text));
  }

  #travel(way: "up" | "down", arrive: () => void): void {
    const { clock, network } = this.#options;
    const at = Math.max(this.#arrivals[way], clock.now() + this.#within(network.spanMs));
    this.#arrivals[way] = at;
    clock.after(at - clock.now(), () => {
      if (!this.#isCut) arrive();
    });
  }

  #within([least, most]: Span): number {
    return least + this.#options.random() * (most - least);
  }
}

function nodeName(n: number): string {
  return `n${String(n).padStart(4, "0")}`;
}
