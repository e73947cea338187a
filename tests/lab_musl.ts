/**
 * @module An image that stands for Alpine's in the lab, which can pull none: Debian's musl, and nothing else, for an executable
 * that is linked with musl and libstdc++. Debian has no libstdc++ for musl; its own, made for glibc, does with the few functions that
 * glibc has beyond musl, which are added here.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { LabHost } from "./lab.ts";
import { mustRun } from "./lab_process.ts";

/**
 * What Debian's libstdc++ and libgcc_s want of glibc. No exception of C++ finds its handler with this, and what a thread leaves behind
 * is not cleaned up: Bun does without both.
 */
const BEYOND_MUSL = `
typedef unsigned long size_t;
long getrandom(void *, size_t, unsigned);
size_t strftime_l(char *, size_t, const char *, const void *, void *);
unsigned arc4random(void) { unsigned number; getrandom(&number, sizeof number, 0); return number; }
size_t __strftime_l(char *to, size_t size, const char *format, const void *time, void *locale) {
  return strftime_l(to, size, format, time, locale);
}
int __cxa_thread_atexit_impl(void (*destroy)(void *), void *object, void *library) { return 0; }
int _dl_find_object(void *address, void *result) { return -1; }
char __libc_single_threaded = 0;
int __cpu_indicator_init(void) { return 0; }
struct { unsigned vendor, type, subtype, features; } __cpu_model = { 1 };
`;

/** Writes the root file system. libstdc++ asks for glibc's loader by its name: what it lacks stands under that. */
const TAR = `
set -eu
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir "$root/bin" "$root/etc" "$root/lib" "$root/tmp" "$root/var"
cp "$1" "$root/bin/cacophony"
cp -L /lib/ld-musl-x86_64.so.1 "$root/lib/"
ln -s ld-musl-x86_64.so.1 "$root/lib/libc.musl-x86_64.so.1"
echo /lib >"$root/etc/ld-musl-x86_64.path"
for library in libstdc++.so.6 libgcc_s.so.1; do
  cp -L "$(ldconfig -p | sed -n "s|^\\s*$library (libc6,x86-64) => ||p" | head -n 1)" "$root/lib/$library"
done
tcc -shared -nostdlib -o "$root/lib/ld-linux-x86-64.so.2" "$2"
tar -C "$root" --owner=0 --group=0 -cf - .`;

/** Puts an image with the executable, which is its entrypoint, into the host's engine. */
export async function importMusl(
  host: LabHost,
  { image, executable }: { image: string; executable: string },
): Promise<void> {
  const source = join(host.dir, "beyond_musl.c");
  const tar = join(host.dir, "musl.tar");
  writeFileSync(source, BEYOND_MUSL);
  await mustRun(["sh", "-c", `( ${TAR} ) >"$3"`, "sh", executable, source, tar]);
  const engine = ["docker", "-H", `unix://${host.dockerSocket}`];
  const change = ["--change", 'ENTRYPOINT ["/bin/cacophony"]'];
  await mustRun([...engine, "import", ...change, "-", image], { input: { file: tar } });
}
