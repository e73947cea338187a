/**
 * @module What `bench_start.ts` compares on the same hosts of a lab: Cacophony through its API, Docker Swarm through its own, and the
 * floor, the same networks and containers by the plainest requests to the engines. Each takes its orders and does not wait for
 * what comes of them, but the floor, which has nobody to leave the work to.
 */
import { CacophonySide, SwarmSide } from "./bench_faults_sides.ts";
import type { Lab, LabHost } from "./lab.ts";
import { waitUntil } from "./wait.ts";

const NAME = "start";
const GRACE_S = 1;
const REQUEST_TIMEOUT_MS = 120_000;
/** Stops of the floor on one engine at once: they only wait. */
const STOPS_AT_ONCE = 100;

export interface StartSide {
  readonly name: string;
  /** Filter of the Engine for its containers. */
  readonly label: string;
  start(): Promise<void>;
  deploy(replicas: number): Promise<void>;
  scale(replicas: number): Promise<void>;
  remove(): Promise<void>;
  /** Takes away what is left when the containers are gone, where nobody else does. */
  tidy(): Promise<void>;
  stop(): Promise<void>;
}

export class CacophonyStart implements StartSide {
  readonly name = "Cacophony";
  readonly label = "cacophony.allocation";
  readonly #lab: Lab;
  readonly #side: CacophonySide;
  readonly #image: string;
  #removedAt = 0;

  constructor(lab: Lab, image: string) {
    this.#lab = lab;
    this.#side = new CacophonySide(lab);
    this.#image = image;
  }

  start(): Promise<void> {
    return this.#side.start();
  }

  async deploy(replicas: number): Promise<void> {
    const service = { image: this.#image, command: ["sleep", "86400"], stop_grace_period: `${GRACE_S}s` };
    await this.#ask(`/cluster/job/${NAME}`, {
      method: "PUT",
      body: { services: { app: { ...service, scale: replicas } } },
    });
  }

  async scale(replicas: number): Promise<void> {
    await this.#ask(`/cluster/job/${NAME}/app`, { method: "PUT", body: { scale: replicas } });
  }

  async remove(): Promise<void> {
    this.#removedAt = Date.now();
    await this.#ask(`/cluster/job/${NAME}`, { method: "DELETE" });
  }

  /**
   * Each node removes its network when the last container is gone, and the engine is at it for some 150 ms after the network has
   * left its list: as long, Swarm's are gone for seconds and the floor's have been waited for.
   */
  async tidy(): Promise<void> {
    const network = `${NAME}_default`;
    const filters = encodeURIComponent(JSON.stringify({ type: ["network"], network: [network] }));
    for (const host of this.#lab.hosts)
      await waitUntil("the engine to be done with the job's network", async () => {
        if ((await networkNames(host)).includes(network)) return false;
        const span = `since=${this.#removedAt / 1000}&until=${Date.now() / 1000}`;
        const events = await (await must(await host.engine(`/events?${span}&filters=${filters}`))).text();
        // One that had no container of the job had no network either.
        return events === "" || events.includes('"Action":"destroy"');
      });
  }

  stop(): Promise<void> {
    return this.#side.stop();
  }

  async #ask(path: string, { method, body }: { method: string; body?: unknown }): Promise<void> {
    const init = { method, ...(body !== undefined && { body: JSON.stringify(body) }) };
    await must(await this.#lab.host(1).fetch(path, init));
  }
}

/** `network`: on a network over nodes, as Cacophony's are; without, on each engine's own bridge, as Swarm does unless told. */
export class SwarmStart implements StartSide {
  readonly name: string;
  readonly label = `com.docker.swarm.service.name=${NAME}`;
  readonly #lab: Lab;
  readonly #side: SwarmSide;
  readonly #image: string;
  readonly #network: boolean;

  constructor(lab: Lab, { image, network }: { image: string; network: boolean }) {
    this.#lab = lab;
    this.#side = new SwarmSide(lab);
    this.#image = image;
    this.#network = network;
    this.name = network ? "Swarm, overlay" : "Swarm, bridge";
  }

  start(): Promise<void> {
    return this.#side.start();
  }

  async deploy(replicas: number): Promise<void> {
    const manager = this.#lab.host(1);
    if (this.#network) await post(manager, "/networks/create", { Name: NAME, Driver: "overlay", CheckDuplicate: true });
    await post(manager, "/services/create", this.#spec(replicas));
  }

  async scale(replicas: number): Promise<void> {
    const { ID, Version } = await read<{ ID: string; Version: { Index: number } }>(
      this.#lab.host(1),
      `/services/${NAME}`,
    );
    await post(this.#lab.host(1), `/services/${ID}/update?version=${Version.Index}`, this.#spec(replicas));
  }

  async remove(): Promise<void> {
    await request(this.#lab.host(1), { method: "DELETE", path: `/services/${NAME}` });
  }

  async tidy(): Promise<void> {
    if (!this.#network) return;
    await waitUntil("Swarm to let go of the network", async () => {
      await request(this.#lab.host(1), { method: "DELETE", path: `/networks/${NAME}` });
      return true;
    });
  }

  stop(): Promise<void> {
    return this.#side.stop();
  }

  #spec(replicas: number) {
    const container = { Image: this.#image, Command: ["sleep", "86400"], StopGracePeriod: GRACE_S * 1e9 };
    const networks = this.#network ? { Networks: [{ Target: NAME }] } : {};
    const template = { ContainerSpec: container, ...networks };
    return { Name: NAME, TaskTemplate: template, Mode: { Replicated: { Replicas: replicas } } };
  }
}

/** What an engine was asked for, to be asked for again; the containers are on the network. */
export type Recording = { network: Record<string, unknown>; containers: { name: string; body: ContainerBody }[] };
type ContainerBody = { Labels: Record<string, string>; HostConfig: Record<string, unknown> } & Record<string, unknown>;

/** The floor: each engine is sent its networks and containers at once, `atOnce` at a time, and by nobody who keeps count. */
export class RawStart implements StartSide {
  readonly name = "raw";
  readonly label = `raw.job=${NAME}`;
  readonly #recordings: ReadonlyMap<LabHost, Recording>;
  readonly #hosts: readonly LabHost[];
  readonly #atOnce: number;
  #count = 0;

  constructor(recordings: ReadonlyMap<LabHost, Recording>, { atOnce }: { atOnce: number }) {
    this.#recordings = recordings;
    this.#hosts = [...recordings.keys()];
    this.#atOnce = atOnce;
  }

  async start(): Promise<void> {}

  async deploy(replicas: number): Promise<void> {
    await this.#begin(replicas, { isNew: true });
  }

  async scale(replicas: number): Promise<void> {
    await this.#begin(replicas, { isNew: false });
  }

  async remove(): Promise<void> {
    await this.#each(async (host) => {
      const ids = await containerIds(host, { label: this.label });
      await atOnce(STOPS_AT_ONCE, ids, async (id) => {
        await request(host, { method: "POST", path: `/containers/${id}/stop?t=${GRACE_S}` });
        await request(host, { method: "DELETE", path: `/containers/${id}?v=1&force=1` });
      });
    });
    this.#count = 0;
  }

  async tidy(): Promise<void> {
    await this.#each(async (host) => {
      const name = String(this.#recordingOf(host).network["Name"]);
      // Docker may count a container among those on it for a moment after that one was removed.
      await waitUntil("the engine to let go of the network", async () => {
        if ((await networkNames(host)).includes(name))
          await request(host, { method: "DELETE", path: `/networks/${name}` });
        return true;
      });
    });
  }

  async stop(): Promise<void> {}

  async #begin(replicas: number, { isNew }: { isNew: boolean }): Promise<void> {
    const before = this.#count;
    this.#count = replicas;
    await this.#each(async (host, place) => {
      const { network, containers } = this.#recordingOf(host);
      const share = (all: number) => Math.ceil((all - place) / this.#hosts.length);
      const wanted = containers.slice(share(before), share(replicas));
      if (wanted.length < share(replicas) - share(before)) throw new Error(`no ${replicas} containers were recorded`);
      if (isNew && wanted.length > 0) await post(host, "/networks/create", network);
      await atOnce(this.#atOnce, wanted, async ({ name, body }) => {
        const { Id } = (await post(host, `/containers/create?name=${name}`, body)) as { Id: string };
        await request(host, { method: "POST", path: `/containers/${Id}/start` });
      });
    });
  }

  async #each(work: (host: LabHost, place: number) => Promise<void>): Promise<void> {
    await Promise.all(this.#hosts.map(work));
  }

  #recordingOf(host: LabHost): Recording {
    const recording = this.#recordings.get(host);
    if (!recording) throw new Error(`nothing was recorded of host ${host.number}`);
    return recording;
  }
}

// ---- What Cacophony asked the engines for -----------------------------------------------------------------------------

type Inspected = {
  Id: string;
  Name: string;
  Config: { Labels: Record<string, string>; Hostname?: string } & Record<string, unknown>;
  HostConfig: Record<string, unknown>;
};
type InspectedNetwork = { Name: string; Driver: string; Options: object; IPAM: object; Labels: Record<string, string> };

/** Reads what Cacophony made on a host; under other names and labels, so that it takes the copies for none of its own. */
export async function record(host: LabHost, { label }: CacophonyStart): Promise<Recording> {
  const { Name, Driver, Options, IPAM, Labels } = await read<InspectedNetwork>(host, `/networks/${NAME}_default`);
  const name = `raw_${Name}`;
  const containers = (await containerIds(host, { label })).map(async (id) => {
    const found = await read<Inspected>(host, `/containers/${id}/json`);
    const { Hostname, ...config } = found.Config;
    const body = {
      ...config,
      ...(Hostname !== found.Id.slice(0, 12) && { Hostname }),
      Labels: renamed(config.Labels),
      HostConfig: { ...found.HostConfig, NetworkMode: name },
      // Its names are answered by Cacophony, not by Docker.
      NetworkingConfig: { EndpointsConfig: { [name]: { Aliases: [] } } },
    };
    return { name: `raw-${found.Name.slice(1)}`, body };
  });
  const network = { Name: name, CheckDuplicate: true, Driver, Options, IPAM, Labels: renamed(Labels) };
  return { network, containers: await Promise.all(containers) };
}

function renamed(labels: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).map(([key, value]) => [key.replace(/^cacophony\./, "raw."), value]));
}

// ---- Engines ----------------------------------------------------------------------------------------------------------

/** Of containers in any state, or only of those that run. */
export async function containerIds(
  host: LabHost,
  { label, isRunning = false }: { label: string; isRunning?: boolean },
): Promise<string[]> {
  const filters = encodeURIComponent(JSON.stringify({ label: [label] }));
  const path = `/containers/json?${isRunning ? "" : "all=1&"}filters=${filters}`;
  return (await read<{ Id: string }[]>(host, path)).map(({ Id }) => Id);
}

/** @throws Error unless the engine answers well. */
export async function read<T>(host: LabHost, path: string): Promise<T> {
  return (await must(await host.engine(path, { timeoutMs: REQUEST_TIMEOUT_MS }))).json() as Promise<T>;
}

async function networkNames(host: LabHost): Promise<string[]> {
  return (await read<{ Name: string }[]>(host, "/networks")).map(({ Name }) => Name);
}

async function post(host: LabHost, path: string, body: unknown): Promise<unknown> {
  const text = await request(host, { method: "POST", path, body });
  return text === "" ? undefined : JSON.parse(text);
}

async function request(
  host: LabHost,
  { method, path, body }: { method: string; path: string; body?: unknown },
): Promise<string> {
  const sent = body !== undefined && { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  return (await must(await host.engine(path, { method, timeoutMs: REQUEST_TIMEOUT_MS, ...sent }))).text();
}

async function must(response: Response): Promise<Response> {
  if (response.ok) return response;
  throw new Error(`${response.url} was answered with ${response.status}: ${await response.text()}`);
}

async function atOnce<T>(limit: number, list: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const items = list.values();
  await Promise.all(
    Array.from({ length: limit }, async () => {
      for (const item of items) await work(item);
    }),
  );
}
