/** @module Networks and volumes of documents on real engines: what is made, how containers are on it, and what waits for it. */
import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { type Lab, type LabHost } from "./lab.ts";
import type { JobDoc } from "./lab_cluster.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

let lab: Lab;
let cluster: LabCluster;
let host: LabHost;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: 2, bootstrap: ["--label", "here=1"] });
  lab = cluster.lab;
  host = lab.host(1);
});

afterEach(() => cluster.clear());
afterAll(() => lab?.stop());

/** A service on the first host. */
function here(more: Record<string, unknown>) {
  return sleeper({ ...more, deploy: { placement: { constraints: ["node.labels.here == 1"] } } });
}

async function inspect<T>(...what: string[]): Promise<T> {
  const [found] = JSON.parse(await host.docker(...what)) as T[];
  return found!;
}

async function containerOf(jobId: string): Promise<string> {
  const { services } = await cluster.settled(jobId);
  return services["web"]?.allocations[0]?.container_id ?? "";
}

function blocked(jobId: string, reason: string): Promise<JobDoc> {
  return waitUntil(`${jobId} to be blocked`, () => cluster.job(jobId), {
    until: ({ services }) => services["web"]?.blocked[0]?.reasons.includes(reason) ?? false,
  });
}

test("a network is made as its document defines it, and the container has its place there", async () => {
  await cluster.put("net", {
    services: {
      web: here({
        networks: {
          front: {
            ipv4_address: "10.99.8.130",
            ipv6_address: "fd00:99:8::130",
            mac_address: "02:42:0a:63:08:82",
            link_local_ips: ["169.254.8.8"],
            driver_opts: { "com.example.asked": "yes" },
            priority: 1,
          },
          lan: { ipv4_address: "10.99.9.7" },
        },
      }),
    },
    networks: {
      front: {
        driver_opts: { "com.docker.network.bridge.name": "lab-front" },
        internal: true,
        attachable: true,
        enable_ipv6: true,
        labels: { team: "a" },
        ipam: {
          driver: "default",
          config: [
            {
              subnet: "10.99.8.0/24",
              ip_range: "10.99.8.128/25",
              gateway: "10.99.8.254",
              aux_addresses: { printer: "10.99.8.129" },
            },
            { subnet: "fd00:99:8::/64" },
          ],
        },
      },
      lan: { driver: "macvlan", driver_opts: { parent: "eth0" }, ipam: { config: [{ subnet: "10.99.9.0/24" }] } },
    },
  });
  const id = await containerOf("net");
  expect(await inspect("network", "inspect", "net_front")).toMatchObject({
    Driver: "bridge",
    Internal: true,
    Attachable: true,
    EnableIPv6: true,
    Labels: { team: "a" },
    Options: { "com.docker.network.bridge.name": "lab-front" },
    IPAM: {
      Config: [
        {
          Subnet: "10.99.8.0/24",
          IPRange: "10.99.8.128/25",
          Gateway: "10.99.8.254",
          AuxiliaryAddresses: { printer: "10.99.8.129" },
        },
        { Subnet: "fd00:99:8::/64" },
      ],
    },
  });
  expect(await inspect("network", "inspect", "net_lan")).toMatchObject({
    Driver: "macvlan",
    Options: { parent: "eth0" },
  });
  const { NetworkSettings } = await inspect<{ NetworkSettings: { Networks: Record<string, unknown> } }>("inspect", id);
  expect(NetworkSettings.Networks).toMatchObject({
    net_front: {
      IPAddress: "10.99.8.130",
      GlobalIPv6Address: "fd00:99:8::130",
      MacAddress: "02:42:0a:63:08:82",
      IPAMConfig: { LinkLocalIPs: ["169.254.8.8"] },
      DriverOpts: { "com.example.asked": "yes" },
    },
    net_lan: { IPAddress: "10.99.9.7" },
  });
});

test("a service gets its fixed address though others that have none start before it", async () => {
  const n = { ipam: { config: [{ subnet: "10.99.7.0/24" }] } };
  // Docker would give these the first addresses of the subnet.
  const web = { ...here({ networks: ["n"] }), scale: 3 };
  const fixed = (address: string) => ({ ...here({ networks: { n: { ipv4_address: address } } }), depends_on: ["web"] });
  const services = { web, db: fixed("10.99.7.2") };
  await cluster.put("fixed", { services, networks: { n } });
  await cluster.settled("fixed");
  await cluster.put("fixed", { services: { ...services, later: fixed("10.99.7.3") }, networks: { n } });
  const job = await cluster.settled("fixed");
  const addressOf = async (id = "") => {
    const { NetworkSettings } = await inspect<{
      NetworkSettings: { Networks: Record<string, { IPAddress: string; Gateway: string }> };
    }>("inspect", id);
    return NetworkSettings.Networks["fixed_n"];
  };
  const at = (name: string) => addressOf(job.services[name]?.allocations[0]?.container_id ?? "");
  expect(await at("db")).toMatchObject({ IPAddress: "10.99.7.2", Gateway: "10.99.7.1" });
  expect(await at("later")).toMatchObject({ IPAddress: "10.99.7.3" });
  expect((await at("web"))?.IPAddress).toMatch(/^10\.99\.7\.1(2[89]|3\d)$/);
  // The one that came later changed nothing of the others.
  expect(job.services["web"]?.allocations.every(({ restarts }) => restarts === 0)).toBe(true);
});

test("a changed definition of a network is made on the node when no container is on it any more", async () => {
  const document = (subnet: string) => ({
    services: { web: here({ networks: ["n"] }) },
    networks: { n: { ipam: { config: [{ subnet }] } } },
  });
  await cluster.put("changes", document("10.99.10.0/24"));
  const first = await containerOf("changes");
  await cluster.put("changes", document("10.99.11.0/24"));
  const second = await waitUntil("the new replica", () => containerOf("changes"), { until: (id) => id !== first });
  expect(await inspect("network", "inspect", "changes_n")).toMatchObject({
    IPAM: { Config: [{ Subnet: "10.99.11.0/24" }] },
  });
  expect(await inspect("inspect", second)).toMatchObject({
    NetworkSettings: { Networks: { changes_n: { IPAddress: expect.stringMatching(/^10\.99\.11\./) } } },
  });
});

test("an external host network is the node's own, and the bridge goes with others", async () => {
  await cluster.put("own", {
    services: { web: here({ networks: ["outer"] }) },
    networks: { outer: { external: true, name: "host" } },
  });
  const id = await containerOf("own");
  expect(await inspect("inspect", id)).toMatchObject({ HostConfig: { NetworkMode: "host" } });
  await cluster.put("both", {
    services: { web: here({ networks: ["default", "outer"] }) },
    networks: { outer: { external: true, name: "bridge" } },
  });
  const both = await containerOf("both");
  const { NetworkSettings } = await inspect<{ NetworkSettings: { Networks: Record<string, unknown> } }>(
    "inspect",
    both,
  );
  expect(Object.keys(NetworkSettings.Networks).toSorted()).toEqual(["both_default", "bridge"]);
});

test("what waits for an external network starts where it appears", async () => {
  const service = { web: sleeper({ networks: ["outer"] }) };
  await cluster.put("late", { services: service, networks: { outer: { external: true, name: "appears" } } });
  await blocked("late", "2 nodes: no external network appears (docker network create appears)");
  await lab.host(2).docker("network", "create", "appears");
  const { services } = await cluster.settled("late");
  expect(services["web"]?.allocations[0]?.node_name).toBe("host-2");
  await cluster.clear();
  await lab.host(2).docker("network", "rm", "appears");
});

test("volumes are made as their document defines them, and each form of mount has its options", async () => {
  const driver_opts = { type: "tmpfs", device: "tmpfs", o: "size=1m,mode=0711" };
  const named = { name: "own-volume", driver: "local", driver_opts, labels: { team: "a" } };
  await cluster.put("forms", {
    services: {
      web: here({
        volumes: [
          { type: "volume", source: "named", target: "/named", volume: { nocopy: true } },
          { type: "volume", target: "/nameless", volume: { labels: { team: "b" } } },
          { type: "tmpfs", target: "/memory", tmpfs: { size: "2m", mode: 0o700 } },
          { type: "bind", source: "/etc", target: "/seen", read_only: true, bind: { propagation: "private" } },
          "./made:/made",
        ],
      }),
    },
    volumes: { named },
  });
  const id = await containerOf("forms");
  expect(await inspect("volume", "inspect", "own-volume")).toMatchObject({
    Driver: "local",
    Options: driver_opts,
    Labels: { team: "a" },
  });
  const { Mounts: mounts } = await inspect<{
    Mounts: { Type: string; Name?: string; Destination: string; RW: boolean; Propagation: string }[];
  }>("inspect", id);
  const at = (target: string) => mounts.find(({ Destination }) => Destination === target);
  expect(at("/named")).toMatchObject({ Type: "volume", Name: "own-volume", RW: true });
  expect(at("/nameless")).toMatchObject({ Type: "volume", RW: true });
  expect(await inspect("volume", "inspect", at("/nameless")?.Name ?? "")).toMatchObject({ Labels: { team: "b" } });
  expect(at("/seen")).toMatchObject({ Type: "bind", RW: false, Propagation: "private" });
  expect(at("/made")).toMatchObject({ Type: "bind", RW: true });
  const table = await host.docker("exec", id, "cat", "/proc/mounts");
  expect(table).toMatch(/^tmpfs \/memory tmpfs rw,.*size=2048k,mode=700/m);
  expect(table).toMatch(/^tmpfs \/named tmpfs rw,.*size=1024k,mode=711/m);
});

test("what the engines are too old for is not placed, and says why", async () => {
  const api = (await inspect<{ Server: { ApiVersion: string } }>("version", "--format", "[{{json .}}]")).Server
    .ApiVersion;
  const since = { gw_priority: "1.48", "volume.subpath": "1.45", "bind.recursive": "1.44" };
  const asked = {
    gw_priority: { networks: { default: { gw_priority: 1 } } },
    "volume.subpath": { volumes: [{ type: "volume", source: "d", target: "/d", volume: { subpath: "a" } }] },
    "bind.recursive": {
      volumes: [{ type: "bind", source: "/srv", target: "/d", read_only: true, bind: { recursive: "readonly" } }],
    },
  };
  for (const [index, key] of (Object.keys(asked) as (keyof typeof asked)[]).entries()) {
    await cluster.put(`old-${index}`, { services: { web: sleeper(asked[key]) }, volumes: { d: {} } });
    await blocked(`old-${index}`, `2 nodes: Docker is too old for ${key} (API ${since[key]}, the node's is ${api})`);
  }
});

test("a new replica has a new anonymous volume, and a restart in place keeps it", async () => {
  const volumeOf = async (id: string) =>
    (await inspect<{ Mounts: { Name: string; Type: string }[] }>("inspect", id)).Mounts[0]?.Name;
  await cluster.put("anon", { services: { web: here({ volumes: ["/data"] }) } });
  const first = await containerOf("anon");
  const volume = await volumeOf(first);
  await host.docker("kill", first);
  await waitUntil("the restart", () => cluster.allocations("?job=anon"), {
    until: ([one]) => one?.state === "running" && one.restarts === 1,
  });
  expect(await volumeOf(await containerOf("anon"))).toBe(volume);
  await cluster.put("anon", { services: { web: here({ volumes: ["/data"], environment: ["A=1"] }) } });
  const second = await waitUntil("the new replica", () => containerOf("anon"), { until: (id) => id !== first });
  expect(await volumeOf(second)).not.toBe(volume);
  expect(await host.docker("volume", "ls", "--quiet")).not.toContain(volume);
});
