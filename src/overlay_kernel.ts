/**
 * @module The cluster's network as this machine's kernel has it: looks, changes what differs from the plan, removes. By `ip`,
 * `bridge`, `iptables` and, for WireGuard, `wg`; what is to be there is `overlay_plan.ts`'s to say.
 *
 * What is to be done follows from a look, or between two looks from what the last call left. A new process begins with a look:
 * killed at any moment, the next one makes good what is missing, as the next look does when somebody else removed a piece. So
 * `apply` on each change, and now and then with a look.
 */
import type { Log } from "./log.ts";
import { CommandError, commandRunner, type CommandRunner } from "./overlay_kernel_command.ts";
import { observeAddresses, observeOverlay, observeRules } from "./overlay_kernel_observe.ts";
import {
  expectedChanges,
  guardAfter,
  guardChanges,
  isFirewall,
  type ObservedOverlay,
  type Overlay,
  OVERLAY_PORT,
  overlayAfter,
  overlayChanges,
  type OverlayChanges,
  type OverlayMode,
  type OverlayPlan,
  overlayRemoval,
  type OverlayStep,
  planOverlay,
} from "./overlay_plan.ts";
import type { Tables } from "./overlay_plan_firewall.ts";
import type { Guard } from "./overlay_plan_guard.ts";

/** Device and chain that are made and removed again to see whether that works. */
const PROBE = { device: "cvx-probe", vxlanId: 0xffffff, chain: "CACOPHONY-PROBE" };
/** Table of an Engine with `"firewall-backend": "nftables"` (29 and later); what it drops, iptables can't accept. */
const DOCKER_NFT_TABLE = "table ip docker-bridges";

/** A comment behind the rules: what comes to it has committed them. */
const COMMITTED = "# Cacophony's rules are committed";

export type OverlayState = {
  /** Commands that were needed; none when all was as it should be. */
  changed: string[];
  /** What can't be had, as sentences for people. */
  problems: string[];
  /** Why nothing was done at all; absent: the node takes part. */
  refused?: string;
  /** Largest packet that passes between nodes whole; job networks should have it. Undefined if the node is not connected. */
  mtu: number | undefined;
};

export type OverlayKernelOptions = {
  log: Log;
  /** Where commands are looked for, as in PATH. */
  searchPath: string;
  /** Put in front of each command, such as `nsenter --net=FILE --` for another network namespace. */
  enter?: readonly string[];
  /** What a command may take; default 15 s. */
  timeoutMs?: number;
};

export class OverlayKernel {
  readonly #log: Log;
  readonly #commands: CommandRunner;
  #turn: Promise<unknown> = Promise.resolve();
  /** What the last call left; undefined where only a look can tell. */
  #last: ObservedOverlay | undefined;
  /** The same of `guard`. */
  #lastRules: { tables: Tables; tables6: Tables | undefined } | undefined;

  constructor({ log, ...where }: OverlayKernelOptions) {
    this.#log = log;
    this.#commands = commandRunner(where);
  }

  /**
   * Finds out, by trying, whether this machine can take part: undefined if so, else one sentence why not.
   * `underlay` is the machine's address for the other nodes.
   */
  supported(mode: OverlayMode, underlay: string): Promise<string | undefined> {
    return this.#inTurn(async () => {
      for (const attempt of [tryIp, tryAddress, tryDevice, tryIptables, tryDocker]) {
        const reason = await attempt(this.#commands, { mode, underlay });
        if (reason !== undefined) return reason;
      }
      return undefined;
    });
  }

  /**
   * Makes the kernel have what the plan says, and nothing else of ours. Without `look` it goes by what the last call left where
   * that is known and only the firewall is to change: a look takes as long as the change itself.
   * @throws {CommandError} if a command fails; the others were done, but for a firewall that fails: then none after it was.
   */
  apply(overlay: Overlay, { look = true } = {}): Promise<OverlayState> {
    return this.#inTurn(async () => {
      const plan = planOverlay(overlay);
      const last = this.#last;
      this.#forget();
      if (!look && last) {
        const changes = expectedChanges(plan, last);
        const isDone = changes && (await this.#try(changes.steps));
        if (isDone) return this.#done(plan, { changes, observed: last });
      }
      const observed = await observeOverlay(this.#commands);
      const changes = overlayChanges(plan, observed);
      await this.#do(changes.steps);
      return this.#done(plan, { changes, observed });
    });
  }

  /**
   * Keeps containers from the APIs of nodes where this node does without the cluster's network, and leaves everything else as it
   * is; `look` as for `apply`. Returns what can't be had, as sentences for people.
   * @throws {CommandError}
   */
  guard(guard: Guard, { look = true } = {}): Promise<string[]> {
    return this.#inTurn(async () => {
      const last = this.#lastRules;
      this.#forget();
      const expected = !look && last ? guardChanges(guard, last) : undefined;
      const isDone = expected && (await this.#try(expected.steps));
      const observed = isDone && last ? last : await observeRules(this.#commands);
      const { steps, problems } = isDone ? expected : guardChanges(guard, observed);
      if (!isDone) await this.#do(steps);
      this.#lastRules = guardAfter(guard, observed);
      return problems;
    });
  }

  /** Removes all that `apply` made for the node, and what `guard` made unless that is kept. @throws {CommandError} */
  remove(nodeId: string, { keepGuard = false } = {}): Promise<void> {
    return this.#inTurn(async () => {
      this.#forget();
      await this.#do(overlayRemoval(nodeId, await observeOverlay(this.#commands), { keepGuard }));
    });
  }

  #done(
    plan: OverlayPlan,
    { changes, observed }: { changes: OverlayChanges; observed: ObservedOverlay },
  ): OverlayState {
    const { steps, problems, mtu, refused } = changes;
    this.#last = refused === undefined ? overlayAfter(plan, { steps, observed }) : undefined;
    return { changed: steps.flatMap(inLines), problems, mtu, ...(refused !== undefined && { refused }) };
  }

  /** Whether the steps could be done; they can't where the firewall is not as it was left. @throws {CommandError} */
  async #try(steps: readonly OverlayStep[]): Promise<boolean> {
    try {
      await this.#do(steps);
      return true;
    } catch (error) {
      // What waited in vain would only wait once more.
      if (!(error instanceof CommandError) || error.code !== "failed") throw error;
      this.#log.debug("the firewall could not be changed as expected, looking", { error });
      return false;
    }
  }

  /** What is to be done follows from a look again. */
  #forget(): void {
    this.#last = undefined;
    this.#lastRules = undefined;
  }

  async #do(steps: readonly OverlayStep[]): Promise<void> {
    const errors: unknown[] = [];
    for (const [index, step] of steps.entries()) {
      // Both kinds of rules at once.
      const [before, after] = [steps[index - 1], steps[index + 1]];
      if (isFirewall(step) && before && isFirewall(before)) continue;
      try {
        // Without its rules the device would let everybody through.
        if (isFirewall(step)) await this.#restoreAll(after && isFirewall(after) ? [step, after] : [step]);
        else await this.#commands.run(step.argv, step);
      } catch (error) {
        if (isFirewall(step)) throw error;
        errors.push(error);
      }
    }
    if (steps.length > 0) this.#log.debug("changed the kernel's network", { commands: steps.flatMap(inLines).length });
    if (errors.length > 0) throw errors[0];
  }

  async #restoreAll(steps: readonly OverlayStep[]): Promise<void> {
    const failed = (await Promise.allSettled(steps.map((step) => this.#restore(step)))).find(
      ({ status }) => status === "rejected",
    );
    if (failed?.status === "rejected") throw failed.reason;
  }

  /**
   * The rules are in force 10 to 30 ms before `iptables-restore` ends, for the kernel cleans up when the command closes its socket.
   * Told to be verbose it repeats comments as it comes to them, once they fill what it writes at a time, which is 4 KiB.
   */
  async #restore({ argv, input = "" }: OverlayStep): Promise<void> {
    const comments = `${COMMITTED}\n`.repeat(Math.ceil(5_000 / COMMITTED.length));
    await this.#commands.run([...argv, "--verbose"], { input: input + comments, until: COMMITTED });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work);
    this.#turn = turn.catch(() => {});
    return turn;
  }
}

/** A batch's lines are commands; other input may hold keys. */
function inLines({ argv, input }: OverlayStep): string[] {
  const command = argv.join(" ");
  return argv.includes("-batch")
    ? (input ?? "")
        .trimEnd()
        .split("\n")
        .map((line) => `${argv[0]} ${line}`)
    : [command];
}

type Question = { mode: OverlayMode; underlay: string };
type Attempt = (commands: CommandRunner, question: Question) => Promise<string | undefined>;

const tryIp: Attempt = (commands) =>
  trying(async () => {
    await observeAddresses(commands);
    await commands.run(["bridge", "-j", "fdb", "show"]);
    await commands.run(["ip", "-j", "-4", "netconf", "show"]);
  }, "needs the commands ip and bridge of a recent iproute2");

const tryAddress: Attempt = async (commands, { underlay }) => {
  const found = (await observeAddresses(commands)).some(({ address }) => address === underlay);
  if (found) return undefined;
  return `the cluster's network needs an IPv4 address of one of this machine's interfaces that other nodes reach; ${underlay} is none`;
};

const tryDevice: Attempt = async (commands, { mode }) => {
  const { device, vxlanId } = PROBE;
  const kind = mode === "vxlan" ? ["vxlan", "id", `${vxlanId}`, "dstport", `${OVERLAY_PORT}`] : [mode];
  const add = () => commands.run(["ip", "link", "add", device, "type", ...kind]);
  const remove = () => commands.run(["ip", "link", "delete", device]);
  return trying(async () => {
    if (mode === "wireguard") await commands.run(["wg", "--version"]);
    // A process that was killed in between leaves the device behind.
    await add().catch(async (error: unknown) => {
      if (!(error instanceof CommandError) || !/exists/.test(error.stderr)) throw error;
      await remove();
      await add();
    });
    // Devices of one port share a socket; when it can't be had, another program has the port.
    await commands.run(["ip", "link", "set", device, "up"]).finally(remove);
  }, `needs network devices of type ${mode}`);
};

const tryIptables: Attempt = (commands) => {
  const { chain } = PROBE;
  const rule = `-A ${chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`;
  // Each a transaction: the chain is never there for others to see.
  const tables = ["filter", "nat", "raw"].map((table) =>
    [`*${table}`, `:${chain} - [0:0]`, rule, `-F ${chain}`, `-X ${chain}`, "COMMIT", ""].join("\n"),
  );
  return trying(async () => {
    await commands.run(["iptables-save"]);
    await commands.run(["iptables-restore", "--noflush", "-w", "5"], { input: tables.join("") });
  }, "needs iptables-save and iptables-restore");
};

const tryDocker: Attempt = async (commands) => {
  // Without the command nft nobody can have told Docker to use it.
  const tables = await commands.run(["nft", "list", "tables"]).catch(() => "");
  if (!tables.split("\n").includes(DOCKER_NFT_TABLE)) return undefined;
  return `the cluster's network needs a Docker Engine that uses iptables; this one has "firewall-backend": "nftables"`;
};

/** One sentence for what a try ran into. */
async function trying(attempt: () => Promise<void>, needs: string): Promise<string | undefined> {
  try {
    await attempt();
    return undefined;
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    const said = error.stderr.trim().split("\n")[0] || error.message;
    const hint = HINTS.find(([pattern]) => pattern.test(said))?.[1];
    return `the cluster's network ${needs}: ${said}${hint === undefined ? "" : ` (${hint})`}`;
  }
}

const HINTS: readonly [RegExp, string][] = [
  [/not permitted|must be root|Permission denied/, "the node needs root or CAP_NET_ADMIN"],
  [/Address already in use/, `another program has UDP port ${OVERLAY_PORT}`],
  [/Unknown device type|not supported/, "this kernel does not have them"],
];
