/**
 * @module The cluster's network as a node of the simulation has it: the real `Overlay` with the real plan of what is to be in the
 * kernel, and a kernel that only keeps the last plan. Answers whom a name leads to.
 */
import type { Clock } from "../src/clock.ts";
import type { Log } from "../src/log.ts";
import { Overlay } from "../src/overlay.ts";
import { type Overlay as KernelOverlay, planOverlay } from "../src/overlay_plan.ts";
import { noEntries } from "./cluster_fixture.ts";
import { writeNow } from "./write_now.ts";

export type SimOverlay = {
  overlay: Overlay;
  /** The addresses that a service's name leads to on this node. */
  namesOf: (jobId: string, serviceName: string) => string[];
  /** What the kernel was told last; undefined: nothing yet. */
  kernel: () => KernelOverlay | undefined;
};

export type SimOverlayOptions = {
  clock: Clock;
  random: () => number;
  log: Log;
  dataDir: string;
  onChange: () => void;
};

export function simOverlay(options: SimOverlayOptions): SimOverlay {
  let told: KernelOverlay | undefined;
  const overlay = new Overlay({
    ...options,
    write: writeNow,
    apiPort: 9000,
    kernel: {
      supported: async () => undefined,
      apply: async (wanted) => {
        // Most calls only ask to look again.
        if (!Bun.deepEquals(told, wanted)) planOverlay(wanted);
        told = wanted;
        return { changed: [], problems: [], mtu: 1_450 };
      },
      guard: async () => [],
      remove: async () => {},
    },
    serveNames: () => {},
    newEntries: noEntries,
  });
  return {
    overlay,
    kernel: () => told,
    namesOf: (jobId, serviceName) => {
      const answer = overlay.lookup({ name: `${serviceName}.${jobId}.cacophony`, type: "A" }, "127.0.0.1");
      if (answer.state !== "found") return [];
      return answer.records.flatMap((record) => (record.type === "A" ? [record.address] : []));
    },
  };
}
