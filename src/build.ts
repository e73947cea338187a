/**
 * @module What `npm run build` runs: bundles `main.ts` with the Bun runtime into the one executable, `dist/cacophony`.
 * The version and the git commit become constants in it; see `version.ts`. A tool: nothing but `release.ts` imports it.
 */
import { mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import packageJson from "../package.json";

const ROOT = resolve(import.meta.dir, "..");

/** What an executable says that it was made of. `unknown` where there is no git or no repository; a source archive has neither. */
export function gitCommit(): string {
  const head = git("rev-parse", "--short", "HEAD");
  if (head === undefined) return "unknown";
  return git("status", "--porcelain") === "" ? head : `${head}-dirty`;
}

/**
 * Writes an executable for `target`, as Bun names it (`bun-linux-arm64`), or else for this machine. The runtime of another target
 * than this machine's comes from the npm registry and is kept in Bun's cache.
 * @throws what Bun says where it can't.
 */
export async function buildExecutable(
  outfile: string,
  { target, commit }: { target?: Bun.Build.CompileTarget; commit: string },
): Promise<void> {
  // Written beside its place and moved there: a running executable can't be overwritten, and a failed build leaves the old one.
  mkdirSync(dirname(outfile), { recursive: true });
  const dir = mkdtempSync(`${outfile}-`);
  // It holds this name, whatever it is called later.
  const unfinished = join(dir, "cacophony");
  try {
    await Bun.build({
      root: join(ROOT, "src"),
      entrypoints: [join(ROOT, "src/main.ts"), join(ROOT, "src/store_worker.ts")],
      compile: {
        ...(target && { target }),
        outfile: unfinished,
        // What lies in the directory that it is started from must not change what it does.
        autoloadDotenv: false,
        autoloadBunfig: false,
      },
      // Native code that packages may have built where they were installed, each with a way to do without it: machine code of the
      // machine that builds has no place in another's executable.
      external: ["*.node", "cpu-features"],
      define: {
        CACOPHONY_VERSION: JSON.stringify(packageJson.version),
        CACOPHONY_COMMIT: JSON.stringify(commit),
        // Where packages lay when it was built is nothing to anybody, and would make each checkout's executable another.
        __dirname: '"/"',
        __filename: '"/"',
      },
      minify: { syntax: true, whitespace: true, identifiers: false },
      // Bytecode halves the start, from 75 ms to 30 ms, and takes less memory. Names stay, for stack traces that can be read.
      format: "esm",
      bytecode: true,
      sourcemap: "none",
    });
    renameSync(unfinished, outfile);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

function git(...args: string[]): string | undefined {
  if (Bun.which("git") === null) return undefined;
  const { exitCode, stdout } = Bun.spawnSync(["git", "-C", ROOT, ...args], { stderr: "ignore" });
  return exitCode === 0 ? stdout.toString().trim() : undefined;
}

if (import.meta.main) {
  const executable = join(ROOT, "dist/cacophony");
  const commit = gitCommit();
  await buildExecutable(executable, { commit });
  const megabytes = Math.round(Bun.file(executable).size / 1e6);
  console.log(`Built dist/cacophony ${packageJson.version} (${commit}), ${megabytes} MB`);
}
