/** @module What a node is told that has the Engine's id of another: whether they share it, or their machines are clones (point 5). */
import { expect, test } from "bun:test";
import { engineInUse, type EngineUser } from "../src/membership_engines.ts";
import type { EngineStatus } from "../src/model.ts";

const READY: EngineStatus = {
  state: "ready",
  engine_id: "e",
  docker_version: "28.0.0",
  api_version: "1.48",
  platform: { os: "linux", arch: "amd64" },
  remote: false,
};
const HOLDER: EngineUser = { node_id: "n1", node_name: "one", address: "10.0.0.2:9000", boot_id: "a", engine: READY };
const SECOND = "this Docker Engine is in use by node one (n1) at 10.0.0.2:9000: one node per engine";
const CLONE =
  "the Docker Engine of this machine has the id of the one of node one (n1) at 10.0.0.2:9000, which is another machine: " +
  "one is a clone of the other, or both are of one template. On this machine, remove ";
const EITHER =
  `${SECOND}. If this machine is a clone of that one, or both are of one template, their Engines share an id: ` +
  "on this machine, remove ";
const { remote: _, ...OLDER } = READY;

test.each<[string, Partial<EngineUser>, Partial<EngineUser>, string]>([
  ["on the same kernel at the same host", { boot_id: "a", address: "10.0.0.2:9100" }, {}, SECOND],
  ["on the same kernel at another host", { boot_id: "a", address: "10.0.0.3:9000" }, {}, EITHER],
  ["on another kernel", { boot_id: "b", address: "10.0.0.3:9000" }, {}, CLONE],
  ["on another kernel with the same address", { boot_id: "b", address: "10.0.0.2:9000" }, {}, CLONE],
  ["with an Engine elsewhere", { boot_id: "b", engine: { ...READY, remote: true } }, {}, EITHER],
  ["where the other's Engine is elsewhere", { boot_id: "b" }, { engine: { ...READY, remote: true } }, EITHER],
  ["whose Engine does not tell", { boot_id: "b", engine: OLDER as EngineStatus }, {}, EITHER],
  ["of an earlier version at the same host", { boot_id: undefined, address: "10.0.0.2:9100" }, {}, SECOND],
  ["of an earlier version at another host", { boot_id: undefined, address: "10.0.0.3:9000" }, {}, EITHER],
  ["where the other is of an earlier version", { address: "10.0.0.3:9000" }, { boot_id: undefined }, EITHER],
])("engineInUse() of a node %s", (_, node, holder, message) => {
  const found = engineInUse({ ...HOLDER, address: "10.0.0.3:9000", ...node }, { ...HOLDER, ...holder });
  expect(found.code).toBe("engine_in_use");
  if (message === SECOND) expect(found.message).toBe(SECOND);
  else expect(found.message.slice(0, message.length)).toBe(message);
});

test.each<[EngineStatus, string]>([
  [{ ...READY, docker_version: "20.10.24+dfsg1" }, "remove /etc/docker/key.json, restart dockerd there"],
  [{ ...READY, docker_version: "22.06.0-beta.0" }, "remove /etc/docker/key.json, restart dockerd there"],
  [
    { ...READY, docker_version: "23.0.1" },
    "remove /var/lib/docker/engine-id (engine-id in its data-root), and /etc/docker/key.json if it is there,",
  ],
  [{ ...READY, docker_version: "podman" }, "and /etc/docker/key.json if it is there,"],
  [
    { state: "unready", reason: "", engine_id: "e", remote: false },
    "remove /var/lib/docker/engine-id (engine-id in its data-root)",
  ],
])("engineInUse() names the file for the Engine's version %#", (engine, words) => {
  expect(engineInUse({ ...HOLDER, boot_id: "b", engine }, HOLDER).message).toContain(words);
});
