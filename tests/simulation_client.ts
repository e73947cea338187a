/**
 * @module The user of the simulation: sends PUT, scale, restart and DELETE to the master, keeps its own account of what the jobs must be
 * after each answer, and of what they may be where no answer came.
 */
import * as v from "valibot";
import { specHash, type WantedJob } from "../src/job_changes.ts";
import { CacophonyError, type JobRecord } from "../src/model.ts";
import { type ServiceRules, serviceRules, type ServiceSpec } from "../src/model_spec.ts";
import type { Scheduler } from "../src/scheduler.ts";
import { spec } from "./cluster_fixture.ts";
import type { SimCluster } from "./simulation_cluster.ts";
import { fileOf } from "./simulation_files.ts";
import {
  type Chance,
  chooseKinds,
  chooseServices,
  countOf,
  isEnding,
  rulesOf,
  type ServiceName,
  specOf,
  VARIANT,
} from "./simulation_services.ts";

/** A job as its user knows it: service name -> hash of its definition, scale, and rules as text. */
type Known = { services: Map<string, { hash: string; scale: number; rules: string }> | undefined };
type Account = {
  /** What the job may be; one entry unless an answer was lost. */
  maybe: Known[];
  version: number;
  /** Whether the last that is known of the job's volumes is that they go. */
  volumesGo: boolean;
  /** Requests without an answer yet, in the order in which they were sent. */
  underWay: ((before: Known) => Known)[];
};

/** What a service must run in the end. */
export type WantedService = {
  job: string;
  service: string;
  variant: string;
  count: number;
  fixedPort: boolean;
  /** Whether its containers are to end by themselves. */
  isEnding: boolean;
  /** Where it has its data, each slot on its own node. */
  hasData: boolean;
  spec: ServiceSpec | undefined;
};

export type Requests = { acknowledged: number; refused: number; unanswered: number };

const JOBS = ["alpha", "beta", "gamma", "delta"] as const;
const MOST_REPLICAS = 5;

export class SimClient {
  readonly requests: Requests = { acknowledged: 0, refused: 0, unanswered: 0 };
  readonly violations: string[] = [];
  readonly #cluster: SimCluster;
  readonly #random: () => number;
  readonly #say: (line: string) => void;
  readonly #accounts = new Map<string, Account>();
  readonly #specs = new Map<string, ServiceSpec>();
  readonly #sent = new Map<string, WantedJob>();
  /** Pieces of all files that were ever sent. */
  readonly #chunks = new Map<string, Uint8Array>();
  /** Jobs that somebody ever asked to delete with their volumes. */
  readonly #withVolumes = new Set<string>();
  readonly #kinds: readonly ServiceName[];
  #variants = 0;

  constructor(cluster: SimCluster, options: { random: () => number; say: (line: string) => void }) {
    this.#cluster = cluster;
    this.#random = options.random;
    this.#say = options.say;
    this.#kinds = chooseKinds(this.#chance);
    cluster.promises.mayLoseVolumes = (jobId) => this.#withVolumes.has(jobId);
  }

  get #chance(): Chance {
    return { random: this.#random, pick: (list) => this.#pick(list) };
  }

  /** Sends one request, if a master is there to take it. */
  act(kind?: "put" | "delete"): void {
    const scheduler = this.#cluster.scheduler;
    if (!scheduler) return;
    const live = scheduler.state.liveJobs().map(({ job_id }) => job_id);
    const jobId = this.#pick(kind === "delete" && live.length > 0 ? live : JOBS);
    const dice = kind === undefined ? this.#random() : kind === "put" ? 0 : 1;
    if (dice < 0.5) this.#put(scheduler, jobId);
    else if (dice < 0.75) this.#scale(scheduler, jobId);
    else if (dice < 0.85) this.#restart(scheduler, jobId);
    else this.#delete(scheduler, { jobId, volumes: this.#random() < 0.5 });
  }

  /** The jobs must be what this user was told, and versions never go back. Takes what there is for what it knows from now on. */
  compare(records: readonly JobRecord[], floor = 0): void {
    const stored = new Map(records.map((record) => [record.job_id, record]));
    for (const [jobId, account] of this.#accounts) {
      const record = stored.get(jobId);
      const now = knownOf(record);
      if (!account.maybe.some((known) => Bun.deepEquals(known, now))) {
        this.violations.push(
          `job ${jobId} is ${show(now)}, but by the answers it must be ${account.maybe.map(show).join(" or ")}`,
        );
      }
      if ((record?.version ?? floor) < account.version) {
        this.violations.push(`job ${jobId} went back from version ${account.version} to ${record?.version ?? floor}`);
      }
      account.maybe = [now];
    }
  }

  /** What each service must run; `zones`: the label of each node. */
  wanted(zones: readonly (string | undefined)[]): WantedService[] {
    return [...this.#accounts].flatMap(
      ([
        job,
        {
          maybe: [known],
        },
      ]) =>
        [...(known?.services ?? [])].map(([service, { hash, scale: asked, rules: text }]) => {
          const scaleOf = (name: string) => known?.services?.get(name)?.scale ?? 0;
          const scale = service === "side" && scaleOf("db") === 0 ? 0 : asked;
          const made = this.#specs.get(hash);
          const rules = JSON.parse(text) as ServiceRules;
          return {
            job,
            service,
            variant: made?.labels.find(([key]) => key === VARIANT)?.[1] ?? "",
            count: countOf({ scale, rules }, zones),
            fixedPort: made?.ports.some(({ host_port }) => host_port) ?? false,
            isEnding: isEnding(service),
            hasData: service === "db",
            spec: made,
          };
        }),
    );
  }

  /** Services that nobody wants, of those that somebody may have wanted. */
  unwanted(): { job: string; service: string }[] {
    return [...this.#accounts].flatMap(
      ([
        job,
        {
          maybe: [known],
        },
      ]) => this.#kinds.flatMap((service) => (known?.services?.has(service) ? [] : [{ job, service }])),
    );
  }

  /** Jobs whose volumes must be gone. */
  withoutVolumes(): string[] {
    return [...this.#accounts].flatMap(([job, { maybe, volumesGo }]) =>
      volumesGo && !maybe[0]?.services ? [job] : [],
    );
  }

  get isAnswered(): boolean {
    return [...this.#accounts.values()].every(({ underWay }) => underWay.length === 0);
  }

  // ---- Requests -------------------------------------------------------------------------------------------------------

  #put(scheduler: Scheduler, jobId: string): void {
    const before = this.#sent.get(jobId);
    const wanted = before && this.#random() < 0.3 ? before : this.#document(jobId, before);
    this.#sent.set(jobId, wanted);
    this.#account(jobId).volumesGo = false;
    const text = wanted.services.map(({ service_name, scale }) => `${service_name}=${scale ?? "kept"}`).join(" ");
    const effect = ({ services }: Known): Known => ({
      services: new Map(
        wanted.services.map(({ service_name, spec: one, scale, rules }) => [
          service_name,
          {
            hash: specHash(one),
            scale: scale ?? services?.get(service_name)?.scale ?? 1,
            rules: JSON.stringify(v.parse(serviceRules, rules)),
          },
        ]),
      ),
    });
    this.#send(jobId, {
      text: `PUT ${jobId}: ${text}`,
      effect,
      call: () =>
        scheduler
          .putJob(jobId, { wanted: { ...wanted, chunks: this.#chunks }, preconditions: {} })
          .then(({ job }) => job.version),
    });
  }

  #scale(scheduler: Scheduler, jobId: string): void {
    const serviceName = this.#pick(this.#kinds.filter((name) => name !== "agent" && name !== "once"));
    const scale = Math.floor(this.#random() * (MOST_REPLICAS + 1));
    const effect = ({ services }: Known): Known => {
      const service = services?.get(serviceName);
      if (!services || !service) return { services };
      return { services: new Map([...services, [serviceName, { ...service, scale }]]) };
    };
    this.#send(jobId, {
      text: `PUT ${jobId}/${serviceName}: scale ${scale}`,
      effect,
      call: () => scheduler.scaleService(jobId, { serviceName, scale }).then(({ version }) => version),
    });
  }

  #restart(scheduler: Scheduler, jobId: string): void {
    const serviceName = this.#random() < 0.5 ? this.#pick(this.#kinds) : undefined;
    this.#send(jobId, {
      text: `POST ${jobId}${serviceName === undefined ? "" : `/${serviceName}`}: restart`,
      effect: (before) => ({ ...before }),
      isAbsent: ({ services }) => !services || (serviceName !== undefined && !services.has(serviceName)),
      call: () =>
        scheduler
          .restartJob(jobId, { ...(serviceName !== undefined && { serviceName }), pull: false, preconditions: {} })
          .then(({ version }) => version),
    });
  }

  #delete(scheduler: Scheduler, { jobId, volumes }: { jobId: string; volumes: boolean }): void {
    if (volumes) this.#withVolumes.add(jobId);
    this.#send(jobId, {
      text: `DELETE ${jobId}${volumes ? " with volumes" : ""}`,
      removesVolumes: volumes,
      effect: () => ({ services: undefined }),
      call: () => scheduler.deleteJob(jobId, { volumes, preconditions: {} }),
    });
  }

  #send(
    jobId: string,
    request: {
      text: string;
      removesVolumes?: boolean;
      effect: (before: Known) => Known;
      /** Whether what it is for is not there; unless said, where it would change nothing. */
      isAbsent?: (known: Known) => boolean;
      call: () => Promise<number>;
    },
  ): void {
    const { text, effect, removesVolumes = false } = request;
    const isAbsent =
      request.isAbsent ?? ((known) => Bun.deepEquals(effect(known), known) || known.services === undefined);
    const account = this.#account(jobId);
    account.underWay.push(effect);
    const answered = () => {
      // Another process has this answer no more: the account was closed when its master ended.
      const at = account.underWay.indexOf(effect);
      if (at > 0) this.violations.push(`${text} was answered before requests that came earlier`);
      if (at >= 0) account.underWay.splice(at, 1);
      return at >= 0;
    };
    this.#say(text);
    request.call().then(
      (version) => {
        if (!answered()) return;
        this.requests.acknowledged++;
        account.maybe = account.maybe.map(effect);
        if (version < account.version)
          this.violations.push(`${text} was answered with version ${version} after ${account.version}`);
        account.version = version;
        // A PUT that was sent meanwhile makes new ones.
        account.volumesGo = removesVolumes && account.underWay.length === 0;
        this.#say(`  done: ${text}, version ${version}`);
      },
      (error: unknown) => {
        if (!answered()) return;
        this.requests.refused++;
        const code = error instanceof CacophonyError ? error.code : String(error);
        this.#say(`  refused: ${text}: ${code}`);
        // A refusal must change nothing; that there is no such job or service must be so.
        const absent = account.maybe.some(isAbsent);
        // It may be there for all that, and be seen by the next process.
        if (code === "store_failed" && this.#cluster.disk.isTorn)
          account.maybe = [...account.maybe, ...account.maybe.map(effect)];
        if (code !== "store_failed" && !(code === "not_found" && absent))
          this.violations.push(`${text} failed: ${code}`);
      },
    );
  }

  /** What was sent and not answered has happened or has not, in the order in which it was sent. */
  masterGone(): void {
    for (const account of this.#accounts.values()) {
      for (const effect of account.underWay) {
        account.maybe = [...account.maybe, ...account.maybe.map(effect)];
        this.requests.unanswered++;
      }
      account.underWay = [];
    }
  }

  #account(jobId: string): Account {
    const known = this.#accounts.get(jobId);
    if (known) return known;
    const account: Account = { maybe: [{ services: undefined }], version: 0, volumesGo: false, underWay: [] };
    this.#accounts.set(jobId, account);
    return account;
  }

  // ---- Documents ------------------------------------------------------------------------------------------------------

  /** Some services of the job before as they were, others changed, new or gone. */
  #document(jobId: string, before: WantedJob | undefined): WantedJob {
    const names = chooseServices(this.#kinds, this.#chance);
    const services = names.map((service_name) => {
      const old = before?.services.find((one) => one.service_name === service_name);
      const scale = this.#random() < 0.6 ? Math.floor(this.#random() * (MOST_REPLICAS + 1)) : undefined;
      const one = old && this.#random() < 0.5 ? old.spec : this.#spec(jobId, service_name);
      const rules = old && this.#random() < 0.7 ? old.rules : rulesOf(service_name, this.#chance);
      return { service_name, spec: one, rules, ...(scale === undefined ? {} : { scale }) };
    });
    return { document: JSON.stringify({ services: names }), services };
  }

  #spec(jobId: string, service: ServiceName): ServiceSpec {
    const variant = `v${++this.#variants}`;
    const port = 8_000 + JOBS.findIndex((one) => one === jobId);
    const made = spec({ labels: [[VARIANT, variant]], ...specOf(service, { ...this.#chance, variant, port }) });
    this.#specs.set(specHash(made), made);
    if (made.files) for (const [chunkHash, chunk] of fileOf(variant).chunks) this.#chunks.set(chunkHash, chunk);
    return made;
  }

  #pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.#random() * list.length)] as T;
  }
}

function knownOf(record: JobRecord | undefined): Known {
  if (record?.state !== "live") return { services: undefined };
  return {
    services: new Map(
      record.services.map(({ service_name, spec_hash, scale, rules }) => [
        service_name,
        { hash: spec_hash, scale, rules: JSON.stringify(rules) },
      ]),
    ),
  };
}

function show({ services }: Known): string {
  if (!services) return "absent";
  return [...services].map(([name, { hash, scale }]) => `${name}:${hash}×${scale}`).join(",");
}
