// Whose ladders are asked for. What constrains an app is known only by asking, and by its waiting for a CPU: so all
// are asked, some at a time, and those that were constrained each time.

/**
 * The names to ask for, `max` at most: those of `climbing` first, as far as half of the room goes, then who waits most
 * for a CPU, a quarter, then the others in turn. `turn` is how many of the others were asked before; so is the new one given.
 */
export function asked(running, climbing, turn, max) {
  const names = [];
  const add = (list, room) => {
    for (const app of list) {
      if (room <= 0 || names.length === max) return;
      if (names.includes(app.name)) continue;
      names.push(app.name);
      room -= 1;
    }
  };
  const round = (list) => list.map((_, index) => list[(turn + index) % list.length]);
  add(round(running.filter((app) => climbing.has(app.name))), max / 2);
  const stalled = running.filter((app) => app.usage.cpu_stalled > 0);
  add(stalled.sort((one, other) => other.usage.cpu_stalled - one.usage.cpu_stalled), max / 4);
  const before = names.length;
  add(round(running), max);
  return { names, turn: running.length ? (turn + names.length - before) % running.length : 0 };
}
