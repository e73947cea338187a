/**
 * @module Logins for image registries, on the master: sealed for the Store, and opened for the nodes that pull from there. The
 * Scheduler commits what this makes; `seal.ts` has the key.
 */
import type { ClusterState } from "./cluster_state.ts";
import { registryOf } from "./job_images.ts";
import type { Log } from "./log.ts";
import type { Change, ClusterLogin } from "./model.ts";
import { CacophonyError } from "./model.ts";
import type { Sealer } from "./seal.ts";
import { SealError } from "./seal.ts";

type Login = Omit<ClusterLogin, "host">;

export class Registries {
  readonly #options: { state: ClusterState; sealer: Sealer; log: Log };

  constructor(options: { state: ClusterState; sealer: Sealer; log: Log }) {
    this.#options = options;
  }

  /**
   * The login for a registry as it is stored. `isFirst`: nothing is sealed yet, so a key may be made.
   * @throws CacophonyError `store_failed` where it cannot be sealed.
   */
  sealed(host: string, { username, password, isFirst }: Login & { isFirst: boolean }): Change {
    try {
      const text = JSON.stringify({ username, password });
      const sealed = this.#options.sealer.seal(text, { purpose: purposeOf(host), isFirst });
      return { op: "put", kind: "registry", record: { host, sealed } };
    } catch (error) {
      if (!(error instanceof SealError)) throw error;
      throw new CacophonyError("store_failed", `the login was not stored: ${error.message}`, { cause: error });
    }
  }

  /** @throws CacophonyError `not_found` where there is none. */
  removal(host: string): Change {
    if (this.#options.state.registries.has(host)) return { op: "delete", kind: "registry", key: host };
    throw new CacophonyError("not_found", `there is no login for the registry '${host}'`);
  }

  /** The logins for the registries of some images; one that cannot be read is left out. */
  loginsFor(images: readonly string[]): ClusterLogin[] {
    const { state, sealer, log } = this.#options;
    return [...new Set(images.map(registryOf))].flatMap((host) => {
      const record = state.registries.get(host);
      if (!record) return [];
      try {
        return [{ host, ...(JSON.parse(sealer.open(record.sealed, purposeOf(host))) as Login) }];
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        log.error("a registry's login cannot be read: send it again with PUT /cluster/registry", { host, reason });
        return [];
      }
    });
  }
}

function purposeOf(host: string): string {
  return `login for registry ${host}`;
}
