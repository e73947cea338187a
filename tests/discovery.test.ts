/** @module What a service's labels and addresses can do to the documents that other tools read. */
import { expect, test } from "bun:test";
import { prometheusTargets, traefikConfiguration } from "../src/discovery.ts";
import type { ReplicaView, ServiceView } from "../src/service_views.ts";

function service(labels: Record<string, string>, ports: ReplicaView["ports"] = []): ServiceView {
  const replica: ReplicaView = {
    slot: 1,
    allocation_id: "a",
    node_id: "n1",
    node_name: "host-1",
    node_host: "10.0.0.1",
    state: "running",
    health: null,
    ready: true,
    addresses: [{ network: "shop_default", address: "10.213.1.66" }],
    ports,
  };
  const about = { job_id: "shop", service_name: "web", names: [], aliases: [], entries: [] };
  return { ...about, ports: [{ container_port: 80, protocol: "tcp" }], labels, replicas: [replica] };
}

test("traefikConfiguration() survives labels that no field of Traefik's can have, and keeps the others", () => {
  const sound = { "traefik.http.routers.web.rule": "Host(`a`)" };
  const wanted = JSON.stringify(traefikConfiguration([service(sound)]));
  expect(wanted).toContain("http://10.213.1.66:80");
  for (const name of [
    "http",
    "http.routers",
    "http.services",
    "http.routers.web",
    "http.services.web",
    "http.services.web-shop.loadbalancer",
    "http.__proto__.polluted.deeply",
    "http.routers.__proto__.polluted",
    "http.routers.__proto__[0].polluted",
    "http.routers.web.x[999999999]",
  ])
    expect(JSON.stringify(traefikConfiguration([service({ ...sound, [`traefik.${name}`]: "x" })]))).toBe(wanted);
  expect(({} as { polluted?: string }).polluted).toBeUndefined();
  const twice = { "traefik.http.routers.web.x[0]": "v", "traefik.http.routers.web.x[0].y": "z" };
  expect(() => traefikConfiguration([service(twice)])).not.toThrow();
});

test("prometheusTargets() leads to a published port on the node, but not to one on the node's loopback", () => {
  const published = (host_ip: string) =>
    prometheusTargets([service({}, [{ container_port: 80, protocol: "tcp", host_ip, host_port: 8080 }])])[0]?.targets;
  expect(published("0.0.0.0")).toEqual(["10.0.0.1:8080"]);
  expect(published("10.9.9.9")).toEqual(["10.9.9.9:8080"]);
  for (const loopback of ["127.0.0.1", "::1"]) expect(published(loopback)).toEqual(["10.213.1.66:80"]);
});
