/**
 * @module Debian's docker-compose (1.29 in Debian 12, 2.26 in Debian 13) and ours on one real engine, key by key: each makes a
 * container of every service below without starting it, and `docker inspect` must say the same of both, but for what is
 * listed with its reason.
 */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { containerOptions } from "../src/container_options.ts";
import { openEngine } from "../src/docker.ts";
import { composeMounts } from "../src/job_secrets.ts";
import { parseJob, type ParsedService, type ParsedJob } from "../src/job_spec.ts";
import { canonical, type Json, type JsonObject } from "./compose_compare.ts";
import { Lab, type LabHost } from "./lab.ts";

setDefaultTimeout(120_000);

type Row = [key: string, lines: string];

const PROJECT = "t";
const VARIABLES = { GIVEN: "by the sender", TAG: "latest" };

/** What a document of each file format says besides its services. */
const REST = `
networks:
  front: {}
  back: {ipam: {config: [{subnet: 10.201.7.0/24, gateway: 10.201.7.1}]}}
volumes:
  data: {}
  named: {name: a-name-of-its-own}
secrets:
  password: {file: ./password.txt}
`;

/** Keys of every file format. */
const EVERYWHERE: Row[] = [
  ["image", "image: busybox:${TAG}"],
  ["command", 'command: sh -c \'echo "a b" $$HOME\' "two words" plain'],
  ["command", "command: [sh, -c, 'echo a b']"],
  ["command", "command: []"],
  ["entrypoint", "entrypoint: /bin/sh -c 'exit 1'"],
  ["entrypoint", "entrypoint: [/bin/echo, a]\ncommand: b"],
  ["environment", "environment: {TEXT: a b, NUMBER: 5, FRACTION: 1.50, FLAG: 'true', EMPTY: '', GIVEN: }"],
  ["environment", 'environment: [A=1, B=x=y, GIVEN, "C="]'],
  ["env_file", "env_file: ./app.env\nenvironment: {FROM_BOTH: own}"],
  ["labels", "labels: {a.b: c, number: 7, empty: ''}"],
  ["labels", "labels: [one=1, two, three=a=b]"],
  ["user", "user: '1000:1000'"],
  ["working_dir", "working_dir: /srv"],
  ["hostname, domainname", "hostname: web\ndomainname: example.org"],
  ["mac_address", "mac_address: 02:42:ac:11:65:43"],
  ["tty, stdin_open", "tty: true\nstdin_open: true"],
  ["privileged", "privileged: true"],
  ["read_only, tmpfs", "read_only: true\ntmpfs: /run"],
  ["tmpfs", "tmpfs: [/a, '/b:size=64m,mode=1777']"],
  ["init", "init: true"],
  ["stop_signal", "stop_signal: SIGUSR1"],
  ["stop_grace_period", "stop_grace_period: 1m30s"],
  ["stop_grace_period", "stop_grace_period: 10s"],
  ["restart", "restart: always"],
  ["restart", "restart: unless-stopped"],
  ["restart", "restart: on-failure:5"],
  ["restart", "restart: 'no'"],
  ["cap_add, cap_drop", "cap_add: [NET_ADMIN, SYS_TIME]\ncap_drop: [ALL]"],
  ["cgroup_parent", "cgroup_parent: /below"],
  ["devices", "devices: ['/dev/null:/dev/void:rw', /dev/zero]"],
  ["device_cgroup_rules", "device_cgroup_rules: ['c 1:3 mr', 'a 7:* rmw']"],
  ["dns, dns_search, dns_opt", "dns: 9.9.9.9\ndns_search: [example.org, example.com]\ndns_opt: [use-vc]"],
  ["dns", "dns: [1.1.1.1, 9.9.9.9]\ndns_search: example.org"],
  ["extra_hosts", "extra_hosts: ['db.local:10.0.0.5', 'v6.local:::1']"],
  ["extra_hosts", "extra_hosts: {db.local: 10.0.0.5}"],
  ["expose", "expose: ['3000', '53/udp']"],
  ["ports", "ports: ['80']"],
  ["ports", "ports: ['8080:80', '127.0.0.1:8443:443', '53:53/udp', '127.0.0.1::81']"],
  ["ports", "ports: ['9000-9002:7000-7002', '8000-8010:90']"],
  ["group_add", "group_add: [mail, '500']"],
  ["healthcheck", "healthcheck: {test: [CMD, 'true'], interval: 1m30s, timeout: 500ms, retries: 4, start_period: 5s}"],
  ["healthcheck", "healthcheck: {test: echo $$HOME || exit 1, interval: 90s}"],
  ["healthcheck", "healthcheck: {disable: true}"],
  ["healthcheck", "healthcheck: {test: [NONE]}"],
  ["ipc, pid", "ipc: host\npid: host"],
  ["ipc", "ipc: shareable"],
  ["logging", "logging: {driver: json-file, options: {max-size: 10m, max-file: '3'}}"],
  ["logging", "logging: {driver: none}"],
  ["network_mode", "network_mode: host"],
  ["network_mode", "network_mode: none"],
  ["network_mode", "network_mode: bridge"],
  ["network_mode", "network_mode: default"],
  ["networks", "networks: [front]"],
  ["networks", "networks: {front: {aliases: [other, more]}}"],
  ["networks", "networks: {back: {ipv4_address: 10.201.7.8}}"],
  ["networks", "networks: {front: {aliases: [other, more]}, back: {ipv4_address: 10.201.7.9}}"],
  ["security_opt", "security_opt: [no-new-privileges, seccomp=unconfined, 'label=disable']"],
  ["shm_size", "shm_size: 128m"],
  ["shm_size", "shm_size: 1048576"],
  ["sysctls", "sysctls: {net.core.somaxconn: 1024}"],
  ["sysctls", "sysctls: [net.ipv4.tcp_syncookies=0]"],
  ["ulimits", "ulimits: {nproc: 65535, nofile: {soft: 20000, hard: 40000}}"],
  ["userns_mode", "userns_mode: host"],
  ["isolation", "isolation: default"],
  ["volumes", "volumes: ['data:/data', 'named:/named:ro', /anonymous]"],
  ["volumes", "volumes: ['/tmp:/host:ro', './conf:/conf', './one.conf:/one.conf:ro,z', '/srv:/srv:rslave']"],
  ["volumes", "volumes: ['data:/data:nocopy']"],
  ["secrets", "secrets: [password, {source: password, target: other}]"],
  ["depends_on", "depends_on: [s0]"],
  ["links", "links: [s0, 's0:nickname']"],
];

/** Keys of file format 2.4 and of the Compose Specification. */
const OLDER: Row[] = [
  ["mem_limit, mem_reservation, memswap_limit", "mem_limit: 512m\nmem_reservation: 256m\nmemswap_limit: 1g"],
  ["mem_swappiness", "mem_swappiness: 60"],
  ["memswap_limit", "mem_limit: 1073741824\nmemswap_limit: -1"],
  ["cpus", "cpus: 1.5"],
  ["cpu_shares, cpuset", "cpu_shares: 512\ncpuset: '0'"],
  ["cpu_period, cpu_quota", "cpu_period: 50000\ncpu_quota: 25000"],
  ["pids_limit", "pids_limit: 100"],
  ["oom_kill_disable, oom_score_adj", "oom_kill_disable: true\noom_score_adj: 500"],
  [
    "blkio_config",
    "blkio_config: {device_read_bps: [{path: /dev/null, rate: 12mb}], device_write_iops: [{path: /dev/zero, rate: 30}]}",
  ],
  ["runtime", "runtime: runc"],
  ["cpu_count, cpu_percent", "cpu_count: 2\ncpu_percent: 50"],
  ["platform", "platform: linux/amd64"],
  ["scale", "scale: 1"],
];

/** Keys of file format 3 and of the Compose Specification. */
const NEWER: Row[] = [
  ["ports", "ports: [{target: 80, published: 8081, protocol: udp}, {target: 81}]"],
  ["volumes", "volumes: [{type: volume, source: data, target: /data, read_only: true, volume: {nocopy: true}}]"],
  ["volumes", "volumes: [{type: bind, source: ./conf, target: /conf, read_only: true}]"],
  ["volumes", "volumes: [{type: bind, source: /tmp, target: /t, bind: {propagation: rslave}}]"],
  ["volumes", "volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1048576}}, {type: volume, target: /anonymous}]"],
  ["depends_on", "depends_on: {s0: {condition: service_started}}"],
  ["deploy", "deploy: {resources: {limits: {cpus: '0.5', memory: 64M}, reservations: {memory: 32M}}}"],
  ["deploy", "deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: 1, driver: nvidia}]}}}"],
  ["deploy", "deploy: {restart_policy: {condition: on-failure, max_attempts: 3}}"],
  ["init", "init: false"],
];

/** Documents by what their first line is. */
const DOCUMENTS: readonly [format: string, head: string, rows: readonly Row[]][] = [
  ["the Compose Specification", "", [...EVERYWHERE, ...OLDER, ...NEWER]],
  ["file format 2.4", 'version: "2.4"', [...EVERYWHERE.filter(([key]) => key !== "secrets"), ...OLDER]],
  ["file format 3.8", 'version: "3.8"', [...EVERYWHERE, ...NEWER]],
];

let lab: Lab;
let host: LabHost;
let dir: string;

beforeAll(async () => {
  lab = await Lab.start({ hosts: 1 });
  host = lab.host(1);
  await host.importImage("busybox:latest");
  dir = join(host.dir, "project");
  mkdirSync(join(dir, "conf"), { recursive: true });
  const files = { "app.env": "FROM_FILE=1\nFROM_BOTH=file\n", "one.conf": "1\n", "password.txt": "hunter2\n" };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, name), text);
});

afterEach(async () => {
  const all = (await host.docker("ps", "-aq")).split("\n");
  if (all[0]) await host.docker("rm", "-f", ...all);
});

afterAll(async () => {
  await lab?.stop();
});

/** `s0`, `s1`, … in the order of the rows. */
function written(head: string, rows: readonly Row[]): string {
  const indented = (text: string) => text.replaceAll(/^/gm, "    ");
  const services = rows.map(([, lines], index) => {
    const image = lines.startsWith("image") ? "" : "image: busybox\n";
    return `  s${index}:\n${indented(image + lines)}`;
  });
  const rest = head.includes("2.") ? REST.replace(/secrets:[^]*/, "") : REST;
  return `${head}\nservices:\n${services.join("\n")}\n${rest}`;
}

async function theirs(document: string): Promise<Map<string, Json>> {
  writeFileSync(join(dir, "docker-compose.yml"), document);
  const env = [
    "env",
    `DOCKER_HOST=unix://${host.dockerSocket}`,
    ...Object.entries(VARIABLES).map((pair) => pair.join("=")),
  ];
  const run = await host.run([
    ...env,
    "docker-compose",
    "--project-directory",
    dir,
    "-f",
    join(dir, "docker-compose.yml"),
    "-p",
    PROJECT,
    "up",
    "--no-start",
  ]);
  if (run.exitCode !== 0) throw new Error(`docker-compose: ${run.stderr}`);
  return inspected("com.docker.compose.service");
}

/** As the executor makes them: the body, and then the networks but the first. */
async function ours(document: string): Promise<Map<string, Json>> {
  const files = new Map(["app.env", "one.conf", "password.txt"].map((name) => [name, readFileSync(join(dir, name))]));
  const result = parseJob(document, { jobId: PROJECT, env: new Map(Object.entries(VARIABLES)), files });
  if (!result.ok) throw new Error(JSON.stringify(result.details));
  const engine = openEngine(`unix://${host.dockerSocket}`);
  for (const service of result.job.services) {
    const { NetworkingConfig: networking, ...body } = bodyOf(service, result.job.secrets);
    const [first, ...others] = Object.entries(networking?.EndpointsConfig ?? {});
    const endpoints = first && { NetworkingConfig: { EndpointsConfig: Object.fromEntries([first]) } };
    const id = await engine.create(`ours-${service.service_name}`, { ...body, ...endpoints });
    for (const [network, endpoint] of others) await engine.connect(id, network, endpoint);
  }
  return inspected("cacophony.service");
}

/** Where secrets lie is a difference on purpose, so they are bound as compose binds them. */
function bodyOf({ spec, service_name: serviceName }: ParsedService, secrets: ParsedJob["secrets"]) {
  const mounts = composeMounts(spec.mounts, secrets);
  const names = { clusterId: "c", nodeId: "n", jobId: PROJECT, serviceName, slot: 1, allocationId: serviceName };
  return containerOptions(
    { ...spec, mounts },
    { ...names, networkName: `${PROJECT}_default`, projectDir: dir, secretsDir: dir },
  );
}

/** What `docker inspect` says, by the value of a label, brought to one spelling. */
async function inspected(label: string): Promise<Map<string, Json>> {
  const list = (await (await host.engine(`/containers/json?all=1&filters={"label":["${label}"]}`)).json()) as {
    Id: string;
  }[];
  const all = await Promise.all(
    list.map(async ({ Id }) => (await host.engine(`/containers/${Id}/json`)).json() as Promise<Inspect>),
  );
  return new Map(all.map((one) => [one.Config.Labels[label] ?? "", comparable(one)]));
}

type Inspect = {
  Id: string;
  Name: string;
  Config: { Labels: Record<string, string>; Hostname: string; [key: string]: Json };
  HostConfig: { [key: string]: Json };
  NetworkSettings: { Networks: Record<string, { Aliases: string[] | null; IPAMConfig: Json; Links: Json }> };
  Mounts: { Name?: string; Source?: string; Destination: string; [key: string]: Json | undefined }[];
};

/** Without what is each container's own: its id where it stands for a name, labels of its maker, names of anonymous volumes. */
function comparable({ Id, Name, Config, HostConfig, NetworkSettings, Mounts }: Inspect): Json {
  const labels = Object.entries(Config.Labels).filter(([name]) => !/^(com\.docker\.compose|cacophony)\./.test(name));
  const networks = Object.entries(NetworkSettings.Networks).map(([name, { Aliases, IPAMConfig, Links }]) => {
    const aliases = (Aliases ?? []).filter((alias) => !Id.startsWith(alias) && `/${alias}` !== Name);
    return [name, { Aliases: Object.fromEntries(aliases.map((alias) => [alias, true])), IPAMConfig, Links }] as const;
  });
  // Mode is the text that Binds had for RW and Propagation.
  const mounts = Mounts.map(({ Name = "", Source = "", Mode: _, ...mount }) => {
    const isAnonymous = /^[0-9a-f]{64}$/.test(Name);
    return [mount.Destination, { ...mount, Name: isAnonymous ? "" : Name, Source: isAnonymous ? "" : Source }] as const;
  });
  const { HostConfig: host } = canonical({ HostConfig: { ...HostConfig }, Volumes: Config["Volumes"] ?? null });
  return {
    Config: {
      ...sortedLists({ ...Config, Volumes: null }),
      Hostname: Id.startsWith(Config.Hostname) ? "" : Config.Hostname,
      Labels: Object.fromEntries(labels),
    },
    HostConfig: sortedLists(host as JsonObject),
    Networks: Object.fromEntries(networks),
    Mounts: Object.fromEntries(mounts) as JsonObject,
  };
}

/** The lists whose order means nothing, in one order. */
function sortedLists(members: JsonObject): JsonObject {
  const sort = (list: Json[]) => list.toSorted((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1));
  return Object.fromEntries(
    Object.entries(members).map(([key, value]) => [
      key,
      Array.isArray(value) && ["Env", "ExtraHosts", "Mounts", "Ulimits"].includes(key) ? sort(value) : value,
    ]),
  );
}

/** `HostConfig.Memory: 1 | 2` for each member that differs: theirs, and ours. What is off or empty is as if it were not there. */
function differences(a: Json | undefined, b: Json | undefined, path = ""): string[] {
  const holds = (value: Json | undefined) => typeof value === "object" && value !== null;
  if (holds(a) || holds(b)) {
    const [left, right] = [a ?? {}, b ?? {}] as Record<string, Json>[];
    const keys = [...new Set([...Object.keys(left ?? {}), ...Object.keys(right ?? {})])];
    return keys.flatMap((key) => differences(left?.[key], right?.[key], path === "" ? key : `${path}.${key}`));
  }
  if ((!a && !b) || a === b) return [];
  return [`${path}: ${JSON.stringify(a)} | ${JSON.stringify(b)}`];
}

/** What differs and may, and why. */
const KNOWN: readonly [difference: RegExp, reason: string][] = [
  [/^s0 image: Networks\.t_default\.Aliases\.nickname/, "the name that a link gives is known to the whole job"],
  [/^s\d+ links: Networks\.t_default\.Links/, "as above: Compose 2 makes links of Docker's own for it"],
  [
    /^s\d+ networks: Networks\.t_front\.Aliases\..*: undefined/,
    "1.29 joins further networks when it starts containers",
  ],
  [
    /^s\d+ [^:]*: Config\.Attach(Stdout|Stderr): true/,
    "Compose 2 attaches to what it creates; nothing is attached here",
  ],
];

describe("docker-compose and ours make containers of which docker inspect says the same", () => {
  test.each(DOCUMENTS.map(([format, ...rest]) => [format, rest] as const))("%s", async (_, [head, rows]) => {
    const document = written(head, rows);
    const wanted = await theirs(document);
    const made = await ours(document);
    expect(wanted.size).toBe(rows.length);
    const found = rows.flatMap(([key], index) =>
      differences(wanted.get(`s${index}`), made.get(`s${index}`)).map((text) => `s${index} ${key}: ${text}`),
    );
    expect(found.filter((text) => !KNOWN.some(([difference]) => difference.test(text)))).toEqual([]);
  });
});
