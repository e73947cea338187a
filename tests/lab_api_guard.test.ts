/**
 * @module Containers of jobs try to reach the APIs of nodes, from real containers on real hosts: over IPv4 and IPv6, by every
 * address of every node, from networks of their own and from shared ones, from their first process on, and with no network
 * between nodes.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Lab, type LabHost } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(180_000);

let cluster: LabCluster;
let lab: Lab;

/** Asks `address` for the cluster's status; says `reached` if an API answered, else what the connection came to. */
const ASK = `ask() {
  said=$(printf 'GET /cluster/status HTTP/1.0\\r\\n\\r\\n' | nc -w 3 "$1" 9000 2>&1)
  case "$said" in
    *cluster_id*) echo "$1 reached" ;;
    *forbidden*) echo "$1 forbidden" ;;
    *refused*) echo "$1 refused" ;;
    # A node that forwards gives up when nc closes its half.
    "") echo "$1 reached" ;;
    *) echo "$1 nothing: $said" ;;
  esac
}`;

/** Every address of the host that a container may try, IPv4 and IPv6. */
async function addressesOf(host: LabHost): Promise<string[]> {
  const { stdout } = await host.run(["ip", "-j", "address", "show"]);
  const devices = JSON.parse(stdout) as { ifname: string; addr_info: { local: string; scope: string }[] }[];
  return devices
    .filter(({ ifname }) => ifname !== "lo")
    .flatMap(({ addr_info }) => addr_info.filter(({ scope }) => scope !== "link").map(({ local }) => local));
}

/** What a container of the service came to with each address. */
async function asks(service: string, addresses: readonly string[]): Promise<string[]> {
  const said = await cluster.ask(service, [ASK, ...addresses.map((address) => `ask ${address}`)].join("\n"));
  return said.flatMap(({ text }) => text.split("\n"));
}

async function start(job: string, document: unknown): Promise<void> {
  const { status, body } = await cluster.put(job, document);
  expect([status, body.error]).toEqual([201, undefined]);
  await cluster.settled(job);
}

/** The link-local address that the host has on a network's bridge. */
async function linkLocalOf(host: LabHost, network: string): Promise<string> {
  const id = await host.docker("network", "inspect", "-f", "{{.Id}}", network);
  const { stdout } = await host.run(["ip", "-6", "-j", "address", "show", "dev", `br-${id.slice(0, 12)}`]);
  const [device] = JSON.parse(stdout) as { addr_info: { local: string; scope: string }[] }[];
  const found = device?.addr_info.find(({ scope }) => scope === "link")?.local;
  if (found === undefined) throw new Error(`no link-local address on the bridge of ${network}: ${stdout}`);
  return found;
}

/** A cluster of two nodes whose APIs listen on every address, of both versions of IP. */
async function formCluster(mode: string): Promise<void> {
  lab = await Lab.start({ hosts: 2 });
  cluster = new LabCluster(lab);
  await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
  await lab.host(1).measurePace("busybox");
  for (const host of lab.hosts)
    await host.run(["ip", "addr", "add", `fd77::${host.number}/64`, "dev", "eth0", "nodad"]);
  const options = (host: LabHost) => ["--bind-addr", "[::]:9000", "--advertise-addr", `${host.address}:9000`];
  const [one, two] = [lab.host(1), lab.host(2)];
  await cluster.node(1, ["bootstrap", "--network", mode, ...options(one)]).waitFor(/this node is up/);
  cluster.node(2, ["join", `${one.address}:9000`, ...options(two)]);
  await cluster.ready(2);
}

/** A bridge of the operator's whose name means something else to iptables, or to its input. */
const ODD_BRIDGES = ["br-+", 'q"x'];

/** Runs a command where no iptables works, as on a machine without it. */
const withoutIptables = (argv: readonly string[]) => [
  "unshare",
  "-m",
  "sh",
  "-c",
  'for name in iptables-save ip6tables-save; do mount --bind /bin/false "$(readlink -f "$(command -v $name)")"; done; exec "$@"',
  "sh",
  ...argv,
];

/** One replica on each node. */
const everywhere = (more: Record<string, unknown> = {}) => sleeper({ deploy: { mode: "global" }, ...more });

describe.each([["vxlan"], ["none"]])("with --network %s", (mode) => {
  beforeAll(async () => {
    await formCluster(mode);
  });
  afterAll(async () => {
    await lab?.stop();
  });

  test("a container reaches no API of any node, at any address, over IPv4 and IPv6", async () => {
    const sysctls = { "net.ipv6.conf.all.disable_ipv6": "0" };
    await start("attack", {
      services: { app: everywhere({ sysctls }), six: everywhere({ sysctls, networks: ["six"] }) },
      networks: { six: { enable_ipv6: true, ipam: { config: [{ subnet: "fd01::/64" }] } } },
    });
    const addresses = [...new Set((await Promise.all(lab.hosts.map(addressesOf))).flat())];
    expect(addresses).toContain("fd77::1");
    expect(addresses).toContain("172.30.1.1");
    for (const service of ["app", "six"]) {
      const said = await asks(service, addresses);
      expect(said.filter((line) => / (reached|forbidden)/.test(line))).toEqual([]);
      for (const host of lab.hosts) expect(said.filter((line) => line === `${host.address} refused`).length).toBe(2);
    }
    const said = await asks("six", ["fd77::1", "fd77::2", "fd01::1"]);
    expect(said.every((line) => line.endsWith(" refused"))).toBe(true);
    // Each by the bridge of its own node, once the kernel holds its address for unique.
    for (const host of lab.hosts) {
      const [address] = await Promise.all([linkLocalOf(host, "attack_default")]);
      const ask = `${ASK}\nask ${address}%eth0`;
      await waitUntil(
        "a container to be refused at its bridge's link-local address",
        async () => (await cluster.ask("app", ask)).find((one) => one.host === host)?.text,
        { until: (text) => text === `${address}%eth0 refused`, timeoutMs: 10_000 },
      );
    }
  });

  test("what a container's first process tries is refused, on the job's own network and on docker0", async () => {
    const gateways = lab.hosts.flatMap((host) => [host.address, `172.30.${host.number}.1`]);
    const command = [
      "sh",
      "-c",
      `${ASK}\nfor n in 1 2 3 4 5; do ${gateways.map((one) => `ask ${one};`).join(" ")} done; exec sleep 86400`,
    ];
    // Compose reads a single dollar sign as a variable.
    const escaped = command.map((word) => word.replaceAll("$", "$$$$"));
    const service = (more: Record<string, unknown> = {}) => sleeper({ command: escaped, scale: 6, ...more });
    await start("early", { services: { own: service(), shared: service({ network_mode: "bridge" }) } });
    const heard = async () => {
      const all = await Promise.all(
        lab.hosts.map(async (host) => {
          const found = (await cluster.containers(host)).filter(({ labels }) => labels["cacophony.job"] === "early");
          return Promise.all(found.map(({ id }) => host.docker("logs", id)));
        }),
      );
      return all.flat().flatMap((text) => text.split("\n"));
    };
    // Each of 12 containers asks each of 4 addresses 5 times; docker0 of another host is out of reach.
    const lines = await waitUntil("all containers to have asked", heard, {
      until: (found) => found.length >= 12 * 4 * 5,
      timeoutMs: 60_000,
    });
    expect(lines.filter((line) => line.endsWith(" refused")).length).toBe(12 * 3 * 5);
    expect(lines.filter((line) => / (reached|forbidden)/.test(line))).toEqual([]);
  });

  test("the host, other machines and the operator's own containers go on, also on a network that a job shares", async () => {
    const host = lab.host(1);
    await host.docker("run", "-d", "--name", "operator", "busybox", "sleep", "86400");
    await start("sharing", { services: { app: everywhere({ network_mode: "bridge" }) } });
    const gateway = "172.30.1.1";
    expect(await host.docker("exec", "operator", "sh", "-c", `${ASK}\nask ${gateway}`)).toBe(`${gateway} reached`);
    await host.docker("run", "-d", "--name", "later", "busybox", "sleep", "86400");
    expect(await host.docker("exec", "later", "sh", "-c", `${ASK}\nask ${gateway}`)).toBe(`${gateway} reached`);
    const said = await asks("app", [gateway]);
    expect(said.some((line) => line === `${gateway} refused`)).toBe(true);
    expect(said.every((line) => !line.endsWith("reached"))).toBe(true);
    const { stdout } = await host.run([
      "sh",
      "-c",
      `${ASK.replaceAll("nc -w", "busybox nc -w")}\nask ${gateway}; ask ${host.address}`,
    ]);
    expect(stdout.trim().split("\n")).toEqual([`${gateway} reached`, `${host.address} reached`]);
    expect((await lab.host(2).fetch("/healthz")).status).toBe(200);
    await host.docker("rm", "-f", "operator", "later");
  });

  test("no container starts on a network whose bridge no rule can name, and the rules of all others hold", async () => {
    const host = lab.host(1);
    for (const [index, bridge] of ODD_BRIDGES.entries()) {
      const name = `odd-${index}`;
      await host.docker("network", "create", "-o", `com.docker.network.bridge.name=${bridge}`, name);
      const service = sleeper({
        networks: ["odd"],
        deploy: { placement: { constraints: ["node.hostname == host-1"] } },
      });
      const document = { services: { app: service }, networks: { odd: { external: true, name } } };
      expect((await cluster.put(name, document)).status).toBe(201);
      await waitUntil(
        "the start to be refused",
        async () => (await cluster.job(name)).services["app"]?.allocations[0]?.error,
        {
          until: (error) =>
            error?.includes(JSON.stringify(bridge)) === true && error.includes("firewall rules cannot hold"),
          // A node tells of networks that were made by hand within 30 s.
          timeoutMs: 60_000,
        },
      );
    }
    await start("beside", { services: { beside: everywhere() } });
    const said = await asks("beside", [host.address]);
    expect(said.filter((line) => line === `${host.address} refused`).length).toBe(2);
    if (mode === "vxlan") {
      // Names and packets pass between nodes, so the rules are in force.
      const pings = await cluster.ask(
        "beside",
        "ping -c 1 -w 10 1.beside.beside >/dev/null && ping -c 1 -w 10 2.beside.beside >/dev/null && echo both",
      );
      expect(pings.filter(({ text }) => text === "both").length).toBe(2);
    }
  });

  test("x-cacophony.api opens the API of the container's own node, and no more of it than it says", async () => {
    const put =
      "printf 'PUT /cluster/job/made HTTP/1.0\\r\\nContent-Length: 43\\r\\n\\r\\nservices: {app: {image: busybox, scale: 0}}'";
    const call = (request: string, address: string) =>
      `(${request}; sleep 0.5) | nc -w 5 ${address} 9000 | tr -d '\\r' | sed -n '1s/HTTP.* \\([0-9]*\\) .*/\\1/p;$p'`;
    const get = (path: string) => `printf 'GET ${path} HTTP/1.0\\r\\n\\r\\n'`;
    // An image may have any label.
    for (const host of lab.hosts) {
      await host.docker("create", "--name", "sly", "busybox", "true");
      await host.docker("commit", "--change", "LABEL cacophony.api=deploy", "sly", "sly:1");
    }
    await start("callers", {
      services: {
        sly: everywhere({ image: "sly:1" }),
        reader: everywhere({ environment: { PASSWORD: "hunter2" }, "x-cacophony": { api: "read" } }),
        deployer: everywhere({ "x-cacophony": { api: "deploy" } }),
        plain: everywhere(),
      },
    });
    const own = await Promise.all(
      lab.hosts.map(async (host) => ({
        host,
        gateway: await host.docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "callers_default"),
      })),
    );
    const inside = async (service: string, script: (gateway: string) => string) =>
      Promise.all(
        own.map(async ({ host, gateway }) => {
          const found = (await cluster.containers(host)).find(({ labels }) => labels["cacophony.service"] === service);
          return host.docker("exec", found?.id ?? "", "sh", "-c", script(gateway));
        }),
      );
    for (const text of await inside("reader", (gateway) => call(get("/cluster/job/callers"), gateway))) {
      expect(text).toStartWith("200\n");
      expect(text).toContain("PASSWORD");
      expect(text).not.toContain("hunter2");
    }
    for (const text of await inside("reader", (gateway) => call(put, gateway))) expect(text).toStartWith("403\n");
    for (const text of await inside("reader", (gateway) => call(get("/cluster/node"), gateway)))
      expect(text).toStartWith("403\n");
    for (const text of await inside("deployer", (gateway) => call(put, gateway))) expect(text).toMatch(/^20[01]\n/);
    for (const service of ["plain", "sly"])
      for (const text of await inside(service, (gateway) => `${ASK}\nask ${gateway}`))
        expect(text).toEndWith("refused");
    const others = lab.hosts.map(({ address }) => address);
    const said = await asks("reader", others);
    // Its own node's is open to it, but this is more than it may ask; the other node's is closed.
    expect(said.toSorted()).toEqual(
      others.flatMap((address) => [`${address} forbidden`, `${address} refused`]).toSorted(),
    );
  });
});

test("where iptables does not work the API itself refuses containers of jobs, and nobody else", async () => {
  lab = await Lab.start({ hosts: 1 });
  try {
    cluster = new LabCluster(lab);
    const host = lab.host(1);
    await host.importImage("busybox");
    const node = cluster.node(1, ["bootstrap", "--bind-addr", "0.0.0.0:9000"], { within: withoutIptables });
    await node.waitFor(/this node is up/);
    await cluster.ready(1);
    await start("attack", {
      services: {
        own: sleeper(),
        shared: sleeper({ network_mode: "bridge" }),
        reader: sleeper({ "x-cacophony": { api: "read" } }),
      },
    });
    await host.docker("run", "-d", "--name", "operator", "busybox", "sleep", "86400");
    const addresses = [host.address, "172.30.1.1"];
    for (const service of ["own", "shared", "reader"])
      expect(await asks(service, addresses)).toEqual(addresses.map((address) => `${address} forbidden`));
    const say = async (path: string) => {
      const request = `printf 'GET ${path} HTTP/1.0\\r\\n\\r\\n' | nc -w 3 ${host.address} 9000`;
      return (await cluster.ask("reader", request))[0]?.text;
    };
    expect(await say("/cluster/service")).toContain("HTTP/1.1 200");
    expect(await say("/internal/session")).toContain("403");
    expect(await host.docker("exec", "operator", "sh", "-c", `${ASK}\nask 172.30.1.1`)).toBe("172.30.1.1 reached");
    expect(node.logs()).toContain("this node's API refuses containers by itself");
  } finally {
    await lab.stop();
  }
});
