/**
 * @module The long run on real hosts (`npm run soak -- --lab`): three hosts with their own Docker Engines and the times that users
 * have, busy all the time, while nothing goes wrong. Counts what the master took for trouble: a node that was called down, or
 * whose replicas were given up, is a false alarm. A tool: nothing imports it but `soak.ts`.
 */
import { LabCluster, sleeper } from "./lab_cluster.ts";

/** Replicas that come and go. */
const [FEW, MANY] = [3, 18];
const ROUND_MS = 10_000;
/** One process on each core besides what the cluster does. */
const HOGS = 2;
const DEFAULT_TIMES = ["--heartbeat-interval", "1s", "--node-timeout", "4s"];

type Seen = { rounds: number; suspected: number; alarms: string[] };

/** Resolves to the exit code: 1 after a false alarm. */
export async function soakLab({ minutes }: { minutes: number }): Promise<number> {
  const cluster = await LabCluster.start({ hosts: 3, bootstrap: DEFAULT_TIMES });
  const begin = performance.now();
  const seen: Seen = { rounds: 0, suspected: 0, alarms: [] };
  const hogs = Array.from({ length: HOGS }, () =>
    cluster.lab.host(3).spawn("hog", ["sh", "-c", "while :; do :; done"]),
  );
  try {
    while (performance.now() - begin < minutes * 60_000) {
      const scale = seen.rounds % 2 === 0 ? MANY : FEW;
      await cluster.put("soak", { services: { web: sleeper({ scale, environment: { ROUND: String(seen.rounds) } }) } });
      await Bun.sleep(ROUND_MS);
      seen.rounds++;
      look(cluster, seen);
      console.log(progress(seen, performance.now() - begin));
      if (seen.alarms.length > 0) break;
    }
    return seen.alarms.length > 0 ? 1 : 0;
  } finally {
    for (const alarm of seen.alarms) console.error(alarm);
    for (const hog of hogs) await hog.kill();
    await cluster.lab.stop();
  }
}

/** What the master has written so far. Before all have joined, nodes are not ready for a reason. */
function look(cluster: LabCluster, seen: Seen): void {
  const lines = cluster.process(1).logs().split("\n");
  const isAbout = (text: string) => (line: string) => line.includes(`"${text}"`);
  seen.suspected = lines.filter((line) => isAbout("a node is not ready")(line) && line.includes("not heard")).length;
  seen.alarms = lines.filter(
    (line) =>
      (isAbout("a node is not ready")(line) && line.includes('"state":"down"')) ||
      isAbout("what a node ran is given up, and placed anew")(line) ||
      line.includes("most nodes fell silent together"),
  );
}

function progress({ rounds, suspected, alarms }: Seen, elapsedMs: number): string {
  return (
    `soak: ${(elapsedMs / 60_000).toFixed(1)} minutes on real hosts, ${rounds} updates, ` +
    `${alarms.length} false alarms, ${suspected} nodes suspected for a moment`
  );
}
