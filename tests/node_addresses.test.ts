/** @module Which addresses of its machine a node tells others, so that they keep their containers from its API there. */
import { expect, test } from "bun:test";
import { isLocalDevice } from "../src/node_addresses.ts";

test.each(["docker0", "docker_gwbridge", "br-0123456789ab", "veth12ab", "cvx", "cwg"])(
  "addresses of %s are of this machine alone",
  (device) => expect(isLocalDevice(device)).toBe(true),
);

test.each(["eth0", "br0", "br-lan", "br-ex", "bridge0", "bond0", "wlan0"])(
  "addresses of %s are told to others (point 1)",
  (device) => expect(isLocalDevice(device)).toBe(false),
);
