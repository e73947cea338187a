/**
 * @module The values of a document's secrets: which were sent, and the mark that stands for a value in documents that are
 * answered. A document that has the mark, sent again, keeps the value that the job has; a value that is sent along wins. Pure;
 * `scheduler_secrets.ts` seals the values and knows those of before.
 */
import { type JobFiles, projectPath } from "./job_files.ts";
import { show } from "./job_grammar.ts";
import type { FileObjectFields } from "./job_keys.ts";
import { map, type MapEntry, type MapTree, type Path, scalar, type Tree, treeAt } from "./job_yaml.ts";
import type { JobSecret } from "./model.ts";
import type { MountSpec, ServiceSpec } from "./model_spec.ts";

/** The key beside `environment` or `file` of a secret, and its one value. Compose lets documents have keys with `x-`. */
export const MARK_KEY = "x-cacophony-value";
export const MARK = "(redacted)";

/** As Swarm has it ("docker secret create"): far above any key or password, so that one is one small record. */
const MAX_SECRET_BYTES = 500 * 1024;

/** A secret of the document that has a value: `data`, or, where that is absent, the one that the mark keeps. */
export type SentSecret = { name: string; data?: Uint8Array; file?: string };

/** Which of the document's secrets have values, by name. What has none is at fault only where a service mounts it. */
export function readSecrets(
  definitions: ReadonlyMap<string, FileObjectFields>,
  around: {
    root: Tree;
    files: JobFiles;
    env: ReadonlyMap<string, string>;
    fault: (path: Path, message: string) => void;
  },
): SentSecret[] {
  const { root, files, env, fault } = around;
  const sorted = [...definitions].toSorted(([a], [b]) => (a < b ? -1 : 1));
  return sorted.flatMap(([name, { file, environment }]): SentSecret[] => {
    const path = ["secrets", name, MARK_KEY];
    const mark = treeAt(root, path);
    if (mark && !isMark(mark))
      fault(
        path,
        `is kept for Cacophony's mark ${show(MARK)}, which stands for the value that the job has: leave it out`,
      );
    const clean = file === undefined ? undefined : projectPath(file);
    const isOurs = clean === undefined ? environment !== undefined : typeof clean === "string";
    if (!isOurs) {
      if (mark && isMark(mark)) fault(path, "stands for a value, and none of this secret is kept here: leave it out");
      return [];
    }
    const text = clean === undefined ? env.get(environment ?? "") : undefined;
    const data = typeof clean === "string" ? files.bytes(clean) : text === undefined ? undefined : Buffer.from(text);
    if (data && data.byteLength > MAX_SECRET_BYTES)
      fault(["secrets", name], `is ${data.byteLength} bytes long; a secret has at most ${MAX_SECRET_BYTES}`);
    if (!data && !(mark && isMark(mark))) return [];
    return [{ name, ...(data ? { data } : {}), ...(typeof clean === "string" ? { file: clean } : {}) }];
  });
}

/** Paths of all files that the document has for secrets, sent or not. */
export function secretFiles(definitions: ReadonlyMap<string, FileObjectFields>): Set<string> {
  const paths = [...definitions.values()].map(({ file }) => (file === undefined ? undefined : projectPath(file)));
  return new Set(paths.filter((path) => typeof path === "string"));
}

/** The document with the mark at each of these secrets. */
export function withMarks(root: Tree, names: Iterable<string>): Tree {
  const section = root.kind === "map" ? root.entries.get("secrets") : undefined;
  if (root.kind !== "map" || section?.value.kind !== "map") return root;
  const secrets = new Map(section.value.entries);
  for (const name of names) {
    const entry = secrets.get(name);
    if (entry?.value.kind === "map") secrets.set(name, { ...entry, value: marked(entry.value) });
  }
  const entries = new Map(root.entries).set("secrets", { ...section, value: map(secrets, section.value.at) });
  return map(entries, root.at);
}

/** The mounts as compose has them: it binds a secret's file as it lies in the project directory. */
export function composeMounts(mounts: readonly MountSpec[], secrets: readonly SentSecret[]): MountSpec[] {
  const files = new Map(secrets.map(({ name, file }) => [name, file]));
  return mounts.map((mount) => {
    const source = mount.type === "secret" ? files.get(mount.name) : undefined;
    if (source === undefined) return mount;
    return { type: "bind", source, target: mount.target, read_only: true, create_host_path: false };
  });
}

/** The spec with the ids of its secrets' values. */
export function withSecretIds(spec: ServiceSpec, ids: readonly JobSecret[]): ServiceSpec {
  const known = new Map(ids.map(({ name, secret_id }) => [name, secret_id]));
  const mounts = spec.mounts.map((mount) =>
    mount.type === "secret" ? { ...mount, secret_id: known.get(mount.name) ?? mount.secret_id } : mount,
  );
  return { ...spec, mounts };
}

function isMark(tree: Tree): boolean {
  return tree.kind === "scalar" && tree.value === MARK;
}

function marked({ entries, at }: MapTree): MapTree {
  const mark: MapEntry = { keyAt: at, value: scalar(MARK, at) };
  return map(new Map(entries).set(MARK_KEY, mark), at);
}
