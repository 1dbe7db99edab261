// The first page: what every machine does, what waits and why, what went wrong.

import { h, s, link } from "../dom.js";
import { badge, bar, code, empty, nodeCard, row, sayer, section, shortId, table } from "../parts.js";
import { plot } from "../plot.js";
import { ago, clock, count, percent, rate, size, span, whole } from "../words.js";

export function render(told) {
  return [headline(told), alerts(told), tiles(told), machines(told), queues(told), history(told), troubles(told)];
}

function headline(told) {
  const wrong = (told.troubles || []).length;
  return h("div", { class: "headline", id: "headline", "data-key": "headline" }, told.headline,
    wrong ? [" ", h("a", { href: "#troubles" }, `${wrong >= told.most_troubles ? "Much" : count(wrong, "thing")} went wrong in the last hour.`)] : "");
}

const WHERE = { "worker.gone": ["/node", "name"], "worker.silent": ["/node", "name"], "backend.down": ["/node", "name"], "queue.unserved": ["/jobs", "model"], "queue.old": ["/jobs", "model"] };

function alerts(told) {
  if (!told.alerts.length) return h("p", { class: "well", id: "alerts", "data-key": "alerts" }, "Nothing needs a look.");
  const more = told.alerts_in_all - told.alerts.length;
  return h("ul", { class: "alerts", id: "alerts", "data-key": "alerts" }, told.alerts.map((alert) => {
    const [path, name] = WHERE[alert.code] || [alert.code === "jobs.dead" ? "/jobs" : alert.code.startsWith("group") ? "/groups" : "", ""];
    const params = alert.code === "jobs.dead" ? { state: "dead" } : name ? { [name]: alert.subject } : {};
    return h("li", { "data-level": alert.level, "data-code": alert.code, "data-key": `${alert.code}/${alert.subject}` },
      h("div", {}, h("strong", {}, alert.text), h("span", { class: "muted" }, alert.hint)),
      path ? link(path, params, { class: "quiet" }, "Look") : null);
  }), more ? h("li", { "data-key": "more" }, `and ${whole(more)} more`) : null);
}

function tile(id, name, value, more, state) {
  return h("div", { class: "tile", id: `tile-${id}`, "data-key": id, "data-state": state || null },
    h("span", { class: "name" }, name), h("span", { class: "value" }, value), h("span", { class: "more" }, more || ""));
}

function tiles(told) {
  const total = told.totals, now = told.rates || {};
  const vram = total.vram_total_mib ? `${size(total.vram_total_mib - total.vram_free_mib)} of ${size(total.vram_total_mib)} VRAM` : "";
  return h("div", { class: "tiles", id: "tiles", "data-key": "tiles" },
    tile("nodes", "Nodes", whole(total.nodes), total.nodes_gone ? `${total.nodes_gone} gone` : vram, total.nodes_gone ? "error" : null),
    tile("running", "Running", whole(total.running), `${total.busy} of ${count(total.slots, "slot")} busy`),
    tile("waiting", "Waiting", whole(total.waiting), total.waiting ? `the first for ${span(total.oldest_seconds)}` : "nobody waits", total.waiting && total.oldest_seconds > told.queue_seconds ? "warning" : null),
    tile("requests", "Requests/s", rate(now.requests), `${whole(total.done)} so far`),
    tile("tokens", "Tokens/s", rate(now.tokens), "last minute"),
    tile("ttft", "First token", span(now.ttft_p50), now.ttft_p95 === null || now.ttft_p95 === undefined ? "" : `p95 ${span(now.ttft_p95)}`),
    tile("latency", "Answer, embedding", span(now.latency_p50), now.latency_p95 === null || now.latency_p95 === undefined ? "" : `p95 ${span(now.latency_p95)}`),
    tile("errors", "Failed", now.errors_hour === undefined ? "–" : whole(now.errors_hour), now.errors_hour ? `${percent(now.errors_hour / Math.max(1, now.requests_hour))}, last hour` : "in the last hour", now.errors_hour ? "warning" : null));
}

function machines(told) {
  const cells = told.cells.length > told.nodes.length
    ? h("p", { class: "cells", "aria-label": "All nodes by state" }, told.cells.map(([name, state]) =>
        link("/node", { name }, { "data-state": state, title: `${name}: ${state}`, "aria-label": `${name}: ${state}` })))
    : null;
  const body = told.nodes.length
    ? h("div", { class: told.nodes_in_all > 20 ? "cards many" : "cards", id: "cards" }, told.nodes.map(nodeCard))
    : empty("No machine is connected.",
        ["On each machine with an LLM server: ", code("pip install 'sollol[worker]'"), ", then ", code("sollol-worker --redis URL")],
        ["To try it on this machine alone: ", code("sollol up")]);
  const more = told.nodes_in_all > told.nodes.length
    ? h("p", { class: "more" }, `${told.nodes.length} of ${whole(told.nodes_in_all)} nodes, those first that need a look. `, link("/nodes", {}, {}, "All nodes")) : null;
  return section("machines", "What every machine does", cells, body, more);
}

const HEADS = ["Model", "Waiting", "Oldest", "Running", "Workers", "Why they wait"];

function queues(told) {
  if (!told.queues.length) {
    return section("queues", "What waits, and why", empty("No queue yet.",
      ["A model gets one with its first worker. Hand a job in: ", code("sollol chat \"Hello\"")]));
  }
  const most = Math.max(1, ...told.queues.map((queue) => queue.waiting));
  // Of thousands of running jobs a few hundred are looked at one by one.
  const isPart = told.totals.running > told.queues.reduce((sum, queue) => sum + queue.running, 0);
  return section("queues", "What waits, and why", table("queue-table", HEADS, told.queues.map((queue) =>
    row(queue.model, { "data-model": queue.model, "data-waiting": queue.waiting, "data-running": queue.running }, HEADS,
      link("/jobs", { model: queue.model, state: queue.waiting ? "waiting" : "" }, {}, queue.model),
      [h("b", { class: "num" }, whole(queue.waiting)), " ", queue.waiting ? meter(queue.waiting, most) : ""],
      queue.waiting ? span(queue.oldest_seconds) : "–", `${isPart && queue.running ? "at least " : ""}${whole(queue.running)}`, whole(queue.workers),
      h("span", { class: "muted" }, queue.why || (queue.workers ? "nobody waits" : "no worker has it now"))))),
  told.queues_in_all > told.queues.length ? h("p", { class: "more" }, `${told.queues.length} of ${whole(told.queues_in_all)} queues, the longest.`) : null);
}

function meter(value, most) {
  return s("svg", { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { width: (100 * value / most).toFixed(1), height: "8" }));
}

function history(told) {
  const past = told.history;
  if (!past) return null;
  const { start, step } = past;
  const lines = (name) => [{ name: "p50", values: past[`${name}_p50`] }, { name: "p95", values: past[`${name}_p95`] }];
  return section("history", "The last hour",
    h("div", { class: "plots" },
      plot({ id: "tokens", title: "Tokens per second", start, step, words: rate, lines: [{ name: "", values: past.tokens }], sum: `${whole(past.tokens_total)} in all` }),
      plot({ id: "requests", title: "Requests per second", start, step, words: rate, lines: [{ name: "", values: past.requests }], sum: `${whole(past.requests_total)} in all` }),
      plot({ id: "ttft", title: "First token", start, step, words: span, lines: lines("ttft") }),
      plot({ id: "latency", title: "Whole answer, or embedding", start, step, words: span, lines: lines("latency") }),
      plot({ id: "waiting", title: "Jobs waiting", start, step, words: whole, lines: [{ name: "", values: past.waiting }] }),
      plot({ id: "errors", title: "Failed per minute", start, step, words: rate, lines: [{ name: "", values: past.errors }], sum: `${whole(past.errors_total)} in all` })));
}

// Which job it was, and what kind of error: texts of errors are not in the log, for they may quote what was asked.
function particulars(line) {
  const { job, model, error, status } = line.fields || {};
  const words = [model && `${model}${line.app ? ` for ${line.app}` : ""}`, error && `${error}${status ? ` ${status}` : ""}`].filter(Boolean).join(": ");
  return [words ? h("span", { class: "fields" }, ` ${words} `) : " ", job ? link("/job", { id: job }, { class: "mono small" }, shortId(job)) : ""];
}

function troubles(told) {
  const found = told.troubles;
  if (!found) return null;
  const body = found.length
    ? h("ul", { class: "log", id: "trouble-list" }, found.map((line) => h("li", { "data-level": line.level, "data-key": line.id },
        h("time", { title: clock(line.at) }, ago(line.at, told.at)), badge(line.level, line.level), h("span", { class: "from" }, line.source ? sayer(line) : link("/node", { name: line.node }, {}, line.node)),
        h("span", { class: "event" }, line.event, particulars(line)))))
    : empty("Nothing went wrong in the last hour.");
  return section("troubles", "What went wrong in the last hour", body, h("p", { class: "more" }, link("/log", {}, {}, "The whole log")));
}
