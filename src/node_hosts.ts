/**
 * @module The names by which a node may be asked: what it was started with, and what its machine is called. Reads the machine's
 * hosts(5) and resolv.conf(5), once at each start; knows nothing of requests.
 */
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import type { Address } from "./address.ts";
import { isLoopback, parseAddress } from "./address.ts";
import type { HostNames } from "./api_hosts.ts";
import type { Settings } from "./data_dir.ts";

export type NamesOptions = {
  settings: Settings;
  /** Where the node listens. */
  bind: Address;
  /** Where others reach it; it changes nothing if that is no name. */
  advertise: string;
  /** What the machine says of itself; for tests. */
  machine?: { name: string; hosts: string; resolvConf: string };
};

/** All names of a node; addresses among them do no harm, since those are always allowed. */
export function namesOfNode({ settings, bind, advertise, machine = thisMachine() }: NamesOptions): HostNames {
  const { allow_hosts = [], node_name, advertise_addr } = settings;
  const advertised = [advertise, advertise_addr ?? ""]
    .filter((one) => one !== "")
    .map((one) => parseAddress(one, "the advertised address").host);
  const own = [...allow_hosts, bind.host, ...advertised, machine.name, ...fullNames(machine, bind)];
  if (node_name !== undefined) own.push(node_name);
  return new Set(own.map((name) => name.toLowerCase()));
}

/**
 * The machine's name with its domain, and without. What `hosts` says is the machine's own word. The search domain comes from the
 * network, as DHCP gives it: in a foreign one, whoever runs it could give a page such a name. So it counts only where the node
 * listens to the network anyway, not on loopback alone.
 */
function fullNames({ name, hosts, resolvConf }: NonNullable<NamesOptions["machine"]>, bind: Address): string[] {
  const [short = ""] = name.split(".", 1);
  const canonical = linesOf(hosts)
    .map(([, ...names]) => names)
    .find((names) => names.includes(name))?.[0];
  const names = [short, ...(canonical === undefined ? [] : [canonical])];
  if (isLoopback(bind.host) || name.includes(".")) return names;
  // Of several such lines the last one counts, and the first of its domains makes the machine's full name.
  const domain = linesOf(resolvConf).findLast(([word]) => word === "search" || word === "domain")?.[1];
  return domain === undefined || domain === "." ? names : [...names, `${name}.${domain}`];
}

/** The words of each line, without comments. */
function linesOf(text: string): string[][] {
  return text.split("\n").map((line) =>
    line
      .replace(/[#;].*$/, "")
      .split(/\s+/)
      .filter(Boolean),
  );
}

function thisMachine(): NonNullable<NamesOptions["machine"]> {
  return { name: hostname(), hosts: textOf("/etc/hosts"), resolvConf: textOf("/etc/resolv.conf") };
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // Without it the machine has its own name alone.
  }
}
