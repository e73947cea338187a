/**
 * @module Why an allocation does not start, in words for the person who reads its `error`. Owns the sentences; decides nothing.
 */
import { EngineError } from "./docker_errors.ts";
import { registryOf } from "./job_images.ts";
import { between } from "./text.ts";

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
  const [, path = ""] = message.split("bind source path does not exist: ", 2);
  if (path !== "") return `path ${path} does not exist on this node`;
  const program = programOf(message);
  if (program !== undefined) {
    const isThere = /permission denied|is a directory/.test(message);
    const what = isThere ? `is in image ${image} and may not be executed` : `not found in image ${image}`;
    return `program "${program}" ${what}: put the service's command or entrypoint right`;
  }
  if (/^No command specified|^no command specified/.test(message))
    return `image ${image} names no program to run: give the service a command`;
  const user = between(message, "unable to find ", ": no matching entries");
  if (user?.startsWith("user ") || user?.startsWith("group "))
    return `${user} is not known in image ${image}: put the service's user right, or write its number`;
  const source = between(message, 'mounting "', '" to rootfs at "');
  const target = between(message, '" to rootfs at "', '"');
  if (source !== undefined && target !== undefined && message.includes("not a directory"))
    return `${source} and ${target} in image ${image} are a file and a directory, which can't be mounted on each other`;
  if (/no space left on device/.test(message)) return `a disk of this node is full: make room on it (${message})`;
  if (message === "Address already in use")
    return "its fixed address is taken on the network of this node: give each service there one, or set the network's ip_range";
  return message;
}

/** What was to be executed, where that is what Docker says of it. Its name is in quotes, which may hold anything. */
function programOf(message: string): string | undefined {
  const start = message.indexOf('exec: "') + 'exec: "'.length;
  if (start < 'exec: "'.length) return undefined;
  const noSuchFile = message.lastIndexOf("no such file");
  for (let end = message.indexOf('": ', start + 1); end >= 0; end = message.indexOf('": ', end + 1)) {
    const says = (words: string) => message.startsWith(words, end + '": '.length);
    const isMissing = says("executable file not found") || (says("stat ") && noSuchFile > end);
    if (isMissing || says("permission denied") || says("is a directory")) return message.slice(start, end);
  }
  return undefined;
}

/** `port 8080 is in use on this node by …: …` */
export function portInUse(port: number | undefined, holder: string | undefined): string {
  const what = port === undefined ? "a host port" : `port ${port}`;
  const by = holder === undefined ? "another process" : `container ${holder}`;
  return `${what} is in use on this node by ${by}: free it, or publish another`;
}
