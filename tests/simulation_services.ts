/**
 * @module The services of the simulation's documents: what each kind is like, what its containers do, and how many of it must run in
 * the end. Decides nothing about when they are sent.
 */
import type { NodeRecord } from "../src/model.ts";
import { isGlobal, type ServiceRules, type ServiceSpec } from "../src/model_spec.ts";
import type { FakeEngine } from "./fake_engine.ts";
import { GIB, rules } from "./cluster_fixture.ts";
import { DEVICES } from "./simulation_engine.ts";
import { fileOf } from "./simulation_files.ts";

/** Each is of another kind; what another one depends on, or shares something with, comes before it. */
export const SERVICES = [
  ...(["app", "checked", "db", "side", "single", "task", "web"] as const),
  ...(["agent", "batch", "doomed", "failing", "filed", "late", "heavy", "looping", "once", "then", "zoned"] as const),
] as const;
export type ServiceName = (typeof SERVICES)[number];

/** Services that are nothing without another one. */
const NEEDS: Partial<Record<ServiceName, ServiceName>> = {
  side: "db",
  late: "checked",
  // oxlint-disable-next-line unicorn/no-thenable -- it is a service's name
  then: "batch",
  doomed: "failing",
};
/** Services whose containers are to end, each with the exit code of its image. */
const ENDING: readonly string[] = ["task", "batch", "once", "failing"];
/** Kinds of services in one run, so that each of them has something to do with what happens. */
const KINDS = 7;
export const ZONES = ["a", "b"] as const;

/** Label by which a test sees in the Engine which definition a container was made from. */
export const VARIANT = "variant";

export type Chance = { random: () => number; pick: <T>(list: readonly T[]) => T };

/** The kinds of services that a run has, with those that they need. */
export function chooseKinds({ random }: Chance): ServiceName[] {
  const dice = new Map(SERVICES.map((name) => [name, random()]));
  const chosen = new Set(SERVICES.toSorted((a, b) => (dice.get(a) ?? 0) - (dice.get(b) ?? 0)).slice(0, KINDS));
  for (const name of chosen) {
    const needed = NEEDS[name];
    if (needed) chosen.add(needed);
  }
  return SERVICES.filter((name) => chosen.has(name));
}

/** Some of the kinds, and none without what it needs. */
export function chooseServices(kinds: readonly ServiceName[], { random, pick }: Chance): ServiceName[] {
  const chosen = kinds.filter(() => random() < 0.6);
  const names = chosen.filter((name) => {
    const needed = NEEDS[name];
    return needed === undefined || chosen.includes(needed);
  });
  return names.length > 0 ? names : [pick(kinds.filter((name) => NEEDS[name] === undefined))];
}

/** Images that all machines can have, and how their containers behave. */
export function prepare(engine: FakeEngine): void {
  for (const image of [
    "pulled:1",
    "pulled:2",
    "crashing:1",
    "slow:1",
    "ending:1",
    "checked:1",
    "failing:1",
    "looping:1",
    "lasting:1",
  ])
    engine.registry.set(image, "found");
  engine.behaviours.set("crashing:1", { exitAfterMs: 20_000, exitCode: 1 });
  engine.behaviours.set("looping:1", { exitAfterMs: 150, exitCode: 1 });
  engine.behaviours.set("slow:1", { stopMs: 4_000 });
  engine.behaviours.set("ending:1", { exitAfterMs: 5_000 });
  engine.behaviours.set("lasting:1", { exitAfterMs: 18_000 });
  engine.behaviours.set("failing:1", { exitAfterMs: 4_000, exitCode: 3 });
  engine.behaviours.set("checked:1", { healthyAfterMs: 3_000 });
}

/** From now on what is to run goes on running. */
export function calm(engine: FakeEngine): void {
  for (const image of ["crashing:1", "looping:1", "slow:1"]) engine.behaviours.delete(image);
  for (const { id, health } of engine.containers) if (health === "unhealthy") engine.setHealth(id, "healthy");
}

/** What a service's containers are like; `port`: one that each job has for itself; `variant` tells definitions apart. */
export function specOf(
  service: ServiceName,
  { variant, port, pick, random }: Chance & { variant: string; port: number },
): Partial<ServiceSpec> {
  const tcp = { protocol: "tcp", host_ip: "", container_port: 80 } as const;
  switch (service) {
    case "app": {
      const image = pick(["busybox:latest", "pulled:1", "pulled:2", "crashing:1", "slow:1", "checked:1"]);
      return { image, ports: random() < 0.3 ? [tcp] : [] };
    }
    case "db": {
      const volume = { key: "data", external: false, driver_opts: [], labels: [] };
      const mount = { type: "volume", volume, target: "/data", read_only: false, nocopy: false, long: false } as const;
      return { image: "busybox:latest", mounts: [mount], reservations: { cpus: 0.05 } };
    }
    case "side":
      return { image: pick(["busybox:latest", "crashing:1"]), network_mode: "service:db" };
    case "checked":
      return { image: "checked:1" };
    case "single":
      return { image: pick(["busybox:latest", "slow:1"]), stop_when_isolated_ms: 5_000 };
    case "task":
    case "batch":
    case "once":
      return {
        image: service === "batch" ? pick(["ending:1", "lasting:1"]) : "ending:1",
        restart: { condition: "no", max_attempts: 0, compose: "no" },
      };
    case "failing":
      return { image: "failing:1", restart: { condition: "no", max_attempts: 0, compose: "no" } };
    case "web": {
      const ports = random() < 0.7 ? [{ ...tcp, host_port: { first: port, last: port } }] : [tcp];
      return { image: pick(["busybox:latest", "slow:1"]), ports };
    }
    case "looping":
      return { image: "looping:1" };
    case "heavy": {
      const memory = { memory_bytes: 5 * GIB };
      const device = { generic: [{ kind: DEVICES.kind, count: 1 }] };
      return { image: "busybox:latest", reservations: pick([memory, device, { ...memory, ...device }]) };
    }
    case "filed": {
      const { file } = fileOf(variant);
      const mount = { type: "bind", source: file.path, target: "/etc/settings", read_only: true } as const;
      return { image: "busybox:latest", files: [file], mounts: [{ ...mount, create_host_path: true }] };
    }
    case "agent":
    case "zoned":
    case "late":
    case "then":
    case "doomed":
      return { image: pick(["busybox:latest", "pulled:1"]) };
  }
}

/** How many of a service run, where, and after what. */
export function rulesOf(service: ServiceName, { pick }: Pick<Chance, "pick">): ServiceRules {
  const zone = (operator: "==" | "!=") => [{ key: "node.labels.zone", operator, value: pick(ZONES) }];
  switch (service) {
    case "agent":
      return rules({ mode: "global", constraints: pick([[], [], zone("=="), zone("!=")]) });
    case "once":
      return rules({ mode: "global-job" });
    case "batch":
    case "failing":
      return rules({ mode: "replicated-job" });
    case "zoned":
      return rules({ constraints: pick([zone("=="), zone("!=")]) });
    case "late":
      return rules({ depends_on: [{ service_name: "checked", condition: "service_healthy", required: true }] });
    case "then":
      return rules({
        depends_on: [{ service_name: "batch", condition: "service_completed_successfully", required: true }],
      });
    case "doomed":
      return rules({
        depends_on: [{ service_name: "failing", condition: "service_completed_successfully", required: true }],
      });
    default:
      return rules();
  }
}

/** Whether a service's containers are to end. */
export function isEnding(service: string): boolean {
  return ENDING.includes(service);
}

/** Whether a service's constraints let it run on a node. */
export function isAllowed({ constraints }: ServiceRules, node: NodeRecord | undefined): boolean {
  const zone = new Map([...(node?.labels ?? []), ...(node?.set_labels ?? [])]).get("zone");
  return constraints.every(({ operator, value }) => (zone === value) === (operator === "=="));
}

/** How many replicas are wanted of one with these rules: its scale, or as many as there are nodes for it. */
export function countOf(
  { scale, rules: of }: { scale: number; rules: ServiceRules },
  zones: readonly (string | undefined)[],
): number {
  const fits = zones.filter((zone) =>
    of.constraints.every(({ operator, value }) => (zone === value) === (operator === "==")),
  ).length;
  if (isGlobal(of)) return fits;
  return fits > 0 ? scale : 0;
}
