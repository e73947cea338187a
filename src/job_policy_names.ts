/**
 * @module Names of networks and volumes that two jobs would have in common: `<job>_<key>` is `shop_prod_default` for the network
 * `prod_default` of the job `shop` as well as for `default` of `shop_prod`. A node refuses what it has for another job, but a network
 * of that name on another node is the same network to the cluster. Pure.
 */
import { networkName, volumeName } from "./container_options.ts";
import type { JudgedService } from "./job_policy_leaves.ts";

type Named = { kind: "network" | "volume"; name: string; path: string };

/** Characters of a job's id, at most. */
const MAX_ID = 63;

/** What of a job is named as something of another one; `servicesOf` gives those of any job, and none where there is no such job. */
export function namesOfOthers({
  jobId,
  services,
  servicesOf,
}: {
  jobId: string;
  services: readonly JudgedService[];
  servicesOf: (jobId: string) => readonly JudgedService[];
}): (Named & { owner: string })[] {
  const known = new Map<string, ReadonlySet<string>>();
  const knownOf = (owner: string) => {
    const names =
      known.get(owner) ?? new Set(namesMade(owner, servicesOf(owner)).map(({ kind, name }) => `${kind} ${name}`));
    known.set(owner, names);
    return names;
  };
  return namesMade(jobId, services).flatMap((one) => {
    const owner = ownersOf(one.name).find((id) => id !== jobId && knownOf(id).has(`${one.kind} ${one.name}`));
    return owner === undefined ? [] : [{ ...one, owner }];
  });
}

/** The ids of jobs that may have something of that name without saying so. */
function ownersOf(name: string): string[] {
  const start = name.slice(0, MAX_ID + 1);
  return [...start.matchAll(/_/g)].map(({ index }) => start.slice(0, index));
}

/** All that a job's services use and that is made for the job, by its name on nodes. */
function namesMade(jobId: string, services: readonly JudgedService[]): Named[] {
  const all = services.flatMap(({ spec }): Named[] => {
    const networks = spec.networks?.map(({ network }) => network) ?? [{ key: "default", external: false }];
    const own = spec.network_mode === undefined ? networks.filter(({ external }) => !external) : [];
    const volumes = spec.mounts.flatMap((mount) =>
      mount.type === "volume" && mount.volume && !mount.volume.external ? [mount.volume] : [],
    );
    return [
      ...own.map((one): Named => ({ kind: "network", name: networkName(one, jobId), path: `networks.${one.key}` })),
      ...volumes.map((one): Named => ({ kind: "volume", name: volumeName(one, jobId), path: `volumes.${one.key}` })),
    ];
  });
  return [...new Map(all.map((one) => [one.path, one])).values()];
}
