// Asks an app to change hosts: first whether it could and what that would take, and begins it only after a question.

import { change } from "./ask.js";
import { h, say, settle } from "./dom.js";
import { poll } from "./poll.js";

const EVERY_MS = 5000;
/** Instead of a host: the one with the most room. */
const AUTO = "auto";

/** What becomes of an app's processes, by the way in which it may move. */
const WAYS = {
  restart: "It is started anew there, with its files as they stood.",
  checkpoint: "Its processes go along, with their memory.",
  handoff: "Its instance there takes over, and its front sends clients to that one.",
};

/** An element for a view of an app; `show(rules)` once its rules are known, `end()` with the view. */
export function mover(name, page) {
  const place = h("div", { class: "mover" });
  const why = h("p", { class: "dim" });
  const hosts = h("select", {});
  const button = h("button", { onclick: ask }, "Move…");
  const form = h("form", { class: "line", hidden: true, onsubmit: (event) => event.preventDefault() }, h("label", {}, "To host", hosts), button);
  place.append(form, why);
  /** How it may move; null where it is pinned, undefined before that is known. */
  let way;
  /** This host and all of the fleet, or why there is none. */
  let here = null;
  let known = null;
  let alone = null;

  function draw() {
    const others = here !== null && known ? known.filter(({ host }) => host !== here) : null;
    const reason = way === null ? "It stays on this host: it is pinned, as long as its configuration has no `move`."
      : alone ?? (others?.length === 0 ? "It can move to no other host: none is there." : null);
    const can = way !== undefined && others !== null && reason === null;
    form.hidden = !can;
    why.hidden = !reason;
    say(why, reason ?? "");
    if (can) {
      settle(hosts, h("option", { value: AUTO, "data-key": AUTO }, "auto: the one with the most room"), others.map(({ host, cordoned }) =>
        h("option", { value: host, "data-key": `host ${host}` }, cordoned ? `${host} (cordoned)` : host)));
    }
  }

  const ends = [
    poll("/v1/fleet", EVERY_MS, ({ host }) => {
      here = host;
      draw();
    }, () => {}),
    poll("/v1/fleet/hosts", EVERY_MS, (fleet) => {
      alone = null;
      known = fleet.hosts;
      draw();
    }, (error) => {
      alone = `It can move to no other host: ${error.message}`;
      draw();
    }),
  ];

  async function ask() {
    const to = hosts.value;
    button.disabled = true;
    const found = await change("POST", "/v1/moves", { app: name, to, dry_run: true })
      .then(({ messages }) => ({ messages, possible: true }), (error) => ({ messages: [error.message], possible: false }));
    button.disabled = false;
    // Who looks at something else by now asked for nothing more.
    if (!place.isConnected) return;
    const text = [
      h("p", {}, way, ": ", WAYS[way] ?? "see `move` in its configuration."),
      found.messages.map((line) => h("p", { class: found.possible ? null : "bad" }, line)),
      found.possible && to === AUTO ? h("p", { class: "dim" }, "The host is looked for once more when it begins, and may be another by then.") : null,
    ];
    page.act(found.possible ? `Move ${name} to ${to === AUTO ? "the host with the most room" : to}?` : `${name} cannot move there now`, text, async () => {
      const begun = await change("POST", "/v1/moves", { app: name, to, dry_run: false });
      return { messages: [`${begun.messages.join(" ")}; the view Offload shows how far it is.`] };
    }, found.possible);
  }

  return {
    place,
    show(rules) {
      way = rules.moves_by === undefined ? "by its configuration" : rules.moves_by;
      draw();
    },
    end: () => ends.forEach((end) => end()),
  };
}
