/**
 * @module Which node a process is to be: what its data directory says, and what the command line asks for. Owns the refusals of
 * commands that do not fit; what comes of it is `node.ts`'s to save.
 */
import { formatAddress, parseAddress } from "./address.ts";
import type { DataDir, Identity, Settings } from "./data_dir.ts";
import { newIdentity } from "./data_dir.ts";
import { StartError } from "./model.ts";
import { Sealer, SealError } from "./seal.ts";
import { networkTransport } from "./transport.ts";

export type IdentityOptions = {
  /** `resume`: whatever the data directory says. */
  command: "bootstrap" | "join" | "resume";
  /** For `join`: the address of any node of the cluster. */
  peer?: string;
  /** What the command line said; what it left out stays as the node was last started. */
  settings: Settings;
  /** The master's state was restored, so that it is older than what nodes have seen. */
  restored?: boolean;
};

/** Reads what the data directory is and checks that the command fits; the result is not yet saved. */
export async function decideIdentity(data: DataDir, options: IdentityOptions): Promise<Identity> {
  const { command, peer, settings, restored } = options;
  const known = data.identity;
  const cluster = known?.cluster_id;
  if (command === "resume" && !known) {
    throw new StartError(
      `there is no node in ${data.path} yet: begin with 'cacophony bootstrap' or 'cacophony join ADDRESS' (see --help)`,
    );
  }
  if (command === "bootstrap" && known?.role === "worker" && cluster !== undefined) {
    throw new StartError(
      `${data.path} belongs to a node of cluster ${cluster}: resume it with 'cacophony', or choose another --data-dir`,
    );
  }
  if (command === "join" && known?.role === "master") {
    throw new StartError(
      `${data.path} belongs to the master of cluster ${cluster}, which cannot join another: choose another --data-dir`,
    );
  }
  if (command === "resume" && known && cluster === undefined && known.join_address === undefined) {
    throw new StartError(`the node in ${data.path} has left its cluster: add it to one with 'cacophony join ADDRESS'`);
  }
  const role = command === "join" ? "worker" : command === "bootstrap" ? "master" : (known?.role ?? "worker");
  if (role === "worker" && restored) {
    throw new StartError("--restored is for the master, which keeps the cluster's state: start that one with it");
  }
  if (restored && cluster === undefined) {
    throw new StartError(
      `--restored goes on from a restored state, and there is no master in ${data.path} yet: put node.json, cluster.db and cluster.key ` +
        "of one backup there, or choose another --data-dir",
    );
  }
  if (role === "worker" && settings.policy_file) {
    throw new StartError("--policy is for the master, which reads it for all nodes: start that one with it");
  }
  const identity: Identity = { ...(known ?? newIdentity({ role, node_id: newId() })), role };
  if (role === "worker" && settings.secret_key_file) {
    throw new StartError("--secret-key-file is for the master, which keeps all secrets: start that one with it");
  }
  identity.settings = { ...identity.settings, ...settings };
  if (role === "master") refuseBadKey(identity.settings, data);
  if (command === "bootstrap") identity.cluster_id ??= crypto.randomUUID();
  if (command === "join" && peer !== undefined) {
    identity.join_address = formatAddress(parseAddress(peer, "the address to join"));
    // Who answers where this node joined is not asked who it is: a member starts, whatever is there by now.
    const isNew = identity.join_address !== known?.join_address;
    if (cluster !== undefined && isNew) await refuseOtherCluster(identity.join_address, { cluster, path: data.path });
  }
  return identity;
}

/** A peer that does not answer proves nothing: the node resumes what it was. */
async function refuseOtherCluster(
  address: string,
  { cluster, path }: { cluster: string; path: string },
): Promise<void> {
  const info = await networkTransport.askPeer(address).catch(() => undefined);
  if (info?.cluster_id === undefined || info.cluster_id === cluster) return;
  throw new StartError(
    `${address} is of cluster ${info.cluster_id}, but ${path} belongs to cluster ${cluster}: choose another --data-dir`,
  );
}

export function sealerOf({ secret_key_file: path }: Settings, data: DataDir): Sealer {
  return path ? new Sealer(path, { isGiven: true }) : new Sealer(data.keyPath);
}

/** A key that the operator keeps must be there and in order; a missing one of our own stops only what needs it. */
function refuseBadKey(settings: Settings, data: DataDir): void {
  if (!settings.secret_key_file) return;
  try {
    sealerOf(settings, data).check({ isFirst: false });
  } catch (error) {
    if (!(error instanceof SealError)) throw error;
    throw new StartError(`${error.message}; --secret-key-file none goes back to the key in the data directory`, {
      cause: error,
    });
  }
}

/** 12 hex digits, as short ids of containers have them: readable, and unique enough for what one cluster ever holds. */
export function newId(): string {
  return crypto.randomUUID().replaceAll("-", "").slice(0, 12);
}
