// The host: its CPUs by NUMA node and cache, whose they are and how busy; memory; what cannot be kept.

import { facts, fill, h, say } from "../dom.js";
import { bytes, count, milliseconds, percent } from "../format.js";
import { hue, named } from "../slices.js";

export function show(place, page) {
  const map = h("div", { class: "nodes" });
  const legend = h("p", { class: "dim" });
  const numbers = h("div");
  const short = h("ul");
  const shortfalls = h("section", { hidden: true }, h("h2", {}, "Promises that cannot be kept"), short);
  place.append(
    h("section", {}, h("h2", {}, "CPUs"), map, legend),
    h("section", {}, h("h2", {}, "Host"), numbers),
    shortfalls,
  );
  /** Elements of the CPUs, made once: only what changes is written. */
  let cells = new Map();
  let shape = "";

  function build(cpus) {
    cells = new Map();
    const nodes = Map.groupBy ? Map.groupBy(cpus, (cpu) => cpu.node ?? 0) : group(cpus, (cpu) => cpu.node ?? 0);
    fill(map, [...nodes].map(([node, own]) => h("div", { class: "node" },
      h("h3", {}, `NUMA node ${node}`),
      [...group(own, (cpu) => cpu.l3 ?? 0)].map(([l3, members]) =>
        h("div", { class: "l3", role: "list", "aria-label": `CPUs with the L3 cache ${l3}` }, members.map((cpu) => {
          const level = h("div", { class: "level" });
          const who = h("span", { class: "who" });
          const cell = h("div", { class: "cpu", role: "listitem" }, level, h("span", {}, cpu.id), who);
          cells.set(cpu.id, { cell, level, who });
          return cell;
        }))))));
  }

  return {
    update() {
      const { status } = page.tick;
      const cpus = page.frame?.cpus ?? status.host.cpus;
      const now = cpus.map((cpu) => `${cpu.id}/${cpu.node}/${cpu.l3}`).join();
      if (now !== shape) {
        shape = now;
        build(cpus);
      }
      const owners = new Set();
      for (const cpu of cpus) {
        const { cell, level, who } = cells.get(cpu.id);
        cell.className = cpu.owner ? `cpu ${hue(cpu.owner)}` : "cpu";
        level.style.height = `${(cpu.busy ?? 0) * 100}%`;
        say(who, cpu.owner ?? "shared");
        cell.title = `CPU ${cpu.id}: ${percent(cpu.busy)} busy, ${cpu.owner ? `${cpu.owner}'s own` : "shared"}`;
        if (cpu.owner) owners.add(cpu.owner);
      }
      const wanted = [...owners].sort().join("\n");
      if (legend.dataset.owners !== wanted) {
        legend.dataset.owners = wanted;
        fill(legend, owners.size ? ["Own CPUs: ", [...owners].sort().map((name) => [named(name), " "])] : "All CPUs are shared.");
      }
      fill(numbers, facts([
        ["Memory to be had", bytes(status.host.memory_available_bytes)],
        ["Shared CPUs", status.host.shared_cpus || "none"],
        ["Apps that run", `${count(status.apps_running)} of ${count(status.apps)}`],
        ["The agent's processor time", `${percent(page.agentCores)} of a CPU`],
        ["The agent's memory", bytes(status.agent.resident_bytes)],
        ["A period begins late by (p99)", milliseconds(status.timing.late_p99_seconds * 1000)],
        ["A period takes", milliseconds(status.timing.took_seconds * 1000)],
        ["Periods left out", count(status.timing.overruns)],
      ]));
      shortfalls.hidden = status.shortfalls.length === 0;
      fill(short, status.shortfalls.map((line) => h("li", { class: "bad" }, line)));
    },
  };
}

function group(list, key) {
  const groups = new Map();
  for (const one of list) {
    const name = key(one);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(one);
  }
  return groups;
}
