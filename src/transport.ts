/**
 * @module The network: one port that carries the HTTP API and the sessions of nodes (WebSockets), and the calls to other nodes.
 * Knows nothing of what is said.
 */
import { createConnection } from "node:net";
import * as v from "valibot";
import type { Address } from "./address.ts";
import { formatAddress, withoutIpv6Prefix } from "./address.ts";
import type { PeerInfo, SecretRequest } from "./model.ts";
import { peerInfo, StartError } from "./model.ts";

export const SESSION_PATH = "/internal/session";
export const PEER_PATH = "/internal/peer";
export const CHUNK_PATH = "/internal/chunk";
export const SECRET_PATH = "/internal/secret";

/** A node that does not accept a connection or answer a small question within this time counts as unreachable. */
const REACH_TIMEOUT_MS = 1_500;
/** Above the largest document, so that the API can say what is too large; Bun itself answers without a body. */
const MAX_REQUEST_BYTES = 16 * 2 ** 20;
/** A node's assignments hold its containers' specs; a full set of a large node stays far below. */
const MAX_MESSAGE_BYTES = 64 * 2 ** 20;
/** A chunk of a sent file is a quarter of a mebibyte; a line that does not carry it in this time is no better than none. */
const CHUNK_TIMEOUT_MS = 10_000;
const MAX_CHUNK_BYTES = 2 ** 20;
/** What a node says of itself names all nodes of its cluster: 10,000 of them are 1 MB. */
const MAX_PEER_BYTES = 16 * 2 ** 20;
/** Seconds without a byte after which an HTTP connection is closed; sessions have heartbeats. */
const IDLE_TIMEOUT_S = 60;

/**
 * For every call of `fetch`: nodes reach each other directly. Without it Bun obeys HTTP_PROXY and ALL_PROXY, which are set on
 * machines for downloads, and the traffic of the cluster would go through that proxy. Bun's WebSocket does not read them.
 */
export const DIRECT = { proxy: false } as const;

/** Who makes an HTTP request, as far as its connection and its Authorization header tell. */
export type Caller = { authorization: string | undefined; remote: string | undefined };

/** One end of an open session connection. */
export interface Channel {
  /** IP address of the other end; undefined: it is this process. */
  readonly remote?: string | undefined;
  send(text: string): void;
  close(): void;
}

/** How a node reaches other nodes. Both reject when the address does not answer within their own timeout. */
export interface Transport {
  /** `GET /internal/peer` of a node. */
  askPeer(address: string): Promise<PeerInfo>;
  /** Opens a session connection; `onClose` is called once, at the end. */
  dial(address: string, handlers: { onMessage: (text: string) => void; onClose: () => void }): Promise<Channel>;
}

/** What the listener does with an incoming session connection; undefined: this node is no master, the call is refused. */
export type SessionHandler = (channel: Channel) => { onMessage: (text: string) => void; onClose: () => void };

export type Listener = {
  /** Listens on one more address. @throws StartError as `listen` does; nothing is changed then. */
  add(address: Address): void;
  stop(): Promise<void>;
};

type SocketData = { handlers?: ReturnType<SessionHandler> };

export type Handlers = {
  /** Answers a request; `remote`: the IP address of the other end. */
  fetch: (request: Request, origin: { remote?: string }) => Response | Promise<Response>;
  session: () => SessionHandler | undefined;
  /** Whether a session may come from this IP address. */
  isOpenTo?: (remote: string) => boolean;
};

/**
 * Listens on these addresses for the API and for sessions.
 * @throws StartError when one is taken or not of this machine; then it listens on none.
 */
export async function listen(addresses: readonly Address[], handlers: Handlers): Promise<Listener> {
  const servers: ReturnType<typeof serve>[] = [];
  const stop = async () => void (await Promise.all(servers.map((server) => server.stop(true))));
  try {
    for (const address of addresses) servers.push(serve(address, handlers));
  } catch (error) {
    await stop();
    throw error;
  }
  return { add: (address) => void servers.push(serve(address, handlers)), stop };
}

function serve({ host, port }: Address, { fetch, session, isOpenTo = () => true }: Handlers) {
  try {
    return Bun.serve<SocketData>({
      hostname: host,
      port,
      maxRequestBodySize: MAX_REQUEST_BYTES,
      idleTimeout: IDLE_TIMEOUT_S,
      development: false,
      // Without development mode Bun shares a port that is taken, and two nodes would each get some of the requests.
      reusePort: false,
      async fetch(request, self) {
        const url = URL.parse(request.url);
        const remote = self.requestIP(request)?.address;
        const origin = remote === undefined ? {} : { remote };
        if (!url) return fetch(withoutBadHost(request), origin);
        if (url.pathname !== SESSION_PATH) return fetch(request, origin);
        if (remote !== undefined && !isOpenTo(withoutIpv6Prefix(remote)))
          return new Response("a session is not for containers of jobs\n", { status: 403 });
        // Nodes are no browsers and send no Origin; a web page must not become a node through its reader's browser.
        if (request.headers.has("origin")) return new Response("a session is not for web pages\n", { status: 403 });
        if (!session()) return new Response("this node is not the master\n", { status: 421 });
        if (self.upgrade(request, { data: {} })) return undefined;
        return new Response("a WebSocket is expected here\n", { status: 400 });
      },
      websocket: {
        maxPayloadLength: MAX_MESSAGE_BYTES,
        // Dead peers are noticed by missing heartbeats; a socket must not end because both sides had nothing to say.
        idleTimeout: 0,
        // What does not fit is not dropped in silence: the connection ends, and the next one begins with the full set.
        backpressureLimit: MAX_MESSAGE_BYTES,
        closeOnBackpressureLimit: true,
        open(socket) {
          const handler = session();
          if (!handler) return socket.close();
          socket.data.handlers = handler({
            remote: socket.remoteAddress,
            send: (text) => {
              if (socket.send(text) === 0) socket.terminate();
            },
            close: () => socket.terminate(),
          });
        },
        message: (socket, text) => socket.data.handlers?.onMessage(String(text)),
        close: (socket) => socket.data.handlers?.onClose(),
      },
    });
  } catch (error) {
    throw new StartError(listenFault({ host, port }, error), { cause: error });
  }
}

/** HTTP/1.0 requests and bad Host headers leave Bun without a URL; the path alone is enough here. */
function withoutBadHost(request: Request): Request {
  const path = request.url.startsWith("/") ? request.url : "/";
  return new Request(new URL(path, "http://localhost").href, request);
}

function listenFault(address: Address, error: unknown): string {
  const code = (error as { code?: string }).code;
  const at = formatAddress(address);
  if (code === "EADDRINUSE")
    return `the address ${at} is taken by another process: stop it, or choose another --bind-addr`;
  if (code === "EADDRNOTAVAIL") return `the address ${at} is not one of this machine: choose another --bind-addr`;
  return `cannot listen on ${at}: ${error instanceof Error ? error.message : String(error)}`;
}

/** Reaches other nodes over HTTP and WebSockets. */
export const networkTransport: Transport = {
  async askPeer(address) {
    const response = await fetch(`http://${address}${PEER_PATH}`, {
      ...DIRECT,
      signal: AbortSignal.timeout(REACH_TIMEOUT_MS),
    });
    if (!response.ok) throw new Error(`${address} answered ${response.status}: is it a Cacophony node?`);
    const answer = await readUpTo(MAX_PEER_BYTES, { response, address });
    return v.parse(peerInfo, JSON.parse(new TextDecoder().decode(answer)));
  },
  dial(address, { onMessage, onClose }) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(`ws://${address}${SESSION_PATH}`);
      const timer = setTimeout(() => socket.terminate(), REACH_TIMEOUT_MS);
      let opened = false;
      socket.onopen = () => {
        opened = true;
        clearTimeout(timer);
        resolve({ send: (text) => socket.send(text), close: () => socket.terminate() });
      };
      socket.onmessage = ({ data }) => onMessage(String(data));
      socket.onclose = () => {
        clearTimeout(timer);
        if (opened) onClose();
        else reject(new Error(`cannot open a session with ${address}`));
      };
    });
  },
};

/**
 * A session of the master's process with itself, which needs no socket: what one end sends, the other gets soon after, in order, and
 * what was sent before the end comes before it.
 */
export function dialSelf(accept: SessionHandler, { onMessage, onClose }: ReturnType<SessionHandler>): Channel {
  let isOpen = true;
  const soon = (work: () => void) => {
    if (isOpen) queueMicrotask(work);
  };
  const close = () => {
    soon(() => {
      master.onClose();
      onClose();
    });
    isOpen = false;
  };
  const master = accept({ send: (text) => soon(() => onMessage(text)), close });
  return { send: (text) => soon(() => master.onMessage(text)), close };
}

/** The master to call and the token of the session with it, which masters of earlier versions do not give. */
export type CalledMaster = { address: string; token: string | undefined };

function authorization({ token }: CalledMaster): Record<string, string> {
  return token === undefined ? {} : { Authorization: `Bearer ${token}` };
}

/** A chunk of a sent file. */
export async function fetchChunk(master: CalledMaster, chunkHash: string): Promise<Uint8Array> {
  const { address } = master;
  const response = await fetch(`http://${address}${CHUNK_PATH}/${chunkHash}`, {
    ...DIRECT,
    headers: authorization(master),
    signal: AbortSignal.timeout(CHUNK_TIMEOUT_MS),
  });
  if (!response.ok) throw new Error(`${address} answered ${response.status} to a request for a part of it`);
  return readUpTo(MAX_CHUNK_BYTES, { response, address });
}

/** The value of a secret; the master's reason where it gives none. */
export async function fetchSecret(master: CalledMaster, request: SecretRequest): Promise<Uint8Array> {
  const { address } = master;
  const response = await fetch(`http://${address}${SECRET_PATH}`, {
    ...DIRECT,
    method: "POST",
    headers: authorization(master),
    body: JSON.stringify(request),
    signal: AbortSignal.timeout(CHUNK_TIMEOUT_MS),
  });
  if (response.ok) return readUpTo(MAX_CHUNK_BYTES, { response, address });
  const refused = v.safeParse(refusal, await response.json().catch(() => undefined));
  const why = refused.success ? refused.output.error.message : `answered ${response.status}`;
  throw new Error(`the master at ${address}: ${why}`);
}

const refusal = v.object({ error: v.object({ message: v.string() }) });

async function readUpTo(
  most: number,
  { response, address }: { response: Response; address: string },
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of response.body ?? []) {
    size += chunk.byteLength;
    if (size > most) throw new Error(`${address} answered with over ${most} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** The local address from which the kernel reaches `peer`; undefined when it does not answer. */
export function localAddressTowards({ host, port }: Address): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = createConnection({ host, port, timeout: REACH_TIMEOUT_MS });
    const done = (address?: string) => {
      socket.destroy();
      resolve(address);
    };
    socket.once("connect", () => done(socket.localAddress));
    socket.once("timeout", () => done());
    socket.once("error", () => done());
  });
}
