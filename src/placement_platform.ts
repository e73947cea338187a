/**
 * @module Platforms, as compose's `platform` names them (`linux/arm64`), and which machine runs images of which. Pure. Spelling
 * and defaults are those of containerd's platform specifiers, which Docker takes: `<os>|<arch>|<os>/<arch>[/<variant>]`.
 *
 * An amd64 machine runs 386, an arm64 machine arm, and an older variant of its own. Emulation, which a machine may have, is not
 * looked for: what Docker says of itself does not tell.
 */

/** Empty members are not said, and not known of a machine. */
export type Platform = { os: string; arch: string; variant: string };

const SYSTEMS = new Set(["linux", "windows", "darwin", "freebsd"]);
/** Other names for Go's, each with the variant that it stands for. */
const ARCHITECTURES: Readonly<Record<string, readonly [arch: string, variant?: string]>> = {
  x86_64: ["amd64"],
  "x86-64": ["amd64"],
  aarch64: ["arm64"],
  armhf: ["arm", "v7"],
  armv7l: ["arm", "v7"],
  armel: ["arm", "v6"],
  i386: ["386"],
  i686: ["386"],
};
const ALSO_RUNS: Readonly<Record<string, string>> = { amd64: "386", arm64: "arm" };
/** What an architecture is where no variant is said. */
const PLAIN: Readonly<Record<string, string>> = { amd64: "v1", arm64: "v8", arm: "v7" };

/** Reads a platform; undefined if the text is none. */
export function readPlatform(text: string): Platform | undefined {
  const parts = text.toLowerCase().split("/");
  if (parts.length > 3 || parts.some((part) => !/^[a-z0-9][a-z0-9_.-]*$/.test(part))) return undefined;
  const [first = "", second, third = ""] = parts;
  if (second === undefined) return SYSTEMS.has(first) ? platformOf(first, "") : platformOf("", first);
  return platformOf(first, second, third);
}

/** A platform out of its parts, by Go's names. */
export function platformOf(os: string, arch: string, variant = ""): Platform {
  const [name, meant = ""] = ARCHITECTURES[arch.toLowerCase()] ?? [arch.toLowerCase()];
  const said = variant.toLowerCase();
  return { os: os.toLowerCase(), arch: name, variant: /^\d/.test(said) ? `v${said}` : said || meant };
}

/** Whether `machine`, or a request that names one, takes an image of `image`. */
export function canRun(machine: Platform, image: Platform): boolean {
  if (machine.os !== "" && image.os !== "" && machine.os !== image.os) return false;
  if (machine.arch === "" || image.arch === "") return true;
  if (machine.arch !== image.arch) return ALSO_RUNS[machine.arch] === image.arch;
  const [has, wants] = [machine, image].map(({ variant, arch }) => Number((variant || (PLAIN[arch] ?? "")).slice(1)));
  return machine.variant === "" || !(Number(wants) > Number(has));
}

/** `linux/arm64`, as people write it. */
export function writePlatform({ os, arch, variant }: Platform): string {
  return [os, arch, variant].filter((part) => part !== "").join("/");
}
