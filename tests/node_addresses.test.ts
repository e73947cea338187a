/** @module Which addresses of its machine a node tells others, so that they keep their containers from its API there. */
import { expect, test } from "bun:test";
import { apisOf, isLocalDevice, mappedPort } from "../src/node_addresses.ts";

test.each(["docker0", "docker_gwbridge", "br-0123456789ab", "veth12ab", "cvx", "cwg"])(
  "addresses of %s are of this machine alone",
  (device) => expect(isLocalDevice(device)).toBe(true),
);

test.each(["eth0", "br0", "br-lan", "br-ex", "bridge0", "bond0", "wlan0"])(
  "addresses of %s are told to others (point 1)",
  (device) => expect(isLocalDevice(device)).toBe(false),
);

test("containers are kept from every node's API at each of its addresses, and at both ports where one is mapped to the other (point 1)", async () => {
  const peers = [
    { node_id: "self", address: "203.0.113.1:9000", api_addresses: ["10.0.0.1", "203.0.113.1"] },
    { node_id: "other", address: "203.0.113.2:19000", api_addresses: ["10.0.0.2"], api_port: 9000 },
    { node_id: "older", address: "10.0.0.3:9000" },
    { node_id: "wrong", address: "10.0.0.4:0" },
  ];
  expect(await apisOf(peers)).toEqual([
    { address: "10.0.0.1", port: 9000 },
    { address: "203.0.113.1", port: 9000 },
    { address: "10.0.0.2", port: 19000 },
    { address: "10.0.0.2", port: 9000 },
    { address: "10.0.0.3", port: 9000 },
  ]);
});

test("a node tells the port that it listens on where it is advertised with another one", () => {
  const bind = { host: "10.0.0.2", port: 9000 };
  expect(mappedPort(bind, "203.0.113.2:19000")).toEqual({ api_port: 9000 });
  expect(mappedPort(bind, "203.0.113.2:9000")).toEqual({});
  expect(mappedPort(undefined, "")).toEqual({});
});
