/** @module Ports of a document: which of them Docker publishes, which are entries on every node, and what is refused. */
import { describe, expect, test } from "bun:test";
import { doubleEntries } from "../src/job_entries.ts";
import { parseJob } from "../src/job_spec.ts";
import type { EntryPort } from "../src/model_spec.ts";

function read(service: string) {
  const text = `services:\n  app:\n    image: busybox\n${service.replace(/^/gm, "    ")}\n`;
  const result = parseJob(text, { jobId: "shop", env: new Map() });
  if (!result.ok) return { faults: result.details.map(({ path, message }) => `${path} ${message}`) };
  const { spec, rules } = result.job.services[0]!;
  return {
    published: spec.ports.map(({ container_port, protocol, host_port }) => [
      host_port?.first,
      container_port,
      protocol,
    ]),
    entries: rules.entries?.map(({ port, container_port, protocol }) => [port, container_port, protocol]) ?? [],
    rules,
    warnings: result.job.warnings.map(({ path, message }) => `${path} ${message}`),
  };
}

const MESH = "x-cacophony: {publish: mesh}\n";

describe("ports of a service", () => {
  test.each([
    ["ports: ['8080:80']", [[8080, 80, "tcp"]], []],
    ["ports: [{target: 80, published: 8080}]", [[8080, 80, "tcp"]], []],
    ["ports: [{target: 80, published: 8080, mode: host}]", [[8080, 80, "tcp"]], []],
    ["ports: [{target: 80, published: 8080, mode: ingress}]", [], [[8080, 80, "tcp"]]],
    ["ports: [{target: 53, published: '53', mode: ingress, protocol: udp}]", [], [[53, 53, "udp"]]],
    [`${MESH}ports: ['8080:80']`, [], [[8080, 80, "tcp"]]],
    [
      `${MESH}ports: ['7000-7001:8000-8001']`,
      [],
      [
        [7000, 8000, "tcp"],
        [7001, 8001, "tcp"],
      ],
    ],
    [`${MESH}ports: [{target: 80, published: 8080, mode: host}, '81:81/udp']`, [[8080, 80, "tcp"]], [[81, 81, "udp"]]],
    [
      "x-cacophony: {publish: host}\nports: ['8080:80', {target: 1, published: 1, mode: ingress}]",
      [[8080, 80, "tcp"]],
      [[1, 1, "tcp"]],
    ],
    [`${MESH}expose: [80]`, [], []],
  ])("%s", (text, published, entries) => {
    expect<unknown>(read(text)).toMatchObject({ published, entries });
  });

  test("lead to local replicas first and say nothing of the client unless they are told otherwise", () => {
    expect(read(`${MESH}ports: ['8080:80']`).rules?.entries).toMatchObject([
      { balance: "local_first", proxy_protocol: "none" },
    ]);
    const told = "x-cacophony: {publish: mesh, balance: least_connections, proxy_protocol: v2}\nports: ['8080:80']";
    expect(read(told).rules?.entries).toMatchObject([{ balance: "least_connections", proxy_protocol: "v2" }]);
  });

  test.each([
    ["ports: ['80']", "names no port to open on every node"],
    ["ports: ['127.0.0.1:8080:80']", "has the address 127.0.0.1"],
    ["ports: ['8080:80/sctp']", "works for tcp and udp only"],
    ["ports: ['8080-8090:80']", "names a range to choose from"],
    ["ports: ['8080:80', '8080:81']", "opens port 8080/tcp on every node, which leads to 80 already"],
    ["network_mode: none\nports: ['8080:80']", "no address of their own with network_mode: none"],
  ])("are refused as entries: %s", (text, message) => {
    expect(read(MESH + text).faults).toEqual([expect.stringContaining(message)]);
    expect(read(MESH + text).faults?.[0]).toStartWith("services.app.ports[");
  });

  test("may be named twice when they lead to one port", () => {
    expect(read(`${MESH}ports: ['8080:80', '8080:80/udp', {target: 80, published: 8080}]`).entries).toEqual([
      [8080, 80, "tcp"],
      [8080, 80, "udp"],
    ]);
  });

  test("warn that udp goes without PROXY protocol", () => {
    const text = "x-cacophony: {publish: mesh, proxy_protocol: v1}\nports: ['53:53/udp']";
    expect(read(text).warnings).toEqual([expect.stringContaining("udp entries go without it")]);
  });
});

describe("doubleEntries()", () => {
  const claim = (of: string, ...ports: string[]) => {
    const [job_id = "", service_name = ""] = of.split("/");
    const entries = ports.map((text): EntryPort => {
      const [port, protocol] = text.split("/");
      const rest = { container_port: 80, balance: "local_first", proxy_protocol: "none" } as const;
      return { port: Number(port), protocol: protocol === "udp" ? "udp" : "tcp", ...rest };
    });
    return { job_id, service_name, rules: ports.length > 0 ? { entries } : {} };
  };

  test("finds a port that another job's service has, and one that two of a job want", () => {
    const services = [claim("shop/web", "80/tcp", "81/tcp"), claim("shop/api", "81/tcp"), claim("shop/db")];
    const others = [claim("blog/front", "80/tcp"), claim("blog/db")];
    expect(doubleEntries(services, others)).toEqual([
      {
        path: "services.web.ports",
        message: "opens port 80/tcp on every node, which leads to service front of job blog already: choose another",
      },
      {
        path: "services.api.ports",
        message: "opens port 81/tcp on every node, which leads to service web already: choose another",
      },
    ]);
  });

  test("lets one number be two ports, of tcp and of udp", () => {
    expect(doubleEntries([claim("shop/web", "53/tcp")], [claim("dns/dns", "53/udp")])).toEqual([]);
  });
});
