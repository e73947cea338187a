/**
 * @module Deliberate errors (`npm run mutate`): runs the simulation on copies of the tree, each with one error of `mutations.ts`, and
 * says at which seed and by which rule each was caught. Ends with code 1 if one was not, if one does not apply or does not
 * compile, or if the tree without an error fails. A tool: nothing imports it.
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { MUTATIONS, type Mutation, misfits, mutated, SURVIVORS } from "./mutations.ts";
import { SeedError, simulateAll } from "./simulation_pool.ts";

const ROOT = join(import.meta.dir, "..");
const USAGE = "usage: npm run mutate -- [--seeds N] [NAME ...]   (300 seeds and all of them, unless it is told)";
/** Within so many seeds an error must be caught. */
const SEEDS = 300;
/** More than any seed takes, even where all cores have other work; an error can make an endless loop. */
const LIMIT_MS = 60_000;
/** What a copy needs to run the simulation, and to be checked. */
const PARTS = ["src", "tests", "package.json", "tsconfig.json"];
const NOT_COPIED = /tests\/(fixtures|real)(\/|$)/;
/** Files on disk would set the pace. */
const DISK = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();

type Outcome = { name: string; result: "caught" | "survived" | "invalid"; seed?: number; rule: string; ms: number };

process.exitCode = await mutate();

async function mutate(): Promise<number> {
  const given = readArguments();
  if (!given) {
    console.error(USAGE);
    return 2;
  }
  const faults = misfits((file) => readFileSync(join(ROOT, file), "utf8"));
  if (faults.length > 0) {
    for (const fault of faults) console.error(`mutate: ${fault}`);
    return 1;
  }
  const chosen = MUTATIONS.filter(({ name }) => given.names.length === 0 || given.names.includes(name));
  const dir = mkdtempSync(join(DISK, "cacophony-mutate-"));
  // A signal ends the process; what it made must not stay in memory.
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(1));
  process.on("exit", () => rmSync(dir, { recursive: true, force: true }));
  const begin = performance.now();
  console.log(`mutate: ${chosen.length} errors, up to ${given.seeds} seeds each, beginning with the tree as it is`);
  const sound = await trial(undefined, { dir, seeds: given.seeds });
  print(sound);
  if (sound.result !== "survived") {
    console.error("mutate: the tree as it is fails, so nothing is shown by errors in it");
    return 1;
  }
  const outcomes: Outcome[] = [];
  for (const mutation of chosen) {
    // oxlint-disable-next-line no-await-in-loop -- each has all cores
    const outcome = await trial(mutation, { dir, seeds: given.seeds });
    print(outcome);
    outcomes.push(outcome);
  }
  return conclude(outcomes, { isWhole: given.seeds >= SEEDS, ms: performance.now() - begin });
}

/** Runs one error, or the tree as it is, in a copy of its own. */
async function trial(mutation: Mutation | undefined, { dir, seeds }: { dir: string; seeds: number }): Promise<Outcome> {
  const name = mutation?.name ?? "(none)";
  const begin = performance.now();
  const outcome = (result: Outcome["result"], rule: string, seed?: number): Outcome => ({
    name,
    result,
    rule,
    ms: performance.now() - begin,
    ...(seed !== undefined && { seed }),
  });
  const tree = copyTree(join(dir, name));
  try {
    if (mutation) {
      const path = join(tree, mutation.file);
      writeFileSync(path, mutated(readFileSync(path, "utf8"), mutation));
    }
    const fault = check(tree);
    if (fault !== undefined) return outcome("invalid", `does not compile: ${fault}`);
    await simulateAll({
      first: 1,
      wants: (seed) => seed <= seeds,
      onReport: () => {},
      program: join(tree, "tests", "simulation_pool.ts"),
      limitMs: LIMIT_MS,
    });
    return outcome("survived", `${seeds} seeds`);
  } catch (error) {
    if (!(error instanceof SeedError)) throw error;
    return outcome("caught", ruleOf(error.message), error.seed);
  } finally {
    rmSync(tree, { recursive: true });
  }
}

function copyTree(tree: string): string {
  mkdirSync(tree);
  for (const part of PARTS)
    cpSync(join(ROOT, part), join(tree, part), {
      recursive: true,
      filter: (path) => !NOT_COPIED.test(path) && !path.endsWith(".test.ts"),
    });
  symlinkSync(join(ROOT, "node_modules"), join(tree, "node_modules"));
  return tree;
}

/** The first thing that the type checker finds, if it finds any. */
function check(tree: string): string | undefined {
  const program = join(tree, "tests", "simulation_pool.ts");
  // Who makes such an error takes out what is not used any more, too.
  const lenient = ["--noUnusedLocals=false", "--noUnusedParameters=false"];
  const { exitCode, stdout, stderr } = Bun.spawnSync(
    [process.execPath, "check", "--no-script", "--no-pretty", ...lenient, program],
    { cwd: tree },
  );
  if (exitCode === 0) return undefined;
  return (
    `${stdout.toString()}${stderr.toString()}`.split("\n").find((line) => line.includes("error")) ?? "it says not why"
  );
}

/** What was wrong, in one line. */
function ruleOf(message: string): string {
  const [first = "", second = ""] = message.split("\n");
  const text = first.replace(/^seed \d+: /, "");
  return text.endsWith(":") ? `${text} ${second.trim()}` : text;
}

function print({ name, result, seed, rule, ms }: Outcome): void {
  const at = result === "caught" ? `seed ${seed}` : result;
  console.log(`${name.padEnd(36)} ${at.padStart(9)} ${(ms / 1000).toFixed(1).padStart(6)} s  ${rule.slice(0, 150)}`);
}

function conclude(outcomes: readonly Outcome[], { isWhole, ms }: { isWhole: boolean; ms: number }): number {
  const named = (result: Outcome["result"]) => outcomes.filter((one) => one.result === result).map(({ name }) => name);
  const survived = named("survived");
  const unlisted = survived.filter((name) => !SURVIVORS.has(name));
  const listed = survived.filter((name) => SURVIVORS.has(name));
  const caughtThough = named("caught").filter((name) => SURVIVORS.has(name));
  for (const name of listed) console.log(`mutate: ${name} survives as listed: ${SURVIVORS.get(name)}`);
  const faults = [
    ...named("invalid").map((name) => `${name} proves nothing, for it does not compile`),
    ...unlisted.map((name) => `${name} was not caught`),
    // With fewer seeds it is no wonder.
    ...caughtThough.map((name) => `${name} is listed as one that survives, and was caught: take it out of SURVIVORS`),
  ];
  for (const fault of faults) console.error(`mutate: ${fault}`);
  const seconds = (ms / 1000).toFixed(0);
  console.log(
    `mutate: ${named("caught").length} of ${outcomes.length} caught, ${listed.length} survive as listed, ${seconds} s` +
      (isWhole ? "" : ` (fewer than ${SEEDS} seeds)`),
  );
  return faults.length > 0 ? 1 : 0;
}

function readArguments(): { names: string[]; seeds: number } | undefined {
  try {
    const options = { seeds: { type: "string" } } as const;
    const { values, positionals } = parseArgs({ args: process.argv.slice(2), options, allowPositionals: true });
    const seeds = Number(values.seeds ?? SEEDS);
    const unknown = positionals.filter((name) => !MUTATIONS.some((one) => one.name === name));
    for (const name of unknown) console.error(`mutate: there is no error named ${name}`);
    return unknown.length === 0 && Number.isSafeInteger(seeds) && seeds > 0 ? { names: positionals, seeds } : undefined;
  } catch {
    return undefined;
  }
}
