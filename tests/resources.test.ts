import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HostMeter, parseLoadavg, parseMeminfo, parseRoutes, parseSockets, parseStat } from "../src/resources.ts";
import { freeSubnet } from "../src/subnet.ts";
import { FakeEngine } from "./fake_engine.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

const GIB = 2 ** 30;
const procDir = mkdtempSync(join(tmpdir(), "resources-test-"));
mkdirSync(join(procDir, "net"));
afterAll(() => rmSync(procDir, { recursive: true, force: true }));

const MEMINFO = `MemTotal:        8388608 kB
MemFree:          200000 kB
MemAvailable:    6291456 kB
`;
const SOCKETS = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0A00000A:01BB 0B00000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0A00000A:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
`;
const SOCKETS6 = `  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0
   1: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 0:0
   2: 0000000000000000FFFF00000100007F:0278 00000000000000000000000000000000:0000 0A 0:0
`;
const UDP = `  sl  local_address rem_address   st
  10: 00000000:0035 00000000:0000 07 0:0
  11: 0A00000A:8235 0B00000A:0035 01 0:0
`;
const ROUTES = `Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br0\t4000D20A\t00000000\t0001\t0\t0\t0\tC0FFFFFF\t0\t0\t0
`;

/** /proc/stat of two CPUs after `busy` and `idle` ticks of both together. */
function stat(busy: number, idle: number): string {
  return `cpu  ${busy} 0 0 ${idle} 0 0 0 0 0 0\ncpu0 1 0 0 1 0 0 0 0 0 0\ncpu1 1 0 0 1 0 0 0 0 0 0\nintr 5\n`;
}

function write(files: Record<string, string>): void {
  for (const [name, text] of Object.entries(files)) writeFileSync(join(procDir, name), text);
}

function world(caps: { memoryBytes?: number; cpus?: number } = {}) {
  write({ meminfo: MEMINFO, stat: stat(0, 0), loadavg: "0.50 0.40 0.30 1/100 1\n" });
  write({ "net/tcp": SOCKETS, "net/tcp6": SOCKETS6, "net/udp": UDP, "net/udp6": "", "net/route": ROUTES });
  const clock = new VirtualClock();
  const engine = new FakeEngine({ clock, random: seededRandom(1) });
  const meter = new HostMeter({ engine, clock, caps: { memoryBytes: caps.memoryBytes, cpus: caps.cpus }, procDir });
  return { clock, engine, meter };
}

const NOTHING = { containers: [], ownPorts: [], otherPorts: [] };

describe("the disk that Docker keeps its data on", () => {
  test("is read as df reads it, for an Engine of this machine whose directory is here", async () => {
    const { meter, clock } = world();
    expect(meter.read(NOTHING)?.disk).toBeUndefined();
    await clock.advance(1_000);
    const disk = meter.read({ ...NOTHING, dataRoot: procDir })?.disk;
    const [total = 0, used = 0, available = 0] =
      (await Bun.$`df -B1 --output=size,used,avail ${procDir}`.text())
        .split("\n")[1]
        ?.trim()
        .split(/\s+/)
        .map(Number) ?? [];
    expect(disk?.total).toBeLessThanOrEqual(total);
    // Others write on that disk at the same time.
    expect(Math.abs((disk?.total ?? 0) - (used + available))).toBeLessThan(0.01 * total);
    expect(Math.abs((disk?.available ?? 0) - available)).toBeLessThan(0.01 * total);
    await clock.advance(1_000);
    expect(meter.read({ ...NOTHING, dataRoot: join(procDir, "none") })?.disk).toBeUndefined();
  });

  test("is asked every five seconds at most", async () => {
    const { meter, clock } = world();
    const dataRoot = join(procDir, "later");
    expect(meter.read({ ...NOTHING, dataRoot })?.disk).toBeUndefined();
    mkdirSync(dataRoot);
    await clock.advance(4_999);
    expect(meter.read({ ...NOTHING, dataRoot })?.disk).toBeUndefined();
    await clock.advance(1_001);
    expect(meter.read({ ...NOTHING, dataRoot })?.disk?.total).toBeGreaterThan(0);
  });
});

describe("readers of /proc", () => {
  test("read what the kernel writes", () => {
    expect(parseMeminfo(MEMINFO)).toEqual({ totalBytes: 8 * GIB, availableBytes: 6 * GIB });
    expect(parseStat("cpu  10 1 5 70 10 2 1 1 0 0\ncpu0 1\ncpu1 1\ncpu10 1\n")).toEqual({
      busy: 20,
      total: 100,
      cpus: 3,
    });
    expect(parseLoadavg("1.25 0.7 0.5 2/300 99\n")).toBe(1.25);
    expect(parseRoutes(ROUTES)).toEqual(["10.0.0.0/24", "10.210.0.64/26"]);
  });

  test("find the ports that others can reach", () => {
    expect(parseSockets(SOCKETS, "tcp")).toEqual(["tcp/80", "tcp/443"]);
    expect(parseSockets(SOCKETS6, "tcp")).toEqual(["tcp/22"]);
    expect(parseSockets(UDP, "udp")).toEqual(["udp/53"]);
    expect(parseSockets("", "tcp")).toEqual([]);
  });

  test("read this very machine", () => {
    const engine = new FakeEngine({ clock: new VirtualClock(), random: () => 0 });
    const meter = new HostMeter({
      engine,
      clock: new VirtualClock(),
      caps: { memoryBytes: undefined, cpus: undefined },
    });
    const seen = meter.read(NOTHING);
    expect(seen?.total_memory).toBeGreaterThan(2 ** 26);
    expect(seen?.available_memory).toBeGreaterThan(0);
    expect(seen?.cpus).toBeGreaterThan(0);
  });
});

describe("HostMeter", () => {
  test("lists the GPUs of the NVIDIA driver by their UUIDs, or by their place while those are not known", () => {
    const { meter } = world();
    const gpus = join(procDir, "driver/nvidia/gpus");
    for (const [place, uuid] of [
      ["0000:01:00.0", "GPU-1f2e3d4c-aaaa-bbbb-cccc-0123456789ab"],
      ["0000:41:00.0", "GPU-????????-????-????-????-????????????"],
    ] as const) {
      mkdirSync(join(gpus, place), { recursive: true });
      writeFileSync(
        join(gpus, place, "information"),
        `Model: \t\t Tesla T4\nIRQ:   \t\t 35\nGPU UUID: \t ${uuid}\nBus Location: \t ${place}\n`,
      );
    }
    const seen = meter.read(NOTHING);
    rmSync(join(procDir, "driver"), { recursive: true });
    expect(seen?.gpus).toEqual(["GPU-1f2e3d4c-aaaa-bbbb-cccc-0123456789ab", "0000:41:00.0"]);
  });

  test("reports the whole machine where nothing caps it", () => {
    expect(world().meter.read(NOTHING)).toEqual({
      total_memory: 8 * GIB,
      used_memory: 2 * GIB,
      available_memory: 6 * GIB,
      cpus: 2,
      used_cpus: 0.5,
      taken_ports: ["tcp/22", "tcp/443", "tcp/80", "udp/53"],
    });
  });

  const caps: [number, number][] = [
    [16, 2], // above the machine: the machine counts
    [4, 0], // 6 GiB are available: all 4 may be had
    [7, 1], // only 6 of the 7 are left
  ];
  for (const [cap, used] of caps) {
    test(`a cap of ${cap} GiB on 8 GiB with 6 available leaves ${used} GiB used`, () => {
      const seen = world({ memoryBytes: cap * GIB }).meter.read(NOTHING);
      expect(seen?.total_memory).toBe(Math.min(cap, 8) * GIB);
      expect(seen?.used_memory).toBe(used * GIB);
      expect(seen?.available_memory).toBe((Math.min(cap, 8) - used) * GIB);
    });
  }

  test("under a cap counts what the cluster's own containers use", async () => {
    const { clock, engine, meter } = world({ memoryBytes: 10_000_000, cpus: 1 });
    const containers = ["x", "y"].map((name) => engine.runByHand({ name }));
    meter.read({ ...NOTHING, containers });
    await clock.advance(2_000);
    expect(meter.read({ ...NOTHING, containers })).toMatchObject({ used_memory: 2_000_000, cpus: 1, used_cpus: 0 });
  });

  test("averages CPU use over about a minute, from the load average on", async () => {
    const { clock, meter } = world();
    expect(meter.read(NOTHING)?.used_cpus).toBe(0.5);
    write({ stat: stat(12_000, 0) });
    await clock.advance(60_000);
    const afterAMinute = meter.read(NOTHING)?.used_cpus ?? 0;
    expect(afterAMinute).toBeCloseTo(2 - 1.5 / Math.E, 2);
    write({ stat: stat(12_000, 120_000) });
    await clock.advance(600_000);
    expect(meter.read(NOTHING)?.used_cpus).toBeLessThan(0.01);
  });

  test("leaves out ports of the cluster's own containers, for a while after they ended, too", async () => {
    const { clock, meter } = world();
    const own = meter.read({ containers: [], ownPorts: ["tcp/80"], otherPorts: ["tcp/8080"] });
    expect(own?.taken_ports).toEqual(["tcp/22", "tcp/443", "tcp/8080", "udp/53"]);
    await clock.advance(9_000);
    expect(meter.read(NOTHING)?.taken_ports).not.toContain("tcp/80");
    await clock.advance(2_000);
    expect(meter.read(NOTHING)?.taken_ports).toContain("tcp/80");
  });

  test("finds ports that Docker holds for a container that is gone, once they had time to become a container's", async () => {
    const process = (pid: string, { network, args }: { network: string; args: string[] }) => {
      mkdirSync(join(procDir, pid, "ns"), { recursive: true });
      symlinkSync(`net:[${network}]`, join(procDir, pid, "ns/net"));
      writeFileSync(join(procDir, pid, "cmdline"), args.map((arg) => `${arg}\0`).join(""));
    };
    const proxy = (port: number) => [
      "/usr/bin/docker-proxy",
      "-proto",
      "tcp",
      "-host-ip",
      "0.0.0.0",
      "-host-port",
      `${port}`,
    ];
    process("self", { network: "1", args: ["cacophony"] });
    process("7", { network: "1", args: proxy(80) });
    process("8", { network: "2", args: proxy(22) }); // another machine's, seen from its host
    process("9", { network: "1", args: proxy(443) });
    process("10", { network: "1", args: ["nginx", "-host-port", "22"] });
    const { clock, meter } = world();
    const others = { ...NOTHING, otherPorts: ["tcp/443"] };
    expect(meter.read(others)?.lost_ports).toBeUndefined();
    await clock.advance(39_000);
    expect(meter.read(others)?.lost_ports).toBeUndefined();
    await clock.advance(1_000);
    expect(meter.read(others)).toMatchObject({
      lost_ports: ["tcp/80"],
      taken_ports: ["tcp/22", "tcp/443", "tcp/80", "udp/53"],
    });
    await clock.advance(1_000);
    const found = meter.read({ ...others, ownPorts: ["tcp/80"] });
    for (const pid of ["self", "7", "8", "9", "10"]) rmSync(join(procDir, pid), { recursive: true });
    expect(found?.lost_ports).toBeUndefined();
  });

  test("looks for ports again when sockets came or went, and else every 30 s", async () => {
    write({
      "net/sockstat": "TCP: inuse 3 orphan 0 tw 0 alloc 57 mem 123\nUDP: inuse 1 mem 0\n",
      "net/sockstat6": "TCP6: inuse 1\n",
    });
    const { clock, meter } = world();
    expect(meter.read(NOTHING)?.taken_ports).toContain("tcp/80");
    write({ "net/tcp": "", "net/sockstat": "TCP: inuse 3 orphan 9 tw 9 alloc 58 mem 124\nUDP: inuse 1 mem 1\n" });
    await clock.advance(29_000);
    expect(meter.read(NOTHING)?.taken_ports).toContain("tcp/80");
    await clock.advance(5_000);
    expect(meter.read(NOTHING)?.taken_ports).not.toContain("tcp/80");
    write({ "net/tcp": SOCKETS, "net/sockstat6": "TCP6: inuse 2\n" });
    await clock.advance(5_000);
    const seen = meter.read(NOTHING)?.taken_ports;
    for (const name of ["net/sockstat", "net/sockstat6"]) rmSync(join(procDir, name));
    expect(seen).toContain("tcp/80");
  });
});

describe("freeSubnet()", () => {
  const cases: [string, string, string[], string | undefined][] = [
    ["takes the first of an empty pool", "10.210.0.0/16", [], "10.210.0.0/26"],
    ["goes on after what is taken", "10.210.0.0/16", ["10.210.0.0/26", "10.210.0.64/26"], "10.210.0.128/26"],
    ["fills gaps", "10.210.0.0/16", ["10.210.0.0/26", "10.210.0.128/26"], "10.210.0.64/26"],
    ["steps over larger and smaller ones", "10.210.0.0/16", ["10.210.0.0/24", "10.210.1.8/29"], "10.210.1.64/26"],
    ["does not mind IPv6 and what lies elsewhere", "10.210.0.0/16", ["fd00::/64", "172.17.0.0/16"], "10.210.0.0/26"],
    ["finds nothing in a pool that a route covers", "10.210.0.0/16", ["10.0.0.0/8"], undefined],
    ["finds nothing in a full pool", "10.210.0.0/25", ["10.210.0.64/26", "10.210.0.0/26"], undefined],
    ["finds nothing in a pool that is too small", "10.210.0.0/27", [], undefined],
    [
      "reaches the end of the address space",
      "255.255.255.0/24",
      ["255.255.255.0/25", "255.255.255.128/26"],
      "255.255.255.192/26",
    ],
  ];
  for (const [name, pool, taken, expected] of cases) {
    test(name, () => expect(freeSubnet(pool, { taken, bits: 26 })).toBe(expected as string));
  }
});
