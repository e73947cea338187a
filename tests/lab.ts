/**
 * @module The lab: real hosts with real Docker Engines on one machine, for tests. Each host is a network namespace with an
 * address of its own on the lab's bridge, and runs its own dockerd; processes of a host can be killed, frozen and cut off.
 * The test process stands on the same bridge, so it reaches every host directly. Needs root and the packages of `setup.sh`.
 *
 *     const lab = await Lab.start({ hosts: 3 });
 *     try { await lab.host(1).docker("ps"); } finally { await lab.stop(); }
 *
 * A lab touches nothing that it did not start, and `stop()` removes all of it. What a killed test run left behind is removed
 * by the next lab; see `lab_ground.ts`.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { command, isRunning, LabProcess, mustRun, tail, type CommandResult, type Env } from "./lab_process.ts";
import { killHost, leaveGround, takeGround, type Ground } from "./lab_ground.ts";
import { setPace, waitUntil } from "./wait.ts";

const REPOSITORY = resolve(import.meta.dir, "..");
const API_PORT = 9000;
const REGISTRY_PORT = 5000;
/** Highest number of a host: 254 is the test process itself. */
const MAX_HOSTS = 253;
/** How long a Docker Engine may take to answer, in milliseconds; it takes about one second. */
const ENGINE_TIMEOUT_MS = 30_000;
const REQUEST_TIMEOUT_MS = 10_000;
/** First version of the Engine whose identity is a file in its data directory, no longer a key in /etc/docker. */
const ENGINE_ID_FILE_SINCE = 23;

export interface LabOptions {
  hosts: number;
  /** Whether to start each host's Docker Engine and wait for it; default true. */
  docker?: boolean;
  /** The executable that `LabHost.cacophony` runs; default `dist/cacophony`. */
  binary?: string;
}

export class Lab {
  readonly hosts: LabHost[] = [];
  readonly #ground: Ground;
  readonly #binary: string;
  #busyboxTar: Promise<string> | undefined;

  private constructor(ground: Ground, binary: string) {
    this.#ground = ground;
    this.#binary = binary;
  }

  /** Builds the hosts and returns when all their engines answer; after a failure nothing is left. */
  static async start({ hosts, docker = true, binary = join(REPOSITORY, "dist/cacophony") }: LabOptions): Promise<Lab> {
    if (process.getuid?.() !== 0) {
      throw new Error("The lab makes network namespaces and starts Docker Engines: run its tests as root");
    }
    const lab = new Lab(takeGround(), binary);
    try {
      await lab.#layBridge();
      for (let number = 1; number <= hosts; number++) await lab.addHost({ docker: false });
      if (docker) await Promise.all(lab.hosts.map((host) => host.startDocker()));
      return lab;
    } catch (error) {
      await lab.stop();
      throw error;
    }
  }

  /** Host by its number, from 1. */
  host(number: number): LabHost {
    const host = this.hosts[number - 1];
    if (host === undefined) throw new Error(`The lab has hosts 1 to ${this.hosts.length}, no host ${number}`);
    return host;
  }

  /** One more machine. */
  async addHost({ docker = true }: { docker?: boolean } = {}): Promise<LabHost> {
    const host = await this.#addPlace(this.hosts.length + 1);
    this.hosts.push(host);
    if (docker) await host.startDocker();
    return host;
  }

  /** An image registry on a host of its own, which wants `login` if there is one; all engines of the lab take it as it is. */
  async addRegistry({ login }: { login?: { username: string; password: string } } = {}): Promise<LabRegistry> {
    const host = await this.#addPlace(MAX_HOSTS);
    const address = `${host.address}:${REGISTRY_PORT}`;
    const config = join(host.dir, "registry.yml");
    const storage = { filesystem: { rootdirectory: join(host.dir, "images") }, delete: { enabled: true } };
    const htpasswd = { realm: "lab", path: join(host.dir, "htpasswd") };
    if (login) {
      const hash = await Bun.password.hash(login.password, { algorithm: "bcrypt", cost: 4 });
      writeFileSync(htpasswd.path, `${login.username}:${hash}\n`);
    }
    const options = { log: { level: "warn" }, storage, http: { addr: address }, ...(login && { auth: { htpasswd } }) };
    writeFileSync(config, JSON.stringify({ version: "0.1", ...options }));
    const server = host.spawn("registry", ["docker-registry", "serve", config]);
    await waitUntil(`the registry at ${address} to answer`, async () => {
      if (!server.running) throw new Error(`docker-registry ended: ${tail(server.logs())}`);
      const { status } = await host.fetch("/v2/", { port: REGISTRY_PORT });
      return status === (login ? 401 : 200);
    });
    return new LabRegistry({ host, address, login });
  }

  /** Ends every process and removes all that the lab made. */
  async stop(): Promise<void> {
    leaveGround(this.#ground);
  }

  async #layBridge(): Promise<void> {
    const { prefix, subnet } = this.#ground;
    const lines = [
      `link add ${prefix} type bridge`,
      `addr add ${subnet}.254/24 dev ${prefix}`,
      `link set ${prefix} up`,
    ];
    await mustRun(["ip", "-batch", "-"], { input: lines.join("\n") });
    // Where the machine has a Docker Engine, its firewall rules would drop what passes from host to host.
    await mustRun(["iptables", "-w", "-I", "FORWARD", "-i", prefix, "-o", prefix, "-j", "ACCEPT"]);
  }

  async #addPlace(number: number): Promise<LabHost> {
    const { prefix, subnet, dir } = this.#ground;
    const name = `${prefix}h${number}`;
    const address = `${subnet}.${number}`;
    const outside = [
      `netns add ${name}`,
      `link add ${name} type veth peer name eth0 netns ${name}`,
      `link set ${name} master ${prefix} up`,
    ];
    const inside = ["link set lo up", `addr add ${address}/24 dev eth0`, "link set eth0 up"];
    await mustRun(["ip", "-batch", "-"], { input: outside.join("\n") });
    await mustRun(["ip", "-n", name, "-batch", "-"], { input: inside.join("\n") });
    const host = new LabHost({
      number,
      name,
      address,
      subnet,
      lab: prefix,
      dir: join(dir, `h${number}`),
      binary: this.#binary,
      busyboxTar: () => (this.#busyboxTar ??= this.#makeBusyboxTar()),
    });
    mkdirSync(host.dir);
    return host;
  }

  async #makeBusyboxTar(): Promise<string> {
    const tar = join(this.#ground.dir, "busybox.tar");
    await mustRun(["sh", "-c", 'sh "$1" >"$2"', "sh", join(REPOSITORY, "examples/busybox_image.sh"), tar]);
    return tar;
  }
}

export class LabRegistry {
  readonly host: LabHost;
  /** `10.77.x.253:5000`, what an image's name begins with. */
  readonly address: string;
  readonly #login: { username: string; password: string } | undefined;

  constructor(options: { host: LabHost; address: string; login: { username: string; password: string } | undefined }) {
    this.host = options.host;
    this.address = options.address;
    this.#login = options.login;
  }

  /** Puts an image of `from` into the registry and returns its full name; `from` does not keep it under that name. */
  async push(from: LabHost, image: string): Promise<string> {
    const name = `${this.address}/${image}`;
    const config = ["--config", join(this.host.dir, "docker-login")];
    if (this.#login) {
      const { username, password } = this.#login;
      await from.docker(...config, "login", "-u", username, "-p", password, this.address);
    }
    await from.docker("tag", image, name);
    await from.docker(...config, "push", name);
    await from.docker("rmi", name);
    return name;
  }
}

interface HostOptions {
  number: number;
  name: string;
  address: string;
  subnet: string;
  /** Prefix of the lab's names, which is also its cgroup. */
  lab: string;
  dir: string;
  binary: string;
  /** Makes the file on the first call. */
  busyboxTar: () => Promise<string>;
}

/** Makes a command that runs the one that it is given. */
export type Within = (argv: readonly string[]) => readonly string[];

export type HostRequest = RequestInit & { port?: number; timeoutMs?: number };

export class LabHost {
  /** From 1; also the last byte of its address. */
  readonly number: number;
  /** Network namespace of the host. */
  readonly name: string;
  readonly address: string;
  /** Where the host's files are: its engine's data, its cacophony's data directory, logs. */
  readonly dir: string;
  /** Path of the engine's unix socket. */
  readonly dockerSocket: string;
  /** Data directory that `cacophony()` uses. */
  readonly dataDir: string;
  readonly #options: HostOptions;
  #engine: LabProcess | undefined;
  #started = 0;

  constructor(options: HostOptions) {
    this.number = options.number;
    this.name = options.name;
    this.address = options.address;
    this.dir = options.dir;
    this.dockerSocket = join(options.dir, "docker.sock");
    this.dataDir = join(options.dir, "cacophony");
    this.#options = options;
  }

  /** The running dockerd, to be frozen or signalled. */
  get dockerd(): LabProcess {
    if (this.#engine === undefined) throw new Error(`Host ${this.number} has no Docker Engine yet: call startDocker()`);
    return this.#engine;
  }

  // ---- Processes ----------------------------------------------------------------------------------------------------

  /** Starts a process on this host; its output goes to a file of its own. */
  spawn(name: string, argv: readonly string[], { env = {} }: { env?: Env } = {}): LabProcess {
    const logFile = join(this.dir, `${name}-${++this.#started}.log`);
    return new LabProcess(`${name} on host ${this.number}`, this.#inside(argv), { env: this.#env(env), logFile });
  }

  /**
   * Starts `cacophony ARGS`, with this host's engine and data directory unless `env` or `args` say otherwise. `binary`: another
   * executable than the lab's.
   */
  cacophony(
    args: readonly string[],
    {
      env = {},
      binary = this.#binaryPath(),
      within = (argv) => argv,
    }: { env?: Env; binary?: string | undefined; within?: Within } = {},
  ): LabProcess {
    return this.spawn("cacophony", within([binary, ...args]), { env: this.#cacophonyEnv(env) });
  }

  /** Runs `cacophony ARGS` to its end. */
  async runCacophony(args: readonly string[], { env = {} }: { env?: Env } = {}): Promise<CommandResult> {
    return command(this.#inside([this.#binaryPath(), ...args]), { env: this.#env(this.#cacophonyEnv(env)) });
  }

  /** Runs a command on this host to its end; a non-zero exit is a result. */
  async run(argv: readonly string[], { input }: { input?: string } = {}): Promise<CommandResult> {
    return command(this.#inside(argv), { env: this.#env(), ...(input === undefined ? {} : { input }) });
  }

  /** Runs the real curl on this host, as `-sS` plus `args`. */
  async curl(...args: string[]): Promise<CommandResult> {
    return this.run(["curl", "-sS", ...args]);
  }

  /** A request from the test process to this host's address, each on a connection of its own; port 9000 by default. */
  async fetch(
    path: string,
    { port = API_PORT, timeoutMs = REQUEST_TIMEOUT_MS, ...init }: HostRequest = {},
  ): Promise<Response> {
    const signal = AbortSignal.timeout(timeoutMs);
    return fetch(`http://${this.address}:${port}${path}`, { keepalive: false, signal, ...init });
  }

  // ---- Docker Engine ------------------------------------------------------------------------------------------------

  /** Starts the engine and waits until it answers. `config`: more options, as in Docker's daemon.json. */
  async startDocker({ config = {} }: { config?: Record<string, unknown> } = {}): Promise<void> {
    const file = join(this.dir, "daemon.json");
    writeFileSync(file, JSON.stringify({ ...(await this.#engineConfig()), ...config }));
    const dockerd = this.spawn("dockerd", ["dockerd", "--config-file", file]);
    this.#engine = dockerd;
    const running = await waitUntil(
      `the Docker Engine of host ${this.number} to answer`,
      async () => (await this.#engineAnswers()) || (dockerd.running ? undefined : "ended"),
      { until: (seen) => seen !== undefined, timeoutMs: ENGINE_TIMEOUT_MS, intervalMs: 20 },
    );
    if (running === "ended") throw new Error(`dockerd of host ${this.number} ended:\n${tail(dockerd.logs())}`);
  }

  /** SIGKILL to dockerd; its containerd goes with it, as the kernel is told to. Containers go on until the next start. */
  async killDocker(): Promise<void> {
    const containerd = existsSync(this.#containerdPidFile)
      ? Number(readFileSync(this.#containerdPidFile, "utf8"))
      : undefined;
    await this.dockerd.kill();
    if (containerd !== undefined) {
      await waitUntil(`containerd of host ${this.number} to end with its dockerd`, () => !isRunning(containerd));
    }
  }

  /**
   * Starts the engine again after it was killed or stopped; kills it first when it still runs. It ends containers that
   * still run before it answers: with their stop signal, and after 10 s with SIGKILL.
   */
  async restartDocker(): Promise<void> {
    await this.killDocker();
    this.#removePidFiles();
    await this.startDocker();
  }

  /** Runs the docker command line on this host's engine and returns its output. @throws Error with Docker's message. */
  async docker(...args: string[]): Promise<string> {
    return mustRun(["docker", "-H", `unix://${this.dockerSocket}`, ...args], { env: this.#env() });
  }

  /** A request to this host's engine, such as `/containers/json?all=1`: quicker than the command line. */
  async engine(
    path: string,
    { timeoutMs = REQUEST_TIMEOUT_MS, ...init }: RequestInit & { timeoutMs?: number } = {},
  ): Promise<Response> {
    return fetch(`http://docker${path}`, { unix: this.dockerSocket, signal: AbortSignal.timeout(timeoutMs), ...init });
  }

  /** Makes a local image out of Debian's static busybox, which `sh` is the command of. */
  async importImage(name: string): Promise<void> {
    await mustRun(["docker", "-H", `unix://${this.dockerSocket}`, "import", "--change", 'CMD ["sh"]', "-", name], {
      env: this.#env(),
      input: { file: await this.#options.busyboxTar() },
    });
  }

  /** Runs a container of `image` to its end and remembers how long that took; see `paced`. */
  async measurePace(image: string): Promise<void> {
    const startedAt = performance.now();
    await this.docker("run", "--rm", image, "true");
    setPace(performance.now() - startedAt);
  }

  // ---- The machine as a whole ---------------------------------------------------------------------------------------

  /** Pulls the host's network cable. */
  async cutOff(): Promise<void> {
    await mustRun(["ip", "link", "set", this.name, "down"]);
  }

  async reconnect(): Promise<void> {
    await mustRun(["ip", "link", "set", this.name, "up"]);
  }

  /** Ends all processes and containers of the host at once. `startDocker` and `cacophony` boot it again. */
  powerOff(): void {
    killHost({ namespace: this.name, cgroup: this.#cgroup, dir: this.dir });
    this.#removePidFiles();
  }

  get #containerdPidFile(): string {
    return join(this.dir, "exec/containerd/containerd.pid");
  }

  /** A killed engine leaves them behind, and takes another process with that number, or a zombie, for itself. */
  #removePidFiles(): void {
    rmSync(join(this.dir, "docker.pid"), { force: true });
    rmSync(this.#containerdPidFile, { force: true });
  }

  get #cgroup(): string {
    return `${this.#options.lab}/h${this.number}`;
  }

  async #engineAnswers(): Promise<"answers" | undefined> {
    try {
      return (await this.engine("/_ping", { timeoutMs: 1_000 })).ok ? "answers" : undefined;
    } catch {
      return undefined;
    }
  }

  /** Options as a configuration file of our own, for dockerd would read the machine's /etc/docker/daemon.json else. */
  async #engineConfig(): Promise<Record<string, unknown>> {
    const dataRoot = join(this.dir, "data");
    mkdirSync(dataRoot, { recursive: true });
    const identity = join(dataRoot, "engine-id");
    if (!existsSync(identity)) writeFileSync(identity, crypto.randomUUID());
    const version = await mustRun(["dockerd", "--version"]);
    const major = Number(/version (\d+)/.exec(version)?.[1]);
    return {
      "data-root": dataRoot,
      "exec-root": join(this.dir, "exec"),
      pidfile: join(this.dir, "docker.pid"),
      hosts: [`unix://${this.dockerSocket}`],
      bip: `172.30.${this.number}.1/24`,
      "insecure-registries": [`${this.#options.subnet}.0/24`],
      "cgroup-parent": `/${this.#cgroup}`,
      "exec-opts": ["native.cgroupdriver=cgroupfs"],
      // Older engines take their identity from one key file for the whole machine: all hosts would be one engine.
      ...(major < ENGINE_ID_FILE_SINCE ? { "deprecated-key-path": join(dataRoot, "key.json") } : {}),
    };
  }

  /** Only the network is the host's own. Not `ip netns exec`: that hides /sys/fs/cgroup from the engine. */
  #inside(argv: readonly string[]): string[] {
    return ["nsenter", `--net=/run/netns/${this.name}`, "--", ...argv];
  }

  #env(env: Env = {}): Env {
    return { HOME: this.dir, ...env };
  }

  #cacophonyEnv(env: Env): Env {
    return {
      DOCKER_HOST: `unix://${this.dockerSocket}`,
      CACOPHONY_DATA_DIR: this.dataDir,
      CACOPHONY_NODE_NAME: `host-${this.number}`,
      ...env,
    };
  }

  #binaryPath(): string {
    const { binary } = this.#options;
    if (!existsSync(binary)) throw new Error(`${binary} is missing: run "npm run build"`);
    return binary;
  }
}
