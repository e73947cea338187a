/** Bind sources below a project directory: none leads out of it by a link, before a start and after it. */
import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { seeSources } from "../src/executor_sources.ts";
import type { MountSpec } from "../src/model_spec.ts";
import { cleanUp, ids, Node } from "./executor_fixture.ts";

let projects: string;
let job: string;

beforeEach(() => {
  projects = mkdtempSync(join(tmpdir(), "cacophony-sources-"));
  job = join(projects, "job");
  mkdirSync(join(job, "data", "deep"), { recursive: true });
  mkdirSync(join(projects, "other", "data"), { recursive: true });
  writeFileSync(join(job, "a.conf"), "");
});

afterEach(() => rmSync(projects, { recursive: true }));
afterAll(cleanUp);

function look(source: string, root = projects) {
  return seeSources([{ source: source.startsWith("/") ? source : join(job, source), target: "/m" }], root);
}

describe("point 2: a bind source below the project directory", () => {
  test("may be a directory, a file, or not there yet", () => {
    for (const source of ["data", "data/deep", "a.conf", "none", "none/at/all", "a.conf/below"])
      expect(look(source)).toBeDefined();
  });

  test("is looked at wherever the path begins, and nothing else is", () => {
    symlinkSync("/", join(job, "x"));
    expect(() => look(`${projects}/./job//x`)).toThrow();
    expect(() => look(`${projects}/none/../job/x/etc`)).toThrow();
    for (const source of ["/etc", projects, job, `${projects}-more/job/x`, `${job}/x/..`])
      expect(look(source)).toBeUndefined();
  });

  test("is refused where it is a link that leaves the project directory, or passes through one", () => {
    const links = {
      root: "/",
      out: "../other/data",
      long: "data/../../other",
      absolute: `${projects}/other`,
      back: `${job}/data/../../other`,
      gone: "../none",
      twice: "out",
      loop: "loop",
    };
    for (const [name, target] of Object.entries(links)) symlinkSync(target, join(job, name));
    for (const name of Object.keys(links))
      for (const source of [name, `${name}/etc`])
        expect(() => look(source)).toThrow(`the bind source ${join(job, source)} `);
    symlinkSync("/", join(job, "data", "x"));
    expect(() => look("data/x/etc")).toThrow(
      `the bind source ${job}/data/x/etc passes through ${job}/data/x, a symbolic link to /: a relative bind stays in the job's project directory; bind the absolute path that is meant`,
    );
  });

  test("may be a link that stays in the project directory", () => {
    const links = {
      current: "data/deep",
      up: "data/../a.conf",
      absolute: `${job}/data`,
      chain: "absolute/deep",
      later: "none",
    };
    for (const [name, target] of Object.entries(links)) symlinkSync(target, join(job, name));
    for (const source of [...Object.keys(links), "absolute/deep"]) expect(look(source)).toBeDefined();
    // Also where the data directory is reached by a link.
    const alias = `${projects}-alias`;
    symlinkSync(projects, alias);
    try {
      expect(look(`${alias}/job/absolute`, alias)).toBeDefined();
      symlinkSync(`${alias}/job/data`, join(job, "aliased"));
      expect(look(`${alias}/job/aliased`, alias)).toBeDefined();
      symlinkSync("/", join(job, "x"));
      expect(() => look(`${alias}/job/x`, alias)).toThrow();
    } finally {
      rmSync(alias);
    }
  });

  test("is looked at again after the start, where another directory of the project is no harm", () => {
    const seen = look("data");
    seen?.check(undefined);
    renameSync(join(job, "data"), join(job, "old"));
    mkdirSync(join(job, "data"));
    seen?.check(undefined);
    rmSync(join(job, "data"), { recursive: true });
    symlinkSync("/", join(job, "data"));
    expect(() => seen?.check(undefined)).toThrow("a symbolic link to /");
  });
});

const BIND: MountSpec = { type: "bind", source: "x", target: "/x", read_only: false, create_host_path: true };

async function nodeWithLink(): Promise<{ node: Node; link: string }> {
  const node = await new Node().start();
  const project = join(node.dataDir, "projects", "job");
  mkdirSync(project, { recursive: true });
  return { node, link: join(project, "x") };
}

test("point 2: a container whose source was made a link to / is not created, and its allocation says why", async () => {
  const { node, link } = await nodeWithLink();
  symlinkSync("/", link);
  node.assign(ids(["a"], { spec: { mounts: [BIND] } }));
  await node.until(() => node.states()["a"] === "failed");
  expect(node.status("a")?.error).toContain(`passes through ${link}, a symbolic link to /`);
  expect(node.engine.containers).toEqual([]);
  rmSync(link);
  await node.until(() => node.states()["a"] === "running");
});

test("point 2: a container that ended is not started again once its source is a link to /, also without a master", async () => {
  const { node, link } = await nodeWithLink();
  mkdirSync(link);
  node.assign(ids(["a"], { spec: { mounts: [BIND] } }));
  await node.until(() => node.states()["a"] === "running");
  const [container] = node.engine.containers;
  rmSync(link, { recursive: true });
  symlinkSync("/", link);
  await node.restart();
  node.engine.kill(container?.id ?? "", 1);
  await node.until(() => node.status("a")?.error !== undefined || node.engine.calls.get("start") !== 1);
  expect(node.status("a")?.error).toContain("a symbolic link to /");
  expect(node.engine.calls.get("start")).toBe(1);
});

test("point 2: a container whose source becomes a link while it starts is ended at once", async () => {
  const { node, link } = await nodeWithLink();
  mkdirSync(link);
  const { engine } = node;
  const start = engine.start.bind(engine);
  engine.start = async (id) => {
    rmSync(link, { recursive: true, force: true });
    symlinkSync("/", link);
    await start(id);
  };
  node.assign(ids(["a"], { spec: { mounts: [BIND] } }));
  await node.until(() => node.states()["a"] === "failed");
  expect(node.status("a")?.error).toContain("a symbolic link to /");
  expect(engine.containers).toEqual([]);
  engine.start = start;
  expect(existsSync(link)).toBe(true);
  rmSync(link);
  await node.until(() => node.states()["a"] === "running");
});
