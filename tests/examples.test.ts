import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseJob } from "../src/job_spec.ts";

const EXAMPLES = join(import.meta.dir, "../examples");
const files = readdirSync(EXAMPLES).filter((name) => name.endsWith(".yml"));

describe("the examples", () => {
  test.each(files)("%s is accepted without a warning, but for what is said of the node's own network", (name) => {
    const result = parseJob(readFileSync(join(EXAMPLES, name)), { jobId: "example", env: new Map() });
    if (!result.ok) throw new Error(`${name}: ${Bun.inspect(result.details)}`);
    const usesHost = result.job.services.some(({ spec }) => spec.network_mode === "host");
    const paths = result.job.warnings.map(({ path }) => path.replace(/^services\.[^.]+\./, ""));
    expect(paths).toEqual(usesHost ? ["network_mode"] : []);
  });

  test("example-job.yml is what the README says it is", () => {
    const result = parseJob(readFileSync(join(EXAMPLES, "example-job.yml")), { jobId: "my-job-id", env: new Map() });
    if (!result.ok) throw new Error(Bun.inspect(result.details));
    const [service, ...others] = result.job.services;
    expect(others).toEqual([]);
    expect(service?.service_name).toBe("example-service");
    expect(service?.spec.image).toBe("busybox");
    expect(service?.spec.command?.[0]).toBe("sh");
    expect(service?.spec.ports.filter((port) => port.host_port !== undefined)).toEqual([]);
  });
});
