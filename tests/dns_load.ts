/**
 * @module Load for a DNS server: how many answers a second it gives over loopback, and how long the slowest of a hundred take. The
 * server runs in a process of its own, so that the load is not its work. A tool: `bun tests/dns_load.ts`; tests/bench.ts may call
 * `loadDns`, too.
 */
import { readFileSync } from "node:fs";
import { DnsServer } from "../src/dns_server.ts";
import { silentLog } from "../src/log.ts";
import { namesOf, question, shopService } from "./dns_fixture.ts";

export type DnsLoad = {
  name: string;
  type: string;
  answers: number;
  perSecond: number;
  medianUs: number;
  p99Us: number;
  lost: number;
};

/** Questions under way at a time; more would wait in queues and measure those. */
const WINDOW = 32;
const LOST_AFTER_MS = 250;
/** USER_HZ of proc(5) is 100 on every Linux that matters. */
const CPU_TICK_MS = 10;

/** Asks a DNS server at 127.0.0.1 the same question for `durationMs`. */
export async function loadDns(
  port: number,
  { name, type, durationMs }: { name: string; type: string; durationMs: number },
): Promise<DnsLoad> {
  const packet = question(name, type);
  const sentAt = new Float64Array(0x10000).fill(-1);
  const times: number[] = [];
  let id = 0;
  let lost = 0;
  const end = performance.now() + durationMs;
  const socket = await Bun.udpSocket({
    connect: { hostname: "127.0.0.1", port },
    socket: {
      data(_, reply) {
        const now = performance.now();
        const at = reply.readUInt16BE(0);
        const sent = sentAt[at] ?? -1;
        if (sent < 0) return;
        times.push((now - sent) * 1000);
        sentAt[at] = -1;
        if (now < end) ask();
      },
    },
  });
  const ask = (): void => {
    id = (id + 1) & 0xffff;
    packet.writeUInt16BE(id, 0);
    sentAt[id] = performance.now();
    if (!socket.send(packet)) lost++;
  };
  const start = performance.now();
  for (let n = 0; n < WINDOW; n++) ask();
  // What is lost leaves its place in the window to another.
  while (performance.now() < end) {
    await Bun.sleep(Math.min(LOST_AFTER_MS, Math.max(1, end - performance.now())));
    for (const [at, sent] of sentAt.entries()) {
      if (sent < 0 || performance.now() - sent < LOST_AFTER_MS) continue;
      sentAt[at] = -1;
      lost++;
      ask();
    }
  }
  const took = (performance.now() - start) / 1000;
  await Bun.sleep(50);
  socket.close();
  for (const at of sentAt) if (at >= 0) lost++;
  times.sort((a, b) => a - b);
  const quantile = (share: number): number => times[Math.floor(times.length * share)] ?? Number.NaN;
  return {
    name,
    type,
    answers: times.length,
    perSecond: times.length / took,
    medianUs: quantile(0.5),
    p99Us: quantile(0.99),
    lost,
  };
}

/** Starts a DNS server of a directory of 2,000 services in a process of its own. */
export async function startDnsProcess(): Promise<{ port: number; cpuMs(): number; stop(): Promise<void> }> {
  const child = Bun.spawn([process.execPath, import.meta.path, "serve"], { stdout: "pipe", stdin: "pipe" });
  const { value } = await child.stdout.getReader().read();
  const port = Number(new TextDecoder().decode(value));
  return {
    port,
    cpuMs: () => {
      const fields = readFileSync(`/proc/${child.pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
      return (Number(fields[11]) + Number(fields[12])) * CPU_TICK_MS;
    },
    stop: async () => {
      child.kill();
      await child.exited;
    },
  };
}

async function serve(): Promise<void> {
  const services = Array.from({ length: 2_000 }, (_, n) => ({
    ...shopService(`s${n}`, 3, 100 + 3 * n),
    job_id: `job-${n % 50}`,
  }));
  const names = namesOf(...services, shopService("web", 3), shopService("many", 50, 10));
  const server = new DnsServer({ names, log: silentLog, port: 0 });
  await server.listen(["127.0.0.1"]);
  console.log(server.listening[0]?.port);
}

if (import.meta.main) {
  if (process.argv[2] === "serve") await serve();
  else {
    const server = await startDnsProcess();
    await loadDns(server.port, { name: "web.shop", type: "A", durationMs: 1_000 });
    for (const [name, type] of [
      ["web.shop", "A"],
      ["web.shop", "AAAA"],
      ["many.shop", "A"],
      ["_http._tcp.web.shop", "SRV"],
      ["1.8.213.10.in-addr.arpa", "PTR"],
      ["nope.cacophony", "A"],
    ] as const) {
      const before = server.cpuMs();
      const load = await loadDns(server.port, { name, type, durationMs: 2_000 });
      const [rate, median, p99] = [load.perSecond, load.medianUs, load.p99Us].map((n) =>
        Math.round(n).toLocaleString("en"),
      );
      const perCore = (load.answers / (server.cpuMs() - before)) * 1000;
      console.log(
        `${type} ${name}: ${rate} answers/s (${Math.round(perCore)} per second of CPU), median ${median} us, p99 ${p99} us, lost ${load.lost}`,
      );
    }
    await server.stop();
  }
}
