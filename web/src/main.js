// The page: what is shown, how keys and links change it, and the stream that keeps it live.

import { follow, get, takeToken, Trouble } from "./ask.js";
import { fill, h, now, say } from "./dom.js";
import { clock, count, percent, seconds } from "./format.js";
import { Past } from "./past.js";
import { confirmed } from "./dialog.js";
import * as apps from "./views/apps.js";
import * as app from "./views/app.js";
import * as events from "./views/events.js";
import * as fleet from "./views/fleet.js";
import * as host from "./views/host.js";
import * as offload from "./views/offload.js";
import * as shadows from "./views/shadows.js";
import * as updates from "./views/updates.js";

/** In the order of their keys; `goesBack`: what it shows is of the moment at which the page is held. */
const VIEWS = [
  { path: "host", title: "Host", view: host, goesBack: true },
  { path: "apps", title: "Apps", view: apps, goesBack: true },
  { path: "shadows", title: "Shadows", view: shadows },
  { path: "offload", title: "Offload", view: offload },
  { path: "updates", title: "Updates", view: updates },
  { path: "fleet", title: "Fleet", view: fleet },
  { path: "events", title: "Events", view: events },
];

/** How often the page is told, in milliseconds: what one can choose. */
const PACES = [[100, "10 a second"], [250, "4 a second"], [1000, "1 a second"], [5000, "every 5 s"]];
/** How long to wait before a stream that ended is asked for again. */
const RETRY_MS = 1000;
/** Where the space bar holds the page; elsewhere it presses a button, types, or scrolls what is scrolled. */
const SPACE_ON = "body, main, a";
const THEMES = ["as the system", "light", "dark"];

const place = document.getElementById("view");
/** What the views are given. */
const page = {
  past: new Past(),
  /** The latest message, or null before the first. */
  tick: null,
  /** The moment that is shown, or null for the present. */
  frame: null,
  /** Processor time of the agent, in CPUs, over the last messages. */
  agentCores: null,
  act,
  go: (path) => { location.hash = `#${path}`; },
};
let shown = null;
/** The view that is shown, of those above. */
let viewed = VIEWS[0];
let following = null;
let pace = Number(sessionStorage.getItem("forebay-pace")) || 250;
let drawn = false;

/** Asks whether to do something, does it, and says what came of it; what is not possible is only told. */
async function act(title, text, doing, possible = true) {
  if (!(await confirmed(title, text, possible))) return;
  line("done", "");
  try {
    const done = await doing();
    trouble("");
    // It stays until the reader acts again or looks elsewhere.
    line("done", (done.messages ?? ["Done."]).join(" "));
  } catch (error) {
    trouble(error.message);
  }
}

function trouble(text) {
  line("trouble", text);
}

/** Sets a line above the view; without a text there is none. */
function line(id, text) {
  const element = document.getElementById(id);
  element.hidden = !text;
  say(element, text);
}

/** Shows the view that the address names. */
function route() {
  const [path, name] = decodeURIComponent(location.hash.slice(1)).split(/\/(.*)/s);
  const named = VIEWS.find((one) => one.path === path) ?? VIEWS[0];
  const view = named.path === "apps" && name ? app : named.view;
  shown?.end?.();
  viewed = named;
  line("done", "");
  fill(place);
  shown = view.show(place, page, name) ?? null;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${named.path}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name ?? named.title} – Forebay`;
  draw();
}

/** Draws once for each frame of the screen, however many messages came. */
function draw() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    if (!page.tick) return;
    header();
    shown?.update?.();
  });
}

function header() {
  const { status } = page.tick;
  const paused = document.getElementById("paused");
  say(paused, status.paused ? "Only observing" : "Acting");
  paused.className = status.paused ? "bad" : "good";
  say(document.getElementById("pause"), status.paused ? "Act again…" : "Only observe…");
  const time = document.getElementById("time");
  say(time, page.frame ? `shown: ${clock(page.frame.time)}` : clock(status.time_unix_ms));
  const scrub = document.getElementById("scrub");
  scrub.max = String(Math.max(0, page.past.frames.length - 1));
  // What is held is forgotten at last, and stays shown; those before it are forgotten earlier, which moves its place.
  scrub.value = page.frame ? String(Math.max(0, page.past.frames.indexOf(page.frame))) : scrub.max;
  scrub.setAttribute("aria-valuetext", page.frame ? clock(page.frame.time) : "now");
  document.body.classList.toggle("held", page.frame !== null);
  line("held", page.frame ? `Held at ${clock(page.frame.time)}. ${viewed.goesBack
    ? "What is marked “now” goes on." : "This view does not go back: all of it is of now."}` : "");
}

/** Shows the moment that is given, or the present. */
function hold(frame) {
  page.frame = frame;
  say(document.getElementById("hold"), frame ? "Live" : "Hold");
  draw();
}

function controls() {
  const paces = h("select", { "aria-label": "How often the page changes", onchange: (event) => {
    pace = Number(event.target.value);
    sessionStorage.setItem("forebay-pace", String(pace));
    following?.abort();
  } }, PACES.map(([value, text]) => h("option", { value, selected: value === pace }, text)));
  const theme = h("select", { "aria-label": "Colours", onchange: (event) => setTheme(event.target.value) },
    THEMES.map((text) => h("option", { value: text, selected: text === localStorage.getItem("forebay-theme") }, text)));
  const scrub = h("input", { type: "range", id: "scrub", min: 0, max: 0, value: 0,
    "aria-label": "Scrub back through what the page has seen", oninput: () => {
      const index = Number(scrub.value);
      hold(index >= page.past.frames.length - 1 ? null : page.past.frames[index]);
    } });
  const holds = h("button", { id: "hold", title: "Key: space", onclick: () => hold(page.frame ? null : page.past.frames.at(-1) ?? null) }, "Hold");
  const pause = h("button", { id: "pause", onclick: () => {
    const paused = page.tick?.status.paused;
    act(paused ? "Act again?" : "Only observe?", paused
      ? "From the next period on Forebay brings every slice to its plan again."
      : "Every slice stays as it is. Nothing is changed, moved or started until you let Forebay act again; fronts go on and fail over.",
    () => change(paused ? "resume" : "pause"));
  } }, "Only observe…");
  fill(document.getElementById("controls"), h("span", { id: "paused" }, "…"), now(), pause,
    h("span", { id: "time", class: "dim" }), scrub, holds, paces, theme);
}

async function change(what) {
  const { change: send } = await import("./ask.js");
  return send("POST", `/v1/${what}`);
}

function setTheme(theme) {
  localStorage.setItem("forebay-theme", theme);
  if (theme === THEMES[0]) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  if (page.tick) route();
}

function keys(event) {
  if (document.getElementById("dialog").open || event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const view = VIEWS[Number(event.key) - 1];
  if (view) location.hash = `#${view.path}`;
  else if (event.key === "/") document.querySelector("input[type=search]")?.focus();
  else if (event.key === " " && event.target.matches(SPACE_ON)) document.getElementById("hold").click();
  else return;
  event.preventDefault();
}

/** Keeps the page live: a stream that ends is asked for again, whatever the reason. */
async function live() {
  let before = null;
  for (;;) {
    following = new AbortController();
    try {
      await follow(`/v1/stream?every_ms=${pace}`, (tick) => {
        page.agentCores = before ? use(before, tick) : page.agentCores;
        if (!before || tick.status.uptime_seconds - before.status.uptime_seconds >= 1
          || tick.status.uptime_seconds < before.status.uptime_seconds) before = tick;
        page.tick = tick;
        page.past.add(tick, page.agentCores);
        trouble("");
        draw();
      }, following.signal);
      trouble("The daemon ended the stream. Looking for it again…");
    } catch (error) {
      if (!following.signal.aborted) trouble(error instanceof Trouble ? error.message : `The stream broke: ${error.message}`);
    }
    const changedPace = following.signal.aborted;
    if (!changedPace) await new Promise((resume) => setTimeout(resume, RETRY_MS));
  }
}

function use(before, tick) {
  const elapsed = tick.status.uptime_seconds - before.status.uptime_seconds;
  const used = tick.status.agent.cpu_seconds - before.status.agent.cpu_seconds;
  return elapsed > 0.5 && used >= 0 ? used / elapsed : page.agentCores;
}

function begin() {
  takeToken();
  const theme = localStorage.getItem("forebay-theme");
  if (theme && theme !== THEMES[0]) document.documentElement.dataset.theme = theme;
  fill(document.getElementById("views"), VIEWS.map((view, index) =>
    h("a", { href: `#${view.path}`, title: `Key: ${index + 1}` }, view.title)));
  controls();
  addEventListener("hashchange", () => {
    // A new address of a dashboard that was started again.
    takeToken();
    route();
  });
  addEventListener("keydown", keys);
  route();
  get("/v1/events?limit=200").then(({ events: list }) => {
    page.past.events.unshift(...list);
    draw();
  }, (error) => trouble(error.message));
  live();
  setInterval(() => {
    const { tick } = page;
    if (!tick) return;
    const { status } = tick;
    say(document.getElementById("footer"), `${page.frame ? "Now: " : ""}Forebay ${status.version}, up ${seconds(status.uptime_seconds)}, `
      + `${count(status.apps_running)} of ${count(status.apps)} apps run; the agent takes ${percent(page.agentCores)} of a CPU`);
  }, 2000);
}

begin();
