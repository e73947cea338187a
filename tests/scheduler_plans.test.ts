/** @module What is written down of a plan. */
import { expect, test } from "bun:test";
import { ClusterState } from "../src/cluster_state.ts";
import type { AllocationRecord } from "../src/model.ts";
import { emptyPlan } from "../src/reconcile_goal.ts";
import { changesOfPlan } from "../src/scheduler_plans.ts";

const allocation = (allocation_id: string, slot: number): AllocationRecord => ({
  allocation_id,
  job_id: "shop",
  incarnation: "1",
  service_name: "web",
  slot,
  node_id: "n1",
  spec_hash: "a",
  job_version: 1,
  desired: "run",
  created_at: 1,
});

test("changesOfPlan() keeps every allocation of a slot that ends at once with another in the slot's history", () => {
  const state = new ClusterState();
  const stop = [allocation("a", 1), allocation("b", 1), allocation("c", 2), allocation("unexplained", 3)];
  const causes = new Map([
    ["a", "lost"],
    ["b", "unhealthy"],
    ["c", "lost"],
  ] as const);
  state.apply(changesOfPlan(state, { plan: { ...emptyPlan(), stop, causes }, now: 7 }));
  const told = state.histories("shop/web").map(({ slot, past }) => ({
    slot,
    past: past.map(({ allocation_id, cause, replaced_at }) => ({ allocation_id, cause, replaced_at })),
  }));
  expect(told).toEqual([
    {
      slot: 1,
      past: [
        { allocation_id: "a", cause: "lost", replaced_at: 7 },
        { allocation_id: "b", cause: "unhealthy", replaced_at: 7 },
      ],
    },
    { slot: 2, past: [{ allocation_id: "c", cause: "lost", replaced_at: 7 }] },
  ]);
});
