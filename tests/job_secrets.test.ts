/** Secrets in compose documents: which have a value, the mark that stands for one, and what keeps values out of everything else. */
import { describe, expect, test } from "bun:test";
import { MARK, MARK_KEY } from "../src/job_secrets.ts";
import { parseJob, type ParsedJob } from "../src/job_spec.ts";
import type { ServiceSpec } from "../src/model_spec.ts";

type Beside = { files?: Record<string, string>; env?: Record<string, string> };

function parse(body: string, { files = {}, env = {} }: Beside = {}) {
  return parseJob(body, {
    jobId: "shop",
    env: new Map(Object.entries(env)),
    files: new Map(Object.entries(files).map(([path, text]) => [path, Buffer.from(text)])),
  });
}

function job(body: string, beside?: Beside): ParsedJob {
  const result = parse(body, beside);
  if (!result.ok) throw new Error(JSON.stringify(result.details));
  return result.job;
}

function spec(lines: string, beside: Beside = BESIDE): ServiceSpec {
  const [service] = job(document(lines), beside).services;
  if (!service) throw new Error("no service");
  return service.spec;
}

/** A document whose one service has these lines. */
function document(lines: string, secrets = SECRETS): string {
  return `services:\n  app:\n    image: busybox\n${lines.replaceAll(/^/gm, "    ")}\n${secrets}`;
}

const SECRETS = "secrets:\n  pw: {environment: PW}\n  cert: {file: ./tls/cert.pem}\n  node: {file: /etc/pw}\n";
const BESIDE = { files: { "tls/cert.pem": "hunter-file", "tls/ca.pem": "public" }, env: { PW: "hunter-env" } };

describe("mounts of secrets", () => {
  const secret = { type: "secret", secret_id: "", read_only: true, mode: 0o444 };
  test.each([
    ["secrets: [pw]", { ...secret, name: "pw", target: "/run/secrets/pw" }],
    ["secrets: [cert]", { ...secret, name: "cert", target: "/run/secrets/cert" }],
    ["secrets: [{source: pw, target: other}]", { ...secret, name: "pw", target: "/run/secrets/other" }],
    ["secrets: [{source: cert, target: /else}]", { ...secret, name: "cert", target: "/else" }],
    [
      "secrets: [{source: cert, uid: '7', gid: '8', mode: 0400}]",
      { ...secret, name: "cert", target: "/run/secrets/cert", uid: 7, gid: 8, mode: 0o400 },
    ],
  ])("%s", (lines, mount) => {
    expect(spec(lines).mounts).toEqual([mount as ServiceSpec["mounts"][0]]);
    expect(spec(lines).files).toBeUndefined();
  });

  test("an absolute file stays the node's own", () => {
    expect(spec("secrets: [node]").mounts).toMatchObject([{ type: "bind", source: "/etc/pw" }]);
  });

  test("values are in what the master seals, and in nothing else that is made of a document", () => {
    const parsed = job(document("secrets: [pw, cert]"), BESIDE);
    const { secrets, chunks, ...rest } = parsed;
    expect(secrets.map(({ name, data }) => [name, Buffer.from(data ?? []).toString()])).toEqual([
      ["cert", "hunter-file"],
      ["pw", "hunter-env"],
    ]);
    expect([...chunks]).toEqual([]);
    expect(JSON.stringify(rest)).not.toContain("hunter");
  });

  test("a bind of a directory does not show a secret's file, a bind of the file itself does, both with a warning", () => {
    const bound = job(document("volumes: ['.:/app']\nsecrets: [cert]"), BESIDE);
    expect(bound.services[0]?.spec.files?.map(({ path }) => path)).toEqual(["tls/ca.pem"]);
    expect([...bound.chunks.values()].map((data) => Buffer.from(data).toString())).toEqual(["public"]);
    expect(bound.warnings).toMatchObject([
      { path: "services.app.volumes[0]", message: expect.stringContaining("does not show ./tls/cert.pem") },
    ]);
    const named = job(document("volumes: ['./tls/cert.pem:/cert.pem']"), BESIDE);
    expect(named.services[0]?.spec.files?.map(({ path }) => path)).toEqual(["tls/cert.pem"]);
    expect(named.warnings).toMatchObject([{ message: expect.stringContaining("lies unencrypted") }]);
  });

  test("a value over the limit is refused with its length and not with a word of it", () => {
    const result = parse(document("secrets: [pw]"), { ...BESIDE, env: { PW: "hunter".repeat(100_000) } });
    expect(result).toMatchObject({
      ok: false,
      details: [{ path: "secrets.pw", message: "is 600000 bytes long; a secret has at most 512000", line: 6 }],
    });
  });

  test("an empty value is a value, and one that no service mounts is kept all the same", () => {
    const { secrets } = job(document("tty: true"), { env: { PW: "" } });
    expect(secrets).toMatchObject([{ name: "pw", data: Buffer.from("") }]);
    expect(job(document("tty: true")).secrets).toEqual([]);
  });
});

describe("the mark", () => {
  const marked = (document: string) => (JSON.parse(document) as { secrets: Record<string, object> }).secrets;

  test("is at each secret that has a value, and the document with it is read as the same", () => {
    const first = job(document("secrets: [pw, cert, node]"), BESIDE);
    expect(marked(first.document)).toEqual({
      pw: { environment: "PW", [MARK_KEY]: MARK },
      cert: { file: "./tls/cert.pem", [MARK_KEY]: MARK },
      node: { file: "/etc/pw" },
    });
    const again = job(first.document);
    expect(again.document).toBe(first.document);
    expect(again.services).toEqual(first.services);
    expect(again.secrets).toMatchObject([
      { name: "cert" },
      { name: "pw", place: { path: `secrets.pw.${MARK_KEY}`, line: 1 } },
    ]);
    expect(again.secrets.map(({ data }) => data)).toEqual([undefined, undefined]);
  });

  test("gives way to a value that is sent along", () => {
    const { document: text } = job(document("secrets: [pw, cert]"), BESIDE);
    const { secrets } = job(text, { env: { PW: "new" } });
    expect(secrets.map(({ data }) => data && Buffer.from(data).toString())).toEqual([undefined, "new"]);
  });

  test.each([
    ["pw: {environment: PW, x-cacophony-value: hunter2}", "is kept for Cacophony's mark"],
    ["pw: {environment: PW, x-cacophony-value: {a: b}}", "is kept for Cacophony's mark"],
    ["pw: {file: /etc/pw, x-cacophony-value: (redacted)}", "none of this secret is kept here"],
    ["pw: {external: true, x-cacophony-value: (redacted)}", "none of this secret is kept here"],
  ])("is refused as in %s", (line, fault) => {
    const result = parse(document("tty: true", `secrets:\n  ${line}`), { env: { PW: "x" } });
    expect(result).toMatchObject({
      ok: false,
      details: [{ path: "secrets.pw.x-cacophony-value", line: 6, message: expect.stringContaining(fault) }],
    });
    expect(JSON.stringify(result)).not.toContain("hunter2");
  });

  test("leaves a document alone that has no value: what a service mounts is asked for", () => {
    const result = parse(document("secrets: [pw, cert]"));
    expect(result).toMatchObject({
      ok: false,
      details: [
        { path: "services.app.secrets[0]", message: expect.stringContaining("send ?env.PW=…") },
        { path: "services.app.secrets[1]", message: expect.stringContaining("was not sent") },
      ],
    });
  });
});
