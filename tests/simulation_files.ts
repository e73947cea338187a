/** @module The files that are sent with documents of the simulation: what is in them, and how a node gets their pieces from the master. */
import { type Clock, sleep } from "../src/clock.ts";
import { hash } from "../src/job_files.ts";
import type { FileSpec } from "../src/model_spec.ts";
import type { Machine } from "./simulation_machine.ts";
import type { SimNetwork } from "./simulation_process.ts";

/** Chance that a piece arrives damaged. */
const DAMAGE = 0.05;
const REACH_TIMEOUT_MS = 1_500;

/** What is in the file of a definition that is known by this label. */
function textOf(variant: string): string[] {
  return [`the first half of ${variant}\n`, `the second half of ${variant}\n`];
}

export function contentOf(variant: string): string {
  return textOf(variant).join("");
}

/** The file as a definition names it, and its pieces. */
export function fileOf(variant: string): { file: FileSpec; chunks: Map<string, Uint8Array> } {
  const chunks = new Map(textOf(variant).map((text) => [hash(text), Buffer.from(text)]));
  const size = Buffer.byteLength(contentOf(variant));
  return {
    file: { path: `.cacophony/mounts/settings-${variant}`, size, chunks: [...chunks.keys()], mode: 0o444 },
    chunks,
  };
}

/** A piece of a file from the master, if that is there and has it. */
export async function fetchFrom(
  master: Machine,
  options: { to: Machine; chunkHash: string; network: SimNetwork; clock: Clock; random: () => number },
): Promise<Uint8Array> {
  const { to, chunkHash, network, clock, random } = options;
  const [least, most] = network.latency;
  await sleep(clock, least + random() * (most - least));
  const { process } = master;
  const isCut = to !== master && (network.isCutOff(to.address) || network.isCutOff(master.address));
  if (isCut || !process?.scheduler || process.life.isStill) {
    await sleep(clock, REACH_TIMEOUT_MS);
    throw new Error(`${master.address} does not answer`);
  }
  const data = process.scheduler.state.chunks.get(chunkHash);
  if (data === undefined) throw new Error("the master has no such piece of a file");
  const piece = Buffer.from(data, "base64");
  if (random() < DAMAGE) piece[0] = (piece[0] ?? 0) ^ 1;
  return piece;
}
