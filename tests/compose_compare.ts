/**
 * @module How an expected piece of a Docker create body is compared with a real one: subset; null means absent, empty, 0 or
 * false; what the Engine treats alike (Binds and Mounts, "" and "no", "" and 0.0.0.0) is brought to one spelling first.
 */

export type Json = null | string | number | boolean | Json[] | { [key: string]: Json };
export type JsonObject = { [key: string]: Json };

const SETS = new Set([
  "Env",
  "CapAdd",
  "CapDrop",
  "SecurityOpt",
  "GroupAdd",
  "ExtraHosts",
  "Ulimits",
  "Devices",
  "DeviceCgroupRules",
  "Aliases",
  "Mounts",
  "DnsOptions",
]);
const PROPAGATIONS = new Set(["shared", "slave", "private", "rshared", "rslave", "rprivate"]);

/** What `actual` lacks or has too much of, one line each; empty: they agree. */
export function differences(expected: JsonObject, actual: JsonObject): string[] {
  const wanted = canonical(expected);
  const host = isObject(expected["HostConfig"] ?? null) ? (expected["HostConfig"] as JsonObject) : {};
  const wantedHost = wanted["HostConfig"] as JsonObject;
  if (!("RestartPolicy" in host)) delete wantedHost["RestartPolicy"];
  if ("Binds" in host && host["Binds"] === null) wantedHost["Mounts"] = null;
  if ("PortBindings" in host && host["PortBindings"] === null) wantedHost["PortBindings"] = null;
  if (Object.keys(wantedHost).length === 0) delete wanted["HostConfig"];
  return compare(wanted, canonical(actual), "");
}

function isObject(value: Json): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isEmpty(value: Json | undefined): boolean {
  if (value === undefined || value === null || value === "" || value === 0 || value === false) return true;
  return Array.isArray(value) ? value.length === 0 : isObject(value) && Object.keys(value).length === 0;
}

/** A create body, or what is inspected of a container, in one spelling. */
export function canonical(body: JsonObject): JsonObject {
  const { Volumes, ...rest } = body;
  const { Binds, Mounts, ...host } = (body["HostConfig"] ?? {}) as JsonObject;
  const mounts: JsonObject[] = [
    ...((Binds ?? []) as string[]).map(fromBind),
    ...((Mounts ?? []) as JsonObject[]).map(fromMount),
  ];
  for (const target of Object.keys((Volumes ?? {}) as JsonObject)) {
    if (!mounts.some((mount) => mount["Target"] === target)) {
      mounts.push({ Type: "volume", Source: "", Target: target, ReadOnly: false });
    }
  }
  if (mounts.length > 0) host["Mounts"] = mounts;
  if (!isEmpty(host["PortBindings"])) {
    host["PortBindings"] = Object.fromEntries(
      Object.entries(host["PortBindings"] as JsonObject).map(([port, bindings]) => {
        const plain = ((bindings ?? [{}]) as JsonObject[]).map(({ HostIp = "", HostPort = "" }) => ({
          HostIp: HostIp === "0.0.0.0" || HostIp === null ? "" : HostIp,
          HostPort: HostPort === "0" || HostPort === null ? "" : HostPort,
        }));
        return [port, plain.toSorted((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1))];
      }),
    );
  }
  const policy = (host["RestartPolicy"] ?? {}) as JsonObject;
  const name = policy["Name"] ?? "";
  host["RestartPolicy"] = { Name: name === "no" ? "" : name, MaximumRetryCount: policy["MaximumRetryCount"] ?? 0 };
  return { ...rest, HostConfig: host };
}

function fromMount(mount: JsonObject): JsonObject {
  const out: JsonObject = {
    Type: mount["Type"] ?? "volume",
    Source: mount["Source"] ?? "",
    Target: mount["Target"] ?? "",
    ReadOnly: mount["ReadOnly"] ?? false,
  };
  const part = (name: string) => (mount[name] ?? {}) as JsonObject;
  const propagation = part("BindOptions")["Propagation"];
  if (!isEmpty(propagation)) out["Propagation"] = propagation ?? null;
  if (part("VolumeOptions")["NoCopy"]) out["NoCopy"] = true;
  for (const key of ["SizeBytes", "Mode"]) {
    const value = part("TmpfsOptions")[key];
    if (!isEmpty(value)) out[key] = value ?? null;
  }
  return out;
}

function fromBind(text: string): JsonObject {
  const [source = "", target, options = ""] = text.split(":");
  if (target === undefined) return { Type: "volume", Source: "", Target: source, ReadOnly: false };
  const all = options.split(",");
  const out: JsonObject = {
    Type: source.startsWith("/") ? "bind" : "volume",
    Source: source,
    Target: target,
    ReadOnly: all.includes("ro"),
  };
  for (const option of all) {
    if (PROPAGATIONS.has(option)) out["Propagation"] = option;
    if (option === "z" || option === "Z") out["SELinux"] = option;
    if (option === "nocopy") out["NoCopy"] = true;
  }
  return out;
}

function compare(wanted: Json, actual: Json | undefined, path: string): string[] {
  const show = JSON.stringify(actual);
  if (wanted === null) return isEmpty(actual) ? [] : [`${path}: expected nothing, got ${show}`];
  if (isObject(wanted)) {
    if (actual === undefined || !isObject(actual)) {
      return isEmpty(wanted) && isEmpty(actual) ? [] : [`${path}: expected a mapping, got ${show}`];
    }
    const found = Object.entries(wanted).flatMap(([key, value]) =>
      compare(value, actual[key], path ? `${path}.${key}` : key),
    );
    const extra = path.endsWith("PortBindings") ? Object.keys(actual).filter((key) => !(key in wanted)) : [];
    return extra.length > 0 ? [...found, `${path}: extra ports ${extra.join(", ")}`] : found;
  }
  if (Array.isArray(wanted)) {
    if (wanted.length === 0 && isEmpty(actual)) return [];
    if (!Array.isArray(actual)) return [`${path}: expected ${JSON.stringify(wanted)}, got ${show}`];
    const key = path.split(".").at(-1) ?? "";
    if (SETS.has(key)) return compareSets(wanted, actual, { path, key });
    if (wanted.length !== actual.length) return [`${path}: expected ${JSON.stringify(wanted)}, got ${show}`];
    return wanted.flatMap((item, index) => compare(item, actual[index], `${path}[${index}]`));
  }
  if (wanted === actual || (isEmpty(wanted) && isEmpty(actual))) return [];
  return [`${path}: expected ${JSON.stringify(wanted)}, got ${show}`];
}

function compareSets(wanted: Json[], actual: Json[], { path, key }: { path: string; key: string }): string[] {
  const rest = [...actual];
  const found: string[] = [];
  for (const item of wanted) {
    const hit = rest.findIndex(
      (other) => compare(item, other, "").length === 0 && (key !== "Mounts" || Bun.deepEquals(item, other)),
    );
    if (hit >= 0) rest.splice(hit, 1);
    // A bare variable name may be left out.
    else if (key !== "Env" || String(item).includes("="))
      found.push(`${path}: no ${JSON.stringify(item)} in ${JSON.stringify(actual)}`);
  }
  const extra = key === "Env" ? rest.filter((item) => String(item).includes("=")) : rest;
  if (extra.length > 0 && key !== "Aliases") found.push(`${path}: not expected ${JSON.stringify(extra)}`);
  return found;
}
