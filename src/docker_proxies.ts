/**
 * @module Host ports that the Engine holds for a container that is gone.
 *
 * A dockerd that is killed while it starts a container opens that container's ports again when it is next started, and forgets
 * the container: its docker-proxy listens, and the kernel sends the port's traffic to nobody, until dockerd is started once more
 * (seen with 20.10; moby issues 25981 and 36591). Docker's API knows nothing of it, so the proxies are found by their command
 * line. An Engine with `userland-proxy: false` has none, nor has one on another machine.
 */
import { readlinkSync } from "node:fs";
import { basename, join } from "node:path";
import { numbers, text } from "./docker_strays.ts";

/** The host ports that docker-proxy processes of this network namespace listen on, as `tcp/80`. */
export function proxiedPorts(procDir: string): Set<string> {
  const here = networkOf(join(procDir, "self"));
  const ports = new Set<string>();
  for (const pid of numbers(procDir)) {
    const dir = join(procDir, String(pid));
    const port = proxiedPort(dir);
    if (port !== undefined && networkOf(dir) === here) ports.add(port);
  }
  return ports;
}

/** dockerd starts it as `docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 80 -container-ip 172.18.0.2 -container-port 80`. */
function proxiedPort(processDir: string): string | undefined {
  const [program = "", ...args] = text(join(processDir, "cmdline")).split("\0");
  if (basename(program) !== "docker-proxy") return undefined;
  const after = (option: string) => args[args.indexOf(option) + 1];
  return `${after("-proto")}/${after("-host-port")}`;
}

function networkOf(processDir: string): string | undefined {
  try {
    return readlinkSync(join(processDir, "ns/net"));
  } catch {
    return undefined; // It has ended meanwhile.
  }
}
