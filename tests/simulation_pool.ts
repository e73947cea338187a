/**
 * @module Simulations on all cores: hands seeds to processes of their own, one for each core, and gathers their reports. Run as
 * a program, it is one of those processes.
 */
import { availableParallelism } from "node:os";
import { type Report, simulate } from "./simulation.ts";

type Outcome = { seed: number; report: Report } | { seed: number; failure: string };

/** Each has a core to itself, so what a process does beside its program must not take the others'. */
const ENGINE_OPTIONS = { BUN_JSC_numberOfGCMarkers: "1" };

/** More than any seed takes, also on a machine that has much else to do. */
const LIMIT_MS = 300_000;

/** A simulation that failed; the message is its story. */
export class SeedError extends Error {
  readonly seed: number;
  constructor(seed: number, message: string) {
    super(message);
    this.name = "SeedError";
    this.seed = seed;
  }
}

/**
 * Simulates every `step`th seed from `first` on, for as long as `wants` says so of the next one; `onReport` hears of each that is done.
 * `program`: this file, or its copy in another tree. One that has no answer for `limitMs` is ended.
 * @throws SeedError for the first failure, when all that was under way is over.
 */
export async function simulateAll(options: {
  first: number;
  step?: number;
  wants: (seed: number) => boolean;
  onReport: (report: Report) => void;
  program?: string;
  limitMs?: number;
}): Promise<void> {
  const { first, step = 1, wants, onReport, program = import.meta.path, limitMs = LIMIT_MS } = options;
  let next = first;
  const failures: SeedError[] = [];
  const work = async () => {
    const worker = new Worker({ program, limitMs });
    try {
      while (failures.length === 0 && wants(next)) {
        const seed = next;
        next += step;
        // oxlint-disable-next-line no-await-in-loop -- one at a time in each process is the point
        const outcome = await worker.simulate(seed);
        if ("report" in outcome) onReport(outcome.report);
        else failures.push(new SeedError(outcome.seed, outcome.failure));
      }
    } finally {
      worker.end();
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, work));
  const [failure] = failures.toSorted((a, b) => a.seed - b.seed);
  if (failure) throw failure;
}

class Worker {
  readonly #process;
  readonly #limitMs: number;
  #answer: (outcome: Outcome) => void = () => {};

  constructor({ program, limitMs }: { program: string; limitMs: number }) {
    this.#limitMs = limitMs;
    this.#process = Bun.spawn([process.execPath, program], {
      env: { ...process.env, ...ENGINE_OPTIONS },
      stdio: ["ignore", "inherit", "inherit"],
      ipc: (outcome: Outcome) => this.#answer(outcome),
    });
  }

  simulate(seed: number): Promise<Outcome> {
    const answer = new Promise<Outcome>((resolve) => (this.#answer = resolve));
    const died = this.#process.exited.then((code) => ({
      seed,
      failure: `seed ${seed}: its process ended with code ${code}`,
    }));
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<Outcome>((resolve) => {
      const failure = `seed ${seed}: timeout: no end after ${this.#limitMs / 1000} s`;
      timer = setTimeout(() => resolve({ seed, failure }), this.#limitMs);
    });
    this.#process.send(seed);
    return Promise.race([answer, died, late]).finally(() => clearTimeout(timer));
  }

  end(): void {
    this.#process.kill("SIGKILL");
  }
}

function serve(): void {
  process.on("disconnect", () => process.exit());
  process.on("message", (seed: number) => {
    simulate(seed).then(
      (report) => process.send?.({ seed, report } satisfies Outcome),
      (error: unknown) => {
        const failure = error instanceof Error ? (error.name === "SimulationError" ? error.message : error.stack) : "";
        process.send?.({ seed, failure: failure ?? String(error) } satisfies Outcome);
      },
    );
  });
}

if (import.meta.main) serve();
