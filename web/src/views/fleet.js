// The hosts that share applications with this one, by the room they will have, and moves between them.

import { change } from "../ask.js";
import { facts, fill, h, table } from "../dom.js";
import { bytes, clock, cores, count, seconds } from "../format.js";
import { showMoves } from "../moves.js";
import { poll } from "../poll.js";
import { bar, named } from "../slices.js";

const EVERY_MS = 2000;

export function show(place, page) {
  const self = h("section", {}, h("h2", {}, "This host in the fleet"), h("p", { class: "dim" }, "Asking…"));
  const hosts = h("section", {}, h("h2", {}, "Hosts"), h("p", { class: "dim" }, "Asking…"));
  const moves = h("section", {}, h("h2", {}, "Moves"), h("p", { class: "dim" }, "Asking…"));
  place.append(self, hosts, moves);
  const title = (section) => section.firstChild;
  // What a reader selects or is about to press stays as long as nothing changed.
  const shown = new Map();
  const changed = (section, told) => {
    const text = JSON.stringify(told);
    const is = shown.get(section) !== text;
    shown.set(section, text);
    return is;
  };
  const failed = (section) => (error) => {
    shown.delete(section);
    fill(section, title(section), h("p", { class: "dim" }, error.message));
  };
  const ends = [
    poll("/v1/fleet", EVERY_MS, (fleet) => {
      if (!changed(self, fleet)) return;
      fill(self, title(self), fleet.lost ? h("p", { class: "bad" }, fleet.lost) : null, facts([
        ["This host", fleet.host], ["Coordinator", fleet.coordinator], ["Hosts", count(fleet.hosts)],
        ["Takes apps", fleet.cordoned ? "no: it is cordoned" : "yes"],
        fleet.lost_since_unix_ms ? ["Coordinator lost since", clock(fleet.lost_since_unix_ms)] : ["Its lease lasts for", seconds(fleet.lease_seconds)],
      ]),
      fleet.apps?.length ? table("Whose apps are", ["App", "Host", "#Epoch", "Moves"],
        fleet.apps.map((app) => [named(app.app), app.owner, app.epoch, app.moves ?? (app.runs ? "" : "given, not begun")])) : null);
    }, failed(self)),
    poll("/v1/fleet/hosts", EVERY_MS, (fleet) => {
      if (!changed(hosts, fleet)) return;
      const free = (host) => host.capacity.cpus - host.needed.cpus;
      const byRoom = [...fleet.hosts].sort((one, other) => free(other) - free(one));
      fill(hosts, title(hosts), byRoom.length ? table("The most room by forecast first; the bar is what is needed of what there is",
        ["Host", "Version", "CPUs", "Memory", "Apps", "State", "Ask"], byRoom.map((host) => row(host, page)))
        : h("p", { class: "dim" }, "No host is there."));
    }, failed(hosts)),
    showMoves(moves, page),
  ];
  return { end: () => ends.forEach((end) => end()) };
}

function row(host, page) {
  const share = (name) => (host.capacity[name] > 0 ? host.needed[name] / host.capacity[name] : 0);
  const what = host.cordoned ? "uncordon" : "cordon";
  const text = host.cordoned ? "It takes applications again." : "It takes no more applications. Those that run there stay.";
  return [host.host, host.version,
    said(share("cpus"), `${cores(host.needed.cpus)} of ${cores(host.capacity.cpus)} CPUs needed`),
    said(share("memory_bytes"), `${bytes(host.needed.memory_bytes)} of ${bytes(host.capacity.memory_bytes)} needed`),
    h("pre", {}, host.apps.join(" ")),
    host.cordoned ? h("span", { class: "bad" }, "cordoned") : "open",
    h("button", { onclick: () => page.act(`${what} ${host.host}?`, text,
      () => change("POST", `/v1/fleet/hosts/${encodeURIComponent(host.host)}/${what}`)) }, `${what}…`)];
}

/** A bar with its numbers, which can be copied. */
function said(share, words) {
  return h("div", {}, bar(share, null, words), words);
}
