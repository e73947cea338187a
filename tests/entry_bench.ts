/**
 * @module Benchmarks of the entry, for `bench.ts`: the same work over a direct connection, through the entry and, where Docker
 * is installed, through its userland proxy. Replica and entry are processes of their own: this file run with a role.
 */
import { systemClock } from "../src/clock.ts";
import { EntryProxy } from "../src/entry_proxy.ts";
import { silentLog } from "../src/log.ts";
import { endpoint, entry, freePort, SELF, service } from "./entry_fixture.ts";

const TRANSFER = 64 * 2 ** 20;
const REQUESTS = 2_000;
const CONNECTIONS = 500;
const WARM_UP = 50;
/** A process that is not up by then has failed. */
const START_TIMEOUT_MS = 5_000;

type Row = { what: string; times: number[] };
type Work = { open?: (socket: Bun.Socket) => void; data?: (socket: Bun.Socket, data: Buffer) => void };

/** Times in milliseconds of a small request, a new connection with one, and 64 MiB to the client. */
export async function benchEntry(): Promise<Row[]> {
  const [direct, entryPort, dockerPort] = [await freePort(), await freePort(), await freePort()];
  const dockerProxy = Bun.which("docker-proxy");
  const children = [role("replica", direct), role("entry", entryPort, direct)];
  const ways = [
    { way: "direct", port: direct },
    { way: "through the entry", port: entryPort },
  ];
  if (dockerProxy) {
    const ends = ["-host-ip", "127.0.0.1", "-host-port", dockerPort, "-container-ip", "127.0.0.1"];
    // It tells whoever started it how that went, on descriptor 3.
    const command = [dockerProxy, "-proto", "tcp", ...ends, "-container-port", direct].join(" ");
    children.push(silently(["sh", "-c", `exec ${command} 3>/dev/null`]));
    ways.push({ way: "through docker-proxy", port: dockerPort });
  }
  try {
    for (const { port } of ways) await answering(port);
    const rows: Row[] = [];
    for (const { way, port } of ways) rows.push({ what: `small TCP request, ${way}`, times: await requests(port) });
    for (const { way, port } of ways)
      rows.push({ what: `connect, request, close, ${way}`, times: await connects(port) });
    for (const { way, port } of ways) rows.push({ what: `64 MiB to a client, ${way}`, times: await transfers(port) });
    return rows;
  } finally {
    for (const child of children) child.kill("SIGKILL");
    await Promise.all(children.map(({ exited }) => exited));
  }
}

async function requests(port: number): Promise<number[]> {
  const times: number[] = [];
  let asked = 0;
  await connection(port, {
    open: (socket) => ask(socket),
    data(socket) {
      times.push(performance.now() - asked);
      if (times.length < REQUESTS + WARM_UP) ask(socket);
      else socket.end();
    },
  });
  return times.slice(WARM_UP);

  function ask(socket: Bun.Socket): void {
    asked = performance.now();
    socket.write("ping");
  }
}

async function connects(port: number): Promise<number[]> {
  const times: number[] = [];
  for (let n = -WARM_UP; n < CONNECTIONS; n++) {
    const began = performance.now();
    await connection(port, { open: (socket) => void socket.write("ping"), data: (socket) => void socket.end() });
    if (n >= 0) times.push(performance.now() - began);
  }
  return times;
}

async function transfers(port: number): Promise<number[]> {
  const times: number[] = [];
  for (let run = -1; run < 5; run++) {
    const began = performance.now();
    let bytes = 0;
    const count = (_socket: Bun.Socket, data: Buffer) => void (bytes += data.length);
    await connection(port, { open: (socket) => void socket.write("send"), data: count });
    if (bytes !== TRANSFER) throw new Error(`${bytes} of ${TRANSFER} bytes came through port ${port}`);
    if (run >= 0) times.push(performance.now() - began);
  }
  return times;
}

/** Resolves once the connection is closed. */
function connection(port: number, { open, data }: Work): Promise<void> {
  return new Promise((resolve, reject) => {
    Bun.connect({
      hostname: "127.0.0.1",
      port,
      socket: {
        ...(open && { open }),
        ...(data && { data }),
        close: (_socket, error) => (error ? reject(error) : resolve()),
      },
    }).catch(reject);
  });
}

async function answering(port: number): Promise<void> {
  const deadline = performance.now() + START_TIMEOUT_MS;
  for (;;) {
    try {
      return await connection(port, {
        open: (socket) => void socket.write("ping"),
        data: (socket) => void socket.end(),
      });
    } catch (error) {
      if (performance.now() > deadline) throw new Error(`nothing answers on port ${port}`, { cause: error });
      await Bun.sleep(10);
    }
  }
}

function role(...args: (string | number)[]): Bun.Subprocess {
  return silently([process.execPath, import.meta.path, ...args.map(String)]);
}

function silently(command: string[]): Bun.Subprocess {
  return Bun.spawn(command, { stdio: ["ignore", "ignore", "inherit"] });
}

/** Answers `ping`, and sends a lot and its end for `send`. */
function serveReplica(port: number): void {
  const block = new Uint8Array(2 ** 20);
  const push = (socket: Bun.Socket<{ left: number }>) => {
    while (socket.data.left > 0) {
      const written = socket.write(block, 0, Math.min(block.length, socket.data.left));
      if (written <= 0) return;
      socket.data.left -= written;
      if (socket.data.left === 0) socket.end();
    }
  };
  Bun.listen<{ left: number }>({
    hostname: "127.0.0.1",
    port,
    socket: {
      open: (socket) => void (socket.data = { left: 0 }),
      data(socket, data) {
        if (data.toString() === "ping") return void socket.write("pong");
        socket.data.left = TRANSFER;
        push(socket);
      },
      drain: push,
    },
  });
}

function serveEntry(port: number, containerPort: number): void {
  const proxy = new EntryProxy({ clock: systemClock, log: silentLog, random: Math.random, selfNodeId: SELF });
  proxy.update([service([entry(port, containerPort)], [endpoint("replica", { address: "127.0.0.1" })])]);
}

if (import.meta.main) {
  const [name, port, containerPort] = process.argv.slice(2);
  if (name === "replica") serveReplica(Number(port));
  else if (name === "entry") serveEntry(Number(port), Number(containerPort));
  else for (const { what, times } of await benchEntry()) console.log(what.padEnd(48), ...figures(times));
}

function figures(times: readonly number[]): string[] {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor((sorted.length - 1) * share)]?.toFixed(3) ?? "-";
  return [`median ${at(0.5)} ms`, `p99 ${at(0.99)} ms`, `${sorted.length} runs`];
}
