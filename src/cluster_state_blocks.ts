/**
 * @module Which blocks of the cluster's range nodes have, counted as nodes come, grow and go, so that the next free one is found
 * without a look at all of them, and that there is none at once. Pure.
 */
import { formatAddress, parseRange } from "./subnet.ts";

/** A node's block of the cluster's range: 256 addresses. */
export const BLOCK_BITS = 24;
const BLOCK_SIZE = 2 ** (32 - BLOCK_BITS);

export class Blocks {
  /** How many nodes have the block that begins at this address: never more than one, unless the records are wrong. */
  readonly #holders = new Map<number, number>();
  /** The range that was asked for last, where a search in it begins, for all before is taken, and how many of its blocks are taken. */
  #range = "";
  #first = 0;
  #end = 0;
  #from = 0;
  #taken = 0;

  /** A node has `now` where it had `before`. */
  change(before: readonly string[], now: readonly string[]): void {
    if (before === now) return;
    for (const subnet of before) for (const block of blocksOf(subnet)) this.#release(block);
    for (const subnet of now) for (const block of blocksOf(subnet)) this.#take(block);
  }

  /** The first block of `range` that no node has; undefined: there is none left. */
  free(range: string): string | undefined {
    this.#turnTo(range);
    while (this.#from < this.#end && this.#holders.has(this.#from)) this.#from += BLOCK_SIZE;
    return this.#from < this.#end ? `${formatAddress(this.#from)}/${BLOCK_BITS}` : undefined;
  }

  /** How many blocks of `range` no node has. */
  left(range: string): number {
    this.#turnTo(range);
    return (this.#end - this.#first) / BLOCK_SIZE - this.#taken;
  }

  #turnTo(range: string): void {
    if (range === this.#range) return;
    const { first, size } = parseRange(range) ?? { first: 0, size: 0 };
    this.#range = range;
    this.#first = this.#from = Math.ceil(first / BLOCK_SIZE) * BLOCK_SIZE;
    this.#end = Math.max(this.#first, Math.floor((first + size) / BLOCK_SIZE) * BLOCK_SIZE);
    this.#taken = [...this.#holders.keys()].filter((block) => this.#isInside(block)).length;
  }

  #isInside(block: number): boolean {
    return block >= this.#first && block < this.#end;
  }

  #take(block: number): void {
    const holders = this.#holders.get(block) ?? 0;
    this.#holders.set(block, holders + 1);
    if (holders === 0 && this.#isInside(block)) this.#taken++;
  }

  #release(block: number): void {
    const holders = this.#holders.get(block) ?? 0;
    if (holders > 1) return void this.#holders.set(block, holders - 1);
    if (!this.#holders.delete(block) || !this.#isInside(block)) return;
    this.#taken--;
    this.#from = Math.min(this.#from, block);
  }
}

/** The first addresses of the blocks that a subnet lies in. */
function blocksOf(subnet: string): number[] {
  const range = parseRange(subnet);
  if (!range) return [];
  const first = Math.floor(range.first / BLOCK_SIZE) * BLOCK_SIZE;
  const blocks = Math.ceil((range.first + range.size - first) / BLOCK_SIZE);
  return Array.from({ length: blocks }, (_, n) => first + n * BLOCK_SIZE);
}
