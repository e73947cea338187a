/**
 * @module The images that this node pulled for the cluster, and their removal when nothing has used them for a while, where the
 * operator asked for that (`--image-gc`).
 *
 * Owns which images are ours: ids with the names that we gave them, in a small file of the data directory, written when a pull
 * ends. An image that was here before, or that has got another name since, is somebody else's and stays. How long one is
 * unused is counted from the process's start at the earliest, so that what nobody watched counts as used. Losing the file
 * loses the right to remove what it named, nothing else.
 */
import { readFileSync } from "node:fs";
import * as v from "valibot";
import type { Clock, Timer } from "./clock.ts";
import { writePrivately } from "./data_dir.ts";
import type { Engine } from "./docker.ts";
import { EngineError } from "./docker_errors.ts";
import { fullName } from "./job_images.ts";
import type { Log } from "./log.ts";

/** A look costs one list of containers and one question for each image that the node needs. */
const MOST_BETWEEN_LOOKS_MS = 600_000;
const LEAST_BETWEEN_LOOKS_MS = 1_000;

const file = v.object({
  engine_id: v.string(),
  images: v.array(v.object({ id: v.string(), names: v.array(v.string()) })),
});

export type PulledImagesOptions = {
  path: string;
  engine: Engine;
  /** Which engine answers, as last seen. */
  engineId: () => string | undefined;
  clock: Clock;
  log: Log;
};

export class PulledImages {
  readonly #options: PulledImagesOptions;
  /** The engine that the images are in: what another one has was not pulled by us. */
  #engineId: string | undefined;
  readonly #names = new Map<string, Set<string>>();
  /** Since when each image was seen unused; milliseconds since 1970. */
  readonly #unusedSince = new Map<string, number>();
  #timer: Timer | undefined;
  #stopped = false;

  constructor(options: PulledImagesOptions) {
    this.#options = options;
    const { path, log } = options;
    try {
      const { engine_id, images } = v.parse(file, JSON.parse(readFileSync(path, "utf8")));
      this.#engineId = engine_id;
      for (const { id, names } of images) this.#names.set(id, new Set(names));
    } catch (error) {
      const isAbsent = error instanceof Error && "code" in error && error.code === "ENOENT";
      if (!isAbsent) log.warn("the list of pulled images could not be read: those images are kept", { path, error });
    }
  }

  /** Takes note of names that an image was given here: of one that was just pulled, or of one that is ours already. */
  note(id: string, { names, pulled }: { names: readonly string[]; pulled: boolean }): void {
    if (!this.#isOurEngine()) return;
    const known = this.#names.get(id) ?? (pulled ? new Set<string>() : undefined);
    if (!known || (this.#names.has(id) && names.every((name) => known.has(name)))) return;
    for (const name of names) known.add(name);
    this.#names.set(id, known);
    this.#save();
  }

  /**
   * From now on removes each image of ours that was unused for `afterMs`. `needed` gives the names of the images that the node
   * may have to start a container of; undefined while that is not known, and nothing is removed.
   */
  start({ afterMs, needed }: { afterMs: number; needed: () => ReadonlySet<string> | undefined }): void {
    const { clock, log } = this.#options;
    const pauseMs = Math.max(LEAST_BETWEEN_LOOKS_MS, Math.min(MOST_BETWEEN_LOOKS_MS, afterMs));
    const look = async () => {
      await this.#look({ afterMs, needed }).catch((error: unknown) =>
        log.debug("images were not looked at", { error }),
      );
      if (!this.#stopped) this.#timer = clock.after(pauseMs, () => void look());
    };
    this.#timer = clock.after(pauseMs, () => void look());
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  async #look({ afterMs, needed }: { afterMs: number; needed: () => ReadonlySet<string> | undefined }): Promise<void> {
    const { engine, clock } = this.#options;
    const names = needed();
    if (!names || !this.#isOurEngine() || this.#names.size === 0) return;
    const used = new Set((await engine.list()).map(({ imageId }) => imageId));
    for (const name of names) used.add((await engine.image(name))?.id);
    const now = clock.now();
    for (const id of this.#names.keys()) {
      const since = this.#unusedSince.get(id) ?? now;
      if (used.has(id)) this.#unusedSince.delete(id);
      else this.#unusedSince.set(id, since);
      if (used.has(id) || now - since < afterMs) continue;
      // What was assigned in the meantime is not in `used` yet.
      if (this.#stopped || !Bun.deepEquals(needed(), names)) return;
      await this.#remove(id);
    }
  }

  /** Takes our names from an image; with its last name Docker removes it, unless a container is made of it. */
  async #remove(id: string): Promise<void> {
    const { engine, log } = this.#options;
    const names = this.#names.get(id) ?? new Set();
    const found = await engine.image(id);
    const ours = new Set(Array.from(names, plainName));
    if (found?.tags.every((tag) => ours.has(plainName(tag)))) {
      try {
        for (const name of names) if ((await engine.image(name))?.id === id) await engine.untag(name);
      } catch (error) {
        if (!(error instanceof EngineError) || error.code !== "conflict") throw error;
        this.#unusedSince.delete(id);
        return log.debug("an unused image is kept: Docker says that it is in use", { image: id, error });
      }
      log.info("unused image removed", { image: id, names: [...names] });
    }
    this.#names.delete(id);
    this.#unusedSince.delete(id);
    this.#save();
  }

  /** Forgets what is in another engine; false while nobody knows which one answers. */
  #isOurEngine(): boolean {
    const engineId = this.#options.engineId();
    if (engineId === undefined) return false;
    if (engineId !== this.#engineId) {
      this.#names.clear();
      this.#unusedSince.clear();
    }
    this.#engineId = engineId;
    return true;
  }

  #save(): void {
    const { path, log } = this.#options;
    const images = [...this.#names].map(([id, names]) => ({ id, names: [...names] }));
    const entry: v.InferOutput<typeof file> = { engine_id: this.#engineId ?? "", images };
    try {
      writePrivately(path, JSON.stringify(entry));
    } catch (error) {
      log.warn("the list of pulled images could not be written", { path, error });
    }
  }
}

/** `docker.io/library/redis:latest` for `redis`: one spelling for names that mean the same. */
function plainName(name: string): string {
  const full = fullName(name);
  return full.includes("@") || full.lastIndexOf(":") > full.lastIndexOf("/") ? full : `${full}:latest`;
}
