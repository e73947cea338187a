/**
 * @module The images of one node: pulls what is absent, each image once at a time, few at once.
 *
 * Owns the backoff of images that cannot be pulled: it belongs to the image, so that ten replicas of a missing image ask its
 * registry once, not ten times. Knows no allocations.
 */
import { type Backoff, backoffMs, type Clock } from "./clock.ts";
import type { Engine } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import { Slots } from "./executor_slots.ts";

/** Two at once: Docker loads three layers of each in parallel, which fills a usual link and two cores with unpacking. */
const PULLS_AT_ONCE = 2;
/** An image that its registry does not have appears when someone pushes it: minutes, not seconds. */
const NOT_FOUND_BACKOFF: Backoff = { firstMs: 10_000, capMs: 300_000 };
const PULL_BACKOFF: Backoff = { firstMs: 1_000, capMs: 60_000 };

type Pull = { done: Promise<void>; waiting: number; controller: AbortController };
type Failure = { error: EngineError; tries: number; retryAt: number };

/** A pull that failed, and when the image is tried again (milliseconds since 1970). */
export class PullError extends Error {
  readonly error: EngineError;
  readonly retryAt: number;
  constructor(failure: { error: EngineError; retryAt: number }) {
    super(failure.error.message, { cause: failure.error });
    this.name = "PullError";
    this.error = failure.error;
    this.retryAt = failure.retryAt;
  }
}

export class Images {
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #slots = new Slots(PULLS_AT_ONCE);
  readonly #pulls = new Map<string, Pull>();
  readonly #failures = new Map<string, Failure>();

  constructor(options: { engine: Engine; clock: Clock; random: () => number }) {
    this.#engine = options.engine;
    this.#clock = options.clock;
    this.#random = options.random;
  }

  /** Whether a container of `image` can be created without a pull. */
  async isPresent(image: string): Promise<boolean> {
    const present = await this.#engine.hasImage(image);
    if (present) this.#failures.delete(image);
    return present;
  }

  /**
   * Pulls `image`, together with everyone who waits for it; the pull ends when nobody does any more.
   * @throws {PullError} if that fails, or failed a moment ago; {EngineError} with code `aborted` when `signal` aborts.
   */
  async pull(image: string, signal: AbortSignal): Promise<void> {
    const failure = this.#failures.get(image);
    if (failure && failure.retryAt > this.#clock.now()) throw new PullError(failure);
    const pull = this.#pulls.get(image) ?? this.#begin(image);
    pull.waiting++;
    try {
      await Promise.race([pull.done, aborted(signal)]);
    } finally {
      pull.waiting--;
      if (pull.waiting === 0 && this.#pulls.get(image) === pull) {
        this.#pulls.delete(image);
        pull.controller.abort();
      }
    }
  }

  /** Forgets the failures of images that nothing asks for any more. */
  keepOnly(images: ReadonlySet<string>): void {
    for (const image of this.#failures.keys()) if (!images.has(image)) this.#failures.delete(image);
  }

  #begin(image: string): Pull {
    const controller = new AbortController();
    const done = this.#slots.run(async () => {
      try {
        if (controller.signal.aborted) throw new EngineError("aborted", "nobody waits for this pull any more");
        await this.#engine.pull(image, { signal: controller.signal });
        this.#failures.delete(image);
      } catch (cause) {
        const error = cause instanceof EngineError ? cause : new EngineError("other", String(cause), { cause });
        if (error.code === "aborted" || error.code === "unavailable") throw error;
        throw new PullError(this.#remember(image, error));
      } finally {
        if (this.#pulls.get(image) === pull) this.#pulls.delete(image);
      }
    });
    const pull: Pull = { done, waiting: 0, controller };
    // Everyone who waits may have gone; a rejection without a listener would end the process.
    done.catch(() => {});
    this.#pulls.set(image, pull);
    return pull;
  }

  #remember(image: string, error: EngineError): Failure {
    const tries = (this.#failures.get(image)?.tries ?? 0) + 1;
    const backoff = error.code === "image_not_found" || error.code === "denied" ? NOT_FOUND_BACKOFF : PULL_BACKOFF;
    const retryAt = this.#clock.now() + backoffMs(tries, { ...backoff, random: this.#random });
    const failure = { error, tries, retryAt };
    this.#failures.set(image, failure);
    return failure;
  }
}

/** Rejects once `signal` aborts. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const stop = () => reject(new EngineError("aborted", "the work is not wanted any more"));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
