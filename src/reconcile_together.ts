/**
 * @module Services that share something (`network_mode: service:x`, `ipc`, `pid`, `volumes_from`), and so run side by side on
 * one node. Pure. Owns which services of a job belong together, and which slot of one goes beside which slot of the other.
 *
 * **The rule.** Slot i of a service that shares with x goes beside slot ((i - 1) mod scale(x)) + 1 of x: one beside one where the
 * scales are the same, and all beside one container where x has one, as in compose. Of services that run once on each
 * node, those on one node go together. An allocation names the ones that it joins, and is replaced with them.
 *
 * A service may share with several others. The first of them by name is the one that it follows; the others must be on the same
 * node, so those of them that follow nothing themselves follow the first's. What belongs together is thus a tree, in which
 * only the slots of the root are placed freely, and there with room for all that follow.
 */
import type { ClusterState, ServiceKey } from "./cluster_state.ts";
import { parseServiceKey, serviceKey } from "./cluster_state.ts";
import type { AllocationRecord, JobServiceRecord, LiveJob } from "./model.ts";
import { isGlobal, type ServiceRules, type ServiceSpec, sharesOf } from "./model_spec.ts";

/** A service of the job as another sees it. `scale` means nothing for one that runs once on each node. */
type Partner = { service_name: string; scale: number };

/** A service that goes where another goes. */
export type Follower = Partner & { spec: ServiceSpec; rules: ServiceRules; followers: readonly Follower[] };

/** How a service is bound to others of its job. */
export type Bond = {
  /** Those that its containers share something with. */
  leaders: readonly Partner[];
  /** The one whose slots its own follow; none: it is the root. */
  follows?: Partner;
  followers: readonly Follower[];
  /** All services that belong together, each after the ones that it follows or shares with. */
  group: readonly string[];
};

/** What helps where services that ran before are apart: new replicas are placed together. */
export function reunite(jobId: string): string {
  return `POST /cluster/job/${jobId}/restart places them anew`;
}

/** The part of a plan that says where a service's slots are once it is carried out. */
type Moves = { place: readonly AllocationRecord[]; stop: readonly AllocationRecord[] };

/** Where a slot goes, and what its container joins there; or why it can't be said. */
export type Seat = { node_id: string; beside: string; joins: NonNullable<AllocationRecord["joins"]> } | { why: string };

/** The bonds of jobs, each worked out once for a job's record. */
export class Bonds {
  readonly #known = new WeakMap<LiveJob, ReadonlyMap<string, Bond>>();

  /** By service; `specs` are those of the job's services by their hashes. */
  of(job: LiveJob, { specs }: { specs: ReadonlyMap<string, ServiceSpec | undefined> }): ReadonlyMap<string, Bond> {
    const known = this.#known.get(job) ?? bondsOf(job.services, ({ spec_hash }) => specs.get(spec_hash));
    this.#known.set(job, known);
    return known;
  }

  /** The services, and those that belong with one of them, in the order to plan them in. */
  inOrder(keys: Iterable<ServiceKey>, state: ClusterState): ServiceKey[] {
    const ordered = new Set<ServiceKey>();
    for (const key of keys) {
      const { job_id, service_name: name } = parseServiceKey(key);
      const job = state.liveJob(job_id);
      const group = job && this.of(job, state).get(name)?.group;
      if (!group) ordered.add(key);
      else for (const service_name of group) ordered.add(serviceKey({ job_id: job.job_id, service_name }));
    }
    return [...ordered];
  }
}

/** The bonds of a job's services, by name; services that share nothing have none. */
export function bondsOf(
  services: readonly JobServiceRecord[],
  specOf: (service: JobServiceRecord) => ServiceSpec | undefined,
): ReadonlyMap<string, Bond> {
  const known = new Map(services.map((service) => [service.service_name, { service, spec: specOf(service) }]));
  const leaders = new Map<string, string[]>();
  for (const [name, { spec }] of known) {
    const own = spec ? sharesOf(spec).filter(({ service_name }) => known.get(service_name)?.spec) : [];
    if (own.length > 0)
      leaders.set(
        name,
        own.map(({ service_name }) => service_name),
      );
  }
  if (leaders.size === 0) return new Map();
  const follows = followedBy(leaders);
  const partner = (name: string): Partner => ({ service_name: name, scale: known.get(name)?.service.scale ?? 0 });
  const followed = Map.groupBy(follows.keys(), (name) => follows.get(name));
  const followersOf = (name: string): Follower[] =>
    (followed.get(name) ?? []).flatMap((follower) => {
      const { service, spec } = known.get(follower) ?? {};
      if (!service || !spec) return [];
      return [{ ...partner(follower), spec, rules: service.rules, followers: followersOf(follower) }];
    });
  const groups = new Map<string, readonly string[]>();
  const groupOf = (root: string): readonly string[] => {
    const known = groups.get(root) ?? inOrder([root, ...namesOf(followersOf(root))], { leaders, follows });
    groups.set(root, known);
    return known;
  };
  const bonds = new Map<string, Bond>();
  for (const name of new Set([...follows.keys(), ...follows.values()])) {
    const root = rootOf(name, follows);
    const next = follows.get(name);
    bonds.set(name, {
      leaders: (leaders.get(name) ?? []).map(partner),
      ...(next === undefined ? {} : { follows: partner(next) }),
      followers: followersOf(name),
      group: groupOf(root),
    });
  }
  return bonds;
}

/** Who follows whom. Of several leaders that follow nothing, the later ones follow the first one's root. */
function followedBy(leaders: ReadonlyMap<string, readonly string[]>): Map<string, string> {
  const follows = new Map<string, string>();
  for (const [name, [first]] of leaders) if (first !== undefined) follows.set(name, first);
  for (const own of leaders.values()) {
    for (const other of own) {
      const [root, first] = [rootOf(other, follows), rootOf(own[0] ?? other, follows)];
      if (root !== first) follows.set(root, first);
    }
  }
  return follows;
}

function rootOf(name: string, follows: ReadonlyMap<string, string>): string {
  let root = name;
  for (let next = follows.get(root); next !== undefined; next = follows.get(root)) root = next;
  return root;
}

/** Services, each after those that it depends on in either way. */
function inOrder(
  names: readonly string[],
  { leaders, follows }: { leaders: ReadonlyMap<string, readonly string[]>; follows: ReadonlyMap<string, string> },
): string[] {
  const done = new Set<string>();
  const visit = (name: string): void => {
    if (done.has(name)) return;
    const followed = follows.get(name);
    for (const other of [...(leaders.get(name) ?? []), ...(followed === undefined ? [] : [followed])]) visit(other);
    done.add(name);
  };
  for (const name of names) visit(name);
  return [...done];
}

function namesOf(followers: readonly Follower[]): string[] {
  return followers.flatMap((one) => [one.service_name, ...namesOf(one.followers)]);
}

/** Every service that follows, near or far. */
export function allFollowers(followers: readonly Follower[]): Follower[] {
  return followers.flatMap((one) => [one, ...allFollowers(one.followers)]);
}

/** The slots that go where slot `slot` of a service goes that has `scale` of them; of global services, one each. */
export function unitOf(
  followers: readonly Follower[],
  { slot, scale }: { slot: number; scale: number },
): { follower: Follower; slot: number }[] {
  return followers.flatMap((follower) => {
    const slots: number[] = [];
    if (isGlobal(follower.rules)) slots.push(slot);
    else if (scale > 0) for (let one = slot; one <= follower.scale; one += scale) slots.push(one);
    return slots.flatMap((one) => [
      { follower, slot: one },
      ...unitOf(follower.followers, { slot: one, scale: follower.scale }),
    ]);
  });
}

/** Where the slots of one service go that follows another, as the others are once this pass's plans are carried out. */
export class Seats {
  readonly #of: { job_id: string; incarnation: string; rules: ServiceRules };
  readonly #bond: Bond;
  readonly #state: ClusterState;
  /** Allocations of the services that this one follows or shares with, by slot or, of global ones, by node. */
  readonly #partners = new Map<string, ReadonlyMap<number | string, AllocationRecord>>();

  constructor(
    of: { job_id: string; incarnation: string; rules: ServiceRules },
    { bond, state, planned }: { bond: Bond; state: ClusterState; planned: ReadonlyMap<string, Moves> | undefined },
  ) {
    this.#of = of;
    this.#bond = bond;
    this.#state = state;
    const { job_id, incarnation, rules } = of;
    for (const { service_name } of [...bond.leaders, ...(bond.follows ? [bond.follows] : [])]) {
      const key = serviceKey({ job_id, service_name });
      const { place = [], stop = [] } = planned?.get(key) ?? {};
      const leaving = new Set(stop.map(({ allocation_id }) => allocation_id));
      const live = [...state.allocationsOf(key), ...place].filter(
        (one) => one.desired === "run" && one.incarnation === incarnation && !leaving.has(one.allocation_id),
      );
      this.#partners.set(service_name, new Map(live.map((one) => [isGlobal(rules) ? one.node_id : one.slot, one])));
    }
  }

  /** Where a slot goes; of a global service, the slot on that node. */
  of({ slot, node_id }: { slot: number; node_id?: string }): Seat {
    const joins: NonNullable<AllocationRecord["joins"]> = [];
    let seat: { node_id: string; beside: string } | undefined;
    const { leaders, follows } = this.#bond;
    for (const partner of leaders.length > 0 ? leaders : follows ? [follows] : []) {
      const { service_name, scale } = partner;
      const found = this.#partner(partner, { slot, node_id });
      if (!found) {
        if (isGlobal(this.#of.rules))
          return { why: `service ${service_name}, which it runs beside, is not on this node` };
        if (scale === 0) return { why: `service ${service_name}, which it runs beside, has scale 0` };
        return {
          why: `waiting for a node for slot ${slotBeside(slot, scale)} of service ${service_name}, which it runs beside`,
        };
      }
      const beside = `slot ${found.slot} of service ${service_name} on node ${this.#nameOf(found.node_id)}`;
      if (seat && seat.node_id !== found.node_id) {
        return {
          why: `belongs beside ${seat.beside} and ${beside}: give the services one scale; ${reunite(this.#of.job_id)}`,
        };
      }
      seat ??= { node_id: found.node_id, beside };
      if (leaders.length > 0) joins.push({ service_name, allocation_id: found.allocation_id });
    }
    return seat ? { ...seat, joins } : { why: "follows no service" };
  }

  /** Whether an allocation is not beside the ones, or not made with the ones, that are its partners now. */
  isApart({ slot, node_id, joins = [] }: AllocationRecord): boolean {
    const { leaders, follows } = this.#bond;
    if (leaders.length === 0) {
      const found = follows && this.#partner(follows, { slot, node_id });
      return found !== undefined && found.node_id !== node_id;
    }
    return (
      joins.length !== leaders.length ||
      leaders.some((leader) => {
        const joined = joins.find(({ service_name }) => service_name === leader.service_name);
        return !joined || joined.allocation_id !== this.#partner(leader, { slot, node_id })?.allocation_id;
      })
    );
  }

  #partner(
    { service_name, scale }: Partner,
    { slot, node_id }: { slot: number; node_id: string | undefined },
  ): AllocationRecord | undefined {
    const all = this.#partners.get(service_name);
    if (isGlobal(this.#of.rules)) return node_id === undefined ? undefined : all?.get(node_id);
    return scale === 0 ? undefined : all?.get(slotBeside(slot, scale));
  }

  #nameOf(nodeId: string): string {
    return this.#state.nodes.get(nodeId)?.node_name ?? nodeId;
  }
}

function slotBeside(slot: number, scale: number): number {
  return ((slot - 1) % scale) + 1;
}
