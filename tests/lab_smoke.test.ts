import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { Lab } from "./lab.ts";
import { command, isRunning } from "./lab_process.ts";
import { waitUntil } from "./wait.ts";

setDefaultTimeout(60_000);

let lab: Lab;

beforeAll(async () => {
  const start = performance.now();
  lab = await Lab.start({ hosts: 3 });
  console.log(`lab: 3 hosts with their engines are up after ${Math.round(performance.now() - start)} ms`);
  await Promise.all(lab.hosts.map((host) => host.importImage("busybox:latest")));
  console.log(`lab: each has its busybox image after ${Math.round(performance.now() - start)} ms`);
});

afterAll(async () => {
  await lab?.stop();
});

test("each host runs containers on an engine of its own", async () => {
  const ids = await Promise.all(lab.hosts.map((host) => host.docker("info", "--format", "{{.ID}}")));
  expect(new Set(ids).size).toBe(3);
  const said = await Promise.all(
    lab.hosts.map((host) => host.docker("run", "--rm", "busybox", "echo", `host ${host.number}`)),
  );
  expect(said).toEqual(["host 1", "host 2", "host 3"]);
});

test("a published port is reached from the test process and from another host", async () => {
  const one = lab.host(1);
  // busybox as process 1 ignores SIGTERM, and a Docker Engine that starts again would wait 10 s for it to end.
  const options = ["-d", "--name", "web", "--stop-signal", "KILL", "-p", "8080:80"];
  await one.docker("run", ...options, "busybox", "sh", "-c", "echo hello >index.html; httpd -f");
  const answer = await waitUntil("the page to be served", async () =>
    (await one.fetch("/index.html", { port: 8080 })).text(),
  );
  expect(answer).toBe("hello\n");
  const { stdout } = await lab.host(2).curl(`http://${one.address}:8080/index.html`);
  expect(stdout).toBe("hello\n");
});

test("cutOff() takes a host off the network and reconnect() puts it back", async () => {
  const [one, two] = [lab.host(1), lab.host(2)];
  const reach = async () => (await two.curl("-m", "1", `http://${one.address}:8080/index.html`)).exitCode;
  expect(await reach()).toBe(0);
  await one.cutOff();
  expect(await reach()).not.toBe(0);
  await one.reconnect();
  await waitUntil("host 1 to be reached again", reach, { until: (exitCode) => exitCode === 0 });
});

test("an image pushed into the registry is pulled by another host", async () => {
  const registry = await lab.addRegistry();
  const image = await registry.push(lab.host(1), "busybox:latest");
  expect(await lab.host(2).docker("run", "--rm", image, "echo", "pulled")).toBe("pulled");
  await expect(lab.host(2).docker("pull", `${registry.address}/no-such-image`)).rejects.toThrow("not found");
});

test("a killed Docker Engine starts again with its containers known", async () => {
  const host = lab.host(1);
  await host.killDocker();
  await expect(host.engine("/_ping")).rejects.toThrow();
  await host.restartDocker();
  expect(await host.docker("ps", "-a", "--format", "{{.Names}}")).toBe("web");
});

test("powerOff() ends the containers too, and the host boots again", async () => {
  const host = lab.host(3);
  await host.docker("run", "-d", "--name", "stays", "busybox", "sleep", "12345");
  const pid = Number(await host.docker("inspect", "--format", "{{.State.Pid}}", "stays"));
  expect(isRunning(pid)).toBe(true);
  host.powerOff();
  expect(isRunning(pid)).toBe(false);
  await host.startDocker();
  expect(await host.docker("ps", "-a", "--format", "{{.Names}} {{.State}}")).toBe("stays exited");
});

test("stop() leaves no process, namespace, interface, firewall rule, mount, cgroup or file behind", async () => {
  const { name, dir } = lab.host(1);
  const prefix = name.replace(/h1$/, "");
  const labDir = dir.replace(/\/h1$/, "");
  const ours = new RegExp(`${prefix}(h\\d+)?\\b|${labDir}/`);
  const left = async () => {
    const listings = [
      ["ip", "netns"],
      ["ip", "-o", "link"],
      ["iptables", "-w", "-S"],
    ];
    const outputs = await Promise.all(listings.map((argv) => command(argv)));
    const texts = [...outputs.map(({ stdout }) => stdout), readFileSync("/proc/mounts", "utf8"), ...commandLines()];
    const cgroups = Array.from(new Bun.Glob(`**/${prefix}`).scanSync({ cwd: "/sys/fs/cgroup", onlyFiles: false }));
    const lines = texts.flatMap((text) => text.split("\n")).filter((line) => ours.test(line));
    return [...lines, ...cgroups, ...(existsSync(labDir) ? [labDir] : [])];
  };
  expect((await left()).length).toBeGreaterThan(10);
  const start = performance.now();
  await lab.stop();
  console.log(`lab: stopped in ${Math.round(performance.now() - start)} ms`);
  expect(await left()).toEqual([]);
});

/** Command lines of all processes of the machine. */
function commandLines(): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        return [readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ")];
      } catch {
        return [];
      }
    });
}
