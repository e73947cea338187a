/**
 * @module Secrets at rest: seals texts with a key that lies in a file of its own (AES-256-GCM). Owns the key file, which is made
 * when the first text is sealed; knows nothing of what the texts are. A copy of the cluster's state without that file tells
 * nothing; whoever can read the data directory as its owner has both.
 */
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { closeSync, fsyncSync, openSync, readFileSync, statSync, writeSync } from "node:fs";

const KEY_BYTES = 32;
/** What GCM is made for (NIST SP 800-38D): random, so no two texts of a cluster share one. */
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

export class SealError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "SealError";
  }
}

export class Sealer {
  readonly #path: string;

  /** `path`: the key file. */
  constructor(path: string) {
    this.#path = path;
  }

  /**
   * `purpose` belongs to the text: sealed for one it can't be opened for another.
   * @throws {SealError} if the key file can't be read or made.
   */
  seal(text: string, purpose: string): string {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv("aes-256-gcm", this.#key({ make: true }), nonce).setAAD(Buffer.from(purpose));
    const body = Buffer.concat([cipher.update(text, "utf8"), cipher.final()]);
    return Buffer.concat([nonce, cipher.getAuthTag(), body]).toString("base64");
  }

  /** @throws {SealError} if the key is missing or another one, or the sealed text is damaged or of another purpose. */
  open(sealed: string, purpose: string): string {
    const bytes = Buffer.from(sealed, "base64");
    const key = this.#key({ make: false });
    try {
      const decipher = createDecipheriv("aes-256-gcm", key, bytes.subarray(0, NONCE_BYTES));
      decipher.setAAD(Buffer.from(purpose)).setAuthTag(bytes.subarray(NONCE_BYTES, NONCE_BYTES + TAG_BYTES));
      return decipher.update(bytes.subarray(NONCE_BYTES + TAG_BYTES), undefined, "utf8") + decipher.final("utf8");
    } catch (error) {
      throw new SealError(`sealed with another key than that in ${this.#path}, or damaged`, { cause: error });
    }
  }

  #key({ make }: { make: boolean }): Buffer {
    const found = this.#read();
    if (found) return found;
    if (!make) throw new SealError(`the key file ${this.#path} is missing: restore it from a backup`);
    const key = randomBytes(KEY_BYTES);
    try {
      const file = openSync(this.#path, "wx", 0o600);
      try {
        writeSync(file, `${key.toString("hex")}\n`);
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
    } catch (error) {
      throw new SealError(`the key file ${this.#path} cannot be written`, { cause: error });
    }
    return key;
  }

  #read(): Buffer | undefined {
    let text: string;
    try {
      if ((statSync(this.#path).mode & 0o077) !== 0) {
        throw new SealError(`the key file ${this.#path} can be read by others: chmod 600 it`);
      }
      text = readFileSync(this.#path, "utf8").trim();
    } catch (error) {
      if (error instanceof SealError) throw error;
      if ((error as { code?: string }).code === "ENOENT") return undefined;
      throw new SealError(`the key file ${this.#path} cannot be read`, { cause: error });
    }
    if (!/^[0-9a-f]{64}$/.test(text)) throw new SealError(`the key file ${this.#path} holds no key of 64 hex digits`);
    return Buffer.from(text, "hex");
  }
}
