/** @module Which packets of containers may go to the APIs of nodes: the rules, and how they come and go beside all others. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  guardAfter,
  guardChanges,
  type Overlay,
  overlayChanges,
  overlayRemoval,
  planOverlay,
} from "../src/overlay_plan.ts";
import { parseTables } from "../src/overlay_plan_firewall.ts";
import { type Guard, guardChains } from "../src/overlay_plan_guard.ts";
import { bareKernel, ModelKernel, NO_GUARD } from "./overlay_model.ts";

const GUARD: Guard = {
  port: 9000,
  bridges: ["br-b", "br-a"],
  shared: [
    {
      device: "docker0",
      own: [{ address: "172.17.0.3", mac: "02:42:ac:11:00:03" }],
      others: [{ address: "172.17.0.2", mac: "02:42:ac:11:00:02" }],
    },
    { device: "br-x", own: [{ address: "10.9.0.2", mac: undefined }], others: undefined },
  ],
  callers: [
    { device: "br-a", address: "10.213.1.70" },
    { device: "br-a", address: "fd00::2" },
  ],
  nodes: [
    { address: "10.0.0.2", port: 9000 },
    { address: "fd77::2", port: 9000 },
    { address: "10.0.0.3", port: 9100 },
  ],
};
const REFUSE = "-j REJECT --reject-with tcp-reset";

describe("guardChains()", () => {
  test("close a bridge of jobs as a whole, a shared one by address, and open a node's API to those that may call it", () => {
    expect(guardChains(GUARD, 4)).toEqual([
      ["CACOPHONY-API", ["-s 10.213.1.70/32 -i br-a -j RETURN", "-j CACOPHONY-GUARD"]],
      [
        "CACOPHONY-APIS",
        [
          "-d 10.0.0.2/32 -p tcp -m tcp --dport 9000 -j CACOPHONY-GUARD",
          "-d 10.0.0.3/32 -p tcp -m tcp --dport 9100 -j CACOPHONY-GUARD",
        ],
      ],
      [
        "CACOPHONY-GUARD",
        [
          `-i br-a -p tcp ${REFUSE}`,
          `-i br-b -p tcp ${REFUSE}`,
          `-s 172.17.0.3/32 -i docker0 -p tcp ${REFUSE}`,
          "-s 172.17.0.2/32 -i docker0 -j RETURN",
          `-i docker0 -p tcp ${REFUSE}`,
          `-s 10.9.0.2/32 -i br-x -p tcp ${REFUSE}`,
        ],
      ],
    ]);
  });

  test("know containers on a shared bridge by their MACs over IPv6, where they choose an address by themselves", () => {
    expect(guardChains(GUARD, 6)).toEqual([
      ["CACOPHONY-API", ["-s fd00::2/128 -i br-a -j RETURN", "-j CACOPHONY-GUARD"]],
      ["CACOPHONY-APIS", ["-d fd77::2/128 -p tcp -m tcp --dport 9000 -j CACOPHONY-GUARD"]],
      [
        "CACOPHONY-GUARD",
        [
          `-i br-a -p tcp ${REFUSE}`,
          `-i br-b -p tcp ${REFUSE}`,
          `-i docker0 -p tcp -m mac --mac-source 02:42:ac:11:00:03 ${REFUSE}`,
          "-i docker0 -m mac --mac-source 02:42:ac:11:00:02 -j RETURN",
          `-i docker0 -p tcp ${REFUSE}`,
        ],
      ],
    ]);
  });

  test("are none where no container of a job is", () => {
    expect(guardChains({ ...GUARD, bridges: [], shared: [] }, 4)).toEqual([]);
  });
});

const PEER = { node_id: "n2", underlay: "10.77.0.2", subnets: ["10.213.2.0/24"] };

function overlay(guard: Guard): Overlay {
  const self = { node_id: "n1", underlay: "10.77.0.1", subnets: ["10.213.1.0/24"] };
  return { link: { mode: "vxlan" }, cidr: "10.213.0.0/16", self, peers: [PEER], bridges: [], guard };
}

const devices = fc.constantFrom("br-a", "br-b", "br-c");
const guards: fc.Arbitrary<Guard> = fc.record({
  port: fc.constantFrom(9000, 9100),
  bridges: fc.uniqueArray(devices),
  shared: fc.constantFrom(GUARD.shared, []),
  callers: fc.constantFrom(GUARD.callers, []),
  nodes: fc.constantFrom(GUARD.nodes, []),
});

function jumpsOf(kernel: ModelKernel, chain: string): readonly string[] {
  return kernel.state.tables.get("filter")?.get(chain) ?? [];
}

describe("the guard beside the cluster's network", () => {
  test("comes first, in the chains of the machine and before Docker's", () => {
    const kernel = new ModelKernel(bareKernel("10.77.0.1"));
    kernel.damage("*filter\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\nCOMMIT\n");
    kernel.run(overlayChanges(planOverlay(overlay(GUARD)), kernel.state).steps);
    expect(jumpsOf(kernel, "INPUT")).toEqual(["-p tcp -m tcp --dport 9000 -j CACOPHONY-API", "-j CACOPHONY-INPUT"]);
    expect(jumpsOf(kernel, "DOCKER-USER")).toEqual([
      "-p tcp -m tcp --dport 9000 -j CACOPHONY-APIS",
      "-p tcp -m tcp --dport 9100 -j CACOPHONY-APIS",
      "-j CACOPHONY-FORWARD",
      "-j RETURN",
    ]);
  });

  test("refuses the APIs of other nodes at their addresses in the cluster's network, too", () => {
    const { rules } = planOverlay(overlay(GUARD));
    expect(rules.tables.get("filter")?.get("CACOPHONY-APIS")).toContain(
      "-d 10.213.2.1/32 -p tcp -m tcp --dport 9000 -j CACOPHONY-GUARD",
    );
  });

  test("settles at once in every mode, and nothing of it is left after the removal", () => {
    const steps = fc.array(fc.record({ guard: guards, alone: fc.boolean() }), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(steps, (list) => {
        const kernel = new ModelKernel(bareKernel("10.77.0.1"));
        for (const { guard, alone } of list) {
          const changes = () =>
            alone ? guardChanges(guard, kernel.state) : overlayChanges(planOverlay(overlay(guard)), kernel.state);
          const expected = alone ? guardAfter(guard, kernel.state) : undefined;
          kernel.run(changes().steps);
          expect(changes().steps).toEqual([]);
          if (expected) expect(guardChanges(guard, expected).steps).toEqual([]);
        }
        kernel.run(overlayRemoval("n1", kernel.state));
        expect(kernel.ours()).toEqual([]);
      }),
    );
  });

  test("alone leaves the cluster's network as it is, and stays when that is removed", () => {
    const kernel = new ModelKernel(bareKernel("10.77.0.1"));
    kernel.run(overlayChanges(planOverlay(overlay(NO_GUARD)), kernel.state).steps);
    const before = kernel.ours();
    kernel.run(guardChanges(GUARD, kernel.state).steps);
    expect(kernel.ours()).not.toEqual(before);
    kernel.run(guardChanges(NO_GUARD, kernel.state).steps);
    expect(kernel.ours()).toEqual(before);
    const alone = new ModelKernel(bareKernel("10.77.0.1"));
    alone.run(guardChanges(GUARD, alone.state).steps);
    kernel.run(overlayChanges(planOverlay(overlay(GUARD)), kernel.state).steps);
    kernel.run(overlayRemoval("n1", kernel.state, { keepGuard: true }));
    kernel.run(guardChanges(GUARD, kernel.state).steps);
    expect(kernel.ours()).toEqual(alone.ours());
  });
});

test("a MAC is the same in whatever case iptables-save prints it", () => {
  const text = "*filter\n:X - [0:0]\n-A X -i docker0 -p tcp -m mac --mac-source 02:42:AC:11:00:03 -j RETURN\nCOMMIT\n";
  expect(parseTables(text).get("filter")?.get("X")).toEqual([
    "-i docker0 -p tcp -m mac --mac-source 02:42:ac:11:00:03 -j RETURN",
  ]);
});
