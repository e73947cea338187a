/**
 * @module What containers wrote, as Docker hands it out: frames of both streams for most, plain text for those with a terminal
 * (Engine API: "Attach to a container", stream format). Owns the taking apart; makes no calls.
 */

/** One line, and when it was written (milliseconds since 1970), where Docker tells. */
export type LogLine = { at?: number; text: string };

/** A frame begins with the number of its stream, three zeros, and the length of what follows, big-endian. */
const HEADER_BYTES = 8;
const LENGTH_AT = 4;
const STREAMS: readonly (number | undefined)[] = [0, 1, 2];
/** As `timestamps` asks for: RFC 3339 with nanoseconds. */
const TIMED = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) ?([^]*)$/;

/** The lines of a log. What Docker kept in pieces (of 16 KiB, where a line is longer) is as many lines. */
export function logLines(log: Buffer, { tty }: { tty: boolean }): LogLine[] {
  const pieces = tty ? [log.toString()] : [...frames(log)];
  return pieces.flatMap((piece) => piece.split("\n").slice(0, piece.endsWith("\n") ? -1 : undefined)).map(lineOf);
}

/** What the frames hold. A log that ends within a frame, or goes on as none, is read as far as that. */
function* frames(log: Buffer): Generator<string> {
  for (let at = 0; at + HEADER_BYTES <= log.length;) {
    if (!STREAMS.includes(log[at]) || log.readUIntBE(at + 1, 3) !== 0) return;
    const end = at + HEADER_BYTES + log.readUInt32BE(at + LENGTH_AT);
    yield log.toString("utf8", at + HEADER_BYTES, Math.min(end, log.length));
    at = end;
  }
}

function lineOf(line: string): LogLine {
  const [, time = "", text] = TIMED.exec(line) ?? [];
  const at = Date.parse(time);
  return text === undefined || Number.isNaN(at) ? { text: line } : { at, text };
}
