/**
 * @module Which containers of this node are to be kept from the APIs of nodes, and which may call this node's: as facts for the
 * firewall (`overlay_plan_guard.ts` has the rules), and as an answer for each request that comes from a container all the same.
 *
 * Owns the time around a start on a network that others share: the container's address is not known before Docker has started it,
 * so the bridge is closed until then to all but the containers that are known to be somebody else's.
 */
import type { Container } from "./converge.ts";
import type { Engine } from "./docker.ts";
import { nodeAddresses } from "./entry_proxy_addresses.ts";
import type { ExecutorOverlay, JobNetworks, LocalGuard } from "./executor_networks.ts";
import { Refusal } from "./executor_words.ts";
import { type ApiAccess, LABELS } from "./model.ts";
import { apiAccess } from "./model_spec.ts";
import type { GuardedEndpoint } from "./overlay_plan_guard.ts";
import { parseAddress, parseRange, type Range } from "./subnet.ts";

type Containers = { own: readonly Container[]; others: readonly Container[] };

export type ContainerGuardOptions = {
  engine: Pick<Engine, "list">;
  overlay: Pick<ExecutorOverlay, "setGuard" | "connected" | "guardFault">;
  networks: JobNetworks;
  isOwn: (container: Container) => boolean;
  /** Resolves once `look` was called with the container as it is now, and so is every later call. */
  lookAgain: (id: string) => Promise<void>;
};

export class ContainerGuard {
  readonly #options: ContainerGuardOptions;
  /** Undefined before Docker was looked at: what the last process told holds until then. */
  #containers: Containers | undefined;
  /** Shared bridges by the containers that are about to start on them, with who else is there. */
  readonly #starting = new Map<string, { devices: readonly string[]; others: readonly Container[] }>();
  /** What containers may do, by their addresses; and the IPv4 ranges of jobs. */
  #access = new Map<string, ApiAccess>();
  #ranges: Range[] = [];

  constructor(options: ContainerGuardOptions) {
    this.#options = options;
  }

  /** Takes in which containers there are. */
  look(containers: Containers): void {
    this.#containers = containers;
    this.update();
  }

  /** Works the facts out again: networks or containers have changed. */
  update(): void {
    const { overlay, networks } = this.#options;
    if (!this.#containers) return;
    const running = this.#containers.own.filter(({ state }) => state !== "exited" && state !== "created");
    this.#access = new Map(running.flatMap((container) => accessOf(container)));
    this.#ranges = networks.bridges().flatMap(({ subnet }) => parseRange(subnet) ?? []);
    overlay.setGuard({
      bridges: networks.devices.toSorted(),
      shared: this.#shared(running),
      callers: callersOf(running, networks),
    });
  }

  /** What a request from this address may do; undefined: it is not from a container of a job. */
  access(remote: string): ApiAccess | undefined {
    const known = this.#access.get(remote);
    if (known !== undefined) return known;
    const address = parseAddress(remote);
    const isInside = ({ first, size }: Range) => address !== undefined && address >= first && address < first + size;
    if (!this.#ranges.some(isInside)) return undefined;
    // The machine itself has the gateway's address there.
    return nodeAddresses().includes(remote) ? undefined : "none";
  }

  /**
   * Runs `start` for a container that is on `networks`, by name or id. It gets no API at any moment.
   * @throws what `start` throws, and Refusal where the firewall could not hold a network's bridge
   */
  async during<T>(
    id: string,
    { networks, start }: { networks: readonly string[]; start: () => Promise<T> },
  ): Promise<T> {
    const { engine, networks: known, isOwn, lookAgain } = this.#options;
    for (const network of networks) known.refuseOdd(network);
    const devices = networks.flatMap((network) => known.sharedDevice(network) ?? []);
    if (devices.length === 0) {
      await this.#inForce();
      return start();
    }
    const others = (await engine.list()).filter((container) => !isOwn(container));
    this.#starting.set(id, { devices, others });
    this.update();
    try {
      await this.#inForce();
      const result = await start();
      // Its address is known before its bridge is opened to others again.
      await lookAgain(id);
      return result;
    } finally {
      this.#starting.delete(id);
      this.update();
    }
  }

  /** @throws Refusal where the rules can't be set now: the start is tried again. */
  async #inForce(): Promise<void> {
    const { overlay } = this.#options;
    await overlay.connected();
    const fault = overlay.guardFault();
    if (fault === undefined) return;
    throw new Refusal(`the firewall rules that keep containers from the APIs of nodes cannot be set now: ${fault}`);
  }

  #shared(running: readonly Container[]): LocalGuard["shared"] {
    const { networks } = this.#options;
    const devices = new Map<string, { own: GuardedEndpoint[]; others?: GuardedEndpoint[] }>();
    const at = (device: string) => {
      const found = devices.get(device) ?? { own: [] };
      devices.set(device, found);
      return found;
    };
    for (const { device, endpoint } of sharedEndpoints(running, networks)) at(device).own.push(endpoint);
    for (const { devices: starting, others } of this.#starting.values()) {
      for (const device of starting) {
        const found = at(device);
        const there = sharedEndpoints(others, networks).filter((one) => one.device === device);
        // Of several starts the one that asked last knows best; who came since is let in by that.
        found.others = there.map(({ endpoint }) => endpoint);
      }
    }
    return [...devices]
      .toSorted(([one], [other]) => (one < other ? -1 : 1))
      .map(([device, { own, others }]) => ({ device, own: sorted(own), others: others && sorted(others) }));
  }
}

function sharedEndpoints(
  containers: readonly Container[],
  networks: JobNetworks,
): { device: string; endpoint: GuardedEndpoint }[] {
  return containers.flatMap(({ endpoints = [] }) =>
    endpoints.flatMap(({ network, networkId, address, mac }) => {
      const device = networks.sharedDevice(networkId || network);
      if (device === undefined || (address === "" && mac === "")) return [];
      return [{ device, endpoint: { address, mac: mac === "" ? undefined : mac.toLowerCase() } }];
    }),
  );
}

function callersOf(running: readonly Container[], networks: JobNetworks): LocalGuard["callers"] {
  const callers = running
    .filter((container) => accessLabel(container) !== "none")
    .flatMap(({ endpoints = [] }) =>
      endpoints.flatMap(({ network, networkId, address, address6 }) => {
        const device = networks.deviceOf(networkId || network);
        if (device === undefined) return [];
        return [address, address6].filter((one) => one !== "").map((one) => ({ device, address: one }));
      }),
    );
  return callers.toSorted((a, b) => (a.address < b.address ? -1 : 1));
}

function accessOf(container: Container): [string, ApiAccess][] {
  const access = accessLabel(container);
  return (container.endpoints ?? []).flatMap(({ address, address6 }) =>
    [address, address6].filter((one) => one !== "").map((one): [string, ApiAccess] => [one, access]),
  );
}

function accessLabel({ labels }: Container): ApiAccess {
  const label = labels.get(LABELS.api);
  return apiAccess.options.find((one) => one === label) ?? "none";
}

function sorted(endpoints: readonly GuardedEndpoint[]): GuardedEndpoint[] {
  return endpoints.toSorted((a, b) => (a.address < b.address ? -1 : 1));
}
