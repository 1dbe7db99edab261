// One job: its whole way, with times, and while it waits what each node makes of it.

import { h, link } from "../dom.js";
import { badge, empty, fact, row, section, table } from "../parts.js";
import { clock, count, span, whole } from "../words.js";
import { buttons, priority } from "./jobs.js";

export function render(told) {
  if (told.missing) {
    return empty("There is no such job.", "Its record has expired (an hour after its end, unless it was asked for longer), or the id is wrong.",
      link("/jobs", {}, {}, "All jobs"));
  }
  return [head(told), facts(told), timeline(told), waits(told), taken(told), asked(told)];
}

// Only where the page was started with --show-prompts, for operators; read when asked for, not before.
function asked(told) {
  if (!document.querySelector('meta[name="prompts"]')) return null;
  return section("asked", "What it was asked", h("button", { type: "button", class: "quiet", "data-prompt": told.id }, "Show"), h("pre", { id: "prompt", class: "prompt", "data-keep": "" }));
}

export function frame() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-prompt]");
    if (!button) return;
    const answer = await fetch(`/prompt?${new URLSearchParams({ id: button.dataset.prompt })}`, { cache: "no-store" });
    const found = await answer.json().catch(() => ({ error: `the page answered ${answer.status}` }));
    document.getElementById("prompt").textContent = answer.ok ? found.text : found.error;
  });
  return h("span", { hidden: true });
}

function head(told) {
  return h("header", { class: "head", "data-key": "head", id: "job-head", "data-state": told.state },
    h("h2", {}, badge(told.state, told.state === "queued" ? "waiting" : told.state), " ", h("span", { class: "mono" }, told.id)),
    h("p", { class: "headline", id: "job-summary" }, told.summary), h("div", { class: "actions" }, buttons(told)));
}

function facts(told) {
  const tokens = told.output_tokens ? `${whole(told.prompt_tokens)} in, ${whole(told.output_tokens)} out` : "";
  const speed = told.output_tokens && told.ended && told.first_token && told.ended > told.first_token
    ? `${(told.output_tokens / (told.ended - told.first_token)).toFixed(1)} tokens/s` : "";
  return h("dl", { class: "facts", "data-key": "facts", id: "job-facts" },
    fact("Model", told.model), fact("Application", link("/jobs", { app: told.app }, {}, told.app)),
    fact("Priority", priority(told)), fact("Task", told.task), fact("Node", told.node && told.state !== "queued" ? link("/node", { name: told.node }, {}, told.node) : ""),
    fact("Attempts", whole(told.attempt)), fact("Waited", span(told.waited_seconds)),
    fact("First token after", told.first_token_seconds === null ? "" : span(told.first_token_seconds)),
    fact("Ran", told.ran_seconds ? span(told.ran_seconds) : ""), fact("Tokens", tokens), fact("Speed", speed),
    fact("Crashes, errors, handed back", `${told.crashes}, ${told.errors}, ${told.releases}`));
}

function kind(what) {
  if (/lost|failed|given up|deadline|cancelled/.test(what)) return "bad";
  if (/left it|handed it back/.test(what)) return "left";
  if (/answered|first piece/.test(what)) return "good";
  return "";
}

function timeline(told) {
  const began = told.timeline.length ? told.timeline[0].at : 0;
  return section("timeline", "Its way", h("ol", { class: "timeline", id: "job-timeline" },
    told.timeline.map((moment, at) => h("li", { "data-kind": kind(moment.what) || null, "data-key": `${at}` },
      h("time", { title: clock(moment.at) }, at ? `+${span(moment.at - began)}` : clock(moment.at)), h("span", { class: "what" }, moment.what))),
    told.state === "running" || told.state === "queued"
      ? h("li", { class: "now", "data-key": "now" }, h("time", {}, `+${span(Math.max(0, told.at - began))}`), h("span", { class: "what" }, "now: ", told.summary)) : null));
}

const HEADS = ["Node", "Worker", "What it makes of the job"];

function waits(told) {
  if (!told.nodes.length) return null;
  return section("nodes", "What each node makes of it", table("reasons", HEADS, told.nodes.map((each) =>
    row(each.node, { "data-code": each.code }, HEADS, link("/node", { name: each.node }, {}, each.node), h("span", { class: "mono" }, each.worker), each.text))),
  told.position === null ? null : h("p", { class: "muted" }, (told.position ? `${count(told.position, "job")} before it` : "It is the first in line") + (told.start_in_seconds === null ? "" : `; it should begin in about ${span(told.start_in_seconds)}`)));
}

function taken(told) {
  if (!told.taken) return null;
  return section("taken", "Why it was taken where it was", h("p", {}, told.taken.text));
}
