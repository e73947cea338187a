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
      return `image ${image} not found: put its name right, or push it to its registry`;
    case "denied":
      return `image ${image} not found, or its registry wants a login (PUT /cluster/registry/${registryOf(image)}): ${message}`;
    case "unreachable_registry":
      return `registry ${registryOf(image)} cannot be reached: ${message}`;
    default:
      return refusalInWords(message, image);
  }
}

/** What Docker and runc say that starts nothing, from 20.10 on; what is not known here is told as they say it. */
function refusalInWords(message: string, image: string): string {
  const path = /bind source path does not exist: (.+)$/.exec(message)?.[1];
  if (path !== undefined) return `path ${path} does not exist on this node`;
  const program =
    /exec: "(.+?)": (?:executable file not found|stat .*no such file|permission denied|is a directory)/s.exec(message);
  if (program) {
    const isThere = /permission denied|is a directory/.test(message);
    const what = isThere ? `is in image ${image} and may not be executed` : `not found in image ${image}`;
    return `program "${program[1]}" ${what}: put the service's command or entrypoint right`;
  }
  if (/^No command specified|^no command specified/.test(message))
    return `image ${image} names no program to run: give the service a command`;
  const user = /unable to find (user|group) (.+?): no matching entries/.exec(message);
  if (user)
    return `${user[1]} ${user[2]} is not known in image ${image}: put the service's user right, or write its number`;
  const directory = /mounting "(.+?)" to rootfs at "(.+?)".*not a directory/s.exec(message);
  if (directory)
    return `${directory[1]} and ${directory[2]} in image ${image} are a file and a directory, which can't be mounted on each other`;
  if (/no space left on device/.test(message)) return `a disk of this node is full: make room on it (${message})`;
  if (message === "Address already in use")
    return "its fixed address is taken on the network of this node: give each service there one, or set the network's ip_range";
  return message;
}

/** `port 8080 is in use on this node by …: …` */
export function portInUse(port: number | undefined, holder: string | undefined): string {
  const what = port === undefined ? "a host port" : `port ${port}`;
  const by = holder === undefined ? "another process" : `container ${holder}`;
  return `${what} is in use on this node by ${by}: free it, or publish another`;
}
