/**
 * @module What `npm run release` runs: an executable for each platform, into `dist/release/`, with their SHA256SUMS. The same commit
 * gives the same bytes: with the packages of the lock file and the Bun that package.json names, wherever it is built. Refuses a
 * version that CHANGELOG.md does not speak of. A tool: nothing imports it.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import packageJson from "../package.json";
import { buildExecutable, gitCommit } from "./build.ts";

const ROOT = resolve(import.meta.dir, "..");
const OUT = join(ROOT, "dist/release");

/** Bun's word for each platform of a release, and ours in the file's name. */
const TARGETS = [
  ["bun-linux-x64", "linux-x64"],
  ["bun-linux-arm64", "linux-arm64"],
  ["bun-linux-x64-musl", "linux-x64-musl"],
  ["bun-darwin-arm64", "darwin-arm64"],
] as const;

process.exitCode = await release();

async function release(): Promise<number> {
  const { version, devDependencies } = packageJson;
  if (Bun.version !== devDependencies.bun) {
    return refused(`this is Bun ${Bun.version}, package.json asks for ${devDependencies.bun}: run npm ci`);
  }
  if (!changes(version)) {
    return refused(`CHANGELOG.md has nothing under "## ${version}", the version in package.json: write what changed`);
  }
  const commit = gitCommit();
  // What an earlier release left must not pass for a part of this one.
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
  const sums: string[] = [];
  for (const [target, platform] of TARGETS) {
    const name = `cacophony-${version}-${platform}`;
    const file = join(OUT, name);
    try {
      await buildExecutable(file, { target, commit });
    } catch (error) {
      return refused(
        `${name} could not be built: ${messageOf(error)}\n` +
          `Bun takes the runtime of ${target} from the npm registry, unless it is in its cache: can it be reached from here?`,
      );
    }
    const bytes = readFileSync(file);
    sums.push(`${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}  ${name}\n`);
    console.log(`Built dist/release/${name}, ${Math.round(bytes.length / 1e6)} MB`);
  }
  writeFileSync(join(OUT, "SHA256SUMS"), sums.join(""));
  console.log(`Release ${version} (${commit}) is in dist/release; check it with sha256sum -c SHA256SUMS`);
  if (/unknown|dirty/.test(commit)) console.error("release: not of a commit as it is: nobody can build the same again");
  return 0;
}

/** Whether the changelog has words under the version's heading. */
function changes(version: string): boolean {
  const [, ...sections] = readFileSync(join(ROOT, "CHANGELOG.md"), "utf8").split(/^## /m);
  return sections.some((section) => {
    const [heading = "", ...lines] = section.split("\n");
    return heading.split(" ")[0] === version && lines.join("").trim() !== "";
  });
}

function refused(why: string): number {
  console.error(`release: ${why}`);
  return 1;
}

/** Bun's error of a build says little itself: its causes stand in a list. */
function messageOf(error: unknown): string {
  const causes: unknown[] = error instanceof AggregateError && error.errors.length > 0 ? error.errors : [error];
  return causes.map((one) => (one instanceof Error ? one.message : String(one))).join("; ");
}
