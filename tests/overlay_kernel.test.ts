/** @module The kernel's adapter with commands that are not the real ones: what is missing, fails, hangs or is an old version. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLog } from "../src/log.ts";
import { OverlayKernel } from "../src/overlay_kernel.ts";
import { commandRunner } from "../src/overlay_kernel_command.ts";
import { parseWireguard } from "../src/overlay_kernel_observe.ts";
import { overlayChanges, planOverlay, type Overlay } from "../src/overlay_plan.ts";
import { bareKernel, NO_GUARD } from "./overlay_model.ts";

let dir: string;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "cacophony-overlay-"));
});

afterAll(() => {
  rmSync(dir, { recursive: true, force: true });
});

const ADDRESSES = JSON.stringify([{ ifname: "eth0", mtu: 1500, addr_info: [{ local: "10.77.0.1", prefixlen: 24 }] }]);
/** A machine with one address on which everything succeeds; `*` is what comes before all of it. */
const GOOD: Record<string, string> = {
  ip: `case "$*" in *address*) echo '${ADDRESSES}';; *-j*) echo '[]';; esac`,
  bridge: "echo '[]'",
  "iptables-save": "",
  "iptables-restore": "cat >/dev/null",
  "ip6tables-save": "",
  "ip6tables-restore": "cat >/dev/null",
  wg: "",
  nft: "",
  tee: "cat >/dev/null",
};

/** A directory of commands, each a shell script; `other` replaces some of the good ones. */
function commands(other: Record<string, string> = {}): string {
  const place = mkdtempSync(join(dir, "bin-"));
  for (const [name, body] of Object.entries({ ...GOOD, ...other })) {
    writeFileSync(join(place, name), `#!/bin/sh\n${body}\n`);
    chmodSync(join(place, name), 0o755);
  }
  return place;
}

function kernel(other: Record<string, string> = {}, timeoutMs = 5_000): OverlayKernel {
  return new OverlayKernel({ log: silentLog, searchPath: commands(other), timeoutMs });
}

describe("supported()", () => {
  test("finds nothing in the way where every try succeeds", async () => {
    expect(await kernel().supported("vxlan", "10.77.0.1")).toBeUndefined();
    expect(await kernel().supported("wireguard", "10.77.0.1")).toBeUndefined();
  });

  const failing = (when: string, says: string) =>
    `case "$*" in ${when}) echo '${says}' >&2; exit 2;; esac; ${GOOD["ip"]}`;
  test.each<[string, Record<string, string>, string]>([
    [
      "an ip without JSON",
      { ip: "echo 'ip: unrecognized option: j' >&2; exit 1" },
      "the cluster's network needs the commands ip and bridge of a recent iproute2: ip: unrecognized option: j",
    ],
    [
      "an ip whose JSON is none",
      { ip: "echo lo" },
      'the cluster\'s network needs the commands ip and bridge of a recent iproute2: "ip -j -4 address show" printed no JSON as expected: JSON Parse error: Unexpected identifier "lo"',
    ],
    [
      "a kernel without VXLAN",
      { ip: failing("*vxlan*", "Error: Unknown device type.") },
      "the cluster's network needs network devices of type vxlan: Error: Unknown device type. (this kernel does not have them)",
    ],
    [
      "a user who may not",
      { "iptables-save": "echo 'iptables-save v1.8.9: Permission denied (you must be root)' >&2; exit 4" },
      "the cluster's network needs iptables-save and iptables-restore: iptables-save v1.8.9: Permission denied (you must be root) (the node needs root or CAP_NET_ADMIN)",
    ],
    [
      "a kernel without the raw table",
      { "iptables-restore": `grep -q raw && { echo "can't initialize table raw" >&2; exit 1; }` },
      "the cluster's network needs iptables-save and iptables-restore: can't initialize table raw",
    ],
    [
      "a Docker Engine with rules of nftables",
      { nft: "echo 'table ip docker-bridges'" },
      'the cluster\'s network needs a Docker Engine that uses iptables; this one has "firewall-backend": "nftables"',
    ],
  ])("names %s", async (_, other, reason) => {
    expect(await kernel(other).supported("vxlan", "10.77.0.1")).toBe(reason);
  });

  test("names a command that hangs, also when what it started lives on", async () => {
    const reason = await kernel({ "iptables-save": "sleep 3; true" }, 300).supported("vxlan", "10.77.0.1");
    expect(reason).toBe(
      'the cluster\'s network needs iptables-save and iptables-restore: "iptables-save" did not end in 300 ms',
    );
  });
});

test("a command that is not there is an error that names it", async () => {
  const { run } = commandRunner({ searchPath: "" });
  await expect(run(["no-such-command", "--help"])).rejects.toThrow(
    "the command no-such-command is not installed on this machine",
  );
});

describe("apply()", () => {
  const overlay: Overlay = {
    link: { mode: "vxlan" },
    cidr: "10.213.0.0/16",
    self: { node_id: "n1", underlay: "10.77.0.1", subnets: ["10.213.1.0/24"] },
    peers: [{ node_id: "n2", underlay: "10.77.0.2", subnets: ["10.213.2.0/24"] }],
    bridges: [],
    guard: NO_GUARD,
  };
  const wireguard: Overlay = {
    ...overlay,
    link: { mode: "wireguard", privateKey: "secret=", publicKeys: new Map([["n2", "two="]]) },
  };

  test("brings no device up when the firewall can't be had", async () => {
    const record = join(dir, "ip-calls");
    const other = {
      ip: `echo "$*" >>${record}; ${GOOD["ip"]}`,
      "iptables-restore": "echo 'Another app is currently holding the xtables lock' >&2; exit 4",
    };
    await expect(kernel(other).apply(overlay)).rejects.toThrow(
      '"iptables-restore --noflush -w 5 --verbose" failed (exit code 4): Another app is currently holding the xtables lock',
    );
    expect(readFileSync(record, "utf8")).not.toContain("-batch");
  });

  test("goes on once the rules are committed, which iptables-restore says before it ends", async () => {
    const record = join(dir, "rules");
    // As the real one: comments come out again when 4 KiB of them are together.
    const slow = kernel({ "iptables-restore": `cat >${record}; grep '^#' ${record} | head -c 4096; exec sleep 3` });
    const startedAt = performance.now();
    expect((await slow.apply(overlay)).changed).toContain("iptables-restore --noflush -w 5");
    expect(performance.now() - startedAt).toBeLessThan(2_000);
    expect(readFileSync(record, "utf8")).toMatch(/COMMIT\n# [^*]+$/);
  });

  test("changes rules without a look where it knows what is there, and looks when they turn out to be different", async () => {
    const place = mkdtempSync(join(dir, "machine-"));
    const path = (name: string) => join(place, name);
    const link = { ifname: "cvx", flags: ["UP"], mtu: 1450, address: "0e:cf:0a:d5:01:01", ifalias: "cacophony:n1" };
    const vxlan = { id: 0xcac0, port: 9001, local: "10.77.0.1", learning: false };
    const answers = [
      [{ ...link, linkinfo: { info_data: vxlan } }],
      [],
      [
        ...(JSON.parse(ADDRESSES) as unknown[]),
        { ifname: "cvx", mtu: 1450, addr_info: [{ local: "10.213.1.1", prefixlen: 32 }] },
      ],
      [
        { type: "unreachable", dst: "10.213.0.0/16", protocol: "213" },
        { dst: "10.213.2.0/24", gateway: "10.213.2.1", dev: "cvx", protocol: "213", prefsrc: "10.213.1.1" },
      ],
      [{ interface: "cvx" }, { interface: "default" }],
      [{ dst: "10.213.2.1", dev: "cvx", lladdr: "0e:cf:0a:d5:02:01" }],
    ];
    writeFileSync(path("answers"), `${answers.map((one) => JSON.stringify(one)).join("\n")}\n`);
    const machine = kernel({
      ip: `cat >/dev/null; echo "ip $*" >>${path("log")}; cat ${path("answers")}`,
      bridge: `echo '[{"mac":"0e:cf:0a:d5:02:01","dst":"10.77.0.2"}]'`,
      "iptables-restore": `cat >>${path("log")}; if [ -e ${path("broken")} ]; then rm ${path("broken")}; exit 1; fi`,
    });
    const log = () => {
      const text = readFileSync(path("log"), "utf8");
      writeFileSync(path("log"), "");
      return text;
    };
    const isLook = (text: string) => text.includes("ip -d -j");
    const withBridges = (...names: string[]): Overlay => ({
      ...overlay,
      bridges: names.map((name, index) => ({
        network: name,
        device: `br-${name}`,
        subnet: `10.213.1.${(index + 1) * 64}/26`,
        remote: [],
        guests: [],
        travellers: [],
        internal: false,
      })),
    });
    await machine.apply(overlay, { look: false });
    expect(isLook(log())).toBe(true);
    expect(await machine.apply(withBridges("a"), { look: false })).toMatchObject({ mtu: 1450 });
    const text = log();
    expect(isLook(text)).toBe(false);
    expect(text).toContain("-A CACOPHONY-DNS -s 10.213.1.64/26 -i br-a -j ACCEPT\n");
    // Docker's masquerading of the new network is before it by now.
    expect(text).toContain("-I POSTROUTING 1 -j CACOPHONY-NAT\n");
    expect(await machine.apply(withBridges("a"), { look: false })).toMatchObject({ changed: [] });
    expect(log()).toBe("");
    writeFileSync(path("broken"), "");
    await machine.apply(withBridges("a", "b"), { look: false });
    expect(isLook(log())).toBe(true);
    await machine.apply(withBridges("a", "b"));
    expect(isLook(log())).toBe(true);
  });

  test("gives wg its keys through a pipe, and shows them nowhere", async () => {
    const record = join(dir, "wg-config");
    const { changed } = await kernel({ wg: `[ "$1" = syncconf ] && cat "$3" >${record}` }).apply(wireguard);
    expect(readFileSync(record, "utf8")).toContain("PrivateKey = secret=\n");
    expect(changed.join("\n")).not.toContain("secret");
    expect(changed).toContain("ip link add cwg mtu 1440 type wireguard");
  });

  test("leaves a WireGuard device alone that has its keys and nodes already", () => {
    const dump = "secret=\tone=\t9001\toff\ntwo=\t(none)\t10.77.0.2:9001\t10.213.2.0/24\t0\t0\t0\toff\n";
    const gives = (text: string) => {
      const observed = { ...bareKernel("10.77.0.1"), wireguard: parseWireguard(text) };
      const link = {
        kind: "wireguard" as const,
        up: true,
        mtu: 1440,
        mac: undefined,
        alias: "cacophony:n1",
        vxlan: undefined,
      };
      const { steps } = overlayChanges(planOverlay(wireguard), { ...observed, links: new Map([["cwg", link]]) });
      return steps.flatMap(({ argv }) => (argv[0] === "sh" ? [argv.join(" ")] : []));
    };
    expect(gives(dump)).toEqual([]);
    expect(gives(dump.replace("10.77.0.2", "10.77.0.3"))).toEqual(["sh -c cat | wg syncconf cwg /dev/stdin"]);
    expect(gives(dump.replace("10.213.2.0/24", "(none)"))).toEqual(["sh -c cat | wg syncconf cwg /dev/stdin"]);
  });
});
