/**
 * @module Traefik's dynamic configuration, held to what Traefik's own documentation and decoder (paerser's `file` and `parser`)
 * say: the same settings as labels and as a document.
 */
import { describe, expect, test } from "bun:test";
import { traefikConfiguration } from "../src/discovery.ts";
import type { ReplicaView, ServiceView } from "../src/service_views.ts";

function replica(slot: number, fields: Partial<ReplicaView> = {}): ReplicaView {
  return {
    slot,
    allocation_id: `a${slot}`,
    node_id: `n${slot}`,
    node_name: `machine-${slot}`,
    node_host: `192.0.2.${slot}`,
    state: "running",
    health: null,
    ready: true,
    addresses: [{ network: "shop_default", address: `10.213.${slot}.66` }],
    ports: [],
    ...fields,
  };
}

function service(labels: Record<string, string>, fields: Partial<ServiceView> = {}): ServiceView {
  return {
    job_id: "shop",
    service_name: "web",
    names: [],
    aliases: [],
    ports: [{ container_port: 8080, protocol: "tcp" }],
    entries: [],
    labels,
    replicas: [replica(1), replica(2)],
    ...fields,
  };
}

function configuration(labels: Record<string, string>, fields: Partial<ServiceView> = {}) {
  return traefikConfiguration([service(labels, fields)]);
}

/** What the label `traefik.http.middlewares.m.FIELD=VALUE` becomes. */
function middleware(fields: Record<string, string>) {
  const labels = Object.entries(fields).map(([field, value]) => [`traefik.http.middlewares.m.${field}`, value]);
  return configuration(Object.fromEntries(labels));
}

/** Fields of type []string in Traefik's labels reference: its decoder refuses all of a document that has a text there. */
const LISTS = [
  "basicauth.users",
  "chain.middlewares",
  "compress.encodings",
  "compress.excludedcontenttypes",
  "compress.includedcontenttypes",
  "digestauth.users",
  "errors.status",
  "forwardauth.addauthcookiestoresponse",
  "forwardauth.authrequestheaders",
  "forwardauth.authresponseheaders",
  "grpcweb.alloworigins",
  "headers.accesscontrolallowheaders",
  "headers.accesscontrolallowmethods",
  "headers.accesscontrolalloworiginlist",
  "headers.accesscontrolalloworiginlistregex",
  "headers.accesscontrolexposeheaders",
  "headers.allowedhosts",
  "headers.hostsproxyheaders",
  "inflightreq.sourcecriterion.ipstrategy.excludedips",
  "ipallowlist.ipstrategy.excludedips",
  "ipallowlist.sourcerange",
  "ipwhitelist.sourcerange",
  "ratelimit.sourcecriterion.ipstrategy.excludedips",
  "stripprefix.prefixes",
  "stripprefixregex.regex",
];

function at(value: unknown, path: string): unknown {
  return path.split(".").reduce<unknown>((below, key) => (below as Record<string, unknown> | undefined)?.[key], value);
}

describe("traefikConfiguration()", () => {
  test.each(LISTS)("makes a list of %s", (field) => {
    const path = `http.middlewares.m.${field}`;
    expect(at(middleware({ [field]: "one, two" }), path)).toEqual(["one", "two"]);
    expect(at(middleware({ [field]: "one" }), path)).toEqual(["one"]);
    const capitals = field.toUpperCase();
    expect(JSON.stringify(middleware({ [capitals]: "one, two" }))).toContain('["one","two"]');
  });

  test.each([
    ["redirectregex.regex", "^https?://a,b/(.*)", "^https?://a,b/(.*)"],
    ["replacepathregex.regex", "^/a{1,2}/", "^/a{1,2}/"],
    ["passtlsclientcert.info.sans", "true", true],
    ["headers.customrequestheaders.X-Names", "one, two", "one, two"],
    ["headers.customresponseheaders.Status", "one, two", "one, two"],
    ["plugin.name.users", "one, two", "one, two"],
    ["ratelimit.average", "42", 42],
    ["ratelimit.period", "1m", "1m"],
    ["headers.customrequestheaders.X-Id", "0042", "0042"],
    ["circuitbreaker.expression", "NetworkErrorRatio() > 0.5", "NetworkErrorRatio() > 0.5"],
  ] as const)("leaves %s as it is: %s", (field, value, expected) => {
    expect(at(middleware({ [field]: value }), `http.middlewares.m.${field}`)).toEqual(expected);
  });

  test("names no empty section, which Traefik would refuse with all the rest: middlewares alone bring no services", () => {
    expect(middleware({ "stripprefix.prefixes": "/api" })).toEqual({
      http: { middlewares: { m: { stripprefix: { prefixes: ["/api"] } } } },
    });
    expect(configuration({ "traefik.enable": "true" })).toEqual({});
    expect(traefikConfiguration([])).toEqual({});
  });

  test("a service without a ready replica has no servers, so that its router answers 503 and not another one", () => {
    const labels = { "traefik.http.routers.web.rule": "Host(`shop.example`)" };
    expect(configuration(labels, { replicas: [replica(1, { ready: false })] })).toEqual({
      http: {
        routers: { web: { rule: "Host(`shop.example`)", service: "web-shop" } },
        services: { "web-shop": { loadBalancer: { servers: [] } } },
      },
    });
  });

  test.each([
    ["tls=true first", ["tls", "tls.certresolver"]],
    ["tls=true last", ["tls.certresolver", "tls"]],
  ])("keeps what is below a flag: %s", (_, order) => {
    const values: Record<string, string> = { tls: "true", "tls.certresolver": "le" };
    const labels = order.map((field) => [`traefik.http.routers.r.${field}`, values[field] ?? ""]);
    expect(at(configuration(Object.fromEntries(labels)), "http.routers.r.tls")).toEqual({ certresolver: "le" });
  });

  test("says as a document what Traefik's reference says as labels", () => {
    const labels = {
      "traefik.http.routers.Router0.entrypoints": "web, websecure",
      "traefik.http.routers.Router0.middlewares": "strip, auth",
      "traefik.http.routers.Router0.priority": "42",
      "traefik.http.routers.Router0.rule": "Host(`shop.example`) && PathPrefix(`/api`)",
      "traefik.http.routers.Router0.tls.domains[0].main": "shop.example",
      "traefik.http.routers.Router0.tls.domains[0].sans": "a.shop.example, b.shop.example",
      "traefik.http.routers.Router0.tls.domains[1].main": "shop.test",
      "traefik.http.services.Service01.loadbalancer.passhostheader": "true",
      "traefik.http.services.Service01.loadbalancer.healthcheck.path": "/health",
      "traefik.http.services.Service01.loadbalancer.healthcheck.status": "200",
      "traefik.http.services.Service01.loadbalancer.healthcheck.interval": "10s",
      "traefik.http.services.Service01.loadbalancer.sticky.cookie": "true",
      "traefik.http.services.Service01.loadbalancer.sticky.cookie.name": "seat",
      "traefik.http.services.Service01.loadbalancer.server.port": "8443",
      "traefik.http.services.Service01.loadbalancer.server.scheme": "https",
      "traefik.tcp.routers.Router1.rule": "HostSNI(`*`)",
      "traefik.tcp.services.Service02.loadbalancer.server.port": "5432",
      "traefik.udp.routers.Router2.entrypoints": "dns",
      "traefik.udp.services.Service03.loadbalancer.server.port": "53",
    };
    expect(configuration(labels)).toEqual({
      http: {
        routers: {
          Router0: {
            entryPoints: ["web", "websecure"],
            middlewares: ["strip", "auth"],
            priority: 42,
            rule: "Host(`shop.example`) && PathPrefix(`/api`)",
            tls: {
              domains: [{ main: "shop.example", sans: ["a.shop.example", "b.shop.example"] }, { main: "shop.test" }],
            },
            service: "Service01",
          },
        },
        services: {
          Service01: {
            loadBalancer: {
              passhostheader: true,
              healthcheck: { path: "/health", status: 200, interval: "10s" },
              sticky: { cookie: { name: "seat" } },
              servers: [{ url: "https://10.213.1.66:8443" }, { url: "https://10.213.2.66:8443" }],
            },
          },
        },
      },
      tcp: {
        routers: { Router1: { rule: "HostSNI(`*`)", service: "Service02" } },
        services: {
          Service02: { loadBalancer: { servers: [{ address: "10.213.1.66:5432" }, { address: "10.213.2.66:5432" }] } },
        },
      },
      udp: {
        routers: { Router2: { entryPoints: ["dns"], service: "Service03" } },
        services: {
          Service03: { loadBalancer: { servers: [{ address: "10.213.1.66:53" }, { address: "10.213.2.66:53" }] } },
        },
      },
    });
  });

  test("gives the address on the network that traefik.docker.network names, and else where the port is published", () => {
    const both = replica(1, {
      addresses: [
        { network: "shop_default", address: "10.213.1.66" },
        { network: "edge", address: "10.213.1.130" },
      ],
      ports: [{ container_port: 8080, protocol: "tcp", host_ip: "0.0.0.0", host_port: 32768 }],
    });
    const urls = (labels: Record<string, string>) =>
      at(
        configuration({ "traefik.http.routers.r.rule": "Path(`/`)", ...labels }, { replicas: [both] }),
        "http.services.web-shop.loadBalancer.servers",
      );
    expect(urls({ "traefik.docker.network": "edge" })).toEqual([{ url: "http://10.213.1.130:8080" }]);
    expect(urls({})).toEqual([{ url: "http://192.0.2.1:32768" }]);
  });
});

test("point 6: a label of thousands of levels leaves the configuration of all others as it is", () => {
  const deep = `traefik.http.middlewares.m.${"a.".repeat(50_000)}b`;
  const shared = { "traefik.http.routers.web.rule": "Host(`a`)" };
  const both = traefikConfiguration([service(shared), service({ [deep]: "1" }, { service_name: "deep" })]);
  expect(JSON.stringify(both)).toBe(JSON.stringify(traefikConfiguration([service(shared)])));
});
