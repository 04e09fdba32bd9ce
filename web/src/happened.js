// Events of one app from two sides: those that the daemon has kept, with its decisions, and those that the stream tells.

/** The events of both, each once, in the order of time; the latest `max`. */
export function merged(known, more, max) {
  const all = new Map(known.map((event) => [key(event), event]));
  for (const event of more) all.set(key(event), event);
  return [...all.values()].sort((one, other) => one.time_unix_ms - other.time_unix_ms).slice(-max);
}

function key(event) {
  return `${event.time_unix_ms}\n${event.kind}\n${event.message}`;
}

/** The least distance between two numbers that are legible, in pixels of the chart. */
const APART = 16;

/** Which of so many places, in order, can have a number beside them: the latest of those that crowd. */
export function legible(places) {
  const chosen = [];
  for (let index = places.length - 1; index >= 0; index -= 1) {
    const before = chosen.at(-1);
    if (before === undefined || places[before] - places[index] >= APART) chosen.push(index);
  }
  return chosen.reverse();
}
