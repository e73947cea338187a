/**
 * @module What `npm run build` runs: bundles `main.ts` with the Bun runtime into the one executable, `dist/cacophony`.
 * The version and the git commit become constants in it; see `version.ts`. A tool: nothing imports it.
 */
import { mkdirSync, renameSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import packageJson from "../package.json";

const ROOT = resolve(import.meta.dir, "..");
const EXECUTABLE = join(ROOT, "dist/cacophony");

const commit = gitCommit();
// Written beside its place and moved there: a running executable can't be overwritten, and a failed build leaves the old one.
const unfinished = `${EXECUTABLE}.${process.pid}`;
mkdirSync(join(ROOT, "dist"), { recursive: true });
try {
  await Bun.build({
    // The second is a thread's, which is started by that path.
    entrypoints: [join(ROOT, "src/main.ts"), join(ROOT, "src/reader.ts")],
    compile: {
      outfile: unfinished,
      // What lies in the directory that it is started from must not change what it does.
      autoloadDotenv: false,
      autoloadBunfig: false,
    },
    define: {
      CACOPHONY_VERSION: JSON.stringify(packageJson.version),
      CACOPHONY_COMMIT: JSON.stringify(commit),
    },
    minify: { syntax: true, whitespace: true, identifiers: false },
    // Bytecode halves the start, from 75 ms to 30 ms, and takes less memory. Names stay, for stack traces that can be read.
    format: "esm",
    bytecode: true,
    sourcemap: "none",
  });
  renameSync(unfinished, EXECUTABLE);
} finally {
  rmSync(unfinished, { force: true });
}
console.log(`Built dist/cacophony ${packageJson.version} (${commit}), ${megabytes(EXECUTABLE)} MB`);

/** `unknown` where there is no git or no repository; a source archive has neither. */
function gitCommit(): string {
  const head = git("rev-parse", "--short", "HEAD");
  if (head === undefined) return "unknown";
  return git("status", "--porcelain") === "" ? head : `${head}-dirty`;
}

function git(...args: string[]): string | undefined {
  if (Bun.which("git") === null) return undefined;
  const { exitCode, stdout } = Bun.spawnSync(["git", "-C", ROOT, ...args], { stderr: "ignore" });
  return exitCode === 0 ? stdout.toString().trim() : undefined;
}

function megabytes(path: string): number {
  return Math.round(Bun.file(path).size / 1e6);
}
