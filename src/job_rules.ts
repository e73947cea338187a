/**
 * @module What a service of a compose document says about how many of it run, where, and after what -> its rules. Owns how
 * `deploy.mode`, `deploy.placement`, `depends_on` and `links` fit each other and the rest of the service.
 */
import { entriesOf } from "./job_entries.ts";
import type { ServiceFields } from "./job_keys.ts";
import type { Report } from "./job_service_files.ts";
import { type Dependency, isGlobal, isRunToEnd, type ServiceRules } from "./model_spec.ts";

/** The rules of a service; `services` are the names that its dependencies may have. */
export function buildRules(
  service: ServiceFields,
  { services, report }: { services: ReadonlySet<string>; report: Report },
): ServiceRules {
  const { mode = "replicated", placement = {} } = service.deploy ?? {};
  const rules: ServiceRules = {
    mode,
    constraints: placement.constraints ?? [],
    spread: (placement.preferences ?? []).flatMap(({ spread }) => spread ?? []),
    depends_on: dependencies(service, report).filter(({ service_name }) => services.has(service_name)),
  };
  if (service["x-cacophony"]?.volumes === "recreate") rules.volumes = "recreate";
  const entries = entriesOf(service, report);
  if (entries.length > 0) rules.entries = entries;
  // Compose and Swarm: 0 is no limit.
  if (placement.max_replicas_per_node) rules.max_per_node = placement.max_replicas_per_node;
  const { strategy } = service["x-cacophony"] ?? {};
  if (strategy !== undefined) rules.strategy = strategy;
  const scaled = service.scale !== undefined ? ["scale"] : ["deploy", "replicas"];
  if (isGlobal(rules) && (service.scale ?? service.deploy?.replicas) !== undefined) {
    report.fault(scaled, `excludes deploy.mode: ${mode}, which runs one on each node; keep one of the two`);
  }
  const restart = service.deploy?.restart_policy?.condition ?? service.restart?.name;
  if (isRunToEnd(rules) && (restart === "any" || restart === "always" || restart === "unless-stopped")) {
    const path = service.deploy?.restart_policy ? ["deploy", "restart_policy", "condition"] : ["restart"];
    report.warn(path, `is ${restart}, and taken for on-failure: with deploy.mode: ${mode} the service runs to its end`);
  }
  return rules;
}

/** `depends_on`, and what `links` adds to it: a link starts after its target, as in compose. */
function dependencies({ depends_on = [], links = [] }: ServiceFields, report: Report): Dependency[] {
  const found = new Map<string, Dependency>();
  for (const { service: service_name, condition, required, restart } of depends_on) {
    found.set(service_name, { service_name, condition, required });
    if (restart) {
      const path = ["depends_on", service_name, "restart"];
      report.warn(path, "is left out: a service is not started again because another was");
    }
  }
  for (const link of links) {
    const service_name = link.split(":", 1)[0] ?? "";
    if (!found.has(service_name)) {
      found.set(service_name, { service_name, condition: "service_started", required: true });
    }
  }
  return [...found.values()].toSorted((a, b) => (a.service_name < b.service_name ? -1 : 1));
}
