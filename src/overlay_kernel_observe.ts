/** @module What the kernel has of the cluster's network, read from what `ip`, `bridge`, `iptables-save` and `wg` print. */
import * as v from "valibot";
import { describeError } from "./log.ts";
import { CommandError, type CommandRunner } from "./overlay_kernel_command.ts";
import { OVERLAY_DEVICES, type ObservedLink, type ObservedOverlay, type WireguardConfig } from "./overlay_plan.ts";
import { parseTables, type Tables } from "./overlay_plan_firewall.ts";

// `ip -j` prints an empty object for what a filter leaves out.
const links = v.array(
  v.object({
    ifname: v.exactOptional(v.string()),
    flags: v.optional(v.array(v.string()), []),
    mtu: v.optional(v.number(), 0),
    address: v.exactOptional(v.string()),
    ifalias: v.exactOptional(v.string()),
    linkinfo: v.exactOptional(
      v.object({
        info_data: v.exactOptional(
          v.object({
            id: v.exactOptional(v.number()),
            port: v.exactOptional(v.number()),
            local: v.exactOptional(v.string()),
            learning: v.exactOptional(v.boolean()),
          }),
        ),
      }),
    ),
  }),
);
const addresses = v.array(
  v.object({
    ifname: v.exactOptional(v.string()),
    mtu: v.optional(v.number(), 0),
    addr_info: v.optional(
      v.array(v.object({ local: v.optional(v.string(), ""), prefixlen: v.optional(v.number(), 32) })),
      [],
    ),
  }),
);
const routes = v.array(
  v.object({
    type: v.optional(v.string(), "unicast"),
    dst: v.string(),
    dev: v.exactOptional(v.string()),
    gateway: v.exactOptional(v.string()),
    prefsrc: v.exactOptional(v.string()),
    protocol: v.optional(v.string(), ""),
  }),
);
const neighbours = v.array(
  v.object({ dst: v.string(), dev: v.exactOptional(v.string()), lladdr: v.optional(v.string(), "") }),
);
const machines = v.array(v.object({ mac: v.string(), dst: v.exactOptional(v.string()) }));
const netconf = v.array(
  v.object({
    interface: v.string(),
    forwarding: v.optional(v.boolean(), true),
    rp_filter: v.optional(v.string(), "off"),
  }),
);

/** What is asked of `ip`, in the order of the answers. */
const QUESTIONS = [
  "link show type vxlan",
  "link show type wireguard",
  "address show",
  "route show",
  "netconf show",
  "neigh show nud permanent",
] as const;

/** Looks at all that a plan may ask for, by few commands: every node does this every few seconds. */
export async function observeOverlay(commands: CommandRunner): Promise<ObservedOverlay> {
  const [answers, rules] = await Promise.all([askIp(commands), observeRules(commands)]);
  const [vxlans = "", wireguards = "", ownAddresses = "", ownRoutes = "", conf = "", entries = ""] = answers;
  const seen = new Map([
    ...read(links, { text: vxlans, of: QUESTIONS[0] }).flatMap(readLink("vxlan")),
    ...read(links, { text: wireguards, of: QUESTIONS[1] }).flatMap(readLink("wireguard")),
  ]);
  const hasVxlan = seen.get(OVERLAY_DEVICES.vxlan)?.kind === "vxlan";
  const hasWireguard = seen.get(OVERLAY_DEVICES.wireguard)?.kind === "wireguard";
  const allAddresses = read(addresses, { text: ownAddresses, of: QUESTIONS[2] });
  const allRoutes = read(routes, { text: ownRoutes, of: QUESTIONS[3] });
  const devices = read(netconf, { text: conf, of: QUESTIONS[4] });
  const permanent = read(neighbours, { text: entries, of: QUESTIONS[5] });
  const [forwardings, wireguard] = await Promise.all([
    hasVxlan ? askBridge(commands) : [],
    hasWireguard ? commands.run(["wg", "show", OVERLAY_DEVICES.wireguard, "dump"]) : "",
  ]);
  return {
    links: seen,
    addresses: readAddresses(allAddresses),
    routes: allRoutes.map(({ type, dst, dev, gateway, prefsrc, protocol }) => ({
      type,
      subnet: dst.includes("/") || dst === "default" ? dst : `${dst}/32`,
      device: dev,
      gateway,
      source: prefsrc,
      protocol,
    })),
    neighbours: new Map(
      permanent.flatMap(({ dst, dev, lladdr }) =>
        hasVxlan && dev === OVERLAY_DEVICES.vxlan ? [[dst, lladdr] as const] : [],
      ),
    ),
    machines: groupMachines(forwardings),
    wireguard: parseWireguard(wireguard),
    forwarding: new Map(devices.map((one) => [one.interface, one.forwarding])),
    pathFilters: new Map(devices.map((one) => [one.interface, one.rp_filter])),
    ...rules,
  };
}

/** The machine's packet filters. `tables6`: undefined where there are none for IPv6. */
export async function observeRules(commands: CommandRunner): Promise<{ tables: Tables; tables6: Tables | undefined }> {
  const [saved, saved6] = await Promise.all([
    commands.run(["iptables-save"]),
    commands.run(["ip6tables-save"]).catch((error: unknown) => {
      if (error instanceof CommandError) return undefined;
      throw error;
    }),
  ]);
  return { tables: parseTables(saved), tables6: saved6 === undefined ? undefined : parseTables(saved6) };
}

/** The machine's IPv4 addresses. */
export async function observeAddresses(commands: CommandRunner): Promise<ObservedOverlay["addresses"]> {
  const argv = ["ip", "-j", "-4", "address", "show"];
  return readAddresses(read(addresses, { text: await commands.run(argv), of: argv.join(" ") }));
}

/** What `ip` answers to each of `QUESTIONS`. */
async function askIp(commands: CommandRunner): Promise<string[]> {
  const input = `${QUESTIONS.join("\n")}\n`;
  const all = (await commands.run(["ip", "-d", "-j", "-4", "-b", "-"], { input })).trimEnd().split("\n");
  if (all.length === QUESTIONS.length) return all;
  // One that does not answer each in a line of its own is asked one by one.
  return Promise.all(QUESTIONS.map((question) => commands.run(["ip", "-d", "-j", "-4", ...question.split(" ")])));
}

async function askBridge(commands: CommandRunner): Promise<v.InferOutput<typeof machines>> {
  const argv = ["bridge", "-j", "fdb", "show", "dev", OVERLAY_DEVICES.vxlan];
  return read(machines, { text: await commands.run(argv), of: argv.join(" ") });
}

function read<T extends v.GenericSchema>(schema: T, { text, of }: { text: string; of: string }): v.InferOutput<T> {
  try {
    return v.parse(schema, JSON.parse(text || "[]"));
  } catch (error) {
    throw new CommandError("garbled", `"${of}" printed no JSON as expected: ${describeError(error)}`);
  }
}

function readAddresses(found: v.InferOutput<typeof addresses>): ObservedOverlay["addresses"] {
  return found.flatMap(({ ifname = "", mtu, addr_info }) =>
    addr_info.map(({ local, prefixlen }) => ({ device: ifname, mtu, address: local, bits: prefixlen })),
  );
}

function readLink(kind: ObservedLink["kind"]) {
  return ({
    ifname,
    flags,
    mtu,
    address,
    ifalias,
    linkinfo,
  }: v.InferOutput<typeof links>[number]): [string, ObservedLink][] => {
    if (ifname === undefined) return [];
    const { id = 0, port = 0, local, learning = true } = linkinfo?.info_data ?? {};
    const vxlan = kind === "vxlan" ? { id, port, local, learning } : undefined;
    return [[ifname, { kind, up: flags.includes("UP"), mtu, mac: address, alias: ifalias, vxlan }]];
  };
}

function groupMachines(entries: v.InferOutput<typeof machines>): Map<string, string[]> {
  const grouped = new Map<string, string[]>();
  for (const { mac, dst } of entries) {
    if (dst !== undefined) grouped.set(mac, [...(grouped.get(mac) ?? []), dst]);
  }
  return grouped;
}

/** Reads what `wg show DEVICE dump` prints: a line for the device, then one for each peer, with tabs. */
export function parseWireguard(text: string): WireguardConfig | undefined {
  const [device, ...peers] = text.split("\n").filter((line) => line !== "");
  if (device === undefined) return undefined;
  const [privateKey = "", , port = ""] = device.split("\t");
  return {
    port: Number(port),
    privateKey,
    peers: new Map(
      peers.map((line) => {
        const [key = "", , endpoint = "", allowed = ""] = line.split("\t");
        return [key, { endpoint, allowed: allowed === "(none)" ? [] : allowed.split(",") }];
      }),
    ),
  };
}
