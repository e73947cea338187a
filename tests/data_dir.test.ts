/** Modes of the data directory of a process, whatever its umask is, and of what earlier versions left. */
import { Database } from "bun:sqlite";
import { afterEach, beforeEach, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DataDir, writePrivately } from "../src/data_dir.ts";
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
