/** @module IPv4 ranges in CIDR notation, as far as the cluster's network asks. */

type Range = { first: number; size: number };

/** Whether an address or a subnet lies in `range`; texts that are neither don't. */
export function contains(range: string, text: string): boolean {
  const outer = parseRange(range);
  const inner = parseRange(text.includes("/") ? text : `${text}/32`);
  if (!outer || !inner) return false;
  return inner.first >= outer.first && inner.first + inner.size <= outer.first + outer.size;
}

/** The first address of a subnet that a machine can have: `10.213.4.1` of `10.213.4.0/24`. */
export function firstAddress(subnet: string): string | undefined {
  const range = parseRange(subnet);
  return range && [24, 16, 8, 0].map((shift) => Math.floor((range.first + 1) / 2 ** shift) % 256).join(".");
}

function parseRange(text: string): Range | undefined {
  const [, a, b, c, d, bits] = /^(\d+)\.(\d+)\.(\d+)\.(\d+)\/(\d+)$/.exec(text) ?? [];
  if (bits === undefined) return undefined;
  const size = 2 ** (32 - Number(bits));
  const address = ((Number(a) * 256 + Number(b)) * 256 + Number(c)) * 256 + Number(d);
  return { first: Math.floor(address / size) * size, size };
}
