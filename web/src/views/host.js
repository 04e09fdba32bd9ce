// The host: its CPUs by NUMA node and cache, whose they are and how busy; memory by node with what apps keep of it;
// block devices with what is planned of them; what cannot be kept.

import { facts, fill, h, now, say, settle, table } from "../dom.js";
import { bytes, count, milliseconds, NONE, percent, rate } from "../format.js";
import { poll } from "../poll.js";
import { bar, hue, named } from "../slices.js";

const PARTS_EVERY_MS = 2000;
/** Apps that are listed by what they hold: the greatest. */
const APPS_MAX = 15;
/** Why batch may take of a device what it may. */
const BOUNDS = {
  free: "no critical app uses it", bandwidth: "critical apps' use is left free", delay: "a critical app waits for I/O",
};

export function show(place, page) {
  const map = h("div", { class: "nodes" });
  const legend = h("p", { class: "dim" });
  const rows = h("div");
  // As numbers, which can be read without a mouse and copied; written only while somebody looks.
  const details = h("details", { ontoggle: () => list() }, h("summary", {}, "As a table"), rows);
  const numbers = h("div");
  const short = h("ul");
  const memory = h("section", {}, h("h2", {}, "Memory", now()), h("p", { class: "dim" }, "Asking…"));
  const devices = h("section", {}, h("h2", {}, "Block devices", now()), h("p", { class: "dim" }, "Asking…"));
  const shortfalls = h("section", { hidden: true }, h("h2", {}, "Promises that cannot be kept"), short);
  place.append(
    h("section", {}, h("h2", {}, "CPUs"), map, legend, details),
    h("section", {}, h("h2", {}, "Host"), numbers),
    memory, devices,
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

  function list() {
    if (!details.open || !page.tick) return;
    settle(rows, table("Each CPU", ["#CPU", "#Node", "#L3", "#Busy", "Whose"], (page.frame?.cpus ?? page.tick.status.host.cpus).map((cpu) =>
      [cpu.id, cpu.node ?? NONE, cpu.l3 ?? NONE, percent(cpu.busy), cpu.owner ? named(cpu.owner) : "shared"])));
  }

  // Slowly: what a reader is about to copy must not change under the hand.
  const end = poll("/v1/host", PARTS_EVERY_MS, (told) => {
    const apps = (page.tick?.apps ?? []).filter((app) => app.state === "running");
    settle(memory, memory.firstChild, told.memory.map(node), holders(apps, told.memory.reduce((sum, one) => sum + one.total_bytes, 0)));
    settle(devices, devices.firstChild, planned(told.devices), users(apps, told.devices));
  }, (error) => {
    for (const section of [memory, devices]) fill(section, section.firstChild, h("p", { class: "dim" }, error.message));
  });

  return {
    end,
    update() {
      const { status, agentCores } = page.frame ?? { status: page.tick.status, agentCores: page.agentCores };
      const cpus = page.frame?.cpus ?? status.host.cpus;
      const layout = cpus.map((cpu) => `${cpu.id}/${cpu.node}/${cpu.l3}`).join();
      if (layout !== shape) {
        shape = layout;
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
      list();
      settle(numbers, facts([
        ["Memory to be had", bytes(status.host.memory_available_bytes)],
        ["Shared CPUs", status.host.shared_cpus || "none"],
        ["Apps that run", `${count(status.apps_running)} of ${count(status.apps)}`],
        ["The agent's processor time", `${percent(agentCores)} of a CPU`],
        ["The agent's memory", bytes(status.agent.resident_bytes)],
        ["A period begins late by (p99)", milliseconds(status.timing.late_p99_seconds * 1000)],
        ["A period takes", milliseconds(status.timing.took_seconds * 1000)],
        ["Periods left out", count(status.timing.overruns)],
      ]));
      shortfalls.hidden = status.shortfalls.length === 0;
      settle(short, status.shortfalls.map((line) => h("li", { class: "bad" }, line)));
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

/** Memory of one node: what programs hold, with a line where the content of files ends. */
function node(one) {
  const part = (amount) => (one.total_bytes > 0 ? amount / one.total_bytes : 0);
  const held = Math.max(0, one.total_bytes - one.free_bytes - one.cache_bytes);
  const words = `Node ${one.node}: ${bytes(held)} held, ${bytes(one.cache_bytes)} of files, ${bytes(one.free_bytes)} free, of ${bytes(one.total_bytes)}`;
  return h("div", { class: "memory" }, h("p", {}, words), bar(part(held), part(held + one.cache_bytes), words));
}

/** Those that hold the most, with what is kept for them and what is planned. */
function holders(apps, total) {
  const most = apps.filter((app) => app.usage.memory_bytes !== null)
    .sort((one, other) => other.usage.memory_bytes - one.usage.memory_bytes).slice(0, APPS_MAX);
  if (most.length === 0) return h("p", { class: "dim" }, "No app of which the memory is known runs.");
  return table("Apps, the greatest first; the line in the bar is what each will need (95 %)",
    ["App", "Nodes", "Of the host", "#Holds", "#Will need", "#Planned for", "#Never taken", "#Taken last", "#Slowed above"],
    most.map((app) => {
      const { usage, demand, slice, reason } = app;
      const words = `${bytes(usage.memory_bytes)} held, ${bytes(demand?.memory.q95)} needed`;
      const mark = demand && total > 0 ? demand.memory.q95 / total : null;
      return [named(app.name), slice.mems ?? "all", bar(total > 0 ? usage.memory_bytes / total : 0, mark, words), bytes(usage.memory_bytes),
        bytes(demand?.memory.q95), bytes(reason?.memory_demand_bytes), bytes(slice.memory_min_bytes), bytes(slice.memory_low_bytes),
        bytes(slice.memory_high_bytes)];
    }));
}

/** What is planned of each device that was measured. */
function planned(devices) {
  if (devices.length === 0) {
    return h("p", { class: "dim" }, "None was measured, so none is divided: `forebay calibrate /dev/NAME` measures one.");
  }
  return table("Parts of a device's time", ["Device", "Critical apps", "Batch", "#Critical apps", "#Batch may", "#Batch apps", "Why", "Used by"],
    devices.map((device) => [device.name, bar(device.critical, null, `critical apps ${percent(device.critical)}`),
      bar(device.room, null, `batch may ${percent(device.room)}`), percent(device.critical), percent(device.room), count(device.sharers),
      BOUNDS[device.bound] ?? device.bound, h("pre", {}, device.used_by.join(" ") || NONE)]));
}

/** What apps do on devices now, and where they are held to a rate. */
function users(apps, devices) {
  const name = (number) => devices.find((device) => device.device === number)?.name ?? number;
  const used = apps.flatMap((app) => app.io.devices.map((io) => ({ app, io })))
    .filter(({ io }) => io.read_bytes_per_second + io.write_bytes_per_second > 0)
    .sort((one, other) => rates(other.io) - rates(one.io)).slice(0, APPS_MAX);
  if (used.length === 0) return h("p", { class: "dim" }, "No app reads or writes a device now.");
  return table("Who uses them now; the line in the bar is what will be needed (95 %)",
    ["App", "Device", "Of its time", "#Reads", "#Writes", "#Held to (reads)", "#Held to (writes)"],
    used.map(({ app, io }) => {
      const limit = app.slice.io_max.find((one) => one.device === io.device);
      return [named(app.name), name(io.device), io.share === null ? NONE : bar(io.share, io.demand?.q95, percent(io.share)),
        rate(io.read_bytes_per_second), rate(io.write_bytes_per_second), limited(limit?.rbps), limited(limit?.wbps)];
    }));
}

function rates(io) {
  return io.read_bytes_per_second + io.write_bytes_per_second;
}

function limited(limit) {
  return limit === undefined || limit === "max" ? "not held" : rate(limit);
}
