/**
 * @module The table of compose's keys: one row per key with what becomes of it (honoured, honoured with a limit, left out with
 * a warning, refused) and the schema of its value. To treat another key, add or change its row here; what a checked value
 * leads to is in `job_service.ts`. Keys and their types are those of the Compose Specification's JSON schema.
 */
import * as v from "valibot";
import {
  address,
  addresses,
  addressOrNone,
  build,
  command,
  constraint,
  credentialSpec,
  dependsOn,
  device,
  envFile,
  exposedPorts,
  external,
  extraHosts,
  fileMount,
  genericResource,
  gpus,
  group,
  healthTest,
  ipam,
  isolation,
  memory,
  namespace,
  NOT_YET,
  platform,
  quoted,
  reservedDevice,
  restart,
  securityOption,
  shareableNamespace,
  spreadLabel,
  ulimit,
  updates,
  volumesFrom,
} from "./job_forms.ts";
import { readImage, Refusal } from "./job_grammar.ts";
import { mountsSchema, portsSchema } from "./job_lists.ts";
import {
  anything,
  bareOptions,
  byForm,
  bytes,
  decimal,
  distinctTexts,
  duration,
  fields,
  flag,
  honoured,
  integer,
  jsonSchemaOfTable,
  limited,
  listOf,
  mapOf,
  meaning,
  NOTHING,
  namesAndTexts,
  namesWithTexts,
  oneOf,
  oneOrMore,
  options,
  reads,
  readsText,
  refused,
  section,
  shape,
  text,
  textMatching,
  textOrTexts,
  uniqueTexts,
  warned,
  type Fields,
  type Schema,
  type Table,
} from "./job_schema.ts";

const SENT = "a file that is sent along; the nodes' own are not read";

const MOUNTED = "a file of the node, mounted read-only; a changed one replaces the containers that mount it";
const IN_MEMORY =
  "a file in the node's memory (tmpfs), mounted read-only; another value replaces the containers that mount it";
const HOOK = `${NOT_YET}: do it in the image's entrypoint`;
const HEALTHCHECK = {
  test: honoured(healthTest),
  interval: honoured(duration),
  timeout: honoured(duration),
  start_period: honoured(duration),
  start_interval: limited(duration, "engines before Docker 25 drop it and keep to interval"),
  retries: honoured(integer({ least: 0 })),
  disable: honoured(flag),
} satisfies Table;

/** Compose takes a fraction in quotes only. */
const percent = byForm(
  { whole: integer({ least: 0, most: 100 }), quoted: decimal({ least: 0, most: 100 }) },
  (value) => (typeof value === "string" ? "quoted" : "whole"),
);
const replicas = integer({ least: 0, most: 100_000 });
const cpus = decimal({ least: 0 });

const limitsTable = {
  cpus: honoured(cpus),
  memory: honoured(quoted(memory)),
  pids: honoured(integer({ least: -1 })),
} satisfies Table;
const reservationsTable = {
  cpus: limited(cpus, "set aside on the node; Docker itself knows no such reservation"),
  memory: honoured(quoted(bytes)),
  devices: limited(
    listOf(reservedDevice),
    "GPUs are counted on each node, and Docker chooses which of them: name device_ids for different ones; other devices are asked of Docker alone",
  ),
  generic_resources: limited(
    listOf(genericResource),
    "counted on each node, as dockerd's node-generic-resources names them; containers are not told which ones they have",
  ),
} satisfies Table;

type PidMode = "host" | "" | `service:${string}`;
const TOGETHER = "service:NAME places the two services together";
const PULLING = /^(always|never|build|if_not_present|missing|refresh|daily|weekly|every_([0-9]+[wdhms])+)$/;
const NODE_NETWORKS =
  "of one node: names reach the containers there; any driver that the node has, but for overlay, which is made a bridge; placed only where an external one exists";
const UPDATES = "is left out: a changed service is replaced replica by replica";
const RESTART_POLICY = {
  condition: honoured(oneOf(["none", "on-failure", "any", "no", "always", "unless-stopped"])),
  max_attempts: limited(integer({ least: 0 }), "counts ends in a row, under each condition; 0 is no limit"),
  delay: limited(duration, "the least wait; restarts wait longer each time, by up to 30 s more"),
  window: limited(
    duration,
    "a run of that length is a success, after which max_attempts counts anew; 10 s where it is 0",
  ),
} satisfies Table;
const PLACEMENT = {
  constraints: limited(
    listOf(constraint),
    "node.id, node.name (or node.hostname), node.role, node.platform.arch and .os, node.labels.NAME; replicas stay when a label of their node changes, and move when the document does",
  ),
  preferences: limited(listOf(fields({ spread: honoured(spreadLabel) })), "spread over node.labels.NAME"),
  max_replicas_per_node: honoured(integer({ least: 0 })),
} satisfies Table;

export const DEPLOY_KEYS = {
  replicas: honoured(replicas),
  mode: limited(
    oneOf(["replicated", "global", "replicated-job", "global-job"]),
    "global: one on each node that the constraints allow; a job runs to its end once, and again when its definition changes",
  ),
  resources: section({ limits: section(limitsTable), reservations: section(reservationsTable) }),
  restart_policy: section(RESTART_POLICY),
  placement: section(PLACEMENT),
  labels: warned(
    namesAndTexts,
    "is left out: these labels are for the service, and containers do not get them in compose either",
  ),
  endpoint_mode: warned(text, "is left out, as compose does: a service's name leads to its containers"),
  update_config: warned(updates, UPDATES),
  rollback_config: warned(updates, UPDATES),
} satisfies Table;

const blkioRate = listOf(fields({ path: honoured(text), rate: honoured(bytes) }));
const BLKIO = {
  weight: honoured(integer({ least: 0, most: 1000 })),
  weight_device: honoured(
    listOf(fields({ path: honoured(text), weight: honoured(integer({ least: 0, most: 1000 })) })),
  ),
  device_read_bps: honoured(blkioRate),
  device_read_iops: honoured(blkioRate),
  device_write_bps: honoured(blkioRate),
  device_write_iops: honoured(blkioRate),
} satisfies Table;

const LOGGING = { driver: honoured(text), options: honoured(bareOptions) } satisfies Table;

const macAddress = textMatching(/^([0-9a-f]{2}[:-]){5}[0-9a-f]{2}$|^$/i, "write a MAC address, as 02:42:ac:11:00:02");
const FROM_DOCKER_28 = "not placed on nodes whose engine is older than Docker 28";

/** A fixed address on a network of the node: a second replica there can't have it too. */
const ONE_ADDRESS = "one replica per node can have it";
const SERVICE_NETWORK = {
  aliases: honoured(distinctTexts),
  ipv4_address: limited(addressOrNone, ONE_ADDRESS),
  ipv6_address: limited(addressOrNone, ONE_ADDRESS),
  link_local_ips: honoured(listOf(address, { repeats: "dropped" })),
  mac_address: limited(macAddress, "of a network that is not the first, from API 1.54 on"),
  driver_opts: honoured(options),
  interface_name: limited(
    textMatching(
      /^[^\s/:.][^\s/:]{0,14}$|^$/,
      "an interface's name has up to 15 characters, without spaces, '/' and ':'",
    ),
    FROM_DOCKER_28,
  ),
  priority: honoured(integer()),
  gw_priority: limited(integer(), FROM_DOCKER_28),
} satisfies Table;
const networkNames: Schema<[string, Fields<typeof SERVICE_NETWORK>][]> = v.pipe(
  uniqueTexts,
  v.transform((names) => names.map((name): [string, Fields<typeof SERVICE_NETWORK>] => [name, {}])),
);
const serviceNetworks: Schema<[string, Fields<typeof SERVICE_NETWORK>][]> = byForm(
  { short: networkNames, long: mapOf(definition(SERVICE_NETWORK)) },
  (value) => (Array.isArray(value) ? "short" : "long"),
);

/** A mapping that may be named and nothing more (`data:`): all defaults. */
function definition<T extends Table>(table: T): Schema<Fields<T>> {
  return byForm({ defaults: meaning({} as Fields<T>, NOTHING), given: fields(table) }, (value) =>
    value === null ? "defaults" : "given",
  );
}

const CACOPHONY = {
  publish: honoured(oneOf(["host", "mesh"])),
  balance: honoured(oneOf(["local_first", "least_connections"])),
  proxy_protocol: honoured(oneOf(["none", "v1", "v2"])),
  volumes: limited(
    oneOf(["wait", "recreate"]),
    "what becomes of a slot whose data are on a node that is down: it waits for it (the default), or is made anew elsewhere, without them",
  ),
  stop_when_isolated: honoured(isolation),
  api: limited(
    oneOf(["read", "deploy"]),
    "the API of the node that the container runs on, at an address that the node listens on: read gets services, jobs (without values of environment, configs and secrets) and discovery; deploy also sends jobs",
  ),
  strategy: honoured(oneOf(["spread", "binpack"])),
} satisfies Table;
const WATCH = {
  path: honoured(text),
  action: honoured(oneOf(["rebuild", "sync", "restart", "sync+restart", "sync+exec"])),
  target: honoured(text),
  ignore: honoured(textOrTexts),
  include: honoured(textOrTexts),
  exec: honoured(
    fields({
      command: honoured(command),
      user: honoured(text),
      privileged: honoured(flag),
      working_dir: honoured(text),
      environment: honoured(namesWithTexts),
    }),
  ),
  initial_sync: honoured(flag),
} satisfies Table;

const watch = v.pipe(
  fields(WATCH),
  v.check((entry) => entry.path !== undefined && entry.action !== undefined, "needs both path and action"),
);

/** What a service may say. */
export const SERVICE_KEYS = {
  "x-cacophony": section(CACOPHONY),
  image: honoured(readsText(readImage)),
  command: honoured(command),
  entrypoint: honoured(command),
  environment: honoured(namesWithTexts),
  ports: honoured(portsSchema),
  volumes: limited(mountsSchema, "bind, volume and tmpfs; an anonymous volume goes with its container"),
  restart: limited(
    restart,
    "restarts wait longer each time; unless-stopped is always: Cacophony has no stopped containers",
  ),
  labels: honoured(namesAndTexts),
  user: honoured(text),
  working_dir: honoured(text),
  hostname: honoured(text),
  domainname: honoured(text),
  stop_grace_period: honoured(duration),
  stop_signal: honoured(textMatching(/^(SIG)?[A-Z0-9+-]+$|^$/i, "write a signal, as SIGTERM or 15")),
  scale: honoured(replicas),
  deploy: { ...section(DEPLOY_KEYS), schema: definition(DEPLOY_KEYS) },
  mem_limit: honoured(memory),
  mem_reservation: honoured(bytes),
  memswap_limit: honoured(
    byForm({ unlimited: meaning(-1, { enum: ["-1"] }), bytes }, (value) =>
      value === -1n || value === "-1" ? "unlimited" : "bytes",
    ),
  ),
  mem_swappiness: honoured(integer({ least: 0, most: 100 })),
  cpus: honoured(cpus),
  cpu_count: limited(integer({ least: 0 }), "engines on Linux drop it"),
  cpu_percent: limited(percent, "engines on Linux drop it"),
  cpu_period: honoured(integer()),
  cpu_quota: honoured(integer()),
  cpu_rt_period: honoured(integer()),
  cpu_rt_runtime: honoured(integer()),
  cpu_shares: honoured(integer({ least: 0 })),
  cpuset: honoured(text),
  pids_limit: honoured(integer({ least: -1 })),
  annotations: limited(namesAndTexts, "not placed on nodes whose engine is older than Docker 24"),
  blkio_config: section(BLKIO),
  cap_add: honoured(distinctTexts),
  cap_drop: honoured(distinctTexts),
  cgroup: honoured(oneOf(["host", "private"])),
  cgroup_parent: honoured(text),
  credential_spec: limited(
    credentialSpec,
    "placed on Windows nodes only; config: what the document or a sent file says",
  ),
  device_cgroup_rules: honoured(uniqueTexts),
  devices: limited(listOf(device), "the node must have them; placement does not look for devices"),
  dns: honoured(addresses),
  dns_opt: honoured(distinctTexts),
  dns_search: honoured(textOrTexts),
  expose: honoured(exposedPorts),
  extra_hosts: honoured(extraHosts),
  gpus: limited(gpus, "as deploy.resources.reservations.devices; all is for a node that has any, and shares them"),
  group_add: honoured(listOf(group, { repeats: "refused" })),
  healthcheck: section(HEALTHCHECK),
  init: honoured(flag),
  ipc: limited(shareableNamespace(["host", "private", "shareable", "none", ""]), TOGETHER),
  isolation: honoured(text),
  links: limited(distinctTexts, "the name is known to all services of the job on that node"),
  logging: section(LOGGING),
  mac_address: honoured(macAddress),
  network_mode: limited(
    shareableNamespace(["host", "none", "bridge", "default", ""]),
    `host, none, bridge, default; ${TOGETHER}`,
  ),
  networks: limited(serviceNetworks, NODE_NETWORKS),
  oom_kill_disable: honoured(flag),
  oom_score_adj: honoured(integer({ least: -1000, most: 1000 })),
  pid: limited(
    byForm({ own: meaning<PidMode>("", NOTHING), named: shareableNamespace(["host", ""]) }, (value) =>
      value === null ? "own" : "named",
    ),
    TOGETHER,
  ),
  platform: limited(
    platform,
    "placed on nodes of that platform (amd64 runs 386, arm64 arm); emulation is not looked for",
  ),
  privileged: honoured(flag),
  profiles: limited(distinctTexts, "chosen by ?profile=NAME (repeatable, `*` for all), anew with each PUT"),
  pull_policy: limited(
    textMatching(PULLING, "allowed are always, missing, never, build, daily, weekly and every_12h"),
    "the registry is asked when a replica is made; build is missing",
  ),
  read_only: honoured(flag),
  runtime: honoured(text),
  security_opt: limited(
    listOf(securityOption, { repeats: "refused" }),
    `seccomp: unconfined, builtin, JSON, or ${SENT}`,
  ),
  shm_size: honoured(bytes),
  stdin_open: honoured(flag),
  storage_opt: honoured(options),
  sysctls: honoured(namesAndTexts),
  tmpfs: honoured(textOrTexts),
  tty: honoured(flag),
  ulimits: honoured(mapOf(ulimit)),
  userns_mode: honoured(namespace(["host", ""])),
  uts: honoured(namespace(["host", ""])),

  attach: warned(flag, "is left out: nothing is attached to containers here"),
  build: limited(build, "an image is needed as well, which is run as it is: nothing is built"),
  container_name: warned(
    textMatching(/^[a-zA-Z0-9][a-zA-Z0-9_.-]+$/, "a container's name is letters, digits, '_', '.' and '-'"),
    "is left out: containers are named after job, service and slot; the name leads to the service as a further alias",
  ),
  depends_on: limited(
    dependsOn,
    "orders the first start of a definition, over all nodes; restart is left out, and what fails later stops nothing",
  ),
  develop: warned(definition({ watch: honoured(listOf(watch)) }), "is left out: there is no watch mode here"),
  env_file: limited(oneOrMore(envFile), SENT),
  pull_refresh_after: limited(
    textMatching(/^([0-9]+[wdhms])+$/, "write a duration, as 24h or 1d12h"),
    "for pull_policy: refresh, which otherwise asks each time",
  ),

  configs: limited(listOf(fileMount, { repeats: "dropped" }), MOUNTED),
  secrets: limited(listOf(fileMount, { repeats: "dropped" }), IN_MEMORY),
  extends: limited(anything, `file: ${SENT}`),
  external_links: refused(
    "names a container outside of the job, which may be on another node: make it a service of this job",
  ),
  label_file: limited(textOrTexts, SENT),
  models: refused(`${NOT_YET}: run the model as a service`),
  post_start: refused(HOOK),
  pre_start: refused(HOOK),
  pre_stop: refused(HOOK),
  provider: refused(`${NOT_YET}: a service is a container here`),
  use_api_socket: refused(`${NOT_YET}: bind /var/run/docker.sock under volumes`),
  volume_driver: honoured(text),
  volumes_from: limited(listOf(volumesFrom, { repeats: "refused" }), "NAME, NAME:ro; places the two services together"),
} satisfies Table;
export type ServiceFields = Fields<typeof SERVICE_KEYS>;

const VOLUME = {
  name: honoured(textMatching(/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/, "a volume's name is letters, digits, '_', '.' and '-'")),
  driver: limited(text, "the node must have the driver"),
  driver_opts: honoured(options),
  external: limited(external, "placed only where it exists; a node tells of a new one within 30 s"),
  labels: honoured(namesAndTexts),
} satisfies Table;
export type VolumeFields = Fields<typeof VOLUME>;

const volume: Schema<VolumeFields> = v.pipe(
  definition(VOLUME),
  v.check(
    ({ external: outside, driver, driver_opts, labels }) => !outside || (driver ?? driver_opts ?? labels) === undefined,
    "is external and yet defines a driver, options or labels; keep one",
  ),
);

const NETWORK = {
  name: honoured(text),
  driver: honoured(text),
  driver_opts: honoured(options),
  ipam: honoured(ipam),
  external: honoured(external),
  internal: honoured(flag),
  attachable: honoured(flag),
  enable_ipv4: limited(flag, FROM_DOCKER_28),
  enable_ipv6: honoured(flag),
  labels: honoured(namesAndTexts),
} satisfies Table;
export type NetworkFields = Fields<typeof NETWORK>;

const FILE_OBJECT = {
  name: honoured(text),
  content: honoured(text),
  environment: honoured(text),
  file: honoured(text),
  external: honoured(external),
  labels: honoured(namesAndTexts),
  driver: honoured(text),
  driver_opts: honoured(options),
  template_driver: honoured(text),
} satisfies Table;
export type FileObjectFields = Fields<typeof FILE_OBJECT>;
/** Compose knows no secret that is written out in the document. */
const { content: _, ...SECRET } = FILE_OBJECT;

function fileObject(table: Table, sources: string): Schema<FileObjectFields> {
  return v.pipe(
    definition(table) as Schema<FileObjectFields>,
    v.check(
      ({ content, environment, file, external: outside, driver }) =>
        [content, environment, file].filter((source) => source !== undefined).length === (outside || driver ? 0 : 1),
      `needs exactly one of ${sources}`,
    ),
  );
}

/** A service is checked by its own table; the document's table keeps it as it came. */
const rawServices: Schema<ReadonlyMap<string, unknown>> = v.pipe(
  v.custom<ReadonlyMap<string, unknown>>(
    (value) => value instanceof Map,
    "must be a mapping from service names to services",
  ),
  shape(() => ({ type: "object", additionalProperties: jsonSchemaOfTable(SERVICE_KEYS) })),
);

const NAME = /^[a-zA-Z0-9._-]+$/;
function named<T>(kind: string, value: Schema<T>): Schema<[string, T][]> {
  return v.pipe(
    mapOf(value),
    v.rawCheck(({ dataset, addIssue }) => {
      if (!dataset.typed) return;
      for (const [name] of dataset.value) {
        if (NAME.test(name)) continue;
        addIssue({
          message: `is no name for a ${kind}: use letters, digits, '.', '_' and '-'`,
          path: [{ type: "unknown", origin: "value", input: undefined, key: name, value: undefined }],
        });
      }
    }),
  );
}

/** What may stand at the top of a document. */
export const DOCUMENT_KEYS = {
  services: honoured(rawServices),
  volumes: honoured(named("volume", volume)),
  networks: limited(named("network", definition(NETWORK)), NODE_NETWORKS),
  configs: limited(
    named("config", fileObject(FILE_OBJECT, "file, content, environment and external")),
    "file, content and environment; nothing external, no drivers",
  ),
  secrets: limited(
    named("secret", fileObject(SECRET, "file, environment and external")),
    "file and environment, sealed in the cluster's state; nothing external, no drivers",
  ),
  name: limited(text, "the job's id is its name"),
  version: honoured(
    reads({ anyOf: [{ type: "string" }, { type: "number" }] }, (value) =>
      typeof value === "string" || typeof value === "bigint" || typeof value === "number"
        ? String(value)
        : new Refusal("must be a text"),
    ),
  ),
  include: limited(anything, SENT),
  models: refused(`${NOT_YET}: run the model as a service`),
} satisfies Table;
