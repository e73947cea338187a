/**
 * @module Secrets at rest: seals texts with a key that lies in a file of its own (AES-256-GCM). Owns the key file, which is made
 * when the first text is sealed, and never where something was sealed before: that would hide that the key is lost. Knows
 * nothing of what the texts are. A copy of the cluster's state without that file tells nothing; whoever can read the data
 * directory as its owner has both, unless the operator keeps the file elsewhere.
 */
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { writeDurably } from "./data_dir.ts";

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

/** `isFirst`: nothing was sealed before, so that a missing key is made. */
type Use = { isFirst: boolean };

export class Sealer {
  readonly #path: string;
  readonly #isGiven: boolean;

  /** `path`: the key file. `isGiven`: the operator keeps it, so that it is never made here. */
  constructor(path: string, { isGiven = false }: { isGiven?: boolean } = {}) {
    this.#path = path;
    this.#isGiven = isGiven;
  }

  /**
   * Changes nothing.
   * @throws {SealError} if a text could not be sealed now.
   */
  check({ isFirst }: Use): void {
    if (!this.#read() && !this.#mayMake({ isFirst })) throw this.#missing();
  }

  /**
   * `purpose` belongs to the text: sealed for one it can't be opened for another.
   * @throws {SealError} if the key file can't be read or made, or is missing.
   */
  seal(text: string, { purpose, isFirst }: Use & { purpose: string }): string {
    const nonce = randomBytes(NONCE_BYTES);
    const key = this.#read() ?? this.#make({ isFirst });
    const cipher = createCipheriv("aes-256-gcm", key, nonce).setAAD(Buffer.from(purpose));
    const body = Buffer.concat([cipher.update(text, "utf8"), cipher.final()]);
    return Buffer.concat([nonce, cipher.getAuthTag(), body]).toString("base64");
  }

  /** @throws {SealError} if the key is missing or another one, or the sealed text is damaged or of another purpose. */
  open(sealed: string, purpose: string): string {
    const bytes = Buffer.from(sealed, "base64");
    const key = this.#read();
    if (!key) throw this.#missing();
    try {
      const decipher = createDecipheriv("aes-256-gcm", key, bytes.subarray(0, NONCE_BYTES));
      decipher.setAAD(Buffer.from(purpose)).setAuthTag(bytes.subarray(NONCE_BYTES, NONCE_BYTES + TAG_BYTES));
      return decipher.update(bytes.subarray(NONCE_BYTES + TAG_BYTES), undefined, "utf8") + decipher.final("utf8");
    } catch (error) {
      throw new SealError(`sealed with another key than that in ${this.#path}, or damaged`, { cause: error });
    }
  }

  #mayMake({ isFirst }: Use): boolean {
    return isFirst && !this.#isGiven;
  }

  #missing(): SealError {
    return new SealError(
      `the key file ${this.#path} is missing: restore it from a backup, or make another (openssl rand -hex 32 > ${this.#path}; chmod 600 ${this.#path}) and send all secrets and logins again`,
    );
  }

  /** Whole or not at all: half a key would look like a damaged one after a crash. */
  #make(use: Use): Buffer {
    if (!this.#mayMake(use)) throw this.#missing();
    const key = randomBytes(KEY_BYTES);
    try {
      writeDurably(this.#path, `${key.toString("hex")}\n`);
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
    if (!/^[0-9a-f]{64}$/i.test(text)) {
      throw new SealError(
        `the key file ${this.#path} holds no key of 64 hex digits: write one with openssl rand -hex 32`,
      );
    }
    return Buffer.from(text, "hex");
  }
}
