/** @module Digests and restarts as changes of records: who settles what replicas run, and what makes them outdated. */
import { describe, expect, test } from "bun:test";
import { ClusterState } from "../src/cluster_state.ts";
import { changesForPut } from "../src/job_changes.ts";
import { assignedImageOf, changesForDigests, changesForRestart, imageWarnings } from "../src/job_images.ts";
import type { AllocationRecord, LiveJob } from "../src/model.ts";
import type { ServiceSpec } from "../src/model_spec.ts";
import { reconcileService } from "../src/reconcile.ts";
import { waitingFor } from "../src/reconcile_order.ts";
import { idleMachine, rules, seeded, spec } from "./cluster_fixture.ts";

class Bench {
  readonly state = new ClusterState();
  #ids = 0;

  constructor() {
    for (const node_id of ["a", "b"]) {
      const record = { node_id, node_name: node_id, address: "", labels: [], set_labels: [], joined_at: 0 };
      this.state.apply([{ op: "put", kind: "node", record: { ...record, role: "worker", availability: "active" } }]);
      this.state.views.set(node_id, {
        state: "ready",
        reason: "",
        lastSeen: 0,
        connected: true,
        version: "",
        engine: undefined,
        resources: idleMachine(),
        volumes: undefined,
        networks: undefined,
        foreign: [],
        applied: undefined,
        reported: true,
        statuses: new Map(),
      });
    }
  }

  put(service: Partial<ServiceSpec> & { scale?: number } = {}): LiveJob {
    const { scale = 2, ...more } = service;
    const wanted = { document: "{}", services: [{ service_name: "web", spec: spec(more), rules: rules(), scale }] };
    const { job, changes } = changesForPut(this.state, { jobId: "j", wanted, now: 1, newId: () => "incarnation" });
    this.state.apply(changes);
    return job;
  }

  /** One pass, whose outcome the nodes carry out at once; the number of replicas that it stopped. */
  pass(): number {
    const job = this.job;
    const service = job.services[0]!;
    const { job_id, incarnation, version: job_version } = job;
    const spec = this.state.specs.get(service.spec_hash)!;
    const goal = { job_id, incarnation, job_version, ...service, spec, needs: [] };
    const newId = () => `id${++this.#ids}`;
    const context = {
      state: this.state,
      candidates: this.state.candidates(),
      now: 0,
      random: seeded(1),
      newId,
      blockedOf: () => [],
    };
    const { place, stop } = reconcileService(goal, context);
    this.state.apply([
      ...place.map((record) => ({ op: "put", kind: "allocation", record }) as const),
      ...stop.map(({ allocation_id }) => ({ op: "delete", kind: "allocation", key: allocation_id }) as const),
    ]);
    for (const { node_id, allocation_id } of place) {
      const status = { allocation_id, state: "running", final: false, ports: [], restarts: 0 } as const;
      this.state.views.get(node_id)?.statuses.set(allocation_id, { ...status, ports: [] });
    }
    return stop.length;
  }

  get job(): LiveJob {
    return this.state.liveJob("j")!;
  }

  get allocations(): AllocationRecord[] {
    return [...this.state.allocations.values()];
  }

  settle(allocation: AllocationRecord, digest: string): Set<string> {
    const { changes, nodes } = changesForDigests(this.state, [{ allocation_id: allocation.allocation_id, digest }]);
    this.state.apply(changes);
    return nodes;
  }

  restart(pull: boolean): void {
    this.state.apply(changesForRestart(this.state, { jobId: "j", pull, now: 2 }).changes);
  }

  assigned() {
    return this.allocations.flatMap((one) => assignedImageOf(this.state, one));
  }
}

function placed(): Bench {
  const bench = new Bench();
  bench.put();
  bench.pass();
  return bench;
}

describe("a digest", () => {
  test("is settled by the first node that found one, for all replicas, and is no new version", () => {
    const bench = placed();
    const [first, second] = bench.allocations as [AllocationRecord, AllocationRecord];
    expect(bench.assigned()).toEqual([]);
    expect([...bench.settle(first, "sha256:1")].toSorted()).toEqual(["a", "b"]);
    expect([...bench.settle(second, "sha256:2")]).toEqual([]);
    expect(bench.assigned().map(({ digest, refresh }) => [digest, refresh])).toEqual([
      ["sha256:1", false],
      ["sha256:1", false],
    ]);
    expect(bench.job.version).toBe(1);
    expect(bench.pass()).toBe(0);
  });

  test("stays through another scale and ends with another definition", () => {
    const bench = placed();
    bench.settle(bench.allocations[0]!, "sha256:1");
    expect(bench.put({ scale: 3 }).services[0]?.digest).toBe("sha256:1");
    expect(bench.put({ scale: 3, user: "1" }).services[0]?.digest).toBeUndefined();
  });

  test("of an allocation that is outdated, unknown or of a former job settles nothing", () => {
    const bench = placed();
    const old = bench.allocations[0]!;
    bench.put({ user: "1" });
    expect([...bench.settle(old, "sha256:1")]).toEqual([]);
    expect([...bench.settle({ ...old, allocation_id: "none" }, "sha256:1")]).toEqual([]);
    expect(bench.job.services[0]?.digest).toBeUndefined();
  });
});

describe("a restart", () => {
  test.each([true, false])("replaces the replicas one by one and then rests (pull: %p)", (pull) => {
    const bench = placed();
    bench.settle(bench.allocations[0]!, "sha256:1");
    const before = new Set(bench.allocations.map(({ allocation_id }) => allocation_id));
    bench.restart(pull);
    expect(bench.job.version).toBe(2);
    const stops = Array.from({ length: 8 }, () => bench.pass());
    expect(Math.max(...stops)).toBe(1);
    expect(stops.reduce((sum, one) => sum + one, 0)).toBe(2);
    expect(bench.allocations.length).toBe(2);
    expect(bench.allocations.filter(({ allocation_id }) => before.has(allocation_id))).toEqual([]);
    const expected = pull ? { refresh: true } : { digest: "sha256:1", refresh: false };
    expect(bench.assigned().map(({ allocation_id: _id, ...rest }) => rest)).toEqual([expected, expected]);
  });

  test.each([
    ["always", true],
    ["refresh", true],
    ["every_12h", true],
    ["missing", false],
    ["never", false],
    [undefined, false],
  ])("without pull, of a service with the policy %p: the tag is asked for anew: %p", (pull_policy, asked) => {
    const bench = new Bench();
    bench.put(pull_policy === undefined ? {} : { pull_policy });
    bench.pass();
    bench.settle(bench.allocations[0]!, "sha256:1");
    bench.restart(false);
    expect(bench.job.services[0]?.digest).toBe(asked ? undefined : "sha256:1");
    expect(bench.job.services[0]?.refresh).toBeUndefined();
  });

  test("with pull takes the digest that a new replica finds, not what an old one says", () => {
    const bench = placed();
    const old = bench.allocations[0]!;
    bench.restart(true);
    bench.settle(old, "sha256:old");
    expect(bench.job.services[0]?.digest).toBeUndefined();
    for (let pass = 0; pass < 4; pass++) bench.pass();
    bench.settle(
      bench.allocations.find(({ generation }) => generation === 1)!,
      "sha256:new",
    );
    expect(bench.job.services[0]).toMatchObject({ digest: "sha256:new", refresh: true, generation: 1 });
  });
});

describe("a restart of services that depend on each other", () => {
  test("orders their starts anew, by the replicas that were made since", () => {
    const bench = placed();
    const before = bench.job.services[0]!;
    const depends_on = [{ service_name: "web", condition: "service_started" as const, required: true }];
    const worker = { ...before, service_name: "worker", rules: rules({ depends_on }), released: true };
    bench.state.apply([{ op: "put", kind: "job", record: { ...bench.job, services: [before, worker] } }]);
    bench.restart(false);
    expect(bench.job.services.map(({ released }) => released)).toEqual([true, false]);
    const waiting = () => {
      const { spec_hash, generation = 0 } = bench.job.services[0]!;
      const needs = [{ ...depends_on[0]!, spec_hash, generation, scale: 2, released: true }];
      return waitingFor({ ...bench.job, needs }, { state: bench.state, blockedOf: () => [] });
    };
    expect(waiting()).toEqual(["waiting for service web to start (it has no replica yet)"]);
    while (bench.pass() > 0 || bench.allocations.some(({ generation }) => generation !== 1));
    for (const { statuses } of bench.state.views.values())
      for (const [id, status] of statuses) statuses.set(id, { ...status, started_at: 1 });
    expect(waiting()).toEqual([]);
  });

  test("runs again what had ended", () => {
    const bench = placed();
    const ended = bench.allocations.map((one) => ({ ...one, ended: { exit_code: 0 } }));
    bench.state.apply(ended.map((record) => ({ op: "put", kind: "allocation", record }) as const));
    expect([bench.pass(), bench.pass()]).toEqual([0, 0]);
    bench.restart(false);
    for (let pass = 0; pass < 3; pass++) bench.pass();
    expect(bench.allocations.map(({ generation, ended: end }) => [generation, end])).toEqual([
      [1, undefined],
      [1, undefined],
    ]);
  });
});

describe("imageWarnings()", () => {
  const replica = (node_name: string, image_id: string | null, image_digest: string | null = null) => ({
    node_name,
    image_id,
    image_digest,
  });
  test("names the nodes by image where they differ", () => {
    const [warning] = imageWarnings([
      replica("n2", "sha256:aaaa"),
      replica("n1", "sha256:bbbb"),
      replica("n3", "sha256:aaaa"),
    ]);
    expect(warning).toContain("aaaa on n2, n3; bbbb on n1");
  });
  test("says nothing of equal images, of one digest for two architectures, and of what has not run yet", () => {
    expect(imageWarnings([replica("a", "sha256:a"), replica("b", "sha256:a"), replica("c", null)])).toEqual([]);
    expect(imageWarnings([replica("a", "sha256:a", "sha256:d"), replica("b", "sha256:b", "sha256:d")])).toEqual([]);
    expect(imageWarnings([replica("a", "sha256:a", "sha256:d"), replica("b", "sha256:b")]).length).toBe(1);
  });
});
