/** Secrets on a node: files in memory alone, whole or not at all, private, and gone when nothing needs them. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { secretPath } from "../src/container_options.ts";
import { systemClock } from "../src/clock.ts";
import { SecretFiles } from "../src/executor_secrets.ts";
import { type Wanted, Worker } from "../src/executor_worker.ts";
import type { AllocationRecord } from "../src/model.ts";
import type { SecretMount, ServiceSpec } from "../src/model_spec.ts";
import { noOverlay, spec } from "./cluster_fixture.ts";
import { FakeEngine } from "./fake_engine.ts";

const [UID, GID] = [process.getuid?.() ?? 0, process.getgid?.() ?? 0];
/** Only root can give files away. */
const OTHER = UID === 0 ? { uid: 7, gid: 8 } : { uid: UID, gid: GID };

let memory: string;
let disk: string;
let fetched: string[];
let fetching: Promise<void>;

beforeEach(() => {
  memory = mkdtempSync("/dev/shm/cacophony-test-");
  disk = mkdtempSync(join(tmpdir(), "cacophony-secrets-"));
  fetched = [];
  fetching = Promise.resolve();
});
afterEach(() => {
  rmSync(memory, { recursive: true, force: true });
  rmSync(disk, { recursive: true });
});

function node({ nodeId = "n1", roots = [memory] }: { nodeId?: string; roots?: string[] } = {}): SecretFiles {
  return new SecretFiles({
    nodeId,
    roots,
    fetch: async (id) => {
      fetched.push(id);
      await fetching;
      if (id === "gone") throw new Error("the master is away");
      return Buffer.from(`value of ${id}`);
    },
  });
}

function mount(secret_id: string, more: Partial<SecretMount> = {}): SecretMount {
  return { type: "secret", name: "pw", secret_id, target: "/run/secrets/pw", read_only: true, mode: 0o444, ...more };
}

function having(...mounts: SecretMount[]): ServiceSpec {
  return spec({ mounts });
}

function names(files: SecretFiles): string[] {
  return readdirSync(files.dir).toSorted();
}

test("ensure() writes each secret with its owner and mode into a directory that nobody else can look into", async () => {
  const files = node();
  const mounts = [mount("a"), mount("a", { mode: 0o400, ...OTHER }), mount("b", { uid: OTHER.uid })];
  await files.ensure(having(...mounts));
  const seen = mounts.map((one) => {
    const path = secretPath(one, files.dir);
    const { mode, uid, gid } = statSync(path);
    return [readFileSync(path, "utf8"), mode & 0o7777, uid, gid];
  });
  expect(seen).toEqual([
    ["value of a", 0o444, UID, GID],
    ["value of a", 0o400, OTHER.uid, OTHER.gid],
    ["value of b", 0o444, OTHER.uid, GID],
  ]);
  expect(names(files)).toHaveLength(3);
  for (const directory of [files.dir, dirname(files.dir)]) expect(statSync(directory).mode & 0o777).toBe(0o700);
});

test("ensure() asks for nothing that is there, at once or later, also as a new process, and writes again what is gone", async () => {
  const [files, wanted] = [node(), having(mount("a"))];
  const gate = Promise.withResolvers<void>();
  fetching = gate.promise;
  const both = Promise.all([files.ensure(wanted), files.ensure(wanted)]);
  gate.resolve();
  await both;
  await node().ensure(wanted);
  expect(fetched).toEqual(["a"]);
  // As a reboot leaves it.
  rmSync(dirname(files.dir), { recursive: true });
  await files.ensure(wanted);
  expect(fetched).toEqual(["a", "a"]);
  expect(readFileSync(secretPath(mount("a"), files.dir), "utf8")).toBe("value of a");
});

test("keepOnly() takes out what nothing mounts, also what an earlier process left or had half written", async () => {
  const first = node();
  await first.ensure(having(mount("a"), mount("b")));
  writeFileSync(join(first.dir, "c-444--.new"), "half");
  const second = node();
  second.keepOnly([having(mount("b")), spec()]);
  expect(names(second)).toEqual(["b-444--"]);
  second.keepOnly([]);
  expect(names(second)).toEqual([]);
  await second.ensure(having(mount("a")));
  expect(names(second)).toEqual(["a-444--"]);
});

test("keepOnly() leaves alone what is being written, and takes it out after", async () => {
  const files = node();
  const gate = Promise.withResolvers<void>();
  fetching = gate.promise;
  const writing = files.ensure(having(mount("a")));
  files.keepOnly([]);
  gate.resolve();
  await writing;
  expect(names(files)).toEqual(["a-444--"]);
  files.keepOnly([]);
  expect(names(files)).toEqual([]);
});

test("two nodes of one machine do not touch each other's", async () => {
  const [one, other] = [node(), node({ nodeId: "n2" })];
  await Promise.all([one, other].map((files) => files.ensure(having(mount("a")))));
  one.keepOnly([]);
  expect(names(one)).toEqual([]);
  expect(names(other)).toEqual(["a-444--"]);
});

test("the first directory that is a tmpfs is taken; without one there is a reason, and nothing is asked for or written", async () => {
  expect(node({ roots: [disk, memory] }).dir).toStartWith(memory);
  const files = node({ roots: [disk, join(disk, "none")] });
  expect(files.fault).toBe(`no tmpfs at ${disk} or ${join(disk, "none")}`);
  const refused = files.ensure(having(mount("a")));
  await expect(refused).rejects.toThrow("the secret pw cannot be put on this node: the node has no place for secrets");
  expect(fetched).toEqual([]);
  expect(readdirSync(disk)).toEqual([]);
});

test("a directory that is a link, or leads to a disk, is refused", async () => {
  const files = node();
  const parent = dirname(files.dir);
  symlinkSync(disk, parent);
  await expect(files.ensure(having(mount("a")))).rejects.toThrow(`${parent} is no directory of this user: remove it`);
  expect(readdirSync(disk)).toEqual([]);
  rmSync(parent);
  mkdirSync(parent);
  chmodSync(parent, 0o755);
  symlinkSync(disk, files.dir);
  await expect(files.ensure(having(mount("a")))).rejects.toThrow("is no directory of this user");
  expect(readdirSync(disk)).toEqual([]);
});

test("a value that the master does not give is a reason, and the next try asks again", async () => {
  const files = node();
  const wanted = having(mount("gone"));
  const reason = "the secret pw cannot be put on this node: the master is away";
  await expect(files.ensure(wanted)).rejects.toThrow(reason);
  await expect(files.ensure(wanted)).rejects.toThrow(reason);
  expect(fetched).toEqual(["gone", "gone"]);
  expect(existsSync(secretPath(mount("gone"), files.dir))).toBe(false);
});

/** A worker on the engine, with its secrets below `root`; what it puts on the disk is below `disk`. */
function worker(engine: FakeEngine, root = memory): Worker {
  return new Worker({
    engine,
    clock: systemClock,
    random: () => 0,
    owner: { clusterId: "c", nodeId: "n1" },
    routes: () => [],
    isOwn: () => true,
    lookAgain: async () => {},
    projectsDir: disk,
    nodeLogin: async () => undefined,
    onNamed: () => {},
    internalReaches: () => false,
    overlay: noOverlay(),
    specsOf: () => [],
    fetchChunk: () => Promise.reject(new Error("no files here")),
    secrets: { roots: [root], fetch: async (id) => Buffer.from(`value of ${id}`) },
  });
}

const allocation: AllocationRecord = {
  ...{ allocation_id: "a1", job_id: "job", incarnation: "i", service_name: "app", slot: 1, node_id: "n1" },
  ...{ spec_hash: "s", job_version: 1, desired: "run", created_at: 0 },
};

test("a container is started again only once its secrets are there, and made anew where it looks for them elsewhere", async () => {
  const engine = new FakeEngine({ clock: systemClock, random: () => 0 });
  const image = [...engine.images][0] ?? "";
  const wanted: Wanted = { allocation, spec: { ...having(mount("a")), image } };
  const { signal } = new AbortController();
  const at = () => {};
  const first = worker(engine);
  const id = await first.create(wanted, {
    ...{ signal, at, settled: () => ({}), joined: undefined },
    ...{ agree: async (digest: string) => digest, onProgress: () => {} },
  });
  engine.kill(id);
  rmSync(first.secrets.dir, { recursive: true });
  const [container] = engine.containers;
  if (!container) throw new Error("no container");
  await first.start(container, { wanted, signal, at });
  expect(engine.running("a1").map((one) => one.id)).toEqual([id]);
  expect(names(first.secrets)).toEqual(["a-444--"]);
  expect(existsSync(join(disk, "job"))).toBe(false);

  engine.kill(id);
  const other = join(memory, "other");
  mkdirSync(other);
  const moved = worker(engine, other).start(container, { wanted, signal, at });
  await expect(moved).rejects.toThrow(`this node has them at ${other}/cacophony-${UID}/n1 now: it is made anew`);
  expect(engine.containers).toEqual([]);
});
