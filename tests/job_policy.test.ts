/** @module The policy: which rule decides about what a service asks for, and faults of the file. */
import { describe, expect, test } from "bun:test";
import { forbiddenBy, readPolicy } from "../src/job_policy.ts";
import { parseJob } from "../src/job_spec.ts";

function refusals(rules: string, service: string): string[] {
  const policy = readPolicy(`rules:\n${rules.replace(/^/gm, "  - ")}`, { path: "p" });
  const document = `services:\n  app:\n    image: team/app:1\n    ${service}\nvolumes:\n  etc: {driver_opts: {type: none, o: bind, device: /etc}}\n  data:\n`;
  const result = parseJob(document, { jobId: "j", env: new Map() });
  if (!result.ok) throw new Error(JSON.stringify(result.details));
  return forbiddenBy(policy, { ...result.job, jobId: "j" }).map(({ path, message }) => `${path}: ${message}`);
}

describe("a rule", () => {
  const DENIED: [rules: string, service: string, expected: string][] = [
    ["{name: np, effect: deny, keys: [privileged]}", "privileged: true", "services.app.privileged: privileged is"],
    [
      "{name: x, effect: deny, keys: [network_mode=host]}",
      "network_mode: host",
      "network_mode host is forbidden by the rule 'x'",
    ],
    ["{name: x, effect: deny, keys: [cap_add=SYS_ADMIN]}", "cap_add: [CHOWN, SYS_ADMIN]", "cap_add SYS_ADMIN"],
    ["{name: x, effect: deny, keys: [cap_add]}", "cap_add: [CHOWN]", "cap_add CHOWN"],
    ["{name: x, effect: deny, keys: [devices]}", "devices: [/dev/kvm]", "devices is"],
    ["{name: x, effect: deny, keys: [gpus]}", "gpus: all", "gpus is"],
    ["{name: x, effect: deny, binds: [/etc]}", "volumes: ['/etc/passwd:/x']", "the path /etc/passwd"],
    ["{name: x, effect: deny, binds: [/var/run/docker.sock]}", "volumes: ['/var/run:/x']", "the path /var/run "],
    ["{name: x, effect: deny, binds: [/var/run/docker.sock]}", "volumes: ['/:/x']", "the path / "],
    ["{name: x, effect: deny, binds: [/]}", "volumes: ['/data/a:/x']", "the path /data/a"],
    ["{name: x, effect: deny, binds: [/etc]}", "volumes: ['/srv/..//etc/:/x']", "the path /srv/..//etc"],
    ["{name: x, effect: deny, binds: [/etc]}", "volumes: ['etc:/x']", "the path /etc "],
    ["{name: x, effect: deny, images: [team/]}", "tty: true", "services.app.image: team/app:1"],
    ["{name: x, effect: deny, images: [docker.io/]}", "tty: true", "team/app:1"],
    ["{name: a, effect: allow, images: [r.example/]}\n{name: b, effect: deny, images: ['']}", "tty: true", "rule 'b'"],
  ];
  test.each(DENIED)("%s denies %s", (rules, service, expected) => {
    expect(refusals(rules, service).join("\n")).toContain(expected);
  });

  const ALLOWED: [rules: string, service: string][] = [
    ["{name: x, effect: deny, keys: [privileged, devices, cap_add, pid]}", "privileged: false"],
    ["{name: x, effect: deny, keys: [network_mode=host]}", "network_mode: none"],
    ["{name: x, effect: deny, binds: [/etc]}", "volumes: ['/etcetera:/x', data:/y, ./etc:/z]"],
    ["{name: a, effect: allow, binds: [/srv]}\n{name: b, effect: deny, binds: [/]}", "volumes: ['/srv/a:/x']"],
    ["{name: a, effect: allow, images: [team/app]}\n{name: b, effect: deny, images: ['']}", "tty: true"],
    ["{name: x, effect: deny, images: [registry.example/]}", "tty: true"],
  ];
  test.each(ALLOWED)("%s leaves %s alone", (rules, service) => expect(refusals(rules, service)).toEqual([]));

  test("that allows a path does not allow the directories above it", () => {
    const rules = "{name: a, effect: allow, binds: [/srv/a]}\n{name: b, effect: deny, binds: [/]}";
    expect(refusals(rules, "volumes: ['/srv:/x']").length).toBe(1);
  });
});

/** README's example: what rules alone must name to keep containers in. */
const EXAMPLE = `
rules:
  - {name: backup may read /srv, effect: allow, binds: [/srv]}
  - {name: no host paths, effect: deny, binds: [/]}
  - {name: Docker's own drivers, effect: allow, keys: [volumes.driver=local, logging.driver=json-file, logging.driver=local]}
  - name: no way out of the container
    effect: deny
    keys: [privileged, cap_add, security_opt, devices, device_cgroup_rules, gpus, network_mode=host, pid=host, ipc=host, uts=host,
      cgroup=host, userns_mode=host, cgroup_parent, runtime, annotations, sysctls, storage_opt, oom_kill_disable, oom_score_adj,
      cpu_rt_runtime, logging.driver, volume_driver, volumes.driver, volumes.driver_opts, volumes.external, volumes.name,
      volumes.propagation, networks.driver, networks.driver_opts, networks.external, networks.name, networks.ipam, api=deploy]
  - {name: our images, effect: allow, images: [registry.example/]}
  - {name: no other images, effect: deny, images: [""]}
`;

describe("point 2: a policy of rules alone", () => {
  function forbidden(policy: string, { own = "tty: true", top = "" }: { own?: string; top?: string }): string[] {
    const document = `services:\n  app:\n    image: registry.example/app\n    ${own}\n${top}`;
    const result = parseJob(document, { jobId: "j", env: new Map() });
    if (!result.ok) throw new Error(JSON.stringify(result.details));
    const found = forbiddenBy(readPolicy(policy, { path: "p" }), { ...result.job, jobId: "j" });
    return found.map(({ path, message }) => `${path}: ${message}`);
  }
  const volume = (options: string) => ({ own: "volumes: ['vol:/x']", top: `volumes: {vol: ${options}}` });
  const NO_ETC = "rules: [{name: x, effect: deny, binds: [/etc]}]";

  test.each([
    ["{type: none, o: bind, device: /etc}", "/etc"],
    ["{type: none, o: bind, device: etc}", "/etc"],
    ["{type: ext4, o: 'ro,rbind', device: ./etc/ssl}", "/etc/ssl"],
    ["{type: none, o: bind, device: '../../etc'}", "/etc"],
    ["{type: none, o: bind, device: '/srv/../etc'}", "/etc"],
    ["{type: overlay, device: overlay, o: 'lowerdir=/etc:/root'}", "/etc"],
    ["{type: overlay, device: overlay, o: 'lowerdir=/root:etc'}", "/etc"],
    ["{type: overlay, device: x, o: 'lowerdir=/a,upperdir=/etc/u,workdir=/w'}", "/etc/u"],
    ["{type: overlay, device: x, o: 'lowerdir+=/etc'}", "/etc"],
    ["{type: overlay, device: x, o: 'lowerdir=/\\etc'}", "/"],
    ["{type: proc, device: /srv}", "/"],
    ["{type: bind, device: etc}", "/"],
  ])("sees a volume of %s", (options, path) => {
    const what = `volumes.vol.driver_opts: the path ${path} is forbidden by the rule 'x'`;
    expect(forbidden(NO_ETC, volume(`{driver_opts: ${options}}`)).join("\n")).toContain(what);
  });

  test.each([
    "{type: tmpfs, device: tmpfs, o: size=1m}",
    "{type: nfs, device: ':/etc', o: addr=10.0.0.1}",
    "{type: ext4, device: /dev/sdb1}",
    "{size: 1g}",
    "{type: none, o: bind, device: srv}",
  ])("takes a volume of %s for no such path", (options) => {
    expect(forbidden(NO_ETC, volume(`{driver_opts: ${options}}`))).toEqual([]);
  });

  test.each([
    ["volumes.driver", volume("{driver: rclone}"), "volumes.vol.driver: volumes.driver rclone"],
    ["volumes.driver=rclone", volume("{driver: rclone}"), "volumes.vol.driver: volumes.driver rclone"],
    ["volumes.driver_opts=type=nfs", volume("{driver_opts: {type: nfs, device: x}}"), "volumes.driver_opts type=nfs"],
    ["volumes.driver_opts=device", volume("{driver_opts: {type: nfs, device: x}}"), "volumes.driver_opts device=x"],
    ["volumes.external=other", volume("{external: true, name: other}"), "volumes.external other"],
    [
      "networks.driver=macvlan",
      { top: "networks: {default: {driver: macvlan}}" },
      "networks.default.driver: networks.driver",
    ],
    [
      "networks.driver_opts",
      { top: "networks: {default: {driver_opts: {com.docker.network.bridge.name: br0}}}" },
      "networks.driver_opts com.docker.network.bridge.name=br0",
    ],
    ["networks.name", { top: "networks: {default: {name: bank_default}}" }, "networks.name bank_default"],
    ["networks.ipam", { top: "networks: {default: {ipam: {config: [{subnet: 10.0.0.0/8}]}}}" }, "networks.ipam"],
    ["sysctls=net.ipv4.ip_forward", { own: "sysctls: {net.ipv4.ip_forward: 1}" }, "sysctls net.ipv4.ip_forward=1"],
    [
      "logging.driver=syslog",
      { own: "logging: {driver: syslog}" },
      "services.app.logging.driver: logging.driver syslog",
    ],
    ["mounts", { own: "volumes: ['./x:/x']" }, "services.app.volumes: mounts"],
  ])("can speak of %s", (key, document, expected) => {
    const policy = JSON.stringify({ rules: [{ name: "x", effect: "deny", keys: [key] }] });
    expect(forbidden(policy, document).join("\n")).toContain(expected);
    expect(forbidden(policy, {})).toEqual([]);
  });

  test.each<[document: { own?: string; top?: string }, expected: string]>([
    [{ own: "privileged: true" }, "privileged"],
    [{ own: "device_cgroup_rules: ['b 8:* rwm']" }, "device_cgroup_rules b 8:* rwm"],
    [{ own: "security_opt: ['apparmor:unconfined']" }, "security_opt apparmor:unconfined"],
    [{ own: "userns_mode: host" }, "userns_mode host"],
    [{ own: "volumes: ['/etc:/x']" }, "the path /etc"],
    [volume("{driver_opts: {type: none, o: bind, device: etc}}"), "the path /etc"],
    [volume("{driver_opts: {type: nfs, o: addr=10.0.0.1, device: ':/x'}}"), "volumes.driver_opts type=nfs"],
    [volume("{driver: rclone}"), "volumes.driver rclone"],
    [volume("{external: true, name: bank_data}"), "volumes.external bank_data"],
    [{ top: "networks: {default: {driver: ipvlan}}" }, "networks.driver ipvlan"],
  ])("README's example refuses %j", (document, expected) => {
    expect(forbidden(EXAMPLE, document).join("\n")).toContain(`${expected} is forbidden by the rule 'no `);
  });

  test("README's example lets ordinary documents through", () => {
    expect(forbidden(EXAMPLE, volume("{driver: local, labels: {a: b}}"))).toEqual([]);
    expect(forbidden(EXAMPLE, { own: "volumes: ['./x:/x', '/srv/x:/y:ro']" })).toEqual([]);
    expect(forbidden(EXAMPLE, { own: "logging: {driver: local, options: {max-size: 1m}}" })).toEqual([]);
    expect(forbidden(EXAMPLE, { top: "networks: {default: {driver: bridge, internal: true}}" })).toEqual([]);
  });
});

describe("readPolicy()", () => {
  test.each([
    ["rules: [", "cannot be read"],
    ["", "not usable"],
    ["rules: [{name: a, effect: deny, keys: [priviledged]}]", "did you mean privileged?"],
    ["rules: [{name: a, effect: deny}]", "names keys, binds or images"],
    ["rules: [{name: a, effect: forbid, keys: [pid]}]", "effect"],
    ["rules: [{name: a, effect: deny, binds: [etc]}]", "start a path with /"],
    ["rule: []", "not usable"],
  ])("refuses %p", (text, message) => expect(() => readPolicy(text, { path: "/p" })).toThrow(message));

  test("takes JSON", () => {
    const text = '{"rules": [{"name": "a", "effect": "deny", "keys": ["pid"]}]}';
    expect(readPolicy(text, { path: "/p" }).rules?.length).toBe(1);
  });
});
