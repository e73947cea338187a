/** Secrets of jobs on the master: sealed in the Store, ids that tell nothing, the mark, the key that is lost, kill -9, and records of before. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createApi } from "../src/api.ts";
import { specHash } from "../src/job_changes.ts";
import { hash, JobFiles } from "../src/job_files.ts";
import { silentLog } from "../src/log.ts";
import type { Change, LiveJob } from "../src/model.ts";
import type { ServiceSpec } from "../src/model_spec.ts";
import { Scheduler } from "../src/scheduler.ts";
import { Sealer } from "../src/seal.ts";
import { openSqliteStore, type Store, StoreError } from "../src/store.ts";
import { rules, seeded, spec } from "./cluster_fixture.ts";

const VALUE = "hunter2-and-more";
const DOCUMENT =
  "services: {app: {image: busybox, secrets: [pw]}, other: {image: busybox}}\nsecrets: {pw: {environment: PW}}\n";

let root: string;
let ids = 0;
let open: Scheduler[] = [];

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "cacophony-secrets-"));
});
afterEach(async () => {
  for (const scheduler of open) await scheduler.stop();
  open = [];
  rmSync(root, { recursive: true });
});

const keyFile = () => join(root, "secret.key");

/** A master on the same directory; `commits`: so many work, and the next ends it as kill -9 would. */
async function master({ commits = Number.POSITIVE_INFINITY }: { commits?: number } = {}) {
  const store = openSqliteStore(join(root, "cluster.db"));
  let left = Number.POSITIVE_INFINITY;
  const failing: Store = {
    beginTerm: () => store.beginTerm(),
    load: () => store.load(),
    scrub: async () => store.scrub?.(),
    close: () => store.close(),
    commit: async (term, changes) => {
      if (left-- <= 0) throw new StoreError("failed", "killed");
      return store.commit(term, changes);
    },
  };
  let due: (() => void)[] = [];
  const scheduler = new Scheduler({
    store: failing,
    // Time stands still; `pass` runs what is due.
    clock: { now: () => 1, after: (_, work) => (due.push(work), { cancel: () => {} }) },
    random: seeded(1),
    newId: () => `id${++ids}`,
    sealer: new Sealer(keyFile()),
    log: silentLog,
    onFenced: () => {},
  });
  await scheduler.start({ cluster_id: "c", created_at: 0, network_mode: "vxlan", network_cidr: "10.213.0.0/16" });
  await scheduler.change(() => []);
  left = commits;
  open.push(scheduler);
  const local = {
    nodeId: "n",
    version: "0",
    faults: () => [],
    master: () => ({ address: undefined, lost: undefined }),
  };
  const peerInfo = () => ({ node_id: "n", protocol: 1, version: "0", peers: [] });
  const app = createApi({ local: { ...local, peerInfo }, scheduler: () => scheduler, dataDir: root, log: silentLog });
  const call = async (method: string, path: string, body?: string | FormData) => {
    const response = await app.request(path, { method, ...(body !== undefined && { body }) });
    const text = await response.text();
    return { status: response.status, text, body: JSON.parse(text) as Record<string, never> };
  };
  return {
    scheduler,
    call,
    put: (query = `?env.PW=${VALUE}`, { job = "j", body = DOCUMENT }: { job?: string; body?: string } = {}) =>
      call("PUT", `/cluster/job/${job}${query}`, body),
    form: (query: string, { compose = "", ...files }: Record<string, string>) => {
      const body = new FormData();
      body.append("compose", compose);
      for (const [name, text] of Object.entries(files)) body.append("file", new File([text], name));
      return call("PUT", `/cluster/job/j${query}`, body);
    },
    idOf: (job = "j") => scheduler.state.liveJob(job)?.secrets?.find(({ name }) => name === "pw")?.secret_id,
    hashesOf: (job = "j") => scheduler.state.liveJob(job)?.services.map(({ spec_hash }) => spec_hash),
    valueOf: (id: string) =>
      Buffer.from(new Sealer(keyFile()).open(scheduler.state.secrets.get(id) ?? "", purpose(id)), "base64").toString(),
    pass: async () => {
      const now = due;
      due = [];
      for (const work of now) work();
      await scheduler.change(() => []);
      await scheduler.change(() => []);
    },
    stop: async () => {
      open = open.filter((one) => one !== scheduler);
      await scheduler.stop();
    },
  };
}

function purpose(id: string): string {
  return `value ${id} of a secret`;
}

/** What lies in the data directory, as whoever copies it sees it. */
function onDisk(): string {
  return readdirSync(root)
    .map((name) => readFileSync(join(root, name), "latin1"))
    .join("\n");
}

function expectNowhere(text: string, ...values: string[]): void {
  for (const value of values.length > 0 ? values : [VALUE]) {
    expect(text).not.toContain(value);
    expect(text).not.toContain(hash(value));
    expect(text).not.toContain(Buffer.from(value).toString("base64"));
  }
}

describe("the secrets of a job", () => {
  test("are sealed in the Store, and in no answer", async () => {
    const { put, call, idOf, valueOf, stop } = await master();
    const answers = [await put(`?dry_run=true&env.PW=${VALUE}`), await put(), await call("GET", "/cluster/job")];
    answers.push(await call("GET", "/cluster/job/j"), await put(`?dry_run=true&env.PW=${VALUE}`));
    expect(answers.map(({ status }) => status)).toEqual([200, 201, 200, 200, 200]);
    for (const { text } of answers) expectNowhere(text);
    expect(valueOf(idOf() ?? "")).toBe(VALUE);
    expectNowhere(onDisk());
    await stop();
    expectNowhere(onDisk());
  });

  test("keep their id while the value stays, so that nothing is replaced; another value replaces what mounts it alone", async () => {
    const { put, idOf, hashesOf, valueOf, scheduler } = await master();
    await put();
    const [id, hashes] = [idOf(), hashesOf()];
    expect(await put()).toMatchObject({ status: 200, body: { version: 1 } });
    expect([idOf(), hashesOf()]).toEqual([id, hashes]);
    const plan = await put("?dry_run=true&env.PW=other");
    expect(plan.body["changes"]).toMatchObject([{ service_name: "app", action: "replace" }]);
    expect(scheduler.state.secrets.size).toBe(1);
    expect(await put("?env.PW=other")).toMatchObject({ status: 200, body: { version: 2 } });
    expect(hashesOf()?.[0]).not.toBe(hashes?.[0]);
    expect(hashesOf()?.[1]).toBe(hashes?.[1]);
    expect(valueOf(idOf() ?? "")).toBe("other");
  });

  test("with a file are shown in a dry run where compose would mount them from", async () => {
    const { form } = await master();
    const compose = "services: {app: {image: busybox, secrets: [pw]}}\nsecrets: {pw: {file: ./tls/pw.txt}}\n";
    const { status, text, body } = await form("?dry_run=true", { compose, "./tls/pw.txt": VALUE });
    expect(status).toBe(200);
    const [container] = body["containers"] as unknown as { create: { HostConfig: { Mounts: object[] } } }[];
    expect(container?.create.HostConfig.Mounts).toEqual([
      { Type: "bind", Source: `${root}/projects/j/tls/pw.txt`, Target: "/run/secrets/pw", ReadOnly: true },
    ]);
    expectNowhere(text);
  });

  test("have different ids in two jobs, though the value is the same", async () => {
    const { put, idOf } = await master();
    await put();
    await put(undefined, { job: "k" });
    expect(idOf("k")).not.toBe(idOf("j"));
  });

  test("change the job also where no service mounts the one that changed", async () => {
    const { put, idOf, valueOf } = await master();
    const body = "services: {app: {image: busybox}}\nsecrets: {pw: {environment: PW}}\n";
    await put("?env.PW=a", { body });
    expect(await put("?env.PW=b", { body })).toMatchObject({ body: { version: 2 } });
    expect(valueOf(idOf() ?? "")).toBe("b");
  });

  test("are collected when no job and no running replica has them any more", async () => {
    const { put, pass, scheduler, idOf } = await master();
    await put();
    await put("?env.PW=other");
    expect(scheduler.state.secrets.size).toBe(2);
    await pass();
    expect([...scheduler.state.secrets.keys()]).toEqual([idOf() ?? ""]);
    await scheduler.deleteJob("j", { volumes: false, preconditions: {} });
    await pass();
    expect(scheduler.state.secrets.size).toBe(0);
  });

  test("of a replica that still runs an older definition stay", async () => {
    const { put, pass, scheduler, hashesOf, idOf } = await master();
    await put();
    const [spec_hash = "", id = ""] = [hashesOf()?.[0], idOf()];
    await scheduler.change(() => [allocation(spec_hash)]);
    await put("?env.PW=other");
    await pass();
    expect(scheduler.state.secrets.has(id)).toBe(true);
  });
});

function allocation(spec_hash: string, more: { node_id?: string; desired?: "run" | "stop" } = {}): Change {
  const record = { allocation_id: "a", job_id: "j", incarnation: "i", service_name: "app", slot: 1, job_version: 1 };
  return {
    op: "put",
    kind: "allocation",
    record: { ...record, node_id: "n1", spec_hash, desired: "run", created_at: 0, ...more },
  };
}

describe("the mark", () => {
  test("keeps the value when a document is sent back as it came, also by a later master", async () => {
    const first = await master();
    await first.put();
    await first.stop();
    const { call, put, idOf, valueOf } = await master();
    const before = idOf();
    const { document } = (await call("GET", "/cluster/job/j")).body;
    expect(document).toMatchObject({ secrets: { pw: { environment: "PW", "x-cacophony-value": "(redacted)" } } });
    const body = JSON.stringify(document);
    expect(await put("?dry_run=true", { body })).toMatchObject({ status: 200, body: { changes: [] } });
    expect(await put("", { body })).toMatchObject({ status: 200, body: { version: 1 } });
    const changed = body.replace('"image":"busybox"', '"image":"busybox:2"');
    expect(await put("", { body: changed })).toMatchObject({ status: 200, body: { version: 2 } });
    expect(idOf()).toBe(before);
    expect(valueOf(idOf() ?? "")).toBe(VALUE);
    expect(await put("?env.PW=sent", { body })).toMatchObject({ status: 200, body: { version: 3 } });
    expect(valueOf(idOf() ?? "")).toBe("sent");
  });

  test.each(["", "?dry_run=true"])("of a job that has no such value is a fault with its place (%s)", async (query) => {
    const { put, call, scheduler } = await master();
    await put();
    const body = JSON.stringify((await call("GET", "/cluster/job/j")).body["document"]);
    const answer = await put(query, { job: "another", body });
    expect(answer).toMatchObject({
      status: 422,
      body: {
        error: {
          details: [
            { path: "secrets.pw.x-cacophony-value", line: 1, message: expect.stringContaining("send the value") },
          ],
        },
      },
    });
    expect(scheduler.state.liveJob("another")).toBeUndefined();
    await scheduler.deleteJob("j", { volumes: false, preconditions: {} });
    expect((await put(query, { body })).status).toBe(422);
  });
});

describe("a master without its key", () => {
  const LOST = /key file .*secret\.key is missing: restore it from a backup, or make another \(openssl rand/;

  test("refuses documents with secrets and makes no other key; other documents and what is stored stay", async () => {
    const first = await master();
    await first.put();
    await first.stop();
    rmSync(keyFile());
    const { put, call, idOf, scheduler } = await master();
    const body = JSON.stringify((await call("GET", "/cluster/job/j")).body["document"]);
    for (const answer of [
      await put(),
      await put("?dry_run=true&env.PW=x"),
      await put("", { body }),
      await put(undefined, { job: "new" }),
    ]) {
      expect(answer.status).toBe(422);
      const { error } = answer.body as unknown as { error: { details: { path: string; message: string }[] } };
      expect(error.details[0]?.path).toStartWith("secrets.pw");
      expect(error.details[0]?.message).toMatch(LOST);
    }
    expect(existsSync(keyFile())).toBe(false);
    expect(await call("PUT", "/cluster/registry/r.example", '{"username": "u", "password": "p"}')).toMatchObject({
      status: 503,
    });
    expect(existsSync(keyFile())).toBe(false);
    expect((await put("", { job: "plain", body: "services: {a: {image: busybox}}" })).status).toBe(201);
    expect(scheduler.state.secrets.has(idOf() ?? "")).toBe(true);
  });

  test("a dry run makes no key, the first PUT with a secret does", async () => {
    const { put } = await master();
    expect((await put(`?dry_run=true&env.PW=${VALUE}`)).status).toBe(200);
    expect(existsSync(keyFile())).toBe(false);
    expect((await put()).status).toBe(201);
    expect(existsSync(keyFile())).toBe(true);
  });

  test("with another key takes values anew, and no marks", async () => {
    const first = await master();
    await first.put();
    await first.stop();
    rmSync(keyFile());
    new Sealer(keyFile()).seal("", { purpose: "", isFirst: true });
    const { put, call, idOf, valueOf } = await master();
    const body = JSON.stringify((await call("GET", "/cluster/job/j")).body["document"]);
    const marked = await put("", { body });
    expect(marked.status).toBe(422);
    expect(marked.text).toContain("cannot be read (sealed with another key");
    expect(await put()).toMatchObject({ status: 200, body: { version: 2 } });
    expect(valueOf(idOf() ?? "")).toBe(VALUE);
    chmodSync(keyFile(), 0o644);
    expect((await put()).text).toContain("chmod 600");
  });

  test("never makes one in the place of one that the operator keeps", () => {
    const sealer = new Sealer(keyFile(), { isGiven: true });
    expect(() => sealer.check({ isFirst: true })).toThrow("is missing");
    expect(() => sealer.seal("x", { purpose: "x", isFirst: true })).toThrow("is missing");
    expect(readdirSync(root)).toEqual([]);
  });
});

test("a master that is killed at any commit of a PUT has the job with its secret or neither", async () => {
  for (const commits of [0, 1]) {
    const first = await master({ commits });
    const { status } = await first.put();
    expect(status).toBe(commits === 0 ? 503 : 201);
    await first.stop();
    const second = await master();
    expect(second.scheduler.state.liveJob("j") !== undefined).toBe(commits === 1);
    expect(second.scheduler.state.secrets.size).toBe(commits);
    await second.stop();
  }
});

describe("a value", () => {
  test("is opened for the nodes that are to run what mounts it, and for no others", async () => {
    const { put, scheduler, idOf, hashesOf } = await master();
    await put();
    const [mounting = "", other = ""] = hashesOf() ?? [];
    const secret_id = idOf() ?? "";
    const ask = (node_id: string, id = secret_id) => {
      const value = scheduler.secrets.valueFor({ node_id, secret_id: id });
      return value && Buffer.from(value).toString();
    };
    expect(ask("n1")).toBeUndefined();
    await scheduler.change(() => [allocation(other)]);
    expect(ask("n1")).toBeUndefined();
    await scheduler.change(() => [allocation(mounting, { desired: "stop" })]);
    expect(ask("n1")).toBeUndefined();
    await scheduler.change(() => [allocation(mounting)]);
    expect(ask("n1")).toBe(VALUE);
    expect(ask("n2")).toBeUndefined();
    expect(ask("n1", "guess")).toBeUndefined();
    rmSync(keyFile());
    expect(() => ask("n1")).toThrow("secret.key is missing");
  });
});

describe("records of an earlier version, which kept secrets as files in plain", () => {
  /** As the former commit stored a PUT of this document. */
  async function before(): Promise<{ hash: string; chunks: string[] }> {
    const sent = new JobFiles(new Map([["cert.pem", Buffer.from("hunter-file")]]));
    const settings = sent.mounted("settings", Buffer.from("public"), {});
    const pw = sent.mounted("pw", Buffer.from(VALUE), { uid: 7, mode: 0o400 });
    const cert = sent.below("cert.pem");
    const bind = (source: string, target: string) =>
      ({ type: "bind", source, target, read_only: true, create_host_path: false }) as const;
    const document = {
      services: {
        app: {
          image: "busybox",
          environment: { PRICE: "5$$" },
          configs: ["settings"],
          secrets: [
            { source: "pw", uid: "7", mode: "0400" },
            { source: "cert", target: "/etc/cert.pem" },
          ],
        },
      },
      configs: { settings: { content: "public" } },
      secrets: { pw: { environment: "PW" }, cert: { file: "./cert.pem" } },
    };
    const old: ServiceSpec = spec({
      environment: ["PRICE=5$"],
      mounts: [bind(settings.path, "/settings"), bind(pw.path, "/run/secrets/pw"), bind("cert.pem", "/etc/cert.pem")],
      files: [settings, pw, ...cert],
    });
    const older: ServiceSpec = spec({ mounts: [bind(pw.path, "/run/secrets/pw")], files: [pw] });
    const service = {
      service_name: "app",
      spec_hash: specHash(old),
      scale: 1,
      rules: rules(),
      rules_since: 1,
      released: true,
    };
    const record: LiveJob = {
      ...{ state: "live", job_id: "j", version: 4, incarnation: "i", created_at: 0, updated_at: 0 },
      document: JSON.stringify(document),
      services: [service],
    };
    const store = openSqliteStore(join(root, "cluster.db"));
    const specs = [old, older].map((one): Change => ({
      op: "put",
      kind: "spec",
      record: { spec_hash: specHash(one), spec: one },
    }));
    const chunks = Array.from(sent.chunks, ([chunk_hash, data]): Change => {
      return { op: "put", kind: "chunk", record: { chunk_hash, data: Buffer.from(data).toString("base64") } };
    });
    await store.commit(await store.beginTerm(), [
      {
        op: "put",
        kind: "cluster",
        record: { cluster_id: "c", created_at: 0, network_mode: "vxlan", network_cidr: "10.213.0.0/16" },
      },
      ...specs,
      ...chunks,
      { op: "put", kind: "job", record },
      allocation(specHash(older)),
    ]);
    await store.close();
    return { hash: specHash(old), chunks: [...sent.chunks.keys()] };
  }

  test("are sealed at the next start: nothing of them is left on the disk, and the same PUT changes nothing", async () => {
    const { hash: former } = await before();
    expect(onDisk()).toContain(Buffer.from(VALUE).toString("base64"));
    const { scheduler, call, put, valueOf, stop } = await master();
    expect([...scheduler.state.chunks.values()].map((data) => atob(data))).toEqual(["public"]);
    expectNowhere(onDisk(), VALUE, "hunter-file");

    const job = scheduler.state.liveJob("j");
    expect(job).toMatchObject({ version: 4, secrets: [{ name: "cert" }, { name: "pw" }] });
    expect(job?.secrets?.map(({ secret_id }) => valueOf(secret_id))).toEqual(["hunter-file", VALUE]);
    const now = scheduler.state.specs.get(job?.services[0]?.spec_hash ?? "");
    expect(job?.services[0]?.spec_hash).not.toBe(former);
    expect(now?.mounts).toMatchObject([
      { type: "bind", target: "/settings" },
      { type: "secret", name: "pw", target: "/run/secrets/pw", uid: 7, mode: 0o400 },
      { type: "secret", name: "cert", target: "/etc/cert.pem", mode: 0o444 },
    ]);
    expect(now?.files?.map(({ size }) => size)).toEqual(["public".length]);

    const { document } = (await call("GET", "/cluster/job/j")).body;
    expect(await put("", { body: JSON.stringify(document) })).toMatchObject({ status: 200, body: { version: 4 } });
    await stop();
    expectNowhere(onDisk(), VALUE, "hunter-file");
    const second = await master();
    expect(second.scheduler.state.liveJob("j")).toEqual(job);
  });

  test("stay as they are when no key can be had, and are sealed once one can", async () => {
    const { chunks } = await before();
    chmodSync(root, 0o755);
    await Bun.write(keyFile(), "damaged");
    chmodSync(keyFile(), 0o600);
    const first = await master();
    expect([...first.scheduler.state.chunks.keys()].toSorted()).toEqual(chunks.toSorted());
    await first.stop();
    rmSync(keyFile());
    const second = await master();
    expect(second.scheduler.state.secrets.size).toBe(2);
  });
});
