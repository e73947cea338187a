/**
 * @module What the Engine says of devices in its description of itself (Engine API: SystemInfo): what the operator counts by name,
 * and whether it can hand out NVIDIA GPUs. Only reads the answer; `docker.ts` asks.
 */

/** Engine API: SystemInfo, the members about devices; `DiscoveredDevices` from API 1.50 on. */
export type DevicesInfo = {
  GenericResources?:
    | {
        NamedResourceSpec?: { Kind?: string; Value?: string };
        DiscreteResourceSpec?: { Kind?: string; Value?: number };
      }[]
    | null;
  Runtimes?: Record<string, unknown> | null;
  DiscoveredDevices?: { Source?: string; ID?: string }[] | null;
};

/** `ids` where each has a name of its own. */
export type EngineDevices = { genericResources: { kind: string; count: number; ids?: string[] }[]; hasGpus: boolean };

export function engineDevices({ GenericResources, Runtimes, DiscoveredDevices }: DevicesInfo): EngineDevices {
  const found = new Map<string, { kind: string; count: number; ids?: string[] }>();
  for (const { NamedResourceSpec: named, DiscreteResourceSpec: discrete } of GenericResources ?? []) {
    const kind = named?.Kind ?? discrete?.Kind;
    if (kind === undefined) continue;
    const one = found.get(kind) ?? { kind, count: 0 };
    one.count += named ? 1 : Math.max(0, Math.trunc(discrete?.Value ?? 0));
    if (named?.Value !== undefined) one.ids = [...(one.ids ?? []), named.Value];
    found.set(kind, one);
  }
  const hasGpus =
    Object.hasOwn(Runtimes ?? {}, "nvidia") ||
    (DiscoveredDevices ?? []).some(({ ID: id = "" }) => id.startsWith("nvidia.com/gpu="));
  // An Engine answers each time in another order.
  for (const { ids } of found.values()) ids?.sort();
  const genericResources = [...found.values()].sort((a, b) => (a.kind < b.kind ? -1 : 1));
  return { genericResources, hasGpus };
}
