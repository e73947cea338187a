/**
 * @module The small languages inside of compose's strings: durations, byte sizes, shell words, ports, volumes, devices, image
 * names. Each reader takes a text and answers its meaning or a `Refusal` that says what is wrong; none knows where the text
 * stands.
 *
 * They are written out here because compose's meaning is that of its Go libraries, and no package has it: go-units takes `64m`
 * and `1.5GiB` (npm `bytes` does not), go-shellwords turns `"a\nb"` into a line feed and `"\d"` into `d` (npm `shlex`,
 * `shell-quote` and `string-argv` do not), and go-connections' port ranges have no counterpart.
 */
import * as v from "valibot";

/** Why a value is not taken. `at`: further keys below the value, where only a part of it is wrong. */
export class Refusal {
  constructor(
    readonly message: string,
    readonly at: readonly (string | number)[] = [],
  ) {}
}

/** The text as a message shows it: quoted, and cut where it goes on and on. */
export function show(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

const NANOSECONDS: Readonly<Record<string, number>> = {
  ns: 1,
  us: 1e3,
  µs: 1e3,
  μs: 1e3,
  ms: 1e6,
  s: 1e9,
  m: 60e9,
  h: 3600e9,
  d: 86_400e9,
  w: 604_800e9,
};
/** What Docker's int64 of nanoseconds holds, kept to what a JavaScript number holds exactly: 104 days. */
const MAX_NANOSECONDS = Number.MAX_SAFE_INTEGER;

/** Nanoseconds of a duration such as `1m30s` or `500ms` (Compose Specification: "Specifying durations"; also d and w). */
export function readDuration(text: string): number | Refusal {
  const help = "write a number with its unit, as 90s, 1m30s or 500ms";
  if (/^[-+]?0$/.test(text)) return 0;
  if (text.startsWith("-")) return new Refusal(`is the duration ${show(text)}, which is below 0`);
  const body = text.replace(/^\+/, "");
  let total = 0;
  let used = 0;
  // Sticky: where one part does not follow the other, the rest is not looked at.
  for (const [part, digits = "", unit = ""] of body.matchAll(/([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([^0-9.]+)/gy)) {
    const factor = Object.hasOwn(NANOSECONDS, unit) ? NANOSECONDS[unit] : undefined;
    if (factor === undefined) return new Refusal(`is the duration ${show(text)}, which has no known unit: ${help}`);
    total += Number(digits) * factor;
    used += part.length;
  }
  if (used === 0 || used !== body.length) return new Refusal(`is ${show(text)}, which is no duration: ${help}`);
  if (total > MAX_NANOSECONDS) return new Refusal(`is the duration ${show(text)}, which is above 104 days`);
  return Math.round(total);
}

/** Bytes of a size such as `64m`, `1.5gb`, `512KiB` or `1024`: powers of 1024 in either case (Compose: "byte values"). */
export function readBytes(text: string): number | Refusal {
  const match = /^([0-9]+(?:\.[0-9]*)?(?:[eE][0-9]+)?|\.[0-9]+) ?([kmgtp]?)(i?)(b?)$/i.exec(text);
  const [, digits = "", prefix = "", binary = "", b = ""] = match ?? [];
  if (!match || (binary !== "" && (prefix === "" || b === ""))) {
    return new Refusal(
      `is ${show(text)}, which is no size: write bytes, or a number with b, k, m or g, as 64m or 1.5gb`,
    );
  }
  const bytes = Math.trunc(Number(digits) * 1024 ** " kmgtp".indexOf(prefix.toLowerCase() || " "));
  return Number.isSafeInteger(bytes)
    ? bytes
    : new Refusal(`is the size ${show(text)}, which is more than any machine has`);
}

export type Words = { words: string[]; /** A shell's operator that stands in it as a plain word. */ operator?: string };

/**
 * Splits a command as a shell splits words, runs nothing and replaces nothing: quotes are taken off, and outside of single
 * quotes a backslash makes the next character plain (`\t` and `\n` are tab and line feed, as in compose).
 *
 * Compose drops everything after an unquoted `;`, `&`, `|`, `<` or `>` in silence; here those stay words, and are reported.
 */
export function readWords(text: string): Words | Refusal {
  const words: string[] = [];
  let word: string | undefined;
  let quote: string | undefined;
  let operator: string | undefined;
  for (let index = 0; index < text.length; index++) {
    const char = text[index] ?? "";
    if (char === "\\" && quote !== "'") {
      const next = text[++index];
      if (next === undefined) return new Refusal(`ends with a lone backslash: ${show(text)}`);
      word = (word ?? "") + (next === "t" ? "\t" : next === "n" ? "\n" : next);
    } else if (quote !== undefined) {
      if (char !== quote) word += char;
      else {
        if (quote === "`" || quote === ")") word += char;
        quote = undefined;
      }
    } else if (char === "'" || char === '"') {
      quote = char;
      word ??= "";
    } else if (char === "`" || (char === "(" && word?.endsWith("$"))) {
      quote = char === "`" ? char : ")";
      word = (word ?? "") + char;
    } else if (char === "(" || char === ")") {
      return new Refusal(
        `has an unquoted ${char}, which compose refuses: quote it, or write the command as a list of words`,
      );
    } else if (/[ \t\r\n]/.test(char)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else {
      if (/[;&|<>]/.test(char)) operator ??= char;
      word = (word ?? "") + char;
    }
  }
  if (quote !== undefined) {
    return new Refusal(`cannot be split into words: ${quote === ")" ? "$(" : quote} is not closed in ${show(text)}`);
  }
  if (word !== undefined) words.push(word);
  return { words, ...(operator === undefined ? {} : { operator }) };
}

export type Protocol = "tcp" | "udp" | "sctp";
export type PortText = {
  container: { first: number; last: number };
  protocol: Protocol;
  host_ip: string;
  host?: { first: number; last: number };
  /** Where it is open: on the replica's node, or on every one. The short form does not say. */
  mode?: "host" | "ingress";
};

/** `[[host_ip:]host:]container[/protocol]`, with ranges (Compose: "ports", short syntax). */
export function readPort(text: string): PortText | Refusal {
  const [address, protocolText = "tcp", ...more] = text.split("/");
  const parts = (address ?? "").split(":");
  const containerText = parts.pop() ?? "";
  const hostText = parts.pop();
  const ip = parts.join(":").replace(/^\[(.*)\]$/, "$1");
  const protocol = readProtocol(protocolText);
  if (protocol instanceof Refusal) return protocol;
  if (more.length > 0) return new Refusal(`is ${show(text)}: a port has at most one /protocol`);
  if (containerText === "") return new Refusal(`is ${show(text)}, which names no container port`);
  if (ip !== "" && !isIp(ip))
    return new Refusal(`is ${show(text)}: ${show(ip)} is no IP address; write one, as 127.0.0.1:8080:80`);
  const container = readPortRange(containerText, { least: 1 });
  if (container instanceof Refusal) return container;
  if (hostText === undefined || hostText === "") return { container, protocol, host_ip: ip };
  const host = readPortRange(hostText, { least: 0 });
  if (host instanceof Refusal) return host;
  const [wide, narrow] = [container.last - container.first, host.last - host.first];
  if (wide !== 0 && wide !== narrow) {
    return new Refusal(
      `is ${show(text)}: ${narrow + 1} host ports for ${wide + 1} container ports; make both ranges equally long`,
    );
  }
  return host.last === 0 ? { container, protocol, host_ip: ip } : { container, protocol, host_ip: ip, host };
}

export function readProtocol(text: string): Protocol | Refusal {
  const name = text.toLowerCase() || "tcp";
  if (name === "tcp" || name === "udp" || name === "sctp") return name;
  return new Refusal(`has the protocol ${show(text)}; allowed are tcp, udp and sctp`);
}

/** `80` or `8000-8010`. */
export function readPortRange(text: string, { least }: { least: 0 | 1 }): { first: number; last: number } | Refusal {
  const match = /^([0-9]{1,9})(?:-([0-9]{1,9}))?$/.exec(text);
  if (!match)
    return new Refusal(`has the port ${show(text)}, which is no number or range; write one, as 8080 or 8000-8010`);
  const first = Number(match[1]);
  const last = match[2] === undefined ? first : Number(match[2]);
  if (first < least || last > 65_535) return new Refusal(`has the port ${show(text)}; ports go from 1 to 65535`);
  if (last < first) return new Refusal(`has the port range ${show(text)}, which ends before it starts`);
  return { first, last };
}

export type VolumeText = {
  /** Empty: an anonymous volume. */
  source: string;
  target: string;
  read_only: boolean;
  propagation?: string;
  selinux?: "z" | "Z";
  nocopy: boolean;
  /** Options that change nothing, here or in compose. */
  ignored: string[];
};

export const PROPAGATIONS = ["private", "rprivate", "shared", "rshared", "slave", "rslave"] as const;

/** `[source:]target[:options]` (Compose: "volumes", short syntax). */
export function readVolume(text: string): VolumeText | Refusal {
  if (text === "") return new Refusal("is empty: write a target path, or source:target");
  if (/^[a-zA-Z]:[\\/]/.test(text)) return new Refusal(`is ${show(text)}, a path of Windows; nodes run Linux`);
  const parts = text.split(":");
  if (parts.length > 3)
    return new Refusal(`is ${show(text)}, which has too many colons: write source:target:options, or the long form`);
  if (parts.includes("")) return new Refusal(`is ${show(text)}, which has an empty part between its colons`);
  const volume: VolumeText = { source: "", target: text, read_only: false, nocopy: false, ignored: [] };
  if (parts.length === 1) return volume;
  [volume.source = "", volume.target = ""] = parts;
  for (const option of (parts[2] ?? "rw").split(",")) {
    if (option === "ro") volume.read_only = true;
    else if (option === "rw") volume.read_only = false;
    else if (option === "nocopy") volume.nocopy = true;
    else if (option === "z" || option === "Z") volume.selinux = option;
    else if (PROPAGATIONS.some((name) => name === option)) volume.propagation = option;
    else volume.ignored.push(option);
  }
  return volume;
}

export type DeviceText = { source: string; target: string; permissions: string };

/** `source[:target[:permissions]]` (Compose: "devices"). */
export function readDevice(text: string): DeviceText | Refusal {
  const [source = "", target, permissions = "rwm", ...more] = text.split(":");
  if (source === "") return new Refusal("is empty: write the device's path, as /dev/ttyUSB0");
  if (more.length > 0)
    return new Refusal(`is ${show(text)}, which has too many colons: write source:target:permissions`);
  if (!/^[rwm]{1,3}$/.test(permissions)) {
    return new Refusal(`is ${show(text)}: the permissions ${show(permissions)} are none of r, w and m`);
  }
  return { source, target: target || source, permissions };
}

const COMPONENT = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*";
const HOST =
  "(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?";
const IMAGE = new RegExp(
  `^(?:${HOST}/)?${COMPONENT}(?:/${COMPONENT})*(?::[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?(?:@[a-zA-Z][a-zA-Z0-9]*(?:[-_+.][a-zA-Z][a-zA-Z0-9]*)*:[0-9a-fA-F]{32,})?$`,
);

/** An image's name, as the reference grammar of distribution has it; returned as it is. */
export function readImage(text: string): string | Refusal {
  if (text === "") return new Refusal("is empty: name an image, as busybox:1.36");
  // The longest that registries take; also keeps the expression below cheap.
  if (text.length > 512) return new Refusal("is over 512 characters long, which is no image name");
  if (IMAGE.test(text)) return text;
  const hint = IMAGE.test(text.toLowerCase())
    ? "; repository names are lower case"
    : ", as registry.example/team/app:1.0";
  return new Refusal(`is ${show(text)}, which is no image name${hint}`);
}

const ip = v.pipe(v.string(), v.ip());

export function isIp(text: string): boolean {
  return v.is(ip, text);
}
