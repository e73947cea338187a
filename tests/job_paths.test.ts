/** Where relative paths lead: those of a document that lies in a directory of the project, and of the files that it names. */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseJob, type ParsedJob } from "../src/job_spec.ts";

const DOCUMENT = `
include:
  - ../other/one.yaml
  - {path: ../other/two.yaml, project_directory: .., env_file: values.env}
services:
  app:
    image: busybox
    extends: {file: ../other/base.yaml, service: base}
    env_file: [../a.env, {path: b.env, required: false}]
    volumes: [../files/x:/x, ./y:/y, .:/here, ..:/all, .data:/z, /abs:/abs, named:/n, {type: bind, source: ../files, target: /f}, {type: bind, source: plain, target: /p}]
    configs: [c]
    secrets: [s]
    security_opt: [seccomp=../profile.json]
configs: {c: {file: ../files/c.conf}}
secrets: {s: {file: s.txt}}
volumes: {named: }
`;
const FILES = {
  "other/base.yaml":
    "services: {base: {image: x, volumes: ['./fromother:/o', '../fromroot:/r'], env_file: o.env, security_opt: [no-new-privileges]}}",
  "other/one.yaml": "services: {one: {image: one, volumes: ['./d:/d', '../e:/e'], security_opt: ['seccomp=p1.json']}}",
  "other/two.yaml": "services: {two: {image: 'two:${TAG}', volumes: ['./d:/d'], env_file: a.env}}",
  "other/o.env": "O=1",
  "a.env": "A=1",
  "docker/values.env": "TAG=3",
  "profile.json": '{"at":"root"}',
  "docker/p1.json": '{"at":"docker"}',
  "files/c.conf": "c",
  "docker/s.txt": "s",
};

function parse(body: string, options: { directory?: string; files?: Record<string, string> } = {}) {
  const files = Object.entries(options.files ?? {}).map(([path, text]): [string, Uint8Array] => [
    path,
    Buffer.from(text),
  ]);
  const { directory } = options;
  return parseJob(body, { jobId: "shop", env: new Map(), files: new Map(files), ...(directory ? { directory } : {}) });
}

function job(...sent: Parameters<typeof parse>): ParsedJob {
  const result = parse(...sent);
  if (!result.ok) throw new Error(result.details.map(({ path, message }) => `${path}: ${message}`).join("\n"));
  return result.job;
}

function faults(...sent: Parameters<typeof parse>): string {
  const result = parse(...sent);
  return result.ok ? "" : result.details.map(({ path, message }) => `${path}: ${message}`).join("\n");
}

describe("a document in a directory of the project", () => {
  const sent = job(DOCUMENT, { directory: "docker", files: FILES });
  const specs = new Map(sent.services.map(({ service_name, spec }) => [service_name, spec]));

  test("has its paths from there, and other files theirs as compose has them", () => {
    const binds = Object.fromEntries(
      Array.from(specs, ([name, { mounts }]) => [
        name,
        mounts.flatMap((mount) => (mount.type === "bind" ? [`${mount.source}:${mount.target}`] : [])),
      ]),
    );
    // What docker compose config of 2.26.1 says of these files, below the project directory.
    expect(binds).toEqual({
      app: [
        "other/fromother:/o",
        "fromroot:/r",
        "files/x:/x",
        "docker/y:/y",
        "docker:/here",
        ".:/all",
        "docker/.data:/z",
        "/abs:/abs",
        "files:/f",
        "docker/plain:/p",
        "files/c.conf:/c",
      ],
      one: ["other/d:/d", "e:/e"],
      two: ["d:/d"],
    });
    expect(specs.get("app")?.environment).toEqual(["A=1", "O=1"]);
    expect(specs.get("app")?.security_opt).toEqual(["no-new-privileges", 'seccomp={"at":"root"}']);
    expect(specs.get("one")?.security_opt).toEqual(['seccomp={"at":"docker"}']);
    expect(specs.get("two")?.environment).toEqual(["A=1"]);
    expect(specs.get("two")?.image).toBe("two:3");
    expect(sent.secrets.map(({ name, file }) => [name, file])).toEqual([["s", "docker/s.txt"]]);
    expect(specs.get("app")?.files?.map(({ path }) => path)).toContain("files/c.conf");
  });

  test("means the same when it comes back as the cluster shows it, without a directory", () => {
    const again = job(sent.document, { files: FILES });
    expect(again.services).toEqual(sent.services);
    expect(again.document).toBe(sent.document);
  });

  test("names a file that was not sent by its path from the root", () => {
    const missing = faults("services: {a: {image: x, env_file: ../a.env}}", { directory: "deploy/docker" });
    expect(missing).toContain("add -F 'file=@./deploy/a.env;filename=./deploy/a.env' to curl");
  });

  test.each([
    ["services: {a: {image: x, volumes: ['../../x:/x']}}", "services.a.volumes[0]"],
    ["services: {a: {image: x, env_file: ../../x}}", "services.a.env_file[0]"],
    ["services: {a: {image: x, configs: [c]}}\nconfigs: {c: {file: ../../x}}", "services.a.configs[0]"],
    ["include: [../../x]\nservices: {}", "include[0]"],
  ])("is refused where a path leaves the root: %s", (body, path) => {
    expect(faults(body, { directory: "docker" })).toContain(`${path}: `);
    expect(faults(body, { directory: "docker" })).toContain("leaves the job's project directory");
  });
});

test.each([
  ["volumes: ['../x:/x']", "DIR/compose.yaml"],
  ["volumes: ['./a/../../../x:/x']", "DIR/DIR/compose.yaml"],
  ["env_file: ../../x.env", "DIR/DIR/compose.yaml"],
  ["label_file: ../x", "DIR/compose.yaml"],
  ["security_opt: ['seccomp:../x.json']", "DIR/compose.yaml"],
  ["extends: {file: ../x.yaml, service: a}", "DIR/compose.yaml"],
])("a path above a document without a directory is a fault that says how to send it: %s", (line, path) => {
  const found = faults(`services:\n  app:\n    image: x\n    ${line}`);
  expect(found).toContain(`-F 'compose=@${path};filename=${path}'`);
});

test("a path of a thousand levels is refused with a hint of a bounded length", () => {
  const found = faults(`services: {a: {image: x, volumes: ['${"../".repeat(10_000)}x:/x']}}`);
  expect(found).toContain("leaves the job's project directory");
  expect(found.length).toBeLessThan(1000);
});

test.each([
  ["an empty env_file stays empty", "env_file: ''", "names no file"],
  ["a path of Windows stays one", "volumes: [{type: bind, source: 'C:\\x', target: /x}]", "a path of Windows"],
  ["a home stays one", "volumes: ['~/x:/x']", "whose home is meant"],
])("%s below a directory", (_, line, message) => {
  expect(faults(`services:\n  app:\n    image: x\n    ${line}`, { directory: "docker" })).toContain(message);
});

test("every fixture that is accepted from a directory means the same when it comes back without one", () => {
  let accepted = 0;
  for (const folder of ["valid", "awesome"]) {
    const fixtures = join(import.meta.dir, "fixtures/compose", folder);
    for (const name of readdirSync(fixtures).filter((file) => file.endsWith(".yaml"))) {
      const result = parse(readFileSync(join(fixtures, name), "utf8"), { directory: "deploy/docker" });
      if (!result.ok) continue;
      accepted += 1;
      const again = job(result.job.document);
      expect([name, again.document, again.services]).toEqual([name, result.job.document, result.job.services]);
    }
  }
  expect(accepted).toBeGreaterThan(50);
});
