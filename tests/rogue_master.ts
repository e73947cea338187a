/**
 * @module A program that wants to be a cluster's master without being it: `bun rogue_master.ts OWN_ADDRESS CLUSTER_ID [MASTER]`.
 * With the real master's address it says hello there, so that all nodes are told of its own address. It tells everybody who asks
 * that it is the master, welcomes each node at term 999, signed with a key of its own, with none, and with none at all in turn,
 * and orders it to stop everything, to leave, and to go away. It writes a line for each hello that it gets.
 */
import { generateKeyPairSync } from "node:crypto";
import { signerOf, signWelcome } from "../src/cluster_key.ts";
import { type Hello, type MasterMessage, PROTOCOL_VERSION, type Welcome } from "../src/model.ts";
import { SESSION_PATH } from "../src/transport.ts";

const TERM = 999;

const [address = "", clusterId = "", master] = process.argv.slice(2);
const self = { node_id: "rogue", address };
const [hostname = "", port] = address.split(":");
const signer = signerOf(generateKeyPairSync("ed25519").privateKey);

let hellos = 0;

Bun.serve({
  hostname,
  port: Number(port),
  fetch(request, server) {
    if (new URL(request.url).pathname === SESSION_PATH && server.upgrade(request)) return undefined;
    return Response.json({
      ...{ cluster_id: clusterId, node_id: self.node_id, protocol: PROTOCOL_VERSION, version: "9.9.9" },
      master: self,
      peers: [self],
    });
  },
  websocket: {
    message(socket, text) {
      const message = JSON.parse(String(text)) as { type: string };
      if (message.type !== "hello") return console.log(`obeyed: ${String(text).slice(0, 100)}`);
      const hello = message as Hello;
      console.log(`hello ${++hellos} of ${hello.node_id} (${hello.node_name})`);
      for (const order of orders(hello)) socket.send(JSON.stringify(order));
    },
  },
});
console.log("the rogue listens");
if (master !== undefined) enter(master);

function orders(hello: Hello): MasterMessage[] {
  const welcome: Welcome = {
    type: "welcome",
    ...{ cluster_id: clusterId, node_id: hello.node_id, node_name: hello.node_name },
    ...{ term: TERM, master: self, peers: [self] },
    ...{ heartbeat_interval_ms: 500, node_timeout_ms: 10_000 },
  };
  const signed = signWelcome(welcome, { hello, signer });
  const { signature: _, ...unsigned } = signed;
  const greeting = [[signed], [unsigned], [welcome], []][hellos % 4] ?? [];
  const order = { term: TERM, revision: 1 };
  return [
    ...greeting,
    { type: "peers", peers: [self] },
    { type: "assignments", order, specs: [], allocations: [], removals: [] },
    hellos % 2 === 0 ? { type: "left" } : { type: "refused", code: "other_cluster", message: "go away" },
  ];
}

/** Becomes a node of the real cluster, which tells all others of it. */
function enter(real: string): void {
  const socket = new WebSocket(`ws://${real}${SESSION_PATH}`);
  const hello: Hello = {
    type: "hello",
    protocol: PROTOCOL_VERSION,
    ...{ node_id: self.node_id, instance: "rogue", node_name: "rogue", address, labels: [], version: "9.9.9" },
    engine: { state: "unready", reason: "none", engine_id: "rogue" },
  };
  socket.addEventListener("open", () => socket.send(JSON.stringify(hello)));
}
