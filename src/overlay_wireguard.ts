/** @module A node's WireGuard keys, kept in its data directory. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeDurably } from "./data_dir.ts";

/**
 * This node's WireGuard keys as `wg` writes them, base64 of 32 bytes; made on first use. The file holds the private one, as
 * PKCS #8.
 */
export function wireguardKeys(dataDir: string): { privateKey: string; publicKey: string } {
  const path = join(dataDir, "wireguard.key");
  if (!existsSync(path)) {
    const { privateKey } = generateKeyPairSync("x25519");
    writeDurably(path, String(privateKey.export({ format: "pem", type: "pkcs8" })));
  }
  const key = createPrivateKey(readFileSync(path));
  return { privateKey: rawKey(key), publicKey: rawKey(createPublicKey(key)) };
}

/** The 32 bytes of an X25519 key are the last ones of its DER form (RFC 8410). */
function rawKey(key: KeyObject): string {
  const type = key.type === "private" ? "pkcs8" : "spki";
  const der = key.export({ format: "der", type }) as Buffer;
  return der.subarray(-32).toString("base64");
}
