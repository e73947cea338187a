/**
 * @module Which image each allocation is to run, as the replicas agreed on it through the master: the first digest that any node
 * found for the tag. Owns what the assignments say about images, and who waits for that.
 */
import { type Clock, sleep } from "./clock.ts";
import { atDigest } from "./executor_images.ts";
import type { Wanted } from "./executor_worker.ts";
import type { AssignedImage } from "./model.ts";

/** A master answers within milliseconds; a node that has none is not to wait for it for long. */
const AGREE_MS = 5_000;

export class Agreement {
  readonly #clock: Clock;
  #images = new Map<string, AssignedImage>();
  readonly #waiting = new Map<string, (digest: string) => void>();

  constructor(options: { clock: Clock }) {
    this.#clock = options.clock;
  }

  take(images: readonly AssignedImage[]): void {
    this.#images = new Map(images.map((one) => [one.allocation_id, one]));
    for (const { allocation_id: id, digest } of images) if (digest !== undefined) this.#waiting.get(id)?.(digest);
  }

  /** What is settled about an allocation's image. */
  of(id: string): Pick<AssignedImage, "digest"> & Partial<AssignedImage> {
    return this.#images.get(id) ?? {};
  }

  /**
   * Tells the master which digest the tag stands for (`tell`), and gives the one that the replicas run. A node without a master
   * goes on with its own after a while.
   */
  async reach(
    id: string,
    { digest, signal, tell }: { digest: string; signal: AbortSignal; tell: () => void },
  ): Promise<string> {
    const agreed = Promise.withResolvers<string>();
    this.#waiting.set(id, agreed.resolve);
    try {
      tell();
      const waited = sleep(this.#clock, AGREE_MS, signal).then(() => digest);
      return this.#images.get(id)?.digest ?? (await Promise.race([agreed.promise, waited]));
    } finally {
      this.#waiting.delete(id);
    }
  }

  /** Names of the images of `wanted` as the digests that are settled. */
  names(wanted: ReadonlyMap<string, Wanted>): string[] {
    return [...this.#images].flatMap(([id, { digest }]) => {
      const image = wanted.get(id)?.spec.image;
      return image !== undefined && digest !== undefined ? [atDigest(image, digest)] : [];
    });
  }
}
