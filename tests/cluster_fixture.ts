/** @module Small parts of clusters for tests of the pure floor: specs, nodes as placement sees them, a seeded random source. */
import { createPrivateKey } from "node:crypto";
import { type Signer, signerOf } from "../src/cluster_key.ts";
import type { ExecutorOverlay } from "../src/executor_networks.ts";
import type { Resources } from "../src/model_reports.ts";
import type { ServiceRules, ServiceSpec } from "../src/model_spec.ts";
import type { OverlayOptions } from "../src/overlay.ts";
import type { Candidate } from "../src/placement.ts";
import { Sealer } from "../src/seal.ts";

export const GIB = 2 ** 30;

/** For clusters without secrets: its key file is never made. */
export const unusedSealer = new Sealer("/nonexistent/secret.key");

/** The key of a cluster of tests: one for each number, the same in each run. */
export function signer(seed = 1): Signer {
  // An Ed25519 key as PKCS #8 (RFC 8410): this head, and 32 bytes of any value.
  const head = Buffer.from("302e020100300506032b657004220420", "hex");
  const der = Buffer.concat([head, Buffer.alloc(32, seed)]);
  return signerOf(createPrivateKey({ key: der, format: "der", type: "pkcs8" }));
}

/** What a master asks for when it welcomes nodes. */
export function welcoming(): { signer: Signer; newToken: () => string } {
  let tokens = 0;
  return { signer: signer(), newToken: () => `token-${++tokens}` };
}

/** A service that says nothing but its image. */
export function spec(more: Partial<ServiceSpec> = {}): ServiceSpec {
  return {
    image: "busybox",
    environment: [],
    labels: [],
    stop_grace_period_ms: 10_000,
    ports: [],
    mounts: [],
    restart: { condition: "always", max_attempts: 0, compose: "" },
    limits: {},
    reservations: {},
    ...more,
  };
}

/** Rules of a service that says nothing about them. */
export function rules(more: Partial<ServiceRules> = {}): ServiceRules {
  return { mode: "replicated", constraints: [], spread: [], depends_on: [], ...more };
}

/** Readings of an idle machine of 2 CPUs and 8 GiB. */
export function idleMachine(more: Partial<Resources> = {}): Resources {
  return {
    total_memory: 8 * GIB,
    used_memory: 0,
    available_memory: 8 * GIB,
    cpus: 2,
    used_cpus: 0,
    taken_ports: [],
    ...more,
  };
}

export function candidate(node_id: string, resources: Partial<Resources> = {}, refusal?: string): Candidate {
  const zero = () => ({ cpus: 0, memory: 0 });
  return {
    node_id,
    node_name: node_id,
    role: "worker",
    labels: new Map(),
    volumes: undefined,
    networks: undefined,
    apiVersion: undefined,
    refusal,
    resources: idleMachine(resources),
    reserved: zero(),
    reservedStarting: zero(),
    planned: zero(),
    plannedStarting: zero(),
    claims: [],
    devices: new Map(),
    reservedDevices: new Map(),
    allocations: 0,
    perJob: new Map(),
  };
}

/** Numbers in [0, 1) that depend on the seed alone (mulberry32, public domain). */
export function seeded(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** The entries of a node that has none. */
export const noEntries = (): ReturnType<OverlayOptions["newEntries"]> => ({
  update: () => {},
  exclude: () => {},
  status: () => [],
  draining: () => new Map(),
  stop: () => {},
});

/** A node without a network over nodes: its containers take their addresses from `pool`. */
export function noOverlay(pool: () => string = () => "10.210.0.0/16"): ExecutorOverlay {
  return {
    addresses: async () => ({ pools: [pool()] }),
    setBridges: () => {},
    setTaken: () => {},
    setGuard: () => {},
    guardFault: () => undefined,
    connected: async () => {},
    drain: async () => {},
    noticeFull: () => {},
  };
}
