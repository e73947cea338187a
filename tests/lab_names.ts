/**
 * @module What the lab's tests of names share: services that call one another, questions from inside of a container, and a client
 * that resolves and connects all the time (`names_client.ts`).
 */
import { isIPv4 } from "node:net";
import { join } from "node:path";
import type { LabHost } from "./lab.ts";
import type { Allocation, LabCluster } from "./lab_cluster.ts";
import { command, type LabProcess } from "./lab_process.ts";
import type { Seen } from "./names_client.ts";

/** What the kernel's rules drop is never answered: seconds until a call counts as such. */
const DROPPED_S = 1;
/** What a call may take that arrives, in seconds. */
const ARRIVES_S = 5;
/** Docker's resolver in each container of a job's network. */
const RESOLVER = "127.0.0.11";

/** Keeps a service's replicas on one host. */
export function on(number: number): { placement: { constraints: string[] } } {
  return { placement: { constraints: [`node.hostname == host-${number}`] } };
}

type Server = { name?: string; next?: string; revivesAfterS?: number };

/**
 * A web server that says its host name on `/`, and on `/cgi-bin/call` its `name` and what the host `next` says there. Started
 * again in its container, it is silent for `revivesAfterS` seconds.
 */
export function server({ name = "", next, revivesAfterS = 0, ...more }: Server & Record<string, unknown> = {}) {
  const request = "GET /cgi-bin/call HTTP/1.0\\r\\n\\r\\n";
  const call = `printf '${request}' | nc -w ${ARRIVES_S} ${next} 80 | sed '1,/^.\\{0,1\\}$$/d'`;
  const script = ["#!/bin/sh", "echo", `echo ${name}`, ...(next === undefined ? [] : [call])].join("\n");
  const page = "cat >call && chmod +x call && hostname >/w/index.html && exec httpd -f -h /w";
  const begin = `mkdir /w || sleep ${revivesAfterS}; mkdir -p /w/cgi-bin && cd /w/cgi-bin`;
  return {
    image: "busybox",
    command: ["sh", "-c", `${begin} && { ${page}; } <<'END'\n${script}\nEND`],
    stop_signal: "SIGKILL",
    ...more,
  };
}

/** The members of a service by slot, once the job has settled. */
export async function membersOf(cluster: LabCluster, jobId: string, serviceName: string): Promise<Member[]> {
  const { services } = await cluster.settled(jobId);
  const allocations = services[serviceName]?.allocations.toSorted((a, b) => a.slot - b.slot) ?? [];
  return Promise.all(allocations.map((allocation) => Member.of(cluster, allocation)));
}

/** A running container of a job. */
export class Member {
  readonly host: LabHost;
  readonly allocation: Allocation;
  readonly pid: string;
  /** Its address on its only network. */
  readonly address: string;
  /** Unix milliseconds. */
  readonly startedAt: number;

  private constructor(at: { host: LabHost; allocation: Allocation; pid: string; address: string; started: string }) {
    this.host = at.host;
    this.allocation = at.allocation;
    this.pid = at.pid;
    this.address = at.address;
    this.startedAt = Date.parse(at.started);
  }

  static async of(cluster: LabCluster, allocation: Allocation): Promise<Member> {
    const host = cluster.lab.host(Number(allocation.node_name.slice("host-".length)));
    const { State, NetworkSettings } = (await (
      await host.engine(`/containers/${allocation.container_id}/json`)
    ).json()) as {
      State: { Pid: number; StartedAt: string };
      NetworkSettings: { Networks: Record<string, { IPAddress: string }> };
    };
    const [network] = Object.values(NetworkSettings.Networks);
    const pid = String(State.Pid);
    return new Member({ host, allocation, pid, address: network?.IPAddress ?? "", started: State.StartedAt });
  }

  /** SIGKILL to its process, behind Docker's back. */
  kill(): void {
    process.kill(Number(this.pid), "SIGKILL");
  }

  /** What Docker's resolver in the container answers: data of the records, sorted; `none`, or what nslookup says. */
  async ask(name: string, type = "a"): Promise<string[]> {
    return nslookup(["nsenter", `--net=/proc/${this.pid}/ns/net`, "--"], { name, type, resolver: RESOLVER });
  }

  /** What the server at this address or name says on a path, as the container's own programs get it; undefined: nothing. */
  async get(host: string, { path = "/", isDropped = false } = {}): Promise<string | undefined> {
    const request = `printf 'GET ${path} HTTP/1.0\\r\\n\\r\\n' | nc -w ${isDropped ? DROPPED_S : ARRIVES_S} ${host} 80`;
    const inside = ["nsenter", "-t", this.pid, "-n", "-m", "--", "/bin/sh", "-c", request];
    const { stdout } = await command(inside);
    return /^HTTP\/1\.. 200 [^]*?\n\r?\n([^]*)$/.exec(stdout)?.[1]?.trim();
  }

  /** Starts a client in the container's network that resolves `name`, or takes an address as it is, and connects all the time. */
  follow(name: string): Follower {
    return new Follower(
      this.host.spawn("client", [
        ...["nsenter", `--net=/proc/${this.pid}/ns/net`, "--"],
        ...[
          process.execPath,
          join(import.meta.dir, "names_client.ts"),
          name,
          "80",
          ...(isIPv4(name) ? [] : [RESOLVER]),
        ],
      ]),
    );
  }
}

/** Asks a node's own name server from the node itself, which sees all names. */
export async function askNode(host: LabHost, name: string, type = "a"): Promise<string[]> {
  const { stdout } = await host.run(["ip", "-4", "-o", "addr", "show", "dev", "cvx"]);
  const resolver = /inet ([0-9.]+)/.exec(stdout)?.[1] ?? "no address";
  return nslookup(["nsenter", `--net=/run/netns/${host.name}`, "--"], { name, type, resolver });
}

/** A client on the host itself that asks an entry of this node all the time. */
export function followEntry(host: LabHost, port: number): Follower {
  const script = join(import.meta.dir, "names_client.ts");
  return new Follower(host.spawn("client", [process.execPath, script, host.address, String(port)]));
}

export class Follower {
  readonly #process: LabProcess;

  constructor(process: LabProcess) {
    this.#process = process;
  }

  /** The whole rounds until now. */
  seen(): Seen[] {
    return this.#process
      .logs()
      .split("\n")
      .filter((line) => line.endsWith("}"))
      .map((line) => JSON.parse(line) as Seen);
  }

  async stop(): Promise<Seen[]> {
    await this.#process.kill();
    const seen = this.seen();
    if (seen.length === 0) throw new Error(`the client saw nothing: ${this.#process.logs()}`);
    return seen;
  }
}

async function nslookup(
  enter: string[],
  { name, type, resolver }: { name: string; type: string; resolver: string },
): Promise<string[]> {
  const asked = type === "ptr" ? `${name.split(".").toReversed().join(".")}.in-addr.arpa` : name;
  const { stdout } = await command([...enter, "busybox", "nslookup", `-type=${type}`, asked, resolver]);
  const answer = stdout.slice(stdout.indexOf("\n\n") + 2);
  const data = [...answer.matchAll(/^(?:Address: |.*\tname = |.*\tservice = )(.*)$/gm)].map(([, found = ""]) => found);
  if (data.length > 0) return data.toSorted();
  return [/can't find [^:]+: (\w+)/.exec(stdout)?.[1] ?? /timed out|refused/.exec(stdout)?.[0] ?? "none"];
}
