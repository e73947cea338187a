/**
 * @module At which addresses the API of a node is, as far as that is proven. Other nodes keep their containers from those addresses,
 * so a node that named somebody else's would cut their containers off from it. Proven is the address that the node's session comes
 * from, and each one at which a node answers with its id when the master asks.
 */
import { isIP } from "node:net";
import { formatAddress, parseAddress, withoutIpv6Prefix } from "./address.ts";
import { type Clock, sleep } from "./clock.ts";
import type { Hello, NodeRecord, PeerInfo } from "./model.ts";
import type { Scheduler } from "./scheduler.ts";

/** Addresses of one node that are asked for: more than a machine has without a reason. */
const MAX_ASKED = 16;
/** Where nobody answered: the node or the way to it may have been busy, or not up yet. Milliseconds after the last time. */
const ASK_AGAIN_MS = [5_000, 60_000, 600_000];

export type ProvenApisOptions = {
  scheduler: Scheduler;
  clock: Clock;
  selfId: string;
  /** Asks who is at an address; absent: nobody can be asked, and only what a session comes from is proven. */
  askPeer?: (address: string) => Promise<Pick<PeerInfo, "node_id">>;
  /** What is proven of a node has changed. */
  onProven: () => void;
  writeFailed: (error: unknown) => void;
};

/** `remote`: the IP address that the node's session comes from; undefined for the master's session with itself. */
export type Claim = { hello: Hello; remote: string | undefined };

export class ProvenApis {
  readonly #options: ProvenApisOptions;
  /** What each node said last, while that is being checked. */
  readonly #latest = new Map<string, Claim>();
  readonly #stopped = new AbortController();

  constructor(options: ProvenApisOptions) {
    this.#options = options;
  }

  /** The hello with those of its addresses that are proven already. */
  proven({ hello, remote }: Claim): Hello {
    const former = this.#options.scheduler.state.nodes.get(hello.node_id)?.api_addresses ?? [];
    const isKnown = (address: string) => this.#isSure(address, { hello, remote }) || former.includes(address);
    return { ...hello, api_addresses: claimsOf(hello).filter(isKnown) };
  }

  /**
   * Asks at the addresses that are not proven by the session, and writes down what comes of it. Where nobody answers it asks
   * again, unless the node says hello again meanwhile.
   */
  async check(nodeId: string, claim: Claim): Promise<void> {
    const { askPeer, clock } = this.#options;
    const doubtful = claimsOf(claim.hello)
      .filter((address) => !this.#isSure(address, claim))
      .slice(0, MAX_ASKED);
    this.#latest.set(nodeId, claim);
    const isCurrent = () => this.#latest.get(nodeId) === claim && !this.#stopped.signal.aborted;
    let left = askPeer ? doubtful : [];
    for (const delayMs of [0, ...ASK_AGAIN_MS]) {
      // oxlint-disable-next-line no-await-in-loop -- one time after the other
      if (delayMs > 0) await sleep(clock, delayMs, this.#stopped.signal);
      if (!isCurrent()) return;
      // oxlint-disable-next-line no-await-in-loop -- as above
      left = await this.#ask(nodeId, { claim, addresses: left, isCurrent });
      if (left.length === 0) break;
    }
    if (isCurrent()) this.#latest.delete(nodeId);
  }

  stop(): void {
    this.#stopped.abort();
  }

  /** Resolves to the addresses at which nobody answered. */
  async #ask(
    nodeId: string,
    { claim, addresses, isCurrent }: { claim: Claim; addresses: readonly string[]; isCurrent: () => boolean },
  ): Promise<string[]> {
    const { askPeer, scheduler, onProven, writeFailed } = this.#options;
    const { hello } = claim;
    if (!askPeer || addresses.length === 0) return [];
    const { port } = parseAddress(hello.address, "the address of a node");
    const ports = [...new Set([port, hello.api_port ?? port])];
    const ids = new Set([nodeId, hello.node_id]);
    const answers = await Promise.all(
      addresses.map(async (host): Promise<[string, boolean | undefined]> => {
        const asked = ports.map((one) => askPeer(formatAddress({ host, port: one })).catch(() => undefined));
        const found = (await Promise.all(asked)).flatMap((info) => info ?? []);
        return [host, found.length === 0 ? undefined : found.some(({ node_id }) => ids.has(node_id))];
      }),
    );
    const verdicts = new Map(answers);
    const isProven = (address: string, before: readonly string[]) =>
      this.#isSure(address, claim) || (verdicts.get(address) ?? before.includes(address));
    try {
      await scheduler.change(() => {
        const record = scheduler.state.nodes.get(nodeId);
        if (!record || !isCurrent()) return [];
        const before = record.api_addresses ?? [];
        const next: NodeRecord = {
          ...record,
          api_addresses: claimsOf(hello).filter((address) => isProven(address, before)),
        };
        return Bun.deepEquals(next, record) ? [] : [{ op: "put", kind: "node", record: next }];
      });
      onProven();
    } catch (error) {
      writeFailed(error);
    }
    return answers.flatMap(([address, verdict]) => (verdict === undefined ? [address] : []));
  }

  #isSure(address: string, { hello, remote }: Claim): boolean {
    if (remote === undefined) return hello.node_id === this.#options.selfId;
    return withoutIpv6Prefix(remote) === address;
  }
}

/** The addresses that a node says it has, in one order. Older nodes say less. */
function claimsOf({ address, underlay, api_addresses = [] }: Hello): string[] {
  const { host } = parseAddress(address, "the address of a node");
  const claims = [...api_addresses, ...(underlay === undefined ? [] : [underlay]), ...(isIP(host) === 0 ? [] : [host])];
  return [...new Set(claims)].toSorted();
}
