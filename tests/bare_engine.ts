/**
 * @module A Docker Engine that tells who it is and has nothing else to say: for nodes that are to join without a real one, which
 * they do once their Engine has told its id.
 */

/** Serves it at a unix socket; what it returns ends it. */
export function serveBareEngine(socket: string, id: string = crypto.randomUUID()): { stop(): void } {
  const answers: Record<string, object> = {
    "/info": { ID: id, NCPU: 1, MemTotal: 2 ** 30 },
    "/version": { Version: "28.0.0", ApiVersion: "1.48", Os: "linux", Arch: "amd64" },
  };
  const server = Bun.serve({
    unix: socket,
    fetch: ({ url }) => {
      const { pathname } = new URL(url);
      const known = Object.entries(answers).find(([path]) => pathname.endsWith(path))?.[1];
      return known ? Response.json(known) : Response.json({ message: "nothing here" }, { status: 500 });
    },
  });
  return { stop: () => void server.stop(true) };
}
