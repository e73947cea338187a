/**
 * @module What of a node's blocks of addresses is left for further networks of jobs, as the node tells its master: that gives it
 * another block when it is full, and places nothing there that would find no subnet.
 */
import { type NodeNetwork, SUBNET_BITS } from "./model_network.ts";
import { parseRange, type Range, withoutFirst } from "./subnet.ts";

const SUBNET_SIZE = 2 ** (32 - SUBNET_BITS);

/** What job networks take their subnets from; the node's own address lies in the first subnet of its first block. */
export function poolsOf([first = "", ...others]: readonly string[]): string[] {
  return [...withoutFirst(first, SUBNET_BITS), ...others];
}

export class SubnetRoom {
  /** Subnets that cannot be used, as last heard; undefined: Docker was not looked at yet. */
  #taken: readonly string[] | undefined;
  /** With how many blocks a network found no subnet. */
  #fullAt = 0;
  /** What was counted last, and of what. */
  #counted: { taken: readonly string[]; subnets: readonly string[]; free: number } | undefined;

  /** Subnets of Docker's networks, and routes; returns whether they changed. */
  setTaken(taken: readonly string[]): boolean {
    const before = this.#taken;
    if (before && Bun.deepEquals(before, taken)) return false;
    // What was refused may be free now.
    if (before?.some((subnet) => !taken.includes(subnet))) this.#fullAt = 0;
    this.#taken = taken;
    return true;
  }

  /** A network found no subnet in so many blocks. */
  noticeFull(blocks: number): void {
    this.#fullAt = blocks;
  }

  report(subnets: readonly string[]): Pick<NodeNetwork, "blocks" | "full" | "free"> {
    const blocks = subnets.length;
    const full = blocks > 0 && this.#fullAt === blocks;
    const taken = this.#taken;
    if (!taken) return { blocks, full };
    if (this.#counted?.taken !== taken || this.#counted.subnets !== subnets)
      this.#counted = { taken, subnets, free: countFree(poolsOf(subnets), taken) };
    return { blocks, full, free: full ? 0 : this.#counted.free };
  }
}

/** How many subnets of the pools overlap none of `taken`. */
function countFree(pools: readonly string[], taken: readonly string[]): number {
  const ranges = taken.flatMap((text) => parseRange(text) ?? []);
  let free = 0;
  for (const pool of pools) {
    const { first, size } = parseRange(pool) ?? { first: 0, size: 0 };
    const near = ranges.filter((range) => overlaps(range, { first, size }));
    for (let at = first; at < first + size; at += SUBNET_SIZE)
      if (!near.some((range) => overlaps(range, { first: at, size: SUBNET_SIZE }))) free++;
  }
  return free;
}

function overlaps(a: Range, b: Range): boolean {
  return a.first < b.first + b.size && b.first < a.first + a.size;
}
