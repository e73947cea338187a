/**
 * @module A rogue node, as a program: `bun tests/rogue_node.ts --address HOST:PORT --seed N --sessions N`. It opens sessions to a
 * master, one after the other and some at once, as nodes that nobody knows, and says what no node says. It ends by itself.
 */
import { parseArgs } from "node:util";
import {
  heartbeatOf,
  helloOf,
  HOSTILE_TEXTS,
  mutated,
  noMessage,
  pick,
  type Random,
  rogueReport,
  statusOf,
  type Victims,
} from "./rogue_words.ts";
import { seededRandom } from "./virtual_clock.ts";

/** A master that says nothing more has said enough. */
const SESSION_MS = 400;
const AT_ONCE = 8;
const MEBIBYTE = 2 ** 20;

type RogueOptions = { address: string; random: Random; victims: Victims };

/** One session of a rogue node; resolves when either side has had enough. */
async function misbehave(nodeId: string, { address, random, victims }: RogueOptions): Promise<void> {
  const socket = new WebSocket(`ws://${address}/internal/session`);
  const closed = new Promise<void>((resolve) => (socket.onclose = () => resolve()));
  const say = (message: string | Uint8Array) => {
    if (socket.readyState === WebSocket.OPEN) socket.send(message);
  };
  socket.onmessage = ({ data }) => {
    if (!String(data).startsWith('{"type":"welcome"')) return;
    // As an honest one does at first: it becomes ready, and has a block of its own.
    say(JSON.stringify(heartbeatOf(nodeId)));
    say(JSON.stringify(statusOf()));
    for (let n = 0; n < 12; n++) setTimeout(() => say(rogueReport(nodeId, { random, victims })), 15 * n + 15);
  };
  await new Promise<void>((resolve) => {
    socket.onopen = () => resolve();
    socket.onerror = () => resolve();
  });
  const kind = random();
  if (kind < 0.55) say(JSON.stringify(helloOf(nodeId)));
  else if (kind < 0.8) say(mutated(helloOf(nodeId), { random }));
  else if (kind < 0.85) say(JSON.stringify(heartbeatOf(nodeId)));
  else if (kind < 0.9) say(noMessage(random));
  else if (kind < 0.93) {
    say(JSON.stringify(helloOf(nodeId)));
    say(JSON.stringify(helloOf(nodeId)));
  } else if (kind < 0.97) say(JSON.stringify(helloOf(nodeId, { labels: [["big", "B".repeat(2 * MEBIBYTE)]] })));
  else say(JSON.stringify(helloOf(pick(random, [...HOSTILE_TEXTS, ...victims.ids]))));
  await Promise.race([closed, Bun.sleep(SESSION_MS)]);
  socket.terminate();
}

/** What can be had in no time, and is too much for good: one label, and one report, of more than anybody sends. */
async function flood(nodeId: string, { address }: RogueOptions): Promise<void> {
  const big = [
    JSON.stringify(helloOf(nodeId, { labels: [["big", "B".repeat(20 * MEBIBYTE)]] })),
    JSON.stringify(statusOf([], { gone: ["G".repeat(40 * MEBIBYTE)] })),
  ];
  for (const message of big) {
    const socket = new WebSocket(`ws://${address}/internal/session`);
    const closed = new Promise<void>((resolve) => (socket.onclose = () => resolve()));
    socket.onopen = () => {
      if (message === big[1]) socket.send(JSON.stringify(helloOf(nodeId)));
      setTimeout(() => socket.send(message), 50);
    };
    // oxlint-disable-next-line no-await-in-loop -- one after the other
    await Promise.race([closed, Bun.sleep(5_000)]);
    socket.terminate();
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      address: { type: "string", default: "" },
      seed: { type: "string", default: "1" },
      sessions: { type: "string", default: "100" },
      victims: { type: "string", default: "{}" },
    },
  });
  const random = seededRandom(Number(values.seed));
  const known: Victims = { subnets: ["10.213.0.0/24"], ids: ["id1"], networks: ["shop_default"] };
  const options = { address: values.address, random, victims: { ...known, ...(JSON.parse(values.victims) as object) } };
  const all = Array.from({ length: Number(values.sessions) }, (_, n) => `rogue-${values.seed}-${n}`);
  await flood("rogue-flood", options);
  await Promise.all(
    Array.from({ length: AT_ONCE }, async (_, worker) => {
      // oxlint-disable-next-line no-await-in-loop -- several at once, each one after the other
      for (const nodeId of all.filter((__, n) => n % AT_ONCE === worker)) await misbehave(nodeId, options);
    }),
  );
  console.log("done");
  process.exit(0);
}
