/**
 * @module Addresses that services have fixed on the job's networks, kept from being given to others: where a container without
 * one may start first, Docker is told to give out addresses of a part of the subnet that holds no fixed one (`ip_range`).
 */
import { formatAddress, parseAddress, parseRange, type Range } from "./subnet.ts";
import type { NetworkFields, ServiceFields } from "./job_keys.ts";

/** Least addresses of such a part, as many as a network without a subnet of its own has; with fewer, a job might not fit. */
const LEAST_ADDRESSES = 64;

type Networks = ReadonlyMap<string, NetworkFields>;
type Config = NonNullable<NonNullable<NetworkFields["ipam"]>["config"]>[number];

/** The networks with a range for Docker to give out, where services have fixed addresses and others have none. */
export function withRanges(networks: Networks, services: ReadonlyMap<string, ServiceFields>): Networks {
  const fixed = new Map<string, Set<string>>();
  const open = new Set<string>();
  for (const { networks: own = [], network_mode: mode } of services.values()) {
    if (own.length === 0 && !mode) open.add("default");
    for (const [key, { ipv4_address: address }] of own) {
      if (address) fixed.set(key, (fixed.get(key) ?? new Set()).add(address));
      else open.add(key);
    }
  }
  return new Map(
    [...networks].map(([key, fields]): [string, NetworkFields] => {
      const addresses = open.has(key) ? fixed.get(key) : undefined;
      const { ipam } = fields;
      // Other drivers give out addresses of networks that are not ours alone.
      const isBridge = ["", "default", "bridge", "overlay"].includes(fields.driver ?? "");
      if (!addresses || !ipam?.config || !isBridge || !["", "default"].includes(ipam.driver ?? ""))
        return [key, fields];
      return [key, { ...fields, ipam: { ...ipam, config: ipam.config.map((one) => withRange(one, addresses)) } }];
    }),
  );
}

function withRange(config: Config, fixed: ReadonlySet<string>): Config {
  const subnet = parseRange(config.subnet ?? "");
  if (!subnet || config.ip_range !== undefined) return config;
  const inside = [...fixed].flatMap((text) => {
    const address = parseAddress(text) ?? -1;
    return address >= subnet.first && address < subnet.first + subnet.size ? [address - subnet.first] : [];
  });
  const part = inside.length > 0 && freePart(subnet, inside);
  if (!part) return config;
  const bits = 32 - Math.log2(part.size);
  // Docker would take the first address of the range for it.
  const gateway = config.gateway ?? formatAddress(subnet.first + 1);
  return { ...config, ip_range: `${formatAddress(part.first)}/${bits}`, gateway };
}

/** The largest part of the subnet without these addresses, and of several the last: people count from the first. */
function freePart({ first, size }: Range, taken: readonly number[]): Range | undefined {
  for (let part = size / 2; part >= LEAST_ADDRESSES; part /= 2) {
    const used = new Set(taken.map((address) => Math.floor(address / part)));
    // Where no part is free, there is an address for each: the search is as long as the list of addresses.
    for (let index = size / part - 1; index >= 0; index--)
      if (!used.has(index)) return { first: first + index * part, size: part };
  }
  return undefined;
}
