/** Compose documents with files beside them: `env_file`, `extends`, `include`, configs, secrets, binds of sent files; profiles. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { readDotenv } from "../src/job_dotenv.ts";
import { hash, projectPath } from "../src/job_files.ts";
import { parseJob, type ParsedJob } from "../src/job_spec.ts";
import type { ServiceSpec } from "../src/model_spec.ts";
import { cpuTimer } from "./cpu_time.ts";

type Beside = { files?: Record<string, string>; env?: Record<string, string>; profiles?: string[] };

const encoder = new TextEncoder();

function parse(body: string, { files = {}, env = {}, profiles = [] }: Beside = {}) {
  return parseJob(body, {
    jobId: "shop",
    env: new Map(Object.entries(env)),
    files: new Map(Object.entries(files).map(([path, text]) => [path, encoder.encode(text)])),
    profiles,
  });
}

function job(body: string, beside?: Beside): ParsedJob {
  const result = parse(body, beside);
  if (!result.ok) throw new Error(result.details.map(({ path, message }) => `${path}: ${message}`).join("\n"));
  return result.job;
}

function faults(body: string, beside?: Beside): string {
  const result = parse(body, beside);
  return result.ok ? "" : result.details.map(({ path, message }) => `${path}: ${message}`).join("\n");
}

/** The spec of the service `app`. */
function app(body: string, beside?: Beside): ServiceSpec {
  const service = job(body, beside).services.find(({ service_name }) => service_name === "app");
  if (!service) throw new Error("no service app");
  return service.spec;
}

/** A document whose service `app` has these lines. */
function document(lines: string, rest = ""): string {
  return `services:\n  app:\n    image: busybox\n${lines.replaceAll(/^/gm, "    ")}\n${rest}`;
}

describe("readDotenv() reads as compose does", () => {
  const cases: [text: string, entries: Record<string, string>][] = [
    ["", {}],
    ["A=1\nB=2", { A: "1", B: "2" }],
    ["\uFEFFA=1\r\nB=2\r\n", { A: "1", B: "2" }],
    ["# comment\n\n  A=1 # more\nB=a#b\n", { A: "1", B: "a#b" }],
    ["A=#x", { A: "#x" }],
    ["A= # x", { A: "# x" }],
    ["A=x# y #z", { A: "x# y" }],
    ['A="\\0123 \\0377"', { A: "S ÿ" }],
    ['A="\\0 \\012 \\0400 \\0089 \\c \\x41"', { A: "\\ \\12 \\400 \\089 \\c \\x41" }],
    ["A='\\0123'", { A: "\\0123" }],
    ["A = spaced out  ", { A: "spaced out" }],
    ["A: yaml", { A: "yaml" }],
    ["export A=1\nexport  B=2", { A: "1", B: "2" }],
    ["A=", { A: "" }],
    ["A", {}],
    ["NOT_GIVEN\nB=1", { B: "1" }],
    ["GIVEN", { GIVEN: "given" }],
    ["A=a=b==", { A: "a=b==" }],
    ["A='single $GIVEN \\n # kept' # gone", { A: "single $GIVEN \\n # kept" }],
    ["A='it\\'s'", { A: "it's" }],
    ['A="double $GIVEN\\tx"', { A: "double given\tx" }],
    ['A="say \\"hi\\""', { A: 'say "hi"' }],
    ['A="costs \\$5"', { A: "costs $5" }],
    ['A="two\nlines"\nB=3', { A: "two\nlines", B: "3" }],
    ["A=1\nB=${A}2\nC=${UNSET:-none}\nD=$UNSET.", { A: "1", B: "12", C: "none", D: "." }],
    ["GIVEN=own\nB=$GIVEN", { GIVEN: "own", B: "given" }],
    ["A=1\nA=2", { A: "2" }],
    ["a.b-c[0]=x", { "a.b-c[0]": "x" }],
    ["__proto__=x", JSON.parse('{"__proto__":"x"}') as Record<string, string>],
  ];
  test.each(cases)("%j", (text, expected) => {
    const entries = readDotenv(text, (name) => (name === "GIVEN" ? "given" : undefined));
    expect(entries instanceof Map ? [...entries] : entries.message).toEqual(Object.entries(expected));
  });

  const bad: [text: string, message: string][] = [
    ["A=1\n=2", "line 2 is no NAME=value; a value of several lines stands in quotes"],
    ["A B=1", "line 1 is no NAME=value"],
    ["A=1\nB='open\nC=2", "line 2 has a ' that is not closed"],
    ['A="open', 'line 1 has a " that is not closed'],
    ["A=${B", "line 1 has a ${ that begins no variable; in single quotes it stands for itself"],
    ['A="x${1B}"', "line 1 has a ${ that begins no variable"],
    ["A=${B?must be there}", "line 1 needs variable B (must be there)"],
  ];
  test.each(bad)("%j is refused", (text, message) => {
    const result = readDotenv(text, () => undefined);
    expect(result instanceof Map ? [...result] : result.message).toContain(message);
  });

  test("takes any text without a throw, and simple entries as they are", () => {
    fc.assert(fc.property(fc.string(), (text) => void readDotenv(text, () => undefined)));
    const name = fc.stringMatching(/^[A-Za-z_][A-Za-z0-9_]{0,9}$/).filter((text) => text !== "export");
    const value = fc.stringMatching(/^[A-Za-z0-9 =:/@.,-]{0,20}$/).map((text) => text.trim());
    fc.assert(
      fc.property(fc.uniqueArray(fc.tuple(name, value), { selector: ([key]) => key }), (entries) => {
        const text = entries.map(([key, one]) => `${key}=${one}\n`).join("");
        expect([...(readDotenv(text, () => undefined) as Map<string, string>)]).toEqual(entries);
      }),
    );
  });
});

describe("no path leaves the project directory", () => {
  test.each(["../a", "a/../../b", "/etc/passwd", "~/a", "C:\\a", "", ".", "a\0b", ".cacophony/written.json"])(
    "%j",
    (path) => {
      expect(projectPath(path)).toHaveProperty("message");
    },
  );
  test.each([
    ["./a", "a"],
    ["a/./b//c", "a/b/c"],
    ["a/../b", "b"],
    [".env", ".env"],
  ])("%j is %j", (path, clean) => {
    expect(projectPath(path)).toBe(clean);
  });
});

describe("env_file and label_file", () => {
  test("bring variables, later files over earlier ones and environment over all", () => {
    const body = document("env_file: [a.env, ./sub/b.env]\nenvironment: {C: own}");
    const files = { "a.env": "A=1\nB=1\nC=1", "sub/b.env": "B=2\nD=${A:-unset}\nE=$C" };
    expect(app(body, { files }).environment).toEqual(["A=1", "B=2", "C=own", "D=unset", "E=own"]);
  });
  test("know the sender's variables, before the file's own", () => {
    const files = { "a.env": "A=1\nB=${A}\nC" };
    expect(app(document("env_file: a.env"), { files, env: { A: "sent", C: "c" } }).environment).toEqual([
      "A=1",
      "B=sent",
      "C=c",
    ]);
  });
  test("are taken as they stand with format: raw", () => {
    const body = document("env_file: [{path: a.env, format: raw}]");
    expect(app(body, { files: { "a.env": "A='$X' # y\n#B=1\n" } }).environment).toEqual(["A='$X' # y"]);
  });
  test("with format: raw lose the space before a line, take the sender's value for a name alone, and refuse odd names", () => {
    const body = document("env_file: [{path: a.env, format: raw}]");
    const files = { "a.env": "  A= x \n  # no\nGIVEN\nNOT_GIVEN\n" };
    expect(app(body, { files, env: { GIVEN: "g" } }).environment).toEqual(["A= x ", "GIVEN=g"]);
    expect(faults(body, { files: { "a.env": "A=1\nB C=2\n" } })).toContain(
      "names ./a.env, where line 2 is no NAME=value",
    );
    expect(faults(body, { files: { "a.env": "=2\n" } })).toContain("where line 1 is");
  });
  test("may be absent with required: false", () => {
    expect(app(document("env_file: [{path: a.env, required: false}]")).environment).toEqual([]);
    expect(
      app(document("env_file: {path: a.env, required: false}"), { files: { "a.env": "A=1" } }).environment,
    ).toEqual(["A=1"]);
  });
  test("bring labels, and labels over them", () => {
    const body = document("label_file: [l]\nlabels: {b: own}");
    expect(app(body, { files: { l: "a=1\nb=2" } }).labels).toEqual([
      ["a", "1"],
      ["b", "own"],
    ]);
  });
  const bad: [lines: string, fault: string][] = [
    [
      "env_file: a.env",
      "services.app.env_file[0]: names the file \"a.env\", which was not sent: add -F 'file=@./a.env;filename=./a.env' to curl",
    ],
    ["env_file: [ok.env, bad.env]", "services.app.env_file[1]: names ./bad.env, where line 2 is"],
    ["env_file: ../up.env", 'services.app.env_file[0]: is "../up.env", which leaves the job\'s project directory'],
    ["env_file: /etc/x.env", 'services.app.env_file[0]: is "/etc/x.env", which lies outside of the job'],
    ["env_file: [{path: ok.env, format: json}]", "services.app.env_file[0].format"],
    ["env_file: [{required: false}]", "services.app.env_file[0]: has no path"],
    ["env_file: latin.env", "is not UTF-8"],
    ["label_file: own.label", "is a label of Cacophony's own"],
  ];
  test.each(bad)("%s is refused", (lines, fault) => {
    const files = new Map([
      ["ok.env", Buffer.from("A=1")],
      ["bad.env", Buffer.from("A=1\n?")],
      ["latin.env", Buffer.from([0x41, 0x3d, 0xff])],
      ["own.label", Buffer.from("cacophony.job=x")],
    ]);
    const result = parseJob(document(lines), { jobId: "shop", env: new Map(), files });
    expect(result.ok ? "" : result.details.map(({ path, message }) => `${path}: ${message}`).join("\n")).toContain(
      fault,
    );
  });
});

describe("extends", () => {
  const base = `services:
  base:
    image: busybox
    command: [a, b]
    environment: {A: "1", B: "1"}
    labels: [x=1]
    ports: ["80:80", "81:81"]
    volumes: ["./one:/data", "cache:/cache"]
    dns: 1.1.1.1
    cap_add: [NET_ADMIN]
    healthcheck: {test: [CMD, a], interval: 5s}
    logging: {driver: json-file, options: {max-size: 1m}}
    ulimits: {nofile: 10}
    extra_hosts: {a: 1.1.1.1}
`;
  const cases: [lines: string, expected: Partial<ServiceSpec>][] = [
    ["labels: {}", { image: "busybox", command: ["a", "b"], environment: ["A=1", "B=1"] }],
    ["image: nginx", { image: "nginx" }],
    ["command: c", { command: ["c"] }],
    ["environment: [B=2, C=3]", { environment: ["A=1", "B=2", "C=3"] }],
    ["environment: {B: 2, C: 3}", { environment: ["A=1", "B=2", "C=3"] }],
    [
      "labels: {y: 2, x: 3}",
      {
        labels: [
          ["x", "3"],
          ["y", "2"],
        ],
      },
    ],
    ["dns: [1.1.1.1, 2.2.2.2]", { dns: ["1.1.1.1", "2.2.2.2"] }],
    ["cap_add: [SYS_TIME, NET_ADMIN]", { cap_add: ["NET_ADMIN", "SYS_TIME"] }],
    ["healthcheck: {test: b}", { healthcheck: { test: ["CMD-SHELL", "b"], interval_ns: 5e9 } }],
    ["logging: {driver: syslog}", { logging: { driver: "syslog", options: [] } }],
    [
      "logging: {options: {max-file: 2}}",
      {
        logging: {
          driver: "json-file",
          options: [
            ["max-file", "2"],
            ["max-size", "1m"],
          ],
        },
      },
    ],
    ["environment:\n    command:", { environment: ["A=1", "B=1"] }],
    ["dns:\n    image:\n    ulimits:", { image: "busybox", dns: ["1.1.1.1"] }],
    ["extra_hosts: ['b:2.2.2.2', 'a=1.1.1.1']", { extra_hosts: ["a:1.1.1.1", "b:2.2.2.2"] }],
    ["extra_hosts: {c: [3.3.3.3, 4.4.4.4]}", { extra_hosts: ["a:1.1.1.1", "c:3.3.3.3", "c:4.4.4.4"] }],
    ["ulimits: {nofile: {soft: 1, hard: 2}}", { ulimits: [{ name: "nofile", soft: 1, hard: 2 }] }],
  ];
  test.each(cases)("%s over the base", (lines, expected) => {
    const body = `${base}  app:\n    extends: base\n    ${lines}\nvolumes: {cache: {}}\n`;
    expect(app(body)).toMatchObject(expected);
  });

  test("takes what has one place in the container once, in whatever form it is written", () => {
    const body = `services:
  base: {image: a, ports: ["80:80", "127.0.0.1:81:81/udp"], secrets: [pw], configs: [c], logging: {options: {a: b}}}
  app:
    extends: base
    ports: [{target: 80, published: 80}, {target: 81, published: "81", host_ip: 127.0.0.1, protocol: udp}, "82:81"]
    secrets: [{source: other, target: /run/secrets/pw}]
    configs: [{source: c, target: /c}]
    logging: {driver: local}
secrets: {pw: {environment: PW}, other: {environment: PW}}
configs: {c: {content: x}}
`;
    const spec = app(body, { env: { PW: "x" } });
    expect(spec.ports.map(({ container_port, protocol }) => `${container_port}/${protocol}`)).toEqual([
      "80/tcp",
      "81/udp",
      "81/tcp",
    ]);
    expect(spec.mounts.map(({ target }) => target)).toEqual(["/c", "/run/secrets/pw"]);
    expect(spec.logging).toEqual({ driver: "local", options: [["a", "b"]] });
  });

  test("mounts by target, and adds ports", () => {
    const body = `${base}  app:\n    extends: {service: base}\n    ports: ["82:82"]\n    volumes: ["./two:/data"]\nvolumes: {cache: {}}\n`;
    const { ports, mounts } = app(body);
    expect(ports.map(({ container_port }) => container_port)).toEqual([80, 81, 82]);
    expect(mounts.map((mount) => [mount.target, mount.type === "bind" ? mount.source : ""])).toEqual([
      ["/data", "two"],
      ["/cache", ""],
    ]);
  });

  test("goes through several services, and leaves nothing of itself in the document", () => {
    const body =
      "services:\n  a: {image: busybox, user: x}\n  b: {extends: a, tty: true}\n  app: {extends: b, init: true}\n";
    expect(app(body)).toMatchObject({ image: "busybox", user: "x", tty: true, init: true });
    const { document: printed } = job(body);
    expect(printed).not.toContain("extends");
    expect(job(printed).services).toEqual(job(body).services);
  });

  test("takes a service of another file, whose paths are meant from there and whose other services do not count", () => {
    const files = {
      "common/base.yaml":
        "services:\n  base: {extends: {service: root, file: ../root.yaml}, volumes: ['./data:/data'], env_file: base.env}\n  other: {extends: {service: x, file: missing.yaml}}\n",
      "common/base.env": "A=1",
      "root.yaml": "services: {root: {image: 'busybox:${TAG:-1}', volumes: ['./r:/r']}}",
    };
    const body = "services:\n  app:\n    extends: {file: ./common/base.yaml, service: base}\n";
    expect(app(body, { files, env: { TAG: "2" } })).toMatchObject({
      image: "busybox:2",
      environment: ["A=1"],
      mounts: [
        { source: "r", target: "/r" },
        { source: "common/data", target: "/data" },
      ],
    });
  });

  const bad: [body: string, fault: string][] = [
    ["services: {app: {image: a, extends: app}}", "services.app.extends: goes in a circle: app extends app"],
    ["services: {app: {extends: b}, b: {extends: app}}", "goes in a circle: app extends b extends app"],
    ["services: {app: {extends: nope}}", 'services.app.extends: names the service "nope"'],
    ["services: {app: {extends: [a]}}", "services.app.extends: must be the name of a service"],
    ["services: {app: {extends: {service: a, fiel: b}}}", "services.app.extends: must be"],
    [
      "services: {app: {extends: {service: a, file: x.yaml}}}",
      "services.app.extends.file: names the file \"x.yaml\", which was not sent: add -F 'file=@./x.yaml;filename=./x.yaml' to curl",
    ],
    ["services: {app: {extends: {service: b, file: a.yaml}}}", "which ./a.yaml does not have"],
    ["services: {app: {extends: {service: a, file: ring.yaml}}}", "goes in a circle through ring.yaml"],
    ["services: {app: {extends: {service: a, file: ../a.yaml}}}", "leaves the job's project directory"],
    ["services: {app: {extends: {service: a, file: broken.yaml}}}", "leads to ./broken.yaml, which at line 2"],
    [
      "services: {app: {image: a, ports: !reset []}}",
      "services.app.ports: has the tag !reset, which changes an earlier file",
    ],
    [
      "services: {app: {image: a, ports: !override [80]}}",
      "services.app.ports: has the tag !override, which changes an earlier",
    ],
  ];
  test.each(bad)("%s is refused", (body, fault) => {
    const files = {
      "a.yaml": "services: {a: {image: x}}",
      "ring.yaml": "services: {a: {extends: {service: a, file: ring.yaml}}}",
      "broken.yaml": "services:\n  a: {image: a, image: b}\n",
    };
    expect(faults(body, { files })).toContain(fault);
  });

  test("a large service that many extend is stopped soon", () => {
    const many = Array.from({ length: 3000 }, (_, index) => `V${index}: x`).join(", ");
    const services = Array.from({ length: 400 }, (_, index) => `  s${index}: {extends: base}\n`).join("");
    const elapsed = cpuTimer();
    expect(faults(`services:\n  base: {image: a, environment: {${many}}}\n${services}`)).toContain(
      "over 300000 values",
    );
    expect(elapsed()).toBeLessThan(3000);
  });
});

describe("include", () => {
  const body = "include: [./db/compose.yaml]\nservices:\n  app: {image: busybox, depends_on: [db]}\n";
  test("brings services, volumes and their paths", () => {
    const files = {
      "db/compose.yaml":
        "services: {db: {image: 'pg:${TAG}', volumes: ['data:/data', './init:/init'], secrets: [pw]}}\nvolumes: {data: {}}\nsecrets: {pw: {file: ./pw.txt}}\n",
      "db/.env": "TAG=16",
      "db/pw.txt": "hunter2",
    };
    const parsed = job(body, { files });
    expect(parsed.services.map(({ service_name }) => service_name).toSorted()).toEqual(["app", "db"]);
    expect(parsed.services.find(({ service_name }) => service_name === "db")?.spec).toMatchObject({
      image: "pg:16",
      mounts: [
        { volume: { key: "data" } },
        { source: "db/init" },
        { type: "secret", name: "pw", target: "/run/secrets/pw" },
      ],
    });
    expect(parsed.secrets).toMatchObject([{ name: "pw", file: "db/pw.txt", data: encoder.encode("hunter2") }]);
    const own = job(body, { files, env: { TAG: "15" } });
    expect(own.services.find(({ service_name }) => service_name === "db")?.spec.image).toBe("pg:15");
    expect(parsed.document).not.toContain("include");
  });
  test("merges the files of one entry, and takes its env_file and project_directory", () => {
    const entry = "include:\n  - path: [a.yaml, b.yaml]\n    env_file: vars\n    project_directory: ./sub\n";
    const files = {
      "a.yaml": "services: {app: {image: 'busybox:${TAG}', volumes: ['./x:/x'], environment: {A: a, B: a}}}",
      "b.yaml": "services: {app: {environment: [B=b]}}",
      vars: "TAG=3",
    };
    expect(
      app(`${entry}services: {}\n`.replace("services: {}", "services: {more: {image: a}}"), { files }),
    ).toMatchObject({
      image: "busybox:3",
      environment: ["A=a", "B=b"],
      mounts: [{ source: "sub/x" }],
    });
  });
  const bad: [body: string, fault: string][] = [
    [
      "include: [nope.yaml]",
      "include[0]: names the file \"nope.yaml\", which was not sent: add -F 'file=@./nope.yaml;filename=./nope.yaml' to curl",
    ],
    ["include: [{path: a.yaml, other: b}]", "include[0].other: is no key of include"],
    ["include: [clash.yaml]", "include[0]: brings services.app, which is defined here already"],
    ["include: [ring.yaml]", "goes in a circle: ./ring.yaml includes ./ring.yaml"],
    ["include: [list.yaml]", "include[0]: leads to ./list.yaml, which is no mapping"],
    ["include: a.yaml", "include: must be a list of files"],
    ["include: [/etc/a.yaml]", "lies outside of the job"],
  ];
  test.each(bad)("%s is refused", (lines, fault) => {
    const files = {
      "a.yaml": "services: {a: {image: x}}",
      "clash.yaml": "services: {app: {image: other}}",
      "ring.yaml": "include: [ring.yaml]\nservices: {a: {image: x}}",
      "list.yaml": "[1]",
    };
    expect(faults(`${lines}\nservices: {app: {image: busybox}}\n`, { files })).toContain(fault);
  });
  test("files that are read again and again, or double their values, are stopped soon", () => {
    const services = (count: number, line: (index: number) => string) =>
      `services:\n${Array.from({ length: count }, (_, index) => `  s${index}: {image: a, ${line(index)}}\n`).join("")}`;
    const doubling = Array.from({ length: 200 }, (_, index) => `V${index + 1}=\${V${index}}\${V${index}}\n`).join("");
    const files = {
      "big.env": `A=${"x".repeat(100_000)}\n`,
      "bomb.env": `V0=xxxxxxxx\n${doubling}`,
      "base.yaml": `services: {b: {image: x}}\n${"# comment\n".repeat(90_000)}`,
      ...Object.fromEntries(
        Array.from({ length: 7 }, (_, index) => [`c${index}.yaml`, `x-a: 1\n${"#\n".repeat(250_000)}`]),
      ),
    };
    const elapsed = cpuTimer();
    expect(
      faults(
        services(1000, () => "env_file: big.env"),
        { files },
      ),
    ).toContain("over 4194304 bytes");
    expect(
      faults(
        services(1, () => "env_file: bomb.env"),
        { files },
      ),
    ).toContain("characters");
    expect(
      faults(
        services(1000, () => "extends: {service: b, file: base.yaml}"),
        { files },
      ),
    ).toBe("");
    expect(
      faults(
        services(7, (index) => `extends: {service: b, file: c${index}.yaml}`),
        { files },
      ),
    ).toContain("over 1048576 characters");
    expect(elapsed()).toBeLessThan(5000);
  });
  test("files that include each other twice over do not take for ever", () => {
    const files = Object.fromEntries(
      Array.from({ length: 40 }, (_, index) => [
        `f${index}.yaml`,
        `include: [f${index + 1}.yaml, f${index + 1}.yaml]\nservices: {s${index}: {image: x}}`,
      ]),
    );
    const elapsed = cpuTimer();
    expect(faults("include: [f0.yaml]\nservices: {app: {image: busybox}}", { files })).not.toBe("");
    expect(elapsed()).toBeLessThan(5000);
  });
});

describe("configs and secrets", () => {
  const top =
    "configs:\n  inline: {content: 'port=${PORT}'}\n  sent: {file: ./conf/app.conf}\n  var: {environment: CONF}\nsecrets:\n  pw: {environment: PW}\n  node: {file: /etc/pw}\n";
  const beside = { files: { "conf/app.conf": "x=1" }, env: { PORT: "80", CONF: "c", PW: "hunter2" } };
  const cases: [lines: string, target: string, source: string, more: object][] = [
    [
      "configs: [sent]",
      "/sent",
      "conf/app.conf",
      { path: "conf/app.conf", mode: 0o644, size: 3, chunks: [hash("x=1")] },
    ],
    ["configs: [inline]", "/inline", ".cacophony/mounts/inline-", { mode: 0o444, chunks: [hash("port=80")] }],
    ["configs: [var]", "/var", ".cacophony/mounts/var-", { chunks: [hash("c")] }],
    [
      "configs: [{source: inline, target: /etc/a.conf, mode: 0400, uid: '7', gid: '8'}]",
      "/etc/a.conf",
      ".cacophony/mounts/inline-",
      { mode: 0o400, uid: 7, gid: 8 },
    ],
    ["configs: [{source: sent, mode: 0400}]", "/sent", ".cacophony/mounts/sent-", { mode: 0o400 }],
  ];
  test.each(cases)("%s", (lines, target, source, more) => {
    const parsed = job(document(lines, top), beside);
    const spec = parsed.services[0]?.spec;
    expect(spec?.mounts).toMatchObject([{ type: "bind", target, read_only: true, create_host_path: false }]);
    expect(spec?.mounts[0]).toHaveProperty("source", expect.stringContaining(source));
    expect(spec?.files).toMatchObject([more]);
    expect([...parsed.chunks.keys()]).toEqual(spec?.files?.[0]?.chunks ?? []);
    expect(JSON.stringify([spec, parsed.document, parsed.warnings])).not.toContain("hunter2");
  });
  test("an absolute file is the node's", () => {
    const spec = app(document("secrets: [node]", top), beside);
    expect(spec.mounts).toMatchObject([{ source: "/etc/pw", target: "/run/secrets/node", read_only: true }]);
    expect(spec.files).toBeUndefined();
  });
  test("another content, mode or owner is another spec; unused ones need nothing", () => {
    const path = (lines: string, env = beside.env) => app(document(lines, top), { ...beside, env }).files?.[0]?.path;
    const paths = [
      path("configs: [var]"),
      path("configs: [var]", { ...beside.env, CONF: "other" }),
      path("configs: [{source: var, mode: 0400}]"),
      path("configs: [{source: var, uid: '1'}]"),
    ];
    expect(new Set(paths).size).toBe(4);
    expect(app(document("tty: true", top)).tty).toBe(true);
  });
  test("a secret cannot be written out in the document", () => {
    expect(faults(document("tty: true", "secrets: {pw: {content: x}}"))).toContain("secrets.pw.content: unknown key");
  });
  const bad: [lines: string, fault: string][] = [
    [
      "configs: [inlin]",
      'services.app.configs[0]: names the config "inlin", which is not under the top-level configs: did you mean inline?',
    ],
    ["configs: [lost]", "add -F 'file=@./lost.conf;filename=./lost.conf' to curl"],
    ["secrets: [unset]", "whose variable UNSET is not set: send ?env.UNSET=…"],
    ["secrets: [outside]", "made outside of the job"],
    ["secrets: [up]", "leaves the job's project directory"],
    ["configs: [{source: sent, mode: '99'}]", "services.app.configs[0].mode"],
    ["configs: [{target: /a}]", "services.app.configs[0]: has no source"],
  ];
  test.each([
    ["configs: [sent]\nvolumes: [./x:/sent]", "services.app.configs[0]", 'volumes entry 0 mounts to "/sent"', "x"],
    ["secrets: [pw]\nvolumes: ['./x:/run/secrets/pw/']", "services.app.secrets[0]", "compose takes that one", "x"],
    [
      "configs: [{source: var, target: /c}, {source: sent, target: /c}]",
      "services.app.configs[0]",
      '"sent"',
      "conf/app.conf",
    ],
  ])("%s: what compose takes counts", (lines, path, message, source) => {
    const { services, warnings } = job(document(lines, top), beside);
    expect(services[0]?.spec.mounts).toMatchObject([{ type: "bind", source }]);
    expect(warnings).toMatchObject([{ path, message: expect.stringContaining(message) }]);
  });

  test.each(bad)("%s is refused", (lines, fault) => {
    const more = top.replace(
      "secrets:",
      "  lost: {file: lost.conf}\nsecrets:\n  unset: {environment: UNSET}\n  outside: {external: true}\n  up: {file: ../pw}",
    );
    expect(faults(document(lines, more), beside)).toContain(fault);
  });
});

describe("seccomp profiles", () => {
  const files = { "p.json": '{ "defaultAction":\n "SCMP_ACT_ALLOW" }', "bad.json": "{" };
  test.each([
    ["seccomp:./p.json", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}'],
    ["seccomp=p.json", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}'],
    ["seccomp:unconfined", "seccomp:unconfined"],
    ["seccomp=builtin", "seccomp=builtin"],
    ["no-new-privileges:true", "no-new-privileges:true"],
  ])("%s", (option, sent) => {
    expect(app(document(`security_opt: ["${option}"]`), { files }).security_opt).toEqual([sent]);
  });
  test("that are not sent or no JSON are refused", () => {
    expect(faults(document("security_opt: [seccomp:./q.json]"), { files })).toContain(
      "security_opt[0]: names the file",
    );
    expect(faults(document("security_opt: [seccomp:./bad.json]"), { files })).toContain("which is no JSON");
    expect(faults(document("security_opt: [seccomp:../q.json]"), { files })).toContain("leaves the job's project");
  });
});

describe("relative binds", () => {
  const files = { "nginx.conf": "a", "conf.d/a.conf": "b", "conf.d/sub/b.sh": "#!/bin/sh\n", "conf.data": "c" };
  test("show the sent file, or all of the sent directory, and nothing else", () => {
    const paths = (lines: string) =>
      app(document(lines), { files }).files?.map(({ path, mode }) => `${path} ${mode.toString(8)}`);
    expect(paths("volumes: ['./nginx.conf:/etc/nginx.conf:ro']")).toEqual(["nginx.conf 644"]);
    expect(paths("volumes: ['./conf.d:/etc/conf.d']")).toEqual(["conf.d/a.conf 644", "conf.d/sub/b.sh 755"]);
    expect(paths("volumes: ['.:/all']")).toHaveLength(4);
    expect(paths("volumes: ['./data:/data', '/etc:/host']")).toBeUndefined();
    expect(paths("volumes: [{type: bind, source: ./conf.data, target: /x}]")).toEqual(["conf.data 644"]);
  });
  test("warn where a file is meant and none was sent", () => {
    const warnings = (lines: string) => job(document(lines)).warnings.map(({ message }) => message);
    expect(warnings("volumes: ['./a.conf:/etc/a.conf']")[0]).toContain(
      "add -F 'file=@./a.conf;filename=./a.conf' to curl",
    );
    expect(warnings("volumes: ['./data:/data', './conf.d:/etc/nginx/conf']")).toEqual([]);
  });
  test("a large file is cut into chunks that make it whole again", () => {
    const text = "0123456789".repeat(60_000);
    const parsed = job(document("volumes: ['./big:/big']"), { files: { big: text } });
    const [file] = parsed.services[0]?.spec.files ?? [];
    expect(file?.chunks.length).toBe(3);
    const data = Buffer.concat((file?.chunks ?? []).map((chunk) => parsed.chunks.get(chunk) ?? new Uint8Array()));
    expect(data.toString()).toBe(text);
  });
});

describe("profiles", () => {
  const body =
    "services:\n  app: {image: a}\n  debug: {image: a, profiles: [debug, all]}\n  extra: {image: a, profiles: [extra]}\n";
  const cases: [profiles: string[], services: string[]][] = [
    [[], ["app"]],
    [["debug"], ["app", "debug"]],
    [
      ["all", "extra"],
      ["app", "debug", "extra"],
    ],
    [["*"], ["app", "debug", "extra"]],
    [["nope"], ["app"]],
  ];
  test.each(cases)("%j", (profiles, services) => {
    const parsed = job(body, { profiles });
    expect(parsed.services.map(({ service_name }) => service_name)).toEqual(services);
    expect(parsed.warnings).toHaveLength(3 - services.length);
  });
  test("a service that is not chosen needs no files, but who depends on it needs it", () => {
    expect(job("services: {app: {image: a}, b: {image: a, profiles: [p], env_file: x}}").services).toHaveLength(1);
    const needing = "services: {app: {image: a, depends_on: [b]}, b: {image: a, profiles: [p]}}";
    expect(faults(needing)).toContain("send ?profile=p");
    expect(job(needing, { profiles: ["p"] }).services).toHaveLength(2);
  });
});
