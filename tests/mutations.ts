/**
 * @module The deliberate errors of `npm run mutate`, each by its name: one that somebody could make in `src` without any type being
 * wrong. The simulation has to catch each of them. Owns the form and the list; `mutations_node.ts` and `mutations_master.ts` have
 * the errors.
 */
import { MASTER_MUTATIONS } from "./mutations_master.ts";
import { NODE_MUTATIONS } from "./mutations_node.ts";

/** `find` is a text that `file` has exactly once; `replace` is what an error makes of it. */
export type Mutation = { name: string; breaks: string; file: string; find: string; replace: string };

export const MUTATIONS: readonly Mutation[] = [...MASTER_MUTATIONS, ...NODE_MUTATIONS];

/** Errors that the simulation can't catch, with the reason. One that is caught must not be here. */
export const SURVIVORS: ReadonlyMap<string, string> = new Map([]);

/** What is wrong with the list itself: names that are there twice, and texts that are not in their file exactly once. */
export function misfits(read: (file: string) => string, mutations: readonly Mutation[] = MUTATIONS): string[] {
  const texts = new Map<string, string>();
  const faults: string[] = [];
  const names = new Set<string>();
  for (const { name, file, find, replace } of mutations) {
    if (names.has(name)) faults.push(`there are two errors named ${name}`);
    names.add(name);
    const text = texts.get(file) ?? read(file);
    texts.set(file, text);
    const times = text.split(find).length - 1;
    if (times !== 1)
      faults.push(
        `${name} does not apply: its text is in ${file} ${times} times; find what it stands for now: ${find}`,
      );
    else if (find === replace) faults.push(`${name} changes nothing`);
  }
  for (const name of SURVIVORS.keys())
    if (!names.has(name)) faults.push(`no error is named ${name}, which SURVIVORS has`);
  return faults;
}

/** The text of a file with the error in it. */
export function mutated(text: string, { find, replace }: Mutation): string {
  return text.replace(find, () => replace);
}
