/**
 * @module Two nodes that say they have one Docker Engine: whether both use that Engine, or whether their machines are clones, whose
 * Engines go by one id. Pure.
 *
 * The machine's boot id tells it: each start of a kernel makes a new one, also where the machine is a copy, and containers on one
 * kernel share it. Where the boot ids differ and both Engines are on their node's own machine, there are two Engines. Where a node
 * is older and does not tell, or reaches an Engine on another machine, the addresses tell nothing more than that two nodes at one
 * host are on one machine; else both causes are named.
 */
import { parseAddress } from "./address.ts";
import type { EngineStatus } from "./model.ts";

/** A node with what it tells of its machine and its Engine. */
export type EngineUser = {
  node_id: string;
  node_name: string;
  address: string;
  boot_id: string | undefined;
  engine: EngineStatus | undefined;
};

/** Before this version the Engine's id is that of a key; since then it is in a file of its own (moby#43555). */
const ID_FILE_SINCE = 23;

/** Why a node may not use its Docker Engine, by whose id the master knows the `holder`. */
export function engineInUse(
  node: Pick<EngineUser, "address" | "boot_id" | "engine">,
  holder: EngineUser,
): { code: string; message: string } {
  const { node_name, node_id, address } = holder;
  const who = `node ${node_name} (${node_id}) at ${address}`;
  const second = `this Docker Engine is in use by ${who}: one node per engine`;
  const mend = `${newIdOf(node.engine)}, restart dockerd there, and start this node again`;
  const kinds = {
    second,
    clone: `the Docker Engine of this machine has the id of the one of ${who}, which is another machine: one is a clone of the other, or both are of one template. On this machine, remove ${mend}`,
    either: `${second}. If this machine is a clone of that one, or both are of one template, their Engines share an id: on this machine, remove ${mend}`,
  };
  return { code: "engine_in_use", message: kinds[relationOf(node, holder)] };
}

function relationOf(
  node: Pick<EngineUser, "address" | "boot_id" | "engine">,
  holder: EngineUser,
): "second" | "clone" | "either" {
  const areKnown = node.boot_id !== undefined && holder.boot_id !== undefined;
  const isOneMachine = node.boot_id === holder.boot_id;
  if (areKnown && !isOneMachine) return isLocal(node.engine) && isLocal(holder.engine) ? "clone" : "either";
  return hostOf(node.address) === hostOf(holder.address) ? "second" : "either";
}

/** Whether the Engine is known to be on its node's own machine. */
function isLocal(engine: EngineStatus | undefined): boolean {
  return engine?.remote === false;
}

function hostOf(address: string): string {
  return parseAddress(address, "the address of a node").host;
}

/** The files that the Engine has its id of. Versions 23 and 24 make the new one out of the old one where that is still there. */
function newIdOf(engine: EngineStatus | undefined): string {
  const version = engine?.state === "ready" ? Number.parseInt(engine.docker_version, 10) : Number.NaN;
  if (version < ID_FILE_SINCE) return "/etc/docker/key.json";
  return "/var/lib/docker/engine-id (engine-id in its data-root), and /etc/docker/key.json if it is there";
}
