/** @module What nodes are told of each other's addresses and of services, by a whole master with nodes that say what a test tells them to. */
import { describe, expect, test } from "bun:test";
import { parseJob } from "../src/job_spec.ts";
import { Master, NODE_TIMEOUT_MS, Peer } from "./master_fixture.ts";

const WEB = { image: "busybox" };
/** 32 bytes in base64, as a WireGuard key is. */
const KEY = `${"A".repeat(43)}=`;

describe("services in the directory", () => {
  test("come before all assignments when a node's session begins", async () => {
    const master = await Master.start();
    const peer = await Peer.join(master, 1);
    await peer.hangUp();
    await peer.dial();
    const types = peer.heard.map(({ type }) => type).filter((type) => type !== "ack" && type !== "peers");
    expect(types.slice(0, 4)).toEqual(["welcome", "network", "directory", "assignments"]);
  });

  test("are known on every node as soon as a replica is ready, and unready when it is unwell", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put("shop", { web: { ...WEB, deploy: { placement: { constraints: ["node.id == n1"] } } } });
    expect(two.endpoints("shop/web")).toEqual([]);
    await one.report({ 1: { health: "starting" } });
    expect(two.endpoints("shop/web")).toEqual([[1, false, "n1"]]);
    await one.report({ 1: { health: "healthy" } });
    expect(two.endpoints("shop/web")).toEqual([[1, true, "n1"]]);
    expect(two.services.get("shop/web")?.endpoints[0]?.addresses).toEqual([
      { network: "shop_default", address: "10.0.9.1" },
    ]);
    await one.report({ 1: { health: "unhealthy" } });
    expect(two.endpoints("shop/web")).toEqual([[1, false, "n1"]]);
    await one.report({ 1: { state: "exited", addresses: [] } });
    expect(two.endpoints("shop/web")).toEqual([]);
    expect(two.services.get("shop/web")).toEqual(one.services.get("shop/web")!);
  });

  test("lead to no replica of a node that is down", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put("shop", { web: { ...WEB, deploy: { placement: { constraints: ["node.id == n1"] } } } });
    await one.report();
    for (let passed = 0; passed < NODE_TIMEOUT_MS - 1_000; passed += 1_000) {
      await master.clock.advance(1_000);
      await two.beat();
    }
    expect(two.endpoints("shop/web")).toEqual([[1, true, "n1"]]);
    for (let passed = 0; passed < 3_000; passed += 1_000) {
      await master.clock.advance(1_000);
      await two.beat();
    }
    expect(two.endpoints("shop/web")).toEqual([[1, false, "n1"]]);
  });

  test("are without a replica that is to stop before its node hears of that", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of [one, two]) await peer.report();
    expect(one.endpoints("shop/web")?.map(([, ready]) => ready)).toEqual([true, true]);
    master.log.length = 0;
    await master.scheduler.scaleService("shop", { serviceName: "web", scale: 1 });
    await master.clock.advance(20);
    const stops = master.log.findIndex((line) => line.endsWith("assignments"));
    expect(master.log.slice(0, stops).toSorted()).toEqual(["n1 directory", "n2 directory"]);
    // It keeps its address: connections to it may end by themselves.
    expect(
      one
        .endpoints("shop/web")
        ?.map(([, ready]) => ready)
        .toSorted(),
    ).toEqual([false, true]);
    for (const peer of [one, two]) await peer.report();
    expect(one.endpoints("shop/web")).toHaveLength(1);
  });

  test("keep the replicas of the old definition while an update goes on", async () => {
    const master = await Master.start();
    const one = await Peer.join(master, 1);
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    await one.report();
    const before = one.assigned.map(({ allocation_id }) => allocation_id);
    await master.put("shop", { web: { ...WEB, scale: 2, command: "sleep 1" } });
    const ready = () => one.services.get("shop/web")?.endpoints.filter((endpoint) => endpoint.ready) ?? [];
    expect(ready().length).toBeGreaterThanOrEqual(1);
    expect(before).toContain(ready()[0]?.allocation_id ?? "");
    for (let round = 0; round < 6; round++) {
      await one.report();
      await master.clock.advance(1_000);
    }
    expect(ready()).toHaveLength(2);
    expect(ready().filter(({ allocation_id }) => before.includes(allocation_id))).toEqual([]);
  });

  test("are there without any replica, and gone with their job", async () => {
    const master = await Master.start();
    const one = await Peer.join(master, 1);
    await master.put("shop", { web: { ...WEB, scale: 0 }, db: WEB });
    expect([...one.services.keys()]).toEqual(["shop/web", "shop/db"]);
    await one.report();
    await master.delete("shop");
    expect([...one.services.keys()]).toEqual([]);
    expect(master.scheduler.directory.entries()).toEqual([]);
    await master.put("shop", { db: WEB });
    // The old replica still stops, and is nobody's.
    expect(one.services.get("shop/db")?.endpoints.filter(({ ready }) => ready)).toEqual([]);
    await one.report();
    await one.report();
    expect(one.endpoints("shop/db")).toEqual([[1, true, "n1"]]);
  });

  test("are gone when an update leaves them out, while their replicas still stop", async () => {
    const master = await Master.start();
    const one = await Peer.join(master, 1);
    await master.put("shop", { web: WEB, db: WEB });
    await one.report();
    await master.put("shop", { web: WEB });
    expect([...one.services.keys()]).toEqual(["shop/web"]);
  });

  test("have the ports that the document tells of, its aliases, and each of its networks", async () => {
    const master = await Master.start();
    const one = await Peer.join(master, 1);
    await master.put(
      "shop",
      {
        web: {
          ...WEB,
          ports: ["8080:80", { target: 443, published: 8443, mode: "ingress" }],
          expose: ["9000-9001", "53/udp"],
          networks: { front: { aliases: ["www"] }, back: {}, other: {} },
        },
        db: WEB,
        lone: { ...WEB, network_mode: "none" },
      },
      { networks: { front: {}, back: { name: "shared" }, other: { external: true } } },
    );
    const web = one.services.get("shop/web");
    expect(web?.ports.map(({ container_port, protocol }) => `${container_port}/${protocol}`)).toEqual([
      "80/tcp",
      "9000/tcp",
      "9001/tcp",
      "53/udp",
      "443/tcp",
    ]);
    expect(web?.entries).toMatchObject([{ port: 8443, protocol: "tcp", container_port: 443 }]);
    expect(web?.aliases.toSorted((a, b) => (a.network < b.network ? -1 : 1))).toEqual([
      { network: "other", names: [] },
      { network: "shared", names: [] },
      { network: "shop_front", names: ["www"] },
    ]);
    expect(one.services.get("shop/db")?.aliases).toEqual([{ network: "shop_default", names: [] }]);
    expect(one.services.get("shop/lone")?.aliases).toEqual([]);
  });

  test("tell nobody who has left, nor a listener that ended", async () => {
    const master = await Master.start();
    const one = await Peer.join(master, 1);
    const told: string[] = [];
    const end = master.scheduler.directory.subscribe((keys) => void told.push(...keys));
    await one.hangUp();
    one.heard = [];
    await master.put("shop", { web: WEB });
    expect(new Set(told)).toEqual(new Set(["shop/web"]));
    end();
    told.length = 0;
    await master.put("other", { web: WEB });
    expect([told, one.heard]).toEqual([[], []]);
  });

  test("are found by who asks right after a PUT", async () => {
    const master = await Master.start();
    const result = parseJob("services: {web: {image: busybox}}", { jobId: "shop", env: new Map() });
    if (!result.ok) throw new Error("a job is expected");
    const wanted = { document: "", services: result.job.services };
    await master.scheduler.putJob("shop", { wanted, preconditions: {} });
    expect(master.scheduler.directory.entry("shop/web")).toBeDefined();
    await master.scheduler.putJob("other", { wanted, preconditions: {} });
    expect(master.scheduler.directory.entries()).toHaveLength(2);
  });
});

describe("a master that starts again", () => {
  test("says of what it has not heard of that it is unknown, until the node reports or is down", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await master.put("shop", { web: { ...WEB, scale: 2 } });
    for (const peer of [one, two]) await peer.report();
    await master.restart();
    await one.dial();
    const unknown = () => one.services.get("shop/web")?.endpoints.filter((endpoint) => endpoint.unknown) ?? [];
    expect(unknown()).toHaveLength(2);
    expect(one.network?.unknown).toEqual(["n1", "n2"]);
    await one.report();
    expect(unknown().map(({ node_id }) => node_id)).toEqual(["n2"]);
    expect(one.network?.unknown).toEqual(["n2"]);
    for (let passed = 0; passed < 2 * NODE_TIMEOUT_MS + 2_000; passed += 1_000) {
      await master.clock.advance(1_000);
      await one.beat();
    }
    expect(unknown()).toEqual([]);
    await Peer.join(master, 3);
    expect(one.network).not.toHaveProperty("unknown");
    expect(one.services.get("shop/web")?.endpoints.filter(({ ready }) => ready)).toHaveLength(1);
  });

  test("gives each node the blocks that it had", async () => {
    const master = await Master.start();
    const peers = [await Peer.join(master, 1), await Peer.join(master, 2)];
    const blocks = () => peers.map(({ network }) => network?.self.subnets);
    expect(blocks()).toEqual([["10.213.0.0/24"], ["10.213.1.0/24"]]);
    await master.restart();
    for (const peer of peers.toReversed()) await peer.dial();
    expect(blocks()).toEqual([["10.213.0.0/24"], ["10.213.1.0/24"]]);
    const third = await Peer.join(master, 3);
    expect(third.network?.self.subnets).toEqual(["10.213.2.0/24"]);
  });
});

describe("nodes in the cluster's network", () => {
  const peerOf = (n: number) => ({ node_id: `n${n}`, underlay: `10.0.0.${n}`, subnets: [`10.213.${n - 1}.0/24`] });

  test("hear of each other, and of the networks that they share", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    expect(one.network).toMatchObject({ mode: "vxlan", self: peerOf(1), peers: [peerOf(2)], networks: [] });
    one.overlay = { ...one.overlay!, networks: [{ network: "a", subnet: "10.213.0.64/26" }] };
    two.overlay = {
      ...two.overlay!,
      public_key: KEY,
      networks: [
        { network: "a", subnet: "10.213.1.64/26" },
        { network: "b", subnet: "10.213.1.128/26" },
      ],
    };
    for (const peer of [one, two]) await peer.beat();
    expect(one.network).toMatchObject({
      peers: [{ ...peerOf(2), public_key: KEY }],
      networks: [{ network: "a", subnets: ["10.213.1.64/26"] }],
    });
    expect(one.network).not.toHaveProperty("unknown");
    // A node whose process has just started does not know yet: nobody closes the way to it.
    two.overlay = undefined;
    const told = one.heard.length;
    await two.beat();
    expect(one.heard.slice(told)).toEqual([]);
  });

  test("hear within milliseconds that one came back with another address", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    await two.hangUp();
    Object.assign(two, { address: "10.0.0.9:9000", underlay: "10.0.0.9" });
    await two.dial();
    expect(one.network?.peers).toEqual([{ ...peerOf(2), underlay: "10.0.0.9" }]);
    expect(two.network?.self).toEqual({ ...peerOf(2), underlay: "10.0.0.9" });
  });

  test("keep to what a name led to when it can't be looked up, but not for another name", async () => {
    const master = await Master.start();
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    two.underlay = undefined;
    await two.dial();
    expect(one.network?.peers).toEqual([peerOf(2)]);
    two.address = "elsewhere:9000";
    await two.dial();
    expect(one.network?.peers).toEqual([]);
    expect(two.network).toMatchObject({ mode: "none", reason: expect.stringContaining("--advertise-addr") });
    expect(two.network?.self.subnets).toEqual(["10.213.1.0/24"]);
  });

  test("leave out one that can't take part", async () => {
    const master = await Master.start();
    const one = await Peer.join(master, 1);
    const overlay = { mode: "none" as const, reason: "no root", networks: [], blocks: 1, full: false };
    const two = await Peer.join(master, 2, { overlay });
    expect(one.network?.peers).toEqual([]);
    expect(two.network?.peers).toEqual([peerOf(1)]);
    two.overlay = { ...overlay, mode: "vxlan" };
    await two.beat();
    expect(one.network?.peers).toEqual([peerOf(2)]);
  });

  test("are members without a block when the range has none left, and say why", async () => {
    const master = await Master.start("10.9.0.0/23");
    await Peer.join(master, 1);
    await Peer.join(master, 2);
    const three = await Peer.join(master, 3);
    expect(three.network).toMatchObject({
      mode: "none",
      reason: "the cluster's range 10.9.0.0/23 has no block left for it",
      self: { subnets: [] },
    });
    expect(master.scheduler.state.views.get("n3")?.state).toBe("ready");
  });

  test("get a further block when theirs is full, once for each that they know of", async () => {
    const master = await Master.start("10.9.0.0/22");
    const [one, two] = [await Peer.join(master, 1), await Peer.join(master, 2)];
    one.overlay = { ...one.overlay!, full: true };
    await one.beat();
    // A heartbeat that crossed the news on its way.
    await one.beat();
    expect(one.network?.self.subnets).toEqual(["10.9.0.0/24", "10.9.2.0/24"]);
    expect(two.network?.peers).toMatchObject([{ subnets: ["10.9.0.0/24", "10.9.2.0/24"] }]);
    one.overlay = { ...one.overlay!, blocks: 2 };
    await one.beat();
    expect(one.network?.self.subnets).toHaveLength(3);
    one.overlay = { ...one.overlay!, blocks: 3 };
    await one.beat();
    expect(one.network?.self.subnets).toHaveLength(3);
    await master.restart();
    await one.dial();
    expect(one.network?.self.subnets).toEqual(["10.9.0.0/24", "10.9.2.0/24", "10.9.3.0/24"]);
  });
});
