/**
 * @module A hostile container's hands: exchanges two paths without pause (renameat2, RENAME_EXCHANGE), so that a directory and a symbolic
 * link are in each other's place from one moment to the next. Run as `bun tests/swap.ts A B`; it says when it has begun, and runs until it is killed.
 */
import { dlopen, FFIType, ptr } from "bun:ffi";

const AT_FDCWD = -100;
const RENAME_EXCHANGE = 2;
/** A test that was killed leaves it behind. */
const MAX_MS = 120_000;

const { symbols } = dlopen("libc.so.6", {
  renameat2: { args: [FFIType.i32, FFIType.ptr, FFIType.i32, FFIType.ptr, FFIType.u32], returns: FFIType.i32 },
});
const [first, second] = process.argv.slice(2, 4).map((path) => Buffer.from(`${path}\0`));
if (!first || !second) throw new Error("which two paths?");
console.log("swapping");
// What is missing for a while is exchanged once it is there again.
for (const end = Date.now() + MAX_MS; Date.now() < end;)
  for (let count = 0; count < 1_000; count++)
    symbols.renameat2(AT_FDCWD, ptr(first), AT_FDCWD, ptr(second), RENAME_EXCHANGE);
