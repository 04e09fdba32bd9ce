// Fronts: who serves, who would take over, how far behind it is, and what changed.

import { change } from "../ask.js";
import { facts, fill, h, table } from "../dom.js";
import { bytes, count, milliseconds } from "../format.js";
import { poll } from "../poll.js";
import { named } from "../slices.js";

const EVERY_MS = 1000;

export function show(place, page) {
  const list = h("div", { class: "columns" });
  const note = h("p", { class: "dim" }, "Asking…");
  place.append(note, list);
  let before = "";
  const end = poll("/v1/fronts", EVERY_MS, ({ fronts }) => {
    // What a reader selects or is about to press stays as long as nothing changed.
    const now = JSON.stringify(fronts);
    if (now === before) return;
    before = now;
    note.hidden = fronts.length > 0;
    fill(note, "No front is configured: a `[fronts.NAME]` section keeps a shadow ready to take over.");
    fill(list, fronts.map((front) => card(front, page)));
  }, (error) => {
    before = "";
    note.hidden = false;
    fill(note, error.message);
  });
  return { end };
}

function card(front, page) {
  const warm = front.stage === "warm";
  const url = `/v1/fronts/${encodeURIComponent(front.front)}`;
  const post = (path, title, text) => () =>
    page.act(title, text, async () => {
      const done = await change("POST", path);
      return done.messages ? done : { messages: [`${done.to} serves now, epoch ${done.epoch}: ${done.steps.map((step) =>
        `${step.step} ${milliseconds(step.ms)}`).join(", ")}.`] };
    });
  const counts = front.counts;
  return h("section", { "data-front": front.front },
    h("h2", {}, front.front, " ", h("span", { class: warm ? "good" : "bad" }, front.stage ?? "unknown")),
    facts([
      ["Mode", front.mode], ["Listens on", front.listen.join(" ")], ["Serves", front.primary ? named(front.primary) : "nobody"],
      ["Would take over", front.standby ? named(front.standby) : "nobody"], ["Epoch", count(front.epoch)],
    ]),
    front.trouble ? h("p", { class: "bad" }, front.trouble) : null,
    front.outdated ? h("p", { class: "bad" }, front.outdated) : null,
    table("Instances", ["App", "Address", "State", "#Behind"], front.instances.map((one) => [
      named(one.app), one.elsewhere ? `${one.address} on ${one.elsewhere}` : one.address,
      h("pre", { class: one.ready ? "good" : "bad" }, one.detached ? "detached" : one.trouble ?? (one.ready ? "ready" : "not ready")),
      one.lag_bytes !== null && one.lag_bytes !== undefined ? bytes(one.lag_bytes) : milliseconds(one.lag_ms),
    ])),
    counts ? facts([
      ["Requests", count(counts.requests)], ["Held", count(counts.held)], ["Sent again", count(counts.replayed)],
      ["Failed", count(counts.failed)], ["Outcome unknown", count(counts.unknown)], ["Connections", count(counts.open)],
    ]) : null,
    h("div", { class: "buttons" },
      h("button", { disabled: !front.standby, onclick: post(`${url}/handover`, `Hand ${front.front} over?`,
        `${front.primary} finishes what it does, new requests wait, then ${front.standby} serves. Nothing fails.`) }, "Hand over…"),
      h("button", { disabled: !front.standby, onclick: post(`${url}/promote`, `Promote ${front.standby}?`,
        `${front.primary} is frozen and ended at once. Requests under way that may not be sent again get an error.`) }, "Promote at once…")),
    front.changes.length ? [h("h3", {}, "Changes"), h("ul", { class: "log" }, front.changes.slice(-8).reverse().map((line) => h("li", {}, line)))] : null,
    front.failures.length ? [h("h3", {}, "What did not work"), h("ul", { class: "log" }, front.failures.slice(-8).reverse().map((line) => h("li", { class: "bad" }, line)))] : null);
}
