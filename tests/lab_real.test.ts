/**
 * @module Documents of many kinds in the style of real ones (`tests/real`), sent with their files to a cluster in the lab. The
 * images are one that stays up, under the names that the documents have. Held to what `?dry_run=true` shows, to what is
 * written out here for each document, and to names that resolve among a job's containers.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { differences, type JsonObject } from "./compose_compare.ts";
import { Lab, type LabHost } from "./lab.ts";
import { LabCluster } from "./lab_cluster.ts";
import { paced, waitUntil } from "./wait.ts";

// Some 40 containers start at once, and the first document waits for its own among them.
setDefaultTimeout(420_000);

const ROOT = join(import.meta.dir, "real");
const MiB = 1024 * 1024;

/** Programs that the documents' health checks ask, each content with all. */
const PROGRAMS = ["curl", "pg_isready", "mysqladmin", "rabbitmq-diagnostics"];
/** Goes on until it is told to stop, whatever its arguments are. */
const STAY = "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait $!; done\n";

type Real = {
  env?: Record<string, string>;
  /** Pieces of what `docker inspect` must say, with the members of Config beside HostConfig; `{project}` is the job's directory. */
  services: Record<string, JsonObject>;
  /** Places of the warnings that the answer must have, and no others. */
  warnings?: string[];
  replicas?: Record<string, number>;
  /** Services that run to an end. */
  ends?: string[];
  /** Asked inside of a container of a service, with what it must print; after the names that resolve there. */
  asks: { service: string; names: string[]; script: string; says: string }[];
};

const REAL: Record<string, Real> = {
  shop: {
    env: { POSTGRES_PASSWORD: "s3cret" },
    replicas: { worker: 2 },
    services: {
      web: {
        HostConfig: {
          NetworkMode: "shop_back",
          Binds: ["{project}/nginx/conf.d:/etc/nginx/conf.d:ro", "shop_static:/usr/share/nginx/html:ro"],
          PortBindings: { "80/tcp": [{ HostPort: "8081" }], "443/tcp": [{ HostIp: "127.0.0.1", HostPort: "8444" }] },
        },
        Healthcheck: {
          Test: ["CMD-SHELL", "curl -fsS http://localhost/health || exit 1"],
          Interval: 30e9,
          Timeout: 5e9,
          Retries: 3,
        },
      },
      api: {
        Cmd: ["gunicorn", "--bind", "0.0.0.0:8000", "shop.wsgi:application"],
        Env: [
          "DATABASE_URL=postgres://shop:s3cret@db:5432/shop",
          "REDIS_URL=redis://cache:6379/0",
          "ROLE=api",
          "DEBUG=0",
          "SECRET_KEY=not a $secret",
          "GREETING=hello from ",
        ],
        ExposedPorts: { "8000/tcp": {} },
        HostConfig: {
          NanoCpus: 5e8,
          Memory: 256 * MiB,
          MemoryReservation: 64 * MiB,
          LogConfig: { Type: "json-file", Config: { "max-size": "10m", "max-file": "3" } },
        },
      },
      worker: { User: "1000:1000", StopTimeout: 60, Cmd: ["celery", "-A", "shop", "worker", "--loglevel=info"] },
      db: { HostConfig: { ShmSize: 128 * MiB, Binds: ["shop_pgdata:/var/lib/postgresql/data:rw"] } },
      cache: {
        Cmd: ["redis-server", "--save", "", "--appendonly", "no"],
        HostConfig: { ReadonlyRootfs: true, Tmpfs: { "/data": "" } },
      },
    },
    asks: [
      {
        service: "web",
        names: ["api", "db", "cache", "redis"],
        script: "cat /etc/nginx/conf.d/*",
        says: "server { listen 80; location / { proxy_pass http://api:8000; } }",
      },
    ],
  },
  monitoring: {
    warnings: [],
    services: {
      prometheus: {
        User: "65534",
        Cmd: [
          "--config.file=/etc/prometheus/prometheus.yml",
          "--storage.tsdb.path=/prometheus",
          "--storage.tsdb.retention.time=15d",
        ],
        HostConfig: {
          Binds: [
            "{project}/prometheus/prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            "{project}/prometheus/rules:/etc/prometheus/rules:ro",
            "monitoring_prometheus_data:/prometheus:rw",
          ],
        },
      },
      grafana: { User: "472", Env: ["GF_SECURITY_ADMIN_PASSWORD=admin", "GF_USERS_ALLOW_SIGN_UP=false"] },
      "node-exporter": {
        Cmd: ["--path.procfs=/host/proc", "--collector.filesystem.mount-points-exclude=^/(sys|proc)($|/)"],
        HostConfig: { PidMode: "host", CapAdd: ["SYS_TIME"] },
      },
      cadvisor: {
        Labels: { "org.example.scrape": "true", "org.example.port": "8080" },
      },
    },
    asks: [
      {
        service: "prometheus",
        names: ["grafana", "node-exporter"],
        script: "cat /etc/prometheus/rules/alerts.yml",
        says: "groups: []",
      },
      { service: "grafana", names: ["metrics"], script: "ls /etc/grafana/provisioning/datasources", says: "all.yml" },
    ],
  },
  wordpress: {
    env: { DB_PASSWORD: "hunter2" },
    services: {
      wordpress: {
        Env: [
          "WORDPRESS_DB_HOST=db",
          "WORDPRESS_DB_USER=wp",
          "WORDPRESS_DB_PASSWORD_FILE=/run/secrets/db_password",
          "WORDPRESS_CONFIG_EXTRA=define('WP_DEBUG', false);\ndefine('DISALLOW_FILE_EDIT', true);\n",
        ],
        HostConfig: { PortBindings: { "80/tcp": [{ HostPort: "8082" }] } },
      },
      db: {
        Cmd: ["--default-authentication-plugin=mysql_native_password", "--max-connections=200"],
        Healthcheck: {
          Test: ["CMD-SHELL", "mysqladmin ping -h localhost"],
          Interval: 1e9,
          Timeout: 20e9,
          Retries: 10,
          StartPeriod: 5e9,
        },
        HostConfig: { CapAdd: ["SYS_NICE"], SecurityOpt: ["no-new-privileges:true"] },
      },
    },
    asks: [
      {
        service: "wordpress",
        names: ["db"],
        script:
          "cat /run/secrets/db_password; echo; cat /usr/local/etc/php/conf.d/uploads.ini; stat -c '%a %u %g' /var/www/html/robots.txt",
        says: "hunter2\nupload_max_filesize = 64M\n440 33 33",
      },
      {
        service: "db",
        names: ["wordpress"],
        script: "stat -c %a /run/secrets/db_password; stat -c %a /tmp",
        says: "400\n1777",
      },
    ],
  },
  queue: {
    env: { NOFILE: "512" },
    replicas: { worker: 3 },
    ends: ["migrate"],
    services: {
      rabbitmq: {
        Hostname: "rabbit",
        HostConfig: {
          Ulimits: [{ Name: "nofile", Soft: 512, Hard: 512 }],
          PortBindings: { "15672/tcp": [{ HostPort: "15672" }], "5672/tcp": [{}] },
        },
      },
      migrate: { Entrypoint: ["/bin/sh", "-c", "echo migrated"], Cmd: null },
      worker: {
        Cmd: ["--queue", "default"],
        Env: ["AMQP_URL=amqp://app:app@rabbitmq:5672/", "CONCURRENCY=4"],
        HostConfig: {
          Memory: 128 * MiB,
          MemoryReservation: 32 * MiB,
          NanoCpus: 25e7,
          PidsLimit: 64,
          OomScoreAdj: 300,
        },
      },
    },
    asks: [{ service: "worker", names: ["rabbitmq"], script: "echo $CONCURRENCY", says: "4" }],
  },
  media: {
    env: { RENDER_DEVICE: "/dev/null" },
    services: {
      jellyfin: {
        User: "1000:1000",
        HostConfig: {
          NetworkMode: "host",
          GroupAdd: ["109", "video"],
          Devices: [{ PathOnHost: "/dev/null", PathInContainer: "/dev/dri/renderD128", CgroupPermissions: "rwm" }],
          Tmpfs: { "/transcode": "size=256m,mode=1777" },
          Binds: ["{project}/config:/config:rw", "{project}/media:/media:ro"],
        },
      },
      sonarr: { Env: ["PUID=1000", "PGID=1000", "TZ=Etc/UTC", "UMASK=18"] },
      torrent: {
        StopSignal: "SIGINT",
        HostConfig: {
          Dns: ["1.1.1.1", "9.9.9.9"],
          DnsOptions: ["ndots:1"],
          PortBindings: {
            "9091/tcp": [{ HostPort: "9091" }],
            "51413/tcp": [{ HostPort: "51413" }],
            "51413/udp": [{ HostPort: "51413" }],
          },
        },
      },
    },
    warnings: [
      "services.jellyfin.container_name",
      "services.jellyfin.network_mode",
      "services.sonarr.container_name",
      "services.torrent.container_name",
    ],
    asks: [
      { service: "sonarr", names: ["torrent"], script: "echo $TZ", says: "Etc/UTC" },
      {
        service: "jellyfin",
        names: [],
        script: "stat -c %a /transcode; [ -c /dev/dri/renderD128 ]; echo $?",
        says: "1777\n0",
      },
    ],
  },
  proxy: {
    replicas: { whoami: 2 },
    services: {
      traefik: {
        Cmd: ["--providers.docker=true", "--providers.docker.exposedbydefault=false", "--entrypoints.web.address=:80"],
        HostConfig: {
          CapDrop: ["ALL"],
          CapAdd: ["NET_BIND_SERVICE", "NET_RAW"],
          ExtraHosts: ["host.docker.internal:host-gateway", "legacy:10.9.8.7"],
          SecurityOpt: ["no-new-privileges"],
        },
      },
      whoami: {
        Labels: {
          "traefik.enable": "true",
          "traefik.http.routers.whoami.rule": "Host(`whoami.example`) || PathPrefix(`/who`)",
        },
        HostConfig: { NetworkMode: "proxy_edge" },
      },
    },
    warnings: ["services.whoami.deploy.labels", "services.whoami.deploy.update_config"],
    asks: [
      {
        service: "traefik",
        names: ["whoami", "who.internal"],
        script: "grep -c legacy /etc/hosts; [ -S /var/run/docker.sock ]; echo $?",
        says: "1\n0",
      },
    ],
  },
  gitea: {
    env: { DB_PASSWORD: "pw" },
    services: {
      server: {
        HostConfig: {
          NetworkMode: "gitea_gitea",
          Binds: ["{project}/gitea:/data:rw", "/etc/hostname:/etc/host-name:ro"],
          PortBindings: { "3000/tcp": [{ HostPort: "3001" }], "22/tcp": [{ HostPort: "2222" }] },
        },
      },
      db: {
        Cmd: ["postgres", "-c", "shared_buffers=64MB", "-c", "max_connections=50"],
        Env: ["POSTGRES_USER=gitea", "POSTGRES_PASSWORD=pw", "POSTGRES_INITDB_ARGS=--data-checksums --encoding=UTF8"],
      },
    },
    warnings: ["services.server.container_name"],
    asks: [
      {
        service: "db",
        names: ["server", "gitea"],
        script: "ls -d /var/lib/postgresql/data",
        says: "/var/lib/postgresql/data",
      },
    ],
  },
  nextcloud: {
    services: {
      app: {
        Env: [
          "MYSQL_HOST=db",
          "REDIS_HOST=redis",
          "NEXTCLOUD_TRUSTED_DOMAINS=cloud.example www.cloud.example",
          "MYSQL_DATABASE=nextcloud",
          "MYSQL_USER=nextcloud",
          "MYSQL_PASSWORD=p#ss word",
        ],
      },
      cron: { Entrypoint: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1; done"], Cmd: null },
      web: { Image: "nginx:alpine", HostConfig: { PortBindings: { "80/tcp": [{ HostPort: "8083" }] } } },
      db: { Cmd: ["--transaction-isolation=READ-COMMITTED", "--log-bin=binlog"] },
      redis: { HostConfig: { Sysctls: { "net.core.somaxconn": "512" } } },
    },
    asks: [
      {
        service: "app",
        names: ["db", "redis", "web", "cron"],
        script: "cat /proc/mounts | grep -c /var/www/html",
        says: "2",
      },
      { service: "web", names: ["app"], script: "cat /etc/nginx/nginx.conf", says: "events {}" },
    ],
  },
  home: {
    env: { RADIO: "/dev/null" },
    services: {
      mosquitto: {
        User: "1883",
        HostConfig: { PortBindings: { "1883/tcp": [{ HostPort: "1883" }], "9001/tcp": [{ HostPort: "9001" }] } },
        NetworkSettings: { Networks: { home_iot: { IPAddress: "172.29.53.10" } } },
      },
      zigbee2mqtt: {
        HostConfig: {
          Devices: [{ PathOnHost: "/dev/null", PathInContainer: "/dev/ttyACM0", CgroupPermissions: "rw" }],
          DeviceCgroupRules: ["c 166:* rmw"],
          GroupAdd: ["dialout"],
        },
      },
      homeassistant: { HostConfig: { NetworkMode: "host" } },
      nodered: {
        Tty: true,
        OpenStdin: true,
        NetworkSettings: { Networks: { home_iot: { MacAddress: "02:42:ac:1d:35:0b" } } },
      },
    },
    asks: [
      {
        service: "nodered",
        names: ["mosquitto", "zigbee2mqtt"],
        script: "cat /sys/class/net/eth0/address",
        says: "02:42:ac:1d:35:0b",
      },
    ],
  },
  elk: {
    env: { MEMLOCK: "4096" },
    services: {
      elasticsearch: {
        Image: "docker.elastic.co/elasticsearch/elasticsearch:8.14.1",
        Env: ["discovery.type=single-node", "bootstrap.memory_lock=true", "ES_JAVA_OPTS=-Xms256m -Xmx256m"],
        HostConfig: {
          Memory: 512 * MiB,
          MemorySwap: 512 * MiB,
          CpuShares: 512,
          Ulimits: [
            { Name: "memlock", Soft: 4096, Hard: 4096 },
            { Name: "nproc", Soft: 4096, Hard: 4096 },
          ],
        },
      },
      logstash: {
        HostConfig: {
          PortBindings: {
            "5044/tcp": [{ HostPort: "5044" }],
            "5000/tcp": [{ HostPort: "5000" }],
            "5000/udp": [{ HostPort: "5000" }],
          },
        },
      },
      kibana: { Env: ['ELASTICSEARCH_HOSTS=["http://elasticsearch:9200"]', "SERVER_NAME=kibana.example"] },
      filebeat: { User: "root", Cmd: ["filebeat", "-e", "--strict.perms=false"] },
    },
    asks: [
      {
        service: "filebeat",
        names: ["logstash", "elasticsearch", "kibana"],
        script: "cat /usr/share/filebeat/filebeat.yml",
        says: 'output.logstash.hosts: ["logstash:5044"]',
      },
    ],
  },
  mail: {
    services: {
      mailserver: {
        Hostname: "mail",
        Domainname: "example.org",
        StopTimeout: 60,
        Env: ["OVERRIDE_HOSTNAME=", "ENABLE_CLAMAV=1", "POSTMASTER_ADDRESS=postmaster@example.org"],
        HostConfig: {
          CapAdd: ["NET_ADMIN"],
          PortBindings: Object.fromEntries(
            ["25", "143", "465", "587", "993", "994", "995"].map((port) => [`${port}/tcp`, [{ HostPort: port }]]),
          ),
        },
      },
      webmail: {
        Env: ["ROUNDCUBEMAIL_DEFAULT_HOST=tls://mailserver", "ROUNDCUBEMAIL_SMTP_PORT=587", "ROUNDCUBEMAIL_SKIN="],
      },
      antivirus: { Healthcheck: { Test: ["NONE"] }, HostConfig: { Memory: 3072 * MiB, PidsLimit: 256 } },
    },
    asks: [{ service: "webmail", names: ["antivirus"], script: "echo $ROUNDCUBEMAIL_SMTP_PORT", says: "587" }],
  },
  dns: {
    env: { TUN: "/dev/null" },
    services: {
      pihole: {
        Hostname: "pihole",
        HostConfig: {
          Dns: ["127.0.0.1", "172.29.54.3"],
          CapAdd: ["NET_ADMIN", "SYS_NICE"],
          PortBindings: {
            "53/tcp": [{ HostPort: "53" }],
            "53/udp": [{ HostPort: "53" }],
            "80/tcp": [{ HostPort: "8085" }],
          },
        },
        NetworkSettings: { Networks: { dns_dns: { IPAddress: "172.29.54.2" } } },
      },
      wireguard: {
        HostConfig: { Sysctls: { "net.ipv4.conf.all.src_valid_mark": "1", "net.ipv4.ip_forward": "1" } },
      },
      unbound: { NetworkSettings: { Networks: { dns_dns: { IPAddress: "172.29.54.3" } } } },
    },
    asks: [
      { service: "wireguard", names: ["pihole", "unbound"], script: "cat /proc/sys/net/ipv4/ip_forward", says: "1" },
    ],
  },
};

/** What only `?dry_run=true` is asked of: no machine of a test has it. */
const DRY: Record<string, Record<string, JsonObject>> = {
  gpu: {
    ollama: {
      HostConfig: {
        Runtime: "nvidia",
        IpcMode: "host",
        ShmSize: 8192 * MiB,
        Ulimits: [
          { Name: "memlock", Soft: -1, Hard: -1 },
          { Name: "stack", Soft: 67108864, Hard: 67108864 },
        ],
        DeviceRequests: [{ Driver: "nvidia", Count: 1, Capabilities: [["gpu"]] }],
      },
    },
    train: {
      Cmd: ["python", "-m", "train", "--epochs", "3"],
      WorkingDir: "/work",
      Env: ["NVIDIA_VISIBLE_DEVICES=0,1", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"],
      HostConfig: { DeviceRequests: [{ Count: -1, Capabilities: [["gpu"]] }] },
    },
  },
};

type Shown = { service_name: string; slot: number; create: JsonObject & { Image: string; HostConfig: JsonObject } };
type DryRun = { containers: Shown[]; warnings: { path: string }[]; blocked: unknown[] };

let lab: Lab;
let host: LabHost;
let cluster: LabCluster;
const dryRuns = new Map<string, DryRun>();

beforeAll(async () => {
  lab = await Lab.start({ hosts: 1 });
  host = lab.host(1);
  cluster = new LabCluster(lab);
  const address = `${host.address}:9000`;
  cluster.node(1, ["--bind-addr", address, "bootstrap"]);
  await Promise.all([cluster.ready(1), makeImage()]);
  for (const name of [...Object.keys(REAL), ...Object.keys(DRY)]) {
    const { status, body } = await send<DryRun>(name, "dry_run=true");
    if (status !== 200) throw new Error(`${name}: ${JSON.stringify(body)}`);
    dryRuns.set(name, body);
  }
  const runs = [...dryRuns].filter(([name]) => name in REAL);
  const images = new Set(runs.flatMap(([, { containers }]) => containers.map(({ create }) => create.Image)));
  await Promise.all([...images].map((image) => host.docker("tag", "stay", image)));
  for (const name of Object.keys(REAL)) expect((await send(name)).status).toBe(201);
});

afterAll(async () => {
  await lab?.stop();
});

/** An image that stays up, with the programs that health checks ask. */
async function makeImage(): Promise<void> {
  await host.importImage("busybox");
  await host.measurePace("busybox");
  const script =
    'cd /bin; text=$1; shift; for name; do printf %s "$text" >$name; chmod 755 $name; text="#!/bin/sh"; done';
  const groups = "printf 'dialout:x:20:\\nvideo:x:44:\\n' >>/etc/group";
  await host.docker(
    "run",
    "--name",
    "making",
    "busybox",
    "sh",
    "-c",
    `${groups}; ${script}`,
    "sh",
    STAY,
    "stay",
    ...PROGRAMS,
  );
  await host.docker("commit", "-c", 'ENTRYPOINT ["/bin/stay"]', "-c", "CMD []", "making", "stay");
  await host.docker("rm", "making");
}

/** Files of the document's directory but the document itself, by their paths in it. */
function filesOf(name: string): string[] {
  const all = readdirSync(join(ROOT, name), { recursive: true, withFileTypes: true });
  return all
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(join(ROOT, name).length + 1))
    .filter((path) => path !== "compose.yaml");
}

async function send<T>(name: string, query = ""): Promise<{ status: number; body: T }> {
  const form = new FormData();
  const part = (path: string) => new Blob([readFileSync(join(ROOT, name, path))]);
  form.append("compose", part("compose.yaml"));
  // What a test's machine may not have, or not allow.
  const env = { DOCKER_SOCKET: host.dockerSocket, KMSG: "/dev/null", PRIVILEGED: "false", ...REAL[name]?.env };
  form.append(
    "env",
    new Blob([
      Object.entries(env)
        .map((pair) => `${pair.join("=")}\n`)
        .join(""),
    ]),
  );
  for (const path of filesOf(name)) form.append("file", part(path), `./${path}`);
  return cluster.api<T>(`/cluster/job/${name}?profile=*&${query}`, { method: "PUT", body: form });
}

/** The containers of a job by their service, each as a create body with what its networks say. */
async function inspected(name: string): Promise<Map<string, (JsonObject & { id: string })[]>> {
  const found = new Map<string, (JsonObject & { id: string })[]>();
  for (const { id, labels } of await cluster.containers(host)) {
    if (labels["cacophony.job"] !== name) continue;
    const { Config, HostConfig, NetworkSettings } = (await (
      await host.engine(`/containers/${id}/json`)
    ).json()) as Record<string, JsonObject>;
    const service = labels["cacophony.service"] ?? "";
    const body = {
      ...Config,
      HostConfig: withoutPrefix(sealedAnew(HostConfig ?? {})),
      NetworkSettings: NetworkSettings ?? {},
      id,
    };
    found.set(service, [...(found.get(service) ?? []), body]);
  }
  return found;
}

/** A secret is sealed anew with each PUT, and its file is named after that. */
function sealedAnew(host: JsonObject): JsonObject {
  return JSON.parse(JSON.stringify(host).replaceAll(/\/[0-9a-f]{24}-/g, "/{sealed}-")) as JsonObject;
}

/** Engines since 23 write capabilities as `CAP_X`, whatever they were told. */
function withoutPrefix({ CapAdd = null, CapDrop = null, ...host }: JsonObject): JsonObject {
  const bare = (names: JsonObject[string]) =>
    (names as string[] | null)?.map((name) => name.replace(/^CAP_/, "")) ?? null;
  return { ...host, CapAdd: bare(CapAdd), CapDrop: bare(CapDrop) };
}

/** Waits until every service of the job runs as it should, or has ended. */
async function upAndRunning(name: string): Promise<void> {
  const { ends = [], replicas = {} } = REAL[name] ?? {};
  const look = async () =>
    Object.entries((await cluster.job(name)).services).map(([service, { counts, allocations }]) => ({
      isUp: counts[ends.includes(service) ? "exited" : "running"] === (replicas[service] ?? 1),
      seen: [service, counts, ...allocations.flatMap(({ error }) => error ?? [])],
    }));
  await waitUntil(`job ${name} to run`, look, {
    until: (all) => all.every(({ isUp }) => isUp),
    timeoutMs: paced(60_000),
  });
}

function placed(expected: JsonObject, name: string): JsonObject {
  return JSON.parse(
    JSON.stringify(expected).replaceAll("{project}", join(host.dataDir, "projects", name)),
  ) as JsonObject;
}

describe("documents in the style of real ones", () => {
  test.each(Object.entries(REAL))("%s", async (name, real) => {
    const dry = dryRuns.get(name);
    if (real.warnings) expect(dry?.warnings.map(({ path }) => path).toSorted()).toEqual(real.warnings.toSorted());
    expect(dry?.blocked.length).toBe(0);
    await upAndRunning(name);
    const containers = await inspected(name);
    expect(Object.keys(real.services).every((service) => containers.has(service))).toBe(true);
    for (const [service, all] of containers) {
      expect([service, all.length]).toEqual([service, real.replicas?.[service] ?? 1]);
      const shown = dry?.containers.find(({ service_name }) => service_name === service)?.create;
      if (!shown) throw new Error(`the dry run shows no ${service}`);
      const { Labels: _, NetworkingConfig: __, ...create } = shown;
      const restarts = { ...sealedAnew(create.HostConfig), RestartPolicy: { Name: "no", MaximumRetryCount: 0 } };
      for (const one of all) {
        expect([service, differences({ ...create, HostConfig: restarts }, one)]).toEqual([service, []]);
        expect([service, differences(placed(real.services[service] ?? {}, name), one)]).toEqual([service, []]);
      }
    }
    for (const { service, names, script, says } of real.asks) {
      const id = containers.get(service)?.[0]?.id ?? "";
      const pings = names.map((other) => `ping -c 1 -w 5 ${other} >/dev/null 2>&1 || echo no ${other}`);
      // A name is there once what it leads to is ready, which is a moment after it runs, or when it is healthy.
      await waitUntil(
        `${service} to see what it should`,
        () => host.docker("exec", "-u", "0", id, "sh", "-c", [...pings, script].join("\n")),
        { until: (output) => output === says, timeoutMs: paced(30_000) },
      );
    }
  });

  test.each(Object.entries(DRY))("%s, as a dry run shows it", (name, services) => {
    const containers = dryRuns.get(name)?.containers ?? [];
    expect(containers.map(({ service_name }) => service_name)).toEqual(Object.keys(services));
    for (const { service_name: service, create } of containers) {
      expect([service, differences(services[service] ?? {}, create)]).toEqual([service, []]);
    }
  });
});
