/**
 * @module What was sent for a job, as it came: the document, and files of variables (the form's `env` parts). Puts the variables
 * together and has the document read (`job_spec.ts`). All of it is text of strangers; who calls decides where that is read.
 */
import { readDotenv } from "./job_dotenv.ts";
import { parseJob, type ParseResult, type Sending } from "./job_spec.ts";
import type { Detail } from "./model_spec.ts";

export type SentJob = {
  document: Uint8Array;
  /** Files of NAME=value lines; a later one knows what those before it say. */
  variables: readonly Uint8Array[];
  /** Its `env` wins over `variables`. */
  sending: Sending;
};

/** Reads all that was sent. Never throws; lists every fault, but those of the document only where the variables have none. */
export function readSentJob({ document, variables, sending }: SentJob): ParseResult {
  const env = readVariables({ variables, sending });
  return env instanceof Map
    ? parseJob(document, { ...sending, env })
    : { ok: false, code: "invalid_document", details: env };
}

/** All variables by name, or the faults of those that were sent in files. */
export function readVariables({ variables, sending }: Omit<SentJob, "document">): Map<string, string> | Detail[] {
  const known = new Map<string, string>();
  const faults: Detail[] = [];
  for (const data of variables) {
    const entries = readDotenv(new TextDecoder().decode(data), (name) => known.get(name));
    if (entries instanceof Map) for (const [name, value] of entries) known.set(name, value);
    else faults.push({ path: "env", message: entries.message });
  }
  return faults.length > 0 ? faults : new Map([...known, ...sending.env]);
}
