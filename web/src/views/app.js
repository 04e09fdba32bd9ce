// One app: what it used, what it was expected to use, what it will need, and why its slice is what it is.

import { change, get } from "../ask.js";
import { chart } from "../charts.js";
import { facts, fill, h, say, table } from "../dom.js";
import { bytes, cores, milliseconds, NONE, percent, rate, seconds } from "../format.js";
import { poll } from "../poll.js";
import { hue } from "../slices.js";
import { lines } from "./events.js";

const FORECAST_EVERY_MS = 5000;
const EXPLAIN_EVERY_MS = 2000;
/** Events that are marked in the chart. */
const MARKS_MAX = 12;

/** What can be looked at, how its numbers read, and which series of what the page saw are its use, what was expected and what the slice allowed. */
const RESOURCES = {
  cpu: { title: "Processor time", format: (value) => `${cores(value)}`, live: "cpu", expected: "q95", allowed: "cpus" },
  memory: { title: "Memory", format: bytes, live: "memory", expected: "memory95", allowed: "bytes" },
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

/** The bands of the forecast, light outside, strong inside; and what it is held to. */
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

export function show(place, page, name) {
  const url = encodeURIComponent(name);
  let resource = "cpu";
  let span = SPANS[0];
  let forecast = null;
  let history = [];
  /** What its response time is to stay below, in milliseconds; null where it has no target. */
  let target = null;
  let plot = null;
  let ended = false;

  const head = h("div");
  const words = h("div");
  const happened = h("tbody");
  const picture = h("div", { class: "chart", role: "img", "aria-label": `Past and forecast of ${name}` });
  const trouble = h("p", { class: "bad", hidden: true });
  const resources = h("select", { onchange: (event) => { resource = event.target.value; again(); } },
    Object.entries(RESOURCES).map(([value, { title }]) => h("option", { value }, title)));
  const spans = h("select", { onchange: (event) => { span = SPANS[Number(event.target.value)]; again(); } },
    SPANS.map(({ text }, index) => h("option", { value: index }, text)));
  place.append(
    h("section", {}, h("h2", {}, h("span", { class: `dot ${hue(name)}` }), name), head, trouble),
    h("section", {}, h("h2", {}, "Demand"), h("form", { class: "line", onsubmit: (event) => event.preventDefault() },
      h("label", {}, "Resource", resources), h("label", {}, "Back and ahead", spans)), picture,
      h("p", { class: "dim" }, "Numbers at dotted lines are events below; the plain line is now. Drag to look closer, double-click to look at all.")),
    h("div", { class: "columns" },
      h("section", {}, h("h2", {}, "Why"), words),
      h("section", {}, h("h2", {}, "What if"), whatIf(name, page)),
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
  }, failed);
  const told = poll(() => `/v1/forecast/${url}?resource=${resource}&horizon_seconds=${span.ahead}`, FORECAST_EVERY_MS,
    (answer) => {
      forecast = answer.resources.find((one) => one.resource === resource) ?? null;
      draw();
    }, () => { forecast = null; });
  let timer = null;
  /** Counts what was asked for: an answer to something before that is nobody's any more. */
  let asked = 0;

  async function again() {
    clearTimeout(timer);
    const own = ++asked;
    forecast = null;
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
      const since = Date.now() - (span.back || 600) * 1000;
      const rows = await get(`/v1/history/${url}/${resource}?since_unix_ms=${since}&limit=2000`);
      if (ended || own !== asked) return;
      history = rows.rows;
      draw();
    } catch (error) {
      if (ended || own !== asked) return;
      failed(error);
    }
    if (!ended) timer = setTimeout(remember, FORECAST_EVERY_MS);
  }

  function draw() {
    if (!plot || !page.tick) return;
    const now = (page.frame?.time ?? page.tick.status.time_unix_ms) / 1000;
    const own = page.past.events.filter((event) => event.app === name).slice(-MARKS_MAX);
    plot.set(together(past(now), forecast?.course ?? [], now), {
      now, marks: own.map((event) => ({ time: event.time_unix_ms / 1000 })),
    });
    const rows = lines([...own].reverse());
    rows.forEach((row, index) => {
      row.children[2].remove();
      row.prepend(h("td", { class: "number" }, own.length - index));
    });
    fill(happened, rows);
  }

  /** Rows of `[time, mean, greatest, expected, allowed]`; what slices allowed is what the page saw of them. */
  function past(now) {
    const { live, expected, allowed } = RESOURCES[resource];
    const bound = resource === "response_time" ? target : null;
    if (live && span.back === 0) {
      const [times, values] = page.past.series(name, live);
      const wanted = expected ? page.past.series(name, expected)[1] : [];
      const most = allowed ? page.past.series(name, allowed)[1] : [];
      return times.map((time, index) => [time, values[index], null, wanted[index] ?? null, most[index] ?? bound])
        .filter(([time]) => time <= now);
    }
    return history.map((row) => [row.time_unix_ms / 1000, row.mean, row.max, row.demand_q95, bound]);
  }

  function explain(told) {
    const { app, rules } = told;
    const { usage, slice, demand } = app;
    fill(head, facts([
      ["Class", app.class], ["State", app.ending ? `${app.state}: ${app.ending}` : app.state], ["Bound to", rules.binding],
      ["CPUs used", cores(usage.cpu_cores)], ["Needed (95 %)", cores(demand?.cpu.q95)], ["CPUs", slice.cpus ?? NONE],
      ["Of them its own", app.reason?.exclusive_cpus || "none"], ["Waits for a CPU", percent(usage.cpu_stalled)],
      ["Memory", bytes(usage.memory_bytes)], ["Memory kept", bytes(slice.memory_min_bytes ?? slice.memory_low_bytes)],
      ["Block devices", rate(usage.io_bytes_per_second)], ["Response", target === null ? milliseconds(usage.response_time_ms)
        : `${milliseconds(usage.response_time_ms)}, at most ${milliseconds(target)}`],
    ]));
    const { reason } = app;
    fill(words,
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
  return {
    update: draw,
    end() {
      ended = true;
      clearTimeout(timer);
      explained();
      told();
      plot?.end();
    },
  };
}

/** The past and the forecast on one axis, as uPlot wants them. */
function together(past, course, now) {
  const data = [[], ...LINES.map(() => [])];
  for (const [time, mean, greatest, expected, allowed] of past) {
    [time, mean, greatest, expected, null, null, null, null, allowed].forEach((value, index) => data[index].push(value));
  }
  const last = past.at(-1)?.[0] ?? -Infinity;
  for (const { seconds: ahead, value } of course) {
    const time = now + ahead;
    if (time <= last) continue;
    [time, null, null, null, value.q50, value.q90, value.q95, value.q99, null].forEach((number, index) => data[index].push(number));
  }
  return data;
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
