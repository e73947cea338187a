/** @module Which version of the protocol a session speaks (point 10): nodes and masters that know a range of versions, or one only. */
import { beforeEach, describe, expect, test } from "bun:test";
import { signWelcome } from "../src/cluster_key.ts";
import { type Hello, type MasterMessage, PROTOCOL_VERSION } from "../src/model.ts";
import { commonProtocol, type ProtocolRange, protocolFault, PROTOCOLS } from "../src/model_protocol.ts";
import { readNodeMessage } from "../src/membership_reports.ts";
import { faultOf } from "../src/session_welcome.ts";
import { signer } from "./cluster_fixture.ts";
import { Master } from "./master_fixture.ts";

const range = (oldest: number, newest: number): ProtocolRange => ({ oldest, newest });

function hello(more: Partial<Hello> = {}): Hello {
  return {
    type: "hello",
    protocol: PROTOCOL_VERSION,
    node_id: "n",
    instance: "i",
    nonce: "nonce",
    node_name: "n",
    address: "10.0.0.2:9000",
    labels: [],
    engine: { state: "unready", reason: "", engine_id: "e" },
    version: "0",
    ...more,
  };
}

test("point 10: the version of a session is the newest that both understand", () => {
  expect(commonProtocol(range(3, 3), range(3, 3))).toBe(3);
  expect(commonProtocol(range(3, 5), range(4, 9))).toBe(5);
  expect(commonProtocol(range(4, 9), range(3, 5))).toBe(5);
  expect(commonProtocol(range(3, 3), range(4, 9))).toBeUndefined();
});

test("point 10: a refusal says both ranges, and which side to upgrade", () => {
  expect(protocolFault(range(3, 3), range(4, 6))).toBe(
    "the master speaks versions 4 to 6 of the protocol, this node version 3: upgrade cacophony on this node",
  );
  expect(protocolFault(range(7, 8), range(4, 6))).toBe(
    "the master speaks versions 4 to 6 of the protocol, this node versions 7 to 8: upgrade cacophony on the master",
  );
  expect(protocolFault(range(5, 7), range(4, 6))).toBeUndefined();
});

test("point 10: what this binary says first is the version that masters without a range demand", () => {
  expect(PROTOCOL_VERSION).toBe(3);
  expect(PROTOCOLS.oldest).toBeLessThanOrEqual(PROTOCOL_VERSION);
  expect(PROTOCOLS.newest).toBeGreaterThanOrEqual(PROTOCOL_VERSION);
});

describe("point 10: a master", () => {
  let master: Master;
  beforeEach(async () => void (master = await Master.start()));

  async function answerTo(message: Hello): Promise<MasterMessage | undefined> {
    const heard: MasterMessage[] = [];
    const channel = { send: (text: string) => void heard.push(JSON.parse(text)), close: () => {} };
    master.membership.accept(channel).onMessage(JSON.stringify(message));
    await master.clock.advance(20);
    return heard[0];
  }

  test("takes a node without a range by its one version, and says nothing of ranges to it", async () => {
    const answer = await answerTo(hello());
    expect(answer?.type).toBe("welcome");
    expect(answer).not.toHaveProperty("protocol");
  });

  test("takes a later node whose range reaches back to its own, and says which version it chose", async () => {
    const protocols = range(PROTOCOLS.newest, PROTOCOLS.newest + 5);
    expect(await answerTo(hello({ protocols }))).toMatchObject({ type: "welcome", protocol: PROTOCOLS.newest });
  });

  test("refuses a node whose range does not overlap its own", async () => {
    const later = PROTOCOLS.newest + 1;
    const answer = await answerTo(hello({ protocols: range(later, later) }));
    expect(answer).toMatchObject({ type: "refused", code: "protocol" });
    expect((answer as { message: string }).message).toContain(`this node version ${later}: upgrade cacophony on the m`);
  });

  test("refuses a node of another version that says nothing of a range", async () => {
    const answer = await answerTo(hello({ protocol: PROTOCOLS.oldest - 1 }));
    expect(answer).toMatchObject({ type: "refused", code: "protocol" });
    expect((answer as { message: string }).message).toEndWith("upgrade cacophony on this node");
  });

  test.each([range(5, 4), range(-1, 4), { oldest: 3 }, "3", { oldest: 3, newest: 1e300 }])(
    "cannot read a hello with the range %j",
    (protocols) => {
      const text = JSON.stringify({ ...hello(), protocols });
      expect(readNodeMessage(text, { isHello: true }).ok).toBe(false);
    },
  );
});

describe("point 10: a node", () => {
  const signedBy = signer(1);
  const facts = { hello: hello(), trust: { clusterKey: undefined, seenTerm: 0 }, dialled: "10.0.0.1:9000" };
  const welcome = (protocol?: number) =>
    signWelcome(
      {
        ...({ type: "welcome", cluster_id: "c", node_id: "n", node_name: "n", term: 1 } as const),
        ...{ master: { node_id: "m", address: "10.0.0.1:9000" }, peers: [] },
        ...{ heartbeat_interval_ms: 1_000, node_timeout_ms: 4_000 },
        ...(protocol !== undefined && { protocol }),
      },
      { hello: facts.hello, signer: signedBy },
    );

  test("follows a master that says nothing of versions, or chose one that the node understands", () => {
    expect(faultOf(welcome(), facts)).toBeUndefined();
    expect(faultOf(welcome(PROTOCOLS.oldest), facts)).toBeUndefined();
    expect(faultOf(welcome(PROTOCOLS.newest), facts)).toBeUndefined();
  });

  test("follows no master that chose a version which the node does not understand", () => {
    expect(faultOf(welcome(PROTOCOLS.newest + 1), facts)?.reason).toMatch(
      /10\.0\.0\.1:9000 chose version \d+ of the protocol, this node speaks version \d+: run the same version/,
    );
  });
});
