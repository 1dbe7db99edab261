// The live log, the latest line first.

import { h, link } from "../dom.js";
import { badge, empty, sayer, shortId } from "../parts.js";
import { clock, whole } from "../words.js";
import { field, fillList, filters, listed, pick } from "../filter.js";

const LEVELS = [["info", "everything"], ["warning", "warnings and errors"], ["error", "errors"]];

export const frame = (params, go) => filters("log-filter", go, [],
  pick("level", "Level", LEVELS, params.level || "info"), listed("node", "Node", params.node), listed("app", "Application", params.app), field("q", "Words", params.q));

export function render(told) {
  fillList("node", told.nodes);
  fillList("app", told.apps);
  if (!told.lines.length) {
    return told.seen ? empty("No line is like that.", `Among the last ${whole(told.seen)} lines. Clear the filter above to see them.`)
      : empty("Nothing was said yet.", "Workers, coordinators, gateways and clients write here what happens: errors always, one in ten of the rest.");
  }
  return h("ul", { class: "log", id: "log-lines", "data-key": "lines" }, told.lines.map((line) =>
    h("li", { "data-level": line.level, "data-key": line.id },
      h("time", {}, clock(line.at)), line.level === "info" ? h("span", { class: "muted small" }, "info") : badge(line.level, line.level),
      h("span", { class: "from", title: line.process }, sayer(line)),
      h("span", { class: "event" }, line.event, " ", fields(line)))));
}

function fields(line) {
  const found = Object.entries({ ...(line.app ? { app: line.app } : {}), ...line.fields });
  return h("span", { class: "fields" }, found.map(([name, value]) => [
    name === "job" ? ["job ", link("/job", { id: String(value) }, {}, shortId(String(value)))] : `${name} ${value}`, "  "]),
    line.left_out ? `(${line.left_out} more like this were left out)` : "");
}
