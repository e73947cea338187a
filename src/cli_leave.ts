/**
 * @module `cacophony leave`: asks the running node of this machine to leave its cluster, and says how that goes until it has.
 * The node does the work; ending this command changes nothing about it.
 */
import * as v from "valibot";
import { DEFAULT_PORT, formatAddress, isWildcard, parseAddress } from "./address.ts";
import { type Identity, identityIn } from "./data_dir.ts";
import { StartError } from "./model.ts";
import { DIRECT } from "./transport.ts";

export type LeaveOptions = {
  dataDir: string;
  /** Whether what has its data here moves, too, and leaves them behind. */
  force: boolean;
  /** How long it may take; undefined: as the cluster has it. */
  deadline: string | undefined;
  print: (line: string) => void;
};

/** What matters of the API's answers. */
const nodeAnswer = v.object({
  state: v.string(),
  drain: v.nullish(
    v.object({
      waiting: v.array(
        v.object({ job_id: v.string(), service_name: v.string(), slot: v.number(), reason: v.string() }),
      ),
    }),
  ),
});
type NodeAnswer = v.InferOutput<typeof nodeAnswer>;
const refusal = v.object({ error: v.object({ message: v.string() }) });

const LOOK_MS = 500;
/** A node that has left forgets its cluster at once, unless its Docker Engine is dead. */
const END_MS = 5_000;
const REQUEST_TIMEOUT_MS = 15_000;
/** Replicas that are named one by one. */
const MOST_NAMED = 5;

/**
 * Resolves to the exit code: 0 the node has left, 1 it can't before somebody decides about data.
 * @throws StartError when it can't be asked.
 */
export async function leave({ dataDir, force, deadline, print }: LeaveOptions): Promise<number> {
  const identity = identityIn(dataDir);
  if (identity?.cluster_id === undefined)
    throw new StartError(`there is no node of a cluster in ${dataDir}: name its directory with --data-dir`);
  const url = new URL(`http://${localAddress(identity)}/cluster/node/${identity.node_id}`);
  const request = new URL(url);
  if (force) request.searchParams.set("force", "true");
  if (deadline !== undefined) request.searchParams.set("deadline", deadline);
  let node: NodeAnswer | undefined = await ask(request, { method: "DELETE" });
  let said = "";
  while (node && node.state !== "left") {
    const waiting = node.drain?.waiting ?? [];
    const text = describe(waiting);
    if (text !== said) print(text);
    said = text;
    if (waiting.length > 0 && waiting.every(({ reason }) => reason.includes("?force=true"))) {
      print("it stays a member, and gets nothing new: run this again with --force to leave the data behind");
      return 1;
    }
    // oxlint-disable-next-line no-await-in-loop -- looks again until it is over
    await Bun.sleep(LOOK_MS);
    // The process ends with its membership.
    node = await ask(url, {}).catch((error: unknown) => {
      if (identityIn(dataDir)?.cluster_id === undefined) return undefined;
      throw error;
    });
  }
  const isMember = () => identityIn(dataDir)?.cluster_id !== undefined;
  // oxlint-disable-next-line no-await-in-loop -- looks again until it is over
  for (let waited = 0; isMember() && waited < END_MS; waited += LOOK_MS) await Bun.sleep(LOOK_MS);
  print(
    isMember()
      ? "this node has left its cluster; its process stops what it runs, and ends, when its Docker Engine answers"
      : "this node has left its cluster; 'cacophony join ADDRESS' adds the machine to one again",
  );
  return 0;
}

function describe(waiting: readonly { job_id: string; service_name: string; slot: number; reason: string }[]): string {
  if (waiting.length === 0) return "nothing of the cluster runs here any more; waiting for the node to be taken out";
  const named = waiting
    .slice(0, MOST_NAMED)
    .map(({ job_id, service_name, slot, reason }) => `  ${job_id}/${service_name} slot ${slot}: ${reason}`);
  const more = waiting.length > MOST_NAMED ? [`  and ${waiting.length - MOST_NAMED} more`] : [];
  const head = waiting.length === 1 ? "1 replica is still here:" : `${waiting.length} replicas are still here:`;
  return [head, ...named, ...more].join("\n");
}

async function ask(url: URL, init: RequestInit): Promise<NodeAnswer> {
  let response: Response;
  let body: unknown;
  try {
    response = await fetch(url, { ...DIRECT, ...init, signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) });
    body = await response.json();
  } catch (error) {
    throw new StartError(
      `this machine's node does not answer at ${url.host}: start it, or take it out on another node: curl -X DELETE NODE:${DEFAULT_PORT}${url.pathname}`,
      { cause: error },
    );
  }
  if (response.ok) return v.parse(nodeAnswer, body);
  const refused = v.safeParse(refusal, body);
  throw new StartError(refused.success ? refused.output.error.message : `${url.host} answered ${response.status}`);
}

/** Where the node's own process listens, as it was last started. */
function localAddress({ settings }: Identity): string {
  const bind = settings.bind_addr ?? `127.0.0.1:${DEFAULT_PORT}`;
  const { host, port } = parseAddress(bind, "--bind-addr");
  return formatAddress({ host: isWildcard(host) ? (host === "::" ? "::1" : "127.0.0.1") : host, port });
}
