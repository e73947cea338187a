/** The files of jobs on a node: written whole, checked, kept where a container changed them, never through a link. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ProjectFiles } from "../src/executor_files.ts";
import { hash, JobFiles } from "../src/job_files.ts";
import type { FileSpec, MountSpec, ServiceSpec } from "../src/model_spec.ts";
import { spec } from "./cluster_fixture.ts";

let root: string;
let chunks: Map<string, Uint8Array>;
let fetched: number;
let wanted: FileSpec[];
let files: ProjectFiles;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cacophony-files-"));
  chunks = new Map();
  fetched = 0;
  wanted = [];
  files = node();
});

afterEach(() => rmSync(root, { recursive: true }));

/** A node that starts anew with the directory that there is. */
function node(): ProjectFiles {
  return new ProjectFiles({
    projectDirOf: (jobId) => join(root, jobId),
    specsOf: () => [spec({ files: wanted })],
    fetchChunk: async (chunkHash) => {
      fetched++;
      const chunk = chunks.get(chunkHash);
      if (!chunk) throw new Error("the master is away");
      return chunk;
    },
  });
}

/** A service that mounts the files, each by itself. */
function having(all: FileSpec[], ...folders: string[]): ServiceSpec {
  const mounts = [...all.map(({ path }) => path), ...folders].map((source, index): MountSpec => {
    return { type: "bind", source, target: `/m${index}`, read_only: false, create_host_path: true };
  });
  return spec({ files: all, mounts });
}

function sent(path: string, text: string): FileSpec {
  const all = new JobFiles(new Map([[path, Buffer.from(text)]]));
  const [file] = all.below(path);
  if (!file) throw new Error("no file");
  for (const [name, data] of all.chunks) chunks.set(name, data);
  return file;
}

function mounted(name: string, text: string, owner: { mode?: number; uid?: number; gid?: number } = {}): FileSpec {
  const all = new JobFiles(new Map());
  const file = all.mounted(name, Buffer.from(text), owner);
  for (const [key, data] of all.chunks) chunks.set(key, data);
  return file;
}

function read(path: string): string {
  return readFileSync(join(root, "job", path), "utf8");
}

test("ensure() writes files with their mode and owner, and asks for nothing that is there", async () => {
  const uid = process.getuid?.() ?? 0;
  const all = [
    sent("a/b.conf", "one"),
    sent("run.sh", "#!/bin/sh\n"),
    sent("empty", ""),
    mounted("pw", "x", { mode: 0o400, uid }),
  ];
  await files.ensure("job", having(all));
  expect(read("a/b.conf")).toBe("one");
  expect(read("empty")).toBe("");
  expect(all.map(({ path }) => (statSync(join(root, "job", path)).mode & 0o7777).toString(8))).toEqual([
    "644",
    "755",
    "644",
    "400",
  ]);
  expect(fetched).toBe(3);
  await node().ensure("job", having(all));
  expect(fetched).toBe(3);
});

test("ensure() keeps what a container changed until another content is sent, and writes again what was removed", async () => {
  await files.ensure("job", having([sent("a.conf", "one")]));
  writeFileSync(join(root, "job", "a.conf"), "changed");
  await node().ensure("job", having([sent("a.conf", "one")]));
  expect(read("a.conf")).toBe("changed");
  await files.ensure("job", having([sent("a.conf", "two")]));
  expect(read("a.conf")).toBe("two");
  rmSync(join(root, "job", "a.conf"));
  await files.ensure("job", having([sent("a.conf", "two")]));
  expect(read("a.conf")).toBe("two");
});

test("ensure() leaves the old file whole when the master is away or a part is damaged", async () => {
  await files.ensure("job", having([sent("a.conf", "one")]));
  const two = sent("a.conf", "two");
  chunks.delete(hash("two"));
  expect(files.ensure("job", having([two]))).rejects.toThrow(
    "the file ./a.conf of the job cannot be put on this node: the master is away",
  );
  chunks.set(hash("two"), Buffer.from("twO"));
  expect(files.ensure("job", having([two]))).rejects.toThrow("arrived damaged");
  await files.ensure("job", having([]));
  expect(read("a.conf")).toBe("one");
  expect(readdirSync(join(root, "job")).toSorted()).toEqual([".cacophony", "a.conf"]);
});

test("ensure() removes the files of secrets that no container of the job needs, and no file of the user's", async () => {
  const [old, next, other] = [mounted("pw", "one"), mounted("pw", "two"), mounted("key", "k")];
  await files.ensure("job", having([old, sent("a.conf", "one")]));
  wanted = [other];
  await files.ensure("job", having([other]));
  await files.ensure("job", having([next]));
  expect(readdirSync(join(root, "job", ".cacophony", "mounts")).toSorted()).toEqual(
    [next, other].map(({ path }) => path.slice(".cacophony/mounts/".length)).toSorted(),
  );
  expect(read("a.conf")).toBe("one");
});

test("ensure() removes what a directory was sent without, but neither the containers' own files nor through a link", async () => {
  await files.ensure(
    "job",
    having([sent("conf.d/a", "one"), sent("conf.d/b", "two"), sent("else", "three")], "conf.d"),
  );
  writeFileSync(join(root, "job", "conf.d", "own"), "kept");
  await node().ensure("job", having([sent("conf.d/a", "one")], "conf.d"));
  expect(readdirSync(join(root, "job", "conf.d")).toSorted()).toEqual(["a", "own"]);
  expect(read("else")).toBe("three");
  const moved = join(root, "moved");
  await files.ensure("job", having([sent("x/y/a", "one"), sent("x/b", "two")], "x"));
  renameSync(join(root, "job", "x", "y"), moved);
  symlinkSync(moved, join(root, "job", "x", "y"));
  await files.ensure("job", having([sent("x/b", "two")], "x"));
  expect(readdirSync(moved)).toEqual(["a"]);
});

test("ensure() follows no link that a container has put into the directory", async () => {
  const outside = join(root, "outside");
  mkdirSync(outside);
  mkdirSync(join(root, "job"));
  symlinkSync(outside, join(root, "job", "conf"));
  expect(files.ensure("job", having([sent("conf/a", "x")]))).rejects.toThrow("is in the way of a file of the job");
  writeFileSync(join(outside, "target"), "untouched");
  symlinkSync(join(outside, "target"), join(root, "job", "b"));
  await files.ensure("job", having([sent("b", "mine")]));
  expect(readFileSync(join(outside, "target"), "utf8")).toBe("untouched");
  expect(lstatSync(join(root, "job", "b")).isFile()).toBe(true);
  expect(readdirSync(outside)).toEqual(["target"]);
});

test("ensure() takes the place of an empty directory, and not of one that holds something", async () => {
  mkdirSync(join(root, "job", "a.conf"), { recursive: true });
  await files.ensure("job", having([sent("a.conf", "one")]));
  expect(read("a.conf")).toBe("one");
  mkdirSync(join(root, "job", "full", "data"), { recursive: true });
  expect(files.ensure("job", having([sent("full", "x")]))).rejects.toThrow(
    "the file ./full of the job cannot be put on this node",
  );
});

test("calls for one job wait for each other", async () => {
  const all = Array.from({ length: 20 }, (_, index) => sent(`f${index}`, `${index}`));
  await Promise.all(all.map((file) => files.ensure("job", having([file]))));
  await node().ensure("job", having(all));
  expect(fetched).toBe(20);
});
