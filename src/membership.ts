/**
 * @module Membership, the master's side of every session: who belongs to the cluster, who is ready, unready or down, and what
 * each node last reported. Owns the `NodeView`s; tells the Scheduler which services to look at again. The node's side is
 * `session.ts`.
 */
import type { Clock, Timer } from "./clock.ts";
import { repeat } from "./clock_loop.ts";
import { newView, type NodeView } from "./cluster_state.ts";
import { serviceKey } from "./cluster_state.ts";
import type { Log } from "./log.ts";
import { ProvenApis } from "./membership_apis.ts";
import { Callers } from "./membership_callers.ts";
import { DeadEngines } from "./membership_engine_marks.ts";
import { Growth } from "./membership_growth.ts";
import { guarded } from "./membership_guard.ts";
import { Newcomers } from "./membership_newcomers.ts";
import { lostMs, Pauses } from "./membership_pauses.ts";
import { messageWriter, PeerNews, peersOf } from "./membership_peers.ts";
import { platformOf } from "./membership_records.ts";
import { engineInUse, type EngineUser } from "./membership_engines.ts";
import { type Refusal, refusalOf } from "./membership_refusals.ts";
import { ownNetworks, readNodeMessage, ReportFaults } from "./membership_reports.ts";
import { type Hold, Silence, tellHold } from "./membership_silence.ts";
import { OwnTerm, type WelcomeOptions } from "./membership_terms.ts";
import { NOTICE_HEARTBEATS, SILENT_HEARTBEATS, verdictOf } from "./membership_verdict.ts";
import type { Heartbeat, Hello, MasterMessage, NodeMessage, NodeRecord, PeerInfo, StatusReport } from "./model.ts";
import { CacophonyError } from "./model.ts";
import { MAX_CONTAINERS } from "./model_bounds.ts";
import type { NodeNetwork } from "./model_network.ts";
import type { Scheduler } from "./scheduler.ts";
import { lostLeavers } from "./scheduler_nodes.ts";
import type { Caller, Channel } from "./transport.ts";

/** One open connection of a node. */
type NodeLink = { send(message: MasterMessage): void; close(): void; remote: string | undefined };

/** Looks at everybody's silence in a heartbeat's interval: a node that is gone is noticed that much late. One while all is well. */
const SWEEPS_PER_HEARTBEAT = 4;
/** Who was heard of within so many heartbeats is not called silent before another one has passed. */
const RECENT_HEARTBEATS = 1.25;
/** A connection that does not say who it is by then is closed. */
const HELLO_TIMEOUT_MS = 5_000;
/** What cannot be written is tried again with each sweep, for each node; the log of that must not fill a disk that is full. */
const SAME_FAULT_MS = 10_000;

export type MembershipOptions = WelcomeOptions & {
  scheduler: Scheduler;
  clock: Clock;
  log: Log;
  /** A secret text that differs each time. */
  newToken: () => string;
  /** Who is at an address: a node may say that its API is where somebody else's service is. Absent: nobody is asked. */
  askPeer?: (address: string) => Promise<PeerInfo>;
  /** After how long a dead Docker Engine's containers are replaced elsewhere. Milliseconds; a minute unless said. */
  engineTimeoutMs?: number;
  /** How long nothing is given up when most nodes fall silent together. Milliseconds; a minute unless said. */
  massFailureHoldMs?: number;
};

const DEFAULT_MASS_FAILURE_HOLD_MS = 60_000;

export class Membership {
  readonly #options: MembershipOptions;
  readonly #links = new Map<string, NodeLink>();
  /** The process that is behind each link. */
  readonly #instances = new Map<string, string>();
  /** Hellos that are taken, with the record that each was written down as, until their session is open. */
  readonly #arriving = new Map<NodeLink, { record: NodeRecord; hello: Hello }>();
  /** Nodes whose last report could not be written down, with the removals that it told of. */
  readonly #unconfirmed = new Map<string, readonly string[]>();
  readonly #silence: Silence;
  readonly #pauses: Pauses;
  readonly #callers: Callers;
  readonly #deadEngines: DeadEngines;
  readonly #ownTerm: OwnTerm;
  readonly #peerNews: PeerNews;
  readonly #write: (message: MasterMessage) => string;
  /** Lost nodes whose leaving is being written down. */
  readonly #removing = new Set<string>();
  readonly #newcomers: Newcomers;
  readonly #growth: Growth;
  readonly #faults: ReportFaults;
  readonly #apis: ProvenApis;
  #sweepTimer: Timer | undefined;
  /** Whoever is being written down then gets no session any more. */
  #isStopped = false;
  /** Why something could not be written, as it was told last. */
  #writeFault = { text: "", at: -Infinity };
  #roomChanged = false;
  /** When those that found no room were told last that there may be some, and whether there were any. */
  #toldOfRoomAt = 0;
  #isRoomWanted = false;

  constructor(options: MembershipOptions) {
    this.#options = options;
    this.#write = messageWriter(() => options.scheduler.term);
    this.#newcomers = new Newcomers({
      ...options,
      selfId: options.self.node_id,
      onSettled: (nodeId) => {
        this.#peerNews.notice();
        this.#judgeNode(nodeId);
      },
      onForgotten: (nodeId) => this.#forget(nodeId),
      writeFailed: (error) => this.#writeFailed(error),
    });
    this.#growth = new Growth({ ...options, writeFailed: (error) => this.#writeFailed(error) });
    this.#faults = new ReportFaults(options.log);
    this.#apis = new ProvenApis({
      ...options,
      selfId: options.self.node_id,
      onProven: () => this.#peerNews.notice(),
      writeFailed: (error) => this.#writeFailed(error),
    });
    this.#callers = new Callers(options);
    this.#deadEngines = new DeadEngines({ ...options, writeFailed: (error) => this.#writeFailed(error) });
    this.#ownTerm = new OwnTerm({ ...options, stop: () => this.stop() });
    const { nodeTimeoutMs, heartbeatIntervalMs, massFailureHoldMs: holdMs = DEFAULT_MASS_FAILURE_HOLD_MS } = options;
    this.#state.noticeMs = NOTICE_HEARTBEATS * heartbeatIntervalMs;
    this.#peerNews = new PeerNews({
      ...options,
      peers: () => peersOf(this.#state),
      tell: (message) => this.#links.forEach((link) => link.send(message)),
    });
    // Of nodes that are cut off together, one was heard up to an interval later than the other.
    const suspectMs = Math.min(SILENT_HEARTBEATS * heartbeatIntervalMs, nodeTimeoutMs - 1.5 * heartbeatIntervalMs);
    this.#silence = new Silence({ nodeTimeoutMs, holdMs, suspectMs });
    this.#pauses = new Pauses({ nodeTimeoutMs });
  }

  /** Nodes that are silent together, of which nothing is given up yet; undefined: there are none. */
  get hold(): Hold | undefined {
    return this.#silence.hold;
  }

  /** Gives up what is held; returns the nodes that it was held for. */
  reschedule(): string[] {
    const nodes = this.hold?.nodes ?? [];
    this.#silence.release();
    for (const nodeId of nodes) this.#judgeNode(nodeId);
    return nodes;
  }

  /** Begins to listen for every node that the state knows: each gets the whole timeout before it counts as down. */
  start(): void {
    for (const nodeId of this.#state.nodes.keys()) this.#state.views.set(nodeId, newView(this.#options.clock.now()));
    if (!this.#ownTerm.begin()) return;
    this.#peerNews.start();
    // Nodes were welcomed in an earlier term: they come again, and hear of the one that has begun.
    this.#options.scheduler.writes.onBegun(() => this.#links.forEach((link) => link.close()));
    this.#pauses.expect(this.#options.clock.now(), 0);
    this.#sweepTimer = repeat(this.#options.clock, {
      firstMs: 0,
      retryMs: this.#stepMs,
      work: () => this.#sweep(),
      onFault: (error) => this.#writeFailed(error),
    });
  }

  stop(): void {
    this.#isStopped = true;
    this.#sweepTimer?.cancel();
    this.#peerNews.stop();
    this.#apis.stop();
    for (const link of this.#links.values()) link.close();
    this.#links.clear();
  }

  /** Whether a node in session makes this call. */
  isNode(caller: Caller): boolean {
    return this.#callers.isNode(caller);
  }

  /** Whether the process that calls itself `instance` makes this call, and has an open session as this node. */
  isConnected({ node_id, instance }: { node_id: string; instance: string }, caller: Caller): boolean {
    const link = this.#links.get(node_id);
    if (!link || this.#instances.get(node_id) !== instance) return false;
    return this.#callers.isOlder(link) || this.#callers.isNode(caller, node_id);
  }

  /** Serves one connection of a node: the first message is its hello, what follows are its reports. */
  accept(channel: Channel): { onMessage: (text: string) => void; onClose: () => void } {
    const link: NodeLink = {
      send: (message) => channel.send(this.#write(message)),
      close: () => channel.close(),
      remote: channel.remote,
    };
    let nodeId: string | undefined;
    let connecting = false;
    let closed = false;
    const timeout = this.#options.clock.after(HELLO_TIMEOUT_MS, () => channel.close());
    const handlers = {
      onMessage: (text: string) => {
        const read = readNodeMessage(text, { isHello: nodeId === undefined });
        if (!read.ok) {
          this.#options.log.warn("closed a session with an unreadable message", { node: nodeId, fault: read.fault });
          const message = `the master cannot read what this node says of itself: ${read.fault}`;
          if (nodeId === undefined && !connecting) link.send({ type: "refused", code: "bad_hello", message });
          return channel.close();
        }
        const { output: message, leftOut } = read;
        if (nodeId !== undefined) return this.#receive(nodeId, { link, message, leftOut });
        if (message.type !== "hello" || connecting) return channel.close();
        connecting = true;
        timeout.cancel();
        this.#faults.tell(message.node_id, leftOut);
        this.#connect(message, link).then(
          (id) => {
            nodeId = id;
            if (!closed) return;
            this.#callers.forget(link);
            if (id !== undefined) this.#disconnect(id, link);
          },
          (error: unknown) => {
            this.#writeFailed(error);
            channel.close();
          },
        );
      },
      onClose: () => {
        closed = true;
        timeout.cancel();
        this.#callers.forget(link);
        if (nodeId !== undefined) this.#disconnect(nodeId, link);
      },
    };
    return guarded(handlers, { channel, faults: this.#options.scheduler.faults, node: () => nodeId });
  }

  /**
   * Takes a node's hello: makes it a member or refuses it. Resolves to the node's id, or undefined when it was refused and
   * its link closed.
   */
  async #connect(hello: Hello, link: NodeLink): Promise<string | undefined> {
    if (this.#refuses(hello, link)) return undefined;
    const claim = { hello, remote: link.remote };
    // Asked again in its turn: another may be this node by then, or on this engine, and a hello that is refused writes nothing.
    const admits = (record: NodeRecord) => {
      if (this.#refuses(hello, link)) return false;
      this.#arriving.set(link, { record, hello });
      return true;
    };
    try {
      const record = await this.#newcomers.record(this.#apis.proven(claim), admits);
      // Without a refusal: a node takes most of those for final, and this one may come in when it tries again.
      if (!record || this.#isStopped) return void link.close();
      try {
        this.#open(record, { hello, link });
      } catch (error) {
        this.#disconnect(record.node_id, link);
        throw error;
      }
      this.#apis.check(record.node_id, claim).catch((error: unknown) => this.#writeFailed(error));
      return record.node_id;
    } finally {
      this.#arriving.delete(link);
    }
  }

  /** A message of a connected node. Messages of a link that was replaced are dropped. */
  #receive(
    nodeId: string,
    { link, message, leftOut }: { link: NodeLink; message: NodeMessage; leftOut: string[] },
  ): void {
    if (this.#links.get(nodeId) !== link) return;
    this.#faults.tell(nodeId, leftOut);
    const view = this.#state.views.get(nodeId);
    if (!view) return link.close(); // It was removed while its Docker Engine was dead.
    view.lastSeen = this.#options.clock.now();
    this.#heard(nodeId);
    if (message.type === "heartbeat") this.#heartbeat(nodeId, { view, link, heartbeat: message });
    else if (message.type === "status") this.#status(nodeId, { view, report: message });
  }

  /** The connection ended; the node counts as down only when it stays away for the node timeout. */
  #disconnect(nodeId: string, link: NodeLink): void {
    if (this.#links.get(nodeId) !== link) return;
    this.#links.delete(nodeId);
    this.#options.scheduler.detach(nodeId);
    const view = this.#state.views.get(nodeId);
    if (!view) {
      this.#instances.delete(nodeId);
      this.#deadEngines.delete(nodeId);
      return;
    }
    view.connected = false;
    if (this.#state.nodes.get(nodeId)?.never_ready) this.#peerNews.notice();
    this.#judge(nodeId, view);
    this.#options.log.warn("a node's session ended", {
      node: nodeId,
      node_name: this.#state.nodes.get(nodeId)?.node_name,
    });
  }

  get #state() {
    return this.#options.scheduler.state;
  }

  // ---- Hello ----------------------------------------------------------------------------------------------------------

  #refuses(hello: Hello, link: NodeLink): boolean {
    const refused = this.#refusalOf(hello);
    if (!refused) return false;
    // Nodes come again and again, and a master that does not lead has said so.
    this.#options.log[refused.code === "not_leading" ? "debug" : "warn"]("refused a node", {
      name: hello.node_name,
      address: hello.address,
      reason: refused.message,
    });
    // Nodes of earlier versions do not know this one, and end for good by it: they try again where nobody answers.
    if (refused.code !== "not_leading" || hello.protocols) link.send({ type: "refused", ...refused });
    link.close();
    return true;
  }

  #refusalOf(hello: Hello): Refusal | undefined {
    const { engine_id } = hello.engine;
    const holder = engine_id === undefined ? undefined : this.#holderOf(engine_id);
    const clusterId = this.#options.scheduler.cluster.cluster_id;
    const facts = { clusterId, state: this.#state, isHeld: this.#isHeldByAnother(hello), holder };
    return this.#ownTerm.refusalOf(hello) ?? refusalOf(hello, facts);
  }

  /** Whether another process that speaks regularly is this node. A link that went silent may be of a machine that is gone. */
  #isHeldByAnother({ node_id, instance }: Hello): boolean {
    for (const { record, hello } of this.#arriving.values())
      if (record.node_id === node_id && hello.instance !== instance) return true;
    const view = this.#state.views.get(node_id);
    const { clock, heartbeatIntervalMs } = this.#options;
    const isHeld = this.#links.has(node_id) && this.#instances.get(node_id) !== instance;
    return isHeld && view !== undefined && clock.now() - view.lastSeen < heartbeatIntervalMs * SILENT_HEARTBEATS;
  }

  /** The connected node that runs on this Docker Engine. */
  #holderOf(engineId: string): EngineUser | undefined {
    for (const { record, hello } of this.#arriving.values())
      if (record.engine_id === engineId) return { ...record, boot_id: hello.boot_id, engine: hello.engine };
    for (const node of this.#state.nodes.values())
      if (node.engine_id === engineId && this.#links.has(node.node_id)) return this.#userOf(node);
    return undefined;
  }

  #userOf(node: NodeRecord): EngineUser {
    const { bootId: boot_id, engine } = this.#state.views.get(node.node_id) ?? { engine: undefined };
    return { ...node, boot_id, engine };
  }

  #open(record: NodeRecord, { hello, link }: { hello: Hello; link: NodeLink }): void {
    const { scheduler, log, clock } = this.#options;
    const nodeId = record.node_id;
    const replaced = this.#links.get(nodeId);
    this.#links.set(nodeId, link);
    this.#instances.set(nodeId, hello.instance);
    replaced?.close();
    const known = this.#state.views.get(nodeId);
    const view = known ?? newView(this.#options.clock.now());
    this.#state.views.set(nodeId, view);
    const { version, boot_id: bootId } = hello;
    Object.assign(view, { connected: true, isHeard: true, lastSeen: clock.now(), version, bootId });
    this.#heard(nodeId);
    this.#newcomers.begin(nodeId);
    this.#deadEngines.note(nodeId, { view, engine: hello.engine });
    // Of an earlier session: kept for readers, but nothing is concluded from them until the node has reported in full.
    Object.assign(view, { reported: false, applied: undefined });
    const token = this.#callers.admit(link, { nodeId, hello });
    link.send(this.#ownTerm.welcome(hello, { record, token }));
    scheduler.attach(nodeId, (message) => link.send(message));
    this.#judge(nodeId, view);
    // What runs once on each node waits for this one, too, from now on, and says so.
    if (!known) scheduler.wakeForNode(nodeId);
    log.info("a node joined the session", { node: nodeId, node_name: record.node_name, address: record.address });
    this.#peerNews.notice();
  }

  // ---- Reports --------------------------------------------------------------------------------------------------------

  #heartbeat(
    nodeId: string,
    { view, link, heartbeat }: { view: NodeView; link: NodeLink; heartbeat: Heartbeat },
  ): void {
    link.send({ type: "ack", sequence: heartbeat.sequence });
    this.#deadEngines.note(nodeId, { view, engine: heartbeat.engine });
    view.resources = heartbeat.resources;
    view.foreign = heartbeat.foreign;
    view.volumes = heartbeat.volumes && new Set(heartbeat.volumes);
    view.networks = heartbeat.networks && new Set(heartbeat.networks);
    view.noSecrets = heartbeat.no_secrets;
    view.fullDisk = heartbeat.full_disk;
    this.#roomChanged = true;
    this.#overlay(nodeId, { view, told: heartbeat.overlay });
    this.#judge(nodeId, view);
    const engineId = heartbeat.engine.engine_id;
    const record = this.#state.nodes.get(nodeId);
    if (engineId === undefined || !record) return;
    const platform = platformOf(heartbeat.engine, record);
    if (record.engine_id === engineId && Bun.deepEquals(platform, platformOf(undefined, record))) return;
    const holder = () => {
      const found = this.#holderOf(engineId);
      return found?.node_id === nodeId ? undefined : found;
    };
    const other = holder();
    if (other) {
      link.send({ type: "refused", ...engineInUse(this.#userOf(record), other) });
      link.close();
      return this.#disconnect(nodeId, link);
    }
    // When this fails, the next heartbeat brings it again; so it does where another node was on this engine first.
    this.#options.scheduler
      .change(() => {
        const latest = this.#state.nodes.get(nodeId);
        if (!latest || holder()) return [];
        return [{ op: "put", kind: "node", record: { ...latest, engine_id: engineId, ...platform } }];
      })
      .catch((error: unknown) => this.#writeFailed(error));
  }

  #overlay(nodeId: string, { view, told }: { view: NodeView; told: NodeNetwork | undefined }): void {
    const { scheduler } = this.#options;
    // A process that has just started does not know yet; what its kernel has is what the last one told.
    if (!told) return;
    const { overlay, faults } = ownNetworks(told, this.#state.nodes.get(nodeId) ?? {});
    this.#faults.tell(nodeId, faults);
    if (!Bun.deepEquals(view.overlay, overlay)) scheduler.directory.touchNetworks();
    view.overlay = overlay;
    this.#growth.notice(nodeId, overlay);
  }

  #status(nodeId: string, { view, report }: { view: NodeView; report: StatusReport }): void {
    const changed = new Set([...report.allocations.map(({ allocation_id }) => allocation_id), ...report.gone]);
    if (report.full) {
      for (const id of view.statuses.keys()) changed.add(id);
      view.statuses.clear();
      view.reported = true;
    }
    for (const status of report.allocations)
      if (view.statuses.size < MAX_CONTAINERS || view.statuses.has(status.allocation_id))
        view.statuses.set(status.allocation_id, status);
    for (const id of report.gone) view.statuses.delete(id);
    this.#noteHealth(view);
    if (report.applied) view.applied = report.applied;
    this.#state.touch(nodeId);
    this.#judge(nodeId, view);
    const records = [...changed].flatMap((id) => this.#state.allocations.get(id) ?? []);
    this.#options.scheduler.wake(records.map(serviceKey));
    this.#confirm(nodeId, report.removals_done);
    const isOwn = (id: string) => this.#state.allocations.get(id)?.node_id === nodeId;
    const found = report.allocations.flatMap(({ allocation_id, resolved_digest: digest }) =>
      digest === undefined || !isOwn(allocation_id) ? [] : [{ allocation_id, digest }],
    );
    // Where this fails, the node goes on with the digest that it found.
    this.#options.scheduler.settleDigests(found).catch((error: unknown) => this.#writeFailed(error));
  }

  /** Writes down what a report proves gone or ended for good. A node says nothing twice, so what cannot be written now is tried again later. */
  #confirm(nodeId: string, removalsDone: readonly string[]): void {
    const { scheduler } = this.#options;
    this.#unconfirmed.delete(nodeId);
    const confirm = async () => {
      const done = removalsDone.filter((id) => this.#state.removals.get(id)?.node_id === nodeId);
      await scheduler.change(() => done.map((key) => ({ op: "delete", kind: "removal", key })));
      if (done.length > 0) scheduler.wakeBlocked();
      await scheduler.recordEnds(nodeId);
      await scheduler.confirmStopped(nodeId);
      if (await scheduler.finishLeaving(nodeId)) this.#dismiss(nodeId);
    };
    confirm().catch((error: unknown) => {
      this.#writeFailed(error);
      if (!this.#unconfirmed.has(nodeId)) this.#unconfirmed.set(nodeId, removalsDone);
    });
  }

  #writeFailed(error: unknown): void {
    const { log, clock, scheduler } = this.#options;
    if (error instanceof CacophonyError) {
      const { text, at } = this.#writeFault;
      if (text === error.message && clock.now() - at < SAME_FAULT_MS) return;
      this.#writeFault = { text: error.message, at: clock.now() };
      log.error("what a node reported could not be stored", { error });
    } else scheduler.faults.tell("an error of Cacophony itself: what a node reported could not be taken in", error);
  }

  // ---- Ready, unready, down -------------------------------------------------------------------------------------------

  get #stepMs(): number {
    return this.#options.heartbeatIntervalMs / SWEEPS_PER_HEARTBEAT;
  }

  /** Returns when the next one is due. */
  #sweep(): number {
    const { clock, scheduler, heartbeatIntervalMs, self } = this.#options;
    const stepMs = this.#stepMs;
    const now = clock.now();
    const { pauseMs, asOf, nextMs: readMs } = this.#pauses.look(now, { stepMs, nodes: this.#state.views });
    if (pauseMs > 0) this.#creditPause(pauseMs, now);
    if (asOf === undefined) return this.#pauses.expect(now, readMs ?? stepMs);
    const wasHeld = this.hold !== undefined;
    this.#silence.judge(
      Array.from(this.#state.views, ([node_id, { lastSeen, isHeard = false, engine }]) => {
        const isNew = this.#state.nodes.get(node_id)?.never_ready === true;
        const wasReady = engine?.state !== "unready" && !isNew;
        const isSpared = this.#pauses.isSpared(node_id, asOf);
        return { node_id, lastSeen, isHeard, wasReady, isNew, isSelf: node_id === self.node_id, isSpared };
      }),
      asOf,
    );
    tellHold(this.#options.log, { hold: this.hold, wasHeld });
    // What fails for one node, or of these parts, is not to keep the others from being done.
    const part = (work: () => void) => void scheduler.faults.attempt("an error of Cacophony itself in a sweep", work);
    for (const nodeId of this.#state.views.keys()) part(() => this.#judgeNode(nodeId));
    part(() => this.#removeLost(now));
    part(() => this.#newcomers.forgetStrangers());
    for (const [nodeId, removalsDone] of this.#unconfirmed) this.#confirm(nodeId, removalsDone);
    if (this.#roomChanged && now - this.#toldOfRoomAt > 1.5 * stepMs) {
      this.#isRoomWanted = scheduler.wakeBlocked();
      this.#roomChanged = false;
      this.#toldOfRoomAt = now;
    }
    return this.#pauses.expect(now, readMs ?? (this.#isCalm(now) ? heartbeatIntervalMs : stepMs));
  }

  /** What nodes told before a pause of this master's, and may have told otherwise in it, has lasted for that much less. */
  #creditPause(pauseMs: number, now: number): void {
    // Nothing was heard in the future.
    const later = (at: number) => Math.min(now, at + lostMs(pauseMs));
    for (const { unhealthySince } of this.#state.views.values())
      for (const [id, at] of unhealthySince ?? []) unhealthySince?.set(id, later(at));
    this.#deadEngines.postpone(later);
  }

  /** The node has spoken, or is no member any more. */
  #heard(nodeId: string): void {
    this.#silence.forget(nodeId);
    this.#pauses.forget(nodeId);
  }

  /** Whether nothing can be due for a heartbeat's interval, unless somebody says so. */
  #isCalm(now: number): boolean {
    if (this.#isRoomWanted || this.hold || this.#unconfirmed.size > 0) return false;
    const recentMs = RECENT_HEARTBEATS * this.#options.heartbeatIntervalMs;
    const views = [...this.#state.views.values()];
    return views.every(({ state, lastSeen }) => state === "ready" && now - lastSeen <= recentMs);
  }

  #judgeNode(nodeId: string): void {
    const view = this.#state.views.get(nodeId);
    if (view) this.#judge(nodeId, view);
  }

  #judge(nodeId: string, view: NodeView): void {
    const { clock, heartbeatIntervalMs } = this.#options;
    const silentMs = clock.now() - view.lastSeen;
    const concluded = this.#silence.of(nodeId);
    let { state, reason } = verdictOf(view, { silentMs, heartbeatIntervalMs, concluded });
    if (state === "ready" && !this.#newcomers.isSettled(nodeId))
      [state, reason] = ["unready", "gets its block of addresses"];
    const before = view.state;
    const wasLost = this.#state.isLost(nodeId);
    view.state = state;
    view.reason = reason;
    view.lost = this.#isLost(nodeId, view);
    if (state === before && view.lost === wasLost) return;
    const { log, scheduler } = this.#options;
    const node = this.#state.nodes.get(nodeId);
    const fields = { node: nodeId, node_name: node?.node_name, state, reason };
    if (state === "ready") log.info("a node is ready", fields);
    else if (state !== before) log.warn("a node is not ready", fields);
    if (view.lost && !wasLost) log.warn("what a node ran is given up, and placed anew", fields);
    if (state === "down") this.#links.get(nodeId)?.close();
    scheduler.wakeForNode(nodeId);
  }

  /** A node that was to leave and is lost has left. */
  #removeLost(now: number): void {
    for (const { node_id: nodeId } of lostLeavers(this.#state, now)) {
      if (this.#removing.has(nodeId)) continue;
      this.#removing.add(nodeId);
      const removed = this.#options.scheduler.removeNode(nodeId, {}, true);
      void removed.catch((error: unknown) => this.#writeFailed(error)).finally(() => this.#removing.delete(nodeId));
    }
  }

  /** What is known beside the record of a node that never was ready. */
  #forget(nodeId: string): void {
    this.#options.log.info("forgot a node that never was ready", { node: nodeId });
    this.#links.get(nodeId)?.close();
    for (const known of [this.#links, this.#instances, this.#deadEngines]) known.delete(nodeId);
    this.#heard(nodeId);
    this.#faults.forget(nodeId);
  }

  /** Whether what the node runs is given up: it is down, or its Engine has been dead for too long. */
  #isLost(nodeId: string, { state }: NodeView): boolean {
    if (state === "down") return this.#silence.of(nodeId) === "lost";
    return this.#deadEngines.isOver(nodeId);
  }

  /** Since when checks call replicas unhealthy, by this master's clock. */
  #noteHealth(view: NodeView): void {
    const known = view.unhealthySince;
    const since = new Map<string, number>();
    for (const [id, { health }] of view.statuses)
      if (health === "unhealthy") since.set(id, known?.get(id) ?? this.#options.clock.now());
    view.unhealthySince = since;
  }

  /** A node that has left is told so, and the others that it is gone. */
  #dismiss(nodeId: string): void {
    const link = this.#links.get(nodeId);
    link?.send({ type: "left" });
    this.#links.delete(nodeId);
    this.#instances.delete(nodeId);
    this.#heard(nodeId);
    this.#faults.forget(nodeId);
    this.#options.scheduler.detach(nodeId);
    link?.close();
    this.#peerNews.notice();
  }
}
