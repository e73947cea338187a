/**
 * @module Entry of the thread in which `api_reading.ts` has a large compose document read: takes one document, answers what
 * `parseJob` says of it. Knows nothing of requests.
 */
import type { Sending } from "./job_spec.ts";
import { parseJob } from "./job_spec.ts";

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<{ document: Uint8Array; sending: Sending }>) =>
  self.postMessage(parseJob(data.document, data.sending));
