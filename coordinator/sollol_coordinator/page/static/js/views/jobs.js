// Jobs, page by page: running, waiting in line, waiting out a backoff, ended, dead.

import { h, link } from "../dom.js";
import { mayOperate } from "../actions.js";
import { badge, code, empty, row, shortId, table } from "../parts.js";
import { clock, count, span, whole } from "../words.js";
import { field, fillList, filters, listed, pick } from "../filter.js";

const STATES = [["", "all"], ["running", "running"], ["waiting", "waiting"], ["delayed", "to be tried again"], ["ended", "ended"], ["dead", "dead letters"]];
const HEADS = ["State", "Model", "Application", "Priority", "Node", "Handed in", "Waited", "Ran", "Tokens", "Job", ""];

export function frame(params, go) {
  const search = h("form", { class: "filters search", id: "job-search", action: "/job", method: "get" },
    h("label", {}, h("span", {}, "Search by id"), h("input", { name: "id", type: "search", required: true, autocomplete: "off", placeholder: "job id" })),
    h("button", { type: "submit", class: "quiet" }, "Open"));
  const form = filters("job-filter", go, ["offset"],
    pick("state", "State", STATES, params.state), listed("model", "Model", params.model),
    listed("app", "Application", params.app), listed("node", "Node", params.node));
  return h("div", { class: "bar-of-filters" }, form, search);
}

export function render(told, params) {
  fillList("model", told.models);
  fillList("app", told.apps);
  fillList("node", told.nodes);
  const isFiltered = ["model", "app", "node", "state"].some((name) => params[name]);
  if (!told.jobs.length) {
    return isFiltered
      ? empty("No job is like that.", told.next_offset !== null ? h("a", { href: `?${new URLSearchParams({ ...params, offset: told.next_offset })}` }, `Look on, past the first ${whole(told.offset + told.looked)}`) : "Clear the filter above to see all.")
      : empty("No jobs yet.", ["Hand one in: ", code("sollol chat \"Hello\""), ", or from Python: ", code("sollol.Client().submit(chat=\"Hello\", model=\"…\")")]);
  }
  return [
    h("p", { class: "muted", "data-key": "length" }, `${count(told.length, "job")} in this list${told.offset ? `, from number ${whole(told.offset + 1)} on` : ""}`),
    table("job-table", HEADS, told.jobs.map((job) => line(job))),
    pages(told, params),
  ];
}

function line(job) {
  return row(`${job.list}/${job.id}`, { "data-job": job.id, "data-state": job.state }, HEADS,
    badge(job.state, job.list === "delayed" ? "tried again soon" : job.state === "queued" ? "waiting" : job.state),
    job.model, link("/jobs", { app: job.app }, {}, job.app), priority(job), job.node && job.state !== "queued" ? link("/node", { name: job.node }, {}, job.node) : "–",
    h("time", {}, clock(job.submitted)), span(job.waited_seconds), job.ran_seconds ? span(job.ran_seconds) : "–",
    job.output_tokens ? `${whole(job.prompt_tokens)} + ${whole(job.output_tokens)}` : "–",
    link("/job", { id: job.id }, { class: "mono", title: job.id }, shortId(job.id)), buttons(job));
}

/** The priority; where it can still be changed, a list of them. */
export function priority(job) {
  if (!mayOperate() || job.state !== "queued") return String(job.priority);
  const choices = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];
  return h("select", { name: "priority", "data-do": "priority", "data-job": job.id, "data-key": `priority/${job.id}/${job.priority}`, "aria-label": "Priority" },
    choices.map((each) => h("option", { value: each, selected: each === job.priority }, each)));
}

/** What an operator can do with a job. */
export function buttons(job) {
  if (!mayOperate()) return "";
  const button = (verb, text, sure) => h("button", { type: "button", class: "quiet small", "data-do": verb, "data-job": job.id, "data-sure": sure || null, "data-key": verb }, text);
  if (job.state === "queued" || job.state === "running") return button("cancel", "Cancel", `Cancel the job ${job.id}? Whoever waits for it is told so.`);
  if (job.state === "failed") return button("retry", "Try again");
  if (job.state === "dead") return [button("retry", "Try again"), button("drop", "Drop", `Forget the dead letter ${job.id} for good?`)];
  return "";
}

function pages(told, params) {
  const to = (offset, text) => h("a", { href: `?${new URLSearchParams({ ...params, offset })}`, class: "quiet", "data-key": text }, text);
  if (!told.offset && told.next_offset === null) return null;
  return h("nav", { class: "pages", "aria-label": "Pages", "data-key": "pages" },
    told.offset ? to(0, "To the beginning") : null, told.next_offset !== null ? to(told.next_offset, "Next") : null);
}
