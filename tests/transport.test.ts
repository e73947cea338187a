/** @module A session of the master's process with itself, and whose sessions a node refuses. */
import { expect, test } from "bun:test";
import { type Channel, dialSelf, listen, SESSION_PATH } from "../src/transport.ts";
import { freePort } from "./entry_fixture.ts";

/** Both ends, and what they noticed in order. */
function session(): { node: Channel; master: Channel; log: string[] } {
  const log: string[] = [];
  const handlers = (who: string) => ({
    onMessage: (text: string) => void log.push(`${who} got ${text}`),
    onClose: () => void log.push(`${who} closed`),
  });
  let master: Channel | undefined;
  const accept = (channel: Channel) => {
    master = channel;
    return handlers("master");
  };
  const node = dialSelf(accept, handlers("node"));
  if (!master) throw new Error("nobody was asked to accept it");
  return { node, master, log };
}

test("dialSelf() hands over messages in order, and never while they are being sent", async () => {
  const { node, master, log } = session();
  node.send("1");
  master.send("2");
  node.send("3");
  expect(log).toEqual([]);
  await Promise.resolve();
  expect(log).toEqual(["master got 1", "node got 2", "master got 3"]);
});

test.each(["node", "master"] as const)(
  "dialSelf() ends both ends once, after what was sent before: by the %s",
  async (who) => {
    const both = session();
    both.master.send("a refusal");
    both[who].close();
    both.node.close();
    both.node.send("too late");
    both.master.send("too late");
    await Promise.resolve();
    both.master.close();
    both.node.send("too late");
    await Promise.resolve();
    expect(both.log).toEqual(["node got a refusal", "master closed", "node closed"]);
  },
);

test("a node that listens on all addresses of both IP versions knows a container's IPv4 address, and opens no session for it", async () => {
  const port = await freePort();
  const listener = await listen([{ host: "::", port }], {
    fetch: () => new Response("api"),
    session: () => undefined,
    isOpenTo: (remote) => remote !== "127.0.0.1",
  });
  try {
    expect((await fetch(`http://127.0.0.1:${port}${SESSION_PATH}`)).status).toBe(403);
    expect((await fetch(`http://[::1]:${port}${SESSION_PATH}`)).status).toBe(421);
  } finally {
    await listener.stop();
  }
});
