/**
 * @module What of a compose service comes out of files: its variables and labels (`env_file`, `label_file`), its configs and
 * secrets as mounts, and which of the sent files its relative binds show. Owns what is at fault where a file is missing.
 */
import { readDotenv, readRawLines } from "./job_dotenv.ts";
import { cleanPath, type JobFiles, MOUNTED_MODE, projectPath, sendIt } from "./job_files.ts";
import type { EnvFile, FileMount } from "./job_forms.ts";
import { Refusal, show } from "./job_grammar.ts";
import type { FileObjectFields, ServiceFields } from "./job_keys.ts";
import { SECCOMP_PROFILE } from "./job_paths.ts";
import type { Path } from "./job_yaml.ts";
import {
  CREDENTIAL_SPEC,
  type FileSpec,
  HIDDEN_VALUE,
  type MountSpec,
  type SecretMount,
  type ServiceSpec,
} from "./model_spec.ts";
import { nearest } from "./nearest.ts";

/** Takes in what is wrong with a service, and what its sender should know; paths are below the service. */
export type Report = {
  fault(path: Path, message: string): void;
  warn(path: Path, message: string): void;
  /** The path of a name in a section that may be a list or a mapping. */
  member(section: string, name: string): Path;
};

export type FilesAround = {
  files: JobFiles;
  env: ReadonlyMap<string, string>;
  configs: ReadonlyMap<string, FileObjectFields>;
  secrets: ReadonlyMap<string, FileObjectFields>;
  /** Secrets that have a value, and the paths of files that are secrets'. */
  values: ReadonlySet<string>;
  secretPaths: ReadonlySet<string>;
  report: Report;
};

/** Variables of `env_file`, a later file over an earlier one, and over them those of `environment`; sorted by name. */
export function environmentOf(service: ServiceFields, around: FilesAround): string[] {
  const { environment: own = [], env_file: files = [] } = service;
  const { report, env } = around;
  const written = new Map(own);
  const all = new Map<string, string | undefined>();
  for (const [index, file] of files.entries()) {
    const lookup = (name: string) => env.get(name) ?? written.get(name) ?? undefined;
    for (const [name, value] of entriesOf(file, { ...around, key: "env_file", index, lookup })) all.set(name, value);
  }
  for (const [name, value] of own) all.set(name, value);
  for (const name of all.keys()) {
    if (name !== "" && !/\s$|\0/.test(name)) continue;
    report.fault(
      [written.has(name) ? "environment" : "env_file"],
      `has the variable name ${show(name)}; a name is not empty and does not end with a space`,
    );
  }
  for (const [name, value] of own)
    if (value === HIDDEN_VALUE) report.fault(["environment"], hiddenFault(`the variable ${name}`));
  const entries = files.length === 0 ? own : [...all].toSorted(([a], [b]) => (a < b ? -1 : 1));
  return entries.map(([name, value]) => (value === undefined ? name : `${name}=${value}`));
}

/** A document that a container with `x-cacophony: {api: read}` was answered would lose its values when it is sent back. */
function hiddenFault(what: string): string {
  return `has ${HIDDEN_VALUE} for ${what}: that stands where a value was hidden from who asked; send the value itself`;
}

/** Labels of `label_file`, and over them those of `labels`. */
export function labelsOf(service: ServiceFields, around: FilesAround): ServiceSpec["labels"] {
  const { labels: own = [], label_file: files = [] } = service;
  const all = new Map<string, string>();
  for (const [index, path] of files.entries()) {
    const file = { path, required: true, raw: false };
    const lookup = (name: string) => around.env.get(name);
    for (const [name, value] of entriesOf(file, { ...around, key: "label_file", index, lookup })) all.set(name, value);
  }
  for (const [name, value] of own) all.set(name, value);
  for (const name of all.keys()) {
    if (name.startsWith("cacophony."))
      around.report.fault(["labels", name], "is a label of Cacophony's own: choose a name without cacophony.");
  }
  return files.length === 0 ? own : [...all].toSorted(([a], [b]) => (a < b ? -1 : 1));
}

/** The service's security options: a seccomp profile by its path becomes its contents, as compose sends it. */
export function securityOptions(service: ServiceFields, around: FilesAround): string[] {
  const { files, report } = around;
  const own = (service.security_opt ?? []).map((option, index) => {
    const named = SECCOMP_PROFILE.exec(option)?.[2];
    if (named === undefined) return option;
    const path = projectPath(named);
    const text = path instanceof Refusal ? path : files.text(path);
    try {
      if (!(text instanceof Refusal)) return `seccomp=${JSON.stringify(JSON.parse(text))}`;
      report.fault(["security_opt", index], text.message);
    } catch {
      report.fault(["security_opt", index], `names the seccomp profile ${show(named)}, which is no JSON`);
    }
    return option;
  });
  return [...own, ...credentialSpec(service, around)];
}

/** `credential_spec` as the security option that Docker on Windows takes; a config's contents stand for it. */
function credentialSpec({ credential_spec: spec }: ServiceFields, around: FilesAround): string[] {
  if (!spec) return [];
  if (spec.file) return [`${CREDENTIAL_SPEC}file://${spec.file}`];
  if (spec.registry) return [`${CREDENTIAL_SPEC}registry://${spec.registry}`];
  const { configs, env, files, report } = around;
  const path = ["credential_spec", "config"];
  const definition = configs.get(spec.config ?? "");
  if (!definition) {
    report.fault(
      path,
      `names the config ${show(spec.config ?? "")}, which is not under the top-level configs; add it there`,
    );
    return [];
  }
  const { content = env.get(definition.environment ?? ""), file } = definition;
  const sent = file === undefined ? undefined : projectPath(file);
  const text = content ?? (typeof sent === "string" ? files.text(sent) : sent);
  if (typeof text === "string") return [`${CREDENTIAL_SPEC}raw://${text}`];
  report.fault(
    path,
    text?.message ?? `names the config ${show(spec.config ?? "")}, which has no contents here: give it content or file`,
  );
  return [];
}

type Reading = FilesAround & {
  key: "env_file" | "label_file";
  index: number;
  lookup: (name: string) => string | undefined;
};

function entriesOf(file: EnvFile, { files, report, key, index, lookup }: Reading): Map<string, string> {
  const fault = ({ message }: Refusal) => {
    report.fault([key, index], message);
    return new Map<string, string>();
  };
  const path = projectPath(file.path);
  if (path instanceof Refusal) return fault(path);
  if (!file.required && !files.has(path)) return new Map();
  const text = files.text(path);
  if (text instanceof Refusal) return fault(text);
  const entries = file.raw ? readRawLines(text, lookup) : readDotenv(text, lookup);
  return entries instanceof Refusal ? fault(new Refusal(`names ./${path}, where ${entries.message}`)) : entries;
}

/** The sent files that a bind mount shows. */
export function sentBelow(
  mount: Extract<MountSpec, { type: "bind" }>,
  { files, report, index, secretPaths }: FilesAround & { index: number },
): FileSpec[] {
  const { source, target } = mount;
  if (source.startsWith("/") || source.startsWith("..") || source.startsWith("~")) return [];
  const names = files.namesBelow(source);
  const ending = /[^/]\.([a-zA-Z0-9]+)$/.exec(source)?.[1];
  // Docker makes a directory of what is not there, which a program that wants a file cannot use.
  if (names.length === 0 && ending !== undefined && target.endsWith(`.${ending}`)) {
    report.warn(
      ["volumes", index],
      `names ./${source}, which was not sent and so is an empty directory: ${sendIt(source)}; for a directory, once for each of its files`,
    );
  }
  for (const path of names.filter((name) => secretPaths.has(name))) {
    const effect =
      path === source
        ? `shows ./${path}, which is a secret's file: through a bind it lies unencrypted in the cluster's state and on nodes' disks; mount it under secrets alone`
        : `does not show ./${path}, since it is a secret's file: mount it under secrets`;
    report.warn(["volumes", index], effect);
  }
  return files.below(source, (path) => path !== source && secretPaths.has(path));
}

/** Mounts of the service's configs and secrets, with the configs' files to write. `claim` takes a target, if it may have it. */
export function fileMounts(
  service: ServiceFields,
  around: FilesAround & { claim: (target: string, path: Path) => string | undefined },
): { mounts: MountSpec[]; files: FileSpec[] } {
  const mounts: MountSpec[] = [];
  const files: FileSpec[] = [];
  for (const section of ["configs", "secrets"] as const) {
    const folder = section === "secrets" ? "/run/secrets/" : "/";
    const wantedBy = ({ source, target }: FileMount) => {
      const wanted = target || source;
      return cleanPath(wanted.startsWith("/") ? wanted : `${folder}${wanted}`);
    };
    for (const [index, mount] of lastOfEach(service[section] ?? [], { section, targetOf: wantedBy, ...around })) {
      const path = [section, index];
      const made = fileMount(mount, { ...around, section, path });
      const target = made && around.claim(wantedBy(mount), path);
      if (!made || target === undefined) continue;
      if ("secret" in made) mounts.push({ ...made.secret, target });
      else mounts.push({ type: "bind", source: made.source, target, read_only: true, create_host_path: false });
      if ("file" in made && made.file) files.push(made.file);
    }
  }
  return { mounts, files };
}

/** The entries that count, with their indexes: of those with one target compose takes the last. Said again is said once. */
export function lastOfEach<T extends { source: string }>(
  entries: readonly T[],
  { section, targetOf, report }: { section: string; targetOf: (entry: T) => string; report: Report },
): [number, T][] {
  const last = new Map(entries.map((entry, index) => [targetOf(entry), [index, entry] as const]));
  return [...entries.entries()].filter(([index, entry]) => {
    const [other, winner] = last.get(targetOf(entry)) ?? [index, entry];
    if (other !== index && JSON.stringify(entry) !== JSON.stringify(winner)) {
      const [own, its] = [entry, winner].map(({ source }) => (source === "" ? "an unnamed one" : show(source)));
      report.warn(
        [section, index],
        `is left out: it puts ${own} at ${show(targetOf(entry))}, where entry ${other} puts ${its}; compose takes the later one`,
      );
    }
    return other === index;
  });
}

/** A secret's value is no file of the job; a bind is of a file in the project directory, or at an absolute path of the node. */
type Made = { source: string; file?: FileSpec } | { secret: Omit<SecretMount, "target"> };
type Making = FilesAround & { section: "configs" | "secrets"; path: Path };

function fileMount(mount: FileMount, around: Making): Made | undefined {
  const { section, path, report, files } = around;
  const kind = section === "configs" ? "config" : "secret";
  const fault = (message: string) => {
    report.fault(path, message);
    return undefined;
  };
  const definition = around[section].get(mount.source);
  if (!definition) {
    const near = nearest(mount.source, [...around[section].keys()].slice(0, 100));
    return fault(
      `names the ${kind} ${show(mount.source)}, which is not under the top-level ${section}${near ? `: did you mean ${near}?` : "; add it there"}`,
    );
  }
  const { external, driver, template_driver, file, content, environment } = definition;
  if (external || driver !== undefined || template_driver !== undefined)
    return fault(
      `names the ${kind} ${show(mount.source)}, which is made outside of the job: give it file, content or environment`,
    );
  const { uid, gid, mode } = mount;
  const owner = {
    ...(uid === undefined ? {} : { uid }),
    ...(gid === undefined ? {} : { gid }),
    ...(mode === undefined ? {} : { mode }),
  };
  if (section === "secrets" && around.values.has(mount.source)) {
    const { source: name } = mount;
    return { secret: { type: "secret", name, secret_id: "", read_only: true, mode: MOUNTED_MODE, ...owner } };
  }
  if (file === undefined) {
    if (content === HIDDEN_VALUE) return fault(hiddenFault(`the contents of the ${kind} ${show(mount.source)}`));
    const text = content ?? around.env.get(environment ?? "");
    if (text === undefined)
      return fault(
        `names the ${kind} ${show(mount.source)}, whose variable ${environment} is not set: send ?env.${environment}=…`,
      );
    const made = files.mounted(mount.source, new TextEncoder().encode(text), owner);
    return { source: made.path, file: made };
  }
  if (file.startsWith("/") && !file.includes("\0")) {
    if (Object.keys(owner).length > 0)
      report.warn(path, `has uid, gid or mode, which are left out: ${file} is mounted as it is on the node`);
    return { source: cleanPath(file) };
  }
  const clean = projectPath(file);
  if (clean instanceof Refusal) return fault(clean.message);
  if (!files.has(clean)) return fault(`names the file ${show(clean)}, which was not sent: ${sendIt(clean)}`);
  if (Object.keys(owner).length > 0) {
    const made = files.copy(clean, mount.source, owner);
    return made && { source: made.path, file: made };
  }
  const [made] = files.below(clean);
  return { source: clean, ...(made ? { file: made } : {}) };
}
