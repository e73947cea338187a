/**
 * @module The secrets of the cluster's jobs, on the master: which value each secret of a document has from now on, their values
 * sealed for the Store and opened for the nodes that run what mounts them. Owns the ids of values: random, and kept while the
 * value stays, so that an id tells nothing and an unchanged secret replaces no container. The Scheduler commits; `seal.ts` has
 * the key, `job_secrets.ts` the mark in documents.
 */
import type { ClusterState } from "./cluster_state.ts";
import type { WantedJob } from "./job_changes.ts";
import { withSecretIds } from "./job_secrets.ts";
import type { Change, JobSecret, LiveJob, SecretRequest } from "./model.ts";
import type { Detail } from "./model_spec.ts";
import { CacophonyError } from "./model.ts";
import type { Sealer } from "./seal.ts";
import { SealError } from "./seal.ts";

export type SecretsOptions = { state: ClusterState; sealer: Sealer; newId: () => string };

/** A value that is to be stored under an id of its own. */
type Fresh = { secret_id: string; data: Uint8Array };

export class Secrets {
  readonly #options: SecretsOptions;

  constructor(options: SecretsOptions) {
    this.#options = options;
  }

  /** Whether nothing in the cluster's state is sealed yet. */
  get isFirst(): boolean {
    const { secrets, registries } = this.#options.state;
    return secrets.size + registries.size === 0;
  }

  /**
   * The wanted job with the id of every secret's value, and the values that are new. Changes nothing.
   * @throws CacophonyError `invalid_document` where there is no key, or the mark stands for a value that is not there.
   */
  settle(wanted: WantedJob, live: LiveJob | undefined): { wanted: WantedJob; fresh: Fresh[] } {
    const { secrets = [] } = wanted;
    if (secrets.length === 0) return { wanted, fresh: [] };
    this.#refuseWithoutKey(wanted);
    const olds = new Map(live?.secrets?.map(({ name, secret_id }) => [name, secret_id]));
    const faults: Detail[] = [];
    const fresh: Fresh[] = [];
    const ids = secrets.map(({ name, data, place }): JobSecret => {
      const old = olds.get(name);
      const value = old === undefined ? undefined : this.#valueOf(old);
      if (data === undefined && !(value instanceof Uint8Array)) {
        const why = value ? `cannot be read (${value.message})` : "this job does not have";
        faults.push({ ...place, message: `stands for a value that ${why}: send the value` });
      }
      const isKept = value instanceof Uint8Array && (data === undefined || Buffer.from(data).equals(value));
      if (old !== undefined && isKept) return { name, secret_id: old };
      const secret_id = this.#newId();
      if (data) fresh.push({ secret_id, data });
      return { name, secret_id };
    });
    if (faults.length > 0) throw refusal("the document marks secrets that have no value here", faults);
    const services = wanted.services.map((one) => ({ ...one, spec: withSecretIds(one.spec, ids) }));
    return { wanted: { ...wanted, services, secret_ids: ids }, fresh };
  }

  /** Ids for values that have none yet, by the names of their secrets. */
  adopt(values: ReadonlyMap<string, Uint8Array>): { ids: JobSecret[]; fresh: Fresh[] } {
    const given = Array.from(values, ([name, data]) => ({ name, secret_id: this.#newId(), data }));
    return {
      ids: given.map(({ name, secret_id }) => ({ name, secret_id })),
      fresh: given.map(({ secret_id, data }) => ({ secret_id, data })),
    };
  }

  /**
   * Records of values, sealed; they belong into the commit of the job that has them.
   * @throws CacophonyError `store_failed` if the key was lost in this very moment, or can't be written.
   */
  sealed(fresh: readonly Fresh[]): Change[] {
    const { isFirst } = this;
    return fresh.map(({ secret_id, data }) => {
      const text = Buffer.from(data).toString("base64");
      const sealed = orUnavailable(() => this.#options.sealer.seal(text, { purpose: purposeOf(secret_id), isFirst }));
      return { op: "put", kind: "secret", record: { secret_id, sealed } };
    });
  }

  /**
   * A value for a node that is to run a container which mounts it; undefined for all others.
   * @throws CacophonyError `store_failed` if it can't be opened.
   */
  valueFor({ node_id, secret_id }: Pick<SecretRequest, "node_id" | "secret_id">): Uint8Array | undefined {
    const { state } = this.#options;
    const isMounted = state.allocationsOn(node_id).some(({ desired, spec_hash }) => {
      const mounts = desired === "run" ? state.specs.get(spec_hash)?.mounts : undefined;
      return mounts?.some((mount) => mount.type === "secret" && mount.secret_id === secret_id);
    });
    const value = isMounted ? this.#valueOf(secret_id) : undefined;
    return orUnavailable(() => {
      if (value instanceof SealError) throw value;
      return value;
    });
  }

  /** Why sealed values can't be opened, as far as the first one tells; undefined: they can, or there is none. */
  fault(): string | undefined {
    for (const secret_id of this.#options.state.secrets.keys()) {
      const value = this.#valueOf(secret_id);
      return value instanceof SealError ? value.message : undefined;
    }
    return undefined;
  }

  #refuseWithoutKey({ secrets = [] }: WantedJob): void {
    try {
      this.#options.sealer.check({ isFirst: this.isFirst });
    } catch (error) {
      if (!(error instanceof SealError)) throw error;
      const message = `cannot be kept: ${error.message}`;
      throw refusal(
        "the document has secrets, and this master has no key to keep them with",
        secrets.map(({ place }) => ({ ...place, message })),
      );
    }
  }

  #valueOf(secretId: string): Uint8Array | SealError | undefined {
    const { state, sealer } = this.#options;
    const sealed = state.secrets.get(secretId);
    if (sealed === undefined) return undefined;
    try {
      return Buffer.from(sealer.open(sealed, purposeOf(secretId)), "base64");
    } catch (error) {
      if (error instanceof SealError) return error;
      throw error;
    }
  }

  /** Two of the cluster's ids: 96 random bits. */
  #newId(): string {
    const { newId } = this.#options;
    return `${newId()}${newId()}`;
  }
}

function purposeOf(secretId: string): string {
  return `value ${secretId} of a secret`;
}

function refusal(message: string, details: readonly Detail[]): CacophonyError {
  return new CacophonyError("invalid_document", `${message}; nothing of it was applied`, { details });
}

function orUnavailable<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof SealError)) throw error;
    throw new CacophonyError("store_failed", `a secret is not at hand: ${error.message}`, { cause: error });
  }
}
