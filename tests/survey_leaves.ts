/**
 * @module Whether a document is dropped in silence in some place: each leaf of it is taken out by itself, which must change
 * what comes of the document, unless a warning stands at the leaf or above it, or the leaf says what holds without it.
 */
import { parseJob, type Sending } from "../src/job_spec.ts";

type Step = string | number;
type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** What may be said and changes nothing, and why; `*` is a name of the user's, `[]` a place in a list. */
const SAYS_NOTHING: readonly [place: RegExp, value: RegExp, why: string][] = [
  [/./, /^("?false"?|null|""|\{\}|\[\])$/, "off and empty are what holds without it"],
  [/^version$/, /./, "changes nothing in compose"],
  [/\.depends_on\.[^.]+\.required$/, /true/, "the default"],
  [/\.depends_on\.[^.]+\.restart$/, /./, "the key's row in the README says that it is left out"],
  [/\.ports\.\d+\.protocol$/, /"tcp"/, "the default"],
  [/\.ports\.\d+\.(mode|name|app_protocol)$/, /./, "means something to Swarm alone, or to a reader"],
  [/\.deploy\.mode$/, /"replicated"/, "the default"],
  [/\.devices\.\d+\.count$/, /"all"|-1/, "the default"],
  [/\.bind\.create_host_path$/, /true/, "the default"],
  [/\.env_file\.\d+\.required$/, /true/, "the default"],
  [/\.stop_grace_period$/, /"10s"/, "the default"],
  [/^networks\.[^.]+\.driver$/, /"(bridge|default)"/, "the default"],
  [/\.links\.\d+$/, /./, "a service's own name, and an order that depends_on has, too"],
  [/\.profiles\.\d+$/, /./, "one of several that are chosen"],
];

export type Leaves = {
  count: number;
  /** Paths of the leaves that nobody would miss, with their values. */ silent: string[];
};

/** Takes out every leaf of an accepted document in turn. `skip`: leaves that need no look, by path and value. */
export function findSilent(
  document: string,
  { skip = () => false, ...sending }: Sending & { skip?: (place: string, value: string) => boolean },
): Leaves {
  const whole = outcome(document, sending);
  if (!whole) throw new Error("The document is not accepted as it stands");
  const root = JSON.parse(document) as { [key: string]: Json };
  const silent: string[] = [];
  let count = 0;
  for (const { path, value } of leaves(root, [])) {
    count += 1;
    const place = path.join(".");
    const text = JSON.stringify(value);
    if (SAYS_NOTHING.some(([places, values]) => places.test(place) && values.test(text))) continue;
    if (whole.warned(path) || skip(place, text)) continue;
    const isMissed = (part: readonly Step[]) =>
      outcome(JSON.stringify(without(root, part)), sending)?.text !== whole.text;
    // What defines something that no service uses is not missed as a whole.
    if (!isMissed(path) && (path[0] === "services" || isMissed(path.slice(0, 2)))) silent.push(`${place}: ${text}`);
  }
  return { count, silent };
}

/** What comes of a document, as text, and whether a warning stands at a path or above it; undefined: it is refused. */
function outcome(document: string, sending: Sending) {
  const result = parseJob(document, sending);
  if (!result.ok) return undefined;
  const { services, warnings } = result.job;
  const places = warnings.map(({ path }) =>
    path
      .replaceAll(/\["?|"?\]/g, ".")
      .replaceAll(/\.+/g, ".")
      .replace(/\.$/, ""),
  );
  return {
    text: JSON.stringify([services, warnings.map(({ path, message }) => [path, message])]),
    warned: (path: readonly Step[]) => places.some((place) => `${path.join(".")}.`.startsWith(`${place}.`)),
  };
}

/** All values that hold no others, but for what is below `x-…` keys. */
function* leaves(node: Json, path: Step[]): Generator<{ path: Step[]; value: Json }> {
  if (node === null || typeof node !== "object" || Object.keys(node).length === 0) {
    yield { path, value: node };
    return;
  }
  for (const [key, value] of Object.entries(node)) {
    if (!key.startsWith("x-")) yield* leaves(value, [...path, Array.isArray(node) ? Number(key) : key]);
  }
}

function without(root: Json, path: readonly Step[]): Json {
  const [step, ...rest] = path;
  if (root === null || typeof root !== "object" || step === undefined) return root;
  if (Array.isArray(root)) {
    if (rest.length === 0) return root.toSpliced(Number(step), 1);
    return root.map((item, index) => (index === step ? without(item, rest) : item));
  }
  const entries = Object.entries(root).filter(([key]) => rest.length > 0 || key !== step);
  return Object.fromEntries(entries.map(([key, value]) => [key, key === step ? without(value, rest) : value]));
}
