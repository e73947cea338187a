/** @module What texts, numbers and lists of messages may be. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import * as v from "valibot";
import * as b from "../src/model_bounds.ts";
import {
  type AllocationStatus,
  allocationStatus,
  heartbeat,
  hello,
  masterMessage,
  nodeMessage,
  PROTOCOL_VERSION,
} from "../src/model.ts";
import { formatAddress, isAddress, isSubnet } from "../src/subnet.ts";
import { idleMachine } from "./cluster_fixture.ts";
import { HOSTILE_TEXTS } from "./rogue_words.ts";

const KEY = `${"A".repeat(43)}=`;

describe("names that go into commands, rules, paths and addresses (point 4)", () => {
  test.each([
    [
      "ipv4",
      b.ipv4,
      ["10.213.4.9", "0.0.0.0", "255.255.255.255"],
      ["10.213.4", "10.213.4.09", "10.213.4.9/32", "1.2.3.4\n", "::1"],
    ],
    [
      "cidr",
      b.cidr,
      ["10.213.4.0/26", "10.0.0.0/8", "10.213.4.9/32"],
      ["10.213.4.9/26", "10.213.4.0", "10.213.4.0/33", "10.213.4.0/026", "10.213.4.0/26\n-A X"],
    ],
    ["range", b.range, ["10.0.0.0/8", "10.213.0.0/16"], ["0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/7", "x"]],
    [
      "wireguardKey",
      b.wireguardKey,
      [KEY, `${"z9+/".repeat(10)}zz8=`],
      [KEY.slice(1), `${KEY}\n`, "A".repeat(44), `${"A".repeat(42)}B=`, "key"],
    ],
    [
      "hostPort",
      b.hostPort,
      ["10.0.0.1:9000", "[fd00::1]:9000", "node_a.example:1"],
      ["10.0.0.1", "a:0", "a:65536", "u@a:1", "a/b:1", "a?b:1", "[x]:1", "a b:1", "a:1\n", "[::1]"],
    ],
    [
      "id",
      b.id,
      ["1a2b3c4d5e6f", "my-job.v2", "9f8e7d6c-0000-4000-8000-000000000000"],
      ["", "..", ".", "a/b", "-a", "a\n", "a b", "x".repeat(129)],
    ],
    ["name", b.name, ["shop_default", "any text", "bücher"], ["", "a\nb", "a\u0000", "x".repeat(513)]],
    ["digest", b.digest, [`sha256:${"a".repeat(64)}`], ["sha256", "sha256:a/b", "a\n:b", "x".repeat(600)]],
    ["takenPort", b.takenPort, ["tcp/80", "udp/65535"], ["tcp/", "icmp/1", "tcp/80 ", "tcp/800000"]],
    ["hostIp", b.hostIp, ["", "127.0.0.1", "::"], ["x", "1.2.3.4\n"]],
  ] as [string, v.GenericSchema, string[], string[]][])(
    "%s takes what it is and nothing else",
    (_, schema, good, bad) => {
      expect(good.filter((text) => !v.is(schema, text))).toEqual([]);
      expect(bad.filter((text) => v.is(schema, text))).toEqual([]);
    },
  );

  test("no hostile text is an address, a subnet, a key or an address of a node", () => {
    const taken = HOSTILE_TEXTS.filter((text) =>
      [b.ipv4, b.wireguardKey, b.hostPort].some((schema) => v.is(schema, text)),
    );
    expect(taken).toEqual([]);
    expect(HOSTILE_TEXTS.filter((text) => v.is(b.cidr, text))).toEqual(["0.0.0.0/0"]);
  });

  test("every address and subnet is written in one way only", () => {
    fc.assert(
      fc.property(fc.nat(0xffffffff), fc.integer({ min: 0, max: 32 }), fc.string(), (number, bits, more) => {
        const address = formatAddress(number);
        const first = number - (number % 2 ** (32 - bits));
        expect(isAddress(address)).toBe(true);
        expect(isSubnet(`${formatAddress(first)}/${bits}`)).toBe(true);
        expect(isSubnet(`${address}/${bits}`)).toBe(first === number);
        if (more !== "")
          expect([isAddress(address + more) && !/^\d/.test(more), isSubnet(`${address}/${bits}\n${more}`)]).toEqual([
            false,
            false,
          ]);
      }),
    );
  });
});

describe("a message (point 5)", () => {
  const engine = { state: "unready", reason: "r".repeat(100_000) };
  const beat = { type: "heartbeat", sequence: 1, engine, foreign: [], resources: idleMachine() };

  test("has its long texts cut and its bad entries left out, with a sentence for each", () => {
    const networks = [{ network: "a", subnet: "10.213.1.0/26" }, { network: "b", subnet: "10.213.1.0/26\n-A" }, 7];
    const overlay = { mode: "vxlan", networks, blocks: 1, full: false, public_key: "x\ny" };
    const read = b.readBounded(nodeMessage, { ...beat, overlay, volumes: ["v", "", 5] });
    if (!read.ok) throw new Error(read.fault);
    const { output, leftOut } = read;
    if (output.type !== "heartbeat") throw new Error(output.type);
    expect(output.overlay?.networks).toEqual([{ network: "a", subnet: "10.213.1.0/26" }]);
    expect([output.overlay?.public_key, output.volumes]).toEqual([undefined, ["v"]]);
    expect(output.engine.state === "unready" && output.engine.reason).toHaveLength(b.MAX_ERROR_CHARS);
    expect(leftOut).toEqual([
      'volumes: "": Invalid length: Expected >=1 but received 0',
      "volumes: 5: Invalid type: Expected string but received 5",
      'overlay.networks.subnet: "10.213.1.0/26\\n-A": is not an IPv4 subnet, as 10.213.4.0/26',
      "overlay.networks: 7: Invalid type: Expected Object but received 7",
      'overlay.public_key: "x\\ny": is not a WireGuard key: 32 bytes in base64',
    ]);
  });

  test("of one parse leaves nothing over for the next", () => {
    b.readBounded(nodeMessage, { ...beat, volumes: [5] });
    expect(b.readBounded(nodeMessage, beat)).toMatchObject({ ok: true, leftOut: [] });
  });

  test.each([
    ["sequence", { sequence: -1 }],
    ["sequence", { sequence: 2 ** 53 }],
    ["sequence", { sequence: 0.5 }],
    ["engine", { engine: "x" }],
    ["foreign", { foreign: {} }],
  ])("with a bad %s is refused as a whole", (_, more) => {
    expect(v.is(heartbeat, { ...beat, ...more })).toBe(false);
  });

  test.each([{ cpus: 0 }, { cpus: Infinity }, { total_memory: -1 }, { used_memory: 1e300 }])(
    "with resources that nothing can be reckoned with (%o) has none",
    (more) => {
      const read = v.parse(heartbeat, { ...beat, resources: { ...idleMachine(), ...more } });
      expect(read.resources).toBeUndefined();
    },
  );

  test("of the largest honest node is taken whole", () => {
    const lines = Array.from({ length: 10 }, () => "l".repeat(200));
    const status = (n: number): AllocationStatus => ({
      allocation_id: n.toString(16).padStart(12, "0"),
      state: "exited",
      final: false,
      container_id: "c".repeat(64),
      ports: [],
      addresses: [{ network: "shop_default", address: "10.213.1.9" }],
      restarts: 3,
      error: "e".repeat(500),
      last_end: { exit_code: 1, oom_killed: false, error: "e".repeat(500), log_tail: lines },
      image_id: `sha256:${"a".repeat(64)}`,
    });
    const allocations = Array.from({ length: 5_000 }, (_, n) => status(n));
    const report = { type: "status", full: true, allocations, gone: [], removals_done: [] };
    const text = JSON.stringify(report);
    expect(text.length).toBeLessThan(b.MAX_REPORT_CHARS);
    expect(b.readBounded(nodeMessage, JSON.parse(text))).toEqual({ ok: true, output: report, leftOut: [] } as never);
    const names = Array.from({ length: b.MAX_NAMES }, (_, n) => `volume-${n}`);
    const overlay = {
      mode: "vxlan",
      networks: Array.from({ length: 500 }, (_, n) => ({ network: `n${n}`, subnet: "10.213.1.0/26" })),
      blocks: 125,
      full: false,
    };
    const foreign = Array.from({ length: 3_000 }, (_, n) => ({
      container_id: "c".repeat(64),
      name: `n${n}`,
      cluster_id: "d",
    }));
    expect(b.readBounded(nodeMessage, { ...beat, volumes: names, networks: names, overlay, foreign })).toMatchObject({
      ok: true,
      leftOut: [],
    });
  });

  test("with more containers than a machine has keeps the first ones", () => {
    const allocations = Array.from({ length: b.MAX_CONTAINERS + 5 }, (_, n) => ({
      allocation_id: `a${n}`,
      state: "running",
      final: false,
      ports: [],
      restarts: 0,
    }));
    const read = b.readBounded(nodeMessage, { type: "status", full: true, allocations, gone: [], removals_done: [] });
    if (!read.ok || read.output.type !== "status") throw new Error("not taken");
    expect(read.output.allocations).toHaveLength(b.MAX_CONTAINERS);
    expect(read.leftOut).toEqual(["allocations: 10005 entries, of which the first 10000 are taken"]);
  });

  test("of a status keeps no end, error or digest out of bounds", () => {
    const status = v.parse(allocationStatus, {
      allocation_id: "a",
      state: "failed",
      final: false,
      ports: [],
      restarts: 0,
      error: "e".repeat(2 ** 20),
      resolved_digest: "sha256:../x",
      last_end: { oom_killed: false, log_tail: Array.from({ length: 1_000 }, () => "l\n".repeat(10_000)) },
    });
    expect(JSON.stringify(status).length).toBeLessThan(12_000);
    expect(status.resolved_digest).toBeUndefined();
    expect(status.last_end?.log_tail[0]).not.toContain("\n");
  });
});

describe("a hello (point 5)", () => {
  const said = {
    type: "hello",
    protocol: PROTOCOL_VERSION,
    node_id: "n1",
    instance: "i",
    node_name: "web-1\nx",
    address: "10.0.0.1:9000",
    labels: [["zone", "a"]],
    engine: { state: "unready", reason: "" },
    version: "0",
  };

  test("is of one line each, and keeps labels that can be kept", () => {
    const labels = [
      ["zone", "a"],
      ["long", "x".repeat(b.MAX_LABEL_VALUE + 1)],
      ["", "x"],
      ["__proto__", "y"],
    ];
    const read = b.readBounded(hello, { ...said, labels });
    expect(read).toMatchObject({
      ok: true,
      output: {
        node_name: "web-1 x",
        labels: [
          ["zone", "a"],
          ["__proto__", "y"],
        ],
      },
    });
    expect(read.ok && read.leftOut).toHaveLength(2);
    const many = Array.from({ length: 1_000 }, (_, n) => [`l${n}`, "x".repeat(500)]);
    const kept = v.parse(hello, { ...said, labels: many }).labels;
    expect(JSON.stringify(kept).length).toBeLessThan(2 * b.MAX_LABELS_CHARS);
  });

  test.each([
    { node_id: "../x" },
    { address: "a@b:1" },
    { underlay: "10.0.0.1\n" },
    { instance: "" },
    { cluster_id: "a b" },
    { node_name: "" },
  ])("with %o is refused", (more) => expect(v.is(hello, { ...said, ...more })).toBe(false));
});

describe("what a master says (point 4)", () => {
  const order = { term: 1, revision: 1 };
  const assignments = { type: "assignments", order, specs: [], allocations: [], removals: [] };
  const removal = { removal_id: "r", job_id: "shop", node_id: "n1" };

  test.each(["../x", "a/b", "..", "", "a\nb"])("assigns no job that is called %j, which would be a path", (job_id) => {
    expect(v.is(masterMessage, { ...assignments, removals: [{ ...removal, job_id }] })).toBe(false);
    expect(v.is(masterMessage, { ...assignments, removals: [removal] })).toBe(true);
  });

  test("is never taken in without one of its assignments, which would stop a container", () => {
    expect(v.is(masterMessage, { ...assignments, allocations: [{ allocation_id: "a" }] })).toBe(false);
  });

  test.each(["../x", "a/../../b", "/etc/passwd", "", "a\u0000"])("sends no file to %j", (path) => {
    const file = { path, size: 1, chunks: ["a".repeat(64)], mode: 0o644 };
    expect([path, b.isPlainPath(file.path)]).toEqual([path, false]);
    expect(b.isPlainPath("conf.d/a.conf")).toBe(true);
  });

  test.each([
    { heartbeat_interval_ms: 0 },
    { heartbeat_interval_ms: 2 ** 31 },
    { term: 2 ** 53 },
    { node_id: ".." },
    { master: { node_id: "m", address: "x/y:1" } },
  ])("welcomes with %o nobody", (more) => {
    const welcome = {
      type: "welcome",
      cluster_id: "c",
      node_id: "n1",
      node_name: "n",
      term: 1,
      master: { node_id: "m", address: "10.0.0.1:9000" },
      peers: [
        { node_id: "m", address: "10.0.0.1:9000" },
        { node_id: "x", address: "evil/path?:1" },
      ],
      heartbeat_interval_ms: 1_000,
      node_timeout_ms: 4_000,
    };
    expect(b.readBounded(masterMessage, welcome)).toMatchObject({ ok: true, output: { peers: [{ node_id: "m" }] } });
    expect(v.is(masterMessage, { ...welcome, ...more })).toBe(false);
  });
});
