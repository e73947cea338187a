/**
 * @module What the fuzz suites share: a seed that is printed and may be given again, choices by it, and bytes that are changed at
 * random. Which packets or requests are made of that is each suite's own.
 */
import { seeded } from "./cluster_fixture.ts";

/** Names the seed of a run that is to be repeated. */
const SEED_VARIABLE = "CACOPHONY_FUZZ_SEED";

export type Fuzz = ReturnType<typeof startFuzz>;

/** Prints the seed under the name of the suite. */
export function startFuzz(suite: string) {
  const seed = Number(process.env[SEED_VARIABLE] || Math.floor(Math.random() * 2 ** 31));
  console.log(`fuzz of ${suite}: ${SEED_VARIABLE}=${seed} repeats it`);
  const random = seeded(seed);
  const upTo = (most: number) => Math.floor(random() * (most + 1));
  const pick = <T>(of: readonly T[]): T => {
    const found = of[upTo(of.length - 1)];
    if (found === undefined) throw new Error("there is nothing to choose from");
    return found;
  };
  const chance = (share: number) => random() < share;
  const bytes = (length: number) => Buffer.from(Array.from({ length }, () => upTo(255)));
  /** Some bytes changed, left out, doubled or put in. */
  const mutate = (original: Uint8Array, changes = 1 + upTo(5)): Buffer => {
    let data = Buffer.from(original);
    for (let n = 0; n < changes && data.length > 0; n++) {
      const at = upTo(data.length - 1);
      const end = Math.min(data.length, at + 1 + upTo(8));
      const insert = pick([bytes(1), bytes(1 + upTo(8)), data.subarray(at, end), Buffer.alloc(0)]);
      data = Buffer.concat([data.subarray(0, at), insert, data.subarray(chance(0.5) ? at + 1 : end)]);
    }
    return data;
  };
  return { seed, upTo, pick, chance, bytes, mutate };
}
