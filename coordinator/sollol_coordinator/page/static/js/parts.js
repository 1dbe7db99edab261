// Parts that several views are made of.

import { h, s, link } from "./dom.js";
import { mayOperate } from "./actions.js";
import { size, span } from "./words.js";

/** A bar of `value` out of `most`, with what it is to its left and how much to its right. */
export function bar(label, value, most, text, level) {
  const share = most > 0 ? Math.min(1, Math.max(0, (value || 0) / most)) : 0;
  const grade = level || (share > 0.97 ? "full" : share > 0.9 ? "high" : "usual");
  return h("div", { class: label ? "bar" : "bar bare", role: "img", "aria-label": label ? `${label}: ${text}` : text },
    label ? h("span", { class: "label" }, label) : null,
    s("svg", { class: `track ${grade}`, "aria-hidden": "true", preserveAspectRatio: "none", viewBox: "0 0 100 8" },
      s("rect", { class: "ground", width: "100", height: "8" }),
      s("rect", { class: "value", width: (100 * share).toFixed(1), height: "8" })),
    h("span", { class: "amount" }, text));
}

/** Slots as little boxes, the busy ones filled. */
export function slots(busy, all) {
  if (!all) return null; // it lends its memory to a group, or only tells of its hardware
  if (all > 24) return bar("Slots", busy, all, `${busy} of ${all} busy`, "usual");
  const boxes = [];
  for (let at = 0; at < all; at++) boxes.push(h("i", { class: at < busy ? "on" : null }));
  return h("div", { class: "bar slots", role: "img", "aria-label": `${busy} of ${all} slots busy` },
    h("span", { class: "label" }, "Slots"), h("span", { class: "boxes", "aria-hidden": "true" }, boxes),
    h("span", { class: "amount" }, `${busy} of ${all}`));
}

const WORDS = { gone: "gone", silent: "silent", down: "server down", draining: "draining", cordoned: "cordoned", busy: "working", idle: "idle" };

/** A state as a coloured word. */
export function badge(state, text) {
  return h("span", { class: "badge", "data-state": state }, text || WORDS[state] || state);
}

/** The hardware of a node as bars. */
export function hardware(node) {
  const found = [];
  for (const gpu of node.gpus || []) {
    const name = gpu.name || "GPU";
    const heat = gpu.temperature_c === null || gpu.temperature_c === undefined ? "" : `, ${gpu.temperature_c} °C`;
    if (gpu.utilisation_percent !== null && gpu.utilisation_percent !== undefined) {
      found.push(bar("GPU", gpu.utilisation_percent, 100, `${gpu.utilisation_percent} %${heat}`, "usual"));
    }
    if (gpu.memory_total_mib) {
      found.push(bar("VRAM", gpu.memory_used_mib, gpu.memory_total_mib,
        `${size(gpu.memory_used_mib)} of ${size(gpu.memory_total_mib)}${gpu.is_estimate ? ", estimated" : ""}`));
    } else {
      found.push(bar("VRAM", 0, 0, `${name}: not known`));
    }
  }
  if (node.ram_total_mib) {
    found.push(bar("RAM", node.ram_used_mib, node.ram_total_mib, `${size(node.ram_used_mib)} of ${size(node.ram_total_mib)}`));
  }
  if (node.cpu_count) found.push(bar("CPU", node.cpu_percent, 100, `${Math.round(node.cpu_percent)} %, load ${node.load_1m}`, "usual"));
  return found;
}

/** A node as a card. */
export function nodeCard(node) {
  const loaded = node.models.filter((model) => model.loaded);
  const rest = node.models_in_all - loaded.length;
  const gpu = (node.gpus || []).map((each) => each.name).filter(Boolean).join(", ");
  return h("article", { class: "card node", "data-key": node.name, "data-node": node.name, "data-state": node.state },
    h("header", {},
      h("h3", {}, link("/node", { name: node.name }, { title: node.name }, node.name)), badge(node.state)),
    h("p", { class: "doing" }, node.doing),
    node.state === "gone" ? null : [
      gpu ? h("p", { class: "muted small gpu" }, gpu) : h("p", { class: "muted small gpu" }, node.cpu_model || "no GPU"),
      slots(node.busy, node.slots), hardware(node),
      h("p", { class: "chips" },
        loaded.map((model) => h("span", { class: "chip on", title: "in memory" }, model.name)),
        rest > 0 ? h("span", { class: "chip" }, loaded.length ? `+${rest} on disk` : `${rest} on disk`) : null)],
    mayOperate() && node.state !== "gone" ? nodeButtons(node) : null);
}

/** What an operator can do with a node. */
export function nodeButtons(node) {
  const isClosed = node.state === "cordoned" || node.state === "draining";
  const button = (verb, text, sure) =>
    h("button", { type: "button", class: "quiet small", "data-do": verb, "data-node": node.name, "data-sure": sure, "data-key": verb }, text);
  return h("div", { class: "actions" },
    isClosed ? button("uncordon", "Take jobs again")
      : [button("cordon", "Cordon", `Keep new jobs from ${node.name}? What runs there goes on.`),
        button("drain", "Drain", `Empty ${node.name}? It takes no new jobs, and what still runs after its time goes to others.`)]);
}

/** Nothing there: what it means, and what to do. */
export function empty(title, ...lines) {
  return h("div", { class: "empty", "data-key": "empty" }, h("p", { class: "big" }, title), lines.map((line) => h("p", {}, line)));
}

export const code = (text) => h("code", {}, text);

/** A table; on a phone each row becomes a block with the heads before the cells. */
export function table(name, heads, rows) {
  return h("div", { class: "scroll", "data-key": name },
    h("table", { id: name },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows)));
}

export function row(key, props, heads, ...cells) {
  return h("tr", { "data-key": key, ...props },
    cells.map((cell, at) => h("td", { "data-head": heads[at] || null, class: cell === "–" || cell === "" ? "none" : null }, cell)));
}

export function section(name, title, ...children) {
  return h("section", { class: "part", id: name, "data-key": name, "aria-labelledby": `${name}-title` },
    h("h2", { id: `${name}-title` }, title), children);
}

/** Ids begin with their time, and those of a batch all alike: their end tells them apart. */
export const shortId = (id) => (id.length > 16 ? `${id.slice(0, 6)}…${id.slice(-8)}` : id);

export const waited = (seconds) => span(seconds);

/** A name and a value, one below the other. */
export function fact(name, value, id) {
  return h("div", { class: "fact", "data-key": name }, h("dt", {}, name), h("dd", { id: id || null }, value === "" || value === null || value === undefined ? "–" : value));
}

/** Who wrote a line of the log: only workers are nodes with a page of their own. */
export function sayer(line) {
  if (line.source === "worker" && line.node) return link("/node", { name: line.node }, {}, line.node);
  return [line.source, line.node && line.node !== line.source ? ` on ${line.node}` : ""].join("");
}
