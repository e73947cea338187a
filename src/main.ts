/** @module Entry of the program: the command line, or the reading of one document for the process that started this one. */
import { READER_COMMAND } from "./api_reading.ts";

if (process.argv[2] === READER_COMMAND) await import("./reader.ts");
else {
  // What is made without a mode of its own is for this user alone; what containers are to read is made with a mode that says so.
  process.umask(0o077);
  // Loaded only here: a process that reads one document starts in half the time without all the rest.
  const { runCli } = await import("./cli.ts");
  process.exit(await runCli(process.argv.slice(2), process.env));
}
