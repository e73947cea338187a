/**
 * @module Point 2 on a real engine: what documents reach on the host without a policy, and that the profile `restricted` refuses
 * those documents and runs ordinary ones.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LabCluster, sleeper } from "./lab_cluster.ts";

setDefaultTimeout(120_000);

let cluster: LabCluster;
/** Stands for what of the host is nobody's business. */
let secret: string;
let file: string;

beforeAll(async () => {
  secret = mkdtempSync(join(tmpdir(), "cacophony-host-"));
  writeFileSync(join(secret, "key"), "the host's own\n");
  file = join(secret, "policy.yaml");
  writeFileSync(file, "profile: restricted\n");
  cluster = await LabCluster.start({ hosts: 1 });
});

afterAll(async () => {
  await cluster?.lab.stop();
  rmSync(secret, { recursive: true, force: true });
});

/** A service that shows what a volume of these options has. */
function shown(options: Record<string, string>): object {
  return {
    services: { spy: sleeper({ volumes: ["vol:/x:ro"] }) },
    volumes: { vol: { driver_opts: options } },
  };
}

const escapes = (): Record<string, object> => ({
  bind: shown({ type: "none", o: "bind", device: secret }),
  overlay: shown({ type: "overlay", device: "overlay", o: `lowerdir=${secret}:/usr` }),
});

describe("point 2: volumes with options", () => {
  test.each(["bind", "overlay"])("reach the host without a policy: %s", async (kind) => {
    expect((await cluster.put(`spy-${kind}`, escapes()[kind])).status).toBe(201);
    await cluster.settled(`spy-${kind}`);
    expect((await cluster.ask("spy", "cat /x/key")).map(({ text }) => text)).toEqual(["the host's own"]);
    await cluster.clear();
  });

  test("are refused by the profile restricted, and a web server with its database runs", async () => {
    await cluster.process(1).kill();
    await cluster.node(1, ["--policy", file]).waitFor(/this node is up/);
    await cluster.ready(1);
    for (const [kind, document] of Object.entries(escapes())) {
      expect(await cluster.put(`spy-${kind}`, document)).toMatchObject({
        status: 422,
        body: { error: { message: expect.stringContaining("policy") } },
      });
    }
    const shop = {
      services: {
        web: sleeper({
          ports: ["8080:80"],
          networks: ["front", "back"],
          depends_on: ["db"],
          volumes: ["./site:/site", "static:/static"],
          configs: [{ source: "conf", target: "/etc/app.conf" }],
          cap_drop: ["ALL"],
          cap_add: ["NET_BIND_SERVICE"],
          security_opt: ["no-new-privileges:true"],
          read_only: true,
          tmpfs: ["/tmp"],
        }),
        db: sleeper({
          networks: ["back"],
          volumes: ["data:/data"],
          healthcheck: { test: ["CMD", "true"], interval: "1s" },
        }),
      },
      volumes: { static: {}, data: {} },
      networks: { front: {}, back: { internal: true } },
      configs: { conf: { content: "on\n" } },
    };
    expect((await cluster.put("shop", shop)).status).toBe(201);
    await cluster.settled("shop");
    const planted = await cluster.ask("web", "ln -s / /site/x && cat /etc/app.conf");
    expect(planted.map(({ text }) => text)).toEqual(["on"]);
    const next = await cluster.put("shop", {
      ...shop,
      services: { ...shop.services, web: sleeper({ volumes: ["./site/x:/site"] }) },
    });
    expect(next.status).toBe(422);
    expect(JSON.stringify(next.body)).toContain(
      "lies inside of ./site, which the present version's service web may write to",
    );
  });
});
