// Updates of the operating system: the one under way, and what clients saw of those that are over.

import { change } from "../ask.js";
import { facts, fill, h, table } from "../dom.js";
import { bytes, clock, count, milliseconds, NONE, seconds } from "../format.js";
import { poll } from "../poll.js";
import { named } from "../slices.js";

const EVERY_MS = 1000;
/** Those that are over: the latest. */
const RECEIPTS_MAX = 10;
/** Where an update goes through, in order; see `forebay update status`. */
const STAGES = ["planned", "locked", "isolated", "leaving", "telling", "synced", "updating", "rehearsing", "reboot_pending",
  "departing", "reviving", "undoing", "restoring", "verifying", "returning", "closing"];
/** What may be asked of an update, each up to and with a stage, in their order: the daemon takes nothing else, and nothing after the last. */
const ASKS = [
  { until: "synced", path: "abort", button: "Call off…", title: (number) => `Call update ${number} off?`,
    text: "Its command has not begun: nothing is changed, and the apps go on as they were." },
  { until: "updating", path: "abort", button: "Call off…", title: (number) => `End the command of update ${number}?`,
    text: "It is asked to end. What it did is undone where the update says how; a package manager at work is left alone." },
  { until: "departing", path: "resume", button: "Go on without the reboot…", title: (number) => `Have update ${number} go on without the reboot?`,
    text: "The host does not begin anew: the kernel stays the one that runs, and only programs are replaced." },
];

/** What came of a rehearsal, in words for people. */
const VERDICTS = { passed: "passed its rehearsal", failed: "did not pass its rehearsal", impossible: "cannot be rehearsed here" };

export function show(place, page) {
  const now = h("section", {}, h("h2", {}, "Under way"), h("p", { class: "dim" }, "Asking…"));
  const past = h("div", { class: "columns" });
  place.append(now, past);
  let before = "";
  const end = poll("/v1/update", EVERY_MS, (told) => {
    const text = JSON.stringify(told);
    if (text === before) return;
    before = text;
    fill(now, now.firstChild, told.trouble ? h("p", { class: "bad" }, told.trouble) : null,
      told.current ? current(told.current, page)
        : h("p", { class: "dim" }, "None. `forebay update plan -- COMMAND` says what one would do, `forebay update run -- COMMAND` begins it."),
      told.outdated.length ? h("p", {}, "Run code that was replaced since they began: ", told.outdated.map((app) => [named(app), " "])) : null);
    fill(past, told.history.slice(-RECEIPTS_MAX).reverse().map(receipt));
  }, (error) => {
    before = "";
    fill(now, now.firstChild, h("p", { class: "dim" }, error.message));
  });
  return { end };
}

function current(update, page) {
  const at = STAGES.indexOf(update.stage);
  return [
    facts([["Number", count(update.number)], ["Command", update.command.join(" ")], ["Asked for", clock(update.began_unix_ms)]]),
    h("ol", { class: "stages" }, STAGES.map((stage, index) => h("li", {
      class: index < at ? "good" : index > at ? "dim" : null, "aria-current": index === at ? "step" : null,
    }, stage.replaceAll("_", " ")))),
    h("p", {}, update.next),
    update.held ? h("p", { class: "bad" }, update.held) : null,
    rehearsal(update.rehearsal),
    update.troubles.map((line) => h("p", { class: "bad" }, line)),
    update.output ? h("p", { class: "dim" }, `It writes to ${update.output}`) : null,
    ask(update, at, page),
  ];
}

/** The button for what the daemon takes at a stage, by its place in order; none where it goes on by itself, or is not known. */
function ask(update, at, page) {
  const one = ASKS.find(({ until }) => at <= STAGES.indexOf(until));
  if (at < 0 || !one) return null;
  return h("div", { class: "buttons" }, h("button", { onclick: () => page.act(one.title(update.number), one.text,
    () => change("POST", `/v1/update/${one.path}`)) }, one.button));
}

/** What came of trying the kernel out in a virtual machine, once it was. */
function rehearsal(found) {
  if (!found) return null;
  const words = VERDICTS[found.verdict] ?? found.verdict;
  const tone = { passed: "good", failed: "bad" }[found.verdict] ?? null;
  return [
    h("p", { class: tone }, `Kernel ${found.kernel} ${words}, in ${seconds(found.seconds)}${found.why ? `: ${found.why}` : "."}`),
    found.console && found.verdict !== "passed" ? h("p", { class: "dim" }, `What the machine said is in ${found.console}`) : null,
  ];
}

function receipt(one) {
  return h("section", {},
    h("h2", {}, `Update ${one.number} `, h("span", { class: one.outcome === "committed" ? "good" : "bad" }, one.outcome.replaceAll("_", " "))),
    facts([["Command", one.command.join(" ")], ["Asked for", clock(one.began_unix_ms)],
      ["Took", seconds((one.ended_unix_ms - one.began_unix_ms) / 1000)],
      ["Stood still for others", one.held_times ? `${count(one.held_times)} times, ${seconds(one.held_ms / 1000)}` : "never"]]),
    rehearsal(one.rehearsal),
    one.troubles.map((line) => h("p", { class: "bad" }, line)),
    one.fronts.length ? table("What clients saw", ["Front", "#p99 before", "#p99 meanwhile", "#Slowest", "#Held", "#Failed", "#Unknown", "#Pause"],
      one.fronts.map((front) => [front.front, milliseconds(front.before.p99_ms), milliseconds(front.during.p99_ms),
        milliseconds(front.during.max_ms), count(front.held), count(front.failed), count(front.unknown), milliseconds(front.pause_ms)])) : null,
    one.clients?.length ? table("Connections of clients over the boot; not written down, and closed, are those over TLS, with HTTP/2, or not at rest",
      ["Front", "#Written down", "#Went on", "#Not written down", "#Pause"], one.clients.map((front) =>
        [front.front, count(front.kept), count(front.back), count(front.left), milliseconds(front.pause_ms)])) : null,
    one.apps.length ? table("What was done, beside what was planned", ["App", "Rung", "Restarted", "Own CPUs", "#Memory kept", "#Planned pause (p99)", "#Stood for"],
      one.apps.map((app) => [named(app.app), app.rung, app.restarted ? "yes" : "no", app.exclusive_cpus ?? NONE,
        bytes(app.memory_floor_bytes), milliseconds(app.pause_p99_ms), milliseconds(app.pause_ms)])) : null);
}
