// What constrains apps beyond their slices and what is tried about it, and moves between hosts.

import { get } from "../ask.js";
import { fill, h, table } from "../dom.js";
import { percent } from "../format.js";
import { showMoves } from "../moves.js";
import { named } from "../slices.js";

const EVERY_MS = 1000;
/** Apps whose ladders are asked for at a time: those that wait most for a CPU. */
const LADDERS_MAX = 12;

export function show(place, page) {
  const ladders = h("section", {}, h("h2", {}, "Ladders"), h("p", { class: "dim" }, "Asking…"));
  const moves = h("section", {}, h("h2", {}, "Moves"), h("p", { class: "dim" }, "Asking…"));
  const accelerators = h("section", {}, h("h2", {}, "Accelerators"));
  place.append(ladders, accelerators, moves);
  const ending = new AbortController();
  let timer;

  async function climb() {
    const running = (page.tick?.apps ?? []).filter((app) => app.state === "running");
    const working = running.filter((app) => app.accelerator);
    fill(accelerators, accelerators.firstChild, working.length
      ? table("Compute tasks", ["App", "#Devices", "#Kernels there", "#Busy", "#Tasks/s there", "#Tasks/s on CPUs", "#CPU counts as"], working.map(accelerated))
      : h("p", { class: "dim" }, "No app has a worker that answers."));
    running.sort((a, b) => (b.usage.cpu_stalled ?? 0) - (a.usage.cpu_stalled ?? 0));
    try {
      const told = await Promise.all(running.slice(0, LADDERS_MAX).map((app) =>
        get(`/v1/apps/${encodeURIComponent(app.name)}`, ending.signal)));
      const climbing = told.filter((one) => one.offload.length > 0);
      fill(ladders, ladders.firstChild, climbing.length
        ? climbing.map((one) => [h("h3", {}, named(one.app.name)), h("ul", {}, one.offload.map((line) => h("li", {}, line)))])
        : h("p", { class: "dim" }, "No app is constrained beyond its slice."));
    } catch (error) {
      if (!ending.signal.aborted) fill(ladders, ladders.firstChild, h("p", { class: "dim" }, error.message));
    }
    if (!ending.signal.aborted) timer = setTimeout(climb, EVERY_MS);
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
