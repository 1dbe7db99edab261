// Nodes that serve one model together (llama.cpp RPC).

import { h, link } from "../dom.js";
import { mayOperate } from "../actions.js";
import { badge, bar, code, empty, row, table } from "../parts.js";
import { megabits, milliseconds, size, span, whole } from "../words.js";

const STATES = { ready: "idle", forming: "busy", loading: "busy", broken: "down" };
const HEADS = ["Node", "Device", "Layers", "Memory", "Link from the head"];

export function render(told) {
  if (!told.groups.length) {
    return empty("No group now.", "A group forms by itself when a job asks for a model that fits no single node.",
      told.leader ? `The coordinator ${told.leader} leads and looks after that.` : ["No coordinator runs: start ", code("sollol-coordinator")],
      ["The model's GGUF file must lie on one node: in Ollama's store, or in a ", code("--models-dir"), " of its worker."]);
  }
  return told.groups.map((group) => card(group, told));
}

function card(group, told) {
  const most = Math.max(1, ...group.places.map((place) => place.mib || 0));
  return h("section", { class: "card group", "data-key": group.id, "data-group": group.id, "data-state": group.state },
    h("header", {}, h("h2", {}, group.model, " ", h("span", { class: "muted small mono" }, group.id)), badge(STATES[group.state] || "idle", group.state)),
    h("p", { class: "doing" }, group.why || group.progress || `${group.parts.length} nodes serve it together, for ${span(Math.max(0, told.at - group.since))} now`),
    group.places.length
      ? table(`places-${group.id}`, HEADS, group.places.map((place, at) => row(String(at), {}, HEADS,
          link("/node", { name: place.node }, {}, place.node), place.device === "CPU" ? "CPU, main memory" : place.device, whole(place.layers), bar("", place.mib, most, size(place.mib || 0), "usual"), connection(group, place, told))))
      : h("ul", {}, group.parts.map(([node]) => h("li", { "data-key": node }, link("/node", { name: node }, {}, node), node === group.head ? " (head)" : ""))),
    report(group),
    mayOperate() ? h("div", { class: "actions" }, h("button", { type: "button", class: "quiet small", "data-do": "dissolve", "data-group": group.id, "data-sure": `Dissolve the group for ${group.model}? It is formed again when a job needs it.` }, "Dissolve")) : null);
}

// Measured just before the layers were sent; what is not a number was not measured.
function connection(group, place, told) {
  if (place.node === group.head) return h("span", { class: "muted" }, "the head");
  const link = (group.links || {})[place.node] || {};
  const parts = [link.mib_per_s ? megabits(link.mib_per_s) : "", link.trip_ms ? milliseconds(link.trip_ms) : ""].filter(Boolean);
  const address = (told.addresses[place.node] || {}).address;
  return h("span", { title: address ? `to ${address}` : null }, parts.join(", ") || (group.state === "ready" ? "not measured" : "not measured yet"));
}

function report(group) {
  const parts = Object.entries(group.report || {});
  if (!parts.length) return null;
  return h("details", { "data-key": "report" }, h("summary", {}, "Memory as llama-server told it"),
    h("dl", { class: "facts" }, parts.map(([name, mib]) => h("div", { class: "fact" }, h("dt", {}, name), h("dd", {}, size(mib))))));
}
