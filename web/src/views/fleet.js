// The hosts that share applications with this one, by the room they will have.

import { change } from "../ask.js";
import { facts, fill, h, table } from "../dom.js";
import { bytes, cores } from "../format.js";
import { poll } from "../poll.js";
import { bar } from "../slices.js";

const EVERY_MS = 2000;

export function show(place, page) {
  const self = h("section", {}, h("h2", {}, "This host in the fleet"), h("p", { class: "dim" }, "Asking…"));
  const hosts = h("section", {}, h("h2", {}, "Hosts"), h("p", { class: "dim" }, "Asking…"));
  place.append(self, hosts);
  const title = (section) => section.firstChild;
  const ends = [
    poll("/v1/fleet", EVERY_MS, (fleet) => {
      fill(self, title(self), facts(Object.entries(fleet)
        .filter(([, value]) => value !== null && typeof value !== "object")
        .map(([name, value]) => [name.replaceAll("_", " "), String(value)])));
    }, (error) => fill(self, title(self), h("p", { class: "dim" }, error.message))),
    poll("/v1/fleet/hosts", EVERY_MS, (fleet) => {
      fill(hosts, title(hosts), fleet.hosts.length ? table("By name; the bar is what is needed of what there is",
        ["Host", "Version", "CPUs", "Memory", "Apps", "State", "Ask"], fleet.hosts.map((host) => row(host, page)))
        : h("p", { class: "dim" }, "No host is there."));
    }, (error) => fill(hosts, title(hosts), h("p", { class: "dim" }, error.message))),
  ];
  return { end: () => ends.forEach((end) => end()) };
}

function row(host, page) {
  const share = (name) => (host.capacity[name] > 0 ? host.needed[name] / host.capacity[name] : 0);
  const what = host.cordoned ? "uncordon" : "cordon";
  const text = host.cordoned ? "It takes applications again." : "It takes no more applications. Those that run there stay.";
  return [host.host, host.version,
    bar(share("cpus"), null, `${cores(host.needed.cpus)} of ${cores(host.capacity.cpus)} CPUs needed`),
    bar(share("memory_bytes"), null, `${bytes(host.needed.memory_bytes)} of ${bytes(host.capacity.memory_bytes)} needed`),
    h("pre", {}, host.apps.join(" ")),
    host.cordoned ? h("span", { class: "bad" }, "cordoned") : "open",
    h("button", { onclick: () => page.act(`${what} ${host.host}?`, text,
      () => change("POST", `/v1/fleet/hosts/${encodeURIComponent(host.host)}/${what}`)) }, `${what}…`)];
}
