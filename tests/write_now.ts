/** @module Writes what processes write in the background at once: in virtual time no file is written at a time of its own. */
import { writePrivately } from "../src/data_dir.ts";

export async function writeNow(path: string, text: string): Promise<void> {
  writePrivately(path, text);
}
