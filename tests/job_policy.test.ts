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
