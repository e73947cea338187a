/**
 * Runs the compose cases of tests/fixtures/compose: small valid documents with the piece of the create body that each must
 * lead to, small invalid ones with one fault each, and the files of docker/awesome-compose (CC0) with the bodies that
 * Compose 2.26.1 sent for them.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseDocument } from "yaml";
import { containerOptions } from "../src/container_options.ts";
import { composeMounts, type SentSecret } from "../src/job_secrets.ts";
import { parseJob, type ParsedService } from "../src/job_spec.ts";
import { differences, type JsonObject } from "./compose_compare.ts";

const ROOT = join(import.meta.dir, "fixtures/compose");
const PROJECT = "t";
const PROJECT_DIR = "/project";

/** Valid compose that is refused for now, each with a word of the reason. */
const NOT_YET: Readonly<Record<string, string>> = {};

/** Cases under `invalid` that are taken here, and why. */
const TAKEN: Readonly<Record<string, string>> = {
  "035-service-name-number.yaml": "a key is text, quoted or not",
  "203-relative-bind.yaml": "a relative path lies in the job's project directory",
  "209-replicas-with-fixed-port.yaml": "placement leaves what finds no node pending, with the reason",
  "217-privileged-host-access.yaml": "legal, and nobody has forbidden it",
};

type Expectation = {
  env?: Record<string, string>;
  services: Record<string, JsonObject>;
  replicas?: Record<string, number>;
  scheduling?: Record<string, { mode?: string; after?: string[] }>;
};

function read(folder: string, file: string): Buffer {
  return readFileSync(join(ROOT, folder, file));
}

function yamlFiles(folder: string): string[] {
  return readdirSync(join(ROOT, folder))
    .filter((file) => file.endsWith(".yaml"))
    .toSorted();
}

function create({ spec, service_name }: ParsedService, secrets: readonly SentSecret[] = []): JsonObject {
  const mounts = composeMounts(spec.mounts, secrets);
  const body = containerOptions(
    { ...spec, mounts },
    {
      clusterId: "c",
      nodeId: "n",
      jobId: PROJECT,
      serviceName: service_name,
      slot: 1,
      allocationId: "0123456789",
      networkName: `${PROJECT}_default`,
      projectDir: PROJECT_DIR,
      secretsDir: "/secrets",
    },
  );
  return JSON.parse(JSON.stringify(body)) as JsonObject;
}

/** `{volume.X}` and `{network.X}` in an expectation stand for our names of them. */
function ourNames(expected: JsonObject): JsonObject {
  const text = JSON.stringify(expected)
    .replaceAll(/\{volume\.([^}]*)\}/g, `${PROJECT}_$1`)
    .replaceAll(/\{network\.([^}]*)\}/g, `${PROJECT}_$1`);
  return JSON.parse(text) as JsonObject;
}

describe("valid cases lead to the body that they expect", () => {
  test.each(yamlFiles("valid"))("%s", (file) => {
    const expected = JSON.parse(read("valid", file.replace(".yaml", ".expect.json")).toString()) as Expectation;
    const result = parseJob(read("valid", file), { jobId: PROJECT, env: new Map(Object.entries(expected.env ?? {})) });
    const reason = NOT_YET[file];
    if (!result.ok) {
      expect(result.details.map((detail) => detail.message).join("\n")).toContain(reason ?? "no reason to refuse this");
      return;
    }
    expect(reason).toBeUndefined();
    const services = new Map(result.job.services.map((service) => [service.service_name, service]));
    for (const [name, piece] of Object.entries(expected.services)) {
      const service = services.get(name);
      if (!service) throw new Error(`no service ${name}`);
      expect(differences(ourNames(piece), create(service))).toEqual([]);
    }
    for (const [name, { mode, after }] of Object.entries(expected.scheduling ?? {})) {
      const rules = services.get(name)?.rules;
      if (mode !== undefined) expect(rules?.mode).toBe(mode as "global");
      if (after !== undefined) expect(rules?.depends_on.map(({ service_name }) => service_name)).toEqual(after);
    }
    for (const [name, replicas] of Object.entries(expected.replicas ?? {})) {
      expect(services.get(name)?.scale ?? 1).toBe(replicas);
    }
  });
});

describe("invalid cases are refused, at the place of the fault", () => {
  const index = read("invalid", "INDEX.tsv")
    .toString()
    .trim()
    .split("\n")
    .slice(1)
    .map((row) => row.split("\t"));
  test.each(index.map(([file = "", , place = ""]) => [file, place]))("%s (%s)", (file, place) => {
    const result = parseJob(read("invalid", file), { jobId: PROJECT, env: new Map() });
    if (file in TAKEN) return expect(result.ok).toBe(true);
    if (result.ok) throw new Error("accepted");
    expect(result.details.every((detail) => detail.message.length > 0)).toBe(true);
    // What is no YAML, and what concerns the document as a whole, has no path; an alias bomb is where it grows too large.
    if (!place.startsWith("services.") || result.code === "unparseable") return;
    const roots = place.split(/[.[]/).slice(0, 2).join(".");
    expect(
      result.details.map((detail) => detail.path).filter((path) => /^$|^x-/.test(path) || path.startsWith(roots)),
    ).not.toBeEmpty();
  });

  test("each file has a row", () => {
    expect(index.map(([file]) => file).toSorted()).toEqual(yamlFiles("invalid"));
  });
});

describe("the bodies of awesome-compose are those that Compose 2.26.1 sent", () => {
  type Captured = { file: string; services: Record<string, { body: JsonObject }[]> };
  const captured = read("awesome", "captured-compose-2.26.1.jsonl")
    .toString()
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line.replaceAll("{dir}", PROJECT_DIR)) as Captured);

  test.each(captured.map((entry) => [entry.file, entry] as const))("%s", (file, { services }) => {
    const text = read("awesome", file).toString();
    const files = new Map([...text.matchAll(/file: (\S+)/g)].map(([, path = ""]) => [path, Buffer.from("sent")]));
    const result = parseJob(runnable(text), { jobId: PROJECT, env: new Map(), files });
    if (!result.ok) throw new Error(JSON.stringify(result.details));
    for (const [name, containers] of Object.entries(services)) {
      const service = result.job.services.find((candidate) => candidate.service_name === name);
      const sent = containers[0]?.body;
      if (!service || !sent) throw new Error(`no service ${name}`);
      expect(differences(withoutComposesOwn(sent), create(service, result.job.secrets))).toEqual([]);
    }
  });
});

/**
 * The document without what a job cannot have yet: an image stands in for `build` (Compose names it `t-<service>`), and the
 * home directory is the project's (as it was when the bodies were captured).
 */
function runnable(text: string): string {
  const document = parseDocument(text.replaceAll("~/", "./"), { merge: true });
  const services = document.toJS() as { services: Record<string, { build?: unknown; image?: string }> };
  for (const [name, service] of Object.entries(services.services)) {
    if (service.build !== undefined && service.image === undefined)
      document.setIn(["services", name, "image"], `${PROJECT}-${name}`);
    document.deleteIn(["services", name, "build"]);
  }
  return document.toString();
}

/** A captured body without Compose's names of networks and its labels. */
function withoutComposesOwn(sent: JsonObject): JsonObject {
  const { NetworkingConfig: _, Labels: __, HostConfig, ...rest } = sent;
  const { NetworkMode, ...host } = (HostConfig ?? {}) as JsonObject;
  return {
    ...rest,
    HostConfig: {
      ...host,
      ...(String(NetworkMode).startsWith(`${PROJECT}_`) ? {} : { NetworkMode: NetworkMode ?? null }),
    },
  };
}
