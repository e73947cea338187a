/**
 * @module Both ends of what `bench_network.ts` measures, as processes of their own that it starts in the network namespaces of
 * containers and hosts. A tool: `bun tests/bench_network_load.ts ROLE …`; a client writes one line of JSON.
 */
import { decoded, question } from "./dns_fixture.ts";

/** What one client found in its time. */
export type Load = {
  /** Bytes a second that came to one client. */
  throughput: number;
  /** New connections a second, each with a small request, over `CONNECTORS` at a time; those that failed are not counted. */
  connections: number;
  failed: number;
  /** Milliseconds of a small request on an open connection. */
  medianMs: number;
  p99Ms: number;
};

/** What a name leads to from `at` (milliseconds since the epoch) on. */
export type Sight = { at: number; addresses: string[] };

const CONNECTORS = 16;
const BLOCK = new Uint8Array(256 * 1024);
/** Between two questions for a name. */
const ASK_PAUSE_MS = 2;
const LOST_AFTER_MS = 200;

type State = { isSending: boolean };

/** Answers `ping`; `once` also with the end, as servers do that say Connection: close; and `send` with all that goes through. */
function serve(port: number): void {
  const push = (socket: Bun.Socket<State>) => {
    while (socket.data.isSending) if (socket.write(BLOCK) < BLOCK.length) return;
  };
  Bun.listen<State>({
    hostname: "0.0.0.0",
    port,
    socket: {
      open: (socket) => void (socket.data = { isSending: false }),
      data(socket, data) {
        const word = data.toString();
        if (word === "ping") return void socket.write("pong");
        if (word === "once") return void socket.end("pong");
        socket.data.isSending = true;
        push(socket);
      },
      drain: push,
      close: (socket) => void (socket.data.isSending = false),
    },
  });
}

type Work = { open?: (socket: Bun.Socket) => void; data?: (socket: Bun.Socket, data: Buffer) => void };

/** Resolves when the connection has ended; `false` if that was not in good order, or it could not be made. */
async function connection(to: { hostname: string; port: number }, { open, data }: Work): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = {
    ...(open && { open }),
    data: (one: Bun.Socket, bytes: Buffer) => data?.(one, bytes),
    close: (_: Bun.Socket, error?: Error) => resolve(!error),
    connectError: () => resolve(false),
  };
  Bun.connect({ ...to, socket }).catch(() => resolve(false));
  return promise;
}

async function load(to: { hostname: string; port: number }, durationMs: number): Promise<Load> {
  const { throughput } = await receive(to, durationMs);
  const { connections, failed } = await connect(to, durationMs);
  const times = (await request(to, durationMs)).sort((a, b) => a - b);
  const quantile = (share: number) => times[Math.floor(times.length * share)] ?? Number.NaN;
  return { throughput, connections, failed, medianMs: quantile(0.5), p99Ms: quantile(0.99) };
}

async function receive(to: { hostname: string; port: number }, durationMs: number): Promise<{ throughput: number }> {
  let bytes = 0;
  let began = 0;
  let tookMs = 0;
  await connection(to, {
    open: (socket) => void socket.write("send"),
    data(socket, data) {
      const now = performance.now();
      began ||= now;
      bytes += data.length;
      tookMs = now - began;
      if (tookMs >= durationMs) socket.terminate();
    },
  });
  return { throughput: (bytes / tookMs) * 1000 };
}

async function connect(to: { hostname: string; port: number }, durationMs: number) {
  let connections = 0;
  let failed = 0;
  const began = performance.now();
  const work = async () => {
    while (performance.now() - began < durationMs) {
      let answered = false;
      // oxlint-disable-next-line no-await-in-loop -- one after the other, in each of the workers
      await connection(to, {
        open: (socket) => void socket.write("once"),
        data: () => void (answered = true),
      });
      if (answered) connections++;
      else failed++;
    }
  };
  await Promise.all(Array.from({ length: CONNECTORS }, work));
  return { connections: (connections / (performance.now() - began)) * 1000, failed };
}

async function request(to: { hostname: string; port: number }, durationMs: number): Promise<number[]> {
  const times: number[] = [];
  const began = performance.now();
  let asked = 0;
  const ask = (socket: Bun.Socket) => {
    asked = performance.now();
    socket.write("ping");
  };
  await connection(to, {
    open: ask,
    data(socket) {
      const now = performance.now();
      times.push(now - asked);
      if (now - began < durationMs) ask(socket);
      else socket.end();
    },
  });
  return times;
}

/** Writes a line whenever the name leads elsewhere. No resolver of a library's: those keep what they heard for a while. */
async function watch(server: string, name: string): Promise<void> {
  const packet = question(name, "A");
  let before = "";
  let heard = () => {};
  const socket = await Bun.udpSocket({
    connect: { hostname: server, port: 53 },
    socket: {
      data(_, reply) {
        const addresses = (decoded(reply).answers ?? []).flatMap((one) => (one.type === "A" ? [one.data] : []));
        const now = JSON.stringify(addresses.toSorted());
        if (now !== before) console.log(JSON.stringify({ at: Date.now(), addresses } satisfies Sight));
        before = now;
        heard();
      },
    },
  });
  for (;;) {
    const { promise, resolve } = Promise.withResolvers<void>();
    heard = resolve;
    socket.send(packet);
    // oxlint-disable-next-line no-await-in-loop -- asks again and again
    await Promise.race([promise, Bun.sleep(LOST_AFTER_MS)]);
    // oxlint-disable-next-line no-await-in-loop -- as above
    await Bun.sleep(ASK_PAUSE_MS);
  }
}

if (import.meta.main) {
  const [role, first = "", second = "", third = ""] = process.argv.slice(2);
  if (role === "serve") serve(Number(first));
  else if (role === "watch") await watch(first, second);
  else console.log(JSON.stringify(await load({ hostname: first, port: Number(second) }, Number(third))));
}
