// What happened, the latest first.

import { fill, h } from "../dom.js";
import { clock } from "../format.js";
import { named } from "../slices.js";

/** Lines that are drawn. */
const LINES_MAX = 200;

/** A list of events as rows of a table. */
export function lines(events) {
  return events.map((event) => h("tr", {},
    h("td", {}, clock(event.time_unix_ms)), h("td", {}, event.kind),
    h("td", {}, event.app ? named(event.app) : "host"), h("td", { class: "words" }, event.message)));
}

export function show(place, page) {
  const search = h("input", { type: "search", placeholder: "part of a line", oninput: () => draw(true) });
  const body = h("tbody");
  let last = null;
  place.append(h("section", {}, h("h2", {}, "Events"),
    h("form", { class: "line", onsubmit: (event) => event.preventDefault() }, h("label", {}, "Filter (key: /)", search)),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Events" },
      h("table", {}, h("thead", {}, h("tr", {}, ["Time", "Kind", "App", "What happened"].map((head) =>
        h("th", { scope: "col" }, head)))), body))));

  function draw(anew) {
    const { events } = page.past;
    if (!anew && events.at(-1) === last) return;
    last = events.at(-1);
    const word = search.value.toLowerCase();
    const found = events.filter((event) =>
      !word || `${event.app ?? "host"} ${event.kind} ${event.message}`.toLowerCase().includes(word));
    fill(body, lines(found.slice(-LINES_MAX).reverse()));
  }

  draw(true);
  return { update: () => draw(false) };
}
