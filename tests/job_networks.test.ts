/** @module Networks of a document -> what a container asks of its node's Engine, as a table; and what is refused or left out. */
import { describe, expect, test } from "bun:test";
import { containerOptions, type Endpoint } from "../src/container_options.ts";
import { parseJob } from "../src/job_spec.ts";
import type { NetworkSpec } from "../src/model.ts";

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
    expect(warnings).toEqual([]);
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
    expect(warnings).toEqual([expect.stringContaining("services.app.ports is left out")]);
  });

  test("the bridge goes with others, and gives no names", () => {
    const { body } = read("networks: [b, n]", "{b: {external: true, name: bridge}, n: }");
    expect(body?.NetworkingConfig?.EndpointsConfig).toEqual({
      bridge: { Aliases: [] },
      shop_n: { Aliases: ["app"] },
    });
  });
});
