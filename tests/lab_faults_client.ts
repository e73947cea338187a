/**
 * @module The users of the fault suite (`lab_faults.test.ts`): several at once send PUT, scale, restart and DELETE through any node,
 * and keep their own account of what each job must be. A 2xx counts as done, and must be the version that it can only be;
 * `no_master` and `busy` as not done; what has no answer, or `outcome_unknown`, may be done at any later time.
 *
 * A job belongs to one user, who waits for each answer and looks at the job again where the last one is unknown. Most writes
 * have a condition on the version: such a write can't come late once another one is done.
 */
import { type JobDoc, type LabCluster, sleeper } from "./lab_cluster.ts";
import { seededRandom } from "./virtual_clock.ts";

/** A service as it is wanted. `since`: no container of it may have been made before, in Unix milliseconds. */
type Wanted = { variant: string; scale: number; waits: boolean; since: number };
/**
 * A job as it may be. `volumesGo`: it was deleted with its volumes. `isLeast`: its version is this one or a later one, for a new job
 * begins above all versions that deleted ones had.
 */
export type Known = {
  version: number;
  isLeast?: boolean;
  services: Map<string, Wanted> | undefined;
  volumesGo: boolean;
};
/** `left`: writes without an answer that have not come yet, by their place in `Account.unknown`. */
type Maybe = Known & { left: readonly number[] };
type Write = {
  text: string;
  path: string;
  method: string;
  body: string;
  /** The version that the job must have, 0: that there is none. */
  condition: number | undefined;
  /** What it makes of a job; `undefined`: it is refused, as there is no such job or service. */
  effect: (before: Known) => Known | undefined;
};
type Account = {
  maybe: Maybe[];
  unknown: Write[];
  isInDoubt: boolean;
  /** Variants of the services of the last document that was sent. */
  sent: Map<string, string>;
  port: number;
};
type Answer = { status: number; version?: number; code?: string };

/** Label by which a container says which definition it was made from. */
export const VARIANT = "variant";
export const HOSTS = 4;
const USERS = 3;
const JOBS_OF_USER = 2;
const SERVICES = ["app", "db", "web"] as const;
type ServiceName = (typeof SERVICES)[number];
/** One on each host: of a service with a fixed port no more find a place. */
const MOST_REPLICAS = HOSTS;
const MOST_PAUSE_MS = 1_500;
/** Longer than a node takes to give a write up. */
const ANSWER_TIMEOUT_MS = 5_000;
const FIRST_PORT = 8_000;

export class FaultClient {
  readonly counts = { acknowledged: 0, refused: 0, notMade: 0, unknown: 0 };
  readonly violations: string[] = [];
  readonly #cluster: LabCluster;
  readonly #seed: number;
  readonly #say: (line: string) => void;
  readonly #accounts = new Map<string, Account>();
  /** What each variant of a service is, without what may change beside it. */
  readonly #definitions = new Map<string, Record<string, unknown>>();

  constructor(cluster: LabCluster, { seed, say }: { seed: number; say: (line: string) => void }) {
    this.#cluster = cluster;
    this.#seed = seed;
    this.#say = say;
    for (let n = 0; n < USERS * JOBS_OF_USER; n++) {
      const nothing = { version: 0, services: undefined, volumesGo: false, left: [] };
      const account = { maybe: [nothing], unknown: [], isInDoubt: false, sent: new Map(), port: FIRST_PORT + n };
      this.#accounts.set(`job-${n + 1}`, account);
    }
  }

  /** All users at work, until the time has come. */
  async run(isOver: () => boolean): Promise<void> {
    const ids = [...this.#accounts.keys()];
    const users = Array.from({ length: USERS }, async (_, n) => {
      const random = seededRandom(Number(Bun.hash(`${this.#seed} user ${n}`) & 0xffffffffn));
      while (!isOver()) {
        await this.#act(random, ids.slice(n * JOBS_OF_USER, (n + 1) * JOBS_OF_USER));
        await Bun.sleep(random() * MOST_PAUSE_MS);
      }
    });
    await Promise.all(users);
  }

  /** Reads all jobs and holds them against the account. @throws Error when one can't be read. */
  async compare(): Promise<void> {
    for (const jobId of this.#accounts.keys()) {
      if (!(await this.#look(jobId, 1))) throw new Error(`job ${jobId} cannot be read`);
    }
  }

  /** The jobs as they are, after `compare`. */
  get jobs(): Map<string, Known> {
    return new Map([...this.#accounts].flatMap(([id, { maybe }]) => (maybe[0] ? [[id, maybe[0]] as const] : [])));
  }

  /** The document that makes a job what it is already. */
  documentOf(jobId: string): string {
    return documentText(this.jobs.get(jobId)?.services ?? new Map(), this.#definitions);
  }

  // ---- Writing ----------------------------------------------------------------------------------------------------------

  async #act(random: () => number, jobIds: readonly string[]): Promise<void> {
    const jobId = pick(random, jobIds);
    const on = 1 + Math.floor(random() * HOSTS);
    const isCareful = random() < 0.7;
    const account = this.#account(jobId);
    const write = this.#write(random, jobId);
    if (account.isInDoubt && !(await this.#look(jobId, on))) return;
    // Of writes that may come at any time, one is enough to reckon with.
    const isOneOpen = account.maybe.some(({ left }) => left.some((at) => !account.unknown[at]?.condition));
    const [known] = account.maybe;
    const condition = (isCareful || isOneOpen) && known ? (known.services ? known.version : 0) : undefined;
    await this.#send(account, { write: { ...write, condition }, on });
  }

  #write(random: () => number, jobId: string): Omit<Write, "condition"> {
    const dice = random();
    const path = `/cluster/job/${jobId}`;
    if (dice < 0.5) return this.#put(random, jobId);
    const service = pick(random, SERVICES);
    if (dice < 0.75) {
      const scale = scaleOf(random, service);
      const text = `scale ${jobId}/${service} to ${scale}`;
      const body = JSON.stringify({ scale });
      const effect = (before: Known) =>
        changed(before, (all) => {
          const old = all.get(service);
          return old && all.set(service, { ...old, scale });
        });
      return { text, path: `${path}/${service}`, method: "PUT", body, effect };
    }
    if (dice < 0.89) {
      const since = Date.now();
      const names: readonly string[] = random() < 0.5 ? SERVICES : [service];
      const where = names === SERVICES ? path : `${path}/${service}`;
      const effect = (before: Known): Known | undefined => {
        if (!before.services || (names !== SERVICES && !before.services.has(service))) return undefined;
        const services = [...before.services].map(
          ([name, one]) => [name, names.includes(name) ? { ...one, since } : one] as const,
        );
        return { ...before, version: before.version + 1, services: new Map(services) };
      };
      return { text: `restart ${where.slice(13)}`, path: `${where}/restart`, method: "POST", body: "", effect };
    }
    const volumesGo = random() < 0.5;
    const effect = (before: Known): Known | undefined =>
      before.services && { ...before, version: before.version + 1, services: undefined, volumesGo };
    const text = `delete ${jobId}${volumesGo ? " with volumes" : ""}`;
    return { text, path: `${path}${volumesGo ? "?volumes=true" : ""}`, method: "DELETE", body: "", effect };
  }

  #put(random: () => number, jobId: string): Omit<Write, "condition"> {
    const { sent, port } = this.#account(jobId);
    const since = Date.now();
    const chosen = SERVICES.filter(() => random() < 0.65);
    const names = chosen.length > 0 ? chosen : [SERVICES[0]];
    const wanted = new Map<string, Omit<Wanted, "scale" | "since"> & { scale?: number }>();
    for (const name of names) {
      const isKept = random() < 0.5;
      const hasPort = random() < 0.5;
      const scale = scaleOf(random, name);
      const isScaled = random() < 0.6;
      const old = sent.get(name);
      const variant = isKept && old !== undefined ? old : this.#define(`${jobId}-${name}`, { name, hasPort, port });
      wanted.set(name, { variant, waits: name === "app" && names.includes("db"), ...(isScaled && { scale }) });
    }
    sent.clear();
    for (const [name, { variant }] of wanted) sent.set(name, variant);
    const text = [...wanted].map(([name, { variant, scale }]) => `${name}:${variant}×${scale ?? "kept"}`).join(" ");
    const body = documentText(wanted, this.#definitions);
    const made = (before: Known) =>
      [...wanted].map(([name, { variant, waits, scale }]) => {
        const old = before.services?.get(name);
        // What was taken out and put in again may find its containers still there.
        const from = !before.services ? since : old?.variant === variant ? old.since : 0;
        return [name, { variant, waits, scale: scale ?? old?.scale ?? 1, since: from }] as const;
      });
    const effect = (before: Known) => changed(before, () => new Map(made(before)), { creates: true });
    return { text: `put ${jobId} ${text}`, path: `/cluster/job/${jobId}`, method: "PUT", body, effect };
  }

  #define(of: string, { name, hasPort, port }: { name: ServiceName; hasPort: boolean; port: number }): string {
    let count = 1;
    while (this.#definitions.has(`${of}-v${count}`)) count++;
    const variant = `${of}-v${count}`;
    const more = {
      app: {},
      db: { volumes: ["data:/data"] },
      web: hasPort ? { ports: [`${port}:80`] } : {},
    }[name];
    this.#definitions.set(variant, sleeper({ labels: { [VARIANT]: variant }, ...more }));
    return variant;
  }

  async #send(account: Account, { write, on }: { write: Write; on: number }): Promise<void> {
    const { method, body, path, condition } = write;
    const headers: Record<string, string> =
      condition === undefined ? {} : condition === 0 ? { "if-none-match": "*" } : { "if-match": `"${condition}"` };
    const sending = { method, headers, on, timeoutMs: ANSWER_TIMEOUT_MS, ...(body !== "" && { body }) };
    const answer = await this.#cluster
      .api<{ version?: number; error?: { code: string } } | undefined>(path, sending)
      .then(({ status, body: found }): Answer => {
        const { version, error } = found ?? {};
        return { status, ...(version !== undefined && { version }), ...(error && { code: error.code }) };
      })
      .catch((error: unknown): Answer => ({
        status: 0,
        code: (error as { code?: string | number }).code === "ConnectionRefused" ? "no_master" : "lost",
      }));
    this.#reckon(account, { write, answer });
    const outcome = answer.version === undefined ? `${answer.status} ${answer.code}` : `version ${answer.version}`;
    const when = condition === undefined ? "" : ` if ${condition}`;
    this.#say(`${write.text}${when} through host ${on}: ${outcome}`);
  }

  #reckon(account: Account, { write, answer }: { write: Write; answer: Answer }): void {
    const { status, version, code } = answer;
    if (code === "no_master" || code === "busy") {
      this.counts.notMade++;
      return;
    }
    if (status === 0 || code === "outcome_unknown") {
      this.counts.unknown++;
      account.isInDoubt = true;
      const at = account.unknown.push(write) - 1;
      account.maybe = account.maybe.map((one) => ({ ...one, left: [...one.left, at] }));
      return;
    }
    const before = withLate(account);
    if (status >= 200 && status < 300) {
      this.counts.acknowledged++;
      const after = before.flatMap((one) => {
        const made = isMet(write, one) ? write.effect(one) : undefined;
        return made ? [{ ...made, left: one.left }] : [];
      });
      this.#keep(account, {
        after: after.flatMap((one) => atVersion(one, version)),
        what: `${write.text} made version ${version}`,
      });
      return;
    }
    this.counts.refused++;
    const fits = (one: Known) =>
      status === 412 ? !isMet(write, one) : status === 404 && isMet(write, one) && write.effect(one) === undefined;
    this.#keep(account, { after: before.filter(fits), what: `${write.text} was refused with ${status} ${code}` });
  }

  // ---- Reading ----------------------------------------------------------------------------------------------------------

  /** Whether the job could be read. */
  async #look(jobId: string, on: number): Promise<boolean> {
    const account = this.#account(jobId);
    const answer = await this.#cluster
      .api<JobDoc>(`/cluster/job/${jobId}`, { on, timeoutMs: ANSWER_TIMEOUT_MS })
      .catch(() => undefined);
    if (answer?.status !== 200 && answer?.status !== 404) return false;
    const seen = answer.status === 200 ? seenOf(answer.body) : undefined;
    const fitting = (one: Maybe): Maybe[] => {
      if (seen === undefined || !one.services) return seen === undefined && !one.services ? [one] : [];
      return Bun.deepEquals(seen, scalesOf(one.services)) ? atVersion(one, answer.body.version) : [];
    };
    const what =
      seen === undefined ? `job ${jobId} is not there` : `job ${jobId} is at ${answer.body.version}: ${show(seen)}`;
    this.#keep(account, { after: withLate(account).flatMap(fitting), what });
    account.isInDoubt = false;
    return true;
  }

  /** From here on the job is one of `after`: there must be one. */
  #keep(account: Account, { after, what }: { after: readonly Maybe[]; what: string }): void {
    if (after.length === 0) {
      const could = withLate(account).map(({ version, services, left }) => {
        const is = services ? show(scalesOf(services)) : "absent";
        return `at ${version}, ${is}${left.length > 0 ? `, ${left.length} writes open` : ""}`;
      });
      this.violations.push(`${what}, but by the answers before it was ${could.join("; or ")}`);
      return;
    }
    account.maybe = after.map((one) => ({ ...one, left: one.left.filter((at) => canCome(account.unknown[at], one)) }));
  }

  #account(jobId: string): Account {
    const account = this.#accounts.get(jobId);
    if (!account) throw new Error(`no user has a job ${jobId}`);
    return account;
  }
}

/** All that a job may be, with any of the writes that have no answer done meanwhile, in any order. */
function withLate({ maybe, unknown }: Account): Maybe[] {
  const found = new Map<string, Maybe>();
  const open = [...maybe];
  for (let one = open.pop(); one; one = open.pop()) {
    const key = JSON.stringify([one.version, one.isLeast, [...(one.services ?? [["none"]])], one.volumesGo, one.left]);
    if (found.has(key)) continue;
    found.set(key, one);
    for (const at of one.left) {
      const write = unknown[at];
      const made = write && isMet(write, one) ? write.effect(one) : undefined;
      if (made) open.push({ ...made, left: one.left.filter((other) => other !== at) });
    }
  }
  return [...found.values()];
}

/** What a job is that turns out to have this version; nothing where it can't have it. */
function atVersion(one: Maybe, version = 0): Maybe[] {
  const fits = one.isLeast ? version >= one.version : version === one.version;
  return fits ? [{ ...one, version, isLeast: false }] : [];
}

function isMet({ condition }: Write, { services, version }: Known): boolean {
  return condition === undefined || condition === (services ? version : 0);
}

function canCome(write: Write | undefined, { version }: Known): boolean {
  return !write?.condition || write.condition >= version;
}

/** A change of services; one that changes nothing makes no new version. */
function changed(
  before: Known,
  change: (services: Map<string, Wanted>) => Map<string, Wanted> | undefined,
  { creates = false }: { creates?: boolean } = {},
): Known | undefined {
  if (!before.services && !creates) return undefined;
  const services = change(new Map(before.services));
  if (!services || Bun.deepEquals(services, before.services)) return services && before;
  const isLeast = before.isLeast === true || !before.services;
  return { version: before.version + 1, isLeast, services, volumesGo: false };
}

function documentText(
  services: ReadonlyMap<string, { variant: string; waits: boolean; scale?: number }>,
  definitions: ReadonlyMap<string, Record<string, unknown>>,
): string {
  const written = [...services].map(([name, { variant, waits, scale }]) => [
    name,
    { ...definitions.get(variant), ...(waits && { depends_on: ["db"] }), ...(scale !== undefined && { scale }) },
  ]);
  return JSON.stringify({
    services: Object.fromEntries(written),
    ...(services.has("db") && { volumes: { data: {} } }),
  });
}

/** Each service's variant and scale, as the API tells them. */
function seenOf({ document, services }: JobDoc): Record<string, string> {
  const { services: defined } = document as { services: Record<string, { labels?: Record<string, string> }> };
  return Object.fromEntries(
    Object.entries(services).map(([name, { scale }]) => [name, `${defined[name]?.labels?.[VARIANT]}×${scale}`]),
  );
}

function scalesOf(services: ReadonlyMap<string, Wanted>): Record<string, string> {
  return Object.fromEntries([...services].map(([name, { variant, scale }]) => [name, `${variant}×${scale}`]));
}

function show(seen: Record<string, string>): string {
  return Object.values(seen).join(", ");
}

function scaleOf(random: () => number, service: ServiceName): number {
  return Math.floor(random() * (service === "db" ? 3 : MOST_REPLICAS + 1));
}

function pick<T>(random: () => number, list: readonly T[]): T {
  return list[Math.floor(random() * list.length)] as T;
}
