/**
 * @module Replicas and clients for tests of the entry: real sockets on loopback. Each replica has an address of its own in
 * 127.0.0.0/8, so that they all serve one container port, as containers do.
 */
import { createServer } from "node:net";
import type { Socket, SocketHandler } from "bun";
import type { Endpoint, ServiceEntry } from "../src/model_network.ts";
import type { EntryPort } from "../src/model_spec.ts";

export const SELF = "node-a";

/** Bytes that came in on a socket, and what else happened to it. */
export type Heard = { bytes: number; text: string; ended: boolean; closed: boolean; code: string | undefined };

export type Peer = Socket<Heard>;

function heard(): Heard {
  return { bytes: 0, text: "", ended: false, closed: false, code: undefined };
}

export type Handlers = Pick<SocketHandler<Heard>, "open" | "data" | "end" | "drain">;

/** Writes down what a socket hears, and then does what `handlers` say. */
function recorder(handlers: Handlers): SocketHandler<Heard> {
  return {
    ...handlers,
    data(socket, data) {
      socket.data.bytes += data.length;
      // What tests say to each other is short; what they measure with is not kept.
      if (socket.data.text.length < 1_000) socket.data.text += data.subarray(0, 1_000).toString("latin1");
      return handlers.data?.(socket, data);
    },
    end(socket) {
      socket.data.ended = true;
      return handlers.end?.(socket);
    },
    close(socket, error) {
      socket.data.closed = true;
      // Bun tells of a FIN that answers one by the close alone.
      if (!error) socket.data.ended = true;
      socket.data.code = error && "code" in error ? String(error.code) : undefined;
    },
  };
}

export type Replica = { peers: Peer[]; port: number; stop: () => void };

/** What a replica does unless told otherwise: it says its name first, and then back whatever it hears. */
function echo(id: string): Handlers {
  return {
    open: (socket) => void socket.write(`${id}\n`),
    data: (socket, data) => void socket.write(data),
    end: (socket) => void socket.end(),
  };
}

/** A server at `address`. */
export function replica(id: string, options: { address: string; port: number } & Handlers): Replica {
  const { address, port, ...own } = options;
  const peers: Peer[] = [];
  const handlers = Object.keys(own).length > 0 ? own : echo(id);
  const listener = Bun.listen<Heard>({
    hostname: address,
    port,
    allowHalfOpen: true,
    socket: {
      ...recorder(handlers),
      open(socket) {
        socket.data = heard();
        peers.push(socket);
        return handlers.open?.(socket);
      },
    },
  });
  return { peers, port: listener.port, stop: () => listener.stop(true) };
}

/** Connects; what comes in is in the socket's `data`. */
export function client(
  port: number,
  { host = "127.0.0.1", ...handlers }: { host?: string } & Handlers = {},
): Promise<Peer> {
  return Bun.connect<Heard>({
    hostname: host,
    port,
    allowHalfOpen: true,
    data: heard(),
    socket: { ...recorder(handlers), connectError: () => {} },
  });
}

/** A port that is free on all addresses; nothing keeps it free. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "::", () => {
      const address = server.address();
      server.close(() =>
        typeof address === "object" && address ? resolve(address.port) : reject(new Error("no port")),
      );
    });
  });
}

export function endpoint(id: string, fields: { address: string; node?: string; ready?: boolean }): Endpoint {
  return {
    allocation_id: id,
    slot: 1,
    node_id: fields.node ?? SELF,
    ready: fields.ready ?? true,
    addresses: [{ network: "job_default", address: fields.address }],
  };
}

export function entry(port: number, containerPort: number, fields: Partial<EntryPort> = {}): EntryPort {
  const defaults = { protocol: "tcp", balance: "local_first", proxy_protocol: "none" } as const;
  return { ...defaults, port, container_port: containerPort, ...fields };
}

export function service(entries: EntryPort[], endpoints: Endpoint[], name = "web"): ServiceEntry {
  return { job_id: "job", service_name: name, aliases: [], ports: [], entries, endpoints };
}
