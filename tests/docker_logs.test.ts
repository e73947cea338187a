/** @module Docker's log streams taken apart. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { logLines } from "../src/docker_logs.ts";

function frame(stream: number, text: string): Buffer {
  const body = Buffer.from(text);
  const header = Buffer.from([stream, 0, 0, 0, 0, 0, 0, 0]);
  header.writeUInt32BE(body.length, 4);
  return Buffer.concat([header, body]);
}

const AT = "2026-11-28T08:22:35.123456789Z";
const AT_MS = Date.parse("2026-11-28T08:22:35.123Z");

describe("logLines()", () => {
  test("takes both streams in their order, and times apart from lines", () => {
    const log = Buffer.concat([frame(1, `${AT} out\n`), frame(2, `${AT} err: 2 + 2\n`), frame(1, `${AT} \n`)]);
    expect(logLines(log, { tty: false })).toEqual([
      { at: AT_MS, text: "out" },
      { at: AT_MS, text: "err: 2 + 2" },
      { at: AT_MS, text: "" },
    ]);
  });

  test("takes a terminal's log as it is", () => {
    expect(logLines(Buffer.from(`${AT} one\r\n${AT} \u0001two`), { tty: true })).toEqual([
      { at: AT_MS, text: "one\r" },
      { at: AT_MS, text: "\u0001two" },
    ]);
  });

  test("gives back what was written, whole or cut off anywhere", () => {
    const lines = fc.array(fc.record({ stream: fc.constantFrom(1, 2), text: fc.stringMatching(/^[^\n]{0,40}$/) }));
    fc.assert(
      fc.property(lines, fc.nat(), (written, cut) => {
        const log = Buffer.concat(written.map(({ stream, text }) => frame(stream, `${AT} ${text}\n`)));
        const texts = written.map(({ text }) => Buffer.from(text).toString());
        expect(logLines(log, { tty: false }).map(({ text }) => text)).toEqual(texts);
        const part = logLines(log.subarray(0, log.length === 0 ? 0 : cut % log.length), { tty: false });
        expect(part.length).toBeLessThanOrEqual(texts.length);
        expect(part.slice(0, -1).map(({ text }) => text)).toEqual(texts.slice(0, Math.max(0, part.length - 1)));
      }),
    );
  });

  test.each(["no frames at all", "\u0003\0\0\0\0\0\0\u0001x", ""])("makes nothing of %j", (text) => {
    expect(logLines(Buffer.from(text), { tty: false })).toEqual([]);
  });
});
