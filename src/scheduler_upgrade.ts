/**
 * @module Records of earlier versions of Cacophony, brought to what they are now when a master starts. Earlier ones kept the
 * secrets of jobs as they kept sent files: in plain, by their hash. Their values are sealed, and specs and documents are those
 * that the same PUT would make today, so that replicas are replaced by ones that have their secrets in memory.
 */
import { specHash } from "./job_changes.ts";
import { cleanPath, MOUNTED_MODE, OWN_DIRECTORY } from "./job_files.ts";
import { interpolate } from "./job_interpolate.ts";
import { print } from "./job_print.ts";
import { withMarks, withSecretIds } from "./job_secrets.ts";
import { readYaml, type Tree, treeAt } from "./job_yaml.ts";
import type { ClusterState } from "./cluster_state.ts";
import type { Change, LiveJob } from "./model.ts";
import type { FileSpec, MountSpec, ServiceSpec } from "./model_spec.ts";
import type { Secrets } from "./scheduler_secrets.ts";

/**
 * Changes after which no record holds a secret's value in plain but chunks that nothing names any more; none when all is well.
 * @throws CacophonyError where values can't be sealed.
 */
export function changesForUpgrade(state: ClusterState, secrets: Secrets): Change[] {
  return state.liveJobs().flatMap((job) => sealJob(job, { state, secrets }));
}

type Around = { state: ClusterState; secrets: Secrets };
/** A service's spec with secrets in place of some files, and the values that those files had. */
type Lifted = { spec: ServiceSpec; values: Map<string, Uint8Array>; paths: Set<string> };

function sealJob(job: LiveJob, { state, secrets }: Around): Change[] {
  if (job.secrets || !job.document.includes('"secrets"')) return [];
  const yaml = readYaml(job.document);
  if (yaml.state !== "parsed") return [];
  // The stored text doubles each `$`, as one that is sent.
  const { root } = interpolate(yaml.root, new Map());
  const lifted = new Map<string, Lifted>();
  const values = new Map<string, Uint8Array>();
  for (const { service_name, spec_hash } of job.services) {
    const spec = state.specs.get(spec_hash);
    const found = spec && liftSpec(spec, { wanted: secretTargets(root, service_name), state });
    if (!found) continue;
    lifted.set(service_name, found);
    for (const [name, value] of found.values) values.set(name, value);
  }
  if (values.size === 0) return [];
  const sorted = new Map([...values].toSorted(([a], [b]) => (a < b ? -1 : 1)));
  const { ids, fresh } = secrets.adopt(sorted);
  const changes = secrets.sealed(fresh);
  const services = job.services.map((service) => {
    const found = lifted.get(service.service_name);
    if (!found) return service;
    const spec = withSecretIds(found.spec, ids);
    const spec_hash = specHash(spec);
    // The former hash stays the name of what its allocations run until they are replaced.
    for (const hash of new Set([service.spec_hash, spec_hash]))
      changes.push({ op: "put", kind: "spec", record: { spec_hash: hash, spec } });
    return { ...service, spec_hash };
  });
  const paths = new Set([...lifted.values()].flatMap((one) => [...one.paths]));
  changes.push(...stripOutdated(job, { state, paths }));
  const document = print(withMarks(root, values.keys()));
  changes.push({ op: "put", kind: "job", record: { ...job, document, services, secrets: ids } });
  return changes;
}

/** Where a service has its secrets, by their names: target -> name. */
function secretTargets(root: Tree, serviceName: string): Map<string, string> {
  const section = treeAt(root, ["services", serviceName, "secrets"]);
  const targets = new Map<string, string>();
  for (const item of section?.kind === "list" ? section.items : []) {
    const text = (key: string) => {
      const tree = item.kind === "map" ? item.entries.get(key)?.value : undefined;
      return tree?.kind === "scalar" && tree.value !== null ? String(tree.value) : "";
    };
    const name = item.kind === "scalar" ? String(item.value) : text("source");
    const target = text("target") || name;
    targets.set(cleanPath(target.startsWith("/") ? target : `/run/secrets/${target}`), name);
  }
  return targets;
}

function liftSpec(
  spec: ServiceSpec,
  { wanted, state }: { wanted: ReadonlyMap<string, string>; state: ClusterState },
): Lifted | undefined {
  const files = new Map(spec.files?.map((file) => [file.path, file]));
  const values = new Map<string, Uint8Array>();
  const paths = new Set<string>();
  const mounts = spec.mounts.map((mount): MountSpec => {
    const name = wanted.get(mount.target);
    const file = mount.type === "bind" ? files.get(mount.source) : undefined;
    const value = file && contentsOf(file, state);
    if (name === undefined || !value) return mount;
    values.set(name, value);
    paths.add(file.path);
    const { uid, gid } = file;
    const owner = { ...(uid === undefined ? {} : { uid }), ...(gid === undefined ? {} : { gid }) };
    const mode = file.path.startsWith(`${OWN_DIRECTORY}/`) ? file.mode : MOUNTED_MODE;
    return { type: "secret", name, secret_id: "", target: mount.target, read_only: true, mode, ...owner };
  });
  return values.size === 0 ? undefined : { spec: withoutFiles({ ...spec, mounts }, paths), values, paths };
}

/** A file stays where a bind of its own shows it: its sender wants it in the project directory. */
function withoutFiles(spec: ServiceSpec, paths: ReadonlySet<string>): ServiceSpec {
  const shown = new Set(spec.mounts.map((mount) => (mount.type === "bind" ? mount.source : "")));
  const { files = [], ...rest } = spec;
  const kept = files.filter(({ path }) => !paths.has(path) || shown.has(path));
  return { ...rest, ...(kept.length > 0 ? { files: kept } : {}) };
}

/** What older allocations of the job run still names what secrets were before: they are about to be replaced. */
function stripOutdated(job: LiveJob, { state, paths }: { state: ClusterState; paths: ReadonlySet<string> }): Change[] {
  const current = new Set(job.services.map(({ spec_hash }) => spec_hash));
  const allocations = [...state.allocations.values()].filter(({ job_id }) => job_id === job.job_id);
  const outdated = new Set(allocations.map(({ spec_hash }) => spec_hash).filter((hash) => !current.has(hash)));
  return [...outdated].flatMap((spec_hash): Change[] => {
    const spec = state.specs.get(spec_hash);
    if (!spec?.files) return [];
    const inSecrets = spec.mounts.flatMap((mount) =>
      mount.type === "bind" && mount.target.startsWith("/run/secrets/") ? [mount.source] : [],
    );
    const gone = new Set([...paths, ...inSecrets]);
    const files = spec.files.filter(({ path }) => !gone.has(path));
    return [{ op: "put", kind: "spec", record: { spec_hash, spec: { ...spec, files } } }];
  });
}

function contentsOf({ chunks }: FileSpec, state: ClusterState): Uint8Array | undefined {
  const parts = chunks.map((chunk) => state.chunks.get(chunk));
  if (parts.includes(undefined)) return undefined;
  return Buffer.concat(parts.map((part) => Buffer.from(part ?? "", "base64")));
}
