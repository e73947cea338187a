/** @module Logins for registries: sealed at rest, written through the API and never read, sent to nodes that pull, and those of docker's own configuration. */
import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createApi } from "../src/api.ts";
import { systemClock } from "../src/clock.ts";
import { nodeLogins } from "../src/docker_login.ts";
import { silentLog } from "../src/log.ts";
import type { Assignments } from "../src/model.ts";
import { Scheduler } from "../src/scheduler.ts";
import { Sealer } from "../src/seal.ts";
import { openSqliteStore } from "../src/store.ts";
import { seeded, spec } from "./cluster_fixture.ts";

const root = mkdtempSync(join(tmpdir(), "cacophony-login-"));
afterAll(() => rmSync(root, { recursive: true }));
let count = 0;
const fresh = () => mkdtempSync(join(root, `${++count}-`));

describe("Sealer", () => {
  test("opens what it sealed, also as a new process, and never seals alike twice", () => {
    const path = join(fresh(), "key");
    const sealer = new Sealer(path);
    expect(existsSync(path)).toBe(false);
    const [a, b] = [
      sealer.seal("pässword", { purpose: "x", isFirst: true }),
      sealer.seal("pässword", { purpose: "x", isFirst: true }),
    ];
    expect(a).not.toBe(b);
    expect(new Sealer(path).open(a, "x")).toBe("pässword");
    expect(Buffer.from(a, "base64").toString("latin1")).not.toContain("word");
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  test("refuses another purpose, another key, changed text, a missing key and one that others can read", () => {
    const [path, other] = [join(fresh(), "key"), join(fresh(), "key")];
    const sealed = new Sealer(path).seal("text", { purpose: "x", isFirst: true });
    new Sealer(other).seal("text", { purpose: "x", isFirst: true });
    const changed = Buffer.from(sealed, "base64");
    changed[changed.length - 1]! ^= 1;
    expect(() => new Sealer(path).open(sealed, "y")).toThrow("damaged");
    expect(() => new Sealer(other).open(sealed, "x")).toThrow("another key");
    expect(() => new Sealer(path).open(changed.toString("base64"), "x")).toThrow("damaged");
    expect(() => new Sealer(join(root, "none")).open(sealed, "x")).toThrow("is missing");
    chmodSync(path, 0o644);
    expect(() => new Sealer(path).open(sealed, "x")).toThrow("chmod 600");
    chmodSync(path, 0o600);
    writeFileSync(path, "short");
    expect(() => new Sealer(path).seal("text", { purpose: "x", isFirst: true })).toThrow("64 hex digits");
  });
});

describe("the cluster's logins", () => {
  const dir = fresh();
  const begin = async () => {
    const scheduler = new Scheduler({
      store: openSqliteStore(join(dir, "cluster.db")),
      sealer: new Sealer(join(dir, "secret.key")),
      clock: systemClock,
      random: seeded(1),
      newId: () => crypto.randomUUID(),
      log: silentLog,
      onFenced: () => {},
    });
    await scheduler.start({ cluster_id: "c", created_at: 0, network_mode: "vxlan", network_cidr: "10.213.0.0/16" });
    const local = {
      nodeId: "n",
      version: "0",
      faults: () => [],
      master: () => ({ address: undefined, lost: undefined }),
    };
    const peerInfo = () => ({ node_id: "n", protocol: 1, version: "0", peers: [] });
    const app = createApi({ local: { ...local, peerInfo }, scheduler: () => scheduler, dataDir: dir, log: silentLog });
    const call = async (method: string, path: string, body?: string) => {
      const response = await app.request(path, { method, ...(body !== undefined && { body }) });
      return { status: response.status, text: await response.text() };
    };
    return { scheduler, call };
  };

  test("are written, listed by host alone, kept sealed, sent where an image needs them, and removed", async () => {
    const { scheduler, call } = await begin();
    const login = JSON.stringify({ username: "someone", password: "s3cret-word" });
    expect(await call("PUT", "/cluster/registry/r.example:5000", login)).toMatchObject({ status: 201 });
    expect(await call("PUT", "/cluster/registry/r.example:5000", login)).toMatchObject({ status: 200 });
    expect((await call("PUT", "/cluster/registry/index.docker.io", login)).text).toContain('"docker.io"');
    const listed = await call("GET", "/cluster/registry");
    expect(JSON.parse(listed.text)).toEqual({ registries: ["docker.io", "r.example:5000"] });
    expect((await call("GET", "/cluster/registry/r.example:5000")).status).toBe(405);
    for (const file of ["cluster.db", "cluster.db-wal"]) {
      const path = join(dir, file);
      if (existsSync(path)) expect(readFileSync(path, "latin1")).not.toContain("s3cret-word");
    }

    const record = { incarnation: "i", service_name: "s", slot: 1, node_id: "n1", job_version: 1, created_at: 0 };
    const put = (id: string, image: string) => [
      { op: "put", kind: "spec", record: { spec_hash: id, spec: spec({ image }) } } as const,
      {
        op: "put",
        kind: "allocation",
        record: { ...record, allocation_id: id, job_id: id, spec_hash: id, desired: "run" },
      } as const,
    ];
    await scheduler.change(() => put("a", "r.example:5000/team/app:1"));
    const sent: Assignments[] = [];
    scheduler.attach("n1", (message) => void (message.type === "assignments" && sent.push(message)));
    expect(sent.at(-1)?.logins).toEqual([{ host: "r.example:5000", username: "someone", password: "s3cret-word" }]);
    scheduler.attach("n2", (message) => void (message.type === "assignments" && sent.push(message)));
    expect(sent.at(-1)?.logins).toEqual([]);
    scheduler.detach("n2");
    await call("DELETE", "/cluster/registry/r.example:5000");
    expect(sent.at(-1)?.logins).toEqual([]);
    expect((await call("DELETE", "/cluster/registry/r.example:5000")).status).toBe(404);
    await scheduler.stop();
  });

  test("outlive the process; without their key the rest goes on", async () => {
    const first = await begin();
    await first.call("PUT", "/cluster/registry/r.example", '{"username": "u", "password": "p"}');
    await first.scheduler.stop();
    rmSync(join(dir, "secret.key"));
    const { scheduler, call } = await begin();
    expect(JSON.parse((await call("GET", "/cluster/registry")).text).registries).toContain("r.example");
    const sent: Assignments[] = [];
    scheduler.attach("n1", (message) => void (message.type === "assignments" && sent.push(message)));
    expect(sent.at(-1)?.logins).toEqual([]);
    await scheduler.stop();
  });

  test.each([
    ["r.example", "{}", 422],
    ["r.example", '{"username": "", "password": "hunter2"}', 422],
    ["r.example", '{"username": "u", "password": 77123}', 422],
    ["r.example", '{"username": "u", "password": "hunter2", "email": "x"}', 422],
    ["r.example", "u:hunter2", 400],
    ["R%20example", '{"username": "u", "password": "hunter2"}', 422],
    ["nohost", '{"username": "u", "password": "hunter2"}', 422],
  ])("PUT of %s with %s gets %d and never shows the password", async (host, body, status) => {
    const { scheduler, call } = await begin();
    const answer = await call("PUT", `/cluster/registry/${host}`, body);
    expect(answer.status).toBe(status);
    expect(answer.text).not.toMatch(/hunter2|77123/);
    await scheduler.stop();
  });
});

describe("docker's own logins", () => {
  const basic = (text: string) => ({ auth: btoa(text) });
  const CASES: [what: string, config: unknown, host: string, expected: unknown][] = [
    ["an auth", { auths: { "r:5000": basic("u:p:q") } }, "r:5000", { username: "u", password: "p:q" }],
    ["an address", { auths: { "https://r.example/v1/": basic("u:p") } }, "r.example", { username: "u", password: "p" }],
    [
      "Docker Hub",
      { auths: { "https://index.docker.io/v1/": basic("u:p") } },
      "docker.io",
      { username: "u", password: "p" },
    ],
    ["a token", { auths: { r: { identitytoken: "t" } } }, "r", { identityToken: "t" }],
    ["another host", { auths: { "r:5000": basic("u:p") } }, "r:5001", undefined],
    ["nothing", {}, "r", undefined],
    ["no JSON", "{", "r", undefined],
    ["a helper that is missing", { credHelpers: { r: "no-such-helper" } }, "r", undefined],
    ["a helper with a path", { credHelpers: { r: "../../bin/sh" } }, "r", undefined],
    ["a helper of its own", { credHelpers: { r: "test" }, credsStore: "none" }, "r", { username: "r", password: "h" }],
    ["the store", { credsStore: "test", auths: { r: {} } }, "r", { username: "r", password: "h" }],
    ["a helper's token", { credsStore: "test" }, "token", { identityToken: "h" }],
    [
      "a store that has none",
      { credsStore: "test", auths: { absent: basic("u:p") } },
      "absent",
      { username: "u", password: "p" },
    ],
  ];
  test.each(CASES)("%s", async (_, config, host, expected) => {
    const dir = fresh();
    writeFileSync(join(dir, "config.json"), typeof config === "string" ? config : JSON.stringify(config));
    const helper = `#!/bin/sh
read -r server || true
case "$server" in
  absent) echo "credentials not found in native keychain"; exit 1 ;;
  token) echo '{"Username": "<token>", "Secret": "h"}' ;;
  *) printf '{"Username": "%s", "Secret": "h"}' "$server" ;;
esac
`;
    writeFileSync(join(dir, "docker-credential-test"), helper, { mode: 0o755 });
    const login = nodeLogins({ configDir: dir, searchPath: dir, log: silentLog });
    expect(await login(host)).toEqual(expected as undefined);
  });

  test("without a file there are none", async () => {
    const login = nodeLogins({ configDir: join(root, "nowhere"), searchPath: "", log: silentLog });
    expect(await login("r")).toBeUndefined();
  });
});
