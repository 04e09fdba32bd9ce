// The colour and the sign of an app: the same wherever it is shown, and never a colour alone.

import { h } from "./dom.js";
import { width } from "./format.js";

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

/** Processor time that a slice allows, in CPUs: those of its set, or its quota where that is less; null without either. */
export function allowedCpus(slice) {
  const bounds = [slice.cpus ? width(slice.cpus) : null, slice.cpu_max_cores].filter((one) => typeof one === "number");
  return bounds.length ? Math.min(...bounds) : null;
}

/** Memory that a slice allows before it is slowed or ended; null without a bound. */
export function allowedBytes(slice) {
  const bounds = [slice.memory_high_bytes, slice.memory_max_bytes].filter((one) => typeof one === "number");
  return bounds.length ? Math.min(...bounds) : null;
}

/** A bar of use within what there is, with a line where the forecast's 95 % lies. */
export function bar(share, mark, words) {
  const part = (value) => `${Math.max(0, Math.min(1, value || 0)) * 100}%`;
  return h("div", { class: "bar", role: "img", "aria-label": words, title: words },
    h("i", { style: { width: part(share) } }),
    mark === null || mark === undefined ? null : h("b", { style: { left: part(mark) } }));
}
