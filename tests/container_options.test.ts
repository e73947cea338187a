import { describe, expect, test } from "bun:test";
import {
  containerName,
  containerOptions,
  volumeName,
  type ContainerContext,
  type HostConfig,
} from "../src/container_options.ts";
import { parseJob } from "../src/job_spec.ts";
import type { ServiceSpec } from "../src/model_spec.ts";

const context: ContainerContext = {
  clusterId: "c1",
  nodeId: "n1",
  jobId: "shop",
  serviceName: "app",
  slot: 2,
  allocationId: "0123456789abcdef",
  networkName: "cacophony_shop",
  secretsDir: "/secrets",
  projectDir: "/var/lib/cacophony/projects/shop",
};

function spec(lines: string, rest = ""): ServiceSpec {
  const body = lines
    .trim()
    .split("\n")
    .map((line) => `    ${line}\n`)
    .join("");
  const result = parseJob(`services:\n  app:\n    image: busybox\n${body}${rest}`, { jobId: "shop", env: new Map() });
  if (!result.ok) throw new Error(JSON.stringify(result.details));
  const [service] = result.job.services;
  if (!service) throw new Error("no service");
  return service.spec;
}

const body = (lines: string, rest?: string) => containerOptions(spec(lines, rest), context);

describe("containerOptions()", () => {
  test("sends no more than compose for a service that says nothing, but for labels and network", () => {
    expect(body("x-nothing: 1")).toEqual({
      Image: "busybox",
      Env: [],
      Labels: {
        "cacophony.cluster": "c1",
        "cacophony.node": "n1",
        "cacophony.job": "shop",
        "cacophony.service": "app",
        "cacophony.slot": "2",
        "cacophony.allocation": "0123456789abcdef",
        "cacophony.restart": "always",
        "cacophony.stop-grace-ms": "10000",
      },
      HostConfig: { NetworkMode: "cacophony_shop", RestartPolicy: { Name: "", MaximumRetryCount: 0 } },
      NetworkingConfig: { EndpointsConfig: { cacophony_shop: { Aliases: ["app"] } } },
    });
  });

  const host: [yaml: string, expected: Partial<HostConfig>][] = [
    ["cap_add: [NET_ADMIN]\ncap_drop: [ALL]", { CapAdd: ["NET_ADMIN"], CapDrop: ["ALL"] }],
    ["cgroup: private\ncgroup_parent: m", { CgroupnsMode: "private", CgroupParent: "m" }],
    ["cpu_count: 2\ncpu_percent: 50\ncpu_shares: '512'", { CpuCount: 2, CpuPercent: 5000, CpuShares: 512 }],
    ["cpu_period: 100000\ncpu_quota: 50000\ncpuset: 0,1", { CpuPeriod: 100000, CpuQuota: 50000, CpusetCpus: "0,1" }],
    ["cpu_rt_period: 5\ncpu_rt_runtime: 4", { CpuRealtimePeriod: 5, CpuRealtimeRuntime: 4 }],
    ["cpus: 0.3", { NanoCpus: 300000000 }],
    [
      "devices: ['/dev/a', '/dev/b:/dev/c:r', {source: /dev/d}]",
      {
        Devices: [
          { PathOnHost: "/dev/a", PathInContainer: "/dev/a", CgroupPermissions: "rwm" },
          { PathOnHost: "/dev/b", PathInContainer: "/dev/c", CgroupPermissions: "r" },
          { PathOnHost: "/dev/d", PathInContainer: "/dev/d", CgroupPermissions: "rwm" },
        ],
      },
    ],
    [
      "devices: ['vendor.com/gpu=all']",
      { DeviceRequests: [{ Driver: "cdi", DeviceIDs: ["vendor.com/gpu=all"], Capabilities: [] }] },
    ],
    ["gpus: all", { DeviceRequests: [{ Count: -1, Capabilities: [["gpu"]] }] }],
    [
      "gpus: [{driver: nvidia, count: 2, options: {a: b}}]",
      { DeviceRequests: [{ Driver: "nvidia", Count: 2, Capabilities: [["gpu"]], Options: { a: "b" } }] },
    ],
    [
      "deploy: {resources: {reservations: {devices: [{capabilities: [gpu], device_ids: ['0']}]}}}",
      { DeviceRequests: [{ DeviceIDs: ["0"], Capabilities: [["gpu"]] }] },
    ],
    ["device_cgroup_rules: ['c 1:3 mr']", { DeviceCgroupRules: ["c 1:3 mr"] }],
    [
      "dns: 9.9.9.9\ndns_search: [a.example]\ndns_opt: ['ndots:1']",
      { Dns: ["9.9.9.9"], DnsSearch: ["a.example"], DnsOptions: ["ndots:1"] },
    ],
    ["extra_hosts: {b: 10.0.0.1, a: ['[::1]', 1.2.3.4]}", { ExtraHosts: ["a:::1", "a:1.2.3.4", "b:10.0.0.1"] }],
    [
      "extra_hosts: ['a=::1', 'b:10.0.0.1', 'h:host-gateway']",
      { ExtraHosts: ["a:::1", "b:10.0.0.1", "h:host-gateway"] },
    ],
    ["group_add: [mail, 5]", { GroupAdd: ["mail", "5"] }],
    ["init: false", { Init: false }],
    [
      "ipc: host\npid: host\nuts: host\nuserns_mode: host",
      { IpcMode: "host", PidMode: "host", UTSMode: "host", UsernsMode: "host" },
    ],
    ["isolation: default\nruntime: runc", { Isolation: "default", Runtime: "runc" }],
    ["volume_driver: nfs", { VolumeDriver: "nfs" }],
    ["credential_spec: {file: a.json}", { SecurityOpt: ["credentialspec=file://a.json"] }],
    [
      "security_opt: ['label:disable']\ncredential_spec: {registry: key}",
      { SecurityOpt: ["label:disable", "credentialspec=registry://key"] },
    ],
    [
      "logging: {options: {max-size: 1m, max-file: 3}}",
      { LogConfig: { Type: "", Config: { "max-file": "3", "max-size": "1m" } } },
    ],
    ["mem_limit: 64m\nmemswap_limit: -1\nmem_swappiness: 5", { Memory: 67108864, MemorySwap: -1, MemorySwappiness: 5 }],
    ["mem_limit: 64m\nmem_reservation: 32m", { MemoryReservation: 33554432 }],
    ["oom_kill_disable: true\noom_score_adj: -5", { OomKillDisable: true, OomScoreAdj: -5 }],
    ["pids_limit: -1", { PidsLimit: -1 }],
    ["privileged: true\nread_only: true", { Privileged: true, ReadonlyRootfs: true }],
    ["restart: on-failure:3", { RestartPolicy: { Name: "on-failure", MaximumRetryCount: 3 } }],
    [
      "security_opt: ['no-new-privileges:true', systempaths=unconfined]",
      { SecurityOpt: ["no-new-privileges:true"], MaskedPaths: [], ReadonlyPaths: [] },
    ],
    ["shm_size: 64m\nstorage_opt: {size: 1G}", { ShmSize: 67108864, StorageOpt: { size: "1G" } }],
    [
      "sysctls: {net.core.somaxconn: 1024}\nannotations: [a=b]",
      { Sysctls: { "net.core.somaxconn": "1024" }, Annotations: { a: "b" } },
    ],
    ["tmpfs: [/run, '/tmp:size=1m']", { Tmpfs: { "/run": "", "/tmp": "size=1m" } }],
    [
      "ulimits: {nofile: {soft: 1, hard: 2}, core: -1}",
      {
        Ulimits: [
          { Name: "core", Soft: -1, Hard: -1 },
          { Name: "nofile", Soft: 1, Hard: 2 },
        ],
      },
    ],
    [
      "blkio_config: {weight: 300, weight_device: [{path: /dev/a, weight: 5}], device_read_bps: [{path: /dev/a, rate: 1mb}]}",
      {
        BlkioWeight: 300,
        BlkioWeightDevice: [{ Path: "/dev/a", Weight: 5 }],
        BlkioDeviceReadBps: [{ Path: "/dev/a", Rate: 1048576 }],
      },
    ],
    [
      "ports: ['8080:80', '127.0.0.1:9090:80', '90-95:81', '82/udp']",
      {
        PortBindings: {
          "80/tcp": [
            { HostIp: "", HostPort: "8080" },
            { HostIp: "127.0.0.1", HostPort: "9090" },
          ],
          "81/tcp": [{ HostIp: "", HostPort: "90-95" }],
          "82/udp": [{ HostIp: "", HostPort: "" }],
        },
      },
    ],
  ];
  test.each(host)("%s", (yaml, expected) => {
    expect(body(yaml).HostConfig).toMatchObject(expected);
  });

  test("fields beside HostConfig", () => {
    const yaml = `
hostname: h
domainname: d
user: "1:2"
working_dir: /w
stop_signal: SIGINT
stop_grace_period: 1m30s
mac_address: 02:42:ac:11:00:02
tty: true
stdin_open: true
entrypoint: a b
command: [c]
expose: [90, 91-92/udp]
ports: [80]
labels: {own: x}
healthcheck: {test: [CMD, a], interval: 5s, timeout: 1s, start_period: 2s, start_interval: 3s, retries: 4}`;
    const { Labels, ...rest } = body(yaml);
    expect(Labels["own"]).toBe("x");
    expect(rest).toMatchObject({
      Hostname: "h",
      Domainname: "d",
      User: "1:2",
      WorkingDir: "/w",
      StopSignal: "SIGINT",
      StopTimeout: 90,
      MacAddress: "02:42:ac:11:00:02",
      Tty: true,
      OpenStdin: true,
      Entrypoint: ["a", "b"],
      Cmd: ["c"],
      ExposedPorts: { "80/tcp": {}, "90/tcp": {}, "91/udp": {}, "92/udp": {} },
      Healthcheck: {
        Test: ["CMD", "a"],
        Interval: 5e9,
        Timeout: 1e9,
        StartPeriod: 2e9,
        StartInterval: 3e9,
        Retries: 4,
      },
    });
  });

  const mounts: [yaml: string, expected: Partial<HostConfig>][] = [
    ["/a:/b:ro,z", { Binds: ["/a:/b:ro,z"] }],
    ["./a:/b", { Binds: ["/var/lib/cacophony/projects/shop/a:/b:rw"] }],
    [".:/b", { Binds: ["/var/lib/cacophony/projects/shop:/b:rw"] }],
    ["data:/b:nocopy", { Binds: ["shop_data:/b:rw,nocopy"] }],
    ["/b", { Mounts: [{ Type: "volume", Target: "/b" }] }],
    [
      "{type: bind, source: /a, target: /b, bind: {create_host_path: false}}",
      { Mounts: [{ Type: "bind", Source: "/a", Target: "/b" }] },
    ],
    [
      "{type: bind, source: '/a:x', target: /b}",
      { Mounts: [{ Type: "bind", Source: "/a:x", Target: "/b", BindOptions: { CreateMountpoint: true } }] },
    ],
    [
      "{type: bind, source: /a, target: /b, bind: {recursive: disabled}}",
      {
        Mounts: [
          { Type: "bind", Source: "/a", Target: "/b", BindOptions: { NonRecursive: true, CreateMountpoint: true } },
        ],
      },
    ],
    [
      "{type: bind, source: /a, target: /b, read_only: true, bind: {recursive: readonly}}",
      {
        Mounts: [
          {
            Type: "bind",
            Source: "/a",
            Target: "/b",
            ReadOnly: true,
            BindOptions: { ReadOnlyForceRecursive: true, CreateMountpoint: true },
          },
        ],
      },
    ],
    [
      "{type: bind, source: /a, target: /b, read_only: true, bind: {recursive: writable, create_host_path: false}}",
      {
        Mounts: [
          { Type: "bind", Source: "/a", Target: "/b", ReadOnly: true, BindOptions: { ReadOnlyNonRecursive: true } },
        ],
      },
    ],
    [
      "{type: volume, source: data, target: /b, volume: {subpath: a, nocopy: true}}",
      {
        Mounts: [{ Type: "volume", Source: "shop_data", Target: "/b", VolumeOptions: { NoCopy: true, Subpath: "a" } }],
      },
    ],
    [
      "{type: volume, target: /b, volume: {labels: {a: b}}}",
      { Mounts: [{ Type: "volume", Target: "/b", VolumeOptions: { Labels: { a: "b" } } }] },
    ],
    [
      "{type: tmpfs, target: /b, tmpfs: {size: 1m, mode: 0700}}",
      { Mounts: [{ Type: "tmpfs", Target: "/b", TmpfsOptions: { SizeBytes: 1048576, Mode: 0o700 } }] },
    ],
  ];
  test.each(mounts)("volumes: %s", (yaml, expected) => {
    const quoted = yaml.startsWith("{") ? yaml : JSON.stringify(yaml);
    const { Binds, Mounts } = body(`volumes: [${quoted}]`, "volumes: {data: }\n").HostConfig;
    expect<object>(JSON.parse(JSON.stringify({ Binds, Mounts }))).toEqual(expected);
  });

  test("a credential spec that is a config of the document is sent as its contents", () => {
    const yaml = "credential_spec: {config: gmsa}";
    const config = (sources: string) => `configs: {gmsa: ${sources}}\n`;
    expect(body(yaml, config("{content: '{\"a\": 1}'}")).HostConfig.SecurityOpt).toEqual([
      'credentialspec=raw://{"a": 1}',
    ]);
    expect(() => body(yaml, config("{external: true}"))).toThrow("has no contents here: give it content or file");
    expect(() => body(yaml, config("{file: ./gmsa.json}"))).toThrow("gmsa.json");
    expect(() => body(yaml)).toThrow("is not under the top-level configs");
    expect(() => body("credential_spec: {file: a, registry: b}")).toThrow("exactly one of config, file and registry");
    expect(() => body("credential_spec: {}")).toThrow("exactly one of config, file and registry");
  });

  test("with the node's network there is no network of the job", () => {
    const sent = body("network_mode: host");
    expect(sent.HostConfig.NetworkMode).toBe("host");
    expect(sent).not.toHaveProperty("NetworkingConfig");
  });

  test("further names of a service are aliases", () => {
    const { NetworkingConfig } = body("container_name: pg\nnetworks: {default: {aliases: [www, app]}}");
    const [endpoint] = Object.values(NetworkingConfig?.EndpointsConfig ?? {});
    expect(endpoint?.Aliases).toEqual(["app", "www", "pg"]);
  });

  test("a label called __proto__ is a label", () => {
    expect(JSON.stringify(body("labels: {__proto__: x}").Labels)).toContain('"__proto__":"x"');
  });
});

test("containerName() is readable, and only of characters that Docker allows", () => {
  expect(containerName(context)).toBe("shop-app-2-01234567");
  expect(containerName({ ...context, jobId: "9.a_b", serviceName: "-x.y" })).toBe("9.a_b--x.y-2-01234567");
});

test("volumeName() is the volume's own name, or the job's and its key", () => {
  const volume = { key: "data", external: false, driver_opts: [], labels: [] };
  expect(volumeName(volume, "shop")).toBe("shop_data");
  expect(volumeName({ ...volume, name: "real" }, "shop")).toBe("real");
  expect(volumeName({ ...volume, external: true }, "shop")).toBe("data");
});
