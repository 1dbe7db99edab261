// All nodes, page by page.

import { h } from "../dom.js";
import { code, empty, nodeCard } from "../parts.js";
import { whole } from "../words.js";
import { field, filters, pick } from "../filter.js";

const STATES = [["", "any state"], ["gone", "gone"], ["silent", "silent"], ["down", "server down"], ["draining", "draining"], ["cordoned", "cordoned"], ["busy", "working"], ["idle", "idle"]];

export const frame = (params, go) => filters("node-filter", go, ["page"],
  field("q", "Name or model", params.q), pick("state", "State", STATES, params.state));

export function render(told, params) {
  if (!told.nodes_in_all) {
    return empty("No machine is connected.", ["On each machine with an LLM server: ", code("sollol-worker --redis URL")]);
  }
  if (!told.found) return empty("No node is like that.", "Clear the filter above to see all.");
  return [
    h("p", { class: "muted", "data-key": "found" }, told.found === told.nodes_in_all ? `${whole(told.found)} nodes` : `${whole(told.found)} of ${whole(told.nodes_in_all)} nodes`),
    h("div", { class: told.nodes.length > 20 ? "cards many" : "cards", id: "cards", "data-key": "cards" }, told.nodes.map(nodeCard)),
    pages(told, params),
  ];
}

function pages(told, params) {
  if (told.pages < 2) return null;
  const to = (page, text) => h("a", { href: `?${new URLSearchParams({ ...params, page })}`, class: "quiet", "data-key": text }, text);
  return h("nav", { class: "pages", "aria-label": "Pages", "data-key": "pages" },
    told.page > 1 ? to(told.page - 1, "Before") : null, `Page ${told.page} of ${told.pages}`, told.page < told.pages ? to(told.page + 1, "Next") : null);
}
