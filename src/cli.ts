/**
 * @module The command line: one table of options, read from arguments, the environment or (for a node) what it was last started
 * with. Options stand before or after the subcommand. Owns exit codes: 0 ended as asked, 2 could not start as it was told, 1 a start that
 * failed by an error of Cacophony itself.
 */
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import type { ArgsDef, CommandDef } from "citty";
import { defineCommand, renderUsage } from "citty";
import { parseAddress } from "./address.ts";
import { readHostName } from "./api_hosts.ts";
import { leave } from "./cli_leave.ts";
import { systemClock } from "./clock.ts";
import type { Settings } from "./data_dir.ts";
import { readBytes, readDuration, Refusal } from "./job_grammar.ts";
import type { LogFormat, LogLevel } from "./log.ts";
import { LOG_LEVELS, openLog } from "./log.ts";
import { Faults, placeOf } from "./log_faults.ts";
import { StartError } from "./model.ts";
import { cut, labelFault, MAX_LABELS, MAX_LABELS_CHARS } from "./model_bounds.ts";
import type { NetworkMode } from "./model_network.ts";
import { nearest } from "./nearest.ts";
import type { StartOptions } from "./node.ts";
import type { Strategy } from "./placement.ts";
import { isSubnet } from "./subnet.ts";
import { Node } from "./node.ts";
import { COMMIT, VERSION } from "./version.ts";

export const EXIT_BAD_START = 2;
/** A start that fails by an error of Cacophony itself. */
const EXIT_BROKEN_START = 1;

const NANOSECONDS_PER_MS = 1e6;

type Option = { valueHint?: string; description: string; multiple?: boolean };

/** Every option; each value may also come from the environment as CACOPHONY_ and the name in capitals. */
const OPTIONS = {
  "bind-addr": {
    valueHint: "HOST:PORT",
    description:
      "listen here (bootstrap: 127.0.0.1:9000; join: port 9000 of the address that the cluster is reached from, and of 127.0.0.1)",
  },
  "advertise-addr": {
    valueHint: "HOST:PORT",
    description: "the address that other nodes reach this one at (default: the one listened on)",
  },
  "data-dir": {
    valueHint: "DIR",
    description: "identity and state (default: /var/lib/cacophony as root, else the XDG data directory)",
  },
  "docker-host": {
    valueHint: "URL",
    description: "unix:///path or tcp://host:port (default: DOCKER_HOST, then unix:///var/run/docker.sock)",
  },
  "node-name": {
    valueHint: "NAME",
    description: "name to show (default: the host name; a second equal one gets a suffix)",
  },
  label: { valueHint: "KEY=VALUE", description: "a label of this node; repeatable", multiple: true },
  "allow-host": {
    valueHint: "NAME",
    description:
      "a further name that this node may be asked by, as api.example.org or *.example.org; repeatable (none: no further one)",
    multiple: true,
  },
  memory: { valueHint: "SIZE", description: "how much memory the cluster may use here, as 8g (default: all)" },
  cpus: { valueHint: "NUMBER", description: "how many CPUs the cluster may use here, as 1.5 (default: all)" },
  network: {
    valueHint: "MODE",
    description:
      "how containers of different nodes reach each other: vxlan, wireguard or none (bootstrap only; default vxlan)",
  },
  "network-cidr": {
    valueHint: "CIDR",
    description:
      "where all addresses of containers come from, a /24 for each node (bootstrap only; default 10.213.0.0/16)",
  },
  "image-gc": {
    valueHint: "DURATION",
    description:
      "remove images that this node pulled and that were unused for so long, as 24h (none: never, the default)",
  },
  "disk-limit": {
    valueHint: "PERCENT",
    description: "take no new containers once Docker's disk is so full (default 90; none: always take them)",
  },
  policy: {
    valueHint: "FILE",
    description: "what jobs may not ask for, as YAML or JSON; the master reads it when it starts (none: no policy)",
  },
  "secret-key-file": {
    valueHint: "FILE",
    description:
      "the master's key for secrets and logins, 64 hex digits, mode 0600 (none: secret.key in the data directory)",
  },
  "heartbeat-interval": { valueHint: "DURATION", description: "how often nodes report (the master; default 1s)" },
  "node-timeout": {
    valueHint: "DURATION",
    description: "a node silent for so long is down (the master; default 4s)",
  },
  "engine-timeout": {
    valueHint: "DURATION",
    description:
      "what runs on a Docker Engine that is dead for so long is replaced elsewhere (the master; default 60s)",
  },
  "mass-failure-hold": {
    valueHint: "DURATION",
    description:
      "when most nodes fall silent together, nothing of theirs is replaced for so long (the master; default 60s)",
  },
  strategy: {
    valueHint: "NAME",
    description:
      "how nodes are chosen for services that say nothing: spread keeps them evenly full, binpack fills one after the other (the master; default spread)",
  },
  rebalance: {
    valueHint: "MODE",
    description:
      "auto moves replicas when nodes come and go; off waits for POST /cluster/rebalance (the master; default off)",
  },
  "log-level": { valueHint: "LEVEL", description: `${LOG_LEVELS.join(", ")} (default info)` },
  "log-format": { valueHint: "FORMAT", description: "json or pretty (default: pretty on a terminal, else json)" },
} as const satisfies Record<string, Option>;
type OptionName = keyof typeof OPTIONS;
const OPTION_NAMES = Object.keys(OPTIONS) as OptionName[];

type Given = Partial<Record<OptionName, string>> & { labels: string[]; allowHosts: string[] };

const EXAMPLES = `EXAMPLES

  cacophony bootstrap --bind-addr 10.0.0.1:9000     make a cluster; this node is its master
  cacophony join 10.0.0.1:9000                      add this machine; any node of the cluster will do
  cacophony                                         start again as what the data directory says
  cacophony leave                                   empty this machine's node and take it out of its cluster
  curl -X PUT 10.0.0.1:9000/cluster/job/my-job --data-binary @compose.yml
`;

const ARGS: ArgsDef = Object.fromEntries(
  Object.entries(OPTIONS).map(
    ([name, { valueHint, description }]) => [name, { type: "string", valueHint, description }] as const,
  ),
);

/** Of the start of a master. */
const MASTER_ARGS: ArgsDef = {
  ...ARGS,
  restored: {
    type: "boolean",
    description:
      "once, after cluster.db was restored from a backup: lead although nodes have seen newer terms (the master)",
  },
};

const COMMANDS = {
  bootstrap: defineCommand({
    meta: {
      name: "bootstrap",
      description: "Make a new cluster with this node as its master, or start that master again",
    },
    args: MASTER_ARGS,
  }),
  join: defineCommand({
    meta: { name: "join", description: "Join a cluster through any of its nodes, or start that node again" },
    args: {
      address: { type: "positional", description: "address of any node, as 10.0.0.1:9000", required: true },
      ...ARGS,
    },
  }),
  leave: defineCommand({
    meta: {
      name: "leave",
      description: "Empty this machine's node, which must be running, and take it out of its cluster",
    },
    args: {
      force: { type: "boolean", description: "move what has its data here, too, and leave the data behind" },
      deadline: {
        type: "string",
        valueHint: "DURATION",
        description: "stop what could not be moved by then (default 10m)",
      },
      "data-dir": ARGS["data-dir"] ?? { type: "string" },
    },
  }),
};

const ROOT = defineCommand({
  meta: { name: "cacophony", version: VERSION, description: "A distributed container scheduler that fits in one file" },
  args: MASTER_ARGS,
  subCommands: COMMANDS,
});

type Invocation =
  | { kind: "help"; command: keyof typeof COMMANDS | undefined }
  | { kind: "version" }
  | { kind: "leave"; given: Given; force: boolean; deadline: string | undefined }
  | { kind: "start"; command: StartOptions["command"]; peer?: string; given: Given; restored: boolean };

/** Runs one invocation of the program; resolves to its exit code. `env` is the process's environment. */
export async function runCli(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): Promise<number> {
  try {
    const invocation = readInvocation(argv, env);
    if (invocation.kind === "version") {
      console.log(`cacophony ${VERSION} (commit ${COMMIT}, Bun ${Bun.version})`);
      return 0;
    }
    if (invocation.kind === "help") {
      const { command } = invocation;
      const usage = command ? await renderUsage(COMMANDS[command] as CommandDef, ROOT) : await renderUsage(ROOT);
      console.log(`${process.stdout.isTTY ? usage : Bun.stripANSI(usage)}\n\n${EXAMPLES}`);
      return 0;
    }
    if (invocation.kind === "leave") {
      const dataDir = invocation.given["data-dir"] ?? defaultDataDir(env);
      return await leave({ ...invocation, dataDir, print: (line) => console.log(line) });
    }
    return await runNode(invocation, env);
  } catch (error) {
    if (!(error instanceof StartError)) {
      // Thrown on, it would only be told, as what a running node survives, and the process would end as if all were well.
      console.error(error);
      return EXIT_BROKEN_START;
    }
    console.error(`cacophony: ${error.message}`);
    return EXIT_BAD_START;
  }
}

async function runNode(
  { command, peer, given, restored }: Extract<Invocation, { kind: "start" }>,
  env: Readonly<Record<string, string | undefined>>,
): Promise<number> {
  const log = openLog({
    level: oneOf(given["log-level"] ?? "info", { what: "--log-level", allowed: LOG_LEVELS }) as LogLevel,
    format: oneOf(given["log-format"] ?? (process.stderr.isTTY ? "pretty" : "json"), {
      what: "--log-format",
      allowed: ["json", "pretty"],
    }) as LogFormat,
  });
  const signal = Promise.withResolvers<undefined>();
  for (const name of ["SIGTERM", "SIGINT"] as const) process.once(name, () => signal.resolve(undefined));
  const starting = Node.start({
    command,
    ...(peer === undefined ? {} : { peer }),
    dataDir: given["data-dir"] ?? defaultDataDir(env),
    settings: readSettings(given),
    restored,
    defaultDockerHost: readDockerHost(env["DOCKER_HOST"] || "unix:///var/run/docker.sock", "DOCKER_HOST"),
    dockerLogins: { configDir: env["DOCKER_CONFIG"] || join(homedir(), ".docker"), searchPath: env["PATH"] ?? "" },
    secretRoots: secretRoots(env),
    version: VERSION,
    log,
  });
  // A fault of ours in one piece of work must not take the node away from the others; the loops look again anyway. The state is in one
  // piece whatever throws: each change of it is one commit. A process that ended would be started again, and find what it ended by.
  const faults = new Faults({ log, clock: systemClock });
  const note = (error: unknown) => faults.tell("an error of Cacophony itself", error, { at: placeOf(error) });
  process.on("unhandledRejection", note);
  process.on("uncaughtException", note);
  const node = await Promise.race([starting, signal.promise]);
  // Told to stop while it was still starting: nothing runs yet that would have to be ended in order.
  if (!node) return 0;
  const failure = await Promise.race([signal.promise, node.failed, node.left]);
  log.info("stopping; containers keep running");
  await node.stop();
  if (failure) throw failure;
  return 0;
}

/**
 * What the arguments and the environment ask for. Options are taken before and after the subcommand; of a repeated one the
 * last counts, but for labels and hosts, which add up.
 */
function readInvocation(argv: readonly string[], env: Readonly<Record<string, string | undefined>>): Invocation {
  const options = Object.fromEntries(OPTION_NAMES.map((name) => [name, { type: "string", multiple: true }] as const));
  const { values, positionals } = parse(argv, options);
  const [command, ...rest] = positionals;
  if (values["version"]) return { kind: "version" };
  if (command !== undefined && command !== "bootstrap" && command !== "join" && command !== "leave") {
    if (command === "help") return { kind: "help", command: undefined };
    const near = nearest(command, Object.keys(COMMANDS));
    throw new StartError(`unknown command '${command}'; ${near ? `did you mean '${near}'?` : "see cacophony --help"}`);
  }
  if (values["help"]) return { kind: "help", command };
  const given = readGiven(values, env);
  const [deadline] = values["deadline"] ?? [];
  const force = values["force"] !== undefined;
  const restored = values["restored"] !== undefined;
  if (restored && (command === "join" || command === "leave"))
    throw new StartError(`--restored goes with the start of a master, not with ${command}`);
  if (command === "leave") {
    if (rest.length > 0) throw new StartError(`unexpected argument '${rest[0]}': leave is about this machine's node`);
    return { kind: "leave", given, force, deadline };
  }
  if (force || deadline !== undefined)
    throw new StartError(`--${force ? "force" : "deadline"} goes with leave; see cacophony leave --help`);
  if (command !== "join") {
    if (rest.length > 0)
      throw new StartError(`unexpected argument '${rest[0]}' after ${command}; see cacophony --help`);
    return { kind: "start", command: command ?? "resume", given, restored };
  }
  const [peer, extra] = rest;
  if (peer === undefined) throw new StartError("join needs the address of a node: cacophony join 10.0.0.1:9000");
  if (extra !== undefined) throw new StartError(`unexpected argument '${extra}': join takes one address`);
  parseAddress(peer, "the address to join");
  return { kind: "start", command, peer, given, restored };
}

function parse(argv: readonly string[], options: Record<string, { readonly type: "string"; readonly multiple: true }>) {
  const flags = {
    help: { type: "boolean", short: "h", multiple: true },
    version: { type: "boolean", short: "v", multiple: true },
    force: { type: "boolean", multiple: true },
    restored: { type: "boolean", multiple: true },
    deadline: { type: "string", multiple: true },
  } as const;
  try {
    const parsed = parseArgs({ args: [...argv], options: { ...options, ...flags }, allowPositionals: true });
    return { values: parsed.values as Record<string, string[] | undefined>, positionals: parsed.positionals };
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const unknown = /Unknown option '(-{1,2}[^']*)'/.exec(text)?.[1];
    if (unknown === undefined) throw new StartError(`${text.split(". ")[0]}; see cacophony --help`, { cause: error });
    const near = nearest(unknown.replace(/^-+/, ""), [
      ...OPTION_NAMES,
      "help",
      "version",
      "force",
      "deadline",
      "restored",
    ]);
    throw new StartError(
      `unknown option '${unknown}'; ${near ? `did you mean '--${near}'?` : "see cacophony --help"}`,
      { cause: error },
    );
  }
}

function readGiven(
  values: Record<string, string[] | undefined>,
  env: Readonly<Record<string, string | undefined>>,
): Given {
  const listOf = (name: "label" | "allow-host") =>
    values[name] ?? env[variableOf(name)]?.split(",").filter(Boolean) ?? [];
  const given: Given = { labels: listOf("label"), allowHosts: listOf("allow-host") };
  for (const name of OPTION_NAMES) {
    const value = values[name]?.at(-1) ?? (env[variableOf(name)] || undefined);
    if (value !== undefined) given[name] = value;
  }
  return given;
}

function variableOf(option: OptionName): string {
  return `CACOPHONY_${option.toUpperCase().replaceAll("-", "_")}`;
}

function readSettings(given: Given): Settings {
  const settings: Settings = {};
  if (given["bind-addr"] !== undefined) parseAddress((settings.bind_addr = given["bind-addr"]), "--bind-addr");
  if (given["advertise-addr"] !== undefined)
    parseAddress((settings.advertise_addr = given["advertise-addr"]), "--advertise-addr");
  if (given["docker-host"] !== undefined) settings.docker_host = readDockerHost(given["docker-host"], "--docker-host");
  if (given["node-name"] !== undefined) settings.node_name = readNodeName(given["node-name"]);
  if (given.labels.length > 0) settings.labels = readLabels(given.labels);
  if (given.allowHosts.length > 0) settings.allow_hosts = readHostNames(given.allowHosts);
  if (given.memory !== undefined) settings.memory_bytes = positive(readBytes(given.memory), { what: "--memory" });
  if (given.cpus !== undefined) settings.cpus = readCpus(given.cpus);
  if (given.network !== undefined) settings.network = readNetworkMode(given.network);
  if (given["network-cidr"] !== undefined) settings.network_cidr = readRange(given["network-cidr"]);
  if (given.policy !== undefined) settings.policy_file = given.policy === "none" ? "" : resolve(given.policy);
  const keyFile = given["secret-key-file"];
  if (keyFile !== undefined) settings.secret_key_file = keyFile === "none" ? "" : resolve(keyFile);
  if (given.strategy !== undefined)
    settings.strategy = oneOf(given.strategy, { what: "--strategy", allowed: ["spread", "binpack"] }) as Strategy;
  if (given.rebalance !== undefined)
    settings.rebalance = oneOf(given.rebalance, { what: "--rebalance", allowed: ["off", "auto"] }) as "off" | "auto";
  const imageGc = given["image-gc"];
  if (imageGc !== undefined) {
    const unused = imageGc === "none" ? 0 : positive(readDuration(imageGc), { what: "--image-gc" });
    settings.image_gc_ms = Math.ceil(unused / NANOSECONDS_PER_MS);
  }
  const diskLimit = given["disk-limit"];
  if (diskLimit !== undefined) settings.disk_limit = diskLimit === "none" ? 0 : readPercent(diskLimit, "--disk-limit");
  for (const [name, key] of [
    ["heartbeat-interval", "heartbeat_interval_ms"],
    ["node-timeout", "node_timeout_ms"],
    ["engine-timeout", "engine_timeout_ms"],
    ["mass-failure-hold", "mass_failure_hold_ms"],
  ] as const) {
    const text = given[name];
    if (text !== undefined)
      settings[key] = Math.ceil(positive(readDuration(text), { what: `--${name}` }) / NANOSECONDS_PER_MS);
  }
  return settings;
}

function positive(value: number | Refusal, { what }: { what: string }): number {
  if (value instanceof Refusal) throw new StartError(`${what} ${value.message}`);
  if (value <= 0) throw new StartError(`${what} must be above 0`);
  return value;
}

function readCpus(text: string): number {
  const cpus = Number(text);
  if (!/^(\d+|\d*\.\d+)$/.test(text) || cpus <= 0)
    throw new StartError(`--cpus '${text}' is no number above 0: write 4 or 1.5`);
  return cpus;
}

function readPercent(text: string, what: string): number {
  const percent = Number(/^([0-9]{1,3}) ?%?$/.exec(text)?.[1]);
  if (percent >= 1 && percent <= 100) return percent;
  throw new StartError(`${what} '${text}' is no share: write whole percent from 1 to 100, as 90, or none`);
}

function readLabels(texts: readonly string[]): [string, string][] {
  if (texts.length > MAX_LABELS)
    throw new StartError(`--label is given ${texts.length} times: a node has at most ${MAX_LABELS} labels`);
  const size = texts.join("").length;
  if (size > MAX_LABELS_CHARS)
    throw new StartError(
      `the labels of --label have ${size} characters in all: a node's have at most ${MAX_LABELS_CHARS}; put long texts elsewhere`,
    );
  return texts.map(readLabel);
}

function readLabel(text: string): [string, string] {
  const equals = text.indexOf("=");
  const shown = cut(text, 100);
  if (equals < 1) throw new StartError(`--label '${shown}' is no label: write KEY=VALUE, as zone=a`);
  const [key, value] = [text.slice(0, equals), text.slice(equals + 1)];
  const fault = labelFault(key, value);
  if (fault !== undefined)
    throw new StartError(`--label '${shown}' has ${key.length} and ${value.length} characters: ${fault}`);
  return [key, value];
}

function readHostNames(given: readonly string[]): string[] {
  if (given.length === 1 && given[0] === "none") return [];
  return given.map((text) => {
    const name = readHostName(text.trim());
    if (name !== undefined && name !== "none") return name;
    throw new StartError(
      `--allow-host '${text}' is not a host name: write api.example.org, or *.example.org for all names below it, without a port; addresses are always allowed`,
    );
  });
}

function readNodeName(text: string): string {
  if (/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,252}$/.test(text)) return text;
  throw new StartError(
    `--node-name '${text}' is no name: letters, digits, '.', '_' and '-', starting with a letter or a digit`,
  );
}

function readDockerHost(text: string, what: string): string {
  if (/^unix:\/\/\/./.test(text) || /^tcp:\/\/[^/\s]+$/.test(text)) return text;
  throw new StartError(`${what} '${text}' is not usable: write unix:///path/to/docker.sock or tcp://host:port`);
}

function readNetworkMode(text: string): NetworkMode {
  if (text === "vxlan" || text === "wireguard" || text === "none") return text;
  throw new StartError(`--network '${text}' is unknown: write vxlan, wireguard or none`);
}

/** An IPv4 range with room for at least one node's /24. */
function readRange(text: string): string {
  const prefix = Number(text.split("/")[1]);
  if (!isSubnet(text) || prefix < 8 || prefix > 24) {
    throw new StartError(
      `--network-cidr '${text}' is no usable range: write an IPv4 network of /8 to /24, as 10.213.0.0/16`,
    );
  }
  return text;
}

function oneOf(text: string, { what, allowed }: { what: string; allowed: readonly string[] }): string {
  if (allowed.includes(text)) return text;
  throw new StartError(`${what} '${text}' is unknown: write ${allowed.join(" or ")}`);
}

/** Where systems keep what ends with the machine; what of that is no tmpfs is passed over. */
function secretRoots(env: Readonly<Record<string, string | undefined>>): string[] {
  const own = process.getuid?.() === 0 ? "/run" : env["XDG_RUNTIME_DIR"];
  return [...(own ? [own] : []), "/dev/shm"];
}

function defaultDataDir(env: Readonly<Record<string, string | undefined>>): string {
  if (process.getuid?.() === 0) return "/var/lib/cacophony";
  return join(env["XDG_DATA_HOME"] || join(homedir(), ".local", "share"), "cacophony");
}
