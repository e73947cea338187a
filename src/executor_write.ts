/** @module Writing a file that a container mounts, whole or not at all. */
import { open, rename, rm, type FileHandle } from "node:fs/promises";

export type WriteOptions = {
  data: Uint8Array;
  mode: number;
  /** Default: the user and the group of this process. */
  uid?: number;
  gid?: number;
  /** Ends the name of the file beside, which nothing else in the directory may have. */
  suffix: string;
  /** Whether it is to outlive a power cut. */
  sync: boolean;
};

/** Writes beside and renames: who reads sees the old file or the new one, also after a crash. */
export async function writeWhole(path: string, { data, mode, uid, gid, suffix, sync }: WriteOptions): Promise<void> {
  const beside = `${path}${suffix}`;
  await rm(beside, { force: true });
  let file: FileHandle | undefined;
  try {
    file = await open(beside, "wx", 0o600);
    await file.writeFile(data);
    if (uid !== undefined || gid !== undefined)
      await file.chown(uid ?? process.getuid?.() ?? 0, gid ?? process.getgid?.() ?? 0);
    await file.chmod(mode);
    if (sync) await file.sync();
    await rename(beside, path);
  } finally {
    await file?.close();
    await rm(beside, { force: true });
  }
}
