/** @module What `npm run release` refuses before it builds anything; `lab_release.test.ts` tries what it builds. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import packageJson from "../package.json";

const ROOT = join(import.meta.dir, "..");

let dir: string;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "cacophony-release-"));
  mkdirSync(join(dir, "src"));
  for (const file of ["src/build.ts", "src/release.ts", "CHANGELOG.md"]) cpSync(join(ROOT, file), join(dir, file));
});

afterAll(() => {
  rmSync(dir, { recursive: true });
});

function release(changed: Partial<typeof packageJson>): { exitCode: number; stderr: string } {
  writeFileSync(join(dir, "package.json"), JSON.stringify({ ...packageJson, ...changed }));
  const { exitCode, stderr } = Bun.spawnSync([process.execPath, "src/release.ts"], { cwd: dir });
  return { exitCode, stderr: stderr.toString() };
}

test("a version that the changelog does not speak of is not released", () => {
  const { exitCode, stderr } = release({ version: "999.0.0" });
  expect(stderr).toContain('release: CHANGELOG.md has nothing under "## 999.0.0"');
  expect(exitCode).toBe(1);
  expect(existsSync(join(dir, "dist"))).toBeFalse();
});

test("a version whose entry is empty is not released", () => {
  writeFileSync(join(dir, "CHANGELOG.md"), "# Changes\n\n## 999.0.0\n\n## 0.1.0\n\nThe first version.\n");
  expect(release({ version: "999.0.0" }).exitCode).toBe(1);
  expect(existsSync(join(dir, "dist"))).toBeFalse();
});

test("another Bun than the one of package.json builds no release", () => {
  const { exitCode, stderr } = release({ devDependencies: { ...packageJson.devDependencies, bun: "0.0.1" } });
  expect(stderr).toContain(`release: this is Bun ${Bun.version}, package.json asks for 0.0.1`);
  expect(exitCode).toBe(1);
  expect(existsSync(join(dir, "dist"))).toBeFalse();
});
