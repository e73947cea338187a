/** @module The images of one node, on an engine in memory: pull policies, digests, progress, logins, backoff. */
import { describe, expect, test } from "bun:test";
import { apiError, EngineError, pullError } from "../src/docker_errors.ts";
import type { RegistryLogin } from "../src/docker_images.ts";
import { digestOf, type ImageNeed, Images, PullError } from "../src/executor_images.ts";
import { Progress } from "../src/executor_progress.ts";
import { inWords } from "../src/executor_words.ts";
import { registryOf } from "../src/job_images.ts";
import type { PullProgress } from "../src/model_reports.ts";
import { FakeEngine } from "./fake_engine.ts";
import { seededRandom, VirtualClock } from "./virtual_clock.ts";

const HOUR_MS = 3_600_000;

class Node {
  readonly clock = new VirtualClock();
  readonly engine: FakeEngine;
  readonly images: Images;
  readonly progress: PullProgress[] = [];
  readonly resolved: string[] = [];
  /** What the other replicas run; absent: what is resolved here. */
  agreed: string | undefined;

  constructor(nodeLogin: (host: string) => Promise<RegistryLogin | undefined> = async () => undefined) {
    const random = seededRandom(1);
    this.engine = new FakeEngine({ clock: this.clock, random });
    this.images = new Images({ engine: this.engine, clock: this.clock, random, nodeLogin });
  }

  /** As a worker does: looks, pulls if need be, looks again; resolves to what became of it. */
  async make(need: ImageNeed): Promise<string> {
    const done = this.#make(need).catch((error: Error) => error.message);
    let result: string | undefined;
    void done.then((value) => (result = value));
    await this.clock.until(() => result !== undefined, { limitMs: HOUR_MS, describe: () => need });
    return result ?? "";
  }

  async #make(need: ImageNeed): Promise<string> {
    if (await this.images.usable(need, { pulled: false })) return "used";
    await this.images.pull(need, {
      signal: new AbortController().signal,
      onProgress: (progress) => this.progress.push(progress),
      agree: async (digest) => {
        this.resolved.push(digest);
        return this.agreed ?? digest;
      },
    });
    return (await this.images.usable(need, { pulled: true })) ? "pulled" : "gone";
  }

  asked(): number {
    return (this.engine.calls.get("resolve") ?? 0) + (this.engine.calls.get("pull") ?? 0);
  }
}

describe("a pull policy", () => {
  const ABSENT: [policy: string | undefined, outcome: string][] = [
    [undefined, "pulled"],
    ["missing", "pulled"],
    ["if_not_present", "pulled"],
    ["build", "pulled"],
    ["always", "pulled"],
    ["daily", "pulled"],
    ["never", "image app:1 is not on this node, and pull_policy is never; load it here, or change the policy"],
  ];
  test.each(ABSENT)("%p with an absent image: %s", async (policy, outcome) => {
    const node = new Node();
    node.engine.registry.set("app:1", "found");
    expect(await node.make({ image: "app:1", policy })).toBe(outcome);
    expect(node.asked()).toBe(outcome === "pulled" ? 2 : 0);
  });

  const PRESENT: [policy: string | undefined, ageMs: number, outcome: string][] = [
    [undefined, 900 * HOUR_MS, "used"],
    ["missing", 900 * HOUR_MS, "used"],
    ["never", 900 * HOUR_MS, "used"],
    ["build", 900 * HOUR_MS, "used"],
    ["always", 0, "pulled"],
    ["refresh", 0, "pulled"],
    ["daily", 23 * HOUR_MS, "used"],
    ["daily", 25 * HOUR_MS, "pulled"],
    ["weekly", 100 * HOUR_MS, "used"],
    ["weekly", 169 * HOUR_MS, "pulled"],
    ["every_1h30m", 1 * HOUR_MS, "used"],
    ["every_1h30m", 2 * HOUR_MS, "pulled"],
  ];
  test.each(PRESENT)("%p with an image tagged here %p ms ago: %s", async (policy, ageMs, outcome) => {
    const node = new Node();
    node.engine.images.add("app:1");
    node.engine.registry.set("app:1", "found");
    node.engine.taggedAt.set("app:1", node.clock.now() - ageMs);
    expect(await node.make({ image: "app:1", policy })).toBe(outcome);
    if (outcome === "used") expect(node.asked()).toBe(0);
  });

  test("an image of another platform is as good as absent, and pulled for the one that is asked for", async () => {
    const node = new Node();
    node.engine.registry.set("app:1", "found");
    node.engine.images.add("app:1");
    expect(await node.make({ image: "app:1", platform: "linux/amd64" })).toBe("used");
    expect(await node.make({ image: "app:1", platform: "linux/386" })).toBe("pulled");
    expect(node.engine.platforms.get("app:1")).toBe("linux/386");
    expect(await node.make({ image: "app:1", platform: "linux/386" })).toBe("used");
    expect(await node.make({ image: "app:1", platform: "linux/arm64", policy: "never" })).toBe(
      "image app:1 is not on this node for linux/arm64, and pull_policy is never; load it here, or change the policy",
    );
  });

  test("an image that its registry has for another platform only is refused, not pulled over and over", async () => {
    const node = new Node();
    node.engine.registry.set("app:1", "found");
    node.engine.onlyPlatform.set("app:1", "linux/amd64");
    expect(await node.make({ image: "app:1", platform: "linux/arm64" })).toBe(
      "image app:1 is of linux/amd64, not of linux/arm64; choose an image that is, or change platform",
    );
    expect(node.asked()).toBe(2);
  });

  test("daily asks once a day, also where the registry has nothing newer", async () => {
    const node = new Node();
    node.engine.registry.set("app:1", "found");
    node.engine.images.add("app:1");
    node.engine.digests.set("app:1", "sha256:app-1");
    expect(await node.make({ image: "app:1", policy: "daily" })).toBe("pulled");
    expect(await node.make({ image: "app:1", policy: "daily" })).toBe("used");
    await node.clock.advance(25 * HOUR_MS);
    expect(await node.make({ image: "app:1", policy: "daily" })).toBe("pulled");
  });

  test("a digest in the name means one image for good, so always asks nobody", async () => {
    const node = new Node();
    node.engine.images.add("app@sha256:aa");
    expect(await node.make({ image: "app@sha256:aa", policy: "always" })).toBe("used");
    expect(node.asked()).toBe(0);
  });
});

describe("the digest", () => {
  test("that a tag stands for is told, and pulled under the tag's name", async () => {
    const node = new Node();
    node.engine.registry.set("host:5000/a/app:1", "found").set("host:5000/a/app:1", "found");
    node.engine.registryDigests.set("host:5000/a/app:1", "sha256:new");
    expect(await node.make({ image: "host:5000/a/app:1" })).toBe("pulled");
    expect(node.resolved).toEqual(["sha256:new"]);
    expect(node.engine.pulled).toEqual(["host:5000/a/app@sha256:new"]);
    expect(node.engine.images.has("host:5000/a/app:1")).toBe(true);
  });

  test("that the others run is pulled, whatever the tag stands for by now", async () => {
    const node = new Node();
    node.engine.registry.set("app:1", "found");
    node.agreed = "sha256:old";
    await node.make({ image: "app:1" });
    expect(node.engine.pulled).toEqual(["app@sha256:old"]);
  });

  test("that is settled costs no question about the tag", async () => {
    const node = new Node();
    node.engine.registry.set("app:1", "found");
    expect(await node.make({ image: "app:1", digest: "sha256:old" })).toBe("pulled");
    expect(node.engine.calls.get("resolve")).toBeUndefined();
  });

  test("an image that is here is used as it is, whatever is settled", async () => {
    const node = new Node();
    node.engine.images.add("app:1");
    expect(await node.make({ image: "app:1", digest: "sha256:other" })).toBe("used");
    expect(node.asked()).toBe(0);
  });

  test.each([{ refresh: true }, { policy: "always" }])("%p wants exactly what is settled", async (more) => {
    const node = new Node();
    node.engine.images.add("app:1");
    node.engine.digests.set("app:1", "sha256:old");
    node.engine.registry.set("app:1", "found");
    expect(await node.make({ image: "app:1", digest: "sha256:new", ...more })).toBe("pulled");
    expect(await node.make({ image: "app:1", digest: "sha256:new", ...more })).toBe("used");
    expect(node.asked()).toBe(1);
  });

  test("that is here under another name is tagged, not pulled", async () => {
    const node = new Node();
    node.engine.images.add("app@sha256:new");
    node.engine.digests.set("app@sha256:new", "sha256:new");
    expect(await node.make({ image: "app:1", digest: "sha256:new" })).toBe("pulled");
    expect(node.asked()).toBe(0);
  });

  const OF: [name: string, digests: string[], expected: string | undefined][] = [
    ["redis:7", ["redis@sha256:a"], "sha256:a"],
    ["redis", ["docker.io/library/redis@sha256:a"], "sha256:a"],
    ["docker.io/library/redis:7", ["redis@sha256:a"], "sha256:a"],
    ["team/app", ["docker.io/team/app@sha256:a"], "sha256:a"],
    ["r.example:5000/app:1", ["app@sha256:a", "r.example:5000/app@sha256:b"], "sha256:b"],
    ["r.example:5000/app:1", ["app@sha256:a"], undefined],
    ["app:1", [], undefined],
  ];
  test.each(OF)("of %s in %j is %p", (name, digests, expected) =>
    expect(digestOf(name, digests)).toBe(expected as string),
  );
});

describe("a registry that fails", () => {
  test("is asked again soon after a fault of the network, seldom where it said no", async () => {
    for (const [state, most, least] of [
      ["unreachable", 40, 12],
      ["missing", 8, 3],
      ["denied", 8, 3],
    ] as const) {
      const node = new Node();
      node.engine.registry.set("app:1", state);
      for (let second = 0; second < 600; second++) {
        await node.make({ image: "app:1" });
        await node.clock.advance(1_000);
      }
      expect(node.asked()).toBeLessThanOrEqual(most);
      expect(node.asked()).toBeGreaterThanOrEqual(least);
    }
  });

  test("has its own login tried, the cluster's before the node's, and a new one at once", async () => {
    const own = { username: "node", password: "n" };
    const node = new Node(async (host) => (host === "r.example" ? own : undefined));
    for (const image of ["r.example/app:1", "other.example/app:1"]) node.engine.registry.set(image, "denied");
    await node.make({ image: "r.example/app:1" });
    expect(node.engine.logins).toEqual([own]);
    expect(await node.make({ image: "other.example/app:1" })).toContain("no basic auth");
    const given = { username: "u", password: "p" };
    const isConcerned = node.images.useLogins(new Map([["other.example", given]]));
    expect(isConcerned("other.example/x")).toBe(true);
    expect(isConcerned("r.example/app:1")).toBe(false);
    expect(await node.make({ image: "other.example/app:1" })).toBe("pulled");
    expect(node.engine.logins.at(-1)).toEqual(given);
    node.images.useLogins(new Map([["r.example", given]]));
    node.engine.images.delete("r.example/app:1");
    await node.make({ image: "r.example/app:1", policy: "always" });
    expect(node.engine.logins.at(-1)).toEqual(given);
  });

  // Texts of Docker 20.10 to 27, and of the registries behind them.
  const TEXTS: [text: string, words: string][] = [
    ["manifest for r/x:1 not found: manifest unknown: manifest unknown", "image r.example/x:1 not found"],
    ["name unknown: repository name not known to registry", "image r.example/x:1 not found"],
    ['Get "https://r/v2/": dial tcp 10.0.0.1:443: connect: connection refused', "registry r.example cannot be reached"],
    ["Get https://not found.example/v2/: dial tcp: lookup r: no such host", "registry r.example cannot be reached"],
    ["Get https://r/v2/: x509: certificate signed by unknown authority", "registry r.example cannot be reached"],
    ["Get https://r/v2/: net/http: TLS handshake timeout", "registry r.example cannot be reached"],
    ["http: server gave HTTP response to HTTPS client", "registry r.example cannot be reached"],
    ["received unexpected HTTP status: 503 Service Unavailable", "registry r.example cannot be reached"],
    [
      "Get https://r/v2/x/manifests/1: no basic auth credentials",
      "registry wants a login (PUT /cluster/registry/r.example)",
    ],
    ["pull access denied for x, repository does not exist or may require 'docker login'", "registry wants a login"],
    ["unauthorized: authentication required", "registry wants a login"],
    ["toomanyrequests: You have reached your pull rate limit.", "toomanyrequests"],
  ];
  test.each(TEXTS)("%s", (text, words) => {
    expect(inWords(pullError(new EngineError("other", text)), { image: "r.example/x:1" })).toContain(words);
  });

  const REFUSALS: [text: string, words: string][] = [
    [
      'OCI runtime create failed: runc create failed: unable to start container process: exec: "nope": executable file not found in $PATH: unknown',
      'program "nope" not found in image r.example/x:1: put',
    ],
    [
      'OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "/etc/motd": permission denied: unknown',
      'program "/etc/motd" is in image r.example/x:1 and may not be executed: put',
    ],
    [
      'failed to create task: exec: "/etc": is a directory: unknown',
      'program "/etc" is in image r.example/x:1 and may not',
    ],
    ["No command specified", "image r.example/x:1 names no program to run: give the service a command"],
    ["unable to find user app: no matching entries in passwd file", "user app is not known in image r.example/x:1"],
    ["unable to find group web: no matching entries in group file", "group web is not known in image r.example/x:1"],
    [
      'OCI runtime create failed: error mounting "/srv/a" to rootfs at "/etc/b": mount /srv/a:/etc/b, flags: 0x5000: not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type',
      "/srv/a and /etc/b in image r.example/x:1 are a file and a directory",
    ],
    ["mkdir /var/lib/docker/overlay2/x: no space left on device", "a disk of this node is full: make room on it"],
    ["something that nobody has seen yet", "something that nobody has seen yet"],
  ];
  test.each(REFUSALS)("%s is said in one sentence", (text, words) => {
    expect(inWords(new EngineError("other", text), { image: "r.example/x:1" })).toStartWith(words);
  });

  test("a fixed address that is taken, which Docker forbids with 403, is no matter of the image", () => {
    const error = apiError(403, new Error("(HTTP code 403) unexpected - Address already in use "));
    expect(inWords(error, { image: "r.example/x:1" })).toContain("its fixed address is taken");
  });

  test("is named as Docker would find it", () => {
    const hosts = ["redis", "team/app", "localhost/app", "r.example/a/b:1", "r:5000/a", "index.docker.io/a/b"].map(
      registryOf,
    );
    expect(hosts).toEqual(["docker.io", "docker.io", "localhost", "r.example", "r:5000", "docker.io"]);
  });
});

describe("progress", () => {
  test("sums up Docker's lines about layers", () => {
    const progress = new Progress();
    const [a, b] = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"];
    progress.note({ layer: "latest", status: "Pulling from library/app" });
    for (const layer of [a, b]) progress.note({ layer, status: "Pulling fs layer" });
    expect(progress.sum).toEqual({ layers_done: 0, layers_total: 2, bytes_done: 0, bytes_total: 0 });
    progress.note({ layer: a, status: "Downloading", currentBytes: 10, totalBytes: 100 });
    progress.note({ layer: b, status: "Already exists" });
    expect(progress.sum).toEqual({ layers_done: 1, layers_total: 2, bytes_done: 10, bytes_total: 100 });
    progress.note({ layer: a, status: "Download complete" });
    progress.note({ layer: a, status: "Extracting", currentBytes: 3, totalBytes: 100 });
    expect(progress.sum).toEqual({ layers_done: 1, layers_total: 2, bytes_done: 100, bytes_total: 100 });
    progress.note({ layer: a, status: "Pull complete" });
    progress.note({ status: "Digest: sha256:00" });
    expect(progress.sum).toEqual({ layers_done: 2, layers_total: 2, bytes_done: 100, bytes_total: 100 });
  });

  test("is told once a second at most", async () => {
    const node = new Node();
    node.engine.registry.set("app:1", "found");
    node.engine.pullMs = 3_000;
    await node.make({ image: "app:1" });
    expect(node.progress.length).toBeGreaterThanOrEqual(2);
    expect(node.progress.length).toBeLessThanOrEqual(4);
    expect(node.progress.at(-1)).toMatchObject({ layers_total: 1, bytes_total: 1000 });
  });

  test("a pull that fails is a PullError with the time of the next try", async () => {
    const node = new Node();
    const pull = node.images
      .pull({ image: "no:1" }, { signal: new AbortController().signal, onProgress: () => {}, agree: async (d) => d })
      .catch((error: unknown) => error);
    await node.clock.advance(1_000);
    const error = await pull;
    expect(error).toBeInstanceOf(PullError);
    expect((error as PullError).retryAt).toBeGreaterThan(node.clock.now());
  });
});
