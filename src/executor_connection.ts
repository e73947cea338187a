/**
 * @module The executor's line to its Docker Engine: probes until it answers, then follows its events, asks now and then whether
 * it still answers, and says when it is time for a full look.
 *
 * Owns the Engine's status, with a reason in plain words while it is not ready, and every wait for the Engine to come back.
 * Knows no containers. A line that broke begins anew with a probe, so another Engine in the place of the first is noticed.
 *
 * An Engine hangs that has answered nothing for 3.5 s, a ping of the last 2 s included. A ping alone that is late proves nothing on
 * a machine with too much to do, so any answer to any call (a refusal, too), and any event, is a sign of life; and an Engine that was
 * heard within the last 1.5 s is not asked. Time in which this process itself does not run counts as half a second at most.
 */
import { atMost, backoffMs, type Clock, sleep } from "./clock.ts";
import type { Engine, EngineEvent } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import type { Log } from "./log.ts";
import { stackOf } from "./log_faults.ts";
import type { EngineStatus } from "./model.ts";
import { cut, MAX_ERROR_CHARS } from "./model_bounds.ts";

/** Events can get lost; this is how long that can matter. */
const LOOK_INTERVAL_MS = 30_000;
/** Between two looks that something asked for (a lost answer, a broken stream), so that trouble cannot become a busy loop. */
const LOOK_PAUSE_MS = 200;
/** A dockerd that hangs keeps its connections open; only a question finds that out. So long after the last answer one is asked. */
const PING_INTERVAL_MS = 1_500;
/** A question that has no answer for so long, while no other has one, means that the Engine hangs. */
const HANG_MS = 2_000;
/** It is waited for in steps, each of which counts once: a process that was stopped reads what came meanwhile before it judges. */
const STEP_MS = 500;
/** Docker is asked again soon: a node that cannot work is worth a request every other second. */
const PROBE_BACKOFF = { firstMs: 200, capMs: 2_000 };
/** A line that broke sooner than this counts as one more failure: where no event stream stands, looks come by backoff. */
const SOUND_MS = 5_000;

export type ConnectionOptions = {
  engine: Engine;
  clock: Clock;
  random: () => number;
  log: Log;
  onStatus: () => void;
  /** Takes in all that Docker has; throws if that cannot be read. */
  look: () => Promise<void>;
  onEvent: (event: EngineEvent) => void;
};

export class EngineConnection {
  readonly #options: ConnectionOptions;
  #status: EngineStatus = { state: "unready", reason: "Docker has not been asked yet" };
  #engineId: string | undefined;
  readonly #identified = Promise.withResolvers<void>();
  /** What to follow; undefined while the node belongs to no cluster. */
  #labels: string[] | undefined;
  /** Aborts when the present line is given up. */
  #line = new AbortController();
  #isLookWanted = false;
  /** When the Engine answered last, and how often it has: see `heard`. */
  #heardAt = -Infinity;
  #answers = 0;
  #dataRoot: string | undefined;
  /** Ends the present wait for something to do. */
  #wake: () => void = () => {};

  constructor(options: ConnectionOptions) {
    this.#options = options;
  }

  get status(): EngineStatus {
    return this.#status;
  }

  /** Resolves once the Engine has told its id, by which the master knows again a node that lost its data directory. */
  get identified(): Promise<void> {
    return this.#identified.promise;
  }

  /** Where the Engine keeps its data on its machine, as far as it told. */
  get dataRoot(): string | undefined {
    return this.#dataRoot;
  }

  /** Takes note that the Engine has answered something. */
  noticeAnswer(): void {
    this.#heardAt = this.#options.clock.now();
    this.#answers++;
  }

  /** Keeps up the line until `signal` aborts; calls `onAnswer` after the first probe, however it ended. */
  async run(signal: AbortSignal, onAnswer: () => void): Promise<void> {
    const { clock, random } = this.#options;
    let failures = 0;
    while (!signal.aborted) {
      const begin = clock.now();
      const line = new AbortController();
      const giveUp = () => line.abort();
      signal.addEventListener("abort", giveUp, { once: true });
      this.#line = line;
      try {
        await this.#probe();
        onAnswer();
        await this.#attend(line);
      } catch (error) {
        if (!signal.aborted) this.#lose(error);
        onAnswer();
      } finally {
        line.abort();
        signal.removeEventListener("abort", giveUp);
      }
      failures = clock.now() - begin < SOUND_MS || this.#status.state === "unready" ? failures + 1 : 0;
      if (failures > 0) await sleep(clock, backoffMs(failures, { ...PROBE_BACKOFF, random }), signal);
    }
  }

  /** From here on the Engine is looked at, and events of containers with these labels (`key=value`) are passed on. */
  follow(labels: string[]): void {
    this.#labels = labels;
    this.#wake();
  }

  /** Asks for a full look soon. */
  requestLook(): void {
    this.#isLookWanted = true;
    this.#wake();
  }

  /** Takes note of an error of any call: if the Engine is gone, everything starts over with a probe. */
  noticeTrouble(error: unknown): void {
    if (error instanceof EngineError && error.code === "unavailable") this.#line.abort();
  }

  async #probe(): Promise<void> {
    const { engine, clock } = this.#options;
    const before = this.#answers;
    // The line broke, and nothing comes: that is not waited out for as long as an answer may take.
    const hang = clock.after(HANG_MS, () => {
      if (this.#answers === before) this.#lose(noAnswer(engine));
    });
    const info = await engine.info().finally(() => hang.cancel());
    this.noticeAnswer();
    this.#dataRoot = info.dataRoot;
    this.#engineId ??= info.engineId;
    if (info.engineId !== this.#engineId) {
      throw new Error(
        `another Docker Engine answers on ${engine.host}: its id is ${info.engineId} and was ${this.#engineId}; ` +
          "bring the old one back, or restart cacophony to use this one",
      );
    }
    this.#setStatus({
      state: "ready",
      engine_id: info.engineId,
      docker_version: info.dockerVersion,
      api_version: info.apiVersion,
      platform: { os: info.os, arch: info.arch },
      ...(info.genericResources.length > 0 && { generic_resources: info.genericResources }),
      ...(info.hasGpus && { has_gpus: true }),
      remote: engine.remote,
    });
    this.#identified.resolve();
  }

  /** Stays with the Engine until the line breaks. */
  async #attend(line: AbortController): Promise<void> {
    const { signal } = line;
    const ended = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    void this.#keepAsking(line);
    while (!this.#labels && !signal.aborted) await this.#wait(LOOK_INTERVAL_MS, signal);
    if (this.#labels) void this.#watch(this.#labels, line);
    while (!signal.aborted) {
      this.#isLookWanted = false;
      await Promise.race([this.#options.look(), ended]);
      await sleep(this.#options.clock, LOOK_PAUSE_MS, signal);
      if (!this.#isLookWanted) await this.#wait(LOOK_INTERVAL_MS, signal);
    }
  }

  async #watch(labels: string[], line: AbortController): Promise<void> {
    const { engine, log, onEvent } = this.#options;
    try {
      await engine.watch({
        labels,
        signal: line.signal,
        // What happened before the stream stood is seen by a look after.
        onOpen: () => {
          this.noticeAnswer();
          this.requestLook();
        },
        onEvent: (event) => {
          this.noticeAnswer();
          onEvent(event);
        },
      });
    } catch (error) {
      if (!line.signal.aborted) log.debug("event stream of Docker broke", { error });
    } finally {
      line.abort();
    }
  }

  async #keepAsking(line: AbortController): Promise<void> {
    const { clock } = this.#options;
    while (!line.signal.aborted) {
      await sleep(clock, Math.max(0, this.#heardAt + PING_INTERVAL_MS - clock.now()), line.signal);
      if (line.signal.aborted || clock.now() < this.#heardAt + PING_INTERVAL_MS) continue;
      try {
        await this.#ask(line.signal);
      } catch (error) {
        // An answer about a line that was given up in the meantime says nothing about the present one.
        if (line.signal.aborted) return;
        this.#lose(error);
        line.abort();
      }
    }
  }

  /** @throws EngineError if the Engine is gone, or answers neither this question nor any other. */
  async #ask(signal: AbortSignal): Promise<void> {
    const { engine, clock } = this.#options;
    let outcome: { error?: unknown } | undefined;
    const asked = engine.ping().then(
      () => (outcome = {}),
      (error: unknown) => (outcome = { error }),
    );
    let answers = this.#answers;
    for (let silentMs = 0; !outcome && !signal.aborted;) {
      if (silentMs >= HANG_MS) throw noAnswer(engine);
      // oxlint-disable-next-line no-await-in-loop -- the wait is in steps
      await atMost(clock, STEP_MS, asked);
      silentMs = this.#answers === answers ? silentMs + STEP_MS : 0;
      answers = this.#answers;
    }
    if (!outcome) return;
    const { error } = outcome as { error?: unknown };
    // One that took too long for the call, and not for the Engine: others were answered meanwhile.
    const isLate = error instanceof EngineError && error.code === "timeout";
    if (error !== undefined && !isLate) throw error;
    this.noticeAnswer();
  }

  async #wait(limitMs: number, signal: AbortSignal): Promise<void> {
    const wake = new AbortController();
    this.#wake = () => wake.abort();
    signal.addEventListener("abort", this.#wake, { once: true });
    if (signal.aborted) return;
    await sleep(this.#options.clock, limitMs, wake.signal);
    signal.removeEventListener("abort", this.#wake);
  }

  #lose(error: unknown): void {
    const reason = cut(error instanceof Error ? error.message : String(error), MAX_ERROR_CHARS);
    const { remote } = this.#options.engine;
    const id = this.#engineId !== undefined && { engine_id: this.#engineId };
    this.#setStatus({ state: "unready", reason, ...id, remote });
  }

  #setStatus(status: EngineStatus): void {
    if (JSON.stringify(status) === JSON.stringify(this.#status)) return;
    this.#status = status;
    if (status.state === "ready") this.#options.log.info("Docker is ready", status);
    else this.#options.log.warn("Docker is not ready", { reason: status.reason });
    try {
      this.#options.onStatus();
    } catch (error) {
      // Who listens must not end what keeps in touch with Docker.
      this.#options.log.error("an error of Cacophony itself, at news of Docker", { error, ...stackOf(error) });
    }
  }
}

function noAnswer({ host }: Engine): EngineError {
  return new EngineError("timeout", `Docker did not answer on ${host} within ${HANG_MS / 1000} s: dockerd hangs`);
}

/** `engine`, where `onAnswer` hears of everything that it answers. */
export function heard(engine: Engine, onAnswer: () => void): Engine {
  const onError = (error: unknown) => {
    if (error instanceof EngineError && !SILENCE.includes(error.code)) onAnswer();
  };
  return new Proxy(engine, {
    get(target, name) {
      const member: unknown = Reflect.get(target, name, target);
      // An event stream ends when this side wants it to.
      if (typeof member !== "function" || name === "watch")
        return typeof member === "function" ? member.bind(target) : member;
      return (...parameters: unknown[]): unknown => {
        const result: unknown = member.apply(target, parameters);
        if (result instanceof Promise) result.then(onAnswer, onError);
        return result;
      };
    },
  });
}

/** What says that Docker answered nothing. */
const SILENCE: readonly string[] = ["unavailable", "timeout", "aborted"];
