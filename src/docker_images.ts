/**
 * @module Images and logins in the words of the Docker API: names as paths and parameters, credentials as a header. Makes no calls.
 */
import { EngineError } from "./docker_errors.ts";

/** What a registry is shown: name and password, or a token that it gave out. */
export type RegistryLogin = { username: string; password: string } | { identityToken: string };

/** An image's name as part of an API path; dockerode puts it there as it is. */
export function asPath(image: string): string {
  if (image.split("/").some((part) => part === "" || part === "." || part === "..")) {
    throw new EngineError("bad_request", `invalid reference format: "${image}" is no image name`);
  }
  return image.split("/").map(encodeURIComponent).join("/");
}

/** Docker pulls every tag of an image named without one, so the tag that people mean is said. */
export function splitImage(image: string): { fromImage: string; tag: string } {
  const digest = image.indexOf("@");
  if (digest > 0) return { fromImage: image.slice(0, digest), tag: image.slice(digest + 1) };
  const colon = image.lastIndexOf(":");
  if (colon > image.lastIndexOf("/")) return { fromImage: image.slice(0, colon), tag: image.slice(colon + 1) };
  return { fromImage: image, tag: "latest" };
}

/** Engine API: X-Registry-Auth. */
export function authOf(login: RegistryLogin | undefined): Record<string, string> | undefined {
  if (!login) return undefined;
  return "identityToken" in login ? { identitytoken: login.identityToken } : { ...login };
}
