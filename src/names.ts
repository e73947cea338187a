/**
 * @module The names of the cluster's services, and who may see them: a directory of `ServiceEntry`s that is put together and
 * taken apart one service at a time, and `lookup`, which answers a question about a name for one asker. Pure; sockets, packets
 * and all other names are `dns_server.ts`'s.
 *
 * **Names.** A service has `service`, `service.job` and `service.job.cacophony`, and so has each of its network aliases, on that
 * network only. `slot.` before one of the two longer ones is one replica; `_port._proto.` before any of the three asks for SRV,
 * with the port's name or number. Upper and lower case are the same. What DNS or programs have trouble with has a second form, with
 * `-` for each `.` and `_` (none at the ends), and what is longer than 63 then is cut to 54, `-` and 8 digits of its SHA-256:
 * service `my.db_1` of job `Shop` is `my.db_1.shop` and `my-db-1.shop`.
 *
 * **One name, several services.** Those of the asker's own job come before all others, and names as they are written before
 * their second form. Services that are equal in this share the name: the answer has the replicas of all, as with an alias that
 * several containers share in compose.
 *
 * **Who sees what.** An asker sees what shares a network with it, by the addresses on that network. It has the networks of the
 * endpoint at its address, and the network of this node whose subnet holds its address: so a container that has just started
 * sees its network before the directory knows it. The node itself sees everything. A service has the networks of its endpoints
 * and those that its aliases are listed for (with or without a name); with neither, it counts as on its job's default network.
 *
 * **No replica.** A name whose service has no ready replica exists and has no records: it is not `no_such_name`. After that musl
 * would go on to the search domains, where a stranger may have the name (glibc goes on in any case); and RFC 8020 lets caches take
 * it for all names below, such as those of SRV.
 */
import { createHash } from "node:crypto";
import type { Endpoint, ServiceEntry } from "./model_network.ts";
import { parseAddress, parseRange, type Range } from "./subnet.ts";
import { withoutTrailing } from "./text.ts";

/** The cluster's top-level domain: no name below it is ever looked for anywhere else. */
export const DOMAIN = "cacophony";

/** `type` is a record type's name as in `A`; `ANY` asks for what there is. */
export type NameQuestion = { name: string; type: string };

/** `name` is undefined where it is the question's. */
export type NameRecord =
  | { type: "A"; name: string | undefined; address: string }
  | { type: "SRV"; port: number; target: string }
  | { type: "PTR"; target: string };

export type NameAnswer =
  /** Without records: the name exists, but has none of that type, or no ready replica. */
  | { state: "found"; records: NameRecord[]; additional: NameRecord[] }
  | { state: "no_such_name" }
  /** Somebody else's name, as far as this asker may know. */
  | { state: "not_ours" }
  /** The asker is neither of the cluster's networks nor this node. */
  | { state: "refused" };

/** What this node has of the network. */
export type LocalNetworks = {
  /** The node's own addresses; those of loopback need no mention. */
  addresses: readonly string[];
  /** Subnets (CIDR) on this node by network, IPv4; others are passed over. */
  subnets: ReadonlyMap<string, readonly string[]>;
};

type Service = {
  entry: ServiceEntry;
  /** `service.job.cacophony` in the form that every resolver takes. */
  domain: string;
  /** Where it stands in the indexes: its meanings by scope and name, its seats by address. */
  matches: (readonly [scope: string, name: string, Match])[];
  seats: (readonly [address: string, Seat])[];
};

/** One meaning of a name in a scope. `job`: the name is only the domain above a job's services. */
type Match = {
  service: Service;
  kind: "short" | "full" | "job";
  isExact: boolean;
  /** The network whose addresses it gives; undefined: each endpoint's first one. */
  network: string | undefined;
};

/** An endpoint's address on one network. */
type Seat = { service: Service; endpoint: Endpoint; network: string };

/** Scopes in the order in which they are looked at: networks, or `EVERYTHING`. */
type Asker = { scopes: readonly string[]; jobs: ReadonlySet<string> };

/** The scope of the node itself; no network is named so. */
const EVERYTHING = "";
const NODE_ITSELF: Asker = { scopes: [EVERYTHING], jobs: new Set() };
const NOTHING: readonly never[] = [];
/** RFC 1035, 2.3.4. */
const MAX_LABEL = 63;
const HASH_DIGITS = 8;
const REVERSE_DOMAIN = ".in-addr.arpa";

export class Names {
  readonly #random: () => number;
  readonly #range: Range;
  readonly #services = new Map<string, Service>();
  /** Scope -> name -> its meanings there. */
  readonly #scopes = new Map<string, Map<string, Set<Match>>>();
  readonly #seats = new Map<string, Set<Seat>>();
  #dead: ReadonlySet<string> = new Set();
  #gone: ReadonlySet<string> = new Set();
  #own: ReadonlySet<string> = new Set();
  #subnets: (Range & { network: string })[] = [];

  /**
   * `range`: the cluster's addresses (CIDR); reverse names of it are never somebody else's.
   * @throws TypeError if `range` is no IPv4 CIDR.
   */
  constructor({ random, range }: { random: () => number; range: string }) {
    const block = parseRange(range);
    if (!block) throw new TypeError(`the range of the cluster's network is no IPv4 CIDR: ${range}`);
    this.#random = random;
    this.#range = block;
  }

  /** Adds a service, or replaces what was known of it. */
  put(entry: ServiceEntry): void {
    this.remove(entry);
    const service: Service = { entry, domain: domainOf(entry), matches: [], seats: [] };
    this.#services.set(keyOf(entry), service);
    for (const network of networksOf(entry)) this.#addNames(service, { scope: network, network });
    this.#addNames(service, { scope: EVERYTHING, network: undefined });
    for (const endpoint of entry.endpoints) {
      for (const { network, address } of endpoint.addresses) {
        const seat: Seat = { service, endpoint, network };
        addTo(this.#seats, address, seat);
        service.seats.push([address, seat]);
      }
    }
  }

  /** Forgets a service; does nothing if there is none. */
  remove(id: Pick<ServiceEntry, "job_id" | "service_name">): void {
    const service = this.#services.get(keyOf(id));
    if (!service) return;
    this.#services.delete(keyOf(id));
    for (const [scope, name, match] of service.matches) {
      const names = this.#scopes.get(scope);
      if (names) dropFrom(names, name, match);
      if (names?.size === 0) this.#scopes.delete(scope);
    }
    for (const [address, seat] of service.seats) dropFrom(this.#seats, address, seat);
  }

  /**
   * These allocations, and no others, are known here not to answer, whatever the directory says of them. `gone`, by default all of
   * them, don't ask either: who asks from the address of one of those is somebody else.
   */
  exclude(allocationIds: Iterable<string>, { gone }: { gone?: Iterable<string> } = {}): void {
    this.#dead = new Set(allocationIds);
    this.#gone = new Set(gone ?? this.#dead);
  }

  /** Replaces what is known of this node's own addresses and networks. */
  setLocal({ addresses, subnets }: LocalNetworks): void {
    this.#own = new Set(addresses);
    this.#subnets = [...subnets].flatMap(([network, texts]) =>
      texts.flatMap((text) => {
        const block = parseRange(text);
        return block ? [{ ...block, network }] : [];
      }),
    );
  }

  /** Answers a question of the asker with the IPv4 address `from`. */
  lookup({ name, type }: NameQuestion, from: string): NameAnswer {
    const asker = this.#asker(from);
    if (!asker) return { state: "refused" };
    const text = name.toLowerCase().replace(/\.$/, "");
    if (text.endsWith(REVERSE_DOMAIN)) return this.#reverse(text, { type, asker });
    if (text === DOMAIN) return found();
    if (!text.endsWith(`.${DOMAIN}`)) return this.#named(text, { type, asker, isFull: false }) ?? { state: "not_ours" };
    const below = text.slice(0, -DOMAIN.length - 1);
    const answer = this.#named(below, { type, asker, isFull: true });
    if (answer) return answer;
    return this.#find(below, asker, ["job"]).length > 0 ? found() : { state: "no_such_name" };
  }

  /** A service's names in one scope, for addresses of `network`. */
  #addNames(service: Service, { scope, network }: { scope: string; network: string | undefined }): void {
    const { job_id, service_name, aliases } = service.entry;
    let names = this.#scopes.get(scope);
    if (!names) this.#scopes.set(scope, (names = new Map()));
    const add = (name: string, meaning: Omit<Match, "service">): void => {
      const match: Match = { service, ...meaning };
      addTo(names, name, match);
      service.matches.push([scope, name, match]);
    };
    const jobs = formsOf(job_id);
    const addForms = (text: string, on: string | undefined): void => {
      for (const own of formsOf(text)) {
        add(own.name, { kind: "short", isExact: own.isExact, network: on });
        for (const job of jobs) {
          add(`${own.name}.${job.name}`, { kind: "full", isExact: own.isExact && job.isExact, network: on });
        }
      }
    };
    addForms(service_name, network);
    for (const alias of aliases) {
      if (network !== undefined && alias.network !== network) continue;
      for (const name of new Set(alias.names)) addForms(name, alias.network);
    }
    for (const job of jobs) add(job.name, { kind: "job", isExact: job.isExact, network });
  }

  /** Undefined for one that is nobody here. */
  #asker(address: string): Asker | undefined {
    if (this.#own.has(address) || address.startsWith("127.") || address === "::1") return NODE_ITSELF;
    const number = parseAddress(address);
    if (number === undefined) return undefined;
    const networks = new Set<string>();
    for (const subnet of this.#subnets) if (isIn(subnet, number)) networks.add(subnet.network);
    const jobs = new Set<string>();
    const isLocal = networks.size > 0;
    for (const { service, endpoint, network } of this.#seats.get(address) ?? NOTHING) {
      // A private subnet may be that of another network on another node; and addresses are given again.
      if ((isLocal && !networks.has(network)) || this.#gone.has(endpoint.allocation_id)) continue;
      jobs.add(service.entry.job_id);
      for (const seat of endpoint.addresses) networks.add(seat.network);
    }
    if (networks.size === 0 && !isIn(this.#range, number)) return undefined;
    return { scopes: [...networks], jobs };
  }

  /** The meanings of a name that the asker sees and that rank highest. */
  #find(name: string, { scopes, jobs }: Asker, kinds: readonly Match["kind"][]): Match[] {
    let best = Infinity;
    let matches: Match[] = [];
    for (const scope of scopes) {
      for (const match of this.#scopes.get(scope)?.get(name) ?? NOTHING) {
        if (!kinds.includes(match.kind)) continue;
        const rank = (jobs.has(match.service.entry.job_id) ? 0 : 2) + (match.isExact ? 0 : 1);
        if (rank > best) continue;
        if (rank < best) matches = [];
        best = rank;
        matches.push(match);
      }
    }
    return matches;
  }

  /** Undefined if no service that the asker sees has the name. `isFull`: only names with the job in them count. */
  #named(
    text: string,
    { type, asker, isFull }: { type: string; asker: Asker; isFull: boolean },
  ): NameAnswer | undefined {
    const kinds = isFull ? (["full"] as const) : (["short", "full"] as const);
    const direct = this.#find(text, asker, kinds);
    if (direct.length > 0) return this.#addresses(direct, type);

    const [, slot, ofSlot] = /^([1-9][0-9]{0,8})\.(.+)$/.exec(text) ?? [];
    if (ofSlot !== undefined) {
      const matches = this.#find(ofSlot, asker, ["full"]);
      const number = Number(slot);
      if (matches.some(({ service }) => service.entry.endpoints.some((endpoint) => endpoint.slot === number))) {
        return this.#addresses(matches, type, number);
      }
      if (matches.length > 0) return { state: "no_such_name" };
    }

    const [, port, protocol, ofPort] = /^(?:_([^.]+)\.)?_(tcp|udp|sctp)\.(.+)$/.exec(text) ?? [];
    if (ofPort !== undefined) {
      const matches = this.#find(ofPort, asker, kinds);
      if (matches.length > 0) return this.#ports(matches, { type, port, protocol });
    }
    return undefined;
  }

  #addresses(matches: readonly Match[], type: string, slot?: number): NameAnswer {
    if (type !== "A" && type !== "ANY") return found();
    const addresses = new Set<string>();
    for (const { endpoint, address } of this.#ready(matches)) {
      if (slot === undefined || endpoint.slot === slot) addresses.add(address);
    }
    return found(this.#shuffled([...addresses]).map((address) => ({ type: "A", name: undefined, address })));
  }

  #ports(
    matches: readonly Match[],
    { type, port, protocol }: { type: string; port: string | undefined; protocol: string | undefined },
  ): NameAnswer {
    const portsOf = ({ entry }: Service): number[] =>
      entry.ports
        .filter((one) => one.protocol === protocol)
        .filter(({ name, container_port }) => {
          if (port === undefined || String(container_port) === port) return true;
          return name !== undefined && formsOf(name).some((form) => form.name === port);
        })
        .map(({ container_port }) => container_port);
    if (!matches.some(({ service }) => portsOf(service).length > 0)) return { state: "no_such_name" };
    if (port === undefined || (type !== "SRV" && type !== "ANY")) return found();
    const records: NameRecord[] = [];
    const additional: NameRecord[] = [];
    for (const { service, endpoint, address } of this.#shuffled(this.#ready(matches))) {
      const target = `${endpoint.slot}.${service.domain}`;
      const ports = new Set(portsOf(service));
      for (const number of ports) records.push({ type: "SRV", port: number, target });
      if (ports.size > 0) additional.push({ type: "A", name: target, address });
    }
    return { state: "found", records, additional };
  }

  /** Each ready replica once, with its address on the network by which it was found first. */
  #ready(matches: readonly Match[]): { service: Service; endpoint: Endpoint; address: string }[] {
    const replicas: { service: Service; endpoint: Endpoint; address: string }[] = [];
    const seen = new Set<string>();
    for (const { service, network } of matches) {
      for (const endpoint of service.entry.endpoints) {
        if (!endpoint.ready || this.#dead.has(endpoint.allocation_id) || seen.has(endpoint.allocation_id)) continue;
        const seat = endpoint.addresses.find((one) => network === undefined || one.network === network);
        if (!seat) continue;
        seen.add(endpoint.allocation_id);
        replicas.push({ service, endpoint, address: seat.address });
      }
    }
    return replicas;
  }

  /**
   * PTR of an address, or of a block of them. A replica that is not ready has its name all the same: servers ask for the names
   * of clients that have just started.
   */
  #reverse(text: string, { type, asker }: { type: string; asker: Asker }): NameAnswer {
    const labels = text.slice(0, -REVERSE_DOMAIN.length).split(".").reverse();
    const end = labels.findIndex((label) => !/^(0|[1-9][0-9]{0,2})$/.test(label) || Number(label) > 255);
    const octets = labels.slice(0, end < 0 ? 4 : Math.min(end, 4));
    const first = [...octets, 0, 0, 0, 0].slice(0, 4).reduce<number>((sum, octet) => sum * 256 + Number(octet), 0);
    const last = first + 256 ** (4 - octets.length) - 1;
    const isOurs = isIn(this.#range, first) && isIn(this.#range, last);
    if (labels.length === 4 && octets.length === 4) {
      const seats = this.#seatsOf(octets.join("."), asker);
      const names = new Set(seats.map(({ service, endpoint }) => `${endpoint.slot}.${service.domain}`));
      const isAsked = type === "PTR" || type === "ANY";
      if (names.size > 0) return found(isAsked ? [...names].map((target) => ({ type: "PTR", target })) : []);
    } else if (isOurs && labels.length === octets.length) return found();
    return { state: isOurs ? "no_such_name" : "not_ours" };
  }

  /** Who has an address, as far as the asker sees it; of several the ready ones. */
  #seatsOf(address: string, { scopes }: Asker): Seat[] {
    const seats = [...(this.#seats.get(address) ?? NOTHING)].filter(
      ({ network, endpoint }) =>
        !this.#dead.has(endpoint.allocation_id) && (scopes.includes(EVERYTHING) || scopes.includes(network)),
    );
    const ready = seats.filter(({ endpoint }) => endpoint.ready);
    return ready.length > 0 ? ready : seats;
  }

  /** In place: Fisher and Yates. */
  #shuffled<T>(list: T[]): T[] {
    for (let end = list.length - 1; end > 0; end--) {
      const pick = Math.floor(this.#random() * (end + 1));
      [list[end], list[pick]] = [list[pick] as T, list[end] as T];
    }
    return list;
  }
}

function found(records: NameRecord[] = []): NameAnswer {
  return { state: "found", records, additional: [] };
}

function keyOf({ job_id, service_name }: Pick<ServiceEntry, "job_id" | "service_name">): string {
  return `${job_id}/${service_name}`;
}

function networksOf({ job_id, aliases, endpoints }: ServiceEntry): Set<string> {
  const networks = new Set(aliases.map(({ network }) => network));
  for (const { addresses } of endpoints) for (const { network } of addresses) networks.add(network);
  return networks.size > 0 ? networks : new Set([`${job_id}_default`]);
}

/** As it is written, and the second form where that is another. */
function formsOf(text: string): { name: string; isExact: boolean }[] {
  const exact = text.toLowerCase();
  const plain = plainOf(exact);
  return [{ name: exact, isExact: true }, ...(plain === exact ? [] : [{ name: plain, isExact: false }])];
}

/** The second form: one label of letters, digits and `-`. */
function plainOf(text: string): string {
  const plain = withoutTrailing(text.replace(/[^a-z0-9]/g, "-").replace(/^-+/, ""), "-");
  if (plain !== "" && plain.length <= MAX_LABEL) return plain;
  const hash = createHash("sha256").update(text).digest("hex").slice(0, HASH_DIGITS);
  return `${plain.slice(0, MAX_LABEL - HASH_DIGITS - 1)}-${hash}`.replace(/^-+/, "");
}

/** What SRV and PTR records call a service: as it is written where that is one label, else the second form. */
function domainOf({ job_id, service_name }: ServiceEntry): string {
  const [service, job] = [service_name, job_id].map((text) => {
    const exact = text.toLowerCase();
    return /^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$/.test(exact) && exact.length <= MAX_LABEL ? exact : plainOf(exact);
  });
  return `${service}.${job}.${DOMAIN}`;
}

function addTo<T>(index: Map<string, Set<T>>, key: string, item: T): void {
  const items = index.get(key);
  if (items) items.add(item);
  else index.set(key, new Set([item]));
}

function dropFrom<T>(index: Map<string, Set<T>>, key: string, item: T): void {
  const items = index.get(key);
  items?.delete(item);
  if (items?.size === 0) index.delete(key);
}

function isIn({ first, size }: Range, address: number): boolean {
  return address >= first && address < first + size;
}
