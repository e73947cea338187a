/** The files of jobs on a node: written whole, checked, kept where a container changed them, never through a link. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
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
import { dirname, join } from "node:path";
import { ProjectFiles, removeProject } from "../src/executor_files.ts";
import { Directory } from "../src/executor_tree.ts";
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

test("ensure() keeps what was sent to a directory of which nothing is sent any more", async () => {
  await files.ensure("job", having([sent("a.conf", "one")], "."));
  await node().ensure("job", having([], "."));
  expect(read("a.conf")).toBe("one");
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

/** Calls `work` often while another process exchanges two paths; returns how the calls ended. */
async function whileSwapping(
  [a, b]: [string, string],
  { times, work }: { times: number; work: (count: number) => Promise<unknown> },
): Promise<{ done: number; refused: number }> {
  const swapper = Bun.spawn([process.execPath, join(import.meta.dir, "swap.ts"), a, b], { stdout: "pipe" });
  try {
    await swapper.stdout.getReader().read();
    const ends = { done: 0, refused: 0 };
    for (let count = 0; count < times; count++)
      await work(count).then(
        () => ends.done++,
        () => ends.refused++,
      );
    return ends;
  } finally {
    swapper.kill("SIGKILL");
    await swapper.exited;
  }
}

test("point 8: no sent file lands outside while a container exchanges a directory and a link", async () => {
  const outside = join(root, "outside");
  mkdirSync(join(outside, "sub"), { recursive: true });
  mkdirSync(join(root, "job", "x", "sub"), { recursive: true });
  symlinkSync(outside, join(root, "job", "y"));
  const ends = await whileSwapping([join(root, "job", "x"), join(root, "job", "y")], {
    times: 2_000,
    work: (count) => files.ensure("job", having([sent("x/sub/a", `${count}`), sent("x/b", `${count}`)], "x")),
  });
  expect(readdirSync(outside, { recursive: true })).toEqual(["sub"]);
  // Both ways came up: otherwise nothing was shown.
  expect(Math.min(ends.done, ends.refused)).toBeGreaterThan(50);
});

/** A directory outside of the project, with files of the same names. */
function outsideWith(names: readonly string[]): string {
  const outside = join(root, "outside");
  for (const name of names) {
    mkdirSync(join(outside, dirname(name)), { recursive: true });
    writeFileSync(join(outside, name), "kept");
  }
  return outside;
}

test("point 8: no file outside is removed as one that is no longer sent while a container exchanges a directory and a link", async () => {
  const names = Array.from({ length: 5 }, (_, count) => `sub/f${count}`);
  const outside = outsideWith(names);
  mkdirSync(join(root, "job", "x", "sub"), { recursive: true });
  symlinkSync(outside, join(root, "job", "y"));
  const all = names.map((name) => sent(`x/${name}`, "gone"));
  const stays = sent("x/stays", "here");
  await whileSwapping([join(root, "job", "x"), join(root, "job", "y")], {
    times: 1_000,
    work: (count) => files.ensure("job", having(count % 2 === 0 ? [stays, ...all] : [stays], "x")),
  });
  expect(readdirSync(join(outside, "sub"))).toHaveLength(names.length);
  for (const name of names) expect(readFileSync(join(outside, name), "utf8")).toBe("kept");
});

test("point 8: nothing outside is removed with a project while a container exchanges a directory and a link", async () => {
  const names = Array.from({ length: 20 }, (_, count) => `sub/f${count}`);
  const outside = outsideWith(names);
  const job = join(root, "job");
  await whileSwapping([join(job, "x"), join(job, "y")], {
    times: 200,
    work: async () => {
      mkdirSync(join(job, "x", "sub"), { recursive: true });
      for (const name of names) writeFileSync(join(job, "x", name), "gone");
      symlinkSync(outside, join(job, "y"));
      await removeProject(job);
      expect(existsSync(job)).toBe(false);
    },
  });
  expect(readdirSync(join(outside, "sub"))).toHaveLength(names.length);
});

test("point 8: a FIFO in the place of the record or of a sent file holds nothing up", async () => {
  await files.ensure("job", having([sent("a.conf", "one")]));
  const record = join(root, "job", ".cacophony", "written.json");
  for (const path of [record, join(root, "job", "a.conf")]) {
    rmSync(path);
    Bun.spawnSync(["mkfifo", path]);
  }
  await node().ensure("job", having([sent("a.conf", "one")]));
  expect(read("a.conf")).toBe("one");
  expect(lstatSync(record).isFile()).toBe(true);
});

test("point 8: a record that a container wrote removes nothing outside, and a path of the master's writes nothing there", async () => {
  const outside = outsideWith(["f"]);
  await files.ensure("job", having([sent("a.conf", "one")]));
  writeFileSync(
    join(root, "job", ".cacophony", "written.json"),
    JSON.stringify([
      [".cacophony/../../outside/f", "v"],
      ["/etc/x", "v"],
      ["..", "v"],
      [".cacophony/gone", "v"],
    ]),
  );
  await node().ensure("job", having([sent("a.conf", "one")]));
  expect(readdirSync(outside)).toEqual(["f"]);
  expect(files.ensure("job", having([{ ...sent("b", "x"), path: "../outside/b" }]))).rejects.toThrow();
  expect(files.ensure("job", having([{ ...sent("b", "x"), path: ".." }]))).rejects.toThrow();
  expect(readdirSync(outside)).toEqual(["f"]);
});

test("point 8: a project goes with names that are no text, FIFOs, links, and directories in directories without end", async () => {
  const outside = outsideWith(["f"]);
  const job = join(root, "job");
  using made = Directory.make(job);
  made.makeWay("a/".repeat(1_500))[Symbol.dispose]();
  Bun.spawnSync(["mkfifo", join(job, "fifo")]);
  symlinkSync(outside, join(job, "link"));
  writeFileSync(Buffer.concat([Buffer.from(`${job}/`), Buffer.from([0x66, 0xff, 0xfe])]), "");
  const start = performance.now();
  await removeProject(job);
  expect(performance.now() - start).toBeLessThan(10_000);
  expect(existsSync(job)).toBe(false);
  expect(readdirSync(outside)).toEqual(["f"]);
  // A link that an operator put in the place of the directory goes, and what it leads to stays.
  symlinkSync(outside, job);
  await removeProject(job);
  expect(readdirSync(outside)).toEqual(["f"]);
  await removeProject(join(root, "none", "job"));
});

test("point 8: where no path leads to an open directory nothing is done in it", () => {
  expect(() => Directory.open(root, { addresses: [() => "/none", () => tmpdir()] })).toThrow(
    "mount /proc on this machine",
  );
  using found = Directory.open(root, { addresses: [() => "/none", ({ path }) => path] });
  expect(found.look("none")).toBeUndefined();
});

/** What `ProjectFiles` made under a umask, in a process of its own: modes by path. */
function modesUnder(umask: string, files: FileSpec[]): Record<string, string> {
  const program = `
    import { ProjectFiles } from ${JSON.stringify(join(import.meta.dir, "../src/executor_files.ts"))};
    const { files, chunks, root } = JSON.parse(await Bun.stdin.text());
    const all = new ProjectFiles({
      projectDirOf: (jobId) => root + "/projects/" + jobId,
      specsOf: () => [],
      fetchChunk: async (name) => Buffer.from(chunks[name], "base64"),
    });
    await all.ensure("job", { files, mounts: [] });`;
  const input = {
    files,
    root,
    chunks: Object.fromEntries(Array.from(chunks, ([name, data]) => [name, Buffer.from(data).toString("base64")])),
  };
  const { exitCode, stderr } = Bun.spawnSync(
    ["sh", "-c", `umask ${umask}; exec "$@"`, "sh", process.execPath, "-e", program],
    {
      stdin: Buffer.from(JSON.stringify(input)),
      stderr: "pipe",
    },
  );
  if (exitCode !== 0) throw new Error(stderr.toString());
  const paths = readdirSync(join(root, "projects"), { recursive: true }).map(String);
  return Object.fromEntries(
    ["", ...paths].map((path) => [path, (statSync(join(root, "projects", path)).mode & 0o7777).toString(8)]),
  );
}

for (const umask of ["077", "000", "027"])
  test(`point 11: what containers see has its documented mode under a umask of ${umask}`, () => {
    const mount = mounted("pw", "x", { mode: 0o444 });
    const modes = modesUnder(umask, [sent("conf.d/sub/a.conf", "one"), sent("run.sh", "#!/bin/sh\n"), mount]);
    expect(modes).toEqual({
      "": "755",
      job: "755",
      "job/conf.d": "755",
      "job/conf.d/sub": "755",
      "job/conf.d/sub/a.conf": "644",
      "job/run.sh": "755",
      "job/.cacophony": "755",
      "job/.cacophony/mounts": "755",
      [`job/${mount.path}`]: "444",
      "job/.cacophony/written.json": "600",
    });
  });

test("point 11: directories that an earlier version closed by its umask are opened once, and later what a container does stays", async () => {
  const all = [sent("conf.d/sub/a.conf", "one")];
  await files.ensure("job", having(all));
  const folders = ["", "conf.d", "conf.d/sub"].map((path) => join(root, "job", path));
  const modes = () => folders.map((path) => (statSync(path).mode & 0o777).toString(8));
  for (const folder of folders) chmodSync(folder, 0o700);
  await node().ensure("job", having(all));
  expect(modes()).toEqual(["700", "700", "700"]);
  const record = join(root, "job", ".cacophony", "written.json");
  const entries = JSON.parse(readFileSync(record, "utf8")) as [string, string][];
  writeFileSync(record, JSON.stringify(entries.filter(([path]) => path !== ".cacophony/modes")));
  await node().ensure("job", having(all));
  expect(modes()).toEqual(["755", "755", "755"]);
});
