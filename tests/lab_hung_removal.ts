/**
 * @module A fault of Docker's that tests which kill dockerd run into: a dockerd 20.10 that began after a kill can hang in the removal
 * of one container for good ("removing"). Nothing that an API client does helps then, only another start of dockerd.
 */
import { readFileSync } from "node:fs";
import type { LabHost } from "./lab.ts";

/** Starts the host's Engine anew if it hangs in a removal, and prints where; returns whether it did. */
export async function restartIfRemovalHangs(host: LabHost): Promise<boolean> {
  const hanging = await host.docker("ps", "-a", "--filter", "status=removing", "--format", "{{.Names}}");
  if (hanging === "") return false;
  host.dockerd.signal("SIGUSR1");
  await Bun.sleep(1_000);
  console.log(`host ${host.number}: dockerd hangs in the removal of ${hanging.replaceAll("\n", ", ")}`);
  for (const file of new Bun.Glob("**/goroutine-stacks*").scanSync({ cwd: host.dir, absolute: true })) {
    const stacks = readFileSync(file, "utf8").split("\n\n");
    console.log(stacks.filter((stack) => /containerRm|cleanupContainer/.test(stack)).join("\n\n"));
  }
  await host.restartDocker();
  return true;
}
