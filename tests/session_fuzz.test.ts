/**
 * @module Rogue nodes at a real master, and a rogue master at a node: whatever they say, nobody else is harmed. The seed is printed;
 * `SEED=N` runs one again, `SESSIONS=N` takes longer.
 */
import { Database } from "bun:sqlite";
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { LocalNetwork } from "../src/executor_networks.ts";
import { silentLog } from "../src/log.ts";
import { type MasterMessage, RECORD_KINDS, type RecordKind } from "../src/model.ts";
import type { NetworkMessage } from "../src/model_network.ts";
import { Overlay } from "../src/overlay.ts";
import { overlayChanges, type OverlayStep, planOverlay } from "../src/overlay_plan.ts";
import { MasterMessages } from "../src/session_messages.ts";
import { contains, isSubnet } from "../src/subnet.ts";
import * as v from "valibot";
import { noEntries } from "./cluster_fixture.ts";
import { bareKernel } from "./overlay_model.ts";
import { heartbeatOf, helloOf, HOSTILE_TEXTS, mutated, noMessage, pick, type Random, statusOf } from "./rogue_words.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";
import { waitUntil } from "./wait.ts";

const SEED = Number(process.env["SEED"] ?? Math.floor(Math.random() * 1e9));
const SESSIONS = Number(process.env["SESSIONS"] ?? 150);
/** Messages of a rogue master, each seed its own. */
const MASTER_MESSAGES = 4_000;
/** Far above any record of these tests, far below what the rogues send. */
const MAX_RECORD_CHARS = 64 * 1024;
/** The master's own node, two honest ones, and what a bucket of 100 that gets 10 a second lets in at most. */
const mostNodes = (seconds: number) => 103 + 10 * Math.ceil(seconds);

const root = mkdtempSync(join(tmpdir(), "session-fuzz-"));
const cleanups: (() => Promise<unknown>)[] = [];
afterAll(async () => {
  for (const cleanup of cleanups) await cleanup();
  rmSync(root, { recursive: true, force: true });
});

// ---- Rogue nodes -------------------------------------------------------------------------------------------------------

/** A master in a process of its own, without a Docker Engine. */
function startMaster(dataDir: string, port: number) {
  const program = [process.execPath, join(import.meta.dir, "../src/main.ts")];
  const where = ["--bind-addr", `127.0.0.1:${port}`, "--data-dir", dataDir, "--network", "none"];
  const without = ["--docker-host", `unix://${dataDir}/no-docker.sock`, "--log-level", "warn", "--log-format", "json"];
  const child = Bun.spawn([...program, "bootstrap", ...where, ...without], {
    stdout: "ignore",
    stderr: "pipe",
    env: { ...process.env, BUN_BE_BUN: "1" },
  });
  const log = new Response(child.stderr).text();
  cleanups.push(async () => {
    child.kill("SIGKILL");
    await child.exited;
  });
  return { child, log };
}

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const { port = 0 } = server;
  void server.stop(true);
  return port;
}

/** An honest node over a real connection, which reports that all it is assigned runs. */
class Honest {
  readonly id: string;
  readonly heard: MasterMessage[] = [];
  readonly #socket: WebSocket;
  readonly #timer: ReturnType<typeof setInterval>;
  #sequence = 0;
  isClosed = false;

  constructor(id: string, address: string) {
    this.id = id;
    this.#socket = new WebSocket(`ws://${address}/internal/session`);
    this.#socket.onopen = () =>
      this.#say(helloOf(id, { instance: `honest ${id}`.replace(" ", "-"), labels: [["honest", id]] }));
    this.#socket.onclose = () => (this.isClosed = true);
    this.#socket.onmessage = ({ data }) => this.#hear(JSON.parse(String(data)) as MasterMessage);
    this.#timer = setInterval(() => this.#beat(), 400);
  }

  get network(): NetworkMessage | undefined {
    return this.heard.findLast((message) => message.type === "network");
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#socket.terminate();
  }

  #hear(message: MasterMessage): void {
    this.heard.push(message);
    if (message.type === "welcome") this.#beat();
    if (message.type === "welcome" || message.type === "assignments") this.#report();
  }

  #beat(): void {
    if (!this.heard.some(({ type }) => type === "welcome")) return;
    const block = this.network?.self.subnets[0];
    const networks = block === undefined ? [] : [{ network: "shop_default", subnet: block.replace(/0\/24$/, "64/26") }];
    const overlay = { mode: "vxlan", blocks: 1, full: false, networks };
    this.#say(heartbeatOf(this.id, { ...(block !== undefined && { overlay }), sequence: ++this.#sequence }));
  }

  #report(): void {
    const assigned = this.heard.findLast((message) => message.type === "assignments");
    const block = this.network?.self.subnets[0] ?? "10.9.9.0/24";
    const allocations = (assigned?.allocations ?? []).map(({ allocation_id, slot }) => ({
      allocation_id,
      state: "running",
      final: false,
      ports: [],
      restarts: 0,
      addresses: [{ network: "shop_default", address: block.replace(/0\/24$/, String(65 + slot)) }],
    }));
    this.#say(statusOf(allocations, assigned ? { applied: assigned.order } : {}));
  }

  #say(message: object): void {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}

type NodeDoc = { node_id: string; state: string; network: { subnets: string[] } };

describe("rogue nodes (point 5)", () => {
  test("bring no master down, store nothing out of bounds, and leave the rules, names and states of others alone", async () => {
    console.log(`session fuzz: SEED=${SEED} SESSIONS=${SESSIONS}`);
    const dataDir = join(root, "master");
    const address = `127.0.0.1:${freePort()}`;
    const port = Number(address.split(":")[1]);
    const begin = performance.now();
    const master = startMaster(dataDir, port);
    const get = async <T>(path: string) => (await (await fetch(`http://${address}${path}`)).json()) as T;
    await waitUntil("the master to listen", () => get("/healthz"));
    const honest = [new Honest("honest-1", address), new Honest("honest-2", address)];
    cleanups.push(async () => honest.forEach((node) => node.stop()));
    const stateOf = async (id: string) => (await get<NodeDoc>(`/cluster/node/${id}`)).state;
    for (const { id } of honest)
      await waitUntil(`${id} to be ready`, () => stateOf(id), { until: (s) => s === "ready" });
    const document = {
      services: {
        db: {
          image: "x",
          scale: 2,
          deploy: { placement: { constraints: ["node.labels.rogue != yes"], max_replicas_per_node: 1 } },
        },
      },
    };
    const put = await fetch(`http://${address}/cluster/job/shop`, { method: "PUT", body: JSON.stringify(document) });
    expect(put.status).toBe(201);
    const service = () => get<{ replicas: { node_id: string; ready: boolean }[] }>("/cluster/service/shop/db");
    const before = await waitUntil("both replicas to be ready", service, {
      until: ({ replicas }) => replicas.length === 2 && replicas.every(({ ready }) => ready),
    });

    const states = new Set<string>();
    let isOver = false;
    const watch = (async () => {
      while (!isOver) {
        for (const { id } of honest) states.add(await stateOf(id));
        await Bun.sleep(200);
      }
    })();
    const all = (await get<{ nodes: NodeDoc[] }>("/cluster/node")).nodes;
    const victims = {
      subnets: all.flatMap(({ network }) => network.subnets),
      ids: [...all.map(({ node_id }) => node_id), ...honest.flatMap(({ heard }) => allocationsIn(heard))],
      networks: ["shop_default", "bridge"],
    };
    const program = [process.execPath, join(import.meta.dir, "rogue_node.ts"), "--address", address];
    const rogue = Bun.spawn(
      [...program, "--seed", `${SEED}`, "--sessions", `${SESSIONS}`, "--victims", JSON.stringify(victims)],
      { stdout: "ignore", stderr: "inherit", env: { ...process.env, BUN_BE_BUN: "1" } },
    );
    cleanups.push(async () => rogue.kill("SIGKILL"));
    expect(await rogue.exited).toBe(0);
    isOver = true;
    await watch;
    const seconds = (performance.now() - begin) / 1_000;

    expect(master.child.exitCode).toBe(null);
    expect([...states]).toEqual(["ready"]);
    expect(honest.map(({ isClosed }) => isClosed)).toEqual([false, false]);
    expect((await service()).replicas.toSorted(byNode)).toEqual(before.replicas.toSorted(byNode));
    const nodes = await allNodes(get);
    expect(nodes.length).toBeLessThanOrEqual(mostNodes(seconds));
    for (const { heard } of honest) for (const message of heard) expectClean(message, nodes);
    expect(honest.some(({ heard }) => heard.some((message) => message.type === "network"))).toBe(true);

    expectBounded(join(dataDir, "cluster.db"));
    master.child.kill("SIGKILL");
    await master.child.exited;
    // It says once what it left out, and not with each message.
    const told = (await master.log).split("\n").filter((line) => line.includes("left out a part"));
    expect(told.length).toBeGreaterThan(0);
    expect(told.length).toBeLessThanOrEqual(10 * (nodes.length + SESSIONS));
    const next = startMaster(dataDir, port);
    await waitUntil("the next process to go on with what is stored", () => get("/cluster/status"));
    next.child.kill("SIGKILL");
  });
});

function byNode(one: { node_id: string }, other: { node_id: string }): number {
  return one.node_id < other.node_id ? -1 : 1;
}

function allocationsIn(heard: readonly MasterMessage[]): string[] {
  return heard
    .flatMap((message) => (message.type === "assignments" ? message.allocations : []))
    .map((one) => one.allocation_id);
}

async function allNodes(get: <T>(path: string) => Promise<T>): Promise<NodeDoc[]> {
  const nodes: NodeDoc[] = [];
  for (let next: string | null = ""; next !== null;) {
    type Page = { nodes: NodeDoc[]; next: string | null };
    const page: Page = await get<Page>(`/cluster/node?limit=1000${next === "" ? "" : `&next=${next}`}`);
    nodes.push(...page.nodes);
    ({ next } = page);
  }
  return nodes;
}

/** What an honest node heard leads where it says: no text is more than that, and subnets are in the blocks of nodes. */
function expectClean(message: MasterMessage, nodes: readonly NodeDoc[]): void {
  if (message.type === "network") {
    for (const { subnets } of [message.self, ...message.peers])
      expect(subnets.filter((block) => !isSubnet(block) || !contains("10.213.0.0/16", block))).toEqual([]);
    const blocks = message.peers.flatMap(({ subnets }) => subnets);
    for (const { subnets } of message.networks)
      expect(subnets.filter((one) => !isSubnet(one) || !blocks.some((block) => contains(block, one)))).toEqual([]);
    for (const key of message.peers.flatMap(({ public_key = [] }) => public_key))
      expect(key).toMatch(/^[A-Za-z0-9+/]{43}=$/);
  }
  if (message.type === "directory") {
    for (const { endpoints } of message.services)
      for (const { node_id, addresses } of endpoints) {
        const blocks = nodes.find((one) => one.node_id === node_id)?.network.subnets ?? [];
        expect(addresses.filter(({ address }) => !blocks.some((block) => contains(block, address)))).toEqual([]);
      }
  }
  if (message.type === "peers" || message.type === "welcome")
    expect(message.peers.map(({ address }) => address).filter((one) => !/^[\w.-]+:\d+$/.test(one))).toEqual([]);
}

/** Each record is of its kind, and none is larger than a person's. */
function expectBounded(path: string): void {
  const db = new Database(path, { readonly: true });
  try {
    const rows = db
      .query<{ kind: RecordKind; key: string; value: string }, []>("SELECT kind, key, value FROM record")
      .all();
    expect(rows.length).toBeGreaterThan(3);
    for (const { kind, key, value } of rows) {
      expect([kind, key, value.length > MAX_RECORD_CHARS]).toEqual([kind, key, false]);
      expect(v.is(RECORD_KINDS[kind].schema, JSON.parse(value))).toBe(true);
      // oxlint-disable-next-line no-control-regex -- they are what is looked for
      if (kind === "node") expect(key).toMatch(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/);
    }
  } finally {
    db.close();
  }
}

// ---- A rogue master ----------------------------------------------------------------------------------------------------

const SELF = { node_id: "n1", underlay: "10.0.0.1", subnets: ["10.213.1.0/24"] };
const PEER = { node_id: "n2", underlay: "10.0.0.2", subnets: ["10.213.2.0/24"], public_key: `${"A".repeat(43)}=` };
const BRIDGES: LocalNetwork[] = [
  { network: "a", device: "br-a", subnet: "10.213.1.64/26", internal: false },
  { network: "b", device: "br-b", subnet: "10.213.1.128/26", internal: true },
];

/** All lines that a command gets may look like: of addresses, devices and fixed words, and of nothing else. */
const IP = String.raw`\d{1,3}(?:\.\d{1,3}){3}`;
const LINES = [
  /^\*(filter|nat|raw)$/,
  /^COMMIT$/,
  /^:CACOPHONY-[A-Z]+(-br-[ab])? - \[0:0\]$/,
  /^-[AID] (CACOPHONY-[A-Z]+(-br-[ab])?|DOCKER-USER|FORWARD|INPUT|OUTPUT|PREROUTING|POSTROUTING)( 1)?( [\w!.:/,-]+)+$/,
  /^(link|addr|neigh|route|fdb) [\w.:/ -]+$/,
  /^\[(Interface|Peer)\]$/,
  /^(PrivateKey|PublicKey) = [A-Za-z0-9+/]{43}=$/,
  /^ListenPort = 9001$/,
  new RegExp(`^Endpoint = ${IP}:9001$`),
  new RegExp(`^AllowedIPs = ${IP}/\\d{1,2}(, ${IP}/\\d{1,2})*$`),
  /^[12]?$/,
];

/** Mostly what an honest master would say there. */
function mostly(random: Random, honest: readonly string[]): string {
  return pick(random, random() < 0.7 ? honest : HOSTILE_TEXTS);
}

function networkOf(random: Random): object {
  const isWireguard = random() < 0.4;
  const subnet = () => mostly(random, ["10.213.2.64/26", "10.213.1.64/26", "10.213.3.64/26", "192.0.2.0/24"]);
  const block = mostly(random, ["10.213.3.0/24", "10.213.1.0/24", "192.0.2.0/24"]);
  const third = { ...PEER, node_id: "n3", underlay: "10.0.0.3", subnets: [block] };
  return {
    type: "network",
    mode: isWireguard ? "wireguard" : "vxlan",
    cidr: "10.213.0.0/16",
    self: SELF,
    peers: [PEER, { ...third, public_key: mostly(random, [PEER.public_key]) }],
    networks: ["a", "b"].map((network) => ({ network, subnets: [subnet(), subnet()] })),
    unknown: random() < 0.3 ? ["n2", pick(random, HOSTILE_TEXTS)] : [],
  };
}

function directoryOf(random: Random): object {
  const known = ["10.213.2.70", "10.213.2.130", "10.213.1.70", "10.213.1.130", "10.213.9.9", "192.0.2.1"];
  const endpoint = (n: number) => ({
    allocation_id: `a${n}`,
    slot: 1,
    node_id: mostly(random, ["n1", "n2", "n3"]),
    ready: true,
    addresses: ["a", "b"].map((network) => ({ network, address: mostly(random, known) })),
  });
  const service = (n: number) => ({
    job_id: mostly(random, ["shop"]),
    service_name: `s${n}`,
    aliases: [{ network: "a", names: [pick(random, HOSTILE_TEXTS), "db"] }],
    ports: [],
    entries: [],
    endpoints: [endpoint(n), endpoint(n + 1)],
  });
  return { type: "directory", full: random() < 0.3, services: [service(1), service(2)], gone: [] };
}

function assignmentsOf(random: Random): object {
  return {
    type: "assignments",
    order: { term: 1, revision: 1 },
    specs: [],
    allocations: [],
    removals: [{ removal_id: "r", job_id: mostly(random, ["shop"]), node_id: "n1" }],
  };
}

/** A node's network whose kernel only takes notes of what it would be told. */
function overlayWithNotes(clock: VirtualClock): { overlay: Overlay; steps: OverlayStep[]; faults: unknown[] } {
  const steps: OverlayStep[] = [];
  const faults: unknown[] = [];
  const overlay = new Overlay({
    kernel: {
      supported: async () => undefined,
      apply: async (wanted) => {
        try {
          const done = overlayChanges(planOverlay(wanted), bareKernel(SELF.underlay));
          steps.push(...done.steps);
          return { changed: [], problems: done.problems, mtu: done.mtu };
        } catch (error) {
          faults.push(error);
          throw error;
        }
      },
      guard: async () => [],
      remove: async () => {},
    },
    apiPort: 9000,
    serveNames: () => {},
    newEntries: noEntries,
    clock,
    random: seededRandom(1),
    log: silentLog,
    dataDir: mkdtempSync(join(root, "node-")),
    onChange: () => {},
  });
  return { overlay, steps, faults };
}

describe("a rogue master (point 4)", () => {
  test("gets nothing into a command or a rule of a node but addresses and keys", async () => {
    console.log(`rogue master: SEED=${SEED}`);
    const random = seededRandom(SEED);
    const clock = new VirtualClock();
    const { overlay, steps, faults } = overlayWithNotes(clock);
    overlay.setBridges(BRIDGES);
    overlay.setGuard({ bridges: BRIDGES.map(({ device }) => device), shared: [], callers: [] });
    overlay.setApis([{ address: PEER.underlay, port: 9000 }]);
    const messages = new MasterMessages(silentLog);
    let taken = 0;
    for (let n = 0; n < MASTER_MESSAGES; n++) {
      const honest = pick(random, [networkOf, networkOf, directoryOf, assignmentsOf])(random);
      const text =
        random() < 0.05
          ? noMessage(random)
          : random() < 0.5
            ? JSON.stringify(honest)
            : mutated(honest, { random, share: 0.1 });
      let message: MasterMessage;
      try {
        message = messages.read(String(text));
        if (message.type === "network" || message.type === "directory") overlay.receive(message);
      } catch {
        // The session ends, and the next one begins.
        continue;
      }
      taken++;
      if (message.type === "assignments")
        expect(message.removals.filter(({ job_id }) => !/^[a-zA-Z0-9][\w.-]*$/.test(job_id))).toEqual([]);
      if (n % 20 === 0) await clock.advance(10);
    }
    await clock.advance(10_000);
    expect(taken).toBeGreaterThan(MASTER_MESSAGES / 4);
    expect(faults).toEqual([]);
    const lines = new Set(steps.flatMap(({ argv, input = "" }) => (argv[0] === "tee" ? [] : input.split("\n"))));
    expect([...lines].filter((line) => line !== "" && !LINES.some((pattern) => pattern.test(line)))).toEqual([]);
    expect([...lines].some((line) => line.startsWith("-A CACOPHONY-I-br-a -s 10.213.2.64/26"))).toBe(true);
    // Nothing of what is no other node's: neither the whole range nor this node's own networks, nor anybody else's.
    const accepted = [...lines]
      .filter((line) => line.endsWith(" -j ACCEPT"))
      .flatMap((line) => [...line.matchAll(/ -[sd] (\S+)/g)].map(([, subnet = ""]) => subnet));
    const known = ["10.213.1.0/24", "10.213.2.0/24", "10.213.3.0/24", "10.0.0.2/32", "10.0.0.3/32"];
    expect(accepted.filter((subnet) => !known.some((block) => contains(block, subnet)))).toEqual([]);
    await overlay.stop();
  });
});
