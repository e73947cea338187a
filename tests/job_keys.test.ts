/**
 * @module Every key of the table with a value that is taken, and the piece of the create body that it leads to, and one that
 * is refused, with the fault's place and words. A key without both makes the test fail.
 */
import { describe, expect, test } from "bun:test";
import { containerOptions } from "../src/container_options.ts";
import { DOCUMENT_KEYS, SERVICE_KEYS } from "../src/job_keys.ts";
import type { Table } from "../src/job_schema.ts";
import { parseJob } from "../src/job_spec.ts";

/** Key, a value that is taken, what the body then has, a value that is refused, and what the fault says. */
type Case = [key: string, taken: string, body: object, refused: string, fault: string];

const host = (HostConfig: object) => ({ HostConfig });
const restarts = (policy: string) => ({ Labels: { "cacophony.restart": policy } });
const number = "must be a whole number";
const flag = "must be true or false";
const list = "must be a list";
const mapping = "must be a mapping";
const text = "must be text";
const size = "is no size";
const duration = "no duration";
const cause = "not supported";

const SERVICE: readonly Case[] = [
  ["image", "busybox:1.36", { Image: "busybox:1.36" }, "Busybox", "lower case"],
  ["command", "a 'b c'", { Cmd: ["a", "b c"] }, "{a: b}", "must be a text or a list"],
  ["entrypoint", "[a, b]", { Entrypoint: ["a", "b"] }, "[1]", text],
  ["environment", "{B: 1, A: true}", { Env: ["A=true", "B=1"] }, "{A: [b]}", "not a list"],
  [
    "ports",
    '["8080:80/udp"]',
    {
      ExposedPorts: { "80/udp": {} },
      ...host({ PortBindings: { "80/udp": [{ HostIp: "", HostPort: "8080" }] } }),
    },
    '["80:x"]',
    "no number or range",
  ],
  ["volumes", "['/a:/b:ro']", host({ Binds: ["/a:/b:ro"] }), "['/a:b']", "not absolute"],
  [
    "restart",
    "on-failure:2",
    host({ RestartPolicy: { Name: "on-failure", MaximumRetryCount: 2 } }),
    "maybe",
    "allowed",
  ],
  ["labels", "[a=b, c]", { Labels: { a: "b", c: "" } }, "a=b", mapping],
  ["user", '"1000:1000"', { User: "1000:1000" }, "1000", "put it in quotes"],
  ["working_dir", "/w", { WorkingDir: "/w" }, "[/w]", text],
  ["hostname", "h", { Hostname: "h" }, "5", text],
  ["domainname", "d.example", { Domainname: "d.example" }, "{}", text],
  ["stop_grace_period", "1m30s", { StopTimeout: 90 }, "soon", duration],
  ["stop_signal", "SIGINT", { StopSignal: "SIGINT" }, "'!'", "write a signal"],
  ["scale", "2", {}, "-1", "at least 0"],
  ["deploy.replicas", "2", {}, "100001", "at most 100000"],
  ["deploy.mode", "global", {}, "globl", "did you mean global?"],
  ["deploy.resources.limits.cpus", "'0.5'", host({ NanoCpus: 5e8 }), "many", "must be a number"],
  ["deploy.resources.limits.memory", "64m", host({ Memory: 67108864 }), "64", "in quotes"],
  ["deploy.resources.limits.pids", "9", host({ PidsLimit: 9 }), "some", number],
  ["deploy.resources.reservations.cpus", "0.5", {}, "-1", "at least 0"],
  ["deploy.resources.reservations.memory", "32m", host({ MemoryReservation: 33554432 }), "x", size],
  [
    "deploy.resources.reservations.devices",
    "[{capabilities: [gpu], count: 1}]",
    host({ DeviceRequests: [{ Count: 1, Capabilities: [["gpu"]] }] }),
    "[{count: 1}]",
    "no capabilities",
  ],
  [
    "deploy.resources.reservations.generic_resources",
    "[{discrete_resource_spec: {kind: a, value: 1}}]",
    {},
    "[{discrete_resource_spec: {}}]",
    "kind and value",
  ],
  ["deploy.restart_policy.condition", "none", host({ RestartPolicy: { Name: "no" } }), "often", "allowed are none"],
  ["deploy.restart_policy.max_attempts", "3", restarts("always:3"), "-1", "at least 0"],
  ["deploy.restart_policy.delay", "5s", restarts("always:0:5000"), "5", "with its unit"],
  ["deploy.restart_policy.window", "5s", restarts("always:0:0:5000"), "x", duration],
  ["deploy.placement.constraints", "[node.role == worker]", {}, "[node.rol == a]", "did you mean node.role?"],
  ["deploy.placement.preferences", "[{spread: node.labels.a}]", {}, "[{spread: a}]", "labels of nodes"],
  ["deploy.placement.max_replicas_per_node", "1", {}, "-1", "at least 0"],
  ["deploy.labels", "{a: b}", {}, "b", mapping],
  ["deploy.endpoint_mode", "vip", {}, "[vip]", text],
  ["deploy.update_config", "{order: stop-first}", {}, "{order: last}", "allowed are start-first"],
  ["deploy.rollback_config", "{delay: 1s}", {}, "{dely: 1s}", "did you mean delay?"],
  ["mem_limit", "64m", host({ Memory: 67108864 }), "1m", "no less than 6m"],
  ["mem_reservation", "1g", host({ MemoryReservation: 2 ** 30 }), "1x", size],
  ["memswap_limit", "-1", host({ MemorySwap: -1 }), "64m", "needs mem_limit"],
  ["mem_swappiness", "10", host({ MemorySwappiness: 10 }), "101", "at most 100"],
  ["cpus", "1.5", host({ NanoCpus: 15e8 }), "[]", "must be a number"],
  ["cpu_count", "2", host({ CpuCount: 2 }), "-1", "at least 0"],
  ["cpu_percent", "50", host({ CpuPercent: 5000 }), "1.5", number],
  ["cpu_period", "100000", host({ CpuPeriod: 100000 }), "x", number],
  ["cpu_quota", "'50000'", host({ CpuQuota: 50000 }), "0.5", number],
  ["cpu_rt_period", "10", host({ CpuRealtimePeriod: 10 }), "[]", number],
  ["cpu_rt_runtime", "10", host({ CpuRealtimeRuntime: 10 }), "true", number],
  ["cpu_shares", "512", host({ CpuShares: 512 }), "-5", "at least 0"],
  ["cpuset", '"0,1"', host({ CpusetCpus: "0,1" }), "0", text],
  ["pids_limit", "-1", host({ PidsLimit: -1 }), "-2", "at least -1"],
  ["annotations", "{a: b}", host({ Annotations: { a: "b" } }), "5", mapping],
  ["blkio_config.weight", "300", host({ BlkioWeight: 300 }), "1001", "at most 1000"],
  [
    "blkio_config.weight_device",
    "[{path: /dev/a, weight: 5}]",
    host({ BlkioWeightDevice: [{ Path: "/dev/a", Weight: 5 }] }),
    "[{weigth: 5}]",
    "did you mean weight?",
  ],
  ...(["read_bps", "read_iops", "write_bps", "write_iops"] as const).map((rate): Case => {
    const name = rate.replace(/^./, (letter) => letter.toUpperCase());
    const field = `BlkioDevice${name.replace("_bps", "Bps").replace("_iops", "IOps")}`;
    const body = host({ [field]: [{ Path: "/dev/a", Rate: 1024 }] });
    return [`blkio_config.device_${rate}`, "[{path: /dev/a, rate: 1k}]", body, "[{path: /dev/a, rate: fast}]", size];
  }),
  ["cap_add", "[NET_ADMIN]", host({ CapAdd: ["NET_ADMIN"] }), "NET_ADMIN", list],
  ["cap_drop", "[ALL]", host({ CapDrop: ["ALL"] }), "{ALL: true}", list],
  ["cgroup", "private", host({ CgroupnsMode: "private" }), "mine", "allowed are host"],
  ["cgroup_parent", "m", host({ CgroupParent: "m" }), "5", text],
  ["credential_spec", "{registry: a}", host({ SecurityOpt: ["credentialspec=registry://a"] }), "{config: [a]}", text],
  ["device_cgroup_rules", "['c 1:3 r']", host({ DeviceCgroupRules: ["c 1:3 r"] }), "c", list],
  [
    "devices",
    "['/dev/a:/dev/b:r']",
    host({ Devices: [{ PathOnHost: "/dev/a", PathInContainer: "/dev/b", CgroupPermissions: "r" }] }),
    "['/dev/a:/dev/b:x']",
    "none of r, w and m",
  ],
  ["dns", "1.1.1.1", host({ Dns: ["1.1.1.1"] }), "one", "no IP address"],
  ["dns_opt", "[ndots:1]", host({ DnsOptions: ["ndots:1"] }), "a", list],
  ["dns_search", "a.example", host({ DnsSearch: ["a.example"] }), "5", text],
  ["expose", "[80, 53/udp]", { ExposedPorts: { "80/tcp": {}, "53/udp": {} } }, "[a]", "must be a port"],
  ["extra_hosts", "{a: 1.2.3.4}", host({ ExtraHosts: ["a:1.2.3.4"] }), "[a]", "name:address"],
  ["gpus", "all", host({ DeviceRequests: [{ Count: -1, Capabilities: [["gpu"]] }] }), "some", list],
  ["group_add", "[100, a]", host({ GroupAdd: ["100", "a"] }), "[1.5]", "a group's name or number"],
  [
    "healthcheck.test",
    "true || false",
    { Healthcheck: { Test: ["CMD-SHELL", "true || false"] } },
    "[a]",
    "starts with",
  ],
  ["healthcheck.interval", "5s", { Healthcheck: { Interval: 5e9 } }, "5", "with its unit"],
  ["healthcheck.timeout", "500ms", { Healthcheck: { Timeout: 5e8 } }, "-5s", "below 0"],
  ["healthcheck.start_period", "1m", { Healthcheck: { StartPeriod: 60e9 } }, "x", duration],
  ["healthcheck.start_interval", "1s", { Healthcheck: { StartInterval: 1e9 } }, "[]", "must be a duration"],
  ["healthcheck.retries", "'3'", { Healthcheck: { Retries: 3 } }, "-1", "at least 0"],
  ["healthcheck.disable", "true", { Healthcheck: { Test: ["NONE"] } }, "5", flag],
  ["init", "yes", host({ Init: true }), "1", flag],
  ["ipc", "shareable", host({ IpcMode: "shareable" }), "mine", "allowed are host"],
  ["isolation", "default", host({ Isolation: "default" }), "5", text],
  ["links", "[other]", {}, "[nobody]", "which the document does not have"],
  ["logging.driver", "none", host({ LogConfig: { Type: "none" } }), "5", text],
  ["logging.options", "{a: 1}", host({ LogConfig: { Config: { a: "1" } } }), "[a]", mapping],
  ["mac_address", "02:42:ac:11:00:02", {}, "02:42", "write a MAC address"],
  ["network_mode", "host", host({ NetworkMode: "host" }), "hots", "allowed are"],
  ["networks", "[default]", host({ NetworkMode: "t_default" }), "[other]", "top-level networks"],
  ["oom_kill_disable", "true", host({ OomKillDisable: true }), "x", flag],
  ["oom_score_adj", "-500", host({ OomScoreAdj: -500 }), "1001", "at most 1000"],
  ["pid", "host", host({ PidMode: "host" }), "mine", "allowed are host"],
  ["platform", "linux/amd64", {}, "x y", "write os/arch"],
  ["privileged", "on", host({ Privileged: true }), "maybe", flag],
  ["profiles", "[]", {}, "p", list],
  ["pull_policy", "every_12h", {}, "often", "allowed are always"],
  ["read_only", "true", host({ ReadonlyRootfs: true }), "0", flag],
  ["runtime", "runc", host({ Runtime: "runc" }), "5", text],
  ["security_opt", "[label:disable]", host({ SecurityOpt: ["label:disable"] }), "[odd]", "name=value"],
  ["shm_size", "1m", host({ ShmSize: 2 ** 20 }), "-1", "below 0"],
  ["stdin_open", "true", { OpenStdin: true }, "open", flag],
  ["storage_opt", "{size: 1g}", host({ StorageOpt: { size: "1g" } }), "[size]", mapping],
  ["sysctls", "[a=1]", host({ Sysctls: { a: "1" } }), "a=1", mapping],
  ["tmpfs", "/run:size=1m", host({ Tmpfs: { "/run": "size=1m" } }), "run", "not absolute"],
  ["tty", "true", { Tty: true }, "2", flag],
  [
    "ulimits",
    "{nofile: 5}",
    host({ Ulimits: [{ Name: "nofile", Soft: 5, Hard: 5 }] }),
    "{nofile: {soft: 1}}",
    "both soft",
  ],
  ["userns_mode", "host", host({ UsernsMode: "host" }), "mine", "allowed are host"],
  ["uts", "host", host({ UTSMode: "host" }), "mine", "allowed are host"],
  ["x-cacophony.publish", "mesh", {}, "everywhere", "allowed are host, mesh"],
  ["x-cacophony.balance", "least_connections", {}, "random", "allowed are local_first"],
  ["x-cacophony.proxy_protocol", "v2", {}, "v3", "allowed are none, v1, v2"],
  ["x-cacophony.volumes", "recreate", {}, "drop", "allowed are wait, recreate"],
  [
    "x-cacophony.stop_when_isolated",
    "1m30s",
    { Labels: { "cacophony.stop-when-isolated-ms": "90000" } },
    "4999ms",
    "must be at least 5s",
  ],
  ["x-cacophony.api", "read", { Labels: { "cacophony.api": "read" } }, "write", "allowed are read, deploy"],
  ["x-cacophony.strategy", "binpack", {}, "tight", "allowed are spread, binpack"],
  ["attach", "false", {}, "x", flag],
  ["build", ".", {}, "{contxt: .}", "did you mean context?"],
  ["container_name", "one", {}, "a b", "letters, digits"],
  ["depends_on", "[other]", {}, "[othr]", "did you mean other?"],
  ["develop", "{watch: [{path: ., action: sync}]}", {}, "{watch: [{path: .}]}", "both path and action"],
  ["env_file", "[{path: none.env, required: false}]", {}, "none.env", "was not sent"],
  ["pull_refresh_after", "1h", {}, "5", text],
  ["configs", "[]", {}, "[none]", "top-level configs"],
  ["secrets", "[]", {}, "[none]", "top-level secrets"],
  ["extends", "other", { User: "o" }, "nobody", "which is not beside it"],
  ["external_links", "[]", {}, "[a]", "outside of the job"],
  ["label_file", "[]", {}, "l", "was not sent"],
  ["models", "", {}, "[a]", cause],
  ["post_start", "[]", {}, "[{command: a}]", cause],
  ["pre_start", "[]", {}, "[{command: a}]", cause],
  ["pre_stop", "[]", {}, "[{command: a}]", cause],
  ["provider", "", {}, "{type: a}", cause],
  ["use_api_socket", "false", {}, "true", cause],
  ["volume_driver", "local", {}, "[local]", text],
  ["volumes_from", "[]", {}, "[nobody]", "which the document does not have"],
];

const DOCUMENT: readonly Case[] = [
  ["services", "{app: {image: busybox}}", {}, "[app]", "must be a mapping"],
  ["volumes", "{data: {labels: [a=b]}}", {}, "{data: {external: true, driver: local}}", "keep one"],
  ["networks", "{default: {internal: true}}", {}, "{default: {internl: true}}", "did you mean internal?"],
  ["configs", "{a: {content: x}}", {}, "{a: {content: x, file: y}}", "exactly one of"],
  ["secrets", "{a: {environment: X}}", {}, "{a: {content: x}}", "unknown key content"],
  ["name", "t", {}, "5", text],
  ["version", "'3.8'", {}, "[3]", "must be a text"],
  ["include", "[]", {}, "[a.yaml]", "was not sent"],
  ["models", "{}", {}, "{a: {model: m}}", cause],
];

function keysOf(table: Table, prefix = ""): string[] {
  return Object.entries(table).flatMap(([key, row]) =>
    row.fate !== "refused" && row.table ? keysOf(row.table, `${prefix}${key}.`) : [`${prefix}${key}`],
  );
}

/** `a.b: value` as `{a: {b: value}}`. */
function nested(key: string, value: string): string {
  const parts = key.split(".");
  return `${parts.join(": {")}: ${value}${"}".repeat(parts.length - 1)}`;
}

function service(key: string, value: string): string {
  const image = key === "image" ? "" : "image: busybox, ";
  return `services: {app: {${image}${nested(key, value)}}, other: {image: busybox, user: o}}`;
}

function document(key: string, value: string): string {
  return `${key}: ${value}\n${key === "services" ? "" : "services: {app: {image: busybox}}"}`;
}

function read(body: string) {
  return parseJob(body, { jobId: "t", env: new Map() });
}

/** What Docker would be told of the service `app`. */
function created(body: string): unknown {
  const result = read(body);
  if (!result.ok) throw new Error(result.details.map(({ path, message }) => `${path}: ${message}`).join("\n"));
  const app = result.job.services.find(({ service_name }) => service_name === "app");
  if (!app) throw new Error("no service app");
  const options = containerOptions(app.spec, {
    clusterId: "c",
    nodeId: "n",
    jobId: "t",
    serviceName: "app",
    slot: 1,
    allocationId: "0123456789",
    networkName: "t_default",
    projectDir: "/project",
    secretsDir: "/secrets",
  });
  return JSON.parse(JSON.stringify(options));
}

describe.each([
  { of: "service", cases: SERVICE, table: SERVICE_KEYS as Table, write: service, prefix: "services.app." },
  { of: "document", cases: DOCUMENT, table: DOCUMENT_KEYS as Table, write: document, prefix: "" },
])("each key of a $of", ({ cases, table, write, prefix }) => {
  test("has a value that is taken and one that is refused", () => {
    expect(cases.map(([key]) => key).toSorted()).toEqual(keysOf(table).toSorted());
  });

  test.each(cases.map(([key, taken, body]) => [key, taken, body] as const))("%s: %s", (key, taken, body) => {
    expect(created(write(key, taken))).toMatchObject(body);
  });

  test.each(cases.map(([key, , , refused, fault]) => [key, refused, fault] as const))(
    "%s: %s is refused",
    (key, refused, fault) => {
      const result = read(write(key, refused));
      if (result.ok) throw new Error("accepted");
      expect(result.details.map((detail) => detail.message).join("\n")).toContain(fault);
      expect(result.details.filter(({ path, line, column }) => path.startsWith(prefix) && line && column)).toEqual(
        result.details,
      );
    },
  );
});
