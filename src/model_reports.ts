/**
 * @module The words of Cacophony for what a node reports of its machine and its Engine. The rules of `model.ts` hold here, too.
 */
import * as v from "valibot";
import * as b from "./model_bounds.ts";
import { port } from "./model_spec.ts";

/** What a machine has, as the cluster may use it. Bytes and CPUs. */
export const resources = v.object({
  total_memory: b.safeCount,
  used_memory: b.safeCount,
  available_memory: b.safeCount,
  /** Above 0: shares are told by it. */
  cpus: v.pipe(b.cpus, v.gtValue(0)),
  used_cpus: b.cpus,
  /** Host ports that something other than this cluster holds: `tcp/80`. */
  taken_ports: b.list(b.takenPort, { max: b.MAX_TAKEN_PORTS, what: "taken_ports" }),
  /** Those of them that the Engine holds for a container that is gone, until it is started anew. */
  lost_ports: v.exactOptional(b.list(b.takenPort, { max: b.MAX_TAKEN_PORTS, what: "lost_ports" })),
  /** UUIDs of the GPUs that the NVIDIA driver lists, in its order. */
  gpus: v.exactOptional(b.list(b.name, { max: b.MAX_SEVERAL, what: "gpus" })),
  /** Of the file system that Docker keeps its data on; absent: it is not of this machine. Bytes. */
  disk: v.exactOptional(v.object({ total: b.safeCount, available: b.safeCount })),
});
export type Resources = v.InferOutput<typeof resources>;

export const publishedPort = v.object({
  container_port: port,
  protocol: v.picklist(["tcp", "udp", "sctp"]),
  host_ip: b.hostIp,
  host_port: port,
});
export type PublishedPort = v.InferOutput<typeof publishedPort>;

/** How far a pull is, as far as Docker tells: the sizes of layers become known one after the other. */
export const pullProgress = v.object({
  layers_done: b.safeCount,
  layers_total: b.safeCount,
  bytes_done: b.safeCount,
  bytes_total: b.safeCount,
});
export type PullProgress = v.InferOutput<typeof pullProgress>;

/** A container that carries the label of a cluster which this node does not belong to. Listed, never touched. */
export const foreignContainer = v.object({
  container_id: b.line(b.MAX_WORD),
  name: b.line(b.MAX_NAME),
  cluster_id: b.line(b.MAX_WORD),
});
export type ForeignContainer = v.InferOutput<typeof foreignContainer>;
