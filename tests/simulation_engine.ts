/**
 * @module The Docker Engines of the simulation: fake ones that tell before they end something, and how one process reaches its own.
 */
import type { Container } from "../src/converge.ts";
import type { Engine, EngineInfo, EngineNetwork } from "../src/docker.ts";
import { EngineError } from "../src/docker_errors.ts";
import { deviceOf } from "../src/docker_ports.ts";
import { LABELS } from "../src/model.ts";
import { formatAddress, parseRange } from "../src/subnet.ts";
import { FakeEngine } from "./fake_engine.ts";
import type { Life } from "./simulation_process.ts";

type Watchers = {
  onEnd: (allocationId: string, how: "stop" | "remove", stranded: boolean) => void;
  onVolumeRemoval: (jobId: string) => void;
  /** A container has just started. */
  onRun: (container: Container) => void;
};

/** What each machine has for services that ask for a kind of device. */
export const DEVICES = { kind: "ssd", count: 2 };

/** A fake Engine that tells before it ends a container or removes a volume. */
export class SimEngine extends FakeEngine {
  /** The process that last had a container started: what it asked for may happen when it is gone. */
  readonly starters = new Map<string, Life>();
  readonly #watchers: Watchers;

  constructor(options: ConstructorParameters<typeof FakeEngine>[0] & Watchers) {
    super(options);
    this.#watchers = options;
  }

  override stop(id: string, options: Parameters<FakeEngine["stop"]>[1]): Promise<void> {
    this.#tell(id, "stop");
    return super.stop(id, options);
  }

  override remove(id: string): Promise<void> {
    this.#tell(id, "remove");
    return super.remove(id);
  }

  override async info(): Promise<EngineInfo> {
    return { ...(await super.info()), genericResources: [DEVICES] };
  }

  /** With their bridges, by which a node knows them. */
  override async networks(): Promise<EngineNetwork[]> {
    const networks = await super.networks();
    return networks.map((one) => {
      const { id, subnets } = one;
      return { ...one, ...deviceOf({ id, driver: "bridge", internal: false, options: {}, subnets }) };
    });
  }

  /** The next address of the network's subnet that nobody has. */
  protected override addressesOf(network: EngineNetwork | undefined): Container["addresses"] {
    const range = network && parseRange(network.subnets[0] ?? "");
    if (!network || !range) return undefined;
    const running = this.containers.filter(({ state }) => state === "running");
    const taken = new Set(running.flatMap(({ addresses = [] }) => addresses.map(({ address }) => address)));
    // The first two are the network's own and its gateway's, the last one is everybody's.
    for (let n = 2; n < range.size - 1; n++) {
      const address = formatAddress(range.first + n);
      if (!taken.has(address)) return [{ network: network.name, address }];
    }
    return undefined;
  }

  protected override ran(container: Container): void {
    this.#watchers.onRun(container);
  }

  override removeVolume(name: string): Promise<void> {
    this.#watchers.onVolumeRemoval(name.split("_")[0] ?? "");
    return super.removeVolume(name);
  }

  #tell(id: string, how: "stop" | "remove"): void {
    const container = this.containers.find((one) => one.id === id);
    if (container?.state !== "running") return;
    const isStranded = this.isStranded(id) || this.#wasMadeForAnother(container.labels.get(LABELS.joined));
    this.#watchers.onEnd(container.labels.get(LABELS.allocation) ?? "", how, isStranded);
  }

  /** A container that was started again beside a partner that was, too, is by its label still of that one's former run. */
  #wasMadeForAnother(joined = ""): boolean {
    return joined.split(",").some((mark) => {
      const [id, startedAt] = mark.split("@");
      const partner = this.containers.find((one) => one.id === id);
      return startedAt !== undefined && String(partner?.startedAt) !== startedAt;
    });
  }
}

/** The Engine as one process reaches it: answers and events come in only while the process lives. `isCut`: it is out of reach now. */
export function scoped(engine: SimEngine, life: Life, isCut: () => boolean = () => false): Engine {
  return new Proxy<Engine>(engine, {
    get(target, key) {
      const member: unknown = Reflect.get(target, key, target);
      if (key === "watch") {
        if (isCut()) return () => Promise.reject(new EngineError("unavailable", "out of reach"));
        return ({ signal, onOpen, onEvent, labels }: Parameters<Engine["watch"]>[0]) =>
          life.of(
            engine.watch({
              labels,
              signal: AbortSignal.any([signal, life.ended]),
              onOpen: () => life.enter(onOpen),
              onEvent: (event) => life.enter(() => onEvent(event)),
            }),
          );
      }
      if (typeof member !== "function") return member;
      return (...args: unknown[]) => {
        if (isCut()) return Promise.reject(new EngineError("unavailable", "out of reach"));
        if (key === "start") engine.starters.set(String(args[0]), life);
        const answer: unknown = Reflect.apply(member, target, args);
        return answer instanceof Promise ? life.of(answer) : answer;
      };
    },
  });
}
