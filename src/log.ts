/**
 * @module Structured logging: one constant message plus fields, as JSON lines or pretty on a terminal, on standard error.
 * Owns the choice of logger (pino); parts receive a `Log` and never import the logger themselves.
 */
import pino from "pino";
import pretty from "pino-pretty";

export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export type LogFormat = "json" | "pretty";

type Fields = Record<string, unknown>;

export interface Log {
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
  /** A log whose every line also carries `fields`. */
  with(fields: Fields): Log;
}

const STDERR = 2;

/** Opens the process's log on standard error. */
export function openLog({ level, format }: { level: LogLevel; format: LogFormat }): Log {
  const destination =
    format === "pretty"
      ? pretty({
          sync: true,
          destination: STDERR,
          messageKey: "message",
          singleLine: true,
          translateTime: "SYS:HH:MM:ss.l",
        })
      : pino.destination({ fd: STDERR, sync: true });
  // A log that can't be written (a full disk behind standard error) is no reason to end the node.
  const emitter: NodeJS.EventEmitter = destination;
  emitter.on("error", () => {});
  const options = {
    level,
    base: null,
    messageKey: "message",
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  return wrap(pino(options, destination));
}

/** A log that drops everything, for tests and tools. */
export const silentLog: Log = { debug() {}, info() {}, warn() {}, error() {}, with: () => silentLog };

function wrap(logger: pino.Logger): Log {
  return {
    debug: (message, fields) => logger.debug(readable(fields), message),
    info: (message, fields) => logger.info(readable(fields), message),
    warn: (message, fields) => logger.warn(readable(fields), message),
    error: (message, fields) => logger.error(readable(fields), message),
    with: (fields) => wrap(logger.child(fields)),
  };
}

/** An Error in a field becomes its message and those of its causes: what a person reads. */
function readable(fields: Fields = {}): Fields {
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [key, value instanceof Error ? describeError(value) : value]),
  );
}

/** The messages of an error and its causes, outermost first, joined by ": ". */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message : `${error.message}: ${describeError(error.cause)}`;
}
