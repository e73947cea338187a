/**
 * @module How far one pull is: Docker's lines about single layers, summed up. Knows no images.
 */
import type { PullProgress as Line } from "./docker.ts";
import type { PullProgress } from "./model_reports.ts";

type Layer = { done: boolean; bytes: number; total: number };

export class Progress {
  readonly #layers = new Map<string, Layer>();

  /** Takes in one line; lines about something else than a layer change nothing. */
  note({ layer: id, status, currentBytes = 0, totalBytes = 0 }: Line): void {
    // Docker names layers by 12 hex digits; the line "Pulling from …" has the tag in that place.
    if (id === undefined || !/^[0-9a-f]{12}$/.test(id) || status.startsWith("Pulling from")) return;
    const known = this.#layers.get(id) ?? { done: false, bytes: 0, total: 0 };
    this.#layers.set(id, known);
    if (status === "Downloading")
      Object.assign(known, { bytes: currentBytes, total: Math.max(totalBytes, currentBytes) });
    // Later lines of a layer count its unpacking, which is no download.
    else if (status !== "Pulling fs layer" && status !== "Waiting") known.bytes = known.total;
    if (status === "Pull complete" || status === "Already exists") known.done = true;
  }

  get sum(): PullProgress {
    const layers = [...this.#layers.values()];
    return {
      layers_done: layers.filter(({ done }) => done).length,
      layers_total: layers.length,
      bytes_done: layers.reduce((sum, { bytes }) => sum + bytes, 0),
      bytes_total: layers.reduce((sum, { total }) => sum + total, 0),
    };
  }
}
