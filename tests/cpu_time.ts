/** @module What work costs on a machine that others use, too: time of the processor, not of the clock. */

/** Milliseconds of processor time since it was called, each time that the answer is called. */
export function cpuTimer(): () => number {
  const start = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(start);
    return (user + system) / 1000;
  };
}
