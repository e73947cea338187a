/**
 * @module What pages in browsers may do here: nothing, but for a page of this very address. A browser is a way past a firewall: its
 * reader is inside, the page's author is not. Owns the three checks of a request's head (Host, Sec-Fetch-Site, Origin), which are
 * made where the request comes in, and the form of the names for `--allow-host`. Knows nothing of how this node's names are found.
 */
import { isIP } from "node:net";
import type { Context, MiddlewareHandler } from "hono";
import { CacophonyError } from "./model.ts";

/** Names by which this node may be asked, in lower case; `*.example.org` stands for all names below example.org. */
export type HostNames = ReadonlySet<string>;

/**
 * Headers in which a browser tells of the page that asks. They are of the first hop: a node that passes a request on has checked
 * them itself and takes them out, since the next node has another Host.
 */
export const PAGE_HEADERS = ["origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "sec-fetch-user"] as const;

/** Load balancers ask these by whatever name they have, and they say nothing of the cluster. */
const PROBES: ReadonlySet<string> = new Set(["/healthz", "/readyz"]);
const INTERNAL_PREFIX = "/internal/";
/** RFC 1035: more is no name. */
const MAX_NAME_LENGTH = 253;
const LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?";
const ALLOWED_NAME = new RegExp(String.raw`^(?:\*\.)?${LABEL}(?:\.${LABEL})*$`);

/** A name for `--allow-host`, in lower case: `api.example.org`, or `*.example.org` for all names below it; undefined: neither. */
export function readHostName(text: string): string | undefined {
  const name = withoutDot(text.toLowerCase());
  return name.length <= MAX_NAME_LENGTH && ALLOWED_NAME.test(name) && isIP(name) === 0 ? name : undefined;
}

/** Refuses with 403 what a page of another site asks; `names` are those of this node now. */
export function refuseForeignPages(names: () => HostNames): MiddlewareHandler {
  return async (c, next) => {
    refuseForeignHost(c, names());
    refuseForeignSite(c);
    refuseForeignOrigin(c);
    await next();
  };
}

/**
 * DNS rebinding: a page of evil.example, whose name now leads to this node, is of the same origin as this node for the browser. It
 * can't change the Host, which holds the page's own name. An address is no name that somebody else could have led here.
 */
function refuseForeignHost(c: Context, names: HostNames): void {
  const host = c.req.header("host");
  // Without a Host: HTTP/1.0, as probes speak it and no browser does.
  if (host === undefined || host === "" || PROBES.has(c.req.path)) return;
  // Other nodes dial what `join` was given, which may be any name that leads here. Pages must not read even the list of nodes:
  // browsers say which languages their reader has, and no page can leave that out; nodes say nothing of it.
  if (c.req.path.startsWith(INTERNAL_PREFIX) && c.req.header("accept-language") === undefined) return;
  const name = nameIn(host);
  if (name !== undefined && (isIP(name) !== 0 || isOneOf(names, name))) return;
  const shown = host.slice(0, MAX_NAME_LENGTH);
  throw new CacophonyError(
    "forbidden_host",
    name !== undefined && readHostName(name) !== undefined
      ? `this node was asked for as '${shown}', which is not a name of this node: ask by its address, or start it with --allow-host ${name}`
      : `this node was asked for as '${shown}', which is not a host name: ask by its address`,
  );
}

/**
 * What another site's page makes a browser send. A page of the same site is another one, too: another port of this machine, which
 * may be a container's. A link may be followed, since that shows an answer to the reader and to no page.
 */
function refuseForeignSite(c: Context): void {
  const site = c.req.header("sec-fetch-site");
  if (site === undefined || site === "same-origin" || site === "none") return;
  const isFollowed = c.req.header("sec-fetch-mode") === "navigate" && c.req.header("sec-fetch-dest") === "document";
  if (c.req.method === "GET" && isFollowed) return;
  throw new CacophonyError(
    "forbidden_origin",
    `a request from a page of another site is refused (Sec-Fetch-Site: ${site.slice(0, MAX_NAME_LENGTH)}): ask from a page of this node's address, or without a browser`,
  );
}

/** Older browsers, and all where the address is neither loopback nor HTTPS, say nothing of the site; they name the page of a write. */
function refuseForeignOrigin(c: Context): void {
  const origin = c.req.header("origin");
  if (origin === undefined || ["GET", "HEAD", "OPTIONS"].includes(c.req.method)) return;
  const host = URL.parse(origin)?.host;
  if (host !== undefined && host === c.req.header("host")?.toLowerCase()) return;
  throw new CacophonyError(
    "forbidden_origin",
    `a write from a page of ${origin.slice(0, MAX_NAME_LENGTH)} is refused: its host is not this node's`,
  );
}

/** The name or the address (IPv6 without brackets) in a Host header; addresses as browsers write them, so `127.1` is 127.0.0.1. */
function nameIn(host: string): string | undefined {
  // What else a URL could have before or behind the host.
  if (/[/?#@\\\s]/.test(host)) return undefined;
  const name = URL.parse(`http://${host}/`)?.hostname;
  return name?.startsWith("[") ? name.slice(1, -1) : name && withoutDot(name);
}

function isOneOf(names: HostNames, name: string): boolean {
  if (name === "localhost" || names.has(name)) return true;
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1))
    if (names.has(`*${name.slice(dot)}`)) return true;
  return false;
}

/** A name may end with the dot of the root. */
function withoutDot(name: string): string {
  return name.endsWith(".") ? name.slice(0, -1) : name;
}
