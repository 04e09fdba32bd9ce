// The colour and the sign of an app: the same wherever it is shown, and never a colour alone.

import { h } from "./dom.js";

const COLOURS = 8;
const given = new Map();

/** The class of an app's colour: those seen first have their own, the ninth shares one. */
export function hue(name) {
  if (!given.has(name)) given.set(name, given.size % COLOURS);
  return `s${given.get(name)}`;
}

/** An app's name with its colour, as a link to its view. */
export function named(name) {
  return h("a", { href: `#apps/${encodeURIComponent(name)}` }, h("span", { class: `dot ${hue(name)}` }), name);
}

/** A bar of use within what there is, with a line where the forecast's 95 % lies. */
export function bar(share, mark, words) {
  const part = (value) => `${Math.max(0, Math.min(1, value || 0)) * 100}%`;
  return h("div", { class: "bar", role: "img", "aria-label": words, title: words },
    h("i", { style: { width: part(share) } }),
    mark === null || mark === undefined ? null : h("b", { style: { left: part(mark) } }));
}
