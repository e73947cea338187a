/** @module HTTP as bytes on a socket, for requests that no client library would send. */
import { connect } from "node:net";

export type RawAnswer = { status: number | undefined; head: string; body: string };

/** What comes back until the connection ends; `status` undefined: no answer. @throws when nothing ends it in time. */
export function rawRequest(port: number, request: string | Uint8Array, timeoutMs = 10_000): Promise<RawAnswer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const socket = connect({ host: "127.0.0.1", port }, () => socket.write(request));
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`not answered within ${timeoutMs} ms: ${String(request).slice(0, 200)}`));
    }, timeoutMs);
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.on("error", () => {});
    socket.on("close", () => {
      clearTimeout(timer);
      resolve(readAnswer(Buffer.concat(chunks).toString("latin1")));
    });
  });
}

export function readAnswer(text: string): RawAnswer {
  const [head = "", ...rest] = text.split("\r\n\r\n");
  const status = /^HTTP\/1\.1 (\d{3})/.exec(head)?.[1];
  return { status: status === undefined ? undefined : Number(status), head, body: rest.join("\r\n\r\n") };
}
