/**
 * @module Why an allocation does not start, in words for the person who reads its `error`. Owns the sentences; decides nothing.
 */
import { EngineError } from "./docker_errors.ts";
import { registryOf } from "./job_images.ts";

/** Something on this node stands in the way; the message is for people and names it. */
export class Refusal extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "Refusal";
  }
}

/** Whether Docker answered, and said no; otherwise nobody knows what it did. */
export function isRefusal(error: EngineError): boolean {
  return error.code !== "unavailable" && error.code !== "timeout" && error.code !== "aborted";
}

/** One sentence for what stopped a start of `image`. */
export function inWords(error: unknown, { image }: { image: string }): string {
  if (!(error instanceof EngineError)) return error instanceof Error ? error.message : String(error);
  const { code, message } = error;
  switch (code) {
    case "image_not_found":
      return `image ${image} not found`;
    case "denied":
      return `image ${image} not found, or its registry wants a login (PUT /cluster/registry/${registryOf(image)}): ${message}`;
    case "unreachable_registry":
      return `registry ${registryOf(image)} cannot be reached: ${message}`;
    default:
      break;
  }
  const path = /bind source path does not exist: (.+)$/.exec(message)?.[1];
  if (path !== undefined) return `path ${path} does not exist on this node`;
  const program = /exec: "(.+?)": (?:executable file not found|stat .*no such file|permission denied)/.exec(message);
  if (program) {
    const what = message.includes("permission denied") ? "may not be executed" : "not found";
    return `program "${program[1]}" ${what} in image ${image}`;
  }
  if (message === "Address already in use")
    return "its fixed address is taken on the network of this node: give each service there one, or set the network's ip_range";
  return message;
}

/** `port 8080 is in use on this node by …` */
export function portInUse(port: number | undefined, holder: string | undefined): string {
  const what = port === undefined ? "a host port" : `port ${port}`;
  return `${what} is in use on this node by ${holder === undefined ? "another process" : `container ${holder}`}`;
}
