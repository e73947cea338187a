/** @module Who is connected to a container, read from what the kernel writes. */
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connectionsWith } from "../src/overlay_sockets.ts";

const procDir = mkdtempSync(join(tmpdir(), "sockets-test-"));
afterAll(() => rmSync(procDir, { recursive: true, force: true }));

const HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
const REST = "00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 20 4 30 10 -1\n";
const line = (remote: string, state: string, local = "4201D50A:0050") => `   0: ${local} ${remote} ${state} ${REST}`;

test("open connections with the addresses count, by IPv4 and by sockets of both kinds, and no others", () => {
  mkdirSync(join(procDir, "7/net"), { recursive: true });
  // 10.213.2.1 and 10.213.3.1, as a little-endian machine writes them.
  writeFileSync(
    join(procDir, "7/net/tcp"),
    HEAD +
      line("0102D50A:C001", "01") +
      line("0102D50A:C002", "06") +
      line("0103D50A:C003", "01") +
      line("00000000:0000", "0A"),
  );
  const mapped = "0000000000000000FFFF0000";
  writeFileSync(join(procDir, "7/net/tcp6"), HEAD + line(`${mapped}0102D50A:C004`, "01", `${mapped}4201D50A:0050`));
  expect(connectionsWith(["10.213.2.1"], { pid: 7, procDir })).toBe(2);
  expect(connectionsWith(["10.213.2.1", "10.213.3.1"], { pid: 7, procDir })).toBe(3);
  expect(connectionsWith(["10.213.4.1"], { pid: 7, procDir })).toBe(0);
  expect(connectionsWith(["10.213.2.1"], { pid: 8, procDir })).toBe(0);
});

test("the kernel of this machine is read right", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  const before = connectionsWith(["127.0.0.1"], { pid: process.pid });
  const socket = await Bun.connect({ hostname: "127.0.0.1", port, socket: { data: () => {} } });
  expect(connectionsWith(["127.0.0.1"], { pid: process.pid })).toBeGreaterThan(before);
  socket.end();
  server.close();
});
