/**
 * @module No text from outside makes a reader slow: every regular expression of `src`, and every exported parser, takes time that
 * grows about linearly with its input. What a hostile document costs as a whole is in `api_reading.test.ts`.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import * as v from "valibot";
import { tidyTail } from "../src/converge_ends.ts";
import { apiError, EngineError, pullError } from "../src/docker_errors.ts";
import { logLines } from "../src/docker_logs.ts";
import { inWords } from "../src/executor_words.ts";
import { readDotenv, readRawLines } from "../src/job_dotenv.ts";
import { cleanPath, projectPath } from "../src/job_files.ts";
import { constraint } from "../src/job_forms.ts";
import {
  isIp,
  readBytes,
  readDevice,
  readDuration,
  readImage,
  readPort,
  readPortRange,
  readProtocol,
  readVolume,
  readWords,
} from "../src/job_grammar.ts";
import { registryHost, registryOf } from "../src/job_images.ts";
import { replaceVariables } from "../src/job_interpolate.ts";
import { SERVICE_KEYS } from "../src/job_keys.ts";
import { resolvePlain, resolveTagged } from "../src/job_scalars.ts";
import type { Table } from "../src/job_schema.ts";
import { parseJob } from "../src/job_spec.ts";
import { nearest } from "../src/nearest.ts";
import { parseWireguard } from "../src/overlay_kernel_observe.ts";
import { parseTables } from "../src/overlay_plan_firewall.ts";
import { readPlatform } from "../src/placement_platform.ts";
import { parseGpu, parseMeminfo, parseRoutes, parseSocketCounts, parseSockets, parseStat } from "../src/resources.ts";
import { parseRange } from "../src/subnet.ts";
import { between, withoutTrailing } from "../src/text.ts";
import { hostileShapes, hostileText, slowShape, timeOf, wordsOf } from "./hostile_text.ts";
import { regexLiterals } from "./regex_literals.ts";

const SRC = join(import.meta.dir, "..", "src");
const sources = readdirSync(SRC)
  .filter((file) => file.endsWith(".ts"))
  .map((file) => ({ file, text: readFileSync(join(SRC, file), "utf8") }));

describe("point 6: regular expressions", () => {
  test.each(sources.filter(({ text }) => regexLiterals(text).length > 0).map(({ file, text }) => [file, text]))(
    "of %s take linear time",
    (file, text) => {
      for (const { line, source, flags } of regexLiterals(text)) {
        const regex = new RegExp(source, flags.includes("g") ? flags : `${flags}g`);
        const slow = slowShape((input) => input.replace(regex, ""), hostileShapes(wordsOf(source)));
        expect(slow, `src/${file}:${line} /${source}/${flags}`).toBeUndefined();
      }
    },
  );
});

describe("point 6: what is made of text at run time", () => {
  test("is four regular expressions, which are looked at here", () => {
    // The name of a host is at most 253 characters long when it is tried, and an image's 512; the other two read a table of the
    // kernel line by line.
    const made = sources.flatMap(({ file, text }) => text.match(/new RegExp\(/g)?.map(() => file) ?? []);
    expect(made.toSorted()).toEqual(["api_hosts.ts", "job_grammar.ts", "overlay_sockets.ts", "resources.ts"]);
  });
});

const unset = () => undefined;
const named = (prefix: string, read: (text: string) => unknown) => (text: string) => read(`${prefix}${text}`);
const error = (text: string) => new EngineError("other", text);

/** Every reader of text that is exported, the words that it looks for beside it. */
const READERS: [name: string, read: (text: string) => unknown, words?: string[]][] = [
  ["readDotenv", (text) => readDotenv(text, unset), ["export ", "A=", 'A="', "A='", "A: "]],
  ["readDotenv of a value", named("A=", (text) => readDotenv(text, unset)), [" #", "$A"]],
  ["readDotenv of many lines", (text) => readDotenv(text.replaceAll(" ", "A=b\n"), unset), ["\nA=${A}"]],
  ["readRawLines", (text) => readRawLines(text, unset), ["A=", "#"]],
  ["readDuration", readDuration, ["1h", "1.5s"]],
  ["readBytes", readBytes, ["1e", "kib"]],
  ["readWords", readWords, ["$(", "\\("]],
  ["readPort", readPort, ["80:80", "[::1]:"]],
  ["readProtocol", readProtocol],
  ["readPortRange", (text) => readPortRange(text, { least: 0 }), ["8000-"]],
  ["readVolume", readVolume, ["a:/b:", "ro,"]],
  ["readDevice", readDevice, ["/dev/a:"]],
  ["readImage", readImage, ["host:5000/", "@sha256:", "a/a"]],
  ["isIp", isIp, ["255.", "::", "fe80:"]],
  ["constraint", (text) => v.safeParse(constraint, text), ["node.labels.", "==", "!="]],
  ["replaceVariables", (text) => replaceVariables(text, () => "value"), ["${A:-", "${A:?", "}"]],
  ["cleanPath", cleanPath, ["../", "./"]],
  ["projectPath", projectPath, ["../", "./"]],
  ["resolvePlain", resolvePlain, ["0x", "0o", "2024-01-01 ", "1e", "1_"]],
  ["resolveTagged", (text) => resolveTagged(text, "binary"), ["==", "QUJD"]],
  ["readPlatform", readPlatform, ["linux/", "arm/v7"]],
  ["registryOf", registryOf, ["docker.io/", "a/"]],
  ["registryHost", registryHost, ["a.", ":5000"]],
  ["nearest", (text) => nearest(text, ["image", "environment"])],
  ["tidyTail", (text) => tidyTail(Array.from({ length: 10 }, () => text)), ["\u001b[", "\u001b]", "\r"]],
  ["logLines", (text) => logLines(Buffer.from(text), { tty: true }), ["2024-01-01T00:00:00.0", "Z "]],
  [
    "apiError",
    (text) => apiError(500, new Error(text)),
    [
      "(HTTP code 500) ",
      " - ",
      "Bind for ",
      "listen a",
      "bind port ",
      ":1",
      "already in use",
      "failed to start shim: ",
    ],
  ],
  ["pullError", (text) => pullError(error(text)), ["lookup a", " on ", "dial tcp "]],
  [
    "inWords",
    (text) => inWords(error(text), { image: "a" }),
    [
      'exec: "',
      '": ',
      "stat ",
      "unable to find user ",
      'mounting "',
      '" to rootfs at "',
      "bind source path does not exist: ",
    ],
  ],
  ["parseMeminfo", parseMeminfo, ["MemTotal: ", "1 kB"]],
  ["parseStat", parseStat, ["cpu ", "cpu1 "]],
  ["parseGpu", parseGpu, ["GPU UUID: ", "GPU-0"]],
  ["parseSockets", (text) => parseSockets(text, "tcp"), [" 0: ", "0100007F:0050 ", " 0A "]],
  ["parseSocketCounts", parseSocketCounts, ["TCP: inuse "]],
  ["parseRoutes", parseRoutes, ["\t0A000000\t"]],
  ["parseRange", parseRange, ["10.", "/24"]],
  ["parseTables", parseTables, ["*filter\n", ":INPUT ", "-A INPUT ", "COMMIT\n"]],
  ["parseWireguard", parseWireguard, ["\t", "(none)\t"]],
  ["withoutTrailing", (text) => withoutTrailing(text, "0")],
  ["between", (text) => between(text, "a", "b")],
];

describe("point 6: readers", () => {
  test.each(READERS)("%s takes linear time", (_, read, words = []) => {
    expect(slowShape(read, hostileShapes(words))).toBeUndefined();
  });

  const texts = [" ", "0", "a", '"', "\r", "\\", "$$", "${A}", ".", "/", ":", "-", "=", "a ", "1m", "a.", "\t\n"];
  const values: ((text: string) => unknown)[] = [(text) => text, (text) => [text], (text) => ({ [text]: text })];
  test.each(keysOf(SERVICE_KEYS))("services.*.%s takes linear time", (key) => {
    const env = new Map([["A", "b"]]);
    const slow = values.flatMap((valueOf) =>
      texts.flatMap((piece) => {
        const value = valueOf(`a${hostileText({ start: "", piece, end: "!" }, 32 * 1024)}`);
        const inner = key.split(".").reduceRight((below, name) => ({ [name]: below }), value);
        const document = JSON.stringify({ services: { a: { image: "b", ...(inner as object) } } });
        const read = () => parseJob(document, { jobId: "shop", env, profiles: ["*"] });
        return [timeOf(read), timeOf(read)].every((ms) => ms > 300) ? [document.slice(0, 80)] : [];
      }),
    );
    expect(slow).toEqual([]);
  });
});

/** Keys of services with those below them, as `deploy.resources.limits.memory`. */
function keysOf(table: Table): string[] {
  return Object.entries(table).flatMap(([key, row]) =>
    row.fate !== "refused" && row.table ? keysOf(row.table).map((below) => `${key}.${below}`) : [key],
  );
}

/** Texts of a few characters that mean something to a reader. */
const textsOf = (...pieces: string[]) =>
  fc.array(fc.constantFrom(...pieces), { maxLength: 12 }).map((all) => all.join(""));

/** The regular expressions are what was read before, and say in one line what is meant; long texts are no matter here. */
describe("point 6: scanners read what the regular expressions before them read", () => {
  test("readDotenv", () => {
    const HEAD = /^(?:export[^\S\n]+)?([\p{L}\p{N}_.[\]-]*)[^\S\n]*(?:([=:])[^\S\n]*|(?=\n|$))/u;
    const QUOTED = /^(?:"((?:\\[^]|[^"\\])*)"|'((?:\\[^]|[^'\\])*)')/;
    const expected = (text: string): Map<string, string> | undefined => {
      const entries = new Map<string, string>();
      for (let rest = text; ;) {
        rest = rest.replace(/^(?:\s|#[^\n]*)*/, "");
        if (rest === "") return entries;
        const [head, name = "", separator] = HEAD.exec(rest) ?? [];
        if (head === undefined || name === "") return undefined;
        rest = rest.slice(head.length);
        if (separator === undefined) continue;
        const quoted = QUOTED.exec(rest);
        if (!quoted && /^["']/.test(rest)) return undefined;
        const [line = ""] = rest.split("\n", 1);
        const [whole = line, double, single] = quoted ?? [];
        const inside = double?.replaceAll('\\"', '"') ?? single?.replaceAll("\\'", "'");
        entries.set(name, inside ?? (line.split(" #", 1)[0] ?? "").trimEnd());
        rest = rest.slice(whole.length);
      }
    };
    // What is replaced within a value is not the scanner's: no `$`, and a backslash only before what stays as it is.
    const texts = textsOf(
      "export",
      "A",
      "é",
      " ",
      "\t",
      "\u00a0",
      "\r",
      "\n",
      "=",
      ":",
      '"',
      "'",
      '\\"',
      "\\'",
      "\\z",
      "#",
      " #",
      "-",
    );
    fc.assert(
      fc.property(texts, (text) => {
        const entries = readDotenv(text, unset);
        expect(entries instanceof Map ? entries : undefined).toEqual(expected(text.replaceAll("\r\n", "\n")));
      }),
      { numRuns: 5_000 },
    );
  });

  test("readDuration", () => {
    const WHOLE = /^\+?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|ms|s|m|h))+$/;
    fc.assert(
      fc.property(textsOf("0", "1", "25", ".", "s", "m", "ms", "h", "ns", " ", "+", "-", "x"), (text) => {
        const isNothing = /^[-+]?0$/.test(text);
        const found = readDuration(text);
        // Too long a time is understood, too.
        const isRead = typeof found === "number" || found.message.includes("above 104 days");
        expect(isRead, text).toBe(isNothing || WHOLE.test(text));
      }),
      { numRuns: 5_000 },
    );
  });

  test("constraint", () => {
    const WHOLE = /^\s*(\S+?)\s*(==|!=)\s*(.*?)\s*$/;
    fc.assert(
      fc.property(textsOf("node.id", "a", "=", "==", "!=", "!", " ", "\n", "\t", "\u2028"), (written) => {
        const text = `${written}`.replace(/^(\s*)(?=[=!])/, "$1node.labels.");
        const [, key = "", operator, value = ""] = WHOLE.exec(text) ?? [];
        const read = v.safeParse(constraint, text);
        const isKnown = key === "node.id" || /^node\.labels\.\S+$/.test(key);
        expect(read.success ? read.output : undefined, JSON.stringify(text)).toEqual(
          operator && value !== "" && isKnown ? ({ key, operator, value } as never) : undefined,
        );
      }),
      { numRuns: 20_000 },
    );
  });

  test("tidyTail, of a line that a terminal wrote over", () => {
    fc.assert(
      fc.property(textsOf("a", "b", "\r", "\r\r", "%"), (line) => {
        expect(tidyTail([line])).toEqual([line.replace(/\r+$/, "").replace(/^.*\r/s, "")]);
      }),
    );
  });

  test("inWords", () => {
    const PROGRAM =
      /exec: "(.+?)": (?:executable file not found|stat .*no such file|permission denied|is a directory)/s;
    const pieces = [
      'exec: "',
      "sh",
      '"',
      '": ',
      "stat ",
      "executable file not found",
      "no such file",
      "is a directory",
      "x",
    ];
    fc.assert(
      fc.property(textsOf(...pieces), (message) => {
        const program = PROGRAM.exec(message)?.[1];
        const words = inWords(error(message), { image: "a" });
        expect(words.startsWith("program ")).toBe(program !== undefined);
        if (program !== undefined) expect(words).toStartWith(`program "${program}" `);
      }),
      { numRuns: 5_000 },
    );
  });
});

test.each([
  ["unable to find user nobody: no matching entries in passwd file", "user nobody is not known in image a"],
  ["unable to find group www data: no matching entries", "group www data is not known in image a"],
  ["invalid mount config: bind source path does not exist: /srv/a b", "path /srv/a b does not exist on this node"],
  [
    'error mounting "/srv/a" to rootfs at "/b": mount: not a directory: unknown',
    "/srv/a and /b in image a are a file and a directory, which can't be mounted on each other",
  ],
])("point 6: Docker's message %j is still told in words", (message, words) => {
  expect(inWords(error(message), { image: "a" })).toStartWith(words);
});

test("point 6: the inputs that were reported are read in a moment", () => {
  const spaces = (count: number) => " ".repeat(count);
  const reads: [string, () => unknown][] = [
    ["export and spaces", () => readDotenv(`export${spaces(60_000)}!`, unset)],
    ["a quoted value of 1 MB", () => readDotenv(`A="${"b".repeat(2 ** 20 - 10)}"`, unset)],
    ["an env_file of 300 KB", () => readDotenv(`export${spaces(300_000)}!`, unset)],
    ["digits without a unit", () => readDuration("1".repeat(160_000))],
    ["a constraint of spaces", () => v.safeParse(constraint, `node.id==a${spaces(80_000)}!`)],
    ["ten log lines of \\r", () => tidyTail(Array.from({ length: 10 }, () => `${"\r".repeat(16_383)}!`))],
  ];
  for (const [what, read] of reads) expect(Math.min(timeOf(read), timeOf(read)), what).toBeLessThan(200);
});
