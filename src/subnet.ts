/** @module IPv4 ranges in CIDR notation: comparing them, taking them apart, and finding a free one in a pool. */

type Range = { first: number; size: number };

/** The first subnet of `bits` in `pool` that overlaps none of `taken` (CIDR texts; IPv6 ones don't matter here); undefined if none is left. */
export function freeSubnet(
  pool: string,
  { taken, bits }: { taken: readonly string[]; bits: number },
): string | undefined {
  const range = parseRange(pool);
  if (!range) return undefined;
  const size = 2 ** (32 - bits);
  const used = taken.flatMap((text) => parseRange(text) ?? []).sort((a, b) => a.first - b.first);
  let first = Math.ceil(range.first / size) * size;
  for (const { first: start, size: length } of used) {
    if (start + length <= first) continue;
    if (start >= first + size) break;
    first = Math.ceil((start + length) / size) * size;
  }
  return first + size <= range.first + range.size ? `${formatAddress(first)}/${bits}` : undefined;
}

/** Whether an address or a subnet lies in `range`. */
export function contains(range: string, text: string): boolean {
  const outer = parseRange(range);
  const inner = parseRange(text.includes("/") ? text : `${text}/32`);
  if (!outer || !inner) return false;
  return inner.first >= outer.first && inner.first + inner.size <= outer.first + outer.size;
}

/** The first address of a subnet that a machine can have: `10.213.4.1` of `10.213.4.0/24`. */
export function firstAddress(subnet: string): string | undefined {
  const range = parseRange(subnet);
  return range && formatAddress(range.first + 1);
}

/** What is left of a subnet without the first one of `bits` in it, smallest first. */
export function withoutFirst(subnet: string, bits: number): string[] {
  const range = parseRange(subnet);
  if (!range) return [];
  const rest: string[] = [];
  for (let size = 2 ** (32 - bits); size < range.size; size *= 2)
    rest.push(`${formatAddress(range.first + size)}/${32 - Math.log2(size)}`);
  return rest;
}

function parseRange(text: string): Range | undefined {
  const [, a, b, c, d, bits] = /^(\d+)\.(\d+)\.(\d+)\.(\d+)\/(\d+)$/.exec(text) ?? [];
  if (bits === undefined) return undefined;
  const size = 2 ** (32 - Number(bits));
  const address = ((Number(a) * 256 + Number(b)) * 256 + Number(c)) * 256 + Number(d);
  return { first: Math.floor(address / size) * size, size };
}

function formatAddress(address: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");
}
