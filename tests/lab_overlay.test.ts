/** @module The cluster's network in the lab: three hosts with real Docker Engines, and the kernel's real answer to each rule. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { NetworkPeer } from "../src/model_network.ts";
import { silentLog } from "../src/log.ts";
import { OverlayKernel } from "../src/overlay_kernel.ts";
import type { Overlay, OverlayBridge } from "../src/overlay_plan.ts";
import { truncateSync, writeFileSync } from "node:fs";
import { Lab, type LabHost } from "./lab.ts";
import { command, mustRun } from "./lab_process.ts";
import { NO_GUARD } from "./overlay_model.ts";

setDefaultTimeout(60_000);

const CIDR = "10.213.0.0/16";
/** Containers go on while their Engine is away, as they do on many machines. */
const ENGINE = { config: { "live-restore": true } };
/** Where in a node's block the subnet of a network begins. `c_back` is internal by our rules, `d_docker` by Docker's. */
const NETWORKS = { a_default: 64, b_default: 128, c_back: 192, d_docker: 32 } as const;
type Network = keyof typeof NETWORKS;
const BITS: Record<Network, number> = { a_default: 26, b_default: 26, c_back: 26, d_docker: 27 };
/** How long a call may take that is to arrive, and one that is not to, in seconds: a dropped packet is never answered. */
const ARRIVES_S = 10;
const DROPPED_S = 0.3;

/** A container that answers a request with the address that it came from. */
type Member = { address: string; pid: string };

class Machine {
  readonly host: LabHost;
  readonly kernel: OverlayKernel;
  readonly members = new Map<string, Member>();
  readonly bridges = new Map<Network, string>();
  underlay: string;

  constructor(host: LabHost) {
    this.host = host;
    this.underlay = host.address;
    this.kernel = kernelOf(host);
  }

  get peer(): NetworkPeer {
    return {
      node_id: `node-${this.host.number}`,
      underlay: this.underlay,
      subnets: [`10.213.${this.host.number}.0/24`],
    };
  }

  get address(): string {
    return `10.213.${this.host.number}.1`;
  }

  subnet(network: Network): string {
    return `10.213.${this.host.number}.${NETWORKS[network]}/${BITS[network]}`;
  }

  async addNetwork(network: Network, ...options: string[]): Promise<void> {
    const id = await this.host.docker("network", "create", ...options, "--subnet", this.subnet(network), network);
    this.bridges.set(network, `br-${id.slice(0, 12)}`);
  }

  async addMember(network: string): Promise<void> {
    const answer =
      "mkdir /cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' >/cgi-bin/who; chmod +x /cgi-bin/who";
    const options = ["-d", "--name", network, "--network", network, "--stop-signal", "KILL"];
    await this.host.docker("run", ...options, "busybox", "sh", "-c", `${answer}; exec httpd -f -h /`);
    const format = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    const [pid = "", address = ""] = (await this.host.docker("inspect", "--format", format, network)).split(" ");
    this.members.set(network, { address, pid });
  }

  member(network: string): Member {
    const member = this.members.get(network);
    if (!member) throw new Error(`host ${this.host.number} has no container in ${network}`);
    return member;
  }

  /** Runs a shell's line on the host; it must succeed. */
  async sh(line: string): Promise<string> {
    const { exitCode, stdout, stderr } = await this.host.run(["sh", "-c", line]);
    if (exitCode !== 0) throw new Error(`"${line}" on host ${this.host.number}: ${stderr}`);
    return stdout;
  }
}

function kernelOf(host: LabHost, ...further: string[]): OverlayKernel {
  const enter = ["nsenter", `--net=/run/netns/${host.name}`, "--", ...further];
  return new OverlayKernel({ log: silentLog, searchPath: process.env["PATH"] ?? "", enter });
}

let lab: Lab;
let one: Machine;
let two: Machine;
let three: Machine;

/** What each node knows when it knows all. */
function overlayOf(machine: Machine, among: readonly Machine[] = [one, two, three]): Overlay {
  const others = among.filter((other) => other !== machine);
  const bridges = [...machine.bridges].map(([network, device]): OverlayBridge => {
    const remote = others.filter((other) => other.bridges.has(network)).map((other) => other.subnet(network));
    return {
      network,
      device,
      subnet: machine.subnet(network),
      remote,
      guests: [],
      travellers: [],
      internal: network === "c_back",
    };
  });
  return {
    link: { mode: "vxlan" },
    cidr: CIDR,
    self: machine.peer,
    peers: others.map(({ peer }) => peer),
    bridges,
    guard: NO_GUARD,
  };
}

/** Applies what the machines know of each other; returns the commands that each needed. */
async function applyAll(among: readonly Machine[] = [one, two, three]): Promise<string[][]> {
  const states = await Promise.all(among.map((machine) => machine.kernel.apply(overlayOf(machine, among))));
  expect(states.map(({ problems, mtu }) => ({ problems, mtu }))).toEqual(
    among.map(() => ({ problems: [], mtu: 1450 })),
  );
  return states.map(({ changed }) => changed);
}

/**
 * Whom a container, or a host itself, was taken for by what it called; `dropped` if nobody answered at all, `refused` if the
 * machine did, but has no such port.
 */
async function call(
  from: Member | Machine,
  to: string,
  { seconds = ARRIVES_S, options = [] as string[] } = {},
): Promise<string> {
  const argv = ["curl", "-sS", "-m", `${seconds}`, ...options, `http://${to}/cgi-bin/who`];
  const { exitCode, stdout, stderr } =
    from instanceof Machine ? await from.host.run(argv) : await command([...inside(from), ...argv]);
  if (exitCode === 0) return stdout.trim().replace(/^\[::ffff:(.*)\]$/, "$1");
  if (exitCode === 28) return "dropped";
  return exitCode === 7 ? "refused" : stderr;
}

function arrives(from: Member | Machine, to: Member): Promise<string> {
  return call(from, to.address);
}

function isDropped(from: Member | Machine, to: string, options: string[] = []): Promise<string> {
  return call(from, to, { seconds: DROPPED_S, options });
}

function inside({ pid }: Member): string[] {
  return ["nsenter", `--net=/proc/${pid}/ns/net`, "--"];
}

beforeAll(async () => {
  lab = await Lab.start({ hosts: 3, docker: false });
  [one, two, three] = lab.hosts.map((host) => new Machine(host)) as [Machine, Machine, Machine];
  await Promise.all(
    [one, two, three].map(async (machine) => {
      await machine.host.startDocker(ENGINE);
      await machine.host.importImage("busybox:latest");
      await machine.addNetwork("a_default");
      await machine.addNetwork("b_default");
      await Promise.all(["a_default", "b_default"].map((network) => machine.addMember(network)));
    }),
  );
});

afterAll(async () => {
  await lab?.stop();
});

describe("supported()", () => {
  test("finds that a lab host can take part, and cleans up after a try that was killed", async () => {
    await one.sh("ip link add cvx-probe type vxlan id 16777215 dstport 9001");
    expect(await one.kernel.supported("vxlan", one.underlay)).toBeUndefined();
    expect(await one.sh("ip -br link show type vxlan; iptables-save | grep CACOPHONY || true")).toBe("");
  });

  test("says who may do it, when this user may not", async () => {
    const unprivileged = kernelOf(one.host, "setpriv", "--reuid", "65534", "--clear-groups", "--");
    expect(await unprivileged.supported("vxlan", one.underlay)).toBe(
      "the cluster's network needs network devices of type vxlan: RTNETLINK answers: Operation not permitted (the node needs root or CAP_NET_ADMIN)",
    );
  });

  test("says that another program has the port that packets between nodes come to", async () => {
    const listen = "await Bun.udpSocket({ port: 9001 }); console.log('listens')";
    const other = one.host.spawn("other", [process.execPath, "-e", listen]);
    await other.waitFor(/listens/);
    expect(await one.kernel.supported("vxlan", one.underlay)).toBe(
      "the cluster's network needs network devices of type vxlan: RTNETLINK answers: Address already in use (another program has UDP port 9001)",
    );
    await other.kill();
    expect(await one.kernel.supported("vxlan", one.underlay)).toBeUndefined();
  });

  test.each(["203.0.113.9", "fd00::1"])("says that %s is not an IPv4 address of the machine", async (address) => {
    expect(await one.kernel.supported("vxlan", address)).toBe(
      `the cluster's network needs an IPv4 address of one of this machine's interfaces that other nodes reach; ${address} is none`,
    );
  });
});

describe("apply()", () => {
  test("connects containers of one network over the hosts, each by its own address, and no others", async () => {
    await one.host.docker("network", "create", "elsewhere");
    await one.addMember("elsewhere");
    const [here, there] = [one.member("a_default"), two.member("a_default")];
    expect(await isDropped(here, there.address)).not.toBe(here.address);
    await applyAll();
    const networks = ["a_default", "b_default"];
    const pairs = [one, two, three].flatMap((from) =>
      [one, two, three].filter((to) => to !== from).map((to) => ({ from, to })),
    );
    const same = pairs.flatMap(({ from, to }) =>
      networks.map((name) => ({ from: from.member(name), to: to.member(name) })),
    );
    expect(await Promise.all(same.map(({ from, to }) => arrives(from, to)))).toEqual(
      same.map(({ from }) => from.address),
    );
    const other = pairs.flatMap(({ from, to }) => [
      isDropped(from.member("a_default"), to.member("b_default").address),
      isDropped(from.member("b_default"), to.member("a_default").address),
    ]);
    expect(new Set(await Promise.all(other))).toEqual(new Set(["dropped"]));
    expect(await isDropped(one.member("elsewhere"), there.address)).toBe("dropped");
  });

  test("runs no command the second time, nor after it was tried again whether the machine can take part", async () => {
    expect(await one.kernel.supported("vxlan", one.underlay)).toBeUndefined();
    expect(await applyAll()).toEqual([[], [], []]);
  });

  test("lets nodes reach containers by their own address, but containers no other node", async () => {
    expect(await arrives(one, two.member("b_default"))).toBe(one.address);
    expect(await isDropped(one.member("a_default"), two.address)).toBe("dropped");
    expect(await call(one, two.address)).toBe("refused");
  });

  test("answers at once for an address of the range that no node has", async () => {
    expect(await call(one.member("a_default"), "10.213.99.5")).toBe("refused");
  });

  test("takes up a network that comes later, though Docker puts its masquerading first", async () => {
    await Promise.all(
      [one, two].map(async (machine) => {
        await machine.addNetwork("c_back");
        await machine.addMember("c_back");
      }),
    );
    const changed = await applyAll();
    expect(changed.map((commands) => new Set(commands))).toEqual([
      new Set(["iptables-restore --noflush -w 5"]),
      new Set(["iptables-restore --noflush -w 5"]),
      new Set(),
    ]);
    expect(await arrives(one.member("c_back"), two.member("c_back"))).toBe(one.member("c_back").address);
  });

  test("keeps a network in that is internal by its rules, also where Docker knows nothing of that", async () => {
    expect(await call(one.member("a_default"), two.underlay)).toBe("refused");
    expect(await isDropped(one.member("c_back"), two.underlay)).toBe("dropped");
    expect(await arrives(one, two.member("c_back"))).toBe(one.address);
  });

  test("lets parts of a network reach each other that Docker keeps internal", async () => {
    await Promise.all(
      [one, two].map(async (machine) => {
        await machine.addNetwork("d_docker", "--internal");
        await machine.addMember("d_docker");
        // Engines of today give containers of such a network no route at all; older ones, the bridge.
        const gateway = `10.213.${machine.host.number}.${NETWORKS.d_docker + 1}`;
        await mustRun([...inside(machine.member("d_docker")), "ip", "route", "replace", CIDR, "via", gateway]);
      }),
    );
    const [here, there] = [one.member("d_docker"), two.member("d_docker")];
    expect(await isDropped(here, there.address)).not.toBe(here.address);
    await applyAll();
    expect(await arrives(here, there)).toBe(here.address);
    expect(await isDropped(here, two.member("c_back").address)).toBe("dropped");
  });

  test("drops what a container sends with another network's address", async () => {
    const { pid } = one.member("a_default");
    const stolen = "10.213.1.150";
    await mustRun([...inside({ pid, address: stolen }), "ip", "addr", "add", `${stolen}/32`, "dev", "eth0"]);
    const before = await dropsOf("CACOPHONY-OUT", one);
    expect(await isDropped(one.member("a_default"), two.member("b_default").address, ["--interface", stolen])).toBe(
      "dropped",
    );
    expect(await dropsOf("CACOPHONY-OUT", one)).toBeGreaterThan(before);
  });

  test("stands above the drops of newer Engines, a FORWARD that drops, and reverse path filters", async () => {
    const to = two.member("a_default");
    const bridge = two.bridges.get("a_default");
    await two.sh(`iptables -t raw -A PREROUTING -d ${to.address} ! -i ${bridge} -j DROP`);
    await two.sh(`iptables -A DOCKER-ISOLATION-STAGE-1 ! -s ${two.subnet("a_default")} -o ${bridge} -j DROP`);
    await two.sh("iptables -P FORWARD DROP; iptables -P INPUT DROP; echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter");
    expect(await arrives(one.member("a_default"), to)).toBe(one.member("a_default").address);
    expect(await arrives(to, one.member("a_default"))).toBe(to.address);
    await two.sh("iptables -P INPUT ACCEPT");
  });

  test("carries some hundred megabytes a second", async () => {
    const [from, to] = [one.member("a_default"), two.member("a_default")];
    const megabytes = 100;
    writeFileSync(`/proc/${to.pid}/root/zeros`, "");
    truncateSync(`/proc/${to.pid}/root/zeros`, megabytes * 2 ** 20);
    const written = "%{size_download} %{time_total}";
    const url = `http://${to.address}/zeros`;
    const said = await mustRun([...inside(from), "curl", "-sS", "-o", "/dev/null", "-w", written, url]);
    const [bytes, seconds] = said.split(" ").map(Number);
    expect(bytes).toBe(megabytes * 2 ** 20);
    console.log(`container to container over two hosts: ${megabytes} MB in ${seconds} s`);
  });

  const damages: [string, string][] = [
    ["the device", "ip link delete cvx"],
    ["its state", "ip link set cvx down"],
    ["the routes", "ip route flush dev cvx"],
    [
      "the neighbours",
      "ip neigh flush nud permanent dev cvx; ip neigh replace 10.213.2.1 lladdr 0e:cf:00:00:00:00 dev cvx nud permanent",
    ],
    ["the ways to the machines", "bridge fdb del 0e:cf:0a:d5:02:01 dev cvx self"],
    ["the way into the first chain", "iptables -P FORWARD DROP; iptables -D DOCKER-USER -j CACOPHONY-FORWARD"],
    ["the first chain", "iptables -P FORWARD DROP; iptables -F FORWARD"],
    ["a chain of ours", "iptables -F CACOPHONY-OUT; iptables -A CACOPHONY-OUT -j DROP"],
    ["forwarding", "echo 0 >/proc/sys/net/ipv4/conf/cvx/forwarding"],
  ];
  test.each(damages)("repairs %s when somebody takes it away", async (_, damage) => {
    const [from, to] = [two.member("a_default"), one.member("a_default")];
    await one.sh(damage);
    expect(await isDropped(from, to.address)).toMatch(/^(dropped|refused)$/);
    const { changed } = await one.kernel.apply(overlayOf(one));
    expect(changed).not.toEqual([]);
    expect(await arrives(from, to)).toBe(from.address);
    expect((await one.kernel.apply(overlayOf(one))).changed).toEqual([]);
  });

  test("keeps addresses as they are when all rules of the machine were flushed", async () => {
    await one.sh("iptables -F; iptables -t nat -F; iptables -t raw -F");
    await one.kernel.apply(overlayOf(one));
    expect(await arrives(one.member("a_default"), two.member("a_default"))).toBe(one.member("a_default").address);
    expect(await isDropped(one.member("a_default"), two.member("b_default").address)).toBe("dropped");
  });

  test("lets containers talk on while dockerd is restarted, and needs nothing then", async () => {
    await applyAll();
    await two.host.dockerd.stop();
    expect(await arrives(one.member("a_default"), two.member("a_default"))).toBe(one.member("a_default").address);
    await two.host.startDocker(ENGINE);
    expect(await arrives(one.member("a_default"), two.member("a_default"))).toBe(one.member("a_default").address);
    await applyAll();
    expect(await arrives(two.member("a_default"), one.member("a_default"))).toBe(two.member("a_default").address);
    expect(await isDropped(two.member("b_default"), one.member("a_default").address)).toBe("dropped");
  });

  test("lets nobody in who is no node any more, though he still knows the way", async () => {
    const before = await dropsOf("CACOPHONY-TUNNEL", one);
    await applyAll([one, two]);
    expect(await isDropped(three.member("a_default"), one.member("a_default").address)).toBe("dropped");
    expect(await dropsOf("CACOPHONY-TUNNEL", one)).toBeGreaterThan(before);
    expect(
      await one.sh(
        "ip route show 10.213.3.0/24; ip neigh show 10.213.3.1; bridge fdb show dev cvx | grep 0e:cf:0a:d5:03 || true",
      ),
    ).toBe("");
  });

  test("wires a node in again that comes back with another address", async () => {
    const before = three.underlay;
    three.underlay = before.replace(/\d+$/, "103");
    await three.sh(`ip addr del ${before}/24 dev eth0; ip addr add ${three.underlay}/24 dev eth0`);
    const start = performance.now();
    await applyAll();
    expect(await arrives(three.member("a_default"), one.member("a_default"))).toBe(three.member("a_default").address);
    console.log(`a node with a new address is wired in after ${Math.round(performance.now() - start)} ms`);
    expect(await arrives(two.member("b_default"), three.member("b_default"))).toBe(two.member("b_default").address);
  });

  test("leaves the device of another node alone", async () => {
    const stranger = { ...overlayOf(two), self: { ...two.peer, node_id: "stranger" } };
    const { changed, problems } = await two.kernel.apply(stranger);
    expect({ changed, problems }).toEqual({
      changed: [],
      problems: [expect.stringContaining("the network device cvx is that of node node-2")],
    });
    await two.kernel.remove("stranger");
    expect(await applyAll()).toEqual([[], [], []]);
  });

  test("touches no device that only has its name", async () => {
    await one.sh("ip link add cwg type bridge");
    const { changed, problems } = await one.kernel.apply(overlayOf(one));
    expect({ changed, problems }).toEqual({
      changed: [],
      problems: [
        "the network device cwg was not made by this node; if it is a leftover, remove it: ip link delete cwg",
      ],
    });
    await one.sh("ip link delete cwg");
  });

  test("names the command that fails and what it said, and does the others", async () => {
    const broken = { node_id: "broken", underlay: "10.77.0.9", subnets: ["10.213.9.9/24"] };
    const wanted = overlayOf(one, [one, two]);
    const applied = one.kernel.apply({ ...wanted, peers: [broken, ...wanted.peers] });
    await expect(applied).rejects.toThrow(/"ip -force -batch -" failed \(exit code 1\): Error: .*Invalid prefix/);
    expect(await one.sh("bridge fdb show dev cvx")).toContain("dst 10.77.0.9");
    await applyAll();
    await expect(
      kernelOf(one.host, "setpriv", "--reuid", "65534", "--clear-groups", "--").apply(wanted),
    ).rejects.toThrow(/"iptables-save" failed/);
  });
});

test("remove() leaves nothing behind, and Docker's rules as they were", async () => {
  await Promise.all([one, two, three].map((machine) => machine.kernel.remove(machine.peer.node_id)));
  for (const machine of [one, two, three]) {
    expect(
      await machine.sh("ip -br link show type vxlan; ip route show proto 213; iptables-save | grep CACOPHONY || true"),
    ).toBe("");
  }
  expect(await three.sh("iptables -S DOCKER-USER")).toContain("-A DOCKER-USER -j RETURN");
  expect(await isDropped(one.member("a_default"), two.member("a_default").address)).toMatch(/^(dropped|refused)$/);
});

test("100 nodes with 50 networks on each take a moment, and one node more takes less", async () => {
  const host = await lab.addHost({ docker: false });
  const kernel = kernelOf(host);
  const peers = Array.from({ length: 100 }, (_, index): NetworkPeer => {
    return {
      node_id: `n${index}`,
      underlay: `172.20.1.${index + 1}`,
      subnets: [`10.213.${index + 1}.0/24`, `10.213.${index + 101}.0/24`],
    };
  });
  const wanted = (count: number): Overlay => ({
    link: { mode: "vxlan" },
    cidr: CIDR,
    self: { node_id: "self", underlay: host.address, subnets: ["10.213.250.0/24"] },
    peers: peers.slice(0, count),
    guard: NO_GUARD,
    bridges: Array.from({ length: 50 }, (_, index) => {
      const subnet = `.${4 + 4 * index}/30`;
      const remote = peers.slice(0, count).map((_, node) => `10.213.${node + 1}${subnet}`);
      return {
        network: `job-${index}_default`,
        device: `br-job${index}`,
        subnet: `10.213.250${subnet}`,
        remote,
        guests: [],
        travellers: [],
        internal: false,
      };
    }),
  });
  const timed = async (what: string, count: number) => {
    const start = performance.now();
    const { changed, problems } = await kernel.apply(wanted(count));
    expect(problems).toEqual([]);
    console.log(`${what}: ${Math.round(performance.now() - start)} ms, ${changed.length} commands`);
    return changed;
  };
  expect((await timed("99 nodes x 50 networks from nothing", 99)).length).toBeGreaterThan(99);
  expect(await timed("the same again", 99)).toEqual([]);
  expect((await timed("one node more, with all networks", 100)).length).toBeLessThan(10);
  await kernel.remove("self");
});

async function dropsOf(chain: string, machine: Machine): Promise<number> {
  const saved = await machine.sh(`iptables-save -c -t filter`);
  return Number(new RegExp(`^\\[(\\d+):\\d+\\] -A ${chain} -j DROP$`, "m").exec(saved)?.[1]);
}
