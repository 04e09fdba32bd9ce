// Moves of applications between hosts: what left from here and how far it is, what is on its way here.

import { change } from "./ask.js";
import { fill, h, settle, table } from "./dom.js";
import { bytes, clock, milliseconds, percent, seconds } from "./format.js";
import { poll } from "./poll.js";
import { bar, named } from "./slices.js";

const EVERY_MS = 1000;

/** Shows them in `section`, below its title; gives the end of it. */
export function showMoves(section, page) {
  return poll("/v1/moves", EVERY_MS, (told) => {
    settle(section, section.firstChild, told.trouble ? h("p", { class: "bad" }, told.trouble) : null,
      told.away.length ? table("From here", ["App", "To", "Mode", "Began", "Stage", "Sent", "#Stood still", "Why", "Ask"],
        told.away.map((move) => away(move, page))) : h("p", { class: "dim" }, "Nothing was moved from here."),
      told.coming.length ? table("On their way here", ["App", "From", "Stage", "Why"],
        told.coming.map((one) => [named(one.app), one.from, one.stage, h("pre", {}, one.why ?? "")])) : null);
  }, (error) => fill(section, section.firstChild, h("p", { class: "dim" }, error.message)));
}

function away(move, page) {
  const row = [named(move.app), move.to, move.mode, clock(move.began_unix_ms), move.stage, progress(move),
    milliseconds(move.stood_seconds === null ? null : move.stood_seconds * 1000), h("pre", {}, move.why ?? ""),
    move.over ? "" : h("button", { onclick: () => page.act(`Have ${move.app} stay?`,
      "The move is called off as long as that is possible, and the app goes on here.",
      () => change("POST", `/v1/moves/${encodeURIComponent(move.app)}/cancel`)) }, "Call off…")];
  return Object.assign(row, { key: move.app });
}

/** How much was sent, and what the app has still to fetch where it runs already; what is handed over between two that run sends nothing. */
function progress(move) {
  const took = move.over ? `took ${seconds(move.took_seconds)}` : `${seconds(move.took_seconds)} so far`;
  if (move.total_bytes === 0) return took;
  const share = move.sent_bytes / move.total_bytes;
  const words = `${bytes(move.sent_bytes)} of ${bytes(move.total_bytes)}, ${percent(share)}, `
    + `${move.left_seconds === null ? "" : `${seconds(move.left_seconds)} left, `}${took}`;
  const owes = move.stage === "lending" && typeof move.owed_bytes === "number";
  return h("div", {}, bar(share, null, words), words, owes ? h("div", {}, `${bytes(move.owed_bytes)} of its memory still to come`) : null);
}
