import { afterAll, describe, expect, test } from "bun:test";
import { openEngine } from "../src/docker.ts";
import { canRun, platformOf, readPlatform, writePlatform } from "../src/placement_platform.ts";

describe("readPlatform()", () => {
  test.each([
    ["linux/amd64", "linux/amd64"],
    ["Linux/X86_64", "linux/amd64"],
    ["linux", "linux"],
    ["aarch64", "arm64"],
    ["linux/arm64/8", "linux/arm64/v8"],
    ["linux/armhf", "linux/arm/v7"],
    ["linux/arm/v6", "linux/arm/v6"],
    ["i386", "386"],
  ])("%s is %s", (text, written) => {
    const found = readPlatform(text);
    expect(found && writePlatform(found)).toBe(written);
  });

  test.each(["", "/", "linux/", "linux//v7", "linux/arm/v7/x", "linux arm", "linux/$ARCH"])("%p is none", (text) => {
    expect(readPlatform(text)).toBeUndefined();
  });
});

describe("canRun()", () => {
  test.each<[machine: string, image: string, runs: boolean]>([
    ["linux/amd64", "linux/amd64", true],
    ["linux/amd64", "linux/386", true],
    ["linux/386", "linux/amd64", false],
    ["linux/amd64", "linux/arm64", false],
    ["linux/arm64", "linux/arm/v7", true],
    ["linux/arm", "linux/arm64", false],
    ["linux/amd64", "windows/amd64", false],
    ["linux/amd64", "windows", false],
    ["linux/amd64", "amd64", true],
    ["linux/arm/v6", "linux/arm/v7", false],
    ["linux/arm/v7", "linux/arm/v6", true],
    ["linux/arm/v6", "linux/arm", false],
    // What variant a machine is, Docker does not say.
    ["linux/arm", "linux/arm/v7", true],
  ])("%s runs %s: %p", (machine, image, runs) => {
    const [own, wanted] = [readPlatform(machine), readPlatform(image)];
    if (!own || !wanted) throw new Error("no platform");
    expect(canRun(own, wanted)).toBe(runs);
  });

  test("takes an image that says nothing of itself", () => {
    expect(canRun(platformOf("linux", "arm64"), platformOf("", ""))).toBe(true);
  });
});

describe("the Engine is told the platform", () => {
  const asked: string[] = [];
  const server = Bun.serve({
    port: 0,
    fetch: (request) => {
      const { pathname, searchParams } = new URL(request.url);
      asked.push(`${pathname} ${searchParams.get("platform")}`);
      return pathname === "/containers/create"
        ? Response.json({ Id: "made", Warnings: [] }, { status: 201 })
        : new Response('{"status":"done"}\n');
    },
  });
  afterAll(() => server.stop(true));

  test("with a create call and a pull (Engine API 1.41: parameter platform), and only where one is asked for", async () => {
    const engine = openEngine(`tcp://127.0.0.1:${server.port}`);
    const body = {
      Image: "app",
      Labels: {},
      Env: [],
      StopTimeout: 1,
      HostConfig: { NetworkMode: "none", RestartPolicy: { Name: "no", MaximumRetryCount: 0 } },
    };
    await engine.create("name", body, { platform: "linux/arm64" });
    await engine.create("name", body);
    await engine.pull("app:1", { platform: "linux/arm64" });
    await engine.pull("app:1", {});
    expect(asked).toEqual([
      "/containers/create linux/arm64",
      "/containers/create null",
      "/images/create linux/arm64",
      "/images/create null",
    ]);
  });
});
