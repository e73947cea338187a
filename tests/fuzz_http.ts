/**
 * @module Requests for the fuzz of the HTTP API, as bytes: 16 kinds, most of them wrong in one way, some not at all. Knows nothing
 * of what is answered.
 */
import type { Fuzz } from "./fuzz.ts";

export type FuzzRequest = {
  kind: string;
  /** Sent one after the other, with a moment between them. */
  parts: Buffer[];
  /** It ends where it says it does, so it must be answered or the connection closed. */
  isWhole: boolean;
  /** Something follows a request that may be valid, so that one's answer may not come. */
  isFollowed?: boolean;
  /** The sender says that it sends no more. */
  isEnded?: boolean;
};

/** Job that nothing valid is sent to. */
export const KEPT = "kept";
/** Job that may be scaled and restarted. */
export const SCALED = "scaled";
export const DOCUMENT = "services: {web: {image: busybox}}\n";

const JUNK = ["", " ", "\0", "'", '"', "%", "{}", "[]", "-1", "1e999", "null", "é", "\u{1f4a9}", "../..", "__proto__"];
const LONG = "x".repeat(5_000);
const BASE_HEADERS = "Host: 127.0.0.1\r\n";

type Make = (fuzz: Fuzz, id: string) => Omit<FuzzRequest, "kind">;
type Sent = { method?: string; path?: string; headers?: string; body?: string | Uint8Array };

function whole({ method = "GET", path = "/cluster/job", headers = BASE_HEADERS, body }: Sent) {
  const content = body === undefined ? undefined : Buffer.from(body);
  const length = content ? `Content-Length: ${content.length}\r\n` : "";
  const head = `${method} ${path} HTTP/1.1\r\n${headers}${length}Connection: close\r\n\r\n`;
  return { parts: [Buffer.concat([Buffer.from(head), content ?? Buffer.alloc(0)])], isWhole: true };
}

function line(text: string): string {
  return `${text.replaceAll(/[\r\n]/g, "")}\r\n`;
}

const PATHS = [
  "/",
  "/healthz",
  "/readyz",
  "/openapi.json",
  "/cluster/job",
  `/cluster/job/${KEPT}`,
  `/cluster/job/${KEPT}/web`,
  `/cluster/job/${KEPT}/restart`,
  "/cluster/node",
  "/cluster/node/x",
  "/cluster/registry",
  "/cluster/resources",
  "/cluster/allocation",
  "/cluster/service",
  `/cluster/service/${KEPT}/web`,
  "/cluster/discovery/prometheus",
  "/cluster/discovery/traefik",
  "/cluster/status",
  "/internal/peer",
  "/internal/session",
  "/internal/secret",
  "/internal/chunk/x",
];

const KINDS: Record<string, Make> = {
  "a broken request line": (fuzz) => {
    const { pick, mutate, chance } = fuzz;
    const good = `GET ${pick(PATHS)} HTTP/1.1`;
    const lines = [
      "",
      " ",
      "GET",
      "GET /",
      "GET  / HTTP/1.1",
      "GET / HTTP/9.9",
      "GET / HTTP/1.1 x",
      "\0",
      `GET /${LONG}${LONG}${LONG}${LONG} HTTP/1.1`,
      "GET http://[/ HTTP/1.1",
      "GET http://evil.example/cluster/job HTTP/1.1",
      "GET * HTTP/1.1",
      "get / http/1.1",
      "GET / HTTP/1.0",
      "PRI * HTTP/2.0",
    ];
    const start = chance(0.5) ? Buffer.from(pick(lines)) : mutate(Buffer.from(good));
    return {
      parts: [Buffer.concat([start, Buffer.from(`\r\n${BASE_HEADERS}Connection: close\r\n\r\n`)])],
      isWhole: false,
    };
  },
  "broken headers": (fuzz) => {
    const { pick, mutate, upTo } = fuzz;
    const headers = pick([
      () => "no colon\r\n",
      () => ": no name\r\n",
      () => "A b: c\r\n",
      () => "A: b\r\n folded\r\n",
      () => "A: \0\x01\x7f\r\n",
      () => "A: b\n\rC: d\r\n",
      () => `A: ${LONG.repeat(1 + upTo(5))}\r\n`,
      () => Array.from({ length: 1 + upTo(300) }, (_, n) => `H${n}: ${n}\r\n`).join(""),
      () => "Connection: upgrade, close, keep-alive\r\nUpgrade: h2c\r\n",
      () => "Expect: 100-continue\r\nTE: trailers\r\n",
      () => mutate(Buffer.from("Accept: */*\r\nUser-Agent: x\r\n")).toString("latin1"),
    ])();
    const head = `GET ${pick(PATHS)} HTTP/1.1\r\n${BASE_HEADERS}${headers}Connection: close\r\n\r\n`;
    return { parts: [Buffer.from(head, "latin1")], isWhole: false };
  },
  "a foreign or broken Host": (fuzz) => {
    const host = fuzz.pick([
      "evil.example",
      "evil.example:9000",
      "a b",
      "[::1",
      "[zz]",
      "%41",
      "x@y",
      "x/y",
      "127.0.0.1:999999",
      ":",
      "::",
      LONG.slice(0, 2_000),
      "é.example",
      "127.0.0.1, evil.example",
    ]);
    const isWrite = fuzz.chance(0.5);
    const path = isWrite ? `/cluster/job/${KEPT}` : fuzz.pick(PATHS);
    return whole({
      method: isWrite ? "PUT" : "GET",
      path,
      headers: line(`Host: ${host}`),
      ...(isWrite && { body: `${DOCUMENT}x-a: 1` }),
    });
  },
  "a foreign page": (fuzz) => {
    const { pick } = fuzz;
    const origin = pick([
      "http://evil.example",
      "null",
      "http://127.0.0.1:1",
      "file://",
      "x",
      "\u00e9",
      LONG.slice(0, 3_000),
      "",
    ]);
    const site = pick(["cross-site", "same-site", "x", "cross-site, none"]);
    const mode = pick(["", "Sec-Fetch-Mode: navigate\r\n", "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"]);
    const headers = BASE_HEADERS + pick([line(`Origin: ${origin}`), `${line(`Sec-Fetch-Site: ${site}`)}${mode}`]);
    return whole({
      method: pick(["PUT", "DELETE", "POST"]),
      path: `/cluster/job/${KEPT}`,
      headers,
      body: `${DOCUMENT}x-a: 1`,
    });
  },
  chunks: (fuzz, id) => {
    const { pick, bytes, upTo, chance } = fuzz;
    const size = pick([
      DOCUMENT.length.toString(16),
      "0",
      "ffffffffffffffff",
      "-1",
      "zz",
      "1;ext=1",
      "00000021",
      "",
      "100000000",
    ]);
    const tail = pick(["\r\n0\r\n\r\n", "\r\n0\r\nTrailer: x\r\n\r\n", "0", "", "\r\n"]);
    const head = `PUT /cluster/job/${id} HTTP/1.1\r\n${BASE_HEADERS}Transfer-Encoding: ${pick(["chunked", "chunked", "gzip, chunked", "xchunked", "chunked, chunked"])}\r\n\r\n`;
    const body = chance(0.7) ? Buffer.from(DOCUMENT) : bytes(upTo(3_000));
    const parts = [Buffer.from(head), Buffer.from(`${size}\r\n`), body, Buffer.from(tail)];
    // Bun takes a trailer for the next request.
    return { parts, isWhole: false, isFollowed: tail.includes("Trailer") };
  },
  "a wrong length": (fuzz) => {
    const { pick } = fuzz;
    const length = pick([
      "Content-Length: 999",
      "Content-Length: -1",
      "Content-Length: x",
      "Content-Length: 99999999999999999999",
      "Content-Length: 9000000",
      "Content-Length: 17000000",
      "Content-Length: 5\r\nContent-Length: 6",
      "Content-Length: 5\r\nTransfer-Encoding: chunked",
      "Content-Length: +5",
      "Content-Length: 0x5",
    ]);
    const head = `PUT /cluster/job/${KEPT} HTTP/1.1\r\n${BASE_HEADERS}${length}\r\n\r\n`;
    return { parts: [Buffer.from(head + DOCUMENT)], isWhole: false, isEnded: fuzz.chance(0.5) };
  },
  "an odd method": (fuzz) => {
    const method = fuzz.pick([
      "TRACE",
      "CONNECT",
      "OPTIONS",
      "PATCH",
      "HEAD",
      "PROPFIND",
      "FOO",
      "get",
      "PUT,GET",
      "M-SEARCH",
      "QUERY",
      "LINK",
      "PURGE",
      "DELETE",
      "POST",
    ]);
    const path = fuzz.pick([
      "/",
      "/healthz",
      "/cluster/status",
      "/cluster/job",
      "/cluster/service",
      "/internal/peer",
      "/internal/chunk/x",
      "/cluster/discovery/traefik",
    ]);
    return { ...whole({ method, path, ...(fuzz.chance(0.5) && { body: "x" }) }), isWhole: method !== "HEAD" };
  },
  "an odd path": (fuzz) => {
    const { pick, upTo, bytes } = fuzz;
    const odd = pick([
      "%00",
      "%2f",
      "%2e%2e",
      "..",
      "../../etc/passwd",
      "%",
      "%zz",
      "%ff%fe",
      "%c0%af",
      "\\",
      "//",
      ";x=y",
      "%0d%0aX:%20y",
      "*",
      "__proto__",
      "constructor",
      "toString",
      encodeURIComponent("é💩"),
      LONG.slice(0, upTo(4_000)),
      [...bytes(8)].map((byte) => `%${byte.toString(16).padStart(2, "0")}`).join(""),
    ]);
    const path = pick([
      `/${odd}`,
      `/cluster/${odd}`,
      `/cluster/job/${odd}`,
      `/cluster/job/${odd}/${odd}`,
      `/cluster/job/${odd}/restart`,
      `/cluster/node/${odd}`,
      `/cluster/service/${odd}/${odd}`,
      `/cluster/registry/${odd}`,
      `/internal/chunk/${odd}`,
      `/cluster/job/${KEPT}/../${odd}`,
    ]);
    const method = pick(["GET", "GET", "DELETE", "PUT", "POST"]);
    // Nothing that could become a valid write is sent along.
    return { ...whole({ method, path, ...(method !== "GET" && { body: "[" }) }), isWhole: false };
  },
  "an odd query": (fuzz, id) => {
    const { pick, upTo } = fuzz;
    const flood = () =>
      Array.from(
        { length: 1 + upTo(400) },
        (_, n) =>
          `${pick(["env.A", "profile", "dry_run", "limit", "next", "job", "x"])}${pick(["", "", String(n)])}=${n}`,
      ).join("&");
    const query = pick([
      flood,
      () => "dry_run=maybe",
      () => "dryrun=true",
      () => "env.=",
      () => "env.%00=%00",
      () => "profile=%ff",
      () => "&&&===",
      () => `limit=${encodeURIComponent(pick(JUNK))}`,
      () => `next=${encodeURIComponent(pick(JUNK))}`,
      () => `state=${LONG}`,
      () => "watch=1",
      () => "__proto__=1&constructor=2",
      () => "deadline=1e9y&force=2",
    ])();
    const path = pick([
      "/cluster/node",
      "/cluster/allocation",
      "/cluster/service",
      "/cluster/status",
      "/cluster/job",
      "/cluster/registry",
      "/healthz",
    ]);
    if (fuzz.chance(0.5)) return whole({ path: `${path}?${query}` });
    return whole({ method: "PUT", path: `/cluster/job/${id}?${query}`, body: DOCUMENT });
  },
  "several at once": (fuzz, id) => {
    const { pick, upTo, chance } = fuzz;
    const one = () => `${pick(["GET", "GET", "OPTIONS"])} ${pick(PATHS)} HTTP/1.1\r\n${BASE_HEADERS}\r\n`;
    const put = `PUT /cluster/job/${id} HTTP/1.1\r\n${BASE_HEADERS}Content-Length: ${DOCUMENT.length}\r\n\r\n${DOCUMENT}`;
    const many = Array.from({ length: 2 + upTo(30) }, () => (chance(0.1) ? put : one())).join("");
    return { parts: [Buffer.from(many + pick(["", "GET", "\r\n\r\n", "\0"]))], isWhole: false, isFollowed: true };
  },
  "slow, or ended early": (fuzz) => {
    const { pick, upTo } = fuzz;
    const head = `PUT /cluster/job/${KEPT} HTTP/1.1\r\n${BASE_HEADERS}Content-Length: ${DOCUMENT.length}\r\n\r\n`;
    const text = pick([head + DOCUMENT, `GET /cluster/service?watch=true HTTP/1.1\r\n${BASE_HEADERS}\r\n`]);
    const sent = text.slice(0, upTo(text.length - 1));
    const cut = upTo(sent.length);
    return {
      parts: [Buffer.from(sent.slice(0, cut)), Buffer.from(sent.slice(cut))],
      isWhole: false,
      isEnded: fuzz.chance(0.5),
    };
  },
  "a junk document": (fuzz, id) => {
    const { pick, mutate, bytes, upTo } = fuzz;
    const document = pick([
      () => mutate(Buffer.from(DOCUMENT)),
      () =>
        mutate(
          Buffer.from(
            "x-a: &a {b: [1, 2]}\nservices:\n  web:\n    image: 'busybox:${TAG:-1}'\n    ports: ['80:80', {target: 81}]\n    environment: {A: *a}\n    deploy: {replicas: 2}\n",
          ),
          10,
        ),
      () => bytes(upTo(3_000)),
      () => Buffer.from(pick(JUNK)),
      () => Buffer.from("[".repeat(upTo(20_000))),
      () => Buffer.from("{a: ".repeat(upTo(5_000))),
      () =>
        Buffer.from(
          `a: &a [${"x,".repeat(9)}]\nb: &b [${"*a,".repeat(9)}]\nc: &c [${"*b,".repeat(9)}]\nd: [${"*c,".repeat(9)}]`,
        ),
      () =>
        Buffer.from(
          `services: {web: {image: busybox, ${pick(["ports", "volumes", "environment", "deploy", "healthcheck", "networks", "command", "scale"])}: ${JSON.stringify(pick(JUNK))}}}`,
        ),
      () => Buffer.from(`\ufeff%YAML 1.1\n--- !!binary x\n...\n---\n- a`),
      () => Buffer.from(`services: {web: {image: '${"$".repeat(upTo(3_000))}{A:-\${B'}}`),
    ])();
    const type = pick([
      "",
      "Content-Type: application/json\r\n",
      "Content-Type: text/yaml; charset=utf-16\r\n",
      "Content-Encoding: gzip\r\n",
    ]);
    return whole({ method: "PUT", path: `/cluster/job/${id}`, headers: BASE_HEADERS + type, body: document });
  },
  "junk JSON": (fuzz, id) => {
    const { pick, mutate } = fuzz;
    const json = pick([
      '{"scale": 5}',
      '{"pull": true}',
      '{"labels": {"a": "b"}}',
      '{"availability": "pause"}',
      '{"username": "u", "password": "p"}',
      '{"node_id": "n", "instance": "i", "secret_id": "s"}',
    ]);
    const junk = pick([
      () => mutate(Buffer.from(json)),
      () => Buffer.from(JSON.stringify({ scale: pick([...JUNK, 1e308, -1, 1.5, null, [], {}]) })),
      () => Buffer.from(`{"__proto__": {"scale": 1}, "scale": 1}`),
      () => Buffer.from("[".repeat(50_000)),
      () => Buffer.from(`{"scale": ${"9".repeat(400)}}`),
    ])();
    const [method, path] = pick([
      ["PUT", `/cluster/job/${SCALED}/web`],
      ["POST", `/cluster/job/${SCALED}/restart`],
      ["PUT", "/cluster/node/nobody"],
      ["PUT", `/cluster/registry/${id}.example`],
      ["POST", "/internal/secret"],
      ["POST", "/cluster/rebalance"],
    ]);
    return whole({ method, path, body: junk });
  },
  "a junk form": (fuzz, id) => {
    const { pick, mutate, chance, bytes } = fuzz;
    const boundary = pick(["x", "x", '"x"', "", "é", LONG.slice(0, 300)]);
    const name = pick(["./a", "", "/etc/passwd", "../../x", "a\0b", "..", "a".repeat(5_000), "x:y"]);
    const part = (field: string, content: string) =>
      `--x\r\nContent-Disposition: form-data; name="${field}"; filename="${name}"\r\n\r\n${content}\r\n`;
    const text = `${part(pick(["compose", "file", "env", "x", ""]), DOCUMENT)}${part("file", "content")}${part("env", "A=1\nB='")}--x--\r\n`;
    const body = chance(0.6)
      ? mutate(Buffer.from(text))
      : pick([Buffer.from(text), Buffer.alloc(0), bytes(500), Buffer.from("--x"), Buffer.from("--x\r\n\r\n--x--")]);
    return whole({
      method: "PUT",
      path: `/cluster/job/${id}`,
      headers: `${BASE_HEADERS}${line(`Content-Type: multipart/form-data; boundary=${boundary}`)}`,
      body,
    });
  },
  "a junk WebSocket": (fuzz) => {
    const { pick, bytes, upTo, mutate } = fuzz;
    const key = pick([Buffer.alloc(16).toString("base64"), "x", "", LONG]);
    const version = pick(["13", "13", "8", "x"]);
    const headers = `Connection: Upgrade\r\nUpgrade: ${pick(["websocket", "websocket", "WebSocket, h2c", "x"])}\r\nSec-WebSocket-Version: ${version}\r\nSec-WebSocket-Key: ${key}\r\nSec-WebSocket-Extensions: ${pick(["permessage-deflate", "x; y=1", ""])}\r\n${pick(["", "Origin: http://evil.example\r\n"])}`;
    const path = pick(["/internal/session", "/internal/session", "/internal/session/", "/cluster/job"]);
    const hello = Buffer.from('{"type":"heartbeat"}');
    const mask = bytes(4);
    const frame = Buffer.concat([
      Buffer.from([0x81, 0x80 | hello.length]),
      mask,
      hello.map((byte, n) => byte ^ (mask[n % 4] ?? 0)),
    ]);
    const frames = pick([
      frame,
      mutate(frame),
      bytes(upTo(300)),
      Buffer.from([0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
      Buffer.alloc(0),
    ]);
    return { parts: [Buffer.from(`GET ${path} HTTP/1.1\r\n${BASE_HEADERS}${headers}\r\n`), frames], isWhole: false };
  },
  "headers of forwarding and conditions": (fuzz) => {
    const { pick } = fuzz;
    const value = pick([...JUNK, '"1"', "*", 'W/"1"', LONG.slice(0, 2_000)]);
    const name = pick([
      "X-Forwarded-Host",
      "X-Forwarded-For",
      "Forwarded",
      "X-Real-IP",
      "Via",
      "If-None-Match",
      "Range",
      "X-HTTP-Method-Override",
      "Accept-Encoding",
    ]);
    const forwarded = pick(["", "X-Cacophony-Forwarded-By: n1\r\n", "X-Cacophony-Forwarded-By: \r\n"]);
    const isWrite = fuzz.chance(0.5);
    const headers = `${BASE_HEADERS}${line(`${name}: ${value}`)}${forwarded}${isWrite ? pick(['If-Match: "999"\r\n', "If-None-Match: *\r\n", "Origin: http://evil.example\r\n"]) : ""}`;
    return whole({
      method: isWrite ? "PUT" : "GET",
      path: isWrite ? `/cluster/job/${KEPT}` : pick(PATHS),
      headers,
      ...(isWrite && { body: `${DOCUMENT}x-a: 1` }),
    });
  },
};

export const FUZZ_KINDS = Object.keys(KINDS);

/** The `index`-th request; `id` is for a job of its own, which a valid one makes. */
export function fuzzRequest(fuzz: Fuzz, { index, id }: { index: number; id: string }): FuzzRequest {
  const kind = FUZZ_KINDS[index % FUZZ_KINDS.length] ?? "";
  const make = KINDS[kind];
  if (!make) throw new Error(`there is no kind ${kind}`);
  return { kind, ...make(fuzz, id) };
}
