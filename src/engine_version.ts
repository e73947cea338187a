/** @module Versions of the Docker Engine's API, by which it is known what an Engine can do. */

/** Whether version `a`, as `1.41`, comes before `b`. */
export function isOlderApi(a: string, b: string): boolean {
  const [major = 0, minor = 0] = a.split(".").map(Number);
  const [otherMajor = 0, otherMinor = 0] = b.split(".").map(Number);
  return major < otherMajor || (major === otherMajor && minor < otherMinor);
}
