/**
 * @module The ground that a lab stands on: which names and addresses are its own, and how all of it is removed again, also
 * when the process that made it died. Knows nothing of what runs on the hosts.
 *
 * A lab is known by its plot, a number that is the third byte of its addresses and part of all its names. A plot is held
 * by listening on an abstract unix socket: only one process can, and the kernel lets go of it when that process dies. So
 * whoever holds a plot may remove whatever is left on it.
 */
import { mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync } from "node:fs";
import { join } from "node:path";

export interface Ground {
  /** First three bytes of the lab's /24 network: `10.77.12`. */
  subnet: string;
  /** Name of the lab's bridge, and what its other names begin with; short, for the kernel takes 15 characters. */
  prefix: string;
  /** The lab's own directory; short, for a unix socket's path takes 107 characters. */
  dir: string;
}

const PLOTS = 250;
const DIR_PREFIX = "/tmp/cacophony-lab-";
const CGROUPS = "/sys/fs/cgroup";
/** How long killed processes may take to be gone, in milliseconds. */
const GONE_TIMEOUT_MS = 10_000;

type Lock = { stop(): void };
const held = new Map<string, Lock>();

/** Takes a free plot, after removing what dead labs left behind. @throws Error when all are taken. */
export function takeGround(): Ground {
  for (const plot of abandonedPlots()) {
    const lock = tryLock(plot);
    if (lock === undefined) continue;
    clear(groundOf(plot));
    lock.stop();
  }
  for (let plot = 1; plot <= PLOTS; plot++) {
    const ground = groundOf(plot);
    const lock = tryLock(plot);
    if (lock === undefined) continue;
    if (networkIsInUse(ground)) {
      lock.stop();
      continue;
    }
    mkdirSync(ground.dir, { recursive: true });
    if (held.size === 0) process.on("SIGINT", removeAllAndExit).on("SIGTERM", removeAllAndExit);
    held.set(ground.dir, lock);
    return ground;
  }
  throw new Error(`No lab network is free: all of 10.77.1.0/24 to 10.77.${PLOTS}.0/24 are in use`);
}

/** Ends every process on the ground and removes all that the lab made; the second time, nothing. */
export function leaveGround(ground: Ground): void {
  const lock = held.get(ground.dir);
  if (lock === undefined) return;
  clear(ground);
  lock.stop();
  held.delete(ground.dir);
  if (held.size === 0) process.off("SIGINT", removeAllAndExit).off("SIGTERM", removeAllAndExit);
}

/** Ends, by SIGKILL, all that runs on a host: in its network namespace, and in the containers below its cgroup. */
export function killHost({ namespace, cgroup, dir }: { namespace: string; cgroup: string; dir: string }): void {
  const cgroups = cgroupDirs(cgroup);
  waitSync(`the processes of ${namespace} to be gone`, () => {
    // Asked again after each round: a container that was about to start must not slip through.
    const pids = [...pidsOfNamespace(namespace), ...cgroups.flatMap(pidsOfCgroup)];
    pids.forEach(kill);
    return pids.length === 0;
  });
  removeShimSockets(dir);
}

function groundOf(plot: number): Ground {
  return { subnet: `10.77.${plot}`, prefix: `caclab${plot}`, dir: `${DIR_PREFIX}${plot}` };
}

function tryLock(plot: number): Lock | undefined {
  try {
    const listener = Bun.listen({ unix: `\0cacophony-lab-${plot}`, socket: { data() {} } });
    listener.unref();
    return { stop: () => listener.stop(true) };
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EADDRINUSE") return undefined;
    throw error;
  }
}

/** The directory is made first and removed last, so that it stands for all that a lab has. */
function abandonedPlots(): number[] {
  return readdirSync("/tmp").flatMap((name) => {
    const plot = /^cacophony-lab-(\d+)$/.exec(name)?.[1];
    return plot === undefined ? [] : [Number(plot)];
  });
}

function networkIsInUse({ subnet }: Ground): boolean {
  return run(["ip", "route", "show", "table", "all", "root", `${subnet}.0/24`]) !== "";
}

function removeAllAndExit(signal: NodeJS.Signals): never {
  for (const dir of held.keys()) clear(groundOf(Number(dir.slice(DIR_PREFIX.length))));
  process.exit(signal === "SIGINT" ? 130 : 143);
}

function clear({ prefix, dir }: Ground): void {
  const namespaces = run(["ip", "netns", "list"])
    .split("\n")
    .flatMap((line) => line.split(" ")[0] ?? [])
    .filter((name) => new RegExp(`^${prefix}h\\d+$`).test(name));
  for (const namespace of namespaces) {
    const host = namespace.slice(prefix.length);
    killHost({ namespace, cgroup: `${prefix}/${host}`, dir: join(dir, host) });
  }
  cgroupDirs(prefix).forEach(removeCgroup);
  unmountBelow(dir);
  for (const namespace of namespaces) {
    // The kernel removes a namespace in its own time, and the interfaces in it: those on our side must be gone now.
    run(["ip", "link", "delete", namespace]);
    run(["ip", "netns", "delete", namespace]);
  }
  run(["ip", "link", "delete", prefix]);
  run(["iptables", "-w", "-D", "FORWARD", "-i", prefix, "-o", prefix, "-j", "ACCEPT"]);
  removeSecrets(dir);
  rmSync(dir, { recursive: true, force: true });
}

function pidsOfNamespace(namespace: string): number[] {
  return pidsIn(run(["ip", "netns", "pids", namespace]));
}

/** A cgroup's directory in each hierarchy (version 1), or the one there is (version 2). */
function cgroupDirs(cgroup: string): string[] {
  const hierarchies = [CGROUPS, ...directories(CGROUPS)];
  return hierarchies.map((dir) => join(dir, cgroup)).filter(exists);
}

function pidsOfCgroup(dir: string): number[] {
  return [...pidsIn(read(join(dir, "cgroup.procs"))), ...directories(dir).flatMap(pidsOfCgroup)];
}

function removeCgroup(dir: string): void {
  directories(dir).forEach(removeCgroup);
  waitSync(`${dir} to be empty`, () => {
    try {
      rmdirSync(dir);
      return true;
    } catch {
      return !exists(dir);
    }
  });
}

/** Containers' file systems, shared memory and network namespaces are mounts below the engine's directories. */
function unmountBelow(dir: string): void {
  const mounts = read("/proc/self/mountinfo")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "")
    .filter((path) => path.startsWith(`${dir}/`))
    .toReversed();
  if (mounts.length > 0) run(["umount", "-l", ...mounts]);
}

/** containerd keeps the sockets of its shims in one place for the whole machine; each bundle says which one is its own. */
function removeShimSockets(hostDir: string): void {
  if (!exists(join(hostDir, "exec"))) return;
  for (const file of new Bun.Glob("exec/containerd/daemon/*/*/*/address").scanSync({ cwd: hostDir })) {
    const socket = /^unix:\/\/(\/.+)$/.exec(read(join(hostDir, file)).trim())?.[1];
    if (socket !== undefined) rmSync(socket, { force: true });
  }
}

/** Nodes hold secrets where the whole machine keeps what ends with it, each in a directory named after itself. */
function removeSecrets(dir: string): void {
  for (const file of new Bun.Glob("h*/*/node.json").scanSync({ cwd: dir })) {
    const { node_id } = JSON.parse(read(join(dir, file))) as { node_id: string };
    for (const root of ["/run", "/dev/shm"])
      rmSync(join(root, "cacophony-0", node_id), { recursive: true, force: true });
  }
}

function waitSync(what: string, done: () => boolean): void {
  const deadline = performance.now() + GONE_TIMEOUT_MS;
  while (!done()) {
    if (performance.now() > deadline) throw new Error(`Lab: waited ${GONE_TIMEOUT_MS} ms for ${what}`);
    Bun.sleepSync(10);
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // Gone by itself since it was listed.
  }
}

/** Output of a command whose failure means that there is nothing to do. */
function run(argv: string[]): string {
  return Bun.spawnSync(argv, { stderr: "ignore" }).stdout.toString().trim();
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function exists(path: string): boolean {
  try {
    readdirSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Of what is not there, or is removed just now, none. */
function directories(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(path, entry.name));
  } catch {
    return [];
  }
}

/** Process ids in a listing. The kernel writes 0 for one that this process may not see; to kill 0 means oneself. */
function pidsIn(text: string): number[] {
  return text
    .split(/\s+/)
    .map(Number)
    .filter((pid) => pid > 0);
}
