/** @module Blocks of addresses as nodes come, grow and go: the first free one is what a look at all of them finds (point 9). */
import { expect, test } from "bun:test";
import { BLOCK_BITS, Blocks } from "../src/cluster_state_blocks.ts";
import { freeSubnet } from "../src/subnet.ts";
import { seeded } from "./cluster_fixture.ts";

test.each([
  "10.213.0.0/16",
  "10.9.8.0/22",
  "10.0.0.0/24",
  "10.0.0.128/25",
  "0.0.0.0/8",
  "255.255.240.0/20",
  "nonsense",
])("Blocks finds the first free block of %s, and how many are left, after any changes", (range) => {
  const random = seeded(range.length);
  const blocks = new Blocks();
  const nodes = new Map<string, string[]>();
  const taken = () => [...nodes.values()].flat();
  const change = (id: string, now: string[]) => {
    blocks.change(nodes.get(id) ?? [], now);
    nodes.set(id, now);
  };
  // One that is in no block of the range, as a record of another range would be.
  change("elsewhere", ["192.168.7.0/24"]);
  for (let step = 0; step < 600; step++) {
    const id = `n${Math.floor(random() * 8)}`;
    const own = nodes.get(id) ?? [];
    const free = blocks.free(range);
    const expected = freeSubnet(range, { taken: taken(), bits: BLOCK_BITS });
    if (free !== expected) throw new Error(`step ${step}: ${free} is free, expected ${expected}`);
    if (random() < 0.7 && free !== undefined) change(id, [...own, free]);
    else if (random() < 0.3) change(id, []);
    else change(id, own.slice(1));
  }
  let left = 0;
  for (let free = blocks.free(range); free !== undefined && left < 300; free = blocks.free(range)) {
    if (left === 0) expect(blocks.left(range)).toBeGreaterThan(0);
    change(`more${left++}`, [free]);
  }
  if (left < 300) expect([blocks.left(range), blocks.free(range)]).toEqual([0, undefined]);
});

test("Blocks keeps what two records have until both are gone", () => {
  const blocks = new Blocks();
  blocks.change([], ["10.0.0.0/24"]);
  blocks.change([], ["10.0.0.0/24"]);
  expect(blocks.left("10.0.0.0/23")).toBe(1);
  blocks.change(["10.0.0.0/24"], []);
  expect(blocks.free("10.0.0.0/23")).toBe("10.0.1.0/24");
  blocks.change(["10.0.0.0/24"], []);
  expect([blocks.free("10.0.0.0/23"), blocks.left("10.0.0.0/23")]).toEqual(["10.0.0.0/24", 2]);
});
