/**
 * @module What the machine has and how much of it is used: memory, CPUs, GPUs, Docker's disk, host ports and routes.
 *
 * Owns the readings: from /proc where the Engine is on this machine, else from the Engine itself. Read when asked, at most once
 * a second; there is nothing to start or stop. Sources: proc(5), and MemAvailable as the kernel estimates it.
 */
import { readdirSync, readFileSync, statfsSync } from "node:fs";
import { join } from "node:path";
import type { Clock } from "./clock.ts";
import type { Engine } from "./docker.ts";
import { proxiedPorts } from "./docker_proxies.ts";
import type { Resources } from "./model_reports.ts";

/** What of Docker's the readings need: the cluster's running containers here, and published ports as `tcp/80`. */
export type MeterView = {
  containers: readonly string[];
  ownPorts: readonly string[];
  otherPorts: readonly string[];
  /** Where Docker keeps its data, if that is known. */
  dataRoot?: string | undefined;
};

export interface Meter {
  /** The newest reading; undefined while there is none. */
  read(view: MeterView): Resources | undefined;
  /** IPv4 subnets that this host has routes to, as CIDR texts; without the default route. */
  routes(): string[];
}

/** CPU use counts as the average over about this time: a compile job of seconds should not move placement. */
const CPU_TIME_CONSTANT_MS = 60_000;
/** One answer serves all who ask within this time. */
const READ_INTERVAL_MS = 1_000;
/** /proc/net/tcp lists every connection; on a busy proxy reading it takes tens of milliseconds. */
const PORTS_INTERVAL_MS = 5_000;
/** The kernel goes through its whole table of connections for it, also where there are none: while no socket comes or goes, this will do. */
const CALM_PORTS_INTERVAL_MS = 30_000;
/** Asking Docker for the use of one container takes about a millisecond of its time. */
const USAGE_INTERVAL_MS = 10_000;
/** A disk does not fill within seconds, and a slow one is not to be asked often. */
const DISK_INTERVAL_MS = 5_000;
/** GPUs come and go with drivers, and the driver may take its time to answer. */
const GPUS_INTERVAL_MS = 60_000;
/** Under /proc, one directory for each GPU. */
const GPUS = "driver/nvidia/gpus";
/** A port that a container of ours gave up is still seen as listening for a moment. */
const OWN_PORT_MS = 10_000;
/** Containers that are not the cluster's are looked for every 30 s, and a look takes its time on a busy Engine. */
const LOST_PORT_MS = 40_000;

type Totals = { memory: number; cpus: number };
/** Used by the cluster's own containers: bytes and CPUs. */
type OwnUse = { memory: number; cpus: number };

export class HostMeter implements Meter {
  readonly #engine: Engine;
  readonly #clock: Clock;
  readonly #cap: { memory: number | undefined; cpus: number | undefined };
  readonly #procDir: string;

  #last: { at: number; resources: Resources } | undefined;
  #cpuTimes: { at: number; busy: number; total: number } | undefined;
  #usedCpus: number | undefined;
  #ports: { at: number; listening: string[]; sockets: string } | undefined;
  #portsAskedAt = -Infinity;
  readonly #ownPorts = new Map<string, number>();
  /** Taken ports that no container has: since when, and whether Docker holds them all the same; undefined: not looked at yet. */
  #unowned = new Map<string, { since: number; isLost: boolean | undefined }>();
  #disk: { at: number; path: string; reading: Resources["disk"] } | undefined;
  #gpus: { at: number; ids: string[] } | undefined;
  #totals: Totals | undefined;
  #ownUse: OwnUse = { memory: 0, cpus: 0 };
  #samples = new Map<string, { at: number; cpuNs: number }>();
  #sampledAt = -Infinity;

  /** `caps` limits what of the machine the cluster may use; undefined: all of it. */
  constructor(options: {
    engine: Engine;
    clock: Clock;
    caps: { memoryBytes: number | undefined; cpus: number | undefined };
    procDir?: string;
  }) {
    this.#engine = options.engine;
    this.#clock = options.clock;
    this.#cap = { memory: options.caps.memoryBytes, cpus: options.caps.cpus };
    this.#procDir = options.procDir ?? "/proc";
  }

  read(view: MeterView): Resources | undefined {
    const now = this.#clock.now();
    for (const port of view.ownPorts) this.#ownPorts.set(port, now);
    if (this.#last && now - this.#last.at < READ_INTERVAL_MS) return this.#last.resources;
    this.#sampleUse(view, now);
    const resources = this.#engine.remote ? this.#readRemote(view) : this.#readLocal(view, now);
    if (resources) this.#last = { at: now, resources };
    return resources;
  }

  routes(): string[] {
    return this.#engine.remote ? [] : parseRoutes(this.#file("net/route"));
  }

  #readLocal(view: MeterView, now: number): Resources {
    const { totalBytes, availableBytes } = parseMeminfo(this.#file("meminfo"));
    const times = parseStat(this.#file("stat"));
    const machineCpus = this.#averageCpus(times, now);
    const memory = capped({
      machine: totalBytes,
      used: totalBytes - availableBytes,
      own: this.#ownUse.memory,
      cap: this.#cap.memory,
    });
    const cpus = capped({ machine: times.cpus, used: machineCpus, own: this.#ownUse.cpus, cap: this.#cap.cpus });
    const gpus = this.#listGpus(now);
    const disk = this.#readDisk(view.dataRoot, now);
    const takenPorts = this.#takenPorts(view, now);
    const lostPorts = this.#lostPorts(takenPorts, view, now);
    return {
      ...asResources({ memory, cpus, takenPorts }),
      ...(lostPorts.length > 0 && { lost_ports: lostPorts }),
      ...(gpus.length > 0 && { gpus }),
      ...(disk && { disk }),
    };
  }

  #readDisk(path: string | undefined, now: number): Resources["disk"] {
    if (path === undefined) return undefined;
    if (!this.#disk || this.#disk.path !== path || now - this.#disk.at >= DISK_INTERVAL_MS)
      this.#disk = { at: now, path, reading: diskAt(path) };
    return this.#disk.reading;
  }

  #readRemote(view: MeterView): Resources | undefined {
    if (!this.#totals) return undefined;
    const { memory, cpus } = this.#totals;
    return asResources({
      memory: { total: Math.min(memory, this.#cap.memory ?? Infinity), used: this.#ownUse.memory },
      cpus: { total: Math.min(cpus, this.#cap.cpus ?? Infinity), used: this.#ownUse.cpus },
      takenPorts: [...new Set(view.otherPorts)].sort(),
    });
  }

  /** UUIDs of the GPUs that the NVIDIA driver lists, in the order of their places on the bus, as nvidia-smi numbers them. */
  #listGpus(now: number): string[] {
    if (this.#gpus && now - this.#gpus.at < GPUS_INTERVAL_MS) return this.#gpus.ids;
    let places: string[] = [];
    try {
      places = readdirSync(join(this.#procDir, GPUS)).sort();
    } catch {
      // No such driver, so no such GPUs.
    }
    const ids = places.map((place) => parseGpu(this.#file(join(GPUS, place, "information"))) ?? place);
    this.#gpus = { at: now, ids };
    return ids;
  }

  /** CPUs in use on the machine, as an exponential moving average. */
  #averageCpus(times: { busy: number; total: number; cpus: number }, now: number): number {
    const before = this.#cpuTimes;
    this.#cpuTimes = { at: now, busy: times.busy, total: times.total };
    if (this.#usedCpus === undefined || !before) {
      // A node that just started has no past of its own; the load average is the machine's.
      this.#usedCpus = Math.min(parseLoadavg(this.#file("loadavg")), times.cpus);
      return this.#usedCpus;
    }
    const ticks = times.total - before.total;
    if (ticks <= 0) return this.#usedCpus;
    const share = Math.min(1, Math.max(0, (times.busy - before.busy) / ticks));
    const weight = 1 - Math.exp(-(now - before.at) / CPU_TIME_CONSTANT_MS);
    this.#usedCpus += weight * (share * times.cpus - this.#usedCpus);
    return this.#usedCpus;
  }

  #takenPorts(view: MeterView, now: number): string[] {
    const { listening } = this.#readPorts(now);
    for (const [port, seen] of this.#ownPorts) if (now - seen > OWN_PORT_MS) this.#ownPorts.delete(port);
    const taken = new Set([...listening, ...view.otherPorts]);
    return [...taken].filter((port) => !this.#ownPorts.has(port)).sort();
  }

  #lostPorts(taken: readonly string[], { otherPorts }: MeterView, now: number): string[] {
    const unowned = taken.filter((port) => !otherPorts.includes(port));
    this.#unowned = new Map(
      unowned.map((port) => [port, this.#unowned.get(port) ?? { since: now, isLost: undefined }]),
    );
    const due = [...this.#unowned].filter(
      ([, { since, isLost }]) => isLost === undefined && now - since >= LOST_PORT_MS,
    );
    if (due.length > 0) {
      const proxied = proxiedPorts(this.#procDir);
      for (const [port, seen] of due) seen.isLost = proxied.has(port);
    }
    return unowned.filter((port) => this.#unowned.get(port)?.isLost);
  }

  #readPorts(now: number): { listening: string[] } {
    const known = this.#ports;
    if (known && now - this.#portsAskedAt < PORTS_INTERVAL_MS) return known;
    this.#portsAskedAt = now;
    const sockets = parseSocketCounts(this.#file("net/sockstat") + this.#file("net/sockstat6"));
    const isCalm = sockets !== "" && sockets === known?.sockets && now - known.at < CALM_PORTS_INTERVAL_MS;
    if (known && isCalm) return known;
    const listening = [
      ...parseSockets(this.#file("net/tcp"), "tcp"),
      ...parseSockets(this.#file("net/tcp6"), "tcp"),
      ...parseSockets(this.#file("net/udp"), "udp"),
      ...parseSockets(this.#file("net/udp6"), "udp"),
    ];
    this.#ports = { at: now, listening, sockets };
    return this.#ports;
  }

  /** Begins a sample of what the cluster's containers use, where a reading needs it; the next reading has it. */
  #sampleUse({ containers }: MeterView, now: number): void {
    const isNeeded = this.#engine.remote || this.#cap.memory !== undefined || this.#cap.cpus !== undefined;
    if (!isNeeded || now - this.#sampledAt < USAGE_INTERVAL_MS) return;
    this.#sampledAt = now;
    this.#sample(containers).catch(() => {}); // Docker's silence is the executor's to report; the last sample stands.
  }

  async #sample(containers: readonly string[]): Promise<void> {
    if (this.#engine.remote) {
      const info = await this.#engine.info();
      this.#totals = { memory: info.memoryBytes, cpus: info.cpus };
    }
    const samples = new Map<string, { at: number; cpuNs: number }>();
    const use: OwnUse = { memory: 0, cpus: 0 };
    // One after the other: a reading every 10 s is in no hurry, and Docker has better to do.
    for (const id of containers) {
      const usage = await this.#engine.usage(id);
      if (!usage) continue;
      const at = this.#clock.now();
      const before = this.#samples.get(id);
      use.memory += usage.memoryBytes;
      if (before && at > before.at) use.cpus += Math.max(0, usage.cpuNs - before.cpuNs) / ((at - before.at) * 1e6);
      samples.set(id, { at, cpuNs: usage.cpuNs });
    }
    this.#samples = samples;
    this.#ownUse = use;
  }

  /** The text of a file under /proc; empty where the kernel has no such thing (IPv6 switched off). */
  #file(name: string): string {
    try {
      return readFileSync(join(this.#procDir, name), "utf8");
    } catch {
      return "";
    }
  }
}

/** The file system of a path as df(1) counts it: what is kept for root alone is no part of it, so its share in use is df's. */
function diskAt(path: string): Resources["disk"] {
  try {
    const { bsize, blocks, bfree, bavail } = statfsSync(path);
    return { total: (blocks - bfree + bavail) * bsize, available: bavail * bsize };
  } catch {
    // The Engine is in a mount namespace of its own, where the path leads elsewhere.
    return undefined;
  }
}

type Amount = { total: number; used: number };

/**
 * What counts of a machine under a cap. Where the cap is below the machine, the rest of the machine may be busy without hurting
 * the cluster: used is what its containers take, or what of the cap the machine can't give any more, whichever is more.
 */
function capped({
  machine,
  used,
  own,
  cap,
}: {
  machine: number;
  used: number;
  own: number;
  cap: number | undefined;
}): Amount {
  if (cap === undefined || cap >= machine) return { total: machine, used };
  return { total: cap, used: Math.max(own, cap - (machine - used)) };
}

function asResources({ memory, cpus, takenPorts }: { memory: Amount; cpus: Amount; takenPorts: string[] }): Resources {
  const total = Math.round(memory.total);
  const used = Math.round(Math.min(total, Math.max(0, memory.used)));
  return {
    total_memory: total,
    used_memory: used,
    available_memory: total - used,
    cpus: cpus.total,
    used_cpus: Math.round(Math.min(cpus.total, Math.max(0, cpus.used)) * 1000) / 1000,
    taken_ports: takenPorts,
  };
}

/** Reads /proc/meminfo. */
export function parseMeminfo(text: string): { totalBytes: number; availableBytes: number } {
  const bytes = (line: RegExp) => Number(line.exec(text)?.[1] ?? 0) * 1024;
  return { totalBytes: bytes(/^MemTotal:\s+(\d+) kB/m), availableBytes: bytes(/^MemAvailable:\s+(\d+) kB/m) };
}

/** Reads /proc/stat: ticks of all CPUs together since boot, and how many CPUs there are. */
export function parseStat(text: string): { busy: number; total: number; cpus: number } {
  const [user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0] = (
    /^cpu +(.*)$/m.exec(text)?.[1] ?? ""
  )
    .split(" ")
    .map(Number);
  const busy = user + nice + system + irq + softirq + steal;
  return { busy, total: busy + idle + iowait, cpus: Math.max(1, text.match(/^cpu\d+ /gm)?.length ?? 0) };
}

/** Reads /proc/driver/nvidia/gpus/…/information: the GPU's UUID, which shows question marks until the GPU was used. */
export function parseGpu(text: string): string | undefined {
  return /^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$/m.exec(text)?.[1];
}

/** Reads /proc/loadavg: the average over one minute. */
export function parseLoadavg(text: string): number {
  return Number.parseFloat(text) || 0;
}

const TCP_LISTEN = "0A";
/** A UDP socket that is bound and talks to nobody in particular. */
const UDP_UNCONNECTED = "07";

/** Reads /proc/net/{tcp,tcp6,udp,udp6}: `tcp/80` for every port that others can reach; loopback ones are left out. */
export function parseSockets(text: string, protocol: "tcp" | "udp"): string[] {
  const state = protocol === "tcp" ? TCP_LISTEN : UDP_UNCONNECTED;
  const ports = new Set<string>();
  for (const [, address = "", port = ""] of text.matchAll(
    new RegExp(`^ *\\d+: ([0-9A-F]{8,32}):([0-9A-F]{4}) \\S+ ${state} `, "gm"),
  )) {
    if (!isLoopback(address)) ports.add(`${protocol}/${Number.parseInt(port, 16)}`);
  }
  return [...ports];
}

/** Reads /proc/net/{sockstat,sockstat6}: how many sockets of each protocol are in use, as one text to be compared. */
export function parseSocketCounts(text: string): string {
  return [...text.matchAll(/^(TCP6?|UDP6?): inuse \d+/gm)].map(([count]) => count).join(", ");
}

/** Addresses are 32-bit words in the machine's byte order: 127.0.0.1 is 0100007F on little-endian machines. */
function isLoopback(address: string): boolean {
  if (address.length === 8) return address.endsWith("7F");
  if (address === "00000000000000000000000001000000") return true;
  return address.startsWith("0000000000000000FFFF0000") && address.endsWith("7F");
}

/** Reads /proc/net/route: the subnets that a route leads to, default routes left out. */
export function parseRoutes(text: string): string[] {
  return text
    .split("\n")
    .slice(1)
    .flatMap((line) => {
      const fields = line.split("\t");
      const [device, destination, mask] = [fields[0], fields[1], fields[7]];
      // Without a device it leads nowhere (ip route add unreachable), so nobody is there.
      if (device === "*" || !destination || !mask || mask === "00000000") return [];
      const address = [6, 4, 2, 0].map((at) => Number.parseInt(destination.slice(at, at + 2), 16)).join(".");
      const bits = Number.parseInt(mask, 16).toString(2).replaceAll("0", "").length;
      return [`${address}/${bits}`];
    });
}
