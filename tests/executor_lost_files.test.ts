/** Containers outlive the data directory of their node, and the job's files do not: they are there again before a start. */
import { afterAll, expect, test } from "bun:test";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { JobFiles } from "../src/job_files.ts";
import type { MountSpec } from "../src/model_spec.ts";
import { cleanUp, Node } from "./executor_fixture.ts";

afterAll(cleanUp);

const LIMIT_MS = 10_000;

test("a container that ended before its node lost the data directory starts again with the job's files", async () => {
  const all = new JobFiles(new Map([["a.conf", Buffer.from("one")]]));
  const mount: MountSpec = { type: "bind", source: "a.conf", target: "/a", read_only: false, create_host_path: true };
  const change = { files: all.below("a.conf"), mounts: [mount] };
  const node = new Node();
  node.chunks = all.chunks;
  await node.start();
  const run = async () => {
    node.assign([{ id: "one", spec: change }]);
    // Files are written in real time, and the rest goes by the virtual clock.
    for (const end = performance.now() + LIMIT_MS; node.engine.running("one").length === 0;) {
      if (performance.now() > end) throw new Error(`nothing runs: ${JSON.stringify(node.executor.snapshot())}`);
      // oxlint-disable-next-line no-await-in-loop -- one step after the other
      await Promise.all([node.clock.advance(100), Bun.sleep(1)]);
    }
  };
  await run();
  const path = join(node.dataDir, "projects", "job", "a.conf");
  expect(readFileSync(path, "utf8")).toBe("one");
  const [container] = node.engine.running("one");
  node.engine.kill(container?.id ?? "", 1);
  void node.executor.stop();
  rmSync(join(node.dataDir, "projects"), { recursive: true });
  await node.begin();
  await run();
  expect(node.engine.running("one")[0]?.id).toBe(container?.id ?? "");
  expect(readFileSync(path, "utf8")).toBe("one");
});
