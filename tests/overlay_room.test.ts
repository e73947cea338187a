/** @module What a node tells of the room that its blocks have left for networks (point 9). */
import { describe, expect, test } from "bun:test";
import { poolsOf, SubnetRoom } from "../src/overlay_room.ts";

const BLOCKS = ["10.213.1.0/24", "10.213.9.0/24"];

function roomWith(taken: readonly string[]): SubnetRoom {
  const room = new SubnetRoom();
  room.setTaken(taken);
  return room;
}

test("poolsOf() leaves out the subnet with the node's own address", () => {
  expect(poolsOf(BLOCKS)).toEqual(["10.213.1.64/26", "10.213.1.128/25", "10.213.9.0/24"]);
  expect(poolsOf([])).toEqual([]);
});

describe("SubnetRoom", () => {
  test.each<[string, string[], string[], number]>([
    ["three subnets of a first block", ["10.213.1.0/24"], [], 3],
    ["four more of a second one", BLOCKS, [], 7],
    [
      "what Docker's networks leave, also those of others",
      BLOCKS,
      ["10.213.1.64/26", "10.213.9.128/30", "172.17.0.0/16"],
      5,
    ],
    ["nothing under a route for all of it", BLOCKS, ["10.0.0.0/8"], 0],
    ["nothing without a block", [], [], 0],
    ["all that no IPv6 subnet takes", BLOCKS, ["fd00::/64"], 7],
  ])("counts %s", (_, blocks, taken, free) => {
    expect(roomWith(taken).report(blocks)).toEqual({ blocks: blocks.length, full: false, free });
  });

  test("says nothing before Docker was looked at", () => {
    expect(new SubnetRoom().report(BLOCKS)).toEqual({ blocks: 2, full: false });
  });

  test("is full after a network found no subnet, until there are more blocks or a network is gone", () => {
    const taken = ["10.213.1.64/26", "10.213.1.128/26"];
    const room = roomWith(taken);
    // Docker refuses what nobody sees to be taken.
    room.noticeFull(1);
    const one = BLOCKS.slice(0, 1);
    expect(room.report(one)).toEqual({ blocks: 1, full: true, free: 0 });
    expect(room.report(BLOCKS)).toEqual({ blocks: 2, full: false, free: 5 });
    room.setTaken([...taken, "172.17.0.0/16"]);
    expect(room.report(one)).toEqual({ blocks: 1, full: true, free: 0 });
    expect(room.setTaken(taken.slice(1))).toBe(true);
    expect(room.report(one)).toEqual({ blocks: 1, full: false, free: 2 });
  });

  test("tells whether anything changed", () => {
    const room = new SubnetRoom();
    expect([room.setTaken([]), room.setTaken([]), room.setTaken(["10.0.0.0/24"])]).toEqual([true, false, true]);
  });
});
