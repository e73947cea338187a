/**
 * @module Images for the lab made from programs that Debian packages: the program, the libraries that it loads, and nothing else.
 * They stand for the official images, which no lab can pull.
 */
import type { LabHost } from "./lab.ts";
import { mustRun } from "./lab_process.ts";

/** Writes the root file system: busybox's, with the program in /bin and its libraries where the loader looks for them. */
const TAR = `
set -eu
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir "$root/bin" "$root/tmp" "$root/etc"
cp -L "$1" "$root/bin/$2"
ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
  cp -L --parents "$library" "$root"
done
tar -C "$root" --owner=0 --group=0 -cf - .`;

/** Puts an image of `program`, which is started by `argv`, into the host's engine. */
export async function importProgram(
  host: LabHost,
  { image, program, argv }: { image: string; program: string; argv: readonly string[] },
): Promise<void> {
  const path = Bun.which(program);
  if (!path) throw new Error(`there is no ${program} on this machine: sh tests/setup.sh installs it`);
  const tar = `${host.dir}/${program}.tar`;
  await mustRun(["sh", "-c", `( ${TAR} ) >"$3"`, "sh", path, program, tar]);
  const engine = ["docker", "-H", `unix://${host.dockerSocket}`];
  await mustRun([...engine, "import", "--change", `CMD ${JSON.stringify(argv)}`, "-", image], { input: { file: tar } });
}
