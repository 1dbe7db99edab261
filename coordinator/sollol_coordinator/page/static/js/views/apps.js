// Applications that have a live client.

import { link } from "../dom.js";
import { code, empty, row, table } from "../parts.js";
import { ago, rate, whole } from "../words.js";

const HEADS = ["Application", "Release", "Host", "Metadata", "Requests/min", "Failed", "Last sign of life"];

export function render(told) {
  if (!told.apps.length) {
    return empty("No application is connected.", ["Each one that makes a client shows up here by itself: ", code("sollol.Client(app=\"my-app\")")],
      "Programs that only speak HTTP come through the gateway, as the application of their API key.");
  }
  return table("app-table", HEADS, told.apps.map((app) => row(app.name, { "data-app": app.name }, HEADS,
    link("/jobs", { app: app.name }, {}, app.name), app.version || "–", app.host || "–", metadata(app.metadata),
    app.per_minute === undefined ? "–" : rate(app.per_minute), app.failed === undefined ? "–" : whole(app.failed), app.seen ? ago(app.seen, told.at) : "live")));
}

function metadata(found) {
  const pairs = Object.entries(found || {});
  return pairs.length ? pairs.map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ") : "–";
}
