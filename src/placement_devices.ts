/**
 * @module Things that nodes have a number of: GPUs, and what the operator gave a name (`node-generic-resources` of dockerd). Pure.
 * Owns what a node has, what a service asks for, and that no node's are set aside twice.
 *
 * **GPUs** are those that the NVIDIA driver lists, else the generic resource `gpu` or `NVIDIA-GPU`. Where Docker can hand out
 * GPUs and neither tells how many, Docker decides. `count` and `device_ids` set GPUs aside, an id being a UUID or the number that
 * nvidia-smi shows. `all` is for a node that has any and sets none aside: whoever asks for all shares them, as in compose.
 * Which ones a `count` gets is Docker's choice, and that is the first: to have different ones, name them.
 *
 * What other drivers hand out is not counted; Docker says where it is missing.
 */
import type { EngineStatus } from "./model.ts";
import type { Resources } from "./model_reports.ts";
import type { ServiceSpec } from "./model_spec.ts";

/** `ids` in the order of their numbers; empty: they have none. `count` may be infinite: not known, and not counted. */
export type Stock = { count: number; ids: readonly string[] };
/** By kind. */
export type Devices = ReadonlyMap<string, Stock>;
/** What is set aside, by kind: how many in all, and the names of those that were asked for by name. */
export type Reserved = Map<string, { count: number; ids: string[] }>;
type Ask = { kind: string; count: number; ids: readonly string[] };

const GPU = "gpu";
const GPU_NAMES = new Set([GPU, "nvidia-gpu"]);
const NOTHING: readonly Ask[] = [];

/** What a node has, by what it reported. */
export function devicesOf(engine: EngineStatus | undefined, resources: Resources | undefined): Devices {
  const devices = new Map<string, Stock>();
  const ready = engine?.state === "ready" ? engine : undefined;
  for (const { kind, count, ids = [] } of ready?.generic_resources ?? []) devices.set(kindOf(kind), { count, ids });
  const gpus = resources?.gpus ?? [];
  if (gpus.length > 0) devices.set(GPU, { count: gpus.length, ids: gpus });
  else if (ready?.has_gpus && !devices.has(GPU)) devices.set(GPU, { count: Number.POSITIVE_INFINITY, ids: [] });
  return devices;
}

/** Why a node can't give what `specs` ask for together; undefined: it can. */
export function lackOf(
  specs: readonly ServiceSpec[],
  { devices, reserved }: { devices: Devices; reserved: Reserved },
): string | undefined {
  let taken = reserved;
  for (const spec of specs) {
    const asks = asksOf(spec);
    if (asks.length === 0) continue;
    if (taken === reserved) taken = copyOf(reserved);
    for (const ask of asks) {
      const lack = lackOfOne(ask, { devices, taken });
      if (lack !== undefined) return lack;
      add(taken, ask);
    }
  }
  return undefined;
}

/** Whether a service may ask for anything that is counted here. */
export function asksForDevices(spec: Pick<ServiceSpec, "device_requests" | "reservations">): boolean {
  return spec.device_requests !== undefined || spec.reservations.generic !== undefined;
}

/** Counts what a replica sets aside. */
export function reserve(reserved: Reserved, spec: ServiceSpec): void {
  for (const ask of asksOf(spec)) add(reserved, ask);
}

export function copyOf(reserved: Reserved): Reserved {
  return new Map(Array.from(reserved, ([kind, { count, ids }]) => [kind, { count, ids: [...ids] }]));
}

function lackOfOne({ kind, count, ids }: Ask, { devices, taken }: { devices: Devices; taken: Reserved }) {
  const stock = devices.get(kind) ?? { count: 0, ids: [] };
  const { count: total } = stock;
  if (total === 0) return `has no ${kind}`;
  const held = taken.get(kind);
  const names = new Set(held?.ids.map((id) => nameOf(id, stock)));
  for (const id of ids) {
    const name = nameOf(id, stock);
    if (name === undefined) return `has no ${kind} ${id}`;
    if (names.has(name)) return `${kind} ${id} is taken`;
    names.add(name);
  }
  const asked = Math.max(count, ids.length);
  const free = total - (held?.count ?? 0);
  return asked > free ? `has ${Math.max(0, free)} of ${asked} ${kind} (of ${total})` : undefined;
}

function add(reserved: Reserved, { kind, count, ids }: Ask): void {
  const held = reserved.get(kind) ?? { count: 0, ids: [] };
  held.count += Math.max(count, ids.length);
  held.ids.push(...ids);
  reserved.set(kind, held);
}

/** A device by the one name that counts for it; undefined: the node has none of that name. */
function nameOf(id: string, { count, ids }: Stock): string | undefined {
  if (count === Number.POSITIVE_INFINITY || ids.includes(id)) return id;
  if (!/^\d+$/.test(id) || Number(id) >= count) return undefined;
  return ids[Number(id)] ?? String(Number(id));
}

function asksOf(spec: ServiceSpec): readonly Ask[] {
  if (!asksForDevices(spec)) return NOTHING;
  const { device_requests: requests = [], reservations } = spec;
  const gpus = requests.filter(
    ({ driver = "", capabilities }) =>
      driver === "nvidia" || (driver === "" && capabilities.some((one) => one === "gpu" || one === "nvidia")),
  );
  return [
    // Docker: -1 is all there are; without a number and names it is none.
    ...gpus.map(({ count = 0, device_ids = [] }) => ({ kind: GPU, count: Math.max(0, count), ids: device_ids })),
    ...(reservations.generic ?? []).map(({ kind, count }) => ({ kind: kindOf(kind), count, ids: [] })),
  ];
}

function kindOf(kind: string): string {
  return GPU_NAMES.has(kind.toLowerCase()) ? GPU : kind;
}
