/**
 * @module A master whose cluster state is put back to an older copy under living nodes, on real hosts and Docker Engines (point 3): it
 * stops leading and says what to type, what runs goes on, and with that typed all goes on without a container replaced.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, rmSync } from "node:fs";
import { join } from "node:path";
import { identityIn } from "../src/data_dir.ts";
import { RESTORE_STEP } from "../src/model_term.ts";
import { LabCluster } from "./lab_cluster.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(180_000);

const NODES = 2;
const GLOBAL = { services: { app: { image: "busybox", command: "sleep 86400", deploy: { mode: "global" } } } };
const WHAT_TO_TYPE = "start it once with 'cacophony --restored'";

let cluster: LabCluster;

beforeAll(async () => {
  cluster = await LabCluster.start({ hosts: NODES });
});

afterAll(async () => {
  await cluster?.lab.stop();
});

/** All containers, with when they were started. */
async function runs(): Promise<string[]> {
  const all = cluster.lab.hosts.map(async (host) => {
    const ids = (await cluster.containers(host)).map(({ id }) => id);
    return (await host.docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Running}}", ...ids)).split("\n");
  });
  return (await Promise.all(all)).flat().toSorted();
}

const STORE = /^cluster\.db(-wal|-shm)?$/;

/** Copies what a data directory holds, or only the store in it; what is there of that goes. */
function copy(from: string, to: string, { storeOnly = false } = {}): void {
  if (storeOnly) for (const end of ["", "-wal", "-shm"]) rmSync(join(to, `cluster.db${end}`), { force: true });
  else rmSync(to, { recursive: true, force: true });
  const isWanted = (path: string) => path === from || !storeOnly || STORE.test(path.slice(from.length + 1));
  cpSync(from, to, { recursive: true, filter: isWanted });
}

/** That the master lives, leads nobody, and says so where an operator looks. */
async function isNotLeading(witness: RegExp): Promise<void> {
  await cluster.process(1).waitFor(/this master does not lead/, { timeoutMs: 60_000 });
  const readyz = await cluster.lab.host(1).fetch("/readyz");
  expect(readyz.status).toBe(503);
  const status = await (await cluster.lab.host(1).fetch("/cluster/status")).text();
  for (const text of [await readyz.text(), status, cluster.process(1).logs()]) {
    expect(text).toMatch(witness);
    expect(text).toContain(WHAT_TO_TYPE);
  }
  // The other node says it, too.
  const told = await waitUntil(
    "the worker to say why it has no session",
    async () => (await cluster.lab.host(2).fetch("/readyz")).text(),
    { until: (text) => text.includes("does not lead"), timeoutMs: 60_000 },
  );
  expect(told).toContain(WHAT_TO_TYPE);
  for (const on of [1, 2]) {
    const { status: code, body } = await cluster.put("refused", GLOBAL, { on });
    expect([on, code, body.error?.code]).toEqual([on, 503, "not_leading"]);
    expect((await cluster.api("/cluster/job/kept", { on })).status).toBe(200);
  }
}

test("point 3: a store put back under living nodes makes its master stop leading, and --restored makes it lead again; no container is replaced", async () => {
  const [one, two] = [cluster.lab.host(1), cluster.lab.host(2)];
  const backup = `${one.dataDir}-backup`;
  try {
    expect((await cluster.put("kept", GLOBAL)).status).toBe(201);
    await cluster.settled("kept");
    const before = await runs();
    expect(before.length).toBe(NODES);
    await cluster.process(1).stop();
    copy(one.dataDir, backup);
    for (let start = 0; start < 2; start++) {
      cluster.restart(1);
      await cluster.ready(NODES);
      if (start === 0) await cluster.process(1).stop();
    }
    const seen = identityIn(two.dataDir)?.seen_term ?? 0;
    expect(seen).toBe(3);

    // The store alone: what the machine's own node knows is enough, and starting it again and again changes nothing.
    await cluster.process(1).stop();
    copy(backup, one.dataDir, { storeOnly: true });
    for (let start = 0; start < 2; start++) {
      cluster.restart(1);
      await isNotLeading(/this machine's node\.json has proof of term 3, but this master's state is at term 1/);
      expect(cluster.process(1).running).toBe(true);
      await cluster.process(1).stop();
    }
    expect(await runs()).toEqual(before);

    cluster.node(1, ["--restored"]);
    await cluster.ready(NODES);
    expect(identityIn(two.dataDir)?.seen_term).toBe(3 + RESTORE_STEP);
    await cluster.settled("kept");
    expect(await runs()).toEqual(before);

    // The whole machine: its own node knows nothing, the other one has proof.
    await cluster.process(1).stop();
    copy(backup, one.dataDir);
    cluster.node(1, []);
    await isNotLeading(new RegExp(`node host-2 \\(\\w+\\) at [^ ]+ has proof of term ${3 + RESTORE_STEP}, but`));
    expect(await runs()).toEqual(before);
    // A machine that starts again does not go one higher by that: its node has kept what it was shown.
    await cluster.process(1).stop();
    cluster.node(1, []);
    await isNotLeading(/this machine's node\.json has proof of term/);
    await cluster.process(1).stop();

    cluster.node(1, ["--restored"]);
    await cluster.ready(NODES);
    expect(identityIn(two.dataDir)?.seen_term).toBe(3 + 2 * RESTORE_STEP);
    await cluster.settled("kept");
    expect(await runs()).toEqual(before);
    expect((await cluster.put("kept", GLOBAL)).status).toBe(200);
    expect((await cluster.put("new", GLOBAL)).status).toBe(201);
    await cluster.settled("new");
    expect((await runs()).filter((run) => before.includes(run))).toEqual(before);
  } finally {
    rmSync(backup, { recursive: true, force: true });
  }
});
