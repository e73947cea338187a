/** @module What a node believes of the cluster's network, and that no line of a command is more than one. */
import { describe, expect, test } from "bun:test";
import type { NetworkMessage } from "../src/model_network.ts";
import { overlayChanges, type OverlayPlan, planOverlay } from "../src/overlay_plan.ts";
import { checkedNetwork } from "../src/overlay_plan_checks.ts";
import { addressesInBlocks } from "../src/overlay_plan_crossings.ts";
import { oneLine } from "../src/overlay_plan_firewall.ts";
import { bareKernel, NO_GUARD } from "./overlay_model.ts";
import { HOSTILE_TEXTS } from "./rogue_words.ts";

const SELF = { node_id: "n1", underlay: "10.0.0.1", subnets: ["10.213.1.0/24"] };
const PEER = { node_id: "n2", underlay: "10.0.0.2", subnets: ["10.213.2.0/24", "10.213.64.0/20"] };

function message(more: Partial<NetworkMessage> = {}): NetworkMessage {
  return { type: "network", mode: "vxlan", cidr: "10.213.0.0/16", self: SELF, peers: [PEER], networks: [], ...more };
}

describe("checkedNetwork() (point 4)", () => {
  test("takes an honest message as it is", () => {
    const honest = message({ networks: [{ network: "a", subnets: ["10.213.2.64/26", "10.213.70.0/26"] }] });
    expect(checkedNetwork(honest)).toEqual({ network: honest, faults: [] });
  });

  test("leaves out subnets that are in no other node's blocks", () => {
    const subnets = [
      "10.213.2.64/26",
      "10.213.1.64/26",
      "10.213.3.0/24",
      "10.213.0.0/16",
      "0.0.0.0/0",
      "10.213.2.0/23",
    ];
    const { network, faults } = checkedNetwork(message({ networks: [{ network: "a", subnets }] }));
    expect(network.networks).toEqual([{ network: "a", subnets: ["10.213.2.64/26"] }]);
    expect(faults).toEqual([
      "network a has subnets in no other node's blocks: 10.213.1.64/26, 10.213.3.0/24, 10.213.0.0/16, 0.0.0.0/0, 10.213.2.0/23",
    ]);
  });

  test.each(["10.213.1.0/24", "10.213.1.128/25", "10.213.0.0/16", "192.168.0.0/24", "0.0.0.0/0"])(
    "leaves out a node that is to have %s",
    (block) => {
      const bad = { node_id: "n3", underlay: "10.0.0.3", subnets: ["10.213.3.0/24", block] };
      const { network, faults } = checkedNetwork(message({ peers: [PEER, bad] }));
      expect(network.peers).toEqual([PEER]);
      expect(faults).toHaveLength(1);
    },
  );

  test("leaves out a node that is this one, and refuses blocks of its own outside of the range", () => {
    expect(checkedNetwork(message({ peers: [{ ...PEER, node_id: "n1" }] })).network.peers).toEqual([]);
    expect(() => checkedNetwork(message({ self: { ...SELF, subnets: ["192.168.0.0/24"] } }))).toThrow(
      "the master gives this node the block 192.168.0.0/24, which is outside of the cluster's range 10.213.0.0/16",
    );
  });
});

test("addressesInBlocks() lets through what is in the blocks of the replica's own node (point 4)", () => {
  const blocks = new Map([["n2", PEER.subnets]]);
  const of = (node_id: string, addresses: string[]) =>
    addressesInBlocks(
      { node_id, addresses: addresses.map((address) => ({ network: "a", address })) },
      (id) => blocks.get(id) ?? [],
    ).map(({ address }) => address);
  expect(of("n2", ["10.213.2.9", "10.213.65.1", "10.213.1.9", "10.0.0.1"])).toEqual(["10.213.2.9", "10.213.65.1"]);
  expect(of("nobody", ["10.213.2.9"])).toEqual([]);
});

describe("a line of a command (point 4)", () => {
  test("has no line feed in it, or nothing is done at all", () => {
    for (const text of HOSTILE_TEXTS.filter((one) => one.includes("\n") || one.includes("\0")))
      expect(() => oneLine(text)).toThrow("a line for the kernel's network has control characters in it");
    expect(oneLine("-A CACOPHONY-IN -j DROP")).toBe("-A CACOPHONY-IN -j DROP");
  });

  const overlay = {
    link: { mode: "vxlan" as const },
    cidr: "10.213.0.0/16",
    self: SELF,
    peers: [],
    bridges: [],
    guard: NO_GUARD,
  };
  const keys = new Map([["n2", `k=\nEndpoint = 10.6.6.6:1`]]);
  const bridge = {
    network: "a",
    device: "br-a",
    subnet: "10.213.1.64/26",
    internal: false,
    guests: [],
    travellers: [],
  };
  const evil = "10.213.2.0/26\n-A INPUT -j ACCEPT";

  test.each([
    ["a remote subnet", () => planOverlay({ ...overlay, bridges: [{ ...bridge, remote: [evil] }] })],
    ["a guest's address", () => planOverlay({ ...overlay, bridges: [{ ...bridge, remote: [], guests: [evil] }] })],
    ["a node's id", () => planOverlay({ ...overlay, self: { ...SELF, node_id: "n1\nlink delete eth0" } })],
    [
      "a WireGuard key",
      () => planOverlay({ ...overlay, link: { mode: "wireguard", privateKey: "p", publicKeys: keys }, peers: [PEER] }),
    ],
  ] as [string, () => OverlayPlan][])("of %s that passed every door is none", (_, plan) => {
    expect(() => overlayChanges(plan(), bareKernel(SELF.underlay))).toThrow(/control characters/);
  });
});
