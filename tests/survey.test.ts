/** Nothing of a document is dropped in silence: what the survey asks of files that people publish, asked of the fixtures. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseJob } from "../src/job_spec.ts";
import { findSilent } from "./survey_leaves.ts";

const FIXTURES = join(import.meta.dir, "fixtures/compose");
const SENDING = { jobId: "t", env: new Map<string, string>(), profiles: ["*"] };

test("every leaf of every accepted fixture leads to something, or a warning says that it is left out", () => {
  let leaves = 0;
  const silent: string[] = [];
  for (const folder of ["valid", "awesome"]) {
    for (const file of readdirSync(join(FIXTURES, folder)).filter((name) => name.endsWith(".yaml"))) {
      const result = parseJob(readFileSync(join(FIXTURES, folder, file)), SENDING);
      if (!result.ok) continue;
      const found = findSilent(result.job.document, SENDING);
      leaves += found.count;
      silent.push(...found.silent.map((place) => `${file} ${place}`));
    }
  }
  expect(silent).toEqual([]);
  expect(leaves).toBeGreaterThan(400);
});

test("a leaf that leads to nothing is found", () => {
  const text = JSON.stringify({ services: { app: { image: "busybox", environment: ["A=1", "A=2"], tty: true } } });
  expect(findSilent(text, SENDING)).toEqual({ count: 4, silent: ['services.app.environment.0: "A=1"'] });
});
