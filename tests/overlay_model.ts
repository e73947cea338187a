/**
 * @module A kernel as the cluster's network sees it, for tests: runs the command lines of a plan on a record of links, routes,
 * neighbours and rules, with the kernel's side effects that matter, and answers what the rules do to a packet.
 */
import { isDeepStrictEqual } from "node:util";
import type { ObservedLink, ObservedOverlay, OverlayStep } from "../src/overlay_plan.ts";
import type { Guard } from "../src/overlay_plan_guard.ts";

/** Nothing is kept from any API. */
export const NO_GUARD: Guard = { port: 9000, bridges: [], shared: [], callers: [], nodes: [] };

type Rules = Map<string, Map<string, string[]>>;
type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** A machine with one interface, on which its address is, and with the chains that every machine has. */
export function bareKernel(underlay: string): ObservedOverlay {
  return {
    links: new Map(),
    addresses: [{ device: "eth0", address: underlay, bits: 24, mtu: 1500 }],
    routes: [],
    neighbours: new Map(),
    machines: new Map(),
    wireguard: undefined,
    forwarding: new Map([["default", true]]),
    pathFilters: new Map(),
    tables: new Map([
      [
        "filter",
        new Map([
          ["INPUT", []],
          ["FORWARD", []],
          ["OUTPUT", []],
        ]),
      ],
      [
        "nat",
        new Map([
          ["PREROUTING", []],
          ["OUTPUT", []],
          ["POSTROUTING", []],
        ]),
      ],
      ["raw", new Map([["PREROUTING", []]])],
    ]),
    tables6: new Map([
      [
        "filter",
        new Map([
          ["INPUT", []],
          ["FORWARD", []],
        ]),
      ],
    ]),
  };
}

export class ModelKernel {
  state: Mutable<ObservedOverlay>;

  constructor(state: ObservedOverlay) {
    this.state = { ...state };
  }

  /** @throws Error for a command that the real kernel would refuse. */
  run(steps: readonly OverlayStep[]): void {
    for (const { argv, input = "" } of steps) {
      if (argv[0] === "iptables-restore") this.#restore(input);
      else if (argv[0] === "ip6tables-restore") this.#restore(input, "tables6");
      else for (const line of input.trimEnd().split("\n")) this.#line(line);
    }
  }

  /** Somebody else's command, which may come to nothing. */
  damage(command: string): void {
    try {
      if (command.startsWith("*")) this.#restore(command);
      else this.#line(command);
    } catch (error) {
      if (!(error instanceof KernelRefusal)) throw error;
    }
  }

  routesBy(gateway: string): string[] {
    return this.state.routes.filter((route) => route.gateway === gateway).map(({ subnet }) => subnet);
  }

  /** All that is ours in the kernel, in a fixed order. */
  ours(): unknown[] {
    const { links, addresses, routes, neighbours, machines, tables, tables6 } = this.state;
    const all = [...tables, ...[...(tables6 ?? [])].map(([table, chains]) => [`${table} of IPv6`, chains] as const)];
    const rules = all.flatMap(([table, chains]) =>
      [...chains].flatMap(([chain, list]) => {
        if (chain.startsWith("CACOPHONY-")) return [[table, chain, ...list]];
        return list
          .filter((rule) => rule.includes("CACOPHONY-"))
          .map((rule) => [table, chain, rule, list.indexOf(rule)]);
      }),
    );
    return [
      ...links,
      ...addresses.filter(({ device }) => device === "cvx"),
      ...routes.filter(({ protocol }) => protocol === "213"),
      ...neighbours,
      ...machines,
      ...rules,
    ]
      .map((one) => JSON.stringify(one))
      .sort();
  }

  #line(line: string): void {
    const word = line.split(" ");
    const after = (name: string) => {
      const at = word.indexOf(name);
      return at < 0 ? undefined : word[at + 1];
    };
    const [object, verb] = word;
    if (object === "link") this.#link(line, after);
    else if (object === "addr") this.#address(verb === "add", after("dev") ?? "", after(verb ?? "") ?? "");
    else if (object === "route") this.#route(line, after);
    else if (object === "neigh") {
      this.#mustHave(after("dev"));
      const neighbours = new Map(this.state.neighbours);
      if (verb === "replace") neighbours.set(word[2] ?? "", after("lladdr") ?? "");
      else refuseUnless(neighbours.delete(word[2] ?? ""), line);
      this.state.neighbours = neighbours;
    } else if (object === "fdb") {
      this.#mustHave(after("dev"));
      const machines = new Map(this.state.machines);
      const [mac, there, machine] = [word[2] ?? "", machines.get(word[2] ?? "") ?? [], after("dst") ?? ""];
      // Of several machines behind one address, the kernel replaces the first.
      if (verb === "replace") machines.set(mac, [machine, ...there.slice(1)]);
      else if (verb === "append") machines.set(mac, [...there, machine]);
      else refuseUnless(machines.delete(word[2] ?? ""), line);
      this.state.machines = machines;
    } else throw new Error(`the model does not know: ${line}`);
  }

  #link(line: string, after: (name: string) => string | undefined): void {
    const links = new Map(this.state.links);
    const isAdded = line.startsWith("link add");
    const name = after("add") ?? after("delete") ?? after("dev") ?? "";
    if (isAdded) {
      refuseUnless(!links.has(name), line);
      const [id, port] = [Number(after("id")), Number(after("dstport"))];
      const link: ObservedLink = {
        kind: "vxlan",
        up: false,
        mtu: Number(after("mtu")),
        mac: after("address"),
        alias: undefined,
        vxlan: { id, port, local: after("local"), learning: !line.includes("nolearning") },
      };
      links.set(name, link);
    } else if (line.startsWith("link delete")) {
      this.#mustHave(name);
      links.delete(name);
      // The kernel takes with a device all that leads to it.
      this.state.addresses = this.state.addresses.filter(({ device }) => device !== name);
      this.state.routes = this.state.routes.filter(({ device }) => device !== name);
      this.state.neighbours = new Map();
      this.state.machines = new Map();
    } else {
      const link = this.#mustHave(name);
      links.set(name, {
        ...link,
        up: link.up || line.endsWith(" up"),
        alias: after("alias") ?? link.alias,
        mac: after("address") ?? link.mac,
        mtu: Number(after("mtu") ?? link.mtu),
      });
    }
    this.state.links = links;
  }

  #address(isAdded: boolean, device: string, text: string): void {
    this.#mustHave(device);
    const [address = "", bits] = text.split("/");
    const isSame = (one: { device: string; address: string; bits: number }) =>
      one.device === device && one.address === address && one.bits === Number(bits);
    refuseUnless(this.state.addresses.some(isSame) !== isAdded, text);
    const rest = this.state.addresses.filter((one) => !isSame(one));
    this.state.addresses = isAdded ? [...rest, { device, address, bits: Number(bits), mtu: 1450 }] : rest;
    // Routes that name a source go with that address.
    if (!isAdded && !rest.some((one) => one.address === address))
      this.state.routes = this.state.routes.filter(({ source }) => source !== address);
  }

  #route(line: string, after: (name: string) => string | undefined): void {
    const device = after("dev");
    const type = line.includes(" unreachable ") ? "unreachable" : "unicast";
    const subnet = /\d+\.\d+\.\d+\.\d+\/\d+/.exec(line)?.[0] ?? "";
    if (type === "unicast") this.#mustHave(device);
    const rest = this.state.routes.filter((route) => route.subnet !== subnet);
    if (line.startsWith("route del")) {
      refuseUnless(rest.length < this.state.routes.length, line);
      this.state.routes = rest;
      return;
    }
    const source = after("src");
    refuseUnless(source === undefined || this.state.addresses.some(({ address }) => address === source), line);
    const route = { type, subnet, device, gateway: after("via"), source, protocol: after("proto") ?? "boot" };
    this.state.routes = [...rest, route];
  }

  #mustHave(device: string | undefined): ObservedLink {
    const link = this.state.links.get(device ?? "");
    if (!link) throw new KernelRefusal(`Cannot find device "${device}"`);
    return link;
  }

  /** As iptables-restore --noflush: all of a table or nothing. */
  #restore(input: string, kind: "tables" | "tables6" = "tables"): void {
    const tables: Rules = new Map(
      [...(this.state[kind] ?? [])].map(([table, chains]) => [
        table,
        new Map([...chains].map(([chain, rules]) => [chain, [...rules]])),
      ]),
    );
    let chains = new Map<string, string[]>();
    for (const line of input.trimEnd().split("\n")) {
      if (line.startsWith("*")) chains = tables.get(line.slice(1)) ?? new Map();
      else if (line.startsWith(":")) chains.set(line.slice(1, line.indexOf(" ")), []);
      else if (line !== "COMMIT") changeChain(chains, line);
    }
    this.state[kind] = tables;
  }
}

class KernelRefusal extends Error {}

function refuseUnless(isGood: boolean, command: string): void {
  if (!isGood) throw new KernelRefusal(`refused: ${command}`);
}

function changeChain(chains: Map<string, string[]>, line: string): void {
  const [, verb, chain = "", rest = ""] = /^-([ADIX]) (\S+)(?: 1)? ?(.*)$/.exec(line) ?? [];
  const rules = chains.get(chain);
  if (!rules) throw new KernelRefusal(`no chain ${chain}: ${line}`);
  const target = / ?-j (\S+)(?: --to-destination \S+| --reject-with \S+)?$/.exec(rest)?.[1] ?? "";
  if (verb === "A" || verb === "I") {
    refuseUnless(/^(ACCEPT|DROP|REJECT|RETURN|MASQUERADE|DNAT)$/.test(target) || chains.has(target), line);
    if (verb === "A") rules.push(rest);
    else rules.unshift(rest);
  } else if (verb === "D") {
    const at = rules.indexOf(rest);
    refuseUnless(at >= 0, line);
    rules.splice(at, 1);
  } else {
    const isUsed = [...chains.values()].some((list) => list.some((rule) => rule.endsWith(`-j ${chain}`)));
    refuseUnless(rules.length === 0 && !isUsed, line);
    chains.delete(chain);
  }
}

// ---- What the rules do to a packet -----------------------------------------------------------------------------------

export type Packet = {
  source: string;
  target: string;
  in?: string;
  out?: string;
  protocol?: string;
  port?: number;
  /** Of its connection; default NEW. */
  state?: "NEW" | "ESTABLISHED";
};

/** The verdict of a chain on a packet; `none` when it comes to the chain's end. */
export function verdict(
  tables: ObservedOverlay["tables"],
  { table, chain, packet }: { table: string; chain: string; packet: Packet },
): string {
  for (const rule of tables.get(table)?.get(chain) ?? []) {
    const { target, isMatch } = readRule(rule, packet);
    if (!isMatch) continue;
    if (target === "RETURN") return "none";
    if (target === "ACCEPT" || target === "DROP") return target;
    const answer = verdict(tables, { table, chain: target, packet });
    if (answer !== "none") return answer;
  }
  return "none";
}

function readRule(rule: string, packet: Packet): { target: string; isMatch: boolean } {
  const words = rule.split(" ");
  let isMatch = true;
  let target = "";
  while (words.length > 0) {
    const isNot = words[0] === "!";
    if (isNot) words.shift();
    const [option = "", value = ""] = words.splice(0, 2);
    if (option === "-j") target = value;
    else if (option !== "-m") isMatch &&= matches(option, { value, packet }) !== isNot;
  }
  return { target, isMatch };
}

function matches(option: string, { value, packet }: { value: string; packet: Packet }): boolean {
  if (option === "-s") return isWithin(value, packet.source);
  if (option === "-d") return isWithin(value, packet.target);
  if (option === "-i") return packet.in === value;
  if (option === "-o") return packet.out === value;
  if (option === "-p") return packet.protocol === value;
  if (option === "--dport") return packet.port === Number(value);
  if (option === "--ctstate") return value.split(",").includes(packet.state ?? "NEW");
  throw new Error(`the model does not know the match ${option} ${value}`);
}

function isWithin(subnet: string, address: string): boolean {
  const [base = "", bits = "32"] = subnet.split("/");
  const asBits = (text: string) =>
    text
      .split(".")
      .map((byte) => Number(byte).toString(2).padStart(8, "0"))
      .join("");
  return isDeepStrictEqual(asBits(base).slice(0, Number(bits)), asBits(address).slice(0, Number(bits)));
}
