// What constrains apps beyond their slices and what is tried about it, and moves between hosts.

import { get } from "../ask.js";
import { fill, h, settle, table } from "../dom.js";
import { percent } from "../format.js";
import { asked } from "../ladders.js";
import { showMoves } from "../moves.js";
import { named } from "../slices.js";

const EVERY_MS = 1000;
/** Apps whose ladders are asked for at a time. */
const LADDERS_MAX = 12;

export function show(place, page) {
  const ladders = h("section", {}, h("h2", {}, "Ladders"), h("p", { class: "dim" }, "Asking…"));
  const moves = h("section", {}, h("h2", {}, "Moves"), h("p", { class: "dim" }, "Asking…"));
  const accelerators = h("section", {}, h("h2", {}, "Accelerators"));
  place.append(ladders, accelerators, moves);
  const ending = new AbortController();
  let timer;
  /** What is tried about those that are constrained, by name. */
  const climbing = new Map();
  let turn = 0;
  /** Why the last ones could not be asked for, if so. */
  let trouble = "";

  async function climb() {
    const running = (page.tick?.apps ?? []).filter((app) => app.state === "running");
    const working = running.filter((app) => app.accelerator);
    settle(accelerators, accelerators.firstChild, working.length
      ? table("Compute tasks", ["App", "#Devices", "#Kernels there", "#Busy", "#Tasks/s there", "#Tasks/s on CPUs", "#CPU counts as"], working.map(accelerated))
      : h("p", { class: "dim" }, "No app has a worker that answers."));
    for (const name of climbing.keys()) if (!running.some((app) => app.name === name)) climbing.delete(name);
    const chosen = asked(running, climbing, turn, LADDERS_MAX);
    turn = chosen.turn;
    trouble = "";
    await Promise.all(chosen.names.map(ask));
    if (ending.signal.aborted) return;
    settle(ladders, ladders.firstChild, trouble ? h("p", { class: "dim" }, trouble) : null, climbing.size
      ? [...climbing].sort(([one], [other]) => (one < other ? -1 : 1)).map(([name, lines]) =>
        h("div", { "data-key": name }, h("h3", {}, named(name)), h("ul", {}, lines.map((line) => h("li", {}, line)))))
      : trouble ? null : h("p", { class: "dim" }, "No app is constrained beyond its slice."));
    timer = setTimeout(climb, EVERY_MS);
  }

  async function ask(name) {
    try {
      const { offload } = await get(`/v1/apps/${encodeURIComponent(name)}`, ending.signal);
      if (offload.length > 0) climbing.set(name, offload);
      else climbing.delete(name);
    } catch (error) {
      climbing.delete(name);
      // One that ended meanwhile is no trouble.
      if (error.status !== 404) trouble = error.message;
    }
  }
  climb();
  const end = showMoves(moves, page);
  return {
    end() {
      ending.abort();
      clearTimeout(timer);
      end();
    },
  };
}

function accelerated(app) {
  const used = app.accelerator;
  return [named(app.name), used.devices, used.kernels, percent(used.devices > 0 ? used.busy / used.devices : 0),
    used.on_devices_per_second.toFixed(1), used.on_cpu_per_second.toFixed(1), `${used.cpu_price.toFixed(0)} ×`];
}
