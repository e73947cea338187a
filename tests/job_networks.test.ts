/** @module Networks of a document -> what a container asks of its node's Engine, as a table; and what is refused or left out. */
import { describe, expect, test } from "bun:test";
import { containerOptions, type Endpoint } from "../src/container_options.ts";
import { parseJob } from "../src/job_spec.ts";
import type { NetworkSpec } from "../src/model_spec.ts";

const context = {
  clusterId: "c1",
  nodeId: "n1",
  jobId: "shop",
  serviceName: "app",
  slot: 1,
  allocationId: "0123456789abcdef",
  networkName: "shop_default",
  projectDir: "/p",
  secretsDir: "/run/s",
};

function read(service: string, networks: string) {
  const text = `services:\n  app: {image: busybox, ${service}}\nnetworks: ${networks}\n`;
  const result = parseJob(text, { jobId: "shop", env: new Map() });
  if (!result.ok) return { faults: result.details.map(({ path, message }) => `${path} ${message}`) };
  const [app] = result.job.services;
  return {
    spec: app!.spec,
    body: containerOptions(app!.spec, context),
    warnings: result.job.warnings.map(({ path, message }) => `${path} ${message}`),
  };
}

describe("a service's place on a network", () => {
  const table: [place: string, expected: Partial<Endpoint>][] = [
    ["", {}],
    ["aliases: [www, app]", { Aliases: ["app", "www"] }],
    [
      "ipv4_address: 10.9.0.5, ipv6_address: 'fd00::5', link_local_ips: [169.254.1.2]",
      { IPAMConfig: { IPv4Address: "10.9.0.5", IPv6Address: "fd00::5", LinkLocalIPs: ["169.254.1.2"] } },
    ],
    ["mac_address: '02:42:ac:11:00:02'", { MacAddress: "02:42:ac:11:00:02" }],
    ["driver_opts: {com.example.mode: 1}", { DriverOpts: { "com.example.mode": "1" } }],
    ["interface_name: lan0", { DriverOpts: { "com.docker.network.endpoint.ifname": "lan0" } }],
    ["gw_priority: 10", { GwPriority: 10 }],
    ["gw_priority: 0, priority: 5", {}],
  ];
  test.each(table)("%s", (place, expected) => {
    const { body } = read(`networks: {front: {${place}}}`, "{front: }");
    expect(body?.NetworkingConfig?.EndpointsConfig["shop_front"]).toEqual({ Aliases: ["app"], ...expected });
  });

  test("the MAC address of the first network is the container's for engines that know no other", () => {
    const mac = "02:42:ac:11:00:02";
    const { body } = read(`networks: {a: , b: {mac_address: '${mac}', priority: 1}}`, "{a: , b: }");
    expect(body?.MacAddress).toBe(mac);
    for (const networks of ["{a: , b: {priority: 1}}", "[b]"]) {
      const { body: whole } = read(`mac_address: '${mac}', networks: ${networks}`, "{a: , b: }");
      expect(whole?.MacAddress).toBe(mac);
      expect(whole?.NetworkingConfig?.EndpointsConfig["shop_b"]?.MacAddress).toBe(mac);
      expect(whole?.NetworkingConfig?.EndpointsConfig["shop_a"]?.MacAddress).toBeUndefined();
    }
    const { body: plain } = read(`mac_address: '${mac}'`, "{}");
    expect(plain?.NetworkingConfig?.EndpointsConfig["shop_default"]?.MacAddress).toBe(mac);
    const { body: further } = read(`networks: {a: , b: {mac_address: '${mac}'}}`, "{a: , b: }");
    expect(further?.MacAddress).toBeUndefined();
    expect(further?.NetworkingConfig?.EndpointsConfig["shop_b"]?.MacAddress).toBe(mac);
  });
});

describe("a network's definition", () => {
  const table: [definition: string, expected: Partial<NetworkSpec>][] = [
    ["{driver: macvlan, driver_opts: {parent: eth0}}", { driver: "macvlan", driver_opts: [["parent", "eth0"]] }],
    ["{driver: ipvlan}", { driver: "ipvlan" }],
    ["{driver: default}", {}],
    ["{internal: true, attachable: true}", { internal: true, attachable: true }],
    ["{enable_ipv4: true, enable_ipv6: true}", { enable_ipv6: true }],
    ["{enable_ipv4: false, enable_ipv6: true}", { enable_ipv4: false, enable_ipv6: true }],
    ["{labels: [a=b], name: other}", { labels: [["a", "b"]], name: "other" }],
    [
      "{ipam: {driver: default, options: {a: b}, config: [{subnet: 10.9.0.0/24, ip_range: 10.9.0.128/25, gateway: 10.9.0.1, aux_addresses: {host1: 10.9.0.9}}]}}",
      {
        ipam: {
          driver: "default",
          options: [["a", "b"]],
          config: [
            {
              subnet: "10.9.0.0/24",
              ip_range: "10.9.0.128/25",
              gateway: "10.9.0.1",
              aux_addresses: [["host1", "10.9.0.9"]],
            },
          ],
        },
      },
    ],
  ];
  test.each(table)("%s", (definition, expected) => {
    const { spec, warnings } = read("networks: [n]", `{n: ${definition}}`);
    expect(spec?.networks?.[0]?.network).toEqual({
      key: "n",
      external: false,
      driver_opts: [],
      labels: [],
      ...expected,
    });
    // Nothing stands between their containers and the APIs of nodes.
    const isOpen = expected.driver === "macvlan" || expected.driver === "ipvlan";
    expect(warnings).toEqual(
      isOpen ? [expect.stringContaining(`is ${expected.driver}, which lets its containers reach the API`)] : [],
    );
  });

  test.each(["br-+", 'q"x', "-i", "", "a b", "br\nx", "all", "default", "docker0", "cvx", "a".repeat(16), ".br"])(
    "is refused with the bridge name %j, which no firewall rule can hold or which is taken",
    (name) => {
      const options = JSON.stringify({ "com.docker.network.bridge.name": name });
      const { faults } = read("networks: [n]", `{n: {driver_opts: ${options}}}`);
      expect(faults).toEqual([
        expect.stringContaining(`networks.n.driver_opts names the bridge ${JSON.stringify(name)}`),
      ]);
    },
  );

  test.each(["br-shop", "shop_1.a", "a".repeat(15)])("may name its bridge %s", (name) => {
    const options = JSON.stringify({ "com.docker.network.bridge.name": name });
    const { spec } = read("networks: [n]", `{n: {driver_opts: ${options}}}`);
    expect(spec?.networks?.[0]?.network.driver_opts).toEqual([["com.docker.network.bridge.name", name]]);
  });

  test("an overlay is made a bridge, with a warning; an external one is used as it is", () => {
    const made = read("networks: [n]", "{n: {driver: overlay}}");
    expect(made.spec?.networks?.[0]?.network).not.toHaveProperty("driver");
    expect(made.warnings).toEqual([expect.stringMatching(/^networks\.n\.driver is left out: a bridge is made/)]);
    const used = read("networks: [n]", "{n: {driver: overlay, external: true, internal: true}}");
    expect(used.warnings).toEqual([
      "networks.n.driver is left out, as compose does: the network is external",
      "networks.n.internal is left out, as compose does: the network is external",
    ]);
  });

  test("what no service uses is not looked at", () => {
    expect(read("tty: true", "{n: {driver: host}}").warnings).toEqual([]);
  });

  const bad: [service: string, networks: string, message: string][] = [
    ["networks: [n]", "{n: {driver: host}}", "networks.n.driver is host, of which a node has one"],
    ["networks: [n]", "{n: {driver: 'null'}}", "write external: true and name: none"],
    ["networks: [n]", "{n: {enable_ipv4: false}}", "networks.n.enable_ipv4 leaves the network without addresses"],
    [
      "networks: {n: {interface_name: a, driver_opts: {com.docker.network.endpoint.ifname: b}}}",
      "{n: }",
      'services.app.networks.n.interface_name is "a", but driver_opts says "b"',
    ],
    ["networks: {n: {interface_name: a/b}}", "{n: }", "an interface's name has up to 15 characters"],
    ["networks: {n: {mac_address: '02:42'}}", "{n: }", "write a MAC address"],
    [
      "mac_address: '02:42:ac:11:00:02', networks: {n: {mac_address: '02:42:ac:11:00:03'}}",
      "{n: }",
      "services.app.mac_address is 02:42:ac:11:00:02, but that of the first network, n, is 02:42:ac:11:00:03",
    ],
    [
      "networks: [n, m]",
      "{n: {external: true, name: host}, m: }",
      "services.app.networks[0] is the network host of the node, which excludes all others",
    ],
    [
      "networks: {n: {aliases: [a]}}",
      "{n: {external: true, name: host}}",
      "services.app.networks.n.aliases is not possible on the network host of the node",
    ],
  ];
  test.each(bad)("%s with %s is refused", (service, networks, message) => {
    expect(read(service, networks).faults?.join("\n") ?? "").toContain(message);
  });
});

describe("the node's own networks", () => {
  test.each(["host", "none", "bridge"])("an external %s is that network mode, also as the default", (name) => {
    for (const [service, networks] of [
      ["networks: [n]", `{n: {external: true, name: ${name}}}`],
      ["networks: {n: {priority: 3}}", `{n: {external: {name: ${name}}}}`],
      ["tty: true", `{default: {external: true, name: ${name}}}`],
      ["networks: []", `{default: {external: true, name: ${name}}}`],
    ] as const) {
      const { body } = read(service, networks);
      expect(body?.HostConfig.NetworkMode).toBe(name);
      expect(body).not.toHaveProperty("NetworkingConfig");
    }
  });

  test("a network of the job that is called host is one of its own", () => {
    expect(read("networks: [host]", "{host: }").body?.HostConfig.NetworkMode).toBe("shop_host");
  });

  test("ports on the node's own network are left out, as Docker does", () => {
    const { body, warnings } = read("ports: ['80:80'], networks: [n]", "{n: {external: true, name: host}}");
    expect(body?.HostConfig.PortBindings).toBeUndefined();
    expect(warnings).toEqual([
      expect.stringContaining("services.app.network_mode lets its containers reach the API of every node"),
      expect.stringContaining("services.app.ports is left out"),
    ]);
  });

  test("the bridge goes with others, and gives no names", () => {
    const { body } = read("networks: [b, n]", "{b: {external: true, name: bridge}, n: }");
    expect(body?.NetworkingConfig?.EndpointsConfig).toEqual({
      bridge: { Aliases: [] },
      shop_n: { Aliases: ["app"] },
    });
  });
});

describe("a network on which services have fixed addresses and others have none", () => {
  type Config = Partial<NonNullable<NetworkSpec["ipam"]>["config"][number]>;
  const ipamOf = (fixed: string[], network: string, others = "  b: {image: x, networks: [n]}\n"): Config[] => {
    const services = fixed.map((ip, index) => `  f${index}: {image: x, networks: {n: {ipv4_address: ${ip}}}}\n`);
    const body = `services:\n${services.join("")}${others}networks: {n: ${network}}\n`;
    const result = parseJob(body, { jobId: "shop", env: new Map() });
    if (!result.ok) throw new Error(JSON.stringify(result.details));
    return result.job.services.at(-1)?.spec.networks?.[0]?.network.ipam?.config ?? [];
  };
  const subnet = (text: string, more = "") => `{ipam: {config: [{subnet: ${text}${more}}]}}`;
  const cases: [fixed: string[], network: string, expected: Config][] = [
    [["10.9.0.2"], subnet("10.9.0.0/24"), { ip_range: "10.9.0.128/25", gateway: "10.9.0.1" }],
    [["10.9.0.200"], subnet("10.9.0.0/24"), { ip_range: "10.9.0.0/25", gateway: "10.9.0.1" }],
    [["10.9.0.2", "10.9.0.200"], subnet("10.9.0.0/24"), { ip_range: "10.9.0.128/26", gateway: "10.9.0.1" }],
    [["172.20.0.5"], subnet("172.20.0.0/16"), { ip_range: "172.20.128.0/17", gateway: "172.20.0.1" }],
    [
      ["10.9.0.2"],
      subnet("10.9.0.0/24", ", gateway: 10.9.0.254"),
      { ip_range: "10.9.0.128/25", gateway: "10.9.0.254" },
    ],
    [
      ["10.9.0.2"],
      "{driver: overlay, ipam: {config: [{subnet: 10.9.0.0/24}]}}",
      { ip_range: "10.9.0.128/25", gateway: "10.9.0.1" },
    ],
    [["10.9.0.130"], subnet("10.9.0.0/24", ", ip_range: 10.9.0.128/25"), { ip_range: "10.9.0.128/25" }],
    // No part of 64 addresses is free.
    [["10.9.0.2"], subnet("10.9.0.0/26"), {}],
    [["10.9.0.2", "10.9.0.70", "10.9.0.130", "10.9.0.200"], subnet("10.9.0.0/24"), {}],
    // The address is not of this network, which Docker says.
    [["10.8.0.2"], subnet("10.9.0.0/24"), {}],
    [[], subnet("10.9.0.0/24"), {}],
    // Addresses of a network that is not of the node alone are not for us to part.
    [["10.9.0.2"], "{driver: macvlan, ipam: {config: [{subnet: 10.9.0.0/24}]}}", {}],
    [["10.9.0.2"], "{ipam: {driver: other, config: [{subnet: 10.9.0.0/24}]}}", {}],
  ];
  test.each(cases)("%j on %s", (fixed, network, expected) => {
    const [{ subnet: _, aux_addresses: __, ...rest } = {}] = ipamOf(fixed, network);
    expect(rest).toEqual(expected);
  });

  test("is left as it is where all have one", () => {
    expect(ipamOf(["10.9.0.2", "10.9.0.3"], subnet("10.9.0.0/24"), "")[0]?.ip_range).toBeUndefined();
  });

  test("keeps its definition when one more is fixed in the part that is not given out", () => {
    const one = ipamOf(["10.9.0.2"], subnet("10.9.0.0/24"));
    expect(ipamOf(["10.9.0.2", "10.9.0.3"], subnet("10.9.0.0/24"))).toEqual(one);
  });
});
