/**
 * @module Point 2: no job gets past the policy. The profile `restricted` has a decision about every key of a document and every
 * member of a spec, refuses what reaches the node, other jobs or the cluster, and lets ordinary documents through.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { DOCUMENT_KEYS } from "../src/job_keys.ts";
import { forbiddenBy, readPolicy } from "../src/job_policy.ts";
import { leafPathsOf } from "../src/job_policy_leaves.ts";
import { ALLOWED, JUDGED, KEYS, REFUSED_KEYS } from "../src/job_policy_restricted.ts";
import { type JsonSchema, jsonSchemaOfTable } from "../src/job_schema.ts";
import { type ParsedJob, parseJob } from "../src/job_spec.ts";
import { serviceRules, serviceSpec } from "../src/model_spec.ts";

type Sent = { jobId?: string; files?: Record<string, string> };

function parsed(document: string, { jobId = "shop", files = {} }: Sent = {}): ParsedJob {
  const sent = new Map(Object.entries(files).map(([path, text]) => [path, Buffer.from(text)]));
  const result = parseJob(document, { jobId, env: new Map(), files: sent, profiles: ["*"] });
  if (!result.ok) throw new Error(JSON.stringify(result.details));
  return result.job;
}

function refusals(document: string, { rules = "", ...sent }: Sent & { rules?: string } = {}): string[] {
  const policy = readPolicy(`profile: restricted\n${rules}`, { path: "p" });
  const job = parsed(document, sent);
  return forbiddenBy(policy, { ...job, jobId: sent.jobId ?? "shop" }).map(({ path, message }) => `${path}: ${message}`);
}

/** One service with a piece of its own and a piece of the document's top level. */
function service(own: string, top = ""): string {
  return `services:\n  app:\n    image: busybox\n    ${own}\n${top}`;
}

function volume(options: string): string {
  return service("volumes: ['vol:/x']", `volumes: {vol: ${options}}`);
}

function network(options: string): string {
  return service("networks: [x]", `networks: {x: ${options}}`);
}

/** What is refused: the document, and the places that the refusals must name, and no others. */
const REFUSED: readonly [what: string, document: string, places: string[], files?: Record<string, string>][] = [
  ["a privileged container", service("privileged: true"), ["services.app.privileged"]],
  ["devices", service("devices: ['/dev/sda:/dev/x']"), ["services.app.devices"]],
  ["a device by its CDI name", service("devices: ['vendor.com/gpu=all']"), ["services.app.devices"]],
  ["rules for devices", service("device_cgroup_rules: ['b 8:* rwm']"), ["services.app.device_cgroup_rules"]],
  ["GPUs", service("gpus: all"), ["services.app.gpus"]],
  [
    "reserved devices without capabilities",
    service("deploy: {resources: {reservations: {devices: [{driver: cdi, device_ids: [a/b=c], capabilities: []}]}}}"),
    ["services.app.gpus"],
  ],
  ["a capability", service("cap_add: [CHOWN, SYS_ADMIN]"), ["services.app.cap_add"]],
  ["a capability with a prefix", service("cap_add: [cap_sys_ptrace]"), ["services.app.cap_add"]],
  ["all capabilities", service("cap_add: [ALL]"), ["services.app.cap_add"]],
  ["no AppArmor", service("security_opt: ['apparmor:unconfined']"), ["services.app.security_opt"]],
  ["no seccomp", service("security_opt: ['seccomp=unconfined']"), ["services.app.security_opt"]],
  ["new privileges", service("security_opt: ['no-new-privileges:false']"), ["services.app.security_opt"]],
  ["no labels of SELinux", service("security_opt: ['label:disable']"), ["services.app.security_opt"]],
  ["paths of the system", service("security_opt: ['systempaths=unconfined']"), ["services.app.security_opt"]],
  ["a credential spec", service("credential_spec: {file: x.json}"), ["services.app.credential_spec"]],
  ["users of the node", service("userns_mode: host"), ["services.app.userns_mode"]],
  ["processes of the node", service("pid: host"), ["services.app.pid"]],
  ["memory of the node", service("ipc: host"), ["services.app.ipc"]],
  ["the node's name", service("uts: host"), ["services.app.uts"]],
  ["cgroups of the node", service("cgroup: host"), ["services.app.cgroup"]],
  ["a parent for cgroups", service("cgroup_parent: system.slice"), ["services.app.cgroup_parent"]],
  ["the node's network", service("network_mode: host"), ["services.app.network_mode"]],
  ["Docker's own bridge", service("network_mode: bridge"), ["services.app.network_mode"]],
  ["the network default", service("network_mode: default"), ["services.app.network_mode"]],
  ["the node's network by a name", network("{external: true, name: host}"), ["services.app.network_mode"]],
  ["another runtime", service("runtime: sysbox"), ["services.app.runtime"]],
  ["another isolation", service("isolation: process"), ["services.app.isolation"]],
  ["annotations", service("annotations: {run.oci.handler: krun}"), ["services.app.annotations"]],
  ["options of storage", service("storage_opt: {size: 1T}"), ["services.app.storage_opt"]],
  ["an OOM killer that is off", service("oom_kill_disable: true"), ["services.app.oom_kill_disable"]],
  ["a better OOM score", service("oom_score_adj: -999"), ["services.app.oom_score_adj"]],
  ["real-time processes", service("cpu_rt_runtime: 950000"), ["services.app.cpu_rt_runtime"]],
  ["real-time priorities", service("ulimits: {rtprio: 99}"), ["services.app.ulimits"]],
  ["sysctls", service("sysctls: {net.ipv6.conf.all.disable_ipv6: 0, net.core.somaxconn: 1}"), ["services.app.sysctls"]],
  ["a sysctl of the node", service("sysctls: [kernel.core_pattern=x]"), ["services.app.sysctls"]],
  [
    "devices in blkio_config",
    service("blkio_config: {weight: 10, device_read_bps: [{path: /dev/sda, rate: 1mb}]}"),
    ["services.app.blkio_config.device_read_bps.path"],
  ],
  [
    "a log driver that sends",
    service("logging: {driver: fluentd, options: {fluentd-address: 'unix:///run/x'}}"),
    ["services.app.logging.driver", "services.app.logging.options"],
  ],
  [
    "options for whatever logs by default",
    service("logging: {options: {syslog-address: 'unixgram:///dev/log'}}"),
    ["services.app.logging.options"],
  ],
  ["labels of Docker's", service("labels: [com.docker.compose.project=x]"), ["services.app.labels"]],
  ["a path of the node", service("volumes: ['/srv:/x']"), ["services.app.volumes"]],
  ["a path of the node for reading", service("volumes: ['/etc/localtime:/x:ro']"), ["services.app.volumes"]],
  [
    "a path of the node in the long form",
    service("volumes: [{type: bind, source: /, target: /x, bind: {create_host_path: false}}]"),
    ["services.app.volumes"],
  ],
  ["the Engine's socket", service("volumes: ['/var/run/docker.sock:/var/run/docker.sock']"), ["services.app.volumes"]],
  [
    "propagation",
    service("volumes: [{type: bind, source: ./x, target: /x, bind: {propagation: rshared}}]"),
    ["services.app.volumes"],
  ],
  ["a mount over /proc", service("volumes: ['vol:/proc/x']", "volumes: {vol: }"), ["services.app.volumes"]],
  ["a tmpfs over /sys", service("tmpfs: /sys"), ["services.app.tmpfs"]],
  ["a tmpfs with an option of other mounts", service("tmpfs: '/x:size=1m,rbind'"), ["services.app.tmpfs"]],
  ["a working directory among open files", service("working_dir: /proc/self/fd/8"), ["services.app.working_dir"]],
  ["the node's own directory", service("volumes: ['./.cacophony:/x']"), ["services.app.volumes"]],
  ["the node's own directory for writing", service("volumes: ['.:/x']"), ["services.app.volumes"]],
  ["a file of the node as a config", service("configs: [x]", "configs: {x: {file: /etc/shadow}}"), ["configs.x.file"]],
  ["a file of the node as a secret", service("secrets: [x]", "secrets: {x: {file: /etc/shadow}}"), ["secrets.x.file"]],
  [
    "a setuid file",
    service("configs: [{source: x, mode: 04755}]", "configs: {x: {content: x}}"),
    ["services.app.files"],
  ],
  [
    "a volume that is a path",
    volume("{driver_opts: {type: none, o: bind, device: /etc}}"),
    ["volumes.vol.driver_opts"],
  ],
  [
    "a volume that is a relative path",
    volume("{driver_opts: {type: none, o: bind, device: etc}}"),
    ["volumes.vol.driver_opts"],
  ],
  [
    "a volume that is an overlay",
    volume("{driver_opts: {type: overlay, device: overlay, o: 'lowerdir=/etc:/root'}}"),
    ["volumes.vol.driver_opts"],
  ],
  ["a volume that is the kernel's", volume("{driver_opts: {type: proc, device: proc}}"), ["volumes.vol.driver_opts"]],
  [
    "a volume over NFS",
    volume("{driver_opts: {type: nfs, o: addr=10.0.0.1, device: ':/x'}}"),
    ["volumes.vol.driver_opts"],
  ],
  ["a driver of volumes", volume("{driver: rclone}"), ["volumes.vol.driver"]],
  ["a driver of unnamed volumes", service("volume_driver: rclone"), ["services.app.volume_driver"]],
  ["a volume of another job", volume("{name: bank_data}"), ["volumes.vol.name"]],
  ["an external volume", volume("{external: true, name: bank_data}"), ["volumes.vol.external"]],
  ["an external volume, the older form", volume("{external: {name: bank_data}}"), ["volumes.vol.external"]],
  ["labels of Docker's on a volume", volume("{labels: {com.docker.compose.project: x}}"), ["volumes.vol.labels"]],
  [
    "labels of ours on an unnamed volume",
    service("volumes: [{type: volume, target: /x, volume: {labels: {cacophony.job: bank}}}]"),
    ["services.app.volumes"],
  ],
  [
    "macvlan",
    network("{driver: macvlan, driver_opts: {parent: eth0}}"),
    ["networks.x.driver", "networks.x.driver_opts"],
  ],
  ["ipvlan", network("{driver: ipvlan}"), ["networks.x.driver"]],
  ["a bridge of the node", network("{driver_opts: {com.docker.network.bridge.name: br0}}"), ["networks.x.driver_opts"]],
  ["a network of another job", network("{name: bank_default}"), ["networks.x.name"]],
  ["an external network", network("{external: true, name: bank_default}"), ["networks.x.external"]],
  [
    "an external network as the job's default one",
    service("tty: true", "networks: {default: {external: true, name: bank_default}}"),
    ["networks.default.external"],
  ],
  ["a subnet", network("{ipam: {config: [{subnet: 192.168.1.0/30}]}}"), ["networks.x.ipam.config.subnet"]],
  ["a driver of addresses", network("{ipam: {driver: dhcp}}"), ["networks.x.ipam.driver"]],
  ["IPv6", network("{enable_ipv6: true}"), ["networks.x.enable_ipv6"]],
  ["labels of ours on a network", network("{labels: {cacophony.job: bank}}"), ["networks.x.labels"]],
  [
    "addresses without the cluster's knowledge",
    service("networks: {default: {link_local_ips: [169.254.169.254]}}"),
    ["services.app.networks"],
  ],
  [
    "options of an endpoint",
    service("networks: {default: {driver_opts: {com.docker.network.endpoint.sysctls: x}}}"),
    ["services.app.networks"],
  ],
  [
    "what a service extends in another file",
    "services: {app: {extends: {file: ./more.yaml, service: base}}}",
    ["services.app.privileged"],
    { "more.yaml": "services: {base: {image: busybox, privileged: true}}" },
  ],
  [
    "what an included file has",
    "include: [./more.yaml]\nservices: {web: {image: busybox}}",
    ["volumes.vol.driver_opts"],
    {
      "more.yaml":
        "services: {app: {image: busybox, volumes: ['vol:/x']}}\nvolumes: {vol: {driver_opts: {type: none, o: bind, device: /}}}",
    },
  ],
  [
    "labels out of a file",
    service("label_file: ./labels"),
    ["services.app.labels"],
    { labels: "com.docker.compose.project=x\n" },
  ],
];

describe("point 2: the profile restricted refuses", () => {
  test.each(REFUSED.map(([what, ...rest]) => [what, rest] as const))("%s", (_, [document, places, files]) => {
    const found = refusals(document, files ? { files } : {});
    expect([...new Set(found.map((one) => one.slice(0, one.indexOf(": "))))].toSorted()).toEqual(places.toSorted());
    for (const one of found)
      expect(one).toMatch(/ is forbidden by the profile 'restricted' of this cluster's policy: .+[;,] /);
  });

  test("what is refused in every document is not another door", () => {
    for (const [document, message] of [
      [service("env_file: /etc/shadow"), "outside of the job"],
      [service("label_file: ../x"), "leaves the job's project directory"],
      [service("volumes: ['../x:/x']"), "leaves the job's project directory"],
      [service("security_opt: ['seccomp=/etc/x']"), "outside of the job"],
      [service("extends: {file: /etc/x, service: y}"), "outside of the job"],
      ["include: [/etc/x]\nservices: {}", "outside of the job"],
      [service("pid: container:x"), "not part of the job"],
      [service("network_mode: container:x"), "not part of the job"],
      [service("volumes_from: ['container:x']"), "not part of the job"],
      [service("configs: [x]", "configs: {x: {external: true}}"), "made outside of the job"],
      [service("secrets: [x]", "secrets: {x: {external: true}}"), "made outside of the job"],
      [service("labels: [cacophony.job=x]"), "label of Cacophony's own"],
      [service("use_api_socket: true"), "not supported"],
      [service("post_start: [{command: x, privileged: true}]"), "not supported"],
      [service("external_links: [x]"), "outside of the job"],
    ] as const) {
      const result = parseJob(document, { jobId: "shop", env: new Map() });
      expect(result.ok ? "accepted" : JSON.stringify(result.details)).toContain(message);
    }
  });
});

const SHOP = `
services:
  web:
    image: nginx:1.27
    ports: ["80:80", {target: 443, published: "8443"}]
    networks: {front: {aliases: [www]}, back: }
    depends_on: {db: {condition: service_healthy}}
    volumes: [./site:/usr/share/nginx/html:ro, static:/static, {type: tmpfs, target: /cache, tmpfs: {size: 64m}}]
    environment: {DB: db}
    configs: [{source: conf, target: /etc/nginx/conf.d/app.conf, mode: 0440}]
    cap_drop: [ALL]
    cap_add: [NET_BIND_SERVICE, CAP_CHOWN, setuid]
    security_opt: ["no-new-privileges:true"]
    read_only: true
    init: true
    tmpfs: [/tmp, "/run:size=1m"]
    sysctls: {net.core.somaxconn: 1024}
    ulimits: {nofile: 65536}
    extra_hosts: ["host.docker.internal:host-gateway"]
    logging: {driver: json-file, options: {max-size: 10m, max-file: 3}}
    labels: {traefik.enable: "true"}
    deploy: {replicas: 3, resources: {limits: {cpus: "0.5", memory: 128m}}, placement: {constraints: [node.role == worker]}}
    x-cacophony: {publish: mesh, balance: least_connections}
  db:
    image: postgres:16
    user: "999"
    networks: [back]
    volumes: ["db-data:/var/lib/postgresql/data"]
    secrets: [password]
    shm_size: 256m
    stop_grace_period: 1m
    healthcheck: {test: [CMD, pg_isready], interval: 5s}
    x-cacophony: {volumes: recreate, stop_when_isolated: 1m}
  side:
    image: busybox
    network_mode: service:web
    pid: service:web
    ipc: private
    volumes_from: ["web:ro"]
    oom_score_adj: 500
volumes: {static: , db-data: {driver: local, labels: {owner: me}}}
networks:
  front: {driver: bridge, driver_opts: {com.docker.network.driver.mtu: "1400"}}
  back: {internal: true, name: shop_back}
configs: {conf: {content: "x"}}
secrets: {password: {file: ./password}}
x-anything: {privileged: true}
`;

describe("point 2: the profile restricted lets through", () => {
  test("a web server with its database, and all that such documents have", () => {
    expect(refusals(SHOP, { files: { password: "x", "site/index.html": "x" } })).toEqual([]);
  });

  /** Documents of many kinds: what of them is refused, by its place; absent: nothing. */
  const PLACES: Record<string, string[]> = {
    "055": [],
    "045": ["services.app.gpus"],
    "061": ["cgroup_parent", "ipc", "pid", "uts", "userns_mode"].map((key) => `services.app.${key}`),
    "063": ["services.app.devices", "services.app.device_cgroup_rules"],
    "071": ["services.h.network_mode", "services.b.network_mode"],
    "075": ["networks.proxy.external"],
    "077": ["services.app.volumes"],
  };
  const folder = join(import.meta.dir, "fixtures/compose/valid");
  test.each(readdirSync(folder).filter((name) => name.endsWith(".yaml")))(
    "what an ordinary document asks for: %s",
    (name) => {
      const policy = readPolicy("profile: restricted", { path: "p" });
      const env = new Map([["SET", "x"]]);
      const result = parseJob(readFileSync(join(folder, name)), { jobId: "j", env });
      // Some need variables of their own, which other tests give them.
      if (!result.ok) return;
      const places = forbiddenBy(policy, { ...result.job, jobId: "j" }).map(({ path }) => path);
      expect([...new Set(places)].toSorted()).toEqual((PLACES[name.slice(0, 3)] ?? []).toSorted());
    },
  );
});

describe("point 2: the profile restricted is complete", () => {
  /** Mappings of which nothing comes. */
  const LEFT_OUT = [
    "services.*.build",
    "services.*.develop",
    "services.*.deploy.update_config",
    "services.*.deploy.rollback_config",
  ];

  test("over the table of keys: each key of a document has a decision", () => {
    const open: string[] = [];
    const seen = new Set<string>();
    const visit = (schema: JsonSchema, place: string): void => {
      if (LEFT_OUT.includes(place)) return;
      for (const [key, member] of Object.entries(schema.properties ?? {})) {
        const path = place === "" ? key : `${place}.${key}`;
        seen.add(path);
        if (!KEYS.get(place)?.has(key) && !REFUSED_KEYS.has(path)) open.push(path);
        visit(member, path);
      }
      if (typeof schema.additionalProperties === "object") visit(schema.additionalProperties, `${place}.*`);
      if (schema.items) visit(schema.items, `${place}[]`);
      for (const one of schema.anyOf ?? []) visit(one, place);
    };
    visit(jsonSchemaOfTable(DOCUMENT_KEYS), "");
    expect(open).toEqual([]);
    expect(seen.size).toBeGreaterThan(200);
    // No decision is left of a key that is gone; hooks have no table yet, and marks are no key of compose.
    const decided = [...KEYS].flatMap(([place, keys]) =>
      [...keys].map((key) => (place === "" ? key : `${place}.${key}`)),
    );
    expect(
      decided.filter((path) => !seen.has(path) && !/\.(post_start|pre_start|pre_stop)\[\]|\.x-/.test(path)),
    ).toEqual([]);
  });

  test("over the spec: each member that a service's containers and rules are made of has a decision", () => {
    const paths = [...leafPathsOf(serviceSpec), ...leafPathsOf(serviceRules, "rules")];
    expect(paths.filter((path) => !ALLOWED.has(path) && !JUDGED.has(path))).toEqual([]);
    expect(paths.length).toBeGreaterThan(150);
    expect([...ALLOWED, ...JUDGED.keys()].filter((path) => !paths.includes(path))).toEqual([]);
    expect([...ALLOWED].filter((path) => JUDGED.has(path))).toEqual([]);
  });

  test("as it runs: a key or member without a decision is refused, wherever it stands", () => {
    const job = parsed(SHOP, { files: { password: "x" } });
    const policy = readPolicy("profile: restricted", { path: "p" });
    const names = fc.stringMatching(/^[a-z][a-z_]{0,11}$/).map((name) => `new_${name}`);
    const values = fc.constantFrom<unknown>("x", 1, true, ["x"], { x: 1 });
    fc.assert(
      fc.property(names, values, fc.nat(), (name, value, at) => {
        const { services } = structuredClone(job);
        const document = JSON.parse(job.document) as Record<string, Record<string, Record<string, unknown>>>;
        const specs = services.flatMap(({ spec, rules }) => [
          spec,
          rules,
          ...spec.mounts,
          ...spec.ports,
          ...(spec.networks ?? []),
        ]);
        const inDocument = [
          document,
          document["services"]?.["web"],
          document["services"]?.["web"]?.["deploy"],
          document["services"]?.["web"]?.["x-cacophony"],
          document["services"]?.["web"]?.["logging"],
          document["volumes"]?.["db-data"],
          document["networks"]?.["front"],
          document["secrets"]?.["password"],
        ];
        const places = [...specs, ...inDocument];
        Object.assign(places[at % places.length] ?? {}, { [name]: value });
        const found = forbiddenBy(policy, { jobId: "shop", services, document: JSON.stringify(document) });
        expect(found.map(({ message }) => message).join("\n")).toContain(name);
        expect(found[0]?.message).toContain("has no decision about it");
      }),
      { numRuns: 500 },
    );
  });

  test("also where Cacophony comes to know a key that it refuses today", () => {
    const policy = readPolicy("profile: restricted", { path: "p" });
    const app = {
      post_start: [{ command: "x" }, { command: "x", privileged: true }],
      use_api_socket: true,
      provider: { type: "x" },
    };
    const found = forbiddenBy(policy, { jobId: "j", services: [], document: JSON.stringify({ services: { app } }) });
    expect(found.map(({ path }) => path)).toEqual([
      "services.app.post_start[1].privileged",
      "services.app.use_api_socket",
      "services.app.provider",
    ]);
  });
});

describe("point 2: rules and the profile", () => {
  const rule = (text: string) => `rules: [{name: r, ${text}}]`;
  const REACHED: readonly [rules: string, document: string, refused: string[]][] = [
    ["effect: allow, keys: [privileged]", service("privileged: true"), []],
    ["effect: allow, keys: [cap_add=NET_ADMIN]", service("cap_add: [NET_ADMIN, SYS_ADMIN]"), ["cap_add SYS_ADMIN"]],
    ["effect: allow, keys: [gpus]", service("gpus: all"), []],
    ["effect: allow, keys: [networks.external=proxy]", network("{external: true, name: proxy}"), []],
    ["effect: allow, keys: [networks.external=proxy]", network("{external: true}"), ["networks.external x"]],
    ["effect: allow, keys: [sysctls=net.ipv4.ip_forward]", service("sysctls: {net.ipv4.ip_forward: 1}"), []],
    ["effect: allow, binds: [/etc/localtime]", service("volumes: ['/etc/localtime:/etc/localtime:ro']"), []],
    ["effect: allow, binds: [/srv]", service("volumes: ['/srv/a:/a', '/etc:/b']"), ["the path /etc"]],
    ["effect: allow, binds: [./]", service("volumes: ['.:/a']"), []],
    [
      "effect: allow, keys: [volumes.driver_opts]",
      volume("{driver_opts: {type: none, o: bind, device: /etc}}"),
      ["the path /etc"],
    ],
    [
      "effect: allow, keys: [volumes.driver_opts]",
      volume("{driver_opts: {type: nfs, o: addr=10.0.0.1, device: ':/x'}}"),
      [],
    ],
    [
      "effect: allow, keys: [volumes.driver_opts]",
      volume("{driver_opts: {type: nfs, o: 'addr=10.0.0.1,bind', device: etc}}"),
      ["the path /etc"],
    ],
    [
      "effect: allow, binds: [/srv], keys: [volumes.driver_opts]",
      volume("{driver_opts: {type: overlay, device: /srv, o: 'lowerdir=/srv:etc,upperdir=/srv/u,workdir=/srv/w'}}"),
      ["the path /etc"],
    ],
    [
      "effect: allow, binds: [/srv], keys: [volumes.driver_opts]",
      volume("{driver_opts: {type: proc, device: /srv}}"),
      ["the path /"],
    ],
    ["effect: deny, keys: [tty]", service("tty: true"), ["tty"]],
    ["effect: deny, binds: [./]", service("volumes: ['./x:/x']"), ["the path ./x"]],
    ["effect: allow, binds: [/srv]", service("volumes: ['/srv/a:/a', '/srv/a/x:/b']"), ["the path /srv/a/x"]],
    ["effect: allow, binds: [./a/x]", service("volumes: ['./a:/a', './a/x:/b']"), []],
    ["effect: allow, binds: [./a]", service("volumes: ['./a:/a', './a/x:/b']"), ["the path ./a/x"]],
  ];
  test.each(REACHED)("%s: %s", (rules, document, refused) => {
    const found = refusals(document, { rules: rule(rules) });
    expect(found.length).toBe(refused.length);
    for (const [index, what] of refused.entries()) expect(found[index]).toContain(`: ${what} is forbidden by`);
  });

  test("a file is the one line, or has rules, too", () => {
    expect(readPolicy("profile: restricted", { path: "p" })).toEqual({ profile: "restricted" });
    expect(readPolicy('{"profile": "restricted", "rules": []}', { path: "p" }).rules).toEqual([]);
    expect(() => readPolicy("profile: strict", { path: "p" })).toThrow("the only profile is restricted");
    expect(() => readPolicy("{}", { path: "p" })).toThrow("neither profile nor rules");
  });
});

describe("point 2: a bind inside of another writable bind is refused", () => {
  const two = (a: string, b: string) =>
    `services:\n  a: {image: x, volumes: ['${a}']}\n  b: {image: x, volumes: ['${b}']}\n`;
  test.each([
    ["./d:/d", "./d/x:/x", "b"],
    ["./d/x:/x", "./d:/d", "a"],
    ["./d:/d", "d/../d/./x/y:/x:ro", "b"],
    ["./d:/d", "./d:/x", "b"],
    ["./d:/d:ro", "./d:/x", "a"],
  ])("%s and %s", (a, b, at) => {
    const found = refusals(two(a, b.startsWith("d") ? `./${b}` : b));
    expect(found.length).toBe(1);
    expect(found[0]).toStartWith(`services.${at}.volumes: the path ./d`);
    expect(found[0]).toContain("may write to");
  });

  test.each([
    ["./d:/d:ro", "./d/x:/x"],
    ["./d:/d", "./dx:/x"],
    ["./d:/d:ro", "./d:/x:ro"],
    ["./d/a:/d", "./d/b:/x"],
  ])("but not %s and %s", (a, b) => expect(refusals(two(a, b))).toEqual([]));

  test("a config in a directory that the job may write to is one", () => {
    const found = refusals("services: {a: {image: x, volumes: ['.:/d'], configs: [c]}}\nconfigs: {c: {content: x}}", {
      rules: "rules: [{name: r, effect: allow, binds: [./]}]",
    });
    expect(found.length).toBe(1);
    expect(found[0]).toContain("lies inside of ./,");
  });

  test("and so is one inside of what the job's present version may write to", () => {
    const policy = readPolicy("profile: restricted", { path: "p" });
    const [v1, v2, v3] = ["./d:/d", "./d/x:/x", "./d:/e"].map((bind) => parsed(service(`volumes: ['${bind}']`)));
    const against = (next: ParsedJob | undefined) =>
      forbiddenBy(policy, { ...(next as ParsedJob), jobId: "shop", servicesOf: () => v1?.services ?? [] });
    expect(against(v2).map(({ message }) => message)).toEqual([
      expect.stringContaining("present version's service app"),
    ]);
    expect(against(v1)).toEqual([]);
    expect(against(v3)).toEqual([]);
  });

  test("among many binds without looking at each pair", () => {
    const binds = Array.from(
      { length: 15_000 },
      (_, index) => `'./d${index % 3}/${"a/".repeat(index % 40)}x${index}:/x${index}'`,
    );
    const job = parsed(service(`volumes: [${binds.join(", ")}]`));
    const start = performance.now();
    forbiddenBy(readPolicy("profile: restricted", { path: "p" }), { ...job, jobId: "shop" });
    expect(performance.now() - start).toBeLessThan(5000);
  });
});

describe("point 2: a network or volume that another job has", () => {
  const policy = readPolicy("profile: restricted", { path: "p" });
  const jobs = new Map([
    ["shop_prod", parsed(service("volumes: ['data:/x']", "volumes: {data: }"), { jobId: "shop_prod" })],
    ["bank", parsed(network("{}"), { jobId: "bank" })],
  ]);
  const found = (jobId: string, document: string) =>
    forbiddenBy(policy, {
      ...parsed(document, { jobId }),
      jobId,
      servicesOf: (id) => jobs.get(id)?.services ?? [],
    }).map(({ path }) => path);

  test("is refused under a key that makes the same name", () => {
    expect(found("shop", service("networks: [prod_default]", "networks: {prod_default: }"))).toEqual([
      "networks.prod_default",
    ]);
    expect(found("shop", service("volumes: ['prod_data:/x']", "volumes: {prod_data: }"))).toEqual([
      "volumes.prod_data",
    ]);
    // A job whose network has the name already keeps a later one from it.
    jobs.set("a", parsed(service("networks: [b_default]", "networks: {b_default: }"), { jobId: "a" }));
    expect(found("a_b", service("tty: true"))).toEqual(["networks.default"]);
  });

  test("leaves other names alone", () => {
    expect(found("shop", service("networks: [prod_x]", "networks: {prod_x: }"))).toEqual([]);
    expect(found("shop_prod", service("volumes: ['data:/x']", "volumes: {data: }"))).toEqual([]);
    expect(found("bank_x", service("tty: true"))).toEqual([]);
  });
});
