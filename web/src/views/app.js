// One app: what it used, what it was expected to use, what it will need, and why its slice is what it is.

import { change, get } from "../ask.js";
import { Forecasts, together } from "../axis.js";
import { chart } from "../charts.js";
import { facts, fill, h, now as goesOn, say, settle, table } from "../dom.js";
import { bytes, cores, milliseconds, NONE, percent, rate, seconds } from "../format.js";
import { merged } from "../happened.js";
import { mover } from "../mover.js";
import { poll } from "../poll.js";
import { hue } from "../slices.js";
import { lines } from "./events.js";

const FORECAST_EVERY_MS = 5000;
const EXPLAIN_EVERY_MS = 2000;
/** Events and decisions that are listed and marked in the chart: the latest of the span that is shown. */
const EVENTS_MAX = 500;
/** Those of "what the page saw", which began just now: the latest, whenever they were. */
const LATEST_EVENTS = 50;
const EVENTS_EVERY_MS = 5000;
/** Decisions are kept some seconds after they were made: they are looked for in what was read before. */
const LATE_MS = 60_000;
/** How old a forecast may be to be called that of a moment, in seconds: three of those that are asked for. */
const FORECAST_OLD_SECONDS = 15;

/** What can be looked at, how its numbers read, and which series of what the page saw are its use, what was expected and what
 *  the slice allowed; and as what the daemon keeps the last. */
const RESOURCES = {
  cpu: { title: "Processor time", format: (value) => `${cores(value)}`, live: "cpu", allowed: "cpus", kept: "cpu_allowed",
    bands: { q50: "q50", q90: "q90", q95: "q95", q99: "q99" } },
  memory: { title: "Memory", format: bytes, live: "memory", expected: "memory95", allowed: "bytes", kept: "memory_allowed" },
  response_time: { title: "Response time", format: milliseconds, live: "response" },
  requests: { title: "Requests per second", format: (value) => value.toFixed(value < 10 ? 1 : 0) },
  io: { title: "Block devices", format: rate },
  received: { title: "Received", format: rate },
  sent: { title: "Sent", format: rate },
};

/** How far back and ahead one can look. */
const SPANS = [
  { text: "what the page saw", back: 0, ahead: 60 },
  { text: "an hour", back: 3600, ahead: 900 },
  { text: "a day", back: 86400, ahead: 21600 },
  { text: "a week", back: 604800, ahead: 86400 },
];

/** In the order of `COLUMNS`. The bands of forecasts, light outside, strong inside; and what it is held to. */
const LINES = [
  { label: "used", colour: "#0072b2", width: 2 },
  { label: "greatest", colour: "#0072b2", width: 1, dash: [3, 3] },
  { label: "expected 95 %", colour: "#d55e00", width: 1 },
  { label: "50 %", colour: "#009e73", width: 2 },
  { label: "90 %", colour: "#009e73", width: 1, bandTo: 3, shade: "rgb(0 158 115 / .30)" },
  { label: "95 %", colour: "#009e73", width: 1, bandTo: 4, shade: "rgb(0 158 115 / .20)" },
  { label: "99 %", colour: "#009e73", width: 1, bandTo: 5, shade: "rgb(0 158 115 / .10)" },
  { label: "allowed", colour: "#cc79a7", width: 2, dash: [8, 4] },
];

const NOTE = "Numbers at dotted lines are events below; the plain line is now, and the bands before it are what was forecast then. "
  + "Drag to look closer, double-click to look at all.";
const HELD = "The plain line is the moment that is held; the line of use goes on behind it with what came.";

export function show(place, page, name) {
  const url = encodeURIComponent(name);
  let resource = "cpu";
  let span = SPANS[0];
  /** Those of the resource and span that are shown. */
  let forecasts = new Forecasts();
  let history = [];
  /** What the daemon has kept of events and decisions in the span. */
  let kept = [];
  /** What its response time is to stay below, in milliseconds; null where it has no target. */
  let target = null;
  let plot = null;
  let ended = false;

  const head = h("div");
  const words = h("div");
  const happened = h("tbody");
  const moving = mover(name, page);
  const note = h("p", { class: "dim" }, NOTE);
  const picture = h("div", { class: "chart", role: "img", "aria-label": `Past and forecast of ${name}` });
  const trouble = h("p", { class: "bad", hidden: true });
  const resources = h("select", { onchange: (event) => { resource = event.target.value; again(); } },
    Object.entries(RESOURCES).map(([value, { title }]) => h("option", { value }, title)));
  const spans = h("select", { onchange: (event) => {
    span = SPANS[Number(event.target.value)];
    again();
    look();
  } }, SPANS.map(({ text }, index) => h("option", { value: index }, text)));
  place.append(
    h("section", {}, h("h2", {}, h("span", { class: `dot ${hue(name)}` }), name, goesOn()), head, trouble, moving.place),
    h("section", {}, h("h2", {}, "Demand"), h("form", { class: "line", onsubmit: (event) => event.preventDefault() },
      h("label", {}, "Resource", resources), h("label", {}, "Back and ahead", spans)), picture, note),
    h("div", { class: "columns" },
      h("section", {}, h("h2", {}, "Why", goesOn()), words),
      h("section", {}, h("h2", {}, "What if", goesOn()), whatIf(name, page)),
      h("section", {}, h("h2", {}, "Events"), h("div", { class: "scroll log", tabindex: "0", role: "region", "aria-label": "Events of this app" },
        h("table", {}, h("thead", {}, h("tr", {}, ["Mark", "Time", "Kind", "What happened"].map((text) => h("th", { scope: "col" }, text)))), happened)))),
  );

  const failed = (error) => {
    trouble.hidden = false;
    say(trouble, error.message);
  };
  const explained = poll(`/v1/apps/${url}`, EXPLAIN_EVERY_MS, (told) => {
    trouble.hidden = true;
    target = told.rules.response_time_max_ms ?? null;
    explain(told);
    moving.show(told.rules);
  }, failed);
  /** Whose the answer is that is waited for: what is shown may be chosen anew meanwhile. */
  let awaiting = null;
  const told = poll(() => {
    awaiting = { resource, forecasts };
    return `/v1/forecast/${url}?resource=${resource}&horizon_seconds=${span.ahead}`;
  }, FORECAST_EVERY_MS, (answer) => {
    const found = answer.resources.find((one) => one.resource === awaiting.resource);
    if (found) awaiting.forecasts.add(clockNow() / 1000, found.course);
    draw();
  }, () => {});
  let timer = null;
  /** Counts what was asked for: an answer to something before that is nobody's any more. */
  let asked = 0;
  /** So for the span whose events are read. */
  let spanned = 0;
  let recalled = null;
  /** Events of this app that are listed and marked, in the order of time, and what they were brought together of. */
  let listed = [];
  let gathered = {};

  async function again() {
    clearTimeout(timer);
    const own = ++asked;
    forecasts = new Forecasts();
    history = [];
    plot?.end();
    plot = null;
    fill(picture);
    const { title, format } = RESOURCES[resource];
    const made = await chart(picture, { title, lines: LINES, format });
    if (ended || own !== asked) return made.end();
    plot = made;
    await remember();
    draw();
  }

  /** What the daemon keeps, where the page has not seen enough itself. */
  async function remember() {
    clearTimeout(timer);
    const own = ++asked;
    const live = RESOURCES[resource].live && span.back === 0;
    if (live || ended) return;
    try {
      const since = clockNow() - (span.back || 600) * 1000;
      const { kept: bound } = RESOURCES[resource];
      const read = (series) => get(`/v1/history/${url}/${series}?since_unix_ms=${since}&limit=2000`);
      const [used, allowed] = await Promise.all([read(resource), bound ? read(bound) : { rows: [] }]);
      if (ended || own !== asked) return;
      const bounds = new Map(allowed.rows.map((row) => [row.time_unix_ms, row.mean]));
      history = used.rows.map((row) => ({ ...row, allowed: bounds.get(row.time_unix_ms) }));
      draw();
    } catch (error) {
      if (ended || own !== asked) return;
      failed(error);
    }
    if (!ended) timer = setTimeout(remember, FORECAST_EVERY_MS);
  }

  /** Reads the events of another span. */
  function look() {
    spanned += 1;
    kept = [];
    recall();
  }

  /** Reads what the daemon has kept of events since the span begins, or since what was read last. */
  async function recall() {
    clearTimeout(recalled);
    const of = spanned;
    const last = kept.at(-1)?.time_unix_ms;
    const begin = span.back ? clockNow() - span.back * 1000 : 0;
    const since = Math.max(begin, last === undefined ? 0 : last - LATE_MS);
    const limit = span.back || last !== undefined ? EVENTS_MAX : LATEST_EVENTS;
    try {
      const { events } = await get(`/v1/events?app=${url}&limit=${limit}&since_unix_ms=${Math.floor(since)}`);
      if (ended || of !== spanned) return;
      kept = merged(kept, events, EVENTS_MAX).filter((event) => event.time_unix_ms >= begin);
      draw();
    } catch (error) {
      if (ended || of !== spanned) return;
      failed(error);
    }
    if (!ended) recalled = setTimeout(recall, EVENTS_EVERY_MS);
  }

  /** The time by the daemon's clock, in milliseconds since 1970. */
  function clockNow() {
    return page.tick?.status.time_unix_ms ?? Date.now();
  }

  function draw() {
    if (!page.tick) return;
    gather();
    if (!plot) return;
    const now = (page.frame?.time ?? page.tick.status.time_unix_ms) / 1000;
    const forecast = forecasts.at(now, FORECAST_OLD_SECONDS);
    // One that was told just now is drawn from now on, one that is remembered from where it began.
    const from = page.frame && forecast ? forecast.time : now;
    plot.set(together(past(page.frame ? Infinity : now), forecast?.course ?? [], from), {
      now, marks: listed.map((event) => ({ time: event.time_unix_ms / 1000 })),
    });
    say(note, page.frame ? `${HELD} ${forecast ? "The bands behind it are what was forecast then." : "The page has no forecast of that moment."}` : NOTE);
  }

  /** Brings both sides of the events together where one of them changed, and lists them, the latest first. */
  function gather() {
    const { events } = page.past;
    if (gathered.kept === kept && gathered.last === events.at(-1)) return;
    gathered = { kept, last: events.at(-1) };
    listed = merged(kept, events.filter((event) => event.app === name), EVENTS_MAX);
    const rows = lines([...listed].reverse());
    rows.forEach((row, index) => {
      row.children[2].remove();
      row.dataset.key = `${listed[listed.length - 1 - index].time_unix_ms} ${row.textContent}`;
      row.prepend(h("td", { class: "number" }, listed.length - index));
    });
    settle(happened, rows);
  }

  /** Rows of what was, up to a time in seconds. */
  function past(until) {
    const { live, expected, bands, allowed } = RESOURCES[resource];
    const bound = resource === "response_time" ? target : null;
    if (live && span.back === 0) {
      const seen = (series) => (series ? page.past.series(name, series)[1] : []);
      const [times, values] = page.past.series(name, live);
      const [wanted, most] = [seen(expected), seen(allowed)];
      const banded = Object.entries(bands ?? {}).map(([column, series]) => [column, seen(series)]);
      return times.map((time, index) => ({
        time, mean: values[index], expected: wanted[index], allowed: most[index] ?? bound,
        ...Object.fromEntries(banded.map(([column, all]) => [column, all[index]])),
      })).filter(({ time }) => time <= until);
    }
    return history.map((row) => ({ time: row.time_unix_ms / 1000, mean: row.mean, greatest: row.max, expected: row.demand_q95, allowed: row.allowed ?? bound }));
  }

  function explain(told) {
    const { app, rules } = told;
    const { usage, slice, demand } = app;
    settle(head, facts([
      ["Class", app.class], ["State", app.ending ? `${app.state}: ${app.ending}` : app.state], ["Bound to", rules.binding],
      ["CPUs used", cores(usage.cpu_cores)], ["Needed (95 %)", cores(demand?.cpu.q95)], ["CPUs", slice.cpus ?? NONE],
      ["Of them its own", app.reason?.exclusive_cpus || "none"], ["Waits for a CPU", percent(usage.cpu_stalled)],
      ["Memory", bytes(usage.memory_bytes)], ["Memory kept", bytes(slice.memory_min_bytes ?? slice.memory_low_bytes)],
      ["Block devices", rate(usage.io_bytes_per_second)], ["Response", target === null ? milliseconds(usage.response_time_ms)
        : `${milliseconds(usage.response_time_ms)}, at most ${milliseconds(target)}`],
    ]));
    const { reason } = app;
    settle(words,
      reason ? h("p", {}, `Planned for ${cores(reason.cpu_demand_cores)} CPUs; with ${rules.headroom_percent} % headroom `
        + `${cores(reason.cpu_wanted_cores)}${reason.cpu_extra_cores > 0 ? `, and ${cores(reason.cpu_extra_cores)} beyond the forecast` : ""}. `
        + `${reason.spills ? "It may also run on the shared CPUs, ahead of others. " : ""}`
        + `${reason.held_cpus ? `${reason.held_cpus} CPUs are kept until ${seconds(rules.hold_seconds)} have passed.` : ""}`) : h("p", {}, "It does not run, so nothing is planned."),
      [...told.offload, ...told.external_forecasts, ...told.shortfalls].map((line) => h("p", {}, line)),
      told.models ? table("Models, by their loss on peaks", ["Model", "#Ahead", "#Loss", "Answers"],
        told.models.cpu.filter((one) => one.pinball !== null).slice(0, 12).map((one) =>
          [one.model, seconds(one.horizon_seconds), one.pinball.toPrecision(3), one.used ? "yes" : ""])) : null,
      told.devices.length ? table("Block devices", ["Device", "#Critical", "#Batch may", "Shared by"],
        told.devices.map((device) => [device.name, percent(device.critical), percent(device.room), String(device.sharers)])) : null);
  }

  again();
  look();
  return {
    update: draw,
    end() {
      ended = true;
      clearTimeout(timer);
      clearTimeout(recalled);
      moving.end();
      explained();
      told();
      plot?.end();
    },
  };
}

/** Asks what would be done if a key were set, and sets it only then. */
function whatIf(name, page) {
  const key = h("input", { list: "keys", placeholder: "floor.cpu", required: true, size: 14 });
  const value = h("input", { placeholder: "2", required: true, size: 10 });
  const answer = h("div", { "aria-live": "polite" });
  const assignment = () => [{ key: key.value.trim(), value: value.value.trim() }];
  const form = h("form", { class: "line", onsubmit: async (event) => {
    event.preventDefault();
    const set = assignment();
    try {
      const plan = await change("POST", "/v1/plan", { changes: [{ app: name, set }] });
      fill(answer,
        plan.actions.length ? h("ul", {}, plan.actions.map((action) => h("li", {}, action.app ? `${action.app}: ` : "", action.what)))
          : h("p", {}, "Nothing would change now."),
        plan.shortfalls.map((line) => h("p", { class: "bad" }, line)),
        h("button", { id: "set", onclick: () => page.act(`Set ${set[0].key} of ${name}?`,
          `It is ${set[0].value} until the configuration is read again.`,
          () => change("PATCH", `/v1/apps/${encodeURIComponent(name)}`, { set })) }, "Set it…"));
    } catch (error) {
      fill(answer, h("p", { class: "bad" }, error.message));
    }
  } }, h("label", {}, "Key", key), h("label", {}, "Value", value), h("button", {}, "What would change?"),
  h("datalist", { id: "keys" }, ["class", "floor.cpu", "floor.memory", "ceiling.cpu", "ceiling.memory", "headroom"].map((one) => h("option", { value: one }))));
  return h("div", {}, form, answer, h("p", { class: "dim" }, "Asking changes nothing; it is set only when you say so."));
}
