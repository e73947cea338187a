/**
 * @module What one entry knows of the replicas behind it: connections that are open, whose turn it was, and which ones just
 * failed. Keeps the route; asks `entry_choice.ts` for each new connection.
 */
import type { Clock } from "./clock.ts";
import { chooseReplica, type Replica, type Route } from "./entry_choice.ts";

/** One replica's part of an entry. */
type Load<Link> = {
  links: Set<Link>;
  turn: number;
  failingUntil: number;
  /** Connects that nobody waits for any more, but which the kernel has not given up yet. */
  hanging: number;
};

/** A replica that could not be reached comes last for this long: a few seconds, in which the directory learns of its end. */
const FAILING_MS = 5_000;
/** A replica that answers no connect gets no more while this many hang: each one holds a descriptor for about two minutes. */
const MAX_HANGING = 32;

export class EntryLoads<Link> {
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #loads = new Map<string, Load<Link>>();
  #route: Route | undefined;
  /** The route's allocations, and those of its replicas that may get something new. */
  #wanted: ReadonlySet<string> = new Set();
  #accepting: ReadonlyMap<string, Replica> = new Map();
  #turn = 0;

  constructor({ clock, random }: { clock: Clock; random: () => number }) {
    this.#clock = clock;
    this.#random = random;
  }

  get route(): Route | undefined {
    return this.#route;
  }

  /** Takes where the entry leads now (undefined: nowhere), and which replicas get nothing new whatever the route says. */
  lead(route: Route | undefined, excluded: ReadonlySet<string>): void {
    const replicas = route?.replicas ?? [];
    const accepting = replicas.filter(({ allocation_id, ready }) => ready && !excluded.has(allocation_id));
    this.#route = route;
    this.#wanted = new Set(replicas.map(({ allocation_id }) => allocation_id));
    this.#accepting = new Map(accepting.map((replica) => [replica.allocation_id, replica]));
    for (const [id, load] of this.#loads) this.#forgetIdle(id, load);
  }

  /** The replica of this allocation, if something new may go to it. */
  accepting(allocationId: string): Replica | undefined {
    return this.#accepting.get(allocationId);
  }

  /** The replica for a new connection that did not reach those in `tried`; `failing` if it could not be reached just now. */
  choose(tried: ReadonlySet<string>): { replica: Replica; failing: boolean } | undefined {
    if (!this.#route) return undefined;
    const now = this.#clock.now();
    const candidates = [...this.#accepting].flatMap(([id, replica]) => {
      const { links, turn = 0, failingUntil = 0, hanging = 0 }: Partial<Load<Link>> = this.#loads.get(id) ?? {};
      if (tried.has(id) || hanging >= MAX_HANGING) return [];
      return [{ replica, turn, open: links?.size ?? 0, failing: failingUntil > now }];
    });
    const chosen = chooseReplica(candidates, { balance: this.#route.balance, random: this.#random });
    if (!chosen) return undefined;
    this.#load(chosen.replica.allocation_id).turn = ++this.#turn;
    return chosen;
  }

  add(allocationId: string, link: Link): void {
    this.#load(allocationId).links.add(link);
  }

  remove(allocationId: string, link: Link): void {
    this.#change(allocationId, (load) => load.links.delete(link));
  }

  /** A connect was refused or got no answer. */
  failed(allocationId: string): void {
    this.#change(allocationId, (load) => (load.failingUntil = this.#clock.now() + FAILING_MS));
  }

  /** A connect worked. */
  reached(allocationId: string): void {
    this.#change(allocationId, (load) => (load.failingUntil = 0));
  }

  hangs(allocationId: string, by: 1 | -1): void {
    this.#change(allocationId, (load) => (load.hanging += by));
  }

  /** What is open, by allocation. */
  *open(): Iterable<[allocationId: string, links: ReadonlySet<Link>]> {
    for (const [id, { links }] of this.#loads) if (links.size > 0) yield [id, links];
  }

  #load(allocationId: string): Load<Link> {
    let load = this.#loads.get(allocationId);
    if (!load) {
      load = { links: new Set(), turn: 0, failingUntil: 0, hanging: 0 };
      this.#loads.set(allocationId, load);
    }
    return load;
  }

  #change(allocationId: string, change: (load: Load<Link>) => unknown): void {
    const load = this.#load(allocationId);
    change(load);
    this.#forgetIdle(allocationId, load);
  }

  #forgetIdle(allocationId: string, { links, hanging }: Load<Link>): void {
    if (links.size === 0 && hanging === 0 && !this.#wanted.has(allocationId)) this.#loads.delete(allocationId);
  }
}
