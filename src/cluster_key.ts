/**
 * @module The cluster's key (Ed25519), which proves to a node that whoever welcomes it is the master of its cluster. Owns the
 * key file in the master's data directory, and what exactly a welcome signs. Nodes keep the public part (`data_dir.ts`) and
 * decide about a welcome in `session_welcome.ts`. The public part is written as its 32 bytes in base64url, as a JWK has them
 * (RFC 8037).
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { writeDurably } from "./data_dir.ts";
import { type Hello, StartError, type Welcome } from "./model.ts";
import type { TermProof } from "./model_term.ts";

/** What a master signs its welcomes with. */
export interface Signer {
  /** What nodes pin. */
  readonly publicKey: string;
  /** Signature of the text in base64. */
  sign(text: string): string;
}

/** Begins every text that the cluster's key signs for a welcome, so that no signature can be taken for one of another purpose. */
const PURPOSE = "cacophony welcome 1";

/** And every text that it signs to prove a term. */
const TERM_PURPOSE = "cacophony term 1";

/** What to do about a key file that is not as it was. */
const RESTORE =
  "restore it from a backup, since nodes obey no master with another key; README says what to do without a backup";

type Unsigned = Omit<Welcome, "cluster_key" | "signature">;

/**
 * The text that a welcome signs. The nonce makes it an answer to this one hello; the instance and the node's id say for whom it
 * is; the master's address lets the node notice that somebody else passed it on. A JSON array has one reading only.
 */
function signedText(
  { cluster_id, node_id, term, master, token }: Unsigned,
  { nonce, instance }: Pick<Hello, "nonce" | "instance">,
): string {
  const claims = [cluster_id, nonce ?? null, instance, node_id, term, master.node_id, master.address, token ?? null];
  return JSON.stringify([PURPOSE, ...claims]);
}

/** The welcome with its signature, as an answer to `hello`. A node that sends no nonce is older and does not look for one. */
export function signWelcome(welcome: Unsigned, { hello, signer }: { hello: Hello; signer: Signer }): Welcome {
  if (hello.nonce === undefined) return welcome;
  return { ...welcome, cluster_key: signer.publicKey, signature: signer.sign(signedText(welcome, hello)) };
}

/** Whether the holder of `publicKey` signed this welcome for this hello. */
export function isSignedBy(publicKey: string, { welcome, hello }: { welcome: Welcome; hello: Hello }): boolean {
  if (welcome.signature === undefined || hello.nonce === undefined) return false;
  return isSigned(signedText(welcome, hello), { publicKey, signature: welcome.signature });
}

type Begun = Omit<TermProof, "signature">;

/** The proof of a term says nothing of a node or a moment: it is the same for all nodes, and holds for good. */
function termText({ term, leadership }: Begun, cluster_id: string): string {
  return JSON.stringify([TERM_PURPOSE, cluster_id, term, leadership]);
}

export function signTerm(begun: Begun, { cluster_id, signer }: { cluster_id: string; signer: Signer }): TermProof {
  return { ...begun, signature: signer.sign(termText(begun, cluster_id)) };
}

/** Whether the holder of `publicKey` signed this proof of a term of the cluster. */
export function isProofOf(publicKey: string, { cluster_id, proof }: { cluster_id: string; proof: TermProof }): boolean {
  return isSigned(termText(proof, cluster_id), { publicKey, signature: proof.signature });
}

function isSigned(text: string, { publicKey, signature }: { publicKey: string; signature: string }): boolean {
  try {
    const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: publicKey }, format: "jwk" });
    return verify(null, Buffer.from(text), key, Buffer.from(signature, "base64"));
  } catch {
    // A text that is not a public key has signed nothing.
    return false;
  }
}

/** A key in memory. */
export function signerOf(privateKey: KeyObject): Signer {
  const { x } = createPublicKey(privateKey).export({ format: "jwk" });
  if (x === undefined) throw new Error("an Ed25519 key has a public part");
  return {
    publicKey: x,
    sign: (text) => sign(null, Buffer.from(text), privateKey).toString("base64"),
  };
}

/** The key in a master's key file. */
export class ClusterKey implements Signer {
  readonly #path: string;
  #signer: Signer | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  get publicKey(): string {
    return this.#opened().publicKey;
  }

  sign(text: string): string {
    return this.#opened().sign(text);
  }

  /**
   * Reads the key; returns its public part. `recorded`: that part in the cluster's state; where there is none, a missing key is
   * made. It is durable before anything is signed with it, and before its public part is recorded.
   * @throws StartError when it can't be read or made, or is not the one that nodes have pinned.
   */
  open(recorded: string | undefined): string {
    const found = this.#read();
    if (!found && recorded !== undefined)
      throw new StartError(`the cluster's key ${this.#path} is missing: ${RESTORE}`);
    const signer = signerOf(found ?? this.#make());
    if (recorded !== undefined && signer.publicKey !== recorded)
      throw new StartError(
        `the cluster's key in ${this.#path} is another one (${signer.publicKey}) than that of this cluster (${recorded}): ${RESTORE}`,
      );
    this.#signer = signer;
    return signer.publicKey;
  }

  #opened(): Signer {
    if (!this.#signer) throw new Error("the cluster's key was not opened yet");
    return this.#signer;
  }

  #make(): KeyObject {
    const { privateKey } = generateKeyPairSync("ed25519");
    try {
      writeDurably(this.#path, String(privateKey.export({ type: "pkcs8", format: "pem" })));
    } catch (error) {
      throw new StartError(`the cluster's key ${this.#path} cannot be written: make room, or see to the directory`, {
        cause: error,
      });
    }
    return privateKey;
  }

  #read(): KeyObject | undefined {
    let pem: string;
    try {
      if ((statSync(this.#path).mode & 0o077) !== 0)
        throw new StartError(`the cluster's key ${this.#path} can be read by others: chmod 600 it`);
      pem = readFileSync(this.#path, "utf8");
    } catch (error) {
      if (error instanceof StartError) throw error;
      if ((error as { code?: string }).code === "ENOENT") return undefined;
      throw new StartError(`the cluster's key ${this.#path} cannot be read`, { cause: error });
    }
    try {
      const key = createPrivateKey(pem);
      if (key.asymmetricKeyType === "ed25519") return key;
    } catch {
      // The same answer as for a key of another kind.
    }
    throw new StartError(`${this.#path} does not hold an Ed25519 key in PEM: ${RESTORE}`);
  }
}
