/** @module What a master shows and is shown of terms: the proof of its own one, for each welcome, and a newer one in a node's hello. */
import { isProofOf, signTerm, type Signer } from "./cluster_key.ts";
import type { Refusal } from "./membership_refusals.ts";
import type { Hello, PassingRefusal } from "./model.ts";
import { behindText, isBehind, type TermProof } from "./model_term.ts";
import type { Scheduler } from "./scheduler.ts";

export type TermNews = {
  /** A node has proof of a leadership that this one is behind: what is kept of it keeps the next start from leading, too. */
  onNewerTerm?: (proof: TermProof) => void;
};

export type TermOptions = TermNews & {
  scheduler: Pick<Scheduler, "cluster" | "leadership" | "state">;
  signer: Signer;
  /** Ends all sessions. */
  stop: () => void;
};

export class OwnTerm {
  readonly #options: TermOptions;
  #proof: TermProof | undefined;

  constructor(options: TermOptions) {
    this.#options = options;
  }

  /** Whether this master leads. When it leads no more, nodes look for who does; readers see what was known of them. */
  begin(): boolean {
    const { scheduler, stop } = this.#options;
    const end = () => {
      stop();
      const reason = "this master does not lead";
      for (const view of scheduler.state.views.values())
        Object.assign(view, { connected: false, state: "unready", reason });
    };
    const isLeading = scheduler.leadership.fault === undefined;
    if (isLeading) scheduler.leadership.onEnd(end);
    else end();
    return isLeading;
  }

  /** A welcome's part: proof of this leadership. */
  proof(): { term_proof?: TermProof } {
    const { scheduler, signer } = this.#options;
    const { term, leadership } = scheduler.leadership.begun;
    if (leadership === undefined) return {};
    this.#proof ??= signTerm({ term, leadership }, { cluster_id: scheduler.cluster.cluster_id, signer });
    return { term_proof: this.#proof };
  }

  /** Why this master takes nobody in, after what the hello proves; undefined: it leads. */
  refusalOf(hello: Hello): Refusal | undefined {
    const { leadership } = this.#options.scheduler;
    const seen = this.#newer(hello);
    if (seen) {
      this.#options.onNewerTerm?.(seen);
      const witness = `node ${hello.node_name} (${hello.node_id}) at ${hello.address}`;
      leadership.end(behindText(leadership.begun, { seen, witness }));
    }
    if (leadership.fault === undefined) return undefined;
    return { code: "not_leading" satisfies PassingRefusal, message: `this master does not lead: ${leadership.fault}` };
  }

  #newer({ cluster_id, last_term: proof }: Hello): TermProof | undefined {
    const { scheduler, signer } = this.#options;
    // Signatures are looked at only where they would matter.
    if (!proof || cluster_id !== scheduler.cluster.cluster_id) return undefined;
    if (!isBehind(scheduler.leadership.begun, proof)) return undefined;
    return isProofOf(signer.publicKey, { cluster_id, proof }) ? proof : undefined;
  }
}
