/** @module Executables for other platforms than this one, tried where they are meant to run: the one for musl, in a container without glibc. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import packageJson from "../package.json";
import { buildExecutable } from "../src/build.ts";
import { Lab } from "./lab.ts";
import { LabCluster, sleeper } from "./lab_cluster.ts";
import { importMusl } from "./lab_musl.ts";

setDefaultTimeout(120_000);

const NODE = "cacophony-node";

let lab: Lab;

beforeAll(async () => {
  lab = await Lab.start({ hosts: 1 });
});

afterAll(async () => {
  await lab?.stop();
});

// Of another machine's executable there is nothing to try here.
describe.if(process.arch === "x64")("the executable for x64 with musl", () => {
  test("runs a node in a container that has no glibc: it takes a job, runs it, and ends as asked", async () => {
    const host = lab.host(1);
    const executable = join(host.dir, "cacophony-musl");
    await buildExecutable(executable, { target: "bun-linux-x64-musl", commit: "lab" });
    await Promise.all([host.importImage("busybox"), importMusl(host, { image: "musl", executable })]);
    const version = await host.docker("run", "--rm", "musl", "--version");
    expect(version).toStartWith(`cacophony ${packageJson.version} (commit lab,`);

    const address = `${host.address}:9000`;
    const mounts = ["--volume", `${host.dockerSocket}:/var/run/docker.sock`];
    const options = ["--bind-addr", address, "--network", "none", "--node-name", "musl"];
    await host.docker("run", "--detach", "--name", NODE, "--net=host", ...mounts, "musl", "bootstrap", ...options);
    const cluster = new LabCluster(lab);
    await cluster.ready(1).catch(async (error: unknown) => {
      throw new Error(await host.docker("logs", NODE), { cause: error });
    });
    await cluster.put("job", { services: { web: sleeper({ scale: 2 }) } });
    await cluster.settled("job");
    await cluster.exactSet();
    await cluster.clear();

    await host.docker("stop", NODE);
    expect(await host.docker("inspect", "--format", "{{.State.ExitCode}}", NODE)).toBe("0");
  });
});
