/** @module What a machine of the simulation is: its disk, its Docker Engine, and the process that comes and goes on it. */
import type { Executor } from "../src/executor.ts";
import type { Membership } from "../src/membership.ts";
import type { Peer } from "../src/model.ts";
import type { Scheduler } from "../src/scheduler.ts";
import type { Session } from "../src/session.ts";
import type { LastHeard } from "../src/session_heard.ts";
import type { Store } from "../src/store.ts";
import type { SimEngine } from "./simulation_engine.ts";
import type { SimLinks } from "./simulation_links.ts";
import type { SimOverlay } from "./simulation_overlay.ts";
import type { Host, Life } from "./simulation_process.ts";

/** A running `cacophony` with all that it has in memory. */
export type Process = {
  life: Life;
  /** How others reach it. */
  host: Host;
  executor: Executor;
  session: Session;
  heard: LastHeard;
  overlay: SimOverlay;
  /** When its last session began, by its own clock. */
  welcomedAt?: number;
  scheduler?: Scheduler;
  membership?: Membership;
  links?: SimLinks;
  store?: Store;
};

/** What a process keeps in its data directory. */
export type Identity = {
  cluster_id?: string;
  cluster_key?: string;
  node_id: string;
  seen_term: number;
  master?: Peer;
  peers: Peer[];
};

export type Machine = {
  name: string;
  address: string;
  isMaster: boolean;
  dataDir: string;
  engine: SimEngine;
  identity: Identity;
  /** All ids that it ever had as a member. */
  ids: Set<string>;
  process: Process | undefined;
  /** An earlier process of it that was never ended: it stands still, while another has taken over. */
  ghost: Process | undefined;
  /** Whether what its last process wrote on its disk is gone, so that counts begin anew. */
  hasLostData: boolean;
  /** How far its wall clock is ahead of the true time, in milliseconds: what starts now reads it, what runs goes on as it was. */
  aheadMs: number;
  /** How often it was started. */
  boot: number;
  /** When its process or its Engine last failed, or was repaired. */
  touchedAt: number;
};
