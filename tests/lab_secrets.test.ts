/** @module Secrets on real engines: what containers get, where else their values are not, and what becomes of them when things change and fail. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { hash } from "../src/job_files.ts";
import { type Lab, type LabHost } from "./lab.ts";
import { type Asked, LabCluster, perNode, sleeper } from "./lab_cluster.ts";
import { command } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(120_000);

const COMPOSE = `
services:
  app:
    image: busybox
    command: sleep 86400
    stop_signal: SIGKILL
    scale: 2
    secrets: [cert, {source: password, mode: 0400, uid: "7", gid: "8"}]
    volumes: [".:/project"]
  other: {image: busybox, command: sleep 86400, stop_signal: SIGKILL}
secrets:
  password: {environment: PASSWORD}
  cert: {file: ./tls/cert.pem}
`;
/** Long enough to be in no file by chance. */
const PASSWORD = "correct-horse-battery-staple";
const CERT = "certificate-of-the-lab";
const TMPFS_MAGIC = 0x01021994;

let lab: Lab;
let cluster: LabCluster;
/** Where the sender has its files: no part of any host. */
let dir: string;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "cacophony-sender-"));
  mkdirSync(join(dir, "tls"));
  writeFileSync(join(dir, "compose.yaml"), COMPOSE);
  writeFileSync(join(dir, "tls/cert.pem"), CERT);
  writeFileSync(join(dir, "a.conf"), "public\n");
  cluster = await LabCluster.start({ hosts: 2 });
  lab = cluster.lab;
});

afterAll(async () => {
  await lab?.stop();
  rmSync(dir, { recursive: true, force: true });
});

/** The real curl, as the README has it, sent through the worker. */
async function send(password: string, query = ""): Promise<{ status: string; body: string }> {
  writeFileSync(join(dir, ".env"), `PASSWORD=${password}\n`);
  const files = ["tls/cert.pem", "a.conf"];
  const { stdout } = await lab
    .host(2)
    .curl(
      ...["-X", "PUT", `${lab.host(2).address}:9000/cluster/job/vault${query}`, "-w", "\n%{http_code}"],
      ...["-F", `compose=@${dir}/compose.yaml`, "-F", `env=@${dir}/.env`],
      ...files.flatMap((file) => ["-F", `file=@${dir}/${file};filename=./${file}`]),
    );
  const [body = "", status = ""] = stdout.trim().split(/\n(?=\d+$)/);
  return { status, body };
}

/** What each container of `app` has, asked from inside. */
async function look(): Promise<Asked[]> {
  const script =
    'cd /run/secrets; cat cert; echo; cat password; echo; stat -c "%n %a %u %g" cert password; touch cert 2>&1 | grep -o "Read-only.*"; find /project -type f | grep -v "^/project/.cacophony/written.json$"';
  return cluster.ask("app", script);
}

function expected(password: string): string {
  return `${CERT}\n${password}\ncert 444 0 0\npassword 400 7 8\nRead-only file system\n/project/a.conf`;
}

/** Waits until the containers show the secrets; what is on its way down or up counts as not there yet. */
async function shown(password: string, { count = 2 } = {}): Promise<Asked[]> {
  return waitUntil(`the containers to show ${password}`, () => look().catch((): Asked[] => []), {
    until: (seen) =>
      seen.length === count && seen.every(({ text }) => text.startsWith(expected(password).split("\n/")[0] ?? "")),
    timeoutMs: 60_000,
  });
}

/** Files on the host that hold a value, its hash or its base64: all of cacophony's and the engine's data, and all logs. */
async function leaks(host: LabHost, ...values: string[]): Promise<string[]> {
  const patterns = values.flatMap((value) => [value, hash(value), Buffer.from(value).toString("base64")]);
  const { stdout } = await command([
    ...["grep", "-rlaF", "-D", "skip", ...patterns.flatMap((pattern) => ["-e", pattern]), host.dir],
  ]);
  return stdout.split("\n").filter(Boolean);
}

/** Where the secrets of a container's node are, as its engine tells. */
async function sources({ host, id }: Asked): Promise<string[]> {
  const mounts = JSON.parse(await host.docker("inspect", "-f", "{{json .Mounts}}", id)) as {
    Source: string;
    Destination: string;
  }[];
  return mounts.filter(({ Destination }) => Destination.startsWith("/run/secrets/")).map(({ Source }) => Source);
}

async function ids(service: string): Promise<string[]> {
  return (await cluster.allocations(`?job=vault&service=${service}`))
    .map(({ allocation_id }) => allocation_id)
    .toSorted();
}

describe("secrets", () => {
  test("are files in memory in their containers, and nowhere else: on no disk, in no answer, log or inspection", async () => {
    const dry = await send(PASSWORD, "?dry_run=true");
    const sent = await send(PASSWORD);
    expect([dry.status, sent.status]).toEqual(["200", "201"]);
    const { services } = await cluster.settled("vault");
    expect(perNode(services["app"]?.allocations ?? [])).toEqual({ "host-1": 1, "host-2": 1 });
    const seen = await look();
    expect(seen.map(({ text }) => text)).toEqual([expected(PASSWORD), expected(PASSWORD)]);
    const again = await send(PASSWORD, "?dry_run=true");
    const answers = [dry.body, sent.body, again.body];
    for (const path of ["job", "job/vault", "allocation", "node", "status", "resources"])
      answers.push(JSON.stringify((await cluster.api(`/cluster/${path}`)).body));
    for (const one of seen) {
      answers.push(await one.host.docker("inspect", one.id));
      const files = await sources(one);
      expect(files).toHaveLength(2);
      for (const file of files) expect(statfsSync(dirname(file)).type).toBe(TMPFS_MAGIC);
    }
    for (const value of [PASSWORD, CERT])
      for (const text of answers) {
        expect(text).not.toContain(value);
        expect(text).not.toContain(hash(value));
      }
    for (const host of lab.hosts) expect(await leaks(host, PASSWORD, CERT)).toEqual([]);
    // The search finds what is there.
    expect(await leaks(lab.host(1), "public")).not.toEqual([]);
  });

  test("are not given to who knows their ids and the node, but is not that node", async () => {
    const [one] = await look();
    const [source = ""] = one ? await sources(one) : [];
    const secret_id = source.split("/").at(-1)?.split("-")[0] ?? "";
    expect(secret_id).toMatch(/^[0-9a-f]{24}$/);
    const [node] = await cluster.nodes();
    for (const [instance, status] of [
      ["", 422],
      [crypto.randomUUID(), 404],
    ]) {
      const body = JSON.stringify({ node_id: node?.node_id, instance, secret_id });
      expect((await cluster.api("/internal/secret", { method: "POST", body })).status).toBe(Number(status));
    }
    expect((await cluster.api(`/internal/chunk/${secret_id}`)).status).toBe(404);
    expect((await cluster.api(`/internal/chunk/${hash(PASSWORD)}`)).status).toBe(404);
  });

  test("that are the same replace nothing, also after the master was killed; another value replaces what mounts it", async () => {
    const [before, others] = [await look(), await ids("other")];
    expect(await send(PASSWORD)).toMatchObject({ status: "200" });
    await cluster.process(1).kill();
    cluster.restart(1);
    await cluster.ready(2);
    await cluster.settled("vault");
    expect((await look()).map(({ id }) => id).toSorted()).toEqual(before.map(({ id }) => id).toSorted());
    const old = (await Promise.all(before.map(sources))).flat().filter((path) => path.includes("-400-"));

    expect(await send("another-password")).toMatchObject({ status: "200" });
    await cluster.process(1).kill();
    cluster.restart(1);
    await cluster.ready(2);
    const after = await shown("another-password");
    for (const { id } of before) expect(after.map((one) => one.id)).not.toContain(id);
    expect(await ids("other")).toEqual(others);
    await waitUntil("the old value to be gone from memory", () => old.filter(existsSync), {
      until: (left) => left.length === 0,
    });
    expect(old).toHaveLength(2);
    for (const host of lab.hosts) expect(await leaks(host, PASSWORD, "another-password", CERT)).toEqual([]);
  });

  test("are kept by a document that is sent back as it was answered", async () => {
    const { version, document } = await cluster.job("vault");
    expect(document).toMatchObject({
      secrets: {
        password: { environment: "PASSWORD", "x-cacophony-value": "(redacted)" },
        cert: { file: "./tls/cert.pem", "x-cacophony-value": "(redacted)" },
      },
    });
    const text = JSON.stringify(document);
    const changed = text.replace('"command":"sleep 86400"', '"command":"sleep 86399"');
    const answer = await cluster.put("vault", changed, { on: 2 });
    expect(answer).toMatchObject({ status: 200, body: { version: version + 1 } });
    await waitUntil("both replicas to be of the new version", () => cluster.allocations("?job=vault&service=app"), {
      until: (list) => list.length === 2 && list.every((one) => one.job_version === version + 1),
      timeoutMs: 30_000,
    });
    await shown("another-password");
    await cluster.settled("vault");
    expect((await cluster.put("stranger", text)).status).toBe(422);
  });

  test("are there again for a container that starts after its node's memory was emptied, and for a further replica", async () => {
    const seen = (await look()).find(({ host }) => host === lab.host(2));
    if (!seen) throw new Error("no container on host 2");
    const [file = ""] = await sources(seen);
    rmSync(dirname(file), { recursive: true });
    await seen.host.docker("kill", seen.id);
    const after = await shown("another-password");
    expect(after.map(({ id }) => id)).toContain(seen.id);
    expect(existsSync(file)).toBe(true);

    // Without a node beside it, the engine neither starts the container nor puts anything in the secret's place.
    await cluster.process(2).kill();
    rmSync(dirname(file), { recursive: true });
    await seen.host.docker("kill", seen.id);
    const started = await seen.host.docker("start", seen.id).catch((error: Error) => error.message);
    expect(started).toContain("bind source path does not exist");
    expect(existsSync(dirname(file))).toBe(false);
    cluster.restart(2);
    await cluster.ready(2);
    expect((await shown("another-password")).map(({ id }) => id)).toContain(seen.id);

    // As a reboot of the machine: memory, containers and the process are gone.
    await cluster.process(2).kill();
    lab.host(2).powerOff();
    rmSync(dirname(file), { recursive: true });
    await lab.host(2).startDocker();
    cluster.restart(2);
    await cluster.ready(2);
    await shown("another-password");
    await cluster.scale("vault", { service: "app", scale: 3 });
    await shown("another-password", { count: 3 });
    await cluster.settled("vault");
  });

  test("need the key: without it what runs goes on, documents with secrets are refused, and no other key is made", async () => {
    const before = await look();
    const key = join(lab.host(1).dataDir, "secret.key");
    const kept = join(dir, "kept.key");
    await cluster.process(1).kill();
    renameSync(key, kept);
    await cluster.restart(1).waitFor(/secrets cannot be opened; what runs goes on/);
    await cluster.ready(2);
    const { status, body } = await send("third-password");
    expect(status).toBe("422");
    expect(body).toContain(`the key file ${key} is missing: restore it from a backup`);
    expect((await cluster.put("plain", { services: { a: sleeper() } })).status).toBe(201);
    await cluster.settled("plain");
    expect((await look()).map(({ id }) => id).toSorted()).toEqual(before.map(({ id }) => id).toSorted());
    expect(existsSync(key)).toBe(false);

    // The operator has kept it elsewhere, and says so once.
    await cluster.process(1).kill();
    cluster.node(1, ["--secret-key-file", kept, "bootstrap"]);
    await cluster.ready(2);
    expect((await send("third-password")).status).toBe("200");
    await shown("third-password", { count: 2 });
    await cluster.process(1).kill();
    cluster.node(1, []);
    await cluster.ready(2);
    expect((await send("fourth-password")).status).toBe("200");
    await shown("fourth-password", { count: 2 });
    expect(existsSync(key)).toBe(false);
  });

  test("a key file that can't be used is a bad start, and changes nothing", async () => {
    const host = lab.host(1);
    const bad = join(dir, "bad.key");
    const start = async (...args: string[]) => {
      const { exitCode, stderr } = await host.runCacophony([...args, "--secret-key-file", bad]);
      return [exitCode, stderr.split("\n").find((line) => line.startsWith("cacophony: "))];
    };
    await cluster.process(1).kill();
    expect(await start()).toEqual([2, expect.stringContaining(`the key file ${bad} is missing`)]);
    writeFileSync(bad, "ab".repeat(31), { mode: 0o600 });
    expect(await start()).toEqual([2, expect.stringContaining("holds no key of 64 hex digits")]);
    writeFileSync(bad, "ab".repeat(32));
    chmodSync(bad, 0o640);
    expect(await start()).toEqual([2, expect.stringContaining("can be read by others: chmod 600 it")]);
    expect(await start("join", "10.0.0.1:9000", "--data-dir", join(dir, "other"))).toEqual([
      2,
      expect.stringContaining("--secret-key-file is for the master"),
    ]);
    cluster.restart(1);
    await cluster.ready(2);
    await shown("fourth-password");
  });

  test("go from the nodes' memory with the job", async () => {
    const dirs = new Set((await Promise.all((await look()).map(sources))).flat().map(dirname));
    expect(dirs.size).toBe(2);
    await cluster.clear();
    await waitUntil("the nodes to hold no secrets", () => [...dirs].flatMap((path) => readdirSync(path)), {
      until: (left) => left.length === 0,
    });
    for (const host of lab.hosts) {
      expect(await leaks(host, PASSWORD, CERT, "another-password", "third-password", "fourth-password")).toEqual([]);
    }
  });
});
