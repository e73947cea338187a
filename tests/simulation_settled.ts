/** @module How a cluster of the simulation must be in the end, service by service: what runs, how many, and where names lead. */
import { type ClusterState, labelsOf } from "../src/cluster_state.ts";
import type { Container } from "../src/converge.ts";
import { LABELS } from "../src/model.ts";
import { isGlobal } from "../src/model_spec.ts";
import { idleMachine } from "./cluster_fixture.ts";
import type { WantedService } from "./simulation_client.ts";
import type { SimCluster } from "./simulation_cluster.ts";
import { DEVICES } from "./simulation_engine.ts";
import { VARIANT } from "./simulation_services.ts";

/** The zone of each node, as its labels tell. */
export function zonesOf(state: ClusterState): (string | undefined)[] {
  return [...state.nodes.values()].map((node) => labelsOf(node).get("zone"));
}

/** Whether a service waits for ever, since what it depends on has failed. */
export function isHeld(state: ClusterState, { job, service }: { job: string; service: string }): boolean {
  const services = state.liveJob(job)?.services ?? [];
  const own = services.find(({ service_name }) => service_name === service);
  if (!own || own.released) return false;
  return own.rules.depends_on.some(({ service_name }) =>
    state.allocationsOf(`${job}/${service_name}`).some(({ ended }) => ended !== undefined && ended.exit_code !== 0),
  );
}

/** What of a service's containers is not as it should be. */
export function serviceFaults(
  wanted: WantedService,
  { containers, cluster }: { containers: readonly Container[]; cluster: SimCluster },
): string[] {
  const { job, service, variant, count, isEnding } = wanted;
  const key = `${job}/${service}` as const;
  const { scheduler } = cluster;
  const state = scheduler?.state;
  const record = state?.liveJob(job)?.services.find(({ service_name }) => service_name === service);
  if (!scheduler || !state || !record) return [`${key}: there is no such service`];
  const slots = new Set(containers.map(({ labels }) => labels.get(LABELS.slot) ?? ""));
  // What ended for good needs no container any more: someone may have removed it.
  const over = state.allocationsOf(key).filter((one) => one.ended && !slots.has(String(one.slot)));
  const has = containers.length + over.length;
  // What can't be placed leaves what ran before as it was.
  const isStuck =
    isHeld(state, wanted) || (count === 0 && !isGlobal(record.rules) && record.scale > 0 && service !== "side");
  if (isStuck) return has > record.scale ? [`${key}: ${has} containers, wanted are ${record.scale} at most`] : [];
  const expected = wanted.fixedPort ? Math.min(count, cluster.machines.length) : count;
  const faults: string[] = [];
  const isFull = service === "heavy" && has < expected && !hasRoom(wanted, state);
  if ((has !== expected && !isFull) || slots.size + over.length !== has) {
    const blocked = scheduler.blockedOf(key).map(({ slot, reasons }) => `; slot ${slot}: ${reasons.join(", ")}`);
    faults.push(
      `${key}: ${expected} containers expected, there are slots ${[...slots].join()} in ${containers.length}${blocked.join("")}`,
    );
  }
  for (const { state: is, labels, name, id, health } of containers) {
    const stale = is === "running" && cluster.machines.some(({ engine }) => engine.isStranded(id));
    if (stale) faults.push(`${key}: container ${name} is in the network of a container, or a run of it, that is over`);
    if (is !== "running" && !isEnding) faults.push(`${key}: container ${name} is ${is}`);
    if ((health ?? "healthy") !== "healthy") faults.push(`${key}: container ${name} is ${health}`);
    if (labels.get(VARIANT) !== variant)
      faults.push(`${key}: container ${name} is of ${labels.get(VARIANT)}, wanted is ${variant}`);
  }
  return faults;
}

/** Whether some node could take one more. */
function hasRoom({ spec }: WantedService, state: ClusterState): boolean {
  const { memory_bytes: asked = 0, generic = [] } = spec?.reservations ?? {};
  const device = generic.length > 0 ? 1 : 0;
  return [...state.nodes.keys()].some((nodeId) => {
    let [memory, devices] = [idleMachine().total_memory, DEVICES.count];
    for (const { spec_hash, ended } of state.allocationsOn(nodeId)) {
      const { memory_bytes = 0, generic: own = [] } = (!ended && state.specs.get(spec_hash)?.reservations) || {};
      memory -= memory_bytes;
      for (const one of own) devices -= one.count;
    }
    return memory >= asked && devices >= device;
  });
}

/** Nodes on which a name does not lead to the replicas that are up, and to nothing else. */
export function nameFaults(
  services: readonly Pick<WantedService, "job" | "service">[],
  { machines }: SimCluster,
): string[] {
  return services.flatMap(({ job, service }) => {
    // What is in another's network has no address of its own.
    if (service === "side") return [];
    const up = machines.flatMap(({ engine }) =>
      engine.containers.filter(
        ({ labels, state, health = "healthy" }) =>
          state === "running" &&
          health === "healthy" &&
          labels.get(LABELS.job) === job &&
          labels.get(LABELS.service) === service,
      ),
    );
    const expected = up.flatMap(({ addresses = [] }) => addresses.map(({ address }) => address)).toSorted();
    return machines.flatMap(({ name, process }) => {
      const found = process?.overlay.namesOf(job, service).toSorted();
      if (!found || Bun.deepEquals(found, expected)) return [];
      return [
        `on ${name} the name of ${job}/${service} leads to ${found.join() || "nothing"}, not to ${expected.join() || "nothing"}`,
      ];
    });
  });
}
