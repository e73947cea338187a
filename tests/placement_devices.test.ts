import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { engineDevices } from "../src/docker_devices.ts";
import { parseJob } from "../src/job_spec.ts";
import type { EngineStatus } from "../src/model.ts";
import type { ServiceSpec } from "../src/model_spec.ts";
import { type Candidate, place } from "../src/placement.ts";
import { type Devices, devicesOf } from "../src/placement_devices.ts";
import { candidate, idleMachine, rules, seeded, spec } from "./cluster_fixture.ts";

const ready: EngineStatus & { state: "ready" } = {
  state: "ready",
  engine_id: "e",
  docker_version: "20.10.24",
  api_version: "1.41",
  platform: { os: "linux", arch: "amd64" },
};

const UUIDS = ["GPU-aa", "GPU-bb"];

function node(name: string, devices: Devices): Candidate {
  return { ...candidate(name), devices };
}

function gpus(count: number, ids: readonly string[] = []): Devices {
  return new Map([["gpu", { count, ids }]]);
}

function asking(request: {
  count?: number;
  device_ids?: string[];
  driver?: string;
  capabilities?: string[];
}): ServiceSpec {
  return spec({ device_requests: [{ capabilities: ["gpu"], options: [], ...request }] });
}

function placed(service: ServiceSpec, nodes: readonly Candidate[], beside: readonly ServiceSpec[] = []): string {
  const companions = beside.map((one) => ({ service_name: "side", spec: one, rules: rules() }));
  const request = { job_id: "j", spec: service, rules: rules(), own: new Map<string, number>() };
  const placement = place(companions.length > 0 ? { ...request, beside: companions } : request, nodes, seeded(1));
  return "node_id" in placement ? placement.node_id : placement.reasons.join("; ");
}

describe("devicesOf()", () => {
  test("takes GPUs from the driver's list, else from the operator's count, else leaves counting to Docker", () => {
    const counted = { ...ready, generic_resources: [{ kind: "NVIDIA-GPU", count: 4 }], has_gpus: true };
    const listed = idleMachine({ gpus: UUIDS });
    expect(devicesOf(counted, listed)).toEqual(gpus(2, UUIDS));
    expect(devicesOf(counted, idleMachine())).toEqual(gpus(4));
    expect(devicesOf({ ...ready, has_gpus: true }, idleMachine())).toEqual(gpus(Number.POSITIVE_INFINITY));
    expect(devicesOf(ready, idleMachine())).toEqual(new Map());
    expect(devicesOf({ state: "unready", reason: "" }, undefined)).toEqual(new Map());
  });
});

describe("engineDevices()", () => {
  test("reads counts and names of generic resources, and whether Docker can hand out GPUs", () => {
    const info = {
      GenericResources: [
        { DiscreteResourceSpec: { Kind: "SSD", Value: 3 } },
        { NamedResourceSpec: { Kind: "gpu", Value: "GPU-aa" } },
        { NamedResourceSpec: { Kind: "gpu", Value: "GPU-bb" } },
      ],
      Runtimes: { runc: {}, nvidia: {} },
    };
    const seen = {
      genericResources: [
        { kind: "SSD", count: 3 },
        { kind: "gpu", count: 2, ids: UUIDS },
      ],
      hasGpus: true,
    };
    expect(engineDevices(info)).toEqual(seen);
    expect(engineDevices({ ...info, GenericResources: info.GenericResources.toReversed() })).toEqual(seen);
    expect(engineDevices({ GenericResources: null, Runtimes: { runc: {} } })).toEqual({
      genericResources: [],
      hasGpus: false,
    });
    expect(engineDevices({ DiscoveredDevices: [{ Source: "cdi", ID: "nvidia.com/gpu=all" }] }).hasGpus).toBe(true);
  });
});

describe("place() with devices", () => {
  test("counts what a service asks for on the node that has it, and says what is lacking", () => {
    const nodes = [node("a", new Map()), node("b", gpus(2))];
    expect(placed(asking({ count: 3 }), nodes)).toBe("1 node: has 2 of 3 gpu (of 2); 1 node: has no gpu");
    expect(placed(asking({ count: 1 }), nodes)).toBe("b");
    expect(placed(asking({ count: 2 }), nodes)).toBe("1 node: has 1 of 2 gpu (of 2); 1 node: has no gpu");
    expect(placed(asking({ count: 1 }), nodes)).toBe("b");
    expect(placed(asking({ count: 1 }), nodes)).toBe("1 node: has 0 of 1 gpu (of 2); 1 node: has no gpu");
    expect(placed(spec(), nodes)).not.toContain(":");
  });

  test("all is for any node with a GPU, shares them, and sets none aside", () => {
    const nodes = [node("a", new Map()), node("b", gpus(1))];
    for (let i = 0; i < 3; i++) expect(placed(asking({ count: -1 }), nodes)).toBe("b");
    expect(placed(asking({ count: 1 }), nodes)).toBe("b");
    expect(placed(asking({ count: -1 }), [node("a", new Map())])).toBe("1 node: has no gpu");
  });

  test("a GPU that is asked for by name is taken once, whichever name it goes by", () => {
    const nodes = [node("a", gpus(2, UUIDS))];
    expect(placed(asking({ device_ids: ["GPU-cc"] }), nodes)).toBe("1 node: has no gpu GPU-cc");
    expect(placed(asking({ device_ids: ["2"] }), nodes)).toBe("1 node: has no gpu 2");
    expect(placed(asking({ device_ids: ["GPU-bb"] }), nodes)).toBe("a");
    expect(placed(asking({ device_ids: ["1"] }), nodes)).toBe("1 node: gpu 1 is taken");
    expect(placed(asking({ device_ids: ["0", "1"] }), nodes)).toBe("1 node: gpu 1 is taken");
    expect(placed(asking({ count: 2 }), nodes)).toBe("1 node: has 1 of 2 gpu (of 2)");
    expect(placed(asking({ device_ids: ["0"] }), nodes)).toBe("a");
  });

  test("does not count where nobody knows how many there are, nor what other drivers hand out", () => {
    const unknown = [node("a", gpus(Number.POSITIVE_INFINITY))];
    for (let i = 0; i < 20; i++) expect(placed(asking({ count: 8, device_ids: [`GPU-${i}`] }), unknown)).toBe("a");
    expect(placed(asking({ driver: "cdi", device_ids: ["x"] }), [node("a", new Map())])).toBe("a");
    expect(placed(asking({ capabilities: ["tpu"] }), [node("a", new Map())])).toBe("a");
  });

  test("counts for all that run side by side", () => {
    expect(placed(asking({ count: 1 }), [node("a", gpus(2))], [asking({ count: 2 })])).toBe(
      "1 node: has 1 of 2 gpu (of 2) (together with side)",
    );
    expect(placed(asking({ count: 1 }), [node("a", gpus(2))], [asking({ count: 1 })])).toBe("a");
  });

  test("a generic resource of a document is what dockerd calls by that name", () => {
    const text = `services: {s: {image: busybox, deploy: {resources: {reservations: {generic_resources: [
      {discrete_resource_spec: {kind: dongle, value: "2"}}, {discrete_resource_spec: {kind: NVIDIA-GPU, value: 1}}]}}}}}`;
    const result = parseJob(text, { jobId: "j", env: new Map() });
    if (!result.ok) throw new Error(JSON.stringify(result.details));
    const service = result.job.services[0]?.spec ?? spec();
    const devices = new Map([...gpus(1), ["dongle", { count: 2, ids: [] }]]);
    expect(placed(service, [node("a", new Map([["dongle", { count: 1, ids: [] }]]))])).toBe(
      "1 node: has 1 of 2 dongle (of 1)",
    );
    const nodes = [node("a", devices)];
    expect(placed(service, nodes)).toBe("a");
    expect(placed(asking({ count: 1 }), nodes)).toBe("1 node: has 0 of 1 gpu (of 1)");
  });

  test("never promises more than a node has, nor one GPU twice", () => {
    const request = fc.oneof(
      fc.record({ count: fc.integer({ min: 1, max: 4 }) }),
      fc.record({
        device_ids: fc.uniqueArray(fc.constantFrom("0", "1", "2", "GPU-0", "GPU-1", "GPU-2"), {
          minLength: 1,
          maxLength: 3,
        }),
      }),
    );
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 3 }), fc.array(request), (sizes, requests) => {
        const nodes = sizes.map((size, i) =>
          node(
            `n${i}`,
            gpus(
              size,
              [0, 1, 2].slice(0, size).map((n) => `GPU-${n}`),
            ),
          ),
        );
        const sums = sizes.map(() => 0);
        const named = new Set<string>();
        for (const one of requests) {
          const at = nodes.findIndex(({ node_id }) => node_id === placed(asking(one), nodes));
          if (at < 0) continue;
          sums[at] = (sums[at] ?? 0) + ("count" in one ? one.count : one.device_ids.length);
          for (const id of "count" in one ? [] : one.device_ids) {
            const name = `${at} ${id.replace("GPU-", "")}`;
            expect(named.has(name)).toBe(false);
            named.add(name);
          }
        }
        for (const [i, sum] of sums.entries()) expect(sum).toBeLessThanOrEqual(sizes[i] ?? 0);
      }),
    );
  });
});
