/** @module IPv4 subnets as ranges of numbers. */

export type Subnet = { first: number; size: number };

/** `10.0.0.0/26`, also with an address in it; undefined for anything else. */
export function parseSubnet(text: string): Subnet | undefined {
  const [, a, b, c, d, bits] = /^(\d+)\.(\d+)\.(\d+)\.(\d+)\/(\d+)$/.exec(text) ?? [];
  if (bits === undefined) return undefined;
  const size = 2 ** (32 - Number(bits));
  const address = ((Number(a) * 256 + Number(b)) * 256 + Number(c)) * 256 + Number(d);
  return { first: Math.floor(address / size) * size, size };
}

export function writeAddress(address: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");
}
