/**
 * @module What the master of the simulation says on each connection, as a reader on the wire sees it: whose connection counts, and
 * that no name leads to a replica any more when its node hears that it has to stop.
 */
import type { AllocationRecord, Assignments, MasterMessage } from "../src/model.ts";
import type { DirectoryMessage } from "../src/model_network.ts";
import type { ClusterState } from "../src/cluster_state.ts";
import type { Membership } from "../src/membership.ts";
import type { Channel } from "../src/transport.ts";

/** What names lead to on the other side of a connection, by service, and what that node was last told to run. */
type Link = { nodeId: string; names: Map<string, string[]>; assigned: ReadonlySet<string> };

export type LinksOptions = {
  state: ClusterState;
  /** Allocation records as they are on the master's disk. */
  allocations: ReadonlyMap<string, AllocationRecord>;
  violate: (what: string) => void;
  /** A node was heard of. */
  onHeard: (nodeId: string) => void;
};

/** The connections of one master. */
export class SimLinks {
  readonly #options: LinksOptions;
  /** The last connection that was welcomed, by node. */
  readonly #current = new Map<string, Link>();

  constructor(options: LinksOptions) {
    this.#options = options;
  }

  /** Has `membership` serve a connection, and looks on. */
  accept(membership: Membership, channel: Channel): ReturnType<Membership["accept"]> {
    let link: Link | undefined;
    let isOver = false;
    const handlers = membership.accept({
      ...(channel.remote !== undefined && { remote: channel.remote }),
      send: (text) => {
        link = this.#sent(link, text);
        // One that ended before its welcome was ready has no names.
        if (isOver) link?.names.clear();
        channel.send(text);
      },
      close: () => {
        isOver = true;
        channel.close();
      },
    });
    return {
      onMessage: (text) => {
        if (!isOver && link && this.#current.get(link.nodeId) === link) this.#options.onHeard(link.nodeId);
        const replaced = link && this.#current.get(link.nodeId) !== link ? link : undefined;
        const before = replaced && this.#known(replaced.nodeId);
        handlers.onMessage(text);
        if (replaced && before !== this.#known(replaced.nodeId))
          this.#options.violate(`a message of ${replaced.nodeId} counted that came on a connection which was replaced`);
      },
      onClose: () => {
        isOver = true;
        if (link && this.#current.get(link.nodeId) === link) link.names.clear();
        handlers.onClose();
      },
    };
  }

  /** What a master takes from a node's messages. */
  #known(nodeId: string): string {
    const { lastSeen, statuses, applied, resources } = this.#options.state.views.get(nodeId) ?? {};
    return JSON.stringify([lastSeen, [...(statuses ?? [])], applied, resources]);
  }

  #sent(link: Link | undefined, text: string): Link | undefined {
    if (text.startsWith('{"type":"ack"')) return link;
    const message = JSON.parse(text) as MasterMessage;
    if (message.type === "welcome") {
      const made: Link = { nodeId: message.node_id, names: new Map(), assigned: new Set() };
      this.#current.set(message.node_id, made);
      this.#options.onHeard(message.node_id);
      return made;
    }
    if (link && message.type === "directory") takeNames(link, message);
    if (link && message.type === "assignments") this.#checkAssignments(link, message);
    return link;
  }

  #checkAssignments(link: Link, { allocations }: Assignments): void {
    const assigned = new Set(allocations.map(({ allocation_id }) => allocation_id));
    for (const id of link.assigned) if (!assigned.has(id)) this.#checkNames(id, link.nodeId);
    link.assigned = assigned;
  }

  /** Whoever is told to stop a replica hears after all others that its name is gone. */
  #checkNames(id: string, nodeId: string): void {
    // One that came to its end has no name either way, and one whose record is gone is no replica any more.
    if (this.#options.allocations.get(id)?.desired !== "stop") return;
    for (const other of this.#current.values()) {
      const isNamed = [...other.names.values()].some((ids) => ids.includes(id));
      if (isNamed)
        this.#options.violate(`${nodeId} heard that it has to stop ${id} while its name led there on ${other.nodeId}`);
    }
  }
}

function takeNames({ names }: Link, { full, services, gone }: DirectoryMessage): void {
  if (full) names.clear();
  for (const { job_id, service_name, endpoints } of services) {
    const ready = endpoints.filter((one) => one.ready).map(({ allocation_id }) => allocation_id);
    names.set(`${job_id}/${service_name}`, ready);
  }
  for (const { job_id, service_name } of gone) names.delete(`${job_id}/${service_name}`);
}
