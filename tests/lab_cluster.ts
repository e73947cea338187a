/**
 * @module A cluster in the lab: `cacophony` processes on its hosts, and what tests ask of them and of the engines beside them.
 */
import { Lab, type LabHost, type Within } from "./lab.ts";
import type { Env, LabProcess } from "./lab_process.ts";
import { paced, waitUntil } from "./wait.ts";

/** Short times for tests, by option as an operator would set them. */
const TIMES: Env = {
  CACOPHONY_HEARTBEAT_INTERVAL: "500ms",
  CACOPHONY_NODE_TIMEOUT: "10s",
  CACOPHONY_LOG_LEVEL: "debug",
};

export type Allocation = {
  allocation_id: string;
  job_id: string;
  service_name: string;
  slot: number;
  job_version: number;
  node_id: string;
  node_name: string;
  state: string;
  health: string | null;
  container_id: string | null;
  ports: { container_port: number; protocol: string; host_ip: string; host_port: number }[];
  restarts: number;
  exit_code: number | null;
  error: string | null;
};
export type NodeDoc = {
  node_id: string;
  node_name: string;
  address: string;
  role: string;
  state: string;
  reason: string;
};
export type ServiceDoc = {
  scale: number;
  counts: Record<string, number>;
  allocations: Allocation[];
  blocked: { slot: number; reasons: string[] }[];
};
export type JobDoc = { job_id: string; version: number; document: unknown; services: Record<string, ServiceDoc> };
type Answer<T> = { status: number; headers: Headers; body: T };

/** What one container said. */
export type Asked = { host: LabHost; id: string; text: string };

type StartOptions = {
  hosts: number;
  nodes?: number;
  bootstrap?: readonly string[];
  join?: readonly string[];
  /** Makes the command that runs a node of the command that it is given. */
  within?: Within;
};

export class LabCluster {
  readonly lab: Lab;
  readonly processes: LabProcess[] = [];
  /** The executable of nodes that are started from now on; undefined: the lab's. */
  binary: string | undefined;
  readonly #arguments: string[][] = [];
  readonly #within: Within;

  constructor(lab: Lab, { within = (argv) => argv }: Pick<StartOptions, "within"> = {}) {
    this.lab = lab;
    this.#within = within;
  }

  /**
   * A lab with a busybox image on each of its hosts, and a cluster on the first `nodes` of them, ready: a master on host 1, which
   * the others join. `bootstrap` and `join` are options of theirs.
   */
  static async start({ hosts, nodes = hosts, bootstrap = [], join = [], ...more }: StartOptions): Promise<LabCluster> {
    const lab = await Lab.start({ hosts });
    const cluster = new LabCluster(lab, more);
    try {
      await Promise.all(lab.hosts.map((host) => host.importImage("busybox")));
      await lab.host(1).measurePace("busybox");
      await cluster.form(nodes, { bootstrap, join });
    } catch (error) {
      await lab.stop();
      throw error;
    }
    return cluster;
  }

  /** Begins the cluster on the first `nodes` hosts of its lab, and waits until all are ready. */
  async form(
    nodes: number,
    { bootstrap = [], join = [] }: Pick<StartOptions, "bootstrap" | "join"> = {},
  ): Promise<void> {
    const master = `${this.lab.host(1).address}:9000`;
    await this.node(1, ["bootstrap", "--bind-addr", master, ...bootstrap]).waitFor(/this node is up/);
    for (let number = 2; number <= nodes; number++) this.node(number, ["join", master, ...join]);
    await this.ready(nodes);
  }

  /** Starts a node on host `number` and remembers how, for `restart`. `within` makes a command that runs the one it is given. */
  node(number: number, args: readonly string[], { within = this.#within }: { within?: Within } = {}): LabProcess {
    this.#arguments[number] = [...args];
    const options = { env: TIMES, binary: this.binary, within };
    const started = this.lab.host(number).cacophony(args, options);
    this.processes[number] = started;
    return started;
  }

  /** The same command again. */
  restart(number: number): LabProcess {
    return this.node(number, this.#arguments[number] ?? []);
  }

  process(number: number): LabProcess {
    const found = this.processes[number];
    if (!found) throw new Error(`no cacophony was started on host ${number}`);
    return found;
  }

  async api<T = Record<string, unknown>>(
    path: string,
    { on = 1, ...init }: RequestInit & { on?: number; timeoutMs?: number } = {},
  ): Promise<Answer<T>> {
    const response = await this.lab.host(on).fetch(path, init);
    const text = await response.text();
    return {
      status: response.status,
      headers: response.headers,
      body: (text === "" ? undefined : JSON.parse(text)) as T,
    };
  }

  async put(jobId: string, document: unknown, { on = 1, query = "" }: { on?: number; query?: string } = {}) {
    const body = typeof document === "string" ? document : JSON.stringify(document);
    return this.api<{
      version: number;
      services: Record<string, { scale: number }>;
      error?: { code: string; message: string };
    }>(`/cluster/job/${jobId}${query}`, { method: "PUT", body, on });
  }

  async scale(jobId: string, { service, scale, on = 1 }: { service: string; scale: number; on?: number }) {
    return this.api<{ version: number }>(`/cluster/job/${jobId}/${service}`, {
      method: "PUT",
      body: JSON.stringify({ scale }),
      on,
    });
  }

  async job(jobId: string): Promise<JobDoc> {
    return (await this.api<JobDoc>(`/cluster/job/${jobId}`)).body;
  }

  async nodes(on = 1): Promise<NodeDoc[]> {
    return (await this.api<{ nodes: NodeDoc[] }>("/cluster/node", { on })).body.nodes.toSorted((a, b) =>
      a.node_name < b.node_name ? -1 : 1,
    );
  }

  async allocations(query = ""): Promise<Allocation[]> {
    return (await this.api<{ allocations: Allocation[] }>(`/cluster/allocation${query}`)).body.allocations;
  }

  /** Waits until the master holds `count` nodes for ready, and each node that runs has its session with the master. */
  async ready(count: number): Promise<NodeDoc[]> {
    const started = this.processes.flatMap((one, number) => (one?.running ? [number] : []));
    await waitUntil(
      "the nodes to have their sessions",
      async () => Promise.all(started.map(async (number) => (await this.lab.host(number).fetch("/readyz")).status)),
      {
        until: (statuses) => statuses.every((status) => status === 200),
        timeoutMs: paced(20_000),
      },
    );
    return waitUntil(`${count} nodes to be ready`, () => this.nodes(), {
      until: (nodes) => nodes.filter(({ state }) => state === "ready").length === count,
      timeoutMs: paced(20_000),
    });
  }

  /** Waits until each service of the job runs exactly its scale and nothing of it is on its way out. */
  async settled(jobId: string, { timeoutMs = paced(60_000) }: { timeoutMs?: number } = {}): Promise<JobDoc> {
    return waitUntil(`job ${jobId} to run as it should`, () => this.job(jobId), {
      until: ({ services }) =>
        Object.values(services ?? { none: undefined }).every((service) => {
          const { running = 0, ...others } = service?.counts ?? {};
          return running === service?.scale && Object.keys(others).length === 0;
        }),
      timeoutMs,
    });
  }

  /** Containers of ours per host, as its engine lists them: `state name`. */
  async containers(
    host: LabHost,
  ): Promise<{ id: string; name: string; state: string; labels: Record<string, string> }[]> {
    const filters = encodeURIComponent(JSON.stringify({ label: ["cacophony.allocation"] }));
    const list = (await (await host.engine(`/containers/json?all=1&filters=${filters}`)).json()) as {
      Id: string;
      Names: string[];
      State: string;
      Labels: Record<string, string>;
    }[];
    return list.map(({ Id, Names, State, Labels }) => ({
      id: Id,
      name: (Names[0] ?? "").slice(1),
      state: State,
      labels: Labels,
    }));
  }

  /** What a shell script says in each container of a service. */
  async ask(service: string, script: string): Promise<Asked[]> {
    const found = await Promise.all(
      this.lab.hosts.map(async (host) => (await this.containers(host)).map((container) => ({ ...container, host }))),
    );
    return Promise.all(
      found
        .flat()
        .filter(({ labels }) => labels["cacophony.service"] === service)
        .map(async ({ host, id }) => ({ host, id, text: (await host.docker("exec", id, "sh", "-c", script)).trim() })),
    );
  }

  /** Containers of ours on all hosts must be exactly the allocations that run: none missing, none too many, each once. */
  async exactSet(): Promise<void> {
    await waitUntil(
      "the engines to run exactly the allocations",
      async () => {
        const wanted = (await this.allocations())
          .filter(({ state }) => state === "running")
          .map((one) => one.allocation_id);
        const found = (await Promise.all(this.lab.hosts.map((host) => this.containers(host)))).flat();
        return {
          wanted: wanted.toSorted(),
          running: found.map(({ labels }) => labels["cacophony.allocation"] ?? "").toSorted(),
          odd: found.filter(({ state }) => state !== "running"),
        };
      },
      {
        until: ({ wanted, running, odd }) => odd.length === 0 && Bun.deepEquals(wanted, running),
        timeoutMs: paced(30_000),
      },
    );
  }

  /** Deletes every job and waits until the engines hold nothing of ours. */
  async clear(): Promise<void> {
    for (const jobId of Object.keys((await this.api("/cluster/job")).body)) {
      await this.api(`/cluster/job/${jobId}?volumes=true`, { method: "DELETE" });
    }
    await waitUntil(
      "all containers to be gone",
      async () => (await Promise.all(this.lab.hosts.map((host) => this.containers(host)))).flat(),
      { until: (list) => list.length === 0, timeoutMs: paced(30_000) },
    );
  }
}

/** A service that runs until it is stopped, and stops at once. */
export function sleeper(more: Record<string, unknown> = {}): Record<string, unknown> {
  return { image: "busybox", command: ["sleep", "86400"], stop_signal: "SIGKILL", ...more };
}

/** Allocations counted per node name. */
export function perNode(allocations: readonly Allocation[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { node_name } of allocations) counts[node_name] = (counts[node_name] ?? 0) + 1;
  return counts;
}
