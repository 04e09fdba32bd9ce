// All apps: what they use, what they will need, what they have.

import { fill, h, say, settle } from "../dom.js";
import { bytes, cores, milliseconds, NONE, percent, width } from "../format.js";
import { bar, named } from "../slices.js";

/** Rows that are drawn at most: more are found by the filter. */
const ROWS_MAX = 300;

const COLUMNS = [
  { head: "App", value: (app) => app.name },
  { head: "Class", value: (app) => ["critical", "standard", "batch"].indexOf(app.class), show: (app) => app.class },
  { head: "State", value: (app) => app.state },
  { head: "CPUs used", number: true, value: (app) => app.usage.cpu_cores ?? -1, show: (app) => cores(app.usage.cpu_cores) },
  { head: "Needed (95 %)", number: true, value: (app) => app.demand?.cpu.q95 ?? -1, show: (app) => cores(app.demand?.cpu.q95) },
  { head: "Waits for CPU", number: true, value: (app) => app.usage.cpu_stalled ?? -1, show: (app) => percent(app.usage.cpu_stalled) },
  { head: "CPUs", value: (app) => width(app.slice.cpus), show: (app) => app.slice.cpus ?? NONE },
  { head: "Memory", number: true, value: (app) => app.usage.memory_bytes ?? -1, show: (app) => bytes(app.usage.memory_bytes) },
  { head: "Response", number: true, value: (app) => app.usage.response_time_ms ?? -1, show: (app) => milliseconds(app.usage.response_time_ms) },
  { head: "Use of what it will need", value: (app) => fullness(app) },
];

function fullness(app) {
  const need = app.demand?.cpu.q95;
  return need > 0 ? (app.usage.cpu_cores ?? 0) / need : 0;
}

export function show(place, page) {
  let sort = { column: 1, down: false };
  const rows = new Map();
  const search = h("input", { type: "search", placeholder: "part of a name", oninput: () => draw() });
  const note = h("p", { class: "dim" });
  const body = h("tbody");
  const heads = COLUMNS.map((column, index) => h("th", { scope: "col", class: column.number ? "number" : null },
    h("button", { onclick: () => {
      sort = { column: index, down: sort.column === index ? !sort.down : Boolean(column.number) };
      draw();
    } }, column.head)));
  place.append(h("section", {}, h("h2", {}, "Apps"),
    h("form", { class: "line", onsubmit: (event) => event.preventDefault() }, h("label", {}, "Filter (key: /)", search)),
    note,
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Apps" },
      h("table", {}, h("thead", {}, h("tr", {}, heads)), body))));

  function row(app) {
    let known = rows.get(app.name);
    if (!known) {
      const cells = COLUMNS.map((column) => h("td", { class: column.number ? "number" : null }));
      fill(cells[0], named(app.name));
      known = { line: h("tr", {}, cells), cells };
      rows.set(app.name, known);
    }
    COLUMNS.forEach((column, index) => {
      if (index === 0) return;
      if (index < COLUMNS.length - 1) say(known.cells[index], (column.show ?? column.value)(app));
      else {
        const need = app.demand?.cpu.q95;
        const words = `${cores(app.usage.cpu_cores)} of ${cores(need)} CPUs`;
        settle(known.cells[index], need > 0 ? bar(fullness(app), null, words) : NONE);
      }
    });
    return known.line;
  }

  function draw() {
    if (!page.tick) return;
    const all = page.frame?.apps ?? page.tick.apps;
    const word = search.value.toLowerCase();
    const found = word ? all.filter((app) => app.name.toLowerCase().includes(word)) : [...all];
    const { value } = COLUMNS[sort.column];
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    found.sort((a, b) => (sort.down ? -1 : 1) * order(value(a), value(b)) || order(a.name, b.name));
    heads.forEach((head, index) => {
      if (index === sort.column) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const some = found.slice(0, ROWS_MAX);
    say(note, found.length === 0
      ? (all.length ? "No app has that in its name." : "There are no apps yet: add one to the configuration, or `forebay run`.")
      : found.length > some.length ? `The first ${some.length} of ${found.length}; the filter finds the others.` : `${found.length} ${found.length === 1 ? "app" : "apps"}`);
    const names = new Set(all.map((app) => app.name));
    for (const name of rows.keys()) if (!names.has(name)) rows.delete(name);
    const lines = some.map(row);
    // Lines that stand where they should are left: a reader may be on one with the keyboard.
    if (lines.length !== body.children.length || lines.some((line, index) => body.children[index] !== line)) {
      body.replaceChildren(...lines);
    }
  }

  return { update: draw };
}
