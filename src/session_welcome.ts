/**
 * @module Whether a node takes whoever welcomes it for the master of its cluster. A node keeps the public part of the cluster's
 * key from the first signed welcome on (its pin), and then follows only who signs with that key. A node without a pin (on its
 * first join, or with a master of an earlier version until now) trusts who welcomes it, as somebody does who answers yes to
 * SSH's first question.
 */
import { isProofOf, isSignedBy } from "./cluster_key.ts";
import type { Hello, Peer, Welcome } from "./model.ts";
import { commonProtocol, PROTOCOLS, rangeText } from "./model_protocol.ts";
import { isBehind, MAX_TERM_STEP, SET_BACK_HINT } from "./model_term.ts";

/** What a node believes already. */
export type Trust = {
  /** The cluster's key that it has pinned. */
  clusterKey: string | undefined;
  /** The newest term that it has seen, and which of those that began it that was, where it has proof of that. */
  seenTerm: number;
  seenLeadership?: string | undefined;
};

export type WelcomeFacts = {
  /** What the welcome answers. */
  hello: Hello;
  trust: Trust;
  /** The address that the node dialled. */
  dialled: string;
};

/** Why a welcome is not obeyed. `master`: where the cluster's master is, as it says itself with the key that is pinned. */
export type WelcomeFault = { reason: string; master?: Peer };

/** Undefined: the node goes into session. */
export function faultOf(welcome: Welcome, { hello, trust, dialled }: WelcomeFacts): WelcomeFault | undefined {
  const { cluster_id, node_id, master } = welcome;
  const isMember = hello.cluster_id !== undefined;
  if (isMember && cluster_id !== hello.cluster_id)
    return { reason: `${dialled} is of cluster ${cluster_id}, this node of ${hello.cluster_id}` };
  if (isMember && node_id !== hello.node_id)
    return { reason: `${dialled} welcomes node ${node_id}, this is ${hello.node_id}` };
  const reason = signatureFault(welcome, { hello, trust, dialled });
  if (reason !== undefined) return { reason };
  // Who passes on what the master signs is found out here: the master signs its own address only.
  if (welcome.cluster_key !== undefined && master.address !== dialled)
    return {
      reason: `${dialled} passes on what the master at ${master.address} says`,
      ...(trust.clusterKey !== undefined && { master }),
    };
  const late = termFault(welcome, { trust, dialled, isMember });
  if (late !== undefined) return { reason: late };
  const spoken = protocolChoiceFault(welcome.protocol, dialled);
  return spoken === undefined ? undefined : { reason: spoken };
}

function termFault(
  { term, term_proof: proof, cluster_id, cluster_key: key }: Welcome,
  { trust: { seenTerm, seenLeadership }, dialled, isMember }: { trust: Trust; dialled: string; isMember: boolean },
): string | undefined {
  // Who is new has seen none, and believes everything.
  if (isMember && term > seenTerm + MAX_TERM_STEP)
    return `${dialled} is at term ${term}, which is too far from the newest known one, ${seenTerm}`;
  if (term < seenTerm)
    return (
      `${dialled} is at term ${term}, older than term ${seenTerm} that this node has seen: its state was set back, or another ` +
      `master leads; there, ${SET_BACK_HINT}`
    );
  if (!proof) return undefined;
  if (proof.term !== term || key === undefined || !isProofOf(key, { cluster_id, proof }))
    return `${dialled} sent a proof of its term that is not right: it is a stranger`;
  if (isBehind(proof, { term: seenTerm, leadership: seenLeadership }))
    return (
      `${dialled} has begun term ${term}, which another master has begun, too: its state was set back, or another master leads; ` +
      `there, ${SET_BACK_HINT}`
    );
  return undefined;
}

/** A session in a version that this node does not understand. */
function protocolChoiceFault(protocol: number | undefined, dialled: string): string | undefined {
  if (protocol === undefined || commonProtocol({ oldest: protocol, newest: protocol }, PROTOCOLS) !== undefined)
    return undefined;
  return (
    `${dialled} chose ${rangeText({ oldest: protocol, newest: protocol })} of the protocol, this node speaks ` +
    `${rangeText(PROTOCOLS)}: run the same version of cacophony on both`
  );
}

function signatureFault(
  welcome: Welcome,
  { hello, trust: { clusterKey: pin }, dialled }: WelcomeFacts,
): string | undefined {
  const { cluster_key: key, signature } = welcome;
  if (key === undefined && signature === undefined)
    return pin === undefined
      ? undefined
      : `${dialled} does not sign its welcome, so it is a stranger, or a master that was set back to an earlier version: ` +
          `in that case set this node back, too, or stop it, remove cluster_key from its node.json, and start it again`;
  if (pin !== undefined && key !== pin)
    return (
      `${dialled} has another key (${key}) than this node's cluster (${pin}), so it is a stranger, or a master that lost its ` +
      `cluster.key: in that case restore that file there, or stop this node, remove cluster_key from its node.json, and start it again`
    );
  return key !== undefined && isSignedBy(key, { welcome, hello })
    ? undefined
    : `${dialled} sent a welcome whose signature is not right: it is a stranger`;
}
