// Batches of many items: how far each is.

import { h, link } from "../dom.js";
import { badge, bar, code, empty, row, table } from "../parts.js";
import { clock, rate, span, whole } from "../words.js";

const STATES = { pending: "queued", running: "running", completed: "done", failed: "failed", cancelled: "cancelled" };
const HEADS = ["State", "Batch", "Model", "Application", "Progress", "Failed", "Speed", "Began", "Left"];

export function render(told) {
  if (!told.batches.length) {
    return empty("No batches.", ["Many texts at once: ", code("client.batch(embed=[…], model=\"…\")"), ", or over HTTP: ", code("POST /api/batch/embed")]);
  }
  return table("batch-table", HEADS, told.batches.map((batch) => row(batch.id, { "data-batch": batch.id, "data-state": batch.state }, HEADS,
    badge(STATES[batch.state] || "queued", batch.state), h("span", { class: "mono" }, batch.id), [batch.model, h("div", { class: "muted small" }, batch.kind)],
    link("/jobs", { app: batch.app }, {}, batch.app), progress(batch),
    batch.failed ? h("span", { class: "error" }, whole(batch.failed)) : "0", batch.rate ? `${rate(batch.rate)}/s` : "–", clock(batch.created_at), left(batch))));
}

function progress(batch) {
  if (batch.total === null) return `${whole(batch.completed + batch.failed)} of ${whole(batch.fed)} so far`;
  const done = batch.completed + batch.failed;
  return bar("", done, batch.total, `${whole(done)} of ${whole(batch.total)}`, "usual");
}

function left(batch) {
  if (batch.why) return h("span", { class: "error" }, batch.why);
  if (batch.left_seconds !== null) return `about ${span(batch.left_seconds)}`;
  return batch.seconds ? `took ${span(batch.seconds)}` : "–";
}
