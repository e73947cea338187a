/**
 * @module Which Cacophony this is. `build.ts` puts both values into the executable; run from source, they say so.
 */
declare const CACOPHONY_VERSION: string;
declare const CACOPHONY_COMMIT: string;

/** Version in package.json when the executable was built. */
export const VERSION = typeof CACOPHONY_VERSION === "undefined" ? "0.0.0-dev" : CACOPHONY_VERSION;

/** Short git commit that it was built from, with `-dirty` when the checkout differed from it. */
export const COMMIT = typeof CACOPHONY_COMMIT === "undefined" ? "unknown" : CACOPHONY_COMMIT;
