/**
 * @module Entry of the process in which `api_reading.ts` has a large document read: takes from standard input what was sent, writes
 * to standard output what `readSentJob` says of it, and ends. Knows nothing of requests.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { deserialize, serialize } from "node:v8";
import { readSentJob, type SentJob } from "./job_sent.ts";

/** Of 1000: where the machine runs out of memory, the kernel ends this process before any other. */
const FIRST_TO_GO = "1000";
const STDIN = 0;

try {
  writeFileSync("/proc/self/oom_score_adj", FIRST_TO_GO);
} catch {
  // Not on Linux, or /proc is read-only: the document can be read all the same.
}
await Bun.write(Bun.stdout, serialize(readSentJob(deserialize(readFileSync(STDIN)) as SentJob)));
