// The coordinator's jobs in RQ: forming groups, and whatever else takes long.

import { h, link } from "../dom.js";
import { badge, code, empty, row, section, table } from "../parts.js";
import { ago, clock, count, span, whole } from "../words.js";

const STATES = { finished: "done", failed: "failed", started: "running", queued: "queued", deferred: "queued", scheduled: "queued", stopped: "cancelled", canceled: "cancelled" };
const HEADS = ["State", "What", "Created", "Began", "Took", "Worker", "Job"];
const WORKERS = ["Worker", "State", "Host", "Job now", "Done, failed", "Last sign of life"];

/** The way to RQ's own dashboard, where the page has it inside. */
function toRq() {
  const place = document.querySelector('meta[name="rq"]');
  return place && h("p", { class: "muted", "data-key": "rq" }, "Operators put failed ones back in line, or delete them, in ", link(place.content, {}, { id: "rq" }, "RQ's own dashboard"), ".");
}

export function render(told) {
  if (!told.queues.length && !told.workers.length) {
    return [toRq(), empty("No control jobs.", "What takes the coordinator long, such as forming a group of nodes, is a job in RQ and shows up here.", ["Start one: ", code("sollol-coordinator")])];
  }
  const now = Date.now() / 1000;
  return [toRq(), ...told.queues.map((queue) => section(`queue-${queue.name}`, `Queue ${queue.name}`,
    h("p", { class: "muted" }, Object.entries(queue.counts).filter(([, number]) => number).map(([word, number]) => `${whole(number)} ${word}`).join(", ") || "empty"),
    queue.jobs.length ? table(`jobs-${queue.name}`, HEADS, queue.jobs.map((job) => row(job.id, { "data-job": job.id }, HEADS, badge(STATES[job.status] || "queued", job.status),
      [job.description, job.error ? h("div", { class: "error small" }, job.error) : ""], job.created_at ? clock(job.created_at) : "–", job.started_at ? clock(job.started_at) : "–",
      job.started_at ? span((job.ended_at || now) - job.started_at) : "–", job.worker_name || "–", h("span", { class: "mono", title: job.id }, job.id.slice(0, 8))))) : null)),
  section("workers", count(told.workers.length, "process that runs them", "processes that run them"), told.workers.length
    ? table("worker-table", WORKERS, told.workers.map((worker) => row(worker.name, {}, WORKERS, h("span", { class: "mono", title: worker.name }, worker.name.slice(0, 12)), worker.state, worker.hostname,
      worker.current_job ? worker.current_job.slice(0, 8) : "–", `${worker.successful_job_count || 0}, ${worker.failed_job_count || 0}`, worker.last_heartbeat ? ago(worker.last_heartbeat, now) : "–")))
    : empty("Nobody runs control jobs.", ["A coordinator starts such a process by itself: ", code("sollol-coordinator")]))];
}
