/**
 * @module The two that `bench_faults.ts` compares, Cacophony and Docker Swarm, each on the same three hosts of a lab with its own
 * defaults: how to start one, give it replicas, hurt it, and ask it. What runs is asked of the engines by the bench itself, alike
 * for both.
 */
import type { Lab, LabHost } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import type { LabProcess } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

export const IMAGE = "busybox";
const JOB = "faults";
const ASK_TIMEOUT_MS = 1_000;

export interface Side {
  readonly name: string;
  /** Filter of the Engine for its containers. */
  readonly label: string;
  /** Begins with host 1 as the one that decides. */
  start(): Promise<void>;
  /** Asks for so many replicas and does not wait for them. */
  deploy(replicas: number): Promise<void>;
  /** Asks for none. */
  remove(): Promise<void>;
  /** SIGKILL to its process on a host: cacophony, or dockerd, which is all that Swarm has. */
  killProcess(host: LabHost): Promise<void>;
  startProcess(host: LabHost): Promise<void>;
  /** Whether the one that decides holds the node for ready, and the node knows of it. */
  isReady(host: LabHost): Promise<boolean>;
  /** @returns false where it can't do that. */
  setAvailability(host: LabHost, availability: "active" | "drain"): Promise<boolean>;
  /** From now on it should stand the loss of the one that decides. @returns false where it can't. */
  addDeciders(): Promise<boolean>;
  /** Host of the one that decides. */
  decider(): Promise<LabHost>;
  /** One small durable change, asked of a host. @returns whether it was acknowledged. */
  write(on: LabHost): Promise<boolean>;
  /** Leaves nothing behind on the engines. */
  stop(): Promise<void>;
}

export class CacophonySide implements Side {
  readonly name = "Cacophony";
  readonly label = "cacophony.allocation";
  readonly #lab: Lab;
  readonly #cluster: LabCluster;
  readonly #processes = new Map<LabHost, LabProcess>();
  #writes = 0;

  constructor(lab: Lab) {
    this.#lab = lab;
    this.#cluster = new LabCluster(lab);
  }

  async start(): Promise<void> {
    const [first, ...others] = this.#lab.hosts;
    if (!first) throw new Error("no host");
    const master = `${first.address}:9000`;
    await this.#run(first, ["--bind-addr", master, "bootstrap"]).waitFor(/this node is up/);
    for (const host of others) this.#run(host, ["join", master]);
    await this.#cluster.ready(this.#lab.hosts.length);
  }

  async deploy(replicas: number): Promise<void> {
    const { status, body } = await this.#cluster.put(JOB, { services: { sleep: sleeper({ scale: replicas }) } });
    if (status >= 300) throw new Error(`the job was answered with ${status}: ${JSON.stringify(body)}`);
  }

  async remove(): Promise<void> {
    await this.#cluster.api(`/cluster/job/${JOB}`, { method: "DELETE" });
  }

  async killProcess(host: LabHost): Promise<void> {
    await this.#processes.get(host)?.kill();
  }

  async startProcess(host: LabHost): Promise<void> {
    // Its data directory says who it is.
    this.#run(host, []);
  }

  async isReady(host: LabHost): Promise<boolean> {
    if (!(await host.fetch("/readyz", { timeoutMs: ASK_TIMEOUT_MS })).ok) return false;
    const node = (await this.#cluster.nodes()).find(({ node_name }) => node_name === `host-${host.number}`);
    return node?.state === "ready";
  }

  async setAvailability(host: LabHost, availability: "active" | "drain"): Promise<boolean> {
    const body = JSON.stringify({ availability });
    const { status } = await this.#cluster.api(`/cluster/node/host-${host.number}`, { method: "PUT", body });
    return status < 300;
  }

  /** There is one master. */
  async addDeciders(): Promise<boolean> {
    return false;
  }

  async decider(): Promise<LabHost> {
    return this.#lab.host(1);
  }

  async write(on: LabHost): Promise<boolean> {
    const document = { services: { none: sleeper({ scale: 0, environment: { WRITE: String(++this.#writes) } }) } };
    const body = JSON.stringify(document);
    return (await on.fetch("/cluster/job/write", { method: "PUT", body, timeoutMs: ASK_TIMEOUT_MS })).ok;
  }

  async stop(): Promise<void> {
    await this.#cluster.clear();
    await Promise.all([...this.#processes.values()].map((one) => one.stop()));
  }

  #run(host: LabHost, args: readonly string[]): LabProcess {
    const started = host.cacophony(args);
    this.#processes.set(host, started);
    return started;
  }
}

type SwarmNode = { ID: string; Status: { State: string }; ManagerStatus?: { Leader?: boolean; Reachability: string } };

export class SwarmSide implements Side {
  readonly name = "Swarm";
  readonly label = `com.docker.swarm.service.name=${JOB}`;
  readonly #lab: Lab;
  readonly #ids = new Map<LabHost, string>();
  #writes = 0;

  constructor(lab: Lab) {
    this.#lab = lab;
  }

  async start(): Promise<void> {
    const [first, ...others] = this.#lab.hosts;
    if (!first) throw new Error("no host");
    await first.docker("swarm", "init", "--advertise-addr", first.address);
    const token = await first.docker("swarm", "join-token", "--quiet", "worker");
    for (const host of others) {
      await host.docker("swarm", "join", "--token", token, "--advertise-addr", host.address, `${first.address}:2377`);
    }
    for (const host of this.#lab.hosts) {
      this.#ids.set(host, await host.docker("info", "--format", "{{.Swarm.NodeID}}"));
      await waitUntil(`Swarm to hold host ${host.number} for ready`, () => this.isReady(host), { timeoutMs: 30_000 });
    }
  }

  async deploy(replicas: number): Promise<void> {
    const options = ["--detach", "--no-resolve-image", "--stop-signal", "SIGKILL", "--replicas", String(replicas)];
    const manager = await this.#manager();
    await manager.docker("service", "create", ...options, "--name", JOB, IMAGE, "sleep", "86400");
  }

  async remove(): Promise<void> {
    await (await this.#manager()).docker("service", "rm", JOB);
  }

  async killProcess(host: LabHost): Promise<void> {
    await host.killDocker();
  }

  async startProcess(host: LabHost): Promise<void> {
    await host.restartDocker();
  }

  async isReady(host: LabHost): Promise<boolean> {
    const response = await host.engine("/info", { timeoutMs: ASK_TIMEOUT_MS });
    const { Swarm } = (await response.json()) as { Swarm: { LocalNodeState: string } };
    const node = (await this.#nodes(await this.#manager())).find(({ ID }) => ID === this.#ids.get(host));
    const isReachable = node?.ManagerStatus === undefined || node.ManagerStatus.Reachability === "reachable";
    return Swarm.LocalNodeState === "active" && node?.Status.State === "ready" && isReachable;
  }

  async setAvailability(host: LabHost, availability: "active" | "drain"): Promise<boolean> {
    const manager = await this.#manager();
    await manager.docker("node", "update", "--availability", availability, this.#idOf(host));
    return true;
  }

  async addDeciders(): Promise<boolean> {
    const manager = await this.#manager();
    await manager.docker("node", "promote", ...[...this.#ids.values()].filter((id) => id !== this.#idOf(manager)));
    for (const host of this.#lab.hosts) {
      await waitUntil(
        `host ${host.number} to be a manager`,
        async () => (await this.#nodes(host)).filter((node) => node.ManagerStatus?.Reachability === "reachable").length,
        { until: (managers) => managers === this.#lab.hosts.length, timeoutMs: 30_000 },
      );
    }
    return true;
  }

  async decider(): Promise<LabHost> {
    const leader = (await this.#nodes(await this.#manager())).find((node) => node.ManagerStatus?.Leader);
    const host = this.#lab.hosts.find((one) => this.#ids.get(one) === leader?.ID);
    if (!host) throw new Error("Swarm has no leader");
    return host;
  }

  async write(on: LabHost): Promise<boolean> {
    const body = JSON.stringify({ Name: `write-${++this.#writes}`, Data: btoa("x") });
    const headers = { "content-type": "application/json" };
    return (await on.engine("/configs/create", { method: "POST", body, headers, timeoutMs: ASK_TIMEOUT_MS })).ok;
  }

  async stop(): Promise<void> {
    for (const host of this.#lab.hosts.toReversed()) await host.docker("swarm", "leave", "--force");
  }

  #idOf(host: LabHost): string {
    const id = this.#ids.get(host);
    if (id === undefined) throw new Error(`host ${host.number} is not in the swarm`);
    return id;
  }

  /** First host whose engine answers what only managers can. */
  async #manager(): Promise<LabHost> {
    return waitUntil(
      "a manager of Swarm to answer",
      async () => {
        for (const host of this.#lab.hosts) if ((await this.#nodes(host)).length > 0) return host;
        return undefined;
      },
      { until: (host) => host !== undefined, timeoutMs: 60_000 },
    ).then((host) => host as LabHost);
  }

  /** None where the engine does not answer, or is no manager's, or of one that has lost the others. */
  async #nodes(host: LabHost): Promise<SwarmNode[]> {
    try {
      const response = await host.engine("/nodes", { timeoutMs: ASK_TIMEOUT_MS });
      return response.ok ? ((await response.json()) as SwarmNode[]) : [];
    } catch {
      return [];
    }
  }
}
