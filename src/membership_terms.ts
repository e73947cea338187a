/**
 * @module The welcome that a node gets, and who gets none: whether this master still leads. Owns what a master shows and is shown of
 * terms: the proof of its own one, for each welcome, and a newer one in a node's hello.
 */
import { isProofOf, signTerm, type Signer, signWelcome } from "./cluster_key.ts";
import { peersOf } from "./membership_peers.ts";
import type { Refusal } from "./membership_refusals.ts";
import type { Hello, NodeRecord, PassingRefusal, Peer, Welcome } from "./model.ts";
import { chosenProtocol } from "./model_protocol.ts";
import { behindText, isBehind, type TermProof } from "./model_term.ts";
import type { Scheduler } from "./scheduler.ts";

export type WelcomeOptions = {
  /** This master as nodes reach it. Its own record may not be there yet, or be of a former address. */
  self: Peer;
  /** The cluster's key: welcomes are signed with it. */
  signer: Signer;
  /** How often nodes send a heartbeat, and after how long without one a node is down. Milliseconds. */
  heartbeatIntervalMs: number;
  nodeTimeoutMs: number;
  /** A node has proof of a leadership that this one is behind: what is kept of it keeps the next start from leading, too. */
  onNewerTerm?: (proof: TermProof) => void;
};

export type TermOptions = WelcomeOptions & {
  scheduler: Pick<Scheduler, "cluster" | "leadership" | "state">;
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

  /** `record`: the node that said hello; `token`: what it shows in internal calls. */
  welcome(hello: Hello, { record, token }: { record: NodeRecord; token: string | undefined }): Welcome {
    const { scheduler, self, signer, heartbeatIntervalMs, nodeTimeoutMs } = this.#options;
    const welcome = {
      type: "welcome" as const,
      cluster_id: scheduler.cluster.cluster_id,
      node_id: record.node_id,
      node_name: record.node_name,
      term: scheduler.leadership.begun.term,
      master: self,
      peers: peersOf(scheduler.state),
      heartbeat_interval_ms: heartbeatIntervalMs,
      node_timeout_ms: nodeTimeoutMs,
      ...(token !== undefined && { token }),
      ...chosenProtocol(hello),
      ...this.#ownProof(),
    };
    return signWelcome(welcome, { hello, signer });
  }

  #ownProof(): { term_proof?: TermProof } {
    const { scheduler, signer } = this.#options;
    const { term, leadership } = scheduler.leadership.begun;
    if (leadership === undefined) return {};
    if (this.#proof?.term !== term)
      this.#proof = signTerm({ term, leadership }, { cluster_id: scheduler.cluster.cluster_id, signer });
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
