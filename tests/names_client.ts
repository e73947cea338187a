/**
 * @module A client that resolves a name and asks each address for its page, again and again, and writes what it saw as JSON lines:
 * `bun names_client.ts NAME PORT [RESOLVER]`. Run it in the network namespace of a container, where Docker's resolver is. Without a
 * resolver NAME is an address.
 */
import { connect } from "node:net";
import { decode, encode } from "dns-packet";

/** One round. `at` and `done` are Unix milliseconds; `error` is absent where every address gave its page. */
export type Seen = { at: number; done: number; addresses: string[]; pages: string[]; error?: string };

const PAUSE_MS = 20;
const ANSWER_MS = 1_000;
/** After this a request counts as failed: to an entry, which tries another replica for it, and to a replica itself. */
const ENTRY_MS = 8_000;
const REPLICA_MS = 1_000;

async function resolve(name: string, resolver: string): Promise<string[]> {
  const { promise, resolve: answer, reject } = Promise.withResolvers<Buffer>();
  const socket = await Bun.udpSocket({
    connect: { hostname: resolver, port: 53 },
    socket: { data: (_, data) => answer(data), error: (_, error) => reject(error) },
  });
  const timer = setTimeout(() => reject(new Error("no answer from the resolver")), ANSWER_MS);
  try {
    socket.send(encode({ type: "query", id: 1, flags: 0x0100, questions: [{ name, type: "A" }] }));
    const reply = decode(await promise);
    return (reply.answers ?? []).flatMap((record) => (record.type === "A" ? [record.data] : []));
  } finally {
    clearTimeout(timer);
    socket.close();
  }
}

function page(host: string, { port, timeoutMs }: { port: number; timeoutMs: number }): Promise<string> {
  return new Promise((done, reject) => {
    let text = "";
    const socket = connect({ host, port }, () => socket.write("GET / HTTP/1.0\r\n\r\n"));
    const end = (error?: Error) => {
      socket.destroy();
      const body = /^HTTP\/1\.. 200 [^]*?\r\n\r\n([^]*)$/.exec(text)?.[1]?.trim();
      if (body) done(body);
      else reject(new Error(`${host}: ${error?.message ?? `no page in '${text}'`}`));
    };
    socket.setTimeout(timeoutMs, () => end(new Error("no answer in time")));
    socket.on("data", (data) => (text += data.toString()));
    socket.on("end", () => end());
    socket.on("error", end);
  });
}

if (import.meta.main) {
  const [name = "", port = "", resolver] = process.argv.slice(2);
  const options = { port: Number(port), timeoutMs: resolver === undefined ? ENTRY_MS : REPLICA_MS };
  for (;;) {
    const seen: Seen = { at: Date.now(), done: 0, addresses: [], pages: [] };
    try {
      seen.addresses = resolver === undefined ? [name] : await resolve(name, resolver);
      seen.pages = await Promise.all(seen.addresses.map((address) => page(address, options)));
    } catch (error) {
      seen.error = String(error);
    }
    seen.done = Date.now();
    console.log(JSON.stringify(seen));
    await Bun.sleep(PAUSE_MS);
  }
}
