/** @module What a document says about how many of a service run, where and after what, as a table. */
import { describe, expect, test } from "bun:test";
import { parseJob } from "../src/job_spec.ts";
import type { ServiceRules } from "../src/model_spec.ts";
import { rules } from "./cluster_fixture.ts";

function app(yaml: string) {
  const lines = ["services:", "  app:", "    image: busybox", ...yaml.split("\n").map((line) => `    ${line}`)];
  const others = ["  db: {image: busybox}", "  cache: {image: busybox}", "  off: {image: busybox, profiles: [p]}"];
  const result = parseJob([...lines, ...others].join("\n"), { jobId: "j", env: new Map() });
  if (!result.ok) throw new Error(JSON.stringify(result.details));
  const service = result.job.services.find(({ service_name }) => service_name === "app");
  if (!service) throw new Error("no service app");
  return service;
}

const started = (service_name: string) =>
  ({
    service_name,
    condition: "service_started",
    required: true,
  }) as const satisfies ServiceRules["depends_on"][number];
const label = (operator: "==" | "!=", value: string) => ({ key: "node.labels.zone", operator, value });

describe("a service's rules", () => {
  const table: [yaml: string, expected: Partial<ServiceRules>][] = [
    ["tty: true", {}],
    ["deploy: {mode: global}", { mode: "global" }],
    ["deploy: {mode: replicated-job, replicas: 3}", { mode: "replicated-job" }],
    ["deploy: {placement: {constraints: [node.labels.zone==eu]}}", { constraints: [label("==", "eu")] }],
    ["deploy: {placement: {constraints: [' node.labels.zone  !=  e u ']}}", { constraints: [label("!=", "e u")] }],
    [
      "deploy: {placement: {constraints: [node.hostname == a, node.role!=manager]}}",
      {
        constraints: [
          { key: "node.name", operator: "==", value: "a" },
          { key: "node.role", operator: "!=", value: "manager" },
        ],
      },
    ],
    [
      "deploy: {placement: {preferences: [{spread: node.labels.zone}, {spread: node.labels.rack}]}}",
      { spread: ["zone", "rack"] },
    ],
    ["deploy: {placement: {max_replicas_per_node: 2}}", { max_per_node: 2 }],
    ["deploy: {placement: {max_replicas_per_node: 0}}", {}],
    ["x-cacophony: {strategy: binpack}", { strategy: "binpack" }],
    ["x-cacophony: {strategy: spread}", { strategy: "spread" }],
    ["depends_on: [db, cache]", { depends_on: [started("cache"), started("db")] }],
    [
      "depends_on: {db: {condition: service_healthy, required: false}}",
      { depends_on: [{ service_name: "db", condition: "service_healthy", required: false }] },
    ],
    ["depends_on: {nope: {condition: service_started, required: false}}", {}],
    ["depends_on: {off: {condition: service_started, required: false}}", {}],
    ["links: ['db:database', cache]", { depends_on: [started("cache"), started("db")] }],
    [
      "links: [db]\ndepends_on: {db: {condition: service_completed_successfully}}",
      { depends_on: [{ service_name: "db", condition: "service_completed_successfully", required: true }] },
    ],
  ];
  test.each(table)("%s", (yaml, expected) => {
    expect(app(yaml).rules).toEqual(rules(expected));
  });

  test.each([
    ["deploy: {mode: replicated-job}", "on-failure", 0],
    ["restart: always\ndeploy: {mode: global-job}", "on-failure", 0],
    ["restart: 'no'\ndeploy: {mode: replicated-job}", "no", 0],
    ["deploy: {mode: replicated-job, restart_policy: {condition: any, max_attempts: 4}}", "on-failure", 4],
    ["deploy: {mode: global}", "always", 0],
  ])("%s restarts %s, at most %d times", (yaml, condition, max_attempts) => {
    expect(app(yaml).spec.restart).toMatchObject({ condition, max_attempts });
  });

  test("change nothing of the container's definition", () => {
    const plain = app("tty: true").spec;
    expect(
      app("tty: true\ndepends_on: [db]\ndeploy: {mode: global, placement: {max_replicas_per_node: 1}}").spec,
    ).toEqual(plain);
  });
});
