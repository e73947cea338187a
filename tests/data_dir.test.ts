/** Modes of the data directory of a process, whatever its umask is, and of what earlier versions left. */
import { Database } from "bun:sqlite";
import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DataDir, type Identity, identityIn, newIdentity, writePrivately } from "../src/data_dir.ts";
import { waitUntil } from "./wait.ts";

let dir: string;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cacophony-data-"));
});

afterEach(() => rmSync(dir, { recursive: true }));

function modeOf(path: string): string {
  return (statSync(path).mode & 0o7777).toString(8);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const address = server.address();
  server.close();
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

/** Runs a node without an Engine under a umask until it answers, and gives the modes in its data directory then. */
async function modesOfNode(umask: string, dataDir: string): Promise<Record<string, string>> {
  const port = await freePort();
  const main = join(import.meta.dir, "../src/main.ts");
  const options = [
    "--data-dir",
    dataDir,
    "--bind-addr",
    `127.0.0.1:${port}`,
    "--docker-host",
    `unix://${dir}/none.sock`,
  ];
  const node = Bun.spawn(
    [
      "sh",
      "-c",
      `umask ${umask}; exec "$@"`,
      "sh",
      process.execPath,
      main,
      "bootstrap",
      ...options,
      "--network",
      "none",
    ],
    { stdout: "ignore", stderr: "pipe" },
  );
  try {
    await waitUntil(
      "the node to answer",
      () =>
        fetch(`http://127.0.0.1:${port}/cluster/status`).then(
          ({ status }) => status,
          () => 0,
        ),
      { until: (status) => status === 200 || node.exitCode !== null, timeoutMs: 30_000 },
    );
    if (node.exitCode !== null) throw new Error(await node.stderr.text());
    const names = readdirSync(dataDir).filter((name) => name !== "other");
    return Object.fromEntries(["", ...names].map((name) => [name, modeOf(join(dataDir, name))]));
  } finally {
    node.kill("SIGKILL");
    await node.exited;
  }
}

for (const umask of ["000", "022", "077"])
  test(`point 11: a new data directory and all that is in it are for their owner alone under a umask of ${umask}`, async () => {
    const { "": own, ...files } = await modesOfNode(umask, join(dir, "new"));
    expect(own).toBe("700");
    expect(Object.keys(files)).toEqual(
      expect.arrayContaining(["lock", "node.json", "cluster.db", "cluster.db-wal", "cluster.db-shm"]),
    );
    expect([...new Set(Object.values(files))]).toEqual(["600"]);
  });

test("point 11: what an earlier version left open in an open data directory is closed, and the directory stays as it is", async () => {
  const dataDir = join(dir, "old");
  mkdirSync(dataDir);
  chmodSync(dataDir, 0o755);
  await modesOfNode("022", dataDir);
  // The key of the cluster is refused when others can read it.
  for (const name of readdirSync(dataDir)) if (name !== "cluster.key") chmodSync(join(dataDir, name), 0o644);
  writeFileSync(join(dataDir, "other"), "of the operator");
  chmodSync(join(dataDir, "other"), 0o644);
  const { "": own, ...files } = await modesOfNode("022", dataDir);
  expect(own).toBe("755");
  expect([...new Set(Object.values(files))]).toEqual(["600"]);
  expect(modeOf(join(dataDir, "other"))).toBe("644");
});

test("point 11: a file that an unfinished write left open does not open the next one, and a link is not followed", () => {
  const [path, outside] = [join(dir, "images.json"), join(dir, "outside")];
  writeFileSync(`${path}.new`, "half");
  chmodSync(`${path}.new`, 0o666);
  writePrivately(path, "[]");
  expect(modeOf(path)).toBe("600");
  writeFileSync(outside, "kept");
  chmodSync(outside, 0o644);
  symlinkSync(outside, join(dir, "restarts.json"));
  const data = DataDir.open(dir);
  expect(data.exposed).toEqual([]);
  data.close();
  expect(modeOf(outside)).toBe("644");
});

test("point 11: the lock that something wrote over is made again for its owner alone", () => {
  writeFileSync(join(dir, "lock"), "x".repeat(5_000));
  chmodSync(join(dir, "lock"), 0o644);
  const umask = process.umask(0);
  try {
    DataDir.open(dir).close();
  } finally {
    process.umask(umask);
  }
  expect(modeOf(join(dir, "lock"))).toBe("600");
  new Database(join(dir, "lock")).close();
});

/** Of what is written in the background, the one peer. */
function identityBeside(): string | undefined {
  return (JSON.parse(readFileSync(join(dir, "node.json.next"), "utf8")) as Identity).peers[0]?.node_id;
}

const peer = (n: number) => ({ node_id: `n${n}`, address: `10.0.0.${n}:9000` });

test("point 7: where other nodes are is written without anybody waiting for it, and what is not learnt again at once", async () => {
  const data = DataDir.open(dir);
  const first: Identity = { ...newIdentity({ role: "worker", node_id: "n" }), cluster_id: "c", seen_term: 1 };
  data.save(first);
  expect(identityIn(dir)).toEqual(first);
  for (let n = 1; n <= 20; n++) data.save({ ...first, peers: [peer(n)] });
  expect(identityIn(dir)).toEqual(first);
  // What comes in between is on the disk at once, with all that came before it, and stays there.
  const second: Identity = { ...first, seen_term: 2, peers: [peer(21)] };
  data.save(second);
  expect(identityIn(dir)).toEqual(second);
  const third: Identity = { ...second, peers: [peer(22)] };
  data.save(third);
  await waitUntil("the newest peers to be written", () => identityIn(dir), {
    until: (found) => found?.peers[0]?.node_id === "n22",
  });
  expect(identityIn(dir)).toEqual(third);
  // At an end nothing is left behind, and nothing is written once another process may have the directory.
  const last: Identity = { ...third, peers: [peer(23)] };
  data.save(last);
  data.close();
  expect(identityIn(dir)).toEqual(last);
  const next = DataDir.open(dir);
  const other: Identity = { ...last, seen_term: 9 };
  next.save(other);
  await waitUntil("what the first one had begun to be over", () => identityBeside(), { until: (n) => n === "n23" });
  expect(identityIn(dir)).toEqual(other);
  next.close();
  expect(readdirSync(dir).filter((name) => name !== "node.json.next")).toEqual(["lock", "node.json"]);
});

test("point 8: the lock of a data directory is one that processes of earlier versions see, and writes nothing", () => {
  const earlier = new Database(join(dir, "lock"), { create: true });
  earlier.run("PRAGMA locking_mode = EXCLUSIVE");
  earlier.run("CREATE TABLE IF NOT EXISTS owner (id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER)");
  earlier.run("INSERT INTO owner VALUES (1, 1)");
  expect(() => DataDir.open(dir)).toThrow(/in use by a running cacophony/);
  earlier.close();
  const before = statSync(join(dir, "lock"));
  const data = DataDir.open(dir);
  const later = new Database(join(dir, "lock"));
  expect(() => later.run("INSERT INTO owner VALUES (2, 2)")).toThrow(/locked/);
  later.close();
  expect(() => DataDir.open(dir)).toThrow(/in use by a running cacophony/);
  data.close();
  const after = statSync(join(dir, "lock"));
  expect([after.size, after.mtimeMs]).toEqual([before.size, before.mtimeMs]);
  DataDir.open(dir).close();
});
