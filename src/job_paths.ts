/**
 * @module Relative paths of a compose file -> paths of the project: compose means them from the directory of the file that they
 * stand in, or the one that `include` names (compose-go, package paths). Owns which keys hold paths.
 */
import { cleanPath } from "./job_files.ts";
import { list, map, type MapEntry, type MapTree, scalar, type Tree } from "./job_yaml.ts";

type Change = (tree: Tree) => Tree;

/** The document with the paths that it means from `directory`; one path is left to `rebaseProfiles`. */
export function rebase(root: MapTree, directory: string): MapTree {
  if (directory === ".") return root;
  const text = textChange((path) => moved(path, directory));
  const files: Change = (tree) =>
    tree.kind === "list"
      ? each(tree, (item) => changed(item, { path: text, "": text }))
      : changed(tree, { path: text, "": text });
  const short = textChange((mount) => mount.replace(/^\.[^:]*(?=:)/, (source) => moved(source, directory)));
  const mount: Change = (tree) =>
    tree.kind === "map" && textOf(tree, "type") === "bind" ? changed(tree, { source: text }) : short(tree);
  const service: Change = (tree) =>
    changed(tree, {
      volumes: (value) => each(value, mount),
      env_file: files,
      label_file: files,
      extends: (value) => changed(value, { file: text }),
    });
  const object: Change = (tree) => changed(tree, { file: text });
  const include: Change = (tree) => changed(tree, { path: files, env_file: files, project_directory: text, "": text });
  return changed(root, {
    services: (tree) => each(tree, service),
    configs: (tree) => each(tree, object),
    secrets: (tree) => each(tree, object),
    include: (tree) => (tree.kind === "list" ? each(tree, include) : tree),
  }) as MapTree;
}

/** Compose means the seccomp profiles of all services, whatever file they come of, from the main document's directory. */
export function rebaseProfiles(root: MapTree, directory: string): MapTree {
  if (directory === ".") return root;
  const option = textChange((text) => {
    const [, name = "", path = ""] = SECCOMP_PROFILE.exec(text) ?? [];
    return path === "" ? text : `${name}${moved(path, directory)}`;
  });
  const service: Change = (tree) => changed(tree, { security_opt: (value) => each(value, option) });
  return changed(root, { services: (tree) => each(tree, service) }) as MapTree;
}

/** A security option that names a profile's file: what stands before it, and its path. */
export const SECCOMP_PROFILE = /^(seccomp[=:])(?!unconfined$|builtin$|\s*\{)(.*)$/s;

/** The text of a mapping's entry, where it is one. */
export function textOf(tree: MapTree, key: string): string | undefined {
  const value = tree.entries.get(key)?.value;
  return value?.kind === "scalar" && typeof value.value === "string" ? value.value : undefined;
}

/** An absolute path, also one of Windows or of a home, stays, as does nothing. */
function moved(path: string, directory: string): string {
  return /^[/~]|^[a-zA-Z]:|^\\|^$/.test(path) ? path : `./${cleanPath(`${directory}/${path}`)}`;
}

function textChange(change: (text: string) => string): Change {
  return (tree) =>
    tree.kind === "scalar" && typeof tree.value === "string" ? scalar(change(tree.value), tree.at) : tree;
}

/** The tree with each item of a list, or each value of a mapping, changed. */
function each(tree: Tree, change: Change): Tree {
  if (tree.kind === "list") return list(tree.items.map(change), tree.at);
  if (tree.kind !== "map") return tree;
  const entries = Array.from(tree.entries, ([key, entry]): [string, MapEntry] => [
    key,
    { ...entry, value: change(entry.value) },
  ]);
  return map(new Map(entries), tree.at);
}

/** The tree with some entries changed, each by its own function; `""` is for a scalar in the mapping's place. */
function changed(tree: Tree, changes: Readonly<Record<string, Change>>): Tree {
  if (tree.kind === "scalar") return changes[""]?.(tree) ?? tree;
  if (tree.kind !== "map") return tree;
  const entries = Array.from(tree.entries, ([key, entry]): [string, MapEntry] => {
    const change = Object.hasOwn(changes, key) ? changes[key] : undefined;
    return [key, change ? { ...entry, value: change(entry.value) } : entry];
  });
  return map(new Map(entries), tree.at);
}
