/** @module Entry of the program. */
import { runCli } from "./cli.ts";

// What is made without a mode of its own is for this user alone; what containers are to read is made with a mode that says so.
process.umask(0o077);
process.exit(await runCli(process.argv.slice(2), process.env));
