/** @module What the master believes of what nodes report: nothing of others' addresses, containers and duties. */
import { describe, expect, test } from "bun:test";
import { type Log, silentLog } from "../src/log.ts";
import { ownNetworks, readNodeMessage, ReportFaults } from "../src/membership_reports.ts";
import { MAX_REPORT_CHARS } from "../src/model_bounds.ts";
import type { NodeNetwork } from "../src/model_network.ts";
import { Master, Peer } from "./master_fixture.ts";
import { HOSTILE_TEXTS } from "./rogue_words.ts";

const KEY = `${"A".repeat(43)}=`;

/** Two honest nodes that share the network `a`, and a third one that lies. */
async function withLiar() {
  const master = await Master.start();
  const [one, two, liar] = [await Peer.join(master, 1), await Peer.join(master, 2), await Peer.join(master, 3)];
  for (const [n, peer] of [one, two].entries()) {
    peer.overlay = { ...peer.overlay!, networks: [{ network: "a", subnet: `10.213.${n}.64/26` }] };
    await peer.beat();
  }
  return { master, one, two, liar };
}

/** What an older node would say, or one that means harm: not what the types allow. */
function lies(networks: unknown[], more: object = {}): NodeNetwork {
  return { mode: "vxlan", networks, blocks: 1, full: false, ...more } as NodeNetwork;
}

describe("a worker that reports subnets (point 4)", () => {
  test("gets none but those in its own blocks to other nodes, and keeps its session", async () => {
    const { master, one, liar } = await withLiar();
    const before = one.network?.networks;
    expect(before).toEqual([{ network: "a", subnets: ["10.213.1.64/26"] }]);
    const texts = [...HOSTILE_TEXTS, "10.213.1.0/26", "10.213.0.0/16", "192.168.0.0/16", "10.213.2.0/23"];
    liar.overlay = lies(texts.map((subnet) => ({ network: "a", subnet })));
    await liar.beat();
    await master.clock.advance(100);
    expect(one.network?.networks).toEqual(before as never);
    expect([liar.isConnected, master.scheduler.state.views.get("n3")?.state]).toEqual([true, "ready"]);
    liar.overlay = lies([
      { network: "a", subnet: "10.213.2.64/26" },
      { network: "a", subnet: "10.213.0.64/26\n-A X" },
    ]);
    await liar.beat();
    await master.clock.advance(100);
    expect(one.network?.networks).toEqual([{ network: "a", subnets: ["10.213.1.64/26", "10.213.2.64/26"] }]);
  });

  test("has a WireGuard key of 32 bytes or none", async () => {
    const { master, one, liar } = await withLiar();
    const keyOf = () => one.network?.peers.find(({ node_id }) => node_id === "n3")?.public_key;
    for (const key of [KEY, `${KEY}\nEndpoint = 10.6.6.6:1`, "x", 5]) {
      liar.overlay = lies([], { public_key: key });
      await liar.beat();
      await master.clock.advance(100);
      expect([key, keyOf()]).toEqual([key, key === KEY ? KEY : undefined] as never);
    }
    expect(liar.isConnected).toBe(true);
  });

  test("is checked once more when others are told, by the blocks that it has then", async () => {
    const { master, one } = await withLiar();
    const view = master.scheduler.state.views.get("n3");
    if (!view) throw new Error("n3 is a member");
    view.overlay = lies([{ network: "a", subnet: "10.213.9.0/26" }]);
    master.scheduler.directory.touchNetworks();
    await master.clock.advance(100);
    expect(one.network?.networks).toEqual([{ network: "a", subnets: ["10.213.1.64/26"] }]);
  });

  test("of a block that was given back is not believed by the master, however it came to know it", async () => {
    const { overlay, faults } = ownNetworks(lies([{ network: "a", subnet: "10.213.9.0/26" }]), {
      subnets: ["10.213.2.0/24"],
    });
    expect(overlay.networks).toEqual([]);
    expect(faults).toEqual([
      "overlay.networks: a has 10.213.9.0/26, which is in none of the node's blocks [10.213.2.0/24]",
    ]);
    expect(ownNetworks(lies([{ network: "a", subnet: "10.213.9.0/26" }]), {}).overlay.networks).toEqual([]);
  });
});

describe("a worker that reports addresses of containers (point 4)", () => {
  test("tells IPv4 addresses only, and of several those in its own blocks", async () => {
    const { master, one, liar } = await withLiar();
    await master.put("shop", { web: { image: "busybox", deploy: { placement: { constraints: ["node.id == n3"] } } } });
    const told = async (addresses: string[]) => {
      await liar.report({ 1: { addresses: addresses.map((address, n) => ({ network: `n${n}`, address })) } });
      await master.clock.advance(100);
      return one.services.get("shop/web")?.endpoints[0]?.addresses.map(({ address }) => address);
    };
    // A document's own subnet, or a network of the machine, is no business of the cluster's range.
    expect(await told(["10.213.2.70", "172.20.0.5", "10.213.2.130"])).toEqual([
      "10.213.2.70",
      "172.20.0.5",
      "10.213.2.130",
    ]);
    expect(await told(["10.213.2.70", "10.213.0.70", "10.213.1.70"])).toEqual(["10.213.2.70"]);
    // A node without the network takes its addresses from anywhere in the range: one of those leads nowhere on other nodes.
    expect(await told(["10.213.0.70", "10.213.1.70"])).toEqual(["10.213.0.70"]);
    expect(await told(["10.213.2.70", ...HOSTILE_TEXTS, "10.213.2.0/24", "10.213.2.71\n"])).toEqual(["10.213.2.70"]);
    expect(liar.isConnected).toBe(true);
  });
});

describe("a worker that speaks for others (points 4 and 5)", () => {
  test("settles no digest for another node's replica, and ends no duty of another node's", async () => {
    const { master, one, liar } = await withLiar();
    const placement = { constraints: ["node.id == n1"] };
    const web = { image: "busybox", volumes: ["data:/data"], deploy: { placement } };
    await master.put("shop", { web }, { volumes: { data: {} } });
    const id = one.assigned[0]?.allocation_id ?? "";
    const digest = `sha256:${"0".repeat(64)}`;
    const status = {
      allocation_id: id,
      state: "pulling" as const,
      final: false,
      ports: [],
      restarts: 0,
      resolved_digest: digest,
    };
    const digestOf = () => master.scheduler.state.liveJob("shop")?.services[0]?.digest;
    await liar.tell([status]);
    expect(digestOf()).toBeUndefined();
    await one.tell([status]);
    expect(digestOf()).toBe(digest);

    await master.delete("shop", { volumes: true });
    const duties = () => [...master.scheduler.state.removals.values()].map(({ node_id }) => node_id).toSorted();
    expect(duties()).toEqual(["n1", "n2", "n3"]);
    liar.removalsDone = [...master.scheduler.state.removals.keys()];
    await liar.report();
    expect(duties()).toEqual(["n1", "n2"]);
  });

  test("keeps no more in the master's memory than a machine can run", async () => {
    const { master, liar } = await withLiar();
    for (let round = 0; round < 3; round++)
      await liar.tell(
        Array.from({ length: 9_000 }, (_, n) => {
          return { allocation_id: `x${round}-${n}`, state: "running" as const, final: false, ports: [], restarts: 0 };
        }),
      );
    expect(master.scheduler.state.views.get("n3")?.statuses.size).toBe(10_000);
  });
});

describe("what is left out of reports", () => {
  test("is told once each, and not without end", () => {
    const lines: unknown[] = [];
    const log: Log = { ...silentLog, warn: (_, fields) => void lines.push(fields) };
    const faults = new ReportFaults(log);
    for (let beat = 0; beat < 100; beat++) faults.tell("n1", ["the same"]);
    expect(lines).toEqual([{ node: "n1", fault: "the same" }]);
    for (let beat = 0; beat < 100; beat++) faults.tell("n1", [`another ${beat}`]);
    faults.tell("n2", ["of another node"]);
    expect(lines).toHaveLength(11);
    expect(lines[9]).toMatchObject({ hint: expect.any(String) });
  });

  test("is nothing where the message is too large, or no JSON: it is refused", () => {
    expect(readNodeMessage("x".repeat(MAX_REPORT_CHARS + 1), { isHello: false })).toMatchObject({ ok: false });
    expect(readNodeMessage("{", { isHello: false })).toEqual({ ok: false, fault: "message: is not JSON" });
    expect(readNodeMessage("[".repeat(1e6), { isHello: false })).toEqual({ ok: false, fault: "message: is not JSON" });
  });
});
