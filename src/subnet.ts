/** @module IPv4 addresses and ranges in CIDR notation: reading them, comparing them, taking them apart, and finding a free one in a pool. */

export type Range = { first: number; size: number };

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

/** Whether an address or a subnet lies in `range`; texts that are neither don't. */
export function contains(range: string, text: string): boolean {
  const outer = parseRange(range);
  const inner = parseRange(text.includes("/") ? text : `${text}/32`);
  if (!outer || !inner) return false;
  return inner.first >= outer.first && inner.first + inner.size <= outer.first + outer.size;
}

/** Whether the text is an IPv4 address as it is written: no zeros in front, nothing beside it. */
export function isAddress(text: string): boolean {
  const address = parseAddress(text);
  return address !== undefined && formatAddress(address) === text;
}

/** Whether the text is an IPv4 subnet by its first address: `10.213.4.0/26`, and not `10.213.4.9/26`. */
export function isSubnet(text: string): boolean {
  const range = parseRange(text);
  return range !== undefined && text === `${formatAddress(range.first)}/${32 - Math.log2(range.size)}`;
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

/** A subnet's first address and its size; undefined for what is no IPv4 one. */
export function parseRange(text: string): Range | undefined {
  const [, address = "", bits] = /^([0-9.]+)\/(3[0-2]|[12]?[0-9])$/.exec(text) ?? [];
  const number = parseAddress(address);
  if (number === undefined) return undefined;
  const size = 2 ** (32 - Number(bits));
  return { first: Math.floor(number / size) * size, size };
}

/** An IPv4 address as a number; undefined for any other text. */
export function parseAddress(text: string): number | undefined {
  const octets = text.split(".");
  if (octets.length !== 4) return undefined;
  let number = 0;
  for (const octet of octets) {
    if (!/^[0-9]{1,3}$/.test(octet) || Number(octet) > 255) return undefined;
    number = number * 256 + Number(octet);
  }
  return number;
}

/** The text of an IPv4 address. */
export function formatAddress(address: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");
}
