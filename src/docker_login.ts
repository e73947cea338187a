/**
 * @module The registry logins of this machine's user, as the docker command line keeps them: `config.json` with its `auths`,
 * `credHelpers` and `credsStore`. Read anew each time, since `docker login` may have changed them; nothing is written.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import type { RegistryLogin } from "./docker_images.ts";
import type { Log } from "./log.ts";
import { withoutTrailing } from "./text.ts";

/** Helpers may ask a cloud for a token; longer than this holds up a pull that may need no login at all. */
const HELPER_TIMEOUT_MS = 10_000;
const HUB = "docker.io";
/** What the docker command line calls Docker Hub. */
const HUB_SERVER = "https://index.docker.io/v1/";

const config = v.object({
  auths: v.optional(
    v.record(v.string(), v.object({ auth: v.optional(v.string()), identitytoken: v.optional(v.string()) })),
    {},
  ),
  credHelpers: v.optional(v.record(v.string(), v.string()), {}),
  credsStore: v.optional(v.string(), ""),
});
const credential = v.object({ Username: v.string(), Secret: v.string() });

export type NodeLoginOptions = {
  configDir: string;
  /** Where credential helpers are looked for, as in PATH. */
  searchPath: string;
  log: Log;
};

/**
 * Looks logins up in the configuration of the docker command line in `configDir`. What can't be had counts as none and is
 * logged, as most images need no login.
 */
export function nodeLogins({
  configDir,
  searchPath,
  log,
}: NodeLoginOptions): (host: string) => Promise<RegistryLogin | undefined> {
  const path = join(configDir, "config.json");
  return async (host) => {
    try {
      const text = await readFile(path, "utf8").catch(unlessMissing);
      return text === undefined ? undefined : await lookUp(v.parse(config, JSON.parse(text)), { host, searchPath });
    } catch (error) {
      // The message of a parser may quote the file, which has passwords in it.
      const reason = error instanceof HelperError ? error.message : "it is not readable as Docker's configuration";
      log.warn("no login could be read for a registry", { registry: host, file: path, reason });
      return undefined;
    }
  };
}

type Question = { host: string; searchPath: string };

async function lookUp(found: v.InferOutput<typeof config>, question: Question): Promise<RegistryLogin | undefined> {
  const { host } = question;
  const helper = entryOf(found.credHelpers, host) ?? found.credsStore;
  if (helper !== "") {
    const login = await askHelper(helper, question);
    if (login) return login;
  }
  const entry = entryOf(found.auths, host);
  if (entry?.identitytoken) return { identityToken: entry.identitytoken };
  const [, username, password] = /^([^:]+):([^]*)$/.exec(atob(entry?.auth ?? "")) ?? [];
  return username === undefined || password === undefined
    ? undefined
    : { username, password: withoutTrailing(password, "\0") };
}

/** The entry of a registry, whose key may be a host or an address, as `https://index.docker.io/v1/`. */
function entryOf<T>(entries: Record<string, T>, host: string): T | undefined {
  const found = Object.entries(entries).find(([key]) => {
    const [name] = key.replace(/^https?:\/\//, "").split("/", 1);
    return name === host || (host === HUB && name === "index.docker.io");
  });
  return found?.[1];
}

class HelperError extends Error {}

async function askHelper(name: string, { host, searchPath }: Question): Promise<RegistryLogin | undefined> {
  const program = `docker-credential-${name}`;
  const found = /^[\w.-]+$/.test(name) ? Bun.which(program, { PATH: searchPath }) : null;
  if (found === null) throw new HelperError(`${program} is not to be found`);
  const helper = Bun.spawn([found, "get"], {
    stdin: new Blob([host === HUB ? HUB_SERVER : host]),
    stdout: "pipe",
    stderr: "ignore",
    timeout: HELPER_TIMEOUT_MS,
  });
  const [text, code] = await Promise.all([new Response(helper.stdout).text(), helper.exited]);
  if (code !== 0) {
    if (/not found/i.test(text)) return undefined;
    throw new HelperError(`${program} ended with code ${code}`);
  }
  const { Username: username, Secret: password } = v.parse(credential, JSON.parse(text));
  return username === "<token>" ? { identityToken: password } : { username, password };
}

function unlessMissing(error: unknown): undefined {
  if ((error as { code?: string }).code !== "ENOENT") throw error;
  return undefined;
}
