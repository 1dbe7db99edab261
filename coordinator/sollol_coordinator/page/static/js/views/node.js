// One machine: hardware, workers, LLM servers, models with their pace, jobs.

import { h, link } from "../dom.js";
import { mayOperate } from "../actions.js";
import { badge, empty, fact, hardware, nodeButtons, row, section, shortId, slots, table } from "../parts.js";
import { plot } from "../plot.js";
import { rate, size, span, whole } from "../words.js";

export function render(told) {
  if (told.missing) {
    return empty(`No live node is called ${told.name}.`, "It may have left in order: then nothing of it is kept.", link("/nodes", {}, {}, "All nodes"));
  }
  return [head(told), told.state === "gone" ? gone(told) : [facts(told), machine(told), past(told), jobs(told), models(told), servers(told), agents(told)]];
}

function head(told) {
  return h("header", { class: "head", "data-key": "head", id: "node-head", "data-node": told.name, "data-state": told.state },
    h("h2", {}, told.name, " ", badge(told.state)), h("p", { class: "headline" }, told.doing),
    mayOperate() && told.state !== "gone" ? nodeButtons(told) : null);
}

function gone(told) {
  return empty("Its worker vanished without a word.", "Is the machine on, does it reach Redis, does sollol-worker run there? Its jobs went to other nodes.",
    link("/log", { node: told.name }, {}, "What it said last"));
}

function facts(told) {
  const controls = told.controls || {};
  const speed = told.busy_seconds && told.done ? `${span(told.busy_seconds / told.done)} each` : "";
  return h("dl", { class: "facts", "data-key": "facts", id: "node-facts" },
    fact("Host", told.host), fact("System", told.os), fact("Labels", (told.labels || []).join(", ")),
    fact("Priority", controls.priority), fact("Only these models", (controls.allow || []).join(", ")), fact("Not these models", (controls.deny || []).join(", ")),
    fact("Answered", `${whole(told.done)}${speed ? ", " + speed : ""}`), fact("Failed", whole(told.failed)), fact("Last sign of life", `${span(told.seen_seconds)} ago`));
}

function machine(told) {
  return section("hardware", "Hardware", h("div", { class: "bars" }, slots(told.busy, told.slots), hardware(told)),
    h("p", { class: "muted small" }, [...(told.gpus || []).map((gpu) => `${gpu.name}${gpu.power_w ? `, ${Math.round(gpu.power_w)} W` : ""}`), `${told.cpu_model}, ${told.cpu_count} CPUs`].join(" · ")));
}

const isKnown = (values) => values.some((value) => value !== null);

function past(told) {
  const history = told.history;
  if (!history) return null;
  const { start, step } = history;
  return section("history", "The last hour", h("div", { class: "plots" },
    plot({ id: "tokens", title: "Tokens per second", start, step, words: rate, lines: [{ name: "", values: history.tokens }] }),
    plot({ id: "busy", title: "Busy slots", start, step, words: rate, lines: [{ name: "", values: history.busy }] }),
    plot({ id: "memory", title: "Memory in use", start, step, words: size,
      lines: [...(isKnown(history.vram) ? [{ name: "VRAM", values: history.vram }] : []), { name: "RAM", values: history.ram }] }),
    isKnown(history.gpu) ? plot({ id: "gpu", title: "GPU, percent", start, step, words: whole, lines: [{ name: "", values: history.gpu }] }) : null));
}

const JOB_HEADS = ["Job", "Model", "Application", "Runs since", "Attempt"];

function jobs(told) {
  const body = told.running.length
    ? table("running", JOB_HEADS, told.running.map((job) => row(job.id, { "data-job": job.id }, JOB_HEADS, link("/job", { id: job.id }, { class: "mono", title: job.id }, shortId(job.id)), job.model, job.app,
        span(job.seconds) + (job.stream && !job.has_begun ? ", no token yet" : ""), whole(job.attempt))))
    : h("p", { class: "muted" }, "Nothing runs here now.");
  return section("jobs", "What it does now", body, h("p", { class: "more" }, link("/jobs", { node: told.name }, {}, "All jobs of this node")));
}

const MODEL_HEADS = ["Model", "In memory", "Size", "Context", "Prompt", "Answer", "Loads in", "Success", "Jobs seen"];

function models(told) {
  const all = told.agents.flatMap((agent) => agent.models.map((model) => ({ ...model, key: `${agent.id}/${model.name}` })));
  if (!all.length) return section("models", "Models", empty("It has no models.", "Pull one on the machine (ollama pull NAME), or start its worker with --model FILE.gguf."));
  const speed = (ms) => (ms ? `${rate(1000 / ms)} tokens/s` : "–");
  return section("models", "Models, and how fast they run here", table("models-table", MODEL_HEADS, all.map((model) =>
    row(model.key, { "data-model": model.name }, MODEL_HEADS, model.name, model.loaded ? badge("idle", "in memory") : "on disk", model.size_bytes ? size(model.size_bytes / 1048576) : "–",
      model.context_tokens ? whole(model.context_tokens) : "–", speed(model.prompt_ms), speed(model.output_ms), model.load_ms ? span(model.load_ms / 1000) : "–",
      model.success_rate === null || model.success_rate === undefined ? "–" : `${Math.round(100 * model.success_rate)} %`, whole(model.jobs_seen)))));
}

const SERVER_HEADS = ["LLM server", "Address", "Release", "Slots", "State"];

function servers(told) {
  const all = told.agents.flatMap((agent) => agent.backends.map((backend, at) => ({ ...backend, key: `${agent.id}/${at}` })));
  return section("servers", "LLM servers", table("server-table", SERVER_HEADS, all.map((each) =>
    row(each.key, {}, SERVER_HEADS, each.kind, each.url, each.version || "–", `${each.busy} of ${each.slots} busy`,
      each.down ? [badge("down", "down"), " ", each.down] : badge("idle", (each.health && each.health.state) || "up")))));
}

const AGENT_HEADS = ["Worker", "Release", "Slots", "Clock"];

function agents(told) {
  return section("agents", "Workers", table("agent-table", AGENT_HEADS, told.agents.map((agent) =>
    row(agent.id, { "data-worker": agent.id }, AGENT_HEADS, h("span", { class: "mono" }, agent.id), agent.version || "–", `${agent.busy} of ${agent.slots} busy`,
      agent.clock_ahead_seconds === null ? "–" : clockOf(agent.clock_ahead_seconds)))));
}

/** Against Redis' clock; what a message takes on its way is no difference. */
function clockOf(ahead) {
  return Math.abs(ahead) < 0.5 ? "right" : `${span(Math.abs(ahead))} ${ahead > 0 ? "fast" : "slow"}`;
}
