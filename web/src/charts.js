// Lines over time, by uPlot. Without it, in a build without node, a table of the latest numbers.

import { fill, h, table } from "./dom.js";
import { clock } from "./format.js";
import { legible } from "./happened.js";

/** Made by `npm run build` out of the package uplot. */
const LIBRARY = "./uplot.js";
let library;

/** The library, or null where this build has none. */
export function load() {
  library ??= import(LIBRARY).then((module) => module.default, () => null);
  return library;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The colour that is in force of a property that names two. */
function shown(name) {
  const probe = h("span", { style: { color: `var(${name})` } });
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color || colour(name);
}

/**
 * A chart of some series over time.
 *
 * `lines` are `{label, colour, width, dash, bandTo}`: `bandTo` shades down to the line with that index,
 * `format` says a value. `data` is uPlot's: times in seconds, then one array for each line. Marks are
 * `{time, text}`: events on the same axis.
 */
export async function chart(place, { title, lines, format, height = 240 }) {
  const Plot = await load();
  const state = { marks: [], now: null, isClose: false };
  if (!Plot) return plain(place, { title, lines, format });
  const ink = shown("--ink");
  const grid = { stroke: shown("--line"), width: 1 };
  const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui" };
  const options = {
    title, width: place.clientWidth || 600, height,
    legend: { live: true },
    cursor: { drag: { x: true, y: false } },
    scales: { y: { range: (_, low, high) => [Math.min(0, low ?? 0), (high ?? 1) * 1.08 || 1] } },
    axes: [{ ...axis, space: 90, values: (_, ticks) => ticks.map((time) => moment(time, ticks)) }, { ...axis, size: 76, values: (_, ticks) => ticks.map(format) }],
    series: [
      { value: (_, time) => (time === null ? "–" : clock(time * 1000)) },
      ...lines.map((line) => ({
        label: line.label, stroke: line.colour, width: line.width ?? 1.5, dash: line.dash,
        points: { show: false }, spanGaps: false,
        value: (_, value) => (value === null || value === undefined ? "–" : format(value)),
      })),
    ],
    bands: lines.flatMap((line, index) =>
      line.bandTo === undefined ? [] : [{ series: [index + 1, line.bandTo + 1], fill: line.shade }]),
    hooks: {
      draw: [(plot) => marks(plot, state, ink)],
      setSelect: [({ select }) => { if (select.width > 0) state.isClose = true; }],
    },
  };
  const plot = new Plot(options, [[], ...lines.map(() => [])], place);
  plot.over.addEventListener("dblclick", () => { state.isClose = false; });
  const observer = new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height }));
  observer.observe(place);
  return {
    set(data, { marks: list = [], now = null } = {}) {
      Object.assign(state, { marks: list, now });
      // Where a reader looks closely, the part that was chosen stays.
      plot.setData(data, !state.isClose);
      if (state.isClose) plot.redraw();
    },
    end() {
      observer.disconnect();
      plot.destroy();
    },
  };
}

/** A time on the axis: with its day where the ticks are more than half a day apart. */
function moment(time, ticks) {
  const far = ticks.length > 1 && ticks[1] - ticks[0] >= 43200;
  const date = new Date(time * 1000);
  if (far) return `${date.getFullYear()}-${String(date.getMonth() + 1).padStart(2, "0")}-${String(date.getDate()).padStart(2, "0")}`;
  const text = clock(time * 1000);
  return text.endsWith(":00") ? text.slice(0, 5) : text;
}

/** Draws events as lines with their numbers, and where the present is. */
function marks(plot, { marks: list, now }, ink) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ink;
  ctx.fillStyle = ink;
  ctx.font = "11px system-ui";
  const line = (time, dash) => {
    const x = Math.round(plot.valToPos(time, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) return null;
    ctx.setLineDash(dash);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    return x;
  };
  if (now !== null) line(now, []);
  const drawn = list.map(({ time }, index) => ({ x: line(time, [2, 4]), text: String(index + 1) })).filter(({ x }) => x !== null);
  for (const index of legible(drawn.map(({ x }) => x))) ctx.fillText(drawn[index].text, drawn[index].x + 2, bbox.top + 10);
  ctx.restore();
}

/** The latest numbers, for a build without the library. */
function plain(place, { title, lines, format }) {
  const body = h("div");
  place.append(h("p", { class: "dim" },
    "This build has no charts: it was made without node. `npm ci && npm run build` in web/, then build again."), body);
  return {
    set(data) {
      const [times] = data;
      const latest = times.slice(-12);
      const rows = latest.map((time, row) => [clock(time * 1000), ...lines.map((_, line) => {
        const value = data[line + 1][times.length - latest.length + row];
        return value === null || value === undefined ? "–" : format(value);
      })]);
      fill(body, table(title, ["Time", ...lines.map((line) => `#${line.label}`)], rows));
    },
    end() {},
  };
}
