// Applications of the last days: who is there, and what has become of their jobs.

import { h, link } from "../dom.js";
import { badge, code, empty, row, table } from "../parts.js";
import { ago, rate, whole } from "../words.js";

const HEADS = ["Application", "State", "Release", "Host", "Jobs/min", "Answered", "Failed", "Tokens in, out", "Metadata", "Last seen"];

export function render(told) {
  if (!told.apps.length) {
    return empty("No application was here within 7 days.", ["Each one that makes a client shows up here by itself: ", code("sollol.Client(app=\"my-app\")")],
      "Programs that only speak HTTP come through the gateway, as the application of their API key.");
  }
  const apps = [...told.apps].sort((a, b) => b.is_live - a.is_live || (a.name < b.name ? -1 : 1));
  const list = table("app-table", HEADS, apps.map((app) => row(app.name, { "data-app": app.name }, HEADS,
    link("/jobs", { app: app.name }, {}, app.name), app.is_live ? badge("idle", "live") : badge("", "no client"),
    [app.own_version || "–", app.version ? h("div", { class: "muted small" }, `SOLLOL ${app.version}`) : ""], app.host || "–", rate(app.per_minute), whole(app.done),
    app.failed ? h("span", { class: "error" }, `${whole(app.failed)} (${Math.round(100 * app.error_rate)} %)`) : "0",
    `${whole(app.tokens_in)}, ${whole(app.tokens_out)}`, metadata(app.metadata), ago(app.seen, told.at))));
  return told.apps_in_all > apps.length
    ? [list, h("p", { class: "more" }, `${whole(apps.length)} of ${whole(told.apps_in_all)} applications, those that were here last.`)] : list;
}

function metadata(found) {
  const pairs = Object.entries(found || {}).filter(([name]) => name !== "version");
  const text = pairs.map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
  return text ? h("span", { class: "muted small" }, text.length > 200 ? text.slice(0, 200) + "…" : text) : "–";
}
