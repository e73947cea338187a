/**
 * @module The images of one node: whether one that is here will do, and the pull of what is needed, each once at a time, few
 * at once. A tag is resolved to its digest first, which all replicas then agree on, and the pull is of that digest.
 *
 * Owns the pull policies of compose, the logins for registries, and the backoff of images that cannot be pulled: it belongs to
 * the image, so that ten replicas of a missing image ask its registry once, not ten times. Knows no allocations.
 */
import { type Backoff, backoffMs, type Clock } from "./clock.ts";
import type { Engine, EngineImage } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import type { RegistryLogin } from "./docker_images.ts";
import { Progress } from "./executor_progress.ts";
import { Slots } from "./executor_slots.ts";
import { Refusal } from "./executor_words.ts";
import { fullName, registryOf } from "./job_images.ts";
import type { PullProgress } from "./model_reports.ts";
import { canRun, type Platform, readPlatform, writePlatform } from "./placement_platform.ts";

/** Two at once: Docker loads three layers of each in parallel, which fills a usual link and two cores with unpacking. */
const PULLS_AT_ONCE = 2;
/** An image that its registry does not have, or not for us, appears when someone acts: minutes, not seconds. */
const NOT_FOUND_BACKOFF: Backoff = { firstMs: 10_000, capMs: 300_000 };
const PULL_BACKOFF: Backoff = { firstMs: 1_000, capMs: 60_000 };
/** Docker tells several times a second how far each layer is; the master wants to hear of it no more than once. */
const PROGRESS_INTERVAL_MS = 1_000;

const HOUR_MS = 3_600_000;
const UNIT_MS: Readonly<Record<string, number>> = {
  w: 168 * HOUR_MS,
  d: 24 * HOUR_MS,
  h: HOUR_MS,
  m: 60_000,
  s: 1_000,
};

/** What an allocation needs: an image as its document names it, by its pull policy (absent: `missing`). */
export type ImageNeed = {
  image: string;
  policy?: string | undefined;
  /** What it must be of, as the document says it; absent: whatever is here, or the Engine's own. */
  platform?: string | undefined;
  /** What the replicas have agreed on. */
  digest?: string | undefined;
  /** An image that is here will do only if it is that digest. */
  refresh?: boolean | undefined;
};

export type PullOptions = {
  signal: AbortSignal;
  onProgress: (progress: PullProgress) => void;
  /** Tells what the tag stands for; gives the digest that all replicas run. */
  agree: (digest: string) => Promise<string>;
};

type Shared<T> = {
  done: Promise<T>;
  waiting: number;
  controller: AbortController;
  listeners: Set<(progress: PullProgress) => void>;
};
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

export type ImageOptions = {
  engine: Engine;
  clock: Clock;
  random: () => number;
  /** The node's own login, for registries that the cluster has none for. */
  nodeLogin: (host: string) => Promise<RegistryLogin | undefined>;
  /** Called with names that an image is given here, and whether it was pulled for that. */
  onNamed?: (id: string, what: { names: readonly string[]; pulled: boolean }) => void;
};

export class Images {
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #nodeLogin: (host: string) => Promise<RegistryLogin | undefined>;
  readonly #slots = new Slots(PULLS_AT_ONCE);
  /** Questions and pulls that are under way, by what they are about. */
  readonly #underWay = new Map<string, Shared<unknown>>();
  readonly #failures = new Map<string, Failure>();
  /** When a registry was last asked about an image. */
  readonly #askedAt = new Map<string, number>();
  readonly #onNamed: NonNullable<ImageOptions["onNamed"]>;
  #logins = new Map<string, RegistryLogin>();

  constructor(options: ImageOptions) {
    this.#onNamed = options.onNamed ?? (() => {});
    this.#engine = options.engine;
    this.#clock = options.clock;
    this.#random = options.random;
    this.#nodeLogin = options.nodeLogin;
  }

  /**
   * The image if a container can be made of it as things are; undefined if a pull must come first. `pulled`: one just came.
   * @throws {Refusal} if the image is absent, or of another platform, and no pull may or can help.
   */
  async usable(need: ImageNeed, { pulled }: { pulled: boolean }): Promise<EngineImage | undefined> {
    const found = await this.#engine.image(need.image);
    const isForeign = found !== undefined && !fits(found, need.platform);
    if (isForeign && pulled) {
      throw new Refusal(
        `image ${need.image} is of ${writePlatform(found.platform ?? NO_PLATFORM)}, not of ${need.platform}; choose an image that is, or change platform`,
      );
    }
    if (!found || isForeign) {
      if (need.policy === "never" && !need.refresh) {
        throw new Refusal(
          `image ${need.image} is not on this node${isForeign ? ` for ${need.platform}` : ""}, and pull_policy is never; load it here, or change the policy`,
        );
      }
      return undefined;
    }
    if (!pulled && this.#mustBeFresh(need, found)) {
      const isAgreed = need.digest !== undefined && digestOf(need.image, found.digests) === need.digest;
      if (!isAgreed) return undefined;
    }
    this.#failures.delete(need.image);
    return found;
  }

  /**
   * Pulls what `need` names, together with everyone who waits for it; the pull ends when nobody does any more.
   * @throws {PullError} if that fails, or failed a moment ago; {EngineError} with code `aborted` when `signal` aborts.
   */
  async pull({ image, digest, platform }: ImageNeed, { signal, onProgress, agree }: PullOptions): Promise<void> {
    const failure = this.#failures.get(image);
    if (failure && failure.retryAt > this.#clock.now()) throw new PullError(failure);
    let reference = image;
    if (!partsOf(image).pinned) {
      const ask = (stop: AbortSignal) =>
        this.#asking(image, (login) => this.#engine.resolve(image, { signal: stop, login }));
      reference = atDigest(
        image,
        digest ?? (await agree(await this.#share(`resolve ${image}`, { signal, work: ask }))),
      );
    }
    await this.#share(`pull ${image} ${reference} ${platform ?? ""}`, {
      signal,
      onProgress,
      work: (stop, tell) => this.#slots.run(() => this.#fetch({ image, reference, platform }, { stop, tell })),
    });
  }

  /**
   * Replaces the cluster's logins, by registry. What failed for want of another one is tried again at once: returns whether
   * an image is from a registry whose login changed.
   */
  useLogins(logins: ReadonlyMap<string, RegistryLogin>): (image: string) => boolean {
    const hosts = new Set([...this.#logins.keys(), ...logins.keys()]);
    const changed = new Set([...hosts].filter((host) => !Bun.deepEquals(this.#logins.get(host), logins.get(host))));
    this.#logins = new Map(logins);
    for (const image of this.#failures.keys()) if (changed.has(registryOf(image))) this.#failures.delete(image);
    return (image) => changed.has(registryOf(image));
  }

  /** Forgets what is known of images that nothing asks for any more. */
  keepOnly(images: ReadonlySet<string>): void {
    for (const known of [this.#failures, this.#askedAt]) {
      for (const image of known.keys()) if (!images.has(image)) known.delete(image);
    }
  }

  /** Whether the policy wants to know of the registry what the tag stands for now. */
  #mustBeFresh({ image, policy = "missing", refresh }: ImageNeed, { taggedAt = 0 }: EngineImage): boolean {
    if (partsOf(image).pinned) return false;
    if (refresh || policy === "always" || policy === "refresh") return true;
    const periodMs = periodOf(policy);
    if (periodMs === undefined) return false;
    return Math.max(taggedAt, this.#askedAt.get(image) ?? 0) + periodMs <= this.#clock.now();
  }

  /** Brings the image of a digest here under the name that the document gives it. */
  async #fetch(
    { image, reference, platform }: { image: string; reference: string; platform: string | undefined },
    { stop, tell }: { stop: AbortSignal; tell: (progress: PullProgress) => void },
  ): Promise<void> {
    if (stop.aborted) throw new EngineError("aborted", "nobody waits for this pull any more");
    const progress = new Progress();
    let toldAt = -Infinity;
    const present = reference === image ? undefined : await this.#engine.image(reference);
    const isPulled = !present || !fits(present, platform);
    if (isPulled) {
      await this.#asking(image, (login) =>
        this.#engine.pull(reference, {
          signal: stop,
          login,
          platform,
          onProgress: (line) => {
            progress.note(line);
            if (this.#clock.now() - toldAt < PROGRESS_INTERVAL_MS) return;
            toldAt = this.#clock.now();
            tell(progress.sum);
          },
        }),
      );
    }
    const found = await this.#engine.image(reference);
    if (found) this.#onNamed(found.id, { names: [...new Set([image, reference])], pulled: isPulled });
    if (reference !== image) await this.#engine.tag(reference, image);
    this.#failures.delete(image);
  }

  /** Makes a call to the registry of `image`, and remembers if it fails. */
  async #asking<T>(image: string, call: (login: RegistryLogin | undefined) => Promise<T>): Promise<T> {
    try {
      const host = registryOf(image);
      const result = await call(this.#logins.get(host) ?? (await this.#nodeLogin(host)));
      this.#askedAt.set(image, this.#clock.now());
      return result;
    } catch (cause) {
      const error = cause instanceof EngineError ? cause : new EngineError("other", String(cause), { cause });
      if (error.code === "aborted" || error.code === "unavailable") throw error;
      throw new PullError(this.#remember(image, error));
    }
  }

  /** Joins the work of that name, or begins it; it is given up when nobody waits for it any more. */
  async #share<T>(
    name: string,
    {
      signal,
      onProgress,
      work,
    }: {
      signal: AbortSignal;
      onProgress?: (progress: PullProgress) => void;
      work: (stop: AbortSignal, tell: (progress: PullProgress) => void) => Promise<T>;
    },
  ): Promise<T> {
    const shared = (this.#underWay.get(name) as Shared<T> | undefined) ?? this.#begin(name, work);
    shared.waiting++;
    if (onProgress) shared.listeners.add(onProgress);
    try {
      return await Promise.race([shared.done, aborted(signal)]);
    } finally {
      shared.waiting--;
      if (onProgress) shared.listeners.delete(onProgress);
      if (shared.waiting === 0 && this.#underWay.get(name) === shared) {
        this.#underWay.delete(name);
        shared.controller.abort();
      }
    }
  }

  #begin<T>(name: string, work: (stop: AbortSignal, tell: (progress: PullProgress) => void) => Promise<T>): Shared<T> {
    const controller = new AbortController();
    const listeners = new Set<(progress: PullProgress) => void>();
    const tell = (progress: PullProgress) => {
      for (const listener of listeners) listener(progress);
    };
    const done = work(controller.signal, tell).finally(() => {
      if (this.#underWay.get(name) === shared) this.#underWay.delete(name);
    });
    const shared: Shared<T> = { done, waiting: 0, controller, listeners };
    // Everyone who waits may have gone; a rejection without a listener would end the process.
    done.catch(() => {});
    this.#underWay.set(name, shared);
    return shared;
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

const NO_PLATFORM: Platform = { os: "", arch: "", variant: "" };

/** Whether Docker makes a container for that platform of an image that is here. */
function fits({ platform = NO_PLATFORM }: EngineImage, wanted: string | undefined): boolean {
  return wanted === undefined || canRun(readPlatform(wanted) ?? NO_PLATFORM, platform);
}

/** An image's name without tag and digest, and whether it has a digest, so that it means one image for good. */
function partsOf(image: string): { repository: string; pinned: boolean } {
  const [name = "", digest] = image.split("@");
  const colon = name.lastIndexOf(":");
  return { repository: colon > name.lastIndexOf("/") ? name.slice(0, colon) : name, pinned: digest !== undefined };
}

/** An image by a digest of its: `host/app@sha256:…` for `host/app:1`. */
export function atDigest(image: string, digest: string): string {
  return `${partsOf(image).repository}@${digest}`;
}

/** The digest (`sha256:…`) that an image has in the registry which `name` names, by the list of all that it has. */
export function digestOf(name: string, digests: readonly string[]): string | undefined {
  const here = new Set([partsOf(name).repository, fullName(partsOf(name).repository)]);
  const found = digests.find((one) => {
    const { repository } = partsOf(one);
    return here.has(repository) || here.has(fullName(repository));
  });
  return found?.split("@")[1];
}

/** Milliseconds between two looks at the registry: `daily`, `weekly`, `every_1d12h`; undefined for other policies. */
function periodOf(policy: string): number | undefined {
  if (policy === "daily") return UNIT_MS["d"];
  if (policy === "weekly") return UNIT_MS["w"];
  if (!policy.startsWith("every_")) return undefined;
  const parts = [...policy.slice("every_".length).matchAll(/(\d+)([wdhms])/gy)];
  return parts.reduce((sum, [, number, unit = ""]) => sum + Number(number) * (UNIT_MS[unit] ?? 0), 0);
}

/** Rejects once `signal` aborts. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const stop = () => reject(new EngineError("aborted", "the work is not wanted any more"));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
