/**
 * @module Which Cacophony this is. `build.ts` puts both values into the executable; run from source, they say so.
 */
declare const CACOPHONY_VERSION: string;
declare const CACOPHONY_COMMIT: string;

/** Whether this is the one executable that `build.ts` makes. */
export const IS_EXECUTABLE = typeof CACOPHONY_VERSION !== "undefined";

/** Version in package.json when the executable was built. */
export const VERSION = IS_EXECUTABLE ? CACOPHONY_VERSION : "0.0.0-dev";

/** Short git commit that it was built from, with `-dirty` when the checkout differed from it. */
export const COMMIT = typeof CACOPHONY_COMMIT === "undefined" ? "unknown" : CACOPHONY_COMMIT;
