/** @module Deliberate errors in what a node does: session, executor, converge, and what is remembered over a restart. */
import type { Mutation } from "./mutations.ts";

export const NODE_MUTATIONS: readonly Mutation[] = [
  // ---- Named by the issue ---------------------------------------------------------------------------------------------
  {
    name: "stale-assignments-accepted",
    breaks: "a node takes in assignments that are older than those it has seen",
    file: "src/executor.ts",
    find: "isOlder(assignments.order, this.#newest)",
    replace: "isOlder(assignments.order, { term: 0, revision: 0 })",
  },
  {
    name: "unknown-outcomes-forgotten",
    breaks: "a call to Docker without an answer is taken for one that did nothing",
    file: "src/executor_worker.ts",
    find: `cause.code === "timeout" || cause.code === "unavailable"`,
    replace: `cause.code === "aborted"`,
  },
  {
    name: "silent-master-never-dropped",
    breaks: "a master that answers no heartbeat is believed to be there",
    file: "src/session.ts",
    find: "if (live.acknowledged < older) {",
    replace: "if (live.acknowledged < older - 1e9) {",
  },
  {
    name: "name-conflict-is-an-error",
    breaks: "a container that a lost answer left behind is taken for somebody else's",
    file: "src/executor_worker.ts",
    find: "if (isOurs) return found.id;",
    replace: `if (isOurs && spec.image === "") return found.id;`,
  },
  // ---- Session --------------------------------------------------------------------------------------------------------
  {
    name: "gone-is-not-told",
    breaks: "a node does not say that it has something no more",
    file: "src/session.ts",
    find: ".filter((id) => !now.has(id));",
    replace: ".filter((id) => !now.has(id) && snapshot.applied === undefined);",
  },
  // ---- Executor -------------------------------------------------------------------------------------------------------
  {
    name: "tells-before-it-looked",
    breaks: "a process that starts tells that nothing runs before it has looked at Docker",
    file: "src/executor.ts",
    find: `if (!this.#statuses) return undefined;
    return {
      ...(this.#assignments && { applied: this.#assignments.order }),
      allocations: this.#statuses,`,
    replace: `return {
      ...(this.#assignments && { applied: this.#assignments.order }),
      allocations: this.#statuses ?? [],`,
  },
  {
    name: "counts-not-loaded",
    breaks: "restart counts and ends are forgotten with the process",
    file: "src/executor.ts",
    find: "this.#memories = this.#counts.load();",
    replace: "this.#counts.load();",
  },
  {
    name: "vanished-not-noticed",
    breaks: "a container that somebody removed while events were lost is believed to be there",
    file: "src/executor.ts",
    find: "if (!own.has(id)) this.#inspectSoon(id);",
    replace: "if (!own.has(id) && this.#unclear.has(id)) this.#inspectSoon(id);",
  },
  {
    name: "looks-at-new-ones-only",
    breaks: "a full look does not see that a known container ended",
    file: "src/executor.ts",
    find: "|| looksDifferent(known, listed)) this.#inspectSoon(id);",
    replace: ") this.#inspectSoon(id);",
  },
  {
    name: "isolation-never-ends",
    breaks: "what was stopped for want of a master is not started again",
    file: "src/executor.ts",
    find: "for (const [id] of isolated) this.#change(id, afterIsolation);",
    replace: "for (const [id] of isolated.slice(1)) this.#change(id, afterIsolation);",
  },
  {
    name: "isolation-stops-nothing",
    breaks: "what must never run twice goes on running without a master",
    file: "src/converge.ts",
    find: `if (wanted === "stop" || memory.isolated !== undefined)\n    return container`,
    replace: `if (wanted === "stop")\n    return container`,
  },
  {
    name: "volumes-go-while-in-use",
    breaks: "a deleted job's volumes are removed while its containers are still being stopped",
    file: "src/executor.ts",
    find: "allocations.every((id) => this.#wanted.has(id) && !this.#tasks.has(id))",
    replace: "allocations.every((id) => this.#wanted.has(id) || this.#tasks.has(id))",
  },
  {
    name: "files-not-fetched",
    breaks: "a container starts without the files that were sent for it",
    file: "src/executor_worker.ts",
    find: "if (spec.files || hasSecrets(spec)) await",
    replace: "if (hasSecrets(spec)) await",
  },
  // ---- Converge -------------------------------------------------------------------------------------------------------
  {
    name: "no-backoff",
    breaks: "a container that ends at once is started again at once, for ever",
    file: "src/converge_restarts.ts",
    find: "return delayMs + backoffMs(options.ends,",
    replace: "return delayMs + backoffMs(options.ends > 0 ? 1 : 0,",
  },
  {
    name: "ends-counted-twice",
    breaks: "one end of a container counts each time that it is looked at",
    file: "src/converge.ts",
    find: "if (memory.counted === run) return",
    replace: "if (memory.counted === run && memory.final !== undefined) return",
  },
  {
    name: "revived-at-once",
    breaks: "a node that has not heard from a master yet starts what was stopped on purpose",
    file: "src/executor.ts",
    find: "this.#reviveAt = this.#clock.now() + REVIVE_AFTER_MS;",
    replace: "this.#reviveAt = this.#clock.now() + REVIVE_AFTER_MS * 0;",
  },
];
