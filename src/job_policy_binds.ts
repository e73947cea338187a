/**
 * @module Binds of a job inside of another one of its writable binds. A container can put a symbolic link into a directory that it
 * may write to, and a bind of that name in the same or the next version of the job would show what the link leads to. Pure.
 */
import { folderOf, type JudgedService, pathsOf, shownPath } from "./job_policy_leaves.ts";
import type { MountSpec } from "./model_spec.ts";

/** `mount`: undefined for one of the job's present version. */
type Place = { folder: string; path: string; writable: boolean; owner: string; mount: MountSpec | undefined };

/**
 * The mounts with a path at or below one that another mount of the job makes writable, with the words that say so. What the
 * present version of the job (`before`) binds counts as well, as long as the new path lies below it.
 */
export function bindsInsideOthers(
  services: readonly JudgedService[],
  before: readonly JudgedService[],
): ReadonlyMap<MountSpec, { path: string; reason: string }> {
  const places: Place[] = [...placesOf(services), ...placesOf(before).map((place) => ({ ...place, mount: undefined }))];
  // What lies below a folder follows it. Writable ones first, so that the others at the same place are seen to be inside.
  places.sort((a, b) =>
    a.folder === b.folder ? Number(b.writable) - Number(a.writable) : a.folder < b.folder ? -1 : 1,
  );
  const found = new Map<MountSpec, { path: string; reason: string }>();
  let open: Place[] = [];
  for (const place of places) {
    open = open.filter(({ folder }) => place.folder.startsWith(folder));
    const { mount } = place;
    const isOther = (one: Place) => (one.mount ? one.mount !== mount : one.folder !== place.folder);
    const outer = mount && open.find(isOther);
    if (mount && outer && !found.has(mount)) {
      const isVersion = outer.mount === undefined;
      const whose = `${isVersion ? "the present version's service" : "the service"} ${outer.owner}`;
      const reason =
        outer.folder === place.folder
          ? `${whose} may write to it; share a named volume instead`
          : `it lies inside of ${shownPath(outer.path)}, which ${whose} may write to, and may be a symbolic link by then; choose another directory, or a named volume`;
      found.set(mount, { path: place.path, reason });
    }
    const isKnown = open.some((one) => one.folder === place.folder && !one.mount === !mount);
    if (place.writable && !isKnown) open.push(place);
  }
  return found;
}

/** Each path that mounts show, once for each mount of a path and once for each volume. */
function placesOf(services: readonly JudgedService[]): Place[] {
  const volumes = new Map<string, Place>();
  return services.flatMap(({ service_name: owner, spec }) =>
    spec.mounts.flatMap((mount) =>
      pathsOf(mount).flatMap((path): Place[] => {
        const writable = !("read_only" in mount && mount.read_only);
        const place = { folder: folderOf(path), path, writable, owner, mount };
        if (mount.type !== "volume") return [place];
        const key = `${mount.volume?.key} ${path}`;
        const known = volumes.get(key);
        if (known) known.writable ||= writable;
        else volumes.set(key, place);
        return known ? [] : [place];
      }),
    ),
  );
}
