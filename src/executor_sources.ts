/**
 * @module The bind sources of a container that lie in a job's project directory, which containers may have written to: none leads
 * out of it by a symbolic link.
 *
 * The node looks just before a start and again just after it, since the Engine finds the path by itself in between. What was
 * mounted must be one of the two that the node saw. That ends what got out at once; only a mount that the Engine gets by a descriptor
 * could prevent it, and no Engine takes one.
 *
 * A link that stays in the project directory is followed, as compose does (`current -> releases/7`).
 */
import { lstatSync, readFileSync, realpathSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Bind, Container } from "./converge.ts";
import { BY_PATH, Directory, identityOf, SAFE } from "./executor_tree.ts";
import { Refusal } from "./executor_words.ts";

/** As the kernel counts (path_resolution(7)). */
const MAX_LINKS = 40;

/** What the node saw of a container's sources before its start. */
export type SeenSources = { check: (container: Pick<Container, "id" | "pid"> | undefined) => void };

/**
 * Looks at the sources below `projectsDir`, which has a directory for each job; undefined: there are none. After the start,
 * `check` looks again, and at what the container's first process has mounted, if it is known.
 * @throws {Refusal} if a source leads out of its project directory; so does `check`.
 */
export function seeSources(binds: readonly Bind[], projectsDir: string): SeenSources | undefined {
  const own = binds.flatMap((bind) => {
    const [job, ...path] = partsBelow(resolve(projectsDir), resolve(bind.source)) ?? [];
    return job === undefined || path.length === 0 ? [] : [{ bind, project: join(projectsDir, job), path }];
  });
  if (own.length === 0) return undefined;
  const seen = own.map((one) => ({ ...one, before: find(one.project, one.path) }));
  return {
    check: (container) => {
      for (const { bind, project, path, before } of seen) {
        const after = find(project, path);
        const mounted = container && mountedAt(container, bind.target);
        if (mounted === undefined || mounted === before || mounted === after) continue;
        throw new Refusal(
          `the bind source ${bind.source} was put in another place while the container started: ended, as it may have got what is not the job's`,
        );
      }
    },
  };
}

/** Which file or directory a source is; undefined: nothing is there yet, or something that the Engine refuses. */
function find(project: string, path: readonly string[]): string | undefined {
  let root: Directory;
  try {
    // Where there is no safe address, the Engine's look is no safer either.
    root = Directory.open(project, { addresses: [...SAFE, BY_PATH] });
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
  /** From the project directory down to where the look is now. */
  const open = [root];
  try {
    return descend(open, { project, path });
  } catch (error) {
    if (!isDenied(error)) throw error;
    throw new Refusal(
      `the bind source ${join(project, ...path)} lies in a directory that this node's user may not look into: open that one, or run the node as root`,
      { cause: error },
    );
  } finally {
    for (const directory of open) directory[Symbol.dispose]();
  }
}

function descend(
  open: Directory[],
  { project, path }: { project: string; path: readonly string[] },
): string | undefined {
  const rest = [...path];
  const leaves = (what: string) =>
    new Refusal(
      `the bind source ${join(project, ...path)} ${what}: a relative bind stays in the job's project directory; bind the absolute path that is meant`,
    );
  for (let links = 0; ;) {
    const at = open.at(-1);
    const name = rest.shift();
    if (!at) throw leaves("leads out of it by a symbolic link");
    if (name === "" || name === ".") continue;
    if (name === "..") {
      open.pop()?.[Symbol.dispose]();
      continue;
    }
    if (name === undefined) return at.identity;
    const found = at.look(name);
    if (!found) return undefined;
    if (found.isSymbolicLink()) {
      const target = at.link(name) ?? "";
      if (++links > MAX_LINKS) throw leaves("passes through more than 40 symbolic links");
      const parts = target.startsWith("/")
        ? (partsBelow(resolve(project), target) ?? partsBelow(realpathSync(project), target))
        : target.split("/");
      if (!parts) throw leaves(`passes through ${join(at.path, name)}, a symbolic link to ${target}`);
      if (target.startsWith("/")) for (const directory of open.splice(1)) directory[Symbol.dispose]();
      rest.unshift(...parts);
    } else if (rest.length === 0) {
      // Not opened: a container may have closed its own directory to the node's user, and the Engine needs no more than this.
      return identityOf(found);
    } else if (found.isDirectory()) {
      const next = at.walk(name);
      if (!next)
        throw new Refusal(`the bind source ${join(project, ...path)} changes while it is looked at: try again`);
      open.push(next);
    } else {
      return undefined;
    }
  }
}

/** Names on the way from `root` to `path`, which may begin with `/`; undefined: it does not lie there. */
function partsBelow(root: string, path: string): string[] | undefined {
  if (path === root) return [];
  return path.startsWith(`${root}/`) ? path.slice(root.length + 1).split("/") : undefined;
}

/** What the container has mounted at a path; undefined where that can't be told for sure. */
function mountedAt({ id, pid }: Pick<Container, "id" | "pid">, target: string): string | undefined {
  if (pid === undefined) return undefined;
  try {
    // A node in a PID namespace of its own sees another process under that number.
    if (!readFileSync(`/proc/${pid}/cgroup`, "utf8").includes(id)) return undefined;
    const mounts = readFileSync(`/proc/${pid}/mountinfo`, "utf8").split("\n");
    const points = mounts.map((line) => unescaped(line.split(" ")[4] ?? ""));
    const point = resolve("/", target);
    // Below a link in the image the point has another path; with two mounts on it nobody knows which one is meant.
    if (points.filter((one) => one === point).length !== 1) return undefined;
    return identityOf(lstatSync(`/proc/${pid}/root${point}`, { bigint: true }));
  } catch {
    return undefined;
  }
}

/** A path as /proc writes it: octal for what would part its fields. */
function unescaped(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, code: string) => String.fromCharCode(Number.parseInt(code, 8)));
}

function isDenied(error: unknown): boolean {
  return (error as { code?: string }).code === "EACCES";
}

function isAbsent(error: unknown): boolean {
  const { code } = error as { code?: string };
  return code === "ENOENT" || code === "ENOTDIR";
}
